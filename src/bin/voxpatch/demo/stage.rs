//! One stage of the demo: what it took, and its line of the table.

use std::time::Instant;

use serde_json::Value as Json;

use voxpatch::meter::{Meter, Peak};

use crate::report::{self, Report, known_bytes};

/// What a stage's work was.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    /// Bytes of voxels that went through.
    pub(super) bytes: u64,
    pub(super) patches: Option<u64>,
    pub(super) chunks_read: u64,
}

/// A stage that is done.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    name: &'static str,
    seconds: f64,
    work: Work,
    pub(super) peak: Peak,
}

impl Stage {
    /// Runs a stage's work and watches time and memory.
    pub(super) fn run<T>(
        name: &'static str,
        work: impl FnOnce() -> anyhow::Result<(Work, T)>,
    ) -> anyhow::Result<(Self, T)> {
        let meter = Meter::start();
        let began = Instant::now();
        let (work, result) = work()?;
        let stage = Self {
            name,
            seconds: began.elapsed().as_secs_f64(),
            work,
            peak: meter.stop(),
        };
        Ok((stage, result))
    }

    /// The heads of the table's columns.
    pub(super) fn head() -> String {
        format!(
            "{:<9} {:>8} {:>9} {:>10} {:>12} {:>12} {:>12}\n",
            "stage", "seconds", "MB/s", "patches/s", "chunks read", "resident", "anonymous"
        )
    }

    /// The stage's line.
    pub(super) fn line(&self) -> String {
        let patches = self.work.patches.map_or_else(String::new, |patches| {
            format!("{:.1}", self.per_second(patches))
        });
        format!(
            "{:<9} {:>8.2} {:>9.1} {patches:>10} {:>12} {:>12} {:>12}\n",
            self.name,
            self.seconds,
            self.per_second(self.work.bytes) / 1e6,
            self.work.chunks_read,
            known_bytes(self.peak.resident),
            known_bytes(self.peak.anonymous),
        )
    }

    /// The stage for programs.
    pub(super) fn json(&self) -> Json {
        let mut report = Report::default();
        report.plain("stage", self.name);
        report.plain("seconds", report::rounded(self.seconds, 3));
        let rate = self.per_second(self.work.bytes) / 1e6;
        report.plain("megabytes_per_second", report::rounded(rate, 1));
        if let Some(patches) = self.work.patches {
            report.plain("patches", patches);
            let rate = report::rounded(self.per_second(patches), 1);
            report.plain("patches_per_second", rate);
        }
        report.plain("chunks_read", self.work.chunks_read);
        report.only_json("peak_resident_bytes", self.peak.resident);
        report.only_json("peak_anonymous_bytes", self.peak.anonymous);
        report.into_json()
    }

    fn per_second(&self, count: u64) -> f64 {
        report::float(count) / self.seconds.max(1e-9)
    }
}
