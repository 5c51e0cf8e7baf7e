//! Slots: patches that are being put together, piece by piece.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

use super::batch::Together;
use super::feed::{Failed, Item, Opened};
use super::sample::Sample;
use super::subject::Image;
use crate::error::{Error, Result};
use crate::patch::Patch;
use crate::region::Region;
use crate::volume::{ChunkShape, intersecting};

/// A chunk of an image of a subject, or a box that is best read at a time.
pub(super) type Key = (u64, usize, ChunkShape);

/// A patch that is being put together.
pub(super) struct Slot {
    pub(super) item: Result<Wanted, Failed>,
    pub(super) place: u64,
    /// Bytes that it takes by itself,
    pub(super) bytes: u64,
    /// and those of the batch that begins with it.
    pub(super) batch_bytes: u64,
    /// The batch that it is put together in, and which patch of it it is.
    pub(super) part: Option<(Arc<Together>, usize)>,
    /// The batch that ends with it.
    pub(super) ends: Option<Arc<Together>>,
    pub(super) pieces: Vec<Piece>,
    /// Pieces that are not there yet.
    pub(super) missing: AtomicUsize,
    pub(super) buffers: Vec<Mutex<Option<Buffer>>>,
    /// Whether it has taken any buffer.
    pub(super) begun: AtomicBool,
    /// The first thing that went wrong.
    pub(super) error: Mutex<Option<Error>>,
    /// What is delivered, once all pieces are there.
    pub(super) done: Mutex<Option<Result<Sample, Failed>>>,
}

pub(super) struct Wanted {
    pub(super) opened: Arc<Opened>,
    pub(super) region: Region,
    /// What is read of each image.
    pub(super) sources: Vec<Region>,
}

/// What an image's voxels are gathered in.
pub(super) enum Buffer {
    /// A patch of the volume's voxels in the region's source.
    Patch(Patch),
    /// The patch's part of its batch, where it takes the volume's voxels without a cast or padding.
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

#[derive(Clone, Copy)]
pub(super) enum Piece {
    Chunk(Key),
    /// All of an image's region at once, where there are no chunks.
    Whole(usize),
}

impl Wanted {
    fn new(opened: Arc<Opened>, region: Region) -> Self {
        let shape = opened.subject.shape();
        let images = opened.subject.images().iter();
        let sources = images
            .map(|image| image.padding.source(region, shape))
            .collect();
        Self {
            opened,
            region,
            sources,
        }
    }

    pub(super) fn images(&self) -> &[Image] {
        self.opened.subject.images()
    }

    /// Returns `true` if a patch of image `n` is what the volume has at the region itself.
    pub(super) fn is_as_read(&self, n: usize) -> bool {
        self.sources[n] == self.region && self.images()[n].keeps_type()
    }

    /// Bytes of what is read before it becomes the patches.
    fn bytes_before(&self) -> u64 {
        let images = self.images().iter().zip(&self.sources).enumerate();
        let read = images.filter(|(n, _)| !self.is_as_read(*n));
        let bytes = read.map(|(_, (image, source))| image.read_bytes(source.voxels()));
        bytes.fold(0, u64::saturating_add)
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (n, (image, source)) in self.images().iter().zip(&self.sources).enumerate() {
            let layout = image.volume.layout();
            match layout
                .read_chunk
                .or_else(|| image.volume.read_granularity())
            {
                _ if source.is_empty() => {}
                None => pieces.push(Piece::Whole(n)),
                Some(chunk) => {
                    let all = intersecting(chunk, &image.channels, *source);
                    pieces.extend(all.map(|at| Piece::Chunk((self.opened.index, n, at))));
                }
            }
        }
        pieces
    }
}

impl Slot {
    pub(super) fn new(item: Item) -> Self {
        let Item {
            place,
            batch,
            found,
        } = item;
        let ends = batch.as_ref().filter(|(batch, n)| batch.is_last(*n));
        let mut slot = Self {
            item: Err(Failed::Error(Arc::new(Error::Interrupted))),
            place,
            bytes: 0,
            batch_bytes: 0,
            ends: ends.map(|(batch, _)| Arc::clone(batch)),
            part: None,
            missing: AtomicUsize::new(0),
            pieces: Vec::new(),
            buffers: Vec::new(),
            begun: AtomicBool::new(false),
            error: Mutex::default(),
            done: Mutex::default(),
        };
        slot.item = found.map(|(opened, region)| {
            let wanted = Wanted::new(opened, region);
            let subject = &wanted.opened.subject;
            if let Some((batch, n)) = batch
                && let Some(bytes) = batch.admit(subject, region.shape)
            {
                slot.batch_bytes = bytes;
                slot.part = Some((batch, n));
            } else {
                slot.bytes = subject.sample_bytes(region.shape);
            }
            slot.bytes = slot.bytes.saturating_add(wanted.bytes_before());
            slot.pieces = wanted.pieces();
            slot.missing = AtomicUsize::new(slot.pieces.len());
            slot.buffers = wanted.sources.iter().map(|_| Mutex::default()).collect();
            wanted
        });
        slot
    }

    /// An error of this patch, with its subject's name.
    pub(super) fn failed(&self, error: Error) -> Failed {
        match &self.item {
            Ok(wanted) => Failed::of(&wanted.opened, error),
            Err(_) => Failed::Error(Arc::new(error)),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs code that may panic; a panic is an error like any other.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let message = text
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Error::Panicked {
        message: message.to_owned(),
    }
}
