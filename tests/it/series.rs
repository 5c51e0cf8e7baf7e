//! DICOM series through the commands.

use std::fs;
use std::path::Path;

use serde_json::json;
use voxpatch::volume::{OpenOptions, Values};
use voxpatch::{Region, VolumeExt};

use crate::tool::{Place, command, fails, json, succeeds, voxels};

/// A slice of 2 x 3 voxels, explicit little-endian, at the origin, of series 1.2.3.
const SLICE: &[u8] = include_bytes!("../../fuzz/seeds/dicom/plain");

/// What every slice says about the patient, and who saw it: elements with texts of 10 bytes.
const PATIENT: [&[u8]; 7] = [
    b"\x10\0\x10\0PN\x0a\0SECRET^ONE",
    b"\x10\0\x20\0LO\x0a\0SECRET-TWO",
    b"\x10\0\x30\0DA\x0a\0SECRETDATE",
    b"\x10\0\0\x40LT\x0a\0SECRETTEXT",
    b"\x08\0\x50\0SH\x0a\0SECRETACCE",
    b"\x08\0\x80\0LO\x0a\0SECRETSITE",
    b"\x08\0\x90\0PN\x0a\0SECRET^DOC",
];

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
        let mark = b"\x20\0\x0e\0UI";
        let mut slice = slice;
        let at = slice.windows(mark.len()).position(|part| part == mark);
        let at = at.expect("the slice has it");
        slice.splice(at..at, PATIENT.concat());
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
    // As in the README; Python goes on from here.
    let air = place.at("air.nii.gz");
    let model = ["--model", "threshold:-1100,-500", "--reduce", "argmax"];
    let infer = ["infer", &scan, &air, "--patch-size", "2", "--overlap", "0"];
    succeeds(&[&infer[..], &model].concat());
    let info = json(&["info", &air]);
    assert_eq!(
        (&info["shape"], &info["spacing"]),
        (&json!([4, 2, 3]), &json!([1.0, 0.5, 0.75]))
    );
    assert_eq!(info["affine"], json(&["info", &scan])["affine"]);
}

/// Frames of 16 x 16 bytes, whose values ascend by 5.
#[test]
fn compressed_frames_have_their_voxels() {
    let place = Place::new();
    let path = place.at("a.dcm");
    let stored = OpenOptions::default()
        .with_values(Values::Stored)
        .with_trusted(false);
    let expected = |z: usize| (0..256).map(move |n| (z + n / 16 + n % 16) * 5 % 200);
    for (frame, planes, loss) in [
        (
            &include_bytes!("../../fuzz/seeds/dicom/jpeg_ls")[..],
            &[0][..],
            0,
        ),
        (
            include_bytes!("../../fuzz/seeds/dicom/jpeg_lossless"),
            &[0],
            0,
        ),
        (
            include_bytes!("../../fuzz/seeds/dicom/jpeg_ls_colors"),
            &[0, 1, 0],
            2,
        ),
    ] {
        fs::write(&path, frame).expect("the folder is ours");
        let volume = stored.open(&path).expect("it opens");
        let found = volume.read(Region::whole([1, 16, 16])).expect("its voxels");
        let expected = planes.iter().flat_map(|&z| expected(z));
        assert_eq!(found.bytes().len(), 256 * planes.len());
        for (&found, expected) in found.bytes().iter().zip(expected) {
            assert!(usize::from(found).abs_diff(expected) <= loss);
        }
    }
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

/// Fails if a file or folder has what slices say about the patient.
fn check_secret(path: &Path) -> usize {
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("it was written");
        return entries
            .map(|entry| check_secret(&entry.expect("an entry").path()))
            .sum();
    }
    let bytes = fs::read(path).expect("it was written");
    let says = bytes
        .windows(6)
        .any(|part| part.eq_ignore_ascii_case(b"secret"));
    assert!(!says, "{} names the patient", path.display());
    1
}

#[test]
fn nothing_about_the_patient_is_in_any_message_or_output() {
    let place = Place::new();
    let scan = write(&place, "scan", 3, &[(0, 2), (0, 0), (0, 1), (0, 3)]);
    let two = write(&place, "two", 3, &[(0, 0), (0, 1)]);
    write(&place, "two", 4, &[(0, 0), (0, 1), (0, 2)]);
    let gap = write(&place, "gap", 3, &[(0, 0), (0, 1), (0, 3), (0, 4)]);
    let tilted = write(&place, "tilted", 3, &[(0, 0), (1, 1), (2, 2)]);
    let cut = write(&place, "cut", 3, &[(0, 0), (0, 1)]);
    let slice = Path::new(&cut).join("3-1");
    let bytes = fs::read(&slice).expect("it was written");
    fs::write(&slice, &bytes[..bytes.len() - 14]).expect("the folder is ours");
    fs::create_dir(place.at("out")).expect("the folder is ours");
    let out = |name: &str| place.at(&format!("out/{name}"));
    let size = ["--patch-size", "2"];
    let mut runs: Vec<Vec<String>> = Vec::new();
    let mut run = |words: &[&str]| runs.push(words.iter().map(|&word| word.to_owned()).collect());
    for wrong in [&two, &gap, &tilted, &cut] {
        run(&["info", wrong]);
        run(&["convert", wrong, &out("no.zarr")]);
    }
    for more in ["--json", "--verbose"] {
        run(&["info", &scan, more]);
        run(&["verify", &scan, more]);
        run(&["stats", &scan, more]);
    }
    for name in ["a.nii", "b.zarr", "c.mha", "d.nrrd", "e.npy", "f.nii.gz"] {
        run(&["convert", &scan, &out(name), "--json"]);
    }
    #[cfg(feature = "tiff")]
    run(&["convert", &scan, &out("g.ome.tif"), "--json"]);
    run(&["preview", &scan, &out("h.png"), "--json"]);
    let sample = [
        "sample",
        &scan,
        "--samples-per-subject",
        "3",
        "--out",
        &out("i.npy"),
        "--json",
    ];
    let files = [
        "--locations",
        &out("i.csv"),
        "--stats",
        &out("i.json"),
        "--plot",
        &out("i.png"),
    ];
    run(&[&sample[..], &size, &files].concat());
    for name in ["j.zarr", "k.nii.gz"] {
        run(&[
            &["infer", &scan, &out(name), "--overlap", "0", "--verbose"][..],
            &size,
        ]
        .concat());
    }
    run(&[
        &["infer", &scan, &out("l.zarr"), "--overlap", "0", "--resume"][..],
        &size,
    ]
    .concat());
    let (mut done, mut failed) = (0, 0);
    for words in &runs {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = command(&words).output().expect("the command starts");
        for said in [&output.stdout, &output.stderr] {
            let said = String::from_utf8_lossy(said).to_lowercase();
            assert!(!said.contains("secret"), "{words:?}: {said}");
        }
        done += usize::from(output.status.success());
        failed += usize::from(!output.status.success());
    }
    assert_eq!((done, failed), (runs.len() - 8, 8));
    assert!(check_secret(&place.path().join("out")) > 15);
}
