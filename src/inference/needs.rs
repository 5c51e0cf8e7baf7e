//! How much memory the work of a run takes, apart from what waits.

use super::InferenceOptions;
use super::model::InputValues;
use super::schedule::PlannedOutput;
use crate::grid::GridPlacement;
use crate::region::Region;
use crate::volume::{Layout, decoding_bytes, encoding_bytes, index_bytes};

/// Bytes that work takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Working {
    /// Of a batch under way: what is read, what the model is given, and what it predicts.
    pub(super) batch: u64,
    /// Of a batch's predictions alone.
    pub(super) predictions: u64,
    /// Of a thread, which decodes a chunk, or makes write chunks whole and encodes them.
    pub(super) thread: u64,
    /// Of all together, however many threads there are.
    pub(super) fixed: u64,
}

impl Working {
    /// The bytes of all threads, every one of which has a batch while one more is done.
    pub(super) const fn bytes(&self, threads: usize) -> u64 {
        let batches = self.batch.saturating_mul(least_ahead(threads) as u64);
        let threads = self.thread.saturating_mul(threads as u64);
        batches.saturating_add(threads).saturating_add(self.fixed)
    }

    pub(super) fn new(
        inference: &InferenceOptions,
        input: &Layout,
        wanted: InputValues,
        outputs: &[PlannedOutput],
    ) -> Self {
        let batch = inference.batch_size.max(1) as u64;
        let voxels = Region::whole(inference.patch_size).voxels();
        let read = input.channels * input.dtype.size() as u64;
        let (cast, taken) = match wanted {
            InputValues::Native => (0, read),
            InputValues::F32 => (4 * input.channels, 4 * input.channels),
        };
        let hangs_over =
            inference.padding.is_some() || inference.placement == GridPlacement::Padded;
        let read = read + cast + if hangs_over { taken } else { 0 };
        let read = voxels.saturating_mul(read.saturating_mul(batch));
        let predictions = outputs.iter().map(|output| {
            let prediction = &output.spec;
            let voxel = prediction.channels * prediction.dtype.size() as u64;
            let voxels = Region::whole(output.grid.patch()).voxels();
            voxels.saturating_mul(voxel.saturating_mul(batch))
        });
        let predictions = predictions.fold(0, u64::saturating_add);
        let outputs: Vec<_> = outputs.iter().map(|one| (one, one.estimate())).collect();
        let noted = outputs.iter().map(|(_, estimate)| estimate.patch_bytes());
        // One output after the other.
        let written = outputs.iter().map(|(output, estimate)| {
            let encoding = encoding_bytes(&output.layout, output.store.pyramid.is_some());
            encoding.saturating_add(estimate.thread_bytes())
        });
        Self {
            batch: read.saturating_add(predictions),
            predictions,
            thread: written.max().unwrap_or(0).max(decoding_bytes(input)),
            fixed: noted.fold(index_bytes(input), u64::saturating_add),
        }
    }
}

/// Batches that are under way when every thread has one and one is done.
pub(super) const fn least_ahead(threads: usize) -> usize {
    threads + 1
}
