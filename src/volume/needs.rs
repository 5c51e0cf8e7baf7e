//! The memory needed to decode and encode chunks.

use super::pyramid::next_shape;
use super::{Layout, ReadMemory};
use crate::region::Region;
use crate::store::{HELD_BYTES, version_bytes};

/// Maximum bytes of shard indexes that a Zarr input caches.
pub(super) const INDEX_BUDGET: u64 = 64 << 20;

/// Returns the bytes that a thread needs to read an input by chunks that it holds: the stored and the decoded chunk, and what
/// wrappers take.
pub(crate) fn decoding_bytes(input: &Layout) -> u64 {
    let source = input.read_memory.source.map(|source| source.chunk);
    let chunk = source.or(input.read_chunk).unwrap_or_default();
    let voxels = chunk.into_iter().fold(1, u64::saturating_mul);
    let chunk = voxels.saturating_mul(2 * input.dtype.size() as u64);
    chunk.saturating_add(input.read_memory.thread)
}

/// Returns the bytes that an input keeps besides the chunks that its reader holds: the cached shard indexes, two numbers per
/// chunk, up to the budget, the caches of wrappers, and the answers of stores.
pub(crate) fn index_bytes(input: &Layout) -> u64 {
    if let Some(source) = input.read_memory.source {
        return source.kept;
    }
    let memory = input.read_memory;
    let kept = memory.shared.saturating_add(memory.answers);
    let (Some(chunk), Some(shard)) = (input.read_chunk, input.write_chunk) else {
        return kept;
    };
    if chunk == shard {
        return kept;
    }
    let [z, y, x] = input.shape;
    let lengths = [input.channels, z, y, x];
    let chunks = (0..4).map(|a| lengths[a].next_multiple_of(shard[a].max(1)) / chunk[a].max(1));
    let indexes = chunks.fold(16, u64::saturating_mul).min(INDEX_BUDGET);
    indexes.saturating_add(kept)
}

/// Returns the memory of reads of a volume in a store, or on a web server: the versions of its objects, and the answers that
/// wait to be read.
pub(super) fn remote_memory(input: &Layout) -> ReadMemory {
    let [z, y, x] = input.shape;
    let lengths = [input.channels, z, y, x];
    let chunk = input.write_chunk.unwrap_or(lengths);
    let objects = (0..4).map(|a| lengths[a].div_ceil(chunk[a].max(1)));
    let objects = objects.fold(1, u64::saturating_mul);
    // No answer is much longer than what it decodes to.
    let all = input.decoded_bytes().unwrap_or(u64::MAX).saturating_mul(2);
    ReadMemory {
        shared: version_bytes(objects),
        answers: all.min(HELD_BYTES),
        ..ReadMemory::default()
    }
}

/// Returns the bytes of answers that wait to be read while an output in a store is read back; 0 for an output on a file
/// system.
pub(crate) fn answer_bytes(output: &Layout) -> u64 {
    if output.remote {
        remote_memory(output).answers
    } else {
        0
    }
}

/// Returns the bytes needed to mark the finished write chunks of a resumable output, on all levels.
pub(crate) fn marked_bytes(output: &Layout) -> u64 {
    let Some([_, chunk @ ..]) = output.write_chunk else {
        return 0;
    };
    let counts = (0..3).map(|a| output.shape[a].div_ceil(chunk[a].max(1)));
    // A table of words that may be half empty, plus that of an earlier run while it is built. Coarser levels have a
    // seventh of the chunks.
    counts
        .fold(output.channels, u64::saturating_mul)
        .saturating_mul(2)
}

/// Returns the maximum bytes that a thread needs to encode a write chunk of an output: the chunk padded at the edge, and
/// its encoded form. Of a shard, that is one chunk at a time, and the whole shard: for a store it waits to be sent, and for a file
/// as much is left to the gaps in the heap beside the codecs' short-lived memory. With coarser levels, one chunk is added on each
/// level that this one completes.
pub(crate) fn encoding_bytes(output: &Layout, coarser: bool) -> u64 {
    let Some(write_chunk @ [_, chunk @ ..]) = output.write_chunk else {
        return 0;
    };
    let [_, encoded @ ..] = output.read_chunk.unwrap_or(write_chunk);
    let size = output.dtype.size() as u64;
    let bytes_of = |shape| Region::whole(shape).voxels().saturating_mul(size);
    let mut bytes = bytes_of(encoded).saturating_mul(2);
    if encoded != chunk {
        bytes = bytes.saturating_add(bytes_of(chunk));
    }
    let mut shape = output.shape;
    while coarser && next_shape(shape) != shape {
        shape = next_shape(shape);
        let inside = Region::whole(std::array::from_fn(|a| chunk[a].min(shape[a])));
        bytes = bytes.saturating_add(inside.voxels().saturating_mul(size));
    }
    bytes
}

/// Maximum bytes of encoded chunks on their way to a store.
const UPLOADS: u64 = 32 << 20;

/// Write chunks on their way to a store, if they are small.
const UPLOADS_AT_ONCE: u64 = 16;

/// Returns the maximum bytes of encoded chunks on their way to a store; 0 for an output on a file system.
pub(crate) fn upload_bytes(output: &Layout) -> u64 {
    let (true, Some([_, chunk @ ..])) = (output.remote, output.write_chunk) else {
        return 0;
    };
    let size = output.dtype.size() as u64;
    let chunk = Region::whole(chunk).voxels().saturating_mul(size);
    chunk
        .saturating_mul(UPLOADS_AT_ONCE)
        .min(UPLOADS)
        .max(chunk)
}
