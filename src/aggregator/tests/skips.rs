//! Patches that do not vote, windows that are not products, and voxels that no patch covers.

use super::*;
use crate::grid::GridOptions;

fn options(blend: &Blend) -> AggregatorOptions {
    AggregatorOptions {
        fill: -7.0,
        ..AggregatorOptions::new(blend.clone(), Reduce::Mean)
    }
}

/// Returns a window that is not a product: a cone with a hollow.
fn cone(patch: Shape) -> Blend {
    let [z, y, x] = patch;
    let weight = |n: u64| {
        let at = [n / (y * x), n / x % y, n % x];
        let distance: u64 = (0..3).map(|a| (2 * at[a] + 1).abs_diff(patch[a])).sum();
        f32::from(u16::try_from(60 - distance).unwrap()) + f32::from(u8::from(distance < 3)) * 20.0
    };
    Blend::Custom(Window::new(patch, (0..z * y * x).map(weight).collect()).unwrap())
}

/// Returns the blend of the `voted` patches at each voxel, by three loops; `None` where no patch voted.
fn brute_force(
    grid: &Grid,
    blend: &Blend,
    voted: &dyn Fn(u64) -> Option<Patch>,
) -> Vec<Option<f64>> {
    let volume = Region::whole(grid.volume());
    let [_, ny, nx] = volume.shape;
    let mut sums = vec![(0.0, 0.0); usize::try_from(volume.voxels()).unwrap()];
    for (index, region) in (0..).zip(grid.iter()) {
        let Some(patch) = voted(index) else { continue };
        let values: &[f32] = patch.as_slice().unwrap();
        let [pz, py, px] = region.shape;
        for (n, &value) in (0_u64..).zip(values) {
            let at = [n / (py * px), n / px % py, n % px];
            let voxel: [i64; 3] =
                std::array::from_fn(|a| region.start[a] + i64::try_from(at[a]).unwrap());
            if !volume.contains(&Region::new(voxel, [1; 3])) {
                continue;
            }
            let w = match blend {
                Blend::Custom(window) => window_weight(window, usize::try_from(n).unwrap()),
                blend => (0..3)
                    .map(|a| weight(blend, at[a], [pz, py, px][a]))
                    .product(),
            };
            let [z, y, x] = voxel.map(i64::unsigned_abs);
            let (sum, total) = &mut sums[usize::try_from((z * ny + y) * nx + x).unwrap()];
            *sum += w * f64::from(value);
            *total += w;
        }
    }
    let mean = |(sum, weight): (f64, f64)| (weight > 0.0).then(|| sum / weight);
    sums.into_iter().map(mean).collect()
}

fn window_weight(window: &Window, voxel: usize) -> f64 {
    f64::from(window.weights()[voxel])
}

fn compare(out: &Patch, expected: &[Option<f64>], what: &str) -> u64 {
    let mut uncovered = 0;
    for (n, (value, expected)) in out
        .as_slice::<f32>()
        .unwrap()
        .iter()
        .zip(expected)
        .enumerate()
    {
        if let Some(expected) = expected {
            let off = (f64::from(*value) - expected).abs();
            assert!(
                off <= 2e-6 * 6_000.0,
                "{what}: {value} for {expected} at {n}"
            );
        } else {
            uncovered += 1;
            assert_eq!(*value, -7.0, "{what}: at {n}");
        }
    }
    uncovered
}

fn grids() -> Vec<Grid> {
    let hanging = GridOptions {
        margin: [2, 0, 1],
        placement: crate::grid::GridPlacement::Padded,
        fit: true,
    };
    vec![
        Grid::new([24, 21, 19], [8, 8, 7], [4, 3, 3]).unwrap(),
        Grid::with_options([24, 21, 19], [8, 8, 7], [4, 3, 3], &hanging).unwrap(),
        Grid::new([40, 9, 9], [20, 9, 9], [4, 0, 0]).unwrap(),
    ]
}

fn run(
    grid: &Grid,
    options: AggregatorOptions,
    chunk: Option<Shape>,
    skipped: &dyn Fn(u64) -> bool,
) -> (Patch, AggregationStats) {
    let output = Recording::new(layout(grid.volume(), 1, DType::F32, chunk));
    let sink = Box::new(Output(Arc::clone(&output)));
    let aggregator = Aggregator::new(grid.clone(), 1, options, sink).unwrap();
    // Skips are interspersed, late and early.
    for index in (0..grid.len()).rev() {
        if skipped(index) {
            aggregator.skip(index).unwrap();
        }
    }
    for index in (0..grid.len()).filter(|&index| !skipped(index)) {
        let patch = noise(grid.get(index).unwrap(), 1, index);
        aggregator.add(index, patch).unwrap();
    }
    let done = aggregator.finish().unwrap();
    if let Some(chunk) = chunk {
        let writes = output.writes.lock().unwrap();
        let chunks: u64 = (0..3)
            .map(|a| grid.volume()[a].div_ceil(chunk[a]))
            .product();
        assert_eq!(writes.len() as u64, chunks);
        assert!(writes.values().all(|&times| times == 1));
    }
    (output.memory.to_patch(), done)
}

#[test]
fn windows_that_are_not_products_equal_the_plain_mean() {
    for grid in grids() {
        let blend = cone(grid.patch());
        let expected = brute_force(&grid, &blend, &|index| {
            Some(noise(grid.get(index).unwrap(), 1, index))
        });
        let (out, done) = run(&grid, options(&blend), Some([8; 3]), &|_| false);
        assert_eq!(compare(&out, &expected, "cone"), 0);
        assert_eq!(done.uncovered_voxels, 0);
    }
}

#[test]
fn those_that_vote_share_the_voxels_and_the_others_are_counted() {
    for grid in grids() {
        let n = grid.len();
        let first_layer = n / grid.axes()[grid.order()[0]].starts.len() as u64;
        let skips: [(&str, &dyn Fn(u64) -> bool); 6] = [
            ("an interior one", &|index| index == n / 2),
            ("a corner", &|index| index == 0),
            ("a layer", &|index| index < first_layer),
            ("all but one", &|index| index != 1),
            ("all", &|_| true),
            ("every third", &|index| index.is_multiple_of(3)),
        ];
        for (what, skipped) in skips {
            for blend in [
                Blend::Average,
                Blend::Hann,
                Blend::GAUSSIAN,
                cone(grid.patch()),
            ] {
                let expected = brute_force(&grid, &blend, &|index| {
                    (!skipped(index)).then(|| noise(grid.get(index).unwrap(), 1, index))
                });
                for chunk in [None, Some([7, 8, 5])] {
                    let (out, done) = run(&grid, options(&blend), chunk, skipped);
                    let uncovered = compare(&out, &expected, what);
                    assert_eq!(done.uncovered_voxels, uncovered, "{what}");
                    let count = (0..n).filter(|&index| skipped(index)).count() as u64;
                    assert_eq!((done.skipped, done.patches), (count, n - count));
                }
            }
        }
    }
}

#[test]
fn a_skipped_patch_may_vote_for_a_constant() {
    for grid in grids() {
        for blend in [Blend::Hann, cone(grid.patch()), Blend::Crop] {
            let skipped = |index: u64| !index.is_multiple_of(4);
            let votes = |index: u64| {
                let region = grid.get(index).unwrap();
                if skipped(index) {
                    let count = usize::try_from(region.voxels()).unwrap();
                    Patch::new(region, 1, vec![-50.0_f32; count]).unwrap()
                } else {
                    noise(region, 1, index)
                }
            };
            let voting = AggregatorOptions {
                skipped: Skipped::Vote(vec![-50.0]),
                ..options(&blend)
            };
            let (out, done) = run(&grid, voting, Some([8; 3]), &skipped);
            assert_eq!(done.uncovered_voxels, 0);
            if blend == Blend::Crop {
                let output = Recording::new(layout(grid.volume(), 1, DType::F32, None));
                let all = 0..grid.len();
                let (expected, _) =
                    blend_in_order(&grid, &blend, &output, 1, all, |index, _| votes(index));
                assert_eq!(out, expected);
            } else {
                let expected = brute_force(&grid, &blend, &|index| Some(votes(index)));
                compare(&out, &expected, "vote");
            }
        }
    }
}

#[test]
fn a_partial_result_has_the_patches_that_came_and_says_what_is_missing() {
    let grid = Grid::new([24, 21, 19], [8, 8, 7], [4, 3, 3]).unwrap();
    for blend in [Blend::Hann, Blend::Crop] {
        let came = |index: u64| index % 5 != 2 && index < grid.len() / 2;
        let output = Recording::new(layout(grid.volume(), 1, DType::F32, Some([8; 3])));
        let sink = Box::new(Output(Arc::clone(&output)));
        let aggregator = Aggregator::new(grid.clone(), 1, options(&blend), sink).unwrap();
        for index in (0..grid.len()).filter(|&index| came(index)) {
            let patch = noise(grid.get(index).unwrap(), 1, index);
            aggregator.add(index, patch).unwrap();
        }
        let done = aggregator.finish_partial().unwrap();
        assert!(done.uncovered_voxels > 0);
        assert_eq!(done.patches + done.skipped, grid.len());
        let (whole, _) = run(&grid, options(&blend), None, &|index| !came(index));
        assert_eq!(output.memory.to_patch(), whole, "{blend:?}");
    }
}

#[test]
fn voxels_beyond_all_predictions_get_the_fill_value_and_are_counted() {
    // The grid of a model with unpadded convolutions.
    let grid = Grid::new([60, 40, 22], [24, 20, 22], [12, 10, 10]).unwrap();
    let grid = grid.output([4, 3, 5], 1).unwrap();
    let inner = Region::new([4, 3, 5], [52, 34, 12]);
    let source = noise(Region::whole(grid.volume()), 1, 3);
    for blend in [Blend::Hann, Blend::Crop, cone(grid.patch())] {
        for chunk in [None, Some([16, 16, 16])] {
            let output = Recording::new(layout(grid.volume(), 1, DType::F32, chunk));
            let sink = Box::new(Output(Arc::clone(&output)));
            let aggregator = Aggregator::new(grid.clone(), 1, options(&blend), sink).unwrap();
            for (index, region) in (0..).zip(grid.iter()) {
                aggregator.add(index, part(&source, region)).unwrap();
            }
            let done = aggregator.finish().unwrap();
            assert_eq!(done.uncovered_voxels, 60 * 40 * 22 - inner.voxels());
            let out = output.memory.to_patch();
            let pairs = out
                .as_slice::<f32>()
                .unwrap()
                .iter()
                .zip(source.as_slice::<f32>().unwrap());
            for (n, (out, source)) in (0_i64..).zip(pairs) {
                let voxel = Region::new([n / (40 * 22), n / 22 % 40, n % 22], [1; 3]);
                if inner.contains(&voxel) {
                    assert!(
                        (out - source).abs() <= 2e-6 * source.abs().max(1e-3),
                        "{blend:?}"
                    );
                } else {
                    assert_eq!(*out, -7.0, "{blend:?} at {voxel}");
                }
            }
        }
    }
}

#[test]
fn a_prediction_that_is_not_finite_is_named_left_out_or_kept() {
    let grid = Grid::new([16, 12, 12], [8, 8, 8], [4, 4, 4]).unwrap();
    let spoilt = |index: u64| {
        let mut patch = noise(grid.get(index).unwrap(), 1, index);
        if index == 5 {
            patch.as_mut_slice::<f32>().unwrap()[8 * 8 * 2 + 8 * 3 + 4] = f32::NAN;
        }
        patch
    };
    for blend in [Blend::Hann, Blend::Crop] {
        let run = |non_finite| {
            let output = Recording::new(layout(grid.volume(), 1, DType::F32, Some([8; 3])));
            let sink = Box::new(Output(Arc::clone(&output)));
            let options = AggregatorOptions {
                non_finite,
                ..options(&blend)
            };
            let aggregator = Aggregator::new(grid.clone(), 1, options, sink).unwrap();
            for index in 0..grid.len() {
                aggregator.add(index, spoilt(index))?;
            }
            aggregator.finish()?;
            Ok(output.memory.to_patch())
        };
        let Err(Error::NotFinite { index, at, .. }) = run(NonFinite::Refuse) else {
            panic!("NaN was taken");
        };
        assert_eq!((index, at), (5, [0, 2, 3, 4]));
        let (left_out, kept) = (
            run(NonFinite::LeaveOut).unwrap(),
            run(NonFinite::Keep).unwrap(),
        );
        let (without, _) = super::skips::run(&grid, options(&blend), None, &|index| index == 5);
        assert_eq!(left_out, without);
        let touched = grid.get(5).unwrap();
        let (healthy, _) = super::skips::run(&grid, options(&blend), None, &|_| false);
        let pairs = kept
            .as_slice::<f32>()
            .unwrap()
            .iter()
            .zip(healthy.as_slice::<f32>().unwrap());
        let mut nan = 0;
        for (n, (kept, healthy)) in (0_i64..).zip(pairs) {
            let voxel = Region::new([n / 144, n / 12 % 12, n % 12], [1; 3]);
            nan += u32::from(kept.is_nan());
            assert!(kept == healthy || touched.contains(&voxel));
        }
        assert_eq!(nan, 1);
    }
}

#[test]
fn narrow_sums_stay_close_and_do_not_overflow() {
    let grid = Grid::new([40, 33, 29], [16, 16, 12], [8, 5, 6]).unwrap();
    for (accumulator, tolerance) in [(Accumulator::F16, 4e-3), (Accumulator::BF16, 3e-2)] {
        let run = |value: &dyn Fn(u64, Region) -> Patch| {
            let output = Recording::new(layout(grid.volume(), 1, DType::F32, Some([16; 3])));
            let sink = Box::new(Output(Arc::clone(&output)));
            let options = AggregatorOptions {
                accumulator,
                all_vote: true,
                ..options(&Blend::Hann)
            };
            let aggregator = Aggregator::new(grid.clone(), 1, options, sink).unwrap();
            for (index, region) in (0..).zip(grid.iter()) {
                aggregator.add(index, value(index, region)).unwrap();
            }
            let done = aggregator.finish().unwrap();
            (output.memory.to_patch(), done.peak_live_bytes)
        };
        let large = |_, region: Region| {
            let count = usize::try_from(region.voxels()).unwrap();
            Patch::new(region, 1, vec![60_000.0_f32; count]).unwrap()
        };
        let (out, _) = run(&large);
        assert!(
            out.as_slice::<f32>()
                .unwrap()
                .iter()
                .all(|v| (v / 60_000.0 - 1.0).abs() < tolerance)
        );
        let source = noise(Region::whole(grid.volume()), 1, 9);
        let (out, narrow) = run(&|_, region| part(&source, region));
        for (out, source) in out
            .as_slice::<f32>()
            .unwrap()
            .iter()
            .zip(source.as_slice::<f32>().unwrap())
        {
            assert!(
                (out - source).abs() <= tolerance * source.abs().max(1.0),
                "{out} for {source}"
            );
        }
        let wide = {
            let output = Recording::new(layout(grid.volume(), 1, DType::F32, Some([16; 3])));
            let all = 0..grid.len();
            blend_in_order(&grid, &Blend::Hann, &output, 1, all, |_, region| {
                part(&source, region)
            })
            .1
        };
        assert!(narrow < wide.peak_live_bytes);
        let solid = AggregatorOptions {
            accumulator,
            ..options(&cone(grid.patch()))
        };
        let output = Recording::new(layout(grid.volume(), 1, DType::F32, None));
        let refused = Aggregator::new(grid.clone(), 1, solid, Box::new(Output(output)));
        assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
    }
}
