//! Buffers of delivered patches, kept for the next ones: fresh memory costs a page fault a page.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::dtype::DType;
use crate::error::Result;
use crate::patch::{Patch, Voxels};
use crate::region::Region;

/// Buffers by type and length, up to a number of bytes.
#[derive(Debug)]
pub(super) struct Pool {
    buffers: Mutex<Buffers>,
    budget: usize,
}

#[derive(Debug, Default)]
struct Buffers {
    free: HashMap<(DType, usize), Vec<Voxels>>,
    bytes: usize,
}

impl Pool {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            buffers: Mutex::default(),
            budget: usize::try_from(budget).unwrap_or(usize::MAX),
        }
    }

    /// A patch whose voxels have any values.
    pub(super) fn take(&self, region: Region, channels: u64, dtype: DType) -> Result<Patch> {
        let length = region.voxels().saturating_mul(channels);
        let found = usize::try_from(length).ok().and_then(|length| {
            let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
            let voxels = buffers.free.get_mut(&(dtype, length))?.pop()?;
            buffers.bytes -= voxels.bytes().len();
            Some(voxels)
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
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > 0 && buffers.bytes + bytes <= self.budget {
            buffers.bytes += bytes;
            buffers
                .free
                .entry((voxels.dtype(), voxels.len()))
                .or_default()
                .push(voxels);
        }
    }
}
