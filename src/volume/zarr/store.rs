//! The storage of a Zarr array's bytes: files below a folder, entries of an archive, or objects below a path.
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
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::buffer::spare_capacity;

use super::super::archive::Archive;
use super::super::foreign;
use super::super::options::OpenOptions;
use super::super::read_method::is_remote;
use super::super::watch::Since;
use super::{folder_bytes, json};
use crate::error::{Error, Result};
use crate::files::open_at_once;
use crate::store::{Part, Remote, Version, Versions};

/// A store of values by key, which can be read in part.
pub(super) trait Store: Debug + Send + Sync {
    /// Reads a part of the value under `key`, whose length must pass `check`; `None` if the value does not exist.
    /// `pin` is the version that an earlier read returned. At most `limit` bytes are allocated.
    fn read(
        &self,
        key: &str,
        part: Part,
        limits: Limits<'_>,
        pin: Option<&Arc<Version>>,
    ) -> Result<Option<StoredPart>>;

    /// Returns `true` if there is a value under `key`.
    fn exists(&self, key: &str) -> Result<bool>;

    /// Prefetches a part of the value under `key`, of at most `limit` bytes, if it exists and fetching takes time.
    /// Nothing depends on it.
    fn prefetch(&self, key: &str, part: Part, limit: u64, pin: Option<&Arc<Version>>);

    /// Returns `true` if a prefetched part has arrived, in a store where that takes time.
    fn has(&self, key: &str, part: &Part) -> bool {
        let _ = (key, part);
        false
    }

    /// Returns the bytes of all values.
    fn bytes(&self) -> Result<u64>;

    /// Returns `true` if requests have a latency, so that many should be in flight, and none be made twice.
    fn is_remote(&self) -> bool {
        false
    }
}

/// The bytes that a read may have.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    /// Checks the length of the value before it is read.
    pub(super) check: &'a dyn Fn(u64) -> Result<()>,
    /// The most bytes of the part.
    pub(super) bytes: u64,
}

/// Bytes of a value.
#[derive(Clone, Debug)]
pub(super) struct StoredPart {
    pub(super) bytes: Vec<u8>,
    /// The length of the whole value.
    pub(super) length: u64,
    /// The version of the value, if its store has versions.
    pub(super) version: Option<Arc<Version>>,
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
    residency: Residency,
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
            residency: Residency::default(),
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

impl Folder {
    /// Returns `true` if the files are on this machine.
    pub(super) const fn is_local(&self) -> bool {
        self.since.is_some()
    }

    /// Returns the path of the value under `key` and what the system knows of the file; `None` if it does not exist.
    pub(super) fn find(&self, key: &str) -> Result<Option<(PathBuf, Metadata)>> {
        let found = self.look(key, |_, found| Ok(Some(((), found))))?;
        Ok(found.map(|(path, (), found)| (path, found)))
    }

    /// Opens the value under `key`; `None` if it does not exist.
    pub(super) fn open(&self, key: &str) -> Result<Option<OpenFile>> {
        let opened = self.look(key, |path, _| {
            let file = open_at_once(path)?;
            let found = file.metadata()?;
            Ok(found.is_file().then_some((file, found)))
        })?;
        Ok(opened.map(|(path, file, found)| OpenFile { file, path, found }))
    }

    /// Asks the system to fetch at most `limit` bytes of a part of a file, unless they are in memory.
    #[cfg(not(target_vendor = "apple"))]
    pub(super) fn announce(&self, opened: &OpenFile, part: &Part, limit: u64) {
        let OpenFile { file, found, .. } = opened;
        let range = part.range(found.len());
        let length = range.end.saturating_sub(range.start).min(limit);
        if let Some(length) = NonZeroU64::new(length)
            && !self
                .residency
                .found(is_resident(file, range.start + length.get() - 1))
        {
            let advice = rustix::fs::Advice::WillNeed;
            // The call fails where prefetching is not possible, for example for a pipe.
            let _ = rustix::fs::fadvise(file, range.start, Some(length), advice);
        }
    }

    #[cfg(target_vendor = "apple")]
    pub(super) fn announce(&self, _: &OpenFile, _: &Part, _: u64) {}

    /// Looks at the value under `key`, which must be a regular file; `None` if it does not exist.
    fn look<T>(
        &self,
        key: &str,
        look: impl FnOnce(&Path, Metadata) -> io::Result<Option<(T, Metadata)>>,
    ) -> Result<Option<(PathBuf, T, Metadata)>> {
        let path = self.path.join(key);
        self.links.check(&self.path, &path)?;
        // A device must not even be opened.
        let looked = path.metadata().and_then(|found| {
            if found.is_file() {
                look(&path, found)
            } else {
                Ok(None)
            }
        });
        let (looked, found) = match looked {
            Ok(Some(looked)) => looked,
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
        Ok(Some((path, looked, found)))
    }
}

impl Store for Folder {
    fn read(
        &self,
        key: &str,
        part: Part,
        limits: Limits<'_>,
        _: Option<&Arc<Version>>,
    ) -> Result<Option<StoredPart>> {
        let Some(file) = self.open(key)? else {
            return Ok(None);
        };
        let length = file.found.len();
        (limits.check)(length)?;
        Ok(Some(StoredPart {
            bytes: file.read(part.range(length))?,
            length,
            version: None,
        }))
    }

    fn exists(&self, key: &str) -> Result<bool> {
        Ok(self.open(key)?.is_some())
    }

    fn bytes(&self) -> Result<u64> {
        folder_bytes(&self.path)
    }

    fn prefetch(&self, key: &str, part: Part, limit: u64, _: Option<&Arc<Version>>) {
        if cfg!(not(target_vendor = "apple"))
            && !self.residency.is_likely()
            && let Ok(Some(opened)) = self.open(key)
        {
            self.announce(&opened, &part, limit);
        }
    }
}

/// Whether the files that are prefetched are in the system's page cache already. Then prefetching only costs time.
#[derive(Debug, Default)]
struct Residency {
    /// The number of files found there since the last one that was not.
    found: AtomicU32,
    skipped: AtomicU32,
}

impl Residency {
    /// After this many files in the page cache, it is looked up
    const LIKELY: u32 = 32;

    /// for one of so many files only.
    const LOOKED_UP: u32 = 8;

    /// Returns `true` if a file is likely to be in the page cache, and this one is not to be looked up.
    fn is_likely(&self) -> bool {
        self.found.load(Ordering::Relaxed) >= Self::LIKELY
            && !self
                .skipped
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(Self::LOOKED_UP)
    }

    /// Counts a file that was looked up, and returns `is_resident`.
    fn found(&self, is_resident: bool) -> bool {
        if is_resident {
            self.found.fetch_add(1, Ordering::Relaxed);
        } else {
            self.found.store(0, Ordering::Relaxed);
        }
        is_resident
    }
}

/// Returns `true` if the byte at `place` is in the page cache; `false` if that is not known.
#[cfg(target_os = "linux")]
fn is_resident(file: &File, place: u64) -> bool {
    let mut byte = [0];
    let mut into = [io::IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(file, &mut into, place, rustix::io::ReadWriteFlags::NOWAIT);
    read.is_ok_and(|read| read == 1)
}

/// Returns `false`: it is not known.
#[cfg(not(target_os = "linux"))]
const fn is_resident(_: &File, _: u64) -> bool {
    false
}

/// An open file of a folder.
pub(super) struct OpenFile {
    file: File,
    path: PathBuf,
    found: Metadata,
}

impl OpenFile {
    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Returns what the system knew of the file when it was opened.
    pub(super) const fn found(&self) -> &Metadata {
        &self.found
    }

    /// Reads `range`, which must be inside the file.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let wanted = range
            .end
            .checked_sub(range.start)
            .filter(|_| range.end <= self.found.len());
        let Some(length) = wanted.and_then(|n| usize::try_from(n).ok()) else {
            return Err(outside(&self.path, &range, self.found.len()));
        };
        read_at(&self.file, range.start, length).map_err(Error::io("read", &self.path))
    }
}

fn outside(path: &Path, range: &Range<u64>, length: u64) -> Error {
    let problem = format!("bytes {range:?} were requested, but the file has {length}");
    Error::header(path, "Zarr", problem)
}

/// Returns the name of an entry of an archive from its path, which begins with that of the archive.
pub(super) fn name_in(archive: &Archive, path: &Path) -> String {
    let inside = path.strip_prefix(archive.path()).unwrap_or(path);
    inside.to_string_lossy().into_owned()
}

/// Entries of an archive.
#[derive(Debug)]
pub(super) struct Entries {
    archive: Arc<Archive>,
    /// The names of the entries begin so: empty, or a folder with a slash.
    folder: String,
}

impl Entries {
    /// Creates the store of the array at `path`, which begins with the path of the archive.
    pub(super) fn new(archive: &Arc<Archive>, path: &Path) -> Self {
        let mut folder = name_in(archive, path);
        if !folder.is_empty() {
            folder.push('/');
        }
        Self {
            archive: Arc::clone(archive),
            folder,
        }
    }

    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.folder)
    }
}

impl Store for Entries {
    fn read(
        &self,
        key: &str,
        part: Part,
        limits: Limits<'_>,
        _: Option<&Arc<Version>>,
    ) -> Result<Option<StoredPart>> {
        let name = self.name(key);
        let Some(length) = self.archive.length(&name) else {
            return Ok(None);
        };
        (limits.check)(length)?;
        let bytes = self.archive.read(&name, part.range(length))?;
        Ok(bytes.map(|bytes| StoredPart {
            bytes,
            length,
            version: None,
        }))
    }

    fn exists(&self, key: &str) -> Result<bool> {
        Ok(self.archive.contains(&self.name(key)))
    }

    fn prefetch(&self, key: &str, part: Part, limit: u64, _: Option<&Arc<Version>>) {
        self.archive.prefetch(&self.name(key), |length| {
            let range = part.range(length);
            range.start..range.end.min(range.start.saturating_add(limit))
        });
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.archive.stored_bytes(&self.folder))
    }
}

/// Objects below a path of a store.
#[derive(Debug)]
pub(super) struct Objects {
    remote: Remote,
    path: PathBuf,
    /// The versions of the objects that were read last, to notice if one is replaced.
    versions: Versions,
}

impl Objects {
    pub(super) fn new(remote: &Remote, path: &Path) -> Self {
        Self {
            remote: remote.clone(),
            path: path.to_path_buf(),
            versions: Versions::default(),
        }
    }
}

impl Store for Objects {
    fn read(
        &self,
        key: &str,
        part: Part,
        limits: Limits<'_>,
        pin: Option<&Arc<Version>>,
    ) -> Result<Option<StoredPart>> {
        let path = self.path.join(key);
        let known = self.versions.get(key);
        let range = part.clone();
        let refused = |size: u64| match (limits.check)(size) {
            Err(error) => error,
            Ok(()) => outside(&path, &range.range(size), size),
        };
        let pin = pin.or(known.as_ref());
        let Some(found) = self
            .remote
            .read(&path, part, (limits.bytes, &refused), pin)?
        else {
            if pin.is_some() {
                let what = "it can no longer be found".to_owned();
                return Err(Error::InputModified { path, what });
            }
            return Ok(None);
        };
        (limits.check)(found.version.size)?;
        if known.is_none() {
            self.versions.insert(key, &found.version);
        }
        Ok(Some(StoredPart {
            bytes: found.bytes.into(),
            length: found.version.size,
            version: Some(found.version),
        }))
    }

    fn exists(&self, key: &str) -> Result<bool> {
        if self.versions.contains(key) {
            return Ok(true);
        }
        Ok(self.remote.version(&self.path.join(key))?.is_some())
    }

    fn prefetch(&self, key: &str, part: Part, limit: u64, pin: Option<&Arc<Version>>) {
        let known = self.versions.get(key);
        let pin = pin.or(known.as_ref());
        self.remote.prefetch(&self.path.join(key), part, limit, pin);
    }

    fn bytes(&self) -> Result<u64> {
        self.remote.bytes_below(&self.path)
    }

    fn has(&self, key: &str, part: &Part) -> bool {
        self.remote.has(&self.path.join(key), part)
    }

    fn is_remote(&self) -> bool {
        true
    }
}

/// Reads `length` bytes at `start`, without filling the buffer with zeros first.
fn read_at(file: &File, start: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = start + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The buffer may have had more room.
    bytes.truncate(length);
    Ok(bytes)
}

/// Reads and parses a metadata document of up to 16 MiB; `None` if it does not exist.
pub(super) fn read_json(
    folder: &Path,
    name: &str,
    links: Links,
) -> Result<Option<serde_json::Value>> {
    let path = folder.join(name);
    let limits = Limits {
        check: &|length| check_document(&path, length),
        bytes: DOCUMENT,
    };
    let read = Folder::new(folder, links).read(name, Part::Whole, limits, None)?;
    read.map(|read| parse_document(&path, &read.bytes))
        .transpose()
}

/// Maximum bytes of a metadata document.
pub(super) const DOCUMENT: u64 = 16 << 20;

/// Checks the length of a metadata document.
pub(super) fn check_document(path: &Path, length: u64) -> Result<()> {
    if length <= DOCUMENT {
        return Ok(());
    }
    let problem = format!("{length} bytes are more than {DOCUMENT}");
    Err(Error::header(path, "Zarr", problem))
}

/// Parses a metadata document.
pub(super) fn parse_document(path: &Path, bytes: &[u8]) -> Result<serde_json::Value> {
    json::parse(bytes).map_err(|error| {
        let problem = foreign::pointer(bytes).map_or_else(|| error.to_string(), str::to_owned);
        Error::header(path, "Zarr", problem)
    })
}
