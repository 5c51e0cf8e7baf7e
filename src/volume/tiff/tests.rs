//! Files made byte by byte.

mod written;

use std::fs;

use super::super::blocks::tests::check_changed_bytes;
use super::*;
use crate::patch::Patch;
use crate::region::Region;
use crate::volume::{VolumeExt, suite};

/// A little-endian classic TIFF under construction.
#[derive(Default)]
struct Made {
    bytes: Vec<u8>,
    /// The place of the last link to a directory.
    link: usize,
}

impl Made {
    fn new() -> Self {
        Self {
            bytes: b"II*\0\0\0\0\0".to_vec(),
            link: 4,
        }
    }

    fn place(&mut self, data: &[u8]) -> u32 {
        let at = u32::try_from(self.bytes.len()).unwrap();
        self.bytes.extend(data);
        at
    }

    /// Adds a directory of entries: tag and whole numbers.
    fn page(&mut self, entries: &[(u16, &[u32])]) {
        let mut table = Vec::new();
        for (tag, values) in entries {
            table.extend(tag.to_le_bytes());
            table.extend(4_u16.to_le_bytes());
            table.extend(u32::try_from(values.len()).unwrap().to_le_bytes());
            let data: Vec<u8> = values.iter().flat_map(|n| n.to_le_bytes()).collect();
            let at = match values {
                [one] => *one,
                _ => self.place(&data),
            };
            table.extend(at.to_le_bytes());
        }
        let count = u16::try_from(entries.len()).unwrap();
        let at = self.place(&count.to_le_bytes());
        self.bytes.extend(table);
        let link = self.link;
        self.bytes[link..link + 4].copy_from_slice(&at.to_le_bytes());
        self.link = self.bytes.len();
        self.bytes.extend([0; 4]);
    }

    fn saved(&self, name: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, &self.bytes).unwrap();
        (folder, path)
    }
}

/// A file of two pages of 20 x 18 bytes in tiles of 16 x 16, of which one is not stored.
fn tiled() -> (Made, Patch) {
    let mut made = Made::new();
    let mut voxels = Vec::new();
    for z in 0..2_u32 {
        let value = |y: u32, x: u32| u8::try_from((z * 7 + y * 3 + x) % 251 + 1).unwrap();
        let (mut offsets, mut counts) = (Vec::new(), Vec::new());
        for (n, (ty, tx)) in [(0, 0), (0, 16), (16, 0), (16, 16)].into_iter().enumerate() {
            if n == 2 {
                offsets.push(0);
                counts.push(0);
                continue;
            }
            let tile: Vec<u8> = (0..256)
                .map(|at| value(ty + at / 16, tx + at % 16))
                .collect();
            offsets.push(made.place(&tile));
            counts.push(256);
        }
        made.page(&[
            (256, &[18]),
            (257, &[20]),
            (258, &[8]),
            (259, &[1]),
            (277, &[1]),
            (322, &[16]),
            (323, &[16]),
            (324, &offsets),
            (325, &counts),
        ]);
        for (y, x) in (0..20).flat_map(|y| (0..18).map(move |x| (y, x))) {
            voxels.push(if y >= 16 && x < 16 { 0 } else { value(y, x) });
        }
    }
    let patch = Patch::new(Region::whole([2, 20, 18]), 1, voxels).unwrap();
    (made, patch)
}

#[test]
fn tiles_pass_the_suite_and_those_that_are_not_stored_are_zero() {
    let (made, expected) = tiled();
    let (_folder, path) = made.saved("a.tif");
    let volume = crate::open(&path).unwrap();
    assert_eq!(volume.layout().read_chunk, Some([1, 1, 16, 16]));
    assert_eq!(volume.fill_chunk([0, 1, 1, 0]).unwrap(), Some(vec![0]));
    suite::check(&*volume, &expected);
}

#[test]
fn pages_that_follow_each_other_are_a_flat_file_and_others_pieces() {
    for follows in [true, false] {
        let mut made = Made::new();
        let voxels: Vec<u8> = (0..60).collect();
        let gap = u32::from(!follows);
        let at = made.place(&voxels[..20]);
        made.place(&vec![9; gap as usize]);
        made.place(&voxels[20..]);
        for z in 0..3 {
            let start = at + 20 * z + if z > 0 { gap } else { 0 };
            made.page(&[
                (256, &[5]),
                (257, &[4]),
                (258, &[8]),
                (259, &[1]),
                (278, &[2]),
                (273, &[start, start + 10]),
                (279, &[10, 10]),
            ]);
        }
        let (_folder, path) = made.saved("a");
        let volume = crate::open(&path).unwrap();
        assert_eq!(volume.layout().read_chunk.is_none(), follows);
        assert_eq!(volume.layout().format, Format::Tiff);
        assert!(!volume.layout().geometry.is_known);
        suite::check(
            &*volume,
            &Patch::new(Region::whole([3, 4, 5]), 1, voxels).unwrap(),
        );
    }
}

#[test]
fn hostile_directories_are_refused() {
    let refused = |bytes: &[u8], word: &str| {
        let made = Made {
            bytes: bytes.to_vec(),
            link: 0,
        };
        let (_folder, path) = made.saved("a.tif");
        let read = crate::open(&path).and_then(|volume| volume.read(Region::new([0; 3], [1; 3])));
        let text = read.unwrap_err().with_causes();
        assert!(text.contains(word), "{word}: {text}");
    };
    refused(b"II*\0", "not in the file");
    refused(b"II*\0\0\0\0\0", "no pages");
    refused(b"II+\0\x08\0\0\0\0\0\0\0\0\0\0\xff", "not in the file");
    let (mut made, _) = tiled();
    let first: [u8; 4] = *made.bytes[4..].first_chunk().unwrap();
    let link = made.link;
    made.bytes[link..link + 4].copy_from_slice(&first);
    refused(&made.bytes, "circle");
    let page = |entries: &[(u16, &[u32])]| {
        let mut made = Made::new();
        made.place(&[1; 64]);
        let mut all: Vec<(u16, &[u32])> = vec![(258, &[8]), (259, &[1])];
        all.extend(entries);
        made.page(&all);
        made.bytes
    };
    let big: &[u32] = &[u32::MAX];
    refused(
        &page(&[(256, &[4]), (257, &[4]), (278, &[2]), (273, &[8, 16])]),
        "how long its strips are",
    );
    refused(
        &page(&[(256, big), (257, big), (273, &[8]), (279, &[16])]),
        "",
    );
    refused(&page(&[(256, &[0]), (257, &[4])]), "no voxels");
    refused(
        &page(&[
            (256, &[4]),
            (257, &[4]),
            (278, &[1]),
            (273, &[8]),
            (279, &[16]),
        ]),
        "1 offsets",
    );
    refused(
        &page(&[
            (256, big),
            (257, &[1]),
            (322, &[16]),
            (323, &[16]),
            (324, &[8]),
            (325, &[256]),
        ]),
        "offsets",
    );
    let mut long = page(&[
        (256, &[4]),
        (257, &[4]),
        (278, &[2]),
        (273, &[8, 16]),
        (279, &[8, 8]),
    ]);
    let at = long
        .windows(2)
        .rposition(|pair| pair == 273_u16.to_le_bytes())
        .unwrap();
    long[at + 4..at + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(&long, "not in the file");
}

#[test]
fn names_are_sorted_like_people_sort_them() {
    let mut names = [
        "s10.tif", "s9.tif", "s09.tif", "S1.tif", "s1b.tif", "t.tif", "7.tif",
    ];
    names.sort_by(|a, b| natural(a, b));
    assert_eq!(
        names,
        [
            "7.tif", "S1.tif", "s1b.tif", "s09.tif", "s9.tif", "s10.tif", "t.tif"
        ]
    );
    let long = "9".repeat(60);
    assert_eq!(natural(&long, "10"), Ordering::Greater);
    assert_eq!(natural("s", "s1"), Ordering::Less);
    assert_eq!(natural("s01", "S1"), Ordering::Greater);
}

#[test]
fn ome_xml_places_planes_and_its_units_are_lengths() {
    let text = |pixels: &str, inside: &str| {
        format!(
            "<?xml version=\"1.0\"?><OME xmlns=\"http://www.openmicroscopy.org/Schemas/OME/2016-06\"><Image Name=\"a\">\
             <Pixels SizeX=\"5\" SizeY=\"4\" SizeZ=\"2\" SizeC=\"3\" SizeT=\"1\" {pixels}>{inside}</Pixels></Image></OME>"
        )
    };
    let read = |pixels: &str, inside: &str| {
        let images = axes::ome(&text(pixels, inside)).unwrap();
        images.map(|mut images| images.remove(0).axes())
    };
    let found = read(
        "DimensionOrder=\"XYCZT\" PhysicalSizeX=\"0.5\" PhysicalSizeY=\"0.5\" PhysicalSizeYUnit=\"nm\" PhysicalSizeZ=\"2\"",
        "<TiffData/>",
    )
    .unwrap();
    assert_eq!(found.spacing, Some([2e-3, 0.5 * 1e-6, 0.5e-3]));
    assert_eq!(found.page(0, 1, 0), Some(1));
    assert_eq!(found.page(0, 0, 1), Some(3));
    let swapped = "<TiffData IFD=\"5\" FirstC=\"2\" FirstZ=\"0\"/><TiffData IFD=\"0\" FirstC=\"0\" FirstZ=\"1\"/>";
    let found = read("DimensionOrder=\"XYZCT\"", swapped).unwrap();
    assert_eq!(
        [
            found.page(0, 2, 0),
            found.page(0, 0, 1),
            found.page(0, 0, 0)
        ],
        [Some(5), Some(0), None]
    );
    assert_eq!(found.spacing, None);
    for (pixels, inside, word) in [
        ("DimensionOrder=\"XYCCT\"", "<TiffData/>", "DimensionOrder"),
        (
            "PhysicalSizeX=\"1\" PhysicalSizeXUnit=\"cubit\"",
            "<TiffData/>",
            "cubit",
        ),
        ("", "", "no TiffData"),
        ("", "<TiffData FirstZ=\"9\"/>", "slice 9"),
        (
            "",
            "<TiffData IFD=\"0\"><UUID FileName=\"a\">1</UUID></TiffData><TiffData IFD=\"1\"><UUID FileName=\"b\">2</UUID></TiffData>",
            "several files",
        ),
    ] {
        let problem = read(pixels, inside).unwrap_err();
        assert!(problem.contains(word), "{word}: {problem}");
    }
    assert!(axes::ome("<OME><Image></OME>").unwrap().is_err());
    assert!(axes::ome("not XML").is_none());
}

#[test]
fn changed_bytes_are_an_error_or_a_volume() {
    let whole = tiled().0.bytes;
    check_changed_bytes(&whole);
}

#[test]
fn a_page_that_promises_more_than_its_file_has_takes_no_memory() {
    let mut made = Made::new();
    let most = u32::MAX;
    made.page(&[
        (256, &[1 << 20]),
        (257, &[most]),
        (258, &[8]),
        (259, &[1]),
        (273, &[8]),
        (277, &[1]),
        (279, &[most]),
    ]);
    let (_folder, path) = made.saved("a.tif");
    let volume = crate::open(&path).unwrap();
    assert_eq!(volume.layout().shape, [1, u64::from(most), 1 << 20]);
    assert_eq!(volume.layout().read_chunk, Some([1, 1, 1, 1 << 20]));
    assert!(volume.layout().read_memory.shared < 100);
    let last = Region::new([0, i64::from(most) - 1, 0], [1; 3]);
    let error = volume.read(last).unwrap_err().with_causes();
    assert!(error.contains("are not in the file"), "{error}");
}
