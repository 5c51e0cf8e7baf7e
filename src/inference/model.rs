//! Models: what turns a batch of patches into a batch of predictions.

use std::fmt::Debug;

use crate::dtype::DType;
use crate::error::Result;
use crate::patch::Patch;
use crate::volume::Layout;

/// What becomes of a patch. Called from several threads at once.
pub trait Model: Debug + Send + Sync {
    /// Which values the model wants.
    fn input(&self) -> Input {
        Input::Real
    }

    /// What comes out for a volume of this layout.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) if the model cannot work on such a volume.
    fn prediction(&self, input: &Layout) -> Result<Prediction>;

    /// Predicts a batch of patches, in order; each prediction has its patch's place and shape.
    ///
    /// # Errors
    ///
    /// Whatever goes wrong in the model.
    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Patch>>;
}

/// The values that a model wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// As they are stored, in the stored type; the output keeps slope and intercept.
    Stored,
    /// Real values (slope and intercept applied) as f32.
    Real,
}

/// What a model gives for each voxel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// Channels.
    pub channels: u64,
    /// The values' type.
    pub dtype: DType,
}
