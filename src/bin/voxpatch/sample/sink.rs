//! Where patches go: a .npy, a .zarr, a folder of .nii or .nii.gz, or nowhere. Each appears when it is whole.

use std::fs;
use std::path::Path;

use anyhow::Context;
use voxpatch::training::Sample;
use voxpatch::volume::{
    Codec, CreateOptions, DiskSpace, FileKind, FolderKind, StagedFolder, UnexpectedEntry, create,
    disk_space, output_layout,
};
use voxpatch::{DType, Error, Geometry, Layout, Region, Shape, VolumeMut};

use crate::output::Output;

/// Folders of patches, as this command writes them.
const PATCHES: FolderKind = FolderKind {
    name: "a folder of patches",
    foreign: foreign_to_patches,
};

/// Bytes of a .nii before its voxels, at least.
const NIFTI_HEADER: u64 = 352;

/// The form of an output, chosen by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Npy,
    Zarr,
    Folder,
}

impl Form {
    /// The form that a name asks for.
    pub(super) fn of(path: &Path) -> voxpatch::Result<Self> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        let is_named_folder = path.as_os_str().to_string_lossy().ends_with('/');
        let is_folder = is_named_folder || path.is_dir();
        match extension.as_deref() {
            Some("npy") if !is_named_folder => Ok(Self::Npy),
            Some("zarr") => Ok(Self::Zarr),
            None => Ok(Self::Folder),
            _ if is_folder => Ok(Self::Folder),
            _ => Err(Error::InvalidArgument {
                argument: "output",
                value: path.display().to_string(),
                problem: "patches are written to a .npy file, a .zarr store, or a folder, whose name ends in /"
                    .to_owned(),
            }),
        }
    }
}

impl Form {
    /// The disk space of `count` patches, each of `patch` voxels with the channels and the voxel type of
    /// `layout`.
    pub(super) fn space(
        self,
        path: &Path,
        layout: &Layout,
        (patch, count): (Shape, u64),
    ) -> anyhow::Result<DiskSpace> {
        let one = Layout::new(patch, layout.channels, layout.dtype).decoded_bytes()?;
        match self {
            Self::Npy => {
                let header = npy_header(layout.dtype, npy_shape(layout, patch, count)).len();
                let voxels = one.saturating_mul(count);
                Ok(DiskSpace::exact(path, voxels.saturating_add(header as u64)))
            }
            Self::Zarr => {
                let (whole, options) = zarr(layout, (patch, count), true)?;
                let whole = output_layout(path, &whole, &options)?;
                let space = disk_space(&[(&whole, &options)], false)?;
                space
                    .into_iter()
                    .next()
                    .context("one output is on one disk")
            }
            Self::Folder => {
                let file = one.saturating_add(NIFTI_HEADER);
                Ok(DiskSpace::exact(path, file.saturating_mul(count)))
            }
        }
    }

    /// Checks that patches in this form may be called so.
    pub(super) fn check(self, path: &Path, overwrite: bool) -> voxpatch::Result<()> {
        let rule = match self {
            Self::Npy => FileKind::NPY.overwrite(overwrite),
            Self::Zarr => FolderKind::ZARR.overwrite(overwrite),
            Self::Folder => PATCHES.overwrite(overwrite),
        };
        rule.check(path)
    }
}

/// Patches under way to their output.
#[derive(Debug)]
pub(super) enum Sink {
    Nothing,
    Npy(Output),
    Zarr {
        target: Box<dyn VolumeMut>,
        /// The first channel of the next patch.
        next: u64,
    },
    Folder {
        folder: StagedFolder,
        next: u64,
        naming: Naming,
    },
}

/// How the files of a folder are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Naming {
    /// Whether names identify the input.
    pub(super) several: bool,
    /// `nii` or `nii.gz`.
    pub(super) extension: &'static str,
}

impl Sink {
    /// Starts the output of `count` patches, each of `patch` voxels with the channels and the voxel
    /// type of `layout`.
    pub(super) fn create(
        path: &Path,
        overwrite: bool,
        layout: &Layout,
        (patch, count): (Shape, u64),
        naming: Naming,
    ) -> anyhow::Result<Self> {
        match Form::of(path)? {
            Form::Npy => {
                let mut out = Output::create(path, FileKind::NPY.overwrite(overwrite))?;
                out.append(&npy_header(layout.dtype, npy_shape(layout, patch, count)))?;
                Ok(Self::Npy(out))
            }
            Form::Zarr => {
                let (whole, options) = zarr(layout, (patch, count), overwrite)?;
                let target = create(path, &whole, &options)?;
                Ok(Self::Zarr { target, next: 0 })
            }
            Form::Folder => Ok(Self::Folder {
                folder: StagedFolder::new(path, PATCHES.overwrite(overwrite))?,
                next: 0,
                naming,
            }),
        }
    }

    /// Adds a patch.
    pub(super) fn put(&mut self, sample: &Sample) -> anyhow::Result<()> {
        let patch = &sample.patches()[0];
        match self {
            Self::Nothing => {}
            Self::Npy(out) => out.append(patch.bytes())?,
            Self::Zarr { target, next } => {
                let whole = Region::whole(sample.region.shape);
                let end = *next + patch.channels();
                target.write_channels(*next..end, whole, patch.bytes())?;
                *next = end;
            }
            Self::Folder {
                folder,
                next,
                naming: Naming { several, extension },
            } => {
                let name = if *several {
                    format!("patch_{next:06}_input_{}.{extension}", sample.subject_index)
                } else {
                    format!("patch_{next:06}.{extension}")
                };
                *next += 1;
                let layout = Layout::new(sample.region.shape, patch.channels(), patch.dtype())
                    .with_geometry(sample.geometry());
                let file = folder.path().join(name);
                let target = create(&file, &layout, &CreateOptions::default())?;
                target.write(Region::whole(layout.shape), patch.bytes())?;
                target.finish()?;
            }
        }
        Ok(())
    }

    /// Gives the output its name.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Npy(out) => out.finish(),
            Self::Zarr { target, .. } => Ok(target.finish()?),
            Self::Folder { folder, .. } => Ok(folder.finish()?),
        }
    }
}

/// The Zarr of `count` patches, whose channels are channels of it one after the other.
fn zarr(
    layout: &Layout,
    (patch, count): (Shape, u64),
    overwrite: bool,
) -> anyhow::Result<(Layout, CreateOptions)> {
    let channels = count.checked_mul(layout.channels).filter(|&n| n > 0);
    let channels =
        channels.with_context(|| format!("{count} patches cannot be channels of a Zarr"))?;
    let whole = Layout::new(patch, channels, layout.dtype)
        .with_geometry(Geometry::from_spacing(layout.geometry.spacing));
    let options = CreateOptions::default()
        .with_chunk(patch)
        .with_shard(None)
        .with_codec(Codec::Zstd)
        .with_overwrite(overwrite);
    Ok((whole, options))
}

/// The first thing in a folder that is not a patch.
fn foreign_to_patches(folder: &Path) -> voxpatch::Result<Option<UnexpectedEntry>> {
    let failed = |source| Error::Io {
        action: "list",
        path: folder.to_path_buf(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ends = [".nii", ".nii.gz"].iter().any(|end| name.ends_with(end));
        let is_patch = name.starts_with("patch_") && ends;
        if !is_patch || !entry.file_type().map_err(failed)?.is_file() {
            return Ok(Some(UnexpectedEntry::new(entry.path())));
        }
    }
    Ok(None)
}

/// The axes n, c, z, y, x of a .npy of patches.
const fn npy_shape(layout: &Layout, [z, y, x]: Shape, count: u64) -> [u64; 5] {
    [count, layout.channels, z, y, x]
}

/// The head of a .npy (version 1.0) of this type and shape.
fn npy_header(dtype: DType, shape: [u64; 5]) -> Vec<u8> {
    let kind = match dtype {
        DType::Bool => 'b',
        dtype if dtype.is_float() => 'f',
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => 'u',
        _ => 'i',
    };
    let order = match dtype.size() {
        1 => '|',
        _ if cfg!(target_endian = "big") => '>',
        _ => '<',
    };
    let shape = shape.map(|n| n.to_string()).join(", ");
    let mut text = format!(
        "{{'descr': '{order}{kind}{}', 'fortran_order': False, 'shape': ({shape}), }}",
        dtype.size()
    );
    // Voxels start at a multiple of 64; the line feed ends the header.
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(length - text.len() - 1));
    text.push('\n');
    let length = u16::try_from(length).expect("five numbers are a few hundred characters");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(length.to_le_bytes());
    header.extend(text.bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_npy_header_is_aligned_and_spells_the_type() {
        for (dtype, name) in [
            (DType::I16, "<i2"),
            (DType::Bool, "|b1"),
            (DType::F16, "<f2"),
        ] {
            let header = npy_header(dtype, [u64::MAX; 5]);
            assert_eq!(header.len() % 64, 0);
            let text = String::from_utf8_lossy(&header[10..]).into_owned();
            assert!(text.starts_with(&format!("{{'descr': '{name}',")) && text.ends_with('\n'));
        }
    }
}
