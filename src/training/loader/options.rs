//! Options and statistics of a loader.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::carry::Carry;
use super::gather::Transform;
use crate::threads::{DEFAULT_MEMORY, threads};
use crate::training::augment::Augmentation;
use crate::training::shard::{RankShard, WorkerShard};

/// Options of a [`Loader`](super::Loader).
///
/// The defaults are all cores, 300 patches or 256 MiB, and all patches for one rank.
#[derive(Clone)]
#[non_exhaustive]
pub struct LoaderOptions {
    /// The number of reading threads. With 0, the consumer's thread reads when it asks.
    pub threads: usize,
    /// The maximum number of patches in the buffer, complete or not. Of images with chunks, the
    /// buffer has fewer: two batches, two patches per thread, or eight, whichever is most. The
    /// memory that is left is for chunks.
    pub max_length: usize,
    /// The maximum number of bytes of buffered patches, decoded chunks and decodes in progress
    /// together. Patches take up to half of it. The rest holds chunks, or parts of chunks, that
    /// coming patches need: those whose next use is soon and whose size is small stay. So each chunk
    /// is decoded once if all chunks fit. One patch is always admitted. The lookahead itself takes
    /// up to 6 MiB more, and gaps in the heap up to a seventh before they are returned to the system.
    pub memory: u64,
    /// The patches of this rank.
    pub shard: RankShard,
    /// The batches of the rank that this loader delivers.
    pub worker: WorkerShard,
    /// Resume a state that was saved at the end of an epoch in that epoch, with nothing left, and
    /// not in the next one. Always so with several workers, since some may not have reached the end.
    pub stay_in_epoch: bool,
    /// Put the patches of each batch into one buffer per image, for
    /// [`Loader::next_contiguous_batch_timeout`](super::Loader::next_contiguous_batch_timeout).
    /// Patches that are delivered one by one are then copied. Ignored with a `transform`.
    pub contiguous_batches: bool,
    /// Refuse subjects whose images differ in name, channels or type from those of the epoch's first
    /// subject, with [`Error::SubjectMismatch`](crate::Error::SubjectMismatch), whatever `on_error` says. A
    /// [`Cohort`](crate::training::Cohort) checks all subjects before the first patch.
    pub same_images: bool,
    /// What to do when a patch cannot be read.
    pub on_error: OnError,
    /// Random crops, maps, flips, axis orders and rotations, on the worker threads.
    pub augment: Augmentation,
    /// A function that changes each sample on a worker thread, after the augmentation.
    pub transform: Option<Arc<Transform>>,
    /// The chunks that the dataset's last loader left, until this one takes them and leaves its own.
    pub(in crate::training) carry: Option<Carry>,
    /// The bytes of the loader's tables for each chunk, and each part of a chunk, that is held. Tests with small chunks
    /// have less.
    pub(in crate::training) table_bytes: u64,
}

/// About what an entry of a table, a candidate for eviction and the chunk's own fields take.
const TABLE_BYTES: u64 = 256;

/// What to do when a patch cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Deliver the error in the place of the patch.
    #[default]
    Fail,
    /// Leave the patch out, and keep the reason in the statistics.
    Skip,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            threads: threads(),
            max_length: 300,
            memory: DEFAULT_MEMORY,
            shard: RankShard::whole(1),
            worker: WorkerShard::default(),
            stay_in_epoch: false,
            contiguous_batches: false,
            same_images: false,
            on_error: OnError::Fail,
            augment: Augmentation::default(),
            transform: None,
            carry: None,
            table_bytes: TABLE_BYTES,
        }
    }
}

impl LoaderOptions {
    /// Sets the number of reading threads.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Sets the maximum number of patches in the buffer.
    #[must_use]
    pub fn with_max_length(self, max_length: usize) -> Self {
        Self { max_length, ..self }
    }

    /// Sets the maximum number of bytes of patches and decoded chunks.
    #[must_use]
    pub fn with_memory(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    /// Sets the patches of this rank.
    #[must_use]
    pub fn with_shard(self, shard: RankShard) -> Self {
        Self { shard, ..self }
    }

    /// Sets the batches of the rank that this loader delivers.
    #[must_use]
    pub fn with_worker(self, worker: WorkerShard) -> Self {
        Self { worker, ..self }
    }

    /// Sets whether a state at the end of an epoch stays in that epoch.
    #[must_use]
    pub fn with_stay_in_epoch(self, stay_in_epoch: bool) -> Self {
        Self {
            stay_in_epoch,
            ..self
        }
    }

    /// Sets whether the patches of a batch share one buffer per image.
    #[must_use]
    pub fn with_contiguous_batches(self, contiguous_batches: bool) -> Self {
        Self {
            contiguous_batches,
            ..self
        }
    }

    /// Sets whether subjects with other images than the first are refused.
    #[must_use]
    pub fn with_same_images(self, same_images: bool) -> Self {
        Self {
            same_images,
            ..self
        }
    }

    /// Sets what to do when a patch cannot be read.
    #[must_use]
    pub fn with_on_error(self, on_error: OnError) -> Self {
        Self { on_error, ..self }
    }

    /// Sets random crops, maps, flips, axis orders and rotations.
    #[must_use]
    pub fn with_augment(self, augment: Augmentation) -> Self {
        Self { augment, ..self }
    }

    /// Sets a function that changes each sample on a worker thread.
    #[must_use]
    pub fn with_transform(self, transform: Arc<Transform>) -> Self {
        Self {
            transform: Some(transform),
            ..self
        }
    }
}

impl fmt::Debug for LoaderOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoaderOptions")
            .field("threads", &self.threads)
            .field("max_length", &self.max_length)
            .field("memory", &self.memory)
            .field("shard", &self.shard)
            .field("worker", &self.worker)
            .field("stay_in_epoch", &self.stay_in_epoch)
            .field("contiguous_batches", &self.contiguous_batches)
            .field("same_images", &self.same_images)
            .field("on_error", &self.on_error)
            .field("augment", &self.augment)
            .field("transform", &self.transform.is_some())
            .field("carry", &self.carry)
            .field("table_bytes", &self.table_bytes)
            .finish()
    }
}

/// Statistics of a loader.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoaderStats {
    /// Patches delivered.
    pub delivered: u64,
    /// Patches left out, because of errors or because the sampler factory left their subject out.
    pub left_out: u64,
    /// The first reasons for patches left out, each once.
    pub reasons: Vec<String>,
    /// The first images whose patches are slow, because their chunks are far larger than a patch along some axis, each
    /// once, with the factor that a conversion saves (see [`PatchCost`](crate::volume::PatchCost)).
    pub slow: Vec<String>,
    /// The time that the consumer waited.
    pub waited: Duration,
    /// Chunks read and decoded.
    pub chunks: u64,
    /// Bytes read of all images, before decoding.
    pub bytes: u64,
    /// Copies of a chunk, or of a part of one, into a patch. Without reuse, each would need its own decode.
    pub copies: u64,
    /// The mean number of different subjects in a batch, or in 8 patches in a row if batches have one
    /// patch; 0 before the first batch. It tells how well patches are mixed: of `s` subjects with equally
    /// many patches, independent draws of `b` have `s * (1 - (1 - 1/s)^b)`.
    pub subjects_per_batch: f64,
    /// Complete and incomplete patches in the buffer.
    pub fill: (usize, usize),
}
