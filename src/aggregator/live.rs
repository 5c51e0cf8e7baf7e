//! Blocks of the output under accumulation.
//!
//! The volume is cut along each axis where patches begin and end, so that all voxels of a block have the same patches.
//! A block is live from the first patch that touches it to the last. Contributions to a block are added in patch order:
//! one that arrives early, or while another thread adds to the block, waits in the block for that thread, which adds it
//! later. So no thread waits for another one, and the sums are bit-identical for any number of threads and any order of
//! arrival. Where every patch votes and the weights are shares, the sums are the result. Otherwise the weights
//! of the patches that voted are summed once the block is final, and the sums are divided by them. Weights that `f32`
//! cannot represent are taken relative to the largest weight so far.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buffers::Buffers;
use super::gauge::ByteGauge;
use super::sums::Sum;
use super::window::{Logs, Weights};
use crate::dtype::{DType, convert};
use crate::error::Result;
use crate::grid::{Axis, Grid};
use crate::patch::Patch;
use crate::region::Region;

/// The minimum length of a block. Shorter ones are merged with their neighbors, because bookkeeping would cost more
/// than their voxels.
const MIN_BLOCK_LENGTH: u64 = 16;

/// Bytes per voxel of a block, in addition to its sums, where weights are summed by their logarithms.
pub(super) const TOP: u64 = size_of::<f64>() as u64;

/// All live blocks.
#[derive(Debug)]
pub(super) struct Live<S> {
    grid: Grid,
    weights: Weights,
    /// The logarithms to use instead of the weights, where these may be too small.
    logs: Option<Logs>,
    channels: usize,
    cuts: Cuts,
    /// A bit set of the blocks to write; `None` for all.
    wanted: Option<Vec<u64>>,
    blocks: Mutex<HashMap<[usize; 3], SharedBlock<S>>>,
    /// Buffers of finished blocks.
    buffers: Buffers<S>,
    /// Buffers of final values, where sums are not `f32`.
    singles: Buffers<f32>,
}

/// A block, whose state is locked only for moments.
type SharedBlock<S> = Arc<Mutex<LiveBlock<S>>>;

/// The boundaries of blocks along each axis, from 0 to the length.
#[derive(Clone, Debug)]
pub(super) struct Cuts([Vec<u64>; 3]);

#[derive(Debug)]
struct LiveBlock<S> {
    /// The sums; `None` while a thread adds to them, and after a refused contribution.
    sums: Option<BlockSums<S>>,
    /// Number of contributions applied so far.
    turn: usize,
    /// Contributions that arrived before their turn, or while another thread had the sums.
    early: Vec<(usize, Contribution, [usize; 3])>,
}

#[derive(Debug)]
struct BlockSums<S> {
    sums: Vec<S>,
    /// The logarithm of the largest weight so far of each voxel, where logarithms are used.
    tops: Vec<f64>,
    /// The places of the patches in the sums.
    voted: Vec<[usize; 3]>,
}

/// The contribution of a patch to the voxels that it covers.
#[derive(Clone, Debug)]
pub(super) enum Contribution {
    /// Its prediction, and the magnitude that its values must not reach; `None` if they were checked before.
    Values(Arc<Patch>, Option<f32>),
    /// A value for each channel.
    Constant(Arc<[f32]>),
    /// No vote.
    Nothing,
}

/// A block that has its last contribution.
pub(super) enum Final<'a> {
    /// No patch voted.
    Nothing,
    /// The block's values, channel by channel, and the flags of voxels that no patch covers (empty if there are none).
    Values(&'a mut [f32], &'a [bool]),
}

/// The owner of the blocks.
pub(super) trait Owner {
    /// Receives a block that has its last contribution.
    fn finished(&self, region: Region, block: Final<'_>) -> Result<()>;

    /// Checks the prediction of the patch at `place`, one of whose values reached its limit when it was converted to
    /// `f32`. After an error the block never becomes final.
    fn check(&self, place: [usize; 3], prediction: &Patch) -> Result<()>;

    /// Receives a prediction that waited in a block and was the last to be added to its blocks.
    fn spent(&self, prediction: Patch);
}

impl<S: Sum> Live<S> {
    /// Creates the state without any block. `wanted` selects the blocks to write; `None` for all.
    pub(super) fn new(
        grid: &Grid,
        (weights, logs): (Weights, Option<Logs>),
        channels: usize,
        wanted: Option<&dyn Fn(&Region) -> bool>,
    ) -> Self {
        let cuts = Cuts::new(grid);
        let bits = |wanted: &dyn Fn(&Region) -> bool| {
            let mut bits = vec![0_u64; cuts.count().div_ceil(64)];
            for (n, index) in cuts.indices().enumerate() {
                bits[n / 64] |= u64::from(wanted(&cuts.region(index))) << (n % 64);
            }
            bits
        };
        Self {
            grid: grid.clone(),
            weights,
            logs,
            channels,
            wanted: wanted.map(bits),
            cuts,
            blocks: Mutex::default(),
            buffers: Buffers::default(),
            singles: Buffers::default(),
        }
    }

    /// Returns the blocks to write that no patch touches.
    pub(super) fn untouched(&self) -> impl Iterator<Item = Region> + '_ {
        let all_covered = (0..3).all(|a| {
            let axis = &self.grid.axes()[a];
            axis.covered() == (0..axis.length)
        });
        let some = (!all_covered)
            .then(|| self.cuts.indices())
            .into_iter()
            .flatten();
        some.filter(|&index| self.is_wanted(index))
            .map(|index| self.cuts.region(index))
            .filter(|region| self.turns(region).iter().any(Range::is_empty))
    }

    fn is_wanted(&self, index: [usize; 3]) -> bool {
        let bit = self.cuts.number(index);
        let set = |bits: &Vec<u64>| bits[bit / 64] & (1 << (bit % 64)) != 0;
        self.wanted.as_ref().is_none_or(set)
    }

    /// Returns `true` if the patch at `place` touches any block to write.
    pub(super) fn needs(&self, place: [usize; 3]) -> bool {
        self.wanted.is_none() || self.touched(place).any(|index| self.is_wanted(index))
    }

    /// Returns the blocks that the patch at `place` touches.
    fn touched(&self, place: [usize; 3]) -> impl Iterator<Item = [usize; 3]> + use<S> {
        let ranges: [Range<usize>; 3] = std::array::from_fn(|a| {
            let inside = self.grid.axes()[a].inside(place[a]);
            let cuts = &self.cuts.0[a];
            let first = cuts.partition_point(|&cut| cut <= inside.start) - 1;
            first..cuts.partition_point(|&cut| cut < inside.end).max(first)
        });
        product(ranges)
    }

    /// Adds the contribution of the patch at `place` to every block that it touches, and passes the finished ones to
    /// their owner.
    pub(super) fn add(
        &self,
        place: [usize; 3],
        contribution: &Contribution,
        meter: &ByteGauge,
        owner: &impl Owner,
    ) -> Result<()> {
        for index in self.touched(place) {
            if self.is_wanted(index) {
                self.add_to(index, place, contribution, meter, owner)?;
            }
        }
        Ok(())
    }

    fn add_to(
        &self,
        index: [usize; 3],
        place: [usize; 3],
        contribution: &Contribution,
        meter: &ByteGauge,
        owner: &impl Owner,
    ) -> Result<()> {
        let region = self.cuts.region(index);
        let turns = self.turns(&region);
        let turn = self.turn(&turns, place);
        let total: usize = turns.iter().map(ExactSizeIterator::len).product();
        let shared = Arc::clone(self.lock().entry(index).or_default());
        let state = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut block = {
            let mut state = state();
            let is_next = turn == state.turn;
            let Some(block) = state.sums.take_if(|_| is_next) else {
                state.early.push((turn, contribution.clone(), place));
                return Ok(());
            };
            block
        };
        self.apply(&mut block, &region, contribution, place, (meter, owner))?;
        loop {
            let (contribution, place) = {
                let mut state = state();
                state.turn += 1;
                if state.turn == total {
                    break;
                }
                let next = |(turn, ..): &(usize, Contribution, [usize; 3])| *turn == state.turn;
                let Some(next) = state.early.iter().position(next) else {
                    state.sums = Some(block);
                    return Ok(());
                };
                let (_, contribution, place) = state.early.swap_remove(next);
                (contribution, place)
            };
            self.apply(&mut block, &region, &contribution, place, (meter, owner))?;
            if let Contribution::Values(prediction, _) = contribution
                && let Some(prediction) = Arc::into_inner(prediction)
            {
                owner.spent(prediction);
            }
        }
        self.lock().remove(&index);
        self.finish(block, &region, total, (meter, owner))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[usize; 3], SharedBlock<S>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a block that has its `total` contributions to its owner.
    fn finish(
        &self,
        mut block: BlockSums<S>,
        region: &Region,
        total: usize,
        (meter, owner): (&ByteGauge, &impl Owner),
    ) -> Result<()> {
        if block.voted.is_empty() {
            return owner.finished(*region, Final::Nothing);
        }
        let complete = block.voted.len() == total;
        S::with_f32(&mut block.sums, &self.singles, |values| {
            let holes = match &self.logs {
                Some(logs) => self.normalize_by(logs, region, &block.voted, &block.tops, values),
                None => self.normalize(region, &block.voted, complete, values),
            };
            owner.finished(*region, Final::Values(values, &holes))
        })?;
        meter.shrink((size_of_val(&block.sums[..]) + size_of_val(&block.tops[..])) as u64);
        self.buffers.give(block.sums);
        Ok(())
    }

    /// Applies a contribution whose turn it is.
    fn apply(
        &self,
        block: &mut BlockSums<S>,
        region: &Region,
        contribution: &Contribution,
        place: [usize; 3],
        (meter, owner): (&ByteGauge, &impl Owner),
    ) -> Result<()> {
        if let Contribution::Nothing = contribution {
            return Ok(());
        }
        let covers = (0..3).all(|a| {
            let inside = self.grid.axes()[a].inside(place[a]);
            let from = region.start[a].unsigned_abs();
            inside.start <= from && from + region.shape[a] <= inside.end
        });
        // The values of a patch that covers all of a fresh block are stored; others are added to zeros.
        let fresh = block.voted.is_empty();
        let store = fresh
            && covers
            && self.logs.is_none()
            && matches!(contribution, Contribution::Values(..));
        if fresh {
            let length = self.channels * length(region.voxels());
            meter.grow((length * size_of::<S>()) as u64);
            block.sums = self.buffers.take(length);
            if !store {
                block.sums.fill(S::default());
            }
        }
        let within = if let Some(logs) = &self.logs {
            if fresh {
                block.tops = vec![f64::NEG_INFINITY; length(region.voxels())];
                meter.grow(size_of_val(&block.tops[..]) as u64);
            }
            self.accumulate_by(logs, region, contribution, place, block)
        } else {
            self.accumulate(region, contribution, place, store, &mut block.sums)
        };
        block.voted.push(place);
        match contribution {
            Contribution::Values(prediction, Some(_)) if !within => owner.check(place, prediction),
            _ => Ok(()),
        }
    }

    /// Returns the patches that touch a block, along each axis.
    fn turns(&self, region: &Region) -> [Range<usize>; 3] {
        let end = region.end();
        std::array::from_fn(|a| {
            self.grid.axes()[a].touching(region.start[a].unsigned_abs(), end[a].unsigned_abs())
        })
    }

    /// Returns the number of a block's patches before the one at `place`, in the grid's order.
    fn turn(&self, turns: &[Range<usize>; 3], place: [usize; 3]) -> usize {
        self.grid.order().iter().fold(0, |turn, &a| {
            turn * turns[a].len() + place[a] - turns[a].start
        })
    }

    /// Returns the intersection of a block and the patch at `place`.
    fn common(&self, block: &Region, place: [usize; 3]) -> Intersection {
        let start = |a: usize| self.grid.axes()[a].starts[place[a]];
        let patch = Region::new([start(0), start(1), start(2)], self.grid.patch());
        let common = block
            .intersection(&patch)
            .unwrap_or(Region::new(block.start, [0; 3]));
        let inside = |of: [i64; 3]| {
            common
                .relative_to(of)
                .start
                .map(|n| usize::try_from(n).unwrap_or(0))
        };
        Intersection {
            to: inside(block.start),
            from: inside(patch.start),
            shape: common.shape.map(length),
        }
    }

    /// Adds a patch's contribution to a block's sums, or stores it there. Returns `false` if a value reached its limit.
    fn accumulate(
        &self,
        block: &Region,
        contribution: &Contribution,
        place: [usize; 3],
        store: bool,
        sums: &mut [S],
    ) -> bool {
        let (patch, shape) = (self.grid.patch().map(length), block.shape.map(length));
        let common = self.common(block, place);
        let weights = self.weights.of(place);
        let per_patch: usize = patch.iter().product();
        let (mut values, limit) = Values::new(contribution);
        let mut within = true;
        let channels = sums.chunks_exact_mut(shape.iter().product());
        for (c, sums) in channels.enumerate().take(self.channels) {
            common.each_row(shape, |row, target| {
                let (weight, weights) = weights.row(row, common.shape[2]);
                let sums = &mut sums[target..target + weights.len()];
                if let Contribution::Constant(constant) = contribution {
                    return S::add_constant(sums, constant[c], weight, weights);
                }
                let row = values.row(c * per_patch + at(patch, row), weights.len());
                within &= if store {
                    S::set(sums, row, weight, weights, limit)
                } else {
                    S::add(sums, row, weight, weights, limit)
                };
            });
        }
        within
    }

    /// Does the same as [`accumulate`](Self::accumulate), with weights relative to the largest so far.
    fn accumulate_by(
        &self,
        logs: &Logs,
        region: &Region,
        contribution: &Contribution,
        place: [usize; 3],
        block: &mut BlockSums<S>,
    ) -> bool {
        let (patch, shape) = (self.grid.patch().map(length), region.shape.map(length));
        let common = self.common(region, place);
        let (per_patch, per_block): (usize, usize) =
            (patch.iter().product(), shape.iter().product());
        let (mut values, limit) = Values::new(contribution);
        let mut within = true;
        let (mut factors, mut weights) = (Vec::new(), Vec::new());
        common.each_row(shape, |row, target| {
            let (first, along) = logs.row(row, common.shape[2]);
            let tops = &mut block.tops[target..target + along.len()];
            factors.clear();
            weights.clear();
            for (top, log) in tops.iter_mut().zip(along) {
                let log = first + log;
                let most = top.max(log);
                factors.push(single((*top - most).exp()));
                weights.push(single((log - most).exp()));
                *top = most;
            }
            for c in 0..self.channels {
                let sums = &mut block.sums[c * per_block + target..][..along.len()];
                S::scale(sums, &factors);
                if let Contribution::Constant(constant) = contribution {
                    S::add_constant(sums, constant[c], 1.0, &weights);
                    continue;
                }
                let row = values.row(c * per_patch + at(patch, row), along.len());
                within &= S::add(sums, row, 1.0, &weights, limit);
            }
        });
        within
    }

    /// Divides a block's sums by the sums of their weights, unless these are 1. Returns the flags of voxels that no
    /// patch covers.
    fn normalize(
        &self,
        block: &Region,
        voted: &[[usize; 3]],
        complete: bool,
        values: &mut [f32],
    ) -> Vec<bool> {
        let shares = complete && self.weights.are_shares();
        let covered = (0..3).all(|a| {
            let covered = self.grid.axes()[a].covered();
            let from = block.start[a].unsigned_abs();
            covered.start <= from && from + block.shape[a] <= covered.end
        });
        if shares && covered {
            return Vec::new();
        }
        let shape = block.shape.map(length);
        let mut sums = vec![0.0; shape.iter().product()];
        let holes = self.holes(block, voted, |place, row, target, length| {
            if !shares {
                let (weight, weights) = self.weights.of(place).row(row, length);
                f32::add_constant(&mut sums[target..target + length], 1.0, weight, weights);
            }
        });
        if !shares {
            divide(values, &sums);
        }
        holes
    }

    /// Does the same as [`normalize`](Self::normalize), for weights relative to the largest.
    fn normalize_by(
        &self,
        logs: &Logs,
        block: &Region,
        voted: &[[usize; 3]],
        tops: &[f64],
        values: &mut [f32],
    ) -> Vec<bool> {
        let mut sums = vec![0.0; tops.len()];
        let holes = self.holes(block, voted, |_, row, target, length| {
            let (first, along) = logs.row(row, length);
            let there = sums[target..].iter_mut().zip(&tops[target..]);
            for ((sum, top), log) in there.zip(along) {
                *sum += single((first + log - top).exp());
            }
        });
        divide(values, &sums);
        holes
    }

    /// Returns the flags of a block's voxels that no patch that voted covers; empty if there are none. Calls `then` for
    /// each row of each patch with the patch's place, the row's first voxel in the patch, its offset in the block, and
    /// its length.
    fn holes(
        &self,
        block: &Region,
        voted: &[[usize; 3]],
        mut then: impl FnMut([usize; 3], [usize; 3], usize, usize),
    ) -> Vec<bool> {
        let shape = block.shape.map(length);
        let mut holes = vec![true; shape.iter().product()];
        for &place in voted {
            let common = self.common(block, place);
            let length = common.shape[2];
            common.each_row(shape, |row, target| {
                holes[target..target + length].fill(false);
                then(place, row, target, length);
            });
        }
        if !holes.contains(&true) {
            holes.clear();
        }
        holes
    }
}

/// Divides each channel by the sums of its voxels' weights, where these are not 0.
fn divide(values: &mut [f32], sums: &[f32]) {
    for channel in values.chunks_exact_mut(sums.len()) {
        for (value, sum) in channel.iter_mut().zip(sums) {
            *value /= if *sum > 0.0 { *sum } else { 1.0 };
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a part of a weight, from 0 to 1"
)]
fn single(value: f64) -> f32 {
    value as f32
}

/// The intersection of a block and a patch: its start in the block and in the patch (z, y, x), and its shape.
struct Intersection {
    to: [usize; 3],
    from: [usize; 3],
    shape: [usize; 3],
}

impl Intersection {
    /// Calls `then` for each row with its first voxel in the patch, and its offset in the buffer of a block of `shape`.
    fn each_row(&self, shape: [usize; 3], mut then: impl FnMut([usize; 3], usize)) {
        for z in 0..self.shape[0] {
            for y in 0..self.shape[1] {
                let row = [self.from[0] + z, self.from[1] + y, self.from[2]];
                then(row, at(shape, [self.to[0] + z, self.to[1] + y, self.to[2]]));
            }
        }
    }
}

impl<S> Default for LiveBlock<S> {
    fn default() -> Self {
        Self {
            sums: Some(BlockSums {
                sums: Vec::new(),
                tops: Vec::new(),
                voted: Vec::new(),
            }),
            turn: 0,
            early: Vec::new(),
        }
    }
}

impl Cuts {
    pub(super) fn new(grid: &Grid) -> Self {
        Self(std::array::from_fn(|a| cuts(&grid.axes()[a])))
    }

    /// Returns the boundaries along an axis, in increasing order.
    pub(super) fn along(&self, axis: usize) -> &[u64] {
        &self.0[axis]
    }

    /// Returns the indices of all blocks, the last axis fastest.
    fn indices(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        product(std::array::from_fn(|a| 0..self.0[a].len() - 1))
    }

    pub(super) fn count(&self) -> usize {
        let counts = self.0.iter().map(|cuts| cuts.len() - 1);
        counts.fold(1, usize::saturating_mul)
    }

    /// Returns a block's row-major number.
    fn number(&self, index: [usize; 3]) -> usize {
        (0..3).fold(0, |number, a| number * (self.0[a].len() - 1) + index[a])
    }

    /// Returns the blocks along an axis that have some of these voxels.
    pub(super) fn overlapping(&self, axis: usize, voxels: &Range<u64>) -> Range<usize> {
        let cuts = &self.0[axis];
        let first = cuts.partition_point(|&cut| cut <= voxels.start).max(1) - 1;
        let end = cuts
            .partition_point(|&cut| cut < voxels.end)
            .min(cuts.len() - 1);
        first..end.max(first)
    }

    pub(super) fn region(&self, index: [usize; 3]) -> Region {
        let start = |a: usize| i64::try_from(self.0[a][index[a]]).unwrap_or(i64::MAX);
        let length = |a: usize| self.0[a][index[a] + 1] - self.0[a][index[a]];
        Region::new(std::array::from_fn(start), std::array::from_fn(length))
    }
}

/// Returns the boundaries of blocks along an axis: the starts and ends of patches, except where blocks would be too
/// short.
fn cuts(axis: &Axis) -> Vec<u64> {
    let ends = |place| {
        let Range { start, end } = axis.inside(place);
        [start, end]
    };
    let mut all: Vec<u64> = (0..axis.starts.len()).flat_map(ends).collect();
    all.sort_unstable();
    let mut cuts = vec![0];
    for cut in all {
        let last = cuts.last().copied().unwrap_or(0);
        if cut >= last + MIN_BLOCK_LENGTH && cut + MIN_BLOCK_LENGTH <= axis.length {
            cuts.push(cut);
        }
    }
    cuts.push(axis.length);
    cuts
}

pub(super) fn product(ranges: [Range<usize>; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [z, y, x] = ranges;
    z.flat_map(move |z| {
        let x = x.clone();
        y.clone()
            .flat_map(move |y| x.clone().map(move |x| [z, y, x]))
    })
}

/// The values of a prediction as `f32`. Other types are converted row by row.
struct Values<'a> {
    /// The values, if they are stored as `f32`.
    singles: Option<&'a [f32]>,
    dtype: DType,
    stored: &'a [u8],
    converted: Vec<f32>,
}

impl<'a> Values<'a> {
    /// Returns the values of a contribution, none if it has no prediction, and the magnitude that they must not reach.
    fn new(contribution: &'a Contribution) -> (Self, f32) {
        let Contribution::Values(patch, limit) = contribution else {
            let none = Self {
                singles: Some(&[]),
                dtype: DType::F32,
                stored: &[],
                converted: Vec::new(),
            };
            return (none, f32::INFINITY);
        };
        let (dtype, stored) = (patch.dtype(), patch.bytes());
        let values = Self {
            singles: (dtype == DType::F32).then(|| bytemuck::cast_slice(stored)),
            dtype,
            stored,
            converted: Vec::new(),
        };
        (values, limit.unwrap_or(f32::INFINITY))
    }

    /// Returns `length` values from the one at `first`.
    fn row(&mut self, first: usize, length: usize) -> &[f32] {
        if let Some(singles) = self.singles {
            return &singles[first..first + length];
        }
        let size = self.dtype.size();
        let stored = &self.stored[first * size..(first + length) * size];
        self.converted.resize(length, 0.0);
        let converted = bytemuck::cast_slice_mut(&mut self.converted);
        convert(self.dtype, stored, DType::F32, converted);
        &self.converted
    }
}

/// Returns the offset of a voxel in the buffer of a box of `shape`.
const fn at([_, ny, nx]: [usize; 3], [z, y, x]: [usize; 3]) -> usize {
    (z * ny + y) * nx + x
}

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length inside a patch in memory")
}
