//! The unfinished blocks of an output, for the Python half that adds predictions up on their device.

use std::sync::Arc;

use numpy::PyArray2;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use voxpatch::Reduce;
use voxpatch::aggregator::{BlockEnd, BlockPart, BlockWeights, PatchVote, Skipped};

use crate::errors::raised;

/// The unfinished blocks of an output.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
#[derive(Debug)]
pub(crate) struct Frontier(pub(crate) Arc<voxpatch::aggregator::Frontier>);

#[pymethods]
impl Frontier {
    /// Channels of predictions.
    #[getter]
    fn channels(&self) -> u64 {
        self.0.channels()
    }

    /// Voxels of a prediction along z, y, x.
    #[getter]
    fn patch(&self) -> (u64, u64, u64) {
        self.0.patch().into()
    }

    /// How predictions become voxels: words, numbers and the type of the output.
    fn options<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (told, options) = (PyDict::new(py), self.0.options());
        let labels = match &options.reduce {
            Reduce::Labels(table) => Some(table.to_vec()),
            _ => None,
        };
        let reduce = match &options.reduce {
            Reduce::Labels(_) => "argmax".to_owned(),
            other => other.to_string(),
        };
        let (word, numbers) = reduce.split_once(':').unwrap_or((&reduce, ""));
        let numbers: Vec<f32> = numbers.split(',').filter_map(|n| n.parse().ok()).collect();
        told.set_item("reduce", word)?;
        told.set_item("numbers", numbers)?;
        told.set_item("labels", labels)?;
        told.set_item("accumulator", self.0.accumulator().to_string())?;
        told.set_item("non_finite", options.non_finite.to_string())?;
        told.set_item("too_large", self.0.too_large())?;
        told.set_item("dtype", self.0.output_dtype().name())?;
        let vote = match &options.skipped {
            Skipped::Vote(values) => Some(values.clone()),
            Skipped::Renormalize => None,
        };
        told.set_item("vote", vote)?;
        Ok(told)
    }

    /// Weights of patches: arrays (starts, voxels) along z, y, x; the array (1, voxels) of a window that is not a product,
    /// row by row; or None where voxels are passed on.
    fn weights<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let rows = |rows: &[Vec<f32>]| PyArray2::from_vec2(py, rows);
        Ok(match self.0.weights() {
            BlockWeights::None => None,
            BlockWeights::Factors([z, y, x]) => {
                Some(PyList::new(py, [rows(z)?, rows(y)?, rows(x)?])?)
            }
            BlockWeights::Window(window) => {
                Some(PyList::new(py, [rows(&[window.weights().to_vec()])?])?)
            }
        })
    }

    /// Add a patch by a word, "predicted", "skipped" or "left-out". Return its place along z, y, x, and for each block: its
    /// number, its shape, the common voxels, whether the patch adds to it, whether it is fresh, whether it is final, and
    /// if so, whether it has values, and the parts by whose weights it is divided.
    fn add<'py>(
        &self,
        py: Python<'py>,
        index: u64,
        vote: &str,
    ) -> PyResult<([usize; 3], Vec<Bound<'py, PyTuple>>)> {
        let vote = match vote {
            "predicted" => PatchVote::Prediction,
            "skipped" => PatchVote::Skip,
            _ => PatchVote::LeaveOut,
        };
        let (place, steps) = self.0.add(index, vote).map_err(|error| raised(&error))?;
        let part = |part: &BlockPart| (part.place, part.to, part.from, part.shape);
        let told = steps.iter().map(|step| {
            let (is_final, has_values, parts) = match &step.end {
                None => (false, true, None),
                Some(BlockEnd::Empty) => (true, false, None),
                Some(BlockEnd::Sums) => (true, true, None),
                Some(BlockEnd::Divide(parts)) => {
                    (true, true, Some(parts.iter().map(part).collect::<Vec<_>>()))
                }
            };
            let step = (
                step.block,
                step.region.shape,
                part(&step.common),
                step.votes,
                step.is_fresh,
                is_final,
                has_values,
                parts,
            );
            step.into_pyobject(py)
        });
        let told = told.collect::<PyResult<_>>()?;
        Ok((place, told))
    }

    /// Raise the error of a prediction whose first value that is not finite is `value` at `at` (c, z, y, x).
    fn refuse(&self, index: u64, at: [u64; 4], value: f64) -> PyResult<()> {
        let region = self.0.grid().get(index);
        let region = region.ok_or_else(|| crate::errors::invalid(format!("no patch {index}")))?;
        Err(raised(&voxpatch::Error::NotFinite {
            index,
            region,
            value,
            at,
        }))
    }
}
