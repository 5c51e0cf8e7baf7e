//! Parts of outputs: boxes of write chunks that are predicted one after the other, or by
//! different processes.
//!
//! Each part needs every patch that touches it, so patches across a border are predicted once for each side. In return,
//! parts share nothing: unfinished voxels never extend beyond their part.

use std::ops::Range;

use super::planned::PlannedOutput;

/// The write chunks (z, y, x) to write, for each output.
pub(super) type ChunkRanges = Vec<[Range<u64>; 3]>;

/// Returns all write chunks of each output; `None` if an output has no write chunks.
pub(super) fn whole(outputs: &[PlannedOutput]) -> Option<ChunkRanges> {
    let count = |output: &PlannedOutput| {
        let [_, chunk @ ..] = output.layout.write_chunk?;
        let count = |a: usize| 0..output.layout.shape[a].div_ceil(chunk[a]);
        Some(std::array::from_fn(count))
    };
    outputs.iter().map(count).collect()
}

/// Returns piece `index` of `count` equal pieces along an axis, cut between write chunks.
pub(super) fn piece(part: &ChunkRanges, axis: usize, index: u64, count: u64) -> ChunkRanges {
    let cut = |range: &Range<u64>, n: u64| {
        let length = u128::from(range.end - range.start);
        let offset = length * u128::from(n) / u128::from(count);
        range.start + u64::try_from(offset).unwrap_or(0)
    };
    let mut piece = part.clone();
    for ranges in &mut piece {
        ranges[axis] = cut(&ranges[axis], index)..cut(&ranges[axis], index + 1);
    }
    piece
}

/// Returns the `counts[0] x counts[1]` pieces along two axes, without empty ones.
pub(super) fn pieces(part: &ChunkRanges, axes: [usize; 2], counts: [u64; 2]) -> Vec<ChunkRanges> {
    let rows = (0..counts[0]).map(|i| piece(part, axes[0], i, counts[0]));
    rows.flat_map(|row| (0..counts[1]).map(move |j| piece(&row, axes[1], j, counts[1])))
        .filter(|piece| !is_empty(piece))
        .collect()
}

/// Returns `true` if there is nothing to write.
pub(super) fn is_empty(part: &ChunkRanges) -> bool {
    part.iter()
        .all(|ranges| ranges.iter().any(std::ops::Range::is_empty))
}

/// Returns the ways to cut two axes into at most `most` pieces each (and at most 64), fewest pieces first.
pub(super) fn ways(most: [u64; 2]) -> Vec<[u64; 2]> {
    let mut ways: Vec<[u64; 2]> = (1..=most[0].clamp(1, 64))
        .flat_map(|i| (1..=most[1].clamp(1, 64)).map(move |j| [i, j]))
        .collect();
    ways.sort_by_key(|[i, j]| (i * j, i.abs_diff(*j)));
    ways
}
