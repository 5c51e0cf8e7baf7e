//! The weights of overlapping patches: 1-D windows, and each patch's shares of them.
//!
//! A window is a product of three 1-D windows and a grid a product of three lists of starts, so the sum of all weights
//! at a voxel is a product of three numbers, one per axis. A patch's *share* along an axis is its window divided by
//! that sum: the shares of all patches add up to 1 everywhere, so neither a weight volume nor a division is needed.

use std::f64::consts::PI;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::grid::{Axis, Grid};
use crate::region::Shape;
use crate::words::Word;

/// The weights with which overlapping patches are blended. `n` is the index of a voxel along an axis of a patch of `P`
/// voxels.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Blend {
    /// Equal weights.
    Average,
    /// `sin^2(pi (n+1) / (P+1))`: `TorchIO`'s Hann window, which has no zeros.
    Hann,
    /// `exp(-(n - (P-1)/2)^2 / (2 (sigma P)^2))`: MONAI's window, without its floor. Every voxel of a patch has a
    /// weight above 0, however narrow the window is.
    Gaussian {
        /// The standard deviation as a fraction of the patch.
        sigma: f64,
    },
    /// nnU-Net's window: a Gaussian with a standard deviation of `P/8` around voxel `floor(P/2)`, so not symmetric for
    /// even `P`.
    NnUnet,
    /// `min(n+1, P-n)`: falls linearly from the center to the faces.
    Linear,
    /// Custom weights.
    Custom(Window),
    /// Each voxel unchanged from the patch in which it is deepest: consecutive patches are cut at `floor((start_i + P +
    /// start_(i+1)) / 2)`.
    ///
    /// Only patches that vote count. If the owner of a voxel does not vote, the voxel comes from the patch that covers
    /// it, votes, and has the smallest sum of `|2 v + 1 - 2 start - P| / P` over the axes. Between two patches that
    /// differ along one axis, this is the same cut. Of equal patches it is the last (z before y before x), as at the
    /// cut.
    Crop,
}

/// A weight for each voxel of a patch.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    shape: Shape,
    weights: Arc<[f32]>,
    /// The factors along z, y, x, if the window is a product.
    factors: Option<Arc<[Vec<f64>; 3]>>,
}

impl Window {
    /// Creates a window of a patch of `shape` (z, y, x) from row-major weights above 0.
    ///
    /// A product of three 1-D windows is recognized (to 1e-6 of each weight) and costs no more than a built-in window.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the number of weights is not the number of voxels, or a weight is not finite and
    /// above 0.
    pub fn new(shape: Shape, weights: Vec<f32>) -> Result<Self> {
        let refuse = |value: String, problem: String| Error::InvalidArgument {
            argument: "window",
            value,
            problem,
        };
        if crate::region::voxels(shape) != Some(weights.len() as u64) || weights.is_empty() {
            let problem = format!("a patch of {shape:?} has a different number of voxels");
            return Err(refuse(format!("of {} weights", weights.len()), problem));
        }
        if let Some(bad) = weights.iter().position(|w| !(w.is_finite() && *w > 0.0)) {
            let problem = format!("weight {bad} is {}, but all must be above 0", weights[bad]);
            return Err(refuse(format!("{shape:?}"), problem));
        }
        Ok(Self {
            factors: factors(shape, &weights).map(Arc::new),
            weights: weights.into(),
            shape,
        })
    }

    /// Returns the weights in row-major order.
    #[must_use]
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Returns the smallest and the largest weight.
    fn ends(&self) -> (f32, f32) {
        let weights = || self.weights.iter().copied();
        (
            weights().fold(f32::INFINITY, f32::min),
            weights().fold(0.0, f32::max),
        )
    }

    /// Returns the window, scaled to a maximum of 1 if its maximum is not within 1e-6 to 1e6. Otherwise sums would
    /// differ from the values by orders of magnitude.
    fn even(&self) -> Self {
        let (_, most) = self.ends();
        if (1e-6..=1e6).contains(&most) {
            return self.clone();
        }
        let part = |&weight: &f32| single(f64::from(weight) / f64::from(most));
        Self {
            weights: self.weights.iter().map(part).collect(),
            ..self.clone()
        }
    }

    /// Creates MONAI's Gaussian window (`sigma` is 1/8 in MONAI). Weights have MONAI's floor of 1/1000.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the patch has no voxels.
    pub fn monai(patch: Shape, sigma: f64) -> Result<Self> {
        let [z, y, x] = patch.map(|length| Blend::Gaussian { sigma }.window(length));
        let mut weights = Vec::with_capacity(z.len() * y.len() * x.len());
        for a in &z {
            for b in &y {
                weights.extend(x.iter().map(|c| single(a * b * c)));
            }
        }
        let least = weights
            .iter()
            .copied()
            .fold(f32::INFINITY, f32::min)
            .max(1e-3);
        for weight in &mut weights {
            *weight = weight.max(least);
        }
        Self::new(patch, weights)
    }
}

/// Returns the 1-D factors of a 3-D window, if it is a product.
fn factors(shape: Shape, weights: &[f32]) -> Option<[Vec<f64>; 3]> {
    let [nz, ny, nx] = shape.map(offset);
    let at = |z: usize, y: usize, x: usize| f64::from(weights[(z * ny + y) * nx + x]);
    let peak = (0..weights.len()).max_by(|&a, &b| weights[a].total_cmp(&weights[b]))?;
    let (pz, py, px) = (peak / (ny * nx), peak / nx % ny, peak % nx);
    let along_z: Vec<f64> = (0..nz).map(|z| at(z, py, px)).collect();
    let along_y: Vec<f64> = (0..ny).map(|y| at(pz, y, px) / at(pz, py, px)).collect();
    let along_x: Vec<f64> = (0..nx).map(|x| at(pz, py, x) / at(pz, py, px)).collect();
    let is_product = (0..weights.len()).all(|n| {
        let product = along_z[n / (ny * nx)] * along_y[n / nx % ny] * along_x[n % nx];
        (product - f64::from(weights[n])).abs() <= 1e-6 * product
    });
    is_product.then_some([along_z, along_y, along_x])
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the last step, after all arithmetic in f64"
)]
fn single(value: f64) -> f32 {
    value as f32
}

impl fmt::Display for Blend {
    /// Writes the word that [`FromStr`] reads; `custom` for a custom window.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Average => f.pad("average"),
            Self::Hann => f.pad("hann"),
            Self::Gaussian { sigma } => write!(f, "gaussian:{sigma}"),
            Self::Linear => f.pad("linear"),
            Self::NnUnet => f.pad("nnunet"),
            Self::Crop => f.pad("crop"),
            Self::Custom(_) => f.pad("custom"),
        }
    }
}

impl FromStr for Blend {
    type Err = Error;

    /// Parses `average`, `hann`, `gaussian`, `gaussian:SIGMA`, `linear`, `nnunet` or `crop`.
    fn from_str(text: &str) -> Result<Self> {
        let choices = "average, hann, gaussian[:SIGMA], linear, nnunet and crop";
        let word = Word::new("blend", text, choices);
        Ok(match word.split() {
            ("average", None) => Self::Average,
            ("hann", None) => Self::Hann,
            ("gaussian", None) => Self::GAUSSIAN,
            ("gaussian", Some(sigma)) => {
                let [sigma] = word.numbers(sigma)?;
                Self::Gaussian { sigma }
            }
            ("linear", None) => Self::Linear,
            ("nnunet", None) => Self::NnUnet,
            ("crop", None) => Self::Crop,
            _ => return Err(word.unknown()),
        })
    }
}

impl Blend {
    /// The Gaussian with MONAI's and nnU-Net's sigma of 1/8.
    pub const GAUSSIAN: Self = Self::Gaussian { sigma: 0.125 };

    /// Checks that the blend can be used for patches of `patch` voxels.
    pub(super) fn check(&self, patch: Shape) -> Result<()> {
        match self {
            Self::Custom(window) if window.shape != patch => Err(Error::InvalidArgument {
                argument: "window",
                value: format!("{:?}", window.shape),
                problem: format!("predictions have {patch:?} voxels"),
            }),
            Self::Gaussian { sigma } if !(sigma.is_finite() && *sigma > 0.0) => {
                Err(Error::InvalidArgument {
                    argument: "sigma",
                    value: sigma.to_string(),
                    problem: "it must be a fraction of the patch, above 0".to_owned(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Returns `true` if the weights are a product of three 1-D windows.
    pub(super) fn is_product(&self) -> bool {
        !matches!(self, Self::Custom(window) if window.factors.is_none())
    }

    /// Returns `true` if the weights of a patch differ so much that `f32` sums could lose the small ones.
    pub(super) fn is_uneven(&self, patch: Shape) -> bool {
        let down: f64 = match self {
            Self::Custom(window) => {
                let (least, most) = window.ends();
                (f64::from(most) / f64::from(least)).ln()
            }
            // Windows fall from the middle to the faces.
            blend => patch
                .map(|length| {
                    let at = |n: u64| blend.log(n, length);
                    at(length / 2).max(at((length - 1) / 2)) - at(0).min(at(length - 1))
                })
                .iter()
                .sum(),
        };
        down > MOST_UNEVEN
    }

    /// Returns the logarithms of the 1-D windows along z, y, x, or the window if it is not a product.
    fn factor_logs(&self, patch: Shape) -> std::result::Result<[Vec<f64>; 3], &Window> {
        match self {
            Self::Custom(window) => {
                let factors = window.factors.as_ref().ok_or(window)?;
                Ok(std::array::from_fn(|a| {
                    factors[a].iter().map(|w| w.ln()).collect()
                }))
            }
            blend => Ok(patch.map(|length| blend.logs(length))),
        }
    }

    /// Returns the logarithms of the 1-D window of a patch of `patch` voxels.
    fn logs(&self, patch: u64) -> Vec<f64> {
        (0..patch).map(|n| self.log(n, patch)).collect()
    }

    /// Returns the logarithm of the weight of voxel `n` along an axis of a patch of `patch` voxels. A narrow Gaussian
    /// would underflow `f64` without it. The peak's value makes no difference.
    #[expect(
        clippy::cast_precision_loss,
        reason = "patches are far below 2^53 voxels long"
    )]
    fn log(&self, n: u64, patch: u64) -> f64 {
        let (length, n) = (patch as f64, n as f64);
        let bell = |distance: f64, sigma: f64| (-(distance / sigma).powi(2) / 2.0).max(LEAST_LOG);
        match self {
            Self::Average | Self::Crop | Self::Custom(_) => 0.0,
            Self::Hann => (PI * (n + 1.0) / (length + 1.0)).sin().powi(2).ln(),
            Self::Gaussian { sigma } => bell(n - (length - 1.0) / 2.0, sigma * length),
            Self::NnUnet => bell(n - (length / 2.0).floor(), length / 8.0),
            Self::Linear => (n + 1.0).min(length - n).ln(),
        }
    }

    /// Returns the weights of the 1-D window of a patch of `patch` voxels.
    fn window(&self, patch: u64) -> Vec<f64> {
        self.logs(patch).into_iter().map(f64::exp).collect()
    }
}

/// The smallest logarithm of a weight: sums of three are still exact to a thousandth.
const LEAST_LOG: f64 = -1e12;

/// The largest difference of a window's logarithms at which weights are summed directly. Where some patches do not vote
/// and the difference is larger, weights are summed by their logarithms: `f32` would round or lose weights of 1e-20 and
/// less.
const MOST_UNEVEN: f64 = 46.0;

/// The weights of the voxels of each patch.
#[derive(Debug)]
pub(super) enum Weights {
    /// For each axis (z, y, x) and each start along it, the patch's share at each of its voxels:
    /// the products add up to 1.
    Shares([Vec<Vec<f32>>; 3]),
    /// The same weights for every patch, row-major. Their sums are arbitrary.
    Solid(Window),
}

impl Weights {
    /// Returns the weights, and their logarithms if `by_logs`.
    pub(super) fn new(grid: &Grid, blend: &Blend, by_logs: bool) -> (Self, Option<Logs>) {
        match blend.factor_logs(grid.patch()) {
            Ok(logs) => {
                let shares = std::array::from_fn(|a| axis_shares(&grid.axes()[a], &logs[a]));
                (Self::Shares(shares), by_logs.then_some(Logs::Product(logs)))
            }
            Err(window) => {
                let all = || window.weights.iter().map(|&w| f64::from(w).ln()).collect();
                let logs = by_logs.then(|| Logs::Solid(window.shape, all()));
                (Self::Solid(window.even()), logs)
            }
        }
    }

    /// Returns `true` if the weights of all patches add up to 1.
    pub(super) const fn are_shares(&self) -> bool {
        matches!(self, Self::Shares(_))
    }

    /// Returns the weights of the patch at `place`.
    pub(super) fn of(&self, place: [usize; 3]) -> PatchWeights<'_> {
        match self {
            Self::Shares(shares) => {
                PatchWeights::Shares(std::array::from_fn(|a| &shares[a][place[a]][..]))
            }
            Self::Solid(window) => PatchWeights::Solid(window),
        }
    }
}

/// The weights of the voxels of one patch.
pub(super) enum PatchWeights<'a> {
    /// The factors along z, y, x.
    Shares([&'a [f32]; 3]),
    /// All weights.
    Solid(&'a Window),
}

impl<'a> PatchWeights<'a> {
    /// Returns the weights of a row, starting at voxel `from` (z, y, x): a common factor, and a weight for each voxel.
    #[inline]
    pub(super) fn row(&self, from: [usize; 3], length: usize) -> (f32, &'a [f32]) {
        let [z, y, x] = from;
        match self {
            Self::Shares(along) => (along[0][z] * along[1][y], &along[2][x..x + length]),
            Self::Solid(window) => {
                let [_, ny, nx] = window.shape.map(offset);
                let first = (z * ny + y) * nx + x;
                (1.0, &window.weights[first..first + length])
            }
        }
    }
}

/// The logarithms of the weights of a patch's voxels.
#[derive(Debug)]
pub(super) enum Logs {
    /// The summands along z, y, x.
    Product([Vec<f64>; 3]),
    /// The logarithms for patches of a shape, row-major.
    Solid(Shape, Vec<f64>),
}

impl Logs {
    /// Returns the logarithms of a row, starting at voxel `from` (z, y, x) of a patch: a common summand, and one for
    /// each voxel.
    pub(super) fn row(&self, from: [usize; 3], length: usize) -> (f64, &[f64]) {
        let [z, y, x] = from;
        match self {
            Self::Product(along) => (along[0][z] + along[1][y], &along[2][x..x + length]),
            Self::Solid([_, ny, nx], logs) => {
                let first = (z * offset(*ny) + y) * offset(*nx) + x;
                (0.0, &logs[first..first + length])
            }
        }
    }
}

/// Returns the shares of the patch at each start along an axis, 0 outside of the volume.
fn axis_shares(axis: &Axis, logs: &[f64]) -> Vec<Vec<f32>> {
    // A patch's n-th voxel, if it is inside the volume.
    let voxel = |i: usize, n: usize| {
        let at = i128::from(axis.starts[i]) + i128::try_from(n).ok()?;
        u64::try_from(at).ok().filter(|&at| at < axis.length)
    };
    let log_at = |i: usize, voxel: u64| {
        let voxel = i64::try_from(voxel).unwrap_or(i64::MAX);
        logs[offset(voxel.abs_diff(axis.starts[i]))]
    };
    let share_at = |i: usize, voxel: u64| {
        let own = log_at(i, voxel);
        let all = axis.touching(voxel, voxel + 1);
        let sum: f64 = all.map(|other| (log_at(other, voxel) - own).exp()).sum();
        single(1.0 / sum)
    };
    let shares = |i: usize| {
        let at = |n: usize| voxel(i, n).map_or(0.0, |voxel| share_at(i, voxel));
        (0..logs.len()).map(at).collect()
    };
    (0..axis.starts.len()).map(shares).collect()
}

/// Returns the voxels of the axis that the patch at each start owns under `Crop`.
pub(super) fn owned(axis: &Axis) -> Vec<Range<u64>> {
    let Range { start, end } = axis.covered();
    let middle = |pair: &[i64]| {
        let sum = i128::from(pair[0]) + i128::from(axis.patch) + i128::from(pair[1]);
        u64::try_from(sum.div_euclid(2))
            .unwrap_or(0)
            .clamp(start, end)
    };
    let cuts: Vec<u64> = axis.starts.windows(2).map(middle).collect();
    (0..axis.starts.len())
        .map(|i| {
            let from = if i == 0 { start } else { cuts[i - 1] };
            from..cuts.get(i).copied().unwrap_or(end)
        })
        .collect()
}

fn offset(n: u64) -> usize {
    usize::try_from(n).expect("an offset inside a patch in memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::{GridOptions, GridPlacement};

    const ALL: [Blend; 6] = [
        Blend::Average,
        Blend::Hann,
        Blend::GAUSSIAN,
        Blend::Gaussian { sigma: 1.0 / 64.0 },
        Blend::NnUnet,
        Blend::Linear,
    ];

    fn shares(grid: &Grid, blend: &Blend) -> [Vec<Vec<f32>>; 3] {
        match Weights::new(grid, blend, false).0 {
            Weights::Shares(shares) => shares,
            Weights::Solid(_) => panic!("a separable window"),
        }
    }

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
                let shares = shares(&grid, &blend);
                let mut sum = vec![0.0_f64; offset(length)];
                for (i, &start) in grid.axes()[0].starts.iter().enumerate() {
                    for (n, &share) in shares[0][i].iter().enumerate() {
                        assert!(share.is_finite() && share >= 0.0);
                        sum[offset(start.unsigned_abs()) + n] += f64::from(share);
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
                let start = axis.starts[i].unsigned_abs();
                assert!(start <= range.start && range.end <= start + patch);
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

    #[test]
    fn shares_add_up_to_one_inside_a_volume_that_patches_hang_over() {
        let options = GridOptions {
            placement: GridPlacement::Padded,
            margin: [3, 0, 0],
            fit: true,
        };
        for length in [1, 9, 20, 31] {
            let grid = Grid::with_options([length, 1, 1], [8, 1, 1], [6, 0, 0], &options).unwrap();
            let axis = &grid.axes()[0];
            for blend in ALL {
                let shares = shares(&grid, &blend);
                for voxel in 0..length {
                    let at = i64::try_from(voxel).unwrap();
                    let all = axis.touching(voxel, voxel + 1);
                    let sum: f64 = all
                        .map(|i| f64::from(shares[0][i][offset(at.abs_diff(axis.starts[i]))]))
                        .sum();
                    assert!(
                        (sum - 1.0).abs() < 3e-7,
                        "{blend:?} {length} {voxel}: {sum}"
                    );
                }
            }
        }
    }

    #[test]
    fn products_are_recognized_and_other_windows_are_not() {
        let hann: Vec<f64> = Blend::Hann.window(5);
        let bell = Blend::GAUSSIAN.window(4);
        let linear = Blend::Linear.window(3);
        let product = |z: usize, y: usize, x: usize| single(hann[z] * bell[y] * linear[x] * 7.0);
        let all = |of: &dyn Fn(usize, usize, usize) -> f32| -> Vec<f32> {
            (0..60).map(|n| of(n / 12, n / 3 % 4, n % 3)).collect()
        };
        let window = Window::new([5, 4, 3], all(&product)).unwrap();
        assert!(window.factors.is_some());
        let grid = Grid::new([20, 20, 20], [5, 4, 3], [2, 2, 1]).unwrap();
        let found = shares(&grid, &Blend::Custom(window));
        let close = |found: &[f32], wanted: &[f32]| {
            found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6)
        };
        assert!(close(&found[0][1], &shares(&grid, &Blend::Hann)[0][1]));
        assert!(close(&found[2][3], &shares(&grid, &Blend::Linear)[2][3]));
        let cone = |z: usize, y: usize, x: usize| if z + y + x == 4 { 2.0 } else { 1.0 };
        let cone = Window::new([5, 4, 3], all(&cone)).unwrap();
        assert!(cone.factors.is_none());
        let monai = Window::monai([32; 3], 0.125).unwrap();
        assert!(monai.factors.is_none());
        let floor = monai.weights.iter().filter(|&&w| w <= 1e-3).count();
        assert!(
            (50..65).contains(&(floor * 100 / 32_usize.pow(3))),
            "{floor}"
        );
        for bad in [
            vec![1.0; 59],
            [vec![1.0; 59], vec![0.0]].concat(),
            vec![f32::NAN; 60],
        ] {
            assert!(matches!(
                Window::new([5, 4, 3], bad),
                Err(Error::InvalidArgument { .. })
            ));
        }
    }

    #[test]
    fn nnu_net_s_window_peaks_behind_the_middle() {
        let window = Blend::NnUnet.window(128);
        assert!((window[64] - 1.0).abs() < 1e-12);
        // nnU-Net's own first and last weight at a peak of 10: 0.0034 and 0.0043.
        assert!(
            (window[0] * 10.0 - 0.0034).abs() < 5e-5 && (window[127] * 10.0 - 0.0043).abs() < 5e-5
        );
    }
}
