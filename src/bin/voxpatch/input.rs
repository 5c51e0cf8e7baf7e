//! Options for inputs, the same for all commands.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args as ClapArgs, ValueEnum};
use voxpatch::store::is_remote;
use voxpatch::volume::{
    IndexRange, Interpolation, Layout, Matching, MissingChunks, Orientation, ReadMethod,
    RealValues, Resample, Subset, TOLERANCE, Tilt, Values, VoxelGrid,
};
use voxpatch::{DType, Error, OpenOptions, Padding, StorageOptions, Volume};

use crate::parse::{bytes, range, ranges, spacing};

/// How volumes are opened.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Input")]
pub(crate) struct Opening {
    /// Values of voxels.
    #[arg(long, value_enum, default_value_t, value_name = "WHICH")]
    pub(crate) values: ValuesName,
    /// How to read uncompressed files.
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    read_method: ReadMethodName,
    /// How to treat Zarr chunks that have no file.
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    missing_chunks: MissingChunksName,
    /// Refuse unsafe codecs (blosc, JPEG 2000) and symbolic links in folders.
    #[arg(long)]
    untrusted: bool,
    /// Allow headers that name a file of voxels outside their folder.
    #[arg(long)]
    allow_external: bool,
    /// DICOM series to open where there are several: its unique identifier, or its number in the list, counted from 1.
    #[arg(long, value_name = "UID|N")]
    series: Option<String>,
    /// Read DICOM slices that are missing or at uneven distances as if they were evenly spaced.
    #[arg(long)]
    allow_uneven: bool,
    /// How to treat DICOM slices that are shifted within their plane, as by a tilted gantry.
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    tilt: TiltName,
    /// Option of the object stores that inputs and outputs are in, such as anon=true or region=eu-west-1. May be given several
    /// times.
    #[arg(long, value_parser = storage_option, value_name = "NAME=VALUE")]
    storage_option: Vec<StorageOption>,
    /// Folder on a local disk that keeps what is read from stores, and what compressed files are unpacked to. Commands may
    /// share it.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// The most bytes in --cache-dir: what was used longest ago leaves.
    #[arg(long, value_parser = bytes, value_name = "BYTES", requires = "cache_dir", default_value = "32GiB")]
    cache_size: u64,
}

/// An option of an object store. Its value may be a secret and is not printed.
#[derive(Clone)]
struct StorageOption(String, String);

impl fmt::Debug for StorageOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=...", self.0)
    }
}

/// Parses `name=value`.
fn storage_option(text: &str) -> Result<StorageOption, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok(StorageOption(name.to_owned(), value.to_owned()))
        }
        _ => Err("give a name and a value, such as anon=true".to_owned()),
    }
}

impl Opening {
    /// Returns the names of the options of object stores.
    pub(crate) fn storage_option_names(&self) -> impl Iterator<Item = &str> {
        self.storage_option.iter().map(|option| &*option.0)
    }

    /// Returns the options of object stores.
    pub(crate) fn storage_options(&self) -> StorageOptions {
        let given = self.storage_option.iter();
        given.map(|option| (&option.0, &*option.1)).collect()
    }

    /// Returns the library's options for this level of an image.
    pub(crate) fn options(&self, level: usize) -> OpenOptions {
        OpenOptions::default()
            .with_level(level)
            .with_read_method(match self.read_method {
                ReadMethodName::Auto => ReadMethod::Auto,
                ReadMethodName::Mmap => ReadMethod::Mmap,
                ReadMethodName::MmapResident => ReadMethod::MmapResident,
                ReadMethodName::Pread => ReadMethod::Pread,
            })
            .with_missing_chunks(match self.missing_chunks {
                MissingChunksName::Fill => MissingChunks::Fill,
                MissingChunksName::Error => MissingChunks::Error,
            })
            .with_trusted(!self.untrusted)
            .with_allow_external(self.allow_external)
            .with_series(self.series.clone())
            .with_allow_uneven(self.allow_uneven)
            .with_tilt(match self.tilt {
                TiltName::Refuse => Tilt::Refuse,
                TiltName::Shear => Tilt::Shear,
            })
            .with_storage_options(self.storage_options())
            .with_cache_dir(self.cache_dir.clone())
            .with_cache_bytes(self.cache_size)
            .with_values(match self.values {
                ValuesName::Real => Values::Real,
                ValuesName::Stored => Values::Stored,
            })
    }
}

/// The grid that a volume is brought to.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Input")]
pub(crate) struct OnGrid {
    /// Distance between voxels, in mm, to resample the volume to: one number, or three for z,y,x.
    #[arg(long, value_parser = spacing, value_name = "MM|Z,Y,X")]
    spacing: Option<[f64; 3]>,
    /// Directions of the axes x, y and z to flip and permute the volume to, such as RAS.
    #[arg(long, value_name = "RAS|LPS|...")]
    orientation: Option<Orientation>,
    /// Volume to whose grid the volume is resampled.
    #[arg(long, value_name = "PATH")]
    like: Option<PathBuf>,
    /// How to compute values between voxels: nearest, linear, cubic (B-spline), or label-linear (the label with the
    /// largest linear weight). For labels, use nearest or label-linear.
    #[arg(long, default_value_t, value_name = "HOW")]
    pub(crate) interpolation: Interpolation,
    /// Smooth with a Gaussian along axes whose voxels become larger.
    #[arg(long)]
    antialias: bool,
    /// Values beyond the faces of the volume: a number, edge, reflect, or wrap.
    #[arg(long, value_parser = outside, default_value = "0", value_name = "VALUE|HOW", allow_hyphen_values = true)]
    outside: Option<Padding>,
}

/// Parses a number, or a way to continue a volume.
fn outside(text: &str) -> Result<Padding, String> {
    match text.trim().parse() {
        Ok(value) => Ok(Padding::Constant(value)),
        Err(_) => text.parse().map_err(|error: Error| error.to_string()),
    }
}

impl OnGrid {
    /// Returns the library's options.
    fn resample(&self, opening: &Opening) -> voxpatch::Result<Resample> {
        let like = self.like.as_deref().map(|path| {
            let volume = opening.options(0).open(path)?;
            Ok::<_, Error>(VoxelGrid::of(volume.layout()))
        });
        Ok(Resample::default()
            .with_spacing(self.spacing)
            .with_orientation(self.orientation)
            .with_like(like.transpose()?)
            .with_interpolation(self.interpolation)
            .with_antialias(self.antialias)
            .with_outside(self.outside.unwrap_or(Padding::Constant(0.0))))
    }

    /// Returns `true` if volumes keep their grid.
    pub(crate) const fn is_none(&self) -> bool {
        self.spacing.is_none() && self.orientation.is_none() && self.like.is_none()
    }

    /// Opens the level of the image at a path on the grid.
    pub(crate) fn open(
        &self,
        opening: &Opening,
        path: &Path,
        level: usize,
    ) -> voxpatch::Result<Arc<dyn Volume>> {
        Ok(self.open_with_own(opening, path, level)?.0)
    }

    /// Does the same, and returns the volume's own grid, too.
    pub(crate) fn open_with_own(
        &self,
        opening: &Opening,
        path: &Path,
        level: usize,
    ) -> voxpatch::Result<(Arc<dyn Volume>, VoxelGrid)> {
        let resample = self.resample(opening)?;
        let volume = opening.options(level).open(path)?;
        let own = VoxelGrid::of(volume.layout());
        Ok((resample.of(volume)?, own))
    }

    /// Brings stored voxels to the grid: their real values, if such are wanted, in `dtype` if that can hold them.
    pub(crate) fn bring(
        &self,
        opening: &Opening,
        stored: Arc<dyn Volume>,
        dtype: Option<DType>,
    ) -> voxpatch::Result<Arc<dyn Volume>> {
        let volume = match (opening.values, dtype) {
            (ValuesName::Stored, _) => stored,
            (ValuesName::Real, Some(dtype)) => RealValues::with_dtype(stored, dtype),
            (ValuesName::Real, None) => RealValues::of(stored),
        };
        self.resample(opening)?.of(volume)
    }

    /// Returns the options with the grid of the volume at a path.
    pub(crate) fn with_like(&self, path: &Path) -> Self {
        Self {
            like: Some(path.to_owned()),
            ..self.clone()
        }
    }

    /// Brings a second volume (a mask, map or overlay) to the grid of the first, by nearest neighbor; 0 beyond its faces.
    /// Without a grid, it stays as it is, to be matched with the first.
    pub(crate) fn second(
        &self,
        first: &Layout,
        second: Arc<dyn Volume>,
    ) -> voxpatch::Result<Arc<dyn Volume>> {
        if self.is_none() {
            return Ok(second);
        }
        Self::resampled(first, second)
    }

    /// Resamples a second volume to the grid of the first, by nearest neighbor; 0 beyond its faces.
    pub(crate) fn resampled(
        first: &Layout,
        second: Arc<dyn Volume>,
    ) -> voxpatch::Result<Arc<dyn Volume>> {
        Resample::default()
            .with_like(Some(VoxelGrid::of(first)))
            .with_interpolation(Interpolation::Nearest)
            .of(second)
    }
}

/// The part of a volume to use.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Input")]
pub(crate) struct Part {
    /// Level of a multiscale image; 0 is the finest.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) level: usize,
    /// Use only this channel, counted from 0, or channels FIRST:END, the end exclusive.
    #[arg(long, value_parser = range, value_name = "N|A:B")]
    channels: Option<IndexRange>,
    /// Use only this time point, counted from 0, or these.
    #[arg(long, value_parser = range, value_name = "N|A:B")]
    time: Option<IndexRange>,
    /// Use only this box: first voxel and one past the last along z, y, x; either may be left out. After resampling.
    #[arg(long = "box", value_parser = ranges, value_name = "Z0:Z1,Y0:Y1,X0:X1")]
    region: Option<[IndexRange; 3]>,
}

impl Part {
    /// Returns `true` if a box is used.
    pub(crate) const fn is_box(&self) -> bool {
        self.region.is_some()
    }

    fn choice(&self) -> Subset {
        Subset {
            time: self.time,
            channels: self.channels,
            region: self.region,
        }
    }

    /// Returns the chosen part of a volume.
    pub(crate) fn of(&self, whole: &Arc<dyn Volume>) -> voxpatch::Result<Arc<dyn Volume>> {
        self.choice().of(Arc::clone(whole))
    }

    /// Brings a second volume to the grid of the chosen part of a first. It covers the same space as that part, or as
    /// the whole first volume; then the same box of it is used.
    pub(crate) fn with(
        &self,
        whole: &Layout,
        chosen: &Layout,
        second: &Arc<dyn Volume>,
        bring: impl Fn(&Layout, Arc<dyn Volume>) -> voxpatch::Result<Arc<dyn Volume>>,
    ) -> voxpatch::Result<Arc<dyn Volume>> {
        let found = bring(chosen, Arc::clone(second));
        let other = matches!(
            found,
            Err(Error::GridMismatch { .. } | Error::NoGeometry { .. })
        );
        if other && self.region.is_some() {
            let cut = Subset {
                region: self.region,
                ..Subset::default()
            };
            return cut.cropped(bring(whole, Arc::clone(second))?);
        }
        found
    }
}

/// How a second volume (a mask, map or overlay) is matched with the first.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Input")]
pub(crate) struct Together {
    /// Largest distance, in voxels, between the corners of a second volume (mask, map, overlay) and the first.
    #[arg(long, default_value_t = TOLERANCE, value_name = "VOXELS")]
    tolerance: f64,
    /// Match volumes by shape if one of them, such as a .npy, has no position.
    #[arg(long)]
    same_grid: bool,
}

impl Together {
    pub(crate) const fn matching(&self) -> Matching {
        Matching {
            tolerance: self.tolerance,
            same_grid: self.same_grid,
        }
    }
}

/// Returns the level of a second volume: that of the first, or 0 for a file that has no other.
pub(crate) fn level_of(path: &Path, level: usize) -> usize {
    // Of an object, only the name shows whether it has levels.
    let is_zarr = || path.to_string_lossy().contains(".zarr");
    let has_levels = || {
        let levels = OpenOptions::default().levels(path);
        level > 0 && levels.is_ok_and(|levels| levels > 1)
    };
    if path.is_dir() || (is_remote(path) && is_zarr()) || (!is_remote(path) && has_levels()) {
        level
    } else {
        0
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ReadMethodName {
    /// `mmap-resident` for files that fit into the available memory, `mmap` for larger ones, `pread` on network
    /// file systems.
    #[default]
    Auto,
    /// Map the file, and unmap touched pages again.
    Mmap,
    /// Map the file and keep touched pages: fastest for files that fit into memory.
    MmapResident,
    /// Read by system calls.
    Pread,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ValuesName {
    /// Real values, such as HU: slope and intercept are applied.
    #[default]
    Real,
    /// The numbers in the file.
    Stored,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum MissingChunksName {
    /// Read as the fill value.
    #[default]
    Fill,
    /// Fail.
    Error,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum TiltName {
    /// Fail, with the angle.
    #[default]
    Refuse,
    /// Read a sheared volume, whose axes are not perpendicular.
    Shear,
}
