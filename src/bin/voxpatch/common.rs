//! Options that most commands have.

use std::time::Duration;

use clap::Args;

use crate::parse::{bytes, seconds};
use crate::progress::{Task, Unit};
use crate::report::Printing;

/// Threads, and how the command reports.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// Number of threads [default: all cores].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    threads: Option<u16>,
    /// Seconds between lines of progress where standard error is not a terminal; 0 for none.
    #[arg(
        long,
        env = "VOXPATCH_PROGRESS_INTERVAL",
        hide_env_values = true,
        value_parser = seconds,
        default_value = "30",
        value_name = "SECONDS"
    )]
    progress_interval: Duration,
    #[command(flatten)]
    pub(crate) printing: Printing,
}

impl Common {
    /// Returns the fewest threads to work with: exactly as many as were given, or 1.
    pub(crate) fn min_threads(&self) -> usize {
        self.threads.map_or(1, usize::from)
    }

    /// Returns these options, with the number of threads of others if there is none.
    pub(crate) fn or_threads_of(&self, other: &Self) -> Self {
        Self {
            threads: self.threads.or(other.threads),
            ..self.clone()
        }
    }

    /// Returns the threads to work with: as many as were given, or all cores.
    pub(crate) fn threads(&self) -> usize {
        self.threads.map_or_else(voxpatch::threads, usize::from)
    }

    /// Names work whose progress is shown.
    pub(crate) fn task(&self, name: &'static str, unit: Unit) -> Task {
        let interval = match self.progress_interval {
            Duration::ZERO => Duration::MAX,
            interval => interval,
        };
        Task {
            name,
            unit,
            interval,
        }
    }
}

/// The memory budget.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Memory {
    /// Bytes that patches in progress and decoded chunks may take together.
    #[arg(long, value_parser = bytes, default_value = "256MiB", value_name = "BYTES")]
    pub(crate) memory: u64,
}
