//! Memory-mapping of files: the only unsafe code of this crate.
//!
//! Touched pages stay mapped and count as resident long after they are needed, so an epoch over a large file would end
//! with all of it resident. Touched ranges are therefore tracked, and the mapping is emptied when they reach [`KEPT`]
//! bytes. The pages stay in the system's page cache, from which a page fault brings them back. A
//! [keeping](Map::keeping) map is not emptied: its pages are clean, so the system can take them back when memory is short.
//!
//! A file that is truncated while it is mapped, or a failing disk, would end the process with SIGBUS; a [`guard`] turns
//! that into a read error.

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

use self::guard::AddressWatch;
pub use self::heap::share_heaps;
pub(crate) use self::heap::{FreedBytes, give_back_freed};
pub use self::signal::signal_is_ignored;

/// Touched bytes after which a mapping is emptied.
pub(super) const KEPT: u64 = 256 << 20;

/// Aligned bytes that the system maps per page fault (Linux's `fault_around_bytes`).
pub(super) const FAULT: u64 = 64 << 10;

/// The error for a page of a mapped file that was lost: the file was truncated or could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

impl From<Lost> for io::Error {
    fn from(Lost: Lost) -> Self {
        Self::other(
            "a page of the mapped file could not be read: its disk failed, or it was truncated",
        )
    }
}

/// A file mapped for reading.
#[derive(Debug)]
pub(super) struct Map {
    /// Dropped before the mapping: fields are dropped in order.
    watch: AddressWatch,
    file: Mmap,
    /// One bit per [`FAULT`] bytes, set when they are touched.
    touched: Box<[AtomicU64]>,
    /// The number of set bits.
    set: AtomicU64,
    /// `true` if touched pages stay mapped.
    keeps: bool,
    /// The bytes of this map that count in [`KEPT_BY_DEFAULT`].
    counted: u64,
}

/// Bytes of all maps that keep their pages because they fit into memory.
static KEPT_BY_DEFAULT: AtomicU64 = AtomicU64::new(0);

impl Map {
    /// Maps a file, which must not be empty.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only and bytes are only copied out of it. No reference into it is handed out, and no
        // value is trusted to be the same when read twice. A file that another process changes gives different voxels;
        // one that it truncates gives an error, because the range is watched.
        let file = unsafe { Mmap::map(file)? };
        let faults = (file.len() as u64).div_ceil(FAULT);
        Ok(Self {
            watch: AddressWatch::new(&file.as_ptr_range())?,
            touched: (0..faults.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            set: AtomicU64::new(0),
            keeps: false,
            counted: 0,
            file,
        })
    }

    /// Makes the map keep all touched pages mapped.
    pub(super) fn keeping(mut self) -> Self {
        self.keeps = true;
        self
    }

    /// Makes the map keep all touched pages mapped if it, and all other maps that do so, take at most half
    /// of the available memory.
    pub(super) fn keeping_if_it_fits(self, available: Option<u64>) -> Self {
        let bytes = self.file.len() as u64;
        let limit = available.unwrap_or(0) / 2;
        let more = |kept: u64| kept.checked_add(bytes).filter(|&all| all <= limit);
        let order = Ordering::Relaxed;
        if KEPT_BY_DEFAULT.fetch_update(order, order, more).is_err() {
            return self;
        }
        let mut map = self.keeping();
        map.counted = bytes;
        map
    }

    pub(super) const fn keeps(&self) -> bool {
        self.keeps
    }

    /// Calls `copy` on the file's bytes. All reads of a mapping go through this function.
    ///
    /// # Errors
    ///
    /// [`Lost`] if a page was lost, now or earlier; the copied data is then invalid.
    pub(super) fn read<T>(&self, copy: impl FnOnce(&[u8]) -> T) -> Result<T, Lost> {
        guard::ensure().map_err(|_| Lost)?;
        let copied = copy(&self.file);
        // The fence makes the compiler and the processor check the flag after reading the bytes.
        fence(Ordering::Acquire);
        if self.watch.lost() {
            Err(Lost)
        } else {
            Ok(copied)
        }
    }

    /// Marks bytes as touched.
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

    /// Releases all pages if too many were touched. Call this after a read.
    pub(super) fn trim(&self) {
        let set = self.set.load(Ordering::Relaxed);
        let full = set * FAULT >= KEPT;
        // If several threads get here, only one acts.
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
        // SAFETY: the map is shared and read-only, so its pages hold only the file's bytes, and a concurrent reader of
        // a page faults it in again.
        let advised = unsafe { self.file.unchecked_advise(UncheckedAdvice::DontNeed) };
        // If the advice is not followed, pages only stay resident.
        drop(advised);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        KEPT_BY_DEFAULT.fetch_sub(self.counted, Ordering::Relaxed);
    }
}
