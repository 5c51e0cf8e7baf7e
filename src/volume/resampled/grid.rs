//! Voxel grids, and the grid that a volume gets from a spacing and an orientation.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::geometry::{Geometry, SignedAxes};
use crate::region::Shape;
use crate::volume::Layout;
use crate::words::Word;

/// The number of voxels along each axis and their position in the world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VoxelGrid {
    /// Voxels along z, y, x.
    pub shape: Shape,
    /// Spacing and affine.
    pub geometry: Geometry,
}

impl VoxelGrid {
    /// Creates a grid.
    #[must_use]
    pub const fn new(shape: Shape, geometry: Geometry) -> Self {
        Self { shape, geometry }
    }

    /// Returns the grid of a volume.
    #[must_use]
    pub const fn of(layout: &Layout) -> Self {
        Self::new(layout.shape, layout.geometry)
    }

    /// Returns the grid with its axes flipped and permuted to the nearest ones of an orientation. Each voxel keeps its
    /// position; oblique axes stay oblique.
    #[must_use]
    pub fn with_orientation(self, orientation: Orientation) -> Self {
        let axes = SignedAxes::nearest(&orientation.geometry(), &self.geometry);
        Self {
            shape: axes.shape(self.shape),
            geometry: self.geometry.turned(axes, self.shape),
        }
    }

    /// Returns the grid with this distance between voxel centers along z, y, x, in mm.
    ///
    /// The axes keep their directions, and the extents of both grids have the same center. An axis of length `n *
    /// spacing` mm has the nearest whole number of new voxels (half rounds up), at least one. The outer faces differ by
    /// at most a quarter of a new voxel, unless the axis is shorter than one new voxel.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if a spacing is not a positive number, or an axis would have 2^53 voxels or more.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be within the range"
    )]
    pub fn with_spacing(self, spacing: [f64; 3]) -> Result<Self> {
        let invalid = |problem: &str| Error::InvalidArgument {
            argument: "spacing",
            value: format!("{spacing:?}"),
            problem: problem.to_owned(),
        };
        if !spacing.iter().all(|&mm| mm.is_finite() && mm > 0.0) {
            return Err(invalid("each must be a number of mm above 0"));
        }
        let factors: [f64; 3] = std::array::from_fn(|a| spacing[a] / self.geometry.spacing[a]);
        let lengths: [f64; 3] = std::array::from_fn(|a| {
            let length = float(self.shape[a]) / factors[a];
            // A length of n + 1/2 voxels is rounded up in spite of rounding errors.
            (length + 0.5 + 1e-9 * length).floor().max(1.0)
        });
        if !lengths.iter().all(|&n| n < 9e15) {
            return Err(invalid("an axis would have too many voxels"));
        }
        // The first voxel's center, in voxels of this grid, so that the centers of the extents coincide.
        let first = std::array::from_fn(|a| {
            (float(self.shape[a]) - 1.0) / 2.0 - factors[a] * (lengths[a] - 1.0) / 2.0
        });
        let mut geometry = self.geometry.moved_to(first);
        for row in &mut geometry.affine[..3] {
            for (a, factor) in factors.into_iter().enumerate() {
                row[2 - a] *= factor;
            }
        }
        geometry.spacing = spacing;
        Ok(Self {
            shape: lengths.map(|n| n as u64),
            geometry,
        })
    }
}

/// The directions in which the axes x, y and z run, in that order, as in nibabel's `aff2axcodes`: `RAS` is right,
/// anterior, superior.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orientation {
    /// For x, y, z: the axis of the world (0 for right, 1 for anterior, 2 for superior).
    world: [usize; 3],
    /// For x, y, z: `true` if the axis runs to the left, to posterior or inferior.
    negative: [bool; 3],
}

impl Orientation {
    /// Returns the orientation whose directions are nearest to those of a geometry.
    #[must_use]
    pub fn of(geometry: &Geometry) -> Self {
        let axes = SignedAxes::nearest(geometry, &Geometry::from_spacing([1.0; 3]));
        Self {
            world: [2, 1, 0].map(|axis| 2 - axes.from[axis]),
            negative: [2, 1, 0].map(|axis| axes.flipped[axis]),
        }
    }

    /// Returns a geometry of 1 mm along these directions.
    fn geometry(self) -> Geometry {
        let mut affine = [[0.0; 4]; 4];
        for axis in 0..3 {
            affine[self.world[axis]][axis] = if self.negative[axis] { -1.0 } else { 1.0 };
        }
        affine[3][3] = 1.0;
        Geometry::from_affine(affine)
    }
}

const LETTERS: [[char; 2]; 3] = [['R', 'L'], ['A', 'P'], ['S', 'I']];

impl fmt::Display for Orientation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |axis: usize| LETTERS[self.world[axis]][usize::from(self.negative[axis])];
        let text: String = (0..3).map(letter).collect();
        f.pad(&text)
    }
}

impl FromStr for Orientation {
    type Err = Error;

    /// Parses three letters for x, y and z, such as `RAS` or `LPS`.
    fn from_str(text: &str) -> Result<Self> {
        let choices =
            "three letters for x, y and z, one each of R or L, A or P, S or I, such as RAS";
        let word = Word::new("orientation", text, choices);
        let find = |letter: char| {
            let letter = letter.to_ascii_uppercase();
            LETTERS.iter().enumerate().find_map(|(world, pair)| {
                let side = pair.iter().position(|&known| known == letter)?;
                Some((world, side == 1))
            })
        };
        let found: Option<Vec<(usize, bool)>> = text.trim().chars().map(find).collect();
        let Some(&[x, y, z]) = found.as_deref() else {
            return Err(word.unknown());
        };
        let world = [x.0, y.0, z.0];
        if (0..3).any(|axis| !world.contains(&axis)) {
            return Err(word.unknown());
        }
        Ok(Self {
            world,
            negative: [x.1, y.1, z.1],
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed() -> VoxelGrid {
        let geometry = Geometry::from_affine([
            [0.0, -0.7, 0.05, -7.0],
            [0.6, 0.0, 0.1, 11.0],
            [0.0, 0.03, -2.5, 3.0],
            [0.0, 0.0, 0.0, 1.0],
        ]);
        VoxelGrid::new([4, 50, 61], geometry)
    }

    #[test]
    fn orientations_are_those_of_nibabel() {
        assert_eq!(Orientation::of(&placed().geometry).to_string(), "ALI");
        assert_eq!(Orientation::of(&Geometry::default()).to_string(), "RAS");
        let mut seen = std::collections::HashSet::new();
        for axes in SignedAxes::all() {
            let turned = Geometry::default().turned(axes, [2, 3, 4]);
            let found = Orientation::of(&turned);
            assert_eq!(found.to_string().parse::<Orientation>().unwrap(), found);
            assert_eq!(Orientation::of(&found.geometry()), found);
            seen.insert(found.to_string());
            let back = VoxelGrid::new([2, 3, 4], turned).with_orientation(found);
            assert_eq!(back.geometry, turned);
            let there = placed().with_orientation(found);
            assert_eq!(Orientation::of(&there.geometry), found);
        }
        assert_eq!(seen.len(), 48);
        assert_eq!("lps".parse::<Orientation>().unwrap().to_string(), "LPS");
        for wrong in ["RAR", "RA", "RASX", "RAX", "", "canonical"] {
            assert!(wrong.parse::<Orientation>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_new_spacing_keeps_the_center_and_commutes_with_the_orientation() {
        let center = |grid: &VoxelGrid| {
            let middle = grid.shape.map(|n| (float(n) - 1.0) / 2.0);
            grid.geometry.moved_to(middle).origin()
        };
        for spacing in [
            [1.0; 3],
            [0.3, 2.0, 0.66],
            [7.0, 1.4, 9.0],
            [2.0, 0.35, 0.6],
        ] {
            let grid = placed().with_spacing(spacing).unwrap();
            let apart = center(&grid).into_iter().zip(center(&placed()));
            assert!(apart.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 1e-9);
            let lengths = Geometry::from_affine(grid.geometry.affine).spacing;
            for a in 0..3 {
                assert!((lengths[a] - spacing[a]).abs() < 1e-12);
                let extents = [&placed(), &grid].map(|g| float(g.shape[a]) * g.geometry.spacing[a]);
                let apart = (extents[0] - extents[1]).abs();
                assert!(
                    apart <= spacing[a] / 2.0 + 1e-6 || grid.shape[a] == 1,
                    "{spacing:?}"
                );
            }
            let orientation: Orientation = "RAS".parse().unwrap();
            let one = grid.with_orientation(orientation);
            let axes = SignedAxes::nearest(&orientation.geometry(), &placed().geometry);
            let other = placed().with_orientation(orientation);
            let other = other
                .with_spacing(axes.from.map(|from| spacing[from]))
                .unwrap();
            assert_eq!(one.shape, other.shape);
            let cells = one.geometry.affine.iter().zip(&other.geometry.affine);
            for (row, twin) in cells {
                assert!(row.iter().zip(twin).all(|(a, b)| (a - b).abs() < 1e-9));
            }
        }
        let half = VoxelGrid::new([10, 5, 3], Geometry::default());
        assert_eq!(
            half.with_spacing([4.0, 2.0, 100.0]).unwrap().shape,
            [3, 3, 1]
        );
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-20] {
            let refused = half.with_spacing([wrong, 1.0, 1.0]);
            assert!(
                matches!(refused, Err(Error::InvalidArgument { .. })),
                "{wrong}"
            );
        }
    }
}
