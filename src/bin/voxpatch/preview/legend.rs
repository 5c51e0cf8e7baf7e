//! The colors of labels, and the legend that names them.

use super::paint::{Panel, Rgb};

/// Pixels of a dot of a character.
const SCALE: usize = 2;
/// Pixels of a swatch's side, and of the legend's rows.
const SWATCH: usize = 14;
const ROW: usize = 22;

/// Returns a label's color: neighboring numbers get different hues, the same number always the same.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "hues are fractions, colors are between 0 and 255"
)]
pub(super) fn color(label: u64) -> Rgb {
    // The golden ratio of the circle, in 64 bits: multiples spread evenly.
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let hue = label.wrapping_sub(1).wrapping_mul(GOLDEN) as f64 / u64::MAX as f64;
    let saturation = [0.85, 0.6, 0.95][(label % 3) as usize];
    let value = [1.0, 0.9][(label / 3 % 2) as usize];
    let channel = |offset: f64| {
        let ramp = ((hue + offset).fract() * 6.0 - 3.0).abs() - 1.0;
        let full = ramp.clamp(0.0, 1.0);
        (255.0 * value * (1.0 - saturation * (1.0 - full))).round() as u8
    };
    [channel(0.0), channel(2.0 / 3.0), channel(1.0 / 3.0)]
}

/// Returns the legend as a panel of this width: a swatch and a name for each label, in as many rows as they need. Of
/// more labels than fit into six rows, the last entry counts the rest.
pub(super) fn legend(entries: &[(Rgb, String)], width: usize) -> Option<Panel> {
    const MOST_ROWS: usize = 6;
    if entries.is_empty() {
        return None;
    }
    let cell = |name: &str| SWATCH + 6 + text_width(name) + 16;
    let widest = entries
        .iter()
        .map(|(_, name)| cell(name))
        .max()?
        .max(cell("+9999"));
    let columns = (width / widest).max(1);
    let room = columns * MOST_ROWS;
    let shown = if entries.len() > room {
        room - 1
    } else {
        entries.len()
    };
    let rest = entries.len() - shown;
    let rows = (shown + usize::from(rest > 0)).div_ceil(columns);
    let mut panel = Panel::new(width, rows * ROW);
    for (n, (color, name)) in entries[..shown].iter().enumerate() {
        let (top, left) = (n / columns * ROW, n % columns * widest);
        panel.fill((top + 4, left + 4), (SWATCH, SWATCH), *color);
        write(&mut panel, (top + 4, left + SWATCH + 10), name);
    }
    if rest > 0 {
        let at = (shown / columns * ROW + 4, shown % columns * widest + 4);
        write(&mut panel, at, &format!("+{rest}"));
    }
    Some(panel)
}

fn text_width(text: &str) -> usize {
    text.chars().count() * 6 * SCALE
}

/// Writes text in white with its upper left corner here. Characters without a glyph are blank.
pub(super) fn write(panel: &mut Panel, (top, left): (usize, usize), text: &str) {
    for (n, character) in text.chars().enumerate() {
        for (row, bits) in glyph(character).into_iter().enumerate() {
            for column in (0..5).filter(|column| bits >> (4 - column) & 1 == 1) {
                let at = (top + row * SCALE, left + (n * 6 + column) * SCALE);
                panel.fill((at.0 + 1, at.1 + 1), (SCALE, SCALE), [0; 3]);
            }
        }
        for (row, bits) in glyph(character).into_iter().enumerate() {
            for column in (0..5).filter(|column| bits >> (4 - column) & 1 == 1) {
                let at = (top + row * SCALE, left + (n * 6 + column) * SCALE);
                panel.fill(at, (SCALE, SCALE), [255; 3]);
            }
        }
    }
}

/// Returns the rows of a character of 5 x 7 dots.
const fn glyph(character: char) -> [u8; 7] {
    match character {
        'R' => [0x1E, 0x11, 0x11, 0x1E, 0x14, 0x12, 0x11],
        'A' => [0x0E, 0x11, 0x11, 0x1F, 0x11, 0x11, 0x11],
        '0' => [0x0E, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0E],
        '1' => [0x04, 0x0C, 0x04, 0x04, 0x04, 0x04, 0x0E],
        '2' => [0x0E, 0x11, 0x01, 0x02, 0x04, 0x08, 0x1F],
        '3' => [0x1F, 0x02, 0x04, 0x02, 0x01, 0x11, 0x0E],
        '4' => [0x02, 0x06, 0x0A, 0x12, 0x1F, 0x02, 0x02],
        '5' => [0x1F, 0x10, 0x1E, 0x01, 0x01, 0x11, 0x0E],
        '6' => [0x06, 0x08, 0x10, 0x1E, 0x11, 0x11, 0x0E],
        '7' => [0x1F, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08],
        '8' => [0x0E, 0x11, 0x11, 0x0E, 0x11, 0x11, 0x0E],
        '9' => [0x0E, 0x11, 0x11, 0x0F, 0x01, 0x02, 0x0C],
        '-' => [0, 0, 0, 0x1F, 0, 0, 0],
        '+' => [0, 0x04, 0x04, 0x1F, 0x04, 0x04, 0],
        '.' => [0, 0, 0, 0, 0, 0x0C, 0x0C],
        'e' => [0, 0, 0x0E, 0x11, 0x1F, 0x10, 0x0E],
        _ => [0; 7],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_labels_have_different_colors() {
        for a in 1..200_u64 {
            for b in a + 1..(a + 4) {
                let (a, b) = (color(a), color(b));
                let distance: u32 = (0..3).map(|c| u32::from(a[c].abs_diff(b[c]))).sum();
                assert!(distance > 60, "{a:?} and {b:?}");
            }
        }
    }

    #[test]
    fn a_legend_has_a_swatch_and_a_number_for_each_label_and_counts_the_rest() {
        let entries =
            |count: u64| -> Vec<_> { (1..=count).map(|n| (color(n), n.to_string())).collect() };
        assert!(legend(&[], 500).is_none());
        for (count, rows) in [(1, 1), (5, 1), (6, 2), (30, 6), (31, 6), (5000, 6)] {
            let panel = legend(&entries(count), 500).expect("there are labels");
            assert_eq!((panel.width, panel.height), (500, rows * ROW), "{count}");
            let shown = if count > 30 { 29 } else { count };
            for n in 1..=shown {
                let place = usize::try_from(n - 1).expect("small");
                let (top, left) = (place / 5 * ROW + 10, place % 5 * 96 + 10);
                assert_eq!(panel.pixels[top * 500 + left], color(n), "{n} of {count}");
            }
            assert!(panel.pixels.contains(&[255; 3]), "numbers are white");
        }
        assert!(legend(&entries(3), 10).is_some_and(|panel| panel.height == 3 * ROW));
    }
}
