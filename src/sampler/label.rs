//! Sampling by label.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::border::CenterBox;
use super::class::{LabelValue, Matcher};
use super::counts::LabelCounts;
use super::draw::{Sampler, SamplerOptions};
use super::find::{Aim, Finder, Wanted};
use super::index::LabelIndex;
use super::near::{Neighborhood, along_the_curve};
use super::random::CounterRng;
use super::sums::Entries;
use crate::error::{Error, Result};
use crate::region::{Region, Shape};
use crate::volume::Volume;

/// The share of each label among patch centers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelWeights(Option<BTreeMap<LabelValue, f64>>);

impl LabelWeights {
    /// Makes all non-zero voxels equally likely: large labels are drawn more often than small ones.
    #[must_use]
    pub const fn foreground() -> Self {
        Self(None)
    }

    /// Sets a weight for each label, relative to their sum. Labels that are not listed or have a weight of 0 are never
    /// drawn.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if no label is listed or one twice, if a weight is negative or not finite, or if all
    /// are 0.
    pub fn new(weights: impl IntoIterator<Item = (LabelValue, f64)>) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (class, weight) in weights {
            check_share(&format_args!("of label {class}: {weight}"), weight)?;
            if all.insert(class, weight).is_some() {
                return Err(bad(format!("of label {class}"), "it is listed twice"));
            }
        }
        check_sum(all.values())?;
        Ok(Self(Some(all)))
    }

    /// Returns the labels with a weight above 0, by increasing label; empty for all non-zero labels.
    pub fn classes(&self) -> impl Iterator<Item = LabelValue> + '_ {
        let named = self.0.iter().flatten();
        named
            .filter(|&(_, &weight)| weight > 0.0)
            .map(|(&class, _)| class)
    }
}

/// Checks that a share is finite and not negative.
pub(super) fn check_share(what: &dyn std::fmt::Display, share: f64) -> Result<()> {
    if share.is_finite() && share >= 0.0 {
        return Ok(());
    }
    Err(bad(what.to_string(), "it must be finite and at least 0"))
}

/// Checks that the sum of the shares is positive and finite.
pub(super) fn check_sum<'a>(shares: impl Iterator<Item = &'a f64> + Clone) -> Result<()> {
    let sum: f64 = shares.clone().sum();
    let list = || {
        let all: Vec<_> = shares.map(f64::to_string).collect();
        all.join(", ")
    };
    if sum.is_infinite() {
        return Err(bad(list(), "their sum is too large"));
    }
    if sum > 0.0 {
        return Ok(());
    }
    Err(bad(list(), "at least one must be above 0"))
}

fn bad(value: String, problem: &str) -> Error {
    Error::InvalidArgument {
        argument: "weight",
        value,
        problem: problem.to_owned(),
    }
}

/// A sampler that draws patch centers by label.
///
/// First a label is drawn by its share among the labels that occur at any legal center, then one
/// of its voxels among the legal centers, uniformly.
#[derive(Debug)]
pub struct Label {
    finder: Finder,
    /// One group for each of the finder's targets.
    groups: Vec<VoxelGroup>,
    absent: Vec<LabelValue>,
    neighborhood: Option<Neighborhood>,
    seed: u64,
}

/// A group of equally likely voxels.
#[derive(Debug)]
struct VoxelGroup {
    /// The cumulative share up to and including this group.
    end: f64,
    blocks: Vec<u64>,
    /// The cumulative number of voxels up to the end of each block.
    ends: Vec<u64>,
}

impl VoxelGroup {
    fn new(end: f64, entries: Entries<u64>) -> Self {
        let ends = entries.iter().scan(0, |end, &(_, count)| {
            *end += count;
            Some(*end)
        });
        let ends = ends.collect();
        Self {
            end,
            blocks: entries.into_iter().map(|(block, _)| block).collect(),
            ends,
        }
    }

    fn count(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns the block that contains voxel `k` of the group, and the voxel's number in the block.
    fn block(&self, group: usize, k: u64) -> Aim {
        let entry = self.ends.partition_point(|&end| end <= k);
        let before = entry.checked_sub(1).map_or(0, |i| self.ends[i]);
        Aim {
            block: self.blocks[entry],
            group,
            rest: k - before,
        }
    }
}

impl Label {
    /// Creates a sampler by the channel of `map` that `index` describes. The map is read repeatedly: use a
    /// [`Cached`](crate::volume::Cached) map if its chunks are also read elsewhere.
    ///
    /// Blocks that the border cuts are read now, so that weights are exact.
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`] if a patch does not fit; [`Error::NoCenter`] if no center has any of the labels;
    /// [`Error::InvalidArgument`] if the index is of a different map; the errors of reading.
    pub fn new(
        map: Arc<dyn Volume>,
        index: &LabelIndex,
        weights: &LabelWeights,
        options: &SamplerOptions,
    ) -> Result<Self> {
        let layout = map.layout();
        let placement = CenterBox::new(layout.shape, options.patch_size, options.border)?;
        let centers = placement.centers();
        let background = weights.classes().any(|class| class == LabelValue::ZERO);
        let counts = index.within(&map, centers, options.threads, background)?;
        let ordered = |mut entries: Entries<u64>| {
            if options.neighborhood.is_some() {
                let place = |id| index.blocks.index(id);
                entries.sort_unstable_by(|a, b| along_the_curve(place(a.0), place(b.0)));
            }
            entries
        };
        let (mut groups, mut wanted, mut absent) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(named) = &weights.0 {
            let mut end = 0.0;
            let mut entries = counts.classes;
            for (class, weight) in named.iter().filter(|&(_, &weight)| weight > 0.0) {
                let found = entries.remove(class).filter(|found| !found.is_empty());
                let (Some(found), Some(matcher)) = (found, class.matcher(layout.dtype)) else {
                    absent.push(*class);
                    continue;
                };
                end += weight;
                groups.push(VoxelGroup::new(end, ordered(found)));
                wanted.push(Wanted::Label(matcher));
            }
        } else {
            let entries = foreground(counts);
            if !entries.is_empty() {
                groups.push(VoxelGroup::new(1.0, ordered(entries)));
                wanted.push(Wanted::Label(Matcher::non_zero(layout.dtype)));
            }
        }
        if groups.is_empty() {
            return Err(Error::NoCenter {
                path: layout.path.clone(),
                channel: index.channel,
                centers,
                problem: nothing(&absent),
            });
        }
        let (channel, blocks) = (index.channel, index.blocks);
        Ok(Self {
            finder: Finder::new(
                map,
                channel,
                blocks,
                placement,
                wanted,
                (options.memory, options.threads),
            ),
            groups,
            absent,
            neighborhood: options.neighborhood,
            seed: options.seed,
        })
    }

    /// Returns the labels with a share that occur at no legal center. They are left out, and their share is
    /// redistributed.
    #[must_use]
    pub fn absent(&self) -> &[LabelValue] {
        &self.absent
    }

    fn aim(&self, epoch: u64, n: u64) -> Aim {
        let mut random = CounterRng::new(self.seed, epoch, n);
        let total = self.groups.last().map_or(0.0, |group| group.end);
        let at = random.fraction() * total;
        let group = self.groups.partition_point(|group| group.end <= at);
        let last = self.groups.partition_point(|group| group.end < total);
        let group = group.min(last);
        let count = self.groups[group].count();
        let k = match &self.neighborhood {
            None => random.below(count),
            Some(near) => {
                let mut anchor = near.anchor(self.seed, epoch, n);
                near.below(&mut anchor, &mut random, count)
            }
        };
        self.groups[group].block(group, k)
    }

    /// Returns every center that can be drawn, with its probability.
    #[cfg(test)]
    pub(super) fn probabilities(&self) -> std::collections::HashMap<[u64; 3], f64> {
        let (mut all, mut before) = (std::collections::HashMap::new(), 0.0);
        let total = self.groups.last().unwrap().end;
        for (i, group) in self.groups.iter().enumerate() {
            let count = f64::from(u32::try_from(group.count()).unwrap());
            for k in 0..group.count() {
                let center = self.finder.find(group.block(i, k)).unwrap();
                *all.entry(center).or_default() += (group.end - before) / total / count;
            }
            before = group.end;
        }
        all
    }
}

/// Returns the number of non-zero voxels of each block.
fn foreground(counts: LabelCounts) -> Entries<u64> {
    let mut blocks: BTreeMap<u64, u64> = BTreeMap::new();
    let classes = counts.classes.into_iter();
    for (block, count) in classes
        .filter(|&(class, _)| class != LabelValue::ZERO)
        .flat_map(|(_, entries)| entries)
    {
        *blocks.entry(block).or_default() += count;
    }
    blocks.into_iter().collect()
}

fn nothing(absent: &[LabelValue]) -> String {
    match absent {
        [] => "no label except 0 occurs".to_owned(),
        [class] => format!("label {class} does not occur"),
        classes => {
            let all: Vec<_> = classes.iter().map(LabelValue::to_string).collect();
            format!("none of the labels {} occurs", all.join(", "))
        }
    }
}

impl Sampler for Label {
    fn patch(&self) -> Shape {
        self.finder.placement().patch()
    }

    fn draw(&self, epoch: u64, n: u64) -> Result<Region> {
        let center = self.finder.find(self.aim(epoch, n))?;
        Ok(self.finder.placement().region(center))
    }

    fn draw_many(&self, epoch: u64, ns: &[u64]) -> Result<Vec<Region>> {
        let aims: Vec<Aim> = ns.iter().map(|&n| self.aim(epoch, n)).collect();
        self.finder.find_all(&aims)
    }
}
