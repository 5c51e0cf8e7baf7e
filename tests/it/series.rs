//! DICOM series through the commands.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::tool::{Place, fails, json, succeeds, voxels};

/// A slice of 2 x 3 voxels, explicit little-endian, at the origin, of series 1.2.3.
const SLICE: &[u8] = include_bytes!("../../fuzz/seeds/dicom/plain");

/// Replaces the only occurrence of some bytes.
fn with(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|part| part == from);
    let at = at.expect("the slice has them");
    let mut bytes = bytes.to_vec();
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

/// Writes slices at these positions (y, z), of a series, into a folder.
fn write(place: &Place, folder: &str, series: u8, positions: &[(u8, u8)]) -> String {
    let path = place.at(folder);
    fs::create_dir_all(&path).expect("the folder is ours");
    for (n, (y, z)) in positions.iter().enumerate() {
        let position = format!("0\\{y}\\{z} ");
        let slice = with(SLICE, b"0\\0\\0 ", position.as_bytes());
        let slice = with(&slice, b"1.2.3\0", format!("1.2.{series}\0").as_bytes());
        let file = Path::new(&path).join(format!("{series}-{n}"));
        fs::write(file, slice).expect("the folder is ours");
    }
    path
}

#[test]
fn a_series_goes_through_every_command() {
    let place = Place::new();
    let scan = write(&place, "scan", 3, &[(0, 2), (0, 0), (0, 1), (0, 3)]);
    let info = json(&["info", &scan]);
    assert_eq!(info["format"], "dicom");
    assert_eq!(info["shape"], json!([4, 2, 3]));
    assert_eq!(info["dtype"], "int16");
    assert_eq!(info["spacing"], json!([1.0, 0.5, 0.75]));
    assert_eq!(info["intercept"], json!(-1024.0));
    let copy = place.at("copy.nii");
    succeeds(&["convert", &scan, &copy]);
    assert_eq!(voxels(&copy), voxels(&scan));
    let size = ["--patch-size", "2", "--samples-per-subject", "3"];
    let patches = place.at("patches.npy");
    let sample = [&["sample", &scan, "--out", &patches][..], &size].concat();
    succeeds(&sample);
    succeeds(&["preview", &scan, &place.at("picture.png")]);
    succeeds(&["verify", &scan]);
    let out = place.at("out.zarr");
    succeeds(&["infer", &scan, &out, "--patch-size", "2", "--overlap", "0"]);
    assert_eq!(json(&["info", &out])["spacing"], json!([1.0, 0.5, 0.75]));
}

#[test]
fn series_that_need_a_choice_say_which_option_makes_it() {
    let place = Place::new();
    let two = write(&place, "two", 3, &[(0, 0), (0, 1)]);
    write(&place, "two", 4, &[(0, 0), (0, 1), (0, 2)]);
    let said = fails(&["info", &two]);
    assert!(
        said.contains("2 DICOM series") && said.contains("(--series)"),
        "{said}"
    );
    for (choice, slices) in [("1", 2), ("2", 3), ("1.2.4", 3)] {
        let info = json(&["info", &two, "--series", choice]);
        assert_eq!(info["shape"], json!([slices, 2, 3]), "{choice}");
    }
    assert!(fails(&["info", &two, "--series", "3"]).contains("no DICOM series"));

    let gap = write(&place, "gap", 3, &[(0, 0), (0, 1), (0, 3), (0, 4)]);
    let said = fails(&["verify", &gap]);
    assert!(
        said.contains("1 slices are missing") && said.contains("(--allow-uneven)"),
        "{said}"
    );
    succeeds(&["verify", &gap, "--allow-uneven"]);

    let tilted = write(&place, "tilted", 3, &[(0, 0), (1, 1), (2, 2)]);
    let said = fails(&["info", &tilted]);
    assert!(
        said.contains("45.00 degrees") && said.contains("(--tilt shear)"),
        "{said}"
    );
    let info = json(&["info", &tilted, "--tilt", "shear"]);
    assert_eq!(info["affine"][1][2], json!(-1.0));
}
