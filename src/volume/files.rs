//! The state of a volume's files without reading their content: names, sizes and times.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::{Layout, Volume};
use crate::error::{Error, Result};

/// Maximum depth of nested folders that are searched.
const DEEPEST: usize = 16;

/// Calls `found` with every file at or below `root`: its path relative to `root`, and its metadata. Links are followed.
/// Returns `false` if nothing exists at `root`.
///
/// # Errors
///
/// [`Error::Io`] if a folder cannot be listed or the metadata of a file cannot be read.
pub(crate) fn walk(root: &Path, mut found: impl FnMut(&Path, &Metadata)) -> Result<bool> {
    let mut folders: Vec<(PathBuf, usize)> = Vec::new();
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => folders.push((root.to_path_buf(), 0)),
        Ok(metadata) => found(Path::new(""), &metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(Error::io("look at", root)(source)),
    }
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let path = entry.map_err(Error::io("list", &folder))?.path();
            let metadata = match fs::metadata(&path) {
                // Removed since the folder was listed, or a dangling link: not a chunk either way.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(Error::io("look at", &path))?,
            };
            if metadata.is_dir() && depth < DEEPEST {
                folders.push((path, depth + 1));
            } else {
                found(path.strip_prefix(root).unwrap_or(&path), &metadata);
            }
        }
    }
    Ok(true)
}

/// Files from which on headers are read on several threads.
#[cfg(any(feature = "dicom", feature = "tiff"))]
const MANY: usize = 64;

/// Headers that are read together, so that those of a folder need not be in memory at once.
#[cfg(any(feature = "dicom", feature = "tiff"))]
const TOGETHER: usize = 1024;

/// Reads the headers of files in a folder, on all threads if there are many, and passes them to `take` in the order of the
/// files.
///
/// # Errors
///
/// The error of the first file that cannot be read, and that of `take`.
#[cfg(any(feature = "dicom", feature = "tiff"))]
pub(super) fn read_headers<T: Send>(
    folder: &Path,
    files: &[PathBuf],
    read: impl Fn(&Path) -> Result<T> + Sync,
    mut take: impl FnMut(&Path, T) -> Result<()>,
) -> Result<()> {
    use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
    if files.len() < MANY {
        return files.iter().try_for_each(|file| take(file, read(file)?));
    }
    let pool = crate::threads::pool(crate::threads::threads(), "headers", folder)?;
    for part in files.chunks(TOGETHER) {
        let headers: Vec<Result<T>> =
            pool.install(|| part.par_iter().map(|file| read(file)).collect());
        for (file, header) in part.iter().zip(headers) {
            take(file, header?)?;
        }
    }
    Ok(())
}

/// An FNV-1a hash (Fowler, Noll, Vo) of 128 bits over parts, each with its length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hash(pub(crate) u128);

impl Default for Hash {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Hash {
    /// Adds a part.
    pub(crate) fn add(&mut self, part: &[u8]) {
        let length = (part.len() as u64).to_le_bytes();
        for &byte in length.iter().chain(part) {
            self.0 =
                (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}

/// Returns everything about an input that the result of a run depends on: the location of the volume, the voxels of its
/// files that it presents, and the names, sizes and times of the files. Two runs may share an output only if their
/// fingerprints are equal.
///
/// # Errors
///
/// [`Error::NoIdentity`] if the volume cannot identify its voxels, and [`Error::Io`] if the metadata of its files
/// cannot be read.
pub(crate) fn input_fingerprint(volume: &dyn Volume) -> Result<Json> {
    let voxels = volume.identity()?;
    let (mut files, mut bytes) = (Vec::new(), 0_u64);
    // Files are listed in arbitrary order, so their hashes are added up.
    let mut state = 0_u128;
    for root in volume.source_files() {
        walk(&root, |name, found| {
            let mut hash = Hash::default();
            hash.add(name.as_os_str().as_encoded_bytes());
            for number in [
                found.size().cast_signed(),
                found.mtime(),
                found.mtime_nsec(),
            ] {
                hash.add(&number.to_le_bytes());
            }
            state = state.wrapping_add(hash.0);
            bytes += found.size();
        })?;
        let absolute = root.canonicalize().unwrap_or(root);
        files.push(absolute.display().to_string());
    }
    files.sort_unstable();
    Ok(json!({
        "files": files,
        "bytes": bytes,
        "state of the files": format!("{state:032x}"),
        "voxels": voxels,
    }))
}

/// Returns a text that identifies a volume's voxels: it changes with the files, their sizes and times, and with the part
/// that is chosen. It differs between machines that see the files under different paths.
///
/// # Errors
///
/// [`Error::NoIdentity`] if the volume cannot identify its voxels, and [`Error::Io`] if the metadata of its files
/// cannot be read.
pub fn fingerprint(volume: &dyn Volume) -> Result<String> {
    Ok(input_fingerprint(volume)?.to_string())
}

/// Returns the part of an identity that all volumes share; `kind` holds everything else that determines the voxels.
pub(super) fn identity(layout: &Layout, kind: &Json) -> Json {
    json!({
        "shape": layout.shape,
        "channels": layout.channels,
        "dtype": layout.dtype.to_string(),
        "rescale": layout.rescale.map(|rescale| [rescale.slope, rescale.intercept]),
        "stored as": kind,
    })
}
