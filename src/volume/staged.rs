//! Outputs that grow beside their name and take it when they are whole.
//!
//! Until then they are called `.NAME.XXXXXX.incomplete`, so that nothing half-written looks
//! finished; what is dropped unfinished is removed. Taking the name is a rename, made durable
//! with the folder that holds it.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// A folder that will be called `target`.
#[derive(Debug)]
pub(super) struct StagedFolder {
    folder: TempDir,
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
    pub(super) fn new(target: &Path, replace: bool) -> Result<Self> {
        let (parent, prefix) = place(target, replace)?;
        let folder = Builder::new()
            .prefix(&prefix)
            .suffix(".incomplete")
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(&parent)
            .map_err(Error::io("create an output in", &parent))?;
        Ok(Self {
            folder,
            target: target.to_path_buf(),
            replace,
        })
    }

    /// Where it is until it is whole.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes what it holds durable and gives it its name.
    pub(super) fn finish(mut self) -> Result<()> {
        let failed = |source| Error::Io {
            action: "finish",
            path: self.target.clone(),
            source,
        };
        let handle = File::open(self.folder.path()).map_err(failed)?;
        rustix::fs::syncfs(&handle).map_err(|errno| failed(errno.into()))?;
        let aside = if self.replace {
            set_aside(&self.target)?
        } else {
            None
        };
        if let Err(source) = fs::rename(self.folder.path(), &self.target) {
            if let Some(aside) = &aside {
                // The old output is worth more than a tidy folder: give it its name back.
                let _ = fs::rename(aside.path().join("old"), &self.target);
            }
            let taken = self.target.exists() && !self.replace;
            return Err(if taken {
                Error::Exists {
                    path: self.target.clone(),
                }
            } else {
                failed(source)
            });
        }
        self.folder.disable_cleanup(true);
        sync_parent(&self.target)
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

    /// Makes what it holds durable and gives it its name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk refuses, [`Error::Exists`] if something took the name meanwhile.
    pub fn finish(self) -> Result<()> {
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
        sync_parent(&self.target)
    }
}

/// The folder to work in and the hidden prefix to use there.
fn place(target: &Path, replace: bool) -> Result<(PathBuf, OsString)> {
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

/// Moves what has the name into a folder of its own, which removes it when dropped.
fn set_aside(target: &Path) -> Result<Option<TempDir>> {
    if fs::symlink_metadata(target).is_err() {
        return Ok(None);
    }
    let aside = Builder::new()
        .prefix(".replaced.")
        .suffix(".incomplete")
        .tempdir_in(parent(target))
        .map_err(Error::io("replace", target))?;
    fs::rename(target, aside.path().join("old")).map_err(Error::io("replace", target))?;
    Ok(Some(aside))
}

fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_parent(target: &Path) -> Result<()> {
    let parent = parent(target);
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("make durable", parent))
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
