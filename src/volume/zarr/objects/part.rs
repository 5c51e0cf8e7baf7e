//! Outputs in a store that several processes write, or several runs of one process.
//!
//! Each chunk is put under its final key, by any number of processes with the same bytes. A part that is finished is
//! noted, with the checksums of its objects; so is, from time to time, what an unfinished part has written. The
//! output is published by any process that finds notes of all chunks, and all objects as they are noted: the metadata
//! are put last, on the condition that they do not exist, and then the notes and the claim are removed.
//!
//! A process that is killed leaves at worst objects that nothing notes, and its part is written again. A slow process
//! may put a chunk after the output was published: it has the bytes that are there.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::super::chunk_set::ChunkSet;
use super::super::super::create::CreateOptions;
use super::super::super::needs::upload_bytes;
use super::super::super::partial::OutputPart;
use super::super::super::resume::{OutputProgress, ResumeOptions, RunParts};
use super::super::super::{ChunkShape, Layout};
use super::super::arrays::{Arrays, ChunkPlace, LevelArray};
use super::super::belongs::is_chunk_of;
use super::super::resume::{check_owned, run};
use super::claim::{FINEST, TaskRun};
use super::note::{self, Note, Stored, is_note};
use super::{CLAIM, LAST_ARRIVALS, create_same};
use crate::error::{Error, Result};
use crate::region::Region;
use crate::store::{Listed, Part, Remote, Uploads};

/// The time between two notes of what an unfinished part has written.
const NOTE_EVERY: Duration = if cfg!(test) {
    Duration::ZERO
} else {
    Duration::from_secs(10)
};

/// At most one part in so many of the time is spent on these notes.
const NOTE_SHARE: u32 = 20;

/// A part of an output in a store under construction.
#[derive(Debug)]
pub(in super::super::super) struct ObjectsPart {
    run: TaskRun,
    arrays: Arrays,
    part: OutputPart,
    owned: Region,
    uploads: Uploads,
    written: Mutex<Written>,
    /// Whether the part has a note that it is finished.
    is_complete: bool,
}

/// The chunks that were written.
#[derive(Debug)]
struct Written {
    /// Objects on their way, by name.
    sent: HashMap<String, (ChunkShape, Stored)>,
    note: Note,
    /// The number of chunks in the last note.
    noted: usize,
    /// The time of the next note.
    next: Instant,
}

impl ObjectsPart {
    /// Starts or resumes a part. Returns `None` if the run has published the output.
    pub(in super::super::super) fn open(
        remote: Remote,
        layout: &Layout,
        options: &CreateOptions,
        resume: &ResumeOptions,
    ) -> Result<Option<Self>> {
        let owned = check_owned(layout, resume)?;
        let (arrays, run) = task_run(remote, (layout, options), resume, resume.part.count())?;
        if !run.enter()? {
            return Ok(None);
        }
        let complete = run.note(resume.part, true)?;
        let is_complete = complete.is_some();
        let note = match complete {
            Some(note) => Some(note),
            // The notes are removed when the output is published.
            None if run.is_published()? => {
                run.tidy()?;
                return Ok(None);
            }
            None => run.note(resume.part, false)?,
        };
        let note = note.unwrap_or_default();
        for &[c, z, y, x] in note.chunks.keys() {
            if arrays.levels()[0].written.holds(c, [z, y, x]) {
                arrays.levels()[0].written.set(c, [z, y, x]);
            }
        }
        Ok(Some(Self {
            uploads: run.remote.uploads(upload_bytes(layout)).recorded(),
            run,
            arrays,
            part: resume.part,
            owned,
            written: Mutex::new(Written {
                sent: HashMap::new(),
                noted: note.chunks.len(),
                note,
                next: Instant::now() + NOTE_EVERY,
            }),
            is_complete,
        }))
    }

    pub(in super::super::super) fn owned(&self) -> Region {
        self.owned
    }

    pub(in super::super::super) const fn arrays(&self) -> &Arrays {
        &self.arrays
    }

    pub(in super::super::super) fn write_channels(
        &self,
        channels: Range<u64>,
        region: Region,
        voxels: &[u8],
    ) -> Result<()> {
        if !self.owned.contains(&region) {
            return Err(Error::NotOwned {
                path: self.run.path.clone(),
                region,
                owned: self.owned,
            });
        }
        let keep = |place: &ChunkPlace, encoded: Option<Vec<u8>>| self.keep(place, encoded);
        self.arrays.write(channels, region, voxels, &keep)
    }

    /// Puts a chunk without waiting for it, and notes what has arrived if it is time.
    fn keep(&self, place: &ChunkPlace, encoded: Option<Vec<u8>>) -> Result<()> {
        let [z, y, x] = place.index;
        let index = [place.channel, z, y, x];
        match encoded {
            None => {
                self.lock().note.chunks.insert(index, None);
            }
            Some(bytes) => {
                let stored = Stored {
                    length: bytes.len() as u64,
                    crc: crc32c::crc32c(&bytes),
                    tag: None,
                };
                let sent = (index, stored);
                self.lock().sent.insert(place.key.clone(), sent);
                self.uploads.put(&self.run.path, &place.key, bytes)?;
            }
        }
        self.note_some(false);
        Ok(())
    }

    /// Notes what has arrived, if it is time or nothing follows. Only a process that resumes the part uses the note, so
    /// one that cannot be written is no error.
    fn note_some(&self, is_last: bool) {
        let now = Instant::now();
        let mut written = self.lock();
        written.arrived(&self.uploads);
        if !is_last && now < written.next || written.noted == written.note.chunks.len() {
            return;
        }
        written.noted = written.note.chunks.len();
        // No other thread writes a note in the meantime.
        written.next = now + LAST_ARRIVALS;
        let note = written.note.clone();
        drop(written);
        if let Ok(true) = self.run.has_claim() {
            let _ = self.run.put_note(self.part, false, &note);
        }
        self.lock().next = Instant::now() + NOTE_EVERY.max(now.elapsed() * NOTE_SHARE);
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the part is finished.
    fn complete(&mut self) -> Result<()> {
        if let Some(missing) = self
            .arrays
            .missing(&self.arrays.levels()[0].written, self.owned)
        {
            return Err(Error::MissingChunks {
                path: self.run.path.clone(),
                missing,
            });
        }
        self.uploads.wait()?;
        if mem::replace(&mut self.is_complete, true) {
            return Ok(());
        }
        let note = {
            let mut written = self.lock();
            written.arrived(&self.uploads);
            mem::take(&mut written.note)
        };
        if !self.is_overtaken()? {
            self.run.put_note(self.part, true, &note)?;
            if !self.is_overtaken()? {
                return Ok(());
            }
        }
        // Its notes may have come after the others were removed.
        self.run.remove_notes(self.part)
    }

    /// Returns `true` if other processes of the run have published the output.
    fn is_overtaken(&self) -> Result<bool> {
        if self.run.has_claim()? {
            return Ok(false);
        }
        if self.run.is_published()? {
            return Ok(true);
        }
        Err(changed(&self.run, "another run has claimed it"))
    }

    /// Finishes parts of one run, and publishes the outputs of which they are the only ones. None is published before all
    /// are complete.
    pub(in super::super::super) fn finish_all(parts: Vec<Self>) -> Result<()> {
        let mut whole = Vec::new();
        for mut part in parts {
            part.complete()?;
            if part.part.count() == 1 {
                whole.push(part);
            }
        }
        let checked = whole
            .iter()
            .map(|part| Checked::new(&part.run, &part.arrays));
        let checked: Vec<_> = checked.collect::<Result<_>>()?;
        for (part, checked) in whole.iter().zip(checked) {
            if let Some(checked) = checked {
                checked.publish(&part.run)?;
            }
        }
        Ok(())
    }
}

impl Drop for ObjectsPart {
    fn drop(&mut self) {
        if self.is_complete {
            return;
        }
        self.uploads.give_up(LAST_ARRIVALS);
        self.note_some(true);
    }
}

impl Written {
    /// Moves the chunks that have arrived to the note.
    fn arrived(&mut self, uploads: &Uploads) {
        for (name, tag) in uploads.take_arrived() {
            if let Some((index, stored)) = self.sent.remove(&name) {
                let stored = Stored { tag, ..stored };
                self.note.chunks.insert(index, Some(stored));
            }
        }
    }
}

/// An output of which all parts are finished, and were found as they are noted.
#[derive(Debug)]
pub(in super::super::super) struct ObjectsParts {
    run: TaskRun,
    checked: Checked,
}

impl ObjectsParts {
    /// Opens and checks all parts of an output. Returns `None` if the run has published it.
    pub(in super::super::super) fn open(
        remote: Remote,
        layout: &Layout,
        options: &CreateOptions,
        resume: &ResumeOptions,
        parts: RunParts,
    ) -> Result<Option<Self>> {
        let (arrays, run) = task_run(remote, (layout, options), resume, parts.count)?;
        match run.claim(true)? {
            Some(claim) if !claim.is_clearing => {
                if run.is_published()? {
                    run.tidy()?;
                    return Ok(None);
                }
            }
            None if run.is_published()? => return Ok(None),
            // The server may not keep marks.
            None if parts.wrote_part && run.has_root()? => return Ok(None),
            claim => {
                if claim.is_none() {
                    super::check_objects(&run.remote, layout.path.as_path(), options.overwrite)?;
                }
                return Err(Error::MissingChunks {
                    path: run.path,
                    missing: "every chunk: no part has been started".to_owned(),
                });
            }
        }
        let checked = Checked::new(&run, &arrays)?;
        Ok(checked.map(|checked| Self { run, checked }))
    }

    /// Returns what the notes of an output have.
    pub(in super::super::super) fn progress(
        remote: Remote,
        layout: &Layout,
        options: &CreateOptions,
        resume: &ResumeOptions,
    ) -> Result<OutputProgress> {
        let (arrays, run) = task_run(remote, (layout, options), resume, resume.part.count())?;
        let mut found = OutputProgress::default();
        let claim = run.claim(false)?;
        if claim.is_none_or(|claim| !claim.is_clearing) && run.is_published()? {
            found.published = true;
            return Ok(found);
        }
        let Some(claim) = claim else {
            return Ok(found);
        };
        found.parts = Some(claim.parts);
        let noted = run.noted()?.into_iter();
        for (part, is_complete) in noted.filter(|(part, _)| part.count() == claim.parts) {
            if is_complete {
                found.complete.insert(part.index());
                continue;
            }
            let chunks = found.done.entry(part.index()).or_default();
            if let Some(note) = run.note(part, false)? {
                let finest = &arrays.levels()[0].written;
                let inside = |&[c, z, y, x]: &ChunkShape| finest.holds(c, [z, y, x]);
                chunks.extend(note.chunks.into_keys().filter(inside));
            }
        }
        Ok(found)
    }

    /// Publishes outputs that were opened.
    pub(in super::super::super) fn publish_all(outputs: Vec<Self>) -> Result<()> {
        for ObjectsParts { run, checked } in outputs {
            checked.publish(&run)?;
        }
        Ok(())
    }
}

/// What is left to do for a complete output.
#[derive(Debug)]
struct Checked {
    /// Objects of an old output, or of a process that was killed.
    stale: Vec<String>,
}

impl Checked {
    /// Checks that there are notes of all chunks, and that their objects are as they are noted. Returns `None` if another
    /// process has published the output.
    fn new(run: &TaskRun, arrays: &Arrays) -> Result<Option<Self>> {
        match Self::of(run, arrays) {
            // Objects that another process removes or writes when it publishes the output.
            Err(error) => match run.is_published() {
                Ok(true) => Ok(None),
                _ => Err(error),
            },
            checked => checked.map(Some),
        }
    }

    fn of(run: &TaskRun, arrays: &Arrays) -> Result<Self> {
        let Some(claim) = run.claim(true)? else {
            return Err(changed(run, "its claim is gone"));
        };
        let listed = run.remote.list(&run.path, usize::MAX)?.into_iter();
        let mut listed: Objects = listed.map(|one| (one.name.clone(), one)).collect();
        let finest = &arrays.levels()[0];
        let (mut damaged, found) = (Vec::new(), finest.no_chunks());
        for index in 0..run.count {
            let part = OutputPart::new(index, run.count)?;
            let name = format!("{}/{}", note::folder(&run.id), note::name(part, true));
            if listed.remove(&name).is_none() {
                continue;
            }
            let note = run.note(part, true)?;
            let is_sound = match note {
                Some(note) => is_note_sound(run, finest, note, (&mut listed, &found))?,
                None => false,
            };
            if !is_sound {
                run.remove_notes(part)?;
                damaged.push(index.to_string());
            }
        }
        let path = run.path.clone();
        if !damaged.is_empty() {
            let (parts, count) = (damaged.join(", "), run.count);
            let missing = format!(
                "chunks that are not as they were written: run parts {parts} of {count} again"
            );
            return Err(Error::MissingChunks { path, missing });
        }
        let whole = Region::whole(arrays.layout().shape);
        if let Some(missing) = arrays.missing(&found, whole) {
            return Err(Error::MissingChunks { path, missing });
        }
        let is_own = |name: &String| {
            let is_document = run.documents.iter().any(|(own, _)| own == name);
            name == CLAIM || is_document || is_note(name)
        };
        let others = listed.into_keys().filter(|name| !is_own(name));
        let stale: Vec<String> = others.collect();
        let may_be_left = |name: &String| {
            is_chunk_of(FINEST, name) && (claim.replaces || finest.is_key_of_chunk(name))
        };
        if !stale.iter().all(may_be_left) {
            return Err(changed(
                run,
                "it has other objects than those that were written",
            ));
        }
        Ok(Self { stale })
    }

    /// Writes the metadata, and removes what is not needed any more.
    fn publish(self, run: &TaskRun) -> Result<()> {
        if !run.has_claim()? {
            return if run.is_published()? {
                Ok(())
            } else {
                Err(changed(run, "another run has claimed it"))
            };
        }
        run.remote.remove(&run.path, &self.stale)?;
        for (n, (name, bytes)) in (1..).zip(&run.documents) {
            let mark = (n == run.documents.len()).then_some(&*run.id);
            if !create_same(&run.remote, &run.path.join(name), bytes, mark)? {
                return Err(changed(run, "another run has written its metadata"));
            }
        }
        // The output is complete, and notes and a claim that stay are ignored.
        let _ = run.tidy();
        Ok(())
    }
}

/// The objects below an output, by name.
type Objects = BTreeMap<String, Listed>;

/// Returns `true` if all chunks of a note are there as they were noted, and belong to no other part. Takes their objects
/// from those that were listed, and adds the chunks to those that were found.
fn is_note_sound(
    run: &TaskRun,
    finest: &LevelArray,
    note: Note,
    (listed, found): (&mut Objects, &ChunkSet),
) -> Result<bool> {
    let mut is_sound = true;
    for ([c, z, y, x], stored) in note.chunks {
        let index = [z, y, x];
        if !found.holds(c, index) || !found.set(c, index) {
            is_sound = false;
        } else if let Some(stored) = stored {
            let object = listed.remove(&finest.key(0, c, index));
            is_sound &= is_as_noted(run, object, &stored)?;
        }
    }
    Ok(is_sound)
}

/// Returns `true` if an object is there as it was noted. Where every write gives another entity tag, one that was written
/// twice is read.
fn is_as_noted(run: &TaskRun, object: Option<Listed>, stored: &Stored) -> Result<bool> {
    let Some(object) = object.filter(|object| object.size == stored.length) else {
        return Ok(false);
    };
    if object.tag.is_some() && object.tag == stored.tag {
        return Ok(true);
    }
    let path = run.path.join(&object.name);
    let length = |_| changed(run, "another run writes its chunks");
    let found = run
        .remote
        .read(&path, Part::Whole, (stored.length, &length), None)?;
    Ok(found.is_some_and(|found| {
        found.bytes.len() as u64 == stored.length && crc32c::crc32c(&found.bytes) == stored.crc
    }))
}

/// Returns the arrays of an output and the run that writes it in `count` parts.
fn task_run(
    remote: Remote,
    (layout, options): (&Layout, &CreateOptions),
    resume: &ResumeOptions,
    count: u32,
) -> Result<(Arrays, TaskRun)> {
    let (arrays, planned) = Arrays::planned(layout, options)?;
    let run = run(layout, options, resume, &planned)?;
    Ok((arrays, TaskRun::new(remote, &run, count, options.overwrite)))
}

fn changed(run: &TaskRun, what: &'static str) -> Error {
    Error::OutputModified {
        path: run.path.clone(),
        what,
    }
}
