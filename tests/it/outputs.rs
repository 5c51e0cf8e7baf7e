//! Outputs of every kind, and their verification.

use std::fs;
use std::path::Path;

use serde_json::json;
use voxpatch::{OpenOptions, Region, VolumeExt, open};

use crate::tool::{Place, command, fails, is_refused, json, names, succeeds, voxels};

#[test]
fn a_pyramid_is_written_with_the_volume_by_convert_and_infer() {
    let place = Place::new();
    let source = place.small("in.zarr");
    for (n, zarr) in ["2", "3"].into_iter().enumerate() {
        let out = place.at(&format!("{n}.zarr"));
        let how = ["--zarr", zarr, "--chunk", "8"];
        succeeds(&[&["convert", &source, &out, "--pyramid", "mean"][..], &how].concat());
        assert_eq!(voxels(&out), voxels(&source));
        let told = json(&["info", &out, "--level", "2"]);
        assert_eq!(told["shape"], json!([5, 6, 7]));
        assert_eq!(told["format"], format!("zarr-v{zarr}"));
        assert_eq!(told["spacing"], json!([8.0, 4.0, 2.0]));
        assert_eq!(told["affine"][0], json!([2.0, 0.0, 0.0, 10.75]));
        assert_eq!(told["affine"][2], json!([0.0, 0.0, 8.0, 33.0]));
        let predicted = place.at(&format!("{n}-predicted.zarr"));
        let infer = [
            "infer",
            &source,
            &predicted,
            "--patch-size",
            "8",
            "--overlap",
            "4",
        ];
        succeeds(&[&infer[..], &["--pyramid", "mode", "--levels", "2"], &how].concat());
        let level = OpenOptions::default().with_level(1);
        let coarse = level.open(&predicted).expect("level 1 is there");
        assert_eq!(coarse.layout().shape, [10, 12, 14]);
        // All voxels differ, so the mode is the smallest, which comes first.
        let fine = open(&predicted)
            .expect("it opens")
            .read(Region::new([2, 4, 6], [1; 3]));
        let found = coarse.read(Region::new([1, 2, 3], [1; 3]));
        let fine = fine.expect("it reads");
        assert_eq!(found.expect("it reads").bytes(), fine.bytes());
    }
    for (args, named) in [
        (&["--pyramid", "mean", "--levels", "9"][..], "1 to 6"),
        (&["--zarr", "2", "--shard", "64"], "Zarr v2 has no shards"),
        (&["--codec", "zlib"], "write Zarr v2"),
    ] {
        let line = fails(&[&["convert", &source, &place.at("x.zarr")][..], args].concat());
        assert!(line.contains(named), "{line}");
    }
    is_refused(&["convert", &source, &place.at("x.zarr"), "--levels", "2"]);
}

#[test]
fn zarr_2_holds_every_codec() {
    let place = Place::new();
    let source = place.small("in.zarr");
    for codec in ["zstd", "blosc-zstd", "blosc-lz4", "gzip", "zlib", "none"] {
        let out = place.at(&format!("{codec}.zarr"));
        succeeds(&["convert", &source, &out, "--zarr", "2", "--codec", codec]);
        assert_eq!(voxels(&out), voxels(&source), "{codec}");
        assert!(Path::new(&out).join("0/0/0/0").is_file());
        let told = json(&["verify", &out]);
        assert_eq!((&told["chunks"], &told["damaged"]), (&json!(1), &json!([])));
    }
}

#[test]
fn flat_files_of_other_programs_are_written_too() {
    let place = Place::new();
    let source = place.small("in.zarr");
    for name in ["a.nrrd", "a.mha", "a.mhd"] {
        let out = place.at(name);
        succeeds(&["convert", &source, &out]);
        assert_eq!(voxels(&out), voxels(&source), "{name}");
        let (found, told) = (json(&["info", &out]), json(&["info", &source]));
        assert_eq!(found["affine"], told["affine"], "{name}");
        assert_eq!(found["spacing"], told["spacing"], "{name}");
        let line = fails(&["convert", &source, &out]);
        assert!(line.contains("exists already"), "{line}");
        succeeds(&[
            "convert",
            &source,
            &out,
            "--overwrite",
            "--dtype",
            "float32",
        ]);
        assert_eq!(json(&["info", &out])["dtype"], "float32");
    }
    assert_eq!(
        names(place.path()),
        ["a.1.raw", "a.mha", "a.mhd", "a.nrrd", "in.zarr"]
    );
}

#[test]
fn verify_names_what_is_damaged_and_ends_with_1() {
    let place = Place::new();
    let path = place.small("in.zarr");
    let told = json(&["verify", &path]);
    assert_eq!(told["levels"], 1);
    assert_eq!(
        told["chunks"].as_u64().zip(told["empty"].as_u64()),
        Some((36, 0))
    );
    assert!(succeeds(&["verify", &path]).contains("none"));
    let shard = Path::new(&path).join("0/c/0/1/0");
    let mut bytes = fs::read(&shard).expect("the shard is there");
    bytes[40] ^= 0x55;
    fs::write(&shard, bytes).expect("it can be written");
    let output = command(&["verify", &path, "--json"])
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(told["damaged"][0]["level"], 0);
    assert_eq!(told["damaged"].as_array().map(Vec::len), Some(1));
    let chunk = told["damaged"][0]["chunk"].as_str().expect("a name");
    assert!(chunk.starts_with("c/0/1/0, inner chunk"), "{chunk}");
    let line = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(line.contains("1 of 36 stored chunks are damaged"), "{line}");
}
