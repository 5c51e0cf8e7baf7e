//! Prediction of a whole volume: reading and blending on our threads, the model on the caller's.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use numpy::PyArray2;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use voxpatch::Normalize;
use voxpatch::inference::{FlipTta, OutputSpec, PatchMask};
use voxpatch::training::Image;
use voxpatch::volume::{ChannelRange, Durability, Matching, OutputPart, VoxelGrid, check_output};
use voxpatch::{
    Error, InferenceOptions, Model, OutputTarget, Patch, Predictor, Region, Result, Shape,
};

use crate::array::Held;
use crate::blend::Blending;
use crate::errors::{invalid, raised};
use crate::model::{Answer, Asked, Message, Outcome, Planned, Request};
use crate::subjects::padding_of;
use crate::volume::Volume;
use crate::wait::{ASK, guarded};
use crate::write::Storage;
use crate::{arguments, array, grid};

const DURABILITY: [(&str, Durability); 2] =
    [("none", Durability::None), ("chunk", Durability::Chunk)];

/// How long a run that was asked to stop may take to do so.
const STOP: Duration = Duration::from_millis(700);

/// Where patches lie, and what the run may take.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Settings<'py> {
    patch: Shape,
    overlap: Shape,
    placement: String,
    padding: Option<Bound<'py, PyAny>>,
    margin: Shape,
    memory: u64,
    threads: usize,
    batch: usize,
    normalize: String,
    flips: bool,
    /// Part and parts, if the run can be resumed.
    part: Option<(u32, u32)>,
    durability: String,
    model_id: String,
    /// Whether nothing is written, and what it would take comes back.
    dry_run: bool,
    /// How the mask is matched.
    tolerance: f64,
    same_grid: bool,
    /// `"model"`, `"source"`, or the one that fits the volume.
    output_grid: Option<String>,
}

/// An output of the model.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Output<'py> {
    name: String,
    path: PathBuf,
    channels: u64,
    prediction: Bound<'py, PyAny>,
    halo: Shape,
    scale: u64,
    blending: Blending<'py>,
    storage: Bound<'py, PyDict>,
}

impl Output<'_> {
    /// Where it goes and how.
    fn target(&self, patch: Shape) -> PyResult<OutputTarget> {
        let shape =
            std::array::from_fn(|a| patch[a].saturating_sub(2 * self.halo[a]) / self.scale.max(1));
        let storage = Storage::new(&self.storage)?;
        let target = OutputTarget::new(&self.path)
            .with_blending(self.blending.options(shape)?)
            .with_store(storage.create)
            .with_defaults(storage.defaults);
        Ok(match self.blending.dtype()? {
            Some(dtype) => target.with_dtype(dtype),
            None => target,
        })
    }

    fn prediction(&self) -> PyResult<OutputSpec> {
        let spec = OutputSpec::new(self.channels, array::dtype(&self.prediction)?);
        Ok(spec
            .with_name(self.name.clone())
            .with_halo(self.halo)
            .with_scale(self.scale.max(1)))
    }
}

/// A run, ready for a thread of its own.
struct Job {
    options: InferenceOptions,
    targets: Vec<OutputTarget>,
    normalize: Normalize,
    flips: bool,
    part: Option<OutputPart>,
    durability: Durability,
    volume: Arc<Image>,
    mask: Option<Arc<Image>>,
    matching: Matching,
    model: Asked,
    dry_run: bool,
}

/// The grid that outputs are written on, if it is not that of the volume.
fn output_grid(volume: &Volume, wanted: Option<&str>) -> PyResult<Option<VoxelGrid>> {
    let wanted = match wanted {
        Some(word) => {
            arguments::chosen("output_grid", word, &[("model", false), ("source", true)])?
        }
        None => !volume.is_part(),
    };
    if !wanted {
        return Ok(None);
    }
    let grid = volume.grid_of_source().map_err(|error| raised(&error))?;
    if grid.is_some() && volume.is_part() {
        return Err(invalid(
            "output_grid 'source' is not possible for a box of a resampled volume, or one on the grid of another: use 'model'"
                .to_owned(),
        ));
    }
    Ok(grid)
}

/// Predict a volume with `call(batch, locations)`, which returns a list with an array for each output and whether nothing
/// else holds it, and return the statistics.
#[pyfunction]
#[pyo3(name = "_predict")]
#[expect(clippy::needless_pass_by_value, reason = "made for this call")]
pub(crate) fn predict<'py>(
    py: Python<'py>,
    call: &Bound<'py, PyAny>,
    volume: &Volume,
    outputs: Vec<Output<'py>>,
    settings: Settings<'py>,
    mask: Option<&Volume>,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let (caller, messages) = channel();
    let mut predictions = Vec::new();
    let mut targets = Vec::new();
    for output in &outputs {
        predictions.push(output.prediction()?);
        targets.push(output.target(settings.patch)?);
    }
    let text = &settings.normalize;
    let mut options = InferenceOptions::new(settings.patch)
        .with_overlap(settings.overlap)
        .with_placement(grid::placement(&settings.placement)?)
        .with_margin(settings.margin)
        .with_memory(settings.memory)
        .with_threads(settings.threads)
        .with_batch_size(settings.batch)
        .with_masked(mask.is_some())
        .with_output_grid(output_grid(volume, settings.output_grid.as_deref())?);
    if let Some(padding) = &settings.padding {
        options = options.with_padding(padding_of(padding)?);
    }
    let job = Job {
        options,
        targets,
        normalize: text.parse().map_err(|error| raised(&error))?,
        flips: settings.flips,
        part: match settings.part {
            Some((index, count)) => Some(OutputPart::new(index, count).map_err(|e| raised(&e))?),
            None => None,
        },
        durability: arguments::chosen("durability", &settings.durability, &DURABILITY)?,
        volume: volume.image(py)?,
        mask: mask.map(|mask| mask.image(py)).transpose()?,
        matching: Matching {
            tolerance: settings.tolerance,
            same_grid: settings.same_grid,
        },
        model: Asked {
            id: settings.model_id,
            outputs: predictions,
            caller: caller.clone(),
        },
        dry_run: settings.dry_run,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    thread::Builder::new()
        .name("voxpatch-predict".to_owned())
        .spawn(move || {
            let told = caller.clone();
            let tell = move |done, total| {
                let heard = told.send(Message::Progress(done, total)).is_ok();
                if heard && !flag.load(Ordering::Relaxed) {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            };
            // Nobody listens any more after Ctrl-C.
            let _ = caller.send(Message::Done(guarded(|| job.run(&tell))));
        })
        .map_err(PyErr::from)?;
    let outcome = serve(py, messages, call, progress, &stop)?;
    told(py, &outcome)
}

/// Answers the threads until they are done. Whatever is raised meanwhile stops them first.
fn serve(
    py: Python<'_>,
    mut messages: Receiver<Message>,
    call: &Bound<'_, PyAny>,
    progress: Option<&Bound<'_, PyAny>>,
    stop: &AtomicBool,
) -> PyResult<Outcome> {
    loop {
        let heard;
        (messages, heard) = py.detach(move || {
            let heard = messages.recv_timeout(ASK);
            (messages, heard)
        });
        let answered = match heard {
            Ok(Message::Done(outcome)) => return outcome.map_err(|error| raised(&error)),
            Ok(Message::Batch(request)) => answer(py, request, call),
            Ok(Message::Progress(done, total)) => match progress {
                Some(progress) => progress.call1((done, total)).map(|_| ()),
                None => Ok(()),
            },
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(raised(&Error::Panicked {
                message: "a thread ended without a result".to_owned(),
            })),
        };
        if let Err(error) = answered.and_then(|()| py.check_signals()) {
            stop.store(true, Ordering::Relaxed);
            py.detach(move || wind_down(&messages));
            return Err(error);
        }
    }
}

/// Waits for the end of a stopped run, a while; what it asks meanwhile is not answered.
fn wind_down(messages: &Receiver<Message>) {
    let until = Instant::now() + STOP;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match messages.recv_timeout(left) {
            Ok(Message::Done(_)) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Calls the function with a batch and hands on what it gives.
fn answer(py: Python<'_>, mut request: Request, call: &Bound<'_, PyAny>) -> PyResult<()> {
    let axes = request.axes();
    let Some(voxels) = request.take_voxels() else {
        return Ok(());
    };
    let batch = array::on(py, Box::new(voxels), &axes)?;
    let places: Vec<Vec<i64>> = request
        .regions
        .iter()
        .map(|&region| grid::location(region).to_vec())
        .collect();
    let locations = PyArray2::from_vec2(py, &places)?;
    let given = call.call1((batch, locations))?;
    let mut predictions = Vec::new();
    for output in given.try_iter()? {
        let (output, ours): (Bound<'_, PyAny>, bool) = output?.extract()?;
        let predicted = |(place, region): (usize, &Region)| {
            let one = output.get_item(place)?;
            if ours && let Some(held) = Held::of(&one, region.start)? {
                return Ok(Answer::Held(held));
            }
            // Copied now, because the model may overwrite its output in the next call.
            let (channels, shape, voxels) = array::to_voxels(&one)?;
            let patch = Patch::new(Region::new(region.start, shape), channels, voxels);
            patch.map(Answer::Copied).map_err(|error| raised(&error))
        };
        let places = request.regions.iter().enumerate();
        predictions.push(places.map(predicted).collect::<PyResult<_>>()?);
    }
    request.answer(predictions);
    Ok(())
}

impl Job {
    fn run(self, progress: &(dyn Fn(u64, u64) -> ControlFlow<()> + Sync)) -> Result<Outcome> {
        let volume = chosen(&self.volume)?;
        let layout = volume.layout();
        let mask = self.mask.as_deref().map(chosen).transpose()?;
        for target in &self.targets {
            let inputs = [Some(&volume), mask.as_ref()].into_iter().flatten();
            let files: Vec<_> = inputs.flat_map(|input| input.source_files()).collect();
            let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
            check_output(&target.path, &files)?;
        }
        let mut model: Arc<dyn Model> = Arc::new(self.model);
        if self.flips {
            model = Arc::new(FlipTta::new(model)?);
        }
        let predictor = Predictor::new(Arc::clone(&volume), model, self.options);
        let mut plan = predictor.plan(&self.targets)?;
        if let Some(mask) = mask {
            let mask = self.matching.over_extent_of(layout, mask)?;
            let patch_mask = PatchMask::from_volume(plan.grid(), &*mask)?;
            plan = plan.with_patch_mask(patch_mask)?;
        }
        if let Some(part) = self.part {
            plan = plan.with_part(part, self.durability)?;
        }
        if self.dry_run {
            let space = plan.disk_space()?;
            let probe = plan.probe(self.normalize)?;
            return Ok(Outcome::Planned(Box::new(Planned { plan, probe, space })));
        }
        plan.check_names()?;
        let stoppable = |_, _| progress(0, 0);
        let plan = plan.with_normalize(self.normalize, &stoppable)?;
        let peak_bytes = plan.peak_bytes();
        let done = plan.run(progress)?;
        Ok(Outcome::Done { done, peak_bytes })
    }
}

/// What a run that was not begun would take.
fn planned<'py>(py: Python<'py>, planned: &Planned) -> PyResult<Bound<'py, PyDict>> {
    let (told, Planned { plan, probe, space }) = (PyDict::new(py), planned);
    told.set_item("patches", plan.patches().0)?;
    told.set_item("patches_predicted", plan.predictions())?;
    told.set_item("passes", plan.passes())?;
    told.set_item("peak_bytes", plan.peak_bytes())?;
    told.set_item("model_bytes", probe.model_bytes)?;
    told.set_item("process_bytes", probe.process_bytes)?;
    told.set_item("estimated_seconds", probe.duration.as_secs_f64())?;
    let outputs = plan.outputs().iter();
    let bytes = outputs.map(|output| output.layout.decoded_bytes());
    let bytes: Vec<u64> = bytes.collect::<Result<_>>().map_err(|e| raised(&e))?;
    told.set_item("output_bytes", bytes)?;
    let free = space.first().and_then(|space| space.free_bytes);
    told.set_item("free_bytes", free)?;
    Ok(told)
}

fn told<'py>(py: Python<'py>, outcome: &Outcome) -> PyResult<Bound<'py, PyDict>> {
    let (done, peak_bytes) = match outcome {
        Outcome::Done { done, peak_bytes } => (done, *peak_bytes),
        Outcome::Planned(plan) => return planned(py, plan),
    };
    let told = PyDict::new(py);
    told.set_item("patches", done.patches)?;
    told.set_item("whole", done.whole)?;
    told.set_item("reading_seconds", done.timings.reading)?;
    told.set_item("predicting_seconds", done.timings.predicting)?;
    told.set_item("blending_seconds", done.timings.blending)?;
    told.set_item("writing_seconds", done.timings.writing)?;
    told.set_item("chunks_read", done.reads.chunks)?;
    told.set_item("planned_bytes", peak_bytes)?;
    let outputs = PyList::empty(py);
    for output in &done.outputs {
        let of_it = PyDict::new(py);
        of_it.set_item("skipped", output.skipped)?;
        of_it.set_item("uncovered_voxels", output.uncovered_voxels)?;
        of_it.set_item("clipped_values", output.clipped_values)?;
        of_it.set_item("chunks_written", output.chunks_written)?;
        of_it.set_item("peak_live_bytes", output.peak_live_bytes)?;
        outputs.append(of_it)?;
    }
    told.set_item("outputs", outputs)?;
    Ok(told)
}

/// The channels of an image as a volume.
fn chosen(image: &Image) -> Result<Arc<dyn voxpatch::Volume>> {
    let volume = Arc::clone(&image.volume);
    if image.channels == (0..volume.layout().channels) {
        return Ok(volume);
    }
    Ok(Arc::new(ChannelRange::new(volume, image.channels.clone())?))
}
