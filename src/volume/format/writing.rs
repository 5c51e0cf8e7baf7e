//! Geometry and axes of a layout in the form that several headers store.

use crate::error::{Error, Result};
use crate::volume::{Layout, LeadingAxis};

/// Returns the columns for x, y, z and the origin, in LPS millimeters.
pub(super) fn lps(layout: &Layout, format: &str) -> Result<([[f64; 3]; 3], [f64; 3])> {
    if !layout.geometry.is_sound() {
        let what = format!("{format} needs a spacing above 0 and a finite affine");
        return Err(Error::unsupported(&layout.path, what));
    }
    let column = |column: usize| -> [f64; 3] {
        std::array::from_fn(|row| {
            let value = layout.geometry.affine[row][column];
            // Avoids -0, which would be read as 0.
            if row < 2 { 0.0 - value } else { value + 0.0 }
        })
    };
    Ok(([column(0), column(1), column(2)], column(3)))
}

/// Returns the axis in front of z, y and x, for a format with at most one.
///
/// # Errors
///
/// [`Error::Unsupported`] if there are several.
pub(super) fn fourth(layout: &Layout, format: &str) -> Result<Option<LeadingAxis>> {
    let mut leading = layout.axes.long_of(layout.channels);
    if leading.len() > 1 {
        let names: Vec<&str> = leading.iter().map(|axis| axis.name.as_str()).collect();
        let what = format!(
            "{format} stores one axis besides z, y, x, but these voxels have {names:?}: write .zarr or .nii, or only one of these axes"
        );
        return Err(Error::unsupported(&layout.path, what));
    }
    Ok(leading.pop())
}

pub(super) const fn native_is_big() -> bool {
    cfg!(target_endian = "big")
}
