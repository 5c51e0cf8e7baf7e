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
