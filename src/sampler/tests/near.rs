//! Draws in neighborhoods: each with the same distribution as without, and together in few chunks.

use super::huge::{Constant, samplers};
use super::*;

/// Returns all samplers for a map of labels 0 to 3 in blocks of 4.
fn all_samplers(options: &SamplerOptions) -> [Box<dyn Sampler>; 4] {
    let labels = numbers(8)
        .take(12 * 10 * 14)
        .map(|n| (n % 4) as u8)
        .collect::<Vec<u8>>();
    let map = memory([12, 10, 14], labels);
    let counts: LabelIndex = index(&*map, [4; 3]);
    let sums: WeightIndex = index(&*map, [4; 3]);
    let volume = || Arc::clone(&map) as Arc<dyn Volume>;
    let wanted = shares([(1, 3.0), (2, 1.0)]);
    let foreground = LabelWeights::foreground();
    [
        Box::new(Uniform::with_options([12, 10, 14], options).unwrap()),
        Box::new(Weighted::new(volume(), &sums, options).unwrap()),
        Box::new(Label::new(volume(), &counts, &wanted, options).unwrap()),
        Box::new(Label::new(volume(), &counts, &foreground, options).unwrap()),
    ]
}

/// Returns the expected share of draws of each place, computed directly from the map.
fn expected(sampler: usize, patch: Shape) -> HashMap<[u64; 3], f64> {
    let labels: Vec<u8> = numbers(8)
        .take(12 * 10 * 14)
        .map(|n| (n % 4) as u8)
        .collect();
    let placement = CenterBox::new([12, 10, 14], patch, Border::Drop).unwrap();
    let mut all = reference(&placement, |i| {
        let label = f64::from(labels[i]);
        match sampler {
            0 => 1.0,
            1 => label,
            2 => f64::from(u8::from(labels[i] == 1 || labels[i] == 2)),
            _ => f64::from(u8::from(label > 0.0)),
        }
    });
    if sampler == 2 {
        let [_, y, x] = placement.volume();
        let label = |c: &[u64; 3]| labels[usize::try_from((c[0] * y + c[1]) * x + c[2]).unwrap()];
        let count = |wanted| all.keys().filter(|c| label(c) == wanted).count();
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let shares = [3.0 / count(1) as f64, 1.0 / count(2) as f64];
        for (center, share) in &mut all {
            *share = shares[usize::from(label(center)) - 1];
        }
    }
    all
}

#[test]
fn every_draw_of_a_group_has_the_distribution_that_it_has_alone() {
    let patch = [3, 4, 2];
    let near = Neighborhood::new(6, 0.02).unwrap();
    let samplers = all_samplers(&options(patch).with_neighborhood(near));
    for (i, sampler) in samplers.iter().enumerate() {
        let expected = expected(i, patch);
        // One draw of each group: these draws are independent.
        for draw in [0, 1, 5] {
            let ns: Vec<u64> = (0..30_000).map(|group| group * 6 + draw).collect();
            let mut counts: HashMap<[u64; 3], u64> = HashMap::new();
            for region in sampler.draw_many(0, &ns).unwrap() {
                let half = patch.map(|p| p / 2);
                let center = [0, 1, 2].map(|a| region.start[a].unsigned_abs() + half[a]);
                *counts.entry(center).or_default() += 1;
            }
            assert!(counts.keys().all(|center| expected.contains_key(center)));
            let mut places: Vec<_> = expected.iter().collect();
            places.sort_unstable_by_key(|(center, _)| **center);
            let drawn: Vec<u64> = places
                .iter()
                .map(|(center, _)| counts.get(*center).copied().unwrap_or(0))
                .collect();
            let shares: Vec<f64> = places.iter().map(|(_, share)| **share).collect();
            let deviate = deviate_from(&drawn, &shares);
            assert!(deviate.abs() < 4.75, "sampler {i}, draw {draw}: {deviate}");
        }
    }
}

#[test]
fn draws_of_a_group_are_the_same_alone_and_together_in_any_order() {
    let near = Neighborhood::new(6, 0.05).unwrap();
    let samplers = all_samplers(&options([3; 3]).with_neighborhood(near).with_memory(0));
    for sampler in &samplers {
        let all: Vec<Region> = draws(&**sampler, 2, 0..60).map(Result::unwrap).collect();
        let backwards: Vec<u64> = (0..60).rev().collect();
        let many = sampler.draw_many(2, &backwards).unwrap();
        assert!(many.iter().rev().eq(&all));
        for size in [1, 5, 7, 60] {
            let ns: Vec<u64> = (0..60).collect();
            let parts = ns.chunks(size).map(|ns| sampler.draw_many(2, ns).unwrap());
            assert!(parts.flatten().eq(all.iter().copied()), "{size} at once");
        }
        let another: Vec<Region> = draws(&**sampler, 3, 0..60).map(Result::unwrap).collect();
        assert_ne!(another, all, "another epoch");
    }
}

#[test]
fn a_window_touches_several_times_fewer_chunks() {
    let (shape, patch) = ([2048; 3], [96; 3]);
    let map = Constant::of(shape, [64; 3], 1_u8);
    let near = Neighborhood::new(16, 1e-5).unwrap();
    let touched = |sampler: &dyn Sampler| {
        let ns: Vec<u64> = (0..256).collect();
        let regions = sampler.draw_many(0, &ns).unwrap();
        let chunks = regions
            .iter()
            .flat_map(|region| crate::volume::intersecting([1, 64, 64, 64], &(0..1), *region));
        chunks.collect::<BTreeSet<_>>().len()
    };
    let all = |options: SamplerOptions| {
        let [weighted, label] = samplers(&map, &LabelWeights::foreground(), &options);
        let uniform = Uniform::with_options(shape, &options).unwrap();
        [touched(&uniform), touched(&*weighted), touched(&*label)]
    };
    let plain = all(options(patch));
    let near = all(options(patch).with_neighborhood(near));
    for (plain, near) in plain.into_iter().zip(near) {
        assert!(near * 4 < plain, "{near} instead of {plain}");
    }
}

#[test]
fn channels_that_are_not_wanted_are_not_read() {
    let map = MemoryVolume::from_vec([40, 40, 40], 3, vec![1_u8; 3 * 64_000]).unwrap();
    let map = Arc::new(Counting(
        map.with_chunks([1, 32, 32, 32]),
        AtomicU64::new(0),
    ));
    let index = WeightIndex::build(&*map, 1, 2, &silent).unwrap();
    assert_eq!(map.1.swap(0, Ordering::Relaxed), 8, "chunks of one channel");
    let none = options([1; 3]).with_memory(0);
    let sampler = Weighted::new(Arc::clone(&map) as Arc<dyn Volume>, &index, &none).unwrap();
    starts(&sampler, 2000);
    assert_eq!(map.1.load(Ordering::Relaxed), 8);
}
