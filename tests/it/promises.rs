//! The report of `--dry-run`, compared with the memory that the command takes.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::tool::{Place, command, json, succeeds};

/// The bytes that a command may take above its report.
const ALLOWED: u64 = 16 << 20;

/// Returns voxels that do not compress well.
fn noise(count: u32) -> Vec<i16> {
    let value = |n: u32| (n.wrapping_mul(2_654_435_761) >> 20) & 0xfff;
    (0..count)
        .map(|n| i16::try_from(value(n)).expect("twelve bits"))
        .collect()
}

/// Runs words with and without `--dry-run`.
fn keeps(words: &[&str]) {
    let told = json(&[words, &["--dry-run"]].concat());
    let done = json(words);
    let promised = told["process_bytes"].as_u64().expect("Linux reports it");
    let taken = done["peak_anonymous_bytes"]
        .as_u64()
        .expect("Linux reports it");
    assert!(
        taken <= promised + ALLOWED,
        "{words:?}: {} MiB of {} MiB",
        taken >> 20,
        promised >> 20
    );
    let peak = told["peak_bytes"].as_u64().expect("a number");
    assert!(promised >= peak && peak > 0, "{words:?}: {told}");
}

/// The short form of `scripts/memory_promise.py`.
#[test]
#[cfg(target_os = "linux")]
fn no_command_takes_more_memory_than_its_dry_run_reports() {
    let place = Place::new();
    let shape = [150, 160, 170];
    let source = place.store("in.npy", shape, 1, noise(150 * 160 * 170));
    let zarr = place.at("in.zarr");
    let lz4 = ["--codec", "blosc-lz4", "--chunk", "64", "--shard", "none"];
    succeeds(&[&["convert", &source, &zarr, "--dtype", "float32"], &lz4[..]].concat());
    let out = |n: u32, kind: &str| place.at(&format!("{n}.{kind}"));
    let infer = ["--patch-size", "64", "--overlap", "16", "--threads", "3"];
    let small = ["--memory", "64MiB", "--threads", "2"];
    let pyramid = ["--pyramid", "mean"];
    for words in [
        [&["infer", &zarr, &out(3, "zarr")][..], &infer, &lz4].concat(),
        [&["infer", &zarr, &out(4, "npy")][..], &infer].concat(),
        [
            &["infer", &zarr, &out(5, "zarr")][..],
            &infer,
            &lz4,
            &["--memory", "100MiB", "--model", "gaussian:2"],
        ]
        .concat(),
        [
            &["infer", &zarr, &out(6, "zarr"), "--mask", &zarr][..],
            &infer,
            &pyramid,
        ]
        .concat(),
        [
            &["infer", &source, &out(7, "zarr"), "--normalize", "zscore"][..],
            &["--model", "threshold:0", "--batch-size", "2"],
            &infer,
        ]
        .concat(),
        [
            &[
                "sample",
                &zarr,
                "--patch-size",
                "96",
                "--samples-per-subject",
                "40",
            ][..],
            &["--border", "pad", "--out", &out(8, "npy")],
            &small,
        ]
        .concat(),
        [
            &[
                "sample",
                &source,
                "--patch-size",
                "64",
                "--samples-per-subject",
                "60",
            ][..],
            &[
                "--labels",
                &source,
                "--label-weights",
                "5:1",
                "--out",
                &out(9, "zarr"),
            ],
            &small,
        ]
        .concat(),
    ] {
        keeps(&words);
    }
    let target = out(10, "zarr");
    for part in ["0/2", "1/2"] {
        let own = ["infer", &zarr, &target, "--part", part];
        keeps(&[&own[..], &infer, &pyramid].concat());
    }
}

/// Stores a Zarr of chunks of 64^3 voxels, each of which is the same file, so that it takes no space.
fn tiled(place: &Place, name: &str, chunks: [u64; 3]) -> String {
    let path = place.at(name);
    let tile = place.store(&format!("{name}.npy"), [64; 3], 1, noise(64 * 64 * 64));
    let lz4 = ["--codec", "blosc-lz4", "--chunk", "64", "--shard", "none"];
    succeeds(&[&["convert", &tile, &path], &lz4[..]].concat());
    let array = place.at(&format!("{name}/0/zarr.json"));
    let text = fs::read_to_string(&array).expect("it was written");
    let mut metadata: Json = serde_json::from_str(&text).expect("one object");
    metadata["shape"] = chunks.map(|n| 64 * n).to_vec().into();
    fs::write(&array, metadata.to_string()).expect("it is ours");
    let at = |names: &str| place.path().join(name).join("0/c").join(names);
    let [depth, height, width] = chunks;
    for z in 0..depth {
        for y in 0..height {
            fs::create_dir_all(at(&format!("{z}/{y}"))).expect("it is ours");
            for x in 0..width {
                if [z, y, x] != [0; 3] {
                    fs::hard_link(at("0/0/0"), at(&format!("{z}/{y}/{x}"))).expect("one disk");
                }
            }
        }
    }
    path
}

/// Volumes on a web server: the answers that wait to be read, and the versions of objects, are planned too.
#[test]
#[cfg(all(target_os = "linux", feature = "cloud"))]
fn commands_that_read_from_a_server_take_the_memory_that_the_dry_run_reports() {
    let place = Place::new();
    let server = crate::object_server::Server::start();
    let tile = place.store("tile.npy", [64; 3], 1, noise(64 * 64 * 64));
    let lz4 = ["--codec", "blosc-lz4", "--chunk", "64", "--shard"];
    for (name, shard) in [("chunks.zarr", "none"), ("shards.zarr", "64")] {
        let path = place.at(name);
        succeeds(&[&["convert", &tile, &path], &lz4[..], &[shard]].concat());
        server.put_tiled(name, path.as_ref(), [10, 3, 3]);
        let scan = server.url(name);
        let out = |kind: &str| place.at(&format!("{name}.{kind}"));
        let infer = [
            "--patch-size",
            "64",
            "--overlap",
            "16",
            "--model",
            "threshold:2000",
        ];
        let memory = ["--memory", "160MiB"];
        keeps(&[&["infer", &scan, &out("zarr")][..], &infer, &memory].concat());
        keeps(&[&["convert", &scan, &out("convert.zarr")][..], &memory].concat());
        let count = ["--patch-size", "64", "--samples-per-subject", "60"];
        keeps(&[&["sample", &scan, "--threads", "2"][..], &count, &memory].concat());
    }
}

/// Reads for another spacing are boxes of many sizes, next to cached chunks that stay.
#[test]
#[cfg(target_os = "linux")]
fn another_spacing_takes_the_memory_that_the_dry_run_reports() {
    let place = Place::new();
    let scan = tiled(&place, "scan.zarr", [16, 8, 8]);
    let stack = tiled(&place, "stack.zarr", [24, 5, 4]);
    let own = ["--memory", "96MiB", "--threads", "3"];
    let mut n = 0;
    let mut out = || {
        n += 1;
        place.at(&format!("{n}.zarr"))
    };
    for (source, spacing, interpolation) in [
        (&scan, "2.1,3.7,4.3", "nearest"),
        (&scan, "4.1,2.9,3.7", "linear"),
        (&stack, "2.3,1.7,5.1", "nearest"),
        (&stack, "1.7,2.3,4.1", "label-linear"),
        (&stack, "4.7,3.1,2.3", "cubic"),
    ] {
        let how = ["--spacing", spacing, "--interpolation", interpolation];
        keeps(&[&["convert", source, &out()], &how[..], &own].concat());
    }
    let block = tiled(&place, "block.zarr", [5, 3, 2]);
    let own = ["--memory", "128MiB", "--threads", "2"];
    let patches = [
        "--patch-size",
        "64",
        "--overlap",
        "16",
        "--spacing",
        "2.5,1.5,0.9",
    ];
    for grid in ["source", "model"] {
        let how = ["--output-grid", grid, "--model", "threshold:900"];
        keeps(&[&["infer", &block, &out()], &patches[..], &own, &how].concat());
    }
}

/// The size of the largest public volume: a Zarr without stored chunks.
#[test]
fn a_dry_run_over_the_largest_volume_takes_no_time() {
    let place = Place::new();
    let path = place.at("flyem.zarr");
    fs::create_dir(&path).expect("it is ours");
    let metadata = r#"{"zarr_format": 2, "shape": [34427, 39725, 41394], "chunks": [64, 64, 64], "dtype": "|u1",
        "compressor": null, "fill_value": 0, "order": "C", "filters": null}"#;
    fs::write(place.at("flyem.zarr/.zarray"), metadata).expect("it is ours");
    let out = place.at("out.zarr");
    let mut in_passes = 0;
    for (patch, overlap) in [
        ("128", "64"),
        ("96,160,64", "16,0,32"),
        ("61,67,53", "13,7,29"),
    ] {
        for memory in ["4GiB", "64GiB"] {
            let words = [
                "infer",
                &path,
                &out,
                "--patch-size",
                patch,
                "--overlap",
                overlap,
                "--memory",
                memory,
                "--dry-run",
                "--json",
            ];
            let began = Instant::now();
            // It warns that the disk may be too small.
            let output = command(&words).output().expect("the command starts");
            let took = began.elapsed();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{words:?}: {said}");
            let told: Json = serde_json::from_slice(&output.stdout).expect("one object");
            in_passes += u32::from(told["passes"].as_u64().expect("a number") > 1);
            println!("{patch} {overlap} {memory}: {took:?}");
            // Two seconds on an idle machine; before, this took minutes on any machine.
            assert!(took < Duration::from_secs(30), "{words:?}: {took:?}");
        }
    }
    assert!(in_passes > 0);
}
