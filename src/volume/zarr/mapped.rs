//! Reading parts of chunks that are stored as they are, without any codec: their files are mapped, as flat files are.
//!
//! A part is copied out of the system's page cache, so it costs no more than its own bytes, and holding chunks in memory
//! would save nothing. Only arrays that fit into the available memory are read so. Files stay mapped once they are
//! touched; that they are still the same is checked at each read.

use std::collections::HashMap;
use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::super::mmap::{KeptRoom, Map};
use super::super::read_method::{ReadMethod, room_for_maps};
use super::Limits;
use super::store::Folder;
use crate::error::{Error, Result};
use crate::store::Part;

/// The mapped files of an array.
#[derive(Debug)]
pub(super) struct MappedFiles {
    folder: Folder,
    files: RwLock<HashMap<String, Arc<MappedFile>>>,
    /// Given back when the maps are gone: fields are dropped in order.
    _room: KeptRoom,
}

/// A mapped file of chunks.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    map: Map,
    length: u64,
    /// Device and inode.
    place: (u64, u64),
}

impl MappedFiles {
    /// Returns the files of an array of so many files with so many bytes each; `None` if they are read whole.
    pub(super) fn new(folder: Folder, files: u64, bytes: u64, method: ReadMethod) -> Option<Self> {
        let limit = match method {
            ReadMethod::Auto if folder.is_local() => room_for_maps(),
            ReadMethod::MmapResident => u64::MAX,
            ReadMethod::Auto | ReadMethod::Mmap | ReadMethod::Pread => return None,
        };
        let room = KeptRoom::take(files.saturating_mul(bytes), files, limit)?;
        Some(Self {
            folder,
            files: RwLock::default(),
            _room: room,
        })
    }

    /// Returns the file of the value under `key`, whose length must pass the limits' check, and the bytes of a part of it;
    /// `None` if it does not exist. A part of a file that is mapped now is prefetched.
    pub(super) fn get(
        &self,
        key: &str,
        part: &Part,
        limits: Limits<'_>,
    ) -> Result<Option<(Arc<MappedFile>, Range<u64>)>> {
        let Some((path, found)) = self.folder.find(key)? else {
            return Ok(None);
        };
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let known = files.get(key).filter(|file| file.is(&found)).cloned();
        drop(files);
        let file = match known {
            Some(known) => known,
            None => match self.map(key, &path, part, limits)? {
                Some(file) => file,
                None => return Ok(None),
            },
        };
        let range = part.range(file.length);
        Ok(Some((file, range)))
    }

    fn map(
        &self,
        key: &str,
        path: &Path,
        part: &Part,
        limits: Limits<'_>,
    ) -> Result<Option<Arc<MappedFile>>> {
        let Some(opened) = self.folder.open(key)? else {
            return Ok(None);
        };
        let found = opened.found();
        (limits.check)(found.len())?;
        self.folder.announce(&opened, part, limits.bytes);
        let map = Map::new(opened.file()).map_err(Error::io("map", path))?;
        let file = Arc::new(MappedFile {
            path: path.to_path_buf(),
            map: map.keeping(),
            length: found.len(),
            place: (found.dev(), found.ino()),
        });
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.insert(key.to_owned(), Arc::clone(&file));
        Ok(Some(file))
    }
}

impl MappedFile {
    /// Returns `true` if this is the file that was found.
    fn is(&self, found: &Metadata) -> bool {
        (self.length, self.place) == (found.len(), (found.dev(), found.ino()))
    }

    /// Calls `copy` on a range of the file's bytes, and checks that the file is still the same.
    pub(super) fn read(&self, range: Range<u64>, copy: impl FnOnce(&[u8])) -> Result<()> {
        let read = self.map.read(|bytes| {
            let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
            bytes.get(range).map(copy)
        });
        // The part of the last page that is beyond the end of a truncated file reads as zeros.
        let is_same = self.path.metadata().is_ok_and(|found| self.is(&found));
        if !is_same || read == Ok(None) {
            let what = "it was replaced or truncated while it was read".to_owned();
            let path = self.path.clone();
            return Err(Error::InputModified { path, what });
        }
        match read {
            Ok(_) => Ok(()),
            Err(lost) => Err(Error::io("read", &self.path)(lost.into())),
        }
    }
}
