//! Starting to write files to disk.

use std::fs::File;

/// Asks the system to start writing the changed pages of a file to disk. Does not wait for them, and does not report errors: a
/// flush does both.
#[cfg(target_os = "linux")]
pub(crate) fn start_writing(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open, and the call takes no memory.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Does nothing: only Linux has such a call.
#[cfg(not(target_os = "linux"))]
pub(crate) const fn start_writing(_file: &File) {}
