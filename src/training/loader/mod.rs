//! The loader: reads the patches of an epoch ahead on worker threads, and delivers them in order.
//!
//! The life of a patch, and the file of each step:
//!
//! ```text
//! planned      EpochPlan     which draw of which subject is next
//!    |         feed          opens subjects and draws some hundred patches at a time
//! drawn        Assembly      the region and its chunks; up to thousands of patches ahead
//!    |         reuse         decides which chunks and pieces are held for coming patches
//!    |         schedule      admits patches in order while the buffer has room
//! admitted     Assembly      an empty buffer
//!    |         gather        decodes chunks and copies them to the patches that need them;
//!    |                       holdings holds chunks and pieces, staging reads mapped planes
//! filling      Assembly      complete when the last piece was copied
//!    |         gather        interpolates, normalizes, casts, pads, turns and transforms it
//! ready        Sample        or a part of a contiguous Batch (batch_buffer)
//!    |         cursor        counts what this rank and worker have taken
//! delivered    Loader        the buffer returns to the pool when the consumer drops it
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

mod assembly;
mod batch;
mod batch_buffer;
mod carry;
mod cursor;
mod feed;
mod gather;
mod holdings;
mod mixing;
mod options;
mod pool;
mod reuse;
mod sample;
mod schedule;
mod slow;
mod staging;
mod wait;

pub use batch::{Batch, BatchImage};
pub(in crate::training) use carry::{Carried, Carry};
pub use gather::Transform;
pub use options::{LoaderOptions, LoaderStats, OnError};
pub use sample::{PooledPatch, Sample};
pub use wait::TryNext;

use self::cursor::StepCursor;
use self::feed::{Feed, FeedOptions};
use self::gather::Gather;
use self::mixing::Mixing;
use self::pool::SamplePool;
use self::schedule::{Delivered, Limits, Schedule};
use self::slow::SlowImages;
use super::factory::SamplerFactory;
use super::plan::EpochPlan;
use super::state::LoaderState;
use super::subjects::Subjects;
use crate::error::{Error, Result};

/// The maximum number of reasons in the statistics.
const MAX_REASONS: usize = 100;

/// One in this many bytes of the budget is for the measuring of a volume that is normalized.
const MEASURING_SHARE: u64 = 8;

/// A batch that is not complete yet.
struct PartialBatch {
    /// The place at which its step begins.
    step: u64,
    /// The patches of the step that were taken before the batch.
    before: u64,
    samples: Vec<Sample>,
}

/// An iterator over the samples of one epoch. Dropping it ends its threads.
///
/// [`Dataset::epoch`](super::Dataset::epoch) starts loaders.
pub struct Loader {
    schedule: Arc<Schedule>,
    workers: Vec<JoinHandle<()>>,
    plan: u64,
    subjects: u64,
    epoch: u64,
    /// The patches of the epoch.
    patches: u64,
    cursor: StepCursor,
    /// The batch that is being collected.
    partial: Option<PartialBatch>,
    on_error: OnError,
    stats: LoaderStats,
    mixing: Mixing,
    slow: SlowImages,
    finished: bool,
    /// Gets what this epoch leaves to the next.
    carry: Option<Carry>,
}

impl Loader {
    /// Starts epoch `epoch` of `plan` at its first patch. `samplers` makes each subject's sampler.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the plan, the subjects and the options do not fit each other.
    pub(super) fn new(
        subjects: Arc<dyn Subjects>,
        samplers: Arc<dyn SamplerFactory>,
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
        Self::resume(subjects, samplers, plan, state, options)
    }

    /// Continues an epoch at a saved state of the same plan. Threads, buffer and ranks may differ.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Error::StateMismatch`] if the state belongs to another plan or other
    /// subjects; [`Error::InvalidArgument`] if it is beyond the end of the epoch.
    pub(super) fn resume(
        subjects: Arc<dyn Subjects>,
        samplers: Arc<dyn SamplerFactory>,
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
        let (shard, worker) = (options.shard, options.worker);
        shard.check(plan.len())?;
        worker.check()?;
        options.augment.check()?;
        let state = if worker.count > 1 || options.stay_in_epoch {
            state
        } else {
            state.settled(plan, shard)
        };
        let end = shard.end(state.position, plan.len());
        let feed = FeedOptions {
            places: state.position..end,
            shard,
            worker,
            contiguous: options.contiguous_batches && options.transform.is_none(),
            same_images: options.same_images,
            augment: options.augment,
            measuring: (options.threads, options.memory / MEASURING_SHARE),
        };
        let Carried {
            subjects: open,
            chunks,
            bytes,
        } = options.carry.as_ref().map(Carry::take).unwrap_or_default();
        bytes.allow(options.memory);
        let feed = Feed::new(subjects, samplers, plan, state.epoch, feed, open);
        let limits = Limits {
            patches: options.max_length.max(1),
            bytes: options.memory,
            threads: options.threads,
            batch: options.shard.batch_size,
            table_bytes: options.table_bytes,
        };
        let pool = Arc::new(SamplePool::new(options.memory));
        let gather = Gather::new(pool, options.transform.clone());
        let mut loader = Self {
            schedule: Arc::new(Schedule::new(feed, limits, gather, (chunks, bytes))),
            workers: Vec::new(),
            plan: state.plan,
            subjects: state.subjects,
            epoch: state.epoch,
            patches: plan.len(),
            cursor: StepCursor::new(shard, worker, state.position, end),
            partial: None,
            on_error: options.on_error,
            stats: LoaderStats::default(),
            mixing: Mixing::new(options.shard.batch_size),
            slow: SlowImages::default(),
            finished: false,
            carry: options.carry.clone(),
        };
        loader.start_workers(options.threads)?;
        Ok(loader)
    }

    fn start_workers(&mut self, threads: usize) -> Result<()> {
        for n in 0..threads {
            let schedule = Arc::clone(&self.schedule);
            let worker = thread::Builder::new()
                .name(format!("voxpatch-loader-{n}"))
                .spawn(move || schedule.work());
            self.workers.push(worker.map_err(|source| Error::Io {
                action: "start a thread for",
                path: "loader".into(),
                source,
            })?);
        }
        Ok(())
    }

    /// The position in the epoch. With several ranks or workers it is the start of the current step:
    /// save it when a batch is complete, where all ranks agree.
    #[must_use]
    pub fn state(&self) -> LoaderState {
        let (step, taken) = match &self.partial {
            Some(batch) => (batch.step, batch.before),
            None => (self.cursor.start(), self.cursor.taken()),
        };
        LoaderState {
            epoch: self.epoch,
            position: self.cursor.position(step, taken).unwrap_or(self.patches),
            plan: self.plan,
            subjects: self.subjects,
        }
    }

    /// Returns the rest of this rank's current batch, or `None` at the end of the epoch.
    ///
    /// A batch has at most [`RankShard::batch_size`](super::RankShard::batch_size) patches. Every
    /// rank gets the same number of batches, so that ranks that wait for each other after each batch
    /// never hang; see [`Uneven`](super::Uneven). A batch may be empty if all of its patches were
    /// left out, or, with [`Uneven::Exact`](super::Uneven::Exact), at the end of an epoch that was
    /// resumed with fewer patches left than ranks. A rank with an empty batch contributes nothing to
    /// that step.
    ///
    /// An error takes the place of a patch; the next call continues the same batch.
    pub fn next_batch(&mut self) -> Option<Result<Vec<Sample>>> {
        until_ready(|| self.next_batch_timeout(Duration::MAX))
    }

    /// Like [`next_batch`](Self::next_batch), but waits at most `timeout`, or slightly longer if the
    /// caller's thread reads. Patches that are ready by then are kept for the next call.
    pub fn next_batch_timeout(&mut self, timeout: Duration) -> TryNext<Result<Vec<Sample>>> {
        let pool = Arc::clone(&self.schedule.gather.pool);
        self.collect_batch(timeout).and_then(|mut samples| {
            let mut all = samples.iter_mut();
            all.try_for_each(|sample| sample.detach(&pool))?;
            Ok(samples)
        })
    }

    /// Like [`next_batch`](Self::next_batch), with the patches of each image in one buffer. It needs
    /// no copy if [`LoaderOptions::contiguous_batches`] is set.
    ///
    /// Samples whose images differ in name, shape, channels or type are an [`Error::InvalidArgument`].
    pub fn next_contiguous_batch(&mut self) -> Option<Result<Batch>> {
        until_ready(|| self.next_contiguous_batch_timeout(Duration::MAX))
    }

    /// Like [`next_contiguous_batch`](Self::next_contiguous_batch), but waits as
    /// [`next_batch_timeout`](Self::next_batch_timeout) does.
    pub fn next_contiguous_batch_timeout(&mut self, timeout: Duration) -> TryNext<Result<Batch>> {
        let pool = Arc::clone(&self.schedule.gather.pool);
        self.collect_batch(timeout)
            .and_then(|samples| Batch::of(samples, &pool))
    }

    fn collect_batch(&mut self, timeout: Duration) -> TryNext<Result<Vec<Sample>>> {
        if self.partial.is_none() {
            if self.cursor.is_finished() {
                return TryNext::Finished;
            }
            self.partial = Some(PartialBatch {
                step: self.cursor.start(),
                before: self.cursor.taken(),
                samples: Vec::new(),
            });
            self.cursor.pass_empty_step();
        }
        let deadline = Instant::now().checked_add(timeout);
        while let Some(batch) = &mut self.partial
            && batch.step == self.cursor.start()
        {
            match self.take(deadline) {
                TryNext::Ready(Ok(Some(sample))) => {
                    if let Some(batch) = &mut self.partial {
                        batch.samples.push(sample);
                    }
                }
                TryNext::Ready(Ok(None)) => {}
                TryNext::Ready(Err(error)) => return TryNext::Ready(Err(error)),
                TryNext::TimedOut => return TryNext::TimedOut,
                // Only after a panic of the feed, which was delivered in the place of a patch.
                TryNext::Finished => return TryNext::Finished,
            }
        }
        let samples = self.partial.take().map(|batch| batch.samples);
        TryNext::Ready(Ok(samples.unwrap_or_default()))
    }

    /// Like the iterator's `next`, but waits at most `timeout`, or slightly longer if the caller's
    /// thread reads.
    pub fn next_timeout(&mut self, timeout: Duration) -> TryNext<Result<Sample>> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            match self.take(deadline) {
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

    /// Returns the statistics so far.
    #[must_use]
    pub fn stats(&self) -> LoaderStats {
        let counters = &self.schedule.gather.counters;
        LoaderStats {
            chunks: counters.chunks.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            copies: counters.copies.load(Ordering::Relaxed),
            fill: self.schedule.fill(),
            subjects_per_batch: self.mixing.mean(),
            slow: self.slow.texts().to_vec(),
            ..self.stats.clone()
        }
    }

    /// The number of patches that this loader has not delivered yet.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.cursor.remaining()
    }

    /// Takes the next patch in order; `Ok(None)` if it was left out.
    fn take(&mut self, deadline: Option<Instant>) -> TryNext<Result<Option<Sample>>> {
        if self.finished {
            return TryNext::Finished;
        }
        let began = Instant::now();
        let delivered = self.schedule.next(self.workers.is_empty(), deadline);
        self.stats.waited += began.elapsed();
        let delivered = match delivered {
            TryNext::Ready(delivered) => delivered,
            TryNext::TimedOut => return TryNext::TimedOut,
            TryNext::Finished => {
                self.finished = true;
                self.cursor.pass_empty_step();
                return TryNext::Finished;
            }
        };
        self.cursor.advance();
        TryNext::Ready(match delivered {
            Delivered::Sample(sample) => {
                self.stats.delivered += 1;
                self.mixing.count(sample.subject_index);
                let (subject, patch) = (sample.subject_index, sample.region.shape);
                self.slow.look(subject, sample.subject(), patch);
                Ok(Some(*sample))
            }
            Delivered::LeftOut { index, name } => {
                self.leave_out(format!(
                    "subject {index} ({name}) was left out: nothing can be drawn from it"
                ));
                Ok(None)
            }
            Delivered::Error(error) if self.on_error == OnError::Skip && !is_mixed(&error) => {
                self.leave_out(error.with_causes());
                Ok(None)
            }
            Delivered::Error(error) => Err(Error::shared(error)),
        })
    }

    fn leave_out(&mut self, reason: String) {
        self.stats.left_out += 1;
        if self.stats.reasons.len() < MAX_REASONS && !self.stats.reasons.contains(&reason) {
            self.stats.reasons.push(reason);
        }
    }
}

/// Repeats a wait until it ends.
fn until_ready<T>(mut wait: impl FnMut() -> TryNext<T>) -> Option<T> {
    loop {
        match wait() {
            TryNext::Ready(item) => return Some(item),
            TryNext::TimedOut => {}
            TryNext::Finished => return None,
        }
    }
}

/// Returns `true` if the error concerns the whole list of subjects, which skipping would hide.
fn is_mixed(error: &Error) -> bool {
    match error {
        Error::Subject { source, .. } | Error::Shared(source) => is_mixed(source),
        other => matches!(other, Error::SubjectMismatch { .. }),
    }
}

impl Iterator for Loader {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        until_ready(|| self.next_timeout(Duration::MAX))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.schedule.stop();
        for worker in self.workers.drain(..) {
            // Panics of user code were caught and delivered; no consumer is left for any other.
            let _ = worker.join();
        }
        if let Some(carry) = &self.carry {
            carry.leave(self.schedule.leave());
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
