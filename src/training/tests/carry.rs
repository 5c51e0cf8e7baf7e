//! What an epoch leaves to the next one.

use super::*;

/// Two subjects whose chunks are all of `Noted` volumes.
fn volumes() -> [Arc<Noted>; 2] {
    [Noted::chunked(1), Noted::chunked(2)]
}

fn dataset(volumes: &[Arc<Noted>; 2]) -> Dataset {
    let subjects = vec![
        subject("one", &[&volumes[0]]),
        subject("two", &[&volumes[1]]),
    ];
    Dataset::new(subjects, UniformPatches::new(PATCH))
        .samples_per_subject(60)
        .seed(5)
}

fn decoded(volumes: &[Arc<Noted>; 2]) -> usize {
    let each = volumes.iter();
    each.map(|volume| std::mem::take(&mut *volume.chunks.lock().unwrap()).len())
        .sum()
}

/// Takes the patches of an epoch, as their places and voxels.
fn patches(dataset: &Dataset, epoch: u64, memory: u64, most: usize) -> Vec<(Region, Vec<u8>)> {
    let loader = dataset.epoch(epoch).threads(2).memory(memory);
    let samples = loader.samples().unwrap().take(most);
    samples
        .map(|sample| {
            let sample = sample.unwrap();
            let patch = &sample.patches()[0];
            (patch.region(), patch.bytes().to_vec())
        })
        .collect()
}

#[test]
fn chunks_that_one_epoch_holds_are_not_decoded_again_in_the_next() {
    let all: u64 = 2 * 5 * 5 * 6;
    let chunk = 512 * 4;
    for (share, percent) in [(100, 40), (50, 90), (25, 98)] {
        let volumes = volumes();
        let dataset = dataset(&volumes);
        let memory = 2 * chunk * all * share / 100 + (1 << 20);
        let mut decodes = Vec::new();
        for epoch in 0..4 {
            let alone = patches(&self::dataset(&volumes), epoch, memory, usize::MAX);
            let fresh = decoded(&volumes);
            assert_eq!(patches(&dataset, epoch, memory, usize::MAX), alone);
            decodes.push((fresh, decoded(&volumes)));
        }
        println!("{share} %: {decodes:?}");
        let fresh: usize = decodes[1..].iter().map(|(fresh, _)| fresh).sum();
        let again: usize = decodes[1..].iter().map(|(_, again)| again).sum();
        assert!(100 * again <= percent * fresh, "{share} %: {decodes:?}");
        if share == 100 {
            let decodes: usize = decodes.iter().map(|(_, again)| again).sum();
            assert!(decodes as u64 <= all, "each chunk once: {decodes}");
        }
    }
}

#[test]
fn an_epoch_that_is_left_early_leaves_what_it_holds_and_smaller_budgets_hold() {
    let volumes = volumes();
    let dataset = dataset(&volumes);
    patches(&dataset, 0, 64 << 20, 40);
    let first = decoded(&volumes);
    let expected = patches(&self::dataset(&volumes), 1, 64 << 20, usize::MAX);
    let fresh = decoded(&volumes);
    assert_eq!(patches(&dataset, 1, 64 << 20, usize::MAX), expected);
    let then = decoded(&volumes);
    assert!(then < fresh && first > 0, "{first} {fresh} {then}");
    // With less memory, the chunks that no longer fit are dropped.
    assert_eq!(patches(&dataset, 1, 100_000, usize::MAX), expected);
    assert_eq!(patches(&dataset, 1, 1, 3), expected[..3]);
}

#[test]
fn other_settings_and_clones_do_not_mix() {
    let volumes = volumes();
    let dataset = dataset(&volumes);
    patches(&dataset, 0, 64 << 20, usize::MAX);
    decoded(&volumes);
    let other = dataset.clone().seed(6);
    let fresh = self::dataset(&volumes).seed(6);
    assert_eq!(
        patches(&other, 0, 64 << 20, usize::MAX),
        patches(&fresh, 0, 64 << 20, usize::MAX)
    );
    decoded(&volumes);
    patches(&dataset.clone(), 0, 64 << 20, usize::MAX);
    assert_eq!(
        decoded(&volumes),
        0,
        "a clone with the same settings shares them"
    );
}

#[test]
fn subjects_that_are_made_anew_have_their_own_voxels() {
    struct Made(AtomicUsize);
    impl Subjects for Made {
        fn len(&self) -> u64 {
            1
        }
        fn open(&self, _: u64) -> Result<Subject> {
            let salt = u32::try_from(self.0.fetch_add(1, Ordering::Relaxed)).unwrap();
            Ok(subject("one", &[&Noted::chunked(salt)]))
        }
    }
    let made = Dataset::new(Made(AtomicUsize::new(0)), UniformPatches::new(PATCH));
    let made = made.samples_per_subject(30);
    for salt in 0..4 {
        let fresh = vec![subject("one", &[&Noted::chunked(salt)])];
        let fresh = Dataset::new(fresh, UniformPatches::new(PATCH)).samples_per_subject(30);
        let expected = patches(&fresh, 0, 64 << 20, usize::MAX);
        assert_eq!(patches(&made, 0, 64 << 20, usize::MAX), expected, "{salt}");
    }
}
