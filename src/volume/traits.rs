//! The traits of volumes, and convenience methods for them.
//!
//! [`Volume`] is small, so that wrappers can forward all of it; [`VolumeExt`] is implemented once for every volume, so
//! that no wrapper can get its methods wrong.

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use ndarray::{Array4, ArrayView4};
use serde_json::Value as Json;

use super::chunk::{self, Chunk, ChunkVoxels};
use super::{ChunkShape, Layout, ReadStats, Resample};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::patch::Patch;
use crate::region::Region;

/// A volume that any number of threads can read at once.
///
/// # Wrappers
///
/// A wrapper implements [`inner`](Self::inner). The other default methods then forward to the inner volume, except
/// where an answer depends on the voxels: `read_chunk`, `fill_chunk` and `identity` never do. Methods that take or
/// describe chunks forward only while both volumes have the same channels, shape and read chunks. Put
/// `#[deny(clippy::missing_trait_methods)]` on the `impl` to have the compiler report methods that were not considered.
pub trait Volume: Debug + Send + Sync {
    /// Returns the shape, voxel type, chunks and geometry.
    fn layout(&self) -> &Layout;

    /// Fills `out` with the voxels of some channels of a region, row-major c, z, y, x,
    /// in native byte order.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`], [`Error::NoSuchChannel`] and [`Error::BufferLength`] if the arguments do not fit the
    /// volume and each other; [`Error::Io`] and [`Error::Chunk`] if the store cannot be read.
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()>;

    /// Returns the volume that this one wraps; `None` if it reads its voxels itself.
    fn inner(&self) -> Option<&dyn Volume> {
        None
    }

    /// Returns the volume as one that is resampled, if it is one and nothing wraps it. Readers that know the order of their
    /// reads then hold the chunks of the volume that is resampled.
    #[doc(hidden)]
    fn as_resampled(&self) -> Option<&super::Resampled> {
        None
    }

    /// Reads and decodes the read chunk at `index` (c, z, y, x).
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

    /// Prefetches the read chunk at `index` (c, z, y, x): asks the system to fetch its file from
    /// the disk. Returns at once; it is only a hint.
    fn prefetch(&self, index: ChunkShape) {
        if let Some(inner) = same_chunks(self) {
            inner.prefetch(index);
        }
    }

    /// Returns the number of time points into which the channels are divided: first all channels of the first time
    /// point, then those of the second, and so on. `None` if no axis is known to be time, or if a different axis varies
    /// more slowly.
    fn time_points(&self) -> Option<u64> {
        let inner = self.inner()?;
        let same = inner.layout().channels == self.layout().channels;
        same.then(|| inner.time_points())?
    }

    /// Returns the axes in storage order, slowest first (0 to 3 for c, z, y, x), if reading the voxels in that order is
    /// far cheaper than in any other, as in a compressed file. `None` if all orders cost about the same.
    fn sequential_order(&self) -> Option<[usize; 4]> {
        same_chunks(self)?.sequential_order()
    }

    /// Returns the preferred read size (c, z, y, x) of a volume without chunks: planes of a mapped file, whose pages
    /// are read together anyway. `None` if the size makes no difference.
    fn read_granularity(&self) -> Option<ChunkShape> {
        same_chunks(self)?.read_granularity()
    }

    /// Returns `true` if a part of a chunk can be read for the price of that part, so that nothing is saved by keeping
    /// decoded chunks.
    fn reads_parts(&self) -> bool {
        self.inner().is_some_and(Volume::reads_parts)
    }

    /// Returns the fill value (the bytes of one voxel) of the write chunk that contains the read chunk `index` (c, z,
    /// y, x), if that chunk is known not to be stored. `None` if it is stored, or if only a read could determine that.
    /// Much cheaper than a read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the store cannot be queried.
    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        let _ = index;
        Ok(None)
    }

    /// Returns counts of reads since the volume was opened; zeros if nothing is counted.
    fn read_stats(&self) -> ReadStats {
        self.inner().map(Volume::read_stats).unwrap_or_default()
    }

    /// Returns every file, or folder of files, whose bytes determine the voxels.
    fn source_files(&self) -> Vec<PathBuf> {
        match self.inner() {
            Some(inner) => inner.source_files(),
            None => vec![self.layout().path.clone()],
        }
    }

    /// Checks that the files are still those that were opened and have not been written to since, as far as inode, size
    /// and modification time show. For a Zarr array, only the metadata is checked here; a chunk is checked when it is
    /// read.
    ///
    /// # Errors
    ///
    /// [`Error::InputModified`], which names the file.
    fn check_unchanged(&self) -> Result<()> {
        self.inner().map_or(Ok(()), Volume::check_unchanged)
    }

    /// Returns a value that identifies the voxels and the rescale among all volumes with the same source files. It
    /// includes everything that is not in the files, such as the selected channels or a checksum of voxels in memory,
    /// but no path.
    ///
    /// The default implementation returns an error, for a wrapper too: only the volume knows how it changes the voxels.
    ///
    /// # Errors
    ///
    /// [`Error::NoIdentity`] if the volume cannot identify its voxels.
    fn identity(&self) -> Result<Json> {
        Err(Error::NoIdentity {
            path: self.layout().path.clone(),
        })
    }

    /// Returns the stored size of the voxels in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the store cannot be listed.
    fn stored_bytes(&self) -> Result<u64> {
        match self.inner() {
            Some(inner) => inner.stored_bytes(),
            None => self.layout().decoded_bytes(),
        }
    }
}

/// Returns the inner volume of a wrapper, if chunk indices mean the same in both.
fn same_chunks<V: Volume + ?Sized>(volume: &V) -> Option<&dyn Volume> {
    let inner = volume.inner()?;
    let grid = |layout: &Layout| (layout.channels, layout.shape, layout.read_chunk);
    (grid(inner.layout()) == grid(volume.layout())).then_some(inner)
}

#[deny(clippy::missing_trait_methods)]
impl<V: Volume + ?Sized> Volume for Arc<V> {
    fn layout(&self) -> &Layout {
        (**self).layout()
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        (**self).read_channels(channels, region, out)
    }
    fn inner(&self) -> Option<&dyn Volume> {
        (**self).inner()
    }
    fn as_resampled(&self) -> Option<&super::Resampled> {
        (**self).as_resampled()
    }
    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        (**self).read_chunk(index)
    }
    fn prefetch(&self, index: ChunkShape) {
        (**self).prefetch(index);
    }
    fn time_points(&self) -> Option<u64> {
        (**self).time_points()
    }
    fn sequential_order(&self) -> Option<[usize; 4]> {
        (**self).sequential_order()
    }
    fn read_granularity(&self) -> Option<ChunkShape> {
        (**self).read_granularity()
    }
    fn reads_parts(&self) -> bool {
        (**self).reads_parts()
    }
    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        (**self).fill_chunk(index)
    }
    fn read_stats(&self) -> ReadStats {
        (**self).read_stats()
    }
    fn source_files(&self) -> Vec<PathBuf> {
        (**self).source_files()
    }
    fn check_unchanged(&self) -> Result<()> {
        (**self).check_unchanged()
    }
    fn identity(&self) -> Result<Json> {
        (**self).identity()
    }
    fn stored_bytes(&self) -> Result<u64> {
        (**self).stored_bytes()
    }
}

/// Convenience methods of every [`Volume`].
///
/// They are implemented once, for every type that implements [`Volume`], and cannot be overridden.
///
/// ```
/// use voxpatch::{MemoryVolume, Region, VolumeExt};
///
/// # fn main() -> voxpatch::Result<()> {
/// let volume = MemoryVolume::from_vec([2, 2, 3], 1, (0..12_u8).collect())?;
/// let patch = volume.read(Region::new([1, 0, 1], [1, 2, 2]))?;
/// assert_eq!(patch.as_slice::<u8>()?, [7, 8, 10, 11]);
/// # Ok(())
/// # }
/// ```
pub trait VolumeExt: Volume {
    /// Fills `out` with all channels of a region.
    ///
    /// # Errors
    ///
    /// As [`read_channels`](Volume::read_channels).
    fn read_into(&self, region: Region, out: &mut [u8]) -> Result<()> {
        self.read_channels(0..self.layout().channels, region, out)
    }

    /// Reads all channels of a region into a new patch.
    ///
    /// # Errors
    ///
    /// As [`read_channels`](Volume::read_channels).
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

    /// Returns `true` if reading front to back is far cheaper than in any other order (see
    /// [`sequential_order`](Volume::sequential_order)).
    fn is_sequential(&self) -> bool {
        self.sequential_order().is_some()
    }

    /// Reads all channels of a region into an array with axes c, z, y, x. The type must be that of the volume;
    /// [`read_as`](Self::read_as) converts.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDType`] if the voxels have a different type, and otherwise as [`read`](Self::read).
    fn read_array<T: Element>(&self, region: Region) -> Result<Array4<T>> {
        let dtype = self.layout().dtype;
        if dtype != T::DTYPE {
            return Err(Error::WrongDType {
                expected: T::DTYPE,
                actual: dtype,
            });
        }
        self.read(region)?.into_array()
    }

    /// Reads a region and converts its voxels, as [`dtype`](crate::dtype) describes.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_as(&self, region: Region, dtype: DType) -> Result<Patch> {
        Ok(self.read(region)?.converted(dtype))
    }

    /// Returns the channels that belong to some time points.
    ///
    /// # Errors
    ///
    /// [`Error::NoTime`] if the volume has no time points, [`Error::NoSuchTime`] if it has fewer.
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

    /// Returns the volume with a different spacing, orientation or grid. Nothing is read or copied in advance.
    ///
    /// # Errors
    ///
    /// As [`Resample::of`].
    fn resampled(self, resample: &Resample) -> Result<Arc<dyn Volume>>
    where
        Self: Sized + 'static,
    {
        resample.of(Arc::new(self))
    }
}

impl<V: Volume + ?Sized> VolumeExt for V {}

/// A volume under construction.
///
/// Nothing appears under the output's name until [`finish`](Self::finish). Until then, the voxels are stored next to it
/// under a name that ends in `.incomplete`, which is removed when the volume is dropped unfinished.
pub trait VolumeMut: Debug + Send + Sync {
    /// Returns the layout of the stored volume.
    fn layout(&self) -> &Layout;

    /// Writes the voxels of some channels of a region, row-major c, z, y, x, in native byte order.
    ///
    /// Concurrent writes are allowed if no two of them touch the same write chunk.
    ///
    /// # Errors
    ///
    /// [`Error::PartialChunk`] if channels and region do not consist of whole write chunks (clipped at the volume's
    /// edge), [`Error::BufferLength`], and [`Error::Io`] if the voxels cannot be written.
    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()>;

    /// Writes all channels of a region.
    ///
    /// # Errors
    ///
    /// As [`write_channels`](Self::write_channels).
    fn write(&self, region: Region, voxels: &[u8]) -> Result<()> {
        self.write_channels(0..self.layout().channels, region, voxels)
    }

    /// Returns the maximum bytes of coarser-level voxels that wait for others, if the write chunks arrive one after
    /// another, all channels of each together, with the axes in `order` (0 to 2 for z, y, x, slowest first). 0 if there
    /// are no coarser levels.
    fn pyramid_buffer_bytes(&self, order: [usize; 3]) -> u64 {
        let _ = order;
        0
    }

    /// Flushes the output to disk and gives it its name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the output cannot be written or renamed, [`Error::Exists`] if its name has been taken.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Convenience methods of every [`VolumeMut`].
pub trait VolumeMutExt: VolumeMut {
    /// Writes an array with axes c, z, y, x and all channels. Its first voxel is at `start` (z, y, x).
    ///
    /// ```
    /// use ndarray::Array4;
    /// use voxpatch::volume::{CreateOptions, Layout, VolumeExt, VolumeMutExt, create};
    /// use voxpatch::{DType, Region};
    ///
    /// # fn main() -> voxpatch::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("out.zarr");
    /// let output = create(&path, &Layout::new([8, 16, 16], 1, DType::F32), &CreateOptions::default())?;
    /// output.write_array([0; 3], Array4::<f32>::ones((1, 8, 16, 16)).view())?;
    /// output.finish()?;
    /// let voxels = voxpatch::open(&path)?.read_array::<f32>(Region::new([4, 0, 0], [1, 2, 2]))?;
    /// assert_eq!(voxels.sum(), 4.0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WrongDType`] if the output has a different type, and otherwise as [`write`](VolumeMut::write).
    fn write_array<T: Element>(&self, start: [i64; 3], array: ArrayView4<'_, T>) -> Result<()> {
        let layout = self.layout();
        if layout.dtype != T::DTYPE {
            return Err(Error::WrongDType {
                expected: layout.dtype,
                actual: T::DTYPE,
            });
        }
        let (channels, z, y, x) = array.dim();
        let region = Region::new(start, [z, y, x].map(|n| n as u64));
        let array = array.as_standard_layout();
        let voxels = array.as_slice().expect("the standard layout is contiguous");
        self.write_channels(0..channels as u64, region, bytemuck::cast_slice(voxels))
    }
}

impl<V: VolumeMut + ?Sized> VolumeMutExt for V {}
