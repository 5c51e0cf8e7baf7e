//! Counters of volume reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of reads since a volume was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Chunks fetched and decoded.
    pub chunks: u64,
    /// Bytes fetched from files, before decoding.
    pub bytes: u64,
    /// Chunks found in a cache.
    pub hits: u64,
}

/// A counter of reads, for any number of threads.
#[derive(Debug, Default)]
pub(super) struct Counter {
    chunks: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    pub(super) fn add(&self, chunks: u64, bytes: u64) {
        self.chunks.fetch_add(chunks, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> ReadStats {
        ReadStats {
            chunks: self.chunks.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            hits: 0,
        }
    }
}
