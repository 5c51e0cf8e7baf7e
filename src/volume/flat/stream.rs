//! A file that is compressed as a whole, so that it can only be decompressed from its beginning.
//!
//! Reads that go forward through the file decompress it incrementally in bounded memory, so reading it slab by slab
//! costs one pass. A read of the first voxels after a complete pass begins the next pass. Any other read that goes back
//! decompresses the whole file once into an unnamed temporary file, which is then read like an uncompressed file.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value as Json;

use super::super::format::{Encoding, FlatHeader};
use super::super::mmap::Map;
use super::super::read_method::ReadMethod;
use super::super::watch::FileWatch;
use super::super::{Counter, Layout, ReadStats, Volume};
use super::strided::{Strided, to_native};
use super::unpack::{Failure, Packed, Unpacker};
use super::{Source, plain, too_short};
use crate::error::{Error, Result};
use crate::patch::copy_common;
use crate::region::Region;
use crate::store::{DiskCache, Input, Place, read_error};

/// A compressed file that is decompressed as it is read.
#[derive(Debug)]
pub(super) struct StreamVolume {
    layout: Layout,
    time_points: Option<u64>,
    /// The file that holds the stream, and the byte where the stream begins.
    place: Place,
    path: PathBuf,
    start: u64,
    encoding: Encoding,
    /// The positions of the voxels in the decompressed stream.
    voxels: Strided,
    /// Bytes to decompress, including those before the voxels.
    promised: u64,
    big_endian: bool,
    stored: u64,
    /// The compressed file, and a separate header if there is one.
    files: Vec<PathBuf>,
    watch: FileWatch,
    /// What identifies the content of the file.
    content: Option<String>,
    io: ReadMethod,
    counter: Counter,
    /// The stream at the position of the last read; `None` before the first and after a failure.
    forward: Mutex<Option<Unpacker>>,
    /// The whole decompressed file, once a read has gone back.
    unpacked: OnceLock<Unpacked>,
    /// The cache that keeps the decompressed file, with its name there.
    cached: Option<(Arc<DiskCache>, String)>,
}

/// A temporary file with the decompressed bytes.
#[derive(Debug)]
enum Unpacked {
    Map(Map),
    File(Input),
}

/// Decompressed bytes held at once, apart from the buffer of a read.
const BLOCK: usize = 1 << 20;

impl StreamVolume {
    pub(super) fn new(
        path: &Path,
        header: &FlatHeader,
        source: Source,
        io: ReadMethod,
    ) -> Result<Self> {
        let layout = source.layout(path, header);
        Ok(Self {
            promised: header.skip.saturating_add(layout.decoded_bytes()?),
            voxels: Strided::new(header, header.skip),
            layout,
            start: source.start,
            encoding: header.encoding,
            place: source.place,
            path: source.path,
            time_points: header.time_points,
            big_endian: header.big_endian,
            stored: source.stored,
            files: source.files,
            watch: source.watch,
            io,
            counter: Counter::default(),
            forward: Mutex::new(None),
            unpacked: OnceLock::new(),
            cached: None,
            content: source.content,
        })
    }

    /// Keeps the decompressed file in a cache, if there is one.
    pub(super) fn with_cache(mut self, cache: Option<Arc<DiskCache>>) -> Self {
        let Self {
            start,
            promised,
            encoding,
            ..
        } = &self;
        let content = self.content.as_ref();
        let name =
            content.map(|content| format!("{content}\n{start} {promised} {encoding:?} unpacked"));
        self.cached = cache.zip(name);
        self
    }

    /// Returns `true` if the decompressed file was kept by an earlier run.
    fn is_kept(&self) -> bool {
        let cached = self.cached.as_ref();
        cached.is_some_and(|(cache, name)| cache.has(name))
    }

    /// Returns the decompressed file in the cache, if there is one that has room for it.
    fn kept(&self) -> Option<File> {
        let (cache, name) = self.cached.as_ref()?;
        cache.get_file(name).or_else(|| {
            let fill = |file: &mut dyn Write| {
                self.unpack_into(file).map_err(io::Error::other)?;
                // A file that was replaced in the meantime has another name.
                let now = self.place.open(&self.path).map_err(io::Error::other)?;
                let same = now.content(&self.path) == self.content;
                same.then_some(())
                    .ok_or_else(|| io::ErrorKind::InvalidData.into())
            };
            // What fails here fails again without the cache, and is reported there.
            cache.add(name, self.promised, fill).ok()?
        })
    }

    /// Opens the stream at its beginning.
    fn begin(&self) -> Result<Unpacker> {
        let input = self.place.open(&self.path)?;
        // The object must be the one that was opened: a decoded stream does not show what it was decoded from.
        self.watch.check_input(&self.path, &input)?;
        let begin = || {
            let packed = Packed::new(input.reader(self.start)?);
            Unpacker::new(packed, self.promised, self.encoding)
        };
        let stream = begin().map_err(|error| read_error(&self.path, "open", error))?;
        self.counter.add(0, stream.fetched());
        Ok(stream)
    }

    fn failed(&self, failure: Failure) -> Error {
        match failure {
            Failure::Short(actual) => {
                let needs = (self.voxels.start, self.promised);
                too_short(&self.path, &self.layout, needs, actual)
            }
            Failure::Io(source) => read_error(&self.path, "unpack", source),
        }
    }

    /// Runs `work` on a stream and counts the bytes that it fetches.
    fn counted<T>(
        &self,
        stream: &mut Unpacker,
        work: impl FnOnce(&mut Unpacker) -> Result<T, Failure>,
    ) -> Result<T> {
        let before = stream.fetched();
        let done = work(stream).map_err(|failure| self.failed(failure));
        self.counter.add(0, stream.fetched().saturating_sub(before));
        done
    }

    /// Fills `out` from a stream that has not yet passed the box.
    fn read_forward(
        &self,
        stream: &mut Unpacker,
        channels: &Range<u64>,
        region: Region,
        out: &mut [u8],
    ) -> Result<()> {
        if !self.voxels.is_planar() {
            return self.turn_forward(stream, channels, region, out);
        }
        let (run, starts) = self.voxels.runs(channels, region);
        let run = usize::try_from(run).expect("a piece of a buffer");
        self.counted(stream, |stream| {
            for (target, start) in out.chunks_exact_mut(run).zip(starts) {
                stream.skip_to(start)?;
                stream.read(target)?;
            }
            Ok(())
        })
    }

    /// As [`read_forward`](Self::read_forward) for a different axis order in the file: reads a few steps along the
    /// slowest axis at a time.
    fn turn_forward(
        &self,
        stream: &mut Unpacker,
        channels: &Range<u64>,
        region: Region,
        out: &mut [u8],
    ) -> Result<()> {
        let count = channels.end - channels.start;
        let [z, y, x] = region.shape;
        let size = self.layout.dtype.size();
        let (mut packed, mut turned) = (Vec::new(), Vec::new());
        for (own, part) in self.voxels.steps([count, z, y, x], BLOCK as u64).iter() {
            let place = std::array::from_fn(|a| region.start[a] + part.start[a]);
            let place = Region::new(place, part.shape);
            let from = channels.start + own.start..channels.start + own.end;
            let span = self.voxels.span(&from, place);
            packed.resize(length(span.end - span.start), 0);
            self.counted(stream, |stream| {
                stream.skip_to(span.start)?;
                stream.read(&mut packed)
            })?;
            let count = own.end - own.start;
            turned.resize(length(part.voxels() * count) * size, 0);
            self.voxels
                .copy(&packed, span.start, &from, place, &mut turned);
            let skip = length(region.voxels() * own.start) * size;
            copy_common((&turned, place), (&mut out[skip..], region), count, size);
        }
        Ok(())
    }

    /// Returns `true` if a read starts the next pass: it begins with the volume's first voxel, and the stream has been
    /// read to its end.
    fn is_next_pass(&self, stream: &Unpacker, first: u64) -> bool {
        first == self.voxels.start && stream.position() >= self.promised
    }

    /// Decompresses the whole stream into `file`.
    fn unpack_into(&self, file: &mut dyn Write) -> Result<()> {
        let mut stream = self.begin()?;
        let mut block = vec![0; BLOCK];
        while stream.position() < self.promised {
            let left = usize::try_from(self.promised - stream.position()).unwrap_or(BLOCK);
            let block = &mut block[..left.min(BLOCK)];
            self.counted(&mut stream, |stream| stream.read(block))?;
            file.write_all(block)
                .map_err(Error::io(NO_ROOM, &self.path))?;
        }
        Ok(())
    }

    fn unpack(&self) -> Result<Unpacked> {
        let file = if let Some(file) = self.kept() {
            file
        } else {
            let mut file = tempfile::tempfile().map_err(Error::io(NO_ROOM, &self.path))?;
            self.unpack_into(&mut file)?;
            file
        };
        let map = self.io.map(&file);
        let map = map.map_err(Error::io("map the decompressed data of", &self.path))?;
        Ok(map.map_or(Unpacked::File(Input::File(file)), Unpacked::Map))
    }
}

/// The action that fails when the temporary folder has no room, as error messages name it.
const NO_ROOM: &str =
    "find room in the temporary folder (set TMPDIR to use a different one) to unpack";

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length inside a buffer in memory")
}

impl Volume for StreamVolume {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        if self.unpacked.get().is_none() {
            let mut forward = self.forward.lock().unwrap_or_else(PoisonError::into_inner);
            // While this thread waited, another thread may have decompressed everything.
            if self.unpacked.get().is_none() {
                let first = self.voxels.span(&channels, region).start;
                let stream = match forward.take() {
                    Some(stream) if self.is_next_pass(&stream, first) => Some(self.begin()?),
                    None if !self.is_kept() => Some(self.begin()?),
                    stream => stream,
                };
                if let Some(mut stream) = stream.filter(|stream| stream.position() <= first) {
                    self.read_forward(&mut stream, &channels, region, out)?;
                    *forward = Some(stream);
                    drop(forward);
                    to_native(self.layout.dtype, self.big_endian, out);
                    return Ok(());
                }
                let _ = self.unpacked.set(self.unpack()?);
            }
        }
        let unpacked = self
            .unpacked
            .get()
            .expect("it was unpacked by this thread or another");
        match unpacked {
            Unpacked::Map(map) => self
                .voxels
                .copy_mapped(map, &channels, region, out)
                .map_err(io::Error::from),
            Unpacked::File(file) => plain::read(file, &self.voxels, (&channels, region), out),
        }
        .map_err(Error::io("read the decompressed data of", &self.path))?;
        to_native(self.layout.dtype, self.big_endian, out);
        self.counter.add(0, out.len() as u64);
        Ok(())
    }

    fn time_points(&self) -> Option<u64> {
        self.time_points
    }

    fn sequential_order(&self) -> Option<[usize; 4]> {
        let packed = self.unpacked.get().is_none() && !self.is_kept();
        packed.then(|| self.voxels.order())
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
        let mut identity = self.voxels.identity(&self.layout, self.big_endian);
        if let (Encoding::Deflate { .. }, Some(parts)) = (self.encoding, identity.as_object_mut()) {
            // The file may have several streams.
            parts.insert("stream".to_owned(), self.start.into());
        }
        Ok(self.watch.identify(identity))
    }

    fn stored_bytes(&self) -> Result<u64> {
        Ok(self.stored)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::super::super::format::{DataStart, Encoding};
    use super::*;
    use crate::dtype::DType;
    use crate::volume::{Format, VolumeExt};

    #[test]
    fn a_full_disk_is_an_error_that_names_the_file_and_tmpdir() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scan.nii.gz");
        let mut encoder = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
        encoder.write_all(&[7; 5000]).unwrap();
        encoder.finish().unwrap();
        let header = FlatHeader {
            encoding: Encoding::Gzip,
            start: DataStart::byte(0),
            ..FlatHeader::new(Format::Nifti1, [5, 10, 100], DType::U8, 0)
        };
        let source = Source::open(&Place::Local, &path, &header, false).unwrap();
        let volume = StreamVolume::new(&path, &header, source, ReadMethod::Auto).unwrap();
        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = volume.unpack_into(&mut full).unwrap_err();
        let Error::Io { source, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        let message = error.to_string();
        assert!(
            message.contains("TMPDIR") && message.ends_with("scan.nii.gz"),
            "{message}"
        );
        // Nothing is lost: the next read goes forward as usual.
        assert_eq!(
            volume.read(Region::whole([5, 10, 100])).unwrap().bytes(),
            [7; 5000]
        );
    }
}
