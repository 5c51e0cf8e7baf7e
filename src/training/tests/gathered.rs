//! Batches whose patches are put together in one buffer.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::training::Batch;

const SHARE: RankShard = RankShard::of(1, 2, 4);

/// Subject, region and voxels of each patch of a batch.
type Row = (u64, Region, Vec<Vec<u8>>);

fn rows(batch: &Batch) -> Vec<Row> {
    let each = batch.subject_indices().iter().zip(batch.regions());
    let row = |(n, (&subject, &region)): (usize, (&u64, &Region))| {
        let part = |image: &crate::training::BatchImage| {
            let length = image.bytes().len() / batch.regions().len();
            image.bytes()[n * length..(n + 1) * length].to_vec()
        };
        (subject, region, batch.images().iter().map(part).collect())
    };
    each.enumerate().map(row).collect()
}

fn next(loader: &mut Loader) -> Option<Result<Batch>> {
    loop {
        match loader.next_contiguous_batch_timeout(Duration::MAX) {
            TryNext::Ready(batch) => return Some(batch),
            TryNext::TimedOut => {}
            TryNext::Finished => return None,
        }
    }
}

fn gathered(loader: &mut Loader) -> Vec<Vec<Row>> {
    std::iter::from_fn(|| next(loader))
        .map(|batch| rows(&batch.unwrap()))
        .collect()
}

/// The same from patches one by one.
fn collected(loader: &mut Loader) -> Vec<Vec<Row>> {
    let row = |sample: &Sample| {
        let (_, subject, region, voxels) = told(sample);
        (subject, region, voxels)
    };
    std::iter::from_fn(|| loader.next_batch())
        .map(|batch| batch.unwrap().iter().map(row).collect())
        .collect()
}

#[test]
fn gathered_batches_hold_what_the_patches_hold() {
    let plan = EpochPlan::new(3, 9, 5).unwrap().with_window(7);
    for shard in [RankShard::whole(5), RankShard::whole(1), SHARE] {
        let alone = LoaderOptions {
            shard,
            ..options(0)
        };
        let expected = collected(&mut loader(three(Manner::Plain), &plan, &alone));
        for threads in [0, 1, 2, 8] {
            for (max_length, memory) in [(1, 1 << 30), (50, 1 << 30), (50, 0), (50, 100_000)] {
                for gather in [true, false] {
                    let options = LoaderOptions {
                        threads,
                        max_length,
                        memory,
                        shard,
                        contiguous_batches: gather,
                        ..LoaderOptions::default()
                    };
                    let load = || loader(three(Manner::Slow), &plan, &options);
                    assert_eq!(gathered(&mut load()), expected);
                    assert_eq!(collected(&mut load()), expected, "as patches");
                }
            }
        }
    }
}

#[test]
fn padded_and_converted_patches_are_gathered_too() {
    let images = padded_and_converted();
    let subject = Subject::builder("s").with_images(images).build().unwrap();
    let regions = [
        Region::new([-2, -1, -3], [3, 4, 5]),
        Region::new([1, 1, 1], [3, 4, 5]),
        Region::new([-20, 0, 0], [3, 4, 5]),
        Region::new([4, 3, 5], [3, 4, 5]),
        Region::new([0, 0, 0], [3, 4, 5]),
    ];
    let make: Arc<dyn SamplerFactory> = Arc::new(move |_: &Subject, _| Ok(At(regions.to_vec())));
    let plan = EpochPlan::new(1, 5, 0).unwrap().with_shuffle(false, false);
    for threads in [0, 3] {
        let options = LoaderOptions {
            shard: RankShard::whole(3),
            contiguous_batches: true,
            ..options(threads)
        };
        let subjects = Arc::new(vec![subject.clone()]);
        let mut loader = Loader::new(subjects, Arc::clone(&make), &plan, 0, &options).unwrap();
        let batches = gathered(&mut loader);
        assert_eq!(
            batches.iter().map(Vec::len).collect::<Vec<_>>(),
            [3, 2],
            "the last is what is left"
        );
        for ((_, region, voxels), expected) in batches.iter().flatten().zip(regions) {
            assert_eq!(*region, expected);
            for (image, voxels) in subject.images().iter().zip(voxels) {
                assert_eq!(
                    voxels,
                    image.read(expected).unwrap().bytes(),
                    "{}",
                    image.name
                );
            }
        }
    }
}

#[test]
fn a_batch_says_its_shape_and_can_be_kept() {
    let plan = EpochPlan::new(1, 6, 1).unwrap();
    let options = LoaderOptions {
        shard: RankShard::whole(3),
        contiguous_batches: true,
        ..options(2)
    };
    let ct = Noted::chunked(1);
    let mut loader = loader(vec![subject("a", &[&ct])], &plan, &options);
    let first = next(&mut loader).unwrap().unwrap();
    let before = rows(&first);
    let mut images = first.into_images();
    let second = rows(&next(&mut loader).unwrap().unwrap());
    assert!(next(&mut loader).is_none());
    drop(loader);
    let image = &images[0];
    let [z, y, x] = PATCH;
    assert_eq!((image.name(), image.shape()), ("image0", [3, 1, z, y, x]));
    assert_eq!(image.dtype(), DType::U32);
    assert_eq!(
        bytemuck::cast_slice::<u32, u8>(image.as_slice().unwrap()),
        image.bytes()
    );
    assert!(image.as_slice::<f32>().is_err());
    let kept: Vec<u8> = before.iter().flat_map(|row| row.2[0].clone()).collect();
    assert_eq!(image.bytes(), kept, "nothing else writes to it");
    images[0].bytes_mut().fill(0);
    assert_ne!(before, second);
}

#[test]
fn a_batch_with_a_gap_is_joined_without_it() {
    let bad = [0, 2, 2, 2];
    let plan = EpochPlan::new(2, 40, 3).unwrap().with_window(20);
    for threads in [0, 3] {
        let load = |gather, on_error| {
            let volume = Noted::new(1, Some([1, 8, 8, 8]), Manner::FailsAt(bad));
            let subjects = vec![
                subject("good", &[&Noted::chunked(1)]),
                subject("bad", &[&volume]),
            ];
            let options = LoaderOptions {
                shard: RankShard::whole(8),
                contiguous_batches: gather,
                on_error,
                ..options(threads)
            };
            loader(subjects, &plan, &options)
        };
        let expected = collected(&mut load(false, OnError::Skip));
        assert!(expected.iter().any(|batch| batch.len() < 8), "{expected:?}");
        assert_eq!(gathered(&mut load(true, OnError::Skip)), expected);
        let mut failing = load(true, OnError::Fail);
        let mut batches = Vec::new();
        let mut errors = 0;
        while let Some(batch) = next(&mut failing) {
            match batch {
                Ok(batch) => batches.push(rows(&batch)),
                Err(_) => errors += 1,
            }
        }
        assert_eq!(
            batches, expected,
            "the rest of a batch comes after its errors"
        );
        assert_eq!(errors, 80 - expected.iter().map(Vec::len).sum::<usize>());
    }
}

#[test]
fn unlike_patches_are_no_batch_but_patches_all_the_same() {
    let typed = |name: &str, dtype| {
        let image = Image::new("ct", Noted::chunked(1) as _).with_dtype(dtype);
        Subject::builder(name).with_images([image]).build().unwrap()
    };
    let subjects = || vec![typed("a", DType::U32), typed("b", DType::F32)];
    let plan = EpochPlan::new(2, 4, 3).unwrap().with_shuffle(false, true);
    let options = LoaderOptions {
        shard: RankShard::whole(8),
        contiguous_batches: true,
        ..options(2)
    };
    let error = next(&mut loader(subjects(), &plan, &options)).unwrap();
    let text = error.unwrap_err().to_string();
    for part in ["the first gives", "of uint32", "of float32"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let one_by_one = all(loader(subjects(), &plan, &options));
    let apart = LoaderOptions {
        contiguous_batches: false,
        ..options
    };
    assert_eq!(one_by_one, all(loader(subjects(), &plan, &apart)));
}

#[test]
fn subjects_that_have_to_be_alike_are_errors_where_they_are_not() {
    let image = |name: &str, dtype| Image::new(name, Noted::chunked(1) as _).with_dtype(dtype);
    let of = |images: Vec<Image>| Subject::builder("s").with_images(images).build().unwrap();
    let (stored, real) = (DType::U32, DType::F32);
    let first = || of(vec![image("ct", stored), image("label", stored)]);
    for (other, told) in [
        (
            vec![image("ct", real), image("label", stored)],
            "of float32",
        ),
        (vec![image("ct", stored)], "no image called label"),
        (
            vec![
                image("ct", stored),
                image("label", stored),
                image("t2", real),
            ],
            "no image called t2",
        ),
    ] {
        let subjects = || vec![first(), of(other.clone()), first()];
        let cohort = Cohort::survey(&subjects(), 2, &AtomicBool::new(false)).unwrap();
        let error = cohort.check().unwrap_err();
        assert!(matches!(error, Error::SubjectMismatch { .. }), "{error}");
        assert!(error.to_string().contains(told), "{error}");
        let plan = EpochPlan::new(3, 4, 3).unwrap().with_shuffle(false, false);
        // Whatever else is left out, this is not.
        for on_error in [OnError::Fail, OnError::Skip] {
            let options = LoaderOptions {
                same_images: true,
                on_error,
                ..options(2)
            };
            let found: Vec<_> = loader(subjects(), &plan, &options).collect();
            let errors = found.iter().filter(|found| found.is_err()).count();
            assert_eq!((found.len(), errors), (12, 4));
            assert!(
                found[4]
                    .as_ref()
                    .unwrap_err()
                    .to_string()
                    .starts_with("subject 1 (s)")
            );
        }
    }
    // Their order is not compared, nor what cannot be opened.
    let turned = of(vec![image("label", stored), image("ct", stored)]);
    let open = move |n| match n {
        0 => Ok(first()),
        1 => Err(Error::Interrupted),
        _ => Ok(turned.clone()),
    };
    let lazy = LazySubjects::new(3, open);
    let cohort = Cohort::survey(&lazy, 3, &AtomicBool::new(false)).unwrap();
    assert!(cohort.check().is_ok());
    let stopped = Cohort::survey(&lazy, 3, &AtomicBool::new(true));
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

#[test]
fn the_buffer_holds_whole_batches_and_no_more_than_it_may() {
    let plan = EpochPlan::new(1, 40, 1).unwrap();
    let ct = Noted::new(1, None, Manner::Slow);
    let patch = 4 * Region::whole(PATCH).voxels();
    for (memory, most) in [(9 * patch, 8), (3 * patch, 4), (0, 4)] {
        let options = LoaderOptions {
            threads: 3,
            max_length: 100,
            memory,
            shard: RankShard::whole(4),
            contiguous_batches: true,
            ..LoaderOptions::default()
        };
        let mut loader = loader(vec![subject("a", &[&ct])], &plan, &options);
        let mut largest = 0;
        while let Some(batch) = next(&mut loader) {
            batch.unwrap();
            thread::sleep(Duration::from_millis(5));
            let (ready, unready) = loader.stats().fill;
            largest = largest.max(ready + unready);
        }
        assert_eq!(largest, most, "{memory}");
    }
}

#[test]
fn gathered_batches_are_resumed_and_shared_as_patches_are() {
    let plan = EpochPlan::new(3, 9, 5).unwrap().with_window(7);
    let load = |state: Option<LoaderState>, gather| {
        let subjects = Arc::new(three(Manner::Plain));
        let options = LoaderOptions {
            shard: RankShard::whole(4),
            contiguous_batches: gather,
            ..options(2)
        };
        let state = state.unwrap_or_else(|| loader(three(Manner::Plain), &plan, &options).state());
        Loader::resume(subjects, uniform(), &plan, state, &options).unwrap()
    };
    let whole = collected(&mut load(None, false));
    for taken in 0..whole.len() {
        let mut first = load(None, true);
        let mut batches: Vec<_> = (0..taken)
            .map(|_| rows(&next(&mut first).unwrap().unwrap()))
            .collect();
        batches.extend(gathered(&mut load(Some(first.state()), true)));
        assert_eq!(batches, whole, "after {taken}");
    }
}
