//! Headers that name files outside of their folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{all_refused, refusal};
use crate::tool::Place;

/// Names of data files, with the expected errors.
const NAMES: [(&str, &str); 30] = [
    ("/etc/passwd", "may be outside"),
    ("/dev/zero", "may be outside"),
    ("/proc/self/environ", "may be outside"),
    ("//secret.raw", "may be outside"),
    ("../secret.raw", "may be outside"),
    ("./../secret.raw", "may be outside"),
    ("../inside/near.raw", "may be outside"),
    ("sub/../../secret.raw", "may be outside"),
    ("sub/../near.raw", "may be outside"),
    ("..", "may be outside"),
    (".", "not a regular file"),
    ("sub", "not a regular file"),
    ("link.raw", "a file outside"),
    ("absolute_link.raw", "a file outside"),
    ("link_to_link.raw", "a file outside"),
    ("outside/secret.raw", "a file outside"),
    ("passwd", "a file outside"),
    ("zero", "a file outside"),
    ("memory", "a file outside"),
    ("loop.raw", "loop.raw"),
    ("loop_a.raw", "loop_a.raw"),
    ("fifo.raw", "not a regular file"),
    ("socket.raw", "not a regular file"),
    ("missing.raw", "missing.raw"),
    ("near.raw/x", "near.raw"),
    ("nul\0.raw", "nul"),
    ("http://127.0.0.1:9/a.raw", "not a file"),
    ("file:///etc/passwd", "not a file"),
    ("LIST", "list of files is empty"),
    ("slice%07d.raw 1 1000000 1", "more than 65536 files"),
];

/// Creates a folder of traps.
fn traps(root: &Path) {
    let inside = root.join("inside");
    fs::create_dir_all(inside.join("sub")).expect("the folder is ours");
    fs::create_dir(root.join("far")).expect("the folder is ours");
    for secret in ["secret.raw", "far/secret.raw", "inside/near.raw"] {
        fs::write(root.join(secret), [0x5E; 64]).expect("the folder is ours");
    }
    let absolute = root.join("secret.raw");
    for (target, name) in [
        ("../secret.raw", "link.raw"),
        (absolute.to_str().expect("UTF-8"), "absolute_link.raw"),
        ("link.raw", "link_to_link.raw"),
        ("../far", "outside"),
        ("/etc/passwd", "passwd"),
        ("/dev/zero", "zero"),
        ("/proc/self/mem", "memory"),
        ("loop.raw", "loop.raw"),
        ("loop_b.raw", "loop_a.raw"),
        ("loop_a.raw", "loop_b.raw"),
    ] {
        symlink(target, inside.join(name)).expect("the folder is ours");
    }
    let made = Command::new("mkfifo").arg(inside.join("fifo.raw")).status();
    assert!(made.expect("mkfifo starts").success());
    drop(UnixListener::bind(inside.join("socket.raw")).expect("the folder is ours"));
}

/// Returns headers that name a file, with the headers' names.
fn headers(data: &str) -> [(&'static str, String); 2] {
    [
        (
            "a.mhd",
            format!(
                "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = {data}\n"
            ),
        ),
        (
            "a.nhdr",
            format!(
                "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: {data}\n"
            ),
        ),
    ]
}

#[test]
fn data_files_elsewhere_are_refused_and_never_opened() {
    let place = Place::new();
    let root = place.path().canonicalize().expect("it is there");
    traps(&root);
    let inside = root.join("inside");
    for (name, text) in headers("near.raw") {
        fs::write(inside.join(name), text).expect("the folder is ours");
        voxpatch::open(inside.join(name)).expect("a file beside the header may be read");
    }
    let (mut watched, mut found) = (0, Vec::new());
    for (data, says) in NAMES {
        for (name, text) in headers(data) {
            let path = inside.join(name);
            fs::write(&path, text).expect("the folder is ours");
            found.push(refusal(&format!("{name}, {data:?}"), &path, says));
            watched += usize::from(opens_only(&path, &root).unwrap_or(false));
        }
    }
    all_refused(found);
    println!("{watched} of {} were watched by strace", 2 * NAMES.len());
    if watched == 0 {
        println!("SKIPPED: strace cannot trace here, so nobody saw which files were opened");
    }
}

/// Runs `voxpatch info` and returns `true` if it only opens the header in the folder, and none of the system's secrets.
/// `None` where this cannot be traced.
fn opens_only(header: &Path, root: &Path) -> Option<bool> {
    let log = root.join("log");
    let done = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=open,openat,openat2,connect", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_voxpatch"))
        .arg("info")
        .arg(header)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let log = fs::read_to_string(log)
        .ok()
        .filter(|log| log.contains("openat"))?;
    assert_eq!(done.status.code(), Some(1), "{}", header.display());
    for line in log.lines().filter(|line| !line.contains("= -1 ")) {
        let ours = line.contains(root.to_str().expect("UTF-8"));
        let secret = [
            "/etc/passwd",
            "/dev/zero",
            "/self/mem",
            "/self/environ",
            "connect(",
        ];
        let name = header.to_str().expect("UTF-8");
        assert!(!ours || line.contains(name), "{line}");
        assert!(!secret.iter().any(|secret| line.contains(secret)), "{line}");
    }
    Some(true)
}
