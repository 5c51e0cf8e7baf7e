//! An append-only list of finished chunks, in a file that survives crashes.
//!
//! ```text
//! voxpatch journal 1\n | length: u64 | crc32c of the head: u32 | head: JSON | record | record | ...
//! record: level u32 | stored u32 | channel u64 | z u64 | y u64 | x u64 | bytes u64 | 0 u32 | crc32c u32
//! ```
//!
//! Numbers are little-endian. A truncated record or one with a wrong checksum ends the list. It and all later records
//! are dropped, and their chunks are written again.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value as Json;

use super::Durability;
use crate::error::{Error, Result};

const MAGIC: &[u8] = b"voxpatch journal 1\n";

/// Bytes per record.
pub(super) const RECORD: usize = 56;

/// Maximum length of the head, in bytes.
const HEAD_LIMIT: u64 = 16 << 20;

/// A finished chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Record {
    /// The level; 0 is the finest.
    pub(in super::super) level: u32,
    /// The channel.
    pub(in super::super) channel: u64,
    /// The index along z, y, x.
    pub(in super::super) index: [u64; 3],
    /// The length of the chunk's file; `None` if the chunk is all fill value and has no file.
    pub(in super::super) bytes: Option<u64>,
}

impl Record {
    fn encode(&self) -> [u8; RECORD] {
        let [z, y, x] = self.index;
        let mut out = [0; RECORD];
        out[..4].copy_from_slice(&self.level.to_le_bytes());
        out[4..8].copy_from_slice(&u32::from(self.bytes.is_some()).to_le_bytes());
        let numbers = [self.channel, z, y, x, self.bytes.unwrap_or(0)];
        for (place, number) in out[8..48].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let sum = crc32c::crc32c(&out[..RECORD - 4]);
        out[RECORD - 4..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Returns `None` if the checksum is wrong.
    fn decode(bytes: &[u8; RECORD]) -> Option<Self> {
        let short = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        (crc32c::crc32c(&bytes[..RECORD - 4]) == short(RECORD - 4)).then(|| Self {
            level: short(0),
            channel: long(8),
            index: [long(16), long(24), long(32)],
            bytes: (short(4) == 1).then(|| long(40)),
        })
    }
}

/// A journal under construction.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    durability: Durability,
    /// The byte position of the next record.
    end: Mutex<u64>,
}

impl Journal {
    /// Creates a journal; its file appears either with the complete head or not at all.
    pub(super) fn create(path: &Path, head: &Json, durability: Durability) -> Result<Self> {
        let text = serde_json::to_vec(head).expect("a document of ours has string keys");
        let mut start = MAGIC.to_vec();
        start.extend((text.len() as u64).to_le_bytes());
        start.extend(crc32c::crc32c(&text).to_le_bytes());
        start.extend(text);
        let begun = path.with_file_name("journal.begun");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&begun)
            .map_err(Error::io("write", &begun))?;
        file.write_all_at(&start, 0)
            .map_err(Error::io("write", &begun))?;
        durability.sync(&file, &begun)?;
        fs::rename(&begun, path).map_err(Error::io("write", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            durability,
            end: Mutex::new(start.len() as u64),
        })
    }

    /// Opens a journal to resume it, and drops incomplete data at its end. Calls `each` with every valid record.
    pub(super) fn resume(
        path: &Path,
        durability: Durability,
        each: &mut dyn FnMut(Record),
    ) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io("open", path))?;
        let end = scan(&file, path, each)?.1;
        file.set_len(end).map_err(Error::io("mend", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            durability,
            end: Mutex::new(end),
        })
    }

    /// Appends a record, with the same durability as the chunk that it records.
    pub(super) fn add(&self, record: &Record) -> Result<()> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        // If only a part is written, the next record overwrites it.
        self.file
            .write_all_at(&record.encode(), *end)
            .map_err(Error::io("write", &self.path))?;
        *end += RECORD as u64;
        self.durability.sync(&self.file, &self.path)
    }
}

/// Returns the head of a journal, and calls `each` with every valid record.
pub(super) fn read(path: &Path, each: &mut dyn FnMut(Record)) -> Result<Json> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    Ok(scan(&file, path, each)?.0)
}

/// Returns the head, and the end of the last valid record. Calls `each` with every valid record.
fn scan(file: &File, path: &Path, each: &mut dyn FnMut(Record)) -> Result<(Json, u64)> {
    let bad = |problem: &str| {
        let problem = format!("{problem}: remove its folder to start over");
        Error::header(path, "journal", problem)
    };
    let mut reader = BufReader::new(file);
    let mut start = [0; MAGIC.len() + 12];
    let failed = Error::io("read", path);
    match reader.read_exact(&mut start) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(bad("it is truncated"));
        }
        read => read.map_err(failed)?,
    }
    let (magic, rest) = start.split_at(MAGIC.len());
    let length = u64::from_le_bytes(std::array::from_fn(|i| rest[i]));
    let sum = u32::from_le_bytes(std::array::from_fn(|i| rest[8 + i]));
    if magic != MAGIC || length > HEAD_LIMIT {
        return Err(bad("it is not a journal, or has a different version"));
    }
    let mut text = Vec::new();
    reader
        .by_ref()
        .take(length)
        .read_to_end(&mut text)
        .map_err(Error::io("read", path))?;
    if crc32c::crc32c(&text) != sum {
        return Err(bad("its head is damaged"));
    }
    let head = serde_json::from_slice(&text).map_err(|_| bad("its head is not JSON"))?;
    let mut end = start.len() as u64 + length;
    let mut bytes = [0; RECORD];
    loop {
        match reader.read_exact(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            read => read.map_err(Error::io("read", path))?,
        }
        let Some(record) = Record::decode(&bytes) else {
            break;
        };
        each(record);
        end += RECORD as u64;
    }
    Ok((head, end))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(n: u64) -> Record {
        Record {
            level: 1,
            channel: n,
            index: [n, n + 1, u64::MAX - n],
            bytes: n.is_multiple_of(2).then_some(n * 10),
        }
    }

    fn records(path: &Path) -> Vec<Record> {
        let mut found = Vec::new();
        read(path, &mut |record| found.push(record)).unwrap();
        found
    }

    #[test]
    fn records_come_back_and_a_torn_tail_is_dropped_wherever_it_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let head = json!({"a": 1.5, "b": "text"});
        let journal = Journal::create(&path, &head, Durability::None).unwrap();
        for n in 0..3 {
            journal.add(&record(n)).unwrap();
        }
        drop(journal);
        assert_eq!(read(&path, &mut |_| {}).unwrap(), head);
        let whole = fs::read(&path).unwrap();
        for cut in 1..=RECORD {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let mut sound = Vec::new();
            let journal = Journal::resume(&path, Durability::None, &mut |record| {
                sound.push(record);
            })
            .unwrap();
            assert_eq!(sound, [record(0), record(1)], "{cut} bytes cut");
            journal.add(&record(7)).unwrap();
            assert_eq!(records(&path), [record(0), record(1), record(7)]);
        }
    }

    #[test]
    fn a_damaged_record_ends_the_list_and_a_damaged_head_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::create(&path, &json!({"a": 1}), Durability::Chunk).unwrap();
        for n in 0..3 {
            journal.add(&record(n)).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        let first = whole.len() - 3 * RECORD;
        for at in first + RECORD..first + 2 * RECORD {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&path, damaged).unwrap();
            assert_eq!(records(&path), [record(0)]);
        }
        for at in 0..first {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&path, damaged).unwrap();
            let error = read(&path, &mut |_| {}).unwrap_err();
            assert!(matches!(error, Error::Header { .. }), "byte {at}: {error}");
        }
    }
}
