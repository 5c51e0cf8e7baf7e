//! Staging for flat files: planes that several patches need are read in one piece.
//!
//! The rows of a patch are far apart in a flat file, and each costs a page fault or a system call.
//! Planes are read in one piece, and the rows are then copied from memory. The size of the piece is
//! bounded; if the patches need too little of it, they read their rows directly.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::region::{Region, chunk_region};
use crate::training::subject::Image;
use crate::volume::{Chunk, ChunkShape, ChunkVoxels};

/// The maximum number of bytes of a piece.
pub(super) const MAX_BYTES: u64 = 8 << 20;

/// The maximum ratio of a piece to the voxels needed; at this ratio both ways cost about the same.
const MAX_WASTE: u64 = 6;

/// A box of whole planes, and the part of it that was read.
pub(super) struct StagedPlanes {
    channels: Range<u64>,
    region: Region,
    read: Option<Chunk>,
}

/// Reusable buffers for pieces, at most one per thread.
#[derive(Default)]
pub(super) struct Scratch(Mutex<Vec<Vec<u8>>>);

impl StagedPlanes {
    /// Reads the part of box `index` (of boxes of `size`) that patches at `wanted` need, if that pays.
    pub(super) fn fetch(
        image: &Image,
        size: ChunkShape,
        index: ChunkShape,
        wanted: impl Iterator<Item = Region>,
        scratch: &Scratch,
    ) -> Result<Self> {
        let layout = image.source().layout();
        let [count, shape @ ..] = size;
        let [c, at @ ..] = index;
        let own = &image.channels;
        let channels = own.start.max(c * count)..own.end.min((c + 1) * count);
        let region = chunk_region(at, shape);
        let parts = wanted.filter_map(|wanted| wanted.intersection(&region));
        let (mut bounds, mut voxels) = (None::<(Region, [i64; 3])>, 0_u64);
        for part in parts {
            voxels = voxels.saturating_add(part.voxels());
            bounds = Some(match bounds {
                None => (part, part.end()),
                Some((first, end)) => {
                    let start = [0, 1, 2].map(|a| first.start[a].min(part.start[a]));
                    let end = [0, 1, 2].map(|a| end[a].max(part.end()[a]));
                    (Region { start, ..first }, end)
                }
            });
        }
        let mut planes = Self {
            channels,
            region,
            read: None,
        };
        let Some((first, end)) = bounds else {
            return Ok(planes);
        };
        let length = |a: usize| end[a].abs_diff(first.start[a]);
        let piece = Region::new(
            [first.start[0], first.start[1], 0],
            [length(0), length(1), layout.shape[2]],
        );
        let bytes = piece
            .voxels()
            .saturating_mul(planes.channels.end - planes.channels.start)
            .saturating_mul(layout.dtype.size() as u64);
        if bytes <= MAX_BYTES && piece.voxels() <= voxels.saturating_mul(MAX_WASTE) {
            let length = usize::try_from(bytes).expect("a piece is small");
            let mut buffer = scratch.take(length);
            let channels = planes.channels.clone();
            image
                .source()
                .read_channels(channels, piece, &mut buffer[..length])?;
            planes.read = Some(Chunk {
                channels: planes.channels.clone(),
                region: piece,
                voxels: ChunkVoxels::Stored(buffer),
            });
        }
        Ok(planes)
    }

    /// Copies the voxels that a patch shares with the box to `out`, which holds the voxels of `region`.
    pub(super) fn copy_to(&self, image: &Image, region: Region, out: &mut [u8]) -> Result<()> {
        let size = image.volume.layout().dtype.size();
        if let Some(chunk) = &self.read {
            chunk.copy_to(&image.channels, region, out, size);
            return Ok(());
        }
        let Some(part) = region.intersection(&self.region) else {
            return Ok(());
        };
        let plane = region.shape[1] * region.shape[2] * size as u64;
        let skipped = part.start[0].abs_diff(region.start[0]);
        for channel in self.channels.clone() {
            let before = channel - image.channels.start;
            let first = (before * region.shape[0] + skipped) * plane;
            let bytes = place(first)..place(first + part.shape[0] * plane);
            let out = &mut out[bytes];
            image
                .source()
                .read_channels(channel..channel + 1, part, out)?;
        }
        Ok(())
    }

    /// Returns the buffer for reuse.
    pub(super) fn recycle(self, scratch: &Scratch) {
        if let Some(ChunkVoxels::Stored(buffer)) = self.read.map(|chunk| chunk.voxels) {
            scratch
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(buffer);
        }
    }
}

impl Scratch {
    /// Takes a buffer of at least `length` bytes, with unspecified contents.
    fn take(&self, length: usize) -> Vec<u8> {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = buffers.pop().unwrap_or_default();
        drop(buffers);
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        buffer
    }
}

fn place(n: u64) -> usize {
    usize::try_from(n).expect("a place inside a buffer in memory")
}
