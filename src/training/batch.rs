//! Batches: the patches of a step in one buffer for each image, as a network takes them.
//!
//! The buffer is cut into a part for each patch; workers fill the parts side by side, and they are joined
//! again without a copy.

use std::sync::{Arc, Mutex, Weak};

use bytes::BytesMut;

use super::cohort::Kind;
use super::pool::Pool;
use super::sample::Sample;
use super::slot::lock;
use super::subject::Subject;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::patch::check_element;
use crate::region::{Region, Shape};

/// What an image's patches of a batch have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Like {
    name: String,
    channels: u64,
    shape: Shape,
    dtype: DType,
}

impl Like {
    fn of(subject: &Subject, shape: Shape) -> Vec<Self> {
        let like = |image: &super::subject::Image| Self {
            name: image.name.clone(),
            channels: image.channel_count(),
            shape,
            dtype: image.dtype(),
        };
        subject.images().iter().map(like).collect()
    }

    fn bytes(&self) -> usize {
        let voxels = crate::region::voxels(self.shape).and_then(|n| n.checked_mul(self.channels));
        let bytes = voxels.and_then(|n| n.checked_mul(self.dtype.size() as u64));
        bytes
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(usize::MAX)
    }
}

/// Where the patches of one batch are put together.
#[derive(Debug)]
pub(super) struct Together {
    count: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the first patch is like; none before there is one.
    like: Option<Vec<Like>>,
    /// For each image the parts that nobody has taken; empty before the first is.
    parts: Vec<Vec<Option<BytesMut>>>,
    begun: bool,
}

impl Together {
    pub(super) fn new(count: u64) -> Self {
        Self {
            count: usize::try_from(count).expect("a batch is in memory"),
            state: Mutex::default(),
        }
    }

    /// Whether patch `n` is the last.
    pub(super) fn is_last(&self, n: usize) -> bool {
        n + 1 == self.count
    }

    /// Bytes that the batch takes from here on, if a patch can be part of it: all of them for the first patch, none
    /// for others, and `None` for one that is unlike the first.
    pub(super) fn admit(&self, subject: &Subject, shape: Shape) -> Option<u64> {
        let like = Like::of(subject, shape);
        let mut state = lock(&self.state);
        if let Some(first) = &state.like {
            return (*first == like).then_some(0);
        }
        let bytes = self.bytes_of(&like);
        state.like = Some(like);
        Some(bytes)
    }

    fn bytes_of(&self, like: &[Like]) -> u64 {
        let bytes = like.iter().map(|like| like.bytes() as u64);
        bytes
            .fold(0, u64::saturating_add)
            .saturating_mul(self.count as u64)
    }

    /// The part of patch `n` of image `image`, with anything in it. It is given out once.
    pub(super) fn part(&self, image: usize, n: usize, pool: &Pool) -> Result<BytesMut> {
        let mut state = lock(&self.state);
        let State { like, parts, begun } = &mut *state;
        let like = like.as_deref().unwrap_or_default();
        if !*begun {
            *begun = true;
            pool.begin(self.bytes_of(like));
            parts.resize_with(like.len(), Vec::new);
        }
        let parts = &mut parts[image];
        if parts.is_empty() {
            let length = like[image].bytes();
            let mut whole = pool.take_bytes(joined(length, self.count)?);
            parts.extend((0..self.count).map(|_| Some(whole.split_to(length))));
        }
        Ok(parts[n].take().expect("each part is taken once"))
    }

    /// That all patches of the batch have been delivered: the bytes that it took.
    pub(super) fn end(&self, pool: &Pool) -> u64 {
        let mut state = lock(&self.state);
        let bytes = state.like.as_ref().map_or(0, |like| self.bytes_of(like));
        if std::mem::take(&mut state.begun) {
            pool.end(bytes);
        }
        bytes
    }
}

fn joined(length: usize, count: usize) -> Result<usize> {
    let bytes = length.checked_mul(count);
    let bytes = bytes.filter(|&bytes| isize::try_from(bytes).is_ok());
    bytes.ok_or_else(|| Error::OutOfMemory {
        what: format!("a batch of {count} patches"),
    })
}

/// A patch's parts of its batch's buffers.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) together: Arc<Together>,
    /// Which patch of the batch it is.
    pub(super) n: usize,
    /// One part for each image.
    pub(super) images: Vec<BytesMut>,
}

/// The patches of a batch, image by image.
#[derive(Debug)]
pub struct Batch {
    images: Vec<BatchImage>,
    regions: Vec<Region>,
    subjects: Vec<u64>,
}

/// The patches of one image: voxels with axes (b, c, z, y, x) in one buffer.
///
/// The buffer goes back to the loader when this is dropped, if the loader is still there.
#[derive(Debug)]
pub struct BatchImage {
    like: Like,
    count: usize,
    voxels: BytesMut,
    pool: Weak<Pool>,
}

impl Batch {
    /// The images, in the order of the subjects' own; none if the batch is empty.
    #[must_use]
    pub fn images(&self) -> &[BatchImage] {
        &self.images
    }

    /// The images, for keeps.
    #[must_use]
    pub fn into_images(self) -> Vec<BatchImage> {
        self.images
    }

    /// Where each patch was cut; may hang over the subject's faces.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Each patch's subject, by its place in the list of subjects.
    #[must_use]
    pub fn subject_indices(&self) -> &[u64] {
        &self.subjects
    }

    /// Joins samples, without a copy if they are all of one batch.
    pub(super) fn of(mut samples: Vec<Sample>, pool: &Arc<Pool>) -> Result<Self> {
        let like = alike(&samples)?;
        let regions = samples.iter().map(|sample| sample.region).collect();
        let subjects = samples.iter().map(|sample| sample.subject_index).collect();
        let count = samples.len();
        let complete = is_complete(&samples);
        let mut images = Vec::with_capacity(like.len());
        for (n, like) in like.into_iter().enumerate() {
            let voxels = if complete {
                let mut parts = samples.iter_mut().filter_map(|sample| sample.take_part(n));
                let first = parts.next().unwrap_or_default();
                parts.fold(first, |mut whole, part| {
                    whole.unsplit(part);
                    whole
                })
            } else {
                let length = like.bytes();
                let mut whole = pool.take_bytes(joined(length, count)?);
                let parts = whole.chunks_exact_mut(length.max(1));
                for (part, sample) in parts.zip(&samples) {
                    part.copy_from_slice(sample.voxels(n));
                }
                whole
            };
            images.push(BatchImage {
                like,
                count,
                voxels,
                pool: Arc::downgrade(pool),
            });
        }
        Ok(Self {
            images,
            regions,
            subjects,
        })
    }
}

/// Whether samples are all the parts of one batch in their order.
fn is_complete(samples: &[Sample]) -> bool {
    let parts = || samples.iter().filter_map(Sample::parts);
    parts().next().is_some_and(|first| {
        first.together.count == samples.len()
            && parts().count() == samples.len()
            && parts()
                .enumerate()
                .all(|(n, part)| part.n == n && Arc::ptr_eq(&part.together, &first.together))
    })
}

/// What all samples are like, image by image.
fn alike(samples: &[Sample]) -> Result<Vec<Like>> {
    let Some((first, others)) = samples.split_first() else {
        return Ok(Vec::new());
    };
    let like = |sample: &Sample| Like::of(sample.subject(), sample.region.shape);
    let expected = like(first);
    let Some(other) = others.iter().find(|sample| like(sample) != expected) else {
        return Ok(expected);
    };
    Kind::of(first.subject()).check(&Kind::of(other.subject()))?;
    // The images are alike, but their order or the shapes of the patches are not.
    let described = |sample: &Sample| {
        let one = |like: Like| format!("{} {:?}", like.name, like.shape);
        like(sample)
            .into_iter()
            .map(one)
            .collect::<Vec<_>>()
            .join(", ")
    };
    Err(Error::InvalidArgument {
        argument: "batch of",
        value: format!("{} and {}", first.subject().name(), other.subject().name()),
        problem: format!(
            "the first gives {}, the second {}",
            described(first),
            described(other)
        ),
    })
}

impl BatchImage {
    /// The image's name in its subjects.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.like.name
    }

    /// How many patches there are, and channels and voxels along z, y, x of each: (b, c, z, y, x).
    #[must_use]
    pub const fn shape(&self) -> [u64; 5] {
        let [z, y, x] = self.like.shape;
        [self.count as u64, self.like.channels, z, y, x]
    }

    /// The voxels' type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.like.dtype
    }

    /// The voxels as bytes in native order, (b, c, z, y, x).
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.voxels
    }

    /// The voxels as bytes, to be written; they are aligned for any type.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.voxels
    }

    /// The voxels as a slice, (b, c, z, y, x).
    ///
    /// # Errors
    ///
    /// [`Error::WrongDType`] if they have another type; `bool` voxels are `u8`.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        check_element::<T>(self.like.dtype)?;
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
    use crate::training::{Image, TOLERANCE};
    use crate::volume::MemoryVolume;

    #[test]
    fn parts_are_joined_where_they_lie() {
        let voxels = MemoryVolume::from_vec([4; 3], 1, vec![0_u16; 64]).unwrap();
        let image = Image::new("ct", Arc::new(voxels));
        let subject = Arc::new(Subject::new("a", vec![image], TOLERANCE).unwrap());
        let pool = Arc::new(Pool::new(1 << 20));
        let together = Arc::new(Together::new(3));
        assert_eq!(together.admit(&subject, [2; 3]), Some(3 * 16));
        assert_eq!(together.admit(&subject, [2; 3]), Some(0));
        assert_eq!(
            together.admit(&subject, [2, 2, 1]),
            None,
            "unlike the first"
        );
        let mut places = Vec::new();
        let mut sample = |n: u8| {
            let mut part = together.part(0, n.into(), &pool).unwrap();
            part.fill(n);
            places.push((n, part.as_ptr()));
            let subject = Arc::clone(&subject);
            let region = Region::whole([2; 3]);
            Sample::new(n.into(), 0, region, subject, Vec::new(), &pool).with_parts(Parts {
                together: Arc::clone(&together),
                n: n.into(),
                images: vec![part],
            })
        };
        let (second, first, third) = (sample(1), sample(0), sample(2));
        let batch = Batch::of(vec![first, second, third], &pool).unwrap();
        let whole = batch.images()[0].bytes();
        assert_eq!(whole, [[0; 16], [1; 16], [2; 16]].concat());
        for (n, place) in places {
            assert_eq!(place, whole[16 * usize::from(n)..].as_ptr(), "not copied");
        }
        assert_eq!(whole.as_ptr().align_offset(8), 0);
        assert_eq!(together.end(&pool), 48);
        let before = whole.as_ptr();
        drop(batch);
        assert_eq!(pool.take_bytes(48).as_ptr(), before, "used again");
    }
}
