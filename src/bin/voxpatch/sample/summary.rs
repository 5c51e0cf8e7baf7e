//! What sampling tells when it is done.

use serde_json::json;
use voxpatch::training::LoaderStats;

use super::settings::SampleArgs;
use crate::memory::text;
use crate::report::{self, Report};

/// What was done.
#[derive(Default)]
pub(super) struct SampleSummary {
    pub(super) patches: u64,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    pub(super) first_patch_seconds: f64,
    pub(super) index_seconds: f64,
    pub(super) left_out: u64,
    pub(super) absent: Vec<(String, Vec<String>)>,
    pub(super) nowhere: Vec<String>,
    pub(super) loaded: LoaderStats,
    pub(super) peak_anonymous: Option<u64>,
}

impl SampleSummary {
    /// The results, in the order in which they are printed.
    pub(super) fn report(&self, settings: &SampleArgs) -> Report {
        let mut report = Report::default();
        let seconds = |report: &mut Report, key: &str, value: f64| {
            report.add(key, report::rounded(value, 6), format!("{value:.3}"));
        };
        report.plain("patches", self.patches);
        let patch_bytes = self.bytes.checked_div(self.patches).unwrap_or(0);
        add_rates(&mut report, self.patches, patch_bytes, self.seconds);
        report.plain("chunks_decoded", self.loaded.chunks);
        report.add(
            "bytes_read",
            self.loaded.bytes,
            report::bytes(self.loaded.bytes),
        );
        seconds(
            &mut report,
            "wait_seconds",
            self.loaded.waited.as_secs_f64(),
        );
        seconds(&mut report, "first_patch_seconds", self.first_patch_seconds);
        seconds(&mut report, "index_seconds", self.index_seconds);
        report.add(
            "peak_anonymous_bytes",
            self.peak_anonymous,
            text(self.peak_anonymous),
        );
        report.plain("left_out", self.left_out + self.loaded.left_out);
        let absent: Vec<_> = self
            .absent
            .iter()
            .map(|(input, labels)| json!({"input": input, "labels": labels}))
            .collect();
        if absent.is_empty() {
            report.only_json("absent_labels", absent);
        } else {
            let lines = self.absent.iter();
            let lines = lines.map(|(input, labels)| format!("{} in {input}", labels.join(", ")));
            report.add(
                "absent_labels",
                absent,
                lines.collect::<Vec<_>>().join("\n"),
            );
        }
        if !self.nowhere.is_empty() {
            let text = self.nowhere.join(", ");
            report.add("labels_in_no_input", self.nowhere.clone(), text);
        }
        for (name, path) in [
            ("out", &settings.out),
            ("locations", &settings.locations),
            ("plot", &settings.plot),
        ] {
            if let Some(path) = path {
                report.plain(name, path.display().to_string());
            }
        }
        report
    }
}

/// Adds seconds and rates.
pub(crate) fn add_rates(report: &mut Report, patches: u64, patch_bytes: u64, seconds: f64) {
    let rate = report::float(patches) / seconds.max(1e-9);
    let megabytes = rate * report::float(patch_bytes) / 1e6;
    report.add(
        "seconds",
        report::rounded(seconds, 3),
        format!("{seconds:.2}"),
    );
    report.add(
        "patches_per_second",
        report::rounded(rate, 1),
        format!("{rate:.1}"),
    );
    report.add(
        "megabytes_per_second",
        report::rounded(megabytes, 1),
        format!("{megabytes:.1}"),
    );
}
