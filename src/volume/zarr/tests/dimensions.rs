//! Arrays whose dimensions have names: in any order, through the image and through the array.

use std::fs;

use super::*;
use crate::region::indices;

/// Returns the value of voxel c, z, y, x.
fn voxel([c, z, y, x]: [u64; 4]) -> u8 {
    u8::try_from((c * 89 + z * 31 + y * 7 + x) % 251).unwrap()
}

/// Lengths along c, t, z, y, x.
const LENGTHS: [(char, u64); 5] = [('c', 3), ('t', 2), ('z', 4), ('y', 5), ('x', 6)];

fn length(name: char) -> u64 {
    LENGTHS.iter().find(|(own, _)| *own == name).unwrap().1
}

/// Writes an image of uncompressed chunks with these axes. In its values, time varies faster than channels.
fn write(folder: &Path, axes: &str, chunk: &[u64], version: u8) {
    let names: Vec<char> = axes.chars().collect();
    let shape: Vec<u64> = names.iter().map(|&name| length(name)).collect();
    let counts: Vec<u64> = shape
        .iter()
        .zip(chunk)
        .map(|(n, c)| n.div_ceil(*c))
        .collect();
    let all = |lengths: &[u64]| -> Vec<Vec<u64>> {
        let mut all = vec![Vec::new()];
        for &length in lengths {
            all = all
                .into_iter()
                .flat_map(|start: Vec<u64>| (0..length).map(move |n| [&start[..], &[n]].concat()))
                .collect();
        }
        all
    };
    let array = folder.join("0");
    fs::create_dir_all(&array).unwrap();
    for index in all(&counts) {
        let bytes: Vec<u8> = all(chunk)
            .into_iter()
            .map(|inside| {
                let at: Vec<u64> = (0..shape.len())
                    .map(|n| index[n] * chunk[n] + inside[n])
                    .collect();
                let own = |name: char| {
                    names
                        .iter()
                        .position(|&own| own == name)
                        .map_or(0, |n| at[n])
                };
                if at.iter().zip(&shape).any(|(at, n)| at >= n) {
                    return 255;
                }
                voxel([own('t') * 10 + own('c'), own('z'), own('y'), own('x')])
            })
            .collect();
        let words: Vec<String> = index.iter().map(u64::to_string).collect();
        let key = if version == 3 {
            format!("c/{}", words.join("/"))
        } else {
            words.join(".")
        };
        let path = array.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let names: Vec<String> = names.iter().map(char::to_string).collect();
    let kind = |name: &str| match name {
        "c" => "channel",
        "t" => "time",
        _ => "space",
    };
    let axes: Vec<Json> = names
        .iter()
        .map(|name| json!({"name": name, "type": kind(name), "unit": "micrometer"}))
        .collect();
    let step = |name: &String| match name.as_str() {
        "z" => 3000.0,
        "y" => 2000.0,
        "x" => 1000.0,
        _ => 1.0,
    };
    let scale: Vec<f64> = names.iter().map(step).collect();
    let image = json!({"axes": axes, "datasets": [
        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]});
    let put = |path: PathBuf, document: &Json| fs::write(path, document.to_string()).unwrap();
    if version == 3 {
        put(
            array.join("zarr.json"),
            &json!({
                "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": "uint8", "fill_value": 0,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                "chunk_key_encoding": {"name": "default"}, "codecs": [{"name": "bytes"}],
                "dimension_names": names,
            }),
        );
        put(folder.join("zarr.json"), &ome::group_document(&image));
    } else {
        let document = json!({"zarr_format": 2, "shape": shape, "chunks": chunk, "dtype": "|u1", "order": "C",
            "fill_value": 0, "compressor": null, "filters": null});
        put(array.join(".zarray"), &document);
        put(array.join(".zattrs"), &json!({"_ARRAY_DIMENSIONS": names}));
        put(folder.join(".zgroup"), &json!({"zarr_format": 2}));
        put(folder.join(".zattrs"), &ome::group_attributes_v2(&image));
    }
}

/// Checks every voxel of the volume, whole and in a box.
fn check(volume: &ZarrVolume, axes: &str, what: &str) {
    let has = |name: char| if axes.contains(name) { length(name) } else { 1 };
    let shape = ['z', 'y', 'x'].map(has);
    assert_eq!(volume.layout.shape, shape, "{what}");
    assert_eq!(volume.layout.channels, has('c') * has('t'), "{what}");
    let inside = shape.map(|n| u64::from(n > 2));
    let part = Region::new(
        inside.map(u64::cast_signed),
        std::array::from_fn(|a| shape[a] - inside[a]),
    );
    for region in [Region::whole(shape), part] {
        let patch = volume.read(region).unwrap();
        let channels = indices([0..has('t'), 0..has('c'), 0..1]);
        let start = region.start.map(i64::unsigned_abs);
        let expected: Vec<u8> = channels
            .flat_map(|[t, c, _]| {
                let all = indices(region.shape.map(|n| 0..n));
                all.map(move |[z, y, x]| {
                    voxel([t * 10 + c, z + start[0], y + start[1], x + start[2]])
                })
            })
            .collect();
        assert_eq!(patch.bytes(), expected, "{what}");
    }
}

#[test]
fn axes_in_any_order_are_read_by_their_names() {
    let dir = scratch();
    let mut count = 0;
    for axes in [
        "zyx", "xyz", "yzx", "zcyx", "zyxc", "czyx", "cxyz", "tczyx", "ctzyx", "tzcyx", "zyxct",
        "cyx", "tyx", "yx", "xy", "tcyx", "xyc", "zx",
    ] {
        for (n, version) in [2, 3].into_iter().enumerate() {
            // Chunks that extend beyond the array, and one that is the whole array.
            for (m, of) in [2, 9].into_iter().enumerate() {
                let chunk: Vec<u64> = axes.chars().map(|name| length(name).min(of)).collect();
                // Channels and time points that are chunked together cannot be flattened into one axis.
                let chunk: Vec<u64> = match of {
                    2 => chunk
                        .iter()
                        .zip(axes.chars())
                        .map(|(&n, a)| if "ct".contains(a) { 1 } else { n })
                        .collect(),
                    _ => chunk,
                };
                let path = dir.path().join(format!("{axes}-{n}-{m}.zarr"));
                write(&path, axes, &chunk, version);
                for path in [path.clone(), path.join("0")] {
                    let what = path.display().to_string();
                    let volume = open(&path)
                        .unwrap_or_else(|error| panic!("{what}: {}", error.with_causes()));
                    check(&volume, axes, &what);
                    let of =
                        |name: char, length: f64| if axes.contains(name) { length } else { 1.0 };
                    let spacing = [of('z', 3.0), of('y', 2.0), of('x', 1.0)];
                    let found = volume.layout.geometry;
                    let near = (0..3).all(|a| (found.spacing[a] - spacing[a]).abs() < 1e-12);
                    assert!(near, "{what}: {:?}", found.spacing);
                    assert_eq!(
                        volume.time_points(),
                        axes.contains('t').then_some(2),
                        "{what}"
                    );
                    count += 1;
                }
                // Without the image, the array's own names are used.
                fs::remove_file(path.join(if version == 3 { "zarr.json" } else { ".zgroup" }))
                    .unwrap();
                check(&open(&path.join("0")).unwrap(), axes, "alone");
            }
        }
    }
    assert_eq!(count, 18 * 2 * 2 * 2);
}

/// Creates a group of arrays of 2^3 voxels, and of images for names that end in a slash.
fn group(folder: &Path, names: &[&str]) {
    fs::create_dir_all(folder).unwrap();
    let put = |path: PathBuf, document: Json| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, document.to_string()).unwrap();
    };
    let plain = json!({"zarr_format": 3, "node_type": "group", "attributes": {}});
    put(folder.join("zarr.json"), plain);
    for name in names {
        let path = folder.join(name);
        let array = if name.ends_with('/') {
            let image = json!({"axes": ["z", "y", "x"], "datasets": [{"path": "0"}]});
            put(path.join("zarr.json"), ome::group_document(&image));
            path.join("0")
        } else {
            path
        };
        let shape = if name.starts_with("axis") {
            vec![2]
        } else {
            vec![2, 2, 2]
        };
        put(
            array.join("zarr.json"),
            json!({"zarr_format": 3, "node_type": "array", "shape": shape, "data_type": "uint8", "fill_value": 7,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
                "chunk_key_encoding": {"name": "default"}, "codecs": [{"name": "bytes"}]}),
        );
    }
}

#[test]
fn none_of_several_arrays_is_chosen() {
    let dir = scratch();
    for (n, (names, hints)) in [
        (&["raw", "label", "mask"][..], &["label, mask, raw"][..]),
        (
            &["volumes/raw", "volumes/labels/ids"],
            &["volumes/raw", "volumes/labels/ids"],
        ),
        (&["0/", "1/"], &["0, 1", "/0"]),
        (&["A/1/0/", "A/2/0/"], &["A/1/0, A/2/0"]),
        (&["s0", "s1"], &["s0, s1"]),
        (&["raw", "image/"], &["raw"]),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{n}.zarr"));
        group(&path, names);
        let error = open(&path).unwrap_err().to_string();
        for hint in hints {
            assert!(
                error.contains("several") && error.contains(hint),
                "{names:?}: {error}"
            );
        }
        let first = names[0].trim_end_matches('/');
        assert!(open(&path.join(first)).is_ok(), "{names:?}");
    }
    let many: Vec<String> = (0..500).map(|n| format!("a{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let path = dir.path().join("many.zarr");
    group(&path, &many);
    let error = open(&path).unwrap_err().to_string();
    assert!(error.len() < 500 && error.contains("..."), "{error}");
}

#[test]
fn the_only_array_or_image_is_opened_however_deep_it_is() {
    let dir = scratch();
    for (n, (names, inside)) in [
        (&["raw"][..], "raw"),
        (&["a/b/raw"], "a/b/raw"),
        (&["image/"], "image/0"),
        (&["A/1/0/"], "A/1/0/0"),
        (&["raw", "axis_z", "axis_y"], "raw"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{n}.zarr"));
        group(&path, names);
        let volume = open(&path).unwrap();
        assert_eq!(volume.layout.path, path.join(inside));
    }
}

#[test]
fn numbers_that_python_writes_but_json_does_not_have_are_read() {
    let dir = scratch();
    let path = dir.path().join("a.zarr");
    group(&path, &["raw"]);
    let array = path.join("raw/zarr.json");
    let text = fs::read_to_string(&array)
        .unwrap()
        .replace("\"uint8\"", "\"float32\"");
    for (fill, attributes, expected) in [
        (
            "NaN",
            "{\"_FillValue\": NaN, \"valid_max\": Infinity, \"a\": [-Infinity, \"NaN\"]}",
            f32::NAN,
        ),
        ("-Infinity", "{}", f32::NEG_INFINITY),
        ("\"0\"", "{}", 0.0),
        ("\"1.5\"", "{}", 1.5),
        ("\"-3\"", "{}", -3.0),
        ("\"\"", "{}", 0.0),
        ("\"NaN\"", "{\"x\": NaN}", f32::NAN),
        ("null", "{\"x\": NaN}", 0.0),
    ] {
        let endian = "{\"name\":\"bytes\",\"configuration\":{\"endian\":\"little\"}}";
        let changed = text
            .replace(
                "\"fill_value\":7",
                &format!("\"fill_value\":{fill},\"attributes\":{attributes}"),
            )
            .replace("{\"name\":\"bytes\"}", endian);
        fs::write(&array, changed).unwrap();
        let volume = open(&path).unwrap_or_else(|error| panic!("{fill}: {}", error.with_causes()));
        let patch = volume.read(Region::whole([2, 2, 2])).unwrap();
        let first = patch.as_slice::<f32>().unwrap()[0];
        assert!(
            first == expected || (first.is_nan() && expected.is_nan()),
            "{fill}: {first}"
        );
    }
    let bad = text.replace("\"fill_value\":7", "\"fill_value\":\"seven\"");
    fs::write(&array, bad).unwrap();
    assert!(matches!(open(&path), Err(Error::Header { .. })));
    fs::write(
        &array,
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    )
    .unwrap();
    assert!(
        open(&path)
            .unwrap_err()
            .to_string()
            .contains("git lfs pull")
    );
}

#[test]
fn transformations_that_are_not_understood_are_refused() {
    let dir = scratch();
    let path = dir.path().join("a.zarr");
    write(&path, "zyx", &[4, 5, 6], 3);
    let group = path.join("zarr.json");
    let sound: Json = serde_json::from_slice(&fs::read(&group).unwrap()).unwrap();
    let steps = "/attributes/ome/multiscales/0/datasets/0/coordinateTransformations";
    for (step, hint) in [
        (
            json!({"type": "displacements", "path": "w"}),
            "displacements",
        ),
        (json!({"type": "scale", "scale": [1.0, 1.0]}), "3 numbers"),
        (
            json!({"type": "scale", "scale": [1.0, 1.0, 0.0]}),
            "no volume has",
        ),
    ] {
        let mut document = sound.clone();
        *document.pointer_mut(steps).unwrap() = json!([step]);
        fs::write(&group, document.to_string()).unwrap();
        for path in [path.clone(), path.join("0")] {
            let error = open(&path).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
    for (unit, word) in [("furlong", "furlong"), ("second", "second")] {
        let mut document = sound.clone();
        document["attributes"]["ome"]["multiscales"][0]["axes"][0]["unit"] = json!(unit);
        fs::write(&group, document.to_string()).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let mut chunks: Json =
        serde_json::from_slice(&fs::read(path.join("0/zarr.json")).unwrap()).unwrap();
    chunks["chunk_grid"]["name"] = json!("rectilinear");
    fs::write(path.join("0/zarr.json"), chunks.to_string()).unwrap();
    let error = open(&path.join("0")).unwrap_err().to_string();
    assert!(error.contains("unequal sizes"), "{error}");
}

#[test]
fn transformations_of_0_6_are_followed_from_system_to_system() {
    let dir = scratch();
    let path = dir.path().join("a.zarr");
    write(&path, "zyx", &[4, 5, 6], 3);
    let axes = json!([{"name": "z", "unit": "um"}, {"name": "y", "unit": "um"}, {"name": "x", "unit": "um"}]);
    let scale = json!({"type": "scale", "scale": [3000.0, 2000.0, 1000.0]});
    let shift = json!({"type": "translation", "translation": [30000.0, 20000.0, 10000.0]});
    let place = |image: Json| {
        let document = json!({"zarr_format": 3, "node_type": "group",
            "attributes": {"ome": {"version": "0.6", "multiscales": [image]}}});
        fs::write(path.join("zarr.json"), document.to_string()).unwrap();
        open(&path).map(|volume| volume.layout.geometry)
    };
    let within = |mut step: Json, from: &str, to: &str| {
        step["input"] = json!(from);
        step["output"] = json!(to);
        step
    };
    let sequence = json!({"type": "sequence", "input": "0", "output": "physical", "transformations": [scale, shift]});
    let image = json!({"coordinateSystems": [{"name": "physical", "axes": axes}],
        "datasets": [{"path": "0", "coordinateTransformations": [sequence]}]});
    let found = place(image).unwrap();
    assert_eq!(
        (found.spacing, found.origin()),
        ([3.0, 2.0, 1.0], [30.0, 20.0, 10.0])
    );
    let turn = json!({"type": "rotation", "rotation": [[0, 1, 0], [1, 0, 0], [0, 0, 1]]});
    let two = |more: Json| {
        json!({"coordinateSystems": [{"name": "world", "axes": axes}, {"name": "own", "axes": axes}],
            "datasets": [{"path": "0", "coordinateTransformations": [within(scale.clone(), "0", "own")]}],
            "coordinateTransformations": more})
    };
    let found = place(two(json!([within(turn.clone(), "own", "world")]))).unwrap();
    assert_eq!(
        found.affine[..3],
        [
            [1.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 3.0, 0.0],
            [0.0, 2.0, 0.0, 0.0]
        ]
    );
    let chained = json!([
        within(shift.clone(), "moved", "world"),
        within(turn.clone(), "own", "moved")
    ]);
    assert_eq!(place(two(chained)).unwrap().origin(), [30.0, 20.0, 10.0]);
    let either = json!([
        within(turn.clone(), "own", "world"),
        within(shift, "own", "moved")
    ]);
    assert!(
        place(two(either))
            .unwrap_err()
            .to_string()
            .contains("several world coordinate systems")
    );
    let apart = json!([within(turn, "elsewhere", "world")]);
    assert!(
        place(two(apart))
            .unwrap_err()
            .to_string()
            .contains("follow one another")
    );
}
