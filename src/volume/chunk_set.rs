//! The set of write chunks that are done: a bit set that any thread can change.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::region::{Shape, indices};

/// A bit set with one bit per channel and write chunk of an array. Only words with a set bit take memory.
#[derive(Debug)]
pub(super) struct ChunkSet {
    channels: u64,
    /// Write chunks along z, y, x.
    counts: [u64; 3],
    /// Words of 64 bits, by the index of the word.
    bits: Mutex<HashMap<u64, u64>>,
}

impl ChunkSet {
    /// Creates an empty set. Shapes are z, y, x.
    pub(super) fn new(channels: u64, shape: Shape, chunk: Shape) -> Self {
        Self {
            channels,
            counts: std::array::from_fn(|a| shape[a].div_ceil(chunk[a])),
            bits: Mutex::default(),
        }
    }

    /// Marks a chunk. Returns `false` if it was already marked.
    pub(super) fn set(&self, channel: u64, index: [u64; 3]) -> bool {
        let place = self.place(channel, index);
        let mut bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        let word = bits.entry(place / 64).or_default();
        let bit = 1 << (place % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Removes the mark of a chunk.
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

    /// Iterates over all chunks, marked or not, as channel and index.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, [u64; 3])> + use<> {
        let counts = self.counts;
        (0..self.channels).flat_map(move |channel| {
            indices(counts.map(|count| 0..count)).map(move |index| (channel, index))
        })
    }

    /// Returns `true` if the array has this chunk.
    pub(super) fn holds(&self, channel: u64, index: [u64; 3]) -> bool {
        channel < self.channels && (0..3).all(|a| index[a] < self.counts[a])
    }

    fn place(&self, channel: u64, index: [u64; 3]) -> u64 {
        (0..3).fold(channel, |place, a| place * self.counts[a] + index[a])
    }
}
