//! `voxpatch infer` from outside: where patches lie, masks, reductions, and what a run takes.

use std::fs;

use crate::tool::{Place, fails, is_refused, json, names, succeeds, voxels};

fn infer<'a>(source: &'a str, target: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec![
        "infer",
        source,
        target,
        "--patch",
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
        &["--preset", "monai", "--batch", "3"],
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
    let mut words = vec!["infer", &source, &target, "--patch", "32", "--overlap", "8"];
    let told = fails(&words);
    assert!(
        told.contains("32 voxels along z") && told.contains("20"),
        "{told}"
    );
    words.extend(["--padding", "edge"]);
    assert_eq!(json(&words)["patches"], 1);
    assert_eq!(voxels(&source).bytes(), voxels(&target).bytes());
}

#[test]
fn a_mask_spares_patches_and_its_complement_gets_the_fill_value_or_the_vote() {
    let place = Place::new();
    let source = place.small("in.zarr");
    let mask = place.at("mask.raw");
    // A sixteenth of the resolution, foreground in one corner.
    let coarse: Vec<u8> = (0..5 * 6 * 7).map(|n| u8::from(n == 0)).collect();
    fs::write(&mask, coarse).expect("a mask");
    let sidecar = r#"{"shape": [5, 6, 7], "dtype": "uint8"}"#;
    fs::write(place.at("mask.raw.json"), sidecar).expect("a sidecar");
    for (more, far) in [(&["--fill", "-77"][..], -77), (&["--vote", "-500"], -500)] {
        let target = place.at(&format!("{far}.zarr"));
        let mut words = infer(&source, &target, &["--mask", &mask]);
        words.extend(more);
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
    let bytes = classes("bytes.zarr", &["--reduce", "quantise:0,1"]);
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
    assert_eq!(told["columns"], 1);
    assert_eq!(told["output_bytes"], 20 * 24 * 28 * 2);
    for key in [
        "live_bytes",
        "peak_bytes",
        "guessed_seconds",
        "stored_input_bytes",
    ] {
        assert!(told[key].as_f64() > Some(0.0), "{key}: {told}");
    }
    assert_eq!(names(place.path()), ["in.zarr"]);
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
        &["--reduce", "quantise:1"],
        &["--reduce", "median"],
        &["--preset", "caffe"],
        &["--batch", "0"],
    ] {
        is_refused(&infer(&source, &target, more));
    }
    for (more, named) in [
        (&["--blend", "gaussian:0"][..], "sigma"),
        (&["--reduce", "quantise:2,1"], "quantising from"),
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
