//! Reductions of final blended voxels to output voxels.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::dtype::{DType, Element, clipped, convert, text, with_element};
use crate::error::{Error, Result};
use crate::words::Word;

/// A reduction of blended predictions to output voxels.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reduce {
    /// The blended values, converted to the output's type (rounded, saturated).
    Mean,
    /// `exp(v) / sum of exp(v)` over each voxel's channels.
    Softmax,
    /// `1 / (1 + exp(-v))` of each value.
    Sigmoid,
    /// The channel with the largest value, the first of equal ones. NaN never wins.
    Argmax,
    /// The value in this table for the channel that `Argmax` gives.
    Labels(Arc<[u32]>),
    /// 1 where a value is at least this, otherwise 0.
    Threshold(f32),
    /// A linear mapping of `low..=high` to 0 to 255. Values beyond become 0 or 255.
    Quantize {
        /// The value that becomes 0.
        low: f32,
        /// The value that becomes 255.
        high: f32,
    },
    /// A custom function.
    Custom(CustomReduce),
}

/// A custom reduction.
#[derive(Clone)]
pub struct CustomReduce {
    channels: u64,
    dtype: DType,
    apply: Arc<ReduceFn>,
}

/// The function of a [`CustomReduce`]: gets blended values, channel by channel, and fills the output values, which are
/// zeros at first.
pub type ReduceFn = dyn Fn(&[f32], &mut [f32]) + Send + Sync;

impl CustomReduce {
    /// Wraps a function with `channels` output channels, stored as `dtype` unless a different type is requested.
    ///
    /// The function gets all channels of some voxels, channel by channel, and a zero for each of the voxels in each
    /// output channel. It is called from several threads at once.
    pub fn new(
        channels: u64,
        dtype: DType,
        apply: impl Fn(&[f32], &mut [f32]) + Send + Sync + 'static,
    ) -> Self {
        Self {
            channels,
            dtype,
            apply: Arc::new(apply),
        }
    }
}

/// Values outside the range of an output's type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clipped {
    pub(super) number: u64,
    /// The index of the first, and its value as text.
    pub(super) first: Option<(usize, String)>,
}

impl Clipped {
    fn of(from: DType, values: &[u8], to: DType) -> Self {
        let clipped = clipped(from, values, to);
        Self {
            number: clipped.number,
            first: clipped.first.map(|at| (at, text(from, values, at))),
        }
    }

    /// Adds the values of a run that starts at value `start`.
    fn add(&mut self, run: Self, start: usize) {
        self.number += run.number;
        let first = run.first.map(|(at, value)| (start + at, value));
        let earlier = |one: (usize, String), other: (usize, String)| {
            if one.0 <= other.0 { one } else { other }
        };
        self.first = match (self.first.take(), first) {
            (Some(one), Some(other)) => Some(earlier(one, other)),
            (one, other) => one.or(other),
        };
    }
}

impl fmt::Debug for CustomReduce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CustomReduce({} x {})", self.channels, self.dtype)
    }
}

impl PartialEq for CustomReduce {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.apply, &other.apply)
    }
}

impl fmt::Display for Reduce {
    /// Writes the word that [`FromStr`] reads; `labels` and `custom` have no such word.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mean => f.pad("mean"),
            Self::Softmax => f.pad("softmax"),
            Self::Sigmoid => f.pad("sigmoid"),
            Self::Argmax => f.pad("argmax"),
            Self::Labels(_) => f.pad("labels"),
            Self::Threshold(value) => write!(f, "threshold:{value}"),
            Self::Quantize { low, high } => write!(f, "quantize:{low},{high}"),
            Self::Custom(_) => f.pad("custom"),
        }
    }
}

impl FromStr for Reduce {
    type Err = Error;

    /// Parses `mean`, `softmax`, `sigmoid`, `argmax`, `threshold:VALUE` or `quantize:LOW,HIGH`.
    fn from_str(text: &str) -> Result<Self> {
        let choices = "mean, softmax, sigmoid, argmax, threshold:VALUE and quantize:LOW,HIGH";
        let word = Word::new("reduce", text, choices);
        Ok(match word.split() {
            ("mean", None) => Self::Mean,
            ("softmax", None) => Self::Softmax,
            ("sigmoid", None) => Self::Sigmoid,
            ("argmax", None) => Self::Argmax,
            ("threshold", Some(value)) => {
                let [value] = word.numbers(value)?;
                Self::Threshold(value)
            }
            ("quantize", Some(range)) => {
                let [low, high] = word.numbers(range)?;
                Self::Quantize { low, high }
            }
            _ => return Err(word.unknown()),
        })
    }
}

impl Reduce {
    /// Returns the number of output channels for predictions with `channels` channels.
    #[must_use]
    pub const fn channels(&self, channels: u64) -> u64 {
        match self {
            Self::Argmax | Self::Labels(_) => 1,
            Self::Custom(custom) => custom.channels,
            _ => channels,
        }
    }

    /// Returns `true` if the output's values are labels, whose mean has no meaning.
    #[must_use]
    pub const fn gives_labels(&self) -> bool {
        matches!(self, Self::Argmax | Self::Labels(_) | Self::Threshold(_))
    }

    /// Returns the default output type: the prediction's, or the smallest that can represent the reduced values.
    #[must_use]
    pub fn dtype(&self, prediction: DType, channels: u64) -> DType {
        let holding = |largest: u64| match largest {
            0..=0xFF => DType::U8,
            0x100..=0xFFFF => DType::U16,
            _ => DType::U32,
        };
        match self {
            Self::Mean => prediction,
            Self::Softmax | Self::Sigmoid if prediction == DType::F16 => prediction,
            Self::Softmax | Self::Sigmoid => DType::F32,
            Self::Argmax => holding(channels.saturating_sub(1)),
            Self::Labels(table) => holding(table.iter().copied().max().unwrap_or(0).into()),
            Self::Threshold(_) | Self::Quantize { .. } => DType::U8,
            Self::Custom(custom) => custom.dtype,
        }
    }

    /// Checks that predictions with `channels` channels can be reduced, and that the output's type can represent the
    /// result.
    pub(super) fn check(&self, channels: u64, output: DType) -> Result<()> {
        let refuse = |name, value: String, problem: String| {
            Err(Error::InvalidArgument {
                argument: name,
                value,
                problem,
            })
        };
        // The largest label up to which the type represents every whole number.
        let most: u64 = match output {
            DType::Bool => 1,
            DType::I8 => (1 << 7) - 1,
            DType::U8 => (1 << 8) - 1,
            DType::F16 => 1 << 11,
            DType::I16 => (1 << 15) - 1,
            DType::U16 => (1 << 16) - 1,
            DType::F32 => 1 << 24,
            _ => u64::MAX,
        };
        match self {
            Self::Argmax if channels - 1 > most => refuse(
                "output type",
                output.to_string(),
                format!("it cannot count {channels} classes"),
            ),
            Self::Labels(table) if table.len() as u64 != channels => refuse(
                "label table",
                format!("of {} labels", table.len()),
                format!("the prediction has {channels} channels"),
            ),
            Self::Labels(table) => match table.iter().find(|&&label| u64::from(label) > most) {
                Some(label) => refuse(
                    "output type",
                    output.to_string(),
                    format!("it cannot hold the label {label}"),
                ),
                None => Ok(()),
            },
            Self::Threshold(threshold) if threshold.is_nan() => refuse(
                "threshold",
                threshold.to_string(),
                "no value is above or below it".to_owned(),
            ),
            Self::Quantize { .. } if most < 255 => refuse(
                "output type",
                output.to_string(),
                "quantized values go up to 255".to_owned(),
            ),
            // Not `low >= high`: NaN must not pass.
            Self::Quantize { low, high } if !(low < high && (high - low).is_finite()) => refuse(
                "quantization range",
                format!("{low} to {high}"),
                "the first must be below the second, and both finite".to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// Reduces voxels of `channels` channels, channel by channel, to output bytes. Returns the values outside the range
    /// of the output's type.
    pub(super) fn apply(
        &self,
        from: DType,
        values: &[u8],
        channels: usize,
        to: DType,
        out: &mut [u8],
    ) -> Clipped {
        match self {
            Self::Mean => {
                convert(from, values, to, out);
                Clipped::of(from, values, to)
            }
            Self::Argmax => {
                with_element!(from, T => argmax::<T>(values, channels, to, out, None));
                Clipped::default()
            }
            Self::Labels(table) => {
                with_element!(from, T => argmax::<T>(values, channels, to, out, Some(table)));
                Clipped::default()
            }
            // Rounding to f32 could bring values just below the threshold up to it.
            Self::Threshold(threshold) if from != DType::F32 => {
                let mut run = [0_u8; RUN];
                let out = out.chunks_mut(RUN * to.size());
                for (values, out) in values.chunks(RUN * from.size()).zip(out) {
                    let run = &mut run[..out.len() / to.size()];
                    with_element!(from, T => {
                        let values = bytemuck::cast_slice::<u8, T>(values);
                        for (reached, value) in run.iter_mut().zip(values) {
                            *reached = u8::from(value.to_f64() >= f64::from(*threshold));
                        }
                    });
                    convert(DType::U8, run, to, out);
                }
                Clipped::default()
            }
            Self::Custom(custom) => {
                let mut wide = Vec::new();
                let values = if from == DType::F32 {
                    bytemuck::cast_slice(values)
                } else {
                    wide.resize(values.len() / from.size(), 0.0_f32);
                    convert(
                        from,
                        values,
                        DType::F32,
                        bytemuck::cast_slice_mut(&mut wide),
                    );
                    &wide
                };
                let mut reduced = vec![0.0_f32; out.len() / to.size()];
                (custom.apply)(values, &mut reduced);
                let reduced = bytemuck::cast_slice(&reduced);
                convert(DType::F32, reduced, to, out);
                Clipped::of(DType::F32, reduced, to)
            }
            Self::Softmax => {
                let softmax = |values: &mut [f32]| softmax(values, channels);
                by_runs(from, values, channels, (to, out), softmax)
            }
            Self::Sigmoid => {
                let sigmoid = |v: f32| 1.0 / (1.0 + (-v).exp());
                by_runs(from, values, 1, (to, out), |values| each(values, sigmoid))
            }
            Self::Threshold(threshold) => {
                let reached = |v: f32| f32::from(v >= *threshold);
                by_runs(from, values, 1, (to, out), |values| each(values, reached))
            }
            Self::Quantize { low, high } => {
                let step = 255.0 / (high - low);
                let quantized = |v: f32| ((v - low) * step).clamp(0.0, 255.0);
                by_runs(from, values, 1, (to, out), |values| each(values, quantized))
            }
        }
    }
}

/// The values that are reduced at a time, so that they stay in the first-level cache.
const RUN: usize = 1024;

/// The fewest voxels that are reduced at a time, for any number of channels.
const LEAST_RUN: usize = 16;

/// Reduces a few voxels at a time in `f32`: `reduce` gets all of their channels, channel by channel, and replaces them
/// with the output's. Returns the values outside the range of the output's type.
fn by_runs(
    from: DType,
    values: &[u8],
    channels: usize,
    (to, out): (DType, &mut [u8]),
    reduce: impl Fn(&mut [f32]),
) -> Clipped {
    let voxels = values.len() / from.size() / channels.max(1);
    let most = (RUN / channels.max(1)).max(LEAST_RUN);
    let (mut short, mut long) = ([0.0_f32; RUN], Vec::new());
    let room = if most * channels <= RUN {
        &mut short[..]
    } else {
        long.resize(most * channels, 0.0_f32);
        &mut long[..]
    };
    let mut clipped = Clipped::default();
    for first in (0..voxels).step_by(most) {
        let length = most.min(voxels - first);
        let run = &mut room[..length * channels];
        for (c, run) in run.chunks_exact_mut(length).enumerate() {
            let at = (c * voxels + first) * from.size();
            let values = &values[at..at + length * from.size()];
            convert(from, values, DType::F32, bytemuck::cast_slice_mut(run));
        }
        reduce(run);
        for (c, run) in run.chunks_exact(length).enumerate() {
            let at = c * voxels + first;
            let out = &mut out[at * to.size()..(at + length) * to.size()];
            let run = bytemuck::cast_slice(run);
            convert(DType::F32, run, to, out);
            clipped.add(Clipped::of(DType::F32, run, to), at);
        }
    }
    clipped
}

fn each(values: &mut [f32], of: impl Fn(f32) -> f32) {
    for value in values {
        *value = of(*value);
    }
}

/// Computes the softmax of each voxel's channels, minus the largest so that no power overflows.
fn softmax(values: &mut [f32], channels: usize) {
    let voxels = values.len() / channels.max(1);
    let (mut largest, mut sums) = ([f32::NEG_INFINITY; RUN], [0.0_f32; RUN]);
    let (largest, sums) = (&mut largest[..voxels], &mut sums[..voxels]);
    for channel in values.chunks_exact(voxels.max(1)) {
        for (most, value) in largest.iter_mut().zip(channel) {
            *most = most.max(*value);
        }
    }
    for channel in values.chunks_exact_mut(voxels.max(1)) {
        for (value, most) in channel.iter_mut().zip(&*largest) {
            *value = (*value - most).exp();
        }
        for (sum, value) in sums.iter_mut().zip(&*channel) {
            *sum += value;
        }
    }
    for channel in values.chunks_exact_mut(voxels.max(1)) {
        for (value, sum) in channel.iter_mut().zip(&*sums) {
            *value /= sum;
        }
    }
}

/// Writes the channel with the largest value of each voxel, or its label in a table.
fn argmax<T: Element>(
    values: &[u8],
    channels: usize,
    to: DType,
    out: &mut [u8],
    table: Option<&[u32]>,
) {
    let values: &[T] = bytemuck::cast_slice(values);
    let voxels = out.len() / to.size();
    let (mut best, mut classes) = ([T::default(); RUN], [0_u32; RUN]);
    for (n, out) in out.chunks_mut(RUN * to.size()).enumerate() {
        let length = out.len() / to.size();
        let plane = |c: usize| &values[c * voxels + n * RUN..][..length];
        let (best, classes) = (&mut best[..length], &mut classes[..length]);
        best.copy_from_slice(plane(0));
        classes.fill(0);
        for (channel, c) in (1..).zip(1..channels) {
            // Without branches and conditional stores, so that it is vectorized.
            for ((best, class), &value) in best.iter_mut().zip(&mut *classes).zip(plane(c)) {
                let wins = (value > *best) | (is_nan(*best) & !is_nan(value));
                *best = if wins { value } else { *best };
                *class = if wins { channel } else { *class };
            }
        }
        if let Some(table) = table {
            for class in &mut *classes {
                *class = table[*class as usize];
            }
        }
        convert(DType::U32, bytemuck::cast_slice(classes), to, out);
    }
}

#[inline]
#[expect(clippy::eq_op, reason = "in any type, only a NaN differs from itself")]
fn is_nan<T: Element>(value: T) -> bool {
    value != value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argmax_of(values: &[f32], channels: usize) -> Vec<u8> {
        let mut out = vec![0; values.len() / channels];
        Reduce::Argmax.apply(
            DType::F32,
            bytemuck::cast_slice(values),
            channels,
            DType::U8,
            &mut out,
        );
        out
    }

    #[test]
    fn the_largest_channel_wins_and_the_first_of_equals() {
        assert_eq!(
            argmax_of(&[1.0, 5.0, 2.0, 3.0, 5.0, 9.0, 2.0, 5.0, 9.0], 3),
            [1, 0, 1]
        );
    }

    #[test]
    fn nan_never_wins() {
        assert_eq!(
            argmax_of(&[f32::NAN, 1.0, f32::NAN, -2.0, f32::NAN, f32::NAN], 2),
            [1, 0, 0]
        );
    }

    #[test]
    fn the_type_must_count_the_classes() {
        assert_eq!(Reduce::Argmax.dtype(DType::F32, 256), DType::U8);
        assert_eq!(Reduce::Argmax.dtype(DType::F32, 257), DType::U16);
        assert!(Reduce::Argmax.check(257, DType::U8).is_err());
        assert!(Reduce::Argmax.check(256, DType::U8).is_ok());
        assert!(Reduce::Mean.check(257, DType::U8).is_ok());
    }

    fn reduced(reduce: &Reduce, values: &[f32], channels: usize, to: DType) -> Vec<f64> {
        let count =
            values.len() / channels * usize::try_from(reduce.channels(channels as u64)).unwrap();
        let mut out = vec![0; count * to.size()];
        reduce.apply(
            DType::F32,
            bytemuck::cast_slice(values),
            channels,
            to,
            &mut out,
        );
        with_element!(to, T => bytemuck::cast_slice::<u8, T>(&out).iter().map(|v| v.to_f64()).collect())
    }

    #[test]
    fn probabilities_add_up_to_one_and_large_logits_do_not_overflow() {
        let out = reduced(
            &Reduce::Softmax,
            &[0.0, 1000.0, 3.0_f32.ln(), 1000.0],
            2,
            DType::F32,
        );
        let expected = [0.25, 0.5, 0.75, 0.5];
        assert!(
            out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{out:?}"
        );
        let out = reduced(
            &Reduce::Sigmoid,
            &[0.0, 200.0, -200.0, 3.0_f32.ln()],
            1,
            DType::F32,
        );
        let expected = [0.5, 1.0, 0.0, 0.75];
        assert!(
            out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{out:?}"
        );
    }

    #[test]
    fn thresholds_quantization_and_tables() {
        let threshold = Reduce::Threshold(0.5);
        assert_eq!(
            reduced(&threshold, &[0.4, 0.5, f32::NAN, 9.0], 2, DType::U8),
            [0.0, 1.0, 0.0, 1.0]
        );
        let quantize = Reduce::Quantize {
            low: -1.0,
            high: 1.0,
        };
        assert_eq!(
            reduced(&quantize, &[-7.0, -1.0, 0.0, 0.5, 1.0, 3.0], 1, DType::U8),
            [0.0, 0.0, 128.0, 191.0, 255.0, 255.0]
        );
        let labels = Reduce::Labels([7, 300].into());
        assert_eq!(labels.dtype(DType::F32, 2), DType::U16);
        assert_eq!(
            reduced(&labels, &[1.0, 0.0, 0.0, 2.0], 2, DType::U16),
            [7.0, 300.0]
        );
        assert!(labels.check(3, DType::U16).is_err() && labels.check(2, DType::U8).is_err());
        assert!(
            Reduce::Quantize {
                low: 1.0,
                high: 1.0
            }
            .check(1, DType::U8)
            .is_err()
        );
        assert!(Reduce::Threshold(f32::NAN).check(1, DType::U8).is_err());
    }

    /// Returns the reduced values of each voxel alone, as `f32`.
    fn one_by_one(reduce: &Reduce, values: &[f32], channels: usize) -> Vec<f32> {
        let voxels = values.len() / channels;
        let mut out = vec![0.0; values.len()];
        for n in 0..voxels {
            let all: Vec<f32> = (0..channels).map(|c| values[c * voxels + n]).collect();
            let mut best = 0;
            for (c, value) in all.iter().enumerate() {
                if *value > all[best] || (all[best].is_nan() && !value.is_nan()) {
                    best = c;
                }
            }
            let most = all.iter().fold(f32::NEG_INFINITY, |most, v| most.max(*v));
            let sum = all.iter().fold(0.0, |sum, v| sum + (v - most).exp());
            for (c, v) in all.iter().enumerate() {
                out[c * voxels + n] = match reduce {
                    Reduce::Softmax => (v - most).exp() / sum,
                    Reduce::Sigmoid => 1.0 / (1.0 + (-v).exp()),
                    Reduce::Threshold(threshold) => f32::from(v >= threshold),
                    Reduce::Quantize { low, high } => {
                        ((v - low) * (255.0 / (high - low))).clamp(0.0, 255.0)
                    }
                    Reduce::Labels(table) => f32::from(u16::try_from(table[best]).unwrap()),
                    Reduce::Argmax => f32::from(u16::try_from(best).unwrap()),
                    _ => *v,
                };
            }
        }
        let one = matches!(reduce, Reduce::Argmax | Reduce::Labels(_));
        out.truncate(if one { voxels } else { values.len() });
        out
    }

    #[test]
    fn runs_of_voxels_are_reduced_bit_for_bit_like_each_voxel_alone() {
        use crate::aggregator::twin::TwinRandom;
        let random = &mut TwinRandom::new(5);
        for case in 0..600 {
            let channels = [1, 2, 3, 4, 32, 63, 64, 65, 117, 1500][case % 10];
            let lengths = [1, 15, 16, 17, 1023, 1024, 1025, 3000];
            let voxels = random.pick(&lengths).min(40_000 / channels);
            let from = random.pick(&[DType::F32, DType::F32, DType::F16, DType::F64, DType::I16]);
            let to = random.pick(&[DType::U8, DType::I16, DType::U16, DType::F16, DType::F32]);
            let reduce = match random.below(7) {
                0 => Reduce::Mean,
                1 => Reduce::Softmax,
                2 => Reduce::Sigmoid,
                3 => Reduce::Argmax,
                4 => Reduce::Labels(
                    (0..channels)
                        .map(|c| u32::try_from(7 * c % 251).unwrap())
                        .collect(),
                ),
                5 => Reduce::Threshold(0.25),
                _ => Reduce::Quantize {
                    low: -3.0,
                    high: 4.5,
                },
            };
            let value = |random: &mut TwinRandom| match random.below(40) {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => f32::NEG_INFINITY,
                3 => 4e4,
                n => f32::from(u16::try_from(random.below(64 * n)).unwrap()) / 16.0 - 5.0,
            };
            let singles: Vec<f32> = (0..channels * voxels).map(|_| value(random)).collect();
            let mut stored = vec![0_u64; singles.len()];
            let stored = &mut bytemuck::cast_slice_mut(&mut stored)[..singles.len() * from.size()];
            convert(DType::F32, bytemuck::cast_slice(&singles), from, stored);
            let mut back = vec![0.0_f32; singles.len()];
            convert(
                from,
                stored,
                DType::F32,
                bytemuck::cast_slice_mut(&mut back),
            );
            let expected = one_by_one(&reduce, &back, channels);
            let mut out = vec![0_u64; expected.len()];
            let out = &mut bytemuck::cast_slice_mut(&mut out)[..expected.len() * to.size()];
            let clipped = reduce.apply(from, stored, channels, to, out);
            let (mut number, mut first) = (0, None);
            with_element!(to, T => {
                let out: &[T] = bytemuck::cast_slice(out);
                for (n, (found, value)) in out.iter().zip(&expected).enumerate() {
                    let mut one = T::default();
                    let one = bytemuck::bytes_of_mut(&mut one);
                    convert(DType::F32, bytemuck::bytes_of(value), to, one);
                    let same = bytemuck::bytes_of(found) == one;
                    let nan = value.is_nan() && found.to_f64().is_nan();
                    assert!(same || nan, "{case} {reduce:?} {from} {to}: {value} as {found}");
                    let lost = clipped_of(*value, to);
                    number += lost;
                    first = first.or((lost > 0).then_some(n));
                }
            });
            let counts = !matches!(reduce, Reduce::Argmax | Reduce::Labels(_));
            let counts = counts && (from == DType::F32 || reduce != Reduce::Threshold(0.25));
            if counts {
                assert_eq!(clipped.number, number, "{case} {reduce:?} {from} {to}");
                assert_eq!(clipped.first.map(|(at, _)| at), first, "{case} {reduce:?}");
            }
        }
    }

    fn clipped_of(value: f32, to: DType) -> u64 {
        crate::dtype::loss(DType::F32, bytemuck::bytes_of(&value), to)
            .clipped
            .number
    }

    #[test]
    fn a_custom_function_gets_all_channels() {
        let larger = CustomReduce::new(1, DType::F32, |values, out| {
            let (a, b) = values.split_at(out.len());
            for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
                *out = a.max(*b);
            }
        });
        let larger = Reduce::Custom(larger);
        assert_eq!(
            reduced(&larger, &[1.0, 5.0, 2.0, 4.0], 2, DType::F32),
            [2.0, 5.0]
        );
        assert_eq!(larger, larger.clone());
    }
}
