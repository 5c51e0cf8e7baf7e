//! Real values: a volume that applies slope and intercept to the stored values as they are read.

mod conversion;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use self::conversion::Conversion;
use super::chunk::{self, Chunk, ChunkVoxels};
use super::{ChunkShape, Layout, ReadStats, Rescale, Volume};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::region::Region;

/// The rescale that produced a volume's real values, and the type of the stored values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Applied {
    /// Slope and intercept.
    pub rescale: Rescale,
    /// The stored type.
    pub stored: DType,
}

/// The real values of a volume with slope and intercept.
///
/// The voxels have the type that [`Rescale::dtype`] chooses. Chunks, files and statistics are those of the volume
/// itself. A value that does not fit the type is an [`Error::ValueRange`] when it is read; values are never wrapped or
/// clipped.
///
/// [`OpenOptions::open`](super::OpenOptions::open) returns real values unless stored ones are requested.
#[derive(Debug)]
pub struct RealValues {
    inner: Arc<dyn Volume>,
    layout: Layout,
    conversion: Conversion,
}

impl RealValues {
    /// Returns the real values of `volume`, or the volume itself if its stored values are the real ones.
    #[must_use]
    pub fn of(volume: Arc<dyn Volume>) -> Arc<dyn Volume> {
        Self::made(volume, Rescale::dtype)
    }

    /// As [`of`](Self::of), but with the type `dtype` if it can hold every value of the type that `of` chooses. A
    /// volume whose stored values are the real ones keeps its type.
    #[must_use]
    pub fn with_dtype(volume: Arc<dyn Volume>, dtype: DType) -> Arc<dyn Volume> {
        Self::made(volume, |rescale, stored| {
            let own = rescale.dtype(stored);
            if dtype.holds(own) { dtype } else { own }
        })
    }

    fn made(
        volume: Arc<dyn Volume>,
        dtype: impl FnOnce(&Rescale, DType) -> DType,
    ) -> Arc<dyn Volume> {
        let stored = volume.layout();
        let Some(rescale) = stored.rescale else {
            return volume;
        };
        let real = dtype(&rescale, stored.dtype);
        let layout = Layout {
            dtype: real,
            rescale: None,
            applied: Some(Applied {
                rescale,
                stored: stored.dtype,
            }),
            ..stored.of_wrapper()
        };
        let conversion = Conversion::new(stored.dtype, rescale, real);
        Arc::new(Self {
            inner: volume,
            layout,
            conversion,
        })
    }

    /// Returns the error for a value that does not fit, by its position in a box of the volume. Returns `None` for
    /// voxels of a chunk outside the volume, which may have any value.
    fn unfit(
        &self,
        place: usize,
        voxel: &[u8],
        channels: &Range<u64>,
        region: Region,
    ) -> Option<Error> {
        let (channel, at) = region.place(place);
        let channel = channels.start + channel;
        let voxel_at = at.map(i64::unsigned_abs);
        let inside = (0..3).all(|a| voxel_at[a] < self.layout.shape[a]);
        (inside && channel < self.layout.channels).then(|| Error::ValueRange {
            path: self.layout.path.clone(),
            channel,
            voxel: voxel_at,
            value: self.conversion.text(voxel),
            dtype: self.layout.dtype.name(),
            remedy: "read the stored values, or ask for a type that holds it",
        })
    }

    /// Converts the stored voxels of a box to real values.
    fn converted(&self, stored: Vec<u8>, channels: &Range<u64>, region: Region) -> Result<Vec<u8>> {
        let mut first = None;
        let unfit = |place: usize, voxel: &[u8]| {
            first = self.unfit(place, voxel, channels, region);
            first.is_none()
        };
        let (from, to) = (
            self.conversion.stored().size(),
            self.conversion.real().size(),
        );
        let voxels = if from == to {
            let mut voxels = stored;
            self.conversion.apply_within(&mut voxels, unfit);
            voxels
        } else {
            let mut voxels = vec![0; stored.len() / from * to];
            self.conversion.apply(&stored, &mut voxels, unfit);
            voxels
        };
        first.map_or(Ok(voxels), Err)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Volume for RealValues {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Reads stored voxels directly into `out` if they fit, so that nothing is allocated.
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        let (from, to) = (
            self.conversion.stored().size(),
            self.conversion.real().size(),
        );
        let mut first = None;
        let unfit = |place: usize, voxel: &[u8]| {
            first = self.unfit(place, voxel, &channels, region);
            first.is_none()
        };
        let stored = out.len() / to * from;
        if from <= to {
            let skipped = out.len() - stored;
            self.inner
                .read_channels(channels.clone(), region, &mut out[skipped..])?;
            self.conversion.apply_within(out, unfit);
        } else {
            let mut voxels = vec![0; stored];
            self.inner
                .read_channels(channels.clone(), region, &mut voxels)?;
            self.conversion.apply(&voxels, out, unfit);
        }
        first.map_or(Ok(()), Err)
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&*self.inner)
    }

    fn as_resampled(&self) -> Option<&super::Resampled> {
        None
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let Chunk {
            channels,
            region,
            voxels,
        } = self.inner.read_chunk(index)?;
        let voxels = match voxels {
            ChunkVoxels::Fill(voxel) => {
                ChunkVoxels::Fill(self.converted(voxel, &channels, region)?)
            }
            ChunkVoxels::Stored(voxels) => {
                ChunkVoxels::Stored(self.converted(voxels, &channels, region)?)
            }
        };
        Ok(Chunk {
            channels,
            region,
            voxels,
        })
    }

    fn prefetch(&self, index: ChunkShape) {
        self.inner.prefetch(index);
    }

    fn time_points(&self) -> Option<u64> {
        self.inner.time_points()
    }

    fn sequential_order(&self) -> Option<[usize; 4]> {
        self.inner.sequential_order()
    }

    fn read_granularity(&self) -> Option<ChunkShape> {
        self.inner.read_granularity()
    }

    fn reads_parts(&self) -> bool {
        self.inner.reads_parts()
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        let Some(voxel) = self.inner.fill_chunk(index)? else {
            return Ok(None);
        };
        let (channels, region) = chunk::clipped(&self.layout, index)?;
        self.converted(voxel, &channels, region).map(Some)
    }

    fn read_stats(&self) -> ReadStats {
        self.inner.read_stats()
    }

    fn source_files(&self) -> Vec<PathBuf> {
        self.inner.source_files()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.inner.check_unchanged()
    }

    fn identity(&self) -> Result<Json> {
        let inner = self.inner.identity()?;
        let dtype = self.layout.dtype.to_string();
        Ok(json!({"values": "real", "dtype": dtype, "of": inner}))
    }

    fn stored_bytes(&self) -> Result<u64> {
        self.inner.stored_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::Patch;
    use crate::volume::{Cached, MemoryVolume, VolumeExt, suite};

    const RESCALES: [(f64, f64); 6] = [
        (1.0, -1024.0),
        (1.0, 100.0),
        (0.5, -3.0),
        (-1.0, 0.0),
        (1.0, 0.25),
        (1e-3, 1e4),
    ];

    /// Returns random voxels in memory that fit after any of these rescales.
    fn memory(dtype: DType, rescale: Rescale) -> (MemoryVolume, Patch) {
        let (shape, channels) = ([5, 9, 7], 3);
        let mut patch = suite::Random(3).patch(shape, channels, dtype);
        if dtype.is_float() || dtype.size() > 1 {
            // Halves between -500 and 500, or whole numbers from 100: no random bits are NaN then.
            let low = suite::Random(4)
                .patch(shape, channels, DType::U8)
                .converted(DType::F64);
            patch = low.converted(dtype);
        }
        let layout = Layout {
            rescale: Some(rescale),
            ..Layout::new(shape, channels, dtype)
        };
        let volume = MemoryVolume::from_patch(layout, patch.clone()).unwrap();
        (volume, patch)
    }

    /// Returns the real values by their definition, in loops.
    fn twin(stored: &Patch, rescale: Rescale, dtype: DType) -> Patch {
        let values = stored.clone().converted(DType::F64);
        let values: Vec<f64> = values.as_slice::<f64>().unwrap().to_vec();
        let real = values.iter().map(|v| v * rescale.slope + rescale.intercept);
        let real: Vec<f64> = real.collect();
        let wide = Patch::new(stored.region(), stored.channels(), real).unwrap();
        wide.converted(dtype)
    }

    #[test]
    fn every_type_passes_the_suite_with_and_without_chunks_and_cache() {
        for dtype in DType::ALL {
            for (slope, intercept) in RESCALES {
                let rescale = Rescale { slope, intercept };
                let (volume, stored) = memory(dtype, rescale);
                let real = RealValues::of(Arc::new(volume));
                let expected = twin(&stored, rescale, rescale.dtype(dtype));
                suite::check(&*real, &expected);
                let (volume, _) = memory(dtype, rescale);
                let chunked = Arc::new(volume.with_chunks([2, 4, 4, 4]));
                let real = RealValues::of(chunked);
                suite::check(&*real, &expected);
                suite::check(&Cached::new(Arc::clone(&real), 1 << 12), &expected);
                let layout = real.layout();
                assert_eq!(layout.rescale, None);
                assert_eq!(
                    layout.applied,
                    Some(Applied {
                        rescale,
                        stored: dtype
                    })
                );
            }
        }
    }

    #[test]
    fn a_volume_without_a_rescale_is_unchanged_and_a_wider_type_can_be_requested() {
        let plain: Arc<dyn Volume> =
            Arc::new(MemoryVolume::from_vec([1, 1, 2], 1, vec![1_u8, 2]).unwrap());
        assert!(Arc::ptr_eq(&RealValues::of(Arc::clone(&plain)), &plain));
        assert!(Arc::ptr_eq(
            &RealValues::with_dtype(Arc::clone(&plain), DType::F32),
            &plain
        ));
        let rescale = Rescale {
            slope: 1.0,
            intercept: -1024.0,
        };
        let layout = Layout {
            rescale: Some(rescale),
            ..Layout::new([1, 1, 2], 1, DType::I16)
        };
        let patch = Patch::new(Region::whole([1, 1, 2]), 1, vec![-32768_i16, 5]).unwrap();
        let volume = Arc::new(MemoryVolume::from_patch(layout, patch).unwrap());
        let narrow = RealValues::with_dtype(Arc::clone(&volume) as _, DType::U8);
        assert_eq!(narrow.layout().dtype, DType::I16);
        let wide = RealValues::with_dtype(volume, DType::I32);
        let read = wide.read(Region::whole([1, 1, 2])).unwrap();
        assert_eq!(read.as_slice::<i32>().unwrap(), [-33_792, -1019]);
    }

    #[test]
    fn a_voxel_that_does_not_fit_is_named_unless_it_is_outside_the_volume() {
        let rescale = Rescale {
            slope: 1.0,
            intercept: -1024.0,
        };
        let layout = Layout {
            rescale: Some(rescale),
            ..Layout::new([2, 3, 4], 2, DType::I16)
        };
        let mut voxels = vec![0_i16; 48];
        (voxels[24 + 12 + 4 + 2], voxels[24 + 12 + 4 + 3]) = (-32_000, -31_745);
        let patch = Patch::new(Region::whole([2, 3, 4]), 2, voxels).unwrap();
        let volume = || MemoryVolume::from_patch(layout.clone(), patch.clone()).unwrap();
        let check = |error: Error| match error {
            Error::ValueRange {
                channel,
                voxel,
                value,
                dtype,
                ..
            } => {
                assert_eq!(
                    (channel, voxel, &*value, dtype),
                    (1, [1, 1, 2], "-33024", "int16")
                );
            }
            other => panic!("{other}"),
        };
        let real = RealValues::of(Arc::new(volume()));
        check(real.read(Region::whole([2, 3, 4])).unwrap_err());
        check(real.read(Region::new([1, 1, 1], [1, 1, 3])).unwrap_err());
        assert!(real.read(Region::new([0, 0, 0], [1, 3, 4])).is_ok());
        assert!(real.read(Region::new([1, 1, 0], [1, 1, 2])).is_ok());
        let chunked = RealValues::of(Arc::new(volume().with_chunks([1, 2, 2, 2])));
        check(chunked.read_chunk([1, 0, 0, 1]).unwrap_err());
        assert!(chunked.read_chunk([0, 0, 0, 1]).is_ok());
        let text = real.read(Region::whole([2, 3, 4])).unwrap_err().to_string();
        assert!(
            text.contains("-33024") && text.contains("[1, 1, 2]") && text.contains("int16"),
            "{text}"
        );
    }

    /// Chunks that extend beyond the volume and contain unfit values there.
    #[derive(Debug)]
    struct Overhanging(MemoryVolume, bool);

    impl Volume for Overhanging {
        fn layout(&self) -> &Layout {
            Volume::layout(&self.0)
        }
        fn read_channels(
            &self,
            channels: Range<u64>,
            region: Region,
            out: &mut [u8],
        ) -> Result<()> {
            self.0.read_channels(channels, region, out)
        }
        fn read_chunk(&self, _: ChunkShape) -> Result<Chunk> {
            let region = Region::whole([2, 2, 2]);
            let inside = [7_i16, i16::MIN, i16::MIN, i16::MIN];
            let voxels = if self.1 {
                ChunkVoxels::Fill(bytemuck::bytes_of(&i16::MIN).to_vec())
            } else {
                ChunkVoxels::Stored(bytemuck::cast_slice(&inside.repeat(2)).to_vec())
            };
            Ok(Chunk {
                channels: 0..1,
                region,
                voxels,
            })
        }
        fn fill_chunk(&self, _: ChunkShape) -> Result<Option<Vec<u8>>> {
            Ok(self.1.then(|| bytemuck::bytes_of(&i16::MIN).to_vec()))
        }
    }

    #[test]
    fn voxels_outside_the_volume_may_have_any_value_and_fill_values_may_not() {
        let rescale = Rescale {
            slope: 1.0,
            intercept: -1024.0,
        };
        let layout = Layout {
            rescale: Some(rescale),
            ..Layout::new([2, 1, 1], 1, DType::I16)
        };
        let memory = || {
            MemoryVolume::zeros(layout.clone())
                .unwrap()
                .with_chunks([1, 2, 2, 2])
        };
        let real = RealValues::of(Arc::new(Overhanging(memory(), false)));
        let chunk = real.read_chunk([0; 4]).unwrap();
        let mut out = [0; 4];
        chunk.copy_to(&(0..1), Region::whole([2, 1, 1]), &mut out, 2);
        assert_eq!(bytemuck::cast_slice::<u8, i16>(&out), [-1017, -1017]);
        let filled = RealValues::of(Arc::new(Overhanging(memory(), true)));
        for error in [
            filled.read_chunk([0; 4]).unwrap_err(),
            filled.fill_chunk([0; 4]).unwrap_err(),
        ] {
            assert!(
                matches!(
                    error,
                    Error::ValueRange {
                        voxel: [0, 0, 0],
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
