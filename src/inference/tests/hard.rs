//! The cases that other pipelines get wrong.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::aggregator::{NonFinite, Skipped};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::patch::copy_common;
use crate::region::{chunk_range, indices};
use crate::volume::ReadStats;

/// A volume of `f32` noise that counts its chunks' reads.
#[derive(Debug)]
struct Counted {
    inner: MemoryVolume,
    chunks: AtomicU64,
}

fn noise(shape: Shape) -> Arc<Counted> {
    let count = u32::try_from(Region::whole(shape).voxels()).unwrap();
    let value = |n: u32| {
        f32::from(u16::try_from(n.wrapping_mul(2_654_435_761) >> 17).unwrap()) / 16.0 - 900.0
    };
    let memory = MemoryVolume::from_vec(shape, 1, (0..count).map(value).collect::<Vec<f32>>());
    Arc::new(Counted {
        inner: memory.unwrap().with_chunks([1, 8, 8, 8]),
        chunks: AtomicU64::new(0),
    })
}

impl Volume for Counted {
    fn layout(&self) -> &Layout {
        Volume::layout(&self.inner)
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&self.inner)
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        let chunks = indices(chunk_range(&region, [8; 3])).count() as u64;
        self.chunks.fetch_add(chunks, Ordering::Relaxed);
        self.inner.read_channels(channels, region, out)
    }

    fn identity(&self) -> Result<serde_json::Value> {
        self.inner.identity()
    }

    fn read_stats(&self) -> ReadStats {
        ReadStats {
            chunks: self.chunks.load(Ordering::Relaxed),
            ..ReadStats::default()
        }
    }
}

fn shared(source: &Arc<Counted>) -> Arc<dyn Volume> {
    Arc::<Counted>::clone(source)
}

fn whole(path: &Path) -> Patch {
    let volume = open(path).unwrap();
    volume.read(Region::whole(volume.layout().shape)).unwrap()
}

fn assert_close(out: &Patch, expected: &Patch, what: &str) {
    let pairs = out
        .as_slice::<f32>()
        .unwrap()
        .iter()
        .zip(expected.as_slice::<f32>().unwrap());
    for (n, (a, b)) in pairs.enumerate() {
        assert!(
            (a - b).abs() <= 2e-6 * b.abs().max(1.0),
            "{what}: {a} for {b} at {n}"
        );
    }
}

#[test]
fn every_placement_padding_and_margin_gives_the_volume_back() {
    let dir = tempfile::tempdir().unwrap();
    let source = noise([37, 20, 9]);
    let expected = source.inner.to_patch();
    let mut n = 0;
    for placement in [
        GridPlacement::Edge,
        GridPlacement::Even,
        GridPlacement::Padded,
    ] {
        for (padding, margin) in [
            (None, [0; 3]),
            (Some(Padding::Constant(-5.0)), [4, 3, 0]),
            (Some(Padding::Reflect), [20, 9, 30]),
            (Some(Padding::Wrap), [1, 1, 1]),
        ] {
            for blend in [Blend::Hann, Blend::Crop, Blend::Linear] {
                let what = InferenceOptions {
                    placement,
                    padding,
                    margin,
                    threads: 2,
                    ..InferenceOptions::new([16, 12, 8]).with_overlap([8, 5, 3])
                };
                let path = dir.path().join(format!("{n}.zarr"));
                n += 1;
                run(
                    &what,
                    shared(&source),
                    "identity",
                    &target(&path, blend, Reduce::Mean),
                )
                .unwrap();
                assert_close(
                    &whole(&path),
                    &expected,
                    &format!("{placement:?} {padding:?}"),
                );
            }
        }
    }
}

#[test]
fn patches_larger_than_the_volume_are_refused_or_padded() {
    let dir = tempfile::tempdir().unwrap();
    for (n, shape) in [[5, 30, 30], [5, 6, 30], [5, 6, 7], [1, 1, 1]]
        .into_iter()
        .enumerate()
    {
        let source = noise(shape);
        let path = dir.path().join(format!("{n}.zarr"));
        let target = target(&path, Blend::Hann, Reduce::Mean);
        let plain = InferenceOptions::new([16; 3]).with_overlap([8; 3]);
        let refused = run(&plain, shared(&source), "identity", &target);
        assert!(matches!(refused, Err(Error::PatchSize { axis: 'z', .. })));
        let padded = InferenceOptions {
            padding: Some(Padding::Reflect),
            ..plain
        };
        run(&padded, shared(&source), "identity", &target).unwrap();
        assert_close(&whole(&path), &source.inner.to_patch(), "small");
    }
}

/// Returns the model's inputs, one patch per call.
fn given(what: &InferenceOptions, source: &Arc<Counted>) -> Vec<Patch> {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let model = Arc::new(BatchModel::new(
        vec![OutputSpec::new(1, DType::F32)],
        move |batch| {
            note.lock().unwrap().extend(batch.iter().cloned());
            Ok(vec![batch])
        },
    ));
    let target = target(&dir.path().join("out.zarr"), Blend::Hann, Reduce::Mean);
    let plan = what
        .plan(Volume::layout(&**source), &*model, &[target])
        .unwrap();
    plan.run(shared(source), model, &silent).unwrap();
    std::mem::take(&mut *seen.lock().unwrap())
}

#[test]
fn patches_are_padded_as_the_whole_volume_would_be_and_read_only_what_they_need() {
    let shape = [21, 18, 9];
    let source = noise(shape);
    let volume = source.inner.to_patch();
    for padding in [
        Padding::Constant(3.5),
        Padding::Edge,
        Padding::Reflect,
        Padding::Wrap,
    ] {
        let what = InferenceOptions {
            threads: 1,
            ..InferenceOptions::padded([12, 10, 8], [6, 4, 4], padding)
        };
        let patches = given(&what, &source);
        assert!(
            patches
                .iter()
                .any(|patch| patch.region().start == [-3, -2, -2])
        );
        for patch in patches {
            let region = patch.region();
            let mut expected = Patch::zeros(region, 1, DType::F32).unwrap();
            let target = (expected.bytes_mut(), region);
            padding.fill(
                (volume.bytes(), volume.region()),
                target,
                1,
                DType::F32,
                shape,
            );
            assert_eq!(patch, expected, "{padding:?}");
        }
    }
    // Only the chunks that the patch's inside touches are read.
    source.chunks.store(0, Ordering::Relaxed);
    let padding = Padding::Edge;
    let region = Region::new([-4, -4, 2], [8, 8, 4]);
    let volume: Arc<dyn Volume> = shared(&source);
    let spare = PatchPool::default();
    let reading = super::super::work::Reading {
        padding,
        input: InputValues::Native,
        scales: None,
    };
    reading.read(&*volume, region, &spare).unwrap();
    assert_eq!(source.chunks.load(Ordering::Relaxed), 1);
}

/// Returns four outputs, the coarse ones first.
fn four_outputs() -> Vec<OutputSpec> {
    let output = |name: &str, channels, dtype| OutputSpec {
        name: name.to_owned(),
        ..OutputSpec::new(channels, dtype)
    };
    vec![
        OutputSpec {
            scale: 4,
            ..output("quarter", 2, DType::F16)
        },
        OutputSpec {
            scale: 2,
            ..output("half", 1, DType::F32)
        },
        output("scores", 3, DType::F32),
        OutputSpec {
            halo: [2, 1, 3],
            ..output("valid", 1, DType::F32)
        },
    ]
}

#[expect(clippy::unnecessary_wraps, reason = "a model may fail")]
fn predict_four(batch: &[Patch]) -> Result<Vec<Vec<Patch>>> {
    let all = |of: &dyn Fn(&Patch) -> Patch| batch.iter().map(of).collect::<Vec<_>>();
    Ok(vec![
        all(&|patch| picked(patch, 4, 2).converted(DType::F16)),
        all(&|patch| picked(patch, 2, 1)),
        all(&scores),
        all(&valid),
    ])
}

/// Returns the first of every `scale` voxels along each axis, plus the channel's number.
fn picked(patch: &Patch, scale: usize, channels: u64) -> Patch {
    let step = i64::try_from(scale).unwrap();
    let start = patch.region().start.map(|n| n / step);
    let region = Region::new(start, patch.shape().map(|n| n / step.unsigned_abs()));
    let view = patch.view::<f32>().unwrap();
    let mut values = Vec::new();
    for c in 0..channels {
        for place in indices(region.shape.map(|n| 0..n)) {
            let [z, y, x] = place.map(|n| usize::try_from(n).unwrap() * scale);
            values.push(view[[0, z, y, x]] + f32::from(u8::try_from(c).unwrap()));
        }
    }
    Patch::new(region, channels, values).unwrap()
}

fn scores(patch: &Patch) -> Patch {
    let values: Vec<f32> = patch.as_slice::<f32>().unwrap().to_vec();
    let other: Vec<f32> = values.iter().map(|v| -v).collect();
    let zeros = vec![0.0; values.len()];
    Patch::new(patch.region(), 3, [values, zeros, other].concat()).unwrap()
}

fn valid(patch: &Patch) -> Patch {
    let region = patch.region();
    let [z, y, x] = region.start;
    let [nz, ny, nx] = region.shape;
    let inner = Region::new([z + 2, y + 1, x + 3], [nz - 4, ny - 2, nx - 6]);
    let mut out = Patch::zeros(inner, 1, DType::F32).unwrap();
    copy_common((patch.bytes(), region), (out.bytes_mut(), inner), 1, 4);
    out
}

#[test]
fn outputs_of_several_scales_types_and_reductions_come_from_one_pass() {
    let dir = tempfile::tempdir().unwrap();
    let spacing = Geometry::from_parts([2.0, 1.0, 0.5], [10.0, -4.0, 7.0]);
    let memory = noise([40, 30, 26]).inner.to_patch();
    let values = memory.as_slice::<f32>().unwrap().to_vec();
    let layout = Layout::new([40, 30, 26], 1, DType::F32).with_geometry(spacing);
    let volume = MemoryVolume::from_vec([40, 30, 26], 1, values).unwrap();
    let source: Arc<dyn Volume> = Arc::new(Scaled(volume, layout.clone()));
    let model = Arc::new(BatchModel::new(four_outputs(), |batch| {
        predict_four(&batch)
    }));
    let path = |name: &str| dir.path().join(name);
    let targets = [
        target(&path("quarter.zarr"), Blend::Hann, Reduce::Mean),
        target(&path("half.npy"), Blend::Crop, Reduce::Mean),
        target(&path("classes.zarr"), Blend::Hann, Reduce::Argmax),
        target(&path("valid.zarr"), Blend::Hann, Reduce::Mean),
    ];
    let what = InferenceOptions {
        placement: GridPlacement::Padded,
        threads: 3,
        batch_size: 2,
        ..InferenceOptions::new([16, 16, 16]).with_overlap([8, 8, 8])
    };
    let plan = what.plan(&layout, &*model, &targets).unwrap();
    let done = plan.run(Arc::clone(&source), model, &silent).unwrap();
    assert_eq!(done.outputs.len(), 4);

    let quarter = open(path("quarter.zarr")).unwrap();
    assert_eq!(quarter.layout().shape, [10, 8, 7]);
    assert_eq!(
        (quarter.layout().channels, quarter.layout().dtype),
        (2, DType::F16)
    );
    let geometry = quarter.layout().geometry;
    assert_eq!(geometry.spacing, [8.0, 4.0, 2.0]);
    assert_eq!(geometry.origin(), [10.0 + 3.0, -4.0 + 1.5, 7.0 + 0.75]);
    let fine = source
        .read(Region::whole([40, 30, 26]))
        .unwrap()
        .to_array::<f32>()
        .unwrap();
    let read = quarter
        .read(Region::whole([10, 8, 7]))
        .unwrap()
        .converted(DType::F32);
    for ((c, z, y, x), &value) in read.to_array::<f32>().unwrap().indexed_iter() {
        let expected = fine[[0, 4 * z, 4 * y, 4 * x]] + f32::from(u8::try_from(c).unwrap());
        assert!(
            (value - expected).abs() <= expected.abs() * 2e-3 + 1e-2,
            "{value} for {expected}"
        );
    }
    let half = whole(&path("half.npy")).to_array::<f32>().unwrap();
    assert_eq!(half.dim(), (1, 20, 15, 13));
    for ((_, z, y, x), &value) in half.indexed_iter() {
        assert_eq!(value, fine[[0, 2 * z, 2 * y, 2 * x]]);
    }
    let classes = whole(&path("classes.zarr")).to_array::<u8>().unwrap();
    for ((_, z, y, x), &class) in classes.indexed_iter() {
        let value = fine[[0, z, y, x]];
        assert_eq!(class, if value >= 0.0 { 0 } else { 2 }, "{value}");
    }
    assert_eq!(
        done.outputs[3].uncovered_voxels,
        40 * 30 * 26 - 36 * 29 * 23,
        "the far faces along y and x are inside patches that extend beyond them"
    );
    let valid = whole(&path("valid.zarr")).to_array::<f32>().unwrap();
    for ((_, z, y, x), &value) in valid.indexed_iter() {
        if (2..38).contains(&z) && y >= 1 && x >= 3 {
            assert!((value - fine[[0, z, y, x]]).abs() < 1e-3);
        } else {
            assert_eq!(value, 0.0);
        }
    }
}

#[test]
fn outputs_that_do_not_fit_the_grid_or_the_targets_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let source = noise([40, 30, 26]);
    let target = |name: &str| target(&dir.path().join(name), Blend::Hann, Reduce::Mean);
    let scaled = |scale, halo| {
        let output = OutputSpec {
            halo,
            scale,
            ..OutputSpec::new(1, DType::F32)
        };
        BatchModel::new(vec![output], |batch| Ok(vec![batch]))
    };
    let what = InferenceOptions::new([16; 3]).with_overlap([8; 3]);
    let layout = Volume::layout(&*source);
    for (scale, halo) in [(4, [0; 3]), (3, [0; 3]), (1, [5, 0, 0]), (1, [8; 3])] {
        let plan = what.plan(layout, &scaled(scale, halo), &[target("out.zarr")]);
        assert!(
            matches!(plan, Err(Error::OutputGrid { .. })),
            "{scale} {halo:?}"
        );
    }
    for targets in [vec![], vec![target("a.zarr"), target("b.zarr")]] {
        let plan = what.plan(layout, &scaled(1, [0; 3]), &targets);
        assert!(matches!(plan, Err(Error::InvalidArgument { .. })));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn memory_below_the_front_is_kept_in_passes_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let source = noise([96, 80, 72]);
    let model = builtin_model("identity").unwrap();
    let path = |name: &str| dir.path().join(name);
    let what = InferenceOptions {
        threads: 2,
        ..InferenceOptions::new([32, 16, 16]).with_overlap([16, 8, 8])
    };
    let layout = Volume::layout(&*source);
    let target = |name: &str| target(&path(name), Blend::Hann, Reduce::Mean);
    let whole = what.plan(layout, &*model, &[target("whole.zarr")]).unwrap();
    assert_eq!(whole.passes(), 1);
    let at_once = whole.live_bytes;
    let least = whole.peak_bytes - whole.cache_bytes - whole.reorder_bytes;
    whole
        .run(shared(&source), Arc::clone(&model), &silent)
        .unwrap();
    for (n, saved) in [at_once / 4, at_once / 2, at_once * 2 / 3]
        .into_iter()
        .enumerate()
    {
        let tight = InferenceOptions {
            memory: least - saved,
            ..what.clone()
        };
        let name = format!("{n}.zarr");
        let plan = tight.plan(layout, &*model, &[target(&name)]).unwrap();
        assert!(plan.passes() > 1 && plan.peak_bytes <= tight.memory);
        let (announced, passes) = (plan.live_bytes, plan.passes());
        let predictions = plan.predictions();
        let done = plan
            .run(shared(&source), Arc::clone(&model), &silent)
            .unwrap();
        assert!(
            done.outputs[0].peak_live_bytes <= announced,
            "{passes} passes"
        );
        assert_eq!(done.patches, predictions);
        assert!(
            predictions > whole_patches(&tight),
            "patches between passes are predicted again"
        );
        assert_eq!(
            files(&path("whole.zarr").join("0")),
            files(&path(&name).join("0"))
        );
    }
    let flat = super::target(&path("flat.npy"), Blend::Hann, Reduce::Mean);
    let tight = InferenceOptions {
        memory: 800_000,
        ..what
    };
    let error = tight
        .plan(layout, &*model, &[flat])
        .unwrap_err()
        .to_string();
    assert!(error.contains("allow more"), "{error}");
}

#[test]
fn predictions_of_a_run_in_passes_are_counted_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = noise([96, 80, 72]);
    let model = builtin_model("identity").unwrap();
    for (blend, masked) in [
        (Blend::Hann, false),
        (Blend::Hann, true),
        (Blend::Crop, false),
        (Blend::Crop, true),
    ] {
        let target = target(&dir.path().join("out.zarr"), blend, Reduce::Mean);
        let plan = |memory| {
            let what = InferenceOptions {
                threads: 1,
                memory,
                masked,
                ..InferenceOptions::new([32, 16, 16]).with_overlap([16, 8, 8])
            };
            what.plan(
                Volume::layout(&*source),
                &*model,
                std::slice::from_ref(&target),
            )
        };
        let whole = plan(1 << 30).unwrap();
        let least = whole.peak_bytes - whole.cache_bytes - whole.reorder_bytes;
        let mut tight = plan(least - whole.live_bytes / 3).unwrap();
        assert!(tight.passes() > 1);
        if masked {
            let third = PatchMask::new(&tight.grid, |index, _| index % 3 == 0);
            tight = tight.with_patch_mask(third).unwrap();
        }
        let (predictions, announced) = (tight.predictions(), tight.live_bytes);
        let done = tight.run(shared(&source), Arc::clone(&model), &silent);
        let done = done.unwrap();
        assert_eq!(done.patches, predictions);
        assert!(done.outputs[0].peak_live_bytes <= announced);
        fs::remove_dir_all(dir.path().join("out.zarr")).unwrap();
    }
}

#[test]
fn a_selection_that_comes_after_the_plan_is_planned_for_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = noise([96, 80, 72]);
    let model = builtin_model("identity").unwrap();
    let target = target(&dir.path().join("out.zarr"), Blend::Crop, Reduce::Mean);
    let plan = |memory, masked| {
        let what = InferenceOptions {
            threads: 1,
            memory,
            masked,
            ..InferenceOptions::new([32, 16, 16]).with_overlap([16, 8, 8])
        };
        what.plan(
            Volume::layout(&*source),
            &*model,
            std::slice::from_ref(&target),
        )
    };
    let (all, some) = (plan(1 << 30, false).unwrap(), plan(1 << 30, true).unwrap());
    assert!(all.live_bytes < some.live_bytes, "substitutes take memory");
    let third = || PatchMask::new(&all.grid, |index, _| index % 3 == 0);
    let late = all.clone().with_patch_mask(third()).unwrap();
    assert_eq!((late.live_bytes, late.passes()), (some.live_bytes, 1));
    let least = all.peak_bytes - all.cache_bytes - all.reorder_bytes;
    let tight = plan(least + least / 10, false).unwrap();
    assert_eq!(tight.passes(), 1);
    match tight.with_patch_mask(third()) {
        Ok(late) => assert!(late.passes() > 1),
        Err(error) => assert!(matches!(error, Error::InvalidArgument { .. }), "{error}"),
    }
}

fn whole_patches(what: &InferenceOptions) -> u64 {
    crate::grid::Grid::new([96, 80, 72], what.patch_size, what.overlap)
        .unwrap()
        .len()
}

#[test]
fn a_mask_skips_patches_and_their_contribution_is_an_option() {
    let dir = tempfile::tempdir().unwrap();
    let shape = [48, 40, 40];
    let source = noise(shape);
    // A coarse mask: one octant is foreground.
    let coarse: Vec<u8> = (0..6 * 5 * 5)
        .map(|n| u8::from(n / 25 < 3 && n / 5 % 5 < 2 && n % 5 < 2))
        .collect();
    let mask = MemoryVolume::from_vec([6, 5, 5], 1, coarse).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let model = Arc::new(BatchModel::new(
        vec![OutputSpec::new(1, DType::F32)],
        move |batch| {
            count.fetch_add(batch.len(), Ordering::Relaxed);
            Ok(vec![batch])
        },
    ));
    let what = InferenceOptions {
        threads: 2,
        batch_size: 3,
        ..InferenceOptions::new([16; 3]).with_overlap([8; 3])
    };
    for (skipped, elsewhere) in [
        (Skipped::Renormalize, -1.0),
        (Skipped::Vote(vec![-1024.0]), -1024.0),
    ] {
        let path = dir.path().join(format!("{elsewhere}.zarr"));
        let mut target = target(&path, Blend::Hann, Reduce::Mean);
        target.blending.skipped = skipped.clone();
        target.blending.fill = -1.0;
        let plan = what
            .plan(Volume::layout(&*source), &*model, &[target])
            .unwrap();
        let patch_mask = PatchMask::from_volume(&plan.grid, &mask).unwrap();
        let (all, selected) = (plan.grid.len(), patch_mask.len());
        assert!(selected < all);
        let plan = plan.with_patch_mask(patch_mask).unwrap();
        assert_eq!(plan.patches(), (all, selected));
        calls.store(0, Ordering::Relaxed);
        let model: Arc<dyn Model> = Arc::clone(&model) as _;
        let done = plan.run(shared(&source), model, &silent).unwrap();
        assert_eq!(
            (calls.load(Ordering::Relaxed) as u64, done.patches),
            (selected, selected)
        );
        assert_eq!(done.outputs[0].skipped, all - selected);
        let out = whole(&path).to_array::<f32>().unwrap();
        let expected = source.inner.to_patch().to_array::<f32>().unwrap();
        assert!((out[[0, 5, 5, 5]] - expected[[0, 5, 5, 5]]).abs() < 1e-2);
        assert!((out[[0, 47, 39, 39]] - elsewhere).abs() < 1e-2);
        let covered = skipped != Skipped::Renormalize;
        assert_eq!(done.outputs[0].uncovered_voxels == 0, covered);
    }
}

#[test]
fn models_get_owned_patches_and_at_most_max_calls() {
    let dir = tempfile::tempdir().unwrap();
    let source = noise([40, 30, 26]);
    let before = source.inner.to_patch();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for limit in [1, 2] {
        let (running, peak) = (Arc::clone(&running), Arc::clone(&most));
        peak.store(0, Ordering::SeqCst);
        let spoil = move |mut batch: Vec<Patch>| {
            let now = running.fetch_add(1, Ordering::SeqCst) + 1;
            peak.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
            for patch in &mut batch {
                patch
                    .as_mut_slice::<f32>()?
                    .iter_mut()
                    .for_each(|v| *v = v.abs() + 1.0);
            }
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(vec![batch])
        };
        let model =
            BatchModel::new(vec![OutputSpec::new(1, DType::F32)], spoil).with_max_calls(limit);
        let what = InferenceOptions {
            threads: 5,
            ..InferenceOptions::new([16; 3]).with_overlap([8; 3])
        };
        let path = dir.path().join(format!("{limit}.zarr"));
        let target = target(&path, Blend::Hann, Reduce::Mean);
        let plan = what
            .plan(Volume::layout(&*source), &model, &[target])
            .unwrap();
        plan.run(shared(&source), Arc::new(model), &silent).unwrap();
        assert!(most.load(Ordering::SeqCst) <= limit);
        assert_eq!(source.inner.to_patch(), before, "the volume is what it was");
        let out = whole(&path);
        let pairs = out
            .as_slice::<f32>()
            .unwrap()
            .iter()
            .zip(before.as_slice::<f32>().unwrap());
        assert!(
            pairs
                .into_iter()
                .all(|(out, v)| (out - v.abs() - 1.0).abs() < 1e-3)
        );
    }
}

#[test]
fn equal_scores_are_the_lowest_class_for_every_batch_and_slices_are_patches() {
    let dir = tempfile::tempdir().unwrap();
    let source = noise([9, 40, 36]);
    let predict = |batch: Vec<Patch>| {
        let scores = |patch: Patch| {
            let one: Vec<f32> = patch
                .as_slice::<f32>()
                .unwrap()
                .iter()
                .map(|v| v.floor())
                .collect();
            Patch::new(patch.region(), 2, [one.clone(), one].concat()).unwrap()
        };
        Ok(vec![batch.into_iter().map(scores).collect()])
    };
    let mut stored = Vec::new();
    for batch in [1, 3, 7] {
        let model = BatchModel::new(vec![OutputSpec::new(2, DType::F32)], predict);
        let what = InferenceOptions {
            threads: 3,
            batch_size: batch,
            ..InferenceOptions::new([1, 16, 16]).with_overlap([0, 8, 8])
        };
        let path = dir.path().join(format!("{batch}.zarr"));
        let target = target(&path, Blend::GAUSSIAN, Reduce::Argmax);
        let plan = what
            .plan(Volume::layout(&*source), &model, &[target])
            .unwrap();
        plan.run(shared(&source), Arc::new(model), &silent).unwrap();
        assert!(
            whole(&path)
                .as_slice::<u8>()
                .unwrap()
                .iter()
                .all(|&class| class == 0)
        );
        stored.push(files(&path.join("0")));
    }
    assert!(stored.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_prediction_that_is_not_finite_ends_the_run_and_names_the_patch() {
    let dir = tempfile::tempdir().unwrap();
    let source = noise([40, 40, 40]);
    let spoil = |mut batch: Vec<Patch>| {
        for patch in &mut batch {
            if patch.region().start == [8, 8, 8] {
                patch.as_mut_slice::<f32>()?[17] = f32::INFINITY;
            }
        }
        Ok(vec![batch])
    };
    let model = Arc::new(BatchModel::new(vec![OutputSpec::new(1, DType::F32)], spoil));
    let path = dir.path().join("out.zarr");
    let mut target = target(&path, Blend::Hann, Reduce::Mean);
    let what = InferenceOptions::new([16; 3]).with_overlap([8; 3]);
    let layout = Volume::layout(&*source);
    let plan = what
        .plan(layout, &*model, std::slice::from_ref(&target))
        .unwrap();
    let error = plan
        .run(shared(&source), Arc::clone(&model) as _, &silent)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotFinite {
                at: [0, 0, 1, 1],
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    target.blending.non_finite = NonFinite::LeaveOut;
    let plan = what.plan(layout, &*model, &[target]).unwrap();
    let done = plan.run(shared(&source), model, &silent).unwrap();
    assert_eq!(
        (done.outputs[0].skipped, done.outputs[0].uncovered_voxels),
        (1, 0)
    );
    assert_close(&whole(&path), &source.inner.to_patch(), "the others vote");
}

#[test]
fn peers_place_patches_as_they_do() {
    let (monai, _) = InferenceOptions::monai([100, 64, 10], [64, 64, 10], 0.3).unwrap();
    assert_eq!(monai.overlap, [64 - 44, 0, 0], "int(64 * 0.7) is the step");
    let (nnunet, blend) = InferenceOptions::nnunet([110, 64, 30], [64, 64, 64], 0.5).unwrap();
    assert_eq!((nnunet.overlap, blend), ([32; 3], Blend::NnUnet));
    assert_eq!(nnunet.placement, GridPlacement::Spread([3, 1, 1]));
    // 63 / 2 = 31.5 voxels: a step of 31 would make 33 gaps.
    let (odd, _) = InferenceOptions::nnunet([63 + 1008, 64, 80], [63; 3], 0.5).unwrap();
    assert_eq!(odd.placement, GridPlacement::Spread([33, 2, 2]));
    assert_eq!(
        InferenceOptions::padded([8; 3], [5; 3], Padding::Edge).margin,
        [2; 3]
    );
    assert!(InferenceOptions::monai([9; 3], [4; 3], 1.0).is_err());
    assert!(InferenceOptions::nnunet([9; 3], [4; 3], 0.0).is_err());
}
