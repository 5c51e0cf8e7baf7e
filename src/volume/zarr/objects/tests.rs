//! Outputs in a store that fails.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use super::super::super::{
    CreateOptions, Downsample, Layout, Pyramid, VolumeExt, VolumeMut, ZarrVersion, create, open,
    upload_bytes,
};
use super::*;
use crate::dtype::DType;
use crate::error::ErrorKind;
use crate::region::{Region, chunk_region, indices};
use crate::store::StorageOptions;
use crate::store::faulty::{Fault, Faulty, named};

const SHAPE: [u64; 3] = [40, 33, 20];

fn layout() -> Layout {
    Layout::new(SHAPE, 2, DType::U16)
}

fn options() -> CreateOptions {
    CreateOptions::default()
        .with_chunk([8; 3])
        .with_shard(Some([16; 3]))
        .with_pyramid(Some(Pyramid {
            levels: None,
            method: Downsample::Mean,
        }))
        .with_storage_options(
            StorageOptions::new()
                .with("stall_timeout", "0.2")
                .with("retry_timeout", "20"),
        )
}

/// Returns the voxels of a chunk. Some chunks are all zeros, which are not stored.
fn voxels(region: Region, seed: i64) -> Vec<u8> {
    let mut found = Vec::new();
    for channel in 0..2 {
        for z in region.start[0]..region.end()[0] {
            for y in region.start[1]..region.end()[1] {
                for x in region.start[2]..region.end()[2] {
                    let empty = z / 16 == 1 && y / 16 == 1;
                    let value = (channel * 7919 + z * 331 + y * 17 + x * 3 + seed) % 5000 + 1;
                    let value = if empty {
                        0
                    } else {
                        u16::try_from(value).unwrap()
                    };
                    found.extend(value.to_ne_bytes());
                }
            }
        }
    }
    found
}

/// Writes the chunks of an output, as many as there are or `count`.
fn fill(output: &dyn VolumeMut, seed: i64, count: usize) -> Result<()> {
    let [_, chunk @ ..] = output.layout().write_chunk.unwrap();
    let lengths = std::array::from_fn(|a| 0..SHAPE[a].div_ceil(chunk[a]));
    for index in indices(lengths).take(count) {
        let region = chunk_region(index, chunk);
        let region = region.intersection(&Region::whole(SHAPE)).unwrap();
        output.write(region, &voxels(region, seed))?;
    }
    Ok(())
}

fn write(path: impl AsRef<Path>, options: &CreateOptions, seed: i64) -> Result<()> {
    let output = create(path, &layout(), options)?;
    fill(&*output, seed, usize::MAX)?;
    output.finish()
}

/// Returns the files below a folder, by name.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut folders = vec![folder.to_path_buf()];
    let mut found = Vec::new();
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap();
                found.push((name.to_owned(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Returns the files that a folder has after `write`.
fn expected(options: &CreateOptions, seed: i64) -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.zarr");
    write(&path, options, seed).unwrap();
    files(&path)
}

/// Returns the objects of an output, by name.
fn below(store: &Faulty, folder: &str) -> Vec<(String, Vec<u8>)> {
    let prefix = format!("{folder}/");
    let all = store.objects().into_iter();
    all.filter_map(|(key, bytes)| Some((key.strip_prefix(&prefix)?.to_owned(), bytes)))
        .collect()
}

fn names(store: &Faulty) -> Vec<String> {
    store.objects().into_iter().map(|(key, _)| key).collect()
}

fn at(name: &str) -> (Arc<Faulty>, PathBuf) {
    let base = format!("memory://{name}");
    (named(&base), PathBuf::from(format!("{base}/a/out.zarr")))
}

#[test]
fn an_output_in_a_store_has_the_bytes_of_files() {
    for (n, options) in [
        options(),
        options().with_shard(None),
        options().with_zarr(ZarrVersion::V2).with_shard(None),
        options().with_pyramid(None),
    ]
    .iter()
    .enumerate()
    {
        let (store, path) = at(&format!("bytes{n}"));
        write(&path, options, 1).unwrap();
        assert!(below(&store, "a/out.zarr") == expected(options, 1), "{n}");
        let volume = open(&path).unwrap();
        let whole = Region::whole(SHAPE);
        assert!(volume.read(whole).unwrap().bytes() == voxels(whole, 1));
    }
}

#[test]
fn faults_are_repeated_and_the_bytes_are_the_same() {
    let (store, path) = at("faults");
    store.fail(|request, _, n| match (request, n % 7) {
        ("put" | "list" | "get", 1) => Some(Fault::Status(503)),
        ("put", 2) => Some(Fault::LostAnswer),
        ("put", 3) => Some(Fault::Status(500)),
        ("put", 4) => Some(Fault::Status(409)),
        ("put", 5) if n < 20 => Some(Fault::Stall),
        _ => None,
    });
    write(&path, &options(), 2).unwrap();
    assert!(below(&store, "a/out.zarr") == expected(&options(), 2));
    assert!(store.count("put") > 40);
}

#[test]
fn a_write_that_fails_for_good_leaves_nothing_and_says_why() {
    let (store, path) = at("fails");
    store.plant("a/other", b"theirs");
    for status in [400, 403, 404] {
        store.fail(move |request, key, _| {
            let is_chunk = request == "put" && key.contains("/c/") && key.ends_with("1/0/0");
            is_chunk.then_some(Fault::Status(status))
        });
        let error = write(&path, &options(), 2).unwrap_err();
        let text = error.with_causes();
        assert!(
            text.contains(&format!("the server answered {status}")),
            "{text}"
        );
        assert!(text.contains("memory://fails/a/out.zarr/"), "{text}");
        assert_eq!(names(&store), ["a/other"]);
    }
    store.heal();
    let output = create(&path, &layout(), &options()).unwrap();
    fill(&*output, 1, 3).unwrap();
    drop(output);
    assert_eq!(names(&store), ["a/other"]);
}

#[test]
fn nothing_looks_finished_before_it_is() {
    let (store, path) = at("unfinished");
    let plain = options().with_pyramid(None);
    let output = create(&path, &layout(), &plain).unwrap();
    fill(&*output, 1, usize::MAX).unwrap();
    let is_document = |name: &String| name.contains("zarr.json");
    // All chunks arrive: a process that is killed has no more of them on their way.
    let chunks = expected(&plain, 1).into_iter();
    let chunks: Vec<_> = chunks.filter(|(name, _)| !is_document(name)).collect();
    let arrived = || {
        let there = below(&store, "a/out.zarr");
        chunks.iter().all(|chunk| there.contains(chunk))
    };
    for _ in 0..10_000 {
        if arrived() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(arrived());
    assert!(!names(&store).iter().any(is_document));
    assert!(open(&path).is_err());
    // As if the process had been killed.
    std::mem::forget(output);
    let there = store.objects();

    let refused = create(&path, &layout(), &options()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    let text = refused.to_string();
    assert!(
        text.contains("unfinished output that a run began"),
        "{text}"
    );
    assert!(text.contains("seconds ago"), "{text}");
    assert!(store.objects() == there);

    write(&path, &options().with_overwrite(true), 4).unwrap();
    assert!(below(&store, "a/out.zarr") == expected(&options(), 4));
}

#[test]
fn the_metadata_of_the_root_come_last() {
    for (n, (version, root)) in [(ZarrVersion::V3, "zarr.json"), (ZarrVersion::V2, ".zgroup")]
        .into_iter()
        .enumerate()
    {
        let (store, path) = at(&format!("last{n}"));
        let order: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&order);
        store.fail(move |request, key, _| {
            if request == "put" {
                seen.lock().unwrap().push(key.to_owned());
            }
            None
        });
        let options = options().with_zarr(version).with_shard(None);
        write(&path, &options, 1).unwrap();
        let order = order.lock().unwrap();
        assert_eq!(*order.last().unwrap(), format!("a/out.zarr/{root}"));
        let name = |key: &String| key.rsplit('/').next().unwrap().to_owned();
        let documents = order.iter().skip_while(|key| !is_document(&name(key)));
        let documents: Vec<&String> = documents.collect();
        assert!(documents.len() > 3, "{documents:?}");
        assert!(
            documents.iter().all(|key| is_document(&name(key))),
            "{documents:?}"
        );
    }
}

#[test]
fn only_arrays_and_groups_are_replaced() {
    let (store, path) = at("replaced");
    write(&path, &options(), 1).unwrap();
    let refused = create(&path, &layout(), &options()).unwrap_err();
    assert!(matches!(refused, Error::Exists { .. }), "{refused}");
    let over = options().with_overwrite(true).with_pyramid(None);
    write(&path, &over, 2).unwrap();
    assert!(below(&store, "a/out.zarr") == expected(&options().with_pyramid(None), 2));
    // Chunks alone, and an old array at the root.
    for (n, (key, bytes)) in [
        ("a/out.zarr/notes.txt", &b"mine"[..]),
        ("a/out.zarr/0/c/0/0/notes", b"mine"),
        ("a/out.zarr/labels/zarr.json", b"{}"),
        ("a/out.zarr/thesis/0/0", b"mine"),
    ]
    .into_iter()
    .enumerate()
    {
        store.plant(key, bytes);
        let before = store.objects();
        let error = create(&path, &layout(), &over).unwrap_err();
        let inside = key.trim_start_matches("a/out.zarr/");
        assert!(
            matches!(&error, Error::NotOverwritable { what, .. } if what.contains(inside)),
            "{n}: {error}"
        );
        assert!(store.objects() == before);
        let remote = store_of(&path, &over).unwrap().unwrap();
        remote.remove(&path, &[inside.to_owned()]).unwrap();
    }
    write(&path, &over, 3).unwrap();
    assert!(below(&store, "a/out.zarr") == expected(&options().with_pyramid(None), 3));
}

#[test]
fn precious_prefixes_stay() {
    let (store, path) = at("precious");
    let over = options().with_overwrite(true);
    // Data of a stranger without metadata; and one object of this name.
    store.plant("a/out.zarr/0/c/0/0/0", b"chunks of something");
    store.plant("a/out.zarr2/0", b"theirs");
    store.plant("a/file.zarr", b"theirs");
    let before = store.objects();
    for path in [
        path.clone(),
        path.with_file_name("file.zarr"),
        path.parent().unwrap().to_path_buf(),
    ] {
        for options in [&options(), &over] {
            let error = create(&path, &layout(), options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        }
    }
    assert!(store.objects() == before);
}

#[test]
fn two_runs_do_not_mix_their_chunks() {
    let (store, path) = at("two");
    let first = create(&path, &layout(), &options()).unwrap();
    fill(&*first, 1, 5).unwrap();
    assert!(matches!(
        create(&path, &layout(), &options()),
        Err(Error::Unfinished { .. })
    ));
    // The second takes over, and is complete before the first.
    write(&path, &options().with_overwrite(true), 2).unwrap();
    let wanted = expected(&options(), 2);
    assert!(below(&store, "a/out.zarr") == wanted);
    let error = first.finish().unwrap_err();
    assert!(matches!(error, Error::OutputModified { .. }), "{error}");
    assert_eq!(below(&store, "a/out.zarr").len(), wanted.len());

    // The first writes on while the second does: the second notices.
    let over = options().with_overwrite(true);
    let first = create(&path, &layout(), &over).unwrap();
    let second = create(&path, &layout(), &over).unwrap();
    fill(&*second, 2, usize::MAX).unwrap();
    store.plant("a/out.zarr/0/c/1/1/1/0", b"of the first");
    let error = second.finish().unwrap_err();
    assert!(matches!(error, Error::OutputModified { .. }), "{error}");
    drop(first);
}

#[test]
fn servers_without_conditions_are_refused() {
    let (store, path) = at("conditions");
    for (fault, hint) in [
        (Fault::NoConditions, "ignores conditions"),
        (Fault::Status(501), "on the condition"),
    ] {
        store.fail(move |request, _, _| (request == "put").then_some(fault));
        let error = create(&path, &layout(), &options()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(hint), "{error}");
        assert!(store.objects().is_empty());
    }
}

#[test]
fn uploads_are_bounded_and_run_at_once() {
    let (store, path) = at("bounded");
    let options = options().with_pyramid(None).with_shard(None);
    let output = create(&path, &layout(), &options).unwrap();
    assert_eq!(upload_bytes(output.layout()), 16 * 8 * 8 * 8 * 2);
    // The first two chunks wait for each other.
    let (meet, met) = (Barrier::new(2), AtomicU64::new(0));
    store.fail(move |request, key, _| {
        if request == "put" && key.contains("/c/") && met.fetch_add(1, Ordering::Relaxed) < 2 {
            meet.wait();
        }
        None
    });
    fill(&*output, 1, usize::MAX).unwrap();
    output.finish().unwrap();
    let most = store.most.load(Ordering::Relaxed);
    assert!((2..=16).contains(&most), "{most}");
}

#[test]
fn large_objects_are_written_in_parts() {
    let (store, path) = at("large");
    let layout = Layout::new([256, 512, 512], 1, DType::U16);
    let options = options()
        .with_pyramid(None)
        .with_codec(super::super::super::Codec::None)
        .with_chunk([256, 512, 512])
        .with_shard(None);
    let voxels: Vec<u8> = (0..layout.decoded_bytes().unwrap())
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    store.fail(|request, _, n| match (request, n) {
        ("create_multipart" | "put_part", 1) => Some(Fault::Status(503)),
        ("put_part", 3) | ("complete_multipart", 1) => Some(Fault::LostAnswer),
        _ => None,
    });
    let output = create(&path, &layout, &options).unwrap();
    output.write(Region::whole(layout.shape), &voxels).unwrap();
    output.finish().unwrap();
    assert_eq!(store.count("put_part"), 8 + 2);
    let stored = below(&store, "a/out.zarr");
    let chunk = stored.iter().find(|(name, _)| name.contains("/c/"));
    assert!(chunk.unwrap().1 == voxels);

    // Parts that fail for good leave nothing.
    store.fail(|request, _, n| (request == "put_part" && n > 3).then_some(Fault::Status(403)));
    let path = path.with_file_name("refused.zarr");
    let output = create(&path, &layout, &options).unwrap();
    output.write(Region::whole(layout.shape), &voxels).unwrap();
    let error = output.finish().unwrap_err();
    assert!(
        error.with_causes().contains("403"),
        "{}",
        error.with_causes()
    );
    assert_eq!(store.count("abort_multipart"), 1);
    assert!(below(&store, "a/refused.zarr").is_empty());
}

#[test]
fn only_zarr_is_written_and_only_to_stores() {
    let (_, path) = at("formats");
    for (path, hint) in [
        (path.with_file_name("out.nii"), "only Zarr"),
        (PathBuf::from("https://h/out.zarr"), "web servers"),
        (
            PathBuf::from("s3://me:secret@b/out.zarr"),
            "as storage options",
        ),
    ] {
        let error = create(&path, &layout(), &options()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(hint) && !text.contains("secret"), "{text}");
    }
}
