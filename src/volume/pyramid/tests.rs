//! Levels that are produced while chunks arrive equal levels that are produced from the whole.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;

use super::waiting::most_waiting;
use super::*;
use crate::dtype::{DType, convert};
use crate::patch::copy_common;
use crate::region::{ORDERS, chunk_region, indices};
use crate::volume::{MemoryVolume, OpenOptions, Volume, VolumeExt, create, open, output_layout};

/// Returns an integer voxel as i128.
fn exact(dtype: DType, voxel: &[u8]) -> i128 {
    let mut wide = [0_i64; 1];
    if dtype == DType::U64 {
        return i128::from(u64::from_ne_bytes(voxel.try_into().unwrap()));
    }
    convert(
        dtype,
        voxel,
        DType::I64,
        bytemuck::cast_slice_mut(&mut wide),
    );
    i128::from(wide[0])
}

fn float(dtype: DType, voxel: &[u8]) -> f64 {
    let mut wide = [0_f64; 1];
    convert(
        dtype,
        voxel,
        DType::F64,
        bytemuck::cast_slice_mut(&mut wide),
    );
    wide[0]
}

fn from_float(dtype: DType, value: f64) -> Vec<u8> {
    let mut out = [0_u64; 1];
    let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut out)[..dtype.size()];
    convert(DType::F64, bytemuck::bytes_of(&value), dtype, bytes);
    bytes.to_vec()
}

fn from_exact(dtype: DType, value: i128) -> Vec<u8> {
    if dtype == DType::U64 {
        return u64::try_from(value).unwrap().to_ne_bytes().to_vec();
    }
    let value = i64::try_from(value).unwrap();
    let mut out = [0_u64; 1];
    let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut out)[..dtype.size()];
    convert(DType::I64, bytemuck::bytes_of(&value), dtype, bytes);
    bytes.to_vec()
}

/// Computes one cell by the definition.
fn naive_cell(method: Downsample, dtype: DType, values: &[&[u8]]) -> Vec<u8> {
    match method {
        Downsample::Mode => {
            let count = |value: &&[u8]| {
                let same = |other: &&&[u8]| {
                    let (a, b) = (float(dtype, value), float(dtype, other));
                    *other == value || a == b && dtype.is_float() || a.is_nan() && b.is_nan()
                };
                values.iter().filter(same).count()
            };
            let most = values.iter().map(count).max().unwrap();
            let candidates = values.iter().filter(|value| count(value) == most);
            let smallest = candidates.min_by(|a, b| {
                if dtype.is_float() {
                    let (a, b) = (float(dtype, a), float(dtype, b));
                    a.partial_cmp(&b).unwrap_or(a.is_nan().cmp(&b.is_nan()))
                } else {
                    exact(dtype, a).cmp(&exact(dtype, b))
                }
            });
            smallest.unwrap().to_vec()
        }
        Downsample::Mean if dtype.is_float() => {
            let numbers: Vec<f64> = values
                .iter()
                .map(|value| float(dtype, value))
                .filter(|value| !value.is_nan())
                .collect();
            #[expect(clippy::cast_precision_loss, reason = "up to 8")]
            let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
            from_float(dtype, mean)
        }
        Downsample::Mean => {
            let sum: i128 = values.iter().map(|value| exact(dtype, value)).sum();
            let count = i128::try_from(values.len()).unwrap();
            let near = (sum / count - 1..=sum / count + 1)
                .min_by_key(|mean| ((mean * count - sum).abs(), mean.rem_euclid(2)));
            from_exact(dtype, near.unwrap())
        }
    }
}

/// Computes the next level of one channel.
fn naive(method: Downsample, dtype: DType, voxels: &[u8], shape: Shape) -> Vec<u8> {
    let size = dtype.size();
    let at = |place: [u64; 3]| {
        let n = (place[0] * shape[1] + place[1]) * shape[2] + place[2];
        let n = usize::try_from(n).unwrap() * size;
        &voxels[n..n + size]
    };
    let mut out = Vec::new();
    for cell in indices(next_shape(shape).map(|n| 0..n)) {
        let range = |a: usize| {
            let factor = if shape[a] > 1 { 2 } else { 1 };
            cell[a] * factor..((cell[a] + 1) * factor).min(shape[a])
        };
        let values: Vec<&[u8]> = indices([range(0), range(1), range(2)]).map(at).collect();
        out.extend(naive_cell(method, dtype, &values));
    }
    out
}

fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Returns voxels with few different values, some of them extreme, and empty stretches.
fn voxels(dtype: DType, shape: Shape, channels: u64, seed: u64) -> Vec<u8> {
    let mut roll = dice(seed);
    let count = Region::whole(shape).voxels() * channels;
    let mut out = Vec::new();
    let mut empty = 0_u64;
    for _ in 0..count {
        if empty > 0 {
            empty -= 1;
            out.extend(vec![0; dtype.size()]);
            continue;
        }
        match roll() % 40 {
            0 => empty = roll() % 200,
            1 if dtype.is_float() => {
                out.extend(from_float(dtype, f64::NAN));
                continue;
            }
            1 if dtype.size() == 8 => {
                out.extend(roll().to_ne_bytes());
                continue;
            }
            _ => {}
        }
        let value = i32::try_from(roll() % 9).unwrap() - 4;
        out.extend(from_float(dtype, f64::from(value) * 1.5));
    }
    out
}

fn cut(voxels: &[u8], whole: Region, part: Region, size: usize) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(part.voxels()).unwrap() * size];
    copy_common((voxels, whole), (&mut out, part), 1, size);
    out
}

fn method() -> impl Strategy<Value = Downsample> {
    prop_oneof![Just(Downsample::Mean), Just(Downsample::Mode)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn chunks_of_any_shapes_in_any_order_give_the_levels_of_the_whole(
        shape in [1_u64..14, 1..14, 1..20],
        chunks in prop::collection::vec([1_u64..7, 1..7, 1..9], 4),
        method in method(),
        dtype in prop::sample::select(&DType::ALL[..]),
        seed: u64,
    ) {
        let mut levels = Vec::new();
        let mut size = shape;
        for chunk in &chunks {
            levels.push(Level { shape: size, chunk: *chunk });
            size = next_shape(size);
        }
        let whole = Region::whole(shape);
        let mut all: Vec<_> = indices(std::array::from_fn(|a| 0..shape[a].div_ceil(chunks[0][a]))).collect();
        let mut roll = dice(seed);
        all.sort_by_cached_key(|_| roll());
        // In every other case, some chunks never arrive.
        let (absent, all): (Vec<_>, Vec<_>) = all.into_iter().partition(|_| seed % 2 == 0 && roll().is_multiple_of(4));
        let mut finest = voxels(dtype, shape, 1, seed);
        for index in &absent {
            let region = chunk_region(*index, chunks[0]).intersection(&whole).unwrap();
            let zeros = vec![0; usize::try_from(region.voxels()).unwrap() * dtype.size()];
            copy_common((&zeros, region), (&mut finest, whole), 1, dtype.size());
        }
        let mut expected = vec![finest];
        for level in &levels {
            expected.push(naive(method, dtype, expected.last().unwrap(), level.shape));
        }

        let ladder = Ladder::new(method, dtype, levels.clone());
        let found: Mutex<Vec<Vec<u8>>> = Mutex::new(expected.iter().map(|level| vec![0; level.len()]).collect());
        let seen = Mutex::new(HashSet::new());
        let finished = |level: usize, channel, index, region, chunk: LevelSource<'_>| {
            assert!(seen.lock().unwrap().insert((level, channel, index)), "made twice");
            let whole = Region::whole(levels[level].shape);
            assert_eq!(chunk_region(index, levels[level].chunk).intersection(&whole), Some(region));
            if let Some(voxels) = chunk.voxels {
                let target = &mut found.lock().unwrap()[level];
                copy_common((voxels, chunk.held), (target, whole), 1, dtype.size());
            }
            Ok(())
        };
        for index in all {
            let region = chunk_region(index, chunks[0]).intersection(&whole).unwrap();
            let part = cut(&expected[0], whole, region, dtype.size());
            let source = LevelSource { held: region, voxels: part.iter().any(|&b| b != 0).then_some(&part) };
            ladder.add(0, 0, region, source, &finished).unwrap();
        }
        ladder.finish(&finished).unwrap();
        let found = found.into_inner().unwrap();
        for (level, size) in levels.iter().enumerate().skip(1) {
            prop_assert_eq!(&found[level], &expected[level], "level {} of {:?}", level, levels);
            let count: u64 = (0..3).map(|a| size.shape[a].div_ceil(size.chunk[a])).product();
            let made = seen.lock().unwrap().iter().filter(|(n, ..)| *n == level).count() as u64;
            prop_assert!(made == count || !absent.is_empty() && made < count);
        }
    }

    #[test]
    fn a_box_that_is_rebuilt_in_parts_has_the_voxels_of_the_whole(
        shape in [1_u64..14, 1..14, 1..20],
        chunk in [1_u64..7, 1..7, 1..9],
        cells in [1_u64..5, 1..5, 1..9],
        method in method(),
        dtype in prop::sample::select(&DType::ALL[..]),
        seed: u64,
    ) {
        let from = Level { shape, chunk: [1; 3] };
        let to = Level { shape: next_shape(shape), chunk };
        let finer = Recorded {
            voxels: voxels(dtype, shape, 1, seed),
            whole: Region::whole(shape),
            size: dtype.size(),
            announced: Mutex::default(),
            read: Mutex::default(),
        };
        let coarser = naive(method, dtype, &finer.voxels, shape);
        let mut roll = dice(seed);
        let index = std::array::from_fn(|a| roll() % to.shape[a].div_ceil(chunk[a]));
        let whole = Region::whole(to.shape);
        let region = chunk_region(index, chunk).intersection(&whole).unwrap();
        let found = rebuilt(method, dtype, (from, to), (region, cells), &finer).unwrap();
        prop_assert_eq!(found, cut(&coarser, whole, region, dtype.size()));
        let read = finer.read.into_inner().unwrap();
        prop_assert_eq!(&finer.announced.into_inner().unwrap()[..], &read[1..]);
        let most = (0..3).fold(8, |most, a| most * cells[a].min(region.shape[a]));
        prop_assert!(read.iter().all(|region| region.voxels() <= most));
        let voxels: u64 = read.iter().map(Region::voxels).sum();
        let once = (0..3).map(|a| (2 * region.end()[a].unsigned_abs()).min(shape[a]) - 2 * region.start[a].unsigned_abs());
        prop_assert!(shape.contains(&1) || voxels == once.product::<u64>());
    }

    #[test]
    fn waiting_chunks_stay_within_the_estimate(
        shape in [1_u64..40, 1..40, 1..40],
        chunk in [1_u64..7, 1..7, 1..7],
        order in prop::sample::select(ORDERS.to_vec()),
        channels in 1_u64..3,
    ) {
        let (peak, bound) = waited(shape, chunk, order, channels);
        prop_assert!(peak <= bound, "{peak} waited, {bound} were foreseen");
    }
}

/// A level that is read back, with the boxes that were announced and read.
struct Recorded {
    voxels: Vec<u8>,
    whole: Region,
    size: usize,
    announced: Mutex<Vec<Region>>,
    read: Mutex<Vec<Region>>,
}

impl Finer for Recorded {
    fn announce(&self, region: Region) {
        self.announced.lock().unwrap().push(region);
    }

    fn read(&self, region: Region) -> Result<Vec<u8>> {
        self.read.lock().unwrap().push(region);
        Ok(cut(&self.voxels, self.whole, region, self.size))
    }
}

#[test]
fn read_chunks_are_decoded_once_while_a_level_is_rebuilt() {
    for (shard, chunk, expected) in [
        ([512; 3], [128; 3], [64, 64, 512]),
        ([512; 3], [64; 3], [32, 32, 512]),
        ([64; 3], [8; 3], [16, 16, 64]),
        ([64; 3], [64; 3], [32, 32, 64]),
        ([1, 512, 512], [1, 512, 512], [1, 256, 512]),
        ([30; 3], [10; 3], [15, 15, 30]),
    ] {
        let layout = crate::volume::Layout::new([2048; 3], 1, DType::U16);
        let options = CreateOptions {
            chunk,
            shard: Some(shard),
            ..CreateOptions::default()
        };
        let layout = output_layout(Path::new("a.zarr"), &layout, &options).unwrap();
        assert_eq!(rebuilt_at_once(&layout), expected, "{shard:?} {chunk:?}");
    }
}

/// Returns the maximum bytes that waited, and the estimate.
fn waited(shape: Shape, chunk: Shape, order: [usize; 3], channels: u64) -> (u64, u64) {
    let layout = crate::volume::Layout::new(shape, channels, DType::U16);
    let options = CreateOptions {
        chunk,
        shard: None,
        pyramid: Some(Pyramid {
            levels: None,
            method: Downsample::Mean,
        }),
        ..CreateOptions::default()
    };
    let levels = zarr::levels(&layout, &options).unwrap();
    let ladder = Ladder::new(Downsample::Mean, DType::U16, levels.clone());
    let counts = order.map(|a| 0..shape[a].div_ceil(levels[0].chunk[a]));
    for swept in indices(counts) {
        let mut index = [0; 3];
        for (axis, n) in order.into_iter().zip(swept) {
            index[axis] = n;
        }
        let region = chunk_region(index, levels[0].chunk)
            .intersection(&Region::whole(shape))
            .unwrap();
        let ones = vec![1; usize::try_from(region.voxels()).unwrap() * 2];
        let source = LevelSource {
            held: region,
            voxels: Some(&ones),
        };
        for channel in 0..channels {
            ladder
                .add(0, channel, region, source, &|_, _, _, _, _| Ok(()))
                .unwrap();
        }
    }
    let bound = pyramid_buffer_bytes(&layout, &options, order).unwrap();
    assert_eq!(bound, most_waiting(&levels, channels, DType::U16, order));
    (ladder.peak(), bound)
}

#[test]
fn one_layer_of_every_level_waits() {
    // Chunks of 8^3: 4 x 4 of level 1, 2 x 2 of level 2, and one of level 3.
    let (peak, bound) = waited([64; 3], [8; 3], [0, 1, 2], 1);
    assert_eq!(bound, (16 + 4 + 1) * 512 * 2);
    assert_eq!(peak, bound);
    // A flat volume is better traversed along a long axis. Its levels 2 and 3 have 4 and 2 planes.
    let (_, flat) = waited([16, 64, 64], [8; 3], [0, 1, 2], 1);
    assert_eq!(flat, (16 * 512 + 2 * 256 + 128) * 2);
    let (peak, swept) = waited([16, 64, 64], [8; 3], [2, 1, 0], 1);
    assert_eq!(swept, (4 * 512 + 2 * 256 + 128) * 2);
    assert_eq!(peak, swept);
}

#[test]
fn levels_end_where_one_chunk_holds_everything_or_at_the_requested_number() {
    let pyramid = |levels| {
        Some(Pyramid {
            levels,
            method: Downsample::Mean,
        })
    };
    let lengths =
        |shape, levels| shapes(shape, [32; 3], pyramid(levels)).map(|shapes| shapes.len());
    assert_eq!(lengths([1069, 512, 512], None).unwrap(), 7);
    assert_eq!(lengths([32, 1, 32], None).unwrap(), 1);
    assert_eq!(lengths([5, 1, 2], Some(4)).unwrap(), 4);
    assert_eq!(
        shapes([5, 1, 2], [32; 3], pyramid(Some(4))).unwrap(),
        [[5, 1, 2], [3, 1, 1], [2, 1, 1], [1, 1, 1]]
    );
    for wrong in [0, 5] {
        let error = lengths([5, 1, 2], Some(wrong)).unwrap_err();
        assert!(error.to_string().contains("1 to 4"), "{error}");
    }
}

#[test]
fn levels_of_a_file_have_their_voxels_and_their_place() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap());
    let (shape, channels, dtype) = ([21, 1, 37], 2, DType::I16);
    let fine = crate::geometry::Geometry::from_parts([2.0, 5.0, 0.5], [7.0, 8.0, 9.0]);
    let turned = crate::geometry::Geometry::from_lps(
        [[0.0, 0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 2.0]],
        [1.0, 2.0, 3.0],
    );
    for (n, (geometry, format, shard)) in [
        (fine, crate::volume::ZarrVersion::V3, Some([8, 8, 16])),
        (turned, crate::volume::ZarrVersion::V3, None),
        (fine, crate::volume::ZarrVersion::V2, None),
    ]
    .into_iter()
    .enumerate()
    {
        let layout = crate::volume::Layout::new(shape, channels, dtype).with_geometry(geometry);
        let all = voxels(dtype, shape, channels, 5);
        let source = MemoryVolume::zeros(layout.clone()).unwrap();
        crate::volume::VolumeMut::write(&source, Region::whole(shape), &all).unwrap();
        let options = CreateOptions {
            chunk: [4, 4, 8],
            shard,
            zarr: format,
            pyramid: Some(Pyramid {
                levels: Some(4),
                method: Downsample::Mean,
            }),
            ..CreateOptions::default()
        };
        let path = dir.path().join(format!("{n}.zarr"));
        let target = create(&path, &layout, &options).unwrap();
        target.write(Region::whole(shape), &all).unwrap();
        target.finish().unwrap();
        let mut expected: Vec<Vec<u8>> = all.chunks(all.len() / 2).map(<[u8]>::to_vec).collect();
        let (mut shape, mut place) = (shape, geometry);
        for level in 0..4 {
            let opened = OpenOptions {
                level,
                ..OpenOptions::default()
            };
            let volume = opened.open(&path).unwrap();
            assert_eq!(volume.layout().shape, shape);
            assert_eq!(volume.layout().geometry, place, "level {level}");
            assert_eq!(
                volume.read(Region::whole(shape)).unwrap().bytes(),
                expected.concat()
            );
            for channel in &mut expected {
                *channel = naive(Downsample::Mean, dtype, channel, shape);
            }
            shape = next_shape(shape);
            let [z, y, x] = place.spacing;
            let origin = place.moved_to([0.5, 0.0, 0.5]).origin();
            place = place.coarsened([2.0, 1.0, 2.0]);
            assert_eq!(
                (place.spacing, place.origin()),
                ([2.0 * z, y, 2.0 * x], origin)
            );
        }
        assert!(
            OpenOptions {
                level: 4,
                ..OpenOptions::default()
            }
            .open(&path)
            .is_err()
        );
    }
}

#[test]
fn an_empty_volume_leaves_no_file_at_any_level_and_flat_files_have_none() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap());
    let layout = crate::volume::Layout::new([16; 3], 1, DType::F32);
    let options = CreateOptions {
        chunk: [4; 3],
        shard: None,
        pyramid: Some(Pyramid {
            levels: None,
            method: Downsample::Mode,
        }),
        ..CreateOptions::default()
    };
    let path = dir.path().join("a.zarr");
    let target = create(&path, &layout, &options).unwrap();
    target
        .write(Region::whole([16; 3]), &vec![0; 4 * 4096])
        .unwrap();
    target.finish().unwrap();
    let held: HashMap<bool, usize> = (0..3)
        .map(|level| path.join(format!("{level}/c")).exists())
        .fold(HashMap::new(), |mut counts, found| {
            *counts.entry(found).or_default() += 1;
            counts
        });
    assert_eq!(held, HashMap::from([(false, 3)]));
    assert_eq!(open(&path).unwrap().layout().shape, [16; 3]);
    let refused = output_layout(dir.path().join("a.npy"), &layout, &options).unwrap_err();
    assert!(refused.to_string().contains("only Zarr"), "{refused}");
}
