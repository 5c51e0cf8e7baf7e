//! How much of the output an ordered run keeps at once, worked out before it starts.
//!
//! Boxes that are products of intervals, one per axis, are each held from one patch to
//! another. With patches in the grid's order, a box whose intervals along the axes (slowest
//! first) are held from patches `(f0, f1, f2)` to `(l0, l1, l2)` is there at patch
//! `(i, j, k)` exactly if `(f0, f1, f2) <= (i, j, k) <= (l0, l1, l2)`, compared like words.
//! So the count at a moment is built axis by axis, and equal prefixes are counted once.

use std::collections::HashMap;

use super::window::owned;
use crate::grid::{Axis, Grid};

/// An interval along an axis: how long it is, and from which patch to which it is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) length: u64,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// Voxels that the sums of blocks between `cuts` are kept for: from the first patch that
/// touches a block to the last.
pub(super) fn touched(axis: &Axis, cuts: &[u64]) -> Vec<Span> {
    let span = |pair: &[u64]| {
        let patches = axis.touching(pair[0], pair[1]);
        Span {
            length: pair[1] - pair[0],
            first: patches.start,
            last: patches.end - 1,
        }
    };
    cuts.windows(2).map(span).collect()
}

/// Voxels of write chunks of `chunk` voxels, kept from the patch that makes their first
/// voxel final to the one that makes their last.
pub(super) fn completed(axis: &Axis, chunk: u64, crop: bool) -> Vec<Span> {
    let owned = owned(axis);
    let settles = |voxel: u64| {
        if crop {
            owned.partition_point(|range| range.end <= voxel)
        } else {
            axis.touching(voxel, voxel + 1).end - 1
        }
    };
    let span = |n: u64| {
        let (from, to) = (n * chunk, ((n + 1) * chunk).min(axis.length));
        Span {
            length: to - from,
            first: settles(from),
            last: settles(to - 1),
        }
    };
    (0..axis.length.div_ceil(chunk)).map(span).collect()
}

/// The most voxels held at once; `spans` along z, y, x.
pub(super) fn peak(grid: &Grid, spans: &[Vec<Span>; 3]) -> u64 {
    let levels = grid
        .order()
        .map(|a| Level::new(&spans[a], grid.axes()[a].starts.len()));
    let mut known = [HashMap::new(), HashMap::new(), HashMap::new()];
    let start = Weights {
        both: 1,
        ..Weights::default()
    };
    u64::try_from(most(&levels, &mut known, start)).unwrap_or(u64::MAX)
}

/// Voxels of the slower axes, by what decides whether a box is held: nothing more, whether
/// it has begun, whether it has not ended, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Weights {
    always: u128,
    begun: u128,
    unended: u128,
    both: u128,
}

/// Along one axis, for each patch, the lengths of the spans that begin or end there or elsewhere.
struct Level {
    total: u128,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Default)]
struct Step {
    begun: u128,
    begins: u128,
    unended: u128,
    ends: u128,
    /// Begun before and ending after.
    inside: u128,
    begins_only: u128,
    ends_only: u128,
    begins_and_ends: u128,
}

impl Level {
    fn new(spans: &[Span], patches: usize) -> Self {
        let mut steps = vec![Step::default(); patches];
        for span in spans {
            let length = u128::from(span.length);
            let (first, last) = (span.first, span.last);
            steps[first].begins += length;
            steps[last].ends += length;
            if first == last {
                steps[first].begins_and_ends += length;
            } else {
                steps[first].begins_only += length;
                steps[last].ends_only += length;
            }
        }
        let total: u128 = spans.iter().map(|span| u128::from(span.length)).sum();
        let (mut begun, mut ended, mut open) = (0, 0, 0);
        for step in &mut steps {
            step.begun = begun;
            step.unended = total - ended - step.ends;
            step.inside = open - step.ends_only;
            begun += step.begins;
            ended += step.ends;
            open += step.begins_only;
            open -= step.ends_only;
        }
        Self { total, steps }
    }

    fn at(&self, step: &Step, weights: Weights) -> Weights {
        let Weights {
            always,
            begun,
            unended,
            both,
        } = weights;
        Weights {
            always: always * self.total
                + begun * step.begun
                + unended * step.unended
                + both * step.inside,
            begun: begun * step.begins + both * step.begins_only,
            unended: unended * step.ends + both * step.ends_only,
            both: both * step.begins_and_ends,
        }
    }
}

fn most(levels: &[Level], known: &mut [HashMap<Weights, u128>], weights: Weights) -> u128 {
    let (Some((level, levels)), Some((here, below))) =
        (levels.split_first(), known.split_first_mut())
    else {
        return weights.always + weights.begun + weights.unended + weights.both;
    };
    if let Some(&count) = here.get(&weights) {
        return count;
    }
    let counts = level
        .steps
        .iter()
        .map(|step| most(levels, below, level.at(step, weights)));
    let count = counts.max().unwrap_or(0);
    here.insert(weights, count);
    count
}
