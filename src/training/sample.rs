//! Samples: what the loader delivers.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use bytes::BytesMut;

use super::batch::Parts;
use super::pool::Pool;
use super::subject::Subject;
use crate::error::Result;
use crate::patch::Patch;
use crate::region::Region;

/// The patches of all images of a subject at one place.
///
/// Each owns its memory. A sample that is dropped gives its buffers back to its loader, if
/// that is still there; [`into_patches`](Self::into_patches) keeps them.
#[derive(Debug)]
pub struct Sample {
    /// Its place in the epoch's sequence.
    pub place: u64,
    /// The subject's place in the list of subjects.
    pub subject_index: u64,
    /// Where it was cut; may hang over the subject's faces.
    pub region: Region,
    subject: Arc<Subject>,
    patches: Vec<Patch>,
    /// In place of the patches, until the loader delivers it.
    parts: Option<Parts>,
    pool: Weak<Pool>,
}

impl Sample {
    pub(super) fn new(
        place: u64,
        subject_index: u64,
        region: Region,
        subject: Arc<Subject>,
        patches: Vec<Patch>,
        pool: &Arc<Pool>,
    ) -> Self {
        Self {
            place,
            subject_index,
            region,
            subject,
            patches,
            parts: None,
            pool: Arc::downgrade(pool),
        }
    }

    /// The same with parts of a batch's buffers in place of patches.
    pub(super) fn with_parts(mut self, parts: Parts) -> Self {
        self.parts = Some(parts);
        self
    }

    pub(super) fn parts(&self) -> Option<&Parts> {
        self.parts.as_ref()
    }

    /// Takes image `n`'s part of the batch's buffer, if it has one.
    pub(super) fn take_part(&mut self, n: usize) -> Option<BytesMut> {
        let part = self.parts.as_mut()?.images.get_mut(n)?;
        Some(std::mem::take(part))
    }

    /// The voxels of image `n`, wherever they lie.
    pub(super) fn voxels(&self, n: usize) -> &[u8] {
        match &self.parts {
            Some(parts) => &parts.images[n],
            None => self.patches[n].bytes(),
        }
    }

    /// Has patches of its own in place of parts of a batch's buffers.
    pub(super) fn detach(&mut self, pool: &Pool) -> Result<()> {
        let Some(parts) = self.parts.take() else {
            return Ok(());
        };
        for (image, part) in self.subject.images().iter().zip(&parts.images) {
            let mut patch = pool.take(self.region, image.channel_count(), image.dtype())?;
            patch.bytes_mut().copy_from_slice(part);
            self.patches.push(patch);
        }
        Ok(())
    }

    /// The subject it was cut from.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The patches, in the order of the subject's images.
    #[must_use]
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// The patches, to be changed: nothing else sees them.
    #[must_use]
    pub fn patches_mut(&mut self) -> &mut [Patch] {
        &mut self.patches
    }

    /// The patch of the image of this name.
    #[must_use]
    pub fn patch(&self, name: &str) -> Option<&Patch> {
        let at = self
            .subject
            .images()
            .iter()
            .position(|image| image.name == name)?;
        self.patches.get(at)
    }

    /// The patches one by one: each goes back to the loader's buffers when it is dropped.
    #[must_use]
    pub fn into_pooled(mut self) -> Vec<PooledPatch> {
        let lent = |patch| PooledPatch {
            patch: Some(patch),
            pool: Weak::clone(&self.pool),
        };
        std::mem::take(&mut self.patches)
            .into_iter()
            .map(lent)
            .collect()
    }

    /// The patches, for keeps.
    #[must_use]
    pub fn into_patches(mut self) -> Vec<Patch> {
        std::mem::take(&mut self.patches)
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            self.patches.drain(..).for_each(|patch| pool.give(patch));
        }
    }
}

/// A patch that goes back to its loader's buffers when it is dropped, if the loader is still there.
#[derive(Debug)]
pub struct PooledPatch {
    /// `None` only while it is dropped.
    patch: Option<Patch>,
    pool: Weak<Pool>,
}

const HELD: &str = "a lent patch is held until it is dropped";

impl Deref for PooledPatch {
    type Target = Patch;

    fn deref(&self) -> &Patch {
        self.patch.as_ref().expect(HELD)
    }
}

impl DerefMut for PooledPatch {
    fn deref_mut(&mut self) -> &mut Patch {
        self.patch.as_mut().expect(HELD)
    }
}

impl Drop for PooledPatch {
    fn drop(&mut self) {
        if let (Some(patch), Some(pool)) = (self.patch.take(), self.pool.upgrade()) {
            pool.give(patch);
        }
    }
}
