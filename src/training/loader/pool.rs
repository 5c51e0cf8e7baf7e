//! A pool of the buffers of delivered patches. Fresh memory would cost a page fault per page.
//!
//! Patches are admitted before they take their buffers, so free buffers may fill the rest of the
//! budget. Buffers in use and free buffers together never exceed it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

use crate::dtype::DType;
use crate::error::Result;
use crate::patch::{Patch, Voxels};
use crate::region::Region;

/// Free buffers by type and length, within a byte budget that includes the buffers in use.
#[derive(Debug)]
pub(super) struct SamplePool {
    buffers: Mutex<Buffers>,
}

#[derive(Debug, Default)]
struct Buffers {
    free: HashMap<(DType, usize), Vec<Voxels>>,
    /// Buffers of contiguous batches, by length.
    joined: HashMap<usize, Vec<BytesMut>>,
    bytes: usize,
    /// Bytes of patches that have begun.
    begun: usize,
    /// The maximum of both together.
    budget: usize,
}

impl SamplePool {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            buffers: Mutex::new(Buffers {
                budget: usize::try_from(budget).unwrap_or(usize::MAX),
                ..Buffers::default()
            }),
        }
    }

    /// Sets the byte budget.
    pub(super) fn set_budget(&self, budget: u64) {
        self.lock().budget = usize::try_from(budget).unwrap_or(usize::MAX);
    }

    /// Counts the bytes of a patch that begins.
    pub(super) fn begin(&self, bytes: u64) {
        self.lock().begun += usize::try_from(bytes).unwrap_or(usize::MAX);
    }

    /// Stops counting the bytes of a patch that was delivered or given up.
    pub(super) fn end(&self, bytes: u64) {
        self.lock().begun -= usize::try_from(bytes).unwrap_or(usize::MAX);
    }

    /// Takes a patch with unspecified voxel values.
    pub(super) fn take(&self, region: Region, channels: u64, dtype: DType) -> Result<Patch> {
        let length = region.voxels().saturating_mul(channels);
        let found = usize::try_from(length).ok().and_then(|length| {
            let mut buffers = self.lock();
            let found = buffers.free.get_mut(&(dtype, length)).and_then(Vec::pop);
            if let Some(voxels) = &found {
                buffers.bytes -= voxels.bytes().len();
            } else {
                buffers.shrink();
            }
            found
        });
        match found {
            Some(voxels) => Patch::new(region, channels, voxels),
            None => Patch::zeros(region, channels, dtype),
        }
    }

    /// Returns a buffer to the pool, or frees it if the budget is used up.
    pub(super) fn give(&self, patch: Patch) {
        let voxels = patch.into_voxels();
        let bytes = voxels.bytes().len();
        let mut buffers = self.lock();
        if bytes > 0 && buffers.begun + buffers.bytes + bytes <= buffers.budget {
            buffers.bytes += bytes;
            buffers
                .free
                .entry((voxels.dtype(), voxels.len()))
                .or_default()
                .push(voxels);
        }
    }

    /// Takes a buffer of `length` unspecified bytes for a batch, aligned for any type.
    pub(super) fn take_bytes(&self, length: usize) -> BytesMut {
        let mut buffers = self.lock();
        if let Some(found) = buffers.joined.get_mut(&length).and_then(Vec::pop) {
            buffers.bytes -= found.len();
            return found;
        }
        buffers.shrink();
        drop(buffers);
        aligned(length)
    }

    /// Returns a batch's buffer to the pool, or frees it if the budget is used up.
    pub(super) fn give_bytes(&self, buffer: BytesMut) {
        let bytes = buffer.len();
        let mut buffers = self.lock();
        if bytes > 0 && buffers.begun + buffers.bytes + bytes <= buffers.budget {
            buffers.bytes += bytes;
            buffers.joined.entry(bytes).or_default().push(buffer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffers {
    /// Frees buffers, which have other sizes than the requested one, until the budget suffices.
    fn shrink(&mut self) {
        while self.begun + self.bytes > self.budget {
            if let Some(voxels) = self.free.values_mut().find_map(Vec::pop) {
                self.bytes -= voxels.bytes().len();
            } else if let Some(buffer) = self.joined.values_mut().find_map(Vec::pop) {
                self.bytes -= buffer.len();
            } else {
                return;
            }
        }
    }
}

/// Returns zeros at an address that is aligned for any voxel type.
fn aligned(length: usize) -> BytesMut {
    const ALIGN: usize = align_of::<u64>();
    let mut buffer = BytesMut::zeroed(length + ALIGN);
    let before = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
    drop(buffer.split_to(before));
    buffer.truncate(length);
    buffer
}
