//! Voxels of a block from the chunk that contains them.

use super::filters::Filters;
use crate::dtype::{DType, swap_bytes};
use crate::error::Cause;
use crate::volume::blocks::BlockDecoder;

/// Decodes chunks.
#[derive(Debug)]
pub(super) struct ChunkDecoder {
    pub(super) filters: Filters,
    pub(super) is_big_endian: bool,
    pub(super) dtype: DType,
    /// The lengths of a chunk along t, c, z, y, x.
    pub(super) chunk: [u64; 5],
    /// The distances in voxels between neighbors in a chunk along t, c, z, y, x.
    pub(super) strides: [u64; 5],
    /// The channels of a time point, and those of a block.
    pub(super) channels: u64,
    pub(super) channels_of_block: u64,
    /// The numbers of blocks along c, z, y, x.
    pub(super) grid: [u64; 4],
    /// The filters that each block leaves out, as bits; empty if none does.
    pub(super) masks: Vec<u32>,
    /// All voxels, if they are in the header of the data set. The encoded bytes are then ignored.
    pub(super) inline: Option<Vec<u8>>,
}

impl ChunkDecoder {
    /// Returns the first voxel t, c, z, y, x of a block.
    pub(super) fn first_voxel(&self, number: u64) -> [u64; 5] {
        let [_, gz, gy, gx] = self.grid;
        let index = [
            number / (gx * gy * gz),
            number / (gx * gy) % gz,
            number / gx % gy,
            number % gx,
        ];
        let channel = index[0] * self.channels_of_block;
        [
            channel / self.channels,
            channel % self.channels,
            index[1] * self.chunk[2],
            index[2] * self.chunk[3],
            index[3] * self.chunk[4],
        ]
    }
}

impl BlockDecoder for ChunkDecoder {
    fn most_encoded(&self, _: usize) -> u64 {
        self.filters.most_encoded()
    }

    fn decode(&self, index: usize, encoded: Vec<u8>, out: &mut [u8]) -> Result<(), Cause> {
        let mask = self.masks.get(index).copied().unwrap_or(0);
        let voxels = match &self.inline {
            Some(voxels) => voxels,
            None => &self.filters.decode(encoded, mask)?,
        };
        let first = self.first_voxel(index as u64);
        let skip = (first[0] % self.chunk[0]) * self.strides[0]
            + (first[1] % self.chunk[1]) * self.strides[1];
        let lengths = [
            self.channels_of_block,
            self.chunk[2],
            self.chunk[3],
            self.chunk[4],
        ];
        let strides = [
            self.strides[1],
            self.strides[2],
            self.strides[3],
            self.strides[4],
        ];
        let usizes = |all: [u64; 4]| all.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        gather(
            &voxels[usize::try_from(skip)? * self.dtype.size()..],
            usizes(lengths),
            usizes(strides),
            out,
            self.dtype.size(),
        );
        if self.is_big_endian == cfg!(target_endian = "little") {
            swap_bytes(self.dtype, out);
        }
        Ok(())
    }
}

/// Copies a box of voxels of `size` bytes. Neighbors along c, z, y, x are `strides` voxels apart.
fn gather(from: &[u8], lengths: [usize; 4], strides: [usize; 4], out: &mut [u8], size: usize) {
    let [channels, slices, rows, columns] = lengths;
    let mut rest = out;
    for channel in 0..channels {
        for slice in 0..slices {
            for row in 0..rows {
                let at = channel * strides[0] + slice * strides[1] + row * strides[2];
                let (line, after) = rest.split_at_mut(columns * size);
                rest = after;
                let start = &from[at * size..];
                if strides[3] == 1 {
                    line.copy_from_slice(&start[..columns * size]);
                    continue;
                }
                for (n, voxel) in line.chunks_exact_mut(size).enumerate() {
                    voxel.copy_from_slice(&start[n * strides[3] * size..][..size]);
                }
            }
        }
    }
}
