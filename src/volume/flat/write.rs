//! Writing flat files, whole or in any boxes and from any threads: `.npy`, `.nii`, `.nrrd`, `.mha`,
//! and `.mhd` with a file of voxels beside it.
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

use super::super::header::{self, FlatHeader, encode, metaimage};
use super::super::staged::StagedFile;
use super::super::{CreateOptions, Format, Layout, VolumeMut};
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
        let staged = StagedFile::new(&layout.path, options.replace)?;
        let beside = is_detached(&layout.path)
            .then(|| Beside::find(&layout.path, options.replace))
            .transpose()?;
        let header = match layout.format {
            Format::Npy => encode::npy(&layout),
            Format::Nrrd => encode::nrrd(&layout)?,
            Format::MetaImage => {
                let name = beside.as_ref().map(|beside| beside.name.as_str());
                encode::metaimage(&layout, name)?
            }
            _ => {
                layout.format = if encode::is_nifti2(&layout) {
                    Format::Nifti2
                } else {
                    Format::Nifti1
                };
                encode::nifti(&layout)?
            }
        };
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
                let data = StagedFile::new(&layout.path.with_file_name(name), false)?;
                (data, Some(Detached { staged, old }))
            }
        };
        reserve(staged.file(), start.saturating_add(bytes))
            .map_err(Error::io("reserve space for", &layout.path))?;
        let holder = detached.as_ref().map_or(&staged, |header| &header.staged);
        holder
            .file()
            .write_all_at(&header, 0)
            .map_err(Error::io("write", &layout.path))?;
        Ok(Self {
            voxels: Strided::new(&facts, start),
            layout,
            staged,
            header: detached,
        })
    }
}

/// Whether the voxels lie beside the header.
fn is_detached(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("mhd"))
}

/// The file of voxels that a header will name.
struct Beside {
    name: String,
    /// The one that the present header names, if its name was the first choice.
    old: Option<PathBuf>,
}

impl Beside {
    /// `NAME.raw`, or `NAME.1.raw` and so on if the header that is replaced has that.
    fn find(header: &Path, replace: bool) -> Result<Self> {
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
            return Ok(Self {
                name: first,
                old: named(header, stem),
            });
        };
        match named(header, stem) {
            // Voxels of another file are nobody's to replace.
            old if replace && old.is_some() => {
                let name = (1..).map(|n| format!("{stem}.{n}.raw"));
                let free = name.into_iter().find(|name| taken(name).is_none());
                let name = free.unwrap_or(first);
                Ok(Self { name, old })
            }
            _ if replace => {
                let what = "it is there already, and no .mhd of this name holds it: move it away";
                Err(Error::unsupported(&path, what))
            }
            _ => Err(Error::Exists { path }),
        }
    }
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
    let head = read_up_to(path, header::LIMIT).ok()?;
    metaimage::parse(path, &head).ok()?.data
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
        let (run, starts) = self.voxels.runs(&channels, region);
        let run = usize::try_from(run).expect("a piece of a buffer");
        for (piece, start) in voxels.chunks_exact(run).zip(starts) {
            self.staged
                .file()
                .write_all_at(piece, start)
                .map_err(Error::io("write", &self.layout.path))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let data = self.staged.target().to_path_buf();
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
        match header.old.map(|old| (fs::remove_file(&old), old)) {
            Some((Err(error), old)) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove what was replaced,", &old)(error))
            }
            _ => Ok(()),
        }
    }
}
