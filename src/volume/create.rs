//! Creation of outputs. The extension of the name chooses the format; folders are Zarr.

use std::path::{Path, PathBuf};

use super::format::{self, VoxelStorage, excerpt};
use super::options::setters;
use super::overwrite::Overwrite;
#[cfg(feature = "tiff")]
use super::tiff;
use super::{Format, Layout, Pyramid, ReadMemory, VolumeMut, flat, partial, space, staged, zarr};
use crate::error::{Error, Result};
use crate::region::Shape;
use crate::store::{StorageOptions, is_remote, local, shown};

/// Options for creating a volume.
///
/// ```
/// use voxpatch::volume::{Codec, CreateOptions};
///
/// let options = CreateOptions::default()
///     .with_chunk([64; 3])
///     .with_shard(None)
///     .with_codec(Codec::Gzip);
/// assert_eq!(options.clevel, None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Voxels of a read chunk along z, y, x; only for Zarr.
    pub chunk: Shape,
    /// Voxels along z, y, x of the tiles of TIFF that are written together: those of the same place in several pages,
    /// which is one page unless tiles are compressed. `None` for tiles of nearly equal size of at most 256 x 256 in 32
    /// pages.
    pub tile: Option<Shape>,
    /// The compression of the tiles of TIFF: [`Codec::None`] (the default), [`Codec::Zlib`] or [`Codec::Zstd`].
    pub tile_codec: Codec,
    /// Voxels of a shard along z, y, x, a multiple of the chunk; `None` for one file per chunk.
    pub shard: Option<Shape>,
    /// The compression of chunks; only for Zarr.
    pub codec: Codec,
    /// The compression level of either codec; `None` for the codec's default.
    pub clevel: Option<u8>,
    /// The Zarr version.
    pub zarr: ZarrVersion,
    /// The coarser levels that are written with the volume; only for Zarr.
    pub pyramid: Option<Pyramid>,
    /// Whether an existing output of this name may be replaced: a file by a file of the same format, a Zarr array or
    /// group by Zarr. Nothing else is ever replaced.
    pub overwrite: bool,
    /// Credentials and other options of the object store that the output is in; empty for a file system.
    pub storage_options: StorageOptions,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            chunk: [32; 3],
            tile: None,
            tile_codec: Codec::None,
            shard: Some([128; 3]),
            codec: Codec::Zstd,
            clevel: None,
            zarr: ZarrVersion::V3,
            pyramid: None,
            overwrite: false,
            storage_options: StorageOptions::new(),
        }
    }
}

impl CreateOptions {
    /// Returns the defaults for Zarr v2: one file for each chunk of 64^3 voxels.
    #[must_use]
    pub fn zarr2() -> Self {
        Self {
            chunk: [64; 3],
            shard: None,
            zarr: ZarrVersion::V2,
            ..Self::default()
        }
    }

    setters! {
        /// Sets the voxels of a read chunk along z, y, x.
        with_chunk(chunk: Shape);
        /// Sets the voxels of tiles of TIFF along z, y, x; `None` for the usual ones.
        with_tile(tile: Option<Shape>);
        /// Sets the compression of tiles of TIFF.
        with_tile_codec(tile_codec: Codec);
        /// Sets the voxels of a shard along z, y, x; `None` for one file per chunk.
        with_shard(shard: Option<Shape>);
        /// Sets the codec.
        with_codec(codec: Codec);
        /// Sets the compression level.
        with_clevel(clevel: Option<u8>);
        /// Sets the Zarr version.
        with_zarr(zarr: ZarrVersion);
        /// Sets the coarser levels.
        with_pyramid(pyramid: Option<Pyramid>);
        /// Sets whether an output of the same name may be replaced.
        with_overwrite(overwrite: bool);
        /// Sets the options of the object store.
        with_storage_options(storage_options: StorageOptions);
    }
}

/// A version of the Zarr format, and the OME-Zarr version that goes with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZarrVersion {
    /// Zarr v2 with OME-Zarr 0.4, for programs that read only this version. It has no shards.
    V2,
    /// Zarr v3 with OME-Zarr 0.5.
    #[default]
    V3,
}

/// The compression of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// zstd with a checksum that catches damage: the default.
    Zstd,
    /// blosc with shuffled bytes and zstd.
    BloscZstd,
    /// blosc with shuffled bytes and lz4: the fastest to decode.
    BloscLz4,
    /// gzip.
    Gzip,
    /// zlib; only in Zarr v2 and TIFF.
    Zlib,
    /// No compression.
    None,
}

/// Creates an output at `path`. `.npy`, `.nii`, `.nrrd` and `.mha` are flat files, `.tif` is an OME-BigTIFF of tiles;
/// `.nii.gz` is compressed on all threads when it is finished; `.mhd` is a header with a `.raw` file next to it. `.zarr`, a name in a
/// `.zarr` folder, or a name without extension is a Zarr image: sharded Zarr v3 with OME-Zarr 0.5 metadata, unless the
/// options say otherwise.
///
/// `layout` gives the shape, channels, voxel type, geometry and rescale.
///
/// # Errors
///
/// [`Error::Exists`] if the name is taken, [`Error::NotOverwritable`] if the existing file or folder may not be
/// replaced, [`Error::InvalidArgument`] if chunks and shards do not fit each other, [`Error::Unsupported`] if the
/// format cannot hold the volume, [`Error::NoSpace`] if the disk has no space even to begin (see
/// [`disk_space`](super::disk_space)), and [`Error::Io`] if the folder cannot be written.
pub fn create(
    path: impl AsRef<Path>,
    layout: &Layout,
    options: &CreateOptions,
) -> Result<Box<dyn VolumeMut>> {
    let path = path.as_ref();
    let layout = output_layout(path, layout, options)?;
    if layout.is_local_zarr() {
        partial::tidy(&layout.path)?;
    }
    // The name is checked first: a taken name matters more than a lack of space.
    check_name(&layout, options)?;
    space::check(&layout, options, false)?;
    Ok(match layout.format {
        Format::Zarr2 | Format::Zarr3 => Box::new(zarr::ZarrWriter::create(&layout, options)?),
        #[cfg(feature = "tiff")]
        Format::Tiff => Box::new(tiff::TileWriter::create(layout, options)?),
        _ => Box::new(flat::FlatWriter::create(layout, options)?),
    })
}

/// Checks that an output may have its name; `layout` comes from [`output_layout`].
///
/// # Errors
///
/// As [`create`], if the name is taken.
pub fn check_name(layout: &Layout, options: &CreateOptions) -> Result<()> {
    if let Some(remote) = zarr::store_of(&layout.path, options)? {
        return zarr::check_objects(&remote, &layout.path, options.overwrite);
    }
    Overwrite::by(layout, options.overwrite)?.check(&layout.path)
}

/// Returns the layout of the output that [`create`] would create: format, codecs and chunks.
///
/// # Errors
///
/// As [`create`], except errors of the disk.
pub fn output_layout(
    path: impl AsRef<Path>,
    layout: &Layout,
    options: &CreateOptions,
) -> Result<Layout> {
    let given = local(path.as_ref());
    let remote = is_remote(&given);
    let path = &*if remote { address(&given)? } else { given };
    let mut layout = Layout {
        path: path.to_path_buf(),
        remote,
        read_chunk: None,
        write_chunk: None,
        codecs: Vec::new(),
        applied: None,
        read_memory: ReadMemory::default(),
        ..layout.clone()
    };
    layout.decoded_bytes()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let lower = name.to_lowercase();
    let Some((found, storage)) = format::by_output_name(&lower) else {
        let end = lower.rsplit_once('.').map(|(_, end)| end);
        if matches!(end, None | Some("zarr")) || is_inside_zarr(path) {
            return zarr::ZarrWriter::describe(&layout, options);
        }
        let what = format!(
            "files named {:?} cannot be written: use {}",
            excerpt(&name),
            format::writable_extensions().join(", ")
        );
        return Err(Error::unsupported(path, what));
    };
    if remote {
        let what =
            "only Zarr is written to stores: write .zarr, or write it to this machine and copy it";
        return Err(Error::unsupported(path, what));
    }
    layout.format = found.formats[0];
    (found.check)(&layout)?;
    if storage == VoxelStorage::Gzip {
        layout.codecs.push("gzip".to_owned());
    }
    if options.pyramid.is_some() {
        return Err(Error::unsupported(
            path,
            "only Zarr can store coarser levels: write .zarr, or no pyramid",
        ));
    }
    #[cfg(feature = "tiff")]
    if layout.format == Format::Tiff {
        tiff::describe_output(&mut layout, options)?;
    }
    Ok(layout)
}

/// Returns the address of an output, which must not have secrets: it is used again where they would be lost.
fn address(given: &Path) -> Result<PathBuf> {
    let shown = shown(given);
    let text = given.to_string_lossy();
    if shown.to_str() == Some(text.trim_end_matches('/')) {
        return Ok(shown);
    }
    let what =
        "the address of an output has no user, password or query: give them as storage options";
    Err(Error::unsupported(&shown, what))
}

/// Returns `true` if a folder above `path` is named like a Zarr store; groups in it may have any name.
fn is_inside_zarr(path: &Path) -> bool {
    let above = path.ancestors().skip(1);
    above
        .filter_map(Path::extension)
        .any(|end| end.eq_ignore_ascii_case("zarr"))
}

/// Checks that an output is not an input, and neither is inside the other.
///
/// # Errors
///
/// [`Error::OutputIsInput`], naming both.
pub fn check_output(output: &Path, inputs: &[&Path]) -> Result<()> {
    let Some(place) = place_of(output) else {
        return Ok(());
    };
    for input in inputs {
        let found = if is_remote(input) {
            object_place(input)
        } else if let Ok(found) = std::fs::canonicalize(local(input)) {
            found
        } else {
            continue;
        };
        if overlap(&place, &found) {
            return Err(Error::OutputIsInput {
                output: output.to_path_buf(),
                input: input.to_path_buf(),
            });
        }
    }
    Ok(())
}

/// Checks that no two outputs are the same, and that none is inside another.
///
/// # Errors
///
/// [`Error::SameOutput`], naming both.
pub fn check_distinct(outputs: &[&Path]) -> Result<()> {
    for (n, output) in outputs.iter().enumerate() {
        for other in &outputs[..n] {
            let both = place_of(output).zip(place_of(other));
            if both.is_some_and(|(a, b)| overlap(&a, &b)) {
                return Err(Error::SameOutput {
                    output: output.to_path_buf(),
                    other: other.to_path_buf(),
                });
            }
        }
    }
    Ok(())
}

/// Returns the path of an output without symbolic links.
fn place_of(output: &Path) -> Option<PathBuf> {
    if is_remote(output) {
        return Some(object_place(output));
    }
    let output = &*local(output);
    // An output that does not exist yet is found through its folder.
    std::fs::canonicalize(output)
        .ok()
        .or_else(|| Some(place_of(staged::parent(output))?.join(output.file_name()?)))
}

/// Returns the address of an object with the usual name of its scheme, as a path.
fn object_place(address: &Path) -> PathBuf {
    let shown = shown(address).to_string_lossy().into_owned();
    let (scheme, rest) = shown.split_once("://").unwrap_or_default();
    let scheme = match scheme {
        "s3a" => "s3",
        "gcs" => "gs",
        other => other,
    };
    // No path on a file system begins so.
    [format!("{scheme}:").as_str(), rest].iter().collect()
}

/// Returns `true` if two paths are the same, or one is inside the other.
fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a) || same_file(a, b)
}

/// Returns `true` if two names are links to one file.
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| {
        std::fs::metadata(path)
            .ok()
            .map(|found| (found.dev(), found.ino()))
    };
    identity(a).is_some_and(|found| Some(found) == identity(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_output_is_never_an_input() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("in.zarr")).unwrap();
        fs::write(at("in.npy"), b"x").unwrap();
        fs::hard_link(at("in.npy"), at("hard.npy")).unwrap();
        std::os::unix::fs::symlink(at("in.npy"), at("soft.npy")).unwrap();
        let refused = |output: &str, input: &str| check_output(&at(output), &[&at(input)]).is_err();
        assert!(refused("in.npy", "in.npy"));
        assert!(refused("in.zarr/../in.npy", "in.npy"));
        assert!(refused("hard.npy", "in.npy"));
        assert!(refused("soft.npy", "in.npy"));
        assert!(refused("in.zarr/out.zarr", "in.zarr"));
        assert!(refused("../", "in.zarr") && refused(".", "in.zarr"));
        assert!(!refused("out.npy", "in.npy"));
        assert!(!refused("in.zarr2", "in.zarr"));
        assert!(!refused("nowhere/out.npy", "in.npy"));
    }

    #[test]
    fn outputs_must_not_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink(at("folder"), at("link")).unwrap();
        let refused = |a: &str, b: &str| {
            let (a, b) = (at(a), at(b));
            let [there, back] = [[&*a, &*b], [&*b, &*a]].map(|both| check_distinct(&both));
            assert_eq!(there.is_err(), back.is_err());
            there.is_err()
        };
        assert!(refused("a.zarr", "a.zarr") && refused("./a.zarr", "a.zarr"));
        assert!(refused("folder/a.npy", "link/a.npy"));
        assert!(refused("folder", "folder/list.csv") && refused("link", "folder/list.csv"));
        assert!(refused("new.zarr", "new.zarr/below/list.csv"));
        assert!(!refused("a.zarr", "b.zarr") && !refused("folder/a", "a"));
        assert!(check_distinct(&[]).is_ok() && check_distinct(&[&at("a")]).is_ok());
    }
}
