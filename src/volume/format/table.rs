//! The table of flat file formats. Everything that opens, creates or replaces flat files uses its rows.

use std::path::Path;

use super::row::{FileFormat, VoxelStorage};
#[cfg(feature = "tiff")]
use super::tiff;
use super::{metaimage, mgh, nifti, npy, nrrd};
use crate::error::{Error, Result};
use crate::volume::Layout;

/// Every flat file format; the first that recognizes a file opens it.
pub(in super::super) const FORMATS: &[FileFormat] = &[
    npy::FORMAT,
    nrrd::FORMAT,
    nifti::FORMAT,
    metaimage::FORMAT,
    mgh::FORMAT,
    #[cfg(feature = "tiff")]
    tiff::FORMAT,
];

/// The extensions of archives and of files of blocks, which have modules of their own. DICOM files are recognized by content, whatever
/// their names.
const BLOCKS: &[&str] = &[
    ".ozx",
    ".zarr.zip",
    ".npz",
    ".b2nd",
    #[cfg(feature = "dicom")]
    ".dcm",
    #[cfg(feature = "hdf5")]
    ".h5",
    #[cfg(feature = "hdf5")]
    ".hdf5",
    #[cfg(feature = "hdf5")]
    ".ims",
];

/// Returns the format that recognizes these first bytes of a file.
pub(in super::super) fn by_content(head: &[u8]) -> Option<&'static FileFormat> {
    FORMATS.iter().find(|format| (format.recognizes)(head))
}

/// Returns the format of files with this name, in lower case, that are opened.
pub(in super::super) fn by_name(name: &str) -> Option<&'static FileFormat> {
    let ends = |format: &&FileFormat| format.extensions.iter().any(|end| name.ends_with(end));
    FORMATS.iter().find(ends)
}

/// Returns the format of pairs whose voxels are in a file with this name, and the extension of the
/// header.
pub(in super::super) fn by_voxel_name(name: &str) -> Option<(&'static FileFormat, &'static str)> {
    FORMATS.iter().find_map(|format| {
        let [voxels, header] = format.pair?;
        name.ends_with(voxels).then_some((format, header))
    })
}

/// Returns the format of a created file with this name, in lower case, and how its voxels are stored.
pub(in super::super) fn by_output_name(name: &str) -> Option<(&'static FileFormat, VoxelStorage)> {
    FORMATS.iter().find_map(|format| {
        let output = format
            .outputs
            .iter()
            .find(|output| name.ends_with(output.extension));
        Some((format, output?.storage))
    })
}

/// Returns the row of the format of a flat output.
pub(in super::super) fn of(layout: &Layout) -> Result<&'static FileFormat> {
    let found = FORMATS
        .iter()
        .find(|format| format.formats.contains(&layout.format));
    found.ok_or_else(|| {
        Error::unsupported(
            &layout.path,
            format!("{} files cannot be created", layout.format),
        )
    })
}

/// Returns the extensions of volumes that can be opened, with their dots.
#[must_use]
pub fn readable_extensions() -> Vec<&'static str> {
    let flat = FORMATS.iter().flat_map(|format| format.extensions).copied();
    let pairs = FORMATS.iter().filter_map(|format| Some(format.pair?[0]));
    [".zarr"]
        .into_iter()
        .chain(flat)
        .chain(pairs)
        .chain([".raw"])
        .chain(BLOCKS.iter().copied())
        .collect()
}

/// Returns the extensions of volumes that can be created, with their dots.
#[must_use]
pub fn writable_extensions() -> Vec<&'static str> {
    let flat = FORMATS.iter().flat_map(|format| format.outputs);
    let flat = flat.map(|output| output.extension);
    [".zarr"].into_iter().chain(flat).collect()
}

/// Returns the extensions that can be opened, for a message.
fn supported() -> String {
    let extensions = readable_extensions().join(", ");
    extensions.replace(".raw", ".raw with a JSON sidecar")
}

/// Creates an [`Error::UnknownFormat`].
pub(in super::super) fn unknown(path: &Path, problem: &str) -> Error {
    Error::UnknownFormat {
        path: path.to_path_buf(),
        problem: problem.to_owned(),
        supported: supported(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_extension_belongs_to_one_format() {
        for (extensions, known) in [
            (
                readable_extensions()
                    .into_iter()
                    .filter(|end| !BLOCKS.contains(end))
                    .collect(),
                ".zarr .npy .nrrd .nhdr .nii .nii.gz .hdr .mhd .mha .mgh .mgz TIFF.img .raw",
            ),
            (
                writable_extensions(),
                ".zarr .npy .nrrd .nii.gz .nii .mhd .mha TIFF",
            ),
        ] {
            let tiff = if cfg!(feature = "tiff") {
                ".tif .tiff "
            } else {
                ""
            };
            let known = known.replace("TIFF", tiff);
            assert_eq!(extensions.join(" "), known.trim_end());
        }
        for format in FORMATS {
            for end in format.extensions {
                let found = by_name(&format!("scan{end}")).unwrap();
                assert_eq!(found.file, format.file, "{end}");
            }
            for output in format.outputs {
                let (found, storage) =
                    by_output_name(&format!("scan{}", output.extension)).unwrap();
                assert_eq!((found.file, storage), (format.file, output.storage));
                assert!(
                    by_name(output.extension).is_some(),
                    "what is written can be read"
                );
            }
        }
        assert!(by_output_name("scan.nhdr").is_none() && by_name("scan.raw").is_none());
    }
}
