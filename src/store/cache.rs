//! A cache of bytes on a disk, shared by processes.
//!
//! An entry is a file that is written under a temporary name and renamed. It ends with its name and a checksum; a damaged
//! entry is removed. Names contain the version of what the bytes come from, so nothing that has changed is found. The
//! entries that were used last stay: the modification time of a file is that of its last use. A cache that fails is
//! one that has nothing.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::files::PIECE;

/// The end of every entry, with the number of the format.
const MAGIC: &[u8; 8] = b"voxpkt01";

/// Bytes after the name: a checksum, the length of the name, that of the content, and the end.
const TAIL: usize = 4 + 4 + 8 + 8;

/// The longest name of an entry.
const LONGEST: u32 = 64 << 10;

/// The bytes that are left by an eviction: seven eighths of the limit.
const KEPT: (u64, u64) = (7, 8);

/// A process looks at the entries of others again once it has written the limit divided by this.
const OTHERS: u64 = 16;

/// A temporary file that is older was left by a process that was killed.
const ABANDONED: Duration = Duration::from_hours(24);

/// The time of use is noted at most once in this time.
const NOTED: Duration = Duration::from_secs(10);

/// Bytes that are checked at a time.
const BLOCK: usize = 1 << 20;

/// A folder of entries with a limit of bytes.
#[derive(Debug)]
pub(crate) struct DiskCache {
    folder: PathBuf,
    limit: u64,
    known: Mutex<Option<Known>>,
}

/// The bytes of a folder, as far as this process knows.
#[derive(Clone, Copy, Debug)]
struct Known {
    all: u64,
    /// Those that this process has written since it looked.
    since: u64,
}

/// The caches of this process, by folder.
static CACHES: Mutex<Option<HashMap<PathBuf, Weak<DiskCache>>>> = Mutex::new(None);

impl DiskCache {
    /// Opens the cache in a folder, which is created if there is none. Volumes of one process share it.
    pub(crate) fn open(folder: &Path, limit: u64) -> Result<Arc<Self>> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let folder = fs::canonicalize(folder).map_err(Error::io("open", folder))?;
        let new = || {
            Arc::new(Self {
                folder: folder.clone(),
                limit,
                known: Mutex::new(None),
            })
        };
        // In a forked process, the lock may be held by a thread that does not exist: then this cache is not shared.
        let Ok(mut caches) = CACHES.try_lock() else {
            return Ok(new());
        };
        let caches = caches.get_or_insert_default();
        if let Some(cache) = caches.get(&folder).and_then(Weak::upgrade)
            && cache.limit == limit
        {
            return Ok(cache);
        }
        let cache = new();
        caches.insert(folder.clone(), Arc::downgrade(&cache));
        Ok(cache)
    }

    /// Returns the content of an entry, if it is there.
    #[cfg(any(test, feature = "cloud"))]
    pub(crate) fn get(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.path(name);
        let mut bytes = fs::read(&path).ok()?;
        let whole = bytes.len();
        let content = tail(
            name,
            &bytes[whole.saturating_sub(name.len() + TAIL)..],
            whole as u64,
        )
        .and_then(|(length, checksum)| {
            let length = usize::try_from(length).ok()?;
            (checksum_of(name, &bytes[..length]) == checksum).then_some(length)
        });
        let Some(length) = content else {
            let _ = fs::remove_file(&path);
            return None;
        };
        bytes.truncate(length);
        Self::note(&path);
        Some(bytes)
    }

    /// Returns `true` if there is an entry, which may be damaged.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Adds an entry, unless it is too large or the disk is full.
    #[cfg(any(test, feature = "cloud"))]
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let _ = self.add(name, content.len() as u64, |file| file.write_all(content));
    }

    /// Returns a file that begins with the content of an entry, if it is there.
    pub(crate) fn get_file(&self, name: &str) -> Option<File> {
        let path = self.path(name);
        let mut file = File::open(&path).ok()?;
        match check(name, &mut file) {
            Ok(true) => {
                Self::note(&path);
                Some(file)
            }
            Ok(false) => {
                let _ = fs::remove_file(&path);
                None
            }
            Err(_) => None,
        }
    }

    /// Adds an entry whose content `fill` writes: `length` bytes. Returns a file that begins with the content; `None` if
    /// there is no room for it.
    pub(crate) fn add(
        &self,
        name: &str,
        length: u64,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Option<File>> {
        let all = length.saturating_add((name.len() + TAIL) as u64);
        if all > self.limit / 2 || name.len() > LONGEST as usize {
            return Ok(None);
        }
        self.make_room(all);
        let path = self.path(name);
        let parent = path.parent().expect("it is in a folder");
        fs::create_dir_all(parent)?;
        let temporary = NamedTempFile::with_prefix_in(".new-", parent)?;
        let mut writer = Summed {
            file: temporary.as_file(),
            sum: checksum_of(name, &[]),
            length: 0,
        };
        fill(&mut writer)?;
        let Summed {
            sum,
            length: written,
            ..
        } = writer;
        if written != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut file = temporary.as_file();
        file.write_all(name.as_bytes())?;
        file.write_all(&sum.to_le_bytes())?;
        file.write_all(&u32::try_from(name.len()).unwrap_or(0).to_le_bytes())?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(MAGIC)?;
        let file = temporary.persist(&path).map_err(|error| error.error)?;
        Ok(Some(file))
    }

    fn path(&self, name: &str) -> PathBuf {
        let hash = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, name).hash(&mut hasher);
            hasher.finish()
        };
        let hex = format!("{:016x}{:016x}", hash(0), hash(1));
        self.folder.join(&hex[..2]).join(&hex[2..])
    }

    /// Notes that an entry was used.
    fn note(path: &Path) {
        let now = SystemTime::now();
        let used = path.metadata().and_then(|found| found.modified());
        let is_old = used.is_ok_and(|used| now.duration_since(used).is_ok_and(|age| age > NOTED));
        if is_old && let Ok(file) = File::options().append(true).open(path) {
            let _ = file.set_times(FileTimes::new().set_modified(now));
        }
    }

    /// Evicts entries until there is room for `bytes`.
    fn make_room(&self, bytes: u64) {
        // As in [`open`](Self::open), the lock may be held by nobody. Another thread makes room, or the next entry does.
        let Ok(mut known) = self.known.try_lock() else {
            return;
        };
        let fits = |known: &Known| {
            known.all.saturating_add(bytes) <= self.limit && known.since < self.limit / OTHERS
        };
        let now = match *known {
            Some(now) if fits(&now) => now,
            _ => Known {
                all: self.evict(bytes),
                since: 0,
            },
        };
        *known = Some(Known {
            all: now.all.saturating_add(bytes),
            since: now.since.saturating_add(bytes),
        });
    }

    /// Removes the entries that were used longest ago, if all entries and `more` bytes are above the limit. Returns the
    /// bytes that are left.
    fn evict(&self, more: u64) -> u64 {
        let mut entries = Vec::new();
        let folders = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in
            folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten())
        {
            let Ok(found) = entry.metadata() else {
                continue;
            };
            let used = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_new = entry.file_name().to_string_lossy().starts_with('.');
            if !is_new {
                entries.push((used, found.len(), entry.path()));
            } else if used.elapsed().is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let mut all: u64 = entries.iter().map(|(_, length, _)| length).sum();
        if all.saturating_add(more) <= self.limit {
            return all;
        }
        let kept = (self.limit / KEPT.1 * KEPT.0).saturating_sub(more);
        entries.sort_unstable();
        for (_, length, path) in entries {
            if all <= kept {
                break;
            }
            if fs::remove_file(path).is_ok() {
                all -= length;
            }
        }
        all
    }
}

/// A writer that sums up what passes.
struct Summed<'a> {
    file: &'a File,
    sum: u32,
    length: u64,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.sum = crc32c::crc32c_append(self.sum, &bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn checksum_of(name: &str, content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(name.as_bytes()), content)
}

/// Returns the length and the checksum of the content of an entry with this name, from its end.
fn tail(name: &str, end: &[u8], whole: u64) -> Option<(u64, u32)> {
    let rest = end.strip_prefix(name.as_bytes())?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (named, rest) = rest.split_first_chunk::<4>()?;
    let (length, magic) = rest.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    let is_whole = magic == MAGIC
        && u32::from_le_bytes(*named) as usize == name.len()
        && length.checked_add((name.len() + TAIL) as u64) == Some(whole);
    is_whole.then(|| (length, u32::from_le_bytes(*sum)))
}

/// Returns `true` if a file is a sound entry with this name.
fn check(name: &str, file: &mut File) -> io::Result<bool> {
    let whole = file.metadata()?.len();
    let Some(at) = whole.checked_sub((name.len() + TAIL) as u64) else {
        return Ok(false);
    };
    file.seek(SeekFrom::Start(at))?;
    let mut end = vec![0; name.len() + TAIL];
    file.read_exact(&mut end)?;
    let Some((length, checksum)) = tail(name, &end, whole) else {
        return Ok(false);
    };
    file.seek(SeekFrom::Start(0))?;
    let mut block = vec![0; BLOCK];
    let (mut left, mut sum) = (length, checksum_of(name, &[]));
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        file.read_exact(&mut block[..count])?;
        sum = crc32c::crc32c_append(sum, &block[..count]);
        left -= count as u64;
    }
    Ok(sum == checksum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 64 << 10;

    fn entries(cache: &DiskCache) -> Vec<PathBuf> {
        let folders = fs::read_dir(&cache.folder).unwrap().flatten();
        let inside = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten());
        inside.map(|entry| entry.path()).collect()
    }

    fn bytes(cache: &DiskCache) -> u64 {
        let lengths = entries(cache).into_iter();
        lengths.map(|path| path.metadata().unwrap().len()).sum()
    }

    #[test]
    fn an_entry_is_found_by_its_name_and_shared() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), LIMIT).unwrap();
        assert_eq!(cache.get("a"), None);
        cache.put("a", b"of a");
        cache.put("b", b"");
        assert_eq!(cache.get("a").unwrap(), b"of a");
        assert_eq!(cache.get("b").unwrap(), b"");
        assert!(cache.has("a") && !cache.has("c"));
        let same = DiskCache::open(dir.path(), LIMIT).unwrap();
        assert!(Arc::ptr_eq(&cache, &same));
        drop((cache, same));
        let later = DiskCache::open(dir.path(), LIMIT).unwrap();
        let mut content = [0; 4];
        let mut file = later.get_file("a").unwrap();
        file.rewind().unwrap();
        file.read_exact(&mut content).unwrap();
        assert_eq!(&content, b"of a");
    }

    #[test]
    fn a_damaged_entry_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), LIMIT).unwrap();
        let length = b"content".len() + "name".len() + TAIL;
        for at in 0..length {
            for by_file in [false, true] {
                cache.put("name", b"content");
                let path = cache.path("name");
                let mut whole = fs::read(&path).unwrap();
                assert_eq!(whole.len(), length);
                whole[at] ^= 1;
                fs::write(&path, &whole).unwrap();
                let found = if by_file {
                    cache.get_file("name").map(drop)
                } else {
                    cache.get("name").map(drop)
                };
                assert!(found.is_none() && !path.exists(), "byte {at}");
                cache.put("name", b"content");
                fs::write(&path, &fs::read(&path).unwrap()[..at]).unwrap();
                assert!(cache.get("name").is_none() && !path.exists(), "{at} bytes");
            }
        }
    }

    #[test]
    fn the_entries_that_were_used_last_stay_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), LIMIT).unwrap();
        let old = |name: &str, hours: u64| {
            let file = File::options().append(true).open(cache.path(name)).unwrap();
            let when = SystemTime::now() - Duration::from_hours(hours);
            file.set_times(FileTimes::new().set_modified(when)).unwrap();
        };
        for n in 0..30 {
            cache.put(&n.to_string(), &[7; 2000]);
            old(&n.to_string(), 100 - n);
        }
        assert!(cache.get("0").is_some(), "nothing had to leave");
        for n in 30..40 {
            cache.put(&n.to_string(), &[7; 2000]);
            assert!(bytes(&cache) <= LIMIT, "{} bytes", bytes(&cache));
        }
        assert!(cache.get("0").is_some(), "it was used last");
        assert!(cache.get("1").is_none() && cache.get("39").is_some());
        // Another process has written much.
        let other = DiskCache {
            folder: cache.folder.clone(),
            limit: LIMIT,
            known: Mutex::new(None),
        };
        for n in 40..200 {
            let cache = if n % 2 == 0 { &*cache } else { &other };
            cache.put(&n.to_string(), &[7; 1000]);
            assert!(bytes(cache) <= LIMIT + 2 * LIMIT / OTHERS);
        }
    }

    #[test]
    fn what_is_too_large_or_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), LIMIT).unwrap();
        let large = vec![7; usize::try_from(LIMIT).unwrap()];
        cache.put("large", &large);
        let failed = cache.add("failed", 3, |_| Err(io::ErrorKind::Other.into()));
        assert!(failed.is_err());
        let short = cache.add("short", 3, |file| file.write_all(b"no"));
        assert!(short.is_err());
        assert!(entries(&cache).is_empty(), "{:?}", entries(&cache));
    }
}
