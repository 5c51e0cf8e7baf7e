//! Aggregators: predictions of the patches of a grid become one volume, in memory or on disk.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use voxpatch::{Layout, MemoryVolume, Patch, Region, Result, VolumeMut};

use crate::array;
use crate::blend::Blending;
use crate::errors::{invalid, raised};
use crate::grid::Grid;
use crate::volume::{Source, Volume};
use crate::wait::{detached, interruptible};
use crate::write::Storage;

/// An output in memory, which can be read once it is finished.
#[derive(Debug)]
struct Held(Arc<MemoryVolume>);

impl VolumeMut for Held {
    fn layout(&self) -> &Layout {
        VolumeMut::layout(&*self.0)
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        self.0.write_channels(channels, region, voxels)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Where the output goes.
#[derive(Clone, Debug)]
enum Goal {
    Memory(Arc<MemoryVolume>),
    Path(Box<Source>),
}

/// An aggregator of the predictions of a grid's patches into one volume.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
#[derive(Debug)]
pub(crate) struct Aggregator {
    grid: voxpatch::Grid,
    channels: u64,
    goal: Goal,
    running: Mutex<Option<Arc<voxpatch::Aggregator>>>,
}

#[pymethods]
impl Aggregator {
    /// Blends predictions of `channels` channels, whose values have the type `prediction`, at the places
    /// of a grid, into memory or the volume at `output`; `like` is the volume whose spacing and affine it gets.
    #[new]
    #[pyo3(signature = (grid, channels, prediction, blending, output, like, scale, storage))]
    #[expect(
        clippy::too_many_arguments,
        clippy::needless_pass_by_value,
        reason = "only the Python half calls it"
    )]
    fn new(
        py: Python<'_>,
        grid: &Grid,
        channels: u64,
        prediction: &Bound<'_, PyAny>,
        blending: Blending<'_>,
        output: Option<PathBuf>,
        like: Option<&Volume>,
        scale: f64,
        storage: &Bound<'_, PyDict>,
    ) -> PyResult<Self> {
        let grid = grid.0.clone();
        let options = blending.options(grid.patch())?;
        let prediction = array::dtype(prediction)?;
        options
            .check_type(&grid, prediction)
            .map_err(|error| raised(&error))?;
        let dtype = match blending.dtype()? {
            Some(dtype) => dtype,
            None => options.reduce.dtype(prediction, channels),
        };
        let storage = Storage::new(storage)?;
        let mut layout = Layout::new(grid.volume(), options.reduce.channels(channels), dtype);
        if let Some(like) = like {
            let image = like.image(py)?;
            let image = image.volume.layout();
            layout.geometry = image.geometry.coarsened([scale; 3]);
            layout.axes.unit.clone_from(&image.axes.unit);
        }
        let (goal, store): (Goal, Box<dyn VolumeMut>) = match output {
            None => {
                let memory = Arc::new(MemoryVolume::zeros(layout).map_err(|e| raised(&e))?);
                (Goal::Memory(Arc::clone(&memory)), Box::new(Held(memory)))
            }
            Some(path) => {
                let store = detached(py, || {
                    voxpatch::volume::create(&path, &layout, &storage.create)
                })?;
                let options = storage.create.storage_options;
                (Goal::Path(Box::new(Source::in_store(path, options))), store)
            }
        };
        let running = {
            let grid = grid.clone();
            detached(py, || {
                voxpatch::Aggregator::new(grid, channels, options, store)
            })?
        };
        Ok(Self {
            grid,
            channels,
            goal,
            running: Mutex::new(Some(Arc::new(running))),
        })
    }

    /// Add the predictions (B, C, z, y, x) of the patches with these numbers, or none of them.
    #[expect(clippy::needless_pass_by_value, reason = "made for this call")]
    fn add(&self, py: Python<'_>, numbers: Vec<u64>, batch: &Bound<'_, PyAny>) -> PyResult<()> {
        let running = self.running()?;
        let mut patches = Vec::with_capacity(numbers.len());
        for (place, &number) in numbers.iter().enumerate() {
            let (channels, shape, voxels) = array::to_voxels(&batch.get_item(place)?)?;
            let start = self.grid.get(number).map_or([0; 3], |region| region.start);
            let patch = Patch::new(Region::new(start, shape), channels, voxels);
            patches.push((number, Arc::new(patch.map_err(|error| raised(&error))?)));
        }
        detached(py, || running.add_batch(patches))
    }

    /// Number of channels of the predictions.
    #[getter]
    fn channels(&self) -> u64 {
        self.channels
    }

    /// Finish the output: return the array (c, z, y, x) or the volume at its path, and the statistics. Missing patches are
    /// an error, unless a partial output is accepted.
    fn finish<'py>(
        &self,
        py: Python<'py>,
        partial: bool,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyDict>)> {
        let running = self.running()?;
        self.lock().take();
        let running = Arc::into_inner(running)
            .ok_or_else(|| invalid("another thread is still adding patches"))?;
        let done = interruptible(py, move |_| {
            if partial {
                running.finish_partial()
            } else {
                running.finish()
            }
        })?;
        let told = PyDict::new(py);
        told.set_item("patches", done.patches)?;
        told.set_item("skipped", done.skipped)?;
        told.set_item("uncovered_voxels", done.uncovered_voxels)?;
        told.set_item("clipped_values", done.clipped_values)?;
        told.set_item("chunks_written", done.chunks_written)?;
        told.set_item("peak_live_bytes", done.peak_live_bytes)?;
        let output = match &self.goal {
            Goal::Memory(memory) => array::from_patch(py, memory.to_patch())?,
            Goal::Path(source) => {
                let source = Source::clone(source);
                Bound::new(py, Volume::of(source)?)?.into_any()
            }
        };
        Ok((output, told))
    }
}

impl Aggregator {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<voxpatch::Aggregator>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> PyResult<Arc<voxpatch::Aggregator>> {
        let running = self.lock().clone();
        running.ok_or_else(|| invalid("the output is finished: make another aggregator"))
    }
}
