//! Zip archives: the directory of their entries, and the bytes of each entry.
//!
//! An entry is a part of one file: where it begins, how long it is, and whether it is deflated. Zip64 archives are
//! read; encrypted entries and archives of several files are refused. Of entries with the same name the last counts, as
//! everywhere. The directory is checked against the length of the file before it is
//! read, and an entry is decompressed to the length that the directory promises, with its checksum.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::CrcReader;
use flate2::bufread::DeflateDecoder;

use super::format::excerpt;
use super::watch::FileWatch;
use crate::error::{Error, Result};
use crate::files::open_regular;

/// The first bytes of an archive.
pub(super) const ARCHIVE: &[u8] = b"PK\x03\x04";

/// The first bytes of an archive without entries.
const EMPTY: &[u8] = b"PK\x05\x06";

const NAME: &str = "zip";

/// Maximum bytes of a directory.
const MOST_DIRECTORY: u64 = 1 << 30;

/// Bytes of the records at the end of an archive, and of an entry.
const END: usize = 22;
const LOCATOR: usize = 20;
const END64: usize = 56;
const CENTRAL: usize = 46;
const LOCAL: usize = 30;

/// Maximum bytes of the comment after an archive.
const MOST_COMMENT: usize = u16::MAX as usize;

/// An open archive.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    watch: FileWatch,
    /// The directory as it is in the file. The names are in it.
    directory: Vec<u8>,
    /// Sorted by name.
    entries: Vec<Entry>,
}

/// An entry of an archive.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The place of the name in the directory.
    name: (u32, u16),
    method: u16,
    is_encrypted: bool,
    checksum: u32,
    /// The bytes that are stored, and those after decompression.
    stored: u64,
    length: u64,
    /// The start of the local header.
    header: u64,
}

/// The place of an entry that is stored as it is, or as a deflate stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// The bytes of the entry in the archive.
    pub(super) range: Range<u64>,
    /// `true` if they are a deflate stream.
    pub(super) is_deflated: bool,
    /// The bytes after decompression.
    pub(super) length: u64,
}

/// Returns `true` if a file with these first bytes is an archive.
pub(super) fn recognize(head: &[u8]) -> bool {
    head.starts_with(ARCHIVE) || head.starts_with(EMPTY)
}

/// Returns the archive that contains `path`, and the path in it: `a.zip/b/c` is `b/c` in `a.zip`.
pub(super) fn containing(path: &Path) -> Option<(PathBuf, String)> {
    let file = path.ancestors().find(|above| above.is_file())?;
    let mut head = [0; 4];
    let found = open_regular(file)
        .ok()
        .and_then(|open| open.read_exact_at(&mut head, 0).ok());
    found.filter(|()| recognize(&head))?;
    let inside = path.strip_prefix(file).ok()?.to_str()?;
    Some((file.to_path_buf(), inside.to_owned()))
}

impl Archive {
    /// Opens an archive and reads its directory.
    ///
    /// # Errors
    ///
    /// [`Error::Header`] if the file is not a whole archive, [`Error::Unsupported`] if it is a part of one or its
    /// directory is too large, and [`Error::Io`] if it cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let found = file.metadata().map_err(Error::io("look at", path))?;
        let mut watch = FileWatch::default();
        watch.add(path, &found);
        let place = find_directory(path, &file, found.len())?;
        let length = place.bytes.end - place.bytes.start;
        if length > MOST_DIRECTORY {
            let what = format!(
                "the directory of the archive has {length} bytes, more than the maximum of {MOST_DIRECTORY}: unpack it"
            );
            return Err(Error::unsupported(path, what));
        }
        let directory = read(path, &file, place.bytes.clone())?;
        let entries = parse(path, &directory, &place)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            watch,
            directory,
            entries,
        })
    }

    /// Returns the path of the archive.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the archive is the file that was opened, unchanged.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.watch.check()
    }

    /// Returns the names of the entries below `folder`, which ends with a slash or is empty, sorted.
    pub(super) fn names(&self, folder: &str) -> impl Iterator<Item = &str> {
        let from = self
            .entries
            .partition_point(|entry| self.name(entry) < folder.as_bytes());
        self.entries[from..]
            .iter()
            .map(|entry| self.name(entry))
            .take_while(|name| name.starts_with(folder.as_bytes()))
            .filter_map(|name| str::from_utf8(name).ok())
    }

    /// Returns the bytes that the entries below `folder` take.
    pub(super) fn stored_bytes(&self, folder: &str) -> u64 {
        let below = |entry: &&Entry| self.name(entry).starts_with(folder.as_bytes());
        let lengths = self.entries.iter().filter(below).map(|entry| entry.stored);
        lengths.fold(0, u64::saturating_add)
    }

    /// Returns the memory that the directory takes.
    pub(super) fn directory_bytes(&self) -> u64 {
        (self.directory.capacity() + size_of_val(self.entries.as_slice())) as u64
    }

    /// Returns `true` if there is an entry with this name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Returns the decompressed length of an entry; `None` if it does not exist.
    pub(super) fn length(&self, name: &str) -> Option<u64> {
        Some(self.find(name)?.length)
    }

    /// Returns the checksum of the decompressed bytes of an entry; `None` if it does not exist.
    pub(super) fn checksum(&self, name: &str) -> Option<u32> {
        Some(self.find(name)?.checksum)
    }

    /// Returns the place of an entry; `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if it is compressed in a way that is not read, and [`Error::Header`] if it is not in the
    /// file.
    pub(super) fn locate(&self, name: &str) -> Result<Option<Stored>> {
        let Some(entry) = self.find(name) else {
            return Ok(None);
        };
        let what = match entry.method {
            _ if entry.is_encrypted => "encrypted".to_owned(),
            0 if entry.stored != entry.length => {
                let problem = format!(
                    "{} is stored as {} bytes but should have {}",
                    excerpt(name),
                    entry.stored,
                    entry.length
                );
                return Err(self.broken(problem));
            }
            0 | 8 => {
                let range = self.range(name, entry)?;
                return Ok(Some(Stored {
                    range,
                    is_deflated: entry.method == 8,
                    length: entry.length,
                }));
            }
            method => format!("compressed by method {method}"),
        };
        let what = format!(
            "{} is {what}, but only stored and deflated entries are read: unpack the archive",
            excerpt(name)
        );
        Err(Error::unsupported(&self.path, what))
    }

    /// Returns the bytes of an entry in the file, behind its local header.
    fn range(&self, name: &str, entry: &Entry) -> Result<Range<u64>> {
        let mut header = [0; LOCAL];
        let length = self.watch.length(0);
        let end = entry.header.checked_add(LOCAL as u64);
        if end.is_none_or(|end| end > length) {
            return Err(self.broken(format!("{} is not in the file", excerpt(name))));
        }
        self.watch.check_file(0, &self.file)?;
        self.file
            .read_exact_at(&mut header, entry.header)
            .map_err(Error::io("read", &self.path))?;
        if !header.starts_with(ARCHIVE) {
            let problem = format!("{} has no header where the directory says", excerpt(name));
            return Err(self.broken(problem));
        }
        let behind = LOCAL as u64 + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let start = entry.header.saturating_add(behind);
        let end = start.checked_add(entry.stored).filter(|&end| end <= length);
        let Some(end) = end else {
            let problem = format!(
                "the {} bytes of {} from byte {start} are not in the file, which has {length}",
                entry.stored,
                excerpt(name)
            );
            return Err(self.broken(problem));
        };
        Ok(start..end)
    }

    /// Reads a range of a decompressed entry; `None` if it does not exist. `range` must be inside its length, and small
    /// enough for memory. The checksum is verified if the range is the whole entry.
    pub(super) fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        let (Some(entry), Some(stored)) = (self.find(name), self.locate(name)?) else {
            return Ok(None);
        };
        let failed = |error: io::Error| Error::io("read", &self.path)(error);
        if range.start > range.end || range.end > entry.length {
            let problem = format!(
                "bytes {range:?} of {} were requested, but it has {}",
                excerpt(name),
                entry.length
            );
            return Err(self.broken(problem));
        }
        let is_whole = range == (0..entry.length);
        let wanted = range.end - range.start;
        if !stored.is_deflated {
            let start = stored.range.start + range.start;
            let bytes = read(&self.path, &self.file, start..start + wanted)?;
            if is_whole {
                let mut crc = flate2::Crc::new();
                crc.update(&bytes);
                self.check_sum(name, entry, crc.sum())?;
            }
            return Ok(Some(bytes));
        }
        let damaged = |problem: &dyn std::fmt::Display| {
            let problem = format!("{} cannot be decompressed: {problem}", excerpt(name));
            Error::io("read", &self.path)(io::Error::new(io::ErrorKind::InvalidData, problem))
        };
        let packed = BufReader::with_capacity(64 << 10, self.part(stored.range));
        let mut stream = CrcReader::new(DeflateDecoder::new(packed));
        io::copy(&mut stream.by_ref().take(range.start), &mut io::sink())
            .map_err(|error| damaged(&error))?;
        let mut bytes = buffer(wanted).map_err(failed)?;
        stream
            .by_ref()
            .take(wanted)
            .read_to_end(&mut bytes)
            .map_err(|error| damaged(&error))?;
        if bytes.len() as u64 != wanted {
            let short = format!("it ends after {} bytes", range.start + bytes.len() as u64);
            return Err(damaged(&short));
        }
        if is_whole {
            self.check_sum(name, entry, stream.crc().sum())?;
        }
        Ok(Some(bytes))
    }

    fn check_sum(&self, name: &str, entry: &Entry, sum: u32) -> Result<()> {
        if sum == entry.checksum {
            return Ok(());
        }
        let problem = format!("the checksum of {} does not match its bytes", excerpt(name));
        let error = io::Error::new(io::ErrorKind::InvalidData, problem);
        Err(Error::io("read", &self.path)(error))
    }

    /// Prefetches a range of an entry that is not deflated, or all of one that is.
    pub(super) fn prefetch(&self, name: &str, range: impl FnOnce(u64) -> Range<u64>) {
        if let Some(entry) = self.find(name)
            && let wanted = range(entry.length)
            && let skip = if entry.method == 0 { wanted.start } else { 0 }
            && let start = entry
                .header
                .saturating_add(LOCAL as u64 + u64::from(entry.name.1))
            && let length = if entry.method == 0 {
                wanted.end.saturating_sub(wanted.start)
            } else {
                entry.stored
            }
            && let Some(length) = std::num::NonZeroU64::new(length)
        {
            #[cfg(not(target_vendor = "apple"))]
            let _ = rustix::fs::fadvise(
                &self.file,
                start.saturating_add(skip),
                Some(length),
                rustix::fs::Advice::WillNeed,
            );
            #[cfg(target_vendor = "apple")]
            let _ = (start, skip, length);
        }
    }

    fn part(&self, range: Range<u64>) -> FilePart<'_> {
        FilePart {
            file: &self.file,
            range,
        }
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        let at = self
            .entries
            .binary_search_by(|entry| self.name(entry).cmp(name.as_bytes()));
        at.ok().map(|at| &self.entries[at])
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        name_in(&self.directory, entry)
    }

    fn broken(&self, problem: String) -> Error {
        Error::header(&self.path, NAME, problem)
    }
}

/// A range of a file, as a reader.
struct FilePart<'a> {
    file: &'a File,
    range: Range<u64>,
}

impl Read for FilePart<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.range.end - self.range.start;
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        let count = self.file.read_at(&mut out[..most], self.range.start)?;
        self.range.start += count as u64;
        Ok(count)
    }
}

/// The place of a directory.
#[derive(Debug)]
struct DirectoryPlace {
    bytes: Range<u64>,
    entries: u64,
}

fn name_in<'a>(directory: &'a [u8], entry: &Entry) -> &'a [u8] {
    let (start, length) = entry.name;
    &directory[start as usize..][..usize::from(length)]
}

/// Finds the directory through the records at the end of the file.
fn find_directory(path: &Path, file: &File, length: u64) -> Result<DirectoryPlace> {
    let bad = |problem: String| Error::header(path, NAME, problem);
    let tail = length.min((MOST_COMMENT + END + LOCATOR) as u64);
    let tail_start = length - tail;
    let tail = read(path, file, tail_start..length)?;
    let is_end = |at: &usize| {
        let comment = usize::from(u16_at(&tail, at + 20));
        tail[*at..].starts_with(EMPTY) && at + END + comment <= tail.len()
    };
    let last = tail.len().checked_sub(END);
    let found = last.and_then(|last| (0..=last).rev().find(is_end));
    let Some(at) = found else {
        let problem = "it has no directory at its end: it is not a whole zip archive";
        return Err(bad(problem.to_owned()));
    };
    let end = &tail[at..];
    let mut entries = u64::from(u16_at(end, 10));
    let mut bytes = u64::from(u32_at(end, 12));
    let mut start = u64::from(u32_at(end, 16));
    let mut disks = [u32::from(u16_at(end, 4)), u32::from(u16_at(end, 6))];
    let mut behind = tail_start + at as u64;
    let locator = at.checked_sub(LOCATOR).map(|from| &tail[from..at]);
    if let Some(locator) = locator.filter(|locator| locator.starts_with(b"PK\x06\x07")) {
        let place = u64_at(locator, 8);
        let mut record = [0; END64];
        let own = behind - LOCATOR as u64;
        let is_inside = place
            .checked_add(END64 as u64)
            .is_some_and(|end| end <= own);
        if !is_inside
            || file.read_exact_at(&mut record, place).is_err()
            || !record.starts_with(b"PK\x06\x06")
        {
            return Err(bad("its zip64 record is not where it should be".to_owned()));
        }
        disks = [u32_at(&record, 16), u32_at(&record, 20)];
        entries = u64_at(&record, 32);
        bytes = u64_at(&record, 40);
        start = u64_at(&record, 48);
        behind = place;
    }
    if disks != [0, 0] {
        let what = "it is one of several files of an archive: join them first";
        return Err(Error::unsupported(path, what));
    }
    let directory_end = start.checked_add(bytes).filter(|&end| end <= behind);
    let Some(directory_end) = directory_end else {
        let problem = format!(
            "its directory of {bytes} bytes from byte {start} does not end before byte {behind}"
        );
        return Err(bad(problem));
    };
    if entries > bytes / CENTRAL as u64 {
        let problem = format!("{entries} entries are not in a directory of {bytes} bytes");
        return Err(bad(problem));
    }
    Ok(DirectoryPlace {
        bytes: start..directory_end,
        entries,
    })
}

/// Parses the directory.
fn parse(path: &Path, directory: &[u8], place: &DirectoryPlace) -> Result<Vec<Entry>> {
    let bad = |n: u64, problem: &str| {
        Error::header(path, NAME, format!("entry {n} of the directory {problem}"))
    };
    let count = usize::try_from(place.entries).map_err(|_| bad(0, "is one of too many"))?;
    let mut entries = Vec::new();
    entries
        .try_reserve_exact(count)
        .map_err(|_| bad(0, "is one of too many"))?;
    let mut at = 0;
    for n in 0..place.entries {
        let Some(record) = directory[at..].get(..CENTRAL) else {
            return Err(bad(n, "is cut off"));
        };
        if !record.starts_with(b"PK\x01\x02") {
            return Err(bad(n, "does not begin like an entry"));
        }
        let lengths = [28, 30, 32].map(|place| usize::from(u16_at(record, place)));
        let name = at + CENTRAL;
        let extra = name + lengths[0];
        let next = extra + lengths[1] + lengths[2];
        if next > directory.len() {
            return Err(bad(n, "is cut off"));
        }
        let mut entry = Entry {
            name: (
                u32::try_from(name).map_err(|_| bad(n, "is too far"))?,
                u16_at(record, 28),
            ),
            method: u16_at(record, 10),
            is_encrypted: u16_at(record, 8) & 1 != 0,
            checksum: u32_at(record, 16),
            stored: u64::from(u32_at(record, 20)),
            length: u64::from(u32_at(record, 24)),
            header: u64::from(u32_at(record, 42)),
        };
        widen(&mut entry, &directory[extra..extra + lengths[1]])
            .ok_or_else(|| bad(n, "lacks its zip64 numbers"))?;
        entries.push(entry);
        at = next;
    }
    // The sort is stable: of equal names, the last in the directory is the last here.
    entries.sort_by(|a, b| name_in(directory, a).cmp(name_in(directory, b)));
    entries.reverse();
    entries.dedup_by(|a, b| name_in(directory, a) == name_in(directory, b));
    entries.reverse();
    Ok(entries)
}

/// Replaces the numbers of an entry that do not fit in 32 bits by those of its zip64 field.
fn widen(entry: &mut Entry, mut extra: &[u8]) -> Option<()> {
    const FULL: u64 = u32::MAX as u64;
    let wide = [&mut entry.length, &mut entry.stored, &mut entry.header];
    if wide.iter().all(|number| **number != FULL) {
        return Some(());
    }
    let mut field: &[u8] = &[];
    while extra.len() >= 4 {
        let length = usize::from(u16_at(extra, 2));
        let content = extra.get(4..4 + length)?;
        if u16_at(extra, 0) == 1 {
            field = content;
        }
        extra = &extra[4 + length..];
    }
    for number in wide {
        if *number == FULL {
            let (value, rest) = field.split_at_checked(8)?;
            *number = u64_at(value, 0);
            field = rest;
        }
    }
    Some(())
}

/// Returns an empty buffer, or an error if memory is not enough.
fn buffer(length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = usize::try_from(length).map_err(io::Error::other)?;
    bytes.try_reserve_exact(length).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Reads a range of a file.
fn read(path: &Path, file: &File, range: Range<u64>) -> Result<Vec<u8>> {
    let wanted = range.end - range.start;
    let mut bytes = buffer(wanted).map_err(Error::io("read", path))?;
    let part = FilePart { file, range };
    let count = { part }.take(wanted).read_to_end(&mut bytes);
    if count.map_err(Error::io("read", path))? as u64 != wanted {
        return Err(Error::io("read", path)(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

#[cfg(test)]
pub(super) mod tests;
