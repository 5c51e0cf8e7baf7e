//! Options for opening a volume.

use std::path::PathBuf;
use std::sync::Arc;

use super::{RawSpec, ReadMethod, Resample};
use crate::error::Result;
use crate::store::{DiskCache, StorageOptions};

/// Defines `with_*` methods, each of which sets one field.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident($field:ident: $type:ty);)+) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $field: $type) -> Self {
            self.$field = $field;
            self
        }
    )+};
}

pub(super) use setters;

/// Options for opening a volume.
///
/// ```
/// use voxpatch::OpenOptions;
/// use voxpatch::volume::MissingChunks;
///
/// let options = OpenOptions::default()
///     .with_level(1)
///     .with_missing_chunks(MissingChunks::Error);
/// assert!(options.open("missing.zarr").is_err());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Level of a multiscale image; 0 is the finest.
    pub level: usize,
    /// Layout of a headerless file. With it, the file is read as headerless even if it begins with a
    /// known header; without it, a headerless file needs a JSON sidecar.
    pub raw: Option<RawSpec>,
    /// The treatment of chunks that have no file; only for Zarr.
    pub missing_chunks: MissingChunks,
    /// Whether to allow codecs that hostile data could exploit (blosc, JPEG 2000) and symbolic links in a folder.
    pub trusted: bool,
    /// The method for reading uncompressed files.
    pub read_method: ReadMethod,
    /// Whether to allow headers that name a voxel file outside their own folder. It must be a regular file in any case.
    pub allow_external: bool,
    /// The values of the voxels that are read: real or stored.
    pub values: Values,
    /// The grid that the volume is brought to; its own by default.
    pub resample: Resample,
    /// The DICOM series to open where there are several: its unique identifier, or its number in the list, counted
    /// from 1; only for DICOM.
    pub series: Option<String>,
    /// Whether to read slices at uneven distances, or with missing ones, as if they were evenly spaced; only for DICOM.
    pub allow_uneven: bool,
    /// The treatment of tilted slices; only for DICOM.
    pub tilt: Tilt,
    /// Credentials and other options of object stores; only for addresses such as `s3://bucket/scan.zarr`.
    pub storage_options: StorageOptions,
    /// A folder on a local disk that keeps what is read from object stores and web servers, and what compressed flat
    /// files are unpacked to. Processes may share it. `None` for no cache.
    pub cache_dir: Option<PathBuf>,
    /// The most bytes in that folder: what was used longest ago leaves.
    pub cache_bytes: u64,
}

/// The treatment of slices that are shifted within their plane, as by a tilted gantry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tilt {
    /// Such slices are an error that names the angle.
    #[default]
    Refuse,
    /// The volume is sheared: its affine has axes that are not perpendicular.
    Shear,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            level: 0,
            raw: None,
            missing_chunks: MissingChunks::Fill,
            trusted: true,
            read_method: ReadMethod::Auto,
            allow_external: false,
            values: Values::Real,
            resample: Resample::default(),
            series: None,
            allow_uneven: false,
            tilt: Tilt::Refuse,
            storage_options: StorageOptions::default(),
            cache_dir: None,
            cache_bytes: CACHE_BYTES,
        }
    }
}

/// Bytes of a cache on a disk, if nothing else is said.
const CACHE_BYTES: u64 = 32 << 30;

impl OpenOptions {
    /// Returns the cache on a disk.
    pub(crate) fn cache(&self) -> Result<Option<Arc<DiskCache>>> {
        let open = |folder: &PathBuf| DiskCache::open(folder, self.cache_bytes);
        self.cache_dir.as_ref().map(open).transpose()
    }
}

impl OpenOptions {
    setters! {
        /// Sets the level of a multiscale image; 0 is the finest.
        with_level(level: usize);
        /// Sets the layout of a headerless file.
        with_raw(raw: Option<RawSpec>);
        /// Sets how chunks without a file are treated.
        with_missing_chunks(missing_chunks: MissingChunks);
        /// Sets whether unsafe codecs and symbolic links are allowed.
        with_trusted(trusted: bool);
        /// Sets how uncompressed flat files are read.
        with_read_method(read_method: ReadMethod);
        /// Sets whether headers may name files outside their folder.
        with_allow_external(allow_external: bool);
        /// Sets the values of the voxels that are read: real or stored.
        with_values(values: Values);
        /// Sets the grid that the volume is brought to.
        with_resample(resample: Resample);
        /// Sets the DICOM series to open.
        with_series(series: Option<String>);
        /// Sets whether slices at uneven distances are read.
        with_allow_uneven(allow_uneven: bool);
        /// Sets how tilted slices are treated.
        with_tilt(tilt: Tilt);
        /// Sets the options of object stores.
        with_storage_options(storage_options: StorageOptions);
        /// Sets the folder of the cache on a disk.
        with_cache_dir(cache_dir: Option<PathBuf>);
        /// Sets the most bytes of the cache on a disk.
        with_cache_bytes(cache_bytes: u64);
    }
}

/// The kind of values that a volume's voxels have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// Real values: slope and intercept are applied, and give the type that
    /// [`Rescale::dtype`](super::Rescale::dtype) chooses. Volumes without them keep the stored type.
    #[default]
    Real,
    /// The values in the file. Slope and intercept are in the layout, unless they differ between slices.
    Stored,
    /// As `Stored`, for callers that apply the slope and intercept of the layout themselves. Where these differ between
    /// slices, as in PET, the values are real already.
    Unconverted,
}

/// The treatment of chunks that have no file. (A chunk that is empty in its shard's index is never missing.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingChunks {
    /// Voxels of missing chunks have the fill value, as the Zarr specification defines.
    #[default]
    Fill,
    /// A missing chunk is lost, and reading it is an error.
    Error,
}
