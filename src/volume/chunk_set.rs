//! Which write chunks of an array are done: a bit for each, set from any thread.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::region::{Shape, indices};

/// A bit for each channel and write chunk of an array; only the parts with a bit set take memory.
#[derive(Debug)]
pub(super) struct ChunkSet {
    channels: u64,
    /// Write chunks along z, y, x.
    counts: [u64; 3],
    /// 64 bits to an entry.
    bits: Mutex<HashMap<u64, u64>>,
}

impl ChunkSet {
    /// Nothing is marked. Shapes are z, y, x.
    pub(super) fn new(channels: u64, shape: Shape, chunk: Shape) -> Self {
        Self {
            channels,
            counts: std::array::from_fn(|a| shape[a].div_ceil(chunk[a])),
            bits: Mutex::default(),
        }
    }

    /// Marks a chunk; false if it was marked before.
    pub(super) fn set(&self, channel: u64, index: [u64; 3]) -> bool {
        let place = self.place(channel, index);
        let mut bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        let word = bits.entry(place / 64).or_default();
        let bit = 1 << (place % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes a chunk's mark away.
    pub(super) fn clear(&self, channel: u64, index: [u64; 3]) {
        let place = self.place(channel, index);
        let mut bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        bits.entry(place / 64)
            .and_modify(|word| *word &= !(1 << (place % 64)));
    }

    /// Returns `true` if a chunk is marked.
    pub(super) fn has(&self, channel: u64, index: [u64; 3]) -> bool {
        let place = self.place(channel, index);
        let bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        bits.get(&(place / 64))
            .is_some_and(|word| word & (1 << (place % 64)) != 0)
    }

    /// Every chunk there is, marked or not: its channel and index.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, [u64; 3])> + use<> {
        let counts = self.counts;
        (0..self.channels).flat_map(move |channel| {
            indices(counts.map(|count| 0..count)).map(move |index| (channel, index))
        })
    }

    /// Returns `true` if there is such a chunk.
    pub(super) fn holds(&self, channel: u64, index: [u64; 3]) -> bool {
        channel < self.channels && (0..3).all(|a| index[a] < self.counts[a])
    }

    fn place(&self, channel: u64, index: [u64; 3]) -> u64 {
        (0..3).fold(channel, |place, a| place * self.counts[a] + index[a])
    }
}
