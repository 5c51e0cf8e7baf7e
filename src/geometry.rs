//! Where voxels lie in the world: spacing and affine, and the conventions around them.
//!
//! Spacing is in millimetres, in the order z, y, x. The affine takes voxel indices
//! (x, y, z, 1) to millimetres in RAS+ (right, anterior, superior positive), as NIfTI and
//! nibabel have it; formats in LPS (MetaImage, NRRD, DICOM) are turned on the way in and out.

/// A 4 x 4 matrix, row by row.
pub type Affine = [[f64; 4]; 4];

/// Spacing and affine of a volume.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Distance between voxel centres along z, y, x, in mm.
    pub spacing: [f64; 3],
    /// Voxel indices (x, y, z, 1) to mm in RAS+.
    pub affine: Affine,
}

impl Default for Geometry {
    fn default() -> Self {
        Self::from_spacing([1.0; 3])
    }
}

impl Geometry {
    /// Axes along the world's, the first voxel at the origin. `spacing` is z, y, x in mm.
    #[must_use]
    pub fn from_spacing(spacing: [f64; 3]) -> Self {
        Self::from_parts(spacing, [0.0; 3])
    }

    /// Axes along the world's. `spacing` and the first voxel's `origin` are z, y, x in mm, RAS+.
    #[must_use]
    pub fn from_parts(spacing: [f64; 3], origin: [f64; 3]) -> Self {
        let mut affine = [[0.0; 4]; 4];
        for axis in 0..3 {
            affine[axis][axis] = spacing[2 - axis];
            affine[axis][3] = origin[2 - axis];
        }
        affine[3][3] = 1.0;
        Self { spacing, affine }
    }

    /// The geometry of an affine; the spacing is the length of its columns.
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
        }
    }

    /// From columns for x, y, z and an origin, all in LPS millimetres.
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

    /// The same with every length multiplied, as from micrometres to millimetres.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        for row in &mut self.affine[..3] {
            *row = row.map(|value| value * factor);
        }
        self.spacing = self.spacing.map(|length| length * factor);
        self
    }

    /// Where the voxel at `start` (z, y, x) lies becomes the place of the first voxel.
    #[must_use]
    pub fn moved_to(mut self, start: [f64; 3]) -> Self {
        for row in &mut self.affine[..3] {
            row[3] += row[0] * start[2] + row[1] * start[1] + row[2] * start[0];
        }
        self
    }

    /// The geometry of voxels that each stand for `factors` (z, y, x) of these: the first one's
    /// centre lies in the middle of those that it stands for.
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

    /// Whether every number is finite, no spacing is 0 or negative, and the axes point in three
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

    /// Whether the affine's columns for x, y and z span space.
    fn is_solid(&self) -> bool {
        let columns: [[f64; 3]; 3] = std::array::from_fn(|column| {
            let values: [f64; 3] = std::array::from_fn(|row| self.affine[row][column]);
            let length = values.iter().map(|n| n * n).sum::<f64>().sqrt();
            values.map(|value| value / length)
        });
        let [x, y, z] = columns;
        let cross = cross(x, y);
        let volume: f64 = (0..3).map(|row| cross[row] * z[row]).sum();
        // Not a number, either, where a column is 0.
        volume.abs() > 1e-9
    }

    /// Whether the affine is the spacing along the world's axes and an origin: all that
    /// OME-Zarr can say.
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

    /// Where the first voxel lies, z, y, x, in mm, RAS+.
    #[must_use]
    pub const fn origin(&self) -> [f64; 3] {
        [self.affine[2][3], self.affine[1][3], self.affine[0][3]]
    }
}

/// The vector at right angles to two others, as long as the area between them.
pub(crate) fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

fn without_negative_zero(value: f64) -> f64 {
    value + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_coarse_voxel_lies_in_the_middle_of_its_own() {
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
