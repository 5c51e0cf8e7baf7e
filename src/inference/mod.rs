//! Inference: a grid of patches through a model into a blended output on disk.
//!
//! [`Inference`] says what is wanted, [`Inference::plan`] what that takes, [`Plan::run`]
//! does it: patches are read, predicted and added on several threads, no further ahead of
//! the slowest than memory allows. The output is the same for any number of threads.

mod builtin;
mod ensemble;
mod model;
#[cfg(any(feature = "onnx", feature = "ort"))]
mod network;
mod normalize;
#[cfg(feature = "onnx")]
mod onnx;
#[cfg(feature = "ort")]
mod ort;
mod tta;

use std::path::Path;
use std::sync::Arc;

use crate::aggregator::{Aggregator, Blend, Reduce};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::{Axis, Grid};
use crate::patch::Patch;
use crate::progress::{Progress, report};
use crate::queue::Queue;
use crate::region::{Region, Shape};
use crate::volume::{Cached, CreateOptions, Layout, Reads, Volume, create, planned};

#[cfg(feature = "ort")]
pub use self::ort::OnnxRuntime;
pub use builtin::builtin;
pub use ensemble::Ensemble;
pub use model::{Input, Model, Prediction};
pub use normalize::Normalize;
#[cfg(feature = "onnx")]
pub use onnx::Onnx;
pub use tta::Flips;

/// What is to be predicted, and with what.
#[derive(Clone, Debug)]
pub struct Inference {
    /// Voxels of a patch along z, y, x.
    pub patch: Shape,
    /// Voxels that neighbouring patches share along z, y, x.
    pub overlap: Shape,
    /// How overlapping predictions are weighed.
    pub blend: Blend,
    /// What becomes of blended voxels.
    pub reduce: Reduce,
    /// The output's voxel type; the prediction's own, or the smallest that counts the classes.
    pub dtype: Option<DType>,
    /// Bytes that the whole run may hold.
    pub memory: u64,
    /// Threads that read, predict and blend.
    pub threads: usize,
    /// Patches that the model gets at once.
    pub batch: usize,
}

impl Inference {
    /// Hann blending, the mean, 256 MiB, one patch at a time on all cores.
    #[must_use]
    pub fn new(patch: Shape, overlap: Shape) -> Self {
        Self {
            patch,
            overlap,
            blend: Blend::Hann,
            reduce: Reduce::Mean,
            dtype: None,
            memory: 256 << 20,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            batch: 1,
        }
    }

    /// Works out the grid, the output and the memory, and touches no file.
    ///
    /// `options` says how a Zarr output is stored; its shards are made to end where patches
    /// begin along the axis that is swept last, so that few wait unfinished.
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`] or [`Error::Overlap`] if there is no such grid, [`Error::Setting`] if the
    /// model cannot take the volume, or if the run needs more memory than it may have.
    pub fn plan(
        &self,
        input: &Layout,
        model: &dyn Model,
        output: &Path,
        mut options: CreateOptions,
    ) -> Result<Plan> {
        let grid = Grid::new(input.shape, self.patch, self.overlap)?;
        let prediction = model.prediction(input)?;
        let dtype = self
            .dtype
            .unwrap_or_else(|| self.reduce.dtype(prediction.dtype, prediction.channels));
        let mut layout = Layout::new(
            input.shape,
            self.reduce.channels(prediction.channels),
            dtype,
        )
        .with_geometry(input.geometry);
        layout.path = output.to_path_buf();
        if model.input() == Input::Stored && self.reduce == Reduce::Mean {
            layout.rescale = input.rescale;
        }
        options.shard = options
            .shard
            .map(|shard| aligned(&grid, shard, options.chunk));
        let threads = self.threads.max(1);
        let batch = self.batch.max(1);
        let ahead = threads + 1;
        let written = planned(output, &layout, &options)?;
        let live_bytes = Aggregator::live_bytes(&grid, prediction.channels, self.blend, &written);
        let voxels = Region::whole(self.patch).voxels();
        let read = input.channels * input.dtype.size() as u64;
        let real = if model.input() == Input::Real {
            4 * input.channels
        } else {
            0
        };
        // A prediction, and its f32 form while it waits for its turn.
        let predicted = prediction.channels * (prediction.dtype.size() as u64).max(4);
        let patches = voxels.saturating_mul(read + real + predicted);
        let in_flight = patches.saturating_mul((ahead * batch) as u64);
        let chunk = written
            .write_chunk
            .map_or(0, |[_, z, y, x]| Region::whole([z, y, x]).voxels());
        let encoding = (2 * threads as u64)
            .saturating_mul(chunk)
            .saturating_mul(dtype.size() as u64);
        let needed = live_bytes
            .saturating_add(in_flight)
            .saturating_add(encoding);
        let Some(cache_bytes) = self.memory.checked_sub(needed) else {
            return Err(Error::Setting {
                name: "a memory limit of",
                value: format!("{} MiB", self.memory >> 20),
                problem: format!(
                    "patches of {:?} with an overlap of {:?} need {} MiB for unfinished voxels and {} MiB for \
                     patches under way: allow more (--memory), or take smaller patches or less overlap",
                    self.patch,
                    self.overlap,
                    live_bytes.div_ceil(1 << 20),
                    (needed - live_bytes).div_ceil(1 << 20),
                ),
            });
        };
        let cache_bytes = cache_bytes.min(useful_cache(&grid, input));
        Ok(Plan {
            grid,
            output: layout,
            options,
            live_bytes,
            cache_bytes,
            peak_bytes: needed + cache_bytes,
            prediction,
            inference: self.clone(),
            ahead,
        })
    }
}

/// The shard whose end meets the starts of patches along the slowest axis, if one does.
fn aligned(grid: &Grid, mut shard: Shape, chunk: Shape) -> Shape {
    let slow = grid.order()[0];
    let step = grid.axes()[slow].widest_step();
    let meets =
        |length: &u64| length.is_multiple_of(chunk[slow].max(1)) && step.is_multiple_of(*length);
    if let Some(length) = (1..=shard[slow]).rev().find(meets) {
        shard[slow] = length;
    }
    shard
}

/// Decoded bytes of the chunks that are read again before the sweep has left them: more
/// cache than this is never hit.
fn useful_cache(grid: &Grid, input: &Layout) -> u64 {
    let Some([c, chunk @ ..]) = input.read_chunk else {
        return 0;
    };
    let [a, b, x] = grid.order();
    let reach = |axis: usize| {
        let Axis { length, patch, .. } = grid.axes()[axis];
        (patch + 2 * chunk[axis]).min(length.next_multiple_of(chunk[axis]))
    };
    let whole = |axis: usize| grid.axes()[axis].length.next_multiple_of(chunk[axis]);
    let layer = reach(a).saturating_mul(whole(b)).saturating_mul(whole(x));
    let channels = input.channels.next_multiple_of(c);
    layer
        .saturating_mul(channels)
        .saturating_mul(input.dtype.size() as u64)
}

/// What a run will do, and what it takes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the patches lie, in the order in which they are predicted.
    pub grid: Grid,
    /// What the output will be.
    pub output: Layout,
    /// How it will be stored.
    pub options: CreateOptions,
    /// Bytes of voxels that are not final or wait for their write chunk, at most.
    pub live_bytes: u64,
    /// Bytes of decoded input chunks that are kept.
    pub cache_bytes: u64,
    /// Bytes of all that the run holds, at most.
    pub peak_bytes: u64,
    prediction: Prediction,
    inference: Inference,
    /// Batches begun and not yet blended, at most.
    ahead: usize,
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predicted {
    /// Patches predicted.
    pub patches: u64,
    /// Write chunks handed to the output.
    pub chunks_written: u64,
    /// The most bytes of unfinished voxels there were.
    pub peak_live_bytes: u64,
    /// What was read of the input.
    pub reads: Reads,
}

impl Plan {
    /// Predicts every patch and writes the output. `progress` counts patches.
    ///
    /// # Errors
    ///
    /// The errors of reading, of the model and of writing; [`Error::Stopped`] if `progress`
    /// says so. The output takes its name only if all went well.
    ///
    /// # Panics
    ///
    /// If the model panics, once all threads have stopped.
    pub fn run(
        self,
        volume: Arc<dyn Volume>,
        model: Arc<dyn Model>,
        progress: Progress<'_>,
    ) -> Result<Predicted> {
        let output = create(&self.output.path, &self.output, &self.options)?;
        let (total, batch) = (self.grid.len(), self.inference.batch.max(1) as u64);
        let aggregator = Arc::new(Aggregator::new(
            self.grid,
            self.prediction.channels,
            self.inference.blend,
            self.inference.reduce,
            output,
        )?);
        let volume = Arc::new(Cached::new(volume, self.cache_bytes));
        let work = {
            let (volume, aggregator) = (Arc::clone(&volume), Arc::clone(&aggregator));
            move |first: u64| {
                let indices = first..(first + batch).min(total);
                predict(&*volume, &*model, &aggregator, indices)
            }
        };
        let batches = (0..total.div_ceil(batch)).map(move |n| n * batch);
        let mut queue = Queue::new(batches, self.inference.threads.max(1), self.ahead, work);
        let mut done = 0;
        report(progress, done, total)?;
        for added in &mut queue {
            done += added?;
            report(progress, done, total)?;
        }
        drop(queue);
        let aggregator = Arc::into_inner(aggregator).expect("the queue's threads are joined");
        let done = aggregator.finish()?;
        Ok(Predicted {
            patches: done.patches,
            chunks_written: done.chunks_written,
            peak_live_bytes: done.peak_live_bytes,
            reads: volume.reads(),
        })
    }
}

/// Reads a batch, predicts it and adds it; gives its size.
fn predict(
    volume: &dyn Volume,
    model: &dyn Model,
    aggregator: &Aggregator,
    indices: std::ops::Range<u64>,
) -> Result<u64> {
    let regions = indices
        .clone()
        .filter_map(|index| aggregator.grid().get(index));
    let read = |region: Region| -> Result<Patch> {
        match model.input() {
            Input::Stored => volume.read(region),
            Input::Real => volume.read_real(region),
        }
    };
    let batch: Vec<Patch> = regions.map(read).collect::<Result<_>>()?;
    let count = batch.len();
    let predictions = model.predict(batch)?;
    if predictions.len() != count {
        return Err(Error::Setting {
            name: "a model's batch of",
            value: predictions.len().to_string(),
            problem: format!("{count} patches went in"),
        });
    }
    for (index, prediction) in indices.zip(predictions) {
        aggregator.add(index, prediction)?;
    }
    Ok(count as u64)
}

#[cfg(test)]
mod tests;
