//! Predictions that are written on another grid than that of the predicted volume, compared bit for bit with a twin that
//! holds all channels of both grids in memory.

use ndarray::{Array4, ArrayView4};

use super::*;
use crate::aggregator::twin::TwinRandom;
use crate::aggregator::{AggregatorOptions, NonFinite, Skipped};
use crate::geometry::{Geometry, SignedAxes};
use crate::volume::{
    Durability, Interpolation, Orientation, OutputPart, Resample, Resampled, VoxelGrid,
};

const CHANNELS: usize = 3;

/// Returns a model with three channels, each a different function of the voxel.
fn model() -> Arc<dyn Model> {
    let predict = |input: ArrayView4<'_, f32>| {
        let (_, z, y, x) = input.dim();
        Array4::from_shape_fn((CHANNELS, z, y, x), |(c, z, y, x)| {
            let value = input[[0, z, y, x]];
            match c {
                0 => value,
                1 => 1.5 - value,
                _ => (value * 0.7).sin() * 2.0,
            }
        })
    };
    let spec = OutputSpec::new(CHANNELS as u64, DType::F32);
    Arc::new(FnModel::new(spec, predict).with_id("three"))
}

/// Returns a volume with random values and these axes.
fn scan(random: &mut TwinRandom, shape: Shape, geometry: Geometry) -> Arc<MemoryVolume> {
    let voxels = usize::try_from(Region::whole(shape).voxels()).unwrap();
    let values: Vec<f32> = (0..voxels)
        .map(|_| f32::from(u8::try_from(random.below(200)).unwrap()) / 40.0 - 2.5)
        .collect();
    let layout = Layout::new(shape, 1, DType::F32).with_geometry(geometry);
    let patch = Patch::zeros(Region::whole(shape), 1, DType::F32).map(|mut patch| {
        patch
            .bytes_mut()
            .copy_from_slice(bytemuck::cast_slice(&values));
        patch
    });
    Arc::new(MemoryVolume::from_patch(layout, patch.unwrap()).unwrap())
}

fn length(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// Returns a geometry with axes in any order and direction.
fn placed(random: &mut TwinRandom, shape: Shape) -> (Shape, Geometry) {
    let spacing = [0; 3].map(|_| random.pick(&[0.4, 0.66, 1.0, 1.3, 2.5]));
    let geometry = Geometry::from_parts(spacing, [-20.0, 7.5, 31.0]);
    let all: Vec<SignedAxes> = SignedAxes::all().collect();
    let axes = random.pick(&all);
    (axes.shape(shape), geometry.turned(axes, shape))
}

/// A case: the volume as it is predicted, the grid to write on, and the options.
struct Case {
    volume: Arc<dyn Volume>,
    grid: VoxelGrid,
    options: InferenceOptions,
    blend: Blend,
    store: CreateOptions,
}

impl Case {
    fn new(random: &mut TwinRandom) -> Self {
        let shape = [0; 3].map(|_| 18 + random.below(30));
        let (shape, geometry) = placed(random, shape);
        let scan = scan(random, shape, geometry);
        let grid = VoxelGrid::of(Volume::layout(&*scan));
        let orientation: Orientation = random.pick(&["RAS", "LPI", "SAR", "ILP"]).parse().unwrap();
        let spacing = [0; 3].map(|_| random.pick(&[0.5, 0.8, 1.0, 1.5, 2.0]));
        let resample = Resample::default()
            .with_spacing(Some(spacing))
            .with_orientation((random.below(3) > 0).then_some(orientation));
        let volume = scan.resampled(&resample).unwrap();
        let patch = [0; 3].map(|_| 9 + random.below(12));
        let patch = std::array::from_fn(|a| patch[a].min(volume.layout().shape[a]));
        let options = InferenceOptions {
            threads: 1 + length(random.below(3)),
            batch_size: 1 + length(random.below(2)),
            ..InferenceOptions::new(patch).with_overlap(patch.map(|n| n * random.below(3) / 4))
        };
        let blend = random.pick(&[Blend::Hann, Blend::Average, Blend::GAUSSIAN]);
        let chunk = [0; 3].map(|_| random.pick(&[4, 8, 16]));
        let store = CreateOptions {
            chunk,
            shard: (random.below(2) == 0).then_some(chunk.map(|n| 2 * n)),
            ..CreateOptions::default()
        };
        Self {
            volume,
            grid,
            options,
            blend,
            store,
        }
    }

    /// Turns and shears the grid to write on about the middle of the volume.
    fn tilted(mut self, random: &mut TwinRandom) -> Self {
        let mut angle = || random.pick(&[-0.9_f64, -0.3, 0.02, 0.2, 0.5]);
        let (a, b, shear) = (angle(), angle(), angle() / 2.0);
        let turn = [
            [a.cos(), -a.sin(), 0.0],
            [a.sin() * b.cos(), a.cos() * b.cos(), -b.sin()],
            [a.sin() * b.sin(), a.cos() * b.sin() + shear, b.cos()],
        ];
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let middle = self.grid.shape.map(|n| (n as f64 - 1.0) / 2.0);
        let geometry = self.grid.geometry;
        let mut affine = geometry.affine;
        for (row, turn) in affine[..3].iter_mut().zip(turn) {
            for (column, value) in row[..3].iter_mut().enumerate() {
                *value = (0..3).map(|k| turn[k] * geometry.affine[k][column]).sum();
            }
        }
        let tilted = Geometry::from_affine(affine);
        let centers = [geometry, tilted].map(|geometry| geometry.moved_to(middle).affine);
        for (row, value) in affine[..3].iter_mut().enumerate() {
            value[3] += centers[0][row][3] - centers[1][row][3];
        }
        self.grid.geometry = Geometry::from_affine(affine);
        self
    }

    /// Returns, for each voxel of the output, whether its center is more than a voxel beyond the centers of the outermost
    /// predictions.
    fn far(&self) -> Vec<bool> {
        let layout = self.volume.layout();
        let positions = layout.geometry.indices_of(&self.grid.geometry).unwrap();
        let [nz, ny, nx] = self.grid.shape.map(length);
        let is_far = |v: usize| {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let at = [v % nx, v / nx % ny, v / nx / ny].map(|n| n as f64);
            (0..3).any(|row| {
                let along =
                    (0..3).map(|c| positions[row][c] * at[c]).sum::<f64>() + positions[row][3];
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let last = layout.shape[2 - row] as f64;
                along < -1.0 - 1e-6 || along > last + 1e-6
            })
        };
        (0..nz * ny * nx).map(is_far).collect()
    }

    fn target(&self, path: &Path, reduce: Reduce) -> OutputTarget {
        OutputTarget::new(path)
            .with_blend(self.blend.clone())
            .with_reduce(reduce)
            .with_store(self.store.clone())
    }

    fn plan(&self, options: InferenceOptions, target: OutputTarget) -> Result<InferencePlan> {
        Predictor::new(Arc::clone(&self.volume), model(), options).plan(&[target])
    }

    /// Returns the blended predictions on the grid of the predicted volume.
    fn blended(&self, folder: &Path) -> Arc<MemoryVolume> {
        let path = folder.join("blended.npy");
        let mut target = self.target(&path, Reduce::Mean);
        target.store.overwrite = true;
        let plan = self.plan(self.options.clone(), target).unwrap();
        plan.run(&silent).unwrap();
        let stored = whole(&path);
        let layout = self.volume.layout();
        let layout =
            Layout::new(layout.shape, CHANNELS as u64, DType::F32).with_geometry(layout.geometry);
        let patch = Patch::new(
            Region::whole(layout.shape),
            CHANNELS as u64,
            stored.into_voxels(),
        );
        Arc::new(MemoryVolume::from_patch(layout, patch.unwrap()).unwrap())
    }

    /// Returns the same, resampled to the output's grid as a whole.
    fn twin(&self, folder: &Path) -> Patch {
        let how = Resample::default()
            .with_interpolation(Interpolation::Linear)
            .with_outside(Padding::Edge);
        let twin = Resampled::new(self.blended(folder), self.grid, &how).unwrap();
        twin.read(Region::whole(self.grid.shape)).unwrap()
    }
}

fn whole(path: &Path) -> Patch {
    let volume = open(path).unwrap();
    volume.read(Region::whole(volume.layout().shape)).unwrap()
}

/// Returns the channel with the largest value of each voxel.
fn largest(values: &[f32]) -> Vec<u8> {
    let voxels = values.len() / CHANNELS;
    let best = |n: usize| {
        let better = |best: usize, c: usize| {
            if values[c * voxels + n] > values[best * voxels + n] {
                c
            } else {
                best
            }
        };
        u8::try_from((1..CHANNELS).fold(0, better)).unwrap()
    };
    (0..voxels).map(best).collect()
}

/// Sets the channels of voxels to 0.
fn clear(values: &mut [f32], voxels: &[bool]) {
    for channel in values.chunks_exact_mut(voxels.len()) {
        for (value, _) in channel.iter_mut().zip(voxels).filter(|(_, far)| **far) {
            *value = 0.0;
        }
    }
}

#[test]
fn an_output_on_another_grid_is_the_resampled_prediction_bit_for_bit() {
    let far = compare(&mut TwinRandom::new(11), |case, _| case);
    assert_eq!(far, 0);
}

#[test]
fn an_output_on_an_oblique_grid_is_the_resampled_prediction_bit_for_bit() {
    let far = compare(&mut TwinRandom::new(12), Case::tilted);
    assert!(far > 10_000, "{far}");
}

/// Compares 40 outputs with their twins, whole, in passes and in parts. Returns how many voxels are beyond the predictions.
fn compare(random: &mut TwinRandom, changed: impl Fn(Case, &mut TwinRandom) -> Case) -> u64 {
    let dir = scratch();
    let mut passes = [0; 2];
    let mut beyond = 0;
    for n in 0..40 {
        let case = changed(Case::new(random), random);
        let twin = case.twin(dir.path());
        let far = case.far();
        let mut values: Vec<f32> = bytemuck::cast_slice(twin.bytes()).to_vec();
        clear(&mut values, &far);
        let far = far.into_iter().filter(|far| *far).count() as u64;
        beyond += far;
        let onto = case.options.clone().with_output_grid(Some(case.grid));
        let reduce = random.pick(&[Reduce::Mean, Reduce::Argmax]);
        let expected = match reduce {
            Reduce::Mean => bytemuck::cast_slice(&values).to_vec(),
            _ => largest(&values),
        };
        let name = random.pick(&["zarr", "zarr", "npy", "nii"]);
        let path = dir.path().join(format!("{n}.{name}"));
        let plan = case
            .plan(onto.clone(), case.target(&path, reduce.clone()))
            .unwrap();
        let (announced, peak) = (plan.live_bytes(), plan.peak_bytes());
        let threads = onto.threads;
        let done = plan.run(&silent).unwrap();
        assert!(whole(&path).bytes() == expected, "{n}");
        let stats = &done.outputs[0];
        assert!(stats.uncovered_voxels == far && stats.patches == done.patches);
        if threads == 1 {
            assert!(
                stats.peak_live_bytes <= announced,
                "{n}: {} {announced}",
                stats.peak_live_bytes
            );
        }
        if name != "zarr" {
            continue;
        }
        // Less memory: more passes, and the same voxels.
        for share in [7, 8, 9] {
            let path = dir.path().join(format!("{n}-{share}.zarr"));
            let less = onto
                .clone()
                .with_memory(peak * 16 / 15 * share / 10)
                .with_min_threads(onto.threads);
            let Ok(plan) = case.plan(less, case.target(&path, reduce.clone())) else {
                continue;
            };
            passes[usize::from(plan.passes() > 1)] += 1;
            let announced = plan.live_bytes();
            let done = plan.run(&silent).unwrap();
            assert!(whole(&path).bytes() == expected, "{n} {share}");
            if threads == 1 {
                assert!(done.outputs[0].peak_live_bytes <= announced);
            }
        }
        // Parts, in any order.
        let path = dir.path().join(format!("{n}-parts.zarr"));
        let count = u32::try_from(1 + random.below(3)).unwrap();
        for part in (0..count).rev() {
            let part = OutputPart::new(part, count).unwrap();
            let plan = case
                .plan(onto.clone(), case.target(&path, reduce.clone()))
                .unwrap();
            let plan = plan.with_part(part, Durability::None).unwrap();
            let announced = plan.live_bytes();
            let done = plan.run(&silent).unwrap();
            assert!(done.whole || part.index() > 0, "{n} {part:?}");
            if threads == 1 {
                assert!(done.outputs[0].peak_live_bytes <= announced, "{n} {part:?}");
            }
        }
        assert!(whole(&path).bytes() == expected, "{n} in {count} parts");
    }
    assert!(passes[1] > 2, "{passes:?}");
    beyond
}

#[test]
fn a_run_onto_another_grid_is_resumed_to_the_same_bytes() {
    let dir = scratch();
    let random = &mut TwinRandom::new(5);
    for n in 0..12 {
        let mut case = Case::new(random);
        if n >= 8 {
            case = case.tilted(random);
        }
        let mut expected = case.twin(dir.path());
        let values: &mut [f32] = bytemuck::cast_slice_mut(expected.bytes_mut());
        let far = case.far();
        clear(values, &far);
        let onto = case.options.clone().with_output_grid(Some(case.grid));
        let path = dir.path().join(format!("{n}.zarr"));
        let plan = || {
            let plan = case
                .plan(onto.clone(), case.target(&path, Reduce::Mean))
                .unwrap();
            plan.with_resume(Durability::None).unwrap()
        };
        let total = plan().predictions();
        for stop_at in [total / 3, 2 * total / 3] {
            if path.exists() {
                break;
            }
            let stop = |done, _| {
                if done < stop_at {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            };
            let stopped = plan().run(&stop);
            // A later run has less to do, and may be done before it is stopped.
            let is_first = stop_at == total / 3;
            assert!(matches!(stopped, Err(Error::Interrupted)) || !is_first);
        }
        if !path.exists() {
            plan().run(&silent).unwrap();
        }
        assert!(whole(&path).bytes() == expected.bytes(), "{n}");
    }
}

/// Every voxel without a vote, and every one too far from the predictions, has the fill value; the others have the mean
/// of the voxels around them that have votes.
#[test]
fn voxels_without_a_vote_stay_without_one_on_another_grid() {
    let dir = scratch();
    let random = &mut TwinRandom::new(3);
    let mut counts = [0, 0];
    for n in 0..18 {
        let mut case = Case::new(random);
        if n >= 12 {
            case = case.tilted(random);
        }
        // Larger than the predicted volume.
        let margin = [3.0, 0.0, 5.0];
        case.grid.geometry = case
            .grid
            .geometry
            .moved_to(margin.map(|voxels: f64| -voxels));
        case.grid.shape = std::array::from_fn(|a| case.grid.shape[a] + [6, 0, 10][a]);
        let options = case.options.clone().with_masked(true);
        let keep: Vec<bool> = (0..4000).map(|_| random.below(4) > 0).collect();
        let masked = |options: InferenceOptions, path: &Path, fill: f64| {
            let mut target = case.target(path, Reduce::Mean);
            target.blending.fill = fill;
            let plan = case.plan(options, target).unwrap();
            let mask = PatchMask::new(plan.grid(), |index, _| keep[length(index) % 4000]);
            plan.with_patch_mask(mask).unwrap()
        };
        let blended = dir.path().join(format!("{n}.npy"));
        masked(options.clone(), &blended, f64::NAN)
            .run(&silent)
            .unwrap();
        let blended = whole(&blended);
        let layout = case.volume.layout().clone();
        let voxels = bytemuck::cast_slice::<u8, f32>(blended.bytes());
        let each = voxels.len() / CHANNELS;
        let mut all: Vec<f32> = voxels
            .iter()
            .map(|v| if v.is_nan() { 0.0 } else { *v })
            .collect();
        all.extend(
            voxels[..each]
                .iter()
                .map(|v| f32::from(u8::from(!v.is_nan()))),
        );
        let channels = CHANNELS as u64 + 1;
        let memory = Layout::new(layout.shape, channels, DType::F32).with_geometry(layout.geometry);
        let patch = Patch::zeros(Region::whole(layout.shape), channels, DType::F32).map(|mut p| {
            p.bytes_mut().copy_from_slice(bytemuck::cast_slice(&all));
            p
        });
        let memory = Arc::new(MemoryVolume::from_patch(memory, patch.unwrap()).unwrap());
        let how = Resample::default().with_outside(Padding::Edge);
        let twin = Resampled::new(memory, case.grid, &how).unwrap();
        let twin = twin.read(Region::whole(case.grid.shape)).unwrap();
        let twin: &[f32] = bytemuck::cast_slice(twin.bytes());
        let path = dir.path().join(format!("{n}.zarr"));
        let onto = options.with_output_grid(Some(case.grid));
        let plan = masked(onto, &path, -9.0);
        let (announced, threads) = (plan.live_bytes(), case.options.threads);
        let done = plan.run(&silent).unwrap();
        let stats = &done.outputs[0];
        if threads == 1 {
            assert!(
                stats.peak_live_bytes <= announced,
                "{} {announced}",
                stats.peak_live_bytes
            );
        }
        let found = whole(&path);
        let found: &[f32] = bytemuck::cast_slice(found.bytes());
        let count = twin.len() / (CHANNELS + 1);
        let far = case.far();
        let mut uncovered = 0;
        for (v, is_far) in far.into_iter().enumerate() {
            let share = twin[CHANNELS * count + v];
            uncovered += u64::from(is_far || share < 0.5);
            counts[usize::from(is_far || share < 0.5)] += 1;
            for c in 0..CHANNELS {
                let value = found[c * count + v];
                let expected = if is_far || share < 0.5 {
                    -9.0
                } else {
                    twin[c * count + v] / share
                };
                assert!(
                    value.to_bits() == expected.to_bits(),
                    "{n} {v}: {value} {expected}"
                );
            }
        }
        assert_eq!(stats.uncovered_voxels, uncovered, "{n}");
    }
    assert!(counts[0] > 10_000 && counts[1] > 10_000, "{counts:?}");
}

#[test]
fn impossible_output_grids_are_refused_before_anything_is_written() {
    let dir = scratch();
    let random = &mut TwinRandom::new(1);
    let case = Case::new(random);
    let path = dir.path().join("out.zarr");
    let refused = |grid: VoxelGrid, target: OutputTarget, problem: &str| {
        let options = case.options.clone().with_output_grid(Some(grid));
        let error = case.plan(options, target).map(drop).unwrap_err();
        assert!(
            matches!(
                error,
                Error::InvalidArgument {
                    argument: "output grid",
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains(problem), "{error}");
        assert!(!path.exists());
    };
    let target = || case.target(&path, Reduce::Mean);
    let mut far = case.grid;
    far.geometry.affine[0][3] += 1e4;
    refused(far, target(), "no voxel in common");
    let mut far = Case::new(random).tilted(random).grid;
    far.geometry.affine[1][3] -= 1e4;
    refused(far, target(), "no voxel in common");
    refused(
        VoxelGrid::new([4; 3], Geometry::default()),
        target(),
        "does not state",
    );
    refused(case.grid, target().with_blend(Blend::Crop), "crop");
    // Labels are not averaged.
    let labels = BatchModel::new(vec![OutputSpec::new(1, DType::U8)], |batch| Ok(vec![batch]));
    let options = case
        .options
        .clone()
        .with_overlap([0; 3])
        .with_output_grid(Some(case.grid));
    let predictor = Predictor::new(Arc::clone(&case.volume), Arc::new(labels), options);
    let error = predictor
        .plan(&[target()])
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(error.contains("class numbers"), "{error}");
    let votes = AggregatorOptions::default()
        .with_skipped(Skipped::Vote(vec![0.0; 3]))
        .with_non_finite(NonFinite::LeaveOut);
    let onto = case.options.clone().with_output_grid(Some(case.grid));
    assert!(case.plan(onto, target().with_blending(votes)).is_ok());
}
