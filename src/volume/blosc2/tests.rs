//! Arrays of two files that python-blosc2 wrote; more are tested from Python.

use std::fs;

use super::super::blocks::tests::check_changed_bytes;
use crate::patch::Patch;
use crate::region::Region;
use crate::volume::suite;

const FILES: [&[u8]; 2] = [
    include_bytes!("tests/zstd.b2nd"),
    include_bytes!("tests/lz4.b2nd"),
];

#[test]
fn arrays_pass_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case.b2nd");
    let voxel = |n: u16| {
        let is_zero = n < 4 * 20 * 17;
        if is_zero { 0.0 } else { f32::from(n % 251) }
    };
    let voxels: Vec<f32> = (0..2 * 9 * 20 * 17).map(voxel).collect();
    let expected = Patch::new(Region::whole([9, 20, 17]), 2, voxels).unwrap();
    for bytes in FILES {
        fs::write(&path, bytes).unwrap();
        let volume = crate::open(&path).unwrap();
        suite::check(&*volume, &expected);
        assert_eq!(volume.layout().read_chunk, Some([1, 4, 16, 16]));
    }
}

#[test]
fn files_with_changed_bytes_are_volumes_or_errors() {
    for bytes in FILES {
        check_changed_bytes(bytes);
    }
}
