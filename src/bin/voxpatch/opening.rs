//! How inputs are opened: the same for all commands.

use std::path::Path;
use std::sync::Arc;

use clap::{Args as ClapArgs, ValueEnum};
use voxpatch::volume::{
    IndexRange, Layout, Matching, MissingChunks, ReadMethod, Subset, TOLERANCE, Values,
};
use voxpatch::{Error, OpenOptions, Volume};

/// What commands that read volumes have in common.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Opening {
    /// How uncompressed files are read: mapped, by system calls, or as fits the file system.
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    read_method: IoName,
    /// What it means that a Zarr chunk has no file.
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    missing_chunks: MissingName,
    /// Refuse codecs that data made to do harm could exploit (blosc above all), and links in Zarr folders.
    #[arg(long)]
    untrusted: bool,
    /// Follow a header to voxels that lie outside its folder.
    #[arg(long)]
    allow_external: bool,
    /// Which values voxels have.
    #[arg(long, value_enum, default_value_t, value_name = "WHICH")]
    pub(crate) values: ValuesName,
}

impl Opening {
    /// The library's options for this level of an image.
    pub(crate) fn options(&self, level: usize) -> OpenOptions {
        OpenOptions::default()
            .with_level(level)
            .with_read_method(match self.read_method {
                IoName::Auto => ReadMethod::Auto,
                IoName::Mmap => ReadMethod::Mmap,
                IoName::MmapResident => ReadMethod::MmapResident,
                IoName::Pread => ReadMethod::Pread,
            })
            .with_missing_chunks(match self.missing_chunks {
                MissingName::Fill => MissingChunks::Fill,
                MissingName::Error => MissingChunks::Error,
            })
            .with_trusted(!self.untrusted)
            .with_allow_external(self.allow_external)
            .with_values(match self.values {
                ValuesName::Real => Values::Real,
                ValuesName::Stored => Values::Stored,
            })
    }
}

/// Part of a volume.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Chosen {
    /// Use this channel only, counted from 0, or these: N, or FIRST:END, the end exclusive.
    #[arg(long, value_parser = span, value_name = "N|A:B")]
    channels: Option<IndexRange>,
    /// Use this time point only, counted from 0, or these.
    #[arg(long, value_parser = span, value_name = "N|A:B")]
    time: Option<IndexRange>,
    /// Use this box only: first voxel and one past the last along z, y, x; either may be left out.
    #[arg(long = "box", value_parser = spans, value_name = "Z0:Z1,Y0:Y1,X0:X1")]
    region: Option<[IndexRange; 3]>,
}

impl Chosen {
    fn choice(&self) -> Subset {
        Subset {
            time: self.time,
            channels: self.channels,
            region: self.region,
        }
    }

    /// The chosen part of a volume.
    pub(crate) fn of(&self, whole: &Arc<dyn Volume>) -> voxpatch::Result<Arc<dyn Volume>> {
        self.choice().of(Arc::clone(whole))
    }

    /// A second volume on the grid of what is chosen of a first: it covers the same as that, or as the
    /// whole first volume, of which the same box is taken.
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
pub(crate) struct Together {
    /// How far, in voxels, the corners of a second volume may lie from those of the first.
    #[arg(long, default_value_t = TOLERANCE, value_name = "VOXELS")]
    tolerance: f64,
    /// Match volumes by shape where one of them, such as a .npy, does not say where it lies.
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

/// The level of a second volume: a file has one, whichever the first's is.
pub(crate) fn level_of(path: &Path, level: usize) -> usize {
    if path.is_dir() { level } else { 0 }
}

/// `3` or `2:5`, of which either end may be left out.
pub(crate) fn span(text: &str) -> Result<IndexRange, String> {
    let number = |text: &str| -> Result<u64, String> {
        let wrong = |_| format!("{text:?}: give a number from 0 on, or FIRST:END, as 2 or 2:5");
        text.trim().parse().map_err(wrong)
    };
    let Some((start, end)) = text.split_once(':') else {
        return Ok(IndexRange::one(number(text)?));
    };
    let end = match end.trim() {
        "" => None,
        end => Some(number(end)?),
    };
    let start = match start.trim() {
        "" => 0,
        start => number(start)?,
    };
    if end.is_some_and(|end| end <= start) {
        return Err(format!(
            "{text:?} ends before it begins: the end is exclusive"
        ));
    }
    Ok(IndexRange { start, end })
}

/// `0:10,5:20,:`.
fn spans(text: &str) -> Result<[IndexRange; 3], String> {
    let spans: Vec<IndexRange> = text.split(',').map(span).collect::<Result<_, _>>()?;
    spans
        .try_into()
        .map_err(|_| "give a range for each of z,y,x, as 0:10,5:20,:".to_owned())
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum IoName {
    /// `mmap-resident` for files that fit into the available memory, `mmap` for larger ones, `pread` on network
    /// file systems.
    #[default]
    Auto,
    /// Map the file; touched pages are unmapped again.
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
enum MissingName {
    /// It is all fill value.
    #[default]
    Fill,
    /// It was lost.
    Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_a_number_or_two_of_which_either_may_be_left_out() {
        let of = |start, end| Ok(IndexRange { start, end });
        assert_eq!(span("3"), of(3, Some(4)));
        assert_eq!(span("2:5"), of(2, Some(5)));
        assert_eq!(span(" 2 : "), of(2, None));
        assert_eq!(span(":5"), of(0, Some(5)));
        assert_eq!(span(":"), of(0, None));
        for wrong in ["", "a", "-1", "1.5", "5:2", "3:3", "1:2:3", "1:b"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
        assert_eq!(spans("1:2,:,3:").map(|found| found[2]), of(3, None));
        for wrong in ["1:2", "1:2,3:4", "1:2,3:4,5:6,7:8", "1:2,,3:4"] {
            assert!(spans(wrong).is_err(), "{wrong}");
        }
    }
}
