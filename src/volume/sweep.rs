//! Temporary folders that are removed even if no more files can be opened.
//!
//! Removing a folder requires listing its entries, which takes a file descriptor per level. A process that failed
//! because it ran out of descriptors would leave its unfinished files. Therefore one descriptor is reserved for the
//! removal, and one level is listed at a time.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

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

/// Removes a folder and everything in it, with one open file at a time.
pub(super) fn remove_all(folder: &Path) -> io::Result<()> {
    // Each folder comes before its subfolders.
    let mut folders = vec![folder.to_path_buf()];
    let mut next = 0;
    while let Some(folder) = folders.get(next).cloned() {
        next += 1;
        for (path, is_folder) in entries(&folder)? {
            if is_folder {
                folders.push(path);
            } else {
                fs::remove_file(path)?;
            }
        }
    }
    folders.iter().rev().try_for_each(fs::remove_dir)
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
    fs::read_dir(folder)?.map(entry).collect()
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
