//! `voxpatch sample` from outside: draws, outputs and refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};
use voxpatch::volume::{Codec, CreateOptions, Rescale, create};
use voxpatch::{DType, Geometry, Layout, Patch, Region, VolumeExt};

use crate::tool::{Place, command, fails, is_refused, json, names, ramp, scans, succeeds, voxels};

/// Runs `sample` on `sources` and returns its report.
fn sample(sources: &[&str], more: &[&str]) -> Json {
    json(&[&["sample"], sources, more].concat())
}

/// Returns the places in a file that `--locations` wrote.
fn places(path: &str) -> Vec<Region> {
    let text = fs::read_to_string(path).expect("locations");
    let region = |line: &str| {
        let at: Vec<i64> = line
            .split(',')
            .map(|n| n.parse().expect("a number"))
            .collect();
        let [z0, y0, x0, z1, y1, x1] = at[..] else {
            panic!("six numbers, not {line}")
        };
        let shape = [z1 - z0, y1 - y0, x1 - x0].map(i64::unsigned_abs);
        Region::new([z0, y0, x0], shape)
    };
    text.lines().map(region).collect()
}

/// Returns the voxels of a .npy after its header.
fn stored(path: &str) -> Vec<u8> {
    let bytes = fs::read(path).expect("patches");
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[header..].to_vec()
}

fn center(region: &Region) -> [usize; 3] {
    std::array::from_fn(|a| {
        let half = i64::try_from(region.shape[a] / 2).expect("small");
        usize::try_from(region.start[a] + half).expect("a center lies inside")
    })
}

/// Stores labels of 20 x 24 x 28 voxels: 1 in a corner, 2 in one voxel, 0 elsewhere.
fn labels(place: &Place, name: &str) -> String {
    let label = |n: usize| {
        let at = [n / (24 * 28), n / 28 % 24, n % 28];
        match at {
            [10, 12, 14] => 2,
            _ if at.iter().all(|&k| k < 9) => 1,
            _ => 0,
        }
    };
    let all: Vec<u8> = (0..20 * 24 * 28).map(label).collect();
    place.store(name, [20, 24, 28], 1, all)
}

#[test]
fn threads_memory_and_repetition_change_nothing_however_patches_are_drawn() {
    let place = Place::new();
    let (source, map) = (place.small("in.zarr"), labels(&place, "labels.zarr"));
    for ways in [
        &[][..],
        &["--labels", &map, "--label-weights", "0:1,1:2,2:1"],
        &["--weights", &map, "--border", "shift"],
        &[
            "--labels",
            &map,
            "--weights",
            &map,
            "--mix",
            "uniform:1,labels:1,weights:1",
            "--border",
            "pad",
            "--fill",
            "-7",
        ],
    ] {
        let mut first = None;
        for (n, load) in [
            &["--threads", "1"][..],
            &["--threads", "2"],
            &["--threads", "8"],
            &["--threads", "1", "--memory", "4MiB"],
            &["--threads", "2", "--memory", "4GiB"],
        ]
        .into_iter()
        .enumerate()
        {
            let (out, csv) = (place.at(&format!("{n}.npy")), place.at(&format!("{n}.csv")));
            let outputs = ["--out", &out, "--locations", &csv, "--overwrite"];
            let draws = [
                "--patch-size",
                "5,6,7",
                "--samples-per-subject",
                "120",
                "--seed",
                "3",
            ];
            let told = sample(&[&source], &[ways, load, &outputs, &draws].concat());
            assert_eq!(told["patches"], 120);
            let found = (stored(&out), places(&csv));
            assert_eq!(found.1.len(), 120);
            let first = first.get_or_insert_with(|| found.clone());
            assert!(*first == found, "{ways:?} {load:?}");
        }
    }
}

#[test]
fn seeds_and_epochs_decide_the_draws_and_ranks_share_them() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let draw = |name: &str, more: &[&str]| {
        let (out, csv) = (
            place.at(&format!("{name}.npy")),
            place.at(&format!("{name}.csv")),
        );
        let own = [
            "--patch-size",
            "4",
            "--samples-per-subject",
            "50",
            "--out",
            &out,
            "--locations",
            &csv,
        ];
        sample(&[&source], &[&own[..], more].concat());
        let patches: Vec<Vec<u8>> = stored(&out).chunks_exact(128).map(<[u8]>::to_vec).collect();
        let at = places(&csv).into_iter().map(|region| region.start);
        at.zip(patches).collect::<Vec<_>>()
    };
    let whole = draw("whole", &[]);
    assert_eq!(whole.len(), 50);
    let uniform = voxpatch::Uniform::new([20, 24, 28], [4; 3], 0).expect("it fits");
    let expected: Vec<_> = uniform.take(50).map(|region| region.start).collect();
    assert_eq!(
        whole.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        expected
    );
    assert_ne!(whole, draw("seed", &["--seed", "1"]));
    assert_ne!(whole, draw("epoch", &["--epoch", "1"]));
    // 50 patches on three ranks: the first is repeated, two are left out, or one rank has fewer.
    for (uneven, counts) in [
        ("repeat", [17, 17, 17]),
        ("drop", [16, 16, 16]),
        ("exact", [16, 17, 17]),
    ] {
        let mut expected = whole.clone();
        match uneven {
            "repeat" => expected.push(whole[0].clone()),
            "drop" => expected.truncate(48),
            _ => {}
        }
        let mut union = Vec::new();
        let mut found = Vec::new();
        for rank in ["0", "1", "2"] {
            let name = format!("{uneven}{rank}");
            let mut ranks = vec!["--rank", rank, "--world-size", "3"];
            if uneven != "repeat" {
                ranks.extend(["--uneven", uneven]);
            }
            let own = draw(&name, &ranks);
            found.push(own.len());
            union.extend(own);
        }
        found.sort_unstable();
        assert_eq!(found, counts, "{uneven}");
        expected.sort();
        union.sort();
        assert!(expected == union, "{uneven}");
    }
}

#[test]
fn the_same_patches_come_as_npy_zarr_or_nifti_in_their_place() {
    let place = Place::new();
    let source = place.store("in.zarr", [12, 13, 14], 2, ramp(12 * 13 * 14 * 2));
    let draws = [
        "--patch-size",
        "3,4,5",
        "--samples-per-subject",
        "9",
        "--border",
        "pad",
    ];
    let with = |more: &[&str]| sample(&[&source], &[&draws[..], more].concat());
    let [npy, zarr, folder, csv] = ["p.npy", "p.zarr", "p/", "p.csv"].map(|name| place.at(name));
    with(&["--out", &npy, "--locations", &csv]);
    with(&["--out", &zarr]);
    with(&["--out", &folder]);
    assert_eq!(
        names(place.path()),
        ["in.zarr", "p", "p.csv", "p.npy", "p.zarr"]
    );
    let expected = stored(&npy);
    let told = json(&["info", &zarr]);
    assert_eq!(told["shape"], json!([3, 4, 5]));
    assert_eq!(told["channels"], 18);
    assert_eq!(told["read_chunk"], json!([3, 4, 5]));
    assert_eq!(voxels(&zarr).bytes(), expected);
    assert_eq!(names(Path::new(&folder)).len(), 9);
    let volume = voxpatch::open(&source).expect("it opens");
    let geometry = volume.layout().geometry;
    for (n, (region, patch)) in places(&csv)
        .into_iter()
        .zip(expected.chunks_exact(240))
        .enumerate()
    {
        let file = format!("{folder}patch_{n:06}.nii");
        assert_eq!(voxels(&file).bytes(), patch);
        let found = voxpatch::open(&file).expect("it opens").layout().geometry;
        let moved = geometry.affine.map(|row| {
            let [z, y, x] = region
                .start
                .map(|n| f64::from(i32::try_from(n).expect("small")));
            row[3] + row[0] * x + row[1] * y + row[2] * z
        });
        for (row, moved) in found.affine.iter().zip(moved) {
            assert!((row[3] - moved).abs() < 1e-3, "{file}");
        }
    }
    // Only a folder of patches is replaced.
    let line = fails(&[&["sample", &source], &draws[..], &["--out", &folder]].concat());
    assert!(line.contains("exists already"), "{line}");
    with(&["--out", &folder, "--overwrite", "--seed", "4"]);
    let note = place.at("p/notes.txt");
    fs::write(&note, "mine").expect("it can be written");
    let line = fails(
        &[
            &["sample", &source],
            &draws[..],
            &["--out", &folder, "--overwrite"],
        ]
        .concat(),
    );
    assert!(line.contains("notes.txt"), "{line}");
    assert!(Path::new(&note).exists());
}

#[test]
fn turned_and_cropped_patches_are_at_their_place_in_the_world() {
    let place = Place::new();
    let source = place.store("in.zarr", [12, 13, 14], 1, ramp(12 * 13 * 14));
    let draws = ["--patch-size", "6", "--samples-per-subject", "20"];
    let changes = [
        "--flip",
        "0.5,0.5,0",
        "--permute",
        "0.5",
        "--rotate",
        "0.5",
        "--crop",
        "4",
    ];
    let with = |more: &[&str]| sample(&[&source], &[&draws[..], &changes, more].concat());
    let [npy, zarr, folder] = ["p.npy", "p.zarr", "p/"].map(|name| place.at(name));
    let report = with(&["--out", &npy]);
    assert_eq!(report["shape"], json!([4, 4, 4]));
    with(&["--out", &folder, "--threads", "3"]);
    let expected = stored(&npy);
    // A Zarr array has one spacing, and these axes have three.
    let line = fails(
        &[
            &["sample", &source],
            &draws[..],
            &changes,
            &["--out", &zarr],
        ]
        .concat(),
    );
    assert!(line.contains("write them to a folder"), "{line}");
    let whole = voxels(&source);
    let geometry = voxpatch::open(&source).expect("it opens").layout().geometry;
    let mut directions = std::collections::BTreeSet::new();
    let each = expected.len() / 20;
    for (n, patch) in expected.chunks_exact(each).enumerate() {
        let file = format!("{folder}patch_{n:06}.nii");
        let own = voxels(&file);
        assert_eq!(own.bytes(), patch);
        let layout = voxpatch::open(&file).expect("it opens").layout().clone();
        let to_source = geometry.indices_of(&layout.geometry).expect("an affine");
        directions.insert(format!(
            "{:?}",
            to_source.map(|row| [row[0], row[1], row[2]])
        ));
        let at = |x: f64, y: f64, z: f64| -> Vec<u64> {
            let along = |row: [f64; 4]| row[0] * x + row[1] * y + row[2] * z + row[3];
            let near = to_source.map(along).map(f64::round);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "indices"
            )]
            near[..3].iter().map(|&n| n as u64).collect()
        };
        let size = layout.dtype.size();
        for voxel in 0..64_u32 {
            let [z, y, x] = [voxel / 16, voxel / 4 % 4, voxel % 4].map(f64::from);
            let [x, y, z] = at(x, y, z)[..] else {
                unreachable!()
            };
            let from = usize::try_from((z * 13 + y) * 14 + x).expect("small") * size;
            let to = usize::try_from(voxel).expect("small") * size;
            assert_eq!(
                patch[to..to + size],
                whole.bytes()[from..from + size],
                "{file}"
            );
        }
    }
    assert!(directions.len() > 5, "{directions:?}");
}

#[test]
fn normalized_patches_are_what_a_model_gets() {
    let place = Place::new();
    let source = place.store("in.zarr", [12, 13, 14], 2, ramp(12 * 13 * 14 * 2));
    let draws = ["--patch-size", "12,13,14", "--samples-per-subject", "1"];
    for normalize in ["zscore", "window:10,90", "none"] {
        let [npy, predicted] = ["p.npy", "out.zarr"].map(|name| place.at(name));
        let more = ["--out", &npy, "--overwrite", "--normalize", normalize];
        sample(&[&source], &[&draws[..], &more].concat());
        let mut infer = vec!["infer", &*source, &*predicted, "--patch-size", "12,13,14"];
        infer.extend(["--overlap", "0", "--overwrite", "--model", "gaussian:0.001"]);
        succeeds(&[&infer[..], &["--normalize", normalize]].concat());
        let predicted = voxels(&predicted).converted(DType::F32);
        let mut trained = stored(&npy);
        if normalize == "none" {
            let patch = Patch::zeros(Region::whole([12, 13, 14]), 2, voxels(&source).dtype());
            let mut patch = patch.expect("small");
            patch.bytes_mut().copy_from_slice(&trained);
            trained = patch.converted(DType::F32).bytes().to_vec();
        }
        assert_eq!(predicted.bytes(), trained, "{normalize}");
    }
}

#[test]
fn changes_that_do_not_fit_are_refused() {
    let place = Place::new();
    let source = place.store("in.zarr", [12, 13, 14], 1, ramp(12 * 13 * 14));
    let draws = [
        "sample",
        &source,
        "--patch-size",
        "6",
        "--samples-per-subject",
        "2",
    ];
    for (wrong, reason) in [
        (["--flip", "1.5"], "from 0 to 1"),
        (["--rotate", "nan"], "from 0 to 1"),
        (["--crop", "7"], "larger than --patch-size"),
        (["--crop", "0"], "at least one voxel"),
        (["--normalize", "minmax"], "zscore"),
    ] {
        let output = command(&[&draws[..], &wrong].concat())
            .output()
            .expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && errors.contains(reason),
            "{errors}"
        );
    }
}

#[test]
fn a_list_of_places_gives_the_patches_that_it_names() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let [npy, csv, again] = ["a.npy", "a.csv", "b.npy"].map(|name| place.at(name));
    let pad = ["--border", "pad", "--fill", "-3"];
    let draws = [
        "--patch-size",
        "6",
        "--samples-per-subject",
        "40",
        "--out",
        &npy,
        "--locations",
        &csv,
    ];
    sample(&[&source], &[&draws[..], &pad].concat());
    let told = sample(
        &[&source],
        &[&["--at", &csv, "--out", &again], &pad[..]].concat(),
    );
    assert_eq!(told["patches"], 40);
    assert_eq!(stored(&npy), stored(&again));
    let outside = places(&csv).iter().any(|r| !r.is_inside([20, 24, 28]));
    assert!(outside, "some of 40 hang over");
    let line = fails(&["sample", &source, "--at", &csv]);
    assert!(line.contains("reaches outside"), "{line}");
    let few = ["--at", &csv, "--samples-per-subject", "3"];
    assert_eq!(sample(&[&source], &[&few[..], &pad].concat())["patches"], 3);
    let line = fails(
        &[
            &[
                "sample",
                &source,
                "--at",
                &csv,
                "--samples-per-subject",
                "41",
            ],
            &pad[..],
        ]
        .concat(),
    );
    assert!(line.contains("40 locations"), "{line}");
    // Exactly the voxels beyond the faces have the fill value.
    let whole = voxels(&source);
    let whole = whole.as_slice::<i16>().expect("i16");
    for (region, patch) in places(&csv).iter().zip(stored(&npy).chunks_exact(432)) {
        for (n, value) in (0_i64..).zip(patch.chunks_exact(2)) {
            let at = [n / 36, n / 6 % 6, n % 6];
            let at: [i64; 3] = std::array::from_fn(|a| region.start[a] + at[a]);
            let inside = Region::new(at, [1; 3]).is_inside([20, 24, 28]);
            let expected = if inside {
                let place = (at[0] * 24 + at[1]) * 28 + at[2];
                whole[usize::try_from(place).expect("inside")]
            } else {
                -3
            };
            assert_eq!(i16::from_le_bytes([value[0], value[1]]), expected);
        }
    }
    fs::write(&csv, "0,0,0,4,4,4\n1,2,3\n").expect("it can be written");
    let line = fails(&["sample", &source, "--at", &csv]);
    assert!(line.contains("line 2"), "{line}");
}

#[test]
fn centers_have_the_labels_in_their_shares_and_missing_labels_are_told() {
    let place = Place::new();
    let (source, map) = (place.small("in.zarr"), labels(&place, "labels.zarr"));
    let values = voxels(&map);
    let values = values.as_slice::<u8>().expect("u8");
    let csv = place.at("a.csv");
    let drawn = |more: &[&str]| {
        let own = [
            "--patch-size",
            "3",
            "--samples-per-subject",
            "4000",
            "--overwrite",
            "--locations",
            &csv,
            "--border",
            "shift",
            "--labels",
            &map,
        ];
        let told = sample(&[&source], &[&own[..], more].concat());
        let mut counts = BTreeMap::<u8, u32>::new();
        for region in places(&csv) {
            let [z, y, x] = center(&region);
            *counts.entry(values[(z * 24 + y) * 28 + x]).or_default() += 1;
        }
        (told, counts)
    };
    // 4.9 standard deviations are a p-value of 1e-6. A patch at a face is moved by a voxel, whose label is the same
    // there.
    let near = |found: u32, shard: f64| {
        let deviation = (4000.0 * shard * (1.0 - shard)).sqrt();
        (f64::from(found) - 4000.0 * shard).abs() < 4.9 * deviation
    };
    let (told, counts) = drawn(&["--label-weights", "1:1,2:3,9:5"]);
    assert_eq!(
        told["absent_labels"],
        json!([{"input": source, "labels": ["9"]}])
    );
    assert!(
        near(counts[&2], 0.75) && !counts.contains_key(&0),
        "{counts:?}"
    );
    let (_, counts) = drawn(&[]);
    assert!(!counts.contains_key(&0), "{counts:?}");
    let (_, counts) = drawn(&["--label-weights", "0:1,2:1"]);
    assert!(near(counts[&2], 0.5) && near(counts[&0], 0.5), "{counts:?}");
    let (_, counts) = drawn(&["--mix", "uniform:3,labels:1", "--label-weights", "2:1"]);
    assert!(near(counts[&2], 0.25), "{counts:?}");
}

#[test]
fn centers_are_as_likely_as_their_weights() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let mut weights = vec![0_f32; 20 * 24 * 28];
    let at = |z: usize, y: usize, x: usize| (z * 24 + y) * 28 + x;
    weights[at(5, 6, 7)] = 1.0;
    weights[at(15, 16, 17)] = 3.0;
    let map = place.store("weights.zarr", [20, 24, 28], 1, weights.clone());
    let csv = place.at("a.csv");
    let draws = [
        "--patch-size",
        "4",
        "--samples-per-subject",
        "2000",
        "--weights",
        &map,
        "--locations",
        &csv,
    ];
    sample(&[&source], &draws);
    let found = places(&csv);
    let heavy = found.iter().filter(|r| center(r) == [15, 16, 17]).count();
    assert!(
        found
            .iter()
            .all(|r| [[5, 6, 7], [15, 16, 17]].contains(&center(r)))
    );
    // 1500 with a standard deviation of 19.4, and 4.9 of them for a p-value of 1e-6.
    assert!((1405..=1595).contains(&heavy), "{heavy}");

    weights[at(3, 2, 1)] = -0.5;
    let map = place.store("negative.zarr", [20, 24, 28], 1, weights);
    let line = fails(&[
        "sample",
        &source,
        "--patch-size",
        "4",
        "--samples-per-subject",
        "2",
        "--weights",
        &map,
    ]);
    assert!(
        line.contains("negative.zarr") && line.contains("[3, 2, 1]"),
        "{line}"
    );
}

#[test]
fn an_index_is_kept_for_the_next_run_and_replaces_no_other_file() {
    let place = Place::new();
    let (source, map) = (place.small("in.zarr"), labels(&place, "labels.zarr"));
    let (index, csv) = (place.at("labels.index"), place.at("a.csv"));
    let draws = [
        "--patch-size",
        "4",
        "--samples-per-subject",
        "30",
        "--labels",
        &map,
        "--index",
        &index,
        "--locations",
        &csv,
        "--overwrite",
    ];
    sample(&[&source], &draws);
    let (first, kept) = (places(&csv), fs::metadata(&index).expect("it was kept"));
    sample(&[&source], &draws);
    assert_eq!(first, places(&csv));
    let again = fs::metadata(&index).expect("it is still there");
    assert_eq!(
        kept.modified().expect("a time"),
        again.modified().expect("a time"),
        "it was not built again"
    );
    fs::write(&index, "a letter").expect("it can be written");
    let line = fails(&[&["sample", &source], &draws[..]].concat());
    assert!(line.contains("labels.index"), "{line}");
    assert_eq!(fs::read(&index).expect("it is there"), b"a letter");
}

#[test]
fn several_inputs_are_mixed_and_an_empty_one_can_be_left_out() {
    let place = Place::new();
    let (a, b) = (place.small("a.zarr"), place.small("b.zarr"));
    let full = labels(&place, "full.zarr");
    let empty = place.store("empty.zarr", [20, 24, 28], 1, vec![0_u8; 20 * 24 * 28]);
    let draws = ["--patch-size", "4", "--samples-per-subject", "20"];
    let maps = ["--labels", &full, &empty];
    let folder = place.at("both");
    let told = sample(&[&a, &b], &[&draws[..], &["--out", &folder]].concat());
    assert_eq!(told["patches"], 40);
    let files = names(Path::new(&folder));
    let of = |n: usize| {
        let end = format!("_input_{n}.nii");
        files.iter().filter(|name| name.ends_with(&end)).count()
    };
    assert_eq!((of(0), of(1)), (20, 20));
    let first: Vec<&String> = files.iter().take(20).collect();
    assert!(
        first.iter().any(|n| n.contains("input_0")) && first.iter().any(|n| n.contains("input_1"))
    );

    let line = fails(&[&["sample", &a, &b], &draws[..], &maps].concat());
    assert!(line.contains("empty.zarr"), "{line}");
    let out = place.at("left.npy");
    let skipping = [&draws[..], &maps, &["--empty", "skip", "--out", &out]].concat();
    let told = sample(&[&a, &b], &skipping);
    assert_eq!(
        (&told["patches"], &told["left_out"]),
        (&json!(20), &json!(20))
    );
    assert_eq!(stored(&out).len(), 20 * 128);
    let told = sample(
        &[&a, &b],
        &[&draws[..], &maps, &["--empty", "uniform"]].concat(),
    );
    assert_eq!(
        (&told["patches"], &told["left_out"]),
        (&json!(40), &json!(0))
    );

    let floats = place.store(
        "floats.zarr",
        [20, 24, 28],
        2,
        vec![0_f32; 2 * 20 * 24 * 28],
    );
    let line = fails(
        &[
            &["sample", &a, &floats],
            &draws[..],
            &["--out", &place.at("x.npy")],
        ]
        .concat(),
    );
    assert!(
        line.contains("a.zarr") && line.contains("floats.zarr"),
        "{line}"
    );
    for (option, file) in [("--locations", "x.csv"), ("--plot", "x.png")] {
        let line = fails(&[&["sample", &a, &b], &draws[..], &[option, &place.at(file)]].concat());
        assert!(line.contains(option), "{line}");
    }
}

#[test]
fn statistics_are_what_is_printed_and_nothing_need_be_written() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let stats = place.at("stats.json");
    let told = sample(
        &[&source],
        &[
            "--patch-size",
            "8",
            "--samples-per-subject",
            "30",
            "--stats",
            &stats,
        ],
    );
    let text = fs::read_to_string(&stats).expect("statistics");
    let kept: Json = serde_json::from_str(&text).expect("JSON");
    assert_eq!(kept, told);
    for key in [
        "seconds",
        "patches_per_second",
        "megabytes_per_second",
        "chunks_decoded",
        "bytes_read",
        "wait_seconds",
        "first_patch_seconds",
        "index_seconds",
        "peak_anonymous_bytes",
        "left_out",
    ] {
        assert!(told[key].is_number(), "{key}: {told}");
    }
    // 3 x 3 x 4 chunks, each at least once, and at most once per patch that needs it.
    let chunks = told["chunks_decoded"].as_u64().expect("a number");
    assert!((8..=30 * 8).contains(&chunks), "{chunks}");
    assert!(told["bytes_read"].as_u64() > Some(0));
    assert_eq!(names(place.path()), ["in.zarr", "stats.json"]);
    assert!(
        succeeds(&[
            "sample",
            &source,
            "--patch-size",
            "8",
            "--samples-per-subject",
            "0"
        ])
        .contains("patches")
    );
}

#[test]
fn the_plot_shows_a_dot_where_each_center_is() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let (csv, png) = (place.at("at.csv"), place.at("plot.png"));
    // 40 x 24 x 14 mm in 512 x 307 x 179 pixels; the volume is RAS+, so all axes are flipped.
    fs::write(&csv, "9,3,20,12,6,23\n").expect("it can be written");
    sample(&[&source], &["--at", &csv, "--plot", &png]);
    let file = std::io::BufReader::new(fs::File::open(&png).expect("the picture is there"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut pixels).expect("a frame");
    assert_eq!((info.width, info.height), (179 + 179 + 307 + 16, 512));
    let red: Vec<(usize, usize)> = pixels
        .as_chunks::<3>()
        .0
        .iter()
        .enumerate()
        .filter(|(_, p)| **p == [255, 64, 32])
        .map(|(n, _)| (n / 681, n % 681))
        .collect();
    assert_eq!(red.len(), 3 * 21, "three dots of 21 pixels");
    let middle = |panel: std::ops::Range<usize>| {
        let own: Vec<_> = red.iter().filter(|(_, x)| panel.contains(x)).collect();
        let sum = own
            .iter()
            .fold((0, 0), |sum, at| (sum.0 + at.0, sum.1 + at.1));
        (sum.0 / own.len(), sum.1 / own.len() - panel.start)
    };
    // Center z 10, y 4, x 21.
    let (z, y, x) = (21 * 512 / 40, 9 * 307 / 48, 43 * 179 / 56);
    let top = (512 - 307) / 2;
    assert_eq!(middle(0..179), (top + 306 - y, 178 - x));
    assert_eq!(middle(187..366), (511 - z, 178 - x));
    assert_eq!(middle(374..681), (511 - z, 306 - y));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn what_cannot_be_sampled_is_one_line_and_leaves_nothing() {
    let place = Place::new();
    let (source, map) = (place.small("in.zarr"), labels(&place, "labels.zarr"));
    let other = place.store("other.zarr", [20, 24, 27], 1, vec![1_u8; 20 * 24 * 27]);
    let out = place.at("out.npy");
    let before = names(place.path());
    for (more, named) in [
        (
            &["--labels", &other][..],
            &["in.zarr", "other.zarr", "[20, 24, 27]"][..],
        ),
        (
            &["--labels", &map, "--label-weights", "7:1,8:1"],
            &["labels.zarr", "7, 8"],
        ),
        (
            &["--labels", &map, &map],
            &["--labels has 2 files for 1 inputs"],
        ),
        (&["--labels", &map, "--weights", &map], &["--mix"]),
        (&["--mix", "uniform:1,labels:1"], &["labels"]),
        (&["--labels", &map, "--mix", "uniform:1"], &["labels"]),
        (&["--index", &out], &["--index has 1 files for 0 maps"]),
        (
            &["--labels", &map, "--index", &source],
            &["is inside the input"],
        ),
        (&["--rank", "3", "--world-size", "3"], &["rank 3"]),
        (
            &["--memory", "5000", "--threads", "8"],
            &["memory limit of 5000 bytes", "at least"],
        ),
        (
            &["--border", "pad", "--memory", "5000"],
            &["memory limit of 5000 bytes"],
        ),
        (&["--out", &place.at("out.nii")], &["out.nii", "folder"]),
        (
            &["--out", &place.at("in.zarr/patches/")],
            &["is inside the input"],
        ),
        (
            &["--out", &map, "--labels", &map, "--overwrite"],
            &["it is, contains"],
        ),
        (
            &["--out", &out, "--stats", &out],
            &["patches and statistics", "both"],
        ),
        (&["--plot", "/proc/a.png", "--out", &out], &["/proc"]),
        (&["--stats", "/proc/stats.json", "--out", &out], &["/proc"]),
        (&["--plot", &source, "--overwrite"], &["it is, contains"]),
        (&["--stats", &map], &["exists already"]),
        (&["--level", "4"], &["4"]),
    ] {
        let line = fails(
            &[
                &[
                    "sample",
                    &source,
                    "--patch-size",
                    "8",
                    "--samples-per-subject",
                    "5",
                ],
                more,
            ]
            .concat(),
        );
        for named in named {
            assert!(line.contains(named), "{more:?}: {line}");
        }
        assert_eq!(names(place.path()), before, "{more:?}");
    }
    let large = ["--patch-size", "8,25,8", "--samples-per-subject", "1"];
    let line = fails(&[&["sample", &source, "--out", &out], &large[..]].concat());
    assert!(line.contains("25 voxels along y"), "{line}");
    let told = sample(&[&source], &[&large[..], &["--border", "pad"]].concat());
    assert_eq!(told["patches"], 1, "padding makes room");
    for wrong in [
        &["--label-weights", "0:1"][..],
        &["--labels", &map, "--label-weights", "0"],
        &["--labels", &map, "--label-weights", "0:-1"],
        &["--labels", &map, "--label-weights", "0:1,0:2"],
        &["--mix", "labels"],
        &["--mix", "everything:1"],
        &["--border", "wrap"],
        &["--fill", "white"],
        &["--rank", "1"],
        &["--at", &out, "--patch-size", "8"],
    ] {
        is_refused(
            &[
                &[
                    "sample",
                    &source,
                    "--patch-size",
                    "8",
                    "--samples-per-subject",
                    "5",
                ],
                wrong,
            ]
            .concat(),
        );
    }
    is_refused(&["sample", &source, "--samples-per-subject", "5"]);
    is_refused(&["sample", "--patch-size", "4", "--samples-per-subject", "5"]);
    assert_eq!(names(place.path()), before);
}

#[test]
fn sizes_and_counts_that_are_none_are_refused_with_a_reason() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let before = names(place.path());
    let said = |more: &[&str]| {
        let args = [&["sample", &source], more].concat();
        let output = command(&args).output().expect("the command starts");
        assert!(output.stdout.is_empty(), "{more:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    for (patch, count, code, named) in [
        (
            "--patch-size=1180591620717411303424",
            "--samples-per-subject=1",
            2,
            "1180591620717411303424",
        ),
        ("--patch-size=-3", "--samples-per-subject=1", 2, "-3"),
        ("--patch-size=1.5", "--samples-per-subject=1", 2, "1.5"),
        ("--patch-size=4,4", "--samples-per-subject=1", 2, "z,y,x"),
        ("--patch-size=4", "--samples-per-subject=-1", 2, "-1"),
        (
            "--patch-size=4",
            "--samples-per-subject=18446744073709551616",
            2,
            "18446744073709551616",
        ),
        (
            "--patch-size=0",
            "--samples-per-subject=1",
            1,
            "a patch of 0 voxels along z",
        ),
        (
            "--patch-size=4,4,0",
            "--samples-per-subject=1",
            1,
            "a patch of 0 voxels along x",
        ),
        (
            "--patch-size=9223372036854775808",
            "--samples-per-subject=1",
            1,
            "9223372036854775808",
        ),
        (
            "--patch-size=4",
            "--samples-per-subject=9223372036854775808",
            1,
            "2^63",
        ),
    ] {
        for border in ["drop", "shift", "pad"] {
            let (status, text) = said(&[patch, count, "--border", border]);
            assert_eq!(status, Some(code), "{patch} {count} {border}: {text}");
            assert!(text.contains(named), "{patch} {count} {border}: {text}");
            assert!(!text.contains("panicked"), "{text}");
        }
    }
    assert_eq!(names(place.path()), before);
    let told = sample(
        &[&source],
        &["--patch-size", "4", "--samples-per-subject", "0"],
    );
    assert_eq!(told["patches"], 0);
}

#[test]
fn labels_that_no_input_has_are_told_once() {
    let place = Place::new();
    let (a, b) = (place.small("a.zarr"), place.small("b.zarr"));
    let both = labels(&place, "both.zarr");
    let ones = place.store("ones.zarr", [20, 24, 28], 1, vec![1_u8; 20 * 24 * 28]);
    let zeros = place.store("zeros.zarr", [20, 24, 28], 1, vec![0_u8; 20 * 24 * 28]);
    let drawn = |map: &str| {
        let shares = ["--label-weights", "1:1,2:1,7:1,9:1", "--empty", "skip"];
        let own = [
            "--patch-size",
            "4",
            "--samples-per-subject",
            "3",
            "--labels",
            &both,
            map,
        ];
        sample(&[&a, &b], &[&own[..], &shares].concat())
    };
    let told = drawn(&ones);
    assert_eq!(told["labels_in_no_input"], json!(["7", "9"]));
    assert_eq!(
        told["absent_labels"],
        json!([{"input": b, "labels": ["2"]}])
    );
    let told = drawn(&zeros);
    assert_eq!(told["labels_in_no_input"], json!(["7", "9"]));
    assert_eq!(
        (&told["absent_labels"], &told["left_out"]),
        (&json!([{"input": b, "labels": ["1", "2"]}]), &json!(3))
    );
    let text = succeeds(&[
        "sample",
        &a,
        &b,
        "--patch-size",
        "4",
        "--samples-per-subject",
        "3",
        "--labels",
        &both,
        &ones,
        "--label-weights",
        "1:1,9:1",
    ]);
    assert_eq!(text.matches("labels in no input").count(), 1, "{text}");
}

#[test]
fn a_coarser_map_of_the_same_extent_is_drawn_by() {
    let place = Place::new();
    let source = place.small("in.zarr");
    // Two voxels of a map that has half the voxels along each axis; faces are where the scan's are.
    let low = |name: &str, factor: f64, shape: [u64; 3]| {
        let count = usize::try_from(shape.iter().product::<u64>()).expect("small");
        let mut voxels = vec![0_u8; count];
        let at = |z: usize, y: usize, x: usize| (z * 12 + y) * 14 + x;
        if shape == [10, 12, 14] {
            voxels[at(3, 4, 5)] = 1;
            voxels[at(9, 11, 13)] = 1;
        }
        let spacing = [2.0, 1.0, 0.5].map(|mm| mm * factor);
        let origin = [30.0 + 1.0, 20.0 + 0.5, 10.0 + 0.25];
        place.store_at(
            name,
            shape,
            1,
            voxels,
            Geometry::from_parts(spacing, origin),
        )
    };
    let map = low("low.zarr", 2.0, [10, 12, 14]);
    let csv = place.at("a.csv");
    for way in ["--labels", "--weights"] {
        let own = [
            "--patch-size",
            "1",
            "--samples-per-subject",
            "400",
            "--overwrite",
            "--locations",
            &csv,
        ];
        sample(&[&source], &[&own[..], &[way, &map]].concat());
        let mut counts = BTreeMap::<[i64; 3], u32>::new();
        for region in places(&csv) {
            *counts.entry(region.start).or_default() += 1;
        }
        // Each coarse voxel is eight fine ones; 25 of each are expected.
        let expected = voxpatch::Region::new([0; 3], [2; 3]);
        let mut eights = Vec::new();
        for corner in [[6, 8, 10], [18, 22, 26]] {
            for n in 0..expected.voxels() {
                let bit = |k: u64| i64::from(n >> k & 1 == 1);
                eights.push([corner[0] + bit(2), corner[1] + bit(1), corner[2] + bit(0)]);
            }
        }
        assert!(counts.keys().eq(&eights), "{counts:?}");
        assert!(counts.values().all(|n| (5..55).contains(n)), "{counts:?}");
    }
    // The same voxels at a different position, and with half of the extent.
    let elsewhere = low("elsewhere.zarr", 1.0, [10, 12, 14]);
    let half = low("half.zarr", 2.0, [5, 12, 14]);
    for (map, shape) in [(elsewhere, "[10, 12, 14]"), (half, "[5, 12, 14]")] {
        let own = [
            "--patch-size",
            "4",
            "--samples-per-subject",
            "4",
            "--labels",
            &map,
        ];
        let line = fails(&[&["sample", &source], &own[..]].concat());
        for part in ["in.zarr", &map, "[20, 24, 28]", shape, "resample"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

#[test]
fn a_folder_s_files_keep_an_oblique_affine_and_have_real_values() {
    let place = Place::new();
    let affine = [
        [0.9, -0.35, 0.12, -71.5],
        [0.3, 1.1, -0.4, 33.25],
        [-0.15, 0.45, 2.2, -12.75],
        [0.0, 0.0, 0.0, 1.0],
    ];
    let shape = [9, 10, 11];
    let mut layout = Layout::new(shape, 1, DType::I16).with_geometry(Geometry::from_affine(affine));
    layout.rescale = Rescale::new(0.5, -3.0);
    let source = place.at("oblique.nii");
    let target = create(Path::new(&source), &layout, &CreateOptions::default()).expect("ours");
    let bytes: Vec<u8> = ramp(990).into_iter().flat_map(i16::to_ne_bytes).collect();
    target
        .write(Region::whole(shape), &bytes)
        .expect("it is written");
    target.finish().expect("it is finished");
    let volume = voxpatch::open(&source).expect("it opens");
    let applied = volume.layout().applied.map(|applied| applied.rescale);
    assert_eq!(applied, Rescale::new(0.5, -3.0));
    let (folder, csv) = (place.at("patches/"), place.at("a.csv"));
    let own = [
        "--patch-size",
        "3,4,5",
        "--samples-per-subject",
        "12",
        "--out",
        &folder,
    ];
    let csv_flags = ["--locations", &csv, "--overwrite"];
    let packed = place.at("packed/");
    let gzip = [
        "--patch-size",
        "3,4,5",
        "--samples-per-subject",
        "12",
        "--out",
        &packed,
        "--gzip",
    ];
    sample(&[&source], &[&own[..], &csv_flags].concat());
    sample(&[&source], &gzip);
    // Both kinds are patches, which --overwrite replaces.
    sample(&[&source], &[&gzip[..], &["--overwrite"]].concat());
    let line = fails(&[
        "sample",
        &source,
        "--patch-size",
        "3",
        "--samples-per-subject",
        "1",
        "--gzip",
        "--out",
        &place.at("a.npy"),
    ]);
    assert!(line.contains("a folder of patches"), "{line}");
    let both = |(n, region): (usize, Region)| {
        [
            format!("{folder}patch_{n:06}.nii"),
            format!("{packed}patch_{n:06}.nii.gz"),
        ]
        .map(|file| (file, region))
    };
    for (file, region) in places(&csv).into_iter().enumerate().flat_map(both) {
        let found = voxpatch::open(&file).expect("it opens");
        let [z, y, x] = region
            .start
            .map(|n| f64::from(i32::try_from(n).expect("small")));
        for (row, own) in found.layout().geometry.affine.iter().zip(&affine).take(3) {
            let origin = own[3] + own[0] * x + own[1] * y + own[2] * z;
            for (found, expected) in row.iter().zip([own[0], own[1], own[2], origin]) {
                assert!(
                    (found - expected).abs() < 1e-4,
                    "{file}: {found} {expected}"
                );
            }
        }
        assert_eq!(found.layout().applied, None);
        let real = found.read(Region::whole([3, 4, 5])).expect("it reads");
        let expected = volume.read(region).expect("it reads");
        assert_eq!(real.bytes(), expected.bytes());
    }
}

#[test]
fn memory_stays_within_what_was_given() {
    let place = Place::new();
    // 64 MiB, four times what is given.
    let shape = [256, 512, 256];
    let layout = Layout::new(shape, 1, DType::U16);
    let options = CreateOptions::default()
        .with_chunk([32; 3])
        .with_shard(None)
        .with_codec(Codec::Zstd);
    let source = place.at("large.zarr");
    let target = create(Path::new(&source), &layout, &options).expect("ours");
    let slab = Region::new([0; 3], [32, 512, 256]);
    let voxels = usize::try_from(slab.voxels()).expect("small");
    let bytes: Vec<u8> = (0..voxels * 2)
        .map(|n| u8::try_from(n / 977 % 256).expect("below 256"))
        .collect();
    for z in 0..8 {
        let slab = Region::new([z * 32, 0, 0], slab.shape);
        target.write(slab, &bytes).expect("it is written");
    }
    target.finish().expect("it is finished");
    let peak = |count: &str, memory: &str| {
        let own = [
            "--patch-size",
            "64",
            "--samples-per-subject",
            count,
            "--memory",
            memory,
            "--threads",
            "2",
        ];
        let told = sample(&[&source], &own);
        told["peak_anonymous_bytes"].as_u64()
    };
    let (Some(one), Some(many)) = (peak("1", "16MiB"), peak("300", "16MiB")) else {
        println!("skipped: anonymous memory cannot be told here");
        return;
    };
    // The gaps in the heap come to some MiB before they are returned to the system.
    assert!(many < one + (20 << 20), "{many} after {one}");
    let more = peak("300", "64MiB").expect("it was told before");
    assert!(
        more > many,
        "more is taken where more is given: {more} {many}"
    );
    assert!(more < (64 + 16) << 20, "{more} of 64 MiB");
}

#[test]
fn a_stop_leaves_no_output_of_any_form() {
    let place = Place::new();
    let source = place.store("in.zarr", [48; 3], 1, vec![1_u8; 48 * 48 * 48]);
    for out in ["out.zarr", "out/"] {
        let child = command(&[
            "sample",
            &source,
            "--patch-size",
            "40",
            "--samples-per-subject",
            "100000",
            "--out",
            &place.at(out),
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the command starts");
        let status = crate::cli::interrupt(child, "-INT", place.path(), ".incomplete");
        assert_eq!(status, Some(130), "{out}");
        assert_eq!(names(place.path()), ["in.zarr"], "{out}");
    }
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn regions_of_real_scans_are_drawn_by_their_label_weights() {
    let folder = scans();
    let place = Place::new();
    let at = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let (brain, atlas) = (place.at("brain.zarr"), place.at("atlas.zarr"));
    succeeds(&["convert", &at("mr_colin27/ch2.nii.gz"), &brain]);
    succeeds(&["convert", &at("mr_colin27/aal.nii.gz"), &atlas]);
    let csv = place.at("a.csv");
    let told = sample(
        &[&brain],
        &[
            "--patch-size",
            "32",
            "--samples-per-subject",
            "3000",
            "--labels",
            &atlas,
            "--label-weights",
            "0:1,37:2,116:3,200:9",
            "--locations",
            &csv,
            "--seed",
            "11",
        ],
    );
    assert_eq!(told["absent_labels"][0]["labels"], json!(["200"]));
    let atlas: Patch = voxels(&atlas);
    let view = atlas.view::<u8>().expect("u8");
    let mut counts = BTreeMap::<u8, u32>::new();
    for region in places(&csv) {
        let [z, y, x] = center(&region);
        *counts.entry(view[[0, z, y, x]]).or_default() += 1;
    }
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [0, 37, 116]);
    for (label, shard) in [(0, 1.0 / 6.0), (37, 2.0 / 6.0), (116, 0.5)] {
        // 4.9 standard deviations are a p of 1e-6.
        let far = f64::from(counts[&label]) - 3000.0 * shard;
        assert!(
            far.abs() < 4.9 * (3000.0 * shard * (1.0 - shard)).sqrt(),
            "{counts:?}"
        );
    }
}

#[test]
fn patches_are_read_through_random_maps() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let common = [
        "--patch-size",
        "8",
        "--samples-per-subject",
        "3",
        "--seed",
        "4",
    ];
    let stored_as = |name: &str, more: &[&str]| {
        let out = place.at(name);
        sample(&[&source], &[&common[..], &["--out", &out], more].concat());
        out
    };
    let plain = stored(&stored_as("plain.npy", &[]));
    let still = ["--degrees", "0", "--scales", "0", "--max-displacement", "0"];
    assert_eq!(stored(&stored_as("still.npy", &still)), plain);
    let turned = [
        "--degrees",
        "-40,40",
        "--scales",
        "0.8,1.3",
        "--max-displacement",
        "2",
    ];
    let threads = |n| [&turned[..], &["--threads", n]].concat();
    let mapped = stored(&stored_as("one.npy", &threads("1")));
    assert_ne!(mapped, plain);
    assert_eq!(stored(&stored_as("four.npy", &threads("4"))), mapped);
    // A move by 4 mm of voxels that are 2 mm apart along z: the content comes from two voxels before.
    let moved = stored_as(
        "moved",
        &["--translation", "4,4,0,0,0,0", "--border", "pad"],
    );
    let scan = voxels(&source);
    let scan = scan.to_array::<i16>().expect("i16");
    let mut inside = 0;
    for name in names(Path::new(&moved)) {
        let path = format!("{moved}/{name}");
        let patch = voxels(&path);
        let origin = voxpatch::open(&path)
            .expect("a patch")
            .layout()
            .geometry
            .origin();
        let first: [i64; 3] = std::array::from_fn(|a| {
            let mm = origin[a] - [30.0, 20.0, 10.0][a];
            #[expect(clippy::cast_possible_truncation, reason = "a small volume")]
            let voxel = (mm / [2.0, 1.0, 0.5][a]).round() as i64;
            voxel
        });
        for ((_, z, y, x), &value) in patch.to_array::<i16>().expect("i16").indexed_iter() {
            let at: Option<Vec<usize>> = [z, y, x]
                .iter()
                .zip(first)
                .map(|(&n, first)| usize::try_from(first + i64::try_from(n).ok()?).ok())
                .collect();
            let expected = at.and_then(|at| scan.get([0, at[0], at[1], at[2]]).copied());
            inside += i32::from(expected.is_some());
            assert_eq!(value, expected.unwrap_or(0));
        }
    }
    assert!(inside > 500, "{inside}");
    let zarr = place.at("out.zarr");
    let to_zarr = [
        &["sample", &source, "--out", &zarr, "--scales", "0.1"],
        &common[..],
    ]
    .concat();
    assert!(fails(&to_zarr).contains("one spacing"));
    for wrong in [
        ["--scales", "0,1"],
        ["--degrees", "5,-5"],
        ["--shears", "1,2,3"],
        ["--num-control-points", "9"],
    ] {
        is_refused(&[&["sample", &source], &common[..], &wrong[..]].concat());
    }
}

/// The patches of the first volume touch planes of 512 x 512; those of the second one small chunks.
#[test]
fn slow_volumes_are_named_with_what_a_conversion_saves() {
    let place = Place::new();
    let write = |name: &str, chunk: [u64; 3]| {
        let path = place.at(name);
        fs::create_dir(&path).expect("the folder is ours");
        let metadata = json!({"zarr_format": 2, "shape": [64, 512, 512], "chunks": chunk, "dtype": "|u1",
            "compressor": null, "fill_value": 0, "order": "C", "filters": null});
        fs::write(place.at(&format!("{name}/.zarray")), metadata.to_string())
            .expect("the folder is ours");
        path
    };
    let (slow, fast) = (
        write("slow.zarr", [1, 512, 512]),
        write("fast.zarr", [32, 32, 32]),
    );
    let size = ["--patch-size", "32", "--samples-per-subject", "2"];
    let told = json(&[&["sample", &slow, &fast][..], &size].concat());
    let info = json(&["info", &slow]);
    let lines = told["slow"].as_array().expect("a list");
    let cost = "256.0: a 32 x 32 x 32 patch touches 32 chunks of 1 x 512 x 512; convert it first for 14.5 times fewer";
    assert_eq!(
        lines,
        &[json!(format!(
            "{slow}: voxels decoded for each voxel of a patch: {cost}"
        ))]
    );
    assert_eq!(info["decoded_per_voxel"], json!(28.4));
    assert!(
        json(&[&["sample", &fast][..], &size].concat())
            .get("slow")
            .is_none()
    );
    let text = succeeds(&[&["sample", &slow][..], &size].concat());
    assert!(text.contains(cost), "{text}");
}
