//! Mapping files into memory: the only unsafe code of this crate.
//!
//! A page that was touched stays mapped, and counts as resident, long after anybody needs it:
//! an epoch over a large file would end with all of it resident. So what was touched is
//! counted, and when it comes to [`KEPT`] bytes the mapping is emptied. The pages stay in the
//! system's cache, from where they come back at the price of a fault.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, UncheckedAdvice};

/// Bytes that may be touched before the mapping is emptied.
pub(super) const KEPT: u64 = 256 << 20;

/// A file in memory, to be read.
#[derive(Debug)]
pub(super) struct Map {
    map: Mmap,
    touched: AtomicU64,
}

impl Map {
    /// Maps a file, which must not be empty.
    #[allow(
        unsafe_code,
        reason = "mapping cannot be safe: other processes can change the file"
    )]
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only, and all that is done with it is copying bytes out: no
        // reference into it is handed on and no value is trusted for being read twice. A file
        // that another process changes meanwhile gives other voxels, and one that it shortens ends
        // this process with SIGBUS; `volume::open` tells its callers so.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self {
            map,
            touched: AtomicU64::new(0),
        })
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Notes that pages of `bytes` bytes were touched, and lets go of all of them now and then.
    #[allow(
        unsafe_code,
        reason = "the advice could lose writes, but there are none"
    )]
    pub(super) fn touched(&self, bytes: u64) {
        let before = self.touched.fetch_add(bytes, Ordering::Relaxed);
        let filled = before < KEPT && before.saturating_add(bytes) >= KEPT;
        if !filled {
            return;
        }
        self.touched.store(0, Ordering::Relaxed);
        // SAFETY: the map is shared and read-only, so its pages hold nothing but the file's bytes,
        // and a thread that reads one meanwhile faults it in again.
        let advised = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        // Advice that is not taken costs residency, and nothing else.
        drop(advised);
    }
}
