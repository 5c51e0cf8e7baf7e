//! NIfTI files, with the voxels inside, in a second file, or gzipped.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| voxpatch_fuzz::flat("a.hdr", bytes));
