//! Predictions of a run, whose values are checked while they are added.

use super::*;
use crate::aggregator::twin::TwinRandom;
use crate::grid::GridOptions;

/// Values at the limits of the types of sums and outputs.
const VALUES: [f64; 10] = [
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    65_519.999_999_9,
    -65_520.0,
    3.39e38,
    3.402_823_4e38,
    -1e39,
    7.0,
    0.0,
];

fn grid(random: &mut TwinRandom) -> Grid {
    let options = GridOptions {
        margin: std::array::from_fn(|_| random.below(2)),
        ..GridOptions::default()
    };
    Grid::with_options([40, 35, 37], [16, 17, 18], [8, 9, 6], &options).unwrap()
}

/// Returns predictions, one of which has a value at a random voxel.
fn predictions(random: &mut TwinRandom, grid: &Grid) -> Vec<Patch> {
    let dtype = random.pick(&[DType::F16, DType::F32, DType::F32, DType::F64]);
    let regions = (0..).zip(grid.iter());
    let mut all: Vec<Patch> = regions
        .map(|(index, region)| noise(region, 2, index).converted(dtype))
        .collect();
    let patch = usize::try_from(random.below(all.len() as u64)).unwrap();
    let value = random.pick(&VALUES);
    with_element!(dtype, T => {
        let voxels: &mut [T] = bytemuck::cast_slice_mut(all[patch].bytes_mut());
        let at = usize::try_from(random.below(voxels.len() as u64)).unwrap();
        voxels[at] = T::from_f64(value);
    });
    all
}

#[test]
fn values_checked_while_they_are_added_are_those_checked_before() {
    let mut refused = 0;
    for seed in 0..400 {
        let random = &mut TwinRandom::new(seed);
        let grid = grid(random);
        let all = predictions(random, &grid);
        let all_vote = !random.one_in(3);
        let reduce = random.pick(&[Reduce::Mean, Reduce::Argmax, Reduce::Softmax]);
        let output = match reduce {
            Reduce::Argmax => DType::U8,
            _ => random.pick(&[DType::F32, DType::F16]),
        };
        let accumulators = [Accumulator::F32, Accumulator::F16, Accumulator::BF16];
        let options = AggregatorOptions {
            all_vote,
            clip: true,
            accumulator: random.pick(&accumulators),
            non_finite: random.pick(&[
                NonFinite::Refuse,
                NonFinite::Refuse,
                NonFinite::Keep,
                NonFinite::LeaveOut,
            ]),
            ..AggregatorOptions::new(random.pick(&[Blend::Hann, Blend::Crop]), reduce)
        };
        let stored = layout(
            grid.volume(),
            options.reduce.channels(2),
            output,
            Some([16, 9, 20]),
        );
        let made = || {
            let recording = Recording::new(stored.clone());
            let sink = Box::new(Output(Arc::clone(&recording)));
            let aggregator = Aggregator::new(grid.clone(), 2, options.clone(), sink).unwrap();
            (aggregator, recording)
        };
        let (checked_before, expected) = made();
        let failure = (0..)
            .zip(&all)
            .find_map(|(index, patch)| checked_before.add(index, patch.clone()).err());
        // From three threads, each with patches in random order.
        let (checked, found) = made();
        let order = random.shuffled(grid.len());
        let spent = Mutex::new(0);
        let threads = order.chunks(order.len().div_ceil(3));
        let failures: Vec<Error> = thread::scope(|scope| {
            let (checked, spent, all) = (&checked, &spent, &all);
            let add = |order: &[u64]| -> Result<()> {
                for &index in order {
                    let patch = all[usize::try_from(index).unwrap()].clone();
                    checked.add_or_end(index, patch, &|_| *spent.lock().unwrap() += 1)?;
                }
                Ok(())
            };
            let threads: Vec<_> = threads
                .map(|order| scope.spawn(move || add(order)))
                .collect();
            let ends = threads.into_iter().map(|thread| thread.join().unwrap());
            ends.filter_map(Result::err).collect()
        });
        if let Some(failure) = failure {
            refused += 1;
            assert_eq!(failures.len(), 1, "{seed}: {failures:?}");
            assert_eq!(failures[0].to_string(), failure.to_string(), "{seed}");
            assert!(matches!(failure, Error::NotFinite { .. }), "{failure}");
            // Blocks with the value were not written.
            let written = found.memory.to_patch().converted(DType::F32);
            assert!(
                written
                    .as_slice::<f32>()
                    .unwrap()
                    .iter()
                    .all(|v| v.is_finite())
            );
        } else {
            assert!(failures.is_empty(), "{seed}: {failures:?}");
            assert_eq!(spent.into_inner().unwrap(), grid.len(), "{seed}");
            let stats = (checked.finish().unwrap(), checked_before.finish().unwrap());
            assert_eq!(stats.0.patches, stats.1.patches);
            let (found, expected) = (found.memory.to_patch(), expected.memory.to_patch());
            assert!(found.bytes() == expected.bytes(), "{seed}: {options:?}");
        }
    }
    assert!((50..350).contains(&refused), "{refused}");
}
