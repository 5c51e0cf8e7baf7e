//! What an index knows of each block: the sum of its weights, or how often each label occurs.
//!
//! Only blocks with something in them take memory. Values that no draw could make sense of
//! are errors here, before the first draw: NaN and infinity, and negative weights.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::path::Path;

use super::blocks::{BlockVoxels, Blocks};
use super::class::{Class, bits_of};
use crate::dtype::{DType, Element, with_element};
use crate::error::{Error, Result};
use crate::region::Region;
use crate::volume::{Layout, Rescale};

/// Blocks with a number each, by increasing block.
pub(super) type Entries<N> = Vec<(u64, N)>;

/// Pairs of label and block that an index holds at most: 512 MiB of them.
const MOST_PAIRS: usize = 1 << 25;

/// A block whose voxels are to be added up.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub(super) layout: &'a Layout,
    pub(super) channel: u64,
    pub(super) id: u64,
    pub(super) region: Region,
    pub(super) voxels: BlockVoxels,
    /// Whether it is listed even if it holds nothing but background.
    pub(super) listed: bool,
}

/// What is known of all blocks; a part of it on each thread until they are merged.
pub trait Tally: Debug + Default + Send + Sync + sealed::Sealed {}

mod sealed {
    use super::super::blocks::Blocks;
    use super::{Block, Region, Result};

    /// What a [`Tally`](super::Tally) does, for this room only.
    pub trait Sealed: Sized {
        /// Tells the kinds apart in a file.
        const KIND: u8;
        /// Adds one block up.
        #[expect(private_interfaces, reason = "called in this room only")]
        fn add(&mut self, block: &Block<'_>) -> Result<()>;
        /// Takes over what another thread added up.
        fn merge(&mut self, other: Self);
        /// Puts the blocks in order.
        fn sort(&mut self);
        /// What is known of a part of the volume without reading any of it again, and the blocks
        /// of which nothing is. All of the background is listed if it is asked for.
        #[expect(private_interfaces, reason = "called in this room only")]
        fn clip(&self, blocks: &Blocks, part: &Region, background: bool) -> (Self, Vec<u64>);
        /// For a file.
        fn encode(&self, out: &mut Vec<u8>);
        /// Back from a file: `None` unless it can be of `blocks` blocks of up to `voxels` voxels.
        fn decode(bytes: &[u8], blocks: u64, voxels: u64) -> Option<Self>;
    }
}
pub(super) use sealed::Sealed;

/// The sum of the weights in each block that has any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightSums(pub(super) Entries<f64>);

/// How often each label occurs in each block that has it. A block that is not listed is all 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelCounts {
    pub(super) classes: BTreeMap<Class, Entries<u64>>,
    pairs: usize,
}

impl Tally for WeightSums {}
impl Tally for LabelCounts {}

impl Sealed for WeightSums {
    const KIND: u8 = 1;

    #[expect(private_interfaces, reason = "called in this room only")]
    fn add(&mut self, block: &Block<'_>) -> Result<()> {
        let layout = block.layout;
        let sum = match &block.voxels {
            BlockVoxels::Fill(voxel) => {
                let weight = groups(layout, voxel)
                    .next()
                    .map_or(Ok(0.0), |(_, sum)| sum)
                    .map_err(|_| bad_weight(block, 0, voxel))?;
                #[expect(clippy::cast_precision_loss, reason = "a sum is rounded anyway")]
                let count = block.region.voxels() as f64;
                weight * count
            }
            BlockVoxels::Stored(voxels) => {
                let mut sum = Sum::default();
                for (first, group) in groups(layout, voxels) {
                    sum.add(group.map_err(|i| bad_weight(block, first + i, voxels))?);
                }
                sum.value()
            }
        };
        if sum.is_infinite() {
            return Err(too_large(&layout.path));
        }
        if sum > 0.0 {
            self.0.push((block.id, sum));
        }
        Ok(())
    }

    fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    fn sort(&mut self) {
        self.0.sort_unstable_by_key(|&(block, _)| block);
        self.0.shrink_to_fit();
    }

    #[expect(private_interfaces, reason = "called in this room only")]
    fn clip(&self, blocks: &Blocks, part: &Region, _background: bool) -> (Self, Vec<u64>) {
        let (mut known, mut cut) = (Self::default(), Vec::new());
        for &(id, sum) in &self.0 {
            let block = blocks.region(id);
            match block.intersection(part) {
                Some(common) if common == block => known.0.push((id, sum)),
                Some(_) => cut.push(id),
                None => {}
            }
        }
        (known, cut)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        encode_entries(&self.0, out, f64::to_bits);
    }

    fn decode(mut bytes: &[u8], blocks: u64, _voxels: u64) -> Option<Self> {
        let sums = decode_entries(&mut bytes, blocks, |bits| {
            let sum = f64::from_bits(bits);
            (sum.is_finite() && sum > 0.0).then_some(sum)
        })?;
        bytes.is_empty().then_some(Self(sums))
    }
}

impl Sealed for LabelCounts {
    const KIND: u8 = 2;

    #[expect(private_interfaces, reason = "called in this room only")]
    fn add(&mut self, block: &Block<'_>) -> Result<()> {
        let dtype = block.layout.dtype;
        let counts = match &block.voxels {
            BlockVoxels::Fill(voxel) => HashMap::from([(bits_of(voxel), block.region.voxels())]),
            BlockVoxels::Stored(voxels) => count(dtype, voxels),
        };
        let mut classes: BTreeMap<Class, u64> = BTreeMap::new();
        for (bits, count) in counts {
            // Not finite: some voxel is not, and the first of those is named.
            let class = Class::of_voxel(dtype, bits).ok_or_else(|| bad_label(block))?;
            *classes.entry(class).or_default() += count;
        }
        if !block.listed && classes.len() == 1 && classes.contains_key(&Class::ZERO) {
            return Ok(());
        }
        self.pairs += classes.len();
        if self.pairs > MOST_PAIRS {
            return Err(Error::unsupported(
                &block.layout.path,
                format!(
                    "it has more than {MOST_PAIRS} pairs of label and block: this is hardly a label map"
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

    #[expect(private_interfaces, reason = "called in this room only")]
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
            let zeros = known.classes.entry(Class::ZERO).or_default();
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
            let class = Class::from_bytes(*class)?;
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
    /// Every block that holds more than background, by increasing number.
    fn listed(&self) -> Vec<u64> {
        let all = self.classes.values().flatten();
        let mut listed: Vec<u64> = all.map(|&(id, _)| id).collect();
        listed.sort_unstable();
        listed.dedup();
        listed
    }

    /// How often each label occurs in a volume of `voxels` voxels.
    pub(super) fn totals(&self, voxels: u64) -> BTreeMap<Class, u64> {
        let total = |entries: &Entries<u64>| entries.iter().map(|&(_, count)| count).sum::<u64>();
        let classes = self.classes.iter();
        let mut totals: BTreeMap<Class, u64> = classes
            .map(|(&class, entries)| (class, total(entries)))
            .collect();
        totals.remove(&Class::ZERO);
        let zeros = voxels.saturating_sub(totals.values().sum());
        if zeros > 0 {
            totals.insert(Class::ZERO, zeros);
        }
        totals
    }
}

/// A sum that does not lose small numbers beside large ones (A. Neumaier, 1974).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    sum: f64,
    lost: f64,
}

impl Sum {
    pub(super) fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - sum) + value
        } else {
            (value - sum) + self.sum
        };
        self.sum = sum;
    }

    /// The sum; infinite if it is too large.
    pub(super) fn value(self) -> f64 {
        if self.sum.is_finite() {
            self.sum + self.lost
        } else {
            f64::INFINITY
        }
    }
}

/// Voxels that are added up plainly before their sum is added to the others.
pub(super) const GROUP: usize = 64;

/// The sums of groups of [`GROUP`] weights, each with its first voxel; or, in place of a sum,
/// the first voxel of the group whose value is no weight.
pub(super) fn groups<'a>(
    layout: &'a Layout,
    voxels: &'a [u8],
) -> impl Iterator<Item = (usize, Result<f64, usize>)> + 'a {
    let size = layout.dtype.size();
    let groups = voxels.chunks(GROUP * size).enumerate();
    groups.map(move |(i, group)| (i * GROUP, add_up(layout, group)))
}

fn add_up(layout: &Layout, group: &[u8]) -> Result<f64, usize> {
    let mut weights = [0.0; GROUP];
    let count = to_weights(layout, group, &mut weights);
    // Whole numbers of an unscaled unsigned map are what a weight must be.
    match weights[..count].iter().position(|w| !is_weight(*w)) {
        Some(bad) => Err(bad),
        None => Ok(weights[..count].iter().sum()),
    }
}

fn is_weight(weight: f64) -> bool {
    (0.0..f64::INFINITY).contains(&weight)
}

/// The real values of a group of voxels; gives how many there are.
pub(super) fn to_weights(layout: &Layout, group: &[u8], weights: &mut [f64; GROUP]) -> usize {
    let Rescale { slope, intercept } = layout.rescale.unwrap_or(Rescale {
        slope: 1.0,
        intercept: 0.0,
    });
    let is_bool = layout.dtype == DType::Bool;
    with_element!(layout.dtype, T => {
        let values = group.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>);
        let mut count = 0;
        for (weight, value) in weights.iter_mut().zip(values) {
            let value = if is_bool { f64::from(value > T::default()) } else { value.to_f64() };
            *weight = value * slope + intercept;
            count += 1;
        }
        count
    })
}

/// How often each pattern of bits occurs.
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
    // Labels come in runs: the map is asked once for each.
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

/// Where voxel `i` of a region lies, row-major.
pub(super) fn place(region: Region, i: u64) -> [u64; 3] {
    let [_, y, x] = region.shape.map(|n| n.max(1));
    let within = [i / (y * x), i / x % y, i % x];
    std::array::from_fn(|a| region.start[a].unsigned_abs() + within[a])
}

#[cold]
fn bad_weight(block: &Block<'_>, i: usize, voxels: &[u8]) -> Error {
    let mut weights = [0.0; GROUP];
    let size = block.layout.dtype.size();
    to_weights(
        block.layout,
        &voxels[i * size..(i + 1) * size],
        &mut weights,
    );
    Error::MapValue {
        path: block.layout.path.clone(),
        channel: block.channel,
        voxel: place(block.region, i as u64),
        what: "weight",
        value: weights[0].to_string(),
        allowed: "weights must be finite and not negative",
    }
}

#[cold]
fn bad_label(block: &Block<'_>) -> Error {
    let layout = block.layout;
    let (BlockVoxels::Fill(voxels) | BlockVoxels::Stored(voxels)) = &block.voxels;
    let mut all = voxels.chunks_exact(layout.dtype.size());
    let i = all
        .position(|voxel| Class::of_voxel(layout.dtype, bits_of(voxel)).is_none())
        .unwrap_or(0);
    let size = layout.dtype.size();
    let voxel = &voxels[i * size..(i + 1) * size];
    let value = with_element!(layout.dtype, T => {
        bytemuck::pod_read_unaligned::<T>(voxel).to_f64()
    });
    Error::MapValue {
        path: layout.path.clone(),
        channel: block.channel,
        voxel: place(block.region, i as u64),
        what: "label",
        value: value.to_string(),
        allowed: "labels must be finite",
    }
}

/// The error of weights whose sum no f64 can hold.
pub(super) fn too_large(path: &Path) -> Error {
    Error::unsupported(
        path,
        "the sum of its weights is too large for an f64: make them smaller",
    )
}

fn encode_entries<N: Copy>(entries: &Entries<N>, out: &mut Vec<u8>, bits: impl Fn(N) -> u64) {
    out.extend((entries.len() as u64).to_le_bytes());
    for &(block, number) in entries {
        out.extend(block.to_le_bytes());
        out.extend(bits(number).to_le_bytes());
    }
}

fn decode_entries<N>(
    bytes: &mut &[u8],
    blocks: u64,
    number: impl Fn(u64) -> Option<N>,
) -> Option<Entries<N>> {
    let length = usize::try_from(take_u64(bytes)?.checked_mul(16)?).ok()?;
    let (entries, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    let mut earliest = 0;
    let parse = |entry: &[u8; 16]| {
        let mut entry = &entry[..];
        let block = take_u64(&mut entry).filter(|&block| block >= earliest && block < blocks)?;
        earliest = block + 1;
        Some((block, number(take_u64(&mut entry)?)?))
    };
    entries.as_chunks().0.iter().map(parse).collect()
}

pub(super) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_weights_beside_large_ones_are_not_lost() {
        let mut sum = Sum::default();
        for value in [1e30, 1.0, 1e-9, -1e30] {
            sum.add(value);
        }
        assert!((sum.value() - (1.0 + 1e-9)).abs() < 1e-15);
        let mut sum = Sum::default();
        (0..3).for_each(|_| sum.add(f64::MAX));
        assert!(sum.value().is_infinite(), "too large is not NaN");
    }

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

    fn some_counts() -> LabelCounts {
        LabelCounts {
            classes: BTreeMap::from([
                (Class::from(-1), vec![(0, 5), (7, 1)]),
                (Class::real(0.5).unwrap(), vec![(3, 9)]),
            ]),
            pairs: 3,
        }
    }

    #[test]
    fn sums_and_counts_go_to_bytes_and_back() {
        let mut bytes = Vec::new();
        some_counts().encode(&mut bytes);
        assert_eq!(LabelCounts::decode(&bytes, 8, 9), Some(some_counts()));
        let mut bytes = Vec::new();
        let sums = WeightSums(vec![(1, 0.5), (4, 1e300)]);
        sums.encode(&mut bytes);
        assert_eq!(WeightSums::decode(&bytes, 5, 1), Some(sums));
    }

    #[test]
    fn bytes_that_no_index_can_have_are_refused() {
        let mut bytes = Vec::new();
        some_counts().encode(&mut bytes);
        assert_eq!(LabelCounts::decode(&bytes, 7, 9), None, "no such block");
        assert_eq!(LabelCounts::decode(&bytes, 8, 8), None, "more than voxels");
        for end in 0..bytes.len() {
            assert_eq!(LabelCounts::decode(&bytes[..end], 8, 9), None, "{end}");
        }
        bytes.push(0);
        assert_eq!(LabelCounts::decode(&bytes, 8, 9), None, "more than it says");
        bytes[25..33].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(LabelCounts::decode(&bytes, 8, 9), None, "an absurd length");
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let mut bytes = Vec::new();
            WeightSums(vec![(1, bad)]).encode(&mut bytes);
            assert_eq!(WeightSums::decode(&bytes, 5, 1), None);
        }
        let mut bytes = Vec::new();
        WeightSums(vec![(2, 1.0), (2, 1.0)]).encode(&mut bytes);
        assert_eq!(WeightSums::decode(&bytes, 5, 1), None, "a block twice");
    }
}
