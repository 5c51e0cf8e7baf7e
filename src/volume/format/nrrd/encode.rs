//! The header of an NRRD file that is written: voxels attached, uncompressed, channels slowest.

use super::super::writing::{fourth, lps, native_is_big};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::volume::{AxisKind, Layout};

/// Encodes the bytes before the first voxel of an NRRD file.
///
/// # Errors
///
/// [`Error::Unsupported`] for voxel types, geometries and axes that NRRD cannot store.
pub(super) fn encode(layout: &mut Layout, _: Option<&str>) -> Result<Vec<u8>> {
    let name = match layout.dtype {
        DType::Bool | DType::U8 => "uint8",
        DType::F32 => "float",
        DType::F64 => "double",
        DType::F16 => return Err(Error::no_float16(&layout.path, "NRRD")),
        dtype => dtype.name(),
    };
    if layout.rescale.is_some() {
        let what =
            "NRRD has no slope and intercept, which these voxels need: write .nii, .mha or .zarr";
        return Err(Error::unsupported(&layout.path, what));
    }
    let (columns, origin) = lps(layout, "NRRD")?;
    let [z, y, x] = layout.shape;
    let vector = |[a, b, c]: [f64; 3]| format!("({a},{b},{c})");
    let mut directions: Vec<String> = columns.into_iter().map(vector).collect();
    let mut sizes = vec![x, y, z];
    let mut kinds = vec!["domain"; 3];
    let mut labels = "";
    if let Some(axis) = fourth(layout, "NRRD")? {
        directions.push("none".to_owned());
        sizes.push(layout.channels);
        // ITK treats an axis of kind `time` as spatial.
        kinds.push("list");
        if axis.kind == AxisKind::Time {
            labels = "labels: \"x\" \"y\" \"z\" \"t\"\n";
        }
    }
    let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
    let endian = match layout.dtype.size() {
        1 => "",
        _ if native_is_big() => "endian: big\n",
        _ => "endian: little\n",
    };
    let text = format!(
        "NRRD0005\ntype: {name}\ndimension: {}\nspace: left-posterior-superior\nsizes: {}\n\
         space directions: {}\nkinds: {}\n{labels}{endian}encoding: raw\nspace origin: {}\n\n",
        sizes.len(),
        sizes.join(" "),
        directions.join(" "),
        kinds.join(" "),
        vector(origin),
    );
    Ok(text.into_bytes())
}
