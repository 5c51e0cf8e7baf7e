//! The check of a complete output: notes of all chunks, and all objects as they are noted. Then it is published.

use std::collections::BTreeMap;

use super::super::super::Layout;
use super::super::super::OutputPart;
use super::super::super::chunk_set::ChunkSet;
use super::super::super::create::CreateOptions;
use super::super::super::pyramid::{Level, Pyramid};
use super::super::super::resume::ResumeOptions;
use super::super::arrays::{Arrays, LevelArray};
use super::super::coarser::rebuilding_threads;
use super::super::document::{PlannedLevel, sizes};
use super::super::resume::run;
use super::claim::TaskRun;
use super::note::{self, Note, NoteName, NotedChunk, Stored, is_note};
use super::{CLAIM, coarser, create_same};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::region::Region;
use crate::store::{Listed, Part, Remote};

/// An output and the run that writes it.
#[derive(Debug)]
pub(super) struct RunOutput {
    pub(super) run: TaskRun,
    pub(super) arrays: Arrays,
    pub(super) planned: Vec<PlannedLevel>,
    pub(super) sizes: Vec<Level>,
    pub(super) pyramid: Option<Pyramid>,
    /// Threads that make coarser levels from finished chunks.
    pub(super) threads: usize,
}

impl RunOutput {
    /// Describes an output that a run writes in `count` parts. Nothing is requested.
    pub(super) fn new(
        remote: Remote,
        (layout, options): (&Layout, &CreateOptions),
        resume: &ResumeOptions,
        count: u32,
    ) -> Result<Self> {
        let (arrays, planned) = Arrays::planned(layout, options)?;
        let described = run(layout, options, resume, &planned)?;
        let counts = (planned.len(), count);
        Ok(Self {
            run: TaskRun::new(remote, &described, counts, options.overwrite),
            arrays,
            sizes: sizes(&planned),
            planned,
            pyramid: options.pyramid,
            threads: rebuilding_threads(layout, resume),
        })
    }
}

/// What is left to do for a complete output.
#[derive(Debug)]
pub(super) struct Checked {
    /// Objects of an old output, or of a process that was killed.
    stale: Vec<String>,
}

impl Checked {
    /// Checks that there are notes of all chunks of the finest level, and that their objects are as they are noted. Makes
    /// the chunks of coarser levels that have no such note. Returns `None` if another process has published the output.
    pub(super) fn new(output: &RunOutput, progress: Progress<'_>) -> Result<Option<Self>> {
        let run = &output.run;
        match Self::completed(output, progress) {
            // Objects that another process removes or writes when it publishes the output.
            Err(error) => match run.is_published() {
                Ok(true) => {
                    if output.pyramid.is_some() {
                        // The note may have come after the others were removed.
                        let _ = run.remove(&[NoteName::Coarser]);
                    }
                    Ok(None)
                }
                _ => Err(error),
            },
            checked => checked.map(Some),
        }
    }

    fn completed(output: &RunOutput, progress: Progress<'_>) -> Result<Self> {
        let run = &output.run;
        let mut note = Note::default();
        if output.pyramid.is_some() {
            note = run.note(NoteName::Coarser)?.unwrap_or_default();
        }
        let mut found = Found::of(output, &note)?;
        if !found.is_complete() {
            found.mark(&output.arrays);
            // Another run of a part may replace its note by one without what this one found there.
            let note = coarser::make(output, found.coarser, progress)?;
            found = Found::of(output, &note)?;
            if !found.is_complete() {
                return Err(changed(run, "others write its coarser levels"));
            }
        }
        Ok(Self { stale: found.stale })
    }

    /// Writes the metadata, and removes what is not needed any more.
    pub(super) fn publish(self, run: &TaskRun) -> Result<()> {
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

/// The objects of an output whose finest level is complete.
struct Found {
    /// The chunks of each level that are as they are noted.
    chunks: Vec<ChunkSet>,
    /// Those of coarser levels.
    coarser: Note,
    /// The objects that are not these chunks.
    stale: Vec<String>,
}

impl Found {
    /// Compares all objects with the notes: those of the parts, and `coarser`.
    fn of(output: &RunOutput, coarser: &Note) -> Result<Self> {
        let RunOutput { run, arrays, .. } = output;
        let Some(claim) = run.claim(true)? else {
            return Err(changed(run, "its claim is gone"));
        };
        let listed = run.remote.list(&run.path, usize::MAX)?.into_iter();
        let mut objects = Objects {
            listed: listed.map(|one| (one.name.clone(), one)).collect(),
            found: arrays.levels().iter().map(LevelArray::no_chunks).collect(),
            coarser: Note::default(),
        };
        // The chunks of coarser levels that were written last are in this note.
        for (chunk, stored) in &coarser.chunks {
            if chunk.0 > 0 {
                objects.take(output, *chunk, stored.as_ref())?;
            }
        }
        let mut damaged = Vec::new();
        for index in 0..run.count {
            let part = OutputPart::new(index, run.count)?;
            let name = NoteName::Complete(part);
            let object = format!("{}/{}", note::folder(&run.id), name.object());
            if objects.listed.remove(&object).is_none() {
                continue;
            }
            let is_sound = match run.note(name)? {
                Some(note) => objects.take_part(output, &note)?,
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
        let Objects {
            listed,
            found,
            coarser,
        } = objects;
        let whole = Region::whole(arrays.layout().shape);
        if let Some(missing) = arrays.missing(&found[0], whole) {
            return Err(Error::MissingChunks { path, missing });
        }
        let is_own = |name: &String| {
            let is_document = run.documents.iter().any(|(own, _)| own == name);
            name == CLAIM || is_document || is_note(name)
        };
        let others = listed.into_keys().filter(|name| !is_own(name));
        let stale: Vec<String> = others.collect();
        let may_be_left = |name: &String| {
            run.level_of(name).is_some_and(|level| {
                claim.replaces || arrays.levels()[level].is_key_of_chunk(level, name)
            })
        };
        if !stale.iter().all(may_be_left) {
            return Err(changed(
                run,
                "it has other objects than those that were written",
            ));
        }
        Ok(Self {
            chunks: found,
            coarser,
            stale,
        })
    }

    /// Returns `true` if no chunk is missing.
    fn is_complete(&self) -> bool {
        let is_whole = |it: &ChunkSet| it.all().all(|(channel, index)| it.has(channel, index));
        self.chunks.iter().all(is_whole)
    }

    /// Marks the chunks of coarser levels that were found as written, and no others.
    fn mark(&self, arrays: &Arrays) {
        for (array, found) in arrays.levels().iter().zip(&self.chunks).skip(1) {
            for (channel, index) in found.all() {
                if found.has(channel, index) {
                    array.written.set(channel, index);
                } else {
                    array.written.clear(channel, index);
                }
            }
        }
    }
}

/// The objects below an output while they are compared with notes.
struct Objects {
    /// Those that were not found in a note, by name.
    listed: BTreeMap<String, Listed>,
    /// The chunks of each level that are as they are noted.
    found: Vec<ChunkSet>,
    /// Those of coarser levels.
    coarser: Note,
}

impl Objects {
    /// Takes the chunks of a part's note. Returns `false` if one of the finest level is not as it is noted, or belongs to
    /// another part, too.
    fn take_part(&mut self, output: &RunOutput, note: &Note) -> Result<bool> {
        let mut is_sound = true;
        for (chunk, stored) in &note.chunks {
            let is_taken = self.take(output, *chunk, stored.as_ref())?;
            // A chunk of a coarser level can be made again.
            is_sound &= is_taken || chunk.0 > 0;
        }
        Ok(is_sound)
    }

    /// Takes a chunk of a note, and its object. Returns `false` if it was taken before, or is not as it is noted.
    fn take(
        &mut self,
        output: &RunOutput,
        (level, [c, z, y, x]): NotedChunk,
        stored: Option<&Stored>,
    ) -> Result<bool> {
        let index = [z, y, x];
        let Some(found) = self.found.get(level) else {
            return Ok(false);
        };
        if !found.holds(c, index) || found.has(c, index) {
            return Ok(false);
        }
        if let Some(stored) = stored {
            let key = output.arrays.levels()[level].key(level, c, index);
            if !is_as_noted(&output.run, self.listed.get(&key), stored)? {
                return Ok(false);
            }
            self.listed.remove(&key);
        }
        found.set(c, index);
        if level > 0 {
            let chunk = (level, [c, z, y, x]);
            self.coarser.chunks.insert(chunk, stored.cloned());
        }
        Ok(true)
    }
}

/// Returns `true` if an object is there as it was noted. Where every write gives another entity tag, one that was written
/// twice is read.
fn is_as_noted(run: &TaskRun, object: Option<&Listed>, stored: &Stored) -> Result<bool> {
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

pub(super) fn changed(run: &TaskRun, what: &'static str) -> Error {
    Error::OutputModified {
        path: run.path.clone(),
        what,
    }
}
