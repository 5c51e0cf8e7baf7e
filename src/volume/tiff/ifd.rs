//! The directories of a TIFF or BigTIFF file: one for each page.
//!
//! Every length is checked against the file before anything is allocated, and a directory is never read twice.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Maximum number of pages.
pub(super) const MOST_PAGES: usize = 4_000_000;

/// Maximum number of entries of a directory.
const MOST_ENTRIES: u64 = 4096;

/// Maximum length of a description.
const LONGEST_TEXT: u64 = 64 << 20;

/// Maximum length of the tables of JPEG strips.
const LONGEST_TABLES: u64 = 1 << 20;

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
    pub(super) tables: Vec<u8>,
}

/// A page.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) form: PageForm,
    pub(super) offsets: Vec<u64>,
    pub(super) counts: Vec<u64>,
    /// The directories of coarser levels.
    pub(super) levels: Vec<u64>,
    /// `true` if it is a smaller version of a different page.
    pub(super) is_reduced: bool,
    pub(super) description: String,
    /// Pixels for each unit along y and x.
    pub(super) resolution: [Option<f64>; 2],
}

/// A file with directories.
#[derive(Debug)]
pub(super) struct Directories<'a> {
    file: &'a File,
    length: u64,
    pub(super) big_endian: bool,
    is_big: bool,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: u16,
    count: u64,
    /// The place of the values.
    at: u64,
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
        self.file.read_exact_at(&mut bytes, at)?;
        if self.big_endian {
            bytes.reverse();
        }
        Ok(bytes)
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

    fn raw(&self, entry: Entry, most: u64) -> Result<Vec<u8>, Problem> {
        let size = entry.count.checked_mul(size_of_kind(entry.kind));
        let end = size.and_then(|size| entry.at.checked_add(size));
        let (Some(size), Some(end)) = (size, end) else {
            return Err(broken("an entry is too long"));
        };
        if end > self.length || size > most {
            return Err(broken(format!(
                "an entry of {} values at {} is not in the file, which has {} bytes",
                entry.count, entry.at, self.length
            )));
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|error| broken(error.to_string()))?];
        self.file.read_exact_at(&mut bytes, entry.at)?;
        Ok(bytes)
    }

    /// Returns whole numbers.
    fn numbers(&self, entry: Entry) -> Result<Vec<u64>, Problem> {
        let bytes = self.raw(entry, u64::MAX)?;
        let word = |chunk: &[u8]| {
            let mut word = [0; 8];
            let part = &mut word[..chunk.len()];
            part.copy_from_slice(chunk);
            if self.big_endian {
                part.reverse();
            }
            u64::from_le_bytes(word)
        };
        match entry.kind {
            1 | 3 | 4 | 13 | 16 | 18 => {
                let size = size_of_kind(entry.kind);
                Ok(bytes
                    .chunks_exact(usize::try_from(size).unwrap_or(1))
                    .map(word)
                    .collect())
            }
            kind => Err(broken(format!(
                "an entry of type {kind} is not a whole number"
            ))),
        }
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
            u64::MAX,
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
        let (offsets, counts) = if is_tiled {
            (list(324)?, list(325)?)
        } else {
            (list(273)?, list(279)?)
        };
        check_blocks(
            [height, width],
            block,
            if planar { samples } else { 1 },
            (&offsets, &counts),
        )?;
        let tables = match find(347) {
            Some(entry) => self.raw(entry, LONGEST_TABLES)?,
            None => Vec::new(),
        };
        Ok(Page {
            form: PageForm {
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
                tables,
            },
            offsets,
            counts,
            levels: list(330)?,
            is_reduced: first(254, 0)? & 1 == 1,
            description: find(270).map_or(Ok(String::new()), |entry| self.text(entry))?,
            resolution: [283, 282].map(|tag| self.ratio(find(tag)?)),
        })
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
        let mut pages = Vec::new();
        let mut seen = HashSet::new();
        while at != 0 {
            if !seen.insert(at) {
                return Err(broken("its directories are a circle"));
            }
            if pages.len() == MOST_PAGES {
                return Err(broken(format!("it has more than {MOST_PAGES} pages")));
            }
            let (page, next) = self.page(at)?;
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
    (offsets, counts): (&[u64], &[u64]),
) -> Result<(), Problem> {
    let across = height
        .div_ceil(block[0])
        .checked_mul(width.div_ceil(block[1]));
    let expected = across.and_then(|n| n.checked_mul(planes));
    if expected == Some(offsets.len() as u64)
        && (counts.len() == offsets.len() || counts.is_empty())
    {
        return Ok(());
    }
    Err(broken(format!(
        "a page of {height} x {width} in blocks of {block:?} has {} offsets and {} lengths",
        offsets.len(),
        counts.len()
    )))
}
