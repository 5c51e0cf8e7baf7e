//! Final voxels that wait for the rest of their write chunk.
//!
//! Boxes of final voxels come in any order and from any thread; each write chunk is handed
//! to the output once, when its last voxel is there, by the thread that brought it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Meter;
use crate::error::Result;
use crate::patch::copy_common;
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};
use crate::volume::VolumeMut;

/// The write chunks that have some of their voxels.
#[derive(Debug)]
pub(super) struct Pending {
    output: Box<dyn VolumeMut>,
    chunk: Option<Shape>,
    waiting: Mutex<HashMap<[u64; 3], Arc<Mutex<Waiting>>>>,
    written: AtomicU64,
}

#[derive(Debug)]
struct Waiting {
    region: Region,
    voxels: Vec<u8>,
    missing: u64,
}

impl Pending {
    pub(super) fn new(output: Box<dyn VolumeMut>) -> Self {
        let chunk = output.layout().write_chunk.map(|[_, z, y, x]| [z, y, x]);
        Self {
            output,
            chunk,
            waiting: Mutex::default(),
            written: AtomicU64::new(0),
        }
    }

    pub(super) fn output(&self) -> &dyn VolumeMut {
        &*self.output
    }

    /// Write chunks handed to the output so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Takes the final voxels of a box, all of the output's channels.
    pub(super) fn add(&self, region: Region, voxels: &[u8], meter: &Meter) -> Result<()> {
        let Some(chunk) = self.chunk else {
            self.written.fetch_add(1, Ordering::Relaxed);
            return self.output.write(region, voxels);
        };
        let layout = self.output.layout();
        let (channels, size) = (layout.channels, layout.dtype.size());
        for index in indices(chunk_range(&region, chunk)) {
            let whole = chunk_region(index, chunk);
            let Some(inside) = whole.intersection(&Region::whole(layout.shape)) else {
                continue;
            };
            let Some(common) = inside.intersection(&region) else {
                continue;
            };
            let slot = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let empty = || Waiting {
                    region: inside,
                    voxels: Vec::new(),
                    missing: inside.voxels(),
                };
                Arc::clone(
                    waiting
                        .entry(index)
                        .or_insert_with(|| Arc::new(Mutex::new(empty()))),
                )
            };
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.voxels.is_empty() {
                let bytes = inside.voxels() * channels * size as u64;
                slot.voxels = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
                meter.grow(bytes);
            }
            let target = (&mut slot.voxels[..], inside);
            copy_common((voxels, region), target, channels, size);
            slot.missing -= common.voxels();
            if slot.missing == 0 {
                self.waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&index);
                self.output.write(slot.region, &slot.voxels)?;
                self.written.fetch_add(1, Ordering::Relaxed);
                meter.shrink(slot.voxels.len() as u64);
                slot.voxels = Vec::new();
            }
        }
        Ok(())
    }

    /// Finishes the output.
    pub(super) fn finish(self) -> Result<()> {
        self.output.finish()
    }
}
