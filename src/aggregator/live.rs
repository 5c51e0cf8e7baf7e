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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocks::{Blocks, at, length};
use super::buffers::Buffers;
use super::gauge::ByteGauge;
use super::sums::Sum;
use super::window::{Logs, Weights};
use crate::dtype::{DType, convert};
use crate::error::Result;
use crate::grid::Grid;
use crate::patch::Patch;
use crate::region::Region;

/// Bytes per voxel of a block, in addition to its sums, where weights are summed by their logarithms.
pub(super) const TOP: u64 = size_of::<f64>() as u64;

/// All live blocks.
#[derive(Debug)]
pub(super) struct Live<S> {
    blocks: Blocks,
    weights: Weights,
    /// The logarithms to use instead of the weights, where these may be too small.
    logs: Option<Logs>,
    channels: usize,
    unfinished: Mutex<HashMap<[usize; 3], SharedBlock<S>>>,
    /// Buffers of finished blocks.
    buffers: Buffers<S>,
    /// Buffers of final values, where sums are not `f32`.
    singles: Buffers<f32>,
}

/// A block, whose state is locked only for moments.
type SharedBlock<S> = Arc<Mutex<LiveBlock<S>>>;

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
    /// Its prediction, or that of a box that a block needs.
    Values(Prediction),
    /// A value for each channel.
    Constant(Arc<[f32]>),
    /// No vote.
    Nothing,
}

/// The prediction of a patch, or of a box of it.
#[derive(Clone, Debug)]
pub(super) struct Prediction {
    pub(super) values: Arc<Patch>,
    /// The first voxel (z, y, x) of the patch that it has.
    pub(super) from: [usize; 3],
    /// The magnitude that its values must not reach; `None` if they were checked before.
    pub(super) limit: Option<f32>,
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
    fn check(&self, place: [usize; 3], prediction: &Prediction) -> Result<()>;

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
        Self {
            blocks: Blocks::new(grid, wanted),
            weights,
            logs,
            channels,
            unfinished: Mutex::default(),
            buffers: Buffers::default(),
            singles: Buffers::default(),
        }
    }

    pub(super) const fn blocks(&self) -> &Blocks {
        &self.blocks
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
        for index in self.blocks.touched(place) {
            if self.blocks.is_wanted(index) {
                self.add_to(index, place, contribution, meter, owner)?;
            }
        }
        Ok(())
    }

    /// Does the same with the prediction of each box of the volume that the patch and a block have in common.
    pub(super) fn add_boxes(
        &self,
        place: [usize; 3],
        predict: &dyn Fn(Region) -> Result<Patch>,
        limit: Option<f32>,
        meter: &ByteGauge,
        owner: &impl Owner,
    ) -> Result<()> {
        for index in self.blocks.touched(place) {
            let block = self.blocks.region(index);
            let common = self.blocks.common(&block, place);
            let values = Arc::new(predict(common.region(&block))?);
            let contribution = Contribution::Values(Prediction {
                values: Arc::clone(&values),
                from: common.from,
                limit,
            });
            self.add_to(index, place, &contribution, meter, owner)?;
            drop(contribution);
            if let Some(values) = Arc::into_inner(values) {
                owner.spent(values);
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
        let region = self.blocks.region(index);
        let turns = self.blocks.turns(&region);
        let turn = self.blocks.turn(&turns, place);
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
            if let Contribution::Values(prediction) = contribution
                && let Some(values) = Arc::into_inner(prediction.values)
            {
                owner.spent(values);
            }
        }
        self.lock().remove(&index);
        self.finish(block, &region, total, (meter, owner))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[usize; 3], SharedBlock<S>>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
            let inside = self.blocks.grid().axes()[a].inside(place[a]);
            let from = region.start[a].unsigned_abs();
            inside.start <= from && from + region.shape[a] <= inside.end
        });
        // The values of a patch that covers all of a fresh block are stored; others are added to zeros.
        let fresh = block.voted.is_empty();
        let store = fresh
            && covers
            && self.logs.is_none()
            && matches!(contribution, Contribution::Values(_));
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
            Contribution::Values(prediction) if prediction.limit.is_some() && !within => {
                owner.check(place, prediction)
            }
            _ => Ok(()),
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
        let shape = block.shape.map(length);
        let common = self.blocks.common(block, place);
        let weights = self.weights.of(place);
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
                let row = values.row(c, row, weights.len());
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
        let shape = region.shape.map(length);
        let common = self.blocks.common(region, place);
        let per_block: usize = shape.iter().product();
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
                let row = values.row(c, row, along.len());
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
        if shares && self.blocks.is_covered(block) {
            return Vec::new();
        }
        let shape = block.shape.map(length);
        let mut sums = vec![0.0; shape.iter().product()];
        let holes = self
            .blocks
            .holes(block, voted, |place, row, target, length| {
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
        let holes = self.blocks.holes(block, voted, |_, row, target, length| {
            let (first, along) = logs.row(row, length);
            let there = sums[target..].iter_mut().zip(&tops[target..]);
            for ((sum, top), log) in there.zip(along) {
                *sum += single((first + log - top).exp());
            }
        });
        divide(values, &sums);
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

/// The values of a prediction as `f32`. Other types are converted row by row.
struct Values<'a> {
    /// The values, if they are stored as `f32`.
    singles: Option<&'a [f32]>,
    dtype: DType,
    stored: &'a [u8],
    /// The shape of the box that is predicted, and the number of its voxels.
    shape: [usize; 3],
    voxels: usize,
    /// Where [`at`] puts the first voxel of the box, given its place in the patch.
    first: usize,
    converted: Vec<f32>,
}

impl<'a> Values<'a> {
    /// Returns the values of a contribution, none if it has no prediction, and the magnitude that they must not reach.
    fn new(contribution: &'a Contribution) -> (Self, f32) {
        let Contribution::Values(prediction) = contribution else {
            let none = Self {
                singles: Some(&[]),
                dtype: DType::F32,
                stored: &[],
                shape: [0; 3],
                voxels: 0,
                first: 0,
                converted: Vec::new(),
            };
            return (none, f32::INFINITY);
        };
        let values = &prediction.values;
        let (dtype, stored) = (values.dtype(), values.bytes());
        let shape = values.shape().map(length);
        let values = Self {
            singles: (dtype == DType::F32).then(|| bytemuck::cast_slice(stored)),
            dtype,
            stored,
            shape,
            voxels: shape.iter().product(),
            first: at(shape, prediction.from),
            converted: Vec::new(),
        };
        (values, prediction.limit.unwrap_or(f32::INFINITY))
    }

    /// Returns `length` values of a channel from the one at `voxel` of the patch.
    #[inline]
    fn row(&mut self, channel: usize, voxel: [usize; 3], length: usize) -> &[f32] {
        let first = channel * self.voxels + at(self.shape, voxel) - self.first;
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
