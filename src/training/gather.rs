//! Gathering: chunks are fetched, copied into the patches that want them, and made into samples.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, TryLockError};

use super::batch::Parts;
use super::planes::{Planes, Scratch};
use super::pool::Pool;
use super::sample::Sample;
use super::slot::{Buffer, Key, Slot, Wanted, guarded, lock};
use super::subject::Image;
use crate::error::{Error, Result};
use crate::patch::Patch;
use crate::region::Region;
use crate::volume::Chunk;

/// Changes a sample on a worker's thread before it is delivered.
pub type Transform = dyn Fn(&mut Sample) -> Result<()> + Send + Sync;

/// What turns chunks into samples, whatever the order in which they are wanted.
pub(super) struct Gather {
    pub(super) pool: Arc<Pool>,
    pub(super) counters: Counters,
    scratch: Scratch,
    transform: Option<Arc<Transform>>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Chunks fetched and decoded.
    pub(super) chunks: AtomicU64,
    /// Patches that chunks were copied to.
    pub(super) copies: AtomicU64,
    /// Bytes read of all images, before decoding.
    pub(super) bytes: AtomicU64,
}

/// What goes to all patches that want it.
pub(super) enum Fetched {
    Chunk(Arc<Chunk>),
    Planes(Planes),
}

impl Gather {
    pub(super) fn new(pool: Arc<Pool>, transform: Option<Arc<Transform>>) -> Self {
        Self {
            pool,
            counters: Counters::default(),
            scratch: Scratch::default(),
            transform,
        }
    }

    /// Reads a chunk, or what `slots` want of some planes.
    pub(super) fn fetch(
        &self,
        (_, image, index): Key,
        slots: &[Arc<Slot>],
    ) -> Result<Fetched, Arc<Error>> {
        let wanted = slots.iter().filter_map(|slot| slot.item.as_ref().ok());
        let first = wanted
            .clone()
            .next()
            .expect("only places that were found want chunks");
        let source = &first.images()[image];
        let volume = &*source.volume;
        let fetched = guarded(|| match volume.read_granularity() {
            Some(size) if volume.layout().read_chunk.is_none() => {
                let regions = wanted.map(|wanted| wanted.sources[image]);
                Planes::fetch(source, size, index, regions, &self.scratch).map(Fetched::Planes)
            }
            _ => {
                if let Some(chunk) = first.opened.kept_chunk(image, index) {
                    return Ok(Fetched::Chunk(chunk));
                }
                self.counters.chunks.fetch_add(1, Ordering::Relaxed);
                let chunk = Arc::new(volume.read_chunk(index)?);
                if let Some(kept) = &first.opened.kept {
                    kept.keep(image, index, &chunk);
                }
                Ok(Fetched::Chunk(chunk))
            }
        });
        self.count_bytes(first, image);
        fetched.map_err(Arc::new)
    }

    /// Copies what was fetched into a patch; nothing if somebody else writes to it and `wait` is not set.
    pub(super) fn copy_part(
        &self,
        slot: &Slot,
        image: usize,
        fetched: &Result<Fetched, Arc<Error>>,
        wait: bool,
    ) -> Option<Result<()>> {
        Some(match (fetched, &slot.item) {
            (Ok(fetched), Ok(wanted)) => {
                let mut buffer = match slot.buffers[image].try_lock() {
                    Ok(buffer) => buffer,
                    Err(TryLockError::WouldBlock) if wait => lock(&slot.buffers[image]),
                    Err(TryLockError::WouldBlock) => return None,
                    Err(TryLockError::Poisoned(buffer)) => buffer.into_inner(),
                };
                let source = &wanted.images()[image];
                let region = wanted.sources[image];
                self.buffer(slot, wanted, image, &mut buffer)
                    .and_then(|out| match fetched {
                        Fetched::Chunk(chunk) => {
                            let size = source.volume.layout().dtype.size();
                            chunk.copy_to(&source.channels, region, out, size);
                            Ok(())
                        }
                        Fetched::Planes(planes) => {
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

    /// Keeps the memory of planes for the next ones.
    pub(super) fn recycle(&self, planes: Planes) {
        planes.recycle(&self.scratch);
    }

    /// Reads all of an image's region into a patch.
    pub(super) fn copy_whole(&self, slot: &Slot, image: usize) -> Result<()> {
        let Ok(wanted) = &slot.item else {
            return Ok(());
        };
        let mut buffer = lock(&slot.buffers[image]);
        let out = self.buffer(slot, wanted, image, &mut buffer)?;
        let source = &wanted.images()[image];
        let (channels, region) = (source.channels.clone(), wanted.sources[image]);
        let read = source.volume.read_channels(channels, region, out);
        self.count_bytes(wanted, image);
        read
    }

    fn count_bytes(&self, wanted: &Wanted, image: usize) {
        let bytes = wanted.opened.newly_read(image);
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What an image's voxels are gathered in.
    fn buffer<'a>(
        &self,
        slot: &Slot,
        wanted: &Wanted,
        image: usize,
        buffer: &'a mut Option<Buffer>,
    ) -> Result<&'a mut [u8]> {
        if buffer.is_none() {
            *buffer = Some(match &slot.part {
                Some((batch, n)) if wanted.is_as_read(image) => {
                    Buffer::Part(batch.part(image, *n, &self.pool)?)
                }
                _ => self.patch(slot, wanted, image)?,
            });
        }
        Ok(buffer.as_mut().expect("it was just made").bytes_mut())
    }

    fn patch(&self, slot: &Slot, wanted: &Wanted, image: usize) -> Result<Buffer> {
        if !slot.begun.swap(true, Ordering::AcqRel) {
            self.pool.begin(slot.bytes);
        }
        let (region, image) = (wanted.sources[image], &wanted.images()[image]);
        let dtype = image.volume.layout().dtype;
        let patch = self.pool.take(region, image.channel_count(), dtype)?;
        Ok(Buffer::Patch(patch))
    }

    /// Casts, pads and transforms what was read.
    pub(super) fn finish(&self, slot: &Slot, wanted: &Wanted) -> Result<Sample> {
        let (mut patches, mut parts) = (Vec::new(), Vec::new());
        for (n, image) in wanted.images().iter().enumerate() {
            let mut buffer = lock(&slot.buffers[n]);
            self.buffer(slot, wanted, n, &mut buffer)?;
            match (buffer.take().expect("it was just made"), &slot.part) {
                (Buffer::Part(part), _) => parts.push(part),
                (Buffer::Patch(read), None) if wanted.is_as_read(n) => patches.push(read),
                (Buffer::Patch(read), None) => {
                    let (channels, dtype) = (image.channel_count(), image.dtype());
                    let mut patch = self.pool.take(wanted.region, channels, dtype)?;
                    self.made(image, read, (patch.bytes_mut(), wanted.region))?;
                    patches.push(patch);
                }
                (Buffer::Patch(read), Some((batch, at))) => {
                    let mut part = batch.part(n, *at, &self.pool)?;
                    self.made(image, read, (&mut part, wanted.region))?;
                    parts.push(part);
                }
            }
        }
        let subject = Arc::clone(&wanted.opened.subject);
        let index = wanted.opened.index;
        let mut sample = Sample::new(
            slot.place,
            index,
            wanted.region,
            subject,
            patches,
            &self.pool,
        );
        if let Some((together, n)) = &slot.part {
            sample = sample.with_parts(Parts {
                together: Arc::clone(together),
                n: *n,
                images: parts,
            });
        }
        if let Some(transform) = &self.transform {
            transform(&mut sample)?;
        }
        Ok(sample)
    }

    /// Makes what was read of an image into the voxels of a region: cast first, then padded, so that
    /// padding is in the values that patches get.
    fn made(
        &self,
        image: &Image,
        mut read: Patch,
        (out, region): (&mut [u8], Region),
    ) -> Result<()> {
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
            let shape = image.volume.layout().shape;
            let from = (read.bytes(), source);
            image
                .padding
                .fill(from, (out, region), channels, dtype, shape);
        }
        self.pool.give(read);
        Ok(())
    }
}
