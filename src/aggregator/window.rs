//! How patches are weighed against each other: 1-D windows, and each patch's shares of them.
//!
//! A window is a product of three 1-D windows and a grid a product of three lists of
//! starts, so the sum of all weights at a voxel is a product of three numbers, one per axis.
//! A patch's *share* along an axis is its window divided by that sum: the shares of all
//! patches add up to 1 everywhere, and no weight volume and no division is needed.

use std::ops::Range;

use crate::grid::{Axis, Grid};

/// How overlapping patches are blended. `n` counts voxels along an axis of a patch of `P`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Blend {
    /// All patches alike.
    Average,
    /// `sin^2(pi (n+1) / (P+1))`: `TorchIO`'s Hann window, which has no zeros.
    Hann,
    /// `exp(-(n - (P-1)/2)^2 / (2 (sigma P)^2))`: MONAI's, whose sigma is 1/8.
    Gaussian {
        /// Standard deviation as a part of the patch.
        sigma: f64,
    },
    /// Each voxel from the patch in which it lies deepest, untouched: patches that follow
    /// each other are cut at `floor((start_i + P + start_(i+1)) / 2)`.
    Crop,
}

impl Blend {
    /// The Gaussian with MONAI's and nnU-Net's sigma of 1/8.
    pub const GAUSSIAN: Self = Self::Gaussian { sigma: 0.125 };

    /// The 1-D window of a patch of `patch` voxels. Meaningless for `Crop`.
    fn window(self, patch: u64) -> Vec<f64> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "patches are far below 2^53 voxels long"
        )]
        let (length, n) = (patch as f64, (0..patch).map(|n| n as f64));
        match self {
            Self::Average | Self::Crop => n.map(|_| 1.0).collect(),
            Self::Hann => n
                .map(|n| {
                    (std::f64::consts::PI * (n + 1.0) / (length + 1.0))
                        .sin()
                        .powi(2)
                })
                .collect(),
            Self::Gaussian { sigma } => {
                let bell = |n: f64| {
                    (-(n - (length - 1.0) / 2.0).powi(2) / (2.0 * (sigma * length).powi(2))).exp()
                };
                // Where the bell underflows, a lone patch must still count.
                n.map(|n| bell(n).max(f64::MIN_POSITIVE)).collect()
            }
        }
    }
}

/// For each axis (z, y, x) and each start along it, the patch's share at each of its voxels.
#[derive(Debug)]
pub(super) struct Shares([Vec<Vec<f32>>; 3]);

impl Shares {
    pub(super) fn new(grid: &Grid, blend: Blend) -> Self {
        Self(std::array::from_fn(|a| axis_shares(&grid.axes()[a], blend)))
    }

    /// The shares of the patch at `place` along `axis`.
    pub(super) fn along(&self, axis: usize, place: usize) -> &[f32] {
        &self.0[axis][place]
    }
}

fn axis_shares(axis: &Axis, blend: Blend) -> Vec<Vec<f32>> {
    let window = blend.window(axis.patch);
    let sum_at = |voxel: u64| -> f64 {
        let weight = |i: usize| window[offset(voxel - axis.starts[i])];
        axis.touching(voxel, voxel + 1).map(weight).sum()
    };
    let share = |start: u64| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the last step, after the division in f64"
        )]
        let at = |n: usize| (window[n] / sum_at(start + n as u64)) as f32;
        (0..window.len()).map(at).collect()
    };
    axis.starts.iter().map(|&start| share(start)).collect()
}

/// For each start, the voxels of the axis that its patch alone supplies under `Crop`.
pub(super) fn owned(axis: &Axis) -> Vec<Range<u64>> {
    let cuts: Vec<u64> = axis
        .starts
        .windows(2)
        .map(|pair| (pair[0] + axis.patch + pair[1]) / 2)
        .collect();
    (0..axis.starts.len())
        .map(|i| {
            let from = if i == 0 { 0 } else { cuts[i - 1] };
            from..cuts.get(i).copied().unwrap_or(axis.length)
        })
        .collect()
}

fn offset(n: u64) -> usize {
    usize::try_from(n).expect("an offset inside a patch in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Blend; 4] = [
        Blend::Average,
        Blend::Hann,
        Blend::GAUSSIAN,
        Blend::Gaussian { sigma: 1.0 / 64.0 },
    ];

    #[test]
    fn shares_add_up_to_one_everywhere() {
        for (length, patch, overlap) in [
            (1069, 128, 64),
            (97, 96, 48),
            (64, 16, 14),
            (30, 30, 0),
            (31, 30, 0),
            (512, 512, 0),
        ] {
            let grid = Grid::new([length, 1, 1], [patch, 1, 1], [overlap, 0, 0]).unwrap();
            for blend in ALL {
                let shares = Shares::new(&grid, blend);
                let mut sum = vec![0.0_f64; offset(length)];
                for (i, &start) in grid.axes()[0].starts.iter().enumerate() {
                    for (n, &share) in shares.along(0, i).iter().enumerate() {
                        assert!(share.is_finite() && share >= 0.0);
                        sum[offset(start) + n] += f64::from(share);
                    }
                }
                assert!(
                    sum.iter().all(|s| (s - 1.0).abs() < 3e-7),
                    "{blend:?} {length}/{patch}/{overlap}"
                );
            }
        }
    }

    #[test]
    fn the_hann_window_is_torchio_s() {
        let window = Blend::Hann.window(3);
        let expected = [0.5, 1.0, 0.5];
        assert!(
            window
                .iter()
                .zip(expected)
                .all(|(w, e)| (w - e).abs() < 1e-12),
            "{window:?}"
        );
        assert!(Blend::Hann.window(512).iter().all(|&w| w > 0.0));
    }

    #[test]
    fn owned_voxels_tile_the_axis_inside_their_patches() {
        for (length, patch, overlap) in [
            (320, 102, 4),
            (129, 128, 64),
            (10, 5, 2),
            (70, 64, 63),
            (64, 64, 1),
        ] {
            let grid = Grid::new([length, 1, 1], [patch, 1, 1], [overlap, 0, 0]).unwrap();
            let axis = &grid.axes()[0];
            let owned = owned(axis);
            assert_eq!((owned[0].start, owned[owned.len() - 1].end), (0, length));
            for (i, range) in owned.iter().enumerate() {
                assert!(axis.starts[i] <= range.start && range.end <= axis.starts[i] + patch);
                assert!(i == 0 || owned[i - 1].end == range.start);
            }
        }
        let axis = Grid::new([320, 1, 1], [102, 1, 1], [4, 0, 0])
            .unwrap()
            .axes()[0]
            .clone();
        assert_eq!(
            owned(&axis)[1],
            100..198,
            "the cut between regular patches is in the middle of the overlap"
        );
    }
}
