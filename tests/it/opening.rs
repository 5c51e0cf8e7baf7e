//! The flags for opening inputs, which are the same for every command.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::tool::{Place, command, is_refused, json, names, succeeds, voxels};

/// Returns every command that reads voxels, with this input and new outputs.
fn readers(place: &Place, source: &str, round: &str) -> Vec<Vec<String>> {
    let out = |name: &str| place.at(&format!("{round}-{name}"));
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(ToString::to_string).collect() };
    let patches = ["--patch-size", "16", "--samples-per-subject", "40", "--out"];
    vec![
        words(&["convert", source, &out("converted.zarr")]),
        words(&[
            "infer",
            source,
            &out("predicted.zarr"),
            "--patch-size",
            "8",
            "--overlap",
            "0",
        ]),
        [
            words(&["sample", source]),
            words(&patches),
            words(&[&out("patches.npy")]),
        ]
        .concat(),
        words(&["preview", source, &out("picture.png"), "--at", "9,9,9"]),
        words(&["verify", source]),
    ]
}

/// Runs a command with these flags and returns its exit status and its output.
fn tried(words: &[String], flags: &[&str]) -> (Option<i32>, String) {
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .chain(flags.iter().copied())
        .collect();
    let done = command(&words).output().expect("the command starts");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&done.stderr);
    (done.status.code(), said)
}

/// Checks that every command succeeds without the flags, and with them fails with `named`.
fn every_command_needs_it_otherwise(place: &Place, source: &str, flags: &[&str], named: &str) {
    for words in readers(place, source, "with") {
        let (status, said) = tried(&words, flags);
        assert_eq!(status, Some(1), "{words:?}: {said}");
        assert!(said.contains(named), "{words:?}: {said}");
    }
    assert!(
        !names(place.path())
            .iter()
            .any(|name| name.contains("with-"))
    );
    for words in readers(place, source, "without") {
        let (status, said) = tried(&words, &[]);
        assert_eq!(status, Some(0), "{words:?}: {said}");
    }
}

#[test]
fn a_chunk_without_a_file_is_fill_value_or_an_error_as_asked() {
    let place = Place::new();
    let source = place.small("in.zarr");
    fs::remove_file(Path::new(&source).join("0/c/0/0/0")).expect("the shard is there");
    let flags = ["--missing-chunks", "error"];
    every_command_needs_it_otherwise(&place, &source, &flags, "c/0/0/0");
    let found = voxels(&place.at("without-converted.zarr"));
    let found = found.as_slice::<i16>().expect("i16");
    assert_eq!(found[..16], [0; 16], "the fill value");
    assert_eq!(found[16], -2000 + 16);
    for words in readers(&place, &source, "fill") {
        let (status, said) = tried(&words, &["--missing-chunks", "fill"]);
        assert_eq!(status, Some(0), "{words:?}: {said}");
    }
}

#[test]
fn codecs_and_links_of_strangers_are_refused_as_asked() {
    let place = Place::new();
    let plain = place.small("in.zarr");
    let blosc = place.at("blosc.zarr");
    succeeds(&["convert", &plain, &blosc, "--codec", "blosc-zstd"]);
    let flags = ["--untrusted"];
    every_command_needs_it_otherwise(&place, &blosc, &flags, "not safe on untrusted data");
    let (status, said) = tried(&["info".to_owned(), blosc], &flags);
    assert!(status == Some(1) && said.contains("blosc"), "{said}");
    json(&["info", &plain, "--untrusted"]);

    let place = Place::new();
    let linked = place.small("in.zarr");
    for words in readers(&place, &linked, "sound") {
        let (status, said) = tried(&words, &flags);
        assert_eq!(status, Some(0), "{words:?}: {said}");
    }
    let shard = Path::new(&linked).join("0/c/0/0/0");
    fs::rename(&shard, place.path().join("elsewhere")).expect("the shard is there");
    symlink(place.path().join("elsewhere"), &shard).expect("the folder is ours");
    every_command_needs_it_otherwise(&place, &linked, &flags, "c/0/0/0 is a symbolic link");
}

#[test]
fn voxels_outside_of_their_header_s_folder_are_read_only_as_asked() {
    let place = Place::new();
    let beside = place.small("scan.mhd");
    fs::create_dir(place.path().join("headers")).expect("the folder is ours");
    let header = fs::read_to_string(&beside).expect("it is text");
    let header = header.replace("scan.raw", "../scan.raw");
    let apart = place.at("headers/scan.mhd");
    fs::write(&apart, header).expect("the folder is ours");
    for words in readers(&place, &apart, "without") {
        let (status, said) = tried(&words, &[]);
        assert_eq!(status, Some(1), "{words:?}: {said}");
        assert!(said.contains("--allow-external"), "{words:?}: {said}");
    }
    for words in readers(&place, &apart, "with") {
        let (status, said) = tried(&words, &["--allow-external"]);
        assert_eq!(status, Some(0), "{words:?}: {said}");
    }
    assert_eq!(voxels(&place.at("with-converted.zarr")), voxels(&beside));
    // Labels and masks are opened like the volume.
    let predicted = place.at("masked.zarr");
    let masked = [
        "infer",
        &beside,
        &predicted,
        "--patch-size",
        "8",
        "--overlap",
        "0",
        "--mask",
        &apart,
    ];
    let masked: Vec<String> = masked.iter().map(ToString::to_string).collect();
    assert_eq!(tried(&masked, &[]).0, Some(1));
    assert_eq!(tried(&masked, &["--allow-external"]).0, Some(0));
}

/// Returns `true` if a run maps this file, according to the system.
fn maps(place: &Place, source: &str, how: &[&str]) -> bool {
    let target = place.at("out.zarr");
    let words = [
        "infer",
        source,
        &target,
        "--patch-size",
        "24",
        "--overlap",
        "23",
        "--threads",
        "1",
    ];
    let mut child = command(&[&words[..], how].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let deadline = Instant::now() + Duration::from_mins(1);
    while !names(place.path())
        .iter()
        .any(|name| name.ends_with(".incomplete"))
    {
        assert!(Instant::now() < deadline, "nothing was begun");
        thread::sleep(Duration::from_millis(5));
    }
    let maps = fs::read_to_string(format!("/proc/{}/maps", child.id()));
    let status = command_ended(&mut child);
    assert_eq!(status, Some(143), "it was still at work");
    maps.expect("it runs").contains("in.npy")
}

fn command_ended(child: &mut std::process::Child) -> Option<i32> {
    let sent = std::process::Command::new("kill")
        .arg(child.id().to_string())
        .status();
    assert!(sent.expect("kill starts").success());
    child.wait().expect("it ends").code()
}

#[test]
fn flat_files_are_mapped_or_read_as_asked() {
    let place = Place::new();
    let source = place.small("in.npy");
    for (n, how) in ["auto", "mmap", "mmap-resident", "pread"]
        .into_iter()
        .enumerate()
    {
        for words in readers(&place, &source, how) {
            let (status, said) = tried(&words, &["--read-method", how]);
            assert_eq!(status, Some(0), "{words:?}: {said}");
        }
        let converted = voxels(&place.at(&format!("{how}-converted.zarr")));
        assert_eq!(converted, voxels(&source), "{n}");
    }
    is_refused(&["info", &source, "--read-method", "both"]);
    is_refused(&["info", &source, "--missing-chunks", "perhaps"]);
    let place = Place::new();
    let source = place.store("in.npy", [48; 3], 1, vec![1_u8; 48 * 48 * 48]);
    assert!(maps(&place, &source, &["--read-method", "mmap"]));
    assert!(maps(&place, &source, &["--read-method", "mmap-resident"]));
    assert!(!maps(&place, &source, &["--read-method", "pread"]));
}
