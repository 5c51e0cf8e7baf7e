//! One output of a run: its layout, its grid and its storage, settled before any file is touched.

use super::model::OutputSpec;
use super::options::{InferenceOptions, OutputTarget, StoreOption};
use crate::aggregator::{AggregatorOptions, Estimate, Onto, Skipped};
use crate::error::Result;
use crate::grid::Grid;
use crate::region::Shape;
use crate::volume::{
    ChunkShape, CreateOptions, Durability, Layout, OutputPart, VoxelGrid, answer_bytes,
    output_layout, pyramid_buffer_bytes, pyramid_bytes, upload_bytes,
};

/// An output of a plan.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct PlannedOutput {
    /// Its layout on disk.
    pub layout: Layout,
    /// The predictions of all patches, before they are resampled to an [output
    /// grid](InferenceOptions::output_grid).
    pub grid: Grid,
    /// The model's description of it.
    pub spec: OutputSpec,
    pub(super) blending: AggregatorOptions,
    pub(super) store: CreateOptions,
}

/// The part and the durability of a resumable run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resume {
    pub(super) part: OutputPart,
    pub(super) durability: Durability,
    /// Whether the part may be run again or twice at once: it waits for the process that writes it.
    pub(super) repeats: bool,
}

impl PlannedOutput {
    pub(super) fn new(
        input: &Layout,
        grid: &Grid,
        spec: OutputSpec,
        (target, begun): (&OutputTarget, Option<&CreateOptions>),
        (inference, sums_elsewhere): (&InferenceOptions, bool),
    ) -> Result<Self> {
        let reduce = &target.blending.reduce;
        let grid = grid.output(spec.halo, spec.scale)?;
        let dtype = target
            .dtype
            .unwrap_or_else(|| reduce.dtype(spec.dtype, spec.channels));
        #[expect(clippy::cast_precision_loss, reason = "scales are small")]
        let factor = spec.scale.max(1) as f64;
        let predicted = VoxelGrid::new(grid.volume(), input.geometry.coarsened([factor; 3]));
        let written = inference.output_grid.unwrap_or(predicted);
        let mut layout = Layout::new(written.shape, reduce.channels(spec.channels), dtype)
            .with_geometry(written.geometry);
        layout.axes.unit.clone_from(&input.axes.unit);
        let mut blending = target.blending.clone();
        blending.average_integers |= spec.average_integers;
        blending.check_type(&grid, spec.dtype)?;
        blending.onto = (written != predicted).then_some(Onto { predicted, written });
        if let Some(onto) = &blending.onto {
            onto.check(&blending, spec.dtype)?;
        }
        let mut store = target.store.clone();
        if blending.onto.is_none() {
            store.shard = store.shard.map(|shard| aligned(&grid, shard, store.chunk));
        }
        let mut stored = output_layout(&target.path, &layout, &store)?;
        if let Some(begun) = begun {
            store = followed(&store, &stored, begun, &target.defaults);
            stored = output_layout(&target.path, &layout, &store)?;
        }
        let blending = AggregatorOptions {
            all_vote: !inference.masked || target.blending.skipped != Skipped::Renormalize,
            sums_elsewhere,
            ..blending
        };
        blending.check(&grid, spec.channels, stored.dtype)?;
        Ok(Self {
            layout: stored,
            grid,
            spec,
            blending,
            store,
        })
    }

    /// Returns the estimator of bytes that are not final or wait for their write chunk.
    pub(super) fn estimate(&self) -> Estimate {
        let channels = self.spec.channels;
        Estimate::new(&self.grid, channels, &self.blending, &self.layout)
    }

    /// Returns the bytes of unfinished chunks of coarser levels.
    pub(super) fn pyramid_buffer_bytes(&self) -> u64 {
        let bytes = if self.is_parallel() {
            pyramid_buffer_bytes(&self.layout, &self.store, self.order())
        } else {
            pyramid_bytes(&self.layout, &self.store)
        };
        bytes.unwrap_or(0)
    }

    /// Returns `true` unless the output is on an oblique grid of the predictions.
    pub(super) fn is_parallel(&self) -> bool {
        self.blending.onto.as_ref().is_none_or(Onto::is_parallel)
    }

    /// Returns the bytes of encoded chunks on their way to a store.
    pub(super) fn upload_bytes(&self) -> u64 {
        upload_bytes(&self.layout)
    }

    /// Returns the bytes of answers of a store while the output is read back.
    pub(super) fn answer_bytes(&self) -> u64 {
        answer_bytes(&self.layout)
    }

    /// Returns the axis of the output along which each axis of the predictions runs.
    pub(super) fn axes(&self) -> [usize; 3] {
        let onto = self.blending.onto.as_ref();
        onto.map_or([0, 1, 2], Onto::axes)
    }

    /// Returns the axes of the output in the order in which patches run along them, slowest first.
    pub(super) fn order(&self) -> [usize; 3] {
        let axes = self.axes();
        self.grid.order().map(|a| axes[a])
    }
}

/// Shortens a shard along the slowest axis so that it ends where a patch starts, if possible.
fn aligned(grid: &Grid, mut shard: Shape, chunk: Shape) -> Shape {
    let slow = grid.order()[0];
    let step = grid.axes()[slow].widest_step();
    let chunk = chunk[slow].max(1);
    let mut lengths = (1..=shard[slow].min(step) / chunk).rev().map(|n| n * chunk);
    if let Some(length) = lengths.find(|&length| step.is_multiple_of(length)) {
        shard[slow] = length;
    }
    shard
}

/// Returns the options of an output that another process began with the options `begun`. Options that are not in
/// `defaults` are taken from `store`; `stored` is the output's layout under `store`.
fn followed(
    store: &CreateOptions,
    stored: &Layout,
    begun: &CreateOptions,
    defaults: &[StoreOption],
) -> CreateOptions {
    let free = |option| defaults.contains(&option);
    if !stored.is_zarr() || (store.zarr != begun.zarr && !free(StoreOption::Zarr)) {
        return store.clone();
    }
    let lengths = |chunk: Option<ChunkShape>| {
        let [_, lengths @ ..] = chunk.unwrap_or([1; 4]);
        lengths
    };
    let mut found = CreateOptions {
        zarr: begun.zarr,
        chunk: lengths(stored.read_chunk),
        shard: store.shard.map(|_| lengths(stored.write_chunk)),
        ..store.clone()
    };
    if free(StoreOption::Chunk) {
        found.chunk = begun.chunk;
    }
    if found.chunk == begun.chunk && free(StoreOption::Shard) {
        found.shard = begun.shard;
    }
    if free(StoreOption::Codec) {
        found.codec = begun.codec;
    }
    if found.codec == begun.codec && free(StoreOption::Clevel) {
        found.clevel = begun.clevel;
    }
    if free(StoreOption::Pyramid) {
        found.pyramid = begun.pyramid;
    }
    let whole = |shard: [u64; 3]| (0..3).all(|a| shard[a].is_multiple_of(found.chunk[a]));
    if found.shard.is_some_and(|shard| !whole(shard)) {
        // The requested options contradict the output that was begun; the comparison will refuse them.
        return store.clone();
    }
    found
}
