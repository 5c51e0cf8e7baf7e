//! `voxpatch verify`: checks that every stored chunk can still be decoded.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde_json::{Value as Json, json};

use crate::common::Common;
use crate::input::Opening;
use crate::progress::Unit;
use crate::report::Report;
use crate::stop;

const EXAMPLES: &str = "\
Examples:
  voxpatch verify scan.zarr
  voxpatch verify scan.zarr --missing-chunks error --json";

/// Decode every stored chunk of every level, and name the damaged ones.
///
/// The exit status is 1 if any chunk is damaged.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(crate) struct Verify {
    /// The volume.
    path: PathBuf,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    common: Common,
}

/// Decodes every chunk of every level and reports the damaged ones.
pub(crate) fn run(settings: &Verify) -> anyhow::Result<()> {
    stop::stop_gracefully();
    let threads = settings.common.threads();
    let found = settings
        .common
        .task("verifying", Unit::Chunks)
        .run(|progress| {
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
    report.print(settings.common.printing)?;
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
