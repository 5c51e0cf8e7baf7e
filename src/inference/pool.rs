//! A pool of patches, whose memory is reused for patches to come.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dtype::DType;
use crate::error::Result;
use crate::patch::Patch;
use crate::region::Region;

/// A pool of patches whose memory is reused: fresh memory costs a page fault per page.
///
/// A run passes a pool to its model, which takes the buffers for its predictions from it and gives back the patches
/// that it has read. The run gives back the predictions once they are blended, so that it allocates no voxels once each
/// thread has predicted a few batches. A model may do without: what it returns is used again in any case.
///
/// Clones share the same patches. The pool holds only patches that fit into the memory that the run's plan counts for
/// batches, next to what the batches in progress hold: what they took and did not give back. The default pool holds
/// none.
#[derive(Clone, Debug, Default)]
pub struct PatchPool {
    state: Arc<Mutex<PoolState>>,
    /// The batch that this clone serves.
    batch: Option<u64>,
}

#[derive(Debug, Default)]
struct PoolState {
    /// Spare patches, the one that was given first at the front.
    spare: Vec<Patch>,
    /// Their bytes.
    spare_bytes: u64,
    /// Bytes of a batch and its predictions.
    batch_bytes: u64,
    /// Bytes of all batches that may be in progress at once.
    room: u64,
    /// Bytes that each batch in progress holds.
    held: HashMap<u64, u64>,
    /// The number of the next batch.
    next: u64,
}

/// A batch in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct ActiveBatch {
    pool: PatchPool,
}

impl PatchPool {
    /// Creates the pool of a run with up to `batches` batches in progress, each of which takes up to `batch_bytes`.
    pub(super) fn new(batches: usize, batch_bytes: u64) -> Self {
        let state = PoolState {
            batch_bytes,
            room: batch_bytes.saturating_mul(batches as u64),
            ..PoolState::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            batch: None,
        }
    }

    /// Returns a patch with arbitrary voxels.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if it is new and memory is too short.
    pub fn take(&self, region: Region, channels: u64, dtype: DType) -> Result<Patch> {
        let bytes = region.voxels().saturating_mul(channels);
        let bytes = bytes.saturating_mul(dtype.size() as u64);
        let spare = self.change(|state| {
            state.hold(self.batch, |held| held.saturating_add(bytes));
            state.take(bytes, dtype)
        });
        match spare {
            Some(spare) => Patch::new(region, channels, spare.into_voxels()),
            None => Patch::zeros(region, channels, dtype),
        }
    }

    /// Gives a patch to the pool, whose voxels are no longer needed.
    pub fn give(&self, patch: Patch) {
        let bytes = patch.bytes().len() as u64;
        self.change(|state| {
            state.hold(self.batch, |held| held.saturating_sub(bytes));
            state.spare_bytes += bytes;
            state.spare.push(patch);
        });
    }

    /// Frees memory for a batch whose predictions are not taken from the pool.
    ///
    /// A model calls it before it allocates them, unless it leaves [`predict_pooled`](super::Model::predict_pooled) as it
    /// is.
    pub fn make_room(&self) {
        self.change(|state| {
            let all = state.batch_bytes;
            state.hold(self.batch, |held| all.max(held));
        });
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

    /// Begins a batch.
    pub(super) fn begin(&self) -> ActiveBatch {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.held.insert(number, 0);
        ActiveBatch {
            pool: Self {
                state: Arc::clone(&self.state),
                batch: Some(number),
            },
        }
    }

    /// Changes the state, and frees the spare patches that no longer fit.
    fn change<T>(&self, change: impl FnOnce(&mut PoolState) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let freed = state.trim();
        // Without the lock: returning memory to the system takes time.
        drop(state);
        drop(freed);
        result
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveBatch {
    /// Returns the pool for the work on the batch.
    pub(super) const fn pool(&self) -> &PatchPool {
        &self.pool
    }

    /// Notes what the batch holds, in bytes.
    pub(super) fn holds(&self, bytes: u64) {
        self.pool.lock().hold(self.pool.batch, |_| bytes);
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

    /// Changes the bytes that a batch holds. One that has ended holds none: what is left of it is counted elsewhere.
    fn hold(&mut self, batch: Option<u64>, change: impl FnOnce(u64) -> u64) {
        if let Some(held) = batch.and_then(|batch| self.held.get_mut(&batch)) {
            *held = change(*held);
        }
    }

    /// Takes out the oldest patches, until the others fit next to what the batches in progress hold.
    fn trim(&mut self) -> Vec<Patch> {
        let room = self.room.saturating_sub(self.held.values().sum());
        let mut count = 0;
        while count < self.spare.len() && self.spare_bytes > room {
            self.spare_bytes -= self.spare[count].bytes().len() as u64;
            count += 1;
        }
        self.spare.drain(..count).collect()
    }
}

impl Drop for ActiveBatch {
    fn drop(&mut self) {
        if let Some(batch) = self.pool.batch {
            self.pool.lock().held.remove(&batch);
        }
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
    fn spare_patches_fit_next_to_what_the_batches_in_progress_hold() {
        let pool = PatchPool::new(3, 100);
        let region = Region::whole([1, 1, 50]);
        let patch = || Patch::zeros(region, 1, DType::U8).unwrap();
        let spare = || {
            let state = pool.lock();
            let bytes: usize = state.spare.iter().map(|patch| patch.bytes().len()).sum();
            assert_eq!(bytes as u64, state.spare_bytes);
            bytes
        };
        let fill = || (0..9).for_each(|_| pool.give(patch()));
        fill();
        assert_eq!(spare(), 300);
        let first = pool.begin();
        assert_eq!(spare(), 300, "it holds nothing yet");
        let (input, prediction) = (
            first.pool().take(region, 1, DType::U8).unwrap(),
            first.pool().take(region, 1, DType::U8).unwrap(),
        );
        assert_eq!(spare(), 200);
        fill();
        assert_eq!(spare(), 200);
        first.pool().give(input);
        assert_eq!(spare(), 250);
        let second = pool.begin();
        second.pool().make_room();
        assert_eq!(spare(), 150);
        first.pool().make_room();
        assert_eq!(spare(), 100);
        first.holds(50);
        fill();
        assert_eq!(spare(), 150);
        drop(first);
        pool.give(prediction);
        assert_eq!(spare(), 200);
        let late = second.pool().clone();
        drop(second);
        fill();
        late.give(patch());
        assert_eq!(spare(), 300, "a batch that has ended holds nothing");
        let none = PatchPool::default();
        none.give(patch());
        assert!(none.lock().spare.is_empty());
    }

    /// Two batches in turn, and in lockstep, allocate nothing once each has had its buffers.
    #[test]
    fn batches_at_once_reuse_each_others_buffers() {
        let region = Region::whole([4; 3]);
        let pool = PatchPool::new(3, 64 + 64 * 32 * 4);
        let mut places = std::collections::HashSet::new();
        for _ in 0..20 {
            let batches = [pool.begin(), pool.begin()];
            let inputs = batches.each_ref().map(|batch| {
                let input = batch.pool().take(region, 1, DType::U8).unwrap();
                (batch, input)
            });
            let outputs = inputs.map(|(batch, input)| {
                let output = batch.pool().take(region, 32, DType::F32).unwrap();
                places.extend([at(&input), at(&output)]);
                batch.pool().give(input);
                batch.holds(output.bytes().len() as u64);
                (batch, output)
            });
            for (batch, output) in outputs {
                batch.holds(0);
                pool.give(output);
            }
        }
        assert!(places.len() <= 4, "{}", places.len());
    }
}
