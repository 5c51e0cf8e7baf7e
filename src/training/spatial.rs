//! Random maps through which patches are read: rotation, scale, shear, translation and elastic deformation, drawn from
//! (seed, epoch, n).

use crate::error::{Error, Result};
use crate::geometry::{Geometry, SignedAxes};
use crate::region::Region;
use crate::sampler::CounterRng;
use crate::volume::{ControlPoints, Warp};

/// The fewest control points along an axis: those that a voxel depends on.
const MIN_POINTS: u64 = 4;

/// The most control points along an axis.
const MAX_POINTS: u64 = 64;

/// A random affine map of a patch's content about the patch's center: it is scaled, then sheared, rotated about x, y and
/// z, and moved.
///
/// Lengths are in mm, so that a rotation is one whatever the spacing; a subject without geometry has voxels of 1 mm. The
/// axes are those of the volume, z, y, x. Each range is uniform.
///
/// ```
/// use voxpatch::training::{Augmentation, RandomAffine, RandomElastic};
///
/// let affine = RandomAffine::default()
///     .with_degrees([[-30.0, 30.0], [0.0, 0.0], [0.0, 0.0]])
///     .with_scales([[0.7, 1.4]; 3])
///     .with_isotropic(true);
/// let augment = Augmentation::default().with_affine(affine).with_elastic(RandomElastic::default());
/// assert!(augment.check().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RandomAffine {
    /// Factors along z, y, x, from the first to the second. At 2 the content is twice as large. The default is 0.9 to 1.1,
    /// as in TorchIO.
    pub scales: [[f64; 2]; 3],
    /// Use the factor along z for all axes.
    pub isotropic: bool,
    /// Angles of the rotations about z, y, x, in degrees. A positive one turns x to y, z to x, and y to z. The default is
    /// -10 to 10, as in TorchIO.
    pub degrees: [[f64; 2]; 3],
    /// Moves along z in proportion to y, along z in proportion to x, and along y in proportion to x. The default is 0.
    pub shears: [[f64; 2]; 3],
    /// Moves along z, y, x, in mm. The default is 0.
    pub translation: [[f64; 2]; 3],
    /// The probability that the patch is changed at all.
    pub p: f64,
    /// The probability of the rotation, if the patch is changed.
    pub p_rotation: f64,
    /// The probability of the scaling, if the patch is changed.
    pub p_scaling: f64,
}

impl Default for RandomAffine {
    fn default() -> Self {
        Self {
            scales: [[0.9, 1.1]; 3],
            isotropic: false,
            degrees: [[-10.0, 10.0]; 3],
            shears: [[0.0; 2]; 3],
            translation: [[0.0; 2]; 3],
            p: 1.0,
            p_rotation: 1.0,
            p_scaling: 1.0,
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident($field:ident: $ty:ty);)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(self, $field: $ty) -> Self {
                Self { $field, ..self }
            }
        )*
    };
}

impl RandomAffine {
    setters! {
        /// Sets the factors along z, y, x.
        with_scales(scales: [[f64; 2]; 3]);
        /// Sets whether all axes have the factor along z.
        with_isotropic(isotropic: bool);
        /// Sets the angles about z, y, x, in degrees.
        with_degrees(degrees: [[f64; 2]; 3]);
        /// Sets the shears.
        with_shears(shears: [[f64; 2]; 3]);
        /// Sets the moves along z, y, x, in mm.
        with_translation(translation: [[f64; 2]; 3]);
        /// Sets the probability that a patch is changed.
        with_p(p: f64);
        /// Sets the probability of the rotation.
        with_p_rotation(p_rotation: f64);
        /// Sets the probability of the scaling.
        with_p_scaling(p_scaling: f64);
    }

    fn check(&self) -> Result<()> {
        let ranges = [
            ("scales", self.scales),
            ("degrees", self.degrees),
            ("shears", self.shears),
            ("translation", self.translation),
        ];
        for (name, ranges) in ranges {
            for range in ranges {
                check_range(name, range)?;
                if name == "scales" && range[0] <= 0.0 {
                    return Err(invalid(name, format!("{range:?}"), "a factor is above 0"));
                }
            }
        }
        check_probability("p", self.p)?;
        check_probability("p_rotation", self.p_rotation)?;
        check_probability("p_scaling", self.p_scaling)
    }

    /// Draws the map that reads the patch: the matrix from distances from the center of the patch to distances from the
    /// center of the region, and the move. Both are along z, y, x, in mm.
    #[expect(
        clippy::float_cmp,
        reason = "nothing is computed where nothing is drawn"
    )]
    fn draw(&self, key: [u64; 3]) -> Option<([[f64; 3]; 3], [f64; 3])> {
        let mut random = random(*b"voxpatch warp v1", key);
        // All numbers are drawn always, so that one option does not change what another one draws.
        let [changed, scaled, rotated] = [self.p, self.p_scaling, self.p_rotation]
            .map(|probability| random.fraction() < probability);
        let mut uniform = |ranges: [[f64; 2]; 3]| {
            ranges.map(|[low, high]| low + (high - low) * random.fraction())
        };
        let mut scales = uniform(self.scales);
        let mut angles = uniform(self.degrees);
        let shears = uniform(self.shears);
        let moved = uniform(self.translation);
        if !changed {
            return None;
        }
        if self.isotropic {
            scales = [scales[0]; 3];
        }
        if !scaled {
            scales = [1.0; 3];
        }
        if !rotated {
            angles = [0.0; 3];
        }
        let is_same = scales == [1.0; 3] && angles == [0.0; 3] && shears == [0.0; 3];
        if is_same && moved == [0.0; 3] {
            return None;
        }
        let content = times(rotation(angles), times(shear(shears), diagonal(scales)));
        // Of determinant 1: the inverse of a rotation is its transpose.
        let back = times(
            diagonal(scales.map(f64::recip)),
            times(unsheared(shears), transposed(rotation(angles))),
        );
        debug_assert!(near_identity(times(content, back)));
        let shift = applied(back, moved).map(|length| 0.0 - length);
        Some((back, shift))
    }
}

/// A random smooth deformation of a patch: the displacements at the control points of a cubic B-spline are uniform and
/// independent.
///
/// Control points cover the patch. Space does not fold if displacements are below 0.4 of the distance between control
/// points (Choi and Lee, 2000).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RandomElastic {
    /// Control points along z, y, x, from 4 to 64. The default is 7, as in TorchIO.
    pub num_control_points: [u64; 3],
    /// The largest displacement of a control point along z, y, x, in mm. The default is 7.5, as in TorchIO.
    pub max_displacement: [f64; 3],
    /// The probability that the patch is deformed.
    pub p: f64,
}

impl Default for RandomElastic {
    fn default() -> Self {
        Self {
            num_control_points: [7; 3],
            max_displacement: [7.5; 3],
            p: 1.0,
        }
    }
}

impl RandomElastic {
    setters! {
        /// Sets the number of control points along z, y, x.
        with_num_control_points(num_control_points: [u64; 3]);
        /// Sets the largest displacement along z, y, x, in mm.
        with_max_displacement(max_displacement: [f64; 3]);
        /// Sets the probability that a patch is deformed.
        with_p(p: f64);
    }

    fn check(&self) -> Result<()> {
        let points = self.num_control_points;
        if !points.iter().all(|n| (MIN_POINTS..=MAX_POINTS).contains(n)) {
            let problem = "an axis has from 4 to 64 control points";
            return Err(invalid(
                "num_control_points",
                format!("{points:?}"),
                problem,
            ));
        }
        let largest = self.max_displacement;
        if !largest.iter().all(|mm| mm.is_finite() && *mm >= 0.0) {
            let problem = "a displacement is a number of mm from 0 on";
            return Err(invalid("max_displacement", format!("{largest:?}"), problem));
        }
        check_probability("p", self.p)
    }

    /// Returns `true` if the patch at a place is deformed.
    #[expect(clippy::float_cmp, reason = "the option as it was given")]
    fn is_drawn(&self, key: [u64; 3]) -> bool {
        self.max_displacement != [0.0; 3] && random(*b"voxpatch bend v1", key).fraction() < self.p
    }

    /// Draws the displacements at the control points, in voxels.
    fn points(&self, key: [u64; 3], spacing: [f64; 3]) -> Option<ControlPoints> {
        let mut random = random(*b"voxpatch bend v1", key);
        let _ = random.fraction();
        let count = self.num_control_points.iter().product::<u64>();
        let mut displacement = || -> [f64; 3] {
            std::array::from_fn(|a| {
                let largest = self.max_displacement[a] / spacing[a];
                largest * (2.0 * random.fraction() - 1.0)
            })
        };
        let points = (0..count).map(|_| displacement()).collect();
        ControlPoints::new(self.num_control_points, points)
    }

    /// The control points of a patch that is not deformed.
    fn still(&self) -> Option<ControlPoints> {
        let count = self.num_control_points.iter().product::<u64>();
        let points = (0..count).map(|_| [0.0; 3]).collect();
        ControlPoints::new(self.num_control_points, points)
    }
}

/// The part of a volume that a patch shows, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pose {
    /// The region of the patch, before a map.
    pub(super) region: Region,
    /// The axes of the delivered patch.
    pub(super) axes: SignedAxes,
    /// The map through which it is read, if there is one.
    pub(super) map: Option<RandomMap>,
    /// The option that decides the number of control points.
    pub(super) elastic: Option<RandomElastic>,
}

/// A drawn map. The displacements are drawn again when they are needed, because thousands of patches are drawn ahead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RandomMap {
    /// From distances from the center of the patch to distances from the center of the region, along z, y, x, in mm.
    matrix: [[f64; 3]; 3],
    shift: [f64; 3],
    is_elastic: bool,
    key: [u64; 3],
}

impl RandomMap {
    /// Draws the map of the patch at a place; `None` if the patch is not changed.
    pub(super) fn draw(
        key: [u64; 3],
        affine: Option<&RandomAffine>,
        elastic: Option<&RandomElastic>,
    ) -> Option<Self> {
        let affine = affine.and_then(|affine| affine.draw(key));
        let is_elastic = elastic.is_some_and(|elastic| elastic.is_drawn(key));
        if affine.is_none() && !is_elastic {
            return None;
        }
        let (matrix, shift) = affine.unwrap_or((diagonal([1.0; 3]), [0.0; 3]));
        Some(Self {
            matrix,
            shift,
            is_elastic,
            key,
        })
    }
}

impl Pose {
    /// A patch that shows a region as it is.
    #[cfg(test)]
    pub(super) const fn plain(region: Region) -> Self {
        Self {
            region,
            axes: SignedAxes::SAME,
            map: None,
            elastic: None,
        }
    }

    /// Returns the map from the voxels of the region to positions in a volume of this geometry.
    pub(super) fn warp(&self, geometry: &Geometry) -> Option<Warp> {
        let map = self.map?;
        let displacement = if map.is_elastic {
            self.elastic
                .and_then(|elastic| elastic.points(map.key, geometry.spacing))
        } else {
            None
        };
        Some(Warp {
            rows: self.rows(geometry.spacing),
            shape: self.region.shape,
            displacement,
        })
    }

    /// Returns the affine map from the voxels of the region, before it is turned, to positions in the volume.
    fn rows(&self, spacing: [f64; 3]) -> [[f64; 4]; 3] {
        let start = self.region.start.map(signed);
        let Some(map) = self.map else {
            return std::array::from_fn(|a| {
                let mut row = [0.0; 4];
                (row[a], row[3]) = (1.0, start[a]);
                row
            });
        };
        let center = self.region.shape.map(|n| (float(n) - 1.0) / 2.0);
        std::array::from_fn(|a| {
            let row = map.matrix[a];
            let factors: [f64; 3] = std::array::from_fn(|b| row[b] * spacing[b] / spacing[a]);
            let moved: f64 = (0..3).map(|b| factors[b] * center[b]).sum();
            let [z, y, x] = factors;
            [
                z,
                y,
                x,
                start[a] + center[a] - moved + map.shift[a] / spacing[a],
            ]
        })
    }

    /// Returns the geometry of the delivered patch, in a volume of this geometry.
    pub(super) fn geometry(&self, geometry: &Geometry) -> Geometry {
        let shape = self.region.shape;
        if self.map.is_none() {
            let start = self.region.start.map(signed);
            return geometry.moved_to(start).turned(self.axes, shape);
        }
        // From indices (x, y, z, 1) of the patch before it is turned to indices (x, y, z, 1) of the volume.
        let mut indices = [[0.0; 4]; 4];
        for (a, row) in self.rows(geometry.spacing).iter().enumerate() {
            indices[2 - a] = [row[2], row[1], row[0], row[3]];
        }
        indices[3][3] = 1.0;
        let mut affine = [[0.0; 4]; 4];
        for (row, own) in affine.iter_mut().zip(&geometry.affine) {
            for (column, value) in row.iter_mut().enumerate() {
                *value = (0..4).map(|n| own[n] * indices[n][column]).sum();
            }
        }
        let mapped = Geometry {
            is_known: geometry.is_known,
            ..Geometry::from_affine(affine)
        };
        mapped.turned(self.axes, shape)
    }

    /// Returns the displacements of the delivered patch's voxels before the matrix of its [`geometry`](Self::geometry), in its voxels;
    /// `None` without an elastic deformation among the options.
    pub(super) fn displacement(&self, geometry: &Geometry) -> Option<ControlPoints> {
        let elastic = self.elastic?;
        let drawn = self.map.filter(|map| map.is_elastic);
        let points = match drawn {
            Some(map) => elastic.points(map.key, geometry.spacing)?,
            None => elastic.still()?,
        };
        turned(&points, self.axes)
    }

    /// Checks that control points keep their numbers where axes change places.
    pub(super) fn check(&self) -> Result<()> {
        let Some(elastic) = self.elastic else {
            return Ok(());
        };
        let points = elastic.num_control_points;
        if self.axes.shape(points) == points {
            return Ok(());
        }
        let problem = "axes that change places need the same number of control points";
        Err(invalid(
            "num_control_points",
            format!("{points:?}"),
            problem,
        ))
    }
}

/// Returns displacements along new axes, at the control points of these axes.
fn turned(points: &ControlPoints, axes: SignedAxes) -> Option<ControlPoints> {
    let old = points.shape();
    let shape = axes.shape(old);
    let (order, flipped) = (axes.order(), axes.flipped());
    let mut all = Vec::with_capacity(points.points().len());
    for n in 0..shape.iter().product::<u64>() {
        let at = [
            n / (shape[1] * shape[2]),
            n / shape[2] % shape[1],
            n % shape[2],
        ];
        let mut from = [0; 3];
        for a in 0..3 {
            from[order[a]] = if flipped[a] {
                shape[a] - 1 - at[a]
            } else {
                at[a]
            };
        }
        let place = (from[0] * old[1] + from[1]) * old[2] + from[2];
        let point = points.points()[usize::try_from(place).ok()?];
        all.push(std::array::from_fn(|a| {
            let along = point[order[a]];
            if flipped[a] { 0.0 - along } else { along }
        }));
    }
    ControlPoints::new(shape, all)
}

fn random(domain: [u8; 16], [seed, epoch, place]: [u64; 3]) -> CounterRng {
    CounterRng::of_domain(domain, seed, epoch, place)
}

fn invalid(argument: &'static str, value: String, problem: &str) -> Error {
    Error::InvalidArgument {
        argument,
        value,
        problem: problem.to_owned(),
    }
}

fn check_range(name: &'static str, range: [f64; 2]) -> Result<()> {
    let [low, high] = range;
    if low <= high && (high - low).is_finite() {
        return Ok(());
    }
    let problem = "a range has two numbers, the lower one first";
    Err(invalid(name, format!("{range:?}"), problem))
}

fn check_probability(name: &'static str, probability: f64) -> Result<()> {
    if (0.0..=1.0).contains(&probability) {
        return Ok(());
    }
    Err(invalid(
        name,
        probability.to_string(),
        "a probability is from 0 to 1",
    ))
}

/// Checks the options of both.
pub(super) fn check(affine: Option<&RandomAffine>, elastic: Option<&RandomElastic>) -> Result<()> {
    affine.map_or(Ok(()), RandomAffine::check)?;
    elastic.map_or(Ok(()), RandomElastic::check)
}

type Matrix = [[f64; 3]; 3];

fn diagonal(values: [f64; 3]) -> Matrix {
    std::array::from_fn(|a| std::array::from_fn(|b| if a == b { values[a] } else { 0.0 }))
}

fn times(one: Matrix, other: Matrix) -> Matrix {
    std::array::from_fn(|a| std::array::from_fn(|b| (0..3).map(|n| one[a][n] * other[n][b]).sum()))
}

fn applied(matrix: Matrix, vector: [f64; 3]) -> [f64; 3] {
    matrix.map(|row| (0..3).map(|n| row[n] * vector[n]).sum())
}

fn transposed(matrix: Matrix) -> Matrix {
    std::array::from_fn(|a| std::array::from_fn(|b| matrix[b][a]))
}

/// Returns the rotation about x, then y, then z, by angles about z, y, x in degrees, for vectors z, y, x.
fn rotation([z, y, x]: [f64; 3]) -> Matrix {
    // Each turns one axis to another: x to y about z, z to x about y, y to z about x.
    let about = |from: usize, to: usize, degrees: f64| {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let mut matrix = diagonal([1.0; 3]);
        (matrix[from][from], matrix[to][to]) = (cos, cos);
        (matrix[to][from], matrix[from][to]) = (sin, -sin);
        matrix
    };
    times(about(2, 1, z), times(about(0, 2, y), about(1, 0, x)))
}

/// Returns the matrix that moves along z in proportion to y and x, and along y in proportion to x.
const fn shear([zy, zx, yx]: [f64; 3]) -> Matrix {
    [[1.0, zy, zx], [0.0, 1.0, yx], [0.0, 0.0, 1.0]]
}

const fn unsheared([zy, zx, yx]: [f64; 3]) -> Matrix {
    [[1.0, -zy, zy * yx - zx], [0.0, 1.0, -yx], [0.0, 0.0, 1.0]]
}

fn near_identity(matrix: Matrix) -> bool {
    let one = diagonal([1.0; 3]);
    (0..3).all(|a| (0..3).all(|b| (matrix[a][b] - one[a][b]).abs() < 1e-6))
}

#[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

#[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
fn signed(n: i64) -> f64 {
    n as f64
}
