//! The stamp of a volume: a number that changes when its voxels may have changed.
//!
//! It covers the volume's identity and chunks and, for every file, its name below the volume's folder, its inode, size,
//! and the times of its last change to content and to inode. A program cannot set back the latter, so data rewritten
//! with the same size and an old time is noticed. A file that was changed within the current clock tick might change
//! again unnoticed, so the stamp waits until the tick is over.
//!
//! Content is not read: that would cost as much as the index itself. A copy of a data set has different times and
//! inodes, and therefore a different stamp.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::volume::{Hash, Volume, walk};

/// An upper bound of the clock tick of file systems: twice the 10 ms of 100 Hz.
const TICK: Duration = Duration::from_millis(20);

/// Returns the stamp of a volume for an index that `purpose` describes, or `None` if the volume cannot identify its
/// voxels, or a file is gone. With `settle`, waits until no further change of the files can go unnoticed.
///
/// # Errors
///
/// [`Error::Io`] if the metadata of its files cannot be read.
pub(super) fn stamp(volume: &dyn Volume, purpose: &[u8], settle: bool) -> Result<Option<u128>> {
    let identity = match volume.identity() {
        Err(Error::NoIdentity { .. }) => return Ok(None),
        identity => identity?,
    };
    let layout = volume.layout();
    let mut hash = Hash::default();
    hash.add(purpose);
    hash.add(format!("{} {:?} {identity}", layout.format, layout.read_chunk).as_bytes());
    let mut newest = SystemTime::UNIX_EPOCH;
    // Files are listed in any order, so their hashes are summed.
    let mut files: u128 = 0;
    for root in volume.source_files() {
        let add = |name: &Path, found: &Metadata| add_file(&mut files, &mut newest, name, found);
        if !walk(&root, add)? {
            return Ok(None);
        }
    }
    hash.add(&files.to_le_bytes());
    if !settle {
        return Ok(Some(hash.0));
    }
    if let Ok(age) = SystemTime::now().duration_since(newest) {
        thread::sleep(TICK.saturating_sub(age));
    }
    Ok(Some(hash.0))
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
