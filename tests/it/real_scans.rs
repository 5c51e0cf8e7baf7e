//! Real scans, written by other software, through the commands.

use std::path::Path;

use serde_json::{Value as Json, json};
use voxpatch::VolumeExt;

use crate::tool::{Place, json, scans, voxels};

/// The path of a scan, as an argument.
fn at(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().expect("UTF-8").to_owned()
}

const LUNG: &str = "ct_lung1_nrrd/lung1_image.nrrd";
const TUMOUR: &str = "ct_lung1_nrrd/lung1_label.nrrd";
const BRAIN: &str = "mr_colin27/ch2.nii.gz";
const REGIONS: &str = "mr_colin27/aal.nii.gz";
const EM: &str = "em_fib25_ome_zarr/em_fib25_s2_v05_sharded.ome.zarr";
const NEURONS: &str = "em_fib25_ome_zarr/em_fib25_s2_v05_sharded.ome.zarr/labels/neurons";
const TOOTH: &str = "ct_tooth_nhdr_bigendian/tooth.nhdr";
const SLOPED: &str = "nifti/scct_uint8_slope.nii";
const SERIES: &str = "nifti/example4d.nii.gz";
const SERIES_ZARR: &str = "zarr/nifti_zarr_py_example4d.nii.zarr";

fn near(found: &Json, expected: &[f64]) {
    let found = found.as_array().expect("a list");
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let found = found.as_f64().expect("a number");
        assert!(
            (found - expected).abs() <= 1e-4 * expected.abs().max(1e-4),
            "{found} is not {expected}"
        );
    }
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn info_agrees_with_what_is_known_of_each_scan() {
    let folder = scans();
    for (name, format, shape, channels, dtype, spacing) in [
        (
            LUNG,
            "nrrd",
            [48, 512, 512],
            1,
            "int16",
            [5.0, 0.5703, 0.5703],
        ),
        (
            TUMOUR,
            "nrrd",
            [48, 512, 512],
            1,
            "int16",
            [5.0, 0.5703, 0.5703],
        ),
        (BRAIN, "nifti-1", [181, 217, 181], 1, "uint8", [1.0; 3]),
        (TOOTH, "nrrd", [161, 94, 103], 1, "uint16", [1.0; 3]),
        (SLOPED, "nifti-1", [91, 109, 91], 1, "uint8", [2.0; 3]),
        (
            SERIES,
            "nifti-1",
            [24, 96, 128],
            2,
            "int16",
            [2.2, 2.0, 2.0],
        ),
        (
            SERIES_ZARR,
            "zarr-v2",
            [24, 96, 128],
            2,
            "int16",
            [2.2, 2.0, 2.0],
        ),
        (EM, "zarr-v3", [80, 250, 250], 1, "uint8", [1e-5; 3]),
        (NEURONS, "zarr-v3", [80, 250, 250], 1, "uint32", [1e-5; 3]),
    ] {
        let told = json(&["info", &at(&folder, name)]);
        assert_eq!(told["format"], format, "{name}");
        assert_eq!(told["shape"], json!(shape), "{name}");
        assert_eq!(told["channels"], channels, "{name}");
        let stored = told.get("stored_dtype").unwrap_or(&told["dtype"]);
        assert_eq!(stored, dtype, "{name}");
        near(&told["spacing"], &spacing);
    }
    let sloped = json(&["info", &at(&folder, SLOPED)]);
    assert_eq!(sloped["dtype"], "float32", "real values are not whole");
    assert!((sloped["slope"].as_f64().expect("it has one") - 14.88).abs() < 0.01);
    // LPS became RAS+.
    let lung = json(&["info", &at(&folder, LUNG)]);
    assert!(lung["affine"][0][0].as_f64() < Some(-0.57) && lung["affine"][2][2] == 5.0);
    let half = json(&["info", &at(&folder, EM), "--level", "1"]);
    assert_eq!(half["shape"], json!([80, 125, 125]));
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn the_same_scan_in_two_formats_has_the_same_voxels() {
    let folder = scans();
    for (a, b) in [
        (SERIES, SERIES_ZARR),
        (
            "nifti/example_nifti2.nii.gz",
            "zarr/nifti_zarr_py_example_nifti2.nii.zarr",
        ),
        ("nifti/big.nii.gz", "nifti/little.nii.gz"),
        (
            "ct_lung_mha/3DCT_lung_baseline_small.mha",
            "npy/3DCT_lung_baseline_small.npy",
        ),
    ] {
        assert_eq!(
            voxels(&at(&folder, a)),
            voxels(&at(&folder, b)),
            "{a} and {b}"
        );
    }
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn conversions_there_and_back_keep_values_and_geometry() {
    let folder = scans();
    let place = Place::new();
    for (n, name) in [LUNG, BRAIN, TOOTH, SLOPED, SERIES].into_iter().enumerate() {
        let source = at(&folder, name);
        let (zarr, nii) = (
            place.at(&format!("{n}.zarr")),
            place.at(&format!("{n}.nii")),
        );
        let told = json(&["convert", &source, &zarr]);
        assert!(
            told["stored_bytes"].as_u64() < told["decoded_bytes"].as_u64(),
            "{name}: {told}"
        );
        json(&["convert", &zarr, &nii]);
        let (a, b, c) = (voxels(&source), voxels(&zarr), voxels(&nii));
        assert!(a == b && b == c, "{name}");
        let [a, b, c] = [&source, &zarr, &nii].map(|path| json(&["info", path]));
        for row in 0..3 {
            let expected: Vec<f64> = a["affine"][row]
                .as_array()
                .expect("a row")
                .iter()
                .filter_map(Json::as_f64)
                .collect();
            near(&b["affine"][row], &expected);
            near(&c["affine"][row], &expected);
        }
        // Zarr does not have a slope that other programs read: it contains real values, as do conversions from it.
        assert!(b["slope"].is_null() && c["slope"].is_null(), "{name}");
    }
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn patches_of_real_scans_are_the_scan_s_own_voxels() {
    let folder = scans();
    let place = Place::new();
    for (n, name) in [LUNG, BRAIN, EM, TOOTH, SERIES].into_iter().enumerate() {
        let source = at(&folder, name);
        let (out, csv) = (place.at(&format!("{n}.npy")), place.at(&format!("{n}.csv")));
        json(&[
            "sample",
            &source,
            "--patch-size",
            "16,32,32",
            "--samples-per-subject",
            "8",
            "--out",
            &out,
            "--locations",
            &csv,
        ]);
        let whole = voxels(&source);
        let volume = voxpatch::open(&source).expect("it opens");
        let bytes = std::fs::read(&out).expect("patches");
        let size =
            usize::try_from(whole.channels()).expect("few") * 16 * 32 * 32 * whole.dtype().size();
        let csv = std::fs::read_to_string(&csv).expect("locations");
        assert_eq!(csv.lines().count(), 8);
        let patches = &bytes[bytes.len() - 8 * size..];
        for (line, found) in csv.lines().zip(patches.chunks_exact(size)) {
            let at: Vec<i64> = line
                .split(',')
                .map(|n| n.parse().expect("a number"))
                .collect();
            let region = voxpatch::Region::new([at[0], at[1], at[2]], [16, 32, 32]);
            assert_eq!(
                volume.read(region).expect("inside").bytes(),
                found,
                "{name}"
            );
        }
    }
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn the_identity_gives_real_scans_back() {
    let folder = scans();
    let place = Place::new();
    for (n, name) in [LUNG, BRAIN, EM, TOOTH, SLOPED].into_iter().enumerate() {
        let source = at(&folder, name);
        let crop = place.at(&format!("{n}-crop.zarr"));
        let told = json(&[
            "infer",
            &source,
            &crop,
            "--patch-size",
            "48,88,80",
            "--overlap",
            "20,32,8",
            "--blend",
            "crop",
            "--overwrite",
        ]);
        assert!(told["patches"].as_u64() > Some(3));
        let (a, b) = (voxels(&source), voxels(&crop));
        assert!(a == b, "{name} under crop");
        let hann = place.at(&format!("{n}-hann.zarr"));
        json(&[
            "infer",
            &source,
            &hann,
            "--patch-size",
            "48,88,80",
            "--overlap",
            "24,44,40",
            "--dtype",
            "float32",
        ]);
        let blended = voxels(&hann);
        let expected = a.converted(voxpatch::DType::F32);
        let pairs = expected.as_slice::<f32>().expect("f32").iter();
        for (&a, &b) in pairs.zip(blended.as_slice::<f32>().expect("f32")) {
            assert!((a - b).abs() <= 1e-6 * a.abs(), "{name}: {a} became {b}");
        }
    }
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn previews_of_real_scans_show_their_labels() {
    let folder = scans();
    let place = Place::new();
    // The middle of the tumor, of the whole brain and of the tissue.
    for (image, labels, at_voxel, least, window) in [
        (
            LUNG,
            TUMOUR,
            Some("33,358,218"),
            1,
            Some(json!([-1000.0, 400.0])),
        ),
        (BRAIN, REGIONS, None, 60, None),
        (EM, NEURONS, None, 30, None),
    ] {
        let (image, labels) = (at(&folder, image), at(&folder, labels));
        let out = place.at("out.png");
        let mut args = vec!["preview", &image, &out, "--overlay", &labels, "--overwrite"];
        args.extend(at_voxel.iter().flat_map(|at| ["--at", at]));
        let told = json(&args);
        assert!(told["labels_shown"].as_u64() >= Some(least), "{told}");
        assert!(
            window.is_none_or(|window| told["window"] == window),
            "{told}"
        );
        let size = std::fs::metadata(&out).expect("the picture").len();
        assert!((20_000..2_000_000).contains(&size), "{size} bytes");
    }
}
