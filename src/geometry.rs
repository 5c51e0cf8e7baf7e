//! The position of voxels in the world: spacing, affine, and their conventions.
//!
//! Spacing is in millimeters, in the order z, y, x. The affine maps voxel indices (x, y, z, 1) to millimeters in RAS+
//! (right, anterior, superior positive), as in NIfTI and nibabel. Formats in LPS (MetaImage, NRRD, DICOM) are converted
//! on reading and writing.

use crate::region::{ORDERS, Shape};

/// A 4 x 4 matrix, row by row.
pub type Affine = [[f64; 4]; 4];

/// The spacing and affine of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// The distance between voxel centers along z, y, x, in mm.
    pub spacing: [f64; 3],
    /// The matrix from voxel indices (x, y, z, 1) to mm in RAS+.
    pub affine: Affine,
    /// `true` if the file or the caller defines the geometry. Otherwise, as for a `.npy` file, 1 mm along the world's
    /// axes is assumed.
    pub is_known: bool,
}

/// Equal if spacing and affine are equal, whether known or assumed.
impl PartialEq for Geometry {
    fn eq(&self, other: &Self) -> bool {
        self.spacing == other.spacing && self.affine == other.affine
    }
}

/// The geometry that is assumed if it is unknown: 1 mm along the world's axes, with the first voxel at the origin.
impl Default for Geometry {
    fn default() -> Self {
        Self {
            is_known: false,
            ..Self::from_spacing([1.0; 3])
        }
    }
}

impl Geometry {
    /// Creates a geometry along the world's axes, with the first voxel at the origin. `spacing` is z, y, x in mm.
    #[must_use]
    pub fn from_spacing(spacing: [f64; 3]) -> Self {
        Self::from_parts(spacing, [0.0; 3])
    }

    /// Creates a geometry along the world's axes. `spacing` and the first voxel's `origin` are z, y, x in mm, RAS+.
    #[must_use]
    pub fn from_parts(spacing: [f64; 3], origin: [f64; 3]) -> Self {
        let mut affine = [[0.0; 4]; 4];
        for axis in 0..3 {
            affine[axis][axis] = spacing[2 - axis];
            affine[axis][3] = origin[2 - axis];
        }
        affine[3][3] = 1.0;
        Self {
            spacing,
            affine,
            is_known: true,
        }
    }

    /// Creates a geometry from an affine; the spacing is the length of its columns.
    #[must_use]
    pub fn from_affine(affine: Affine) -> Self {
        let length = |column: usize| {
            (0..3)
                .map(|row| affine[row][column].powi(2))
                .sum::<f64>()
                .sqrt()
        };
        Self {
            spacing: [length(2), length(1), length(0)],
            affine,
            is_known: true,
        }
    }

    /// Creates a geometry from columns for x, y, z and an origin, all in LPS millimeters.
    #[must_use]
    pub fn from_lps(columns: [[f64; 3]; 3], origin: [f64; 3]) -> Self {
        let mut affine = [[0.0; 4]; 4];
        for row in 0..3 {
            let sign = if row < 2 { -1.0 } else { 1.0 };
            for (column, values) in columns.iter().enumerate() {
                affine[row][column] = without_negative_zero(sign * values[row]);
            }
            affine[row][3] = without_negative_zero(sign * origin[row]);
        }
        affine[3][3] = 1.0;
        Self::from_affine(affine)
    }

    /// Returns the geometry with every length multiplied, for example to convert micrometers to millimeters.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        for row in &mut self.affine[..3] {
            *row = row.map(|value| value * factor);
        }
        self.spacing = self.spacing.map(|length| length * factor);
        self
    }

    /// Returns the geometry with the first voxel moved to the position of the voxel at `start` (z, y, x).
    #[must_use]
    pub fn moved_to(mut self, start: [f64; 3]) -> Self {
        for row in &mut self.affine[..3] {
            row[3] += row[0] * start[2] + row[1] * start[1] + row[2] * start[0];
        }
        self
    }

    /// Returns the geometry of coarser voxels, each of which covers `factors` (z, y, x) of these voxels. The center of
    /// the first is the center of the voxels that it covers.
    #[must_use]
    pub fn coarsened(self, factors: [f64; 3]) -> Self {
        let mut coarse = self.moved_to(factors.map(|factor| (factor - 1.0) / 2.0));
        for row in &mut coarse.affine[..3] {
            for (axis, factor) in factors.into_iter().enumerate() {
                row[2 - axis] *= factor;
            }
        }
        coarse.spacing = std::array::from_fn(|axis| coarse.spacing[axis] * factors[axis]);
        coarse
    }

    /// Returns `true` if every number is finite, no spacing is 0 or negative, and the axes point in three
    /// directions.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.affine.iter().flatten().all(|value| value.is_finite())
            && self.is_solid()
            && self
                .spacing
                .iter()
                .all(|&length| length.is_finite() && length > 0.0)
    }

    /// Returns `true` if the affine's columns for x, y and z span space.
    fn is_solid(&self) -> bool {
        let columns: [[f64; 3]; 3] = std::array::from_fn(|column| {
            let values: [f64; 3] = std::array::from_fn(|row| self.affine[row][column]);
            let length = values.iter().map(|n| n * n).sum::<f64>().sqrt();
            values.map(|value| value / length)
        });
        let [x, y, z] = columns;
        let cross = cross(x, y);
        let volume: f64 = (0..3).map(|row| cross[row] * z[row]).sum();
        // A column of zeros gives NaN, which fails as well.
        volume.abs() > 1e-9
    }

    /// Returns `true` if the affine consists of a spacing along the world's axes and an origin, which is all that
    /// OME-Zarr can store.
    #[must_use]
    pub fn is_aligned(&self) -> bool {
        let plain = Self::from_parts(self.spacing, self.origin());
        let near = |a: f64, b: f64| {
            (a - b).abs() <= 1e-9 * self.spacing.iter().copied().fold(0.0, f64::max)
        };
        self.affine
            .iter()
            .flatten()
            .zip(plain.affine.iter().flatten())
            .all(|(&a, &b)| near(a, b))
    }

    /// Returns the geometry of a volume of this shape (z, y, x) after its axes are reoriented.
    #[must_use]
    pub fn turned(&self, axes: SignedAxes, shape: Shape) -> Self {
        let mut affine = self.affine;
        for axis in 0..3 {
            let (from, flipped) = (axes.from[axis], axes.flipped[axis]);
            for (row, own) in affine.iter_mut().zip(&self.affine).take(3) {
                let step = own[2 - from];
                row[2 - axis] = if flipped { -step } else { step } + 0.0;
                if flipped {
                    row[3] += step * float(shape[from].saturating_sub(1));
                }
            }
        }
        Self {
            spacing: axes.from.map(|from| self.spacing[from]),
            affine,
            is_known: self.is_known,
        }
    }

    /// Returns the matrix from voxel indices (x, y, z, 1) of `other` to those of this geometry; `None` if the
    /// directions of this geometry are linearly dependent.
    #[must_use]
    pub fn indices_of(&self, other: &Self) -> Option<Affine> {
        let inverse = inverse(&self.affine)?;
        let mut indices = [[0.0; 4]; 4];
        for (row, from) in indices.iter_mut().zip(&inverse) {
            for (column, value) in row.iter_mut().enumerate() {
                *value = (0..4).map(|n| from[n] * other.affine[n][column]).sum();
            }
        }
        let finite = indices.iter().flatten().all(|value| value.is_finite());
        finite.then_some(indices)
    }

    /// Returns the position of the first voxel, z, y, x, in mm, RAS+.
    #[must_use]
    pub const fn origin(&self) -> [f64; 3] {
        [self.affine[2][3], self.affine[1][3], self.affine[0][3]]
    }
}

/// Returns the cross product of two vectors.
pub(crate) fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

/// A signed permutation of the axes z, y, x (0, 1, 2), from one volume's axes to another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SignedAxes {
    /// For each new axis, the old axis that it runs along.
    pub(crate) from: [usize; 3],
    /// For each new axis, `true` if it runs backwards.
    pub(crate) flipped: [bool; 3],
}

impl SignedAxes {
    /// The identity.
    pub const SAME: Self = Self {
        from: ORDERS[0],
        flipped: [false; 3],
    };

    /// Creates new axes that run along the old axes `from`, backwards where `flipped`. `None` unless `from` has each of
    /// 0, 1, 2 once.
    #[must_use]
    pub fn new(from: [usize; 3], flipped: [bool; 3]) -> Option<Self> {
        ORDERS.contains(&from).then_some(Self { from, flipped })
    }

    /// For each new axis, the old axis that it runs along.
    #[must_use]
    pub const fn order(&self) -> [usize; 3] {
        self.from
    }

    /// For each new axis, `true` if it runs backwards.
    #[must_use]
    pub const fn flipped(&self) -> [bool; 3] {
        self.flipped
    }

    /// Returns these axes, with the new axes turned around where `flipped`.
    #[must_use]
    pub fn flipped_along(self, flipped: [bool; 3]) -> Self {
        Self {
            flipped: std::array::from_fn(|axis| self.flipped[axis] != flipped[axis]),
            ..self
        }
    }

    /// Returns the axes after these and then `next`.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        let flipped = |axis: usize| next.flipped[axis] != self.flipped[next.from[axis]];
        Self {
            from: next.from.map(|from| self.from[from]),
            flipped: std::array::from_fn(flipped),
        }
    }

    /// Returns the axes that undo these.
    #[must_use]
    pub fn inverse(self) -> Self {
        let mut inverse = Self::SAME;
        for (axis, from) in self.from.into_iter().enumerate() {
            inverse.from[from] = axis;
            inverse.flipped[from] = self.flipped[axis];
        }
        inverse
    }

    /// Returns `true` if they turn a volume without mirroring it.
    #[must_use]
    pub fn is_rotation(&self) -> bool {
        let [a, b, c] = self.from;
        let swaps = usize::from(a > b) + usize::from(a > c) + usize::from(b > c);
        let flips = self.flipped.into_iter().filter(|flipped| *flipped).count();
        (swaps + flips).is_multiple_of(2)
    }

    /// Returns all 48 signed permutations.
    pub fn all() -> impl Iterator<Item = Self> {
        let flips = (0..8).map(|n| [n & 4 != 0, n & 2 != 0, n & 1 != 0]);
        ORDERS
            .into_iter()
            .flat_map(move |from| flips.clone().map(move |flipped| Self { from, flipped }))
    }

    /// Returns the axes of `other` that are nearest to those of `reference`; of orders that fit equally well, the
    /// first.
    #[must_use]
    pub fn nearest(reference: &Geometry, other: &Geometry) -> Self {
        let Some(indices) = reference.indices_of(other) else {
            return Self::SAME;
        };
        // The component of an axis of `other` along an axis of `reference`: 1 or -1 if they are parallel.
        let share = |axis: usize, from: usize| {
            indices[2 - axis][2 - from] * reference.spacing[axis] / other.spacing[from]
        };
        let fit =
            |order: &[usize; 3]| -> f64 { (0..3).map(|axis| share(axis, order[axis]).abs()).sum() };
        let mut best = ORDERS[0];
        for order in ORDERS {
            if fit(&order) > fit(&best) + 1e-9 {
                best = order;
            }
        }
        Self {
            from: best,
            flipped: std::array::from_fn(|axis| share(axis, best[axis]) < 0.0),
        }
    }

    /// Returns the lengths along the new axes.
    #[must_use]
    pub fn shape(&self, old: Shape) -> Shape {
        self.from.map(|from| old[from])
    }
}

/// Returns the inverse of an affine, unless its directions are linearly dependent.
fn inverse(affine: &Affine) -> Option<Affine> {
    let minor = |row: usize, column: usize| {
        let [r, s] = [(row + 1) % 3, (row + 2) % 3];
        let [c, d] = [(column + 1) % 3, (column + 2) % 3];
        affine[r][c] * affine[s][d] - affine[r][d] * affine[s][c]
    };
    let determinant: f64 = (0..3)
        .map(|column| affine[0][column] * minor(0, column))
        .sum();
    let lengths: f64 = (0..3)
        .map(|column| {
            let squares = affine[..3].iter().map(|row| row[column].powi(2));
            squares.sum::<f64>().sqrt()
        })
        .product();
    if determinant.is_nan() || determinant.abs() <= 1e-9 * lengths {
        return None;
    }
    let mut inverse = [[0.0; 4]; 4];
    for (row, values) in inverse.iter_mut().enumerate().take(3) {
        for (column, value) in values.iter_mut().enumerate().take(3) {
            *value = minor(column, row) / determinant;
        }
        let moved: f64 = (0..3).map(|n| values[n] * affine[n][3]).sum();
        values[3] = -moved;
    }
    inverse[3][3] = 1.0;
    Some(inverse)
}

#[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

fn without_negative_zero(value: f64) -> f64 {
    value + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_axes_are_a_group() {
        let all: Vec<SignedAxes> = SignedAxes::all().collect();
        let shape = [3, 4, 5];
        let geometry = Geometry::from_spacing([1.0, 2.0, 3.0]);
        for &one in &all {
            assert_eq!(one.then(one.inverse()), SignedAxes::SAME);
            assert_eq!(one.inverse().then(one), SignedAxes::SAME);
            assert_eq!(
                one.flipped_along([true; 3]).is_rotation(),
                !one.is_rotation()
            );
            for &other in &all {
                let both = one.then(other);
                assert_eq!(both.is_rotation(), one.is_rotation() == other.is_rotation());
                let stepwise = geometry.turned(one, shape).turned(other, one.shape(shape));
                assert_eq!(geometry.turned(both, shape), stepwise);
            }
        }
        assert_eq!(all.iter().filter(|axes| axes.is_rotation()).count(), 24);
    }

    #[test]
    fn lps_turns_x_and_y_around() {
        let geometry = Geometry::from_lps(
            [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 5.0]],
            [-10.0, 20.0, 30.0],
        );
        assert_eq!(geometry.affine[0], [-0.5, 0.0, 0.0, 10.0]);
        assert_eq!(geometry.affine[1], [0.0, -0.5, 0.0, -20.0]);
        assert_eq!(geometry.affine[2], [0.0, 0.0, 5.0, 30.0]);
        assert_eq!(geometry.spacing, [5.0, 0.5, 0.5]);
        assert!(!geometry.is_aligned());
    }

    #[test]
    fn moving_follows_the_affine() {
        let moved =
            Geometry::from_parts([3.0, 2.0, 1.0], [10.0, 20.0, 30.0]).moved_to([1.0, 2.0, 3.0]);
        assert_eq!(moved.origin(), [13.0, 24.0, 33.0]);
        assert!(moved.is_aligned());
    }

    #[test]
    fn a_coarse_voxel_is_centered_on_those_that_it_covers() {
        let fine = Geometry::from_parts([3.0, 2.0, 1.0], [10.0, 20.0, 30.0]);
        let coarse = fine.coarsened([1.0, 2.0, 2.0]);
        assert_eq!(coarse.spacing, [3.0, 4.0, 2.0]);
        assert_eq!(coarse.origin(), [10.0, 21.0, 30.5]);
        assert!(coarse.is_aligned());
        let turned = Geometry::from_lps(
            [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 5.0]],
            [0.0; 3],
        );
        assert_eq!(turned.coarsened([2.0; 3]).origin(), [2.5, -0.25, -0.25]);
    }

    /// Returns an oblique, sheared geometry with different spacings: x runs along -y, y along z, z along x.
    fn oblique() -> Geometry {
        Geometry::from_affine([
            [0.01, 0.05, 2.0, -7.0],
            [-0.5, 0.02, 0.1, 11.0],
            [0.0, 1.5, -0.2, 3.0],
            [0.0, 0.0, 0.0, 1.0],
        ])
    }

    #[test]
    fn indices_go_there_and_back() {
        let geometry = oblique();
        for other in [Geometry::default(), oblique().moved_to([3.0, -2.0, 5.5])] {
            let indices = geometry.indices_of(&other).unwrap();
            for at in [[0.0, 0.0, 0.0, 1.0], [3.0, 4.0, 5.0, 1.0]] {
                let times = |matrix: &Affine, at: [f64; 4]| -> [f64; 4] {
                    std::array::from_fn(|row| (0..4).map(|n| matrix[row][n] * at[n]).sum())
                };
                let (one, two) = (
                    times(&geometry.affine, times(&indices, at)),
                    times(&other.affine, at),
                );
                let apart = one.iter().zip(two).map(|(a, b)| (a - b).abs());
                assert!(apart.fold(0.0, f64::max) < 1e-9, "{one:?} {two:?}");
            }
        }
        let mut flat = Geometry::default();
        flat.affine[2] = flat.affine[1];
        assert_eq!(flat.indices_of(&geometry), None);
    }

    #[test]
    fn turned_axes_are_found_again_and_keep_every_voxel_in_its_place() {
        let shape = [4, 5, 7];
        let mut seen = std::collections::HashSet::new();
        for geometry in [
            oblique(),
            Geometry::from_parts([3.0, 2.0, 1.0], [9.0, 8.0, 7.0]),
        ] {
            for axes in SignedAxes::all() {
                seen.insert(axes);
                let turned = geometry.turned(axes, shape);
                assert_eq!(SignedAxes::nearest(&turned, &geometry), axes);
                assert_eq!(SignedAxes::new(axes.from, axes.flipped), Some(axes));
                let indices = turned.indices_of(&geometry).unwrap();
                for at in [[0, 0, 0], [1, 2, 3], [3, 4, 6]] {
                    let new: [f64; 3] = std::array::from_fn(|axis| {
                        let from = axes.from[axis];
                        let n = if axes.flipped[axis] {
                            shape[from] - 1 - at[from]
                        } else {
                            at[from]
                        };
                        float(n)
                    });
                    for axis in 0..3 {
                        let row = indices[2 - axis];
                        let found: f64 =
                            row[3] + (0..3).map(|old| row[2 - old] * float(at[old])).sum::<f64>();
                        assert!((found - new[axis]).abs() < 1e-9, "{axes:?} {at:?}");
                    }
                }
            }
        }
        assert_eq!(seen.len(), 48);
        assert_eq!(SignedAxes::new([0, 0, 1], [false; 3]), None);
    }

    #[test]
    fn unsound_geometry_is_noticed() {
        assert!(!Geometry::from_spacing([0.0, 1.0, 1.0]).is_sound());
        assert!(!Geometry::from_spacing([f64::NAN, 1.0, 1.0]).is_sound());
        assert!(Geometry::default().is_sound());
        let mut flat = Geometry::default();
        flat.affine[2][2] = 0.0;
        assert!(!flat.is_sound(), "no direction");
        flat.affine[0][2] = 1.0;
        assert!(!flat.is_sound(), "two axes along one line");
        flat.affine[2][2] = 0.5;
        assert!(flat.is_sound(), "sheared");
    }
}
