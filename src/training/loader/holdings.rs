//! Decoded chunks, and pieces of them, that are held for coming patches, and the patches that wait for them.
//!
//! [`Reuse`] decides what is held; here is the data. A chunk counts as held from the moment at which
//! a worker claims its decode, and a piece from the moment at which its chunk is evicted. A patch that
//! needs one before it exists waits for that worker.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::assembly::{Assembly, ChunkKey};
use super::carry::CarriedChunk;
use super::reuse::{Release, Reuse, Source};
use crate::volume::{Chunk, FreedBytes};

#[derive(Default)]
pub(super) struct Holdings {
    reuse: Reuse<ChunkKey>,
    /// The bytes of the tables for each chunk or piece, which count with its own.
    table_bytes: u64,
    chunks: HashMap<ChunkKey, HeldChunk>,
    /// By chunk, and by the order of the patch that gets the piece.
    pieces: HashMap<(ChunkKey, u64), HeldPiece>,
    /// Chunks that their volumes prefetch, and that no worker has claimed yet.
    announced: HashSet<ChunkKey>,
    /// Chunks that are not held any more, each with the patch that must decode it again.
    released: Vec<(ChunkKey, u64)>,
}

enum HeldChunk {
    Decoding {
        waiting: Vec<Arc<Assembly>>,
        /// Patches whose pieces are cut once it is decoded.
        cuts: Vec<Arc<Assembly>>,
        /// `true` if it is held after that.
        keep: bool,
    },
    Here(Arc<CountedChunk>),
}

enum HeldPiece {
    /// A worker cuts it; the patch may wait for it already.
    Cutting(Option<Arc<Assembly>>),
    /// A chunk of exactly the voxels that the patch needs.
    Here(Arc<CountedChunk>),
}

/// How a patch gets its part of a chunk.
pub(super) enum Part {
    /// Copy it from this chunk.
    From(Arc<CountedChunk>),
    /// Decode the chunk.
    Decode,
    /// Another worker brings it.
    Waits,
}

/// An evicted chunk, and the patches whose pieces are cut out of it first.
pub(super) struct Cut {
    pub(super) key: ChunkKey,
    pub(super) chunk: Arc<CountedChunk>,
    pub(super) assemblies: Vec<Arc<Assembly>>,
}

impl Holdings {
    /// Holds chunks that an earlier epoch left, each with the bytes that it is planned with.
    pub(super) fn carried(chunks: Vec<CarriedChunk>, table_bytes: u64) -> Self {
        let mut held = Self {
            table_bytes,
            ..Self::default()
        };
        for (key, bytes, chunk) in chunks {
            held.reuse.hold(key, bytes);
            held.chunks.insert(key, HeldChunk::Here(chunk));
        }
        held
    }

    /// Drops the chunks that an earlier epoch left of a subject, before any of its uses is known.
    pub(super) fn forget(&mut self, subject: u64) {
        let reuse = &mut self.reuse;
        self.chunks.retain(|&key, _| {
            let is_kept = key.0 != subject;
            if !is_kept {
                reuse.lose_chunk(key);
            }
            is_kept
        });
    }

    /// Returns the chunks that are held, each with the bytes that it is planned with.
    pub(super) fn into_chunks(self) -> Vec<CarriedChunk> {
        let Self { reuse, chunks, .. } = self;
        let here = chunks.into_iter().filter_map(|(key, held)| match held {
            HeldChunk::Here(chunk) => Some((key, reuse.held_bytes(key)?, chunk)),
            HeldChunk::Decoding { .. } => None,
        });
        here.collect()
    }

    /// Adds a coming patch that needs `part` bytes of a chunk of `whole` bytes.
    pub(super) fn expect(&mut self, order: u64, key: ChunkKey, part: u64, whole: u64) {
        let tables = self.table_bytes;
        self.reuse.expect(order, key, part + tables, whole + tables);
    }

    /// Returns `true` if a chunk should be prefetched: its next use will decode it, as far as is known
    /// now, and it was not announced before.
    pub(super) fn announce(&mut self, key: ChunkKey) -> bool {
        let is_absent = !self.chunks.contains_key(&key) && self.reuse.decoded_for(key).is_some();
        is_absent && self.announced.insert(key)
    }

    /// Returns the number of chunks that are prefetched and not yet claimed.
    pub(super) fn announced(&self) -> usize {
        self.announced.len()
    }

    /// Takes a patch's part of a chunk. Patches, and the chunks of a patch, come in order.
    pub(super) fn take(&mut self, assembly: &Arc<Assembly>, key: ChunkKey) -> Part {
        match self.reuse.take(assembly.order, key) {
            Source::Piece => {
                self.note_released(key);
                let place = (key, assembly.order);
                if let Some(HeldPiece::Here(piece)) = self.pieces.remove(&place) {
                    return Part::From(piece);
                }
                let waiting = HeldPiece::Cutting(Some(Arc::clone(assembly)));
                self.pieces.insert(place, waiting);
                Part::Waits
            }
            Source::Chunk | Source::Decode => match self.chunks.get_mut(&key) {
                Some(HeldChunk::Here(chunk)) => Part::From(Arc::clone(chunk)),
                Some(HeldChunk::Decoding { waiting, keep, .. }) => {
                    waiting.push(Arc::clone(assembly));
                    *keep = true;
                    Part::Waits
                }
                None => {
                    let decoding = HeldChunk::Decoding {
                        waiting: vec![Arc::clone(assembly)],
                        cuts: Vec::new(),
                        keep: true,
                    };
                    self.chunks.insert(key, decoding);
                    self.announced.remove(&key);
                    Part::Decode
                }
            },
        }
    }

    /// Evicts what is held above `budget` bytes while patch `order` is handed out. Returns the evicted
    /// chunks and what is cut out of them. `coming` finds a patch by its order.
    pub(super) fn settle(
        &mut self,
        order: u64,
        budget: u64,
        coming: impl Fn(u64) -> Arc<Assembly>,
    ) -> Vec<Cut> {
        let mut releases = Vec::new();
        self.reuse.settle(order, budget, &mut releases);
        let mut evicted = Vec::new();
        for release in releases {
            let (Release::Piece { key, .. } | Release::Chunk { key, .. }) = &release;
            self.note_released(*key);
            match release {
                Release::Piece { key, patch } => {
                    if let Some(HeldPiece::Here(chunk)) = self.pieces.remove(&(key, patch)) {
                        let assemblies = Vec::new();
                        evicted.push(Cut {
                            key,
                            chunk,
                            assemblies,
                        });
                    }
                }
                Release::Chunk { key, pieces } => {
                    let assemblies: Vec<_> = pieces.into_iter().map(&coming).collect();
                    for assembly in &assemblies {
                        self.pieces
                            .insert((key, assembly.order), HeldPiece::Cutting(None));
                    }
                    match self.chunks.remove(&key) {
                        Some(HeldChunk::Here(chunk)) => evicted.push(Cut {
                            key,
                            chunk,
                            assemblies,
                        }),
                        Some(HeldChunk::Decoding {
                            waiting, mut cuts, ..
                        }) => {
                            cuts.extend(assemblies);
                            let decoding = HeldChunk::Decoding {
                                waiting,
                                cuts,
                                keep: false,
                            };
                            self.chunks.insert(key, decoding);
                        }
                        None => {}
                    }
                }
            }
        }
        evicted
    }

    /// Notes that a chunk must be decoded again, if it must.
    fn note_released(&mut self, key: ChunkKey) {
        let again = self.reuse.decoded_for(key).map(|order| (key, order));
        self.released.extend(again);
    }

    /// Returns the chunks that were released since the last call, each with the patch that must decode it again.
    pub(super) fn take_released(&mut self) -> Vec<(ChunkKey, u64)> {
        std::mem::take(&mut self.released)
    }

    /// Ends the decode of a chunk; `None` if it failed. Returns the patches that wait for the chunk, and
    /// those whose pieces must be cut out of it.
    pub(super) fn decoded(
        &mut self,
        key: ChunkKey,
        chunk: Option<&Arc<CountedChunk>>,
    ) -> (Vec<Arc<Assembly>>, Vec<Arc<Assembly>>) {
        let Some(HeldChunk::Decoding {
            mut waiting,
            mut cuts,
            keep,
        }) = self.chunks.remove(&key)
        else {
            return Default::default();
        };
        match chunk {
            Some(chunk) if keep => {
                self.chunks.insert(key, HeldChunk::Here(Arc::clone(chunk)));
            }
            Some(_) => self.note_released(key),
            None => {
                self.reuse.lose_chunk(key);
                for assembly in cuts.drain(..) {
                    match self.pieces.remove(&(key, assembly.order)) {
                        Some(HeldPiece::Cutting(Some(assembly))) => waiting.push(assembly),
                        _ => self.reuse.lose_piece(key, assembly.order),
                    }
                }
            }
        }
        (waiting, cuts)
    }

    /// Holds a piece that was cut for a patch. Returns `true` if the patch waits for it and gets it now.
    pub(super) fn cut(&mut self, key: ChunkKey, order: u64, piece: &Arc<CountedChunk>) -> bool {
        match self.pieces.get_mut(&(key, order)) {
            Some(HeldPiece::Cutting(Some(_))) => {
                self.pieces.remove(&(key, order));
                true
            }
            Some(held) => {
                *held = HeldPiece::Here(Arc::clone(piece));
                false
            }
            None => false,
        }
    }
}

/// The bytes of chunks and pieces in memory, and of decodes in progress.
#[derive(Clone, Debug, Default)]
pub(super) struct ChunkBytes(Arc<Bytes>);

#[derive(Debug, Default)]
struct Bytes {
    now: AtomicU64,
    freed: FreedBytes,
}

impl ChunkBytes {
    pub(super) fn now(&self) -> u64 {
        self.0.now.load(Ordering::Acquire)
    }

    /// Allows the process to grow until these bytes, and all else that a loader holds, are `all` bytes.
    pub(super) fn allow(&self, all: u64) {
        self.0.freed.allow(all.saturating_sub(self.now()));
    }

    /// Returns freed memory of chunks and pieces to the system, when the process takes more than is allowed.
    pub(super) fn give_back(&self) {
        self.0.freed.give_back();
    }

    /// Counts bytes until the result is dropped.
    pub(super) fn add(&self, bytes: u64) -> CountedBytes {
        self.0.now.fetch_add(bytes, Ordering::AcqRel);
        CountedBytes {
            all: self.clone(),
            bytes,
        }
    }
}

/// Bytes that count until this is dropped.
#[derive(Debug)]
pub(super) struct CountedBytes {
    all: ChunkBytes,
    bytes: u64,
}

impl CountedBytes {
    /// Counts the bytes of a chunk in place of those that its decode may take.
    pub(super) fn of_chunk(mut self, chunk: Chunk) -> CountedChunk {
        let bytes = chunk.bytes() as u64;
        self.all.0.now.fetch_add(bytes, Ordering::AcqRel);
        self.all.0.now.fetch_sub(self.bytes, Ordering::AcqRel);
        self.bytes = bytes;
        CountedChunk {
            chunk,
            _bytes: self,
        }
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.all.0.now.fetch_sub(self.bytes, Ordering::AcqRel);
        self.all.0.freed.add(self.bytes);
    }
}

/// A chunk, or a piece of one, whose bytes count while it is in memory.
#[derive(Debug)]
pub(super) struct CountedChunk {
    chunk: Chunk,
    _bytes: CountedBytes,
}

impl Deref for CountedChunk {
    type Target = Chunk;

    fn deref(&self) -> &Chunk {
        &self.chunk
    }
}
