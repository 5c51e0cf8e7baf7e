//! The voxel count of each label in each block.
//!
//! Any finite number is a label, except fractions that a slope or intercept produced. Other values are errors before
//! the first draw.

use std::collections::{BTreeMap, HashMap};

use super::blocks::{BlockVoxels, Blocks};
use super::class::{LabelValue, bits_of};
use super::sums::{
    Block, BlockStats, Entries, Sealed, decode_entries, encode_entries, place, take_u64,
};
use crate::dtype::{DType, Element, with_element};
use crate::error::{Error, Result};
use crate::region::Region;

/// The maximum number of (label, block) pairs in an index: 512 MiB.
const MOST_PAIRS: usize = 1 << 25;

/// The voxel count of each label in each block that has it. A block that is not listed is all 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelCounts {
    pub(super) classes: BTreeMap<LabelValue, Entries<u64>>,
    pub(super) pairs: usize,
}

impl BlockStats for LabelCounts {}

impl Sealed for LabelCounts {
    const KIND: u8 = 2;

    #[expect(private_interfaces, reason = "only called in this module")]
    fn add(&mut self, block: &Block<'_>) -> Result<()> {
        let dtype = block.layout.dtype;
        let counts = match &block.voxels {
            BlockVoxels::Fill(voxel) => HashMap::from([(bits_of(voxel), block.region.voxels())]),
            BlockVoxels::Stored(voxels) => count(dtype, voxels),
        };
        let mut classes: BTreeMap<LabelValue, u64> = BTreeMap::new();
        for (bits, count) in counts {
            // Some voxel is not a label; the error names the first.
            let class = LabelValue::of_map(block.layout, bits).ok_or_else(|| bad_label(block))?;
            *classes.entry(class).or_default() += count;
        }
        if !block.listed && classes.len() == 1 && classes.contains_key(&LabelValue::ZERO) {
            return Ok(());
        }
        self.pairs += classes.len();
        if self.pairs > MOST_PAIRS {
            return Err(Error::unsupported(
                &block.layout.path,
                format!(
                    "it has more than {MOST_PAIRS} pairs of label and block: it is probably not a label map"
                ),
            ));
        }
        for (class, count) in classes {
            self.classes
                .entry(class)
                .or_default()
                .push((block.id, count));
        }
        Ok(())
    }

    fn merge(&mut self, other: Self) {
        self.pairs += other.pairs;
        for (class, blocks) in other.classes {
            self.classes.entry(class).or_default().extend(blocks);
        }
    }

    fn sort(&mut self) {
        for blocks in self.classes.values_mut() {
            blocks.sort_unstable_by_key(|&(block, _)| block);
            blocks.shrink_to_fit();
        }
    }

    #[expect(private_interfaces, reason = "only called in this module")]
    fn clip(&self, blocks: &Blocks, part: &Region, background: bool) -> (Self, Vec<u64>) {
        let (mut known, mut cut) = (Self::default(), Vec::new());
        for (&class, entries) in &self.classes {
            let kept = known.classes.entry(class).or_default();
            for &(id, count) in entries {
                let block = blocks.region(id);
                match block.intersection(part) {
                    Some(common) if common == block => kept.push((id, count)),
                    Some(common) if count == block.voxels() => kept.push((id, common.voxels())),
                    Some(_) => cut.push(id),
                    None => {}
                }
            }
        }
        cut.sort_unstable();
        cut.dedup();
        if background {
            let zeros = known.classes.entry(LabelValue::ZERO).or_default();
            let mut listed = self.listed().into_iter().peekable();
            for id in 0..blocks.count() {
                if listed.next_if_eq(&id).is_some() {
                    continue;
                }
                if let Some(common) = blocks.region(id).intersection(part) {
                    zeros.push((id, common.voxels()));
                }
            }
            zeros.sort_unstable_by_key(|&(id, _)| id);
        }
        (known, cut)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.classes.len() as u64).to_le_bytes());
        for (class, blocks) in &self.classes {
            out.extend(class.to_bytes());
            encode_entries(blocks, out, |count| count);
        }
    }

    fn decode(mut bytes: &[u8], blocks: u64, voxels: u64) -> Option<Self> {
        let mut counts = Self::default();
        for _ in 0..take_u64(&mut bytes)? {
            let (class, rest) = bytes.split_first_chunk()?;
            let class = LabelValue::from_bytes(*class)?;
            bytes = rest;
            let entries = decode_entries(&mut bytes, blocks, |count| {
                (count > 0 && count <= voxels).then_some(count)
            })?;
            counts.pairs += entries.len();
            if counts.classes.insert(class, entries).is_some() {
                return None;
            }
        }
        bytes.is_empty().then_some(counts)
    }
}

impl LabelCounts {
    /// Returns every block in the index, by increasing number.
    fn listed(&self) -> Vec<u64> {
        let all = self.classes.values().flatten();
        let mut listed: Vec<u64> = all.map(|&(id, _)| id).collect();
        listed.sort_unstable();
        listed.dedup();
        listed
    }

    /// Returns the count of each label in a volume of `voxels` voxels.
    pub(super) fn totals(&self, voxels: u64) -> BTreeMap<LabelValue, u64> {
        let total = |entries: &Entries<u64>| entries.iter().map(|&(_, count)| count).sum::<u64>();
        let classes = self.classes.iter();
        let mut totals: BTreeMap<LabelValue, u64> = classes
            .map(|(&class, entries)| (class, total(entries)))
            .collect();
        totals.remove(&LabelValue::ZERO);
        let zeros = voxels.saturating_sub(totals.values().sum());
        if zeros > 0 {
            totals.insert(LabelValue::ZERO, zeros);
        }
        totals
    }
}

/// Returns the count of each bit pattern.
fn count(dtype: DType, voxels: &[u8]) -> HashMap<u64, u64> {
    if dtype.size() == 1 {
        let mut counts = [0_u64; 256];
        for &voxel in voxels {
            counts[usize::from(voxel)] += 1;
        }
        let all = (0..).zip(counts);
        return all.filter(|&(_, count)| count > 0).collect();
    }
    let mut counts = HashMap::new();
    let (mut last, mut run) = (0, 0);
    // Labels form runs: one lookup per run.
    for voxel in voxels.chunks_exact(dtype.size()) {
        let bits = bits_of(voxel);
        if bits != last && run > 0 {
            *counts.entry(last).or_default() += run;
            run = 0;
        }
        last = bits;
        run += 1;
    }
    if run > 0 {
        *counts.entry(last).or_default() += run;
    }
    counts
}

#[cold]
fn bad_label(block: &Block<'_>) -> Error {
    let layout = block.layout;
    let (BlockVoxels::Fill(voxels) | BlockVoxels::Stored(voxels)) = &block.voxels;
    let mut all = voxels.chunks_exact(layout.dtype.size());
    let i = all
        .position(|voxel| LabelValue::of_map(layout, bits_of(voxel)).is_none())
        .unwrap_or(0);
    let size = layout.dtype.size();
    let voxel = &voxels[i * size..(i + 1) * size];
    let value = with_element!(layout.dtype, T => {
        bytemuck::pod_read_unaligned::<T>(voxel).to_f64()
    });
    Error::InvalidMapValue {
        path: layout.path.clone(),
        channel: block.channel,
        voxel: place(block.region, i as u64),
        what: "label",
        value: value.to_string(),
        allowed: if value.is_finite() {
            "labels that a slope or intercept produces must be whole numbers below 2^24"
        } else {
            "labels must be finite"
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_counted_by_their_bits_in_every_width() {
        let bytes = count(DType::U8, &[3, 3, 0, 255, 3]);
        assert_eq!(bytes, HashMap::from([(0, 1), (3, 3), (255, 1)]));
        let long: Vec<u64> = vec![0, 0, (1 << 53) + 1, 1 << 53, 1 << 53, 0];
        let counts = count(DType::U64, bytemuck::cast_slice(&long));
        assert_eq!(
            counts,
            HashMap::from([(0, 3), (1 << 53, 2), ((1 << 53) + 1, 1)])
        );
        assert!(count(DType::I16, &[]).is_empty());
    }
}
