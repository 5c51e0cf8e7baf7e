//! Accumulators: the type that weighted values are summed up in.

use std::fmt::Debug;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The type of the sums of blocks that are not final.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Accumulator {
    /// Four bytes a voxel and channel.
    #[default]
    F32,
    /// Two bytes, 11 bits of precision, up to 65 504. Only for windows that are products of 1-D windows.
    F16,
    /// Two bytes, 8 bits of precision, the range of `f32`. Only for windows that are products of 1-D windows.
    BF16,
}

impl Accumulator {
    /// Bytes of a sum.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// A number that values are summed up in. All arithmetic is in `f32`.
pub(super) trait Sum: Copy + Default + Debug + Send + Sync + 'static {
    /// Adds `values * weight * weights`, voxel by voxel.
    fn add(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32]);

    /// Stores `values * weight * weights`, voxel by voxel.
    fn set(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32]);

    /// Adds `value * weight * weights`, voxel by voxel.
    fn add_constant(sums: &mut [Self], value: f32, weight: f32, weights: &[f32]);

    /// Hands the sums, as `f32`, to `then`.
    fn with_f32<R>(sums: &mut [Self], then: impl FnOnce(&mut [f32]) -> R) -> R;
}

impl Sum for f32 {
    fn add(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32]) {
        for ((sum, value), share) in sums.iter_mut().zip(values).zip(weights) {
            *sum += value * (weight * share);
        }
    }

    fn set(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32]) {
        for ((sum, value), share) in sums.iter_mut().zip(values).zip(weights) {
            *sum = value * (weight * share);
        }
    }

    fn add_constant(sums: &mut [Self], value: f32, weight: f32, weights: &[f32]) {
        for (sum, share) in sums.iter_mut().zip(weights) {
            *sum += value * (weight * share);
        }
    }

    fn with_f32<R>(sums: &mut [Self], then: impl FnOnce(&mut [f32]) -> R) -> R {
        then(sums)
    }
}

/// Voxels that are widened at a time.
const RUN: usize = 128;

/// Widens a few sums at a time, works on them, and narrows them again.
fn widened<T>(sums: &mut [T], mut work: impl FnMut(usize, &mut [f32]))
where
    [T]: HalfFloatSliceExt,
{
    let mut row = [0.0; RUN];
    for (n, sums) in sums.chunks_mut(RUN).enumerate() {
        let row = &mut row[..sums.len()];
        sums.convert_to_f32_slice(row);
        work(n * RUN, row);
        sums.convert_from_f32_slice(row);
    }
}

macro_rules! half_sums {
    ($type:ty) => {
        impl Sum for $type {
            fn add(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32]) {
                widened(sums, |at, row| {
                    f32::add(row, &values[at..], weight, &weights[at..]);
                });
            }

            fn set(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32]) {
                widened(sums, |at, row| {
                    f32::set(row, &values[at..], weight, &weights[at..]);
                });
            }

            fn add_constant(sums: &mut [Self], value: f32, weight: f32, weights: &[f32]) {
                widened(sums, |at, row| {
                    f32::add_constant(row, value, weight, &weights[at..]);
                });
            }

            fn with_f32<R>(sums: &mut [Self], then: impl FnOnce(&mut [f32]) -> R) -> R {
                let mut wide = vec![0.0; sums.len()];
                sums.convert_to_f32_slice(&mut wide);
                then(&mut wide)
            }
        }
    };
}

half_sums!(f16);
half_sums!(bf16);
