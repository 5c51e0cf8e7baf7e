//! Options for inputs, the same for all commands.

use std::path::Path;
use std::sync::Arc;

use clap::{Args as ClapArgs, ValueEnum};
use voxpatch::volume::{
    IndexRange, Layout, Matching, MissingChunks, ReadMethod, Subset, TOLERANCE, Values,
};
use voxpatch::{Error, OpenOptions, Volume};

use crate::parse::{range, ranges};

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
    /// Refuse unsafe codecs (such as blosc) and symbolic links in Zarr folders.
    #[arg(long)]
    untrusted: bool,
    /// Allow headers that name a file of voxels outside their folder.
    #[arg(long)]
    allow_external: bool,
}

impl Opening {
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
            .with_values(match self.values {
                ValuesName::Real => Values::Real,
                ValuesName::Stored => Values::Stored,
            })
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
    /// Use only this box: first voxel and one past the last along z, y, x; either may be left out.
    #[arg(long = "box", value_parser = ranges, value_name = "Z0:Z1,Y0:Y1,X0:X1")]
    region: Option<[IndexRange; 3]>,
}

impl Part {
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

/// Returns the level of a second volume: that of the first, or 0 for a file, which has no other.
pub(crate) fn level_of(path: &Path, level: usize) -> usize {
    if path.is_dir() { level } else { 0 }
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
