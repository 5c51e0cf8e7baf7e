//! The stamp of a volume: a number that changes when its files change.
//!
//! It covers the layout and, for every file, its name below the volume's folder, its inode,
//! size, and the times of its last change to content and to inode. The latter cannot be set back by a
//! program, so that data rewritten with the same size and an old time is noticed. A file
//! that was changed within the clock's tick might change again unnoticed: the stamp waits that tick out.
//!
//! Content is not read: that would cost as much as the index itself. A copy of a data set
//! has other times and inodes, and so another stamp.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::volume::{Layout, Volume};

/// An upper bound of the clock tick of file systems: 10 ms at 100 Hz, doubled.
const TICK: Duration = Duration::from_millis(20);
/// The maximum depth of folders.
const DEEPEST: usize = 16;

/// The stamp of a volume for an index that `purpose` describes, or `None` if the volume has no files.
///
/// # Errors
///
/// [`Error::Io`] if its files cannot be looked at.
pub(super) fn stamp(volume: &dyn Volume, purpose: &[u8]) -> Result<Option<u128>> {
    let layout = volume.layout();
    let mut hash = Hash::default();
    hash.add(purpose);
    hash.add(facts(layout).as_bytes());
    let mut newest = SystemTime::UNIX_EPOCH;
    // Files are listed in any order, so that their hashes are added up.
    let mut files: u128 = 0;
    for root in volume.source_files() {
        let mut folders: Vec<(PathBuf, usize)> = Vec::new();
        match fs::metadata(&root) {
            Ok(found) if found.is_dir() => folders.push((root.clone(), 0)),
            Ok(found) => add_file(&mut files, &mut newest, Path::new(""), &found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::io("look at", &root)(source)),
        }
        while let Some((folder, depth)) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
                let path = entry.map_err(Error::io("list", &folder))?.path();
                let found = match fs::metadata(&path) {
                    // Removed since it was listed, or a link to nothing: no chunk either.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    found => found.map_err(Error::io("look at", &path))?,
                };
                if found.is_dir() && depth < DEEPEST {
                    folders.push((path, depth + 1));
                } else {
                    let name = path.strip_prefix(&root).unwrap_or(&path);
                    add_file(&mut files, &mut newest, name, &found);
                }
            }
        }
    }
    hash.add(&files.to_le_bytes());
    if let Ok(age) = SystemTime::now().duration_since(newest) {
        thread::sleep(TICK.saturating_sub(age));
    }
    Ok(Some(hash.0))
}

/// What of the layout decides how the index comes out.
fn facts(layout: &Layout) -> String {
    let Layout {
        format,
        shape,
        channels,
        dtype,
        read_chunk,
        rescale,
        ..
    } = layout;
    format!("{format} {shape:?} {channels} {dtype} {read_chunk:?} {rescale:?}")
}

fn add_file(files: &mut u128, newest: &mut SystemTime, name: &Path, found: &Metadata) {
    let mut hash = Hash::default();
    hash.add(name.as_os_str().as_encoded_bytes());
    hash.add(&found.ino().to_le_bytes());
    hash.add(&found.size().to_le_bytes());
    let times = [
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ];
    for number in times {
        hash.add(&number.to_le_bytes());
    }
    *files = files.wrapping_add(hash.0);
    if let (Ok(seconds), Ok(nanos)) = (found.ctime().try_into(), found.ctime_nsec().try_into()) {
        let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
        *newest = changed.map_or(*newest, |changed| changed.max(*newest));
    }
}

/// FNV-1a, 128 bits, with the length of each part.
#[derive(Clone, Copy, Debug)]
struct Hash(u128);

impl Default for Hash {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Hash {
    fn add(&mut self, part: &[u8]) {
        let length = (part.len() as u64).to_le_bytes();
        for &byte in length.iter().chain(part) {
            self.0 =
                (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}
