//! Converts any volume into any output, box by box in bounded memory.
//!
//! Voxels are converted to the output's type as described in [`dtype`](crate::dtype), and values that the type cannot
//! represent are counted. Values outside its range are an error unless [`ConvertOptions::clip`] allows them. Every
//! write chunk is written once.
//!
//! The copied voxels are those that the source returns: real values, or stored ones if it was opened for stored values.
//! An output whose layout has a slope and intercept needs stored ones.
//!
//! A sequential source (a file compressed as a whole) is read once from front to back by one thread at a time, in slabs
//! of whole write chunks, while other threads convert and encode the previous slab. If two slabs do not fit into
//! memory, or if the source is not sequential, each write chunk is read separately, by all threads.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::iter::{ParallelBridge, ParallelIterator};

use crate::dtype::{Count, DType, Loss, loss, text};
use crate::error::{Error, Result};
use crate::patch::{Patch, copy_common};
use crate::progress::{Progress, report};
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};
use crate::threads::{DEFAULT_MEMORY, pool, threads};
use crate::volume::{
    Cached, ChunkShape, CreateOptions, Layout, ReadStats, Slabs, Volume, VolumeMut, check_output,
    chunk_source, decoding_bytes, encoding_bytes, index_bytes, output_layout, pyramid_buffer_bytes,
    upload_bytes,
};

/// The options of a conversion.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Threads that read, convert and encode.
    pub threads: usize,
    /// Bytes that boxes in progress and decoded chunks may take together.
    pub memory: u64,
    /// Whether values outside the range of the output's type may become its nearest value.
    pub clip: bool,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            threads: threads(),
            memory: DEFAULT_MEMORY,
            clip: false,
        }
    }
}

/// The statistics of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertStats {
    /// Boxes written to the output: its write chunks, or slabs of a flat file.
    pub chunks_written: u64,
    /// Values outside the range of the output's type, which became its nearest value; NaN became 0.
    pub clipped: u64,
    /// Values with a fraction, or more digits than the output's type has, which were rounded to the nearest.
    pub rounded: u64,
    /// The statistics of reading the source.
    pub reads: ReadStats,
}

/// Copies all of `source` into `target`, which must have its shape and channels.
///
/// `progress` counts voxels.
///
/// # Errors
///
/// [`Error::InvalidArgument`] if the shapes differ, [`Error::Lossy`] if values do not fit the output's type,
/// [`Error::Interrupted`] if `progress` asks to stop, and the errors of reading and writing. The output is only
/// finished if there was no error.
pub fn convert(
    source: &Arc<dyn Volume>,
    target: Box<dyn VolumeMut>,
    options: &ConvertOptions,
    progress: Progress<'_>,
) -> Result<ConvertStats> {
    let (from, to) = (source.layout(), target.layout());
    if (from.shape, from.channels) != (to.shape, to.channels) {
        return Err(Error::InvalidArgument {
            argument: "output",
            value: format!("{} x {:?}", to.channels, to.shape),
            problem: format!("the source has {} x {:?}", from.channels, from.shape),
        });
    }
    for file in source.source_files() {
        check_output(&to.path, &[&file])?;
    }
    let work = ConvertWork {
        target: &*target,
        progress,
        done: AtomicU64::new(0),
        total: from.channels * Region::whole(from.shape).voxels(),
        written: AtomicU64::new(0),
        lost: Mutex::default(),
    };
    let waiting = |order| target.pyramid_buffer_bytes(order);
    let plan = ConvertPlan::new(&**source, to, waiting, options);
    let pool = pool(plan.threads, "convert", &to.path)?;
    let reads = pool.install(|| match plan.slabs {
        Some(slabs) => work.one_pass(source, slabs, plan.piece),
        None => work.anywhere(source, &plan),
    })?;
    drop(pool);
    source.check_unchanged()?;
    let lost = work.lost.into_inner();
    let lost = lost.unwrap_or_else(PoisonError::into_inner);
    if !options.clip {
        lost.check(&from.path, to.dtype, work.total)?;
    }
    let chunks_written = work.written.into_inner();
    target.finish()?;
    Ok(ConvertStats {
        chunks_written,
        clipped: lost.clipped,
        rounded: lost.rounded,
        reads,
    })
}

impl ConvertOptions {
    /// Chooses the storage options of the output at `path`: the first of `choices` with which a sequential source (see
    /// [`Volume::sequential_order`]) is read once from front to back, because its slabs fit into memory; otherwise the
    /// first. `layout` is the source's, with the output's voxel type.
    ///
    /// # Errors
    ///
    /// As [`output_layout`] for the first choice; [`Error::InvalidArgument`] if the list is empty.
    pub fn choose<'a>(
        &self,
        source: &dyn Volume,
        path: &Path,
        layout: &Layout,
        choices: &'a [CreateOptions],
    ) -> Result<&'a CreateOptions> {
        let first = choices.first().ok_or_else(|| Error::InvalidArgument {
            argument: "list of options",
            value: "[]".to_owned(),
            problem: "it needs at least one entry".to_owned(),
        })?;
        let reads_once = |choice: &&CreateOptions| {
            let target = output_layout(path, layout, choice);
            target.is_ok_and(|target| self.plan(source, &target, choice).reads_once())
        };
        output_layout(path, layout, first)?;
        Ok(choices.iter().find(reads_once).unwrap_or(first))
    }

    /// Plans the conversion of `source` into a new output, without touching any file. `target` is the layout from
    /// [`output_layout`], and `store` the storage options.
    #[must_use]
    pub fn plan(&self, source: &dyn Volume, target: &Layout, store: &CreateOptions) -> ConvertPlan {
        let waiting = |order| pyramid_buffer_bytes(target, store, order).unwrap_or(u64::MAX);
        ConvertPlan::new(source, target, waiting, self)
    }
}

/// The plan of a conversion, with the memory that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertPlan {
    /// Threads that convert and encode; fewer than allowed if memory is short.
    pub threads: usize,
    /// Bytes of decoded input chunks that are cached.
    pub cache_bytes: u64,
    /// The most bytes that the conversion holds. More than allowed if a single thread needs more.
    pub peak_bytes: u64,
    /// The slabs of a single pass. Two of them are in memory: one is read while the other is written.
    slabs: Option<Slabs>,
    /// Voxels that are converted and written at a time, if the output has no chunks.
    piece: u64,
}

impl ConvertPlan {
    /// Returns `true` if the source is read once from front to back.
    #[must_use]
    pub const fn reads_once(&self) -> bool {
        self.slabs.is_some()
    }

    fn new(
        source: &dyn Volume,
        target: &Layout,
        waiting: impl Fn([usize; 3]) -> u64,
        options: &ConvertOptions,
    ) -> Self {
        Self::one_pass(source, target, &waiting, options)
            .unwrap_or_else(|| Self::anywhere(source, target, waiting([0, 1, 2]), options))
    }

    /// Returns a plan for a single pass; `None` if the source is not sequential, or if its slabs do not fit into
    /// memory.
    fn one_pass(
        source: &dyn Volume,
        target: &Layout,
        waiting: impl Fn([usize; 3]) -> u64,
        options: &ConvertOptions,
    ) -> Option<Self> {
        let order = source.sequential_order()?;
        let from = source.layout();
        let unit = target.write_chunk.unwrap_or([1; 4]);
        let mut slabs = Slabs::smallest(from, order, unit);
        let spatial: Vec<usize> = order
            .iter()
            .filter_map(|axis| axis.checked_sub(1))
            .collect();
        let waiting = waiting(spatial.try_into().ok()?);
        let voxel = (from.dtype.size() + target.dtype.size()) as u64;
        let piece = options.piece(voxel);
        let boxes = Boxes::chunks(target, piece);
        let each = under_way(from, target, &boxes).saturating_add(encoding(target, waiting));
        let threads = options.threads_within(options.memory / 4, each);
        let held = each
            .saturating_mul(threads as u64)
            .saturating_add(waiting)
            .saturating_add(from.read_memory.answers)
            .saturating_add(upload_bytes(target));
        let left = options.memory.checked_sub(held)?;
        let size = from.dtype.size() as u64;
        let slab = left / 2 / size;
        if target.write_chunk.is_none() {
            slabs = Slabs::up_to(from, order, slab.min(FLAT_SLABS));
        }
        let read = slabs.largest().saturating_mul(2 * size);
        (slabs.largest() <= slab).then_some(Self {
            threads,
            cache_bytes: 0,
            peak_bytes: held.saturating_add(read),
            slabs: Some(slabs),
            piece,
        })
    }

    fn anywhere(
        source: &dyn Volume,
        target: &Layout,
        waiting: u64,
        options: &ConvertOptions,
    ) -> Self {
        let (from, decoded) = (source.layout(), chunk_source(source).layout());
        let voxel = (from.dtype.size() + target.dtype.size()) as u64;
        let piece = options.piece(voxel);
        let boxes = Boxes::chunks(target, piece);
        let working = encoding(target, waiting).max(decoding_bytes(from));
        let each = under_way(from, target, &boxes).saturating_add(working);
        let fixed = waiting
            .saturating_add(index_bytes(from))
            .saturating_add(upload_bytes(target));
        let threads = options.threads_within(options.memory.saturating_sub(fixed), each);
        let held = each.saturating_mul(threads as u64).saturating_add(fixed);
        let cache_bytes = options.memory.saturating_sub(held).min(all_chunks(decoded));
        Self {
            threads,
            cache_bytes,
            peak_bytes: held.saturating_add(cache_bytes),
            slabs: None,
            piece,
        }
    }
}

impl ConvertOptions {
    /// Returns the voxels of a piece of a flat file. Each voxel takes `voxel` bytes, as read and as converted.
    fn piece(&self, voxel: u64) -> u64 {
        (self.memory / 8 / voxel).clamp(LEAST_PIECE, FLAT_PIECE)
    }

    /// Returns the number of threads that fit into `bytes`, at least one and at most those allowed.
    fn threads_within(&self, bytes: u64, each: u64) -> usize {
        let most = usize::try_from(bytes / each.max(1)).unwrap_or(usize::MAX);
        most.clamp(1, self.threads.max(1))
    }
}

/// Returns the bytes of a box, as read and as converted.
fn under_way(from: &Layout, target: &Layout, boxes: &Boxes) -> u64 {
    let voxel = from.dtype.size() + target.dtype.size();
    boxes.largest().saturating_mul(voxel as u64)
}

/// Returns the bytes that a thread takes to encode a write chunk. `waiting` is above 0 if there are coarser levels.
fn encoding(target: &Layout, waiting: u64) -> u64 {
    encoding_bytes(target, waiting > 0)
}

/// Returns the bytes of all decoded chunks of a volume; 0 if it has no chunks.
fn all_chunks(layout: &Layout) -> u64 {
    let Some(chunk) = layout.read_chunk else {
        return 0;
    };
    let [z, y, x] = layout.shape;
    let lengths = [layout.channels, z, y, x];
    let whole = (0..4).map(|a| lengths[a].next_multiple_of(chunk[a].max(1)));
    whole.fold(layout.dtype.size() as u64, u64::saturating_mul)
}

struct ConvertWork<'a> {
    target: &'a dyn VolumeMut,
    progress: Progress<'a>,
    done: AtomicU64,
    total: u64,
    written: AtomicU64,
    lost: Mutex<Lost>,
}

/// The values lost so far.
#[derive(Debug, Default)]
struct Lost {
    clipped: u64,
    rounded: u64,
    /// The place (c, z, y, x) and value of the first clipped voxel in that order.
    first: Option<([u64; 4], String)>,
}

impl Lost {
    fn check(&self, path: &Path, dtype: DType, total: u64) -> Result<()> {
        let Some(([channel, voxel @ ..], value)) = &self.first else {
            return Ok(());
        };
        Err(Error::Lossy {
            path: path.to_path_buf(),
            dtype,
            clipped: self.clipped,
            total,
            channel: *channel,
            voxel: *voxel,
            value: value.clone(),
        })
    }
}

impl ConvertWork<'_> {
    /// Converts the write chunks of the output in parallel, and reads each separately.
    fn anywhere(&self, source: &Arc<dyn Volume>, plan: &ConvertPlan) -> Result<ReadStats> {
        let source: Arc<dyn Volume> = match (source.as_resampled(), source.layout().read_chunk) {
            // Each box is computed once, from chunks that are cached.
            (Some(resampled), _) => Arc::new(resampled.with_cache(plan.cache_bytes)),
            (None, Some(_)) => Arc::new(Cached::new(Arc::clone(source), plan.cache_bytes)),
            (None, None) => Arc::clone(source),
        };
        let boxes = Boxes::chunks(self.target.layout(), plan.piece);
        boxes
            .iter()
            .par_bridge()
            .try_for_each(|(channels, region)| {
                let voxels = self.read(&*source, &channels, region)?;
                self.write(channels, voxels)
            })?;
        Ok(source.read_stats())
    }

    /// Reads one slab after the other, and writes each while the next is read.
    fn one_pass(&self, source: &Arc<dyn Volume>, slabs: Slabs, piece: u64) -> Result<ReadStats> {
        let mut all = slabs.iter();
        let mut read_next = || {
            let (channels, region) = all.next()?;
            let slab = self.read(&**source, &channels, region);
            Some(slab.map(|slab| (channels, slab)))
        };
        let mut next = read_next().transpose()?;
        while let Some((channels, slab)) = next {
            let (read, written) =
                rayon::join(&mut read_next, || self.write_slab(channels, &slab, piece));
            written?;
            next = read.transpose()?;
        }
        Ok(source.read_stats())
    }

    /// Writes the pieces of a slab in parallel.
    fn write_slab(&self, channels: Range<u64>, slab: &Patch, piece: u64) -> Result<()> {
        let pieces = Boxes {
            channels: channels.clone(),
            region: slab.region(),
            ..Boxes::chunks(self.target.layout(), piece)
        };
        let per_channel = slab.bytes().len() / usize::try_from(slab.channels()).unwrap_or(1);
        pieces.iter().par_bridge().try_for_each(|(own, part)| {
            let count = own.end - own.start;
            let mut piece = Patch::zeros(part, count, slab.dtype())?;
            let skip = usize::try_from(own.start - channels.start).unwrap_or(0) * per_channel;
            let (from, to) = (&slab.bytes()[skip..], piece.bytes_mut());
            copy_common(
                (from, slab.region()),
                (to, part),
                count,
                slab.dtype().size(),
            );
            self.write(own, piece)
        })
    }

    fn read(&self, source: &dyn Volume, channels: &Range<u64>, region: Region) -> Result<Patch> {
        report(self.progress, self.done.load(Ordering::Relaxed), self.total)?;
        let count = channels.end - channels.start;
        let mut voxels = Patch::zeros(region, count, source.layout().dtype)?;
        source.read_channels(channels.clone(), region, voxels.bytes_mut())?;
        Ok(voxels)
    }

    /// Counts the values that the conversion of a box loses.
    fn count(&self, box_: &Patch, first_channel: u64, to: DType) {
        let found = loss(box_.dtype(), box_.bytes(), to);
        if found == Loss::default() {
            return;
        }
        let first = |count: Count| {
            let (channel, [z, y, x]) = box_.region().place(count.first?);
            let [z, y, x] = [z, y, x].map(i64::unsigned_abs);
            let value = text(box_.dtype(), box_.bytes(), count.first?);
            Some(([first_channel + channel, z, y, x], value))
        };
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.clipped += found.clipped.number;
        lost.rounded += found.rounded.number;
        let both = [lost.first.take(), first(found.clipped)];
        lost.first = both.into_iter().flatten().min_by_key(|(at, _)| *at);
    }

    /// Converts voxels to the output's type and writes them.
    fn write(&self, channels: Range<u64>, voxels: Patch) -> Result<()> {
        let region = voxels.region();
        let count = region.voxels() * (channels.end - channels.start);
        let dtype = self.target.layout().dtype;
        self.count(&voxels, channels.start, dtype);
        let voxels = voxels.converted(dtype);
        self.target
            .write_channels(channels, region, voxels.bytes())?;
        self.written.fetch_add(1, Ordering::Relaxed);
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        report(self.progress, done, self.total)
    }
}

/// Boxes that tile some channels of a region, with channels slowest and x fastest.
struct Boxes {
    channels: Range<u64>,
    region: Region,
    /// c, z, y, x.
    chunk: ChunkShape,
}

/// Voxels of a piece of a flat file: enough for long writes, few enough to hold several.
const FLAT_PIECE: u64 = 1 << 20;
const LEAST_PIECE: u64 = 1 << 12;
/// Voxels of a slab for a flat file: pieces for all threads.
const FLAT_SLABS: u64 = 16 * FLAT_PIECE;

impl Boxes {
    /// Returns the output's write chunks; without write chunks, pieces of at most `voxels` voxels (planes, rows or
    /// less).
    fn chunks(target: &Layout, voxels: u64) -> Self {
        let chunk = target
            .write_chunk
            .unwrap_or_else(|| flat_slab([1; 4], target.shape, voxels));
        Self {
            channels: 0..target.channels,
            region: Region::whole(target.shape),
            chunk,
        }
    }

    /// Returns the voxels of the largest box.
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

/// Returns the largest multiple of `unit` with at most `voxels` voxels. It grows along x to the whole axis, then along
/// y, then along z.
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
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::dtype::DType;
    use crate::progress::silent;
    use crate::volume::{
        CreateOptions, Downsample, Layout, MemoryVolume, OpenOptions, Pyramid, ReadMemory,
        Resample, VolumeExt, create, open, output_layout, suite,
    };

    const SHAPE: Shape = [21, 18, 25];

    /// A source that may claim to be sequential, and records where reads begin.
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
        fn sequential_order(&self) -> Option<[usize; 4]> {
            self.sequential.then_some([0, 1, 2, 3])
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
    fn all_voxels_arrive_for_any_order_and_memory() {
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
                    let how = ConvertOptions {
                        threads: 3,
                        memory,
                        ..ConvertOptions::default()
                    };
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

    /// Returns a gzip file of these voxels, and its length in bytes.
    fn packed(dir: &Path) -> (Arc<dyn Volume>, u64) {
        use std::io::Write;
        let plain = dir.join("plain.nii");
        let source = source(false);
        let options = CreateOptions {
            overwrite: true,
            ..CreateOptions::default()
        };
        let target = create(&plain, source.layout(), &options).unwrap();
        let volume: Arc<dyn Volume> = source;
        convert(&volume, target, &ConvertOptions::default(), &silent).unwrap();
        let file = std::fs::File::create(dir.join("packed.nii.gz")).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gzip.write_all(&std::fs::read(&plain).unwrap()).unwrap();
        let bytes = gzip.finish().unwrap().metadata().unwrap().len();
        (open(dir.join("packed.nii.gz")).unwrap(), bytes)
    }

    #[test]
    fn a_compressed_file_is_read_once_for_any_output() {
        let dir = tempfile::tempdir().unwrap();
        let expected = source(false).inner.to_patch();
        let pyramid = Some(Pyramid {
            levels: None,
            method: Downsample::Mean,
        });
        for (n, name) in ["a.zarr", "b.npy", "c.nii", "d.nrrd", "e.mha", "f.mhd"]
            .iter()
            .enumerate()
        {
            for (dtype, threads) in [(DType::U16, 1), (DType::U16, 4), (DType::F32, 3)] {
                let (volume, bytes) = packed(dir.path());
                let path = dir.path().join(format!("{threads}{dtype}{name}"));
                let layout = Layout {
                    dtype,
                    ..volume.layout().clone()
                };
                let options = CreateOptions {
                    chunk: [4, 5, 8],
                    shard: None,
                    pyramid: pyramid.filter(|_| n == 0),
                    ..CreateOptions::default()
                };
                let memory = 100_000;
                let how = ConvertOptions {
                    threads,
                    memory,
                    ..ConvertOptions::default()
                };
                let target = create(&path, &layout, &options).unwrap();
                let done = convert(&volume, target, &how, &silent).unwrap();
                assert!(done.reads.bytes <= bytes, "{name}: one pass");
                assert!(volume.is_sequential(), "{name}: it is not unpacked");
                let out = open(&path).unwrap().read(Region::whole(SHAPE)).unwrap();
                assert_eq!(out, expected.clone().converted(dtype), "{name}");
            }
        }
    }

    #[test]
    fn shards_are_made_smaller_if_only_then_slabs_fit_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zarr");
        let choices = [16, 8, 4].map(|shard| CreateOptions {
            chunk: [4; 3],
            shard: Some([shard; 3]),
            ..CreateOptions::default()
        });
        let chosen = |sequential, memory| {
            let source = source(sequential);
            let options = ConvertOptions {
                threads: 1,
                memory,
                ..ConvertOptions::default()
            };
            let chosen = options
                .choose(&*source, &path, source.layout(), &choices)
                .unwrap();
            chosen.shard.unwrap()[0]
        };
        // A slab of 16 planes of 18 x 25 voxels of 2 bytes takes 14 400 bytes, and there are two. A shard of 16 x 16 x
        // 16 takes 16 384 bytes while it is converted, and half of that, with two chunks of 128 bytes, while it is encoded.
        assert_eq!(chosen(true, 1 << 20), 16);
        assert_eq!(chosen(true, 53_632), 16);
        assert_eq!(chosen(true, 53_631), 8);
        assert_eq!(chosen(true, 17_728), 8);
        assert_eq!(chosen(true, 17_727), 4);
        // If no choice fits, and for other sources, the first is chosen.
        assert_eq!(chosen(true, 5_000), 16);
        assert_eq!(chosen(false, 10_000), 16);
    }

    #[test]
    fn plans_stay_within_the_memory_where_a_thread_can() {
        let path = Path::new("out.zarr");
        let pyramid = Some(Pyramid {
            levels: None,
            method: Downsample::Mean,
        });
        let (mut within, mut fewer, mut once) = (0, 0, 0);
        for sequential in [false, true] {
            for name in ["out.zarr", "out.npy"] {
                for shard in [8, 16] {
                    for memory in [1_000, 60_000, 200_000, 1 << 20, 1 << 30] {
                        let source = source(sequential);
                        let store = CreateOptions {
                            chunk: [4, 8, 8],
                            shard: Some([shard; 3]),
                            pyramid: pyramid.filter(|_| name == "out.zarr"),
                            ..CreateOptions::default()
                        };
                        let layout =
                            output_layout(path.with_file_name(name), source.layout(), &store);
                        let layout = layout.unwrap();
                        let options = ConvertOptions {
                            threads: 8,
                            memory,
                            ..ConvertOptions::default()
                        };
                        let plan = options.plan(&*source, &layout, &store);
                        assert!(plan.peak_bytes <= memory || plan.threads == 1, "{plan:?}");
                        assert!(plan.cache_bytes < plan.peak_bytes);
                        assert!(sequential || !plan.reads_once());
                        within += u32::from(plan.peak_bytes <= memory);
                        fewer += u32::from(plan.threads < 8);
                        once += u32::from(plan.reads_once());
                    }
                }
            }
        }
        assert!(
            within > 20 && fewer > 5 && once > 5,
            "{within} {fewer} {once}"
        );
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
            assert!(target.pyramid_buffer_bytes([0, 1, 2]) > 0);
            let memory = 20_000;
            convert(
                &(source as _),
                target,
                &ConvertOptions {
                    threads,
                    memory,
                    ..ConvertOptions::default()
                },
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
        // Four voxels of the ramp along each axis: their mean is in the middle, 1.5 steps in.
        let first = found[0].as_slice::<u16>().unwrap()[0];
        assert!(first.abs_diff(3 * (18 * 25 + 25 + 1) / 2) <= 1, "{first}");
    }

    #[test]
    fn voxels_that_do_not_fit_are_counted_reported_and_refused_unless_clipped() {
        let dir = tempfile::tempdir().unwrap();
        for (n, sequential) in [false, true].into_iter().enumerate() {
            let path = dir.path().join(format!("{n}.zarr"));
            let source = source(sequential);
            let layout = Layout {
                dtype: DType::U8,
                ..source.layout().clone()
            };
            let store = CreateOptions {
                chunk: [4, 8, 8],
                shard: None,
                ..CreateOptions::default()
            };
            let converted = |clip| {
                let options = ConvertOptions {
                    threads: 3,
                    clip,
                    ..ConvertOptions::default()
                };
                let target = create(&path, &layout, &store)?;
                convert(&(Arc::clone(&source) as _), target, &options, &silent)
            };
            let all: u64 = 2 * 21 * 18 * 25;
            match converted(false).unwrap_err() {
                Error::Lossy {
                    clipped,
                    total,
                    channel,
                    voxel,
                    value,
                    ..
                } => {
                    assert_eq!((clipped, total), (all - 256, all));
                    assert_eq!((channel, voxel, &*value), (0, [0, 10, 6], "256"));
                }
                other => panic!("{other}"),
            }
            assert!(!path.exists());
            let done = converted(true).unwrap();
            assert_eq!((done.clipped, done.rounded), (all - 256, 0));
            let out = open(&path).unwrap().read(Region::whole(SHAPE)).unwrap();
            assert_eq!(out, source.inner.to_patch().converted(DType::U8));
        }
    }

    #[test]
    fn fractions_are_rounded_and_counted_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rounded.zarr");
        let values = vec![0.5_f32, 1.0, -3.0, 2.75];
        let source = MemoryVolume::from_vec([1, 2, 2], 1, values).unwrap();
        let layout = Layout {
            dtype: DType::I16,
            ..Volume::layout(&source).clone()
        };
        let target = create(&path, &layout, &CreateOptions::default()).unwrap();
        let source: Arc<dyn Volume> = Arc::new(source);
        let done = convert(&source, target, &ConvertOptions::default(), &silent).unwrap();
        assert_eq!((done.clipped, done.rounded), (0, 2));
        let out = open(&path).unwrap().read(Region::whole([1, 2, 2])).unwrap();
        assert_eq!(out.as_slice::<i16>().unwrap(), [0, 1, -3, 3]);
    }

    #[test]
    fn stopping_leaves_nothing_and_different_shapes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let source: Arc<dyn Volume> = source(false);
        let layout = source.layout().clone();
        let target = || {
            create(
                dir.path().join("out.zarr"),
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
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let other = Layout {
            shape: [21, 18, 24],
            ..layout.clone()
        };
        let target = create(
            dir.path().join("out.zarr"),
            &other,
            &CreateOptions::default(),
        )
        .unwrap();
        let refused = convert(&source, target, &ConvertOptions::default(), &silent);
        assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
    }

    #[test]
    fn a_plan_counts_the_memory_of_reads_on_another_grid() {
        let geometry = crate::geometry::Geometry::from_spacing([1.0; 3]);
        let layout = Layout {
            read_chunk: Some([1, 64, 64, 64]),
            ..Layout::new([512; 3], 1, DType::I16).with_geometry(geometry)
        };
        let volume: Arc<dyn Volume> = Arc::new(suite::Unstored::new(layout));
        let resample = Resample::default().with_spacing(Some([0.8; 3]));
        let made = Arc::clone(&volume).resampled(&resample).unwrap();
        let options = ConvertOptions {
            memory: 1 << 20,
            threads: 2,
            clip: false,
        };
        let store = CreateOptions::default();
        let target = output_layout("out.zarr", made.layout(), &store).unwrap();
        assert_eq!(target.read_memory, ReadMemory::default());
        let [own, plain] =
            [&made, &volume].map(|source| options.plan(&**source, &target, &store).peak_bytes);
        // A thread computes besides decoding. The chunks that a plan with more memory caches are of the volume.
        assert!(own > plain, "{own} {plain}");
        let most = ConvertOptions {
            memory: 1 << 40,
            ..options
        };
        let cached = most.plan(&*made, &target, &store).cache_bytes;
        assert_eq!(cached, 2 << 27);
    }
}
