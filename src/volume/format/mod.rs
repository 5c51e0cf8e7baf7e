//! Headers of flat files: what each says about the voxels, checked, in one plain struct.
//!
//! A parser takes the first bytes of a file, no more than [`LIMIT`] or [`LONG_LIMIT`], and touches no file
//! itself. No number of a header is used before it is checked, and nothing is allocated by a
//! size that a header claims. Opening what a header names is [`flat`](super::flat)'s work.

mod metaimage;
mod nifti;
mod npy;
mod nrrd;
mod pieces;
pub(super) mod raw;
mod table;
mod writing;

use std::fmt::Write;
use std::path::Path;
use std::str::FromStr;

pub(super) use self::table::{
    FileFormat, Storage, by_content, by_name, by_output_name, by_voxel_name, of, unknown,
};
pub use self::table::{readable_extensions, writable_extensions};
use super::{Axes, Format, Layout, Rescale};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::region::Shape;

/// The first bytes of a gzip stream.
pub(super) const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The longest header that is read, in bytes.
pub(super) const LIMIT: u64 = 1 << 20;

/// The same for a MetaImage, which may have fields for every one of thousands of frames.
pub(super) const LONG_LIMIT: u64 = 64 << 20;

/// The most fields that a header of text may have.
const MOST_FIELDS: usize = 1000;

/// What a header says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FlatHeader {
    /// The file format.
    pub(super) format: Format,
    /// Voxels along z, y, x.
    pub(super) shape: Shape,
    /// Channels; further dimensions are flattened into them.
    pub(super) channels: u64,
    /// Time points, if the channels are those of one after the other.
    pub(super) time_points: Option<u64>,
    /// The type that is stored.
    pub(super) dtype: DType,
    /// `true` if the first byte of a voxel is its highest.
    pub(super) big_endian: bool,
    /// The axes c, z, y, x (0 to 3) as they are stored, the fastest first.
    pub(super) order: [usize; 4],
    /// How the voxels are packed.
    pub(super) encoding: Encoding,
    /// The file that holds the voxels, as the header names it; `None` if it is the header's own.
    pub(super) data: Option<String>,
    /// The files that hold the voxels one after the other, equally many each; empty if there is one.
    pub(super) pieces: Vec<String>,
    /// Where in that file the voxels, or the packed stream, begin.
    pub(super) start: Start,
    /// Bytes between there and the first voxel, counted once unpacked.
    pub(super) skip: u64,
    /// Spacing and affine.
    pub(super) geometry: Geometry,
    /// How stored values become real ones.
    pub(super) rescale: Option<Rescale>,
    /// What is said of the axes.
    pub(super) axes: Axes,
}

/// x fastest, channels slowest: as voxels lie in memory here.
pub(super) const PLANAR: [usize; 4] = [3, 2, 1, 0];

/// A voxel's channels beside each other, then x fastest.
pub(super) const INTERLEAVED: [usize; 4] = [0, 3, 2, 1];

/// How voxels are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Not at all.
    Raw,
    /// A gzip stream.
    Gzip,
    /// A zlib stream; some writers put a gzip stream there.
    Zlib,
}

/// Where data begin in their file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// So many lines after a byte.
    At {
        /// Bytes from the start of the file.
        byte: u64,
        /// Lines to be skipped from there.
        lines: u64,
    },
    /// They are the last bytes of the file.
    End,
}

impl Start {
    /// A byte of the file.
    pub(super) const fn byte(byte: u64) -> Self {
        Self::At { byte, lines: 0 }
    }
}

impl FlatHeader {
    /// An uncompressed file of one channel whose voxels begin at `byte`.
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
            start: Start::byte(byte),
            skip: 0,
            geometry: Geometry::default(),
            rescale: None,
            axes: Axes::default(),
        }
    }

    /// The same once lengths, product and geometry are known to be possible.
    pub(super) fn checked(self, path: &Path, name: &'static str) -> Result<Self> {
        let mut problems = Problems::default();
        if self.channels == 0 || self.shape.contains(&0) {
            problems.add(format!(
                "{} x {:?} (channels x z, y, x) holds no voxel",
                self.channels, self.shape
            ));
        }
        if !self.geometry.is_sound() {
            problems.add(format!(
                "spacing {:?} and affine {:?} must be finite, the spacing above 0 and no axis along others",
                self.geometry.spacing, self.geometry.affine
            ));
        }
        problems.check(path, name)?;
        let start = match self.start {
            Start::At { byte, .. } => byte,
            Start::End => 0,
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

    /// The volume's facts.
    pub(super) fn layout(&self, path: &Path) -> Layout {
        let codec = match self.encoding {
            Encoding::Raw => None,
            Encoding::Gzip => Some("gzip".to_owned()),
            Encoding::Zlib => Some("zlib".to_owned()),
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

    /// The distance between neighbours along c, z, y, x, in bytes. The header must be checked.
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

/// What is wrong with a header, all of it.
#[derive(Debug, Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// The most that a message tells of.
    const TOLD: usize = 20;

    /// An error that tells of every problem, or of the first [`TOLD`](Self::TOLD), if there are any.
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

/// Numbers with spaces between them, or `None` if any is no number of this type.
fn numbers<T: FromStr>(text: &str) -> Option<Vec<T>> {
    text.split_whitespace()
        .map(|word| word.parse().ok())
        .collect()
}

/// Finite numbers with spaces between them.
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

/// The next line from `at` on, without its end, and where the one after it begins; `None` at
/// the end of `bytes`.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
    let length = rest.iter().position(|&byte| byte == b'\n');
    let text = &rest[..length.unwrap_or(rest.len())];
    let next = at + length.map_or(rest.len(), |n| n + 1);
    Some((text.strip_suffix(b"\r").unwrap_or(text), next))
}

#[cfg(test)]
mod tests;
