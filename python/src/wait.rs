//! Work without the interpreter: other Python threads go on, Ctrl-C stops it, panics are errors.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use voxpatch::{Error, Result};

use crate::errors::raised;

/// The interval at which a waiting thread checks for Ctrl-C.
pub(crate) const ASK: Duration = Duration::from_millis(50);

/// How long work that was asked to stop may take to clean up.
const CLEAN_UP: Duration = Duration::from_millis(700);

/// Runs short work without the interpreter.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    py.detach(|| guarded(work)).map_err(|error| raised(&error))
}

/// Runs work of any length on a thread of its own, so that Ctrl-C ends the wait within a second.
///
/// `work` gets a flag that says when nobody wants its result any more.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let (done, mut result) = channel();
    let flag = Arc::clone(&stop);
    thread::Builder::new()
        .name("voxpatch-call".to_owned())
        .spawn(move || {
            // Nobody listens any more after Ctrl-C.
            let _ = done.send(guarded(|| work(&flag)));
        })
        .map_err(PyErr::from)?;
    loop {
        let waited;
        (result, waited) = py.detach(move || {
            let waited = result.recv_timeout(ASK);
            (result, waited)
        });
        match waited {
            Ok(done) => return done.map_err(|error| raised(&error)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(raised(&Error::Panicked {
                    message: "a thread ended without a result".to_owned(),
                }));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Err(interrupt) = py.check_signals() {
                    stop.store(true, Ordering::Relaxed);
                    py.detach(move || drop(result.recv_timeout(CLEAN_UP)));
                    return Err(interrupt);
                }
            }
        }
    }
}

/// Runs code that may panic; a panic is an error like any other.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(Error::Panicked {
            message: message(&*panic),
        })
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
        .to_owned()
}
