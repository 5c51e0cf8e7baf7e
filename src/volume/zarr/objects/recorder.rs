//! Chunks on their way to a store, and the note of those that have arrived.

use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::arrays::ChunkPlace;
use super::LAST_ARRIVALS;
use super::claim::TaskRun;
use super::note::{Note, NoteName, NotedChunk, Stored};
use crate::error::Result;
use crate::store::Uploads;

/// The time between two notes of what was written.
const NOTE_EVERY: Duration = if cfg!(test) {
    Duration::ZERO
} else {
    Duration::from_secs(10)
};

/// At most one part in so many of the time is spent on these notes.
const NOTE_SHARE: u32 = 20;

/// Puts chunks, and notes from time to time which of them have arrived.
#[derive(Debug)]
pub(super) struct Recorder {
    /// The note of what is not finished.
    name: NoteName,
    uploads: Uploads,
    written: Mutex<Written>,
}

/// The chunks that were written.
#[derive(Debug)]
struct Written {
    /// Objects on their way, by name.
    sent: HashMap<String, (NotedChunk, Stored)>,
    note: Note,
    /// The number of chunks in the last note.
    noted: usize,
    /// The time of the next note.
    next: Instant,
}

impl Recorder {
    /// Continues a note. At most `limit` bytes of chunks are on their way.
    pub(super) fn new(run: &TaskRun, name: NoteName, limit: u64, note: Note) -> Self {
        Self {
            name,
            uploads: run.remote.uploads(limit).recorded(),
            written: Mutex::new(Written {
                sent: HashMap::new(),
                noted: note.chunks.len(),
                note,
                next: Instant::now() + NOTE_EVERY,
            }),
        }
    }

    /// Puts a chunk without waiting for it, and notes what has arrived if it is time. Returns `false` if it was time, and
    /// the run's claim was gone.
    pub(super) fn keep(
        &self,
        run: &TaskRun,
        place: &ChunkPlace,
        encoded: Option<Vec<u8>>,
    ) -> Result<bool> {
        let [z, y, x] = place.index;
        let chunk = (place.level, [place.channel, z, y, x]);
        match encoded {
            None => {
                self.lock().note.chunks.insert(chunk, None);
            }
            Some(bytes) => {
                let stored = Stored {
                    length: bytes.len() as u64,
                    crc: crc32c::crc32c(&bytes),
                    tag: None,
                };
                let sent = (chunk, stored);
                self.lock().sent.insert(place.key.clone(), sent);
                self.uploads.put(&run.path, &place.key, bytes)?;
            }
        }
        Ok(self.note_some(run, false))
    }

    /// Waits until all chunks have arrived.
    pub(super) fn wait(&self) -> Result<()> {
        self.uploads.wait()?;
        self.lock().arrived(&self.uploads);
        Ok(())
    }

    /// Waits until all chunks have arrived, and notes them. Returns `false` if the run's claim was gone.
    pub(super) fn settle(&self, run: &TaskRun) -> Result<bool> {
        self.wait()?;
        Ok(self.note_some(run, true))
    }

    /// Takes the note of all chunks that have arrived.
    pub(super) fn take_note(&self) -> Note {
        mem::take(&mut self.lock().note)
    }

    /// Gives up the chunks that do not arrive soon, and notes the others.
    pub(super) fn give_up(&self, run: &TaskRun) {
        self.uploads.give_up(LAST_ARRIVALS);
        self.note_some(run, true);
    }

    /// Notes what has arrived, if it is time or nothing follows. Only a process that continues the work uses the note, so
    /// one that cannot be written is no error. Returns `false` if the run's claim was gone.
    fn note_some(&self, run: &TaskRun, is_last: bool) -> bool {
        let now = Instant::now();
        let mut written = self.lock();
        written.arrived(&self.uploads);
        if !is_last && now < written.next || written.noted == written.note.chunks.len() {
            return true;
        }
        written.noted = written.note.chunks.len();
        // No other thread writes a note in the meantime.
        written.next = now + LAST_ARRIVALS;
        let note = written.note.clone();
        drop(written);
        let has_claim = run.has_claim();
        if let Ok(true) = has_claim {
            let _ = run.put_note(self.name, &note);
        }
        self.lock().next = Instant::now() + NOTE_EVERY.max(now.elapsed() * NOTE_SHARE);
        has_claim.unwrap_or(true)
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Written {
    /// Moves the chunks that have arrived to the note.
    fn arrived(&mut self, uploads: &Uploads) {
        for (name, tag) in uploads.take_arrived() {
            if let Some((chunk, stored)) = self.sent.remove(&name) {
                let stored = Stored { tag, ..stored };
                self.note.chunks.insert(chunk, Some(stored));
            }
        }
    }
}
