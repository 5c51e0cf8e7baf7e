//! Runs a schedule, pass by pass.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::cache::SweepCache;
use super::fit::Reach;
use super::model::Model;
use super::needs::least_ahead;
use super::passes::{self, ChunkRanges};
use super::pool::PatchPool;
use super::resume::Unfinished;
use super::schedule::Schedule;
use super::tasks::pause;
use super::timings::Timings;
use super::work::{Clock, Pass, PatchBatches, Reading, RunState, Semaphore, Turn};
use crate::aggregator::{AggregationStats, Aggregator};
use crate::error::{Error, Result};
use crate::progress::{Progress, report};
use crate::queue::Queue;
use crate::volume::{
    ReadStats, Volume, VolumeMut, check_distinct, check_output, create, finish_within,
    give_back_freed,
};

/// The statistics of a run.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferenceStats {
    /// Patches predicted; those between two passes count in both.
    pub patches: u64,
    /// The statistics of each output.
    pub outputs: Vec<AggregationStats>,
    /// The statistics of reading the input.
    pub reads: ReadStats,
    /// The time of each step.
    pub timings: Timings,
    /// Whether the outputs are complete and published. With several parts, only after the last one.
    pub whole: bool,
}

/// Batches after which the input is checked for modification.
const INPUT_CHECK_INTERVAL: u64 = 64;

/// The outputs of a run under construction.
struct Stores {
    outputs: Vec<Box<dyn VolumeMut>>,
    /// The same, if the run can be resumed.
    resumed: Vec<Unfinished>,
}

impl Schedule {
    /// Predicts every patch and writes the outputs. `progress` counts patches.
    pub(super) fn run(
        mut self,
        volume: Arc<dyn Volume>,
        model: Arc<dyn Model>,
        progress: Progress<'_>,
    ) -> Result<InferenceStats> {
        // Memory that earlier work freed must not count against this run.
        give_back_freed();
        let files = volume.source_files();
        let inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        for output in &self.outputs {
            check_output(&output.layout.path, &inputs)?;
        }
        check_distinct(
            &self
                .paths()
                .iter()
                .map(PathBuf::as_path)
                .collect::<Vec<_>>(),
        )?;
        if let Some(plan) = self.followed(volume.layout(), &*model)? {
            self = plan;
        }
        let mut done = InferenceStats {
            outputs: vec![AggregationStats::default(); self.outputs.len()],
            ..InferenceStats::default()
        };
        if let Some(resume) = self.resume
            && !self.passes.is_empty()
            && self.passes.iter().all(passes::is_empty)
        {
            // There are more parts than write chunks, and this part owns none.
            done.whole = self.assemble(resume, &*volume, &*model, false, progress)?;
            return Ok(done);
        }
        let mut stores = loop {
            match self.stores(&*volume, &*model) {
                // Another process may have begun the outputs just now.
                Err(error @ Error::RunMismatch { .. }) => {
                    let followed = self.followed(volume.layout(), &*model)?;
                    self = followed.ok_or(error)?;
                }
                Err(Error::Locked { .. }) if self.resume.is_some_and(|it| it.repeats) => {
                    pause(progress)?;
                }
                stores => break stores?,
            }
        };
        let shared = Arc::new(self.state(volume, model));
        let parts: Vec<Option<&ChunkRanges>> = match &self.passes[..] {
            [] => vec![None],
            passes => passes.iter().map(Some).collect(),
        };
        // The number of patches of a pass is only known once the pass begins.
        let (mut before, expected) = (0, self.grid.len() * parts.len() as u64);
        let patch_mask = self.patch_mask.clone().map(Arc::new);
        let mut writing = Duration::ZERO;
        for (n, part) in parts.iter().enumerate() {
            let outputs = self.aggregators(&mut stores, *part)?;
            let run = Arc::new(Pass::new(
                Arc::clone(&shared),
                outputs,
                self.places(*part),
                self.loan,
            ));
            run.begin()?;
            if n > 0 {
                // Its threads may allocate in another heap than those of the previous pass.
                give_back_freed();
            }
            let total = match before + run.needed() {
                last if n + 1 == parts.len() => last,
                so_far => so_far.max(expected),
            };
            let batches = PatchBatches {
                indices: run.indices().peekable(),
                run: Arc::clone(&run),
                patch_mask: patch_mask.clone(),
                batch: self.inference.batch_size.max(1),
                turn: 0,
            };
            let work = {
                let run = Arc::clone(&run);
                move |work: Turn| run.work(work)
            };
            let mut queue = Queue::new(batches, self.inference.threads.max(1), self.ahead, work);
            report(progress, before, total)?;
            for (round, added) in (1_u64..).zip(&mut queue) {
                before += added?;
                report(progress, before, total)?;
                if round.is_multiple_of(INPUT_CHECK_INTERVAL) {
                    shared.volume.check_unchanged()?;
                }
            }
            drop(queue);
            run.end()?;
            let run = Arc::into_inner(run).expect("the queue's threads are joined");
            writing += close(run.outputs, &mut done.outputs, &mut stores.outputs)?;
        }
        shared.volume.check_unchanged()?;
        done.patches = shared.predicted.load(Ordering::Relaxed);
        done.reads = shared.volume.read_stats();
        done.timings = shared.clock.seconds(writing);
        // The cache must not be held while the outputs are finished.
        let shared = Arc::into_inner(shared).expect("all parts are done");
        let (volume, model) = (shared.volume.into_inner(), shared.model);
        give_back_freed();
        done.whole = self.finish(stores, &*volume, &*model, progress)?;
        Ok(done)
    }

    /// Publishes the outputs if all are complete; returns `false` if other parts are missing.
    fn finish(
        &self,
        stores: Stores,
        volume: &dyn Volume,
        model: &dyn Model,
        progress: Progress<'_>,
    ) -> Result<bool> {
        let Some(resume) = self.resume else {
            for store in stores.outputs {
                store.finish()?;
            }
            return Ok(true);
        };
        drop(stores.outputs);
        let all = stores.resumed.into_iter();
        let all = all.filter_map(|output| Arc::into_inner(output.0));
        finish_within(all.collect(), progress)?;
        if resume.part.count() == 1 {
            return Ok(true);
        }
        self.assemble(resume, volume, model, true, progress)
    }

    fn state(&self, volume: Arc<dyn Volume>, model: Arc<dyn Model>) -> RunState {
        let channels = volume.layout().channels;
        RunState {
            volume: SweepCache::new(volume, &self.grid, self.cache_bytes),
            semaphore: model.max_calls().map(Semaphore::new),
            model,
            grid: self.grid.clone(),
            reading: self.reading(),
            scales: match &self.scales {
                Some(scales) if self.blender_normalizes => scales.of_each(channels),
                _ => Vec::new(),
            },
            pool: PatchPool::new(
                least_ahead(self.inference.threads.max(1)),
                self.working.batch,
            ),
            predicted: AtomicU64::new(0),
            clock: Clock::default(),
        }
    }

    pub(super) fn reading(&self) -> Reading {
        Reading {
            padding: self.padding,
            input: self.input,
            scales: self.scales.clone().filter(|_| !self.blender_normalizes),
        }
    }

    /// Starts the outputs, or opens those of an earlier run.
    fn stores(&self, volume: &dyn Volume, model: &dyn Model) -> Result<Stores> {
        let Some(resume) = self.resume else {
            let started = self
                .outputs
                .iter()
                .map(|output| create(&output.layout.path, &output.layout, &output.store));
            return Ok(Stores {
                outputs: started.collect::<Result<_>>()?,
                resumed: Vec::new(),
            });
        };
        let opened = self.unfinished(resume, volume, model)?;
        let boxed = |store| Box::new(store) as Box<dyn VolumeMut>;
        Ok(Stores {
            outputs: opened.iter().cloned().map(boxed).collect(),
            resumed: opened,
        })
    }

    /// Returns the places of the patches that any output needs for a pass.
    fn places(&self, part: Option<&ChunkRanges>) -> [Range<usize>; 3] {
        match part {
            Some(part) => Reach::new(&self.outputs).of(part),
            None => self.grid.every_place(),
        }
    }

    /// Returns the aggregators of the outputs, or of a part of them.
    fn aggregators(
        &self,
        stores: &mut Stores,
        part: Option<&ChunkRanges>,
    ) -> Result<Vec<Aggregator>> {
        let (resumed, stores) = (&stores.resumed, stores.outputs.drain(..));
        let outputs = self.outputs.iter().zip(stores).enumerate();
        let made = outputs.map(|(n, (output, store))| {
            let inside = |ranges: &[Range<u64>; 3], index: &[u64; 3]| {
                (0..3).all(|a| ranges[a].contains(&index[a]))
            };
            let wanted = |index: [u64; 3]| {
                part.is_none_or(|part| inside(&part[n], &index))
                    && resumed.get(n).is_none_or(|store| store.is_wanted(index))
            };
            let some_only = part.is_some() || !resumed.is_empty();
            Aggregator::of_chunks(
                output.grid.clone(),
                output.spec.channels,
                output.blending.clone(),
                store,
                some_only.then_some(&wanted),
            )
        });
        made.collect()
    }
}

/// Closes the aggregators of a pass, adds up their statistics and returns their outputs to `stores`. Returns the time
/// that threads took to write them.
fn close(
    aggregators: Vec<Aggregator>,
    sums: &mut [AggregationStats],
    stores: &mut Vec<Box<dyn VolumeMut>>,
) -> Result<Duration> {
    let mut writing = Duration::ZERO;
    for (aggregator, sum) in aggregators.into_iter().zip(sums) {
        writing += aggregator.write_time();
        let (aggregated, store) = aggregator.close()?;
        *sum += aggregated;
        stores.push(store);
    }
    Ok(writing)
}
