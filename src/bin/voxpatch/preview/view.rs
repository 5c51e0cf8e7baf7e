//! Which voxel axes a picture's rows and columns run along, and how large it is.

use voxpatch::volume::Format;
use voxpatch::{Affine, Layout, Shape};

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
    /// What lies on the left, if the volume shows a body whose orientation is known: R for the patient's right, A for
    /// anterior.
    pub(super) left: Option<char>,
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
pub(super) fn views(layout: &Layout) -> [View; 3] {
    let [right, anterior, superior] = world_axes(&layout.geometry.affine);
    let is_body = has_orientation(layout) && is_body(layout.geometry.spacing);
    let view = |fixed: (usize, bool), row: (usize, bool), column: (usize, bool), left: char| View {
        fixed: fixed.0,
        row: row.0,
        column: column.0,
        flip_row: row.1,
        flip_column: column.1,
        left: is_body.then_some(left),
    };
    [
        view(superior, anterior, right, 'R'),
        view(anterior, superior, right, 'R'),
        view(right, superior, anterior, 'A'),
    ]
}

/// Returns `true` if the file says how the volume lies in the patient. OME-Zarr alone only scales and shifts, which says
/// nothing; a Zarr with a rotation or a flip does.
fn has_orientation(layout: &Layout) -> bool {
    let is_upright = (0..3).all(|row| {
        (0..3).all(|column| {
            let value = layout.geometry.affine[row][column];
            if row == column {
                value > 0.0
            } else {
                value == 0.0
            }
        })
    });
    let only_spacing = matches!(
        layout.format,
        Format::Zarr2 | Format::Zarr3 | Format::Tiff | Format::Hdf5 | Format::N5
    );
    layout.geometry.is_known && !(only_spacing && is_upright)
}

/// Returns `true` if voxels are as large as those of a scanned body, in mm, and not of a microscope or a telescope.
fn is_body(spacing: [f64; 3]) -> bool {
    spacing.iter().all(|mm| (0.05..=20.0).contains(mm))
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
    use voxpatch::{DType, Geometry};

    fn layout(geometry: Geometry) -> Layout {
        Layout::new([4, 5, 6], 1, DType::I16).with_geometry(geometry)
    }

    #[test]
    fn letters_are_for_bodies_whose_orientation_is_known() {
        let lps = |mm: f64| {
            let columns = [[mm, 0.0, 0.0], [0.0, mm, 0.0], [0.0, 0.0, mm]];
            Geometry::from_lps(columns, [0.0; 3])
        };
        let ras = Geometry::from_spacing([1.0; 3]);
        let unknown = Geometry {
            is_known: false,
            ..ras
        };
        for (format, geometry, has_letters) in [
            (Format::Nifti1, lps(0.7), true),
            (Format::Nifti1, ras, true),
            (Format::Nrrd, lps(20.0), true),
            (Format::Zarr3, lps(1.0), true),
            (Format::Zarr3, ras, false),
            (Format::Zarr2, ras, false),
            (Format::Npy, unknown, false),
            (Format::Nifti1, unknown, false),
            (Format::Nifti1, lps(0.001), false),
            (Format::Zarr3, lps(4e-6), false),
            (Format::Nrrd, lps(1000.0), false),
        ] {
            let layout = Layout {
                format,
                ..layout(geometry)
            };
            let letters = views(&layout).map(|view| view.left);
            let expected = if has_letters {
                [Some('R'), Some('R'), Some('A')]
            } else {
                [None; 3]
            };
            assert_eq!(letters, expected, "{format} {geometry:?}");
        }
    }

    #[test]
    fn a_plain_ct_is_shown_as_it_is_stored() {
        // LPS: x to the left, y to the back, z up.
        let columns = [[0.6, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 5.0]];
        let [axial, coronal, sagittal] = views(&layout(Geometry::from_lps(columns, [0.0; 3])));
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
        let [axial, ..] = views(&layout(Geometry::from_spacing([1.0; 3])));
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
