//! Voxels in several uncompressed files, such as one per slice. Concatenated, they are the content of a single flat
//! file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::super::format::{DataStart, FlatHeader};
use super::super::options::OpenOptions;
use super::super::watch::FileWatch;
use super::super::{Counter, Layout, ReadStats, Volume};
use super::strided::{Strided, to_native};
use super::{after_lines, beside, plain, too_short};
use crate::error::{Error, Result};
use crate::region::Region;

/// A volume stored in several files. They are opened for each read, because there may be more of them than a process
/// may have open.
#[derive(Debug)]
pub(super) struct PiecesVolume {
    layout: Layout,
    time_points: Option<u64>,
    files: Files,
    header: PathBuf,
    voxels: Strided,
    big_endian: bool,
    /// Bytes of all files and the header.
    stored: u64,
    watch: FileWatch,
    counter: Counter,
}

/// Files that hold equal numbers of voxel bytes.
#[derive(Debug)]
struct Files {
    /// The path of each file, and the byte where its voxels begin.
    all: Vec<(PathBuf, u64)>,
    /// Bytes of voxels per file.
    each: u64,
}

impl PiecesVolume {
    /// Creates the volume named `path`, whose header in the file `from` names several files.
    pub(super) fn new(
        path: &Path,
        from: &Path,
        header: &FlatHeader,
        options: &OpenOptions,
    ) -> Result<Self> {
        let layout = header.layout(path);
        let bytes = layout.decoded_bytes()?;
        let count = header.pieces.len() as u64;
        if !bytes.is_multiple_of(count) {
            let [z, y, x] = layout.shape;
            let problem = format!(
                "the voxels are in {count} files, which cannot hold equal parts of {} x {z} x {y} x {x}",
                layout.channels
            );
            return Err(Error::header(from, "detached", problem));
        }
        let each = bytes / count;
        let mut watch = FileWatch::default();
        let found = std::fs::metadata(from).map_err(Error::io("open", from))?;
        watch.add(from, &found);
        let mut stored = found.len();
        let mut all = Vec::with_capacity(header.pieces.len());
        for name in &header.pieces {
            let path = beside(from, name, options.allow_external)?;
            let mut file = File::open(&path).map_err(Error::io("open", &path))?;
            let found = file.metadata().map_err(Error::io("open", &path))?;
            watch.add(&path, &found);
            let length = found.len();
            let start = match header.start {
                DataStart::At { byte, lines: 0 } => byte,
                DataStart::At { byte, lines } => {
                    let begin = file.seek(SeekFrom::Start(byte));
                    begin.map_err(Error::io("read", &path))?;
                    after_lines(&path, file, byte, lines)?
                }
                DataStart::End => length.saturating_sub(each),
            };
            let start = start.saturating_add(header.skip);
            let end = start.saturating_add(each);
            if length < end {
                return Err(too_short(&path, &layout, (start, end), length));
            }
            stored += length;
            all.push((path, start));
        }
        Ok(Self {
            voxels: Strided::new(header, 0),
            time_points: header.time_points,
            files: Files { all, each },
            header: from.to_path_buf(),
            big_endian: header.big_endian,
            layout,
            stored,
            watch,
            counter: Counter::default(),
        })
    }
}

impl Files {
    /// Fills `out` with voxels, starting at byte `at` of the concatenated files. An error comes with the path of its
    /// file.
    fn read(
        &self,
        mut out: &mut [u8],
        mut at: u64,
    ) -> std::result::Result<(), (PathBuf, io::Error)> {
        while !out.is_empty() {
            let place = usize::try_from(at / self.each).unwrap_or(usize::MAX);
            let Some((path, start)) = self.all.get(place) else {
                return Err((PathBuf::new(), io::ErrorKind::UnexpectedEof.into()));
            };
            let inside = at % self.each;
            let length =
                usize::try_from(self.each - inside).map_or(out.len(), |left| left.min(out.len()));
            let (part, rest) = out.split_at_mut(length);
            let read = File::open(path).and_then(|file| file.read_exact_at(part, start + inside));
            read.map_err(|error| (path.clone(), error))?;
            out = rest;
            at += length as u64;
        }
        Ok(())
    }
}

impl Volume for PiecesVolume {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        let mut failed = None;
        let mut read = |out: &mut [u8], at: u64| {
            self.files.read(out, at).map_err(|(path, error)| {
                let kind = error.kind();
                failed = Some((path, error));
                kind.into()
            })
        };
        let done = plain::read_by(&mut read, &self.voxels, (&channels, region), out);
        if let Some((path, error)) = failed {
            return Err(Error::io("read", &path)(error));
        }
        done.map_err(Error::io("read", &self.header))?;
        to_native(self.layout.dtype, self.big_endian, out);
        self.counter.add(0, out.len() as u64);
        Ok(())
    }

    fn time_points(&self) -> Option<u64> {
        self.time_points
    }

    fn read_stats(&self) -> ReadStats {
        self.counter.stats()
    }

    fn source_files(&self) -> Vec<PathBuf> {
        let data = self.files.all.iter().map(|(path, _)| path.clone());
        data.chain([self.header.clone()]).collect()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.watch.check()
    }

    fn identity(&self) -> Result<Json> {
        Ok(self.voxels.identity(&self.layout, self.big_endian))
    }

    fn stored_bytes(&self) -> Result<u64> {
        Ok(self.stored)
    }
}
