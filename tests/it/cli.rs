//! The command from outside: what it prints, writes, refuses and leaves behind.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use voxpatch::VolumeExt;

use crate::tool::{Place, command, fails, is_refused, json, names, ramp, succeeds, voxels};

#[test]
fn info_says_what_is_slow() {
    let place = Place::new();
    let source = place.store("in.npy", [4, 300, 300], 1, vec![1_u8; 4 * 300 * 300]);
    let packed = place.at("a.nii.gz");
    succeeds(&["convert", &source, &packed]);
    let told = json(&["info", &packed]);
    assert_eq!(told["packed_as_a_whole"], true, "{told}");
    let text = succeeds(&["info", &packed]);
    assert!(
        text.contains("352 KB") || text.contains("351.6 KiB"),
        "{text}"
    );
    assert!(text.contains("temporary file; convert it first"), "{text}");
    assert!(json(&["info", &source]).get("packed_as_a_whole").is_none());
    if cfg!(feature = "tiff") {
        // Tiles of 16 x 304 voxels: a patch of 4 x 96 x 96 meets about 7 rows of them in each page.
        let tiles = place.at("a.tif");
        let chunk = ["--chunk", "1,16,304"];
        succeeds(&[&["convert", &source, &tiles][..], &chunk].concat());
        let told = json(&["info", &tiles]);
        assert_eq!(told["read_chunk"], json!([1, 16, 304]));
        assert!(told.get("decoded_per_voxel").is_none(), "{told}");
        let pages = place.at("b.tif");
        let chunk = ["--chunk", "1,304,304", "--codec", "zlib"];
        succeeds(&[&["convert", &source, &pages][..], &chunk].concat());
        let told = json(&["info", &pages]);
        assert_eq!(told["codecs"], json!(["deflate"]));
        assert_eq!(told["decoded_per_voxel"], 9.8, "{told}");
    }
}

#[test]
fn info_tells_the_layout_to_people_and_programs() {
    let place = Place::new();
    let path = place.small("in.zarr");
    let told = json(&["info", &path]);
    assert_eq!(told["format"], "zarr-v3");
    assert_eq!(told["array"], format!("{path}/0"));
    assert_eq!(told["shape"], json!([20, 24, 28]));
    assert_eq!(told["channels"], 1);
    assert_eq!(told["dtype"], "int16");
    assert_eq!(told["read_chunk"], json!([8, 8, 8]));
    assert_eq!(told["write_chunk"], json!([16, 16, 16]));
    assert_eq!(told["spacing"], json!([2.0, 1.0, 0.5]));
    assert_eq!(told["affine"][0], json!([0.5, 0.0, 0.0, 10.0]));
    assert_eq!(told["affine"][2], json!([0.0, 0.0, 2.0, 30.0]));
    assert_eq!(told["decoded_bytes"], 20 * 24 * 28 * 2);
    assert!(told["stored_bytes"].as_u64() > Some(1000));
    let keys: Vec<&String> = told.as_object().expect("an object").keys().collect();
    assert_eq!(
        keys,
        [
            "format",
            "array",
            "shape",
            "channels",
            "dtype",
            "stored_dtype",
            "read_chunk",
            "write_chunk",
            "codecs",
            "spacing",
            "orientation",
            "affine",
            "stored_bytes",
            "decoded_bytes"
        ]
    );
    let table = succeeds(&["info", &path]);
    assert!(
        table.contains("20 x 24 x 28") && table.contains("2 x 1 x 0.5 mm"),
        "{table}"
    );
    let column = |line: &str| {
        line.len()
            - line
                .trim_start_matches(|c: char| c != ' ')
                .trim_start()
                .len()
    };
    let single: Vec<usize> = ["format", "dtype", "shape", "channels"]
        .iter()
        .filter_map(|key| table.lines().find(|line| line.starts_with(key)).map(column))
        .collect();
    assert_eq!(
        single, [single[0]; 4],
        "values stand below each other:\n{table}"
    );
}

#[test]
fn convert_keeps_every_voxel_in_any_chunking_codec_and_type() {
    let place = Place::new();
    let source = place.small("in.zarr");
    for (n, settings) in [
        &["--codec", "none", "--shard", "none", "--chunk", "5"][..],
        &[
            "--codec",
            "blosc-zstd",
            "--clevel",
            "3",
            "--chunk",
            "4,8,16",
        ],
        &[
            "--codec",
            "blosc-lz4",
            "--chunk",
            "7",
            "--shard",
            "14,7,28",
            "--threads",
            "3",
        ],
        &["--codec", "gzip", "--chunk", "64"],
        &["--dtype", "float32"],
        &["--dtype", "i32"],
    ]
    .into_iter()
    .enumerate()
    {
        let target = place.at(&format!("{n}.zarr"));
        let mut args = vec!["convert", &source, &target];
        args.extend(settings);
        let told = json(&args);
        assert!(told["chunks_written"].as_u64() > Some(0), "{told}");
        let (a, b) = (voxels(&source), voxels(&target));
        assert_eq!(a.converted(b.dtype()), b, "{settings:?}");
        assert_eq!(
            json(&["info", &target])["affine"],
            json(&["info", &source])["affine"]
        );
    }
    let info = json(&["info", &place.at("2.zarr")]);
    assert_eq!(info["read_chunk"], json!([7, 7, 7]));
    assert_eq!(info["write_chunk"], json!([14, 7, 28]));
    assert_eq!(json(&["info", &place.at("4.zarr")])["dtype"], "float32");
}

#[test]
fn a_target_that_exists_is_kept_unless_it_may_go() {
    let place = Place::new();
    let (source, target) = (
        place.small("in.zarr"),
        place.store("out.zarr", [8; 3], 1, vec![7_u8; 512]),
    );
    for args in [
        &["convert", &source, &target][..],
        &[
            "infer",
            &source,
            &target,
            "--patch-size",
            "8",
            "--overlap",
            "4",
        ],
        &["preview", &source, &target],
        &[
            "sample",
            &source,
            "--patch-size",
            "8",
            "--samples-per-subject",
            "2",
            "--out",
            &target,
        ],
    ] {
        let line = fails(args);
        assert!(
            line.contains("out.zarr exists already") && line.contains("--overwrite"),
            "{line}"
        );
    }
    assert_eq!(voxels(&target).as_slice::<u8>().expect("u8"), [7; 512]);
    succeeds(&["convert", &source, &target, "--overwrite"]);
    assert_eq!(voxels(&target), voxels(&source));
    assert_eq!(names(place.path()), ["in.zarr", "out.zarr"]);
}

/// Returns the shape and the voxels of a .npy that these commands wrote.
fn read_npy(path: &str) -> (Vec<u64>, String, Vec<u8>) {
    let bytes = fs::read(path).expect("the file is there");
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(end.is_multiple_of(64));
    let header = String::from_utf8(bytes[10..end].to_vec()).expect("ASCII");
    let between = |from: &str, to: &str| {
        let rest = header.split(from).nth(1).expect("the key is there");
        rest.split(to).next().expect("it ends").to_owned()
    };
    let shape = between("'shape': (", ")");
    let shape = shape.split(", ").map(|n| n.parse().expect("a number"));
    (
        shape.collect(),
        between("'descr': '", "'"),
        bytes[end..].to_vec(),
    )
}

#[test]
fn sample_writes_the_same_patches_for_any_number_of_threads() {
    let place = Place::new();
    let source = place.store("in.zarr", [12, 13, 14], 2, ramp(12 * 13 * 14 * 2));
    let sample = |name: &str, more: &[&str]| {
        let (out, csv) = (
            place.at(&format!("{name}.npy")),
            place.at(&format!("{name}.csv")),
        );
        let mut args = vec![
            "sample",
            &source,
            "--patch-size",
            "3,4,5",
            "--samples-per-subject",
            "50",
            "--out",
            &out,
            "--locations",
            &csv,
        ];
        args.extend(more);
        let told = json(&args);
        assert_eq!(told["patches"], 50);
        (
            fs::read(&out).expect("patches"),
            fs::read_to_string(&csv).expect("locations"),
        )
    };
    let first = sample("a", &["--threads", "1", "--seed", "5"]);
    assert_eq!(
        first,
        sample("b", &["--threads", "4", "--seed", "5", "--memory", "20kB"])
    );
    assert_ne!(first, sample("c", &["--threads", "4", "--seed", "6"]));

    let (shape, dtype, bytes) = read_npy(&place.at("a.npy"));
    assert_eq!((shape, dtype.as_str()), (vec![50, 2, 3, 4, 5], "<i2"));
    let volume = voxpatch::open(&source).expect("it opens");
    let patch_bytes = 2 * 3 * 4 * 5 * 2;
    assert_eq!(
        (bytes.len(), first.1.lines().count()),
        (50 * patch_bytes, 50)
    );
    for (line, found) in first.1.lines().zip(bytes.chunks_exact(patch_bytes)) {
        let at: Vec<i64> = line
            .split(',')
            .map(|n| n.parse().expect("a number"))
            .collect();
        let [z, y, x, z1, y1, x1] = at[..] else {
            panic!("six numbers, not {line}")
        };
        assert_eq!([z1 - z, y1 - y, x1 - x], [3, 4, 5]);
        let region = voxpatch::Region::new([z, y, x], [3, 4, 5]);
        assert_eq!(volume.read(region).expect("inside").bytes(), found);
    }
}

#[test]
fn infer_gives_the_volume_back_and_says_what_it_did() {
    let place = Place::new();
    let source = place.small("in.zarr");
    for blend in ["average", "hann", "gaussian", "crop"] {
        let target = place.at(&format!("{blend}.zarr"));
        let told = json(&[
            "infer",
            &source,
            &target,
            "--patch-size",
            "10,12,9",
            "--overlap",
            "4,6,3",
            "--blend",
            blend,
            "--chunk",
            "8",
            "--threads",
            "2",
        ]);
        assert_eq!(told["patches"], 3 * 3 * 5);
        for key in [
            "seconds",
            "patches_per_second",
            "megabytes_per_second",
            "peak_resident_bytes",
        ] {
            assert!(told[key].as_f64() > Some(0.0), "{key}: {told}");
        }
        assert!(told["chunks_read"].as_u64() >= Some(3 * 3 * 4));
        assert!(told["chunks_written"].as_u64() > Some(0));
        assert_eq!(voxels(&source).bytes(), voxels(&target).bytes(), "{blend}");
    }
    let labels = place.at("labels.zarr");
    let told = json(&[
        "infer",
        &source,
        &labels,
        "--patch-size",
        "8",
        "--overlap",
        "0",
        "--model",
        "threshold:0,1000",
        "--blend",
        "crop",
        "--reduce",
        "argmax",
        "--dtype",
        "uint8",
    ]);
    assert_eq!(told["patches"], 3 * 3 * 4);
    let found = voxels(&labels);
    let source = voxels(&source);
    let source = source.as_slice::<i16>().expect("i16");
    for (&value, &label) in source.iter().zip(found.as_slice::<u8>().expect("u8")) {
        assert_eq!(
            label,
            u8::from(value >= 0) + u8::from(value >= 1000),
            "{value}"
        );
    }
}

/// Returns the width, height and RGB of a PNG.
fn read_png(path: &str) -> (usize, usize, Vec<u8>) {
    let file = std::io::BufReader::new(fs::File::open(path).expect("the picture is there"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut pixels).expect("a frame");
    assert_eq!(info.color_type, png::ColorType::Rgb);
    let side = |n: u32| usize::try_from(n).expect("small");
    (side(info.width), side(info.height), pixels)
}

#[test]
fn preview_keeps_the_aspect_ratio_and_shows_labels_in_color() {
    let place = Place::new();
    // 40 x 24 x 14 mm: z is the longest and gets 512 pixels.
    let source = place.small("in.zarr");
    let labels = place.store(
        "labels.zarr",
        [20, 24, 28],
        1,
        (0..20 * 24 * 28_u32)
            .map(|n| u8::from(n % 28 >= 14))
            .collect::<Vec<u8>>(),
    );
    let (plain, overlaid) = (place.at("plain.png"), place.at("overlaid.png"));
    let values = ramp(20 * 24 * 28).into_iter().map(|n| n / 5 - 600);
    let ct = place.store("ct.zarr", [20, 24, 28], 1, values.collect::<Vec<i16>>());
    let told = json(&["preview", &ct, &plain]);
    let (width, height, grey) = read_png(&plain);
    assert_eq!(told["size"], json!([width, height]));
    assert_eq!(
        told["window"],
        json!([-1000.0, 400.0]),
        "values below -500 make a CT"
    );
    assert_eq!((width, height), (179 + 179 + 307 + 16, 512));
    assert!(grey.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));

    let told = json(&[
        "preview",
        &source,
        &overlaid,
        "--overlay",
        &labels,
        "--window",
        "-2000,11500",
    ]);
    assert_eq!(
        (&told["labels_shown"], &told["window"]),
        (&json!(1), &json!([-2000.0, 11500.0]))
    );
    let (_, _, color) = read_png(&overlaid);
    let colored = |columns: std::ops::Range<usize>| {
        let middle = height / 2 + 40;
        let row = &color[middle * width * 3..][..width * 3];
        columns
            .filter(|&x| row[3 * x] != row[3 * x + 1] || row[3 * x + 1] != row[3 * x + 2])
            .count()
    };
    // Spacing alone means RAS+: larger x is the patient's right, on the left of the picture.
    assert_eq!((colored(187..276), colored(277..366)), (89, 0));

    let other = place.store("other.zarr", [20, 24, 27], 1, vec![0_u8; 20 * 24 * 27]);
    let line = fails(&["preview", &source, &place.at("x.png"), "--overlay", &other]);
    assert!(
        line.contains("other.zarr") && line.contains("[20, 24, 28]"),
        "{line}"
    );
    let line = fails(&["preview", &source, &place.at("x.png"), "--at", "20,0,0"]);
    assert!(line.contains("20..21, 0..1, 0..1"), "{line}");
    assert!(!Path::new(&place.at("x.png")).exists());
}

#[test]
fn preview_goes_through_the_labels_and_names_their_colors() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let label = |n: usize| {
        let (z, y, x) = (n / (24 * 28), n / 28 % 24, n % 28);
        let inside = (15..18).contains(&z) && (3..6).contains(&y) && (20..25).contains(&x);
        u8::from(inside) * if x == 22 { 7 } else { 2 }
    };
    let labels: Vec<u8> = (0..20 * 24 * 28).map(label).collect();
    let labels = place.store("labels.zarr", [20, 24, 28], 1, labels);
    let out = place.at("a.png");
    let told = json(&["preview", &source, &out, "--overlay", &labels]);
    assert_eq!(
        (&told["at"], &told["labels_shown"]),
        (&json!([16, 4, 22]), &json!(2))
    );
    let (width, height, pixels) = read_png(&out);
    assert!(height > 512, "the legend is below the picture");
    let legend = &pixels[512 * width * 3..];
    for (n, name) in [(0, "2"), (1, "7")] {
        let entry = &told["legend"][n];
        assert_eq!(entry["label"], name);
        let color = entry["color"].as_str().expect("a color");
        let part = |at: usize| u8::from_str_radix(&color[at..at + 2], 16).expect("hexadecimal");
        let color = [part(1), part(3), part(5)];
        assert!(legend.chunks_exact(3).any(|pixel| pixel == color), "{name}");
    }
    let at = ["--overlay", &labels, "--at", "1,1,1", "--overwrite"];
    let told = json(&[&["preview", &source, &out][..], &at].concat());
    assert_eq!(
        (&told["labels_shown"], &told["channels"]),
        (&json!(0), &json!(null))
    );
    let channels = place.store("c.zarr", [4, 5, 6], 3, vec![1_u8; 360]);
    let table = succeeds(&["preview", &channels, &place.at("c.png")]);
    assert!(table.contains("the first of 3"), "{table}");
}

#[test]
fn a_small_demo_runs_through_and_keeps_what_it_made() {
    let place = Place::new();
    let kept = place.at("demo");
    let told = json(&[
        "demo",
        "--size",
        "96,80,64",
        "--keep",
        &kept,
        "--threads",
        "2",
    ]);
    assert_eq!(told["shape"], json!([96, 80, 64]));
    let stages: Vec<&str> = told["stages"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|stage| stage["stage"].as_str())
        .collect();
    assert_eq!(
        stages,
        ["generate", "sample", "predict", "check", "preview"]
    );
    assert!(told["max_relative_error"].as_f64() < Some(1e-6));
    assert_eq!(
        names(Path::new(&kept)),
        ["ct.zarr", "identity.zarr", "preview.png"]
    );
    let ct = voxels(&place.at("demo/ct.zarr"));
    assert!(
        ct.as_slice::<f32>()
            .expect("f32")
            .iter()
            .any(|&value| value > 500.0)
    );
    let table = succeeds(&["demo", "--size", "40,30,36"]);
    assert!(table.contains("below the ceiling of 300.0 MiB"), "{table}");
    let line = fails(&["demo", "--size", "96,80,64", "--keep", &kept, "--json"]);
    assert!(line.contains("ct.zarr exists already"), "{line}");
}

#[test]
fn wrong_usage_ends_with_2() {
    let place = Place::new();
    let (source, out) = (place.small("in.zarr"), place.at("out.zarr"));
    for args in [
        &[][..],
        &["frobnicate"],
        &["info"],
        &["convert", &source],
        &["convert", &source, &out, "--chunk", "1,2"],
        &["convert", &source, &out, "--shard", "some"],
        &["convert", &source, &out, "--codec", "zip"],
        &["convert", &source, &out, "--dtype", "float33"],
        &["convert", &source, &out, "--threads", "0"],
        &["infer", &source, &out, "--overlap", "4"],
        &[
            "infer",
            &source,
            &out,
            "--patch-size",
            "8",
            "--overlap",
            "4",
            "--blend",
            "mix",
        ],
        &[
            "infer",
            &source,
            &out,
            "--patch-size",
            "8",
            "--overlap",
            "4",
            "--memory",
            "lots",
        ],
        &["preview", &source, &out, "--window", "400,-1000"],
    ] {
        is_refused(args);
    }
    assert_eq!(names(place.path()), ["in.zarr"]);
    assert!(succeeds(&["--version"]).starts_with("voxpatch "));
    for name in ["info", "convert", "sample", "infer", "preview", "demo"] {
        assert!(succeeds(&[name, "--help"]).contains("--json"));
    }
}

/// Runs a command that must fail, name `named`, and leave the folder unchanged.
fn is_named(place: &Place, args: &[&str], named: &str) {
    let before = names(place.path());
    let line = fails(args);
    assert!(line.contains(named), "{args:?}: {line}");
    assert_eq!(names(place.path()), before, "{args:?}");
}

#[test]
fn patches_models_and_memory_that_cannot_be_are_named_and_leave_nothing() {
    let place = Place::new();
    let (source, out) = (place.small("in.zarr"), place.at("out.zarr"));
    for (patch, overlap, more, named) in [
        ("21,8,8", "0", &[][..], "21 voxels along z"),
        ("8", "4,8,4", &[], "overlap of 8 along y"),
        ("8,0,8", "0", &[], "patch of 0 voxels along y"),
        ("8", "4", &["--model", "magic"], "magic"),
        ("8", "4", &["--model", "gaussian:x"], "gaussian"),
        ("8", "4", &["--memory", "1000"], "memory"),
    ] {
        let mut args = vec![
            "infer",
            &source,
            &out,
            "--patch-size",
            patch,
            "--overlap",
            overlap,
        ];
        args.extend(more);
        is_named(&place, &args, named);
    }
    for (patch, more, named) in [
        ("8,8,29", &[][..], "29 voxels along x"),
        ("8", &["--memory", "4000"], "memory limit of 4000 bytes"),
    ] {
        let mut args = vec![
            "sample",
            &source,
            "--patch-size",
            patch,
            "--samples-per-subject",
            "1",
            "--out",
            &out,
        ];
        args.extend(more);
        is_named(&place, &args, named);
    }
}

#[test]
fn outputs_that_cannot_be_are_named_and_leave_nothing() {
    let place = Place::new();
    let (source, out) = (place.small("in.zarr"), place.at("out.zarr"));
    let inside = place.at("in.zarr/new.zarr");
    let sample = [
        "sample",
        &source,
        "--patch-size",
        "8",
        "--samples-per-subject",
        "1",
        "--overwrite",
        "--out",
    ];
    let both = [&sample[..], &[&out, "--locations", &out]].concat();
    for (args, named) in [
        (
            &[&sample[..], &[&source]].concat()[..],
            "it is, contains or is inside",
        ),
        (&both, "both"),
        (
            &["convert", &source, &source, "--overwrite"],
            "it is, contains or is inside",
        ),
        (
            &["convert", &source, &inside],
            "it is, contains or is inside",
        ),
        (
            &["convert", &source, &out, "--chunk", "8", "--shard", "12"],
            "12, 12, 12",
        ),
        (
            &["convert", &source, &out, "--clevel", "23"],
            "compression level 23",
        ),
        (
            &["convert", &source, &place.at("out.nii.bz2")],
            "\"out.nii.bz2\" cannot be written",
        ),
        (
            &["convert", &source, &place.at("out.mha.gz")],
            "\"out.mha.gz\" cannot be written",
        ),
        (
            &["convert", &source, &place.at("out.png")],
            "\"out.png\" cannot be written",
        ),
        (
            &["convert", &source, &place.at("o.h5")],
            "\"o.h5\" cannot be written",
        ),
        (
            &["convert", &source, &place.at("o.dcm")],
            "\"o.dcm\" cannot be written",
        ),
    ] {
        is_named(&place, args, named);
    }
}

#[test]
fn inputs_that_are_no_volumes_are_named() {
    let place = Place::new();
    let missing = place.at("missing.zarr");
    fs::create_dir(place.at("folder.zarr")).expect("a new folder");
    for path in [
        &missing,
        &place.at("missing.npy"),
        &place.at("folder.zarr"),
        &place.at("folder.zarr/x"),
    ] {
        let name = Path::new(path)
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert!(fails(&["info", path]).contains(&name));
        assert!(fails(&["preview", path, &place.at("out.png")]).contains(&name));
        assert!(fails(&["convert", path, &place.at("out.zarr")]).contains(&name));
    }
    assert_eq!(names(place.path()), ["folder.zarr"]);
}

#[test]
fn flat_files_that_are_cut_short_or_lie_are_refused() {
    let place = Place::new();
    let (npy, nii) = (place.small("in.npy"), place.small("in.nii"));
    assert_eq!(voxels(&npy).bytes(), voxels(&nii).bytes());
    for (name, path) in [("cut.npy", &npy), ("cut.nii", &nii)] {
        let bytes = fs::read(path).expect("the file is there");
        // Down to the last voxel, within the header, and nothing at all.
        for length in [bytes.len() - 1, bytes.len() / 2, 40, 9, 0] {
            let cut = place.at(name);
            fs::write(&cut, &bytes[..length]).expect("it can be written");
            for args in [
                &["info", &cut][..],
                &["convert", &cut, &place.at("out.zarr")],
                &[
                    "infer",
                    &cut,
                    &place.at("out.zarr"),
                    "--patch-size",
                    "8",
                    "--overlap",
                    "4",
                ],
            ] {
                let line = fails(args);
                assert!(line.contains(name), "{length} bytes: {line}");
            }
        }
    }
    let lying = |name: &str, from: &str, shape: &str| {
        let text = fs::read(&npy).expect("the file is there");
        let at = text
            .windows(from.len())
            .position(|part| part == from.as_bytes());
        let mut bytes = text;
        let at = at.expect("the header says so");
        bytes[at..at + shape.len()].copy_from_slice(shape.as_bytes());
        fs::write(place.at(name), bytes).expect("it can be written");
        fails(&["info", &place.at(name)])
    };
    let padded = format!("(20, 24, 28), }}{}", " ".repeat(40));
    for shape in [
        "(99999999999999999999, 24, 28), }",
        "(4294967296, 4294967296, 4294967296), }",
        "(-20, 24, 28), }",
        "(20, 24), }",
        "(2000, 2400, 2800), }",
    ] {
        let line = lying("lie.npy", &padded[..13], &format!("{shape:13}"));
        assert!(line.contains("lie.npy"), "{shape}: {line}");
    }
    assert!(lying("lie.npy", "'<i2'", "'<i3'").contains("lie.npy"));
    // NIfTI's dim, at byte 40: 3 axes of 32767 voxels, and -1 along x.
    for dims in [
        [3_i16, 32767, 32767, 32767],
        [3, -1, 24, 20],
        [9, 28, 24, 20],
    ] {
        let mut bytes = fs::read(&nii).expect("the file is there");
        for (n, dim) in dims.into_iter().enumerate() {
            bytes[40 + 2 * n..42 + 2 * n].copy_from_slice(&dim.to_le_bytes());
        }
        fs::write(place.at("lie.nii"), bytes).expect("it can be written");
        assert!(
            fails(&["info", &place.at("lie.nii")]).contains("lie.nii"),
            "{dims:?}"
        );
    }
}

/// Replaces text in the array document of a volume that `Place` stored.
fn edit(volume: &str, from: &str, to: &str) {
    let path = Path::new(volume).join("0/zarr.json");
    let text = fs::read_to_string(&path).expect("the array has a document");
    let compact: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let text = compact.to_string();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(&path, text.replacen(from, to, 1)).expect("it can be written");
}

#[test]
fn documents_that_lie_are_refused() {
    for (from, to, named) in [
        (
            r#""shape":[20,24,28]"#,
            r#""shape":[99999999999999999999,24,28]"#,
            "shape",
        ),
        (
            r#""shape":[20,24,28]"#,
            r#""shape":[4294967296,4294967296,4294967296]"#,
            "4294967296",
        ),
        (r#""shape":[20,24,28]"#, r#""shape":[-20,24,28]"#, "shape"),
        (r#""data_type":"int16""#, r#""data_type":"int17""#, "int17"),
        (r#""name":"zstd""#, r#""name":"squash""#, "squash"),
        (
            r#""chunk_shape":[16,16,16]"#,
            r#""chunk_shape":[0,16,16]"#,
            "0",
        ),
        ("{", "", "zarr.json"),
    ] {
        let place = Place::new();
        let path = place.small("in.zarr");
        edit(&path, from, to);
        for args in [
            &["info", &path][..],
            &["convert", &path, &place.at("out.zarr")],
            &[
                "sample",
                &path,
                "--patch-size",
                "4",
                "--samples-per-subject",
                "1",
                "--out",
                &place.at("out.npy"),
            ],
        ] {
            let line = fails(args);
            assert!(
                line.contains("in.zarr") && line.contains(named),
                "{to}: {line}"
            );
        }
        assert_eq!(names(place.path()), ["in.zarr"], "{to}");
    }
}

#[test]
fn a_damaged_chunk_is_named_and_stops_everything() {
    let place = Place::new();
    let path = place.small("in.zarr");
    let shard = Path::new(&path).join("0/c/0/1/0");
    let mut bytes = fs::read(&shard).expect("the shard is there");
    bytes[40] ^= 0x55;
    fs::write(&shard, bytes).expect("it can be written");
    for args in [
        &["convert", &path, &place.at("out.zarr")][..],
        &[
            "infer",
            &path,
            &place.at("out.zarr"),
            "--patch-size",
            "8",
            "--overlap",
            "4",
        ],
        &[
            "sample",
            &path,
            "--patch-size",
            "20,24,28",
            "--samples-per-subject",
            "1",
            "--out",
            &place.at("out.npy"),
        ],
    ] {
        let line = fails(args);
        assert!(line.contains("c/0/1/0"), "{line}");
        assert_eq!(names(place.path()), ["in.zarr"], "{args:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_cannot_be_written_is_named() {
    let place = Place::new();
    let source = place.small("in.zarr");
    for args in [
        &["convert", &source, "/proc/out.zarr"][..],
        &["convert", &source, &place.at("no/out.zarr")],
        &[
            "infer",
            &source,
            "/proc/out.zarr",
            "--patch-size",
            "8",
            "--overlap",
            "4",
        ],
        &[
            "sample",
            &source,
            "--patch-size",
            "4",
            "--samples-per-subject",
            "1",
            "--out",
            "/proc/out.npy",
        ],
        &["preview", &source, "/proc/out.png"],
        &["demo", "--size", "8", "--keep", "/proc/demo"],
    ] {
        let line = fails(args);
        assert!(
            line.contains("/proc") || line.contains("/no"),
            "{args:?}: {line}"
        );
    }
    let out = place.at("a.npy");
    fails(&[
        "sample",
        &source,
        "--patch-size",
        "4",
        "--samples-per-subject",
        "1",
        "--out",
        &out,
        "--locations",
        "/proc/a.csv",
    ]);
    assert_eq!(names(place.path()), ["in.zarr"]);
}

/// A disk of 96 KiB, unmounted at the end.
struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=96k", "voxpatch-test"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(folder))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.0.path()).status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "the tiny disk stays mounted"
        );
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let Some(disk) = TinyDisk::mount() else {
        println!("SKIPPED: a full disk needs the right to mount a tmpfs (root)");
        return;
    };
    let place = Place::new();
    // Noise, which is not compressible.
    let mut state = 1_u32;
    let noise: Vec<u16> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u16::try_from(state >> 16).expect("16 bits")
    })
    .take(64 * 64 * 64)
    .collect();
    let source = place.store("in.zarr", [64; 3], 1, noise);
    let at = |name: &str| disk.0.path().join(name).to_str().expect("UTF-8").to_owned();
    let small = ["--chunk", "8", "--shard", "16"];
    for args in [
        &["convert", &source, &at("out.zarr")][..],
        &[&["convert", &source, &at("out.zarr")][..], &small].concat(),
        &[
            "convert",
            &source,
            &at("out.zarr"),
            "--codec",
            "none",
            "--chunk",
            "8",
            "--shard",
            "none",
        ],
        &[
            "infer",
            &source,
            &at("out.zarr"),
            "--patch-size",
            "32",
            "--overlap",
            "8",
        ],
        &[
            "sample",
            &source,
            "--patch-size",
            "32",
            "--samples-per-subject",
            "9",
            "--out",
            &at("out.npy"),
        ],
        &[
            "sample",
            &source,
            "--patch-size",
            "32",
            "--samples-per-subject",
            "9",
            "--out",
            &at("out.zarr"),
        ],
        &[
            "sample",
            &source,
            "--patch-size",
            "32",
            "--samples-per-subject",
            "9",
            "--out",
            &at("out/"),
        ],
        &["preview", &source, &at("out.png"), "--window", "0,65535"],
        &["demo", "--size", "64", "--keep", &at(""), "--json"],
    ] {
        let done = command(args).output().expect("the command starts");
        let said = String::from_utf8_lossy(&done.stderr).to_lowercase();
        assert_eq!(done.status.code(), Some(1), "{args:?}: {said}");
        let (last, before) = said.lines().rev().collect::<Vec<_>>().split_first().map_or(
            ("", 0),
            |(last, before)| {
                (
                    *last,
                    before
                        .iter()
                        .filter(|line| !line.contains("may not fit"))
                        .count(),
                )
            },
        );
        assert!(last.contains("no space") && before == 0, "{args:?}: {said}");
        assert_eq!(names(disk.0.path()), Vec::<String>::new(), "{args:?}");
    }
}

/// Sends a signal as soon as `folder` contains something of this kind, and returns the exit status.
pub(crate) fn interrupt(mut child: Child, signal: &str, folder: &Path, begun: &str) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !names(folder).iter().any(|name| name.ends_with(begun)) {
        assert!(
            Instant::now() < deadline,
            "nothing was begun in {}",
            folder.display()
        );
        assert!(
            child.try_wait().expect("it is ours").is_none(),
            "it ended too early"
        );
        thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(sent.expect("kill starts").success());
    child.wait().expect("it ends").code()
}

#[test]
fn ctrl_c_ends_a_demo_with_130_and_nothing_that_looks_finished() {
    let place = Place::new();
    let child = command(&["demo", "--size", "1000,500,500", "--keep", &place.at("")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let status = interrupt(child, "-INT", place.path(), ".incomplete");
    assert_eq!(status, Some(130));
    assert_eq!(names(place.path()), Vec::<String>::new());
}

#[test]
fn sigterm_ends_infer_and_sample_with_143_and_nothing_left() {
    let place = Place::new();
    let source = place.store("in.zarr", [48; 3], 1, vec![1_u8; 48 * 48 * 48]);
    for args in [
        &[
            "infer",
            &source,
            &place.at("out.zarr"),
            "--patch-size",
            "24",
            "--overlap",
            "23",
        ][..],
        &[
            "sample",
            &source,
            "--patch-size",
            "40",
            "--samples-per-subject",
            "100000",
            "--out",
            &place.at("out.npy"),
        ],
    ] {
        let child = command(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts");
        assert_eq!(
            interrupt(child, "-TERM", place.path(), ".incomplete"),
            Some(143),
            "{args:?}"
        );
        assert_eq!(names(place.path()), ["in.zarr"], "{args:?}");
    }
}

#[test]
fn a_run_that_can_be_gone_on_with_is_kept_when_it_is_stopped() {
    let place = Place::new();
    let source = place.store("in.zarr", [48; 3], 1, vec![1_u8; 48 * 48 * 48]);
    let target = place.at("out.zarr");
    let words = |overlap| {
        let words = [
            "infer",
            &source,
            &target,
            "--patch-size",
            "24",
            "--overlap",
            overlap,
        ];
        [&words[..], &["--chunk", "8", "--shard", "none", "--resume"]].concat()
    };
    let child = command(&words("23"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    assert_eq!(
        interrupt(child, "-INT", place.path(), ".partial"),
        Some(130)
    );
    assert_eq!(names(place.path()), [".out.zarr.partial", "in.zarr"]);
    let told = fails(&words("12"));
    assert!(told.contains("starts"), "{told}");
    succeeds(&words("23"));
    assert_eq!(names(place.path()), ["in.zarr", "out.zarr"]);
    assert_eq!(voxels(&target).bytes(), vec![1; 48 * 48 * 48]);
}

#[test]
fn a_reader_who_has_gone_is_no_failure() {
    let place = Place::new();
    let source = place.small("in.zarr");
    for args in [
        &["info", &source][..],
        &["convert", &source, &place.at("out.zarr")],
        &["demo", "--size", "16"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command(args)
            .stdout(writer)
            .output()
            .expect("the command starts");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && err.is_empty(),
            "{args:?}: {:?} {err}",
            output.status
        );
    }
    assert!(
        Path::new(&place.at("out.zarr")).is_dir(),
        "the work was done all the same"
    );
}
