//! `--spacing`, `--orientation`, `--like` and `--interpolation`: the same grid and voxels in every command.

use serde_json::json as value;
use voxpatch::volume::{Interpolation, Orientation, Resample, VoxelGrid};
use voxpatch::{DType, Geometry, Padding, Patch, Region, VolumeExt};

use crate::tool::{Place, fails, is_refused, json, ramp, succeeds, voxels};

fn whole(path: &str, resample: &Resample) -> Patch {
    let volume = voxpatch::open(path).expect("the volume opens");
    let volume = volume.resampled(resample).expect("the grid is sound");
    let whole = Region::whole(volume.layout().shape);
    volume.read(whole).expect("the volume reads")
}

/// Returns the voxels of a volume on the grid of another one.
fn on_grid_of(path: &str, other: &str) -> Patch {
    let other = voxpatch::open(other).expect("the volume opens");
    let resample = Resample::default()
        .with_like(Some(VoxelGrid::of(other.layout())))
        .with_outside(Padding::Edge);
    whole(path, &resample)
}

/// Axes x to the left, y up, z to anterior.
fn turned() -> Geometry {
    Geometry::from_affine([
        [-0.5, 0.0, 0.0, 10.0],
        [0.0, 0.0, 2.0, 20.0],
        [0.0, 1.0, 0.0, 30.0],
        [0.0, 0.0, 0.0, 1.0],
    ])
}

#[test]
fn info_reports_the_grid_that_convert_writes() {
    let place = Place::new();
    let source = place.store_at("scan.nii", [20, 24, 28], 1, ramp(20 * 24 * 28), turned());
    assert_eq!(json(&["info", &source])["orientation"], value!("LSA"));
    let cases: [(&[&str], [u64; 3], &str); 4] = [
        (&["--spacing", "1.5"], [27, 16, 9], "LSA"),
        (
            &["--spacing", "2,0.5,0.25", "--interpolation", "cubic"],
            [20, 48, 56],
            "LSA",
        ),
        (&["--orientation", "RAS"], [24, 20, 28], "RAS"),
        (
            &["--orientation", "PIR", "--spacing", "3", "--antialias"],
            [5, 8, 13],
            "PIR",
        ),
    ];
    for (n, (words, shape, orientation)) in cases.into_iter().enumerate() {
        let info = json(&[&["info", &source], words].concat());
        assert_eq!(info["shape"], value!(shape), "{words:?}");
        assert_eq!(info["orientation"], value!(orientation));
        let target = place.at(&format!("{n}.nii"));
        succeeds(&[&["convert", &source, &target], words].concat());
        let written = voxpatch::open(&target).unwrap();
        let written = written.layout();
        assert_eq!(written.shape, shape);
        let affine = value!(written.geometry.affine);
        for (row, told) in info["affine"].as_array().unwrap().iter().enumerate() {
            for column in 0..4 {
                let [one, other] = [told, &affine[row]].map(|row| row[column].as_f64().unwrap());
                assert!((one - other).abs() < 1e-5, "{words:?}: {one} {other}");
            }
        }
        let has = |word: &str| words.contains(&word);
        let spacing = match n {
            0 => Some([1.5; 3]),
            1 => Some([2.0, 0.5, 0.25]),
            3 => Some([3.0; 3]),
            _ => None,
        };
        let orientation: Orientation = orientation.parse().unwrap();
        let resample = Resample::default()
            .with_spacing(spacing)
            .with_orientation(has("--orientation").then_some(orientation))
            .with_antialias(has("--antialias"))
            .with_interpolation(if has("cubic") {
                Interpolation::Cubic
            } else {
                Interpolation::Linear
            });
        let expected = whole(&source, &resample);
        assert!(voxels(&target).bytes() == expected.bytes(), "{words:?}");
    }
}

#[test]
fn a_volume_is_brought_to_the_grid_of_another_and_the_rest_is_outside() {
    let place = Place::new();
    let source = place.small("scan.zarr");
    let grid = Geometry::from_parts([2.5, 1.2, 0.8], [25.0, 18.0, 12.0]);
    let like = place.store_at("like.nii", [9, 10, 11], 1, vec![0_u8; 990], grid);
    let target = place.at("on_grid.nii");
    let words = ["--like", &like, "--outside", "-1000", "--box", "0:8,:,2:"];
    succeeds(&[&["convert", &source, &target][..], &words].concat());
    let resample = Resample::default()
        .with_like(Some(VoxelGrid::new([9, 10, 11], grid)))
        .with_outside(voxpatch::Padding::Constant(-1000.0));
    let volume = voxpatch::open(&source)
        .unwrap()
        .resampled(&resample)
        .unwrap();
    let expected = volume.read(Region::new([0, 0, 2], [8, 10, 9])).unwrap();
    let found = voxels(&target);
    assert!(found.bytes() == expected.bytes());
    assert_eq!(found.as_slice::<i16>().unwrap()[0], -1000);
}

#[test]
fn label_maps_and_masks_follow_the_image_to_its_grid() {
    let place = Place::new();
    let count = 20 * 24 * 28;
    let labels: Vec<u8> = (0..count)
        .map(|n| u8::from(n % 28 > 13 && n / 672 > 11))
        .collect();
    let image: Vec<i16> = labels.iter().map(|&label| 100 * i16::from(label)).collect();
    let image = place.store_at("scan.zarr", [20, 24, 28], 1, image, turned());
    let labels = place.store_at("label.nii", [20, 24, 28], 1, labels, turned());
    let grid = [
        "--spacing",
        "1.3,0.9,0.7",
        "--orientation",
        "RAS",
        "--interpolation",
        "nearest",
    ];
    let out = place.at("patches.zarr");
    let words = [
        "--labels",
        &labels,
        "--label-weights",
        "1:1",
        "--patch-size",
        "1",
    ];
    let more = ["--samples-per-subject", "40", "--out", &out];
    succeeds(&[&["sample", &image][..], &words, &more, &grid].concat());
    let patches = voxels(&out);
    assert_eq!(patches.dtype(), DType::I16);
    assert!(
        patches
            .as_slice::<i16>()
            .unwrap()
            .iter()
            .all(|&value| value == 100)
    );

    // Patches without foreground are left out.
    let target = place.at("out.nii");
    let words = [
        "--output-grid",
        "model",
        "--patch-size",
        "8",
        "--overlap",
        "0",
        "--mask",
        &labels,
        "--fill",
        "-5",
    ];
    let done = json(&[&["infer", &image, &target][..], &words, &grid].concat());
    assert!(done["patches_skipped"].as_u64().unwrap() > 0, "{done}");
    let resample = Resample::default()
        .with_spacing(Some([1.3, 0.9, 0.7]))
        .with_orientation(Some("RAS".parse().unwrap()))
        .with_interpolation(Interpolation::Nearest);
    let expected = whole(&image, &resample);
    let found = voxels(&target);
    assert_eq!(found.shape(), expected.shape());
    let pairs = found.as_slice::<i16>().unwrap().iter();
    for (&found, &expected) in pairs.zip(expected.as_slice::<i16>().unwrap()) {
        assert!(found == expected || found == -5, "{found} {expected}");
        assert!(expected == 0 || found == 100);
    }
    let picture = place.at("out.png");
    let drawn = json(
        &[
            &["preview", &image, &picture, "--overlay", &labels][..],
            &grid,
        ]
        .concat(),
    );
    assert_eq!(drawn["labels_shown"], 1);
}

#[test]
fn predictions_on_another_grid_are_written_on_that_of_the_source() {
    let place = Place::new();
    let source = place.store_at("scan.nii", [20, 24, 28], 1, ramp(20 * 24 * 28), turned());
    let words = [
        "--patch-size",
        "10",
        "--overlap",
        "5",
        "--model",
        "gaussian:0.7",
        "--dtype",
        "float32",
    ];
    let grid = ["--spacing", "1.3,0.9,0.7", "--orientation", "RAS"];
    let infer = |name: &str, more: &[&str]| {
        let target = place.at(name);
        let all = [&["infer", &source, &target][..], &words, &grid, more].concat();
        (json(&all), target)
    };
    let (_, model) = infer("model.nii", &["--output-grid", "model"]);
    let own = voxpatch::open(&source).unwrap();
    let expected = on_grid_of(&model, &source);
    let (_, all) = infer("all.nii", &[]);
    assert_eq!(
        voxpatch::open(&all).unwrap().layout().geometry,
        own.layout().geometry
    );
    // The header of the prediction has its affine in 32 bits.
    let written = voxels(&all);
    let pairs = written.as_slice::<f32>().unwrap().iter();
    for (found, twin) in pairs.zip(expected.as_slice::<f32>().unwrap()) {
        assert!((found - twin).abs() < 0.05, "{found} {twin}");
    }
    let cases: [&[&str]; 4] = [
        &["--output-grid", "source", "--threads", "1", "--chunk", "8"],
        &[
            "--threads",
            "3",
            "--batch-size",
            "3",
            "--chunk",
            "16",
            "--shard",
            "16",
        ],
        &[
            "--memory",
            "1500KiB",
            "--threads",
            "1",
            "--chunk",
            "4",
            "--shard",
            "4",
        ],
        &["--resume", "--chunk", "8"],
    ];
    for (n, more) in cases.into_iter().enumerate() {
        let (_, out) = infer(&format!("{n}.zarr"), more);
        assert!(voxels(&out).bytes() == written.bytes(), "{more:?}");
    }
    for part in ["1/2", "0/2"] {
        let (done, out) = infer("parts.zarr", &["--part", part, "--chunk", "8"]);
        if done["whole"] == true {
            assert!(voxels(&out).bytes() == written.bytes());
        }
    }
    assert!(std::path::Path::new(&place.at("parts.zarr")).exists());
    let (plan, _) = infer("plan.zarr", &["--dry-run"]);
    assert!(
        plan["live_bytes"].as_u64().unwrap() > 0
            && !std::path::Path::new(&place.at("plan.zarr")).exists()
    );
    // A box counts voxels of the model's grid.
    let (boxed, _) = infer("box.nii", &["--box", "0:12,0:12,0:12"]);
    assert_eq!(boxed["shape"], value!([12, 12, 12]));
    let target = place.at("no.nii");
    let refused = |more: &[&str]| {
        let all = [&["infer", &source, &target][..], &words, &grid, more].concat();
        fails(&all)
    };
    let text = refused(&["--box", "0:12,0:12,0:12", "--output-grid", "source"]);
    assert!(text.contains("--output-grid model"), "{text}");
    assert!(refused(&["--blend", "crop"]).contains("crop"));
    assert!(!std::path::Path::new(&place.at("no.nii")).exists());
}

#[test]
fn predictions_on_an_oblique_grid_are_written_on_that_of_the_source() {
    let place = Place::new();
    let source = place.store_at("scan.nii", [20, 24, 28], 1, ramp(20 * 24 * 28), turned());
    // Turned by 0.3 about x and sheared, and larger than the scan.
    let (sin, cos) = 0.3_f64.sin_cos();
    let oblique = Geometry::from_affine([
        [1.0, 0.1, 0.0, -12.0],
        [0.0, 1.2 * cos, -1.1 * sin, 22.0],
        [0.0, 1.2 * sin, 1.1 * cos, 8.0],
        [0.0, 0.0, 0.0, 1.0],
    ]);
    let like = place.store_at(
        "like.nii",
        [50, 62, 36],
        1,
        vec![0_u8; 50 * 62 * 36],
        oblique,
    );
    let infer = |name: &str, more: &[&str]| {
        let target = place.at(name);
        let words = ["--patch-size", "12", "--overlap", "6", "--dtype", "float32"];
        let grid = ["--like", &like, "--model", "gaussian:0.7"];
        let all = [&["infer", &source, &target][..], &words, &grid, more].concat();
        (json(&all), target)
    };
    let (_, model) = infer("model.nii", &["--output-grid", "model"]);
    let expected = on_grid_of(&model, &source);
    let (done, all) = infer("all.nii", &[]);
    assert_eq!(done["uncovered_voxels"], 0);
    let written = voxels(&all);
    let pairs = written.as_slice::<f32>().unwrap().iter();
    for (found, twin) in pairs.zip(expected.as_slice::<f32>().unwrap()) {
        assert!((found - twin).abs() < 0.05, "{found} {twin}");
    }
    let cases: [&[&str]; 3] = [
        &["--threads", "1", "--chunk", "8"],
        &["--memory", "6MiB", "--threads", "2", "--chunk", "8"],
        &["--resume", "--chunk", "4"],
    ];
    for (n, more) in cases.into_iter().enumerate() {
        let (_, out) = infer(&format!("{n}.zarr"), more);
        assert!(voxels(&out).bytes() == written.bytes(), "{more:?}");
    }
    for part in ["1/2", "0/2"] {
        infer("parts.zarr", &["--part", part, "--chunk", "8"]);
    }
    assert!(voxels(&place.at("parts.zarr")).bytes() == written.bytes());
}

#[test]
fn maps_and_inputs_are_resampled_to_the_grid_of_one_of_them() {
    let place = Place::new();
    let fine = Geometry::from_parts([1.0, 0.5, 0.5], [0.25, 1.25, -0.5]);
    let scan = place.store_at("scan.nii", [12, 20, 24], 1, ramp(12 * 20 * 24), fine);
    let coarse = Geometry::from_parts([2.0; 3], [-2.0, -1.0, -4.0]);
    let labels = vec![1_u8; 10 * 10 * 10];
    let labels = place.store_at("labels.nii", [10; 3], 1, labels, coarse);
    let all = [
        "sample",
        &scan,
        "--samples-per-subject",
        "5",
        "--patch-size",
        "4",
    ];
    let with = |more: &[&'static str]| [&all[..], &["--labels", &labels], more].concat();
    assert!(fails(&with(&[])).contains("extent"));
    // Patches are cut from the scan's own voxels.
    for (grid, shape) in [("source", [12, 20, 24]), ("labels", [10; 3])] {
        let list = place.at(&format!("{grid}.csv"));
        let out = place.at(&format!("{grid}.npy"));
        succeeds(
            &[
                &with(&["--grid", grid])[..],
                &["--locations", &list, "--out", &out],
            ]
            .concat(),
        );
        let resample = match grid {
            "source" => Resample::default(),
            _ => Resample::default().with_like(Some(VoxelGrid::new([10; 3], coarse))),
        };
        let volume = voxpatch::open(&scan).unwrap().resampled(&resample).unwrap();
        assert_eq!(volume.layout().shape, shape);
        let bytes = 64 * volume.layout().dtype.size();
        let file = std::fs::read(&out).unwrap();
        let patches = &file[file.len() - 5 * bytes..];
        let text = std::fs::read_to_string(&list).unwrap();
        for (n, line) in text.lines().enumerate() {
            let ends: Vec<u64> = line.split(',').map(|n| n.trim().parse().unwrap()).collect();
            let start = [ends[0], ends[1], ends[2]].map(u64::cast_signed);
            let patch = volume.read(Region::new(start, [4; 3])).unwrap();
            assert!(
                patches[n * bytes..][..bytes] == *patch.bytes(),
                "{grid} {line}"
            );
        }
    }
    assert!(fails(&with(&["--grid", "weights"])).contains("--grid weights needs --weights"));
    is_refused(&with(&["--grid", "source", "--spacing", "1"]));
}

#[test]
fn impossible_grids_are_refused() {
    let place = Place::new();
    let source = place.small("scan.nii");
    let plain = place.small("plain.npy");
    let line = fails(&["info", &plain, "--spacing", "1"]);
    assert!(line.contains("does not state the spacing"), "{line}");
    let line = fails(&["info", &source, "--like", &plain]);
    assert!(line.contains("does not state the spacing"), "{line}");
    let line = fails(&[
        "info",
        &source,
        "--spacing",
        "2",
        "--interpolation",
        "nearest",
        "--antialias",
    ]);
    assert!(line.contains("antialiasing"), "{line}");
    let line = fails(&[
        "info",
        &source,
        "--like",
        &source,
        "--spacing",
        "2",
        "--outside",
        "0.5",
    ]);
    assert!(line.contains("0.5"), "{line}");
    for words in [
        ["--spacing", "0"],
        ["--spacing", "1,2"],
        ["--spacing", "nan"],
        ["--orientation", "RAR"],
        ["--interpolation", "bspline"],
        ["--outside", "mirror"],
    ] {
        is_refused(&[&["info", &source][..], &words].concat());
    }
}
