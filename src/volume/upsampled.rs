//! Coarser volumes on the grid of finer ones, by nearest neighbor, so that labels stay labels and weights stay weights.
//!
//! The geometries determine the positions of both volumes, so that a coarse voxel covers the same millimeters in both.

use std::sync::Arc;

use super::mismatch::differ;
use super::{Layout, Resampled, Volume, VoxelGrid};
use crate::error::Result;
use crate::geometry::Affine;
use crate::region::AXES;

/// The rounding error, in voxels, within which two faces count as a whole voxel apart.
const ROUNDING: f64 = 1e-3;

/// Presents `coarse` on the grid of `fine`, for any ratio. Directions may differ by `tolerance` voxels of `coarse` at its
/// far end, and an axis with equally many voxels in both by `tolerance` voxels at each end.
///
/// # Errors
///
/// [`Error::GridMismatch`](crate::Error::GridMismatch) if the axes of the two have different directions, if `coarse` has
/// more voxels along an axis, or if the extents differ by a voxel of `coarse` or more at any face (by a tenth of a voxel
/// along an axis with equally many voxels). The last face may differ by more in a pyramid level that lost its last
/// voxels, if the centers of both first voxels coincide, as in pyramids whose levels have only a scale.
pub(super) fn upsampled(
    coarse: Arc<dyn Volume>,
    fine: &Layout,
    tolerance: f64,
) -> Result<Resampled> {
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
    Ok(Resampled::spread(coarse, VoxelGrid::of(fine), scale, shift))
}

/// Presents `coarse` on the grid of `fine`, assuming that both cover the same extent. Their geometries are ignored.
///
/// # Errors
///
/// [`Error::GridMismatch`](crate::Error::GridMismatch) unless the length of each axis of `fine`, divided by a whole
/// number and rounded up or down, is that of `coarse`.
pub(super) fn stretched(coarse: Arc<dyn Volume>, fine: &Layout) -> Result<Resampled> {
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
    Ok(Resampled::spread(
        coarse,
        VoxelGrid::of(fine),
        scale,
        [0.0; 3],
    ))
}

/// Returns the directions of x, y and z as columns of length 1.
fn unit(affine: &Affine, spacing: [f64; 3]) -> [[f64; 3]; 3] {
    std::array::from_fn(|row| {
        std::array::from_fn(|column| affine[row][column] / spacing[2 - column])
    })
}

#[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::dtype::DType;
    use crate::error::Error;
    use crate::geometry::Geometry;
    use crate::region::{Region, Shape};
    use crate::volume::chunk;
    use crate::volume::mismatch::TOLERANCE;
    use crate::volume::{
        Chunk, ChunkShape, ChunkVoxels, MemoryVolume, VolumeExt, VolumeMut, suite,
    };

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
                let up = upsampled(Arc::new(inner), &layout, TOLERANCE).unwrap();
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
                                    usize::try_from(n).unwrap()
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
        let expected = upsampled(Arc::new(inner), &straight, TOLERANCE).unwrap();
        let expected = expected.read(Region::whole([4, 6, 8])).unwrap();
        let fine = straight.with_geometry(turned(1.0, [5.0, 6.0, 7.0]));
        let geometry = turned(1.999_999_8, [5.5, 5.500_000_1, 7.499_999_9]);
        let low = counting([2, 3, 4], geometry, None);
        let up = upsampled(Arc::new(low), &fine, TOLERANCE).unwrap();
        let found = up.read(Region::whole([4, 6, 8])).unwrap();
        assert_eq!(found, expected);
        assert_eq!(up.layout().geometry, fine.geometry);
    }

    #[test]
    fn coarse_volumes_with_a_different_extent_are_refused() {
        let fine = Layout::new([8, 8, 8], 1, DType::U8);
        let with = |shape: Shape, geometry: Geometry| {
            let layout = Layout::new(shape, 1, DType::U8).with_geometry(geometry);
            upsampled(
                Arc::new(MemoryVolume::zeros(layout).unwrap()),
                &fine,
                TOLERANCE,
            )
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
                    upsampled(
                        Arc::new(MemoryVolume::zeros(layout).unwrap()),
                        &fine,
                        TOLERANCE,
                    )
                    .is_ok()
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
        let up = upsampled(Arc::new(Unstored(layout)), &fine, TOLERANCE).unwrap();
        assert_eq!(up.layout().read_chunk, Some([1, 128, 128, 128]));
        let last = up.read_chunk([0, 511, 511, 511]).unwrap();
        assert_eq!(last.voxels, ChunkVoxels::Fill(vec![7]));
    }
}
