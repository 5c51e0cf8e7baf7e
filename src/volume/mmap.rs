//! Mapping files into memory: the only unsafe code of this crate.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a file, which must not be empty, for reading.
#[allow(
    unsafe_code,
    reason = "mapping cannot be safe: other processes can change the file"
)]
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only, and all that is done with it is copying bytes out: no
    // reference into it is handed on and no value is trusted for being read twice. A file
    // that another process changes meanwhile gives other voxels, and one that it shortens ends
    // this process with SIGBUS; `volume::open` tells its callers so.
    unsafe { Mmap::map(file) }
}
