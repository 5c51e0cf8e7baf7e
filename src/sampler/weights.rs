//! The sum of the weights in each block, with compensated summation.
//!
//! NaN, infinity and negative weights are errors before the first draw.

use std::path::Path;

use super::blocks::{BlockVoxels, Blocks};
use super::sums::{Block, BlockStats, Entries, Sealed, decode_entries, encode_entries, place};
use crate::dtype::{DType, Element, with_element};
use crate::error::{Error, Result};
use crate::region::Region;
use crate::volume::Layout;

/// The sum of the weights in each block that has any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightSums(pub(super) Entries<f64>);

impl BlockStats for WeightSums {}

impl Sealed for WeightSums {
    const KIND: u8 = 1;

    #[expect(private_interfaces, reason = "only called in this module")]
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
                let mut sum = CompensatedSum::default();
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

    #[expect(private_interfaces, reason = "only called in this module")]
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

/// A compensated sum (A. Neumaier, 1974), which keeps small numbers next to large ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CompensatedSum {
    sum: f64,
    lost: f64,
}

impl CompensatedSum {
    pub(super) fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - sum) + value
        } else {
            (value - sum) + self.sum
        };
        self.sum = sum;
    }

    /// Returns the sum; infinite if it is too large.
    pub(super) fn value(self) -> f64 {
        if self.sum.is_finite() {
            self.sum + self.lost
        } else {
            f64::INFINITY
        }
    }
}

/// The number of voxels that are summed without compensation before their sum is added.
pub(super) const GROUP: usize = 64;

/// Returns the sums of groups of [`GROUP`] weights, each with its first voxel; or, instead of a sum, the first voxel of
/// the group whose value is not a weight.
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
    match weights[..count].iter().position(|w| !is_weight(*w)) {
        Some(bad) => Err(bad),
        None => Ok(weights[..count].iter().sum()),
    }
}

fn is_weight(weight: f64) -> bool {
    (0.0..f64::INFINITY).contains(&weight)
}

/// Computes the weights of a group of voxels and returns their number.
pub(super) fn to_weights(layout: &Layout, group: &[u8], weights: &mut [f64; GROUP]) -> usize {
    let is_bool = layout.dtype == DType::Bool;
    with_element!(layout.dtype, T => {
        let values = group.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>);
        let mut count = 0;
        for (weight, value) in weights.iter_mut().zip(values) {
            *weight = if is_bool { f64::from(value > T::default()) } else { value.to_f64() };
            count += 1;
        }
        count
    })
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
    Error::InvalidMapValue {
        path: block.layout.path.clone(),
        channel: block.channel,
        voxel: place(block.region, i as u64),
        what: "weight",
        value: weights[0].to_string(),
        allowed: "weights must be finite and not negative",
    }
}

/// Returns the error of weights whose sum an f64 cannot represent.
pub(super) fn too_large(path: &Path) -> Error {
    Error::unsupported(
        path,
        "the sum of its weights is too large for an f64: make them smaller",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_weights_next_to_large_ones_are_not_lost() {
        let mut sum = CompensatedSum::default();
        for value in [1e30, 1.0, 1e-9, -1e30] {
            sum.add(value);
        }
        assert!((sum.value() - (1.0 + 1e-9)).abs() < 1e-15);
        let mut sum = CompensatedSum::default();
        (0..3).for_each(|_| sum.add(f64::MAX));
        assert!(sum.value().is_infinite(), "too large is not NaN");
    }
}
