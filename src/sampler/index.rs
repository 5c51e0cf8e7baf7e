//! The block-sum index of a map, built in one pass.
//!
//! With it, a voxel is drawn in two steps: a block by its sum, then a voxel inside the block. Neither the map nor a
//! table of its voxels is ever in memory; the pass decodes each chunk once and holds one block per thread. An index
//! belongs to one channel of one volume, for any patch size: the sums of blocks that the border cuts are recomputed for
//! each sampler.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::blocks::{BlockVoxels, Blocks, read_block, spread};
use super::class::LabelValue;
use super::counts::LabelCounts;
use super::sidecar;
use super::sums::{Block, BlockStats};
use super::weights::WeightSums;
use crate::error::{Error, Result};
use crate::progress::{Progress, silent};
use crate::region::Region;
use crate::volume::{Layout, Overwrite, Volume};

/// The sums of each block of one channel of a volume.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockIndex<T> {
    pub(super) layout: Layout,
    pub(super) channel: u64,
    pub(super) blocks: Blocks,
    pub(super) tally: T,
    /// The stamp of the volume before it was read; `None` if it has no identity.
    pub(super) stamp: Option<u128>,
    loaded: bool,
    checked: Checked,
}

/// The open volume whose stamp was last compared with an index's.
#[derive(Debug, Default)]
struct Checked(Mutex<Option<Weak<dyn Volume>>>);

impl Checked {
    fn is(&self, volume: &Arc<dyn Volume>) -> bool {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref()
            .is_some_and(|last| Weak::ptr_eq(last, &Arc::downgrade(volume)))
    }

    fn set(&self, volume: &Arc<dyn Volume>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(volume));
    }
}

impl Clone for Checked {
    fn clone(&self) -> Self {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Self(Mutex::new(last.clone()))
    }
}

/// Always equal: the last check does not distinguish indexes.
impl PartialEq for Checked {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The sum of the weights of each block, for [`Weighted`](super::Weighted).
pub type WeightIndex = BlockIndex<WeightSums>;

/// The count of each label in each block, for [`Label`](super::Label).
pub type LabelIndex = BlockIndex<LabelCounts>;

impl<T: BlockStats> BlockIndex<T> {
    /// Reads a channel of a volume once, on `threads` threads.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidMapValue`] for the first voxel of the first block with a value that is not a valid label or
    /// weight; [`Error::NoSuchChannel`]; [`Error::Unsupported`] if the map has too many labels to be a label map; the
    /// errors of reading; [`Error::Interrupted`].
    pub fn build(
        volume: &dyn Volume,
        channel: u64,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let blocks = Blocks::of(volume.layout());
        Self::of_blocks(volume, channel, blocks, threads, progress)
    }

    pub(super) fn of_blocks(
        volume: &dyn Volume,
        channel: u64,
        blocks: Blocks,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let layout = volume.layout();
        layout.decoded_bytes()?;
        let stamp = sidecar::stamp_of::<T>(volume, channel, &blocks, true)?;
        if channel >= layout.channels {
            return Err(Error::NoSuchChannel {
                start: channel,
                end: channel.saturating_add(1),
                channels: layout.channels,
            });
        }
        let tally = add_up_all(volume, channel, &blocks, threads, progress)?;
        Ok(Self {
            layout: layout.clone(),
            channel,
            blocks,
            tally,
            stamp,
            loaded: false,
            checked: Checked::default(),
        })
    }

    /// Reads a saved index.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, and [`Error::Header`] if it is truncated or damaged, or if it is not
    /// the index of this channel of this volume with its present files.
    pub fn load(path: impl AsRef<Path>, volume: &dyn Volume, channel: u64) -> Result<Self> {
        let path = path.as_ref();
        let blocks = Blocks::of(volume.layout());
        let stamp = sidecar::stamp_of::<T>(volume, channel, &blocks, true)?;
        let tally = sidecar::read(path, channel, &blocks, stamp)?;
        Ok(Self {
            layout: volume.layout().clone(),
            channel,
            blocks,
            tally,
            stamp,
            loaded: true,
            checked: Checked::default(),
        })
    }

    /// Saves the index, for example next to the volume. An existing index is replaced atomically: concurrent readers
    /// get the old or the new file.
    ///
    /// # Errors
    ///
    /// [`Error::NotOverwritable`] if `path` exists and is not an index, [`Error::Unsupported`] if the volume has no
    /// identity that the index could be checked against, [`Error::OutputIsInput`] if `path` is inside the volume,
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        sidecar::write(path, self)
    }

    /// Loads a saved index. If it is missing, stale, truncated, damaged or of a different volume, builds it and saves
    /// it there.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build) and [`save`](Self::save).
    pub fn load_or_build(
        path: &Path,
        volume: &dyn Volume,
        channel: u64,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<Self> {
        if let Ok(index) = Self::load(path, volume, channel) {
            return Ok(index);
        }
        Overwrite::File(sidecar::INDEX).check(path)?;
        let index = Self::build(volume, channel, threads, progress)?;
        index.save(path)?;
        Ok(index)
    }

    /// Returns `true` if the index was loaded from a file and not built from the volume.
    #[must_use]
    pub const fn was_loaded(&self) -> bool {
        self.loaded
    }

    /// Returns the channel of the index.
    #[must_use]
    pub const fn channel(&self) -> u64 {
        self.channel
    }

    /// Returns the sums for legal centers only. They are exact: blocks that are partly outside of `centers` are read
    /// again.
    pub(super) fn within(
        &self,
        volume: &Arc<dyn Volume>,
        centers: Region,
        threads: usize,
        background: bool,
    ) -> Result<T> {
        self.check_belongs(volume)?;
        let volume = &**volume;
        let (mut known, cut) = self.tally.clip(&self.blocks, &centers, background);
        let work = |tally: &mut T, i: u64| {
            let id = usize::try_from(i).map_or(0, |i| cut[i]);
            let block = self.blocks.region(id);
            let part = block.intersection(&centers).unwrap_or(block);
            let voxels = read_block(volume, self.channel, part)?;
            let map = (volume.layout(), self.channel);
            add(tally, map, (id, part), voxels, background)
        };
        known.merge(merged(spread(cut.len() as u64, threads, &silent, work)?));
        known.sort();
        Ok(known)
    }

    /// Checks that the index describes this volume and its present voxels. Samplers do this when they are created. The
    /// metadata of files is checked once per open volume; files are not read.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the index is of a different volume, [`Error::StaleIndex`] if the voxels have
    /// changed, [`Error::InputModified`] if they changed since the volume was opened, and [`Error::Io`].
    pub fn check_belongs(&self, volume: &Arc<dyn Volume>) -> Result<()> {
        let (own, layout) = (&self.layout, volume.layout());
        let same = own.path == layout.path
            && (own.shape, own.channels, own.dtype)
                == (layout.shape, layout.channels, layout.dtype)
            && (own.rescale, own.applied) == (layout.rescale, layout.applied);
        if !same {
            return Err(Error::InvalidArgument {
                argument: "index of",
                value: own.path.display().to_string(),
                problem: format!("the volume is {}", layout.path.display()),
            });
        }
        let has_files = !volume.source_files().is_empty();
        if has_files && self.checked.is(volume) {
            return volume.check_unchanged();
        }
        let now = sidecar::stamp_of::<T>(&**volume, self.channel, &self.blocks, false)?;
        if now != self.stamp {
            let path = layout.path.clone();
            return Err(Error::StaleIndex { path });
        }
        self.checked.set(volume);
        Ok(())
    }
}

impl LabelIndex {
    /// Returns the count of each label in the whole volume, by increasing label.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<LabelValue, u64> {
        self.tally
            .totals(Region::whole(self.blocks.volume).voxels())
    }
}

/// Sums up all blocks. Missing shards are skipped first: in a sparse volume most are missing.
fn add_up_all<T: BlockStats>(
    volume: &dyn Volume,
    channel: u64,
    blocks: &Blocks,
    threads: usize,
    progress: Progress<'_>,
) -> Result<T> {
    let layout = volume.layout();
    let (Some([c, chunk @ ..]), Some(shards)) = (layout.read_chunk, blocks.shards(layout)) else {
        let work = |tally: &mut T, id| {
            let region = blocks.region(id);
            let voxels = read_block(volume, channel, region)?;
            add(tally, (layout, channel), (id, region), voxels, false)
        };
        return spread(blocks.count(), threads, progress, work).map(merged);
    };
    let work = |tally: &mut T, shard| {
        let shard = shards.region(shard);
        let first = |a: usize| shard.start[a].unsigned_abs() / chunk[a];
        let fill = volume.fill_chunk([channel / c, first(0), first(1), first(2)])?;
        for id in blocks.inside(&shard) {
            let region = blocks.region(id);
            let voxels = match &fill {
                Some(voxel) => BlockVoxels::Fill(voxel.clone()),
                None => read_block(volume, channel, region)?,
            };
            add(tally, (layout, channel), (id, region), voxels, false)?;
        }
        Ok(())
    };
    spread(shards.count(), threads, progress, work).map(merged)
}

fn add<T: BlockStats>(
    tally: &mut T,
    (layout, channel): (&Layout, u64),
    (id, region): (u64, Region),
    voxels: BlockVoxels,
    listed: bool,
) -> Result<()> {
    tally.add(&Block {
        layout,
        channel,
        id,
        region,
        voxels,
        listed,
    })
}

fn merged<T: BlockStats>(parts: Vec<T>) -> T {
    let mut all = T::default();
    for part in parts {
        all.merge(part);
    }
    all.sort();
    all
}
