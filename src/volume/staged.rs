//! Outputs that are written under a temporary name and renamed once they are complete.
//!
//! Incomplete outputs are named `.NAME.XXXXXX.incomplete`, so that they cannot be mistaken for finished ones. An
//! unfinished output is removed on drop; one that a killed process left keeps its hidden name and blocks nothing. To
//! finish an output, its content is flushed to disk, it is renamed, and then the folder that contains the name is
//! flushed. After a power failure, the name refers either to the complete new output or to the previous one.
//!
//! An existing output of that name is removed only if it is of the same kind (see [`overwrite`](super::overwrite));
//! anything else keeps its name.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::{Builder, NamedTempFile};

use super::mmap::start_writing;
use super::overwrite::{Overwrite, bare};
use super::sweep::ScratchFolder;
use crate::error::{Error, Result};

/// A folder that will be renamed to `target`; it is removed if it is dropped unfinished.
#[derive(Debug)]
pub struct StagedFolder {
    folder: ScratchFolder,
    target: PathBuf,
    overwrite: Overwrite,
}

/// A file that will be renamed to `target`; it is removed if it is dropped unfinished.
#[derive(Debug)]
pub struct StagedFile {
    file: NamedTempFile,
    target: PathBuf,
    overwrite: Overwrite,
    /// Bytes that were written into the file, and have not been sent to disk.
    unwritten: AtomicU64,
}

/// Bytes that are sent to disk together.
const WRITTEN_TOGETHER: u64 = 64 << 20;

impl StagedFolder {
    /// Creates the folder next to `target`, which must not exist unless it may be replaced.
    ///
    /// # Errors
    ///
    /// As [`StagedFile::new`].
    pub fn new(target: impl AsRef<Path>, overwrite: Overwrite) -> Result<Self> {
        let target = target.as_ref();
        overwrite.check(target)?;
        let (parent, prefix) = place(target)?;
        let folder = Builder::new()
            .prefix(&prefix)
            .suffix(".incomplete")
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(&parent)
            .and_then(ScratchFolder::new)
            .map_err(Error::io("create an output in", &parent))?;
        Ok(Self {
            folder,
            target: bare(target),
            overwrite,
        })
    }

    /// Returns the temporary path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Flushes the content to disk and renames the folder to its final name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the folder cannot be flushed or renamed, [`Error::Exists`] or [`Error::NotOverwritable`] if the
    /// name has been taken.
    pub fn finish(self) -> Result<()> {
        let staged = self.folder.path().to_path_buf();
        let parent = open_parent(&self.target)?;
        sync_folder(&staged, &self.target)?;
        let own = inode(&staged);
        match take_name(&staged, &self.target, self.overwrite) {
            Err(error) => {
                if inode(&staged) != own {
                    // The entry with the hidden name is not ours and must not be removed.
                    self.folder.keep();
                }
                Err(error)
            }
            Ok(Taken::Free) => {
                self.folder.keep();
                sync_parent(&parent, &self.target)
            }
            // The replaced output now has our hidden name, and is removed under it.
            Ok(Taken::Exchanged) => {
                sync_parent(&parent, &self.target)?;
                drop_any(self.folder).map_err(Error::io("remove the replaced output, now", &staged))
            }
        }
    }
}

impl StagedFile {
    /// Creates the file next to `target`, which must not exist unless it may be replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] if the name is taken and may not be replaced, [`Error::NotOverwritable`] if the existing entry
    /// is not one that `overwrite` allows to replace, and [`Error::Io`] if the folder cannot be written.
    pub fn new(target: impl AsRef<Path>, overwrite: Overwrite) -> Result<Self> {
        let target = target.as_ref();
        overwrite.check(target)?;
        let (parent, prefix) = place(target)?;
        let file = Builder::new()
            .prefix(&prefix)
            .suffix(".incomplete")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&parent)
            .map_err(Error::io("create an output in", &parent))?;
        Ok(Self {
            file,
            target: bare(target),
            overwrite,
            unwritten: AtomicU64::new(0),
        })
    }

    /// Counts bytes that were written into the file. Every 64 MiB of them start on their way to disk, so that flushing the
    /// file takes less time.
    pub(super) fn count_written(&self, bytes: u64) {
        let unwritten = self.unwritten.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unwritten >= WRITTEN_TOGETHER
            && self.unwritten.swap(0, Ordering::Relaxed) >= WRITTEN_TOGETHER
        {
            start_writing(self.file());
        }
    }

    /// Returns the file, open for writing.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Returns the final path.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes the content to disk and renames the file to its final name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be flushed or renamed, [`Error::Exists`] or [`Error::NotOverwritable`] if the
    /// name has been taken.
    pub fn finish(self) -> Result<()> {
        let folder = open_parent(&self.target)?;
        self.file
            .as_file()
            .sync_all()
            .map_err(Error::io("finish", &self.target))?;
        let mut staged = self.file.into_temp_path();
        let (own, hidden) = (inode(&staged), staged.to_path_buf());
        staged.disable_cleanup(true);
        let taken = take_name(&staged, &self.target, self.overwrite);
        staged.disable_cleanup(taken.is_err() && inode(&staged) != own);
        let taken = taken?;
        if let Taken::Free = taken {
            staged.disable_cleanup(true);
        }
        sync_parent(&folder, &self.target)?;
        match taken {
            Taken::Free => Ok(()),
            Taken::Exchanged => staged
                .close()
                .map_err(Error::io("remove the replaced output, now", &hidden)),
        }
    }
}

/// Flushes the content of the folder `staged` to disk and renames it to `target`.
pub(super) fn publish(staged: &Path, target: &Path, overwrite: Overwrite) -> Result<Taken> {
    let folder = open_parent(target)?;
    sync_folder(staged, target)?;
    let taken = take_name(staged, target, overwrite)?;
    sync_parent(&folder, target)?;
    Ok(taken)
}

/// Flushes the content of the folder `staged` to disk; errors name it `target`.
fn sync_folder(staged: &Path, target: &Path) -> Result<()> {
    let handle = File::open(staged).map_err(Error::io("finish", target))?;
    rustix::fs::syncfs(&handle).map_err(|errno| Error::io("finish", target)(errno.into()))
}

/// Returns the folder to work in and the prefix of hidden names there.
pub(super) fn place(target: &Path) -> Result<(PathBuf, OsString)> {
    let Some(name) = target.file_name() else {
        return Err(Error::InvalidArgument {
            argument: "output",
            value: format!("{:?}", target.display()),
            problem: "it has no file name".to_owned(),
        });
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    Ok((parent(target).to_path_buf(), prefix))
}

/// The result of renaming an output to its final name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Taken {
    /// The hidden name is free again.
    Free,
    /// The previous output now has the hidden name, and may be removed.
    Exchanged,
}

/// Renames `staged` to `target`. Where the file system supports it, this is a single step, so that the name always
/// refers to one of the two. Only an output that `overwrite` allows to be replaced loses its name.
fn take_name(staged: &Path, target: &Path, overwrite: Overwrite) -> Result<Taken> {
    let failed = || Error::io("finish", target);
    let mut tries = 3;
    loop {
        match take_free(staged, target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries > 0 => tries -= 1,
            taken => return taken.map(|()| Taken::Free).map_err(failed()),
        }
        overwrite.check_at(target, target)?;
        match exchange(staged, target) {
            // The existing entry has just disappeared: the name is free.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(Taken::Exchanged) => {}
            taken => return taken.map_err(failed()),
        }
        // A different entry may have had the name by then.
        return match overwrite.check_at(staged, target) {
            Ok(()) => Ok(Taken::Exchanged),
            Err(error) => {
                exchange(staged, target).map_err(Error::io("restore the name of", target))?;
                Err(error)
            }
        };
    }
}

/// Renames `staged` to `target` unless that name is taken.
fn take_free(staged: &Path, target: &Path) -> io::Result<()> {
    match renameat_with(CWD, staged, CWD, target, RenameFlags::NOREPLACE) {
        // The file system does not support this: use the closest alternative.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        taken => return Ok(taken?),
    }
    if fs::symlink_metadata(target).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    if fs::symlink_metadata(staged)?.is_file() {
        match fs::hard_link(staged, target) {
            Ok(()) => return fs::remove_file(staged),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // It does not support hard links either.
            Err(_) => {}
        }
    }
    fs::rename(staged, target)
}

/// Exchanges the names of `staged` and `target`, which exists.
fn exchange(staged: &Path, target: &Path) -> io::Result<Taken> {
    match renameat_with(CWD, staged, CWD, target, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        exchanged => return Ok(exchanged.map(|()| Taken::Exchanged)?),
    }
    if fs::symlink_metadata(staged)?.is_file() && fs::symlink_metadata(target)?.is_file() {
        return fs::rename(staged, target).map(|()| Taken::Free);
    }
    let mut aside = staged.as_os_str().to_owned();
    aside.push(REPLACED);
    fs::rename(target, &aside)?;
    fs::rename(staged, target).inspect_err(|_| {
        // Keeping the old output is more important than a clean folder: restore its name.
        let _ = fs::rename(&aside, target);
    })?;
    fs::rename(&aside, staged)?;
    Ok(Taken::Exchanged)
}

/// The suffix of the hidden name under which a replaced output is kept briefly where names cannot be exchanged.
pub(super) const REPLACED: &str = ".replaced";

/// Returns the inode number of a file or folder, if it exists.
pub(super) fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.ino())
}

/// Removes the entry with a staged folder's name, which may be a file that the folder replaced.
fn drop_any(folder: ScratchFolder) -> io::Result<()> {
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

/// Opens the folder that contains the name. This happens before the rename, because file descriptors may be exhausted
/// later.
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

    use super::super::overwrite::{FileKind, FolderKind};

    const NEVER: Overwrite = Overwrite::Nothing;

    /// A kind of folder that contains only `old` and `new`.
    const OURS: Overwrite = Overwrite::Folder(FolderKind {
        name: "a folder of ours",
        foreign: |folder| {
            let mut all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
            let other = all.find(|entry| entry.file_name() != "old" && entry.file_name() != "new");
            Ok(other.map(|entry| super::super::overwrite::UnexpectedEntry::new(entry.path())))
        },
    });

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn an_output_dropped_unfinished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = StagedFile::new(dir.path().join("a.npy"), NEVER).unwrap();
        let folder = StagedFolder::new(dir.path().join("b.zarr"), NEVER).unwrap();
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
            StagedFolder::new(&target, NEVER),
            Err(Error::Exists { .. })
        ));
        let staged = StagedFolder::new(&target, OURS).unwrap();
        fs::write(staged.path().join("new"), b"new").unwrap();
        assert_eq!(names(&target), ["old"], "nothing changes before the end");
        staged.finish().unwrap();
        assert_eq!(
            (names(&target), names(dir.path())),
            (vec!["new".to_owned()], vec!["out.zarr".to_owned()])
        );
    }

    #[test]
    fn leftovers_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.zarr");
        fs::create_dir(&target).unwrap();
        fs::create_dir(dir.path().join(".out.zarr.x1y2z3.incomplete")).unwrap();
        let staged = StagedFolder::new(&target, OURS).unwrap();
        fs::write(staged.path().join("new"), b"new").unwrap();
        staged.finish().unwrap();
        assert_eq!(names(&target), ["new"]);
        let mut left = names(dir.path());
        left.sort();
        assert_eq!(left, [".out.zarr.x1y2z3.incomplete", "out.zarr"]);
    }

    #[test]
    fn files_added_to_an_output_while_its_replacement_is_written_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.zarr");
        fs::create_dir(&target).unwrap();
        let staged = StagedFolder::new(&target, OURS).unwrap();
        fs::write(target.join("notes.txt"), b"theirs").unwrap();
        let refused = staged.finish();
        assert!(
            matches!(refused, Err(Error::NotOverwritable { .. })),
            "{refused:?}"
        );
        assert_eq!(names(&target), ["notes.txt"]);
        assert_eq!(names(dir.path()), ["out.zarr"]);
    }

    #[test]
    fn a_file_that_has_the_name_only_during_the_exchange_gets_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.npy");
        let file = FileKind {
            name: "a file of ours",
            // A different file takes the name after the first check.
            recognizes: |head| head != b"theirs",
        };
        fs::write(&target, b"ours").unwrap();
        let staged = StagedFile::new(&target, Overwrite::File(file)).unwrap();
        fs::write(&target, b"theirs").unwrap();
        let path = staged.file.path().to_path_buf();
        // Simulates a completed exchange: the entry is checked at its present place.
        assert!(matches!(exchange(&path, &target), Ok(Taken::Exchanged)));
        let refused = Overwrite::File(file).check_at(&path, &target).unwrap_err();
        assert!(refused.to_string().starts_with(target.to_str().unwrap()));
        assert!(matches!(exchange(&path, &target), Ok(Taken::Exchanged)));
        assert!(matches!(
            staged.finish(),
            Err(Error::NotOverwritable { .. })
        ));
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        assert_eq!(names(dir.path()), ["out.npy"]);
    }

    #[test]
    fn a_slash_at_the_end_does_not_follow_a_link() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("theirs")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("theirs"), dir.path().join("link")).unwrap();
        let refused = StagedFolder::new(dir.path().join("link/"), FolderKind::ZARR.overwrite(true));
        assert!(
            matches!(refused, Err(Error::NotOverwritable { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_folder_that_has_taken_the_name_is_kept_even_if_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.zarr");
        let staged = StagedFolder::new(&target, NEVER).unwrap();
        fs::create_dir(&target).unwrap();
        assert!(matches!(staged.finish(), Err(Error::Exists { .. })));
        assert_eq!(names(dir.path()), ["out.zarr"]);
    }

    #[test]
    fn a_name_that_has_been_taken_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.npy");
        let staged = StagedFile::new(&target, NEVER).unwrap();
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
            StagedFile::new(&link, NEVER),
            Err(Error::NotOverwritable { .. })
        ));
        assert!(matches!(
            StagedFile::new(dir.path().join("no/out.npy"), NEVER),
            Err(Error::Io { .. })
        ));
    }
}
