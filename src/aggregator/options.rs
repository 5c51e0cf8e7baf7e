//! What an aggregator does with predictions, and with those it does not get.

use super::reduce::Reduce;
use super::sums::Accumulator;
use super::window::{Blend, Weights};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::Grid;

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
    /// The output's value, converted to its type, where no patch votes.
    pub fill: f64,
}

impl AggregatorOptions {
    /// Sums in `f32`; skipped patches do not vote, NaN is an error, and voxels without a vote are 0.
    #[must_use]
    pub const fn new(blend: Blend, reduce: Reduce) -> Self {
        Self {
            blend,
            reduce,
            accumulator: Accumulator::F32,
            skipped: Skipped::Renormalise,
            non_finite: NonFinite::Refuse,
            fill: 0.0,
        }
    }
}

impl AggregatorOptions {
    /// Checks that predictions of `channels` on a grid can become voxels of type `output`.
    pub(super) fn check(&self, grid: &Grid, channels: u64, output: DType) -> Result<()> {
        self.reduce.check(channels, output)?;
        self.blend.check(grid.patch())?;
        let narrow = self.accumulator != Accumulator::F32 && self.blend != Blend::Crop;
        if narrow && !Weights::new(grid, &self.blend).are_shares() {
            return Err(Error::Setting {
                name: "an accumulator of",
                value: format!("{:?}", self.accumulator),
                problem: "the window is no product of 1-D windows, so its sums need F32".to_owned(),
            });
        }
        match &self.skipped {
            Skipped::Vote(values) if values.len() as u64 != channels => Err(Error::Setting {
                name: "a vote of",
                value: format!("{} values", values.len()),
                problem: format!("predictions have {channels} channels"),
            }),
            _ => Ok(()),
        }
    }
}

/// What a patch that is skipped means.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Skipped {
    /// The others vote alone; voxels that only skipped patches cover get the fill value.
    #[default]
    Renormalise,
    /// It votes for these values, one for each channel of the prediction.
    Vote(Vec<f32>),
}

/// What a prediction with NaN or infinity in it means.
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
