//! How much of the output an ordered run keeps at once, worked out before it starts.
//!
//! Boxes that are products of intervals, one per axis, are each held from one patch to
//! another. With patches in the grid's order, a box whose intervals along the axes (slowest
//! first) are held from patches `(f0, f1, f2)` to `(l0, l1, l2)` is there at patch
//! `(i, j, k)` exactly if `(f0, f1, f2) <= (i, j, k) <= (l0, l1, l2)`, compared like words.
//! So the count at a moment is built axis by axis, and equal prefixes are counted once.

use std::collections::HashMap;
use std::ops::Range;

use super::live::Cuts;
use super::options::AggregatorOptions;
use super::pending::unit;
use super::window::{Blend, owned};
use crate::grid::{Axis, Grid};
use crate::volume::Layout;

/// An interval along an axis: how long it is, and from which patch to which it is held.
#[derive(Clone, Copy, Debug)]
struct Span {
    length: u64,
    first: usize,
    last: usize,
}

/// Bytes that a run in order keeps in live blocks and unfinished write chunks, at most.
///
/// `output` is the layout that the output will have, [`planned`](crate::volume::planned); of its write
/// chunks only those `within` (ranges of indices along z, y, x) are written, if that is given.
#[must_use]
pub fn live_bytes(
    grid: &Grid,
    channels: u64,
    options: &AggregatorOptions,
    output: &Layout,
    within: Option<&[Range<u64>; 3]>,
) -> u64 {
    let kept = |a: usize| kept(output, within, a);
    let crop = options.blend == Blend::Crop;
    let sums = if crop {
        0
    } else {
        let cuts = Cuts::new(grid);
        let blocks = std::array::from_fn(|a| touched(&grid.axes()[a], cuts.along(a), &kept(a)));
        peak(grid, &blocks)
            .saturating_mul(options.accumulator.size())
            .saturating_mul(channels)
    };
    let Some(chunk) = unit(grid, output) else {
        return sums;
    };
    let chunks = std::array::from_fn(|a| completed(&grid.axes()[a], chunk[a], crop, &kept(a)));
    let voxel = output.channels * output.dtype.size() as u64;
    sums.saturating_add(peak(grid, &chunks).saturating_mul(voxel))
}

/// Which patches along z, y, x are needed for the write chunks `within`: those that
/// [`Aggregator::needs`](super::Aggregator::needs).
pub(crate) fn needed(
    grid: &Grid,
    blend: &Blend,
    output: &Layout,
    within: &[Range<u64>; 3],
) -> [Range<usize>; 3] {
    std::array::from_fn(|a| {
        let axis = &grid.axes()[a];
        let kept = kept(output, Some(within), a);
        if *blend == Blend::Crop {
            let owned = owned(axis);
            let first = owned.partition_point(|range| range.end <= kept.start);
            let end = owned.partition_point(|range| range.start < kept.end);
            first..end.max(first)
        } else {
            axis.touching(kept.start, kept.end)
        }
    })
}

/// The voxels along an axis that are output.
fn kept(output: &Layout, within: Option<&[Range<u64>; 3]>, a: usize) -> Range<u64> {
    match (within, output.write_chunk) {
        (Some(within), Some([_, chunk @ ..])) => {
            within[a].start * chunk[a]..within[a].end * chunk[a]
        }
        _ => 0..output.shape[a],
    }
}

/// Voxels that the sums of blocks between `cuts` are kept for, from the first patch that
/// touches a block to the last, of those blocks that have any voxel of `kept`.
fn touched(axis: &Axis, cuts: &[u64], kept: &Range<u64>) -> Vec<Span> {
    let span = |pair: &[u64]| {
        let patches = axis.touching(pair[0], pair[1]);
        (!patches.is_empty()).then(|| Span {
            length: pair[1] - pair[0],
            first: patches.start,
            last: patches.end - 1,
        })
    };
    cuts.windows(2)
        .filter(|pair| pair[0] < kept.end && kept.start < pair[1])
        .filter_map(span)
        .collect()
}

/// Voxels of write chunks of `chunk` voxels that begin in `kept`, from the patch that makes
/// their first voxel final to the one that makes their last.
fn completed(axis: &Axis, chunk: u64, crop: bool, kept: &Range<u64>) -> Vec<Span> {
    let owned = owned(axis);
    let covered = axis.covered();
    let settles = |voxel: u64| {
        // What no patch covers takes no memory until another voxel of its chunk is there.
        let voxel = voxel.clamp(covered.start, covered.end - 1);
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
    (0..axis.length.div_ceil(chunk))
        .filter(|n| kept.contains(&(n * chunk)))
        .map(span)
        .collect()
}

/// The most voxels held at once; `spans` along z, y, x.
fn peak(grid: &Grid, spans: &[Vec<Span>; 3]) -> u64 {
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
