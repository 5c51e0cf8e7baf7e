//! Temporary folders that are removed even if no more files can be opened.
//!
//! Removing a folder requires listing its entries, which takes a file descriptor per level. A process that failed
//! because it ran out of descriptors would leave its unfinished files. Therefore one descriptor is reserved for the
//! removal, and one level is listed at a time. Another thread may still take the descriptor between its release and the
//! listing; the listing then waits until that thread closes a file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use tempfile::TempDir;

/// A temporary folder that is removed on drop.
#[derive(Debug)]
pub(super) struct ScratchFolder {
    folder: TempDir,
    /// `true` if the folder stays on drop.
    kept: bool,
    /// The descriptor that is released before the folder is removed.
    reserve: Option<File>,
}

impl ScratchFolder {
    /// Reserves a descriptor for the removal.
    pub(super) fn new(folder: TempDir) -> io::Result<Self> {
        let reserve = File::open(folder.path()).inspect_err(|_| {
            // The folder is empty: removing it takes no descriptor.
            let _ = fs::remove_dir(folder.path());
        })?;
        Ok(Self {
            folder,
            kept: false,
            reserve: Some(reserve),
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder.
    pub(super) fn keep(mut self) {
        self.kept = true;
        self.folder.disable_cleanup(true);
    }

    /// Removes the folder, and returns an error if that fails.
    pub(super) fn close(mut self) -> io::Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> io::Result<()> {
        self.reserve = None;
        self.kept = true;
        let removed = remove_all(self.folder.path());
        self.folder.disable_cleanup(removed.is_ok());
        removed
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if !self.kept {
            // `TempDir` itself makes a second attempt and ignores errors.
            let _ = self.remove();
        }
    }
}

/// Removes a folder and everything in it, with one open file at a time. Another process may remove the same entries.
pub(super) fn remove_all(folder: &Path) -> io::Result<()> {
    // Each folder comes before its subfolders.
    let mut folders = Vec::new();
    let mut found = entries(folder)?;
    while let Some((path, is_folder)) = found.pop() {
        if is_folder {
            found.extend(unless_gone(entries(&path))?);
            folders.push(path);
        } else {
            unless_gone(fs::remove_file(path))?;
        }
    }
    for path in folders.iter().rev() {
        unless_gone(fs::remove_dir(path))?;
    }
    fs::remove_dir(folder)
}

/// Returns the default value if an entry no longer exists.
fn unless_gone<T: Default>(outcome: io::Result<T>) -> io::Result<T> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        outcome => outcome,
    }
}

/// Returns the entries of a folder, and whether each is a folder; links are not followed.
fn entries(folder: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    if folder.symlink_metadata()?.is_symlink() {
        return Err(io::Error::other("the folder became a symbolic link"));
    }
    let entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.path(), entry.file_type()?.is_dir()))
    };
    list(folder)?.map(entry).collect()
}

/// Lists a folder. Without a free descriptor, waits up to two seconds for one.
pub(super) fn list(folder: &Path) -> io::Result<fs::ReadDir> {
    for _ in 0..200 {
        match fs::read_dir(folder) {
            Err(error) if is_out_of_descriptors(&error) => thread::sleep(Duration::from_millis(10)),
            listed => return listed,
        }
    }
    fs::read_dir(folder)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    let none_left = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|code| none_left.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_inside_is_removed_except_the_targets_of_links() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), b"x").unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir_all(folder.join("a/b/c/d/e")).unwrap();
        fs::write(folder.join("a/b/c/d/e/file"), b"x").unwrap();
        fs::write(folder.join("a/file"), b"x").unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("a/link")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.join("broken")).unwrap();
        remove_all(&folder).unwrap();
        assert!(!folder.exists() && outside.join("kept").exists());
        assert!(remove_all(&folder).is_err());
    }

    #[test]
    fn a_scratch_folder_is_removed_unless_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = || ScratchFolder::new(tempfile::tempdir_in(dir.path()).unwrap()).unwrap();
        let count = || fs::read_dir(dir.path()).unwrap().count();
        let dropped = scratch();
        fs::write(dropped.path().join("file"), b"x").unwrap();
        drop(dropped);
        assert_eq!(count(), 0);
        scratch().close().unwrap();
        assert_eq!(count(), 0);
        scratch().keep();
        assert_eq!(count(), 1);
    }
}
