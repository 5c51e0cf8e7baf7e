//! Uniform sampling: every legal place is equally likely.

use rand::Rng;
use rand::distr::Distribution;

use super::border::{Border, CenterBox};
use super::draw::{Sampler, SamplerOptions};
use super::near::Neighborhood;
use super::random::{CounterRng, below};
use crate::error::Result;
use crate::region::{Region, Shape};

/// A uniform sampler: an endless iterator of regions.
///
/// Along an axis of N voxels a patch of P voxels has N - P + 1 equally likely places; the axes are independent. Under
/// the border policies other than [`Border::Drop`] all N centers are equally likely.
#[derive(Clone, Debug)]
pub struct Uniform {
    placement: CenterBox,
    /// The legal centers, one for each place.
    centers: Region,
    neighborhood: Option<Neighborhood>,
    seed: u64,
    epoch: u64,
    index: u64,
}

impl Uniform {
    /// Creates a sampler of patches of `patch` voxels (z, y, x) inside a volume of `volume` voxels.
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`](crate::Error::PatchSize) if a patch is empty or larger than the volume.
    pub fn new(volume: Shape, patch: Shape, seed: u64) -> Result<Self> {
        Self::with_border(volume, patch, Border::Drop, seed)
    }

    /// Creates a sampler with a border policy. Under [`Border::Pad`] patches may extend beyond the volume.
    ///
    /// # Errors
    ///
    /// As [`CenterBox::new`].
    pub fn with_border(volume: Shape, patch: Shape, border: Border, seed: u64) -> Result<Self> {
        let options = SamplerOptions::new(patch, seed).with_border(border);
        Self::with_options(volume, &options)
    }

    /// Creates a sampler with the patch, seed, border and neighborhood of `options`.
    ///
    /// # Errors
    ///
    /// As [`CenterBox::new`].
    pub fn with_options(volume: Shape, options: &SamplerOptions) -> Result<Self> {
        let placement = CenterBox::new(volume, options.patch_size, options.border)?;
        Ok(Self {
            centers: placement.centers(),
            placement,
            neighborhood: options.neighborhood,
            seed: options.seed,
            epoch: 0,
            index: 0,
        })
    }

    /// Returns the sampler of a different epoch, at its first draw.
    #[must_use]
    pub fn with_epoch(self, epoch: u64) -> Self {
        Self {
            epoch,
            index: 0,
            ..self
        }
    }

    /// Returns draw `index`.
    #[must_use]
    pub fn region(&self, index: u64) -> Region {
        self.region_of(self.epoch, index)
    }

    fn region_of(&self, epoch: u64, index: u64) -> Region {
        let mut random = CounterRng::new(self.seed, epoch, index);
        let Region { start, shape } = self.centers;
        let place = match &self.neighborhood {
            None => shape.map(|n| random.below(n)),
            Some(near) => {
                let mut anchor = near.anchor(self.seed, epoch, index);
                near.place(&mut anchor, &mut random, shape)
            }
        };
        let center = std::array::from_fn(|a| start[a].unsigned_abs() + place[a]);
        self.placement.region(center)
    }
}

/// Draws with any generator, independently of the sampler's seed and neighborhood.
///
/// ```
/// use rand::distr::Distribution;
/// use voxpatch::Uniform;
/// use voxpatch::sampler::CounterRng;
///
/// # fn main() -> voxpatch::Result<()> {
/// let mut rng = CounterRng::new(1, 2, 3); // or any other generator of `rand`
/// let region = Uniform::new([100; 3], [32; 3], 0)?.sample(&mut rng);
/// assert!(region.is_inside([100; 3]));
/// # Ok(())
/// # }
/// ```
impl Distribution<Region> for Uniform {
    fn sample<R: Rng + ?Sized>(&self, rng: &mut R) -> Region {
        let Region { start, shape } = self.centers;
        let center = std::array::from_fn(|a| start[a].unsigned_abs() + below(rng, shape[a]));
        self.placement.region(center)
    }
}

impl Sampler for Uniform {
    fn patch(&self) -> Shape {
        self.placement.patch()
    }

    fn draw(&self, epoch: u64, n: u64) -> Result<Region> {
        Ok(self.region_of(epoch, n))
    }
}

impl Iterator for Uniform {
    type Item = Region;

    fn next(&mut self) -> Option<Region> {
        self.nth(0)
    }

    fn nth(&mut self, n: usize) -> Option<Region> {
        let index = self.index.wrapping_add(n as u64);
        self.index = index.wrapping_add(1);
        Some(self.region(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::SamplerExt;
    use crate::sampler::tests::deviate;

    #[test]
    fn skipping_stepping_and_starting_again_give_the_same_draws() {
        let draws = Uniform::new([90, 80, 70], [64, 64, 64], 5).unwrap();
        let all: Vec<Region> = draws.clone().take(40).collect();
        assert_eq!(
            draws.clone().skip(17).take(23).collect::<Vec<_>>(),
            all[17..]
        );
        let ranks = (0..4).map(|rank| {
            draws
                .clone()
                .skip(rank)
                .step_by(4)
                .take(10)
                .collect::<Vec<_>>()
        });
        for (rank, own) in ranks.enumerate() {
            assert_eq!(
                own,
                all.iter()
                    .copied()
                    .skip(rank)
                    .step_by(4)
                    .collect::<Vec<_>>()
            );
        }
        assert_ne!(draws.with_epoch(1).take(40).collect::<Vec<_>>(), all);
    }

    #[test]
    fn every_legal_place_is_used_and_no_other() {
        for volume in 1..9_u64 {
            for patch in 1..=volume {
                let draws = Uniform::new([volume, 8, volume], [patch, 3, 1], 1).unwrap();
                let mut seen = [vec![false; 16], vec![false; 16], vec![false; 16]];
                for region in draws.take(600) {
                    assert!(region.is_inside([volume, 8, volume]));
                    for a in 0..3 {
                        seen[a][usize::try_from(region.start[a]).unwrap()] = true;
                    }
                }
                let places = seen.map(|axis| axis.into_iter().filter(|&s| s).count() as u64);
                assert_eq!(places, [volume - patch + 1, 6, volume]);
            }
        }
    }

    #[test]
    fn any_generator_draws_uniformly() {
        let mut rng = CounterRng::new(11, 0, 0);
        let near = Neighborhood::new(10, 0.01).unwrap();
        let options = SamplerOptions::new([7; 3], 3).with_neighborhood(near);
        let sampler = Uniform::with_options([10, 11, 12], &options).unwrap();
        let (mut direct, mut by_draw) = (vec![0_u64; 4 * 5 * 6], vec![0_u64; 4 * 5 * 6]);
        for _ in 0..60_000 {
            for (counts, region) in [
                (&mut direct, sampler.sample(&mut rng)),
                (&mut by_draw, sampler.sample_with(&mut rng).unwrap()),
            ] {
                let [z, y, x] = region.start.map(|s| usize::try_from(s).unwrap());
                counts[(z * 5 + y) * 6 + x] += 1;
            }
        }
        for counts in [direct, by_draw] {
            assert!(deviate(&counts).abs() < 4.75, "{}", deviate(&counts));
        }
        let list = crate::sampler::FixedLocations::new(vec![Region::new([1; 3], [2; 3])]).unwrap();
        assert_eq!(list.sample_with(&mut rng).unwrap().start, [1; 3]);
    }

    #[test]
    fn places_are_equally_likely_on_short_and_on_huge_axes() {
        // 4.75 standard deviations are a p-value of 1e-6.
        let mut counts = vec![0_u64; 4 * 5 * 6];
        for region in Uniform::new([10, 11, 12], [7, 7, 7], 3)
            .unwrap()
            .take(60_000)
        {
            let [z, y, x] = region.start.map(|s| usize::try_from(s).unwrap());
            counts[(z * 5 + y) * 6 + x] += 1;
        }
        assert!(deviate(&counts).abs() < 4.75, "{}", deviate(&counts));
        let mut deciles = [[0_u64; 10]; 3];
        let mut residues = [0_u64; 16];
        let volume = [3_000_000_000, 1 << 40, (1 << 31) + 1];
        for region in Uniform::new(volume, [1; 3], 9).unwrap().take(40_000) {
            for a in 0..3 {
                let decile =
                    u128::from(region.start[a].unsigned_abs()) * 10 / u128::from(volume[a]);
                deciles[a][usize::try_from(decile).unwrap()] += 1;
            }
            residues[usize::try_from(region.start[1] % 16).unwrap()] += 1;
        }
        for counts in deciles.iter().map(|d| &d[..]).chain([&residues[..]]) {
            assert!(deviate(counts).abs() < 4.75, "{counts:?}");
        }
    }

    #[test]
    fn a_patch_of_nearly_the_whole_axis_has_two_places() {
        let draws = Uniform::new([70_001, 65_536, 65_535], [70_000, 65_536, 65_535], 2).unwrap();
        let mut starts: Vec<_> = draws.take(50).map(|region| region.start).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts, [[0, 0, 0], [1, 0, 0]]);
    }

    #[test]
    fn every_border_policy_has_its_own_places() {
        let starts = |border| {
            let draws = Uniform::with_border([1, 1, 5], [1, 1, 3], border, 3).unwrap();
            let mut counts = std::collections::BTreeMap::<i64, u64>::new();
            for region in draws.take(5000) {
                *counts.entry(region.start[2]).or_default() += 1;
            }
            counts
        };
        let pad = starts(Border::Pad);
        assert_eq!(pad.keys().copied().collect::<Vec<_>>(), [-1, 0, 1, 2, 3]);
        let counts: Vec<u64> = pad.into_values().collect();
        assert!(deviate(&counts).abs() < 4.75, "{counts:?}");
        let shift = starts(Border::Shift);
        assert_eq!(shift.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
        // The outer places include the centers beyond them: 2/5, 1/5, 2/5.
        let halves = [
            shift[&0] / 2,
            shift[&0] / 2,
            shift[&1],
            shift[&2] / 2,
            shift[&2] / 2,
        ];
        assert!(halves.iter().all(|n| (870..1130).contains(n)), "{shift:?}");
        let large = Uniform::with_border([1, 1, 5], [1, 1, 9], Border::Pad, 3).unwrap();
        assert!(
            large
                .take(50)
                .all(|region| (-4..=0).contains(&region.start[2]))
        );
    }

    #[test]
    fn the_draws_are_those_of_every_release() {
        let mut draws = Uniform::new([90, 80, 70], [64, 64, 64], 5)
            .unwrap()
            .with_epoch(2);
        let first: [_; 3] = std::array::from_fn(|_| draws.next().unwrap().start);
        assert_eq!(first, GOLDEN);
    }
    const GOLDEN: [[i64; 3]; 3] = [[7, 5, 6], [10, 0, 4], [1, 4, 1]];
}
