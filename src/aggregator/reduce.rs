//! What becomes of blended voxels once they are final.

use crate::dtype::{DType, Element, convert, with_element};
use crate::error::{Error, Result};

/// How blended predictions become output voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reduce {
    /// The blended values themselves, converted to the output's type (rounded, saturated).
    Mean,
    /// The channel with the largest value; of equal ones the first. NaN never wins.
    Argmax,
}

impl Reduce {
    /// Channels of the output for predictions of `channels`.
    #[must_use]
    pub const fn channels(self, channels: u64) -> u64 {
        match self {
            Self::Mean => channels,
            Self::Argmax => 1,
        }
    }

    /// The output's type if the user names none: of the prediction, or the smallest that
    /// counts the classes.
    #[must_use]
    pub const fn dtype(self, prediction: DType, channels: u64) -> DType {
        match self {
            Self::Mean => prediction,
            Self::Argmax if channels <= 1 << 8 => DType::U8,
            Self::Argmax if channels <= 1 << 16 => DType::U16,
            Self::Argmax => DType::U32,
        }
    }

    /// Checks that the output's type can hold what comes out.
    pub(super) fn check(self, channels: u64, output: DType) -> Result<()> {
        let classes: u64 = match output {
            DType::Bool => 1 << 1,
            DType::I8 => 1 << 7,
            DType::U8 => 1 << 8,
            DType::F16 => (1 << 11) + 1,
            DType::I16 => 1 << 15,
            DType::U16 => 1 << 16,
            DType::F32 => (1 << 24) + 1,
            _ => u64::MAX,
        };
        if self == Self::Argmax && channels > classes {
            return Err(Error::Setting {
                name: "an output of type",
                value: output.to_string(),
                problem: format!("it cannot count {channels} classes"),
            });
        }
        Ok(())
    }

    /// Reduces `voxels` voxels of `channels` channels, channel after channel, to output bytes.
    pub(super) fn apply(
        self,
        from: DType,
        values: &[u8],
        channels: usize,
        to: DType,
        out: &mut [u8],
    ) {
        match self {
            Self::Mean => convert(from, values, to, out),
            Self::Argmax => {
                let mut classes = vec![0_u32; out.len() / to.size()];
                with_element!(from, T => argmax::<T>(bytemuck::cast_slice(values), channels, &mut classes));
                convert(DType::U32, bytemuck::cast_slice(&classes), to, out);
            }
        }
    }
}

fn argmax<T: Element>(values: &[T], channels: usize, classes: &mut [u32]) {
    let voxels = classes.len();
    let mut best = values[..voxels].to_vec();
    for (channel, plane) in (0_u32..)
        .zip(values.chunks_exact(voxels))
        .take(channels)
        .skip(1)
    {
        for ((best, class), &value) in best.iter_mut().zip(classes.iter_mut()).zip(plane) {
            if value > *best || (is_nan(*best) && !is_nan(value)) {
                (*best, *class) = (value, channel);
            }
        }
    }
}

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
        assert!(Reduce::Mean.check(257, DType::U8).is_ok());
    }
}
