//! Requests for the objects of one store, repeated until they succeed, fail for good, or take too long.
//!
//! The responses are checked here: every byte that leaves this module belongs to the range that was requested and to
//! one version of the object. The retries of the `object_store` crate are off, so that all of them are in one place.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt,
};

use super::object::{Failure, Fetched, Part, Version};

/// Times after which a request is repeated or given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Patience {
    /// A request is repeated if no byte arrives for this time.
    pub(super) stall: Duration,
    /// A read is given up after this time.
    pub(super) total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(5),
            total: Duration::from_mins(3),
        }
    }
}

/// A connection to a store.
pub(super) struct Client {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The same store, for objects that are written in parts; `None` if it is only read.
    pub(super) multipart: Option<Arc<dyn MultipartStore>>,
    pub(super) patience: Patience,
    /// Whether whole objects may be read from servers that ignore the `Range` header.
    pub(super) allow_whole: bool,
    /// Whether the last bytes of an object can be requested without its length.
    pub(super) has_suffixes: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// What the requests of a task have seen, recorded by the [`connect`](super::connect) module.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Whether a request was sent.
    pub(super) sent: AtomicBool,
    /// The status of the last response; 0 if there is none.
    pub(super) status: AtomicU16,
    /// The last `Retry-After` in seconds; 0 if there is none.
    pub(super) retry_after: AtomicU64,
}

impl Seen {
    /// Returns the status of the last response; 0 if there is none.
    pub(super) fn status(&self) -> u16 {
        self.status.load(Ordering::Relaxed)
    }
}

tokio::task_local! {
    /// The record of the running attempt.
    pub(super) static SEEN: Arc<Seen>;
}

/// Measurements of a successful request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Seconds until the headers arrived,
    pub(super) latency: f64,
    /// and from then to the last byte.
    pub(super) transfer: f64,
    pub(super) bytes: u64,
}

/// The reactions of the scheduler to the outcome of an attempt.
pub(super) trait Watcher: Sync {
    /// The server asked for fewer requests.
    fn throttled(&self);
    /// A request succeeded.
    fn succeeded(&self, timing: Timing);
}

/// The state of a read over its attempts.
struct Progress {
    part: Part,
    /// The range that the part means, once the object's size is known.
    range: Option<Range<u64>>,
    version: Option<Arc<Version>>,
    /// Whether the version was chosen by an earlier read.
    pinned: bool,
    limit: u64,
    got: Vec<u8>,
}

/// The end of an attempt that did not succeed.
pub(super) enum Setback {
    Final(Failure),
    Again(Failure),
    /// The server is overloaded; it may say how long to wait.
    Throttled(Failure, Option<Duration>),
}

/// A read is given up after this many attempts.
const ATTEMPTS: u32 = 12;

impl Client {
    /// Reads a part of the object `key` of at most `limit` bytes. If `pin` is set, the object must have that version.
    pub(super) async fn fetch(
        &self,
        key: &Key,
        part: &Part,
        limit: u64,
        pin: Option<Arc<Version>>,
        watcher: &dyn Watcher,
    ) -> Result<Fetched, Failure> {
        let begun = Instant::now();
        let mut progress = Progress {
            part: part.clone(),
            range: None,
            pinned: pin.is_some(),
            version: pin,
            limit,
            got: Vec::new(),
        };
        for attempt in 0.. {
            let seen = Arc::new(Seen::default());
            let tried = SEEN
                .scope(
                    Arc::clone(&seen),
                    self.attempt(key, &mut progress, &seen, watcher),
                )
                .await;
            let (failure, wait) = match tried {
                Ok(()) => {
                    let version = progress.version.expect("a response has a version");
                    return Ok(Fetched {
                        bytes: Bytes::from(progress.got),
                        version,
                    });
                }
                Err(Setback::Final(failure)) => return Err(failure),
                Err(Setback::Again(failure)) => (failure, None),
                Err(Setback::Throttled(failure, wait)) => {
                    watcher.throttled();
                    (failure, wait)
                }
            };
            let wait = wait.unwrap_or_else(|| backoff(attempt, key.as_ref()));
            if attempt + 1 >= ATTEMPTS || begun.elapsed() + wait > self.patience.total {
                return Err(failure);
            }
            tokio::time::sleep(wait).await;
        }
        unreachable!("the attempts are counted")
    }

    /// Makes one request for what is still missing.
    async fn attempt(
        &self,
        key: &Key,
        progress: &mut Progress,
        seen: &Seen,
        watcher: &dyn Watcher,
    ) -> Result<(), Setback> {
        progress.keep_if_joinable();
        let wanted = match progress.next_range() {
            Some(GetRange::Suffix(length)) if !self.has_suffixes => {
                Some(self.last_bytes(key, length, seen).await?)
            }
            wanted => wanted,
        };
        if let Some(GetRange::Bounded(range)) = &wanted
            && range.is_empty()
        {
            return Ok(());
        }
        let has_range = wanted.is_some();
        let begun = Instant::now();
        let options = GetOptions {
            range: wanted,
            ..GetOptions::default()
        };
        let stall = self.patience.stall;
        let response = in_time(stall, self.store.get_opts(key, options)).await?;
        let response = response.map_err(|error| refusal(&error, seen, has_range))?;
        let latency = begun.elapsed().as_secs_f64();
        progress.begin(&response)?;
        let range = progress.range.clone().expect("it was just set");
        let GetResultPayload::Stream(mut stream) = response.payload;
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let before = progress.got.len();
        while let Some(piece) = in_time(stall, stream.next()).await? {
            let piece = piece.map_err(|error| Setback::Again(io_failure(&error)))?;
            if piece.len() > length - progress.got.len() {
                progress.restart();
                let problem = "the response is longer than its headers say";
                return Err(Setback::Again(Failure::io(
                    io::ErrorKind::InvalidData,
                    problem,
                )));
            }
            progress.got.extend_from_slice(&piece);
        }
        if progress.got.len() < length {
            let problem = format!(
                "the response ended after {} of {length} bytes",
                progress.got.len()
            );
            return Err(Setback::Again(Failure::io(
                io::ErrorKind::UnexpectedEof,
                problem,
            )));
        }
        watcher.succeeded(Timing {
            latency,
            transfer: (begun.elapsed().as_secs_f64() - latency).max(0.0),
            bytes: (progress.got.len() - before) as u64,
        });
        Ok(())
    }

    /// Returns the range of the last bytes of an object.
    async fn last_bytes(&self, key: &Key, length: u64, seen: &Seen) -> Result<GetRange, Setback> {
        let found = in_time(self.patience.stall, self.store.head(key)).await?;
        let size = found.map_err(|error| refusal(&error, seen, false))?.size;
        match size.checked_sub(length) {
            Some(start) => Ok(GetRange::Bounded(start..size)),
            None => Err(Setback::Final(Failure::Length(size))),
        }
    }

    /// Returns the version of an object without reading it.
    pub(super) async fn head(&self, key: &Key, watcher: &dyn Watcher) -> Result<Version, Failure> {
        let found = self.look(key, watcher).await;
        found.map(|found| version(&found.meta))
    }

    /// Requests what a server says of an object, without its bytes.
    pub(super) async fn look(
        &self,
        key: &Key,
        watcher: &dyn Watcher,
    ) -> Result<GetResult, Failure> {
        self.repeated(key.as_ref(), watcher, || {
            self.store.get_opts(
                key,
                GetOptions {
                    head: true,
                    ..GetOptions::default()
                },
            )
        })
        .await
    }

    /// Makes a request without a body until it succeeds or fails for good.
    pub(super) async fn repeated<T, F>(
        &self,
        name: &str,
        watcher: &dyn Watcher,
        request: impl Fn() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let judge = |error: &object_store::Error, seen: &Seen| refusal(error, seen, false);
        self.repeated_within(name, self.patience.stall, watcher, judge, request)
            .await
    }

    /// Makes a request, each time for at most `time`, until it succeeds or fails for good. `judge` says what a failure
    /// means.
    pub(super) async fn repeated_within<T, F>(
        &self,
        name: &str,
        time: Duration,
        watcher: &dyn Watcher,
        judge: impl Fn(&object_store::Error, &Seen) -> Setback,
        request: impl Fn() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let begun = Instant::now();
        for attempt in 0.. {
            let seen = Arc::new(Seen::default());
            let tried = SEEN
                .scope(Arc::clone(&seen), in_time(time, request()))
                .await;
            let tried = tried.and_then(|done| done.map_err(|error| judge(&error, &seen)));
            let (failure, wait) = match tried {
                Ok(done) => return Ok(done),
                Err(Setback::Final(failure)) => return Err(failure),
                Err(Setback::Again(failure)) => (failure, None),
                Err(Setback::Throttled(failure, wait)) => {
                    watcher.throttled();
                    (failure, wait)
                }
            };
            let wait = wait.unwrap_or_else(|| backoff(attempt, name));
            if attempt + 1 >= ATTEMPTS || begun.elapsed() + wait > self.patience.total.max(2 * time)
            {
                return Err(failure);
            }
            tokio::time::sleep(wait).await;
        }
        unreachable!("the attempts are counted")
    }
}

impl Progress {
    /// Returns the range that is still missing; `None` for the whole object.
    fn next_range(&self) -> Option<GetRange> {
        if let Some(range) = &self.range
            && !self.got.is_empty()
        {
            return Some(GetRange::Bounded(
                range.start + self.got.len() as u64..range.end,
            ));
        }
        match &self.part {
            Part::Whole => None,
            Part::First(length) => Some(GetRange::Bounded(0..*length)),
            Part::Last(length) => Some(GetRange::Suffix(*length)),
            Part::Range(range) => Some(GetRange::Bounded(range.clone())),
        }
    }

    /// Checks the headers of a response.
    fn begin(&mut self, response: &GetResult) -> Result<(), Setback> {
        let found = version(&response.meta);
        if let Some(before) = &self.version
            && let Some(change) = before.change(&found)
        {
            if self.pinned {
                return Err(Setback::Final(Failure::Changed(change)));
            }
            // Nothing of the earlier version was delivered: begin anew with this one.
            self.restart();
            self.version = None;
            let problem = "the object changed while it was read";
            return Err(Setback::Again(Failure::io(
                io::ErrorKind::InvalidData,
                problem,
            )));
        }
        let size = found.size;
        let range = match &self.part {
            Part::Whole => 0..size,
            Part::First(length) => 0..size.min(*length),
            Part::Last(length) => size
                .checked_sub(*length)
                .map(|start| start..size)
                .ok_or(Setback::Final(Failure::Length(size)))?,
            Part::Range(range) => range.clone(),
        };
        if range.end > size || range.end - range.start > self.limit {
            return Err(Setback::Final(Failure::Length(size)));
        }
        let missing = range.start + self.got.len() as u64..range.end;
        if response.range != missing {
            self.restart();
            let problem = format!(
                "bytes {missing:?} were requested and {:?} sent",
                response.range
            );
            return Err(Setback::Again(Failure::io(
                io::ErrorKind::InvalidData,
                problem,
            )));
        }
        if self.got.is_empty() {
            let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            if self.got.try_reserve_exact(length).is_err() {
                let problem = format!("{length} bytes cannot be allocated");
                return Err(Setback::Final(Failure::io(
                    io::ErrorKind::OutOfMemory,
                    problem,
                )));
            }
        }
        self.range = Some(range);
        self.version = Some(Arc::new(found));
        Ok(())
    }

    /// Forgets what has arrived if the rest may come from a different version: without an entity tag, two versions
    /// can look alike.
    fn keep_if_joinable(&mut self) {
        let tagged = self
            .version
            .as_ref()
            .is_some_and(|version| version.etag.is_some());
        if !tagged {
            self.restart();
        }
    }

    /// Forgets what has arrived.
    fn restart(&mut self) {
        self.got = Vec::new();
        self.range = None;
    }
}

/// Waits for a step of a request, which must not take longer than `stall`.
async fn in_time<T>(stall: Duration, step: impl Future<Output = T>) -> Result<T, Setback> {
    tokio::time::timeout(stall, step).await.map_err(|_| {
        let problem = format!("no byte arrived for {} s", stall.as_secs_f64());
        Setback::Again(Failure::io(io::ErrorKind::TimedOut, problem))
    })
}

/// Returns the time before the next attempt: 50 ms, doubled by each attempt, up to 5 s, varied by up to a half.
fn backoff(attempt: u32, name: &str) -> Duration {
    let longest = Duration::from_millis(50 << attempt.min(7)).min(Duration::from_secs(5));
    // Different objects wait for different times, so that they do not all come back at once.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ u64::from(attempt);
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let share = f64::from(u32::try_from(hash >> 40).unwrap_or(0)) / f64::from(1 << 24);
    longest.mul_f64(0.5 + 0.5 * share)
}

pub(super) fn version(meta: &ObjectMeta) -> Version {
    Version {
        etag: meta.e_tag.clone(),
        modified: meta.last_modified.timestamp_millis(),
        size: meta.size,
    }
}

/// Returns what a failed request means.
pub(super) fn refusal(error: &object_store::Error, seen: &Seen, has_range: bool) -> Setback {
    let said = |kind| said(kind, seen, error);
    match seen.status() {
        404 | 410 => Setback::Final(Failure::Absent),
        401 | 403 => Setback::Final(said(io::ErrorKind::PermissionDenied)),
        416 => Setback::Final(said(io::ErrorKind::UnexpectedEof)),
        429 | 503 => {
            let wait = seen.retry_after.load(Ordering::Relaxed);
            let wait = (wait > 0).then(|| Duration::from_secs(wait.min(30)));
            Setback::Throttled(said(io::ErrorKind::ResourceBusy), wait)
        }
        408 | 500..=599 => Setback::Again(said(io::ErrorKind::Other)),
        200 if has_range => Setback::Final(Failure::NoRanges),
        // The headers do not fit the request.
        200..=299 => Setback::Again(io_failure(error)),
        0 if seen.sent.load(Ordering::Relaxed) => Setback::Again(io_failure(error)),
        0 => Setback::Final(io_failure(error)),
        _ => Setback::Final(said(io::ErrorKind::Other)),
    }
}

/// Returns the failure of a request that the server has answered.
pub(super) fn said(kind: io::ErrorKind, seen: &Seen, error: &object_store::Error) -> Failure {
    let status = seen.status();
    Failure::io(
        kind,
        format!("the server answered {status}{}", reason(error)),
    )
}

/// Returns the error code of a server's XML answer, for a message: ` (NoSuchBucket)`.
fn reason(error: &object_store::Error) -> String {
    let text = error.to_string();
    let code = text
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    match code {
        Some((code, _)) if code.len() < 60 && code.chars().all(char::is_alphanumeric) => {
            format!(" ({code})")
        }
        _ => String::new(),
    }
}

/// Returns the innermost cause of a failure. The outer ones name addresses, which may contain secrets.
fn io_failure(error: &object_store::Error) -> Failure {
    let mut inner: &dyn std::error::Error = error;
    let mut kind = io::ErrorKind::Other;
    while let Some(cause) = inner.source() {
        inner = cause;
        if let Some(cause) = inner.downcast_ref::<io::Error>() {
            kind = cause.kind();
        }
    }
    Failure::io(kind, inner.to_string())
}
