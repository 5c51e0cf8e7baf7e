//! Samples: the patches of all images of a subject at one place.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use bytes::BytesMut;

use super::batch_buffer::BatchPart;
use super::pool::SamplePool;
use crate::error::Result;
use crate::geometry::{Affine, Geometry, SignedAxes};
use crate::patch::Patch;
use crate::region::Region;
use crate::training::spatial::Pose;
use crate::training::subject::Subject;
use crate::volume::ControlPoints;

/// The patches of all images of a subject at one place.
///
/// Patches own their memory. Dropping a sample returns its buffers to the loader's pool, if the
/// loader still exists; [`into_patches`](Self::into_patches) keeps them.
#[derive(Debug)]
pub struct Sample {
    /// The place in the epoch's sequence.
    pub place: u64,
    /// The index of the subject in the list of subjects.
    pub subject_index: u64,
    /// The region of the patches before a random map, which may extend beyond the subject's faces.
    pub region: Region,
    pose: Pose,
    subject: Arc<Subject>,
    patches: Vec<Patch>,
    /// Parts of a contiguous batch, instead of patches, until the sample is delivered.
    parts: Option<BatchPart>,
    pool: Weak<SamplePool>,
}

impl Sample {
    pub(super) fn new(
        place: u64,
        subject_index: u64,
        pose: &Pose,
        subject: Arc<Subject>,
        patches: Vec<Patch>,
        pool: &Arc<SamplePool>,
    ) -> Self {
        Self {
            place,
            subject_index,
            region: pose.region,
            pose: *pose,
            subject,
            patches,
            parts: None,
            pool: Arc::downgrade(pool),
        }
    }

    /// Sets parts of a contiguous batch instead of patches.
    pub(super) fn with_parts(mut self, parts: BatchPart) -> Self {
        self.parts = Some(parts);
        self
    }

    pub(super) fn parts(&self) -> Option<&BatchPart> {
        self.parts.as_ref()
    }

    /// Takes the part of the batch's buffer of image `n`, if there is one.
    pub(super) fn take_part(&mut self, n: usize) -> Option<BytesMut> {
        let part = self.parts.as_mut()?.images.get_mut(n)?;
        Some(std::mem::take(part))
    }

    /// The voxels of image `n`, in a patch or in a batch.
    pub(super) fn voxels(&self, n: usize) -> &[u8] {
        match &self.parts {
            Some(parts) => &parts.images[n],
            None => self.patches[n].bytes(),
        }
    }

    /// Copies parts of a contiguous batch to patches that own their memory.
    pub(super) fn detach(&mut self, pool: &SamplePool) -> Result<()> {
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

    /// The axes of the patches after [`Augmentation`](crate::training::Augmentation), from the volume's.
    #[must_use]
    pub const fn axes(&self) -> SignedAxes {
        self.pose.axes
    }

    /// Returns the matrix from voxel indices (x, y, z, 1) of the patches, as they are delivered, to mm in RAS+: the
    /// geometry of the patches. It includes the random affine map, flips, and new orders of the axes.
    ///
    /// With a random deformation, a voxel shows the position of this matrix at the voxel's index plus its
    /// [`displacement`](Self::displacement).
    #[must_use]
    pub fn affine(&self) -> Affine {
        self.geometry().affine
    }

    /// Returns the spacing and [`affine`](Self::affine) of the patches.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.pose.geometry(self.subject.geometry())
    }

    /// Returns the displacements of a random deformation, in voxels along the patch's axes: zeros if this patch is not
    /// deformed, `None` if the loader has no [`RandomElastic`](crate::training::RandomElastic).
    #[must_use]
    pub fn displacement(&self) -> Option<ControlPoints> {
        self.pose.displacement(self.subject.geometry())
    }

    /// The subject.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The patches, in the order of the subject's images.
    #[must_use]
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// The patches, mutable; they are not shared.
    #[must_use]
    pub fn patches_mut(&mut self) -> &mut [Patch] {
        &mut self.patches
    }

    /// Returns the patch of the image called `name`.
    #[must_use]
    pub fn patch(&self, name: &str) -> Option<&Patch> {
        let at = self
            .subject
            .images()
            .iter()
            .position(|image| image.name == name)?;
        self.patches.get(at)
    }

    /// Returns the patches. Dropping one returns its buffer to the loader's pool.
    #[must_use]
    pub fn into_pooled(mut self) -> Vec<PooledPatch> {
        let pooled = |patch| PooledPatch {
            patch: Some(patch),
            pool: Weak::clone(&self.pool),
        };
        std::mem::take(&mut self.patches)
            .into_iter()
            .map(pooled)
            .collect()
    }

    /// Returns the patches, which are then not returned to the pool.
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

/// A patch whose buffer returns to the loader's pool on drop.
#[derive(Debug)]
pub struct PooledPatch {
    /// `None` only during the drop.
    patch: Option<Patch>,
    pool: Weak<SamplePool>,
}

const HELD: &str = "a pooled patch is held until it is dropped";

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
