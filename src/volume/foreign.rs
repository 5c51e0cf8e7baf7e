//! Files that are recognized but not read, each with a hint on how to convert it to a volume.

use std::path::Path;

/// The first bytes of pointers to files stored elsewhere, each with the command that fetches the file.
const POINTERS: [(&[u8], &str); 2] = [
    (
        b"version https://git-lfs",
        "it is a git-LFS pointer, not the file itself: fetch it with `git lfs pull`",
    ),
    (
        b"/annex/objects/",
        "it is a git-annex pointer, not the file itself: fetch it with `git annex get` or `datalad get`",
    ),
];

#[cfg(not(feature = "dicom"))]
const DICOM: &str = "it is DICOM, which this build does not read: make .nii.gz of the series with dcm2niix, or .nrrd with 3D Slicer";
#[cfg(feature = "dicom")]
const DICOM: &str = "it has the name of a DICOM file, but not its content";
#[cfg(not(feature = "tiff"))]
const TIFF: &str = "it is TIFF, which this build does not read: make OME-Zarr of it with bioformats2raw, or .npy with tifffile";
#[cfg(feature = "tiff")]
const TIFF: &str = "it has the name of a TIFF file, but not its content";
#[cfg(not(feature = "hdf5"))]
const HDF5: &str =
    "it is HDF5, which this build does not read: copy the data set into .zarr or .npy with h5py";
#[cfg(feature = "hdf5")]
const HDF5: &str = "it has the name of an HDF5 file, but not its content";
const ARCHIVE: &str = "it has the name of a zip archive, but not its content";
const BLOSC2: &str = "it has the name of a Blosc2 array, but not its content";
const PICTURE: &str =
    "it is a picture of one slice, which is not read: stack the slices into .npy or .zarr";
const PACKED: &str =
    "it is compressed as a whole in a way that is not read: unpack it first (.nii.gz is read)";

/// The first bytes of known file types.
const MAGIC: [(&[u8], &str); 11] = [
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),
    (b"MM\0+", TIFF),
    (b"\x89HDF\r\n\x1a\n", HDF5),
    (b"\x89PNG\r\n", PICTURE),
    (b"\xff\xd8\xff", PICTURE),
    (b"BZh", PACKED),
    (b"\xfd7zXZ\0", PACKED),
    (b"\x28\xb5\x2f\xfd", PACKED),
    (b"\x04\"M\x18", PACKED),
];

/// File name extensions of known file types.
const NAMES: [(&[&str], &str); 6] = [
    (&["dcm", "dicom", "ima"], DICOM),
    (&["tif", "tiff", "btf", "lsm"], TIFF),
    (&["h5", "hdf5", "hdf", "ims"], HDF5),
    (&["npz", "zip", "ozx"], ARCHIVE),
    (&["b2nd"], BLOSC2),
    (&["bz2", "xz", "zst", "lz4", "7z"], PACKED),
];

/// Returns how to fetch the file, if these are the first bytes of a pointer to it.
pub(super) fn pointer(head: &[u8]) -> Option<&'static str> {
    let found = POINTERS.iter().find(|(magic, _)| head.starts_with(magic));
    found.map(|&(_, hint)| hint)
}

/// Returns a description of a known file type, by the first bytes or the name.
pub(super) fn hint(path: &Path, head: &[u8]) -> Option<&'static str> {
    if head.get(128..132) == Some(b"DICM") {
        return Some(DICOM);
    }
    let by_bytes = MAGIC.iter().find(|(magic, _)| head.starts_with(magic));
    pointer(head)
        .or_else(|| by_bytes.map(|&(_, hint)| hint))
        .or_else(|| by_name(path))
}

/// Returns a description of a known file type by the name alone.
pub(super) fn by_name(path: &Path) -> Option<&'static str> {
    let end = path.extension()?.to_string_lossy().to_lowercase();
    let found = NAMES.iter().find(|(ends, _)| ends.contains(&end.as_str()));
    found.map(|&(_, hint)| hint)
}

/// Returns a description of the files in a folder that is not a volume, based on up to 64 names.
pub(super) fn in_folder(path: &Path) -> Option<&'static str> {
    let entries = std::fs::read_dir(path).ok()?;
    let names = entries
        .take(64)
        .filter_map(|entry| Some(entry.ok()?.path()));
    names
        .filter(|path| path.is_file())
        .find_map(|path| by_name(&path))
}

/// Returns the scheme and host of a path that is a network address.
pub(super) fn remote(path: &Path) -> Option<String> {
    const SCHEMES: [&str; 9] = [
        "s3", "gs", "gcs", "az", "abfs", "http", "https", "ftp", "sftp",
    ];
    let text = path.to_str()?;
    let (scheme, rest) = text.split_once(':')?;
    // A path that went through `Path` may have lost one of its slashes.
    let rest = rest.strip_prefix('/')?;
    let known = SCHEMES.contains(&scheme.to_lowercase().as_str());
    // User names, passwords and signatures must not appear in messages.
    let host = rest.trim_start_matches('/').split(['/', '?', '#']).next()?;
    let host = host.rsplit('@').next()?;
    known.then(|| format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_addresses_are_recognized_and_their_secrets_omitted() {
        let of = |text: &str| remote(Path::new(text));
        assert_eq!(of("s3://bucket/a.zarr?sig=1").unwrap(), "s3://bucket");
        assert_eq!(
            of("https://me:secret@example.org/a.zarr").unwrap(),
            "https://example.org"
        );
        assert_eq!(of("https:/example.org/a").unwrap(), "https://example.org");
        assert_eq!(of("C:/scan.nii"), None);
        assert_eq!(of("a/b.nii"), None);
    }

    #[test]
    fn foreign_files_are_recognized_by_their_bytes_and_names() {
        let mut dicom = [0; 132];
        dicom[128..].copy_from_slice(b"DICM");
        for (name, head, word) in [
            ("IM0001", &dicom[..], "DICOM"),
            ("a.bin", b"\x89HDF\r\n\x1a\n", "HDF5"),
            ("a.dcm", b"", "DICOM"),
            ("a.TIF", b"", "TIFF"),
            ("a", b"MM\0*", "TIFF"),
            ("a.npz", b"", "zip"),
            (
                "a.nii",
                b"version https://git-lfs.github.com/spec/v1\noid",
                "git lfs pull",
            ),
            ("a.nii", b"/annex/objects/MD5E-s1--x", "git annex get"),
            ("a.nii.bz2", b"BZh9", "unpack"),
        ] {
            let found = hint(Path::new(name), head).unwrap();
            assert!(found.contains(word), "{name}: {found}");
        }
        assert_eq!(hint(Path::new("a.nii"), b"\0\0"), None);
    }
}
