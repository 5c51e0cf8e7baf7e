//! A volume with flipped and permuted axes, and the same voxels.
//!
//! Nothing is copied in advance: a read reads the box that it needs and reorders it. Chunks are those of the volume on
//! the new axes. Along a flipped axis whose length is not a multiple of the chunk's, each new chunk needs two old ones.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::{Chunk, ChunkShape, ChunkVoxels, Layout, ReadStats, Volume, chunk};
use crate::error::Result;
use crate::geometry::SignedAxes;
use crate::region::Region;

/// Edge, in voxels, of the squares in which axes are exchanged, so that the rows of both sides fit in the processor's
/// cache.
const TILE: usize = 32;

/// A volume on other axes. Shape, chunks and geometry change with the voxels, so that each voxel keeps its world
/// position.
#[derive(Debug)]
pub struct Reoriented {
    inner: Arc<dyn Volume>,
    axes: SignedAxes,
    layout: Layout,
}

impl Reoriented {
    /// Presents `volume` on other axes.
    #[must_use]
    pub fn new(volume: Arc<dyn Volume>, axes: SignedAxes) -> Self {
        let own = volume.layout();
        let turned = |[c, chunk @ ..]: ChunkShape| {
            let [z, y, x] = axes.shape(chunk);
            [c, z, y, x]
        };
        let layout = Layout {
            shape: axes.shape(own.shape),
            geometry: own.geometry.turned(axes, own.shape),
            read_chunk: own.read_chunk.map(turned),
            write_chunk: None,
            ..own.of_wrapper()
        };
        Self {
            inner: volume,
            axes,
            layout,
        }
    }

    /// Returns the box of the inner volume that corresponds to a region inside this one.
    fn inside(&self, region: Region) -> Region {
        let mut inside = region;
        for (axis, &from) in self.axes.from.iter().enumerate() {
            inside.shape[from] = region.shape[axis];
            inside.start[from] = if self.axes.flipped[axis] {
                let length = self.layout.shape[axis];
                let end = region.start[axis].saturating_add_unsigned(region.shape[axis]);
                length.cast_signed().saturating_sub(end)
            } else {
                region.start[axis]
            };
        }
        inside
    }

    /// Reorders voxels of a region of the inner volume into `out`.
    fn turn(&self, voxels: &[u8], out: &mut [u8], region: Region) {
        let dims = region.shape.map(place);
        if dims.contains(&0) {
            return;
        }
        match self.layout.dtype.size() {
            1 => turn_all::<1>(voxels, out, dims, self.axes),
            2 => turn_all::<2>(voxels, out, dims, self.axes),
            4 => turn_all::<4>(voxels, out, dims, self.axes),
            _ => turn_all::<8>(voxels, out, dims, self.axes),
        }
    }

    /// Iterates over the inner chunks that a chunk needs.
    fn inner_chunks(&self, index: ChunkShape) -> impl Iterator<Item = ChunkShape> + use<> {
        let found = chunk::clipped(&self.layout, index).ok();
        let inner = found.map(|(channels, region)| (channels, self.inside(region)));
        let chunk = self.inner.layout().read_chunk;
        inner
            .zip(chunk)
            .into_iter()
            .flat_map(|((channels, region), chunk)| chunk::intersecting(chunk, &channels, region))
    }
}

/// Reorders the voxels of all channels; `dims` are the new lengths.
fn turn_all<const N: usize>(voxels: &[u8], out: &mut [u8], dims: [usize; 3], axes: SignedAxes) {
    let mut old = [0; 3];
    for (axis, &from) in axes.from.iter().enumerate() {
        old[from] = dims[axis];
    }
    let count = dims.iter().product::<usize>();
    let steps = [old[1] * old[2], old[2], 1];
    let walk = Walk {
        dims,
        steps: axes.from.map(|from| steps[from]),
        flipped: axes.flipped,
    };
    let voxels = bytemuck::cast_slice::<u8, [u8; N]>(voxels);
    let out = bytemuck::cast_slice_mut::<u8, [u8; N]>(out);
    for (from, to) in voxels.chunks_exact(count).zip(out.chunks_exact_mut(count)) {
        walk.turn(from, to);
    }
}

/// The positions of old voxels in the order of the new ones.
struct Walk {
    dims: [usize; 3],
    /// The distance in old voxels from one new voxel to the next, along each new axis.
    steps: [usize; 3],
    flipped: [bool; 3],
}

impl Walk {
    /// Returns the contribution of voxel `n` along a new axis to the old position.
    const fn along(&self, axis: usize, n: usize) -> usize {
        let n = if self.flipped[axis] {
            self.dims[axis] - 1 - n
        } else {
            n
        };
        n * self.steps[axis]
    }

    fn turn<T: Copy>(&self, from: &[T], to: &mut [T]) {
        let [depth, height, width] = self.dims;
        if self.steps[2] == 1 {
            for (row, line) in to.chunks_exact_mut(width).enumerate() {
                let start = self.along(0, row / height) + self.along(1, row % height);
                let old = &from[start..start + width];
                if self.flipped[2] {
                    for (to, from) in line.iter_mut().zip(old.iter().rev()) {
                        *to = *from;
                    }
                } else {
                    line.copy_from_slice(old);
                }
            }
            return;
        }
        // Rows of old voxels run along a different new axis: both are processed square by square.
        let near = usize::from(self.steps[0] != 1);
        let (far, lengths) = (1 - near, [depth, height]);
        let strides = [height * width, width];
        for outer in 0..lengths[far] {
            for first in (0..lengths[near]).step_by(TILE) {
                for start in (0..width).step_by(TILE) {
                    for row in first..lengths[near].min(first + TILE) {
                        let line = outer * strides[far] + row * strides[near];
                        let old = self.along(far, outer) + self.along(near, row);
                        for column in start..width.min(start + TILE) {
                            to[line + column] = from[old + self.along(2, column)];
                        }
                    }
                }
            }
        }
    }
}

fn place(n: u64) -> usize {
    usize::try_from(n).expect("a place inside a buffer in memory")
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Reoriented {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let mut voxels = vec![0; out.len()];
        self.inner
            .read_channels(channels, self.inside(region), &mut voxels)?;
        self.turn(&voxels, out, region);
        Ok(())
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&*self.inner)
    }

    fn as_resampled(&self) -> Option<&super::Resampled> {
        None
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let (channels, region) = chunk::clipped(&self.layout, index)?;
        let found = chunk::gather(&*self.inner, &channels, self.inside(region))?;
        let voxels = match found {
            ChunkVoxels::Fill(voxel) => ChunkVoxels::Fill(voxel),
            ChunkVoxels::Stored(voxels) => {
                let mut out = vec![0; voxels.len()];
                self.turn(&voxels, &mut out, region);
                ChunkVoxels::Stored(out)
            }
        };
        Ok(Chunk {
            channels,
            region,
            voxels,
        })
    }

    fn prefetch(&self, index: ChunkShape) {
        for inner in self.inner_chunks(index) {
            self.inner.prefetch(inner);
        }
    }

    fn time_points(&self) -> Option<u64> {
        self.inner.time_points()
    }

    /// Returns the same order on the new axes, unless one is flipped.
    fn sequential_order(&self) -> Option<[usize; 4]> {
        let order = self.inner.sequential_order()?;
        let new = |old: usize| match old {
            0 => 0,
            old => {
                1 + self
                    .axes
                    .from
                    .iter()
                    .position(|&from| from + 1 == old)
                    .unwrap_or(0)
            }
        };
        (self.axes.flipped == [false; 3]).then(|| order.map(new))
    }

    /// Returns the granularity only if rows are rows of the volume.
    fn read_granularity(&self) -> Option<ChunkShape> {
        let [c, size @ ..] = self.inner.read_granularity()?;
        let [z, y, x] = self.axes.shape(size);
        (self.axes.from[2] == 2).then_some([c, z, y, x])
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
            "axes": self.axes.from,
            "flipped": self.axes.flipped,
            "of": self.inner.identity()?,
        }))
    }

    fn stored_bytes(&self) -> Result<u64> {
        self.inner.stored_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::geometry::Geometry;
    use crate::patch::Patch;
    use crate::region::Shape;
    use crate::volume::{MemoryVolume, VolumeMut, suite};

    /// Returns the voxels on other axes, copied one by one.
    fn twin(patch: &Patch, axes: SignedAxes) -> Patch {
        let old = patch.shape();
        let shape = axes.from.map(|from| old[from]);
        let mut twin = Patch::zeros(Region::whole(shape), patch.channels(), patch.dtype()).unwrap();
        let size = patch.dtype().size();
        let at = |shape: Shape, c: u64, [z, y, x]: Shape| {
            place(((c * shape[0] + z) * shape[1] + y) * shape[2] + x) * size
        };
        for c in 0..patch.channels() {
            for z in 0..shape[0] {
                for y in 0..shape[1] {
                    for x in 0..shape[2] {
                        let new = [z, y, x];
                        let mut from = [0; 3];
                        for axis in 0..3 {
                            let n = new[axis];
                            from[axes.from[axis]] = if axes.flipped[axis] {
                                shape[axis] - 1 - n
                            } else {
                                n
                            };
                        }
                        let (to, from) = (at(shape, c, new), at(old, c, from));
                        twin.bytes_mut()[to..to + size]
                            .copy_from_slice(&patch.bytes()[from..from + size]);
                    }
                }
            }
        }
        twin
    }

    fn stored(shape: Shape, channels: u64, dtype: DType) -> (MemoryVolume, Patch) {
        let patch = suite::Random(11).patch(shape, channels, dtype);
        let layout = Layout::new(shape, channels, dtype)
            .with_geometry(Geometry::from_parts([3.0, 2.0, 1.0], [7.0, 8.0, 9.0]));
        let volume = MemoryVolume::zeros(layout).unwrap();
        volume.write(Region::whole(shape), patch.bytes()).unwrap();
        (volume, patch)
    }

    #[test]
    fn all_48_orientations_equal_plain_loops_with_and_without_chunks() {
        for (n, axes) in SignedAxes::all().enumerate() {
            let dtype = [DType::U8, DType::I16, DType::F32, DType::F64][n % 4];
            let (_, patch) = stored([4, 9, 37], 2, dtype);
            let expected = twin(&patch, axes);
            // Chunk sizes that divide an axis, and chunk sizes that do not.
            for chunk in [None, Some([1, 2, 3, 37]), Some([2, 3, 4, 5])] {
                let (volume, _) = stored([4, 9, 37], 2, dtype);
                let volume = match chunk {
                    Some(chunk) => volume.with_chunks(chunk),
                    None => volume,
                };
                suite::check(&Reoriented::new(Arc::new(volume), axes), &expected);
            }
        }
    }

    #[test]
    fn a_reoriented_volume_turned_back_is_the_volume() {
        let (volume, patch) = stored([3, 4, 5], 1, DType::U16);
        let volume: Arc<dyn Volume> = Arc::new(volume);
        for axes in SignedAxes::all() {
            let turned: Arc<dyn Volume> = Arc::new(Reoriented::new(Arc::clone(&volume), axes));
            let own = &volume.layout().geometry;
            let back = SignedAxes::nearest(own, &turned.layout().geometry);
            let back = Reoriented::new(turned, back);
            assert_eq!(back.layout().shape, volume.layout().shape);
            assert_eq!(back.layout().geometry, *own, "{axes:?}");
            suite::check(&back, &patch);
        }
    }

    #[test]
    fn every_orientation_has_a_different_identity() {
        let volume: Arc<dyn Volume> = Arc::new(stored([3, 3, 3], 1, DType::U8).0);
        let identities: std::collections::HashSet<String> = SignedAxes::all()
            .map(|axes| Reoriented::new(Arc::clone(&volume), axes))
            .map(|turned| turned.identity().unwrap().to_string())
            .collect();
        assert_eq!(identities.len(), 48);
    }

    #[test]
    fn unstored_chunks_stay_unstored() {
        let unstored = suite::Unstored::new(Layout {
            read_chunk: Some([1, 8, 8, 8]),
            ..Layout::new([20, 16, 30], 1, DType::U16)
        });
        let unstored: Arc<dyn Volume> = Arc::new(unstored);
        for axes in SignedAxes::all() {
            let turned = Reoriented::new(Arc::clone(&unstored), axes);
            for index in [[0; 4], [0, 1, 1, 1]] {
                let found = turned.read_chunk(index).unwrap();
                assert_eq!(found.voxels, ChunkVoxels::Fill(vec![7, 0]));
                assert_eq!(turned.fill_chunk(index).unwrap(), Some(vec![7, 0]));
            }
        }
    }
}
