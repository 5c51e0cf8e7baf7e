//! A gauge of the bytes that are held.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes held now, and their peak.
#[derive(Debug, Default)]
pub(super) struct ByteGauge {
    pub(super) now: AtomicU64,
    pub(super) peak: AtomicU64,
}

impl ByteGauge {
    pub(super) fn grow(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn shrink(&self, bytes: u64) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }
}
