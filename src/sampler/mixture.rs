//! Mixtures of samplers.

use super::draw::Sampler;
use super::label::{check_share, check_sum};
use super::random::CounterRng;
use crate::error::{Error, Result};
use crate::region::{Region, Shape};

/// A mixture of samplers with given shares, such as one third by label and the rest uniform.
///
/// Draw n of the mixture is draw n of the chosen sampler. The mixture's own choices are
/// independent of its samplers even if they share the seed.
#[derive(Debug)]
pub struct Mixture {
    samplers: Vec<Box<dyn Sampler>>,
    /// Fractions above 0, with a sum of 1.
    shares: Vec<f64>,
    counted: Counted,
    seed: u64,
}

/// The way in which draws match the shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    OnAverage,
    InBatches(u64),
}

/// The largest batch with exact shares.
const LARGEST: u64 = 1 << 16;
/// The tolerance within which fractions are equal.
const SAME: f64 = 1e-9;

impl Mixture {
    /// Chooses a sampler for each draw independently, by the shares.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if there is no sampler, if a share is negative or not finite, if all are 0, if
    /// patches differ in size, or if a sampler has a limited number of draws.
    pub fn new(samplers: Vec<(f64, Box<dyn Sampler>)>, seed: u64) -> Result<Self> {
        Self::counted(samplers, Counted::OnAverage, seed)
    }

    /// Gives each sampler its exact share of every batch: of draws `0..batch`, `batch..2 * batch` and so on, in random
    /// order. Numbers of draws are rounded down, and the remaining draws go to the samplers with the largest
    /// remainders; the choice between equal remainders is random for each batch.
    ///
    /// In small batches a small share may always round to 0.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and [`Error::InvalidArgument`] for batches of 0 or of more than 65 536.
    pub fn exact(samplers: Vec<(f64, Box<dyn Sampler>)>, batch: u64, seed: u64) -> Result<Self> {
        if batch == 0 || batch > LARGEST {
            return Err(Error::InvalidArgument {
                argument: "batch size",
                value: batch.to_string(),
                problem: format!("it must be from 1 to {LARGEST}"),
            });
        }
        Self::counted(samplers, Counted::InBatches(batch), seed)
    }

    fn counted(
        samplers: Vec<(f64, Box<dyn Sampler>)>,
        counted: Counted,
        seed: u64,
    ) -> Result<Self> {
        for (share, _) in &samplers {
            check_share(share, *share)?;
        }
        check_sum(samplers.iter().map(|(share, _)| share))?;
        let bad = |value: String, problem: &str| Error::InvalidArgument {
            argument: "mixture",
            value,
            problem: problem.to_owned(),
        };
        let total: f64 = samplers.iter().map(|&(share, _)| share).sum();
        let (mut shares, mut kept) = (Vec::new(), Vec::<Box<dyn Sampler>>::new());
        for (share, sampler) in samplers {
            if let Some(first) = kept.first()
                && first.patch() != sampler.patch()
            {
                let both = format!(
                    "of patches of {:?} and {:?}",
                    first.patch(),
                    sampler.patch()
                );
                return Err(bad(both, "all must have the same size"));
            }
            if sampler.draw_count().is_some() {
                return Err(bad(
                    format!(
                        "of a sampler with {} draws",
                        sampler.draw_count().unwrap_or(0)
                    ),
                    "only endless samplers can be mixed",
                ));
            }
            if share > 0.0 {
                shares.push(share / total);
                kept.push(sampler);
            }
        }
        Ok(Self {
            samplers: kept,
            shares,
            counted,
            seed,
        })
    }

    /// Returns the sampler of a draw.
    fn choice(&self, epoch: u64, n: u64) -> usize {
        match self.counted {
            Counted::OnAverage => {
                let mut random = self.random(epoch, n);
                self.pick(&mut random)
            }
            Counted::InBatches(batch) => {
                let place = usize::try_from(n % batch).unwrap_or(0);
                self.batch(batch, epoch, n / batch)[place]
            }
        }
    }

    fn random(&self, epoch: u64, n: u64) -> CounterRng {
        CounterRng::of_domain(*b"voxpatch mix  v1", self.seed, epoch, n)
    }

    fn pick(&self, random: &mut CounterRng) -> usize {
        let at = random.fraction();
        let mut end = 0.0;
        let reached = self.shares.iter().position(|share| {
            end += share;
            at < end
        });
        reached.unwrap_or(self.shares.len() - 1)
    }

    /// Returns the samplers of one batch's draws.
    fn batch(&self, batch: u64, epoch: u64, number: u64) -> Vec<usize> {
        let mut random = self.random(epoch, number);
        let mut choices = Vec::new();
        let mut remainders = Vec::new();
        for (i, &share) in self.shares.iter().enumerate() {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and 65536"
            )]
            let (count, remainder) = {
                let exact = share * batch as f64;
                // 3 * (1 / 3) must count as 1 despite rounding.
                let count = (exact + SAME).floor();
                (count as usize, exact - count)
            };
            choices.extend(std::iter::repeat_n(i, count));
            remainders.push((remainder, i));
        }
        shuffle(&mut remainders, &mut random);
        // A stable sort leaves equal remainders in their shuffled order.
        #[expect(clippy::cast_possible_truncation, reason = "between 0 and 1")]
        remainders.sort_by_key(|&(remainder, _)| -(remainder / SAME).round() as i64);
        let batch = usize::try_from(batch).unwrap_or(usize::MAX);
        let left = batch.saturating_sub(choices.len());
        choices.extend(remainders.iter().cycle().take(left).map(|&(_, i)| i));
        shuffle(&mut choices, &mut random);
        choices
    }
}

/// Shuffles items (Fisher-Yates).
fn shuffle<T>(items: &mut [T], random: &mut CounterRng) {
    for end in (1..items.len()).rev() {
        let other = random.below(end as u64 + 1);
        items.swap(end, usize::try_from(other).unwrap_or(end));
    }
}

impl Sampler for Mixture {
    fn patch(&self) -> Shape {
        self.samplers[0].patch()
    }

    fn draw(&self, epoch: u64, n: u64) -> Result<Region> {
        self.samplers[self.choice(epoch, n)].draw(epoch, n)
    }

    fn draw_many(&self, epoch: u64, ns: &[u64]) -> Result<Vec<Region>> {
        let mut places = vec![Vec::new(); self.samplers.len()];
        let mut known: Option<(u64, Vec<usize>)> = None;
        for (i, &n) in ns.iter().enumerate() {
            let choice = match self.counted {
                Counted::OnAverage => self.choice(epoch, n),
                Counted::InBatches(batch) => {
                    let number = n / batch;
                    let (_, choices) = match known.take() {
                        Some(same) if same.0 == number => known.insert(same),
                        _ => known.insert((number, self.batch(batch, epoch, number))),
                    };
                    choices[usize::try_from(n % batch).unwrap_or(0)]
                }
            };
            places[choice].push(i);
        }
        let mut regions = vec![Region::new([0; 3], self.patch()); ns.len()];
        for (sampler, places) in self.samplers.iter().zip(places) {
            let own: Vec<u64> = places.iter().map(|&i| ns[i]).collect();
            for (i, region) in places.into_iter().zip(sampler.draw_many(epoch, &own)?) {
                regions[i] = region;
            }
        }
        Ok(regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Uniform;

    /// Returns a sampler of a volume that is long along one axis, so that a region identifies its sampler.
    fn uniform(axis: usize) -> Box<dyn Sampler> {
        let mut volume = [1, 1, 1];
        volume[axis] = 1 << 40;
        Box::new(Uniform::new(volume, [1; 3], 7).unwrap())
    }

    fn counts(mixture: &Mixture, epoch: u64, ns: std::ops::Range<u64>) -> [u64; 3] {
        let mut counts = [0; 3];
        let all: Vec<u64> = ns.collect();
        let many = mixture.draw_many(epoch, &all).unwrap();
        for (&n, region) in all.iter().zip(many) {
            assert_eq!(mixture.draw(epoch, n).unwrap(), region);
            counts[(0..3).max_by_key(|&a| region.start[a]).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn a_third_of_each_batch_is_rounded_to_the_nearest() {
        for (batch, first) in [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2)] {
            let parts = vec![(0.33, uniform(0)), (0.67, uniform(1))];
            let mixture = Mixture::exact(parts, batch, 7).unwrap();
            for number in 0..50 {
                let ns = number * batch..(number + 1) * batch;
                assert_eq!(counts(&mixture, 3, ns), [first, batch - first, 0]);
            }
        }
    }

    #[test]
    fn the_choice_between_equal_remainders_is_random() {
        let parts = vec![(1.0, uniform(0)), (1.0, uniform(1)), (1.0, uniform(2))];
        let mixture = Mixture::exact(parts, 4, 1).unwrap();
        let mut twice = [0; 3];
        for number in 0..300 {
            let counts = counts(&mixture, 0, number * 4..number * 4 + 4);
            assert_eq!(counts.iter().sum::<u64>(), 4);
            for a in 0..3 {
                assert!(counts[a] == 1 || counts[a] == 2);
                twice[a] += counts[a] - 1;
            }
        }
        // 4.9 standard deviations of a third of 300.
        assert!(twice.iter().all(|n| (60..140).contains(n)), "{twice:?}");
        let thirds = vec![(0.1, uniform(0)), (0.1, uniform(1)), (0.1, uniform(2))];
        let mixture = Mixture::exact(thirds, 3, 1).unwrap();
        assert_eq!(counts(&mixture, 0, 0..3), [1, 1, 1]);
    }

    #[test]
    fn on_average_the_shares_are_kept_independently_of_the_samplers_numbers() {
        let parts = vec![(1.0, uniform(0)), (2.0, uniform(1)), (0.0, uniform(2))];
        let mixture = Mixture::new(parts, 7).unwrap();
        let counts = counts(&mixture, 0, 0..9000);
        assert_eq!(counts[2], 0);
        assert!((2780..3220).contains(&counts[0]), "{counts:?}");
        let first: Vec<i64> = (0..9000)
            .map(|n| mixture.draw(0, n).unwrap().start[0])
            .filter(|&z| z > 0)
            .collect();
        let upper = first.iter().filter(|&&z| z > 1 << 39).count();
        assert!(
            (first.len() * 2 / 5..first.len() * 3 / 5).contains(&upper),
            "the same seed for both does not push the first sampler to one side"
        );
    }

    #[test]
    fn the_order_within_a_batch_is_shuffled() {
        let parts = vec![(1.0, uniform(0)), (1.0, uniform(1))];
        let mixture = Mixture::exact(parts, 2, 5).unwrap();
        let first = (0..200).filter(|n| mixture.choice(0, 2 * n) == 0).count();
        assert!((65..135).contains(&first), "{first}");
    }

    #[test]
    fn invalid_mixtures_are_refused() {
        let one = || uniform(0);
        let two = |a: f64, b: f64| Mixture::new(vec![(a, one()), (b, one())], 0);
        for (a, b) in [
            (0.0, 0.0),
            (-1.0, 2.0),
            (f64::NAN, 1.0),
            (f64::INFINITY, 1.0),
            (f64::MAX, f64::MAX),
        ] {
            assert!(
                matches!(two(a, b), Err(Error::InvalidArgument { .. })),
                "{a} {b}"
            );
        }
        assert!(Mixture::new(Vec::new(), 0).is_err());
        assert!(Mixture::exact(vec![(1.0, one())], 0, 0).is_err());
        let larger = Box::new(Uniform::new([9; 3], [2; 3], 0).unwrap());
        assert!(Mixture::new(vec![(1.0, one()), (1.0, larger)], 0).is_err());
    }

    #[test]
    fn the_choices_are_those_of_every_release() {
        let parts = || vec![(1.0, uniform(0)), (2.0, uniform(1)), (3.0, uniform(2))];
        let exact = Mixture::exact(parts(), 7, 9).unwrap();
        let average = Mixture::new(parts(), 9).unwrap();
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 6].map(|n| exact.choice(2, n)),
            GOLDEN_EXACT
        );
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 6].map(|n| average.choice(2, n)),
            GOLDEN_AVERAGE
        );
    }
    const GOLDEN_EXACT: [usize; 7] = [2, 1, 2, 2, 1, 0, 2];
    const GOLDEN_AVERAGE: [usize; 7] = [2, 1, 1, 2, 1, 1, 1];
}
