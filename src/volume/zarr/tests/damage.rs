//! Damaged chunks: never a panic, and never a wrong voxel despite a checksum.
//!
//! `VOXPATCH_MUTATIONS=2000` runs the long form.

use super::*;

const SHAPE: [u64; 3] = [8, 12, 16];

/// Returns the number of rounds: the environment variable's, or else a few.
pub(super) fn rounds(usual: usize) -> usize {
    let asked = std::env::var("VOXPATCH_MUTATIONS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Damages bytes in one of the ways of disks, networks and people.
fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let place = dice.below(bytes.len());
    let other = dice.below(bytes.len());
    let (from, to) = (place.min(other), place.max(other));
    match dice.below(8) {
        0 => bytes.truncate(place),
        1 => bytes.extend((0..=dice.below(40)).map(|n| u8::try_from(n * 6 % 256).unwrap())),
        2 => bytes[from..to].fill(0),
        3 => bytes[place] = dice.roll().to_le_bytes()[0],
        4 => bytes[from..to].reverse(),
        5 => {
            let length = (to - from).min(8);
            let random = dice.roll().to_le_bytes();
            bytes[from..from + length].copy_from_slice(&random[..length]);
        }
        // The first bytes are headers, the last checksums and indexes.
        6 => {
            let head = dice.below(bytes.len().min(24));
            bytes[head] ^= 1 << dice.below(8);
        }
        _ => bytes[place] ^= 1 << dice.below(8),
    }
}

/// Returns codecs, and whether they detect damage to any byte of a voxel.
#[expect(clippy::too_many_lines, reason = "a list")]
fn chains() -> Vec<(&'static str, Json, bool)> {
    let little = json!({"name": "bytes", "configuration": {"endian": "little"}});
    let big = json!({"name": "bytes", "configuration": {"endian": "big"}});
    let zstd = |checksum: bool| json!({"name": "zstd", "configuration": {"level": 1, "checksum": checksum}});
    let gzip = json!({"name": "gzip", "configuration": {"level": 5}});
    let crc = json!({"name": "crc32c"});
    let numcodecs = |name: &str, settings: Json| json!({"name": format!("numcodecs.{name}"), "configuration": settings});
    let blosc = |cname: &str, shuffle: &str| {
        json!({"name": "blosc", "configuration": {"cname": cname, "clevel": 5, "shuffle": shuffle,
            "typesize": 2, "blocksize": 0}})
    };
    let transpose = json!({"name": "transpose", "configuration": {"order": [2, 0, 1]}});
    let flat = json!({"name": "transpose", "configuration": {"order": [0, 1, 2]}});
    let shard = |codecs: Json, index: Json, location: &str| {
        json!({"name": "sharding_indexed", "configuration": {"chunk_shape": [4, 4, 8], "codecs": codecs,
            "index_codecs": index, "index_location": location}})
    };
    let index = json!([little, crc]);
    let bare = json!([little]);
    vec![
        ("raw", json!([big]), false),
        ("crc32c", json!([little, crc]), true),
        ("zstd", json!([little, zstd(false)]), false),
        ("zstd with checksum", json!([little, zstd(true)]), true),
        ("zstd in crc32c", json!([little, zstd(false), crc]), true),
        ("crc32c in zstd", json!([little, crc, zstd(false)]), true),
        ("gzip", json!([big, gzip]), true),
        (
            "zlib",
            json!([little, numcodecs("zlib", json!({"level": 5}))]),
            true,
        ),
        (
            "bz2",
            json!([little, numcodecs("bz2", json!({"level": 5}))]),
            true,
        ),
        (
            "adler32",
            json!([little, numcodecs("adler32", json!({}))]),
            true,
        ),
        (
            "fletcher32",
            json!([little, numcodecs("fletcher32", json!({}))]),
            true,
        ),
        ("blosc lz4", json!([little, blosc("lz4", "shuffle")]), false),
        (
            "blosc blosclz",
            json!([little, blosc("blosclz", "bitshuffle")]),
            false,
        ),
        (
            "blosc zstd",
            json!([little, blosc("zstd", "shuffle")]),
            false,
        ),
        (
            "blosc zlib",
            json!([little, blosc("zlib", "noshuffle")]),
            false,
        ),
        (
            "blosc in crc32c",
            json!([little, blosc("lz4hc", "shuffle"), crc]),
            true,
        ),
        (
            "blosc in gzip",
            json!([little, blosc("lz4", "shuffle"), gzip]),
            true,
        ),
        ("transposed", json!([transpose, little, zstd(true)]), true),
        (
            "shards",
            json!([shard(json!([little, zstd(true)]), index.clone(), "end")]),
            true,
        ),
        (
            "shards, index first",
            json!([shard(json!([little, crc]), index.clone(), "start")]),
            true,
        ),
        (
            "shards without index checksum",
            json!([shard(json!([little, zstd(false)]), bare.clone(), "end")]),
            false,
        ),
        (
            "shards, whole, bare",
            json!([flat, shard(json!([little]), bare.clone(), "end")]),
            false,
        ),
        (
            "shards in gzip",
            json!([shard(json!([little]), bare, "end"), gzip]),
            true,
        ),
        (
            "shards in shards",
            json!([{"name": "sharding_indexed", "configuration": {
            "chunk_shape": [8, 12, 8],
            "codecs": [shard(json!([little, crc]), index.clone(), "start")],
            "index_codecs": index}}]),
            true,
        ),
    ]
}

#[test]
fn damaged_chunks_are_errors_or_right_wherever_there_is_a_checksum() {
    let rounds = rounds(250);
    let voxels: Vec<u16> = (0..8 * 12 * 16)
        .map(|n: u16| (n / 3).wrapping_mul(n % 7) | 1)
        .collect();
    let whole: &[u8] = bytemuck::cast_slice(&voxels);
    let region = Region::new([1, 3, 2], [4, 2, 9]);
    for (n, (name, codecs, checked)) in chains().into_iter().enumerate() {
        let document = document(&codecs, SHAPE, DType::U16);
        let sound = encoded(&document, whole.to_vec());
        let volume = with_chunk(&document, sound.clone()).unwrap();
        assert_eq!(read_all(&volume).unwrap(), whole, "{name}");
        let part = volume.read(region).unwrap();
        let mut dice = Dice(n as u64);
        let (mut errors, mut wrong) = (0, 0);
        for round in 0..rounds {
            let mut chunk = sound.clone();
            while chunk == sound {
                damage(&mut chunk, &mut dice);
            }
            let volume = with_chunk(&document, chunk).unwrap();
            // Either reader may be first, so that neither depends on the state that the other leaves.
            let reads = if round % 2 == 0 {
                let all = read_all(&volume).map(|bytes| bytes == whole);
                [all, volume.read(region).map(|patch| patch == part)]
            } else {
                let some = volume.read(region).map(|patch| patch == part);
                [some, read_all(&volume).map(|bytes| bytes == whole)]
            };
            for read in reads {
                match read {
                    Ok(true) => {}
                    Ok(false) => wrong += 1,
                    Err(Error::Chunk { .. }) => errors += 1,
                    Err(error) => panic!("{name}: {}", error.with_causes()),
                }
            }
        }
        println!("{name}: {rounds} damaged chunks, {errors} errors, {wrong} wrong");
        assert!(errors > rounds / 20, "{name}: damage goes unnoticed");
        assert!(!checked || wrong == 0, "{name}: {wrong} wrong reads");
    }
}
