//! Threads that share one task.

use std::panic::resume_unwind;
use std::thread;

/// Runs `work` in each of `threads` threads and returns the first error. A panic in a thread continues in the caller.
pub(crate) fn on_threads(
    threads: usize,
    work: impl Fn() -> voxpatch::Result<()> + Sync,
) -> voxpatch::Result<()> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        let joined = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.collect()
    })
}
