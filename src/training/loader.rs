//! The loader: the patches of an epoch, read ahead by workers, delivered in the plan's order.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::feed::{Feed, SamplerFactory};
use super::gather::{Gather, Transform};
use super::kept::Room;
use super::plan::EpochPlan;
use super::pool::Pool;
use super::sample::Sample;
use super::schedule::{Delivered, Limits, Schedule};
use super::shard::{RankShard, WorkerShard};
use super::state::LoaderState;
use super::subject::Subjects;
use crate::error::{Error, Result};
use crate::threads::threads;

/// What to read, and with how much of the machine.
#[derive(Clone)]
pub struct LoaderOptions {
    /// Threads that read; with 0 the consumer's own does it when it asks.
    pub threads: usize,
    /// Patches that the buffer may hold, complete or not.
    pub max_length: usize,
    /// Bytes that patches in the buffer may take, and decoded chunks beside them: where all chunks of all
    /// subjects fit into three quarters of it, each is decoded once. One patch is always admitted.
    pub max_bytes: u64,
    /// Which patches are this rank's.
    pub shard: RankShard,
    /// Which of the rank's batches are this loader's.
    pub worker: WorkerShard,
    /// Stay in the epoch of a state that was saved at its end, although nothing is left of it, in
    /// place of beginning the next. Always so for loaders that take turns, of which some may not
    /// have reached the end.
    pub stay_in_epoch: bool,
    /// Whether the patches of a batch are put together in one buffer for each image, as
    /// [`Loader::next_contiguous_batch_timeout`] gives them; patches that are asked for otherwise are then copied. Not
    /// together with `transform`.
    pub contiguous_batches: bool,
    /// Refuse subjects whose images differ in name, channels or type from those of the first subject
    /// of the epoch: [`Error::SubjectMismatch`], whatever [`on_error`](Self::on_error) is. A
    /// [`Cohort`](super::Cohort) checks all subjects before the first patch.
    pub alike: bool,
    /// What becomes of a subject that cannot be opened, drawn from or read.
    pub on_error: OnError,
    /// Changes each sample on a worker's thread.
    pub transform: Option<Arc<Transform>>,
}

/// What becomes of a patch that cannot be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The consumer gets the error in the patch's place.
    #[default]
    Fail,
    /// The patch is left out, and the reason kept in the statistics.
    Skip,
}

impl Default for LoaderOptions {
    /// All cores, 300 patches or 512 MiB, everything to one rank.
    fn default() -> Self {
        Self {
            threads: threads(),
            max_length: 300,
            max_bytes: 512 << 20,
            shard: RankShard::whole(1),
            worker: WorkerShard::default(),
            stay_in_epoch: false,
            contiguous_batches: false,
            alike: false,
            on_error: OnError::Fail,
            transform: None,
        }
    }
}

impl fmt::Debug for LoaderOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoaderOptions")
            .field("threads", &self.threads)
            .field("max_length", &self.max_length)
            .field("max_bytes", &self.max_bytes)
            .field("shard", &self.shard)
            .field("worker", &self.worker)
            .field("stay_in_epoch", &self.stay_in_epoch)
            .field("contiguous_batches", &self.contiguous_batches)
            .field("alike", &self.alike)
            .field("on_error", &self.on_error)
            .field("transform", &self.transform.is_some())
            .finish()
    }
}

/// What a loader has done so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoaderStats {
    /// Patches delivered.
    pub delivered: u64,
    /// Patches left out, with subjects' errors or by the sampler's maker.
    pub left_out: u64,
    /// The first of the reasons, one a subject.
    pub reasons: Vec<String>,
    /// How long the consumer waited.
    pub waited: Duration,
    /// Chunks fetched and decoded.
    pub chunks: u64,
    /// Bytes read of all images, before decoding.
    pub bytes: u64,
    /// Times that a chunk was copied into a patch: without sharing, each would be a decode.
    pub copies: u64,
    /// Patches in the buffer that are complete, and that are not.
    pub fill: (usize, usize),
}

/// The outcome of a timed wait.
#[derive(Debug)]
pub enum TryNext<T> {
    /// The next item.
    Ready(T),
    /// Timed out; try again.
    TimedOut,
    /// The end of the epoch.
    Finished,
}

impl<T> TryNext<Result<T>> {
    fn and_then<U>(self, then: impl FnOnce(T) -> Result<U>) -> TryNext<Result<U>> {
        match self {
            Self::Ready(found) => TryNext::Ready(found.and_then(then)),
            Self::TimedOut => TryNext::TimedOut,
            Self::Finished => TryNext::Finished,
        }
    }
}

/// Reasons that statistics keep.
const MOST_REASONS: usize = 100;

/// A batch of which not every patch is there yet.
struct Gathered {
    /// The step that it belongs to.
    step: u64,
    /// What was taken of the step before it.
    before: u64,
    samples: Vec<Sample>,
}

/// An iterator over one epoch's samples; its threads end with it.
pub struct Loader {
    schedule: Arc<Schedule>,
    workers: Vec<JoinHandle<()>>,
    plan: u64,
    subjects: u64,
    epoch: u64,
    shard: RankShard,
    worker: WorkerShard,
    /// Patches of the epoch.
    patches: u64,
    /// The place at which the last step ends, for all ranks together.
    end: u64,
    /// Where the step begins that is being delivered.
    step_start: u64,
    /// Patches of this rank's part of it that were taken.
    taken: u64,
    /// The batch that is being gathered.
    gathered: Option<Gathered>,
    on_error: OnError,
    stats: LoaderStats,
    over: bool,
}

impl Loader {
    /// Epoch `epoch` of `plan`, from its first patch.
    ///
    /// `make` makes each subject's sampler, with a seed of the subject's own.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the plan, the subjects and the options do not fit each other.
    pub fn new(
        subjects: Arc<dyn Subjects>,
        make: Arc<SamplerFactory>,
        plan: &EpochPlan,
        epoch: u64,
        options: &LoaderOptions,
    ) -> Result<Self> {
        let state = LoaderState {
            epoch,
            position: 0,
            plan: plan.fingerprint(),
            subjects: subjects.fingerprint(),
        };
        Self::resume(subjects, make, plan, state, options)
    }

    /// An epoch from where a saved state was, with the same plan; threads, buffer and ranks
    /// may differ. A state at the end of an epoch is resumed with the next epoch, unless
    /// [`LoaderOptions::stay_in_epoch`] is set.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Error::StateMismatch`] if the state is another plan's or other
    /// subjects'; [`Error::InvalidArgument`] if it is beyond the epoch's end.
    pub fn resume(
        subjects: Arc<dyn Subjects>,
        make: Arc<SamplerFactory>,
        plan: &EpochPlan,
        state: LoaderState,
        options: &LoaderOptions,
    ) -> Result<Self> {
        state.check(plan, &*subjects)?;
        if plan.subjects() != subjects.len() {
            return Err(Error::InvalidArgument {
                argument: "plan",
                value: format!("for {} subjects", plan.subjects()),
                problem: format!("there are {}", subjects.len()),
            });
        }
        let shard = options.shard;
        let worker = options.worker;
        shard.check(plan.len())?;
        worker.check()?;
        let state = if worker.count > 1 || options.stay_in_epoch {
            state
        } else {
            state.settled(plan, shard)
        };
        let epoch = plan.epoch(state.epoch);
        let end = shard.end(state.position, plan.len());
        let left = state.position..end;
        let room = Arc::new(Room::within(options.max_bytes));
        let in_batches = options.contiguous_batches && options.transform.is_none();
        let feed = Feed::new(
            subjects,
            make,
            plan.seed(),
            (epoch, plan.window()),
            (shard, worker, in_batches),
            left,
            Arc::clone(&room),
        )
        .alike(options.alike);
        let limits = Limits {
            patches: options.max_length.max(1),
            bytes: options.max_bytes,
            room,
        };
        let pool = Arc::new(Pool::new(options.max_bytes));
        let gather = Gather::new(pool, options.transform.clone());
        let schedule = Arc::new(Schedule::new(feed, limits, gather));
        let workers = (0..options.threads)
            .map(|n| {
                let schedule = Arc::clone(&schedule);
                thread::Builder::new()
                    .name(format!("voxpatch-loader-{n}"))
                    .spawn(move || schedule.work())
                    .map_err(|source| Error::Io {
                        action: "start a thread for",
                        path: "loader".into(),
                        source,
                    })
            })
            .collect::<Result<_>>();
        let mut loader = Self {
            schedule,
            workers: Vec::new(),
            plan: state.plan,
            subjects: state.subjects,
            epoch: state.epoch,
            shard,
            worker,
            patches: plan.len(),
            end,
            step_start: state.position,
            taken: 0,
            gathered: None,
            on_error: options.on_error,
            stats: LoaderStats::default(),
            over: false,
        };
        loader.workers = workers?;
        loader.skip_steps(worker.index);
        Ok(loader)
    }

    /// Where the epoch is. On several ranks, or of several loaders that take turns, the start of the
    /// step that is being delivered: save it when a batch is complete, where all ranks agree.
    #[must_use]
    pub fn state(&self) -> LoaderState {
        let (step, taken) = match &self.gathered {
            Some(batch) => (batch.step, batch.before),
            None => (self.step_start, self.taken),
        };
        let inside = if self.shard.world_size == 1 && self.worker.count == 1 {
            taken
        } else {
            0
        };
        LoaderState {
            epoch: self.epoch,
            position: if step < self.end {
                step + inside
            } else {
                self.patches
            },
            plan: self.plan,
            subjects: self.subjects,
        }
    }

    /// The rest of this rank's current batch, at most [`RankShard::batch_size`] patches; `None` at the
    /// end of the epoch.
    ///
    /// Every rank is given equally many batches, so that ranks which wait for each other after
    /// each of them never wait in vain; see [`Uneven`](super::Uneven). A batch may be empty where
    /// its patches were left out, and with [`Uneven::Exact`](super::Uneven::Exact) at the end of an
    /// epoch that was resumed with fewer patches left than there are ranks. A rank with an empty
    /// batch has nothing to add to that step.
    ///
    /// An error comes in the place of a patch; the next call goes on with the same batch.
    pub fn next_batch(&mut self) -> Option<Result<Vec<Sample>>> {
        loop {
            match self.next_batch_timeout(Duration::MAX) {
                TryNext::Ready(batch) => return Some(batch),
                TryNext::TimedOut => {}
                TryNext::Finished => return None,
            }
        }
    }

    /// As [`next_batch`](Self::next_batch), but waits no longer than `limit`, or a little more where
    /// the caller's own thread reads: what is there by then is kept for the next call.
    pub fn next_batch_timeout(&mut self, limit: Duration) -> TryNext<Result<Vec<Sample>>> {
        let pool = Arc::clone(&self.schedule.gather.pool);
        self.samples_within(limit).and_then(|mut samples| {
            let mut all = samples.iter_mut();
            all.try_for_each(|sample| sample.detach(&pool))?;
            Ok(samples)
        })
    }

    /// As [`next_batch_timeout`](Self::next_batch_timeout), with the patches of each image in one buffer: without a copy
    /// where [`LoaderOptions::contiguous_batches`] is set.
    ///
    /// Samples whose images differ in name, shape, channels or type are an [`Error::InvalidArgument`].
    pub fn next_contiguous_batch_timeout(&mut self, limit: Duration) -> TryNext<Result<Batch>> {
        let pool = Arc::clone(&self.schedule.gather.pool);
        self.samples_within(limit)
            .and_then(|samples| Batch::of(samples, &pool))
    }

    fn samples_within(&mut self, limit: Duration) -> TryNext<Result<Vec<Sample>>> {
        if self.gathered.is_none() {
            if self.step_start >= self.end {
                return TryNext::Finished;
            }
            self.gathered = Some(Gathered {
                step: self.step_start,
                before: self.taken,
                samples: Vec::new(),
            });
            self.pass_empty_step();
        }
        let until = Instant::now().checked_add(limit);
        while let Some(batch) = &mut self.gathered
            && batch.step == self.step_start
        {
            match self.take(until) {
                TryNext::Ready(Ok(Some(sample))) => {
                    if let Some(batch) = &mut self.gathered {
                        batch.samples.push(sample);
                    }
                }
                TryNext::Ready(Ok(None)) => {}
                TryNext::Ready(Err(error)) => return TryNext::Ready(Err(error)),
                TryNext::TimedOut => return TryNext::TimedOut,
                // Only after a panic of the feed, which was told of in the place of a patch.
                TryNext::Finished => return TryNext::Finished,
            }
        }
        let samples = self.gathered.take().map(|batch| batch.samples);
        TryNext::Ready(Ok(samples.unwrap_or_default()))
    }

    /// As the iterator's `next`, but waits no longer than `limit`, or a little more where the
    /// caller's own thread reads.
    pub fn next_timeout(&mut self, limit: Duration) -> TryNext<Result<Sample>> {
        let until = Instant::now().checked_add(limit);
        loop {
            match self.take(until) {
                TryNext::Ready(Ok(Some(mut sample))) => {
                    let detached = sample.detach(&self.schedule.gather.pool);
                    return TryNext::Ready(detached.map(|()| sample));
                }
                TryNext::Ready(Ok(None)) => {}
                TryNext::Ready(Err(error)) => return TryNext::Ready(Err(error)),
                TryNext::TimedOut => return TryNext::TimedOut,
                TryNext::Finished => return TryNext::Finished,
            }
        }
    }

    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> LoaderStats {
        let counters = &self.schedule.gather.counters;
        LoaderStats {
            chunks: counters.chunks.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            copies: counters.copies.load(Ordering::Relaxed),
            fill: self.schedule.fill(),
            ..self.stats.clone()
        }
    }

    /// Patches of this loader that are still to come.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        let own = WorkerShard {
            index: 0,
            count: self.worker.count,
        };
        self.shard.left(own, self.step_start, self.end).0 - self.taken
    }

    /// The next patch in order, `None` in it if it was left out.
    fn take(&mut self, until: Option<Instant>) -> TryNext<Result<Option<Sample>>> {
        if self.over {
            return TryNext::Finished;
        }
        let began = Instant::now();
        let delivered = self.schedule.next(self.workers.is_empty(), until);
        self.stats.waited += began.elapsed();
        let delivered = match delivered {
            TryNext::Ready(delivered) => delivered,
            TryNext::TimedOut => return TryNext::TimedOut,
            TryNext::Finished => {
                self.over = true;
                self.pass_empty_step();
                return TryNext::Finished;
            }
        };
        self.advance();
        TryNext::Ready(match delivered {
            Delivered::Sample(sample) => {
                self.stats.delivered += 1;
                Ok(Some(*sample))
            }
            Delivered::LeftOut { index, name } => {
                self.leave_out(format!(
                    "subject {index} ({name}) was left out: nothing can be drawn from it"
                ));
                Ok(None)
            }
            Delivered::Error(error) if self.on_error == OnError::Skip && !is_mixed(&error) => {
                self.leave_out(chain(&error));
                Ok(None)
            }
            Delivered::Error(error) => Err(Error::shared(error)),
        })
    }

    fn leave_out(&mut self, reason: String) {
        self.stats.left_out += 1;
        if self.stats.reasons.len() < MOST_REASONS && !self.stats.reasons.contains(&reason) {
            self.stats.reasons.push(reason);
        }
    }

    /// Goes on if the step has no patch for this rank, as the last of a resumed epoch may.
    fn pass_empty_step(&mut self) {
        let step = self.shard.step(self.step_start, self.end);
        if self.shard.part(&step).is_empty() {
            self.step_done(step.end);
        }
    }

    fn advance(&mut self) {
        self.taken += 1;
        let step = self.shard.step(self.step_start, self.end);
        let part = self.shard.part(&step);
        if self.taken >= part.end - part.start {
            self.step_done(step.end);
        }
    }

    /// Goes to this loader's next step; the last one ended at `end`.
    fn step_done(&mut self, end: u64) {
        (self.step_start, self.taken) = (end, 0);
        self.skip_steps(self.worker.count - 1);
    }

    fn skip_steps(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step_start = self.shard.step(self.step_start, self.end).end;
        }
    }
}

/// Whether the error is about the whole list of subjects, which skipping some would hide.
fn is_mixed(error: &Error) -> bool {
    match error {
        Error::Subject { source, .. } | Error::Shared(source) => is_mixed(source),
        other => matches!(other, Error::SubjectMismatch { .. }),
    }
}

/// An error with its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl Iterator for Loader {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_timeout(Duration::MAX) {
                TryNext::Ready(sample) => return Some(sample),
                TryNext::TimedOut => {}
                TryNext::Finished => return None,
            }
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.schedule.stop();
        for worker in self.workers.drain(..) {
            // Panics of code that is not ours were caught; there is nobody left to tell of others.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("state", &self.state())
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}
