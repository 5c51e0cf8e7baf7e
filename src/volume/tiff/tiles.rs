//! The tiles of a file that is written: their grid and their compression.

use flate2::write::ZlibEncoder;

use crate::error::{Error, Result};
use crate::region::{Region, Shape};
use crate::volume::{Codec, CreateOptions, Layout};

/// Maximum rows and columns of a tile if none are given.
const USUAL: u64 = 256;

/// Pages whose tiles are compressed together if no number is given.
const STACK: u64 = 32;

/// Maximum bytes of a tile.
const MOST_BYTES: u64 = 16 << 20;

/// The tiles of a file. All have the same size; those at the far edges have padding. A single tile of a page has none, and is
/// written as a strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TileGrid {
    /// Pages of a write chunk, and rows and columns of a tile.
    pub(super) chunk: Shape,
    /// Tiles along y and x of a page.
    pub(super) across: [u64; 2],
    pub(super) pages: u64,
    /// Bytes of a voxel.
    pub(super) size: u64,
}

impl TileGrid {
    /// Returns the tiles of an output, which [`check`](super::check) accepts.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the tiles are neither whole pages nor multiples of 16 voxels, empty, or larger than
    /// 16 MiB.
    pub(super) fn of(layout: &Layout, options: &CreateOptions) -> Result<Self> {
        let [_, rows, columns] = layout.shape;
        let mut chunk = options
            .tile
            .unwrap_or_else(|| [STACK, usual(rows), usual(columns)]);
        if chunk[1] >= rows && chunk[2] >= columns {
            chunk = [chunk[0], rows, columns];
        }
        let size = layout.dtype.size() as u64;
        let invalid = |problem: &str| Error::InvalidArgument {
            argument: "chunk",
            value: format!("{chunk:?}"),
            problem: problem.to_owned(),
        };
        let [stack, height, width] = chunk;
        let is_page = [height, width] == [rows, columns];
        if !is_page && [height, width].iter().any(|n| !n.is_multiple_of(16)) {
            return Err(invalid(
                "rows and columns of a tile of TIFF are multiples of 16, or those of the page",
            ));
        }
        let bytes = height
            .checked_mul(width)
            .and_then(|n| n.checked_mul(size))
            .filter(|&bytes| bytes <= MOST_BYTES);
        if stack == 0 || bytes.is_none_or(|bytes| bytes == 0) {
            return Err(invalid("a tile of TIFF has 1 byte to 16 MiB"));
        }
        let grid = Self {
            chunk,
            across: [rows.div_ceil(height), columns.div_ceil(width)],
            pages: layout.shape[0].saturating_mul(layout.channels),
            size,
        };
        let all = grid.pages.checked_mul(grid.per_page());
        let all = all.and_then(|all| all.checked_mul(grid.tile_bytes() + 64));
        if all.is_none_or(|bytes| bytes > 1 << 62) {
            return Err(Error::TooLarge {
                path: layout.path.clone(),
                channels: layout.channels,
                shape: layout.shape,
                dtype: layout.dtype,
            });
        }
        Ok(grid)
    }

    /// Returns the tiles of a page.
    pub(super) const fn per_page(&self) -> u64 {
        self.across[0] * self.across[1]
    }

    /// Returns the bytes of a tile before it is compressed.
    pub(super) const fn tile_bytes(&self) -> u64 {
        self.chunk[1] * self.chunk[2] * self.size
    }

    /// Returns the box of tile (y, x) of a page, with its padding. The page is at z = 0.
    pub(super) fn tile([_, height, width]: Shape, y: u64, x: u64) -> Region {
        crate::region::chunk_region([0, y, x], [1, height, width])
    }
}

/// Returns the length of the tiles of an axis: equal parts, rounded up to a multiple of 16, so that little is padding.
fn usual(length: u64) -> u64 {
    let count = length.div_ceil(USUAL).max(1);
    length.div_ceil(count).next_multiple_of(16).max(16)
}

/// A compression of tiles with its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Zlib(u32),
    Zstd(i32),
}

impl Packing {
    /// Returns the compression that the options ask for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if TIFF does not have it, or it has no such level.
    pub(super) fn of(options: &CreateOptions) -> Result<Self> {
        let invalid = |argument, value: String, problem: &str| {
            let problem = problem.to_owned();
            Err(Error::InvalidArgument {
                argument,
                value,
                problem,
            })
        };
        let level = options.clevel;
        match options.tile_codec {
            Codec::None => Ok(Self::None),
            Codec::Zlib => match level.unwrap_or(6) {
                level @ 0..=9 => Ok(Self::Zlib(level.into())),
                level => invalid(
                    "compression level",
                    level.to_string(),
                    "zlib has levels 0 to 9",
                ),
            },
            Codec::Zstd => match level.unwrap_or(3) {
                level @ 1..=22 => Ok(Self::Zstd(level.into())),
                level => invalid(
                    "compression level",
                    level.to_string(),
                    "zstd has levels 1 to 22",
                ),
            },
            other => invalid(
                "codec",
                format!("{other:?}"),
                "the tiles of TIFF are compressed by zlib (deflate) or zstd, or not at all",
            ),
        }
    }

    /// Returns the number of the compression in a directory.
    pub(super) const fn number(self) -> u16 {
        match self {
            Self::None => 1,
            Self::Zlib(_) => 8,
            Self::Zstd(_) => 50000,
        }
    }

    /// Returns the name of the codec, as it is reported for files that are read.
    pub(super) const fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Zlib(_) => Some("deflate"),
            Self::Zstd(_) => Some("zstd"),
        }
    }

    /// Compresses a tile.
    pub(super) fn packed(self, tile: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(tile.to_vec()),
            Self::Zlib(level) => {
                use std::io::Write;
                let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
                encoder.write_all(tile)?;
                encoder.finish()
            }
            Self::Zstd(level) => zstd::bulk::compress(tile, level),
        }
    }
}

/// Replaces each sample of a tile by its difference to the sample before it in the row, in native byte order:
/// predictor 2. `size` is the bytes of a sample, at most 4.
pub(super) fn differences(tile: &mut [u8], columns: usize, size: usize) {
    for row in tile.chunks_exact_mut(columns * size) {
        for at in (size..row.len()).step_by(size).rev() {
            let word = |at: usize| {
                let mut word = [0; 4];
                let bytes = &row[at..at + size];
                if cfg!(target_endian = "big") {
                    word[4 - size..].copy_from_slice(bytes);
                } else {
                    word[..size].copy_from_slice(bytes);
                }
                u32::from_ne_bytes(word)
            };
            let difference = word(at).wrapping_sub(word(at - size)).to_ne_bytes();
            let kept = if cfg!(target_endian = "big") {
                &difference[4 - size..]
            } else {
                &difference[..size]
            };
            row[at..at + size].copy_from_slice(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_that_are_not_given_have_little_padding() {
        for (length, tile) in [
            (1, 16),
            (16, 16),
            (250, 256),
            (256, 256),
            (257, 144),
            (512, 256),
        ] {
            assert_eq!(usual(length), tile);
        }
        for length in 1..5000 {
            let tile = usual(length);
            let count = length.div_ceil(tile);
            assert!(tile.is_multiple_of(16) && tile <= USUAL, "{length}");
            assert!(count * tile < length + 16 * count, "{length}");
        }
    }
}
