//! Patches that are read through a smooth map: an affine map, after a displacement by a cubic B-spline.

use super::kernel::{Field, Filter, Real, filtered};
use super::map::{ROUNDING, float, place};
use super::{Interpolation, Needs, continued, value_bytes};
use crate::dtype::{DType, Element, with_element};
use crate::pad::Padding;
use crate::region::{Region, Shape};

/// The control points along an axis that a voxel depends on.
const SUPPORT: usize = 4;

/// Displacements at the control points of a uniform cubic B-spline over a patch.
///
/// Along an axis of `L` voxels with `n` control points, voxel `v` is at `u = v (n - 3) / (L - 1)` of the spline, and
/// depends on the control points `c` to `c + 3` with `c = floor(u)`, or `n - 4` at the last voxel. Their weights are those
/// of the cubic B-spline at `t = u - c`: `(1 - t)^3 / 6`, `(3 t^3 - 6 t^2 + 4) / 6`, `(-3 t^3 + 3 t^2 + 3 t + 1) / 6`
/// and `t^3 / 6`.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlPoints {
    shape: Shape,
    points: Vec<[f64; 3]>,
}

impl ControlPoints {
    /// Creates control points; `points` has those of the last axis next to each other. `None` if an axis has fewer than
    /// four, or their number is not that of `points`.
    #[must_use]
    pub fn new(shape: Shape, points: Vec<[f64; 3]>) -> Option<Self> {
        let count = crate::region::voxels(shape)?;
        let fits = shape.iter().all(|&n| n >= SUPPORT as u64) && count == points.len() as u64;
        fits.then_some(Self { shape, points })
    }

    /// The number of control points along z, y, x.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// The displacement at each control point along z, y, x, in voxels of the patch. Those of the last axis are next to
    /// each other.
    #[must_use]
    pub fn points(&self) -> &[[f64; 3]] {
        &self.points
    }
}

/// The position of the voxels along an axis in a spline: the first control point and the parameter of each.
struct Knots {
    scale: f64,
    last: usize,
}

impl Knots {
    fn new(length: u64, points: u64) -> Self {
        let last = place(points) - SUPPORT;
        let spans = float(points - (SUPPORT as u64 - 1));
        Self {
            scale: spans / float(length.saturating_sub(1).max(1)),
            last,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the parameter is not negative"
    )]
    fn cell(&self, voxel: usize) -> usize {
        ((float(voxel as u64) * self.scale) as usize).min(self.last)
    }

    fn weights(&self, voxel: usize) -> (usize, [f64; 4]) {
        let cell = self.cell(voxel);
        let t = float(voxel as u64) * self.scale - float(cell as u64);
        (cell, super::kernel::spline(t))
    }

    /// Returns the runs of voxels with the same control points: the first control point, the first voxel and the end.
    fn runs(&self, length: usize) -> Vec<(usize, usize, usize)> {
        let mut runs: Vec<(usize, usize, usize)> = Vec::new();
        for voxel in 0..length {
            let cell = self.cell(voxel);
            match runs.last_mut() {
                Some(run) if run.0 == cell => run.2 = voxel + 1,
                _ => runs.push((cell, voxel, voxel + 1)),
            }
        }
        runs
    }
}

/// A map from the voxels of a patch to positions in a volume, both along z, y, x: an affine map of voxels that are
/// displaced by a spline.
#[derive(Clone, Debug)]
pub(crate) struct Warp {
    /// For each axis of the volume: the factors of z, y, x of the patch, and the offset.
    pub(crate) rows: [[f64; 4]; 3],
    /// Voxels of the patch.
    pub(crate) shape: Shape,
    pub(crate) displacement: Option<ControlPoints>,
}

/// How the values of an image between its voxels, and beyond them, are computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Voxels of the volume.
    pub(crate) shape: Shape,
    pub(crate) interpolation: Interpolation,
    pub(crate) padding: Padding,
}

impl Reading {
    /// Returns how voxels beyond the faces are continued that positions inside the volume need.
    fn continuation(&self) -> Padding {
        match (self.padding, self.interpolation) {
            (Padding::Constant(_), Interpolation::Cubic) => Padding::Reflect,
            (Padding::Constant(_), _) => Padding::Edge,
            (padding, _) => padding,
        }
    }

    fn filter(&self) -> Filter {
        Filter::new(self.interpolation, 1.0, false)
    }

    /// Returns the lowest and the highest position along an axis at which the volume has a value.
    fn ends(&self, axis: usize) -> (f64, f64) {
        let length = float(self.shape[axis]);
        match self.padding {
            Padding::Constant(_) => (-0.5 - ROUNDING, length - 0.5 + ROUNDING),
            // Beyond, the continued volume is constant.
            Padding::Edge => {
                let far = float(self.filter().reach() as u64) + 4.0;
                (-far, length + far)
            }
            Padding::Reflect | Padding::Wrap => (f64::NEG_INFINITY, f64::INFINITY),
        }
    }

    /// Returns the nearest voxel.
    fn nearest(&self, axis: usize, position: f64) -> i64 {
        let voxel = floor(position + 0.5 + ROUNDING);
        match self.padding {
            Padding::Constant(_) => voxel.clamp(0, self.shape[axis].cast_signed() - 1),
            _ => voxel,
        }
    }

    /// Returns the first and the last voxel that positions between `low` and `high` depend on.
    fn voxels(&self, axis: usize, (low, high): (f64, f64)) -> (i64, i64) {
        let (least, most) = self.ends(axis);
        let [low, high] = [low, high].map(|position| position.clamp(least, most));
        let reach = self.filter().reach().cast_signed() as i64;
        match self.interpolation {
            Interpolation::Nearest => (self.nearest(axis, low), self.nearest(axis, high)),
            Interpolation::Cubic => (floor(low) - 1 - reach, floor(high) + 2 + reach),
            _ => (floor(low), floor(high) + 1),
        }
    }
}

impl Warp {
    /// Returns the lowest and the highest position along each axis of the volume, at most.
    fn span(&self) -> [(f64, f64); 3] {
        let last = self.shape.map(|n| float(n.saturating_sub(1)));
        let Some(points) = &self.displacement else {
            return self.span_of([0.0; 3], last);
        };
        let mut span = [(f64::INFINITY, f64::NEG_INFINITY); 3];
        let runs: [_; 3] = std::array::from_fn(|a| {
            Knots::new(self.shape[a], points.shape[a]).runs(place(self.shape[a]))
        });
        let [_, height, width] = points.shape.map(place);
        for &(k, z, z_end) in &runs[0] {
            for &(j, y, y_end) in &runs[1] {
                for &(i, x, x_end) in &runs[2] {
                    // A spline stays between the lowest and the highest of its control points.
                    let mut low = [f64::INFINITY; 3];
                    let mut high = [f64::NEG_INFINITY; 3];
                    for n in 0..SUPPORT * SUPPORT * SUPPORT {
                        let (k, j, i) = (k + n / 16, j + n / 4 % 4, i + n % 4);
                        let point = points.points[(k * height + j) * width + i];
                        for a in 0..3 {
                            low[a] = low[a].min(point[a]);
                            high[a] = high[a].max(point[a]);
                        }
                    }
                    let first = [z, y, x].map(|n| float(n as u64));
                    let last = [z_end, y_end, x_end].map(|n| float(n as u64 - 1));
                    let cell = self.span_of(
                        std::array::from_fn(|a| first[a] + low[a]),
                        std::array::from_fn(|a| last[a] + high[a]),
                    );
                    for a in 0..3 {
                        span[a] = (span[a].0.min(cell[a].0), span[a].1.max(cell[a].1));
                    }
                }
            }
        }
        span
    }

    /// Returns the span of the affine map between two corners of a box.
    fn span_of(&self, first: [f64; 3], last: [f64; 3]) -> [(f64, f64); 3] {
        self.rows.map(|row| {
            let (mut low, mut high) = (row[3], row[3]);
            for b in 0..3 {
                let (one, other) = (row[b] * first[b], row[b] * last[b]);
                low += one.min(other);
                high += one.max(other);
            }
            // The rounding errors of sums in another order.
            let near = 1e-9 * (1.0 + low.abs().max(high.abs()));
            (low - near, high + near)
        })
    }

    /// Returns the part of a volume that the patch needs; `None` if all of the patch is beyond the volume and has the
    /// padding's constant.
    pub(super) fn needs(&self, reading: &Reading) -> Option<Needs> {
        let span = self.span();
        let mut needs = Needs {
            inside: Region::whole(self.shape),
            first: [0; 3],
            places: [const { Vec::new() }; 3],
            source: Region::whole([0; 3]),
        };
        let continuation = reading.continuation();
        for (a, span) in span.into_iter().enumerate() {
            let (least, most) = reading.ends(a);
            if span.0 > most || span.1 < least {
                return None;
            }
            let (first, last) = reading.voxels(a, span);
            needs.continue_along(a, (first, last), continuation, reading.shape[a]);
        }
        Some(needs)
    }

    /// Returns the box of the volume that the patch needs; an empty box if it needs no voxel.
    pub(crate) fn source(&self, reading: &Reading) -> Region {
        let needs = self.needs(reading);
        needs.map_or(Region::whole([0; 3]), |needs| needs.source)
    }

    /// Computes the patch from the voxels of its [`source`](Self::source), which is not empty. A voxel beyond the volume
    /// gets the nearest value at the volume's face; [`fill`](Self::fill) replaces it.
    pub(crate) fn apply(
        &self,
        reading: &Reading,
        dtype: DType,
        (voxels, out): (&[u8], &mut [u8]),
        channels: u64,
    ) {
        let Some(needs) = self.needs(reading) else {
            return;
        };
        let channels = place(channels).max(1);
        let (from, to) = (voxels.len() / channels, out.len() / channels);
        let pairs = voxels
            .chunks_exact(from.max(1))
            .zip(out.chunks_exact_mut(to.max(1)));
        for (voxels, out) in pairs {
            match reading.interpolation {
                Interpolation::Nearest => match dtype.size() {
                    1 => self.nearest::<u8>(reading, &needs, voxels, out),
                    2 => self.nearest::<u16>(reading, &needs, voxels, out),
                    4 => self.nearest::<u32>(reading, &needs, voxels, out),
                    _ => self.nearest::<u64>(reading, &needs, voxels, out),
                },
                Interpolation::LabelLinear => with_element!(dtype, T => {
                    self.labels::<T>(reading, &needs, voxels, out);
                }),
                Interpolation::Linear if value_bytes(dtype) == 8 => with_element!(dtype, T => {
                    self.linear::<T, f64>(reading, &needs, voxels, out);
                }),
                Interpolation::Linear => with_element!(dtype, T => {
                    self.linear::<T, f32>(reading, &needs, voxels, out);
                }),
                Interpolation::Cubic if value_bytes(dtype) == 8 => {
                    self.cubic::<f64>(reading, &needs, dtype, (voxels, out));
                }
                Interpolation::Cubic => {
                    self.cubic::<f32>(reading, &needs, dtype, (voxels, out));
                }
            }
        }
    }

    /// Fills the voxels beyond the volume with the padding's constant, if the padding is one. `constant` is a voxel of the
    /// patch.
    pub(crate) fn fill(&self, reading: &Reading, constant: &[u8], out: &mut [u8]) {
        let Padding::Constant(_) = reading.padding else {
            return;
        };
        let ends: [(f64, f64); 3] = std::array::from_fn(|a| reading.ends(a));
        let span = self.span();
        if (0..3).all(|a| ends[a].0 <= span[a].0 && span[a].1 <= ends[a].1) {
            return;
        }
        let size = constant.len();
        let width = place(self.shape[2]);
        let channel = place(crate::region::voxels(self.shape).unwrap_or(0)) * size;
        let mut outside = vec![false; width];
        self.each_row(|row, at| {
            outside.fill(false);
            for (at, (least, most)) in at.iter().zip(ends) {
                for (outside, position) in outside.iter_mut().zip(at) {
                    *outside |= *position < least || *position > most;
                }
            }
            if !outside.contains(&true) {
                return;
            }
            for out in out.chunks_exact_mut(channel.max(1)) {
                let line = &mut out[row * width * size..][..width * size];
                for (out, _) in line
                    .chunks_exact_mut(size)
                    .zip(&outside)
                    .filter(|(_, n)| **n)
                {
                    out.copy_from_slice(constant);
                }
            }
        });
    }

    /// Passes the positions along z, y, x of each row of voxels to `put`.
    fn each_row(&self, mut put: impl FnMut(usize, &[Vec<f64>; 3])) {
        let [depth, height, width] = self.shape.map(place);
        let mut at = [const { Vec::new() }; 3].map(|row: Vec<f64>| {
            let mut row = row;
            row.resize(width, 0.0);
            row
        });
        let Some(points) = &self.displacement else {
            for n in 0..depth * height {
                let [z, y] = [n / height, n % height].map(|n| float(n as u64));
                for (out, row) in at.iter_mut().zip(&self.rows) {
                    let base = row[0] * z + row[1] * y + row[3];
                    for (x, out) in out.iter_mut().enumerate() {
                        *out = base + row[2] * float(x as u64);
                    }
                }
                put(n, &at);
            }
            return;
        };
        let [along_z, along_y, along_x]: [Knots; 3] =
            std::array::from_fn(|a| Knots::new(self.shape[a], points.shape[a]));
        let runs = along_x.runs(width);
        let [_, rows, columns] = points.shape.map(place);
        let mut plane = vec![[0.0; 3]; rows * columns];
        let mut line = vec![[0.0; 3]; columns];
        for z in 0..depth {
            let (cell, weights) = along_z.weights(z);
            combine(
                &points.points[cell * rows * columns..],
                &weights,
                &mut plane,
            );
            for y in 0..height {
                let (cell, weights) = along_y.weights(y);
                combine(&plane[cell * columns..], &weights, &mut line);
                let start = [z, y].map(|n| float(n as u64));
                for &(cell, first, end) in &runs {
                    let terms = polynomials(&line[cell..cell + SUPPORT]);
                    for (out, row) in at.iter_mut().zip(&self.rows) {
                        let mapped =
                            |term: [f64; 3]| row[0] * term[0] + row[1] * term[1] + row[2] * term[2];
                        let [zero, one, two, three] = terms.map(mapped);
                        let base = row[0] * start[0] + row[1] * start[1] + row[3] + zero;
                        for (n, out) in out[first..end].iter_mut().enumerate() {
                            let x = float((first + n) as u64);
                            let t = x * along_x.scale - float(cell as u64);
                            *out = (base + row[2] * x) + t * (one + t * (two + t * three));
                        }
                    }
                }
                put(z * height + y, &at);
            }
        }
    }

    /// Copies the nearest voxels.
    fn nearest<T: bytemuck::Pod>(
        &self,
        reading: &Reading,
        needs: &Needs,
        voxels: &[u8],
        out: &mut [u8],
    ) {
        let dims = needs.source.shape.map(place);
        let voxels = bytemuck::cast_slice::<u8, T>(voxels);
        let out = bytemuck::cast_slice_mut::<u8, T>(out);
        let width = place(self.shape[2]);
        let axes: [Relative; 3] = std::array::from_fn(|a| Relative::new(a, reading, needs));
        let mut offsets = vec![0_usize; width];
        self.each_row(|row, at| {
            offsets.fill(0);
            for (a, axis) in axes.iter().enumerate() {
                let places = &needs.places[a];
                let last = places.len() - 1;
                for (offset, position) in offsets.iter_mut().zip(&at[a]) {
                    let voxel = index(whole(axis.of(*position) + (0.5 + ROUNDING))).min(last);
                    *offset = offset.wrapping_mul(dims[a]).wrapping_add(places[voxel]);
                }
            }
            let line = &mut out[row * width..][..width];
            for (out, &offset) in line.iter_mut().zip(&offsets) {
                *out = voxels[offset];
            }
        });
    }

    /// Interpolates linearly.
    fn linear<T: Element, F: Real>(
        &self,
        reading: &Reading,
        needs: &Needs,
        voxels: &[u8],
        out: &mut [u8],
    ) {
        let continued = needs.continued_voxels::<T>(voxels);
        let voxels = &continued[..];
        let dims = needs.dims();
        let (next_row, next_plane) = (dims[2], dims[1] * dims[2]);
        let width = place(self.shape[2]);
        let axes: [Relative; 3] = std::array::from_fn(|a| Relative::new(a, reading, needs));
        let mut offsets = vec![0_usize; width];
        // The weights along z, y, x, and the eight voxels around each position.
        let mut weights: [Vec<F>; 3] = std::array::from_fn(|_| vec![F::default(); width]);
        let mut near: [Vec<F>; 8] = std::array::from_fn(|_| vec![F::default(); width]);
        self.each_row(|row, at| {
            offsets.fill(0);
            for (a, axis) in axes.iter().enumerate() {
                let all = offsets.iter_mut().zip(&mut weights[a]).zip(&at[a]);
                for ((offset, weight), position) in all {
                    let position = axis.of(*position);
                    let voxel = whole(position);
                    *weight = F::from_f64(position - f64::from(voxel));
                    *offset = offset.wrapping_mul(dims[a]).wrapping_add(index(voxel));
                }
            }
            for (n, &from) in offsets.iter().enumerate() {
                for (k, start) in [0, next_row, next_plane, next_plane + next_row]
                    .into_iter()
                    .enumerate()
                {
                    let pair = &voxels[from + start..from + start + 2];
                    near[2 * k][n] = F::from_f64(pair[0].to_f64());
                    near[2 * k + 1][n] = F::from_f64(pair[1].to_f64());
                }
            }
            // Along z, then y, then x: the first half of the rows gets the values between both halves.
            for (weights, half) in weights.iter().zip([4, 2, 1]) {
                let (ones, others) = near.split_at_mut(half);
                for (one, other) in ones.iter_mut().zip(others) {
                    combine_all::<T, F>(one, other, weights);
                }
            }
            let bytes = width * size_of::<T>();
            F::store(&near[0], T::DTYPE, &mut out[row * bytes..][..bytes]);
        });
    }

    /// Computes labels.
    fn labels<T: Element>(&self, reading: &Reading, needs: &Needs, voxels: &[u8], out: &mut [u8]) {
        let continued = needs.continued_voxels::<T>(voxels);
        let field = Field {
            voxels: &continued,
            dims: needs.dims(),
            first: needs.first,
        };
        let out = bytemuck::cast_slice_mut::<u8, T>(out);
        let width = place(self.shape[2]);
        let ends: [(f64, f64); 3] = std::array::from_fn(|a| reading.ends(a));
        self.each_row(|row, at| {
            let line = &mut out[row * width..][..width];
            for (n, out) in line.iter_mut().enumerate() {
                *out = field.label(std::array::from_fn(|a| {
                    at[a][n].clamp(ends[a].0, ends[a].1)
                }));
            }
        });
    }

    /// Evaluates the cubic B-spline through the voxels.
    fn cubic<F: Real>(
        &self,
        reading: &Reading,
        needs: &Needs,
        dtype: DType,
        (voxels, out): (&[u8], &mut [u8]),
    ) {
        let mut values = vec![F::default(); voxels.len() / dtype.size()];
        crate::dtype::convert(
            dtype,
            voxels,
            F::DTYPE,
            bytemuck::cast_slice_mut(&mut values),
        );
        let filters = std::array::from_fn(|_| reading.filter());
        let reach = filters[0].reach() as u64;
        let (values, dims) = filtered(continued(values, needs), needs.dims(), &filters);
        let field = Field {
            voxels: &values,
            dims,
            first: needs
                .first
                .map(|first| first.saturating_add_unsigned(reach)),
        };
        let width = place(self.shape[2]);
        let bytes = width * dtype.size();
        let mut line = vec![F::default(); width];
        let ends: [(f64, f64); 3] = std::array::from_fn(|a| reading.ends(a));
        self.each_row(|row, at| {
            for (n, out) in line.iter_mut().enumerate() {
                *out = field.cubic(std::array::from_fn(|a| {
                    at[a][n].clamp(ends[a].0, ends[a].1)
                }));
            }
            F::store(&line, dtype, &mut out[row * bytes..][..bytes]);
        });
    }
}

/// Positions along an axis, relative to the first voxel of the neighborhoods and clamped to the ends of the volume.
struct Relative {
    first: f64,
    least: f64,
    most: f64,
}

impl Relative {
    fn new(axis: usize, reading: &Reading, needs: &Needs) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "axes are far below 2^53")]
        let first = needs.first[axis] as f64;
        let (mut least, most) = reading.ends(axis);
        if reading.interpolation == Interpolation::Nearest {
            // The first neighborhood is half a voxel before its center.
            least = least.max(first - 0.5);
        }
        Self {
            first,
            least: least - first,
            most: most - first,
        }
    }

    #[inline]
    fn of(&self, position: f64) -> f64 {
        (position - self.first).max(self.least).min(self.most)
    }
}

/// Replaces the first row by the values between both.
#[inline]
fn combine_all<T: Element, F: Real>(one: &mut [F], other: &[F], weights: &[F]) {
    for ((one, &other), &weight) in one.iter_mut().zip(other).zip(weights) {
        let between = *one + weight * (other - *one);
        // The neighbor does not count at a distance of 0, even if it is not a number.
        *one = if T::DTYPE.is_float() && weight == F::default() {
            *one
        } else {
            between
        };
    }
}

/// Returns the weighted sum of four rows of `out.len()` points.
fn combine(points: &[[f64; 3]], weights: &[f64; 4], out: &mut [[f64; 3]]) {
    let width = out.len();
    for (n, out) in out.iter_mut().enumerate() {
        *out = std::array::from_fn(|a| {
            let terms = weights.iter().enumerate();
            terms
                .map(|(k, weight)| weight * points[k * width + n][a])
                .sum()
        });
    }
}

/// Returns the cubic polynomial of a span of the spline: the terms of the powers 0 to 3 of the parameter.
fn polynomials(points: &[[f64; 3]]) -> [[f64; 3]; 4] {
    let term = |factors: [f64; 4]| -> [f64; 3] {
        std::array::from_fn(|a| (0..SUPPORT).map(|n| factors[n] * points[n][a]).sum::<f64>() / 6.0)
    };
    [
        term([1.0, 4.0, 1.0, 0.0]),
        term([-3.0, 0.0, 3.0, 0.0]),
        term([3.0, -6.0, 3.0, 0.0]),
        term([-1.0, 3.0, -3.0, 1.0]),
    ]
}

/// Returns the largest whole number up to a position. Without an instruction for it, a call would take most of the time.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the cast stops at the ends of i64, and axes are far below 2^53"
)]
fn floor(position: f64) -> i64 {
    let whole = position as i64;
    whole - i64::from(whole as f64 > position)
}

/// Returns the whole part of a position that is not negative, in a box in memory.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the cast stops at the ends of i32, and boxes in memory have shorter axes"
)]
const fn whole(position: f64) -> i32 {
    position as i32
}

/// Returns an index that is inside a box by construction; beyond, it fails the check of the slice.
#[inline]
#[expect(clippy::cast_sign_loss, reason = "a wrong index is out of bounds")]
const fn index(n: i32) -> usize {
    n as usize
}
