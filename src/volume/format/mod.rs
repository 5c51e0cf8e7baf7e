//! Headers of flat files: parsed, checked and represented in one plain struct.
//!
//! A parser takes the first bytes of a file, at most [`LIMIT`] or [`LONG_LIMIT`]. No number of a header is used before
//! it is checked, and no allocation has a size that a header claims. [`flat`](super::flat) opens the files that a
//! header names.

mod metaimage;
mod mgh;
mod nifti;
pub(super) mod npy;
mod nrrd;
mod pieces;
pub(super) mod raw;
mod row;
mod table;
#[cfg(feature = "tiff")]
mod tiff;
mod writing;

use std::fmt::Write;
use std::path::Path;
use std::str::FromStr;

pub(super) use self::nifti::{NiftiPlace, place as nifti_place};
pub(super) use self::row::{FileFormat, VoxelStorage};
pub(super) use self::table::{by_content, by_name, by_output_name, by_voxel_name, of, unknown};
pub use self::table::{readable_extensions, writable_extensions};
use super::{Axes, Format, Layout, Rescale};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::region::Shape;

/// The first bytes of a gzip stream.
pub(super) const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Maximum length of a header, in bytes.
pub(super) const LIMIT: u64 = 1 << 20;

/// Maximum length of a MetaImage header, which may have fields for each of thousands of frames.
pub(super) const LONG_LIMIT: u64 = 64 << 20;

/// Maximum number of fields in a text header.
const MOST_FIELDS: usize = 1000;

/// The content of a header.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FlatHeader {
    /// The file format.
    pub(super) format: Format,
    /// Voxels along z, y, x.
    pub(super) shape: Shape,
    /// The number of channels; further dimensions are flattened into them.
    pub(super) channels: u64,
    /// The number of time points, if the channels are grouped by time point in order.
    pub(super) time_points: Option<u64>,
    /// The stored type.
    pub(super) dtype: DType,
    /// `true` if the first byte of a voxel is the most significant.
    pub(super) big_endian: bool,
    /// The axes c, z, y, x (0 to 3) in storage order, fastest first.
    pub(super) order: [usize; 4],
    /// The compression of the voxels.
    pub(super) encoding: Encoding,
    /// The name of the voxel file in the header; `None` if the voxels are in the header's own file.
    pub(super) data: Option<String>,
    /// The files that hold the voxels in sequence, in equal parts; empty if there is a single file.
    pub(super) pieces: Vec<String>,
    /// The position in that file where the voxels, or the compressed stream, begin.
    pub(super) start: DataStart,
    /// Bytes between there and the first voxel, counted after decompression.
    pub(super) skip: u64,
    /// Spacing and affine.
    pub(super) geometry: Geometry,
    /// The conversion from stored to real values.
    pub(super) rescale: Option<Rescale>,
    /// Axis metadata.
    pub(super) axes: Axes,
}

/// x fastest, channels slowest: the order of voxels in memory in this crate.
pub(super) const PLANAR: [usize; 4] = [3, 2, 1, 0];

/// The channels of each voxel together, then x fastest.
pub(super) const INTERLEAVED: [usize; 4] = [0, 3, 2, 1];

/// A compression of voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// No compression.
    Raw,
    /// A gzip stream.
    Gzip,
    /// A zlib stream; some writers put a gzip stream there.
    Zlib,
    /// A deflate stream in an archive.
    Deflate {
        /// The CRC-32 of all of its decompressed bytes.
        checksum: u32,
    },
}

/// A position in a file where data begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataStart {
    /// A number of lines after a byte.
    At {
        /// Bytes from the start of the file.
        byte: u64,
        /// Lines to skip from there.
        lines: u64,
    },
    /// The data are the last bytes of the file.
    End,
}

impl DataStart {
    /// Creates a start at a byte of the file.
    pub(super) const fn byte(byte: u64) -> Self {
        Self::At { byte, lines: 0 }
    }
}

impl FlatHeader {
    /// Creates the header of an uncompressed file of one channel whose voxels begin at `byte`.
    pub(super) fn new(format: Format, shape: Shape, dtype: DType, byte: u64) -> Self {
        Self {
            format,
            shape,
            channels: 1,
            time_points: None,
            dtype,
            big_endian: false,
            order: PLANAR,
            encoding: Encoding::Raw,
            data: None,
            pieces: Vec::new(),
            start: DataStart::byte(byte),
            skip: 0,
            geometry: Geometry::default(),
            rescale: None,
            axes: Axes::default(),
        }
    }

    /// Returns the bytes of all voxels.
    pub(super) fn voxel_bytes(&self) -> Option<u64> {
        crate::region::voxels(self.shape)?
            .checked_mul(self.channels)?
            .checked_mul(self.dtype.size() as u64)
    }

    /// Returns the header after checking its lengths, their product and its geometry.
    pub(super) fn checked(self, path: &Path, name: &'static str) -> Result<Self> {
        let mut problems = Problems::default();
        if self.channels == 0 || self.shape.contains(&0) {
            problems.add(format!(
                "{} x {:?} (channels x z, y, x) has no voxels",
                self.channels, self.shape
            ));
        }
        if !self.geometry.is_sound() {
            problems.add(format!(
                "spacing {:?} and affine {:?} must be finite, the spacing above 0, and the axes independent",
                self.geometry.spacing, self.geometry.affine
            ));
        }
        problems.check(path, name)?;
        let start = match self.start {
            DataStart::At { byte, .. } => byte,
            DataStart::End => 0,
        };
        let end = start
            .checked_add(self.skip)
            .and_then(|n| n.checked_add(self.layout(path).decoded_bytes().ok()?));
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Error::TooLarge {
                path: path.to_path_buf(),
                channels: self.channels,
                shape: self.shape,
                dtype: self.dtype,
            });
        }
        Ok(self)
    }

    /// Returns the volume's layout.
    pub(super) fn layout(&self, path: &Path) -> Layout {
        let codec = match self.encoding {
            Encoding::Raw => None,
            Encoding::Gzip => Some("gzip".to_owned()),
            Encoding::Zlib => Some("zlib".to_owned()),
            Encoding::Deflate { .. } => Some("deflate".to_owned()),
        };
        Layout {
            path: path.to_path_buf(),
            format: self.format,
            codecs: codec.into_iter().collect(),
            geometry: self.geometry,
            rescale: self.rescale,
            axes: self.axes.clone(),
            applied: None,
            ..Layout::new(self.shape, self.channels, self.dtype)
        }
    }

    /// Returns the distances between neighbors along c, z, y, x, in bytes. The header must be checked.
    pub(super) fn strides(&self) -> [u64; 4] {
        let [z, y, x] = self.shape;
        let lengths = [self.channels, z, y, x];
        let mut strides = [0; 4];
        let mut stride = self.dtype.size() as u64;
        for axis in self.order {
            strides[axis] = stride;
            stride *= lengths[axis];
        }
        strides
    }
}

/// All problems of a header.
#[derive(Debug, Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// Maximum number of problems that a message lists.
    const TOLD: usize = 20;

    /// Returns an error that lists all problems, or the first [`TOLD`](Self::TOLD), if there are any.
    fn check(&mut self, path: &Path, format: &'static str) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let all = std::mem::take(&mut self.0);
        let mut told = all[..all.len().min(Self::TOLD)].join("; ");
        if all.len() > Self::TOLD {
            let _ = write!(told, "; and {} more", all.len() - Self::TOLD);
        }
        Err(Error::header(path, format, told))
    }
}

/// Parses whitespace-separated numbers; `None` if any is not a number of this type.
fn numbers<T: FromStr>(text: &str) -> Option<Vec<T>> {
    text.split_whitespace()
        .map(|word| word.parse().ok())
        .collect()
}

/// Parses whitespace-separated finite numbers.
fn finite(text: &str) -> Option<Vec<f64>> {
    numbers(text).filter(|values| values.iter().all(|value: &f64| value.is_finite()))
}

/// Returns the file name of `path` with this extension in place of its own.
pub(super) fn with_extension(path: &Path, extension: &str) -> String {
    let path = path.with_extension(extension);
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_default()
}

/// Returns the start of a text, for a message.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Returns the line that starts at `at`, without its line ending, and the start of the next line; `None` at the end of
/// `bytes`.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
    let length = rest.iter().position(|&byte| byte == b'\n');
    let text = &rest[..length.unwrap_or(rest.len())];
    let next = at + length.map_or(rest.len(), |n| n + 1);
    Some((text.strip_suffix(b"\r").unwrap_or(text), next))
}

#[cfg(test)]
mod tests;
