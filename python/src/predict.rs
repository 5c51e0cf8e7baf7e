//! Prediction: the library reads, blends and writes on its threads, Python's model runs on the caller's.
//!
//! A thread that has a batch asks for its prediction and waits; the caller, who has the
//! interpreter, answers one request after the other. So no thread of ours ever waits for the
//! interpreter, and Ctrl-C is seen between two requests.

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use voxpatch::inference::{Flips, Input, Normalize, Predicted, Prediction, Selection};
use voxpatch::progress::Progress;
use voxpatch::volume::{Durability, Part};
use voxpatch::{AggregatorOptions, Error, Inference, Layout, Model, Patch, Result, Shape, Target};

use crate::errors::{invalid, raised};
use crate::grid::{accumulator_of, facts, non_finite_of};
use crate::subjects::padding_of;
use crate::volume::Volume;
use crate::wait::{ASK, guarded};
use crate::write::Storage;
use crate::{arguments, array, blending};

/// A batch whose prediction somebody waits for.
struct Request {
    batch: Vec<Patch>,
    answer: Sender<Vec<Vec<Patch>>>,
}

/// Python's model, as the library sees it.
struct Asking {
    requests: Mutex<Sender<Request>>,
    outputs: Vec<Prediction>,
    id: String,
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asking")
            .field("outputs", &self.outputs)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Model for Asking {
    fn input(&self) -> Input {
        Input::Real
    }

    fn id(&self) -> String {
        self.id.clone()
    }

    fn outputs(&self, _input: &Layout, _patch: Shape) -> Result<Vec<Prediction>> {
        Ok(self.outputs.clone())
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        let (answer, answered) = channel();
        let requests = self
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Who does not listen any more has stopped the run.
        requests
            .send(Request { batch, answer })
            .map_err(|_| Error::Stopped)?;
        answered.recv().map_err(|_| Error::Stopped)
    }
}

/// How far the run is, and whether it is to stop.
#[derive(Debug, Default)]
struct State {
    done: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
}

/// A run on a thread of its own.
struct Run {
    requests: Receiver<Request>,
    state: Arc<State>,
    thread: JoinHandle<Result<Predicted>>,
}

/// Predicts all of a volume.
///
/// `model` gets a batch (b, c, z, y, x) of float32 and gives an array (b, c, z, y, x) for each of `outputs`, which
/// are (channels, dtype, halo, scale) each. `progress` gets the patches done and in all.
#[pyfunction]
#[pyo3(signature = (model, volume, outputs, paths, settings, *, model_id, progress = None, mask = None, storage = None))]
#[expect(clippy::too_many_arguments, reason = "Python's predict names them")]
pub(crate) fn predict<'py>(
    py: Python<'py>,
    model: &Bound<'py, PyAny>,
    volume: &Volume,
    outputs: Vec<(u64, Bound<'py, PyAny>, Shape, u64)>,
    paths: Vec<PathBuf>,
    settings: &Bound<'py, PyDict>,
    model_id: String,
    progress: Option<&Bound<'py, PyAny>>,
    mask: Option<&Volume>,
    storage: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyDict>> {
    let image = volume.image(py)?;
    if image.channels != (0..image.volume.layout().channels) {
        return Err(invalid(
            "prediction is of all channels: open the volume without channels, and pick them in the model",
        ));
    }
    let mask = mask.map(|mask| mask.image(py)).transpose()?;
    let settings = Settings::new(settings)?;
    let storage = Storage::new(storage)?;
    let outputs: Vec<Prediction> = outputs
        .into_iter()
        .map(|(channels, dtype, halo, scale)| {
            Ok(Prediction {
                halo,
                scale,
                ..Prediction::new(channels, array::dtype(&dtype)?)
            })
        })
        .collect::<PyResult<_>>()?;
    let targets: Vec<Target> = paths
        .into_iter()
        .map(|path| Target {
            path,
            blending: settings.blending.clone(),
            dtype: storage.dtype,
            store: storage.create.clone(),
        })
        .collect();
    let (sender, requests) = channel();
    let asking: Arc<dyn Model> = Arc::new(Asking {
        requests: Mutex::new(sender),
        outputs,
        id: model_id,
    });
    let state = Arc::new(State::default());
    let told = Arc::clone(&state);
    let work = move || {
        let stop = |_, _| {
            if told.stop.load(Ordering::Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let model = settings.wrapped(asking, &image.volume, &stop)?;
        let layout = image.volume.layout();
        let mut plan = settings.inference.plan(layout, &*model, &targets)?;
        if let Some(mask) = mask {
            let selection = Selection::from_mask(&plan.grid, &*mask.volume)?;
            plan = plan.with_selection(selection);
        }
        if let Some(part) = settings.part {
            plan = plan.of_part(part, settings.durability)?;
        }
        let progress = |done, total| {
            told.done.store(done, Ordering::Relaxed);
            told.total.store(total, Ordering::Relaxed);
            stop(done, total)
        };
        plan.run(Arc::clone(&image.volume), model, &progress)
    };
    let thread = thread::Builder::new()
        .name("voxpatch-predict".to_owned())
        .spawn(move || guarded(work))?;
    let run = Run {
        requests,
        state,
        thread,
    };
    let done = run.answer(py, model, progress)?;
    let told = PyDict::new(py);
    told.set_item("patches", done.patches)?;
    told.set_item("whole", done.whole)?;
    told.set_item("chunks_read", done.reads.chunks)?;
    told.set_item("bytes_read", done.reads.bytes)?;
    let outputs = done.outputs.iter().map(|output| facts(py, output));
    told.set_item("outputs", outputs.collect::<PyResult<Vec<_>>>()?)?;
    Ok(told)
}

impl Run {
    /// Answers requests until the run is over.
    fn answer(
        self,
        py: Python<'_>,
        model: &Bound<'_, PyAny>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Predicted> {
        let Self {
            mut requests,
            state,
            thread,
        } = self;
        let mut shown = None;
        let failed = loop {
            let waited;
            (requests, waited) = py.detach(move || {
                let waited = requests.recv_timeout(ASK);
                (requests, waited)
            });
            let answered = match waited {
                Ok(request) => answered(py, model, request),
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => break None,
            };
            let now = (
                state.done.load(Ordering::Relaxed),
                state.total.load(Ordering::Relaxed),
            );
            let told = match progress {
                Some(progress) if shown != Some(now) && now.1 > 0 => {
                    shown = Some(now);
                    progress.call1(now).map(drop)
                }
                _ => Ok(()),
            };
            if let Err(error) = answered.and(told).and_then(|()| py.check_signals()) {
                break Some(error);
            }
            if thread.is_finished() {
                break None;
            }
        };
        state.stop.store(failed.is_some(), Ordering::Relaxed);
        // Nobody listens any more: threads that wait for an answer stop.
        drop(requests);
        let done = py.detach(|| thread.join());
        if let Some(error) = failed {
            return Err(error);
        }
        if let (Some(progress), Ok(Ok(_))) = (progress, &done) {
            let total = state.total.load(Ordering::Relaxed);
            progress.call1((total, total))?;
        }
        done.unwrap_or_else(|_| {
            Err(Error::Panicked {
                message: "the run's thread".to_owned(),
            })
        })
        .map_err(|error| raised(&error))
    }
}

/// Calls the model and sends what it gives.
fn answered(py: Python<'_>, model: &Bound<'_, PyAny>, request: Request) -> PyResult<()> {
    let batch = array::from_patches(py, request.batch)?;
    let predicted: Vec<Bound<'_, PyAny>> = model.call1((batch,))?.extract()?;
    let outputs = predicted.iter().map(array::patches_of);
    let outputs = outputs.collect::<PyResult<Vec<_>>>()?;
    // The run may have ended meanwhile, with an error of its own.
    let _ = request.answer.send(outputs);
    Ok(())
}

/// How patches are placed and blended, and with how much of the machine.
struct Settings {
    inference: Inference,
    blending: AggregatorOptions,
    normalize: Normalize,
    flips: bool,
    part: Option<Part>,
    durability: Durability,
}

impl Settings {
    fn new(given: &Bound<'_, PyDict>) -> PyResult<Self> {
        let item = |name: &str| {
            given
                .get_item(name)?
                .ok_or_else(|| invalid(format!("{name} is missing")))
        };
        let text = |name: &str| item(name)?.extract::<String>();
        let patch = arguments::lengths("patch_size", &item("patch_size")?)?;
        let overlap = arguments::lengths("patch_overlap", &item("patch_overlap")?)?;
        let mut inference = Inference::new(patch, overlap);
        inference.placement = blending::placement(&text("placement")?)?;
        let padding = item("padding")?;
        if !padding.is_none() {
            inference.padding = Some(padding_of(&padding)?);
            let margin = item("margin")?;
            inference.margin = arguments::lengths("margin", &margin)?;
        }
        inference.memory = item("memory")?.extract()?;
        inference.batch = item("batch_size")?.extract()?;
        if let Some(threads) = item("num_workers")?.extract::<Option<usize>>()? {
            inference.threads = threads;
        }
        let blend = blending::blend(&item("overlap_mode")?, patch)?;
        let reduce = blending::reduce(&item("reduce")?)?;
        let part = match item("part")?.extract::<Option<(u32, u32)>>()? {
            Some((index, count)) => Some(Part::new(index, count).map_err(|error| raised(&error))?),
            None if item("resume")?.extract()? => Some(Part::WHOLE),
            None => None,
        };
        Ok(Self {
            inference,
            blending: AggregatorOptions {
                accumulator: accumulator_of(&text("accumulator")?)?,
                non_finite: non_finite_of(&text("non_finite")?)?,
                fill: item("fill")?.extract()?,
                ..AggregatorOptions::new(blend, reduce)
            },
            normalize: text("normalize")?.parse().map_err(|error| raised(&error))?,
            flips: item("flips")?.extract()?,
            part,
            durability: if item("durable")?.extract()? {
                Durability::Chunk
            } else {
                Durability::None
            },
        })
    }

    /// The model with what is done before and after it.
    fn wrapped(
        &self,
        mut model: Arc<dyn Model>,
        volume: &Arc<dyn voxpatch::Volume>,
        progress: Progress<'_>,
    ) -> Result<Arc<dyn Model>> {
        if self.flips {
            model = Arc::new(Flips::new(model)?);
        }
        self.normalize
            .wrap(model, volume, self.inference.threads.max(1), progress)
    }
}
