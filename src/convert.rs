//! Any volume into any output, box by box in bounded memory.
//!
//! Voxels are converted to the output's type as [`dtype`](crate::dtype) says; slope and
//! intercept travel in the layout and are not applied. Every write chunk is written once.
//! A source that is read front to back (a compressed file) is read just so, in slabs of
//! whole planes as long as one fits; any other is read one write chunk at a time by as many
//! threads as there are.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::iter::{ParallelBridge, ParallelIterator};

use crate::error::{Error, Result};
use crate::patch::{Patch, copy_common};
use crate::progress::{Progress, report};
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};
use crate::threads::{pool, threads};
use crate::volume::{Cached, ChunkShape, ReadStats, Volume, VolumeMut, check_output};

/// How a conversion may use the machine.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Threads that read, convert and encode.
    pub threads: usize,
    /// Bytes that boxes under way and decoded chunks may take together.
    pub memory: u64,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            threads: threads(),
            memory: 256 << 20,
        }
    }
}

/// What a conversion did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Boxes handed to the output: its write chunks, or slabs of a flat file.
    pub chunks_written: u64,
    /// What was read of the source.
    pub reads: ReadStats,
}

/// Copies all of `source` into `target`, which must have its shape and channels.
///
/// `progress` counts voxels.
///
/// # Errors
///
/// [`Error::Setting`] if the shapes differ, [`Error::Stopped`] if `progress` says so, and the
/// errors of reading and writing. The output is finished only if all went well.
pub fn convert(
    source: &Arc<dyn Volume>,
    target: Box<dyn VolumeMut>,
    options: &ConvertOptions,
    progress: Progress<'_>,
) -> Result<Converted> {
    let (from, to) = (source.layout(), target.layout());
    if (from.shape, from.channels) != (to.shape, to.channels) {
        return Err(Error::Setting {
            name: "an output of",
            value: format!("{} x {:?}", to.channels, to.shape),
            problem: format!("the source has {} x {:?}", from.channels, from.shape),
        });
    }
    for file in source.source_files() {
        check_output(&to.path, &[&file])?;
    }
    let pool = pool(options.threads, "convert", &to.path)?;
    let voxel = (from.dtype.size() + to.dtype.size()) as u64;
    let boxes = if source.is_sequential() {
        Boxes::slabs(&*target, options.memory / voxel)
    } else {
        Boxes::chunks(&*target)
    };
    let under_way = boxes
        .largest()
        .saturating_mul(voxel * options.threads.max(1) as u64);
    let cached: Arc<dyn Volume> = match from.read_chunk {
        Some(_) => Arc::new(Cached::new(
            Arc::clone(source),
            options
                .memory
                .saturating_sub(under_way)
                .saturating_sub(target.waiting_bytes([0, 1, 2])),
        )),
        None => Arc::clone(source),
    };
    let work = Work {
        source: &*cached,
        target: &*target,
        progress,
        done: AtomicU64::new(0),
        total: from.channels * Region::whole(from.shape).voxels(),
        written: AtomicU64::new(0),
    };
    let mut all = boxes.iter();
    if source.is_sequential() {
        all.try_for_each(|(channels, region)| work.slab(&pool, channels, region))?;
    } else {
        pool.install(|| {
            all.par_bridge()
                .try_for_each(|(channels, region)| work.copy(channels, region))
        })?;
    }
    source.check_unchanged()?;
    let chunks_written = work.written.into_inner();
    target.finish()?;
    Ok(Converted {
        chunks_written,
        reads: cached.read_stats(),
    })
}

struct Work<'a> {
    source: &'a dyn Volume,
    target: &'a dyn VolumeMut,
    progress: Progress<'a>,
    done: AtomicU64,
    total: u64,
    written: AtomicU64,
}

impl Work<'_> {
    /// Reads a box, converts it and writes it.
    fn copy(&self, channels: Range<u64>, region: Region) -> Result<()> {
        let box_ = self.read(&channels, region)?;
        self.write(channels, region, box_.bytes())
    }

    /// Reads a slab on this thread and writes its write chunks on the pool's.
    fn slab(&self, pool: &rayon::ThreadPool, channels: Range<u64>, region: Region) -> Result<()> {
        let slab = self.read(&channels, region)?;
        let Some([c, chunk @ ..]) = self.target.layout().write_chunk else {
            return self.write(channels, region, slab.bytes());
        };
        let parts = Boxes {
            channels: channels.clone(),
            region,
            chunk: [c, chunk[0], chunk[1], chunk[2]],
        };
        let per_channel = slab.bytes().len() / usize::try_from(slab.channels()).unwrap_or(1);
        pool.install(|| {
            parts.iter().par_bridge().try_for_each(|(own, part)| {
                let mut voxels = Patch::zeros(part, own.end - own.start, slab.dtype())?;
                let skip = usize::try_from(own.start - channels.start).unwrap_or(0) * per_channel;
                let (count, size) = (own.end - own.start, slab.dtype().size());
                copy_common(
                    (&slab.bytes()[skip..], region),
                    (voxels.bytes_mut(), part),
                    count,
                    size,
                );
                self.write(own, part, voxels.bytes())
            })
        })
    }

    fn read(&self, channels: &Range<u64>, region: Region) -> Result<Patch> {
        report(self.progress, self.done.load(Ordering::Relaxed), self.total)?;
        let dtype = self.source.layout().dtype;
        let mut box_ = Patch::zeros(region, channels.end - channels.start, dtype)?;
        self.source
            .read_channels(channels.clone(), region, box_.bytes_mut())?;
        Ok(box_.converted(self.target.layout().dtype))
    }

    fn write(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        let count = region.voxels() * (channels.end - channels.start);
        self.target.write_channels(channels, region, voxels)?;
        self.written.fetch_add(1, Ordering::Relaxed);
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        report(self.progress, done, self.total)
    }
}

/// Boxes that tile some channels of a region, the channels slowest, x fastest.
struct Boxes {
    channels: Range<u64>,
    region: Region,
    /// c, z, y, x.
    chunk: ChunkShape,
}

/// Voxels of a slab of a flat file: enough for long writes, little enough to hold several.
const FLAT_SLAB: u64 = 1 << 20;

impl Boxes {
    /// The output's write chunks; slabs of planes, rows or less if it has none.
    fn chunks(target: &dyn VolumeMut) -> Self {
        let layout = target.layout();
        let chunk = layout
            .write_chunk
            .unwrap_or_else(|| flat_slab([1, 1, 1, 1], layout.shape, FLAT_SLAB));
        Self {
            channels: 0..layout.channels,
            region: Region::whole(layout.shape),
            chunk,
        }
    }

    /// Boxes made of whole write chunks, grown along x, then y, then z up to `voxels`.
    fn slabs(target: &dyn VolumeMut, voxels: u64) -> Self {
        let layout = target.layout();
        let unit = layout.write_chunk.unwrap_or([1, 1, 1, 1]);
        let most = if layout.write_chunk.is_some() {
            voxels
        } else {
            voxels.min(32 * FLAT_SLAB)
        };
        let mut boxes = Self::chunks(target);
        boxes.chunk = flat_slab(unit, layout.shape, most);
        if layout.write_chunk.is_some() {
            // Whole planes are enough: more of them would only wait longer.
            boxes.chunk[1] = boxes.chunk[1].min(unit[1]);
        }
        boxes
    }

    /// Voxels of the largest box.
    fn largest(&self) -> u64 {
        let inside: Shape = std::array::from_fn(|a| self.chunk[a + 1].min(self.region.shape[a]));
        Region::whole(inside).voxels().saturating_mul(self.chunk[0])
    }

    fn iter(&self) -> impl Iterator<Item = (Range<u64>, Region)> + Send + use<> {
        let [c, chunk @ ..] = self.chunk;
        let (channels, region) = (self.channels.clone(), self.region);
        let groups = channels.start / c..channels.end.div_ceil(c);
        groups.flat_map(move |group| {
            let own = (group * c).max(channels.start)..((group + 1) * c).min(channels.end);
            indices(chunk_range(&region, chunk)).filter_map(move |index| {
                let part = chunk_region(index, chunk).intersection(&region)?;
                Some((own.clone(), part))
            })
        })
    }
}

/// The largest multiple of `unit` with no more than `voxels` voxels, whole along x before
/// it grows along y, and along y before z.
fn flat_slab(unit: ChunkShape, shape: Shape, voxels: u64) -> ChunkShape {
    let mut slab = unit;
    for a in (0..3).rev() {
        let others: u64 = slab
            .iter()
            .enumerate()
            .filter(|&(i, _)| i != a + 1)
            .map(|(_, &n)| n)
            .product();
        let fits = (voxels / others.max(1) / unit[a + 1]).max(1) * unit[a + 1];
        slab[a + 1] = fits.min(shape[a].next_multiple_of(unit[a + 1]));
        if slab[a + 1] < shape[a] {
            break;
        }
    }
    slab
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Mutex;

    use super::*;
    use crate::dtype::DType;
    use crate::progress::silent;
    use crate::volume::{
        CreateOptions, Downsample, Layout, MemoryVolume, OpenOptions, Pyramid, VolumeExt, create,
        open,
    };

    const SHAPE: Shape = [21, 18, 25];

    /// Claims to be sequential, and notes where reads begin.
    #[derive(Debug)]
    struct Source {
        inner: MemoryVolume,
        sequential: bool,
        begun: Mutex<Vec<(u64, [i64; 3])>>,
    }

    impl Volume for Source {
        fn layout(&self) -> &Layout {
            Volume::layout(&self.inner)
        }
        fn is_sequential(&self) -> bool {
            self.sequential
        }
        fn inner(&self) -> Option<&dyn Volume> {
            Some(&self.inner)
        }
        fn read_channels(
            &self,
            channels: Range<u64>,
            region: Region,
            out: &mut [u8],
        ) -> Result<()> {
            self.begun
                .lock()
                .unwrap()
                .push((channels.start, region.start));
            self.inner.read_channels(channels, region, out)
        }
    }

    fn source(sequential: bool) -> Arc<Source> {
        let voxels: Vec<u16> = (0_u16..).take(2 * 21 * 18 * 25).collect();
        let inner = MemoryVolume::from_vec(SHAPE, 2, voxels).unwrap();
        Arc::new(Source {
            inner,
            sequential,
            begun: Mutex::default(),
        })
    }

    #[test]
    fn all_voxels_arrive_whatever_the_order_and_the_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut n = 0;
        for sequential in [false, true] {
            for shard in [None, Some([8, 16, 8])] {
                for memory in [0, 20_000, 1 << 30] {
                    n += 1;
                    let path = dir.path().join(format!("{n}.zarr"));
                    let source = source(sequential);
                    let options = CreateOptions {
                        chunk: [4, 8, 8],
                        shard,
                        ..CreateOptions::default()
                    };
                    let target = create(&path, source.layout(), &options).unwrap();
                    let volume: Arc<dyn Volume> = Arc::clone(&source) as _;
                    let how = ConvertOptions { threads: 3, memory };
                    convert(&volume, target, &how, &silent).unwrap();
                    let out = open(&path).unwrap().read(Region::whole(SHAPE)).unwrap();
                    assert_eq!(out, source.inner.to_patch());
                    let begun = source.begun.lock().unwrap();
                    if sequential && memory == 1 << 30 {
                        assert!(begun.is_sorted(), "front to back: {begun:?}");
                        assert!(
                            begun.iter().all(|(_, start)| start[1..] == [0, 0]),
                            "whole planes"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn coarser_levels_come_with_the_finest_from_any_number_of_threads() {
        let dir = tempfile::tempdir().unwrap();
        let mut found = Vec::new();
        for (sequential, threads) in [(false, 1), (false, 4), (true, 4)] {
            let path = dir.path().join(format!("{sequential}-{threads}.zarr"));
            let source = source(sequential);
            let options = CreateOptions {
                chunk: [4, 5, 8],
                shard: None,
                pyramid: Some(Pyramid {
                    levels: None,
                    method: Downsample::Mean,
                }),
                ..CreateOptions::default()
            };
            let target = create(&path, source.layout(), &options).unwrap();
            assert!(target.waiting_bytes([0, 1, 2]) > 0);
            let memory = 20_000;
            convert(
                &(source as _),
                target,
                &ConvertOptions { threads, memory },
                &silent,
            )
            .unwrap();
            let level = OpenOptions {
                level: 2,
                ..OpenOptions::default()
            };
            let coarse = level.open(&path).unwrap();
            assert_eq!(coarse.layout().shape, [6, 5, 7]);
            found.push(coarse.read(Region::whole([6, 5, 7])).unwrap());
        }
        assert!(found.iter().all(|patch| *patch == found[0]));
        // Four voxels of the ramp along each axis: their mean lies in the middle, 1.5 steps in.
        let first = found[0].as_slice::<u16>().unwrap()[0];
        assert!(first.abs_diff(3 * (18 * 25 + 25 + 1) / 2) <= 1, "{first}");
    }

    #[test]
    fn voxels_take_the_output_s_type() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes.zarr");
        let source = source(false);
        let layout = Layout {
            dtype: DType::U8,
            ..source.layout().clone()
        };
        let target = create(&path, &layout, &CreateOptions::default()).unwrap();
        convert(
            &(Arc::clone(&source) as _),
            target,
            &ConvertOptions::default(),
            &silent,
        )
        .unwrap();
        let out = open(&path).unwrap().read(Region::whole(SHAPE)).unwrap();
        assert_eq!(out, source.inner.to_patch().converted(DType::U8));
    }

    #[test]
    fn stopping_leaves_nothing_and_other_shapes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let source: Arc<dyn Volume> = source(false);
        let layout = source.layout().clone();
        let target = || {
            create(
                &dir.path().join("out.zarr"),
                &layout,
                &CreateOptions::default(),
            )
            .unwrap()
        };
        let stop = |done, _| {
            if done == 0 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let stopped = convert(&source, target(), &ConvertOptions::default(), &stop);
        assert!(matches!(stopped, Err(Error::Stopped)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let other = Layout {
            shape: [21, 18, 24],
            ..layout.clone()
        };
        let target = create(
            &dir.path().join("out.zarr"),
            &other,
            &CreateOptions::default(),
        )
        .unwrap();
        let refused = convert(&source, target, &ConvertOptions::default(), &silent);
        assert!(matches!(refused, Err(Error::Setting { .. })));
    }
}
