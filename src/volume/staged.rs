//! Outputs that grow beside their name and take it when they are whole.
//!
//! Until then they are called `.NAME.XXXXXX.incomplete`, so that nothing half-written looks
//! finished; what is dropped unfinished is removed, and what a killed process left has that
//! name still and stands in nobody's way. First what they hold is made durable, then they are
//! renamed, then the folder that holds the name is made durable: after a power cut the name
//! belongs to all of the new output or to what had it before.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::{Builder, NamedTempFile};

use super::sweep::Scratch;
use crate::error::{Error, Result};

/// A folder that will be called `target`; removed if it is dropped unfinished.
#[derive(Debug)]
pub struct StagedFolder {
    folder: Scratch,
    target: PathBuf,
    replace: bool,
}

/// A file that will be called `target`; removed if it is dropped unfinished.
#[derive(Debug)]
pub struct StagedFile {
    file: NamedTempFile,
    target: PathBuf,
    replace: bool,
}

impl StagedFolder {
    /// Makes the folder beside `target`, which must not exist unless it may be replaced.
    ///
    /// # Errors
    ///
    /// As [`StagedFile::new`].
    pub fn new(target: &Path, replace: bool) -> Result<Self> {
        let (parent, prefix) = place(target, replace)?;
        let folder = Builder::new()
            .prefix(&prefix)
            .suffix(".incomplete")
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(&parent)
            .and_then(Scratch::new)
            .map_err(Error::io("create an output in", &parent))?;
        Ok(Self {
            folder,
            target: target.to_path_buf(),
            replace,
        })
    }

    /// Where it is until it is whole.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes what it holds durable and gives it its name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk refuses, [`Error::Exists`] if something took the name meanwhile.
    pub fn finish(self) -> Result<()> {
        let staged = self.folder.path().to_path_buf();
        match publish(&staged, &self.target, self.replace)? {
            Taken::Free => {
                self.folder.keep();
                return Ok(());
            }
            // What was replaced has our hidden name now, and is removed with it.
            Taken::Exchanged => {}
        }
        drop_any(self.folder).map_err(Error::io("remove what was replaced, now", &staged))
    }
}

impl StagedFile {
    /// Makes the file beside `target`, which must not exist unless it may be replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] if something has that name, [`Error::Unsupported`] if it is a symbolic
    /// link, and [`Error::Io`] if the folder cannot be written.
    pub fn new(target: &Path, replace: bool) -> Result<Self> {
        let (parent, prefix) = place(target, replace)?;
        let file = Builder::new()
            .prefix(&prefix)
            .suffix(".incomplete")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&parent)
            .map_err(Error::io("create an output in", &parent))?;
        Ok(Self {
            file,
            target: target.to_path_buf(),
            replace,
        })
    }

    /// The file, open for writing.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// The name that it will have.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Makes what it holds durable and gives it its name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk refuses, [`Error::Exists`] if something took the name meanwhile.
    pub fn finish(self) -> Result<()> {
        let folder = open_parent(&self.target)?;
        self.file
            .as_file()
            .sync_all()
            .map_err(Error::io("finish", &self.target))?;
        let kept = if self.replace {
            self.file.persist(&self.target)
        } else {
            self.file.persist_noclobber(&self.target)
        };
        kept.map_err(|failed| match failed.error.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists {
                path: self.target.clone(),
            },
            _ => Error::io("finish", &self.target)(failed.error),
        })?;
        sync_parent(&folder, &self.target)
    }
}

/// Makes what the folder `staged` holds durable and renames it to `target`.
pub(super) fn publish(staged: &Path, target: &Path, replace: bool) -> Result<Taken> {
    let failed = |source| Error::Io {
        action: "finish",
        path: target.to_path_buf(),
        source,
    };
    let folder = open_parent(target)?;
    let handle = File::open(staged).map_err(failed)?;
    rustix::fs::syncfs(&handle).map_err(|errno| failed(errno.into()))?;
    let taken = take_name(staged, target, replace).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists {
            path: target.to_path_buf(),
        },
        _ => failed(error),
    })?;
    sync_parent(&folder, target)?;
    Ok(taken)
}

/// The folder to work in and the hidden prefix to use there.
pub(super) fn place(target: &Path, replace: bool) -> Result<(PathBuf, OsString)> {
    let Some(name) = target.file_name() else {
        return Err(Error::Setting {
            name: "an output called",
            value: format!("{:?}", target.display()),
            problem: "it has no file name".to_owned(),
        });
    };
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_symlink() => {
            return Err(Error::unsupported(
                target,
                "an output is never written through a symbolic link",
            ));
        }
        Ok(_) if !replace => {
            return Err(Error::Exists {
                path: target.to_path_buf(),
            });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::io("look at", target)(source)),
    }
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    Ok((parent(target).to_path_buf(), prefix))
}

/// How a folder came to its name.
pub(super) enum Taken {
    /// Nobody had it.
    Free,
    /// What had it got the folder's old name.
    Exchanged,
}

/// Renames `staged` to `target`, in one step: at every moment one of the two has the name.
fn take_name(staged: &Path, target: &Path, replace: bool) -> io::Result<Taken> {
    let rename = |flags| renameat_with(CWD, staged, CWD, target, flags);
    match rename(RenameFlags::NOREPLACE) {
        Ok(()) => Ok(Taken::Free),
        Err(Errno::EXIST) if replace => {
            rename(RenameFlags::EXCHANGE)?;
            Ok(Taken::Exchanged)
        }
        // A file system that cannot rename like that: as well as it can be done without.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if fs::symlink_metadata(target).is_err() {
                fs::rename(staged, target)?;
                return Ok(Taken::Free);
            }
            if !replace {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let mut aside = staged.as_os_str().to_owned();
            aside.push(".replaced");
            fs::rename(target, &aside)?;
            fs::rename(staged, target).inspect_err(|_| {
                // The old output is worth more than a tidy folder: give it its name back.
                let _ = fs::rename(&aside, target);
            })?;
            fs::rename(&aside, staged)?;
            Ok(Taken::Exchanged)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Removes what has a staged folder's name, which may be a file that the folder replaced.
fn drop_any(folder: Scratch) -> io::Result<()> {
    match fs::symlink_metadata(folder.path()) {
        Ok(found) if !found.is_dir() => {
            let path = folder.path().to_path_buf();
            folder.keep();
            fs::remove_file(path)
        }
        Ok(_) => folder.close(),
        Err(_) => Ok(()),
    }
}

pub(super) fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Has the system begin to write a file to the disk, so that making it durable at the end takes less
/// time. Nothing depends on it.
pub(super) fn write_soon(file: &File) {
    // Dirty pages are written out; only clean ones would leave the cache.
    #[cfg(not(target_vendor = "apple"))]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// The folder that holds the name, opened before the name changes: there may be no descriptor left later.
fn open_parent(target: &Path) -> Result<File> {
    let parent = parent(target);
    File::open(parent).map_err(Error::io("make durable", parent))
}

fn sync_parent(folder: &File, target: &Path) -> Result<()> {
    let synced = folder.sync_all();
    synced.map_err(Error::io("make durable", parent(target)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn what_is_dropped_unfinished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = StagedFile::new(&dir.path().join("a.npy"), false).unwrap();
        let folder = StagedFolder::new(&dir.path().join("b.zarr"), false).unwrap();
        fs::write(folder.path().join("chunk"), b"x").unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        assert!(
            names(dir.path())
                .iter()
                .all(|name| name.starts_with('.') && name.ends_with(".incomplete"))
        );
        drop((file, folder));
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn an_output_that_exists_is_kept_unless_it_may_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.zarr");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("old"), b"old").unwrap();
        assert!(matches!(
            StagedFolder::new(&target, false),
            Err(Error::Exists { .. })
        ));
        let staged = StagedFolder::new(&target, true).unwrap();
        fs::write(staged.path().join("new"), b"new").unwrap();
        assert_eq!(names(&target), ["old"], "nothing changes before the end");
        staged.finish().unwrap();
        assert_eq!(
            (names(&target), names(dir.path())),
            (vec!["new".to_owned()], vec!["out.zarr".to_owned()])
        );
    }

    #[test]
    fn a_folder_may_replace_a_file_and_leftovers_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.zarr");
        fs::write(&target, b"old").unwrap();
        fs::create_dir(dir.path().join(".out.zarr.x1y2z3.incomplete")).unwrap();
        let staged = StagedFolder::new(&target, true).unwrap();
        fs::write(staged.path().join("new"), b"new").unwrap();
        staged.finish().unwrap();
        assert_eq!(names(&target), ["new"]);
        let mut left = names(dir.path());
        left.sort();
        assert_eq!(left, [".out.zarr.x1y2z3.incomplete", "out.zarr"]);
    }

    #[test]
    fn a_folder_that_took_the_name_meanwhile_is_kept_even_if_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.zarr");
        let staged = StagedFolder::new(&target, false).unwrap();
        fs::create_dir(&target).unwrap();
        assert!(matches!(staged.finish(), Err(Error::Exists { .. })));
        assert_eq!(names(dir.path()), ["out.zarr"]);
    }

    #[test]
    fn a_name_taken_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.npy");
        let staged = StagedFile::new(&target, false).unwrap();
        fs::write(&target, b"theirs").unwrap();
        assert!(matches!(staged.finish(), Err(Error::Exists { .. })));
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
    }

    #[test]
    fn outputs_do_not_follow_links_and_need_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link.npy");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert!(matches!(
            StagedFile::new(&link, true),
            Err(Error::Unsupported { .. })
        ));
        assert!(matches!(
            StagedFile::new(&dir.path().join("no/out.npy"), false),
            Err(Error::Io { .. })
        ));
    }
}
