//! Chunks: decoded voxels on a regular grid, and reading boxes out of them.

use std::borrow::Borrow;
use std::ops::Range;

use super::{ChunkShape, Layout, Volume};
use crate::error::{Error, Result};
use crate::patch::copy_common;
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};

/// The decoded voxels of one read chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// The channels; may extend beyond the volume's last.
    pub channels: Range<u64>,
    /// The box; may extend beyond the volume's far faces.
    pub region: Region,
    /// The voxels.
    pub voxels: ChunkVoxels,
}

/// The voxels of a chunk, in native byte order.
#[derive(Clone, Debug, PartialEq)]
pub enum ChunkVoxels {
    /// The chunk is not stored: every voxel has this value (the bytes of one voxel).
    Fill(Vec<u8>),
    /// The voxels, row-major c, z, y, x.
    Stored(Vec<u8>),
}

impl Chunk {
    /// Returns the bytes that the chunk takes in memory.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        match &self.voxels {
            ChunkVoxels::Fill(voxel) => voxel.len(),
            ChunkVoxels::Stored(voxels) => voxels.len(),
        }
    }

    /// Copies the voxels that this chunk shares with `channels` and `region` into `out`, a buffer of exactly those
    /// channels and that region, with voxels of `size` bytes.
    pub fn copy_to(&self, channels: &Range<u64>, region: Region, out: &mut [u8], size: usize) {
        match &self.voxels {
            ChunkVoxels::Stored(voxels) => {
                let from = (&**voxels, &self.channels, self.region);
                copy_part(from, (out, channels, region), size);
            }
            ChunkVoxels::Fill(voxel) => {
                let first = channels.start.max(self.channels.start);
                let count = channels.end.min(self.channels.end).saturating_sub(first);
                let skip = length(first - channels.start) * length(region.voxels()) * size;
                fill(voxel, self.region, (&mut out[skip..], region), count);
            }
        }
    }

    /// Copies the voxels that this chunk shares with `channels` and `region` to a new chunk.
    /// Voxels have `size` bytes.
    pub(crate) fn part(&self, channels: &Range<u64>, region: Region, size: usize) -> Self {
        let channels = channels.start.max(self.channels.start)..channels.end.min(self.channels.end);
        let empty = Region {
            shape: [0; 3],
            ..self.region
        };
        let region = region.intersection(&self.region).unwrap_or(empty);
        let voxels = match &self.voxels {
            ChunkVoxels::Fill(voxel) => ChunkVoxels::Fill(voxel.clone()),
            ChunkVoxels::Stored(_) => {
                let count = channels.end.saturating_sub(channels.start);
                let mut voxels = vec![0; length(region.voxels() * count) * size];
                self.copy_to(&channels, region, &mut voxels, size);
                ChunkVoxels::Stored(voxels)
            }
        };
        Self {
            channels,
            region,
            voxels,
        }
    }
}

/// Copies the voxels that a chunk shares with `channels` and `region` into `out`, a buffer of exactly those channels and
/// that region. `voxels` are those of the chunk, row-major c, z, y, x, of `size` bytes each.
pub(super) fn copy_part(
    (voxels, from, chunk): (&[u8], &Range<u64>, Region),
    (out, channels, region): (&mut [u8], &Range<u64>, Region),
    size: usize,
) {
    let first = channels.start.max(from.start);
    let count = channels.end.min(from.end).saturating_sub(first);
    let skip = |first: u64, region: Region| length(first) * length(region.voxels()) * size;
    let voxels = &voxels[skip(first - from.start, chunk)..];
    let out = &mut out[skip(first - channels.start, region)..];
    copy_common((voxels, chunk), (out, region), count, size);
}

/// Writes one voxel value to everything that `chunk` and `region` share.
pub(super) fn fill(voxel: &[u8], chunk: Region, (out, region): (&mut [u8], Region), channels: u64) {
    let Some(common) = chunk.intersection(&region) else {
        return;
    };
    let run = voxel.repeat(length(common.shape[2]));
    let row = Region {
        shape: [1, 1, common.shape[2]],
        ..common
    };
    let per_channel = length(region.voxels()) * voxel.len();
    for c in 0..length(channels) {
        for z in 0..common.shape[0] {
            for y in 0..common.shape[1] {
                let mut at = row;
                at.start[0] = at.start[0].saturating_add_unsigned(z);
                at.start[1] = at.start[1].saturating_add_unsigned(y);
                copy_common(
                    (&run, at),
                    (&mut out[c * per_channel..], region),
                    1,
                    voxel.len(),
                );
            }
        }
    }
}

/// Returns the channels and the box of chunk `index`, clipped to the volume.
pub(super) fn clipped(layout: &Layout, index: ChunkShape) -> Result<(Range<u64>, Region)> {
    let (channels, region) = whole(layout, index)?;
    let inside = region.intersection(&Region::whole(layout.shape));
    let channels = channels.start..channels.end.min(layout.channels);
    Ok((channels, inside.expect("a chunk that starts inside")))
}

/// Returns the channels and the box of chunk `index`, which may extend beyond the volume.
pub(super) fn whole(layout: &Layout, index: ChunkShape) -> Result<(Range<u64>, Region)> {
    let [size, chunk @ ..] = layout
        .read_chunk
        .ok_or_else(|| Error::unsupported(&layout.path, "the volume has no chunks"))?;
    let [c, box_index @ ..] = index;
    let starts_inside = (0..3).all(|a| {
        let start = box_index[a].checked_mul(chunk[a]);
        start.is_some_and(|start| start < layout.shape[a])
    });
    match c.checked_mul(size) {
        Some(first) if starts_inside && first < layout.channels => {
            let channels = first..first.saturating_add(size);
            Ok((channels, chunk_region(box_index, chunk)))
        }
        _ => Err(Error::unsupported(
            &layout.path,
            format!("the volume has no chunk {index:?}"),
        )),
    }
}

/// Iterates over the indices of all read chunks that hold voxels of some channels of a region.
///
/// `chunk` is c, z, y, x; `region` must be inside the volume.
pub(crate) fn intersecting(
    chunk: ChunkShape,
    channels: &Range<u64>,
    region: Region,
) -> impl Iterator<Item = ChunkShape> + use<> {
    let [size, shape @ ..]: ChunkShape = chunk;
    let shape: Shape = shape;
    let empty = region.is_empty() || channels.is_empty();
    let boxes = if empty {
        [0..0, 0..0, 0..0]
    } else {
        chunk_range(&region, shape)
    };
    (channels.start / size..channels.end.div_ceil(size))
        .flat_map(move |c| indices(boxes.clone()).map(move |[z, y, x]| [c, z, y, x]))
}

/// Reads some channels of a region chunk by chunk, for wrappers whose chunks are different boxes. The region must be
/// inside the volume and not empty. Returns a single fill voxel if all chunks are unstored with the same value.
pub(super) fn gather(
    volume: &dyn Volume,
    channels: &Range<u64>,
    region: Region,
) -> Result<ChunkVoxels> {
    let mut out = Vec::new();
    let read = |index| volume.read_chunk(index);
    let fill = gather_into(&mut out, volume.layout(), channels, region, read)?;
    Ok(fill.map_or(ChunkVoxels::Stored(out), ChunkVoxels::Fill))
}

/// Does the same, with chunks that `read` returns. The voxels replace what is in `out`, whose memory is reused, unless a fill
/// voxel is returned.
pub(crate) fn gather_into<C: Borrow<Chunk>>(
    out: &mut Vec<u8>,
    layout: &Layout,
    channels: &Range<u64>,
    region: Region,
    mut read: impl FnMut(ChunkShape) -> Result<C>,
) -> Result<Option<Vec<u8>>> {
    let size = layout.dtype.size();
    let bytes = length(region.voxels() * (channels.end - channels.start)) * size;
    let mut fill = None;
    let mut is_stored = false;
    let all = layout.read_chunk.into_iter();
    for index in all.flat_map(|chunk| intersecting(chunk, channels, region)) {
        let chunk = read(index)?;
        let chunk = chunk.borrow();
        if let (ChunkVoxels::Fill(voxel), false) = (&chunk.voxels, is_stored) {
            let same = fill.get_or_insert_with(|| voxel.clone()) == voxel;
            if same {
                continue;
            }
        }
        if !is_stored {
            is_stored = true;
            resize(out, bytes);
            if let Some(voxel) = &fill {
                fill_all(voxel, out);
            }
        }
        chunk.copy_to(channels, region, out, size);
    }
    Ok(fill.filter(|_| !is_stored))
}

/// Writes one voxel value everywhere.
pub(super) fn fill_all(voxel: &[u8], out: &mut [u8]) {
    for out in out.chunks_exact_mut(voxel.len()) {
        out.copy_from_slice(voxel);
    }
}

/// Makes a buffer this long. What it held is lost or stays, and the rest is 0.
pub(super) fn resize(buffer: &mut Vec<u8>, bytes: usize) {
    if buffer.capacity() < bytes {
        *buffer = vec![0; bytes];
    }
    buffer.resize(bytes, 0);
}

/// Returns the fill voxel of some channels of a region if no chunk of it is stored and all have the same value. The
/// region must be inside the volume and not empty.
pub(super) fn fill_of(
    volume: &dyn Volume,
    channels: &Range<u64>,
    region: Region,
) -> Result<Option<Vec<u8>>> {
    let mut fill = None;
    let all = volume.layout().read_chunk.into_iter();
    for index in all.flat_map(|chunk| intersecting(chunk, channels, region)) {
        let Some(voxel) = volume.fill_chunk(index)? else {
            return Ok(None);
        };
        if *fill.get_or_insert_with(|| voxel.clone()) != voxel {
            return Ok(None);
        }
    }
    Ok(fill)
}

/// Reads a box from the chunks that hold it, requesting each of them once.
pub(crate) fn read_by_chunks<C: Borrow<Chunk>>(
    layout: &Layout,
    channels: Range<u64>,
    region: Region,
    out: &mut [u8],
    mut chunk: impl FnMut(ChunkShape) -> Result<C>,
) -> Result<()> {
    layout.check_read(&channels, region, out.len())?;
    let shape = layout
        .read_chunk
        .ok_or_else(|| Error::unsupported(&layout.path, "the volume has no chunks"))?;
    for index in intersecting(shape, &channels, region) {
        chunk(index)?
            .borrow()
            .copy_to(&channels, region, out, layout.dtype.size());
    }
    Ok(())
}

/// Checks that channels and a region consist of whole write chunks, clipped only at the volume's edge.
pub(super) fn check_whole_chunks(
    layout: &Layout,
    channels: &Range<u64>,
    region: Region,
) -> Result<()> {
    let Some([c, chunk @ ..]) = layout.write_chunk else {
        return Ok(());
    };
    let aligned = |from: u64, to: u64, chunk: u64, length: u64| {
        from.is_multiple_of(chunk) && (to.is_multiple_of(chunk) || to == length)
    };
    let end = region.end();
    let whole = (0..3).all(|a| {
        let (start, end) = (region.start[a].unsigned_abs(), end[a].unsigned_abs());
        aligned(start, end, chunk[a], layout.shape[a])
    });
    if whole && aligned(channels.start, channels.end, c, layout.channels) {
        Ok(())
    } else {
        Err(Error::PartialChunk {
            path: layout.path.clone(),
            region,
            chunk,
        })
    }
}

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length inside a buffer in memory")
}
