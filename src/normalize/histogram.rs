//! Counts of values, from which percentiles are computed: exact for types of 8 and 16 bits, and with a bounded error for
//! others.

use std::collections::BTreeMap;

use half::f16;
use serde_json::{Value as Json, json};

use crate::dtype::DType;

/// Counters that are allocated together.
const PAGE: u32 = 1 << 12;

/// Bits of an f32 that are not counted apart.
const DROPPED: u32 = 11;

/// How many values of each kind there are.
///
/// Values of types of 8 and 16 bits are counted one by one. Others are rounded to f32, and counted with those that have the
/// same sign, exponent and first 12 bits of the fraction: they differ from the middle by at most 1/8192 of the value. The
/// counts of several histograms add up to those of all values together, in any order. It takes at most 16 MiB.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    kind: Kind,
    count: u64,
    pages: BTreeMap<u32, Box<[u64]>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Whole numbers from -32768 to 65535.
    Whole,
    Half,
    Single,
}

impl Histogram {
    /// The largest relative error of a percentile of types that are not exact.
    pub(crate) const ERROR: f64 = 1.0 / 8192.0;

    /// Creates an empty histogram for the values of a type.
    pub(crate) fn new(dtype: DType) -> Self {
        let kind = match (dtype, dtype.size()) {
            (DType::F16, _) => Kind::Half,
            (_, 1 | 2) => Kind::Whole,
            _ => Kind::Single,
        };
        Self {
            kind,
            count: 0,
            pages: BTreeMap::new(),
        }
    }

    /// Returns `true` if percentiles are exact.
    pub(crate) fn is_exact(&self) -> bool {
        self.kind != Kind::Single
    }

    /// Counts a finite value.
    pub(crate) fn add(&mut self, value: f64) {
        let key = self.kind.key(value);
        self.add_counts(key, 1);
    }

    fn add_counts(&mut self, key: u32, count: u64) {
        let (page, slot) = (key / PAGE, (key % PAGE) as usize);
        let page = self
            .pages
            .entry(page)
            .or_insert_with(|| vec![0; PAGE as usize].into());
        page[slot] += count;
        self.count += count;
    }

    /// Adds the counts of another histogram of the same type.
    pub(crate) fn merge(&mut self, other: &Self) {
        if self.count == 0 {
            self.kind = other.kind;
        } else if other.kind != self.kind {
            *self = self.coarse();
            return self.merge(&other.coarse());
        }
        for (key, count) in other.counts() {
            self.add_counts(key, count);
        }
    }

    /// Returns the histogram that counts the values as those of larger types.
    fn coarse(&self) -> Self {
        let mut coarse = Self {
            kind: Kind::Single,
            count: 0,
            pages: BTreeMap::new(),
        };
        for (key, count) in self.counts() {
            coarse.add_counts(Kind::Single.key(self.kind.value(key)), count);
        }
        coarse
    }

    /// Returns the keys that have values, in the order of the values, with their counts.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let pages = self.pages.iter().flat_map(|(page, counts)| {
            let first = page * PAGE;
            (first..).zip(counts.iter().copied())
        });
        pages.filter(|(_, count)| *count > 0)
    }

    /// Returns a percentile from 0 to 100, interpolated linearly between two values as numpy does; `None` if there are no
    /// values.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts are below 2^53"
    )]
    pub(crate) fn percentile(&self, percent: f64) -> Option<f64> {
        let last = self.count.checked_sub(1)?;
        let at = last as f64 * (percent / 100.0).clamp(0.0, 1.0);
        let (rank, part) = (at.floor() as u64, at.fract());
        let low = self.ranked(rank)?;
        if part == 0.0 {
            return Some(low);
        }
        let high = self.ranked(rank + 1)?;
        Some(low + (high - low) * part)
    }

    /// Returns the value with this many values before it.
    fn ranked(&self, rank: u64) -> Option<f64> {
        let mut before = 0;
        for (page, counts) in &self.pages {
            let own: u64 = counts.iter().sum();
            if rank >= before + own {
                before += own;
                continue;
            }
            for (slot, count) in (0_u32..).zip(counts.iter()) {
                before += count;
                if rank < before {
                    return Some(self.kind.value(page * PAGE + slot));
                }
            }
        }
        None
    }
}

impl Histogram {
    /// Returns the counts in a form that [`loaded`](Self::loaded) reads: the kind, and pairs of a number and its count.
    pub(crate) fn saved(&self) -> Json {
        let pairs: Vec<Json> = self
            .counts()
            .map(|(key, count)| json!([key, count]))
            .collect();
        json!([self.kind as u8, pairs])
    }

    /// Returns saved counts; `None` if they are damaged.
    pub(crate) fn loaded(saved: &Json) -> Option<Self> {
        let all = [Kind::Whole, Kind::Half, Kind::Single];
        let kind = *all.get(usize::try_from(saved[0].as_u64()?).ok()?)?;
        let mut histogram = Self {
            kind,
            count: 0,
            pages: BTreeMap::new(),
        };
        for pair in saved[1].as_array()? {
            let key = u32::try_from(pair[0].as_u64()?).ok()?;
            if key > u32::MAX >> DROPPED {
                return None;
            }
            histogram.add_counts(key, pair[1].as_u64()?);
        }
        Some(histogram)
    }
}

impl Kind {
    /// Returns the number of a value among those that are counted apart, in the order of the values.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number of 16 bits, and f32 on purpose"
    )]
    fn key(self, value: f64) -> u32 {
        // -0.0 is 0.
        let value = value + 0.0;
        match self {
            Self::Whole => (value + 32_768.0).clamp(0.0, 98_303.0) as u32,
            Self::Half => {
                let bits = f16::from_f64(value).to_bits();
                let is_negative = bits & 0x8000 != 0;
                u32::from(if is_negative { !bits } else { bits | 0x8000 })
            }
            Self::Single => {
                let single = (value as f32).clamp(f32::MIN, f32::MAX);
                let bits = single.to_bits();
                let is_negative = bits >> 31 != 0;
                (if is_negative { !bits } else { bits | 1 << 31 }) >> DROPPED
            }
        }
    }

    /// Returns the value in the middle of those with a number.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits")]
    fn value(self, key: u32) -> f64 {
        match self {
            Self::Whole => f64::from(key) - 32_768.0,
            Self::Half => {
                let key = key as u16;
                let bits = if key & 0x8000 != 0 {
                    key & 0x7FFF
                } else {
                    !key
                };
                f16::from_bits(bits).to_f64()
            }
            Self::Single => {
                let decoded = |bits: u32| {
                    let bits = if bits >> 31 != 0 {
                        bits & !(1 << 31)
                    } else {
                        !bits
                    };
                    f64::from(f32::from_bits(bits))
                };
                let first = key << DROPPED;
                // Exact for 0 and for whole numbers that have few bits.
                let [low, high] = [decoded(first), decoded(first | ((1 << DROPPED) - 1))];
                if low == 0.0 || high == 0.0 {
                    0.0
                } else {
                    f64::midpoint(low, high)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(values: &mut [f64], percent: f64) -> f64 {
        values.sort_by(f64::total_cmp);
        let last = u32::try_from(values.len() - 1).unwrap();
        let at = f64::from(last) * percent / 100.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small"
        )]
        let rank = at.floor() as usize;
        let next = values[(rank + 1).min(values.len() - 1)];
        values[rank] + (next - values[rank]) * at.fract()
    }

    #[test]
    fn percentiles_are_exact_for_small_types_and_within_the_error_for_others() {
        let numbers = |n: u32| f64::from(n.wrapping_mul(2_654_435_761) >> 8) - 8e6;
        for dtype in DType::ALL {
            let (least, most) = dtype.range();
            let value = |n: u32| -> f64 {
                let wild = numbers(n) * 10_f64.powi(i32::try_from(n % 9).unwrap() - 6);
                let wild = wild.clamp(least.max(-6e4), most.min(6e4));
                match dtype {
                    DType::F16 => f16::from_f64(wild).to_f64(),
                    _ if dtype.is_float() => wild,
                    _ => wild.round(),
                }
            };
            let mut all: Vec<f64> = (0..5_000).map(value).collect();
            let mut one = Histogram::new(dtype);
            let mut other = Histogram::new(dtype);
            for (n, value) in all.iter().enumerate() {
                if n % 3 == 0 {
                    one.add(*value);
                } else {
                    other.add(*value);
                }
            }
            one.merge(&other);
            for percent in [0.0, 0.5, 10.0, 33.3, 50.0, 75.0, 99.5, 100.0] {
                let expected = naive(&mut all, percent);
                let found = one.percentile(percent).unwrap();
                let near = if one.is_exact() {
                    1e-9
                } else {
                    Histogram::ERROR
                };
                let apart = (found - expected).abs();
                assert!(
                    apart <= near * expected.abs() + 1e-9,
                    "{dtype} {percent}: {found} {expected}"
                );
            }
        }
        assert_eq!(Histogram::new(DType::F32).percentile(50.0), None);
        assert!(Histogram::new(DType::F16).is_exact() && !Histogram::new(DType::U32).is_exact());
    }

    #[test]
    fn histograms_of_different_types_add_up() {
        let mut whole = Histogram::new(DType::I16);
        let mut single = Histogram::new(DType::F32);
        (0..100).for_each(|n| whole.add(f64::from(n) - 50.0));
        (0..100).for_each(|n| single.add(f64::from(n) + 1000.5));
        whole.merge(&single);
        assert!(!whole.is_exact());
        assert!((whole.percentile(100.0).unwrap() - 1099.5).abs() < 1099.5 * Histogram::ERROR);
        assert!((whole.percentile(0.0).unwrap() + 50.0).abs() < 50.0 * Histogram::ERROR);
    }
}
