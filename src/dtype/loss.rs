//! Lossy conversions: the values that a conversion clips or rounds.
//!
//! A value is *clipped* if the target type has no value near it: it is outside the type's range, is NaN or infinite and
//! the type has neither, or is not 0 or 1 and the type is `bool`. It is *rounded* if it has a fraction, or more digits
//! than a float type has, and becomes the nearest value. Digits that a float loses in a narrower float type are not
//! counted.

use super::{DType, Element, Nearest, with_element};

/// The values that a conversion of voxels loses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// The number of clipped values, and the position of the first.
    pub(crate) clipped: Count,
    /// The number of rounded values, and the position of the first.
    pub(crate) rounded: Count,
}

/// A number of values, and the place of the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) number: u64,
    pub(crate) first: Option<usize>,
}

impl Count {
    fn add(&mut self, number: usize, first: impl FnOnce() -> Option<usize>) {
        if number > 0 {
            self.number += number as u64;
            self.first = self.first.or_else(first);
        }
    }
}

/// The number of values that are counted before the first lost one is located.
const BLOCK: usize = 4096;

/// The effect of a conversion on a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Rounded,
    Clipped,
}

/// Counts what a conversion of these voxels, in native byte order, would lose.
#[expect(clippy::float_cmp, reason = "only 0 and 1 themselves are a bool")]
pub(crate) fn loss(from: DType, voxels: &[u8], to: DType) -> Loss {
    if to.holds(from) {
        return Loss::default();
    }
    if to == DType::Bool {
        return with_element!(from, From => {
            let (zero, one) = (From::default(), From::from_f64(1.0));
            count(voxels, |value: From| {
                if value == zero || value == one { Fate::Kept } else { Fate::Clipped }
            })
        });
    }
    with_element!(from, From => with_element!(to, To => count(voxels, fate::<From, To>)))
}

/// Counts the values that a conversion of these voxels, in native byte order, would clip.
pub(crate) fn clipped(from: DType, voxels: &[u8], to: DType) -> Count {
    if from == DType::F32
        && to.is_integer()
        && to.size() <= 2
        && let Ok(singles) = bytemuck::try_cast_slice::<u8, f32>(voxels)
        && are_near(singles, to)
    {
        return Count::default();
    }
    loss(from, voxels, to).clipped
}

/// Returns `true` if no number is clipped in a type of up to 16 bits: none rounds to a number outside its range. The
/// loop has no early exit, so that it is vectorized.
#[expect(clippy::cast_possible_truncation, reason = "the range of a small type")]
fn are_near(singles: &[f32], to: DType) -> bool {
    let (low, high) = to.range();
    // Halves are rounded to even numbers: the lowest values are even and the highest ones are odd.
    let (least, end) = ((low - 0.5) as f32, (high + 0.5) as f32);
    to != DType::Bool
        && singles.chunks(BLOCK).all(|block| {
            let near = |single: &f32| *single >= least && *single < end;
            block.iter().fold(true, |all, single| all & near(single))
        })
}

fn count<T: Element>(voxels: &[u8], fate: impl Fn(T) -> Fate) -> Loss {
    let size = size_of::<T>();
    let mut loss = Loss::default();
    for (n, block) in voxels.chunks(BLOCK * size).enumerate() {
        let fates = || {
            let values = block.chunks_exact(size);
            values.map(|voxel| fate(bytemuck::pod_read_unaligned(voxel)))
        };
        let (mut clipped, mut rounded) = (0, 0);
        for fate in fates() {
            clipped += usize::from(fate == Fate::Clipped);
            rounded += usize::from(fate == Fate::Rounded);
        }
        let first = |wanted| move || Some(n * BLOCK + fates().position(|fate| fate == wanted)?);
        loss.clipped.add(clipped, first(Fate::Clipped));
        loss.rounded.add(rounded, first(Fate::Rounded));
    }
    loss
}

#[inline]
#[expect(clippy::float_cmp, reason = "a value is kept only if it is the same")]
fn fate<S: Element + Nearest<T>, T: Element + Nearest<S>>(value: S) -> Fate {
    let near: T = value.nearest();
    let back: S = near.nearest();
    let kept_or = |kept, other| if kept { Fate::Kept } else { other };
    match (S::DTYPE.is_float(), T::DTYPE.is_float()) {
        (false, false) => kept_or(back == value, Fate::Clipped),
        (true, true) => {
            let overflows = value.to_f64().is_finite() && near.to_f64().is_infinite();
            kept_or(!overflows, Fate::Clipped)
        }
        (false, true) if near.to_f64().is_infinite() => Fate::Clipped,
        // Converted back, the largest 64-bit integer saturates to itself although it was rounded up.
        (false, true) => kept_or(
            back == value && near.to_f64() < limits::<S>().1,
            Fate::Rounded,
        ),
        (true, false) => {
            let rounded = value.to_f64().round_ties_even();
            let (low, end) = limits::<T>();
            if rounded >= low && rounded < end {
                kept_or(rounded == value.to_f64(), Fate::Rounded)
            } else {
                Fate::Clipped
            }
        }
    }
}

/// Returns the lowest value of an integer type and one past its highest, both exact.
fn limits<T: Element>() -> (f64, f64) {
    let (low, high) = (T::from_f64(f64::NEG_INFINITY), T::from_f64(f64::INFINITY));
    // The highest 64-bit value is already rounded up to one past it.
    let past = if T::DTYPE.size() == 8 { 0.0 } else { 1.0 };
    (low.to_f64(), high.to_f64() + past)
}

/// Returns a voxel as text.
pub(crate) fn text(dtype: DType, voxels: &[u8], place: usize) -> String {
    let voxel = &voxels[place * dtype.size()..(place + 1) * dtype.size()];
    with_element!(dtype, T => format!("{}", bytemuck::pod_read_unaligned::<T>(voxel)))
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::convert;
    use super::*;

    #[test]
    fn clipped_values_are_those_that_the_loss_counts() {
        for to in DType::ALL {
            let (low, high) = to.range();
            let near = [
                low - 1.0,
                low - 0.5,
                low,
                0.0,
                0.25,
                1.0,
                high,
                high + 0.5,
                high + 1.0,
            ];
            #[expect(clippy::cast_possible_truncation, reason = "any values will do")]
            let near = near.map(|value| value as f32);
            let all = near
                .into_iter()
                .flat_map(|v| [v, v.next_up(), v.next_down()]);
            for value in all.chain([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
                for voxels in [vec![value], [vec![1.0; 5000], vec![value; 2]].concat()] {
                    let voxels = bytemuck::cast_slice(&voxels);
                    let expected = loss(DType::F32, voxels, to).clipped;
                    assert_eq!(clipped(DType::F32, voxels, to), expected, "{value} as {to}");
                }
            }
        }
    }

    /// The exact value of a voxel, for comparison: a whole number or a float.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Exact {
        Whole(i128),
        Real(f64),
    }

    #[expect(clippy::cast_possible_truncation, reason = "whole floats below 2^100")]
    fn exact(dtype: DType, voxel: &[u8]) -> Exact {
        let of_float = |value: f64| {
            if value.fract() == 0.0 && value.abs() < 1e30 {
                Exact::Whole(value as i128)
            } else {
                Exact::Real(value)
            }
        };
        match dtype {
            DType::U64 => Exact::Whole(bytemuck::pod_read_unaligned::<u64>(voxel).into()),
            DType::I64 => Exact::Whole(bytemuck::pod_read_unaligned::<i64>(voxel).into()),
            _ => {
                with_element!(dtype, T => of_float(bytemuck::pod_read_unaligned::<T>(voxel).to_f64()))
            }
        }
    }

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

    /// Returns the fate of a voxel by its definition, given its converted value.
    fn expected(from: DType, voxel: &[u8], to: DType, out: &[u8]) -> Fate {
        let (value, out) = (exact(from, voxel), exact(to, out));
        match (to.is_float(), value) {
            (true, value) if value == out => Fate::Kept,
            (true, Exact::Real(value)) if !value.is_finite() => Fate::Kept,
            (true, _) if out == Exact::Real(f64::INFINITY) => Fate::Clipped,
            (true, _) if out == Exact::Real(f64::NEG_INFINITY) => Fate::Clipped,
            (true, _) if from.is_float() => Fate::Kept,
            (true, _) => Fate::Rounded,
            (false, Exact::Whole(n)) => {
                let (low, high) = range(to);
                if (low..=high).contains(&n) {
                    Fate::Kept
                } else {
                    Fate::Clipped
                }
            }
            (false, Exact::Real(value)) if to == DType::Bool || !value.is_finite() => {
                let _ = value;
                Fate::Clipped
            }
            (false, Exact::Real(value)) => {
                let (low, high) = range(to);
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "saturates beyond every range"
                )]
                let near = value.round_ties_even() as i128;
                if (low..=high).contains(&near) {
                    Fate::Rounded
                } else {
                    Fate::Clipped
                }
            }
        }
    }

    /// Returns values around every limit, fractions, and values that are not numbers, as far as the type has them.
    fn voxels(dtype: DType) -> Vec<u8> {
        if dtype == DType::Bool {
            return vec![0, 1];
        }
        let powers = [
            0, 1, 7, 8, 11, 12, 15, 16, 24, 25, 31, 32, 53, 54, 63, 64, 127,
        ];
        let near = powers.iter().flat_map(|&n| {
            let power = 2_f64.powi(n);
            [
                power,
                power - 1.0,
                power + 1.0,
                power - 0.5,
                power + 0.5,
                power.next_down(),
            ]
        });
        let odd = [
            0.0,
            0.25,
            1e-9,
            65504.0,
            65519.0,
            65520.0,
            1e300,
            f64::INFINITY,
            f64::NAN,
        ];
        let all: Vec<f64> = near.chain(odd).flat_map(|v| [v, -v]).collect();
        let mut out: Vec<u8> = with_element!(dtype, T => {
            all.iter().flat_map(|&v| bytemuck::bytes_of(&T::from_f64(v)).to_vec()).collect()
        });
        if dtype == DType::U64 {
            out.extend_from_slice(bytemuck::cast_slice(&[
                u64::MAX - 1,
                (1 << 53) + 1,
                (1 << 60) + 1,
            ]));
        }
        if dtype == DType::I64 {
            out.extend_from_slice(bytemuck::cast_slice(&[
                i64::MAX - 1,
                1 - (1_i64 << 53) * 3,
                i64::MIN + 1,
            ]));
        }
        out
    }

    #[test]
    fn every_pair_of_types_loses_what_its_values_say() {
        for from in DType::ALL {
            let voxels = voxels(from);
            for to in DType::ALL {
                let size = from.size();
                let mut wanted = Loss::default();
                for (n, voxel) in voxels.chunks_exact(size).enumerate() {
                    let mut out = [0_u64; 1];
                    let out = &mut bytemuck::cast_slice_mut(&mut out)[..to.size()];
                    convert(from, voxel, to, out);
                    let fate = expected(from, voxel, to, out);
                    let one = loss(from, voxel, to);
                    let found = (one.clipped.number, one.rounded.number);
                    let value = text(from, voxel, 0);
                    assert_eq!(
                        found,
                        (
                            u64::from(fate == Fate::Clipped),
                            u64::from(fate == Fate::Rounded)
                        ),
                        "{value} of {from} to {to}"
                    );
                    wanted
                        .clipped
                        .add(usize::from(fate == Fate::Clipped), || Some(n));
                    wanted
                        .rounded
                        .add(usize::from(fate == Fate::Rounded), || Some(n));
                }
                assert_eq!(loss(from, &voxels, to), wanted, "{from} to {to}");
                if to.holds(from) {
                    assert_eq!(wanted, Loss::default(), "{to} holds {from}");
                }
            }
        }
    }

    #[test]
    fn positions_are_counted_over_blocks_and_from_any_address() {
        let mut values = vec![7_i16; 3 * BLOCK + 5];
        (values[BLOCK + 3], values[2 * BLOCK]) = (-1, 300);
        let loss_of = |bytes: &[u8]| loss(DType::I16, bytes, DType::U8);
        let aligned = bytemuck::cast_slice(&values);
        let shifted: Vec<u8> = std::iter::once(0).chain(aligned.iter().copied()).collect();
        let found = loss_of(&shifted[1..]);
        assert_eq!(found, loss_of(aligned));
        assert_eq!(
            (found.clipped.number, found.clipped.first),
            (2, Some(BLOCK + 3))
        );
        assert_eq!(text(DType::I16, aligned, BLOCK + 3), "-1");
        assert_eq!(
            text(DType::F16, bytemuck::bytes_of(&f16::from_f32(0.5)), 0),
            "0.5"
        );
    }

    #[test]
    fn the_common_type_is_the_smallest_that_holds_both() {
        let common = DType::common;
        assert_eq!(common(DType::U8, DType::I16), Some(DType::I16));
        assert_eq!(common(DType::U16, DType::I16), Some(DType::I32));
        assert_eq!(common(DType::Bool, DType::U8), Some(DType::U8));
        assert_eq!(common(DType::I16, DType::F32), Some(DType::F32));
        assert_eq!(common(DType::U8, DType::F16), Some(DType::F16));
        assert_eq!(common(DType::I32, DType::F32), Some(DType::F64));
        assert_eq!(common(DType::U64, DType::I8), None);
        for one in DType::ALL {
            for other in DType::ALL {
                let found = common(one, other);
                assert_eq!(found, common(other, one));
                let held = DType::ALL
                    .into_iter()
                    .filter(|t| t.holds(one) && t.holds(other));
                assert_eq!(
                    found.map(DType::size),
                    held.map(DType::size).min(),
                    "{one} {other}"
                );
            }
        }
    }
}
