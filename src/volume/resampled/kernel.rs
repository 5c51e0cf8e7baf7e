//! Interpolation of voxels in memory: tables of weights along an axis, and gathers.

use std::fmt::Debug;
use std::ops::{Add, Mul, Range, Sub};

use super::map::{Map, float, place};
use super::options::Interpolation;
use crate::dtype::{DType, Element, with_element};
use crate::region::Region;

/// Taps on each side of the prefilter of cubic B-splines.
///
/// The coefficients of the spline through the values `f` are `sum over k of sqrt(3) z^|k| f[i + k]` with `z = sqrt(3) -
/// 2` (Unser, Aldroubi and Eden 1993). Without the taps beyond 14, and with the others scaled to a sum of 1, the value of
/// the spline in three dimensions changes by less than 1e-6 of the largest difference between two voxels.
const PREFILTER: usize = 14;

/// Deviations after which a Gaussian is cut off, as in `scipy`.
const CUT: f64 = 4.0;

/// Rows that are computed side by side along x: the voxels of a row are gathered one by one, and those of several rows at the
/// same place are one vector.
const LANES: usize = 8;

/// The arithmetic of interpolation: `f32` for types that it holds exactly, `f64` for others.
pub(super) trait Real:
    Element + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Debug
{
    /// Writes values as voxels of a type: the nearest value, as [`dtype`](crate::dtype) describes.
    fn store(values: &[Self], dtype: DType, out: &mut [u8]);
}

impl Real for f32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "all numbers of 8 and 16 bits are f32"
    )]
    fn store(values: &[Self], dtype: DType, out: &mut [u8]) {
        if dtype.is_float() || dtype.size() > 2 {
            return store(values, dtype, out);
        }
        // A call for each value would keep the loop from being vectorized.
        let (low, high) = dtype.range();
        let range = (low as f32, high as f32);
        let bits = values.iter().map(|&value| whole_bits(value, range));
        if dtype.size() == 1 {
            for (bits, out) in bits.zip(out) {
                [*out, _] = bits.to_le_bytes();
            }
        } else {
            for (bits, out) in bits.zip(out.as_chunks_mut::<2>().0) {
                *out = bits.to_ne_bytes();
            }
        }
    }
}

/// Returns the bits of the nearest whole number between the ends of a type of 8 or 16 bits, half to even; 0 for NaN.
///
/// A float of 1.5 * 2^23 or a little more has no fraction, and its last bits are those of a whole number that was added.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the last bits are those of the number"
)]
fn whole_bits(value: f32, (low, high): (f32, f32)) -> u16 {
    let value = if value.is_nan() { 0.0 } else { value };
    (value.max(low).min(high) + 12_582_912.0).to_bits() as u16
}

impl Real for f64 {
    fn store(values: &[Self], dtype: DType, out: &mut [u8]) {
        store(values, dtype, out);
    }
}

fn store<F: Real>(values: &[F], dtype: DType, out: &mut [u8]) {
    let (low, high) = dtype.range();
    with_element!(dtype, T => {
        for (value, out) in values.iter().zip(out.chunks_exact_mut(size_of::<T>())) {
            let mut value = value.to_f64();
            if dtype == DType::Bool {
                value = value.clamp(low, high);
            }
            out.copy_from_slice(bytemuck::bytes_of(&T::from_f64(value)));
        }
    });
}

/// The filter of an axis: weights of a voxel and, on both sides alike, of its neighbors. Their sum is 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Filter(Vec<f64>);

impl Filter {
    /// Returns the filter that an interpolation needs before voxels `step` apart are interpolated along an axis.
    pub(super) fn new(interpolation: Interpolation, step: f64, antialias: bool) -> Self {
        let mut filter = Self(vec![1.0]);
        if antialias && is_coarser(step) {
            filter = filter.then(&gaussian(step));
        }
        if interpolation == Interpolation::Cubic {
            filter = filter.then(&prefilter());
        }
        filter
    }

    /// Returns the number of neighbors on each side.
    pub(super) const fn reach(&self) -> usize {
        self.0.len() - 1
    }

    fn at(&self, apart: usize) -> f64 {
        self.0.get(apart).copied().unwrap_or(0.0)
    }

    /// Returns the filter that has the effect of both.
    fn then(&self, other: &Self) -> Self {
        let (own, its) = (self.reach().cast_signed(), other.reach().cast_signed());
        let weight = |apart: isize| -> f64 {
            let terms = (-its..=its)
                .map(|k| other.at(k.unsigned_abs()) * self.at((apart - k).unsigned_abs()));
            terms.sum()
        };
        Self((0..=own + its).map(weight).collect())
    }

    fn normalized(mut half: Vec<f64>) -> Self {
        let sum: f64 = half[0] + 2.0 * half[1..].iter().sum::<f64>();
        for weight in &mut half {
            *weight /= sum;
        }
        Self(half)
    }
}

/// Returns `true` if voxels `step` apart are further apart than those of the volume. A rotation alone has a step of 1,
/// within rounding.
pub(super) fn is_coarser(step: f64) -> bool {
    step > 1.0 + 1e-6
}

/// Returns the filter whose result are the coefficients of the cubic B-spline through the values.
fn prefilter() -> Filter {
    let pole = 3_f64.sqrt() - 2.0;
    let weights = std::iter::successors(Some(1.0), |weight| Some(weight * pole));
    Filter::normalized(weights.take(PREFILTER + 1).collect())
}

/// Returns the Gaussian for voxels `step` voxels apart, with the variance `(step^2 - 1) / (8 ln 2)` (Cardoso et al.
/// 2015, as in TorchIO): blurred by it, a voxel with a Gaussian profile of a voxel's full width at half maximum has that
/// of the larger voxel.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a step is a positive number of voxels"
)]
fn gaussian(step: f64) -> Filter {
    let variance = (step * step - 1.0) / (8.0 * std::f64::consts::LN_2);
    let reach = (CUT * variance.sqrt()).ceil() as u64;
    let weight = |n: u64| (-float(n * n) / (2.0 * variance)).exp();
    Filter::normalized((0..=reach).map(weight).collect())
}

/// Returns the first voxel of a position's neighborhood, relative to the voxel before it, and the weights.
fn neighborhood(interpolation: Interpolation, fraction: f64) -> (isize, Vec<f64>) {
    if interpolation == Interpolation::Cubic {
        return (-1, spline(fraction).to_vec());
    }
    (0, vec![1.0 - fraction, fraction])
}

/// Returns the weights of the cubic B-spline for the four voxels around a position.
pub(super) fn spline(t: f64) -> [f64; 4] {
    let (u, v) = (1.0 - t, t * t);
    [
        u * u * u / 6.0,
        (4.0 + v * (3.0 * t - 6.0)) / 6.0,
        (1.0 + 3.0 * (t + v - v * t)) / 6.0,
        v * t / 6.0,
    ]
}

/// A table of weights along an axis: each position has the same number of consecutive voxels.
#[derive(Clone, Debug)]
pub(super) struct Table<F> {
    /// Voxels of each position: 1 for a copy, 2 for a linear interpolation, more for filters.
    taps: usize,
    /// The first voxel of each position.
    starts: Vec<usize>,
    weights: Vec<F>,
}

impl<F: Real> Table<F> {
    /// Returns the table of these positions in a row of voxels of which the first has the index `first`.
    pub(super) fn new(
        positions: impl Iterator<Item = f64>,
        first: i64,
        interpolation: Interpolation,
        filter: &Filter,
        is_whole: bool,
    ) -> Self {
        let mut table = Self {
            taps: 1,
            starts: Vec::new(),
            weights: Vec::new(),
        };
        let reach = filter.reach().cast_signed();
        for position in positions {
            let (base, fraction) = split(position);
            if is_whole && reach == 0 {
                table.push(base - first, &[1.0]);
                continue;
            }
            let (from, near) = if is_whole {
                (0, vec![1.0])
            } else {
                neighborhood(interpolation, fraction)
            };
            if reach == 0 {
                table.push(base + from as i64 - first, &near);
                continue;
            }
            let weight = |tap: isize| -> f64 {
                let terms = (0..).zip(&near);
                terms
                    .map(|(n, own): (isize, &f64)| own * filter.at((tap - n).unsigned_abs()))
                    .sum()
            };
            let all = near.len().cast_signed() - 1 + reach;
            let weights: Vec<f64> = (-reach..=all).map(weight).collect();
            table.push(base + (from - reach) as i64 - first, &weights);
        }
        table
    }

    /// Returns the table that filters a row and leaves out what it has beyond the ends of the result.
    fn of_filter(filter: &Filter, length: usize) -> Self {
        let whole = (0..length).map(|n| float(n as u64));
        let first = -(filter.reach().cast_signed() as i64);
        Self::new(whole, first, Interpolation::Nearest, filter, true)
    }

    fn push(&mut self, start: i64, weights: &[f64]) {
        self.taps = weights.len();
        let start = usize::try_from(start).expect("the voxels of a table are in its row");
        self.starts.push(start);
        self.weights
            .extend(weights.iter().map(|&weight| F::from_f64(weight)));
    }

    pub(super) const fn len(&self) -> usize {
        self.starts.len()
    }

    fn of(&self, n: usize) -> (usize, &[F]) {
        (
            self.starts[n],
            &self.weights[n * self.taps..(n + 1) * self.taps],
        )
    }

    /// Returns the voxels that position `n` depends on. The neighbor of a voxel does not count at a distance of 0, even if it
    /// is not a number.
    fn voxels_of(&self, n: usize) -> Range<usize> {
        let (start, weights) = self.of(n);
        match *weights {
            [_, weight] if weight == F::default() => start..start + 1,
            _ => start..start + weights.len(),
        }
    }

    /// Computes position `n` of many rows at once. `voxel` returns the values of the rows at one of its voxels.
    fn combine<'a>(&self, n: usize, voxel: impl Fn(usize) -> &'a [F], out: &mut [F])
    where
        F: 'a,
    {
        let needed = self.voxels_of(n);
        if needed.len() == 1 {
            return out.copy_from_slice(voxel(needed.start));
        }
        let (start, weights) = self.of(n);
        if let [_, weight] = *weights {
            let pairs = voxel(start).iter().zip(voxel(start + 1));
            for (out, (&a, &b)) in out.iter_mut().zip(pairs) {
                *out = a + weight * (b - a);
            }
            return;
        }
        out.fill(F::default());
        for (at, &weight) in needed.zip(weights) {
            for (out, &value) in out.iter_mut().zip(voxel(at)) {
                *out = *out + weight * value;
            }
        }
    }

    /// Computes all positions of one row.
    fn line(&self, row: &[F], out: &mut [F]) {
        match self.taps {
            1 => {
                for (out, &start) in out.iter_mut().zip(&self.starts) {
                    *out = row[start];
                }
            }
            2 => {
                let pairs = self.weights.chunks_exact(2);
                for ((out, &start), pair) in out.iter_mut().zip(&self.starts).zip(pairs) {
                    let near = &row[start..start + 2];
                    let (a, b, weight) = (near[0], near[1], pair[1]);
                    *out = if weight == F::default() {
                        a
                    } else {
                        a + weight * (b - a)
                    };
                }
            }
            taps => {
                let all = self.weights.chunks_exact(taps);
                for ((out, &start), weights) in out.iter_mut().zip(&self.starts).zip(all) {
                    let near = row[start..start + taps].iter().zip(weights);
                    *out = near.fold(F::default(), |sum, (&value, &weight)| sum + weight * value);
                }
            }
        }
    }

    /// Computes all positions of several rows, by the operations of [`line`](Self::line).
    fn lines(&self, rows: &[[F; LANES]], out: &mut [[F; LANES]]) {
        let all = self.weights.chunks_exact(self.taps);
        for ((out, &start), weights) in out.iter_mut().zip(&self.starts).zip(all) {
            let near = &rows[start..start + self.taps];
            match (weights, near) {
                (&[_, weight], &[a, _]) if weight == F::default() => *out = a,
                (&[_, weight], &[a, b]) => {
                    for (out, (a, b)) in out.iter_mut().zip(a.into_iter().zip(b)) {
                        *out = a + weight * (b - a);
                    }
                }
                _ => {
                    let mut sums = [F::default(); LANES];
                    for (values, &weight) in near.iter().zip(weights) {
                        for (sum, &value) in sums.iter_mut().zip(values) {
                            *sum = *sum + weight * value;
                        }
                    }
                    *out = sums;
                }
            }
        }
    }
}

/// Turns rows into vectors of the voxels at the same place.
fn interleave<F: Real>(rows: &[F], lanes: &mut [[F; LANES]]) {
    let rows: [&[F]; LANES] = std::array::from_fn(|n| &rows[n * lanes.len()..][..lanes.len()]);
    for (x, lane) in lanes.iter_mut().enumerate() {
        for (value, row) in lane.iter_mut().zip(rows) {
            *value = row[x];
        }
    }
}

/// The planes of a box that the current position along z depends on. A plane is loaded once while positions follow each
/// other.
struct Planes<F> {
    /// One after the other; plane `n` is at `n` modulo their number.
    values: Vec<F>,
    /// The index of each plane.
    held: Vec<Option<usize>>,
    voxels: usize,
}

impl<F: Real> Planes<F> {
    fn new(count: usize, voxels: usize) -> Self {
        Self {
            values: vec![F::default(); count * voxels],
            held: vec![None; count],
            voxels,
        }
    }

    fn hold(&mut self, planes: Range<usize>, mut load: impl FnMut(usize, &mut [F])) {
        for plane in planes {
            let at = plane % self.held.len();
            if self.held[at] != Some(plane) {
                load(plane, &mut self.values[at * self.voxels..][..self.voxels]);
                self.held[at] = Some(plane);
            }
        }
    }

    fn of(&self, plane: usize) -> &[F] {
        &self.values[plane % self.held.len() * self.voxels..][..self.voxels]
    }
}

/// Returns the values of rows of `width` voxels, and of rows of `out` results, that [`by_tables`] takes.
pub(super) const fn rows(width: u64, out: u64) -> u64 {
    2 * LANES as u64 * width + (LANES as u64 + 1) * out
}

/// Interpolates a box of `depth`, `height`, `width` voxels by tables along z, y and x, and passes each row of the result to
/// `put`. `load` writes the values of a plane of the box.
pub(super) fn by_tables<F: Real>(
    [height, width]: [usize; 2],
    [z, y, x]: [&Table<F>; 3],
    mut load: impl FnMut(usize, &mut [F]),
    mut put: impl FnMut(usize, &[F]),
) {
    let mut planes = Planes::new(z.taps, height * width);
    let mut plane = vec![F::default(); height * width];
    let mut rows = vec![F::default(); LANES * width];
    let mut line = vec![F::default(); x.len()];
    let mut lanes = vec![[F::default(); LANES]; width];
    let mut results = vec![[F::default(); LANES]; x.len()];
    for k in 0..z.len() {
        planes.hold(z.voxels_of(k), &mut load);
        z.combine(k, |n| planes.of(n), &mut plane);
        for first in (0..y.len()).step_by(LANES) {
            let some = first..(first + LANES).min(y.len());
            for (j, row) in some.clone().zip(rows.chunks_exact_mut(width)) {
                y.combine(j, |n| &plane[n * width..][..width], row);
            }
            let is_vector = some.len() == LANES && x.taps > 1;
            if is_vector {
                interleave(&rows, &mut lanes);
                x.lines(&lanes, &mut results);
            }
            for (n, (j, row)) in some.zip(rows.chunks_exact(width)).enumerate() {
                if is_vector {
                    for (value, result) in line.iter_mut().zip(&results) {
                        *value = result[n];
                    }
                } else {
                    x.line(row, &mut line);
                }
                put(k * y.len() + j, &line);
            }
        }
    }
}

/// Applies the filters of z, y and x to a box of voxels, which becomes smaller by their reach on each side.
pub(super) fn filtered<F: Real>(
    voxels: Vec<F>,
    dims: [usize; 3],
    filters: &[Filter; 3],
) -> (Vec<F>, [usize; 3]) {
    if filters.iter().all(|filter| filter.reach() == 0) {
        return (voxels, dims);
    }
    let [_, height, width] = dims;
    let out: [usize; 3] = std::array::from_fn(|a| dims[a] - 2 * filters[a].reach());
    let tables: [Table<F>; 3] = std::array::from_fn(|a| Table::of_filter(&filters[a], out[a]));
    let mut found = Vec::with_capacity(out.iter().product());
    by_tables(
        [height, width],
        tables.each_ref(),
        |z, plane| plane.copy_from_slice(&voxels[z * plane.len()..][..plane.len()]),
        |_, row| found.extend_from_slice(row),
    );
    (found, out)
}

/// Positions in a volume of the voxels of a region.
pub(super) enum Positions<'a> {
    /// Along z, y, x.
    Axes([Vec<f64>; 3]),
    /// By a map that is not separable.
    Mapped(&'a Map),
}

impl<'a> Positions<'a> {
    pub(super) fn new(map: &'a Map, region: Region) -> Self {
        if !map.is_separable {
            return Self::Mapped(map);
        }
        Self::Axes(std::array::from_fn(|a| {
            let start = region.start[a].unsigned_abs();
            (start..start + region.shape[a])
                .map(|n| map.along(a, n))
                .collect()
        }))
    }

    /// Passes the position of each voxel of a region, row by row, to `put`.
    pub(super) fn each(&self, region: Region, mut put: impl FnMut([f64; 3])) {
        let [depth, height, width] = region.shape;
        let start = region.start.map(|n| float(n.unsigned_abs()));
        for z in 0..depth {
            for y in 0..height {
                for x in 0..width {
                    let at = [z, y, x];
                    put(match self {
                        Self::Axes(axes) => std::array::from_fn(|a| axes[a][place(at[a])]),
                        Self::Mapped(map) => {
                            let at = std::array::from_fn(|a| start[a] + float(at[a]));
                            std::array::from_fn(|a| map.at(a, at))
                        }
                    });
                }
            }
        }
    }
}

/// Returns the voxel before a position, and the distance from it.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the cast stops at the ends of i64"
)]
pub(super) fn split(position: f64) -> (i64, f64) {
    let base = position.floor();
    (base as i64, position - base)
}

/// A box of voxels or of spline coefficients, of which the first has the index `first`.
pub(super) struct Field<'a, T> {
    pub(super) voxels: &'a [T],
    pub(super) dims: [usize; 3],
    pub(super) first: [i64; 3],
}

impl<T: Copy> Field<'_, T> {
    /// Returns the first voxel of a neighborhood that starts `before` voxels before the voxel before a position, and the
    /// position's distances from the voxels before it.
    #[inline]
    fn base(&self, position: [f64; 3], before: i64) -> (usize, [f64; 3]) {
        let parts = position.map(split);
        let at: [usize; 3] = std::array::from_fn(|a| {
            usize::try_from(parts[a].0 - before - self.first[a]).unwrap_or(usize::MAX)
        });
        let place = (at[0] * self.dims[1] + at[1]) * self.dims[2] + at[2];
        (place, parts.map(|(_, fraction)| fraction))
    }

    /// Returns the eight voxels around a position, x fastest, and the position's distances from the first.
    #[inline]
    fn cell(&self, position: [f64; 3]) -> ([T; 8], [f64; 3]) {
        let (place, fractions) = self.base(position, 0);
        let (row, plane) = (self.dims[2], self.dims[1] * self.dims[2]);
        let starts = [place, place + row, place + plane, place + plane + row];
        let pairs = starts.map(|from| {
            let near = &self.voxels[from..from + 2];
            [near[0], near[1]]
        });
        (std::array::from_fn(|n| pairs[n / 2][n % 2]), fractions)
    }
}

impl<F: Real> Field<'_, F> {
    /// Interpolates linearly.
    #[inline]
    pub(super) fn linear(&self, position: [f64; 3]) -> F {
        let (cell, fractions) = self.cell(position);
        let [z, y, x] = fractions.map(F::from_f64);
        // The neighbor does not count at a distance of 0, even if it is not a number.
        let between = |a: F, b: F, weight: F| {
            if weight == F::default() {
                a
            } else {
                a + weight * (b - a)
            }
        };
        // In the order of the tables: along z, then y, then x.
        let along_z: [F; 4] = std::array::from_fn(|n| between(cell[n], cell[n + 4], z));
        let along_y: [F; 2] = std::array::from_fn(|n| between(along_z[n], along_z[n + 2], y));
        between(along_y[0], along_y[1], x)
    }

    /// Evaluates the cubic B-spline with these coefficients.
    #[inline]
    pub(super) fn cubic(&self, position: [f64; 3]) -> F {
        let (place, fractions) = self.base(position, 1);
        let [z, y, x] = fractions.map(|fraction| spline(fraction).map(F::from_f64));
        let mut sum = F::default();
        for (k, &of_z) in z.iter().enumerate() {
            let mut plane = F::default();
            for (j, &of_y) in y.iter().enumerate() {
                let from = place + (k * self.dims[1] + j) * self.dims[2];
                let near = &self.voxels[from..from + 4];
                let row = x[0] * near[0] + x[1] * near[1] + x[2] * near[2] + x[3] * near[3];
                plane = plane + of_y * row;
            }
            sum = sum + of_z * plane;
        }
        sum
    }
}

impl<T: Copy + PartialEq + PartialOrd> Field<'_, T> {
    /// Returns the label with the largest sum of trilinear weights, within rounding; of several, the smallest.
    pub(super) fn label(&self, position: [f64; 3]) -> T {
        let (cell, [z, y, x]) = self.cell(position);
        if cell[1..].iter().all(|label| *label == cell[0]) {
            return cell[0];
        }
        let share = |fraction: f64, second: bool| if second { fraction } else { 1.0 - fraction };
        let weights: [f64; 8] = std::array::from_fn(|n| {
            share(z, n & 4 != 0) * share(y, n & 2 != 0) * share(x, n & 1 != 0)
        });
        let mut best = (cell[0], -1.0);
        for (n, &label) in cell.iter().enumerate() {
            if cell[..n].contains(&label) {
                continue;
            }
            let others = cell[n..].iter().zip(&weights[n..]);
            let sum: f64 = others
                .filter(|(other, _)| **other == label)
                .map(|(_, weight)| weight)
                .sum();
            let is_equal = (sum - best.1).abs() <= 1e-9;
            if sum > best.1 + 1e-9 || (is_equal && label < best.0) {
                best = (label, sum);
            }
        }
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that are computed side by side have the bits of single ones, for every number of taps and of rows.
    #[test]
    fn rows_side_by_side_equal_single_rows() {
        let mut state = 1_u64;
        let mut value = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            f64::from(u32::try_from(state >> 40).unwrap()) / 1000.0 - 8000.0
        };
        for (interpolation, step) in [
            (Interpolation::Nearest, 1.0),
            (Interpolation::Linear, 0.4),
            (Interpolation::Linear, 1.0),
            (Interpolation::Linear, 2.7),
            (Interpolation::Cubic, 0.7),
        ] {
            let filter = Filter::new(interpolation, step, interpolation == Interpolation::Linear);
            let positions = (0..23).map(|n| f64::from(n) * step + 0.5);
            let is_whole = interpolation == Interpolation::Nearest;
            let first = -40;
            let x = Table::<f32>::new(positions, first, interpolation, &filter, is_whole);
            let width = 150;
            for height in [1, 7, 8, 9, 24] {
                #[expect(clippy::cast_possible_truncation, reason = "any values")]
                let voxels: Vec<f32> = (0..height * width).map(|_| value() as f32).collect();
                let copy = |length: usize| {
                    let whole = (0..length).map(|n| float(n as u64));
                    let none = Filter::new(Interpolation::Nearest, 1.0, false);
                    Table::<f32>::new(whole, 0, Interpolation::Nearest, &none, true)
                };
                let (z, y) = (copy(1), copy(height));
                let mut seen = 0;
                let load = |_: usize, plane: &mut [f32]| plane.copy_from_slice(&voxels);
                by_tables([height, width], [&z, &y, &x], load, |n, line| {
                    let mut twin = vec![0.0; x.len()];
                    x.line(&voxels[n * width..][..width], &mut twin);
                    let bits = |values: &[f32]| -> Vec<u32> {
                        values.iter().map(|value| value.to_bits()).collect()
                    };
                    assert_eq!(
                        bits(line),
                        bits(&twin),
                        "{interpolation} {step} {height} {n}"
                    );
                    seen += 1;
                });
                assert_eq!(seen, height);
            }
        }
    }
}
