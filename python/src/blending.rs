//! How patches are placed and blended, as Python says it.

use pyo3::prelude::*;
use voxpatch::aggregator::Window;
use voxpatch::{Blend, Placement, Reduce, Shape};

use crate::errors::{invalid, raised};

/// `"crop"`, `"average"` (also MONAI's `"constant"`), `"hann"`, `"gaussian"` (a deviation of 1/8 of the patch, or
/// `"gaussian:SIGMA"`), `"linear"`, `"nnunet"`, `"monai"` (its Gaussian with its floor), or an array of
/// weights.
pub(crate) fn blend(given: &Bound<'_, PyAny>, patch: Shape) -> PyResult<Blend> {
    let Ok(name) = given.extract::<String>() else {
        let numpy = given.py().import("numpy")?;
        let array = numpy.call_method1("ascontiguousarray", (given, "float32"))?;
        let shape: Vec<u64> = array.getattr("shape")?.extract()?;
        if shape != patch {
            return Err(invalid(format!(
                "weights of shape {shape:?} for patches of {patch:?}: give one for each voxel of a patch"
            )));
        }
        let weights: Vec<f32> = array.call_method0("ravel")?.extract()?;
        let window = Window::new(patch, weights).map_err(|error| raised(&error))?;
        return Ok(Blend::Custom(window));
    };
    let sigma = name
        .strip_prefix("gaussian:")
        .and_then(|sigma| sigma.parse().ok())
        .filter(|&sigma: &f64| sigma > 0.0);
    Ok(match name.as_str() {
        "crop" => Blend::Crop,
        "average" | "constant" => Blend::Average,
        "hann" => Blend::Hann,
        "gaussian" => Blend::Gaussian { sigma: 0.125 },
        "linear" => Blend::Linear,
        "nnunet" => Blend::NnUnet,
        "monai" => Blend::Custom(Window::monai(patch, 0.125).map_err(|error| raised(&error))?),
        _ => match sigma {
            Some(sigma) => Blend::Gaussian { sigma },
            None => {
                return Err(invalid(format!(
                    "overlap_mode {name:?}: it is 'crop', 'average', 'hann', 'gaussian', 'gaussian:SIGMA', 'linear', \
                     'nnunet', 'monai', or an array of weights"
                )));
            }
        },
    })
}

/// `"mean"`, `"softmax"`, `"sigmoid"`, `"argmax"`, `"threshold:VALUE"`, `"quantise:LOW,HIGH"`, or a list with
/// the label of each class, which is argmax.
pub(crate) fn reduce(given: &Bound<'_, PyAny>) -> PyResult<Reduce> {
    let Ok(name) = given.extract::<String>() else {
        let labels: Vec<u32> = given.extract().map_err(|_| {
            invalid(format!(
                "reduce {given}: give a name, or the label of each class"
            ))
        })?;
        return Ok(Reduce::Labels(labels.into()));
    };
    let numbers = |text: &str| -> Option<Vec<f32>> {
        text.split(',').map(|n| n.trim().parse().ok()).collect()
    };
    let (kind, values) = name.split_once(':').unwrap_or((&name, ""));
    Ok(match (kind, numbers(values).as_deref()) {
        ("mean", None) => Reduce::Mean,
        ("softmax", None) => Reduce::Softmax,
        ("sigmoid", None) => Reduce::Sigmoid,
        ("argmax", None) => Reduce::Argmax,
        ("threshold", Some(&[value])) => Reduce::Threshold(value),
        ("quantise", Some(&[low, high])) => Reduce::Quantise { low, high },
        _ => {
            return Err(invalid(format!(
                "reduce {name:?}: it is 'mean', 'softmax', 'sigmoid', 'argmax', 'threshold:VALUE', \
                 'quantise:LOW,HIGH', or the label of each class"
            )));
        }
    })
}

/// Where patches start.
pub(crate) fn placement(name: &str) -> PyResult<Placement> {
    Ok(match name {
        "edge" => Placement::Edge,
        "even" => Placement::Even,
        "padded" => Placement::Padded,
        _ => {
            return Err(invalid(format!(
                "placement {name:?}: it is 'edge', 'even' or 'padded'"
            )));
        }
    })
}
