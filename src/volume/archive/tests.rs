//! Archives of Zarr and of numpy arrays against the same arrays in folders and files.

use std::fs;
use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::*;
use crate::dtype::DType;
use crate::patch::Patch;
use crate::region::Region;
use crate::volume::{Codec, CreateOptions, Layout, OpenOptions, create, suite, walk};

/// The form of an archive.
#[derive(Clone, Copy, Debug, Default)]
struct Form {
    is_deflated: bool,
    /// Whether all numbers are in zip64 fields.
    is_wide: bool,
    comment: &'static [u8],
}

/// Encodes an archive.
fn archive(entries: &[(String, Vec<u8>)], form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, bytes) in entries {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let stored = if form.is_deflated {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        } else {
            bytes.clone()
        };
        let header = out.len() as u64;
        let numbers = [bytes.len() as u64, stored.len() as u64, header];
        let extra: Vec<u8> = if form.is_wide {
            let own = numbers.iter().flat_map(|n| n.to_le_bytes());
            [1, 0, 24, 0].into_iter().chain(own).collect()
        } else {
            Vec::new()
        };
        let narrow = numbers.map(|n| {
            if form.is_wide {
                u32::MAX
            } else {
                u32::try_from(n).unwrap()
            }
        });
        let mut common = vec![20, 0, 0, 0, if form.is_deflated { 8 } else { 0 }, 0];
        common.extend([0; 4]);
        common.extend(crc.sum().to_le_bytes());
        common.extend(narrow[1].to_le_bytes());
        common.extend(narrow[0].to_le_bytes());
        common.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        out.extend(ARCHIVE);
        out.extend(&common);
        out.extend([3, 0]);
        out.extend(name.as_bytes());
        out.extend(b"pad");
        out.extend(stored);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend(u16::try_from(extra.len()).unwrap().to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(narrow[2].to_le_bytes());
        directory.extend(name.as_bytes());
        directory.extend(extra);
    }
    let start = out.len() as u64;
    let (count, bytes) = (entries.len() as u64, directory.len() as u64);
    out.extend(directory);
    if form.is_wide {
        let at = out.len() as u64;
        out.extend(b"PK\x06\x06");
        out.extend(44_u64.to_le_bytes());
        out.extend([45, 0, 45, 0]);
        out.extend([0; 8]);
        for number in [count, count, bytes, start] {
            out.extend(number.to_le_bytes());
        }
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend(at.to_le_bytes());
        out.extend(1_u32.to_le_bytes());
    }
    let narrow = |n: u64| {
        if form.is_wide {
            u32::MAX
        } else {
            u32::try_from(n).unwrap()
        }
    };
    out.extend(b"PK\x05\x06\0\0\0\0");
    let count = u16::try_from(count).unwrap();
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(narrow(bytes).to_le_bytes());
    out.extend(narrow(start).to_le_bytes());
    out.extend(u16::try_from(form.comment.len()).unwrap().to_le_bytes());
    out.extend(form.comment);
    out
}

/// The forms of archives that are tried.
fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for is_deflated in [false, true] {
        for is_wide in [false, true] {
            for comment in [&b""[..], b"{\"ome\": {\"version\": \"0.5\"}} PK\x05\x06"] {
                forms.push(Form {
                    is_deflated,
                    is_wide,
                    comment,
                });
            }
        }
    }
    forms
}

fn voxels() -> Patch {
    let shape = [9, 17, 12];
    let voxel = |n: u16| {
        let (z, y, x) = (n / 12 / 17, n / 12 % 17, n % 12);
        // A chunk that is not stored.
        if z < 4 && (8..12).contains(&y) && x >= 8 {
            0
        } else {
            n + 1
        }
    };
    let voxels: Vec<u16> = (0..9 * 17 * 12).map(voxel).collect();
    Patch::new(Region::whole(shape), 1, voxels).unwrap()
}

/// Returns the entries of a Zarr image with these voxels.
fn zarr(options: &CreateOptions) -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.zarr");
    let patch = voxels();
    let mut layout = Layout::new(patch.shape(), 1, DType::U16);
    layout.geometry = crate::geometry::Geometry::from_spacing([3.0, 2.0, 1.0]);
    let output = create(&path, &layout, options).unwrap();
    output.write(patch.region(), patch.bytes()).unwrap();
    output.finish().unwrap();
    let mut entries = Vec::new();
    walk(&path, |name, _| {
        let bytes = fs::read(path.join(name)).unwrap();
        entries.push((name.to_str().unwrap().to_owned(), bytes));
    })
    .unwrap();
    entries
}

fn every_option() -> Vec<CreateOptions> {
    let small = |options: CreateOptions| options.with_chunk([4; 3]);
    vec![
        small(CreateOptions::default()).with_shard(Some([8; 3])),
        small(CreateOptions::default()).with_shard(None),
        small(CreateOptions::default())
            .with_shard(None)
            .with_codec(Codec::None),
        small(CreateOptions::zarr2()).with_codec(Codec::BloscLz4),
    ]
}

#[test]
fn archives_of_zarr_have_the_voxels_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan.ozx");
    for options in every_option() {
        let entries = zarr(&options);
        for form in forms() {
            fs::write(&path, archive(&entries, form)).unwrap();
            let volume = crate::open(&path).unwrap();
            suite::check(&*volume, &voxels());
            assert_eq!(volume.layout().geometry.spacing, [3.0, 2.0, 1.0]);
            assert_eq!(volume.source_files(), [&*path]);
            let level = crate::open(path.join("0")).unwrap();
            suite::check(&*level, &voxels());
            assert_eq!(level.source_files(), [&*path]);
            assert_eq!(OpenOptions::default().levels(&path).unwrap(), 1);
        }
        // The folder itself is an entry, with all others below it.
        let below: Vec<_> = entries
            .iter()
            .map(|(name, bytes)| (format!("a.zarr/{name}"), bytes.clone()))
            .collect();
        fs::write(&path, archive(&below, Form::default())).unwrap();
        for inside in ["", "0", "a.zarr", "a.zarr/0"] {
            let at = if inside.is_empty() {
                path.clone()
            } else {
                path.join(inside)
            };
            suite::check(&*crate::open(at).unwrap(), &voxels());
        }
        assert!(crate::open(path.join("1")).is_err());
    }
}

#[test]
fn chunks_that_are_not_stored_are_known_and_can_be_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan.zarr.zip");
    fs::write(&path, archive(&zarr(&every_option()[1]), Form::default())).unwrap();
    let volume = crate::open(&path).unwrap();
    assert_eq!(volume.fill_chunk([0, 0, 2, 2]).unwrap(), Some(vec![0, 0]));
    assert_eq!(volume.fill_chunk([0, 0, 0, 0]).unwrap(), None);
    volume.prefetch([0; 4]);
    volume.prefetch([0, 0, 2, 2]);
    let strict = OpenOptions::default().with_missing_chunks(crate::volume::MissingChunks::Error);
    let error = strict.open(&path).unwrap().read_chunk([0, 0, 2, 2]);
    assert!(
        matches!(error, Err(Error::MissingChunk { .. })),
        "{error:?}"
    );
}

/// Returns a file of numpy with `count` bytes from `first` on.
fn npy(first: u8, count: u8) -> Vec<u8> {
    let mut header =
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, {count}), }}")
            .into_bytes();
    header.resize(117, b' ');
    header.push(b'\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    out.extend(header);
    out.extend((0..count).map(|n| first + n));
    out
}

#[test]
fn arrays_of_numpy_archives_are_chosen_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.npz");
    for form in forms() {
        let entries = [("data", 1_u8), ("seg", 100)]
            .map(|(name, first)| (format!("{name}.npy"), npy(first, 20)));
        fs::write(&path, archive(&entries, form)).unwrap();
        let error = crate::open(&path).unwrap_err().to_string();
        assert!(error.contains("data, seg"), "{error}");
        let mut identities = Vec::new();
        for (name, first) in [("data", 1), ("seg.npy", 100)] {
            let volume = crate::open(path.join(name)).unwrap();
            let bytes: Vec<u8> = (first..first + 20).collect();
            let expected = Patch::new(Region::whole([1, 1, 20]), 1, bytes).unwrap();
            suite::check(&*volume, &expected);
            assert_eq!(volume.source_files(), [&*path]);
            identities.push(volume.identity().unwrap());
        }
        assert_ne!(identities[0], identities[1]);
        let error = crate::open(path.join("other")).unwrap_err().to_string();
        assert!(
            error.contains("no array \"other\"") || error.contains("other"),
            "{error}"
        );
        fs::write(&path, archive(&entries[..1], form)).unwrap();
        assert_eq!(crate::open(&path).unwrap().layout().shape, [1, 1, 20]);
    }
}

#[test]
fn damage_behind_a_checksum_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan");
    for is_deflated in [false, true] {
        let form = Form {
            is_deflated,
            ..Form::default()
        };
        let chunk: Vec<u8> = (0..=255_u8).cycle().take(5000).collect();
        let whole = archive(&[("c".to_owned(), chunk.clone())], form);
        let at = ARCHIVE.len() + 26 + 1 + 3;
        for n in (0..chunk.len()).step_by(97) {
            let mut bytes = whole.clone();
            let Some(byte) = bytes[..whole.len() - 70].get_mut(at + n) else {
                break;
            };
            *byte ^= 4;
            fs::write(&path, &bytes).unwrap();
            let read = Archive::open(&path).unwrap().read("c", 0..5000);
            assert!(matches!(read, Err(Error::Io { .. })), "{n}: {read:?}");
        }
        fs::write(&path, &whole).unwrap();
        let opened = Arc::new(Archive::open(&path).unwrap());
        assert_eq!(opened.read("c", 0..5000).unwrap().unwrap(), chunk);
        assert_eq!(opened.read("c", 77..99).unwrap().unwrap(), chunk[77..99]);
        assert!(opened.read("c", 77..5001).is_err() && opened.read("d", 0..1).unwrap().is_none());
        fs::write(&path, b"other").unwrap();
        assert!(matches!(
            opened.read("c", 0..1),
            Err(Error::InputModified { .. })
        ));
    }
}

#[test]
fn archives_that_are_not_read_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan.ozx");
    let entries = zarr(&every_option()[1]);
    let whole = archive(&entries, Form::default());
    let directory = |bytes: &[u8]| {
        let found = bytes.windows(4).position(|four| four == b"PK\x01\x02");
        found.unwrap()
    };
    let check = |bytes: &[u8], word: &str| {
        fs::write(&path, bytes).unwrap();
        let error = crate::open(&path).unwrap_err().with_causes();
        assert!(error.contains(word), "{word}: {error}");
    };
    check(&whole[..whole.len() - 30], "not a whole zip archive");
    let end = whole.len() - END;
    for (at, value, word) in [
        (end + 4, 1, "several files"),
        (end + 10, 255, "are not in a directory"),
        (end + 15, 9, "does not end before"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] = value;
        check(&bytes, word);
    }
    for (at, value, word) in [(8, 1, "encrypted"), (10, 93, "method 93")] {
        let mut bytes = whole.clone();
        // The metadata may be any entry, so all are changed.
        let mut place = directory(&bytes);
        while bytes[place..].starts_with(b"PK\x01\x02") {
            bytes[place + at] = value;
            let name = usize::from(u16_at(&bytes, place + 28));
            place += CENTRAL + name;
        }
        check(&bytes, word);
    }
    check(&archive(&[], Form::default()), "no zarr.json");
    check(
        &archive(&[("readme".to_owned(), vec![1])], Form::default()),
        "no zarr.json",
    );
}

#[test]
fn archives_with_changed_bytes_are_volumes_or_errors() {
    use super::super::blocks::tests::check_changed_bytes;
    let entries: Vec<_> = zarr(&every_option()[1]).into_iter().take(12).collect();
    for form in [0, 7].map(|n| forms()[n]) {
        check_changed_bytes(&archive(&entries, form));
    }
    let array = [("data.npy".to_owned(), npy(1, 99))];
    check_changed_bytes(&archive(&array, Form::default()));
}
