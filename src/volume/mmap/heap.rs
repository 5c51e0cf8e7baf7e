//! Control of the allocator: returning freed memory to the system.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// Freed bytes after which memory is returned to the system.
const MOST_FREED: u64 = 32 << 20;

/// The bytes that were freed since memory was last returned to the system.
///
/// Buffers of many sizes leave gaps in the heap, next to those that stay, such as cached chunks. Without returning them
/// from time to time, the gaps would take more and more memory next to the budget.
#[derive(Debug, Default)]
pub(crate) struct FreedBytes(AtomicU64);

impl FreedBytes {
    /// Counts bytes that were freed.
    pub(crate) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns freed memory to the system, if there is enough of it.
    pub(crate) fn give_back(&self) {
        if self.0.load(Ordering::Relaxed) >= MOST_FREED
            && self.0.swap(0, Ordering::Relaxed) >= MOST_FREED
        {
            give_back_freed();
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
