//! Assemblies: drawn patches whose buffers are filled piece by piece, once they are admitted.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

use bytes::BytesMut;

use super::batch_buffer::BatchBuffer;
use super::feed::{Drawn, Failed, OpenSubject};
use super::sample::Sample;
use crate::error::{Error, Result};
use crate::patch::Patch;
use crate::region::{Region, chunk_region};
use crate::training::spatial::Pose;
use crate::training::subject::Image;
use crate::volume::{ChunkShape, Warp, intersecting};

/// A chunk of one image of a subject, or a box of planes: subject, image, chunk index.
pub(super) type ChunkKey = (u64, usize, ChunkShape);

/// A drawn patch; its buffers are filled once it is admitted.
pub(super) struct Assembly {
    pub(super) source: Result<PatchSource, Failed>,
    pub(super) place: u64,
    /// The number of patches that this loader delivers before it.
    pub(super) order: u64,
    /// The bytes of the patch itself.
    pub(super) bytes: u64,
    /// The bytes of the contiguous batch that begins with this patch.
    pub(super) batch_bytes: u64,
    /// The contiguous batch, and the number of the patch in it.
    pub(super) part: Option<(Arc<BatchBuffer>, usize)>,
    /// The contiguous batch that ends with this patch.
    pub(super) ends: Option<Arc<BatchBuffer>>,
    /// The number of pieces that are not copied yet, once it is admitted.
    pub(super) missing: AtomicUsize,
    pub(super) buffers: Vec<Mutex<Option<Buffer>>>,
    /// `true` once the patch has taken a buffer.
    pub(super) begun: AtomicBool,
    /// The first error.
    pub(super) error: Mutex<Option<Error>>,
    /// The result, once the patch is complete.
    pub(super) done: Mutex<Option<Result<Sample, Failed>>>,
}

/// The subject of a patch, and what the patch shows of it.
pub(super) struct PatchSource {
    pub(super) opened: Arc<OpenSubject>,
    pub(super) pose: Pose,
    /// The region that is read of the source of each image: all that the patch needs of it. The rest is padding.
    pub(super) sources: Vec<Region>,
}

/// The buffer of one image's voxels.
pub(super) enum Buffer {
    /// A patch of the volume's voxels in the region that is read.
    Patch(Patch),
    /// A part of the contiguous batch, if it takes the volume's voxels without a cast or padding.
    Part(BytesMut),
}

impl Buffer {
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Patch(patch) => patch.bytes_mut(),
            Self::Part(part) => part,
        }
    }
}

/// A unit of reading for one patch.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    Chunk(ChunkKey),
    /// The part of a box of planes of a flat file.
    Planes(ChunkKey),
    /// The whole region of an image that has no chunks, or whose chunks are read by parts.
    Whole(usize),
}

impl PatchSource {
    fn new(opened: Arc<OpenSubject>, pose: &Pose) -> Self {
        let warp = pose.warp(opened.subject.geometry());
        let images = opened.subject.images().iter();
        let sources = images
            .map(|image| image.needed(pose.region, warp.as_ref()))
            .collect();
        Self {
            opened,
            pose: *pose,
            sources,
        }
    }

    /// Returns the map from the voxels of the patch to positions in the images, if there is one.
    pub(super) fn warp(&self) -> Option<Warp> {
        self.pose.warp(self.opened.subject.geometry())
    }

    pub(super) fn images(&self) -> &[Image] {
        self.opened.subject.images()
    }

    /// Returns `true` if the patch of image `n` needs neither a map, a cast nor padding.
    pub(super) fn is_as_read(&self, n: usize) -> bool {
        let image = &self.images()[n];
        let is_plain = self.pose.map.is_none() && image.volume.as_resampled().is_none();
        is_plain && self.sources[n] == self.pose.region && image.keeps_type()
    }

    /// The bytes that are read, and those that are interpolated, before a cast or padding.
    fn unconverted_bytes(&self) -> u64 {
        let images = self.images().iter().zip(&self.sources).enumerate();
        let read = images.filter(|(n, _)| !self.is_as_read(*n));
        let bytes = read.map(|(_, (image, source))| {
            let is_mapped = self.pose.map.is_some() && !image.keeps_type();
            let is_between = is_mapped || image.volume.as_resampled().is_some();
            let between = if is_between {
                self.pose.region.voxels()
            } else {
                0
            };
            image.read_bytes(source.voxels().saturating_add(between))
        });
        bytes.fold(0, u64::saturating_add)
    }

    /// Returns the bytes of the part of a chunk that the patch needs, and of the whole decoded chunk.
    pub(super) fn bytes_of(&self, image: usize, [c, at @ ..]: ChunkShape) -> (u64, u64) {
        let (source, image) = (self.sources[image], &self.images()[image]);
        let layout = image.source().layout();
        let [count, shape @ ..] = layout.read_chunk.unwrap_or([1; 4]);
        let (first, end) = (
            c.saturating_mul(count),
            c.saturating_add(1).saturating_mul(count),
        );
        let channels = image.channels.end.min(end) - image.channels.start.max(first);
        let region = chunk_region(at, shape);
        let part = source.intersection(&region).map_or(0, |part| part.voxels());
        let bytes = |voxels: u64, channels: u64| {
            voxels
                .saturating_mul(channels)
                .saturating_mul(layout.dtype.size() as u64)
        };
        (bytes(part, channels), bytes(region.voxels(), count))
    }

    /// Returns what is read for the patch, image by image.
    fn pieces(&self) -> impl Iterator<Item = Piece> {
        let images = self.images().iter().zip(&self.sources).enumerate();
        let images = images.filter(|(_, (_, source))| !source.is_empty());
        images.flat_map(move |(n, (image, source))| {
            let volume = image.source();
            let chunk = volume.layout().read_chunk;
            let size = if volume.reads_parts() {
                None
            } else {
                chunk.or_else(|| volume.read_granularity())
            };
            let parts = size.map(|size| intersecting(size, &image.channels, *source));
            let whole = parts.is_none().then_some(Piece::Whole(n));
            let parts = parts.into_iter().flatten().map(move |at| {
                let key = (self.opened.index, n, at);
                if chunk.is_some() {
                    Piece::Chunk(key)
                } else {
                    Piece::Planes(key)
                }
            });
            whole.into_iter().chain(parts)
        })
    }
}

impl Assembly {
    /// Returns `true` if reads of an image wait for the network.
    pub(super) fn is_remote(&self, image: usize) -> bool {
        let source = self.source.as_ref();
        source.is_ok_and(|source| source.images()[image].source().layout().remote)
    }

    pub(super) fn new(drawn: Drawn, order: u64) -> Self {
        let Drawn {
            place,
            batch,
            outcome,
        } = drawn;
        let ends = batch.as_ref().filter(|(batch, n)| batch.is_last(*n));
        let mut assembly = Self {
            source: Err(Failed::Error(Arc::new(Error::Interrupted))),
            place,
            order,
            bytes: 0,
            batch_bytes: 0,
            ends: ends.map(|(batch, _)| Arc::clone(batch)),
            part: None,
            missing: AtomicUsize::new(0),
            buffers: Vec::new(),
            begun: AtomicBool::new(false),
            error: Mutex::default(),
            done: Mutex::default(),
        };
        assembly.source = outcome.map(|(opened, pose)| {
            let source = PatchSource::new(opened, &pose);
            let (subject, shape) = (&source.opened.subject, pose.region.shape);
            if let Some((batch, n)) = batch
                && let Some(bytes) = batch.admit(subject, shape)
            {
                assembly.batch_bytes = bytes;
                assembly.part = Some((batch, n));
            } else {
                assembly.bytes = subject.sample_bytes(shape);
            }
            assembly.bytes = assembly.bytes.saturating_add(source.unconverted_bytes());
            assembly.buffers = source.sources.iter().map(|_| Mutex::default()).collect();
            source
        });
        assembly
    }

    /// Returns what is read for the patch, always in the same order. A list of it is much longer than the rest of a
    /// patch, and thousands of patches are drawn ahead.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece> {
        let source = self.source.iter();
        source.flat_map(PatchSource::pieces)
    }

    /// Wraps an error of this patch with its subject's name.
    pub(super) fn failed(&self, error: Error) -> Failed {
        match &self.source {
            Ok(source) => Failed::of(&source.opened, error),
            Err(_) => Failed::Error(Arc::new(error)),
        }
    }
}
