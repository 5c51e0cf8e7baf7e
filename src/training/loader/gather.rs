//! Gathering: reads chunks, copies them into patches, and turns complete patches into samples.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, TryLockError};

use super::assembly::{Assembly, Buffer, ChunkKey, PatchSource};
use super::batch_buffer::BatchPart;
use super::holdings::{CountedBytes, CountedChunk};
use super::pool::SamplePool;
use super::sample::Sample;
use super::staging::{Scratch, StagedPlanes};
use crate::error::{Error, Result};
use crate::geometry::SignedAxes;
use crate::patch::Patch;
use crate::region::Region;
use crate::training::augment::turn;
use crate::training::subject::Image;
use crate::training::sync::{guarded, lock};
use crate::volume::{Chunk, ChunkShape, Warp};

/// A function that changes a sample on a worker thread before it is delivered.
pub type Transform = dyn Fn(&mut Sample) -> Result<()> + Send + Sync;

/// Reads chunks and turns them into samples, in any order.
pub(super) struct Gather {
    pub(super) pool: Arc<SamplePool>,
    pub(super) counters: Counters,
    scratch: Scratch,
    transform: Option<Arc<Transform>>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Chunks read and decoded.
    pub(super) chunks: AtomicU64,
    /// Copies of a chunk into a patch.
    pub(super) copies: AtomicU64,
    /// Bytes read of all images, before decoding.
    pub(super) bytes: AtomicU64,
}

/// Voxels that are copied to every patch that needs them.
pub(super) enum Fetched {
    Chunk(Arc<CountedChunk>),
    StagedPlanes(StagedPlanes),
}

impl Gather {
    pub(super) fn new(pool: Arc<SamplePool>, transform: Option<Arc<Transform>>) -> Self {
        Self {
            pool,
            counters: Counters::default(),
            scratch: Scratch::default(),
            transform,
        }
    }

    /// Reads and decodes a chunk that a patch needs. `room` counts the bytes that this takes.
    pub(super) fn decode(
        &self,
        source: &PatchSource,
        image: usize,
        index: ChunkShape,
        room: CountedBytes,
    ) -> Result<Fetched, Arc<Error>> {
        self.counters.chunks.fetch_add(1, Ordering::Relaxed);
        let decoded = guarded(|| source.images()[image].source().read_chunk(index));
        self.count_bytes(source, image);
        match decoded {
            Ok(chunk) => Ok(Fetched::Chunk(Arc::new(room.of_chunk(chunk)))),
            Err(error) => Err(Arc::new(error)),
        }
    }

    /// Reads the part of some planes that the patches need.
    pub(super) fn read_planes(
        &self,
        (_, image, index): ChunkKey,
        assemblies: &[Arc<Assembly>],
    ) -> Result<Fetched, Arc<Error>> {
        let sources = assemblies
            .iter()
            .filter_map(|assembly| assembly.source.as_ref().ok());
        let first = sources
            .clone()
            .next()
            .expect("only patches with a region need planes");
        let own = &first.images()[image];
        let size = own.source().read_granularity().unwrap_or([1; 4]);
        let regions = sources.map(|source| source.sources[image]);
        let read = guarded(|| StagedPlanes::fetch(own, size, index, regions, &self.scratch));
        self.count_bytes(first, image);
        read.map(Fetched::StagedPlanes).map_err(Arc::new)
    }

    /// Cuts the part of a chunk that a patch needs out of it. `room` counts its bytes.
    pub(super) fn cut(
        assembly: &Assembly,
        image: usize,
        chunk: &Chunk,
        room: CountedBytes,
    ) -> Result<CountedChunk> {
        let source = assembly.source.as_ref().map_err(|_| Error::Interrupted)?;
        let own = &source.images()[image];
        let size = own.volume.layout().dtype.size();
        let piece = chunk.part(&own.channels, source.sources[image], size);
        Ok(room.of_chunk(piece))
    }

    /// Copies a piece into a patch. Returns `None` if another thread is writing to the patch and `wait`
    /// is not set.
    pub(super) fn copy_part(
        &self,
        assembly: &Assembly,
        image: usize,
        fetched: &Result<Fetched, Arc<Error>>,
        wait: bool,
    ) -> Option<Result<()>> {
        Some(match (fetched, &assembly.source) {
            (Ok(fetched), Ok(wanted)) => {
                let mut buffer = match assembly.buffers[image].try_lock() {
                    Ok(buffer) => buffer,
                    Err(TryLockError::WouldBlock) if wait => lock(&assembly.buffers[image]),
                    Err(TryLockError::WouldBlock) => return None,
                    Err(TryLockError::Poisoned(buffer)) => buffer.into_inner(),
                };
                let source = &wanted.images()[image];
                let region = wanted.sources[image];
                self.buffer(assembly, wanted, image, &mut buffer)
                    .and_then(|out| match fetched {
                        Fetched::Chunk(chunk) => {
                            let size = source.volume.layout().dtype.size();
                            chunk.copy_to(&source.channels, region, out, size);
                            Ok(())
                        }
                        Fetched::StagedPlanes(planes) => {
                            let copied = guarded(|| planes.copy_to(source, region, out));
                            self.count_bytes(wanted, image);
                            copied
                        }
                    })
            }
            (Err(error), _) => Err(Error::Shared(Arc::clone(error))),
            (Ok(_), Err(_)) => Ok(()),
        })
    }

    /// Keeps the memory of planes for later ones.
    pub(super) fn recycle(&self, planes: StagedPlanes) {
        planes.recycle(&self.scratch);
    }

    /// Reads the whole region of an image into a patch.
    pub(super) fn copy_whole(&self, assembly: &Assembly, image: usize) -> Result<()> {
        let Ok(wanted) = &assembly.source else {
            return Ok(());
        };
        let mut buffer = lock(&assembly.buffers[image]);
        let out = self.buffer(assembly, wanted, image, &mut buffer)?;
        let source = &wanted.images()[image];
        let (channels, region) = (source.channels.clone(), wanted.sources[image]);
        let read = source.source().read_channels(channels, region, out);
        self.count_bytes(wanted, image);
        read
    }

    fn count_bytes(&self, wanted: &PatchSource, image: usize) {
        let bytes = wanted.opened.newly_read(image);
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the buffer of an image's voxels, creating it if necessary.
    fn buffer<'a>(
        &self,
        assembly: &Assembly,
        wanted: &PatchSource,
        image: usize,
        buffer: &'a mut Option<Buffer>,
    ) -> Result<&'a mut [u8]> {
        if buffer.is_none() {
            *buffer = Some(match &assembly.part {
                Some((batch, n)) if wanted.is_as_read(image) => {
                    Buffer::Part(batch.part(image, *n, &self.pool)?)
                }
                _ => self.patch(assembly, wanted, image)?,
            });
        }
        Ok(buffer.as_mut().expect("it was just created").bytes_mut())
    }

    fn patch(&self, assembly: &Assembly, wanted: &PatchSource, image: usize) -> Result<Buffer> {
        if !assembly.begun.swap(true, Ordering::AcqRel) {
            self.pool.begin(assembly.bytes);
        }
        let (region, image) = (wanted.sources[image], &wanted.images()[image]);
        let dtype = image.volume.layout().dtype;
        let patch = self.pool.take(region, image.channel_count(), dtype)?;
        Ok(Buffer::Patch(patch))
    }

    /// Normalizes, casts, pads, turns and transforms a complete patch.
    pub(super) fn finish(&self, assembly: &Assembly, wanted: &PatchSource) -> Result<Sample> {
        let (mut patches, mut parts) = (Vec::new(), Vec::new());
        let (region, axes, warp) = (wanted.pose.region, wanted.pose.axes, wanted.warp());
        let convert = |image: &Image, read: Patch, out: &mut [u8]| match &warp {
            Some(warp) => self.warp(image, read, warp, (out, region)),
            None => self.convert(image, read, (out, region)),
        };
        for (n, image) in wanted.images().iter().enumerate() {
            let mut buffer = lock(&assembly.buffers[n]);
            self.buffer(assembly, wanted, n, &mut buffer)?;
            match (buffer.take().expect("it was just created"), &assembly.part) {
                (Buffer::Part(part), _) => parts.push(part),
                (Buffer::Patch(read), None) if wanted.is_as_read(n) => patches.push(read),
                (Buffer::Patch(read), None) => {
                    let (channels, dtype) = (image.channel_count(), image.dtype());
                    let mut patch = self.pool.take(region, channels, dtype)?;
                    convert(image, read, patch.bytes_mut())?;
                    patches.push(patch);
                }
                (Buffer::Patch(read), Some((batch, at))) => {
                    let mut part = batch.part(n, *at, &self.pool)?;
                    convert(image, read, &mut part)?;
                    parts.push(part);
                }
            }
        }
        if axes != SignedAxes::SAME {
            let turned = patches.iter_mut().map(Patch::bytes_mut);
            let turned = turned.chain(parts.iter_mut().map(|part| &mut part[..]));
            for (voxels, image) in turned.zip(wanted.images()) {
                turn(voxels, region.shape, image.dtype().size(), axes);
            }
        }
        let subject = Arc::clone(&wanted.opened.subject);
        let index = wanted.opened.index;
        let mut sample = Sample::new(
            assembly.place,
            index,
            &wanted.pose,
            subject,
            patches,
            &self.pool,
        );
        if let Some((buffer, n)) = &assembly.part {
            sample = sample.with_parts(BatchPart {
                buffer: Arc::clone(buffer),
                n: *n,
                images: parts,
            });
        }
        if let Some(transform) = &self.transform {
            transform(&mut sample)?;
        }
        Ok(sample)
    }

    /// Computes the patch of an image at a region from the voxels that were read for it through a map: first
    /// interpolated in the type of the volume, then cast, then padded. The map of a resampled volume and the other one are
    /// composed, so that values are interpolated once, unless a filter comes between them.
    fn warp(
        &self,
        image: &Image,
        mut read: Patch,
        warp: &Warp,
        (out, region): (&mut [u8], Region),
    ) -> Result<()> {
        let resampled = image.volume.as_resampled();
        let composed = resampled.and_then(|resampled| resampled.composed(warp));
        let reading = match (&composed, resampled) {
            (Some(_), _) => image.reading(image.source().layout().shape),
            (None, Some(_)) => {
                let reading = image.reading(image.volume.layout().shape);
                read = self.resample(image, read, warp.source(&reading))?;
                reading
            }
            (None, None) => image.reading(image.volume.layout().shape),
        };
        let warp = composed.as_ref().unwrap_or(warp);
        let channels = read.channels();
        if read.region().is_empty() {
            let voxel = image.padded_voxel();
            out.chunks_exact_mut(voxel.len())
                .for_each(|out| out.copy_from_slice(&voxel));
            self.pool.give(read);
            return Ok(());
        }
        let dtype = read.dtype();
        if image.keeps_type() {
            warp.apply(&reading, dtype, (read.bytes(), out), channels);
        } else {
            let mut patch = self.pool.take(region, channels, dtype)?;
            warp.apply(&reading, dtype, (read.bytes(), patch.bytes_mut()), channels);
            image.cast_into(&patch, out)?;
            self.pool.give(patch);
        }
        self.pool.give(read);
        warp.fill(&reading, &image.padded_voxel(), out);
        Ok(())
    }

    /// Computes the patch of a resampled image at a region inside the volume from the voxels that were read for it.
    fn resample(&self, image: &Image, read: Patch, region: Region) -> Result<Patch> {
        let Some(resampled) = image.volume.as_resampled() else {
            return Ok(read);
        };
        let mut patch = self.pool.take(region, read.channels(), read.dtype())?;
        let source = (read.bytes(), read.region());
        resampled.compute(source, (patch.bytes_mut(), region), read.channels());
        self.pool.give(read);
        Ok(patch)
    }

    /// Converts the voxels that were read of an image to those of a region: first resampled, then cast, then padded,
    /// so that the padding is in the type of the patch.
    fn convert(
        &self,
        image: &Image,
        mut read: Patch,
        (out, region): (&mut [u8], Region),
    ) -> Result<()> {
        if image.volume.as_resampled().is_some() {
            read = self.resample(image, read, image.inside(region))?;
        }
        let (source, channels, dtype) = (read.region(), read.channels(), image.dtype());
        let is_padded = source != region;
        if !image.keeps_type() {
            if is_padded {
                let mut cast = self.pool.take(source, channels, dtype)?;
                image.cast_into(&read, cast.bytes_mut())?;
                self.pool.give(std::mem::replace(&mut read, cast));
            } else {
                image.cast_into(&read, out)?;
            }
        }
        if is_padded {
            image.pad_into(&read, (out, region));
        } else if image.keeps_type() {
            out.copy_from_slice(read.bytes());
        }
        self.pool.give(read);
        Ok(())
    }
}
