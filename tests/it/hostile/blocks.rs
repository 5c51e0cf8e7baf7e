//! TIFF and DICOM files whose blocks are not what their headers promise.

use std::fs;
use std::io::Write;

use super::bombs::{zeros, zlib, zstd};
use super::{all_refused, refusal};

/// Returns a page of 16 x 16 bytes in one tile, with this compression and these encoded bytes. `tile` is the side that
/// the header promises.
fn tiff(compression: u32, encoded: &[u8], tile: u32) -> Vec<u8> {
    let length = u32::try_from(encoded.len()).expect("a small file");
    let mut bytes = b"II*\0".to_vec();
    bytes.extend((8 + length).to_le_bytes());
    bytes.extend(encoded);
    let entries = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, compression),
        (277, 1),
        (322, tile),
        (323, tile),
        (324, 8),
        (325, length),
    ];
    bytes.extend(9_u16.to_le_bytes());
    for (tag, value) in entries {
        bytes.extend(u16::to_le_bytes(tag));
        bytes.extend(4_u16.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(u32::to_le_bytes(value));
    }
    bytes.extend([0; 4]);
    bytes
}

#[test]
fn tiles_that_break_the_promise_of_their_header_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sound = folder.path().join("sound.tif");
    fs::write(&sound, tiff(8, &zlib(256), 16)).expect("the folder is ours");
    voxpatch::VolumeExt::read(
        &voxpatch::open(&sound).expect("a volume"),
        voxpatch::Region::new([0; 3], [1, 16, 16]),
    )
    .expect("its voxels");
    let mut damaged = zlib(256);
    *damaged.last_mut().expect("a checksum") ^= 1;
    let huge = 1 << 30;
    let cases: [(&str, Vec<u8>, &str); 13] = [
        (
            "deflate bomb",
            tiff(8, &zlib(64 << 20), 16),
            "no end within",
        ),
        ("deflate, short", tiff(8, &zlib(255), 16), "256 are needed"),
        ("deflate, cut", tiff(8, &zlib(256)[..5], 16), "no end"),
        (
            "deflate, checksum",
            tiff(8, &damaged, 16),
            "cannot be decoded",
        ),
        (
            "zstd bomb",
            tiff(50000, &zstd(64 << 20), 16),
            "cannot be decoded",
        ),
        ("zstd, short", tiff(50000, &zstd(255), 16), "256 are needed"),
        (
            "packbits, short",
            tiff(32773, &[0x81, 0], 16),
            "256 are needed",
        ),
        (
            "lzw, short",
            tiff(5, &[0x80, 0x40, 0x40], 16),
            "cannot be decoded",
        ),
        (
            "jpeg, none",
            tiff(7, &[0xff, 0xd8, 0xff], 16),
            "cannot be decoded",
        ),
        ("uncompressed, short", tiff(1, &[1; 255], 16), "256"),
        ("fax", tiff(4, &[1; 256], 16), "fax"),
        ("no compression", tiff(9999, &[1; 256], 16), "9999"),
        ("huge tile", tiff(8, &zlib(256), huge), "larger than memory"),
    ];
    all_refused(cases.iter().map(|(name, bytes, says)| {
        let path = folder.path().join("a.tif");
        fs::write(&path, bytes).expect("the folder is ours");
        refusal(name, &path, says)
    }));
}

#[test]
fn dicom_files_that_are_not_volumes_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = [&[0; 128][..], b"DICM"].concat();
    let syntax = |uid: &str| {
        let mut bytes = start.clone();
        bytes.extend([2, 0, 0x10, 0, b'U', b'I']);
        bytes.extend(u16::try_from(uid.len()).expect("short").to_le_bytes());
        bytes.extend(uid.as_bytes());
        bytes
    };
    let bomb = {
        let mut stream =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        // An element of almost 4 GiB, of which there are 64 MiB.
        stream
            .write_all(&[8, 0, 5, 0, b'O', b'B', 0, 0, 0xf0, 0xff, 0xff, 0xff])
            .expect("memory takes it");
        zeros(&mut stream, 64 << 20);
        stream.finish().expect("memory takes it")
    };
    let cases = [
        ("nothing more", start.clone(), "transfer syntax"),
        ("jpeg xl", syntax("1.2.840.10008.1.2.4.110\0"), "JPEG XL"),
        ("no syntax", syntax("1.2.3."), "1.2.3."),
        ("no voxels", syntax("1.2.840.10008.1.2.1\0"), "no voxels"),
        (
            "bomb",
            [syntax("1.2.840.10008.1.2.1.99"), bomb].concat(),
            "ends inside",
        ),
    ];
    all_refused(cases.iter().map(|(name, bytes, says)| {
        let path = folder.path().join("a.dcm");
        fs::write(&path, bytes).expect("the folder is ours");
        refusal(name, &path, says)
    }));
}
