//! Concurrent runs, impatient users, changing inputs, and disks that are too small.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use voxpatch::volume::{CreateOptions, create};
use voxpatch::{DType, Layout, VolumeMut};

use crate::tool::{Place, command, names, voxels};

fn begun(words: &[&str]) -> Child {
    command(words)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts")
}

fn ended(child: Child) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = child.wait_with_output().expect("it ends");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

fn send(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(sent.expect("kill starts").success());
}

/// Waits until a folder contains something of this kind.
fn wait_for(place: &Place, kind: &str) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !names(place.path()).iter().any(|name| name.ends_with(kind)) {
        assert!(Instant::now() < deadline, "nothing was begun");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the processor time of a process in whole seconds.
fn processor_seconds(child: &Child) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it runs");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse().expect("a number");
    ticks / 100
}

/// A model is busy with one patch for seconds and does not check for signals.
#[test]
fn the_second_ctrl_c_ends_a_run_that_has_not_heeded_the_first() {
    let place = Place::new();
    let voxels = vec![1_u8; 64 * 512 * 512];
    let source = place.store("in.npy", [64, 512, 512], 1, voxels);
    let target = place.at("out.zarr");
    let words = [
        "infer",
        &source,
        &target,
        "--patch-size",
        "64,512,512",
        "--overlap",
        "0",
    ];
    let slow = [
        "--model",
        "gaussian:64",
        "--threads",
        "1",
        "--memory",
        "8GiB",
    ];
    for (first, second, status) in [("-INT", "-INT", 130), ("-TERM", "-INT", 130)] {
        let mut child = begun(&[&words[..], &slow].concat());
        wait_for(&place, ".incomplete");
        // A signal before the first patch takes effect immediately.
        let deadline = Instant::now() + Duration::from_mins(2);
        while processor_seconds(&child) < 2 {
            assert!(Instant::now() < deadline, "it does not predict");
            thread::sleep(Duration::from_millis(20));
        }
        send(&child, first);
        thread::sleep(Duration::from_millis(200));
        assert!(
            child.try_wait().expect("a child").is_none(),
            "it waits for the patch"
        );
        send(&child, second);
        let (ended, said) = ended(child);
        assert_eq!(ended, Some(status), "{said}");
        assert_eq!(said, "voxpatch: stopped on request\n");
        // If it had ended by itself, it would have cleaned up.
        let left = names(place.path());
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(
            left[0].starts_with(".out.zarr.") && left[0].ends_with(".incomplete"),
            "{left:?}"
        );
        fs::remove_dir_all(place.path().join(&left[0])).expect("it is ours");
    }
}

/// Runs two processes that start at the same moment.
fn both(a: &[&str], b: &[&str]) -> [(Option<i32>, String); 2] {
    let children = [begun(a), begun(b)];
    children.map(ended)
}

/// Returns `true` if a failed run reported that a different process has the output.
fn is_told(said: &str) -> bool {
    said.contains("locked by another process") || said.contains("exists already")
}

#[test]
fn of_two_processes_that_want_one_output_one_gets_it_and_the_other_is_told() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let expected = voxels(&source);
    let (mut locked, mut late) = (0, 0);
    for round in 0..20 {
        let target = place.at(&format!("{round}.zarr"));
        let words = [
            "infer",
            &source,
            &target,
            "--patch-size",
            "10,12,9",
            "--overlap",
            "4,6,3",
        ];
        let words = [
            &words[..],
            &["--chunk", "8", "--shard", "none", "--threads", "1"],
        ]
        .concat();
        let with = |more: &[&'static str]| [&words[..], more].concat();
        let runs = match round % 4 {
            0 | 1 => both(&with(&["--resume"]), &with(&["--resume"])),
            2 => both(&words, &words),
            _ => {
                let same = both(&with(&["--part", "0/2"]), &with(&["--part", "0/2"]));
                // Here the later process may find that its part is done.
                assert!(
                    same.iter().any(|(status, _)| *status == Some(0)),
                    "{same:?}"
                );
                for (status, said) in &same {
                    assert!(*status == Some(0) || is_told(said), "{same:?}");
                }
                both(&with(&["--part", "1/2"]), &with(&["--part", "1/2"]))
            }
        };
        let won = runs.iter().filter(|(status, _)| *status == Some(0)).count();
        assert!(
            won == 1 || (won == 2 && round % 4 == 3),
            "round {round}: {runs:?}"
        );
        for (status, said) in runs.iter().filter(|(status, _)| *status != Some(0)) {
            assert!(
                *status == Some(1) && is_told(said),
                "round {round}: {runs:?}"
            );
            locked += usize::from(said.contains("held by"));
            late += usize::from(said.contains("exists already"));
        }
        assert!(voxels(&target) == expected, "round {round}");
    }
    println!("{locked} found the lock, {late} the output");
    let left = names(place.path());
    assert!(!left.iter().any(|name| name.starts_with('.')), "{left:?}");
}

#[test]
fn parts_that_end_at_the_same_moment_put_one_output_together() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let expected = voxels(&source);
    for round in 0..10 {
        let target = place.at(&format!("{round}.zarr"));
        let words = [
            "infer",
            &source,
            &target,
            "--patch-size",
            "10,12,9",
            "--overlap",
            "4,6,3",
        ];
        let words = [
            &words[..],
            &["--chunk", "8", "--shard", "none", "--threads", "1"],
        ]
        .concat();
        let part = |part: &'static str| [&words[..], &["--part", part]].concat();
        for (status, said) in both(&part("0/2"), &part("1/2")) {
            assert_eq!(status, Some(0), "round {round}: {said}");
        }
        assert!(voxels(&target) == expected, "round {round}");
    }
    let left = names(place.path());
    assert!(!left.iter().any(|name| name.starts_with('.')), "{left:?}");
}

/// A change of an input.
type Change = fn(&Path);

#[test]
fn an_input_that_changes_while_it_is_predicted_ends_the_run() {
    let changes: [(&str, Change); 4] = [
        ("written.npy", |path| {
            let length = fs::metadata(path).expect("it is there").len();
            let file = fs::File::options()
                .write(true)
                .open(path)
                .expect("it is ours");
            std::os::unix::fs::FileExt::write_all_at(&file, &[9; 64], length - 64)
                .expect("it is ours");
        }),
        ("replaced.npy", |path| {
            let other = path.with_extension("new");
            fs::copy(path, &other).expect("the folder is ours");
            fs::rename(&other, path).expect("the folder is ours");
        }),
        ("metadata.zarr", |path| {
            let document = path.join("0/zarr.json");
            let text = fs::read_to_string(&document).expect("it is there");
            fs::write(document, text.replace("int16", "uint16")).expect("it is ours");
        }),
        ("chunk.zarr", |path| {
            let chunk = path.join("0/c/2/2/2");
            let bytes = fs::read(&chunk).expect("it is there");
            fs::write(chunk, bytes).expect("it is ours");
        }),
    ];
    for (name, change) in changes {
        for resume in [false, true] {
            let place = Place::new();
            let source = place.store(name, [48; 3], 1, vec![1_i16; 48 * 48 * 48]);
            let target = place.at("out.zarr");
            let words = [
                "infer",
                &source,
                &target,
                "--patch-size",
                "24",
                "--overlap",
                "22",
            ];
            let more = if resume {
                &["--threads", "2", "--resume"][..]
            } else {
                &["--threads", "2"]
            };
            let child = begun(&[&words[..], more].concat());
            wait_for(&place, if resume { ".partial" } else { ".incomplete" });
            // The system's clock for files is behind by a few milliseconds.
            thread::sleep(Duration::from_millis(50));
            change(Path::new(&source));
            let (status, said) = ended(child);
            assert_eq!(status, Some(1), "{name}: {said}");
            assert!(
                said.contains("changed while it was in use"),
                "{name}: {said}"
            );
            assert!(
                said.contains(name) && said.lines().count() == 1,
                "{name}: {said}"
            );
            let left = names(place.path());
            let expected = if resume {
                vec![".out.zarr.partial", name]
            } else {
                vec![name]
            };
            assert_eq!(left, expected);
            if resume {
                let (status, said) = ended(begun(&[&words[..], more].concat()));
                assert_eq!(status, Some(1), "what was done is of another input: {said}");
            }
        }
    }
}

/// Creates an image of 32 TiB without stored chunks.
fn enormous(place: &Place) -> String {
    let path = place.at("enormous.zarr");
    let layout = Layout::new([1 << 25, 1 << 10, 1 << 10], 1, DType::U8);
    let output = create(Path::new(&path), &layout, &CreateOptions::default());
    output
        .and_then(VolumeMut::finish)
        .expect("metadata alone are small");
    path
}

#[test]
fn an_output_that_may_not_fit_is_warned_of_before_the_work() {
    let place = Place::new();
    let (source, target) = (enormous(&place), place.at("out.zarr"));
    let warning = format!(
        "voxpatch: {target} may not fit: it takes up to 32.0 TiB if it does not compress, and"
    );

    let words = [
        "infer",
        &source,
        &target,
        "--patch-size",
        "32",
        "--overlap",
        "0",
        "--memory",
        "2GiB",
    ];
    let done = command(&[&words[..], &["--dry-run", "--json"]].concat()).output();
    let done = done.expect("the command starts");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.lines().count() == 1, "{said}");
    assert!(
        said.starts_with(&warning) && said.ends_with(" are free there\n"),
        "{said}"
    );
    let told: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one JSON object");
    assert!(
        told["free_bytes"].as_u64() < told["output_bytes"].as_u64(),
        "{told}"
    );

    let mut child = begun(&["convert", &source, &target]);
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let first = lines.next().expect("it says something").expect("UTF-8");
    assert!(first.starts_with(&warning), "{first}");
    wait_for(&place, ".incomplete");
    send(&child, "-INT");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert_eq!(names(place.path()), ["enormous.zarr"]);

    let (status, said) = ended(begun(&["convert", &source, &place.at("out.npy")]));
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("no space") && said.lines().count() == 1,
        "{said}"
    );
    assert_eq!(names(place.path()), ["enormous.zarr"]);
}

/// Names the volume that a process of its own copies until it is killed.
const COPIED: &str = "VOXPATCH_TEST_COPIED";

#[test]
#[ignore = "the test below kills it"]
fn a_test_that_is_killed() {
    let source = std::env::var(COPIED).expect("the test below sets it");
    let target = format!("{source}.copy.zarr");
    let mut child = begun(&["convert", &source, &target]);
    println!("\nstarted {}", child.id());
    child.wait().expect("it ends");
}

#[test]
#[cfg(target_os = "linux")]
fn a_command_ends_with_the_test_that_started_it() {
    let place = Place::new();
    let source = enormous(&place);
    let mut test = Command::new(std::env::current_exe().expect("this program"))
        .args(["together::a_test_that_is_killed", "--exact", "--nocapture"])
        .arg("--ignored")
        .env(COPIED, &source)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(test.stdout.take().expect("it is piped")).lines();
    let mut lines = lines.map(|line| line.expect("UTF-8"));
    let id = lines.find_map(|line| line.strip_prefix("started ").map(str::to_owned));
    let process = Path::new("/proc").join(id.expect("it says so"));
    wait_for(&place, ".incomplete");
    assert!(process.exists());
    test.kill().expect("it runs");
    test.wait().expect("it ends");
    let is_running = || {
        // Without a parent that takes its status, its entry may stay.
        let state = fs::read_to_string(process.join("stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    while is_running() {
        assert!(Instant::now() < deadline, "it outlives its test");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn sample_checks_the_disk_before_it_writes() {
    let place = Place::new();
    let source = place.store("in.npy", [16; 3], 1, vec![1_u8; 16 * 16 * 16]);
    let too_many = "1000000000000";
    for (name, begins) in [("a.npy", false), ("b/", false), ("c.zarr", true)] {
        let target = place.at(name);
        let words = |count| {
            let out = ["--out", &target, "--overwrite"];
            let drawn = [
                "sample",
                &source,
                "--patch-size",
                "8",
                "--samples-per-subject",
                count,
            ];
            [&drawn[..], &out].concat().join(" ")
        };
        let dry = words(too_many) + " --dry-run --json";
        let dry: Vec<&str> = dry.split(' ').collect();
        let done = command(&dry).output().expect("the command starts");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{name}: {said}");
        assert_eq!(said.contains("may not fit"), begins, "{name}: {said}");
        let told: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one object");
        assert_eq!(told["output_bytes"], 512_000_000_000_000_u64, "{name}");
        assert!(told["free_bytes"].as_u64() < told["output_bytes"].as_u64());

        let all = words(too_many);
        let mut child = begun(&all.split(' ').collect::<Vec<_>>());
        if begins {
            let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
            let first = lines.next().expect("it says something").expect("UTF-8");
            assert!(first.contains("may not fit"), "{first}");
            wait_for(&place, ".incomplete");
            send(&child, "-INT");
            assert_eq!(child.wait().expect("it ends").code(), Some(130));
        } else {
            let (status, said) = ended(child);
            assert_eq!(status, Some(1), "{name}: {said}");
            assert!(
                said.contains("no space") && said.lines().count() == 1,
                "{name}: {said}"
            );
        }
        assert_eq!(names(place.path()), ["in.npy"], "{name}: nothing is left");
        let few = words("3");
        let (status, said) = ended(begun(&few.split(' ').collect::<Vec<_>>()));
        assert_eq!((status, &*said), (Some(0), ""), "{name}");
        let made = place.path().join(name.trim_end_matches('/'));
        let removed = if made.is_dir() {
            fs::remove_dir_all(made)
        } else {
            fs::remove_file(made)
        };
        removed.expect("it is ours");
    }
}
