//! The directories of a file that is written. All are before the voxels, and their places follow from the number of pages
//! and tiles, so that the place of a tile can be entered at any time.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;

use super::description::description;
use super::tiles::{Packing, TileGrid};
use crate::dtype::DType;
use crate::error::Result;
use crate::volume::Layout;

/// Types of values in directories.
const ASCII: u16 = 2;
const SHORT: u16 = 3;
const LONG: u16 = 4;
const RATIONAL: u16 = 5;
const LONG8: u16 = 16;

/// Bytes before the first directory, of an entry, and of a directory apart from its entries.
const HEAD: u64 = 16;
const ENTRY: u64 = 20;
const AROUND: u64 = 16;

/// Entries of the first directory, which has the description and the name of the software, and of the others. Tiles and
/// strips have as many.
const FIRST: u64 = 17;
const OTHER: u64 = 15;

const SOFTWARE: &[u8] = b"voxpatch\0";

/// Returns the pixels along x and y for each centimeter, and the number of that unit. Programs that do not read OME-XML,
/// such as ITK, take the spacing from them. If they are not known or not numbers of 32 bits, no unit is named.
fn resolution(layout: &Layout) -> [u64; 3] {
    const MILLION: f64 = 1e6;
    let [_, y, x] = layout.geometry.spacing;
    let fraction = |spacing: f64| -> Option<u64> {
        let value = 10.0 / spacing;
        let below = MILLION.min((f64::from(u32::MAX) / value).floor());
        let above = (value * below).round();
        let is_exact = above >= 1e3 && below >= 1.0 && above <= f64::from(u32::MAX);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be numbers of 32 bits"
        )]
        let words = is_exact.then_some([above as u32, below as u32]);
        let [above, below] = words?;
        let bytes = [above.to_ne_bytes(), below.to_ne_bytes()].concat();
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    match (fraction(x), fraction(y), layout.geometry.is_known) {
        (Some(x), Some(y), true) => [x, y, 3],
        _ => [fraction(10.0), fraction(10.0), Some(1)].map(Option::unwrap_or_default),
    }
}

/// The directories of a file. A page of a single tile has one strip instead: ITK reads tiles of gray values as colors.
#[derive(Debug)]
pub(super) struct Directories {
    grid: TileGrid,
    /// Rows and columns of a page.
    page: [u64; 2],
    dtype: DType,
    packing: Packing,
    /// 2 if tiles have differences of neighbors.
    predictor: u16,
    /// Pixels along x and y for each unit of length, as values of entries, and the number of the unit.
    resolution: [u64; 3],
    /// The description, which ends with a zero.
    text: Vec<u8>,
}

impl Directories {
    /// Creates the directories of an output.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`](crate::Error::Unsupported) if OME-XML cannot describe the volume.
    pub(super) fn new(layout: &Layout, grid: TileGrid, packing: Packing) -> Result<Self> {
        let mut text = description(layout)?.into_bytes();
        text.push(0);
        let is_float = matches!(layout.dtype, DType::F16 | DType::F32 | DType::F64);
        let differs = packing != Packing::None && !is_float && layout.dtype.size() <= 4;
        Ok(Self {
            grid,
            page: [layout.shape[1], layout.shape[2]],
            dtype: layout.dtype,
            packing,
            predictor: if differs { 2 } else { 1 },
            resolution: resolution(layout),
            text,
        })
    }

    /// Returns `true` if tiles have differences of neighbors.
    pub(super) const fn has_differences(&self) -> bool {
        self.predictor == 2
    }

    /// Returns the place of the directory of a page; of the page after the last, the end of all directories.
    const fn directory(page: u64) -> u64 {
        match page {
            0 => HEAD,
            _ => HEAD + AROUND + FIRST * ENTRY + (page - 1) * (AROUND + OTHER * ENTRY),
        }
    }

    /// Returns the place of the first table of offsets.
    fn tables(&self) -> u64 {
        let texts = (self.text.len() + SOFTWARE.len()) as u64;
        (Self::directory(self.grid.pages) + texts).next_multiple_of(8)
    }

    /// Returns the place of the first tile: a multiple of 64, so that tiles are aligned for programs that map the file.
    pub(super) fn end(&self) -> u64 {
        let tables = match self.grid.per_page() {
            1 => 0,
            tiles => self.grid.pages * tiles * 16,
        };
        (self.tables() + tables).next_multiple_of(64)
    }

    /// Returns the places of the offsets and of the lengths of the tiles of a page. Each has 8 bytes for a tile.
    pub(super) fn tables_of(&self, page: u64) -> [Range<u64>; 2] {
        let tiles = self.grid.per_page();
        let [offsets, counts] = if tiles == 1 {
            // A single value is in its entry: those of a strip are behind 5 and 9 others, and the description.
            let texts = u64::from(page == 0);
            [5, 9].map(|entry| Self::directory(page) + 8 + (entry + texts) * ENTRY + 12)
        } else {
            let offsets = self.tables() + page * tiles * 16;
            [offsets, offsets + tiles * 8]
        };
        [offsets, counts].map(|start| start..start + tiles * 8)
    }

    /// Returns the place of a tile that is not compressed.
    pub(super) fn place(&self, page: u64, tile: u64) -> u64 {
        self.end() + (page * self.grid.per_page() + tile) * self.grid.tile_bytes()
    }

    /// Writes the directories at the start of an empty file: with the places of the tiles unless they are compressed,
    /// with zeros instead if they are.
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(if cfg!(target_endian = "big") {
            b"MM"
        } else {
            b"II"
        })?;
        for word in [43_u16, 8, 0] {
            out.write_all(&word.to_ne_bytes())?;
        }
        out.write_all(&HEAD.to_ne_bytes())?;
        for page in 0..self.grid.pages {
            self.write_directory(&mut out, page)?;
        }
        out.write_all(&self.text)?;
        out.write_all(SOFTWARE)?;
        let texts = (self.text.len() + SOFTWARE.len()) as u64;
        for _ in Self::directory(self.grid.pages) + texts..self.tables() {
            out.write_all(&[0])?;
        }
        if self.packing == Packing::None && self.grid.per_page() > 1 {
            let length = self.grid.tile_bytes().to_ne_bytes();
            for page in 0..self.grid.pages {
                for tile in 0..self.grid.per_page() {
                    out.write_all(&self.place(page, tile).to_ne_bytes())?;
                }
                for _ in 0..self.grid.per_page() {
                    out.write_all(&length)?;
                }
            }
        }
        out.flush()
    }

    fn write_directory(&self, out: &mut impl Write, page: u64) -> io::Result<()> {
        let kind: u16 = match self.dtype {
            DType::F16 | DType::F32 | DType::F64 => 3,
            DType::I8 | DType::I16 | DType::I32 | DType::I64 => 2,
            _ => 1,
        };
        let tiles = self.grid.per_page();
        let [offsets, counts] = match (tiles, self.packing) {
            (1, Packing::None) => [self.place(page, 0), self.grid.tile_bytes()],
            (1, _) => [0, 0],
            _ => self.tables_of(page).map(|range| range.start),
        };
        let is_first = page == 0;
        let texts = Self::directory(self.grid.pages);
        let length = self.text.len() as u64;
        let [rows, columns] = self.page;
        let description = [(270, ASCII, length, texts)];
        let software = [(305, ASCII, SOFTWARE.len() as u64, texts + length)];
        let [along_x, along_y, unit] = self.resolution;
        let resolution = [
            (282, RATIONAL, 1, along_x),
            (283, RATIONAL, 1, along_y),
            (296, SHORT, 1, unit),
        ];
        let own = |entry: [(u16, u16, u64, u64); 1]| entry.into_iter().filter(move |_| is_first);
        let form = [
            (256, LONG, 1, columns),
            (257, LONG, 1, rows),
            (258, SHORT, 1, 8 * self.grid.size),
            (259, SHORT, 1, u64::from(self.packing.number())),
            (262, SHORT, 1, 1),
        ];
        // A strip has its entries around the samples of a pixel, with the orientation; tiles have theirs behind them.
        let strip = [
            (273, LONG8, 1, offsets),
            (274, SHORT, 1, 1),
            (277, SHORT, 1, 1),
            (278, LONG, 1, rows),
            (279, LONG8, 1, counts),
        ];
        let tile = [
            (322, LONG, 1, self.grid.chunk[2]),
            (323, LONG, 1, self.grid.chunk[1]),
            (324, LONG8, tiles, offsets),
            (325, LONG8, tiles, counts),
        ];
        let (before, behind) = match tiles {
            1 => (&strip[..], &tile[..0]),
            _ => (&strip[2..3], &tile[..]),
        };
        let entries = form
            .into_iter()
            .chain(own(description))
            .chain(before.iter().copied())
            .chain(resolution)
            .chain(own(software))
            .chain([(317, SHORT, 1, u64::from(self.predictor))])
            .chain(behind.iter().copied())
            .chain([(339, SHORT, 1, u64::from(kind))]);
        let count = if is_first { FIRST } else { OTHER };
        out.write_all(&count.to_ne_bytes())?;
        for (tag, form, count, value) in entries {
            out.write_all(&tag.to_ne_bytes())?;
            out.write_all(&form.to_ne_bytes())?;
            out.write_all(&count.to_ne_bytes())?;
            let mut bytes = [0; 8];
            match form {
                SHORT => {
                    bytes[..2].copy_from_slice(&u16::try_from(value).unwrap_or(0).to_ne_bytes());
                }
                LONG => {
                    bytes[..4].copy_from_slice(&u32::try_from(value).unwrap_or(0).to_ne_bytes());
                }
                _ => bytes = value.to_ne_bytes(),
            }
            out.write_all(&bytes)?;
        }
        let next = match page + 1 {
            next if next < self.grid.pages => Self::directory(next),
            _ => 0,
        };
        out.write_all(&next.to_ne_bytes())
    }
}
