//! Arrays that other software wrote: zarr-python, zarrita, zarr-java, zarrs, nifti-zarr.

use std::fs;

use super::*;
use crate::volume::suite::real_scans;

/// Returns all folders below `root` that contain an array.
fn arrays(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let v3 = fs::read_to_string(folder.join("zarr.json"));
        if folder.join(".zarray").exists() || v3.is_ok_and(|text| text.contains("\"array\"")) {
            found.push(folder);
            continue;
        }
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn real_scans_of_other_software_are_read_or_refused_with_a_reason() {
    let (mut read, mut refused) = (0, 0);
    for root in ["zarr", "em_fib25_ome_zarr"] {
        let root = real_scans().join(root);
        for array in arrays(&root) {
            let name = array.strip_prefix(&root).unwrap().display().to_string();
            match open(&array) {
                Ok(volume) => {
                    let patch = volume.read(Region::whole(volume.layout.shape));
                    patch.unwrap_or_else(|error| panic!("{name}: {}", error.with_causes()));
                    read += 1;
                }
                // One-dimensional, text, or an unsupported codec: delta, pcodec, zfp.
                Err(Error::Unsupported { what, .. }) => {
                    let reasons = ["is not a volume", "data type", "not supported"];
                    assert!(reasons.iter().any(|reason| what.contains(reason)), "{what}");
                    refused += 1;
                }
                Err(error) => panic!("{name}: {}", error.with_causes()),
            }
        }
    }
    assert_eq!((read, refused), (65, 59));
}

/// Returns all voxels as numbers.
fn numbers(path: &Path) -> Vec<f64> {
    let volume = open(path).unwrap();
    let all = volume
        .read(Region::whole(volume.layout.shape))
        .unwrap()
        .converted(DType::F64);
    bytemuck::pod_collect_to_vec(all.bytes())
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn real_scans_that_count_from_a_known_number_do() {
    let ramps = [
        ("zarrs_tests/v3_zarr_python/array_zlib.zarr", 0, 100),
        ("zarrs_tests/v3_zarr_python/array_adler32.zarr", 0, 100),
        ("zarrs_tests/v3_zarr_python/array_blosc.zarr", 0, 100),
        ("zarrs_tests/v3_zarr_python/array_none.zarr", 0, 100),
        ("zarrs_tests/v3_zarr_python/array_bz2.zarr", 0, 100),
        ("zarrs_tests/v3_zarr_python/array_gzip.zarr", 0, 100),
        ("zarrs_tests/v3_zarr_python/array_fletcher32.zarr", 0, 100),
        ("zarrs_tests/v3_zarr_python/array_zstd.zarr", 0, 100),
        ("zarrs_tests/v2/array_bz2_C.zarr", 0, 100),
        ("zarrs_tests/v2/array_zstd_C.zarr", 0, 100),
        ("zarrs_tests/v2/array_gzip_C.zarr", 0, 100),
        ("zarrs_tests/v2/array_none_C.zarr", 0, 100),
        ("zarrs_tests/v2/array_none_F.zarr", 0, 100),
        ("zarrs_tests/v2/array_blosc_F.zarr", 0, 100),
        ("zarrs_tests/v2/array_blosc_C.zarr", 0, 100),
        (
            "zarrs_tests/sharded_array_write_read.zarr/group/array",
            0,
            64,
        ),
        (
            "zarrita_js_fixtures_v3/data.zarr/3d.chunked.mixed.i2.F",
            0,
            27,
        ),
        ("zarrita_js_fixtures_v3/data.zarr/2d.chunked.i2", 1, 4),
        (
            "zarrita_js_fixtures_v3/data.zarr/2d.chunked.compressed.sharded.filled.i2",
            0,
            16,
        ),
        (
            "zarrita_js_fixtures_v3/data.zarr/3d.contiguous.compressed.sharded.i2",
            0,
            27,
        ),
        (
            "zarrita_js_fixtures_v3/data.zarr/2d.chunked.ragged.compressed.sharded.i2",
            1,
            9,
        ),
        (
            "zarrita_js_fixtures_v3/data.zarr/3d.chunked.mixed.compressed.sharded.i2",
            0,
            27,
        ),
        (
            "zarrita_js_fixtures_v3/data.zarr/3d.chunked.compressed.sharded.i2",
            0,
            64,
        ),
        (
            "zarrita_js_fixtures_v3/data.zarr/2d.chunked.ragged.i2",
            1,
            9,
        ),
        (
            "zarrita_js_fixtures_v2/data.zarr/3d.chunked.mixed.i2.F",
            0,
            27,
        ),
        (
            "zarrita_js_fixtures_v2/data.zarr/3d.chunked.mixed.i2.C",
            0,
            27,
        ),
        ("zarrita_js_fixtures_v2/data.zarr/3d.chunked.i2", 0, 27),
        (
            "zarrita_js_fixtures_v2/data.zarr/2d.chunked.ragged.i2",
            1,
            9,
        ),
        ("zarr_java_sharding_index_location/end", 0, 4096),
        ("zarr_java_sharding_index_location/start", 0, 4096),
    ];
    for (name, first, count) in ramps {
        let path = real_scans().join(format!("zarr/{name}"));
        let ramp: Vec<f64> = (first..first + count).map(f64::from).collect();
        assert_eq!(numbers(&path), ramp, "{name}");
    }
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn real_scans_have_the_sums_that_zarr_python_finds() {
    let em = "em_fib25_ome_zarr/em_fib25_s2_v05_sharded.ome.zarr";
    for (name, sum) in [
        (format!("{em}/s0"), 637_518_733.0),
        (format!("{em}/s1"), 158_753_641.0),
        (format!("{em}/labels/neurons/s0"), 137_818_704_747.0),
        (
            "zarr/nifti_zarr_py_example4d.nii.zarr/0".to_owned(),
            101_985_356.0,
        ),
        (
            "zarr/nifti_zarr_py_example4d.nii.zarr/1".to_owned(),
            12_732_026.0,
        ),
        ("zarr/zarr_java_ome/v0.5/labels/nuclei/0".to_owned(), 2010.0),
        ("zarr/zarr_java_v2_sample/bool".to_owned(), 63.0),
    ] {
        let path = real_scans().join(&name);
        let total: f64 = numbers(&path).iter().sum();
        assert!((total - sum).abs() < 0.5, "{name}: {total}");
    }
}

/// Returns the shape, spacing and origin of a level.
fn place(path: &Path, level: usize) -> ([u64; 3], [f64; 3], [f64; 3]) {
    let options = OpenOptions {
        level,
        ..OpenOptions::default()
    };
    let volume = ZarrVolume::open(path, &options).unwrap();
    let Layout {
        shape, geometry, ..
    } = volume.layout;
    let rounded = |lengths: [f64; 3]| lengths.map(|n| (n * 1e9).round() / 1e9);
    (shape, rounded(geometry.spacing), rounded(geometry.origin()))
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn levels_of_real_scans_are_placed_as_ome_zarr_says() {
    let em = real_scans().join("em_fib25_ome_zarr/em_fib25_s2_v05_sharded.ome.zarr");
    let fine = ([80, 250, 250], [1e-5; 3], [0.0; 3]);
    let coarse = ([80, 125, 125], [1e-5, 2e-5, 2e-5], [0.0, 5e-6, 5e-6]);
    for image in [em.clone(), em.join("labels/neurons"), em.join("labels")] {
        assert_eq!(place(&image, 0), fine, "{}", image.display());
        assert_eq!(place(&image, 1), coarse, "{}", image.display());
        let options = OpenOptions {
            level: 2,
            ..OpenOptions::default()
        };
        let refused = ZarrVolume::open(&image, &options).unwrap_err().to_string();
        assert!(refused.contains("no level 2"), "{refused}");
    }
    assert_eq!(place(&em.join("s1"), 0), coarse, "a level by its own path");
    let java = real_scans().join("zarr/zarr_java_ome");
    let micrometers = |n: f64| vec![n * 1e-3; 3];
    assert_eq!(place(&java.join("v0.4"), 0).1.to_vec(), micrometers(0.5));
    assert_eq!(place(&java.join("v0.4"), 1).1.to_vec(), micrometers(1.0));
    let well = place(&java.join("v0.5_hcs"), 0);
    assert_eq!(well.0, [4, 8, 8], "the first image of a plate");
    let scene = java.join("v0.6_scene/example1_instrument_registration.zarr/sampleA_instrument1");
    assert_eq!(place(&scene, 0).1.to_vec(), micrometers(1.0));
    let mri = real_scans().join("zarr/nifti_zarr_py_example4d.nii.zarr");
    assert_eq!(place(&mri, 0).0, [24, 96, 128]);
    assert!((place(&mri, 0).1[0] - 2.2).abs() < 1e-5);
}

/// Writes an array without chunks, and an image around it if axes are given.
fn of_axes(
    format: u8,
    shape: &[u64],
    names: &Json,
    axes: Option<Json>,
) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch();
    let path = dir.path().join("0");
    fs::create_dir(&path).unwrap();
    let put = |path: PathBuf, document: &Json| fs::write(path, document.to_string()).unwrap();
    if format == 3 {
        let mut document = json!({
            "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": "uint8", "fill_value": 7,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": vec![1; shape.len()]}},
            "chunk_key_encoding": {"name": "default"}, "codecs": [{"name": "bytes"}],
        });
        if !names.is_null() {
            document["dimension_names"] = names.clone();
        }
        put(path.join("zarr.json"), &document);
    } else {
        let document = json!({
            "zarr_format": 2, "shape": shape, "chunks": vec![1; shape.len()], "dtype": "|u1", "order": "C",
            "fill_value": 7, "compressor": null, "filters": null,
        });
        put(path.join(".zarray"), &document);
        if !names.is_null() {
            put(path.join(".zattrs"), &json!({"_ARRAY_DIMENSIONS": names}));
        }
    }
    if let Some(axes) = axes {
        let scale = json!([{"type": "scale", "scale": vec![1.0; shape.len()]}]);
        let datasets = json!([{"path": "0", "coordinateTransformations": scale}]);
        let group = ome::group_document(&json!({"axes": axes, "datasets": datasets}));
        put(dir.path().join("zarr.json"), &group);
    }
    (dir, path)
}

#[test]
fn the_time_axis_is_found_by_its_name() {
    let none = Json::Null;
    let said = |name: &str, kind: &str| json!({"name": name, "type": kind});
    let [z, y, x] = ["z", "y", "x"].map(|name| said(name, "space"));
    let tczyx = json!([said("t", "time"), said("c", "channel"), z, y, x]);
    let (image, array) = of_axes(3, &[3, 2, 4, 5, 6], &none, Some(tczyx));
    for path in [image.path(), &array] {
        let volume = open(path).unwrap();
        assert_eq!(volume.time_points(), Some(3));
        assert_eq!(volume.channels_at(1..3).unwrap(), 2..6);
        assert!(matches!(
            volume.channels_at(3..4),
            Err(Error::NoSuchTime { points: 3, .. })
        ));
    }
    let of = |format, shape: &[u64], names: &Json, axes| {
        let (image, array) = of_axes(format, shape, names, axes);
        let path = if image.path().join("zarr.json").exists() {
            image.path()
        } else {
            &array
        };
        open(path).unwrap().time_points()
    };
    let named = |names: &[&str]| json!(names);
    for (names, shape, expected) in [
        (&["t", "z", "y", "x"][..], &[5, 2, 2, 2][..], Some(5)),
        (&["time", "c", "z", "y", "x"], &[5, 2, 2, 2, 2], Some(5)),
        (&["Time", "z", "y", "x"], &[5, 2, 2, 2], Some(5)),
        (&["c", "t", "z", "y", "x"], &[2, 5, 2, 2, 2], Some(5)),
        (&["c", "t", "z", "y", "x"], &[1, 5, 2, 2, 2], Some(5)),
        (&["c", "z", "y", "x"], &[5, 2, 2, 2], None),
        (&["z", "y", "x"], &[2, 2, 2], None),
    ] {
        assert_eq!(
            of(3, shape, &named(names), None),
            expected,
            "{names:?} in version 3"
        );
        assert_eq!(
            of(2, shape, &named(names), None),
            expected,
            "{names:?} in version 2"
        );
        assert_eq!(
            of(3, shape, &none, Some(named(names))),
            expected,
            "{names:?} as OME-Zarr 0.3 has them"
        );
    }
    assert_eq!(of(3, &[5, 2, 2, 2], &none, None), None);
    let error = open(&of_axes(2, &[5, 2, 2, 2], &none, None).1)
        .unwrap()
        .channels_at(0..1);
    let Err(error @ Error::NoTime { .. }) = error else {
        panic!("{error:?}");
    };
    assert!(error.to_string().contains("has no time axis"), "{error}");
}
