//! `voxpatch verify`: whether every stored chunk can still be decoded.

use anyhow::bail;
use serde_json::{Value as Json, json};

use crate::report::{self, Report};
use crate::{args, stop};

/// Decodes every chunk of every level and tells what is damaged.
pub(crate) fn run(settings: &args::Verify) -> anyhow::Result<()> {
    stop::heed();
    let threads = args::threads(settings.threads);
    let found = report::with_progress("verifying", |progress| {
        let options = settings.opening.options(0);
        options.verify(&settings.path, threads, progress)
    })?;
    let mut told = Report::default();
    told.plain("levels", found.levels);
    told.plain("chunks", found.chunks);
    told.plain("empty", found.empty);
    let one = |damaged: &voxpatch::volume::Damaged| {
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
    told.add("damaged", objects, text);
    told.print(settings.json)?;
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
