//! A row of the table of flat file formats.

use std::path::Path;

use super::FlatHeader;
use crate::error::Result;
use crate::volume::{Format, Layout};

/// A flat file format, with the functions that recognize, parse and encode its headers.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct FileFormat {
    /// Its name in messages, as in `NIfTI`.
    pub(in super::super) name: &'static str,
    /// The noun phrase for a file of this format in messages, as in `a NIfTI file`.
    pub(in super::super) file: &'static str,
    /// The values of [`Layout::format`] of such files; outputs start with the first.
    pub(in super::super) formats: &'static [Format],
    /// The extensions of files that are opened, in lower case.
    pub(in super::super) extensions: &'static [&'static str],
    /// `true` if a file may be a gzip stream as a whole.
    pub(in super::super) packed: bool,
    /// The extensions of files that are created.
    pub(in super::super) outputs: &'static [CreatedExtension],
    /// The extensions of a file of voxels and of its header, for a format of pairs that may be
    /// opened by either.
    pub(in super::super) pair: Option<[&'static str; 2]>,
    /// Returns `true` if a file that begins with these bytes has this format.
    pub(in super::super) recognizes: fn(&[u8]) -> bool,
    /// Returns `true` if an output may replace a file that begins with these bytes.
    pub(in super::super) replaces: fn(&[u8]) -> bool,
    /// Returns `true` if these bytes contain the whole header. If not, up to
    /// [`LONG_LIMIT`](super::LONG_LIMIT) bytes are read.
    pub(in super::super) is_whole: fn(&[u8]) -> bool,
    /// Parses the header at the start of these bytes.
    pub(in super::super) parse: fn(&Path, &[u8]) -> Result<FlatHeader>,
    /// Checks that the format can store a volume; `encode` may find more.
    pub(in super::super) check: fn(&Layout) -> Result<()>,
    /// Encodes the header of an output, which names the file of voxels if that is a different one.
    /// The format of the layout becomes the version that was chosen.
    pub(in super::super) encode: fn(&mut Layout, Option<&str>) -> Result<Vec<u8>>,
    /// Returns the number of time points, and of channels per time point, if the file stores all times of a channel
    /// together and the volume all channels of a time point together.
    pub(in super::super) transposed_time: fn(&Layout) -> Option<[u64; 2]>,
}

/// An extension of created files.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct CreatedExtension {
    /// The extension, in lower case.
    pub(in super::super) extension: &'static str,
    /// The storage of the voxels.
    pub(in super::super) storage: VoxelStorage,
}

/// The storage of an output's voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum VoxelStorage {
    /// Uncompressed, after the header.
    Attached,
    /// Uncompressed, in a file next to the header.
    Detached,
    /// Compressed: the whole file is a gzip stream.
    Gzip,
}

impl FileFormat {
    /// Creates the row of a format that needs nothing special.
    pub(super) const fn new(
        name: &'static str,
        file: &'static str,
        formats: &'static [Format],
        recognizes: fn(&[u8]) -> bool,
        parse: fn(&Path, &[u8]) -> Result<FlatHeader>,
        encode: fn(&mut Layout, Option<&str>) -> Result<Vec<u8>>,
    ) -> Self {
        Self {
            name,
            file,
            formats,
            extensions: &[],
            packed: false,
            outputs: &[],
            pair: None,
            recognizes,
            replaces: recognizes,
            is_whole: |_| true,
            parse,
            check: |_| Ok(()),
            encode,
            transposed_time: |_| None,
        }
    }
}

impl CreatedExtension {
    /// Creates an extension of created files.
    pub(super) const fn new(extension: &'static str, storage: VoxelStorage) -> Self {
        Self { extension, storage }
    }
}
