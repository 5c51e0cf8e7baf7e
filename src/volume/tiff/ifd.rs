//! The directories of a TIFF or BigTIFF file: one for each page.
//!
//! Every length is checked against the file before anything is allocated, and a directory is never read twice. The places
//! of blocks stay in the file: an image of 64 GiB in strips of one row has millions of them.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Maximum number of pages.
pub(super) const MOST_PAGES: usize = 4_000_000;

/// Maximum number of entries of a directory.
const MOST_ENTRIES: u64 = 4096;

/// Maximum length of a description.
const LONGEST_TEXT: u64 = 64 << 20;

/// Maximum length of the tables of JPEG strips.
const LONGEST_TABLES: u64 = 1 << 20;

/// Maximum number of whole numbers of an entry that is read as a whole: one for each sample of a pixel, or level.
const MOST_NUMBERS: u64 = 1 << 16;

/// Bytes of a directory that are read at a time. Most directories have a few hundred, and their values next to them.
const WINDOW: u64 = 4096;

/// Maximum bytes that are read with those after them.
const SHORT: u64 = 256;

/// The reason why a file cannot be read.
#[derive(Debug)]
pub(super) enum Problem {
    Io(io::Error),
    Header(String),
    Unsupported(String),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Header("the file ends inside a directory".to_owned())
        } else {
            Self::Io(error)
        }
    }
}

fn broken(problem: impl Into<String>) -> Problem {
    Problem::Header(problem.into())
}

/// The samples of a page, and how they are stored. Pages of a volume have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PageForm {
    pub(super) width: u64,
    pub(super) height: u64,
    /// Rows and columns of a tile, or of a strip.
    pub(super) block: [u64; 2],
    pub(super) is_tiled: bool,
    pub(super) bits: u64,
    pub(super) samples: u64,
    /// 1 unsigned, 2 signed, 3 floating point.
    pub(super) format: u64,
    pub(super) compression: u64,
    pub(super) predictor: u64,
    /// `true` if each sample has blocks of its own.
    pub(super) planar: bool,
    pub(super) photometric: u64,
    pub(super) big_endian: bool,
    pub(super) tables: Vec<u8>,
}

/// A page.
#[derive(Clone, Debug)]
pub(super) struct Page {
    /// Pages with the same form share it.
    pub(super) form: Arc<PageForm>,
    /// The places of its strips or tiles.
    pub(super) offsets: Entry,
    /// Their lengths, if the page has them.
    pub(super) counts: Option<Entry>,
    /// The place of the first, and its length, 0 if the page does not have it.
    pub(super) first: (u64, u64),
    /// The directories of coarser levels.
    pub(super) levels: Vec<u64>,
    /// `true` if it is a smaller version of a different page.
    pub(super) is_reduced: bool,
    pub(super) description: String,
    /// Pixels for each unit along y and x.
    pub(super) resolution: [Option<f64>; 2],
}

impl Page {
    /// Shares the form of another page if it is the same.
    pub(super) fn share_form(&mut self, other: &Self) {
        if self.form == other.form {
            self.form = Arc::clone(&other.form);
        }
    }
}

/// A file with directories.
#[derive(Debug)]
pub(super) struct Directories<'a> {
    file: &'a File,
    length: u64,
    big_endian: bool,
    is_big: bool,
    /// Bytes that were read last, with their place.
    window: RefCell<(u64, Vec<u8>)>,
}

/// An entry of a directory: numbers in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    kind: u16,
    pub(super) count: u64,
    /// The place of the values.
    at: u64,
}

impl Entry {
    /// Returns the place of value `n` and its bytes, at most 8.
    pub(super) fn place(&self, n: u64) -> (u64, usize) {
        let size = size_of_kind(self.kind);
        let at = self.at.saturating_add(n.saturating_mul(size));
        (at, usize::try_from(size).unwrap_or(8))
    }

    /// Returns `count` values from number `first` on.
    fn part(&self, first: u64, count: u64) -> Self {
        Self {
            at: self.place(first).0,
            count,
            ..*self
        }
    }
}

/// The lists of the places and lengths of the blocks of a page, and the first of each.
type BlockLists = (Entry, Option<Entry>, (u64, u64));

/// Returns the whole number in at most 8 bytes.
pub(super) fn whole(bytes: &[u8], big_endian: bool) -> u64 {
    let mut word = [0; 8];
    let part = &mut word[..bytes.len()];
    part.copy_from_slice(bytes);
    if big_endian {
        part.reverse();
    }
    u64::from_le_bytes(word)
}

/// Returns the bytes of a value of this type.
const fn size_of_kind(kind: u16) -> u64 {
    match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16..=18 => 8,
        _ => 0,
    }
}

/// Returns `true` if the first bytes of a file are those of a TIFF or BigTIFF file.
pub(in super::super) fn recognize(head: &[u8]) -> bool {
    matches!(
        head.first_chunk(),
        Some(b"II*\0" | b"MM\0*" | b"II+\0" | b"MM\0+")
    )
}

impl<'a> Directories<'a> {
    /// Reads the header of a file of `length` bytes. Returns the place of the first directory with it.
    pub(super) fn open(file: &'a File, length: u64) -> Result<(Self, u64), Problem> {
        let mut head = [0; 16];
        let filled = usize::try_from(length.min(16)).unwrap_or(16);
        file.read_exact_at(&mut head[..filled], 0)?;
        if !recognize(&head) {
            return Err(broken("it does not begin like a TIFF file"));
        }
        let mut own = Self {
            file,
            length,
            big_endian: head[0] == b'M',
            is_big: head[2] == 43 || head[3] == 43,
            window: RefCell::default(),
        };
        let first = if own.is_big {
            if own.u16_of([head[4], head[5]]) != 8 {
                return Err(broken("its offsets do not have 8 bytes"));
            }
            own.u64(8)?
        } else {
            own.u32(4)?
        };
        own.is_big = own.is_big && filled == 16;
        Ok((own, first))
    }

    /// Creates the directories of a file whose header was read before, to read the tables of its pages.
    pub(super) fn again(file: &'a File, length: u64, big_endian: bool) -> Self {
        Self {
            file,
            length,
            big_endian,
            is_big: false,
            window: RefCell::default(),
        }
    }

    fn u16_of(&self, bytes: [u8; 2]) -> u16 {
        if self.big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }
    }

    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], Problem> {
        let end = at.checked_add(N as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(broken(format!(
                "{N} bytes at {at} are not in the file, which has {}",
                self.length
            )));
        }
        let mut bytes = [0; N];
        self.fill(&mut bytes, at)?;
        if self.big_endian {
            bytes.reverse();
        }
        Ok(bytes)
    }

    /// Fills `out` with bytes that are inside the file. Short ones are read with those after them.
    fn fill(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        let size = out.len() as u64;
        let mut window = self.window.borrow_mut();
        let (start, bytes) = &mut *window;
        if at < *start || at + size > *start + bytes.len() as u64 {
            if size > SHORT {
                return self.file.read_exact_at(out, at);
            }
            let length = usize::try_from(WINDOW.min(self.length.saturating_sub(at)));
            bytes.resize(length.unwrap_or(0).max(out.len()), 0);
            *start = at;
            if let Err(error) = self.file.read_exact_at(bytes, at) {
                bytes.clear();
                return Err(error);
            }
        }
        let first = usize::try_from(at - *start).unwrap_or(usize::MAX);
        out.copy_from_slice(&bytes[first..first + out.len()]);
        Ok(())
    }

    fn u16(&self, at: u64) -> Result<u64, Problem> {
        Ok(u64::from(u16::from_le_bytes(self.bytes(at)?)))
    }

    fn u32(&self, at: u64) -> Result<u64, Problem> {
        Ok(u64::from(u32::from_le_bytes(self.bytes(at)?)))
    }

    fn u64(&self, at: u64) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.bytes(at)?))
    }

    /// Checks that the values of an entry are in the file. Returns their bytes.
    fn inside(&self, entry: Entry) -> Result<u64, Problem> {
        let size = entry.count.checked_mul(size_of_kind(entry.kind));
        let end = size.and_then(|size| entry.at.checked_add(size));
        let (Some(size), Some(end)) = (size, end) else {
            return Err(broken("an entry is too long"));
        };
        if end > self.length {
            return Err(broken(format!(
                "an entry of {} values at {} is not in the file, which has {} bytes",
                entry.count, entry.at, self.length
            )));
        }
        Ok(size)
    }

    fn raw(&self, entry: Entry, most: u64) -> Result<Vec<u8>, Problem> {
        let size = self.inside(entry)?;
        if size > most {
            return Err(broken(format!(
                "an entry of {} values has more than the maximum of {most} bytes",
                entry.count
            )));
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|error| broken(error.to_string()))?];
        self.fill(&mut bytes, entry.at)?;
        Ok(bytes)
    }

    /// Checks that the values of an entry are whole numbers in the file.
    fn are_whole(&self, entry: Entry) -> Result<(), Problem> {
        if !matches!(entry.kind, 1 | 3 | 4 | 13 | 16 | 18) {
            return Err(broken(format!(
                "an entry of type {} is not a whole number",
                entry.kind
            )));
        }
        self.inside(entry).map(|_| ())
    }

    /// Returns whole numbers.
    pub(super) fn numbers(&self, entry: Entry) -> Result<Vec<u64>, Problem> {
        self.are_whole(entry)?;
        let bytes = self.raw(entry, 8 * MOST_NUMBERS)?;
        let size = entry.place(0).1;
        let words = bytes.chunks_exact(size);
        Ok(words.map(|word| whole(word, self.big_endian)).collect())
    }

    /// Returns the first number of a list. The rest of the list is not read with it.
    fn first_of(&self, list: Entry) -> Result<u64, Problem> {
        let ((at, size), mut bytes) = (list.place(0), [0; 8]);
        let (start, held) = (self.window.borrow().0, self.window.borrow().1.len() as u64);
        let word = &mut bytes[..size];
        if at >= start && at + size as u64 <= start + held {
            self.fill(word, at)?;
        } else {
            self.file.read_exact_at(word, at)?;
        }
        Ok(whole(word, self.big_endian))
    }

    /// Calls `each` with the place and the length of each block of a page, up to the first for which it returns `false`.
    /// Returns `true` if there is none. A block whose length is not in the file has 0.
    pub(super) fn all_blocks(
        &self,
        page: &Page,
        mut each: impl FnMut(u64, u64) -> bool,
    ) -> Result<bool, Problem> {
        const PART: usize = 8192;
        let count = page.offsets.count;
        for first in (0..count).step_by(PART) {
            let part = (PART as u64).min(count - first);
            let offsets = self.numbers(page.offsets.part(first, part))?;
            let counts = page
                .counts
                .map(|entry| self.numbers(entry.part(first, part)));
            let counts = counts.transpose()?;
            for (n, &offset) in offsets.iter().enumerate() {
                let length = counts.as_ref().map_or(0, |counts| counts[n]);
                if !each(offset, length) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn text(&self, entry: Entry) -> Result<String, Problem> {
        let bytes = self.raw(entry, LONGEST_TEXT)?;
        let text = String::from_utf8(bytes).unwrap_or_else(|error| {
            // Latin-1, as some writers of micrometers use.
            error.as_bytes().iter().copied().map(char::from).collect()
        });
        Ok(text.trim_end_matches('\0').to_owned())
    }

    /// Returns the page whose directory is at `at`, and the place of the next directory, 0 if there is none.
    pub(super) fn page(&self, at: u64) -> Result<(Page, u64), Problem> {
        let (count, first, size) = if self.is_big {
            (self.u64(at)?, at.saturating_add(8), 20)
        } else {
            (self.u16(at)?, at.saturating_add(2), 12)
        };
        if count > MOST_ENTRIES {
            return Err(broken(format!("a directory has {count} entries")));
        }
        let entries = count * size;
        let table = self.raw(
            Entry {
                kind: 1,
                count: entries,
                at: first,
            },
            20 * MOST_ENTRIES,
        )?;
        let mut all: Vec<(u16, Entry)> = Vec::new();
        for (n, row) in (0_u64..).zip(table.chunks_exact(usize::try_from(size).unwrap_or(12))) {
            let tag = self.u16_of([row[0], row[1]]);
            let kind = self.u16_of([row[2], row[3]]);
            let place = first + n * size;
            let count = if self.is_big {
                self.u64(place + 4)?
            } else {
                self.u32(place + 4)?
            };
            let value = place + if self.is_big { 12 } else { 8 };
            let room = if self.is_big { 8 } else { 4 };
            let bytes = count.saturating_mul(size_of_kind(kind));
            let at = if bytes <= room {
                value
            } else if self.is_big {
                self.u64(value)?
            } else {
                self.u32(value)?
            };
            all.push((tag, Entry { kind, count, at }));
        }
        let end = first + entries;
        let next = if self.is_big {
            self.u64(end)
        } else {
            self.u32(end)
        };
        // Some writers leave out the place of the next directory at the end of a file.
        let next = next.unwrap_or(0);
        Ok((self.parsed(&all)?, next))
    }

    fn parsed(&self, all: &[(u16, Entry)]) -> Result<Page, Problem> {
        let find = |tag: u16| {
            all.iter()
                .find(|(own, _)| *own == tag)
                .map(|(_, entry)| *entry)
        };
        let first = |tag: u16, default: u64| -> Result<u64, Problem> {
            match find(tag) {
                Some(entry) => {
                    let one = Entry {
                        count: entry.count.min(1),
                        ..entry
                    };
                    Ok(self.numbers(one)?.first().copied().unwrap_or(default))
                }
                None => Ok(default),
            }
        };
        let list = |tag: u16| find(tag).map_or(Ok(Vec::new()), |entry| self.numbers(entry));
        let [width, height] = [first(256, 0)?, first(257, 0)?];
        let samples = first(277, 1)?;
        let same = |name: &str, tag: u16, default: u64| -> Result<u64, Problem> {
            let all = list(tag)?;
            let value = all.first().copied().unwrap_or(default);
            if all.iter().any(|other| *other != value) {
                return Err(Problem::Unsupported(format!(
                    "its samples have different {name}: {:?}",
                    &all[..all.len().min(8)]
                )));
            }
            Ok(value)
        };
        let bits = same("numbers of bits", 258, 1)?;
        let format = same("formats", 339, 1)?;
        let is_tiled = find(322).is_some();
        let block = if is_tiled {
            [first(323, 0)?, first(322, 0)?]
        } else {
            [first(278, u64::MAX)?.min(height), width]
        };
        if width == 0 || height == 0 || samples == 0 || block.contains(&0) {
            return Err(broken(format!(
                "a page of {height} x {width} x {samples} in blocks of {block:?} has no voxels"
            )));
        }
        if first(32997, 1)? != 1 || first(32998, 1)? != 1 {
            return Err(Problem::Unsupported(
                "pages that are volumes (ImageDepth) are not read".to_owned(),
            ));
        }
        if first(266, 1)? != 1 {
            return Err(Problem::Unsupported(
                "bits in reverse order (FillOrder 2) are not read".to_owned(),
            ));
        }
        let planar = samples > 1 && first(284, 1)? == 2;
        let tags: [u16; 2] = if is_tiled { [324, 325] } else { [273, 279] };
        let planes = if planar { samples } else { 1 };
        let (offsets, counts, first_block) =
            self.blocks(tags.map(find), [height, width], block, planes)?;
        let tables = match find(347) {
            Some(entry) => self.raw(entry, LONGEST_TABLES)?,
            None => Vec::new(),
        };
        Ok(Page {
            form: Arc::new(PageForm {
                width,
                height,
                block,
                is_tiled,
                bits,
                samples,
                format,
                compression: first(259, 1)?,
                predictor: first(317, 1)?,
                planar,
                photometric: first(262, 1)?,
                big_endian: self.big_endian,
                tables,
            }),
            offsets,
            counts,
            first: first_block,
            levels: list(330)?,
            is_reduced: first(254, 0)? & 1 == 1,
            description: find(270).map_or(Ok(String::new()), |entry| self.text(entry))?,
            resolution: [283, 282].map(|tag| self.ratio(find(tag)?)),
        })
    }

    /// Returns the lists of the places and lengths of the blocks of a page, and the first of each, after checking how long
    /// the lists are.
    fn blocks(
        &self,
        [offsets, counts]: [Option<Entry>; 2],
        page: [u64; 2],
        block: [u64; 2],
        planes: u64,
    ) -> Result<BlockLists, Problem> {
        let none = Entry {
            kind: 4,
            count: 0,
            at: 0,
        };
        let offsets = offsets.unwrap_or(none);
        let counts = counts.filter(|counts| counts.count > 0);
        for entry in [Some(offsets), counts].into_iter().flatten() {
            self.are_whole(entry)?;
        }
        let lengths = [offsets.count, counts.map_or(0, |counts| counts.count)];
        check_blocks(page, block, planes, lengths)?;
        let length = counts.map_or(Ok(0), |counts| self.first_of(counts))?;
        Ok((offsets, counts, (self.first_of(offsets)?, length)))
    }

    /// Returns a fraction above 0.
    fn ratio(&self, entry: Entry) -> Option<f64> {
        if entry.kind != 5 || entry.count != 1 {
            return None;
        }
        let (above, below) = (self.u32(entry.at).ok()?, self.u32(entry.at + 4).ok()?);
        let float = |n: u64| u32::try_from(n).map_or(f64::NAN, f64::from);
        let value = float(above) / float(below);
        (value.is_finite() && value > 0.0).then_some(value)
    }

    /// Returns all pages, from the directory at `at` on.
    pub(super) fn pages(&self, mut at: u64) -> Result<Vec<Page>, Problem> {
        let mut pages: Vec<Page> = Vec::new();
        let mut seen = HashSet::new();
        while at != 0 {
            if !seen.insert(at) {
                return Err(broken("its directories are a circle"));
            }
            if pages.len() == MOST_PAGES {
                return Err(broken(format!("it has more than {MOST_PAGES} pages")));
            }
            let (mut page, next) = self.page(at)?;
            if let Some(before) = pages.last() {
                page.share_form(before);
            }
            pages.push(page);
            at = next;
        }
        if pages.is_empty() {
            return Err(broken("it has no pages"));
        }
        Ok(pages)
    }
}

/// Checks that a page has as many offsets and lengths as blocks.
fn check_blocks(
    [height, width]: [u64; 2],
    block: [u64; 2],
    planes: u64,
    [offsets, counts]: [u64; 2],
) -> Result<(), Problem> {
    let across = height
        .div_ceil(block[0])
        .checked_mul(width.div_ceil(block[1]));
    let expected = across.and_then(|n| n.checked_mul(planes));
    if expected == Some(offsets) && (counts == offsets || counts == 0) {
        return Ok(());
    }
    Err(broken(format!(
        "a page of {height} x {width} in blocks of {block:?} has {offsets} offsets and {counts} lengths"
    )))
}
