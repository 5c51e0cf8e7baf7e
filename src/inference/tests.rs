use std::fs;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use super::begun::Choices;
use super::schedule::Schedule;
use super::*;
use crate::aggregator::{Blend, Reduce};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::GridPlacement;
use crate::pad::Padding;
use crate::patch::Patch;
use crate::progress::silent;
use crate::region::Region;
use crate::region::Shape;
use crate::volume::{
    CreateOptions, Layout, MemoryVolume, RealValues, Rescale, Volume, VolumeExt, open,
};

mod boxes;
mod front;
mod hard;
mod huge;
mod inputs;
mod onto;
mod resume;
mod schedules;
#[cfg(feature = "cloud")]
mod stores;
mod tasks;
mod twin;

/// Creates a folder in memory if possible: on a disk, outputs are flushed before they are renamed.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

const SHAPE: Shape = [50, 37, 41];

impl InferenceOptions {
    /// Returns the schedule of a run with exactly these threads.
    pub(super) fn plan(
        &self,
        input: &Layout,
        model: &dyn Model,
        targets: &[OutputTarget],
    ) -> Result<Schedule> {
        let options = self.clone().with_min_threads(self.threads);
        Choices::new(options, vec![targets.to_vec()]).schedule(input, model)
    }

    /// Returns the schedule of a run that follows what other processes began.
    fn following(
        &self,
        input: &Layout,
        model: &dyn Model,
        choices: &[Vec<OutputTarget>],
    ) -> Result<Schedule> {
        Arc::new(Choices::new(self.clone(), choices.to_vec())).following(input, model)
    }
}

fn source() -> Arc<MemoryVolume> {
    let value = |n: u32| i16::try_from(n.wrapping_mul(2_654_435_761) >> 19).unwrap() - 4_000;
    let count = u32::try_from(Region::whole(SHAPE).voxels()).unwrap();
    let volume =
        MemoryVolume::from_vec(SHAPE, 1, (0..count).map(value).collect::<Vec<i16>>()).unwrap();
    Arc::new(volume.with_chunks([1, 16, 16, 16]))
}

fn options() -> CreateOptions {
    CreateOptions {
        chunk: [8; 3],
        shard: Some([16; 3]),
        ..CreateOptions::default()
    }
}

fn inference() -> InferenceOptions {
    InferenceOptions {
        threads: 2,
        ..InferenceOptions::new([16; 3]).with_overlap([8; 3])
    }
}

fn target(path: &Path, blend: Blend, reduce: Reduce) -> OutputTarget {
    OutputTarget {
        store: options(),
        ..OutputTarget::new(path)
            .with_blend(blend)
            .with_reduce(reduce)
    }
}

fn run(
    what: &InferenceOptions,
    volume: Arc<dyn Volume>,
    model: &str,
    target: &OutputTarget,
) -> Result<InferenceStats> {
    let model = builtin_model(model)?;
    let plan = what.plan(volume.layout(), &*model, std::slice::from_ref(target))?;
    plan.run(volume, model, &silent)
}

/// Returns the names and contents of all files below a folder.
fn files(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((
                    path.strip_prefix(folder).unwrap().to_path_buf(),
                    fs::read(&path).unwrap(),
                ));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_identity_returns_the_volume_for_every_blend_and_any_threads() {
    let dir = tempfile::tempdir().unwrap();
    for (n, blend) in [Blend::Average, Blend::Hann, Blend::GAUSSIAN, Blend::Crop]
        .into_iter()
        .enumerate()
    {
        let mut stored = Vec::new();
        for threads in [1, 2, 5] {
            for batch in [1, 3] {
                let path = dir.path().join(format!("{n}-{threads}-{batch}.zarr"));
                let what = InferenceOptions {
                    threads,
                    batch_size: batch,
                    ..inference()
                };
                let target = target(&path, blend.clone(), Reduce::Mean);
                let done = run(&what, source(), "identity", &target).unwrap();
                assert_eq!(
                    done.outputs[0].chunks_written,
                    7 * 3 * 3,
                    "shards end where patches begin"
                );
                let out = open(&path).unwrap().read(Region::whole(SHAPE)).unwrap();
                assert_eq!(out, source().to_patch(), "{blend:?}");
                stored.push(files(&path.join("0")));
            }
        }
        assert!(
            stored.windows(2).all(|pair| pair[0] == pair[1]),
            "{blend:?}: the same bytes"
        );
    }
}

#[test]
fn thresholds_reduced_to_classes_equal_thresholding_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("classes.zarr");
    let target = target(&path, Blend::Hann, Reduce::Argmax);
    run(&inference(), source(), "threshold:-1000,0.5,2000", &target).unwrap();
    let classes = open(&path).unwrap().read(Region::whole(SHAPE)).unwrap();
    let classes: &[u8] = classes.as_slice().unwrap();
    let source = source().to_patch();
    for (&class, &value) in classes.iter().zip(source.as_slice::<i16>().unwrap()) {
        let expected = [-1000, 1, 2000].iter().filter(|&&t| value >= t).count();
        assert_eq!(usize::from(class), expected, "{value}");
    }
}

/// A volume of 8-bit values `v` with the real values `2 v - 10`.
#[derive(Debug)]
struct Scaled(MemoryVolume, Layout);

impl Volume for Scaled {
    fn layout(&self) -> &Layout {
        &self.1
    }
    fn inner(&self) -> Option<&dyn Volume> {
        Some(&self.0)
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.0.read_channels(channels, region, out)
    }
}

#[test]
fn models_get_real_values_and_the_identity_gives_them() {
    let dir = tempfile::tempdir().unwrap();
    let memory = MemoryVolume::from_vec(
        [16; 3],
        1,
        (0..4096).map(|n| u8::try_from(n % 256).unwrap()).collect(),
    )
    .unwrap();
    let mut layout = Volume::layout(&memory).clone();
    layout.rescale = Rescale::new(2.0, -10.0);
    let volume = RealValues::of(Arc::new(Scaled(memory, layout)));
    let same = dir.path().join("same.zarr");
    let means = target(&same, Blend::Hann, Reduce::Mean);
    run(&inference(), Arc::clone(&volume), "identity", &means).unwrap();
    let same = open(&same).unwrap();
    assert_eq!((same.layout().rescale, same.layout().applied), (None, None));
    let same = same.read(Region::whole([16; 3])).unwrap();
    let expected = volume.read(Region::whole([16; 3])).unwrap();
    let pairs = same.as_slice::<f32>().unwrap().iter();
    for (found, expected) in pairs.zip(expected.as_slice::<f32>().unwrap()) {
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }
    let classes = dir.path().join("classes.zarr");
    let argmax = target(&classes, Blend::Hann, Reduce::Argmax);
    run(&inference(), volume, "threshold:90", &argmax).unwrap();
    let classes = open(&classes)
        .unwrap()
        .read(Region::whole([16; 3]))
        .unwrap();
    let above = classes
        .as_slice::<u8>()
        .unwrap()
        .iter()
        .position(|&class| class == 1);
    assert_eq!(above, Some(50), "2 * 50 - 10 = 90");
}

#[test]
fn with_memory_for_the_front_each_input_chunk_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source.zarr");
    let made = crate::volume::create(
        &source,
        &Layout::new([96, 64, 64], 1, DType::F32),
        &options(),
    )
    .unwrap();
    let values: Vec<f32> = (0_u16..u16::MAX)
        .map(f32::from)
        .cycle()
        .skip(1)
        .take(96 * 64 * 64)
        .collect();
    made.write(Region::whole([96, 64, 64]), bytemuck::cast_slice(&values))
        .unwrap();
    made.finish().unwrap();
    let reads = |memory| {
        let out = dir.path().join(format!("{memory}.zarr"));
        let what = InferenceOptions {
            memory,
            ..InferenceOptions::new([32; 3]).with_overlap([16; 3])
        };
        let target = target(&out, Blend::Hann, Reduce::Mean);
        let done = run(&what, open(&source).unwrap(), "identity", &target).unwrap();
        assert!(done.timings.writing > 0.0 && done.timings.blending > 0.0);
        done.reads.chunks
    };
    let chunks = 12 * 8 * 8;
    assert_eq!(reads(64 << 20), chunks);
    let model = builtin_model("identity").unwrap();
    let volume = open(&source).unwrap();
    let plan = |memory| {
        let what = InferenceOptions {
            memory,
            ..InferenceOptions::new([32; 3]).with_overlap([16; 3])
        };
        let target = target(Path::new("out.zarr"), Blend::Hann, Reduce::Mean);
        what.plan(volume.layout(), &*model, &[target])
    };
    let least = plan(64 << 20).unwrap();
    let least = least.peak_bytes - least.cache_bytes - least.reorder_bytes;
    assert!(reads(least) > chunks);
    assert_eq!(plan(least - 1).unwrap().passes(), 2);
    let error = plan(200_000).unwrap_err().to_string();
    assert!(
        error.contains("allow more, or take fewer threads"),
        "{error}"
    );
}

#[test]
fn predictions_that_wait_have_memory_before_chunks_that_are_cheap_to_read_again() {
    const MIB: u64 = 1 << 20;
    let model = builtin_model("identity").unwrap();
    let input = Layout {
        read_chunk: Some([1, 64, 64, 64]),
        ..Layout::new([256; 3], 1, DType::F32)
    };
    let planned = |input: &Layout, threads, memory| {
        let what = InferenceOptions {
            memory,
            threads,
            min_threads: threads,
            ..InferenceOptions::new([64; 3]).with_overlap([32; 3])
        };
        let target = target(Path::new("out.zarr"), Blend::Hann, Reduce::Mean);
        what.plan(input, &*model, &[target]).unwrap()
    };
    let divided = |input: &Layout, threads, more: u64| {
        let all = planned(input, threads, 1 << 40);
        let least = all.peak_bytes - all.cache_bytes - all.reorder_bytes;
        // A sixteenth is not planned.
        let plan = planned(input, threads, (least + more) * 16 / 15 + 1);
        assert!(plan.cache_bytes + plan.reorder_bytes <= more + 1);
        (plan.cache_bytes / MIB, plan.reorder_bytes / MIB)
    };
    // A prediction has 1 MiB; two threads may have six that wait.
    assert_eq!(divided(&input, 2, 9 * MIB), (6, 3));
    assert_eq!(divided(&input, 2, 36 * MIB).1, 6);
    assert_eq!(divided(&input, 1, 9 * MIB).1, 0);
    let remote = Layout {
        remote: true,
        ..input
    };
    assert_eq!(divided(&remote, 2, 9 * MIB).1, 0);
}

#[test]
fn a_stopped_or_failed_run_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.zarr");
    let plan = |model: &dyn Model| {
        inference()
            .plan(
                Volume::layout(&*source()),
                model,
                &[target(&path, Blend::Hann, Reduce::Mean)],
            )
            .unwrap()
    };
    let identity = builtin_model("identity").unwrap();
    for stop_at in [0, 1, 20, 59] {
        let stop = |done, _| {
            if done < stop_at {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let stopped = plan(&*identity).run(source(), Arc::clone(&identity), &stop);
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    for fault in [
        Fault::Fails,
        Fault::Panics,
        Fault::LosesOne,
        Fault::WrongShape,
    ] {
        let model = Arc::new(Broken(fault));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            plan(&*model).run(source(), Arc::clone(&model) as _, &silent)
        }));
        match fault {
            Fault::Panics => assert!(outcome.is_err()),
            _ => assert!(outcome.unwrap().is_err()),
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Fails,
    Panics,
    LosesOne,
    WrongShape,
}

/// A model that fails at the patch that starts at (8, 8, 8).
#[derive(Debug)]
struct Broken(Fault);

impl Model for Broken {
    fn outputs(&self, _input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
        Ok(vec![OutputSpec::new(1, DType::F32)])
    }

    fn predict(&self, mut batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        if batch.iter().any(|patch| patch.region().start == [8; 3]) {
            match self.0 {
                Fault::Fails => return Err(Error::Interrupted),
                Fault::Panics => panic!("the model broke"),
                Fault::LosesOne => batch.clear(),
                Fault::WrongShape => {
                    batch[0] = Patch::zeros(Region::whole([16, 16, 15]), 1, DType::F32)?;
                }
            }
        }
        Ok(vec![batch])
    }
}
