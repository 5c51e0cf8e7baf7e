//! The work of a run's threads: read a batch, predict it, blend it.

use std::cell::Cell;
use std::iter::Peekable;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::blender::{Blender, FinalBlock};
use super::cache::SweepCache;
use super::mask::PatchMask;
use super::model::{InputValues, Model};
use super::needs::Loan;
use super::pool::PatchPool;
use super::timings::Timings;
use crate::aggregator::Aggregator;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::normalize::{Scale, Scales};
use crate::pad::Padding;
use crate::patch::Patch;
use crate::region::Region;
use crate::volume::{Volume, VolumeExt};

/// The state shared by the threads of a run.
#[derive(Debug)]
pub(super) struct RunState {
    pub(super) volume: SweepCache,
    pub(super) model: Arc<dyn Model>,
    pub(super) semaphore: Option<Semaphore>,
    pub(super) grid: Grid,
    pub(super) reading: Reading,
    /// The normalization that the model does itself.
    pub(super) scales: Vec<Scale>,
    pub(super) pool: PatchPool,
    pub(super) predicted: AtomicU64,
    pub(super) clock: Clock,
}

/// A pass over all of the outputs, or a part of them.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) shared: Arc<RunState>,
    pub(super) outputs: Vec<Aggregator>,
    /// The places, along z, y, x, of the patches that may be needed.
    places: [Range<usize>; 3],
    loan: Loan,
    /// Whether patches are read, predicted and added box by box.
    by_boxes: bool,
}

#[derive(Debug, Default)]
pub(super) struct Clock {
    reading: AtomicU64,
    predicting: AtomicU64,
    blending: AtomicU64,
}

/// A task for a thread.
pub(super) enum RunTask {
    Predict(Vec<u64>),
    Skip(Vec<u64>),
}

/// A task, and its number within the pass.
pub(super) type Turn = (u64, RunTask);

/// The most skipped patches in one task.
const MAX_SKIPS_PER_TASK: usize = 64;

impl Pass {
    pub(super) fn new(
        shared: Arc<RunState>,
        outputs: Vec<Aggregator>,
        places: [Range<usize>; 3],
        loan: Loan,
    ) -> Self {
        let by_boxes = match &outputs[..] {
            [output] => {
                shared.model.is_pointwise()
                    && shared.volume.reads_boxes()
                    && *output.grid() == shared.grid
                    && output.takes_boxes()
                    && output.gains_by_boxes(shared.patch_bytes())
            }
            _ => false,
        };
        Self {
            shared,
            outputs,
            places,
            loan,
            by_boxes,
        }
    }

    /// Returns `true` if any output needs patch `index`.
    fn needs(&self, index: u64) -> bool {
        self.outputs.iter().any(|output| output.needs(index))
    }

    /// Returns the patches that may be needed, in order.
    pub(super) fn indices(&self) -> impl Iterator<Item = u64> + Send + use<> {
        self.shared.grid.indices(&self.places)
    }

    pub(super) fn needed(&self) -> u64 {
        self.indices().filter(|&index| self.needs(index)).count() as u64
    }

    /// Runs a task and returns the number of its patches.
    pub(super) fn work(&self, (turn, work): Turn) -> Result<u64> {
        if let Some(blender) = self.shared.model.blender() {
            return self.blend(blender, turn, work);
        }
        match work {
            RunTask::Skip(indices) => timed(&self.shared.clock.blending, || {
                for &index in &indices {
                    for output in self.outputs.iter().filter(|output| output.needs(index)) {
                        output.skip(index)?;
                    }
                }
                Ok(indices.len() as u64)
            }),
            RunTask::Predict(indices) => {
                self.lend();
                match &self.outputs[..] {
                    [output] if self.by_boxes => self.predict_by_boxes(output, &indices),
                    _ => self.predict(&indices),
                }
            }
        }
    }

    /// Lends the cache of input chunks a part of what the outputs will need later.
    fn lend(&self) {
        let kept = self.outputs.iter().map(Aggregator::peak_live_bytes).sum();
        self.shared.volume.lend(self.loan.bytes(kept));
    }

    /// Reads the patches of a task.
    fn read(&self, indices: &[u64], pool: &PatchPool) -> Result<Vec<Patch>> {
        let RunState {
            volume,
            clock,
            grid,
            reading,
            ..
        } = &*self.shared;
        let regions = indices
            .iter()
            .filter_map(|&index| Some((index, grid.get(index)?)));
        timed(&clock.reading, || {
            let read = |(index, region)| {
                let volume = volume.reader(index);
                reading.read(&volume, region, pool)
            };
            regions.map(read).collect()
        })
    }

    /// Lets the model predict or skip the patches of a task and blend them, and adds the blocks that became final to the
    /// outputs. Returns the number of the patches.
    fn blend(&self, blender: &dyn Blender, turn: u64, work: RunTask) -> Result<u64> {
        let RunState {
            clock,
            pool,
            predicted,
            ..
        } = &*self.shared;
        let active = pool.begin();
        let pool = active.pool();
        let (indices, batch) = match work {
            RunTask::Skip(indices) => (indices, None),
            RunTask::Predict(indices) => {
                let stop = StopOnDrop(blender);
                let batch = self.read(&indices, pool)?;
                std::mem::forget(stop);
                predicted.fetch_add(batch.len() as u64, Ordering::Relaxed);
                (indices, Some(batch))
            }
        };
        let blocks = timed(&clock.predicting, || {
            blender.blend(turn, &indices, batch, pool)
        })?;
        self.add_blocks(blocks)?;
        Ok(indices.len() as u64)
    }

    /// Starts the pass in the cache, and in the model if it blends.
    pub(super) fn begin(&self) -> Result<()> {
        self.shared.volume.begin(&self.places);
        let frontiers = self.outputs.iter().filter_map(Aggregator::frontier);
        match self.shared.model.blender() {
            Some(blender) => blender.begin(frontiers.collect(), &self.shared.scales),
            None => Ok(()),
        }
    }

    /// Adds the last blocks of a model that blends.
    pub(super) fn end(&self) -> Result<()> {
        match self.shared.model.blender() {
            Some(blender) => self.add_blocks(blender.end()?),
            None => Ok(()),
        }
    }

    /// Adds final blocks to their outputs.
    fn add_blocks(&self, blocks: Vec<FinalBlock>) -> Result<()> {
        timed(&self.shared.clock.blending, || {
            for block in blocks {
                let count = self.outputs.len() as u64;
                let output = self.outputs.get(block.output);
                let output = output.ok_or_else(|| Error::IndexOutOfRange {
                    what: "output",
                    index: block.output as u64,
                    count,
                })?;
                output.add_block(block.block, block.values)?;
            }
            Ok(())
        })
    }

    /// Reads, predicts and adds patches to the only output, one box after the other. Returns the number of patches.
    fn predict_by_boxes(&self, output: &Aggregator, indices: &[u64]) -> Result<u64> {
        let RunState {
            volume,
            clock,
            reading,
            pool,
            predicted,
            ..
        } = &*self.shared;
        let active = pool.begin();
        let pool = active.pool();
        for &index in indices {
            let reader = volume.reader(index);
            let elsewhere = Cell::new(Duration::ZERO);
            let predict = |region: Region| {
                let began = Instant::now();
                let patch = timed(&clock.reading, || reading.read(&reader, region, pool))?;
                let predictions =
                    timed(&clock.predicting, || self.predict_batch(vec![patch], pool))?;
                elsewhere.set(elsewhere.get() + began.elapsed());
                let mut predictions = predictions.into_iter().flatten();
                Ok(predictions.next().expect("one patch has one prediction"))
            };
            let began = Instant::now();
            output.add_by_boxes(index, &predict, &|spent| pool.give(spent))?;
            add_time(
                &clock.blending,
                began.elapsed().saturating_sub(elsewhere.get()),
            );
            predicted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(indices.len() as u64)
    }

    /// Returns the predictions of a batch: for each output, one of each patch.
    fn predict_batch(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let RunState {
            model, semaphore, ..
        } = &*self.shared;
        let count = batch.len();
        let predictions = {
            let _permit = semaphore.as_ref().map(Semaphore::acquire);
            model.predict_pooled(batch, pool)?
        };
        let complete = predictions.len() == self.outputs.len()
            && predictions.iter().all(|output| output.len() == count);
        if !complete {
            return Err(Error::ModelOutputs {
                patches: count as u64,
                outputs: self.outputs.len() as u64,
                predictions: predictions.iter().map(Vec::len).collect(),
            });
        }
        Ok(predictions)
    }

    /// Reads a batch, predicts it and adds it to the outputs. Returns the number of its patches.
    fn predict(&self, indices: &[u64]) -> Result<u64> {
        let RunState { clock, pool, .. } = &*self.shared;
        let active = pool.begin();
        let batch = self.read(indices, active.pool())?;
        let count = batch.len() as u64;
        let predictions = timed(&clock.predicting, || {
            self.predict_batch(batch, active.pool())
        })?;
        self.shared.predicted.fetch_add(count, Ordering::Relaxed);
        let bytes = |patch: &Patch| patch.bytes().len() as u64;
        let mut held: u64 = predictions.iter().flatten().map(bytes).sum();
        active.holds(held);
        timed(&clock.blending, || {
            for (output, predictions) in self.outputs.iter().zip(predictions) {
                for (&index, prediction) in indices.iter().zip(predictions) {
                    // One that waits in a block is counted with the waiting ones.
                    held -= bytes(&prediction);
                    active.holds(held);
                    if output.needs(index) {
                        output.add_or_end(index, prediction, &|spent| pool.give(spent))?;
                    } else {
                        pool.give(prediction);
                    }
                }
            }
            Ok(count)
        })
    }
}

impl RunState {
    /// Returns the size of a patch as the model takes it.
    fn patch_bytes(&self) -> u64 {
        let voxel = self.reading.input.voxel_bytes(self.volume.layout());
        let voxels = Region::whole(self.grid.patch()).voxels();
        voxels.saturating_mul(voxel)
    }
}

/// Stops a blender on drop, after an error or a panic: it must not wait for a turn that never comes.
struct StopOnDrop<'a>(&'a dyn Blender);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The preparation of a patch for the model.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) padding: Padding,
    pub(super) input: InputValues,
    pub(super) scales: Option<Scales>,
}

impl Reading {
    /// Reads a patch: its type is the model's and its values are normalized before voxels beyond the volume's
    /// faces are added.
    pub(super) fn read(
        &self,
        volume: &dyn Volume,
        region: Region,
        pool: &PatchPool,
    ) -> Result<Patch> {
        let layout = volume.layout();
        let source = self.padding.source(region, layout.shape);
        let mut patch = pool.take(source, layout.channels, layout.dtype)?;
        volume.read_into(source, patch.bytes_mut())?;
        if self.input == InputValues::F32 {
            patch = pool.convert(patch, DType::F32)?;
        }
        if let Some(scales) = &self.scales {
            scales.apply(&mut patch)?;
        }
        if source == region {
            return Ok(patch);
        }
        let (channels, dtype) = (patch.channels(), patch.dtype());
        let mut padded = pool.take(region, channels, dtype)?;
        let target = (padded.bytes_mut(), region);
        let filled = (patch.bytes(), source);
        self.padding
            .fill(filled, target, channels, dtype, layout.shape);
        pool.give(patch);
        Ok(padded)
    }
}

/// An iterator over batches of needed patches, predicted or skipped.
pub(super) struct PatchBatches<I: Iterator<Item = u64>> {
    pub(super) run: Arc<Pass>,
    pub(super) patch_mask: Option<Arc<PatchMask>>,
    pub(super) batch: usize,
    pub(super) indices: Peekable<I>,
    pub(super) turn: u64,
}

impl<I: Iterator<Item = u64>> Iterator for PatchBatches<I> {
    type Item = Turn;

    fn next(&mut self) -> Option<Turn> {
        let selected = |index| {
            self.patch_mask
                .as_ref()
                .is_none_or(|some| some.contains(index))
        };
        let mut indices = Vec::new();
        let mut kind = None;
        while let Some(&index) = self.indices.peek() {
            if self.run.needs(index) {
                let predicted = selected(index);
                if *kind.get_or_insert(predicted) != predicted {
                    break;
                }
                indices.push(index);
            }
            self.indices.next();
            let most = if kind == Some(false) {
                MAX_SKIPS_PER_TASK
            } else {
                self.batch
            };
            if indices.len() >= most {
                break;
            }
        }
        let task = if kind? {
            self.run.shared.volume.expect(&indices);
            RunTask::Predict(indices)
        } else {
            RunTask::Skip(indices)
        };
        let turn = self.turn;
        self.turn += 1;
        Some((turn, task))
    }
}

/// Runs `work` and adds its duration in nanoseconds to `sum`.
fn timed<T>(sum: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    add_time(sum, began.elapsed());
    done
}

fn add_time(sum: &AtomicU64, time: Duration) {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    sum.fetch_add(nanoseconds, Ordering::Relaxed);
}

impl Clock {
    /// Returns the times, of which the outputs took `writing` while patches were blended or skipped.
    pub(super) fn seconds(&self, writing: Duration) -> Timings {
        let seconds =
            |sum: &AtomicU64| Duration::from_nanos(sum.load(Ordering::Relaxed)).as_secs_f64();
        Timings {
            reading: seconds(&self.reading),
            predicting: seconds(&self.predicting),
            blending: (seconds(&self.blending) - writing.as_secs_f64()).max(0.0),
            writing: writing.as_secs_f64(),
        }
    }
}

/// A counting semaphore.
#[derive(Debug)]
pub(super) struct Semaphore {
    free: Mutex<usize>,
    left: Condvar,
}

struct Permit<'a>(&'a Semaphore);

impl Semaphore {
    pub(super) fn new(permits: usize) -> Self {
        Self {
            free: Mutex::new(permits.max(1)),
            left: Condvar::new(),
        }
    }

    fn acquire(&self) -> Permit<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .left
            .wait_while(free, |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.left.notify_one();
    }
}
