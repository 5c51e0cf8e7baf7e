//! Blocks of the output under accumulation.
//!
//! The volume is cut along each axis where patches begin and end, so that all voxels of a
//! block have the same patches. A block is live from the first patch that touches it to the
//! last. Contributions to a block are added in patch order, whatever the order of arrival:
//! one that comes early waits in the block, so the sums are the same to the last bit for any
//! number of threads.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::Meter;
use super::window::Shares;
use crate::grid::{Axis, Grid};
use crate::patch::Patch;
use crate::region::Region;

/// Shorter blocks than this are merged with their neighbours: bookkeeping would outweigh them.
const SHORTEST: u64 = 16;

/// All live blocks.
#[derive(Debug)]
pub(super) struct Live {
    grid: Grid,
    shares: Shares,
    channels: usize,
    /// Where blocks begin and end along each axis, from 0 to the length.
    cuts: [Vec<u64>; 3],
    blocks: Mutex<HashMap<[usize; 3], Arc<Mutex<Block>>>>,
    /// Buffers of finished blocks, kept because fresh memory costs a page fault per page.
    spare: Mutex<Vec<Vec<f32>>>,
}

#[derive(Debug, Default)]
struct Block {
    sums: Vec<f32>,
    /// Contributions that are in the sums.
    added: usize,
    /// Contributions that came before their turn.
    early: Vec<(usize, Arc<Patch>, [usize; 3])>,
}

/// A block whose last contribution is in: its region and its sums, channel after channel.
pub(super) struct Final<'a> {
    pub(super) region: Region,
    pub(super) sums: &'a [f32],
}

impl Live {
    pub(super) fn new(grid: &Grid, shares: Shares, channels: usize) -> Self {
        let cuts = std::array::from_fn(|a| cuts(&grid.axes()[a]));
        Self {
            grid: grid.clone(),
            shares,
            channels,
            cuts,
            blocks: Mutex::default(),
            spare: Mutex::default(),
        }
    }

    /// Adds the patch at `place` to every block it touches, and hands on those it finished.
    pub(super) fn add<E>(
        &self,
        place: [usize; 3],
        patch: &Arc<Patch>,
        meter: &Meter,
        mut finished: impl FnMut(Final<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let touched: [Range<usize>; 3] = std::array::from_fn(|a| {
            let axis = &self.grid.axes()[a];
            let (from, to) = (axis.starts[place[a]], axis.starts[place[a]] + axis.patch);
            let first = self.cuts[a].partition_point(|&cut| cut <= from) - 1;
            first..self.cuts[a].partition_point(|&cut| cut < to)
        });
        for z in touched[0].clone() {
            for y in touched[1].clone() {
                for x in touched[2].clone() {
                    self.add_to([z, y, x], place, patch, meter, &mut finished)?;
                }
            }
        }
        Ok(())
    }

    fn add_to<E>(
        &self,
        index: [usize; 3],
        place: [usize; 3],
        patch: &Arc<Patch>,
        meter: &Meter,
        finished: &mut impl FnMut(Final<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let region = self.region(index);
        let turns = self.turns(&region);
        let turn = self.turn(&turns, place);
        let total: usize = turns.iter().map(ExactSizeIterator::len).product();
        let block = {
            let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(blocks.entry(index).or_default())
        };
        let mut block = block.lock().unwrap_or_else(PoisonError::into_inner);
        if turn != block.added {
            block.early.push((turn, Arc::clone(patch), place));
            return Ok(());
        }
        if block.added == 0 {
            block.sums = self.buffer(&region, meter);
        }
        self.accumulate(&region, patch, place, &mut block.sums);
        block.added += 1;
        while let Some(next) = block
            .early
            .iter()
            .position(|&(turn, ..)| turn == block.added)
        {
            let (_, patch, place) = block.early.swap_remove(next);
            self.accumulate(&region, &patch, place, &mut block.sums);
            block.added += 1;
        }
        if block.added == total {
            self.blocks
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&index);
            finished(Final {
                region,
                sums: &block.sums,
            })?;
            meter.shrink(size_of_val(&block.sums[..]) as u64);
            self.spare
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(std::mem::take(&mut block.sums));
        }
        Ok(())
    }

    fn region(&self, index: [usize; 3]) -> Region {
        let start =
            std::array::from_fn(|a| i64::try_from(self.cuts[a][index[a]]).unwrap_or(i64::MAX));
        Region::new(
            start,
            std::array::from_fn(|a| self.cuts[a][index[a] + 1] - self.cuts[a][index[a]]),
        )
    }

    /// Which patches touch a block, along each axis.
    fn turns(&self, region: &Region) -> [Range<usize>; 3] {
        let end = region.end();
        std::array::from_fn(|a| {
            self.grid.axes()[a].touching(region.start[a].unsigned_abs(), end[a].unsigned_abs())
        })
    }

    /// How many of a block's patches come before the one at `place`, in the grid's order.
    fn turn(&self, turns: &[Range<usize>; 3], place: [usize; 3]) -> usize {
        self.grid.order().iter().fold(0, |turn, &a| {
            turn * turns[a].len() + place[a] - turns[a].start
        })
    }

    /// A buffer of zeros for a block.
    fn buffer(&self, region: &Region, meter: &Meter) -> Vec<f32> {
        let length = self.channels * usize::try_from(region.voxels()).unwrap_or(usize::MAX);
        meter.grow((length * size_of::<f32>()) as u64);
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = spare.iter().position(|buffer| buffer.len() == length);
        let Some(at) = fits else {
            // Buffers of another size would only pile up.
            spare.clear();
            drop(spare);
            return vec![0.0; length];
        };
        let mut buffer = spare.swap_remove(at);
        drop(spare);
        buffer.fill(0.0);
        buffer
    }

    /// Adds a patch's share to a block's sums.
    fn accumulate(&self, block: &Region, patch: &Patch, place: [usize; 3], sums: &mut [f32]) {
        let Some(common) = block.intersection(&patch.region()) else {
            return;
        };
        let from = common.relative_to(patch.region().start).start.map(offset);
        let to = common.relative_to(block.start).start.map(offset);
        let [nz, ny, nx] = common.shape.map(length);
        let ([pz, py, px], [bz, by, bx]) = (patch.shape().map(length), block.shape.map(length));
        let share = |axis: usize| &self.shares.along(axis, place[axis])[from[axis]..];
        let (share_z, share_y, share_x) = (share(0), share(1), &share(2)[..nx]);
        let values: &[f32] = patch
            .as_slice()
            .expect("predictions are f32 before they are accumulated");
        for c in 0..self.channels {
            for (z, share_z) in share_z.iter().take(nz).enumerate() {
                for (y, share_y) in share_y.iter().take(ny).enumerate() {
                    let source = ((c * pz + from[0] + z) * py + from[1] + y) * px + from[2];
                    let target = ((c * bz + to[0] + z) * by + to[1] + y) * bx + to[2];
                    let weight = share_z * share_y;
                    let row = values[source..source + nx].iter().zip(share_x);
                    for (sum, (value, share)) in sums[target..target + nx].iter_mut().zip(row) {
                        *sum += value * (weight * share);
                    }
                }
            }
        }
    }
}

/// Where blocks begin: at patches' starts and ends, none of them too short.
pub(super) fn cuts(axis: &Axis) -> Vec<u64> {
    let mut all: Vec<u64> = axis
        .starts
        .iter()
        .flat_map(|&start| [start, start + axis.patch])
        .collect();
    all.sort_unstable();
    let mut cuts = vec![0];
    for cut in all {
        let last = cuts.last().copied().unwrap_or(0);
        if cut >= last + SHORTEST && cut + SHORTEST <= axis.length {
            cuts.push(cut);
        }
    }
    cuts.push(axis.length);
    cuts
}

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length inside a patch in memory")
}

fn offset(n: i64) -> usize {
    usize::try_from(n).expect("an offset inside a patch in memory")
}
