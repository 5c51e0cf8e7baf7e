//! Sampling by the channels of a one-hot or soft label map.

use std::sync::Arc;

use super::draw::{Sampler, SamplerOptions};
use super::index::WeightIndex;
use super::label::{check_share, check_sum};
use super::mixture::Mixture;
use super::weighted::Weighted;
use crate::error::{Error, Result};
use crate::region::{Region, Shape};
use crate::volume::Volume;

/// A sampler that draws patch centers by a label map with one channel per label.
///
/// First a channel is drawn by its share among the channels that have weight at any center, then
/// a center by the channel's weights: `w = sum of p_c m_c / sum(m_c)` over the channels, as in
/// `TorchIO`. Values may be soft, and channels may overlap.
#[derive(Debug)]
pub struct Channels {
    mixture: Mixture,
    absent: Vec<u64>,
}

impl Channels {
    /// Creates the sampler from a share for each channel, with the channel's index. Channels that are not listed have
    /// no share.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if no channel is listed or one twice, if a share is negative or not finite, or if all
    /// are 0; [`Error::NoCenter`] if no channel has any weight at a center; as [`Weighted::new`].
    pub fn new(
        map: &Arc<dyn Volume>,
        shares: &[(f64, &WeightIndex)],
        options: &SamplerOptions,
    ) -> Result<Self> {
        for (i, (share, index)) in shares.iter().enumerate() {
            let channel = index.channel();
            check_share(&format_args!("of channel {channel}: {share}"), *share)?;
            if shares[..i]
                .iter()
                .any(|(_, other)| other.channel() == channel)
            {
                return Err(Error::InvalidArgument {
                    argument: "weight of",
                    value: format!("channel {channel}"),
                    problem: "it is listed twice".to_owned(),
                });
            }
        }
        check_sum(shares.iter().map(|(share, _)| share))?;
        let memory = options.memory / (shares.len() as u64).max(1);
        let options = options.with_memory(memory);
        let (mut present, mut absent) = (Vec::<(f64, Box<dyn Sampler>)>::new(), Vec::new());
        let mut empty = None;
        for &(share, index) in shares.iter().filter(|(share, _)| *share > 0.0) {
            match Weighted::new(Arc::clone(map), index, &options) {
                Ok(sampler) => present.push((share, Box::new(sampler))),
                Err(error @ Error::NoCenter { .. }) => {
                    absent.push(index.channel());
                    empty = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match empty {
            Some(error) if present.is_empty() => Err(error),
            _ => Ok(Self {
                mixture: Mixture::new(present, options.seed)?,
                absent,
            }),
        }
    }

    /// Returns the channels with a share that are 0 at every center. They are left out, and their share is
    /// redistributed.
    #[must_use]
    pub fn absent(&self) -> &[u64] {
        &self.absent
    }
}

impl Sampler for Channels {
    fn patch(&self) -> Shape {
        self.mixture.patch()
    }

    fn draw(&self, epoch: u64, n: u64) -> Result<Region> {
        self.mixture.draw(epoch, n)
    }

    fn draw_many(&self, epoch: u64, ns: &[u64]) -> Result<Vec<Region>> {
        self.mixture.draw_many(epoch, ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::silent;
    use crate::volume::MemoryVolume;

    fn indexes(map: &Arc<dyn Volume>) -> Vec<WeightIndex> {
        let channels = 0..map.layout().channels;
        let index = |channel| WeightIndex::build(&**map, channel, 1, &silent).unwrap();
        channels.map(index).collect()
    }

    fn at_the_first(sampler: &Channels) -> usize {
        let all: Vec<u64> = (0..8000).collect();
        let regions = sampler.draw_many(0, &all).unwrap();
        regions.iter().filter(|region| region.start[2] == 0).count()
    }

    #[test]
    fn overlapping_channels_add_up_as_in_the_peer_s_own_example() {
        // Channels (1, 1) and (0, 1) with equal shares: 1/4 and 3/4.
        let map = MemoryVolume::from_vec([1, 1, 2], 2, vec![1.0_f32, 1.0, 0.0, 1.0]).unwrap();
        let map: Arc<dyn Volume> = Arc::new(map);
        let indexes = indexes(&map);
        let options = SamplerOptions::new([1; 3], 3);
        let shares = [(1.0, &indexes[0]), (1.0, &indexes[1])];
        let sampler = Channels::new(&map, &shares, &options).unwrap();
        let first = at_the_first(&sampler);
        assert!((1806..2194).contains(&first), "5 sigma of 2000: {first}");
        // LabelWeights of 3 to 1: 3/8 of the draws.
        let shares = [(3.0, &indexes[0]), (1.0, &indexes[1])];
        let first = at_the_first(&Channels::new(&map, &shares, &options).unwrap());
        assert!((2783..3217).contains(&first), "5 sigma of 3000: {first}");
        assert!(sampler.absent().is_empty());
    }

    #[test]
    fn an_empty_channel_is_absent_and_all_empty_is_an_error() {
        let voxels = vec![1.0_f32, 1.0, 1.0, 4.0, 0.0, 0.0, 5.0, 0.0, 0.0];
        let map = MemoryVolume::from_vec([1, 1, 3], 3, voxels).unwrap();
        let map: Arc<dyn Volume> = Arc::new(map);
        let indexes = indexes(&map);
        // Only the middle is a legal center, and channels 1 and 2 are 0 there.
        let options = SamplerOptions::new([1, 1, 3], 3);
        let shares = [(1.0, &indexes[0]), (1.0, &indexes[1])];
        let sampler = Channels::new(&map, &shares, &options).unwrap();
        assert_eq!(sampler.absent(), [1]);
        assert_eq!(sampler.draw(0, 0).unwrap().start, [0, 0, 0]);
        let none = [(1.0, &indexes[1]), (1.0, &indexes[2]), (0.0, &indexes[0])];
        let error = Channels::new(&map, &none, &options).unwrap_err();
        assert!(matches!(error, Error::NoCenter { channel: 2, .. }));
        for bad in [
            &[][..],
            &[(0.0, &indexes[0])],
            &[(-1.0, &indexes[0])],
            &[(1.0, &indexes[0]), (1.0, &indexes[0])],
        ] {
            let error = Channels::new(&map, bad, &options).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }));
        }
    }
}
