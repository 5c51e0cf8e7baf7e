//! A cache of decoded chunks for later patches.
//!
//! Patches at random places touch any chunk. A cache of some chunks saves that part of the decoding
//! but takes memory from patches that would have shared a chunk. It pays only if all chunks fit, and
//! only then are they cached.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::region::{Region, chunk_range};
use crate::training::subject::{Image, Subject};
use crate::training::sync::lock;
use crate::volume::{Chunk, ChunkShape};

/// The byte budget that all chunk stores of a loader share.
#[derive(Debug)]
pub(super) struct ByteBudget {
    max: u64,
    reserved: AtomicU64,
}

impl ByteBudget {
    /// Three quarters of the bytes that patches and chunks may take together.
    pub(super) const fn for_chunks(bytes: u64) -> Self {
        Self {
            max: bytes / 4 * 3,
            reserved: AtomicU64::new(0),
        }
    }

    /// The bytes reserved for chunks.
    pub(super) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }
}

/// The decoded chunks of one subject.
pub(super) struct ChunkStore {
    budget: Arc<ByteBudget>,
    bytes: u64,
    chunks: Mutex<HashMap<(usize, ChunkShape), Arc<Chunk>>>,
}

impl ChunkStore {
    /// Reserves the bytes of all chunks of a subject. Returns `None` unless `subjects` such subjects
    /// fit into the budget.
    pub(super) fn reserve(
        subject: &Subject,
        subjects: u64,
        budget: &Arc<ByteBudget>,
    ) -> Option<Self> {
        let bytes = subject.images().iter().map(decoded_bytes);
        let bytes = bytes.fold(0, u64::saturating_add);
        if bytes == 0 || bytes.saturating_mul(subjects) > budget.max {
            return None;
        }
        let more = |reserved: u64| reserved.checked_add(bytes).filter(|&all| all <= budget.max);
        let reserved = budget
            .reserved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        reserved.is_ok().then(|| Self {
            budget: Arc::clone(budget),
            bytes,
            chunks: Mutex::default(),
        })
    }

    pub(super) fn get(&self, image: usize, index: ChunkShape) -> Option<Arc<Chunk>> {
        lock(&self.chunks).get(&(image, index)).cloned()
    }

    pub(super) fn insert(&self, image: usize, index: ChunkShape, chunk: &Arc<Chunk>) {
        lock(&self.chunks).insert((image, index), Arc::clone(chunk));
    }
}

impl Drop for ChunkStore {
    fn drop(&mut self) {
        self.budget
            .reserved
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The bytes of all chunks that hold any of an image's channels; 0 if it has no chunks.
fn decoded_bytes(image: &Image) -> u64 {
    let layout = image.volume.layout();
    let Some([c, chunk @ ..]) = layout.read_chunk else {
        return 0;
    };
    let along = chunk_range(&Region::whole(layout.shape), chunk);
    let counts = along.iter().map(|range| range.end - range.start);
    let layers = image.channels.end.div_ceil(c) - image.channels.start / c;
    let chunks = counts.fold(layers, u64::saturating_mul);
    let voxels = chunk.iter().fold(c, |voxels, &n| voxels.saturating_mul(n));
    chunks
        .saturating_mul(voxels)
        .saturating_mul(layout.dtype.size() as u64)
}
