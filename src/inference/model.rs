//! Models: what turns a batch of patches into predictions.

use std::fmt;
use std::sync::Arc;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::patch::Patch;
use crate::region::Shape;
use crate::volume::Layout;

/// What becomes of a patch.
pub trait Model: fmt::Debug + Send + Sync {
    /// Returns the type of the patches that the model takes.
    fn input(&self) -> InputValues {
        InputValues::F32
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
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the model cannot work on such patches.
    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<OutputSpec>>;

    /// Predicts a batch of patches: for each output, a prediction of each patch, in order.
    ///
    /// # Errors
    ///
    /// Whatever goes wrong in the model.
    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>>;
}

/// The type of the patches that a model takes. Their values are those of the volume: real ones, unless it was
/// opened for stored ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputValues {
    /// The volume's own type.
    Native,
    /// `float32`.
    F32,
}

/// An output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// What the model calls it.
    pub name: String,
    /// Channels.
    pub channels: u64,
    /// The values' type.
    pub dtype: DType,
    /// Whether integers are quantities, such as HU, that may be averaged. If not, they are class
    /// numbers, whose mean has no meaning.
    pub average_integers: bool,
    /// Voxels of the input (z, y, x) that it lacks at each face of a patch, as where convolutions are not padded.
    pub halo: Shape,
    /// How many voxels of the input one of the output is long along each axis: 1, 2, 4...
    pub scale: u64,
}

impl OutputSpec {
    /// An output with a voxel for each voxel of the patch.
    #[must_use]
    pub fn new(channels: u64, dtype: DType) -> Self {
        Self {
            name: "prediction".to_owned(),
            channels,
            dtype,
            average_integers: false,
            halo: [0; 3],
            scale: 1,
        }
    }
}

/// A function as a model.
pub struct FnModel<F> {
    outputs: Vec<OutputSpec>,
    at_once: Option<usize>,
    predict: F,
}

impl<F> FnModel<F>
where
    F: Fn(Vec<Patch>) -> Result<Vec<Vec<Patch>>> + Send + Sync,
{
    /// A function that gets real values and gives `outputs`, for each a prediction of each patch.
    /// It is called from several threads at once, unless [`at_once`](Self::at_once) says otherwise.
    pub const fn new(outputs: Vec<OutputSpec>, predict: F) -> Self {
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

    fn outputs(&self, _input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
        Ok(self.outputs.clone())
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        (self.predict)(batch)
    }
}

/// One output of a model that may have several.
#[derive(Debug)]
pub struct SelectOutput {
    model: Arc<dyn Model>,
    /// Its name; the first if not given.
    name: Option<String>,
}

impl SelectOutput {
    /// The output called `name`, or the first.
    #[must_use]
    pub fn new(model: Arc<dyn Model>, name: Option<String>) -> Self {
        Self { model, name }
    }

    /// Its place among `outputs`.
    fn place(&self, outputs: &[OutputSpec]) -> Result<usize> {
        let Some(name) = &self.name else {
            return Ok(0);
        };
        let found = outputs.iter().position(|output| output.name == *name);
        found.ok_or_else(|| Error::InvalidArgument {
            argument: "output",
            value: name.clone(),
            problem: {
                let names: Vec<&str> = outputs.iter().map(|out| out.name.as_str()).collect();
                format!("the model gives {}", names.join(", "))
            },
        })
    }
}

impl Model for SelectOutput {
    fn input(&self) -> InputValues {
        self.model.input()
    }

    fn id(&self) -> String {
        self.model.id()
    }

    fn at_once(&self) -> Option<usize> {
        self.model.at_once()
    }

    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<OutputSpec>> {
        let mut outputs = self.model.outputs(input, patch)?;
        let place = self.place(&outputs)?;
        Ok(vec![outputs.swap_remove(place)])
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        let Some(first) = batch.first() else {
            return Ok(vec![batch]);
        };
        let layout = Layout::new(first.shape(), first.channels(), first.dtype());
        let outputs = match &self.name {
            Some(_) => self.model.outputs(&layout, first.shape())?,
            None => Vec::new(),
        };
        let place = self.place(&outputs)?;
        let mut all = self.model.predict(batch)?;
        if place < all.len() {
            return Ok(vec![all.swap_remove(place)]);
        }
        Ok(Vec::new())
    }
}
