//! `voxpatch preview`: three slices through a volume as one picture.
//!
//! Only the slices are read, band by band, and brought to the picture's size as they come: a slice of any size takes a
//! few megabytes. An overlay is read once, block by block, to find its middle.

mod drawn;
mod legend;
mod middle;
mod paint;
mod project;
mod scene;
mod slice;
mod view;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use voxpatch::volume::check_output;
use voxpatch::{Layout, Shape, Volume};

pub(crate) use self::project::Projection;
pub(crate) use self::scene::Scene;
use crate::common::Common;
use crate::input::{OnGrid, Opening, Part, Together, level_of};
use crate::output::PICTURE;
use crate::parse::{size, window};
use crate::progress::Unit;
use crate::report::Report;

const EXAMPLES: &str = "\
Examples:
  voxpatch preview scan.nii.gz scan.png
  voxpatch preview scan.zarr scan.png --overlay tissue.zarr
  voxpatch preview scan.zarr scan.png --at 120,256,256 --window -160,240";

const PICTURE_OPTIONS: &str = "Picture";

/// Draw three slices, side by side, as a PNG.
///
/// Axial, coronal and sagittal, in radiological convention: the patient's right is on the left of the picture, anterior
/// is up in axial slices and left in sagittal ones, superior is up. The letters R and A say so if the file states the
/// orientation and its voxels are those of a body. Aspect ratios follow the spacing. Of several channels, the first is
/// drawn.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(crate) struct Preview {
    /// The volume.
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The picture to write.
    #[arg(value_name = "OUT.png")]
    out: PathBuf,
    /// Label map of the same extent, drawn over the picture with a legend; 0 is transparent. Its voxels may be larger,
    /// its axes in any order and direction.
    #[arg(long, help_heading = PICTURE_OPTIONS, value_name = "LABELS")]
    overlay: Option<PathBuf>,
    /// Values that are black and white [default: -1000,400 for CT, and the middle 99 % of others].
    #[arg(long, help_heading = PICTURE_OPTIONS, value_parser = window, value_name = "LOW,HIGH", allow_hyphen_values = true)]
    window: Option<(f64, f64)>,
    /// Voxel that the slices go through [default: the middle of the labels, or of the volume].
    #[arg(long, help_heading = PICTURE_OPTIONS, value_parser = size, value_name = "Z,Y,X")]
    at: Option<Shape>,
    /// Replace an existing picture.
    #[arg(long, help_heading = PICTURE_OPTIONS)]
    overwrite: bool,
    #[command(flatten)]
    on_grid: OnGrid,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    together: Together,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    common: Common,
}

/// Reads the slices and writes the picture.
pub(crate) fn run(settings: &Preview) -> anyhow::Result<()> {
    let mut inputs = vec![settings.source.as_path()];
    inputs.extend(settings.overlay.as_deref());
    check_output(&settings.out, &inputs)?;
    PICTURE.overwrite(settings.overwrite).check(&settings.out)?;
    let level = settings.part.level;
    let whole = settings
        .on_grid
        .open(&settings.opening, &settings.source, level)?;
    let volume = settings.part.of(&whole)?;
    let overlay = overlay(settings, &whole, volume.layout())?;
    let at = match (&overlay, settings.at) {
        (Some(overlay), None) => middle(settings, &**overlay)?,
        (_, at) => at,
    };
    let channels = volume.layout().channels;
    let scene = Scene {
        volume,
        overlay,
        window: settings.window,
        at,
    };
    let drawn = scene.draw()?;
    drawn.save(&settings.out, settings.overwrite)?;

    let mut report = Report::default();
    let (width, height) = (drawn.canvas.width, drawn.canvas.height);
    report.plain("out", settings.out.display().to_string());
    let text = format!("{width} x {height} pixels");
    report.add("size", json!([width, height]), text);
    let at = drawn.at;
    report.add("at", json!(at), at.map(|n| n.to_string()).join(","));
    let (low, high) = drawn.window;
    report.add("window", json!([low, high]), format!("{low} to {high}"));
    if channels > 1 {
        let text = format!("the first of {channels} (--channels shows another one)");
        report.add("channels", channels, text);
    }
    if scene.overlay.is_some() {
        report.plain("labels_shown", drawn.labels.len());
        let colors = drawn.labels.iter().map(|(label, [r, g, b])| {
            let color = format!("#{r:02x}{g:02x}{b:02x}");
            (label.clone(), color)
        });
        let colors: Vec<_> = colors.collect();
        let text: Vec<String> = colors
            .iter()
            .map(|(n, color)| format!("{n} {color}"))
            .collect();
        let legend = colors
            .iter()
            .map(|(label, color)| json!({"label": label, "color": color}));
        report.add("legend", legend.collect::<Vec<_>>(), text.join("\n"));
    }
    report.print(settings.common.printing)
}

/// Opens the overlay on the grid of the chosen part.
fn overlay(
    settings: &Preview,
    whole: &Arc<dyn Volume>,
    own: &Layout,
) -> voxpatch::Result<Option<Arc<dyn Volume>>> {
    let Some(path) = &settings.overlay else {
        return Ok(None);
    };
    let level = level_of(path, settings.part.level);
    let labels = settings.opening.options(level).open(path)?;
    let labels = settings.on_grid.second(whole.layout(), labels)?;
    let matching = settings.together.matching();
    let bring = |to: &Layout, overlay| matching.on_grid_of(to, overlay);
    settings
        .part
        .with(whole.layout(), own, &labels, bring)
        .map(Some)
}

/// Returns the voxel in the middle of the labels, if there are any.
fn middle(settings: &Preview, labels: &dyn Volume) -> voxpatch::Result<Option<Shape>> {
    let task = settings.common.task("looking for labels", Unit::Chunks);
    task.run(|progress| middle::middle(labels, settings.common.threads(), progress))
}
