//! Detection of changes to inputs since they were opened.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value as Json;

use crate::error::{Error, Result};
use crate::store::{Input, Remote, Version};

/// The state of files and objects when they were opened.
#[derive(Debug, Default)]
pub(super) struct FileWatch {
    files: Vec<(PathBuf, FileStamp)>,
    objects: Vec<WatchedObject>,
}

#[derive(Debug)]
struct WatchedObject {
    remote: Remote,
    path: PathBuf,
    /// `None` if it did not exist.
    version: Option<Arc<Version>>,
    checked: Mutex<Instant>,
}

/// Objects are looked at again after this time. Besides, each read checks the version of its own object.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

impl WatchedObject {
    fn check(&self) -> Result<()> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.elapsed() < LOOK_AGAIN {
            return Ok(());
        }
        let what = match (&self.version, self.remote.version(&self.path)?) {
            (Some(before), Some(now)) => before.change(&now),
            (Some(_), None) => Some("it can no longer be found".to_owned()),
            (None, Some(_)) => Some("it did not exist before".to_owned()),
            (None, None) => None,
        };
        if let Some(what) = what {
            return Err(changed(&self.path, what));
        }
        *checked = Instant::now();
        Ok(())
    }
}

/// The properties of a file that differ if it has other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    identity: (u64, u64),
    length: u64,
    written: (i64, i64),
}

impl FileStamp {
    fn new(found: &Metadata) -> Self {
        Self {
            identity: (found.dev(), found.ino()),
            length: found.len(),
            written: (found.mtime(), found.mtime_nsec()),
        }
    }
}

impl FileWatch {
    /// Records the state of a file.
    pub(super) fn add(&mut self, path: &Path, found: &Metadata) {
        self.files.push((path.to_path_buf(), FileStamp::new(found)));
    }

    /// Records the version of an object.
    pub(super) fn add_object(
        &mut self,
        remote: &Remote,
        path: &Path,
        version: Option<Arc<Version>>,
    ) {
        self.objects.push(WatchedObject {
            remote: remote.clone(),
            path: path.to_path_buf(),
            version,
            checked: Mutex::new(Instant::now()),
        });
    }

    /// Records the state of an open file or object.
    pub(super) fn add_input(&mut self, path: &Path, input: &Input) -> Result<()> {
        match input {
            Input::File(file) => {
                let found = file.metadata().map_err(Error::io("open", path))?;
                self.add(path, &found);
            }
            Input::Object(object) => {
                self.add_object(object.remote(), path, Some(Arc::clone(object.version())));
            }
        }
        Ok(())
    }

    /// Checks that an object that was opened again has the version of its first opening.
    pub(super) fn check_input(&self, path: &Path, input: &Input) -> Result<()> {
        let own = |object: &&WatchedObject| object.path == path;
        let before = self
            .objects
            .iter()
            .find(own)
            .and_then(|object| object.version.as_ref());
        let change = before
            .zip(input.object())
            .and_then(|(before, now)| before.change(now.version()));
        change.map_or(Ok(()), |what| Err(changed(path, what)))
    }

    /// Adds the versions of the objects to an identity, if there are any: unlike files, they cannot be looked at by
    /// their path alone.
    pub(super) fn identify(&self, mut identity: Json) -> Json {
        if !self.objects.is_empty() {
            identity["versions"] = Json::from(self.versions());
        }
        identity
    }

    /// Returns the versions of the objects, for an identity.
    fn versions(&self) -> Vec<String> {
        let version = |object: &WatchedObject| {
            let Version {
                etag,
                modified,
                size,
            } = object.version.as_deref()?;
            let etag = etag.as_deref().unwrap_or_default();
            Some(format!("{etag} {modified} {size}"))
        };
        self.objects.iter().filter_map(version).collect()
    }

    /// Checks that all files and objects are unchanged.
    pub(super) fn check(&self) -> Result<()> {
        self.objects.iter().try_for_each(WatchedObject::check)?;
        self.files
            .iter()
            .try_for_each(|(path, before)| before.check(path, fs::metadata(path)))
    }
}

impl FileWatch {
    /// Returns the length of the file that was added as number `index`.
    pub(super) fn length(&self, index: usize) -> u64 {
        self.files[index].1.length
    }

    /// Checks that an open file is the file that was added as number `index`, unchanged.
    pub(super) fn check_file(&self, index: usize, file: &File) -> Result<()> {
        let (path, before) = &self.files[index];
        before.check(path, file.metadata())
    }

    /// Returns the path of the file that was added as number `index`.
    pub(super) fn path(&self, index: usize) -> &Path {
        &self.files[index].0
    }

    /// Returns the paths of all files.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }
}

impl FileStamp {
    /// Checks that the file at `path` is unchanged, given its metadata of now.
    fn check(&self, path: &Path, found: std::io::Result<Metadata>) -> Result<()> {
        let what = match found.map(|found| Self::new(&found)) {
            Ok(now) if now == *self => return Ok(()),
            Ok(now) if now.identity != self.identity => "a different file has its name".to_owned(),
            Ok(now) if now.length != self.length => {
                format!("it had {} bytes and has {}", self.length, now.length)
            }
            Ok(_) => WRITTEN.to_owned(),
            Err(error) => format!("it can no longer be found ({error})"),
        };
        Err(changed(path, what))
    }
}

const WRITTEN: &str = "it was written to";

fn changed(path: &Path, what: String) -> Error {
    Error::InputModified {
        path: path.to_path_buf(),
        what,
    }
}

/// A moment after which files must not have been written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since(SystemTime);

impl Since {
    pub(super) fn now() -> Self {
        Self(SystemTime::now())
    }

    /// Checks that a file was not written later. Only if both times are later does the file count as written: the
    /// modification time can be set to any value, and the time of the inode also changes when a link is added.
    pub(super) fn check(self, path: &Path, found: &Metadata) -> Result<()> {
        let later = |seconds: i64, nanos: i64| {
            let parts = (u64::try_from(seconds), u32::try_from(nanos));
            let (Ok(seconds), Ok(nanos)) = parts else {
                return false;
            };
            let time = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
            time.is_some_and(|time| time > self.0)
        };
        if later(found.mtime(), found.mtime_nsec()) && later(found.ctime(), found.ctime_nsec()) {
            return Err(changed(path, WRITTEN.to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(watch: &FileWatch) -> String {
        match watch.check() {
            Err(Error::InputModified { path, what }) => {
                format!("{}: {what}", path.file_name().unwrap().display())
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_of_change_of_a_file_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scan");
        let begin = || {
            fs::write(&path, b"voxels").unwrap();
            // Simulates a file that was written long ago.
            let old = SystemTime::now() - Duration::from_hours(1);
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(old)
                .unwrap();
            let mut watch = FileWatch::default();
            watch.add(&path, &fs::metadata(&path).unwrap());
            watch.check().unwrap();
            watch
        };
        let watch = begin();
        fs::hard_link(&path, dir.path().join("link")).unwrap();
        watch.check().unwrap();
        fs::remove_file(dir.path().join("link")).unwrap();

        fs::write(&path, b"VOXELS").unwrap();
        assert_eq!(what(&watch), "scan: it was written to");
        let watch = begin();
        fs::write(&path, b"fewer").unwrap();
        assert_eq!(what(&watch), "scan: it had 6 bytes and has 5");
        let watch = begin();
        fs::write(dir.path().join("other"), b"voxels").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert_eq!(what(&watch), "scan: a different file has its name");
        let watch = begin();
        fs::remove_file(&path).unwrap();
        assert!(what(&watch).starts_with("scan: it can no longer be found"));
    }

    #[test]
    fn only_files_written_later_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk");
        fs::write(&path, b"1").unwrap();
        let before = Since(SystemTime::now() - Duration::from_hours(1));
        let check = |since: Since| since.check(&path, &fs::metadata(&path).unwrap());
        assert!(matches!(check(before), Err(Error::InputModified { .. })));
        check(Since(SystemTime::now() + Duration::from_mins(1))).unwrap();
        // A modification time in the future was set by hand; a new link changes only the inode.
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_hours(9))
            .unwrap();
        check(Since(SystemTime::now() + Duration::from_mins(1))).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(9))
            .unwrap();
        fs::hard_link(&path, dir.path().join("link")).unwrap();
        check(before).unwrap();
    }
}
