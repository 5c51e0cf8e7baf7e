//! Hostile files: each is refused for the right reason, immediately, and without using much memory.

#[cfg(all(feature = "dicom", feature = "tiff"))]
mod blocks;
mod bombs;
mod detached;
mod documents;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use voxpatch::{Region, VolumeExt};

/// The time limit of a refusal. It takes a millisecond on an idle machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A file of a store: its name and content.
type File = (&'static str, Vec<u8>);

/// Writes files below a folder, with the folders that they need.
fn put(folder: &Path, files: &[File]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        let parent = path.parent().expect("a file in a folder");
        fs::create_dir_all(parent).expect("the folder is ours");
        fs::write(path, bytes).expect("the folder is ours");
    }
}

/// Opens a volume and reads all of it if it is small, otherwise its first voxel. The error must contain `says`; returns
/// the problem if it does not.
fn refusal(name: &str, path: &Path, says: &str) -> Result<(), String> {
    let began = Instant::now();
    let read = voxpatch::open(path).and_then(|volume| {
        let layout = volume.layout();
        let small = layout.decoded_bytes().is_ok_and(|bytes| bytes <= 1 << 20);
        let shape = if small { layout.shape } else { [1; 3] };
        volume.read(Region::new([0; 3], shape))
    });
    let took = began.elapsed();
    match read.map_err(|error| whole(&error)) {
        Ok(_) => Err(format!("{name}: nothing was wrong with it")),
        Err(error) if !error.contains(says) => Err(format!("{name}: {error:?} lacks {says:?}")),
        Err(error) if error.len() > 1500 => Err(format!("{name}: {error}")),
        Err(_) if took > AT_ONCE => Err(format!("{name}: it took {took:?}")),
        Err(_) => Ok(()),
    }
}

/// Fails with all problems.
fn all_refused(found: impl IntoIterator<Item = Result<(), String>>) {
    let wrong: Vec<String> = found.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns an error with its causes.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

/// Returns the metadata of a Zarr v3 array of bytes in one chunk.
fn v3(shape: &[u64], codecs: &Json) -> Json {
    json!({
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default"}, "fill_value": 0, "codecs": codecs,
    })
}

/// Returns the same in version 2.
fn v2(shape: &[u64], compressor: &Json) -> Json {
    json!({
        "zarr_format": 2, "shape": shape, "chunks": shape, "dtype": "|u1", "order": "C",
        "compressor": compressor, "filters": null, "fill_value": 0,
    })
}

/// Returns the document with a different value at a place.
fn with(mut document: Json, place: &str, value: Json) -> Json {
    match document.pointer_mut(place) {
        Some(found) => *found = value,
        None => document[&place[1..]] = value,
    }
    document
}

/// Returns the document as the content of a file.
fn text(document: &Json) -> Vec<u8> {
    document.to_string().into_bytes()
}
