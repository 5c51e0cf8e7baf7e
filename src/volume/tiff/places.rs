//! The places of blocks in the tables of pages, read where they are needed.

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
    /// The blocks of a page that have the same sample of pixels, or all of them.
    per_plane: u64,
    /// For each channel, sample and slice, its table.
    tables: Vec<PageTable>,
}

/// The table of a page, from its first block of a sample on.
#[derive(Debug)]
struct PageTable {
    file: u32,
    first: u64,
    offsets: Entry,
    counts: Entry,
}

impl PageTables {
    /// Creates the tables of an image whose pages have their `separate` samples apart, each in `per_plane` blocks. All
    /// pages must have lengths of blocks.
    pub(super) fn new(image: &Image, [separate, per_plane]: [u64; 2], count: u64) -> Self {
        let table = |(page, sample): (usize, u64)| {
            let (file, page) = &image.pages[page];
            Some(PageTable {
                file: *file,
                first: sample * per_plane,
                offsets: page.offsets,
                counts: page.counts?,
            })
        };
        Self {
            big_endian: image.form.big_endian,
            count,
            per_plane,
            tables: image.in_block_order(separate).filter_map(table).collect(),
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
        let number = number as u64;
        let table = usize::try_from(number / self.per_plane).unwrap_or(usize::MAX);
        let table = &self.tables[table];
        let n = table.first + number % self.per_plane;
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
