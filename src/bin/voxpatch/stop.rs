//! Signals that end the command: Ctrl-C, a terminal that is closed, and what batch systems send.
//!
//! Work that has an output under construction looks at the wish to stop and ends itself, so
//! that nothing half-written stays; before there is one, and at the second signal, the process ends
//! at once. What was ignored when the command began (`nohup`, background jobs of a script) stays ignored.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use voxpatch::volume::signal_is_ignored;

/// What asks the command to stop.
const STOPPING: [i32; 7] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGXCPU];

/// The first signal that came; 0 before.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static GRACEFUL: AtomicBool = AtomicBool::new(false);

/// Listens for the signals from now on.
pub(crate) fn listen() -> anyhow::Result<()> {
    let listen = || -> std::io::Result<()> {
        // A file that grows too large is an error of the write that exceeds the limit.
        flag::register(SIGXFSZ, Arc::default())?;
        let heard = STOPPING
            .into_iter()
            .filter(|&signal| !signal_is_ignored(signal));
        let mut signals = Signals::new(heard)?;
        let listener = move || signals.forever().for_each(received);
        thread::Builder::new()
            .name("voxpatch-signals".to_owned())
            .spawn(listener)?;
        Ok(())
    };
    listen().context("cannot listen for Ctrl-C")
}

fn received(signal: i32) {
    let first = SIGNAL
        .compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok();
    // The system sends this one every second, and nobody insists.
    let insists = !first && signal != SIGXCPU;
    if insists || !GRACEFUL.load(Ordering::SeqCst) {
        eprintln!("voxpatch: stopped on request");
        std::process::exit(status(signal).into());
    }
}

/// The exit status of what the user stopped, as shells have it: 128 and the signal's number.
pub(crate) fn status_now() -> u8 {
    match SIGNAL.load(Ordering::SeqCst) {
        0 => status(SIGINT),
        signal => status(signal),
    }
}

fn status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// From now on the work stops itself: it asks [`check`] or reports through [`flow`].
pub(crate) fn stop_gracefully() {
    GRACEFUL.store(true, Ordering::SeqCst);
}

/// Whether work may go on.
pub(crate) fn flow() -> ControlFlow<()> {
    if SIGNAL.load(Ordering::SeqCst) == 0 {
        ControlFlow::Continue(())
    } else {
        ControlFlow::Break(())
    }
}

/// The error that ends the work, if the user wants it to end.
pub(crate) fn check() -> voxpatch::Result<()> {
    match flow() {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(voxpatch::Error::Interrupted),
    }
}
