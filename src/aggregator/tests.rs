use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::patch::Voxels;
use crate::region::{Shape, chunk_range, indices};
use crate::volume::{Layout, MemoryVolume};

mod boxes;
mod constants;
mod ends;
mod frontier;
mod many;
mod parts;
mod skips;

/// An output in memory that counts writes and can be made to fail.
#[derive(Debug)]
struct Output(Arc<Recording>);

#[derive(Debug)]
struct Recording {
    memory: MemoryVolume,
    /// The number of writes of each write chunk.
    writes: Mutex<HashMap<[u64; 3], u32>>,
    /// The boxes of all writes.
    regions: Mutex<Vec<Region>>,
    writes_until_failure: AtomicUsize,
}

impl Recording {
    fn new(layout: Layout) -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryVolume::zeros(layout).unwrap(),
            writes: Mutex::default(),
            regions: Mutex::default(),
            writes_until_failure: AtomicUsize::new(usize::MAX),
        })
    }
}

impl VolumeMut for Output {
    fn layout(&self) -> &Layout {
        VolumeMut::layout(&self.0.memory)
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        let left = self.0.writes_until_failure.fetch_sub(1, Ordering::SeqCst);
        if left == 0 {
            return Err(Error::Interrupted);
        }
        self.0.regions.lock().unwrap().push(region);
        if let Some([_, chunk @ ..]) = VolumeMut::layout(self).write_chunk {
            let mut writes = self.0.writes.lock().unwrap();
            indices(chunk_range(&region, chunk))
                .for_each(|index| *writes.entry(index).or_default() += 1);
        }
        self.0.memory.write_channels(channels, region, voxels)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

const BLENDS: [Blend; 7] = [
    Blend::Average,
    Blend::Hann,
    Blend::GAUSSIAN,
    Blend::Gaussian { sigma: 1.0 / 16.0 },
    Blend::NnUnet,
    Blend::Linear,
    Blend::Crop,
];

fn layout(shape: Shape, channels: u64, dtype: DType, chunk: Option<Shape>) -> Layout {
    let mut layout = Layout::new(shape, channels, dtype);
    layout.write_chunk = chunk.map(|[z, y, x]| [1, z, y, x]);
    layout
}

/// Returns pseudo-random voxels, the same for the same arguments.
fn noise(region: Region, channels: u64, salt: u64) -> Patch {
    let count = region.voxels() * channels;
    let value = |n: u64| {
        let mixed = (n + salt * 7_919).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        f32::from(u16::try_from(mixed % 60_000).unwrap()) / 7.0 - 3_000.0
    };
    Patch::new(
        region,
        channels,
        (0..count).map(value).collect::<Vec<f32>>(),
    )
    .unwrap()
}

fn part(of: &Patch, region: Region) -> Patch {
    let mut part = Patch::zeros(region, of.channels(), of.dtype()).unwrap();
    let size = of.dtype().size();
    copy_common(
        (of.bytes(), of.region()),
        (part.bytes_mut(), region),
        of.channels(),
        size,
    );
    part
}

/// Adds the result of `predict` for each patch, in the given order, and returns the output.
fn blend_in_order(
    grid: &Grid,
    blend: &Blend,
    output: &Arc<Recording>,
    channels: u64,
    order: impl IntoIterator<Item = u64>,
    predict: impl Fn(u64, Region) -> Patch,
) -> (Patch, AggregationStats) {
    let sink = Box::new(Output(Arc::clone(output)));
    let options = AggregatorOptions {
        average_integers: true,
        ..AggregatorOptions::new(blend.clone(), Reduce::Mean)
    };
    let aggregator = Aggregator::new(grid.clone(), channels, options, sink).unwrap();
    for index in order {
        aggregator
            .add(index, predict(index, grid.get(index).unwrap()))
            .unwrap();
    }
    let done = aggregator.finish().unwrap();
    (output.memory.to_patch(), done)
}

fn blended(
    grid: &Grid,
    blend: &Blend,
    channels: u64,
    predict: impl Fn(u64, Region) -> Patch,
) -> Patch {
    let output = Recording::new(layout(grid.volume(), channels, DType::F32, None));
    blend_in_order(grid, blend, &output, channels, 0..grid.len(), predict).0
}

#[test]
fn ones_stay_exactly_one_everywhere() {
    for length in 8..25 {
        for overlap in [0, 1, 2, 4, 6] {
            let grid = Grid::new([length, 9, 8], [8, 8, 5], [overlap, 3, 2]).unwrap();
            for blend in &BLENDS {
                let one = |_, region: Region| {
                    let count = usize::try_from(region.voxels()).unwrap();
                    Patch::new(region, 1, vec![1.0_f32; count]).unwrap()
                };
                let out = blended(&grid, blend, 1, one);
                let worst = out
                    .as_slice::<f32>()
                    .unwrap()
                    .iter()
                    .map(|v| (v - 1.0).abs())
                    .fold(0.0, f32::max);
                assert!(
                    worst < 1e-6,
                    "{blend:?}, {length} voxels, overlap {overlap}: off by {worst}"
                );
            }
        }
    }
}

#[test]
fn the_source_volume_is_reproduced() {
    let grids = [
        ([129, 20, 9], [128, 9, 9], [64, 4, 0]),
        ([97, 40, 17], [96, 16, 8], [48, 7, 7]),
        ([33, 34, 35], [16, 16, 16], [8, 8, 8]),
        ([5, 5, 5], [5, 5, 5], [0, 0, 0]),
        ([30, 1, 70], [7, 1, 69], [5, 0, 12]),
    ];
    for (volume, patch, overlap) in grids {
        let grid = Grid::new(volume, patch, overlap).unwrap();
        let source = noise(Region::whole(volume), 2, 1);
        for blend in &BLENDS {
            let out = blended(&grid, blend, 2, |_, region| part(&source, region));
            if *blend == Blend::Crop {
                assert_eq!(out, source);
            }
            for (out, source) in out
                .as_slice::<f32>()
                .unwrap()
                .iter()
                .zip(source.as_slice::<f32>().unwrap())
            {
                assert!(
                    (out - source).abs() <= 1e-6 * source.abs().max(1e-3),
                    "{blend:?}: {out} for {source}"
                );
            }
        }
    }
}

/// Returns the window's weight at voxel `n` of a patch of `length`, in a second, simple implementation.
fn weight(blend: &Blend, n: u64, length: u64) -> f64 {
    let (n, p) = (
        f64::from(u32::try_from(n).unwrap()),
        f64::from(u32::try_from(length).unwrap()),
    );
    match blend {
        Blend::Hann => (std::f64::consts::PI * (n + 1.0) / (p + 1.0)).sin().powi(2),
        Blend::Gaussian { sigma } => {
            (-(n - (p - 1.0) / 2.0).powi(2) / (2.0 * (p * sigma).powi(2))).exp()
        }
        Blend::NnUnet => (-(n - (p / 2.0).floor()).powi(2) / (2.0 * (p / 8.0).powi(2))).exp(),
        Blend::Linear => (n + 1.0).min(p - n),
        Blend::Average | Blend::Crop | Blend::Custom(_) => 1.0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn blending_equals_a_weighted_mean_over_all_patches(
        volume in [5_u64..20, 5_u64..20, 5_u64..20],
        patch in [2_u64..6, 2_u64..6, 2_u64..6],
        overlap in [0_u64..5, 0_u64..5, 0_u64..5],
        blend in prop::sample::select(vec![Blend::Average, Blend::Hann, Blend::GAUSSIAN, Blend::NnUnet, Blend::Linear]),
    ) {
        let overlap = std::array::from_fn(|a| overlap[a].min(patch[a] - 1));
        let grid = Grid::new(volume, patch, overlap).unwrap();
        let predict = |index, region| noise(region, 2, index);
        let out = blended(&grid, &blend, 2, predict).to_array::<f32>().unwrap();
        let shape = out.raw_dim();
        let (mut sums, mut weights) = (ndarray::Array4::<f64>::zeros(shape), ndarray::Array4::<f64>::zeros(shape));
        for (index, region) in (0..).zip(grid.iter()) {
            for ((c, z, y, x), &value) in predict(index, region).view::<f32>().unwrap().indexed_iter() {
                let w: f64 = [z, y, x].iter().zip(patch).map(|(&n, p)| weight(&blend, n as u64, p)).product();
                let [oz, oy, ox] = region.start.map(|n| usize::try_from(n).unwrap());
                sums[[c, z + oz, y + oy, x + ox]] += w * f64::from(value);
                weights[[c, z + oz, y + oy, x + ox]] += w;
            }
        }
        for (index, &value) in out.indexed_iter() {
            let expected = sums[index] / weights[index];
            // Up to 125 contributions of up to 6000, each rounded to f32 a few times.
            prop_assert!((f64::from(value) - expected).abs() < 1e-2, "{value} for {expected} at {index:?}");
        }
    }
}

#[test]
fn torchio_s_example_of_four_patches_is_reproduced() {
    let grid = Grid::new([1, 4, 4], [1, 3, 3], [0, 2, 2]).unwrap();
    let predict = |_, region: Region| {
        let value = match region.start {
            [_, 0, 0] => 0.0,
            [_, 0, _] => 2.0,
            [_, _, 0] => 4.0,
            _ => 6.0_f32,
        };
        Patch::new(region, 1, vec![value; 9]).unwrap()
    };
    let (t, u) = (2.0 / 3.0, 4.0 / 3.0);
    let tables: [(Blend, [f32; 16]); 3] = [
        (
            Blend::Crop,
            [
                0., 0., 2., 2., 0., 0., 2., 2., 4., 4., 6., 6., 4., 4., 6., 6.,
            ],
        ),
        (
            Blend::Average,
            [
                0., 1., 1., 2., 2., 3., 3., 4., 2., 3., 3., 4., 4., 5., 5., 6.,
            ],
        ),
        (
            Blend::Hann,
            [
                0.,
                t,
                u,
                2.,
                u,
                2.,
                2. + t,
                2. + u,
                2. + t,
                2. + u,
                4.,
                4. + t,
                4.,
                4. + t,
                4. + u,
                6.,
            ],
        ),
    ];
    for (blend, table) in tables {
        let out = blended(&grid, &blend, 1, predict);
        for (value, expected) in out.as_slice::<f32>().unwrap().iter().zip(table) {
            assert!(
                (value - expected).abs() < 1e-5,
                "{blend:?}: {value} for {expected}"
            );
        }
    }
}

#[test]
fn every_write_chunk_of_any_shape_is_written_once() {
    let grid = Grid::new([40, 33, 29], [16, 16, 12], [8, 5, 6]).unwrap();
    let source = noise(Region::whole(grid.volume()), 2, 3);
    for chunk in [
        [4, 4, 4],
        [8, 11, 6],
        [16, 16, 16],
        [24, 20, 32],
        [1, 33, 29],
        [64, 64, 64],
        [7, 5, 3],
    ] {
        for blend in &[Blend::Hann, Blend::Crop] {
            let output = Recording::new(layout(grid.volume(), 2, DType::F32, Some(chunk)));
            let all = 0..grid.len();
            let (out, done) = blend_in_order(&grid, blend, &output, 2, all, |_, region| {
                part(&source, region)
            });
            let chunks: u64 = (0..3)
                .map(|a| grid.volume()[a].div_ceil(chunk[a]))
                .product();
            let writes = output.writes.lock().unwrap();
            assert_eq!((writes.len() as u64, done.chunks_written), (chunks, chunks));
            assert!(writes.values().all(|&times| times == 1));
            drop(writes);
            let whole = out
                .as_slice::<f32>()
                .unwrap()
                .iter()
                .zip(source.as_slice::<f32>().unwrap());
            assert!(
                whole
                    .into_iter()
                    .all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1e-3))
            );
        }
    }
}

#[test]
fn flat_outputs_are_written_in_whole_rows_where_these_become_whole_on_the_way() {
    // The longest axis is the slowest, so the rows of the second volume are only completed at the end.
    for (volume, in_rows) in [([50, 33, 29], true), ([29, 33, 50], false)] {
        let grid = Grid::new(volume, [16; 3], [8; 3]).unwrap();
        let source = noise(Region::whole(volume), 2, 3);
        for blend in &[Blend::Hann, Blend::Crop] {
            let output = Recording::new(layout(volume, 2, DType::F32, None));
            let (out, done) = blend_in_order(&grid, blend, &output, 2, 0..grid.len(), |_, at| {
                part(&source, at)
            });
            let calls = output.regions.lock().unwrap();
            let voxels: u64 = calls.iter().map(Region::voxels).sum();
            assert_eq!(voxels, Region::whole(volume).voxels(), "each once");
            assert_eq!(calls.len() as u64, done.chunks_written);
            let mut rows = calls.iter().map(|region| region.shape[2]);
            assert_eq!(rows.all(|row| row == volume[2]), in_rows);
            let pairs = out.as_slice::<f32>().unwrap().iter();
            let mut pairs = pairs.zip(source.as_slice::<f32>().unwrap());
            assert!(pairs.all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1e-3)));
            let options = AggregatorOptions::new(blend.clone(), Reduce::Mean);
            let flat = layout(volume, 2, DType::F32, None);
            assert!(done.peak_live_bytes <= live_bytes(&grid, 2, &options, &flat, None));
        }
    }
}

#[test]
fn final_planes_of_a_flat_file_do_not_wait_for_patches_that_are_shifted_into_the_volume() {
    // Patches start at 352 and, shifted, at 368: 48 planes have sums of both, and the 16 before are final after the first.
    let volume = [432, 256, 64];
    let grid = Grid::new(volume, [64; 3], [32; 3]).unwrap();
    let output = Recording::new(layout(volume, 1, DType::F32, None));
    let source = noise(Region::whole(volume), 1, 3);
    let predict = |_, at| part(&source, at);
    let (_, done) = blend_in_order(&grid, &Blend::Hann, &output, 1, 0..grid.len(), predict);
    let plane = 256 * 64 * 4;
    // Besides, the last 16 planes of a row of patches, and final planes of one step, are in memory.
    let most = 48 * plane + 16 * 64 * 64 * 4 + 16 * 32 * 64 * 4;
    let peak = done.peak_live_bytes;
    assert!(peak <= most, "{peak} of {most}");
}

#[test]
fn a_prediction_counts_where_its_patch_lies_whatever_region_it_names() {
    let grid = Grid::new([20, 21, 22], [8; 3], [4; 3]).unwrap();
    for (halo, scale) in [([0; 3], 1), ([1, 2, 0], 1), ([0; 3], 2)] {
        let output = match scale {
            1 => grid.output(halo, scale).unwrap(),
            _ => Grid::new([10, 11, 11], [4; 3], [2; 3]).unwrap(),
        };
        for blend in &BLENDS {
            let right = blended(&output, blend, 2, |index, at| noise(at, 2, index));
            let elsewhere = blended(&output, blend, 2, |index, at| {
                noise(at, 2, index).moved_to(at.start.map(|n| scale_start(n, scale)))
            });
            assert_eq!(right.bytes(), elsewhere.bytes(), "{blend} {halo:?} {scale}");
        }
    }
}

/// The first voxel of a prediction by the voxels of the volume, one of a halo too early.
fn scale_start(start: i64, scale: u64) -> i64 {
    start * i64::try_from(scale).unwrap() - 1
}

#[test]
fn the_order_of_arrival_and_the_threads_change_no_bit() {
    let grid = Grid::new([30, 31, 20], [12, 12, 12], [7, 5, 6]).unwrap();
    let n = grid.len();
    let predict = |index, region| noise(region, 1, index);
    for blend in &BLENDS {
        let in_order = blended(&grid, blend, 1, predict);
        let orders: [Vec<u64>; 2] = [
            (0..n).rev().collect(),
            (0..n).map(|i| (i * 7 + 3) % n).collect(),
        ];
        assert!(!n.is_multiple_of(7), "7 must step through all patches");
        for order in orders {
            let output = Recording::new(layout(grid.volume(), 1, DType::F32, Some([8; 3])));
            let (out, _) = blend_in_order(&grid, blend, &output, 1, order, predict);
            assert_eq!(out, in_order, "{blend:?}");
        }
        let output = Recording::new(layout(grid.volume(), 1, DType::F32, Some([8; 3])));
        let sink = Box::new(Output(Arc::clone(&output)));
        let aggregator = Aggregator::new(
            grid.clone(),
            1,
            AggregatorOptions::new(blend.clone(), Reduce::Mean),
            sink,
        )
        .unwrap();
        thread::scope(|scope| {
            for worker in 0..4 {
                let (aggregator, grid) = (&aggregator, &grid);
                scope.spawn(move || {
                    for index in (worker..n).step_by(4) {
                        aggregator
                            .add(index, predict(index, grid.get(index).unwrap()))
                            .unwrap();
                    }
                });
            }
        });
        aggregator.finish().unwrap();
        assert_eq!(output.memory.to_patch(), in_order, "{blend:?}");
    }
}

#[test]
fn wrong_patches_are_refused() {
    let grid = Grid::new([8, 8, 8], [4, 4, 4], [2, 2, 2]).unwrap();
    let output = Recording::new(layout([8; 3], 1, DType::F32, None));
    let sink = || Box::new(Output(Arc::clone(&output)));
    let aggregator = Aggregator::new(
        grid.clone(),
        1,
        AggregatorOptions::new(Blend::Hann, Reduce::Mean),
        sink(),
    )
    .unwrap();
    let patch = |shape, channels| Patch::zeros(Region::whole(shape), channels, DType::F32).unwrap();
    aggregator.add(5, patch([4; 3], 1)).unwrap();
    assert!(matches!(
        aggregator.add(5, patch([4; 3], 1)),
        Err(Error::DuplicatePatch { index: 5, .. })
    ));
    assert!(matches!(
        aggregator.add(6, patch([4, 4, 3], 1)),
        Err(Error::PredictionShape { index: 6, .. })
    ));
    assert!(matches!(
        aggregator.add(6, patch([4; 3], 2)),
        Err(Error::PredictionShape { channels: 2, .. })
    ));
    assert!(matches!(
        aggregator.add(27, patch([4; 3], 1)),
        Err(Error::IndexOutOfRange { .. })
    ));
    let error = aggregator.finish().unwrap_err();
    let Error::MissingPatches {
        missing,
        total,
        first,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(
        (missing, total, first),
        (26, 27, vec![0, 1, 2, 3, 4, 6, 7, 8])
    );
    let other = Grid::new([9, 8, 8], [4, 4, 4], [2, 2, 2]).unwrap();
    assert!(
        Aggregator::new(
            other,
            1,
            AggregatorOptions::new(Blend::Hann, Reduce::Mean),
            sink()
        )
        .is_err()
    );
    assert!(
        Aggregator::new(
            grid.clone(),
            2,
            AggregatorOptions::new(Blend::Hann, Reduce::Mean),
            sink()
        )
        .is_err()
    );
    assert!(
        Aggregator::new(
            grid,
            2,
            AggregatorOptions::new(Blend::Hann, Reduce::Argmax),
            sink()
        )
        .is_ok()
    );
}

#[test]
fn an_output_that_fails_is_noticed_by_the_next_call() {
    let grid = Grid::new([24, 8, 8], [8, 8, 8], [4, 0, 0]).unwrap();
    let output = Recording::new(layout([24, 8, 8], 1, DType::F32, Some([8; 3])));
    output.writes_until_failure.store(1, Ordering::SeqCst);
    let sink = Box::new(Output(Arc::clone(&output)));
    let aggregator = Aggregator::new(
        grid.clone(),
        1,
        AggregatorOptions::new(Blend::Average, Reduce::Mean),
        sink,
    )
    .unwrap();
    let added = (0..grid.len())
        .map(|index| aggregator.add(index, noise(grid.get(index).unwrap(), 1, index)));
    assert!(added.collect::<Result<Vec<_>>>().is_err());
}

#[test]
fn integers_average_without_wrapping_and_pass_through_crop_untouched() {
    let grid = Grid::new([20, 9, 9], [8, 6, 6], [6, 3, 3]).unwrap();
    for blend in &BLENDS {
        let output = Recording::new(layout(grid.volume(), 1, DType::U8, None));
        let constant = |_, region: Region| Patch::new(region, 1, vec![200_u8; 8 * 36]).unwrap();
        let (out, _) = blend_in_order(&grid, blend, &output, 1, 0..grid.len(), constant);
        assert!(
            out.as_slice::<u8>().unwrap().iter().all(|&v| v == 200),
            "{blend:?}"
        );
    }
    let output = Recording::new(layout(grid.volume(), 1, DType::I64, Some([5; 3])));
    let big = |region: Region| -> Patch {
        let label = |n: u64| i64::MAX - i64::try_from(n).unwrap();
        Patch::new(
            region,
            1,
            (0..region.voxels()).map(label).collect::<Vec<_>>(),
        )
        .unwrap()
    };
    let source = big(Region::whole(grid.volume()));
    let all = 0..grid.len();
    let (out, _) = blend_in_order(&grid, &Blend::Crop, &output, 1, all, |_, region| {
        part(&source, region)
    });
    assert_eq!(out, source);
}

#[test]
fn class_numbers_are_averaged_only_on_request_or_where_nothing_overlaps() {
    let apart = Grid::new([8, 6, 6], [4, 6, 6], [0, 0, 0]).unwrap();
    let lapping = Grid::new([8, 6, 6], [4, 6, 6], [2, 0, 0]).unwrap();
    let add = |grid: &Grid, blend: &Blend, reduce: Reduce, average_integers, voxels: Voxels| {
        let output = Recording::new(layout(grid.volume(), 1, DType::I64, None));
        let options = AggregatorOptions {
            average_integers,
            ..AggregatorOptions::new(blend.clone(), reduce)
        };
        let sink = Box::new(Output(output));
        let aggregator = Aggregator::new(grid.clone(), 1, options, sink).unwrap();
        let region = grid.get(0).unwrap();
        aggregator.add(0, Patch::new(region, 1, voxels).unwrap())
    };
    let ones = |dtype| {
        let patch = Patch::new(Region::whole([4, 6, 6]), 1, vec![1_u8; 144]).unwrap();
        patch.converted(dtype).into_voxels()
    };
    for dtype in DType::ALL {
        for blend in &BLENDS {
            let is_class = dtype.is_integer() && *blend != Blend::Crop;
            let refused = add(&lapping, blend, Reduce::Mean, false, ones(dtype));
            assert_eq!(refused.is_err(), is_class, "{dtype} {blend:?}");
            if let Err(error) = refused {
                let text = error.to_string();
                assert!(
                    text.contains("crop") && text.contains(dtype.name()),
                    "{text}"
                );
            }
            add(&lapping, blend, Reduce::Mean, true, ones(dtype)).unwrap();
            add(&lapping, blend, Reduce::Argmax, false, ones(dtype)).unwrap();
            add(&apart, blend, Reduce::Mean, false, ones(dtype)).unwrap();
        }
    }
    // f32 cannot represent this number, so a sum cannot either.
    let large = |n: i64| Voxels::from(vec![n; 144]);
    let refused = add(
        &apart,
        &Blend::Hann,
        Reduce::Mean,
        false,
        large((1 << 24) + 1),
    );
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("16777217") && text.contains("crop"), "{text}");
    add(&apart, &Blend::Hann, Reduce::Mean, false, large(1 << 24)).unwrap();
    add(
        &apart,
        &Blend::Crop,
        Reduce::Mean,
        false,
        large((1 << 24) + 1),
    )
    .unwrap();
}

#[test]
fn a_fill_that_the_output_does_not_have_is_refused() {
    let grid = Grid::new([8, 6, 6], [4, 6, 6], [0, 0, 0]).unwrap();
    let made = |fill, dtype| {
        let output = Recording::new(layout(grid.volume(), 1, dtype, None));
        let options = AggregatorOptions {
            fill,
            ..AggregatorOptions::new(Blend::Crop, Reduce::Mean)
        };
        Aggregator::new(grid.clone(), 1, options, Box::new(Output(output))).map(drop)
    };
    for (fill, dtype) in [(-1.0, DType::U8), (0.5, DType::I16), (f64::NAN, DType::I32)] {
        let text = made(fill, dtype).unwrap_err().to_string();
        assert!(
            text.contains("fill") && text.contains(dtype.name()),
            "{text}"
        );
    }
    for (fill, dtype) in [(-1.0, DType::I8), (0.1, DType::F32), (f64::NAN, DType::F16)] {
        made(fill, dtype).unwrap();
    }
}

#[test]
fn values_that_the_output_does_not_reach_are_refused_or_counted() {
    let grid = Grid::new([8, 6, 6], [4, 6, 6], [2, 0, 0]).unwrap();
    for (blend, expected) in [(Blend::Crop, 3 * 36), (Blend::Average, 3 * 36)] {
        let output = Recording::new(layout(grid.volume(), 1, DType::U8, None));
        let values = |_, region: Region| {
            let all = [-1.0, 300.0, 255.4, 0.2, 7.0, 8.0, -0.6, 9.0];
            let plane = |z: i64| all[usize::try_from(z).unwrap()];
            let planes = (region.start[0]..region.end()[0]).flat_map(|z| vec![plane(z); 36]);
            Patch::new(region, 1, planes.collect::<Vec<f32>>()).unwrap()
        };
        let made = |clip| {
            let options = AggregatorOptions {
                clip,
                ..AggregatorOptions::new(blend.clone(), Reduce::Mean)
            };
            let sink = Box::new(Output(Arc::clone(&output)));
            let aggregator = Aggregator::new(grid.clone(), 1, options, sink).unwrap();
            for (index, region) in (0..).zip(grid.iter()) {
                aggregator.add(index, values(index, region))?;
            }
            aggregator.finish()
        };
        match made(false).unwrap_err() {
            Error::OutputRange {
                channel,
                voxel,
                value,
                dtype,
                ..
            } => {
                assert_eq!((channel, voxel, dtype), (0, [0; 3], DType::U8));
                assert_eq!(value, "-1");
            }
            error => panic!("{error}"),
        }
        let done = made(true).unwrap();
        assert_eq!(done.clipped_values, expected, "{blend:?}");
    }
}

#[test]
fn channels_become_classes_as_they_are_blended() {
    let grid = Grid::new([9, 9, 9], [4, 4, 4], [2, 2, 2]).unwrap();
    let scores = noise(Region::whole([9; 3]), 3, 5);
    let output = Recording::new(layout([9; 3], 1, DType::U8, Some([4; 3])));
    let sink = Box::new(Output(Arc::clone(&output)));
    let aggregator = Aggregator::new(
        grid.clone(),
        3,
        AggregatorOptions::new(Blend::Crop, Reduce::Argmax),
        sink,
    )
    .unwrap();
    for (index, region) in (0..).zip(grid.iter()) {
        aggregator.add(index, part(&scores, region)).unwrap();
    }
    aggregator.finish().unwrap();
    let (scores, classes) = (
        scores.to_array::<f32>().unwrap(),
        output.memory.to_patch().to_array::<u8>().unwrap(),
    );
    for ((_, z, y, x), &class) in classes.indexed_iter() {
        let best = (0..3_u8).max_by(|&a, &b| {
            let at = |c: u8| scores[[usize::from(c), z, y, x]];
            at(a).total_cmp(&at(b)).then(b.cmp(&a))
        });
        assert_eq!(Some(class), best);
    }
}

#[test]
fn an_ordered_run_holds_no_more_than_was_announced() {
    let cases = [
        ([120, 40, 48], [32, 16, 16], [16, 8, 8], [16, 16, 16]),
        ([120, 40, 48], [32, 16, 16], [16, 8, 8], [64, 32, 32]),
        ([33, 100, 40], [32, 32, 32], [16, 16, 16], [32, 32, 32]),
        ([64, 64, 200], [32, 32, 32], [0, 0, 0], [40, 24, 56]),
    ];
    for (volume, patch, overlap, chunk) in cases {
        let grid = Grid::new(volume, patch, overlap).unwrap();
        for blend in &[Blend::Hann, Blend::Crop] {
            let layout = layout(volume, 1, DType::F32, Some(chunk));
            let output = Recording::new(layout.clone());
            let (_, done) = blend_in_order(&grid, blend, &output, 1, 0..grid.len(), |i, region| {
                noise(region, 1, i)
            });
            let options = AggregatorOptions::new(blend.clone(), Reduce::Mean);
            let announced = live_bytes(&grid, 1, &options, &layout, None);
            assert!(
                done.peak_live_bytes <= announced && announced <= 2 * done.peak_live_bytes,
                "{volume:?} {blend:?} {chunk:?}: {} of {announced}",
                done.peak_live_bytes
            );
        }
    }
}

#[test]
fn estimates_are_immediate_and_follow_the_formula() {
    let grid = Grid::new([4096; 3], [128; 3], [64; 3]).unwrap();
    let layout = layout(grid.volume(), 1, DType::U8, Some([256; 3]));
    let began = std::time::Instant::now();
    let options = AggregatorOptions::new(Blend::Hann, Reduce::Mean);
    let bytes = live_bytes(&grid, 1, &options, &layout, None);
    assert!(began.elapsed().as_secs() < 1);
    // A half-finished layer of chunks, and the front of the sums, which is exact here: all cuts are at multiples of 64.
    assert!(bytes > grid.frontier() * 4 && bytes < grid.frontier() * 4 + 260 * 4096 * 4096);
    let flat = Layout {
        write_chunk: None,
        ..layout
    };
    // In a flat file, at most the rows that the patches of one row have begun are waiting.
    let bands = live_bytes(&grid, 1, &options, &flat, None) - grid.frontier() * 4;
    assert!((1..=128 * 128 * 4096).contains(&bands), "{bands}");
}
