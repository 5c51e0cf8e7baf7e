//! Inputs of resumable runs: those that may share an output, and those that change during the run.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::volume::{
    Cached, ChannelRange, ChunkShape, Downsample, Durability, Interpolation, OpenOptions,
    OutputPart, Pyramid, RawSpec, Resample, Resampled, VolumeMut, VoxelGrid, create,
    input_fingerprint,
};

const SMALL: Shape = [8; 3];

fn memory(shape: Shape, channels: u64, salt: i16) -> MemoryVolume {
    let count = i16::try_from(Region::whole(shape).voxels() * channels).unwrap();
    let voxels: Vec<i16> = (0..count).map(|n| n.wrapping_mul(salt)).collect();
    MemoryVolume::from_vec(shape, channels, voxels).unwrap()
}

/// Stores a volume of any shape.
fn store(path: &Path, volume: &MemoryVolume, pyramid: bool) {
    let options = CreateOptions {
        chunk: [4; 3],
        shard: None,
        pyramid: pyramid.then_some(Pyramid {
            levels: Some(2),
            method: Downsample::Mean,
        }),
        overwrite: true,
        ..CreateOptions::default()
    };
    let layout = Volume::layout(volume);
    let target = create(path, layout, &options).unwrap();
    target
        .write(Region::whole(layout.shape), volume.to_patch().bytes())
        .unwrap();
    target.finish().unwrap();
}

fn channels(volume: Arc<dyn Volume>, range: Range<u64>) -> Arc<dyn Volume> {
    Arc::new(ChannelRange::new(volume, range).unwrap())
}

fn on_grid(coarse: Arc<dyn Volume>, shape: Shape, geometry: Geometry) -> Arc<dyn Volume> {
    let nearest = Resample::default().with_interpolation(Interpolation::Nearest);
    let grid = VoxelGrid::new(shape, geometry);
    Arc::new(Resampled::new(coarse, grid, &nearest).unwrap())
}

fn upsampled(coarse: Arc<dyn Volume>) -> Arc<dyn Volume> {
    on_grid(coarse, SMALL, Geometry::default())
}

fn cached(volume: Arc<dyn Volume>) -> Arc<dyn Volume> {
    Arc::new(Cached::new(volume, 1 << 20))
}

/// Returns a coarse volume whose origin is that of `SMALL`'s voxels, moved by some millimeters.
fn coarse(shape: Shape, moved: f64, chunk: Option<ChunkShape>) -> MemoryVolume {
    let spacing: [f64; 3] = shape.map(|n| if n == 4 { 2.0 } else { 1.0 });
    let origin = spacing.map(|spacing| (spacing - 1.0) / 2.0 + moved);
    let layout =
        Layout::new(shape, 1, DType::I16).with_geometry(Geometry::from_parts(spacing, origin));
    let volume = MemoryVolume::from_patch(layout, memory(shape, 1, 5).to_patch()).unwrap();
    match chunk {
        Some(chunk) => volume.with_chunks(chunk),
        None => volume,
    }
}

/// Returns volumes of one shape and type, opened in many ways. Those with the same name contain the same voxels of the
/// same files.
fn inputs(folder: &Path) -> Vec<(&'static str, Arc<dyn Volume>)> {
    let at = |name: &str| folder.join(name);
    let three = memory(SMALL, 3, 7);
    store(&at("three.zarr"), &three, false);
    store(&at("three.nii"), &three, false);
    store(&at("one.npy"), &memory(SMALL, 1, 7), false);
    store(&at("other.npy"), &memory(SMALL, 1, 9), false);
    store(&at("levels.zarr"), &memory([16; 3], 1, 7), true);
    store(&at("eight.zarr"), &memory(SMALL, 1, 7), true);
    let bytes = memory([9, 8, 8], 1, 11).to_patch();
    fs::write(at("a.raw"), bytes.bytes()).unwrap();
    symlink(at("one.npy"), at("link.npy")).unwrap();
    let opened = |name: &str| open(at(name)).unwrap();
    let level = |name: &str, level| {
        let options = OpenOptions {
            level,
            ..OpenOptions::default()
        };
        options.open(at(name)).unwrap()
    };
    let raw = |offset, big_endian| {
        let spec = RawSpec {
            big_endian,
            offset,
            ..RawSpec::new(SMALL, DType::I16)
        };
        let options = OpenOptions {
            raw: Some(spec),
            ..OpenOptions::default()
        };
        options.open(at("a.raw")).unwrap()
    };
    let edited = memory(SMALL, 1, 7);
    edited
        .write(Region::whole(SMALL), memory(SMALL, 1, 8).to_patch().bytes())
        .unwrap();
    let mut layout = Layout::new(SMALL, 1, DType::I16);
    layout.rescale = Rescale::new(2.0, 0.0);
    let rescaled = MemoryVolume::from_patch(layout, memory(SMALL, 1, 7).to_patch()).unwrap();
    vec![
        ("zarr 0", channels(opened("three.zarr"), 0..1)),
        ("zarr 1", channels(opened("three.zarr"), 1..2)),
        ("zarr 2", channels(opened("three.zarr"), 2..3)),
        ("zarr 1", cached(channels(opened("three.zarr"), 1..2))),
        ("zarr 1", channels(cached(opened("three.zarr")), 1..2)),
        (
            "zarr 2",
            channels(channels(opened("three.zarr"), 1..3), 1..2),
        ),
        ("nifti 0", channels(opened("three.nii"), 0..1)),
        ("nifti 1", channels(opened("three.nii"), 1..2)),
        ("one", opened("one.npy")),
        ("one", opened("link.npy")),
        ("one", cached(opened("one.npy"))),
        ("one", channels(opened("one.npy"), 0..1)),
        ("one", Arc::new(opened("one.npy"))),
        ("other", opened("other.npy")),
        ("level 1", level("levels.zarr", 1)),
        ("eight", level("eight.zarr", 0)),
        ("raw", raw(0, false)),
        ("raw", raw(0, false)),
        ("raw from 2", raw(2, false)),
        ("raw from 128", raw(128, false)),
        ("raw, big-endian", raw(0, true)),
        ("memory 7", Arc::new(memory(SMALL, 1, 7))),
        (
            "memory 7",
            Arc::new(memory(SMALL, 1, 7).with_chunks([1, 4, 4, 4])),
        ),
        ("memory 8", Arc::new(memory(SMALL, 1, 8))),
        ("memory 8", Arc::new(edited)),
        ("memory 7 times 2", Arc::new(rescaled)),
        ("memory, 0", channels(Arc::new(memory(SMALL, 3, 7)), 0..1)),
        ("memory, 2", channels(Arc::new(memory(SMALL, 3, 7)), 2..3)),
        ("coarse", upsampled(Arc::new(coarse([4; 3], 0.0, None)))),
        (
            "coarse",
            upsampled(Arc::new(coarse([4; 3], 0.0, Some([1, 2, 2, 2])))),
        ),
        ("moved", upsampled(Arc::new(coarse([4; 3], 0.6, None)))),
        ("flat", upsampled(Arc::new(coarse([4, 8, 8], 0.0, None)))),
    ]
}

/// One of two parts of a prediction.
fn half(volume: &Arc<dyn Volume>, path: &Path, part: u32) -> Result<InferenceStats> {
    let model = builtin_model("identity").unwrap();
    let mut target = target(path, Blend::Hann, Reduce::Mean);
    target.store.chunk = [4; 3];
    target.store.shard = None;
    let inference = InferenceOptions {
        threads: 1,
        ..InferenceOptions::new([4; 3]).with_overlap([2; 3])
    };
    let plan = inference.plan(volume.layout(), &*model, std::slice::from_ref(&target))?;
    let plan = plan.with_part(OutputPart::new(part, 2)?, Durability::None)?;
    plan.run(Arc::clone(volume), model, &silent)
}

#[test]
fn two_inputs_share_an_output_if_and_only_if_they_are_the_same_voxels_of_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = inputs(dir.path());
    for (a, (one, first)) in inputs.iter().enumerate() {
        for (b, (two, second)) in inputs.iter().enumerate() {
            let found = [first, second].map(|volume| input_fingerprint(&**volume).unwrap());
            assert_eq!(
                found[0] == found[1],
                one == two,
                "{a} {one}, {b} {two}: {found:?}"
            );
            // The runs themselves: each with the next few.
            if (a..a + 4).contains(&b) {
                let path = dir.path().join(format!("{a}-{b}.zarr"));
                half(first, &path, 0).unwrap();
                let done = half(second, &path, 1);
                if one == two {
                    assert!(done.unwrap().whole, "{one}");
                } else {
                    let refused = done.unwrap_err();
                    assert!(
                        matches!(refused, Error::RunMismatch { .. }),
                        "{one} {two}: {refused}"
                    );
                    assert!(!path.exists());
                }
            }
        }
    }
}

#[test]
fn every_change_of_a_file_is_in_the_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.zarr");
    store(&path, &memory(SMALL, 2, 7), false);
    let now = || input_fingerprint(&*channels(open(&path).unwrap(), 0..1)).unwrap();
    let before = now();
    assert_eq!(before, now());
    let chunks: Vec<_> = files(&path)
        .into_iter()
        .filter(|(name, _)| name.iter().any(|part| part == "c"))
        .collect();
    assert!(chunks.len() >= 8);
    // A chunk is replaced by one of the same length that was written long ago, so the latest modification time stays
    // the same.
    let old = std::time::SystemTime::now() - std::time::Duration::from_hours(9);
    let (name, bytes) = &chunks[0];
    let other = dir.path().join("other");
    fs::write(&other, bytes).unwrap();
    let file = fs::File::options().write(true).open(&other).unwrap();
    file.set_modified(old).unwrap();
    fs::rename(&other, path.join(name)).unwrap();
    let exchanged = now();
    assert_ne!(before, exchanged);
    fs::remove_file(path.join(&chunks[1].0)).unwrap();
    assert_ne!(exchanged, now());
}

/// A volume without an identity.
#[derive(Debug)]
struct Nameless(MemoryVolume);

impl Volume for Nameless {
    fn layout(&self) -> &Layout {
        Volume::layout(&self.0)
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.0.read_channels(channels, region, out)
    }
    fn inner(&self) -> Option<&dyn Volume> {
        Some(&self.0)
    }
}

#[test]
fn what_has_no_identity_is_predicted_whole_but_not_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.zarr");
    let nameless = || -> Arc<dyn Volume> { Arc::new(Nameless(memory(SMALL, 2, 7))) };
    for volume in [nameless(), cached(nameless()), channels(nameless(), 1..2)] {
        let refused = half(&volume, &path, 0).unwrap_err();
        assert!(matches!(refused, Error::NoIdentity { .. }), "{refused}");
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing is left"
        );
    }
    let volume = channels(nameless(), 1..2);
    let means = target(&path, Blend::Hann, Reduce::Mean);
    run(
        &InferenceOptions::new([4; 3]).with_overlap([2; 3]),
        volume,
        "identity",
        &means,
    )
    .unwrap();
}

type Wrap = fn(Arc<dyn Volume>) -> Arc<dyn Volume>;

#[test]
fn an_input_that_changes_during_the_run_is_noticed_through_every_wrapper() {
    let dir = tempfile::tempdir().unwrap();
    let wrappers: [(&str, Wrap); 6] = [
        ("nothing", |volume| volume),
        ("a cache", cached),
        ("a pointer", |volume| Arc::new(volume)),
        ("channels", |volume| channels(volume, 1..2)),
        ("two ranges of channels", |volume| {
            channels(channels(volume, 0..2), 1..2)
        }),
        ("a finer grid", |volume| {
            let geometry = Geometry::from_parts([0.5; 3], [-0.25; 3]);
            on_grid(volume, [16; 3], geometry)
        }),
    ];
    for (n, (name, wrap)) in wrappers.into_iter().enumerate() {
        for kind in ["npy", "nii", "zarr"] {
            let path = dir.path().join(format!("{n}.{kind}"));
            store(&path, &memory(SMALL, 3, 7), false);
            let volume = wrap(open(&path).unwrap());
            let count = volume.layout().channels;
            let changed = AtomicBool::new(false);
            let source = path.clone();
            let predict = move |batch: Vec<Patch>| {
                if !changed.swap(true, Ordering::SeqCst) {
                    // One tick of the file system's clock.
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    store(&source, &memory(SMALL, 3, 8), false);
                }
                Ok(vec![batch])
            };
            let specs = vec![OutputSpec::new(count, DType::F32)];
            let model: Arc<dyn Model> = Arc::new(BatchModel::new(specs, predict));
            let out = dir.path().join("out.zarr");
            let means = target(&out, Blend::Hann, Reduce::Mean);
            let what = InferenceOptions {
                threads: 1,
                ..InferenceOptions::new([4; 3]).with_overlap([2; 3])
            };
            let plan = what
                .plan(volume.layout(), &*model, std::slice::from_ref(&means))
                .unwrap();
            let error = plan.run(volume, model, &silent).unwrap_err();
            assert!(
                matches!(error, Error::InputModified { .. }),
                "{kind}, {name}: {error}"
            );
            assert!(!out.exists(), "{kind}, {name}");
        }
    }
}
