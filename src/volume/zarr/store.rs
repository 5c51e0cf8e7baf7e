//! The storage of a Zarr array's bytes: files below a folder.
//!
//! Only a missing file means that a chunk is missing; every other failure is an error. Errors include dangling links,
//! symbolic links in untrusted folders, and `ENOTDIR`: a file where the key has a folder. (All keys of an array have
//! the same depth, so a valid array has no file there.) A file that was written after the array was opened is an error,
//! too. Ranges are checked against the value's size before anything is allocated.

use std::fmt::Debug;
use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::foreign;
use super::super::options::OpenOptions;
use super::super::read_method::is_remote;
use super::super::watch::Since;
use super::json;
use crate::error::{Error, Result};
use crate::files::open_at_once;

/// A store of values by key, which can be read in part.
pub(super) trait Store: Debug + Send + Sync {
    /// Opens the value under `key`; `None` if it does not exist.
    fn open(&self, key: &str) -> Result<Option<Box<dyn StoredValue>>>;

    /// Prefetches a part of the value under `key`, if it exists and fetching takes time. `part` returns the
    /// range for the value's length. Nothing depends on it.
    fn prefetch(&self, key: &str, part: &dyn Fn(u64) -> Option<Range<u64>>) {
        let _ = (key, part);
    }
}

/// A value whose bytes can be read.
pub(super) trait StoredValue {
    /// Returns the length in bytes.
    fn len(&self) -> u64;

    /// Reads `range`, which must be inside the value.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>>;
}

/// A folder of files.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The moment after which its files must not be written; `None` if they may change.
    since: Option<Since>,
    /// `true` if the folder itself must continue to exist.
    stays: bool,
    links: Links,
}

/// The treatment of symbolic links below a folder. Some data versioning tools make a link of every chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    Followed,
    Refused,
}

impl Links {
    /// Returns the treatment for these options. Untrusted data could use links to name any file that the reader may
    /// read.
    pub(super) const fn of(options: &OpenOptions) -> Self {
        if options.trusted {
            Self::Followed
        } else {
            Self::Refused
        }
    }

    /// Checks that there is no refused link between `folder` and `path`, which must be below it.
    pub(super) fn check(self, folder: &Path, path: &Path) -> Result<()> {
        if self == Self::Followed {
            return Ok(());
        }
        let mut below = path.ancestors().take_while(|&above| above != folder);
        let is_link = |above: &&Path| {
            above
                .symlink_metadata()
                .is_ok_and(|found| found.is_symlink())
        };
        match below.find(is_link) {
            Some(link) => Err(Error::UntrustedLink {
                path: link.to_path_buf(),
            }),
            None => Ok(()),
        }
    }
}

impl Folder {
    /// Creates a folder whose files may change.
    pub(super) fn new(path: &Path, links: Links) -> Self {
        Self {
            path: path.to_path_buf(),
            since: None,
            stays: false,
            links,
        }
    }

    /// Creates a folder whose files must not be written from now on. This cannot be checked for a folder on another
    /// machine, whose clock may differ.
    pub(super) fn unchanging(path: &Path, links: Links) -> Result<Self> {
        let folder = File::open(path).map_err(Error::io("open", path))?;
        Ok(Self {
            since: (!is_remote(&folder)).then(Since::now),
            stays: true,
            ..Self::new(path, links)
        })
    }

    /// Checks that `path` really does not exist: that neither it nor a folder above it is a dangling link, and that the
    /// array's folder still exists if it must.
    fn check_absent(&self, path: &Path) -> Result<()> {
        let inside = path.ancestors().take_while(|&above| above != self.path);
        for above in inside {
            match above.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::io("look at", above)(source)),
                Ok(found) if found.is_symlink() && !above.exists() => {
                    let what = "it is a dangling link";
                    return Err(Error::unsupported(above, what));
                }
                Ok(_) => return Ok(()),
            }
        }
        if self.stays {
            self.path
                .metadata()
                .map_err(Error::io("look at", &self.path))?;
        }
        Ok(())
    }
}

impl Store for Folder {
    fn open(&self, key: &str) -> Result<Option<Box<dyn StoredValue>>> {
        let path = self.path.join(key);
        self.links.check(&self.path, &path)?;
        let opened = path.metadata().and_then(|found| {
            // A device must not even be opened.
            let file = found.is_file().then(|| open_at_once(&path)).transpose()?;
            let found = file.as_ref().map(File::metadata).transpose()?;
            Ok(file.zip(found.filter(Metadata::is_file)))
        });
        let (file, found) = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                return Err(Error::unsupported(
                    &path,
                    "a chunk or its metadata must be a regular file",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_absent(&path)?;
                return Ok(None);
            }
            Err(source) => return Err(Error::io("open", &path)(source)),
        };
        if let Some(since) = self.since {
            since.check(&path, &found)?;
        }
        Ok(Some(Box::new(OpenFile {
            file,
            path,
            length: found.len(),
        })))
    }

    #[cfg(not(target_vendor = "apple"))]
    fn prefetch(&self, key: &str, part: &dyn Fn(u64) -> Option<Range<u64>>) {
        let path = self.path.join(key);
        if self.links.check(&self.path, &path).is_ok()
            && path.is_file()
            && let Ok(file) = open_at_once(&path)
            && let Ok(found) = file.metadata()
            && let Some(range) = part(found.len())
            && let Some(length) = NonZeroU64::new(range.end.saturating_sub(range.start))
        {
            let advice = rustix::fs::Advice::WillNeed;
            // The call fails where prefetching is not possible, for example for a pipe.
            let _ = rustix::fs::fadvise(&file, range.start, Some(length), advice);
        }
    }
}

struct OpenFile {
    file: File,
    path: PathBuf,
    length: u64,
}

impl StoredValue for OpenFile {
    fn len(&self) -> u64 {
        self.length
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let wanted = range
            .end
            .checked_sub(range.start)
            .filter(|_| range.end <= self.length);
        let Some(length) = wanted.and_then(|n| usize::try_from(n).ok()) else {
            let problem = format!(
                "bytes {range:?} were requested, but the file has {}",
                self.length
            );
            return Err(Error::header(&self.path, "Zarr", problem));
        };
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, range.start)
            .map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }
}

/// Reads and parses a metadata document of up to 16 MiB; `None` if it does not exist.
pub(super) fn read_json(
    folder: &Path,
    name: &str,
    links: Links,
) -> Result<Option<serde_json::Value>> {
    const LIMIT: u64 = 16 << 20;
    let Some(value) = Folder::new(folder, links).open(name)? else {
        return Ok(None);
    };
    let path = folder.join(name);
    if value.len() > LIMIT {
        return Err(Error::header(
            &path,
            "Zarr",
            format!("{} bytes are more than {LIMIT}", value.len()),
        ));
    }
    let bytes = value.read(0..value.len())?;
    json::parse(&bytes).map(Some).map_err(|error| {
        let problem = foreign::pointer(&bytes).map_or_else(|| error.to_string(), str::to_owned);
        Error::header(&path, "Zarr", problem)
    })
}
