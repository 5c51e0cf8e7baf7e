//! Verification that every stored chunk of a volume can be decoded.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::iter::{ParallelBridge, ParallelIterator};

use super::chunk::intersecting;
use super::{ChunkShape, OpenOptions, ROW_MAJOR, Slabs, Values, Volume, VolumeExt};
use crate::error::{Error, Result};
use crate::progress::{Progress, report};
use crate::region::{Region, chunk_region, indices};
use crate::threads::pool;

/// The result of [`verify`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// The number of levels of the image; 1 for anything else.
    pub levels: u64,
    /// Stored chunks that were decoded, or pieces of a flat file that were read.
    pub chunks: u64,
    /// Chunks that are not stored because they are all fill value.
    pub empty: u64,
    /// The chunks that could not be read or decoded, by level and name.
    pub damaged: Vec<DamagedChunk>,
}

/// A chunk that could not be read or decoded, or a shard whose index could not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedChunk {
    /// The level; 0 is the finest.
    pub level: usize,
    /// The key below the level's array, or the box in a flat file.
    pub chunk: String,
    /// The error message.
    pub problem: String,
}

/// Reads and decodes the volume at `path`, including all levels of an image, on `threads` threads that each hold one
/// chunk at a time. `progress` counts chunks.
///
/// Damage is found where codecs have a checksum, as in outputs of this crate, or where the bytes cannot be decoded. A
/// missing chunk reads as fill value, as if it had never been stored, unless
/// [`MissingChunks::Error`](super::MissingChunks::Error) is set.
///
/// # Errors
///
/// As [`open`](super::open) if the metadata of a level cannot be read, and [`Error::Interrupted`] if `progress`
/// requests it. Damaged chunks are not an error, but part of the report.
pub fn verify(
    path: impl AsRef<Path>,
    threads: usize,
    progress: Progress<'_>,
) -> Result<VerifyReport> {
    let path = path.as_ref();
    OpenOptions::default().verify(path, threads, progress)
}

impl OpenOptions {
    /// Verifies all levels of the volume at `path`, as [`verify`] does, with these options. With
    /// [`MissingChunks::Error`](super::MissingChunks::Error), a chunk that has no file counts as damaged.
    ///
    /// # Errors
    ///
    /// As [`verify`].
    pub fn verify(
        &self,
        path: &Path,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<VerifyReport> {
        let levels = self.levels(path)?;
        let open = |level| {
            let options = OpenOptions {
                level,
                values: Values::Stored,
                ..self.clone()
            };
            options.open(path)
        };
        let volumes = (0..levels).map(open).collect::<Result<Vec<_>>>()?;
        let pool = pool(threads, "verify", path)?;
        let work = VerifyWork {
            progress,
            total: volumes.iter().map(|volume| pieces(&**volume)).sum(),
            done: AtomicU64::new(0),
            empty: AtomicU64::new(0),
            damaged: Mutex::default(),
        };
        for (level, volume) in volumes.iter().enumerate() {
            if volume.layout().read_chunk.is_some() {
                pool.install(|| work.chunks(level, &**volume))?;
            } else {
                work.slabs(&**volume)?;
            }
        }
        let (done, empty) = (work.done.into_inner(), work.empty.into_inner());
        let damaged = work
            .damaged
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(VerifyReport {
            levels: volumes.len() as u64,
            chunks: done - empty,
            empty,
            damaged: damaged
                .into_iter()
                .map(|((level, chunk), problem)| DamagedChunk {
                    level,
                    chunk,
                    problem,
                })
                .collect(),
        })
    }
}

struct VerifyWork<'a> {
    progress: Progress<'a>,
    total: u64,
    done: AtomicU64,
    empty: AtomicU64,
    damaged: Mutex<BTreeMap<(usize, String), String>>,
}

impl VerifyWork<'_> {
    /// Decodes every chunk, the write chunks in parallel.
    fn chunks(&self, level: usize, volume: &dyn Volume) -> Result<()> {
        let layout = volume.layout();
        let read = layout.read_chunk.unwrap_or([1; 4]);
        let [c, write @ ..] = layout.write_chunk.unwrap_or(read);
        let whole = Region::whole(layout.shape);
        let groups = 0..layout.channels.div_ceil(c);
        let boxes = groups.flat_map(|group| {
            let counts = std::array::from_fn(|a| 0..layout.shape[a].div_ceil(write[a]));
            indices(counts).map(move |index| (group, index))
        });
        boxes.par_bridge().try_for_each(|(group, index)| {
            let channels = group * c..((group + 1) * c).min(layout.channels);
            let region = chunk_region(index, write).intersection(&whole);
            let region = region.expect("a chunk that starts inside");
            let inner: Vec<ChunkShape> = intersecting(read, &channels, region).collect();
            let stored = match volume.fill_chunk(inner[0]) {
                Ok(fill) => fill.is_none(),
                // Reading the chunks reports the problem.
                Err(_) => true,
            };
            if !stored {
                self.empty.fetch_add(inner.len() as u64, Ordering::Relaxed);
                return self.tell(inner.len() as u64);
            }
            for index in inner {
                if let Err(error) = volume.read_chunk(index) {
                    self.note(level, format!("{index:?}"), &error);
                }
                self.tell(1)?;
            }
            Ok(())
        })
    }

    /// Reads a volume without chunks from front to back.
    fn slabs(&self, volume: &dyn Volume) -> Result<()> {
        let layout = volume.layout();
        let mut voxels = Vec::new();
        for (channels, region) in slabs(volume).iter() {
            let count = region.voxels() * (channels.end - channels.start);
            let bytes = usize::try_from(count).unwrap_or(usize::MAX);
            voxels.resize(bytes.saturating_mul(layout.dtype.size()), 0);
            let read = volume.read_channels(channels.clone(), region, &mut voxels);
            if let Err(error) = read {
                let place = match channels.end - channels.start {
                    1 => format!("channel {}, [{region}]", channels.start),
                    _ => format!("channels {channels:?}, [{region}]"),
                };
                self.note(0, place, &error);
                if volume.is_sequential() {
                    // Data after a fault in a stream cannot be reached.
                    return Ok(());
                }
            }
            self.tell(1)?;
        }
        Ok(())
    }

    fn note(&self, level: usize, place: String, mut error: &Error) {
        while let Error::Shared(shared) = error {
            error = shared;
        }
        let (name, mut cause) = match error {
            Error::Chunk { key, .. } => (key.clone(), error.source()),
            _ => (place, Some(error as &dyn std::error::Error)),
        };
        let mut problem = String::new();
        while let Some(error) = cause {
            let text = error.to_string();
            if !problem.contains(&text) {
                problem = if problem.is_empty() {
                    text
                } else {
                    format!("{problem}: {text}")
                };
            }
            cause = error.source();
        }
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.insert((level, name), problem);
    }

    fn tell(&self, count: u64) -> Result<()> {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        report(self.progress, done, self.total)
    }
}

/// Voxels per piece of a flat file.
const PIECE: u64 = 1 << 20;

/// Returns the boxes in which a volume without chunks is read.
fn slabs(volume: &dyn Volume) -> Slabs {
    let order = volume.sequential_order().unwrap_or(ROW_MAJOR);
    Slabs::up_to(volume.layout(), order, PIECE)
}

/// Returns the number of chunks or pieces of a volume.
fn pieces(volume: &dyn Volume) -> u64 {
    let layout = volume.layout();
    match layout.read_chunk {
        Some([c, chunk @ ..]) => {
            let boxes: u64 = (0..3).map(|a| layout.shape[a].div_ceil(chunk[a])).product();
            boxes * layout.channels.div_ceil(c)
        }
        None => slabs(volume).count(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;

    use super::*;
    use crate::dtype::DType;
    use crate::progress::silent;
    use crate::volume::{CreateOptions, Downsample, Layout, Pyramid, create};

    fn image(path: &Path, shard: Option<[u64; 3]>) {
        let layout = Layout::new([16, 16, 8], 2, DType::U16);
        let options = CreateOptions {
            chunk: [4, 8, 8],
            shard,
            pyramid: Some(Pyramid {
                levels: Some(2),
                method: Downsample::Mean,
            }),
            ..CreateOptions::default()
        };
        let target = create(path, &layout, &options).unwrap();
        let ramp: Vec<u16> = (1..).take(16 * 16 * 8).collect();
        let region = Region::whole(layout.shape);
        for (channel, voxels) in [ramp, vec![0; 2048]].iter().enumerate() {
            let channel = channel as u64;
            let voxels = bytemuck::cast_slice(voxels);
            target
                .write_channels(channel..channel + 1, region, voxels)
                .unwrap();
        }
        target.finish().unwrap();
    }

    #[test]
    fn every_chunk_of_every_level_is_counted_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zarr");
        image(&path, None);
        let sound = verify(&path, 3, &silent).unwrap();
        // Level 0 has 4 x 2 x 1 chunks, level 1 (8 x 8 x 4 voxels) has 2 x 1 x 1; channel 1 is empty.
        assert_eq!((sound.levels, sound.chunks, sound.empty), (2, 10, 10));
        assert_eq!(sound.damaged, []);
        for key in ["0/c/0/2/1/0", "1/c/0/1/0/0"] {
            let mut bytes = fs::read(path.join(key)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path.join(key), bytes).unwrap();
        }
        let found = verify(&path, 3, &silent).unwrap();
        let names: Vec<_> = found
            .damaged
            .iter()
            .map(|one| (one.level, &*one.chunk))
            .collect();
        assert_eq!(names, [(0, "c/0/2/1/0"), (1, "c/0/1/0/0")]);
        assert!(found.damaged.iter().all(|one| !one.problem.is_empty()));
    }

    #[test]
    fn a_shard_with_a_damaged_index_is_named_once_and_one_with_a_damaged_chunk_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zarr");
        image(&path, Some([8, 16, 8]));
        let file = path.join("0/c/0/0/0/0");
        let whole = fs::read(&file).unwrap();
        let mut bytes = whole.clone();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        let found = verify(&path, 2, &silent).unwrap();
        assert_eq!(found.damaged.len(), 1, "{found:?}");
        assert!(found.damaged[0].chunk.contains("index"), "{found:?}");
        let mut bytes = whole;
        bytes[20] ^= 1;
        fs::write(&file, bytes).unwrap();
        let found = verify(&path, 2, &silent).unwrap();
        assert_eq!(found.damaged.len(), 1, "{found:?}");
        assert!(
            found.damaged[0].chunk.contains("inner chunk 0"),
            "{found:?}"
        );
    }

    #[test]
    fn flat_files_are_read_and_can_be_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let layout = Layout::new([3, 4, 5], 2, DType::U8);
        let target = create(&path, &layout, &CreateOptions::default()).unwrap();
        target
            .write(Region::whole(layout.shape), &[1; 120])
            .unwrap();
        target.finish().unwrap();
        let found = verify(&path, 1, &silent).unwrap();
        assert_eq!((found.levels, found.chunks, found.empty), (1, 2, 0));
        let stopped = verify(&path, 1, &|_, _| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }
}
