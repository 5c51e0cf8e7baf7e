//! Arrays that other software wrote: zarr-python, zarrita, zarr-java, zarrs, nifti-zarr.

use std::fs;

use super::*;
use crate::dtype::DType;

/// Every folder below `root` that holds an array.
fn arrays(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let v3 = fs::read_to_string(folder.join("zarr.json"));
        if folder.join(".zarray").exists() || v3.is_ok_and(|text| text.contains("\"array\"")) {
            found.push(folder);
            continue;
        }
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn arrays_of_other_software_are_read_or_refused_with_a_reason() {
    let (mut read, mut refused) = (0, 0);
    for root in ["zarr", "em_fib25_ome_zarr"] {
        let Some(root) = shared(root) else { return };
        for array in arrays(&root) {
            let name = array.strip_prefix(&root).unwrap().display().to_string();
            let volume = match open(&array) {
                Ok(volume) => volume,
                Err(error) => {
                    println!("{name}: {}", chain(&error));
                    refused += 1;
                    continue;
                }
            };
            match volume.read(Region::whole(volume.layout.shape)) {
                Ok(_) => read += 1,
                Err(error) => panic!("{name}: {}", chain(&error)),
            }
        }
    }
    println!("{read} {refused}");
}
