//! Data sets of two files that h5py wrote; many more layouts are tested from Python.

use std::fs;
use std::path::PathBuf;

use super::super::blocks::tests::check_changed_bytes;
use super::*;
use crate::patch::Patch;
use crate::region::Region;
use crate::volume::{VolumeExt, suite};

const OLD: &[u8] = include_bytes!("tests/old.h5");
const NEW: &[u8] = include_bytes!("tests/new.h5");
const SINGLE: &[u8] = include_bytes!("tests/single.h5");
const IMARIS: &[u8] = include_bytes!("tests/imaris.ims");
const COMPACT: &[u8] = include_bytes!("tests/compact.h5");
const BITS: &[u8] = include_bytes!("tests/bits.h5");

fn voxels() -> Vec<i16> {
    (0..5 * 9 * 11_i16).map(|n| n % 251).collect()
}

fn files(folder: &Path) -> [PathBuf; 2] {
    [("old.h5", OLD), ("new.h5", NEW)].map(|(name, bytes)| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path
    })
}

fn inside(path: &Path, name: &str) -> PathBuf {
    PathBuf::from(format!("{}:{name}", path.display()))
}

#[test]
fn data_sets_pass_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Region::whole([5, 9, 11]);
    let expected = Patch::new(whole, 1, voxels()).unwrap();
    for path in files(folder.path()) {
        for name in ["/flat", "/group/gzip", "group/lzf"] {
            let volume = crate::open(inside(&path, name)).unwrap();
            suite::check(&*volume, &expected);
            assert_eq!(volume.source_files(), [&*path]);
        }
        let mut part = voxels();
        for (n, voxel) in part.iter_mut().enumerate() {
            if n / 11 % 9 >= 3 {
                *voxel = -7;
            }
        }
        let volume = crate::open(inside(&path, "/part")).unwrap();
        suite::check(&*volume, &Patch::new(whole, 1, part).unwrap());
        assert_eq!(volume.layout().geometry.spacing, [0.003, 0.002, 0.001]);
        let fill = (-7_i16).to_ne_bytes().to_vec();
        assert_eq!(volume.fill_chunk([0, 0, 1, 0]).unwrap(), Some(fill));
        let identity = |name| {
            crate::open(inside(&path, name))
                .unwrap()
                .identity()
                .unwrap()
        };
        assert_ne!(identity("/group/gzip"), identity("/group/lzf"));
    }
}

#[test]
fn compact_and_bit_shuffled_data_sets_pass_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let expected = Patch::new(Region::whole([5, 9, 11]), 1, voxels()).unwrap();
    let path = folder.path().join("a.h5");
    fs::write(&path, COMPACT).unwrap();
    let volume = crate::open(&path).unwrap();
    suite::check(&*volume, &expected);
    assert_eq!(volume.layout().read_chunk, Some([1, 5, 9, 11]));
    fs::write(&path, BITS).unwrap();
    for kind in ["none", "lz4", "zstd"] {
        let volume = crate::open(inside(&path, kind)).unwrap();
        suite::check(&*volume, &expected);
        assert_eq!(volume.layout().codecs, ["bitshuffle"]);
    }
}

#[test]
fn levels_of_an_imaris_file_pass_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ims");
    fs::write(&path, IMARIS).unwrap();
    let whole = |n: &i16| [n / 99, n / 11 % 9, n % 11];
    let mut identities = Vec::new();
    for level in 0..2 {
        let step = 1 << level;
        let kept = (0..5 * 9 * 11_i16).filter(|n| whole(n).iter().all(|at| at % step == 0));
        let kept: Vec<i16> = kept.map(|n| n % 251).collect();
        let both: Vec<i16> = kept
            .iter()
            .copied()
            .chain(kept.iter().map(|n| n + 1))
            .collect();
        let shape = [5, 9, 11_u64].map(|n| n.div_ceil(1 << level));
        let options = OpenOptions::default().with_level(level);
        assert_eq!(options.levels(&path).unwrap(), 2);
        let volume = options.open(&path).unwrap();
        suite::check(
            &*volume,
            &Patch::new(Region::whole(shape), 2, both).unwrap(),
        );
        let spacing = volume.layout().geometry.spacing;
        let expected = [[3e-3, 1e-3, 2e-3], [5e-3, 9e-3 / 5.0, 22e-3 / 6.0]][level];
        assert!(
            (0..3).all(|a| (spacing[a] - expected[a]).abs() < 1e-15),
            "{spacing:?}"
        );
        identities.push(volume.identity().unwrap());
    }
    assert_ne!(identities[0], identities[1]);
    assert!(OpenOptions::default().with_level(2).open(&path).is_err());
}

#[test]
fn bit_shuffled_bytes_that_lie_are_refused() {
    let settings = |kind| [0, 4, 2, 0, kind];
    let head =
        |length: u64, block: u32| [&length.to_be_bytes()[..], &block.to_be_bytes()[..]].concat();
    let stored = [
        &head(16, 16)[..],
        &18_u32.to_be_bytes(),
        &[0xf0, 1],
        &[0; 16],
    ]
    .concat();
    assert_eq!(
        filters::bitshuffle(&stored, &settings(2), 16).unwrap(),
        [0; 16]
    );
    for (bytes, kind, word) in [
        (vec![1; 17], 0, "more than 16"),
        (head(1 << 62, 16), 2, "more than 16"),
        (head(16, 16)[..11].to_vec(), 2, "ends inside"),
        (head(16, 0), 2, "not whole"),
        (head(16, 6), 2, "not whole"),
        (head(15, 16), 2, "not whole"),
        (head(16, 16), 2, "cut off"),
        (
            [head(16, 16), u32::MAX.to_be_bytes().to_vec()].concat(),
            3,
            "cut off",
        ),
        (
            [head(16, 16), 0_u32.to_be_bytes().to_vec()].concat(),
            2,
            "0 bytes",
        ),
        (stored.clone(), 9, "compression 9"),
    ] {
        let problem = filters::bitshuffle(&bytes, &settings(kind), 16).unwrap_err();
        assert!(problem.to_string().contains(word), "{word}: {problem}");
    }
    assert!(filters::bitshuffle(&[0; 16], &[0, 4, 0], 16).is_err());
    assert!(filters::bitshuffle(&[0; 16], &[], 16).is_err());
}

#[test]
fn several_data_sets_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    for path in files(folder.path()) {
        let error = crate::open(&path).unwrap_err().to_string();
        for set in [
            "/flat (5 x 9 x 11, int16)",
            "/group/gzip",
            "/group/lzf",
            "/part",
        ] {
            assert!(error.contains(set), "{error}");
        }
        let error = crate::open(inside(&path, "/other"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no data set /other") && error.contains("/flat"),
            "{error}"
        );
        assert!(crate::open(inside(&path, "/group")).is_err());
    }
}

#[test]
fn files_with_changed_bytes_are_volumes_or_errors() {
    for whole in [OLD, NEW] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.h5");
        let (mut opened, mut refused) = (0, 0);
        let mut state = 7_u64;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..2000 {
            let mut bytes = whole.to_vec();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                bytes[at] = [0, 1, 0x7f, 0xff, random(256).to_le_bytes()[0]][random(5)];
            }
            fs::write(&path, &bytes).unwrap();
            let name = ["/flat", "/group/gzip", "/group/lzf", "/part"][random(4)];
            let read = crate::open(inside(&path, name))
                .and_then(|volume| volume.read(Region::new([0; 3], volume.layout().shape)));
            match read {
                Ok(_) => opened += 1,
                Err(_) => refused += 1,
            }
        }
        assert!(opened > 100 && refused > 100, "{opened} {refused}");
    }
    for whole in [SINGLE, COMPACT, IMARIS] {
        check_changed_bytes(whole);
    }
}
