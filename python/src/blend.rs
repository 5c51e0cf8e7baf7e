//! How overlapping predictions become voxels, as Python says it.

use std::str::FromStr;

use numpy::{PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use voxpatch::aggregator::{Accumulator, NonFinite, Skipped, Window};
use voxpatch::{AggregatorOptions, Blend, DType, Reduce, Shape};

use crate::arguments::chosen;
use crate::array;
use crate::errors::{invalid, raised};

const ACCUMULATORS: [(&str, Accumulator); 3] = [
    ("float32", Accumulator::F32),
    ("float16", Accumulator::F16),
    ("bfloat16", Accumulator::BF16),
];
const NON_FINITE: [(&str, NonFinite); 3] = [
    ("refuse", NonFinite::Refuse),
    ("leave-out", NonFinite::LeaveOut),
    ("keep", NonFinite::Keep),
];

/// How predictions of one output become voxels.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Blending<'py> {
    overlap_mode: Bound<'py, PyAny>,
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
        let reduce = match (reduce(&self.reduce)?, &self.labels) {
            (Reduce::Argmax, Some(labels)) => Reduce::Labels(labels.clone().into()),
            (reduce, _) => reduce,
        };
        Ok(AggregatorOptions {
            accumulator: chosen("accumulator", &self.accumulator, &ACCUMULATORS)?,
            skipped: match &self.vote {
                None => Skipped::Renormalize,
                Some(values) => Skipped::Vote(values.clone()),
            },
            non_finite: chosen("non_finite", &self.non_finite, &NON_FINITE)?,
            fill: self.fill,
            average_integers: self.average_integers,
            clip: self.clip,
            ..AggregatorOptions::new(blend(&self.overlap_mode, patch)?, reduce)
        })
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
    let window = match &*name {
        "crop" => Blend::Crop,
        "average" | "constant" => Blend::Average,
        "hann" => Blend::Hann,
        "gaussian" => Blend::GAUSSIAN,
        "linear" => Blend::Linear,
        "nnunet" => Blend::NnUnet,
        other => {
            let sigma = |name: &str| other.strip_prefix(name)?.parse::<f64>().ok();
            if let Some(sigma) = sigma("gaussian:") {
                Blend::Gaussian { sigma }
            } else if let Some(sigma) = sigma("monai:") {
                Blend::Custom(Window::monai(patch, sigma).map_err(|error| raised(&error))?)
            } else {
                return Err(invalid(format!(
                    "Overlap mode must be \"crop\", \"average\", \"hann\", \"gaussian\", \"linear\", \"nnunet\", or \
                     an array of weights, but {other:?} was passed"
                )));
            }
        }
    };
    Ok(window)
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

fn reduce(name: &str) -> PyResult<Reduce> {
    let numbers = |text: &str| -> Option<Vec<f32>> {
        text.split(',')
            .map(|n| f32::from_str(n.trim()).ok())
            .collect()
    };
    let found = match name.split_once(':') {
        None => match name {
            "mean" => Some(Reduce::Mean),
            "softmax" => Some(Reduce::Softmax),
            "sigmoid" => Some(Reduce::Sigmoid),
            "argmax" => Some(Reduce::Argmax),
            _ => None,
        },
        Some(("threshold", value)) => match numbers(value).as_deref() {
            Some(&[value]) => Some(Reduce::Threshold(value)),
            _ => None,
        },
        Some(("quantize", range)) => match numbers(range).as_deref() {
            Some(&[low, high]) => Some(Reduce::Quantize { low, high }),
            _ => None,
        },
        Some(_) => None,
    };
    found.ok_or_else(|| {
        invalid(format!(
            "reduce {name:?}: it is 'mean', 'softmax', 'sigmoid', 'argmax', 'threshold:VALUE' or \
             'quantize:LOW,HIGH'"
        ))
    })
}
