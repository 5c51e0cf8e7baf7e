//! How long work tells how far it is, and is told to stop.

use std::ops::ControlFlow;

use crate::error::{Error, Result};

/// Called now and then with the steps done and the steps in all; `Break` stops the work,
/// which then ends with [`Error::Stopped`] and leaves nothing half-written.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) -> ControlFlow<()> + Sync);

/// A [`Progress`] that says nothing and never stops.
pub fn silent(_done: u64, _total: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Reports, and turns a wish to stop into the error that ends the work.
pub(crate) fn report(progress: Progress<'_>, done: u64, total: u64) -> Result<()> {
    match progress(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    }
}
