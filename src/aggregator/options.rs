//! The options of an aggregator.

use std::fmt;
use std::str::FromStr;

use super::onto::Onto;
use super::reduce::Reduce;
use super::sums::{Accumulator, TOO_LARGE_FOR_F16, too_large_for_f32};
use super::window::Blend;
use crate::dtype::{DType, loss, text};
use crate::error::{Error, Result};
use crate::grid::{Axis, Grid};
use crate::patch::Patch;
use crate::words::Word;

/// The options of an aggregator, which turns predictions into an output.
///
/// ```
/// use voxpatch::{AggregatorOptions, Blend, Reduce};
///
/// let options = AggregatorOptions::default().with_blend(Blend::GAUSSIAN).with_reduce(Reduce::Argmax);
/// assert_eq!(options.fill, 0.0);
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "independent settings")]
pub struct AggregatorOptions {
    /// The weights of overlapping patches.
    pub blend: Blend,
    /// The reduction of blended channels.
    pub reduce: Reduce,
    /// The type of the weighted sums.
    pub accumulator: Accumulator,
    /// The contribution of skipped patches.
    pub skipped: Skipped,
    /// The treatment of predictions with NaN or infinity.
    pub non_finite: NonFinite,
    /// The output's value where no patch votes. It must be representable in the output's type; for a float type it is
    /// rounded.
    pub fill: f64,
    /// A promise that every patch votes: none is skipped without a vote, and none is missing at the end.
    ///
    /// Without it, sums are in `f32` regardless of the accumulator, because a patch that votes alone may have tiny
    /// weights, and [`Blend::Crop`] keeps substitutes for patches that have not arrived yet. An
    /// [`InferencePlan`](crate::inference::InferencePlan) sets it.
    pub all_vote: bool,
    /// Whether integer predictions are quantities, such as HU, that may be averaged. If `false`, they are class
    /// numbers, and overlapping patches need [`Blend::Crop`] or a reduction.
    pub average_integers: bool,
    /// Whether values outside the range of the output's type become its nearest value, and are counted. If `false`, the
    /// first such value is an [`Error::OutputRange`].
    pub clip: bool,
    /// The grid that final values are resampled to before they are reduced; `None` for that of the predictions.
    pub(crate) onto: Option<Onto>,
    /// Whether the sums are kept elsewhere, such as on a GPU: the aggregator has a [`Frontier`](super::Frontier) in
    /// place of sums, and receives the reduced values of final blocks.
    pub sums_elsewhere: bool,
}

impl AggregatorOptions {
    /// Returns options with `f32` sums and a fill of 0. Skipped patches do not vote, and NaN is an error.
    #[must_use]
    pub const fn new(blend: Blend, reduce: Reduce) -> Self {
        Self {
            blend,
            reduce,
            accumulator: Accumulator::F32,
            skipped: Skipped::Renormalize,
            non_finite: NonFinite::Refuse,
            fill: 0.0,
            all_vote: false,
            average_integers: false,
            clip: false,
            onto: None,
            sums_elsewhere: false,
        }
    }

    /// Sets the weights of overlapping patches.
    #[must_use]
    pub fn with_blend(self, blend: Blend) -> Self {
        Self { blend, ..self }
    }

    /// Sets the reduction of blended channels.
    #[must_use]
    pub fn with_reduce(self, reduce: Reduce) -> Self {
        Self { reduce, ..self }
    }

    /// Sets the type of the weighted sums.
    #[must_use]
    pub fn with_accumulator(self, accumulator: Accumulator) -> Self {
        Self {
            accumulator,
            ..self
        }
    }

    /// Sets the contribution of skipped patches.
    #[must_use]
    pub fn with_skipped(self, skipped: Skipped) -> Self {
        Self { skipped, ..self }
    }

    /// Sets the treatment of predictions with NaN or infinity.
    #[must_use]
    pub fn with_non_finite(self, non_finite: NonFinite) -> Self {
        Self { non_finite, ..self }
    }

    /// Sets the output's value where no patch votes.
    #[must_use]
    pub fn with_fill(self, fill: f64) -> Self {
        Self { fill, ..self }
    }

    /// Sets the promise that every patch votes.
    #[must_use]
    pub fn with_all_vote(self, all_vote: bool) -> Self {
        Self { all_vote, ..self }
    }

    /// Sets whether integer predictions are quantities, which may be averaged.
    #[must_use]
    pub fn with_average_integers(self, average_integers: bool) -> Self {
        Self {
            average_integers,
            ..self
        }
    }

    /// Sets whether values outside the range of the output's type become its nearest value.
    #[must_use]
    pub fn with_clip(self, clip: bool) -> Self {
        Self { clip, ..self }
    }

    /// Sets whether the sums are kept elsewhere.
    #[must_use]
    pub fn with_sums_elsewhere(self, sums_elsewhere: bool) -> Self {
        Self {
            sums_elsewhere,
            ..self
        }
    }
}

impl Default for AggregatorOptions {
    /// Returns options with a Hann window and the mean.
    fn default() -> Self {
        Self::new(Blend::Hann, Reduce::Mean)
    }
}

impl AggregatorOptions {
    /// Returns `true` if every patch votes, including those that are not finite.
    pub(super) fn all_vote(&self) -> bool {
        self.all_vote && self.non_finite != NonFinite::LeaveOut
    }

    /// Returns the type of the sums.
    pub(super) fn sums(&self) -> Accumulator {
        if self.all_vote() {
            self.accumulator
        } else {
            Accumulator::F32
        }
    }

    /// Returns `true` if weights are summed by their logarithms.
    pub(super) fn adds_by_logs(&self, grid: &Grid) -> bool {
        !self.all_vote() && self.blend.is_uneven(grid.patch())
    }

    /// Returns the smallest magnitude that becomes infinite in the sums or in an output of type `output`; infinity if
    /// none does.
    pub(super) fn too_large(&self, output: DType) -> f64 {
        let sums = match (&self.blend, &self.reduce) {
            (Blend::Crop, Reduce::Mean | Reduce::Argmax | Reduce::Labels(_)) => f64::INFINITY,
            (Blend::Crop, _) => too_large_for_f32(),
            _ => self.sums().too_large(),
        };
        match output {
            DType::F16 if self.reduce == Reduce::Mean => sums.min(TOO_LARGE_FOR_F16),
            DType::F32 if self.reduce == Reduce::Mean => sums.min(too_large_for_f32()),
            _ => sums,
        }
    }

    /// Checks that predictions of `channels` on a grid can become voxels of type `output`.
    pub(crate) fn check(&self, grid: &Grid, channels: u64, output: DType) -> Result<()> {
        self.reduce.check(channels, output)?;
        self.blend.check(grid.patch())?;
        if self.accumulator != Accumulator::F32 && !self.blend.is_product() {
            return Err(Error::InvalidArgument {
                argument: "accumulator",
                value: format!("{:?}", self.accumulator),
                problem: "the window is not a product of 1-D windows, so its sums need F32"
                    .to_owned(),
            });
        }
        output.check_constant("fill value", self.fill)?;
        self.check_elsewhere(grid)?;
        match &self.skipped {
            Skipped::Vote(values) => self.check_vote(values, channels, output),
            Skipped::Renormalize => Ok(()),
        }
    }

    /// Checks that the sums can be kept elsewhere, if they are.
    fn check_elsewhere(&self, grid: &Grid) -> Result<()> {
        let problem = if !self.sums_elsewhere {
            return Ok(());
        } else if matches!(self.reduce, Reduce::Custom(_)) {
            "a custom function reduces values in memory only"
        } else if self.onto.is_some() {
            "predictions are resampled to another grid in memory only"
        } else if self.blend == Blend::Crop && !self.all_vote() {
            "with the blend crop, voxels of patches that do not vote come from their neighbors, which must be in memory"
        } else if self.adds_by_logs(grid) {
            "where patches may not vote, weights that differ by more than 1e20 are summed by their logarithms, in memory"
        } else {
            return Ok(());
        };
        Err(Error::InvalidArgument {
            argument: "blending",
            value: "outside of memory".to_owned(),
            problem: problem.to_owned(),
        })
    }

    fn check_vote(&self, values: &[f32], channels: u64, output: DType) -> Result<()> {
        let refuse = |value: String, problem: String| {
            Err(Error::InvalidArgument {
                argument: "vote",
                value,
                problem,
            })
        };
        if values.len() as u64 != channels {
            let problem = format!("predictions have {channels} channels");
            return refuse(format!("of {} values", values.len()), problem);
        }
        let too_large = self.too_large(output);
        for &value in values {
            if !value.is_finite() || f64::from(value.abs()) >= too_large {
                let problem =
                    "it must be finite and fit the type of the sums and of the output".to_owned();
                return refuse(value.to_string(), problem);
            }
            // A mean of votes may be between two whole numbers, but not outside the range.
            let (least, most) = output.range();
            let whole = self.blend != Blend::Crop || value.fract() == 0.0;
            if self.reduce == Reduce::Mean
                && output.is_integer()
                && !(whole && (least..=most).contains(&value.into()))
            {
                let problem = format!(
                    "the output of type {output} holds whole numbers from {least} to {most}"
                );
                return refuse(value.to_string(), problem);
            }
        }
        Ok(())
    }
}

impl AggregatorOptions {
    /// Checks that the mean of predictions of a type is meaningful.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if integers, which count as class numbers, would be averaged.
    pub fn check_type(&self, grid: &Grid, prediction: DType) -> Result<()> {
        let overlap = |axis: &Axis| {
            let mut pairs = axis.starts.windows(2);
            pairs.any(|pair| pair[0].saturating_add_unsigned(axis.patch) > pair[1])
        };
        let averaged = self.blend != Blend::Crop && self.reduce == Reduce::Mean;
        if prediction.is_float()
            || self.average_integers
            || !averaged
            || !grid.axes().iter().any(overlap)
        {
            return Ok(());
        }
        Err(Error::InvalidArgument {
            argument: "blend",
            value: format!("of {prediction} predictions of overlapping patches"),
            problem: "integers count as class numbers, and a mean of classes is a different class: blend by `crop`, or \
                      predict a float channel for each class and reduce by argmax"
                .to_owned(),
        })
    }

    /// Checks that a prediction's values can be summed in f32.
    pub(super) fn check_values(&self, prediction: &Patch) -> Result<()> {
        let (dtype, voxels) = (prediction.dtype(), prediction.bytes());
        if self.blend == Blend::Crop || dtype.is_float() {
            return Ok(());
        }
        let Some(first) = loss(dtype, voxels, DType::F32).rounded.first else {
            return Ok(());
        };
        Err(Error::InvalidArgument {
            argument: "blend",
            value: format!("of a {dtype} prediction of {}", text(dtype, voxels, first)),
            problem:
                "sums are float32, which does not have that number: blend by `crop`, which keeps it"
                    .to_owned(),
        })
    }
}

/// The contribution of skipped patches.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Skipped {
    /// No vote: the other patches share the voxels, and voxels that only skipped patches cover get the fill value.
    #[default]
    Renormalize,
    /// A vote for these values, one for each channel of the prediction. For an integer output the values must be in its
    /// range, and whole numbers under [`Blend::Crop`].
    Vote(Vec<f32>),
}

/// The treatment of a prediction with NaN, infinity, or a number that becomes infinite in the type of the sums or of
/// the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// An error that names the patch and the voxel.
    #[default]
    Refuse,
    /// The patch does not vote.
    LeaveOut,
    /// The value is blended like any other, into the voxels that the patch covers.
    Keep,
}

impl fmt::Display for NonFinite {
    /// Writes the word that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Refuse => "refuse",
            Self::LeaveOut => "leave-out",
            Self::Keep => "keep",
        })
    }
}

impl FromStr for NonFinite {
    type Err = Error;

    /// Parses `refuse`, `leave-out` or `keep`.
    fn from_str(text: &str) -> Result<Self> {
        let word = Word::new("non-finite", text, "refuse, leave-out and keep");
        Ok(match word.split() {
            ("refuse", None) => Self::Refuse,
            ("leave-out", None) => Self::LeaveOut,
            ("keep", None) => Self::Keep,
            _ => return Err(word.unknown()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::GridPlacement;
    use crate::pad::Padding;

    /// Checks that the words of an option can be read back, and that other words are refused.
    fn words<T: FromStr<Err = Error> + fmt::Display>(words: &[&str], wrong: &[&str]) {
        for word in words {
            let parsed = word.parse::<T>();
            let parsed = parsed.unwrap_or_else(|error| panic!("{word}: {error}"));
            assert_eq!(parsed.to_string(), *word);
        }
        for word in wrong
            .iter()
            .chain(&["", ":", "nonsense", "mean:", "edge:1"])
        {
            let error = word.parse::<T>().map(|value| value.to_string());
            let error = error.expect_err(word).to_string();
            assert!(error.contains("possible values are"), "{word}: {error}");
        }
    }

    #[test]
    fn options_are_written_as_the_words_that_are_read() {
        words::<Blend>(
            &[
                "average",
                "hann",
                "gaussian:0.25",
                "linear",
                "nnunet",
                "crop",
            ],
            &[
                "hann:1",
                "gaussian:",
                "gaussian:1,2",
                "gaussian:x",
                "custom",
            ],
        );
        words::<Reduce>(
            &[
                "mean",
                "softmax",
                "sigmoid",
                "argmax",
                "threshold:-0.5",
                "quantize:-1,2.5",
            ],
            &[
                "threshold",
                "threshold:1,2",
                "quantize:1",
                "argmax:1",
                "labels",
            ],
        );
        words::<Padding>(
            &["edge", "reflect", "wrap", "constant:-1000"],
            &["constant:", "constant:x", "wrap:0"],
        );
        words::<GridPlacement>(
            &["edge", "even", "even:4,8,8", "padded"],
            &["even:1", "even:1,2,3,4", "even:-1,1,1"],
        );
        words::<Accumulator>(&["float32", "float16", "bfloat16"], &["float64", "f32:1"]);
        words::<NonFinite>(&["refuse", "leave-out", "keep"], &["leave_out"]);
    }
}
