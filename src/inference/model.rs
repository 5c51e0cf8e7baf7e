//! Models: what turns a batch of patches into predictions.

use std::fmt;

use crate::dtype::DType;
use crate::error::Result;
use crate::patch::Patch;
use crate::region::Shape;
use crate::volume::Layout;

/// What becomes of a patch.
pub trait Model: fmt::Debug + Send + Sync {
    /// Which values the model wants.
    fn input(&self) -> Input {
        Input::Real
    }

    /// What tells this model from any other, so that a run is not gone on with by another model.
    fn id(&self) -> String {
        format!("{self:?}")
    }

    /// How many batches may be predicted at once, from as many threads; `None` for any number. A
    /// model with threads of its own takes 1.
    fn at_once(&self) -> Option<usize> {
        None
    }

    /// What comes out for patches of `patch` voxels (z, y, x) of a volume of this layout.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) if the model cannot work on such patches.
    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<Prediction>>;

    /// Predicts a batch of patches: for each output, a prediction of each patch, in order.
    ///
    /// # Errors
    ///
    /// Whatever goes wrong in the model.
    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>>;
}

/// The values that a model wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// As they are stored, in the stored type; the output keeps slope and intercept.
    Stored,
    /// Real values (slope and intercept applied) as f32.
    Real,
}

/// An output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// What the model calls it.
    pub name: String,
    /// Channels.
    pub channels: u64,
    /// The values' type.
    pub dtype: DType,
    /// Voxels of the input (z, y, x) that it lacks at each face of a patch, as where convolutions are not padded.
    pub halo: Shape,
    /// How many voxels of the input one of the output is long along each axis: 1, 2, 4...
    pub scale: u64,
}

impl Prediction {
    /// An output with a voxel for each voxel of the patch.
    #[must_use]
    pub fn new(channels: u64, dtype: DType) -> Self {
        Self {
            name: "prediction".to_owned(),
            channels,
            dtype,
            halo: [0; 3],
            scale: 1,
        }
    }
}

/// A function as a model.
pub struct FnModel<F> {
    outputs: Vec<Prediction>,
    at_once: Option<usize>,
    predict: F,
}

impl<F> FnModel<F>
where
    F: Fn(Vec<Patch>) -> Result<Vec<Vec<Patch>>> + Send + Sync,
{
    /// A function that gets real values and gives `outputs`, for each a prediction of each patch.
    /// It is called from several threads at once, unless [`at_once`](Self::at_once) says otherwise.
    pub const fn new(outputs: Vec<Prediction>, predict: F) -> Self {
        Self {
            outputs,
            at_once: None,
            predict,
        }
    }

    /// Called from no more than so many threads at once.
    #[must_use]
    pub fn at_once(mut self, calls: usize) -> Self {
        self.at_once = Some(calls.max(1));
        self
    }
}

impl<F> fmt::Debug for FnModel<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FnModel")
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

impl<F> Model for FnModel<F>
where
    F: Fn(Vec<Patch>) -> Result<Vec<Vec<Patch>>> + Send + Sync,
{
    fn at_once(&self) -> Option<usize> {
        self.at_once
    }

    fn outputs(&self, _input: &Layout, _patch: Shape) -> Result<Vec<Prediction>> {
        Ok(self.outputs.clone())
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        (self.predict)(batch)
    }
}
