//! The heap: what the allocator keeps of memory that nobody uses any more.

/// Gives memory that was freed back to the system. An allocator keeps it for what comes next, so that what
/// came before would count as held; it takes some milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_back_freed() {
    // SAFETY: it may be called at any time from any thread, and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Only the GNU C library has to be asked.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) const fn give_back_freed() {}

/// For programs that do nothing but what this library does: makes freed memory go back to the system, so that a
/// run does not take more than it was given.
///
/// All threads allocate from two heaps: the GNU C library makes one for each thread, and each keeps some
/// megabytes of what was freed. What is larger than 1.25 MiB (most patches, and shards) comes from the system
/// and goes back at once: by itself, the library takes up to 32 MiB from its heaps once that much was freed,
/// and keeps twice that.
///
/// To be called first thing in `main`: heaps that are there already stay.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn share_heaps() {
    const LARGE: libc::c_int = 5 << 18;
    const KEPT: libc::c_int = 4 << 20;
    // SAFETY: it may be called at any time from any thread, and touches nothing that is in use.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Only the GNU C library has heaps for each thread.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub const fn share_heaps() {}
