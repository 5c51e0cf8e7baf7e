//! Models, which turn batches of patches into predictions.

use std::fmt;
use std::sync::Arc;

use ndarray::{Array4, ArrayView4};

use super::blender::Blender;
use super::pool::PatchPool;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::patch::Patch;
use crate::region::Shape;
use crate::volume::Layout;

/// A model that predicts patches.
pub trait Model: fmt::Debug + Send + Sync {
    /// Returns the type of the patches that the model takes.
    fn input(&self) -> InputValues {
        InputValues::F32
    }

    /// Identifies the model. A resumed run, and every part of a run, must have a model with the same id as the
    /// run that began the output: otherwise one output would be made by two models.
    ///
    /// An id covers everything that predictions depend on, weights above all: a checksum or a version that changes with
    /// them. It is the same in every process. A model without one can only be used for runs that are neither resumed
    /// nor split into parts.
    ///
    /// # Errors
    ///
    /// [`Error::NoModelId`] if the model has none, which is the default.
    fn id(&self) -> Result<String> {
        Err(Error::NoModelId {
            model: format!("{self:?}"),
        })
    }

    /// Returns the most batches that may be predicted at once, each from its own thread; `None` for any number. A
    /// model that runs its own threads returns 1.
    fn max_calls(&self) -> Option<usize> {
        None
    }

    /// Returns the outputs for patches of `patch` voxels (z, y, x) of a volume of this layout.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the model cannot work on such patches.
    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<OutputSpec>>;

    /// Predicts a batch of patches: for each output, a prediction of each patch, in order.
    ///
    /// # Errors
    ///
    /// Those of the model.
    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>>;

    /// Does the same as [`predict`](Self::predict), with a pool of patches. A run calls this function.
    ///
    /// A model that takes the patches for its predictions from the pool, and gives it the patches that it no longer
    /// needs, saves the allocations. One that takes no predictions from it calls [`PatchPool::make_room`] first, as the
    /// default does.
    ///
    /// # Errors
    ///
    /// As [`predict`](Self::predict).
    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        pool.make_room();
        self.predict(batch)
    }

    /// Returns `true` if each voxel of a prediction depends on the same voxel of the patch alone: a threshold, a function
    /// of values. Its outputs have no halo and a scale of 1.
    ///
    /// A run may then call it with boxes of patches, of any shape, and only with those that it needs: small ones are still
    /// in the processor's cache when they are blended.
    fn is_pointwise(&self) -> bool {
        false
    }

    /// Returns itself as a model that blends its predictions, if it does. A run then calls nothing else to predict.
    fn blender(&self) -> Option<&dyn Blender> {
        None
    }
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

impl InputValues {
    /// Returns the bytes of a voxel, with all its channels, as the model takes it from a volume of this layout.
    pub(super) fn voxel_bytes(self, input: &Layout) -> u64 {
        let dtype = match self {
            Self::Native => input.dtype,
            Self::F32 => DType::F32,
        };
        input.channels * dtype.size() as u64
    }
}

/// The description of one output of a model.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// Its name in the model.
    pub name: String,
    /// Number of channels.
    pub channels: u64,
    /// Its voxel type.
    pub dtype: DType,
    /// Whether integers are quantities, such as HU, that may be averaged. If `false`, they are class numbers, whose
    /// mean has no meaning.
    pub average_integers: bool,
    /// Input voxels (z, y, x) cropped from each face of a patch, e.g. by unpadded convolutions.
    pub halo: Shape,
    /// Input voxels per output voxel along each axis: 1, 2, 4, ...
    pub scale: u64,
}

impl OutputSpec {
    /// Creates an output with one voxel per voxel of the patch.
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

    /// Sets the name.
    #[must_use]
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// Sets whether integers are quantities, which may be averaged.
    #[must_use]
    pub fn with_average_integers(self, average_integers: bool) -> Self {
        Self {
            average_integers,
            ..self
        }
    }

    /// Sets the voxels cropped from each face.
    #[must_use]
    pub fn with_halo(self, halo: Shape) -> Self {
        Self { halo, ..self }
    }

    /// Sets the input voxels per output voxel along each axis.
    #[must_use]
    pub fn with_scale(self, scale: u64) -> Self {
        Self { scale, ..self }
    }
}

/// A function of arrays as a model with one output.
///
/// The function gets the real values of a patch (c, z, y, x) and returns its prediction, with the channels and
/// shape of the [`OutputSpec`]. It is called from several threads at once.
///
/// ```
/// use voxpatch::inference::{FnModel, OutputSpec};
/// use voxpatch::ndarray::ArrayView4;
/// use voxpatch::DType;
///
/// let bone = FnModel::new(OutputSpec::new(1, DType::F32), |hu: ArrayView4<'_, f32>| {
///     hu.mapv(|hu| f32::from(hu > 300.0))
/// });
/// ```
pub struct FnModel<F> {
    output: OutputSpec,
    id: Option<String>,
    predict: F,
}

impl<F> FnModel<F>
where
    F: Fn(ArrayView4<'_, f32>) -> Array4<f32> + Send + Sync,
{
    /// Wraps a function that predicts one patch. For runs that are resumed or split into parts it needs an
    /// [id](Self::with_id).
    pub const fn new(output: OutputSpec, predict: F) -> Self {
        Self {
            output,
            id: None,
            predict,
        }
    }

    /// Identifies the function: a name that changes with anything its predictions depend on, see [`Model::id`].
    /// Nothing else distinguishes it from another function with the same output.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }
}

impl<F> fmt::Debug for FnModel<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FnModel")
            .field("output", &self.output)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<F> Model for FnModel<F>
where
    F: Fn(ArrayView4<'_, f32>) -> Array4<f32> + Send + Sync,
{
    fn id(&self) -> Result<String> {
        self.id.clone().ok_or_else(no_id)
    }

    fn outputs(&self, _input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
        Ok(vec![self.output.clone()])
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.predict_pooled(batch, &PatchPool::default())
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        pool.make_room();
        let predict = |patch: Patch| {
            let array = (self.predict)(patch.view()?);
            let prediction = Patch::from_array(patch.region().start, array)?;
            pool.give(patch);
            pool.convert(prediction, self.output.dtype)
        };
        Ok(vec![batch.into_iter().map(predict).collect::<Result<_>>()?])
    }
}

fn no_id() -> Error {
    Error::NoModelId {
        model: "a function".to_owned(),
    }
}

/// A function of batches as a model with any number of outputs.
pub struct BatchModel<F> {
    outputs: Vec<OutputSpec>,
    id: Option<String>,
    max_calls: Option<usize>,
    predict: F,
}

impl<F> BatchModel<F>
where
    F: Fn(Vec<Patch>) -> Result<Vec<Vec<Patch>>> + Send + Sync,
{
    /// Wraps a function that gets a batch of real values and returns, for each of `outputs`, a prediction of each
    /// patch. It is called from several threads at once, unless [`with_max_calls`](Self::with_max_calls) limits that. For runs
    /// that are resumed or split into parts it needs an [id](Self::with_id).
    pub const fn new(outputs: Vec<OutputSpec>, predict: F) -> Self {
        Self {
            outputs,
            id: None,
            max_calls: None,
            predict,
        }
    }

    /// Identifies the function, as [`FnModel::with_id`] does.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the most calls that may run at once.
    #[must_use]
    pub fn with_max_calls(mut self, calls: usize) -> Self {
        self.max_calls = Some(calls.max(1));
        self
    }
}

impl<F> fmt::Debug for BatchModel<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchModel")
            .field("outputs", &self.outputs)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<F> Model for BatchModel<F>
where
    F: Fn(Vec<Patch>) -> Result<Vec<Vec<Patch>>> + Send + Sync,
{
    fn id(&self) -> Result<String> {
        self.id.clone().ok_or_else(no_id)
    }

    fn max_calls(&self) -> Option<usize> {
        self.max_calls
    }

    fn outputs(&self, _input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
        Ok(self.outputs.clone())
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        (self.predict)(batch)
    }
}

/// A single output of a model.
#[derive(Debug)]
pub struct SelectOutput {
    model: Arc<dyn Model>,
    /// Its name; `None` for the first.
    name: Option<String>,
}

impl SelectOutput {
    /// Selects the output called `name`, or the first.
    #[must_use]
    pub fn new(model: Arc<dyn Model>, name: Option<String>) -> Self {
        Self { model, name }
    }

    /// Returns its index in `outputs`.
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
                format!("the model's outputs are {}", names.join(", "))
            },
        })
    }
}

impl Model for SelectOutput {
    fn input(&self) -> InputValues {
        self.model.input()
    }

    fn id(&self) -> Result<String> {
        self.model.id()
    }

    fn max_calls(&self) -> Option<usize> {
        self.model.max_calls()
    }

    fn is_pointwise(&self) -> bool {
        self.model.is_pointwise()
    }

    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<OutputSpec>> {
        let mut outputs = self.model.outputs(input, patch)?;
        let place = self.place(&outputs)?;
        Ok(vec![outputs.swap_remove(place)])
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.predict_pooled(batch, &PatchPool::default())
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let Some(first) = batch.first() else {
            return Ok(vec![batch]);
        };
        let layout = Layout::new(first.shape(), first.channels(), first.dtype());
        let outputs = match &self.name {
            Some(_) => self.model.outputs(&layout, first.shape())?,
            None => Vec::new(),
        };
        let place = self.place(&outputs)?;
        let mut all = self.model.predict_pooled(batch, pool)?;
        if place < all.len() {
            let selected = all.swap_remove(place);
            all.into_iter().flatten().for_each(|other| pool.give(other));
            return Ok(vec![selected]);
        }
        Ok(Vec::new())
    }
}
