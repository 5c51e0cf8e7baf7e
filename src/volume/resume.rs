//! Resumable outputs: written over several runs, or by several processes.
//!
//! [`create`](super::create) writes an output in one run. [`resumable`] writes one over several
//! runs, or by several processes that each own some of its write chunks. Until it is complete, the
//! output is in a folder `.NAME.partial` next to its final name, or, in an object store, under its final name without
//! metadata. The output reports which chunks are done, so only the others need to be computed. Outputs of one run are
//! published together.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::options::setters;
use super::zarr::{Arrays, ObjectsPart, ObjectsParts, ZarrResumable};
use super::{
    ChunkShape, CreateOptions, Durability, Format, Layout, OutputPart, VolumeMut, output_layout,
    partial, space, zarr,
};
use crate::error::{Error, Result};
use crate::progress::{Progress, silent};
use crate::region::Region;
use crate::threads::{DEFAULT_MEMORY, threads};

/// Options for a resumable output.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ResumeOptions {
    /// A JSON object with everything that the voxels depend on (grid, window, model, input, ...). A run with a
    /// different object cannot resume the output. Shape, type, chunks, codecs and geometry are always compared and need
    /// not be in it.
    pub fingerprint: Json,
    /// The part of the output that this process writes.
    pub part: OutputPart,
    /// The region that this part owns: whole write chunks that no other part owns. `None` for the
    /// whole output.
    pub owned: Option<Region>,
    /// The failures that finished chunks survive.
    pub durability: Durability,
    /// Threads that compute coarser levels from finished chunks.
    pub threads: usize,
    /// Bytes that these threads may use together; one of them always runs.
    pub memory: u64,
    /// The paths of all outputs of the run, including this one, in the same order in every process:
    /// they are published together once all are complete. Empty if this is the only output.
    pub group: Vec<PathBuf>,
    /// Whether opening an output that this run has published is not an error, even if it has a single part. One of
    /// several parts may always come late.
    pub repeats: bool,
}

impl Default for ResumeOptions {
    fn default() -> Self {
        Self {
            fingerprint: json!({}),
            part: OutputPart::WHOLE,
            owned: None,
            durability: Durability::None,
            threads: threads(),
            memory: DEFAULT_MEMORY,
            group: Vec::new(),
            repeats: false,
        }
    }
}

impl ResumeOptions {
    setters! {
        /// Sets the object that identifies the run.
        with_fingerprint(fingerprint: Json);
        /// Sets the part of the output that this process writes.
        with_part(part: OutputPart);
        /// Sets the region that this part owns.
        with_owned(owned: Option<Region>);
        /// Sets the failures that finished chunks survive.
        with_durability(durability: Durability);
        /// Sets the threads that compute coarser levels.
        with_threads(threads: usize);
        /// Sets the bytes that these threads may use together.
        with_memory(memory: u64);
        /// Sets the paths of all outputs of the run.
        with_group(group: Vec<PathBuf>);
        /// Sets whether opening a published output of this run is not an error.
        with_repeats(repeats: bool);
    }
}

/// A resumable output, or a part of one.
///
/// Chunks that an earlier run has finished are done ([`is_done`](Self::is_done)); writing them again is an error. An
/// unfinished output that is dropped keeps its data for the next run.
///
/// [`finish`](VolumeMut::finish) of the only part computes the missing chunks of coarser levels and publishes the
/// output. For one of several parts it only checks that the part is complete, and [`finalize`] does the rest. A coarser
/// chunk is computed during the run if a single run of a single part writes everything that it depends on; other
/// coarser chunks are computed at the end, from the finished chunks.
///
/// If the run has already published the output, all chunks are done and there is nothing to finish. This happens if its
/// process was killed right after publishing, or if a part comes late.
#[derive(Debug)]
pub struct Resumable(OutputState);

#[derive(Debug)]
enum OutputState {
    Growing(Box<ZarrResumable>),
    /// An output in a store.
    InStore(Box<ObjectsPart>),
    /// An output that has its final name.
    Finished(Box<Layout>),
}

impl Resumable {
    /// Returns the region that this part owns.
    #[must_use]
    pub fn owned(&self) -> Region {
        match &self.0 {
            OutputState::Growing(output) => output.owned(),
            OutputState::InStore(output) => output.owned(),
            OutputState::Finished(layout) => Region::whole(layout.shape),
        }
    }

    /// Returns `true` if the write chunk at `index` (c, z, y, x) exists and is done.
    #[must_use]
    pub fn is_done(&self, index: ChunkShape) -> bool {
        match &self.0 {
            OutputState::Growing(output) => output.arrays().is_done(index),
            OutputState::InStore(output) => output.arrays().is_done(index),
            OutputState::Finished(layout) => {
                let [_, chunk @ ..] = layout.write_chunk.unwrap_or([1; 4]);
                let [c, space @ ..] = index;
                let inside = |a: usize| space[a] < layout.shape[a].div_ceil(chunk[a]);
                c < layout.channels && (0..3).all(inside)
            }
        }
    }

    /// Returns `true` if the write chunk at `index` (c, z, y, x) belongs to this part and is not done.
    pub(crate) fn is_pending(&self, index: ChunkShape) -> bool {
        let growing = self.growing();
        growing.is_some_and(|(arrays, owned)| arrays.is_pending(owned, index))
    }

    /// Iterates over the write chunks (c, z, y, x) of this part that are not done, channels slowest, x fastest.
    pub fn pending(&self) -> impl Iterator<Item = ChunkShape> {
        let growing = self.growing().into_iter();
        growing.flat_map(|(arrays, owned)| arrays.pending(owned))
    }

    /// Returns the arrays and the owned region of an output that is not published.
    fn growing(&self) -> Option<(&Arrays, Region)> {
        match &self.0 {
            OutputState::Growing(output) => Some((output.arrays(), output.owned())),
            OutputState::InStore(output) => Some((output.arrays(), output.owned())),
            OutputState::Finished(_) => None,
        }
    }
}

impl VolumeMut for Resumable {
    fn layout(&self) -> &Layout {
        match &self.0 {
            OutputState::Growing(output) => output.layout(),
            OutputState::InStore(output) => output.arrays().layout(),
            OutputState::Finished(layout) => layout,
        }
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        match &self.0 {
            OutputState::Growing(output) => output.write_channels(channels, region, voxels),
            OutputState::InStore(output) => output.write_channels(channels, region, voxels),
            OutputState::Finished(layout) => Err(Error::ChunkWritten {
                path: layout.path.clone(),
                key: format!("at [{region}]"),
            }),
        }
    }

    fn pyramid_buffer_bytes(&self, order: [usize; 3]) -> u64 {
        match &self.0 {
            OutputState::Growing(output) => output.pyramid_buffer_bytes(order),
            OutputState::InStore(output) => output.arrays().pyramid_buffer_bytes(order),
            OutputState::Finished(_) => 0,
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        finish_all(vec![*self])
    }
}

/// Finishes the outputs of a run as [`VolumeMut::finish`] finishes one. None gets its name before all are complete.
///
/// # Errors
///
/// [`Error::MissingChunks`] if an output is not complete, [`Error::Exists`] or [`Error::NotOverwritable`] if its name
/// has been taken, [`Error::Io`] if a file cannot be written or renamed.
pub fn finish_all(outputs: Vec<Resumable>) -> Result<()> {
    finish_within(outputs, &silent)
}

/// As [`finish_all`]; `progress` may stop the making of coarser levels. What was made is kept for the next run.
pub(crate) fn finish_within(outputs: Vec<Resumable>, progress: Progress<'_>) -> Result<()> {
    let (mut growing, mut in_stores) = (Vec::new(), Vec::new());
    for output in outputs {
        match output.0 {
            OutputState::Growing(output) => growing.push(*output),
            OutputState::InStore(output) => in_stores.push(*output),
            OutputState::Finished(_) => {}
        }
    }
    for output in &growing {
        output.check_complete()?;
    }
    ObjectsPart::finish_all(in_stores, progress)?;
    ZarrResumable::finish_all(growing, progress)
}

/// Starts or resumes an output at `path`; `layout` and `options` are as for [`create`](super::create).
///
/// # Errors
///
/// As [`create`](super::create); [`Error::Unsupported`] if the output is not Zarr, [`Error::Locked`] if another process
/// is writing the same part, [`Error::RunMismatch`] if the output was started with different settings,
/// [`Error::PartialChunk`] if a part would own only a piece of a write chunk, and [`Error::InvalidArgument`] if it
/// would own voxels of another part. A started output is resumed regardless of the free space.
pub fn resumable(
    path: impl AsRef<Path>,
    layout: &Layout,
    options: &CreateOptions,
    resume: &ResumeOptions,
) -> Result<Resumable> {
    let layout = resumable_layout(path.as_ref(), layout, options)?;
    space::check(&layout, options, true)?;
    if let Some(remote) = zarr::store_of(&layout.path, options)? {
        let output = ObjectsPart::open(remote, &layout, options, resume)?;
        return Ok(Resumable(match output {
            Some(output) => OutputState::InStore(Box::new(output)),
            None => OutputState::Finished(Box::new(layout)),
        }));
    }
    let output = ZarrResumable::open(&layout, options, resume)?;
    Ok(Resumable(match output {
        Some(output) => OutputState::Growing(Box::new(output)),
        None => OutputState::Finished(Box::new(layout)),
    }))
}

/// Returns the options of the unfinished output at `path`, with which it can be resumed. `None` if
/// there is none, or if its metadata is incomplete.
///
/// # Errors
///
/// [`Error::InvalidArgument`] if the path has no file name.
pub fn partial_options(path: impl AsRef<Path>) -> Result<Option<CreateOptions>> {
    begun_options(path.as_ref(), &CreateOptions::default())
}

/// As [`partial_options`]; `options` say how a store is opened.
pub(crate) fn begun_options(path: &Path, options: &CreateOptions) -> Result<Option<CreateOptions>> {
    if let Some(remote) = zarr::store_of(path, options)? {
        return zarr::begun_options(&remote, path);
    }
    Ok(partial::data_folder(path)?.and_then(|data| zarr::partial_options(&data)))
}

/// Publishes an output of `parts` complete parts: computes the chunks of coarser levels that no part could compute
/// alone, and gives the output its name. The other arguments must be those of every part; [`ResumeOptions::part`] and
/// `owned` are ignored. Succeeds if another process of the run is known to have published it already.
///
/// # Errors
///
/// [`Error::MissingChunks`] if parts are not complete, [`Error::Locked`] if one is being written, [`Error::Exists`] if
/// the name is taken by something that is not known to belong to this run, and otherwise as [`resumable`].
pub fn finalize(
    path: &Path,
    layout: &Layout,
    options: &CreateOptions,
    resume: &ResumeOptions,
    parts: u32,
) -> Result<()> {
    let output = OutputRequest {
        path,
        layout,
        options,
        resume,
    };
    let parts = RunParts {
        count: parts,
        wrote_part: false,
    };
    finalize_all(&[output], parts, &silent)
}

/// The finished chunks of an output, as its journals have them.
#[derive(Clone, Debug, Default)]
pub(crate) struct OutputProgress {
    /// Whether this run has published it.
    pub(crate) published: bool,
    /// The number of parts, if one has begun.
    pub(crate) parts: Option<u32>,
    /// The parts that are finished, as far as they are not in `done`.
    pub(crate) complete: BTreeSet<u32>,
    /// The finished write chunks (c, z, y, x) of each part that has begun.
    pub(crate) done: BTreeMap<u32, BTreeSet<ChunkShape>>,
}

/// Returns the progress of an output. The arguments are those of [`finalize`].
pub(crate) fn output_progress(
    path: &Path,
    layout: &Layout,
    options: &CreateOptions,
    resume: &ResumeOptions,
) -> Result<OutputProgress> {
    let layout = resumable_layout(path, layout, options)?;
    if let Some(remote) = zarr::store_of(&layout.path, options)? {
        return ObjectsParts::progress(remote, &layout, options, resume);
    }
    ZarrResumable::progress(&layout, options, resume)
}

/// An output to publish: the arguments of [`finalize`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputRequest<'a> {
    pub(crate) path: &'a Path,
    pub(crate) layout: &'a Layout,
    pub(crate) options: &'a CreateOptions,
    pub(crate) resume: &'a ResumeOptions,
}

/// The parts of each output of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunParts {
    /// The number of parts.
    pub(crate) count: u32,
    /// `true` if this process has written one of them.
    pub(crate) wrote_part: bool,
}

/// Publishes all outputs of a run together, as [`finalize`] publishes one, once all are complete. `progress` may stop the
/// making of coarser levels.
pub(crate) fn finalize_all(
    outputs: &[OutputRequest<'_>],
    parts: RunParts,
    progress: Progress<'_>,
) -> Result<()> {
    let (mut growing, mut in_stores) = (Vec::new(), Vec::new());
    for output in outputs {
        let (options, resume) = (output.options, output.resume);
        let layout = resumable_layout(output.path, output.layout, options)?;
        if let Some(remote) = zarr::store_of(&layout.path, options)? {
            in_stores.extend(ObjectsParts::open(
                remote,
                (&layout, options),
                resume,
                parts,
                progress,
            )?);
        } else {
            growing.extend(ZarrResumable::open_all(&layout, options, resume, parts)?);
        }
    }
    for output in &growing {
        output.check_complete()?;
    }
    ObjectsParts::publish_all(in_stores)?;
    ZarrResumable::finish_all(growing, progress)
}

/// Checks that an output can be resumed and written in parts.
pub(crate) fn check_resumable(layout: &Layout) -> Result<()> {
    match layout.format {
        Format::Zarr2 | Format::Zarr3 => Ok(()),
        _ => {
            let what = "only Zarr outputs can be resumed or written in parts";
            Err(Error::unsupported(&layout.path, what))
        }
    }
}

fn resumable_layout(path: &Path, layout: &Layout, options: &CreateOptions) -> Result<Layout> {
    let layout = output_layout(path, layout, options)?;
    check_resumable(&layout)?;
    Ok(layout)
}

#[cfg(test)]
mod tests;
