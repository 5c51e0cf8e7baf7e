//! Locks, signals between threads, and panics of code that the user supplies.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// Locks a mutex, even if another thread panicked while it held the lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A condition variable that calls the system only if a thread waits. Notifying costs a system call otherwise, and most of
/// the time no thread waits.
///
/// What threads wait for must change while the mutex is locked that they wait with, before the notification.
#[derive(Debug, Default)]
pub(super) struct Signal {
    changed: Condvar,
    /// The threads that wait; it grows while the mutex is locked.
    waiting: AtomicUsize,
}

impl Signal {
    /// Wakes all threads that wait.
    pub(super) fn notify(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.changed.notify_all();
        }
    }

    /// Waits for a notification.
    pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let guard = self.changed.wait(guard);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        guard.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a notification, at most for `time`.
    pub(super) fn wait_for<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
    ) -> MutexGuard<'a, T> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waited = self.changed.wait_timeout(guard, time);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Runs code that may panic and returns a panic as an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// Returns the error for a panic.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let message = text
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Error::Panicked {
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn no_notification_is_missed() {
        // Threads take turns, so that each change is waited for by the others.
        let (turn, signal) = (Mutex::new(0), Signal::default());
        let (threads, turns) = (4, 4000);
        thread::scope(|scope| {
            for own in 0..threads {
                let (turn, signal) = (&turn, &signal);
                scope.spawn(move || {
                    loop {
                        let mut now = lock(turn);
                        while *now < turns && *now % threads != own {
                            now = signal.wait(now);
                        }
                        if *now == turns {
                            return;
                        }
                        *now += 1;
                        drop(now);
                        signal.notify();
                    }
                });
            }
        });
        assert_eq!(*lock(&turn), turns);
        assert_eq!(signal.waiting.load(Ordering::SeqCst), 0);
    }
}
