//! The second step of a draw: the search for a voxel inside a block.
//!
//! A block is read once and indexed, so that a binary search finds its k-th voxel of a label, or the voxel at some
//! fraction of its weight. Indexed blocks are cached within a byte budget. For a label, the index is a list of runs of
//! voxels, or one bit per voxel if that is smaller.

use std::sync::Arc;

use super::blocks::{BlockVoxels, Blocks, read_block, spread};
use super::border::CenterBox;
use super::class::{Matcher, bits_of};
use super::random::fraction;
use super::sums::place;
use super::weights::{CompensatedSum, GROUP, groups, to_weights};
use crate::error::{Error, Result};
use crate::progress::silent;
use crate::region::Region;
use crate::volume::lru::Lru;
use crate::volume::{Layout, Volume};

/// The target of a search in a block.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    Weight,
    Label(Matcher),
}

/// A draw with its block. `rest` selects the voxel: the k-th of a label, or a fraction of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Aim {
    pub(super) block: u64,
    /// The index into the finder's targets.
    pub(super) group: usize,
    pub(super) rest: u64,
}

/// A search for voxels inside the blocks of one channel of a volume.
#[derive(Debug)]
pub(super) struct Finder {
    volume: Arc<dyn Volume>,
    channel: u64,
    blocks: Blocks,
    placement: CenterBox,
    wanted: Vec<Wanted>,
    ready: Lru<(u64, usize), Arc<ReadyBlock>>,
    threads: usize,
}

/// The maximum number of targets for which a block is indexed at once.
const TOGETHER: usize = 8;

/// The minimum number of unread blocks for reading on several threads.
const MANY: usize = 8;

impl Finder {
    pub(super) fn new(
        volume: Arc<dyn Volume>,
        channel: u64,
        blocks: Blocks,
        placement: CenterBox,
        wanted: Vec<Wanted>,
        (budget, threads): (u64, usize),
    ) -> Self {
        Self {
            volume,
            channel,
            blocks,
            placement,
            wanted,
            ready: Lru::new(budget, |ready: &Arc<ReadyBlock>| ready.bytes()),
            threads,
        }
    }

    pub(super) const fn placement(&self) -> &CenterBox {
        &self.placement
    }

    /// Returns the part of a block that contains legal centers.
    fn part(&self, block: u64) -> Region {
        let block = self.blocks.region(block);
        block
            .intersection(&self.placement.centers())
            .unwrap_or(Region {
                shape: [0; 3],
                ..block
            })
    }

    /// Returns the indexed part of a block. The block is read unless `read` contains it.
    fn ready(&self, aim: Aim, read: &mut Option<(u64, BlockVoxels)>) -> Result<Arc<ReadyBlock>> {
        let (found, hit) = self.ready_for(aim.block, aim.group, read)?;
        if !hit && self.wanted.len() <= TOGETHER {
            for group in (0..self.wanted.len()).filter(|&group| group != aim.group) {
                self.ready_for(aim.block, group, read)?;
            }
        }
        Ok(found)
    }

    /// Returns the same for one target, and `true` if it was cached.
    fn ready_for(
        &self,
        block: u64,
        group: usize,
        read: &mut Option<(u64, BlockVoxels)>,
    ) -> Result<(Arc<ReadyBlock>, bool)> {
        let part = self.part(block);
        let load = || {
            let voxels = match read {
                Some((held, voxels)) if *held == block => voxels,
                _ => {
                    let voxels = read_block(&*self.volume, self.channel, part)?;
                    &read.insert((block, voxels)).1
                }
            };
            let layout = self.volume.layout();
            Ok(Arc::new(ReadyBlock::new(
                layout,
                self.wanted[group],
                voxels,
                part,
            )))
        };
        self.ready.get_or_load(&(block, group), load)
    }

    fn center(&self, aim: Aim, ready: &ReadyBlock) -> Result<[u64; 3]> {
        let layout = self.volume.layout();
        let voxel = ready.find(layout, aim.rest).ok_or_else(|| {
            Error::unsupported(
                &layout.path,
                "it has changed since its block index was built: rebuild the index",
            )
        })?;
        Ok(place(self.part(aim.block), voxel))
    }

    /// Returns the center of a draw.
    pub(super) fn find(&self, aim: Aim) -> Result<[u64; 3]> {
        self.center(aim, &*self.ready(aim, &mut None)?)
    }

    /// Returns the patches of many draws, in their order. Each block is read at most once.
    pub(super) fn find_all(&self, aims: &[Aim]) -> Result<Vec<Region>> {
        let mut order: Vec<usize> = (0..aims.len()).collect();
        order.sort_unstable_by_key(|&i| aims[i]);
        let blocks: Vec<&[usize]> = order
            .chunk_by(|&a, &b| aims[a].block == aims[b].block)
            .collect();
        let is_new = |draws: &&&[usize]| {
            let Aim { block, group, .. } = aims[draws[0]];
            !self.ready.contains(&(block, group))
        };
        let many = blocks.iter().filter(is_new).count() >= MANY;
        let threads = if many { self.threads } else { 1 };
        let find = |found: &mut Vec<(usize, Region)>, n: u64| {
            let mut read = None;
            let draws = usize::try_from(n).ok().and_then(|n| blocks.get(n));
            for &i in draws.into_iter().copied().flatten() {
                let ready = self.ready(aims[i], &mut read)?;
                found.push((i, self.placement.region(self.center(aims[i], &ready)?)));
            }
            Ok(())
        };
        let found = spread(blocks.len() as u64, threads, &silent, find)?;
        let mut regions = vec![Region::new([0; 3], self.placement.patch()); aims.len()];
        for (i, region) in found.into_iter().flatten() {
            regions[i] = region;
        }
        Ok(regions)
    }

    #[cfg(test)]
    pub(super) fn share(&self, aim: Aim, center: [u64; 3]) -> f64 {
        let part = self.part(aim.block);
        let at = |a: usize| center[a] - part.start[a].unsigned_abs();
        let voxel = (at(0) * part.shape[1] + at(1)) * part.shape[2] + at(2);
        let ready = self.ready(aim, &mut None).unwrap();
        ready.share(self.volume.layout(), voxel)
    }

    #[cfg(test)]
    pub(super) fn block_of(&self, center: [u64; 3]) -> Option<u64> {
        let voxel = Region::new(center.map(u64::cast_signed), [1; 3]);
        (0..self.blocks.count()).find(|&block| self.part(block).contains(&voxel))
    }
}

/// The indexed part of a block.
#[derive(Debug)]
enum ReadyBlock {
    /// The number of voxels, all of which match.
    Same(u64),
    /// The runs of matching voxels, row-major: the start of each, and the number of matches up to its end.
    Runs { starts: Vec<u32>, ends: Vec<u32> },
    /// One bit per voxel, and the number of set bits before each [`STRIDE`] words.
    Many { words: Vec<u64>, before: Vec<u64> },
    /// The voxels, and the cumulative weight at the end of each [`GROUP`].
    Weights { voxels: Vec<u8>, ends: Vec<f64> },
    /// The number of voxels, all with the same weight.
    SameWeight(u64),
}

/// The number of words that a search scans.
const STRIDE: usize = 8;

impl ReadyBlock {
    fn new(layout: &Layout, wanted: Wanted, voxels: &BlockVoxels, part: Region) -> Self {
        let count = part.voxels();
        match (wanted, voxels) {
            (Wanted::Label(matcher), BlockVoxels::Fill(voxel)) => {
                Self::Same(if matcher.wants(bits_of(voxel)) {
                    count
                } else {
                    0
                })
            }
            (Wanted::Label(matcher), BlockVoxels::Stored(voxels)) => {
                Self::label(layout.dtype.size(), matcher, voxels)
            }
            (Wanted::Weight, BlockVoxels::Fill(voxel)) => {
                let some = groups(layout, voxel).any(|(_, sum)| sum.is_ok_and(|sum| sum > 0.0));
                Self::SameWeight(if some { count } else { 0 })
            }
            (Wanted::Weight, BlockVoxels::Stored(voxels)) => {
                let (mut sum, mut end) = (CompensatedSum::default(), 0.0_f64);
                let mut add = |group: f64| {
                    sum.add(group);
                    end = end.max(sum.value());
                    end
                };
                // A value that is not a valid weight has weight 0, as when the index was built.
                let groups = groups(layout, voxels).map(|(_, group)| add(group.unwrap_or(0.0)));
                Self::Weights {
                    ends: groups.collect(),
                    voxels: voxels.clone(),
                }
            }
        }
    }

    fn label(size: usize, matcher: Matcher, voxels: &[u8]) -> Self {
        let word = |voxels: &[u8]| {
            let all = voxels.chunks_exact(size).enumerate();
            all.fold(0, |word, (i, voxel)| {
                word | u64::from(matcher.wants(bits_of(voxel))) << i
            })
        };
        let words: Vec<u64> = match size {
            // Eight voxels at a time, for speed.
            1 => voxels
                .chunks(64)
                .map(|voxels| {
                    let (eights, rest) = voxels.as_chunks::<8>();
                    let mut bytes = [0; 8];
                    for (byte, &eight) in bytes.iter_mut().zip(eights) {
                        *byte = matcher.wants_bytes(eight);
                    }
                    u64::from_le_bytes(bytes) | word(rest) << (eights.len() * 8 % 64)
                })
                .collect(),
            _ => voxels.chunks(64 * size).map(word).collect(),
        };
        let ones = |words: &[u64]| words.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        let count = ones(&words);
        if count == (voxels.len() / size) as u64 {
            return Self::Same(count);
        }
        // A run takes two numbers; bits take two per word and one per stride.
        let most = words.len() + words.len().div_ceil(STRIDE);
        if u32::try_from(voxels.len() / size).is_ok() && run_count(&words) <= most {
            return Self::runs(&words);
        }
        let before = words.chunks(STRIDE).scan(0, |total, words| {
            let before = *total;
            *total += ones(words);
            Some(before)
        });
        Self::Many {
            before: before.collect(),
            words,
        }
    }

    /// Returns the runs of set bits, of which there must be fewer than 2^32.
    fn runs(words: &[u64]) -> Self {
        let count = run_count(words);
        let (mut starts, mut ends) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let (mut total, mut before) = (0, 0);
        for (first, &word) in (0_u32..).step_by(64).zip(words) {
            let mut left = word;
            while left != 0 {
                let start = left.trailing_zeros();
                let length = (left >> start).trailing_ones();
                total += length;
                match ends.last_mut() {
                    // It continues from the previous word.
                    Some(end) if start == 0 && before >> 63 == 1 => *end = total,
                    _ => {
                        starts.push(first + start);
                        ends.push(total);
                    }
                }
                left &= u64::MAX.checked_shl(start + length).unwrap_or(0);
            }
            before = word;
        }
        Self::Runs { starts, ends }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Same(_) | Self::SameWeight(_) => 0,
            Self::Runs { starts, ends } => (starts.len() + ends.len()) * 4,
            Self::Many { words, before } => (words.len() + before.len()) * 8,
            Self::Weights { voxels, ends } => voxels.len() + ends.len() * 8,
        }
    }

    /// Returns the voxel's position in the part, row-major; `None` if `rest` is out of range.
    fn find(&self, layout: &Layout, rest: u64) -> Option<u64> {
        match self {
            Self::Same(count) => (rest < *count).then_some(rest),
            Self::Runs { starts, ends } => {
                let run = ends.partition_point(|&end| u64::from(end) <= rest);
                let before = run.checked_sub(1).map_or(0, |run| ends[run]);
                Some(u64::from(*starts.get(run)?) + rest - u64::from(before))
            }
            Self::Many { words, before } => find_bit(words, before, rest),
            Self::SameWeight(0) => None,
            Self::SameWeight(count) => {
                let high = (u128::from(rest) * u128::from(*count)) >> 64;
                u64::try_from(high).ok()
            }
            Self::Weights { voxels, ends } => {
                let total = *ends.last().filter(|&&total| total > 0.0)?;
                let at = fraction(rest) * total;
                let group = ends.partition_point(|&end| end <= at);
                let group = group.min(ends.partition_point(|&end| end < total));
                let before = group.checked_sub(1).map_or(0.0, |i| ends[i]);
                let mut weights = [0.0; GROUP];
                let size = layout.dtype.size();
                let voxels = voxels.chunks(GROUP * size).nth(group)?;
                let count = to_weights(layout, voxels, &mut weights);
                Some((group * GROUP) as u64 + find_weight(&weights[..count], at - before)?)
            }
        }
    }

    #[cfg(test)]
    fn share(&self, layout: &Layout, voxel: u64) -> f64 {
        let Self::Weights { voxels, ends } = self else {
            let Self::SameWeight(count) = self else {
                panic!("only weights have shares");
            };
            return 1.0 / f64::from(u32::try_from(*count).unwrap());
        };
        let (voxel, mut weights) = (usize::try_from(voxel).unwrap(), [0.0; GROUP]);
        let group = voxel / GROUP;
        let bytes = voxels.chunks(GROUP * layout.dtype.size()).nth(group);
        let count = to_weights(layout, bytes.unwrap(), &mut weights);
        let own = weights[voxel % GROUP];
        let sum: f64 = weights[..count].iter().sum();
        let before = if group == 0 { 0.0 } else { ends[group - 1] };
        if own == 0.0 {
            return 0.0;
        }
        (ends[group] - before) / ends.last().unwrap() * (own / sum)
    }
}

/// Returns the number of runs of set bits.
fn run_count(words: &[u64]) -> usize {
    let begun = |&(before, word): &(u64, u64)| (word & !(word << 1 | before >> 63)).count_ones();
    let before = std::iter::once(0).chain(words.iter().copied());
    let pairs = before.zip(words.iter().copied());
    pairs.map(|pair| begun(&pair) as usize).sum()
}

/// Returns the position of the set bit that follows `rest` set bits.
fn find_bit(words: &[u64], before: &[u64], rest: u64) -> Option<u64> {
    let stride = before
        .partition_point(|&count| count <= rest)
        .checked_sub(1)?;
    let mut left = rest - before[stride];
    for (i, &word) in (0..).zip(words).skip(stride * STRIDE).take(STRIDE) {
        let ones = u64::from(word.count_ones());
        if left < ones {
            let mut word = word;
            (0..left).for_each(|_| word &= word - 1);
            return Some(i * 64 + u64::from(word.trailing_zeros()));
        }
        left -= ones;
    }
    None
}

/// Returns the first voxel whose cumulative weight exceeds `at`; its own weight is never 0.
fn find_weight(weights: &[f64], at: f64) -> Option<u64> {
    let mut end = 0.0;
    let reached = (0..).zip(weights).find(|&(_, &weight)| {
        end += weight;
        weight > 0.0 && end > at
    });
    // Sums are rounded: a weight past the end selects the last voxel.
    let last = || {
        (0..)
            .zip(weights)
            .filter(|&(_, &weight)| weight > 0.0)
            .last()
    };
    reached.or_else(last).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    fn layout(dtype: DType) -> Layout {
        Layout::new([1, 1, 1], 1, dtype)
    }

    #[test]
    fn the_kth_voxel_of_a_label_is_the_one_that_counting_finds() {
        let matcher = crate::sampler::LabelValue::from(1)
            .matcher(DType::U16)
            .unwrap();
        for length in [1_u16, 63, 64, 65, 511, 512, 513, 1500] {
            for every in [1_u16, 2, 3, 61, 100, 5000] {
                let voxels: Vec<u16> = (0..length).map(|i| u16::from(i % every == 0)).collect();
                let ready = ReadyBlock::label(2, matcher, bytemuck::cast_slice(&voxels));
                let found: Vec<u64> = (0..)
                    .map_while(|k| ready.find(&layout(DType::U16), k))
                    .collect();
                let expected = (0..u64::from(length)).filter(|i| i % u64::from(every) == 0);
                assert_eq!(found, expected.collect::<Vec<_>>(), "{length} {every}");
            }
        }
    }

    #[test]
    fn a_label_is_indexed_as_runs_or_as_bits_whichever_is_smaller() {
        let matcher = crate::sampler::LabelValue::from(1)
            .matcher(DType::U8)
            .unwrap();
        for run in [1_usize, 2, 3, 31, 63, 64, 65, 127, 128, 200] {
            for gap in [1_usize, 2, 5, 64, 100] {
                let voxel = |i: usize| u8::from(i % (run + gap) >= gap);
                let voxels: Vec<u8> = (0..64 * 64).map(voxel).collect();
                let ready = ReadyBlock::label(1, matcher, &voxels);
                let found: Vec<usize> = (0..)
                    .map_while(|k| ready.find(&layout(DType::U8), k))
                    .map(|place| usize::try_from(place).unwrap())
                    .collect();
                let expected: Vec<usize> = (0..voxels.len()).filter(|&i| voxel(i) == 1).collect();
                assert_eq!(found, expected, "{run} {gap}");
                let begins = |&i: &usize| voxel(i) == 1 && (i == 0 || voxel(i - 1) == 0);
                let runs = (0..voxels.len()).filter(begins).count();
                assert_eq!(
                    matches!(ready, ReadyBlock::Runs { .. }),
                    runs <= 72,
                    "{run} {gap}"
                );
                assert_eq!(ready.bytes(), 8 * runs.min(72), "{run} {gap}");
            }
        }
    }

    #[test]
    fn a_voxel_without_weight_is_never_found_despite_rounding() {
        let weights: Vec<f64> = (0..200)
            .map(|i| if i % 3 == 0 { 0.1 * f64::from(i) } else { 0.0 })
            .collect();
        let voxels = BlockVoxels::Stored(bytemuck::cast_slice(&weights).to_vec());
        let part = Region::whole([1, 1, 200]);
        let ready = ReadyBlock::new(&layout(DType::F64), Wanted::Weight, &voxels, part);
        let numbers = [0, 1 << 11, u64::MAX, u64::MAX - (1 << 11), 1 << 63];
        let many = (0..2000).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for number in numbers.into_iter().chain(many) {
            let voxel = ready.find(&layout(DType::F64), number).unwrap();
            assert!(weights[usize::try_from(voxel).unwrap()] > 0.0);
        }
        assert_eq!(ready.find(&layout(DType::F64), 0), Some(3));
        assert_eq!(ready.find(&layout(DType::F64), u64::MAX), Some(198));
    }

    #[test]
    fn a_place_beyond_the_total_weight_is_the_last_voxel_with_weight() {
        assert_eq!(find_weight(&[0.0, 0.5, 0.0, 0.25, 0.0], 0.75), Some(3));
        assert_eq!(find_weight(&[0.0, 0.5, 0.0, 0.25, 0.0], 0.0), Some(1));
        assert_eq!(find_weight(&[0.0, 0.0], 0.0), None);
    }
}
