//! Outputs that survive the end of their process and are gone on with by the next.
//!
//! [`create`](super::create) makes an output in one go; [`resumable`] makes one that may take
//! several runs, or several processes that each own some of its write chunks. Until it is whole it
//! grows in a folder `.NAME.partial` beside its name. Which chunks are done is asked of the output:
//! only the others have to be made.

use std::ops::Range;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::zarr::ZarrResumable;
use super::{
    ChunkShape, CreateOptions, Durability, Format, Layout, Part, VolumeMut, planned, space, staged,
};
use crate::error::{Error, Result};
use crate::region::Region;
use crate::threads::threads;

/// What makes a run the same as the one that began the output.
#[derive(Clone, Debug)]
pub struct ResumeOptions {
    /// A JSON object of all that the voxels depend on (grid, window, model, input, ...). A run in
    /// which any of it differs is refused. Shape, type, chunks, codecs and place are compared
    /// without being named here.
    pub fingerprint: Json,
    /// Which part of the output this process writes.
    pub part: Part,
    /// What this part owns: whole write chunks, no other part's; everything if not given.
    pub owned: Option<Region>,
    /// What finished chunks survive.
    pub durability: Durability,
    /// Threads that make coarser levels of what is read back.
    pub threads: usize,
    /// Bytes that these may take together; one of them works in any case.
    pub memory: u64,
}

impl Default for ResumeOptions {
    fn default() -> Self {
        Self {
            fingerprint: json!({}),
            part: Part::WHOLE,
            owned: None,
            durability: Durability::None,
            threads: threads(),
            memory: 256 << 20,
        }
    }
}

/// An output, or a part of one, that can be gone on with.
///
/// Chunks that an earlier run has finished are done ([`is_done`](Self::is_done)); to write them
/// again is an error. Dropped unfinished, it stays as it is for the next run.
///
/// [`finish`](VolumeMut::finish) of the only part makes what is missing of the coarser levels and
/// gives the output its name; of one of several it only checks that the part is complete, and
/// [`finalize`] does the rest. A coarser chunk is made in passing as long as all that it is made of
/// is written by one run of one part; others are made at the end, of what is read back.
#[derive(Debug)]
pub struct Resumable(Box<ZarrResumable>);

impl Resumable {
    /// What this part owns.
    #[must_use]
    pub fn owned(&self) -> Region {
        self.0.owned()
    }

    /// Whether the write chunk at `index` (c, z, y, x) is done; false if there is no such chunk.
    #[must_use]
    pub fn is_done(&self, index: ChunkShape) -> bool {
        self.0.is_done(index)
    }

    /// The write chunks (c, z, y, x) of this part that are not done, channels slowest, x fastest.
    pub fn pending(&self) -> impl Iterator<Item = ChunkShape> {
        self.0.pending()
    }
}

impl VolumeMut for Resumable {
    fn layout(&self) -> &Layout {
        self.0.layout()
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        self.0.write_channels(channels, region, voxels)
    }

    fn waiting_bytes(&self, order: [usize; 3]) -> u64 {
        self.0.waiting_bytes(order)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.0.finish()
    }
}

/// Begins an output at `path`, or goes on with it; `layout` and `options` as for
/// [`create`](super::create).
///
/// # Errors
///
/// As [`create`](super::create); [`Error::Unsupported`] if the output is no Zarr,
/// [`Error::Locked`] if another process writes the same part, [`Error::OtherRun`] if it was begun
/// with other settings, [`Error::PartialChunk`] if a part would own pieces of write chunks, and
/// [`Error::Setting`] if it would own another's. An output that was begun is gone on with however little
/// space is left.
pub fn resumable(
    path: &Path,
    layout: &Layout,
    options: &CreateOptions,
    resume: &ResumeOptions,
) -> Result<Resumable> {
    let layout = resumable_layout(path, layout, options)?;
    staged::place(path, options.replace)?;
    space::check(&layout, options, true)?;
    let output = ZarrResumable::open(&layout, options, resume)?;
    Ok(Resumable(Box::new(output)))
}

/// Puts an output together of `parts` parts that are all complete: makes the chunks of coarser
/// levels that no part could make alone, and gives the output its name. The other arguments are
/// those of every part, of which [`ResumeOptions::part`] and `owned` are not looked at.
///
/// # Errors
///
/// [`Error::MissingChunks`] if parts are not complete, [`Error::Locked`] if one is being
/// written, [`Error::Exists`] if another process has done it, and otherwise as [`resumable`].
pub fn finalize(
    path: &Path,
    layout: &Layout,
    options: &CreateOptions,
    resume: &ResumeOptions,
    parts: u32,
) -> Result<()> {
    let layout = resumable_layout(path, layout, options)?;
    ZarrResumable::finalize(&layout, options, resume, parts)
}

fn resumable_layout(path: &Path, layout: &Layout, options: &CreateOptions) -> Result<Layout> {
    let layout = planned(path, layout, options)?;
    match layout.format {
        Format::Zarr2 | Format::Zarr3 => Ok(layout),
        _ => Err(Error::unsupported(
            path,
            "only Zarr outputs can be gone on with after an interruption",
        )),
    }
}

#[cfg(test)]
mod tests;
