//! The memory of this process, as reported by the system.
//!
//! Linux reports in `/proc/self/status` the total resident memory, with its peak (`VmHWM`), and the anonymous part,
//! without mapped files. The latter is sampled every few milliseconds. Other systems are not supported.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The time between two samples.
const EVERY: Duration = Duration::from_millis(2);

/// The peak memory in bytes; `None` where the system does not report it.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// Resident memory, including mapped files.
    pub resident: Option<u64>,
    /// Memory that is not backed by a file.
    pub anonymous: Option<u64>,
}

/// A sampler of this process's memory that runs until it is stopped.
#[derive(Debug)]
pub struct Meter {
    seen: Arc<MemorySample>,
    watcher: Option<JoinHandle<()>>,
    /// `true` if the system's own peak was reset when this meter started.
    reset: bool,
}

#[derive(Debug, Default)]
struct MemorySample {
    resident: AtomicU64,
    anonymous: AtomicU64,
    stop: AtomicBool,
}

impl MemorySample {
    fn look(&self) {
        if let Some([resident, anonymous]) = status(["VmRSS:", "RssAnon:"]) {
            self.resident.fetch_max(resident, Ordering::Relaxed);
            self.anonymous.fetch_max(anonymous, Ordering::Relaxed);
        }
    }
}

impl Meter {
    /// Starts a meter, and resets the system's peak if allowed.
    #[must_use]
    pub fn start() -> Self {
        let reset = fs::write("/proc/self/clear_refs", "5").is_ok();
        let seen = Arc::new(MemorySample::default());
        seen.look();
        let own = Arc::clone(&seen);
        let watch = move || {
            while !own.stop.load(Ordering::Relaxed) {
                own.look();
                thread::sleep(EVERY);
            }
        };
        // Without the thread, there are still samples at the start and at the end.
        let watcher = thread::Builder::new()
            .name("voxpatch-memory".to_owned())
            .spawn(watch)
            .ok();
        Self {
            seen,
            watcher,
            reset,
        }
    }

    /// Stops the meter and returns the peak since its start.
    #[must_use]
    pub fn stop(mut self) -> Peak {
        self.seen.look();
        self.end();
        let known = |bytes: &AtomicU64| Some(bytes.load(Ordering::Relaxed)).filter(|&n| n > 0);
        let sampled = known(&self.seen.resident);
        let kept = status(["VmHWM:"]).filter(|_| self.reset).map(|[peak]| peak);
        Peak {
            resident: kept.max(sampled),
            anonymous: known(&self.seen.anonymous),
        }
    }

    fn end(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            // The thread only reads numbers. If it panicked, the peak would be slightly low.
            let _ = watcher.join();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns the anonymous memory of this process in bytes; `None` where the system does not report it.
#[must_use]
pub fn anonymous_bytes() -> Option<u64> {
    status(["RssAnon:"]).map(|[bytes]| bytes)
}

/// Reads lines of `/proc/self/status`, in bytes.
fn status<const N: usize>(names: [&str; N]) -> Option<[u64; N]> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let mut found = [0; N];
    for (value, name) in found.iter_mut().zip(names) {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        *value = kib.checked_mul(1024)?;
    }
    Some(found)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_taken_and_given_back_is_seen() {
        let before = anonymous_bytes().expect("Linux reports it");
        let meter = Meter::start();
        let taken = vec![1_u8; 64 << 20];
        thread::sleep(4 * EVERY);
        assert_eq!(taken.iter().map(|&n| u64::from(n)).sum::<u64>(), 64 << 20);
        drop(taken);
        let peak = meter.stop();
        let anonymous = peak.anonymous.expect("Linux reports it");
        assert!(anonymous >= before.saturating_sub(8 << 20) + (56 << 20));
        assert!(peak.resident.expect("Linux reports it") >= anonymous);
    }
}
