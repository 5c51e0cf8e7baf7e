//! Planes of a mapped file: what several patches want of a few planes is read in one piece.
//!
//! Rows of a patch lie far apart in a flat file, and each costs a fault or a call; planes read
//! in one piece cost neither, and the rows are then copied out of memory that is at hand. The
//! piece is bounded, and where patches share too little of it they copy from the map.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::subject::Image;
use crate::error::Result;
use crate::region::{Region, chunk_region};
use crate::volume::{Chunk, ChunkShape, ChunkVoxels};

/// A piece is read if it has no more bytes than this,
const MOST_BYTES: u64 = 8 << 20;

/// and no more than so many times what the patches want of it: about where both cost the same.
const MOST_WASTE: u64 = 6;

/// A box of whole planes, and as much of it as was read.
pub(super) struct Planes {
    channels: Range<u64>,
    region: Region,
    read: Option<Chunk>,
}

/// Buffers for pieces, one for each thread in the end: fresh memory costs a fault a page.
#[derive(Default)]
pub(super) struct Scratch(Mutex<Vec<Vec<u8>>>);

impl Planes {
    /// Reads what patches at `wanted` share with box `index` of those of `size`, if that pays.
    pub(super) fn fetch(
        image: &Image,
        size: ChunkShape,
        index: ChunkShape,
        wanted: impl Iterator<Item = Region>,
        scratch: &Scratch,
    ) -> Result<Self> {
        let layout = image.volume.layout();
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
        if bytes <= MOST_BYTES && piece.voxels() <= voxels.saturating_mul(MOST_WASTE) {
            let length = usize::try_from(bytes).expect("a piece is small");
            let mut buffer = scratch.take(length);
            let channels = planes.channels.clone();
            image
                .volume
                .read_channels(channels, piece, &mut buffer[..length])?;
            planes.read = Some(Chunk {
                channels: planes.channels.clone(),
                region: piece,
                voxels: ChunkVoxels::Stored(buffer),
            });
        }
        Ok(planes)
    }

    /// Copies what a patch shares with the box into it: into `out`, its voxels in `region`.
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
                .volume
                .read_channels(channel..channel + 1, part, out)?;
        }
        Ok(())
    }

    /// Gives the buffer back.
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
    /// A buffer of `length` bytes or more, with anything in it.
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
