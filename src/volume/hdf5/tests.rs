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
    check_changed_bytes(SINGLE);
}
