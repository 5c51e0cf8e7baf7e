//! Zarr stores with false metadata, or with something else in place of files.

use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::{Value as Json, json};

use super::{File, all_refused, put, refusal, text, v2, v3, with};
use crate::tool::Place;

/// A store: its name, its files, and the expected error.
type Store = (&'static str, Vec<File>, &'static str);

const FAR: u64 = (1 << 63) - 1;

fn plain() -> Json {
    v3(&[4, 4, 4], &json!([{"name": "bytes"}]))
}

fn sharded(inner: &Json, index: &Json) -> Json {
    let codecs = json!([{"name": "sharding_indexed", "configuration": {"chunk_shape": inner,
        "codecs": [{"name": "bytes"}], "index_codecs": index}}]);
    v3(&[4, 4, 4], &codecs)
}

/// Returns an array with these metadata.
fn array(document: &Json) -> Vec<File> {
    let name = if document["zarr_format"] == json!(2) {
        ".zarray"
    } else {
        "zarr.json"
    };
    vec![(name, text(document))]
}

/// Returns an image with one level at this path, a valid array next to it, and a second array outside.
fn image(path: &Json) -> Vec<File> {
    let axes = json!([{"name": "z", "type": "space"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]);
    let scale = json!([{"type": "scale", "scale": [1, 1, 1]}]);
    let multiscales =
        json!([{"axes": axes, "datasets": [{"path": path, "coordinateTransformations": scale}]}]);
    let group = json!({"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5",
        "multiscales": multiscales}}});
    vec![("zarr.json", text(&group)), ("0/zarr.json", text(&plain()))]
}

#[expect(clippy::too_many_lines, reason = "a list")]
fn of_v3() -> Vec<Store> {
    let shape = |shape: Json| array(&with(plain(), "/shape", shape));
    let chunk = |chunk: Json| {
        array(&with(
            plain(),
            "/chunk_grid/configuration/chunk_shape",
            chunk,
        ))
    };
    let codecs = |codecs: Json| array(&with(plain(), "/codecs", codecs));
    let little = json!({"name": "bytes", "configuration": {"endian": "little"}});
    let deep = (0..400).fold(json!([little]), |inner, _| {
        json!([{"name": "sharding_indexed", "configuration": {"chunk_shape": [4, 4, 4], "codecs": inner,
            "index_codecs": [little]}}])
    });
    vec![
        (
            "chunks of 2^128 voxels",
            chunk(json!([FAR, FAR, 4])),
            "chunk",
        ),
        (
            "chunks of 2^62 voxels",
            chunk(json!([1 << 31, 1 << 31, 1])),
            "chunk",
        ),
        ("chunks of no voxel", chunk(json!([0, 4, 4])), "chunk"),
        ("chunks of -4", chunk(json!([-4, 4, 4])), "chunk"),
        ("chunks of fewer dimensions", chunk(json!([4, 4])), "chunk"),
        ("chunks of 2^64", chunk(json!([1e20, 4, 4])), "chunk"),
        ("shape of no voxel", shape(json!([4, 0, 4])), "shape"),
        ("shape of -4", shape(json!([4, -4, 4])), "shape"),
        ("shape of 4.5", shape(json!([4, 4.5, 4])), "shape"),
        ("shape of 2^189", shape(json!([FAR, FAR, FAR])), "2^63"),
        ("shape of one dimension", shape(json!([4])), "dimension"),
        (
            "shape of nine dimensions",
            shape(json!([1, 1, 1, 1, 1, 1, 4, 4, 4])),
            "dimension",
        ),
        ("shape that is text", shape(json!("4, 4, 4")), "shape"),
        (
            "type int17",
            array(&with(plain(), "/data_type", json!("int17"))),
            "int17",
        ),
        (
            "type string",
            array(&with(plain(), "/data_type", json!("string"))),
            "string",
        ),
        (
            "type complex",
            array(&with(plain(), "/data_type", json!("complex64"))),
            "complex64",
        ),
        (
            "type that is a list",
            array(&with(plain(), "/data_type", json!([1, 2]))),
            "data type [1,2]",
        ),
        (
            "unknown codec",
            codecs(json!([{"name": "bytes"}, {"name": "squash"}])),
            "squash",
        ),
        ("no codec", codecs(json!([])), "codec"),
        (
            "codecs that are a number",
            codecs(json!(7)),
            "expected a sequence",
        ),
        (
            "two serializers",
            codecs(json!([{"name": "bytes"}, {"name": "bytes"}])),
            "codec",
        ),
        (
            "axes turned twice to one place",
            codecs(
                json!([{"name": "transpose", "configuration": {"order": [0, 0, 1]}}, {"name": "bytes"}]),
            ),
            "TransposeCodecConfiguration",
        ),
        (
            "axes that are not there turned",
            codecs(
                json!([{"name": "transpose", "configuration": {"order": [0, 1, 2, 3]}}, {"name": "bytes"}]),
            ),
            "transpose",
        ),
        ("shards in shards, 400 times", codecs(deep), "zarr.json"),
        (
            "shard that its chunks do not divide",
            array(&sharded(&json!([3, 4, 4]), &json!([little]))),
            "chunk",
        ),
        (
            "shard with chunks of no voxel",
            array(&sharded(&json!([0, 4, 4]), &json!([little]))),
            "chunk",
        ),
        (
            "shard with larger chunks",
            array(&sharded(&json!([8, 4, 4]), &json!([little]))),
            "chunk",
        ),
        (
            "shard of fewer dimensions",
            array(&sharded(&json!([4, 4]), &json!([little]))),
            "chunk",
        ),
        (
            "shard whose index is compressed",
            array(&sharded(
                &json!([4, 4, 4]),
                &json!([little, {"name": "gzip", "configuration": {"level": 1}}]),
            )),
            "index",
        ),
        (
            "shard whose index has no codec",
            array(&sharded(&json!([4, 4, 4]), &json!([]))),
            "codec",
        ),
        (
            "fill value that is text",
            array(&with(plain(), "/fill_value", json!("many"))),
            "fill",
        ),
        (
            "fill value beyond the type",
            array(&with(plain(), "/fill_value", json!(256))),
            "fill",
        ),
        (
            "grid of another kind",
            array(&with(plain(), "/chunk_grid/name", json!("rectilinear"))),
            "rectilinear",
        ),
        (
            "keys of another kind",
            array(&with(plain(), "/chunk_key_encoding/name", json!("hashed"))),
            "hashed",
        ),
        (
            "keys that climb",
            array(&with(
                plain(),
                "/chunk_key_encoding",
                json!({"name": "default", "configuration": {"separator": "/../"}}),
            )),
            "separator",
        ),
        (
            "node of another kind",
            array(&with(plain(), "/node_type", json!("banana"))),
            "banana",
        ),
        (
            "version 4",
            array(&with(plain(), "/zarr_format", json!(4))),
            "integer `4`",
        ),
        (
            "must-understand extension",
            array(&with(
                plain(),
                "/teleport",
                json!({"must_understand": true}),
            )),
            "teleport",
        ),
        (
            "extension that may not be ignored, silently",
            array(&with(plain(), "/teleport", json!("now"))),
            "teleport",
        ),
        (
            "storage transformer",
            array(&with(
                plain(),
                "/storage_transformers",
                json!([{"name": "cipher"}]),
            )),
            "cipher",
        ),
        (
            "no object",
            vec![("zarr.json", b"[1, 2]".to_vec())],
            "zarr.json",
        ),
        (
            "truncated",
            vec![("zarr.json", text(&plain())[..90].to_vec())],
            "zarr.json",
        ),
        (
            "not UTF-8",
            vec![("zarr.json", b"{\"zarr_format\": \"\xff\xfe\"}".to_vec())],
            "zarr.json",
        ),
        (
            "nested 100000 deep",
            vec![("zarr.json", vec![b'['; 100_000])],
            "recursion",
        ),
        (
            "17 MiB",
            vec![("zarr.json", vec![b' '; 17 << 20])],
            "more than",
        ),
        ("empty", vec![("zarr.json", Vec::new())], "zarr.json"),
    ]
}

fn of_v2() -> Vec<Store> {
    let plain = v2(&[4, 4, 4], &json!(null));
    let changed = |place: &str, value: Json| array(&with(plain.clone(), place, value));
    vec![
        ("v2, objects", changed("/dtype", json!("|O")), "|O"),
        (
            "v2, a structure",
            changed("/dtype", json!([["a", "<i4"]])),
            "data type",
        ),
        ("v2, text", changed("/dtype", json!("<U8")), "<U8"),
        (
            "v2, order of another kind",
            changed("/order", json!("K")),
            "unknown variant `K`",
        ),
        (
            "v2, chunks of 2^126 voxels",
            changed("/chunks", json!([FAR, FAR, 1])),
            "chunk",
        ),
        (
            "v2, chunks of no voxel",
            changed("/chunks", json!([4, 4, 0])),
            "chunk",
        ),
        (
            "v2, shape of no voxel",
            changed("/shape", json!([0, 4, 4])),
            "shape",
        ),
        (
            "v2, unknown compressor",
            changed("/compressor", json!({"id": "squash"})),
            "squash",
        ),
        (
            "v2, unknown filter",
            changed("/filters", json!([{"id": "pickle"}])),
            "pickle",
        ),
        (
            "v2, separator that climbs",
            changed("/dimension_separator", json!("/../")),
            "separator",
        ),
        (
            "v2, version 1",
            vec![(
                ".zarray",
                text(&with(plain.clone(), "/zarr_format", json!(1))),
            )],
            "integer `1`",
        ),
    ]
}

fn of_images() -> Vec<Store> {
    let stays = "does not stay inside";
    vec![
        ("level outside", image(&json!("../outside")), stays),
        (
            "level outside, late",
            image(&json!("0/../../outside")),
            stays,
        ),
        ("level at the root", image(&json!("/etc")), stays),
        ("level here", image(&json!(".")), stays),
        ("level without a name", image(&json!("")), stays),
        ("level with an empty part", image(&json!("0//0")), stays),
        (
            "level with a backslash",
            image(&json!("..\\outside")),
            stays,
        ),
        ("level with NUL", image(&json!("0\0")), stays),
        ("level that is a number", image(&json!(0)), stays),
        (
            "level that is not there",
            image(&json!("1")),
            "not an array",
        ),
        (
            "image of 65 levels",
            vec![
                image(&json!("0")).swap_remove(1),
                (
                    "zarr.json",
                    text(
                        &json!({"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales":
            [{"axes": [], "datasets": vec![json!({"path": "0"}); 65]}]}}}),
                    ),
                ),
            ],
            "more than 64",
        ),
        (
            "image without levels",
            vec![
                image(&json!("0")).swap_remove(1),
                (
                    "zarr.json",
                    text(&json!({"zarr_format": 3, "node_type": "group",
            "attributes": {"ome": {"multiscales": [{"axes": [], "datasets": {}}]}}})),
                ),
            ],
            "no level 0",
        ),
        (
            "group that is empty",
            vec![(
                "zarr.json",
                text(&json!({"zarr_format": 3, "node_type": "group"})),
            )],
            "no array",
        ),
    ]
}

/// Returns an N5 group with these levels, one of which is there.
fn pyramid(datasets: &Json) -> Vec<File> {
    let level = json!({"dimensions": [4, 4, 4], "blockSize": [4, 4, 4], "dataType": "uint8",
        "compression": {"type": "raw"}});
    let group = json!({"n5": "4.0.0", "multiscales": [{"datasets": datasets}]});
    vec![
        ("attributes.json", text(&group)),
        ("s0/attributes.json", text(&level)),
    ]
}

/// Returns an image with the header of NIfTI in `length` bytes and chunks of `chunk`.
fn nifti(length: u64, chunk: u64, header: Vec<u8>) -> Vec<File> {
    let mut document = v2(&[4, 4, 4], &json!(null));
    document["shape"] = json!([length]);
    document["chunks"] = json!([chunk]);
    document["dtype"] = json!("|u1");
    let mut files = image(&json!("0"));
    files.push(("nifti/.zarray", text(&document)));
    files.push(("nifti/0", header));
    files
}

fn of_groups() -> Vec<Store> {
    let path = |path: Json| pyramid(&json!([{"path": path}]));
    let stays = "does not stay inside";
    let zeros = vec![0; 348];
    vec![
        ("N5, level outside", path(json!("../outside")), stays),
        ("N5, level at the root", path(json!("/etc")), stays),
        ("N5, level that is a number", path(json!(0)), stays),
        (
            "N5, level that is not there",
            path(json!("s1")),
            "not an array",
        ),
        (
            "NIfTI, header of 2^63 bytes",
            nifti(FAR, 348, zeros.clone()),
            "maximum",
        ),
        (
            "NIfTI, chunk of 2^62 bytes",
            nifti(348, 1 << 62, zeros.clone()),
            "larger than",
        ),
        (
            "NIfTI, chunk of 64 MiB",
            nifti(348, 64 << 20, zeros.clone()),
            "maximum",
        ),
        (
            "NIfTI, header of zeros",
            nifti(348, 348, zeros.clone()),
            "sizeof_hdr",
        ),
        (
            "NIfTI, header of 2 bytes",
            nifti(2, 2, vec![92, 1]),
            "ends inside",
        ),
        (
            "NIfTI, header that is cut off",
            nifti(348, 348, zeros[..100].to_vec()),
            "348",
        ),
        (
            "NIfTI, header that is not stored",
            nifti(348, 348, Vec::new()),
            "348",
        ),
    ]
}

fn of_chunks() -> Vec<Store> {
    let with_chunk = |chunk: Vec<u8>| vec![array(&plain()).swap_remove(0), ("c/0/0/0", chunk)];
    vec![
        (
            "chunk without a byte",
            with_chunk(Vec::new()),
            "0 bytes instead of 64",
        ),
        (
            "chunk cut short",
            with_chunk(vec![0; 63]),
            "63 bytes instead of 64",
        ),
        (
            "chunk that is too long",
            with_chunk(vec![0; 65]),
            "65 bytes instead of 64",
        ),
        (
            "chunk that is a folder",
            vec![array(&plain()).swap_remove(0), ("c/0/0/0/0", vec![0; 64])],
            "regular file",
        ),
        (
            "folder that is a file",
            vec![array(&plain()).swap_remove(0), ("c/0", vec![0; 64])],
            "Not a directory",
        ),
    ]
}

#[test]
fn stores_that_lie_are_refused_with_the_reason() {
    let mut found = Vec::new();
    for (name, files, says) in [of_v3(), of_v2(), of_images(), of_groups(), of_chunks()].concat() {
        let place = Place::new();
        let folder = place.path().join("a.zarr");
        put(&place.path().join("outside"), &array(&plain()));
        put(&folder, &files);
        found.push(refusal(name, &folder, says));
    }
    println!("{} stores", found.len());
    all_refused(found);
}

#[test]
fn metadata_and_chunks_that_are_no_files_are_refused_and_not_waited_for() {
    let mut found = Vec::new();
    for kind in ["zarr.json", ".zarray", "c/0/0/0"] {
        for (what, says) in [
            ("fifo", "regular file"),
            ("/dev/zero", "regular file"),
            ("self", "symbolic links"),
        ] {
            let place = Place::new();
            let folder = place.path().join("a.zarr");
            put(&folder, &[("c/0/0/1", vec![0; 64])]);
            if kind == "c/0/0/0" {
                put(&folder, &array(&plain()));
            }
            let trap = folder.join(kind);
            match what {
                "fifo" => {
                    let made = Command::new("mkfifo").arg(&trap).status();
                    assert!(made.expect("mkfifo starts").success());
                }
                "self" => {
                    let name = trap.file_name().expect("a name");
                    symlink(name, &trap).expect("the folder is ours");
                }
                device => symlink(device, &trap).expect("the folder is ours"),
            }
            found.push(refusal(&format!("{kind}, {what}"), &folder, says));
        }
    }
    all_refused(found);
}
