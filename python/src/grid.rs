//! Grids of patches, and what blends their predictions.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use numpy::PyArray;
use numpy::ndarray::Array2;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use voxpatch::aggregator::{Accumulator, NonFinite};
use voxpatch::training::Image;
use voxpatch::volume::create;
use voxpatch::{
    Aggregated, Aggregator, AggregatorOptions, Error, GridOptions, Layout, Padding, Region,
};

use crate::array;
use crate::errors::{invalid, raised};
use crate::loader::location;
use crate::subjects::padding_of;
use crate::volume::{Source, Volume};
use crate::wait::{detached, interruptible};
use crate::write::Storage;
use crate::{arguments, blending};

/// Where patches lie that cover a volume.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
#[derive(Debug)]
pub(crate) struct Grid {
    pub(crate) grid: voxpatch::Grid,
    padding: Padding,
}

#[pymethods]
impl Grid {
    /// For a volume of `shape` voxels (z, y, x). With `padding` the volume is padded by half the overlap at each
    /// face, and by whatever it is short of a patch.
    #[new]
    #[pyo3(signature = (shape, patch_size, patch_overlap, placement, padding))]
    fn new(
        shape: [u64; 3],
        patch_size: &Bound<'_, PyAny>,
        patch_overlap: &Bound<'_, PyAny>,
        placement: &str,
        padding: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let patch = arguments::lengths("patch_size", patch_size)?;
        let overlap = arguments::lengths("patch_overlap", patch_overlap)?;
        let padding = padding.map(padding_of).transpose()?;
        let options = GridOptions {
            placement: blending::placement(placement)?,
            margin: padding.map_or([0; 3], |_| overlap.map(|overlap| overlap / 2)),
            fit: padding.is_some(),
        };
        let grid = voxpatch::Grid::with_options(shape, patch, overlap, &options)
            .map_err(|error| raised(&error))?;
        Ok(Self {
            grid,
            padding: padding.unwrap_or(Padding::Edge),
        })
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.grid.len()).unwrap_or(usize::MAX)
    }

    /// First voxel and one past the last of each patch along z, y, x: (n, 6). Negative, or beyond the volume,
    /// where patches hang over its faces.
    fn locations<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let rows: Vec<i64> = self.grid.iter().flat_map(location).collect();
        let rows = Array2::from_shape_vec((rows.len() / 6, 6), rows)
            .map_err(|error| invalid(error.to_string()))?;
        Ok(PyArray::from_owned_array(py, rows).into_any())
    }

    /// The number of the patch that begins at a place (z, y, x).
    fn index(&self, start: [i64; 3]) -> PyResult<u64> {
        let axes = self.grid.axes();
        let mut index = 0;
        for a in self.grid.order() {
            let Ok(place) = axes[a].starts.binary_search(&start[a]) else {
                return Err(invalid(format!(
                    "no patch of the grid begins at {start:?} (z, y, x)"
                )));
            };
            index = index * axes[a].starts.len() as u64 + place as u64;
        }
        Ok(index)
    }

    /// The voxels of patch `index` of a volume, (c, z, y, x).
    fn read<'py>(
        &self,
        py: Python<'py>,
        volume: &Volume,
        index: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let region = self.region(index)?;
        let image = volume.image(py)?;
        let image = Image {
            padding: self.padding,
            ..(*image).clone()
        };
        let patch = detached(py, || image.read(region))?;
        array::from_patch(py, patch)
    }
}

impl Grid {
    fn region(&self, index: u64) -> PyResult<Region> {
        self.grid.get(index).ok_or_else(|| {
            invalid(format!(
                "patch {index}: the grid has {} patches",
                self.grid.len()
            ))
        })
    }
}

/// Blends predictions of the patches of a grid into a volume.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
#[derive(Debug)]
pub(crate) struct Blender {
    aggregator: Mutex<Option<Arc<Aggregator>>>,
    path: PathBuf,
}

#[pymethods]
impl Blender {
    /// `like` is the volume that is predicted, from which the output has its geometry; `options` says how it
    /// is stored, as in `write`.
    #[new]
    #[pyo3(signature = (grid, like, channels, dtype, overlap_mode, reduce, path, *, accumulator, non_finite, fill, options))]
    #[expect(clippy::too_many_arguments, reason = "the aggregator names them")]
    fn new(
        py: Python<'_>,
        grid: &Grid,
        like: &Volume,
        channels: u64,
        dtype: &Bound<'_, PyAny>,
        overlap_mode: &Bound<'_, PyAny>,
        reduce: &Bound<'_, PyAny>,
        path: PathBuf,
        accumulator: &str,
        non_finite: &str,
        fill: f64,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let storage = Storage::new(options)?;
        let blend = blending::blend(overlap_mode, grid.grid.patch())?;
        let reduce = blending::reduce(reduce)?;
        let predicted = array::dtype(dtype)?;
        let dtype = storage
            .dtype
            .unwrap_or_else(|| reduce.dtype(predicted, channels));
        let image = like.image(py)?;
        let layout = Layout::new(grid.grid.volume(), reduce.channels(channels), dtype)
            .with_geometry(image.volume.layout().geometry);
        let options = AggregatorOptions {
            accumulator: accumulator_of(accumulator)?,
            non_finite: non_finite_of(non_finite)?,
            fill,
            ..AggregatorOptions::new(blend, reduce)
        };
        let (grid, target) = (grid.grid.clone(), path.clone());
        let aggregator = detached(py, move || {
            let output = create(&target, &layout, &storage.create)?;
            Aggregator::new(grid, channels, options, output)
        })?;
        Ok(Self {
            aggregator: Mutex::new(Some(Arc::new(aggregator))),
            path,
        })
    }

    /// Adds the predictions, (b, c, z, y, x), of some patches of the grid.
    fn add(
        &self,
        py: Python<'_>,
        indices: Vec<u64>,
        predictions: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let aggregator = self.running()?;
        let patches = array::patches_of(predictions)?;
        if patches.len() != indices.len() {
            return Err(invalid(format!(
                "{} predictions for {} locations",
                patches.len(),
                indices.len()
            )));
        }
        interruptible(py, move |_| {
            for (index, patch) in indices.into_iter().zip(patches) {
                aggregator.add(index, patch)?;
            }
            Ok(())
        })
    }

    /// Finishes the output once every patch is in; what was done, and the output as a volume.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyDict>, Volume)> {
        let aggregator = self
            .aggregator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or_else(finished)?;
        let done = interruptible(py, move |_| match Arc::into_inner(aggregator) {
            Some(aggregator) => aggregator.finish(),
            None => Err(Error::Setting {
                name: "finishing",
                value: "an aggregator".to_owned(),
                problem: "another thread is adding patches to it".to_owned(),
            }),
        })?;
        let volume = Volume::of(Source::at(self.path.clone()))?;
        Ok((facts(py, &done)?, volume))
    }
}

impl Blender {
    fn running(&self) -> PyResult<Arc<Aggregator>> {
        self.aggregator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(finished)
    }
}

fn finished() -> PyErr {
    invalid("the output is finished: make another aggregator for another pass")
}

/// What was done, as a dictionary.
pub(crate) fn facts<'py>(py: Python<'py>, done: &Aggregated) -> PyResult<Bound<'py, PyDict>> {
    let told = PyDict::new(py);
    told.set_item("patches", done.patches)?;
    told.set_item("skipped", done.skipped)?;
    told.set_item("uncovered_voxels", done.uncovered_voxels)?;
    told.set_item("chunks_written", done.chunks_written)?;
    told.set_item("peak_live_bytes", done.peak_live_bytes)?;
    Ok(told)
}

pub(crate) fn accumulator_of(name: &str) -> PyResult<Accumulator> {
    Ok(match name {
        "float32" => Accumulator::F32,
        "float16" => Accumulator::F16,
        "bfloat16" => Accumulator::BF16,
        _ => {
            return Err(invalid(format!(
                "accumulator {name:?}: it is 'float32', 'float16' or 'bfloat16'"
            )));
        }
    })
}

pub(crate) fn non_finite_of(name: &str) -> PyResult<NonFinite> {
    Ok(match name {
        "refuse" => NonFinite::Refuse,
        "leave-out" => NonFinite::LeaveOut,
        "keep" => NonFinite::Keep,
        _ => {
            return Err(invalid(format!(
                "non_finite {name:?}: it is 'refuse', 'leave-out' or 'keep'"
            )));
        }
    })
}
