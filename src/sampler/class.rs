//! Label values, and the search for voxels that have one.
//!
//! Labels are compared without conversion: integers of any size exactly, and floats by their exact value.

use std::fmt;

use half::f16;

use crate::dtype::DType;
use crate::volume::Layout;

/// A label value: any finite number of a voxel type.
///
/// An integer is the same label for every voxel type: `LabelValue::from(1)` matches voxels of
/// value 1 in `u8`, `i64` and `f32` maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelValue(Number);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Number {
    Whole(i128),
    /// The bits of an f64 that is not whole, or at least [`HUGE`].
    Real(u64),
}

macro_rules! whole {
    ($($ty:ty)*) => {
        $(impl From<$ty> for LabelValue {
            fn from(value: $ty) -> Self { Self(Number::Whole(i128::from(value))) }
        })*
    };
}
whole!(bool u8 i8 u16 i16 u32 i32 u64 i64);

/// The magnitude from which floats are not treated as whole numbers: 2^126.
const HUGE: f64 = 85_070_591_730_234_615_865_843_651_857_942_052_864.0;

impl LabelValue {
    /// The background label, which is ignored unless it is named.
    pub const ZERO: Self = Self(Number::Whole(0));

    /// Returns the label of a float value, or `None` if it is not finite.
    #[must_use]
    pub fn real(value: f64) -> Option<Self> {
        if !value.is_finite() {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^126")]
        let number = if value.abs() < HUGE && value.fract() == 0.0 {
            Number::Whole(value as i128)
        } else {
            Number::Real(value.to_bits())
        };
        Some(Self(number))
    }

    /// Returns the label of a stored voxel, or `None` if it is not finite.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "as many bits are set as the type has"
    )]
    pub(super) fn of_voxel(dtype: DType, bits: u64) -> Option<Self> {
        Some(match dtype {
            DType::Bool => (bits != 0).into(),
            DType::U8 | DType::U16 | DType::U32 | DType::U64 => bits.into(),
            DType::I8 => (bits as u8 as i8).into(),
            DType::I16 => (bits as u16 as i16).into(),
            DType::I32 => (bits as u32 as i32).into(),
            DType::I64 => (bits as i64).into(),
            DType::F16 | DType::F32 | DType::F64 => return Self::real(float(dtype, bits)),
        })
    }

    /// Returns the label of a voxel of a map, or `None` if it is not valid.
    ///
    /// Any finite value is a label, but real values that a slope or intercept produced must be whole numbers below
    /// 2^24, which floats represent exactly.
    pub(super) fn of_map(layout: &Layout, bits: u64) -> Option<Self> {
        let class = Self::of_voxel(layout.dtype, bits)?;
        let whole = match class.0 {
            Number::Whole(value) => value.abs() < 1 << 24,
            Number::Real(_) => false,
        };
        let made = layout.applied.is_some() && layout.dtype.is_float();
        (whole || !made).then_some(class)
    }

    /// Returns the bit pattern test for this label in a map of `dtype`; `None` if the type has no such value.
    pub(super) fn matcher(self, dtype: DType) -> Option<Matcher> {
        let whole = match self.0 {
            Number::Whole(value) if dtype.is_integer() => Some(value),
            _ => None,
        };
        let bits = match dtype {
            DType::Bool => {
                let value = u64::try_from(whole?).ok().filter(|&value| value < 2)?;
                return Some(Matcher {
                    equal: value == 0,
                    ..Matcher::equal(0)
                });
            }
            DType::U8 => u8::try_from(whole?).ok()?.into(),
            DType::U16 => u16::try_from(whole?).ok()?.into(),
            DType::U32 => u32::try_from(whole?).ok()?.into(),
            DType::U64 => u64::try_from(whole?).ok()?,
            DType::I8 => i8::try_from(whole?).ok()?.cast_unsigned().into(),
            DType::I16 => i16::try_from(whole?).ok()?.cast_unsigned().into(),
            DType::I32 => i32::try_from(whole?).ok()?.cast_unsigned().into(),
            DType::I64 => i64::try_from(whole?).ok()?.cast_unsigned(),
            DType::F16 | DType::F32 | DType::F64 => return self.float_matcher(dtype),
        };
        Some(Matcher::equal(bits))
    }

    fn float_matcher(self, dtype: DType) -> Option<Matcher> {
        if self == Self::ZERO {
            return Some(Matcher {
                mask: !sign(dtype),
                ..Matcher::equal(0)
            });
        }
        #[expect(clippy::cast_precision_loss, reason = "checked right below")]
        let value = match self.0 {
            Number::Whole(value) => value as f64,
            Number::Real(bits) => f64::from_bits(bits),
        };
        #[expect(clippy::cast_possible_truncation, reason = "checked right below")]
        let bits = match dtype {
            DType::F16 => f16::from_f64(value).to_bits().into(),
            DType::F32 => (value as f32).to_bits().into(),
            _ => value.to_bits(),
        };
        (Self::of_voxel(dtype, bits) == Some(self)).then_some(Matcher::equal(bits))
    }
}

impl fmt::Display for LabelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Number::Whole(value) => value.fmt(f),
            Number::Real(bits) => f64::from_bits(bits).fmt(f),
        }
    }
}

impl LabelValue {
    /// Returns the form used in files: a tag and 16 bytes.
    pub(super) fn to_bytes(self) -> [u8; 17] {
        let (tag, value) = match self.0 {
            Number::Whole(value) => (0, value.to_le_bytes()),
            Number::Real(bits) => (1, u128::from(bits).to_le_bytes()),
        };
        let mut bytes = [tag; 17];
        bytes[1..].copy_from_slice(&value);
        bytes
    }

    /// Parses the form used in files.
    pub(super) fn from_bytes(bytes: [u8; 17]) -> Option<Self> {
        let [tag, value @ ..] = bytes;
        match tag {
            0 => Some(Self(Number::Whole(i128::from_le_bytes(value)))),
            1 => {
                let bits = u64::try_from(u128::from_le_bytes(value)).ok()?;
                let class = Self::real(f64::from_bits(bits))?;
                matches!(class.0, Number::Real(_)).then_some(class)
            }
            _ => None,
        }
    }
}

/// A test of a voxel's bits: `(bits & mask == value) == equal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Matcher {
    mask: u64,
    value: u64,
    equal: bool,
}

impl Matcher {
    const fn equal(value: u64) -> Self {
        Self {
            mask: u64::MAX,
            value,
            equal: true,
        }
    }

    /// Returns the test for voxels that are not 0.
    pub(super) const fn non_zero(dtype: DType) -> Self {
        Self {
            mask: !sign(dtype),
            value: 0,
            equal: false,
        }
    }

    #[inline]
    pub(super) const fn wants(self, bits: u64) -> bool {
        (bits & self.mask == self.value) == self.equal
    }

    /// Tests eight one-byte voxels at once. Returns one bit for each, with the first voxel in the lowest bit.
    #[inline]
    pub(super) const fn wants_bytes(self, voxels: [u8; 8]) -> u8 {
        const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
        const EACH: u64 = 0x0101_0101_0101_0101;
        let differs = u64::from_le_bytes(voxels) ^ ((self.value & 0xff) * EACH);
        // The high bit of each byte that is not 0.
        let other = ((differs & LOW) + LOW) | differs;
        let wanted = if self.equal { !other } else { other };
        // Gathers one bit from each byte: the bit of byte i moves to bit 56 + i.
        let bits = ((wanted >> 7) & EACH).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits.to_le_bytes()[0]
    }
}

/// Returns the bit that distinguishes -0.0 from 0.0; 0 for integers.
const fn sign(dtype: DType) -> u64 {
    match dtype {
        DType::F16 => 1 << 15,
        DType::F32 => 1 << 31,
        DType::F64 => 1 << 63,
        _ => 0,
    }
}

/// Returns the value of a float's bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "as many bits are set as the type has"
)]
fn float(dtype: DType, bits: u64) -> f64 {
    match dtype {
        DType::F16 => f16::from_bits(bits as u16).to_f64(),
        DType::F32 => f32::from_bits(bits as u32).into(),
        _ => f64::from_bits(bits),
    }
}

/// Returns the bits of one voxel, in native byte order.
#[inline]
pub(super) fn bits_of(voxel: &[u8]) -> u64 {
    match *voxel {
        [a] => a.into(),
        [a, b] => u16::from_ne_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).into(),
        _ => voxel.try_into().map_or(0, u64::from_ne_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits<T: bytemuck::NoUninit>(value: T) -> u64 {
        bits_of(bytemuck::bytes_of(&value))
    }

    #[test]
    fn integers_that_a_float_cannot_distinguish_are_different_labels() {
        let pairs = [
            (DType::I32, bits(1_i32 << 24), bits((1_i32 << 24) + 1)),
            (DType::U64, bits(1_u64 << 53), bits((1_u64 << 53) + 1)),
            (DType::U32, bits(u32::MAX), bits(u32::MAX - 1)),
            (DType::I64, bits(i64::MAX), bits(i64::MAX - 1)),
        ];
        for (dtype, a, b) in pairs {
            let class = LabelValue::of_voxel(dtype, a).unwrap();
            let matcher = class.matcher(dtype).unwrap();
            assert!(matcher.wants(a) && !matcher.wants(b), "{class}");
        }
    }

    #[test]
    fn a_label_is_the_same_number_in_every_type_that_has_it() {
        let one = LabelValue::from(1);
        assert_eq!(LabelValue::of_voxel(DType::F32, bits(1.0_f32)), Some(one));
        assert_eq!(LabelValue::of_voxel(DType::Bool, 7), Some(one));
        assert!(one.matcher(DType::Bool).unwrap().wants(7));
        assert!(
            !LabelValue::ZERO.matcher(DType::Bool).unwrap().wants(7),
            "any byte but 0 is true"
        );
        assert_eq!(
            LabelValue::of_voxel(DType::I16, bits(-1_i16)),
            Some(LabelValue::from(-1))
        );
        assert_eq!(LabelValue::from(-1).matcher(DType::U16), None);
        assert_eq!(LabelValue::from(300).matcher(DType::U8), None);
        assert_eq!(
            LabelValue::from((1_u64 << 53) + 1).matcher(DType::F64),
            None,
            "no f64 has this value"
        );
        assert_eq!(
            LabelValue::from((1_i32 << 24) + 1).matcher(DType::F32),
            None
        );
        assert_eq!(LabelValue::from(100_000).matcher(DType::F16), None);
    }

    #[test]
    fn both_float_zeros_are_background() {
        for (dtype, minus) in [
            (DType::F32, bits(-0.0_f32)),
            (DType::F64, bits(-0.0_f64)),
            (DType::F16, 1 << 15),
        ] {
            assert_eq!(LabelValue::of_voxel(dtype, minus), Some(LabelValue::ZERO));
            let zero = LabelValue::ZERO.matcher(dtype).unwrap();
            assert!(zero.wants(minus) && zero.wants(0));
            assert!(!Matcher::non_zero(dtype).wants(minus));
        }
        assert!(Matcher::non_zero(DType::I64).wants(bits(i64::MIN)));
    }

    #[test]
    fn fractions_are_labels_and_values_that_are_not_finite_are_not() {
        let half = LabelValue::real(0.5).unwrap();
        assert!(
            half.matcher(DType::F16)
                .unwrap()
                .wants(bits(f16::from_f32(0.5)))
        );
        assert_eq!(half.matcher(DType::U8), None);
        let tenth = LabelValue::real(0.1).unwrap();
        assert_eq!(tenth.matcher(DType::F32), None, "no f32 is this tenth");
        assert!(tenth.matcher(DType::F64).unwrap().wants(bits(0.1_f64)));
        assert_eq!(LabelValue::of_voxel(DType::F32, bits(f32::NAN)), None);
        assert_eq!(LabelValue::real(f64::INFINITY), None);
    }

    #[test]
    fn labels_survive_a_round_trip_through_bytes() {
        for class in [
            LabelValue::ZERO,
            LabelValue::from(-3),
            LabelValue::from(u64::MAX),
            LabelValue::real(0.25).unwrap(),
            LabelValue::real(-1e300).unwrap(),
        ] {
            assert_eq!(LabelValue::from_bytes(class.to_bytes()), Some(class));
        }
        assert_eq!(LabelValue::from_bytes([9; 17]), None);
    }

    #[test]
    fn eight_voxels_at_once_are_matched_as_one_after_the_other() {
        let classes = [0, 1, 127, 128, 255, -1, -128].map(LabelValue::from);
        for dtype in [DType::U8, DType::I8, DType::Bool] {
            let of_classes = classes.iter().filter_map(|class| class.matcher(dtype));
            for matcher in of_classes.chain([Matcher::non_zero(dtype)]) {
                for first in 0..=u8::MAX {
                    for step in [0_u8, 1, 37, 128] {
                        let voxels: [u8; 8] = std::array::from_fn(|i| {
                            first.wrapping_add(step.wrapping_mul(u8::try_from(i).unwrap()))
                        });
                        let bit = |i: usize| u8::from(matcher.wants(voxels[i].into())) << i;
                        let expected = (0..8).fold(0, |bits, i| bits | bit(i));
                        assert_eq!(matcher.wants_bytes(voxels), expected, "{voxels:?}");
                    }
                }
            }
        }
    }
}
