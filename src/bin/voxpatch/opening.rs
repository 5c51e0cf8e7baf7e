//! How inputs are opened: the same for all commands.

use clap::{Args as ClapArgs, ValueEnum};
use voxpatch::OpenOptions;
use voxpatch::volume::{Io, Missing};

/// What commands that read volumes have in common.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Opening {
    /// How uncompressed files are read: mapped, by system calls, or as fits the file system.
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    io: IoName,
    /// What it means that a Zarr chunk has no file.
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    missing: MissingName,
    /// Refuse codecs that data made to do harm could exploit (blosc above all), and links in Zarr folders.
    #[arg(long)]
    untrusted: bool,
    /// Follow a header to voxels that lie outside its folder.
    #[arg(long)]
    allow_external: bool,
}

impl Opening {
    /// The library's options for this level of an image.
    pub(crate) fn options(&self, level: usize) -> OpenOptions {
        OpenOptions {
            level,
            io: match self.io {
                IoName::Auto => Io::Auto,
                IoName::Map => Io::Map,
                IoName::Keep => Io::Keep,
                IoName::Read => Io::Read,
            },
            missing: match self.missing {
                MissingName::Fill => Missing::Fill,
                MissingName::Error => Missing::Error,
            },
            trusted: !self.untrusted,
            allow_external: self.allow_external,
            ..OpenOptions::default()
        }
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum IoName {
    /// Mapped, but by system calls on network file systems.
    #[default]
    Auto,
    /// Mapped, and what was touched is let go of again.
    Map,
    /// Mapped, and left mapped: fastest for files that fit into memory beside all else.
    Keep,
    /// By system calls.
    Read,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum MissingName {
    /// It is all fill value.
    #[default]
    Fill,
    /// It was lost.
    Error,
}
