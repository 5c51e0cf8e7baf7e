//! Samples: what the loader delivers.

use std::sync::{Arc, Weak};

use super::pool::Pool;
use super::subject::Subject;
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
            pool: Arc::downgrade(pool),
        }
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
