//! Gray values, label colors, and the canvas that panels are put on.

use super::slice::Values;

/// A color, red, green, blue.
pub(super) type Rgb = [u8; 3];

/// Real values that are black and white if nobody says.
///
/// Values below -500 are taken for the air of a CT, which is shown from -1000 to 400; of
/// anything else, the darkest and the brightest half percent are cut off.
pub(super) fn window<'a>(slices: impl Iterator<Item = &'a Values>) -> (f32, f32) {
    let mut lowest = f32::INFINITY;
    let mut samples: Vec<f32> = Vec::new();
    for slice in slices {
        lowest = lowest.min(slice.lowest);
        samples.extend(&slice.samples);
    }
    samples.sort_unstable_by(f32::total_cmp);
    let (Some(&low), Some(&high)) = (
        samples.get(samples.len() / 200),
        samples.get(samples.len().saturating_sub(1 + samples.len() / 200)),
    ) else {
        return (0.0, 1.0);
    };
    if lowest < -500.0 && high < 10_000.0 && low > -10_000.0 {
        return (-1000.0, 400.0);
    }
    if low < high {
        (low, high)
    } else {
        (low, low + 1.0)
    }
}

/// A value's gray; NaN is black.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and 255, and NaN becomes 0"
)]
pub(super) fn gray(value: f32, (low, high): (f32, f32)) -> u8 {
    let share = (value - low) / (high - low);
    (share.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// One slice of the picture.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<Rgb>,
}

impl Panel {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            pixels: vec![[0; 3]; width * height],
        }
    }

    /// Fills the panel with the grays of (row, column).
    pub(super) fn paint(&mut self, gray: impl Fn(usize, usize) -> u8) {
        for row in 0..self.height {
            for column in 0..self.width {
                self.pixels[row * self.width + column] = [gray(row, column); 3];
            }
        }
    }

    /// Lays the colors of labels over it: areas half transparent, their boundaries not.
    pub(super) fn overlay(
        &mut self,
        label: impl Fn(usize, usize) -> u64,
        color: impl Fn(u64) -> Rgb,
    ) {
        for row in 0..self.height {
            for column in 0..self.width {
                let own = label(row, column);
                if own == 0 {
                    continue;
                }
                let inside = (row == 0 || label(row - 1, column) == own)
                    && (column == 0 || label(row, column - 1) == own)
                    && (row + 1 == self.height || label(row + 1, column) == own)
                    && (column + 1 == self.width || label(row, column + 1) == own);
                let pixel = &mut self.pixels[row * self.width + column];
                *pixel = mixed(*pixel, color(own), if inside { 90 } else { 230 });
            }
        }
    }

    /// Paints a dot around a pixel, cut at the panel's edges.
    pub(super) fn dot(&mut self, row: usize, column: usize) {
        let near = |at: usize, length: usize| at.saturating_sub(2)..(at + 3).min(length);
        for y in near(row, self.height) {
            for x in near(column, self.width) {
                let distance = y.abs_diff(row).pow(2) + x.abs_diff(column).pow(2);
                if distance <= 5 {
                    self.pixels[y * self.width + x] = [255, 64, 32];
                }
            }
        }
    }

    /// Fills a box, cut at the edges of the panel, with a color.
    pub(super) fn fill(
        &mut self,
        (top, left): (usize, usize),
        (height, width): (usize, usize),
        color: Rgb,
    ) {
        for row in top..(top + height).min(self.height) {
            for column in left..(left + width).min(self.width) {
                self.pixels[row * self.width + column] = color;
            }
        }
    }
}

/// `weight` 255ths of `over`, the rest of `under`.
fn mixed(under: Rgb, over: Rgb, weight: u16) -> Rgb {
    std::array::from_fn(|c| {
        let sum = u16::from(under[c]) * (255 - weight) + u16::from(over[c]) * weight;
        u8::try_from(sum / 255).unwrap_or(u8::MAX)
    })
}

/// A picture, three bytes a pixel, row by row.
#[derive(Debug)]
pub(crate) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<u8>,
}

impl Canvas {
    /// Panels from left to right on black, `gap` pixels apart, each in the middle of the height.
    pub(super) fn side_by_side(panels: &[Panel], gap: usize) -> Self {
        let height = panels.iter().map(|panel| panel.height).max().unwrap_or(0);
        let widths: usize = panels.iter().map(|panel| panel.width).sum();
        let width = widths + gap * panels.len().saturating_sub(1);
        let mut pixels = vec![0; width * height * 3];
        let mut left = 0;
        for panel in panels {
            let top = (height - panel.height) / 2;
            for (row, line) in panel.pixels.chunks_exact(panel.width).enumerate() {
                let at = ((top + row) * width + left) * 3;
                pixels[at..at + panel.width * 3].copy_from_slice(line.as_flattened());
            }
            left += panel.width + gap;
        }
        Self {
            width,
            height,
            pixels,
        }
    }

    /// The canvas with a panel below it, which is not wider.
    pub(super) fn above(mut self, panel: &Panel) -> Self {
        for line in panel.pixels.chunks_exact(panel.width) {
            let from = self.pixels.len();
            self.pixels.extend_from_slice(line.as_flattened());
            self.pixels.resize(from + self.width * 3, 0);
        }
        self.height += panel.height;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(samples: Vec<f32>) -> Values {
        let lowest = samples.iter().copied().fold(f32::INFINITY, f32::min);
        Values {
            pixels: Vec::new(),
            lowest,
            samples,
        }
    }

    #[test]
    fn air_makes_a_ct_and_anything_else_is_stretched() {
        assert_eq!(
            window([&slice(vec![-1024.0, 0.0, 3071.0])].into_iter()),
            (-1000.0, 400.0)
        );
        let ramp = |i: u16| f32::from(i);
        assert_eq!(
            window([&slice((0..1000).map(ramp).collect())].into_iter()),
            (5.0, 994.0)
        );
        assert_eq!(window([&slice(vec![7.0; 9])].into_iter()), (7.0, 8.0));
        assert_eq!(window([&slice(Vec::new())].into_iter()), (0.0, 1.0));
    }

    #[test]
    fn grays_stay_in_range() {
        let grays = [-2000.0, -1000.0, 400.0, 9e9, f32::NAN].map(|v| gray(v, (-1000.0, 400.0)));
        assert_eq!(grays, [0, 0, 255, 255, 0]);
    }

    #[test]
    fn boundaries_are_stronger_than_areas_and_zero_is_clear() {
        let mut panel = Panel::new(7, 5);
        panel.paint(|_, _| 100);
        let color = |label: u64| [u8::try_from(label).expect("1"), 200, 100];
        panel.overlay(
            |row, column| u64::from((1..4).contains(&row) && (1..6).contains(&column)),
            color,
        );
        assert_eq!(panel.pixels[0], [100; 3]);
        let (edge, middle) = (panel.pixels[7 + 1], panel.pixels[2 * 7 + 3]);
        assert_eq!(edge, mixed([100; 3], color(1), 230));
        assert_eq!(middle, mixed([100; 3], color(1), 90));
    }

    #[test]
    fn panels_stand_side_by_side_in_the_middle() {
        let mut white = Panel::new(2, 1);
        white.paint(|_, _| 255);
        let canvas = Canvas::side_by_side(&[white, Panel::new(1, 3)], 1);
        assert_eq!((canvas.width, canvas.height), (4, 3));
        assert_eq!(canvas.pixels[12..18], [255; 6]);
        assert!(canvas.pixels[..12].iter().all(|&byte| byte == 0));
    }
}
