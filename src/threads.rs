//! Default memory and numbers of threads, and thread pools.
//!
//! rayon's global pool is not used: threads do not survive a fork, and a child whose parent had started that pool would
//! wait for it forever. Each pool belongs to the call that started it.

use std::io;
use std::path::Path;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// The default memory budget in bytes: 256 MiB.
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
