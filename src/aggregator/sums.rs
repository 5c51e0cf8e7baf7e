//! Accumulators: the types of weighted sums.

use std::fmt::{self, Debug};
use std::str::FromStr;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::buffers::Buffers;
use crate::error::{Error, Result};
use crate::words::Word;

/// The type of the sums of blocks that are not final.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Accumulator {
    /// Four bytes per voxel and channel.
    #[default]
    F32,
    /// Two bytes, 11 bits of precision, up to 65 504: larger predictions count as not finite. Only for windows that
    /// are products of 1-D windows. Sums are `F32` unless every patch votes.
    F16,
    /// Two bytes, 8 bits of precision, the range of `f32`. The other restrictions of `F16` apply.
    BF16,
}

impl fmt::Display for Accumulator {
    /// Writes the word that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        })
    }
}

impl FromStr for Accumulator {
    type Err = Error;

    /// Parses `float32`, `float16` or `bfloat16`, or their short forms `f32`, `f16` and `bf16`.
    fn from_str(text: &str) -> Result<Self> {
        let word = Word::new("accumulator", text, "float32, float16 and bfloat16");
        Ok(match word.split() {
            ("float32" | "f32", None) => Self::F32,
            ("float16" | "f16", None) => Self::F16,
            ("bfloat16" | "bf16", None) => Self::BF16,
            _ => return Err(word.unknown()),
        })
    }
}

impl Accumulator {
    /// Returns the bytes of a sum.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Returns the smallest number that becomes infinite in a sum: the largest finite number plus half a unit in its
    /// last place.
    pub(super) fn too_large(self) -> f64 {
        match self {
            Self::F32 => too_large_for_f32(),
            Self::F16 => TOO_LARGE_FOR_F16,
            Self::BF16 => f64::from(bf16::MAX) + 2_f64.powi(119),
        }
    }
}

/// The smallest number that becomes infinite in `f16`.
pub(super) const TOO_LARGE_FOR_F16: f64 = 65_520.0;

/// Returns the smallest number that becomes infinite in `f32`.
pub(super) fn too_large_for_f32() -> f64 {
    f64::from(f32::MAX) + 2_f64.powi(103)
}

/// A number type for sums. All arithmetic is in `f32`.
pub(super) trait Sum: Copy + Default + Debug + Send + Sync + 'static {
    /// Adds `values * weight * weights`, voxel by voxel. Returns `true` if all magnitudes are below `limit`.
    fn add(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32], limit: f32) -> bool;

    /// Stores `values * weight * weights`, voxel by voxel. Returns `true` if all magnitudes are below `limit`.
    fn set(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32], limit: f32) -> bool;

    /// Adds `value * weight * weights`, voxel by voxel.
    fn add_constant(sums: &mut [Self], value: f32, weight: f32, weights: &[f32]);

    /// Multiplies each sum by its factor.
    fn scale(sums: &mut [Self], factors: &[f32]);

    /// Passes the sums, as `f32`, to `then`; converted ones in a buffer.
    fn with_f32<R>(
        sums: &mut [Self],
        buffers: &Buffers<f32>,
        then: impl FnOnce(&mut [f32]) -> R,
    ) -> R;
}

/// Returns all bits if a value is NaN or its magnitude reaches the limit, otherwise 0. Unlike a `bool`, it can be
/// collected in the vectorized loop that adds the values.
#[inline]
fn beyond(value: f32, limit: f32) -> u32 {
    #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN must not pass")]
    let beyond = !(value.abs() < limit);
    if beyond { u32::MAX } else { 0 }
}

impl Sum for f32 {
    fn add(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32], limit: f32) -> bool {
        let mut bits = 0;
        for ((sum, value), share) in sums.iter_mut().zip(values).zip(weights) {
            *sum += value * (weight * share);
            bits |= beyond(*value, limit);
        }
        bits == 0
    }

    fn set(sums: &mut [Self], values: &[f32], weight: f32, weights: &[f32], limit: f32) -> bool {
        let mut bits = 0;
        for ((sum, value), share) in sums.iter_mut().zip(values).zip(weights) {
            *sum = value * (weight * share);
            bits |= beyond(*value, limit);
        }
        bits == 0
    }

    fn add_constant(sums: &mut [Self], value: f32, weight: f32, weights: &[f32]) {
        for (sum, share) in sums.iter_mut().zip(weights) {
            *sum += value * (weight * share);
        }
    }

    fn scale(sums: &mut [Self], factors: &[f32]) {
        for (sum, factor) in sums.iter_mut().zip(factors) {
            *sum *= factor;
        }
    }

    fn with_f32<R>(sums: &mut [Self], _: &Buffers<f32>, then: impl FnOnce(&mut [f32]) -> R) -> R {
        then(sums)
    }
}

/// The number of voxels that are widened at a time.
const RUN: usize = 128;

/// Widens a few sums at a time, works on them, and narrows them again. A sum that rounding brought slightly above the
/// largest number is set to that number.
fn widened<T>(sums: &mut [T], largest: f32, mut work: impl FnMut(usize, &mut [f32]))
where
    [T]: HalfFloatSliceExt,
{
    let mut row = [0.0; RUN];
    let rounded = (largest * 1.06).min(f32::MAX);
    for (n, sums) in sums.chunks_mut(RUN).enumerate() {
        let row = &mut row[..sums.len()];
        sums.convert_to_f32_slice(row);
        work(n * RUN, row);
        for sum in &mut *row {
            let near = sum.clamp(-largest, largest);
            *sum = if sum.abs() <= rounded { near } else { *sum };
        }
        sums.convert_from_f32_slice(row);
    }
}

macro_rules! half_sums {
    ($type:ty) => {
        impl Sum for $type {
            fn add(
                sums: &mut [Self],
                values: &[f32],
                weight: f32,
                weights: &[f32],
                limit: f32,
            ) -> bool {
                let mut within = true;
                widened(sums, <$type>::MAX.to_f32(), |at, row| {
                    within &= f32::add(row, &values[at..], weight, &weights[at..], limit);
                });
                within
            }

            fn set(
                sums: &mut [Self],
                values: &[f32],
                weight: f32,
                weights: &[f32],
                limit: f32,
            ) -> bool {
                let mut within = true;
                widened(sums, <$type>::MAX.to_f32(), |at, row| {
                    within &= f32::set(row, &values[at..], weight, &weights[at..], limit);
                });
                within
            }

            fn add_constant(sums: &mut [Self], value: f32, weight: f32, weights: &[f32]) {
                widened(sums, <$type>::MAX.to_f32(), |at, row| {
                    f32::add_constant(row, value, weight, &weights[at..]);
                });
            }

            fn scale(sums: &mut [Self], factors: &[f32]) {
                widened(sums, <$type>::MAX.to_f32(), |at, row| {
                    f32::scale(row, &factors[at..]);
                });
            }

            fn with_f32<R>(
                sums: &mut [Self],
                buffers: &Buffers<f32>,
                then: impl FnOnce(&mut [f32]) -> R,
            ) -> R {
                let mut wide = buffers.take(sums.len());
                sums.convert_to_f32_slice(&mut wide);
                let done = then(&mut wide);
                buffers.give(wide);
                done
            }
        }
    };
}

half_sums!(f16);
half_sums!(bf16);
