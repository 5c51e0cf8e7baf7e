//! A cache of decoded input chunks that knows the order of reading.
//!
//! A run reads its patches in the grid's order, and a chunk is read by a box of patches: those that touch it along each
//! axis. Its next use is therefore computed from its position alone. While more bytes are held than the budget allows,
//! the chunk whose next use is the latest is evicted (L. Belady, "A study of replacement algorithms for a virtual-storage
//! computer", 1966), which decodes the fewest chunks.
//!
//! Each chunk is decoded by one thread, even if several want it at once. Threads may be some patches ahead of others:
//! the next use is that of any patch that is not read yet, from when it is given to a thread.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::grid::Grid;
use crate::region::{Region, chunk_region};
use crate::volume::{
    Chunk, ChunkShape, FreedBytes, Layout, ReadStats, Resampled, Volume, chunk_source, gather_into,
    intersecting, read_by_chunks,
};

/// Approximate overhead of a chunk in the cache, in bytes.
const ENTRY: u64 = 128;

/// The number of a patch that comes after all others.
const NEVER: u64 = u64::MAX;

/// A volume with a cache of decoded chunks, read patch by patch.
///
/// Of a resampled volume, the chunks of the volume that is resampled are held, and each patch is computed from them: a
/// chunk of the resampled volume would need several of them, each of which several such chunks need.
///
/// A volume without chunks (a mapped flat file) is passed through.
#[derive(Debug)]
pub(super) struct SweepCache {
    volume: Arc<dyn Volume>,
    grid: Grid,
    /// The bytes of chunks that may be held, without those that are lent.
    budget: u64,
    /// Bytes that may be held until others need them.
    lent: AtomicU64,
    state: Mutex<CacheState>,
    /// Signals that a load has ended.
    loaded: Condvar,
    hits: AtomicU64,
    /// The bytes of chunks that were read from a store; once the cache is full, as many are freed.
    freed: FreedBytes,
}

#[derive(Debug, Default)]
struct CacheState {
    /// The places, along z, y, x, of the patches that may be read.
    places: [Range<usize>; 3],
    chunks: HashMap<ChunkShape, Entry>,
    /// The chunks in the order of their next use.
    by_next: BTreeSet<(u64, ChunkShape)>,
    bytes: u64,
    /// The chunks that a thread is loading.
    loading: HashSet<ChunkShape>,
    /// The patches that were given to threads and are not read yet.
    unread: BTreeSet<u64>,
}

#[derive(Debug)]
struct Entry {
    chunk: Arc<Chunk>,
    /// The patch that needs it next, as far as is known; may have been read already.
    next: u64,
}

/// The volume, as one patch reads it.
#[derive(Debug)]
pub(super) struct PatchReader<'a> {
    cache: &'a SweepCache,
    patch: u64,
}

/// A load in progress. Waiting threads try again when it ends, even by a panic.
struct Load<'a>(&'a SweepCache, ChunkShape);

impl SweepCache {
    /// Holds up to `budget` bytes of decoded chunks of a volume for the patches of a grid, and those that the volume would
    /// hold itself.
    pub(super) fn new(volume: Arc<dyn Volume>, grid: &Grid, budget: u64) -> Self {
        let own = volume.as_resampled().map_or(0, Resampled::cache_bytes);
        let budget = budget.saturating_add(own);
        let places = grid.every_place();
        Self {
            volume,
            grid: grid.clone(),
            budget,
            lent: AtomicU64::new(0),
            state: Mutex::new(CacheState {
                places,
                ..CacheState::default()
            }),
            loaded: Condvar::new(),
            hits: AtomicU64::new(0),
            freed: FreedBytes::default(),
        }
    }

    /// Begins a pass over the patches at some places, along z, y, x. The chunks of the previous pass are dropped: they are
    /// those of its end, and the threads of the new pass take other memory.
    pub(super) fn begin(&self, places: &[Range<usize>; 3]) {
        let mut state = self.lock();
        let held = std::mem::take(&mut *state);
        state.places.clone_from(places);
        drop(state);
        drop(held);
    }

    /// Keeps in mind that a thread will read some patches, before any thread is given later ones.
    pub(super) fn expect(&self, patches: &[u64]) {
        self.lock().unread.extend(patches);
    }

    /// Lets the cache hold this many bytes more than its budget. A smaller loan than before evicts chunks at once.
    pub(super) fn lend(&self, bytes: u64) {
        if self.lent.swap(bytes, Ordering::Relaxed) > bytes {
            let evicted = self.evict(&mut self.lock());
            drop(evicted);
        }
    }

    fn evict(&self, state: &mut CacheState) -> Vec<Arc<Chunk>> {
        let budget = self
            .budget
            .saturating_add(self.lent.load(Ordering::Relaxed));
        let first = state.first_unread();
        state.evict(budget, |index, places| self.next_use(index, first, places))
    }

    /// Returns the volume for reading a patch of the grid.
    pub(super) fn reader(&self, patch: u64) -> PatchReader<'_> {
        self.expect(&[patch]);
        PatchReader { cache: self, patch }
    }

    /// Returns the volume and drops the cache.
    pub(super) fn into_inner(self) -> Arc<dyn Volume> {
        self.volume
    }

    /// Returns the statistics of reading the volume.
    pub(super) fn read_stats(&self) -> ReadStats {
        let stats = self.volume.read_stats();
        ReadStats {
            hits: stats.hits + self.hits.load(Ordering::Relaxed),
            ..stats
        }
    }

    /// Checks that the volume's files were not modified.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.volume.check_unchanged()
    }

    pub(super) fn layout(&self) -> &Layout {
        self.volume.layout()
    }

    /// Returns `true` if reading a patch box by box takes no more work than reading it whole: nothing is requested from a store,
    /// unpacked in order or resampled, and the chunks that a patch touches are held.
    pub(super) fn reads_boxes(&self) -> bool {
        let layout = self.layout();
        if layout.remote
            || self.volume.sequential_order().is_some()
            || self.volume.as_resampled().is_some()
        {
            return false;
        }
        let Some([channels, chunk @ ..]) = layout.read_chunk else {
            return true;
        };
        let patch = self.grid.patch();
        let touched = (0..3).map(|a| {
            let most = (patch[a].div_ceil(chunk[a]) + 1).saturating_mul(chunk[a]);
            most.min(layout.shape[a].next_multiple_of(chunk[a]))
        });
        let voxels = touched.fold(
            layout.channels.next_multiple_of(channels),
            u64::saturating_mul,
        );
        voxels.saturating_mul(layout.dtype.size() as u64) <= self.budget
    }

    /// Returns the volume whose chunks are held.
    fn source(&self) -> &dyn Volume {
        chunk_source(&*self.volume)
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a chunk for a patch, from the cache if it is there.
    fn chunk(&self, index: ChunkShape, patch: u64) -> Result<Arc<Chunk>> {
        let mut state = self.lock();
        loop {
            if let Some(found) = state.used(index, patch, |after, places| {
                self.next_use(index, after, places)
            }) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(found);
            }
            if state.loading.insert(index) {
                break;
            }
            state = self
                .loaded
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let load = Load(self, index);
        let chunk = Arc::new(self.source().read_chunk(index)?);
        let mut state = self.lock();
        let first = state.first_unread();
        let next = match self.next_use(index, first, &state.places) {
            // No other patch that was given to a thread needs it.
            next if next == patch => self.next_use(index, patch + 1, &state.places),
            next => next,
        };
        state.insert(index, Arc::clone(&chunk), next);
        let evicted = self.evict(&mut state);
        drop(state);
        drop(load);
        drop(evicted);
        if self.source().layout().remote {
            // The versions of objects, which stay, are allocated between chunks, which do not: without this, the heap
            // would have a gap for almost every chunk that was read.
            self.freed.add(chunk.bytes() as u64);
            self.freed.give_back();
        }
        Ok(chunk)
    }

    /// Prefetches the chunks of a box that are neither held nor being loaded, if that is worth it.
    fn announce(&self, channels: &Range<u64>, region: Region, length: usize) -> Result<()> {
        let layout = self.volume.layout();
        let Some(chunk) = layout.read_chunk.filter(|_| layout.remote) else {
            return Ok(());
        };
        layout.check_read(channels, region, length)?;
        let state = self.lock();
        let is_absent = |index: &ChunkShape| {
            !state.chunks.contains_key(index) && !state.loading.contains(index)
        };
        let absent: Vec<_> = intersecting(chunk, channels, region)
            .filter(is_absent)
            .collect();
        drop(state);
        for index in absent {
            self.volume.prefetch(index);
        }
        Ok(())
    }

    /// Returns the number of the first patch from `from` on, among those at `places`, that touches a chunk.
    fn next_use(&self, [_, index @ ..]: ChunkShape, from: u64, places: &[Range<usize>; 3]) -> u64 {
        let Some([_, chunk @ ..]) = self.source().layout().read_chunk else {
            return NEVER;
        };
        let region = chunk_region(index, chunk);
        let needing = match self.volume.as_resampled() {
            Some(resampled) => resampled.depending_on(region),
            None => std::array::from_fn(|a| {
                let start = region.start[a].unsigned_abs();
                start..start + chunk[a]
            }),
        };
        let along = |a: usize| {
            let touching = self.grid.axes()[a].touching(needing[a].start, needing[a].end);
            touching.start.max(places[a].start)..touching.end.min(places[a].end)
        };
        let touching = std::array::from_fn(along);
        self.grid.next_within(&touching, from).unwrap_or(NEVER)
    }
}

impl CacheState {
    /// Returns a chunk that is held, for a patch. `next_use` returns its first use from a patch on.
    fn used(
        &mut self,
        index: ChunkShape,
        patch: u64,
        next_use: impl Fn(u64, &[Range<usize>; 3]) -> u64,
    ) -> Option<Arc<Chunk>> {
        let entry = self.chunks.get_mut(&index)?;
        if entry.next == patch {
            let next = next_use(patch + 1, &self.places);
            self.by_next.remove(&(entry.next, index));
            self.by_next.insert((next, index));
            entry.next = next;
        }
        Some(Arc::clone(&entry.chunk))
    }

    /// Returns the first of the patches that were given to threads and are not read yet.
    fn first_unread(&self) -> u64 {
        self.unread.first().copied().unwrap_or(0)
    }

    fn insert(&mut self, index: ChunkShape, chunk: Arc<Chunk>, next: u64) {
        self.bytes += chunk.bytes() as u64 + ENTRY;
        self.by_next.insert((next, index));
        self.chunks.insert(index, Entry { chunk, next });
    }

    /// Evicts the chunks with the latest next uses until the others fit into the budget. The caller drops them without
    /// the lock.
    fn evict(
        &mut self,
        budget: u64,
        next_use: impl Fn(ChunkShape, &[Range<usize>; 3]) -> u64,
    ) -> Vec<Arc<Chunk>> {
        let mut evicted = Vec::new();
        if self.bytes <= budget {
            return evicted;
        }
        // Uses by patches that were read or are not needed.
        let first = self.first_unread();
        while let Some(&(next, index)) = self.by_next.first()
            && next < first
        {
            self.by_next.pop_first();
            let next = next_use(index, &self.places);
            self.by_next.insert((next, index));
            if let Some(entry) = self.chunks.get_mut(&index) {
                entry.next = next;
            }
        }
        while self.bytes > budget
            && let Some((_, index)) = self.by_next.pop_last()
        {
            if let Some(entry) = self.chunks.remove(&index) {
                self.bytes -= entry.chunk.bytes() as u64 + ENTRY;
                evicted.push(entry.chunk);
            }
        }
        evicted
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.lock().loading.remove(&self.1);
        self.0.loaded.notify_all();
    }
}

impl Drop for PatchReader<'_> {
    fn drop(&mut self) {
        self.cache.lock().unread.remove(&self.patch);
    }
}

impl Volume for PatchReader<'_> {
    fn layout(&self) -> &Layout {
        self.cache.layout()
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&*self.cache.volume)
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        let volume = &self.cache.volume;
        if volume.layout().read_chunk.is_none() {
            return volume.read_channels(channels, region, out);
        }
        let chunk = |index| self.cache.chunk(index, self.patch);
        let Some(resampled) = volume.as_resampled() else {
            self.cache.announce(&channels, region, out.len())?;
            return read_by_chunks(volume.layout(), channels, region, out, chunk);
        };
        let source = resampled.source().layout();
        let read = |out: &mut Vec<u8>, channels: &Range<u64>, region| {
            gather_into(out, source, channels, region, chunk)
        };
        resampled.read_by(&read, &channels, region, out)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::aggregator::twin::TwinRandom;
    use crate::dtype::DType;
    use crate::geometry::Geometry;
    use crate::region::{Shape, chunk_range, indices};
    use crate::volume::{ChunkVoxels, MemoryVolume, Resample, VolumeExt};

    /// A volume that counts the loads of its chunks.
    #[derive(Debug)]
    struct Counting {
        memory: MemoryVolume,
        loads: AtomicU64,
    }

    impl Volume for Counting {
        fn layout(&self) -> &Layout {
            Volume::layout(&self.memory)
        }

        fn read_channels(
            &self,
            channels: Range<u64>,
            region: Region,
            out: &mut [u8],
        ) -> Result<()> {
            self.memory.read_channels(channels, region, out)
        }

        fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
            self.loads.fetch_add(1, Ordering::Relaxed);
            self.memory.read_chunk(index)
        }
    }

    fn counting(shape: Shape, [z, y, x]: Shape) -> Arc<Counting> {
        let voxels = usize::try_from(Region::whole(shape).voxels()).unwrap();
        let voxels: Vec<u8> = (0..voxels)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        let memory = MemoryVolume::from_vec(shape, 1, voxels).unwrap();
        Arc::new(Counting {
            memory: memory.with_chunks([1, z, y, x]),
            loads: AtomicU64::new(0),
        })
    }

    /// Returns the loads by Belady's rule, with the patches that need each chunk as lists.
    fn fewest(grid: &Grid, shape: Shape, chunk: Shape, patches: &[u64], budget: u64) -> u64 {
        let touched = |patch: u64| {
            let region = grid.get(patch).unwrap();
            let inside = region.intersection(&Region::whole(shape)).unwrap();
            indices(chunk_range(&inside, chunk))
        };
        let mut uses: HashMap<[u64; 3], Vec<u64>> = HashMap::new();
        for &patch in patches {
            touched(patch).for_each(|index| uses.entry(index).or_default().push(patch));
        }
        let bytes = chunk.iter().product::<u64>() + ENTRY;
        let (mut held, mut loads) = (HashSet::new(), 0);
        for &patch in patches {
            let all: Vec<[u64; 3]> = touched(patch).collect();
            for (n, index) in all.iter().enumerate() {
                if held.insert(*index) {
                    loads += 1;
                }
                let next = |of: &[u64; 3]| {
                    let now = all[n + 1..].contains(of);
                    let coming = |&&p: &&u64| p > patch || (p == patch && now);
                    uses[of].iter().find(coming).copied().unwrap_or(NEVER)
                };
                while held.len() as u64 * bytes > budget {
                    let last = *held
                        .iter()
                        .max_by_key(|index| (next(index), **index))
                        .unwrap();
                    held.remove(&last);
                }
            }
        }
        loads
    }

    #[test]
    fn as_few_chunks_are_decoded_as_by_beladys_rule() {
        let random = &mut TwinRandom::new(3);
        let mut again = 0;
        for case in 0..60 {
            let shape: Shape = std::array::from_fn(|_| 16 + random.below(30));
            let patch: Shape = std::array::from_fn(|_| 5 + random.below(10));
            let overlap = patch.map(|length| random.below(length));
            let chunk: Shape = std::array::from_fn(|_| 3 + random.below(9));
            // Chunks that extend beyond the volume are smaller, which the twin does not know.
            let shape: Shape = std::array::from_fn(|a| shape[a].next_multiple_of(chunk[a]));
            let grid = Grid::new(shape, patch, overlap).unwrap();
            let volume = counting(shape, chunk);
            let places: [Range<usize>; 3] = std::array::from_fn(|a| {
                let count = grid.axes()[a].starts.len() as u64;
                let start = if random.one_in(2) {
                    0
                } else {
                    random.below(count)
                };
                usize::try_from(start).unwrap()..usize::try_from(count).unwrap()
            });
            let patches: Vec<u64> = grid.indices(&places).collect();
            for _ in 0..4 {
                let budget = (chunk.iter().product::<u64>() + ENTRY) * random.below(120);
                let shared = Arc::clone(&volume) as Arc<dyn Volume>;
                let cache = SweepCache::new(shared, &grid, budget);
                cache.begin(&places);
                volume.loads.store(0, Ordering::Relaxed);
                for &patch in &patches {
                    let region = grid.get(patch).unwrap();
                    let found = cache.reader(patch).read(region).unwrap();
                    assert_eq!(found, volume.memory.read(region).unwrap());
                    assert!(cache.lock().bytes <= budget);
                }
                let expected = fewest(&grid, shape, chunk, &patches, budget);
                assert_eq!(volume.loads.load(Ordering::Relaxed), expected, "{case}");
                again += u64::from(expected > cache.lock().chunks.len() as u64);
            }
        }
        assert!(again > 50, "{again}");
    }

    #[test]
    fn a_loan_holds_more_chunks_until_it_is_called_in() {
        let (shape, chunk) = ([32, 32, 32], [8, 8, 8]);
        let grid = Grid::new(shape, [16; 3], [8; 3]).unwrap();
        let volume = counting(shape, chunk);
        let each = 512 + ENTRY;
        let own = 10 * each;
        let cache = SweepCache::new(Arc::clone(&volume) as Arc<dyn Volume>, &grid, own);
        let read = |patches: Range<u64>| {
            for patch in patches {
                let region = grid.get(patch).unwrap();
                let found = cache.reader(patch).read(region).unwrap();
                assert_eq!(found, volume.memory.read(region).unwrap());
            }
        };
        cache.lend(20 * each);
        read(0..9);
        assert_eq!(cache.lock().bytes, 30 * each);
        cache.lend(30 * each);
        assert_eq!(cache.lock().bytes, 30 * each, "a larger loan drops nothing");
        cache.lend(5 * each);
        assert_eq!(
            cache.lock().bytes,
            15 * each,
            "a smaller one drops chunks at once"
        );
        read(9..18);
        assert_eq!(cache.lock().bytes, 15 * each);
        cache.lend(0);
        assert_eq!(cache.lock().bytes, own);
        read(18..27);
        assert!(cache.lock().bytes <= own);

        let loads = |lent: u64| {
            let volume = counting(shape, chunk);
            let cache = SweepCache::new(Arc::clone(&volume) as Arc<dyn Volume>, &grid, own);
            cache.lend(lent);
            for patch in 0..grid.len() {
                cache.reader(patch).read(grid.get(patch).unwrap()).unwrap();
            }
            volume.loads.load(Ordering::Relaxed)
        };
        assert_eq!(loads(64 * each), 64, "each chunk is decoded once");
        assert!(loads(10 * each) < loads(0));
    }

    /// Returns the decodes of all patches of a volume of 384^3 voxels, 512 chunks, on a grid of 3 mm, with `budget` bytes in
    /// addition to the 32 MiB of the volume.
    fn decodes_on_a_coarser_grid(budget: u64) -> u64 {
        #[derive(Debug)]
        struct Zeros(Layout, AtomicU64);
        impl Volume for Zeros {
            fn layout(&self) -> &Layout {
                &self.0
            }
            fn read_channels(&self, _: Range<u64>, _: Region, out: &mut [u8]) -> Result<()> {
                out.fill(0);
                Ok(())
            }
            fn read_chunk(&self, [_, z, y, x]: ChunkShape) -> Result<Chunk> {
                self.1.fetch_add(1, Ordering::Relaxed);
                let region = chunk_region([z, y, x], [48; 3]);
                let bytes = 2 * usize::try_from(region.voxels()).unwrap();
                Ok(Chunk {
                    channels: 0..1,
                    region,
                    voxels: ChunkVoxels::Stored(vec![0; bytes]),
                })
            }
        }
        let mut layout = Layout::new([384; 3], 1, DType::I16)
            .with_geometry(Geometry::from_parts([1.0; 3], [0.0; 3]));
        layout.read_chunk = Some([1, 48, 48, 48]);
        let zeros = Arc::new(Zeros(layout, AtomicU64::new(0)));
        let resample = Resample::default().with_spacing(Some([2.9; 3]));
        let volume = Arc::clone(&zeros).resampled(&resample).unwrap();
        let shape = volume.layout().shape;
        let grid = Grid::new(shape, [32; 3], [16; 3]).unwrap();
        let useful = crate::inference::needs::useful_cache(&grid, volume.layout());
        // The voxels that a patch needs, 32 times 2.9 and their neighbors, and the chunks that extend beyond them.
        assert_eq!(useful, 2 * (95 + 2 * 48) * 384 * 384);
        let cache = SweepCache::new(Arc::clone(&volume), &grid, budget);
        for patch in 0..grid.len() {
            let region = grid.get(patch).unwrap();
            let found = cache.reader(patch).read(region).unwrap();
            assert!(found.bytes().iter().all(|&byte| byte == 0));
        }
        zeros.1.load(Ordering::Relaxed)
    }

    #[test]
    fn a_resampled_volume_decodes_the_chunks_of_its_source_once_and_seldom_again_where_memory_is_short()
     {
        // Each patch touches three to four layers of 14 MB.
        assert_eq!(decodes_on_a_coarser_grid(32 << 20), 512);
        let short = decodes_on_a_coarser_grid(0);
        assert!(short <= 900, "{short}");
    }

    #[test]
    fn a_layer_and_some_rows_of_chunks_are_enough_to_decode_each_once() {
        // In the second volume, the last two layers of patches touch three layers of chunks, and are swept together.
        let cases = [(160, 32), (168, 48)];
        for ((planes, rows), threads) in cases.into_iter().flat_map(|of| [1, 2, 4].map(|n| (of, n)))
        {
            let shape = [planes, 128, 128];
            let grid = Grid::new(shape, [32; 3], [16; 3]).unwrap();
            let volume = counting(shape, [16; 3]);
            let shared = Arc::clone(&volume) as Arc<dyn Volume>;
            // 64 chunks a layer, 8 a row; the rows that threads ahead need, too.
            let budget = (16 * 16 * 16 + ENTRY) * (64 + rows + 8 * (threads - 1));
            let cache = SweepCache::new(shared, &grid, budget);
            // Each thread reads one patch between two meetings: none is ahead by more, whatever else the machine does.
            let together = Barrier::new(usize::try_from(threads).unwrap());
            thread::scope(|scope| {
                for thread in 0..threads {
                    let (cache, volume, grid, together) = (&cache, &volume, &grid, &together);
                    scope.spawn(move || {
                        for first in (0..grid.len()).step_by(usize::try_from(threads).unwrap()) {
                            if thread == 0 {
                                let given = first..grid.len().min(first + threads);
                                cache.expect(&given.collect::<Vec<u64>>());
                            }
                            together.wait();
                            if let Some(region) = grid.get(first + thread) {
                                let found = cache.reader(first + thread).read(region).unwrap();
                                assert_eq!(found, volume.memory.read(region).unwrap());
                            }
                            together.wait();
                        }
                    });
                }
            });
            assert!(cache.lock().bytes <= budget && cache.lock().unread.is_empty());
            let loads = volume.loads.load(Ordering::Relaxed);
            let all = planes.div_ceil(16) * 64;
            assert_eq!(loads, all, "{planes} planes, {threads} threads");
        }
    }

    #[test]
    fn many_threads_that_want_one_chunk_decode_it_once_and_an_error_goes_to_one() {
        #[derive(Debug)]
        struct Failing(MemoryVolume, AtomicU64);
        impl Volume for Failing {
            fn layout(&self) -> &Layout {
                Volume::layout(&self.0)
            }
            fn read_channels(&self, c: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
                self.0.read_channels(c, region, out)
            }
            fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
                thread::sleep(std::time::Duration::from_millis(2));
                match self.1.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(crate::Error::Interrupted),
                    1 => panic!("the second load"),
                    _ => self.0.read_chunk(index),
                }
            }
        }
        let memory = MemoryVolume::from_vec([4; 3], 1, vec![7_u8; 64]).unwrap();
        let volume = Arc::new(Failing(memory.with_chunks([1, 4, 4, 4]), AtomicU64::new(0)));
        let grid = Grid::new([4; 3], [4; 3], [0; 3]).unwrap();
        let cache = SweepCache::new(Arc::clone(&volume) as Arc<dyn Volume>, &grid, 1 << 20);
        let barrier = Barrier::new(8);
        let (failed, panicked) = thread::scope(|scope| {
            let read = || {
                barrier.wait();
                cache.reader(0).read(Region::whole([4; 3]))
            };
            let threads = [(); 8].map(|()| scope.spawn(read));
            let ends = threads.map(thread::ScopedJoinHandle::join);
            let failed = ends.iter().filter(|end| matches!(end, Ok(Err(_)))).count();
            (failed, ends.iter().filter(|end| end.is_err()).count())
        });
        assert_eq!((failed, panicked), (1, 1));
        assert_eq!(volume.1.load(Ordering::SeqCst), 3);
        assert_eq!(cache.read_stats().hits, 5);
    }
}
