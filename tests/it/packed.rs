//! Conversion and verification of files that are compressed as a whole, without a temporary file.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use voxpatch::{DType, OpenOptions, Patch, Region, VolumeExt, open};

use crate::tool::{Place, command, succeeds, voxels};

const SHAPE: [u64; 3] = [40, 33, 37];

/// Returns `count` voxels with different neighbors.
fn numbers(count: usize) -> Vec<u16> {
    (0..=u16::MAX).cycle().take(count).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).expect("memory takes it");
    packed.finish().expect("memory takes it")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).expect("memory takes it");
    packed.finish().expect("memory takes it")
}

/// Creates compressed files of all formats, with one channel, several, and interleaved ones.
fn sources(place: &Place) -> Vec<String> {
    let mut sources = Vec::new();
    let mut add = |name: &str, parts: &[&[u8]]| {
        let path = place.at(name);
        fs::write(&path, parts.concat()).expect("it can be written");
        sources.push(path);
    };
    for channels in [1, 3] {
        let count = usize::try_from(channels).expect("few") * 40 * 33 * 37;
        let plain = place.store("plain.nii", SHAPE, channels, numbers(count));
        let nifti = fs::read(&plain).expect("it was written");
        add(&format!("{channels}.nii.gz"), &[&gzip(&nifti)]);
        fs::remove_file(&plain).expect("it was written");
    }
    let bytes: Vec<u8> = numbers(3 * 40 * 33 * 37)
        .into_iter()
        .flat_map(u16::to_le_bytes)
        .collect();
    let nrrd =
        |axes: &str| format!("NRRD0005\ntype: ushort\nendian: little\nencoding: gzip\n{axes}\n\n");
    let one = &bytes[..bytes.len() / 3];
    let three_axes = nrrd("dimension: 3\nsizes: 37 33 40");
    add("1.nrrd", &[three_axes.as_bytes(), &gzip(one)]);
    let beside = nrrd("dimension: 4\nsizes: 3 37 33 40\nkinds: vector domain domain domain");
    add("interleaved.nrrd", &[beside.as_bytes(), &gzip(&bytes)]);
    let apart = nrrd("dimension: 4\nsizes: 37 33 40 3\nkinds: domain domain domain list");
    add("3.nrrd", &[apart.as_bytes(), &gzip(&bytes)]);
    let meta = |channels: u64, packed: &[u8]| {
        format!(
            "ObjectType = Image\nNDims = 3\nDimSize = 37 33 40\nElementType = MET_USHORT\n\
             ElementNumberOfChannels = {channels}\nBinaryData = True\nCompressedData = True\n\
             CompressedDataSize = {}\nElementDataFile = LOCAL\n",
            packed.len()
        )
    };
    for (name, channels, bytes) in [("1.mha", 1, one), ("interleaved.mha", 3, &bytes[..])] {
        let packed = zlib(bytes);
        add(name, &[meta(channels, &packed).as_bytes(), &packed]);
    }
    sources
}

/// Runs the command where temporary files cannot be created.
fn without_temporary_files(args: &[&str]) -> std::process::Output {
    let mut command = command(args);
    command.env("TMPDIR", "/nowhere/at/all");
    command.output().expect("the command starts")
}

fn level(path: &str, level: usize) -> Patch {
    let options = OpenOptions::default().with_level(level);
    let volume = options.open(path).expect("it opens");
    volume
        .read(Region::whole(volume.layout().shape))
        .expect("it reads")
}

#[test]
fn compressed_files_are_converted_and_verified_without_a_temporary_file() {
    let place = Place::new();
    for source in sources(&place) {
        let name = Path::new(&source)
            .file_name()
            .expect("a file")
            .to_string_lossy();
        let expected = voxels(&source);
        let verified = without_temporary_files(&["verify", &source]);
        assert!(verified.status.success(), "{name}: {verified:?}");
        let mut pyramids = Vec::new();
        for target in [
            "a.zarr", "b.zarr", "c.npy", "d.nii", "e.nrrd", "f.mha", "g.mhd", "h.tif", "i.tif",
        ] {
            if target.ends_with("tif") && cfg!(not(feature = "tiff")) {
                continue;
            }
            for (threads, dtype) in [("4", "uint16"), ("1", "float32")] {
                let out = place.at(target);
                let mut args = vec![
                    "convert",
                    &source,
                    &out,
                    "--overwrite",
                    "--threads",
                    threads,
                ];
                args.extend(["--dtype", dtype, "--memory", "8MiB"]);
                if target.ends_with("zarr") {
                    args.extend(["--chunk", "8", "--shard", "16"]);
                }
                if target == "b.zarr" {
                    args.extend(["--pyramid", "mean"]);
                }
                if target == "i.tif" {
                    args.extend(["--codec", "zstd", "--chunk", "16"]);
                }
                let done = without_temporary_files(&args);
                assert!(done.status.success(), "{name} {target} {dtype}: {done:?}");
                let dtype = DType::from_name(dtype).expect("a type");
                let found = voxels(&out);
                let same = found.bytes() == expected.clone().converted(dtype).bytes();
                assert!(same, "{name} to {target} as {dtype}");
                if target == "b.zarr" && dtype == DType::U16 {
                    pyramids.push(level(&out, 1));
                }
            }
        }
        // Coarser levels are those of an uncompressed file.
        let (plain, out) = (place.at("plain.npy"), place.at("plain.zarr"));
        succeeds(&["convert", &source, &plain, "--overwrite"]);
        succeeds(&[
            "convert",
            &plain,
            &out,
            "--overwrite",
            "--chunk",
            "8",
            "--shard",
            "16",
            "--pyramid",
            "mean",
        ]);
        assert!(
            pyramids.iter().all(|found| *found == level(&out, 1)),
            "{name}"
        );
    }
}

/// Checks that the test above can fail.
#[test]
fn commands_that_read_at_random_need_a_temporary_file() {
    let place = Place::new();
    let source = &sources(&place)[0];
    let sample = [
        "sample",
        source,
        "--patch-size",
        "8",
        "--samples-per-subject",
        "9",
    ];
    let failed = without_temporary_files(&sample);
    let message = String::from_utf8_lossy(&failed.stderr);
    assert!(
        !failed.status.success() && message.contains("TMPDIR"),
        "{message}"
    );
    succeeds(&sample);
    // A conversion whose slabs do not fit into memory needs one, too.
    let out = place.at("out.zarr");
    let convert = [
        "convert", source, &out, "--chunk", "8", "--shard", "16", "--memory", "64KiB",
    ];
    let failed = without_temporary_files(&convert);
    let message = String::from_utf8_lossy(&failed.stderr);
    assert!(
        !failed.status.success() && message.contains("TMPDIR"),
        "{message}"
    );
    succeeds(&convert);
    assert_eq!(voxels(&out), voxels(source));
    assert!(open(source).expect("it opens").is_sequential());
}
