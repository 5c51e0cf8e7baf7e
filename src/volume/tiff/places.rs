//! The places of blocks that are not listed: those in the tables of pages, which are read where they are needed, and those
//! that follow from the place of a page.

use super::super::blocks::{Block, BlockTables, Files};
use super::Image;
use super::ifd::{Entry, whole};
use crate::error::{Error, Result};

/// The tables of the pages of a volume. An image of 64 GiB in strips of one row has millions of blocks, whose list would
/// take hundreds of MiB.
#[derive(Debug)]
pub(super) struct PageTables {
    big_endian: bool,
    count: u64,
    /// The samples of pixels that pages have apart, and the blocks of each.
    separate: u64,
    per_plane: u64,
    slices: u64,
    /// The table of each page, in the order t, c, z.
    tables: Vec<PageTable>,
}

/// The table of a page.
#[derive(Debug)]
struct PageTable {
    file: u32,
    offsets: Entry,
    counts: Entry,
}

impl PageTables {
    /// Creates the tables of an image whose pages have their `separate` samples apart, each in `per_plane` blocks. All
    /// pages must have lengths of blocks.
    pub(super) fn new(image: &Image, [separate, per_plane]: [u64; 2], count: u64) -> Self {
        let table = |&page: &usize| {
            let (file, page) = &image.pages[page];
            Some(PageTable {
                file: *file,
                offsets: page.offsets,
                counts: page.counts?,
            })
        };
        Self {
            big_endian: image.form.big_endian,
            count,
            separate,
            per_plane,
            slices: image.axes.slices,
            tables: image.planes.iter().filter_map(table).collect(),
        }
    }
}

impl BlockTables for PageTables {
    fn count(&self) -> u64 {
        self.count
    }

    fn bytes(&self) -> u64 {
        size_of_val(self.tables.as_slice()) as u64
    }

    fn block(&self, number: usize, files: &Files) -> Result<Block> {
        // Blocks are in the order channel, sample, slice.
        let (plane, n) = (
            number as u64 / self.per_plane,
            number as u64 % self.per_plane,
        );
        let (above, slice) = (plane / self.slices, plane % self.slices);
        let (channel, sample) = (above / self.separate, above % self.separate);
        let table = usize::try_from(channel * self.slices + slice).unwrap_or(usize::MAX);
        let table = &self.tables[table];
        let n = sample * self.per_plane + n;
        let file = table.file as usize;
        let value = |entry: &Entry| -> Result<u64> {
            let (at, size) = entry.place(n);
            let mut bytes = [0; 8];
            let length = files.watch().length(file);
            if at.checked_add(size as u64).is_none_or(|end| end > length) {
                let problem = format!("the place of block {n} of a page is not in the file");
                return Err(Error::header(
                    files.watch().path(file),
                    super::NAME,
                    problem,
                ));
            }
            files.read(file, &mut bytes[..size], at)?;
            Ok(whole(&bytes[..size], self.big_endian))
        };
        Ok(Block {
            file: table.file,
            offset: value(&table.offsets)?,
            length: value(&table.counts)?,
        })
    }
}

/// Rows of uncompressed pages whose strips follow each other, cut anew.
#[derive(Debug)]
pub(super) struct Pieces {
    /// The file and the first byte of each page, in the order t, c, z.
    starts: Vec<(u32, u64)>,
    per_page: u64,
    /// The rows of a piece and of a page, and the bytes of a row.
    rows: u64,
    height: u64,
    row: u64,
}

impl Pieces {
    /// Creates the pieces of `rows` rows of `row` bytes.
    pub(super) fn new(image: &Image, rows: u64, row: u64) -> Self {
        let start = |&page: &usize| {
            let (file, page) = &image.pages[page];
            (*file, page.first.0)
        };
        Self {
            starts: image.planes.iter().map(start).collect(),
            per_page: image.form.height.div_ceil(rows),
            rows,
            height: image.form.height,
            row,
        }
    }
}

impl BlockTables for Pieces {
    fn count(&self) -> u64 {
        self.per_page.saturating_mul(self.starts.len() as u64)
    }

    fn bytes(&self) -> u64 {
        size_of_val(self.starts.as_slice()) as u64
    }

    fn block(&self, number: usize, _: &Files) -> Result<Block> {
        let page = usize::try_from(number as u64 / self.per_page).unwrap_or(usize::MAX);
        let (file, start) = self.starts[page];
        let first = number as u64 % self.per_page * self.rows;
        let count = self.rows.min(self.height - first);
        Ok(Block {
            file,
            offset: start.saturating_add(first.saturating_mul(self.row)),
            length: count.saturating_mul(self.row),
        })
    }
}
