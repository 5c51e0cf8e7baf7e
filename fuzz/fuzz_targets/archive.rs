//! Zip archives of Zarr and of numpy arrays.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| voxpatch_fuzz::flat("a.ozx", bytes));
