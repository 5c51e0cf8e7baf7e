//! Three slices through a volume and its labels, side by side.

use std::collections::BTreeMap;
use std::sync::Arc;

use voxpatch::{DType, Error, Region, Shape, Volume};

use super::drawn::{Drawn, GAP};
use super::legend;
use super::paint::{self, Canvas, Panel};
use super::slice::{Plane, Values};
use super::view::{View, panel_sizes, views};

/// What the picture shows.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) volume: Arc<dyn Volume>,
    /// Labels on the volume's grid.
    pub(crate) overlay: Option<Arc<dyn Volume>>,
    /// Real values that are black and white.
    pub(crate) window: Option<(f64, f64)>,
    /// The voxel that the slices go through, z, y, x.
    pub(crate) at: Option<Shape>,
}

impl Scene {
    /// Reads the three slices and paints them side by side, with a legend of the labels below.
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
        let views = views(layout);
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
        let mut shown = Vec::new();
        let mut panels = Vec::new();
        for (view, plane, image, labels) in slices {
            shown.extend(labels.iter().flatten().copied().filter(|&label| label != 0));
            shown.sort_unstable();
            shown.dedup();
            panels.push(panel(view, &plane, &image, labels.as_deref(), window));
        }
        let dtype = self.overlay.as_ref().map(|overlay| overlay.layout().dtype);
        let labels = named(&shown, dtype.unwrap_or(DType::U8));
        let canvas = Canvas::side_by_side(&panels, GAP);
        let entries: Vec<_> = labels
            .iter()
            .map(|(name, color)| (*color, name.clone()))
            .collect();
        let legend = legend::legend(&entries, canvas.width);
        Ok(Drawn {
            canvas: match legend {
                Some(legend) => canvas.above(&legend),
                None => canvas,
            },
            window,
            at,
            labels,
        })
    }
}

/// Names labels and gives them their colors, by increasing value.
fn named(labels: &[u64], dtype: DType) -> Vec<(String, [u8; 3])> {
    let named = labels.iter().map(|&label| {
        let signed = label.cast_signed();
        // Fractions are stored as the bits of a double, which are larger than any whole number.
        let (order, name) = if dtype == DType::U64 {
            (i128::from(label), label.to_string())
        } else if dtype.is_float() && signed.unsigned_abs() > 1 << 52 {
            (i128::from(signed), f64::from_bits(label).to_string())
        } else {
            (i128::from(signed), signed.to_string())
        };
        (order, (name, legend::color(label)))
    });
    named.collect::<BTreeMap<_, _>>().into_values().collect()
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
    panel.paint(|row, column| paint::gray(image.pixels[source(row, column)], window));
    if let Some(labels) = labels {
        panel.overlay(|row, column| labels[source(row, column)], legend::color);
    }
    if let Some(letter) = view.left {
        panel_letter(&mut panel, letter);
    }
    panel
}

/// Writes a letter on the left side, halfway up, if the panel is large enough.
pub(super) fn panel_letter(panel: &mut Panel, letter: char) {
    if panel.width >= 64 && panel.height >= 32 {
        let top = panel.height / 2 - 7;
        legend::write(panel, (top, 6), letter.encode_utf8(&mut [0; 4]));
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "pixels are compared as f32"
)]
const fn narrow((low, high): (f64, f64)) -> (f32, f32) {
    (low as f32, high as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_named_by_their_values() {
        let names = |labels: &[u64], dtype| -> Vec<String> {
            let named = named(labels, dtype).into_iter();
            named.map(|(name, _)| name).collect()
        };
        assert_eq!(names(&[7, 3, 200], DType::U8), ["3", "7", "200"]);
        assert_eq!(names(&[u64::MAX, 5], DType::I16), ["-1", "5"]);
        assert_eq!(
            names(&[u64::MAX, 5], DType::U64),
            ["5", "18446744073709551615"]
        );
        assert_eq!(names(&[2, 0.5_f64.to_bits()], DType::F32), ["2", "0.5"]);
    }
}
