//! A bounded queue that prefetches results on worker threads and delivers them in order.
//!
//! A queue maps items to results. The n-th result belongs to the n-th item for any number of workers. At most `ahead`
//! started items have results that the consumer has not taken. A panic of a worker or of the item iterator becomes the
//! consumer's panic. Dropping a queue stops and joins its threads, which finish their current item.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// An iterator over prefetched results.
pub struct Queue<T> {
    mode: QueueMode<T>,
}

enum QueueMode<T> {
    /// No threads: each item is processed when its result is requested.
    Inline(Box<dyn FnMut() -> Option<T> + Send>),
    Threads {
        shared: Arc<QueueShared<T>>,
        workers: Vec<JoinHandle<()>>,
    },
}

struct QueueShared<T> {
    state: Mutex<QueueState<T>>,
    /// Signals a new result, or the end.
    ready: Condvar,
    /// Signals that a result was taken, or that the queue is being dropped.
    room: Condvar,
    ahead: u64,
}

struct QueueState<T> {
    /// Results that are not yet taken, by item.
    results: BTreeMap<u64, thread::Result<T>>,
    /// The number of items started.
    begun: u64,
    /// The number of results taken.
    taken: u64,
    /// The number of items, if it is already known.
    end: Option<u64>,
    stop: bool,
}

impl<T: Send + 'static> Queue<T> {
    /// Maps `items` with `work` on `workers` threads, up to `ahead` items beyond the consumer.
    ///
    /// With 0 workers, the consumer's thread does the work when it requests a result.
    ///
    /// # Panics
    ///
    /// If the system cannot start a thread.
    pub fn new<I, F>(items: I, workers: usize, ahead: usize, work: F) -> Self
    where
        I: Iterator + Send + 'static,
        I::Item: Send,
        F: Fn(I::Item) -> T + Send + Sync + 'static,
    {
        if workers == 0 {
            let mut results = items.map(work);
            return Self {
                mode: QueueMode::Inline(Box::new(move || results.next())),
            };
        }
        let state = QueueState {
            results: BTreeMap::new(),
            begun: 0,
            taken: 0,
            end: None,
            stop: false,
        };
        let shared = Arc::new(QueueShared {
            state: Mutex::new(state),
            ready: Condvar::new(),
            room: Condvar::new(),
            ahead: ahead.max(1) as u64,
        });
        let source = Arc::new((Mutex::new(items), work));
        let workers = (0..workers)
            .map(|n| {
                let (shared, source) = (Arc::clone(&shared), Arc::clone(&source));
                let worker = move || while shared.step(&source.0, &source.1) {};
                thread::Builder::new()
                    .name(format!("voxpatch-queue-{n}"))
                    .spawn(worker)
                    .expect("the system can start a thread")
            })
            .collect();
        Self {
            mode: QueueMode::Threads { shared, workers },
        }
    }
}

impl<T> QueueShared<T> {
    fn lock(&self) -> MutexGuard<'_, QueueState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Processes one item. Returns `false` if there are no more.
    fn step<I: Iterator>(&self, items: &Mutex<I>, work: &impl Fn(I::Item) -> T) -> bool {
        // The lock of the items is held until the item has its number, so that numbers follow items.
        let mut items = items.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        while !state.stop
            && state.end.is_none()
            && state.begun >= state.taken.saturating_add(self.ahead)
        {
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop || state.end.is_some() {
            return false;
        }
        drop(state);
        let item = catch_unwind(AssertUnwindSafe(|| items.next()));
        let mut state = self.lock();
        let number = state.begun;
        let item = match item {
            Ok(Some(item)) => item,
            Ok(None) => {
                state.end = Some(number);
                self.ready.notify_all();
                return false;
            }
            Err(panic) => {
                state.begun += 1;
                state.end = Some(number + 1);
                state.results.insert(number, Err(panic));
                self.ready.notify_all();
                return false;
            }
        };
        state.begun += 1;
        drop((state, items));
        let result = catch_unwind(AssertUnwindSafe(|| work(item)));
        self.lock().results.insert(number, result);
        self.ready.notify_all();
        true
    }

    fn take(&self) -> Option<thread::Result<T>> {
        let mut state = self.lock();
        loop {
            let next = state.taken;
            if let Some(result) = state.results.remove(&next) {
                state.taken += 1;
                self.room.notify_all();
                return Some(result);
            }
            if state.end == Some(next) {
                return None;
            }
            state = self
                .ready
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Iterator for Queue<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        match &mut self.mode {
            QueueMode::Inline(next) => next(),
            QueueMode::Threads { shared, .. } => shared
                .take()
                .map(|result| result.unwrap_or_else(|panic| resume_unwind(panic))),
        }
    }
}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        if let QueueMode::Threads { shared, workers } = &mut self.mode {
            shared.lock().stop = true;
            shared.room.notify_all();
            for worker in workers.drain(..) {
                // Panics of workers are only for the consumer, which is gone.
                let _ = worker.join();
            }
        }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = match &self.mode {
            QueueMode::Inline(_) => 0,
            QueueMode::Threads { workers, .. } => workers.len(),
        };
        f.debug_struct("Queue")
            .field("workers", &workers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_are_in_order_for_any_number_of_workers() {
        for workers in [0, 1, 2, 8] {
            let slow_first = |n: u64| {
                thread::sleep(Duration::from_micros((97 - n % 97) * 10));
                n * n
            };
            let results: Vec<u64> = Queue::new(0..200, workers, 5, slow_first).collect();
            assert_eq!(results, (0..200).map(|n| n * n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_slow_item_does_not_let_the_others_run_away() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&begun);
        let mut queue = Queue::new(0..1000, 4, 6, move |n: u32| {
            counter.fetch_add(1, Ordering::SeqCst);
            if n == 0 {
                thread::sleep(Duration::from_millis(50));
            }
        });
        thread::sleep(Duration::from_millis(30));
        assert!(begun.load(Ordering::SeqCst) <= 6);
        queue.next();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(begun.load(Ordering::SeqCst), 7, "one taken, one more begun");
    }

    #[test]
    fn a_panic_of_a_worker_or_of_the_items_reaches_the_consumer() {
        let mut queue = Queue::new(
            0..10,
            2,
            4,
            |n: u32| if n == 3 { panic!("worker {n}") } else { n },
        );
        assert_eq!(
            (queue.next(), queue.next(), queue.next()),
            (Some(0), Some(1), Some(2))
        );
        assert!(catch_unwind(AssertUnwindSafe(|| queue.next())).is_err());
        let items = (0..10).inspect(|&n| assert!(n < 2, "no more items"));
        let mut queue = Queue::new(items, 2, 4, |n: u32| n);
        assert_eq!((queue.next(), queue.next()), (Some(0), Some(1)));
        assert!(catch_unwind(AssertUnwindSafe(|| queue.next())).is_err());
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn dropping_at_any_moment_joins_the_threads() {
        for k in 0..50 {
            let alive = Arc::new(());
            let held = Arc::clone(&alive);
            let mut queue = Queue::new(0.., 1 + k % 8, 1 + k % 5, move |n: usize| {
                (Arc::strong_count(&held), n)
            });
            for n in 0..k {
                assert_eq!(queue.next().unwrap().1, n);
            }
            drop(queue);
            assert_eq!(
                Arc::strong_count(&alive),
                1,
                "no worker holds anything any more"
            );
        }
    }
}
