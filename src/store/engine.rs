//! The requests of a process: how many run at once, in which order, and which of them are made together.
//!
//! There is one engine per process, with one runtime, started by the first request. A read waits for its bytes; a
//! prefetch does not, and its bytes wait for the read. Reads go first. When a request can begin, the ranges of the same
//! object that are wanted too are added to it, as long as the gaps between them cost less time than a request and
//! little compared with what is wanted. The bytes of prefetches, running or waiting, have a budget, which the plans of
//! flows count. Bytes that a thread waits for are its own: a plan counts them for each thread.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path as Key;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::client::{Client, Timing, Watcher};
use super::connect::Clients;
use super::object::{Failure, Fetched, Part, Version};
use super::process::PerProcess;

/// Maximum number of requests at once.
pub(super) const MAX_REQUESTS: usize = 32;

/// Maximum bytes of prefetches, running or waiting to be read.
const PREFETCH_BYTES: u64 = 32 << 20;

/// Maximum bytes of a request that was made of several.
const MAX_MERGED: u64 = 4 << 20;

/// Threads of the runtime.
const THREADS: usize = 2;

/// Maximum bytes that the engine holds for prefetches: each of its threads may copy what is wanted out of an answer.
pub(crate) const HELD_BYTES: u64 = PREFETCH_BYTES + THREADS as u64 * MAX_MERGED;

/// Maximum share of the wanted bytes that the gaps of a request may have: one in so many.
const GAP_SHARE: u64 = 8;

/// Maximum number of prefetches that wait for their request.
const MAX_AHEAD: usize = 8192;

/// The time in which prefetches gather, to be requested together.
const GATHER: Duration = Duration::from_millis(1);

/// Prefetched bytes that nobody has read for this time may be dropped.
const STALE: Duration = Duration::from_secs(10);

/// The requests of a process.
pub(super) struct Engine {
    runtime: Runtime,
    state: Mutex<State>,
    /// Signals that a wish was fulfilled.
    arrived: Condvar,
    /// Signals that an object was written.
    written: Notify,
    counts: Counts,
    pub(super) clients: Clients,
}

/// Counts of requests since the start of the process.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    next: u64,
    wishes: HashMap<u64, Wish>,
    by_part: HashMap<Wanted, u64>,
    /// Wishes that wait for their request: those of reads,
    urgent: BTreeSet<u64>,
    /// and those of prefetches.
    ahead: BTreeSet<u64>,
    /// Whether prefetches wait for others.
    gathers: bool,
    running: usize,
    /// Objects that are being written.
    writing: usize,
    /// Bytes that running requests may return, and of results that were not read yet.
    bytes: u64,
    /// The most of these bytes so far, with answers that are being divided.
    #[cfg(any(test, feature = "testing"))]
    most: u64,
    window: Window,
    pace: Pace,
}

/// What a wish is for: its owner, the key of an object, and a part of it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Wanted {
    owner: u64,
    key: Arc<str>,
    part: Part,
}

struct Wish {
    wanted: Wanted,
    client: Arc<Client>,
    limit: u64,
    pin: Option<Arc<Version>>,
    /// Threads that wait for it.
    readers: usize,
    /// Whether its owner is gone.
    abandoned: bool,
    /// Bytes that count for it in [`State::bytes`].
    bytes: u64,
    result: Option<(Result<Fetched, Failure>, Instant)>,
}

/// The number of requests that may run at once: it is halved when a server is overloaded, and grows again slowly.
#[derive(Debug)]
struct Window {
    size: f64,
    halved: Option<Instant>,
}

impl Default for Window {
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    fn default() -> Self {
        Self {
            size: MAX_REQUESTS as f64,
            halved: None,
        }
    }
}

impl Window {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 to 32"
    )]
    fn requests(&self) -> usize {
        self.size as usize
    }

    fn shrink(&mut self, latency: f64) {
        // All requests that were refused together count once.
        let pause = Duration::from_secs_f64(latency.clamp(0.01, 1.0));
        if self.halved.is_none_or(|when| when.elapsed() > pause) {
            self.size = (self.size / 2.0).max(1.0);
            self.halved = Some(Instant::now());
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    fn grow(&mut self) {
        self.size = (self.size + 1.0 / self.size).min(MAX_REQUESTS as f64);
    }
}

/// The measured speed of requests: moving averages.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Seconds to the first byte.
    latency: f64,
    /// Bytes per second of one request.
    bandwidth: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            latency: 0.03,
            bandwidth: 50e6,
        }
    }
}

impl Pace {
    fn measure(&mut self, timing: Timing) {
        const NEW: f64 = 0.1;
        self.latency += NEW * (timing.latency - self.latency);
        // Shorter transfers arrive in one piece: their time says nothing.
        if timing.bytes >= 256 << 10 {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let bandwidth = timing.bytes as f64 / timing.transfer.max(1e-4);
            self.bandwidth += NEW * (bandwidth - self.bandwidth);
        }
    }

    /// Returns the bytes that arrive in the time that a request takes to begin.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is clamped"
    )]
    fn gap(&self) -> u64 {
        (self.latency * self.bandwidth).clamp(0.0, 8e6) as u64
    }
}

static ENGINE: PerProcess<Engine> = PerProcess::new();

/// Returns the engine of this process, which the first call starts.
pub(super) fn engine() -> io::Result<&'static Engine> {
    ENGINE.get_or_try_init(|| {
        Ok(Engine {
            runtime: Builder::new_multi_thread()
                .worker_threads(THREADS)
                .thread_name("voxpatch-store")
                .enable_all()
                .build()?,
            state: Mutex::default(),
            arrived: Condvar::new(),
            written: Notify::new(),
            counts: Counts::default(),
            clients: Clients::default(),
        })
    })
}

/// Returns the engine of this process, if it runs.
pub(super) fn running() -> Option<&'static Engine> {
    ENGINE.get()
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl Watcher for Engine {
    fn throttled(&self) {
        let mut state = self.lock();
        let latency = state.pace.latency;
        state.window.shrink(latency);
    }

    fn succeeded(&self, timing: Timing) {
        self.counts.bytes.fetch_add(timing.bytes, Ordering::Relaxed);
        let mut state = self.lock();
        state.window.grow();
        state.pace.measure(timing);
    }
}

impl Engine {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of requests for objects (merged ones count once, repetitions do not count), and the bytes that they returned.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn counts(&self) -> (u64, u64) {
        let counts = &self.counts;
        (
            counts.requests.load(Ordering::Relaxed),
            counts.bytes.load(Ordering::Relaxed),
        )
    }

    /// Returns the most bytes held since the last call: those of running requests, of answers that nobody has read, and of
    /// answers that are being divided.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn take_most_held(&self) -> u64 {
        let mut state = self.lock();
        let now = state.bytes;
        std::mem::replace(&mut state.most, now)
    }

    /// Begins to write, without waiting for it.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.runtime.spawn(work).abort_handle()
    }

    /// Waits until another object may be written: half as many at once as requests that read.
    pub(super) async fn turn_to_write(&'static self) -> WriteTurn {
        loop {
            {
                let mut state = self.lock();
                if state.writing < state.window.requests().div_ceil(2) {
                    state.writing += 1;
                    return WriteTurn(self);
                }
            }
            self.written.notified().await;
        }
    }

    /// Runs a request and waits for it. Unlike `block_on`, this works on a thread of another runtime.
    pub(super) fn wait_for<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let _ = sender.send(work.await);
        });
        receiver
            .recv()
            .map_err(|_| Failure::io(io::ErrorKind::Other, "the request failed without a reason"))
    }

    /// Reads a part of an object of at most `limit` bytes, and waits for it.
    pub(super) fn read(
        &'static self,
        (owner, client): (u64, &Arc<Client>),
        key: &str,
        part: Part,
        limit: u64,
        pin: Option<Arc<Version>>,
    ) -> Result<Fetched, Failure> {
        let mut state = self.lock();
        if let Some(id) = state.find(owner, key, &part) {
            // A prefetch that failed is tried again, because the reason may be gone.
            let wish = state.wish(id);
            let failed = matches!(wish.result, Some((Err(_), _)));
            if failed && wish.readers == 0 {
                state.remove(id);
            }
        }
        let found = state.find(owner, key, &part);
        let again = (part.clone(), pin.clone());
        let id = found.unwrap_or_else(|| state.add((owner, client), key, part, limit, pin));
        if state.ahead.remove(&id) || found.is_none() {
            state.urgent.insert(id);
        }
        state.wish(id).readers += 1;
        self.start(&mut state);
        while state.wish(id).result.is_none() {
            state = self
                .arrived
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let wish = state.wish(id);
        wish.readers -= 1;
        let is_shorter = wish.limit < limit;
        let result = wish.result.as_ref().map(|(result, _)| result.clone());
        if wish.readers == 0 {
            state.remove(id);
        }
        self.start(&mut state);
        drop(state);
        let result = result.expect("the loop waited for it");
        if is_shorter && matches!(result, Err(Failure::Length(_))) {
            // A prefetch may allow less.
            let (part, pin) = again;
            return self.read((owner, client), key, part, limit, pin);
        }
        result
    }

    /// Begins to read a part of an object, unless too much is waiting already.
    pub(super) fn prefetch(
        &'static self,
        (owner, client): (u64, &Arc<Client>),
        key: &str,
        part: Part,
        limit: u64,
        pin: Option<Arc<Version>>,
    ) {
        let mut state = self.lock();
        if state.ahead.len() >= MAX_AHEAD || state.find(owner, key, &part).is_some() {
            return;
        }
        let id = state.add((owner, client), key, part, limit, pin);
        state.ahead.insert(id);
        // The first of several prefetches waits a moment for the others, unless a read comes before.
        if !std::mem::replace(&mut state.gathers, true) {
            self.runtime.spawn(async {
                tokio::time::sleep(GATHER).await;
                let mut state = self.lock();
                state.gathers = false;
                self.start(&mut state);
            });
        }
    }

    /// Returns `true` if a part that was prefetched has arrived.
    pub(super) fn has(&self, owner: u64, key: &str, part: &Part) -> bool {
        let mut state = self.lock();
        let id = state.find(owner, key, part);
        id.is_some_and(|id| state.wish(id).result.is_some())
    }

    /// Drops the prefetches of an owner that will not read them any more.
    pub(super) fn forget(&self, owner: u64) {
        let mut state = self.lock();
        let own = |wish: &&mut Wish| wish.wanted.owner == owner && wish.readers == 0;
        for wish in state.wishes.values_mut().filter(own) {
            wish.abandoned = true;
        }
        state.drop_where(|wish| wish.abandoned && wish.result.is_some());
        let waiting: Vec<u64> = state.ahead.iter().copied().collect();
        for id in waiting {
            if state.wishes[&id].abandoned {
                state.remove(id);
            }
        }
    }

    /// Starts requests while there is room for them.
    fn start(&'static self, state: &mut State) {
        while state.running < state.window.requests() {
            let first = match (state.urgent.first(), state.ahead.first()) {
                (Some(&id), _) => id,
                (None, Some(&id)) => {
                    let more = state.wishes[&id].reserve();
                    if more > PREFETCH_BYTES {
                        // Its read requests it.
                        state.remove(id);
                        continue;
                    }
                    if state.bytes + more > PREFETCH_BYTES {
                        state.drop_stale();
                        if state.bytes + more > PREFETCH_BYTES {
                            return;
                        }
                    }
                    id
                }
                (None, None) => return,
            };
            let request = state.request(first);
            state.running += 1;
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            self.runtime.spawn(self.run(request));
        }
    }

    async fn run(&'static self, request: Request) {
        let Request {
            client,
            key,
            part,
            limit,
            pin,
            gaps,
            members,
        } = request;
        // On a task of its own, so that not even a panic leaves a reader waiting.
        let fetched = tokio::spawn(async move {
            match Key::parse(&*key) {
                Ok(key) => client.fetch(&key, &part, limit, pin, self).await,
                Err(_) => Err(Failure::io(
                    io::ErrorKind::InvalidInput,
                    "the key is not valid",
                )),
            }
        });
        let result = fetched.await.unwrap_or_else(|_| {
            Err(Failure::io(
                io::ErrorKind::Other,
                "the request failed without a reason",
            ))
        });
        // A part of an answer would keep all of it until the last of its wishes is read.
        let own = |range: Option<Range<usize>>| match (&result, range) {
            (Ok(fetched), Some(range)) if range.len() < fetched.bytes.len() => Ok(Fetched {
                bytes: Bytes::copy_from_slice(&fetched.bytes[range]),
                version: Arc::clone(&fetched.version),
            }),
            _ => result.clone(),
        };
        let own: Vec<_> = members
            .into_iter()
            .map(|(id, range)| (id, own(range)))
            .collect();
        let mut state = self.lock();
        #[cfg(any(test, feature = "testing"))]
        if own.len() > 1 {
            let copied = own.iter().map(|(_, own)| held_bytes(own)).sum::<u64>();
            state.note_held(copied);
        }
        drop(result);
        state.running -= 1;
        state.bytes -= gaps;
        for (id, own) in own {
            state.fulfill(id, own);
        }
        self.start(&mut state);
        drop(state);
        self.arrived.notify_all();
    }
}

/// The right to write an object, until it is dropped.
#[derive(Debug)]
pub(super) struct WriteTurn(&'static Engine);

impl Drop for WriteTurn {
    fn drop(&mut self) {
        self.0.lock().writing -= 1;
        // There may be room for one more, if the window has grown.
        self.0.written.notify_one();
        self.0.written.notify_one();
    }
}

/// Wishes, each with its range of the result of a request if it does not get all of it.
type Members = Vec<(u64, Option<Range<usize>>)>;

/// A request for one or more wishes.
struct Request {
    client: Arc<Client>,
    key: Arc<str>,
    part: Part,
    limit: u64,
    pin: Option<Arc<Version>>,
    /// Bytes of its range that no wish is for.
    gaps: u64,
    members: Members,
}

/// Returns the bytes of a result.
fn held_bytes(result: &Result<Fetched, Failure>) -> u64 {
    let held = result.as_ref();
    held.map_or(0, |fetched| fetched.bytes.len() as u64)
}

impl Wish {
    /// Returns the most bytes that its request returns; of a whole object that a thread waits for, a guess.
    fn reserve(&self) -> u64 {
        match &self.wanted.part {
            Part::Whole if self.readers > 0 => self.limit.min(1 << 20),
            Part::Whole => self.limit,
            Part::First(length) | Part::Last(length) => *length,
            Part::Range(range) => range.end - range.start,
        }
    }
}

impl State {
    fn wish(&mut self, id: u64) -> &mut Wish {
        self.wishes
            .get_mut(&id)
            .expect("a wish stays as long as it has readers")
    }

    fn find(&self, owner: u64, key: &str, part: &Part) -> Option<u64> {
        let wanted = Wanted {
            owner,
            key: key.into(),
            part: part.clone(),
        };
        self.by_part.get(&wanted).copied()
    }

    fn add(
        &mut self,
        (owner, client): (u64, &Arc<Client>),
        key: &str,
        part: Part,
        limit: u64,
        pin: Option<Arc<Version>>,
    ) -> u64 {
        self.next += 1;
        let id = self.next;
        let wanted = Wanted {
            owner,
            key: key.into(),
            part,
        };
        self.by_part.insert(wanted.clone(), id);
        let wish = Wish {
            wanted,
            client: Arc::clone(client),
            limit,
            pin,
            readers: 0,
            abandoned: false,
            bytes: 0,
            result: None,
        };
        self.wishes.insert(id, wish);
        id
    }

    fn remove(&mut self, id: u64) {
        if let Some(wish) = self.wishes.remove(&id) {
            self.by_part.remove(&wish.wanted);
            self.bytes -= wish.bytes;
        }
        self.urgent.remove(&id);
        self.ahead.remove(&id);
    }

    /// Removes results that nobody has read for a while.
    fn drop_stale(&mut self) {
        self.drop_where(|wish| {
            let old = |(_, when): &(_, Instant)| when.elapsed() > STALE;
            wish.readers == 0 && wish.result.as_ref().is_some_and(old)
        });
    }

    fn drop_where(&mut self, what: impl Fn(&Wish) -> bool) {
        let all = self.wishes.iter().filter(|(_, wish)| what(wish));
        let all: Vec<u64> = all.map(|(id, _)| *id).collect();
        for id in all {
            self.remove(id);
        }
    }

    /// Takes a wish that waits, and those that are best fulfilled with it.
    fn request(&mut self, first: u64) -> Request {
        let wish = &self.wishes[&first];
        let (client, key, pin) = (
            Arc::clone(&wish.client),
            Arc::clone(&wish.wanted.key),
            wish.pin.clone(),
        );
        let (part, limit, members) = match wish.wanted.part.clone() {
            Part::Range(range) => {
                let (range, members) = self.merged(first, range);
                (Part::Range(range.clone()), range.end - range.start, members)
            }
            part => (part, wish.limit, vec![(first, None)]),
        };
        let mut wanted = 0;
        for (id, _) in &members {
            self.urgent.remove(id);
            self.ahead.remove(id);
            let wish = self.wishes.get_mut(id).expect("it waits");
            wish.bytes = wish.reserve();
            wanted += wish.bytes;
        }
        let gaps = match &part {
            Part::Range(range) => (range.end - range.start).saturating_sub(wanted),
            _ => 0,
        };
        self.bytes += wanted + gaps;
        #[cfg(any(test, feature = "testing"))]
        self.note_held(0);
        Request {
            client,
            key,
            part,
            limit,
            pin,
            gaps,
            members,
        }
    }

    /// Returns the range of a request that begins with the wish `first` for `range`, and the wishes that it fulfills.
    fn merged(&self, first: u64, range: Range<u64>) -> (Range<u64>, Members) {
        let own = &self.wishes[&first];
        let mut near: Vec<(Range<u64>, u64)> = self
            .urgent
            .iter()
            .chain(&self.ahead)
            .filter_map(|id| {
                let wish = &self.wishes[id];
                let same = *id != first
                    && wish.wanted.owner == own.wanted.owner
                    && wish.wanted.key == own.wanted.key
                    && wish.pin == own.pin;
                match &wish.wanted.part {
                    Part::Range(range) if same => Some((range.clone(), *id)),
                    _ => None,
                }
            })
            .collect();
        near.sort_unstable_by_key(|(range, _)| (range.start, range.end));
        let most = self.pace.gap();
        let length = |range: &Range<u64>| range.end - range.start;
        let (mut whole, mut wanted) = (range.clone(), length(&range));
        let mut taken = vec![(first, range)];
        let room = PREFETCH_BYTES.saturating_sub(self.bytes);
        let mut fits = |whole: &mut Range<u64>, (next, id): &(Range<u64>, u64), gap: u64| {
            let both = whole.start.min(next.start)..whole.end.max(next.end);
            let all = wanted + length(next);
            let fits = gap <= most
                && (length(&both) <= room || self.urgent.contains(id))
                && length(&both) <= MAX_MERGED
                && length(&both) <= all + all / GAP_SHARE;
            if fits {
                *whole = both;
                wanted = all;
            }
            fits
        };
        let split = near.partition_point(|(next, _)| next.start < whole.start);
        for one @ (next, id) in &near[split..] {
            let gap = next.start.saturating_sub(whole.end);
            if !fits(&mut whole, one, gap) {
                break;
            }
            taken.push((*id, next.clone()));
        }
        for one @ (next, id) in near[..split].iter().rev() {
            let gap = whole.start.saturating_sub(next.end);
            if !fits(&mut whole, one, gap) {
                break;
            }
            taken.push((*id, next.clone()));
        }
        let start = whole.start;
        let inside = |n: u64| usize::try_from(n - start).expect("a merged request has few bytes");
        let members = taken
            .into_iter()
            .map(|(id, range)| (id, Some(inside(range.start)..inside(range.end))))
            .collect();
        (whole, members)
    }

    /// Hands a result to a wish.
    fn fulfill(&mut self, id: u64, result: Result<Fetched, Failure>) {
        let Some(wish) = self.wishes.get_mut(&id) else {
            return;
        };
        let bytes = held_bytes(&result);
        self.bytes = self.bytes - wish.bytes + bytes;
        wish.bytes = bytes;
        wish.result = Some((result, Instant::now()));
        if wish.abandoned && wish.readers == 0 {
            self.remove(id);
        }
    }

    /// Notes how much is held, with `more` bytes of copies.
    #[cfg(any(test, feature = "testing"))]
    fn note_held(&mut self, more: u64) {
        self.most = self.most.max(self.bytes + more);
    }
}
