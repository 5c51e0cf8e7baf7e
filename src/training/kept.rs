//! Decoded chunks that stay for the patches to come.
//!
//! Patches from anywhere want any chunk: a cache of some of them saves that part of the decoding, and
//! takes room from patches that would have shared a chunk. It pays where all of them fit, and only
//! then are they kept.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::slot::lock;
use super::subject::{Image, Subject};
use crate::region::{Region, chunk_range};
use crate::volume::{Chunk, ChunkShape};

/// The bytes that chunks may take together.
#[derive(Debug)]
pub(super) struct Room {
    most: u64,
    taken: AtomicU64,
}

impl Room {
    /// Three quarters of what patches and chunks may take together.
    pub(super) const fn within(bytes: u64) -> Self {
        Self {
            most: bytes / 4 * 3,
            taken: AtomicU64::new(0),
        }
    }

    /// Bytes that are promised to chunks.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Decoded chunks of a subject.
pub(super) struct Kept {
    room: Arc<Room>,
    bytes: u64,
    chunks: Mutex<HashMap<(usize, ChunkShape), Arc<Chunk>>>,
}

impl Kept {
    /// Room for all chunks of a subject, if there is as much for each of `subjects`.
    pub(super) fn all_of(subject: &Subject, subjects: u64, room: &Arc<Room>) -> Option<Self> {
        let bytes = subject.images().iter().map(decoded_bytes);
        let bytes = bytes.fold(0, u64::saturating_add);
        if bytes == 0 || bytes.saturating_mul(subjects) > room.most {
            return None;
        }
        let more = |taken: u64| taken.checked_add(bytes).filter(|&taken| taken <= room.most);
        let taken = room
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Self {
            room: Arc::clone(room),
            bytes,
            chunks: Mutex::default(),
        })
    }

    pub(super) fn get(&self, image: usize, index: ChunkShape) -> Option<Arc<Chunk>> {
        lock(&self.chunks).get(&(image, index)).cloned()
    }

    pub(super) fn keep(&self, image: usize, index: ChunkShape, chunk: &Arc<Chunk>) {
        lock(&self.chunks).insert((image, index), Arc::clone(chunk));
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes of all chunks that hold any of an image's channels; 0 if it has no chunks.
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
