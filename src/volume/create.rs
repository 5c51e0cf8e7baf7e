//! Creating outputs: the format by the name's extension, Zarr where it says nothing else.

use std::path::Path;

use super::{Format, Layout, VolumeMut, flat, zarr};
use crate::error::{Error, Result};
use crate::region::Shape;

/// How an output is to be stored.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Voxels of a read chunk along z, y, x; only for Zarr.
    pub chunk: Shape,
    /// Voxels of a shard along z, y, x, a multiple of the chunk; `None` for one file a chunk.
    pub shard: Option<Shape>,
    /// How chunks are compressed; only for Zarr.
    pub codec: Codec,
    /// The codec's effort; `None` for its usual one.
    pub level: Option<u8>,
    /// Whether an output of this name may be replaced.
    pub replace: bool,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            chunk: [32; 3],
            shard: Some([128; 3]),
            codec: Codec::Zstd,
            level: None,
            replace: false,
        }
    }
}

/// How chunks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// zstd with a checksum that catches damage: the default.
    Zstd,
    /// blosc with shuffled bytes and zstd.
    BloscZstd,
    /// blosc with shuffled bytes and lz4: the fastest to decode.
    BloscLz4,
    /// gzip.
    Gzip,
    /// Not at all.
    None,
}

/// Starts an output at `path`: `.npy` and `.nii` make flat files, anything else a Zarr v3
/// array, sharded, with OME-Zarr 0.5 metadata.
///
/// Of `layout`, the shape, channels, voxel type, geometry and rescale are taken.
///
/// # Errors
///
/// [`Error::Exists`] if something has that name, [`Error::Setting`] if chunks and shards do
/// not fit each other, [`Error::Unsupported`] if the format cannot hold the volume, and
/// [`Error::Io`] if the folder cannot be written.
pub fn create(path: &Path, layout: &Layout, options: &CreateOptions) -> Result<Box<dyn VolumeMut>> {
    let mut layout = layout.clone();
    layout.path = path.to_path_buf();
    layout.read_chunk = None;
    layout.write_chunk = None;
    layout.codecs.clear();
    layout.decoded_bytes()?;
    let lower = path.to_string_lossy().to_lowercase();
    for gone in [
        ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr", ".raw", ".hdr", ".img",
    ] {
        if lower.ends_with(gone) {
            return Err(Error::unsupported(
                path,
                format!("{gone} files are not written: use .zarr, .npy or .nii"),
            ));
        }
    }
    if lower.ends_with(".npy") {
        layout.format = Format::Npy;
        Ok(Box::new(flat::FlatWriter::create(layout, options)?))
    } else if lower.ends_with(".nii") {
        layout.format = Format::Nifti1;
        Ok(Box::new(flat::FlatWriter::create(layout, options)?))
    } else {
        layout.format = Format::Zarr3;
        Ok(Box::new(zarr::ZarrWriter::create(layout, options)?))
    }
}
