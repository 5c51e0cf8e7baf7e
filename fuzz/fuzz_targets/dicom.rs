//! DICOM files.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| voxpatch_fuzz::dicom(bytes));
