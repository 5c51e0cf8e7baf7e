//! Chunks of coarser levels that are made at the end, from chunks of finer levels that are read back.

use std::cell::RefCell;

use rayon::iter::{ParallelBridge, ParallelIterator};

use super::super::pyramid::{Finer, Level, LevelSource, Pyramid, rebuilt, rebuilt_at_once};
use super::super::resume::ResumeOptions;
use super::super::{Layout, Volume, needs, rebuilding_bytes};
use super::ZarrVolume;
use super::arrays::{Arrays, ChunkPlace};
use super::encode::UnencodedChunk;
use crate::error::{Error, Result};
use crate::progress::{Progress, report};
use crate::region::{Region, chunk_range, indices};
use crate::threads::pool;

/// The place of an output's chunks, from which coarser levels are made.
pub(super) trait Levels: Sync {
    /// Opens a level of which all chunks were stored.
    fn open(&self, level: usize) -> Result<ZarrVolume>;

    /// Encodes and stores a chunk. Returns `false` if it is all fill value.
    fn keep(&self, place: &ChunkPlace, chunk: &UnencodedChunk<'_>) -> Result<bool>;

    /// Waits until the chunks that were stored can be read.
    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

/// A box is read this often if others replace what it is read from.
const ATTEMPTS: u32 = 5;

/// Makes the missing chunks of coarser levels, each from the level before it.
///
/// In a store, another process may put a chunk again while it is read, with the same bytes but a different version: then it
/// is read again. `progress` may stop this before any chunk.
pub(super) fn rebuild(
    (arrays, levels): (&Arrays, &[Level]),
    (pyramid, threads): (Option<Pyramid>, usize),
    stored: &dyn Levels,
    progress: Progress<'_>,
) -> Result<()> {
    let Some(pyramid) = pyramid else {
        return Ok(());
    };
    let layout = arrays.layout();
    let dtype = layout.dtype;
    let pool = pool(threads, "rebuild", &layout.path)?;
    let cells = rebuilt_at_once(layout);
    let keep = |place: &ChunkPlace, chunk: &UnencodedChunk<'_>| stored.keep(place, chunk);
    for (n, pair) in levels.windows(2).enumerate() {
        let array = &arrays.levels()[n + 1];
        let is_missing = |&(channel, index): &(u64, [u64; 3])| !array.written.has(channel, index);
        let missing = array.written.all().filter(is_missing);
        stored.settle()?;
        let finer = stored.open(n)?;
        let rebuild = |(channel, index): (u64, [u64; 3])| {
            report(progress, 0, 0)?;
            let region = array.region(index);
            let finer = FinerChannel {
                stored,
                level: n,
                opened: &finer,
                again: RefCell::default(),
                index: channel,
            };
            let sizes = (pair[0], pair[1]);
            let voxels = rebuilt(pyramid.method, dtype, sizes, (region, cells), &finer)?;
            let source = LevelSource {
                held: region,
                voxels: Some(&voxels),
            };
            arrays
                .keep_chunk(n + 1, channel, index, source, &keep)
                .map(|_| ())
        };
        pool.install(|| missing.par_bridge().try_for_each(rebuild))?;
    }
    stored.settle()
}

/// Returns the number of threads for which the memory is enough, at least one.
pub(super) fn rebuilding_threads(layout: &Layout, resume: &ResumeOptions) -> usize {
    let requests = needs::upload_bytes(layout) + needs::answer_bytes(layout);
    let memory = resume.memory.saturating_sub(requests);
    let fitting = memory / rebuilding_bytes(layout).max(1);
    let fitting = usize::try_from(fitting).unwrap_or(usize::MAX);
    fitting.min(resume.threads).max(1)
}

/// A channel of a level.
struct FinerChannel<'a> {
    stored: &'a dyn Levels,
    level: usize,
    opened: &'a ZarrVolume,
    /// The level as it was opened after a chunk had been replaced.
    again: RefCell<Option<ZarrVolume>>,
    /// Index of the channel.
    index: u64,
}

impl FinerChannel<'_> {
    fn read_into(&self, region: Region, voxels: &mut [u8]) -> Result<()> {
        let again = self.again.borrow();
        let volume = again.as_ref().unwrap_or(self.opened);
        volume.read_channels(self.index..self.index + 1, region, voxels)
    }
}

impl Finer for FinerChannel<'_> {
    fn announce(&self, region: Region) {
        let layout = &self.opened.layout;
        if !layout.remote {
            return;
        }
        let again = self.again.borrow();
        let volume = again.as_ref().unwrap_or(self.opened);
        let [size, chunk @ ..] = layout.read_chunk.unwrap_or([1; 4]);
        for [z, y, x] in indices(chunk_range(&region, chunk)) {
            volume.prefetch([self.index / size.max(1), z, y, x]);
        }
    }

    fn read(&self, region: Region) -> Result<Vec<u8>> {
        let layout = &self.opened.layout;
        let bytes = usize::try_from(region.voxels()).unwrap_or(usize::MAX);
        let mut voxels = vec![0; bytes.saturating_mul(layout.dtype.size())];
        for _ in 1..ATTEMPTS {
            match self.read_into(region, &mut voxels) {
                Err(Error::InputModified { .. }) if layout.remote => {
                    let again = self.stored.open(self.level)?;
                    *self.again.borrow_mut() = Some(again);
                }
                read => return read.map(|()| voxels),
            }
        }
        self.read_into(region, &mut voxels)?;
        Ok(voxels)
    }
}
