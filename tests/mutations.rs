//! Files with changed bytes, of every format and with every decoder: each is a volume or an error. No panic reaches the
//! caller, no allocation is larger than the header's promise and 32 MiB, and no voxel behind a checksum is wrong.
//!
//! `VOXPATCH_CHANGES` is the number of changed files for each of about 160 valid ones; 40 by default. Then as many more are
//! made as damage an eighth of that number of blocks for each decoder, or 2 000 if it is 2 000 or more.

#![allow(clippy::unwrap_used, reason = "all functions here are of a test")]
#![cfg(all(feature = "dicom", feature = "hdf5", feature = "tiff"))]

mod counting;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use voxpatch::{OpenOptions, Region, VolumeExt};

/// The memory beyond the promise of a header.
const SPARE: u64 = 32 << 20;

/// Volumes and chunks up to this size are read.
const MOST: u64 = 1 << 20;

/// The damaged blocks for each decoder in a long run. Where random changes damage fewer, since most are refused at opening,
/// further changes are to bytes of the blocks only.
const DAMAGED: u64 = 2000;

/// Decoders that are run with a guard against their panics.
const GUARDED: [&str; 3] = [
    "hdf5-reader panicked",
    "JPEG 2000 decoder panicked",
    "zarrs panicked",
];

/// A valid volume.
struct Seed {
    name: String,
    /// The files by their names, each with the bytes that are changed most often, or all.
    files: Vec<(String, Vec<u8>)>,
    /// The file or folder that is opened.
    opens: String,
    /// The number of the file and its first byte from which on a checksum covers all, so that changes are found.
    checked: Option<(usize, usize)>,
}

fn seed(name: &str, file: &str, bytes: Vec<u8>) -> Seed {
    Seed {
        name: name.to_owned(),
        files: vec![(file.to_owned(), bytes)],
        opens: file.to_owned(),
        checked: None,
    }
}

/// Returns the place behind some bytes.
fn behind(bytes: &[u8], mark: &[u8]) -> usize {
    let at = bytes.windows(mark.len()).position(|part| part == mark);
    at.unwrap() + mark.len()
}

/// Codecs of Zarr whose checksum covers the voxels as they are stored or decoded.
const CHECKED: [&str; 8] = [
    "adler32",
    "fletcher32",
    "crc32c",
    "zstd_checksum",
    "gzip",
    "zlib",
    "bz2",
    "shard_crc32c",
];

/// Returns the arrays that a seed of a metadata document and a block is.
fn store(target: &str, name: &str, bytes: &[u8]) -> Seed {
    let (length, rest) = bytes.split_first_chunk::<2>().unwrap();
    let length = u16::from_le_bytes(*length);
    let (document, chunk) = rest.split_at(usize::from(length & 0x7fff));
    let (file, key) = match (target, length >> 15) {
        ("n5", _) => ("attributes.json", "0/0/0"),
        (_, 1) => (".zarray", "0.0.0"),
        _ => ("zarr.json", "c/0/0/0"),
    };
    let text = String::from_utf8_lossy(document);
    // Names of chunks that are not those of an array of three dimensions.
    let ranks = text.split_once("\"shape\": [").map_or("", |(_, rest)| rest);
    let rank = ranks.split(']').next().unwrap().matches(',').count() + 1;
    let key = if target == "n5" {
        key.to_owned()
    } else {
        let says = |what: &str| text.contains(what);
        let is_dotted = if key.contains('.') {
            !says(r#"separator": "/""#)
        } else {
            says(r#""separator": ".""#)
        };
        let separator = if is_dotted { "." } else { "/" };
        let is_second = key.contains('.') || says(r#""name": "v2""#);
        let start = (!is_second).then_some("c");
        let numbers = std::iter::repeat_n("0", rank);
        start
            .into_iter()
            .chain(numbers)
            .collect::<Vec<_>>()
            .join(separator)
    };
    let short = name.get(3..).unwrap_or(name);
    // The header of a block of N5 has no checksum: it is 4 bytes and 4 for each axis.
    let checked = match target {
        "n5" => (["gzip", "zlib", "bzip2"].contains(&name)).then_some((1, 16)),
        _ => CHECKED.contains(&short).then_some((1, 0)),
    };
    Seed {
        name: format!("{target}/{name}"),
        files: vec![
            (format!("a/{file}"), document.to_vec()),
            (format!("a/{key}"), chunk.to_vec()),
        ],
        opens: "a".to_owned(),
        checked,
    }
}

fn nifti_zarr() -> Seed {
    let array = |shape: &str, dtype: &str| {
        format!(
            r#"{{"zarr_format": 2, "shape": {shape}, "chunks": {shape}, "dtype": "{dtype}", "compressor": null,
            "fill_value": 0, "order": "C", "filters": null}}"#
        )
    };
    let header = fs::read(seeds().join("nifti/little")).unwrap()[..348].to_vec();
    let attributes = r#"{"multiscales": [{"version": "0.4", "axes": [{"name": "z", "type": "space"},
        {"name": "y", "type": "space"}, {"name": "x", "type": "space"}], "datasets": [{"path": "0",
        "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]}]}"#;
    let texts = [
        ("a.nii.zarr/.zgroup", r#"{"zarr_format": 2}"#.to_owned()),
        ("a.nii.zarr/.zattrs", attributes.to_owned()),
        ("a.nii.zarr/0/.zarray", array("[2, 2, 2]", "<i2")),
        ("a.nii.zarr/nifti/.zarray", array("[348]", "|u1")),
    ];
    let mut files: Vec<(String, Vec<u8>)> = texts
        .map(|(name, text)| (name.to_owned(), text.into_bytes()))
        .into();
    files.push(("a.nii.zarr/0/0.0.0".to_owned(), (0..16).collect()));
    files.push(("a.nii.zarr/nifti/0".to_owned(), header));
    Seed {
        name: "nifti-zarr".to_owned(),
        files,
        opens: "a.nii.zarr".to_owned(),
        checked: None,
    }
}

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds")
}

/// Returns a valid volume of each kind.
fn all_seeds() -> Vec<Seed> {
    let mut all = vec![nifti_zarr()];
    for (target, file) in [
        ("archive", "a.ozx"),
        ("blosc2", "a.b2nd"),
        ("dicom", "a.dcm"),
        ("hdf5", "a.h5"),
        ("metaimage", "a.mhd"),
        ("mgh", "a.mgz"),
        ("n5", ""),
        ("nifti", "a.hdr"),
        ("npy", "a.npy"),
        ("nrrd", "a.nhdr"),
        ("raw", "near.raw.json"),
        ("tiff", "a.tif"),
        ("zarr", ""),
    ] {
        let mut paths: Vec<PathBuf> = fs::read_dir(seeds().join(target))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap().to_str().unwrap();
            let bytes = fs::read(&path).unwrap();
            if file.is_empty() {
                all.push(store(target, name, &bytes));
                continue;
            }
            let full = format!("{target}/{name}");
            if full == "hdf5/bitshuffle" {
                for set in ["lz4", "none", "zstd"] {
                    let mut one = seed(&format!("{full}/{set}"), file, bytes.clone());
                    one.opens = format!("{file}:/{set}");
                    all.push(one);
                }
                continue;
            }
            let mut one = seed(&full, file, bytes);
            let bytes = &one.files[0].1;
            one.checked = match full.as_str() {
                // Behind the header of gzip, whose name and time are not covered.
                "mgh/packed" | "nifti/big_gz" | "nifti/little_gz" | "nifti/second_gz" => {
                    Some((0, 10))
                }
                "metaimage/packed" => Some((0, behind(bytes, b"LOCAL\n"))),
                "nrrd/packed" => Some((0, behind(bytes, b"\n\n") + 10)),
                _ => None,
            };
            match target {
                "mgh" if name == "plain" => one = seed(&full, "a.mgh", bytes.clone()),
                "raw" => "near.raw".clone_into(&mut one.opens),
                _ => {}
            }
            all.push(one);
        }
    }
    all
}

/// Changes up to five bytes, or digits of a text, and cuts off one file in eight.
fn mutate(bytes: &mut Vec<u8>, from: usize, random: &mut impl Rng) {
    if bytes.len() <= from {
        bytes.push(random.random());
        return;
    }
    let whole = bytes.len();
    for _ in 0..=random.random_range(0..4) {
        let at = random.random_range(from..whole);
        bytes[at] = match random.random_range(0..7) {
            0 => 0,
            1 => 1,
            2 => 0x7f,
            3 => 0xff,
            4 => bytes[at] ^ (1 << random.random_range(0..8)),
            5 if bytes[at].is_ascii_digit() => b'9',
            _ => random.random(),
        };
    }
    match random.random_range(0..24) {
        0..3 => bytes.truncate(random.random_range(from..whole)),
        // A piece that is there twice, as in a list that is longer than it says.
        3 => {
            let at = random.random_range(from..whole);
            let piece = bytes[at..whole.min(at + random.random_range(1..40))].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => {}
    }
}

/// Returns the file and the place of each byte that belongs to a block: changed, the volume is as before, with other voxels
/// or none.
fn bytes_of_blocks(seed: &Seed, folder: &Path, same: &Found) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for (file, (name, whole)) in seed.files.iter().enumerate() {
        let damages = |at: usize, change: u8| {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            fs::write(folder.join(name), bytes).unwrap();
            let found = catch_unwind(AssertUnwindSafe(|| read(&folder.join(&seed.opens))));
            matches!(found, Ok(Ok((found, _))) if found.is_damaged(same))
        };
        let own = (0..whole.len())
            .filter(|&at| [1, 0x10, 0x80].iter().any(|&change| damages(at, change)));
        places.extend(own.map(|at| (file, at)));
        fs::write(folder.join(name), whole).unwrap();
    }
    places
}

/// Changes up to four bytes of the blocks of one file. Returns its number and its bytes.
fn damage(seed: &Seed, places: &[(usize, usize)], random: &mut impl Rng) -> (usize, Vec<u8>) {
    let (file, at) = places[random.random_range(0..places.len())];
    let mut bytes = seed.files[file].1.clone();
    bytes[at] = random.random();
    let own: Vec<usize> = places
        .iter()
        .filter(|(other, _)| *other == file)
        .map(|&(_, at)| at)
        .collect();
    for _ in 0..random.random_range(0..4) {
        bytes[own[random.random_range(0..own.len())]] = random.random();
    }
    (file, bytes)
}

/// What a volume is, and its voxels if it is small.
#[derive(Clone, PartialEq)]
struct Found {
    layout: String,
    voxels: Result<Option<Vec<u8>>, String>,
}

impl Found {
    /// Returns `true` if this is the same volume with other voxels, or with voxels that cannot be read.
    fn is_damaged(&self, same: &Self) -> bool {
        self.layout == same.layout && self.voxels != same.voxels
    }
}

fn text(error: &voxpatch::Error) -> String {
    error.with_causes()
}

/// Opens a volume and reads all of it, or a voxel at each end if it is larger than [`MOST`]. Returns the bytes that its
/// header promises for that with it.
fn read(path: &Path) -> Result<(Found, u64), String> {
    let volume = OpenOptions::default()
        .open(path)
        .map_err(|error| text(&error))?;
    let layout = volume.layout();
    let bytes = layout.decoded_bytes().expect("an opened volume has a size");
    assert!(bytes > 0 && layout.geometry.is_sound());
    let chunk = layout.read_chunk.unwrap_or([1; 4]);
    let chunk = chunk
        .iter()
        .fold(layout.dtype.size() as u64, |all, &n| all.saturating_mul(n));
    let whole = Region::whole(layout.shape);
    let voxels = if chunk > MOST || layout.channels > MOST / 8 {
        Ok(None)
    } else if bytes <= MOST {
        let read = volume.read(whole).map(|patch| Some(patch.bytes().to_vec()));
        read.map_err(|error| text(&error))
    } else {
        let last = layout.shape.map(|n| i64::try_from(n).unwrap() - 1);
        let reads = [[0; 3], last].map(|start| volume.read(Region::new(start, [1; 3])));
        let reads: Result<Vec<_>, _> = reads.into_iter().collect();
        reads.map(|_| None).map_err(|error| text(&error))
    };
    let promised = chunk.min(MOST) + bytes.min(MOST) + 8 * layout.channels.min(MOST / 8);
    let promised = promised + layout.read_memory.shared;
    let layout = format!(
        "{:?} {} {} {:?}",
        layout.shape, layout.channels, layout.dtype, layout.codecs
    );
    Ok((Found { layout, voxels }, promised))
}

/// Counts of outcomes.
#[derive(Debug, Default)]
struct Counts {
    /// `true` if the valid file can be read.
    is_sound: bool,
    changed: u64,
    opened: u64,
    /// Opened as before, with other voxels or none.
    damaged: u64,
    panics: BTreeMap<String, u64>,
    problems: Vec<String>,
    peak: u64,
}

impl Counts {
    /// Takes an outcome. `same` is what the valid file is.
    fn add(&mut self, outcome: &Result<(Found, u64), String>, same: &Found) {
        self.changed += 1;
        let error = match outcome {
            Ok((found, _)) => {
                self.opened += 1;
                self.damaged += u64::from(found.is_damaged(same));
                found.voxels.as_ref().err()
            }
            Err(error) => Some(error),
        };
        if let Some(error) = error.filter(|error| error.contains("panicked")) {
            let known = GUARDED.iter().find(|known| error.contains(*known));
            let known = known.copied().unwrap_or("a panic that nothing guards");
            if !GUARDED.contains(&known) {
                self.problems.push(error.clone());
            }
            *self.panics.entry(known.to_owned()).or_default() += 1;
        }
    }
}

/// Changes a valid volume `most` times, or until enough blocks are damaged.
fn check(seed: &Seed, folder: &Path, most: u64, random: &mut impl Rng) -> Counts {
    for (name, bytes) in &seed.files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let path = folder.join(&seed.opens);
    // A few seeds are what is refused, such as a compressed pair.
    let same = read(&path).map_or_else(
        |error| Found {
            layout: String::new(),
            voxels: Err(error),
        },
        |(found, _)| found,
    );
    let decodes = matches!(&same.voxels, Ok(Some(_))) && !same.layout.ends_with("[]");
    let mut counts = Counts {
        is_sound: same.voxels.is_ok(),
        ..Counts::default()
    };
    let wanted = match most {
        _ if !decodes => 0,
        DAMAGED.. => DAMAGED,
        _ => most / 8,
    };
    let is_enough = |counts: &Counts| {
        counts.problems.len() > 5
            || counts.changed >= most && (counts.damaged >= wanted || counts.changed >= 5 * most)
    };
    let mut places = None;
    while !is_enough(&counts) {
        // Every second change is behind the checksum, if there is one.
        let is_first = counts.changed < most;
        let checked = seed
            .checked
            .filter(|_| is_first && counts.changed.is_multiple_of(2));
        let (file, bytes) = if is_first {
            let (file, from) =
                checked.unwrap_or_else(|| (random.random_range(0..seed.files.len()), 0));
            let mut bytes = seed.files[file].1.clone();
            mutate(&mut bytes, from, random);
            (file, bytes)
        } else {
            let places = places.get_or_insert_with(|| bytes_of_blocks(seed, folder, &same));
            if places.is_empty() {
                counts
                    .problems
                    .push(format!("no byte of {} is one of a block", seed.name));
                break;
            }
            damage(seed, places, random)
        };
        let (name, whole) = &seed.files[file];
        fs::write(folder.join(name), &bytes).unwrap();
        let before = counting::restart();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&path)));
        let taken = counting::peak().saturating_sub(before);
        let told = || format!("{}: {name} {bytes:?}", seed.name);
        let Ok(outcome) = outcome else {
            counts.problems.push(format!("a panic: {}", told()));
            counts.changed += 1;
            continue;
        };
        let promised = outcome.as_ref().map_or(0, |(_, promised)| *promised);
        if taken > promised + SPARE {
            let problem = format!("{taken} bytes of {promised}, {:?}", outcome.as_ref().err());
            counts.problems.push(format!("{problem}: {}", told()));
        }
        counts.peak = counts.peak.max(taken.saturating_sub(promised));
        counts.add(&outcome, &same);
        if let (Some(_), Ok((found, _))) = (checked, &outcome) {
            let is_right = found.voxels.is_err() || *found == same || found.layout != same.layout;
            if !is_right {
                let problem = format!("wrong voxels behind a checksum: {}", told());
                counts.problems.push(problem);
            }
        }
        if seed.files.len() > 1 {
            fs::write(folder.join(name), whole).unwrap();
        }
    }
    if counts.damaged < wanted {
        let problem = format!("{}: only {} damaged blocks", seed.name, counts.damaged);
        counts.problems.push(problem);
    }
    counts
}

#[test]
fn changed_files_are_volumes_or_errors() {
    let most = std::env::var("VOXPATCH_CHANGES").map_or(40, |n| n.parse().unwrap());
    let only = std::env::var("VOXPATCH_CHANGES_OF").unwrap_or_default();
    let folder = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    fs::write(folder.path().join("near.raw"), [7; 4096]).unwrap();
    fs::write(folder.path().join("a.img"), [7; 4096]).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(24);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |about| {
        // Only the reports of this test; panics of decoders are counted.
        if about
            .location()
            .is_some_and(|place| place.file().contains("tests/mutations.rs"))
        {
            usual(about);
        }
    }));
    let (mut changed, mut damaged, mut opened) = (0, 0, 0);
    let (mut few, mut refused, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for seed in all_seeds() {
        if !seed.name.starts_with(&only) {
            continue;
        }
        let own = folder.path();
        let mut counts = check(&seed, own, most, &mut random);
        problems.append(&mut counts.problems);
        if most > 40 {
            println!("{}: {counts:?}", seed.name);
        }
        if !counts.is_sound {
            refused.push(seed.name.clone());
        } else if counts.damaged < DAMAGED.min(most / 20) {
            few.push(format!("{}: {}", seed.name, counts.damaged));
        }
        changed += counts.changed;
        damaged += counts.damaged;
        opened += counts.opened;
        let opens = own.join(&seed.opens);
        if opens.is_dir() {
            fs::remove_dir_all(opens).unwrap();
        } else {
            for (name, _) in &seed.files {
                fs::remove_file(own.join(name)).unwrap();
            }
        }
    }
    println!(
        "{changed} changed files, {opened} opened, {damaged} with damaged blocks; few damaged: {few:?}, refused: {refused:?}"
    );
    assert!(changed >= 100 * most || !only.is_empty());
    assert!(
        problems.is_empty(),
        "{}",
        problems.join(
            "
"
        )
    );
    assert!(opened > changed / 20 && opened < changed);
}
