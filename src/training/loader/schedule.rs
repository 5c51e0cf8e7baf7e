//! The schedule: decides which chunk is decoded next, and for which patches.
//!
//! Patches are admitted in delivery order, and work is handed out from the front: the first patch that
//! still needs a chunk decides which chunk is decoded. So the consumer never waits for unrelated work.
//!
//! The loader knows its draws far ahead of the patches that it puts together. When a patch's pieces are
//! handed out, [`Reuse`](super::reuse::Reuse) decides which chunks, and which pieces of chunks, are held
//! for coming patches. It sees patches in their order only, so the timing of threads does not change
//! its decisions. A coming patch takes a buffer when its first piece is copied, and not before.
//!
//! Flat files have no chunks. The planes that admitted patches need are read together.

mod prefetch;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::assembly::{Assembly, ChunkKey, Piece};
use super::carry::{Carried, CarriedChunk};
use super::feed::{Drawn, Failed, Feed, MAX_OPEN};
use super::gather::{Fetched, Gather};
use super::holdings::{ChunkBytes, CountedBytes, CountedChunk, Cut, Holdings, Part};
use super::sample::Sample;
use super::staging;
use super::wait::TryNext;
use crate::error::{Error, Result};
use crate::training::sync::{Signal, guarded, lock, panicked};
use crate::volume::Chunk;

/// The longest single wait of a consumer without a deadline.
const MAX_WAIT: Duration = Duration::from_hours(1);

/// At least this many patches may be admitted at a time. More patches leave less memory for chunks.
const MIN_DEPTH: usize = 8;

/// The lookahead is at most this many patches,
const MAX_AHEAD: u64 = 4096;

/// with at most this many uses of chunks,
const MAX_USES: usize = 1 << 15;

/// of at most this many subjects, which all stay open.
const MAX_SUBJECTS: usize = MAX_OPEN;

/// The lookahead grows by this many patches with each patch, so that the first patch does not wait for
/// thousands of draws.
const AHEAD_STEP: u64 = 8;

/// At most this many patches are drawn before the lookahead needs them,
const SPARE_DRAWS: u64 = 64;

/// and none if the lookahead has more subjects than this, since each draw may then open another one.
const FEW_SUBJECTS: usize = MAX_SUBJECTS / 2;

pub(super) struct Schedule {
    state: Mutex<State>,
    /// Signals that there may be work.
    work: Signal,
    /// Signals that the front patch may be complete, or that the epoch has ended.
    ready: Signal,
    /// Signals that there may be memory for another decode.
    room: Signal,
    chunk_bytes: ChunkBytes,
    feed: Mutex<Feed>,
    pub(super) gather: Gather,
    limits: Limits,
}

/// The limits of the loader's memory.
#[derive(Debug)]
pub(super) struct Limits {
    /// The maximum number of admitted patches.
    pub(super) patches: usize,
    /// The maximum number of bytes of patches, chunks, pieces and decodes in progress together.
    pub(super) bytes: u64,
    pub(super) threads: usize,
    /// The number of patches that the consumer takes at a time.
    pub(super) batch: u64,
    /// The bytes of the tables for each chunk or piece that is held.
    pub(super) table_bytes: u64,
}

/// The state of the feed, which draws the patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Feeding {
    #[default]
    Waiting,
    /// A thread draws patches.
    Drawing,
    /// All patches are drawn.
    Finished,
}

#[derive(Default)]
struct State {
    /// Drawn patches that are not admitted yet.
    drawn: VecDeque<Arc<Assembly>>,
    feeding: Feeding,
    /// Admitted patches in delivery order.
    assemblies: VecDeque<Admitted>,
    /// The number of patches at the front whose work is all handed out.
    handed_out: usize,
    /// The number of patches drawn so far,
    orders: u64,
    /// and of those whose uses of chunks are in the lookahead or were taken.
    expected: u64,
    /// The uses in the lookahead,
    uses: usize,
    /// and its patches, by subject.
    subjects: HashMap<u64, usize>,
    held: Holdings,
    /// Admitted patches that need the same planes.
    planes: HashMap<ChunkKey, Vec<Arc<Assembly>>>,
    /// Chunks that admitted patches need, in their order, to prefetch.
    coming: VecDeque<(ChunkKey, Arc<Assembly>)>,
    /// The first patch whose chunks in remote volumes are not prefetched before it is admitted.
    far: u64,
    /// Bytes of admitted patches.
    bytes: u64,
    largest: Largest,
    /// `true` once the first patch is complete.
    has_first: bool,
    /// Threads that work and do not wait for room.
    working: usize,
    stop: bool,
}

/// The largest sizes so far, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Largest {
    patch: u64,
    /// A contiguous batch.
    batch: u64,
    /// A decoded chunk; 0 if there are only flat files.
    chunk: u64,
    /// A staging buffer for planes.
    planes: u64,
}

struct Admitted {
    assembly: Arc<Assembly>,
    /// All of its pieces, until all are handed out.
    pieces: Vec<Piece>,
    /// The first piece that is not handed out.
    next: usize,
}

/// A unit of work.
enum Job {
    Decode(ChunkKey, Arc<Assembly>),
    Copy(Arc<Assembly>, usize, Arc<CountedChunk>),
    Cut(Cut),
    Planes(ChunkKey, Vec<Arc<Assembly>>),
    Whole(Arc<Assembly>, usize),
    /// A patch that is all padding.
    Padding(Arc<Assembly>),
}

impl Limits {
    /// The maximum number of admitted patches.
    fn depth(&self, largest: Largest) -> usize {
        if largest.chunk == 0 {
            return self.patches;
        }
        let batch = usize::try_from(self.batch).unwrap_or(usize::MAX);
        let wanted = MIN_DEPTH.max(self.threads.saturating_mul(2));
        self.patches.min(wanted.max(batch.saturating_mul(2)))
    }

    /// The maximum number of bytes of admitted patches.
    fn patch_bytes(&self, largest: Largest) -> u64 {
        let staging = largest.planes.saturating_mul(self.threads.max(1) as u64);
        let bytes = self.bytes.saturating_sub(staging.min(self.bytes / 4));
        if largest.chunk == 0 {
            return bytes;
        }
        let patches = largest.patch.saturating_mul(self.depth(largest) as u64);
        let batches = largest.batch.saturating_mul(2);
        let one = largest.patch.saturating_add(largest.batch);
        patches.saturating_add(batches).min(bytes / 2).max(one)
    }

    /// The maximum number of bytes of chunks, of pieces and of decodes in progress.
    fn chunk_bytes(&self, largest: Largest) -> u64 {
        self.bytes.saturating_sub(self.patch_bytes(largest))
    }

    /// The maximum number of bytes of chunks and pieces that are held. The rest is for decodes in progress
    /// and for evicted chunks that a worker still copies from.
    fn held_bytes(&self, largest: Largest) -> u64 {
        let bytes = self.chunk_bytes(largest);
        let decodes = decode_bytes(largest.chunk).saturating_mul(self.threads.max(1) as u64);
        bytes.saturating_sub(decodes.min(bytes / 4))
    }
}

/// The bytes that the decode of a chunk takes at most: stored and decoded.
const fn decode_bytes(chunk: u64) -> u64 {
    chunk.saturating_mul(2)
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
    /// Creates the schedule of an epoch, with chunks that an earlier one left, and the counter of their bytes.
    pub(super) fn new(
        feed: Feed,
        limits: Limits,
        gather: Gather,
        chunks: (Vec<CarriedChunk>, ChunkBytes),
    ) -> Self {
        let (chunks, chunk_bytes) = chunks;
        let state = State {
            held: Holdings::carried(chunks, limits.table_bytes),
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            work: Signal::default(),
            ready: Signal::default(),
            room: Signal::default(),
            chunk_bytes,
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
        self.work.notify();
        self.ready.notify();
        self.room.notify();
    }

    /// Takes what the next epoch can use. No thread works any more.
    pub(super) fn leave(&self) -> Carried {
        let held = std::mem::take(&mut self.lock().held);
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        let subjects = feed.take_open();
        let mut chunks = held.into_chunks();
        chunks.retain(|((subject, ..), ..)| subjects.contains_key(subject));
        Carried {
            subjects,
            chunks,
            bytes: self.chunk_bytes.clone(),
        }
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
            if state.needs_draws() {
                state = self.draw(state);
                continue;
            }
            let jobs = state.next_jobs(&self.limits);
            if !jobs.is_empty() {
                let coming = state.next_prefetches();
                state.working += 1;
                drop(state);
                for ((_, image, index), assembly) in coming {
                    if let Ok(source) = &assembly.source {
                        source.images()[image].source().prefetch(index);
                    }
                }
                for job in jobs {
                    self.run(job);
                }
                self.chunk_bytes.give_back();
                self.lock().working -= 1;
                self.room.notify();
                return Step::Worked;
            }
            if state.needs_draws() {
                continue;
            }
            if state.feeding == Feeding::Finished && state.drawn.is_empty() {
                return Step::Finished;
            }
            if !wait {
                return Step::Idle;
            }
            state = self.work.wait(state);
        }
    }

    /// Draws the next patches, without the lock, and admits those that fit.
    fn draw<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.feeding = Feeding::Drawing;
        let orders = state.orders..;
        drop(state);
        let new = |(drawn, order)| Arc::new(Assembly::new(drawn, order));
        let (drawn, changed) = self.fed();
        let assemblies: Vec<_> = drawn.into_iter().zip(orders).map(new).collect();
        let mut state = self.lock();
        for index in changed {
            state.held.forget(index);
        }
        state.feeding = if assemblies.is_empty() {
            Feeding::Finished
        } else {
            Feeding::Waiting
        };
        state.orders += assemblies.len() as u64;
        for assembly in assemblies {
            state.largest.include(&assembly);
            state.drawn.push_back(assembly);
        }
        let next = state.next_order();
        if next < state.orders {
            state.look_ahead(next);
        }
        self.admit(&mut state);
        self.work.notify();
        self.ready.notify();
        state
    }

    /// Draws the next patches. A panic becomes one patch with an error. Returns them, and the subjects that changed since
    /// the last epoch.
    fn fed(&self) -> (Vec<Drawn>, Vec<u64>) {
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        let drawn = catch_unwind(AssertUnwindSafe(|| feed.next())).unwrap_or_else(|panic| {
            let place = feed.abandon();
            let error = Failed::Error(Arc::new(panicked(&*panic)));
            vec![Drawn {
                place,
                batch: None,
                outcome: Err(error),
            }]
        });
        (drawn, feed.take_changed())
    }

    /// Admits drawn patches while they fit; at least one.
    fn admit(&self, state: &mut State) {
        let depth = self.limits.depth(state.largest);
        let bytes = self.limits.patch_bytes(state.largest);
        self.gather.pool.set_budget(bytes);
        while let Some(assembly) = state.drawn.pop_front() {
            // The bytes of a contiguous batch count with its first patch.
            let more = assembly.bytes.saturating_add(assembly.batch_bytes);
            let fits = state.assemblies.len() < depth
                && (more == 0 || state.bytes.saturating_add(more) <= bytes);
            if !fits && !state.assemblies.is_empty() {
                state.drawn.push_front(assembly);
                return;
            }
            state.bytes = state.bytes.saturating_add(more);
            let pieces: Vec<Piece> = assembly.pieces().collect();
            assembly.missing.store(pieces.len(), Ordering::Release);
            for piece in &pieces {
                match *piece {
                    Piece::Chunk(key) => state.coming.push_back((key, Arc::clone(&assembly))),
                    Piece::Planes(key) => {
                        let assemblies = state.planes.entry(key).or_default();
                        assemblies.push(Arc::clone(&assembly));
                    }
                    Piece::Whole(_) => {}
                }
            }
            state.assemblies.push_back(Admitted {
                assembly,
                pieces,
                next: 0,
            });
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
                self.work.notify();
                return TryNext::Ready(match done {
                    Ok(sample) => Delivered::Sample(Box::new(sample)),
                    Err(Failed::LeftOut { index, name }) => Delivered::LeftOut { index, name },
                    Err(Failed::Error(error)) => Delivered::Error(error),
                });
            }
            let is_over = state.feeding == Feeding::Finished
                && state.assemblies.is_empty()
                && state.drawn.is_empty();
            if state.stop || is_over {
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
                state = self.ready.wait_for(state, left.unwrap_or(MAX_WAIT));
            }
        }
    }

    fn run(&self, job: Job) {
        match job {
            Job::Decode(key, assembly) => self.decode(key, &assembly),
            Job::Copy(assembly, image, chunk) => {
                self.deal(&Ok(Fetched::Chunk(chunk)), image, vec![assembly]);
            }
            Job::Cut(cut) => self.cut(cut.key, &cut.chunk, &cut.assemblies),
            Job::Planes(key, assemblies) => {
                let read = self.gather.read_planes(key, &assemblies);
                self.deal(&read, key.1, assemblies);
                if let Ok(Fetched::StagedPlanes(planes)) = read {
                    self.gather.recycle(planes);
                }
            }
            Job::Whole(assembly, image) => {
                let copied = guarded(|| self.gather.copy_whole(&assembly, image));
                self.piece_done(&assembly, copied);
            }
            Job::Padding(assembly) => self.complete(&assembly),
        }
    }

    /// Decodes a chunk, copies it to the patches that wait for it, and cuts the pieces that are held of it.
    fn decode(&self, key: ChunkKey, assembly: &Assembly) {
        let (_, image, index) = key;
        let decoded = match &assembly.source {
            Ok(source) => {
                let (_, bytes) = source.bytes_of(image, index);
                match self.wait_for_room(decode_bytes(bytes)) {
                    Some(room) => self.gather.decode(source, image, index, room),
                    None => Err(Arc::new(Error::Interrupted)),
                }
            }
            Err(_) => Err(Arc::new(Error::Interrupted)),
        };
        let chunk = match &decoded {
            Ok(Fetched::Chunk(chunk)) => Some(Arc::clone(chunk)),
            _ => None,
        };
        let (waiting, cuts) = self.lock().held.decoded(key, chunk.as_ref());
        self.deal(&decoded, image, waiting);
        if let Some(chunk) = chunk {
            self.cut(key, &chunk, &cuts);
        }
    }

    /// Waits until a decode of so many bytes fits next to what other threads hold for the moment. Returns
    /// `None` if the loader stops.
    fn wait_for_room(&self, bytes: u64) -> Option<CountedBytes> {
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            let limit = self.limits.chunk_bytes(state.largest);
            let fits = self.chunk_bytes.now().saturating_add(bytes) <= limit;
            if fits || state.working <= 1 {
                return Some(self.chunk_bytes.add(bytes));
            }
            state.working -= 1;
            state = self.room.wait(state);
            state.working += 1;
        }
    }

    /// Cuts the pieces of patches out of a chunk.
    fn cut(&self, key: ChunkKey, chunk: &Chunk, assemblies: &[Arc<Assembly>]) {
        let (_, image, index) = key;
        for assembly in assemblies {
            let source = assembly.source.as_ref();
            let bytes = source.map_or(0, |source| source.bytes_of(image, index).0);
            let room = self.chunk_bytes.add(bytes);
            let Ok(piece) = Gather::cut(assembly, image, chunk, room) else {
                continue;
            };
            let piece = Arc::new(piece);
            let is_awaited = self.lock().held.cut(key, assembly.order, &piece);
            if is_awaited {
                let assemblies = vec![Arc::clone(assembly)];
                self.deal(&Ok(Fetched::Chunk(piece)), image, assemblies);
            }
        }
    }

    /// Copies voxels to each of `assemblies`, first to those to which no other thread writes.
    fn deal(
        &self,
        fetched: &Result<Fetched, Arc<Error>>,
        image: usize,
        mut assemblies: Vec<Arc<Assembly>>,
    ) {
        let copies = &self.gather.counters.copies;
        copies.fetch_add(assemblies.len() as u64, Ordering::Relaxed);
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
        let is_first = assembly.order == 0;
        self.lock().has_first |= is_first;
        self.ready.notify();
        if is_first {
            self.work.notify();
        }
    }
}

impl Largest {
    fn include(&mut self, assembly: &Assembly) {
        let Ok(source) = &assembly.source else {
            return;
        };
        for piece in assembly.pieces() {
            match piece {
                Piece::Chunk((_, image, index)) => {
                    self.chunk = self.chunk.max(source.bytes_of(image, index).1);
                }
                Piece::Planes(_) => self.planes = staging::MAX_BYTES,
                Piece::Whole(_) => {}
            }
        }
        self.patch = self.patch.max(assembly.bytes);
        self.batch = self.batch.max(assembly.batch_bytes);
    }
}

impl State {
    /// Returns `true` if more patches should be drawn, and no thread does that.
    fn needs_draws(&self) -> bool {
        let spare = if self.subjects.len() > FEW_SUBJECTS {
            0
        } else {
            SPARE_DRAWS.min(self.next_order().saturating_mul(AHEAD_STEP))
        };
        let is_near = self.expected + spare >= self.orders && !self.is_far_enough();
        let is_short = self.drawn.is_empty() || (self.largest.chunk > 0 && is_near);
        self.feeding == Feeding::Waiting && is_short
    }

    /// Returns `true` if the lookahead is as long as it may be.
    fn is_far_enough(&self) -> bool {
        self.uses >= MAX_USES || self.subjects.len() >= MAX_SUBJECTS
    }

    /// The order of the first patch whose work is not all handed out.
    fn next_order(&self) -> u64 {
        self.orders - (self.drawn.len() + self.assemblies.len() - self.handed_out) as u64
    }

    /// Returns a patch that was drawn and is not delivered.
    fn patch(&self, order: u64) -> Option<&Arc<Assembly>> {
        find(order, self.orders, &self.assemblies, &self.drawn)
    }

    /// Extends the lookahead for patch `order`. Returns `false` if more patches must be drawn first.
    fn look_ahead(&mut self, order: u64) -> bool {
        let ahead = order.saturating_add(1).saturating_mul(AHEAD_STEP);
        let end = order.saturating_add(ahead.min(MAX_AHEAD));
        while self.expected <= order || (self.expected <= end && !self.is_far_enough()) {
            let Some(assembly) = self.patch(self.expected).cloned() else {
                let is_last = self.feeding == Feeding::Finished;
                return is_last || (self.expected > order && self.largest.chunk == 0);
            };
            self.expected += 1;
            self.expect(&assembly);
        }
        true
    }

    fn expect(&mut self, assembly: &Assembly) {
        let Ok(source) = &assembly.source else {
            return;
        };
        for piece in assembly.pieces() {
            if let Piece::Chunk(key) = piece {
                let (_, image, index) = key;
                let (part, whole) = source.bytes_of(image, index);
                self.held.expect(assembly.order, key, part, whole);
                self.uses += 1;
            }
        }
        *self.subjects.entry(source.opened.index).or_default() += 1;
    }

    /// Removes a patch with these pieces, whose work is all handed out, from the lookahead.
    fn forget(&mut self, assembly: &Assembly, pieces: &[Piece]) {
        let Ok(source) = &assembly.source else {
            return;
        };
        let is_chunk = |piece: &&Piece| matches!(piece, Piece::Chunk(_));
        self.uses -= pieces.iter().filter(is_chunk).count();
        let index = source.opened.index;
        if let Some(patches) = self.subjects.get_mut(&index) {
            *patches -= 1;
            if *patches == 0 {
                self.subjects.remove(&index);
            }
        }
    }

    /// Returns the next unit of work, after the evictions that it needs; nothing if all is handed out, if more patches
    /// must be drawn first, or if the first patch must be complete first.
    fn next_jobs(&mut self, limits: &Limits) -> Vec<Job> {
        while let Some(admitted) = self.assemblies.get(self.handed_out) {
            let assembly = Arc::clone(&admitted.assembly);
            let (mut next, count) = (admitted.next, admitted.pieces.len());
            if next == 0 && !self.look_ahead(assembly.order) {
                return Vec::new();
            }
            let mut jobs = Vec::new();
            if count == 0 {
                jobs.push(Job::Padding(Arc::clone(&assembly)));
            }
            // One thread copies all that is there, so that two do not wait for each other's copies to one patch.
            let is_copy = |job: &Job| matches!(job, Job::Copy(..));
            while jobs.iter().all(is_copy) && next < count {
                let piece = self.assemblies[self.handed_out].pieces[next];
                // Reading files for later patches would keep the disk from the first one. Decoding mostly takes a processor.
                let reads_file = !matches!(piece, Piece::Chunk(_));
                if reads_file && assembly.order > 0 && !self.has_first {
                    break;
                }
                next += 1;
                jobs.extend(self.jobs_of(&assembly, piece, limits));
            }
            if next < count {
                self.assemblies[self.handed_out].next = next;
                return jobs;
            }
            let pieces = std::mem::take(&mut self.assemblies[self.handed_out].pieces);
            self.handed_out += 1;
            self.forget(&assembly, &pieces);
            if !jobs.is_empty() {
                return jobs;
            }
        }
        Vec::new()
    }

    fn jobs_of(&mut self, assembly: &Arc<Assembly>, piece: Piece, limits: &Limits) -> Vec<Job> {
        match piece {
            Piece::Whole(image) => vec![Job::Whole(Arc::clone(assembly), image)],
            Piece::Planes(key) => {
                // They may have been read already, and be needed again by a later patch only.
                let Some(waiting) = self.planes.get_mut(&key) else {
                    return Vec::new();
                };
                let is_this = |other: &Arc<Assembly>| Arc::ptr_eq(other, assembly);
                let Some(at) = waiting.iter().position(is_this) else {
                    return Vec::new();
                };
                // The first patch does not wait for what only later ones need.
                let assemblies = if assembly.order == 0 {
                    vec![waiting.swap_remove(at)]
                } else {
                    std::mem::take(waiting)
                };
                if waiting.is_empty() {
                    self.planes.remove(&key);
                }
                vec![Job::Planes(key, assemblies)]
            }
            Piece::Chunk(key) => {
                let part = self.held.take(assembly, key);
                let budget = limits.held_bytes(self.largest);
                let (orders, assemblies, drawn) = (self.orders, &self.assemblies, &self.drawn);
                let coming = |order| {
                    let patch = find(order, orders, assemblies, drawn);
                    Arc::clone(patch.expect("a coming patch is not delivered"))
                };
                let cuts = self.held.settle(assembly.order, budget, coming);
                for (key, order) in self.held.take_released() {
                    self.come_again(key, order);
                }
                let mut jobs: Vec<Job> = cuts.into_iter().map(Job::Cut).collect();
                match part {
                    Part::From(chunk) => jobs.push(Job::Copy(Arc::clone(assembly), key.1, chunk)),
                    Part::Decode => jobs.push(Job::Decode(key, Arc::clone(assembly))),
                    Part::Waits => {}
                }
                jobs
            }
        }
    }
}

/// Returns patch `order` of `orders` that were drawn, if it is not delivered.
fn find<'a>(
    order: u64,
    orders: u64,
    assemblies: &'a VecDeque<Admitted>,
    drawn: &'a VecDeque<Arc<Assembly>>,
) -> Option<&'a Arc<Assembly>> {
    let first = orders - (drawn.len() + assemblies.len()) as u64;
    let at = usize::try_from(order.checked_sub(first)?).ok()?;
    match assemblies.get(at) {
        Some(admitted) => Some(&admitted.assembly),
        None => drawn.get(at - assemblies.len()),
    }
}
