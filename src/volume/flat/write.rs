//! Writing flat files: `.npy` and `.nii`, whole or in any boxes and from any threads.
//!
//! The space is reserved when the file is begun, so that a disk that is too small is noticed
//! before any work, and voxels are written where they belong; the file is never mapped.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::super::header::{FlatHeader, encode};
use super::super::staged::StagedFile;
use super::super::{CreateOptions, Format, Layout, VolumeMut};
use super::strided::Strided;
use crate::error::{Error, Result};
use crate::region::Region;

/// A flat file under construction.
#[derive(Debug)]
pub(in super::super) struct FlatWriter {
    layout: Layout,
    staged: StagedFile,
    voxels: Strided,
}

impl FlatWriter {
    /// Starts a numpy file if `layout` says so, else a NIfTI file of the version that fits.
    pub(in super::super) fn create(mut layout: Layout, options: &CreateOptions) -> Result<Self> {
        let header = if layout.format == Format::Npy {
            encode::npy(&layout)
        } else {
            layout.format = if encode::is_nifti2(&layout) {
                Format::Nifti2
            } else {
                Format::Nifti1
            };
            encode::nifti(&layout)?
        };
        let start = header.len() as u64;
        let bytes = layout.decoded_bytes()?;
        let facts = FlatHeader::new(layout.format, layout.shape, layout.dtype, start);
        let facts = FlatHeader {
            channels: layout.channels,
            ..facts
        };
        let facts = facts.checked(&layout.path, "output's")?;
        let staged = StagedFile::new(&layout.path, options.replace)?;
        reserve(staged.file(), start.saturating_add(bytes))
            .map_err(Error::io("reserve space for", &layout.path))?;
        staged
            .file()
            .write_all_at(&header, 0)
            .map_err(Error::io("write", &layout.path))?;
        Ok(Self {
            voxels: Strided::new(&facts, start),
            layout,
            staged,
        })
    }
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
        self.staged.finish()
    }
}
