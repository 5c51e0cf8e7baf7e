//! The heap of a training loader, counted by this test's allocator.

#![allow(unsafe_code, reason = "an allocator is unsafe by definition")]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use voxpatch::training::{Dataset, Image, LoaderOptions, RankShard, Subject, UniformPatches};
use voxpatch::volume::{Chunk, ChunkShape, ChunkVoxels};
use voxpatch::{DType, Layout, Region, Result, Shape, Volume};

struct Counting;

static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed to the system's allocator; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        let now = NOW.fetch_add(memory.size() as u64, Ordering::Relaxed) + memory.size() as u64;
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's guarantees are those that the system's allocator requires.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, at: *mut u8, memory: Memory) {
        NOW.fetch_sub(memory.size() as u64, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A volume of zeros whose decodes take a second buffer of a chunk's length.
#[derive(Debug)]
struct Zeros(Layout);

impl Volume for Zeros {
    fn layout(&self) -> &Layout {
        &self.0
    }

    fn read_channels(&self, _: Range<u64>, _: Region, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        Ok(())
    }

    fn read_chunk(&self, [_, z, y, x]: ChunkShape) -> Result<Chunk> {
        let [_, shape @ ..] = self.0.read_chunk.expect("it has chunks");
        let start = [(z, 0), (y, 1), (x, 2)].map(|(n, a)| {
            let a: usize = a;
            i64::try_from(n * shape[a]).expect("a small volume")
        });
        let region = Region::new(start, shape);
        let bytes = usize::try_from(region.voxels()).expect("a small chunk") * self.0.dtype.size();
        let stored = vec![1_u8; bytes];
        std::thread::yield_now();
        let voxels = ChunkVoxels::Stored(std::hint::black_box(&stored).clone());
        Ok(Chunk {
            channels: 0..1,
            region,
            voxels,
        })
    }
}

fn zeros(shape: Shape, chunk: Shape, dtype: DType) -> Arc<dyn Volume> {
    let [z, y, x] = chunk;
    Arc::new(Zeros(Layout {
        read_chunk: Some([1, z, y, x]),
        ..Layout::new(shape, 1, dtype)
    }))
}

/// The most that the lookahead takes next to the budget: up to 2^15 uses of chunks.
const LOOKAHEAD: u64 = 6 << 20;

#[test]
fn patches_pieces_chunks_and_decodes_together_stay_within_the_budget() {
    const SHAPE: Shape = [320, 256, 256];
    for (patch, chunk, batch) in [(48, 32, 1), (48, 32, 4), (32, 32, 1), (64, 16, 1)] {
        let ct = zeros(SHAPE, [chunk; 3], DType::I16);
        let label = zeros(SHAPE, [chunk, 2 * chunk, chunk], DType::U8);
        let images = [Image::new("ct", ct), Image::new("label", label)];
        let subject = Subject::builder("a").with_images(images).build().unwrap();
        let own = subject.sample_bytes([patch; 3]) * batch;
        let dataset = Dataset::new(vec![subject], UniformPatches::new([patch; 3]))
            .samples_per_subject(240)
            .seed(3);
        for threads in [0, 1, 4] {
            for mib in [8, 16, 32] {
                let before = NOW.load(Ordering::Relaxed);
                PEAK.store(before, Ordering::Relaxed);
                let options = LoaderOptions::default()
                    .with_threads(threads)
                    .with_memory(mib << 20)
                    .with_contiguous_batches(batch > 1)
                    .with_shard(RankShard::whole(batch));
                let mut loader = dataset.epoch(0).with_options(options).samples().unwrap();
                while let Some(batch) = loader.next_contiguous_batch() {
                    drop(batch.unwrap());
                }
                let stats = loader.stats();
                drop(loader);
                let peak = PEAK.load(Ordering::Relaxed) - before;
                let left = NOW.load(Ordering::Relaxed) - before;
                let case = format!(
                    "patch {patch}, chunk {chunk}, batch {batch}, {threads} threads, {mib} MiB"
                );
                println!(
                    "{case}: {} KiB, {} decodes, {} copies",
                    peak >> 10,
                    stats.chunks,
                    stats.copies
                );
                assert!(peak <= (mib << 20) + own + LOOKAHEAD, "{case}: {peak}");
                assert_eq!(left, 0, "{case}: nothing is left");
            }
        }
    }
}
