//! What an epoch leaves to the next one of the same dataset: its open subjects, and the chunks of them that it holds.
//!
//! The next epoch reads the same subjects, so that a chunk that is held when an epoch ends is most likely needed again.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::assembly::ChunkKey;
use super::feed::OpenSubject;
use super::holdings::{ChunkBytes, CountedChunk};

/// What the last loader of a dataset left. Clones share it.
#[derive(Clone, Default)]
pub(in crate::training) struct Carry(Arc<Mutex<Carried>>);

#[derive(Default)]
pub(in crate::training) struct Carried {
    /// Subjects that could be opened.
    pub(super) subjects: Vec<Arc<OpenSubject>>,
    /// Chunks with the bytes that they are planned with.
    pub(super) chunks: Vec<(ChunkKey, u64, Arc<CountedChunk>)>,
    /// The counter of these chunks' bytes.
    pub(super) bytes: ChunkBytes,
}

impl Carry {
    /// Takes what the last loader left, except of subjects whose files were modified since.
    pub(super) fn take(&self) -> Carried {
        let mut carried =
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        carried.subjects.retain(|opened| opened.is_unchanged());
        let kept: BTreeSet<u64> = carried.subjects.iter().map(|opened| opened.index).collect();
        carried
            .chunks
            .retain(|((subject, ..), ..)| kept.contains(subject));
        carried
    }

    /// Leaves something in place of what was left before.
    pub(in crate::training) fn leave(&self, carried: Carried) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *left, carried);
        drop(left);
        drop(before);
    }
}

impl fmt::Debug for Carry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carry").finish_non_exhaustive()
    }
}
