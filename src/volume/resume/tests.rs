//! The output is the same, no matter what happens between the first chunk and the last.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::dtype::DType;
use crate::geometry::Geometry;
use crate::region::chunk_region;
use crate::volume::partial::steps;
use crate::volume::{Downsample, Pyramid, ZarrVersion, create, discard_partial, open};

const SHAPE: [u64; 3] = [13, 9, 11];
const CHUNK: [u64; 3] = [3, 4, 4];

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn layout() -> Layout {
    let geometry = Geometry::from_parts([2.0, 0.7, 0.3], [0.1, 0.2, 0.3]);
    Layout::new(SHAPE, 2, DType::I16).with_geometry(geometry)
}

fn options(shard: Option<[u64; 3]>) -> CreateOptions {
    CreateOptions {
        chunk: CHUNK,
        shard,
        pyramid: Some(Pyramid {
            levels: Some(3),
            method: Downsample::Mean,
        }),
        ..CreateOptions::default()
    }
}

fn settings(part: OutputPart, owned: Option<Region>) -> ResumeOptions {
    ResumeOptions {
        fingerprint: json!({"model": "gaussian:2", "grid": {"patch": [8, 8, 8], "overlap": 0.1}}),
        part,
        owned,
        durability: Durability::None,
        ..ResumeOptions::default()
    }
}

fn whole() -> ResumeOptions {
    settings(OutputPart::WHOLE, None)
}

/// Returns the voxels of one write chunk, clipped to the volume; some chunks are empty.
fn voxels(layout: &Layout, [c, z, y, x]: ChunkShape) -> (Region, Vec<u8>) {
    let [_, chunk @ ..] = layout.write_chunk.unwrap();
    let region = chunk_region([z, y, x], chunk)
        .intersection(&Region::whole(SHAPE))
        .unwrap();
    let number = i16::try_from(((c * 7 + z) * 7 + y) * 7 + x).unwrap();
    let count = i16::try_from(region.voxels()).unwrap();
    let value = |n: i16| {
        if number % 5 == 3 {
            0
        } else {
            number.wrapping_mul(77) ^ n.wrapping_mul(13)
        }
    };
    let voxels: Vec<i16> = (0..count).map(value).collect();
    (region, bytemuck::cast_slice(&voxels).to_vec())
}

fn write(output: &dyn VolumeMut, chunk: ChunkShape) -> Result<()> {
    let (region, voxels) = voxels(output.layout(), chunk);
    output.write_channels(chunk[0]..chunk[0] + 1, region, &voxels)
}

/// Writes the first `count` chunks that are not done.
fn write_some(output: &Resumable, count: usize) {
    let next: Vec<ChunkShape> = output.pending().take(count).collect();
    for chunk in next {
        write(output, chunk).unwrap();
    }
}

/// Returns all files below a folder.
fn tree(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap().path();
            if entry.is_dir() {
                folders.push(entry);
            } else {
                let name = entry.strip_prefix(path).unwrap().to_path_buf();
                found.insert(name, fs::read(&entry).unwrap());
            }
        }
    }
    found
}

/// Returns the files that [`create`] writes in a single run from the same chunks, under the same name.
fn unbroken(options: &CreateOptions) -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let output = create(&path, &layout(), options).unwrap();
    let [_, chunk @ ..] = output.layout().write_chunk.unwrap();
    for c in 0..2 {
        let counts = std::array::from_fn(|a| 0..SHAPE[a].div_ceil(chunk[a]));
        for [z, y, x] in crate::region::indices(counts) {
            write(&*output, [c, z, y, x]).unwrap();
        }
    }
    output.finish().unwrap();
    tree(&path)
}

fn chunks(output: &Resumable) -> usize {
    let [_, chunk @ ..] = output.layout().write_chunk.unwrap();
    let count: u64 = (0..3).map(|a| SHAPE[a].div_ceil(chunk[a])).product();
    usize::try_from(2 * count).unwrap()
}

#[test]
fn an_output_interrupted_after_any_chunk_equals_the_uninterrupted_one() {
    for (shard, durability, format) in [
        (None, Durability::None, ZarrVersion::V3),
        (Some([6, 4, 8]), Durability::Chunk, ZarrVersion::V3),
        (None, Durability::None, ZarrVersion::V2),
    ] {
        let options = CreateOptions {
            zarr: format,
            ..options(shard)
        };
        let expected = unbroken(&options);
        assert!(expected.len() > 40 || shard.is_some());
        let resume = ResumeOptions {
            durability,
            ..whole()
        };
        let dir = scratch();
        let path = dir.path().join("out.zarr");
        let begin = || resumable(&path, &layout(), &options, &resume).unwrap();
        let total = chunks(&begin());
        for stop in 0..=total {
            discard_partial(&path).unwrap();
            write_some(&begin(), stop);
            assert!(!path.exists());
            let again = begin();
            assert_eq!(again.pending().count(), total - stop);
            write_some(&again, total);
            Box::new(again).finish().unwrap();
            assert_eq!(tree(&path), expected, "broken off after {stop} chunks");
            let left = fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(left, 1, "nothing but the output");
            fs::remove_dir_all(&path).unwrap();
        }
    }
}

#[test]
fn chunks_that_a_crash_damages_are_written_again() {
    let options = options(None);
    let expected = unbroken(&options);
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let partial = dir.path().join(".out.zarr.partial");
    let journal = partial.join("journal.0-of-1");
    let begin = || resumable(&path, &layout(), &options, &whole()).unwrap();
    let output = begin();
    let total = chunks(&output);
    write_some(&output, 20);
    drop(output);
    // A truncated record: its chunk exists, but is not known.
    let notes = fs::read(&journal).unwrap();
    fs::write(&journal, &notes[..notes.len() - 9]).unwrap();
    // A file that was not renamed, and files that the disk lost partly or completely.
    fs::create_dir_all(partial.join("tmp.0-of-1")).unwrap();
    fs::write(partial.join("tmp.0-of-1/7"), b"half a chunk").unwrap();
    let output = begin();
    let known = total - output.pending().count();
    assert!((18..20).contains(&known), "{known}");
    assert!(!partial.join("tmp.0-of-1/7").exists());
    drop(output);
    for (name, keep) in [("0/c/0/0/0/0", 1), ("0/c/0/0/1/0", 0)] {
        let file = partial.join("data").join(name);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() * keep / 2]).unwrap();
    }
    fs::remove_file(partial.join("data/0/c/0/0/2/2")).unwrap();
    let output = begin();
    assert_eq!(total - output.pending().count(), known - 3);
    assert!(!output.is_done([0, 0, 0, 0]) && output.is_done([0, 0, 0, 1]));
    write_some(&output, total);
    Box::new(output).finish().unwrap();
    assert_eq!(tree(&path), expected);
}

#[test]
fn chunks_that_are_done_are_not_written_again() {
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let begin = || resumable(&path, &layout(), &options(None), &whole()).unwrap();
    write_some(&begin(), 5);
    let output = begin();
    let refused = write(&output, [0, 0, 0, 1]).unwrap_err();
    assert!(matches!(refused, Error::ChunkWritten { .. }), "{refused}");
    assert!(!output.is_done([9, 0, 0, 0]) && !output.is_done([0, 0, 0, 99]));
    let error = Box::new(output).finish().unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("85 chunks") && message.contains("0/c/0/0/1/2"),
        "{message}"
    );
    assert!(!path.exists());
}

#[test]
fn a_chunk_that_could_not_be_stored_is_not_done() {
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let output = resumable(&path, &layout(), &options(None), &whole()).unwrap();
    let folder = dir.path().join(".out.zarr.partial/tmp.0-of-1");
    fs::remove_dir(&folder).unwrap();
    let error = write(&output, [0, 0, 0, 1]).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(!output.is_done([0, 0, 0, 1]));
    fs::create_dir(&folder).unwrap();
    write(&output, [0, 0, 0, 1]).unwrap();
    assert!(output.is_done([0, 0, 0, 1]));
    write_some(&output, 1000);
    Box::new(output).finish().unwrap();
    assert_eq!(tree(&path), unbroken(&options(None)));
}

#[test]
fn a_different_run_is_refused_and_the_differences_are_named() {
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let begin = |layout: &Layout, options: &CreateOptions, resume: &ResumeOptions| {
        resumable(&path, layout, options, resume).map(drop)
    };
    begin(&layout(), &options(None), &whole()).unwrap();
    begin(&layout(), &options(None), &whole()).unwrap();
    let other = ResumeOptions {
        fingerprint: json!({"model": "identity", "grid": {"patch": [8, 8, 8], "overlap": 0.2}}),
        ..whole()
    };
    let message = begin(&layout(), &options(None), &other)
        .unwrap_err()
        .to_string();
    for part in [
        r#"model: then "gaussian:2", now "identity""#,
        "grid.overlap: then 0.1, now 0.2",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("patch"), "{message}");
    let coarse = CreateOptions {
        chunk: [4, 4, 4],
        ..options(None)
    };
    let message = begin(&layout(), &coarse, &whole()).unwrap_err().to_string();
    assert!(
        message.contains("chunk_shape: then [1,3,4,4], now [1,4,4,4]"),
        "{message}"
    );
    let moved = layout().with_geometry(Geometry::from_parts([2.0, 0.7, 0.3], [0.1, 0.2, 0.4]));
    let message = begin(&moved, &options(None), &whole())
        .unwrap_err()
        .to_string();
    assert!(message.contains("affine"), "{message}");
    let halves = settings(
        OutputPart::new(0, 2).unwrap(),
        Some(Region::whole([3, 9, 11])),
    );
    let message = begin(&layout(), &options(None), &halves)
        .unwrap_err()
        .to_string();
    assert!(message.contains(r#"parts: then "1", now "2""#), "{message}");
    discard_partial(&path).unwrap();
    begin(&layout(), &options(None), &other).unwrap();
}

#[test]
fn a_second_owner_is_refused_with_a_remedy() {
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let begin = || resumable(&path, &layout(), &options(None), &whole());
    let first = begin().unwrap();
    let error = begin().unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Locked { .. }));
    assert!(
        message.contains("lock.0-of-1") && message.contains("wait"),
        "{message}"
    );
    assert!(matches!(discard_partial(&path), Err(Error::Locked { .. })));
    drop(first);
    begin().unwrap();
}

#[test]
fn parts_in_any_order_interrupted_or_not_give_the_uninterrupted_output() {
    let options = options(None);
    let expected = unbroken(&options);
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let written = output_layout(&path, &layout(), &options).unwrap();
    for axis in 0..3 {
        let begin = |n: u32| {
            let part = OutputPart::new(n, 3).unwrap();
            let owned = part.region(&written, axis);
            resumable(&path, &layout(), &options, &settings(part, Some(owned))).unwrap()
        };
        let finalized = || finalize(&path, &layout(), &options, &whole(), 3);
        let (one, two) = (begin(2), begin(0));
        write_some(&one, 4);
        assert!(matches!(finalized(), Err(Error::Locked { .. })));
        write_some(&two, 1000);
        drop(one);
        Box::new(two).finish().unwrap();
        let message = finalized().unwrap_err().to_string();
        assert!(message.contains("chunks: 0/c/0/"), "{message}");
        for n in [1, 2] {
            let part = begin(n);
            write_some(&part, 1000);
            Box::new(part).finish().unwrap();
        }
        assert!(!path.exists());
        finalized().unwrap();
        assert_eq!(tree(&path), expected, "cut along axis {axis}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::remove_dir_all(&path).unwrap();
    }
}

#[test]
fn parts_write_only_their_own_region() {
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let begin = |n, owned| {
        let part = settings(OutputPart::new(n, 2).unwrap(), Some(owned));
        resumable(&path, &layout(), &options(None), &part)
    };
    let upper = Region::new([0; 3], [6, 9, 11]);
    let part = begin(0, upper).unwrap();
    let refused = write(&part, [0, 2, 0, 0]).unwrap_err();
    assert!(matches!(refused, Error::NotOwned { .. }), "{refused}");
    let overlapping = begin(1, Region::new([3, 0, 0], [10, 9, 11])).unwrap_err();
    assert!(
        overlapping.to_string().contains("belongs to part 0 too"),
        "{overlapping}"
    );
    let pieces = begin(1, Region::new([7, 0, 0], [6, 9, 11])).unwrap_err();
    assert!(matches!(pieces, Error::PartialChunk { .. }), "{pieces}");
    assert!(OutputPart::new(2, 2).is_err());
    let small = Layout::new([2, 1, 1], 1, DType::U8);
    let shares = (0..7).map(|n| OutputPart::new(n, 7).unwrap().region(&small, 1).voxels());
    assert_eq!(
        shares.collect::<Vec<_>>(),
        [0, 0, 0, 0, 0, 0, 2],
        "parts may be empty"
    );
}

#[test]
fn an_output_that_exists_is_replaced_only_if_it_may_be() {
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let old = Layout::new([2, 3, 4], 1, DType::U8);
    create(&path, &old, &options(None))
        .unwrap()
        .finish()
        .unwrap();
    let begin = |overwrite| {
        let options = CreateOptions {
            overwrite,
            ..options(None)
        };
        resumable(&path, &layout(), &options, &whole())
    };
    assert!(matches!(begin(false), Err(Error::Exists { .. })));
    fs::write(path.join("notes"), b"theirs").unwrap();
    assert!(matches!(begin(true), Err(Error::NotOverwritable { .. })));
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing was begun"
    );
    fs::remove_file(path.join("notes")).unwrap();
    let output = begin(true).unwrap();
    write_some(&output, 1000);
    assert_eq!(open(&path).unwrap().layout().shape, [2, 3, 4]);
    // Files added to the old output while the new one grows are kept, and so are the finished chunks.
    fs::write(path.join("notes"), b"theirs").unwrap();
    let refused = Box::new(output).finish();
    assert!(
        matches!(refused, Err(Error::NotOverwritable { .. })),
        "{refused:?}"
    );
    assert_eq!(fs::read(path.join("notes")).unwrap(), b"theirs");
    fs::remove_file(path.join("notes")).unwrap();
    let output = begin(true).unwrap();
    assert_eq!(output.pending().count(), 0);
    Box::new(output).finish().unwrap();
    assert_eq!(open(&path).unwrap().layout().shape, SHAPE);
    let flat = resumable(
        dir.path().join("a.npy"),
        &layout(),
        &CreateOptions::default(),
        &whole(),
    );
    assert!(matches!(flat, Err(Error::Unsupported { .. })));
}

/// Returns the names in a folder.
fn listed(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The outputs of one run, which get their names together.
struct Group {
    dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
    options: CreateOptions,
}

impl Group {
    /// Creates the outputs; with `old`, the first of them replaces an existing image.
    fn new(count: usize, old: bool) -> Self {
        let dir = scratch();
        let paths: Vec<PathBuf> = (0..count)
            .map(|n| dir.path().join(format!("{n}.zarr")))
            .collect();
        let options = CreateOptions {
            overwrite: old,
            ..options(None)
        };
        if old {
            // The same image, chunk for chunk.
            let output = create(&paths[0], &layout(), &options).unwrap();
            output.finish().unwrap();
        }
        Self {
            dir,
            paths,
            options,
        }
    }

    fn settings(&self, n: usize, part: OutputPart) -> ResumeOptions {
        let written = output_layout(&self.paths[n], &layout(), &self.options).unwrap();
        ResumeOptions {
            group: self.paths.clone(),
            ..settings(part, Some(part.region(&written, 0)))
        }
    }

    fn open(&self, part: OutputPart) -> Result<Vec<Resumable>> {
        let open = |n: usize| {
            let settings = self.settings(n, part);
            resumable(&self.paths[n], &layout(), &self.options, &settings)
        };
        (0..self.paths.len()).map(open).collect()
    }

    /// Completes a part, and the whole run if that was the last. Returns `true` if all outputs have their names.
    fn run(&self, part: OutputPart) -> Result<bool> {
        let outputs = self.open(part)?;
        for output in &outputs {
            write_some(output, 1000);
        }
        finish_all(outputs)?;
        if part.count() == 1 {
            return Ok(true);
        }
        let all = 0..self.paths.len();
        let settings: Vec<_> = all.map(|n| self.settings(n, part)).collect();
        let whole = self.paths.iter().zip(&settings);
        let layout = layout();
        let whole: Vec<_> = whole
            .map(|(path, resume)| OutputRequest {
                path,
                layout: &layout,
                options: &self.options,
                resume,
            })
            .collect();
        let parts = RunParts {
            count: part.count(),
            wrote_part: true,
        };
        match finalize_all(&whole, parts, &silent) {
            Err(Error::MissingChunks { .. }) => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Returns which outputs have their names; named outputs must be complete.
    fn named(&self, expected: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<bool> {
        let group = Path::new("zarr.json");
        let of = |path: &PathBuf| {
            let mut found = if path.exists() {
                tree(path)
            } else {
                return false;
            };
            found.remove(group);
            found == *expected
        };
        self.paths.iter().map(of).collect()
    }

    fn check(&self, expected: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
        assert!(self.named(expected).iter().all(|named| *named), "{what}");
        let names: Vec<String> = (0..self.paths.len()).map(|n| format!("{n}.zarr")).collect();
        assert_eq!(listed(self.dir.path()), names, "{what}");
    }
}

/// Interrupts `work` at a step and returns the error; `None` if it finishes before that step.
fn broken_off<T>(step: u32, work: impl FnOnce() -> Result<T>) -> Option<Error> {
    steps::break_off_at(Some(step));
    let done = work();
    let whole = steps::is_on_its_way();
    steps::break_off_at(None);
    let error = done.err();
    let broken = error
        .as_ref()
        .is_some_and(|error| error.to_string().contains("broken off"));
    assert!(whole != broken, "step {step}: {error:?}");
    error
}

#[test]
fn outputs_interrupted_at_any_step_of_publishing_are_published_by_the_next_run() {
    let mut expected = unbroken(&options(None));
    expected.remove(Path::new("zarr.json"));
    for (count, parts, old) in [
        (1, 1, false),
        (1, 1, true),
        (3, 1, false),
        (2, 1, true),
        (1, 2, false),
        (2, 3, true),
    ] {
        let part = |n| OutputPart::new(n, parts).unwrap();
        let mut steps = 0;
        for step in 0.. {
            let what =
                format!("{count} outputs, {parts} parts, over an old one: {old}, step {step}");
            let group = Group::new(count, old);
            for n in 1..parts {
                assert!(!group.run(part(n)).unwrap());
            }
            let Some(error) = broken_off(step, || group.run(part(0))) else {
                group.check(&expected, &what);
                break;
            };
            assert!(matches!(error, Error::Panicked { .. }), "{what}: {error}");
            steps += 1;
            let began = group.named(&expected);
            // Interrupted again: a run that removes leftovers is killed, too.
            let twice = step % 3;
            let again = broken_off(twice, || group.run(part(0)));
            let whole = group.named(&expected).iter().all(|named| *named);
            match group.run(part(parts - 1)) {
                Ok(done) => assert!(done, "{what}"),
                // All of them have their names, and no marker is left: no other answer is possible.
                Err(Error::Exists { .. }) => {
                    assert!(whole && parts == 1, "{what}: {began:?} {again:?}");
                }
                Err(error) => panic!("{what}: {error}"),
            }
            group.check(&expected, &what);
        }
        assert!(steps > 8, "{steps}");
    }
}

#[test]
fn none_of_several_outputs_gets_its_name_before_all_are_complete() {
    let mut expected = unbroken(&options(None));
    expected.remove(Path::new("zarr.json"));
    let group = Group::new(2, false);
    let part = |n| OutputPart::new(n, 2).unwrap();
    assert!(!group.run(part(1)).unwrap());
    // Part 0 is interrupted when its first output is complete, and its second is not.
    let outputs = group.open(part(0)).unwrap();
    write_some(&outputs[0], 1000);
    write_some(&outputs[1], 1);
    drop(outputs);
    assert!(!group.run(part(1)).unwrap());
    assert_eq!(
        listed(group.dir.path()),
        [".0.zarr.partial", ".1.zarr.partial"]
    );
    assert!(group.run(part(0)).unwrap());
    group.check(&expected, "at the end");
    // Late parts learn that everything is done; a different run is refused.
    for n in 0..2 {
        assert!(group.run(part(n)).unwrap());
    }
    let other = ResumeOptions {
        fingerprint: json!({"model": "another"}),
        ..group.settings(0, part(0))
    };
    let refused = resumable(&group.paths[0], &layout(), &group.options, &other);
    assert!(matches!(refused, Err(Error::Exists { .. })), "{refused:?}");
    group.check(&expected, "afterwards");
}

#[test]
fn a_different_run_does_not_take_over_the_outputs_of_a_killed_one() {
    let group = Group::new(1, false);
    let named = broken_off(3, || group.run(OutputPart::WHOLE));
    assert!(named.unwrap().to_string().contains("set aside"));
    assert_eq!(listed(group.dir.path()), [".0.zarr.partial", "0.zarr"]);
    let other = ResumeOptions {
        fingerprint: json!({"model": "another"}),
        ..group.settings(0, OutputPart::WHOLE)
    };
    let refused = resumable(&group.paths[0], &layout(), &group.options, &other);
    assert!(matches!(refused, Err(Error::Exists { .. })), "{refused:?}");
    assert_eq!(
        listed(group.dir.path()),
        ["0.zarr"],
        "it is tidied up all the same"
    );
    // The same applies to an output that is written in a single run.
    let group = Group::new(1, true);
    assert!(broken_off(3, || group.run(OutputPart::WHOLE)).is_some());
    create(&group.paths[0], &layout(), &group.options).unwrap();
    assert_eq!(listed(group.dir.path()), ["0.zarr"]);
}

#[test]
fn the_format_of_a_different_run_is_not_mixed_with_this_one() {
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let v2 = CreateOptions {
        zarr: ZarrVersion::V2,
        ..options(None)
    };
    for (first, second) in [(&v2, &options(None)), (&options(None), &v2)] {
        drop(resumable(&path, &layout(), first, &whole()).unwrap());
        let before = tree(dir.path());
        let refused = resumable(&path, &layout(), second, &whole());
        assert!(
            matches!(refused, Err(Error::RunMismatch { .. })),
            "{refused:?}"
        );
        assert_eq!(tree(dir.path()), before);
        assert_eq!(partial_options(&path).unwrap().unwrap().zarr, first.zarr);
        discard_partial(&path).unwrap();
        assert_eq!(partial_options(&path).unwrap(), None);
    }
}

/// Set for the process that [`killed_at_random_moments`] starts and kills.
const CHILD: &str = "VOXPATCH_TEST_CHILD";

#[test]
#[ignore = "it is the process that another test kills"]
fn child() {
    let path = PathBuf::from(std::env::var_os(CHILD).expect("it is started by the other test"));
    let output = resumable(&path, &layout(), &options(None), &whole()).unwrap();
    let pending: Vec<ChunkShape> = output.pending().collect();
    let pending = Mutex::new(pending.into_iter());
    let work = || {
        loop {
            let Some(chunk) = pending.lock().unwrap().next() else {
                break;
            };
            write(&output, chunk).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(work);
        }
    });
    Box::new(output).finish().unwrap();
}

#[test]
fn killed_at_random_moments() {
    let expected = unbroken(&options(None));
    let dir = scratch();
    let path = dir.path().join("out.zarr");
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["volume::resume::tests::child", "--exact", "--ignored"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let journal = dir.path().join(".out.zarr.partial/journal.0-of-1");
    let length = || fs::metadata(&journal).map_or(0, |found| found.len());
    let (mut killed, mut grown, mut millis) = (0, 0, 7_u64);
    while killed < 20 {
        let before = length();
        let mut child = start();
        // Once it is writing, wait some more milliseconds, a different number each time.
        while length() == before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        millis = millis * 5 % 11;
        std::thread::sleep(Duration::from_millis(millis / 2));
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        killed += u32::from(!finished);
        grown += u32::from(length() > before);
        if path.exists() {
            assert_eq!(tree(&path), expected);
            fs::remove_dir_all(&path).unwrap();
        }
    }
    assert!(grown > 5, "the child got somewhere: {grown}");
    let mut last = start();
    assert!(last.wait().unwrap().success());
    assert_eq!(tree(&path), expected);
}
