//! A value that each process makes for itself.
//!
//! A forked process inherits the memory of its parent, but none of its threads, and locks that other threads held stay
//! locked forever. So nothing that was made before a fork is used after it: the child makes its own value, without
//! taking a lock, and leaves the inherited one alone.

use std::fmt;
use std::mem;
use std::process;

use once_cell::race::OnceBox;

/// A value that is made once per process, at its first use.
pub(super) struct PerProcess<T> {
    first: OnceBox<Generation<T>>,
}

struct Generation<T> {
    process: u32,
    /// `None` only while the generation is dropped.
    value: Option<T>,
    /// The value of a process that was forked off.
    next: OnceBox<Self>,
}

impl<T> PerProcess<T> {
    pub(super) const fn new() -> Self {
        Self {
            first: OnceBox::new(),
        }
    }

    /// Returns the value of this process, if it has been made.
    pub(super) fn get(&self) -> Option<&T> {
        let mut place = &self.first;
        while let Some(found) = place.get() {
            if found.process == process::id() {
                return found.value.as_ref();
            }
            place = &found.next;
        }
        None
    }

    /// Returns the value of this process. If several threads ask for it first, each may make one, and one of them is
    /// kept.
    pub(super) fn get_or_try_init<E>(&self, make: impl Fn() -> Result<T, E>) -> Result<&T, E> {
        let process = process::id();
        let mut place = &self.first;
        loop {
            let found = place.get_or_try_init(|| {
                Ok(Box::new(Generation {
                    process,
                    value: Some(make()?),
                    next: OnceBox::new(),
                }))
            })?;
            if found.process == process {
                return Ok(found.value.as_ref().expect("it is not being dropped"));
            }
            place = &found.next;
        }
    }
}

impl<T> fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerProcess").finish_non_exhaustive()
    }
}

impl<T> Drop for Generation<T> {
    fn drop(&mut self) {
        // Dropping what a parent process made could wait for its threads, or end its connections.
        let value = self.value.take();
        if self.process != process::id() {
            mem::forget(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_value_is_made_once_and_again_after_a_failure() {
        let made = AtomicU32::new(0);
        let value = PerProcess::new();
        let make = || match made.fetch_add(1, Ordering::Relaxed) {
            0 => Err("not yet"),
            n => Ok(n),
        };
        assert_eq!(value.get_or_try_init(make), Err("not yet"));
        assert_eq!(value.get_or_try_init(make), Ok(&1));
        assert_eq!(value.get_or_try_init(make), Ok(&1));
    }
}
