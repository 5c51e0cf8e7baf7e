//! `voxpatch info`: prints what a volume is.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use voxpatch::volume::{ChunkShape, Layout, OpenOptions, Orientation, Volume};

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
    if let Some(cost) = PatchCost::of(layout) {
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

/// What a patch costs in a volume whose chunks are far larger than a patch along some axis.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PatchCost {
    /// The patch, z, y, x: 96 voxels, or fewer where the volume is shorter.
    patch: [u64; 3],
    /// The chunks that it touches on average, rounded up.
    chunks: u64,
    chunk: [u64; 3],
    /// Voxels decoded on average.
    decoded: f64,
    /// The same in chunks of 64^3, as `convert` writes them.
    converted: f64,
}

/// Decoded voxels for each voxel of a patch from which on a conversion is proposed.
const COSTLY: f64 = 8.0;

/// The side of a patch, and of the chunks of a converted volume.
const PATCH: u64 = 96;
const CONVERTED: u64 = 64;

impl PatchCost {
    /// Returns the cost if it is high.
    fn of(layout: &Layout) -> Option<Self> {
        let [_, chunk @ ..] = layout.read_chunk?;
        let patch = layout.shape.map(|length| length.min(PATCH));
        // A random start meets (p - 1) / c + 1 chunks on average, but never more than there are.
        let met = |chunk: [u64; 3]| -> [f64; 3] {
            std::array::from_fn(|axis| {
                let (p, c) = (report::float(patch[axis]), report::float(chunk[axis]));
                let all = report::float(layout.shape[axis].div_ceil(chunk[axis]));
                ((p - 1.0) / c + 1.0).min(all)
            })
        };
        let decoded = |chunk: [u64; 3]| -> f64 {
            let met = met(chunk);
            let voxels = (0..3).map(|axis| {
                let length = report::float(layout.shape[axis]);
                (met[axis] * report::float(chunk[axis])).min(length)
            });
            voxels.product()
        };
        let small = layout.shape.map(|length| length.min(CONVERTED));
        let cost = Self {
            patch,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a small positive number"
            )]
            chunks: met(chunk).iter().product::<f64>().ceil() as u64,
            chunk,
            decoded: decoded(chunk),
            converted: decoded(small),
        };
        (cost.ratio() >= COSTLY && cost.decoded >= 2.0 * cost.converted).then_some(cost)
    }

    /// Returns the voxels decoded for each voxel of a patch.
    fn ratio(&self) -> f64 {
        let voxels: f64 = self.patch.iter().map(|&n| report::float(n)).product();
        (10.0 * self.decoded / voxels).round() / 10.0
    }
}

impl fmt::Display for PatchCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1}: a {} patch touches {} chunks of {}; convert it first for {:.1} times fewer",
            self.ratio(),
            by(&self.patch),
            self.chunks,
            by(&self.chunk),
            self.decoded / self.converted
        )
    }
}

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
    fn a_costly_patch_is_reported_with_its_chunks() {
        let layout = |shape, chunk: ChunkShape| {
            let mut layout = Layout::new(shape, 1, voxpatch::DType::I16);
            layout.read_chunk = Some(chunk);
            layout
        };
        let frames = PatchCost::of(&layout([300, 512, 512], [1, 1, 512, 512])).expect("costly");
        assert_eq!(
            frames.to_string(),
            "28.4: a 96 x 96 x 96 patch touches 96 chunks of 1 x 512 x 512; convert it first for 6.3 times fewer"
        );
        for (shape, chunk) in [
            ([300, 512, 512], [1, 64, 64, 64]),
            ([300, 96, 96], [1, 1, 96, 96]),
            ([1, 512, 512], [1, 1, 16, 16]),
        ] {
            assert_eq!(PatchCost::of(&layout(shape, chunk)), None, "{shape:?}");
        }
        assert_eq!(
            PatchCost::of(&Layout::new([9; 3], 1, voxpatch::DType::U8)),
            None
        );
    }

    #[test]
    fn numbers_are_short_but_not_lost() {
        assert_eq!(short(0.66), "0.66");
        assert_eq!(short(-5.0), "-5");
        assert_eq!(short(0.1 + 0.2), "0.3");
        assert_eq!(short(8e-9), "8e-9");
        assert_eq!(short(0.0), "0");
    }
}
