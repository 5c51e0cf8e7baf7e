//! Time and channels stay distinct, with their names and units, in every format.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use voxpatch::volume::{
    Axes, AxisKind, CreateOptions, LeadingAxis, Volume, VolumeExt, create, open,
};
use voxpatch::{ConvertOptions, DType, Geometry, Layout, Region};

const SHAPE: [u64; 3] = [4, 3, 5];

/// Returns a layout with axes of these kinds and lengths, in micrometers.
fn layout(leading: &[(AxisKind, u64)]) -> Layout {
    let channels = leading.iter().map(|(_, length)| length).product();
    let axis = |&(kind, length): &(AxisKind, u64)| LeadingAxis {
        step: if kind == AxisKind::Time { 0.5 } else { 1.0 },
        unit: (kind == AxisKind::Time).then(|| "second".to_owned()),
        ..LeadingAxis::new(kind, length)
    };
    let shown = leading.iter().find(|(kind, _)| *kind == AxisKind::Channel);
    let names: Vec<String> = (0..shown.map_or(1, |(_, n)| *n))
        .map(|n| format!("stain {n}"))
        .collect();
    let colors: Vec<Json> = names
        .iter()
        .map(|name| json!({"label": name, "color": "FF00AA"}))
        .collect();
    Layout {
        geometry: Geometry::from_parts([0.003, 0.002, 0.001], [0.03, 0.02, 0.01]),
        axes: Axes {
            leading: leading.iter().map(axis).collect(),
            unit: Some(("\u{b5}m".to_owned(), 1e-3)),
            channel_names: names,
            omero: Some(json!({"channels": colors})),
        },
        ..Layout::new(SHAPE, channels, DType::U16)
    }
}

/// Returns the voxels of a channel.
fn voxels(channel: u64) -> Vec<u16> {
    (0..60)
        .map(|n| u16::try_from(channel).expect("few") * 100 + n)
        .collect()
}

/// Writes such a volume.
fn write(path: &Path, leading: &[(AxisKind, u64)], options: &CreateOptions) {
    let layout = layout(leading);
    let target = create(path, &layout, options).expect("an output");
    for channel in 0..layout.channels {
        let bytes: Vec<u8> = voxels(channel)
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect();
        let written = target.write_channels(channel..channel + 1, Region::whole(SHAPE), &bytes);
        written.expect("whole chunks");
    }
    target.finish().expect("a finished output");
}

fn convert(from: &Path, to: &Path) -> voxpatch::Result<Arc<dyn Volume>> {
    let source = open(from)?;
    let target = create(to, source.layout(), &CreateOptions::default())?;
    voxpatch::convert(&source, target, &ConvertOptions::default(), &|_, _| {
        std::ops::ControlFlow::Continue(())
    })?;
    open(to)
}

/// Returns the kinds and lengths of the axes in front of z, y, x.
fn kinds(volume: &dyn Volume) -> Vec<(AxisKind, u64)> {
    let layout = volume.layout();
    let leading = layout.axes.leading_of(layout.channels);
    leading
        .iter()
        .map(|axis| (axis.kind, axis.length))
        .collect()
}

/// Checks that position `n` along the axes has the voxels of channel `of(n)` of the source.
fn check(volume: &dyn Volume, of: impl Fn(u64) -> u64, what: &str) {
    let all = volume.read(Region::whole(SHAPE)).expect("voxels");
    let found = all.as_slice::<u16>().expect("uint16").to_vec();
    let expected: Vec<u16> = (0..volume.layout().channels)
        .flat_map(|n| voxels(of(n)))
        .collect();
    assert_eq!(found, expected, "{what}");
    let spacing = volume.layout().geometry.spacing;
    let near = spacing
        .iter()
        .zip([0.003, 0.002, 0.001])
        .all(|(a, b): (&f64, f64)| (a - b).abs() < 1e-9);
    assert!(near, "{what}: {spacing:?}");
}

const T: (AxisKind, u64) = (AxisKind::Time, 3);
const C: (AxisKind, u64) = (AxisKind::Channel, 2);

#[test]
fn one_axis_keeps_its_kind_through_every_format() {
    let dir = tempfile::tempdir().expect("a folder");
    for axis in [T, C] {
        for first in ["a.zarr", "a.nii", "a.mha", "a.nrrd", "a.mhd"] {
            let from = dir.path().join(format!("{axis:?}{first}"));
            write(&from, &[axis], &CreateOptions::default());
            check(&*open(&from).expect("a volume"), |n| n, first);
            for second in ["b.zarr", "b.nii", "b.mha", "b.nrrd", "b.mhd"] {
                let what = format!("{axis:?} {first} {second}");
                let to = dir.path().join(format!("{axis:?}{first}{second}"));
                let volume = convert(&from, &to).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(kinds(&*volume), [axis], "{what}");
                let points = volume.time_points();
                assert!(
                    if axis == T {
                        points == Some(3)
                    } else {
                        points.is_none_or(|n| n == 1)
                    },
                    "{what}"
                );
                check(&*volume, |n| n, &what);
            }
        }
    }
}

#[test]
fn time_and_channels_together_stay_apart() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    for (name, options) in [
        ("2.zarr", CreateOptions::zarr2()),
        ("3.zarr", CreateOptions::default()),
    ] {
        write(&at(name), &[T, C], &options);
        let volume = open(at(name)).expect("a volume");
        assert_eq!(
            (kinds(&*volume), volume.time_points()),
            (vec![T, C], Some(3))
        );
        check(&*volume, |n| n, name);
        // In NIfTI, time varies faster than channels.
        let nifti = convert(&at(name), &at(&format!("{name}.nii"))).expect("NIfTI has both");
        assert_eq!(kinds(&*nifti), [C, T]);
        check(&*nifti, |n| n % 3 * 2 + n / 3, "zarr to nii");
        let back = convert(&at(&format!("{name}.nii")), &at(&format!("back-{name}")))
            .expect("and so has Zarr");
        // Zarr is read with time first, regardless of the stored order.
        assert_eq!(kinds(&*back), [T, C]);
        check(&*back, |n| n, "nii to zarr");
        let again = convert(
            &at(&format!("back-{name}")),
            &at(&format!("again-{name}.nii")),
        )
        .expect("a NIfTI");
        check(&*again, |n| n % 3 * 2 + n / 3, "and to nii again");
        for one in ["a.mha", "a.nrrd"] {
            let error = convert(&at(name), &at(one)).expect_err("one axis only");
            assert!(error.to_string().contains("one axis besides"), "{error}");
        }
    }
}

#[test]
fn written_ome_zarr_keeps_names_units_and_colors() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    write(&at("a.zarr"), &[T, C], &CreateOptions::default());
    convert(&at("a.zarr"), &at("b.zarr")).expect("a copy");
    let text = fs::read(at("b.zarr/zarr.json")).expect("metadata");
    let document: Json = serde_json::from_slice(&text).expect("JSON");
    let ome = &document["attributes"]["ome"];
    assert_eq!(
        ome["multiscales"][0]["axes"],
        json!([
            {"name": "t", "type": "time", "unit": "second"},
            {"name": "c", "type": "channel"},
            {"name": "z", "type": "space", "unit": "micrometer"},
            {"name": "y", "type": "space", "unit": "micrometer"},
            {"name": "x", "type": "space", "unit": "micrometer"},
        ])
    );
    assert_eq!(
        ome["multiscales"][0]["datasets"][0]["coordinateTransformations"],
        json!([
            {"type": "scale", "scale": [0.5, 1.0, 3.0, 2.0, 1.0]},
            {"type": "translation", "translation": [0.0, 0.0, 30.0, 20.0, 10.0]},
        ])
    );
    assert_eq!(
        ome["omero"]["channels"][1],
        json!({"label": "stain 1", "color": "FF00AA"})
    );
    let axes = open(at("b.zarr")).expect("a volume").layout().axes.clone();
    assert_eq!(axes.channel_names, ["stain 0", "stain 1"]);
    let nifti = convert(&at("b.zarr"), &at("b.nii")).expect("a NIfTI");
    let time = &nifti.layout().axes.leading[1];
    assert_eq!((time.step, time.unit.as_deref()), (0.5, Some("second")));
    let header = fs::read(at("b.nii")).expect("a header");
    let dims: Vec<i16> = header[40..56]
        .chunks(2)
        .map(|two| i16::from_ne_bytes([two[0], two[1]]))
        .collect();
    assert_eq!(dims, [5, 5, 3, 4, 3, 2, 1, 1]);
    assert_eq!(
        (header[123], i16::from_ne_bytes([header[68], header[69]])),
        (2 | 8, 1007)
    );
}
