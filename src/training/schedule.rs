//! The schedule: which chunk is read next, and for which patches.
//!
//! Patches are admitted in the order of delivery, as many as the buffer holds. Work is taken
//! from the front: the first patch that still wants a chunk decides which one is read, and
//! that chunk then goes to every admitted patch that wants it. So nothing that the consumer
//! waits for stands behind anything else, and among the admitted patches no chunk is fetched
//! or decoded twice. A chunk that is under way when another patch is admitted goes to that
//! one too. A few planes of a mapped file are treated like a chunk.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::feed::{Failed, Feed, Item};
use super::gather::{Fetched, Gather};
use super::kept::Room;
use super::loader::TryNext;
use super::sample::Sample;
use super::slot::{Key, Piece, Slot, guarded, lock, panicked};
use crate::error::{Error, Result};

/// As long as the consumer waits before it looks again.
const LONG: Duration = Duration::from_hours(1);

pub(super) struct Schedule {
    state: Mutex<State>,
    /// There may be work.
    work: Condvar,
    /// The front patch is complete, or there is none any more.
    ready: Condvar,
    feed: Mutex<Feed>,
    pub(super) gather: Gather,
    limits: Limits,
}

/// What the buffer may hold.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) patches: usize,
    pub(super) bytes: u64,
    /// Of these bytes, those of chunks that stay.
    pub(super) room: Arc<Room>,
}

#[derive(Default)]
struct State {
    /// Patches that wait for room in the buffer.
    planned: VecDeque<Slot>,
    feeding: bool,
    fed: bool,
    /// Admitted patches, the next to be delivered in front.
    slots: VecDeque<Admitted>,
    /// How many of them have no work left to hand out, counted from the front.
    handed_out: usize,
    wants: HashMap<Key, Want>,
    /// Chunks that nobody reads yet, in the order in which they are wanted.
    coming: VecDeque<(Key, Arc<Slot>)>,
    bytes: u64,
    stop: bool,
}

struct Admitted {
    slot: Arc<Slot>,
    /// The first of its pieces that has not been handed out.
    next: usize,
}

/// Who wants a chunk; `claimed` once somebody fetches it.
#[derive(Default)]
struct Want {
    slots: Vec<Arc<Slot>>,
    claimed: bool,
}

enum Job {
    Chunk(Key, Vec<Arc<Slot>>),
    Whole(Arc<Slot>, usize),
    /// A patch of nothing but padding.
    Nothing(Arc<Slot>),
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Worked,
    /// Nothing to do until the consumer takes a patch or another worker is done.
    Idle,
    /// Nothing to do any more.
    Over,
}

/// What the consumer gets.
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

    /// Patches in the buffer that are complete, and those that are not.
    pub(super) fn fill(&self) -> (usize, usize) {
        let state = self.lock();
        let complete = |admitted: &&Admitted| lock(&admitted.slot.done).is_some();
        let ready = state.slots.iter().filter(complete).count();
        (ready, state.slots.len() - ready)
    }

    /// Works until there is nothing to do any more.
    pub(super) fn work(&self) {
        while self.step(true) != Step::Over {}
    }

    /// Does one piece of work, waiting for one if `wait`.
    pub(super) fn step(&self, wait: bool) -> Step {
        let mut state = self.lock();
        loop {
            if state.stop {
                return Step::Over;
            }
            if state.planned.is_empty() && !state.fed && !state.feeding {
                state.feeding = true;
                drop(state);
                let slots: Vec<Slot> = self.fed().into_iter().map(Slot::new).collect();
                state = self.lock();
                state.feeding = false;
                state.fed = slots.is_empty();
                state.planned.extend(slots);
                self.admit(&mut state);
                self.work.notify_all();
                self.ready.notify_all();
                continue;
            }
            if let Some(job) = state.next_job() {
                let coming = state.coming();
                drop(state);
                for ((_, image, index), slot) in coming.into_iter().flatten() {
                    if let Ok(wanted) = &slot.item
                        && wanted.opened.kept_chunk(image, index).is_none()
                    {
                        wanted.images()[image].volume.prefetch(index);
                    }
                }
                self.run(job);
                return Step::Worked;
            }
            if state.fed && state.planned.is_empty() {
                return Step::Over;
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

    /// The feed's next items; a panic in code that it calls becomes one item with an error.
    fn fed(&self) -> Vec<Item> {
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        catch_unwind(AssertUnwindSafe(|| feed.next())).unwrap_or_else(|panic| {
            feed.abandon();
            let error = Failed::Error(Arc::new(panicked(&*panic)));
            vec![Item {
                place: feed.left.end,
                batch: None,
                found: Err(error),
            }]
        })
    }

    /// Admits planned patches while the buffer has room, one at least.
    fn admit(&self, state: &mut State) {
        let bytes = self.limits.bytes.saturating_sub(self.limits.room.taken());
        while let Some(slot) = state.planned.pop_front() {
            // What a batch takes is counted with its first patch.
            let more = slot.bytes.saturating_add(slot.batch_bytes);
            let fits = state.slots.len() < self.limits.patches
                && (more == 0 || state.bytes.saturating_add(more) <= bytes);
            if !fits && !state.slots.is_empty() {
                state.planned.push_front(slot);
                return;
            }
            let slot = Arc::new(slot);
            state.bytes = state.bytes.saturating_add(more);
            for piece in &slot.pieces {
                if let Piece::Chunk(key) = piece {
                    let slots = &mut state.wants.entry(*key).or_default().slots;
                    slots.push(Arc::clone(&slot));
                    if slots.len() == 1 {
                        state.coming.push_back((*key, Arc::clone(&slot)));
                    }
                }
            }
            state.slots.push_back(Admitted { slot, next: 0 });
        }
    }

    /// The next patch in order, waited for until a time. Works itself meanwhile if `inline`.
    pub(super) fn next(&self, inline: bool, until: Option<Instant>) -> TryNext<Delivered> {
        let mut state = self.lock();
        loop {
            let done = state
                .slots
                .front()
                .and_then(|front| lock(&front.slot.done).take());
            if let Some(done) = done {
                if let Some(front) = state.slots.pop_front() {
                    if front.slot.begun.load(Ordering::Acquire) {
                        self.gather.pool.end(front.slot.bytes);
                    }
                    state.bytes -= front.slot.bytes;
                    if let Some(batch) = &front.slot.ends {
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
            if state.stop || (state.slots.is_empty() && state.planned.is_empty() && state.fed) {
                return TryNext::Finished;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return TryNext::TimedOut;
            }
            if inline {
                drop(state);
                self.step(false);
                state = self.lock();
            } else {
                // Without a limit, as long as a wait can be.
                let waited = self.ready.wait_timeout(state, left.unwrap_or(LONG));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn run(&self, job: Job) {
        match job {
            Job::Chunk(key, slots) => self.scatter(key, slots),
            Job::Whole(slot, image) => {
                let copied = guarded(|| self.gather.copy_whole(&slot, image));
                self.piece_done(&slot, copied);
            }
            Job::Nothing(slot) => self.complete(&slot),
        }
    }

    /// Fetches a chunk and copies it to all patches that want it.
    fn scatter(&self, key: Key, mut slots: Vec<Arc<Slot>>) {
        let (_, image, _) = key;
        let mut held = None;
        while !slots.is_empty() {
            let fetched = held
                .take()
                .unwrap_or_else(|| self.gather.fetch(key, &slots));
            self.gather
                .counters
                .copies
                .fetch_add(slots.len() as u64, Ordering::Relaxed);
            self.deal(&fetched, image, slots);
            // Those that came meanwhile: they want the same chunk, but maybe more of the planes.
            let mut state = self.lock();
            let late = state
                .wants
                .get_mut(&key)
                .map(|want| std::mem::take(&mut want.slots));
            slots = late.unwrap_or_default();
            if slots.is_empty() {
                state.wants.remove(&key);
            }
            drop(state);
            match fetched {
                Ok(Fetched::Planes(planes)) => self.gather.recycle(planes),
                chunk => held = Some(chunk),
            }
        }
    }

    /// Copies what was fetched to each of `slots`, those that nobody else writes to first.
    fn deal(&self, fetched: &Result<Fetched, Arc<Error>>, image: usize, mut slots: Vec<Arc<Slot>>) {
        while !slots.is_empty() {
            let before = slots.len();
            slots.retain(|slot| {
                let copied = self.gather.copy_part(slot, image, fetched, false);
                copied.map(|copied| self.piece_done(slot, copied)).is_none()
            });
            if slots.len() == before
                && let Some(slot) = slots.pop()
                && let Some(copied) = self.gather.copy_part(&slot, image, fetched, true)
            {
                self.piece_done(&slot, copied);
            }
        }
    }

    /// Counts a piece; whoever brings the last one completes the patch.
    fn piece_done(&self, slot: &Arc<Slot>, copied: Result<()>) {
        if let Err(error) = copied {
            lock(&slot.error).get_or_insert(error);
        }
        if slot.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.complete(slot);
        }
    }

    fn complete(&self, slot: &Slot) {
        let error = lock(&slot.error).take();
        let done = match (error, &slot.item) {
            (Some(error), _) => Err(slot.failed(error)),
            (None, Ok(wanted)) => {
                guarded(|| self.gather.finish(slot, wanted)).map_err(|error| slot.failed(error))
            }
            (None, Err(failed)) => Err(failed.clone()),
        };
        *lock(&slot.done) = Some(done);
        // The lock makes sure that a consumer that looked before is waiting by now.
        drop(self.lock());
        self.ready.notify_all();
    }
}

impl State {
    /// The next chunks that nobody reads yet, for which a disk may begin: two for each that is read, so that
    /// it gets ahead.
    fn coming(&mut self) -> [Option<(Key, Arc<Slot>)>; 2] {
        let wants = &self.wants;
        let unclaimed =
            |(key, _): &(Key, Arc<Slot>)| wants.get(key).is_some_and(|want| !want.claimed);
        let coming = &mut self.coming;
        std::array::from_fn(|_| std::iter::from_fn(|| coming.pop_front()).find(unclaimed))
    }

    fn next_job(&mut self) -> Option<Job> {
        while let Some(admitted) = self.slots.get_mut(self.handed_out) {
            if admitted.slot.pieces.is_empty() && admitted.next == 0 {
                admitted.next = 1;
                return Some(Job::Nothing(Arc::clone(&admitted.slot)));
            }
            while let Some(piece) = admitted.slot.pieces.get(admitted.next) {
                admitted.next += 1;
                match *piece {
                    Piece::Whole(image) => {
                        return Some(Job::Whole(Arc::clone(&admitted.slot), image));
                    }
                    Piece::Chunk(key) => {
                        // It may have come already, and be wanted again by a later patch only.
                        let wants = |want: &&mut Want| {
                            !want.claimed
                                && want
                                    .slots
                                    .iter()
                                    .any(|slot| Arc::ptr_eq(slot, &admitted.slot))
                        };
                        let Some(want) = self.wants.get_mut(&key).filter(wants) else {
                            continue;
                        };
                        want.claimed = true;
                        return Some(Job::Chunk(key, std::mem::take(&mut want.slots)));
                    }
                }
            }
            self.handed_out += 1;
        }
        None
    }
}
