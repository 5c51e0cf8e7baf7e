mod written;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

use super::super::suite::{Random, check, real_scans};
use super::super::{
    CreateOptions, Format, Layout, OpenOptions, RawSpec, ReadMethod, Rescale, Values, Volume,
    VolumeExt, create, open,
};
use crate::dtype::{DType, swap_bytes};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::patch::{Patch, copy_common};
use crate::region::Region;

/// Returns the voxels of a patch as a file stores them: axes in the given order, the fastest first.
fn stored(patch: &Patch, order: &str, big_endian: bool) -> Vec<u8> {
    let [z, y, x] = patch.shape();
    let size = patch.dtype().size();
    let length = |axis: char| match axis {
        'c' => patch.channels(),
        'z' => z,
        'y' => y,
        _ => x,
    };
    let axes: Vec<char> = order.chars().collect();
    let total: u64 = axes.iter().map(|&axis| length(axis)).product();
    let mut bytes = Vec::new();
    for number in 0..total {
        let mut rest = number;
        let mut at = [0; 4];
        for &axis in &axes {
            at["czyx".find(axis).unwrap()] = rest % length(axis);
            rest /= length(axis);
        }
        let voxel = ((at[0] * z + at[1]) * y + at[2]) * x + at[3];
        let start = usize::try_from(voxel).unwrap() * size;
        bytes.extend_from_slice(&patch.bytes()[start..start + size]);
    }
    if big_endian != cfg!(target_endian = "big") {
        swap_bytes(patch.dtype(), &mut bytes);
    }
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn npy(patch: &Patch, version: u8, shape: &str, fortran: bool, order: &str, big: bool) -> Vec<u8> {
    let dtype = patch.dtype();
    let code = match dtype {
        DType::Bool => "b1".to_owned(),
        _ => format!("{}{}", &dtype.name()[..1], dtype.size()),
    };
    let endian = match (dtype.size(), big) {
        (1, _) => '|',
        (_, true) => '>',
        (_, false) => '<',
    };
    let fortran = if fortran { "True" } else { "False" };
    let dict =
        format!("{{'shape': {shape}, 'descr': '{endian}{code}', 'fortran_order': {fortran}}}\n");
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    if version == 1 {
        bytes.extend(u16::try_from(dict.len()).unwrap().to_le_bytes());
    } else {
        bytes.extend(u32::try_from(dict.len()).unwrap().to_le_bytes());
    }
    bytes.extend(dict.bytes());
    bytes.extend(stored(patch, order, big));
    bytes
}

/// Returns a NIfTI header in either byte order, without the bytes after it.
fn nifti(
    second: bool,
    magic: &[u8],
    dim: &[i64],
    dtype: (i16, i16),
    offset: i32,
    big: bool,
) -> Vec<u8> {
    let size = if second { 540 } else { 348 };
    let mut bytes = vec![0; size];
    let mut put = |at: usize, value: &[u8]| {
        let mut value = value.to_vec();
        if big {
            value.reverse();
        }
        bytes[at..at + value.len()].copy_from_slice(&value);
    };
    put(0, &i32::try_from(size).unwrap().to_le_bytes());
    for (i, &n) in dim.iter().enumerate() {
        if second {
            put(16 + 8 * i, &n.to_le_bytes());
            put(104 + 8 * i, &1.0_f64.to_le_bytes());
        } else {
            put(40 + 2 * i, &i16::try_from(n).unwrap().to_le_bytes());
            put(76 + 4 * i, &1.0_f32.to_le_bytes());
        }
    }
    let at = if second { 12 } else { 70 };
    put(at, &dtype.0.to_le_bytes());
    put(at + 2, &dtype.1.to_le_bytes());
    if second {
        put(168, &i64::from(offset).to_le_bytes());
    } else {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        put(108, &(offset as f32).to_le_bytes());
    }
    let at = if second { 4 } else { 344 };
    bytes[at..at + magic.len()].copy_from_slice(magic);
    bytes
}

const NIFTI2: &[u8] = b"n+2\0\r\n\x1a\n";

fn nifti_code(dtype: DType) -> Option<(i16, i16)> {
    let bits = i16::try_from(8 * dtype.size()).unwrap();
    let code = match dtype {
        DType::U8 => 2,
        DType::I16 => 4,
        DType::I32 => 8,
        DType::F32 => 16,
        DType::F64 => 64,
        DType::I8 => 256,
        DType::U16 => 512,
        DType::U32 => 768,
        DType::I64 => 1024,
        DType::U64 => 1280,
        DType::Bool | DType::F16 => return None,
    };
    Some((code, bits))
}

fn met_type(dtype: DType) -> Option<(&'static str, &'static str)> {
    Some(match dtype {
        DType::U8 => ("MET_UCHAR", "uchar"),
        DType::I8 => ("MET_CHAR", "signed char"),
        DType::U16 => ("MET_USHORT", "unsigned short"),
        DType::I16 => ("MET_SHORT", "short"),
        DType::U32 => ("MET_UINT", "uint"),
        DType::I32 => ("MET_INT", "int"),
        DType::U64 => ("MET_ULONG_LONG", "uint64_t"),
        DType::I64 => ("MET_LONG_LONG", "long long"),
        DType::F32 => ("MET_FLOAT", "float"),
        DType::F64 => ("MET_DOUBLE", "double"),
        DType::Bool | DType::F16 => return None,
    })
}

/// A folder of test files that are opened and compared.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, parts.concat()).unwrap();
        path
    }

    fn check(&self, name: &str, parts: &[&[u8]], expected: &Patch) {
        let path = self.put(name, parts);
        for io in [
            ReadMethod::Mmap,
            ReadMethod::MmapResident,
            ReadMethod::Pread,
        ] {
            let options = OpenOptions {
                read_method: io,
                ..OpenOptions::default()
            };
            let volume = options.open(&path);
            let volume = volume.unwrap_or_else(|error| panic!("{name}, {io:?}: {error}"));
            assert_eq!(volume.layout().path, path);
            check(&*volume, expected);
            volume.check_unchanged().unwrap();
        }
    }
}

fn each_kind() -> impl Iterator<Item = (DType, bool)> {
    DType::ALL
        .into_iter()
        .flat_map(|dtype| [(dtype, false), (dtype, true)])
}

#[test]
fn raw_files_pass_at_any_offset() {
    let desk = Desk::new();
    for (dtype, big) in each_kind() {
        let patch = Random(1).patch([3, 4, 5], 2, dtype);
        let voxels = stored(&patch, "xyzc", big);
        for offset in [0, 1, 3, 7, 64] {
            let order = if big { "big" } else { "little" };
            let sidecar = format!(
                "{{\"shape\": [3, 4, 5], \"channels\": 2, \"dtype\": \"{dtype}\", \
                 \"byte_order\": \"{order}\", \"offset\": {offset}, \"spacing\": [5, 2.5, 0.5]}}"
            );
            desk.put("scan.raw.json", &[sidecar.as_bytes()]);
            desk.check("scan.raw", &[&vec![0xee; offset], &voxels], &patch);
        }
    }
    let volume = open(desk.folder.path().join("scan.raw")).unwrap();
    assert_eq!(volume.layout().geometry.spacing, [5.0, 2.5, 0.5]);
}

#[test]
fn the_layout_of_a_raw_file_comes_from_the_caller_or_the_shorter_sidecar() {
    let desk = Desk::new();
    let patch = Random(2).patch([2, 3, 4], 1, DType::I16);
    let path = desk.put("scan.raw", &[b"x", &stored(&patch, "xyzc", true)]);
    let spec = RawSpec {
        offset: 1,
        big_endian: true,
        ..RawSpec::new([2, 3, 4], DType::I16)
    };
    let options = OpenOptions {
        raw: Some(spec),
        ..OpenOptions::default()
    };
    check(&*options.open(&path).unwrap(), &patch);
    let Err(Error::UnknownFormat { problem, .. }) = open(&path) else {
        panic!("no sidecar, no volume");
    };
    assert!(problem.contains("sidecar"), "{problem}");
    let sidecar = br#"{"shape": [2, 3, 4], "dtype": "i16", "byte_order": "big", "offset": 1,
        "affine": [[0, 0, 2, 7], [0, 3, 0, 8], [4, 0, 0, 9], [0, 0, 0, 1]]}"#;
    desk.put("scan.json", &[sidecar]);
    let volume = open(&path).unwrap();
    check(&*volume, &patch);
    assert_eq!(volume.layout().geometry.spacing, [2.0, 3.0, 4.0]);
    assert_eq!(volume.layout().geometry.origin(), [9.0, 8.0, 7.0]);
}

#[test]
fn numpy_files_pass_in_both_orders_and_all_versions() {
    let desk = Desk::new();
    for (dtype, big) in each_kind() {
        let mut random = Random(3);
        let (flat, solid) = (
            random.patch([1, 4, 7], 1, dtype),
            random.patch([3, 4, 5], 1, dtype),
        );
        let many = random.patch([3, 2, 5], 4, dtype);
        for (patch, shape, c, f) in [
            (&flat, "(4, 7)", "xy", "yx"),
            (&solid, "(3, 4, 5)", "xyz", "zyx"),
            (&many, "(4, 3, 2, 5)", "xyzc", "czyx"),
        ] {
            for version in 1..=3 {
                desk.check(
                    "a.npy",
                    &[&npy(patch, version, shape, false, c, big)],
                    patch,
                );
                desk.check("a.npy", &[&npy(patch, version, shape, true, f, big)], patch);
            }
        }
    }
}

#[test]
fn a_fortran_array_larger_than_a_tile_is_transposed_correctly() {
    let desk = Desk::new();
    let patch = Random(4).patch([70, 3, 131], 1, DType::U16);
    desk.check(
        "a.npy",
        &[&npy(&patch, 1, "(70, 3, 131)", true, "zyx", false)],
        &patch,
    );
    let patch = Random(4).patch([2, 66, 129], 3, DType::F64);
    desk.check(
        "a.npy",
        &[&npy(&patch, 1, "(3, 2, 66, 129)", true, "czyx", true)],
        &patch,
    );
}

#[test]
fn nifti_files_pass_plain_and_compressed_with_extensions_and_in_pairs() {
    let desk = Desk::new();
    for (dtype, big) in each_kind() {
        let Some(code) = nifti_code(dtype) else {
            continue;
        };
        let patch = Random(5).patch([3, 4, 5], 6, dtype);
        let voxels = stored(&patch, "xyzc", big);
        for (dim, offset) in [
            (&[4, 5, 4, 3, 6][..], 0),
            (&[6, 5, 4, 3, 2, 1, 3], 64),
            (&[5, 5, 4, 3, 6, 1], 3),
        ] {
            let one = nifti(false, b"n+1\0", dim, code, 352 + offset, big);
            let gap = vec![0xee; 4 + usize::try_from(offset).unwrap()];
            desk.check("a.nii", &[&one, &gap, &voxels], &patch);
            desk.check(
                "a.nii.gz",
                &[&gzip(&[&one[..], &gap, &voxels].concat())],
                &patch,
            );
            let two = nifti(true, NIFTI2, dim, code, 544 + offset, big);
            desk.check("b.nii", &[&two, &gap, &voxels], &patch);
            desk.check(
                "b.nii.gz",
                &[&gzip(&[&two[..], &gap, &voxels].concat())],
                &patch,
            );
            let pair = nifti(false, b"ni1\0", dim, code, offset, big);
            desk.put(
                "c.img",
                &[&vec![0; usize::try_from(offset).unwrap()], &voxels],
            );
            desk.check("c.hdr", &[&pair], &patch);
            check(&*open(desk.folder.path().join("c.img")).unwrap(), &patch);
        }
    }
    let sizes =
        ["c.hdr", "c.img"].map(|name| fs::metadata(desk.folder.path().join(name)).unwrap().len());
    for name in ["c.hdr", "c.img"] {
        let volume = open(desk.folder.path().join(name)).unwrap();
        assert_eq!(volume.stored_bytes().unwrap(), sizes.iter().sum::<u64>());
        let mut files = volume.source_files();
        files.sort();
        let names = files.iter().filter_map(|file| file.file_name());
        assert!(names.eq(["c.hdr", "c.img"]));
    }
}

#[test]
fn metaimages_pass_local_detached_compressed_and_interleaved() {
    let desk = Desk::new();
    for (dtype, big) in each_kind() {
        let Some((name, _)) = met_type(dtype) else {
            continue;
        };
        let patch = Random(6).patch([3, 4, 5], 3, dtype);
        let head = |more: &str, file: &str| {
            format!(
                "ObjectType = Image\nNDims = 3\nBinaryData = True\nElementByteOrderMSB = {big}\n\
                 DimSize = 5 4 3\nElementType = {name}\nElementNumberOfChannels = 3\n{more}ElementDataFile = {file}\n"
            )
        };
        let voxels = stored(&patch, "cxyz", big);
        desk.check("a.mha", &[head("", "LOCAL").as_bytes(), &voxels], &patch);
        let packed = head("CompressedData = True\n", "LOCAL");
        desk.check(
            "b.mha",
            &[packed.as_bytes(), &zlib(&voxels), b"trailing"],
            &patch,
        );
        desk.check("b.mha", &[packed.as_bytes(), &gzip(&voxels)], &patch);
        desk.put("c.raw", &[b"12345", &voxels]);
        desk.check(
            "c.mhd",
            &[head("HeaderSize = 5\n", "c.raw").as_bytes()],
            &patch,
        );
        desk.check(
            "c.mhd",
            &[head("HeaderSize = -1\n", "./c.raw").as_bytes()],
            &patch,
        );
        let four = head("", "LOCAL")
            .replace("NDims = 3", "NDims = 4")
            .replace("5 4 3", "5 4 3 3");
        let four = four
            .replace("ElementNumberOfChannels = 3\n", "")
            .replace('\n', "\r\n");
        desk.check(
            "d.mha",
            &[four.as_bytes(), &stored(&patch, "xyzc", big)],
            &patch,
        );
    }
}

#[test]
fn nrrd_files_pass_attached_detached_packed_and_with_either_channel_axis() {
    let desk = Desk::new();
    fs::create_dir(desk.folder.path().join("below")).unwrap();
    for (dtype, big) in each_kind() {
        let Some((_, name)) = met_type(dtype) else {
            continue;
        };
        let patch = Random(7).patch([3, 4, 5], 2, dtype);
        let endian = if big { "big" } else { "little" };
        let head = |first: bool, more: &str| {
            let (sizes, kinds) = if first {
                ("2 5 4 3", "vector domain domain domain")
            } else {
                ("5 4 3 2", "domain domain domain list")
            };
            format!(
                "NRRD0004\n# a comment\ntype: {name}\ndimension: 4\nsizes: {sizes}\nkinds: {kinds}\n\
                 endian: {endian}\nkey:=value\n{more}\n"
            )
        };
        for (first, order) in [(true, "cxyz"), (false, "xyzc")] {
            let voxels = stored(&patch, order, big);
            let skipped = [b"77", &voxels[..]].concat();
            desk.check(
                "a.nrrd",
                &[head(first, "encoding: raw\n").as_bytes(), &voxels],
                &patch,
            );
            let packed = head(first, "encoding: gzip\nbyte skip: 2\n");
            desk.check("a.nrrd", &[packed.as_bytes(), &gzip(&skipped)], &patch);
            desk.put("below/a.raw", &[b"line\nline\n77", &voxels]);
            let detached = "encoding: raw\nline skip: 2\nbyte skip: 2\ndata file: below/a.raw\n";
            desk.check("a.nhdr", &[head(first, detached).as_bytes()], &patch);
            let from_end = "encoding: raw\nbyteskip: -1\ndatafile: ./below/a.raw";
            desk.check(
                "a.nhdr",
                &[head(first, from_end).trim_end().as_bytes()],
                &patch,
            );
            desk.put("below/a.gz", &[b"line\n", &gzip(&skipped)]);
            let detached = "encoding: gz\nline skip: 1\nbyte skip: 2\ndata file: below/a.gz\n";
            desk.check("a.nhdr", &[head(first, detached).as_bytes()], &patch);
        }
    }
}

#[test]
fn nrrd_spaces_become_ras() {
    let desk = Desk::new();
    let affine = |space: &str| {
        let head = format!(
            "NRRD0005\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n{space}\
             space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (10,20,30)\n\n"
        );
        let path = desk.put("a.nrrd", &[head.as_bytes(), &[0; 8]]);
        let affine = open(path).unwrap().layout().geometry.affine;
        [
            [affine[0][0], affine[0][3]],
            [affine[1][1], affine[1][3]],
            [affine[2][2], affine[2][3]],
        ]
    };
    let lps = [[-2.0, -10.0], [-3.0, -20.0], [4.0, 30.0]];
    let ras = [[2.0, 10.0], [3.0, 20.0], [4.0, 30.0]];
    let las = [[-2.0, -10.0], [3.0, 20.0], [4.0, 30.0]];
    assert_eq!(affine("space: left-posterior-superior\n"), lps);
    assert_eq!(affine("space: LPS\n"), lps);
    assert_eq!(affine("space: right-anterior-superior\n"), ras);
    assert_eq!(affine("space: RAS\n"), ras);
    assert_eq!(affine("space: left-anterior-superior\n"), las);
    assert_eq!(affine("space: las\n"), las);
    assert_eq!(affine(""), lps);
}

/// Returns a complete NIfTI file of 16 slices of noise, and its voxels.
fn noise() -> (Vec<u8>, Patch) {
    let patch = Random(8).patch([16, 64, 64], 1, DType::I16);
    let head = nifti(false, b"n+1\0", &[3, 64, 64, 16], (4, 16), 352, false);
    let bytes = [&head[..], &[0; 4], &stored(&patch, "xyz", false)].concat();
    (bytes, patch)
}

fn slab(patch: &Patch, z: i64, depth: u64) -> (Region, &[u8]) {
    let region = Region::new([z, 0, 0], [depth, 64, 64]);
    let at = usize::try_from(z).unwrap() * 64 * 64 * 2;
    (
        region,
        &patch.bytes()[at..at + usize::try_from(depth).unwrap() * 64 * 64 * 2],
    )
}

#[test]
fn a_compressed_file_that_is_read_forward_is_decompressed_once_and_never_as_a_whole() {
    let desk = Desk::new();
    let (bytes, patch) = noise();
    let packed = gzip(&bytes);
    let volume = open(desk.put("a.nii.gz", &[&packed])).unwrap();
    assert_eq!(volume.layout().codecs, ["gzip"]);
    assert_eq!(volume.stored_bytes().unwrap(), packed.len() as u64);
    assert_eq!(
        volume.read_stats().bytes,
        0,
        "opening reads the header only"
    );
    for z in (0..16).step_by(4) {
        let (region, voxels) = slab(&patch, z, 4);
        assert!(volume.read(region).unwrap().bytes() == voxels);
    }
    assert!(
        volume.read_stats().bytes <= packed.len() as u64,
        "in one pass"
    );
    // Going back decompresses it again, once; from then on bytes come from the map.
    let (region, voxels) = slab(&patch, 2, 1);
    assert!(volume.read(region).unwrap().bytes() == voxels);
    let after = volume.read_stats().bytes;
    assert!(after > packed.len() as u64);
    assert!(volume.read(region).unwrap().bytes() == voxels);
    assert_eq!(volume.read_stats().bytes - after, voxels.len() as u64);
}

#[test]
fn a_compressed_file_is_unpacked_once_for_all_runs_that_share_a_cache() {
    let desk = Desk::new();
    let (bytes, patch) = noise();
    let path = desk.put("a.nii.gz", &[&gzip(&bytes)]);
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    for method in [ReadMethod::Mmap, ReadMethod::Pread] {
        let options = OpenOptions::default()
            .with_cache_dir(Some(cache.clone()))
            .with_read_method(method);
        let (region, voxels) = slab(&patch, 6, 2);
        let first = options.open(&path).unwrap();
        if first.sequential_order().is_some() {
            // A pass that goes forward unpacks nothing.
            assert!(first.read(region).unwrap().bytes() == voxels);
            assert!(options.open(&path).unwrap().sequential_order().is_some());
            let (before, earlier) = slab(&patch, 1, 1);
            assert!(first.read(before).unwrap().bytes() == earlier);
        }
        let second = options.open(&path).unwrap();
        assert_eq!(second.sequential_order(), None);
        assert!(second.read(region).unwrap().bytes() == voxels);
        assert_eq!(second.read_stats().bytes, voxels.len() as u64);
        check(&*second, &patch);
    }
    // A damaged entry is made again.
    for entry in files_below(&cache) {
        let mut damaged = std::fs::read(&entry).unwrap();
        damaged[5000] ^= 1;
        std::fs::write(&entry, damaged).unwrap();
    }
    let options = OpenOptions::default().with_cache_dir(Some(cache.clone()));
    check(&*options.open(&path).unwrap(), &patch);
    // A changed file has another entry.
    let mut other = bytes;
    let last = other.len() - 1;
    other[last] ^= 1;
    let path = desk.put("a.nii.gz", &[&gzip(&other)]);
    let changed = options.open(&path).unwrap();
    assert!(changed.sequential_order().is_some());
    let whole = changed.read(Region::whole(patch.shape())).unwrap();
    assert!(whole.bytes() != patch.bytes());
}

/// Returns the files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_compressed_file_can_be_read_repeatedly_without_a_temporary_file() {
    let desk = Desk::new();
    let (bytes, patch) = noise();
    let packed = gzip(&bytes);
    let volume = open(desk.put("a.nii.gz", &[&packed])).unwrap();
    for pass in 1..4 {
        for z in 0..16 {
            let (region, voxels) = slab(&patch, z, 1);
            assert!(volume.read(region).unwrap().bytes() == voxels, "{pass} {z}");
        }
        assert!(volume.is_sequential(), "it was not unpacked");
        assert!(volume.read_stats().bytes <= pass * packed.len() as u64);
    }
    // A pass that is started again before its end goes back.
    volume.read(slab(&patch, 3, 1).0).unwrap();
    let (region, voxels) = slab(&patch, 0, 1);
    assert!(volume.read(region).unwrap().bytes() == voxels);
    assert!(
        !volume.is_sequential(),
        "it was unpacked, and any order will do"
    );
}

#[test]
fn interleaved_channels_of_a_compressed_file_are_read_forward_in_any_boxes() {
    let desk = Desk::new();
    let patch = Random(5).patch([7, 9, 11], 3, DType::U16);
    let head = "NRRD0005\ntype: ushort\ndimension: 4\nsizes: 3 11 9 7\n\
                kinds: vector domain domain domain\nendian: little\nencoding: gzip\n\n";
    let packed = gzip(&stored(&patch, "cxyz", false));
    let path = desk.put("a.nrrd", &[head.as_bytes(), &packed]);
    let volume = open(&path).unwrap();
    assert_eq!(volume.sequential_order(), Some([1, 2, 3, 0]));
    for region in [
        Region::whole([7, 9, 11]),
        Region::new([1, 2, 3], [5, 1, 2]),
        Region::new([2, 0, 0], [1, 9, 11]),
        Region::new([6, 8, 10], [1, 1, 1]),
    ] {
        for channels in [0..3, 0..1, 1..3] {
            let volume = open(&path).unwrap();
            let (count, size) = (channels.end - channels.start, 2);
            let mut twin = Patch::zeros(region, count, DType::U16).unwrap();
            let skip = usize::try_from(channels.start * 7 * 9 * 11 * size).unwrap();
            let whole = (&patch.bytes()[skip..], patch.region());
            copy_common(whole, (twin.bytes_mut(), region), count, 2);
            let mut out = vec![0; twin.bytes().len()];
            volume.read_channels(channels, region, &mut out).unwrap();
            assert!(out == twin.bytes(), "[{region}]");
            assert!(volume.is_sequential(), "nothing was unpacked");
        }
    }
}

#[test]
fn all_members_of_a_gzip_file_are_read_and_trailing_bytes_are_ignored() {
    let desk = Desk::new();
    let (bytes, patch) = noise();
    let mut members: Vec<Vec<u8>> = bytes.chunks(10_007).map(gzip).collect();
    for garbage in [&b""[..], b"x", b"\x1f", b"garbage that is no gzip"] {
        members.push(garbage.to_vec());
        desk.check("a.nii.gz", &[&members.concat()], &patch);
        members.pop();
    }
    let longer = [&bytes[..], &[1; 5000]].concat();
    desk.check("a.nii.gz", &[&gzip(&longer)], &patch);
}

#[test]
fn a_compressed_file_that_ends_early_or_is_damaged_is_an_error_in_both_ways_of_reading() {
    let desk = Desk::new();
    let (bytes, patch) = noise();
    let expected = bytes.len() as u64;
    let whole = Region::whole(patch.shape());
    let backward = |volume: &dyn Volume| {
        let (last, _) = slab(&patch, 0, 1);
        volume
            .read(Region::new([1, 0, 0], [1, 1, 1]))
            .and_then(|_| volume.read(last))
    };
    // Truncated before compression: everything that exists is decompressed and counted.
    let path = desk.put("short.nii.gz", &[&gzip(&bytes[..100_000])]);
    for volume in [open(&path).unwrap(), open(&path).unwrap()] {
        for error in [
            volume.read(whole).unwrap_err(),
            volume.read(whole).unwrap_err(),
            backward(&*volume).unwrap_err(),
        ] {
            let Error::FileLength {
                path: named,
                expected: e,
                actual,
                ..
            } = error
            else {
                panic!("{error:?}");
            };
            assert_eq!((named, e, actual), (path.clone(), expected, 100_000));
        }
    }
    // Truncated after compression.
    let packed = gzip(&bytes);
    let path = desk.put("cut.nii.gz", &[&packed[..packed.len() / 2]]);
    let volume = open(&path).unwrap();
    assert!(matches!(volume.read(whole), Err(Error::FileLength { .. })));
    assert!(matches!(backward(&*volume), Err(Error::FileLength { .. })));
    // The last bytes are the checksum and the length.
    let mut damaged = packed.clone();
    let at = damaged.len() - 6;
    damaged[at] ^= 1;
    let path = desk.put("sum.nii.gz", &[&damaged]);
    let volume = open(&path).unwrap();
    for error in [
        volume.read(whole).unwrap_err(),
        backward(&*volume).unwrap_err(),
    ] {
        assert!(
            matches!(&error, Error::Io { action: "unpack", path: named, .. } if *named == path),
            "{error:?}"
        );
    }
    // Damage in the middle: an error, or the checksum's at the end, but never other voxels.
    let mut random = Random(9);
    for _ in 0..50 {
        let mut damaged = packed.clone();
        let at = 2000 + usize::try_from(random.below(100_000)).unwrap();
        damaged[at] ^= 1 << random.below(8);
        let volume = open(desk.put("flip.nii.gz", &[&damaged])).unwrap();
        assert!(volume.read(whole).is_err(), "byte {at}");
    }
}

#[test]
fn a_bomb_is_unpacked_no_further_than_its_header_promises() {
    let desk = Desk::new();
    let patch = Random(10).patch([1, 1, 2000], 1, DType::U8);
    let head = nifti(false, b"n+1\0", &[3, 2000, 1, 1], (2, 8), 352, false);
    let bomb = [&head[..], &[0; 4], patch.bytes(), &vec![0; 256 << 20]].concat();
    let volume = open(desk.put("a.nii.gz", &[&gzip(&bomb)])).unwrap();
    check(&*volume, &patch);
    // A header that promises 2^46 bytes from a stream of 1 KiB.
    let head = nifti(
        false,
        b"n+1\0",
        &[3, 32767, 32767, 32767],
        (4, 16),
        352,
        false,
    );
    let path = desk.put("b.nii.gz", &[&gzip(&[&head[..], &[7; 1000]].concat())]);
    let volume = open(path).unwrap();
    let error = volume.read(Region::new([5, 5, 5], [1; 3])).unwrap_err();
    assert!(
        matches!(error, Error::FileLength { actual: 1348, .. }),
        "{error:?}"
    );
}

#[test]
fn a_flat_file_that_is_too_short_is_refused_when_it_is_opened() {
    let desk = Desk::new();
    let (bytes, _) = noise();
    let path = desk.put("a.nii", &[&bytes[..bytes.len() - 1]]);
    let Err(Error::FileLength {
        offset: 352,
        expected,
        actual,
        ..
    }) = open(&path)
    else {
        panic!("a byte is missing");
    };
    assert_eq!(
        (expected, actual),
        (bytes.len() as u64, bytes.len() as u64 - 1)
    );
    let volume = open(desk.put("a.nii", &[&bytes, b"more"])).unwrap();
    assert_eq!(volume.stored_bytes().unwrap(), bytes.len() as u64 + 4);
    volume.read(Region::new([0; 3], [2, 3, 4])).unwrap();
    assert_eq!(volume.read_stats().bytes, 48, "just the voxels are read");
}

/// Writes a patch in boxes from four threads, reads it back and checks it.
fn round_trip(desk: &Desk, name: &str, layout: &Layout, patch: &Patch) -> Layout {
    let path = desk.folder.path().join(name);
    let options = CreateOptions {
        overwrite: true,
        ..CreateOptions::default()
    };
    let writer = create(&path, layout, &options).unwrap();
    assert_eq!(writer.layout().write_chunk, None);
    let [depth, height, width] = patch.shape().map(|n| i64::try_from(n).unwrap());
    let size = patch.dtype().size();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let writer = &writer;
            scope.spawn(move || {
                for z in (0..depth).filter(|z| z % 4 == thread) {
                    for quarter in 0..4 {
                        let half = |upper: bool, length: i64| {
                            if upper {
                                (length / 2, length)
                            } else {
                                (0, length / 2)
                            }
                        };
                        let (y, y_end) = half(quarter / 2 == 1, height);
                        let (x, x_end) = half(quarter % 2 == 1, width);
                        let shape = [1, y_end - y, x_end - x].map(i64::unsigned_abs);
                        let region = Region::new([z, y, x], shape);
                        for c in 0..patch.channels() {
                            let mut voxels = Vec::new();
                            for row in y..y_end {
                                let plane = i64::try_from(c).unwrap() * depth + z;
                                let at = usize::try_from((plane * height + row) * width + x)
                                    .unwrap()
                                    * size;
                                let length = usize::try_from(x_end - x).unwrap() * size;
                                voxels.extend_from_slice(&patch.bytes()[at..at + length]);
                            }
                            writer.write_channels(c..c + 1, region, &voxels).unwrap();
                        }
                    }
                }
            });
        }
    });
    writer.finish().unwrap();
    let volume = open_stored(&path);
    let found = volume.layout().clone();
    if layout.dtype == DType::Bool && found.dtype == DType::U8 {
        let bytes = Patch::new(patch.region(), patch.channels(), patch.bytes().to_vec()).unwrap();
        check(&*volume, &bytes);
    } else {
        check(&*volume, patch);
    }
    found
}

/// Opens a volume for its stored values.
fn open_stored(path: &Path) -> Arc<dyn Volume> {
    let options = OpenOptions {
        values: Values::Stored,
        ..OpenOptions::default()
    };
    options.open(path).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn boxes_written_by_many_threads_are_read_back() {
    let desk = Desk::new();
    for dtype in DType::ALL {
        for channels in [1, 3] {
            let patch = Random(11).patch([5, 6, 7], channels, dtype);
            let layout = Layout::new([5, 6, 7], channels, dtype);
            // The source's layout does not determine the output's format.
            let npy = round_trip(&desk, "a.npy", &layout, &patch);
            if dtype != DType::F16 {
                let nii = round_trip(&desk, "a.nii", &npy, &patch);
                assert_eq!(nii.format, Format::Nifti1);
                round_trip(&desk, "a.npy", &nii, &patch.converted(nii.dtype));
            }
        }
    }
}

#[test]
fn nifti_keeps_geometry_and_rescale_and_takes_version_2_for_long_axes() {
    let desk = Desk::new();
    let (sin, cos) = 0.3_f64.sin_cos();
    let turned = [
        [2.0 * cos, -3.0 * sin, 0.0, -90.5],
        [2.0 * sin, 3.0 * cos, 0.0, 12.25],
        [0.0, 0.0, -4.0, 1000.0],
        [0.0, 0.0, 0.0, 1.0],
    ];
    let mut sheared = turned;
    sheared[0][1] += 1.0;
    for (affine, long) in [
        (turned, 1),
        (turned, 40_000),
        (sheared, 1),
        (sheared, 40_000),
    ] {
        let geometry = Geometry::from_affine(affine);
        let mut layout = Layout::new([3, 2, long], 1, DType::U8).with_geometry(geometry);
        layout.rescale = Rescale::new(0.5, -1024.0);
        let patch = Random(12).patch(layout.shape, 1, DType::U8);
        let found = round_trip(&desk, "a.nii", &layout, &patch);
        let format = if long == 1 { "nifti-1" } else { "nifti-2" };
        assert_eq!(found.format.to_string(), format);
        assert_eq!(found.rescale, layout.rescale);
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(near(
            found.geometry.affine.as_flattened(),
            geometry.affine.as_flattened()
        ));
        assert!(near(&found.geometry.spacing, &geometry.spacing));
        // The qform gives the same geometry where it can express it.
        let path = desk.folder.path().join("a.nii");
        let mut bytes = fs::read(&path).unwrap();
        let (q, s) = if long == 1 {
            (252..254, 254..256)
        } else {
            (344..348, 348..352)
        };
        assert_eq!(bytes[q].iter().any(|&b| b != 0), affine == turned);
        bytes[s].fill(0);
        fs::write(&path, bytes).unwrap();
        let by_qform = open(&path).unwrap().layout().geometry;
        assert_eq!(
            near(by_qform.affine.as_flattened(), affine.as_flattened()),
            affine == turned
        );
    }
}

#[test]
fn a_writer_refuses_what_its_format_or_the_layout_does_not_have() {
    let desk = Desk::new();
    let path = desk.folder.path().join("a.nii");
    let options = CreateOptions::default();
    let layout = Layout::new([2, 3, 4], 1, DType::F16);
    let refused = create(&path, &layout, &options).unwrap_err();
    assert!(
        matches!(refused, Error::UnsupportedDType { .. }),
        "{refused}"
    );
    let layout = Layout::new([1 << 20, 1 << 20, 1 << 17], 1, DType::F32);
    let error = create(&path, &layout, &options).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    let layout = Layout::new([2, 3, 4], 1, DType::U8);
    let writer = create(&path, &layout, &options).unwrap();
    let outside = Region::new([0, 0, 1], [2, 3, 4]);
    assert!(matches!(
        writer.write(outside, &[0; 24]),
        Err(Error::OutOfBounds { .. })
    ));
    let whole = Region::whole([2, 3, 4]);
    assert!(matches!(
        writer.write(whole, &[0; 23]),
        Err(Error::BufferLength { .. })
    ));
    drop(writer);
    assert_eq!(
        fs::read_dir(desk.folder.path()).unwrap().count(),
        0,
        "nothing is left"
    );
}

/// File, shape, channels, type, spacing and whether the file is compressed.
type Row = (&'static str, [u64; 3], u64, DType, [f64; 3], bool);

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
#[expect(clippy::too_many_lines, reason = "a table")]
fn the_real_scans_open_as_their_manifest_says() {
    let data = real_scans();
    // Path, shape z, y, x, channels, type, spacing z, y, x, compressed.
    let rows: [Row; 18] = [
        (
            "ct_lidc2_nii/lidc2_uint8.nii.gz",
            [133, 256, 256],
            1,
            DType::U8,
            [2.5, 1.40625, 1.40625],
            true,
        ),
        (
            "ct_lung1_nrrd/lung1_image.nrrd",
            [48, 512, 512],
            1,
            DType::I16,
            [5.0, 0.570_312_5, 0.570_312_5],
            true,
        ),
        (
            "ct_lung1_nrrd/lung1_label.nrrd",
            [48, 512, 512],
            1,
            DType::I16,
            [5.0, 0.570_312_5, 0.570_312_5],
            true,
        ),
        (
            "ct_lung_mha/3DCT_lung_baseline_small.mha",
            [64, 78, 57],
            1,
            DType::I16,
            [5.0, 2.732, 2.732],
            true,
        ),
        (
            "ct_tooth_nhdr_bigendian/tooth.nhdr",
            [161, 94, 103],
            1,
            DType::U16,
            [1.0; 3],
            false,
        ),
        (
            "mr_colin27/aal.nii.gz",
            [181, 217, 181],
            1,
            DType::U8,
            [1.0; 3],
            true,
        ),
        (
            "mr_colin27/ch2.nii.gz",
            [181, 217, 181],
            1,
            DType::U8,
            [1.0; 3],
            true,
        ),
        (
            "mr_head_mhd/HeadMRVolume.mhd",
            [42, 62, 48],
            1,
            DType::U8,
            [4.0; 3],
            false,
        ),
        (
            "nifti/anatomical.nii",
            [25, 41, 33],
            1,
            DType::I16,
            [2.0; 3],
            false,
        ),
        (
            "nifti/avg152T1_LR_nifti.nii",
            [91, 109, 91],
            1,
            DType::U8,
            [2.0; 3],
            false,
        ),
        (
            "nifti/big.nii.gz",
            [21, 64, 64],
            1,
            DType::F32,
            [6.0, 4.0, 4.0],
            true,
        ),
        (
            "nifti/example4d.nii.gz",
            [24, 96, 128],
            2,
            DType::I16,
            [2.2, 2.0, 2.0],
            true,
        ),
        (
            "nifti/example_nifti2.nii.gz",
            [12, 20, 32],
            2,
            DType::I16,
            [2.2, 2.0, 2.0],
            true,
        ),
        (
            "nifti/functional.nii",
            [3, 21, 17],
            20,
            DType::I16,
            [8.0, 4.0, 4.0],
            false,
        ),
        (
            "nifti/little.nii.gz",
            [21, 64, 64],
            1,
            DType::F32,
            [6.0, 4.0, 4.0],
            true,
        ),
        (
            "nifti/scct_uint8_slope.nii",
            [91, 109, 91],
            1,
            DType::U8,
            [2.0; 3],
            false,
        ),
        (
            "nifti/standard.nii.gz",
            [7, 5, 4],
            1,
            DType::U8,
            [2.0, 3.0, 1.0],
            true,
        ),
        (
            "npy/3DCT_lung_baseline_small.npy",
            [64, 78, 57],
            1,
            DType::I16,
            [1.0; 3],
            false,
        ),
    ];
    for (name, shape, channels, dtype, spacing, packed) in rows {
        let volume = open_stored(&data.join(name));
        let layout = volume.layout();
        assert_eq!(
            (layout.shape, layout.channels, layout.dtype),
            (shape, channels, dtype),
            "{name}"
        );
        for (found, expected) in layout.geometry.spacing.into_iter().zip(spacing) {
            assert!((found - expected).abs() < 1e-5, "{name}: {found} mm");
        }
        assert_eq!(!layout.codecs.is_empty(), packed, "{name}");
    }
    let rescale = open_stored(&data.join("nifti/functional.nii"))
        .layout()
        .rescale
        .unwrap();
    assert!((rescale.slope - 0.07541).abs() < 1e-5 && (rescale.intercept - 3100.76).abs() < 0.01);
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn real_scans_that_hold_the_same_voxels_do_so_here() {
    let data = real_scans();
    let read = |name: &str| {
        let volume = open(data.join(name)).unwrap_or_else(|error| panic!("{error}"));
        let whole = Region::whole(volume.layout().shape);
        volume.read(whole).unwrap()
    };
    assert!(read("nifti/big.nii.gz").bytes() == read("nifti/little.nii.gz").bytes());
    assert!(
        read("ct_lung_mha/3DCT_lung_baseline_small.mha")
            == read("npy/3DCT_lung_baseline_small.npy")
    );
    let label = read("ct_lung1_nrrd/lung1_label.nrrd");
    let voxels = label.as_slice::<i16>().unwrap();
    assert_eq!(voxels.iter().filter(|&&voxel| voxel != 0).count(), 837);
    let image = read("ct_lung1_nrrd/lung1_image.nrrd");
    let voxels = image.as_slice::<i16>().unwrap();
    assert_eq!(
        (voxels.iter().min(), voxels.iter().max()),
        (Some(&-1024), Some(&3071))
    );
    for (flat, zarr) in [
        (
            "nifti/example4d.nii.gz",
            "zarr/nifti_zarr_py_example4d.nii.zarr/0",
        ),
        (
            "nifti/example_nifti2.nii.gz",
            "zarr/nifti_zarr_py_example_nifti2.nii.zarr/0",
        ),
    ] {
        assert!(read(flat).bytes() == read(zarr).bytes(), "{flat}");
    }
}

#[test]
fn a_file_truncated_while_open_is_an_error_for_every_later_read() {
    let dir = tempfile::tempdir().unwrap();
    for left in [0, 1, 4000, 4095, 4096, 130_000] {
        let path = dir.path().join("scan.raw");
        fs::write(&path, vec![7; 64 * 64 * 32]).unwrap();
        fs::write(
            path.with_extension("json"),
            r#"{"shape": [32, 64, 64], "dtype": "uint8"}"#,
        )
        .unwrap();
        let volume = crate::open(&path).unwrap();
        let row = |z| volume.read(Region::new([z, 3, 5], [1, 2, 40]));
        assert_eq!(row(31).unwrap().bytes(), [7; 80]);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(left).unwrap();
        for z in [31, 0] {
            let error = row(z).unwrap_err();
            assert!(
                matches!(error, Error::FileLength { actual, .. } if actual == left),
                "{left}: {error}"
            );
        }
    }
}

/// Boxes whose voxels are so far apart that they are read in parts, along any axis.
#[test]
fn large_boxes_are_read_by_calls_of_bounded_size() {
    let desk = Desk::new();
    let shape = [70, 150, 130];
    let patch = Random(9).patch(shape, 3, DType::U16);
    for (order, fortran, text) in [
        ("xyzc", false, "(3, 70, 150, 130)"),
        ("czyx", true, "(3, 70, 150, 130)"),
    ] {
        let path = desk.put("a.npy", &[&npy(&patch, 1, text, fortran, order, false)]);
        let [mapped, plain] = [ReadMethod::Mmap, ReadMethod::Pread].map(|io| {
            let options = OpenOptions {
                read_method: io,
                ..OpenOptions::default()
            };
            options.open(&path).unwrap()
        });
        for region in [
            Region::whole(shape),
            Region::new([3, 5, 7], [60, 140, 1]),
            Region::new([0, 149, 0], [70, 1, 130]),
            Region::new([69, 2, 3], [1, 100, 100]),
            Region::new([10, 20, 30], [33, 40, 50]),
        ] {
            for channels in [0..3, 1..2] {
                let voxels = region.voxels() * (channels.end - channels.start) * 2;
                let [mut a, mut b] = [(); 2].map(|()| vec![0; usize::try_from(voxels).unwrap()]);
                mapped
                    .read_channels(channels.clone(), region, &mut a)
                    .unwrap();
                plain.read_channels(channels, region, &mut b).unwrap();
                assert!(a == b, "{order}: [{region}]");
            }
        }
        // A truncated file is an error, as with a map.
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(2000).unwrap();
        let error = plain
            .read(Region::new([69, 140, 100], [1, 2, 3]))
            .unwrap_err();
        assert!(
            matches!(error, Error::FileLength { actual: 2000, .. }),
            "{error}"
        );
        let changed = plain.check_unchanged().unwrap_err();
        assert!(changed.to_string().contains("a.npy changed"), "{changed}");
    }
}

#[test]
fn voxels_outside_the_headers_folder_are_read_only_where_that_is_allowed() {
    let desk = Desk::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let data = elsewhere.path().join("voxels.raw");
    fs::write(&data, [5; 24]).unwrap();
    std::os::unix::fs::symlink(&data, desk.folder.path().join("link.raw")).unwrap();
    let allowed = OpenOptions {
        allow_external: true,
        ..OpenOptions::default()
    };
    for name in [data.to_str().unwrap(), "link.raw"] {
        let header = format!(
            "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_UCHAR\nElementDataFile = {name}\n"
        );
        let path = desk.put("a.mhd", &[header.as_bytes()]);
        let refused = open(&path).unwrap_err();
        assert!(matches!(refused, Error::ExternalFile { .. }), "{refused}");
        let volume = allowed.open(&path).unwrap();
        assert_eq!(
            volume.read(Region::whole([2, 3, 4])).unwrap().bytes(),
            [5; 24]
        );
    }
    for name in ["/dev/zero", "http://host/a.raw", "../none.raw", ""] {
        let header = format!(
            "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_UCHAR\nElementDataFile = {name}\n"
        );
        let path = desk.put("a.mhd", &[header.as_bytes()]);
        assert!(allowed.open(&path).is_err(), "{name}");
    }
}

#[test]
fn file_names_are_quoted_short_and_without_terminal_escapes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mhd");
    let long = "x".repeat(100_000);
    for (name, quoted) in [
        (&*long, &long[..60]),
        ("red\u{1b}[31m.raw", r"red\u{1b}[31m.raw"),
        ("bell\u{7}.raw", r"bell\u{7}.raw"),
    ] {
        let header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n";
        fs::write(&path, format!("{header}ElementDataFile = {name}\n")).unwrap();
        for allow_external in [false, true] {
            let options = OpenOptions {
                allow_external,
                ..OpenOptions::default()
            };
            let error = options.open(&path).unwrap_err();
            assert!(matches!(error, Error::ExternalFile { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(&format!("\"{quoted}\"")), "{text}");
            assert!(text.contains("not a valid file name") && !text.contains(char::is_control));
        }
    }
}
