//! How overlapping predictions become voxels, as Python says it.

use std::str::FromStr;

use numpy::{PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use voxpatch::aggregator::{Accumulator, NonFinite, Skipped, Window};
use voxpatch::{AggregatorOptions, Blend, DType, Error, Reduce, Shape};

use crate::array;
use crate::errors::{invalid, raised};

/// How predictions of one output become voxels.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Blending<'py> {
    blend: Bound<'py, PyAny>,
    reduce: String,
    labels: Option<Vec<u32>>,
    accumulator: String,
    vote: Option<Vec<f32>>,
    non_finite: String,
    fill: f64,
    average_integers: bool,
    clip: bool,
    dtype: Option<Bound<'py, PyAny>>,
}

impl Blending<'_> {
    /// The aggregator's options, for predictions of patches of a shape.
    pub(crate) fn options(&self, patch: Shape) -> PyResult<AggregatorOptions> {
        let reduce = match (parsed::<Reduce>(&self.reduce)?, &self.labels) {
            (Reduce::Argmax, Some(labels)) => Reduce::Labels(labels.clone().into()),
            (reduce, _) => reduce,
        };
        let skipped = match &self.vote {
            None => Skipped::Renormalize,
            Some(values) => Skipped::Vote(values.clone()),
        };
        let blend = blend(&self.blend, patch)?;
        Ok(AggregatorOptions::new(blend, reduce)
            .with_accumulator(parsed::<Accumulator>(&self.accumulator)?)
            .with_skipped(skipped)
            .with_non_finite(parsed::<NonFinite>(&self.non_finite)?)
            .with_fill(self.fill)
            .with_average_integers(self.average_integers)
            .with_clip(self.clip))
    }

    /// The type that is stored, if one is asked for.
    pub(crate) fn dtype(&self) -> PyResult<Option<DType>> {
        self.dtype.as_ref().map(array::dtype).transpose()
    }
}

/// A window by its name, or the weights of a patch (z, y, x).
fn blend(given: &Bound<'_, PyAny>, patch: Shape) -> PyResult<Blend> {
    let Ok(name) = given.extract::<String>() else {
        return weights(given);
    };
    if name == "constant" {
        return Ok(Blend::Average);
    }
    if let Some(sigma) = name.strip_prefix("monai:").and_then(|n| n.parse().ok()) {
        let window = Window::monai(patch, sigma).map_err(|error| raised(&error))?;
        return Ok(Blend::Custom(window));
    }
    parsed(&name)
}

/// Parses an option that is written as a word.
fn parsed<T: FromStr<Err = Error>>(word: &str) -> PyResult<T> {
    word.parse().map_err(|error| raised(&error))
}

fn weights(given: &Bound<'_, PyAny>) -> PyResult<Blend> {
    let numpy = given.py().import("numpy")?;
    let array = numpy.call_method1("ascontiguousarray", (given, "float32"))?;
    let array = array.cast::<PyArrayDyn<f32>>()?.try_readonly()?;
    let shape: Vec<u64> = array.shape().iter().map(|&n| n as u64).collect();
    let [z, y, x] = shape[..] else {
        return Err(invalid(format!(
            "weights of shape {shape:?}: they have the axes z, y, x of a patch"
        )));
    };
    let values = array
        .as_slice()
        .map_err(|error| invalid(error.to_string()))?;
    let window = Window::new([z, y, x], values.to_vec()).map_err(|error| raised(&error))?;
    Ok(Blend::Custom(window))
}
