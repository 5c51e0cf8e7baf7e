//! Blocks of the output under accumulation.
//!
//! The volume is cut along each axis where patches begin and end, so that all voxels of a block have the same patches.
//! A block is live from the first patch that touches it to the last. Contributions to a block are added in patch order:
//! one that arrives early, or while another thread adds to the block, waits in the block for that thread, which adds it
//! later, together with others that wait behind it. So no thread waits for another one, and the sums are bit-identical for any number of threads and any order of
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
    /// Number of contributions that were applied, or are being applied.
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
        let mut waited = Vec::new();
        let mut block = {
            let mut state = state();
            let is_next = turn == state.turn;
            let Some(block) = state.sums.take_if(|_| is_next) else {
                state.early.push((turn, contribution.clone(), place));
                return Ok(());
            };
            state.turn += 1;
            state.next_turns(&mut waited);
            block
        };
        let mut own = Some((contribution, place));
        loop {
            let others = waited
                .iter()
                .map(|(contribution, place)| (contribution, *place));
            let run: Vec<_> = own.take().into_iter().chain(others).collect();
            self.apply(&mut block, &region, &run, (meter, owner))?;
            for (contribution, _) in waited.drain(..) {
                if let Contribution::Values(prediction, _) = contribution
                    && let Some(prediction) = Arc::into_inner(prediction)
                {
                    owner.spent(prediction);
                }
            }
            let mut state = state();
            state.next_turns(&mut waited);
            if waited.is_empty() {
                if state.turn < total {
                    state.sums = Some(block);
                    return Ok(());
                }
                break;
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

    /// Applies contributions whose turn it is, in order.
    ///
    /// Predictions that cover the whole block are added in one pass, plane by plane, while a plane of the sums is in the
    /// cache: sums that come from memory for each prediction cost more than the additions.
    fn apply(
        &self,
        block: &mut BlockSums<S>,
        region: &Region,
        run: &[(&Contribution, [usize; 3])],
        to: (&ByteGauge, &impl Owner),
    ) -> Result<()> {
        let is_whole = |&(contribution, place): &(&Contribution, [usize; 3])| {
            matches!(contribution, Contribution::Values(..))
                && self.logs.is_none()
                && self.covers(region, place)
        };
        for together in run.chunk_by(|one, next| is_whole(one) && is_whole(next)) {
            let fills = is_whole(&together[0]);
            self.apply_together(block, region, together, fills, to)?;
        }
        Ok(())
    }

    /// Returns `true` if the patch at `place` covers all of a block.
    fn covers(&self, block: &Region, place: [usize; 3]) -> bool {
        (0..3).all(|a| {
            let inside = self.blocks.grid().axes()[a].inside(place[a]);
            let from = block.start[a].unsigned_abs();
            inside.start <= from && from + block.shape[a] <= inside.end
        })
    }

    /// Applies one contribution, or several that cover the block. `fills` says that the first one has a value for each sum.
    fn apply_together(
        &self,
        block: &mut BlockSums<S>,
        region: &Region,
        run: &[(&Contribution, [usize; 3])],
        fills: bool,
        (meter, owner): (&ByteGauge, &impl Owner),
    ) -> Result<()> {
        if let [(Contribution::Nothing, _)] = run {
            return Ok(());
        }
        // Values that fill a fresh block are stored; others are added to zeros.
        let fresh = block.voted.is_empty();
        let store = fresh && fills;
        if fresh {
            let length = self.channels * length(region.voxels());
            meter.grow((length * size_of::<S>()) as u64);
            block.sums = self.buffers.take(length);
            if !store {
                block.sums.fill(S::default());
            }
        }
        let mut within = vec![true; run.len()];
        if let Some(logs) = &self.logs {
            if fresh {
                block.tops = vec![f64::NEG_INFINITY; length(region.voxels())];
                meter.grow(size_of_val(&block.tops[..]) as u64);
            }
            for (&(contribution, place), within) in run.iter().zip(&mut within) {
                *within = self.accumulate_by(logs, region, contribution, place, block);
            }
        } else {
            self.accumulate(region, run, store, &mut block.sums, &mut within);
        }
        for (&(contribution, place), within) in run.iter().zip(within) {
            block.voted.push(place);
            if let Contribution::Values(prediction, Some(_)) = contribution
                && !within
            {
                owner.check(place, prediction)?;
            }
        }
        Ok(())
    }

    /// Adds one contribution, or several that cover the block, to a block's sums, or stores the first one there. Clears
    /// the flag in `within` of each of which a value reached its limit.
    fn accumulate(
        &self,
        block: &Region,
        run: &[(&Contribution, [usize; 3])],
        store: bool,
        sums: &mut [S],
        within: &mut [bool],
    ) {
        let (patch, shape) = (
            self.blocks.grid().patch().map(length),
            block.shape.map(length),
        );
        let per_patch: usize = patch.iter().product();
        let mut sources: Vec<_> = run
            .iter()
            .map(|&(contribution, place)| {
                let (values, limit) = Values::new(contribution);
                let common = self.blocks.common(block, place);
                (contribution, common, self.weights.of(place), values, limit)
            })
            .collect();
        // Several have the same part of the block in common with it: all of it.
        let planes = sources[0].1.shape[0];
        let channels = sums.chunks_exact_mut(shape.iter().product());
        for (c, sums) in channels.enumerate().take(self.channels) {
            for z in 0..planes {
                let sources = sources.iter_mut().zip(&mut *within).enumerate();
                for (n, ((contribution, common, weights, values, limit), within)) in sources {
                    common.each_row_of(z, shape, |row, target| {
                        let (weight, weights) = weights.row(row, common.shape[2]);
                        let sums = &mut sums[target..target + weights.len()];
                        if let Contribution::Constant(constant) = contribution {
                            return S::add_constant(sums, constant[c], weight, weights);
                        }
                        let row = values.row(c * per_patch + at(patch, row), weights.len());
                        *within &= if store && n == 0 {
                            S::set(sums, row, weight, weights, *limit)
                        } else {
                            S::add(sums, row, weight, weights, *limit)
                        };
                    });
                }
            }
        }
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
        let (patch, shape) = (
            self.blocks.grid().patch().map(length),
            region.shape.map(length),
        );
        let common = self.blocks.common(region, place);
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

impl<S> LiveBlock<S> {
    /// Moves the waiting contributions whose turns are next to `run`, in order.
    fn next_turns(&mut self, run: &mut Vec<(Contribution, [usize; 3])>) {
        while let Some(next) = self.early.iter().position(|(turn, ..)| *turn == self.turn) {
            let (_, contribution, place) = self.early.swap_remove(next);
            run.push((contribution, place));
            self.turn += 1;
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
    #[inline]
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
