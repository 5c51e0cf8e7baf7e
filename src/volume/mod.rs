//! Volumes: opening, reading and writing, whatever the format.
//!
//! A [`Volume`] stays where it is and hands out the voxels of regions; a [`VolumeMut`]
//! takes them. Both are c, z, y, x in memory and know nothing of patches' purpose. A
//! volume's facts are in its [`Layout`]; which bytes a read touches is told by its chunks.

mod cached;
mod chunk;
mod create;
mod flat;
mod header;
mod io;
pub(crate) mod lru;
mod marks;
mod memory;
mod mmap;
mod open;
mod partial;
mod pyramid;
mod resume;
mod space;
pub(crate) mod staged;
#[cfg(any(test, feature = "testing"))]
pub mod suite;
mod upsampled;
mod verify;
mod watch;
mod zarr;

use std::fmt::{self, Debug};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dtype::{DType, convert};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::patch::Patch;
use crate::region::{Region, Shape};

pub use cached::Cached;
pub(crate) use chunk::intersecting;
pub use chunk::{Chunk, ChunkVoxels};
pub use create::{Codec, CreateOptions, ZarrVersion, check_output, create, planned};
pub use header::raw::RawSpec;
pub use io::Io;
pub use memory::MemoryVolume;
pub(crate) use mmap::give_back_freed;
pub use mmap::share_heaps;
pub use open::{Missing, OpenOptions, open};
pub use partial::{Durability, Part, discard};
pub use pyramid::{Downsample, Pyramid, waiting_bytes};
pub use resume::{Resumable, ResumeOptions, finalize, resumable};
pub use space::{Space, space};
pub use staged::{StagedFile, StagedFolder};
pub use upsampled::Upsampled;
pub use verify::{Damaged, Verified, verify};

/// Chunk sizes and chunk indices along c, z, y, x.
pub type ChunkShape = [u64; 4];

/// What is stored, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Where the volume is; for messages.
    pub path: PathBuf,
    /// The file format.
    pub format: Format,
    /// Voxels along z, y, x.
    pub shape: Shape,
    /// Channels, or time points, or both flattened (see [`Volume::channels_at`]); 1 for an ordinary scan.
    pub channels: u64,
    /// The type that is stored.
    pub dtype: DType,
    /// The unit that is read and decoded at once, c, z, y, x; `None` where any box is read alone.
    pub read_chunk: Option<ChunkShape>,
    /// The unit that is encoded and written at once, c, z, y, x (the shard, where there are shards).
    pub write_chunk: Option<ChunkShape>,
    /// The names of the codecs, outermost last.
    pub codecs: Vec<String>,
    /// Spacing and affine.
    pub geometry: Geometry,
    /// How stored values become real ones, if they are not the same.
    pub rescale: Option<Rescale>,
}

impl Layout {
    /// The layout of a volume in memory, spacing 1 mm.
    #[must_use]
    pub fn new(shape: Shape, channels: u64, dtype: DType) -> Self {
        Self {
            path: PathBuf::from("memory"),
            format: Format::Memory,
            shape,
            channels,
            dtype,
            read_chunk: None,
            write_chunk: None,
            codecs: Vec::new(),
            geometry: Geometry::default(),
            rescale: None,
        }
    }

    /// The same with another geometry.
    #[must_use]
    pub fn with_geometry(mut self, geometry: Geometry) -> Self {
        self.geometry = geometry;
        self
    }

    /// Bytes of all voxels once decoded.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if they are more than 2^63.
    pub fn decoded_bytes(&self) -> Result<u64> {
        crate::region::voxels(self.shape)
            .and_then(|n| {
                n.checked_mul(self.channels)?
                    .checked_mul(self.dtype.size() as u64)
            })
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .ok_or_else(|| Error::TooLarge {
                path: self.path.clone(),
                channels: self.channels,
                shape: self.shape,
                dtype: self.dtype,
            })
    }

    /// Checks that a read of `channels` and `region` into `length` bytes is possible.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`], [`Error::NoSuchChannel`] or [`Error::BufferLength`].
    pub fn check_read(&self, channels: &Range<u64>, region: Region, length: usize) -> Result<()> {
        if !region.is_inside(self.shape) {
            return Err(Error::OutOfBounds {
                region,
                shape: self.shape,
            });
        }
        if channels.start > channels.end || channels.end > self.channels {
            return Err(Error::NoSuchChannel {
                start: channels.start,
                end: channels.end,
                channels: self.channels,
            });
        }
        let count = channels.end - channels.start;
        let expected = region
            .voxels()
            .saturating_mul(count)
            .saturating_mul(self.dtype.size() as u64);
        if expected == length as u64 {
            return Ok(());
        }
        Err(Error::BufferLength {
            expected,
            actual: length as u64,
        })
    }
}

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Format {
    Memory,
    Raw,
    Npy,
    Nifti1,
    Nifti2,
    MetaImage,
    Nrrd,
    Zarr2,
    Zarr3,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Memory => "memory",
            Self::Raw => "raw",
            Self::Npy => "npy",
            Self::Nifti1 => "nifti-1",
            Self::Nifti2 => "nifti-2",
            Self::MetaImage => "metaimage",
            Self::Nrrd => "nrrd",
            Self::Zarr2 => "zarr-v2",
            Self::Zarr3 => "zarr-v3",
        })
    }
}

/// Real value = slope * stored value + intercept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rescale {
    /// Factor, never 0.
    pub slope: f64,
    /// Summand, in the real value's unit.
    pub intercept: f64,
}

impl Rescale {
    /// The rescale, unless it changes nothing or is not set (slope 0, NaN or infinite).
    #[must_use]
    pub fn new(slope: f64, intercept: f64) -> Option<Self> {
        let set = slope.is_finite() && slope != 0.0 && intercept.is_finite();
        let identity = (slope - 1.0).abs() < f64::EPSILON && intercept == 0.0;
        (set && !identity).then_some(Self { slope, intercept })
    }
}

/// What a volume has read since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Chunks fetched and decoded.
    pub chunks: u64,
    /// Bytes fetched from files, before decoding.
    pub bytes: u64,
    /// Chunks that were wanted and lay in a cache.
    pub hits: u64,
}

/// A volume that can be read, from any number of threads at once.
pub trait Volume: Debug + Send + Sync {
    /// What is stored: shape, voxel type, chunks, geometry.
    fn layout(&self) -> &Layout;

    /// Fills `out` with the stored voxels of some channels of a region, row-major c, z, y, x,
    /// in native byte order.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`], [`Error::NoSuchChannel`] and [`Error::BufferLength`] if the
    /// three do not fit the volume and each other; [`Error::Io`] and [`Error::Chunk`] if the
    /// store cannot be read.
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()>;

    /// The chunk at `index` (c, z, y, x) of the volume's read chunks, decoded.
    ///
    /// # Errors
    ///
    /// As [`read_channels`](Self::read_channels); [`Error::Unsupported`] if the volume has no chunks.
    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let layout = self.layout();
        let (channels, region) = chunk::clipped(layout, index)?;
        let voxels = region.voxels() * (channels.end - channels.start);
        let bytes =
            usize::try_from(voxels).map_or(usize::MAX, |n| n.saturating_mul(layout.dtype.size()));
        let mut out = vec![0; bytes];
        self.read_channels(channels.clone(), region, &mut out)?;
        Ok(Chunk {
            channels,
            region,
            voxels: ChunkVoxels::Stored(out),
        })
    }

    /// Says that the chunk at `index` (c, z, y, x) is read soon, so that its file is fetched from the disk
    /// meanwhile. It returns at once, and nothing depends on it. A wrapper passes it on.
    fn expect(&self, index: ChunkShape) {
        let _ = index;
    }

    /// How many time points the channels are of: first all channels of the first, then those of the
    /// next. `None` if no axis is said to be time, or another one varies more slowly. A wrapper
    /// passes the question on.
    fn time_points(&self) -> Option<u64> {
        None
    }

    /// The channels that are those of some time points.
    ///
    /// # Errors
    ///
    /// [`Error::NoTime`] if the volume has no time points, [`Error::NoSuchTime`] if not so many.
    fn channels_at(&self, times: Range<u64>) -> Result<Range<u64>> {
        let layout = self.layout();
        let points = self.time_points().ok_or_else(|| Error::NoTime {
            path: layout.path.clone(),
            channels: layout.channels,
        })?;
        if times.start > times.end || times.end > points {
            return Err(Error::NoSuchTime {
                path: layout.path.clone(),
                start: times.start,
                end: times.end,
                points,
            });
        }
        let each = layout.channels / points.max(1);
        Ok(times.start * each..times.end * each)
    }

    /// Whether reading front to back, channel after channel and plane after plane, is far
    /// cheaper than any other order, as in a compressed file.
    fn is_sequential(&self) -> bool {
        false
    }

    /// A box, c, z, y, x, of which everything that is wanted is best read at a time, although any
    /// part can be read alone: planes of a mapped file, whose pages are then at hand. `None`
    /// where it makes no difference, or there are chunks. A wrapper passes the question on.
    fn together(&self) -> Option<ChunkShape> {
        None
    }

    /// The bytes that every voxel has of the write chunk that holds the read chunk `index` (c, z,
    /// y, x), if nothing of it is stored; `None` if something is, or if only reading could tell.
    /// It is much cheaper than a read. A wrapper passes the question on.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the store cannot be asked.
    fn unstored(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        let _ = index;
        Ok(None)
    }

    /// What was read since the volume was opened; zeros where nobody counts.
    fn reads(&self) -> Reads {
        Reads::default()
    }

    /// Every file, or folder of files, whose bytes decide what a read gives. A wrapper passes
    /// the question on.
    fn files(&self) -> Vec<PathBuf> {
        vec![self.layout().path.clone()]
    }

    /// Checks that the files are those that were opened, and were not written to since, as far as
    /// that can be told without reading them: by their inode, size and time of change. Of a Zarr array
    /// these are the metadata; a chunk is looked at when it is read. A wrapper passes the question on.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`], which names the file.
    fn unchanged(&self) -> Result<()> {
        Ok(())
    }

    /// Bytes that the voxels take where they are stored.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the store cannot be listed.
    fn stored_bytes(&self) -> Result<u64> {
        self.layout().decoded_bytes()
    }

    /// Fills `out` with all channels of a region.
    ///
    /// # Errors
    ///
    /// As [`read_channels`](Self::read_channels).
    fn read_into(&self, region: Region, out: &mut [u8]) -> Result<()> {
        self.read_channels(0..self.layout().channels, region, out)
    }

    /// Reads all channels of a region into a new patch, voxels as they are stored.
    ///
    /// # Errors
    ///
    /// As [`read_channels`](Self::read_channels).
    fn read(&self, region: Region) -> Result<Patch> {
        let layout = self.layout();
        if !region.is_inside(layout.shape) {
            return Err(Error::OutOfBounds {
                region,
                shape: layout.shape,
            });
        }
        let mut patch = Patch::zeros(region, layout.channels, layout.dtype)?;
        self.read_into(region, patch.bytes_mut())?;
        Ok(patch)
    }

    /// Reads a region and converts its stored values, as [`dtype`](crate::dtype) says.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_as(&self, region: Region, dtype: DType) -> Result<Patch> {
        Ok(self.read(region)?.converted(dtype))
    }

    /// Reads a region's real values, slope and intercept applied, as f32.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_real(&self, region: Region) -> Result<Patch> {
        real_values(self.read(region)?, self.layout().rescale)
    }
}

/// Stored values with slope and intercept applied, as f32.
pub(crate) fn real_values(patch: Patch, rescale: Option<Rescale>) -> Result<Patch> {
    let Some(rescale) = rescale else {
        return Ok(patch.converted(DType::F32));
    };
    let mut real = Patch::zeros(patch.region(), patch.channels(), DType::F32)?;
    real_values_into(patch.dtype(), patch.bytes(), rescale, real.bytes_mut());
    Ok(real)
}

/// As [`real_values`], into `out`, which is aligned.
#[expect(clippy::cast_possible_truncation, reason = "real values are f32 here")]
pub(crate) fn real_values_into(dtype: DType, stored: &[u8], rescale: Rescale, out: &mut [u8]) {
    const STEP: usize = 512;
    let mut values = [0.0_f64; STEP];
    let out = bytemuck::cast_slice_mut::<u8, f32>(out);
    for (stored, out) in stored.chunks(STEP * dtype.size()).zip(out.chunks_mut(STEP)) {
        let values = &mut values[..out.len()];
        convert(dtype, stored, DType::F64, bytemuck::cast_slice_mut(values));
        for (out, value) in out.iter_mut().zip(values) {
            *out = (*value * rescale.slope + rescale.intercept) as f32;
        }
    }
}

impl<V: Volume + ?Sized> Volume for Arc<V> {
    fn layout(&self) -> &Layout {
        (**self).layout()
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        (**self).read_channels(channels, region, out)
    }
    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        (**self).read_chunk(index)
    }
    fn time_points(&self) -> Option<u64> {
        (**self).time_points()
    }
    fn is_sequential(&self) -> bool {
        (**self).is_sequential()
    }
    fn together(&self) -> Option<ChunkShape> {
        (**self).together()
    }
    fn expect(&self, index: ChunkShape) {
        (**self).expect(index);
    }
    fn unstored(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        (**self).unstored(index)
    }
    fn reads(&self) -> Reads {
        (**self).reads()
    }
    fn files(&self) -> Vec<PathBuf> {
        (**self).files()
    }
    fn unchanged(&self) -> Result<()> {
        (**self).unchanged()
    }
    fn stored_bytes(&self) -> Result<u64> {
        (**self).stored_bytes()
    }
}

/// A volume under construction.
///
/// Nothing can be seen under the output's name until [`finish`](Self::finish): until then the
/// voxels gather beside it under a name that ends in `.incomplete`, which is removed when the
/// volume is dropped unfinished.
pub trait VolumeMut: Debug + Send + Sync {
    /// What will be stored.
    fn layout(&self) -> &Layout;

    /// Writes the voxels of some channels of a region, row-major c, z, y, x, in native byte order.
    ///
    /// Writes may run at once as long as no two touch the same write chunk.
    ///
    /// # Errors
    ///
    /// [`Error::PartialChunk`] if channels and region are not made of whole write chunks (cut at
    /// the volume's edge), [`Error::BufferLength`], and [`Error::Io`] if the disk refuses.
    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()>;

    /// Writes all channels of a region.
    ///
    /// # Errors
    ///
    /// As [`write_channels`](Self::write_channels).
    fn write(&self, region: Region, voxels: &[u8]) -> Result<()> {
        self.write_channels(0..self.layout().channels, region, voxels)
    }

    /// Bytes that voxels of coarser levels may take at most while they wait for others, if the
    /// write chunks come one after another, all channels of each together, the axes in `order`
    /// (0 to 2 for z, y, x, the slowest first). 0 where there are no such levels.
    fn waiting_bytes(&self, order: [usize; 3]) -> u64 {
        let _ = order;
        0
    }

    /// Makes the output durable and gives it its name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk refuses, [`Error::Exists`] if something took the name meanwhile.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Counts reads from any number of threads.
#[derive(Debug, Default)]
struct Counter {
    chunks: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn add(&self, chunks: u64, bytes: u64) {
        self.chunks.fetch_add(chunks, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn reads(&self) -> Reads {
        Reads {
            chunks: self.chunks.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            hits: 0,
        }
    }
}
