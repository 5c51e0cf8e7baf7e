//! How much memory it takes to decode and to encode a chunk.

use super::Layout;
use super::pyramid::next_shape;
use crate::region::Region;

/// Bytes of shard indexes that a Zarr input keeps, at most.
pub(super) const INDEX_BUDGET: u64 = 64 << 20;

/// Bytes of a chunk of an input while it is decoded: as it is stored, and as it comes out.
pub(crate) fn decoding_bytes(input: &Layout) -> u64 {
    let chunk = input.read_chunk.unwrap_or_default();
    let voxels = chunk.into_iter().fold(1, u64::saturating_mul);
    voxels.saturating_mul(2 * input.dtype.size() as u64)
}

/// Bytes of the indexes of an input's shards that are kept: two numbers for each chunk.
pub(crate) fn index_bytes(input: &Layout) -> u64 {
    let (Some(chunk), Some(shard)) = (input.read_chunk, input.write_chunk) else {
        return 0;
    };
    if chunk == shard {
        return 0;
    }
    let [z, y, x] = input.shape;
    let lengths = [input.channels, z, y, x];
    let chunks = (0..4).map(|a| lengths[a].next_multiple_of(shard[a].max(1)) / chunk[a].max(1));
    chunks.fold(16, u64::saturating_mul).min(INDEX_BUDGET)
}

/// Bytes that it takes to note which write chunks of a resumable output are done, on all levels.
pub(crate) fn marked_bytes(output: &Layout) -> u64 {
    let Some([_, chunk @ ..]) = output.write_chunk else {
        return 0;
    };
    let counts = (0..3).map(|a| output.shape[a].div_ceil(chunk[a].max(1)));
    // A table of words, which may be half empty, and that of an earlier run while it is made; coarser levels
    // have a seventh of the chunks.
    counts
        .fold(output.channels, u64::saturating_mul)
        .saturating_mul(2)
}

/// Bytes that a thread takes while it encodes a write chunk of an output, at most: the chunk filled up at the
/// edge and encoded, and, with coarser levels, a chunk of each that this one completes.
pub(crate) fn encoding_bytes(output: &Layout, coarser: bool) -> u64 {
    let Some([_, chunk @ ..]) = output.write_chunk else {
        return 0;
    };
    let size = output.dtype.size() as u64;
    let mut bytes = Region::whole(chunk).voxels().saturating_mul(2 * size);
    let mut shape = output.shape;
    while coarser && next_shape(shape) != shape {
        shape = next_shape(shape);
        let inside = Region::whole(std::array::from_fn(|a| chunk[a].min(shape[a])));
        bytes = bytes.saturating_add(inside.voxels().saturating_mul(size));
    }
    bytes
}
