//! Parts of outputs: boxes of write chunks that are predicted one after the other, or by
//! different processes.
//!
//! Each part needs every patch that touches it, so patches across a border are predicted once
//! for each side. In return, no two parts share anything: what is not final, and waits, never
//! reaches further than a part.

use std::ops::Range;

use super::schedule::PlannedOutput;

/// Of each output, the write chunks (z, y, x) that are written.
pub(super) type ChunkRanges = Vec<[Range<u64>; 3]>;

/// How many write chunks each output has along z, y, x; `None` for one without write chunks.
pub(super) fn whole(outputs: &[PlannedOutput]) -> Option<ChunkRanges> {
    let count = |output: &PlannedOutput| {
        let [_, chunk @ ..] = output.layout.write_chunk?;
        let count = |a: usize| 0..output.layout.shape[a].div_ceil(chunk[a]);
        Some(std::array::from_fn(count))
    };
    outputs.iter().map(count).collect()
}

/// Piece `index` of `count` equal ones along an axis, cut between write chunks.
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

/// All `counts[0] x counts[1]` pieces along two axes.
pub(super) fn pieces(part: &ChunkRanges, axes: [usize; 2], counts: [u64; 2]) -> Vec<ChunkRanges> {
    let rows = (0..counts[0]).map(|i| piece(part, axes[0], i, counts[0]));
    rows.flat_map(|row| (0..counts[1]).map(move |j| piece(&row, axes[1], j, counts[1])))
        .filter(|piece| !is_empty(piece))
        .collect()
}

/// Whether there is nothing to write.
pub(super) fn is_empty(part: &ChunkRanges) -> bool {
    part.iter()
        .all(|ranges| ranges.iter().any(std::ops::Range::is_empty))
}

/// The ways to cut two axes into as many as `most` pieces each, fewest pieces first.
pub(super) fn ways(most: [u64; 2]) -> Vec<[u64; 2]> {
    let mut ways: Vec<[u64; 2]> = (1..=most[0].clamp(1, 64))
        .flat_map(|i| (1..=most[1].clamp(1, 64)).map(move |j| [i, j]))
        .collect();
    ways.sort_by_key(|[i, j]| (i * j, i.abs_diff(*j)));
    ways
}
