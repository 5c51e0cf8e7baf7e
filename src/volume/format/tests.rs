mod lengths;

use std::fs;
use std::path::Path;

use super::*;
use crate::volume::{RawSpec, VolumeExt, open};

/// Returns the name of an error's kind in the tables below.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } => "io",
        Error::UnknownFormat { .. } => "unknown",
        Error::Header { .. } => "header",
        Error::Unsupported { .. } | Error::ExternalFile { .. } => "unsupported",
        Error::FileLength { .. } => "length",
        Error::TooLarge { .. } => "large",
        _ => "other",
    }
}

/// Opens a file of these bytes, which must fail with the expected kind and a message that contains `hint`.
fn refused(name: &str, bytes: &[u8], expected: &str, hint: &str) {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(dir.path().join("secret.raw"), [0; 64]).unwrap();
    fs::write(inside.join("near.raw"), [0; 64]).unwrap();
    std::os::unix::fs::symlink("../secret.raw", inside.join("link.raw")).unwrap();
    std::os::unix::fs::symlink("loop.raw", inside.join("loop.raw")).unwrap();
    fs::create_dir(inside.join("folder.raw")).unwrap();
    let path = inside.join(name);
    fs::write(&path, bytes).unwrap();
    let began = std::time::Instant::now();
    let error = match open(&path) {
        Ok(volume) => panic!("{name} with {hint:?} was opened: {volume:?}"),
        Err(error) => error,
    };
    // It takes much less than a millisecond, but other tests run at the same time.
    assert!(
        began.elapsed().as_secs() < 5,
        "{name}: {:?}",
        began.elapsed()
    );
    let message = error.to_string();
    assert_eq!(kind(&error), expected, "{name}: {message}");
    assert!(message.contains(hint), "{name}: {message:?} lacks {hint:?}");
    assert!(message.len() < 1000, "{name}: {message}");
}

fn npy(dict: &str) -> Vec<u8> {
    let length = u16::try_from(dict.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\0", &length[..], dict.as_bytes(), &[0; 64]].concat()
}

#[test]
fn bad_numpy_headers_are_refused_with_the_reason() {
    let dict = |descr: &str, fortran: &str, shape: &str| {
        npy(&format!(
            "{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
        ))
    };
    let good = dict("'<f4'", "False", "(2, 2, 2)");
    for (bytes, expected, hint) in [
        (dict("'<f4'", "False", "(2, 2, 9)"), "length", "truncated"),
        (good[..20].to_vec(), "header", "ends inside"),
        (good[..8].to_vec(), "header", "ends inside"),
        (
            [&good[..6], &[9], &good[7..]].concat(),
            "header",
            "version 9",
        ),
        (
            b"PK\x03\x04 zip".to_vec(),
            "header",
            "not a whole zip archive",
        ),
        (
            b"\x93NUMPY\x02\0\xff\xff\xff\xff{}".to_vec(),
            "header",
            "too long",
        ),
        (dict("'|O'", "False", "(2, 2, 2)"), "unsupported", "|O"),
        (dict("'<c8'", "False", "(2, 2, 2)"), "unsupported", "<c8"),
        (dict("'<U4'", "False", "(2, 2, 2)"), "unsupported", "<U4"),
        (
            dict("[('a', '<f4')]", "False", "(2, 2)"),
            "unsupported",
            "structured",
        ),
        (dict("'<x4'", "False", "(2, 2, 2)"), "header", "<x4"),
        (dict("'|f4'", "False", "(2, 2, 2)"), "header", "byte order"),
        (dict("'<f4'", "Maybe", "(2, 2, 2)"), "header", "quoted"),
        (
            dict("'<f4'", "'no'", "(2, 2, 2)"),
            "header",
            "fortran_order",
        ),
        (dict("'<f4'", "False", "(2,)"), "unsupported", "1 axes"),
        (dict("'<f4'", "False", "()"), "unsupported", "0 axes"),
        (
            dict("'<f4'", "False", "(1, 1, 1, 1, 1)"),
            "unsupported",
            "5 axes",
        ),
        (dict("'<f4'", "False", "(2, 0, 2)"), "header", "no voxel"),
        (dict("'<f4'", "False", "(2, -2, 2)"), "header", "lengths"),
        (dict("'<f4'", "False", "(2, 2.5, 2)"), "header", "lengths"),
        (
            dict("'<f4'", "False", "(99999999999999999999, 1, 1)"),
            "header",
            "lengths",
        ),
        (
            dict("'<f4'", "False", "(4294967296, 4294967296, 4)"),
            "large",
            "2^63",
        ),
        (
            dict("'|u1'", "False", "(9223372036854775807, 1, 1)"),
            "large",
            "2^63",
        ),
        (
            dict("'|u1'", "False", "(1000000, 1000000, 1000000)"),
            "length",
            "1000000000000",
        ),
        (
            npy("{'descr': '<f4', 'shape': (2, 2, 2)}"),
            "header",
            "fortran_order",
        ),
        (npy("{'descr': '<f4', 'descr': '<f4'}"), "header", "twice"),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), 'x': 'y'}"),
            "header",
            "unknown",
        ),
        (npy("[1, 2]"), "header", "dict"),
    ] {
        refused("a.npy", &bytes, expected, hint);
    }
}

/// Returns a NIfTI-1 header of 2 x 2 x 2 bytes with room for the voxels, with changes at some offsets.
fn nifti(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 400];
    let dim: Vec<u8> = [3_i16, 2, 2, 2, 1, 1, 1, 1]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    let pixdim: Vec<u8> = [1.0_f32; 8].iter().flat_map(|n| n.to_le_bytes()).collect();
    let start: [(usize, &[u8]); 7] = [
        (0, &348_i32.to_le_bytes()),
        (40, &dim),
        (70, &2_i16.to_le_bytes()),
        (72, &8_i16.to_le_bytes()),
        (76, &pixdim),
        (108, &352_f32.to_le_bytes()),
        (344, b"n+1\0"),
    ];
    for (at, value) in start.iter().chain(changes) {
        bytes[*at..at + value.len()].copy_from_slice(value);
    }
    bytes
}

#[test]
fn bad_nifti_headers_are_refused_with_the_reason() {
    let short = |n: i16| n.to_le_bytes();
    let float = |n: f32| n.to_le_bytes();
    let far = [&short(7)[..], &[0xff, 0x7f].repeat(7)].concat();
    for (bytes, expected, hint) in [
        (nifti(&[])[..359].to_vec(), "length", "359"),
        (nifti(&[])[..200].to_vec(), "header", "200 bytes"),
        (nifti(&[])[..3].to_vec(), "header", "ends inside"),
        (nifti(&[(0, &[1, 0, 0, 0])]), "header", "sizeof_hdr is 1"),
        (nifti(&[(344, b"\0\0\0\0")]), "header", "Analyze"),
        (nifti(&[(344, b"n+1x")]), "header", "n+1x"),
        (nifti(&[(40, &short(0))]), "header", "dim[0] is 0"),
        (nifti(&[(40, &short(8))]), "header", "dim[0] is 8"),
        (nifti(&[(40, &short(-3))]), "header", "dim[0] is -3"),
        (nifti(&[(42, &short(0))]), "header", "dim[1] is 0"),
        (nifti(&[(44, &short(-4))]), "header", "dim[2] is -4"),
        (
            nifti(&[(40, &short(5)), (50, &short(-1))]),
            "header",
            "dim[5] is -1",
        ),
        (
            nifti(&[(42, &short(-1)), (46, &short(-2)), (70, &short(9))]),
            "header",
            "datatype 9 is unknown; dim[1] is -1, not above 0; dim[3] is -2",
        ),
        (nifti(&[(123, &[4])]), "header", "xyzt_units 4"),
        (nifti(&[(70, &short(3))]), "header", "datatype 3"),
        (nifti(&[(70, &short(0))]), "header", "datatype 0"),
        (
            nifti(&[(70, &short(2304)), (72, &short(32))]),
            "unsupported",
            "colors with transparency",
        ),
        (
            nifti(&[(70, &short(32)), (72, &short(64))]),
            "unsupported",
            "complex",
        ),
        (
            nifti(&[(70, &short(1)), (72, &short(1))]),
            "unsupported",
            "bits",
        ),
        (
            nifti(&[(70, &short(1536)), (72, &short(128))]),
            "unsupported",
            "128-bit",
        ),
        (
            nifti(&[(108, &float(f32::NAN))]),
            "header",
            "vox_offset is NaN",
        ),
        (
            nifti(&[(108, &float(f32::INFINITY))]),
            "header",
            "vox_offset is inf",
        ),
        (
            nifti(&[(108, &float(1e30))]),
            "header",
            "vox_offset is 1000000",
        ),
        (
            nifti(&[(108, &float(-352.0))]),
            "header",
            "vox_offset is -352",
        ),
        (nifti(&[(108, &float(100.0))]), "header", "from 352"),
        (nifti(&[(108, &float(352.5))]), "header", "352.5"),
        (nifti(&[(108, &float(0.0))]), "header", "vox_offset is 0"),
        (nifti(&[(108, &float(1e9))]), "length", "1000000000"),
        (nifti(&[(40, &far)]), "large", "2^63"),
        (
            nifti(&[(254, &short(1)), (280, &float(f32::NAN))]),
            "header",
            "sform is not finite",
        ),
        (
            nifti(&[(252, &short(1)), (268, &float(f32::INFINITY))]),
            "header",
            "qform is not finite",
        ),
        (nifti(&[(344, b"ni1\0"), (108, &float(0.0))]), "io", "a.img"),
    ] {
        refused("a.nii", &bytes, expected, hint);
    }
    refused("a.hdr", &nifti(&[])[..348], "length", "348");
    refused("a.img", &[1; 8], "io", "a.hdr");
    let mut second = vec![0; 600];
    second[..4].copy_from_slice(&540_i32.to_le_bytes());
    second[4..12].copy_from_slice(b"n+2\0\n\n\x1a\n");
    refused("a.nii", &second, "header", "transfer as text");
}

const MHD: &str = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = near.raw\n";

#[test]
fn bad_metaimage_headers_are_refused_with_the_reason() {
    let change = |from: &str, to: &str| MHD.replace(from, to).into_bytes();
    let data = |name: &str| change("near.raw", name);
    let more = |line: &str| change("ElementType", &format!("{line}\nElementType"));
    for (bytes, expected, hint) in [
        (data("../secret.raw"), "unsupported", "../secret.raw"),
        (data("./../secret.raw"), "unsupported", "may be outside"),
        (data("/etc/passwd"), "unsupported", "/etc/passwd"),
        (data("link.raw"), "unsupported", "a file outside"),
        (data("folder.raw"), "unsupported", "not a regular file"),
        (data("loop.raw"), "io", "loop.raw"),
        (
            data("http://example.org/a.raw"),
            "unsupported",
            "not a file",
        ),
        (data(""), "unsupported", "may be outside"),
        (data("missing.raw"), "io", "missing.raw"),
        (data("nul\0.raw"), "unsupported", "nul"),
        (data("LIST"), "header", "list of files is empty"),
        (data("LIST\n../secret.raw"), "unsupported", "may be outside"),
        (
            data("LIST\nnear.raw\nlink.raw"),
            "unsupported",
            "a file outside",
        ),
        (data("LIST\nnear.raw\nmissing.raw"), "io", "missing.raw"),
        (
            data("slice%03d.raw 1 10 1"),
            "header",
            "10 files, which cannot hold equal parts",
        ),
        (data("../s%d.raw 1 2 1"), "unsupported", "may be outside"),
        (data("slice%s.raw 1 2 1"), "header", "has no %d"),
        (more("DistanceUnits = furlong"), "header", "furlong"),
        (data("LOCAL"), "length", "truncated"),
        (
            change("DimSize = 2 2 2", "DimSize = 9 9 9"),
            "length",
            "near.raw",
        ),
        (
            change("DimSize = 2 2 2", "DimSize = 2 0 2"),
            "header",
            "DimSize",
        ),
        (
            change("DimSize = 2 2 2", "DimSize = 2 -2 2"),
            "header",
            "DimSize",
        ),
        (
            change("DimSize = 2 2 2", "DimSize = 2 2"),
            "header",
            "3 whole numbers",
        ),
        (change("DimSize = 2 2 2\n", ""), "header", "missing"),
        (change("2 2 2", "18446744073709551615 2 2"), "large", "2^63"),
        (
            change("2 2 2", "18446744073709551616 2 2"),
            "header",
            "DimSize",
        ),
        (change("NDims = 3", "NDims = 9"), "header", "NDims"),
        (change("NDims = 3", "NDims = three"), "header", "three"),
        (change("MET_UCHAR", "MET_STRING"), "header", "MET_STRING"),
        (
            change("MET_UCHAR\nElementDataFile = near.raw\n", "MET_UCHAR\n"),
            "header",
            "ElementDataFile is missing",
        ),
        (change("Image", "Tube"), "unsupported", "Tube"),
        (more("BinaryData = False"), "unsupported", "text"),
        (more("HeaderSize = -2"), "header", "HeaderSize"),
        (more("HeaderSize = 60"), "length", "from byte 60"),
        (more("HeaderSize = 9223372036854775807"), "large", "2^63"),
        (
            more("HeaderSize = -1\nCompressedData = True"),
            "unsupported",
            "HeaderSize",
        ),
        (more("ElementNumberOfChannels = 0"), "header", "no voxel"),
        (
            more("ElementNumberOfChannels = x"),
            "header",
            "ElementNumberOfChannels",
        ),
        (more("ElementSpacing = 1 1 0"), "header", "spacing"),
        (more("ElementSpacing = 1 1 -2"), "header", "spacing"),
        (more("ElementSpacing = 1 1"), "header", "ElementSpacing"),
        (more("Offset = 1 nan 1"), "header", "Offset"),
        (more("TransformMatrix = 1 0 0 1"), "header", "9 numbers"),
        (
            more("ElementSpacing = a\nOffset = b"),
            "header",
            "ElementSpacing is \"a\", not 3 numbers; Offset is",
        ),
        (more("no field"), "header", "not a field"),
    ] {
        refused("a.mhd", &bytes, expected, hint);
    }
}

const NRRD: &str =
    "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: near.raw\n";

#[test]
fn bad_nrrd_headers_are_refused_with_the_reason() {
    let change = |from: &str, to: &str| NRRD.replace(from, to).into_bytes();
    let data = |name: &str| change("near.raw", name);
    let more = |line: &str| change("encoding", &format!("{line}\nencoding"));
    for (bytes, expected, hint) in [
        (data("../secret.raw"), "unsupported", "../secret.raw"),
        (data("/dev/zero"), "unsupported", "/dev/zero"),
        (data("link.raw"), "unsupported", "a file outside"),
        (data("missing.raw"), "io", "missing.raw"),
        (change("data file: near.raw\n", ""), "header", "blank line"),
        (change("data file: near.raw\n", "\n"), "length", "truncated"),
        (change("NRRD0004", "NRRD0009"), "header", "NRRD0001"),
        (change("raw\ndata", "ascii\ndata"), "unsupported", "ascii"),
        (change("raw\ndata", "hex\ndata"), "unsupported", "hex"),
        (change("raw\ndata", "bzip2\ndata"), "unsupported", "bzip2"),
        (
            change("encoding: raw\n", ""),
            "header",
            "encoding is missing",
        ),
        (change("type: uchar\n", ""), "header", "type is missing"),
        (change("uchar", "block"), "unsupported", "block"),
        (change("uchar", "quaternion"), "header", "quaternion"),
        (change("uchar", "short"), "header", "endian"),
        (change("uchar", "short\nendian: middle"), "header", "middle"),
        (change("sizes: 2 2 2\n", ""), "header", "sizes"),
        (change("2 2 2", "2 2"), "header", "3 whole numbers"),
        (change("2 2 2", "2 0 2"), "header", "sizes"),
        (change("2 2 2", "2 -1 2"), "header", "sizes"),
        (change("2 2 2", "4294967296 4294967296 1"), "large", "2^63"),
        (change("2 2 2", "99 99 99"), "length", "near.raw"),
        (
            change("dimension: 3", "dimension: 0"),
            "header",
            "dimension",
        ),
        (
            change("3\nsizes: 2 2 2", "1\nsizes: 8"),
            "unsupported",
            "1 spatial axes",
        ),
        (
            change("3\nsizes: 2 2 2", "5\nsizes: 1 2 2 2 1"),
            "unsupported",
            "[3, 4]",
        ),
        (more("kinds: domain vector domain"), "unsupported", "[1]"),
        (more("sizes: 2 2 2"), "header", "twice"),
        (more("spacings: 1 1 0"), "header", "spacings"),
        (more("spacings: 1 nan 1"), "header", "spacings"),
        (
            more("space directions: (1,0,0) (0,1,0)"),
            "header",
            "3 vectors",
        ),
        (
            more("space directions: (1,0,0) (0,1,0) (0,0,inf)"),
            "header",
            "3 vectors",
        ),
        (
            more("space directions: (1,0,0) (0,1,0) (0,0,0)"),
            "header",
            "spacing",
        ),
        (more("space origin: (1,x,1)"), "header", "space origin"),
        (more("byte skip: -2"), "header", "byte skip"),
        (more("byte skip: 9223372036854775800"), "large", "2^63"),
        (more("byte skip: 60"), "length", "from byte 60"),
        (more("line skip: -1"), "header", "line skip"),
        (more("line skip: 5"), "header", "fewer lines"),
        (
            change("raw\ndata", "gzip\nbyte skip: -1\ndata"),
            "unsupported",
            "byte skip",
        ),
        (more("nonsense"), "header", "nonsense"),
    ] {
        refused("a.nhdr", &bytes, expected, hint);
    }
}

#[test]
fn bad_lists_of_files_and_units_in_nrrd_are_refused_with_the_reason() {
    let change = |from: &str, to: &str| NRRD.replace(from, to).into_bytes();
    let data = |name: &str| change("near.raw", name);
    let more = |line: &str| change("encoding", &format!("{line}\nencoding"));
    for (bytes, expected, hint) in [
        (data("LIST"), "header", "list of files is empty"),
        (
            data("LIST\n/etc/passwd\nnear.raw"),
            "unsupported",
            "/etc/passwd",
        ),
        (data("LIST 2\nnear.raw\nmissing.raw"), "io", "missing.raw"),
        (
            data("a%d.raw 0 9 1"),
            "header",
            "10 files, which cannot hold equal parts",
        ),
        (data("a%d.raw 0 900000 1"), "header", "more than"),
        (
            change(
                "raw\ndata file: near.raw",
                "gzip\ndata file: LIST\nnear.raw",
            ),
            "unsupported",
            "several files",
        ),
        (
            more("space units: \"mm\" \"mm\" \"league\""),
            "header",
            "league",
        ),
        (more("units: \"mm\" \"mm\" \"league\""), "header", "league"),
    ] {
        refused("a.nhdr", &bytes, expected, hint);
    }
}

#[test]
fn bad_sidecars_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    fs::write(&path, [0; 64]).unwrap();
    for (text, expected, hint) in [
        ("", "header", "raw sidecar"),
        ("[]", "header", "not a JSON object"),
        (r#"{"dtype": "uint8"}"#, "header", "shape"),
        (r#"{"shape": [2, 2, 2]}"#, "header", "dtype"),
        (r#"{"shape": [2, 2], "dtype": "uint8"}"#, "header", "shape"),
        (
            r#"{"shape": [2, 2, -2], "dtype": "uint8"}"#,
            "header",
            "shape",
        ),
        (
            r#"{"shape": [2, 2, 0], "dtype": "uint8"}"#,
            "header",
            "no voxel",
        ),
        (
            r#"{"shape": [2, 2, 2], "dtype": "complex64"}"#,
            "header",
            "dtype",
        ),
        (
            r#"{"shape": [2, 2, 2], "dtype": "uint8", "color": 3}"#,
            "header",
            "\"color\" is unknown",
        ),
        (
            r#"{"shape": [2, 2, 2], "dtype": "uint8", "byte_order": "middle"}"#,
            "header",
            "byte_order",
        ),
        (
            r#"{"shape": [2, 2, 2], "dtype": "uint8", "offset": -1}"#,
            "header",
            "offset",
        ),
        (
            r#"{"shape": [2, 2, 2], "dtype": "uint8", "offset": 57}"#,
            "length",
            "from byte 57",
        ),
        (
            r#"{"shape": [2, 2, 2], "dtype": "uint8", "channels": 9}"#,
            "length",
            "9 x",
        ),
        (
            r#"{"shape": [2, 2, 2], "dtype": "uint8", "spacing": [1, 0, 1]}"#,
            "header",
            "spacing",
        ),
        (
            r#"{"shape": [2, 2, 2], "dtype": "uint8", "affine": [[1, 0, 0, 0]]}"#,
            "header",
            "affine",
        ),
        (
            r#"{"shape": [4294967296, 4294967296, 1], "dtype": "uint8"}"#,
            "large",
            "2^63",
        ),
        (
            r#"{"shape": 3, "dtype": 4, "channels": "x"}"#,
            "header",
            "shape must be three whole numbers, z, y, x; dtype must be",
        ),
    ] {
        fs::write(dir.path().join("a.raw.json"), text).unwrap();
        let error = open(&path).map(|_| ()).unwrap_err();
        let message = error.to_string();
        assert_eq!(kind(&error), expected, "{text}: {message}");
        assert!(message.contains(hint), "{text}: {message}");
    }
}

#[test]
fn files_that_are_not_volumes_are_refused_with_the_reason() {
    refused("a.nii", b"", "unknown", "empty");
    refused("a.xyz", b"II-\0", "unknown", "neither");
    let (kind, says) = if cfg!(feature = "tiff") {
        ("header", "not in the file")
    } else {
        ("unknown", "tifffile")
    };
    refused("a.tif", b"II*\0", kind, says);
    let (kind, says) = if cfg!(feature = "dicom") {
        ("unsupported", "transfer syntax")
    } else {
        ("unknown", "dcm2niix")
    };
    refused("IM001", &[&[0; 128][..], b"DICM"].concat(), kind, says);
    let (kind, says) = if cfg!(feature = "hdf5") {
        ("header", "unexpected end of data")
    } else {
        ("unknown", "h5py")
    };
    refused("a.h5", b"\x89HDF\r\n\x1a\n", kind, says);
    refused("a.mgz", b"\x1f\x8b\x08 damaged", "io", "unpack");
    refused("a.mgh", b"\0\0\0\x02", "header", "not 284");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    for name in ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.npy", "a"] {
        refused(name, pointer, "unknown", "git lfs pull");
    }
    for address in [
        "ftp://example.org/a.nii.gz?token=secret",
        "sftp://me:secret@example.org/a.zarr",
    ] {
        let error = open(address).unwrap_err().to_string();
        assert!(
            error.contains("address is not read") && !error.contains("secret"),
            "{error}"
        );
    }
    #[cfg(not(feature = "cloud"))]
    for address in [
        "s3://bucket/a.zarr",
        "https://me:secret@example.org/a.nii.gz?token=secret",
    ] {
        let error = open(address).unwrap_err().to_string();
        assert!(
            error.contains("feature `cloud`") && !error.contains("secret"),
            "{error}"
        );
    }
    refused("a.raw", &[0; 8], "unknown", "sidecar");
    refused("a.gz", b"\x1f\x8b\x08 damaged", "io", "unpack");
    let dir = tempfile::tempdir().unwrap();
    let missing = open(dir.path().join("missing.nii")).unwrap_err();
    assert!(
        matches!(missing, Error::Io { action: "open", .. }),
        "{missing:?}"
    );
    let fifo = dir.path().join("fifo.nii");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let error = open(&fifo).unwrap_err();
    assert!(matches!(error, Error::UnknownFormat { .. }), "{error:?}");
    let error = open("/dev/zero").unwrap_err();
    assert!(matches!(error, Error::UnknownFormat { .. }), "{error:?}");
    // A FIFO in place of an image's header is not waited for either.
    fs::rename(&fifo, dir.path().join("scan.hdr")).unwrap();
    fs::write(dir.path().join("scan.img"), [0; 8]).unwrap();
    let error = open(dir.path().join("scan.img")).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
}

#[test]
fn all_problems_of_a_header_are_reported_at_once() {
    type Parse = fn(&Path, &[u8]) -> crate::error::Result<FlatHeader>;
    let sidecar: Parse = |path, text| RawSpec::from_json(path, text)?.header(path);
    let many: Vec<String> = (0..500).map(|n| format!("\"k{n}\": 0")).collect();
    let many = format!("{{{}}}", many.join(", "));
    let cases: [(Parse, Vec<u8>, &[&str]); 6] = [
        (
            npy::parse,
            npy("{'descr': 'nonsense', 'fortran_order': 'no', 'x': 'y'}"),
            &["nonsense", "fortran_order", "shape is missing", "\"x\""],
        ),
        (
            nrrd::parse,
            b"NRRD0004\ntype: odd\ndimension: 99\nsizes: 1 -1\nline skip: x\n\n".to_vec(),
            &["odd", "encoding is missing", "dimension", "sizes", "line skip"],
        ),
        (
            metaimage::parse,
            b"NDims = 9\nDimSize = 0 1 1\nElementType = MET_ODD\nHeaderSize = x\nElementDataFile = LOCAL\n"
                .to_vec(),
            &["NDims", "DimSize", "MET_ODD", "HeaderSize"],
        ),
        (
            nifti::parse,
            nifti(&[
                (40, &9_i16.to_le_bytes()),
                (70, &9999_i16.to_le_bytes()),
                (108, &f32::NAN.to_le_bytes()),
            ]),
            &["dim[0]", "datatype 9999", "vox_offset"],
        ),
        (
            sidecar,
            br#"{"shape": 3, "dtype": "odd", "offset": -1, "spacing": [0, 1, 1], "x": 1}"#.to_vec(),
            &["shape", "dtype", "offset", "spacing", "\"x\""],
        ),
        (sidecar, many.into_bytes(), &["\"k0\"", "and 482 more"]),
    ];
    for (parse, bytes, expected) in cases {
        let error = parse(Path::new("a"), &bytes).unwrap_err();
        assert_eq!(kind(&error), "header", "{error}");
        let message = error.to_string();
        for problem in expected {
            assert!(message.contains(problem), "{problem} in {message}");
        }
        assert!(message.len() < 5000, "{} bytes", message.len());
    }
}

#[test]
fn headers_of_very_many_fields_are_refused_without_looking_at_each() {
    let lines = |line: &dyn Fn(u32) -> String| (0..90_000).map(line).collect::<String>();
    let entries = lines(&|n| format!("'{n}':(),"));
    let dict = format!("{{{entries}}}");
    let length = u32::try_from(dict.len()).unwrap().to_le_bytes();
    let began = std::time::Instant::now();
    for (parse, bytes) in [
        (
            npy::parse as fn(&Path, &[u8]) -> crate::error::Result<FlatHeader>,
            [b"\x93NUMPY\x02\0", &length[..], dict.as_bytes()].concat(),
        ),
        (
            nrrd::parse,
            format!("NRRD0004\n{}\n", lines(&|n| format!("{n}:\n"))).into_bytes(),
        ),
        (
            metaimage::parse,
            format!(
                "NDims = 3\n{}ElementDataFile = LOCAL\n",
                lines(&|n| format!("{n}=\n"))
            )
            .into_bytes(),
        ),
    ] {
        let error = parse(Path::new("a"), &bytes).unwrap_err();
        assert!(error.to_string().contains("more than 1000"), "{error}");
    }
    let spent = began.elapsed();
    assert!(
        spent.as_secs() < 5,
        "comparing each with each takes minutes: {spent:?}"
    );
}

#[test]
fn content_decides_before_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let voxels = [0; 64];
    fs::write(dir.path().join("near.raw"), voxels).unwrap();
    for (bytes, format) in [
        (
            npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 2)}"),
            "npy",
        ),
        (nifti(&[]), "nifti-1"),
        (MHD.as_bytes().to_vec(), "metaimage"),
        (NRRD.as_bytes().to_vec(), "nrrd"),
    ] {
        for name in [
            "scan",
            "scan.nii",
            "scan.npy",
            "scan.mhd",
            "scan.nrrd",
            "scan.raw",
        ] {
            let path = dir.path().join(name);
            fs::write(&path, &bytes).unwrap();
            let volume = open(&path).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(volume.layout().format.to_string(), format, "{name}");
        }
    }
}

/// A parser, paired with a valid header in the test table.
type Parser = fn(&Path, &[u8]) -> Result<FlatHeader>;

fn parsers() -> Vec<(Parser, Vec<u8>)> {
    let sidecar: Parser = |path, bytes| raw::RawSpec::from_json(path, bytes)?.header(path);
    let layout = Layout::new([2, 40_000, 2], 3, DType::I16);
    let turned = "space: RAS\nspace directions: none (1,0,0) (0,2,0.5) (0,0,3)\nspace origin: (1,2,3)\nencoding: gzip";
    let nrrd_vector = NRRD.replace("dimension: 3\nsizes: 2", "dimension: 4\nsizes: 3 2");
    let mhd = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\nElementSpacing = 1 2 3\nHeaderSize = 7\nElementType";
    vec![
        (npy::parse, npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3, 4, 5), }")),
        (nifti::parse, nifti(&[(252, &1_i16.to_le_bytes()), (256, &0.5_f32.to_le_bytes())])),
        (nifti::parse, (nifti::FORMAT.encode)(&mut layout.clone(), None).unwrap()),
        (metaimage::parse, MHD.replace("ElementType", mhd).into_bytes()),
        (nrrd::parse, nrrd_vector.replace("encoding: raw", turned).into_bytes()),
        (
            sidecar,
            br#"{"shape": [2, 3, 4], "dtype": "int16", "channels": 2, "byte_order": "big", "offset": 7, "spacing": [1, 2, 3]}"#.to_vec(),
        ),
    ]
}

#[test]
fn the_headers_that_are_mutated_are_valid() {
    for (parse, bytes) in parsers() {
        parse(Path::new("a.hdr"), &bytes).unwrap();
    }
}

/// Pseudo-random numbers: splitmix64. If its test fails, it reports its seed.
struct Dice(u64, u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.1 = self.1.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let n = (self.1 ^ self.1 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let n = (n ^ n >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        n ^ n >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % n.max(1) as u64).unwrap()
    }
}

impl Drop for Dice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("it was header {}", self.0);
        }
    }
}

/// Changes a header as editors, disks and attackers do.
fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let words: [&[u8]; 12] = [
        b"18446744073709551615",
        b"-9223372036854775808",
        b"4294967296",
        b"65536",
        b"1e308",
        b"nan",
        b"-0",
        b"inf",
        b"(,,)",
        b"{}[]",
        b"\n\n",
        b"\xf0\x9f\x92\xa3",
    ];
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len());
        let value = dice.roll().to_le_bytes()[0];
        match dice.below(7) {
            // Digits and signs get further into a text parser than arbitrary bytes.
            0 => bytes[at] = b"0123456789-+.eE() ,'{}\n"[usize::from(value) % 23],
            1 => bytes[at] = value,
            2 => bytes[at] = if value < 128 { 0xff } else { 0x7f },
            3 => bytes.insert(at, value),
            4 => {
                let word = words[dice.below(words.len())];
                bytes.splice(
                    at..(at + dice.below(4)).min(bytes.len()),
                    word.iter().copied(),
                );
            }
            5 => {
                let number = [-1.0_f32, f32::NAN, f32::MAX, 1e-45, 65536.5][dice.below(5)];
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            _ => {
                let other = dice.below(bytes.len());
                let piece = bytes[at.min(other)..at.max(other)].to_vec();
                bytes.splice(at..at, piece.into_iter().take(64));
            }
        }
    }
    if dice.below(4) == 0 {
        bytes.truncate(dice.below(bytes.len()));
    }
    if bytes.is_empty() {
        bytes.push(0);
    }
}

/// Checks that, for any changed bytes, a parser returns an error or a layout that fits into 2^63 bytes.
/// `VOXPATCH_HEADERS=1000000` tries that many per parser, and checks time and memory, too.
#[test]
fn mutated_headers_never_panic() {
    let asked = std::env::var("VOXPATCH_HEADERS").ok();
    let rounds: u64 = asked.as_deref().map_or(6_000, |n| n.parse().unwrap());
    let mut slowest = std::time::Duration::ZERO;
    for (which, (parse, sound)) in parsers().into_iter().enumerate() {
        let mut taken = 0;
        for round in 0..rounds {
            let seed = round * 8 + which as u64;
            let mut dice = Dice(seed, seed);
            let mut bytes = sound.clone();
            mutate(&mut bytes, &mut dice);
            let began = std::time::Instant::now();
            let found = parse(Path::new("a.hdr"), &bytes);
            slowest = slowest.max(began.elapsed());
            if let Ok(header) = found {
                taken += 1;
                let layout = header.layout(Path::new("a"));
                assert!(layout.decoded_bytes().unwrap() > 0);
                assert!(layout.geometry.is_sound());
                assert!(header.strides().iter().all(|&stride| stride > 0));
            }
        }
        println!("parser {which}: {rounds} headers, of which {taken} were taken");
        assert!(
            taken > 0 && taken < rounds,
            "the changes are too many or too few"
        );
    }
    if asked.is_some() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        println!("slowest {slowest:?}, most memory {}", peak.unwrap().trim());
        let kib: u64 = peak
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        assert!(kib < 64 << 10, "{kib} KiB");
    }
}

/// Returns the time points of a file of these bytes.
fn time_points(name: &str, bytes: &[u8]) -> Option<u64> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("near.raw"), [0; 64]).unwrap();
    fs::write(dir.path().join(name), bytes).unwrap();
    let volume = open(dir.path().join(name)).unwrap();
    if let Some(points) = volume.time_points() {
        let each = volume.layout().channels / points;
        let last = volume.channels_at(points - 1..points).unwrap();
        assert_eq!(
            last,
            volume.layout().channels - each..volume.layout().channels
        );
        let beyond = volume.channels_at(points..points + 1).unwrap_err();
        assert!(matches!(beyond, Error::NoSuchTime { .. }), "{beyond}");
    } else {
        let error = volume.channels_at(0..1).unwrap_err();
        assert!(matches!(error, Error::NoTime { .. }), "{error}");
    }
    volume.time_points()
}

#[test]
fn an_axis_is_time_where_the_header_says_so_and_nothing_varies_more_slowly() {
    let dim = |dim: [i16; 6]| {
        let bytes: Vec<u8> = dim.iter().flat_map(|n| n.to_le_bytes()).collect();
        time_points("a.nii", &nifti(&[(40, &bytes)]))
    };
    assert_eq!(dim([3, 2, 2, 2, 1, 1]), None);
    assert_eq!(dim([4, 2, 2, 2, 5, 1]), Some(5));
    assert_eq!(dim([4, 2, 2, 2, 1, 1]), Some(1));
    assert_eq!(dim([5, 2, 2, 2, 1, 3]), Some(1));
    assert_eq!(dim([5, 2, 2, 2, 2, 3]), None);
    let mhd = |dims: &str, more: &str| {
        let text = format!(
            "ObjectType = Image\nNDims = {}\nDimSize = {dims}\n{more}ElementType = MET_UCHAR\nElementDataFile = near.raw\n",
            dims.split(' ').count()
        );
        time_points("a.mhd", text.as_bytes())
    };
    assert_eq!(mhd("2 2 2", ""), None);
    assert_eq!(mhd("2 2 2 3", ""), Some(3));
    assert_eq!(mhd("2 2 2", "ElementNumberOfChannels = 3\n"), None);
    let nrrd = |sizes: &str, more: &str| {
        let text = NRRD
            .replace(
                "dimension: 3",
                &format!("dimension: {}", sizes.split(' ').count()),
            )
            .replace("sizes: 2 2 2", &format!("sizes: {sizes}\n{more}"));
        time_points("a.nhdr", text.replace("\n\n", "\n").as_bytes())
    };
    assert_eq!(nrrd("2 2 2", ""), None);
    assert_eq!(
        nrrd("2 2 2 3", ""),
        None,
        "time, or channels: nothing is said"
    );
    assert_eq!(nrrd("2 2 2 3", "kinds: space space space time"), Some(3));
    assert_eq!(nrrd("3 2 2 2", "kinds: time space space space"), Some(3));
    assert_eq!(nrrd("3 2 2 2", "kinds: vector space space space"), None);
    assert_eq!(
        nrrd("2 2 2 3", "kinds: domain domain domain domain"),
        Some(3)
    );
}
