//! A conformance suite for volumes, and volumes that misbehave on request, for tests in this crate and elsewhere.
//!
//! [`check`] compares a volume with its twin in memory, voxel by voxel and in plain loops, so that it shares no code
//! with the code under test. It panics with a description of the problem. [`Faulty`] is any volume with one fault at
//! chosen reads. [`check_wrapper`] checks that a volume that wraps another forwards all calls to it.

mod wrappers;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value as Json;

use super::{Chunk, ChunkShape, ChunkVoxels, Layout, ReadStats, Volume, VolumeExt};
use crate::error::{Error, Result};
use crate::patch::Patch;
use crate::region::Region;

pub use wrappers::{CallRecorder, check_forwarding, check_wrapper};

/// The number of boxes that are read and compared.
const BOXES: u32 = 200;

/// The maximum number of chunks that are compared.
const CHUNKS: usize = 100;

/// Checks that `volume` has exactly the voxels of `expected`, which covers all of it, and keeps every promise of
/// [`Volume`].
///
/// # Panics
///
/// Panics if it does not.
pub fn check(volume: &dyn Volume, expected: &Patch) {
    let layout = volume.layout();
    assert_eq!(layout.shape, expected.shape(), "shape");
    assert_eq!(layout.channels, expected.channels(), "channels");
    assert_eq!(layout.dtype, expected.dtype(), "dtype");
    assert!(layout.geometry.is_sound(), "{:?}", layout.geometry);
    let is_computed = layout.read_memory.source.is_some();
    assert!(
        !is_computed || volume.as_resampled().is_some(),
        "only a resampled volume is read by the chunks that it is computed from"
    );
    assert_eq!(
        layout.decoded_bytes().expect("a small volume"),
        expected.bytes().len() as u64
    );
    for chunk in [layout.read_chunk, layout.write_chunk]
        .into_iter()
        .flatten()
    {
        assert!(chunk.iter().all(|&n| n > 0), "chunk {chunk:?}");
    }
    volume.stored_bytes().expect("the stored size is known");
    check_whole(volume, expected);
    check_refusals(volume);
    check_chunks(volume, expected);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || check_boxes(volume, expected, seed));
        }
    });
}

/// Reads the whole volume twice, and changes the first patch in between.
fn check_whole(volume: &dyn Volume, expected: &Patch) {
    let whole = Region::whole(expected.shape());
    let mut first = volume.read(whole).expect("the whole volume");
    assert!(
        first.bytes() == expected.bytes(),
        "the whole volume differs"
    );
    first.bytes_mut().fill(0x55);
    drop(first);
    let second = volume.read(whole).expect("the whole volume again");
    assert!(
        second.bytes() == expected.bytes(),
        "changing a patch changed the volume"
    );
    assert_eq!(second.region(), whole);
}

/// Reads random boxes, including corners and thin ones.
fn check_boxes(volume: &dyn Volume, expected: &Patch, seed: u64) {
    let mut random = Random(seed);
    let shape = expected.shape();
    for _ in 0..BOXES / 4 {
        let mut region = Region::whole(shape);
        for (a, &length) in shape.iter().enumerate() {
            let (start, end) = random.range(length);
            // Sometimes an entire axis or one end of it, because those use different code paths.
            let (start, end) = match random.below(6) {
                0 => (0, length),
                1 => (0, 1.min(length)),
                2 => (length.saturating_sub(1), length),
                _ => (start, end),
            };
            region.start[a] = i64::try_from(start).expect("a small volume");
            region.shape[a] = end - start;
        }
        let (start, end) = random.range(expected.channels());
        let channels = start..end;
        let twin = cut(expected, &channels, region);
        let mut out = vec![0xaa; twin.len()];
        volume
            .read_channels(channels.clone(), region, &mut out)
            .unwrap_or_else(|error| panic!("channels {channels:?} of [{region}]: {error}"));
        assert!(out == twin, "channels {channels:?} of [{region}] differ");
    }
}

/// Makes invalid requests and empty ones.
fn check_refusals(volume: &dyn Volume) {
    let layout = volume.layout();
    let size = layout.dtype.size();
    let channels = 0..layout.channels;
    let read = |channels: &Range<u64>, region: Region, length: usize| {
        volume.read_channels(channels.clone(), region, &mut vec![0; length])
    };
    let one = Region::new([0; 3], [1; 3]);
    let length = usize::try_from(layout.channels).expect("a small volume") * size;
    for axis in 0..3 {
        let end = i64::try_from(layout.shape[axis]).expect("a small volume");
        for start in [-1, end, end + 1, i64::MAX, i64::MIN] {
            let mut region = one;
            region.start[axis] = start;
            let refused = read(&channels, region, length);
            assert!(
                matches!(refused, Err(Error::OutOfBounds { .. })),
                "[{region}]: {refused:?}"
            );
            let refused = volume.read(region);
            assert!(
                matches!(refused, Err(Error::OutOfBounds { .. })),
                "[{region}]"
            );
        }
        let mut region = one;
        region.shape[axis] = u64::MAX;
        let refused = volume.read(region);
        assert!(
            matches!(refused, Err(Error::OutOfBounds { .. })),
            "[{region}]"
        );
        // An empty region is valid, at the far end too.
        let mut nothing = one;
        nothing.start[axis] = end;
        nothing.shape[axis] = 0;
        read(&channels, nothing, 0).expect("an empty region");
        assert!(
            volume
                .read(nothing)
                .expect("an empty patch")
                .bytes()
                .is_empty()
        );
    }
    read(&(layout.channels..layout.channels), one, 0).expect("no channels");
    for length in [length - 1, length + 1, 0] {
        let refused = read(&channels, one, length);
        assert!(
            matches!(refused, Err(Error::BufferLength { .. })),
            "{length} bytes: {refused:?}"
        );
    }
    let beyond = layout.channels + 1;
    for channels in [0..beyond, layout.channels..beyond, u64::MAX - 1..u64::MAX] {
        let refused = read(&channels, one, length);
        assert!(
            matches!(refused, Err(Error::NoSuchChannel { .. })),
            "{channels:?}: {refused:?}"
        );
    }
}

/// Compares chunks with the same boxes of the twin.
fn check_chunks(volume: &dyn Volume, expected: &Patch) {
    let layout = volume.layout();
    let Some(chunk) = layout.read_chunk else {
        let refused = volume.read_chunk([0; 4]).expect_err("there are no chunks");
        let error = match &refused {
            Error::Shared(error) => error,
            error => error,
        };
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        return;
    };
    let whole = Region::whole(layout.shape);
    let counts = [
        layout.channels,
        layout.shape[0],
        layout.shape[1],
        layout.shape[2],
    ];
    for index in super::chunk::intersecting(chunk, &(0..layout.channels), whole).take(CHUNKS) {
        let chunk = volume.read_chunk(index).expect("a chunk");
        let region = chunk
            .region
            .intersection(&whole)
            .expect("a chunk touches its volume");
        let channels = chunk.channels.start..chunk.channels.end.min(layout.channels);
        let twin = cut(expected, &channels, region);
        let mut out = vec![0xaa; twin.len()];
        chunk.copy_to(&channels, region, &mut out, layout.dtype.size());
        assert!(out == twin, "chunk {index:?} differs");
        if let ChunkVoxels::Fill(voxel) = &chunk.voxels {
            assert_eq!(voxel.len(), layout.dtype.size());
        }
    }
    for axis in 0..4 {
        let mut index = [0; 4];
        index[axis] = counts[axis].div_ceil(chunk[axis]);
        let refused = volume.read_chunk(index);
        assert!(refused.is_err(), "chunk {index:?} is beyond the last");
    }
}

/// Returns the bytes of a box of the twin, copied in loops.
fn cut(expected: &Patch, channels: &Range<u64>, region: Region) -> Vec<u8> {
    let [depth, height, width] = expected.shape();
    let size = expected.dtype().size();
    let end = region.end();
    let row = |start: i64, end: i64| start.unsigned_abs()..end.unsigned_abs();
    let mut bytes = Vec::new();
    for c in channels.clone() {
        for z in row(region.start[0], end[0]) {
            for y in row(region.start[1], end[1]) {
                for x in row(region.start[2], end[2]) {
                    let voxel = ((c * depth + z) * height + y) * width + x;
                    let at = usize::try_from(voxel).expect("a small volume") * size;
                    bytes.extend_from_slice(&expected.bytes()[at..at + size]);
                }
            }
        }
    }
    bytes
}

/// A generator of numbers that are the same on every run (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Returns the next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Returns an approximately uniform number below `end`; 0 if `end` is 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.bits() % if end == 0 { 1 } else { end }
    }

    /// Returns a start and an end from 0 to `length`, which may be equal.
    pub fn range(&mut self, length: u64) -> (u64, u64) {
        let (a, b) = (self.below(length + 1), self.below(length + 1));
        (a.min(b), a.max(b))
    }

    /// Returns a patch of random bits; `bool` voxels are 0 or 1.
    ///
    /// # Panics
    ///
    /// Panics if the patch does not fit into memory.
    pub fn patch(&mut self, shape: [u64; 3], channels: u64, dtype: crate::dtype::DType) -> Patch {
        let patch = Patch::zeros(Region::whole(shape), channels, dtype);
        let mut patch = patch.expect("a small patch");
        for byte in patch.bytes_mut() {
            *byte = self.bits().to_le_bytes()[7];
            if dtype == crate::dtype::DType::Bool {
                *byte &= 1;
            }
        }
        patch
    }
}

/// A volume without any stored chunk. The first byte of every voxel is 7; the others are 0.
#[derive(Debug)]
pub struct Unstored(Layout);

impl Unstored {
    /// Creates a volume with this layout, which must have read chunks.
    #[must_use]
    pub const fn new(layout: Layout) -> Self {
        Self(layout)
    }

    fn voxel(&self) -> Vec<u8> {
        let mut voxel = vec![0; self.0.dtype.size()];
        voxel[0] = 7;
        voxel
    }
}

impl Volume for Unstored {
    fn layout(&self) -> &Layout {
        &self.0
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.0.check_read(&channels, region, out.len())?;
        for out in out.chunks_exact_mut(self.0.dtype.size()) {
            out.copy_from_slice(&self.voxel());
        }
        Ok(())
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let (channels, region) = super::chunk::whole(&self.0, index)?;
        let voxels = ChunkVoxels::Fill(self.voxel());
        Ok(Chunk {
            channels,
            region,
            voxels,
        })
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        super::chunk::whole(&self.0, index)?;
        Ok(Some(self.voxel()))
    }
}

/// A fault of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The read is an [`Error::Io`].
    Fail,
    /// The read panics.
    Panic,
    /// The read takes this much longer.
    Sleep(Duration),
    /// The read waits for [`Faulty::release`].
    Stall,
}

/// A volume with faults at chosen reads.
#[derive(Debug)]
pub struct Faulty<V> {
    inner: V,
    fault: Fault,
    /// The reads that fail, counted from 0 in the order in which they start.
    wrong: Range<u64>,
    begun: AtomicU64,
    released: Mutex<bool>,
    release: Condvar,
}

impl<V: Volume> Faulty<V> {
    /// Wraps `inner` so that the reads numbered `wrong`, from 0, have the fault. A chunk read counts as a read.
    pub const fn new(inner: V, fault: Fault, wrong: Range<u64>) -> Self {
        Self {
            inner,
            fault,
            wrong,
            begun: AtomicU64::new(0),
            released: Mutex::new(false),
            release: Condvar::new(),
        }
    }

    /// Returns the number of reads that have started.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// Lets all stalled reads continue, and later ones pass.
    pub fn release(&self) {
        *self.released.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.release.notify_all();
    }

    fn trip(&self) -> Result<()> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst);
        if !self.wrong.contains(&number) {
            return Ok(());
        }
        match self.fault {
            Fault::Fail => {
                let source = io::Error::other(format!("read {number} fails on request"));
                return Err(Error::io("read", &self.inner.layout().path)(source));
            }
            Fault::Panic => panic!("read {number} panics on request"),
            Fault::Sleep(time) => std::thread::sleep(time),
            Fault::Stall => {
                let mut released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
                while !*released {
                    released = self
                        .release
                        .wait(released)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
impl<V: Volume> Volume for Faulty<V> {
    fn layout(&self) -> &Layout {
        self.inner.layout()
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.trip()?;
        self.inner.read_channels(channels, region, out)
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&self.inner)
    }

    fn as_resampled(&self) -> Option<&crate::volume::Resampled> {
        None
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        self.trip()?;
        self.inner.read_chunk(index)
    }

    fn prefetch(&self, index: ChunkShape) {
        self.inner.prefetch(index);
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
        self.inner.reads_parts()
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        self.inner.fill_chunk(index)
    }

    fn read_stats(&self) -> ReadStats {
        self.inner.read_stats()
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

/// Returns the folder of real scans in `VOXPATCH_TEST_DATA`. Tests that need it are ignored by default, so that they
/// are counted where it is absent.
#[cfg(test)]
pub(crate) fn real_scans() -> PathBuf {
    let folder = std::env::var_os("VOXPATCH_TEST_DATA");
    let folder = PathBuf::from(folder.expect("VOXPATCH_TEST_DATA names the folder of real scans"));
    assert!(
        folder.is_dir(),
        "VOXPATCH_TEST_DATA names {}, which is not a folder",
        folder.display()
    );
    folder
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use std::sync::Arc;

    use super::*;
    use crate::dtype::DType;
    use crate::volume::{Cached, MemoryVolume, VolumeMut};

    fn memory(shape: [u64; 3], channels: u64, dtype: DType) -> (MemoryVolume, Patch) {
        let patch = Random(7).patch(shape, channels, dtype);
        let volume = MemoryVolume::zeros(Layout::new(shape, channels, dtype)).unwrap();
        volume.write(Region::whole(shape), patch.bytes()).unwrap();
        (volume, patch)
    }

    #[test]
    fn memory_passes_with_and_without_chunks() {
        for dtype in DType::ALL {
            let (volume, patch) = memory([5, 9, 7], 3, dtype);
            check(&volume, &patch);
            check(&volume.with_chunks([2, 4, 4, 4]), &patch);
        }
        let (volume, patch) = memory([1, 1, 1], 1, DType::U8);
        check(&volume, &patch);
    }

    #[test]
    fn the_cache_passes_in_front_of_chunks_and_of_none() {
        for budget in [0, 700, 1 << 20] {
            let (volume, patch) = memory([9, 10, 11], 2, DType::I16);
            let chunked = Arc::new(volume.with_chunks([1, 4, 3, 5]));
            check(&Cached::new(chunked, budget), &patch);
        }
        let (volume, patch) = memory([3, 4, 5], 1, DType::F32);
        check(&Cached::new(Arc::new(volume), 1 << 20), &patch);
    }

    #[test]
    fn one_wrong_voxel_is_noticed() {
        let (volume, mut patch) = memory([4, 5, 6], 2, DType::U16);
        patch.bytes_mut()[333] ^= 1;
        let caught = catch_unwind(AssertUnwindSafe(|| check(&volume, &patch)));
        assert!(caught.is_err());
    }

    /// A volume that is right as a whole, but wrong in boxes that start at x = 1.
    #[derive(Debug)]
    struct Shifted(MemoryVolume);

    impl Volume for Shifted {
        fn layout(&self) -> &Layout {
            Volume::layout(&self.0)
        }
        fn inner(&self) -> Option<&dyn Volume> {
            Some(&self.0)
        }
        fn read_channels(
            &self,
            channels: Range<u64>,
            mut region: Region,
            out: &mut [u8],
        ) -> Result<()> {
            if region.start[2] == 1 && region.end()[2] < 6 {
                region.start[2] += 1;
            }
            self.0.read_channels(channels, region, out)
        }
    }

    #[test]
    fn a_volume_that_is_wrong_only_in_some_boxes_is_noticed() {
        let (volume, patch) = memory([4, 5, 6], 1, DType::U8);
        let caught = catch_unwind(AssertUnwindSafe(|| check(&Shifted(volume), &patch)));
        assert!(caught.is_err());
    }

    #[test]
    fn faults_occur_at_the_chosen_reads() {
        let one = Region::new([0; 3], [1; 3]);
        let read = |volume: &dyn Volume| volume.read(one).map(|patch| patch.bytes().to_vec());
        let (inner, patch) = memory([2, 2, 2], 1, DType::U8);
        let volume = Faulty::new(inner, Fault::Fail, 1..3);
        let results: Vec<bool> = (0..4).map(|_| read(&volume).is_ok()).collect();
        assert_eq!(results, [true, false, false, true]);
        assert_eq!(volume.begun(), 4);

        let (inner, _) = memory([2, 2, 2], 1, DType::U8);
        let volume = Faulty::new(inner, Fault::Panic, 0..1);
        assert!(catch_unwind(AssertUnwindSafe(|| read(&volume))).is_err());
        assert_eq!(read(&volume).unwrap(), patch.bytes()[..1]);
    }

    #[test]
    fn a_stalled_read_waits_for_its_release() {
        let (inner, _) = memory([2, 2, 2], 1, DType::U8);
        let volume = Faulty::new(inner, Fault::Stall, 0..1);
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                volume.read(Region::whole([2, 2, 2])).unwrap();
                done.store(1, Ordering::SeqCst);
            });
            while volume.begun() == 0 {
                std::thread::yield_now();
            }
            assert_eq!(done.load(Ordering::SeqCst), 0);
            volume.release();
        });
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }
}
