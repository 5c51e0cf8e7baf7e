//! Mapping files into memory: the only unsafe code of this crate.
//!
//! A page that was touched stays mapped, and counts as resident, long after anybody needs it:
//! an epoch over a large file would end with all of it resident. So what was touched is noted,
//! and when it comes to [`KEPT`] bytes the mapping is emptied. The pages stay in the system's
//! cache, from where they come back at the price of a fault. A map that is [kept](Map::keeping) is not emptied.
//!
//! A file that is made shorter while it is mapped, or a disk that fails, would end the process
//! with SIGBUS; a [`guard`] makes that an error of the read.

#![allow(
    unsafe_code,
    reason = "mapping cannot be safe: other processes can change the file"
)]

mod guard;
mod heap;
mod signal;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{Mmap, UncheckedAdvice};

use self::guard::Watch;
pub(crate) use self::heap::give_back_freed;
pub use self::heap::share_heaps;
pub use self::signal::signal_is_ignored;

/// Bytes that may be mapped before the mapping is emptied.
pub(super) const KEPT: u64 = 256 << 20;

/// Bytes that the system maps at a fault, aligned (Linux's `fault_around_bytes`).
pub(super) const FAULT: u64 = 64 << 10;

/// A page of a mapped file could not be had: the file was made shorter, or could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

impl From<Lost> for io::Error {
    fn from(Lost: Lost) -> Self {
        Self::other(
            "a page of the mapped file could not be had: its disk failed, or it was made shorter meanwhile",
        )
    }
}

/// A file in memory, to be read.
#[derive(Debug)]
pub(super) struct Map {
    /// Ends before the mapping does.
    watch: Watch,
    file: Mmap,
    /// A bit for every [`FAULT`] bytes, set once they are touched.
    touched: Box<[AtomicU64]>,
    /// How many are set.
    set: AtomicU64,
    /// `true` if what was touched stays mapped.
    keeps: bool,
}

impl Map {
    /// Maps a file, which must not be empty.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only, and all that is done with it is copying bytes out: no
        // reference into it is handed on and no value is trusted for being read twice. A file
        // that another process changes meanwhile gives other voxels, and one that it shortens an
        // error, because the range is watched.
        let file = unsafe { Mmap::map(file)? };
        let faults = (file.len() as u64).div_ceil(FAULT);
        Ok(Self {
            watch: Watch::new(&file.as_ptr_range())?,
            touched: (0..faults.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            set: AtomicU64::new(0),
            keeps: false,
            file,
        })
    }

    /// The same, with all that is touched left mapped.
    pub(super) fn keeping(mut self) -> Self {
        self.keeps = true;
        self
    }

    pub(super) const fn keeps(&self) -> bool {
        self.keeps
    }

    /// Copies what `copy` wants out of the file's bytes. All that is read from a mapping goes
    /// through here.
    ///
    /// # Errors
    ///
    /// [`Lost`] if a page could not be had, now or earlier; what was copied is then worth nothing.
    pub(super) fn read<T>(&self, copy: impl FnOnce(&[u8]) -> T) -> Result<T, Lost> {
        guard::ensure().map_err(|_| Lost)?;
        let copied = copy(&self.file);
        // The flag is looked at after the bytes, by the compiler and by the processor.
        fence(Ordering::Acquire);
        if self.watch.lost() {
            Err(Lost)
        } else {
            Ok(copied)
        }
    }

    /// Notes that some bytes were touched.
    pub(super) fn touch(&self, bytes: Range<u64>) {
        if self.keeps {
            return;
        }
        for fault in bytes.start / FAULT..bytes.end.div_ceil(FAULT) {
            let Some(word) = usize::try_from(fault / 64)
                .ok()
                .and_then(|word| self.touched.get(word))
            else {
                return;
            };
            let bit = 1 << (fault % 64);
            if word.load(Ordering::Relaxed) & bit == 0
                && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
            {
                self.set.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Lets go of all pages if too many were touched; to be called after a read.
    pub(super) fn trim(&self) {
        let set = self.set.load(Ordering::Relaxed);
        let full = set * FAULT >= KEPT;
        // Of several threads that see it, one acts.
        let mine = || {
            self.set
                .compare_exchange(set, 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        if !full || !mine() {
            return;
        }
        for word in &self.touched {
            word.store(0, Ordering::Relaxed);
        }
        // SAFETY: the map is shared and read-only, so its pages hold nothing but the file's bytes,
        // and a thread that reads one meanwhile faults it in again.
        let advised = unsafe { self.file.unchecked_advise(UncheckedAdvice::DontNeed) };
        // Advice that is not taken costs residency, and nothing else.
        drop(advised);
    }
}
