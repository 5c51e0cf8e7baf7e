//! Normalized, cast, cropped and turned patches, compared with naive ones.

use half::{bf16, f16};

use super::*;
use crate::geometry::{Affine, SignedAxes};
use crate::normalize::Normalize;
use crate::patch::Voxels;
use crate::sampler::Border;
use crate::training::augment::tests::naive;
use crate::volume::Interpolation;

const SEED: u64 = 11;

fn volume<T: crate::dtype::Element>(
    salt: u64,
    channels: u64,
    chunk: Option<ChunkShape>,
) -> Arc<dyn Volume>
where
    Vec<T>: Into<Voxels>,
{
    let shape = [14, 12, 13];
    let count = channels * shape.iter().product::<u64>();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let value =
        |n: u64| T::from_f64((n.wrapping_mul(0x9E37_79B9).wrapping_add(salt) >> 9 & 127) as f64);
    let voxels: Vec<T> = (0..count).map(value).collect();
    let volume = MemoryVolume::from_vec(shape, channels, voxels).unwrap();
    match chunk {
        Some(chunk) => Arc::new(volume.with_chunks(chunk)),
        None => Arc::new(volume),
    }
}

/// Returns an image of each way to make patches.
fn images(salt: u64) -> Vec<Image> {
    let ct = || volume::<i16>(salt, 1, Some([1, 5, 4, 6]));
    let window = Normalize::Window {
        low: 20.0,
        high: 100.0,
    };
    let images = vec![
        Image::new("ct", ct()),
        Image::new("label", volume::<u8>(salt + 1, 1, None)).with_padding(Padding::Edge),
        Image::new("scored", volume::<f32>(salt + 2, 2, Some([2, 4, 4, 4])))
            .with_normalize(Normalize::ZScore),
        Image::new("window", ct())
            .with_normalize(window.clone())
            .with_dtype(DType::F16),
        Image::new("half", volume::<f64>(salt + 3, 3, None))
            .with_channels(1..3)
            .with_normalize(Normalize::ZScore)
            .with_padding(Padding::Constant(-0.3))
            .with_bfloat16(),
        Image::new("bytes", volume::<f64>(salt + 4, 1, Some([1, 7, 7, 7]))).with_dtype(DType::U8),
        Image::new("plain", volume::<i16>(salt + 5, 1, None)).with_bfloat16(),
    ];
    let all = [
        Interpolation::Linear,
        Interpolation::LabelLinear,
        Interpolation::Nearest,
    ];
    let images = images.into_iter().zip(all.into_iter().cycle());
    images
        .map(|(image, own)| image.with_interpolation(own))
        .collect()
}

fn subjects() -> Vec<Subject> {
    let subject = |salt| {
        Subject::builder(format!("s{salt}"))
            .with_images(images(salt))
            .build()
    };
    (0..3).map(|n| subject(n * 100).unwrap()).collect()
}

fn dataset(patch: Shape) -> Dataset {
    let sampler = move |subject: &Subject, seed| {
        Uniform::with_border(subject.shape(), patch, Border::Pad, seed)
    };
    Dataset::new(subjects(), sampler)
        .samples_per_subject(5)
        .seed(SEED)
}

/// Returns the voxels of an image at a region as f64, channel by channel, without the loader.
fn expected(image: &Image, region: Region, axes: SignedAxes) -> Vec<f64> {
    let layout = image.volume.layout();
    let whole = Region::whole(layout.shape);
    let mut stored = Patch::zeros(whole, image.channel_count(), layout.dtype).unwrap();
    image
        .volume
        .read_channels(image.channels.clone(), whole, stored.bytes_mut())
        .unwrap();
    let stored = stored.converted(DType::F64);
    let stored: &[f64] = stored.as_slice().unwrap();
    let each = stored.len() / usize::try_from(image.channel_count()).unwrap();
    let mut all = Vec::new();
    for own in stored.chunks(each) {
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let mean = own.iter().sum::<f64>() / own.len() as f64;
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let deviation =
            (own.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / own.len() as f64).sqrt();
        let normal = |value: f64| match image.normalize.normalize() {
            Normalize::None => value,
            Normalize::ZScore => (value - mean) / deviation,
            &Normalize::Window { low, high } => (value.clamp(low, high) - low) / (high - low),
            other => panic!("no image here has {other}"),
        };
        let mut values = Vec::new();
        for z in region.start[0]..region.end()[0] {
            for y in region.start[1]..region.end()[1] {
                for x in region.start[2]..region.end()[2] {
                    let at = [z, y, x];
                    let inside = std::array::from_fn::<i64, 3, _>(|a| {
                        at[a].clamp(0, i64::try_from(layout.shape[a]).unwrap() - 1)
                    });
                    let [nz, ny, nx] = inside.map(|n| usize::try_from(n).unwrap());
                    let place = (nz * usize::try_from(layout.shape[1]).unwrap() + ny)
                        * usize::try_from(layout.shape[2]).unwrap()
                        + nx;
                    values.push(match image.padding {
                        Padding::Constant(value) if at != inside => value,
                        _ => normal(own[place]),
                    });
                }
            }
        }
        all.extend(naive(&values, region.shape, axes));
    }
    all
}

/// Returns voxels as f64.
fn wide(image: &Image, bytes: &[u8]) -> Vec<f64> {
    if image.bfloat16 {
        let bits = bytes
            .chunks_exact(2)
            .map(|two| u16::from_ne_bytes([two[0], two[1]]));
        return bits.map(|bits| bf16::from_bits(bits).to_f64()).collect();
    }
    let mut out = vec![0.0_f64; bytes.len() / image.dtype().size()];
    crate::dtype::convert(
        image.dtype(),
        bytes,
        DType::F64,
        bytemuck::cast_slice_mut(&mut out),
    );
    out
}

fn close(image: &Image, found: &[u8], expected: &[f64]) -> bool {
    // Half of the last digit of the type, and of the type before the cast.
    let digit = match (image.bfloat16, image.dtype()) {
        (true, _) => bf16::EPSILON.to_f64() / 2.0,
        (_, DType::F16) => f16::EPSILON.to_f64() / 2.0,
        (_, DType::F32) => 1e-6,
        _ => 0.0,
    };
    let found = wide(image, found);
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= (digit + 1e-6) * b.abs().max(0.01);
    found.len() == expected.len() && found.iter().zip(expected).all(near)
}

fn options() -> Vec<(Shape, Augmentation)> {
    let none = Augmentation::default();
    let turned = none
        .with_flip([0.5, 0.3, 0.7])
        .with_permute(0.5)
        .with_rotate(0.5);
    vec![
        ([5; 3], none),
        ([5; 3], turned),
        ([4, 6, 6], turned),
        ([3, 5, 7], turned),
        ([9, 8, 10], turned.with_crop([6, 6, 6])),
        ([9, 8, 10], none.with_crop([2, 7, 3])),
    ]
}

#[test]
fn patches_are_the_naive_ones_for_any_threads_and_in_batches() {
    let subjects = subjects();
    for (patch, augment) in options() {
        let dataset = dataset(patch);
        let plain: Vec<Sample> = dataset
            .epoch(3)
            .samples()
            .unwrap()
            .map(|s| s.unwrap())
            .collect();
        let drawn: Vec<(Region, SignedAxes)> = plain
            .iter()
            .map(|sample| {
                augment
                    .draw([SEED, 3, sample.place], sample.region)
                    .unwrap()
            })
            .collect();
        if !augment.keeps_axes() {
            assert!(drawn.iter().any(|(_, axes)| *axes != SignedAxes::SAME));
        }
        for threads in [0, 1, 4] {
            let epoch = || dataset.epoch(3).threads(threads).augment(augment);
            let samples: Vec<Sample> = epoch().samples().unwrap().map(|s| s.unwrap()).collect();
            assert_eq!(samples.len(), 15);
            for (sample, (region, axes)) in samples.iter().zip(&drawn) {
                assert_eq!((sample.region, sample.axes()), (*region, *axes));
                let images = subjects[usize::try_from(sample.subject_index).unwrap()].images();
                for (image, patch) in images.iter().zip(sample.patches()) {
                    let expected = expected(image, *region, *axes);
                    assert!(
                        close(image, patch.bytes(), &expected),
                        "{} {region:?}",
                        image.name
                    );
                }
            }
            let mut n = 0;
            for batch in epoch().batches(4).unwrap() {
                let batch = batch.unwrap();
                let count = batch.regions().len();
                for (image, of_batch) in batch.images().iter().enumerate() {
                    let own = samples[n..n + count].iter();
                    let joined: Vec<u8> = own
                        .flat_map(|s| s.patches()[image].bytes().to_vec())
                        .collect();
                    assert_eq!(of_batch.bytes(), joined);
                }
                let axes: Vec<SignedAxes> =
                    samples[n..n + count].iter().map(Sample::axes).collect();
                assert_eq!(batch.axes(), axes);
                n += count;
            }
            assert_eq!(n, 15);
        }
    }
}

/// What a sample is made of.
fn content(sample: &Sample) -> (u64, Region, SignedAxes, Vec<Vec<u8>>, Affine) {
    let voxels = sample.patches().iter().map(|patch| patch.bytes().to_vec());
    let (axes, affine) = (sample.axes(), sample.affine());
    (sample.place, sample.region, axes, voxels.collect(), affine)
}

#[test]
fn changes_do_not_depend_on_where_an_epoch_resumes_or_who_takes_it() {
    let turned = Augmentation::default()
        .with_flip([0.5; 3])
        .with_permute(0.5)
        .with_rotate(0.5)
        .with_crop([4; 3]);
    let mapped = turned
        .with_affine(RandomAffine::default().with_p(0.7))
        .with_elastic(
            RandomElastic::default()
                .with_max_displacement([1.5; 3])
                .with_p(0.7),
        );
    for augment in [turned, mapped] {
        check_that_changes_do_not_depend_on_the_loader(&augment);
    }
}

fn check_that_changes_do_not_depend_on_the_loader(augment: &Augmentation) {
    let dataset = dataset([6; 3]);
    let whole: Vec<_> = {
        let loader = dataset.epoch(1).augment(*augment).samples().unwrap();
        loader.map(|sample| content(&sample.unwrap())).collect()
    };
    for threads in [0, 1, 4] {
        let loader = dataset
            .epoch(1)
            .threads(threads)
            .augment(*augment)
            .samples()
            .unwrap();
        let all: Vec<_> = loader.map(|sample| content(&sample.unwrap())).collect();
        assert_eq!(all, whole, "{threads} threads");
    }
    for taken in 0..whole.len() {
        let mut loader = dataset
            .epoch(1)
            .threads(2)
            .augment(*augment)
            .samples()
            .unwrap();
        loader
            .by_ref()
            .take(taken)
            .for_each(|sample| drop(sample.unwrap()));
        let state = loader.state();
        drop(loader);
        let rest = dataset
            .resume(state)
            .threads(1)
            .augment(*augment)
            .samples()
            .unwrap();
        let rest: Vec<_> = rest.map(|sample| content(&sample.unwrap())).collect();
        assert_eq!(rest, whole[taken..]);
    }
    let mut parts = Vec::new();
    for rank in 0..3 {
        for index in 0..2 {
            let options = LoaderOptions::default()
                .with_threads(1)
                .with_shard(RankShard::of(rank, 3, 2).with_uneven(Uneven::Exact))
                .with_worker(WorkerShard { index, count: 2 })
                .with_augment(*augment);
            let loader = dataset.epoch(1).with_options(options).samples().unwrap();
            parts.extend(loader.map(|sample| content(&sample.unwrap())));
        }
    }
    parts.sort_by_key(|part| part.0);
    assert_eq!(parts, whole);
    let next = dataset.epoch(2).augment(*augment).samples().unwrap();
    let axes: Vec<SignedAxes> = next.map(|sample| sample.unwrap().axes()).collect();
    assert!(
        axes.iter()
            .zip(&whole)
            .any(|(axes, before)| *axes != before.2)
    );
}

#[test]
fn values_that_a_type_cannot_hold_are_named_with_their_place_in_the_volume() {
    let voxels = |odd: f64| {
        let mut all = vec![1.0_f64; 210];
        all[136] = odd;
        MemoryVolume::from_vec([5, 6, 7], 1, all).unwrap()
    };
    let window = Normalize::Window {
        low: 0.0,
        high: 1.0,
    };
    let image = |odd| Image::new("ct", Arc::new(voxels(odd)) as _);
    let region = Region::new([2, 1, 2], [3, 4, 5]);
    for (image, value, dtype) in [
        (image(1e300).with_bfloat16(), "1000000", "bfloat16"),
        (image(3.4e38).with_bfloat16(), "3400000", "bfloat16"),
        (image(70_000.0).with_dtype(DType::F16), "70000", "float16"),
        (image(-3.0).with_dtype(DType::U8), "-3", "uint8"),
        (
            image(-200.0)
                .with_normalize(Normalize::ZScore)
                .with_dtype(DType::U8),
            "(normalized)",
            "uint8",
        ),
    ] {
        let error = image.read(region).unwrap_err().to_string();
        assert!(error.contains(value) && error.contains(dtype), "{error}");
        assert!(error.contains("voxel [3, 1, 3]"), "{error}");
    }
    assert!(
        image(1e300)
            .with_normalize(window.clone())
            .with_bfloat16()
            .read(region)
            .is_ok()
    );
}

#[test]
fn a_volume_is_measured_once_for_all_epochs() {
    let noted = Noted::chunked(1);
    let image = Image::new("ct", Arc::clone(&noted) as _).with_normalize(Normalize::ZScore);
    let subject = Subject::builder("s").with_images([image]).build().unwrap();
    let chunks = usize::try_from(5 * 5 * 6).unwrap();
    let dataset = Dataset::new(vec![subject], UniformPatches::new([4; 3]));
    for epoch in 0..3 {
        assert_eq!(dataset.epoch(epoch).samples().unwrap().count(), 1);
    }
    let read = noted.chunks.lock().unwrap().len();
    assert!((chunks..chunks + 3 * 8 + 1).contains(&read), "{read}");
}

#[test]
fn a_crop_larger_than_the_patch_is_an_error_of_the_subject() {
    let augment = Augmentation::default().with_crop([4, 9, 4]);
    let mut loader = dataset([6; 3]).epoch(0).augment(augment).samples().unwrap();
    let error = loader.next().unwrap().unwrap_err().with_causes();
    assert!(
        error.contains("crop") && error.contains("[6, 6, 6]"),
        "{error}"
    );
    let wrong = Augmentation::default().with_rotate(1.5);
    assert!(dataset([6; 3]).epoch(0).augment(wrong).samples().is_err());
}
