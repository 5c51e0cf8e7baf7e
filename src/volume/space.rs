//! Estimates of the disk space that outputs need, before anything is written.
//!
//! The compressed size is only known after compression. Before that there are two bounds: the size
//! without any compression, and the size of the first chunks. The size of a flat file is exact.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::staged::parent;
#[cfg(feature = "tiff")]
use super::tiff;
use super::{CreateOptions, Format, Layout, partial, zarr};
use crate::error::{Error, Result};

/// The disk space that outputs on one file system need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// The first of the outputs.
    pub output: PathBuf,
    /// Bytes that the outputs need if no chunk can be compressed, including all levels and metadata, but not the chunks
    /// that an earlier run stored.
    pub max_bytes: u64,
    /// Bytes that are needed to start: the metadata and one write chunk of each output, or a whole
    /// flat file; 0 for outputs that are resumed.
    pub min_bytes: u64,
    /// Bytes that are free on the file system; `None` if it does not report them.
    pub free_bytes: Option<u64>,
}

impl DiskSpace {
    /// Creates the entry of a file or folder `output` that takes exactly `bytes`.
    #[must_use]
    pub fn exact(output: &Path, bytes: u64) -> Self {
        Self {
            output: output.to_path_buf(),
            max_bytes: bytes,
            min_bytes: bytes,
            free_bytes: free(parent(output)),
        }
    }

    /// Returns `true` if the disk may become full before the outputs are complete, depending on how
    /// well they compress.
    #[must_use]
    pub fn may_run_out(&self) -> bool {
        self.free_bytes.is_some_and(|free| free < self.max_bytes)
    }

    /// Checks that there is enough space to start.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] if less is free than [`min_bytes`](Self::min_bytes).
    pub fn check(&self) -> Result<()> {
        match self.free_bytes {
            Some(free) if free < self.min_bytes => Err(Error::NoSpace {
                path: self.output.clone(),
                needed: self.min_bytes,
                free,
            }),
            _ => Ok(()),
        }
    }
}

/// Returns the space that outputs need and the space that is free, with one entry per file system. The layouts are
/// those of [`output_layout`](super::output_layout). With `resumed`, chunks that an earlier run stored are not counted.
/// Quotas are ignored.
///
/// # Errors
///
/// As [`output_layout`](super::output_layout).
pub fn disk_space(outputs: &[(&Layout, &CreateOptions)], resumed: bool) -> Result<Vec<DiskSpace>> {
    let mut found: Vec<(Option<u64>, DiskSpace)> = Vec::new();
    for &(layout, options) in outputs {
        let (mut most, mut least) = match layout.format {
            Format::Zarr2 | Format::Zarr3 => zarr::bounds(layout, options)?,
            #[cfg(feature = "tiff")]
            Format::Tiff => tiff::bounds(layout, options)?,
            _ => {
                // An output that is compressed at the end also needs its uncompressed size until then.
                let bytes = layout.decoded_bytes()?;
                let packed = if layout.codecs.is_empty() { 0 } else { bytes };
                (bytes.saturating_add(packed), bytes)
            }
        };
        if resumed && let Some(data) = partial::data_folder(&layout.path)? {
            // The output may be renamed at this moment; then nothing is left to store.
            let stored = zarr::folder_bytes(&data).unwrap_or(0);
            (most, least) = (most.saturating_sub(stored), 0);
        }
        let folder = parent(&layout.path);
        // Nothing says how much a store has room for.
        let device = (!layout.remote)
            .then(|| folder.metadata().ok())
            .flatten()
            .map(|found| found.dev());
        match found
            .iter_mut()
            .find(|(other, _)| device.is_some() && *other == device)
        {
            Some((_, space)) => {
                space.max_bytes = space.max_bytes.saturating_add(most);
                space.min_bytes = space.min_bytes.saturating_add(least);
            }
            None => found.push((
                device,
                DiskSpace {
                    output: layout.path.clone(),
                    max_bytes: most,
                    min_bytes: least,
                    free_bytes: device.and_then(|_| free(folder)),
                },
            )),
        }
    }
    Ok(found.into_iter().map(|(_, space)| space).collect())
}

/// Checks that there is enough space to start an output. An output that is resumed always passes:
/// its finished chunks are kept when the disk is full.
pub(super) fn check(layout: &Layout, options: &CreateOptions, resumed: bool) -> Result<()> {
    if resumed && partial::data_folder(&layout.path)?.is_some() {
        return Ok(());
    }
    disk_space(&[(layout, options)], false)?
        .iter()
        .try_for_each(DiskSpace::check)
}

/// Returns the free bytes of the file system of `folder`. Some user-space file systems report 0 of 0; for them it
/// returns `None`.
fn free(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    (found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize.max(1)))
}

#[cfg(test)]
mod tests {
    use super::super::{Codec, Downsample, Pyramid, ZarrVersion, create, output_layout};
    use super::*;
    use crate::dtype::DType;
    use crate::region::{Region, Shape};

    fn of(path: &Path, shape: Shape, options: &CreateOptions) -> DiskSpace {
        let layout = Layout::new(shape, 2, DType::U16);
        let layout = output_layout(path, &layout, options).unwrap();
        disk_space(&[(&layout, options)], false).unwrap().remove(0)
    }

    fn stored(path: &Path) -> u64 {
        let found = path.metadata().unwrap();
        if !found.is_dir() {
            return found.len();
        }
        let entries = std::fs::read_dir(path).unwrap();
        entries.map(|entry| stored(&entry.unwrap().path())).sum()
    }

    /// Returns noise that no codec can compress.
    fn noise(bytes: u64) -> Vec<u8> {
        let mut state = 1_u64;
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_le_bytes()[7]
        };
        std::iter::repeat_with(next)
            .take(usize::try_from(bytes).unwrap())
            .collect()
    }

    #[test]
    fn no_output_exceeds_the_maximum_and_noise_nearly_reaches_it() {
        let dir = tempfile::tempdir().unwrap();
        let shape = [37, 50, 41];
        let pyramid = Some(Pyramid {
            levels: Some(3),
            method: Downsample::Mode,
        });
        let usual = CreateOptions {
            chunk: [8; 3],
            shard: Some([16; 3]),
            codec: Codec::None,
            ..CreateOptions::default()
        };
        let whole_files = CreateOptions {
            shard: None,
            ..usual.clone()
        };
        let v2 = CreateOptions {
            zarr: ZarrVersion::V2,
            ..whole_files.clone()
        };
        for (n, options) in [usual.clone(), whole_files, v2].into_iter().enumerate() {
            for pyramid in [None, pyramid] {
                let name = format!("{n}-{}.zarr", pyramid.is_some());
                let path = dir.path().join(name);
                let options = CreateOptions {
                    pyramid,
                    ..options.clone()
                };
                let space = of(&path, shape, &options);
                let output = create(&path, &Layout::new(shape, 2, DType::U16), &options).unwrap();
                let bytes = output.layout().decoded_bytes().unwrap();
                output
                    .write_channels(0..2, Region::whole(shape), &noise(bytes))
                    .unwrap();
                output.finish().unwrap();
                let stored = stored(&path);
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let share = stored as f64 / space.max_bytes as f64;
                assert!(share > 0.9 && share <= 1.0, "{n}: {space:?}, {stored}");
                assert!(space.max_bytes > bytes && space.min_bytes < bytes / 2);
                assert!(!space.may_run_out() && space.check().is_ok(), "{space:?}");
            }
        }
    }

    #[test]
    fn outputs_on_one_file_system_are_added_up() {
        let dir = tempfile::tempdir().unwrap();
        let options = CreateOptions::default();
        let layout = |name: &str| {
            let layout = Layout::new([64; 3], 1, DType::F32);
            output_layout(dir.path().join(name), &layout, &options).unwrap()
        };
        let (a, b) = (layout("a.zarr"), layout("b.npy"));
        let alone = |layout: &Layout| disk_space(&[(layout, &options)], false).unwrap().remove(0);
        let both = disk_space(&[(&a, &options), (&b, &options)], false).unwrap();
        assert_eq!(both.len(), 1);
        assert_eq!(both[0].output, a.path);
        let (a, b) = (alone(&a), alone(&b));
        assert_eq!(b.max_bytes, 4 << 18);
        assert_eq!(b.min_bytes, 4 << 18, "a flat file takes what it takes");
        assert_eq!(both[0].max_bytes, a.max_bytes + b.max_bytes);
        assert_eq!(both[0].min_bytes, a.min_bytes + b.min_bytes);
    }

    #[test]
    fn certain_and_possible_lack_of_space_are_distinguished() {
        let of = |free_bytes| DiskSpace {
            output: PathBuf::from("out.zarr"),
            max_bytes: 100,
            min_bytes: 10,
            free_bytes,
        };
        for (free, begins, may_run_out) in [
            (Some(9), false, true),
            (Some(10), true, true),
            (Some(99), true, true),
            (Some(100), true, false),
            (None, true, false),
        ] {
            let space = of(free);
            assert_eq!(space.check().is_ok(), begins, "{free:?}");
            assert_eq!(space.may_run_out(), may_run_out, "{free:?}");
        }
        let error = of(Some(9)).check().unwrap_err();
        let text = "no space for out.zarr: it needs at least 10 bytes, but only 9 are free: free some space, or write \
                    it elsewhere";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn an_output_that_cannot_fit_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new([1 << 20, 1 << 20, 1 << 10], 1, DType::U8);
        let refused = create(dir.path().join("a.npy"), &layout, &CreateOptions::default());
        assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
        let path = dir.path().join("a.zarr");
        let space = of(&path, layout.shape, &CreateOptions::default());
        assert!(space.may_run_out() && space.check().is_ok(), "{space:?}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}
