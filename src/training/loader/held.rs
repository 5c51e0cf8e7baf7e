//! Voxels that are held: a decoded chunk, or the part of it that a coming patch needs.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::{Block, Blocks, CountedBytes, Cut};
use crate::patch::each_row;
use crate::region::Region;
use crate::volume::{Chunk, ChunkVoxels};

/// Voxels of some channels of a region.
#[derive(Debug)]
pub(super) enum Held {
    /// Rows along x in blocks.
    Rows(Rows),
    /// A chunk as it was decoded, and one that is not stored or whose rows are too long for blocks.
    Chunk(
        Chunk,
        #[expect(dead_code, reason = "it counts until it is dropped")] CountedBytes,
    ),
}

#[derive(Debug)]
pub(super) struct Rows {
    channels: Range<u64>,
    region: Region,
    /// Bytes of a row.
    length: usize,
    cut: Cut,
    blocks: Vec<Block>,
    /// The origin of the blocks.
    from: Arc<Blocks>,
}

/// Returns the bytes that voxels take in memory: `rows` rows of `length` bytes.
pub(super) fn bytes(rows: u64, length: u64) -> u64 {
    match Cut::of(rows, length) {
        Some(cut) => cut.bytes(rows),
        None => rows.saturating_mul(length),
    }
}

impl Held {
    /// Holds a chunk that was just decoded. `room` counts the bytes that the decode took.
    pub(super) fn decoded(chunk: Chunk, mut room: CountedBytes) -> Self {
        room.recount(chunk.bytes() as u64);
        Self::Chunk(chunk, room)
    }

    fn channels(&self) -> &Range<u64> {
        match self {
            Self::Rows(rows) => &rows.channels,
            Self::Chunk(chunk, _) => &chunk.channels,
        }
    }

    fn region(&self) -> Region {
        match self {
            Self::Rows(rows) => rows.region,
            Self::Chunk(chunk, _) => chunk.region,
        }
    }

    /// Returns the same voxels in blocks; `None` if they are in blocks, or do not fit into them.
    pub(super) fn packed(&self, size: usize, blocks: &Arc<Blocks>) -> Option<Self> {
        let Self::Chunk(chunk, _) = self else {
            return None;
        };
        Rows::cut(self, &chunk.channels, chunk.region, size, blocks).map(Self::Rows)
    }

    /// Cuts the voxels that these share with `channels` and `region`. Voxels have `size` bytes.
    pub(super) fn part(
        &self,
        channels: &Range<u64>,
        region: Region,
        size: usize,
        blocks: &Arc<Blocks>,
    ) -> Self {
        match (Rows::cut(self, channels, region, size, blocks), self) {
            (Some(rows), _) => Self::Rows(rows),
            (None, Self::Chunk(chunk, _)) => {
                let part = chunk.part(channels, region, size);
                let counted = blocks.all.add(part.bytes() as u64);
                Self::Chunk(part, counted)
            }
            (None, Self::Rows(rows)) => {
                let region = rows.region.intersection(&region).unwrap_or(Region {
                    shape: [0; 3],
                    ..rows.region
                });
                let channels =
                    rows.channels.start.max(channels.start)..rows.channels.end.min(channels.end);
                let count = channels.end.saturating_sub(channels.start);
                let mut voxels = vec![0; in_memory(region.voxels() * count) * size];
                self.copy_to(&channels, region, &mut voxels, size);
                let counted = blocks.all.add(voxels.len() as u64);
                let part = Chunk {
                    channels,
                    region,
                    voxels: ChunkVoxels::Stored(voxels),
                };
                Self::Chunk(part, counted)
            }
        }
    }

    /// Copies the voxels that these share with `channels` and `region` into `out`, a buffer of exactly those
    /// channels and that region, with voxels of `size` bytes.
    pub(super) fn copy_to(
        &self,
        channels: &Range<u64>,
        region: Region,
        out: &mut [u8],
        size: usize,
    ) {
        let rows = match self {
            Self::Chunk(chunk, _) => return chunk.copy_to(channels, region, out, size),
            Self::Rows(rows) => rows,
        };
        let Some(shared) = Shared::of((&rows.channels, rows.region), (channels, region), size)
        else {
            return;
        };
        let width = in_memory(region.shape[2]) * size;
        shared.each_row(|from, to| {
            let to = to * width + shared.x[1];
            let row = &rows.row(from)[shared.x[0]..shared.x[0] + shared.length];
            out[to..to + shared.length].copy_from_slice(row);
        });
    }
}

/// What two buffers share.
struct Shared {
    /// The boxes of the buffers, and the first shared channel in them.
    from: (Region, u64),
    to: (Region, u64),
    region: Region,
    channels: Range<u64>,
    /// The first shared byte of a row in both buffers.
    x: [usize; 2],
    /// The shared bytes of a row.
    length: usize,
}

impl Shared {
    /// Returns `None` if nothing is shared.
    fn of(from: (&Range<u64>, Region), to: (&Range<u64>, Region), size: usize) -> Option<Self> {
        let region = from.1.intersection(&to.1)?;
        let channels = from.0.start.max(to.0.start)..from.0.end.min(to.0.end);
        if channels.is_empty() || region.is_empty() {
            return None;
        }
        let x = [from.1, to.1].map(|whole| {
            let start = region.relative_to(whole.start).start[2];
            in_memory(start.unsigned_abs()) * size
        });
        Some(Self {
            from: (from.1, channels.start - from.0.start),
            to: (to.1, channels.start - to.0.start),
            region,
            x,
            length: in_memory(region.shape[2]) * size,
            channels,
        })
    }

    fn each_row(&self, row: impl FnMut(usize, usize)) {
        let count = self.channels.end - self.channels.start;
        each_row(self.from, self.to, self.region, count, row);
    }
}

impl Rows {
    /// Returns `None` if the voxels are not stored, if nothing is shared, or if the rows are too long.
    fn cut(
        held: &Held,
        channels: &Range<u64>,
        region: Region,
        size: usize,
        from: &Arc<Blocks>,
    ) -> Option<Self> {
        if matches!(held, Held::Chunk(chunk, _) if matches!(chunk.voxels, ChunkVoxels::Fill(_))) {
            return None;
        }
        let source = (held.channels(), held.region());
        let shared = Shared::of(source, (channels, region), size)?;
        let length = shared.length;
        let [depth, lines, _] = shared.region.shape;
        let channels = shared.channels.clone();
        let count = depth * lines * (channels.end - channels.start);
        let cut = Cut::of(count, length as u64)?;
        let mut rows = Self {
            region: shared.region,
            channels,
            length,
            cut,
            blocks: from.take(cut, in_memory(count)),
            from: Arc::clone(from),
        };
        let start = shared.x[0];
        let blocks = rows.blocks.iter_mut();
        let mut places = blocks.flat_map(|block| block.bytes.chunks_exact_mut(length));
        let mut put = |row: &[u8]| {
            let place = places.next().expect("a place for each row");
            place.copy_from_slice(&row[start..start + length]);
        };
        match held {
            Held::Rows(held) => shared.each_row(|row, _| put(held.row(row))),
            Held::Chunk(chunk, _) => {
                if let ChunkVoxels::Stored(voxels) = &chunk.voxels {
                    let width = in_memory(chunk.region.shape[2]) * size;
                    shared.each_row(|row, _| put(&voxels[row * width..(row + 1) * width]));
                }
            }
        }
        Some(rows)
    }

    /// Returns row `n`, counted over y, z and the channels.
    fn row(&self, n: usize) -> &[u8] {
        let per_block = in_memory(self.cut.rows);
        let at = n % per_block * self.length;
        &self.blocks[n / per_block].bytes[at..at + self.length]
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.from.give(self.cut, &mut self.blocks);
    }
}

fn in_memory(n: u64) -> usize {
    usize::try_from(n).expect("a length inside a buffer in memory")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::blocks::ChunkBytes;
    use super::*;

    fn region(start: [i64; 3], shape: [u64; 3]) -> Region {
        Region { start, shape }
    }

    /// Chunks with rows that fit into blocks, and with rows that do not.
    fn chunk_shape() -> impl Strategy<Value = [u64; 3]> {
        prop_oneof![
            [1..9_u64, 1..9_u64, 1..40_u64],
            [1..4_u64, 1..4_u64, 500..1500_u64],
            [30..60_u64, 20..40_u64, 1..20_u64],
        ]
    }

    proptest! {
        #[test]
        fn a_part_and_a_chunk_in_blocks_have_the_voxels_of_the_chunk(
            shape in chunk_shape(),
            at in [0..20_i64, 0..20, 0..20],
            own in (0..3_u64, 1..3_u64),
            (before, after) in (0..3_u64, 0..3_u64),
            patch in ([0..30_i64, 0..30, 0..30], [1..50_u64, 1..50, 1..1200]),
            size in prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)],
            is_fill in proptest::bool::weighted(0.1),
        ) {
            let chunk_region = region(at, shape);
            let channels = own.0..own.0 + own.1;
            let length = usize::try_from(chunk_region.voxels() * own.1).unwrap() * size;
            let value = |n: usize| u8::try_from((n * 31 + n / 251) % 255 + 1).unwrap();
            let voxels = if is_fill {
                ChunkVoxels::Fill((0..size).map(value).collect())
            } else {
                ChunkVoxels::Stored((0..length).map(value).collect())
            };
            let chunk = Chunk { channels, region: chunk_region, voxels };
            let patch = region(patch.0, patch.1);
            let wanted = own.0.saturating_sub(before)..own.0 + own.1.saturating_sub(after).max(1);
            let voxels = patch.voxels() * (wanted.end - wanted.start);
            let length = usize::try_from(voxels).unwrap() * size;
            let (mut expected, mut got) = (vec![0; length], vec![0; length]);
            chunk.copy_to(&wanted, patch, &mut expected, size);
            let all = ChunkBytes::default();
            let blocks = Arc::new(Blocks::new(&all, 64 << 20));
            // Other voxels leave theirs in the blocks.
            let held = Held::decoded(chunk, all.add(0));
            drop(held.part(&(0..9), chunk_region, size, &blocks));
            let part = held.part(&wanted, patch, size, &blocks);
            part.copy_to(&wanted, patch, &mut got, size);
            prop_assert!(expected == got);
            let packed = held.packed(size, &blocks);
            drop(held);
            if let Some(packed) = packed {
                got.fill(0);
                packed.copy_to(&wanted, patch, &mut got, size);
                prop_assert!(expected == got);
                got.fill(0);
                packed.part(&wanted, patch, size, &blocks).copy_to(&wanted, patch, &mut got, size);
                prop_assert!(expected == got);
            }
            if let Held::Rows(rows) = &part {
                let taken: usize = rows.blocks.iter().map(|block| block.bytes.len()).sum();
                let [depth, lines, width] = rows.region.shape;
                let count = depth * lines * (rows.channels.end - rows.channels.start);
                prop_assert_eq!(taken as u64, bytes(count, width * size as u64));
            }
            drop((part, blocks));
            prop_assert_eq!(all.now(), 0);
        }
    }
}
