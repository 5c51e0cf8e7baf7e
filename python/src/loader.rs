//! The loader of an epoch, as Python's queue drives it.

use std::ops::ControlFlow;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use numpy::PyArray;
use numpy::ndarray::{Array2, ArrayD};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use voxpatch::training::{
    Augmentation, ControlPoints, Dataset, EpochPlan, Loader, LoaderOptions, LoaderState,
    LoaderStats, OnError, RandomAffine, RandomElastic, RankShard, Sample, Subjects, TryNext,
    Uneven, WorkerShard,
};
use voxpatch::{Affine, Region, Result, Shape, SignedAxes};

use crate::errors::{invalid, raised};
use crate::sampler::{Indices, Recipe};
use crate::subjects::{List, SubjectList};
use crate::wait::{ASK, guarded};
use crate::{arguments, array};

const UNEVEN: [(&str, Uneven); 3] = [
    ("repeat", Uneven::Repeat),
    ("drop", Uneven::Drop),
    ("exact", Uneven::Exact),
];

/// How often a consumer that has to make subjects looks whether one is wanted.
const ANSWER: std::time::Duration = std::time::Duration::from_millis(2);

/// The plan of every epoch, and the part of this rank.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
#[derive(Debug)]
pub(crate) struct Epochs {
    list: Arc<List>,
    dataset: Dataset,
    /// The threads that build the index of a map.
    building: Arc<AtomicUsize>,
    /// The loaders that have not ended.
    live: Arc<AtomicUsize>,
    plan: EpochPlan,
    shard: RankShard,
}

/// An iterator over one epoch; its threads end with it.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
#[derive(Debug)]
pub(crate) struct EpochLoader {
    process: u32,
    list: Arc<List>,
    live: Arc<AtomicUsize>,
    running: Mutex<Option<Loader>>,
    last: Mutex<Last>,
}

/// What is known of a loader after it was closed.
#[derive(Debug, Default)]
struct Last {
    stats: LoaderStats,
    state: String,
}

#[pymethods]
impl Epochs {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "Python's queue names them")]
    fn new(
        subjects: &SubjectList,
        sampler: Recipe,
        counts: &Bound<'_, PyAny>,
        seed: u64,
        window: Option<u64>,
        shuffle: (bool, bool),
        shard: (u64, u64, u64, &str),
        together: Option<u64>,
    ) -> PyResult<Self> {
        let list = Arc::clone(&subjects.list);
        let plan = match counts.extract::<u64>() {
            Ok(each) => EpochPlan::new(list.len(), each, seed),
            Err(_) => EpochPlan::with_counts(&counts.extract::<Vec<u64>>()?, seed),
        };
        let plan = plan.map(|plan| match window {
            Some(window) => plan.with_window(window),
            None => plan,
        });
        let plan = plan.map(|plan| plan.with_shuffle(shuffle.0, shuffle.1));
        let plan = match together {
            Some(batch) => plan.and_then(|plan| plan.with_batches(batch)),
            None => plan,
        };
        let plan = plan.map_err(|error| raised(&error))?;
        if plan.subjects() != list.len() {
            return Err(invalid(format!(
                "{} numbers of samples for {} subjects",
                plan.subjects(),
                list.len()
            )));
        }
        let (rank, world_size, batch, uneven) = shard;
        let uneven = arguments::chosen("uneven", uneven, &UNEVEN)?;
        let (indices, building) = (Indices::default(), Arc::new(AtomicUsize::new(1)));
        let live = Arc::new(AtomicUsize::new(0));
        let (threads, wanted) = (Arc::clone(&building), Arc::clone(&live));
        let samplers = move |subject: &voxpatch::training::Subject, seed| {
            // A loader that ends waits for its threads, so that they must leave an unfinished index.
            let progress = |_, _| match wanted.load(Ordering::Relaxed) {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            let threads = threads.load(Ordering::Relaxed);
            sampler.sampler(subject, seed, &indices, (threads, &progress))
        };
        let dataset = Dataset::new(Arc::clone(&list), samplers).with_plan(plan.clone());
        Ok(Self {
            list,
            dataset,
            building,
            live,
            plan,
            shard: RankShard::of(rank, world_size, batch).with_uneven(uneven),
        })
    }

    /// Return a state, or the start of the next epoch for one at the end of its own.
    fn settled(&self, state: &str) -> PyResult<String> {
        let state: LoaderState = state.parse().map_err(|error| raised(&error))?;
        Ok(state.settled(&self.plan, self.shard).to_string())
    }

    /// Return how many patches and batches an epoch has for this rank.
    fn length(&self) -> (u64, u64) {
        self.shard
            .remaining(WorkerShard::default(), 0, self.plan.len())
    }

    /// Start an epoch at its first patch or at a saved state; `contiguous` if it is read in batches.
    #[pyo3(signature = (epoch, state, worker, threads, max_length, memory, skip_errors, contiguous = false, same_images = false, stay_in_epoch = false, augment = (([0.0; 3], 0.0, 0.0, None), None, None)))]
    #[expect(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        clippy::large_types_passed_by_value,
        reason = "Python's queue names them"
    )]
    fn start(
        &self,
        py: Python<'_>,
        epoch: u64,
        state: Option<&str>,
        worker: (u64, u64),
        threads: usize,
        max_length: usize,
        memory: u64,
        skip_errors: bool,
        contiguous: bool,
        same_images: bool,
        stay_in_epoch: bool,
        augment: (Turning, Option<Affines>, Option<Elastics>),
    ) -> PyResult<EpochLoader> {
        let worker = WorkerShard {
            index: worker.0,
            count: worker.1,
        };
        let on_error = if skip_errors {
            OnError::Skip
        } else {
            OnError::Fail
        };
        let options = LoaderOptions::default()
            .with_threads(threads)
            .with_max_length(max_length)
            .with_memory(memory)
            .with_shard(self.shard)
            .with_worker(worker)
            .with_on_error(on_error)
            .with_stay_in_epoch(stay_in_epoch)
            .with_contiguous_batches(contiguous)
            .with_same_images(same_images)
            .with_augment(augmentation(augment));
        let state = state.map(str::parse::<LoaderState>).transpose();
        let state = state.map_err(|error| raised(&error))?;
        if let Some(asked) = self.list.asked() {
            asked.begin();
        }
        self.building.store(threads.max(1), Ordering::Relaxed);
        let (list, dataset) = (Arc::clone(&self.list), &self.dataset);
        self.live.fetch_add(1, Ordering::Relaxed);
        let loader = py.detach(|| {
            guarded(|| {
                let builder = match state {
                    Some(state) => dataset.resume(state),
                    None => dataset.epoch(epoch),
                };
                builder.with_options(options).samples()
            })
        });
        let loader = loader.map_err(|error| {
            self.live.fetch_sub(1, Ordering::Relaxed);
            raised(&error)
        })?;
        Ok(EpochLoader {
            process: process::id(),
            list,
            live: Arc::clone(&self.live),
            running: Mutex::new(Some(loader)),
            last: Mutex::default(),
        })
    }
}

#[pymethods]
impl EpochLoader {
    /// Return the next batch as (arrays by name, locations (b, 6), numbers of the subjects, orientations (b, 3), affines
    /// (b, 4, 4), displacements (b, z, y, x, 3) or None), or None at the end; without `wait`, False if it is not ready.
    #[pyo3(signature = (wait = true))]
    fn batch<'py>(&self, py: Python<'py>, wait: bool) -> PyResult<Bound<'py, PyAny>> {
        let found = self.wait(py, wait, Loader::next_contiguous_batch_timeout)?;
        let batch = match found {
            TryNext::Ready(batch) => batch,
            other => return nothing(py, &other),
        };
        let regions = batch.regions();
        let rows = regions.iter().copied().flat_map(location).collect();
        let locations = Array2::from_shape_vec((regions.len(), 6), rows)
            .map_err(|error| invalid(error.to_string()))?;
        let locations = PyArray::from_owned_array(py, locations);
        let subjects = PyList::new(py, batch.subject_indices())?;
        let rows = batch.axes().iter().copied().flat_map(orientation).collect();
        let orientations = Array2::from_shape_vec((regions.len(), 3), rows)
            .map_err(|error| invalid(error.to_string()))?;
        let orientations = PyArray::from_owned_array(py, orientations);
        let count = regions.len();
        let affines = matrices(py, batch.affines(), &[count, 4, 4])?;
        let displacements = displacements(py, batch.displacements(), &[count])?;
        let arrays = PyDict::new(py);
        for image in batch.into_images() {
            let (name, shape) = (image.name().to_owned(), image.shape());
            arrays.set_item(name, array::on(py, Box::new(image), &shape)?)?;
        }
        let all = (
            arrays,
            locations,
            subjects,
            orientations,
            affines,
            displacements,
        );
        Ok(all.into_pyobject(py)?.into_any())
    }

    /// Return the samples of the next batch one by one, each as `sample` gives it, or None at the end; without
    /// `wait`, False if they are not ready.
    #[pyo3(signature = (wait = true))]
    fn samples<'py>(&self, py: Python<'py>, wait: bool) -> PyResult<Bound<'py, PyAny>> {
        match self.wait(py, wait, Loader::next_batch_timeout)? {
            TryNext::Ready(samples) => {
                let all = samples.into_iter().map(|sample| unpacked(py, sample));
                let all = all.collect::<PyResult<Vec<_>>>()?;
                Ok(PyList::new(py, all)?.into_any())
            }
            other => nothing(py, &other),
        }
    }

    /// Return the next patch as (arrays by name, location (6,), number of the subject, orientation (3,), affine (4, 4),
    /// displacement (z, y, x, 3) or None, place in the epoch), or None at the end; without `wait`, False if it is not ready.
    #[pyo3(signature = (wait = true))]
    fn sample<'py>(&self, py: Python<'py>, wait: bool) -> PyResult<Bound<'py, PyAny>> {
        match self.wait(py, wait, Loader::next_timeout)? {
            TryNext::Ready(sample) => unpacked(py, sample),
            other => nothing(py, &other),
        }
    }

    /// Return the position in the epoch, as a line of text.
    fn state(&self) -> PyResult<String> {
        Ok(match self.running()?.as_ref() {
            Some(loader) => loader.state().to_string(),
            None => self.last().state.clone(),
        })
    }

    /// Return how many patches are still to come.
    fn remaining(&self) -> PyResult<u64> {
        Ok(self.running()?.as_ref().map_or(0, Loader::remaining))
    }

    /// Return the statistics so far.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let last = &mut self.last().stats;
        if let Ok(running) = self.running.try_lock()
            && let Some(loader) = running.as_ref()
        {
            *last = loader.stats();
        }
        let all = PyDict::new(py);
        all.set_item("delivered", last.delivered)?;
        all.set_item("left_out", last.left_out)?;
        all.set_item("reasons", &last.reasons)?;
        all.set_item("slow", &last.slow)?;
        all.set_item("waited_seconds", last.waited.as_secs_f64())?;
        all.set_item("chunks", last.chunks)?;
        all.set_item("bytes", last.bytes)?;
        all.set_item("copies", last.copies)?;
        all.set_item("subjects_per_batch", last.subjects_per_batch)?;
        all.set_item("ready", last.fill.0)?;
        all.set_item("in_progress", last.fill.1)?;
        Ok(all)
    }

    /// End the threads. Nothing comes any more, as after the last patch.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let ended = self.running()?.take();
        if let Some(loader) = ended {
            *self.last() = Last {
                stats: loader.stats(),
                state: loader.state().to_string(),
            };
            self.end(py, loader);
        }
        Ok(())
    }
}

impl EpochLoader {
    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> PyResult<MutexGuard<'_, Option<Loader>>> {
        match self.running.try_lock() {
            Ok(running) => Ok(running),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(PyRuntimeError::new_err(
                "another thread waits for this queue's next patch: give each thread a queue of its own",
            )),
        }
    }

    /// Waits without the interpreter, for what may take any time; Ctrl-C ends the wait. Without `wait` it looks once.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        wait: bool,
        mut ask: impl FnMut(&mut Loader, std::time::Duration) -> TryNext<Result<T>> + Send,
    ) -> PyResult<TryNext<T>> {
        let mut running = self.running()?;
        let Some(loader) = running.as_mut() else {
            return Ok(TryNext::Finished);
        };
        if self.process != process::id() {
            return Err(PyRuntimeError::new_err(
                "this iterator was started in another process: iterate over the queue anew",
            ));
        }
        let asked = self.list.asked();
        let limit = match (wait, asked) {
            (false, _) => std::time::Duration::ZERO,
            (true, Some(_)) => ANSWER,
            (true, None) => ASK,
        };
        if let Some(asked) = asked {
            asked.begin();
        }
        loop {
            if let Some(asked) = asked {
                asked.answer(py);
            }
            let waited = py.detach(|| guarded(|| Ok(ask(loader, limit))));
            match waited.map_err(|error| raised(&error))? {
                TryNext::Ready(Ok(found)) => return Ok(TryNext::Ready(found)),
                TryNext::Ready(Err(error)) => {
                    let own = asked.and_then(crate::subjects::Asked::raised);
                    return Err(own.unwrap_or_else(|| raised(&error)));
                }
                TryNext::Finished => return Ok(TryNext::Finished),
                TryNext::TimedOut if !wait => return Ok(TryNext::TimedOut),
                TryNext::TimedOut => py.check_signals()?,
            }
        }
    }

    /// Takes all that is left without Python, and says how many patches that were.
    #[cfg(feature = "testing")]
    pub(crate) fn drain(&self, py: Python<'_>) -> PyResult<usize> {
        let mut running = self.running()?;
        let Some(loader) = running.as_mut() else {
            return Ok(0);
        };
        let all = py.detach(|| loader.try_fold(0, |n, sample| sample.map(|_| n + 1)));
        all.map_err(|error| raised(&error))
    }

    fn end(&self, py: Python<'_>, loader: Loader) {
        if self.process == process::id() {
            if let Some(asked) = self.list.asked() {
                asked.close();
            }
            self.live.fetch_sub(1, Ordering::Relaxed);
            py.detach(|| drop(loader));
        } else {
            // A forked process has the loader, but not its threads: there is nobody to wait for.
            std::mem::forget(loader);
        }
    }
}

impl Drop for EpochLoader {
    fn drop(&mut self) {
        let running = self
            .running
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(loader) = running.take() {
            Python::attach(|py| self.end(py, loader));
        }
    }
}

/// `flip`, `permute`, `rotate` and `crop`.
type Turning = ([f64; 3], f64, f64, Option<Shape>);

/// What a `RandomAffine` is made of: `scales`, `degrees`, `shears`, `translation`, `isotropic`, and the probabilities.
type Affines = (Ranges, Ranges, Ranges, Ranges, bool, (f64, f64, f64));

type Ranges = [[f64; 2]; 3];

/// What a `RandomElastic` is made of: `num_control_points`, `max_displacement` and the probability.
type Elastics = (Shape, [f64; 3], f64);

fn augmentation(
    ((flip, permute, rotate, crop), affine, elastic): (Turning, Option<Affines>, Option<Elastics>),
) -> Augmentation {
    let mut augment = Augmentation::default()
        .with_flip(flip)
        .with_permute(permute)
        .with_rotate(rotate);
    if let Some(crop) = crop {
        augment = augment.with_crop(crop);
    }
    if let Some((scales, degrees, shears, translation, isotropic, probabilities)) = affine {
        let affine = RandomAffine::default()
            .with_scales(scales)
            .with_degrees(degrees)
            .with_shears(shears)
            .with_translation(translation)
            .with_isotropic(isotropic)
            .with_p(probabilities.0)
            .with_p_rotation(probabilities.1)
            .with_p_scaling(probabilities.2);
        augment = augment.with_affine(affine);
    }
    if let Some((points, largest, p)) = elastic {
        let elastic = RandomElastic::default()
            .with_num_control_points(points)
            .with_max_displacement(largest)
            .with_p(p);
        augment = augment.with_elastic(elastic);
    }
    augment
}

/// Returns matrices as an array with `axes`, of which the last two are 4 and 4.
fn matrices<'py>(py: Python<'py>, all: &[Affine], axes: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    let numbers = all.iter().flatten().flatten().copied().collect();
    shaped(py, numbers, axes)
}

/// Returns displacements as an array with `axes` and those of the control points; None if there are none.
fn displacements<'py>(
    py: Python<'py>,
    all: &[ControlPoints],
    axes: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let Some(first) = all.first() else {
        return Ok(py.None().into_bound(py));
    };
    let points = first.shape().map(|n| usize::try_from(n).unwrap_or(0));
    let shape: Vec<usize> = axes.iter().copied().chain(points).chain([3]).collect();
    let numbers = all.iter().flat_map(ControlPoints::points).flatten();
    shaped(py, numbers.copied().collect(), &shape)
}

fn shaped<'py>(py: Python<'py>, numbers: Vec<f64>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    let array =
        ArrayD::from_shape_vec(shape, numbers).map_err(|error| invalid(error.to_string()))?;
    Ok(PyArray::from_owned_array(py, array).into_any())
}

/// The axis (1, 2, 3 for z, y, x) that each axis of a patch runs along, negative where it runs backwards.
fn orientation(axes: SignedAxes) -> [i64; 3] {
    let signed = |axis: usize| {
        let from = [1, 2, 3][axes.order()[axis]];
        if axes.flipped()[axis] { -from } else { from }
    };
    std::array::from_fn(signed)
}

/// First voxel along z, y, x, and one past the last.
fn location(region: Region) -> [i64; 6] {
    let ([z, y, x], [dz, dy, dx]) = (region.start, region.end());
    [z, y, x, dz, dy, dx]
}

fn unpacked(py: Python<'_>, sample: Sample) -> PyResult<Bound<'_, PyAny>> {
    let place = PyArray::from_vec(py, location(sample.region).to_vec());
    let (subject, n) = (sample.subject_index, sample.place);
    let axes = PyArray::from_vec(py, orientation(sample.axes()).to_vec());
    let affine = matrices(py, &[sample.affine()], &[4, 4])?;
    let displacement = displacements(py, sample.displacement().as_slice(), &[])?;
    let names: Vec<String> = names(&sample).map(str::to_owned).collect();
    let arrays = PyDict::new(py);
    for (name, patch) in names.into_iter().zip(sample.into_pooled()) {
        let [z, y, x] = patch.shape();
        let shape = [patch.channels(), z, y, x];
        arrays.set_item(name, array::on(py, Box::new(patch), &shape)?)?;
    }
    let all = (arrays, place, subject, axes, affine, displacement, n).into_pyobject(py)?;
    Ok(all.into_any())
}

/// None at the end, or False if nothing is ready.
fn nothing<'py, T>(py: Python<'py>, found: &TryNext<T>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match found {
        TryNext::TimedOut => false.into_pyobject(py)?.to_owned().into_any(),
        _ => py.None().into_bound(py),
    })
}

fn names(sample: &Sample) -> impl Iterator<Item = &str> {
    sample
        .subject()
        .images()
        .iter()
        .map(|image| image.name.as_str())
}
