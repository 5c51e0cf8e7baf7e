//! A pool of patches, whose memory is reused for patches to come.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dtype::DType;
use crate::error::Result;
use crate::patch::Patch;
use crate::region::Region;

/// A pool of patches whose memory is reused: fresh memory costs a page fault per page.
///
/// A run passes its pool to its model, which takes the buffers for its predictions from it and gives back the patches
/// that it has read. The run gives back the predictions once they are blended, so that it allocates no voxels once each
/// thread has predicted a batch. A model may do without: what it returns is used again in any case.
///
/// Clones share the same patches. The pool holds only patches that fit into the memory that the run's plan counts for
/// batches: those of the batches that are not in progress. The default pool holds none.
#[derive(Clone, Debug, Default)]
pub struct PatchPool(Arc<Mutex<PoolState>>);

#[derive(Debug, Default)]
struct PoolState {
    /// Spare patches, the one that was given first at the front.
    spare: Vec<Patch>,
    /// Their bytes.
    spare_bytes: u64,
    /// Bytes of a batch and its predictions.
    batch_bytes: u64,
    /// Batches that may be in progress at once.
    batches: u64,
    /// Batches in progress.
    active: u64,
}

/// A batch in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct ActiveBatch<'a>(&'a PatchPool);

impl PatchPool {
    /// Creates the pool of a run with up to `batches` batches in progress, each of which takes up to `batch_bytes`.
    pub(super) fn new(batches: usize, batch_bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(PoolState {
            batch_bytes,
            batches: batches as u64,
            ..PoolState::default()
        })))
    }

    /// Returns a patch with arbitrary voxels.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if it is new and memory is too short.
    pub fn take(&self, region: Region, channels: u64, dtype: DType) -> Result<Patch> {
        let bytes = region.voxels().saturating_mul(channels);
        let bytes = bytes.saturating_mul(dtype.size() as u64);
        let spare = self.lock().take(bytes, dtype);
        match spare {
            Some(spare) => Patch::new(region, channels, spare.into_voxels()),
            None => Patch::zeros(region, channels, dtype),
        }
    }

    /// Gives a patch to the pool, whose voxels are no longer needed.
    pub fn give(&self, patch: Patch) {
        let mut state = self.lock();
        state.spare_bytes += patch.bytes().len() as u64;
        state.spare.push(patch);
        let freed = state.trim();
        drop(state);
        drop(freed);
    }

    /// Returns a copy of a patch.
    pub(super) fn copy(&self, patch: &Patch) -> Result<Patch> {
        let mut copy = self.take(patch.region(), patch.channels(), patch.dtype())?;
        copy.bytes_mut().copy_from_slice(patch.bytes());
        Ok(copy)
    }

    /// Returns the patch with voxels of a type, see [`Patch::converted`].
    pub(super) fn convert(&self, patch: Patch, dtype: DType) -> Result<Patch> {
        if patch.dtype() == dtype {
            return Ok(patch);
        }
        let mut converted = self.take(patch.region(), patch.channels(), dtype)?;
        crate::dtype::convert(patch.dtype(), patch.bytes(), dtype, converted.bytes_mut());
        self.give(patch);
        Ok(converted)
    }

    /// Begins a batch. Memory that it may need is freed.
    pub(super) fn begin(&self) -> ActiveBatch<'_> {
        let mut state = self.lock();
        state.active += 1;
        let freed = state.trim();
        drop(state);
        drop(freed);
        ActiveBatch(self)
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolState {
    /// Takes the latest spare patch of this many bytes and this type.
    fn take(&mut self, bytes: u64, dtype: DType) -> Option<Patch> {
        let fits = |patch: &Patch| patch.bytes().len() as u64 == bytes && patch.dtype() == dtype;
        let at = self.spare.iter().rposition(fits)?;
        self.spare_bytes -= bytes;
        Some(self.spare.remove(at))
    }

    /// Takes out the oldest patches, until the others fit next to the batches in progress. The caller drops them
    /// without the lock: returning memory to the system takes time.
    fn trim(&mut self) -> Vec<Patch> {
        let idle = self.batches.saturating_sub(self.active);
        let room = self.batch_bytes.saturating_mul(idle);
        let mut count = 0;
        while count < self.spare.len() && self.spare_bytes > room {
            self.spare_bytes -= self.spare[count].bytes().len() as u64;
            count += 1;
        }
        self.spare.drain(..count).collect()
    }
}

impl Drop for ActiveBatch<'_> {
    fn drop(&mut self) {
        self.0.lock().active -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(patch: &Patch) -> *const u8 {
        patch.bytes().as_ptr()
    }

    #[test]
    fn patches_of_several_kinds_are_reused() {
        let pool = PatchPool::new(2, 3 * 64 * 4);
        let region = Region::whole([4; 3]);
        let _active = pool.begin();
        let image = pool.take(region, 1, DType::F32).unwrap();
        let classes = pool.take(region, 2, DType::F32).unwrap();
        let places = [at(&image), at(&classes)];
        pool.give(image);
        pool.give(classes);
        for start in 0..4 {
            let region = Region::new([start; 3], [4; 3]);
            let classes = pool.take(region, 2, DType::F32).unwrap();
            let image = pool.take(region, 1, DType::F32).unwrap();
            assert_eq!([at(&image), at(&classes)], places);
            assert_eq!((image.region(), classes.channels()), (region, 2));
            pool.give(image);
            pool.give(classes);
        }
        let other = pool.take(region, 1, DType::I32).unwrap();
        assert!(!places.contains(&at(&other)), "of a different type");
    }

    #[test]
    fn spare_patches_fit_next_to_the_batches_in_progress() {
        let pool = PatchPool::new(3, 100);
        let patch = || Patch::zeros(Region::whole([1, 1, 50]), 1, DType::U8).unwrap();
        let spare = || {
            let state = pool.lock();
            let bytes: usize = state.spare.iter().map(|patch| patch.bytes().len()).sum();
            assert_eq!(bytes as u64, state.spare_bytes);
            bytes
        };
        for _ in 0..9 {
            pool.give(patch());
        }
        assert_eq!(spare(), 300);
        let first = pool.begin();
        assert_eq!(spare(), 200);
        let second = pool.begin();
        assert_eq!(spare(), 100);
        drop(first);
        for _ in 0..9 {
            pool.give(patch());
        }
        assert_eq!(spare(), 200);
        drop(second);
        let none = PatchPool::default();
        none.give(patch());
        assert!(none.lock().spare.is_empty());
    }
}
