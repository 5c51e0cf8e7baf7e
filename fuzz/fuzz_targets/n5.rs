//! N5 arrays.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| voxpatch_fuzz::n5(bytes));
