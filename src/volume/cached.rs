//! A cache of decoded chunks with a byte budget, for any chunked volume.
//!
//! The cache is itself a [`Volume`] and can be shared between threads. Reads go through its chunks; each chunk is
//! fetched and decoded by one thread, even if several threads want it at once.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value as Json;

use super::chunk::{Chunk, intersecting, read_by_chunks};
use super::lru::Lru;
use super::{ChunkShape, FreedBytes, Layout, ReadStats, Volume};
use crate::error::Result;
use crate::region::Region;

/// A volume with a cache of decoded chunks.
///
/// A volume without chunks (a mapped flat file) is passed through: the system's page cache already holds it.
#[derive(Debug)]
pub struct Cached {
    inner: Arc<dyn Volume>,
    layout: Layout,
    chunks: Lru<ChunkShape, Arc<Chunk>>,
    hits: AtomicU64,
    /// The bytes of chunks that were decoded; once the cache is full, as many are freed.
    freed: FreedBytes,
}

impl Cached {
    /// Keeps up to `budget` bytes of decoded chunks of `volume`.
    #[must_use]
    pub fn new(volume: Arc<dyn Volume>, budget: u64) -> Self {
        let chunks = Lru::new(budget, |chunk: &Arc<Chunk>| chunk.bytes());
        Self {
            layout: volume.layout().of_wrapper(),
            inner: volume,
            chunks,
            hits: AtomicU64::new(0),
            freed: FreedBytes::default(),
        }
    }

    /// Prefetches the chunks of a box, if that is worth it.
    fn announce(&self, channels: &Range<u64>, region: Region, length: usize) -> Result<()> {
        if let Some(chunk) = self.layout.read_chunk
            && self.layout.remote
        {
            self.layout.check_read(channels, region, length)?;
            intersecting(chunk, channels, region).for_each(|index| self.prefetch(index));
        }
        Ok(())
    }

    /// Returns the chunk at `index`, from the cache if it is there.
    ///
    /// # Errors
    ///
    /// As [`Volume::read_chunk`].
    pub fn chunk(&self, index: ChunkShape) -> Result<Arc<Chunk>> {
        let (chunk, hit) = self
            .chunks
            .get_or_load(&index, || self.inner.read_chunk(index).map(Arc::new))?;
        if hit {
            self.hits.fetch_add(1, Ordering::Relaxed);
        } else {
            self.freed.add(chunk.bytes() as u64);
            self.freed.give_back();
        }
        Ok(chunk)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Cached {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        if self.layout().read_chunk.is_none() {
            return self.inner.read_channels(channels, region, out);
        }
        self.announce(&channels, region, out.len())?;
        read_by_chunks(self.layout(), channels, region, out, |index| {
            self.chunk(index)
        })
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        Ok((*self.chunk(index)?).clone())
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&*self.inner)
    }

    fn as_resampled(&self) -> Option<&super::Resampled> {
        None
    }

    fn prefetch(&self, index: ChunkShape) {
        if !self.chunks.contains(&index) {
            self.inner.prefetch(index);
        }
    }

    fn time_points(&self) -> Option<u64> {
        self.inner.time_points()
    }

    fn sequential_order(&self) -> Option<[usize; 4]> {
        self.inner.sequential_order()
    }

    fn read_granularity(&self) -> Option<ChunkShape> {
        self.inner.read_granularity()
    }

    fn reads_parts(&self) -> bool {
        false
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        self.inner.fill_chunk(index)
    }

    fn read_stats(&self) -> ReadStats {
        let inner = self.inner.read_stats();
        ReadStats {
            hits: inner.hits + self.hits.load(Ordering::Relaxed),
            ..inner
        }
    }

    fn source_files(&self) -> Vec<PathBuf> {
        self.inner.source_files()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.inner.check_unchanged()
    }

    fn identity(&self) -> Result<Json> {
        self.inner.identity()
    }

    fn stored_bytes(&self) -> Result<u64> {
        self.inner.stored_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;
    use crate::error::Error;
    use crate::volume::{MemoryVolume, VolumeExt};

    /// Counts reads, and fails the first ones on request.
    #[derive(Debug)]
    struct Counting {
        inner: MemoryVolume,
        reads: AtomicUsize,
        failures: AtomicUsize,
    }

    impl Volume for Counting {
        fn layout(&self) -> &Layout {
            Volume::layout(&self.inner)
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
            self.reads.fetch_add(1, Ordering::SeqCst);
            let fail = self
                .failures
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if fail.is_ok() {
                return Err(Error::Interrupted);
            }
            thread::sleep(std::time::Duration::from_millis(2));
            self.inner.read_channels(channels, region, out)
        }
    }

    fn counting(failures: usize) -> Arc<Counting> {
        let voxels: Vec<u16> = (0..2 * 9 * 10 * 11).collect();
        let inner = MemoryVolume::from_vec([9, 10, 11], 2, voxels)
            .unwrap()
            .with_chunks([1, 4, 4, 4]);
        Arc::new(Counting {
            inner,
            reads: AtomicUsize::new(0),
            failures: AtomicUsize::new(failures),
        })
    }

    #[test]
    fn many_threads_that_want_one_chunk_decode_it_once() {
        let volume = counting(0);
        let cached = Cached::new(Arc::clone(&volume) as Arc<dyn Volume>, 1 << 20);
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let patch = cached.read(Region::whole([9, 10, 11])).unwrap();
                    assert_eq!(patch, volume.inner.to_patch());
                });
            }
        });
        assert_eq!(volume.reads.load(Ordering::SeqCst), 2 * 3 * 3 * 3);
        assert_eq!(cached.read_stats().hits, 7 * 54);
    }

    #[test]
    fn the_budget_holds_and_the_least_recently_used_goes_first() {
        let volume = counting(0);
        let cached = Cached::new(Arc::clone(&volume) as Arc<dyn Volume>, 2 * (64 * 2 + 200));
        let corner = |x: i64| Region::new([0, 0, x], [1; 3]);
        let mut voxel = [0; 2];
        let mut read = |x| cached.read_channels(0..1, corner(x), &mut voxel).unwrap();
        [0, 4, 0, 8, 0].into_iter().for_each(&mut read);
        assert_eq!(
            volume.reads.load(Ordering::SeqCst),
            3,
            "0 stayed, since it was used after 4"
        );
        read(4);
        assert_eq!(volume.reads.load(Ordering::SeqCst), 4, "4 had to go for 8");
    }

    #[test]
    fn the_budget_holds_while_threads_read_everywhere() {
        let volume = counting(0);
        let budget = 5 * (64 * 2 + 200);
        let cached = Cached::new(Arc::clone(&volume) as Arc<dyn Volume>, budget);
        thread::scope(|scope| {
            for t in 0..4_u64 {
                let (cached, volume) = (&cached, &volume);
                scope.spawn(move || {
                    for n in 0..60 {
                        let corner = |a: u64| i64::try_from((n * 7 + t * 5 + a * n) % 8).unwrap();
                        let region = Region::new([corner(0), corner(1), corner(2)], [1, 2, 3]);
                        let patch = cached.read(region).unwrap();
                        assert_eq!(patch, volume.inner.read(region).unwrap());
                        // Each thread may hold one more chunk: the one that it has just loaded.
                        assert!(cached.chunks.bytes() <= budget + 4 * (64 * 2 + 128));
                    }
                });
            }
        });
        assert!(cached.chunks.bytes() <= budget);
    }

    #[test]
    fn a_failure_goes_to_one_thread_and_the_others_retry() {
        let volume = counting(3);
        let cached = Cached::new(Arc::clone(&volume) as Arc<dyn Volume>, 1 << 20);
        let barrier = Barrier::new(8);
        let failed = thread::scope(|scope| {
            let read = || {
                barrier.wait();
                cached.chunk([0; 4])
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
            let results = threads.into_iter().map(|thread| thread.join().unwrap());
            results
                .filter(|result| matches!(result, Err(Error::Interrupted)))
                .count()
        });
        assert_eq!(failed, 3);
        assert_eq!(volume.reads.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn a_panic_while_loading_blocks_nobody() {
        let lru: Lru<u8, u8> = Lru::new(1 << 20, |_| 1);
        let barrier = Barrier::new(4);
        let tries = AtomicUsize::new(0);
        let panics = thread::scope(|scope| {
            let read = || {
                barrier.wait();
                lru.get_or_load(&1, || {
                    thread::sleep(std::time::Duration::from_millis(5));
                    assert!(tries.fetch_add(1, Ordering::SeqCst) > 0, "the first one");
                    Ok::<_, Error>(7)
                })
            };
            let threads = [(); 4].map(|()| scope.spawn(read));
            let results = threads.map(thread::ScopedJoinHandle::join);
            results.iter().filter(|result| result.is_err()).count()
        });
        assert_eq!((panics, tries.load(Ordering::SeqCst)), (1, 2));
        let (value, there) = lru.get_or_load(&1, || Err(Error::Interrupted)).unwrap();
        assert_eq!((value, there), (7, true));
    }

    #[test]
    fn a_failed_load_is_an_error_now_and_tried_again_later() {
        let volume = counting(1);
        let cached = Cached::new(Arc::clone(&volume) as Arc<dyn Volume>, 1 << 20);
        let mut voxel = [0; 2];
        let region = Region::new([0; 3], [1; 3]);
        assert!(cached.read_channels(0..1, region, &mut voxel).is_err());
        assert!(cached.read_channels(0..1, region, &mut voxel).is_ok());
    }
}
