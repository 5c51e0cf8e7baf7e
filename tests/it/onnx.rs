//! `infer` with networks from files, compared with separate computations.

use std::f64::consts::PI;
use std::fs;
use std::path::Path;

use ndarray::{Array3, Array4, Axis, Slice, s};
use voxpatch::inference::Onnx;
use voxpatch::{DType, Model, Patch, Region, Shape, builtin_model};

use crate::tool::{Place, fails, is_refused, json, names, succeeds, voxels};

const SHAPE: Shape = [12, 12, 16];
const PATCH: usize = 8;
const STARTS: [&[usize]; 3] = [&[0, 4], &[0, 4], &[0, 4, 8]];

fn file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/onnx");
    let path = folder.join(format!("{name}.onnx"));
    path.to_str().expect("UTF-8").to_owned()
}

/// Returns the HU of a ball in air, with noise.
fn scan() -> Vec<i16> {
    let mut seed = 1_u32;
    let index = Array3::<u8>::zeros([12, 12, 16]);
    let hu = index.indexed_iter().map(|((z, y, x), _)| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = i16::try_from(seed >> 24).expect("8 bits") - 128;
        let far = z.abs_diff(6).pow(2) + y.abs_diff(6).pow(2) + x.abs_diff(8).pow(2);
        noise + if far < 25 { 60 } else { -900 }
    });
    hu.collect()
}

/// Returns the predictions of all patches, weighted with Hann windows, by loops over all voxels.
fn blended(
    channels: usize,
    scan: &Array4<f32>,
    predict: impl Fn(Array4<f32>) -> Array4<f32>,
) -> Array4<f64> {
    let weight = |n: usize| -> f64 {
        let n = u32::try_from(n).expect("small");
        (PI * f64::from(n + 1) / 9.0).sin().powi(2)
    };
    let (_, nz, ny, nx) = scan.dim();
    let mut sum = Array4::<f64>::zeros([channels, nz, ny, nx]);
    let mut weights = Array3::<f64>::zeros([nz, ny, nx]);
    for &z0 in STARTS[0] {
        for &y0 in STARTS[1] {
            for &x0 in STARTS[2] {
                let cut = s![.., z0..z0 + PATCH, y0..y0 + PATCH, x0..x0 + PATCH];
                let out = predict(scan.slice(cut).to_owned());
                for ((c, z, y, x), value) in out.indexed_iter() {
                    let w = weight(z) * weight(y) * weight(x);
                    sum[[c, z0 + z, y0 + y, x0 + x]] += w * f64::from(*value);
                    if c == 0 {
                        weights[[z0 + z, y0 + y, x0 + x]] += w;
                    }
                }
            }
        }
    }
    sum / weights.insert_axis(Axis(0))
}

fn predict(model: &dyn Model, values: Array4<f32>) -> Array4<f32> {
    let (channels, z, y, x) = values.dim();
    let region = Region::whole([z, y, x].map(|n| n as u64));
    let values: Vec<f32> = values.into_iter().collect();
    let patch = Patch::new(region, channels as u64, values).expect("as many");
    let out = model
        .predict(vec![patch])
        .expect("it runs")
        .remove(0)
        .remove(0);
    out.converted(DType::F32).to_array().expect("f32")
}

fn real(path: &str) -> Array4<f32> {
    voxels(path).converted(DType::F32).to_array().expect("f32")
}

#[test]
fn labels_of_a_unet_equal_its_patches_blended_by_hand() {
    let place = Place::new();
    let source = place.store("ct.zarr", SHAPE, 1, scan());
    let target = place.at("labels.zarr");
    let unet = file("unet");
    let told = json(&[
        "infer",
        &source,
        &target,
        "--patch-size",
        "8",
        "--overlap",
        "4",
        "--model",
        &unet,
        "--normalize",
        "window:-1000,400",
        "--reduce",
        "argmax",
        "--threads",
        "2",
    ]);
    assert_eq!(told["patches"], 2 * 2 * 3);
    let scan = real(&source).mapv(|hu| (hu.clamp(-1000.0, 400.0) + 1000.0) / 1400.0);
    let model = Onnx::open(&unet).expect("it opens");
    let expected = blended(3, &scan, |values| predict(&model, values));
    let labels = voxels(&target);
    assert_eq!((labels.dtype(), labels.channels()), (DType::U8, 1));
    let labels = labels.to_array::<u8>().expect("uint8");
    let mut seen = [0; 3];
    for ((_, z, y, x), &label) in labels.indexed_iter() {
        let scores = [0, 1, 2].map(|c| expected[[c, z, y, x]]);
        let label = usize::from(label);
        let best = scores.into_iter().fold(0.0, f64::max);
        assert!(scores[label] >= best - 1e-6, "{label} {scores:?}");
        seen[label] += 1;
    }
    assert!(seen.iter().filter(|&&n| n > 20).count() > 1, "{seen:?}");
}

#[test]
fn normalizing_flipping_and_averaging_equal_the_same_by_hand() {
    let place = Place::new();
    let source = place.store("ct.zarr", SHAPE, 1, scan());
    let target = place.at("mean.zarr");
    let unet = file("unet");
    let told = json(&[
        "infer",
        &source,
        &target,
        "--patch-size",
        "8",
        "--overlap",
        "4",
        "--model",
        &unet,
        "--model",
        "threshold:-0.5,0.5",
        "--normalize",
        "zscore",
        "--tta",
        "flips",
    ]);
    assert_eq!(told["patches"], 2 * 2 * 3);
    let scan = real(&source);
    let (mean, deviation) = (scan.mean().expect("values"), scan.std(0.0));
    let scan = scan.mapv(|hu| (hu - mean) / deviation);
    let models: [Box<dyn Model>; 1] = [Box::new(Onnx::open(&unet).expect("it opens"))];
    let threshold = builtin_model("threshold:-0.5,0.5").expect("it is one");
    let flip = |values: &Array4<f32>, sides: u8| {
        let mut values = values.clone();
        for axis in (0..3).filter(|axis| sides >> axis & 1 == 1) {
            let turned = values
                .slice_axis(Axis(axis + 1), Slice::new(0, None, -1))
                .to_owned();
            values = turned;
        }
        values
    };
    let expected = blended(3, &scan, |values| {
        let mut sum = Array4::<f32>::zeros([3, PATCH, PATCH, PATCH]);
        for sides in 0..8 {
            for model in [&*models[0], &*threshold] {
                sum += &flip(&predict(model, flip(&values, sides)), sides);
            }
        }
        sum / 16.0
    });
    let found = voxels(&target);
    assert_eq!((found.dtype(), found.channels()), (DType::F32, 3));
    let found = found.to_array::<f32>().expect("float32");
    for (at, value) in found.indexed_iter() {
        let error = (f64::from(*value) - expected[at]).abs();
        assert!(error < 1e-4, "{at:?}: {value} {}", expected[at]);
    }
}

#[test]
fn models_that_do_not_fit_fail_with_one_line_and_leave_nothing() {
    let place = Place::new();
    let source = place.small("ct.zarr");
    let text = place.at("text.onnx");
    fs::write(&text, "not a network\n").expect("the folder is ours");
    let before = names(place.path());
    let target = place.at("out.zarr");
    let infer = |more: &[&str]| {
        let mut args = vec![
            "infer",
            &source,
            &target,
            "--patch-size",
            "8",
            "--overlap",
            "4",
        ];
        args.extend(more);
        fails(&args)
    };
    let missing = place.at("none.onnx");
    let (unet, two) = (file("unet"), file("conv"));
    let (tissue, operator) = (file("tissue"), file("wrong_operator"));
    for (args, told) in [
        (&["--model", &missing][..], "cannot open"),
        (&["--model", &text], "cannot use"),
        (&["--model", &two], "needs volumes of 2 channels, but"),
        (
            &["--model", &operator],
            "node \"node_7\" has the operator example.org.Frobnicate",
        ),
        (
            &["--model", &unet, "--model", &tissue],
            "tissue.onnx cannot be averaged",
        ),
        (
            &["--model", &unet, "--model", "identity"],
            "voxels of the volume's type",
        ),
        (&["--normalize", "zscore"], "voxels of the volume's type"),
        (&["--tta", "flips"], "voxels of the volume's type"),
    ] {
        let line = infer(args);
        assert!(line.contains(told), "{args:?}: {line}");
        assert_eq!(names(place.path()), before, "{args:?}");
    }
    let mut args = vec![
        "infer",
        &source,
        &target,
        "--patch-size",
        "8",
        "--overlap",
        "4",
    ];
    args.extend(["--normalize", "window:5,1"]);
    is_refused(&args);
}

#[test]
fn a_network_of_tissues_labels_a_scan() {
    let place = Place::new();
    let source = place.store("ct.zarr", SHAPE, 1, scan());
    let target = place.at("tissue.zarr");
    let tissue = file("tissue");
    succeeds(&[
        "infer",
        &source,
        &target,
        "--patch-size",
        "8",
        "--overlap",
        "4",
        "--blend",
        "crop",
        "--model",
        &tissue,
        "--reduce",
        "argmax",
    ]);
    let hu = real(&source);
    let labels = voxels(&target).to_array::<u8>().expect("uint8");
    // In the ball it is soft tissue; outside, where patches are whole, air or lung.
    assert_eq!(labels[[0, 6, 6, 8]], 2);
    let mean = |z: usize, y: usize, x: usize| {
        hu.slice(s![0, z - 1..z + 2, y - 1..y + 2, x - 1..x + 2])
            .mean()
            .expect("27 values")
    };
    for ((_, z, y, x), &label) in labels.slice(s![.., 1..11, 1..11, 1..15]).indexed_iter() {
        let mean = mean(z + 1, y + 1, x + 1);
        let distance = |tissue: f32| (mean - tissue).abs();
        let tissues = [-1000.0, -700.0, 40.0, 700.0].map(distance);
        let nearest = tissues.into_iter().fold(f32::INFINITY, f32::min);
        assert!(
            tissues[usize::from(label)] <= nearest + 1e-2,
            "{label} {mean}"
        );
    }
}
