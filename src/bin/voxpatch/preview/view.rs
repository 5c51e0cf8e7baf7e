//! Which voxel axes a picture's rows and columns run along, and how large it is.

use voxpatch::{Affine, Shape};

/// How a slice is held before the eye. Axes are 0 for z, 1 for y, 2 for x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// The axis that the slice is perpendicular to.
    pub(super) fixed: usize,
    /// The axis that the picture's rows follow each other along.
    pub(super) row: usize,
    /// The axis that its columns follow each other along.
    pub(super) column: usize,
    /// Whether the last voxel is on top.
    pub(super) flip_row: bool,
    /// Whether the last voxel is on the left.
    pub(super) flip_column: bool,
    /// What lies on the left: R for the patient's right, A for anterior.
    pub(super) left: char,
}

impl View {
    /// The pixels along the slice's slower and faster axis that are shown in a row and column of a
    /// panel of this height and width.
    pub(super) fn source(
        &self,
        (height, width): (usize, usize),
        row: usize,
        column: usize,
    ) -> (usize, usize) {
        let row = if self.flip_row { height - 1 - row } else { row };
        let column = if self.flip_column {
            width - 1 - column
        } else {
            column
        };
        if self.row < self.column {
            (row, column)
        } else {
            (column, row)
        }
    }
}

/// Axial, coronal and sagittal in radiological convention.
///
/// Each voxel axis is taken for the world axis that it is nearest to.
pub(super) fn views(affine: &Affine) -> [View; 3] {
    let [right, anterior, superior] = world_axes(affine);
    let view = |fixed: (usize, bool), row: (usize, bool), column: (usize, bool), left| View {
        fixed: fixed.0,
        row: row.0,
        column: column.0,
        flip_row: row.1,
        flip_column: column.1,
        left,
    };
    [
        view(superior, anterior, right, 'R'),
        view(anterior, superior, right, 'R'),
        view(right, superior, anterior, 'A'),
    ]
}

/// For right, anterior, superior: the voxel axis along it, and whether indices grow towards it.
fn world_axes(affine: &Affine) -> [(usize, bool); 3] {
    const ORDERS: [[usize; 3]; 6] = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    let length = |column: usize| {
        let squares = affine[..3].iter().map(|row| row[column] * row[column]);
        squares.sum::<f64>().sqrt().max(f64::MIN_POSITIVE)
    };
    let share = |world: usize, column: usize| affine[world][column] / length(column);
    let fit = |order: &[usize; 3]| {
        (0..3)
            .map(|world| share(world, order[world]).abs())
            .sum::<f64>()
    };
    // Of orders that fit alike (an axis at 45 degrees), the first wins.
    let mut best = ORDERS[0];
    for order in ORDERS {
        if fit(&order) > fit(&best) + 1e-9 {
            best = order;
        }
    }
    std::array::from_fn(|world| (2 - best[world], share(world, best[world]) > 0.0))
}

/// Pixels along z, y, x, so that all panels have one scale.
///
/// The volume's longest side gets 512 to 768 pixels: one for each of its finest voxels if
/// that lies between.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "lengths become pixels, of which there are 1 to 768"
)]
pub(super) fn panel_sizes(shape: Shape, spacing: [f64; 3]) -> [usize; 3] {
    let finest = spacing.iter().copied().fold(f64::INFINITY, f64::min);
    let extent: [f64; 3] = std::array::from_fn(|a| shape[a] as f64 * spacing[a]);
    let longest = extent.iter().copied().fold(0.0, f64::max);
    let pixels = (longest / finest).clamp(512.0, 768.0);
    extent.map(|length| ((length / longest * pixels).round() as usize).clamp(1, 768))
}

#[cfg(test)]
mod tests {
    use super::*;
    use voxpatch::Geometry;

    #[test]
    fn a_plain_ct_is_shown_as_it_is_stored() {
        // LPS: x to the left, y to the back, z up.
        let columns = [[0.6, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 5.0]];
        let [axial, coronal, sagittal] = views(&Geometry::from_lps(columns, [0.0; 3]).affine);
        assert_eq!((axial.fixed, axial.row, axial.column), (0, 1, 2));
        assert!(!axial.flip_row && !axial.flip_column);
        assert_eq!((coronal.fixed, coronal.row, coronal.column), (1, 0, 2));
        assert!(coronal.flip_row && !coronal.flip_column, "the head is up");
        assert_eq!((sagittal.fixed, sagittal.row, sagittal.column), (2, 0, 1));
        assert!(
            sagittal.flip_row && !sagittal.flip_column,
            "the nose is left"
        );
    }

    #[test]
    fn ras_is_flipped_and_permuted_axes_are_found() {
        let [axial, ..] = views(&Geometry::from_spacing([1.0; 3]).affine);
        assert!(axial.flip_row && axial.flip_column);
        // x runs up, y to the right, z forward; a little oblique.
        let affine = [
            [0.1, 2.0, 0.0, 0.0],
            [0.0, 0.1, 3.0, 0.0],
            [1.0, 0.0, 0.1, 0.0],
            [0.0, 0.0, 0.0, 1.0],
        ];
        assert_eq!(world_axes(&affine), [(1, true), (0, true), (2, true)]);
    }

    #[test]
    fn panels_keep_the_aspect_ratio_and_their_limits() {
        assert_eq!(
            panel_sizes([1069, 512, 512], [0.3, 0.66, 0.66]),
            [729, 768, 768]
        );
        assert_eq!(panel_sizes([4, 5, 7], [2.0, 3.0, 1.0]), [273, 512, 239]);
        assert_eq!(panel_sizes([600, 600, 300], [1.0; 3]), [600, 600, 300]);
        assert_eq!(panel_sizes([1_000_000, 1, 1], [1.0; 3]), [768, 1, 1]);
    }
}
