//! The schedule: decides which chunk is read next, and for which patches.
//!
//! Patches are admitted in delivery order while the buffer has room. The first admitted patch that
//! still needs a chunk decides which chunk is read. The chunk is then copied to every admitted patch
//! that needs it. So the consumer never waits for unrelated work, and among the admitted patches no
//! chunk is read or decoded twice. A patch that is admitted while a chunk is being read gets that
//! chunk too. A box of planes of a mapped file is treated like a chunk.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::assembly::{Assembly, ChunkKey, Piece};
use super::chunk_store::ByteBudget;
use super::feed::{Drawn, Failed, Feed};
use super::gather::{Fetched, Gather};
use super::sample::Sample;
use super::wait::TryNext;
use crate::error::{Error, Result};
use crate::training::sync::{guarded, lock, panicked};

/// The longest single wait of a consumer without a deadline.
const MAX_WAIT: Duration = Duration::from_hours(1);

pub(super) struct Schedule {
    state: Mutex<State>,
    /// Signals that there may be work.
    work: Condvar,
    /// Signals that the front patch may be complete, or that the epoch has ended.
    ready: Condvar,
    feed: Mutex<Feed>,
    pub(super) gather: Gather,
    limits: Limits,
}

/// The limits of the buffer.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) patches: usize,
    pub(super) bytes: u64,
    /// The part of these bytes that is reserved for cached chunks.
    pub(super) chunks: Arc<ByteBudget>,
}

#[derive(Default)]
struct State {
    /// Drawn patches that wait for admission.
    drawn: VecDeque<Assembly>,
    feeding: bool,
    fed: bool,
    /// Admitted patches in delivery order.
    assemblies: VecDeque<Admitted>,
    /// The number of patches at the front whose work is all handed out.
    handed_out: usize,
    requests: HashMap<ChunkKey, ChunkRequest>,
    /// Chunks that are not being read yet, in the order in which they are needed.
    coming: VecDeque<(ChunkKey, Arc<Assembly>)>,
    bytes: u64,
    stop: bool,
}

struct Admitted {
    assembly: Arc<Assembly>,
    /// The first piece that is not handed out.
    next: usize,
}

/// The patches that need a chunk; `claimed` once a thread reads it.
#[derive(Default)]
struct ChunkRequest {
    assemblies: Vec<Arc<Assembly>>,
    claimed: bool,
}

/// A unit of work.
enum Job {
    Chunk(ChunkKey, Vec<Arc<Assembly>>),
    Whole(Arc<Assembly>, usize),
    /// A patch that is all padding.
    Padding(Arc<Assembly>),
}

/// The outcome of one step of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Worked,
    /// No work until the consumer takes a patch or another worker finishes.
    Idle,
    /// No work is left.
    Finished,
}

/// The result of one planned patch.
pub(super) enum Delivered {
    Sample(Box<Sample>),
    LeftOut { index: u64, name: String },
    Error(Arc<Error>),
}

impl Schedule {
    pub(super) fn new(feed: Feed, limits: Limits, gather: Gather) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            ready: Condvar::new(),
            feed: Mutex::new(feed),
            gather,
            limits,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.work.notify_all();
        self.ready.notify_all();
    }

    /// Returns the numbers of complete and incomplete patches in the buffer.
    pub(super) fn fill(&self) -> (usize, usize) {
        let state = self.lock();
        let complete = |admitted: &&Admitted| lock(&admitted.assembly.done).is_some();
        let ready = state.assemblies.iter().filter(complete).count();
        (ready, state.assemblies.len() - ready)
    }

    /// Works until no work is left.
    pub(super) fn work(&self) {
        while self.step(true) != Step::Finished {}
    }

    /// Does one unit of work. If there is none yet and `wait` is set, waits for it.
    pub(super) fn step(&self, wait: bool) -> Step {
        let mut state = self.lock();
        loop {
            if state.stop {
                return Step::Finished;
            }
            if state.drawn.is_empty() && !state.fed && !state.feeding {
                state.feeding = true;
                drop(state);
                let assemblies: Vec<Assembly> = self.fed().into_iter().map(Assembly::new).collect();
                state = self.lock();
                state.feeding = false;
                state.fed = assemblies.is_empty();
                state.drawn.extend(assemblies);
                self.admit(&mut state);
                self.work.notify_all();
                self.ready.notify_all();
                continue;
            }
            if let Some(job) = state.next_job() {
                let coming = state.next_prefetches();
                drop(state);
                for ((_, image, index), assembly) in coming.into_iter().flatten() {
                    if let Ok(source) = &assembly.source
                        && source.opened.cached_chunk(image, index).is_none()
                    {
                        source.images()[image].volume.prefetch(index);
                    }
                }
                self.run(job);
                return Step::Worked;
            }
            if state.fed && state.drawn.is_empty() {
                return Step::Finished;
            }
            if !wait {
                return Step::Idle;
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Draws the next patches. A panic becomes one patch with an error.
    fn fed(&self) -> Vec<Drawn> {
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        catch_unwind(AssertUnwindSafe(|| feed.next())).unwrap_or_else(|panic| {
            let place = feed.abandon();
            let error = Failed::Error(Arc::new(panicked(&*panic)));
            vec![Drawn {
                place,
                batch: None,
                outcome: Err(error),
            }]
        })
    }

    /// Admits drawn patches while the buffer has room; at least one.
    fn admit(&self, state: &mut State) {
        let bytes = self
            .limits
            .bytes
            .saturating_sub(self.limits.chunks.reserved());
        while let Some(assembly) = state.drawn.pop_front() {
            // The bytes of a contiguous batch count with its first patch.
            let more = assembly.bytes.saturating_add(assembly.batch_bytes);
            let fits = state.assemblies.len() < self.limits.patches
                && (more == 0 || state.bytes.saturating_add(more) <= bytes);
            if !fits && !state.assemblies.is_empty() {
                state.drawn.push_front(assembly);
                return;
            }
            let assembly = Arc::new(assembly);
            state.bytes = state.bytes.saturating_add(more);
            for piece in &assembly.pieces {
                if let Piece::Chunk(key) = piece {
                    let assemblies = &mut state.requests.entry(*key).or_default().assemblies;
                    assemblies.push(Arc::clone(&assembly));
                    if assemblies.len() == 1 {
                        state.coming.push_back((*key, Arc::clone(&assembly)));
                    }
                }
            }
            state.assemblies.push_back(Admitted { assembly, next: 0 });
        }
    }

    /// Returns the next patch in order. Waits until `deadline`; if `inline`, works while it waits.
    pub(super) fn next(&self, inline: bool, deadline: Option<Instant>) -> TryNext<Delivered> {
        let mut state = self.lock();
        loop {
            let done = state
                .assemblies
                .front()
                .and_then(|front| lock(&front.assembly.done).take());
            if let Some(done) = done {
                if let Some(front) = state.assemblies.pop_front() {
                    if front.assembly.begun.load(Ordering::Acquire) {
                        self.gather.pool.end(front.assembly.bytes);
                    }
                    state.bytes -= front.assembly.bytes;
                    if let Some(batch) = &front.assembly.ends {
                        state.bytes -= batch.end(&self.gather.pool);
                    }
                    state.handed_out = state.handed_out.saturating_sub(1);
                }
                self.admit(&mut state);
                drop(state);
                self.work.notify_all();
                return TryNext::Ready(match done {
                    Ok(sample) => Delivered::Sample(Box::new(sample)),
                    Err(Failed::LeftOut { index, name }) => Delivered::LeftOut { index, name },
                    Err(Failed::Error(error)) => Delivered::Error(error),
                });
            }
            if state.stop || (state.assemblies.is_empty() && state.drawn.is_empty() && state.fed) {
                return TryNext::Finished;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return TryNext::TimedOut;
            }
            if inline {
                drop(state);
                self.step(false);
                state = self.lock();
            } else {
                let waited = self.ready.wait_timeout(state, left.unwrap_or(MAX_WAIT));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn run(&self, job: Job) {
        match job {
            Job::Chunk(key, assemblies) => self.scatter(key, assemblies),
            Job::Whole(assembly, image) => {
                let copied = guarded(|| self.gather.copy_whole(&assembly, image));
                self.piece_done(&assembly, copied);
            }
            Job::Padding(assembly) => self.complete(&assembly),
        }
    }

    /// Reads a chunk and copies it to all patches that need it.
    fn scatter(&self, key: ChunkKey, mut assemblies: Vec<Arc<Assembly>>) {
        let (_, image, _) = key;
        let mut held = None;
        while !assemblies.is_empty() {
            let fetched = held
                .take()
                .unwrap_or_else(|| self.gather.fetch(key, &assemblies));
            self.gather
                .counters
                .copies
                .fetch_add(assemblies.len() as u64, Ordering::Relaxed);
            self.deal(&fetched, image, assemblies);
            // Patches admitted since: they need the same chunk, but maybe more of the planes.
            let mut state = self.lock();
            let late = state
                .requests
                .get_mut(&key)
                .map(|request| std::mem::take(&mut request.assemblies));
            assemblies = late.unwrap_or_default();
            if assemblies.is_empty() {
                state.requests.remove(&key);
            }
            drop(state);
            match fetched {
                Ok(Fetched::StagedPlanes(planes)) => self.gather.recycle(planes),
                chunk => held = Some(chunk),
            }
        }
    }

    /// Copies a piece to each of `assemblies`, first to those to which no other thread writes.
    fn deal(
        &self,
        fetched: &Result<Fetched, Arc<Error>>,
        image: usize,
        mut assemblies: Vec<Arc<Assembly>>,
    ) {
        while !assemblies.is_empty() {
            let before = assemblies.len();
            assemblies.retain(|assembly| {
                let copied = self.gather.copy_part(assembly, image, fetched, false);
                copied
                    .map(|copied| self.piece_done(assembly, copied))
                    .is_none()
            });
            if assemblies.len() == before
                && let Some(assembly) = assemblies.pop()
                && let Some(copied) = self.gather.copy_part(&assembly, image, fetched, true)
            {
                self.piece_done(&assembly, copied);
            }
        }
    }

    /// Counts a copied piece; the last one completes the patch.
    fn piece_done(&self, assembly: &Arc<Assembly>, copied: Result<()>) {
        if let Err(error) = copied {
            lock(&assembly.error).get_or_insert(error);
        }
        if assembly.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.complete(assembly);
        }
    }

    fn complete(&self, assembly: &Assembly) {
        let error = lock(&assembly.error).take();
        let done = match (error, &assembly.source) {
            (Some(error), _) => Err(assembly.failed(error)),
            (None, Ok(wanted)) => guarded(|| self.gather.finish(assembly, wanted))
                .map_err(|error| assembly.failed(error)),
            (None, Err(failed)) => Err(failed.clone()),
        };
        *lock(&assembly.done) = Some(done);
        // Taking the lock ensures that a consumer that checked before is waiting by now.
        drop(self.lock());
        self.ready.notify_all();
    }
}

impl State {
    /// Returns the next two unclaimed chunks, to prefetch: two for each chunk that is read, so that
    /// prefetching gets ahead.
    fn next_prefetches(&mut self) -> [Option<(ChunkKey, Arc<Assembly>)>; 2] {
        let requests = &self.requests;
        let unclaimed = |(key, _): &(ChunkKey, Arc<Assembly>)| {
            requests.get(key).is_some_and(|request| !request.claimed)
        };
        let coming = &mut self.coming;
        std::array::from_fn(|_| std::iter::from_fn(|| coming.pop_front()).find(unclaimed))
    }

    fn next_job(&mut self) -> Option<Job> {
        while let Some(admitted) = self.assemblies.get_mut(self.handed_out) {
            if admitted.assembly.pieces.is_empty() && admitted.next == 0 {
                admitted.next = 1;
                return Some(Job::Padding(Arc::clone(&admitted.assembly)));
            }
            while let Some(piece) = admitted.assembly.pieces.get(admitted.next) {
                admitted.next += 1;
                match *piece {
                    Piece::Whole(image) => {
                        return Some(Job::Whole(Arc::clone(&admitted.assembly), image));
                    }
                    Piece::Chunk(key) => {
                        // The chunk may have arrived already, and be requested again by a later patch only.
                        let is_requested = |request: &&mut ChunkRequest| {
                            !request.claimed
                                && request
                                    .assemblies
                                    .iter()
                                    .any(|assembly| Arc::ptr_eq(assembly, &admitted.assembly))
                        };
                        let Some(request) = self.requests.get_mut(&key).filter(is_requested) else {
                            continue;
                        };
                        request.claimed = true;
                        return Some(Job::Chunk(key, std::mem::take(&mut request.assemblies)));
                    }
                }
            }
            self.handed_out += 1;
        }
        None
    }
}
