//! Slots: patches that are being put together, piece by piece.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    pub(super) bytes: u64,
    pub(super) pieces: Vec<Piece>,
    /// Pieces that are not there yet.
    pub(super) missing: AtomicUsize,
    pub(super) buffers: Vec<Mutex<Option<Patch>>>,
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

#[derive(Clone, Copy)]
pub(super) enum Piece {
    Chunk(Key),
    /// All of an image's region at once, where there are no chunks.
    Whole(usize),
}

impl Wanted {
    pub(super) fn images(&self) -> &[Image] {
        self.opened.subject.images()
    }
}

impl Slot {
    pub(super) fn new(item: Item) -> Self {
        let place = item.place;
        let (item, bytes, pieces) = match item.found {
            Err(failed) => (Err(failed), 0, Vec::new()),
            Ok((opened, region)) => {
                let shape = opened.subject.shape();
                let images = opened.subject.images();
                let sources: Vec<Region> = images
                    .iter()
                    .map(|image| image.padding.source(region, shape))
                    .collect();
                let mut bytes = opened.subject.sample_bytes(region.shape);
                let mut pieces = Vec::new();
                for (n, (image, source)) in images.iter().zip(&sources).enumerate() {
                    let layout = image.volume.layout();
                    if *source != region || image.dtype() != layout.dtype {
                        bytes = bytes.saturating_add(image.stored_bytes(source.voxels()));
                    }
                    match layout.read_chunk.or_else(|| image.volume.together()) {
                        _ if source.is_empty() => {}
                        None => pieces.push(Piece::Whole(n)),
                        Some(chunk) => {
                            let all = intersecting(chunk, &image.channels, *source);
                            pieces.extend(all.map(|index| Piece::Chunk((opened.index, n, index))));
                        }
                    }
                }
                (
                    Ok(Wanted {
                        opened,
                        region,
                        sources,
                    }),
                    bytes,
                    pieces,
                )
            }
        };
        let images = item.as_ref().map_or(0, |wanted| wanted.sources.len());
        Self {
            item,
            place,
            bytes,
            missing: AtomicUsize::new(pieces.len()),
            pieces,
            buffers: (0..images).map(|_| Mutex::default()).collect(),
            begun: AtomicBool::new(false),
            error: Mutex::default(),
            done: Mutex::default(),
        }
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
