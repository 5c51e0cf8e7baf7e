//! Progress reporting and cancellation of long-running work.

use std::ops::ControlFlow;

use crate::error::{Error, Result};

/// A callback that receives the finished and the total number of steps. `Break` stops the
/// work, which then ends with [`Error::Interrupted`] and leaves nothing half-written.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) -> ControlFlow<()> + Sync);

/// A [`Progress`] that reports nothing and never stops the work.
pub fn silent(_done: u64, _total: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Reports progress, and returns [`Error::Interrupted`] if the callback asks to stop.
pub(crate) fn report(progress: Progress<'_>, done: u64, total: u64) -> Result<()> {
    match progress(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}
