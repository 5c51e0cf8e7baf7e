//! NRRD and MetaImage as they are written.

use super::*;
#[cfg(feature = "tiff")]
use crate::volume::{AxisKind, LeadingAxis};

fn turned() -> Geometry {
    let (sin, cos) = 0.3_f64.sin_cos();
    Geometry::from_affine([
        [2.1 * cos, -3.3 * sin, 0.0, -90.57],
        [2.1 * sin, 3.3 * cos, 0.0, 12.25],
        [0.0, 0.0, -0.7, 1e-9],
        [0.0, 0.0, 0.0, 1.0],
    ])
}

#[test]
fn nrrd_and_metaimage_keep_voxels_and_geometry() {
    let desk = Desk::new();
    for dtype in DType::ALL {
        for channels in [1, 3] {
            let patch = Random(13).patch([5, 6, 7], channels, dtype);
            let mut layout = Layout::new([5, 6, 7], channels, dtype);
            for geometry in [
                Geometry::from_parts([2.5, 0.7, 0.66], [-3.1, 0.0, 7.0]),
                turned(),
            ] {
                layout.geometry = geometry;
                for name in ["a.nrrd", "a.mha", "a.mhd"] {
                    if dtype == DType::F16 {
                        let path = desk.folder.path().join(name);
                        let options = CreateOptions {
                            overwrite: true,
                            ..CreateOptions::default()
                        };
                        let error = create(&path, &layout, &options).unwrap_err();
                        assert!(matches!(error, Error::UnsupportedDType { .. }), "{error}");
                        continue;
                    }
                    let found = round_trip(&desk, name, &layout, &patch);
                    assert_eq!(found.geometry.affine, geometry.affine, "{name}");
                    let near = |a: usize| (found.geometry.spacing[a] - geometry.spacing[a]).abs();
                    assert!((0..3).all(|a| near(a) < 1e-15), "{name}");
                }
            }
        }
    }
}

#[cfg(feature = "tiff")]
#[test]
fn tiff_keeps_voxels_spacing_and_axes() {
    let desk = Desk::new();
    let options = CreateOptions {
        overwrite: true,
        ..CreateOptions::default()
    };
    for dtype in DType::ALL {
        for (channels, kinds) in [
            (1, vec![]),
            (3, vec![(AxisKind::Channel, 3)]),
            (4, vec![(AxisKind::Time, 4)]),
            (6, vec![(AxisKind::Time, 2), (AxisKind::Channel, 3)]),
        ] {
            let patch = Random(17).patch([5, 6, 7], channels, dtype);
            let mut layout = Layout::new([5, 6, 7], channels, dtype);
            layout.geometry = Geometry::from_spacing([0.0021, 0.0007, 0.00066]);
            layout.axes.unit = Some(("micrometer".to_owned(), 1e-3));
            layout.axes.leading = kinds
                .iter()
                .map(|&(kind, length)| LeadingAxis::new(kind, length))
                .collect();
            if channels == 3 {
                layout.axes.channel_names = ["a", "<&\">", "µ"].map(str::to_owned).to_vec();
            }
            for name in ["a.tif", "b.ome.tiff"] {
                if matches!(dtype, DType::F16 | DType::I64 | DType::U64) {
                    let error = create(desk.folder.path().join(name), &layout, &options);
                    assert!(matches!(error, Err(Error::Unsupported { .. })), "{error:?}");
                    continue;
                }
                if dtype == DType::Bool {
                    continue;
                }
                let found = round_trip(&desk, name, &layout, &patch);
                assert_eq!(found.format, Format::Tiff);
                assert_eq!(found.geometry.spacing, layout.geometry.spacing, "{name}");
                assert_eq!(found.axes, layout.axes, "{name}");
            }
        }
    }
    let mut layout = Layout::new([2, 3, 4], 1, DType::I16);
    layout.rescale = Rescale::new(0.1, -1024.0);
    assert!(create(desk.folder.path().join("a.tif"), &layout, &options).is_err());
}

#[test]
fn only_metaimage_has_a_slope_and_none_has_a_spacing_of_0() {
    let desk = Desk::new();
    let mut layout = Layout::new([2, 3, 4], 1, DType::I16);
    layout.rescale = Rescale::new(0.1, -1024.0);
    let patch = Random(14).patch([2, 3, 4], 1, DType::I16);
    for name in ["a.mha", "a.mhd"] {
        assert_eq!(
            round_trip(&desk, name, &layout, &patch).rescale,
            layout.rescale
        );
    }
    let refused = |name: &str, layout: &Layout| {
        let path = desk.folder.path().join(name);
        create(&path, layout, &CreateOptions::default())
            .unwrap_err()
            .to_string()
    };
    assert!(refused("a.nrrd", &layout).contains("slope and intercept"));
    layout.rescale = None;
    layout.geometry.spacing[1] = 0.0;
    for name in ["b.nrrd", "b.mha", "b.mhd"] {
        assert!(refused(name, &layout).contains("spacing above 0"));
    }
}

#[test]
fn a_header_and_its_voxels_are_replaced_as_one() {
    let desk = Desk::new();
    let layout = Layout::new([2, 3, 4], 1, DType::U8);
    let path = desk.folder.path().join("a.mhd");
    let names = || {
        let mut names: Vec<String> = fs::read_dir(desk.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let first = || {
        open(&path)
            .unwrap()
            .read(Region::whole([2, 3, 4]))
            .unwrap()
            .bytes()[0]
    };
    let write = |byte: u8, overwrite: bool| {
        let options = CreateOptions {
            overwrite,
            ..CreateOptions::default()
        };
        let target = create(&path, &layout, &options)?;
        target.write(Region::whole([2, 3, 4]), &[byte; 24])?;
        Ok::<_, Error>(target)
    };
    write(1, false).unwrap().finish().unwrap();
    assert_eq!(
        (names(), first()),
        (vec!["a.mhd".to_owned(), "a.raw".to_owned()], 1)
    );
    assert!(matches!(write(2, false), Err(Error::Exists { .. })));
    let unfinished = write(2, true).unwrap();
    assert_eq!(first(), 1, "nothing changes before the end");
    drop(unfinished);
    assert_eq!((names().len(), first()), (2, 1));
    write(3, true).unwrap().finish().unwrap();
    assert_eq!(
        (names(), first()),
        (vec!["a.1.raw".to_owned(), "a.mhd".to_owned()], 3)
    );
    write(4, true).unwrap().finish().unwrap();
    assert_eq!(
        (names(), first()),
        (vec!["a.mhd".to_owned(), "a.raw".to_owned()], 4)
    );
    // Voxels that no header of ours names must not be replaced.
    fs::remove_file(&path).unwrap();
    for overwrite in [false, true] {
        let error = write(5, overwrite).unwrap_err();
        assert!(error.to_string().contains("a.raw"), "{error}");
    }
    assert_eq!(fs::read(desk.folder.path().join("a.raw")).unwrap(), [4; 24]);
}

#[test]
fn voxels_are_removed_if_their_header_cannot_be_finished() {
    let desk = Desk::new();
    let path = desk.folder.path().join("a.mhd");
    let layout = Layout {
        path: path.clone(),
        ..Layout::new([2, 3, 4], 1, DType::U8)
    };
    let writer = create(&path, &layout, &CreateOptions::default()).unwrap();
    std::fs::write(&path, "of another").unwrap();
    assert!(matches!(writer.finish(), Err(Error::Exists { .. })));
    let left: Vec<_> = std::fs::read_dir(desk.folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_compressed_nifti_is_one_stream_of_members_that_any_reader_takes() {
    use std::io::Read;
    let desk = Desk::new();
    // Several members, the last one shorter, and a file shorter than one member.
    for shape in [[70, 200, 111], [5, 6, 7]] {
        let layout = Layout::new(shape, 2, DType::I16);
        let patch = Random(14).patch(shape, 2, DType::I16);
        let plain = round_trip(&desk, "a.nii", &layout, &patch);
        let packed = round_trip(&desk, "a.nii.gz", &layout, &patch);
        assert_eq!(packed.codecs, ["gzip"]);
        assert_eq!(
            (packed.format, packed.geometry),
            (plain.format, plain.geometry)
        );
        let [plain, packed] =
            ["a.nii", "a.nii.gz"].map(|name| fs::read(desk.folder.path().join(name)).unwrap());
        let mut unpacked = Vec::new();
        flate2::read::MultiGzDecoder::new(&packed[..])
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, plain);
        let mut first = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(&packed[..]);
        decoder.read_to_end(&mut first).unwrap();
        assert_eq!(first.len(), plain.len().min(1 << 20), "the first member");
    }
    let tested = std::process::Command::new("gzip")
        .arg("-t")
        .arg(desk.folder.path().join("a.nii.gz"))
        .status();
    assert!(tested.is_err() || tested.unwrap().success(), "gzip -t");
}

#[test]
fn a_compressed_output_takes_its_length_twice_at_most_and_leaves_nothing_unfinished() {
    let desk = Desk::new();
    let path = desk.folder.path().join("a.nii.gz");
    let layout = Layout::new([5, 6, 7], 1, DType::I16);
    let options = CreateOptions::default();
    let layout = crate::volume::output_layout(&path, &layout, &options).unwrap();
    let space = crate::volume::disk_space(&[(&layout, &options)], false).unwrap();
    assert_eq!((space[0].min_bytes, space[0].max_bytes), (420, 840));
    let target = create(&path, &layout, &options).unwrap();
    target.write(Region::whole([5, 6, 7]), &[1; 420]).unwrap();
    let files = || fs::read_dir(desk.folder.path()).unwrap().count();
    assert_eq!(
        files(),
        1,
        "the file under construction, and one without a name"
    );
    drop(target);
    assert_eq!(files(), 0);
}
