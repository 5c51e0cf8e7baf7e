//! `voxpatch verify`: whether every stored chunk can still be decoded.

use anyhow::bail;
use serde_json::{Value as Json, json};

use crate::report::{self, Report};
use crate::{args, stop};

/// Decodes every chunk of every level and tells what is damaged.
pub(crate) fn run(settings: &args::Verify) -> anyhow::Result<()> {
    stop::stop_gracefully();
    let threads = args::threads(settings.threads);
    let found = report::with_progress("verifying", |progress| {
        let options = settings.opening.options(0);
        options.verify(&settings.path, threads, progress)
    })?;
    let mut report = Report::default();
    report.plain("levels", found.levels);
    report.plain("chunks", found.chunks);
    report.plain("empty", found.empty);
    let one = |damaged: &voxpatch::volume::DamagedChunk| {
        format!(
            "level {}, {}: {}",
            damaged.level, damaged.chunk, damaged.problem
        )
    };
    let lines: Vec<String> = found.damaged.iter().map(one).collect();
    let objects: Vec<Json> = found
        .damaged
        .iter()
        .map(|one| json!({"level": one.level, "chunk": one.chunk, "problem": one.problem}))
        .collect();
    let text = if lines.is_empty() {
        "none".to_owned()
    } else {
        lines.join("\n")
    };
    report.add("damaged", objects, text);
    report.print(settings.json)?;
    if lines.is_empty() {
        return Ok(());
    }
    bail!(
        "{}: {} of {} stored chunks are damaged",
        settings.path.display(),
        lines.len(),
        found.chunks
    );
}
