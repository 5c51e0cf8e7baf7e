//! FreeSurfer files.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| voxpatch_fuzz::flat("a.mgz", bytes));
