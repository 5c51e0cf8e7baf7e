//! The command under shells and batch systems: signals, limits, and paths that are not files.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::interrupt;
use crate::tool::{Place, command, ends_with_its_test, fails, names, ramp};

/// Returns the command, started by a shell after `shell`.
fn after(shell: &str, args: &[&str]) -> Command {
    let inner = command(args);
    let mut outer = Command::new("bash");
    outer
        .args(["-c", &format!("{shell}; exec \"$0\" \"$@\"")])
        .arg(inner.get_program())
        .args(inner.get_args())
        .stdin(Stdio::null());
    ends_with_its_test(&mut outer);
    outer
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts a command that takes some seconds and writes an output.
fn started(shell: &str, args: &[&str]) -> Child {
    after(shell, args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell starts")
}

fn kill(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(sent.expect("kill starts").success());
}

/// Returns the words of a run of many patches, which takes a second or two.
fn long<'a>(source: &'a str, target: &'a str) -> [&'a str; 7] {
    [
        "infer",
        source,
        target,
        "--patch-size",
        "24",
        "--overlap",
        "22",
    ]
}

#[test]
fn every_signal_that_ends_the_command_leaves_nothing_half_written() {
    let place = Place::new();
    let source = place.store("in.zarr", [48; 3], 1, vec![1_u8; 48 * 48 * 48]);
    for (signal, status) in [
        ("-HUP", 129),
        ("-INT", 130),
        ("-QUIT", 131),
        ("-USR1", 128 + libc::SIGUSR1),
        ("-USR2", 128 + libc::SIGUSR2),
        ("-TERM", 143),
        ("-XCPU", 128 + libc::SIGXCPU),
    ] {
        let target = place.at("out.zarr");
        let mut words = long(&source, &target);
        words[6] = "23";
        let child = started(":", &words);
        let ended = interrupt(child, signal, place.path(), ".incomplete");
        assert_eq!(ended, Some(status), "{signal}");
        assert_eq!(names(place.path()), ["in.zarr"], "{signal}");
    }
}

/// Started as by `nohup`, or as a background job of a script.
#[test]
fn signals_that_were_ignored_stay_ignored() {
    let place = Place::new();
    let source = place.store("in.zarr", [48; 3], 1, vec![1_u8; 48 * 48 * 48]);
    for (n, signals) in ["HUP", "INT QUIT", "HUP INT QUIT USR1 USR2 XCPU"]
        .into_iter()
        .enumerate()
    {
        let target = place.at(&format!("out{n}.zarr"));
        let mut child = started(&format!("trap '' {signals}"), &long(&source, &target));
        let deadline = Instant::now() + Duration::from_mins(1);
        let begun = |place: &Place| {
            let names = names(place.path());
            names.iter().any(|name| name.ends_with(".incomplete"))
        };
        while !begun(&place) {
            assert!(Instant::now() < deadline && child.try_wait().expect("ours").is_none());
            thread::sleep(Duration::from_millis(2));
        }
        for signal in signals.split(' ') {
            kill(&child, &format!("-{signal}"));
            kill(&child, &format!("-{signal}"));
        }
        assert!(child.wait().expect("it ends").success(), "{signals}");
        assert!(Path::new(&target).is_dir(), "{signals}");
    }
    // The other signals still take effect.
    let target = place.at("out.zarr");
    let mut words = long(&source, &target);
    words[6] = "23";
    let child = started("trap '' HUP INT", &words);
    let ended = interrupt(child, "-TERM", place.path(), ".incomplete");
    assert_eq!(ended, Some(143));
    assert!(!Path::new(&target).exists());
}

/// The limit of processor time, `ulimit -t`, sends its signal repeatedly.
#[test]
fn the_signal_of_a_time_limit_may_come_several_times() {
    let place = Place::new();
    let source = place.store("in.zarr", [48; 3], 1, vec![1_u8; 48 * 48 * 48]);
    let target = place.at("out.zarr");
    let mut words = long(&source, &target);
    words[6] = "23";
    let child = started("ulimit -S -t 1", &words);
    let ended = child.wait_with_output().expect("it ends").status;
    assert_eq!(ended.code(), Some(128 + libc::SIGXCPU), "{ended:?}");
    assert_eq!(names(place.path()), ["in.zarr"]);
}

#[test]
fn a_file_that_grows_too_large_is_an_error_that_names_it() {
    let place = Place::new();
    let noise: Vec<u32> = (0..40 * 40 * 40_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 31))
        .collect();
    let source = place.store("in.zarr", [40; 3], 1, noise);
    for (name, words) in [
        ("out.npy", &["convert"][..]),
        ("out.nii", &["convert"]),
        ("out.zarr", &["convert", "--chunk", "40", "--shard", "none"]),
        (
            "out.zarr",
            &[
                "infer",
                "--patch-size",
                "40",
                "--overlap",
                "0",
                "--blend",
                "crop",
            ],
        ),
    ] {
        let target = place.at(name);
        let words = [&words[..1], &[&source, &target], &words[1..]].concat();
        let output = after("ulimit -f 32", &words)
            .output()
            .expect("a shell starts");
        let line = said(&output);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {line}");
        assert!(
            line.contains("File too large") && line.contains(name),
            "{words:?}: {line}"
        );
        assert_eq!(line.lines().count(), 1, "{line}");
        assert_eq!(names(place.path()), ["in.zarr"], "{words:?}");
    }
    let target = place.at("patches.npy");
    let words = [
        "sample",
        &source,
        "--patch-size",
        "16",
        "--samples-per-subject",
        "64",
        "--out",
        &target,
    ];
    let output = after("ulimit -f 32", &words)
        .output()
        .expect("a shell starts");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("patches.npy"), "{}", said(&output));
    assert_eq!(names(place.path()), ["in.zarr"]);
}

/// An output under the name is complete, and nothing else is left.
#[test]
fn too_few_file_descriptors_leave_nothing_half_written() {
    let place = Place::new();
    let voxels = ramp(20 * 24 * 28);
    let (zarr, npy) = (
        place.store("in.zarr", [20, 24, 28], 1, voxels.clone()),
        place.store("in.npy", [20, 24, 28], 1, voxels),
    );
    let at = |name: &str| place.at(name);
    let (out, flat, folder) = (at("out.zarr"), at("out.npy"), at("out/"));
    let infer = ["--patch-size", "12", "--overlap", "4", "--threads", "3"];
    let sample = [
        "--patch-size",
        "8",
        "--samples-per-subject",
        "20",
        "--threads",
        "3",
        "--out",
    ];
    let mut all: Vec<Vec<&str>> = Vec::new();
    for source in [&zarr, &npy] {
        for target in [&out, &flat] {
            all.push(vec!["convert", source, target, "--threads", "3"]);
            all.push([&["infer", source, target], &infer[..]].concat());
        }
        let pyramid = ["--pyramid", "mean", "--chunk", "8", "--shard", "none"];
        all.push([&["convert", source, &out], &pyramid[..]].concat());
        all.push([&["infer", source, &out], &infer[..], &["--mask", source]].concat());
        for target in [&out, &flat, &folder] {
            all.push([&["sample", source], &sample[..], &[target]].concat());
        }
    }
    let mut failed = 0;
    for words in &all {
        for limit in [4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 32, 64] {
            let output = after(&format!("ulimit -n {limit}"), words)
                .output()
                .expect("a shell starts");
            let line = said(&output);
            let mut left = names(place.path());
            left.retain(|name| !name.starts_with("in."));
            match output.status.code() {
                Some(0) => {
                    assert_eq!(left.len(), 1, "{limit} {words:?}");
                    assert!(left[0].starts_with("out"), "{limit} {words:?} {left:?}");
                    let path = place.path().join(&left[0]);
                    if path.is_dir() {
                        std::fs::remove_dir_all(path).expect("it is ours");
                    } else {
                        std::fs::remove_file(path).expect("it is ours");
                    }
                }
                Some(1) => {
                    failed += 1;
                    assert_eq!(left, Vec::<String>::new(), "{limit} {words:?}: {line}");
                    assert!(
                        line.contains("Too many open files"),
                        "{limit} {words:?}: {line}"
                    );
                }
                // The shell or the program loader could not start it.
                Some(126 | 127) if limit < 6 => {}
                _ => panic!("{limit} {words:?}: {:?} {line}", output.status),
            }
        }
        let output = command(words).output().expect("the command starts");
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        for name in names(place.path()) {
            let path = place.path().join(&name);
            match name.starts_with("out") {
                true if path.is_dir() => std::fs::remove_dir_all(path).expect("it is ours"),
                true => std::fs::remove_file(path).expect("it is ours"),
                false => {}
            }
        }
    }
    assert!(failed > 3 * all.len(), "{failed} of {}", all.len());
}

/// Returns the error line of a run that must end immediately; a run that waits for a pipe's other end is killed.
fn fails_at_once(args: &[&str]) -> String {
    let mut child = command(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().expect("it is ours").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("it is ours");
            panic!("it waits: {args:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("it has ended");
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", said(&output));
    said(&output)
}

#[test]
fn pipes_and_devices_are_refused_wherever_a_file_is_read() {
    let place = Place::new();
    let source = place.small("in.npy");
    let labels = place.store("labels.npy", [20, 24, 28], 1, vec![1_u8; 20 * 24 * 28]);
    let pipe = place.at("pipe");
    let fifo = |path: &OsStr| {
        let made = Command::new("mkfifo").arg(path).status();
        assert!(made.expect("mkfifo starts").success());
    };
    fifo(OsStr::new(&pipe));
    std::fs::write(place.at("a.raw"), [0; 64]).expect("it is ours");
    fifo(OsStr::new(&place.at("a.raw.json")));
    for (header, text) in [
        (
            "a.mhd",
            "NDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = pipe\n",
        ),
        (
            "a.nhdr",
            "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: pipe\n",
        ),
    ] {
        std::fs::write(place.at(header), text).expect("it is ours");
    }
    let array = place.small("b.zarr");
    let document = format!("{array}/0/zarr.json");
    std::fs::remove_file(&document).expect("it is there");
    fifo(OsStr::new(&document));
    let out = place.at("out.zarr");
    let patch = ["--patch-size", "8", "--samples-per-subject", "2"];
    let by_labels = [&["sample", &source, "--labels", &labels], &patch[..]].concat();
    let infer = [
        "infer",
        &source,
        &out,
        "--patch-size",
        "12",
        "--overlap",
        "4",
    ];
    let (raw, mhd, nhdr) = (place.at("a.raw"), place.at("a.mhd"), place.at("a.nhdr"));
    for path in [&pipe[..], "/dev/zero", "/dev/null", "/dev/tty"] {
        for words in [
            &["info", path][..],
            &["stats", path],
            &["verify", path],
            &["convert", path, &out],
            &["preview", path, &place.at("out.png")],
            &["infer", path, &out, "--patch-size", "4", "--overlap", "0"],
            &[&infer[..], &["--mask", path]].concat(),
            &["sample", &source, "--at", path],
            &[&by_labels[..], &["--index", path]].concat(),
            &[&["sample", &source, "--labels", path], &patch[..]].concat(),
            &[&["sample", &source, "--weights", path], &patch[..]].concat(),
        ] {
            let line = fails_at_once(words);
            assert!(line.contains(path), "{words:?}: {line}");
        }
    }
    for path in [&raw[..], &mhd, &nhdr, &array] {
        let line = fails_at_once(&["info", path]);
        let named = line.contains("pipe") || line.contains("regular");
        assert!(named && line.lines().count() == 1, "{path}: {line}");
    }
    assert!(fails(&["info", &source, "--level", "3"]).contains("level"));
    assert!(!Path::new(&out).exists());
}
