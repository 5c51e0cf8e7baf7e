//! Volumes of independently decodable blocks in files: the frames of a DICOM series, the strips and tiles of a TIFF, the
//! chunks of an HDF5 data set.
//!
//! A header parser makes a [`BlockSource`]: where each block is stored, the box of voxels that it holds, and a
//! [`BlockDecoder`]. [`BlockVolume`] serves it as a volume whose read chunks are the blocks, so that caches, loaders
//! and prefetching treat it like any chunked volume. Blocks are decoded on the caller's thread, each into a buffer of
//! the size that the header promised.

#[cfg(any(feature = "dicom", feature = "tiff"))]
pub(super) mod codecs;
mod files;
#[cfg(test)]
pub(super) mod tests;

use std::fmt::Debug;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::PathBuf;

use serde_json::Value as Json;

pub(super) use self::files::Files;
use super::chunk::{self, Chunk, ChunkVoxels, read_by_chunks};
use super::decoders::caught;
use super::watch::FileWatch;
use super::{ChunkShape, Counter, Layout, ReadMemory, ReadStats, Volume};
use crate::error::{Cause, Error, Result};
use crate::region::Region;

/// The place of an encoded block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The number of its file in [`BlockSource::files`].
    pub(super) file: u32,
    /// Its first byte in the file.
    pub(super) offset: u64,
    /// Its encoded bytes; 0 if it is not stored, and all of its voxels are [`BlockSource::fill`].
    pub(super) length: u64,
}

/// The places of the blocks of a volume, row-major along c, z, y, x.
#[derive(Debug)]
pub(super) enum Blocks {
    /// A list.
    Listed(Vec<Block>),
    /// Tables in the files, which are read where a block is needed.
    #[cfg_attr(not(feature = "tiff"), allow(dead_code, reason = "only TIFF has them"))]
    Stored(Box<dyn BlockTables>),
}

/// Tables of the places of blocks in files.
pub(super) trait BlockTables: Debug + Send + Sync {
    /// Returns the number of blocks.
    fn count(&self) -> u64;

    /// Returns the bytes that it takes in memory.
    fn bytes(&self) -> u64;

    /// Reads the place of block `number`.
    fn block(&self, number: usize, files: &Files) -> Result<Block>;
}

impl From<Vec<Block>> for Blocks {
    fn from(list: Vec<Block>) -> Self {
        Self::Listed(list)
    }
}

impl Blocks {
    fn count(&self) -> u64 {
        match self {
            Self::Listed(list) => list.len() as u64,
            Self::Stored(tables) => tables.count(),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Listed(list) => size_of_val(list.as_slice()) as u64,
            Self::Stored(tables) => tables.bytes(),
        }
    }

    fn block(&self, number: usize, files: &Files) -> Result<Block> {
        match self {
            Self::Listed(list) => Ok(list[number]),
            Self::Stored(tables) => tables.block(number, files),
        }
    }
}

/// A volume as a list of blocks.
#[derive(Debug)]
pub(super) struct BlockSource {
    /// The layout. `read_chunk` is the box of voxels of a block.
    pub(super) layout: Layout,
    /// The number of time points, if channels are divided into them.
    pub(super) time_points: Option<u64>,
    /// The files, as they were when their headers were read.
    pub(super) files: FileWatch,
    /// The blocks.
    pub(super) blocks: Blocks,
    /// The bytes of a voxel of a block that is not stored.
    pub(super) fill: Vec<u8>,
    /// Decodes the blocks.
    pub(super) decoder: Box<dyn BlockDecoder>,
    /// Everything except the files that determines the voxels.
    pub(super) identity: Json,
}

/// Decodes the blocks of a volume.
pub(super) trait BlockDecoder: Debug + Send + Sync {
    /// Returns the maximum length of encoded block `index`. A longer one is damaged.
    fn most_encoded(&self, index: usize) -> u64;

    /// Decodes block `index` to voxels in native byte order, row-major c, z, y, x. `out` has the size of the block's box
    /// and is all zeros; the part of it that is beyond the volume's far faces may keep any value.
    fn decode(&self, index: usize, encoded: Vec<u8>, out: &mut [u8]) -> Result<(), Cause>;
}

/// A volume of blocks.
#[derive(Debug)]
pub(super) struct BlockVolume {
    layout: Layout,
    time_points: Option<u64>,
    files: Files,
    blocks: Blocks,
    /// The bytes of a voxel of a block that is not stored.
    fill: Vec<u8>,
    decoder: Box<dyn BlockDecoder>,
    identity: Json,
    /// The numbers of blocks along c, z, y, x.
    grid: ChunkShape,
    counter: Counter,
}

impl BlockVolume {
    /// Creates a volume.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if its size overflows, [`Error::Header`] if there are not as many blocks as boxes, and
    /// [`Error::Io`] if the only file cannot be opened.
    pub(super) fn new(mut source: BlockSource) -> Result<Self> {
        let layout = &source.layout;
        layout.decoded_bytes()?;
        let [z, y, x] = layout.shape;
        let chunk = layout.read_chunk.unwrap_or([0; 4]);
        let lengths = [layout.channels, z, y, x];
        let format = "block";
        if chunk.contains(&0) {
            let problem = format!("a block has {chunk:?} voxels (c, z, y, x)");
            return Err(Error::header(&layout.path, format, problem));
        }
        let grid: ChunkShape = std::array::from_fn(|axis| lengths[axis].div_ceil(chunk[axis]));
        let expected = grid.iter().try_fold(1_u64, |all, &n| all.checked_mul(n));
        let count = source.blocks.count();
        if expected != Some(count) {
            let problem = format!("{count} blocks are listed for a grid of {grid:?} (c, z, y, x)");
            return Err(Error::header(&layout.path, format, problem));
        }
        // Besides the encoded and the decoded chunk: what decoders hold until the samples are voxels.
        let voxels = chunk.iter().fold(1, |all: u64, &n| all.saturating_mul(n));
        let memory = ReadMemory {
            shared: source.blocks.bytes(),
            thread: voxels.saturating_mul(2 * layout.dtype.size() as u64 + 8),
            answers: 0,
            source: None,
        };
        source.layout.read_memory = memory;
        Ok(Self {
            layout: source.layout,
            time_points: source.time_points,
            files: Files::open(source.files)?,
            blocks: source.blocks,
            fill: source.fill,
            decoder: source.decoder,
            identity: source.identity,
            grid,
            counter: Counter::default(),
        })
    }

    /// Returns the number of the block at `index` (c, z, y, x), which must be inside the grid.
    fn number(&self, index: ChunkShape) -> usize {
        let [_, z, y, x] = self.grid;
        let n = ((index[0] * z + index[1]) * y + index[2]) * x + index[3];
        usize::try_from(n).expect("the number of a listed block")
    }

    /// Returns the place of a block.
    fn block(&self, number: usize) -> Result<Block> {
        self.blocks.block(number, &self.files)
    }

    /// Reads the encoded bytes of a block.
    fn fetch(&self, number: usize, block: Block) -> Result<Vec<u8>> {
        let length = self.files.watch().length(block.file as usize);
        let most = self.decoder.most_encoded(number);
        if block.length > most {
            let problem = format!(
                "it takes {} bytes, more than the maximum of {most}",
                block.length
            );
            return Err(self.broken(number, block, problem.into()));
        }
        let end = block.offset.checked_add(block.length);
        if end.is_none_or(|end| end > length) {
            let problem = format!(
                "its {} bytes from byte {} are not in the file, which has {length}",
                block.length, block.offset
            );
            return Err(self.broken(number, block, problem.into()));
        }
        let bytes = usize::try_from(block.length);
        let bytes = bytes.map_err(|error| self.broken(number, block, error.into()))?;
        let mut encoded = vec![0; bytes];
        self.files
            .read(block.file as usize, &mut encoded, block.offset)?;
        self.counter.add(1, block.length);
        Ok(encoded)
    }

    fn broken(&self, number: usize, block: Block, source: Cause) -> Error {
        let path = self.files.watch().path(block.file as usize);
        Error::Chunk {
            path: path.to_path_buf(),
            key: number.to_string(),
            source,
        }
    }
}

impl Volume for BlockVolume {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        read_by_chunks(&self.layout, channels, region, out, |index| {
            self.read_chunk(index)
        })
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let layout = &self.layout;
        let (channels, region) = chunk::whole(layout, index)?;
        let number = self.number(index);
        let block = self.block(number)?;
        let size = layout.dtype.size();
        if block.length == 0 {
            return Ok(Chunk {
                channels,
                region,
                voxels: ChunkVoxels::Fill(self.fill.clone()),
            });
        }
        let voxels = region.voxels().checked_mul(channels.end - channels.start);
        let bytes = voxels
            .and_then(|voxels| usize::try_from(voxels).ok()?.checked_mul(size))
            // A failed allocation would end the process.
            .filter(|&bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok())
            .ok_or_else(|| self.broken(number, block, "it is larger than memory".into()))?;
        let encoded = self.fetch(number, block)?;
        let mut out = vec![0; bytes];
        caught("the decoder", || {
            self.decoder.decode(number, encoded, &mut out)
        })
        .flatten()
        .map_err(|problem| self.broken(number, block, problem))?;
        Ok(Chunk {
            channels,
            region,
            voxels: ChunkVoxels::Stored(out),
        })
    }

    fn prefetch(&self, index: ChunkShape) {
        let inside = (0..4).all(|axis| index[axis] < self.grid[axis]);
        if !inside {
            return;
        }
        let Ok(block) = self.block(self.number(index)) else {
            return;
        };
        let Some(length) = NonZeroU64::new(block.length) else {
            return;
        };
        #[cfg(not(target_vendor = "apple"))]
        let _ = self.files.with(block.file as usize, |file| {
            // The call fails where prefetching is not possible; it is only a hint.
            rustix::fs::fadvise(
                file,
                block.offset,
                Some(length),
                rustix::fs::Advice::WillNeed,
            )
        });
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        chunk::clipped(&self.layout, index)?;
        let block = self.block(self.number(index))?;
        Ok((block.length == 0).then(|| self.fill.clone()))
    }

    fn time_points(&self) -> Option<u64> {
        self.time_points
    }

    fn read_stats(&self) -> ReadStats {
        self.counter.stats()
    }

    fn source_files(&self) -> Vec<PathBuf> {
        self.files.watch().paths().map(PathBuf::from).collect()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.files.watch().check()
    }

    fn identity(&self) -> Result<Json> {
        Ok(super::files::identity(&self.layout, &self.identity))
    }

    fn stored_bytes(&self) -> Result<u64> {
        let files = self.files.watch();
        let lengths = files.paths().enumerate().map(|(n, _)| files.length(n));
        Ok(lengths.sum())
    }
}
