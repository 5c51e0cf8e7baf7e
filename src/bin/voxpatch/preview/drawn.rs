//! A finished picture.

use std::path::Path;

use anyhow::Context;
use voxpatch::Shape;

use super::paint::Canvas;
use crate::output::{Output, PICTURE};
use crate::stop;

/// Pixels between panels.
pub(super) const GAP: usize = 8;

/// A picture, and what it shows.
#[derive(Debug)]
pub(crate) struct Drawn {
    pub(super) canvas: Canvas,
    /// The values that are black and white.
    pub(super) window: (f32, f32),
    /// The voxel that the slices go through.
    pub(super) at: Shape,
    /// The labels that are visible, by increasing value, and their colors.
    pub(super) labels: Vec<(String, [u8; 3])>,
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
