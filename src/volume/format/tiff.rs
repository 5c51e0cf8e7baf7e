//! The row of TIFF in the table of formats. Files are read and written elsewhere, by strips and tiles.

use std::path::Path;

use super::FlatHeader;
use super::row::{CreatedExtension, FileFormat, VoxelStorage};
use crate::error::{Error, Result};
use crate::volume::{Format, Layout, tiff};

const NAME: &str = "TIFF";

/// TIFF files.
pub(super) const FORMAT: FileFormat = FileFormat {
    extensions: &[".tif", ".tiff"],
    outputs: &[
        CreatedExtension::new(".tif", VoxelStorage::Attached),
        CreatedExtension::new(".tiff", VoxelStorage::Attached),
    ],
    check: tiff::check,
    ..FileFormat::new(
        NAME,
        "a TIFF file",
        &[Format::Tiff],
        tiff::recognize,
        parse,
        encode,
    )
};

/// Refuses to read: files are recognized and read elsewhere.
fn parse(path: &Path, bytes: &[u8]) -> Result<FlatHeader> {
    if tiff::recognize(bytes) {
        let what = "TIFF is read from the file system only: copy the file to this machine";
        return Err(Error::unsupported(path, what));
    }
    Err(Error::header(
        path,
        NAME,
        "it does not begin like a TIFF file",
    ))
}

/// Refuses to write: a file of tiles is not a header with voxels behind it.
fn encode(layout: &mut Layout, _: Option<&str>) -> Result<Vec<u8>> {
    Err(Error::unsupported(&layout.path, "TIFF is written by tiles"))
}
