//! Writing flat files, whole or in any boxes and from any threads: `.npy`, `.nii`, `.nrrd`, `.mha`,
//! and `.mhd` with a file of voxels beside it; `.nii.gz` by way of a file without a name, which is
//! compressed in the end.
//!
//! The space is reserved when the file is begun, so that a disk that is too small is noticed
//! before any work, and voxels are written where they belong; the file is never mapped.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::super::format::{self, FlatHeader, Storage};
use super::super::overwrite::{FileKind, Overwrite};
use super::super::staged::{StagedFile, parent};
use super::super::{Codec, CreateOptions, Layout, VolumeMut};
use super::gzip;
use super::strided::Strided;
use crate::error::{Error, Result};
use crate::files::read_up_to;
use crate::region::Region;

/// A flat file under construction.
#[derive(Debug)]
pub(in super::super) struct FlatWriter {
    layout: Layout,
    /// The file of voxels.
    staged: StagedFile,
    /// The file of the header, if it is another.
    header: Option<Detached>,
    voxels: Strided,
    /// The voxels until they are compressed, if they will be.
    plain: Option<Plain>,
    /// Time points and channels of each, where the file has all times of a channel together.
    turned: Option<[u64; 2]>,
}

/// A file without a name that becomes a compressed one.
#[derive(Debug)]
struct Plain {
    file: File,
    length: u64,
    level: u8,
}

/// A header with the voxels in another file. The header that has the name points at all of its
/// voxels at every moment: voxels that are replaced keep their name until the new header has its.
#[derive(Debug)]
struct Detached {
    staged: StagedFile,
    /// The voxels of the header that is replaced.
    old: Option<PathBuf>,
}

impl FlatWriter {
    /// Starts the file that `layout` asks for; NIfTI becomes the version that fits.
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
                let data = StagedFile::new(&layout.path.with_file_name(name), Overwrite::Nothing)?;
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

    /// The file into which voxels are written.
    fn data(&self) -> &File {
        let plain = self.plain.as_ref();
        plain.map_or(self.staged.file(), |plain| &plain.file)
    }
}

impl Plain {
    /// A file next to the output, on the same disk.
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
    /// Writes channels by their number in the file.
    fn write_as_stored(&self, channels: &Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        let (run, starts) = self.voxels.runs(channels, region);
        let run = usize::try_from(run).expect("a piece of a buffer");
        for (piece, start) in voxels.chunks_exact(run).zip(starts) {
            self.data()
                .write_all_at(piece, start)
                .map_err(Error::io("write", &self.layout.path))?;
        }
        Ok(())
    }
}

/// Returns `true` if the voxels are in a file next to the header.
fn is_detached(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let found = format::by_output_name(&name.to_lowercase());
    found.is_some_and(|(_, storage)| storage == Storage::Detached)
}

/// The file of voxels that a header will name.
struct Beside {
    name: String,
    /// The one that the present header names, if its name was the first choice.
    old: Option<PathBuf>,
}

impl Beside {
    /// `NAME.raw`, or `NAME.1.raw` and so on if the header that is replaced has that.
    fn find(header: &Path, overwrite: bool) -> Result<Self> {
        let Some(stem) = header.file_stem().and_then(|stem| stem.to_str()) else {
            let what = "a header and the voxels beside it need a name that is UTF-8: write .mha";
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
            // Voxels of another file are nobody's to replace.
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
                what: "there already, and no .mhd of this name holds it".to_owned(),
            }),
            _ => Err(Error::Exists { path }),
        }
    }
}

/// Checks that the voxels of a header that is replaced may be removed with it.
fn check_old(path: &Path) -> Result<()> {
    let voxels = FileKind {
        name: "voxels",
        recognizes: |_| true,
    };
    Overwrite::File(voxels).check(path)
}

/// The file of voxels that the header at `path` names, if it is one that we would have made.
fn named(path: &Path, stem: &str) -> Option<PathBuf> {
    let data = data_of(path)?;
    let number = data.strip_prefix(stem)?.strip_suffix("raw")?;
    let ours = number == "." || number.trim_matches('.').parse::<u32>().is_ok();
    ours.then(|| path.with_file_name(data))
}

/// What the header at `path` calls the file of its voxels.
fn data_of(path: &Path) -> Option<String> {
    let head = read_up_to(path, format::LIMIT).ok()?;
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let (found, _) = format::by_output_name(&name)?;
    (found.parse)(path, &head).ok()?.data
}

/// Makes the file so long, on the disk where the file system can.
fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
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
            // Voxels without a header would stand in the way of the next attempt; those whose
            // header has its name by now are whole.
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
                Err(Error::io("remove what was replaced,", &old)(error))
            }
            _ => Ok(()),
        }
    }
}
