//! Mappings of values to normalized values.

use std::fmt;
use std::str::FromStr;

use super::{length, single};
use crate::error::{Error, Result};
use crate::patch::Patch;

/// The mapping of values to normalized values: that of each channel, or one for all.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scales(pub(super) Vec<Scale>);

/// The mapping of the values of a channel: clipped, then scaled so that `zero` becomes 0 and `zero + unit` becomes 1.
///
/// All is computed in f64 from a value in f32, and rounded to f32: `(min(max(value, low), high) - zero) / unit`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The lowest value; lower ones become it.
    pub low: f64,
    /// The highest value; higher ones become it.
    pub high: f64,
    /// The value that becomes 0.
    pub zero: f64,
    /// The distance from there of the value that becomes 1; not 0.
    pub unit: f64,
    /// Whether voxels that are 0 stay 0.
    pub keeps_zero: bool,
}

impl Scale {
    /// Leaves values as they are.
    pub(super) const SAME: Self = Self {
        low: f64::NEG_INFINITY,
        high: f64::INFINITY,
        zero: 0.0,
        unit: 1.0,
        keeps_zero: false,
    };

    pub(super) fn standard(mean: f64, deviation: f64) -> Self {
        Self {
            zero: mean,
            unit: if deviation > 0.0 { deviation } else { 1.0 },
            ..Self::SAME
        }
    }

    pub(super) fn window(low: f64, high: f64) -> Self {
        Self {
            low,
            high,
            ..Self::standard(low, high - low)
        }
    }
}

/// The numbers of each channel as text, which reads back as the same numbers.
impl fmt::Display for Scales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, scale) in self.0.iter().enumerate() {
            let Scale {
                low,
                high,
                zero,
                unit,
                keeps_zero,
            } = scale;
            let between = if n == 0 { "" } else { ";" };
            write!(f, "{between}{low},{high},{zero},{unit},{keeps_zero}")?;
        }
        Ok(())
    }
}

impl FromStr for Scales {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let scale = |text: &str| {
            let fields: Vec<&str> = text.split(',').collect();
            let &[low, high, zero, unit, keeps_zero] = &fields[..] else {
                return None;
            };
            let number = |text: &str| text.parse::<f64>().ok();
            let (low, high, unit) = (number(low)?, number(high)?, number(unit)?);
            // Otherwise clipping or division would fail.
            (low <= high && unit != 0.0).then_some(Scale {
                low,
                high,
                zero: number(zero)?,
                unit,
                keeps_zero: keeps_zero.parse().ok()?,
            })
        };
        let scales: Option<Vec<Scale>> = text.split(';').map(scale).collect();
        scales.map(Self).ok_or_else(|| Error::InvalidArgument {
            argument: "measured normalization",
            value: text.to_owned(),
            problem:
                "expected LOW,HIGH,ZERO,UNIT,KEEPS_ZERO for each channel, separated by semicolons"
                    .to_owned(),
        })
    }
}

impl Scales {
    /// Normalizes a patch of f32.
    pub(crate) fn apply(&self, patch: &mut Patch) -> Result<()> {
        let each = patch.bytes().len() / 4 / length(patch.channels().max(1));
        let channels = patch.as_mut_slice()?.chunks_mut(each.max(1)).enumerate();
        channels.for_each(|(channel, values)| self.apply_to(channel, values));
        Ok(())
    }

    /// Returns the mapping of each of `channels` channels.
    pub(crate) fn of_each(&self, channels: u64) -> Vec<Scale> {
        (0..length(channels)).filter_map(|n| self.of(n)).collect()
    }

    /// Returns the mapping of one channel.
    pub(super) fn of(&self, channel: usize) -> Option<Scale> {
        self.0.get(channel).or(self.0.first()).copied()
    }

    /// Normalizes the values of one channel.
    pub(crate) fn apply_to(&self, channel: usize, values: &mut [f32]) {
        let Some(scale) = self.of(channel) else {
            return;
        };
        for value in values {
            if !scale.keeps_zero || *value != 0.0 {
                let clipped = f64::from(*value).clamp(scale.low, scale.high);
                *value = single((clipped - scale.zero) / scale.unit);
            }
        }
    }
}
