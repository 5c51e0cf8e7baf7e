//! NIfTI files, with the voxels inside, beside or gzipped.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| voxpatch_fuzz::flat("a.hdr", bytes));
