//! The data that an index keeps for each block: a sum of weights, or counts of labels.
//!
//! Only blocks that are not empty take memory. In a file, numbers are little-endian, and numbers that are not valid in
//! an index are refused.

use std::fmt::Debug;

use super::blocks::BlockVoxels;
use crate::error::Result;
use crate::region::Region;
use crate::volume::Layout;

/// Pairs of a block and a number, by increasing block.
pub(super) type Entries<N> = Vec<(u64, N)>;

/// A block whose voxels will be summed.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub(super) layout: &'a Layout,
    pub(super) channel: u64,
    pub(super) id: u64,
    pub(super) region: Region,
    pub(super) voxels: BlockVoxels,
    /// Whether the block is listed even if it contains only background.
    pub(super) listed: bool,
}

/// The data of all blocks, collected per thread and merged.
pub trait BlockStats: Debug + Default + Send + Sync + sealed::Sealed {}

mod sealed {
    use super::super::blocks::Blocks;
    use super::{Block, Region, Result};

    /// The private half of [`BlockStats`](super::BlockStats).
    pub trait Sealed: Sized {
        /// Identifies the kind in a file.
        const KIND: u8;
        /// Adds one block.
        #[expect(private_interfaces, reason = "only called in this module")]
        fn add(&mut self, block: &Block<'_>) -> Result<()>;
        /// Merges the data of a second thread.
        fn merge(&mut self, other: Self);
        /// Sorts the blocks.
        fn sort(&mut self);
        /// Returns the known data of a part of the volume, and the blocks that must be read again. With `background`,
        /// blocks of only background are listed, too.
        #[expect(private_interfaces, reason = "only called in this module")]
        fn clip(&self, blocks: &Blocks, part: &Region, background: bool) -> (Self, Vec<u64>);
        /// Writes the form used in files.
        fn encode(&self, out: &mut Vec<u8>);
        /// Parses the form used in files: `None` unless it fits `blocks` blocks of up to `voxels` voxels.
        fn decode(bytes: &[u8], blocks: u64, voxels: u64) -> Option<Self>;
    }
}
pub(super) use sealed::Sealed;

/// Returns the coordinates of voxel `i` of a region, row-major.
pub(super) fn place(region: Region, i: u64) -> [u64; 3] {
    let [_, y, x] = region.shape.map(|n| n.max(1));
    let within = [i / (y * x), i / x % y, i % x];
    std::array::from_fn(|a| region.start[a].unsigned_abs() + within[a])
}

pub(super) fn encode_entries<N: Copy>(
    entries: &Entries<N>,
    out: &mut Vec<u8>,
    bits: impl Fn(N) -> u64,
) {
    out.extend((entries.len() as u64).to_le_bytes());
    for &(block, number) in entries {
        out.extend(block.to_le_bytes());
        out.extend(bits(number).to_le_bytes());
    }
}

pub(super) fn decode_entries<N>(
    bytes: &mut &[u8],
    blocks: u64,
    number: impl Fn(u64) -> Option<N>,
) -> Option<Entries<N>> {
    let length = usize::try_from(take_u64(bytes)?.checked_mul(16)?).ok()?;
    let (entries, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    let mut earliest = 0;
    let parse = |entry: &[u8; 16]| {
        let mut entry = &entry[..];
        let block = take_u64(&mut entry).filter(|&block| block >= earliest && block < blocks)?;
        earliest = block + 1;
        Some((block, number(take_u64(&mut entry)?)?))
    };
    entries.as_chunks().0.iter().map(parse).collect()
}

pub(super) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*first))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::sampler::{LabelCounts, LabelValue, WeightSums};

    fn some_counts() -> LabelCounts {
        LabelCounts {
            classes: BTreeMap::from([
                (LabelValue::from(-1), vec![(0, 5), (7, 1)]),
                (LabelValue::real(0.5).unwrap(), vec![(3, 9)]),
            ]),
            pairs: 3,
        }
    }

    #[test]
    fn sums_and_counts_survive_a_round_trip_through_bytes() {
        let mut bytes = Vec::new();
        some_counts().encode(&mut bytes);
        assert_eq!(LabelCounts::decode(&bytes, 8, 9), Some(some_counts()));
        let mut bytes = Vec::new();
        let sums = WeightSums(vec![(1, 0.5), (4, 1e300)]);
        sums.encode(&mut bytes);
        assert_eq!(WeightSums::decode(&bytes, 5, 1), Some(sums));
    }

    #[test]
    fn bytes_that_no_index_can_have_are_refused() {
        let mut bytes = Vec::new();
        some_counts().encode(&mut bytes);
        assert_eq!(LabelCounts::decode(&bytes, 7, 9), None, "no such block");
        assert_eq!(LabelCounts::decode(&bytes, 8, 8), None, "more than voxels");
        for end in 0..bytes.len() {
            assert_eq!(LabelCounts::decode(&bytes[..end], 8, 9), None, "{end}");
        }
        bytes.push(0);
        assert_eq!(LabelCounts::decode(&bytes, 8, 9), None, "more than it says");
        bytes[25..33].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(LabelCounts::decode(&bytes, 8, 9), None, "an absurd length");
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let mut bytes = Vec::new();
            WeightSums(vec![(1, bad)]).encode(&mut bytes);
            assert_eq!(WeightSums::decode(&bytes, 5, 1), None);
        }
        let mut bytes = Vec::new();
        WeightSums(vec![(2, 1.0), (2, 1.0)]).encode(&mut bytes);
        assert_eq!(WeightSums::decode(&bytes, 5, 1), None, "a block twice");
    }
}
