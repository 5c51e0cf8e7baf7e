//! Progress of long work: a bar on a terminal, lines at intervals elsewhere.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use voxpatch::progress::Progress;

use crate::report::float;
use crate::stop;

/// What the steps of a task are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Patches,
    Chunks,
    /// Voxels of so many bytes.
    Voxels(usize),
}

impl Unit {
    /// Returns the rate of `steps` in `elapsed`, as `12.5 patches/s` or `80.1 MB/s`.
    fn rate(self, steps: u64, elapsed: Duration) -> String {
        let rate = float(steps) / elapsed.as_secs_f64().max(1e-9);
        match self {
            Self::Patches => format!("{rate:.1} patches/s"),
            Self::Chunks => format!("{rate:.1} chunks/s"),
            Self::Voxels(bytes) => format!("{:.1} MB/s", rate * float(bytes as u64) / 1e6),
        }
    }
}

/// Work whose progress is shown, and that a signal stops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    /// The time between lines where standard error is not a terminal. Shorter work prints none.
    pub(crate) interval: Duration,
}

impl Task {
    /// Runs `work`, which reports its steps to the callback.
    pub(crate) fn run<T>(self, work: impl FnOnce(Progress<'_>) -> T) -> T {
        if io::stderr().is_terminal() {
            self.with_bar(work)
        } else {
            self.with_lines(
                &|line| {
                    // If standard error is closed, there is nobody to read it.
                    let _ = writeln!(io::stderr(), "voxpatch: {line}");
                },
                work,
            )
        }
    }

    fn with_bar<T>(self, work: impl FnOnce(Progress<'_>) -> T) -> T {
        let template = "{msg} {wide_bar} {percent:>3} %  {rate}  {elapsed} elapsed, {eta} left";
        let bar = ProgressBar::new(0).with_message(self.name);
        let rate = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&self.unit.rate(state.pos(), state.elapsed()));
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.with_key("rate", rate));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        let result = work(&|done, total| {
            bar.set_length(total);
            bar.set_position(done);
            stop::flow()
        });
        bar.finish_and_clear();
        result
    }

    /// Runs `work` and hands a line to `print` at each interval, and one at the end if there was any.
    fn with_lines<T>(
        self,
        print: &(dyn Fn(&str) + Sync),
        work: impl FnOnce(Progress<'_>) -> T,
    ) -> T {
        let began = Instant::now();
        let interval = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX);
        let millis = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = AtomicU64::new(interval);
        let last = (AtomicU64::new(0), AtomicU64::new(0));
        let result = work(&|done, total| {
            last.0.fetch_max(done, Ordering::Relaxed);
            last.1.store(total, Ordering::Relaxed);
            let (now, then) = (millis(), due.load(Ordering::Relaxed));
            let is_ours = now >= then
                && due
                    .compare_exchange(
                        then,
                        now.saturating_add(interval),
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    )
                    .is_ok();
            if is_ours {
                print(&self.line(done, total, began.elapsed()));
            }
            stop::flow()
        });
        let (done, total) = (last.0.into_inner(), last.1.into_inner());
        if due.into_inner() > interval && done == total {
            print(&self.line(done, total, began.elapsed()));
        }
        result
    }

    /// Returns `predicting: 20 of 80 patches (25 %), 4.0 patches/s, 5 s elapsed, 15 s left`.
    fn line(self, done: u64, total: u64, elapsed: Duration) -> String {
        let (done, total) = (done.min(total), total);
        let percent = u128::from(done) * 100 / u128::from(total.max(1));
        let mut line = match self.unit {
            Unit::Patches => format!("{}: {done} of {total} patches ({percent} %)", self.name),
            Unit::Chunks => format!("{}: {done} of {total} chunks ({percent} %)", self.name),
            Unit::Voxels(_) => format!("{}: {percent} %", self.name),
        };
        let rate = self.unit.rate(done, elapsed);
        let _ = write!(line, ", {rate}, {} elapsed", duration(elapsed));
        if done > 0 && done < total {
            let left = elapsed.as_secs_f64() * float(total - done) / float(done);
            let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
            let _ = write!(line, ", {} left", duration(left));
        }
        line
    }
}

/// Returns `true` if the user lets the work continue.
pub(crate) const fn continues(flow: ControlFlow<()>) -> bool {
    matches!(flow, ControlFlow::Continue(()))
}

/// Returns a duration as `40 s`, `2:05 min` or `3:20 h`.
fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        seconds => format!("{}:{:02} h", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread::sleep;

    use super::*;

    const TASK: Task = Task {
        name: "predicting",
        unit: Unit::Patches,
        interval: Duration::from_millis(1),
    };

    /// The lines of work that reports `steps` of 10, with a pause before each.
    fn lines(interval: Duration, steps: u64) -> Vec<String> {
        let lines = Mutex::new(Vec::new());
        let print = |line: &str| {
            lines
                .lock()
                .expect("no test panics with it")
                .push(line.to_owned());
        };
        Task { interval, ..TASK }.with_lines(&print, |progress| {
            for done in 1..=steps {
                sleep(Duration::from_millis(3));
                assert!(continues(progress(done, 10)));
            }
        });
        lines.into_inner().expect("no test panics with it")
    }

    #[test]
    fn a_line_comes_at_each_interval_and_at_the_end() {
        let lines = lines(Duration::from_millis(1), 10);
        assert_eq!(lines.len(), 11, "{lines:?}");
        assert!(
            lines[0].starts_with("predicting: 1 of 10 patches (10 %), "),
            "{lines:?}"
        );
        assert!(lines[0].ends_with(" left") && lines[0].contains(" patches/s, 0 s elapsed, "));
        assert!(
            lines[10].starts_with("predicting: 10 of 10 patches (100 %), "),
            "{lines:?}"
        );
        assert!(lines[10].ends_with(" elapsed"), "{lines:?}");
    }

    #[test]
    fn short_work_prints_no_line_and_work_that_failed_no_last_one() {
        assert_eq!(lines(Duration::from_hours(1), 10), Vec::<String>::new());
        assert_eq!(lines(Duration::from_millis(1), 4).len(), 4);
    }

    #[test]
    fn a_line_has_rate_time_and_what_is_left() {
        let elapsed = Duration::from_secs(100);
        assert_eq!(
            TASK.line(20, 80, elapsed),
            "predicting: 20 of 80 patches (25 %), 0.2 patches/s, 1:40 min elapsed, 5:00 min left"
        );
        let task = Task {
            name: "converting",
            unit: Unit::Voxels(2),
            ..TASK
        };
        assert_eq!(
            task.line(500_000_000, 2_000_000_000, elapsed),
            "converting: 25 %, 10.0 MB/s, 1:40 min elapsed, 5:00 min left"
        );
        assert_eq!(duration(Duration::from_mins(125)), "2:05 h");
    }
}
