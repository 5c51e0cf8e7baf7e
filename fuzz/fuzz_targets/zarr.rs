//! Zarr arrays: metadata and the bytes of one chunk.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| voxpatch_fuzz::store(bytes));
