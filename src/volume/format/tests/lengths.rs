//! Lengths in every unit, positions from every form, and voxels in several files.

use std::sync::Arc;

use super::*;
use crate::geometry::Geometry;
use crate::region::Region;
use crate::volume::{Volume, VolumeExt};

/// Opens a file of these bytes next to files that it may name.
fn opened(name: &str, bytes: &[u8]) -> Result<Arc<dyn Volume>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("near.raw"), [0; 64]).unwrap();
    fs::write(dir.path().join("a.img"), [7; 64]).unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    open(path)
}

fn geometry(name: &str, bytes: &[u8]) -> Geometry {
    let volume = opened(name, bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    volume.layout().geometry
}

/// Returns the bytes of float fields.
fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn near(found: Geometry, expected: Geometry) -> bool {
    let all =
        |g: Geometry| -> Vec<f64> { g.affine.into_iter().flatten().chain(g.spacing).collect() };
    all(found)
        .iter()
        .zip(all(expected))
        .all(|(a, b)| (a - b).abs() < 1e-9)
}

#[test]
fn lengths_are_millimeters_for_every_unit_of_the_file() {
    let expected = Geometry::from_parts([3e-3, 2e-3, 1e-3], [6e-3, 5e-3, 4e-3]);
    let rows = floats(&[1.0, 0.0, 0.0, 4.0, 0.0, 2.0, 0.0, 5.0, 0.0, 0.0, 3.0, 6.0]);
    let pixdim = floats(&[1.0, 1.0, 2.0, 3.0]);
    let sform = 1_i16.to_le_bytes();
    let places: [(usize, &[u8]); 3] = [(76, &pixdim), (254, &sform), (280, &rows)];
    for (code, factor) in [
        (0_u8, 1.0),
        (2, 1.0),
        (3, 1e-3),
        (1, 1e3),
        (3 | 8, 1e-3),
        (2 | 16, 1.0),
    ] {
        let header = nifti(&[&places[..], &[(123, &[code])]].concat());
        let found = geometry("a.nii", &header);
        assert!(
            near(found, expected.scaled(1e3 * factor)),
            "{code}: {found:?}"
        );
    }
    let second = (nifti::FORMAT.encode)(
        &mut Layout {
            geometry: Geometry::from_parts([3.0, 2.0, 1.0], [6.0, 5.0, 4.0]),
            ..Layout::new([2, 40_000, 2], 1, DType::U8)
        },
        None,
    );
    let mut second = second.unwrap();
    second[500] = 3;
    let parsed = nifti::parse(Path::new("a.nii"), &second).unwrap();
    assert!(near(parsed.geometry, expected), "{:?}", parsed.geometry);
    // Without a form, the position follows from lengths, of which the least has no number before it.
    second[344..352].fill(0);
    for at in [16, 24, 32, 40] {
        let mut least = second.clone();
        least[at..at + 8].copy_from_slice(&i64::MIN.to_le_bytes());
        assert!(nifti::parse(Path::new("a.nii"), &least).is_err(), "{at}");
    }

    let nrrd = |more: &str| {
        let text = NRRD.replace("encoding", &format!("{more}\nencoding"));
        geometry("a.nhdr", text.as_bytes())
    };
    let ras = "space: RAS\nspace directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (4,5,6)";
    for word in ["microns", "\u{b5}m", "\u{3bc}m", "um", "Micrometer"] {
        let found = nrrd(&format!(
            "{ras}\nspace units: \"{word}\" \"{word}\" \"{word}\""
        ));
        assert!(near(found, expected), "{word}: {found:?}");
    }
    assert!(near(nrrd(ras), expected.scaled(1e3)));
    assert!(near(
        nrrd(&format!("{ras}\nspace units: \"\" \"\" \"\"")),
        expected.scaled(1e3)
    ));
    let mixed = nrrd(&format!("{ras}\nspace units: \"cm\" \"mm\" \"um\""));
    assert!(
        near(
            mixed,
            Geometry::from_parts([3e-3, 2.0, 10.0], [6e-3, 5.0, 40.0])
        ),
        "{mixed:?}"
    );
    let along = nrrd("spacings: 1 2 3\nunits: \"um\" \"um\" \"um\"").spacing;
    assert!(
        along
            .iter()
            .zip([3e-3, 2e-3, 1e-3])
            .all(|(a, b)| (a - b).abs() < 1e-12),
        "{along:?}"
    );

    let mhd = |more: &str| {
        geometry(
            "a.mhd",
            MHD.replace("ElementType", &format!("{more}\nElementType"))
                .as_bytes(),
        )
    };
    let places = "ElementSpacing = 1 2 3\nOffset = -4 -5 6";
    let plain = mhd(places);
    for (unit, factor) in [("um", 1e-3), ("cm", 10.0), ("mm", 1.0), ("?", 1.0)] {
        let found = mhd(&format!("{places}\nDistanceUnits = {unit}"));
        assert!(near(found, plain.scaled(factor)), "{unit}: {found:?}");
    }
}

#[test]
fn common_mistakes_in_nifti_headers_do_not_matter() {
    let short = |n: i16| n.to_le_bytes();
    let sound = geometry("a.nii", &nifti(&[]));
    for bits in [0, 1, 16, 32, -8] {
        let volume = opened("a.nii", &nifti(&[(72, &short(bits))])).unwrap();
        assert_eq!(volume.layout().dtype, DType::U8, "bitpix {bits}");
    }
    for dims in [
        [4, 2, 2, 2, 0, 0, 0, 0],
        [7, 2, 2, 2, 0, 1, 0, 1],
        [5, 2, 2, 2, 1, 0, 0, 0],
    ] {
        let bytes: Vec<u8> = dims.iter().flat_map(|&n: &i16| short(n)).collect();
        let volume = opened("a.nii", &nifti(&[(40, &bytes)])).unwrap();
        assert_eq!(
            (volume.layout().shape, volume.layout().channels),
            ([2; 3], 1),
            "{dims:?}"
        );
        assert_eq!(volume.layout().geometry, sound);
    }
}

#[test]
fn a_form_without_information_is_ignored() {
    let one = 1_i16.to_le_bytes();
    let zero = floats(&[0.0; 12]);
    let flat = floats(&[1.0, 0.0, 0.0, 9.0, 0.0, 1.0, 0.0, 9.0, 0.0, 0.0, 0.0, 9.0]);
    let offset = floats(&[4.0, 5.0, 6.0]);
    let qform: [(usize, &[u8]); 2] = [(252, &one), (268, &offset)];
    let expected = geometry("a.nii", &nifti(&qform));
    assert_eq!(expected.origin(), [6.0, 5.0, 4.0]);
    for rows in [&zero, &flat] {
        let both = [&qform[..], &[(254, &one[..]), (280, rows)]].concat();
        assert_eq!(geometry("a.nii", &nifti(&both)), expected);
    }
    // Without a qform, zeros are treated like no form, and a degenerate sform is an error.
    let alone = geometry("a.nii", &nifti(&[(254, &one), (280, &zero)]));
    assert_eq!(alone, geometry("a.nii", &nifti(&[])));
    let error = opened("a.nii", &nifti(&[(254, &one), (280, &flat)])).unwrap_err();
    assert!(
        error.to_string().contains("the axes independent"),
        "{error}"
    );
    // An image of one slice may omit the direction of its third axis.
    let slice: Vec<u8> = [2_i16, 2, 2, 1, 1]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    let found = geometry("a.nii", &nifti(&[(40, &slice), (254, &one), (280, &flat)]));
    assert_eq!((found.spacing, found.origin()), ([1.0; 3], [9.0; 3]));
    assert!(found.is_aligned());

    let mhd = MHD.replace(
        "ElementType",
        "TransformMatrix = 1 0 0 1 0 0 0 0 1\nElementType",
    );
    assert!(
        opened("a.mhd", mhd.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("the axes independent")
    );
    let nrrd = NRRD.replace(
        "encoding",
        "space directions: (1,0,0) (2,0,0) (0,0,1)\nencoding",
    );
    assert!(
        opened("a.nhdr", nrrd.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("the axes independent")
    );
}

#[test]
fn analyze_pairs_are_read_with_their_unit_and_origin() {
    let short = |n: i16| n.to_le_bytes();
    let pixdim = floats(&[0.0, 1.0, 2.0, 3.0]);
    let header = |more: &[(usize, &[u8])]| {
        let start: [(usize, &[u8]); 3] = [(344, &[0; 4]), (108, &[0; 4]), (76, &pixdim)];
        nifti(&[&start[..], more].concat())[..348].to_vec()
    };
    let volume = opened("a.hdr", &header(&[])).unwrap();
    assert_eq!(volume.layout().format.to_string(), "analyze-7.5");
    assert_eq!(volume.layout().rescale, None);
    let expected = Geometry::from_affine([
        [-1.0, 0.0, 0.0, 0.5],
        [0.0, 2.0, 0.0, -1.0],
        [0.0, 0.0, 3.0, -1.5],
        [0.0, 0.0, 0.0, 1.0],
    ]);
    assert_eq!(volume.layout().geometry, expected);
    assert_eq!(
        geometry("a.hdr", &header(&[(56, b"um\0\0")])),
        expected.scaled(1e-3)
    );
    assert!(
        opened("a.hdr", &header(&[(56, b"ell\0")]))
            .unwrap_err()
            .to_string()
            .contains("\"ell\"")
    );
    let origin: Vec<u8> = [2_i16, 1, 1].iter().flat_map(|&n| short(n)).collect();
    assert_eq!(
        geometry("a.hdr", &header(&[(253, &origin)])).affine[..3],
        [
            [-1.0, 0.0, 0.0, 1.0],
            [0.0, 2.0, 0.0, 0.0],
            [0.0, 0.0, 3.0, 0.0],
        ]
    );
    // The field contains something else.
    let far: Vec<u8> = [300_i16, 1, 1].iter().flat_map(|&n| short(n)).collect();
    assert_eq!(geometry("a.hdr", &header(&[(253, &far)])), expected);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.hdr"), header(&[])).unwrap();
    fs::write(dir.path().join("a.img"), [7; 8]).unwrap();
    let volume = open(dir.path().join("a.img")).unwrap();
    assert_eq!(volume.read(Region::whole([2; 3])).unwrap().bytes(), [7; 8]);
}

#[test]
fn headers_of_thousands_of_frames_are_read() {
    use std::fmt::Write;
    let mut more = String::new();
    for n in 0..12_000 {
        let _ = writeln!(more, "Seq_Frame{n:04}_ImageStatus = OK");
        let _ = writeln!(
            more,
            "Seq_Frame{n:04}_ProbeToTrackerTransform = 1 0 0 {n} 0 1 0 0 0 0 1 0 0 0 0 1"
        );
    }
    let header = MHD.replace("ElementType", &format!("{more}ElementType"));
    assert!(header.len() as u64 > crate::volume::format::LIMIT);
    let volume = opened("a.mhd", header.as_bytes()).unwrap();
    assert_eq!(volume.layout().shape, [2; 3]);
    let attached = header.replace("near.raw", "LOCAL") + "\x01\x02\x03\x04\x05\x06\x07\x08";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mha");
    fs::write(&path, attached).unwrap();
    let read = open(&path).unwrap().read(Region::whole([2; 3])).unwrap();
    assert_eq!(read.bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn voxels_in_a_file_for_each_slice_are_one_volume() {
    let dir = tempfile::tempdir().unwrap();
    let shape = [5_u64, 3, 4];
    let voxels: Vec<u8> = (0..120).collect();
    // Two bytes per voxel, with one byte before and one after the voxels of each file.
    for (n, slice) in voxels.chunks(24).enumerate() {
        let text = [&[200][..], slice].concat();
        fs::write(dir.path().join(format!("s{:02}.raw", n + 1)), text).unwrap();
    }
    let list = "s01.raw\ns02.raw\ns03.raw\ns04.raw\ns05.raw\n";
    let nrrd =
        "NRRD0004\ntype: ushort\ndimension: 3\nsizes: 4 3 5\nendian: little\nencoding: raw\n";
    let mhd = "NDims = 3\nDimSize = 4 3 5\nElementType = MET_USHORT\n";
    let headers = [
        (
            "a.nhdr",
            format!("{nrrd}byte skip: 1\ndata file: LIST\n{list}"),
        ),
        (
            "b.nhdr",
            format!("{nrrd}byte skip: -1\ndata file: LIST 2\n{list}"),
        ),
        (
            "c.nhdr",
            format!("{nrrd}byte skip: 1\ndata file: s%02d.raw 1 5 1\n"),
        ),
        (
            "d.mhd",
            format!("{mhd}HeaderSize = 1\nElementDataFile = LIST\n{list}"),
        ),
        (
            "e.mhd",
            format!("{mhd}HeaderSize = -1\nElementDataFile = s%02d.raw 1 5 1\n"),
        ),
    ];
    for (name, header) in headers {
        let path = dir.path().join(name);
        fs::write(&path, header).unwrap();
        let volume = open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let all = volume.read(Region::whole(shape)).unwrap();
        assert_eq!(all.bytes(), voxels, "{name}");
        let part = Region::new([1, 1, 2], [3, 2, 2]);
        let at = |z: usize, y: usize| 24 * z + 8 * y + 4;
        let rows = (1..4).flat_map(|z| (1..3).map(move |y| at(z, y)));
        let expected: Vec<u8> = rows.flat_map(|at| voxels[at..at + 4].to_vec()).collect();
        assert_eq!(volume.read(part).unwrap().bytes(), expected, "{name}");
        assert_eq!(volume.source_files().len(), 6, "{name}");
        assert_eq!(
            volume.stored_bytes().unwrap(),
            125 + fs::metadata(&path).unwrap().len()
        );
        volume.check_unchanged().unwrap();
    }
    // In reverse order, and with a file that is too short.
    let back = "s05.raw\ns04.raw\ns03.raw\ns02.raw\ns01.raw\n";
    let path = dir.path().join("f.nhdr");
    fs::write(
        &path,
        format!("{nrrd}byte skip: 1\ndata file: LIST\n{back}"),
    )
    .unwrap();
    let volume = open(&path).unwrap();
    assert_eq!(
        volume.read(Region::new([0; 3], [1, 3, 4])).unwrap().bytes(),
        &voxels[96..]
    );
    fs::write(dir.path().join("s03.raw"), [0; 20]).unwrap();
    assert!(matches!(
        volume.check_unchanged(),
        Err(Error::InputModified { .. })
    ));
    let error = volume.read(Region::whole(shape)).unwrap_err().to_string();
    assert!(error.contains("s03.raw"), "{error}");
    let error = open(&path).unwrap_err();
    assert!(matches!(error, Error::FileLength { .. }), "{error}");
}

#[test]
fn an_analyze_pair_with_its_place_in_another_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let header = nifti(&[(344, &[0; 4]), (108, &[0; 4])])[..348].to_vec();
    fs::write(at("a.hdr"), header).unwrap();
    fs::write(at("a.img"), [7; 64]).unwrap();
    assert!(open(at("a.hdr")).is_ok());
    fs::write(at("a.mat"), [0; 8]).unwrap();
    for name in ["a.hdr", "a.img"] {
        let refused = open(at(name)).unwrap_err().to_string();
        assert!(
            refused.contains("a.mat") && refused.contains("nibabel"),
            "{refused}"
        );
    }
}
