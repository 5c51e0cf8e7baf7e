//! Opening volumes: the format is detected by content first and by name second.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

#[cfg(feature = "dicom")]
use super::dicom;
use super::flat;
use super::format::{self, DataStart, Encoding, FileFormat, FlatHeader, GZIP};
#[cfg(feature = "hdf5")]
use super::hdf5;
#[cfg(feature = "tiff")]
use super::tiff;
use super::{
    OpenOptions, RawSpec, RealValues, Values, Volume, archive, blosc2, foreign, npz, zarr,
};
use crate::error::{Error, Result};
use crate::files::read_up_to;
use crate::store::{Place, is_remote, local, shown};

impl OpenOptions {
    /// Opens the volume at `path`, as [`open`] does, with these options.
    ///
    /// # Errors
    ///
    /// As [`open`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Arc<dyn Volume>> {
        let stored = self.open_stored(path.as_ref())?;
        self.resample.of(match self.values {
            Values::Real => RealValues::of(stored),
            Values::Stored | Values::Unconverted => stored,
        })
    }

    fn open_stored(&self, path: &Path) -> Result<Arc<dyn Volume>> {
        let (place, path) = Place::of(path, &self.storage_options, self.cache()?)?;
        if place.remote().is_some() {
            return self.open_object(&place, &path);
        }
        let path = &*path;
        let found = match fs::metadata(path) {
            Err(error) => {
                #[cfg(feature = "hdf5")]
                if let Some((file, inside)) = hdf5::named(path) {
                    return hdf5::open(&file, &inside, self);
                }
                return match archive::containing(path) {
                    Some((file, inside)) => self.open_archive(&file, &inside),
                    None => Err(not_there(path, error)),
                };
            }
            Ok(found) => found,
        };
        if found.is_dir() {
            return self.open_folder(path);
        }
        let unknown = |problem: &str| format::unknown(path, problem);
        if !found.is_file() {
            return Err(unknown("it is neither a regular file nor a folder"));
        }
        if found.len() == 0 {
            return Err(unknown("the file is empty"));
        }
        if self.raw.is_none() {
            let head = read_up_to(path, 16)?;
            if archive::recognize(&head) {
                return self.open_archive(path, "");
            }
            if blosc2::recognize(&head) {
                check_level(path, self.level)?;
                return blosc2::open(path);
            }
            #[cfg(feature = "tiff")]
            if tiff::recognize(&head) {
                return tiff::open_file(path, self);
            }
            #[cfg(feature = "hdf5")]
            if hdf5::recognize(&head) {
                return hdf5::open(path, "", self);
            }
        }
        self.open_flat(&place, path)
    }

    /// Opens the volume at `inside` in a zip archive: a Zarr hierarchy, or arrays of numpy.
    fn open_archive(&self, file: &Path, inside: &str) -> Result<Arc<dyn Volume>> {
        let opened = archive::Archive::open(file)?;
        if npz::recognize(&opened) {
            check_level(file, self.level)?;
            return npz::open(&opened, inside, self);
        }
        Ok(Arc::new(zarr::ZarrVolume::open_archive(
            opened, inside, self,
        )?))
    }

    /// Opens an object as a flat file, or the hierarchy of objects below a path as a Zarr folder.
    fn open_object(&self, place: &Place, path: &Path) -> Result<Arc<dyn Volume>> {
        let is_zarr = |above: &Path| above.extension().is_some_and(|end| end == "zarr");
        let in_zarr = path.ancestors().any(is_zarr);
        if let (false, false, Some(what)) = (in_zarr, self.raw.is_some(), local_only(path)) {
            let what = format!("{what} is read from the file system only: copy it to this machine");
            return Err(Error::unsupported(path, what));
        }
        let is_flat = self.names_file(path) || (!in_zarr && place.has_file(path));
        if is_flat {
            return self.open_flat(place, path);
        }
        Ok(Arc::new(zarr::ZarrVolume::open_at(place, path, self)?))
    }

    /// Returns `true` if a path has the name of a flat file.
    fn names_file(&self, path: &Path) -> bool {
        let name = name(path).to_lowercase();
        self.raw.is_some()
            || format::by_name(&name).is_some()
            || format::by_voxel_name(&name).is_some()
            || name.rsplit_once('.').is_some_and(|(_, end)| end == "raw")
    }

    fn open_flat(&self, place: &Place, path: &Path) -> Result<Arc<dyn Volume>> {
        check_level(path, self.level)?;
        #[cfg(feature = "dicom")]
        if place.remote().is_none()
            && self.raw.is_none()
            && dicom::recognize(&read_up_to(path, 132)?)
        {
            return dicom::open_file(path, self);
        }
        let header = match &self.raw {
            Some(spec) => spec.header(path)?,
            None => find_header(place, path)?,
        };
        // For a pair that is opened by its voxel file, the header is in the other file.
        let pair = header.data.as_ref().and(format::by_voxel_name(&name(path)));
        let from = match pair {
            Some((_, extension)) => path.with_extension(extension.trim_start_matches('.')),
            None => path.to_path_buf(),
        };
        flat::open(place, path, &from, &header, self)
    }

    /// Opens a Zarr folder, or a folder of slices.
    fn open_folder(&self, path: &Path) -> Result<Arc<dyn Volume>> {
        #[cfg(feature = "dicom")]
        if !zarr::is_group(path)
            && let Some(volume) = dicom::open_folder(path, self)?
        {
            return Ok(volume);
        }
        #[cfg(feature = "tiff")]
        if !zarr::is_group(path)
            && let Some(volume) = tiff::open_folder(path, self)?
        {
            return Ok(volume);
        }
        Ok(Arc::new(zarr::ZarrVolume::open(path, self)?))
    }
}

impl OpenOptions {
    /// Returns the number of levels of the image at `path`; 1 for anything that is not a multiscale image.
    ///
    /// # Errors
    ///
    /// As [`open`].
    pub fn levels(&self, path: impl AsRef<Path>) -> Result<usize> {
        let path = path.as_ref();
        if is_remote(path) {
            let named = self.names_file(&shown(path));
            return if named {
                Ok(1)
            } else {
                zarr::level_count(path, self)
            };
        }
        let path = &*local(path);
        if path.is_dir() && zarr::is_group(path) {
            zarr::level_count(path, self)
        } else if let Some((file, inside)) = archive::containing(path) {
            let opened = archive::Archive::open(&file)?;
            if npz::recognize(&opened) {
                return Ok(1);
            }
            zarr::level_count_in_archive(opened, &inside)
        } else if path.is_file() {
            self.levels_of_file(path)
        } else {
            Ok(1)
        }
    }
}

impl OpenOptions {
    /// Returns the number of levels of the image in a file.
    #[cfg_attr(
        not(any(feature = "hdf5", feature = "tiff")),
        expect(clippy::unused_self, clippy::unnecessary_wraps)
    )]
    fn levels_of_file(&self, path: &Path) -> Result<usize> {
        #[cfg(feature = "tiff")]
        if self.raw.is_none() && tiff::recognize(&read_up_to(path, 4)?) {
            return tiff::level_count(path);
        }
        #[cfg(feature = "hdf5")]
        if self.raw.is_none() && hdf5::recognize(&read_up_to(path, 8)?) {
            return hdf5::level_count(path);
        }
        let _ = path;
        Ok(1)
    }
}

/// Opens a volume: a Zarr folder or archive, a DICOM series, an array of an `.npz` archive, a data set of an HDF5 file
/// (`file.h5:/path`), an Imaris file, or a TIFF, NIfTI, numpy, MetaImage, NRRD, FreeSurfer or headerless
/// file.
///
/// The content is checked first (magic bytes), the name second. A `.raw` file needs a sidecar, `scan.raw.json` or
/// `scan.json`, with the keys of [`RawSpec::from_json`]. Opening reads only headers.
///
/// Voxels have their real values: slope and intercept are applied as they are read, see [`Values`].
///
/// An uncompressed flat file is memory-mapped, unless it is on a network file system (see
/// [`ReadMethod`](super::ReadMethod)). Do not change or shorten it while the volume is open: reads
/// would return changed voxels, or fail once the file is too short. A compressed file is
/// decompressed as it is read as long as reads go forward, and into a temporary file of its full
/// size (in `TMPDIR`) by the first read that does not.
///
/// # Errors
///
/// [`Error::Io`] if the path cannot be read, [`Error::UnknownFormat`] if it is not a volume,
/// [`Error::Header`], [`Error::Unsupported`] or [`Error::TooLarge`] if its header is invalid or not
/// supported, and [`Error::FileLength`] if the file is shorter than its header says.
pub fn open(path: impl AsRef<Path>) -> Result<Arc<dyn Volume>> {
    OpenOptions::default().open(path)
}

/// Checks that level 0 is wanted of a volume that has no other.
pub(super) fn check_level(path: &Path, level: usize) -> Result<()> {
    if level == 0 {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        argument: "level",
        value: level.to_string(),
        problem: format!("{} has only level 0", path.display()),
    })
}

/// Formats that are read from the file system only, with their extensions.
const LOCAL_ONLY: [(&str, &[&str]); 6] = [
    ("a zip archive", &["ozx", "zip", "npz"]),
    ("N5", &["n5"]),
    ("HDF5", &["h5", "hdf5", "ims"]),
    ("DICOM", &["dcm"]),
    ("TIFF", &["tif", "tiff"]),
    ("a Blosc2 array", &["b2nd"]),
];

/// Returns the format that the name of an object has, or a name above it, if it is read from the file system only.
fn local_only(path: &Path) -> Option<&'static str> {
    path.ancestors().find_map(|part| {
        // Behind `:` is the name of a data set in a file.
        let end = part.extension()?.to_str()?.to_lowercase();
        let end = end.trim_end_matches(':');
        let (what, _) = LOCAL_ONLY.iter().find(|(_, ends)| ends.contains(&end))?;
        Some(*what)
    })
}

/// Returns the error for a path that cannot be read.
fn not_there(path: &Path, error: std::io::Error) -> Error {
    match foreign::remote(path) {
        Some(address) => Error::unsupported(
            Path::new(&address),
            "this kind of address is not read (s3, gs, az, http and https are): copy the volume to this machine first, \
             or mount it",
        ),
        None => Error::io("open", path)(error),
    }
}

/// Reads the header of the flat file at `path`. The format is found by content, else by name.
fn find_header(place: &Place, path: &Path) -> Result<FlatHeader> {
    let head = place.read_up_to(path, format::LIMIT)?;
    if head.is_empty() {
        return Err(format::unknown(path, "the file is empty"));
    }
    if let Some(hint) = foreign::pointer(&head) {
        return Err(format::unknown(path, hint));
    }
    if head.starts_with(&GZIP) {
        return packed_header(path, &head);
    }
    if let Some(found) = format::by_content(&head) {
        if head.len() as u64 == format::LIMIT && !(found.is_whole)(&head) {
            return (found.parse)(path, &place.read_up_to(path, format::LONG_LIMIT)?);
        }
        return (found.parse)(path, &head);
    }
    // The parser of the format that the name suggests reports what is wrong with the content.
    let lower = name(path).to_lowercase();
    if let Some(found) = format::by_name(&lower) {
        return (found.parse)(path, &head);
    }
    if let Some((found, header)) = format::by_voxel_name(&lower) {
        return header_of_pair(place, path, found, header);
    }
    if lower.rsplit_once('.').is_some_and(|(_, end)| end == "raw") {
        return sidecar(place, path);
    }
    let hint = foreign::hint(path, &head);
    let unknown = "neither its first bytes nor its extension belong to a known format";
    Err(format::unknown(path, hint.unwrap_or(unknown)))
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Reads the header in a file that is entirely a gzip stream.
fn packed_header(path: &Path, head: &[u8]) -> Result<FlatHeader> {
    let mut inside = Vec::new();
    let unpacked = MultiGzDecoder::new(head)
        .take(format::LIMIT)
        .read_to_end(&mut inside);
    let found = format::by_content(&inside).filter(|found| found.packed);
    let Some(found) = found else {
        if let Some(hint) = foreign::by_name(path) {
            return Err(format::unknown(path, hint));
        }
        // If nothing could be decompressed, the stream itself is at fault.
        if let (Err(source), true) = (unpacked, inside.is_empty()) {
            return Err(Error::io("unpack", path)(source));
        }
        let what =
            "of files compressed as a whole only .nii.gz and .mgz are read: unpack it with gunzip";
        return Err(Error::unsupported(path, what));
    };
    let header = (found.parse)(path, &inside)?;
    if header.data.is_some() {
        let what = "a compressed .hdr and .img pair is not read: unpack both with gunzip";
        return Err(Error::unsupported(path, what));
    }
    let skip = match header.start {
        DataStart::At { byte, .. } => byte,
        DataStart::End => 0,
    };
    Ok(FlatHeader {
        encoding: Encoding::Gzip,
        start: DataStart::byte(0),
        skip,
        ..header
    })
}

/// Reads the header next to a file of voxels.
fn header_of_pair(
    place: &Place,
    path: &Path,
    found: &FileFormat,
    extension: &str,
) -> Result<FlatHeader> {
    let beside = path.with_extension(extension.trim_start_matches('.'));
    let head = place.read_up_to(&beside, format::LIMIT)?;
    let header = (found.parse)(&beside, &head)?;
    if header.data.is_none() {
        let problem = format!("its voxels are in the {extension} file itself (magic n+1)");
        return Err(Error::header(&beside, found.name, problem));
    }
    Ok(FlatHeader {
        data: Some(name(path)),
        ..header
    })
}

/// Reads the sidecar of a headerless file.
fn sidecar(place: &Place, path: &Path) -> Result<FlatHeader> {
    let mut longer = OsString::from(path);
    longer.push(".json");
    let (longer, shorter) = (PathBuf::from(longer), path.with_extension("json"));
    let there = |path: &PathBuf| place.has_file(path);
    let Some(found) = [longer, shorter].into_iter().find(there) else {
        return Err(format::unknown(
            path,
            "a .raw file needs its shape and dtype, as options or in a JSON sidecar (scan.raw.json or scan.json)",
        ));
    };
    let text = place.read_up_to(&found, format::LIMIT)?;
    RawSpec::from_json(&found, &text)?.header(path)
}
