//! Sums that are kept elsewhere: a blender in plain loops, in place of one on a GPU.

use super::*;
use crate::aggregator::Estimate;
use crate::grid::GridOptions;

/// Adds up blocks as a [`Frontier`] says.
struct Sums {
    frontier: Arc<Frontier>,
    blocks: HashMap<u64, Vec<f32>>,
    /// The most values that were held at once.
    most: u64,
}

fn voxels(shape: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [nz, ny, nx] = shape;
    (0..nz * ny * nx).map(move |n| [n / (ny * nx), n / nx % ny, n % nx])
}

const fn offset([_, ny, nx]: [usize; 3], [z, y, x]: [usize; 3]) -> usize {
    (z * ny + y) * nx + x
}

impl Sums {
    fn new(frontier: Arc<Frontier>) -> Self {
        Self {
            frontier,
            blocks: HashMap::new(),
            most: 0,
        }
    }

    fn weight(&self, part: &BlockPart, [z, y, x]: [usize; 3]) -> f32 {
        let at = [part.from[0] + z, part.from[1] + y, part.from[2] + x];
        match self.frontier.weights() {
            BlockWeights::None => 1.0,
            BlockWeights::Factors(along) => {
                let factor = |a: usize| along[a][part.place[a]][at[a]];
                factor(0) * factor(1) * factor(2)
            }
            BlockWeights::Window(window) => {
                let shape = self.frontier.patch().map(|n| usize::try_from(n).unwrap());
                window.weights()[offset(shape, at)]
            }
        }
    }

    /// Adds a patch, and returns the blocks that became final.
    fn add(
        &mut self,
        index: u64,
        vote: PatchVote,
        value: impl Fn([usize; 3]) -> f32,
    ) -> Vec<(u64, Option<Patch>)> {
        let (place, steps) = self.frontier.add(index, vote).unwrap();
        let mut done = Vec::new();
        for step in steps {
            let shape = step.region.shape.map(|n| usize::try_from(n).unwrap());
            assert_eq!(step.common.place, place);
            assert_eq!(step.is_fresh, !self.blocks.contains_key(&step.block));
            if step.votes {
                let zeros = || vec![0.0; shape.iter().product()];
                let mut sums = self.blocks.remove(&step.block).unwrap_or_else(zeros);
                let part = step.common;
                for voxel in voxels(part.shape) {
                    let to: [usize; 3] = std::array::from_fn(|a| part.to[a] + voxel[a]);
                    let from: [usize; 3] = std::array::from_fn(|a| part.from[a] + voxel[a]);
                    sums[offset(shape, to)] += value(from) * self.weight(&part, voxel);
                }
                self.blocks.insert(step.block, sums);
                let held: usize = self.blocks.values().map(Vec::len).sum();
                self.most = self.most.max(held as u64);
            }
            let Some(end) = step.end else { continue };
            let mut values = self.blocks.remove(&step.block);
            if let BlockEnd::Divide(parts) = &end {
                let mut weights = vec![0.0_f32; shape.iter().product()];
                for part in parts {
                    for voxel in voxels(part.shape) {
                        let to: [usize; 3] = std::array::from_fn(|a| part.to[a] + voxel[a]);
                        weights[offset(shape, to)] += self.weight(part, voxel);
                    }
                }
                for (value, weight) in values.iter_mut().flatten().zip(weights) {
                    *value /= if weight > 0.0 { weight } else { 1.0 };
                }
            }
            assert_eq!(values.is_none(), end == BlockEnd::Empty);
            let patch = values.map(|values| Patch::new(step.region, 1, values).unwrap());
            done.push((step.block, patch));
        }
        done
    }
}

fn grids() -> Vec<Grid> {
    let hanging = GridOptions {
        margin: [2, 0, 1],
        placement: crate::grid::GridPlacement::Padded,
        fit: true,
    };
    vec![
        Grid::new([70, 41, 39], [32, 20, 18], [16, 10, 9]).unwrap(),
        Grid::with_options([54, 41, 39], [24, 20, 18], [12, 7, 9], &hanging).unwrap(),
        Grid::new([80, 9, 9], [20, 9, 9], [4, 0, 0]).unwrap(),
    ]
}

fn window(patch: Shape) -> Blend {
    let count = usize::try_from(Region::whole(patch).voxels()).unwrap();
    let weight = |n: usize| f32::from(u8::try_from(n * 37 % 101).unwrap()) + 1.0;
    Blend::Custom(Window::new(patch, (0..count).map(weight).collect()).unwrap())
}

/// Returns the output, its statistics, and the most values that were held elsewhere.
fn run(
    grid: &Grid,
    options: &AggregatorOptions,
    wanted: Option<&dyn Fn([u64; 3]) -> bool>,
    skipped: &dyn Fn(u64) -> bool,
) -> (Patch, AggregationStats, u64) {
    let output = Recording::new(layout(grid.volume(), 1, DType::F32, Some([8, 16, 16])));
    let sink = Box::new(Output(Arc::clone(&output)));
    let made = Aggregator::of_chunks(grid.clone(), 1, options.clone(), sink, wanted).unwrap();
    let values = |index| noise(grid.get(index).unwrap(), 1, index);
    let mut sums = made.frontier().map(Sums::new);
    for index in (0..grid.len()).filter(|&index| made.needs(index)) {
        let Some(sums) = &mut sums else {
            if skipped(index) {
                made.skip(index).unwrap();
            } else {
                made.add(index, values(index)).unwrap();
            }
            continue;
        };
        let shape = grid.patch().map(|n| usize::try_from(n).unwrap());
        let blocks = if skipped(index) {
            let vote = match &options.skipped {
                Skipped::Vote(values) => values[0],
                Skipped::Renormalize => 0.0,
            };
            sums.add(index, PatchVote::Skip, |_| vote)
        } else {
            let patch = values(index);
            let values: &[f32] = patch.as_slice().unwrap();
            sums.add(index, PatchVote::Prediction, |at| values[offset(shape, at)])
        };
        for (block, values) in blocks {
            made.add_block(block, values).unwrap();
        }
    }
    let done = made.finish().unwrap();
    assert!(output.writes.lock().unwrap().values().all(|&n| n == 1));
    let most = sums.map_or(0, |sums| sums.most);
    (output.memory.to_patch(), done, most)
}

#[test]
fn sums_kept_elsewhere_give_the_same_bytes() {
    let mut compared = 0;
    for grid in grids() {
        let n = grid.len();
        let skips: [&dyn Fn(u64) -> bool; 4] = [
            &|_| false,
            &|index| index == n / 2,
            &|index| index % 3 == 1,
            &|index| index != 1,
        ];
        let blends = [
            Blend::Average,
            Blend::Hann,
            Blend::GAUSSIAN,
            window(grid.patch()),
            Blend::Crop,
        ];
        for (case, (skipped, blend)) in skips
            .iter()
            .flat_map(|skip| blends.iter().map(move |blend| (skip, blend)))
            .enumerate()
        {
            let any = (0..n).any(*skipped);
            let vote = any && (case % 2 == 0 || *blend == Blend::Crop);
            let mut options = AggregatorOptions::new(blend.clone(), Reduce::Mean)
                .with_fill(-7.0)
                .with_all_vote(!any || vote);
            if vote {
                options = options.with_skipped(Skipped::Vote(vec![2.5]));
            }
            let elsewhere = options.clone().with_sums_elsewhere(true);
            let (expected, stats, _) = run(&grid, &options, None, skipped);
            let (found, done, most) = run(&grid, &elsewhere, None, skipped);
            assert_eq!(found.bytes(), expected.bytes(), "{blend:?} case {case}");
            let same = |stats: AggregationStats| AggregationStats {
                peak_live_bytes: 0,
                ..stats
            };
            assert_eq!(same(done), same(stats), "{blend:?} case {case}");
            let output = layout(grid.volume(), 1, DType::F32, Some([8, 16, 16]));
            let mut estimate = Estimate::new(&grid, 1, &elsewhere, &output);
            let planned = estimate.elsewhere_bytes(None);
            let most = if *blend == Blend::Crop { 0 } else { most };
            assert!(4 * most <= planned, "{most} values, {planned} bytes");
            assert!(
                any || planned <= 4 * most + 2 * most,
                "{planned}: too many for {most}"
            );
            // A part of the write chunks has the same voxels.
            let wanted = |index: [u64; 3]| index[1] == 1;
            let (part, _, _) = run(&grid, &elsewhere, Some(&wanted), skipped);
            let (expected, found): (&[f32], &[f32]) =
                (expected.as_slice().unwrap(), part.as_slice().unwrap());
            let [_, ny, nx] = grid.volume();
            for (n, (expected, found)) in (0_u64..).zip(expected.iter().zip(found)) {
                if (n / nx % ny) / 16 == 1 {
                    assert_eq!(found, expected, "{blend:?} case {case} voxel {n}");
                }
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 60);
}

#[test]
fn blocks_that_are_not_final_are_refused() {
    let grid = &grids()[0];
    let options = AggregatorOptions::new(Blend::Hann, Reduce::Mean)
        .with_all_vote(true)
        .with_sums_elsewhere(true);
    let made = |options: &AggregatorOptions| {
        let output = Recording::new(layout(grid.volume(), 1, DType::F32, None));
        Aggregator::new(grid.clone(), 1, options.clone(), Box::new(Output(output)))
    };
    let aggregator = made(&options).unwrap();
    let frontier = aggregator.frontier().unwrap();
    let text = |result: Result<()>| result.unwrap_err().to_string();
    assert!(text(aggregator.add_block(0, None)).contains("not final"));
    let late = frontier.add(1, PatchVote::Prediction).map(drop);
    assert!(text(late).contains("grid's order"));
    let skip = frontier.add(0, PatchVote::Skip).map(drop);
    assert!(text(skip).contains("every patch votes"));
    frontier.add(0, PatchVote::Prediction).unwrap();
    assert!(frontier.add(0, PatchVote::Prediction).is_err(), "twice");
    let mut later = (1..grid.len()).flat_map(|n| frontier.add(n, PatchVote::Prediction).unwrap().1);
    let last = later.find(|step| step.end.is_some()).unwrap();
    let small = Patch::zeros(Region::whole([1; 3]), 1, DType::F32).unwrap();
    assert!(text(aggregator.add_block(last.block, Some(small))).contains("another shape"));
    let patch = noise(grid.get(0).unwrap(), 1, 0);
    assert!(text(aggregator.add(1, patch)).contains("kept elsewhere"));
    assert!(matches!(
        aggregator.finish(),
        Err(Error::MissingPatches { .. })
    ));
    // All patches came, but not the values of their blocks.
    let aggregator = made(&options).unwrap();
    let frontier = aggregator.frontier().unwrap();
    for index in 0..grid.len() {
        frontier.add(index, PatchVote::Prediction).unwrap();
    }
    assert!(text(aggregator.finish().map(drop)).contains("values were not added"));
    let few = |options: AggregatorOptions| options.with_all_vote(false);
    for (options, problem) in [
        (
            few(AggregatorOptions {
                blend: Blend::Crop,
                ..options.clone()
            }),
            "neighbors",
        ),
        (
            few(AggregatorOptions {
                blend: Blend::Gaussian { sigma: 1e-2 },
                ..options.clone()
            }),
            "logarithms",
        ),
    ] {
        let error = made(&options).unwrap_err().to_string();
        assert!(
            error.contains(problem) && error.contains("outside of memory"),
            "{error}"
        );
    }
}
