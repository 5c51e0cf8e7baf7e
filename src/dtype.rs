//! Voxel types: their names, sizes and conversions.
//!
//! A conversion is exact if the value exists in the target type. Otherwise it gives the nearest value: floats round
//! half to even, numbers outside the target's range saturate, and NaN becomes 0 in an integer. A `bool` is stored as
//! one byte; any non-zero value is true, and converts to 1.

mod loss;

use std::fmt;

use bytemuck::Pod;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::{Error, Result};

pub(crate) use loss::{Count, Loss, clipped, loss, text};

/// The type of a voxel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum DType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

impl DType {
    /// All types, for tests and messages.
    pub const ALL: [Self; 12] = [
        Self::Bool,
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::I64,
        Self::F16,
        Self::F32,
        Self::F64,
    ];

    /// Returns the bytes of one voxel.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Returns the name that numpy and Zarr v3 use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::U64 => "uint64",
            Self::I64 => "int64",
            Self::F16 => "float16",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// Returns the type with this name, in the spelling of numpy (`uint8`) or Rust (`u8`).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let short = |dtype: Self| {
            let name = dtype.name();
            let bits = name.trim_start_matches(char::is_alphabetic);
            format!("{}{bits}", &name[..1])
        };
        Self::ALL
            .into_iter()
            .find(|&dtype| dtype.name() == name || (dtype != Self::Bool && short(dtype) == name))
    }

    /// Returns the type with this code of numpy: a letter and the bytes of a value, without the byte order (`u2`).
    pub(crate) fn from_code(code: &str) -> Option<Self> {
        let of = |dtype: Self| format!("{}{}", &dtype.name()[..1], dtype.size());
        Self::ALL.into_iter().find(|&dtype| of(dtype) == code)
    }

    /// Returns `true` if values are whole numbers (`bool` counts).
    #[must_use]
    pub const fn is_integer(self) -> bool {
        !self.is_float()
    }

    /// Returns `true` if values are floating point numbers.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32 | Self::F64)
    }

    /// Returns the smallest and the largest finite value as `f64`, which is rounded for 64-bit integers.
    #[must_use]
    pub fn range(self) -> (f64, f64) {
        if self == Self::Bool {
            return (0.0, 1.0);
        }
        match self {
            Self::F16 => (f16::MIN.into(), f16::MAX.into()),
            Self::F32 => (f32::MIN.into(), f32::MAX.into()),
            _ => {
                with_element!(self, T => (T::from_f64(f64::MIN).to_f64(), T::from_f64(f64::MAX).to_f64()))
            }
        }
    }

    /// Returns `true` if a constant can be stored: as a whole number in range of an integer type (0 or 1 for `bool`),
    /// or rounded to the nearest float without becoming infinite.
    #[must_use]
    pub fn holds_value(self, value: f64) -> bool {
        if self.is_float() {
            let stored = with_element!(self, T => T::from_f64(value).to_f64());
            return stored.is_finite() || !value.is_finite();
        }
        let (least, most) = self.range();
        // The largest 64-bit integers are not exact in f64: they are rounded to the first number out of range.
        let below = match self {
            Self::U64 | Self::I64 => value < most,
            _ => value <= most,
        };
        value.fract() == 0.0 && least <= value && below
    }

    /// Checks that [a constant can be stored](Self::holds_value); `name` is the constant's name in messages, such as
    /// "fill value".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if it cannot.
    pub fn check_constant(self, name: &'static str, value: f64) -> Result<()> {
        if self.holds_value(value) {
            return Ok(());
        }
        let (least, most) = self.range();
        let problem = match self {
            Self::Bool => "voxels of type bool are 0 or 1".to_owned(),
            dtype if dtype.is_float() => format!("voxels of type {dtype} are at most {most}"),
            dtype => format!("voxels of type {dtype} are whole numbers from {least} to {most}"),
        };
        Err(Error::InvalidArgument {
            argument: name,
            value: value.to_string(),
            problem,
        })
    }

    /// Returns `true` if every value of `other` exists in this type.
    #[must_use]
    pub fn holds(self, other: Self) -> bool {
        // The bits of whole numbers that are exact, and whether they may be negative.
        let bits = |dtype: Self| match dtype {
            Self::Bool => 1,
            Self::I8 => 7,
            Self::F16 => 11,
            Self::I16 => 15,
            Self::F32 => 24,
            Self::I32 => 31,
            Self::F64 => 53,
            Self::I64 => 63,
            _ => 8 * dtype.size(),
        };
        let signed = |dtype: Self| {
            !matches!(
                dtype,
                Self::Bool | Self::U8 | Self::U16 | Self::U32 | Self::U64
            )
        };
        bits(self) >= bits(other)
            && (signed(self) || !signed(other))
            && (self.is_float() || !other.is_float())
    }

    /// Returns the smallest type that holds every value of both; `None` if no type does.
    #[must_use]
    pub fn common(self, other: Self) -> Option<Self> {
        let both = |dtype: &Self| dtype.holds(self) && dtype.holds(other);
        Self::ALL
            .into_iter()
            .filter(both)
            .min_by_key(|dtype| dtype.size())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A Rust type of voxels in memory. `bool` voxels are `u8`.
pub trait Element:
    Pod + Default + PartialEq + PartialOrd + Send + Sync + fmt::Debug + sealed::Sealed
{
    /// The voxel type.
    const DTYPE: DType;

    /// Returns the nearest value of this type.
    fn from_f64(value: f64) -> Self;

    /// Returns the nearest f64; exact for all types except 64-bit integers.
    fn to_f64(self) -> f64;
}

mod sealed {
    /// Restricts [`Element`](super::Element) to the voxel types of this crate.
    pub trait Sealed {}
}

/// Conversion to the nearest value of `To`, as described at the top of this file.
trait Nearest<To> {
    fn nearest(self) -> To;
}

/// Returns the nearest f16, rounded once.
///
/// `f16::from_f64` converts to the nearest f32 first if the processor has the instruction, and otherwise drops the
/// lower half of the mantissa. Both mistake some values close to the midpoint between two half floats for the midpoint.
/// An f32 whose last bit marks that digits were cut off distinguishes them (rounding to odd).
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the last bit marks that digits were cut off"
)]
fn half_of(value: f64) -> f16 {
    let near = value as f32;
    let back = f64::from(near);
    let bits = near.to_bits();
    let is_exact = back.to_bits() == value.to_bits();
    if is_exact || !near.is_finite() || bits & 1 == 1 {
        return f16::from_f32(near);
    }
    // If the f32 is beyond the value, its neighbor towards zero is odd; if it is short of it, the neighbor away from
    // zero.
    let odd = if back.abs() > value.abs() {
        bits - 1
    } else {
        bits + 1
    };
    f16::from_f32(f32::from_bits(odd))
}

macro_rules! integers {
    ($($from:ty)*) => { $(integer!($from => u8 i8 u16 i16 u32 i32 u64 i64);)* };
}
macro_rules! integer {
    ($from:ty => $($to:ty)*) => {
        $(impl Nearest<$to> for $from {
            #[inline]
            #[allow(irrefutable_let_patterns, unused_comparisons, reason = "generic over the integer types")]
            fn nearest(self) -> $to {
                <$to>::try_from(self).unwrap_or(if self < 0 { <$to>::MIN } else { <$to>::MAX })
            }
        })*
        impl Nearest<f32> for $from {
            #[inline]
            #[allow(clippy::cast_precision_loss, clippy::cast_lossless, reason = "`as` rounds to the nearest")]
            fn nearest(self) -> f32 { self as f32 }
        }
        impl Nearest<f64> for $from {
            #[inline]
            #[allow(clippy::cast_precision_loss, clippy::cast_lossless, reason = "`as` rounds to the nearest")]
            fn nearest(self) -> f64 { self as f64 }
        }
        impl Nearest<f16> for $from {
            #[inline]
            #[allow(clippy::cast_precision_loss, clippy::cast_lossless, reason = "exact where it is finite in f16")]
            fn nearest(self) -> f16 { half_of(self as f64) }
        }
    };
}
integers!(u8 i8 u16 i16 u32 i32 u64 i64);

macro_rules! floats {
    ($($from:ty)*) => { $(float!($from => u8 i8 u16 i16 u32 i32 u64 i64);)* };
}
macro_rules! float {
    ($from:ty => $($to:ty)*) => {
        $(impl Nearest<$to> for $from {
            #[inline]
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, NaN is 0")]
            fn nearest(self) -> $to { self.round_ties_even() as $to }
        })*
        impl Nearest<f32> for $from {
            #[inline]
            #[allow(clippy::cast_possible_truncation, reason = "rounds to the nearest")]
            fn nearest(self) -> f32 { self as f32 }
        }
        impl Nearest<f64> for $from {
            #[inline]
            #[allow(clippy::cast_lossless, reason = "generic over the float types")]
            fn nearest(self) -> f64 { self as f64 }
        }
    };
}
floats!(f32 f64);

impl Nearest<f16> for f32 {
    #[inline]
    fn nearest(self) -> f16 {
        f16::from_f32(self)
    }
}
impl Nearest<f16> for f64 {
    #[inline]
    fn nearest(self) -> f16 {
        half_of(self)
    }
}
impl<T> Nearest<T> for f16
where
    f32: Nearest<T>,
{
    #[inline]
    fn nearest(self) -> T {
        self.to_f32().nearest()
    }
}

macro_rules! elements {
    ($($ty:ty => $dtype:ident),*) => { $(
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const DTYPE: DType = DType::$dtype;
            #[inline]
            fn from_f64(value: f64) -> Self { value.nearest() }
            #[inline]
            fn to_f64(self) -> f64 { self.nearest() }
        }
    )* };
}
elements!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
          f16 => F16, f32 => F32, f64 => F64);

/// Runs `$body` with `$T` as the Rust type of `$dtype`'s voxels (`u8` for `bool`).
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::Bool | $crate::dtype::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::dtype::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::dtype::DType::U16 => {
                type $T = u16;
                $body
            }
            $crate::dtype::DType::I16 => {
                type $T = i16;
                $body
            }
            $crate::dtype::DType::U32 => {
                type $T = u32;
                $body
            }
            $crate::dtype::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::dtype::DType::U64 => {
                type $T = u64;
                $body
            }
            $crate::dtype::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::dtype::DType::F16 => {
                type $T = ::half::f16;
                $body
            }
            $crate::dtype::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::dtype::DType::F64 => {
                type $T = f64;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// Converts voxels of `from` into voxels of `to`, both in native byte order.
///
/// # Panics
///
/// If the two slices do not have the same number of voxels, or `target` is not aligned.
#[expect(
    clippy::float_cmp,
    reason = "a float is false only if it is zero, as in numpy"
)]
pub(crate) fn convert(from: DType, source: &[u8], to: DType, target: &mut [u8]) {
    assert_eq!(
        source.len() / from.size(),
        target.len() / to.size(),
        "source and target have the same number of voxels"
    );
    if from == to {
        return target.copy_from_slice(source);
    }
    if to == DType::Bool {
        let truth = |voxel: &[u8]| with_element!(from, T => bytemuck::pod_read_unaligned::<T>(voxel) != T::default());
        for (voxel, out) in source.chunks_exact(from.size()).zip(target) {
            *out = u8::from(truth(voxel));
        }
        return;
    }
    // Vectorized, if the processor supports it.
    if (from, to) == (DType::F16, DType::F32)
        && let Ok(halves) = bytemuck::try_cast_slice::<u8, f16>(source)
    {
        return halves.convert_to_f32_slice(bytemuck::cast_slice_mut(target));
    }
    if (from, to) == (DType::F32, DType::F16)
        && let Ok(singles) = bytemuck::try_cast_slice::<u8, f32>(source)
    {
        return bytemuck::cast_slice_mut::<u8, f16>(target).convert_from_f32_slice(singles);
    }
    if from == DType::F32
        && let Ok(singles) = bytemuck::try_cast_slice::<u8, f32>(source)
        && narrowed(singles, to, target)
    {
        return;
    }
    with_element!(from, From => with_element!(to, To => {
        let out = bytemuck::cast_slice_mut::<u8, To>(target).iter_mut();
        let source = source.chunks_exact(size_of::<From>()).map(bytemuck::pod_read_unaligned::<From>);
        if from == DType::Bool {
            out.zip(source).for_each(|(out, value)| *out = u8::from(value != From::default()).nearest());
        } else {
            out.zip(source).for_each(|(out, value)| *out = value.nearest());
        }
    }));
}

/// A number whose last bit in `f32` is 1: added to a magnitude up to 2^22, it rounds to a whole number, half to even.
const ROUNDING: f32 = 12_582_912.0;

/// Converts `f32` to an integer type of up to 16 bits, without the calls for rounding that prevent vectorization.
/// Returns `false` for other types.
fn narrowed(singles: &[f32], to: DType, target: &mut [u8]) -> bool {
    #[inline]
    fn whole(single: f32, low: f32, high: f32) -> i32 {
        let number = if single.is_nan() { 0.0 } else { single };
        let number = if number < low { low } else { number };
        let number = if number > high { high } else { number };
        let rounded = (number + ROUNDING).to_bits();
        rounded.wrapping_sub(ROUNDING.to_bits()).cast_signed()
    }
    macro_rules! each {
        ($($kind:ident $native:ty),*) => {
            match to {
                $(DType::$kind => {
                    let (low, high) = (f32::from(<$native>::MIN), f32::from(<$native>::MAX));
                    let out = bytemuck::cast_slice_mut::<u8, $native>(target);
                    #[expect(clippy::cast_possible_truncation, reason = "within the type's range")]
                    #[allow(clippy::cast_sign_loss, reason = "within the type's range")]
                    for (out, single) in out.iter_mut().zip(singles) {
                        *out = whole(*single, low, high) as $native;
                    }
                    true
                })*
                _ => false,
            }
        };
    }
    each!(U8 u8, I8 i8, U16 u16, I16 i16)
}

/// Turns big-endian voxels into little-endian ones or back, in place.
pub(crate) fn swap_bytes(dtype: DType, voxels: &mut [u8]) {
    match dtype.size() {
        2 => swap::<2>(voxels),
        4 => swap::<4>(voxels),
        8 => swap::<8>(voxels),
        _ => {}
    }
}

fn swap<const N: usize>(voxels: &mut [u8]) {
    for voxel in voxels.as_chunks_mut::<N>().0 {
        voxel.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<A: Element, B: Element>(values: &[A]) -> Vec<B> {
        let mut out = vec![B::default(); values.len()];
        convert(
            A::DTYPE,
            bytemuck::cast_slice(values),
            B::DTYPE,
            bytemuck::cast_slice_mut(&mut out),
        );
        out
    }

    fn one<A: Element, B: Element>(value: A) -> B {
        row(&[value])[0]
    }

    #[test]
    fn values_that_exist_in_the_target_are_exact() {
        assert_eq!(one::<_, i64>(u32::MAX), 4_294_967_295);
        assert_eq!(one::<_, u64>((1_i64 << 53) + 1), (1 << 53) + 1);
        assert_eq!(one::<_, f32>(-1024_i16).to_bits(), (-1024_f32).to_bits());
        assert_eq!(one::<_, i16>(f16::from_f32(-7.0)), -7);
        assert_eq!(one::<_, f16>(2048_u16), f16::from_f32(2048.0));
    }

    #[test]
    fn values_that_do_not_are_the_nearest() {
        assert_eq!(one::<_, u8>(-1_i64), 0);
        assert_eq!(one::<_, i8>(u64::MAX), 127);
        assert_eq!(
            (
                one::<_, u8>(2.5_f32),
                one::<_, u8>(3.5_f64),
                one::<_, i8>(-1e30_f32)
            ),
            (2, 4, -128)
        );
        assert_eq!(
            (one::<_, i16>(f32::NAN), one::<_, u16>(f64::INFINITY)),
            (0, 65_535)
        );
        assert_eq!(
            one::<_, f32>(16_777_217_i32).to_bits(),
            16_777_216_f32.to_bits()
        );
        assert!(
            one::<_, f16>(1e9_f32).is_infinite(),
            "a float that is too large stays a float"
        );
    }

    #[test]
    fn half_floats_in_a_row_are_what_they_are_one_by_one() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let singles: Vec<f32> = row(&halves);
        for (half, single) in halves.iter().zip(&singles) {
            let expected = half.to_f32();
            assert!(*single == expected || single.is_nan() && expected.is_nan());
        }
        // All singles of half floats, and the midpoints between two.
        let between = singles
            .windows(2)
            .map(|pair| f32::midpoint(pair[0], pair[1]));
        let all = singles.iter().copied().chain(between);
        let singles: Vec<f32> = all
            .flat_map(|single| [single, single.next_up(), single.next_down()])
            .collect();
        let halves: Vec<f16> = row(&singles);
        for (single, half) in singles.iter().zip(&halves) {
            let expected = f16::from_f32(*single);
            assert!(*half == expected || half.is_nan() && expected.is_nan());
        }
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "small numbers, and random bits")]
    fn singles_in_a_row_become_the_same_small_integers_as_one_by_one() {
        fn check<T: Element>(singles: &[f32])
        where
            f32: Nearest<T>,
        {
            let found: Vec<T> = row(singles);
            for (found, single) in found.iter().zip(singles) {
                let expected: T = single.nearest();
                assert_eq!(*found, expected, "{single:e}");
            }
        }
        let halves = (-140_000_i32..140_000).map(|n| n as f32 / 2.0);
        let around = halves.flat_map(|half| [half, half.next_up(), half.next_down()]);
        let ends = [
            f32::NAN,
            -f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            -0.0,
            4e9,
            -4e9,
        ];
        let mut state = 7_u64;
        let random = (0..100_000).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            f32::from_bits((state >> 32) as u32)
        });
        let singles: Vec<f32> = around.chain(ends).chain(random).collect();
        check::<u8>(&singles);
        check::<i8>(&singles);
        check::<u16>(&singles);
        check::<i16>(&singles);
    }

    /// Returns the nearest of all finite half floats, ties to even, by comparing the two around the value.
    fn nearest_half(value: f64, halves: &[f64]) -> f64 {
        // From the midpoint between the largest half float and its successor on, values are infinite.
        if value.abs() >= 65_520.0 {
            return f64::INFINITY.copysign(value);
        }
        let above = halves
            .partition_point(|&half| half < value)
            .min(halves.len() - 1);
        let below = above.saturating_sub(1);
        let (under, over) = (value - halves[below], halves[above] - value);
        // The list has every half float once, so even and odd ones alternate, starting at zero.
        let zero = halves.len() / 2;
        let is_even = below.abs_diff(zero).is_multiple_of(2);
        let nearer = under.total_cmp(&over);
        if nearer.is_lt() || (nearer.is_eq() && is_even) {
            halves[below]
        } else {
            halves[above]
        }
    }

    #[test]
    fn doubles_are_rounded_once_to_the_nearest_half() {
        let mut halves: Vec<f64> = (0..=u16::MAX)
            .map(|bits| f64::from(f16::from_bits(bits)))
            .filter(|half| half.is_finite())
            .collect();
        halves.sort_by(f64::total_cmp);
        halves.dedup();
        assert_eq!(halves.len(), 2 * 31 * 1024 - 1);
        // Every half float, the midpoints between two, the f32 next to them, and the doubles next to all of these.
        let middles = halves
            .windows(2)
            .map(|pair| f64::midpoint(pair[0], pair[1]));
        let ends = [
            65_519.999,
            65_520.0,
            1e300,
            2.98e-8,
            2.980_232_238_769_531_2e-8,
            1e-300,
        ];
        let around = halves.iter().copied().chain(middles).chain(ends);
        for value in around {
            let single = one::<f64, f32>(value);
            for near in [single, single.next_up(), single.next_down()].map(f64::from) {
                for value in [
                    value,
                    value.next_up(),
                    value.next_down(),
                    near,
                    near.next_up(),
                    near.next_down(),
                ] {
                    let expected = nearest_half(value, &halves);
                    let found = f64::from(one::<f64, f16>(value));
                    assert_eq!(
                        found.abs().to_bits(),
                        expected.abs().to_bits(),
                        "{value:e}: {found} for {expected}"
                    );
                    let negative = f64::from(one::<f64, f16>(-value));
                    assert_eq!(negative.to_bits(), (-found).to_bits(), "{value:e}");
                }
            }
        }
        assert!(one::<f64, f16>(f64::NAN).is_nan());
        // Random bits, most with exponents in the range of half floats.
        let mut state = 1_u64;
        for _ in 0..200_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let exponent = 995 + (state >> 40) % 46;
            let value = f64::from_bits((exponent << 52) | (state & ((1 << 52) - 1)));
            let found = f64::from(one::<f64, f16>(value));
            let expected = nearest_half(value, &halves).abs();
            assert_eq!(found.to_bits(), expected.to_bits(), "{value:e}");
        }
    }

    #[test]
    fn integers_are_rounded_once_to_the_nearest_half_and_single() {
        for value in (0..70_000_u32).chain([u32::MAX, 16_777_217, 16_777_219]) {
            assert_eq!(one::<_, f16>(value), one::<_, f16>(f64::from(value)));
            assert_eq!(
                one::<_, f32>(value).to_bits(),
                one::<_, f32>(f64::from(value)).to_bits()
            );
        }
        // Through a double, this value would become 2^60.
        let value = (1_i64 << 60) + (1 << 36) + 1;
        let below = one::<_, f32>(1_i64 << 60);
        assert_eq!(one::<_, f32>(value).to_bits(), below.to_bits() + 1);
    }

    #[test]
    fn any_non_zero_value_is_true_and_true_is_one() {
        let mut out = [9; 3];
        convert(
            DType::F32,
            bytemuck::cast_slice(&[0.0_f32, -0.25, f32::NAN]),
            DType::Bool,
            &mut out,
        );
        assert_eq!(out, [0, 1, 1]);
        let mut wide = [0_u16; 3];
        convert(
            DType::Bool,
            &[0, 1, 255],
            DType::U16,
            bytemuck::cast_slice_mut(&mut wide),
        );
        assert_eq!(wide, [0, 1, 1]);
    }

    #[test]
    fn names_go_both_ways_in_both_spellings() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(DType::from_name("f16"), Some(DType::F16));
        assert_eq!(DType::from_name("u64"), Some(DType::U64));
        assert_eq!(
            (
                DType::from_name("complex64"),
                DType::from_name("b"),
                DType::from_name("")
            ),
            (None, None, None)
        );
    }

    #[test]
    fn swapping_twice_changes_nothing() {
        let mut voxels = [1, 2, 3, 4, 5, 6, 7, 8];
        swap_bytes(DType::I16, &mut voxels);
        assert_eq!(voxels, [2, 1, 4, 3, 6, 5, 8, 7]);
        swap_bytes(DType::F64, &mut voxels);
        assert_eq!(voxels, [7, 8, 5, 6, 3, 4, 1, 2]);
    }
}
