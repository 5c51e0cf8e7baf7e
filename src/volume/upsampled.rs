//! A coarser volume on a finer grid: each voxel is the nearest one of the coarse volume.
//!
//! Values are not interpolated, so labels stay labels and weights stay weights. Nothing is copied in advance: a read
//! reads the part of the coarse volume that it needs. The geometries determine the positions of both volumes, so that a
//! coarse voxel covers the same millimeters in both.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::mismatch::{TOLERANCE, differ};
use super::{Chunk, ChunkShape, ChunkVoxels, Layout, ReadStats, Volume, chunk};
use crate::error::Result;
use crate::geometry::Affine;
use crate::region::{AXES, Region, Shape};

/// Chunks are halved until they have at most this many voxels, because a whole chunk is computed at once.
const MOST_VOXELS: u64 = 1 << 21;

/// The rounding error, in voxels, within which two faces count as a whole voxel apart.
const ROUNDING: f64 = 1e-3;

/// A coarser volume presented with the voxels of a finer one, by nearest neighbor, for any ratio.
///
/// Put a [`Cached`](super::Cached) beneath it if the same parts are read repeatedly.
#[derive(Debug)]
pub struct Upsampled {
    inner: Arc<dyn Volume>,
    layout: Layout,
    /// Along z, y, x: fine voxel i is in coarse voxel `(i + 1/2) * scale + shift`, rounded down.
    scale: [f64; 3],
    shift: [f64; 3],
}

impl Upsampled {
    /// Presents `coarse` on the grid of `fine`.
    ///
    /// # Errors
    ///
    /// [`Error::GridMismatch`](crate::Error::GridMismatch) if the axes of the two have different directions, if
    /// `coarse` has more voxels along an axis, or if the extents differ by a voxel of `coarse` or more at any face (by
    /// a tenth of a voxel along an axis with equally many voxels). The last face may differ by more in a pyramid level
    /// that lost its last voxels, if the centers of both first voxels coincide, as in pyramids whose levels have only a
    /// scale.
    pub fn new(coarse: Arc<dyn Volume>, fine: &Layout) -> Result<Self> {
        Self::within(coarse, fine, TOLERANCE)
    }

    /// As [`new`](Self::new), with a tolerance. Directions may differ by `tolerance` voxels of `coarse` at its far end,
    /// and an axis with equally many voxels in both by `tolerance` voxels at each end.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn within(coarse: Arc<dyn Volume>, fine: &Layout, tolerance: f64) -> Result<Self> {
        let own = coarse.layout();
        let differ = |what, one, other| Err(differ(fine, own, what, one, other));
        if (0..3).any(|a| own.shape[a] > fine.shape[a]) {
            let shapes = [fine.shape, own.shape].map(|shape| format!("{shape:?}"));
            let [one, other] = shapes;
            return differ("shape", one, other);
        }
        let (a, b) = (&fine.geometry, &own.geometry);
        let directions = [a, b].map(|geometry| unit(&geometry.affine, geometry.spacing));
        let finest = b.spacing.iter().copied().fold(f64::INFINITY, f64::min);
        let apart = |column: usize| {
            let length = float(own.shape[2 - column]) * b.spacing[2 - column];
            (0..3).any(|row| {
                let turned = directions[0][row][column] - directions[1][row][column];
                turned.abs() * length > tolerance * finest
            })
        };
        if let Some(column) = (0..3).find(|&column| apart(column)) {
            let text = |g: usize| format!("{:?}", directions[g].map(|row| row[column]));
            return differ("direction", text(0), text(1));
        }
        let (mut scale, mut shift) = ([1.0; 3], [0.0; 3]);
        for axis in 0..3 {
            let column = 2 - axis;
            let [lengths, spacings] = [
                [fine.shape[axis], own.shape[axis]].map(float),
                [a.spacing[axis], b.spacing[axis]],
            ];
            // From the fine volume's first face to the coarse one's, along this axis, in mm.
            let centers: f64 = (0..3)
                .map(|row| directions[0][row][column] * (b.affine[row][3] - a.affine[row][3]))
                .sum();
            let first = centers - (spacings[1] - spacings[0]) / 2.0;
            let last = first + lengths[1] * spacings[1] - lengths[0] * spacings[0];
            let allowed = if own.shape[axis] == fine.shape[axis] {
                tolerance
            } else {
                1.0 - ROUNDING
            };
            let lost = lengths[0] * spacings[0] - lengths[1] * spacings[1];
            let is_floored = own.shape[axis] < fine.shape[axis]
                && centers.abs() <= tolerance * spacings[0]
                && (-ROUNDING..1.0 - ROUNDING).contains(&(lost / spacings[1]));
            if first.abs().max(last.abs()) > spacings[1] * allowed && !is_floored {
                let extent = |n: usize, from: f64| {
                    let end = from + lengths[n] * spacings[n];
                    format!(
                        "{from:.3} to {end:.3} mm along {} ({:?})",
                        AXES[axis],
                        [fine.shape, own.shape][n]
                    )
                };
                return differ("extent", extent(0, 0.0), extent(1, first));
            }
            scale[axis] = spacings[0] / spacings[1];
            shift[axis] = -first / spacings[1];
        }
        Ok(Self::spread_over(coarse, fine, scale, shift))
    }

    /// Presents `coarse` on the grid of `fine`, assuming that both cover the same extent. Their geometries are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::GridMismatch`](crate::Error::GridMismatch) unless the length of each axis of `fine`, divided by a whole
    /// number and rounded up or down, is that of `coarse`.
    pub fn stretched(coarse: Arc<dyn Volume>, fine: &Layout) -> Result<Self> {
        let own = coarse.layout();
        let whole = |a: usize| {
            let (long, short) = (fine.shape[a], own.shape[a]);
            let near = long / short.max(1);
            [near, near + 1]
                .iter()
                .any(|&times| times > 0 && (long / times == short || long.div_ceil(times) == short))
        };
        if !(0..3).all(whole) {
            let [one, other] = [fine.shape, own.shape].map(|shape| format!("{shape:?}"));
            return Err(differ(fine, own, "shape", one, other));
        }
        let scale = std::array::from_fn(|a| float(own.shape[a]) / float(fine.shape[a]));
        Ok(Self::spread_over(coarse, fine, scale, [0.0; 3]))
    }

    fn spread_over(
        coarse: Arc<dyn Volume>,
        fine: &Layout,
        scale: [f64; 3],
        shift: [f64; 3],
    ) -> Self {
        let own = coarse.layout();
        let layout = Layout {
            shape: fine.shape,
            geometry: fine.geometry,
            read_chunk: own.read_chunk.map(|chunk| fine_chunk(chunk, scale)),
            write_chunk: None,
            ..own.clone()
        };
        Self {
            inner: coarse,
            layout,
            scale,
            shift,
        }
    }

    /// Returns the coarse voxel that contains a fine one.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast stops at the ends of u64"
    )]
    fn coarse(&self, axis: usize, fine: u64) -> u64 {
        // A position on a face, within rounding, belongs to the voxel after it.
        let at = (float(fine) + 0.5) * self.scale[axis] + self.shift[axis] + 1e-6;
        (at as u64).min(self.inner.layout().shape[axis] - 1)
    }

    /// Returns the coarse voxels that a region needs. The region must be inside the volume and not empty.
    fn needed(&self, region: Region) -> Region {
        let ends: [[u64; 2]; 3] = std::array::from_fn(|a| {
            let start = region.start[a].unsigned_abs();
            [start, start + region.shape[a] - 1].map(|fine| self.coarse(a, fine))
        });
        let start = ends.map(|[first, _]| first.cast_signed());
        Region::new(start, ends.map(|[first, last]| last - first + 1))
    }

    /// Returns the channels and the region of a chunk, and the coarse chunks that it needs.
    fn coarse_chunks(
        &self,
        index: ChunkShape,
    ) -> Result<(Range<u64>, Region, impl Iterator<Item = ChunkShape> + use<>)> {
        let (channels, region) = chunk::clipped(&self.layout, index)?;
        let coarse = self.inner.layout().read_chunk;
        let needed = self.needed(region);
        let own = channels.clone();
        let all = coarse
            .into_iter()
            .flat_map(move |chunk| chunk::intersecting(chunk, &own, needed));
        Ok((channels, region, all))
    }

    /// Copies coarse voxels to a region of fine ones.
    fn spread(&self, source: (&[u8], Region), (out, region): (&mut [u8], Region), channels: usize) {
        let (voxels, needed) = source;
        let size = self.layout.dtype.size();
        let steps: [Vec<usize>; 3] = std::array::from_fn(|a| {
            let start = region.start[a].unsigned_abs();
            let first = needed.start[a].unsigned_abs();
            (start..start + region.shape[a])
                .map(|fine| place(self.coarse(a, fine) - first))
                .collect()
        });
        let [depth, height, width] = needed.shape.map(place);
        let line = steps[2].len() * size;
        let mut lines = out.chunks_exact_mut(line);
        for c in 0..channels {
            for &z in &steps[0] {
                for &y in &steps[1] {
                    let from = ((c * depth + z) * height + y) * width * size;
                    let row = &voxels[from..from + width * size];
                    let Some(line) = lines.next() else { return };
                    for (voxel, &x) in line.chunks_exact_mut(size).zip(&steps[2]) {
                        voxel.copy_from_slice(&row[x * size..(x + 1) * size]);
                    }
                }
            }
        }
    }
}

/// Returns the directions of x, y and z as columns of length 1.
fn unit(affine: &Affine, spacing: [f64; 3]) -> [[f64; 3]; 3] {
    std::array::from_fn(|row| {
        std::array::from_fn(|column| affine[row][column] / spacing[2 - column])
    })
}

/// Returns the chunk shape that covers about one coarse chunk, within the limit of [`MOST_VOXELS`].
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast stops at the ends of u64"
)]
fn fine_chunk([c, coarse @ ..]: ChunkShape, scale: [f64; 3]) -> ChunkShape {
    let mut fine: Shape =
        std::array::from_fn(|a| ((float(coarse[a]) / scale[a] + 1e-6) as u64).max(1));
    while fine.iter().copied().fold(c, u64::saturating_mul) > MOST_VOXELS {
        let Some(a) = (0..3).filter(|&a| fine[a] > 1).max_by_key(|&a| fine[a]) else {
            break;
        };
        fine[a] = fine[a].div_ceil(2);
    }
    let [z, y, x] = fine;
    [c, z, y, x]
}

#[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

fn place(n: u64) -> usize {
    usize::try_from(n).expect("a place inside a buffer in memory")
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Upsampled {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let needed = self.needed(region);
        let count = channels.end - channels.start;
        let bytes = needed.voxels() * count * self.layout.dtype.size() as u64;
        let mut voxels = vec![0; place(bytes)];
        self.inner.read_channels(channels, needed, &mut voxels)?;
        self.spread((&voxels, needed), (out, region), place(count));
        Ok(())
    }

    /// Reads a chunk. If it needs only one coarse chunk and that is not stored, it is a fill chunk.
    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let (channels, region, mut all) = self.coarse_chunks(index)?;
        let needed = self.needed(region);
        if let (Some(only), None) = (all.next(), all.next()) {
            let found = self.inner.read_chunk(only)?;
            if let ChunkVoxels::Fill(voxel) = found.voxels {
                let voxels = ChunkVoxels::Fill(voxel);
                return Ok(Chunk {
                    channels,
                    region,
                    voxels,
                });
            }
            let count = place(channels.end - channels.start);
            let size = self.layout.dtype.size();
            let mut part = vec![0; place(needed.voxels()) * count * size];
            found.copy_to(&channels, needed, &mut part, size);
            let mut out = vec![0; place(region.voxels()) * count * size];
            self.spread((&part, needed), (&mut out, region), count);
            return Ok(Chunk {
                channels,
                region,
                voxels: ChunkVoxels::Stored(out),
            });
        }
        let count = channels.end - channels.start;
        let bytes = place(region.voxels() * count) * self.layout.dtype.size();
        let mut out = vec![0; bytes];
        self.read_channels(channels.clone(), region, &mut out)?;
        Ok(Chunk {
            channels,
            region,
            voxels: ChunkVoxels::Stored(out),
        })
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&*self.inner)
    }

    /// Prefetches the coarse chunks that the chunk needs.
    fn prefetch(&self, index: ChunkShape) {
        if let Ok((_, _, all)) = self.coarse_chunks(index) {
            all.for_each(|index| self.inner.prefetch(index));
        }
    }

    fn time_points(&self) -> Option<u64> {
        self.inner.time_points()
    }

    /// Returns `None`: neighboring slabs need the same coarse plane, so a pass over them goes back in the coarse
    /// volume.
    fn sequential_order(&self) -> Option<[usize; 4]> {
        None
    }

    /// Returns the fine voxels along each axis of a preferred read of the coarse volume.
    fn read_granularity(&self) -> Option<ChunkShape> {
        let coarse = self.inner.read_granularity()?;
        Some(fine_chunk(coarse, self.scale))
    }

    /// Returns a fill value if none of the coarse chunks that the chunk needs is stored, and all have the same value.
    /// This volume has no write chunks: the answer is for the chunk itself.
    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        let (_, _, all) = self.coarse_chunks(index)?;
        let mut common = None;
        for coarse in all {
            let Some(voxel) = self.inner.fill_chunk(coarse)? else {
                return Ok(None);
            };
            if *common.get_or_insert_with(|| voxel.clone()) != voxel {
                return Ok(None);
            }
        }
        Ok(common)
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
            "upsampled to": self.layout.shape,
            "scale": self.scale,
            "shift": self.shift,
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
    use crate::error::Error;
    use crate::geometry::Geometry;
    use crate::volume::{MemoryVolume, VolumeExt, VolumeMut, suite};

    /// Numbers 0, 1, 2, ... with the geometry of a grid `ratio` times coarser that starts at the same face.
    fn coarse(shape: Shape, ratio: [f64; 3], chunk: Option<ChunkShape>) -> MemoryVolume {
        let origin = ratio.map(|ratio| (ratio - 1.0) / 2.0);
        counting(shape, Geometry::from_parts(ratio, origin), chunk)
    }

    fn counting(shape: Shape, geometry: Geometry, chunk: Option<ChunkShape>) -> MemoryVolume {
        let layout = Layout::new(shape, 2, DType::U16).with_geometry(geometry);
        let volume = MemoryVolume::zeros(layout).unwrap();
        let count = u16::try_from(Region::whole(shape).voxels() * 2).unwrap();
        let voxels: Vec<u16> = (0..count).collect();
        let whole = Region::whole(shape);
        volume.write(whole, bytemuck::cast_slice(&voxels)).unwrap();
        match chunk {
            Some(chunk) => volume.with_chunks(chunk),
            None => volume,
        }
    }

    #[test]
    fn each_voxel_is_the_coarse_voxel_at_the_same_position() {
        for (fine, low, ratio) in [
            ([6, 7, 8], [6, 7, 8], [1.0; 3]),
            ([9, 12, 3], [6, 8, 2], [1.5; 3]),
            ([8, 6, 4], [4, 3, 2], [2.0; 3]),
            ([9, 6, 12], [3, 2, 4], [3.0; 3]),
            // Odd sizes: the last coarse voxel extends beyond the fine grid, or the rest of that grid has no coarse
            // voxel.
            ([7, 9, 5], [4, 5, 3], [2.0; 3]),
            ([7, 9, 5], [3, 4, 2], [2.0; 3]),
            ([10, 11, 8], [7, 7, 5], [1.5; 3]),
            ([10, 7, 5], [10, 3, 4], [1.0, 2.5, 1.25]),
            ([5, 1, 9], [1, 1, 2], [5.0, 1.0, 4.5]),
        ] {
            for chunk in [None, Some([1, 2, 3, 2]), Some([2, 1, 2, 3])] {
                let inner = coarse(low, ratio, chunk);
                let whole = inner.to_patch();
                let voxels = whole.view::<u16>().unwrap();
                let layout = Layout::new(fine, 1, DType::U8);
                let up = Upsampled::new(Arc::new(inner), &layout).unwrap();
                let mut expected = Vec::new();
                for c in 0..2 {
                    for z in 0..fine[0] {
                        for y in 0..fine[1] {
                            for x in 0..fine[2] {
                                let at: [usize; 3] = std::array::from_fn(|a| {
                                    // The center in mm, and the voxel that contains it.
                                    let center = float([z, y, x][a]) + 0.5;
                                    let last = low[a] - 1;
                                    let mut n = 0;
                                    while n < last && float(n + 1) * ratio[a] <= center {
                                        n += 1;
                                    }
                                    place(n)
                                });
                                expected.push(voxels[[c, at[0], at[1], at[2]]]);
                            }
                        }
                    }
                }
                let expected = MemoryVolume::from_vec(fine, 2, expected)
                    .unwrap()
                    .to_patch();
                suite::check(&up, &expected);
            }
        }
    }

    #[test]
    fn axes_may_be_turned_and_flipped_and_rounding_in_headers_does_not_matter() {
        let inner = coarse([2, 3, 4], [2.0; 3], None);
        let turned = |spacing: f64, origin: [f64; 3]| {
            let mut affine = [[0.0; 4]; 4];
            // x along -y, y along x, z along z.
            affine[1][0] = -spacing;
            affine[0][1] = spacing;
            affine[2][2] = spacing;
            affine[3][3] = 1.0;
            for row in 0..3 {
                affine[row][3] = origin[row];
            }
            Geometry::from_affine(affine)
        };
        let straight = Layout::new([4, 6, 8], 1, DType::U8);
        let expected = Upsampled::new(Arc::new(inner), &straight).unwrap();
        let expected = expected.read(Region::whole([4, 6, 8])).unwrap();
        let fine = straight.with_geometry(turned(1.0, [5.0, 6.0, 7.0]));
        let geometry = turned(1.999_999_8, [5.5, 5.500_000_1, 7.499_999_9]);
        let low = counting([2, 3, 4], geometry, None);
        let up = Upsampled::new(Arc::new(low), &fine).unwrap();
        let found = up.read(Region::whole([4, 6, 8])).unwrap();
        assert_eq!(found, expected);
        assert_eq!(up.layout().geometry, fine.geometry);
    }

    #[test]
    fn coarse_volumes_with_a_different_extent_are_refused() {
        let fine = Layout::new([8, 8, 8], 1, DType::U8);
        let with = |shape: Shape, geometry: Geometry| {
            let layout = Layout::new(shape, 1, DType::U8).with_geometry(geometry);
            Upsampled::new(Arc::new(MemoryVolume::zeros(layout).unwrap()), &fine)
        };
        let half = |origin| Geometry::from_parts([2.0; 3], origin);
        assert!(with([4; 3], half([0.5; 3])).is_ok());
        assert!(with([4; 3], half([0.0; 3])).is_ok(), "half a voxel off");
        for (shape, geometry, expected) in [
            ([4, 4, 9], half([0.5; 3]), "shape"),
            ([4; 3], Geometry::default(), "extent"),
            ([4; 3], half([0.5, 0.5, 3.0]), "extent"),
            ([4, 2, 4], half([0.5; 3]), "extent"),
            ([8, 7, 8], Geometry::default(), "extent"),
        ] {
            let refused = with(shape, geometry).unwrap_err();
            assert!(
                matches!(refused, Error::GridMismatch { what, .. } if what == expected),
                "{refused}"
            );
        }
        let mut flipped = half([0.5; 3]);
        flipped.affine[1][1] = -2.0;
        let refused = with([4; 3], flipped).unwrap_err();
        assert!(
            matches!(
                refused,
                Error::GridMismatch {
                    what: "direction",
                    ..
                }
            ),
            "{refused}"
        );
    }

    #[test]
    fn levels_of_floored_pyramids_match_with_and_without_a_translation() {
        for n in 1..70_u64 {
            let fine = Layout::new([n, 1, 1], 1, DType::U8);
            for level in 0..6 {
                let step = float(1 << level);
                let with = |length: u64, origin| {
                    let geometry = Geometry::from_parts([step, 1.0, 1.0], [origin, 0.0, 0.0]);
                    let layout =
                        Layout::new([length.max(1), 1, 1], 1, DType::U8).with_geometry(geometry);
                    Upsampled::new(Arc::new(MemoryVolume::zeros(layout).unwrap()), &fine).is_ok()
                };
                let floored = n >> level;
                if floored == 0 {
                    continue;
                }
                for origin in [0.0, (step - 1.0) / 2.0] {
                    assert!(
                        with(floored, origin),
                        "{n} voxels, level {level} from {origin}"
                    );
                    if floored > 2 {
                        assert!(
                            !with(floored - 2, origin),
                            "{n} voxels, level {level} from {origin}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn unstored_chunks_stay_unstored_and_no_chunk_is_too_large() {
        #[derive(Debug)]
        struct Unstored(Layout);
        impl Volume for Unstored {
            fn layout(&self) -> &Layout {
                &self.0
            }
            fn read_channels(&self, _: Range<u64>, _: Region, _: &mut [u8]) -> Result<()> {
                Err(Error::Interrupted)
            }
            fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
                let (channels, region) = chunk::whole(&self.0, index)?;
                let voxels = ChunkVoxels::Fill(vec![7]);
                Ok(Chunk {
                    channels,
                    region,
                    voxels,
                })
            }
        }
        let spacing = Geometry::from_parts([4.0; 3], [1.5; 3]);
        let mut layout = Layout::new([1 << 14; 3], 1, DType::U8).with_geometry(spacing);
        layout.read_chunk = Some([1, 64, 64, 64]);
        let fine = Layout::new([1 << 16; 3], 1, DType::U8);
        let up = Upsampled::new(Arc::new(Unstored(layout)), &fine).unwrap();
        assert_eq!(up.layout().read_chunk, Some([1, 128, 128, 128]));
        let last = up.read_chunk([0, 511, 511, 511]).unwrap();
        assert_eq!(last.voxels, ChunkVoxels::Fill(vec![7]));
    }
}
