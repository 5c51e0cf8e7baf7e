//! Samplers against a flat reference: exact probabilities where possible, statistics with a p-value limit of 1e-6
//! elsewhere, and volumes far larger than memory.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::blocks::Blocks;
use super::sums::BlockStats;
use super::*;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::patch::Voxels;
use crate::progress::silent;
use crate::region::{Region, Shape, indices};
use crate::volume::{
    Cached, Chunk, ChunkVoxels, Layout, MemoryVolume, RealValues, Rescale, Volume,
};

mod disk;
mod huge;
mod near;

/// Returns the chi-square of `counts` against equal shares, as a normal deviate: 4.75 is a p-value of 1e-6.
pub(super) fn deviate(counts: &[u64]) -> f64 {
    deviate_from(counts, &vec![1.0; counts.len()])
}

/// Returns the same against any shares (Wilson and Hilferty).
#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn deviate_from(counts: &[u64], shares: &[f64]) -> f64 {
    let (n, total) = (
        counts.iter().sum::<u64>() as f64,
        shares.iter().sum::<f64>(),
    );
    let parts = counts.iter().zip(shares);
    let chi: f64 = parts
        .map(|(&c, share)| (c as f64 - n * share / total).powi(2) / (n * share / total))
        .sum();
    let df = counts.len() as f64 - 1.0;
    ((chi / df).cbrt() - (1.0 - 2.0 / (9.0 * df))) / (2.0 / (9.0 * df)).sqrt()
}

fn memory<T: Element>(shape: Shape, voxels: Vec<T>) -> Arc<MemoryVolume>
where
    Vec<T>: Into<Voxels>,
{
    let channels = voxels.len() as u64 / Region::whole(shape).voxels();
    Arc::new(MemoryVolume::from_vec(shape, channels, voxels).unwrap())
}

fn options(patch: Shape) -> SamplerOptions {
    SamplerOptions::new(patch, 7).with_threads(1)
}

fn index<T: BlockStats>(map: &dyn Volume, block: Shape) -> BlockIndex<T> {
    let blocks = Blocks {
        volume: map.layout().shape,
        block,
    };
    BlockIndex::of_blocks(map, 0, blocks, 2, &silent).unwrap()
}

fn weighted(map: &Arc<MemoryVolume>, options: &SamplerOptions) -> Result<Weighted> {
    let index = WeightIndex::build(&**map, 0, 1, &silent)?;
    Weighted::new(Arc::clone(map) as Arc<dyn Volume>, &index, options)
}

fn label(
    map: &Arc<MemoryVolume>,
    shares: &LabelWeights,
    options: &SamplerOptions,
) -> Result<Label> {
    let index = LabelIndex::build(&**map, 0, 1, &silent)?;
    Label::new(Arc::clone(map) as Arc<dyn Volume>, &index, shares, options)
}

fn shares<const N: usize>(shares: [(i32, f64); N]) -> LabelWeights {
    LabelWeights::new(shares.map(|(label, share)| (label.into(), share))).unwrap()
}

/// Returns every center of `map` that may be drawn, and its weight by `weight`.
fn reference(placement: &CenterBox, weight: impl Fn(usize) -> f64) -> HashMap<[u64; 3], f64> {
    let [_, y, x] = placement.volume();
    let centers = placement.centers();
    let ranges =
        std::array::from_fn(|a| centers.start[a].unsigned_abs()..centers.end()[a].unsigned_abs());
    let flat = |c: [u64; 3]| usize::try_from((c[0] * y + c[1]) * x + c[2]).unwrap();
    let all = indices(ranges).map(|c| (c, weight(flat(c))));
    all.filter(|&(_, weight)| weight > 0.0).collect()
}

fn assert_near(a: f64, b: f64, what: &dyn std::fmt::Debug) {
    assert!((a - b).abs() < 1e-12, "{a} instead of {b}: {what:?}");
}

/// Returns pseudo-random numbers, the same each time.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut random = CounterRng::new(seed, 0, 0);
    std::iter::repeat_with(move || random.number())
}

fn starts(sampler: &dyn Sampler, count: u64) -> Vec<[i64; 3]> {
    let ns: Vec<u64> = (0..count).collect();
    let regions = sampler.draw_many(0, &ns).unwrap();
    regions.iter().map(|region| region.start).collect()
}

const BORDERS: [Border; 3] = [Border::Drop, Border::Shift, Border::Pad];

#[test]
fn weights_are_drawn_as_the_flat_reference_says_for_all_blocks_patches_and_borders() {
    let shape = [5, 6, 7];
    let mut numbers = numbers(1);
    for block in 1..=17 {
        let weights: Vec<f32> = numbers
            .by_ref()
            .take(210)
            .map(|n| {
                if n % 3 == 0 {
                    0.0
                } else {
                    f32::from(n.to_le_bytes()[5])
                }
            })
            .collect();
        let map = memory(shape, weights.clone());
        let own = [block, 1 + block % 5, 18 - block];
        let index: WeightIndex = index(&*map, own);
        for patch in indices([1..6, 1..7, 1..8]).step_by(usize::try_from(block % 4 + 3).unwrap()) {
            let border = BORDERS[usize::try_from(patch[2] % 3).unwrap()];
            let options = options(patch).with_border(border);
            let sampler = Weighted::new(Arc::clone(&map) as Arc<dyn Volume>, &index, &options);
            let placement = CenterBox::new(shape, patch, border).unwrap();
            let expected = reference(&placement, |i| weights[i].into());
            if expected.is_empty() {
                assert!(matches!(sampler, Err(Error::NoCenter { .. })));
                continue;
            }
            let (sampler, total) = (sampler.unwrap(), expected.values().sum::<f64>());
            for center in indices(shape.map(|n| 0..n)) {
                let expected = expected.get(&center).map_or(0.0, |weight| weight / total);
                assert_near(sampler.probability(center), expected, &(own, patch, center));
            }
        }
    }
}

#[test]
fn labels_are_drawn_as_the_flat_reference_says_for_all_blocks_patches_and_borders() {
    let shape = [5, 6, 7];
    let mut numbers = numbers(2);
    let wanted = [(0, 2.0), (1, 1.0), (2, 0.5), (5, 0.0), (9, 3.0)];
    for block in 1..=17 {
        let labels: Vec<u16> = numbers
            .by_ref()
            .take(210)
            .map(|n| [0, 0, 1, 1, 2, 5][usize::try_from(n % 6).unwrap()])
            .collect();
        let map = memory(shape, labels.clone());
        let own = [block, 18 - block, 1 + block % 5];
        let index: LabelIndex = index(&*map, own);
        for patch in indices([1..6, 1..7, 1..8]).step_by(usize::try_from(block % 4 + 3).unwrap()) {
            let border = BORDERS[usize::try_from(patch[0] % 3).unwrap()];
            let (options, map) = (options(patch).with_border(border), Arc::clone(&map));
            let placement = CenterBox::new(shape, patch, border).unwrap();
            for named in [true, false] {
                let shares = if named {
                    shares(wanted)
                } else {
                    LabelWeights::foreground()
                };
                let count =
                    |l: u16| reference(&placement, |i| f64::from(u8::from(labels[i] == l))).len();
                #[expect(clippy::cast_precision_loss, reason = "small counts")]
                let weight = |i: usize| match labels[i] {
                    0 if !named => 0.0,
                    _ if !named => 1.0,
                    l => {
                        let own = wanted.iter().find(|(label, _)| *label == i32::from(l));
                        own.map_or(0.0, |(_, share)| share / count(l) as f64)
                    }
                };
                let expected = reference(&placement, weight);
                let sampler = Label::new(
                    Arc::clone(&map) as Arc<dyn Volume>,
                    &index,
                    &shares,
                    &options,
                );
                if expected.is_empty() {
                    assert!(matches!(sampler, Err(Error::NoCenter { .. })));
                    continue;
                }
                let (sampler, total) = (sampler.unwrap(), expected.values().sum::<f64>());
                let found = sampler.probabilities();
                assert_eq!(found.len(), expected.len());
                for (center, share) in found {
                    assert_near(
                        share,
                        expected[&center] / total,
                        &(own, patch, center, named),
                    );
                }
                assert_eq!(sampler.absent().contains(&9.into()), named);
            }
        }
    }
}

#[test]
fn every_legal_place_is_drawn_and_no_other_by_weight_and_by_label() {
    for (volume, axis) in (1..=12_u64).flat_map(|volume| [0, 1, 2].map(|axis| (volume, axis))) {
        for patch in 1..=volume {
            let (mut shape, mut own) = ([2, 1, 2], [2, 1, 2]);
            (shape[axis], own[axis]) = (volume, patch);
            let count = usize::try_from(Region::whole(shape).voxels()).unwrap();
            let map = memory(shape, vec![1_u8; count]);
            let options = options(own);
            let by_weight = weighted(&map, &options).unwrap();
            let by_label = label(&map, &LabelWeights::foreground(), &options).unwrap();
            for sampler in [&by_weight as &dyn Sampler, &by_label] {
                let places: BTreeSet<_> = starts(sampler, 400).into_iter().collect();
                let last = i64::try_from(volume - patch).unwrap();
                let expected = (0..=last).map(|n| {
                    let mut start = [0; 3];
                    start[axis] = n;
                    start
                });
                assert!(places.into_iter().eq(expected));
            }
        }
    }
}

#[test]
fn a_single_voxel_is_always_the_center_or_the_border_policy_decides() {
    let shape = [9, 8, 7];
    for (i, voxel) in indices(shape.map(|n| 0..n)).enumerate() {
        let mut weights = vec![0_u8; 504];
        weights[i] = 3;
        let map = memory(shape, weights);
        for patch in (1..=7).map(|p| [p; 3]).chain([shape]) {
            for border in BORDERS {
                let options = options(patch).with_border(border);
                let placement = CenterBox::new(shape, patch, border).unwrap();
                let at = Region::new(voxel.map(u64::cast_signed), [1; 3]);
                let drawn = weighted(&map, &options).and_then(|sampler| sampler.draw(3, 5));
                let label = label(&map, &shares([(3, 1.0)]), &options);
                let label = label.and_then(|sampler| sampler.draw(3, 5));
                if !placement.centers().contains(&at) {
                    assert!(matches!(drawn, Err(Error::NoCenter { .. })) && border == Border::Drop);
                    assert!(matches!(label, Err(Error::NoCenter { .. })));
                    continue;
                }
                let (region, start) = (drawn.unwrap(), at.start);
                assert_eq!(region, label.unwrap());
                assert!(region.contains(&at));
                assert!(border == Border::Pad || region.is_inside(shape));
                if border != Border::Shift {
                    let half = patch.map(|p| i64::try_from(p / 2).unwrap());
                    assert_eq!(region.start, [0, 1, 2].map(|a| start[a] - half[a]));
                }
            }
        }
    }
}

#[test]
fn weights_on_one_axis_come_up_in_proportion_and_never_where_they_are_zero() {
    let weights = [0.0, 0.0, 1.0, 1.0, 5.0, 2.0, 1.0, 1.0, 0.0];
    let rows: Vec<f64> = weights.iter().chain(&weights).copied().collect();
    let map = memory([2, 1, 9], rows);
    let sampler = weighted(&map, &options([1; 3])).unwrap();
    let mut counts = vec![0_u64; 18];
    for [z, _, x] in starts(&sampler, 300_000) {
        counts[usize::try_from(z * 9 + x).unwrap()] += 1;
    }
    let (mut drawn, mut expected) = (Vec::new(), Vec::new());
    for (i, count) in counts.into_iter().enumerate() {
        if weights[i % 9] > 0.0 {
            drawn.push(count);
            expected.push(weights[i % 9]);
        } else {
            assert_eq!(count, 0);
        }
    }
    let deviate = deviate_from(&drawn, &expected);
    assert!(deviate.abs() < 4.75, "{deviate}: {drawn:?}");
}

#[test]
fn weights_of_any_size_keep_their_shares() {
    for weights in [
        vec![1e-30, 1.0, 1e30, 0.0, 1.0],
        vec![f64::MIN_POSITIVE, 1e-310, 5e-324, 0.0, 1e-310],
        vec![1e300, 1e300, 1e-300, 0.0, 1e299],
        vec![1e-30, 1e-30, 3e-30, 0.0, 0.0],
    ] {
        let map = memory([1, 1, 5], weights.clone());
        let total: f64 = weights.iter().sum();
        for block in 1..=5 {
            let index: WeightIndex = index(&*map, [1, 1, block]);
            let map = Arc::clone(&map) as Arc<dyn Volume>;
            let sampler = Weighted::new(map, &index, &options([1; 3])).unwrap();
            for (x, weight) in (0..).zip(&weights) {
                // Weights that are lost next to 1e30 have less than a share of 1e-12.
                assert_near(sampler.probability([0, 0, x]), weight / total, &weights);
            }
            assert!(starts(&sampler, 2000).iter().all(|&[_, _, x]| x != 3));
        }
    }
    let map = memory([1, 1, 3], vec![f64::MAX; 3]);
    assert!(matches!(
        weighted(&map, &options([1; 3])),
        Err(Error::Unsupported { .. })
    ));
    let index: WeightIndex = index(&*map, [1; 3]);
    let sampler = Weighted::new(map as Arc<dyn Volume>, &index, &options([1; 3]));
    assert!(matches!(sampler, Err(Error::Unsupported { .. })));
}

#[test]
fn mass_only_in_blocks_cut_by_the_border_is_drawn_exactly() {
    // The legal centers are 2..8. Voxel 7 and the illegal voxel 8 are in different blocks of 8.
    let mut labels = vec![0_u8; 10];
    labels[..3].fill(1);
    labels[7..].fill(1);
    let map = memory([1, 1, 10], labels);
    let index: LabelIndex = index(&*map, [1, 1, 4]);
    let map = map as Arc<dyn Volume>;
    let options = options([1, 1, 5]);
    let sampler = Label::new(map, &index, &LabelWeights::foreground(), &options).unwrap();
    let mut found: Vec<_> = sampler.probabilities().into_iter().collect();
    found.sort_by_key(|&(center, _)| center);
    assert_eq!(found, [([0, 0, 2], 0.5), ([0, 0, 7], 0.5)]);
}

#[test]
fn the_reference_vectors_of_the_peers_hold() {
    // Labels along x, patch 5 there, shares {0: 0, 1: 50, 2: 25, 3: 25}.
    let map = memory([1, 1, 7], vec![0_u8, 0, 1, 1, 2, 1, 0]);
    let wanted = shares([(0, 0.0), (1, 50.0), (2, 25.0), (3, 25.0)]);
    let sampler = label(&map, &wanted, &options([1, 1, 5])).unwrap();
    let found = sampler.probabilities();
    let weights: Vec<f64> = (0..7)
        .map(|x| found.get(&[0, 0, x]).map_or(0.0, |share| share * 0.75))
        .collect();
    assert_eq!(weights, [0.0, 0.0, 0.25, 0.25, 0.25, 0.0, 0.0]);
    assert_eq!(sampler.absent(), [3.into()]);
    // One voxel of foreground in a 5 x 5 x 1 map, patch (2, 2, 1): half of the draws.
    let mut labels = vec![0_i32; 25];
    labels[12] = 1;
    let map = memory([5, 5, 1], labels);
    let sampler = label(&map, &shares([(0, 1.0), (1, 1.0)]), &options([2, 2, 1])).unwrap();
    assert_near(sampler.probabilities()[&[2, 2, 0]], 0.5, &"exact");
    let drawn = starts(&sampler, 4000);
    let hits = drawn.iter().filter(|&&start| start == [1, 1, 0]).count();
    assert!((1842..=2158).contains(&hits), "5 sigma: {hits}");
}

#[test]
fn shares_are_per_label_and_not_per_voxel() {
    let labels: Vec<u8> = (0..1000).map(|i| if i % 10 == 0 { 2 } else { 1 }).collect();
    let map = memory([10, 10, 10], labels);
    let sampler = label(&map, &shares([(1, 0.5), (2, 0.5)]), &options([1; 3])).unwrap();
    let rare: f64 = sampler
        .probabilities()
        .iter()
        .filter(|(c, _)| c[2] == 0)
        .map(|(_, p)| p)
        .sum();
    assert_near(rare, 0.5, &"90 % against 10 %");
}

#[test]
fn a_label_only_in_the_dropped_rim_is_absent_and_its_share_is_redistributed() {
    let mut labels = vec![1_i16; 9];
    (labels[0], labels[8], labels[4]) = (-1, -1, 2);
    let map = memory([1, 1, 9], labels);
    let wanted = shares([(-1, 2.0), (1, 1.0), (2, 1.0)]);
    let sampler = label(&map, &wanted, &options([1, 1, 3])).unwrap();
    assert_eq!(sampler.absent(), [LabelValue::from(-1)]);
    assert_near(sampler.probabilities()[&[0, 0, 4]], 0.5, &"renormalized");
    let shift = options([1, 1, 3]).with_border(Border::Shift);
    let sampler = label(&map, &wanted, &shift).unwrap();
    assert!(sampler.absent().is_empty());
    assert_near(sampler.probabilities()[&[0, 0, 0]], 0.25, &"the rim counts");
}

/// Checks that the label with this value is found in this map at voxel 1 of 3, and nowhere else.
fn finds<T: Element>(label_value: impl Into<LabelValue>, voxels: [T; 3])
where
    Vec<T>: Into<Voxels>,
{
    let map = memory([1, 1, 3], voxels.to_vec());
    let class = label_value.into();
    let wanted = LabelWeights::new([(class, 1.0)]).unwrap();
    let sampler = label(&map, &wanted, &options([1; 3])).unwrap();
    let found: Vec<_> = sampler.probabilities().into_iter().collect();
    assert_eq!(found, [([0, 0, 1], 1.0)], "{class} in {voxels:?}");
}

#[test]
fn labels_are_compared_as_they_are_stored() {
    finds(1_u32 << 24, [(1_i32 << 24) + 1, 1 << 24, (1 << 24) - 1]);
    finds((1_u32 << 24) + 1, [1_u32 << 24, (1 << 24) + 1, 0]);
    finds(u32::MAX, [0, u32::MAX, u32::MAX - 1]);
    finds(
        (1_u64 << 53) + 1,
        [1_u64 << 53, (1 << 53) + 1, (1 << 53) + 2],
    );
    finds(u64::MAX, [u64::MAX - 1, u64::MAX, 0]);
    finds(-1, [1_i16, -1, i16::MAX]);
    finds(-1, [1_i8, -1, 127]);
    finds(i64::MIN, [0, i64::MIN, i64::MAX]);
    finds(1, [0.0_f32, 1.0, 1.000_000_1]);
    finds(0, [1.0_f64, -0.0, 5e-324]);
    finds(
        LabelValue::real(0.1).unwrap(),
        [0.1_f32.into(), 0.1_f64, 0.0],
    );
    finds(
        2,
        [half::f16::ONE, half::f16::from_f32(2.0), half::f16::ZERO],
    );
    let mut layout = Layout::new([1, 1, 3], 1, DType::Bool);
    layout.read_chunk = None;
    let map = Arc::new(MemoryVolume::zeros(layout).unwrap());
    crate::volume::VolumeMut::write(&*map, Region::whole([1, 1, 3]), &[0, 1, 0]).unwrap();
    for wanted in [shares([(1, 1.0)]), LabelWeights::foreground()] {
        let sampler = label(&map, &wanted, &options([1; 3])).unwrap();
        assert_eq!(sampler.probabilities().len(), 1);
    }
}

#[test]
fn invalid_shares_are_refused_before_anything_is_read() {
    let new = |shares: &[f64]| {
        LabelWeights::new((0_i32..).map(LabelValue::from).zip(shares.iter().copied()))
    };
    for bad in [
        &[][..],
        &[0.0, 0.0],
        &[1.0, -0.5],
        &[f64::NAN],
        &[1.0, f64::INFINITY],
        &[f64::MAX, f64::MAX],
    ] {
        assert!(
            matches!(new(bad), Err(Error::InvalidArgument { .. })),
            "{bad:?}"
        );
    }
    let twice = LabelWeights::new([(1.into(), 1.0), (LabelValue::real(1.0).unwrap(), 1.0)]);
    assert!(twice.unwrap_err().to_string().contains("twice"));
    let order: Vec<_> = new(&[0.0, 2.0, 1.0]).unwrap().classes().collect();
    assert_eq!(order, [1.into(), 2.into()]);
}

#[test]
fn an_empty_map_is_an_error_or_skipped_or_drawn_from_uniformly() {
    let map = memory([4, 4, 4], vec![0_u8; 64]);
    let options = options([2; 3]);
    let built = || label(&map, &shares([(1, 1.0), (3, 1.0)]), &options);
    let text = built().unwrap_err().to_string();
    assert!(
        text.contains("memory") && text.contains("labels 1, 3") && text.contains("1..4"),
        "{text}"
    );
    let decide = |empty: OnEmpty| empty.apply(built(), [4; 3], &options);
    assert!(matches!(
        decide(OnEmpty::Error),
        Err(Error::NoCenter { .. })
    ));
    assert!(decide(OnEmpty::Skip).unwrap().is_none());
    let uniform = decide(OnEmpty::Uniform).unwrap().unwrap();
    let same = Uniform::new([4; 3], [2; 3], 7).unwrap();
    assert!(
        same.take(9)
            .eq(draws(&*uniform, 0, 0..9).map(Result::unwrap))
    );
    for empty in [OnEmpty::Skip, OnEmpty::Uniform] {
        let large = label(
            &map,
            &LabelWeights::foreground(),
            &SamplerOptions::new([5; 3], 0),
        );
        let error = empty.apply(large, [4; 3], &options).unwrap_err();
        assert!(matches!(error, Error::PatchSize { .. }), "not an empty map");
        let full = weighted(&memory([1; 3], vec![1_u8]), &SamplerOptions::new([1; 3], 0));
        assert!(empty.apply(full, [1; 3], &options).unwrap().is_some());
    }
}

#[test]
fn an_invalid_weight_is_found_in_the_last_chunk_and_reported_with_its_voxel() {
    let shape = [5, 6, 7];
    for (bad, text) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
        (-1e-30, "-0.0000000000000000000000000000010000000031710769"),
    ] {
        for chunk in [None, Some([1, 2, 3, 4]), Some([2, 5, 6, 7])] {
            let mut weights = vec![1.0; 420];
            weights[210 + (4 * 6 + 5) * 7 + 5] = bad;
            let mut map = MemoryVolume::from_vec(shape, 2, weights).unwrap();
            if let Some(chunk) = chunk {
                map = map.with_chunks(chunk);
            }
            for threads in [1, 3] {
                assert!(WeightIndex::build(&map, 0, threads, &silent).is_ok());
                let error = WeightIndex::build(&map, 1, threads, &silent).unwrap_err();
                let message = error.to_string();
                assert!(
                    message.contains(&format!("weight {text} at voxel [4, 5, 5]")),
                    "{message}"
                );
                assert!(matches!(
                    error,
                    Error::InvalidMapValue {
                        channel: 1,
                        voxel: [4, 5, 5],
                        ..
                    }
                ));
            }
        }
    }
}

#[test]
fn minus_zero_is_zero_and_labels_may_be_negative_but_not_nan() {
    let map = memory([1, 1, 3], vec![-0.0_f32, 2.0, -0.0]);
    let sampler = weighted(&map, &options([1; 3])).unwrap();
    assert!(starts(&sampler, 50).iter().all(|start| start[2] == 1));
    let error = LabelIndex::build(
        &*memory([1, 1, 3], vec![1.0, -3.5, f64::NAN]),
        0,
        1,
        &silent,
    );
    let text = error.unwrap_err().to_string();
    assert!(text.contains("label NaN at voxel [0, 0, 2]"), "{text}");
    let below = LabelIndex::build(&*memory([1, 1, 3], vec![-3_i32, -3, 0]), 0, 1, &silent).unwrap();
    assert_eq!(
        below.counts(),
        [(LabelValue::from(-3), 2), (LabelValue::ZERO, 1)].into()
    );
    let negative = WeightIndex::build(&*memory([1, 1, 2], vec![0_i8, -1]), 0, 1, &silent);
    assert!(matches!(
        negative,
        Err(Error::InvalidMapValue {
            voxel: [0, 0, 1],
            ..
        })
    ));
}

#[test]
fn weights_and_labels_are_real_values_and_labels_must_be_whole() {
    let real = |slope, intercept, voxels: [u8; 2]| {
        let mut layout = Layout::new([1, 1, 2], 1, DType::U8);
        layout.rescale = Rescale::new(slope, intercept);
        let map = Arc::new(MemoryVolume::zeros(layout).unwrap());
        crate::volume::VolumeMut::write(&*map, Region::whole([1, 1, 2]), &voxels).unwrap();
        let stored: Arc<dyn Volume> = map;
        (RealValues::of(Arc::clone(&stored)), stored)
    };
    let weights = |volume: &Arc<dyn Volume>| {
        let index = WeightIndex::build(&**volume, 0, 1, &silent)?;
        Weighted::new(Arc::clone(volume), &index, &options([1; 3]))
    };
    let counts = |volume: &Arc<dyn Volume>| {
        LabelIndex::build(&**volume, 0, 1, &silent).map(|index| index.counts())
    };
    let two = |a: i32, b: i32| Some([(LabelValue::from(a), 1), (LabelValue::from(b), 1)].into());
    let (map, stored) = real(0.5, -1.0, [4, 8]);
    let sampler = weights(&map).unwrap();
    assert_near(sampler.probability([0, 0, 0]), 0.25, &"1 : 3");
    let sampler = weights(&stored).unwrap();
    assert_near(sampler.probability([0, 0, 0]), 1.0 / 3.0, &"4 : 8");
    assert_eq!(counts(&map).ok(), two(1, 3));
    assert_eq!(counts(&stored).ok(), two(4, 8));
    let (map, _) = real(0.5, -1.0, [4, 1]);
    let error = weights(&map).unwrap_err();
    assert!(matches!(error, Error::InvalidMapValue { ref value, .. } if value == "-0.5"));
    let error = counts(&map).unwrap_err().to_string();
    for part in ["label -0.5", "[0, 0, 1]", "whole numbers"] {
        assert!(error.contains(part), "{error}");
    }
    let (map, _) = real(1.0, 300.0, [4, 1]);
    assert_eq!(counts(&map).ok(), two(301, 304));
    let (map, _) = real(f64::from(1 << 20), 1.0, [4, 16]);
    let error = counts(&map).unwrap_err().to_string();
    assert!(error.contains("below 2^24"), "{error}");
    // Values stored as floats may be any number.
    let plain = memory([1, 1, 2], vec![0.5_f32, 2.0]);
    let index = LabelIndex::build(&*plain, 0, 1, &silent).unwrap();
    assert_eq!(index.counts().len(), 2);
}

#[test]
fn the_channel_is_chosen_and_a_missing_one_is_an_error() {
    let map = memory([1, 1, 3], vec![1_u8, 0, 0, 0, 0, 2]);
    let map = Arc::new(Arc::into_inner(map).unwrap().with_chunks([2, 1, 1, 2]));
    for (channel, x) in [(0, 0), (1, 2)] {
        let index = WeightIndex::build(&*map, channel, 1, &silent).unwrap();
        let by_label = LabelIndex::build(&*map, channel, 1, &silent).unwrap();
        let volume = || Arc::clone(&map) as Arc<dyn Volume>;
        let sampler = Weighted::new(volume(), &index, &options([1; 3])).unwrap();
        assert_eq!(sampler.draw(0, 0).unwrap().start, [0, 0, x]);
        let all = LabelWeights::foreground();
        let sampler = Label::new(volume(), &by_label, &all, &options([1; 3])).unwrap();
        assert_eq!(sampler.draw(0, 0).unwrap().start, [0, 0, x]);
    }
    let missing = WeightIndex::build(&*map, 2, 1, &silent);
    assert!(matches!(
        missing,
        Err(Error::NoSuchChannel { channels: 2, .. })
    ));
}

#[test]
fn an_index_of_a_different_map_is_refused_and_a_changed_map_is_noticed() {
    let map = memory([1, 1, 4], vec![0_u8, 1, 1, 0]);
    let weights: WeightIndex = index(&*map, [1, 1, 4]);
    let labels: LabelIndex = index(&*map, [1, 1, 4]);
    let other = memory([1, 1, 5], vec![1_u8; 5]) as Arc<dyn Volume>;
    let refused = Weighted::new(other, &weights, &options([1; 3]));
    assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
    let volume = || Arc::clone(&map) as Arc<dyn Volume>;
    let by_weight = Weighted::new(volume(), &weights, &options([1; 3])).unwrap();
    let shares = LabelWeights::foreground();
    let by_label = Label::new(volume(), &labels, &shares, &options([1; 3])).unwrap();
    crate::volume::VolumeMut::write(&*map, Region::whole([1, 1, 4]), &[0; 4]).unwrap();
    for sampler in [&by_weight as &dyn Sampler, &by_label] {
        let text = sampler.draw(0, 0).unwrap_err().to_string();
        assert!(text.contains("has changed"), "{text}");
    }
}

#[test]
fn skipping_stepping_and_many_at_once_give_the_same_draws() {
    let labels: Vec<u8> = numbers(4)
        .take(20 * 21 * 22)
        .map(|n| (n % 4) as u8)
        .collect();
    let map = memory([20, 21, 22], labels);
    let map = Arc::new(Arc::into_inner(map).unwrap().with_chunks([1, 8, 8, 8]));
    let index: LabelIndex = index(&*map, [8; 3]);
    let sums: WeightIndex = self::index(&*map, [8; 3]);
    let tiny = options([4; 3]).with_memory(0);
    let volume = || Arc::clone(&map) as Arc<dyn Volume>;
    let wanted = shares([(1, 3.0), (2, 1.0)]);
    let by_label = Label::new(volume(), &index, &wanted, &tiny).unwrap();
    let by_weight = Weighted::new(volume(), &sums, &options([4; 3])).unwrap();
    let uniform = Uniform::new([20, 21, 22], [4; 3], 7).unwrap();
    for sampler in [&by_label as &dyn Sampler, &by_weight, &uniform] {
        let all: Vec<Region> = draws(sampler, 2, 0..60).map(Result::unwrap).collect();
        let tail: Vec<Region> = draws(sampler, 2, 0..60)
            .skip(17)
            .map(Result::unwrap)
            .collect();
        assert_eq!(tail, all[17..]);
        assert_eq!(draws(sampler, 2, 0..60).nth(59).unwrap().unwrap(), all[59]);
        for rank in 0..4 {
            let own = draws(sampler, 2, 0..60)
                .skip(rank)
                .step_by(4)
                .map(Result::unwrap);
            assert!(own.eq(all.iter().copied().skip(rank).step_by(4)));
        }
        let backwards: Vec<u64> = (0..60).rev().collect();
        let many = sampler.draw_many(2, &backwards).unwrap();
        assert!(many.iter().rev().eq(&all));
        let another: Vec<Region> = draws(sampler, 3, 0..60).map(Result::unwrap).collect();
        assert_ne!(another, all, "another epoch");
        assert_eq!(sampler.draw(2, u64::MAX).unwrap().shape, [4; 3]);
    }
}

#[test]
fn the_index_and_the_draws_do_not_depend_on_threads_or_chunks() {
    let labels: Vec<u16> = numbers(5)
        .take(9 * 10 * 11)
        .map(|n| (n % 3) as u16)
        .collect();
    let plain = memory([9, 10, 11], labels.clone());
    let chunked = memory([9, 10, 11], labels);
    let chunked = Arc::new(Arc::into_inner(chunked).unwrap().with_chunks([1, 4, 4, 4]));
    let blocks = Blocks {
        volume: [9, 10, 11],
        block: [4; 3],
    };
    let one = LabelIndex::of_blocks(&*plain, 0, blocks, 1, &silent).unwrap();
    for threads in [2, 5, 64] {
        let many = LabelIndex::of_blocks(&*chunked, 0, blocks, threads, &silent).unwrap();
        assert_eq!(many.tally, one.tally);
    }
    let wanted = shares([(1, 1.0), (2, 2.0)]);
    let chunks = LabelIndex::of_blocks(&*chunked, 0, blocks, 3, &silent).unwrap();
    let cached = Arc::new(Cached::new(
        Arc::clone(&chunked) as Arc<dyn Volume>,
        1 << 20,
    ));
    let a = Label::new(plain, &one, &wanted, &options([3; 3])).unwrap();
    let b = Label::new(cached, &chunks, &wanted, &options([3; 3]).with_threads(4)).unwrap();
    assert_eq!(starts(&a, 200), starts(&b, 200));
}

/// A volume that counts its reads.
#[derive(Debug)]
struct Counting(MemoryVolume, AtomicU64);

impl Volume for Counting {
    fn layout(&self) -> &Layout {
        Volume::layout(&self.0)
    }
    fn inner(&self) -> Option<&dyn Volume> {
        Some(&self.0)
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read_channels(channels, region, out)
    }
}

#[test]
fn the_index_reads_each_chunk_once_and_so_do_many_draws() {
    let labels: Vec<u8> = numbers(6)
        .take(40 * 40 * 80)
        .map(|n| (n % 3) as u8)
        .collect();
    let map = MemoryVolume::from_vec([40, 40, 80], 1, labels).unwrap();
    let map = Arc::new(Counting(
        map.with_chunks([1, 32, 32, 32]),
        AtomicU64::new(0),
    ));
    let reads = || map.1.swap(0, Ordering::Relaxed);
    let index = LabelIndex::build(&*map, 0, 2, &silent).unwrap();
    assert_eq!(reads(), 2 * 2 * 3);
    let wanted = shares([(0, 1.0), (1, 1.0), (2, 1.0)]);
    let none = options([1; 3]).with_memory(0);
    let sampler = Label::new(Arc::clone(&map) as Arc<dyn Volume>, &index, &wanted, &none).unwrap();
    assert_eq!(reads(), 0, "no block is cut");
    starts(&sampler, 3000);
    assert_eq!(reads(), 2 * 2 * 3);
    let cut = options([32, 32, 32]);
    Label::new(Arc::clone(&map) as Arc<dyn Volume>, &index, &wanted, &cut).unwrap();
    assert_eq!(
        reads(),
        3,
        "only blocks that the border cuts are read again"
    );
}

#[test]
fn the_draws_are_those_of_every_release() {
    let labels: Vec<u8> = (0..1000_u32).map(|i| (i * i % 7) as u8).collect();
    let map = memory([10, 10, 10], labels);
    let first = |sampler: &dyn Sampler| [0, 1, 2].map(|n| sampler.draw(1, n).unwrap().start);
    let by_weight = weighted(&map, &options([3; 3])).unwrap();
    assert_eq!(first(&by_weight), GOLDEN_WEIGHTED);
    let by_label = label(&map, &shares([(1, 1.0), (2, 2.0)]), &options([3; 3])).unwrap();
    assert_eq!(first(&by_label), GOLDEN_LABEL);
    let by_all = label(&map, &LabelWeights::foreground(), &options([3; 3])).unwrap();
    assert_eq!(first(&by_all), GOLDEN_FOREGROUND);
    let near = Neighborhood::new(2, 0.01).unwrap();
    let near = options([3; 3]).with_neighborhood(near);
    let uniform = Uniform::with_options([10, 10, 10], &near).unwrap();
    let by_label = label(&map, &shares([(1, 1.0), (2, 2.0)]), &near).unwrap();
    let soft: Vec<f32> = (0..2000_u16).map(|i| f32::from(i * 7 % 5)).collect();
    let soft = memory([10, 10, 10], soft);
    let indexes = [0, 1].map(|channel| WeightIndex::build(&*soft, channel, 1, &silent).unwrap());
    let wanted = [(1.0, &indexes[0]), (3.0, &indexes[1])];
    let soft: Arc<dyn Volume> = soft;
    let by_channel = Channels::new(&soft, &wanted, &options([3; 3])).unwrap();
    let inner = Uniform::with_options([10, 10, 10], &options([3; 3])).unwrap();
    let content = Criterion::Label(2.into());
    let enough = MinContent::new(Box::new(inner), map, 0, content, 0.2).unwrap();
    let all: [&dyn Sampler; 4] = [&uniform, &by_label, &by_channel, &enough];
    assert_eq!(all.map(first), GOLDEN_OTHERS);
}
const GOLDEN_OTHERS: [[[i64; 3]; 3]; 4] = [
    [[3, 6, 5], [4, 6, 5], [7, 1, 1]],
    [[3, 4, 3], [3, 4, 0], [7, 1, 6]],
    [[7, 0, 6], [5, 0, 1], [3, 4, 1]],
    [[0, 7, 7], [5, 5, 5], [1, 3, 2]],
];
const GOLDEN_WEIGHTED: [[i64; 3]; 3] = [[7, 0, 6], [5, 0, 2], [3, 4, 2]];
const GOLDEN_LABEL: [[i64; 3]; 3] = [[7, 0, 7], [5, 0, 1], [3, 3, 6]];
const GOLDEN_FOREGROUND: [[i64; 3]; 3] = [[7, 0, 6], [5, 0, 2], [3, 4, 2]];
