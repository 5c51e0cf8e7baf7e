//! Sampling by a weight map.

use std::sync::Arc;

use super::border::CenterBox;
use super::draw::{Sampler, SamplerOptions};
use super::find::{Aim, Finder, Wanted};
use super::index::WeightIndex;
use super::near::{Neighborhood, along_the_curve};
use super::random::{CounterRng, fraction};
use super::weights::{CompensatedSum, too_large};
use crate::error::{Error, Result};
use crate::region::{Region, Shape};
use crate::volume::Volume;

/// A sampler that draws patch centers by a weight map with one value per voxel.
///
/// A center's probability is its weight divided by the sum of all centers' weights. Weights are the map's values. Their
/// sum is arbitrary, and a voxel with weight 0 is never drawn.
#[derive(Debug)]
pub struct Weighted {
    finder: Finder,
    blocks: Vec<u64>,
    /// The cumulative weight up to the end of each block.
    ends: Vec<f64>,
    neighborhood: Option<Neighborhood>,
    seed: u64,
}

impl Weighted {
    /// Creates a sampler by the channel of `map` that `index` describes. The map is read repeatedly: use a
    /// [`Cached`](crate::volume::Cached) map if its chunks are also read elsewhere.
    ///
    /// Blocks that the border cuts are read now, so that shares are exact.
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`] if a patch does not fit; [`Error::NoCenter`] if the weights of all centers are 0;
    /// [`Error::InvalidArgument`] if the index is of a different map; [`Error::Unsupported`] if the weights' sum is too
    /// large; the errors of reading.
    pub fn new(
        map: Arc<dyn Volume>,
        index: &WeightIndex,
        options: &SamplerOptions,
    ) -> Result<Self> {
        let shape = map.layout().shape;
        let placement = CenterBox::new(shape, options.patch_size, options.border)?;
        let centers = placement.centers();
        let mut sums = index.within(&map, centers, options.threads, false)?.0;
        if sums.is_empty() {
            return Err(Error::NoCenter {
                path: map.layout().path.clone(),
                channel: index.channel,
                centers,
                problem: "every weight is 0".to_owned(),
            });
        }
        if options.neighborhood.is_some() {
            let place = |id| index.blocks.index(id);
            sums.sort_unstable_by(|a, b| along_the_curve(place(a.0), place(b.0)));
        }
        let (mut sum, mut end) = (CompensatedSum::default(), 0.0_f64);
        let ends = sums.iter().map(|&(_, weight)| {
            sum.add(weight);
            end = end.max(sum.value());
            end
        });
        let ends: Vec<f64> = ends.collect();
        if end.is_infinite() {
            return Err(too_large(&map.layout().path));
        }
        let (channel, blocks) = (index.channel, index.blocks);
        let wanted = vec![Wanted::Weight];
        Ok(Self {
            finder: Finder::new(
                map,
                channel,
                blocks,
                placement,
                wanted,
                (options.memory, options.threads),
            ),
            blocks: sums.into_iter().map(|(block, _)| block).collect(),
            ends,
            neighborhood: options.neighborhood,
            seed: options.seed,
        })
    }

    /// Returns the block, and a number for the voxel inside it.
    fn aim(&self, epoch: u64, n: u64) -> Aim {
        let mut random = CounterRng::new(self.seed, epoch, n);
        let total = self.ends.last().copied().unwrap_or(0.0);
        let number = match &self.neighborhood {
            None => random.number(),
            Some(near) => near.number(&mut near.anchor(self.seed, epoch, n), &mut random),
        };
        let at = fraction(number) * total;
        // A block whose weight is lost in rounding is empty, and is skipped.
        let entry = self.ends.partition_point(|&end| end <= at);
        let last = self.ends.partition_point(|&end| end < total);
        Aim {
            block: self.blocks[entry.min(last)],
            group: 0,
            rest: random.number(),
        }
    }

    #[cfg(test)]
    pub(super) fn probability(&self, center: [u64; 3]) -> f64 {
        let block = self.finder.block_of(center);
        let Some(entry) = self.blocks.iter().position(|&own| Some(own) == block) else {
            return 0.0;
        };
        let before = if entry == 0 {
            0.0
        } else {
            self.ends[entry - 1]
        };
        let share = (self.ends[entry] - before) / self.ends.last().unwrap();
        let aim = Aim {
            block: self.blocks[entry],
            group: 0,
            rest: 0,
        };
        share * self.finder.share(aim, center)
    }
}

impl Sampler for Weighted {
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
