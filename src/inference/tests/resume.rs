//! Runs that are interrupted and resumed, and runs in parts.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::error::Error;
use crate::volume::{Downsample, Durability, OutputPart, Pyramid};

fn pyramid_target(path: &Path) -> OutputTarget {
    let mut target = target(path, Blend::Hann, Reduce::Mean);
    target.store.pyramid = Some(Pyramid {
        levels: Some(3),
        method: Downsample::Mean,
    });
    target
}

/// Returns the identity on real values, with a counter of its patches.
fn counting() -> (Arc<AtomicUsize>, Arc<dyn Model>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let predict = move |batch: Vec<Patch>| {
        count.fetch_add(batch.len(), Ordering::Relaxed);
        Ok(vec![batch])
    };
    let model = BatchModel::new(vec![OutputSpec::new(1, DType::F32)], predict);
    (calls, Arc::new(model.with_id("counting")))
}

fn plan(what: &InferenceOptions, model: &dyn Model, target: &OutputTarget) -> Schedule {
    let layout = Volume::layout(&*source()).clone();
    what.plan(&layout, model, std::slice::from_ref(target))
        .unwrap()
}

#[test]
fn a_run_interrupted_at_any_patch_is_resumed_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let unbroken = dir.path().join("unbroken.zarr");
    let (calls, model) = counting();
    let total = {
        let plan = plan(&inference(), &*model, &pyramid_target(&unbroken));
        plan.run(source(), Arc::clone(&model), &silent)
            .unwrap()
            .patches
    };
    let expected = files(&unbroken);
    for stop_at in [0, 1, 7, 30, 59, 60, 61, total - 1] {
        let path = dir.path().join(format!("{stop_at}.zarr"));
        let target = pyramid_target(&path);
        let with_resume = || {
            plan(&inference(), &*model, &target)
                .with_part(OutputPart::WHOLE, Durability::None)
                .unwrap()
        };
        let stop = |done, _| {
            if done < stop_at {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let stopped = with_resume().run(source(), Arc::clone(&model), &stop);
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert!(!path.exists(), "nothing looks finished");
        calls.store(0, Ordering::Relaxed);
        let done = with_resume()
            .run(source(), Arc::clone(&model), &silent)
            .unwrap();
        assert!(done.whole);
        let again = calls.load(Ordering::Relaxed) as u64;
        assert_eq!(again, done.patches);
        if stop_at > 40 {
            assert!(
                again < total,
                "finished chunks are not predicted again: {again} after {stop_at}"
            );
        }
        assert_eq!(
            named(files(&path)),
            named(expected.clone()),
            "after {stop_at}"
        );
        let hidden = fs::read_dir(dir.path()).unwrap().filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with('.')
        });
        assert_eq!(hidden.count(), 0, "nothing is left");
    }
}

/// Returns the files without the group's metadata, which contains the output's name.
fn named(files: Vec<(std::path::PathBuf, Vec<u8>)>) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let group = Path::new("zarr.json");
    files
        .into_iter()
        .filter(|(path, _)| path != group)
        .collect()
}

#[test]
fn parts_equal_one_run_for_any_number_and_order() {
    let dir = tempfile::tempdir().unwrap();
    let unbroken = dir.path().join("unbroken.zarr");
    let (calls, model) = counting();
    let whole = plan(&inference(), &*model, &pyramid_target(&unbroken));
    let total = whole
        .run(source(), Arc::clone(&model), &silent)
        .unwrap()
        .patches;
    let expected = named(files(&unbroken));
    for count in [1, 2, 3, 8] {
        let path = dir.path().join(format!("{count}.zarr"));
        let target = pyramid_target(&path);
        calls.store(0, Ordering::Relaxed);
        for n in (0..count).rev() {
            let part = OutputPart::new(n, count).unwrap();
            let plan = plan(&inference(), &*model, &target)
                .with_part(part, Durability::None)
                .unwrap();
            let done = plan.run(source(), Arc::clone(&model), &silent).unwrap();
            assert_eq!(done.whole, path.exists(), "{n} of {count}");
            // There are eight parts but four layers of chunks: four parts own nothing, including the last.
            assert_eq!(
                done.whole,
                n == 0 || (count == 8 && n == 1),
                "{n} of {count}"
            );
        }
        assert_eq!(named(files(&path)), expected, "{count} parts");
        let predicted = calls.load(Ordering::Relaxed) as u64;
        assert!(predicted >= total && (count > 1 || predicted == total));
    }
}

#[test]
fn a_different_run_is_refused_with_the_differences() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.zarr");
    let identity = builtin_model("identity").unwrap();
    let begun = |what: &InferenceOptions, model: &Arc<dyn Model>, target: &OutputTarget| {
        let plan = plan(what, &**model, target)
            .with_part(OutputPart::WHOLE, Durability::Chunk)
            .unwrap();
        plan.run(source(), Arc::clone(model), &|done, _| {
            if done < 12 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
    };
    let target = |path: &Path, blend, reduce| {
        // Shards would follow the grid.
        let mut target = target(path, blend, reduce);
        target.store.shard = None;
        target.dtype = Some(DType::F32);
        target
    };
    let means = target(&path, Blend::Hann, Reduce::Mean);
    assert!(matches!(
        begun(&inference(), &identity, &means),
        Err(Error::Interrupted)
    ));
    let differs =
        |what: &InferenceOptions, model: &Arc<dyn Model>, target: &OutputTarget, named: &str| {
            let error = begun(what, model, target).unwrap_err();
            assert!(matches!(error, Error::RunMismatch { .. }), "{error}");
            assert!(error.to_string().contains(named), "{error}");
        };
    let mut other = inference();
    other.overlap = [8, 8, 7];
    differs(&other, &identity, &means, "starts");
    differs(
        &inference(),
        &identity,
        &target(&path, Blend::Crop, Reduce::Mean),
        "blend",
    );
    differs(
        &inference(),
        &builtin_model("gaussian:1").unwrap(),
        &means,
        "model",
    );
    let mut filled = means.clone();
    filled.blending.fill = 3.0;
    differs(&inference(), &identity, &filled, "fill");
    let flat = target(&dir.path().join("out.npy"), Blend::Hann, Reduce::Mean);
    let refused =
        plan(&inference(), &*identity, &flat).with_part(OutputPart::WHOLE, Durability::None);
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
}

#[test]
fn a_function_is_identified_by_its_id_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.zarr");
    let means = target(&path, Blend::Hann, Reduce::Mean);
    let function = |value: f32, id: Option<&str>, halo: u64| {
        let output = OutputSpec {
            halo: [halo; 3],
            ..OutputSpec::new(1, DType::F32)
        };
        let predict = move |batch: Vec<Patch>| {
            let one = |patch: &Patch| {
                let inside = patch
                    .region()
                    .start
                    .map(|n| n + i64::try_from(halo).unwrap());
                let region = Region::new(inside, patch.shape().map(|n| n - 2 * halo));
                let count = usize::try_from(region.voxels()).unwrap();
                Patch::new(region, 1, vec![value; count])
            };
            Ok(vec![batch.iter().map(one).collect::<Result<_>>()?])
        };
        let model = BatchModel::new(vec![output], predict);
        match id {
            Some(id) => Arc::new(model.with_id(id)) as Arc<dyn Model>,
            None => Arc::new(model),
        }
    };
    let run = |model: Arc<dyn Model>, part: Option<OutputPart>, stop_at: u64| {
        let mut plan = plan(&inference(), &*model, &means);
        if let Some(part) = part {
            plan = plan.with_part(part, Durability::None)?;
        }
        plan.run(source(), model, &move |done, _| {
            if done < stop_at {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
    };
    // Without an id, no run starts that a different function could resume.
    let parts = [OutputPart::WHOLE, OutputPart::new(1, 2).unwrap()];
    let flipped = |model| Arc::new(FlipTta::new(model).unwrap()) as Arc<dyn Model>;
    for part in parts {
        for model in [function(1.0, None, 0), flipped(function(1.0, None, 0))] {
            let refused = run(model, Some(part), u64::MAX).unwrap_err();
            assert!(matches!(refused, Error::NoModelId { .. }), "{refused}");
            let text = refused.to_string();
            assert!(text.starts_with("a function has no id"), "{text}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
    let stopped = run(function(1.0, Some("ones"), 0), Some(OutputPart::WHOLE), 20);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    for (model, named) in [
        (function(2.0, Some("twos"), 0), "model"),
        (flipped(function(1.0, Some("ones"), 0)), "model"),
        (function(1.0, Some("ones"), 1), "halo"),
    ] {
        let error = run(model, Some(OutputPart::WHOLE), u64::MAX).unwrap_err();
        assert!(matches!(error, Error::RunMismatch { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    let done = run(
        function(1.0, Some("ones"), 0),
        Some(OutputPart::WHOLE),
        u64::MAX,
    );
    assert!(done.unwrap().whole);
    fs::remove_dir_all(&path).unwrap();
    // A run that is neither resumed nor split needs no id.
    assert!(run(function(1.0, None, 0), None, u64::MAX).unwrap().whole);
}
