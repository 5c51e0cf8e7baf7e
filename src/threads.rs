//! How many threads there are to use, and pools of them.
//!
//! Nothing here uses rayon's global pool: threads do not survive a fork, and a child whose parent
//! had started that pool would wait for it for ever. A pool belongs to the call that made it.

use std::io;
use std::path::Path;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// As many threads as this process may run at once: the processors that it may use (its
/// affinity), and no more than its control group's quota of processor time, of version 1 or 2.
/// 1 if the system does not tell.
#[must_use]
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// So many threads, one at least, for work on `path`; they end with the pool.
pub(crate) fn pool(count: usize, name: &'static str, path: &Path) -> Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(count.max(1))
        .thread_name(move |n| format!("voxpatch-{name}-{n}"))
        .build()
        .map_err(|error| Error::io("start threads for", path)(io::Error::other(error)))
}
