//! Chunks that are far larger, or far smaller, than their metadata promise.

use std::fs;
use std::io::{self, Read, Write};
use std::process::Command;

use serde_json::{Value as Json, json};

use super::{File, all_refused, put, refusal, text, v2, v3};

/// The voxels, which are also the bytes, of a decoded chunk.
const SHAPE: [u64; 3] = [32, 32, 64];
const DECODED: u64 = 64 << 10;
/// The memory that a refusal may take beyond the decoded chunk.
const SPARE: u64 = 32 << 20;

/// Returns a number from the system's status of this process, in bytes.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number
        .and_then(|n| n.parse::<u64>().ok())
        .expect("a number of KiB")
        << 10
}

/// Resets the peak memory of this process.
fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").expect("it is our own");
}

/// Writes zeros.
pub(super) fn zeros(mut writer: impl Write, bytes: u64) {
    io::copy(&mut io::repeat(0).take(bytes), &mut writer).expect("memory takes it");
}

/// Returns a gzip stream of many members of `bytes` zeros.
fn gzip(bytes: u64, members: usize) -> Vec<u8> {
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    zeros(&mut member, bytes);
    member.finish().expect("memory takes it").repeat(members)
}

/// Returns a zlib stream of zeros.
pub(super) fn zlib(bytes: u64) -> Vec<u8> {
    let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zeros(&mut stream, bytes);
    stream.finish().expect("memory takes it")
}

fn bz2(bytes: u64) -> Vec<u8> {
    let mut stream = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    zeros(&mut stream, bytes);
    stream.finish().expect("memory takes it")
}

/// Returns a zstd frame of zeros.
pub(super) fn zstd(bytes: u64) -> Vec<u8> {
    let mut stream = zstd::Encoder::new(Vec::new(), 1).expect("a level");
    zeros(&mut stream, bytes);
    stream.finish().expect("memory takes it")
}

/// Returns a zstd frame of 16 bytes that claims to contain `bytes`.
fn zstd_claim(bytes: u64) -> Vec<u8> {
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0xE0];
    frame.extend(bytes.to_le_bytes());
    frame.extend([1, 0, 0]);
    assert_eq!(frame.len(), 16);
    frame
}

/// Returns a blosc header that claims to contain `bytes` in blocks of `block`.
fn blosc_claim(bytes: u32, block: u32) -> Vec<u8> {
    let mut chunk = vec![2, 1, 0x21, 1];
    for field in [bytes, block, 32] {
        chunk.extend(field.to_le_bytes());
    }
    chunk.extend([0xFF; 16]);
    chunk
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// A bomb: its name, its files, and the expected error.
type Bomb = (&'static str, Vec<File>, &'static str);

#[expect(clippy::too_many_lines, reason = "a list")]
fn bombs() -> Vec<Bomb> {
    let bytes = json!({"name": "bytes"});
    let zstd_bomb = zstd(1 << 30);
    let codec =
        |name: &str, settings: Json| json!([bytes, {"name": name, "configuration": settings}]);
    let blosc = json!({"cname": "lz4", "clevel": 1, "shuffle": "noshuffle", "blocksize": 0});
    let plain_zstd = codec("zstd", json!({"level": 1, "checksum": false}));
    let shard = |inner: [u64; 3], codecs: &Json, index: &Json| {
        json!([{"name": "sharding_indexed", "configuration": {"chunk_shape": inner, "codecs": codecs,
            "index_codecs": index}}])
    };
    let little = json!({"name": "bytes", "configuration": {"endian": "little"}});
    let one = shard(SHAPE, &plain_zstd, &json!([little]));
    let many = shard(
        [1, 1, 1],
        &json!([little]),
        &json!([little, {"name": "crc32c"}]),
    );
    let three = |codecs: &Json, chunk: Vec<u8>| {
        vec![("zarr.json", text(&v3(&SHAPE, codecs))), ("c/0/0/0", chunk)]
    };
    let two = |compressor: Json, chunk: Vec<u8>| {
        vec![
            (".zarray", text(&v2(&SHAPE, &compressor))),
            ("0.0.0", chunk),
        ]
    };
    let indexed = |mut chunk: Vec<u8>, entry: [u64; 2]| {
        chunk.extend(numbers(&entry));
        chunk
    };
    let gzips = codec("gzip", json!({"level": 1}));
    let fits = "bytes, more than the";
    vec![
        ("gzip, 3 GiB", three(&gzips, gzip(16 << 20, 192)), fits),
        (
            "gzip, 64 MiB in a length that can be",
            three(&gzips, gzip(64 << 20, 1)),
            "it holds",
        ),
        (
            "gzip, v2",
            two(json!({"id": "gzip", "level": 1}), gzip(64 << 20, 1)),
            "it holds",
        ),
        (
            "zlib",
            three(
                &codec("numcodecs.zlib", json!({"level": 1})),
                zlib(64 << 20),
            ),
            "no end within",
        ),
        (
            "zlib, v2",
            two(json!({"id": "zlib", "level": 1}), zlib(64 << 20)),
            "no end within",
        ),
        (
            "bz2",
            three(&codec("numcodecs.bz2", json!({"level": 1})), bz2(48 << 20)),
            "it holds",
        ),
        (
            "bz2, v2",
            two(json!({"id": "bz2", "level": 1}), bz2(48 << 20)),
            "it holds",
        ),
        (
            "zstd, 1 GiB",
            three(&plain_zstd, zstd_bomb.clone()),
            "too small",
        ),
        (
            "zstd, 1 GiB, v2",
            two(json!({"id": "zstd", "level": 1}), zstd_bomb.clone()),
            "too small",
        ),
        (
            "zstd in 16 bytes claims 2^60",
            three(&plain_zstd, zstd_claim(1 << 60)),
            "orruption",
        ),
        (
            "zstd in 16 bytes claims 2^64",
            three(&plain_zstd, zstd_claim(u64::MAX)),
            "0 bytes instead of 65536",
        ),
        (
            "zstd in 16 bytes claims 2^31, v2",
            two(json!({"id": "zstd", "level": 1}), zstd_claim(1 << 31)),
            "orruption",
        ),
        (
            "zstd in zstd",
            {
                let chunk = zstd::bulk::compress(&zstd_bomb, 3).expect("memory takes it");
                three(&json!([bytes, plain_zstd[1], plain_zstd[1]]), chunk)
            },
            "too small",
        ),
        (
            "blosc claims 2^31",
            three(
                &codec("blosc", blosc.clone()),
                blosc_claim(1 << 31, 1 << 20),
            ),
            "its header promises",
        ),
        (
            "blosc claims 2^32",
            three(
                &codec("blosc", blosc.clone()),
                blosc_claim(u32::MAX, u32::MAX),
            ),
            "its header promises",
        ),
        (
            "blosc, v2",
            two(
                json!({"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 0}),
                blosc_claim(1 << 31, 1 << 20),
            ),
            "its header promises",
        ),
        (
            "blosc of blocks of 2^31",
            three(
                &codec("blosc", blosc.clone()),
                blosc_claim(65536, 0x7FFF_FFFF),
            ),
            "header is invalid",
        ),
        (
            "zstd bomb in a shard",
            three(&one, {
                let bomb = zstd_bomb.clone();
                let length = bomb.len() as u64;
                indexed(bomb, [0, length])
            }),
            "too small",
        ),
        (
            "zstd claim in a shard",
            three(&one, indexed(zstd_claim(1 << 60), [0, 16])),
            "orruption",
        ),
        (
            "shard index, length 2^38",
            three(&one, indexed(vec![0; 64], [0, 1 << 38])),
            "274877906944",
        ),
        (
            "shard index, length 2^62",
            three(&one, indexed(vec![0; 64], [0, 1 << 62])),
            "4611686018427387904",
        ),
        (
            "shard index, offset 2^62",
            three(&one, indexed(vec![0; 64], [1 << 62, 64])),
            "4611686018427387904",
        ),
        (
            "shard index, end beyond 2^64",
            three(&one, indexed(vec![0; 64], [u64::MAX - 1, 64])),
            "18446744073709551614",
        ),
        (
            "shard of 2^16 chunks whose index is missing",
            three(&many, vec![0; 64]),
            "index",
        ),
        (
            "shard of 2^16 chunks whose index has a wrong checksum",
            three(&many, vec![0; (16 << 16) + 4]),
            "checksum",
        ),
    ]
}

#[test]
fn bombs_are_refused_within_their_decoded_size_and_32_mib() {
    // The memory of the whole process is measured, so no other test may run in it.
    const ALONE: &str = "VOXPATCH_BOMBS_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let own = std::env::current_exe().expect("this program");
        let name = "hostile::bombs::bombs_are_refused_within_their_decoded_size_and_32_mib";
        let done = Command::new(own)
            .args([name, "--exact", "--nocapture"])
            .env(ALONE, "yes")
            .output()
            .expect("it starts");
        let told = String::from_utf8_lossy(&done.stdout);
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{}\n{told}\n{error}", done.status);
        assert!(told.contains("25 bombs"), "{told}");
        println!("{told}");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bombs: Vec<_> = bombs()
        .into_iter()
        .enumerate()
        .map(|(n, (name, files, says))| {
            let folder = dir.path().join(n.to_string());
            put(&folder, &files);
            (name, folder, says)
        })
        .collect();
    let before = status("VmRSS:");
    let mut most = 0;
    all_refused(bombs.iter().map(|(name, folder, says)| {
        forget_peak();
        refusal(name, folder, says)?;
        let took = status("VmHWM:").saturating_sub(before);
        most = most.max(took);
        if took < DECODED + SPARE {
            Ok(())
        } else {
            Err(format!("{name} took {} KiB", took >> 10))
        }
    }));
    println!("{} bombs, at most {} KiB", bombs.len(), most >> 10);
}
