//! Rejection sampling: patches with enough of a label, from any sampler.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::class::{LabelValue, Matcher, bits_of};
use super::draw::Sampler;
use crate::error::{Error, Result};
use crate::region::{Region, Shape};
use crate::volume::Volume;

/// The number of draws in an epoch: try t of draw n is draw `n + t * MOST_DRAWS` of the inner sampler.
const MOST_DRAWS: u64 = 1 << 40;

/// The number of tries that are drawn together once the first has failed.
const TOGETHER: u64 = 16;

/// The voxels that a patch must contain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Criterion {
    /// Voxels of one label.
    Label(LabelValue),
    /// Voxels that are not 0.
    NonZero,
}

/// A sampler that keeps the patches of an inner sampler that contain enough of a label.
///
/// Each draw is repeated until a patch contains enough, so the distribution is exactly that of the inner sampler under
/// this condition. The tries of one draw are independent. The first try is the n-th draw of the inner sampler. Voxels
/// beyond the volume's faces belong to the patch but never count as content.
///
/// With a [`Mixture::exact`](super::Mixture::exact) inside, batches would no longer have the exact
/// shares: filter the parts of the mixture instead. Each try reads the map at the patch; use a
/// [`Cached`](crate::volume::Cached) map if its chunks are read again.
#[derive(Debug)]
pub struct MinContent {
    inner: Box<dyn Sampler>,
    map: Arc<dyn Volume>,
    channel: u64,
    content: Criterion,
    matcher: Option<Matcher>,
    fraction: f64,
    tries: u64,
}

impl MinContent {
    /// Keeps patches of `inner` in which at least `fraction` (above 0, up to 1) of the voxels are
    /// `content` in a channel of `map`, which must be on the volume's grid.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the fraction is out of range, or if the sampler has a limited number of draws;
    /// [`Error::NoSuchChannel`].
    pub fn new(
        inner: Box<dyn Sampler>,
        map: Arc<dyn Volume>,
        channel: u64,
        content: Criterion,
        fraction: f64,
    ) -> Result<Self> {
        let bad = |name, value: String, problem: &str| {
            Err(Error::InvalidArgument {
                argument: name,
                value,
                problem: problem.to_owned(),
            })
        };
        if !(fraction > 0.0 && fraction <= 1.0) {
            let problem = "it must be a fraction of the patch, above 0 and at most 1";
            return bad("fraction", fraction.to_string(), problem);
        }
        if let Some(end) = inner.draw_count() {
            let problem = "patches can only be redrawn from an endless sampler";
            return bad("number of draws", end.to_string(), problem);
        }
        let layout = map.layout();
        if channel >= layout.channels {
            return Err(Error::NoSuchChannel {
                start: channel,
                end: channel.saturating_add(1),
                channels: layout.channels,
            });
        }
        let matcher = match content {
            Criterion::Label(class) => class.matcher(layout.dtype),
            Criterion::NonZero => Some(Matcher::non_zero(layout.dtype)),
        };
        Ok(Self {
            inner,
            map,
            channel,
            content,
            matcher,
            fraction,
            tries: 1000,
        })
    }

    /// Sets the number of tries, 1 to 2^20, before a draw fails; the default is 1000.
    #[must_use]
    pub fn with_tries(self, tries: u64) -> Self {
        let tries = tries.clamp(1, 1 << 20);
        Self { tries, ..self }
    }

    /// Returns the fraction of a patch that is content.
    fn found(&self, region: Region) -> Result<f64> {
        let layout = self.map.layout();
        let whole = Region::whole(layout.shape);
        let (Some(matcher), Some(inside)) = (&self.matcher, region.intersection(&whole)) else {
            return Ok(0.0);
        };
        let size = layout.dtype.size();
        let length = inside.voxels().saturating_mul(size as u64);
        let mut voxels = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let channels = self.channel..self.channel + 1;
        self.map.read_channels(channels, inside, &mut voxels)?;
        let voxels = voxels.chunks_exact(size);
        let count = voxels.filter(|voxel| matcher.wants(bits_of(voxel))).count();
        Ok(part(count as u64, region.voxels()))
    }

    /// Returns the first try of a draw, starting at try `first`, that contains enough.
    fn search(&self, epoch: u64, n: u64, first: u64, mut best: f64) -> Result<Region> {
        let mut next = first;
        while next < self.tries {
            let until = self.tries.min(next.saturating_add(TOGETHER));
            let ns: Vec<u64> = (next..until).map(|t| n + t * MOST_DRAWS).collect();
            for region in self.inner.draw_many(epoch, &ns)? {
                let found = self.found(region)?;
                if found >= self.fraction {
                    return Ok(region);
                }
                best = best.max(found);
            }
            next = until;
        }
        Err(Error::NotEnoughContent {
            path: self.map.layout().path.clone(),
            channel: self.channel,
            content: match self.content {
                Criterion::Label(class) => format!("label {class}"),
                Criterion::NonZero => "non-zero voxels".to_owned(),
            },
            fraction: self.fraction,
            best,
            tries: self.tries,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a fraction")]
fn part(count: u64, of: u64) -> f64 {
    count as f64 / of as f64
}

impl Sampler for MinContent {
    fn patch(&self) -> Shape {
        self.inner.patch()
    }

    fn draw(&self, epoch: u64, n: u64) -> Result<Region> {
        let mut all = self.draw_many(epoch, &[n])?;
        Ok(all.remove(0))
    }

    fn draw_many(&self, epoch: u64, ns: &[u64]) -> Result<Vec<Region>> {
        if let Some(n) = ns.iter().find(|&&n| n >= MOST_DRAWS) {
            return Err(Error::IndexOutOfRange {
                what: "draw",
                index: *n,
                count: MOST_DRAWS,
            });
        }
        let mut regions = self.inner.draw_many(epoch, ns)?;
        let mut order: Vec<usize> = (0..ns.len()).collect();
        // Nearby patches share chunks of the map.
        order.sort_unstable_by_key(|&i| regions[i].start);
        let mut refused = BTreeMap::new();
        for i in order {
            let found = self.found(regions[i])?;
            if found < self.fraction {
                refused.insert(i, found);
            }
        }
        for (i, best) in refused {
            regions[i] = self.search(epoch, ns[i], 1, best)?;
        }
        Ok(regions)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::sampler::{Border, Neighborhood, SamplerOptions, Uniform};
    use crate::volume::MemoryVolume;

    const SHAPE: Shape = [1, 6, 8];
    const PATCH: Shape = [1, 3, 2];

    fn map() -> Arc<MemoryVolume> {
        let label = |n: u8| n.wrapping_mul(97) >> 6;
        let voxels: Vec<u8> = (0..48)
            .map(|n| if n % 8 < 3 { 0 } else { label(n) })
            .collect();
        Arc::new(MemoryVolume::from_vec(SHAPE, 1, voxels).unwrap())
    }

    fn uniform(border: Border, near: Option<Neighborhood>) -> Box<dyn Sampler> {
        let mut options = SamplerOptions::new(PATCH, 5).with_border(border);
        options.neighborhood = near;
        Box::new(Uniform::with_options(SHAPE, &options).unwrap())
    }

    fn containing(content: Criterion, fraction: f64, border: Border) -> Result<MinContent> {
        MinContent::new(uniform(border, None), map(), 0, content, fraction)
    }

    /// Counts the matching voxels of a patch in a plain loop.
    fn counted(start: [i64; 3], counts: impl Fn(u8) -> bool) -> u64 {
        let map = map().to_patch();
        let voxels = map.view::<u8>().unwrap();
        let mut count = 0;
        for y in start[1]..start[1] + 3 {
            for x in start[2]..start[2] + 2 {
                if let (Ok(y), Ok(x)) = (usize::try_from(y), usize::try_from(x))
                    && voxels.get([0, 0, y, x]).is_some_and(|&voxel| counts(voxel))
                {
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn patches_that_contain_enough_are_equally_likely_and_no_others_are_drawn() {
        for (content, is) in [
            (Criterion::Label(2.into()), (|v| v == 2) as fn(u8) -> bool),
            (Criterion::NonZero, |v| v != 0),
        ] {
            for border in [Border::Drop, Border::Pad] {
                for least in [1, 2, 3] {
                    let fraction = part(least, 6);
                    let sampler = containing(content, fraction, border).unwrap();
                    let ns: Vec<u64> = (0..6000).collect();
                    let mut counts: HashMap<[i64; 3], u64> = HashMap::new();
                    for region in sampler.draw_many(1, &ns).unwrap() {
                        assert!(counted(region.start, is) >= least);
                        *counts.entry(region.start).or_default() += 1;
                    }
                    let legal = (-3..9).flat_map(|y| (-3..9).map(move |x| [0, y, x]));
                    let placed = legal.filter(|start| {
                        let drop = start[1] >= 0 && start[1] <= 3 && start[2] >= 0 && start[2] <= 6;
                        let centered =
                            (0..6).contains(&(start[1] + 1)) && (0..8).contains(&(start[2] + 1));
                        if border == Border::Drop {
                            drop
                        } else {
                            centered
                        }
                    });
                    let expected: Vec<_> = placed.filter(|&s| counted(s, is) >= least).collect();
                    assert_eq!(
                        counts.len(),
                        expected.len(),
                        "{content:?} {border:?} {least}"
                    );
                    if expected.len() > 1 {
                        let counts: Vec<u64> = expected.iter().map(|s| counts[s]).collect();
                        let deviate = crate::sampler::tests::deviate(&counts);
                        assert!(deviate.abs() < 4.75, "{deviate}: {counts:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_draw_is_a_function_of_its_number_and_a_first_try_with_enough_is_kept() {
        let near = Neighborhood::new(8, 0.1).unwrap();
        for near in [None, Some(near)] {
            let inner = uniform(Border::Drop, near);
            let make = || uniform(Border::Drop, near);
            let content = Criterion::Label(2.into());
            let sampler = MinContent::new(make(), map(), 0, content, part(2, 6)).unwrap();
            let ns: Vec<u64> = (0..200).rev().collect();
            let many = sampler.draw_many(3, &ns).unwrap();
            let mut kept = 0;
            for (&n, &region) in ns.iter().zip(&many) {
                assert_eq!(sampler.draw(3, n).unwrap(), region);
                let first = inner.draw(3, n).unwrap();
                if counted(first.start, |v| v == 2) >= 2 {
                    assert_eq!(first, region);
                    kept += 1;
                }
            }
            assert!((1..200).contains(&kept));
            assert_ne!(sampler.draw_many(4, &ns).unwrap(), many);
        }
    }

    #[test]
    fn a_condition_that_cannot_be_met_reports_the_best_fraction() {
        let sampler = containing(Criterion::Label(2.into()), 1.0, Border::Drop).unwrap();
        let best = (0..4)
            .flat_map(|y| (0..7).map(move |x| counted([0, y, x], |v| v == 2)))
            .max()
            .unwrap();
        let began = std::time::Instant::now();
        let ns: Vec<u64> = (0..1000).collect();
        let error = sampler.draw_many(0, &ns).unwrap_err();
        assert!(
            began.elapsed().as_secs() < 5,
            "one draw gives up, and not all do"
        );
        let Error::NotEnoughContent {
            best: found,
            tries: 1000,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert!((found - part(best, 6)).abs() < 1e-12, "{error}");
        assert!(error.to_string().contains("label 2"), "{error}");
        // A label that the type cannot represent.
        let never = containing(Criterion::Label(300.into()), 0.1, Border::Drop).unwrap();
        let error = never.with_tries(3).draw(0, 0).unwrap_err();
        assert!(
            matches!(error, Error::NotEnoughContent { tries: 3, best, .. } if best.abs() < 1e-12)
        );
    }

    #[test]
    fn invalid_conditions_are_refused() {
        for fraction in [0.0, -0.5, 1.1, f64::NAN, f64::INFINITY] {
            let refused = containing(Criterion::NonZero, fraction, Border::Drop);
            assert!(
                matches!(refused, Err(Error::InvalidArgument { .. })),
                "{fraction}"
            );
        }
        let inner = uniform(Border::Drop, None);
        let refused = MinContent::new(inner, map(), 1, Criterion::NonZero, 0.5);
        assert!(matches!(refused, Err(Error::NoSuchChannel { .. })));
        let sampler = containing(Criterion::NonZero, 0.1, Border::Drop).unwrap();
        assert!(sampler.draw(0, MOST_DRAWS - 1).is_ok());
        assert!(sampler.draw(0, MOST_DRAWS).is_err());
    }
}
