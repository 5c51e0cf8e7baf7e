//! The rule for replacing existing outputs: only by an output of the same kind.
//!
//! The rule is checked when an output is created, and again right before and right after names are exchanged (see
//! [`staged`](super::staged)), so that nothing is removed that is not an output.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::format::{self, LIMIT};
use super::staged::parent;
use super::{Format, Layout, partial, zarr};
use crate::error::{Error, Result};

/// A rule that defines which existing files an output may replace.
#[derive(Clone, Copy, Debug)]
pub enum Overwrite {
    /// Nothing: its name must be free.
    Nothing,
    /// A regular file of this kind, or an empty one.
    File(FileKind),
    /// A folder of this kind, or an empty one.
    Folder(FolderKind),
}

/// A kind of file.
#[derive(Clone, Copy, Debug)]
pub struct FileKind {
    /// The name of such a file in messages, as in `a PNG picture`.
    pub name: &'static str,
    /// Returns `true` if a file is of this kind, given its first MiB, or all of it if it is shorter.
    pub recognizes: fn(&[u8]) -> bool,
}

/// A kind of folder.
#[derive(Clone, Copy, Debug)]
pub struct FolderKind {
    /// The name of such a folder in messages, as in `a Zarr array or group`.
    pub name: &'static str,
    /// Returns the first entry in a folder that does not belong in a folder of this kind, or `None`.
    pub foreign: fn(&Path) -> Result<Option<UnexpectedEntry>>,
}

/// An entry in a folder that does not belong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnexpectedEntry {
    /// The path of the entry.
    pub path: PathBuf,
    /// A description of the entry, as in `a mount point`; `None` if only its name or type is wrong.
    pub what: Option<&'static str>,
}

impl UnexpectedEntry {
    /// Creates an entry with a wrong name or type.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, what: None }
    }
}

impl FileKind {
    /// Files in the numpy format, for outputs that are not volumes.
    pub const NPY: Self = Self {
        name: "an .npy file",
        recognizes: |head| head.starts_with(b"\x93NUMPY"),
    };

    /// Returns the rule for an output of this kind; [`Overwrite::Nothing`] if replacing is not allowed.
    #[must_use]
    pub const fn overwrite(self, allowed: bool) -> Overwrite {
        if allowed {
            Overwrite::File(self)
        } else {
            Overwrite::Nothing
        }
    }
}

impl FolderKind {
    /// Zarr arrays and groups, and incomplete ones.
    pub const ZARR: Self = Self {
        name: "a Zarr array or group",
        foreign: foreign_to_zarr,
    };

    /// Returns the rule for an output of this kind; [`Overwrite::Nothing`] if replacing is not allowed.
    #[must_use]
    pub const fn overwrite(self, allowed: bool) -> Overwrite {
        if allowed {
            Overwrite::Folder(self)
        } else {
            Overwrite::Nothing
        }
    }
}

impl Overwrite {
    /// Returns the rule for a volume with this layout.
    pub(super) fn by(layout: &Layout, allowed: bool) -> Result<Self> {
        if matches!(layout.format, Format::Zarr2 | Format::Zarr3) {
            return Ok(FolderKind::ZARR.overwrite(allowed));
        }
        let format = format::of(layout)?;
        let kind = FileKind {
            name: format.file,
            recognizes: format.replaces,
        };
        Ok(kind.overwrite(allowed))
    }

    /// Checks that an output may have the name `target`: it must be free, or taken by something that may be replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] if the name is taken and nothing may be replaced. [`Error::NotOverwritable`] if the existing
    /// entry is not an output of this kind; symbolic links, devices, FIFOs, sockets, mount points, write-protected
    /// entries, and folders with entries that do not belong to an output are never replaced. [`Error::Io`] if the entry
    /// cannot be examined.
    pub fn check(&self, target: &Path) -> Result<()> {
        let target = bare(target);
        self.check_at(&target, &target)
    }

    /// Checks the entry at `place`; errors name it `target`.
    pub(super) fn check_at(&self, place: &Path, target: &Path) -> Result<()> {
        let found = match fs::symlink_metadata(place) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::io("look at", target)(source)),
        };
        let what = if found.is_symlink() {
            Some("a symbolic link".to_owned())
        } else if let Self::Nothing = self {
            return Err(Error::Exists {
                path: target.to_path_buf(),
            });
        } else {
            self.obstacle(place, &found)?
        };
        match what {
            None => Ok(()),
            Some(what) => Err(Error::NotOverwritable {
                path: target.to_path_buf(),
                what,
            }),
        }
    }

    /// Returns a description of the entry at `place` if it may not be replaced.
    fn obstacle(&self, place: &Path, found: &Metadata) -> Result<Option<String>> {
        if let Some(what) = special(found).or_else(|| guarded(place, found)) {
            return Ok(Some(what.to_owned()));
        }
        match self {
            Self::File(_) if found.is_dir() => {
                Ok(Some("a folder, and the output is a file".to_owned()))
            }
            Self::Folder(_) if found.is_file() => {
                Ok(Some("a file, and the output is a folder".to_owned()))
            }
            Self::File(kind) => kind.mismatch(place, found),
            Self::Folder(kind) => kind.mismatch(place),
            Self::Nothing => Ok(None),
        }
    }
}

impl FileKind {
    /// Returns a description of a file that is not of this kind.
    fn mismatch(&self, place: &Path, found: &Metadata) -> Result<Option<String>> {
        if found.len() == 0 {
            return Ok(None);
        }
        // Another file may have the name by now, and opening a FIFO could block forever.
        let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let file = File::options()
            .read(true)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
            .open(place)
            .map_err(Error::io("open", place))?;
        let mut head = Vec::new();
        file.take(LIMIT)
            .read_to_end(&mut head)
            .map_err(Error::io("read", place))?;
        let what = || format!("a file, but not {}", self.name);
        Ok((!(self.recognizes)(&head)).then(what))
    }
}

impl FolderKind {
    /// Returns a description of a folder that is not of this kind.
    fn mismatch(&self, place: &Path) -> Result<Option<String>> {
        let Some(UnexpectedEntry { path, what }) = (self.foreign)(place)? else {
            return Ok(None);
        };
        let name = path.strip_prefix(place).unwrap_or(&path).display();
        Ok(Some(match what {
            Some(what) => format!("a folder that holds {name}, which is {what}"),
            None => format!(
                "a folder that holds {name}, which does not belong to {}",
                self.name
            ),
        }))
    }
}

/// Returns a description of an entry that is neither a regular file nor a folder.
fn special(found: &Metadata) -> Option<&'static str> {
    let kind = found.file_type();
    if kind.is_file() || kind.is_dir() {
        None
    } else if kind.is_fifo() {
        Some("a FIFO")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

/// Returns the protection of a file or folder, if any: it is a mount point or write-protected.
pub(super) fn guarded(path: &Path, found: &Metadata) -> Option<&'static str> {
    if is_mount_point(path, found) {
        Some("a mount point")
    } else if found.mode() & 0o222 == 0 {
        Some("write-protected")
    } else {
        None
    }
}

fn is_mount_point(path: &Path, found: &Metadata) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
        let mounted = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)
            .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
        if mounted {
            return true;
        }
    }
    // In an overlay file system, files in a folder may have a different device number from the folder.
    let above = fs::metadata(parent(path)).ok();
    found.is_dir() && above.is_some_and(|above| above.dev() != found.dev())
}

fn foreign_to_zarr(folder: &Path) -> Result<Option<UnexpectedEntry>> {
    if partial::is_partial(folder) {
        partial::foreign(folder)
    } else {
        zarr::foreign(folder)
    }
}

/// Returns a path without a trailing slash, which would mean the target of a link.
pub(super) fn bare(path: &Path) -> PathBuf {
    path.file_name()
        .map_or_else(|| path.to_path_buf(), |name| path.with_file_name(name))
}

#[cfg(test)]
mod tests;
