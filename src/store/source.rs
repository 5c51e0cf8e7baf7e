//! Files and objects as one: where the bytes of a path come from.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DiskCache, Part, Remote, StorageOptions, Version, is_remote, local};
use crate::error::{Error, Result};
use crate::files::{open_regular, read_up_to};

/// The place of a path: the file system, or a store.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Local,
    Remote(Remote),
}

/// An open file, or an object of which the version is known.
#[derive(Debug)]
pub(crate) enum Input {
    File(File),
    Object(Object),
}

/// An object whose version was pinned when it was opened.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    remote: Remote,
    path: PathBuf,
    version: Arc<Version>,
}

impl Place {
    /// Returns the place of a path or address, and the path there: without secrets, and without `file://`.
    /// What is read from a store goes into the cache.
    pub(crate) fn of(
        path: &Path,
        options: &StorageOptions,
        cache: Option<Arc<DiskCache>>,
    ) -> Result<(Self, PathBuf)> {
        if is_remote(path) {
            let (remote, shown) = Remote::open(path, options, cache)?;
            return Ok((Self::Remote(remote), shown));
        }
        Ok((Self::Local, local(path)))
    }

    /// Returns the store, unless the place is the file system.
    pub(crate) const fn remote(&self) -> Option<&Remote> {
        match self {
            Self::Local => None,
            Self::Remote(remote) => Some(remote),
        }
    }

    /// Reads the first bytes of a regular file or an object, up to `limit`.
    pub(crate) fn read_up_to(&self, path: &Path, limit: u64) -> Result<Vec<u8>> {
        match self {
            Self::Local => read_up_to(path, limit),
            Self::Remote(remote) => {
                let length = |size| truncated(path, limit, size);
                let found = remote.read(path, Part::First(limit), (limit, &length), None)?;
                Ok(found.ok_or_else(|| absent(path))?.bytes.to_vec())
            }
        }
    }

    /// Returns `true` if there is a file or an object at a path.
    pub(crate) fn has_file(&self, path: &Path) -> bool {
        match self {
            Self::Local => path.exists() && !path.is_dir(),
            Self::Remote(remote) => matches!(remote.version(path), Ok(Some(_))),
        }
    }

    /// Opens a regular file or an object.
    pub(crate) fn open(&self, path: &Path) -> Result<Input> {
        match self {
            Self::Local => open_regular(path).map(Input::File),
            Self::Remote(remote) => {
                let version = remote.version(path)?.ok_or_else(|| absent(path))?;
                Ok(Input::Object(Object {
                    remote: remote.clone(),
                    path: path.to_path_buf(),
                    version: Arc::new(version),
                }))
            }
        }
    }
}

fn absent(path: &Path) -> Error {
    Error::io("open", path)(io::ErrorKind::NotFound.into())
}

fn truncated(path: &Path, end: u64, size: u64) -> Error {
    let problem = format!("byte {end} was requested, but it has {size} bytes");
    Error::io("read", path)(io::Error::new(io::ErrorKind::UnexpectedEof, problem))
}

impl Input {
    /// Returns the length in bytes.
    pub(crate) fn length(&self, path: &Path) -> Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata().map_err(Error::io("open", path))?.len()),
            Self::Object(object) => Ok(object.version.size),
        }
    }

    /// Returns what identifies the content: path and version. `None` if that is not known.
    pub(crate) fn content(&self, path: &Path) -> Option<String> {
        Some(match self {
            Self::File(file) => {
                let found = file.metadata().ok()?;
                let (device, inode) = (found.dev(), found.ino());
                let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
                let path = fs::canonicalize(path).ok()?;
                let length = found.len();
                format!(
                    "{}\n{device} {inode} {length} {seconds}.{nanoseconds}",
                    path.display()
                )
            }
            Self::Object(object) => {
                let tag = object.version.etag.as_ref()?;
                format!("{}\n{tag} {}", path.display(), object.version.size)
            }
        })
    }

    /// Fills `out` with the bytes from `at` on.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(out, at),
            Self::Object(object) => object.read_exact_at(out, at),
        }
    }

    /// Returns the file, if it is one.
    pub(crate) const fn file(&self) -> Option<&File> {
        match self {
            Self::File(file) => Some(file),
            Self::Object(_) => None,
        }
    }

    /// Returns the object, if it is one.
    pub(crate) const fn object(&self) -> Option<&Object> {
        match self {
            Self::File(_) => None,
            Self::Object(object) => Some(object),
        }
    }

    /// Returns a reader of the bytes from `at` on, in order.
    pub(crate) fn reader(self, at: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::File(mut file) => {
                file.seek(SeekFrom::Start(at))?;
                Box::new(file)
            }
            Self::Object(object) => Box::new(ObjectReader {
                object,
                at,
                block: Vec::new(),
                used: 0,
            }),
        })
    }
}

impl Object {
    /// Returns the version that was opened.
    pub(crate) const fn version(&self) -> &Arc<Version> {
        &self.version
    }

    pub(crate) const fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Begins to read a range.
    pub(crate) fn prefetch(&self, range: Range<u64>) {
        let length = range.end - range.start;
        self.remote
            .prefetch(&self.path, Part::Range(range), length, Some(&self.version));
    }

    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let end = at + out.len() as u64;
        let length = |size| truncated(&self.path, end, size);
        let limits: (u64, &dyn Fn(u64) -> Error) = (out.len() as u64, &length);
        let read = self.remote.read(
            &self.path,
            Part::Range(at..end),
            limits,
            Some(&self.version),
        );
        let found = match read {
            Ok(Some(found)) => found,
            Ok(None) => return Err(io::ErrorKind::NotFound.into()),
            Err(Error::Io { source, .. }) => return Err(source),
            // The error travels inside; [`read_error`] takes it out again.
            Err(error) => return Err(io::Error::other(error)),
        };
        out.copy_from_slice(&found.bytes);
        Ok(())
    }
}

/// Returns the error of this crate inside an I/O error, or makes one.
pub(crate) fn read_error(path: &Path, action: &'static str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(inner) => inner,
        Err(error) => Error::io(action, path)(error),
    }
}

/// Reads an object from front to back, a few blocks ahead.
struct ObjectReader {
    object: Object,
    at: u64,
    block: Vec<u8>,
    used: usize,
}

/// Bytes that a reader requests at a time, and the number of blocks that it requests ahead.
const BLOCK: u64 = 4 << 20;
const AHEAD: u64 = 4;

impl Read for ObjectReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.block.len() {
            let size = self.object.version.size;
            let block = |at: u64| at..at.saturating_add(BLOCK).min(size);
            let own = block(self.at);
            if own.start >= own.end {
                return Ok(0);
            }
            for n in 0..AHEAD {
                let next = block(self.at + n * BLOCK);
                if next.start < next.end {
                    self.object.prefetch(next);
                }
            }
            let length = usize::try_from(own.end - own.start).map_err(io::Error::other)?;
            self.block.resize(length, 0);
            self.used = length;
            self.object.read_exact_at(&mut self.block, own.start)?;
            self.used = 0;
            self.at = own.end;
        }
        let count = out.len().min(self.block.len() - self.used);
        out[..count].copy_from_slice(&self.block[self.used..self.used + count]);
        self.used += count;
        Ok(count)
    }
}
