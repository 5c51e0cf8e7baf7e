//! A brute-force twin of the aggregator for tests: dense arrays, `f64` and plain loops.

use crate::aggregator::{Accumulator, AggregatorOptions, Blend, NonFinite, Reduce};
use crate::dtype::{DType, Element, with_element};
use crate::grid::Grid;
use crate::patch::Patch;
use crate::region::Region;

/// A seeded pseudo-random number generator.
pub(crate) struct TwinRandom(u64);

impl TwinRandom {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number in `0..n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()].clone()
    }

    /// Returns the numbers below `n` in random order.
    pub(crate) fn shuffled(&mut self, n: u64) -> Vec<u64> {
        let mut all: Vec<u64> = (0..n).collect();
        for i in (1..all.len()).rev() {
            let other = usize::try_from(self.below(i as u64 + 1)).unwrap();
            all.swap(i, other);
        }
        all
    }
}

/// Returns the number of configurations for a test: `VOXPATCH_CASES`, or `usual`.
pub(crate) fn cases(usual: u64) -> u64 {
    let asked = std::env::var("VOXPATCH_CASES").ok();
    asked.and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

/// The contribution of a patch.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// A value for each channel and voxel.
    Values(Vec<f64>),
    /// A value for each channel.
    Constant(Vec<f64>),
    Nothing,
}

/// The result of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) uncovered: u64,
    pub(crate) compared: u64,
    pub(crate) wrong: Option<String>,
}

/// A patch that votes for a voxel.
struct Voter<'a> {
    /// Twice the distance between the centers of the voxel and of the patch, as fractions of the patch, summed over the
    /// axes.
    off: f64,
    log: f64,
    value: Box<dyn Fn(usize) -> f64 + 'a>,
}

/// The smallest and the largest value that a voxel may have.
type Bounds = (f64, f64);

/// Compares the voxels of an output that are `wanted` with those computed from the contributions `said`, in the grid's
/// order.
pub(crate) fn compare(
    (grid, options): (&Grid, &AggregatorOptions),
    said: &[Said],
    channels: usize,
    found: &Patch,
    wanted: &dyn Fn([i64; 3]) -> bool,
) -> Verdict {
    let mut verdict = Verdict::default();
    let shape = found.shape();
    let per_channel = usize::try_from(Region::whole(shape).voxels()).unwrap();
    let values: Vec<f64> = with_element!(found.dtype(), T => bytemuck::cast_slice::<u8, T>(found.bytes())
        .iter().map(|value| value.to_f64()).collect());
    let outputs = values.len() / per_channel;
    let fill = with_element!(found.dtype(), T => T::from_f64(options.fill).to_f64());
    let regions: Vec<Region> = grid.iter().collect();
    for n in 0..per_channel {
        let at = n as u64;
        let voxel = [
            at / (shape[1] * shape[2]),
            at / shape[2] % shape[1],
            at % shape[2],
        ];
        let voxel = voxel.map(|n| i64::try_from(n).unwrap());
        if !wanted(voxel) {
            continue;
        }
        let found_here: Vec<f64> = (0..outputs).map(|c| values[c * per_channel + n]).collect();
        let voters = voters(&regions, options, said, voxel);
        verdict.compared += 1;
        let right = if voters.is_empty() {
            verdict.uncovered += 1;
            found_here
                .iter()
                .all(|value| value.to_bits() == fill.to_bits() || *value == fill)
        } else {
            let inputs: Vec<Bounds> = (0..channels)
                .map(|c| blended(options, &voters, c))
                .collect();
            is_reduced(options, &inputs, &found_here, found.dtype())
        };
        if !right && verdict.wrong.is_none() {
            let votes: Vec<_> = voters
                .iter()
                .map(|v| (v.off, v.log, (v.value)(0)))
                .collect();
            verdict.wrong = Some(format!(
                "{found_here:?} at {voxel:?}; voters (off, log, value): {votes:?}"
            ));
        }
    }
    verdict
}

/// Returns the patches that vote for a voxel, in the order z, y, x of their places.
fn voters<'a>(
    regions: &[Region],
    options: &AggregatorOptions,
    said: &'a [Said],
    voxel: [i64; 3],
) -> Vec<Voter<'a>> {
    let mut found: Vec<([i64; 3], Voter<'a>)> = Vec::new();
    for (said, region) in said.iter().zip(regions) {
        if matches!(said, Said::Nothing) || !region.contains(&Region::new(voxel, [1; 3])) {
            continue;
        }
        let patch = region.shape;
        let inside: [u64; 3] = std::array::from_fn(|a| voxel[a].abs_diff(region.start[a]));
        let n = usize::try_from((inside[0] * patch[1] + inside[1]) * patch[2] + inside[2]).unwrap();
        let per_channel = usize::try_from(Region::whole(patch).voxels()).unwrap();
        let value: Box<dyn Fn(usize) -> f64 + 'a> = match said {
            Said::Values(values) => Box::new(move |c| values[c * per_channel + n]),
            Said::Constant(values) => Box::new(move |c| values[c]),
            Said::Nothing => continue,
        };
        let log = match &options.blend {
            Blend::Custom(window) => f64::from(window.weights()[n]).ln(),
            blend => (0..3).map(|a| log(blend, inside[a], patch[a])).sum(),
        };
        let off =
            (0..3).map(|a| (number(2 * inside[a] + 1) - number(patch[a])).abs() / number(patch[a]));
        let off = off.sum();
        found.push((region.start, Voter { off, log, value }));
    }
    found.sort_by_key(|(start, _)| *start);
    found.into_iter().map(|(_, voter)| voter).collect()
}

fn number(n: u64) -> f64 {
    f64::from(u32::try_from(n).unwrap())
}

/// Returns the logarithm of a window at voxel `n` of a patch of `length`, in a second, simple implementation.
fn log(blend: &Blend, n: u64, length: u64) -> f64 {
    let (n, p) = (number(n), number(length));
    let bell = |distance: f64, sigma: f64| -(distance * distance) / (2.0 * sigma * sigma);
    match blend {
        Blend::Hann => ((std::f64::consts::PI * (n + 1.0) / (p + 1.0)).sin().powi(2)).ln(),
        Blend::Gaussian { sigma } => bell(n - (p - 1.0) / 2.0, p * sigma),
        Blend::NnUnet => bell(n - (p / 2.0).floor(), p / 8.0),
        Blend::Linear => (n + 1.0).min(p - n).ln(),
        Blend::Average | Blend::Crop | Blend::Custom(_) => 0.0,
    }
}

/// Returns the bounds of a channel's blended value, allowing for the accumulator's rounding.
fn blended(options: &AggregatorOptions, voters: &[Voter<'_>], channel: usize) -> Bounds {
    let values = || voters.iter().map(|voter| (voter.value)(channel));
    if options.blend == Blend::Crop {
        let mut deepest = &voters[0];
        for voter in voters {
            // Equal distances may differ in their last bit.
            if voter.off <= deepest.off + 1e-9 {
                deepest = voter;
            }
        }
        let value = (deepest.value)(channel);
        return (value, value);
    }
    let top = voters
        .iter()
        .map(|voter| voter.log)
        .fold(f64::NEG_INFINITY, f64::max);
    let weights = || voters.iter().map(|voter| (voter.log - top).exp());
    let mean = weights().zip(values()).map(|(w, v)| w * v).sum::<f64>() / weights().sum::<f64>();
    let most = values().map(f64::abs).fold(0.0, f64::max);
    let narrow = options.all_vote && options.non_finite != NonFinite::LeaveOut;
    let count = number(voters.len() as u64);
    let lost = match options.accumulator {
        Accumulator::F16 if narrow => count * (2_f64.powi(-10) * most + 2_f64.powi(-23)),
        Accumulator::BF16 if narrow => count * 2_f64.powi(-7) * most,
        _ => (count + 8.0) * 2_f64.powi(-22) * most,
    };
    (mean - lost, mean + lost)
}

/// Returns `true` if a voxel's output may come from values within bounds.
fn is_reduced(
    options: &AggregatorOptions,
    inputs: &[Bounds],
    found: &[f64],
    output: DType,
) -> bool {
    let each = |of: &dyn Fn(f64) -> f64, more: f64| {
        let mut pairs = inputs.iter().zip(found);
        pairs.all(|(&(low, high), &found)| may_be(found, (of(low) - more, of(high) + more), output))
    };
    match &options.reduce {
        Reduce::Mean => each(&|value| value, 0.0),
        Reduce::Sigmoid => each(&|value| 1.0 / (1.0 + (-value).exp()), 1e-6),
        Reduce::Threshold(threshold) => each(
            &|value| f64::from(u8::from(value >= f64::from(*threshold))),
            0.0,
        ),
        Reduce::Quantize { low, high } => {
            let (low, high) = (f64::from(*low), f64::from(*high));
            each(
                &|value| ((value - low) / (high - low) * 255.0).clamp(0.0, 255.0),
                1e-3,
            )
        }
        Reduce::Argmax | Reduce::Labels(_) => {
            let least = inputs
                .iter()
                .map(|input| input.0)
                .fold(f64::NEG_INFINITY, f64::max);
            let exact = inputs
                .iter()
                .all(|(low, high)| low.to_bits() == high.to_bits());
            let mut may_win = inputs
                .iter()
                .enumerate()
                .filter(|(_, (_, high))| *high >= least);
            let is_it = |class: usize| {
                let label = match &options.reduce {
                    Reduce::Labels(table) => f64::from(table[class]),
                    _ => number(class as u64),
                };
                may_be(found[0], (label, label), output)
            };
            if exact {
                return may_win.next().is_some_and(|(class, _)| is_it(class));
            }
            may_win.any(|(class, _)| is_it(class))
        }
        Reduce::Softmax => {
            let middle: Vec<f64> = inputs
                .iter()
                .map(|(low, high)| f64::midpoint(*low, *high))
                .collect();
            let top = middle.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = middle.iter().map(|value| (value - top).exp()).sum();
            let lost = inputs
                .iter()
                .map(|(low, high)| high - low)
                .fold(1e-6, f64::max)
                * 2.0;
            middle.iter().zip(found).all(|(value, &found)| {
                let part = (value - top).exp() / sum;
                may_be(found, (part - lost, part + lost), output)
            })
        }
        Reduce::Custom(_) => unreachable!("not tried here"),
    }
}

/// Returns `true` if an output value may come from a number within bounds.
fn may_be(found: f64, (low, high): Bounds, output: DType) -> bool {
    if output == DType::Bool {
        return if low <= 0.0 && high >= 0.0 {
            low < high || found == 0.0
        } else {
            found == 1.0
        };
    }
    let stored = |value: f64| with_element!(output, T => T::from_f64(value).to_f64());
    (stored(low)..=stored(high)).contains(&found)
}
