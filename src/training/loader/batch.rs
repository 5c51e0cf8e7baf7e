//! Contiguous batches: the patches of a step with one buffer per image, as networks take them.

use std::sync::{Arc, Weak};

use bytes::BytesMut;

use super::batch_buffer::{PatchSpec, joined};
use super::pool::SamplePool;
use super::sample::Sample;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::geometry::{Affine, SignedAxes};
use crate::patch::check_element;
use crate::region::Region;
use crate::training::cohort::SubjectSpec;
use crate::volume::ControlPoints;

/// A batch of patches, with one contiguous buffer per image.
#[derive(Debug)]
pub struct Batch {
    images: Vec<BatchImage>,
    regions: Vec<Region>,
    axes: Vec<SignedAxes>,
    affines: Vec<Affine>,
    displacements: Vec<ControlPoints>,
    subjects: Vec<u64>,
}

/// The patches of one image in one buffer, with axes b, c, z, y, x.
///
/// Dropping it returns the buffer to the loader's pool, if the loader still exists.
#[derive(Debug)]
pub struct BatchImage {
    spec: PatchSpec,
    count: usize,
    voxels: BytesMut,
    pool: Weak<SamplePool>,
}

impl Batch {
    /// The images in the subjects' order; none if the batch is empty.
    #[must_use]
    pub fn images(&self) -> &[BatchImage] {
        &self.images
    }

    /// Returns the image called `name`.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&BatchImage> {
        self.images.iter().find(|image| image.name() == name)
    }

    /// Returns the images.
    #[must_use]
    pub fn into_images(self) -> Vec<BatchImage> {
        self.images
    }

    /// The region of each patch, which may extend beyond the subject's faces.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The axes of each patch after [`Augmentation`](crate::training::Augmentation), from the volume's.
    #[must_use]
    pub fn axes(&self) -> &[SignedAxes] {
        &self.axes
    }

    /// The matrix of each patch from voxel indices to mm; see [`Sample::affine`](super::Sample::affine).
    #[must_use]
    pub fn affines(&self) -> &[Affine] {
        &self.affines
    }

    /// The displacements of each patch; none without random deformations. See
    /// [`Sample::displacement`](super::Sample::displacement).
    #[must_use]
    pub fn displacements(&self) -> &[ControlPoints] {
        &self.displacements
    }

    /// The index of each patch's subject in the list of subjects.
    #[must_use]
    pub fn subject_indices(&self) -> &[u64] {
        &self.subjects
    }

    /// Joins samples, without a copy if they are the complete parts of one buffer.
    pub(super) fn of(mut samples: Vec<Sample>, pool: &Arc<SamplePool>) -> Result<Self> {
        let specs = common_specs(&samples)?;
        let regions = samples.iter().map(|sample| sample.region).collect();
        let axes = samples.iter().map(Sample::axes).collect();
        let affines = samples.iter().map(Sample::affine).collect();
        let displacements = samples.iter().filter_map(Sample::displacement).collect();
        let subjects = samples.iter().map(|sample| sample.subject_index).collect();
        let count = samples.len();
        let complete = is_complete(&samples);
        let mut images = Vec::with_capacity(specs.len());
        for (n, spec) in specs.into_iter().enumerate() {
            let voxels = if complete {
                let mut parts = samples.iter_mut().filter_map(|sample| sample.take_part(n));
                let first = parts.next().unwrap_or_default();
                parts.fold(first, |mut whole, part| {
                    whole.unsplit(part);
                    whole
                })
            } else {
                let length = spec.bytes();
                let mut whole = pool.take_bytes(joined(length, count)?);
                let parts = whole.chunks_exact_mut(length.max(1));
                for (part, sample) in parts.zip(&samples) {
                    part.copy_from_slice(sample.voxels(n));
                }
                whole
            };
            images.push(BatchImage {
                spec,
                count,
                voxels,
                pool: Arc::downgrade(pool),
            });
        }
        Ok(Self {
            images,
            regions,
            axes,
            affines,
            displacements,
            subjects,
        })
    }
}

/// Returns `true` if the samples are all parts of one buffer, in order.
fn is_complete(samples: &[Sample]) -> bool {
    let parts = || samples.iter().filter_map(Sample::parts);
    parts().next().is_some_and(|first| {
        first.buffer.count == samples.len()
            && parts().count() == samples.len()
            && parts()
                .enumerate()
                .all(|(n, part)| part.n == n && Arc::ptr_eq(&part.buffer, &first.buffer))
    })
}

/// Returns the properties that all samples share, image by image.
fn common_specs(samples: &[Sample]) -> Result<Vec<PatchSpec>> {
    let Some((first, others)) = samples.split_first() else {
        return Ok(Vec::new());
    };
    let specs = |sample: &Sample| PatchSpec::of(sample.subject(), sample.region.shape);
    let expected = specs(first);
    let Some(other) = others.iter().find(|sample| specs(sample) != expected) else {
        return Ok(expected);
    };
    SubjectSpec::of(first.subject()).check(&SubjectSpec::of(other.subject()))?;
    // The images agree, but their order or the shapes of the patches differ.
    let described = |sample: &Sample| {
        let one = |spec: PatchSpec| format!("{} {:?}", spec.name, spec.shape);
        specs(sample)
            .into_iter()
            .map(one)
            .collect::<Vec<_>>()
            .join(", ")
    };
    Err(Error::InvalidArgument {
        argument: "batch of",
        value: format!("{} and {}", first.subject().name(), other.subject().name()),
        problem: format!(
            "the first has patches {}, the second {}",
            described(first),
            described(other)
        ),
    })
}

impl BatchImage {
    /// The name of the image.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Patches, channels, and voxels along z, y, x.
    #[must_use]
    pub const fn shape(&self) -> [u64; 5] {
        let [z, y, x] = self.spec.shape;
        [self.count as u64, self.spec.channels, z, y, x]
    }

    /// The type of the voxels.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.spec.dtype
    }

    /// The voxels as bytes in native order, with axes b, c, z, y, x.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.voxels
    }

    /// The voxels as mutable bytes, aligned for any type.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.voxels
    }

    /// Returns the voxels as a slice, with axes b, c, z, y, x.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDType`] if they have a different type; `bool` voxels are `u8`.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        check_element::<T>(self.spec.dtype)?;
        Ok(bytemuck::cast_slice(&self.voxels))
    }
}

impl Drop for BatchImage {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give_bytes(std::mem::take(&mut self.voxels));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::loader::batch_buffer::{BatchBuffer, BatchPart};
    use crate::training::spatial::Pose;
    use crate::training::{Image, Subject};
    use crate::volume::MemoryVolume;

    #[test]
    fn batch_parts_are_joined_without_a_copy() {
        let voxels = MemoryVolume::from_vec([4; 3], 1, vec![0_u16; 64]).unwrap();
        let image = Image::new("ct", Arc::new(voxels));
        let subject = Arc::new(Subject::builder("a").with_images([image]).build().unwrap());
        let pool = Arc::new(SamplePool::new(1 << 20));
        let buffer = Arc::new(BatchBuffer::new(3));
        assert_eq!(buffer.admit(&subject, [2; 3]), Some(3 * 16));
        assert_eq!(buffer.admit(&subject, [2; 3]), Some(0));
        assert_eq!(
            buffer.admit(&subject, [2, 2, 1]),
            None,
            "it differs from the first"
        );
        let mut places = Vec::new();
        let mut sample = |n: u8| {
            let mut part = buffer.part(0, n.into(), &pool).unwrap();
            part.fill(n);
            places.push((n, part.as_ptr()));
            let subject = Arc::clone(&subject);
            let pose = Pose::plain(Region::whole([2; 3]));
            Sample::new(n.into(), 0, &pose, subject, Vec::new(), &pool).with_parts(BatchPart {
                buffer: Arc::clone(&buffer),
                n: n.into(),
                images: vec![part],
            })
        };
        let (second, first, third) = (sample(1), sample(0), sample(2));
        let batch = Batch::of(vec![first, second, third], &pool).unwrap();
        let whole = batch.images()[0].bytes();
        assert_eq!(whole, [[0; 16], [1; 16], [2; 16]].concat());
        for (n, place) in places {
            assert_eq!(
                place,
                whole[16 * usize::from(n)..].as_ptr(),
                "it is not a copy"
            );
        }
        assert_eq!(whole.as_ptr().align_offset(8), 0);
        assert_eq!(buffer.end(&pool), 48);
        let before = whole.as_ptr();
        drop(batch);
        assert_eq!(pool.take_bytes(48).as_ptr(), before, "the buffer is reused");
    }
}
