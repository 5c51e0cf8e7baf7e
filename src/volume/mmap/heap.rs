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

/// For programs that do nothing but what this library does: all threads allocate from two heaps. The GNU C library
/// makes one for each thread, and each keeps some megabytes of what was freed, on top of what a run was given.
///
/// To be called first thing in `main`: heaps that are there already stay.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn share_heaps() {
    // SAFETY: it may be called at any time from any thread, and touches nothing that is in use.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

/// Only the GNU C library has heaps for each thread.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub const fn share_heaps() {}
