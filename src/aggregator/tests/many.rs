//! Random configurations, each compared with the brute-force twin.

use super::super::twin::{Said, TwinRandom, cases, compare};
use super::*;
use crate::grid::{GridOptions, GridPlacement};

const TYPES: [DType; 9] = [
    DType::Bool,
    DType::U8,
    DType::I8,
    DType::U16,
    DType::I16,
    DType::I32,
    DType::F16,
    DType::F32,
    DType::F64,
];

/// A configuration with the contributions of its patches.
#[derive(Debug)]
struct Case {
    grid: Grid,
    channels: u64,
    options: AggregatorOptions,
    prediction: DType,
    output: DType,
    chunk: Option<Shape>,
    /// One in this many write chunks is written; all if 1.
    one_in: u64,
    /// The order of arrival of the patches.
    order: Vec<u64>,
    threads: usize,
    arrivals: Vec<Arrival>,
}

/// The fate of a patch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Arrival {
    Comes,
    ComesNotFinite,
    Skipped,
    Missing,
}

fn grid(random: &mut TwinRandom) -> Option<Grid> {
    let mut volume: Shape = std::array::from_fn(|_| 1 + random.below(12));
    if random.one_in(3) {
        let long = usize::try_from(random.below(3)).unwrap();
        volume[long] = 20 + random.below(50);
    }
    let patch: Shape =
        std::array::from_fn(|a| 1 + random.below(if volume[a] > 15 { 24 } else { 8 }));
    let overlap = patch.map(|length| match random.below(3) {
        0 => 0,
        1 => length / 2,
        _ => random.below(length),
    });
    let options = GridOptions {
        placement: random.pick(&[
            GridPlacement::Edge,
            GridPlacement::Even,
            GridPlacement::Padded,
        ]),
        margin: if random.one_in(3) {
            std::array::from_fn(|_| random.below(4))
        } else {
            [0; 3]
        },
        fit: random.one_in(2),
    };
    let grid = Grid::with_options(volume, patch, overlap, &options).ok()?;
    let grid = match random.below(4) {
        0 => grid
            .output(std::array::from_fn(|_| random.below(3)), 1)
            .unwrap_or(grid),
        1 => grid.output([0; 3], 2).unwrap_or(grid),
        _ => grid,
    };
    (grid.len() <= 600).then_some(grid)
}

fn blend(random: &mut TwinRandom, patch: Shape) -> Blend {
    let count = usize::try_from(Region::whole(patch).voxels()).unwrap();
    let hundredth =
        |random: &mut TwinRandom| f32::from(u8::try_from(random.below(100)).unwrap()) / 100.0;
    let weights: Vec<f32> = match random.below(8) {
        0 => return Blend::Average,
        1 => return Blend::Hann,
        2 => return Blend::NnUnet,
        3 => return Blend::Linear,
        4 => {
            let sigma = random.pick(&[0.125, 0.5, 1.0 / 16.0, 1.0 / 64.0, 0.01]);
            return Blend::Gaussian { sigma };
        }
        5 => (0..count).map(|_| 0.1 + hundredth(random)).collect(),
        6 => (0..count)
            .map(|_| 1e-30_f32.powf(hundredth(random)))
            .collect(),
        _ => return Blend::Crop,
    };
    Blend::Custom(Window::new(patch, weights).unwrap())
}

fn reduce(random: &mut TwinRandom, channels: u64) -> Reduce {
    match random.below(9) {
        0 => Reduce::Argmax,
        1 => Reduce::Labels(
            (0..channels)
                .map(|n| u32::try_from(n * 50).unwrap())
                .collect(),
        ),
        2 => Reduce::Threshold(0.5),
        3 => Reduce::Quantize {
            low: -100.0,
            high: 90.0,
        },
        4 => Reduce::Softmax,
        5 => Reduce::Sigmoid,
        _ => Reduce::Mean,
    }
}

fn case(random: &mut TwinRandom) -> Option<Case> {
    let grid = grid(random)?;
    let channels = 1 + random.below(3);
    let blend = if random.one_in(4) {
        Blend::Crop
    } else {
        blend(random, grid.patch())
    };
    let reduce = reduce(random, channels);
    let prediction = random.pick(&TYPES);
    let output = if random.one_in(3) {
        random.pick(&TYPES)
    } else {
        reduce.dtype(prediction, channels)
    };
    let mut options = AggregatorOptions::new(blend, reduce);
    options.average_integers = true;
    options.clip = true;
    if options.blend.is_product() {
        options.accumulator = random.pick(&[Accumulator::F32, Accumulator::F16, Accumulator::BF16]);
    }
    options.fill = random.pick(&[0.0, 1.0, -7.0, 3.5, 200.0, 70_000.0, f64::NAN]);
    let all = random.one_in(3);
    let vote =
        |random: &mut TwinRandom| f32::from(u8::try_from(random.below(6)).unwrap()) / 2.0 - 1.0;
    if random.one_in(3) {
        options.skipped = Skipped::Vote((0..channels).map(|_| vote(random)).collect());
    }
    options.non_finite = random.pick(&[NonFinite::Refuse, NonFinite::LeaveOut]);
    let votes = matches!(options.skipped, Skipped::Vote(_));
    options.all_vote = random.one_in(2) && (all || votes);
    let share = 1 + random.below(20);
    let arrivals = (0..grid.len()).map(|_| {
        if all || random.below(20) >= share {
            return Arrival::Comes;
        }
        match random.below(3) {
            0 if options.non_finite == NonFinite::LeaveOut && prediction.is_float() => {
                Arrival::ComesNotFinite
            }
            1 if !options.all_vote => Arrival::Missing,
            _ => Arrival::Skipped,
        }
    });
    let arrivals = arrivals.collect();
    let order = match random.below(3) {
        0 => random.shuffled(grid.len()),
        1 => (0..grid.len()).rev().collect(),
        _ => (0..grid.len()).collect(),
    };
    let chunk = (!random.one_in(4)).then(|| std::array::from_fn(|_| 1 + random.below(20)));
    Some(Case {
        one_in: if chunk.is_some() && random.one_in(3) {
            2
        } else {
            1
        },
        threads: usize::try_from(1 + random.below(3)).unwrap(),
        grid,
        channels,
        options,
        prediction,
        output,
        chunk,
        order,
        arrivals,
    })
}

impl Case {
    fn is_wanted(&self, [z, y, x]: [u64; 3]) -> bool {
        self.one_in == 1 || (z * 7 + y * 3 + x).is_multiple_of(self.one_in)
    }

    /// Returns the prediction of a patch, and its contribution for the twin.
    fn predicted(&self, index: u64) -> (Patch, Said) {
        let region = self.grid.get(index).unwrap();
        let mut random = TwinRandom::new(index);
        let small = matches!(self.options.reduce, Reduce::Softmax | Reduce::Sigmoid);
        let part = if small { 256.0 } else { 8.0 };
        let mut value =
            || f64::from(u16::try_from(random.below(4_096)).unwrap()) / part - 2_048.0 / part;
        let count = usize::try_from(region.voxels() * self.channels).unwrap();
        let numbers: Vec<f64> = (0..count).map(|_| value()).collect();
        let mut patch = Patch::zeros(region, self.channels, self.prediction).unwrap();
        let not_finite = self.arrivals[usize::try_from(index).unwrap()] == Arrival::ComesNotFinite;
        let at = usize::try_from(index).unwrap() % count;
        let said = with_element!(self.prediction, T => {
            let values = bytemuck::cast_slice_mut::<u8, T>(patch.bytes_mut());
            for (value, number) in values.iter_mut().zip(&numbers) {
                *value = T::from_f64(*number);
            }
            if self.prediction == DType::Bool {
                for value in values.iter_mut() {
                    *value = T::from_f64(value.to_f64().min(1.0));
                }
            }
            let said = values.iter().map(|value| value.to_f64()).collect();
            if not_finite {
                let crop = self.options.blend == Blend::Crop;
                // Too large for sums, where there are sums.
                let bad = if self.prediction == DType::F64 && !crop { 1e39 } else { f64::NAN };
                values[at] = T::from_f64(bad);
            }
            said
        });
        (patch, Said::Values(said))
    }

    fn said(&self) -> Vec<Said> {
        let of = |index: u64| match self.arrivals[usize::try_from(index).unwrap()] {
            Arrival::Comes => self.predicted(index).1,
            Arrival::Skipped => match &self.options.skipped {
                Skipped::Vote(values) => Said::Constant(values.iter().map(|&v| v.into()).collect()),
                Skipped::Renormalize => Said::Nothing,
            },
            Arrival::ComesNotFinite | Arrival::Missing => Said::Nothing,
        };
        (0..self.grid.len()).map(of).collect()
    }

    /// Runs the aggregator and returns the output and the statistics; `None` if the options are refused.
    fn run(&self, order: &[u64], threads: usize) -> Option<(Patch, AggregationStats)> {
        let channels = self.options.reduce.channels(self.channels);
        let output = Recording::new(layout(
            self.grid.volume(),
            channels,
            self.output,
            self.chunk,
        ));
        let sink = Box::new(Output(Arc::clone(&output)));
        let wanted = |index: [u64; 3]| self.is_wanted(index);
        let wanted: Option<&dyn Fn([u64; 3]) -> bool> = (self.one_in > 1).then_some(&wanted);
        let made = Aggregator::of_chunks(
            self.grid.clone(),
            self.channels,
            self.options.clone(),
            sink,
            wanted,
        );
        let aggregator = match made {
            Ok(aggregator) => aggregator,
            Err(Error::InvalidArgument { .. }) => return None,
            Err(error) => panic!("{error}"),
        };
        let bring = |index: u64| match self.arrivals[usize::try_from(index).unwrap()] {
            _ if !aggregator.needs(index) => {}
            Arrival::Comes | Arrival::ComesNotFinite => {
                aggregator.add(index, self.predicted(index).0).unwrap();
            }
            Arrival::Skipped => aggregator.skip(index).unwrap(),
            Arrival::Missing => {}
        };
        if threads == 1 {
            order.iter().copied().for_each(bring);
        } else {
            thread::scope(|scope| {
                for worker in 0..threads {
                    let mut own = order.iter().copied().skip(worker).step_by(threads);
                    let bring = &bring;
                    scope.spawn(move || own.by_ref().for_each(bring));
                }
            });
        }
        let done = aggregator.finish_partial().unwrap();
        Some((output.memory.to_patch(), done))
    }

    fn has_bad_constant(&self) -> bool {
        !self.output.holds_value(self.options.fill)
    }
}

#[test]
fn every_configuration_equals_its_brute_force_twin() {
    let (mut tried, mut refused, mut compared) = (0, 0, 0_u64);
    let wanted = cases(500);
    for seed in 0.. {
        if tried >= wanted {
            break;
        }
        let Some(case) = case(&mut TwinRandom::new(seed)) else {
            continue;
        };
        let Some((out, done)) = case.run(&case.order, case.threads) else {
            refused += 1;
            continue;
        };
        tried += 1;
        assert!(!case.has_bad_constant(), "case {seed}: {case:?}");
        let chunk = case
            .chunk
            .unwrap_or([1; 3])
            .map(|n| i64::try_from(n).unwrap());
        let is_wanted = |voxel: [i64; 3]| {
            case.is_wanted(std::array::from_fn(|a| {
                (voxel[a] / chunk[a]).unsigned_abs()
            }))
        };
        let channels = usize::try_from(case.channels).unwrap();
        let verdict = compare(
            (&case.grid, &case.options),
            &case.said(),
            channels,
            &out,
            &is_wanted,
        );
        let what = || format!("case {seed}: {case:?}\n");
        if let Some(wrong) = verdict.wrong {
            panic!("{wrong}\n{}", what());
        }
        compared += verdict.compared;
        if case.one_in == 1 {
            assert_eq!(done.uncovered_voxels, verdict.uncovered, "{}", what());
            assert_eq!(done.patches + done.skipped, case.grid.len(), "{}", what());
        }
        // A different order of arrival gives the same bits, and an in-order run keeps no more than the estimate.
        let in_order: Vec<u64> = (0..case.grid.len()).collect();
        let (again, done) = case.run(&in_order, 1).unwrap();
        assert!(again.bytes() == out.bytes(), "{}", what());
        if case.one_in == 1 && !case.arrivals.contains(&Arrival::Missing) {
            let channels = case.options.reduce.channels(case.channels);
            let layout = layout(case.grid.volume(), channels, case.output, case.chunk);
            let announced = live_bytes(&case.grid, case.channels, &case.options, &layout, None);
            assert!(
                done.peak_live_bytes <= announced,
                "{} of {announced}: {}",
                done.peak_live_bytes,
                what()
            );
        }
    }
    println!("{tried} configurations, {refused} more refused, {compared} voxels compared");
}
