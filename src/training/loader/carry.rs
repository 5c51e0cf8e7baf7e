//! The chunks that an epoch leaves to the next one of the same dataset, and their subjects.
//!
//! The next epoch reads the same subjects, so that a chunk that is held when an epoch ends is most likely needed again. It
//! opens its subjects itself: if a subject then has other volumes, its chunks are dropped.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::assembly::ChunkKey;
use super::holdings::{ChunkBytes, CountedChunk};
use crate::training::subject::Subject;

/// The chunks that the last loader of a dataset left. Clones share them.
#[derive(Clone, Default)]
pub(in crate::training) struct Carry(Arc<Mutex<Carried>>);

/// A chunk, with the bytes that it is planned with.
pub(super) type CarriedChunk = (ChunkKey, u64, Arc<CountedChunk>);

#[derive(Default)]
pub(in crate::training) struct Carried {
    /// The open subjects, with their numbers.
    pub(super) subjects: HashMap<u64, Arc<Subject>>,
    /// Chunks of these subjects.
    pub(super) chunks: Vec<CarriedChunk>,
    /// The counter of these chunks' bytes.
    pub(super) bytes: ChunkBytes,
}

impl Carry {
    /// Takes what the last loader left.
    pub(super) fn take(&self) -> Carried {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Leaves something in place of what was left before.
    pub(in crate::training) fn leave(&self, carried: Carried) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *left, carried);
        drop(left);
        drop(before);
    }
}

/// Returns `true` if two subjects have the same volumes.
pub(super) fn same_volumes(a: &Subject, b: &Subject) -> bool {
    let (a, b) = (a.images(), b.images());
    let mut pairs = a.iter().zip(b);
    a.len() == b.len()
        && pairs.all(|(a, b)| std::ptr::addr_eq(Arc::as_ptr(&a.volume), Arc::as_ptr(&b.volume)))
}

impl fmt::Debug for Carry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carry").finish_non_exhaustive()
    }
}
