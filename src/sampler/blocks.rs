//! Blocks: the parts of a map that are read one at a time.
//!
//! A block is a read chunk, so that a draw decodes one chunk, or 64^3 voxels where there are no chunks. Chunks smaller
//! than 32^3 are combined up to that size, and chunks of any size are combined while there would be more than 4 Mi
//! blocks: an index entry takes 16 bytes, so the size of the index is bounded for any volume. A large chunk is not cut,
//! because reading any part of it decodes all of it.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::error::{Error, Result};
use crate::progress::{Progress, report};
use crate::region::{Region, Shape, chunk_range, chunk_region, indices, voxels};
use crate::volume::{Chunk, ChunkVoxels, Layout, Volume, intersecting};

/// The default voxels of a block, and the minimum where chunks are small.
const USUAL: Shape = [64; 3];
const LEAST: u64 = 32 * 32 * 32;
/// The maximum number of blocks in an index, unless blocks would exceed `LARGEST` voxels.
const MOST: u64 = 1 << 22;
const LARGEST: u64 = 1 << 24;
/// The minimum number of shards for distributing shards instead of blocks among threads.
const MANY_SHARDS: u64 = 256;

/// A volume cut into blocks, numbered in row-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) volume: Shape,
    pub(super) block: Shape,
}

impl Blocks {
    /// Returns blocks that match the chunks of a volume.
    pub(super) fn of(layout: &Layout) -> Self {
        let block = layout.read_chunk.map_or(USUAL, |[_, z, y, x]| [z, y, x]);
        let mut blocks = Self {
            volume: layout.shape,
            block: std::array::from_fn(|a| match layout.read_chunk {
                Some(_) => block[a].max(1),
                None => block[a].min(layout.shape[a]).max(1),
            }),
        };
        loop {
            let size = voxels(blocks.block).unwrap_or(u64::MAX);
            let small = size < LEAST || (blocks.count() > MOST && size < LARGEST);
            let shortest = (0..3)
                .filter(|&a| blocks.block[a] < blocks.volume[a])
                .min_by_key(|&a| blocks.block[a]);
            let (true, Some(a)) = (small, shortest) else {
                return blocks;
            };
            blocks.block[a] = blocks.block[a].saturating_mul(2);
        }
    }

    /// Returns the number of blocks along each axis.
    fn counts(&self) -> Shape {
        std::array::from_fn(|a| self.volume[a].div_ceil(self.block[a]))
    }

    /// Returns the write chunks as larger blocks, if each has several blocks and there are enough of them to distribute
    /// among threads.
    pub(super) fn shards(&self, layout: &Layout) -> Option<Self> {
        let [_, shard @ ..] = layout.write_chunk?;
        let whole = (0..3).all(|a| shard[a] > 0 && shard[a].is_multiple_of(self.block[a]));
        let shards = Self {
            volume: self.volume,
            block: shard,
        };
        (whole && shard != self.block && shards.count() >= MANY_SHARDS).then_some(shards)
    }

    /// Returns the blocks of a region that is one of [`shards`](Self::shards).
    pub(super) fn inside(&self, region: &Region) -> impl Iterator<Item = u64> + use<> {
        let [_, y, x] = self.counts();
        indices(chunk_range(region, self.block)).map(move |[bz, by, bx]| (bz * y + by) * x + bx)
    }

    /// Returns the number of blocks; `u64::MAX` if there are more.
    pub(super) fn count(&self) -> u64 {
        voxels(self.counts()).unwrap_or(u64::MAX)
    }

    /// Returns the index (z, y, x) of block `id`.
    pub(super) fn index(&self, id: u64) -> [u64; 3] {
        let [_, y, x] = self.counts();
        let (layer, row) = (y.saturating_mul(x).max(1), x.max(1));
        [id / layer, id % layer / row, id % row]
    }

    /// Returns the region of block `id`, clipped to the volume.
    pub(super) fn region(&self, id: u64) -> Region {
        let mut region = chunk_region(self.index(id), self.block);
        for a in 0..3 {
            let left = self.volume[a].saturating_sub(region.start[a].unsigned_abs());
            region.shape[a] = region.shape[a].min(left);
        }
        region
    }
}

/// The voxels of a block or of a part of it, one channel, in native byte order.
#[derive(Debug)]
pub(super) enum BlockVoxels {
    /// The bytes of one voxel; all voxels are equal.
    Fill(Vec<u8>),
    /// Row-major z, y, x.
    Stored(Vec<u8>),
}

/// Reads one channel of a region. Each chunk is read once.
pub(super) fn read_block(volume: &dyn Volume, channel: u64, region: Region) -> Result<BlockVoxels> {
    let layout = volume.layout();
    let size = layout.dtype.size();
    let channels = channel..channel.saturating_add(1);
    let bytes = usize::try_from(region.voxels().saturating_mul(size as u64)).unwrap_or(usize::MAX);
    layout.check_read(&channels, region, bytes)?;
    let Some(shape) = layout.read_chunk else {
        let mut out = vec![0; bytes];
        volume.read_channels(channels, region, &mut out)?;
        return Ok(BlockVoxels::Stored(out));
    };
    let mut out = Vec::new();
    let mut first: Option<Chunk> = None;
    for index in intersecting(shape, &channels, region) {
        let chunk = volume.read_chunk(index)?;
        match &first {
            None => first = Some(chunk),
            Some(same) if out.is_empty() && is_same_fill(same, &chunk) => {}
            Some(earlier) => {
                if out.is_empty() {
                    out = start(earlier, bytes, &channels, region, size);
                }
                chunk.copy_to(&channels, region, &mut out, size);
            }
        }
    }
    match first {
        Some(Chunk {
            voxels: ChunkVoxels::Fill(voxel),
            ..
        }) if out.is_empty() => Ok(BlockVoxels::Fill(voxel)),
        Some(chunk) if out.is_empty() => Ok(BlockVoxels::Stored(alone(
            chunk, bytes, &channels, region, size,
        ))),
        _ => Ok(BlockVoxels::Stored(out)),
    }
}

fn is_same_fill(a: &Chunk, b: &Chunk) -> bool {
    matches!((&a.voxels, &b.voxels), (ChunkVoxels::Fill(a), ChunkVoxels::Fill(b)) if a == b)
}

/// Returns a buffer for the region with the voxels of the first chunk. A fill value is written everywhere, because
/// several chunks may have had it.
fn start(
    first: &Chunk,
    bytes: usize,
    channels: &Range<u64>,
    region: Region,
    size: usize,
) -> Vec<u8> {
    match &first.voxels {
        ChunkVoxels::Fill(voxel) => voxel.repeat(bytes / size),
        ChunkVoxels::Stored(_) => {
            let mut out = vec![0; bytes];
            first.copy_to(channels, region, &mut out, size);
            out
        }
    }
}

/// Returns the region's voxels from the one chunk that contains it, without a copy if they are equal.
fn alone(
    chunk: Chunk,
    bytes: usize,
    channels: &Range<u64>,
    region: Region,
    size: usize,
) -> Vec<u8> {
    match chunk.voxels {
        ChunkVoxels::Stored(voxels) if voxels.len() == bytes && chunk.region == region => voxels,
        _ => start(&chunk, bytes, channels, region, size),
    }
}

/// Calls `work` once for each of `jobs` numbers, on up to `threads` threads, roughly in order.
/// Each thread has its own state, which is returned. If jobs fail, the error is that of the lowest
/// failed job, for any number of threads.
pub(super) fn spread<S: Default + Send>(
    jobs: u64,
    threads: usize,
    progress: Progress<'_>,
    work: impl Fn(&mut S, u64) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<(u64, Error)>> = Mutex::new(None);
    let fail = |job, error| {
        stop.store(true, Ordering::Relaxed);
        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|&(earlier, _)| job < earlier) {
            *failure = Some((job, error));
        }
    };
    let run = || {
        let mut state = S::default();
        while !stop.load(Ordering::Relaxed) {
            // A job that was taken is finished, so all jobs below a failed one are finished too.
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= jobs {
                break;
            }
            if let Err(error) = work(&mut state, job) {
                fail(job, error);
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if (done.is_multiple_of(64) || done == jobs)
                && let Err(error) = report(progress, done, jobs)
            {
                fail(u64::MAX, error);
            }
        }
        state
    };
    let threads = threads
        .max(1)
        .min(usize::try_from(jobs).unwrap_or(usize::MAX));
    let states = if threads <= 1 {
        vec![run()]
    } else {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            workers
                .into_iter()
                .map(|worker| {
                    worker
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })
    };
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(states),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::progress::silent;
    use crate::volume::MemoryVolume;

    fn chunked(shape: Shape, chunk: Option<Shape>) -> Blocks {
        let mut layout = Layout::new(shape, 1, DType::U8);
        layout.read_chunk = chunk.map(|[z, y, x]| [1, z, y, x]);
        Blocks::of(&layout)
    }

    #[test]
    fn a_block_is_a_chunk_unless_chunks_are_small_or_very_many() {
        let scan = [1069, 512, 512];
        assert_eq!(chunked(scan, Some([64; 3])).block, [64; 3]);
        assert_eq!(chunked(scan, Some([1, 512, 512])).block, [1, 512, 512]);
        assert_eq!(chunked(scan, Some([256; 3])).block, [256; 3]);
        assert_eq!(chunked(scan, None).block, [64; 3]);
        assert_eq!(chunked(scan, Some([1, 64, 64])).block, [8, 64, 64]);
        assert_eq!(chunked([5, 7, 9], None).block, [5, 7, 9]);
        assert_eq!(chunked([1, 1, (1 << 31) + 1], None).block, [1, 1, 1 << 15]);
        let huge = chunked([16_384; 3], Some([32; 3]));
        assert!(huge.count() <= MOST, "4 TiB: {} blocks", huge.count());
        assert!(huge.block.iter().all(|n| n.is_multiple_of(32)));
    }

    #[test]
    fn blocks_cover_every_voxel_once() {
        let blocks = Blocks {
            volume: [5, 7, 9],
            block: [2, 3, 4],
        };
        assert_eq!(blocks.count(), 27);
        let regions: Vec<_> = (0..27).map(|id| blocks.region(id)).collect();
        assert_eq!(regions.iter().map(Region::voxels).sum::<u64>(), 5 * 7 * 9);
        for (i, a) in regions.iter().enumerate() {
            assert!(a.is_inside([5, 7, 9]) && !a.is_empty());
            assert!(regions[..i].iter().all(|b| a.intersection(b).is_none()));
        }
    }

    /// A volume whose chunks are not stored and are 7, except one.
    #[derive(Debug)]
    struct Holey(MemoryVolume, [u64; 4]);

    impl Volume for Holey {
        fn layout(&self) -> &Layout {
            Volume::layout(&self.0)
        }
        fn read_channels(&self, _: Range<u64>, _: Region, _: &mut [u8]) -> Result<()> {
            panic!("chunked volumes are read by chunks")
        }
        fn read_chunk(&self, index: [u64; 4]) -> Result<Chunk> {
            let mut chunk = self.0.read_chunk(index)?;
            if index != self.1 {
                chunk.voxels = ChunkVoxels::Fill(vec![7]);
            }
            Ok(chunk)
        }
    }

    #[test]
    fn a_region_of_many_chunks_is_assembled_for_any_stored_ones() {
        let all = Region::new([1, 0, 1], [3, 4, 3]);
        for z in 0..2 {
            for x in 0..2 {
                let memory = MemoryVolume::from_vec([4, 4, 5], 2, (0..160).collect::<Vec<u8>>());
                let volume = Holey(memory.unwrap().with_chunks([1, 2, 4, 2]), [1, z, 0, x]);
                let BlockVoxels::Stored(voxels) = read_block(&volume, 1, all).unwrap() else {
                    panic!("one of its chunks is stored");
                };
                let mut expected = Vec::new();
                for [vz, vy, vx] in crate::region::indices([1..4, 0..4, 1..4]) {
                    let stored = vz / 2 == z && vx / 2 == x;
                    let own = u8::try_from(80 + (vz * 4 + vy) * 5 + vx).unwrap();
                    expected.push(if stored { own } else { 7 });
                }
                assert_eq!(voxels, expected, "{z} {x}");
                let read = read_block(&volume, 0, all).unwrap();
                assert!(matches!(read, BlockVoxels::Fill(voxel) if voxel == [7]));
            }
        }
    }

    #[test]
    fn the_error_is_that_of_the_lowest_job_for_any_number_of_threads() {
        for threads in [1, 2, 7] {
            let work = |_: &mut u64, job| match job {
                30 | 31 | 90 => {
                    if job == 30 {
                        thread::sleep(std::time::Duration::from_millis(5));
                    }
                    Err(Error::NoSuchChannel {
                        start: job,
                        end: 0,
                        channels: 0,
                    })
                }
                _ => Ok(()),
            };
            let error = spread(100, threads, &silent, work).unwrap_err();
            assert!(matches!(error, Error::NoSuchChannel { start: 30, .. }));
        }
    }

    #[test]
    fn every_job_is_done_once_and_a_wish_to_stop_ends_the_work() {
        let sum = |sum: &mut u64, job| {
            *sum += job;
            Ok(())
        };
        for threads in [0, 1, 3, 200] {
            let states = spread(101, threads, &silent, sum).unwrap();
            assert_eq!(states.iter().sum::<u64>(), 5050);
        }
        let stop = |_, _| std::ops::ControlFlow::Break(());
        assert!(matches!(
            spread(101, 2, &stop, sum),
            Err(Error::Interrupted)
        ));
        assert_eq!(spread(0, 2, &stop, sum).unwrap().len(), 1);
    }
}
