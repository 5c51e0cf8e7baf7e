//! Outputs in a store that several processes write, or several runs of one process.
//!
//! Each chunk is put under its final key, by any number of processes with the same bytes. A part that is finished is
//! noted, with the checksums of its objects; so is, from time to time, what an unfinished part has written. Chunks of coarser
//! levels are made by the part that writes everything that they depend on. The output is published by any process that finds
//! notes of all chunks, and all objects as they are noted: it makes the other chunks of coarser levels, the metadata are put
//! last, on the condition that they do not exist, and then the notes and the claim are removed.
//!
//! A process that is killed leaves at worst objects that nothing notes, and its part is written again. A slow process
//! may put a chunk after the output was published: it has the bytes that are there.

use std::mem;
use std::ops::Range;

use super::super::super::create::CreateOptions;
use super::super::super::needs::upload_bytes;
use super::super::super::partial::OutputPart;
use super::super::super::resume::{OutputProgress, ResumeOptions, RunParts};
use super::super::super::{ChunkShape, Layout};
use super::super::arrays::{Arrays, ChunkPlace};
use super::super::encode::UnencodedChunk;
use super::super::resume::check_owned;
use super::check::{Checked, RunOutput, changed};
use super::claim::Claim;
use super::note::NoteName;
use super::recorder::Recorder;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::region::Region;
use crate::store::Remote;

/// A part of an output in a store under construction.
#[derive(Debug)]
pub(in super::super::super) struct ObjectsPart {
    output: RunOutput,
    part: OutputPart,
    owned: Region,
    recorder: Recorder,
    /// Whether the part has a note that it is finished.
    is_complete: bool,
}

impl ObjectsPart {
    /// Starts or resumes a part. Returns `None` if the run has published the output.
    pub(in super::super::super) fn open(
        remote: Remote,
        layout: &Layout,
        options: &CreateOptions,
        resume: &ResumeOptions,
    ) -> Result<Option<Self>> {
        let (part, owned) = (resume.part, check_owned(layout, resume)?);
        let mut output = RunOutput::new(remote, (layout, options), resume, part.count())?;
        let run = &output.run;
        if !run.enter()? {
            return Ok(None);
        }
        let complete = run.note(NoteName::Complete(part))?;
        let is_complete = complete.is_some();
        let note = match complete {
            Some(note) => Some(note),
            // The notes are removed when the output is published.
            None if run.is_published()? => {
                run.tidy()?;
                return Ok(None);
            }
            None => run.note(NoteName::Begun(part))?,
        };
        let note = note.unwrap_or_default();
        for &(level, [c, z, y, x]) in note.chunks.keys() {
            let array = output.arrays.levels().get(level);
            if let Some(array) = array.filter(|array| array.written.holds(c, [z, y, x])) {
                array.written.set(c, [z, y, x]);
            }
        }
        if options.pyramid.is_some() && (!note.chunks.is_empty() || part.count() > 1) {
            let made = output.arrays.made_in_passing(&output.sizes, owned);
            output.arrays = output.arrays.only(made);
        }
        let limit = upload_bytes(layout);
        Ok(Some(Self {
            recorder: Recorder::new(&output.run, NoteName::Begun(part), limit, note),
            output,
            part,
            owned,
            is_complete,
        }))
    }

    pub(in super::super::super) fn owned(&self) -> Region {
        self.owned
    }

    pub(in super::super::super) const fn arrays(&self) -> &Arrays {
        &self.output.arrays
    }

    pub(in super::super::super) fn write_channels(
        &self,
        channels: Range<u64>,
        region: Region,
        voxels: &[u8],
    ) -> Result<()> {
        if !self.owned.contains(&region) {
            return Err(Error::NotOwned {
                path: self.output.run.path.clone(),
                region,
                owned: self.owned,
            });
        }
        let keep = |place: &ChunkPlace, chunk: &UnencodedChunk<'_>| {
            chunk.put(|encoded| {
                let kept = self.recorder.keep(&self.output.run, place, encoded);
                kept.map(|_| ())
            })
        };
        self.output.arrays.write(channels, region, voxels, &keep)
    }

    /// Notes that the part is finished.
    fn complete(&mut self) -> Result<()> {
        let RunOutput { run, arrays, .. } = &self.output;
        if let Some(missing) = arrays.missing(&arrays.levels()[0].written, self.owned) {
            return Err(Error::MissingChunks {
                path: run.path.clone(),
                missing,
            });
        }
        self.recorder.wait()?;
        if mem::replace(&mut self.is_complete, true) {
            return Ok(());
        }
        let note = self.recorder.take_note();
        if !self.is_overtaken()? {
            run.put_note(NoteName::Complete(self.part), &note)?;
            if !self.is_overtaken()? {
                return Ok(());
            }
        }
        // Its notes may have come after the others were removed.
        run.remove_notes(self.part)
    }

    /// Returns `true` if other processes of the run have published the output.
    fn is_overtaken(&self) -> Result<bool> {
        let run = &self.output.run;
        if run.has_claim()? {
            return Ok(false);
        }
        if run.is_published()? {
            return Ok(true);
        }
        Err(changed(run, "another run has claimed it"))
    }

    /// Finishes parts of one run, and publishes the outputs of which they are the only ones. None is published before all
    /// are complete.
    pub(in super::super::super) fn finish_all(
        parts: Vec<Self>,
        progress: Progress<'_>,
    ) -> Result<()> {
        let mut whole = Vec::new();
        for mut part in parts {
            part.complete()?;
            if part.part.count() == 1 {
                whole.push(part);
            }
        }
        let checked = whole
            .iter()
            .map(|part| Checked::new(&part.output, progress));
        let checked: Vec<_> = checked.collect::<Result<_>>()?;
        for (part, checked) in whole.iter().zip(checked) {
            if let Some(checked) = checked {
                checked.publish(&part.output.run)?;
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
        self.recorder.give_up(&self.output.run);
    }
}

/// An output of which all parts are finished, and were found as they are noted.
#[derive(Debug)]
pub(in super::super::super) struct ObjectsParts {
    output: RunOutput,
    checked: Checked,
}

impl ObjectsParts {
    /// Opens and checks all parts of an output. Returns `None` if the run has published it.
    pub(in super::super::super) fn open(
        remote: Remote,
        (layout, options): (&Layout, &CreateOptions),
        resume: &ResumeOptions,
        parts: RunParts,
        progress: Progress<'_>,
    ) -> Result<Option<Self>> {
        let output = RunOutput::new(remote, (layout, options), resume, parts.count)?;
        let run = &output.run;
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
                    path: run.path.clone(),
                    missing: "every chunk: no part has been started".to_owned(),
                });
            }
        }
        let checked = Checked::new(&output, progress)?;
        Ok(checked.map(|checked| Self { output, checked }))
    }

    /// Returns what the notes of an output have.
    pub(in super::super::super) fn progress(
        remote: Remote,
        layout: &Layout,
        options: &CreateOptions,
        resume: &ResumeOptions,
    ) -> Result<OutputProgress> {
        let output = RunOutput::new(remote, (layout, options), resume, resume.part.count())?;
        let RunOutput { run, arrays, .. } = &output;
        let look = || -> Result<(Option<Claim>, bool)> {
            let claim = run.claim(false)?;
            let may_be = claim.is_none_or(|claim| !claim.is_clearing);
            Ok((claim, may_be && run.is_published()?))
        };
        let published = OutputProgress {
            published: true,
            ..OutputProgress::default()
        };
        let mut found = OutputProgress::default();
        let (claim, is_published) = look()?;
        if is_published {
            return Ok(published);
        }
        let Some(claim) = claim else {
            return Ok(found);
        };
        found.parts = Some(claim.parts);
        for name in run.noted()? {
            let part = match name {
                NoteName::Complete(part) | NoteName::Begun(part) => part,
                NoteName::Coarser => continue,
            };
            if part.count() != claim.parts {
                continue;
            }
            if name == NoteName::Complete(part) {
                found.complete.insert(part.index());
                continue;
            }
            let chunks = found.done.entry(part.index()).or_default();
            if let Some(note) = run.note(name)? {
                let finest = &arrays.levels()[0].written;
                let inside = |&(level, [c, z, y, x]): &(usize, ChunkShape)| {
                    level == 0 && finest.holds(c, [z, y, x])
                };
                let noted = note.chunks.into_keys().filter(inside);
                chunks.extend(noted.map(|(_, index)| index));
            }
        }
        // Another process may have published the output in between, and removed its notes.
        let (_, is_published) = look()?;
        Ok(if is_published { published } else { found })
    }

    /// Publishes outputs that were opened.
    pub(in super::super::super) fn publish_all(outputs: Vec<Self>) -> Result<()> {
        for Self { output, checked } in outputs {
            checked.publish(&output.run)?;
        }
        Ok(())
    }
}
