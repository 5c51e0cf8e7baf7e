//! Writing flat files, whole or in arbitrary boxes and from any thread: `.npy`, `.nii`, `.nrrd`, `.mha`
//! and `.mhd` with a separate file of voxels. A `.nii.gz` is first written uncompressed to an unnamed file, which is compressed at
//! the end.
//!
//! Space is reserved when the file is created, so that a disk that is too small is noticed before any work. Voxels are
//! written to their final positions; the file is never mapped.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::super::format::{self, FlatHeader, VoxelStorage};
use super::super::overwrite::{FileKind, Overwrite};
use super::super::staged::{StagedFile, parent};
use super::super::{Codec, CreateOptions, Layout, VolumeMut};
use super::gzip;
use super::strided::Strided;
use crate::error::{Error, Result};
use crate::files::{read_up_to, write_all_at};
use crate::region::Region;

/// A flat file under construction.
#[derive(Debug)]
pub(in super::super) struct FlatWriter {
    layout: Layout,
    /// The file of voxels.
    staged: StagedFile,
    /// The header, if it is a separate file.
    header: Option<Detached>,
    voxels: Strided,
    /// The uncompressed voxels, if they will be compressed.
    plain: Option<Plain>,
    /// The number of time points, and of channels per time point, if the file stores all times of a channel together.
    turned: Option<[u64; 2]>,
}

/// An unnamed file that will be compressed into the output.
#[derive(Debug)]
struct Plain {
    file: File,
    length: u64,
    level: u8,
}

/// A header with the voxels in a separate file. At every moment, the header under the output's name refers to complete
/// voxels: replaced voxels keep their name until the new header has its own.
#[derive(Debug)]
struct Detached {
    staged: StagedFile,
    /// The voxel file of the header that is replaced.
    old: Option<PathBuf>,
}

impl FlatWriter {
    /// Creates the file that `layout` describes; for NIfTI, the version that fits is chosen.
    pub(in super::super) fn create(mut layout: Layout, options: &CreateOptions) -> Result<Self> {
        let format = format::of(&layout)?;
        let overwrite = Overwrite::by(&layout, options.overwrite)?;
        let staged = StagedFile::new(&layout.path, overwrite)?;
        let beside = is_detached(&layout.path)
            .then(|| Beside::find(&layout.path, options.overwrite))
            .transpose()?;
        let name = beside.as_ref().map(|beside| beside.name.as_str());
        let header = (format.encode)(&mut layout, name)?;
        let attached = beside.is_none();
        let start = if attached { header.len() as u64 } else { 0 };
        let bytes = layout.decoded_bytes()?;
        let facts = FlatHeader::new(layout.format, layout.shape, layout.dtype, start);
        let facts = FlatHeader {
            channels: layout.channels,
            ..facts
        };
        let facts = facts.checked(&layout.path, "output's")?;
        let (staged, detached) = match beside {
            None => (staged, None),
            Some(Beside { name, old }) => {
                let data = StagedFile::new(layout.path.with_file_name(name), Overwrite::Nothing)?;
                (data, Some(Detached { staged, old }))
            }
        };
        let length = start.saturating_add(bytes);
        let plain = if layout.codecs.is_empty() {
            None
        } else {
            Some(Plain::new(&layout, length, options)?)
        };
        let data = plain.as_ref().map_or(staged.file(), |plain| &plain.file);
        reserve(data, length).map_err(Error::io("reserve space for", &layout.path))?;
        let holder = detached
            .as_ref()
            .map_or(data, |header| header.staged.file());
        holder
            .write_all_at(&header, 0)
            .map_err(Error::io("write", &layout.path))?;
        Ok(Self {
            voxels: Strided::new(&facts, start),
            turned: (format.transposed_time)(&layout),
            layout,
            staged,
            header: detached,
            plain,
        })
    }

    /// Returns the file into which voxels are written.
    fn data(&self) -> &File {
        let plain = self.plain.as_ref();
        plain.map_or(self.staged.file(), |plain| &plain.file)
    }
}

impl Plain {
    /// Creates a file on the output's disk, in the same folder.
    fn new(layout: &Layout, length: u64, options: &CreateOptions) -> Result<Self> {
        let folder = parent(&layout.path);
        let level = match options.codec {
            Codec::Gzip => options.clevel.unwrap_or(gzip::LEVEL).min(9),
            _ => gzip::LEVEL,
        };
        let file = tempfile::tempfile_in(folder);
        Ok(Self {
            file: file.map_err(Error::io("create an output in", folder))?,
            length,
            level,
        })
    }
}

impl FlatWriter {
    /// Writes channels by their numbers in the file.
    fn write_as_stored(&self, channels: &Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        let (run, starts) = self.voxels.runs(channels, region);
        let run = usize::try_from(run).expect("a piece of a buffer");
        for (piece, start) in voxels.chunks_exact(run).zip(starts) {
            write_all_at(self.data(), piece, start)
                .map_err(Error::io("write", &self.layout.path))?;
        }
        if self.plain.is_none() {
            self.staged.count_written(voxels.len() as u64);
        }
        Ok(())
    }
}

/// Returns `true` if the voxels are in a separate file next to the header.
fn is_detached(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let found = format::by_output_name(&name.to_lowercase());
    found.is_some_and(|(_, storage)| storage == VoxelStorage::Detached)
}

/// The voxel file that a header will name.
struct Beside {
    name: String,
    /// The voxel file of the existing header, if it is one that we would have made.
    old: Option<PathBuf>,
}

impl Beside {
    /// Chooses `NAME.raw`, or `NAME.1.raw` and so on if the replaced header uses that name.
    fn find(header: &Path, overwrite: bool) -> Result<Self> {
        let Some(stem) = header.file_stem().and_then(|stem| stem.to_str()) else {
            let what = "a header with a separate voxel file needs a UTF-8 name: write .mha";
            return Err(Error::unsupported(header, what));
        };
        let first = format!("{stem}.raw");
        let taken = |name: &str| {
            let path = header.with_file_name(name);
            path.symlink_metadata().is_ok().then_some(path)
        };
        let Some(path) = taken(&first) else {
            let old = named(header, stem);
            old.as_deref().map_or(Ok(()), check_old)?;
            return Ok(Self { name: first, old });
        };
        match named(header, stem) {
            // The voxels of another header must not be replaced.
            Some(old) if overwrite => {
                check_old(&old)?;
                let name = (1..).map(|n| format!("{stem}.{n}.raw"));
                let free = name.into_iter().find(|name| taken(name).is_none());
                let name = free.unwrap_or(first);
                Ok(Self {
                    name,
                    old: Some(old),
                })
            }
            _ if overwrite => Err(Error::NotOverwritable {
                path,
                what: "there already, and no .mhd of this name refers to it".to_owned(),
            }),
            _ => Err(Error::Exists { path }),
        }
    }
}

/// Checks that the voxel file of a replaced header may be removed with it.
fn check_old(path: &Path) -> Result<()> {
    let voxels = FileKind {
        name: "voxels",
        recognizes: |_| true,
    };
    Overwrite::File(voxels).check(path)
}

/// Returns the voxel file that the header at `path` names, if its name is one that we would have chosen.
fn named(path: &Path, stem: &str) -> Option<PathBuf> {
    let data = data_of(path)?;
    let number = data.strip_prefix(stem)?.strip_suffix("raw")?;
    let ours = number == "." || number.trim_matches('.').parse::<u32>().is_ok();
    ours.then(|| path.with_file_name(data))
}

/// Returns the name of the voxel file in the header at `path`.
fn data_of(path: &Path) -> Option<String> {
    let head = read_up_to(path, format::LIMIT).ok()?;
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let (found, _) = format::by_output_name(&name)?;
    (found.parse)(path, &head).ok()?.data
}

/// Sets the length of the file, with the space reserved on disk where the file system supports that.
pub(in super::super) fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes),
        done => Ok(done?),
    }
}

impl VolumeMut for FlatWriter {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        self.layout.check_read(&channels, region, voxels.len())?;
        if voxels.is_empty() {
            return Ok(());
        }
        let Some([times, others]) = self.turned else {
            return self.write_as_stored(&channels, region, voxels);
        };
        let count = usize::try_from(channels.end - channels.start).unwrap_or(1);
        for (channel, voxels) in channels.zip(voxels.chunks_exact(voxels.len() / count)) {
            let place = channel % others * times + channel / others;
            self.write_as_stored(&(place..place + 1), region, voxels)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let data = self.staged.target().to_path_buf();
        if let Some(Plain {
            file,
            length,
            level,
        }) = &self.plain
        {
            gzip::pack(file, *length, self.staged.file(), *level, &data)?;
        }
        let Some(header) = self.header else {
            return self.staged.finish();
        };
        let inode = |found: io::Result<fs::Metadata>| found.ok().map(|found| found.ino());
        let ours = inode(self.staged.file().metadata());
        let finished = self.staged.finish();
        if let Err(error) = finished.and_then(|()| header.staged.finish()) {
            // Voxels without a header would block the next attempt. Voxels whose header already has its name are
            // complete.
            let named = data_of(&self.layout.path).is_some_and(|name| data.ends_with(name));
            if !named && inode(fs::symlink_metadata(&data)) == ours {
                let _ = fs::remove_file(&data);
            }
            return Err(error);
        }
        let Some(old) = header.old else {
            return Ok(());
        };
        check_old(&old)?;
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove the replaced file", &old)(error))
            }
            _ => Ok(()),
        }
    }
}
