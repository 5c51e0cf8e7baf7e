//! Series made byte by byte.

use std::fs;
use std::path::Path;

use super::super::blocks::tests::check_changed_bytes;
use super::*;
use crate::patch::Patch;
use crate::region::Region;
use crate::volume::{VolumeExt, suite};

/// An element in explicit little-endian encoding.
fn element(tag: (u16, u16), kind: [u8; 2], value: &[u8]) -> Vec<u8> {
    let mut value = value.to_vec();
    if value.len() % 2 == 1 {
        value.push(if kind == *b"UI" || kind == *b"OB" {
            0
        } else {
            b' '
        });
    }
    let mut bytes = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
    bytes.extend(kind);
    if matches!(&kind, b"OB" | b"OW" | b"SQ") {
        bytes.extend([0, 0]);
        bytes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
    } else {
        bytes.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
    }
    bytes.extend(value);
    bytes
}

/// A slice of 2 x 3 voxels of 16 bits.
#[derive(Clone)]
struct Slice {
    syntax: &'static str,
    series: &'static str,
    position: [f64; 3],
    rescale: Option<[f64; 2]>,
    extra: Vec<u8>,
    pixels: Vec<u8>,
}

impl Slice {
    fn new(z: f64, voxels: [i16; 6]) -> Self {
        Self {
            syntax: "1.2.840.10008.1.2.1",
            series: "1.2.3",
            position: [1.0, 2.0, z],
            rescale: None,
            extra: Vec::new(),
            pixels: element(
                (0x7fe0, 0x10),
                *b"OW",
                &voxels.map(i16::to_le_bytes).concat(),
            ),
        }
    }

    fn bytes(&self, instance: usize) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes.extend(b"DICM");
        bytes.extend(element((2, 0x10), *b"UI", self.syntax.as_bytes()));
        let number = |tag, value: u16| element(tag, *b"US", &value.to_le_bytes());
        let [x, y, z] = self.position;
        let instance = format!("1.2.3.{instance}");
        bytes.extend(element((8, 0x18), *b"UI", instance.as_bytes()));
        bytes.extend(element((8, 0x60), *b"CS", b"CT"));
        bytes.extend(element((8, 0x103e), *b"LO", b"thin"));
        bytes.extend(element((0x10, 0x10), *b"PN", b"Doe^Jane"));
        bytes.extend(element((0x20, 0xe), *b"UI", self.series.as_bytes()));
        bytes.extend(element(
            (0x20, 0x32),
            *b"DS",
            format!("{x}\\{y}\\{z}").as_bytes(),
        ));
        bytes.extend(element((0x20, 0x37), *b"DS", b"1\\0\\0\\0\\1\\0"));
        bytes.extend(number((0x28, 2), 1));
        bytes.extend(element((0x28, 4), *b"CS", b"MONOCHROME2"));
        bytes.extend(number((0x28, 0x10), 2));
        bytes.extend(number((0x28, 0x11), 3));
        bytes.extend(element((0x28, 0x30), *b"DS", b"0.5\\0.75"));
        bytes.extend(number((0x28, 0x100), 16));
        bytes.extend(number((0x28, 0x101), 16));
        bytes.extend(number((0x28, 0x102), 15));
        bytes.extend(number((0x28, 0x103), 1));
        if let Some([slope, intercept]) = self.rescale {
            bytes.extend(element(
                (0x28, 0x1052),
                *b"DS",
                intercept.to_string().as_bytes(),
            ));
            bytes.extend(element(
                (0x28, 0x1053),
                *b"DS",
                slope.to_string().as_bytes(),
            ));
        }
        bytes.extend(&self.extra);
        bytes.extend(&self.pixels);
        bytes
    }
}

fn voxels(n: i16) -> [i16; 6] {
    std::array::from_fn(|at| n * 10 + i16::try_from(at).unwrap())
}

fn write(folder: &Path, slices: &[Slice]) {
    for (n, slice) in slices.iter().enumerate() {
        fs::write(folder.join(format!("{n}")), slice.bytes(n)).unwrap();
    }
}

fn opened(slices: &[Slice], options: &OpenOptions) -> Result<(Arc<dyn Volume>, tempfile::TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), slices);
    Ok((options.open(folder.path())?, folder))
}

fn refusal(slices: &[Slice]) -> String {
    let text = opened(slices, &OpenOptions::default())
        .unwrap_err()
        .with_causes();
    assert!(!text.contains("Doe"), "{text}");
    text
}

#[test]
fn a_series_is_sorted_by_position_and_passes_the_suite() {
    let slices = [2_i16, 0, 1].map(|z| Slice::new(f64::from(z) * 1.5, voxels(z)));
    let (volume, _folder) = opened(&slices, &OpenOptions::default()).unwrap();
    let all: Vec<i16> = (0..3).flat_map(voxels).collect();
    suite::check(
        &*volume,
        &Patch::new(Region::whole([3, 2, 3]), 1, all).unwrap(),
    );
    let layout = volume.layout();
    assert_eq!(layout.geometry.spacing, [1.5, 0.5, 0.75]);
    assert_eq!(layout.geometry.origin(), [0.0, -2.0, -1.0]);
    assert_eq!(layout.read_chunk, Some([1, 1, 2, 3]));
    assert_eq!(layout.format, Format::Dicom);
    assert_eq!(volume.source_files().len(), 3);
}

#[test]
fn slopes_that_differ_make_real_values_that_pass_the_suite() {
    let slices: Vec<Slice> = (0..3_i16)
        .map(|n| Slice {
            rescale: Some([f64::from(n) + 0.5, 1.0]),
            ..Slice::new(f64::from(n), voxels(n))
        })
        .collect();
    let (volume, _folder) = opened(&slices, &OpenOptions::default()).unwrap();
    let real =
        (0..3_i16).flat_map(|n| voxels(n).map(|v| (f32::from(n) + 0.5) * f32::from(v) + 1.0));
    let expected = Patch::new(Region::whole([3, 2, 3]), 1, real.collect::<Vec<f32>>()).unwrap();
    suite::check(&*volume, &expected);
    let stored = OpenOptions::default().with_values(Values::Stored);
    let (volume, _folder) = opened(&slices, &stored).unwrap();
    let all: Vec<i16> = (0..3).flat_map(voxels).collect();
    suite::check(
        &*volume,
        &Patch::new(Region::whole([3, 2, 3]), 1, all).unwrap(),
    );
    let same: Vec<Slice> = slices
        .iter()
        .map(|slice| Slice {
            rescale: Some([1.0, -1000.0]),
            ..slice.clone()
        })
        .collect();
    let (volume, _folder) = opened(&same, &OpenOptions::default()).unwrap();
    assert_eq!(volume.layout().dtype, DType::I16);
    let first = volume.read(Region::new([0; 3], [1, 1, 2])).unwrap();
    assert_eq!(first.as_slice::<i16>().unwrap(), [-1000, -999]);
}

#[test]
fn fragments_are_joined_and_packed_runs_decoded() {
    // The high bytes are all 0, the low bytes 0 to 5.
    let mut frame = vec![0; 64];
    (frame[0], frame[4], frame[8]) = (2, 64, 66);
    frame.extend([0xfb, 0, 5, 0, 1, 2, 3, 4, 5]);
    frame.push(0);
    let item = |bytes: &[u8]| {
        let mut item = vec![0xfe, 0xff, 0x00, 0xe0];
        item.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
        item.extend(bytes);
        item
    };
    let mut pixels = vec![
        0xe0, 0x7f, 0x10, 0x00, b'O', b'B', 0, 0, 0xff, 0xff, 0xff, 0xff,
    ];
    pixels.extend(item(&[]));
    pixels.extend(item(&frame[..40]));
    pixels.extend(item(&frame[40..]));
    pixels.extend([0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
    let slice = Slice {
        syntax: "1.2.840.10008.1.2.5",
        pixels,
        ..Slice::new(0.0, voxels(0))
    };
    let (volume, _folder) = opened(std::slice::from_ref(&slice), &OpenOptions::default()).unwrap();
    assert_eq!(volume.layout().codecs, ["rle"]);
    let read = volume.read(Region::whole([1, 2, 3])).unwrap();
    assert_eq!(read.as_slice::<i16>().unwrap(), voxels(0));
    // A list of segments that is not that of the frame.
    for (at, value, word) in [(0, 3, "segments"), (4, 200, "not inside"), (8, 65, "bytes")] {
        let mut bad = slice.clone();
        let start = bad.pixels.len() - 8 - (frame.len() - 40) - 8 - 40;
        bad.pixels[start + at] = value;
        let (volume, _folder) = opened(&[bad], &OpenOptions::default()).unwrap();
        let error = volume
            .read(Region::whole([1, 2, 3]))
            .unwrap_err()
            .with_causes();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn what_is_not_a_volume_is_refused_with_its_numbers() {
    let at = |places: &[f64]| -> Vec<Slice> {
        places.iter().map(|&z| Slice::new(z, voxels(1))).collect()
    };
    for (places, word) in [
        (&[0.0, 1.0, 3.0, 4.0][..], "1 slices are missing"),
        (&[0.0, 1.0, 2.5, 3.5, 4.1], "unevenly spaced"),
        (&[0.0, 1.0, 1.0, 2.0], "4 images have 3 different positions"),
        (&[0.0, 0.0], "duplicate"),
    ] {
        let text = refusal(&at(places));
        assert!(text.contains(word), "{text}");
    }
    let mut tilted = at(&[0.0, 1.0, 2.0]);
    for (n, slice) in (0_u8..).zip(&mut tilted) {
        slice.position[1] += f64::from(n);
    }
    let text = refusal(&tilted);
    assert!(
        text.contains("45.00 degrees") && text.contains("2.000 mm over 3"),
        "{text}"
    );
    let shear = OpenOptions::default().with_tilt(Tilt::Shear);
    let (volume, _folder) = opened(&tilted, &shear).unwrap();
    let affine = volume.layout().geometry.affine;
    assert_eq!([affine[0][2], affine[1][2], affine[2][2]], [0.0, -1.0, 1.0]);
    let mut bent = tilted.clone();
    bent[1].position[1] += 1.0;
    let text = opened(&bent, &shear).unwrap_err().to_string();
    assert!(text.contains("not on a line"), "{text}");
    let mut several = at(&[0.0, 1.0]);
    several[1].series = "1.2.4";
    let text = refusal(&several);
    assert!(
        text.contains("2 DICOM series")
            && text.contains("2: \"thin\", CT, 1 images of 2 x 3, 1.2.4"),
        "{text}"
    );
    let second = OpenOptions::default().with_series(Some("2".to_owned()));
    assert!(opened(&several, &second).is_ok());
}

#[test]
fn hostile_headers_are_refused_without_allocating_by_their_lengths() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.dcm");
    let refused = |bytes: &[u8], word: &str| {
        fs::write(&path, bytes).unwrap();
        let text = crate::open(&path).unwrap_err().with_causes();
        assert!(text.contains(word), "{word}: {text}");
    };
    let whole = Slice::new(0.0, voxels(0)).bytes(0);
    fs::write(&path, &whole).unwrap();
    crate::open(&path).unwrap();
    refused(&whole[..whole.len() - 1], "pixel data need");
    refused(&whole[..200], "ends inside");
    // Nested sequences of undefined length.
    let mut deep = whole[..128 + 4 + 8 + 20].to_vec();
    for _ in 0..100_000 {
        deep.extend([
            0x08, 0x00, 0x40, 0x11, b'S', b'Q', 0, 0, 0xff, 0xff, 0xff, 0xff,
        ]);
        deep.extend([0xfe, 0xff, 0x00, 0xe0, 0xff, 0xff, 0xff, 0xff]);
    }
    refused(&deep, "nested more than");
    let mut many = Slice::new(0.0, voxels(0));
    many.extra = element((0x28, 8), *b"IS", b"1000000");
    refused(&many.bytes(0), "need more than the 12 bytes");
    many.extra = element((0x28, 8), *b"IS", b"2147483647");
    refused(&many.bytes(0), "2147483647 frames, not 1 to");
}

#[test]
#[ignore = "needs VOXPATCH_TEST_DATA"]
fn real_scans_as_series_are_sorted_and_converted() {
    let folder = suite::real_scans().join("ct_chest_lidc0314_dicom");
    let volume = crate::open(&folder).unwrap();
    let layout = volume.layout();
    assert_eq!(layout.shape, [20, 512, 512]);
    assert_eq!(layout.dtype, DType::I16);
    assert_eq!(layout.geometry.spacing, [1.0, 0.78125, 0.78125]);
    let whole = volume.read(Region::whole(layout.shape)).unwrap();
    let values = whole.as_slice::<i16>().unwrap();
    assert!(values.iter().all(|v| (-3100..4000).contains(v)));
}

#[test]
fn changed_bytes_are_an_error_or_a_volume() {
    let whole = Slice::new(0.0, voxels(0)).bytes(0);
    check_changed_bytes(&whole);
}
