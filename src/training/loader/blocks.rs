//! The memory of chunks and pieces of chunks: its bytes are counted, and it is taken in blocks of one size.
//!
//! Pieces have many sizes. If each were one allocation, the gaps between them would soon take as much memory as
//! the pieces, and giving the gaps back to the system costs a page fault for each page that is needed again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::BytesMut;

use crate::meter::anonymous_bytes;
use crate::training::sync::lock;
use crate::volume::give_back_freed;

/// Bytes of the blocks that parts of at least some number of bytes are put into; smaller parts are allocated on their
/// own. At most a sixteenth of a block for each part is empty, and less than a row in each block.
const SIZES: [Size; 2] = [
    Size {
        block: 8 << 10,
        least: 128 << 10,
    },
    Size {
        block: 1 << 10,
        least: 16 << 10,
    },
];

/// The most bytes of a slab, which is allocated at once and cut into blocks.
const MAX_SLAB: u64 = 2 << 20;

/// The most free bytes that are kept for later parts. Slabs without used blocks are freed above that.
const MAX_FREE: u64 = 8 << 20;

#[derive(Debug)]
struct Size {
    block: usize,
    /// Bytes of the smallest part that is put into such blocks.
    least: u64,
}

/// Blocks of memory of some sizes.
#[derive(Debug)]
pub(super) struct Blocks {
    pools: [Pool; SIZES.len()],
    pub(super) all: ChunkBytes,
}

/// Blocks of one size. Those of the first slabs are used first, so that the last ones become free.
#[derive(Debug)]
struct Pool {
    block: usize,
    slab: usize,
    max_free: usize,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    slabs: BTreeMap<u64, Slab>,
    /// The number of free blocks.
    blocks: usize,
    /// The number of the next slab.
    next: u64,
}

#[derive(Debug)]
struct Slab {
    free: Vec<BytesMut>,
    _bytes: CountedBytes,
}

/// The blocks of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    size: usize,
    /// The number of rows in a block.
    pub(super) rows: u64,
}

impl Cut {
    /// Returns the blocks for `rows` rows of `length` bytes; `None` if the part is too small, or its rows are so long that
    /// a quarter of each block or more could be empty.
    pub(super) fn of(rows: u64, length: u64) -> Option<Self> {
        let bytes = rows.saturating_mul(length);
        let size = SIZES.iter().position(|size| bytes >= size.least)?;
        let block = SIZES[size].block as u64;
        (length > 0 && length <= block / 4).then(|| Self {
            size,
            rows: block / length,
        })
    }

    /// Returns the bytes of the blocks of `rows` rows.
    pub(super) const fn bytes(self, rows: u64) -> u64 {
        rows.div_ceil(self.rows)
            .saturating_mul(SIZES[self.size].block as u64)
    }
}

/// A block, and the number of its slab.
#[derive(Debug)]
pub(super) struct Block {
    slab: u64,
    pub(super) bytes: BytesMut,
}

impl Blocks {
    /// Creates blocks that count in `all`, of which there are about `budget` bytes.
    pub(super) fn new(all: &ChunkBytes, budget: u64) -> Self {
        let pools = SIZES.map(|Size { block, .. }| {
            let part = |of: u64, most: u64| {
                let bytes = (budget / of).min(most).max(block as u64);
                usize::try_from(bytes).expect("some megabytes") / block * block
            };
            Pool {
                block,
                slab: part(64, MAX_SLAB),
                max_free: part(32, MAX_FREE),
                free: Mutex::default(),
            }
        });
        Self {
            pools,
            all: all.clone(),
        }
    }

    /// Takes blocks for `rows` rows, with unspecified bytes.
    pub(super) fn take(&self, cut: Cut, rows: usize) -> Vec<Block> {
        let per_block = usize::try_from(cut.rows).expect("rows in a block");
        self.pools[cut.size].take(rows.div_ceil(per_block), &self.all)
    }

    /// Returns blocks.
    pub(super) fn give(&self, cut: Cut, blocks: &mut Vec<Block>) {
        self.pools[cut.size].give(blocks);
    }
}

impl Pool {
    fn take(&self, count: usize, all: &ChunkBytes) -> Vec<Block> {
        let per_slab = self.slab / self.block;
        let mut taken = Vec::with_capacity(count);
        let mut free = lock(&self.free);
        while taken.len() < count {
            let found = free
                .slabs
                .iter_mut()
                .find(|(_, slab)| !slab.free.is_empty());
            let Some((&number, slab)) = found else {
                let mut bytes = BytesMut::zeroed(self.slab);
                let blocks = (0..per_slab).map(|_| bytes.split_to(self.block)).collect();
                let slab = Slab {
                    free: blocks,
                    _bytes: all.add(self.slab as u64),
                };
                let number = free.next;
                free.next += 1;
                free.slabs.insert(number, slab);
                free.blocks += per_slab;
                continue;
            };
            let more = slab.free.len().min(count - taken.len());
            let blocks = slab.free.drain(slab.free.len() - more..);
            taken.extend(blocks.map(|bytes| Block {
                slab: number,
                bytes,
            }));
            free.blocks -= more;
        }
        taken
    }

    fn give(&self, blocks: &mut Vec<Block>) {
        let per_slab = self.slab / self.block;
        let mut unused = Vec::new();
        let mut free = lock(&self.free);
        free.blocks += blocks.len();
        for block in blocks.drain(..) {
            let slab = free
                .slabs
                .get_mut(&block.slab)
                .expect("a slab with used blocks");
            slab.free.push(block.bytes);
            let is_unused = slab.free.len() == per_slab;
            if is_unused && free.blocks * self.block > self.max_free {
                free.blocks -= per_slab;
                unused.extend(free.slabs.remove(&block.slab));
            }
        }
        drop(free);
        drop(unused); // without the lock: this gives memory back to the system
    }
}

/// Freed bytes after which the gaps in the heap are looked at.
const MAX_FREED: u64 = 32 << 20;

/// The gaps may grow by this many bytes before they are returned to the system.
const MAX_GAPS: u64 = 8 << 20;

/// The bytes of chunks and pieces in memory, and of decodes in progress.
#[derive(Clone, Debug)]
pub(super) struct ChunkBytes(Arc<Bytes>);

#[derive(Debug)]
struct Bytes {
    now: AtomicU64,
    /// Bytes freed since the gaps were looked at.
    freed: AtomicU64,
    /// The least anonymous memory of the process without `now`, so far.
    others: AtomicU64,
}

impl Default for ChunkBytes {
    fn default() -> Self {
        Self(Arc::new(Bytes {
            now: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            others: AtomicU64::new(anonymous_bytes().unwrap_or(0)),
        }))
    }
}

impl ChunkBytes {
    pub(super) fn now(&self) -> u64 {
        self.0.now.load(Ordering::Acquire)
    }

    /// Returns freed memory to the system if the process takes much more than what is counted here and what it took
    /// besides so far. Each page that is returned costs a page fault when it is needed again.
    pub(super) fn give_back(&self) {
        let freed = &self.0.freed;
        if freed.load(Ordering::Relaxed) < MAX_FREED || freed.swap(0, Ordering::Relaxed) < MAX_FREED
        {
            return;
        }
        let others = || anonymous_bytes().map(|all| all.saturating_sub(self.now()));
        let least = &self.0.others;
        match others() {
            Some(others) if others <= least.load(Ordering::Relaxed).saturating_add(MAX_GAPS) => {
                least.fetch_min(others, Ordering::Relaxed);
            }
            _ => {
                give_back_freed();
                // Other memory of the process may have grown, for example that of patches.
                least.store(others().unwrap_or(0), Ordering::Relaxed);
            }
        }
    }

    /// Counts bytes until the result is dropped.
    pub(super) fn add(&self, bytes: u64) -> CountedBytes {
        self.0.now.fetch_add(bytes, Ordering::AcqRel);
        CountedBytes {
            all: self.clone(),
            bytes,
        }
    }
}

/// Bytes that count until this is dropped.
#[derive(Debug)]
pub(super) struct CountedBytes {
    all: ChunkBytes,
    bytes: u64,
}

impl CountedBytes {
    /// Counts another number of bytes instead.
    pub(super) fn recount(&mut self, bytes: u64) {
        self.all.0.now.fetch_add(bytes, Ordering::AcqRel);
        self.all.0.now.fetch_sub(self.bytes, Ordering::AcqRel);
        self.bytes = bytes;
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.all.0.now.fetch_sub(self.bytes, Ordering::AcqRel);
        self.all.0.freed.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_used_again_and_slabs_without_use_are_freed() {
        let all = ChunkBytes::default();
        let blocks = Blocks::new(&all, 1 << 30);
        let cut = Cut::of(1 << 20, 100).unwrap();
        assert_eq!((cut.rows, cut.bytes(82)), (81, 16 << 10));
        let slab = MAX_SLAB;
        let rows = |slabs: u64| usize::try_from(slabs * (slab >> 13) * cut.rows).unwrap();
        let mut first = blocks.take(cut, 3);
        assert_eq!(all.now(), slab);
        let mut many = blocks.take(cut, rows(40));
        assert_eq!(all.now(), 41 * slab);
        blocks.give(cut, &mut many);
        // The first slab is used, and some are kept.
        let kept = MAX_FREE / slab;
        let held = all.now();
        assert!((kept..=kept + 1).contains(&(held / slab)), "{held}");
        let mut again = blocks.take(cut, rows(1));
        assert_eq!(all.now(), held);
        assert!(
            again
                .iter()
                .chain(&first)
                .all(|block| block.bytes.len() == 8 << 10)
        );
        blocks.give(cut, &mut first);
        blocks.give(cut, &mut again);
        drop(blocks);
        assert_eq!(all.now(), 0);
    }

    #[test]
    fn small_parts_and_long_rows_have_no_blocks() {
        assert_eq!(Cut::of(10, 100), None);
        assert_eq!(Cut::of(0, 0), None);
        assert_eq!(Cut::of(1000, 3000), None);
        assert_eq!(Cut::of(200, 100).unwrap().bytes(200), 20 << 10);
        let all = ChunkBytes::default();
        let small = Blocks::new(&all, 1 << 20);
        let cut = Cut::of(2000, 100).unwrap();
        let mut taken = small.take(cut, 1);
        assert_eq!(all.now(), 16 << 10);
        small.give(cut, &mut taken);
    }
}
