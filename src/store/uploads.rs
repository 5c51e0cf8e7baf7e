//! Objects that are written while their writer goes on.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::AbortHandle;

use super::object::{Digest, Failure};
use super::remote::{Remote, failed};
use crate::error::Result;

/// Objects on their way to a store. Dropping this does not end them.
pub(crate) struct Uploads {
    remote: Remote,
    /// The most bytes on their way, unless a single object has more.
    limit: u64,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signals that an object was written or has failed.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    bytes: u64,
    running: HashMap<u64, Option<AbortHandle>>,
    failure: Option<(PathBuf, Failure)>,
    written: Digest,
    /// The names and entity tags of objects that were written, if they are recorded.
    arrived: Option<Vec<Arrived>>,
}

/// The name of an object that was written, and its entity tag without quotes, if the server has one.
pub(crate) type Arrived = (String, Option<String>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An object on its way. Even if its task is aborted, it is counted as ended.
struct UnderWay {
    shared: Arc<Shared>,
    number: u64,
    bytes: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.running.remove(&self.number);
        state.bytes -= self.bytes;
        drop(state);
        self.shared.ended.notify_all();
    }
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Uploads {
    pub(super) fn new(remote: Remote, limit: u64) -> Self {
        Self {
            remote,
            limit,
            shared: Arc::default(),
        }
    }

    /// Records what was written, for [`take_arrived`](Self::take_arrived).
    pub(crate) fn recorded(self) -> Self {
        self.shared.lock().arrived = Some(Vec::new());
        self
    }

    /// Returns the objects that were written since the last call.
    pub(crate) fn take_arrived(&self) -> Vec<Arrived> {
        let mut state = self.shared.lock();
        state
            .arrived
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Begins to write an object, `name` in the folder `folder`, once there is room for it.
    ///
    /// # Errors
    ///
    /// The error of an earlier object.
    pub(crate) fn put(&self, folder: &Path, name: &str, bytes: Vec<u8>) -> Result<()> {
        let path = folder.join(name);
        let (engine, client, key) = self.remote.place(&path)?;
        let bytes = Bytes::from(bytes);
        let length = bytes.len() as u64;
        let mut state = self.shared.lock();
        while state.failure.is_none() && state.bytes > 0 && state.bytes + length > self.limit {
            state = self.wait_on(state);
        }
        state.check()?;
        state.next += 1;
        state.bytes += length;
        let number = state.next;
        state.running.insert(number, None);
        drop(state);
        let under_way = UnderWay {
            shared: Arc::clone(&self.shared),
            number,
            bytes: length,
        };
        let name = name.to_owned();
        let abort = engine.spawn(async move {
            let _turn = engine.turn_to_write().await;
            let done = client.put(&key, bytes, engine).await;
            let mut state = under_way.shared.lock();
            match done {
                Ok(tag) => {
                    state.written.add(&name, length);
                    if let Some(arrived) = &mut state.arrived {
                        arrived.push((name, tag));
                    }
                }
                Err(failure) => {
                    state.failure.get_or_insert((path, failure));
                }
            }
        });
        let mut state = self.shared.lock();
        if let Some(running) = state.running.get_mut(&number) {
            *running = Some(abort);
        }
        Ok(())
    }

    /// Waits until all objects are written, and returns what they are.
    pub(crate) fn wait(&self) -> Result<Digest> {
        let mut state = self.shared.lock();
        while !state.running.is_empty() {
            state = self.wait_on(state);
        }
        state.check()?;
        Ok(state.written)
    }

    /// Waits a while for the objects on their way, and gives up the others.
    pub(crate) fn give_up(&self, after: Duration) {
        let end = Instant::now() + after;
        let mut state = self.shared.lock();
        while !state.running.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        for abort in state.running.values().flatten() {
            abort.abort();
        }
    }

    fn wait_on<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.shared.ended.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failure {
            Some((path, failure)) => Err(failed(path, "write", failure.clone())),
            None => Ok(()),
        }
    }
}
