//! The rigs of `scripts/`, in forms of a few seconds; `scripts/hazards` runs the long ones.

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a rig, which must not find any fault, and reports what it cannot test here.
fn finds_nothing_wrong(script: &str, args: &[&str]) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let ran = Command::new("python3")
        .arg(scripts.join(script))
        .args(["--voxpatch", env!("CARGO_BIN_EXE_voxpatch")])
        .args(args)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output();
    let Ok(output) = ran else {
        println!("SKIPPED: {script} needs Python");
        return;
    };
    let told = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => println!("{told}"),
        Some(77) => println!("SKIPPED: {script}: {told}"),
        status => panic!("{script} ended with {status:?}:\n{told}\n{error}"),
    }
}

#[test]
fn system_calls_that_fail_leave_nothing_that_looks_finished() {
    finds_nothing_wrong("faults.py", &["--every", "41"]);
}

#[test]
fn full_disks_are_errors_and_once_there_is_room_the_work_can_be_done() {
    finds_nothing_wrong("disks.py", &["full"]);
}

#[test]
fn mapped_files_that_are_cut_or_cannot_be_read_are_errors() {
    let args = ["--truncations", "4", "failing", "truncations"];
    finds_nothing_wrong("disks.py", &args);
}

#[test]
fn a_power_cut_damages_no_chunk_that_was_to_survive_it() {
    finds_nothing_wrong("powercut.py", &["--cuts", "2", "--size", "48"]);
}

#[test]
fn killed_at_any_moment_an_output_is_whole_or_not_there() {
    finds_nothing_wrong("kills.py", &["--kills", "6"]);
}
