//! Runs as tasks whose outputs are in a store: in any order, twice, at once, killed, and with a store that fails, they give
//! the objects of one process.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};

use super::schedules::{Draw, placed, three_outputs, three_targets, two_channels};
use super::*;
use crate::error::Error;
use crate::inference::{InferencePlan, Predictor};
use crate::store::StorageOptions;
use crate::store::faulty::{Fault, Faulty, named, shared};
use crate::volume::{Downsample, Durability, OutputPart, Pyramid, create};

/// A process, which can be killed: its requests fail from then on.
struct Process {
    base: String,
    store: Arc<Faulty>,
    is_dead: Arc<AtomicBool>,
}

impl Process {
    /// Starts a process with a connection of its own to a store.
    fn new(name: &str, store: &Faulty) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = format!("memory://{name}-{number}");
        let process = Self {
            store: shared(&base, store),
            base,
            is_dead: Arc::default(),
        };
        process.faults(|_, _, _| None);
        process
    }

    /// Sets what goes wrong while the process is alive.
    fn faults(&self, rule: impl Fn(&str, &str, u64) -> Option<Fault> + Send + Sync + 'static) {
        let is_dead = Arc::clone(&self.is_dead);
        self.store.fail(move |request, key, n| {
            if is_dead.load(Ordering::SeqCst) {
                return Some(Fault::Status(403));
            }
            rule(request, key, n)
        });
    }

    /// Kills the process at its n-th put: the object is there, or is not.
    fn killed_at(&self, last: u64, arrives: bool) {
        let is_dead = Arc::clone(&self.is_dead);
        self.store.fail(move |request, _, n| {
            if is_dead.load(Ordering::SeqCst) {
                return Some(Fault::Status(403));
            }
            if request == "put" && n >= last {
                is_dead.store(true, Ordering::SeqCst);
                return (!arrives).then_some(Fault::Status(403));
            }
            None
        });
    }

    /// Draws what goes wrong: nothing, an answer, or that the process is killed at one of its first `most_puts` puts.
    fn fails_at_random(&self, draw: &mut Draw, most_puts: u64) {
        match draw.below(4) {
            0 | 1 => self.killed_at(1 + draw.below(most_puts), draw.below(2) == 0),
            2 => {
                let (at, kind) = (2 + draw.below(10), draw.below(3));
                self.faults(move |request, _, n| match (request, kind) {
                    ("put", 0) if n == at => Some(Fault::LostAnswer),
                    ("put" | "get", 1) if n == at => Some(Fault::Status(503)),
                    ("put" | "list" | "delete", _) if n == 1 => Some(Fault::Status(500)),
                    _ => None,
                });
            }
            _ => {}
        }
    }

    fn job(&self, settings: &Settings) -> InferencePlan {
        job(Path::new(&format!("{}/a", self.base)), settings)
    }

    /// Runs a task. Returns `None` if the process was killed, and whether the outputs are whole otherwise.
    fn run(&self, settings: &Settings, part: OutputPart) -> Option<bool> {
        let done = self.job(settings).with_part(part, Durability::None);
        let done = done.and_then(|plan| plan.with_repeats().run(&silent));
        match done {
            Ok(done) => Some(done.whole),
            Err(_) if self.is_dead.load(Ordering::SeqCst) => None,
            Err(error) => panic!("{part:?}: {}", error.with_causes()),
        }
    }
}

/// The settings of a job.
#[derive(Clone, Debug, Default)]
struct Settings {
    overwrite: bool,
    fill: f64,
    shard: Option<Shape>,
    pyramid: bool,
}

fn targets(folder: &Path, settings: &Settings) -> Vec<OutputTarget> {
    let mut targets = three_targets(folder, settings.overwrite);
    for target in &mut targets {
        target.store.shard = Some(settings.shard.unwrap_or([8; 3]));
        let method = match target.blending.reduce {
            Reduce::Argmax => Downsample::Mode,
            _ => Downsample::Mean,
        };
        target.store.pyramid = settings.pyramid.then_some(Pyramid {
            levels: Some(3),
            method,
        });
        target.blending.fill = settings.fill;
        target.defaults.clear();
        target.store.storage_options = StorageOptions::new()
            .with("stall_timeout", "0.5")
            .with("retry_timeout", "20");
    }
    targets
}

fn job(folder: &Path, settings: &Settings) -> InferencePlan {
    let predictor = Predictor::new(two_channels(), three_outputs(), placed(2, 64 << 20));
    predictor.plan(&targets(folder, settings)).unwrap()
}

/// Commits an output in two processes at once.
fn commit_twice(name: &str, store: &Faulty, settings: &Settings) {
    let together = Barrier::new(2);
    std::thread::scope(|scope| {
        let commit = || {
            let process = Process::new(name, store);
            together.wait();
            process.job(settings).commit(&silent).unwrap();
        };
        let commits = [scope.spawn(commit), scope.spawn(commit)];
        for commit in commits {
            commit.join().unwrap();
        }
    });
}

/// Returns the files that one process writes, by the names of objects.
fn expected(settings: &Settings) -> Vec<(String, Vec<u8>)> {
    let dir = scratch();
    job(dir.path(), settings).run(&silent).unwrap();
    let mut found = Vec::new();
    for n in 0..3 {
        let name = format!("{n}.zarr");
        let all = files(&dir.path().join(&name)).into_iter();
        found.extend(
            all.map(|(path, bytes)| (format!("a/{name}/{}", path.to_str().unwrap()), bytes)),
        );
    }
    found.sort();
    found
}

/// Writes old outputs with other shards, coarser levels and voxels.
fn plant_old(name: &str) -> Arc<Faulty> {
    let base = format!("memory://{name}");
    let old = Settings {
        shard: Some([4; 3]),
        pyramid: true,
        fill: 5.0,
        ..Settings::default()
    };
    let folder = format!("{base}/a");
    job(Path::new(&folder), &old).run(&silent).unwrap();
    named(&base)
}

fn parts(settings: &Settings, count: u32) -> Vec<OutputPart> {
    let tasks = job(Path::new("nowhere"), settings).tasks(count).unwrap();
    tasks.iter().map(|task| task.part).collect()
}

fn names(store: &Faulty) -> Vec<String> {
    store.objects().into_iter().map(|(key, _)| key).collect()
}

#[test]
fn any_order_of_repeated_and_killed_tasks_ends_with_the_objects_of_one_process() {
    schedules(0..18);
}

#[test]
fn so_do_more_schedules() {
    schedules(18..36);
}

#[test]
fn and_others_do() {
    schedules(36..54);
}

fn schedules(seeds: Range<u64>) {
    let settings = |overwrite, pyramid| Settings {
        overwrite,
        pyramid,
        ..Settings::default()
    };
    let both = [false, true].map(|pyramid| expected(&settings(false, pyramid)));
    let (mut killed, mut left, mut notes) = (0, 0, 0);
    for seed in seeds {
        let mut draw = Draw(7000 + seed);
        let name = format!("tasks{seed}");
        let overwrite = seed % 3 == 0;
        let store = if overwrite {
            plant_old(&name)
        } else {
            named(&format!("memory://{name}"))
        };
        let pyramid = seed % 2 == 1;
        let settings = settings(overwrite, pyramid);
        let wanted = &both[usize::from(pyramid)];
        // The last task puts coarser levels, too.
        let most_puts = if pyramid { 90 } else { 30 };
        let count = draw.one_of(&[1, 2, 3, 9]);
        let mut list = parts(&settings, count);
        list.extend(list.clone());
        for n in (1..list.len()).rev() {
            let other = usize::try_from(draw.below(n as u64 + 1)).unwrap();
            list.swap(n, other);
        }
        let todo = Mutex::new((list, draw));
        let dead = AtomicU64::new(0);
        let begin = Barrier::new(3);
        let work = || {
            begin.wait();
            loop {
                let process = Process::new(&name, &store);
                let part = {
                    let mut todo = todo.lock().unwrap();
                    let (list, draw) = &mut *todo;
                    let Some(part) = list.pop() else {
                        return;
                    };
                    process.fails_at_random(draw, most_puts);
                    part
                };
                if process.run(&settings, part).is_none() {
                    dead.fetch_add(1, Ordering::Relaxed);
                    todo.lock().unwrap().0.push(part);
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                worker.join().unwrap();
            }
        });
        let dead = dead.into_inner();
        killed += dead;
        let check = Process::new(&name, &store);
        let status = check.job(&settings).status().unwrap();
        assert!(status.is_complete(), "schedule {seed}: {status:?}");
        left += u64::from(!status.published);
        commit_twice(&name, &store, &settings);
        // A process that was killed after the others had published may leave a note.
        let (odd, found): (Vec<_>, Vec<_>) = store
            .objects()
            .into_iter()
            .partition(|(key, _)| key.contains("/.voxpatch.tasks/"));
        assert!(
            odd.len() as u64 <= 3 * dead,
            "schedule {seed}: {:?}",
            names(&store)
        );
        notes += odd.len();
        let has = |(key, bytes): &(String, Vec<u8>)| {
            let found = wanted.iter().find(|(wanted, _)| wanted == key);
            found.is_some_and(|(_, wanted)| wanted == bytes)
        };
        let other: Vec<_> = found.iter().filter(|one| !has(one)).collect();
        let other: Vec<_> = other.iter().map(|(key, _)| key).collect();
        assert!(other.is_empty(), "schedule {seed}: {other:?}");
        assert_eq!(found.len(), wanted.len(), "schedule {seed}");
        let status = check.job(&settings).status().unwrap();
        assert!(status.published && status.chunks_done == status.chunks);
        // A late task has nothing to do.
        let part = OutputPart::new(0, count).unwrap();
        assert_eq!(check.run(&settings, part), Some(true));
        assert!(names(&store).len() == found.len() + odd.len());
    }
    println!(
        "18 schedules: {killed} tasks killed, {left} outputs left to the commit, {notes} notes left"
    );
    assert!(killed > 18);
}

#[test]
fn nothing_looks_finished_before_the_commit_and_status_counts_notes() {
    let settings = Settings::default();
    let store = named("memory://counts");
    let process = Process::new("counts", &store);
    let before = process.job(&settings).status().unwrap();
    assert_eq!((before.parts, before.chunks_done), (None, 0));
    let missing = |expected: &str| {
        let refused = process.job(&settings).commit(&silent).unwrap_err();
        assert!(matches!(refused, Error::MissingChunks { .. }), "{refused}");
        assert!(refused.to_string().contains(expected), "{refused}");
    };
    missing("no part has been started");
    assert!(store.objects().is_empty());
    let parts = parts(&settings, 3);
    assert_eq!(parts.len(), 3);
    let mut done = 0;
    for (n, part) in parts.iter().enumerate() {
        let is_last = n + 1 == parts.len();
        assert_eq!(process.run(&settings, *part), Some(is_last));
        let status = process.job(&settings).status().unwrap();
        assert!(status.chunks_done > done, "{status:?}");
        done = status.chunks_done;
        assert_eq!(status.published, is_last);
        let documents = names(&store).iter().any(|name| name.ends_with("zarr.json"));
        assert_eq!(documents, is_last);
        if !is_last {
            assert_eq!(status.begun.len(), n + 1);
            assert!(status.begun.iter().all(|(_, done, total)| done == total));
            let left = parts[n + 1..].iter().map(|part| part.index());
            let mut left: Vec<u32> = left.collect();
            left.sort_unstable();
            missing(&format!("run parts {}", left[0]));
            // Its own note is enough.
            let puts = process.store.count("put");
            assert_eq!(process.run(&settings, *part), Some(false));
            assert_eq!(process.store.count("put"), puts);
        }
    }
    assert!(store.objects() == expected(&settings));
}

#[test]
fn chunks_that_others_changed_are_written_again() {
    let settings = Settings::default();
    let wanted = expected(&settings);
    for (n, damage) in ["other bytes", "longer", "gone", "same bytes"]
        .iter()
        .enumerate()
    {
        let name = format!("changed{n}");
        let store = named(&format!("memory://{name}"));
        let process = Process::new(&name, &store);
        let parts = parts(&settings, 3);
        for part in &parts[..2] {
            process.run(&settings, *part);
        }
        let is_chunk = |key: &String| key.contains("1.zarr/0/c/");
        let (key, bytes) = store
            .objects()
            .into_iter()
            .find(|(key, _)| is_chunk(key))
            .unwrap();
        match *damage {
            "other bytes" => store.plant(&key, &vec![7; bytes.len()]),
            "longer" => store.plant(&key, &[&bytes[..], b"more"].concat()),
            "gone" => store.unplant(&key),
            _ => store.plant(&key, &bytes),
        }
        let is_sound = *damage == "same bytes";
        assert_eq!(process.run(&settings, parts[2]), Some(is_sound), "{damage}");
        if !is_sound {
            let refused = process.job(&settings).commit(&silent).unwrap_err();
            assert!(matches!(refused, Error::MissingChunks { .. }), "{refused}");
            let status = process.job(&settings).status().unwrap();
            assert!(!status.is_complete());
            let again: Vec<_> = parts
                .iter()
                .filter(|part| process.run(&settings, **part) == Some(true))
                .collect();
            assert!(!again.is_empty(), "{damage}");
        }
        assert!(store.objects() == wanted, "{damage}");
    }
}

#[test]
fn objects_of_others_are_not_removed_and_end_the_commit() {
    let settings = Settings {
        overwrite: true,
        ..Settings::default()
    };
    for (n, key) in [
        "a/1.zarr/notes.txt",
        "a/1.zarr/0/c/0/0/0/notes",
        "a/1.zarr/7/c/0/0/0/0",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("strange{n}");
        let store = named(&format!("memory://{name}"));
        let process = Process::new(&name, &store);
        let parts = parts(&settings, 2);
        store.plant(key, b"mine");
        let before = store.objects();
        let part = process.job(&settings).with_part(parts[0], Durability::None);
        let refused = part.unwrap().with_repeats().run(&silent).unwrap_err();
        assert!(
            matches!(refused, Error::NotOverwritable { .. }),
            "{refused}"
        );
        let others = |all: Vec<(String, Vec<u8>)>| -> Vec<_> {
            let all = all.into_iter();
            all.filter(|(key, _)| key.starts_with("a/1.zarr/"))
                .collect()
        };
        assert_eq!(others(store.objects()), others(before));
        store.unplant(key);
        process.run(&settings, parts[0]);
        store.plant(key, b"mine");
        let part = process.job(&settings).with_part(parts[1], Durability::None);
        let refused = part.unwrap().with_repeats().run(&silent).unwrap_err();
        assert!(matches!(refused, Error::OutputModified { .. }), "{refused}");
        assert!(names(&store).contains(&(*key).to_owned()));
        assert!(!names(&store).iter().any(|name| name.ends_with("zarr.json")));
        store.unplant(key);
        process.job(&settings).commit(&silent).unwrap();
        assert!(store.objects() == expected(&settings));
    }
}

#[test]
fn plans_do_not_mix() {
    let settings = Settings::default();
    let store = named("memory://mixed");
    let process = Process::new("mixed", &store);
    let first = parts(&settings, 3)[0];
    process.run(&settings, first);
    let there = store.objects();
    let others = [
        Settings {
            fill: 3.0,
            ..Settings::default()
        },
        Settings {
            shard: Some([4; 3]),
            ..Settings::default()
        },
        Settings {
            fill: 3.0,
            overwrite: true,
            ..Settings::default()
        },
    ];
    for other in &others {
        let part = process.job(other).with_part(first, Durability::None);
        let refused = part.unwrap().with_repeats().run(&silent);
        assert!(
            matches!(refused, Err(Error::RunMismatch { .. })),
            "{other:?}: {refused:?}"
        );
        for refused in [
            process.job(other).status().map(drop),
            process.job(other).commit(&silent),
        ] {
            assert!(
                matches!(refused, Err(Error::RunMismatch { .. })),
                "{other:?}: {refused:?}"
            );
        }
    }
    let part = OutputPart::new(0, 2).unwrap();
    let part = process.job(&settings).with_part(part, Durability::None);
    let refused = part.unwrap().with_repeats().run(&silent).unwrap_err();
    assert!(refused.to_string().contains("parts"), "{refused}");
    // A run by one process neither takes the name.
    let refused = process.job(&settings).run(&silent).unwrap_err();
    assert!(matches!(refused, Error::Unfinished { .. }), "{refused}");
    assert!(store.objects() == there);
    // If it may, the tasks notice.
    let over = Settings {
        overwrite: true,
        ..Settings::default()
    };
    process.job(&over).run(&silent).unwrap();
    for part in parts(&settings, 3) {
        let part = process.job(&settings).with_part(part, Durability::None);
        let refused = part.unwrap().with_repeats().run(&silent).unwrap_err();
        assert!(matches!(refused, Error::Exists { .. }), "{refused}");
    }
    assert!(store.objects() == expected(&settings));
}

#[test]
fn a_run_that_was_killed_or_interrupted_is_resumed() {
    let settings = Settings::default();
    let wanted = expected(&settings);
    let whole = job(Path::new("nowhere"), &settings).predictions();
    for stop in [40, 70, 100] {
        let name = format!("resumed{stop}");
        let store = named(&format!("memory://{name}"));
        let resumed = |process: &Process| {
            let plan = process.job(&settings);
            plan.with_resume(Durability::None).unwrap()
        };
        let process = Process::new(&name, &store);
        process.killed_at(stop, true);
        resumed(&process).run(&silent).unwrap_err();
        let process = Process::new(&name, &store);
        let interrupt = |done, total| {
            if 2 * done >= total {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let ended = resumed(&process).run(&interrupt).unwrap_err();
        assert!(matches!(ended, Error::Interrupted), "{ended}");
        let status = process.job(&settings).status().unwrap();
        assert!(
            status.chunks_done > 0 && !status.is_complete(),
            "{status:?}"
        );
        let puts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&puts);
        process.faults(move |request, key, _| {
            let is_chunk = request == "put" && key.contains("/0/c/");
            counted.fetch_add(u64::from(is_chunk), Ordering::Relaxed);
            None
        });
        let done = resumed(&process).run(&silent).unwrap();
        assert!(done.whole && done.patches <= whole);
        let chunks = wanted.iter().filter(|(key, _)| key.contains("/0/c/"));
        let (puts, chunks) = (puts.load(Ordering::Relaxed), chunks.count() as u64);
        assert!(puts > 0 && puts < chunks, "{puts} of {chunks}");
        assert!(store.objects() == wanted, "{stop}");
        let refused = resumed(&process).run(&silent).unwrap_err();
        assert!(matches!(refused, Error::Exists { .. }), "{refused}");
    }
}

/// Returns `true` if an object is a chunk of a coarser level.
fn is_coarser(key: &str) -> bool {
    key.contains("/1/c/") || key.contains("/2/c/")
}

/// Returns four parts of the six layers of shards, the last one first. The others make coarser chunks with their neighbors.
fn four() -> [OutputPart; 4] {
    [3, 2, 1, 0].map(|index| OutputPart::new(index, 4).unwrap())
}

#[test]
fn a_commit_that_is_killed_while_it_makes_coarser_levels_is_continued() {
    let settings = Settings {
        pyramid: true,
        ..Settings::default()
    };
    let wanted = expected(&settings);
    let all = wanted.iter().filter(|(key, _)| is_coarser(key)).count() as u64;
    let mut left = None;
    for (n, (kind, last)) in [
        ("chunk", 1),
        ("chunk", 4),
        ("note", 1),
        ("chunk", 11),
        ("note", 2),
        ("nothing", 0),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("coarser{n}");
        let store = named(&format!("memory://{name}"));
        let process = Process::new(&name, &store);
        let is_dead = Arc::clone(&process.is_dead);
        let (is_last, puts) = (AtomicBool::new(false), AtomicU64::new(0));
        // It is killed when it has put so many coarser chunks, or notes of them.
        process.faults(move |request, key, _| {
            if request == "put" && key.contains("2.zarr/.voxpatch.tasks") {
                is_last.fetch_or(key.ends_with("0-of-4"), Ordering::SeqCst);
            }
            let is_counted = match kind {
                "chunk" => is_coarser(key),
                "note" => key.ends_with("/coarser"),
                _ => false,
            };
            if request == "put"
                && is_counted
                && is_last.load(Ordering::SeqCst)
                && puts.fetch_add(1, Ordering::SeqCst) + 1 == last
            {
                is_dead.store(true, Ordering::SeqCst);
            }
            None
        });
        let done = four().map(|part| process.run(&settings, part));
        let ended = (kind == "nothing").then_some(true);
        assert_eq!(done, [Some(false), Some(false), Some(false), ended], "{n}");
        let next = Process::new(&name, &store);
        if ended.is_none() {
            let status = next.job(&settings).status().unwrap();
            assert!(status.is_complete() && !status.published, "{status:?}");
            assert!(!names(&store).iter().any(|key| key.ends_with("zarr.json")));
        }
        let puts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&puts);
        next.faults(move |request, key, _| {
            let is_made = request == "put" && is_coarser(key);
            counted.fetch_add(u64::from(is_made), Ordering::SeqCst);
            None
        });
        if (kind, last) == ("chunk", 4) {
            commit_twice(&name, &store, &settings);
        }
        next.job(&settings).commit(&silent).unwrap();
        assert!(store.objects() == wanted, "{n}: {:?}", names(&store));
        let puts = puts.load(Ordering::SeqCst);
        // What a part has made, and what the killed process has noted, is not made again.
        match (kind, last) {
            ("chunk", 1) => left = Some(puts),
            ("note", last) => assert!(left.is_some_and(|left| puts + last <= left), "{puts}"),
            ("nothing", _) => assert_eq!(puts, 0),
            _ => {}
        }
    }
    assert!(left.is_some_and(|left| left < all), "{left:?} of {all}");
}

/// Returns a progress that stops the making of coarser levels after so many chunks.
fn stopping(chunks: u64) -> impl Fn(u64, u64) -> ControlFlow<()> + Sync {
    let begun = AtomicU64::new(0);
    move |_, total| {
        if total == 0 && begun.fetch_add(1, Ordering::SeqCst) >= chunks {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn a_commit_that_is_stopped_while_it_makes_coarser_levels_makes_no_chunk_twice() {
    let settings = Settings {
        pyramid: true,
        ..Settings::default()
    };
    let wanted = expected(&settings);
    let all = wanted.iter().filter(|(key, _)| is_coarser(key)).count() as u64;
    for chunks in [0, 1, 4] {
        let name = format!("stopped{chunks}");
        let store = named(&format!("memory://{name}"));
        let process = Process::new(&name, &store);
        let puts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&puts);
        process.faults(move |request, key, _| {
            let is_made = request == "put" && is_coarser(key);
            counted.fetch_add(u64::from(is_made), Ordering::SeqCst);
            None
        });
        let [first @ .., last] = four();
        for part in first {
            assert_eq!(process.run(&settings, part), Some(false));
        }
        let part = process.job(&settings).with_part(last, Durability::None);
        let mut done = part
            .unwrap()
            .with_repeats()
            .run(&stopping(chunks))
            .map(|_| ());
        let mut stops = 0;
        while let Err(error) = done {
            assert!(matches!(error, Error::Interrupted), "{error:?}");
            stops += 1;
            let status = process.job(&settings).status().unwrap();
            assert!(status.is_complete() && !status.published, "{status:?}");
            assert!(!names(&store).iter().any(|key| key.ends_with("zarr.json")));
            done = process.job(&settings).commit(&stopping(chunks + 1));
        }
        assert!(stops > 1, "{stops} of {all}");
        assert!(store.objects() == wanted, "{chunks}: {:?}", names(&store));
        assert_eq!(puts.load(Ordering::SeqCst), all, "{chunks}");
    }
}

#[test]
fn coarser_levels_are_made_from_chunks_that_are_put_again_in_the_meantime() {
    let settings = Settings {
        pyramid: true,
        ..Settings::default()
    };
    let name = "again";
    let store = named(&format!("memory://{name}"));
    let process = Process::new(name, &store);
    let parts = four();
    for part in &parts[..3] {
        assert_eq!(process.run(&settings, *part), Some(false));
    }
    // A slow second run of a task puts its chunks again while they are read.
    let (all, times) = (Arc::clone(&store), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&times);
    process.faults(move |request, key, n| {
        if request == "get" && key.contains("/0/c/") && n % 40 == 0 {
            let objects = all.objects();
            let (_, bytes) = objects.iter().find(|(name, _)| name == key)?;
            all.plant(key, bytes);
            counted.fetch_add(1, Ordering::Relaxed);
        }
        None
    });
    assert_eq!(process.run(&settings, parts[3]), Some(true));
    assert!(times.load(Ordering::Relaxed) > 1);
    assert!(store.objects() == expected(&settings));
}

#[test]
fn a_commit_reads_each_chunk_of_the_finest_level_at_most_once() {
    let mut settings = Settings {
        pyramid: true,
        ..Settings::default()
    };
    settings.shard = Some([4; 3]);
    let store = named("memory://once");
    let process = Process::new("once", &store);
    let parts = four();
    for part in &parts[..3] {
        process.run(&settings, *part);
    }
    let read: Arc<Mutex<std::collections::BTreeMap<String, u64>>> = Arc::default();
    let counted = Arc::clone(&read);
    process.faults(move |request, key, _| {
        if request == "get" && key.contains("/0/c/") {
            *counted.lock().unwrap().entry(key.to_owned()).or_default() += 1;
        }
        None
    });
    assert_eq!(process.run(&settings, parts[3]), Some(true));
    let read = read.lock().unwrap();
    // One request for the index of a shard, and one for its chunk.
    assert!(
        read.len() > 20 && read.values().all(|&n| n <= 2),
        "{read:?}"
    );
    let chunks = store.objects().into_iter();
    let chunks = chunks.filter(|(key, _)| key.contains("/0/c/")).count();
    assert!(read.len() <= chunks, "{} of {chunks}", read.len());
    drop(read);
    assert!(store.objects() == expected(&settings));
}

#[test]
fn a_damaged_chunk_of_a_coarser_level_is_made_again() {
    let settings = Settings {
        pyramid: true,
        ..Settings::default()
    };
    let wanted = expected(&settings);
    for (n, damage) in ["other bytes", "gone", "planted before"].iter().enumerate() {
        let name = format!("damaged{n}");
        let store = named(&format!("memory://{name}"));
        let process = Process::new(&name, &store);
        let order = four();
        assert_eq!(process.run(&settings, order[0]), Some(false));
        let made: Vec<String> = names(&store)
            .into_iter()
            .filter(|key| is_coarser(key))
            .collect();
        assert!(!made.is_empty());
        let other = wanted
            .iter()
            .find(|(key, _)| is_coarser(key) && !made.contains(key));
        match *damage {
            "other bytes" => store.plant(&made[0], b"damaged"),
            "gone" => store.unplant(&made[0]),
            _ => store.plant(&other.unwrap().0, b"of a process that was killed"),
        }
        let done = [1, 2, 3].map(|n| process.run(&settings, order[n]));
        assert_eq!(done, [Some(false), Some(false), Some(true)], "{damage}");
        assert!(store.objects() == wanted, "{damage}");
    }
}

#[test]
fn a_late_process_follows_the_shards_of_the_first() {
    let store = named("memory://follows");
    let plan = |process: &Process, shard| {
        let folder = format!("{}/a", process.base);
        let mut targets = targets(Path::new(&folder), &Settings::default());
        for target in &mut targets {
            target.store.shard = Some([shard; 3]);
            target.defaults = vec![StoreOption::Shard];
        }
        let predictor = Predictor::new(two_channels(), three_outputs(), placed(2, 64 << 20));
        predictor.plan(&targets).unwrap()
    };
    for (n, shard) in [8, 4].into_iter().enumerate() {
        let process = Process::new("follows", &store);
        let part = OutputPart::new(u32::try_from(n).unwrap(), 2).unwrap();
        let plan = plan(&process, shard).with_part(part, Durability::None);
        let done = plan.unwrap().run(&silent).unwrap();
        assert_eq!(done.whole, n == 1);
    }
    assert!(store.objects() == expected(&Settings::default()));
    let path = PathBuf::from("memory://follows/a/0.zarr");
    let error = create(&path, &Layout::new([8; 3], 1, DType::F32), &options()).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
}

/// Runs all tasks of a job, the last of which is killed at a document of its outputs, which is there or not.
fn unpublished(
    name: &str,
    settings: &Settings,
    document: &'static str,
    arrives: bool,
) -> Arc<Faulty> {
    let store = named(&format!("memory://{name}"));
    let process = Process::new(name, &store);
    let is_dead = Arc::clone(&process.is_dead);
    process.faults(move |request, key, _| {
        let is_last = request == "put" && key.ends_with(document);
        is_dead.fetch_or(is_last, Ordering::SeqCst);
        (is_last && !arrives).then_some(Fault::Status(403))
    });
    let done: Vec<_> = parts(settings, 3)
        .iter()
        .map(|part| process.run(settings, *part))
        .collect();
    assert_eq!(done, [Some(false), Some(false), None]);
    store
}

#[test]
fn a_job_that_is_published_while_its_notes_are_read_is_published() {
    for request in ["list", "get"] {
        let settings = Settings::default();
        let name = format!("late-{request}");
        let store = unpublished(&name, &settings, "0.zarr/0/zarr.json", false);
        let (process, other) = (Process::new(&name, &store), Process::new(&name, &store));
        let is_over = AtomicBool::new(false);
        let its = settings.clone();
        process.faults(move |asked, key, _| {
            let is_note = asked == request && key.contains("/.voxpatch");
            if is_note && !is_over.swap(true, Ordering::SeqCst) {
                let commit = || other.job(&its).commit(&silent).unwrap();
                std::thread::scope(|scope| scope.spawn(commit).join().unwrap());
            }
            None
        });
        let status = process.job(&settings).status().unwrap();
        assert!(status.published, "{request}: {status:?}");
        process.job(&settings).commit(&silent).unwrap();
        assert!(store.objects() == expected(&settings));
    }
}

#[test]
fn two_commits_at_once_publish_what_a_killed_task_did_not() {
    let settings = Settings::default();
    let wanted = expected(&settings);
    for n in 0..6 {
        let name = format!("commits{n}");
        let document = ["0.zarr/0/zarr.json", "1.zarr/zarr.json"][n % 2];
        let store = unpublished(&name, &settings, document, n >= 3);
        let status = Process::new(&name, &store).job(&settings).status().unwrap();
        assert!(status.is_complete() && !status.published, "{status:?}");
        commit_twice(&name, &store, &settings);
        assert!(store.objects() == wanted, "{n}: {:?}", names(&store));
    }
}
