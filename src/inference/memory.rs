//! Divides the memory of a run among unfinished voxels, batches in progress, cached chunks and reordering.

use super::fit::{Fit, Ways, elsewhere_bytes};
use super::needs::{Loan, least_ahead};
use super::passes::ChunkRanges;
use super::planned::PlannedOutput;
use super::schedule::Schedule;
use crate::error::{Error, Result};
use crate::volume::rebuilding_bytes;

/// Finished batches for each thread that may wait for an earlier one, such as one that completes write chunks.
const REORDER_BATCHES_PER_THREAD: u64 = 3;

/// The fraction of the memory left after what is needed that these have before cached chunks do (1 / 3), since threads that
/// wait cost more than chunks that are decoded twice.
const REORDER_FRACTION: u64 = 3;

/// The fraction of the memory that is left unplanned (1 / 16), because the allocator retains some freed memory.
const ALLOCATOR_RESERVE_FRACTION: u64 = 16;

impl Schedule {
    /// Cuts the outputs, or the write chunks that are `owned`, into as few passes as fit into the memory.
    pub(super) fn fit(&mut self, owned: Option<ChunkRanges>) -> Result<()> {
        let mut ways = self.ways(owned);
        let threads = self.inference.threads.max(1);
        let found = self.find(threads, &mut ways)?;
        let passes = ways.passes(found);
        self.settle(threads, found, passes);
        Ok(())
    }

    /// Returns the ways in which the outputs, or the write chunks that are `owned`, can be written.
    pub(super) fn ways(&self, owned: Option<ChunkRanges>) -> Ways<'_> {
        let room = self.blender_memory;
        let room = room.map(|memory| memory.saturating_sub(self.working.blender));
        Ways::new(
            &self.outputs,
            &self.grid,
            owned,
            (self.resume.is_some(), room),
        )
    }

    /// Returns the memory that may be planned.
    pub(super) const fn memory(&self) -> u64 {
        self.inference.memory - self.inference.memory / ALLOCATOR_RESERVE_FRACTION
    }

    /// Returns the first way to write the outputs that fits into the memory with `threads` threads.
    pub(super) fn find(&self, threads: usize, ways: &mut Ways<'_>) -> Result<Fit> {
        let working = self.working.bytes(threads);
        let room = self.memory().checked_sub(working);
        let live_bytes = match ways.find(room.unwrap_or(0)) {
            Ok(found) if room.is_some() => return Ok(found),
            Ok(found) => found.live_bytes,
            Err(u64::MAX) => return Err(self.blender_limit(ways)),
            Err(least) => least,
        };
        Err(Error::MemoryLimit {
            memory: self.inference.memory,
            problem: format!(
                "patches of {:?} with an overlap of {:?} need at least {} MiB for unfinished voxels and {} MiB for \
                 patches in progress in {threads} threads, and a {ALLOCATOR_RESERVE_FRACTION}th of the memory is left to the allocator: allow more, \
                 or take fewer threads, smaller patches or less overlap",
                self.inference.patch_size,
                self.inference.overlap,
                live_bytes.div_ceil(1 << 20),
                working.div_ceil(1 << 20),
            ),
        })
    }

    /// Returns the error of a model that cannot keep the sums.
    fn blender_limit(&self, ways: &mut Ways<'_>) -> Error {
        Error::BlenderMemory {
            memory: self.blender_memory.unwrap_or(u64::MAX),
            problem: format!(
                "unfinished voxels need at least {} bytes, and temporary values {}: blend in the memory of the host, allow \
                 more, or take smaller patches or less overlap",
                ways.least_elsewhere(),
                self.working.blender,
            ),
        }
    }

    /// Returns this schedule for `threads` threads, written in the way that was found.
    pub(super) fn settled(&self, threads: usize, found: Fit, ways: &Ways<'_>) -> Self {
        let mut plan = self.clone();
        plan.settle(threads, found, ways.passes(found));
        plan
    }

    /// Returns the bytes needed to publish outputs that several runs or parts wrote.
    fn finishing_bytes(&self) -> u64 {
        let pyramids = self
            .outputs
            .iter()
            .filter(|output| output.store.pyramid.is_some() && self.resume.is_some());
        let bytes = pyramids.map(|output| {
            let uploads = output.upload_bytes() + output.answer_bytes();
            let each = rebuilding_bytes(&output.layout);
            let left = self.memory().saturating_sub(uploads);
            let threads = (left / each.max(1)).clamp(1, self.inference.threads as u64);
            each.saturating_mul(threads).saturating_add(uploads)
        });
        bytes.max().unwrap_or(0)
    }

    /// Returns the most bytes that the model keeps where it blends.
    fn blender_bytes(&self, passes: &[ChunkRanges]) -> u64 {
        let mut estimates: Vec<_> = self.outputs.iter().map(PlannedOutput::estimate).collect();
        let whole = elsewhere_bytes(&mut estimates, None);
        let each = passes
            .iter()
            .map(|pass| elsewhere_bytes(&mut estimates, Some(pass)));
        each.max()
            .unwrap_or(whole)
            .saturating_add(self.working.blender)
    }

    fn settle(&mut self, threads: usize, found: Fit, passes: Vec<ChunkRanges>) {
        let needed = found.live_bytes.saturating_add(self.working.bytes(threads));
        let left = self.memory().saturating_sub(needed);
        self.inference.threads = threads;
        self.live_bytes = found.live_bytes;
        self.blender_bytes = self.blender_bytes(&passes);
        self.passes = passes;
        let predictions = self.working.predictions.max(1);
        let most = REORDER_BATCHES_PER_THREAD * threads as u64;
        let least = if threads > 1 && self.rereads_cheaply {
            most.min(left / REORDER_FRACTION / predictions) * predictions
        } else {
            0
        };
        self.cache_bytes = (left - least).min(self.useful_cache);
        self.loan = Loan::new(found.kept_bytes, self.useful_cache - self.cache_bytes);
        let lead = most.min((left - self.cache_bytes) / predictions);
        self.reorder_bytes = lead * predictions;
        self.ahead = least_ahead(threads) + usize::try_from(lead).unwrap_or(0);
        let peak = needed + self.cache_bytes + self.reorder_bytes;
        self.peak_bytes = peak.max(self.finishing_bytes());
    }
}
