//! The tolerance of volumes that cover the same space, and the error of those that do not.

use super::Layout;
use crate::error::Error;

/// The default tolerance, in voxels. It is much larger than rounding errors in headers, and much smaller than half a
/// voxel, the offset between programs that define positions by voxel corners and by voxel centers.
pub const TOLERANCE: f64 = 0.1;

/// Returns the error of two volumes that differ in `what`.
pub(super) fn differ(
    first: &Layout,
    second: &Layout,
    what: &'static str,
    one: String,
    other: String,
) -> Error {
    Error::GridMismatch {
        first: first.path.clone(),
        second: second.path.clone(),
        what,
        one,
        other,
    }
}
