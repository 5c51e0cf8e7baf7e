//! NIfTI-Zarr (`.nii.zarr`): an OME-Zarr image whose group has the header of a NIfTI file in the array `nifti`.
//!
//! The header says where the finest level is in the world, the unit of length, and the slope and intercept of the voxels.
//! Everything else is that of OME-Zarr: axes, voxel types, and the position of coarser levels relative to the finest.

use std::path::Path;

use super::super::format::{NiftiPlace, nifti_place};
use super::super::options::OpenOptions;
use super::super::{Layout, Volume, units};
use super::find::{self, FoundArray};
use super::meta::ArrayInfo;
use super::tree::Tree;
use super::{ZarrVolume, store_of_array};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::region::Region;

/// The name of the array.
const HEADER: &str = "nifti";

/// Maximum bytes of the array, which may have extensions behind the header, and of its chunk.
const MOST_BYTES: u64 = 16 << 20;

/// Bytes of the longest header.
const LONGEST: u64 = 540;

/// Reads the header next to an array; `None` if there is none. In a store, where looking takes a request, only folders
/// named `.nii.zarr` have one.
///
/// # Errors
///
/// [`Error::Header`] if the header is invalid, or larger than any header, and otherwise as for any array.
pub(super) fn read(
    tree: &Tree,
    found: &FoundArray,
    options: &OpenOptions,
) -> Result<Option<NiftiPlace>> {
    let Some(group) = found.path.parent() else {
        return Ok(None);
    };
    if tree.is_remote() && !is_named(group) {
        return Ok(None);
    }
    let path = group.join(HEADER);
    let Some(header) = find::array_at(&path, tree)? else {
        return Ok(None);
    };
    let facts = ArrayInfo::of_list(&path, header.format, &header.document)?;
    let Some(facts) = facts.filter(|facts| matches!(facts.dtype, DType::U8 | DType::I8)) else {
        return Ok(None);
    };
    tree.check_links(group, &path)?;
    let bytes = facts.shape()[2];
    let chunk = facts.stored.write_chunk[0];
    if bytes.max(chunk) > MOST_BYTES {
        let problem = format!(
            "the header has {bytes} bytes in chunks of {chunk}, more than the maximum of {MOST_BYTES}"
        );
        return Err(Error::header(&path, "NIfTI", problem));
    }
    let store = store_of_array(tree, &path)?;
    let array = ZarrVolume::with_facts(facts, store, &header.document, options)?;
    let length = bytes.min(LONGEST);
    let mut start = vec![0; usize::try_from(length).unwrap_or(0)];
    array.read_channels(0..1, Region::new([0; 3], [1, 1, length]), &mut start)?;
    nifti_place(&path, &start).map(Some)
}

/// Returns `true` if a folder has the name of a NIfTI-Zarr image.
fn is_named(group: &Path) -> bool {
    let name = group.file_name().unwrap_or_default().to_string_lossy();
    name.to_lowercase().ends_with(".nii.zarr")
}

/// Enters what the header says into the layout of an array.
pub(super) fn place(
    layout: &mut Layout,
    header: NiftiPlace,
    found: &FoundArray,
    facts: &ArrayInfo,
) -> Result<()> {
    let unsupported = |problem: String| Error::unsupported(&found.path, problem);
    layout.geometry = match (&found.image, &found.finest) {
        (Some(own), Some(finest)) => {
            // Both are in the same unit, whichever it is.
            let place = |placed: &super::ome::Placed| {
                let placed = placed.without_units();
                placed.geometry(&facts.order).map_err(unsupported)
            };
            let (own, finest) = (place(own)?, place(finest)?);
            let indices = finest.indices_of(&own).ok_or_else(|| {
                unsupported("the transformation of its finest level is flat".to_owned())
            })?;
            coarse(&header.geometry, &indices)
        }
        _ => header.geometry,
    };
    if !layout.geometry.is_sound() {
        let problem = "its affine is flat or not finite";
        return Err(Error::header(&found.path, "NIfTI", problem));
    }
    layout.rescale = header.rescale;
    layout.axes.unit = units::name(header.factor).map(|name| (name.to_owned(), header.factor));
    Ok(())
}

/// Returns the geometry of voxels whose indices x, y, z, 1 the matrix converts to those of `finest`.
fn coarse(finest: &Geometry, indices: &[[f64; 4]; 4]) -> Geometry {
    let mut affine = [[0.0; 4]; 4];
    for (row, from) in affine.iter_mut().zip(&finest.affine) {
        for (column, value) in row.iter_mut().enumerate() {
            *value = (0..4).map(|n| from[n] * indices[n][column]).sum();
        }
    }
    Geometry::from_affine(affine)
}
