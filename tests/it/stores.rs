//! Volumes in stores: the same voxels as from files, whatever the server does.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::type_complexity,
    clippy::too_many_lines,
    clippy::case_sensitive_file_extension_comparisons,
    reason = "a test: small numbers, and a panic is a failure"
)]

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use voxpatch::volume::{Codec, CreateOptions, VolumeExt, ZarrVersion, create, suite};
use voxpatch::{DType, Error, Layout, OpenOptions, Patch, Region, StorageOptions, Volume};

use crate::object_server::{Fault, Server};

/// The tests share one pool of requests: those that count or fail them run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const SHAPE: [u64; 3] = [40, 50, 60];

/// A volume of pseudo-random voxels.
fn voxels(shape: [u64; 3]) -> Patch {
    let count: u64 = shape.iter().product();
    let value = |n: u64| {
        let mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((mixed >> 50) as i16) - 4000
    };
    Patch::new(
        Region::whole(shape),
        1,
        (0..count).map(value).collect::<Vec<i16>>(),
    )
    .unwrap()
}

fn write(path: &Path, voxels: &Patch, options: &CreateOptions) {
    let layout = Layout::new(voxels.shape(), 1, DType::I16);
    let output = create(path, &layout, options).unwrap();
    output
        .write(Region::whole(voxels.shape()), voxels.bytes())
        .unwrap();
    output.finish().unwrap();
}

/// Options for a test: a server that does not answer is given up soon.
fn options() -> OpenOptions {
    let storage = StorageOptions::new()
        .with("stall_timeout", "0.3")
        .with("retry_timeout", "20");
    OpenOptions::default().with_storage_options(storage)
}

fn open(server: &Server, key: &str) -> Arc<dyn Volume> {
    options().open(server.url(key)).unwrap()
}

fn sharded() -> CreateOptions {
    CreateOptions::default()
        .with_chunk([8; 3])
        .with_shard(Some([24, 32, 40]))
}

fn chunked() -> CreateOptions {
    CreateOptions::default()
        .with_chunk([16; 3])
        .with_shard(None)
}

/// Returns the options for the output of that name.
fn options_for(name: &str) -> CreateOptions {
    match name {
        "chunks.zarr" => chunked(),
        "shards.zarr" => sharded(),
        "v2.zarr" => chunked().with_zarr(ZarrVersion::V2),
        _ => CreateOptions::default(),
    }
}

const NAMES: [&str; 9] = [
    "chunks.zarr",
    "shards.zarr",
    "v2.zarr",
    "scan.npy",
    "scan.nii",
    "scan.nii.gz",
    "scan.nrrd",
    "scan.mha",
    "scan.mhd",
];

/// A server with a volume in every format: the keys, and the voxels.
fn everything(server: &Server) -> (Vec<String>, Patch) {
    let dir = tempfile::tempdir().unwrap();
    let voxels = voxels(SHAPE);
    let mut keys = Vec::new();
    for name in NAMES {
        let path = dir.path().join(name);
        write(&path, &voxels, &options_for(name));
        server.put_all(&format!("box/{name}"), &path);
        if name == "scan.mhd" {
            server.put_all("box/scan.raw", &dir.path().join("scan.raw"));
        }
        keys.push(format!("box/{name}"));
    }
    (keys, voxels)
}

#[test]
fn volumes_of_all_formats_pass_the_suite_from_a_web_server() {
    let _alone = alone();
    let server = Server::start();
    let (keys, voxels) = everything(&server);
    for key in keys {
        let volume = open(&server, &key);
        assert!(volume.layout().remote, "{key}");
        suite::check(&*volume, &voxels);
        assert_eq!(
            volume.layout().path,
            Path::new(&server.url(&key)).join(level(&key)),
            "{key}"
        );
    }
}

fn level(key: &str) -> &'static str {
    if key.ends_with(".zarr") { "0" } else { "" }
}

#[test]
fn the_index_of_a_shard_is_read_once_and_bytes_are_few() {
    let _alone = alone();
    let server = Server::start();
    let (_, voxels) = everything(&server);
    let volume = open(&server, "box/shards.zarr");
    let opened = server.requests();
    assert!(opened.len() <= 6, "{opened:?}");
    let whole = volume.read(Region::whole(SHAPE)).unwrap();
    assert!(whole.bytes() == voxels.bytes());
    let read = server.requests();
    // 2 x 2 x 2 shards, and at least one more request for the chunks of each.
    let indexes = read
        .iter()
        .filter(|request| request.head.contains("bytes=-"))
        .count();
    assert_eq!(indexes, 8);
    let (sent, ideal): (u64, u64) = (read.iter().map(|r| r.sent).sum(), volume.read_stats().bytes);
    assert!(sent * 10 <= ideal * 12, "{sent} bytes for {ideal}");
    assert!(
        read.len() <= 8 + 24,
        "{} requests for 210 chunks",
        read.len()
    );
    volume.read(Region::new([0; 3], [40, 1, 1])).unwrap();
    assert!(
        !server
            .requests()
            .iter()
            .any(|request| request.head.contains("bytes=-"))
    );
}

#[test]
fn requests_run_at_once_up_to_the_limit() {
    let _alone = alone();
    let server = Server::start();
    let (_, voxels) = everything(&server);
    let volume = open(&server, "box/chunks.zarr");
    server.set_latency(Duration::from_millis(50));
    server.most_at_once();
    let whole = volume.read(Region::whole(SHAPE)).unwrap();
    assert!(whole.bytes() == voxels.bytes());
    let most = server.most_at_once();
    assert!((16..=32).contains(&most), "{most} requests at once");
}

/// A volume of copies of one write chunk of 128^3 voxels that are not compressed.
fn tiled(server: &Server, key: &str, shard: Option<[u64; 3]>, counts: [u64; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tile.zarr");
    let chunk = if shard.is_some() { 64 } else { 128 };
    let options = CreateOptions::default()
        .with_chunk([chunk; 3])
        .with_shard(shard)
        .with_codec(Codec::None);
    write(&path, &voxels([128; 3]), &options);
    server.put_tiled(key, &path, counts);
}

/// More is prefetched than may be held, and read in another order than it was prefetched.
#[test]
fn the_answers_that_are_held_take_what_plans_count() {
    let _alone = alone();
    let server = Server::start();
    server.set_latency(Duration::from_millis(5));
    let counts = [2, 3, 3];
    tiled(&server, "shards.zarr", Some([128; 3]), counts);
    tiled(&server, "chunks.zarr", None, counts);
    for (key, chunk) in [("shards.zarr", 64), ("chunks.zarr", 128)] {
        let volume = open(&server, key);
        let layout = volume.layout().clone();
        assert_eq!(layout.read_chunk, Some([1, chunk, chunk, chunk]));
        let answers = layout.read_memory.answers;
        assert!(answers < layout.decoded_bytes().unwrap(), "{answers}");
        let counts = layout.shape.map(|length| length / chunk);
        let mut all: Vec<_> = (0..counts.iter().product())
            .map(|n| {
                [
                    0,
                    n / counts[2] / counts[1],
                    n / counts[2] % counts[1],
                    n % counts[2],
                ]
            })
            .collect();
        let _ = voxpatch::store::most_held_bytes();
        server.requests();
        // The indexes of shards come first.
        for _ in 0..2 {
            for &index in &all {
                volume.prefetch(index);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut random = Random(3);
        for n in (1..all.len()).rev() {
            all.swap(n, random.below(n + 1));
        }
        let own = 2 * chunk.pow(3);
        let expected = volume.read_chunk([0; 4]).unwrap();
        std::thread::scope(|scope| {
            for part in all.chunks(all.len().div_ceil(2)) {
                let (volume, expected) = (&volume, &expected);
                scope.spawn(move || {
                    for &index in part {
                        let inside = |a: usize| index[a + 1] * chunk % 128 == 0;
                        let read = volume.read_chunk(index).unwrap();
                        assert!(!(0..3).all(inside) || read.voxels == expected.voxels);
                    }
                });
            }
        });
        let held = voxpatch::store::most_held_bytes();
        let most = answers + 2 * own;
        assert!(held <= most, "{key}: {held} bytes held, {most} planned");
        assert!(held > answers / 2, "{key}: {held} bytes held");
        let lengths: Vec<u64> = server
            .requests()
            .iter()
            .filter_map(|request| request.range.clone())
            .map(|range| range.end - range.start)
            .collect();
        if chunk == 64 {
            let longest = lengths.iter().max().unwrap();
            assert!((2 * own..=4 << 20).contains(longest), "{longest}");
        }
    }
}

/// Reads everything, and returns the largest number of requests at once.
fn most_at_once(server: &Server, key: &str, voxels: &Patch) -> usize {
    let volume = open(server, key);
    server.most_at_once();
    let whole = volume.read(Region::whole(SHAPE)).unwrap();
    assert!(whole.bytes() == voxels.bytes());
    server.most_at_once()
}

#[test]
fn a_server_that_is_overloaded_gets_fewer_requests_for_a_while() {
    let _alone = alone();
    let server = Server::start();
    let (_, voxels) = everything(&server);
    server.set_latency(Duration::from_millis(15));
    let read = || most_at_once(&server, "box/chunks.zarr", &voxels);
    // The pool is the process's, and other tests may have had such answers.
    let recovered = || (0..80).any(|_| read() >= 31);
    for fault in [Fault::Unavailable, Fault::TooMany] {
        assert!(recovered(), "{fault:?}: it does not recover");
        // Those of opening, and a third of the chunks.
        server.fail((0..24).map(|n| (n >= 6).then_some(fault)));
        read();
        server.fail([]);
        let most = read();
        assert!((1..=20).contains(&most), "{fault:?}: {most} at once");
    }
    assert!(recovered(), "it does not recover");
}

#[test]
fn consolidated_metadata_take_one_request() {
    let _alone = alone();
    let server = Server::start();
    let (_, voxels) = everything(&server);
    let get = |key: &str| {
        let local = reqwest_free_get(&server, key);
        serde_json::from_slice::<serde_json::Value>(&local).unwrap()
    };
    let mut group = get("box/shards.zarr/zarr.json");
    let array = get("box/shards.zarr/0/zarr.json");
    group["consolidated_metadata"] =
        serde_json::json!({"kind": "inline", "must_understand": false, "metadata": {"0": array}});
    server.put("box/shards.zarr/zarr.json", group.to_string().into_bytes());
    server.requests();
    let volume = open(&server, "box/shards.zarr");
    let requests: Vec<String> = server
        .requests()
        .iter()
        .map(|r| format!("{} {}", r.method, r.path))
        .collect();
    assert_eq!(requests, ["GET box/shards.zarr/zarr.json"]);
    assert!(volume.read(Region::whole(SHAPE)).unwrap().bytes() == voxels.bytes());
}

/// Returns an object's bytes as the server sends them.
fn reqwest_free_get(server: &Server, key: &str) -> Vec<u8> {
    use std::io::{Read, Write};
    let url = server.url(key);
    let (host, _) = url.trim_start_matches("http://").split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    write!(stream, "GET /{key} HTTP/1.1\r\n\r\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    answer.split_off(end + 4)
}

#[test]
fn a_fault_is_an_error_or_repeated_and_never_a_voxel() {
    let _alone = alone();
    let server = Server::start();
    let (keys, voxels) = everything(&server);
    let mut random = Random(7);
    let (mut right, mut refused) = (0, 0);
    let begun = Instant::now();
    for key in &keys {
        for round in 0..12 {
            // Half of the responses fail at first, later a few of them.
            let often = if round < 3 { 2 } else { 8 };
            let faults: Vec<_> = (0..400)
                .map(|_| {
                    let fault = Fault::ALL[random.below(Fault::ALL.len())];
                    (random.below(often) == 0).then_some(fault)
                })
                .collect();
            server.fail(faults);
            let read = options().open(server.url(key)).and_then(|volume| {
                (0..4).try_for_each(|_| {
                    let region = random.region(SHAPE);
                    let read = volume.read(region)?;
                    assert!(read.bytes() == voxels.cut(region), "{key}: wrong voxels");
                    right += 1;
                    Ok(())
                })
            });
            if let Err(error) = read {
                refused += 1;
                // A body that is too short may have headers that fit: then it cannot be decoded.
                let known = matches!(
                    error,
                    Error::Io { .. }
                        | Error::InputModified { .. }
                        | Error::Unsupported { .. }
                        | Error::Chunk { .. }
                        | Error::Header { .. }
                );
                assert!(known, "{key}: {error:?}");
                assert!(error.to_string().contains("http://127.0.0.1"), "{error}");
            }
        }
    }
    server.fail([]);
    println!(
        "{right} reads right, {refused} refused, {:?}",
        begun.elapsed()
    );
    assert!(right > 100, "{right} reads right, {refused} refused");
}

/// Pseudo-random numbers: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ (mixed >> 27)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 8).unwrap() % n
    }

    fn region(&mut self, shape: [u64; 3]) -> Region {
        let start = shape.map(|n| (self.next() >> 8) % n);
        let size = std::array::from_fn(|a| 1 + (self.next() >> 8) % (shape[a] - start[a]));
        Region::new(start.map(u64::cast_signed), size)
    }
}

trait Cut {
    fn cut(&self, region: Region) -> Vec<u8>;
}

impl Cut for Patch {
    fn cut(&self, region: Region) -> Vec<u8> {
        let [_, y, x] = self.shape();
        let at = |a: i64| a.unsigned_abs();
        let mut out = Vec::new();
        for dz in 0..region.shape[0] {
            for dy in 0..region.shape[1] {
                let row = (at(region.start[0]) + dz) * y * x + (at(region.start[1]) + dy) * x;
                let from = usize::try_from(2 * (row + at(region.start[2]))).unwrap();
                let length = usize::try_from(2 * region.shape[2]).unwrap();
                out.extend_from_slice(&self.bytes()[from..from + length]);
            }
        }
        out
    }
}

#[test]
fn the_second_epoch_makes_no_request_but_the_checks_of_tags() {
    let _alone = alone();
    let server = Server::start();
    let (keys, voxels) = everything(&server);
    let dir = tempfile::tempdir().unwrap();
    let cached = || options().with_cache_dir(Some(dir.path().to_path_buf()));
    let epoch = |name: &str| {
        let mut random = Random(3);
        for key in &keys {
            let volume = cached().open(server.url(key)).unwrap();
            for _ in 0..2 {
                let region = random.region(SHAPE);
                let read = volume.read(region).unwrap();
                assert!(read.bytes() == voxels.cut(region), "{name}: {key}");
            }
        }
        let requests = server.requests();
        let gets = requests.iter().filter(|request| request.method == "GET");
        (gets.count(), requests.len())
    };
    let (first, _) = epoch("first");
    assert!(first > 30, "{first} requests");
    let (gets, all) = epoch("second");
    assert_eq!(gets, 0, "of {all} requests");

    // Damaged entries are fetched again.
    let mut folders = vec![dir.path().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[0] ^= 1;
                std::fs::write(&path, bytes).unwrap();
            }
        }
    }
    // What was unpacked has been damaged too, and is unpacked from the object.
    let (again, _) = epoch("damaged");
    assert!(again > 30, "{again} of {first} requests");
    assert_eq!(epoch("mended").0, 0);

    // A changed object is another entry.
    let mut other = voxels.clone();
    other.bytes_mut().iter_mut().for_each(|byte| *byte ^= 1);
    let local = tempfile::tempdir().unwrap();
    for key in keys.iter().filter(|key| !key.ends_with("mhd")) {
        let name = key.rsplit_once('/').unwrap().1;
        let path = local.path().join(name);
        write(&path, &other, &options_for(name));
        server.put_all(key, &path);
        let volume = cached().open(server.url(key)).unwrap();
        let whole = Region::whole(SHAPE);
        assert!(
            volume.read(whole).unwrap().bytes() == other.bytes(),
            "{key}"
        );
    }
}

#[test]
fn an_object_that_is_replaced_is_an_error() {
    let _alone = alone();
    let server = Server::start();
    let (keys, voxels) = everything(&server);
    for key in keys.iter().filter(|key| !key.ends_with("mhd")) {
        let volume = open(&server, key);
        volume.read(Region::new([0; 3], [40, 50, 1])).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(key.rsplit_once('/').unwrap().1);
        let mut other = voxels.clone();
        other.bytes_mut().iter_mut().for_each(|byte| *byte ^= 1);
        write(&path, &other, &options_for(key.rsplit_once('/').unwrap().1));
        server.put_all(key, &path);
        // The beginning of a stream is decoded already.
        let region = Region::new([0; 3], [40, 50, 1]);
        match volume.read(region) {
            Err(Error::InputModified { .. }) => {}
            Ok(read) if key.ends_with(".gz") => assert!(read.bytes() == voxels.cut(region)),
            other => panic!("{key}: {other:?}"),
        }
        server.remove("box/chunks.zarr/0/c/0/0/0");
    }
}

#[test]
fn a_server_that_ignores_ranges_is_refused_unless_allowed() {
    let _alone = alone();
    let server = Server::start();
    let (_, voxels) = everything(&server);
    let ignore = || server.fail((0..1000).map(|_| Some(Fault::IgnoresRange)));
    ignore();
    let refused = options().open(server.url("box/scan.npy")).unwrap_err();
    assert!(refused.to_string().contains("ignores ranges"), "{refused}");
    ignore();
    let storage = StorageOptions::new().with("allow_whole", "true");
    let volume = OpenOptions::default()
        .with_storage_options(storage)
        .open(server.url("box/scan.npy"))
        .unwrap();
    assert!(volume.read(Region::whole(SHAPE)).unwrap().bytes() == voxels.bytes());
    server.fail([]);
}

#[test]
fn secrets_appear_in_no_message() {
    let _alone = alone();
    let server = Server::start();
    let storage = StorageOptions::new()
        .with("user_agent", "hush-1")
        .with("retry_timeout", "0.2");
    let options = OpenOptions::default().with_storage_options(storage);
    let address = server
        .url("a.nii?sig=hush-2")
        .replace("http://", "http://me:hush-3@");
    let error = options.open(&address).unwrap_err();
    let (text, debug) = (format!("{error}"), format!("{error:?} {options:?}"));
    assert!(
        !text.contains("hush") && !debug.contains("hush"),
        "{text} {debug}"
    );
    assert!(text.contains("a.nii"), "{text}");
    let heads = server.requests();
    assert!(
        heads.iter().any(|request| request.head.contains("hush-2")),
        "{heads:?}"
    );
}

#[test]
fn formats_that_are_read_from_files_only_are_refused_without_a_request() {
    let server = Server::start();
    for (name, what) in [
        ("a.ozx", "a zip archive"),
        ("scan.zarr.zip", "a zip archive"),
        ("a.ozx/0", "a zip archive"),
        ("case.npz/data", "a zip archive"),
        ("a.n5", "N5"),
        ("a.n5/s0", "N5"),
        ("a.h5", "HDF5"),
        ("a.H5:/raw/data", "HDF5"),
        ("a.ims", "HDF5"),
        ("a.dcm", "DICOM"),
        ("a.ome.tif", "TIFF"),
        ("a.b2nd", "a Blosc2 array"),
    ] {
        let address = server.url(name);
        let error = options().open(&address).unwrap_err().with_causes();
        let says = format!("{what} is read from the file system only");
        assert!(error.contains(&says) && error.contains(name), "{error}");
    }
    assert!(server.requests().is_empty());
}
