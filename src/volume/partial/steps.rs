//! Steps at which tests break a process off, as a signal would.

use std::cell::Cell;

use crate::error::{Error, Result};

thread_local! {
    /// Steps of this thread until it breaks off; never if there is no number.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Has this thread break off at a step: at the next one for 0, never for `None`.
pub(crate) fn break_off_at(step: Option<u32>) {
    LEFT.set(step);
}

/// Returns `true` if it has not broken off yet.
pub(crate) fn is_on_its_way() -> bool {
    LEFT.get().is_some()
}

/// A step: an error once it is time.
pub(crate) fn step(name: &str) -> Result<()> {
    match LEFT.get() {
        Some(0) => {
            LEFT.set(None);
            Err(Error::Panicked {
                message: format!("broken off at: {name}"),
            })
        }
        left => {
            LEFT.set(left.map(|left| left - 1));
            Ok(())
        }
    }
}
