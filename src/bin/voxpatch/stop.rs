//! Ctrl-C and SIGTERM.
//!
//! Work that has an output under construction looks at the wish to stop and ends itself, so
//! that nothing half-written stays; before there is one, the process ends at once.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// The exit status of what the user stopped, as shells have it: 128 + SIGINT.
pub(crate) const STATUS: u8 = 130;

static WANTED: AtomicBool = AtomicBool::new(false);
static HEEDED: AtomicBool = AtomicBool::new(false);

/// Listens for the signals from now on.
pub(crate) fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        WANTED.store(true, Ordering::SeqCst);
        if !HEEDED.load(Ordering::SeqCst) {
            eprintln!("voxpatch: stopped on request");
            std::process::exit(i32::from(STATUS));
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// From now on the work stops itself: it asks [`check`] or reports through [`flow`].
pub(crate) fn heed() {
    HEEDED.store(true, Ordering::SeqCst);
}

/// Whether work may go on.
pub(crate) fn flow() -> ControlFlow<()> {
    if WANTED.load(Ordering::SeqCst) {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

/// The error that ends the work, if the user wants it to end.
pub(crate) fn check() -> voxpatch::Result<()> {
    match flow() {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(voxpatch::Error::Stopped),
    }
}
