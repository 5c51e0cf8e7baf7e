//! How memory is shared between patches under way, chunks being decoded, and maps.

use voxpatch::volume::ReadMemory;
use voxpatch::{Error, Layout};

use crate::report;

/// The most patches that the loader's buffer holds, however small they are.
pub(crate) const MOST_AHEAD: usize = 1024;

/// What sampling has to hold at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    /// Bytes of a patch as it is delivered, and as it is put together.
    pub(crate) patch: u64,
    pub(crate) held: u64,
    /// Bytes of the largest chunk.
    pub(crate) chunk: u64,
    /// Bytes that writing a patch takes.
    pub(crate) write: u64,
    /// What reading takes apart from chunks and patches.
    pub(crate) read: ReadMemory,
    /// Whether draws follow a map.
    pub(crate) maps: bool,
}

/// The parts of the memory, and the threads that these are enough for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) threads: usize,
    /// Bytes that the loader's buffer may take.
    pub(crate) buffer: u64,
    /// Bytes that maps' blocks may take.
    pub(crate) maps: u64,
    /// Bytes of all of it at most: patches under way, chunks, the buffer and maps.
    pub(crate) peak: u64,
}

impl Budget {
    /// The parts of `memory` for as many threads as may be, down to `fewest`: an eighth for what
    /// the allocator cannot use, another for maps, three chunks for each thread, two patches for
    /// the consumer, and the rest for the buffer.
    pub(crate) fn new(
        memory: u64,
        threads: usize,
        fewest: usize,
        needs: &Needs,
    ) -> voxpatch::Result<Self> {
        let eighths = 1 + u64::from(needs.maps);
        let fixed = |threads: usize| {
            // A chunk as it is stored and as it comes out, one that was copied, and a patch being filled up.
            let chunks = needs.chunk.saturating_mul(3);
            let copies = needs.held.saturating_sub(needs.patch);
            let each = chunks
                .saturating_add(copies)
                .saturating_add(needs.read.thread);
            let working = each.saturating_mul(threads as u64);
            // A patch that was delivered, and the one before it.
            working
                .saturating_add(needs.patch.saturating_mul(2))
                .saturating_add(needs.write)
                .saturating_add(needs.read.shared)
                .saturating_add(needs.read.answers)
        };
        let mut threads = threads.max(1);
        loop {
            let left = memory - memory / 8 * eighths;
            let buffer = left.saturating_sub(fixed(threads));
            if buffer >= needs.held.max(1) {
                let maps = if needs.maps { memory / 8 } else { 0 };
                let held = needs.held.saturating_mul(MOST_AHEAD as u64);
                return Ok(Self {
                    threads,
                    buffer,
                    maps,
                    peak: fixed(threads)
                        .saturating_add(buffer.min(held))
                        .saturating_add(maps),
                });
            }
            if threads > fewest.max(1) {
                threads -= 1;
                continue;
            }
            let least = needs.held.max(1).saturating_add(fixed(threads));
            let least = (least / (8 - eighths)).saturating_add(1).saturating_mul(8);
            return Err(Error::MemoryLimit {
                memory,
                problem: format!(
                    "a patch takes {}, a chunk {}, with {threads} threads: give at least {least} bytes, or make the patch smaller",
                    report::bytes(needs.held),
                    report::bytes(needs.chunk),
                ),
            });
        }
    }
}

/// Bytes of a decoded read chunk; of a map's block where there are no chunks.
pub(crate) fn chunk_bytes(layout: &Layout, is_map: bool) -> u64 {
    let voxels = match layout.read_chunk {
        Some(chunk) => chunk.into_iter().fold(1, u64::saturating_mul),
        None if is_map => 64 * 64 * 64,
        None => 0,
    };
    voxels.saturating_mul(layout.dtype.size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_together_stay_within_the_memory() {
        for maps in [false, true] {
            for memory in [5_000_u64, 10_007, 100_000, 1 << 30] {
                let needs = Needs {
                    patch: 1000,
                    held: 1000,
                    chunk: 100,
                    write: 50,
                    read: ReadMemory::default(),
                    maps,
                };
                let budget = Budget::new(memory, 8, 1, &needs).expect("there is room");
                let all = budget.buffer + budget.maps + 1050;
                assert!(all + 200 * budget.threads as u64 <= memory - memory / 8 + 8);
            }
        }
    }

    #[test]
    fn the_least_memory_that_is_named_is_enough() {
        for maps in [false, true] {
            for patch in [1_u64, 77, 4096, 1 << 40] {
                let needs = Needs {
                    patch,
                    held: 2 * patch,
                    chunk: 512,
                    write: 0,
                    read: ReadMemory::default(),
                    maps,
                };
                let refused = Budget::new(1, 3, 2, &needs).expect_err("it is too little");
                let text = refused.to_string();
                let least = text.split("at least ").nth(1).expect("it says what is");
                let least = least.split(' ').next().expect("a number");
                let least: u64 = least.parse().expect("a number");
                let budget = Budget::new(least, 3, 2, &needs).expect("it is enough");
                assert_eq!(budget.threads, 2);
            }
        }
    }
}
