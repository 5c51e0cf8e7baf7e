//! Defaults of the machine's use: memory, the number of threads, and thread pools.
//!
//! Nothing here uses rayon's global pool: threads do not survive a fork, and a child whose parent
//! had started that pool would wait for it forever. A pool belongs to the call that made it.

use std::io;
use std::path::Path;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// The bytes that work may hold if no other budget is set: 256 MiB.
pub const DEFAULT_MEMORY: u64 = 256 << 20;

/// Returns the number of threads that this process may run at once: the processors in its
/// affinity mask, at most its control group's CPU quota (version 1 or 2), at least 1.
#[must_use]
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Starts a pool of `threads` threads (at least one) for work on `path`. They end with the pool.
pub(crate) fn pool(count: usize, name: &'static str, path: &Path) -> Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(count.max(1))
        .thread_name(move |n| format!("voxpatch-{name}-{n}"))
        .build()
        .map_err(|error| Error::io("start threads for", path)(io::Error::other(error)))
}
