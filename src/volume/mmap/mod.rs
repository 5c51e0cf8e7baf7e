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
mod writeback;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{Mmap, UncheckedAdvice};

use self::guard::AddressWatch;
pub use self::heap::share_heaps;
pub(crate) use self::heap::{FreedBytes, give_back_freed};
pub use self::signal::signal_is_ignored;
pub(crate) use self::writeback::start_writing;

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
    /// What this map counts for if it keeps its pages because it fits into memory.
    _room: Option<KeptRoom>,
}

/// The share of memory of maps that keep their pages because they fit, until it is dropped.
#[derive(Debug)]
pub(super) struct KeptRoom {
    bytes: u64,
    maps: u64,
}

/// Bytes of all such maps,
static KEPT_BYTES: AtomicU64 = AtomicU64::new(0);

/// and their number,
static KEPT_MAPS: AtomicU64 = AtomicU64::new(0);

/// which is at most this: Linux allows a process 65 530 maps of all kinds.
pub(super) const MAX_KEPT_MAPS: u64 = 1 << 14;

impl KeptRoom {
    /// Takes room for maps of so many bytes together; `None` if all such maps would have more than `limit` bytes, or be
    /// too many.
    pub(super) fn take(bytes: u64, maps: u64, limit: u64) -> Option<Self> {
        let order = Ordering::Relaxed;
        let add = |more: u64, limit: u64| {
            move |kept: u64| kept.checked_add(more).filter(|&all| all <= limit)
        };
        KEPT_BYTES
            .fetch_update(order, order, add(bytes, limit))
            .ok()?;
        if KEPT_MAPS
            .fetch_update(order, order, add(maps, MAX_KEPT_MAPS))
            .is_err()
        {
            KEPT_BYTES.fetch_sub(bytes, order);
            return None;
        }
        Some(Self { bytes, maps })
    }
}

impl Drop for KeptRoom {
    fn drop(&mut self) {
        KEPT_BYTES.fetch_sub(self.bytes, Ordering::Relaxed);
        KEPT_MAPS.fetch_sub(self.maps, Ordering::Relaxed);
    }
}

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
            _room: None,
            file,
        })
    }

    /// Makes the map keep all touched pages mapped.
    pub(super) fn keeping(mut self) -> Self {
        self.keeps = true;
        self
    }

    /// Makes the map keep all touched pages mapped if it, and all other maps that do so, take at most `limit` bytes.
    pub(super) fn keeping_if_it_fits(self, limit: u64) -> Self {
        match KeptRoom::take(self.file.len() as u64, 1, limit) {
            None => self,
            room => Self {
                _room: room,
                ..self.keeping()
            },
        }
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
