//! The cases that other pipelines get wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::geometry::Geometry;
use crate::progress::silent;
use crate::sampler::{
    Border, Label, LabelIndex, LabelValue, LabelWeights, Neighborhood, OnEmpty, SamplerOptions,
};
use crate::volume::{Codec, CreateOptions, create, open};

fn memory(shape: Shape, label: impl Fn(u64) -> u8) -> MemoryVolume {
    let voxels = (0..Region::whole(shape).voxels()).map(label);
    MemoryVolume::from_vec(shape, 1, voxels.collect::<Vec<u8>>()).unwrap()
}

pub(super) fn of_volumes(name: &str, volumes: Vec<(&str, Arc<dyn Volume>)>) -> Subject {
    let images = volumes
        .into_iter()
        .map(|(name, volume)| Image::new(name, volume));
    Subject::builder(name).with_images(images).build().unwrap()
}

pub(super) fn uniform_of(patch: Shape, border: Border) -> Arc<dyn SamplerFactory> {
    Arc::new(move |subject: &Subject, seed| {
        let uniform = Uniform::with_border(subject.shape(), patch, border, seed)?;
        Ok(uniform)
    })
}

/// An error with all its causes, as a user reads it.
fn whole(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Patches around voxels of one label; what is done without any is the policy's.
pub(super) fn by_label(label: i32, empty: OnEmpty) -> Arc<dyn SamplerFactory> {
    Arc::new(move |subject: &Subject, seed| {
        let map = &subject.image("label").unwrap().volume;
        let options = SamplerOptions::new([4; 3], seed).with_threads(1);
        let shares = LabelWeights::new([(LabelValue::from(label), 1.0)])?;
        let index = LabelIndex::build(&**map, 0, 1, &silent)?;
        let built = Label::new(Arc::clone(map), &index, &shares, &options);
        empty.apply(built, subject.shape(), &options)
    })
}

#[test]
fn a_label_that_one_subject_lacks_is_an_error_a_gap_or_anywhere() {
    let subjects = || -> Vec<Subject> {
        let subject = |name, has: bool| {
            let ct = memory([12, 10, 14], |n| u8::try_from(n % 251).unwrap());
            let label = memory([12, 10, 14], move |n| u8::from(has && n % 7 == 0));
            of_volumes(name, vec![("ct", Arc::new(ct)), ("label", Arc::new(label))])
        };
        vec![
            subject("a", true),
            subject("bare", false),
            subject("c", true),
        ]
    };
    let plan = EpochPlan::new(3, 10, 1).unwrap().with_window(7);
    let load = |empty, on_error| {
        let options = LoaderOptions {
            on_error,
            ..options(2)
        };
        let subjects = Arc::new(subjects());
        Loader::new(subjects, by_label(1, empty), &plan, 0, &options).unwrap()
    };
    let outcomes: Vec<_> = load(OnEmpty::Error, OnError::Fail).collect();
    assert_eq!(outcomes.len(), 30);
    let failed: Vec<_> = outcomes.iter().filter_map(|s| s.as_ref().err()).collect();
    assert_eq!(failed.len(), 10);
    for error in failed {
        let text = whole(error);
        for part in ["subject 1 (bare)", "memory", "label 1 does not occur"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    for (empty, on_error) in [
        (OnEmpty::Error, OnError::Skip),
        (OnEmpty::Skip, OnError::Fail),
    ] {
        let mut loader = load(empty, on_error);
        let samples: Vec<_> = (&mut loader).map(Result::unwrap).collect();
        assert!(samples.len() == 20 && samples.iter().all(|s| s.subject_index != 1));
        let stats = loader.stats();
        assert_eq!((stats.delivered, stats.left_out), (20, 10));
        assert_eq!(stats.reasons.len(), 1, "{stats:?}");
        assert!(stats.reasons[0].contains("subject 1 (bare)"), "{stats:?}");
    }
    let samples: Vec<_> = load(OnEmpty::Uniform, OnError::Fail)
        .map(Result::unwrap)
        .collect();
    assert_eq!(samples.len(), 30);
    for sample in samples {
        let center = sample.patches()[1].view::<u8>().unwrap()[[0, 2, 2, 2]];
        assert_eq!(center, u8::from(sample.subject_index != 1));
    }
}

#[test]
fn a_map_need_not_be_chunked_as_its_image() {
    let shape = [20, 22, 24];
    let label = |n: u64| u8::try_from(n.wrapping_mul(0x9e37_79b9) >> 7 & 3).unwrap();
    let ct: Arc<dyn Volume> = Arc::new(memory(shape, |n| 100 + label(n)).with_chunks([1, 8, 8, 8]));
    for chunk in [[1, 5, 6, 7], [1, 20, 1, 24], [1, 1, 22, 3]] {
        let map = memory(shape, label).with_chunks(chunk);
        let images: Vec<(&str, Arc<dyn Volume>)> =
            vec![("ct", Arc::clone(&ct)), ("label", Arc::new(map))];
        let subjects = Arc::new(vec![of_volumes("s", images)]);
        let plan = EpochPlan::new(1, 40, 1).unwrap();
        let make = by_label(2, OnEmpty::Error);
        for sample in Loader::new(subjects, make, &plan, 0, &options(2)).unwrap() {
            let sample = sample.unwrap();
            let [ct, label] = [0, 1].map(|i| sample.patches()[i].view::<u8>().unwrap());
            assert_eq!(label[[0, 2, 2, 2]], 2);
            assert!(ct.iter().zip(&label).all(|(ct, label)| *ct == 100 + label));
        }
    }
}

#[test]
fn every_small_epoch_has_the_planned_counts_within_its_buffer() {
    let volume: Arc<dyn Volume> = Arc::new(memory([3, 3, 3], |n| u8::try_from(n).unwrap()));
    let make = uniform_of([2, 1, 2], Border::Drop);
    for subjects in 1..=5_u64 {
        let all: Vec<Subject> = (0..subjects)
            .map(|_| of_volumes("s", vec![("ct", Arc::clone(&volume))]))
            .collect();
        let all: Arc<dyn Subjects> = Arc::new(all);
        for samples in 1..=20 {
            for max_length in 1..=25_usize {
                let even = EpochPlan::new(subjects, samples, 1).unwrap();
                // Unequal numbers, 0 among them, every now and then.
                let uneven: Vec<u64> = (0..subjects).map(|n| (n * 5 + samples) % 8).collect();
                let (plan, counts) = if (samples + max_length as u64).is_multiple_of(5) {
                    (EpochPlan::with_counts(&uneven, 1).unwrap(), uneven)
                } else {
                    (even, vec![samples; usize::try_from(subjects).unwrap()])
                };
                let plan = plan.with_window(max_length as u64);
                let options = LoaderOptions {
                    max_length,
                    ..options(0)
                };
                let mut loader =
                    Loader::new(Arc::clone(&all), Arc::clone(&make), &plan, 0, &options).unwrap();
                let mut found = vec![0; counts.len()];
                while let Some(sample) = loader.next() {
                    found[usize::try_from(sample.unwrap().subject_index).unwrap()] += 1;
                    let (ready, unready) = loader.stats().fill;
                    assert!(ready + unready <= max_length);
                }
                assert_eq!(found, counts, "{subjects} {samples} {max_length}");
            }
        }
    }
}

#[test]
fn an_epoch_that_is_broken_off_does_not_change_the_next() {
    let plan = EpochPlan::new(3, 4, 9).unwrap().with_window(5);
    let of_epoch = |epoch| {
        let subjects = Arc::new(three(Manner::Plain));
        Loader::new(subjects, uniform(), &plan, epoch, &options(2)).unwrap()
    };
    let expected = all(of_epoch(4));
    for k in 0..=12 {
        assert_eq!(all(of_epoch(3).take(k)).len(), k);
        assert_eq!(all(of_epoch(4)), expected, "after {k}");
    }
}

#[test]
fn resuming_reads_no_chunk_that_only_the_head_wants() {
    let plan = EpochPlan::new(1, 14, 6).unwrap().with_window(6);
    let ct = Noted::chunked(1);
    let expected = all(loader(vec![subject("a", &[&ct])], &plan, &options(0)));
    for k in 0..expected.len() {
        let ct = Noted::chunked(1);
        let subjects = Arc::new(vec![subject("a", &[&ct])]);
        let state = LoaderState {
            epoch: 3,
            position: k as u64,
            plan: plan.fingerprint(),
            subjects: subjects.fingerprint(),
        };
        let options = LoaderOptions {
            max_length: 14,
            ..options(k % 3)
        };
        let rest = Loader::resume(subjects, uniform(), &plan, state, &options).unwrap();
        assert_eq!(all(rest), expected[k..]);
        let wanted: BTreeSet<_> = expected[k..]
            .iter()
            .flat_map(|told| intersecting([1, 8, 8, 8], &(0..1), told.2))
            .collect();
        let mut read = ct.chunks.lock().unwrap().clone();
        read.sort_unstable();
        if k % 3 == 2 {
            // One of two threads may be done with a chunk before the other has found that
            // patches of the next window want it too.
            read.dedup();
        }
        assert!(read.into_iter().eq(wanted), "each once, and no other");
    }
}

#[test]
fn one_subject_keeps_eight_ranks_busy() {
    let plan = EpochPlan::new(1, 8 * 3 * 4, 6).unwrap();
    let mut places = Vec::new();
    for rank in 0..8 {
        let shard = RankShard::of(rank, 8, 3);
        let options = LoaderOptions {
            shard,
            ..options(1)
        };
        let mut own = loader(vec![subject("a", &[&Noted::chunked(1)])], &plan, &options);
        for _ in 0..4 {
            let batch = own.next_batch().unwrap().unwrap();
            assert_eq!(batch.len(), 3);
            places.extend(batch.iter().map(|sample| sample.place));
        }
        assert!(own.next_batch().is_none());
    }
    places.sort_unstable();
    assert!(places.into_iter().eq(0..96));
}

/// Mean number of different numbers in batches of 16, and how often one follows itself.
#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn mixing(sequence: &[u64]) -> (f64, f64) {
    let batches = sequence.chunks_exact(16);
    let number = batches.len() as f64;
    let distinct = batches.map(|batch| batch.iter().collect::<BTreeSet<_>>().len());
    let repeats = sequence
        .windows(2)
        .filter(|pair| pair[0] == pair[1])
        .count();
    (
        distinct.sum::<usize>() as f64 / number,
        repeats as f64 / (sequence.len() - 1) as f64,
    )
}

#[test]
fn batches_are_nearly_as_mixed_as_those_of_an_ideal_shuffle() {
    // 60 subjects of 10 patches: a window of 300 holds 30 of them. Of 16 patches, an ideal shuffle
    // of everything has 14.2 subjects, one of a window 12.8; the same subject twice in a row
    // has 1.5 % against 3 %.
    let plan = EpochPlan::new(60, 10, 4).unwrap().with_window(300);
    let sequence: Vec<u64> = (0..40)
        .flat_map(|n| {
            let epoch = plan.epoch(n);
            (0..2).flat_map(move |window| epoch.window(window))
        })
        .map(|planned| planned.subject)
        .collect();
    let (distinct, repeats) = mixing(&sequence);
    assert!((12.5..13.1).contains(&distinct), "{distinct}");
    assert!((0.026..0.034).contains(&repeats), "{repeats}");
    // One subject with draws in neighborhoods of 8: a window holds 37 of these.
    let plan = EpochPlan::new(1, 6000, 4).unwrap().with_window(300);
    let epoch = plan.epoch(0);
    let groups: Vec<u64> = (0..20)
        .flat_map(|window| epoch.window(window))
        .map(|planned| planned.draw / 8)
        .collect();
    let (distinct, repeats) = mixing(&groups);
    assert!((12.9..14.1).contains(&distinct), "{distinct}");
    assert!(repeats < 0.033, "{repeats}");
}

#[test]
fn neighborhoods_let_a_window_s_patches_share_chunks() {
    let shape = [160; 3];
    let volume =
        Arc::new(memory(shape, |n| u8::try_from(n % 251).unwrap()).with_chunks([1, 16, 16, 16]));
    let run = |near: Option<Neighborhood>| {
        let volume = Arc::clone(&volume) as Arc<dyn Volume>;
        let subjects = Arc::new(vec![of_volumes("s", vec![("ct", volume)])]);
        let make: Arc<dyn SamplerFactory> = Arc::new(move |subject: &Subject, seed| {
            let mut options = SamplerOptions::new([16; 3], seed);
            options.neighborhood = near;
            let uniform = Uniform::with_options(subject.shape(), &options)?;
            Ok(uniform)
        });
        let plan = EpochPlan::new(1, 192, 1).unwrap().with_window(64);
        let options = LoaderOptions {
            max_length: 64,
            ..options(0)
        };
        let mut loader = Loader::new(subjects, make, &plan, 0, &options).unwrap();
        for sample in &mut loader {
            let sample = sample.unwrap();
            assert_eq!(
                sample.patches()[0],
                volume_patch(&volume_of(&sample), &sample)
            );
        }
        loader.stats()
    };
    let (plain, near) = (run(None), run(Some(Neighborhood::new(16, 1e-4).unwrap())));
    assert!(
        near.chunks * 4 < plain.chunks,
        "{} {}",
        near.chunks,
        plain.chunks
    );
}

fn volume_of(sample: &Sample) -> Arc<dyn Volume> {
    Arc::clone(&sample.subject().images()[0].volume)
}

fn volume_patch(volume: &Arc<dyn Volume>, sample: &Sample) -> Patch {
    volume.read(sample.region).unwrap()
}

#[test]
fn the_buffer_is_filled_again_after_every_patch_and_not_in_bursts() {
    let plan = EpochPlan::new(3, 20, 1).unwrap().with_window(10);
    let mut loader = loader(three(Manner::Slow), &plan, &options(2));
    let began = std::time::Instant::now();
    for left in (0..60).rev() {
        // A consumer slower than the readers: what it wants next is always there already.
        let full = (left + 1).min(8);
        while loader.stats().fill != (full, 0) {
            assert!(
                began.elapsed() < Duration::from_mins(1),
                "it stays at {:?}",
                loader.stats().fill
            );
            thread::sleep(Duration::from_micros(200));
        }
        loader.next().unwrap().unwrap();
    }
    assert!(loader.next().is_none());
}

#[test]
fn lists_of_no_subject_one_or_the_same_twice_are_lists() {
    let none: Arc<dyn Subjects> = Arc::new(Vec::new());
    let plan = EpochPlan::new(0, 9, 1).unwrap();
    let mut nothing = Loader::new(none, uniform(), &plan, 0, &options(2)).unwrap();
    assert!(nothing.next().is_none() && nothing.remaining() == 0);
    let ct = Noted::chunked(1);
    let twice = vec![subject("a", &[&ct]), subject("a", &[&ct])];
    let told = all(loader(
        twice,
        &EpochPlan::new(2, 6, 1).unwrap(),
        &options(2),
    ));
    let of = |subject| -> BTreeSet<_> {
        let own = told.iter().filter(|told| told.1 == subject);
        own.map(|told| told.2.start).collect()
    };
    assert!(told.len() == 12 && of(0).len() == 6 && of(1).len() == 6);
    assert!(of(0).is_disjoint(&of(1)), "each has draws of its own");
}

#[test]
fn a_patch_larger_than_a_subject_is_an_error_that_names_it_or_is_padded() {
    let subjects = || -> Arc<dyn Subjects> {
        let of = |name, shape| of_volumes(name, vec![("ct", Arc::new(memory(shape, |_| 7)) as _)]);
        Arc::new(vec![of("small", [9, 5, 9]), of("large", [9, 9, 9])])
    };
    let plan = EpochPlan::new(2, 5, 1).unwrap();
    let make = uniform_of([4, 6, 9], Border::Drop);
    let outcomes: Vec<_> = Loader::new(subjects(), make, &plan, 0, &options(1))
        .unwrap()
        .collect();
    let failed: Vec<_> = outcomes.iter().filter_map(|s| s.as_ref().err()).collect();
    assert_eq!((outcomes.len(), failed.len()), (10, 5));
    for error in failed {
        let text = whole(error);
        for part in ["subject 0 (small)", "6", "5", "y"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let make = uniform_of([4, 6, 20], Border::Pad);
    for sample in Loader::new(subjects(), make, &plan, 0, &options(1)).unwrap() {
        let sample = sample.unwrap();
        let patch = &sample.patches()[0];
        assert_eq!((patch.shape(), patch.region()), ([4, 6, 20], sample.region));
        let inside = Region::whole(sample.subject().shape());
        let inside = sample
            .region
            .intersection(&inside)
            .map_or(0, |r| r.voxels());
        let sevens = patch
            .bytes()
            .iter()
            .map(|&voxel| usize::from(voxel == 7))
            .sum::<usize>();
        assert_eq!(sevens as u64, inside, "zeros beyond the faces");
    }
}

#[test]
fn images_of_other_types_chunks_and_byte_orders_are_aligned_voxel_by_voxel() {
    let shape = [9, 11, 13];
    let count = 9 * 11 * 13_u32;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.npy");
    let header = "{'descr': '>i4', 'fortran_order': False, 'shape': (9, 11, 13), }";
    let mut file = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    file.extend(format!("{header:<117}\n").bytes());
    file.extend((0..count).flat_map(|n| i32::try_from(n).unwrap().to_be_bytes()));
    fs::write(&path, file).unwrap();
    let floats = MemoryVolume::from_vec(shape, 1, (0..count).map(f64::from).collect::<Vec<_>>());
    let shorts: Vec<u16> = (0..count).map(|n| u16::try_from(n).unwrap()).collect();
    let shorts = MemoryVolume::from_vec(shape, 1, shorts).unwrap();
    let images: Vec<(&str, Arc<dyn Volume>)> = vec![
        ("f64", Arc::new(floats.unwrap().with_chunks([1, 4, 5, 3]))),
        ("big", open(&path).unwrap()),
        ("u16", Arc::new(shorts.with_chunks([1, 9, 1, 13]))),
    ];
    let subject = of_volumes("coordinates", images);
    let plan = EpochPlan::new(1, 60, 1).unwrap();
    let make = uniform_of([4, 3, 5], Border::Drop);
    for sample in Loader::new(Arc::new(vec![subject]), make, &plan, 0, &options(2)).unwrap() {
        let sample = sample.unwrap();
        let [z, y, x] = sample.region.start.map(|n| usize::try_from(n).unwrap());
        let floats = sample.patches()[0].view::<f64>().unwrap();
        let big = sample.patches()[1].view::<i32>().unwrap();
        let shorts = sample.patches()[2].view::<u16>().unwrap();
        for ((c, dz, dy, dx), &value) in shorts.indexed_iter() {
            let expected = ((z + dz) * 11 + y + dy) * 13 + x + dx;
            assert_eq!(usize::from(value), expected);
            let at = [c, dz, dy, dx];
            assert_eq!(big[at], i32::from(value));
            assert!((floats[at] - f64::from(value)).abs() < 0.5);
        }
    }
}

#[test]
fn images_off_by_a_voxel_a_spacing_or_a_direction_are_refused() {
    let image = |name: &str, shape, geometry: Geometry| {
        let layout = Layout::new(shape, 1, DType::U8).with_geometry(geometry);
        Image::new(name, Arc::new(MemoryVolume::zeros(layout).unwrap()))
    };
    let spacing = |x| Geometry::from_spacing([2.5, 0.7, x]);
    let with = |shape, geometry, tolerance| {
        let images = vec![
            image("ct", [9, 8, 7], spacing(0.7)),
            image("label", shape, geometry),
        ];
        Subject::builder("s")
            .with_images(images)
            .with_tolerance(tolerance)
            .build()
    };
    for a in 0..3 {
        for other in [-1, 1] {
            let mut shape = [9_u64, 8, 7];
            shape[a] = shape[a].checked_add_signed(other).unwrap();
            let refused = with(shape, spacing(0.7), TOLERANCE).unwrap_err();
            let expected = if other < 0 { "extent" } else { "shape" };
            assert!(matches!(refused, Error::GridMismatch { what, .. } if what == expected));
        }
        let mut flipped = spacing(0.7);
        flipped.affine[a][a] *= -1.0;
        let refused = with([9, 8, 7], flipped, TOLERANCE).unwrap_err();
        assert!(matches!(
            refused,
            Error::GridMismatch {
                what: "position",
                ..
            }
        ));
    }
    for (off, tolerance, fits) in [
        (1e-7, 1e-6, true),
        (1e-5, 1e-6, false),
        (1e-5, TOLERANCE, true),
        (1e-2, TOLERANCE, true),
        (3e-2, TOLERANCE, false),
    ] {
        let found = with([9, 8, 7], spacing(0.7 * (1.0 + off)), tolerance);
        assert_eq!(found.is_ok(), fits, "{off} {tolerance}");
    }
}

#[test]
fn flat_volumes_and_flat_patches_are_volumes_and_patches() {
    for (shape, patch) in [
        ([1, 30, 40], [1, 8, 9]),
        ([30, 1, 40], [5, 1, 40]),
        ([30, 20, 1], [30, 1, 1]),
        ([12, 11, 10], [1, 4, 1]),
    ] {
        let volume: Arc<dyn Volume> =
            Arc::new(memory(shape, |n| u8::try_from(n % 253).unwrap()).with_chunks([1, 7, 7, 7]));
        let subject = of_volumes("flat", vec![("ct", Arc::clone(&volume))]);
        let plan = EpochPlan::new(1, 40, 1).unwrap();
        let make = uniform_of(patch, Border::Drop);
        let loader = Loader::new(Arc::new(vec![subject]), make, &plan, 0, &options(2)).unwrap();
        let mut seen = 0;
        for sample in loader {
            let sample = sample.unwrap();
            assert_eq!(sample.patches()[0], volume.read(sample.region).unwrap());
            assert_eq!(sample.patches()[0].shape(), patch);
            seen += 1;
        }
        assert_eq!(seen, 40);
    }
}

#[test]
fn weights_of_12_orders_of_magnitude_hold_and_a_subject_of_weight_0_is_never_opened() {
    let opened = Arc::new(Mutex::new(BTreeMap::<u64, u64>::new()));
    let note = Arc::clone(&opened);
    let open = move |index| {
        *note.lock().unwrap().entry(index).or_default() += 1;
        Ok(subject("a", &[&Noted::chunked(1)]))
    };
    let weights = [0.0, 1e12, 0.0, 1.0, 5e11, 0.0];
    let plan = EpochPlan::proportional(&weights, 30, 1).unwrap();
    let lazy = Arc::new(LazySubjects::new(6, open));
    let told = all(Loader::new(lazy, uniform(), &plan, 0, &options(1)).unwrap());
    let of = |subject| told.iter().filter(|told| told.1 == subject).count();
    assert_eq!([0, 1, 2, 3, 4, 5].map(of), [0, 20, 0, 0, 10, 0]);
    assert!(opened.lock().unwrap().keys().eq(&[1, 4]));
}

/// A Zarr of 24^3 in chunks of 8, a file each; voxels are coordinates.
fn write_zarr(path: &Path) {
    let options = CreateOptions {
        chunk: [8; 3],
        shard: None,
        codec: Codec::Zstd,
        ..CreateOptions::default()
    };
    let voxels: Vec<u16> = (0..24 * 24 * 24).collect();
    let output = create(path, &Layout::new([24; 3], 1, DType::U16), &options).unwrap();
    let region = Region::whole([24; 3]);
    output.write(region, bytemuck::cast_slice(&voxels)).unwrap();
    output.finish().unwrap();
}

#[test]
fn damage_on_disk_is_an_error_that_names_subject_array_and_chunk_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["good.zarr", "bad.zarr", "gone.zarr"] {
        write_zarr(&path(name));
    }
    let volume = |name: &str| open(path(name)).unwrap();
    let (bad, gone) = (volume("bad.zarr"), volume("gone.zarr"));
    let chunk = bad.layout().path.join("c/1/1/1");
    let mut bytes = fs::read(&chunk).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(&chunk, bytes).unwrap();
    fs::remove_file(gone.layout().path.join("c/1/1/1")).unwrap();
    // Rows that a raw file's sidecar promises and the file does not have.
    fs::write(path("short.raw"), vec![1; 100]).unwrap();
    let sidecar = r#"{"shape": [24, 24, 24], "dtype": "uint16"}"#;
    fs::write(path("short.raw.json"), sidecar).unwrap();
    let short = path("short.raw");
    let volumes = [volume("good.zarr"), bad, gone];
    let open = move |index| {
        let volume = match volumes.get(usize::try_from(index).unwrap()) {
            Some(volume) => Arc::clone(volume),
            None => open(&short)?,
        };
        let name = ["good", "bad", "gone", "short"][usize::try_from(index).unwrap()];
        Ok(of_volumes(name, vec![("ct", volume)]))
    };
    let lazy = Arc::new(LazySubjects::new(4, open));
    let plan = EpochPlan::new(4, 40, 2).unwrap().with_window(13);
    for threads in [0, 3] {
        let subjects = Arc::clone(&lazy) as Arc<dyn Subjects>;
        let make = uniform_of([4; 3], Border::Drop);
        let loader = Loader::new(subjects, make, &plan, 0, &options(threads)).unwrap();
        let hole = Region::new([8; 3], [8; 3]);
        let (mut failed, mut delivered) = ([0; 4], [0; 4]);
        for outcome in loader {
            match outcome {
                Ok(sample) => {
                    let subject = usize::try_from(sample.subject_index).unwrap();
                    delivered[subject] += 1;
                    let touched = sample.region.intersection(&hole).is_some();
                    assert!(subject != 1 || !touched);
                    let values = sample.patches()[0].view::<u16>().unwrap();
                    let [z, y, x] = sample.region.start.map(|n| usize::try_from(n).unwrap());
                    for ((_, dz, dy, dx), &value) in values.indexed_iter() {
                        let at = [z + dz, y + dy, x + dx];
                        let lost = subject == 2 && at.iter().all(|n| (8..16).contains(n));
                        let stored = (at[0] * 24 + at[1]) * 24 + at[2];
                        assert_eq!(usize::from(value), if lost { 0 } else { stored });
                    }
                }
                Err(error) => {
                    let text = whole(&error);
                    let (subject, parts): (usize, &[&str]) = if text.contains("subject 3") {
                        (3, &["short.raw", "100 bytes", "27648"])
                    } else {
                        (1, &["subject 1 (bad)", "bad.zarr", "c/1/1/1"])
                    };
                    failed[subject] += 1;
                    for part in parts {
                        assert!(text.contains(part), "{part}: {text}");
                    }
                }
            }
        }
        assert_eq!((delivered[0], delivered[2], failed[3]), (40, 40, 40));
        assert_eq!(failed[1] + delivered[1], 40);
        assert!(failed[1] > 0 && delivered[1] > 0, "{failed:?}");
    }
}
