//! The summary of sampling.

use serde_json::json;
use voxpatch::Layout;
use voxpatch::training::LoaderStats;

use super::settings::SampleArgs;
use crate::report::{Report, add_rates, known_bytes};

/// What was done.
#[derive(Default)]
pub(super) struct SampleSummary {
    pub(super) patches: u64,
    /// The layout of a patch.
    pub(super) patch: Option<Layout>,
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
        report.plain("patches", self.patches);
        if let Some(patch) = &self.patch {
            report.layout(patch);
        }
        report.plain("left_out", self.left_out + self.loaded.left_out);
        report.seconds("seconds", self.seconds, 2);
        report.details(|report| {
            let patch_bytes = self.bytes.checked_div(self.patches).unwrap_or(0);
            add_rates(report, self.patches, patch_bytes, self.seconds);
            report.plain("chunks_decoded", self.loaded.chunks);
            report.bytes("bytes_read", self.loaded.bytes);
            report.seconds("wait_seconds", self.loaded.waited.as_secs_f64(), 3);
            report.seconds("first_patch_seconds", self.first_patch_seconds, 3);
            report.seconds("index_seconds", self.index_seconds, 3);
            let peak = self.peak_anonymous;
            report.add("peak_anonymous_bytes", peak, known_bytes(peak));
        });
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
        if !self.loaded.slow.is_empty() {
            let text = self.loaded.slow.join("\n");
            report.add("slow", self.loaded.slow.clone(), text);
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
