//! Steps at which tests interrupt a process, as a signal would.

use std::cell::Cell;

use crate::error::{Error, Result};

thread_local! {
    /// The steps of this thread before it fails; `None` if it never fails.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Makes this thread fail at a step: 0 is the next one, `None` means never.
pub(crate) fn break_off_at(step: Option<u32>) {
    LEFT.set(step);
}

/// Returns `true` if a failure is set and has not happened yet.
pub(crate) fn is_on_its_way() -> bool {
    LEFT.get().is_some()
}

/// Counts a step. Returns an error at the chosen one.
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
