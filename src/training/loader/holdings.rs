//! Decoded chunks, and pieces of them, that are held for coming patches, and the patches that wait for them.
//!
//! [`Reuse`] decides what is held; here is the data. A chunk counts as held from the moment at which
//! a worker claims its decode, and a piece from the moment at which its chunk is evicted. A patch that
//! needs one before it exists waits for that worker.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::assembly::{Assembly, ChunkKey};
use super::held::Held;
use super::reuse::{Release, Reuse, Source};

#[derive(Default)]
pub(super) struct Holdings {
    reuse: Reuse<ChunkKey>,
    chunks: HashMap<ChunkKey, HeldChunk>,
    /// By chunk, and by the order of the patch that gets the piece.
    pieces: HashMap<(ChunkKey, u64), HeldPiece>,
    /// Chunks that their volumes prefetch, and that no worker has claimed yet.
    announced: HashSet<ChunkKey>,
}

enum HeldChunk {
    Decoding {
        waiting: Vec<Arc<Assembly>>,
        /// Patches whose pieces are cut once it is decoded.
        cuts: Vec<Arc<Assembly>>,
        /// `true` if it is held after that.
        keep: bool,
    },
    Here(Arc<Held>),
}

enum HeldPiece {
    /// A worker cuts it; the patch may wait for it already.
    Cutting(Option<Arc<Assembly>>),
    Here(Held),
}

/// How a patch gets its part of a chunk.
pub(super) enum Part {
    /// Copy it from this chunk.
    Chunk(Arc<Held>),
    /// It was cut out of the chunk before.
    Cut(Held),
    /// Decode the chunk.
    Decode,
    /// Another worker brings it.
    Waits,
}

/// An evicted chunk, and the patches whose pieces are cut out of it first.
pub(super) struct Cut {
    pub(super) key: ChunkKey,
    pub(super) chunk: Arc<Held>,
    pub(super) assemblies: Vec<Arc<Assembly>>,
}

impl Holdings {
    /// Adds a coming patch that needs `part` bytes of a chunk of `whole` bytes.
    pub(super) fn expect(&mut self, order: u64, key: ChunkKey, part: u64, whole: u64) {
        self.reuse.expect(order, key, part, whole);
    }

    /// Returns `true` if a chunk should be prefetched: its next use will decode it, as far as is known
    /// now, and it was not announced before.
    pub(super) fn announce(&mut self, key: ChunkKey) -> bool {
        let is_absent = !self.chunks.contains_key(&key) && self.reuse.is_absent(key);
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
                let place = (key, assembly.order);
                if let Some(HeldPiece::Here(piece)) = self.pieces.remove(&place) {
                    return Part::Cut(piece);
                }
                let waiting = HeldPiece::Cutting(Some(Arc::clone(assembly)));
                self.pieces.insert(place, waiting);
                Part::Waits
            }
            Source::Chunk | Source::Decode => match self.chunks.get_mut(&key) {
                Some(HeldChunk::Here(chunk)) => Part::Chunk(Arc::clone(chunk)),
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
            match release {
                Release::Piece { key, patch } => {
                    self.pieces.remove(&(key, patch));
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

    /// Ends the decode of a chunk; `None` if it failed. Returns the patches that wait for the chunk, and
    /// those whose pieces must be cut out of it.
    pub(super) fn decoded(
        &mut self,
        key: ChunkKey,
        chunk: Option<&Arc<Held>>,
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
            Some(_) => {}
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

    /// Holds a chunk in another form, unless it was evicted since.
    pub(super) fn replace(&mut self, key: ChunkKey, chunk: &Arc<Held>, other: Held) {
        if let Some(HeldChunk::Here(held)) = self.chunks.get_mut(&key)
            && Arc::ptr_eq(held, chunk)
        {
            *held = Arc::new(other);
        }
    }

    /// Returns `true` if this chunk is held.
    pub(super) fn holds(&self, key: ChunkKey, chunk: &Arc<Held>) -> bool {
        let held = self.chunks.get(&key);
        matches!(held, Some(HeldChunk::Here(held)) if Arc::ptr_eq(held, chunk))
    }

    /// Holds a piece that was cut for a patch. Returns the piece if the patch waits for it and gets it now.
    pub(super) fn cut(&mut self, key: ChunkKey, order: u64, piece: Held) -> Option<Held> {
        match self.pieces.get_mut(&(key, order)) {
            Some(HeldPiece::Cutting(Some(_))) => {
                self.pieces.remove(&(key, order));
                Some(piece)
            }
            Some(held) => {
                *held = HeldPiece::Here(piece);
                None
            }
            None => None,
        }
    }
}
