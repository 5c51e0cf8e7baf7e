//! Which decoded chunks are held for the patches to come, and which pieces of them.
//!
//! The coming patches are known, and so is the next use of each chunk. After a decode there are three
//! choices: hold the chunk until its next use, hold only the pieces that coming patches need of it, or
//! hold nothing and decode it again. A chunk or piece costs its bytes times the patches until its next
//! use. While more bytes are held than the budget allows, the most expensive chunk or piece is evicted,
//! and an evicted chunk leaves those pieces behind that cost less than it did. This is L. Belady's rule
//! ("A study of replacement algorithms for a virtual-storage computer", 1966), extended to different
//! sizes and to parts. A chunk that no known patch needs is evicted first.
//!
//! This file only decides; the chunks themselves are in [`holdings`](super::holdings). Decisions are a
//! function of the patches in their order.

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;

/// A piece is left behind if it costs less than this many tenths of its chunk. At 10, pieces soon evict
/// each other; values from 5 to 8 are within 3 % of the fewest decodes.
const WORTH_TENTHS: u128 = 6;

/// The heap of candidates is not cleared below this length.
const MIN_VICTIMS: usize = 1 << 10;

/// The next use of a chunk that no known patch needs.
const UNKNOWN: u64 = u64::MAX;

/// The chunks and pieces that are held, by key, and the known uses of chunks by coming patches.
#[derive(Debug)]
pub(super) struct Reuse<K> {
    /// Bytes of the chunks and pieces that are held.
    held: u64,
    /// The patch whose uses were taken last.
    now: u64,
    chunks: HashMap<K, Entry>,
    /// Candidates for eviction, with their cost at some earlier time; outdated ones are skipped.
    victims: BinaryHeap<Victim<K>>,
    /// At this length the heap is cleared of outdated candidates.
    max_victims: usize,
}

#[derive(Debug)]
struct Entry {
    /// Bytes of the decoded chunk.
    bytes: u64,
    /// Its known uses by coming patches, the next one first.
    uses: VecDeque<Use>,
    /// The patch for which the chunk is held, which may be [`UNKNOWN`]; `None` if it is not held.
    held_for: Option<u64>,
}

#[derive(Debug)]
struct Use {
    patch: u64,
    /// Bytes of the piece that the patch needs of the chunk.
    bytes: u64,
    /// `true` if that piece is held.
    held: bool,
}

/// A chunk or piece that is held. Equal costs are ordered by key, so that decisions are deterministic.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Victim<K> {
    cost: u128,
    is_piece: bool,
    key: K,
    /// The patch that needs it next.
    patch: u64,
}

/// The source of a patch's part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The piece that is held for the patch, and no longer.
    Piece,
    /// The chunk, which is held.
    Chunk,
    /// The chunk, which must be decoded.
    Decode,
}

/// An eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Release<K> {
    /// A chunk; the pieces for these patches are cut out of it first.
    Chunk { key: K, pieces: Vec<u64> },
    /// The piece of a chunk for a patch.
    Piece { key: K, patch: u64 },
}

impl<K> Default for Reuse<K> {
    fn default() -> Self {
        Self {
            held: 0,
            now: 0,
            chunks: HashMap::new(),
            victims: BinaryHeap::new(),
            max_victims: MIN_VICTIMS,
        }
    }
}

impl Entry {
    /// Returns the bytes of a victim; `None` if it is no longer held for this use.
    fn bytes_of<K>(&self, victim: &Victim<K>) -> Option<u64> {
        if victim.is_piece {
            let mut uses = self.uses.iter();
            let coming = uses.find(|coming| coming.patch == victim.patch)?;
            coming.held.then_some(coming.bytes)
        } else {
            (self.held_for == Some(victim.patch)).then_some(self.bytes)
        }
    }
}

impl<K: Copy + Eq + Hash + Ord> Reuse<K> {
    /// Returns the patch that needs a chunk next and must decode it; `None` if none must, as far as is known now.
    pub(super) fn decoded_for(&self, key: K) -> Option<u64> {
        let entry = self.chunks.get(&key)?;
        let next = entry.uses.front()?;
        (entry.held_for.is_none() && !next.held).then_some(next.patch)
    }

    /// Holds a chunk of `bytes` bytes, of which no use is known yet.
    pub(super) fn hold(&mut self, key: K, bytes: u64) {
        self.held += bytes;
        let entry = Entry {
            bytes,
            uses: VecDeque::new(),
            held_for: Some(UNKNOWN),
        };
        self.chunks.insert(key, entry);
        self.victims.push(Victim {
            cost: cost(bytes, UNKNOWN, self.now),
            is_piece: false,
            key,
            patch: UNKNOWN,
        });
    }

    /// Returns the bytes of a chunk that is held.
    pub(super) fn held_bytes(&self, key: K) -> Option<u64> {
        let entry = self.chunks.get(&key)?;
        entry.held_for.map(|_| entry.bytes)
    }

    /// Forgets that a chunk is held: it could not be decoded.
    pub(super) fn lose_chunk(&mut self, key: K) {
        if let Some(entry) = self.chunks.get_mut(&key)
            && entry.held_for.take().is_some()
        {
            self.held -= entry.bytes;
            if entry.uses.is_empty() {
                self.chunks.remove(&key);
            }
        }
    }

    /// Forgets that a patch's piece of a chunk is held.
    pub(super) fn lose_piece(&mut self, key: K, patch: u64) {
        if let Some(entry) = self.chunks.get_mut(&key)
            && let Some(piece) = entry.uses.iter_mut().find(|coming| coming.patch == patch)
            && std::mem::take(&mut piece.held)
        {
            self.held -= piece.bytes;
        }
    }

    /// Adds a use: `patch` needs `piece_bytes` of the chunk `key`, which has `chunk_bytes` once it is
    /// decoded. Patches come in order.
    pub(super) fn expect(&mut self, patch: u64, key: K, piece_bytes: u64, chunk_bytes: u64) {
        let entry = self.chunks.entry(key).or_insert_with(|| Entry {
            bytes: chunk_bytes,
            uses: VecDeque::new(),
            held_for: None,
        });
        entry.uses.push_back(Use {
            patch,
            bytes: piece_bytes,
            held: false,
        });
        if entry.held_for == Some(UNKNOWN) {
            entry.held_for = Some(patch);
            self.victims.push(Victim {
                cost: cost(entry.bytes, patch, self.now),
                is_piece: false,
                key,
                patch,
            });
        }
    }

    /// Takes the next use of a chunk, by `patch`. After [`Source::Decode`] the chunk counts as held until
    /// [`settle`](Self::settle) evicts it.
    pub(super) fn take(&mut self, patch: u64, key: K) -> Source {
        self.now = patch;
        let entry = self.chunks.get_mut(&key).expect("every use is announced");
        let this = entry.uses.pop_front().expect("every use is announced");
        debug_assert_eq!(this.patch, patch, "uses are taken in order");
        let source = if this.held {
            self.held -= this.bytes;
            Source::Piece
        } else if entry.held_for.is_some() {
            Source::Chunk
        } else {
            self.held += entry.bytes;
            Source::Decode
        };
        if source != Source::Piece || entry.held_for.is_some() {
            let next = entry.uses.iter().find(|coming| !coming.held);
            let next = next.map_or(UNKNOWN, |coming| coming.patch);
            entry.held_for = Some(next);
            self.victims.push(Victim {
                cost: cost(entry.bytes, next, patch),
                is_piece: false,
                key,
                patch: next,
            });
        } else if entry.uses.is_empty() {
            self.chunks.remove(&key);
        }
        source
    }

    /// Evicts the most expensive chunks and pieces until no more than `budget` bytes are held; `patch` is
    /// handed out.
    pub(super) fn settle(&mut self, patch: u64, budget: u64, releases: &mut Vec<Release<K>>) {
        if self.victims.len() > self.max_victims {
            let chunks = &self.chunks;
            let is_held = |victim: &Victim<K>| {
                let entry = chunks.get(&victim.key);
                entry.and_then(|entry| entry.bytes_of(victim)).is_some()
            };
            self.victims.retain(is_held);
            self.max_victims = MIN_VICTIMS.max(2 * self.victims.len());
        }
        while self.held > budget {
            let Some(victim) = self.victims.pop() else {
                return;
            };
            let Some(entry) = self.chunks.get_mut(&victim.key) else {
                continue;
            };
            let Some(bytes) = entry.bytes_of(&victim) else {
                continue;
            };
            let now = cost(bytes, victim.patch, patch);
            if now < victim.cost {
                self.victims.push(Victim {
                    cost: now,
                    ..victim
                });
                continue;
            }
            self.held -= bytes;
            if victim.is_piece {
                let mut uses = entry.uses.iter_mut();
                if let Some(piece) = uses.find(|coming| coming.patch == victim.patch) {
                    piece.held = false;
                }
                releases.push(Release::Piece {
                    key: victim.key,
                    patch: victim.patch,
                });
                continue;
            }
            entry.held_for = None;
            let worth = now / 10 * WORTH_TENTHS;
            let mut pieces = Vec::new();
            for coming in &mut entry.uses {
                if coming.patch <= patch || coming.held {
                    continue;
                }
                let cost = cost(coming.bytes, coming.patch, patch);
                if cost >= worth {
                    break;
                }
                coming.held = true;
                self.held += coming.bytes;
                pieces.push(coming.patch);
                self.victims.push(Victim {
                    cost,
                    is_piece: true,
                    key: victim.key,
                    patch: coming.patch,
                });
            }
            if entry.uses.is_empty() {
                self.chunks.remove(&victim.key);
            }
            releases.push(Release::Chunk {
                key: victim.key,
                pieces,
            });
        }
    }
}

/// Returns bytes times the patches until the next use.
fn cost(bytes: u64, next: u64, now: u64) -> u128 {
    if next == UNKNOWN {
        return u128::MAX;
    }
    u128::from(bytes) * u128::from(next.saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::region::{Region, Shape, chunk_region};
    use crate::sampler::{Sampler, Uniform};
    use crate::volume::intersecting;

    const SHAPE: Shape = [1069, 512, 512];
    const PATCHES: u64 = 1500;
    type Key = [u64; 3];

    /// For each patch, the chunks that it wants, each with the voxels that it wants of it.
    fn wanted(chunk: u64, patch: u64, seed: u64) -> Vec<Vec<(Key, u64)>> {
        let uniform = Uniform::new(SHAPE, [patch; 3], seed).unwrap();
        let draws: Vec<u64> = (0..PATCHES).collect();
        let parts = |region: &Region| {
            let all = intersecting([1, chunk, chunk, chunk], &(0..1), *region);
            all.map(|[_, key @ ..]| {
                let part = region.intersection(&chunk_region(key, [chunk; 3]));
                (key, part.unwrap().voxels())
            })
            .collect()
        };
        uniform
            .draw_many(0, &draws)
            .unwrap()
            .iter()
            .map(parts)
            .collect()
    }

    /// Counts the decodes, with `ahead` patches known, and checks what is held at each step.
    fn decodes(all: &[Vec<(Key, u64)>], sizes: (u64, u64), budget: u64, ahead: usize) -> u64 {
        let (voxel, chunk) = sizes;
        let mut reuse = Reuse::default();
        let (mut chunks, mut pieces) = (HashSet::new(), HashSet::new());
        let (mut known, mut count, mut releases) = (0, 0, Vec::new());
        for (n, parts) in (0..).zip(all) {
            for (order, coming) in (0..)
                .zip(all)
                .skip(known)
                .take((usize::try_from(n).unwrap() + ahead).saturating_sub(known))
            {
                for (key, voxels) in coming {
                    reuse.expect(order, *key, voxels * voxel, chunk);
                }
                known += 1;
            }
            for (key, _) in parts {
                match reuse.take(n, *key) {
                    Source::Piece => assert!(pieces.remove(&(*key, n))),
                    Source::Chunk => assert!(chunks.contains(key)),
                    Source::Decode => {
                        assert!(chunks.insert(*key));
                        count += 1;
                    }
                }
                reuse.settle(n, budget, &mut releases);
                for release in releases.drain(..) {
                    match release {
                        Release::Piece { key, patch } => assert!(pieces.remove(&(key, patch))),
                        Release::Chunk { key, pieces: cut } => {
                            assert!(chunks.remove(&key));
                            pieces.extend(cut.into_iter().map(|patch| (key, patch)));
                        }
                    }
                }
                assert!(reuse.held <= budget);
                let held = 2 * (chunks.len() + pieces.len());
                assert!(reuse.victims.len() <= 2 * held + 2 * MIN_VICTIMS);
                assert!(chunks.len() as u64 * chunk <= reuse.held);
            }
        }
        assert!(pieces.is_empty() && reuse.held == chunks.len() as u64 * chunk);
        count
    }

    /// Decodes per random patch, of a scan of 1069 x 512 x 512 voxels: int16 in chunks of 64 and patches of 96;
    /// float32, the same; int16 in patches of 64; float32 in chunks of 32 and patches of 128. A loader that holds
    /// patches only decodes 7.05, 4.76 and 3.02 chunks a patch in the first row.
    #[test]
    fn random_patches_decode_a_third_to_a_half_of_what_a_window_of_patches_would() {
        const MOST: [(u64, u64, u64, [f64; 3]); 4] = [
            (64, 96, 2, [3.71, 2.12, 0.77]),
            (64, 96, 4, [5.36, 3.71, 2.12]),
            (64, 64, 2, [1.62, 1.12, 0.73]),
            (32, 128, 4, [67.2, 43.5, 21.7]),
        ];
        for (chunk, patch, voxel, most) in MOST {
            let all = wanted(chunk, patch, 7);
            let ahead = (1 << 15) * all.len() / all.iter().map(Vec::len).sum::<usize>();
            for (mib, most) in [128, 256, 512].into_iter().zip(most) {
                let budget = (mib << 20) - 8 * patch.pow(3) * voxel;
                let sizes = (voxel, chunk.pow(3) * voxel);
                let count = decodes(&all, sizes, budget, ahead.min(4096));
                #[expect(clippy::cast_precision_loss, reason = "small counts")]
                let each = count as f64 / PATCHES as f64;
                println!("{chunk} {patch} {voxel} {mib} MiB: {each:.2} of {most}");
                assert!(
                    each <= most * 1.05,
                    "{chunk} {patch} {voxel} {mib} MiB: {each}"
                );
            }
        }
    }

    #[test]
    fn what_is_held_fits_any_budget_and_nothing_is_left_at_the_end() {
        let all = wanted(64, 96, 3);
        let short = &all[..200];
        let mut last = u64::MAX;
        for budget in [0, 1, 1000, 1 << 19, 1 << 20, 1 << 22, 1 << 25, 1 << 40] {
            let count = decodes(short, (2, 1 << 19), budget, 4096);
            assert!(count <= last.saturating_add(last / 50), "{count} {last}");
            last = count;
        }
        let distinct: HashSet<Key> = short.iter().flatten().map(|(key, _)| *key).collect();
        assert_eq!(last, distinct.len() as u64, "each once where all fit");
        let uses: usize = short.iter().map(Vec::len).sum();
        assert_eq!(decodes(short, (2, 1 << 19), 0, 4096), uses as u64);
    }

    /// Something that can be held: a chunk, or a patch's piece of it.
    type Held = (Key, Option<usize>);

    /// The fewest decodes of a trace with all patches known, found by trying every choice.
    struct Fewest<'a> {
        /// The patch, the chunk, and the bytes of the piece, in the order of use.
        uses: Vec<(usize, Key, u64)>,
        chunk: u64,
        budget: u64,
        known: &'a mut HashMap<(usize, Vec<Held>), u64>,
    }

    impl Fewest<'_> {
        fn bytes(&self, (key, piece): Held) -> u64 {
            let is_this = |used: &&(usize, Key, u64)| used.1 == key && Some(used.0) == piece;
            let piece = self.uses.iter().find(is_this);
            piece.map_or(self.chunk, |&(_, _, bytes)| bytes)
        }

        /// Returns the decodes from the use `n` on, if `held` is held before it.
        fn from(&mut self, n: usize, held: Vec<Held>) -> u64 {
            let Some(&(patch, key, _)) = self.uses.get(n) else {
                return 0;
            };
            if let Some(&known) = self.known.get(&(n, held.clone())) {
                return known;
            }
            let has_piece = held.contains(&(key, Some(patch)));
            let has_chunk = held.contains(&(key, None));
            // All that could be held now: what was, the chunk that is decoded now, and pieces of chunks.
            let here = |&chunk: &Key| held.contains(&(chunk, None)) || (chunk == key && !has_piece);
            let later = &self.uses[n + 1..];
            let mut could: Vec<Held> = Vec::new();
            for &(coming, chunk, _) in later {
                if here(&chunk) {
                    could.push((chunk, None));
                }
                if here(&chunk) || held.contains(&(chunk, Some(coming))) {
                    could.push((chunk, Some(coming)));
                }
            }
            could.sort_unstable();
            could.dedup();
            let mut most = Vec::new();
            self.choices(&could, 0, &mut Vec::new(), &mut most);
            let rest = most.into_iter().map(|held| self.from(n + 1, held)).min();
            let fewest = rest.unwrap_or(0) + u64::from(!has_piece && !has_chunk);
            self.known.insert((n, held), fewest);
            fewest
        }

        /// Collects the choices that fit and to which nothing can be added: holding more is never worse.
        fn choices(
            &self,
            could: &[Held],
            next: usize,
            held: &mut Vec<Held>,
            all: &mut Vec<Vec<Held>>,
        ) {
            let total = |held: &[Held]| held.iter().map(|&held| self.bytes(held)).sum::<u64>();
            let room = self.budget - total(held);
            let Some(&item) = could.get(next) else {
                let is_missing = |item: &&Held| {
                    !held.contains(item) && !held.contains(&(item.0, None)) && item.1.is_some()
                };
                if !could
                    .iter()
                    .filter(is_missing)
                    .any(|&item| self.bytes(item) <= room)
                {
                    all.push(held.clone());
                }
                return;
            };
            // The pieces of a chunk that is held add nothing; a chunk comes before its pieces.
            if self.bytes(item) <= room && !held.contains(&(item.0, None)) {
                held.push(item);
                self.choices(could, next + 1, held, all);
                held.pop();
            }
            self.choices(could, next + 1, held, all);
        }
    }

    /// On short traces along one axis, of six chunks of 8 bytes, the rule is compared with the best
    /// decisions of all: 15 % more decodes, where only one to three chunks fit.
    #[test]
    fn few_more_chunks_are_decoded_than_with_the_best_decisions() {
        let mut random = crate::sampler::CounterRng::new(5, 0, 0);
        let (mut ours, mut fewest, mut alike) = (0, 0, 0);
        for _ in 0..300 {
            let length = 3 + random.below(6);
            let budget = 8 + random.below(17);
            let trace: Vec<Vec<(Key, u64)>> = (0..8)
                .map(|_| {
                    let start = random.below(48 - length + 1);
                    let chunks = start / 8..=(start + length - 1) / 8;
                    let part = |c: u64| (start + length).min(8 * c + 8) - start.max(8 * c);
                    chunks.map(|c| ([c, 0, 0], part(c))).collect()
                })
                .collect();
            let count = decodes(&trace, (1, 8), budget, 8);
            let uses = (0..)
                .zip(&trace)
                .flat_map(|(n, parts)| parts.iter().map(move |&(key, bytes)| (n, key, bytes)));
            let mut exact = Fewest {
                uses: uses.collect(),
                chunk: 8,
                budget,
                known: &mut HashMap::new(),
            };
            let best = exact.from(0, Vec::new());
            assert!(count >= best, "{trace:?}: {count} {best}");
            ours += count;
            fewest += best;
            alike += u64::from(count == best);
        }
        println!("{ours} decodes, at best {fewest}; alike in {alike} of 300");
        assert!(ours * 100 <= fewest * 118, "{ours} {fewest}");
    }
}
