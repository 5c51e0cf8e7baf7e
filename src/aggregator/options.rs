//! What an aggregator does with predictions, and with those it does not get.

use super::reduce::Reduce;
use super::sums::{Accumulator, TOO_LARGE_FOR_F16, too_large_for_f32};
use super::window::Blend;
use crate::dtype::{DType, loss, text};
use crate::error::{Error, Result};
use crate::grid::{Axis, Grid};
use crate::patch::Patch;

/// How predictions become an output.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregatorOptions {
    /// How overlapping patches are weighed.
    pub blend: Blend,
    /// What becomes of blended voxels.
    pub reduce: Reduce,
    /// The type in which weighted values are summed up.
    pub accumulator: Accumulator,
    /// What a patch that is skipped means.
    pub skipped: Skipped,
    /// What a prediction with NaN or infinity means.
    pub non_finite: NonFinite,
    /// The output's value where no patch votes. It must exist in the output's type; a float is rounded to it.
    pub fill: f64,
    /// A promise that every patch votes: none is skipped without a vote, and none is missing in the end.
    ///
    /// Without it, sums are in `f32` whatever the accumulator, because a patch that votes alone may have tiny shares;
    /// and [`Blend::Crop`] keeps what stands in for patches that have not come yet. A
    /// [plan](crate::inference::Plan) sets it.
    pub all_vote: bool,
    /// Whether integer predictions are quantities, such as HU, that may be averaged. If not, they are
    /// class numbers, and patches that overlap need [`Blend::Crop`] or a reduction.
    pub average_integers: bool,
    /// Whether values beyond the range of the output's type become its nearest, and are counted. If not, the first one
    /// is an [`Error::OutputRange`].
    pub clip: bool,
}

impl AggregatorOptions {
    /// Sums in `f32`; skipped patches do not vote, NaN is an error, and voxels without a vote are 0.
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
        }
    }
}

impl AggregatorOptions {
    /// Whether every patch votes, those included that are not finite.
    pub(super) fn all_vote(&self) -> bool {
        self.all_vote && self.non_finite != NonFinite::LeaveOut
    }

    /// The type of sums.
    pub(super) fn sums(&self) -> Accumulator {
        if self.all_vote() {
            self.accumulator
        } else {
            Accumulator::F32
        }
    }

    /// Whether weights are added up by their logarithms.
    pub(super) fn adds_by_logs(&self, grid: &Grid) -> bool {
        !self.all_vote() && self.blend.is_uneven(grid.patch())
    }

    /// Values of this size or more become infinite on the way to an output of type `output`, although they are
    /// finite; infinity if none do.
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
        match &self.skipped {
            Skipped::Vote(values) => self.check_vote(values, channels, output),
            Skipped::Renormalize => Ok(()),
        }
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
            // A mean of votes may lie between two whole numbers, but not beyond the first or the last.
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
    /// Checks that the mean of predictions of a type has a meaning.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if integers, which are taken for class numbers, would be averaged.
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
            problem: "integers are taken for class numbers, and a mean of those is another class: blend by `crop`, or \
                      predict a float channel for each class and reduce by argmax"
                .to_owned(),
        })
    }

    /// Checks that a prediction's values can be summed up in f32.
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

/// What a patch that is skipped means.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Skipped {
    /// The others vote alone; voxels that only skipped patches cover get the fill value.
    #[default]
    Renormalize,
    /// It votes for these values, one for each channel of the prediction. Of an output of whole numbers, they must
    /// lie in its range, and be whole themselves under [`Blend::Crop`].
    Vote(Vec<f32>),
}

/// What a prediction means that has NaN or infinity in it, or a number that becomes infinite in the type of the
/// sums or of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// An error that names the patch and the voxel.
    #[default]
    Refuse,
    /// The patch does not vote.
    LeaveOut,
    /// It is blended like any other value, into the voxels that the patch covers.
    Keep,
}
