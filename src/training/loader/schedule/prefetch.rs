//! The chunks that are prefetched: those of admitted patches, and far ahead of them those of volumes in stores.

use std::sync::Arc;

use super::{Assembly, ChunkKey, Piece, State};

/// At most this many chunks of files are prefetched and not yet claimed by a worker,
const MAX_PREFETCHED: usize = 64;

/// and so many with each unit of work.
const PREFETCH_STEP: usize = 8;

/// The number of chunks of remote volumes that are prefetched before each unit of work.
const REMOTE_PREFETCHES: usize = 64;

/// The most chunks of remote volumes that are prefetched and not yet claimed by a worker, unless admitted patches need more.
/// A chunk that was released and is needed soon waits behind them, and the first patch with it: with 128 chunks, at latencies
/// of 30 and 100 ms, patches came at 0.7 of the rate.
const REMOTE_AHEAD: usize = 80;

/// The most bytes that these chunks decode to: what the requests that may run at once return, and a little more that has
/// arrived.
const REMOTE_AHEAD_BYTES: u64 = 40 << 20;

impl State {
    /// Returns the next chunks to prefetch, so that many requests are under way and prefetching gets ahead; still more
    /// of remote volumes, of which prefetching costs this thread nothing.
    pub(super) fn next_prefetches(&mut self) -> Vec<(ChunkKey, Arc<Assembly>)> {
        // Patches whose work is all handed out need no prefetching any more.
        let first = self.next_order();
        while let Some((_, assembly)) = self.coming.front()
            && assembly.order < first
        {
            self.coming.pop_front();
        }
        let next = self.coming.front();
        let most = if next.is_some_and(|(key, assembly)| assembly.is_remote(key.1)) {
            REMOTE_PREFETCHES
        } else {
            PREFETCH_STEP.min(MAX_PREFETCHED.saturating_sub(self.held.announced()))
        };
        let mut next = Vec::new();
        while next.len() < most
            && let Some((key, assembly)) = self.coming.pop_front()
        {
            if self.held.announce(key) {
                next.push((key, assembly));
            }
        }
        if self.coming.is_empty() {
            self.add_far_prefetches(&mut next);
        }
        next
    }

    /// Prefetches a released chunk of a remote volume again if the patch `order`, which needs it next, was looked at before.
    pub(super) fn come_again(&mut self, key: ChunkKey, order: u64) {
        let admitted = self.orders - self.drawn.len() as u64;
        if order < self.far.max(admitted)
            && let Some(assembly) = self.patch(order)
            && assembly.is_remote(key.1)
        {
            let assembly = Arc::clone(assembly);
            self.coming.push_back((key, assembly));
        }
    }

    /// Adds the chunks of remote volumes that patches need which are drawn and not admitted: a request takes so long that
    /// those of the few admitted patches would not keep enough of them under way. A chunk that is held now is looked at
    /// again when its patch is admitted, and when it is released.
    fn add_far_prefetches(&mut self, next: &mut Vec<(ChunkKey, Arc<Assembly>)>) {
        self.far = self.far.max(self.orders - self.drawn.len() as u64);
        let most = REMOTE_AHEAD_BYTES / self.largest.chunk.max(1);
        let most = REMOTE_AHEAD.min(usize::try_from(most).unwrap_or(REMOTE_AHEAD));
        while self.far < self.expected
            && next.len() < REMOTE_PREFETCHES
            && self.held.announced() < most
            && let Some(assembly) = self.patch(self.far).cloned()
        {
            self.far += 1;
            for piece in assembly.pieces() {
                if let Piece::Chunk(key) = piece
                    && assembly.is_remote(key.1)
                    && self.held.announce(key)
                {
                    next.push((key, Arc::clone(&assembly)));
                }
            }
        }
    }
}
