//! `voxpatch preview`: three slices through a volume as one picture.
//!
//! Only the slices are read, band by band, and brought to the picture's size as they come:
//! a slice of any size takes a few megabytes.

mod paint;
mod project;
mod slice;
mod view;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use serde_json::json;
use voxpatch::volume::check_output;
use voxpatch::{Error, Layout, Region, Shape, Volume};

use self::paint::{Canvas, Panel};
pub(crate) use self::project::Projection;
use self::slice::{Plane, Values};
use self::view::{View, panel_sizes, views};
use crate::args;
use crate::opening::level_of;
use crate::output::{Output, PICTURE};
use crate::report::Report;
use crate::stop;

/// Pixels between panels.
const GAP: usize = 8;

/// What the picture is to show.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) volume: Arc<dyn Volume>,
    /// On the volume's grid.
    pub(crate) overlay: Option<Arc<dyn Volume>>,
    /// Real values that are black and white.
    pub(crate) window: Option<(f64, f64)>,
    /// The voxel that the slices go through, z, y, x.
    pub(crate) at: Option<Shape>,
}

/// A picture, and what it shows.
#[derive(Debug)]
pub(crate) struct Drawn {
    canvas: Canvas,
    window: (f32, f32),
    at: Shape,
    labels: usize,
}

/// Reads the slices and writes the picture.
pub(crate) fn run(settings: &args::Preview) -> anyhow::Result<()> {
    let options = settings.opening.options(settings.level);
    let mut inputs = vec![settings.source.as_path()];
    inputs.extend(settings.overlay.as_deref());
    check_output(&settings.out, &inputs)?;
    PICTURE.overwrite(settings.overwrite).check(&settings.out)?;
    let whole = options.open(&settings.source)?;
    let volume = settings.chosen.of(&whole)?;
    let overlay = match &settings.overlay {
        Some(path) => {
            let options = settings.opening.options(level_of(path, settings.level));
            let matching = settings.together.matching();
            let bring = |to: &Layout, overlay| matching.on_grid_of(to, overlay);
            let (all, own) = (whole.layout(), volume.layout());
            Some(
                settings
                    .chosen
                    .with(all, own, &options.open(path)?, bring)?,
            )
        }
        None => None,
    };
    let scene = Scene {
        volume,
        overlay,
        window: settings.window,
        at: settings.at,
    };
    let drawn = scene.draw()?;
    drawn.save(&settings.out, settings.overwrite)?;

    let mut report = Report::default();
    let Drawn {
        canvas,
        window,
        at,
        labels,
    } = drawn;
    report.plain("out", settings.out.display().to_string());
    report.add(
        "size",
        json!([canvas.width, canvas.height]),
        format!("{} x {} pixels", canvas.width, canvas.height),
    );
    report.add("at", json!(at), at.map(|n| n.to_string()).join(","));
    report.add(
        "window",
        json!([window.0, window.1]),
        format!("{} to {}", window.0, window.1),
    );
    if scene.overlay.is_some() {
        report.plain("labels_shown", labels);
    }
    report.print(settings.json)
}

impl Scene {
    /// Reads the three slices and paints them side by side.
    pub(crate) fn draw(&self) -> anyhow::Result<Drawn> {
        let layout = self.volume.layout();
        let shape = layout.shape;
        let at = self.at.unwrap_or_else(|| shape.map(|n| n / 2));
        let middle = Region::new(at.map(|n| i64::try_from(n).unwrap_or(i64::MAX)), [1; 3]);
        if !middle.is_inside(shape) {
            return Err(Error::OutOfBounds {
                region: middle,
                shape,
            }
            .into());
        }
        let sizes = panel_sizes(shape, layout.geometry.spacing);
        let views = views(&layout.geometry.affine);
        let mut slices = Vec::new();
        for view in &views {
            let plane = Plane::new(shape, view.fixed, at[view.fixed], sizes);
            let image = plane.read_values(&*self.volume)?;
            let labels = match &self.overlay {
                Some(overlay) => Some(plane.read_labels(&**overlay)?),
                None => None,
            };
            slices.push((view, plane, image, labels));
        }
        let window = self.window.map_or_else(
            || paint::window(slices.iter().map(|(_, _, image, _)| image)),
            narrow,
        );
        let mut shown = std::collections::HashSet::new();
        let mut panels = Vec::new();
        for (view, plane, image, labels) in slices {
            shown.extend(labels.iter().flatten().copied().filter(|&label| label != 0));
            panels.push(panel(view, &plane, &image, labels.as_deref(), window));
        }
        Ok(Drawn {
            canvas: Canvas::side_by_side(&panels, GAP),
            window,
            at,
            labels: shown.len(),
        })
    }
}

impl Drawn {
    /// Writes the picture as a PNG.
    pub(crate) fn save(&self, path: &Path, overwrite: bool) -> anyhow::Result<()> {
        stop::stop_gracefully();
        let side = |n: usize| u32::try_from(n).expect("panels are limited to hundreds of pixels");
        let mut out = Output::create(path, PICTURE.overwrite(overwrite))?;
        let mut encoder =
            png::Encoder::new(&mut out, side(self.canvas.width), side(self.canvas.height));
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::High);
        let written = encoder.write_header().and_then(|mut writer| {
            writer.write_image_data(&self.canvas.pixels)?;
            writer.finish()
        });
        written.with_context(|| format!("cannot write {}", path.display()))?;
        stop::check()?;
        out.finish()
    }
}

/// Brings a slice into the picture's orientation and paints it.
fn panel(
    view: &View,
    plane: &Plane,
    image: &Values,
    labels: Option<&[u64]>,
    window: (f32, f32),
) -> Panel {
    let (height, width) = (plane.size(view.row), plane.size(view.column));
    let mut panel = Panel::new(width, height);
    let source = |row: usize, column: usize| {
        let (slow, fast) = view.source((height, width), row, column);
        slow * if view.row < view.column {
            width
        } else {
            height
        } + fast
    };
    panel.paint(|row, column| paint::grey(image.pixels[source(row, column)], window));
    if let Some(labels) = labels {
        panel.overlay(|row, column| labels[source(row, column)]);
    }
    panel.mark(view.left);
    panel
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "pixels are compared as f32"
)]
const fn narrow((low, high): (f64, f64)) -> (f32, f32) {
    (low as f32, high as f32)
}
