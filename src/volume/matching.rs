//! Brings a second volume (a mask, labels, weights, another modality) to the grid of a first.
//!
//! This is the only check for everything that uses two volumes together. It compares world positions, not voxel counts.
//! Flipped or permuted axes are reoriented, and a coarser volume of the same extent is upsampled. Anything else is an
//! error that gives the differing numbers.

use std::sync::Arc;

use super::mismatch::{TOLERANCE, differ};
use super::upsampled::{stretched, upsampled};
use super::{Interpolation, Layout, Reoriented, Resample, Volume, VoxelGrid};
use crate::error::{Error, Result};
use crate::geometry::{Affine, SignedAxes};
use crate::pad::Padding;
use crate::region::{AXES, Shape};

/// The reason why integers are not interpolated unless a caller says how.
pub(crate) const UNKNOWN_INTERPOLATION: &str = "integers may be labels: state how values between voxels are computed, \
     nearest or label-linear for labels, linear or cubic for intensities";

/// Options for matching two volumes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matching {
    /// Maximum distance between corresponding corners of two equal grids, in voxels along each axis.
    pub tolerance: f64,
    /// Whether to match by shape where one of the volumes has no geometry, such as a `.npy` file. The caller asserts
    /// that both have the same grid or cover the same extent.
    pub same_grid: bool,
}

impl Default for Matching {
    fn default() -> Self {
        Self {
            tolerance: TOLERANCE,
            same_grid: false,
        }
    }
}

impl Matching {
    /// Brings `other` to the grid of `reference`: unchanged if it is already on it, [`Reoriented`] if its axes are
    /// flipped or permuted, [`Resampled`](super::Resampled) by nearest neighbor if it is coarser and covers the same extent.
    ///
    /// Two volumes without geometry match if their shapes are equal.
    ///
    /// # Errors
    ///
    /// [`Error::GridMismatch`] if they do not cover the same extent, [`Error::NoGeometry`] if one of them has no
    /// geometry and [`same_grid`](Self::same_grid) is not set, [`Error::InvalidArgument`] if the tolerance is not a
    /// number from 0 to below 0.5.
    pub fn on_grid_of(
        &self,
        reference: &Layout,
        other: Arc<dyn Volume>,
    ) -> Result<Arc<dyn Volume>> {
        if !self.is_sound() {
            return Err(Error::InvalidArgument {
                argument: "tolerance",
                value: self.tolerance.to_string(),
                problem: "it must be at least 0 and below 0.5 voxels".to_owned(),
            });
        }
        let own = other.layout();
        // Equal to the last bit; an unknown geometry counts with its default values.
        if (own.shape, own.geometry) == (reference.shape, reference.geometry) {
            return Ok(other);
        }
        let known = [reference, own].map(|layout| layout.geometry.is_known);
        if known == [true; 2] {
            return self.by_geometry(reference, other);
        }
        let same_shape = own.shape == reference.shape;
        if same_shape && (self.same_grid || known == [false; 2]) {
            return Ok(other);
        }
        if self.same_grid {
            return Ok(Arc::new(stretched(other, reference)?));
        }
        Err(no_geometry(reference, own, known))
    }

    /// Brings `other` to the axes and the extent of `reference`, and keeps its voxel size. This is for readers that use
    /// the part of the extent that a voxel covers. A coarser volume that does not cover exactly the same extent is
    /// brought to the grid instead.
    ///
    /// # Errors
    ///
    /// As [`on_grid_of`](Self::on_grid_of).
    pub fn over_extent_of(
        &self,
        reference: &Layout,
        other: Arc<dyn Volume>,
    ) -> Result<Arc<dyn Volume>> {
        let own = other.layout();
        if reference.geometry.is_known && own.geometry.is_known && self.is_sound() {
            let turned = turned_to(reference, Arc::clone(&other));
            if turned.layout().shape != reference.shape
                && covers_same(reference, turned.layout(), self.tolerance)
            {
                return Ok(turned);
            }
        }
        self.on_grid_of(reference, other)
    }

    /// Brings `other` to the grid of `reference` by resampling, whatever its spacing, directions and extent; unchanged
    /// or [`Reoriented`] if its voxels are those of the grid. `outside` gives the values beyond its outer faces.
    ///
    /// Without an interpolation, floats are interpolated linearly. Integers may be labels, which must not be averaged:
    /// for them, the interpolation must be given.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if integers must be interpolated and no interpolation is given, and the errors of
    /// [`on_grid_of`](Self::on_grid_of) if one of the volumes has no geometry.
    pub fn resampled_to(
        &self,
        reference: &Layout,
        other: Arc<dyn Volume>,
        interpolation: Option<Interpolation>,
        outside: Padding,
    ) -> Result<Arc<dyn Volume>> {
        let own = other.layout();
        if !(reference.geometry.is_known && own.geometry.is_known && self.is_sound()) {
            return self.on_grid_of(reference, other);
        }
        let turned = turned_to(reference, Arc::clone(&other));
        let layout = turned.layout();
        if layout.shape == reference.shape && check_same(reference, layout, self.tolerance).is_ok()
        {
            return Ok(turned);
        }
        let Some(interpolation) = interpolation.or_else(|| {
            let is_float = own.dtype.is_float();
            is_float.then_some(Interpolation::Linear)
        }) else {
            return Err(Error::InvalidArgument {
                argument: "interpolation",
                value: format!("of {} ({})", own.path.display(), own.dtype),
                problem: UNKNOWN_INTERPOLATION.to_owned(),
            });
        };
        Resample::default()
            .with_like(Some(VoxelGrid::of(reference)))
            .with_interpolation(interpolation)
            .with_outside(outside)
            .of(other)
    }

    fn is_sound(&self) -> bool {
        (0.0..0.5).contains(&self.tolerance)
    }

    fn by_geometry(&self, reference: &Layout, other: Arc<dyn Volume>) -> Result<Arc<dyn Volume>> {
        let turned = turned_to(reference, other);
        if turned.layout().shape == reference.shape {
            check_same(reference, turned.layout(), self.tolerance)?;
            return Ok(turned);
        }
        Ok(Arc::new(upsampled(turned, reference, self.tolerance)?))
    }
}

/// Reorients a volume to the axes of the reference.
fn turned_to(reference: &Layout, other: Arc<dyn Volume>) -> Arc<dyn Volume> {
    let axes = SignedAxes::nearest(&reference.geometry, &other.layout().geometry);
    if axes == SignedAxes::SAME {
        return other;
    }
    Arc::new(Reoriented::new(other, axes))
}

/// Returns `true` if two volumes with the same axes have the same outer faces, within `tolerance` of the larger voxel.
fn covers_same(reference: &Layout, other: &Layout, tolerance: f64) -> bool {
    let Some(indices) = reference.geometry.indices_of(&other.geometry) else {
        return false;
    };
    (0..8_u8).all(|n| {
        let ends = |shape: Shape| -> [f64; 3] {
            std::array::from_fn(|column| {
                if n & (1 << column) == 0 {
                    -0.5
                } else {
                    float(shape[2 - column]) - 0.5
                }
            })
        };
        let (there, here) = (ends(other.shape), ends(reference.shape));
        (0..3).all(|row| {
            let moved: f64 = (0..3).map(|n| indices[row][n] * there[n]).sum();
            let apart = (moved + indices[row][3] - here[row]).abs();
            apart <= tolerance * indices[row][row].max(1.0)
        })
    })
}

fn no_geometry(reference: &Layout, own: &Layout, known: [bool; 2]) -> Error {
    let (without, with) = if known[0] {
        (own, reference)
    } else {
        (reference, own)
    };
    Error::NoGeometry {
        path: without.path.clone(),
        shape: without.shape,
        other: with.path.clone(),
        other_shape: with.shape,
    }
}

/// Checks that two grids of the same shape are equal.
fn check_same(reference: &Layout, other: &Layout, tolerance: f64) -> Result<()> {
    let (one, two) = (&reference.geometry, &other.geometry);
    let Some(indices) = one.indices_of(two) else {
        return if one.affine == two.affine {
            Ok(())
        } else {
            let rows = [one, two].map(|geometry| format!("{:?}", &geometry.affine[..3]));
            let [first, second] = rows;
            Err(differ(reference, other, "affine", first, second))
        };
    };
    let (corner, axis, apart) = furthest(&indices, reference.shape);
    if apart <= tolerance {
        return Ok(());
    }
    // If spacings or directions differ, their numbers say more than the position of a corner.
    for a in 0..3 {
        let [s, t] = [one.spacing[a], two.spacing[a]];
        let extent = float(reference.shape[a]) / 2.0;
        if (s - t).abs() * extent > tolerance * s {
            let text = |spacing: [f64; 3]| format!("{spacing:?} mm");
            let (s, t) = (text(one.spacing), text(two.spacing));
            return Err(differ(reference, other, "spacing", s, t));
        }
    }
    let far: f64 = (0..3)
        .map(|row| {
            let rest = (0..3).map(|column| {
                let turned = indices[row][column] - if row == column { 1.0 } else { 0.0 };
                (turned * float(reference.shape[2 - column])).abs()
            });
            rest.sum()
        })
        .fold(0.0, f64::max);
    if far > tolerance {
        let [first, second] =
            [one, two].map(|geometry| directions(&geometry.affine, geometry.spacing));
        return Err(differ(reference, other, "direction", first, second));
    }
    let place = |affine: &Affine| {
        let at: [f64; 3] = std::array::from_fn(|row| {
            (0..3).map(|n| affine[row][n] * corner[n]).sum::<f64>() + affine[row][3]
        });
        format!("{:.4}, {:.4}, {:.4} mm", at[0], at[1], at[2])
    };
    let second = format!(
        "{} ({apart:.3} voxels along {}, {tolerance} allowed)",
        place(&two.affine),
        AXES[axis]
    );
    Err(differ(
        reference,
        other,
        "position",
        place(&one.affine),
        second,
    ))
}

/// Returns the corner (x, y, z) of the outermost voxels that is furthest apart in the two grids, the axis of that
/// distance, and the distance in voxels.
fn furthest(indices: &Affine, shape: Shape) -> ([f64; 3], usize, f64) {
    let mut found = ([0.0; 3], 0, 0.0);
    for n in 0..8_u8 {
        let corner: [f64; 3] = std::array::from_fn(|column| {
            if n & (1 << column) == 0 {
                -0.5
            } else {
                float(shape[2 - column]) - 0.5
            }
        });
        for row in 0..3 {
            let there: f64 = (0..3).map(|n| indices[row][n] * corner[n]).sum();
            let apart = (there + indices[row][3] - corner[row]).abs();
            if apart.is_nan() || apart > found.2 {
                found = (corner, 2 - row, apart);
            }
        }
    }
    found
}

/// Formats the directions of x, y and z.
fn directions(affine: &Affine, spacing: [f64; 3]) -> String {
    let one = |column: usize| {
        let along = |row: usize| affine[row][column] / spacing[2 - column];
        format!("({:.4}, {:.4}, {:.4})", along(0), along(1), along(2))
    };
    format!("x {}, y {}, z {}", one(0), one(1), one(2))
}

#[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::geometry::Geometry;
    use crate::region::Region;
    use crate::volume::{MemoryVolume, VolumeExt, VolumeMut};

    const SHAPE: Shape = [4, 5, 6];

    /// Returns a volume of the numbers 0, 1, 2, ...
    fn volume(shape: Shape, geometry: Geometry) -> Arc<dyn Volume> {
        let layout = Layout::new(shape, 1, DType::U16).with_geometry(geometry);
        let volume = MemoryVolume::zeros(layout).unwrap();
        let whole = Region::whole(shape);
        let count = u16::try_from(whole.voxels()).unwrap();
        let voxels: Vec<u16> = (0..count).collect();
        volume.write(whole, bytemuck::cast_slice(&voxels)).unwrap();
        Arc::new(volume)
    }

    fn all(volume: &dyn Volume) -> Vec<u8> {
        let whole = Region::whole(volume.layout().shape);
        volume.read(whole).unwrap().bytes().to_vec()
    }

    /// Returns an oblique geometry with three different spacings.
    fn placed() -> Geometry {
        Geometry::from_affine([
            [0.6, 0.05, 0.4, -7.0],
            [-0.06, 0.7, 0.0, 11.0],
            [-0.1, 0.0, 2.5, 3.0],
            [0.0, 0.0, 0.0, 1.0],
        ])
    }

    fn what(result: Result<Arc<dyn Volume>>) -> &'static str {
        match result {
            Ok(_) => "the same",
            Err(Error::GridMismatch { what, .. }) => what,
            Err(Error::NoGeometry { .. }) => "unknown",
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn every_orientation_of_one_is_brought_to_every_orientation_of_the_other() {
        let matching = Matching::default();
        let plain = volume(SHAPE, placed());
        let turned: Vec<Arc<dyn Volume>> = SignedAxes::all()
            .map(|axes| Arc::new(Reoriented::new(Arc::clone(&plain), axes)) as Arc<dyn Volume>)
            .collect();
        assert_eq!(turned.len(), 48);
        for first in &turned {
            let expected = all(&**first);
            for second in &turned {
                let found = matching.on_grid_of(first.layout(), Arc::clone(second));
                let found = found.unwrap();
                assert_eq!(found.layout().shape, first.layout().shape);
                assert!(all(&*found) == expected, "mirrored or exchanged");
            }
        }
    }

    #[test]
    fn coarser_maps_are_turned_as_well() {
        let matching = Matching::default();
        let coarse = volume([2, 5, 3], placed().coarsened([2.0, 1.0, 2.0]));
        let fine = Layout::new(SHAPE, 1, DType::U8).with_geometry(placed());
        let expected = matching.on_grid_of(&fine, Arc::clone(&coarse)).unwrap();
        for axes in SignedAxes::all() {
            let turned: Arc<dyn Volume> = Arc::new(Reoriented::new(Arc::clone(&coarse), axes));
            let found = matching.on_grid_of(&fine, turned).unwrap();
            assert!(all(&*found) == all(&*expected), "{axes:?}");
        }
    }

    #[test]
    fn over_an_extent_voxels_may_have_any_size() {
        let matching = Matching::default();
        let fine = Layout::new(SHAPE, 1, DType::U8).with_geometry(placed());
        for (shape, factors) in [
            ([2, 5, 3], [2.0, 1.0, 2.0]),
            ([8, 5, 18], [0.5, 1.0, 1.0 / 3.0]),
            (SHAPE, [1.0; 3]),
        ] {
            let other = volume(shape, placed().coarsened(factors));
            for axes in SignedAxes::all() {
                let turned: Arc<dyn Volume> = Arc::new(Reoriented::new(Arc::clone(&other), axes));
                let found = matching.over_extent_of(&fine, turned).unwrap();
                assert_eq!(found.layout().shape, shape);
                assert!(all(&*found) == all(&*other), "{axes:?}");
            }
        }
        // A pyramid level that lost the last voxel is brought to the grid.
        let floored = volume([2, 2, 3], placed().coarsened([2.0; 3]));
        let found = matching.over_extent_of(&fine, floored).unwrap();
        assert_eq!(found.layout().shape, SHAPE);
        let far = volume([8, 5, 6], placed().moved_to([9.0; 3]));
        assert_eq!(what(matching.over_extent_of(&fine, far)), "shape");
    }

    #[test]
    fn the_tolerance_is_in_voxels_at_the_worst_corner() {
        let reference = Layout::new([40, 50, 60], 1, DType::U8).with_geometry(placed());
        let with = |matching: Matching, change: &dyn Fn(&mut Geometry)| {
            let mut geometry = placed();
            change(&mut geometry);
            let geometry = Geometry::from_affine(geometry.affine);
            let layout = Layout::new([40, 50, 60], 1, DType::U8).with_geometry(geometry);
            let other = Arc::new(MemoryVolume::zeros(layout).unwrap());
            what(matching.on_grid_of(&reference, other))
        };
        let usual = |change: &dyn Fn(&mut Geometry)| with(Matching::default(), change);
        assert_eq!(usual(&|g| g.affine[0][3] += 0.002), "the same");
        assert_eq!(usual(&|g| g.affine[1][3] += 0.05), "the same");
        assert_eq!(usual(&|g| g.affine[1][3] += 0.1), "position");
        assert_eq!(usual(&|g| g.affine[2][3] += 500.0), "position");
        assert_eq!(usual(&|g| g.affine[2][3] += 1.25), "position");
        assert_eq!(usual(&|g| g.affine[0][0] *= 1.0001), "the same");
        assert_eq!(usual(&|g| *g = g.scaled(1.01)), "spacing");
        assert_eq!(usual(&|g| *g = g.scaled(3.0)), "spacing");
        assert_eq!(usual(&|g| g.affine[0][2] += 0.05), "direction");
        assert_eq!(usual(&|g| g.affine[0][3] = f64::NAN), "affine");
        let strict = Matching {
            tolerance: 1e-4,
            ..Matching::default()
        };
        assert_eq!(with(strict, &|g| g.affine[0][3] += 0.002), "position");
        assert_eq!(with(strict, &|_| ()), "the same");
        let loose = Matching {
            tolerance: 0.4,
            ..Matching::default()
        };
        assert_eq!(with(loose, &|g| g.affine[1][3] += 0.1), "the same");
        for tolerance in [-1.0, 0.5, f64::NAN, f64::INFINITY] {
            let matching = Matching {
                tolerance,
                ..Matching::default()
            };
            let refused = matching.on_grid_of(&reference, volume(SHAPE, placed()));
            assert!(
                matches!(refused, Err(Error::InvalidArgument { .. })),
                "{tolerance}"
            );
        }
    }

    #[test]
    fn volumes_with_a_different_extent_are_refused() {
        let reference = Layout::new(SHAPE, 1, DType::U8).with_geometry(placed());
        for (shape, geometry, expected) in [
            ([3, 5, 6], placed(), "extent"),
            ([2, 3, 3], placed(), "extent"),
            ([5, 5, 6], placed(), "shape"),
            (
                [2, 5, 6],
                placed()
                    .coarsened([2.0, 1.0, 1.0])
                    .moved_to([0.0, 0.3, 0.0]),
                "extent",
            ),
            (
                [2, 5, 3],
                placed()
                    .coarsened([2.0, 1.0, 2.0])
                    .moved_to([0.0, 0.0, 9.0]),
                "extent",
            ),
        ] {
            let found = Matching::default().on_grid_of(&reference, volume(shape, geometry));
            assert_eq!(what(found), expected, "{shape:?}");
        }
    }

    #[test]
    fn without_geometry_shapes_are_enough_only_if_both_lack_it_or_on_request() {
        let said = Matching {
            same_grid: true,
            ..Matching::default()
        };
        let unknown = Geometry::default();
        let plain = Geometry::from_spacing([1.0; 3]);
        for (one, other, shape, asked, expected) in [
            (unknown, unknown, SHAPE, false, "the same"),
            (unknown, unknown, [2, 5, 3], false, "unknown"),
            (unknown, unknown, [2, 5, 3], true, "the same"),
            (placed(), unknown, SHAPE, false, "unknown"),
            (unknown, placed(), SHAPE, false, "unknown"),
            (placed(), unknown, SHAPE, true, "the same"),
            (unknown, placed(), SHAPE, true, "the same"),
            (placed(), unknown, [2, 3, 3], true, "the same"),
            (placed(), unknown, [5, 4, 6], true, "shape"),
            (placed(), unknown, [3, 4, 6], true, "shape"),
            // Exactly the geometry that is assumed by default.
            (plain, unknown, SHAPE, false, "the same"),
            (unknown, plain, SHAPE, false, "the same"),
            (plain, unknown, [2, 5, 3], false, "unknown"),
            // If both geometries are known, `same_grid` changes nothing.
            (placed(), plain, SHAPE, true, "spacing"),
        ] {
            let reference = Layout::new(SHAPE, 1, DType::U8).with_geometry(one);
            let matching = if asked { said } else { Matching::default() };
            let found = matching.on_grid_of(&reference, volume(shape, other));
            if let Ok(found) = &found {
                assert_eq!(found.layout().shape, SHAPE);
            }
            assert_eq!(what(found), expected, "{shape:?} {asked}");
        }
        let reference = Layout::new(SHAPE, 1, DType::U8).with_geometry(placed());
        let spread = said
            .on_grid_of(&reference, volume([2, 5, 3], unknown))
            .unwrap();
        let patch = spread.read(Region::whole(SHAPE)).unwrap();
        let voxels = patch.as_slice::<u16>().unwrap();
        assert_eq!(voxels[..8], [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(voxels[voxels.len() - 3..], [28, 29, 29]);
    }
}
