//! `voxpatch infer` from outside: placement, masks, reductions, and resources.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use voxpatch::{OpenOptions, Region, Volume, VolumeExt};

use crate::tool::{Place, command, fails, is_refused, json, names, ramp, succeeds, voxels};

fn infer<'a>(source: &'a str, target: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec![
        "infer",
        source,
        target,
        "--patch-size",
        "10,12,9",
        "--overlap",
        "4,6,3",
    ];
    words.extend(more);
    words
}

#[test]
fn every_placement_and_padding_gives_the_volume_back() {
    let place = Place::new();
    let source = place.small("in.zarr");
    for (n, more) in [
        &["--placement", "even"][..],
        &["--placement", "padded", "--blend", "linear"],
        &["--padding", "reflect", "--blend", "crop"],
        &["--padding", "constant:-1000", "--margin", "9"],
        &["--preset", "nnunet"],
        &["--preset", "monai", "--batch-size", "3"],
        &["--accumulator", "f32", "--blend", "gaussian:0.2"],
    ]
    .into_iter()
    .enumerate()
    {
        let target = place.at(&format!("{n}.zarr"));
        let told = json(&infer(&source, &target, more));
        assert_eq!(told["uncovered_voxels"], 0);
        assert_eq!(voxels(&source).bytes(), voxels(&target).bytes(), "{more:?}");
    }
}

#[test]
fn a_volume_smaller_than_a_patch_is_refused_unless_it_is_padded() {
    let place = Place::new();
    let (source, target) = (place.small("in.zarr"), place.at("out.zarr"));
    let mut words = vec![
        "infer",
        &source,
        &target,
        "--patch-size",
        "32",
        "--overlap",
        "8",
    ];
    let told = fails(&words);
    assert!(
        told.contains("32 voxels along z") && told.contains("20"),
        "{told}"
    );
    words.extend(["--padding", "edge"]);
    // Along x, 28 voxels and half the overlap at both faces.
    assert_eq!(json(&words)["patches"], 2);
    assert_eq!(voxels(&source).bytes(), voxels(&target).bytes());
}

#[test]
fn a_mask_spares_patches_and_its_complement_gets_the_fill_value_or_the_vote() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let mask = place.at("mask.raw");
    // A sixteenth of the resolution, with foreground in one corner.
    let coarse: Vec<u8> = (0..5 * 6 * 7).map(|n| u8::from(n == 0)).collect();
    fs::write(&mask, coarse).expect("a mask");
    let sidecar = r#"{"shape": [5, 6, 7], "dtype": "uint8"}"#;
    fs::write(place.at("mask.raw.json"), sidecar).expect("a sidecar");
    for (more, far) in [(&["--fill", "-77"][..], -77), (&["--vote", "-500"], -500)] {
        let target = place.at(&format!("{far}.zarr"));
        let mut words = infer(&source, &target, &["--mask", &mask]);
        words.extend(more);
        // Neither the mask nor the volume has a geometry, so nothing explains the different voxel sizes.
        assert!(fails(&words).contains("--same-grid"));
        words.push("--same-grid");
        let told = json(&words);
        assert_eq!(told["patches"], 1);
        assert_eq!(told["patches_skipped"], 3 * 3 * 5 - 1);
        let (found, source) = (voxels(&target), voxels(&source));
        let (found, source) = (
            found.as_slice::<i16>().expect("i16"),
            source.as_slice::<i16>().expect("i16"),
        );
        assert_eq!(found[0], source[0]);
        assert_eq!(found[found.len() - 1], far);
        assert_eq!(told["uncovered_voxels"].as_u64() > Some(0), far == -77);
    }
}

#[test]
fn reductions_have_their_own_types_and_labels() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let model = ["--model", "threshold:0,1000", "--blend", "crop"];
    let classes = |name: &str, more: &[&str]| {
        let target = place.at(name);
        let mut words = infer(&source, &target, &model);
        words.extend(more);
        succeeds(&words);
        voxels(&target)
    };
    let argmax = classes("argmax.zarr", &["--reduce", "argmax"]);
    let labels = classes("labels.npy", &["--reduce", "argmax", "--labels", "4,0,900"]);
    let table = [4_u16, 0, 900];
    let argmax = argmax.as_slice::<u8>().expect("u8");
    for (class, label) in argmax.iter().zip(labels.as_slice::<u16>().expect("u16")) {
        assert_eq!(table[usize::from(*class)], *label);
    }
    assert!([0, 1, 2].iter().all(|class| argmax.contains(class)));
    let bytes = classes("bytes.zarr", &["--reduce", "quantize:0,1"]);
    let softmax = classes("softmax.zarr", &["--reduce", "softmax"]);
    let above = classes("above.zarr", &["--reduce", "threshold:0.5"]);
    assert_eq!(
        (bytes.channels(), softmax.channels(), above.channels()),
        (3, 3, 3)
    );
    let winner = (1_f32.exp()) / (1_f32.exp() + 2.0);
    let voxels = argmax.len();
    for (n, class) in argmax.iter().enumerate() {
        let at = usize::from(*class) * voxels + n;
        assert_eq!(bytes.as_slice::<u8>().expect("u8")[at], 255);
        assert_eq!(above.as_slice::<u8>().expect("u8")[at], 1);
        assert!((softmax.as_slice::<f32>().expect("f32")[at] - winner).abs() < 1e-6);
    }
}

#[test]
fn a_dry_run_says_what_it_takes_and_writes_nothing() {
    let place = Place::new();
    let (source, target) = (place.small("in.zarr"), place.at("out.zarr"));
    let told = json(&infer(&source, &target, &["--dry-run"]));
    assert_eq!(told["patches"], 3 * 3 * 5);
    assert_eq!(told["passes"], 1);
    assert_eq!(told["output_bytes"], 20 * 24 * 28 * 2);
    for key in [
        "live_bytes",
        "peak_bytes",
        "estimated_seconds",
        "stored_input_bytes",
    ] {
        assert!(told[key].as_f64() > Some(0.0), "{key}: {told}");
    }
    assert_eq!(names(place.path()), ["in.zarr"]);
}

#[test]
fn killed_at_any_moment_a_run_is_gone_on_with_to_the_same_bytes() {
    let place = Place::new();
    let source = place.at("in.npy");
    let voxels: Vec<i16> = ramp(30_000)
        .into_iter()
        .cycle()
        .take(80 * 64 * 64)
        .collect();
    place.store("in.npy", [80, 64, 64], 1, voxels);
    let flags = [
        "--patch-size",
        "24",
        "--overlap",
        "12",
        "--model",
        "gaussian:1",
        "--chunk",
        "16",
        "--shard",
        "none",
        "--pyramid",
        "mean",
        "--threads",
        "2",
    ];
    let words = |target: &str| -> Vec<String> {
        let begin = ["infer", &source, target].into_iter();
        begin.chain(flags).map(str::to_owned).collect()
    };
    let run = |words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        succeeds(&words);
    };
    let unbroken = place.at("unbroken.zarr");
    let began = Instant::now();
    run(&words(&unbroken));
    let whole = began.elapsed();
    let killed = place.at("killed.zarr");
    let mut resumed = words(&killed);
    resumed.push("--resume".to_owned());
    let mut kills = 0;
    for n in 0..12_u32 {
        let words: Vec<&str> = resumed.iter().map(String::as_str).collect();
        let mut child = command(&words)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        thread::sleep(whole * (n * 7 % 12) / 24);
        if child.try_wait().expect("a child").is_none() {
            child.kill().expect("SIGKILL");
            kills += 1;
        }
        child.wait().expect("a child");
        // It may be killed after it has renamed the output, which is then complete.
        if Path::new(&killed).exists() {
            break;
        }
    }
    assert!(kills > 2, "only {kills} runs were killed");
    if !Path::new(&killed).exists() {
        run(&resumed);
    }
    for level in 0..3 {
        let read = |path: &str| {
            let options = OpenOptions::default().with_level(level);
            let volume = options.open(path).expect("a volume");
            volume
                .read(Region::whole(volume.layout().shape))
                .expect("its voxels")
        };
        assert!(read(&unbroken) == read(&killed), "level {level}");
    }
    assert_eq!(chunk_files(&unbroken), chunk_files(&killed));
    let told = json(&["verify", &killed]);
    assert_eq!(told["damaged"], serde_json::json!([]), "{told}");
}

/// Returns the names and bytes of all chunks.
fn chunk_files(path: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(path).to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let entry = entry.expect("an entry").path();
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.file_name().is_some_and(|name| name != "zarr.json") {
                let name = entry
                    .strip_prefix(path)
                    .expect("below")
                    .display()
                    .to_string();
                found.push((name, fs::read(&entry).expect("a chunk")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn parts_are_written_apart_and_the_last_puts_them_together() {
    let place = Place::new();
    let (source, whole) = (place.small("in.zarr"), place.at("whole.zarr"));
    let store = ["--chunk", "8", "--shard", "none"];
    succeeds(&infer(&source, &whole, &store));
    let target = place.at("parts.zarr");
    for (n, part) in ["1/3", "0/3", "2/3"].into_iter().enumerate() {
        let mut words = infer(&source, &target, &store);
        words.extend(["--part", part]);
        let told = json(&words);
        assert_eq!(told["part"], part);
        assert_eq!(told["whole"], n == 2);
    }
    assert_eq!(chunk_files(&whole), chunk_files(&target));
    for part in ["3/3", "1", "a/b", "1/0"] {
        let mut words = infer(&source, &target, &store);
        words.extend(["--part", part]);
        is_refused(&words);
    }
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    let place = Place::new();
    let (source, target) = (place.small("in.zarr"), place.at("out.zarr"));
    for more in [
        &["--blend", "hann:2"][..],
        &["--blend", "gaussian:wide"],
        &["--placement", "here"],
        &["--padding", "mirror"],
        &["--padding", "edge:3"],
        &["--margin", "3"],
        &["--vote", "1"],
        &["--reduce", "quantize:1"],
        &["--reduce", "median"],
        &["--preset", "caffe"],
        &["--batch-size", "0"],
    ] {
        is_refused(&infer(&source, &target, more));
    }
    for (more, named) in [
        (&["--blend", "gaussian:0"][..], "sigma"),
        (&["--reduce", "quantize:2,1"], "quantization range"),
        (&["--reduce", "argmax", "--labels", "1,2"], "2 labels"),
        (&["--mask", "nowhere.nii"], "nowhere.nii"),
        (
            &["--preset", "monai", "--accumulator", "f16"],
            "accumulator",
        ),
    ] {
        let told = fails(&infer(&source, &target, more));
        assert!(told.contains(named), "{told}");
    }
    assert_eq!(names(place.path()), ["in.zarr"]);
}
