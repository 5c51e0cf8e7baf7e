//! Chunks made to do harm: decompression bombs, and indexes that point outside.

use std::fs;
use std::io::{self, Read, Write};

use super::*;

const SHAPE: [u64; 3] = [32, 32, 32];

/// Returns the peak memory of this process, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn zeros(mut writer: impl Write, bytes: u64) {
    io::copy(&mut io::repeat(0).take(bytes), &mut writer).unwrap();
}

fn gzip_bomb() -> Vec<u8> {
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zeros(&mut member, 1 << 20);
    member.finish().unwrap().repeat(24)
}

fn zlib_bomb() -> Vec<u8> {
    let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zeros(&mut stream, 64 << 20);
    stream.finish().unwrap()
}

fn zstd_bomb() -> Vec<u8> {
    let mut stream = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zeros(&mut stream, 1 << 30);
    stream.finish().unwrap()
}

fn bz2_bomb() -> Vec<u8> {
    let mut stream = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    zeros(&mut stream, 64 << 20);
    stream.finish().unwrap()
}

/// Returns a zstd frame of 16 bytes that claims to decode to `bytes`.
fn zstd_claim(bytes: u64) -> Vec<u8> {
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0xE0];
    frame.extend(bytes.to_le_bytes());
    frame.extend([1, 0, 0]);
    assert_eq!(frame.len(), 16);
    frame
}

/// Returns a blosc header that claims to decode to `bytes`, without data.
fn blosc_claim(bytes: u32, block: u32) -> Vec<u8> {
    let mut chunk = vec![2, 1, 0x21, 1];
    for field in [bytes, block, 32] {
        chunk.extend(field.to_le_bytes());
    }
    chunk.extend([0xFF; 16]);
    chunk
}

#[test]
fn bombs_are_errors_and_take_no_memory() {
    let bytes = json!({"name": "bytes"});
    let codec =
        |name: &str, settings: Json| json!([bytes, {"name": name, "configuration": settings}]);
    let blosc = json!({"cname": "lz4", "clevel": 1, "shuffle": "noshuffle", "blocksize": 0});
    let zstd = codec("zstd", json!({"level": 1, "checksum": false}));
    let in_shard = json!([{"name": "sharding_indexed", "configuration": {"chunk_shape": SHAPE,
        "codecs": zstd, "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]}}]);
    let mut shard = zstd_bomb();
    let length = shard.len() as u64;
    shard.extend([0, length].map(u64::to_le_bytes).concat());
    let mut claim_in_shard = zstd_claim(1 << 60);
    claim_in_shard.extend([0, 16].map(u64::to_le_bytes).concat());
    let outside = json!([bytes, {"name": "blosc", "configuration": blosc}, {"name": "blosc", "configuration": blosc}]);
    let bombs: Vec<(&str, Json, Vec<u8>)> = vec![
        ("gzip", codec("gzip", json!({"level": 1})), gzip_bomb()),
        (
            "zlib",
            codec("numcodecs.zlib", json!({"level": 1})),
            zlib_bomb(),
        ),
        (
            "bz2",
            codec("numcodecs.bz2", json!({"level": 1})),
            bz2_bomb(),
        ),
        ("zstd", zstd.clone(), zstd_bomb()),
        ("zstd claims 2^60", zstd.clone(), zstd_claim(1 << 60)),
        ("zstd claims 2^64", zstd.clone(), zstd_claim(u64::MAX)),
        ("zstd claims 2^31", zstd.clone(), zstd_claim(1 << 31)),
        ("zstd twice", json!([bytes, zstd[1], zstd[1]]), {
            zstd::bulk::compress(&zstd_bomb(), 3).unwrap()
        }),
        ("zstd in a shard", in_shard.clone(), shard),
        ("zstd claim in a shard", in_shard, claim_in_shard),
        (
            "blosc 2^31",
            codec("blosc", blosc.clone()),
            blosc_claim(1 << 31, 1 << 20),
        ),
        (
            "blosc 2^32",
            codec("blosc", blosc.clone()),
            blosc_claim(u32::MAX, u32::MAX),
        ),
        (
            "blosc block",
            codec("blosc", blosc.clone()),
            blosc_claim(32768, 0x7FFF_FFFF),
        ),
        ("blosc in blosc", outside, blosc_claim(0x7FFF_FFFF, 1 << 20)),
    ];
    let before = peak();
    for (name, codecs, chunk) in bombs {
        let document = document(&codecs, SHAPE, DType::U8);
        let volume = with_chunk(&document, chunk).unwrap();
        let read = read_all(&volume);
        assert!(matches!(read, Err(Error::Chunk { .. })), "{name}: {read:?}");
        let mut voxel = [0];
        let region = Region::new([5; 3], [1; 3]);
        let read = volume.read_channels(0..1, region, &mut voxel);
        assert!(matches!(read, Err(Error::Chunk { .. })), "{name}: {read:?}");
    }
    // Other tests run at the same time; the bombs would take hundreds of MiB.
    assert!(peak() - before < 128 << 10, "{} KiB", peak() - before);
}

#[test]
fn an_index_that_points_outside_its_shard_is_an_error() {
    let little = json!({"name": "bytes", "configuration": {"endian": "little"}});
    let sharding = json!({"name": "sharding_indexed", "configuration": {"chunk_shape": [2, 4, 4],
        "codecs": [little], "index_codecs": [little]}});
    let transpose = json!({"name": "transpose", "configuration": {"order": [0, 1, 2]}});
    let nested = json!({"name": "sharding_indexed", "configuration": {"chunk_shape": [4, 4, 4],
        "codecs": [sharding], "index_codecs": [little, {"name": "crc32c"}]}});
    let voxels: Vec<u8> = (1..=128).collect();
    for (name, codecs, inside) in [
        ("alone", json!([sharding]), 0),
        ("whole", json!([transpose, sharding]), 0),
        // The outer index has one entry and a checksum.
        ("nested", json!([nested]), 20),
    ] {
        let document = document(&codecs, [4, 4, 4], DType::U16);
        let chunk = encoded(&document, voxels.clone());
        let volume = with_chunk(&document, chunk.clone()).unwrap();
        assert_eq!(read_all(&volume).unwrap(), voxels, "{name}");
        let entry = chunk.len() - inside - 32;
        for (offset, length) in [
            (1 << 62, 64),
            (1 << 38, 64),
            (0, 1 << 38),
            (0, 1 << 62),
            (u64::MAX, 64),
            (64, u64::MAX),
            (u64::MAX - 1, u64::MAX),
            (u64::MAX - 63, 64),
            (200, 64),
            (0, 63),
            (0, 65),
            (0, 0),
        ] {
            let mut chunk = chunk.clone();
            let numbers = [offset, length].map(u64::to_le_bytes).concat();
            chunk[entry..entry + 16].copy_from_slice(&numbers);
            let read = read_all(&with_chunk(&document, chunk).unwrap());
            let refused = matches!(read, Err(Error::Chunk { .. }));
            assert!(refused, "{name}, {offset}, {length}: {read:?}");
        }
        let cut = with_chunk(&document, chunk[..9].to_vec()).unwrap();
        assert!(matches!(read_all(&cut), Err(Error::Chunk { .. })), "{name}");
    }
}

/// Replaces a random part of a document.
fn spoil(value: &mut Json, dice: &mut Dice) {
    let children: Vec<String> = match value {
        Json::Object(object) => object.keys().cloned().collect(),
        Json::Array(list) => (0..list.len()).map(|n| n.to_string()).collect(),
        _ => Vec::new(),
    };
    if !children.is_empty() && dice.below(4) > 0 {
        let child = &children[dice.below(children.len())];
        if let (Json::Object(object), 0) = (&mut *value, dice.below(8)) {
            object.remove(child);
            return;
        }
        let place = format!("/{}", child.replace('~', "~0").replace('/', "~1"));
        return spoil(value.pointer_mut(&place).unwrap(), dice);
    }
    let spoils = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1),
        json!(u64::MAX),
        json!(1_u64 << 63),
        json!(i64::MIN),
        json!(4_294_967_296_u64),
        json!(1e308),
        json!(0.5),
        json!(""),
        json!("NaN"),
        json!("../x"),
        json!("é/\u{0}"),
        json!([]),
        json!({}),
        json!([[]]),
        json!([0, 0, 0]),
        json!([1, 1, 1]),
        json!([u64::MAX, u64::MAX, 2]),
        json!(true),
        json!("sharding_indexed"),
        json!("transpose"),
        json!("blosc"),
        json!("r16"),
        json!("packbits"),
        json!({"name": "numcodecs.shuffle", "configuration": {"elementsize": 0}}),
        json!({"name": "reshape", "configuration": {"shape": [[0, 1], 4_294_967_296_u64, -1]}}),
    ];
    *value = spoils[dice.below(spoils.len())].clone();
}

#[test]
fn damaged_metadata_never_panics() {
    let rounds = super::damage::rounds(60);
    let mut opened = 0;
    for (seed, version) in ["v2", "v3"].into_iter().enumerate() {
        let (file, format) = if seed == 0 {
            (".zarray", Format::Zarr2)
        } else {
            ("zarr.json", Format::Zarr3)
        };
        let mut paths: Vec<_> = fs::read_dir(golden(version))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        for (n, path) in paths.iter().enumerate() {
            let text = fs::read_to_string(path.join(file)).unwrap();
            let sound: Json = serde_json::from_str(&text).unwrap();
            let mut dice = Dice((seed * 1000 + n) as u64);
            for _ in 0..rounds {
                let mut document = sound.clone();
                for _ in 0..=dice.below(3) {
                    spoil(&mut document, &mut dice);
                }
                let store = Box::new(Folder::new(path, Links::Followed));
                let options = OpenOptions::default();
                let Ok(volume) =
                    ZarrVolume::with_store((path, format, &[]), store, &document, &options)
                else {
                    continue;
                };
                opened += 1;
                let [c, z, y, x] = volume.layout.read_chunk.unwrap();
                if [c, z, y, x]
                    .iter()
                    .try_fold(1_u64, |n, m| n.checked_mul(*m))
                    < Some(1 << 20)
                {
                    let _ = volume.read_chunk([0; 4]);
                }
            }
        }
    }
    assert!(opened > 200, "most spoilt fields are not used: {opened}");
}

/// Links out of the folder are followed only in trusted data; the folder itself may be a link.
#[test]
fn links_in_untrusted_folders_are_refused_wherever_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new([16; 3], 1, DType::U8);
    let options = crate::volume::CreateOptions {
        chunk: [8; 3],
        shard: None,
        ..crate::volume::CreateOptions::default()
    };
    let whole = crate::region::Region::whole(layout.shape);
    let begin = |name: &str| {
        let path = dir.path().join(name);
        let output = crate::volume::create(&path, &layout, &options).unwrap();
        let bytes = vec![7; 16 * 16 * 16];
        output.write_channels(0..1, whole, &bytes).unwrap();
        output.finish().unwrap();
        path
    };
    let read = |path: &Path, trusted: bool| {
        let options = OpenOptions {
            trusted,
            ..OpenOptions::default()
        };
        options.open(path).and_then(|volume| volume.read(whole))
    };
    for (n, moved) in ["zarr.json", "0/zarr.json", "0", "0/c/1", "0/c/1/0/1"]
        .iter()
        .enumerate()
    {
        let path = begin(&format!("{n}.zarr"));
        assert!(read(&path, false).is_ok());
        let link = path.join(moved);
        let target = dir.path().join(format!("moved {n}"));
        fs::rename(&link, &target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let trusted = read(&path, true).unwrap();
        assert_eq!(trusted.as_slice::<u8>().unwrap(), [7; 16 * 16 * 16]);
        match read(&path, false) {
            Err(Error::UntrustedLink { path }) => assert_eq!(path, link),
            other => panic!("{moved}: {other:?}"),
        }
    }
    let verified = OpenOptions {
        trusted: false,
        ..OpenOptions::default()
    };
    let silent = &crate::progress::silent;
    let refused = verified.verify(&dir.path().join("0.zarr"), 1, silent);
    assert!(
        matches!(refused, Err(Error::UntrustedLink { .. })),
        "{refused:?}"
    );
    let path = begin("whole.zarr");
    let link = dir.path().join("link.zarr");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(read(&link, false).is_ok() && read(&link.join("0"), false).is_ok());
}
