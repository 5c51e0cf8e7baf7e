//! Buffers of delivered patches, kept for the next ones: fresh memory costs a page fault a page.
//!
//! Patches are admitted before they need their buffers, so that what they do not take yet may
//! be kept; together it is never more than the loader may hold.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

use crate::dtype::DType;
use crate::error::Result;
use crate::patch::{Patch, Voxels};
use crate::region::Region;

/// Buffers by type and length, which with those of patches under way take no more than a number of bytes.
#[derive(Debug)]
pub(super) struct Pool {
    buffers: Mutex<Buffers>,
    budget: usize,
}

#[derive(Debug, Default)]
struct Buffers {
    free: HashMap<(DType, usize), Vec<Voxels>>,
    /// Those of batches, by length.
    joined: HashMap<usize, Vec<BytesMut>>,
    bytes: usize,
    /// Bytes of patches under way.
    begun: usize,
}

impl Pool {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            buffers: Mutex::default(),
            budget: usize::try_from(budget).unwrap_or(usize::MAX),
        }
    }

    /// A patch that takes so many bytes is begun.
    pub(super) fn begin(&self, bytes: u64) {
        self.lock().begun += usize::try_from(bytes).unwrap_or(usize::MAX);
    }

    /// A patch that was begun is delivered, or given up.
    pub(super) fn end(&self, bytes: u64) {
        self.lock().begun -= usize::try_from(bytes).unwrap_or(usize::MAX);
    }

    /// A patch whose voxels have any values.
    pub(super) fn take(&self, region: Region, channels: u64, dtype: DType) -> Result<Patch> {
        let length = region.voxels().saturating_mul(channels);
        let found = usize::try_from(length).ok().and_then(|length| {
            let mut buffers = self.lock();
            let found = buffers.free.get_mut(&(dtype, length)).and_then(Vec::pop);
            if let Some(voxels) = &found {
                buffers.bytes -= voxels.bytes().len();
            } else {
                buffers.shrink_to(self.budget);
            }
            found
        });
        match found {
            Some(voxels) => Patch::new(region, channels, voxels),
            None => Patch::zeros(region, channels, dtype),
        }
    }

    /// Takes a buffer back, unless there are enough.
    pub(super) fn give(&self, patch: Patch) {
        let voxels = patch.into_voxels();
        let bytes = voxels.bytes().len();
        let mut buffers = self.lock();
        if bytes > 0 && buffers.begun + buffers.bytes + bytes <= self.budget {
            buffers.bytes += bytes;
            buffers
                .free
                .entry((voxels.dtype(), voxels.len()))
                .or_default()
                .push(voxels);
        }
    }

    /// A batch's buffer: `length` bytes of any values, aligned for any type.
    pub(super) fn take_bytes(&self, length: usize) -> BytesMut {
        let mut buffers = self.lock();
        if let Some(found) = buffers.joined.get_mut(&length).and_then(Vec::pop) {
            buffers.bytes -= found.len();
            return found;
        }
        buffers.shrink_to(self.budget);
        drop(buffers);
        aligned(length)
    }

    /// Takes a batch's buffer back, unless there are enough.
    pub(super) fn give_bytes(&self, buffer: BytesMut) {
        let bytes = buffer.len();
        let mut buffers = self.lock();
        if bytes > 0 && buffers.begun + buffers.bytes + bytes <= self.budget {
            buffers.bytes += bytes;
            buffers.joined.entry(bytes).or_default().push(buffer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffers {
    /// Lets buffers go until what is begun has room: those of other sizes than are wanted now.
    fn shrink_to(&mut self, budget: usize) {
        while self.begun + self.bytes > budget {
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

/// Zeros at an address that suits voxels of any type.
fn aligned(length: usize) -> BytesMut {
    const ALIGN: usize = align_of::<u64>();
    let mut buffer = BytesMut::zeroed(length + ALIGN);
    let before = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
    drop(buffer.split_to(before));
    buffer.truncate(length);
    buffer
}
