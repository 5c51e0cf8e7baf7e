//! Prediction of a whole volume: reading and blending on our threads, the model on the caller's.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use numpy::PyArray2;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use voxpatch::inference::{
    FlipTta, InferencePlan, InputValues, JobStatus, OutputSpec, PatchMask, PlannedTask,
};
use voxpatch::normalize::{NormalizeSetting, Scale};
use voxpatch::training::Image;
use voxpatch::volume::{ChannelRange, Durability, Matching, OutputPart, VoxelGrid, check_output};
use voxpatch::{
    DType, Error, InferenceOptions, Model, OutputTarget, Padding, Patch, Predictor, Region, Result,
    Shape,
};

use crate::array::Held;
use crate::blend::Blending;
use crate::errors::{invalid, raised};
use crate::frontier::Frontier;
use crate::model::{Answer, Asked, Batch, Blends, Final, Message, Outcome, Planned, Request, Turn};
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
    /// "host", "device" or "auto": the device, if the plan fits it.
    blend_on: String,
    /// Bytes of the device that sums may take.
    device_memory: Option<u64>,
    /// "host" or "device": where inputs are converted and normalized if predictions are blended on the device.
    prepare_on: String,
    /// Devices, each with a copy of the model.
    devices: usize,
    /// Part and parts, if the run can be resumed.
    part: Option<(u32, u32)>,
    durability: String,
    model_id: String,
    /// What is asked for: "run", "dry-run", "measure", "tasks", "status" or "commit".
    work: String,
    /// The number of tasks, for "tasks".
    count: u32,
    /// Whether the part is a task, which may be run again or twice at once.
    repeats: bool,
    /// The numbers of the normalization, if they were measured before.
    measured: Option<String>,
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
    normalize: NormalizeSetting,
    flips: bool,
    /// Where predictions are blended, in the order of preference: on the device or not.
    on_device: Vec<bool>,
    device_memory: Option<u64>,
    prepares_on_device: bool,
    devices: usize,
    part: Option<OutputPart>,
    durability: Durability,
    volume: Arc<Image>,
    mask: Option<Arc<Image>>,
    matching: Matching,
    id: String,
    predictions: Vec<OutputSpec>,
    caller: Sender<Message>,
    work: Work,
    count: u32,
    repeats: bool,
    measured: Option<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Run,
    /// The memory and time of the run.
    Plan,
    /// The numbers of the normalization.
    Measure,
    Tasks,
    Status,
    Commit,
}

const WORK: [(&str, Work); 6] = [
    ("run", Work::Run),
    ("dry-run", Work::Plan),
    ("measure", Work::Measure),
    ("tasks", Work::Tasks),
    ("status", Work::Status),
    ("commit", Work::Commit),
];

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
///
/// On a device, `call` has `begin(frontiers, scales)`, `blend(patches, batch)` and `end()`; the latter two return final
/// blocks, each as its output, its number and its values or None. With several devices it has `deal(ticket, batch)`.
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
        id: settings.model_id,
        predictions,
        caller: caller.clone(),
        on_device: match settings.blend_on.as_str() {
            "host" => vec![false],
            "device" => vec![true],
            _ => vec![true, false],
        },
        device_memory: settings.device_memory,
        prepares_on_device: settings.prepare_on == "device",
        devices: settings.devices,
        work: arguments::chosen("work", &settings.work, &WORK)?,
        count: settings.count,
        repeats: settings.repeats,
        measured: settings.measured,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, told_by) = (Arc::clone(&stop), caller.clone());
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
    let server = Server::new(call, (settings.devices > 1).then_some(told_by));
    let outcome = serve(py, messages, server, progress, &stop)?;
    told(py, &outcome)
}

/// Answers the threads until they are done. Whatever is raised meanwhile stops them first.
fn serve<'py>(
    py: Python<'py>,
    mut messages: Receiver<Message>,
    mut server: Server<'_, 'py>,
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
            Ok(Message::Batch(request)) => server.answer(py, request),
            Ok(message @ (Message::Begin(..) | Message::Blend(_) | Message::End(_))) => {
                server.blend(py, message)
            }
            Ok(Message::Stop) => {
                server.stop();
                Ok(())
            }
            Ok(Message::Raised(error)) => Err(error),
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
            drop(server);
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

/// Answers the requests of the run's threads.
struct Server<'a, 'py> {
    call: &'a Bound<'py, PyAny>,
    /// Turns that came early.
    waiting: BTreeMap<u64, Turn>,
    next: u64,
    stopped: bool,
    /// Where threads of several devices tell what they raised; `None` if this thread predicts.
    dealt: Option<Sender<Message>>,
}

impl<'a, 'py> Server<'a, 'py> {
    const fn new(call: &'a Bound<'py, PyAny>, dealt: Option<Sender<Message>>) -> Self {
        Self {
            call,
            waiting: BTreeMap::new(),
            next: 0,
            stopped: false,
            dealt,
        }
    }

    /// Drops the requests that wait: their threads end.
    fn stop(&mut self) {
        self.stopped = true;
        self.waiting.clear();
    }

    /// Calls the function with a batch and hands on what it gives.
    fn answer(&self, py: Python<'py>, mut request: Request) -> PyResult<()> {
        let Some((batch, locations)) = arrays(py, &mut request.batch)? else {
            return Ok(());
        };
        if let Some(caller) = &self.dealt {
            let ticket = Ticket {
                request: Mutex::new(Some(request)),
                caller: Mutex::new(caller.clone()),
            };
            return self.call.call_method1("deal", (ticket, batch)).map(|_| ());
        }
        let given = self.call.call1((batch, locations))?;
        let predictions = predictions(&request, &given)?;
        request.answer(predictions);
        Ok(())
    }

    /// Lets the function blend patches, in their turn, and hands on the blocks that became final.
    fn blend(&mut self, py: Python<'py>, message: Message) -> PyResult<()> {
        match message {
            Message::Begin(outputs, scales, reply) => {
                let outputs: Vec<_> = outputs.into_iter().map(Frontier).collect();
                let numbers = |s: Scale| (s.low, s.high, s.zero, s.unit, s.keeps_zero);
                let scales: Vec<_> = scales.into_iter().map(numbers).collect();
                self.call.call_method1("begin", (outputs, scales))?;
                self.next = 0;
                // The requesting thread is gone if the run was stopped.
                let _ = reply.send(());
            }
            Message::Blend(turn) if !self.stopped => {
                self.waiting.insert(turn.number, turn);
                while let Some(mut turn) = self.waiting.remove(&self.next) {
                    let batch = match &mut turn.batch {
                        Some(batch) => arrays(py, batch)?.map(|(batch, _)| batch),
                        None => None,
                    };
                    let patches = std::mem::take(&mut turn.patches);
                    let given = self.call.call_method1("blend", (patches, batch))?;
                    let _ = turn.reply.send(final_blocks(&given)?);
                    self.next += 1;
                }
            }
            Message::End(reply) => {
                let given = self.call.call_method0("end")?;
                let _ = reply.send(final_blocks(&given)?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// A batch that a thread of Python predicts.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
pub(crate) struct Ticket {
    request: Mutex<Option<Request>>,
    caller: Mutex<Sender<Message>>,
}

#[pymethods]
impl Ticket {
    /// Answer with a list that has an array for each output and whether nothing else holds it.
    fn answer(&self, given: &Bound<'_, PyAny>) -> PyResult<()> {
        let request = self.request.lock();
        let request = request.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(request) = request {
            let predictions = predictions(&request, given)?;
            request.answer(predictions);
        }
        Ok(())
    }

    /// Answer with what was raised.
    fn fail(&self, error: Bound<'_, PyAny>) {
        let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody listens any more after Ctrl-C.
        let _ = caller.send(Message::Raised(PyErr::from_value(error)));
    }
}

/// Patches and their locations.
type Arrays<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray2<i64>>);

/// Returns the patches of a batch and their locations; `None` if they were taken before.
fn arrays<'py>(py: Python<'py>, batch: &mut Batch) -> PyResult<Option<Arrays<'py>>> {
    let axes = batch.axes();
    let Some(voxels) = batch.take_voxels() else {
        return Ok(None);
    };
    let places: Vec<Vec<i64>> = batch
        .regions
        .iter()
        .map(|&region| grid::location(region).to_vec())
        .collect();
    let locations = PyArray2::from_vec2(py, &places)?;
    Ok(Some((array::on(py, Box::new(voxels), &axes)?, locations)))
}

/// Returns the predictions that a function gave, for each output those of each patch.
fn predictions(request: &Request, given: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<Answer>>> {
    let mut predictions = Vec::new();
    for output in given.try_iter()? {
        let (output, ours): (Bound<'_, PyAny>, bool) = output?.extract()?;
        let predicted = |(place, region): (usize, &Region)| {
            let one = output.get_item(place)?;
            if ours && let Some(held) = Held::of(&one, region.start)? {
                return Ok(Answer::Held(held));
            }
            // Copied now, because the model may overwrite its output in the next call.
            request.batch.pool.make_room();
            let (channels, shape, voxels) = array::to_voxels(&one)?;
            let patch = Patch::new(Region::new(region.start, shape), channels, voxels);
            patch.map(Answer::Copied).map_err(|error| raised(&error))
        };
        let places = request.batch.regions.iter().enumerate();
        predictions.push(places.map(predicted).collect::<PyResult<_>>()?);
    }
    Ok(predictions)
}

/// Returns the final blocks that a function gave. Nothing else holds their values.
fn final_blocks(given: &Bound<'_, PyAny>) -> PyResult<Vec<Final>> {
    let mut blocks = Vec::new();
    for block in given.try_iter()? {
        let (output, number, values): (usize, u64, Option<Bound<'_, PyAny>>) = block?.extract()?;
        let values = match values {
            None => None,
            Some(values) => Some(if let Some(held) = Held::of(&values, [0; 3])? {
                Answer::Held(held)
            } else {
                let (channels, shape, voxels) = array::to_voxels(&values)?;
                let patch = Patch::new(Region::whole(shape), channels, voxels);
                Answer::Copied(patch.map_err(|error| raised(&error))?)
            }),
        };
        blocks.push((output, number, values));
    }
    Ok(blocks)
}

impl Job {
    fn run(self, progress: &(dyn Fn(u64, u64) -> ControlFlow<()> + Sync)) -> Result<Outcome> {
        let volume = chosen(&self.volume)?;
        let mask = self.mask.as_deref().map(chosen).transpose()?;
        for target in &self.targets {
            let inputs = [Some(&volume), mask.as_ref()].into_iter().flatten();
            let files: Vec<_> = inputs.flat_map(|input| input.source_files()).collect();
            let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
            check_output(&target.path, &files)?;
        }
        let (first, others) = self.on_device.split_first().expect("a place");
        let mut planned = self.plan(*first, &volume, mask.as_ref());
        for &on_device in others {
            if let Err(
                Error::InvalidArgument { .. }
                | Error::BlenderMemory { .. }
                | Error::MemoryLimit { .. },
            ) = planned
            {
                planned = self.plan(on_device, &volume, mask.as_ref());
            }
        }
        let (plan, on_device) = planned?;
        let device_bytes = on_device.then(|| plan.blender_bytes());
        if self.work == Work::Tasks {
            return Ok(Outcome::Tasks(plan.tasks(self.count)?));
        }
        if self.work == Work::Plan {
            let space = plan.disk_space()?;
            let probe = plan.probe(self.normalize.normalizer())?;
            return Ok(Outcome::Planned(Box::new(Planned {
                plan,
                probe,
                space,
                device_bytes,
            })));
        }
        if self.work == Work::Measure {
            // What has no tasks is refused before its name is looked up, which may take a request.
            plan.tasks(1)?;
        }
        if matches!(self.work, Work::Run | Work::Measure) {
            plan.check_names()?;
        }
        let stoppable = |_, _| progress(0, 0);
        let plan = match &self.measured {
            Some(measured) => plan.with_measured(Some(measured))?,
            None => plan.with_normalize(self.normalize.normalizer(), &stoppable)?,
        };
        match self.work {
            Work::Measure => return Ok(Outcome::Measured(plan.measured())),
            Work::Status => return Ok(Outcome::Status(plan.status()?)),
            Work::Commit => {
                plan.commit(&stoppable)?;
                return Ok(Outcome::Committed);
            }
            _ => {}
        }
        let peak_bytes = plan.peak_bytes();
        let done = plan.run(progress)?;
        Ok(Outcome::Done {
            done,
            peak_bytes,
            device_bytes,
        })
    }

    /// Plans the run with sums on the device or not. Returns the plan and where they are.
    fn plan(
        &self,
        on_device: bool,
        volume: &Arc<dyn voxpatch::Volume>,
        mask: Option<&Arc<dyn voxpatch::Volume>>,
    ) -> Result<(InferencePlan, bool)> {
        let layout = volume.layout();
        let input = if on_device {
            self.device_input(layout.dtype)
        } else {
            InputValues::F32
        };
        let asked = Asked {
            id: self.id.clone(),
            outputs: self.predictions.clone(),
            caller: self.caller.clone(),
            input,
            blends: on_device.then_some(Blends {
                memory: self.device_memory,
                flips: self.flips,
                normalizes: input == InputValues::Native,
                late: if self.devices > 1 { self.devices } else { 0 },
            }),
        };
        let mut model: Arc<dyn Model> = Arc::new(asked);
        if self.flips && !on_device {
            model = Arc::new(FlipTta::new(model)?);
        }
        let predictor = Predictor::new(Arc::clone(volume), model, self.options.clone());
        let mut plan = predictor.plan(&self.targets)?;
        if let Some(mask) = mask {
            let mask = self.matching.over_extent_of(layout, Arc::clone(mask))?;
            let patch_mask = PatchMask::from_volume(plan.grid(), &*mask)?;
            plan = plan.with_patch_mask(patch_mask)?;
        }
        if let Some(part) = self.part {
            plan = plan.with_part(part, self.durability)?;
            if self.repeats {
                plan = plan.with_repeats();
            }
        }
        Ok((plan, on_device))
    }

    /// Returns the type of the patches that are sent to the device: the volume's own, if the device converts and normalizes
    /// it to the same numbers and needs no padding of another type.
    fn device_input(&self, dtype: DType) -> InputValues {
        let is_constant = matches!(self.options.padding, Some(Padding::Constant(_)));
        let is_small = matches!(
            dtype,
            DType::U8 | DType::I8 | DType::I16 | DType::U16 | DType::F16
        );
        if is_small && !is_constant && self.prepares_on_device {
            InputValues::Native
        } else {
            InputValues::F32
        }
    }
}

/// What a run that was not begun would take.
fn planned<'py>(py: Python<'py>, planned: &Planned) -> PyResult<Bound<'py, PyDict>> {
    let (told, Planned { plan, probe, .. }) = (PyDict::new(py), planned);
    told_place(&told, planned.device_bytes)?;
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
    let free = planned.space.first().and_then(|space| space.free_bytes);
    told.set_item("free_bytes", free)?;
    Ok(told)
}

/// Adds where predictions are blended, and the bytes that this takes on the device.
fn told_place(told: &Bound<'_, PyDict>, device_bytes: Option<u64>) -> PyResult<()> {
    let place = if device_bytes.is_some() {
        "device"
    } else {
        "host"
    };
    told.set_item("blend_on", place)?;
    told.set_item("device_bytes", device_bytes)
}

fn told<'py>(py: Python<'py>, outcome: &Outcome) -> PyResult<Bound<'py, PyDict>> {
    let (done, peak_bytes, device_bytes) = match outcome {
        Outcome::Done {
            done,
            peak_bytes,
            device_bytes,
        } => (done, *peak_bytes, *device_bytes),
        Outcome::Planned(plan) => return planned(py, plan),
        Outcome::Tasks(tasks) => return told_tasks(py, tasks),
        Outcome::Status(status) => return told_status(py, status),
        Outcome::Measured(measured) => {
            let told = PyDict::new(py);
            told.set_item("measured", measured)?;
            return Ok(told);
        }
        Outcome::Committed => return Ok(PyDict::new(py)),
    };
    let told = PyDict::new(py);
    told.set_item("patches", done.patches)?;
    told.set_item("whole", done.whole)?;
    told_place(&told, device_bytes)?;
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

/// The tasks of a run, and what they cost.
fn told_tasks<'py>(py: Python<'py>, tasks: &[PlannedTask]) -> PyResult<Bound<'py, PyDict>> {
    let all = PyList::empty(py);
    for task in tasks {
        let told = PyDict::new(py);
        told.set_item("part", task.part.index())?;
        told.set_item("patches", task.patches)?;
        told.set_item("repeated_patches", task.repeated_patches)?;
        told.set_item("input_bytes", task.input_bytes)?;
        let regions = task.regions.iter();
        let regions: Vec<[i64; 6]> = regions.map(|&region| grid::location(region)).collect();
        told.set_item("regions", regions)?;
        all.append(told)?;
    }
    let told = PyDict::new(py);
    told.set_item("tasks", all)?;
    Ok(told)
}

/// The progress of a run's tasks.
fn told_status<'py>(py: Python<'py>, status: &JobStatus) -> PyResult<Bound<'py, PyDict>> {
    let told = PyDict::new(py);
    told.set_item("published", status.published)?;
    told.set_item("complete", status.is_complete())?;
    told.set_item("parts", status.parts)?;
    told.set_item("begun", status.begun.clone())?;
    told.set_item("chunks_done", status.chunks_done)?;
    told.set_item("chunks", status.chunks)?;
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
