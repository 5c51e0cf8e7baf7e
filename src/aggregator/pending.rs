//! Write chunks that are being assembled from final voxels.
//!
//! Boxes of final voxels arrive in any order and from any thread. Each write chunk is passed to the output once, by the
//! thread that adds its last voxel. Boxes of only the fill value take no memory until a different voxel of the chunk
//! arrives.
//!
//! Flat files have no write chunks, but a system call for each short row of a block costs ten times as much as its
//! bytes: their voxels wait for the rest of their rows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::gauge::ByteGauge;
use super::onto::Onto;
use crate::error::Result;
use crate::grid::Grid;
use crate::patch::copy_common;
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};
use crate::volume::{Layout, VolumeMut};

/// Returns the shape of the boxes that are passed to the output together: its write chunks, or in a flat file a few planes
/// of the rows of one step of the grid; `None` where rows are only completed at the end.
pub(super) fn unit(grid: &Grid, output: &Layout, onto: Option<&Onto>) -> Option<Shape> {
    if let Some([_, chunk @ ..]) = output.write_chunk {
        return Some(chunk);
    }
    let [slowest, ..] = grid.order();
    if let Some(onto) = onto {
        let rows = onto.written.shape.map(|length| length.min(ROWS));
        return (onto.axes()[slowest] != 2).then(|| [rows[0], rows[1], output.shape[2].max(1)]);
    }
    let step = |a: usize| grid.axes()[a].widest_step().max(1);
    (slowest != 2).then(|| [step(0).min(PLANES), step(1), output.shape[2].max(1)])
}

/// The most planes of a flat file that are passed to it together. Each is written on its own, and those that are final do
/// not wait for others that will be, where patches are shifted into the volume.
const PLANES: u64 = 16;

/// Planes, and rows of each, of a flat file on another grid than the predictions that are passed to the output together.
const ROWS: u64 = 32;

/// The write chunks that have some of their voxels, and their output.
#[derive(Debug)]
pub(super) struct Pending {
    output: Box<dyn VolumeMut>,
    chunk: Option<Shape>,
    /// A bit set of the write chunks to write; `None` for all.
    wanted: Option<Vec<u64>>,
    /// The fill value: the bytes of a voxel that no patch covers.
    fill: Vec<u8>,
    waiting: Mutex<HashMap<[u64; 3], Arc<Mutex<WaitingChunk>>>>,
    /// Buffers of written chunks.
    buffers: Buffers<u8>,
    written: AtomicU64,
    /// Nanoseconds that threads took to encode and write.
    nanoseconds: AtomicU64,
}

#[derive(Debug)]
struct WaitingChunk {
    region: Region,
    voxels: Vec<u8>,
    /// Boxes of the fill value that arrived before the buffer was allocated.
    holes: Vec<Region>,
    missing: u64,
}

impl Pending {
    /// Creates the state without any voxel. `wanted` selects the write chunks (z, y, x) to write; `None` for all.
    pub(super) fn new(
        chunk: Option<Shape>,
        output: Box<dyn VolumeMut>,
        fill: Vec<u8>,
        wanted: Option<&dyn Fn([u64; 3]) -> bool>,
    ) -> Self {
        let shape = output.layout().shape;
        let wanted = wanted.zip(output.layout().write_chunk);
        let wanted = wanted.map(|(wanted, [_, chunk @ ..])| {
            let count = chunk_range(&Region::whole(shape), chunk);
            let all = indices(count.clone());
            let length = count
                .iter()
                .map(|range| range.end)
                .product::<u64>()
                .div_ceil(64);
            let mut bits = vec![0_u64; usize::try_from(length).unwrap_or(usize::MAX)];
            for (n, index) in all.enumerate() {
                bits[n / 64] |= u64::from(wanted(index)) << (n % 64);
            }
            bits
        });
        Self {
            chunk,
            output,
            wanted,
            fill,
            waiting: Mutex::default(),
            buffers: Buffers::default(),
            written: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        }
    }

    pub(super) fn output(&self) -> &dyn VolumeMut {
        &*self.output
    }

    /// The fill value: the bytes of a voxel that no patch covers.
    pub(super) fn fill(&self) -> &[u8] {
        &self.fill
    }

    fn write(&self, region: Region, voxels: &[u8]) -> Result<()> {
        let began = Instant::now();
        let written = self.output.write(region, voxels);
        let nanoseconds = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        written
    }

    /// Returns the time that threads took to encode and write so far, summed over the threads.
    pub(super) fn write_time(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    /// Returns the number of write chunks passed to the output so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Returns `true` if only a part of the output is written.
    pub(super) const fn is_partial(&self) -> bool {
        self.wanted.is_some()
    }

    /// Returns the parts of a box that are in write chunks to write.
    pub(super) fn wanted_parts(&self, region: Region) -> Vec<Region> {
        let Some(chunk) = self.chunk.filter(|_| self.is_partial()) else {
            return vec![region];
        };
        let wanted = indices(chunk_range(&region, chunk));
        let wanted = wanted.filter(|&index| self.is_wanted(index, chunk));
        wanted
            .filter_map(|index| chunk_region(index, chunk).intersection(&region))
            .collect()
    }

    /// Returns `true` if a box overlaps any write chunk to write.
    pub(super) fn wants(&self, region: &Region) -> bool {
        let Some(chunk) = self.chunk else {
            return true;
        };
        indices(chunk_range(region, chunk)).any(|index| self.is_wanted(index, chunk))
    }

    fn is_wanted(&self, index: [u64; 3], chunk: Shape) -> bool {
        let shape = self.output.layout().shape;
        let bit = (0..3).fold(0, |n, a| n * shape[a].div_ceil(chunk[a]) + index[a]);
        let word = usize::try_from(bit / 64).unwrap_or(usize::MAX);
        let set = |bits: &Vec<u64>| {
            bits.get(word)
                .is_some_and(|bits| bits & (1 << (bit % 64)) != 0)
        };
        self.wanted.as_ref().is_none_or(set)
    }

    /// Adds the final voxels of a box, all of the output's channels; `None` for the fill value.
    pub(super) fn add(
        &self,
        region: Region,
        voxels: Option<&[u8]>,
        meter: &ByteGauge,
    ) -> Result<()> {
        let layout = self.output.layout();
        let (channels, size) = (layout.channels, layout.dtype.size());
        let Some(chunk) = self.chunk else {
            self.written.fetch_add(1, Ordering::Relaxed);
            if let Some(voxels) = voxels {
                return self.write(region, voxels);
            }
            let count = usize::try_from(region.voxels() * channels).unwrap_or(usize::MAX);
            return self.write(region, &self.fill.repeat(count));
        };
        for index in indices(chunk_range(&region, chunk)) {
            let inside = chunk_region(index, chunk).intersection(&Region::whole(layout.shape));
            let Some((inside, common)) =
                inside.and_then(|inside| Some((inside, inside.intersection(&region)?)))
            else {
                continue;
            };
            if !self.is_wanted(index, chunk) {
                continue;
            }
            let slot = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let slot = waiting.entry(index).or_insert_with(|| {
                    Arc::new(Mutex::new(WaitingChunk {
                        region: inside,
                        voxels: Vec::new(),
                        holes: Vec::new(),
                        missing: inside.voxels(),
                    }))
                });
                Arc::clone(slot)
            };
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.missing -= common.voxels();
            match voxels {
                None if slot.voxels.is_empty() && slot.missing > 0 => slot.holes.push(common),
                None => {
                    slot.holes.push(common);
                    self.gather(&mut slot, meter);
                }
                Some(voxels) => {
                    self.gather(&mut slot, meter);
                    let target = (&mut slot.voxels[..], inside);
                    copy_common((voxels, region), target, channels, size);
                }
            }
            if slot.missing == 0 {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.remove(&index);
                drop(waiting);
                self.write(slot.region, &slot.voxels)?;
                self.written.fetch_add(1, Ordering::Relaxed);
                meter.shrink(slot.voxels.len() as u64);
                self.buffers.give(std::mem::take(&mut slot.voxels));
            }
        }
        Ok(())
    }

    /// Allocates the buffer of a chunk if it has none, and writes the fill value into its holes.
    fn gather(&self, slot: &mut WaitingChunk, meter: &ByteGauge) {
        let layout = self.output.layout();
        let voxels = slot.region.voxels() * layout.channels;
        let bytes = voxels * layout.dtype.size() as u64;
        if slot.voxels.is_empty() {
            slot.voxels = self
                .buffers
                .take(usize::try_from(bytes).unwrap_or(usize::MAX));
            meter.grow(bytes);
        }
        let [_, ny, nx] = slot.region.shape;
        let channel = slot.region.voxels();
        for hole in std::mem::take(&mut slot.holes) {
            let hole = hole.relative_to(slot.region.start);
            let [z0, y0, x0] = hole.start.map(i64::unsigned_abs);
            for c in 0..layout.channels {
                for [z, y, _] in indices([0..hole.shape[0], 0..hole.shape[1], 0..1]) {
                    let first = c * channel + ((z0 + z) * ny + y0 + y) * nx + x0;
                    let place = |voxel: u64| {
                        usize::try_from(voxel).unwrap_or(usize::MAX) * layout.dtype.size()
                    };
                    let row = &mut slot.voxels[place(first)..place(first + hole.shape[2])];
                    for voxel in row.chunks_exact_mut(self.fill.len()) {
                        voxel.copy_from_slice(&self.fill);
                    }
                }
            }
        }
    }

    /// Returns the output, which may still receive other write chunks.
    pub(super) fn into_output(self) -> Box<dyn VolumeMut> {
        self.output
    }
}
