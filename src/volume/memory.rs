//! A volume in memory: the reference for testing all other volumes.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use ndarray::{Array, Axis, Dimension, Ix4};
use serde_json::{Value as Json, json};

use super::chunk::check_whole_chunks;
use super::files::identity;
use super::{ChunkShape, Layout, Volume, VolumeMut};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::patch::{Patch, Voxels, copy_common};
use crate::region::{Region, Shape};

/// A readable and writable volume with its voxels in memory.
#[derive(Debug)]
pub struct MemoryVolume {
    layout: Layout,
    voxels: RwLock<Patch>,
    /// A checksum of the voxels, computed on the first request and cleared when they change.
    checksum: Mutex<Option<u128>>,
}

impl MemoryVolume {
    /// Creates a volume of zeros.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if it does not fit into memory.
    pub fn zeros(layout: Layout) -> Result<Self> {
        let voxels = Patch::zeros(Region::whole(layout.shape), layout.channels, layout.dtype)?;
        Ok(Self {
            layout,
            voxels: RwLock::new(voxels),
            checksum: Mutex::default(),
        })
    }

    /// Creates a volume from voxels in row-major c, z, y, x order.
    ///
    /// # Errors
    ///
    /// [`Error::BufferLength`](crate::Error::BufferLength) if the number of voxels differs from the shape's.
    pub fn from_vec<T: Element>(shape: Shape, channels: u64, voxels: Vec<T>) -> Result<Self>
    where
        Vec<T>: Into<Voxels>,
    {
        let voxels = Patch::new(Region::whole(shape), channels, voxels)?;
        Ok(Self {
            layout: Layout::new(shape, channels, T::DTYPE),
            voxels: RwLock::new(voxels),
            checksum: Mutex::default(),
        })
    }

    /// Creates a volume of an array with axes c, z, y, x, or z, y, x for one channel. An array in row-major order is
    /// not copied.
    ///
    /// ```
    /// use ndarray::Array3;
    /// use voxpatch::volume::{MemoryVolume, VolumeExt};
    /// use voxpatch::Region;
    ///
    /// let volume = MemoryVolume::from_array(Array3::<i16>::zeros((8, 16, 16)))?;
    /// let corner = volume.read_array::<i16>(Region::new([0; 3], [2, 4, 4]))?;
    /// assert_eq!(corner.shape(), [1, 2, 4, 4]);
    /// # Ok::<_, voxpatch::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if an axis is empty or the array has neither three nor
    /// four axes.
    pub fn from_array<T: Element, D: Dimension>(array: Array<T, D>) -> Result<Self>
    where
        Vec<T>: Into<Voxels>,
    {
        let (axes, shape) = (array.ndim(), array.shape().to_vec());
        let array = match axes {
            3 => array.insert_axis(Axis(0)).into_dyn(),
            _ => array.into_dyn(),
        };
        let array = array
            .into_dimensionality::<Ix4>()
            .map_err(|_| Error::InvalidArgument {
                argument: "array",
                value: format!("of shape {shape:?}"),
                problem: format!("it has {axes} axes, but a volume has c, z, y, x or z, y, x"),
            })?;
        let patch = Patch::from_array([0; 3], array)?;
        let layout = Layout::new(patch.region().shape, patch.channels(), T::DTYPE);
        Self::from_patch(layout, patch)
    }

    /// Creates a volume with the given layout from a patch's voxels.
    ///
    /// # Errors
    ///
    /// [`Error::BufferLength`](crate::Error::BufferLength) or [`Error::WrongDType`](crate::Error::WrongDType) if the
    /// voxels do not fit the layout.
    pub fn from_patch(layout: Layout, patch: Patch) -> Result<Self> {
        if layout.dtype != patch.dtype() {
            return Err(Error::WrongDType {
                expected: layout.dtype,
                actual: patch.dtype(),
            });
        }
        let voxels = Patch::new(
            Region::whole(layout.shape),
            layout.channels,
            patch.into_voxels(),
        )?;
        Ok(Self {
            layout,
            voxels: RwLock::new(voxels),
            checksum: Mutex::default(),
        })
    }

    /// Makes the volume report chunks of this shape, to test code that works by chunks.
    #[must_use]
    pub fn with_chunks(mut self, chunk: ChunkShape) -> Self {
        self.layout.read_chunk = Some(chunk);
        self.layout.write_chunk = Some(chunk);
        self
    }

    /// Returns the byte at which the voxels of a channel start.
    fn offset(&self, voxels: &Patch, channel: u64) -> usize {
        let channels = usize::try_from(self.layout.channels.max(1)).unwrap_or(1);
        usize::try_from(channel).map_or(0, |n| n * (voxels.bytes().len() / channels))
    }

    fn known_checksum(&self) -> MutexGuard<'_, Option<u128>> {
        self.checksum.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a checksum of all voxels.
    fn checksum(&self) -> u128 {
        let voxels = self.voxels.read().unwrap_or_else(PoisonError::into_inner);
        *self
            .known_checksum()
            .get_or_insert_with(|| checksum(voxels.bytes()))
    }

    /// Returns all voxels as a patch.
    #[must_use]
    pub fn to_patch(&self) -> Patch {
        self.voxels
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Volume for MemoryVolume {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        let voxels = self.voxels.read().unwrap_or_else(PoisonError::into_inner);
        let size = self.layout.dtype.size();
        let skip = self.offset(&voxels, channels.start);
        let source = (&voxels.bytes()[skip..], voxels.region());
        copy_common(source, (out, region), channels.end - channels.start, size);
        Ok(())
    }

    /// Returns an empty list: the voxels are in memory.
    fn source_files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Includes a checksum of the voxels.
    fn identity(&self) -> Result<Json> {
        let kind = json!({"checksum": format!("{:032x}", self.checksum())});
        Ok(identity(&self.layout, &kind))
    }
}

/// Combines two different checksums: CRC-32C, and FNV-1a of 8-byte words.
fn checksum(bytes: &[u8]) -> u128 {
    let mut words = bytes.chunks_exact(8);
    let add = |hash: u64, word: &[u8]| {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        (hash ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3)
    };
    let hash = words.by_ref().fold(0xcbf2_9ce4_8422_2325, add);
    let hash = add(hash, words.remainder());
    (u128::from(crc32c::crc32c(bytes)) << 64) | u128::from(hash)
}

impl VolumeMut for MemoryVolume {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        self.layout.check_read(&channels, region, voxels.len())?;
        check_whole_chunks(&self.layout, &channels, region)?;
        let mut target = self.voxels.write().unwrap_or_else(PoisonError::into_inner);
        *self.known_checksum() = None;
        let whole = target.region();
        let skip = self.offset(&target, channels.start);
        copy_common(
            (voxels, region),
            (&mut target.bytes_mut()[skip..], whole),
            channels.end - channels.start,
            self.layout.dtype.size(),
        );
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3, Array4, s};

    use super::*;
    use crate::dtype::DType;
    use crate::volume::{VolumeExt, VolumeMutExt};

    #[test]
    fn arrays_go_in_and_out_of_volumes() {
        let ramp = (0..60).collect::<Vec<i16>>();
        let array = Array3::from_shape_vec((3, 4, 5), ramp).unwrap();
        let turned = array.view().permuted_axes([2, 1, 0]).to_owned();
        let turned = turned.permuted_axes([2, 1, 0]);
        for array in [array.clone(), turned] {
            let volume = MemoryVolume::from_array(array.clone()).unwrap();
            assert_eq!(Volume::layout(&volume).shape, [3, 4, 5]);
            let part = volume.read_array::<i16>(Region::new([1, 0, 2], [2, 3, 3]));
            assert_eq!(
                part.unwrap().slice(s![0, .., .., ..]),
                array.slice(s![1..3, 0..3, 2..5])
            );
        }
        let volume = MemoryVolume::from_array(Array4::<f32>::zeros((2, 3, 4, 5))).unwrap();
        assert_eq!(Volume::layout(&volume).channels, 2);
        let ramp =
            Array4::from_shape_vec((2, 2, 1, 3), (0..12_u8).map(f32::from).collect()).unwrap();
        // Axes with a different order in memory are written in the order c, z, y, x.
        let view = ramp.view().reversed_axes().to_owned();
        volume
            .write_array([1, 2, 2], view.view().reversed_axes())
            .unwrap();
        let found = volume.read_array::<f32>(Region::new([1, 2, 2], [2, 1, 3]));
        assert_eq!(found.unwrap(), ramp);
    }

    #[test]
    fn arrays_of_other_types_or_axes_are_refused() {
        let error = MemoryVolume::from_array(Array2::<u8>::zeros((4, 4))).unwrap_err();
        assert!(error.to_string().contains("[4, 4]"), "{error}");
        let volume = MemoryVolume::from_array(Array3::<u8>::zeros((4, 4, 4))).unwrap();
        let whole = Region::whole([4; 3]);
        let wrong = |error| {
            matches!(
                error,
                Error::WrongDType {
                    expected: DType::I16,
                    actual: DType::U8
                } | Error::WrongDType {
                    expected: DType::U8,
                    actual: DType::I16
                }
            )
        };
        assert!(wrong(volume.read_array::<i16>(whole).unwrap_err()));
        let array = Array4::<i16>::zeros((1, 4, 4, 4));
        assert!(wrong(volume.write_array([0; 3], array.view()).unwrap_err()));
        let array = Array4::<u8>::zeros((2, 4, 4, 4));
        assert!(
            volume.write_array([0; 3], array.view()).is_err(),
            "too many channels"
        );
        let array = Array4::<u8>::zeros((1, 4, 4, 5));
        assert!(
            volume.write_array([0; 3], array.view()).is_err(),
            "beyond the volume"
        );
    }
}
