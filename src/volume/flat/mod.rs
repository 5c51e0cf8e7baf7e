//! Flat files: all voxels in one piece, uncompressed or compressed as a whole.
//!
//! An uncompressed file is memory-mapped and copied row by row, in any axis order and at any alignment, or it is read
//! by system calls. A compressed file is a [`StreamVolume`]. A file that is shorter than its header promises is an
//! error on opening, as far as that can be known without decompressing.

mod gzip;
mod pieces;
mod plain;
mod stream;
mod strided;
#[cfg(test)]
mod tests;
mod unpack;
mod write;

use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use self::pieces::PiecesVolume;
use self::stream::StreamVolume;
use self::strided::{Strided, to_native};
use super::format::{DataStart, Encoding, FlatHeader, excerpt, unknown};
use super::mmap::Map;
use super::needs::remote_memory;
use super::options::OpenOptions;
use super::read_method::ReadMethod;
use super::watch::FileWatch;
use super::{ChunkShape, Counter, Layout, ReadStats, Volume, foreign};
use crate::error::{Error, Result};
use crate::region::Region;
use crate::store::{Input, Place, read_error};

pub(super) use self::write::FlatWriter;
#[cfg(feature = "tiff")]
pub(super) use self::write::reserve;

/// Planes of a mapped file that are preferably read together, if they fit in a [`SLAB`] (bytes).
const PLANES: u64 = 2;
const SLAB: u64 = 8 << 20;

/// Runs of at least this many bytes are read by system calls, which then cost less than the page faults of a memory
/// map.
const LONG: u64 = 64 << 10;

/// An uncompressed file.
#[derive(Debug)]
pub(super) struct FlatVolume {
    layout: Layout,
    time_points: Option<u64>,
    /// `None` if the file is read by system calls.
    map: Option<Map>,
    input: Input,
    voxels: Strided,
    big_endian: bool,
    /// Bytes of the file, plus those of a separate header.
    stored: u64,
    /// The byte range of the voxels in the file.
    bytes: Range<u64>,
    /// The file, and a separate header if there is one.
    files: Vec<PathBuf>,
    watch: FileWatch,
    counter: Counter,
}

/// An open data file, with the values that the header leaves open resolved.
#[derive(Debug)]
struct Source {
    place: Place,
    path: PathBuf,
    input: Input,
    length: u64,
    /// The byte where the voxels, or the compressed stream, begin.
    start: u64,
    /// Bytes of the data file, plus those of a separate header.
    stored: u64,
    /// The data file, and a separate header if there is one.
    files: Vec<PathBuf>,
    watch: FileWatch,
    /// What identifies the content of the data file: its path and version; `None` if that is not known.
    content: Option<String>,
}

/// Opens the volume named `path`, described by the header in the file `from`.
pub(super) fn open(
    place: &Place,
    path: &Path,
    from: &Path,
    header: &FlatHeader,
    options: &OpenOptions,
) -> Result<Arc<dyn Volume>> {
    if !header.pieces.is_empty() {
        if place.remote().is_some() {
            let what = "voxels in several files are read from the file system only: copy the volume to this machine";
            return Err(Error::unsupported(path, what));
        }
        return Ok(Arc::new(PiecesVolume::new(path, from, header, options)?));
    }
    let source = Source::open(place, from, header, options.allow_external)?;
    let io = options.read_method;
    Ok(match header.encoding {
        Encoding::Raw => Arc::new(FlatVolume::new(path, header, source, io)?),
        Encoding::Gzip | Encoding::Zlib | Encoding::Deflate { .. } => {
            let volume = StreamVolume::new(path, header, source, io)?;
            Arc::new(volume.with_cache(options.cache()?))
        }
    })
}

impl FlatVolume {
    fn new(path: &Path, header: &FlatHeader, source: Source, io: ReadMethod) -> Result<Self> {
        let layout = source.layout(path, header);
        let bytes = layout.decoded_bytes()?;
        let offset = source.start.saturating_add(header.skip);
        let expected = offset.saturating_add(bytes);
        if source.length < expected {
            return Err(too_short(
                &source.path,
                &layout,
                (offset, expected),
                source.length,
            ));
        }
        let map = source.input.file().map(|file| io.map(file)).transpose();
        let map = map.map_err(Error::io("map", &source.path))?.flatten();
        Ok(Self {
            voxels: Strided::new(header, offset),
            time_points: header.time_points,
            big_endian: header.big_endian,
            stored: source.stored,
            bytes: offset..expected,
            files: source.files,
            watch: source.watch,
            layout,
            map,
            input: source.input,
            counter: Counter::default(),
        })
    }
}

impl FlatVolume {
    /// Reads the contiguous runs of a box one by one.
    fn read_runs(&self, channels: &Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        let (run, starts) = self.voxels.runs(channels, region);
        let run = usize::try_from(run).expect("a piece of a buffer in memory");
        for (target, start) in out.chunks_exact_mut(run).zip(starts) {
            let read = self.input.read_exact_at(target, start);
            read.map_err(|source| self.unread(source))?;
        }
        Ok(())
    }
}

impl FlatVolume {
    /// Returns `true` if long runs are read by system calls, which is not the case where a map keeps its pages.
    fn reads_pieces(&self) -> bool {
        let is_file = self.input.file().is_some();
        is_file && self.voxels.is_planar() && !self.map.as_ref().is_some_and(Map::keeps)
    }

    /// Returns the error for a failed read: the file is too short, or else the I/O error.
    fn unread(&self, source: std::io::Error) -> Error {
        let short = self.check_length().err();
        short.unwrap_or_else(|| read_error(&self.files[0], "read", source))
    }

    /// Checks that the file has not been truncated: the part of the last page that is beyond the end of the file reads
    /// as zeros.
    fn check_length(&self) -> Result<()> {
        let path = &self.files[0];
        let length = self.input.length(path)?;
        if length < self.bytes.end {
            let needs = (self.bytes.start, self.bytes.end);
            return Err(too_short(path, &self.layout, needs, length));
        }
        Ok(())
    }
}

impl Volume for FlatVolume {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        if self.reads_pieces() && self.voxels.runs(&channels, region).0 >= LONG {
            self.read_runs(&channels, region, out)?;
        } else if let Some(map) = &self.map {
            let copied = self.voxels.copy_mapped(map, &channels, region, out);
            self.check_length()?;
            copied.map_err(|lost| Error::io("read", &self.files[0])(lost.into()))?;
        } else {
            plain::read(&self.input, &self.voxels, (&channels, region), out)
                .map_err(|source| self.unread(source))?;
        }
        to_native(self.layout.dtype, self.big_endian, out);
        self.counter.add(0, out.len() as u64);
        Ok(())
    }

    fn read_granularity(&self) -> Option<ChunkShape> {
        let [_, y, x] = self.layout.shape;
        let plane = y.saturating_mul(x) * self.layout.dtype.size() as u64;
        let planes = (SLAB / plane.max(1)).clamp(1, PLANES);
        self.reads_pieces().then_some([1, planes, y, x])
    }

    fn time_points(&self) -> Option<u64> {
        self.time_points
    }

    fn read_stats(&self) -> ReadStats {
        self.counter.stats()
    }

    fn source_files(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.watch.check()
    }

    fn identity(&self) -> Result<Json> {
        let identity = self.voxels.identity(&self.layout, self.big_endian);
        Ok(self.watch.identify(identity))
    }

    fn stored_bytes(&self) -> Result<u64> {
        Ok(self.stored)
    }
}

/// Returns the error for a file that is shorter than its header promises. `needs` holds the first byte of the voxels
/// and the byte after the last.
fn too_short(path: &Path, layout: &Layout, needs: (u64, u64), actual: u64) -> Error {
    Error::FileLength {
        path: path.to_path_buf(),
        channels: layout.channels,
        shape: layout.shape,
        dtype: layout.dtype,
        offset: needs.0,
        expected: needs.1,
        actual,
    }
}

impl Source {
    fn open(
        place: &Place,
        header_path: &Path,
        header: &FlatHeader,
        allow_external: bool,
    ) -> Result<Self> {
        let mut watch = FileWatch::default();
        let (path, also) = match &header.data {
            Some(name) => {
                let found = place.open(header_path)?;
                watch.add_input(header_path, &found)?;
                let path = match place {
                    Place::Local => beside(header_path, name, allow_external)?,
                    Place::Remote(_) => beside_object(header_path, name)?,
                };
                (path, found.length(header_path)?)
            }
            None => (header_path.to_path_buf(), 0),
        };
        let input = place.open(&path)?;
        let length = input.length(&path)?;
        check_pointer(&path, &input, length)?;
        watch.add_input(&path, &input)?;
        let start = match header.start {
            DataStart::At { byte, lines: 0 } => byte,
            DataStart::At { byte, lines } => {
                let text = place.open(&path)?.reader(byte);
                let text = text.map_err(Error::io("read", &path))?;
                after_lines(&path, text, byte, lines)?
            }
            DataStart::End => {
                let layout = header.layout(header_path);
                let bytes = layout.decoded_bytes()?;
                length
                    .checked_sub(bytes)
                    .ok_or_else(|| too_short(&path, &layout, (0, bytes), length))?
            }
        };
        let mut files = vec![path.clone()];
        if header.data.is_some() {
            files.push(header_path.to_path_buf());
        }
        Ok(Self {
            place: place.clone(),
            content: input.content(&path),
            stored: length + also,
            files,
            watch,
            path,
            input,
            length,
            start,
        })
    }

    /// Returns the layout of the volume named `path`.
    fn layout(&self, path: &Path, header: &FlatHeader) -> Layout {
        let mut layout = header.layout(path);
        if self.input.object().is_some() {
            layout.remote = true;
            layout.read_memory = remote_memory(&layout);
        }
        layout
    }
}

/// Checks that a short file is not a pointer to content that is stored elsewhere.
fn check_pointer(path: &Path, input: &Input, length: u64) -> Result<()> {
    const LONGEST: usize = 1024;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Ok(());
    }
    let mut bytes = vec![0; length];
    let read = input.read_exact_at(&mut bytes, 0);
    read.map_err(|error| read_error(path, "read", error))?;
    match foreign::pointer(&bytes) {
        Some(hint) => Err(unknown(path, hint)),
        None => Ok(()),
    }
}

/// Maximum length of a file name in a header, in bytes.
const MOST_NAME: usize = 1024;

/// Returns the path of the file that a header names. It must be a regular file, and must be below the header's folder
/// unless external files are allowed.
fn beside(header: &Path, name: &str, allow_external: bool) -> Result<PathBuf> {
    let refuse = |why: &str| Error::ExternalFile {
        path: header.to_path_buf(),
        file: excerpt(name),
        problem: why.to_owned(),
    };
    let relative = Path::new(name);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if name.contains("://") {
        return Err(refuse("which is not a file"));
    }
    if name.len() > MOST_NAME || name.contains(char::is_control) {
        return Err(refuse("which is not a valid file name"));
    }
    if name.is_empty() || !(allow_external || relative.components().all(plain)) {
        return Err(refuse("which may be outside the header's folder"));
    }
    let folder = match header.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize().map_err(Error::io("open", folder))?;
    let path = folder.join(relative);
    let path = path.canonicalize().map_err(Error::io("open", &path))?;
    if !(allow_external || path.starts_with(&folder)) {
        return Err(refuse("a link to a file outside the header's folder"));
    }
    let found = std::fs::metadata(&path).map_err(Error::io("open", &path))?;
    if !found.is_file() {
        return Err(refuse("which is not a regular file"));
    }
    Ok(path)
}

/// Returns the path of the object that a header names, which must be next to the header or below.
fn beside_object(header: &Path, name: &str) -> Result<PathBuf> {
    let plain = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['?', '#', '%'])
    };
    let is_name = name.len() <= MOST_NAME && !name.contains(char::is_control);
    if !is_name || !name.split('/').all(plain) {
        return Err(Error::ExternalFile {
            path: header.to_path_buf(),
            file: excerpt(name),
            problem: "which is not next to the header".to_owned(),
        });
    }
    Ok(header.with_file_name(name))
}

/// Maximum bytes of text lines before the voxels; more indicates a mistake.
const MOST_LINE_BYTES: u64 = 16 << 20;

/// Returns the byte after `lines` lines of `text`, which begins at `byte`.
fn after_lines(path: &Path, text: impl Read, byte: u64, lines: u64) -> Result<u64> {
    let mut text = BufReader::new(text.take(MOST_LINE_BYTES));
    let mut at = byte;
    for _ in 0..lines {
        let skipped = text.skip_until(b'\n').map_err(Error::io("read", path))?;
        if skipped == 0 {
            let problem = format!("line skip is {lines}, but the first 16 MiB have fewer lines");
            return Err(Error::header(path, "NRRD", problem));
        }
        at += skipped as u64;
    }
    Ok(at)
}
