//! Coarser levels that are made from the chunks of a complete finest level, before an output is published.
//!
//! Any process may do this, and two at once: they put the same bytes. What was made is noted from time to time, so that a
//! process that follows a killed one makes the rest.

use super::super::super::needs::upload_bytes;
use super::super::super::options::OpenOptions;
use super::super::ZarrVolume;
use super::super::arrays::ChunkPlace;
use super::super::coarser::{Levels, rebuild};
use super::super::encode::UnencodedChunk;
use super::super::store::Objects;
use super::check::{RunOutput, changed};
use super::note::{Note, NoteName};
use super::recorder::Recorder;
use crate::error::Result;
use crate::progress::Progress;

/// Makes the chunks of coarser levels that are not marked as written. Returns the note that has them, and those of `note`.
/// If `progress` stops this, what has arrived is noted.
pub(super) fn make(output: &RunOutput, note: Note, progress: Progress<'_>) -> Result<Note> {
    let limit = upload_bytes(output.arrays.layout());
    let maker = Maker {
        output,
        recorder: Recorder::new(&output.run, NoteName::Coarser, limit, note),
    };
    let levels = (&output.arrays, &*output.sizes);
    let how = (output.pyramid, output.threads);
    match rebuild(levels, how, &maker, progress) {
        Ok(()) => Ok(maker.recorder.take_note()),
        Err(error) => {
            maker.recorder.give_up(&output.run);
            Err(error)
        }
    }
}

struct Maker<'a> {
    output: &'a RunOutput,
    recorder: Recorder,
}

impl Levels for Maker<'_> {
    fn open(&self, level: usize) -> Result<ZarrVolume> {
        let RunOutput { run, planned, .. } = self.output;
        let planned = &planned[level];
        let path = run.path.join(level.to_string());
        let store = Objects::new(&run.remote, &path);
        let mut volume = ZarrVolume::with_store(
            (&path, planned.layout.format, &[]),
            Box::new(store),
            &planned.document,
            &OpenOptions::default(),
        )?;
        volume.set_remote();
        Ok(volume)
    }

    fn keep(&self, place: &ChunkPlace, chunk: &UnencodedChunk<'_>) -> Result<bool> {
        chunk.put(|encoded| {
            let kept = self.recorder.keep(&self.output.run, place, encoded);
            self.check_claim(kept?)
        })
    }

    fn settle(&self) -> Result<()> {
        let settled = self.recorder.settle(&self.output.run);
        self.check_claim(settled?)
    }
}

impl Maker<'_> {
    /// Ends the work if another process has published or replaced the output.
    fn check_claim(&self, has_claim: bool) -> Result<()> {
        if has_claim {
            return Ok(());
        }
        Err(changed(&self.output.run, "another run has claimed it"))
    }
}
