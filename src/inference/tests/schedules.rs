//! Runs of several outputs by processes in any order, with any threads and memory, interrupted at any moment: the bytes
//! are those of one process, and no run gets stuck.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::error::Error;
use crate::volume::{ChannelRange, Downsample, Durability, OutputPart, Pyramid, create, steps};

/// A pseudo-random number generator.
pub(super) struct Draw(pub(super) u64);

impl Draw {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        let at = self.below(all.len() as u64);
        all[usize::try_from(at).unwrap()]
    }
}

pub(super) const SMALL: Shape = [24, 17, 19];

/// Returns a volume of two channels, the same in every call.
pub(super) fn two_channels() -> Arc<MemoryVolume> {
    let count = 2 * u32::try_from(Region::whole(SMALL).voxels()).unwrap();
    let value = |n: u32| f32::from(u16::try_from(n.wrapping_mul(2_654_435_761) >> 16).unwrap());
    let volume = MemoryVolume::from_vec(SMALL, 2, (0..count).map(value).collect::<Vec<f32>>());
    Arc::new(volume.unwrap().with_chunks([1, 8, 8, 8]))
}

/// The origin of a process's input. The voxels are always those of [`two_channels`].
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// An array with these channels alone.
    Array,
    /// Channels of a larger array: one of three time points.
    Times(u64),
    /// The same from a file.
    File(u64),
}

/// Returns three time points of two channels each; the one at `at` has the voxels of [`two_channels`].
fn time_points(at: u64) -> MemoryVolume {
    let wanted = two_channels().to_patch();
    let wanted = wanted.as_slice::<f32>().unwrap();
    let points = (0..3).flat_map(|time| {
        let change = if time == at { 0.0 } else { 1000.0 };
        wanted.iter().map(move |value| value + change)
    });
    MemoryVolume::from_vec(SMALL, 6, points.collect::<Vec<f32>>()).unwrap()
}

impl Origin {
    /// Returns the volume, at time point `time` if there are several. Files are written to `folder`.
    fn volume(self, folder: &Path, time: u64) -> Arc<dyn Volume> {
        let chosen = |volume| {
            let channels = ChannelRange::new(volume, 2 * time..2 * time + 2);
            Arc::new(channels.unwrap()) as Arc<dyn Volume>
        };
        match self {
            Self::Array => two_channels(),
            Self::Times(at) => {
                let volume = time_points(at).with_chunks([1, 8, 8, 8]);
                chosen(Arc::new(volume))
            }
            Self::File(at) => {
                let path = folder.join("input.npy");
                if !path.exists() {
                    let volume = time_points(at);
                    let layout = Volume::layout(&volume).clone();
                    let file = create(&path, &layout, &CreateOptions::default()).unwrap();
                    file.write(Region::whole(SMALL), volume.to_patch().bytes())
                        .unwrap();
                    file.finish().unwrap();
                }
                chosen(open(&path).unwrap())
            }
        }
    }

    /// Returns the time point with the voxels of [`two_channels`].
    const fn right(self) -> u64 {
        match self {
            Self::Array => 0,
            Self::Times(at) | Self::File(at) => at,
        }
    }
}

/// Returns a model with three outputs: both channels, one channel at half the size, and a class.
pub(super) fn three_outputs() -> Arc<dyn Model> {
    let named = |name: &str, channels, scale| OutputSpec {
        name: name.to_owned(),
        scale,
        ..OutputSpec::new(channels, DType::F32)
    };
    let outputs = vec![
        named("both", 2, 1),
        named("half", 1, 2),
        named("class", 2, 1),
    ];
    let predict = |batch: Vec<Patch>| {
        let half = batch.iter().map(halved).collect();
        Ok(vec![batch.clone(), half, batch])
    };
    Arc::new(BatchModel::new(outputs, predict).with_id("both, half and class"))
}

/// Returns every other voxel of the first channel.
fn halved(patch: &Patch) -> Patch {
    let view = patch.view::<f32>().unwrap();
    let shape = patch.shape().map(|n| n / 2);
    let mut values = Vec::new();
    for place in crate::region::indices(shape.map(|n| 0..n)) {
        let [z, y, x] = place.map(|n| usize::try_from(2 * n).unwrap());
        values.push(view[[0, z, y, x]]);
    }
    let region = Region::new(patch.region().start.map(|n| n / 2), shape);
    Patch::new(region, 1, values).unwrap()
}

pub(super) fn three_targets(folder: &Path, overwrite: bool) -> Vec<OutputTarget> {
    let reduces = [Reduce::Mean, Reduce::Mean, Reduce::Argmax];
    let target = |(n, reduce): (usize, Reduce)| {
        let path = folder.join(format!("{n}.zarr"));
        let mut target = OutputTarget::new(path).with_reduce(reduce);
        target.store.chunk = [4; 3];
        target.store.pyramid = (n == 0).then_some(Pyramid {
            levels: Some(3),
            method: Downsample::Mean,
        });
        target.store.overwrite = overwrite;
        target.defaults = vec![StoreOption::Shard];
        target
    };
    reduces.into_iter().enumerate().map(target).collect()
}

/// Returns the choices of a process: the first process selects its shards from these.
fn choices(targets: &[OutputTarget]) -> Vec<Vec<OutputTarget>> {
    let with = |voxels: u64| {
        let all = targets.iter().cloned().map(|mut target| {
            target.store.shard = Some([voxels; 3]);
            target
        });
        all.collect()
    };
    [16, 8, 4].into_iter().map(with).collect()
}

pub(super) fn placed(threads: usize, memory: u64) -> InferenceOptions {
    InferenceOptions {
        threads,
        memory,
        placement: GridPlacement::Padded,
        ..InferenceOptions::new([8; 3]).with_overlap([4; 3])
    }
}

/// Returns the files of all outputs, without the metadata that contains their names.
fn stored(folder: &Path) -> Vec<Vec<(std::path::PathBuf, Vec<u8>)>> {
    let of = |n: usize| {
        let all = files(&folder.join(format!("{n}.zarr"))).into_iter();
        all.filter(|(path, _)| path != Path::new("zarr.json"))
            .collect()
    };
    (0..3).map(of).collect()
}

/// A stored output: its shards and its files.
pub(super) type Stored = (Shape, Vec<(std::path::PathBuf, Vec<u8>)>);

/// Returns all three outputs.
fn outputs(folder: &Path) -> Vec<Stored> {
    let all = stored(folder).into_iter().enumerate();
    all.map(|(n, files)| {
        let volume = open(folder.join(format!("{n}.zarr"))).unwrap();
        let [_, shard @ ..] = volume.layout().write_chunk.unwrap();
        (shard, files)
    })
    .collect()
}

/// Returns the outputs that one uninterrupted process writes, for each choice of shards.
pub(super) fn unbroken() -> Vec<Vec<Stored>> {
    let all = choices(&three_targets(Path::new("nowhere"), false)).into_iter();
    all.map(|mut targets| {
        let dir = scratch();
        let (volume, model) = (two_channels(), three_outputs());
        for target in &mut targets {
            target.path = dir.path().join(target.path.file_name().unwrap());
        }
        let plan = placed(2, 64 << 20).plan(Volume::layout(&*volume), &*model, &targets);
        plan.unwrap().run(volume, model, &silent).unwrap();
        outputs(dir.path())
    })
    .collect()
}

/// Checks that every output is as one process writes it, with the shards that its first process chose. Returns the
/// shards of the first output.
pub(super) fn check(folder: &Path, expected: &[Vec<Stored>], what: &str) -> Shape {
    let found = outputs(folder);
    for (n, output) in found.iter().enumerate() {
        let mut same = expected.iter().map(|all| &all[n]);
        let same = same.find(|expected| expected.0 == output.0);
        assert!(
            same.is_some_and(|same| same.1 == output.1),
            "{what}: other bytes in {n}"
        );
    }
    found[0].0
}

/// Returns the least memory that one thread needs with the largest shards, more, and plenty. The least is short enough
/// for more threads to choose smaller shards.
fn memories() -> [u64; 3] {
    let (volume, model) = (two_channels(), three_outputs());
    let largest = choices(&three_targets(Path::new("nowhere"), false)).remove(0);
    let fits = |memory: &u64| {
        let plan = placed(1, *memory).plan(Volume::layout(&*volume), &*model, &largest);
        plan.is_ok()
    };
    let least = (1..1 << 16).map(|n| n << 14).find(fits).unwrap();
    [least, least * 5 / 4, 64 << 20]
}

/// The outcome of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Whole,
    Part,
    Killed,
    /// All outputs have their names: nothing is left to do.
    Exists,
}

/// Runs one process: a part with some threads and memory, optionally interrupted at a patch or at a step.
fn process(
    folder: &Path,
    overwrite: bool,
    part: OutputPart,
    means: (usize, u64),
    kill: (Option<u64>, Option<u32>),
) -> Ended {
    match process_of(two_channels(), folder, overwrite, part, means, kill) {
        Ok(ended) => ended,
        Err(error) => panic!("{part:?}: {error}"),
    }
}

/// Runs the same with any input.
fn process_of(
    volume: Arc<dyn Volume>,
    folder: &Path,
    overwrite: bool,
    part: OutputPart,
    (threads, memory): (usize, u64),
    (patch, step): (Option<u64>, Option<u32>),
) -> Result<Ended> {
    let model = three_outputs();
    let mut targets = choices(&three_targets(folder, overwrite));
    // Processes with a different number of threads would choose different shards.
    let other = threads % targets.len();
    targets.rotate_left(other);
    let inference = placed(threads, memory);
    let layout = volume.layout().clone();
    let plan = inference.following(&layout, &*model, &targets);
    let plan = plan.and_then(|plan| plan.with_part(part, Durability::None));
    let plan = plan.unwrap_or_else(|error| panic!("{threads} threads, {memory} bytes: {error}"));
    let stop = |done, _| match patch {
        Some(patch) if done >= patch => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    steps::break_off_at(step);
    let done = plan.run(volume, model, &stop);
    steps::break_off_at(None);
    match done {
        Ok(done) if done.whole => Ok(Ended::Whole),
        Ok(_) => Ok(Ended::Part),
        Err(Error::Interrupted | Error::Panicked { .. }) => Ok(Ended::Killed),
        Err(Error::Exists { .. }) => Ok(Ended::Exists),
        Err(error) => Err(error),
    }
}

#[test]
fn any_schedule_of_processes_ends_with_the_bytes_of_one() {
    let schedules: u64 = std::env::var("VOXPATCH_SCHEDULES").map_or(60, |n| n.parse().unwrap());
    let memories = memories();
    let expected = unbroken();
    let mut known = std::collections::BTreeSet::new();
    let mut counts = [0_u64; 5];
    let (mut chosen, mut intruders) = (0_u64, 0_u64);
    for seed in 0..schedules {
        let mut draw = Draw(seed);
        let (dir, inputs) = (scratch(), scratch());
        let (folder, inputs) = (dir.path(), inputs.path());
        let time = draw.below(3);
        let origin = draw.one_of(&[Origin::Array, Origin::Times(time), Origin::File(time)]);
        let is_chosen = !matches!(origin, Origin::Array);
        chosen += u64::from(is_chosen);
        let parts = draw.one_of(&[1, 1, 2, 3, 5, 9]);
        let overwrite = draw.below(4) == 0;
        if overwrite {
            let (volume, model) = (two_channels(), three_outputs());
            let old = three_targets(folder, false);
            let plan = placed(1, 64 << 20).plan(Volume::layout(&*volume), &*model, &old);
            plan.unwrap().run(volume, model, &silent).unwrap();
        }
        let mut whole = false;
        let mut processes = 0;
        while !whole {
            processes += 1;
            assert!(processes < 400, "schedule {seed} of {parts} parts is stuck");
            let part = part_of(draw.below(parts), parts);
            let means = (draw.one_of(&[1, 2, 3, 5, 8]), draw.one_of(&memories));
            let kill = match draw.below(5) {
                0 => (Some(draw.below(150)), None),
                1 => (None, Some(u32::try_from(draw.below(30)).unwrap())),
                _ => (None, None),
            };
            let volume = origin.volume(inputs, origin.right());
            let ended = process_of(volume, folder, overwrite, part, means, kill);
            let ended = ended.unwrap_or_else(|error| panic!("schedule {seed}: {error}"));
            counts[ended as usize] += 1;
            // A part without chunks begins nothing.
            let is_begun = fs::read_dir(folder).unwrap().next().is_some();
            if is_chosen && is_begun && ended == Ended::Part && draw.below(3) == 0 {
                // Another time point of the same input is refused, unless its part has no chunks, and changes nothing.
                let other = origin.volume(inputs, (origin.right() + 1) % 3);
                let before = everything(folder);
                match process_of(other, folder, overwrite, part, means, (None, None)) {
                    Err(Error::RunMismatch { .. }) => intruders += 1,
                    Ok(Ended::Part) => {}
                    other => panic!("schedule {seed}, {origin:?}, {part:?}: {other:?}"),
                }
                assert!(everything(folder) == before, "schedule {seed}: {part:?}");
            }
            whole = matches!(ended, Ended::Whole | Ended::Exists);
            let there = (0..3)
                .filter(|n| folder.join(format!("{n}.zarr")).exists())
                .count();
            assert!(
                overwrite || there == 0 || there == 3 || ended == Ended::Killed,
                "schedule {seed}: {there}"
            );
        }
        known.insert(check(folder, &expected, &format!("schedule {seed}")));
        let left = fs::read_dir(folder).unwrap().count();
        if left != 3 {
            // It was killed between the last rename and the last mark: the next process cleans up.
            counts[4] += 1;
            let volume = origin.volume(inputs, origin.right());
            let means = (1, 64 << 20);
            let late = process_of(
                volume,
                folder,
                false,
                OutputPart::WHOLE,
                means,
                (None, None),
            )
            .unwrap();
            assert!(matches!(late, Ended::Whole | Ended::Exists), "{late:?}");
            let left = fs::read_dir(folder).unwrap().count();
            assert_eq!(left, 3, "schedule {seed}");
        }
        if parts > 1 && !overwrite {
            for n in 0..parts {
                let part = part_of(n, parts);
                let volume = origin.volume(inputs, origin.right());
                let means = (2, memories[0]);
                let late = process_of(volume, folder, false, part, means, (None, None));
                let late = late.unwrap_or_else(|error| panic!("schedule {seed}: {error}"));
                assert_eq!(late, Ended::Whole, "schedule {seed}: a late part {n}");
            }
            check(folder, &expected, &format!("schedule {seed}, late parts"));
        }
    }
    let [done, part, killed, exists, tidied] = counts;
    println!(
        "{schedules} schedules: {killed} processes killed, {part} parts done before others, {done} that ended the \
         run, {exists} that came late, {tidied} tidied up; {chosen} of a time point of several, {intruders} processes of \
         another time point refused; shards of {known:?}"
    );
    assert!(killed > schedules / 4 && known.len() > 1 && intruders > schedules / 20);
}

fn part_of(index: u64, parts: u64) -> OutputPart {
    OutputPart::new(u32::try_from(index).unwrap(), u32::try_from(parts).unwrap()).unwrap()
}

/// Returns the bytes of every file in a folder, by path.
fn everything(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                files.insert(path, bytes);
            }
        }
    }
    files
}

#[test]
fn threads_and_memory_of_later_processes_do_not_matter() {
    let (memories, expected) = (memories(), unbroken());
    for parts in [1, 2] {
        for [first, then] in [[0, 2], [2, 0], [1, 2], [2, 1]] {
            let dir = scratch();
            let begun = process(
                dir.path(),
                false,
                OutputPart::new(parts - 1, parts).unwrap(),
                (1, memories[first]),
                (Some(20), None),
            );
            assert_eq!(begun, Ended::Killed);
            for n in 0..parts {
                let part = OutputPart::new(n, parts).unwrap();
                let ended = process(dir.path(), false, part, (3, memories[then]), (None, None));
                let last = n + 1 == parts;
                assert_eq!(ended, if last { Ended::Whole } else { Ended::Part });
            }
            check(
                dir.path(),
                &expected,
                &format!("{parts} parts, {first} {then}"),
            );
        }
    }
}

/// A change that a user requests.
type Change = fn(&mut OutputTarget);

#[test]
fn requested_options_are_not_replaced_by_those_of_a_begun_output() {
    let dir = scratch();
    let begun = process(
        dir.path(),
        false,
        OutputPart::WHOLE,
        (3, 64 << 20), // with the largest shards
        (Some(20), None),
    );
    assert_eq!(begun, Ended::Killed);
    let (volume, model) = (two_channels(), three_outputs());
    let layout = Volume::layout(&*volume).clone();
    let run = |change: &dyn Fn(&mut OutputTarget)| {
        let mut targets = three_targets(dir.path(), false);
        for target in &mut targets {
            target.store.shard = Some([16; 3]);
            change(target);
        }
        let plan = placed(2, 64 << 20).following(&layout, &*model, &[targets])?;
        let plan = plan.with_part(OutputPart::WHOLE, Durability::None)?;
        plan.run(two_channels(), three_outputs(), &|_, _| {
            ControlFlow::Break(())
        })
    };
    let conflicts: [(&str, Change); 5] = [
        ("chunk", |target| target.store.chunk = [8; 3]),
        ("shard", |target| {
            target.store.shard = Some([8; 3]);
            target.defaults.clear();
        }),
        ("codec", |target| {
            target.store.codec = crate::volume::Codec::Gzip;
        }),
        ("level", |target| target.store.clevel = Some(7)),
        ("pyramid", |target| target.store.pyramid = None),
    ];
    for (what, change) in conflicts {
        let refused = run(&change);
        assert!(
            matches!(refused, Err(Error::RunMismatch { .. })),
            "{what}: {refused:?}"
        );
        let followed = run(&|target| {
            change(target);
            target.defaults = StoreOption::ALL.to_vec();
        });
        assert!(
            matches!(followed, Err(Error::Interrupted)),
            "{what}: {followed:?}"
        );
    }
}

#[test]
fn outputs_of_one_run_must_be_distinct() {
    let dir = scratch();
    let (volume, model) = (two_channels(), three_outputs());
    let mut targets = three_targets(dir.path(), false);
    for same in ["0.zarr", "./0.zarr", "0.zarr/below"] {
        targets[2].path = dir.path().join(same);
        let plan = placed(1, 64 << 20).plan(Volume::layout(&*volume), &*model, &targets);
        let refused = plan.unwrap().run(two_channels(), three_outputs(), &silent);
        assert!(
            matches!(refused, Err(Error::SameOutput { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_part_without_work_says_whole_of_its_own_run_only() {
    let dir = scratch();
    let part = |n| OutputPart::new(n, 9).unwrap();
    let means = (1, 64 << 20);
    let alone = |n| process(dir.path(), false, part(n), means, (None, None));
    // Nine parts share at most three layers of shards: the first has nothing to do.
    assert_eq!(alone(0), Ended::Part);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "and begins nothing"
    );
    let (volume, model) = (two_channels(), three_outputs());
    let mut others = three_targets(dir.path(), false);
    for target in &mut others {
        target.blending.fill = 3.0;
    }
    let plan = placed(1, 64 << 20).plan(Volume::layout(&*volume), &*model, &others);
    plan.unwrap().run(volume, model, &silent).unwrap();
    let before = stored(dir.path());
    assert_eq!(alone(0), Ended::Exists, "it is another run's");
    assert_eq!(
        process(dir.path(), true, part(0), means, (None, None)),
        Ended::Part
    );
    for n in 1..9 {
        let ended = process(dir.path(), true, part(n), means, (None, None));
        assert_eq!(ended == Ended::Whole, n == 8, "{n}");
        assert_eq!(stored(dir.path()) == before, n < 8, "{n}");
    }
    assert_eq!(alone(0), Ended::Whole, "it is that of the run");
}
