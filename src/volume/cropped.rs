//! A box of a volume, presented as a volume.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::{Chunk, ChunkShape, Layout, ReadStats, Volume, chunk};
use crate::error::{Error, Result};
use crate::region::Region;

/// A box of a volume. Nothing is copied, and voxels keep their world position.
///
/// Chunks have the size of the volume's chunks. Along an axis where the box does not start at a chunk boundary, each
/// chunk reads from two of them.
#[derive(Debug)]
pub struct Cropped {
    inner: Arc<dyn Volume>,
    region: Region,
    layout: Layout,
}

impl Cropped {
    /// Crops `volume` to `region`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] if the box is not inside the volume, or has no voxels.
    pub fn new(volume: Arc<dyn Volume>, region: Region) -> Result<Self> {
        let all = volume.layout();
        if !region.is_inside(all.shape) || region.is_empty() {
            return Err(Error::OutOfBounds {
                region,
                shape: all.shape,
            });
        }
        let layout = Layout {
            shape: region.shape,
            geometry: all.geometry.moved_to(region.start.map(float)),
            write_chunk: None,
            ..all.of_wrapper()
        };
        Ok(Self {
            inner: volume,
            region,
            layout,
        })
    }

    /// Returns a region of the box as a region of the inner volume.
    fn inside(&self, mut region: Region) -> Region {
        for (start, first) in region.start.iter_mut().zip(self.region.start) {
            *start = start.saturating_add(first);
        }
        region
    }
}

#[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
fn float(n: i64) -> f64 {
    n as f64
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Cropped {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        self.inner.read_channels(channels, self.inside(region), out)
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&*self.inner)
    }

    fn as_resampled(&self) -> Option<&super::Resampled> {
        None
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let (channels, region) = chunk::clipped(&self.layout, index)?;
        let voxels = chunk::gather(&*self.inner, &channels, self.inside(region))?;
        Ok(Chunk {
            channels,
            region,
            voxels,
        })
    }

    fn prefetch(&self, index: ChunkShape) {
        let found = chunk::clipped(&self.layout, index).ok();
        let Some(((channels, region), chunk)) = found.zip(self.layout.read_chunk) else {
            return;
        };
        for inner in chunk::intersecting(chunk, &channels, self.inside(region)) {
            self.inner.prefetch(inner);
        }
    }

    fn time_points(&self) -> Option<u64> {
        self.inner.time_points()
    }

    fn sequential_order(&self) -> Option<[usize; 4]> {
        self.inner.sequential_order()
    }

    /// Returns the volume's granularity only if the planes of the box are whole planes of the volume.
    fn read_granularity(&self) -> Option<ChunkShape> {
        let all = self.inner.layout().shape;
        let whole = self.region.shape[1..] == all[1..];
        whole.then(|| self.inner.read_granularity())?
    }

    fn reads_parts(&self) -> bool {
        self.inner.reads_parts()
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        let (channels, region) = chunk::clipped(&self.layout, index)?;
        chunk::fill_of(&*self.inner, &channels, self.inside(region))
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
        Ok(json!({
            "box": [self.region.start, self.region.end()],
            "of": self.inner.identity()?,
        }))
    }

    /// Returns an estimate: the share of the volume's bytes by voxel count, because the sizes of single chunks are not
    /// known.
    fn stored_bytes(&self) -> Result<u64> {
        let all = self.inner.stored_bytes()?;
        let voxels = crate::region::voxels(self.inner.layout().shape).unwrap_or(u64::MAX);
        let share = u128::from(all) * u128::from(self.region.voxels()) / u128::from(voxels.max(1));
        Ok(u64::try_from(share).unwrap_or(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::geometry::Geometry;
    use crate::patch::{Patch, copy_common};
    use crate::volume::{ChunkVoxels, MemoryVolume, VolumeMut, suite};

    #[test]
    fn boxes_equal_the_same_part_of_the_whole() {
        let shape = [7, 10, 13];
        for dtype in [DType::U8, DType::I16, DType::F64] {
            let patch = suite::Random(5).patch(shape, 2, dtype);
            for chunk in [None, Some([1, 4, 4, 4]), Some([2, 7, 3, 5])] {
                let volume = MemoryVolume::zeros(Layout::new(shape, 2, dtype)).unwrap();
                volume.write(Region::whole(shape), patch.bytes()).unwrap();
                let volume: Arc<dyn Volume> = Arc::new(match chunk {
                    Some(chunk) => volume.with_chunks(chunk),
                    None => volume,
                });
                for (start, size) in [
                    ([0, 0, 0], [7, 10, 13]),
                    ([4, 4, 8], [3, 6, 5]),
                    ([1, 3, 5], [5, 7, 8]),
                    ([6, 9, 12], [1, 1, 1]),
                ] {
                    let region = Region::new(start, size);
                    let mut expected = Patch::zeros(Region::whole(size), 2, dtype).unwrap();
                    let from = (patch.bytes(), Region::whole(shape));
                    copy_common(from, (expected.bytes_mut(), region), 2, dtype.size());
                    let cropped = Cropped::new(Arc::clone(&volume), region).unwrap();
                    suite::check(&cropped, &expected);
                    let identity = cropped.identity().unwrap();
                    assert_eq!(identity["box"][0], json!(start));
                    assert_eq!(identity["of"], volume.identity().unwrap());
                }
            }
        }
    }

    #[test]
    fn voxels_keep_their_place_and_unstored_chunks_stay_unstored() {
        let mut layout = Layout::new([20, 16, 30], 1, DType::U16)
            .with_geometry(Geometry::from_parts([3.0, 2.0, 0.5], [1.0, 2.0, 3.0]));
        layout.read_chunk = Some([1, 8, 8, 8]);
        let volume: Arc<dyn Volume> = Arc::new(suite::Unstored::new(layout));
        let region = Region::new([2, 3, 4], [17, 9, 20]);
        let cropped = Cropped::new(Arc::clone(&volume), region).unwrap();
        let own = &cropped.layout().geometry;
        assert_eq!(
            (own.origin(), own.spacing),
            ([7.0, 8.0, 5.0], [3.0, 2.0, 0.5])
        );
        let found = cropped.read_chunk([0, 2, 1, 2]).unwrap();
        assert_eq!(found.voxels, ChunkVoxels::Fill(vec![7, 0]));
        assert_eq!(cropped.fill_chunk([0, 1, 0, 0]).unwrap(), Some(vec![7, 0]));
        for (start, size) in [
            ([0, 0, 0], [21, 16, 30]),
            ([-1, 0, 0], [2, 2, 2]),
            ([0, 0, 0], [0, 2, 2]),
        ] {
            let refused = Cropped::new(Arc::clone(&volume), Region::new(start, size));
            assert!(
                matches!(refused, Err(Error::OutOfBounds { .. })),
                "{start:?}"
            );
        }
    }
}
