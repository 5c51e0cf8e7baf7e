//! Locks, folders and files of an output under construction.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::staged::parent;
use super::super::sweep;
use super::Durability;
use crate::error::{Error, Result};

/// A file lock that is released on drop.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone is not enough: a child process that is being started may have the file open too.
        let _ = self.0.unlock();
    }
}

/// Takes a lock. With `wait`, waits for it; otherwise a lock that is held is an error.
pub(super) fn lock(folder: &Path, name: &str, wait: bool) -> Result<Lock> {
    let path = folder.join(name);
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let held = if wait {
            file.lock().map_err(TryLockError::Error)
        } else {
            file.try_lock()
        };
        match held {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path }),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path)(source)),
        }
        // The previous holder may have finished the output and removed the file with it.
        let inode = |found: io::Result<fs::Metadata>| found.ok().map(|found| found.ino());
        if inode(file.metadata()) == inode(fs::metadata(&path)) {
            return Ok(Lock(file));
        }
    }
}

/// Creates the folder that contains `path`, and its parents.
pub(super) fn make_parents(path: &Path, durability: Durability) -> Result<()> {
    let folder = parent(path);
    if folder.is_dir() {
        return Ok(());
    }
    make_parents(folder, durability)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => {
            made.map_err(Error::io("create", folder))?;
            durability.sync_folder(parent(folder))
        }
    }
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn remove_folder(path: &Path) -> Result<()> {
    match sweep::remove_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
