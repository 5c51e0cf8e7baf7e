//! The buffer of one contiguous batch.
//!
//! There is one buffer for each image, cut into one part per patch. Workers fill the parts in
//! parallel, and the parts are joined again without a copy.

use std::sync::{Arc, Mutex};

use bytes::BytesMut;

use super::pool::SamplePool;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::region::Shape;
use crate::training::subject::{Image, Subject};
use crate::training::sync::lock;

/// The common properties of one image's patches in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PatchSpec {
    pub(super) name: String,
    pub(super) channels: u64,
    pub(super) shape: Shape,
    pub(super) dtype: DType,
}

impl PatchSpec {
    /// Returns the properties of each image of a subject.
    pub(super) fn of(subject: &Subject, shape: Shape) -> Vec<Self> {
        let spec = |image: &Image| Self {
            name: image.name.clone(),
            channels: image.channel_count(),
            shape,
            dtype: image.dtype(),
        };
        subject.images().iter().map(spec).collect()
    }

    /// The bytes of one patch.
    pub(super) fn bytes(&self) -> usize {
        let voxels = crate::region::voxels(self.shape).and_then(|n| n.checked_mul(self.channels));
        let bytes = voxels.and_then(|n| n.checked_mul(self.dtype.size() as u64));
        bytes
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(usize::MAX)
    }
}

/// The buffer of one batch.
#[derive(Debug)]
pub(super) struct BatchBuffer {
    pub(super) count: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The properties of the first patch, once it was admitted.
    specs: Option<Vec<PatchSpec>>,
    /// The parts of each image that are not taken yet; empty until the first is taken.
    parts: Vec<Vec<Option<BytesMut>>>,
    begun: bool,
}

impl BatchBuffer {
    pub(super) fn new(count: u64) -> Self {
        Self {
            count: usize::try_from(count).expect("a batch is in memory"),
            state: Mutex::default(),
        }
    }

    /// Returns `true` if patch `n` is the last.
    pub(super) fn is_last(&self, n: usize) -> bool {
        n + 1 == self.count
    }

    /// Returns the bytes to reserve for a patch: the whole batch for the first patch and 0 for
    /// later ones. `None` if the patch differs from the first and cannot be part of the batch.
    pub(super) fn admit(&self, subject: &Subject, shape: Shape) -> Option<u64> {
        let specs = PatchSpec::of(subject, shape);
        let mut state = lock(&self.state);
        if let Some(first) = &state.specs {
            return (*first == specs).then_some(0);
        }
        let bytes = self.bytes_of(&specs);
        state.specs = Some(specs);
        Some(bytes)
    }

    fn bytes_of(&self, specs: &[PatchSpec]) -> u64 {
        let bytes = specs.iter().map(|spec| spec.bytes() as u64);
        bytes
            .fold(0, u64::saturating_add)
            .saturating_mul(self.count as u64)
    }

    /// Takes the part of patch `n` of image `image`, with unspecified contents. Each part can be
    /// taken once.
    pub(super) fn part(&self, image: usize, n: usize, pool: &SamplePool) -> Result<BytesMut> {
        let mut state = lock(&self.state);
        let State {
            specs,
            parts,
            begun,
        } = &mut *state;
        let specs = specs.as_deref().unwrap_or_default();
        if !*begun {
            *begun = true;
            pool.begin(self.bytes_of(specs));
            parts.resize_with(specs.len(), Vec::new);
        }
        let parts = &mut parts[image];
        if parts.is_empty() {
            let length = specs[image].bytes();
            let mut whole = pool.take_bytes(joined(length, self.count)?);
            parts.extend((0..self.count).map(|_| Some(whole.split_to(length))));
        }
        Ok(parts[n].take().expect("each part is taken once"))
    }

    /// Releases the batch after its last patch was delivered and returns its bytes.
    pub(super) fn end(&self, pool: &SamplePool) -> u64 {
        let mut state = lock(&self.state);
        let bytes = state.specs.as_ref().map_or(0, |specs| self.bytes_of(specs));
        if std::mem::take(&mut state.begun) {
            pool.end(bytes);
        }
        bytes
    }
}

/// Returns the bytes of `count` patches of `length` bytes.
pub(super) fn joined(length: usize, count: usize) -> Result<usize> {
    let bytes = length.checked_mul(count);
    let bytes = bytes.filter(|&bytes| isize::try_from(bytes).is_ok());
    bytes.ok_or_else(|| Error::OutOfMemory {
        what: format!("a batch of {count} patches"),
    })
}

/// The part of a batch's buffers that belongs to one patch.
#[derive(Debug)]
pub(super) struct BatchPart {
    pub(super) buffer: Arc<BatchBuffer>,
    /// The number of the patch in the batch.
    pub(super) n: usize,
    /// The parts, one for each image.
    pub(super) images: Vec<BytesMut>,
}
