//! Queries of signal handling.

use std::mem::MaybeUninit;
use std::ptr;

/// Returns `true` if this process ignores a signal. A process started by `nohup`, for example, ignores SIGHUP.
#[must_use]
pub fn signal_is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: this only queries the action; all zeros is a valid value of `sigaction`, which is plain data.
    let action = unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
