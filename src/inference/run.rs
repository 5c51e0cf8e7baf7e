//! Running a plan: patches are read, predicted and blended on several threads.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::columns::{self, Part};
use super::mask::Selection;
use super::model::{Input, Model};
use super::plan::Plan;
use super::resume::Unfinished;
use crate::aggregator::{Aggregated, Aggregator};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::pad::Padding;
use crate::patch::Patch;
use crate::progress::{Progress, report};
use crate::queue::Queue;
use crate::region::Region;
use crate::volume::{Cached, Reads, Volume, VolumeMut, create, real_values};

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predicted {
    /// Patches predicted; those between two columns count for each.
    pub patches: u64,
    /// What became of them, for each output.
    pub outputs: Vec<Aggregated>,
    /// What was read of the input.
    pub reads: Reads,
    /// Where the time went.
    pub seconds: Seconds,
    /// Whether the outputs are whole; not before the last of several parts is done.
    pub whole: bool,
}

/// Seconds of all threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Reading and decoding.
    pub reading: f64,
    /// In the model, or waiting for it.
    pub predicting: f64,
    /// Blending, reducing, encoding and writing.
    pub blending: f64,
}

/// What the threads of a run share.
#[derive(Debug)]
struct Run {
    volume: Cached,
    model: Arc<dyn Model>,
    gate: Option<Gate>,
    grid: Grid,
    padding: Padding,
    outputs: Vec<Aggregator>,
    spare: Spare,
    predicted: AtomicU64,
    clock: Arc<Clock>,
}

/// Patches that were blended, whose memory the next ones are read into: fresh memory costs a page
/// fault a page.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Vec<Patch>>);

impl Spare {
    /// A patch with anything in it.
    fn take(&self, region: Region, channels: u64, dtype: DType) -> Result<Patch> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |patch: &Patch| {
            (patch.shape(), patch.channels(), patch.dtype()) == (region.shape, channels, dtype)
        };
        if let Some(at) = spare.iter().position(fits) {
            return Ok(spare.swap_remove(at).moved_to(region.start));
        }
        // Patches of another kind would only pile up.
        spare.clear();
        drop(spare);
        Patch::zeros(region, channels, dtype)
    }

    fn give(&self, patch: Arc<Patch>) {
        if let Ok(patch) = Arc::try_unwrap(patch) {
            let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            spare.push(patch);
        }
    }
}

#[derive(Debug, Default)]
struct Clock {
    reading: AtomicU64,
    predicting: AtomicU64,
    blending: AtomicU64,
}

/// What a thread does next.
enum Work {
    Predict(Vec<u64>),
    Skip(Vec<u64>),
}

/// Skipped patches that are worked off at a time.
const SKIPS: usize = 64;

impl Plan {
    /// Predicts every patch and writes the outputs. `progress` counts patches.
    ///
    /// # Errors
    ///
    /// The errors of reading, of the model and of writing; [`Error::Stopped`] if `progress`
    /// says so. An output takes its name only if all went well.
    ///
    /// # Panics
    ///
    /// If the model panics, once all threads have stopped.
    pub fn run(
        self,
        volume: Arc<dyn Volume>,
        model: Arc<dyn Model>,
        progress: Progress<'_>,
    ) -> Result<Predicted> {
        if self.columns.iter().all(columns::is_empty) && !self.columns.is_empty() {
            // More parts than there is to share: the others do it all.
            let whole = self
                .outputs
                .iter()
                .all(|output| output.layout.path.exists());
            return Ok(Predicted {
                outputs: vec![Aggregated::default(); self.outputs.len()],
                whole,
                ..Predicted::default()
            });
        }
        let (mut stores, pending) = self.stores(&*volume, &*model)?;
        let mut volume = Cached::new(volume, self.cache_bytes);
        let mut done = Predicted {
            outputs: vec![Aggregated::default(); self.outputs.len()],
            ..Predicted::default()
        };
        let clock = Arc::new(Clock::default());
        let parts: Vec<Option<&Part>> = match &self.columns[..] {
            [] => vec![None],
            columns => columns.iter().map(Some).collect(),
        };
        let aggregators = |stores: Vec<Box<dyn VolumeMut>>, part: Option<&Part>| {
            let outputs = self.outputs.iter().zip(stores).enumerate();
            let made = outputs.map(|(n, (output, store))| {
                let ranges = part.map(|part| part[n].clone());
                let wanted = |index: [u64; 3]| {
                    let inside = |ranges: &[std::ops::Range<u64>; 3]| {
                        (0..3).all(|a| ranges[a].contains(&index[a]))
                    };
                    ranges.as_ref().is_none_or(inside)
                        && pending
                            .as_ref()
                            .is_none_or(|pending| pending[n].contains(&index))
                };
                Aggregator::of_chunks(
                    output.grid.clone(),
                    output.prediction.channels,
                    output.blending.clone(),
                    store,
                    (part.is_some() || pending.is_some()).then_some(&wanted),
                )
            });
            made.collect::<Result<Vec<_>>>()
        };
        // How many patches each part needs is only known once it is begun.
        let (mut before, expected) = (0, self.grid.len() * parts.len() as u64);
        let selection = self.selection.clone().map(Arc::new);
        for (n, part) in parts.iter().enumerate() {
            let run = Arc::new(Run {
                outputs: aggregators(std::mem::take(&mut stores), *part)?,
                volume,
                model: Arc::clone(&model),
                gate: model.at_once().map(Gate::new),
                grid: self.grid.clone(),
                padding: self.padding,
                spare: Spare::default(),
                predicted: AtomicU64::new(0),
                clock: Arc::clone(&clock),
            });
            let needed = if part.is_some() || pending.is_some() {
                run.needed()
            } else {
                self.grid.len()
            };
            let total = if n + 1 == parts.len() {
                before + needed
            } else {
                expected.max(before + needed)
            };
            let batches = Batches {
                run: Arc::clone(&run),
                selection: selection.clone(),
                batch: self.inference.batch.max(1),
                next: 0,
            };
            let work = {
                let run = Arc::clone(&run);
                move |work: Work| run.work(work)
            };
            let mut queue = Queue::new(batches, self.inference.threads.max(1), self.ahead, work);
            report(progress, before, total)?;
            for added in &mut queue {
                before += added?;
                report(progress, before, total)?;
            }
            drop(queue);
            let run = Arc::into_inner(run).expect("the queue's threads are joined");
            done.patches += run.predicted.into_inner();
            volume = run.volume;
            for (aggregator, sum) in run.outputs.into_iter().zip(&mut done.outputs) {
                let (aggregated, store) = aggregator.close()?;
                *sum += aggregated;
                stores.push(store);
            }
        }
        for store in stores {
            store.finish()?;
        }
        done.whole = match self.resume {
            Some(resume) if resume.part.count() > 1 => self.assemble(resume, &volume, &*model)?,
            _ => true,
        };
        done.reads = volume.reads();
        done.seconds = clock.seconds();
        Ok(done)
    }
}

/// For each output, the write chunks (z, y, x) that have to be made.
type Pending = Vec<HashSet<[u64; 3]>>;

impl Plan {
    /// Starts the outputs, or opens those of an earlier run, of which some write chunks are done.
    fn stores(
        &self,
        volume: &dyn Volume,
        model: &dyn Model,
    ) -> Result<(Vec<Box<dyn VolumeMut>>, Option<Pending>)> {
        let Some(resume) = self.resume else {
            let started = self
                .outputs
                .iter()
                .map(|output| create(&output.layout.path, &output.layout, &output.store));
            return Ok((started.collect::<Result<_>>()?, None));
        };
        let opened = self.unfinished(resume, volume, model)?;
        let missing =
            |store: &Unfinished| store.0.pending().map(|[_, z, y, x]| [z, y, x]).collect();
        let pending = opened.iter().map(missing).collect();
        let boxed = |store| Box::new(store) as Box<dyn VolumeMut>;
        Ok((opened.into_iter().map(boxed).collect(), Some(pending)))
    }

    /// Seconds that a run takes, about: as many times a patch in the middle as there are patches, read and
    /// predicted twice, the second time counting.
    ///
    /// # Errors
    ///
    /// Those of reading and of the model.
    pub fn guess(&self, volume: &Arc<dyn Volume>, model: &dyn Model) -> Result<f64> {
        let middle = self.grid.len() / 2;
        let region = self.grid.get(middle).expect("a grid has a middle");
        let mut seconds = 0.0;
        for _ in 0..2 {
            let began = Instant::now();
            let patch = read(
                &**volume,
                self.padding,
                model.input(),
                region,
                &Spare::default(),
            )?;
            model.predict(vec![patch])?;
            seconds = began.elapsed().as_secs_f64();
        }
        let threads = self.inference.threads.max(1);
        let parallel = model.at_once().map_or(threads, |calls| calls.min(threads));
        #[expect(clippy::cast_precision_loss, reason = "a guess")]
        let patches = self.patches().1 as f64 / parallel as f64;
        Ok(seconds * patches)
    }
}

impl Run {
    /// Whether any output needs patch `index`.
    fn needs(&self, index: u64) -> bool {
        self.outputs.iter().any(|output| output.needs(index))
    }

    fn needed(&self) -> u64 {
        (0..self.grid.len())
            .filter(|&index| self.needs(index))
            .count() as u64
    }

    /// Does a piece of work; gives the number of its patches.
    fn work(&self, work: Work) -> Result<u64> {
        match work {
            Work::Skip(indices) => {
                for &index in &indices {
                    for output in self.outputs.iter().filter(|output| output.needs(index)) {
                        output.skip(index)?;
                    }
                }
                Ok(indices.len() as u64)
            }
            Work::Predict(indices) => self.predict(&indices),
        }
    }

    /// Reads a batch, predicts it and adds it; gives its size.
    fn predict(&self, indices: &[u64]) -> Result<u64> {
        let regions = indices.iter().filter_map(|&index| self.grid.get(index));
        let batch = self.clock.time(&self.clock.reading, || {
            let (padding, input) = (self.padding, self.model.input());
            let read = |region| read(&self.volume, padding, input, region, &self.spare);
            regions.map(read).collect::<Result<Vec<_>>>()
        })?;
        let count = batch.len();
        let predictions = self.clock.time(&self.clock.predicting, || {
            let _pass = self.gate.as_ref().map(Gate::enter);
            self.model.predict(batch)
        })?;
        let complete = predictions.len() == self.outputs.len()
            && predictions.iter().all(|output| output.len() == count);
        if !complete {
            let lengths: Vec<usize> = predictions.iter().map(Vec::len).collect();
            return Err(Error::Setting {
                name: "a model's predictions of",
                value: format!("{lengths:?}"),
                problem: format!(
                    "{count} patches went in, and it has {} outputs",
                    self.outputs.len()
                ),
            });
        }
        self.predicted.fetch_add(count as u64, Ordering::Relaxed);
        self.clock.time(&self.clock.blending, || {
            for (output, predictions) in self.outputs.iter().zip(predictions) {
                for (&index, prediction) in indices.iter().zip(predictions) {
                    if output.needs(index) {
                        let prediction = Arc::new(prediction);
                        output.add(index, Arc::clone(&prediction))?;
                        self.spare.give(prediction);
                    }
                }
            }
            Ok(count as u64)
        })
    }
}

/// Reads a patch as the model wants it, padded where it hangs over.
pub(super) fn read(
    volume: &dyn Volume,
    padding: Padding,
    input: Input,
    region: Region,
    spare: &Spare,
) -> Result<Patch> {
    let layout = volume.layout();
    let source = padding.source(region, layout.shape);
    let mut patch = spare.take(source, layout.channels, layout.dtype)?;
    volume.read_into(source, patch.bytes_mut())?;
    if source != region {
        let (channels, dtype) = (patch.channels(), patch.dtype());
        let mut padded = Patch::zeros(region, channels, dtype)?;
        let target = (padded.bytes_mut(), region);
        let filled = (patch.bytes(), source);
        padding.fill(filled, target, channels, dtype, layout.shape);
        patch = padded;
    }
    match input {
        Input::Stored => Ok(patch),
        Input::Real => real_values(patch, layout.rescale),
    }
}

/// Batches of the patches that are needed, and of those that are skipped.
struct Batches {
    run: Arc<Run>,
    selection: Option<Arc<Selection>>,
    batch: usize,
    next: u64,
}

impl Iterator for Batches {
    type Item = Work;

    fn next(&mut self) -> Option<Work> {
        let selected = |index| {
            self.selection
                .as_ref()
                .is_none_or(|some| some.contains(index))
        };
        let mut indices = Vec::new();
        let mut kind = None;
        while self.next < self.run.grid.len() {
            let index = self.next;
            if self.run.needs(index) {
                let predicted = selected(index);
                if *kind.get_or_insert(predicted) != predicted {
                    break;
                }
                indices.push(index);
            }
            self.next += 1;
            let most = if kind == Some(false) {
                SKIPS
            } else {
                self.batch
            };
            if indices.len() >= most {
                break;
            }
        }
        match kind? {
            true => Some(Work::Predict(indices)),
            false => Some(Work::Skip(indices)),
        }
    }
}

impl Clock {
    /// Does something and adds the time it took to `sum`.
    fn time<T>(&self, sum: &AtomicU64, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        let nanoseconds = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        sum.fetch_add(nanoseconds, Ordering::Relaxed);
        done
    }

    fn seconds(&self) -> Seconds {
        let seconds =
            |sum: &AtomicU64| Duration::from_nanos(sum.load(Ordering::Relaxed)).as_secs_f64();
        Seconds {
            reading: seconds(&self.reading),
            predicting: seconds(&self.predicting),
            blending: seconds(&self.blending),
        }
    }
}

/// Lets so many threads through at once.
#[derive(Debug)]
struct Gate {
    free: Mutex<usize>,
    left: Condvar,
}

struct Pass<'a>(&'a Gate);

impl Gate {
    fn new(passes: usize) -> Self {
        Self {
            free: Mutex::new(passes.max(1)),
            left: Condvar::new(),
        }
    }

    fn enter(&self) -> Pass<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .left
            .wait_while(free, |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Pass(self)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.left.notify_one();
    }
}
