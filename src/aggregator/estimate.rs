//! How much of the output an ordered run keeps at once, worked out before it starts.
//!
//! Boxes that are products of intervals, one per axis, are each held from one patch to
//! another. With patches in the grid's order, a box whose intervals along the axes (slowest
//! first) are held from patches `(f0, f1, f2)` to `(l0, l1, l2)` is there at patch
//! `(i, j, k)` exactly if `(f0, f1, f2) <= (i, j, k) <= (l0, l1, l2)`, compared like words.
//! So the count at a moment is built axis by axis, and equal prefixes are counted once.

use std::collections::HashMap;
use std::ops::Range;

use super::live::{Cuts, TOP};
use super::options::AggregatorOptions;
use super::pending::unit;
use super::substitutes::{TAG, touching};
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
    let settling = Settling::of(options);
    let voxel = output.channels * output.dtype.size() as u64;
    let cuts: Option<[Vec<u64>; 3]> = match settling {
        Settling::Owner => None,
        Settling::Last => {
            let cuts = Cuts::new(grid);
            Some(std::array::from_fn(|a| cuts.along(a).to_vec()))
        }
        Settling::OwnerOrLast => Some(std::array::from_fn(|a| boxes(&grid.axes()[a]))),
    };
    let kept_for_voxel = match settling {
        Settling::Owner => 0,
        Settling::Last => {
            let tops = if options.adds_by_logs(grid) { TOP } else { 0 };
            options.sums().size().saturating_mul(channels) + tops
        }
        Settling::OwnerOrLast => voxel + TAG,
    };
    let cuts_along = |a: usize| cuts.as_ref().map_or(&[][..], |cuts| &cuts[a]);
    let along = |a: usize| touched(&grid.axes()[a], cuts_along(a), &kept(a));
    let sums = peak(grid, &std::array::from_fn(along)).saturating_mul(kept_for_voxel);
    let Some(chunk) = unit(grid, output) else {
        return sums;
    };
    let along = |a: usize| {
        let settled = (settling, cuts_along(a));
        completed(&grid.axes()[a], chunk[a], settled, &kept(a))
    };
    let chunks = std::array::from_fn(along);
    // One that no patch covers is there while it is written.
    let one = (0..3).map(|a| chunk[a].min(output.shape[a]));
    let voxels = peak(grid, &chunks).max(one.fold(1, u64::saturating_mul));
    sums.saturating_add(voxels.saturating_mul(voxel))
}

/// When the voxels of an output are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settling {
    /// With the patch that owns them, under crop.
    Owner,
    /// With that patch, or, if it does not vote, with the last of those that touch its box.
    OwnerOrLast,
    /// With the last patch that touches their block.
    Last,
}

impl Settling {
    fn of(options: &AggregatorOptions) -> Self {
        match options.blend {
            Blend::Crop if options.all_vote() => Self::Owner,
            Blend::Crop => Self::OwnerOrLast,
            _ => Self::Last,
        }
    }
}

/// Where the boxes that patches own begin and end along an axis.
fn boxes(axis: &Axis) -> Vec<u64> {
    let owned = owned(axis);
    let mut cuts: Vec<u64> = owned.iter().map(|range| range.start).collect();
    cuts.extend(owned.last().map(|range| range.end));
    cuts.dedup();
    cuts
}

/// Which patches along z, y, x are needed for the write chunks `within`: those that
/// [`Aggregator::needs`](super::Aggregator::needs).
pub(crate) fn needed(
    grid: &Grid,
    options: &AggregatorOptions,
    output: &Layout,
    within: &[Range<u64>; 3],
) -> [Range<usize>; 3] {
    std::array::from_fn(|a| {
        let axis = &grid.axes()[a];
        let kept = kept(output, Some(within), a);
        let settling = Settling::of(options);
        if settling == Settling::Last {
            return axis.touching(kept.start, kept.end);
        }
        let owned = owned(axis);
        let owners = touching(&owned, &kept);
        if settling == Settling::Owner || owners.is_empty() {
            return owners;
        }
        axis.touching(owned[owners.start].start, owned[owners.end - 1].end)
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
/// their first voxel final to the one that makes their last. `cuts` are where the blocks, or the boxes of owners, begin
/// and end.
fn completed(
    axis: &Axis,
    chunk: u64,
    (settling, cuts): (Settling, &[u64]),
    kept: &Range<u64>,
) -> Vec<Span> {
    let owned = owned(axis);
    let covered = axis.covered();
    if covered.is_empty() {
        return Vec::new();
    }
    // From which patch to which it may be that a voxel becomes final.
    let settles = |voxel: u64| {
        // What no patch covers takes no memory until another voxel of its chunk is there.
        let voxel = voxel.clamp(covered.start, covered.end - 1);
        let owner = || owned.partition_point(|range| range.end <= voxel);
        let last = || {
            let end = cuts.partition_point(|&cut| cut <= voxel);
            axis.touching(cuts[end - 1], cuts[end]).end - 1
        };
        match settling {
            Settling::Owner => owner()..=owner(),
            Settling::OwnerOrLast => owner()..=last(),
            Settling::Last => last()..=last(),
        }
    };
    let span = |n: u64| {
        let (from, to) = (n * chunk, ((n + 1) * chunk).min(axis.length));
        Span {
            length: to - from,
            first: *settles(from).start(),
            last: *settles(to - 1).end(),
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
