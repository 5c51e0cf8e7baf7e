//! Every size that a user can give, far too small and far too large, gets an answer within seconds and with little
//! memory.

use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use crate::tool::{Place, command};

/// Numbers that are not valid sizes, or too large for this machine.
const NUMBERS: [&str; 5] = [
    "0",
    "2147483648",
    "1000000000000",
    "9223372036854775808",
    "-1",
];

/// The limit of a run's address space in KiB.
const MOST_KIB: &str = "6000000";

/// Runs the command with little address space and little time.
fn bounded(args: &[String]) -> Output {
    let program = command(&[]).get_program().to_owned();
    let mut limited = Command::new("timeout");
    limited.args(["60", "sh", "-c"]).stdin(Stdio::null());
    limited
        .arg(format!("ulimit -v {MOST_KIB}; exec \"$@\""))
        .arg("sh");
    limited.arg(program).args(args);
    limited.output().expect("a shell")
}

/// Returns commands, and the sizes that replace N in each.
fn tables(source: &str, picture: &str) -> Vec<(String, &'static [&'static str])> {
    let infer = format!("infer {source} OUT --patch-size 8 --overlap 4 --overwrite");
    let sample = format!("sample {source} --out OUT.npy --overwrite");
    let convert = format!("convert {source} OUT --overwrite");
    vec![
        (
            infer.replace("--patch-size 8 --overlap 4", "--overlap 0"),
            &[
                "--patch-size N",
                "--patch-size 2,2,N --padding edge",
                "--patch-size N --padding edge --memory 1TiB --dry-run",
            ],
        ),
        (infer.replace("--overlap 4", ""), &["--overlap N"]),
        (
            infer,
            &[
                "--margin N --padding edge",
                "--margin N --padding edge --dry-run",
                "--margin N,0,0 --padding wrap --blend crop --dry-run",
                "--chunk N",
                "--shard N",
                "--chunk 8 --shard 8,8,N",
                "--batch-size N",
                "--threads N",
                "--memory N",
                "--memory NGiB --dry-run",
                "--level N",
                "--pyramid mean --levels N",
                "--part 0/N",
                "--part N/2",
                "--clevel N",
            ],
        ),
        (
            convert,
            &[
                "--chunk N",
                "--chunk 1,1,N",
                "--shard N",
                "--threads N",
                "--memory N",
                "--level N",
                "--pyramid mean --levels N",
                "--clevel N",
            ],
        ),
        (
            sample,
            &[
                "--samples-per-subject 2 --patch-size N",
                "--samples-per-subject 2 --patch-size N --border pad",
                "--samples-per-subject 2 --patch-size 2,2,N --border pad",
                "--patch-size 4 --samples-per-subject 3 --seed N",
                "--patch-size 4 --samples-per-subject 3 --epoch N",
                "--patch-size 4 --samples-per-subject 3 --world-size N",
                "--patch-size 4 --samples-per-subject 3 --world-size 2 --rank N",
                "--patch-size 4 --samples-per-subject 3 --memory N",
                "--patch-size 4 --samples-per-subject 3 --threads N",
                "--patch-size 4 --samples-per-subject 3 --level N",
            ],
        ),
        (
            format!("preview {source} {picture} --overwrite"),
            &["--at N", "--at 1,N,1", "--level N"],
        ),
        (format!("info {source}"), &["--level N"]),
        (format!("verify {source}"), &["--threads N"]),
        (
            "demo --keep OUT".to_owned(),
            &[
                "--size 0,N,1",
                "--size N,1000000,1000000",
                "--size 8 --memory N",
                "--size 8 --threads N",
            ],
        ),
    ]
}

#[test]
fn sizes_of_every_flag_are_checked_before_anything_is_asked_for() {
    let place = Place::new();
    let source = place.small("small.zarr");
    let out = |name: &str| place.at(name);
    let mut runs = Vec::new();
    for (first, flags) in tables(&source, &out("p.png")) {
        for (flag, number) in flags.iter().flat_map(|flag| NUMBERS.map(|n| (flag, n))) {
            let args = format!("{first} {}", flag.replace('N', number));
            let args = args.replace("OUT", &out(&format!("out{}.zarr", runs.len())));
            runs.push(
                args.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<String>>(),
            );
        }
    }
    let (left, failures) = (Mutex::new(runs), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let Some(args) = left.lock().expect("no thread panics").pop() else {
                return;
            };
            let done = bounded(&args);
            let said = String::from_utf8_lossy(&done.stderr);
            let clean = matches!(done.status.code(), Some(0..=2)) && !said.contains("panicked");
            if !clean {
                let failure = format!("{args:?}: {:?} {said}", done.status);
                failures.lock().expect("no thread panics").push(failure);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("no thread panics");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
