//! Downsampling: one voxel from up to eight.

use std::cmp::Ordering;

use half::f16;

use super::Downsample;
use crate::dtype::{DType, Element, with_element};
use crate::region::{Region, Shape};

/// Returns the cells of `part`, row-major. Each is made from `factors` (1 or 2 along each axis) voxels, or from fewer
/// at the end of `part`.
///
/// `source` holds the voxels of `held`, which must contain `part`; `part` must start at multiples of the factors.
pub(super) fn halve(
    method: Downsample,
    dtype: DType,
    (source, held): (&[u8], Region),
    part: Region,
    factors: Shape,
) -> Vec<u8> {
    let cells = Cells::new(held, part, factors);
    if dtype == DType::Bool {
        // For zeros and ones, the mean (with halves rounded to even) and the mode are the same.
        return cells.map(source, |values: &mut [u8]| {
            let set = values.iter().filter(|&&value| value != 0).count();
            u8::from(2 * set > values.len())
        });
    }
    with_element!(dtype, T => match method {
        Downsample::Mean => cells.map(source, |values: &mut [T]| T::mean(values)),
        Downsample::Mode => cells.map(source, |values: &mut [T]| mode(values)),
    })
}

/// The positions of each cell's voxels in a buffer.
struct Cells {
    /// Voxels of the buffer along y and x.
    lengths: [usize; 2],
    /// The first voxel of the part in the buffer, and the part's lengths, along z, y, x.
    first: [usize; 3],
    shape: [usize; 3],
    factors: [usize; 3],
}

impl Cells {
    fn new(held: Region, part: Region, factors: Shape) -> Self {
        let length = |n: u64| usize::try_from(n).expect("a length inside a buffer in memory");
        let [_, y, x] = held.shape.map(length);
        Self {
            lengths: [y, x],
            first: part
                .relative_to(held.start)
                .start
                .map(|n| length(n.unsigned_abs())),
            shape: part.shape.map(length),
            factors: factors.map(length),
        }
    }

    /// Computes one value per cell from its values in the order z, y, x.
    fn map<T: Element>(&self, source: &[u8], one: impl Fn(&mut [T]) -> T) -> Vec<u8> {
        let size = size_of::<T>();
        let counts: [usize; 3] = std::array::from_fn(|a| self.shape[a].div_ceil(self.factors[a]));
        let mut out = Vec::with_capacity(counts.iter().product::<usize>() * size);
        let mut values = [T::default(); 8];
        for z in 0..counts[0] {
            for y in 0..counts[1] {
                for x in 0..counts[2] {
                    let mut count = 0;
                    let [zs, ys, xs] = [self.span(0, z), self.span(1, y), self.span(2, x)];
                    for z in zs {
                        for y in ys.clone() {
                            let row = (z * self.lengths[0] + y) * self.lengths[1];
                            let run = &source[(row + xs.start) * size..(row + xs.end) * size];
                            for voxel in run.chunks_exact(size) {
                                values[count] = bytemuck::pod_read_unaligned(voxel);
                                count += 1;
                            }
                        }
                    }
                    out.extend_from_slice(bytemuck::bytes_of(&one(&mut values[..count])));
                }
            }
        }
        out
    }

    /// Returns the positions of a cell's voxels along one axis of the buffer.
    fn span(&self, axis: usize, cell: usize) -> std::ops::Range<usize> {
        let start = cell * self.factors[axis];
        let end = (start + self.factors[axis]).min(self.shape[axis]);
        self.first[axis] + start..self.first[axis] + end
    }
}

/// The mean of one to eight values.
trait Mean: Element {
    fn mean(values: &[Self]) -> Self;
}

macro_rules! integer_means {
    ($($ty:ty => $wide:ty),*) => { $(
        impl Mean for $ty {
            fn mean(values: &[Self]) -> Self {
                let count = values.iter().fold(0, |n: $wide, _| n + 1);
                let sum: $wide = values.iter().map(|&value| <$wide>::from(value)).sum();
                let (floor, rest) = (sum.div_euclid(count), sum.rem_euclid(count));
                let up = match (2 * rest).cmp(&count) {
                    Ordering::Less => 0,
                    Ordering::Equal => floor.rem_euclid(2),
                    Ordering::Greater => 1,
                };
                Self::try_from(floor + up).unwrap_or(Self::MAX)
            }
        }
    )* };
}
integer_means!(u8 => i32, i8 => i32, u16 => i32, i16 => i32, u32 => i64, i32 => i64, u64 => i128, i64 => i128);

macro_rules! float_means {
    ($($ty:ty),*) => { $(
        impl Mean for $ty {
            fn mean(values: &[Self]) -> Self {
                let numbers = || values.iter().map(|&value| value.to_f64()).filter(|value| !value.is_nan());
                let count = numbers().map(|_| 1.0).sum::<f64>();
                if count == 0.0 {
                    return Self::NAN;
                }
                let sum: f64 = numbers().sum();
                if sum.is_infinite() && numbers().all(f64::is_finite) {
                    return Self::from_f64(numbers().map(|value| value / count).sum());
                }
                Self::from_f64(sum / count)
            }
        }
    )* };
}
float_means!(f16, f32, f64);

/// Returns the most frequent value; among equally frequent ones, the smallest. NaN counts as one value, larger than all
/// others.
fn mode<T: Element>(values: &mut [T]) -> T {
    let first = values[0];
    if values.iter().all(|value| *value == first) {
        return first;
    }
    values.sort_by(order);
    let (mut best, mut most) = (first, 0);
    for run in values.chunk_by(|a, b| order(a, b) == Ordering::Equal) {
        if run.len() > most {
            (best, most) = (run[0], run.len());
        }
    }
    best
}

/// Compares numbers; NaN is last and equal to itself.
fn order<T: Element>(a: &T, b: &T) -> Ordering {
    let is_nan = |value: &T| value.partial_cmp(value).is_none();
    a.partial_cmp(b)
        .unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one<T: Element>(method: Downsample, values: &[T]) -> T {
        let region = Region::whole([1, values.len().div_ceil(2) as u64, 2]);
        let held = Region {
            shape: [1, region.shape[1], region.shape[2].min(values.len() as u64)],
            ..region
        };
        let out = halve(
            method,
            T::DTYPE,
            (bytemuck::cast_slice(values), held),
            held,
            [2; 3],
        );
        bytemuck::pod_read_unaligned(&out)
    }

    #[test]
    fn means_are_exact_and_a_half_goes_to_the_even() {
        let mean = Downsample::Mean;
        assert_eq!(one(mean, &[0_u8, 1]), 0);
        assert_eq!(one(mean, &[1_u8, 2]), 2);
        assert_eq!(one(mean, &[-1_i8, -2]), -2);
        assert_eq!(one(mean, &[-1_i8, 0]), 0);
        assert_eq!(one(mean, &[u64::MAX, u64::MAX - 2]), u64::MAX - 1);
        assert_eq!(one(mean, &[i64::MIN, i64::MIN + 1]), i64::MIN);
        assert_eq!(one(mean, &[255_u8, 255, 255, 254]), 255);
        assert_eq!(one(mean, &[1.0_f32, 2.0]), 1.5);
        assert_eq!(one(mean, &[f64::MAX, f64::MAX]), f64::MAX);
        assert_eq!(one(mean, &[f16::MAX, f16::MAX]), f16::MAX);
    }

    #[test]
    fn nan_is_left_out_of_a_mean_unless_there_is_nothing_else() {
        let mean = Downsample::Mean;
        assert_eq!(one(mean, &[f32::NAN, 3.0]), 3.0);
        assert_eq!(one(mean, &[f32::NAN, 3.0, 5.0, f32::NAN]), 4.0);
        assert!(one(mean, &[f32::NAN, f32::NAN]).is_nan());
        assert_eq!(one(mean, &[f64::INFINITY, 1.0]), f64::INFINITY);
    }

    #[test]
    fn the_mode_is_the_most_frequent_value_and_the_smallest_of_several() {
        let mode = Downsample::Mode;
        assert_eq!(one(mode, &[7_i16, -3, 7, 2]), 7);
        assert_eq!(one(mode, &[7_i16, -3, 7, -3]), -3);
        assert_eq!(one(mode, &[(1_u32 << 24) + 1, 1 << 24]), 1 << 24);
        assert_eq!(one(mode, &[f32::NAN, 2.0]), 2.0);
        assert!(one(mode, &[f32::NAN, 2.0, f32::NAN, 1.0]).is_nan());
    }

    #[test]
    fn true_needs_more_than_half() {
        let out = |values: [u8; 4]| {
            let held = Region::whole([1, 2, 2]);
            halve(Downsample::Mean, DType::Bool, (&values, held), held, [2; 3])
        };
        assert_eq!(out([1, 0, 9, 0]), [0]);
        assert_eq!(out([1, 0, 9, 1]), [1]);
    }
}
