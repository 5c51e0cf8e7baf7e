//! The memory of batches and threads of a run, without unfinished voxels.

use super::InferenceOptions;
use super::blender::Blender;
use super::model::{InputValues, Model};
use super::planned::PlannedOutput;
use crate::grid::{Grid, GridPlacement};
use crate::region::Region;
use crate::volume::{Layout, SourceChunks, decoding_bytes, encoding_bytes, index_bytes};

/// The fraction of what the outputs do not need yet that the cache may use (1 / 8). What is left there is what gaps in the heap
/// take: with a quarter, `voxpatch demo` took up to 258 of 256 MiB.
const LOAN_FRACTION: u64 = 8;

/// Bytes of batches in progress and of threads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Working {
    /// Per batch in progress: its patches as read and as converted, and its predictions.
    pub(super) batch: u64,
    /// Per batch, for its predictions alone.
    pub(super) predictions: u64,
    /// Per thread, which decodes a chunk, or completes and encodes write chunks.
    pub(super) thread: u64,
    /// For any number of threads together.
    pub(super) fixed: u64,
    /// Temporary values where the model blends, if it does.
    pub(super) blender: u64,
}

impl Working {
    /// Returns the bytes of `threads` threads, each with a batch, and of one more batch that is done.
    pub(super) const fn bytes(&self, threads: usize) -> u64 {
        let batches = self.batch.saturating_mul(least_ahead(threads) as u64);
        let threads = self.thread.saturating_mul(threads as u64);
        batches.saturating_add(threads).saturating_add(self.fixed)
    }

    pub(super) fn new(
        inference: &InferenceOptions,
        input: &Layout,
        model: &dyn Model,
        outputs: &[PlannedOutput],
    ) -> Self {
        let batch = inference.batch_size.max(1) as u64;
        let voxels = Region::whole(inference.patch_size).voxels();
        let read = input.channels * input.dtype.size() as u64;
        let taken = model.input().voxel_bytes(input);
        let cast = match model.input() {
            InputValues::Native => 0,
            InputValues::F32 => taken,
        };
        let hangs_over =
            inference.padding.is_some() || inference.placement == GridPlacement::Padded;
        let read = read + cast + if hangs_over { taken } else { 0 };
        let read = voxels.saturating_mul(read.saturating_mul(batch));
        let predictions = outputs.iter().map(|output| {
            let prediction = &output.spec;
            let voxel = if output.blending.sums_elsewhere {
                // A patch makes at most as many voxels final, of which only reduced values come.
                output.layout.channels * output.layout.dtype.size().max(size_of::<f32>()) as u64
            } else {
                prediction.channels * prediction.dtype.size() as u64
            };
            let voxels = Region::whole(output.grid.patch()).voxels();
            voxels.saturating_mul(voxel.saturating_mul(batch))
        });
        let predictions = predictions.fold(0, u64::saturating_add);
        let outputs: Vec<_> = outputs.iter().map(|one| (one, one.estimate())).collect();
        let noted = outputs.iter().map(|(_, estimate)| estimate.patch_bytes());
        let temporary = outputs.iter().map(|(output, estimate)| {
            let channels = output.spec.channels;
            // Per voxel: weighted or reduced channels, the weight, and the indices of channels.
            let block = estimate.largest_block();
            block.saturating_mul(channels.saturating_mul(4).saturating_add(16))
        });
        // Two batches: one that is predicted, and one that is on its way.
        let each = taken.saturating_add(input.channels.saturating_mul(4));
        let inputs = voxels.saturating_mul(each.saturating_mul(batch.saturating_mul(2)));
        let elsewhere = outputs.iter().any(|(one, _)| one.blending.sums_elsewhere);
        let blender = if elsewhere {
            temporary.max().unwrap_or(0).saturating_add(inputs)
        } else {
            0
        };
        // One output after the other.
        let written = outputs.iter().map(|(output, estimate)| {
            let encoding = encoding_bytes(&output.layout, output.store.pyramid.is_some());
            encoding.saturating_add(estimate.thread_bytes())
        });
        let late = model.blender().map_or(0, Blender::late_batches) as u64;
        let late = late.saturating_mul(voxels.saturating_mul(taken.saturating_mul(batch)));
        Self {
            batch: read.saturating_add(predictions),
            predictions,
            thread: written.max().unwrap_or(0).max(decoding_bytes(input)),
            fixed: noted.fold(index_bytes(input).saturating_add(late), u64::saturating_add),
            blender,
        }
    }
}

/// Memory that is planned for the outputs, and that the cache of input chunks may use until they need it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loan {
    /// Bytes that the outputs keep at most.
    planned: u64,
    /// Bytes by which the cache may grow.
    most: u64,
}

impl Loan {
    pub(super) const fn new(planned: u64, most: u64) -> Self {
        Self { planned, most }
    }

    /// Returns the bytes that the cache may use in addition to its own, where the outputs have kept `kept` bytes at most so
    /// far: they do not return what they once had.
    pub(super) fn bytes(&self, kept: u64) -> u64 {
        (self.planned.saturating_sub(kept) / LOAN_FRACTION).min(self.most)
    }
}

/// Returns the number of batches in memory when every thread has one and one more is done.
pub(super) const fn least_ahead(threads: usize) -> usize {
    threads + 1
}

/// Returns the decoded bytes of the chunks that are read again before the sweep has passed them. A larger cache has
/// no more hits.
pub(super) fn useful_cache(grid: &Grid, input: &Layout) -> u64 {
    let Some(chunk) = input.read_chunk else {
        return 0;
    };
    let source = input.read_memory.source.unwrap_or(SourceChunks {
        shape: input.shape,
        chunk,
        step: [1.0; 3],
        margin: [0; 3],
        parallel: true,
        kept: 0,
    });
    let [c, chunk @ ..] = source.chunk;
    let [a, b, x] = grid.order();
    let whole = |axis: usize| source.shape[axis].next_multiple_of(chunk[axis]);
    let reach = |axis: usize| {
        let patch = source.covered(axis, grid.axes()[axis].patch);
        let reach = patch.saturating_add(2 * chunk[axis]).min(whole(axis));
        if source.parallel { reach } else { whole(axis) }
    };
    let layer = reach(a).saturating_mul(whole(b)).saturating_mul(whole(x));
    let channels = input.channels.next_multiple_of(c);
    layer
        .saturating_mul(channels)
        .saturating_mul(input.dtype.size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loan_and_what_outputs_keep_are_within_what_was_planned() {
        for planned in [0, 1, 7, 1000, u64::MAX] {
            for most in [0, 3, u64::MAX] {
                let loan = Loan::new(planned, most);
                let mut before = u64::MAX;
                for kept in [0, 1, 3, 500, 999, 1000, 1001, u64::MAX] {
                    let lent = loan.bytes(kept);
                    assert!(lent == 0 || kept + lent <= planned);
                    assert!(lent <= most.min(before), "it only becomes smaller");
                    before = lent;
                }
            }
        }
        assert_eq!(Loan::new(1000, u64::MAX).bytes(200), 100);
    }
}
