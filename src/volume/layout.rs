//! The static properties of a volume: shape, voxel type, chunks, format, geometry.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use super::{Applied, Axes};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::region::{Region, Shape};

/// Chunk sizes and chunk indices along c, z, y, x.
pub type ChunkShape = [u64; 4];

/// The shape, voxel type, chunking and geometry of a volume.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// The path of the volume, for messages.
    pub path: PathBuf,
    /// The file format.
    pub format: Format,
    /// Voxels along z, y, x.
    pub shape: Shape,
    /// Channels, or time points, or both flattened (see
    /// [`VolumeExt::channels_at`](super::VolumeExt::channels_at)); 1 for an ordinary scan.
    pub channels: u64,
    /// The type of the voxels as they are read.
    pub dtype: DType,
    /// The unit that is read and decoded at once, c, z, y, x; `None` if any box can be read on its own.
    pub read_chunk: Option<ChunkShape>,
    /// The unit that is encoded and written at once, c, z, y, x (the shard, where there are shards).
    pub write_chunk: Option<ChunkShape>,
    /// The names of the codecs, outermost last.
    pub codecs: Vec<String>,
    /// Spacing and affine.
    pub geometry: Geometry,
    /// Converts the voxels that are read to real values; `None` if they are the same.
    pub rescale: Option<Rescale>,
    /// The conversion that produced the voxels that are read from stored ones; `None` if they are the same.
    pub applied: Option<Applied>,
    /// Axis metadata apart from the lengths.
    pub axes: Axes,
    /// The memory that reads take, apart from their result and decoded chunks.
    pub read_memory: ReadMemory,
    /// Whether the voxels are in an object store or on a web server. Reads then wait for the network, so that many
    /// should be announced by [`Volume::prefetch`](super::Volume::prefetch).
    pub remote: bool,
}

impl Layout {
    /// Returns the layout for a wrapper of the volume, which is read by chunks of its own and not by those that the volume is
    /// computed from.
    pub(crate) fn of_wrapper(&self) -> Self {
        let mut layout = self.clone();
        layout.read_memory.source = None;
        layout
    }

    /// Creates the layout of a volume in memory, spacing 1 mm.
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
            applied: None,
            axes: Axes::default(),
            read_memory: ReadMemory::default(),
            remote: false,
        }
    }

    /// Returns `true` for Zarr, in a folder or in a store.
    pub(crate) const fn is_zarr(&self) -> bool {
        matches!(self.format, Format::Zarr2 | Format::Zarr3)
    }

    /// Returns `true` for Zarr in a folder.
    pub(crate) const fn is_local_zarr(&self) -> bool {
        self.is_zarr() && !self.remote
    }

    /// Returns the layout with a different geometry.
    #[must_use]
    pub fn with_geometry(mut self, geometry: Geometry) -> Self {
        self.geometry = geometry;
        self
    }

    /// Returns the size of all decoded voxels in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if that is 2^63 or more.
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

/// The memory that reads of a volume take, apart from their result and decoded chunks: what a wrapper caches and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReadMemory {
    /// Bytes for any number of threads together.
    pub shared: u64,
    /// Bytes for each thread that reads.
    pub thread: u64,
    /// Bytes for all volumes of the process together: answers of stores and web servers that wait to be read.
    pub answers: u64,
    /// The chunks of the volume that a [`Resampled`](super::Resampled) one computes its voxels from, if it has chunks.
    pub source: Option<SourceChunks>,
}

/// The chunks of a volume that is resampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceChunks {
    /// The shape of the volume, with its axes along those of the grid.
    pub shape: Shape,
    /// The shape of its chunks along c, z, y, x.
    pub chunk: ChunkShape,
    /// Voxels of the volume between neighboring voxels of the grid.
    pub step: [f64; 3],
    /// Voxels of the volume by which a patch needs more than it covers, along each axis.
    pub margin: Shape,
    /// Whether the axes of the grid are parallel to those of the volume.
    pub parallel: bool,
    /// Bytes of [`ReadMemory::shared`] that remain if the reader holds the chunks itself, and of indexes of shards.
    pub kept: u64,
}

impl SourceChunks {
    /// Returns the voxels along an axis that a patch of a length needs, at most.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast stops at the ends of u64"
    )]
    pub(crate) fn covered(&self, axis: usize, length: u64) -> u64 {
        let covered = (length as f64 * self.step[axis]).ceil() as u64;
        covered.saturating_add(self.margin[axis])
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
    Analyze,
    MetaImage,
    Nrrd,
    Mgh,
    Zarr2,
    Zarr3,
    Dicom,
    Tiff,
    Hdf5,
    N5,
    Blosc2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Memory => "memory",
            Self::Raw => "raw",
            Self::Npy => "npy",
            Self::Nifti1 => "nifti-1",
            Self::Nifti2 => "nifti-2",
            Self::Analyze => "analyze-7.5",
            Self::MetaImage => "metaimage",
            Self::Nrrd => "nrrd",
            Self::Mgh => "mgh",
            Self::Zarr2 => "zarr-v2",
            Self::Zarr3 => "zarr-v3",
            Self::Dicom => "dicom",
            Self::Tiff => "tiff",
            Self::Hdf5 => "hdf5",
            Self::N5 => "n5",
            Self::Blosc2 => "blosc2",
        })
    }
}

/// A linear conversion: real value = slope * stored value + intercept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rescale {
    /// The factor, never 0.
    pub slope: f64,
    /// The offset, in the unit of the real value.
    pub intercept: f64,
}

impl Rescale {
    /// Creates a rescale. Returns `None` if it changes nothing or is not set (slope 0, NaN or infinite).
    #[must_use]
    pub fn new(slope: f64, intercept: f64) -> Option<Self> {
        let set = slope.is_finite() && slope != 0.0 && intercept.is_finite();
        let identity = (slope - 1.0).abs() < f64::EPSILON && intercept == 0.0;
        (set && !identity).then_some(Self { slope, intercept })
    }
}
