//! Conversion to real values: choice of their type, and the arithmetic on stored voxels.

use crate::dtype::{DType, Element, convert, loss, with_element};
use crate::volume::Rescale;

/// Maximum size of a negative intercept for which `int16` stays `int16`. CT intercepts range from -1000 to -10240.
const CT_INTERCEPT: i64 = 1 << 14;

/// Voxels that are converted at a time, with buffers that fit in the processor's cache.
const STEP: usize = 512;

impl Rescale {
    /// Returns the type of the real values of stored ones. If the slope is 1 and both the stored values and the
    /// intercept are whole numbers, this is the smallest integer type that holds them; otherwise it is `float32`.
    ///
    /// The choice uses the whole range of the stored type, not actual values: `uint8` and -1024 give `int16`, `uint16`
    /// and -1024 give `int32`. CT is the one exception: `int16` with a negative intercept down to -16384 stays `int16`,
    /// which is enough for Hounsfield units. A voxel that does not fit is an error when it is read. 64-bit types stay
    /// 64-bit, with the same check.
    #[must_use]
    pub fn dtype(&self, stored: DType) -> DType {
        let Some(shift) = self.shift(stored) else {
            return DType::F32;
        };
        if stored == DType::I16 && (-CT_INTERCEPT..0).contains(&shift) {
            return DType::I16;
        }
        let holding = [
            DType::U8,
            DType::I8,
            DType::I16,
            DType::U16,
            DType::I32,
            DType::U32,
            DType::I64,
            DType::U64,
        ];
        let fits = |dtype: &DType| holds_all(*dtype, stored, shift);
        let unfit = if stored == DType::U64 && shift > 0 {
            DType::U64
        } else {
            DType::I64
        };
        holding.into_iter().find(fits).unwrap_or(unfit)
    }

    /// Returns the intercept if the conversion only adds it to whole numbers.
    #[expect(clippy::cast_possible_truncation, reason = "whole, and far below 2^63")]
    fn shift(&self, stored: DType) -> Option<i64> {
        let one = (self.slope - 1.0).abs() < f64::EPSILON;
        let whole = self.intercept.fract() == 0.0 && self.intercept.abs() < 2_f64.powi(53);
        (stored.is_integer() && one && whole).then_some(self.intercept as i64)
    }
}

/// Returns the lowest and the highest value of an integer type.
fn range(dtype: DType) -> (i128, i128) {
    match dtype {
        DType::Bool => (0, 1),
        DType::U8 => (0, u8::MAX.into()),
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::U16 => (0, u16::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::U32 => (0, u32::MAX.into()),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::U64 => (0, u64::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    }
}

/// Returns `true` if an integer type holds every value of `stored` plus `shift`.
fn holds_all(dtype: DType, stored: DType, shift: i64) -> bool {
    let (low, high) = range(stored);
    let (least, most) = range(dtype);
    low + i128::from(shift) >= least && high + i128::from(shift) <= most
}

/// Runs `$body` with `$T` as the Rust type of an integer type.
macro_rules! with_whole {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::Bool | DType::U8 => {
                type $T = u8;
                $body
            }
            DType::I8 => {
                type $T = i8;
                $body
            }
            DType::U16 => {
                type $T = u16;
                $body
            }
            DType::I16 => {
                type $T = i16;
                $body
            }
            DType::U32 => {
                type $T = u32;
                $body
            }
            DType::I32 => {
                type $T = i32;
                $body
            }
            DType::U64 => {
                type $T = u64;
                $body
            }
            DType::I64 => {
                type $T = i64;
                $body
            }
            DType::F16 | DType::F32 | DType::F64 => unreachable!("sums of whole numbers only"),
        }
    };
}

/// The conversion from stored to real voxels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Conversion {
    stored: DType,
    real: DType,
    rescale: Rescale,
    way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Integers that always fit.
    Shift(i64),
    /// `int16` that stays `int16`, checked.
    Short(i16),
    /// Integers that are checked one by one.
    Checked(i64),
    /// Arithmetic in f64, with floats or integers as the result.
    Scale,
}

impl Conversion {
    /// Creates the conversion from stored values to real values of type `real`.
    pub(super) fn new(stored: DType, rescale: Rescale, real: DType) -> Self {
        let shift = rescale
            .shift(stored)
            .filter(|_| real.is_integer() && real != DType::Bool);
        let way = match shift {
            None => Way::Scale,
            Some(shift) if holds_all(real, stored, shift) => Way::Shift(shift),
            Some(shift) => match i16::try_from(shift) {
                Ok(shift) if (stored, real) == (DType::I16, DType::I16) => Way::Short(shift),
                _ => Way::Checked(shift),
            },
        };
        Self {
            stored,
            real,
            rescale,
            way,
        }
    }

    pub(super) const fn stored(&self) -> DType {
        self.stored
    }

    pub(super) const fn real(&self) -> DType {
        self.real
    }

    /// Converts as many stored voxels to real values as `out` has room for. Both are in native byte order and may have
    /// any alignment. Calls `unfit` with the position and the stored voxel of each value that does not fit; it returns
    /// whether to continue. Returns `false` if `unfit` stopped the conversion.
    pub(super) fn apply(
        &self,
        stored: &[u8],
        out: &mut [u8],
        mut unfit: impl FnMut(usize, &[u8]) -> bool,
    ) -> bool {
        let (from, to) = (STEP * self.stored.size(), STEP * self.real.size());
        let mut room = Room::default();
        let blocks = stored.chunks(from).zip(out.chunks_mut(to));
        for (n, (stored, out)) in blocks.enumerate() {
            if !self.block(&mut room, stored, out) && !self.each_unfit(stored, n * STEP, &mut unfit)
            {
                return false;
            }
        }
        true
    }

    /// As [`apply`](Self::apply), for stored voxels at the end of `buffer`, which is overwritten with their real
    /// values. Stored voxels must not be larger than real ones.
    pub(super) fn apply_within(
        &self,
        buffer: &mut [u8],
        mut unfit: impl FnMut(usize, &[u8]) -> bool,
    ) -> bool {
        let (from, to) = (self.stored.size(), self.real.size());
        let count = buffer.len() / to;
        let skipped = buffer.len() - count * from;
        let mut room = Room::default();
        let mut block = [0_u64; STEP];
        let block: &mut [u8] = bytemuck::cast_slice_mut(&mut block);
        for first in (0..count).step_by(STEP) {
            let voxels = STEP.min(count - first);
            // The real voxels up to here end before the remaining stored ones begin.
            let stored = &mut block[..voxels * from];
            stored.copy_from_slice(&buffer[skipped + first * from..][..voxels * from]);
            let out = &mut buffer[first * to..][..voxels * to];
            if !self.block(&mut room, stored, out) && !self.each_unfit(stored, first, &mut unfit) {
                return false;
            }
        }
        true
    }

    /// Formats the real value of a stored voxel, whether or not it fits the type.
    pub(super) fn text(&self, voxel: &[u8]) -> String {
        if let Some(shift) = self.rescale.shift(self.stored) {
            let stored = with_whole!(self.stored, T => {
                values::<T>(self.stored, voxel).next().map_or(0, Whole::exact)
            });
            return (stored + i128::from(shift)).to_string();
        }
        let mut value = [0.0_f64];
        convert(
            self.stored,
            voxel,
            DType::F64,
            bytemuck::cast_slice_mut(&mut value),
        );
        (value[0] * self.rescale.slope + self.rescale.intercept).to_string()
    }

    /// Converts at most [`STEP`] voxels. Returns `false` if any does not fit.
    fn block(&self, room: &mut Room, stored: &[u8], out: &mut [u8]) -> bool {
        let aligned = out.as_ptr().addr().is_multiple_of(self.real.size());
        if aligned {
            return self.block_into(&mut room.values, stored, out);
        }
        let length = out.len();
        let own = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut room.out)[..length];
        let fits = self.block_into(&mut room.values, stored, own);
        out.copy_from_slice(own);
        fits
    }

    fn block_into(&self, values: &mut [f64; STEP], stored: &[u8], out: &mut [u8]) -> bool {
        match self.way {
            Way::Shift(shift) => {
                shifted(self.stored, stored, shift, self.real, out);
                true
            }
            Way::Short(shift) => short(stored, shift, out),
            Way::Checked(shift) => checked(self.stored, stored, shift, self.real, out),
            Way::Scale => {
                let values = &mut values[..stored.len() / self.stored.size()];
                self.scaled(values, stored, out)
            }
        }
    }

    /// Converts in f64, rounding to the nearest real value.
    #[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest f32")]
    fn scaled(&self, values: &mut [f64], stored: &[u8], out: &mut [u8]) -> bool {
        convert(
            self.stored,
            stored,
            DType::F64,
            bytemuck::cast_slice_mut(values),
        );
        let Rescale { slope, intercept } = self.rescale;
        if self.real == DType::F32 {
            let mut finite = true;
            let out = bytemuck::cast_slice_mut::<u8, f32>(out);
            for (out, value) in out.iter_mut().zip(values) {
                *out = (*value * slope + intercept) as f32;
                finite &= out.is_finite();
            }
            // Other values are not finite in the stored data, or are too large for f32.
            return finite || self.infinite(stored, out);
        }
        for value in values.iter_mut() {
            *value = *value * slope + intercept;
        }
        let values = bytemuck::cast_slice(values);
        convert(DType::F64, values, self.real, out);
        loss(DType::F64, values, self.real).clipped.number == 0
    }

    /// Returns `true` if all non-finite results come from non-finite stored values.
    fn infinite(&self, stored: &[u8], out: &[f32]) -> bool {
        with_element!(self.stored, T => {
            let stored = stored.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>);
            let mut pairs = stored.zip(out);
            pairs.all(|(stored, out)| out.is_finite() || !stored.to_f64().is_finite())
        })
    }

    /// Calls `unfit` for the voxels of a block that do not fit, while it returns `true`.
    #[cold]
    fn each_unfit(
        &self,
        stored: &[u8],
        first: usize,
        unfit: &mut impl FnMut(usize, &[u8]) -> bool,
    ) -> bool {
        let (mut room, mut out) = (Room::default(), [0_u64]);
        let out = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut out)[..self.real.size()];
        let voxels = stored.chunks_exact(self.stored.size()).enumerate();
        let mut bad = voxels.filter(|(_, voxel)| !self.block(&mut room, voxel, out));
        bad.all(|(n, voxel)| unfit(first + n, voxel))
    }
}

/// Buffers for a block of voxels.
struct Room {
    values: [f64; STEP],
    out: [u64; STEP],
}

impl Default for Room {
    fn default() -> Self {
        Self {
            values: [0.0; STEP],
            out: [0; STEP],
        }
    }
}

/// An integer type with conversions for wrapping and for exact addition.
trait Whole: Element {
    fn wide(self) -> i64;
    fn narrow(wide: i64) -> Self;
    fn exact(self) -> i128;
    fn fitting(exact: i128) -> Option<Self>;
}

macro_rules! whole {
    ($($ty:ty)*) => { $(impl Whole for $ty {
        #[inline]
        #[allow(clippy::cast_possible_wrap, clippy::cast_lossless, reason = "modulo 2^64")]
        fn wide(self) -> i64 { self as i64 }
        #[inline]
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "modulo the type's size")]
        fn narrow(wide: i64) -> Self { wide as Self }
        fn exact(self) -> i128 { self.into() }
        fn fitting(exact: i128) -> Option<Self> { exact.try_into().ok() }
    })* };
}
whole!(u8 i8 u16 i16 u32 i32 u64 i64);

/// Iterates over the voxels of a type, at any alignment; a `bool` is 0 or 1.
fn values<T: Element>(dtype: DType, voxels: &[u8]) -> impl Iterator<Item = T> + '_ {
    let is_bool = dtype == DType::Bool;
    let voxels = voxels.chunks_exact(size_of::<T>());
    voxels
        .map(bytemuck::pod_read_unaligned::<T>)
        .map(move |value| {
            if is_bool && value != T::default() {
                T::from_f64(1.0)
            } else {
                value
            }
        })
}

fn shifted(from: DType, stored: &[u8], shift: i64, to: DType, out: &mut [u8]) {
    with_whole!(from, From => with_whole!(to, To => {
        let out = bytemuck::cast_slice_mut::<u8, To>(out).iter_mut();
        for (out, value) in out.zip(values::<From>(from, stored)) {
            *out = To::narrow(value.wide().wrapping_add(shift));
        }
    }));
}

/// Adds in 16 bits; the sign bit of `wrapped` marks sums that overflowed.
fn short(stored: &[u8], shift: i16, out: &mut [u8]) -> bool {
    let mut wrapped = 0;
    let out = bytemuck::cast_slice_mut::<u8, i16>(out).iter_mut();
    for (out, value) in out.zip(values::<i16>(DType::I16, stored)) {
        *out = value.wrapping_add(shift);
        wrapped |= (value ^ *out) & (shift ^ *out);
    }
    wrapped >= 0
}

fn checked(from: DType, stored: &[u8], shift: i64, to: DType, out: &mut [u8]) -> bool {
    let mut fits = true;
    with_whole!(from, From => with_whole!(to, To => {
        let out = bytemuck::cast_slice_mut::<u8, To>(out).iter_mut();
        for (out, value) in out.zip(values::<From>(from, stored)) {
            let sum = To::fitting(value.exact() + i128::from(shift));
            fits &= sum.is_some();
            *out = sum.unwrap_or_default();
        }
    }));
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIFTS: [f64; 14] = [
        0.0, 1.0, -1.0, 100.0, -100.0, 128.0, -128.0, -1024.0, 32768.0, -32768.0, -16384.0,
        -16385.0, 3e9, -9e15,
    ];

    fn rescales() -> Vec<Rescale> {
        let slopes = [1.0, -1.0, 0.5, 2.0, 0.1, 1e-30, 1e300];
        let all = SHIFTS.iter().chain(&[0.5, -1024.25, 1e18]);
        let pairs = slopes
            .iter()
            .flat_map(|&slope| all.clone().map(move |&intercept| (slope, intercept)));
        pairs
            .map(|(slope, intercept)| Rescale { slope, intercept })
            .collect()
    }

    /// Values at every limit of a type, and some in between.
    fn voxels(dtype: DType) -> Vec<u8> {
        let around = [-1_i128, 0, 1, 1023, 1024, 1025, 4095, 31744, 16384];
        let ends = |(low, high): (i128, i128)| {
            let all = around.iter().flat_map(move |&n| [low + n, high - n, n, -n]);
            all.filter(move |n| (low..=high).contains(n))
        };
        if dtype.is_float() {
            let all = [
                0.0,
                -0.0,
                0.1,
                1.0,
                -1024.0,
                3000.0,
                65504.0,
                1e30,
                -1e300,
                f64::INFINITY,
                f64::NEG_INFINITY,
                f64::NAN,
            ];
            return with_element!(dtype, T => all.iter().flat_map(|&v| bytemuck::bytes_of(&T::from_f64(v)).to_vec()).collect());
        }
        // More voxels than a block has.
        let some = || ends(range(dtype)).collect::<Vec<_>>().into_iter();
        let all = std::iter::repeat_with(some).flatten().take(STEP + 77);
        with_whole!(dtype, T => all.flat_map(|n| bytemuck::bytes_of(&T::fitting(n).unwrap()).to_vec()).collect())
    }

    /// Returns the real value of a voxel by its definition: a whole number if it is exactly one, else a float.
    fn expected(stored: DType, voxel: &[u8], rescale: Rescale, real: DType) -> Option<Vec<u8>> {
        if let Some(shift) = rescale.shift(stored)
            && real.is_integer()
        {
            let value = with_whole!(stored, T => bytemuck::pod_read_unaligned::<T>(voxel).exact());
            let sum = value + i128::from(shift);
            return with_whole!(real, T => T::fitting(sum).map(|v| bytemuck::bytes_of(&v).to_vec()));
        }
        let value = with_element!(stored, T => bytemuck::pod_read_unaligned::<T>(voxel).to_f64());
        let scaled = value * rescale.slope + rescale.intercept;
        let out = with_element!(real, T => bytemuck::bytes_of(&T::from_f64(scaled)).to_vec());
        let overflows = match real {
            DType::F32 => {
                value.is_finite() && bytemuck::pod_read_unaligned::<f32>(&out).is_infinite()
            }
            _ => {
                loss(DType::F64, bytemuck::bytes_of(&scaled), real)
                    .clipped
                    .number
                    > 0
            }
        };
        (!overflows).then_some(out)
    }

    fn check(stored: DType, rescale: Rescale, real: DType) {
        let (from, to) = (stored.size(), real.size());
        let voxels = voxels(stored);
        let count = voxels.len() / from;
        let each = voxels
            .chunks_exact(from)
            .map(|voxel| expected(stored, voxel, rescale, real));
        let each: Vec<Option<Vec<u8>>> = each.collect();
        let bad: Vec<usize> = (0..count).filter(|&n| each[n].is_none()).collect();
        let conversion = Conversion::new(stored, rescale, real);

        // From and to unaligned addresses.
        let source: Vec<u8> = std::iter::once(9).chain(voxels.iter().copied()).collect();
        let mut out = vec![0_u8; 1 + count * to];
        let mut found = Vec::new();
        let note = |n: usize, _: &[u8]| {
            found.push(n);
            true
        };
        assert!(conversion.apply(&source[1..], &mut out[1..], note));
        assert_eq!(found, bad, "{stored} {rescale:?} {real}");
        let same = |out: &[u8]| {
            for (n, (out, wanted)) in out.chunks_exact(to).zip(&each).enumerate() {
                let Some(wanted) = wanted else { continue };
                let is_nan = |v: &[u8]| with_element!(real, T => bytemuck::pod_read_unaligned::<T>(v).to_f64().is_nan());
                assert!(
                    out == &wanted[..] || (is_nan(out) && is_nan(wanted)),
                    "{stored} {rescale:?} {real}: {n}"
                );
            }
        };
        same(&out[1..]);
        if from <= to {
            let mut buffer = vec![7_u8; count * (to - from)];
            buffer.extend_from_slice(&voxels);
            let mut found = Vec::new();
            assert!(conversion.apply_within(&mut buffer, |n, _| {
                found.push(n);
                true
            }));
            assert_eq!(found, bad);
            same(&buffer);
        }
        if let Some(&first) = bad.first() {
            let mut seen = None;
            assert!(
                !conversion.apply(&voxels, &mut vec![0; count * to], |n, _| {
                    seen = Some(n);
                    false
                })
            );
            assert_eq!(seen, Some(first), "the first is the first to be told");
        }
    }

    #[test]
    fn every_type_slope_and_intercept_gives_the_values_of_the_definition() {
        for stored in DType::ALL {
            for rescale in rescales() {
                check(stored, rescale, rescale.dtype(stored));
                for wider in [DType::I32, DType::I64, DType::F32, DType::F64, DType::U8] {
                    check(stored, rescale, wider);
                }
            }
        }
    }

    #[test]
    fn the_type_is_the_smallest_that_holds_the_whole_range_and_ct_stays_int16() {
        let of = |stored: DType, slope, intercept| Rescale { slope, intercept }.dtype(stored);
        for (stored, intercept, real) in [
            (DType::U8, -1024.0, DType::I16),
            (DType::U8, -128.0, DType::I8),
            (DType::U8, 100.0, DType::I16),
            (DType::U8, 65_000.0, DType::U16),
            (DType::I16, -1024.0, DType::I16),
            (DType::I16, -16384.0, DType::I16),
            (DType::I16, -16385.0, DType::I32),
            (DType::I16, 1024.0, DType::I32),
            (DType::I16, 32768.0, DType::U16),
            (DType::U16, -32768.0, DType::I16),
            (DType::U16, -1024.0, DType::I32),
            (DType::I32, -1024.0, DType::I64),
            (DType::U64, -1.0, DType::I64),
            (DType::U64, 1.0, DType::U64),
            (DType::Bool, 7.0, DType::U8),
            (DType::I16, -1024.5, DType::F32),
            (DType::F32, -1024.0, DType::F32),
            (DType::F64, 1.0, DType::F32),
        ] {
            assert_eq!(of(stored, 1.0, intercept), real, "{stored} {intercept}");
        }
        assert_eq!(of(DType::I16, 2.0, 0.0), DType::F32);
        for stored in DType::ALL.into_iter().filter(|dtype| dtype.is_integer()) {
            for shift in SHIFTS {
                let real = of(stored, 1.0, shift);
                let shift = format!("{shift}").parse().unwrap();
                let ct = (stored, real) == (DType::I16, DType::I16);
                if !ct && stored.size() < 8 {
                    assert!(holds_all(real, stored, shift), "{stored} {shift} {real}");
                }
            }
        }
    }
}
