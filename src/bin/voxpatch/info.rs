//! `voxpatch info`: prints what a volume is.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use voxpatch::volume::{ChunkShape, OpenOptions, Orientation, PatchCost, Volume};

use crate::input::{OnGrid, Opening, Part};
use crate::report::{self, Printing, Report};

const EXAMPLES: &str = "\
Examples:
  voxpatch info scan.nii.gz
  voxpatch info scan.nii.gz --spacing 1.5 --orientation RAS
  voxpatch info scan.zarr --level 2 --json";

/// Print what a volume is: shape, voxel type, chunks, spacing, size.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(crate) struct Info {
    /// The volume.
    path: PathBuf,
    #[command(flatten)]
    on_grid: OnGrid,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    printing: Printing,
}

/// Opens the volume and prints its layout.
pub(crate) fn run(settings: &Info) -> anyhow::Result<()> {
    let options = settings.opening.options(settings.part.level);
    let whole = settings
        .on_grid
        .open(&settings.opening, &settings.path, settings.part.level)?;
    let volume = settings.part.of(&whole)?;
    let layout = volume.layout();
    let decoded = layout.decoded_bytes()?;
    let stored = volume.stored_bytes()?;
    let geometry = layout.geometry;

    let mut report = Report::default();
    report.plain("format", layout.format.to_string());
    if layout.path != settings.path {
        report.plain("array", layout.path.display().to_string());
    }
    report.add("shape", json!(layout.shape), by(&layout.shape));
    report.plain("channels", layout.channels);
    add_axes(&mut report, &*volume);
    add_levels(&mut report, settings, &options)?;
    report.plain("dtype", layout.dtype.name());
    let stored_dtype = layout
        .applied
        .map_or(layout.dtype, |applied| applied.stored);
    report.plain("stored_dtype", stored_dtype.name());
    for (key, chunk) in [
        ("read_chunk", layout.read_chunk),
        ("write_chunk", layout.write_chunk),
    ] {
        report.add(key, json!(chunk.map(in_space)), chunk_text(chunk));
    }
    let codecs = if layout.codecs.is_empty() {
        "none".to_owned()
    } else {
        layout.codecs.join(", ")
    };
    report.add("codecs", json!(layout.codecs), codecs);
    report.add(
        "spacing",
        json!(geometry.spacing),
        format!("{} mm", by(&geometry.spacing.map(short))),
    );
    if geometry.is_known {
        report.plain("orientation", Orientation::of(&geometry).to_string());
    }
    report.add("affine", json!(geometry.affine), matrix(&geometry.affine));
    let applied = layout.applied.map(|applied| applied.rescale);
    if let Some(rescale) = applied.or(layout.rescale) {
        report.plain("slope", rescale.slope);
        report.plain("intercept", rescale.intercept);
    }
    report.add("stored_bytes", stored, report::bytes(stored));
    let ratio = report::float(decoded) / report::float(stored.max(1));
    let text = format!("{} ({ratio:.2} x stored)", report::bytes(decoded));
    report.add("decoded_bytes", decoded, text);
    if let Some(cost) = PatchCost::of(layout, [PATCH; 3]) {
        report.add("decoded_per_voxel", cost.ratio(), cost.to_string());
    }
    if volume.sequential_order().is_some() {
        let text = format!(
            "yes: the first patch unpacks all {} into a temporary file; convert it first",
            report::bytes(decoded)
        );
        report.add("packed_as_a_whole", true, text);
    }
    report.print(settings.printing)
}

/// The side of a patch whose cost is reported.
const PATCH: u64 = 96;

/// Adds the names of the axes, the time points and the names of the channels, where there are any.
fn add_axes(report: &mut Report, volume: &dyn Volume) {
    let layout = volume.layout();
    let leading = layout.axes.leading_of(layout.channels);
    if !leading.is_empty() {
        let names = leading.iter().map(|axis| axis.name.as_str());
        let names: Vec<&str> = names.chain(["z", "y", "x"]).collect();
        let lengths = leading.iter().map(|axis| axis.length).chain(layout.shape);
        let text: Vec<String> = names
            .iter()
            .zip(lengths)
            .map(|(name, length)| format!("{name} {length}"))
            .collect();
        report.add("axes", json!(names), text.join(", "));
    }
    if let Some(points) = volume.time_points() {
        report.plain("time_points", points);
    }
    let names = &layout.axes.channel_names;
    if names.iter().any(|name| !name.is_empty()) {
        report.add("channel_names", json!(names), names.join(", "));
    }
}

/// Adds the shapes of the levels of an image that has several.
fn add_levels(report: &mut Report, settings: &Info, options: &OpenOptions) -> anyhow::Result<()> {
    let count = options.levels(&settings.path)?;
    if count < 2 {
        return Ok(());
    }
    let mut shapes = Vec::with_capacity(count);
    for level in 0..count {
        let options = options.clone().with_level(level);
        shapes.push(options.open(&settings.path)?.layout().shape);
    }
    let text: Vec<String> = shapes.iter().map(|shape| by(shape)).collect();
    report.add("levels", json!(shapes), text.join(", "));
    Ok(())
}

/// Lengths with crosses between them.
fn by<T: ToString>(lengths: &[T]) -> String {
    let lengths: Vec<String> = lengths.iter().map(T::to_string).collect();
    lengths.join(" x ")
}

fn in_space([_, z, y, x]: ChunkShape) -> [u64; 3] {
    [z, y, x]
}

fn chunk_text(chunk: Option<ChunkShape>) -> String {
    match chunk {
        None => "any box".to_owned(),
        Some([1, z, y, x]) => by(&[z, y, x]),
        Some([c, z, y, x]) => format!("{} of {c} channels", by(&[z, y, x])),
    }
}

/// A number to six digits, without what f64 adds at the end.
fn short(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if value != 0.0 && (text == "0" || text == "-0") {
        return format!("{value:e}");
    }
    text.to_owned()
}

/// The rows of the affine that say something, in columns.
fn matrix(affine: &voxpatch::Affine) -> String {
    let cells: Vec<Vec<String>> = affine[..3]
        .iter()
        .map(|row| row.iter().map(|&value| short(value)).collect())
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(column, text)| format!("{text:>w$}", w = width(column)))
            .collect();
        cells.join("  ")
    };
    let lines: Vec<String> = cells.iter().map(line).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_but_not_lost() {
        assert_eq!(short(0.66), "0.66");
        assert_eq!(short(-5.0), "-5");
        assert_eq!(short(0.1 + 0.2), "0.3");
        assert_eq!(short(8e-9), "8e-9");
        assert_eq!(short(0.0), "0");
    }
}
