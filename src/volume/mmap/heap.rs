//! Control of the allocator: returning freed memory to the system.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::meter::anonymous_bytes;

/// Returns freed memory to the system. The allocator keeps it for reuse, so it would still count as used. This takes
/// some milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_back_freed() {
    // SAFETY: it may be called at any time from any thread, and does not touch memory in use.
    unsafe { libc::malloc_trim(0) };
}

/// Does nothing: only the GNU C library needs this.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) const fn give_back_freed() {}

/// Freed bytes after which the memory of the process is looked at.
const OFTEN: u64 = 8 << 20;

/// The least growth of the memory of the process at which freed memory is returned to the system.
const LEAST_GROWTH: u64 = 12 << 20;

/// One in this many bytes of what is allowed is added for gaps in the heap.
const GAPS_SHARE: u64 = 7;

/// The bytes that were freed since the memory of the process was last looked at.
///
/// Buffers of many sizes leave gaps in the heap, next to those that stay, such as cached chunks. Without returning them
/// to the system, the gaps would take more and more memory next to the budget. Returning them takes time, and so does
/// the next use of each page, so that it only happens when the memory of the process has grown, and is more than is
/// allowed.
#[derive(Debug, Default)]
pub(crate) struct FreedBytes {
    bytes: AtomicU64,
    /// The memory of the process that is allowed.
    allowed: AtomicU64,
}

impl FreedBytes {
    /// Allows the process to grow by `bytes`, and gaps between them, from now on before freed memory is returned.
    pub(crate) fn allow(&self, bytes: u64) {
        // Freed memory that the allocator still holds is used again, so it must not be allowed a second time.
        give_back_freed();
        let now = anonymous_bytes().unwrap_or(0);
        let allowed = now.saturating_add(bytes).saturating_add(bytes / GAPS_SHARE);
        self.allowed.store(allowed, Ordering::Relaxed);
    }

    /// Counts bytes that were freed.
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns freed memory to the system, if there may be enough of it.
    pub(crate) fn give_back(&self) {
        /// The memory of the process after freed memory was last returned.
        static BEFORE: AtomicU64 = AtomicU64::new(0);
        let bytes = &self.bytes;
        if bytes.load(Ordering::Relaxed) < OFTEN || bytes.swap(0, Ordering::Relaxed) < OFTEN {
            return;
        }
        let grown = BEFORE.load(Ordering::Relaxed).saturating_add(LEAST_GROWTH);
        let limit = grown.max(self.allowed.load(Ordering::Relaxed));
        if anonymous_bytes().is_none_or(|now| now > limit) {
            give_back_freed();
            BEFORE.store(anonymous_bytes().unwrap_or(0), Ordering::Relaxed);
        }
    }
}

/// Configures the allocator to return freed memory to the system, so that a run stays within its memory budget. This is
/// for programs that only use this library.
///
/// All threads share two heaps. By default, the GNU C library creates one for each thread, and each keeps some
/// megabytes of freed memory. Allocations above 1.25 MiB (most patches and shards) come directly from the system and
/// are returned at once. By default, the GNU C library raises that threshold to up to 32 MiB as larger blocks are freed,
/// and keeps twice as much.
///
/// Call this first in `main`: it does not affect existing heaps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn share_heaps() {
    const LARGE: libc::c_int = 5 << 18;
    const KEPT: libc::c_int = 4 << 20;
    // SAFETY: it may be called at any time from any thread, and does not touch memory in use.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Does nothing: only the GNU C library has per-thread heaps.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub const fn share_heaps() {}
