//! Real values: the same number on every path of a voxel.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use voxpatch::training::{Image, Subject};
use voxpatch::volume::{CreateOptions, Rescale, Values, create};
use voxpatch::{DType, Layout, OpenOptions, Padding, Patch, Region, Shape, Volume, VolumeExt as _};

use crate::tool::{Place, fails, json, succeeds};

const SHAPE: Shape = [6, 7, 9];

/// Returns stored numbers that every type can represent, before and after any of these rescales.
fn stored(dtype: DType) -> Patch {
    let values = (0..378_u32).map(|n| f64::from(n.wrapping_mul(2_654_435_761) >> 25));
    let values: Vec<f64> = values.collect();
    let patch = Patch::new(Region::whole(SHAPE), 1, values).expect("378 voxels");
    patch.converted(dtype)
}

/// Returns the real values of the same, by their definition.
fn real(dtype: DType, rescale: Rescale) -> Patch {
    let stored = stored(dtype).converted(DType::F64);
    let values = stored.as_slice::<f64>().expect("f64").iter();
    let values = values.map(|v| v * rescale.slope + rescale.intercept);
    let patch = Patch::new(Region::whole(SHAPE), 1, values.collect::<Vec<f64>>());
    patch.expect("378 voxels").converted(rescale.dtype(dtype))
}

fn write(path: &str, dtype: DType, rescale: Option<Rescale>) {
    let layout = Layout {
        rescale,
        ..Layout::new(SHAPE, 1, dtype)
    };
    let options = CreateOptions::default()
        .with_chunk([4; 3])
        .with_shard(Some([4, 8, 8]));
    let target = create(Path::new(path), &layout, &options).expect("it can be created");
    let voxels = stored(dtype);
    let whole = Region::whole(SHAPE);
    if let Some([_, z, y, x]) = target.layout().write_chunk {
        let chunks = voxpatch::region::chunk_range(&whole, [z, y, x]);
        for index in voxpatch::region::indices(chunks) {
            let region = voxpatch::region::chunk_region(index, [z, y, x]);
            let region = region.intersection(&whole).expect("it starts inside");
            target
                .write(region, cut(&voxels, region).bytes())
                .expect("a chunk");
        }
    } else {
        target.write(whole, voxels.bytes()).expect("all of it");
    }
    target.finish().expect("it is finished");
}

fn cut(patch: &Patch, region: Region) -> Patch {
    let volume = voxpatch::MemoryVolume::from_patch(
        Layout::new(patch.shape(), patch.channels(), patch.dtype()),
        patch.clone(),
    );
    volume.expect("the patch").read(region).expect("inside")
}

fn read(path: &str, values: Values) -> (Patch, Layout) {
    let options = OpenOptions::default().with_values(values);
    let volume = options.open(path).expect("it opens");
    let patch = volume.read(Region::whole(volume.layout().shape));
    (patch.expect("it reads"), volume.layout().clone())
}

fn same(found: &Patch, expected: &Patch, what: &str) {
    assert_eq!(found.dtype(), expected.dtype(), "{what}");
    assert!(found.bytes() == expected.bytes(), "{what}: other values");
}

/// Writes sources of every kind: path, dtype and rescale.
fn sources(place: &Place) -> Vec<(String, DType, Rescale)> {
    let mut all = Vec::new();
    let dtypes = [
        DType::U8,
        DType::I8,
        DType::U16,
        DType::I16,
        DType::I32,
        DType::F32,
    ];
    for (n, dtype) in dtypes.into_iter().enumerate() {
        let rescales = [(1.0, -1024.0), (1.0, 300.0), (0.5, -3.0), (-2.0, 0.25)];
        for (m, (slope, intercept)) in rescales.into_iter().enumerate() {
            let ends = ["nii", "mha", "zarr"];
            let name = format!("{dtype}-{m}.{}", ends[(n + m) % 3]);
            let path = place.at(&name);
            let rescale = Rescale { slope, intercept };
            write(&path, dtype, Some(rescale));
            all.push((path, dtype, rescale));
        }
    }
    all
}

#[test]
fn every_command_and_format_has_the_same_real_values() {
    let place = Place::new();
    let inside = Region::new([1, 2, 3], [4, 4, 5]);
    let list = place.at("list.csv");
    std::fs::write(&list, "1,2,3,5,6,8\n").expect("it is written");
    for (n, (path, dtype, rescale)) in sources(&place).into_iter().enumerate() {
        let expected = real(dtype, rescale);
        let (found, layout) = read(&path, Values::Real);
        same(&found, &expected, &path);
        assert_eq!(layout.rescale, None);
        let applied = layout.applied.expect("a slope");
        assert_eq!((applied.rescale, applied.stored), (rescale, dtype));
        let (found, layout) = read(&path, Values::Stored);
        same(&found, &stored(dtype), &path);
        assert_eq!((layout.rescale, layout.applied), (Some(rescale), None));

        let told = json(&["info", &path]);
        assert_eq!(told["dtype"], json!(expected.dtype().name()));
        assert_eq!(told["stored_dtype"], json!(dtype.name()));
        assert_eq!(told["slope"], json!(rescale.slope));
        assert_eq!(told["intercept"], json!(rescale.intercept));

        for end in ["npy", "nii", "nrrd", "mha", "zarr"] {
            let out = place.at(&format!("{n}-out.{end}"));
            let told = json(&["convert", &path, &out]);
            same(&read(&out, Values::Real).0, &expected, &out);
            // The values that programs without voxpatch's slope read.
            let (raw, layout) = read(&out, Values::Stored);
            if end == "nii" {
                same(&raw, &stored(dtype), &out);
                assert_eq!(layout.rescale, Some(rescale), "{out}");
                assert_eq!(told["values"], json!("stored, with slope and intercept"));
            } else {
                same(&raw, &expected, &out);
                assert_eq!(layout.rescale, None, "{out}");
                assert_eq!(told["values"], json!("real"));
            }
            assert_eq!(told["clipped_values"], json!(0));
            let out = place.at(&format!("{n}-stored.{end}"));
            succeeds(&["convert", &path, &out, "--values", "stored"]);
            let (raw, layout) = read(&out, Values::Real);
            same(&raw, &stored(dtype), &out);
            assert_eq!(layout.applied, None);
        }

        let part = cut(&expected, inside);
        let out = place.at(&format!("{n}-patches.zarr"));
        succeeds(&["sample", &path, "--at", &list, "--out", &out]);
        same(
            &read(&out, Values::Stored).0,
            &part.clone().moved_to([0; 3]),
            &out,
        );
        let out = place.at(&format!("{n}-patches/"));
        succeeds(&["sample", &path, "--at", &list, "--out", &out]);
        let file = format!("{out}patch_000000.nii");
        same(
            &read(&file, Values::Stored).0,
            &part.clone().moved_to([0; 3]),
            &file,
        );
        let out = place.at(&format!("{n}-stored-patches.npy"));
        let flags = ["--at", &list, "--out", &out, "--values", "stored"];
        succeeds(&[&["sample", &path], &flags[..]].concat());
        let bytes = std::fs::read(&out).expect("it is there");
        assert!(
            bytes.ends_with(cut(&stored(dtype), inside).bytes()),
            "{out}"
        );

        let out = place.at(&format!("{n}-same.npy"));
        let flags = ["--patch-size", "4,4,5", "--overlap", "2", "--blend", "crop"];
        succeeds(&[&["infer", &path, &out], &flags[..]].concat());
        same(&read(&out, Values::Stored).0, &expected, &out);

        let image = Image::new("ct", voxpatch::open(&path).expect("it opens"));
        same(&image.read(inside).expect("it reads"), &part, &path);
    }
}

#[test]
fn thresholds_and_paddings_of_a_ct_are_hounsfield_units() {
    let place = Place::new();
    let ct = place.at("ct.nii");
    let rescale = Rescale {
        slope: 1.0,
        intercept: -1024.0,
    };
    write(&ct, DType::I16, Some(rescale));
    let hu = real(DType::I16, rescale);
    let hu: &[i16] = hu.as_slice().expect("a CT is int16 HU");
    let out = place.at("classes.npy");
    let model = ["--model", "threshold:-1000,-950", "--reduce", "argmax"];
    let patches = ["--patch-size", "4", "--overlap", "2"];
    succeeds(&[&["infer", &ct, &out], &patches[..], &model].concat());
    let (classes, _) = read(&out, Values::Real);
    let classes = classes.as_slice::<u8>().expect("classes");
    for (&class, &value) in classes.iter().zip(hu) {
        assert_eq!(class, u8::from(value >= -1000) + u8::from(value >= -950));
    }

    let list = place.at("list.csv");
    std::fs::write(&list, "-2,-1,0,2,2,9\n").expect("it is written");
    let out = place.at("padded.npy");
    let flags = ["--at", &list, "--border", "pad", "--fill", "-1000"];
    succeeds(&[&["sample", &ct, "--out", &out], &flags[..]].concat());
    let bytes = std::fs::read(&out).expect("it is there");
    let first: Vec<i16> = vec![-1000; 2 * 3 * 9];
    let padded = &bytes[bytes.len() - 4 * 3 * 9 * 2..];
    assert!(
        padded.starts_with(
            &first
                .iter()
                .flat_map(|v| v.to_ne_bytes())
                .collect::<Vec<u8>>()
        )
    );
    assert!(
        padded.ends_with(
            &hu[63 + 9..63 + 18]
                .iter()
                .flat_map(|v| v.to_ne_bytes())
                .collect::<Vec<u8>>()
        )
    );
    let flags = ["--at", &list, "--border", "pad", "--fill", "0.5"];
    let line = fails(&[&["sample", &ct, "--out", &place.at("no.npy")], &flags[..]].concat());
    assert!(line.contains("0.5") && line.contains("int16"), "{line}");

    let image = Image::new("ct", voxpatch::open(&ct).expect("it opens"))
        .with_padding(Padding::Constant(-1000.0));
    let subject = Subject::builder("s")
        .with_images([image])
        .build()
        .expect("one image");
    let patch = subject.images()[0].read(Region::new([0, 0, -3], [1, 1, 4]));
    let patch = patch.expect("it reads");
    assert_eq!(
        patch.as_slice::<i16>().expect("int16"),
        [-1000, -1000, -1000, hu[0]]
    );
}

#[test]
fn what_a_type_cannot_hold_is_refused_with_its_count_and_place() {
    let place = Place::new();
    let ct = place.at("ct.nii");
    let rescale = Rescale {
        slope: 1.0,
        intercept: -60.0,
    };
    write(&ct, DType::I16, Some(rescale));
    let hu = real(DType::I16, rescale);
    let hu: &[i16] = hu.as_slice().expect("int16");
    let below = hu.iter().filter(|&&v| v < 0).count();
    let first = hu.iter().position(|&v| v < 0).expect("some are");
    let at = format!("[{}, {}, {}]", first / 63, first / 9 % 7, first % 9);
    let out = place.at("bytes.zarr");
    let line = fails(&["convert", &ct, &out, "--dtype", "uint8"]);
    for part in [
        &format!("{below} of 378"),
        &hu[first].to_string(),
        &at,
        "uint8",
        "--clip",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!Path::new(&out).exists());
    let told = json(&["convert", &ct, &out, "--dtype", "uint8", "--clip"]);
    assert_eq!(told["clipped_values"], json!(below));
    let (found, layout) = read(&out, Values::Stored);
    let found = found.as_slice::<u8>().expect("uint8").iter();
    let expected = hu.iter().map(|&v| u8::try_from(v.max(0)).expect("small"));
    assert!(found.copied().eq(expected) && layout.rescale.is_none());

    // Fractions are rounded, and counted.
    let half = place.at("half.nii");
    let rescale = Rescale {
        slope: 0.5,
        intercept: 0.0,
    };
    write(&half, DType::U8, Some(rescale));
    let out = place.at("rounded.npy");
    let told = json(&["convert", &half, &out, "--dtype", "int16"]);
    let halves = stored(DType::U8);
    let halves = halves.as_slice::<u8>().expect("uint8").iter();
    assert_eq!(
        told["rounded_values"],
        json!(halves.filter(|&&v| v % 2 == 1).count())
    );
    assert_eq!(told["clipped_values"], json!(0));

    // A predicted type as well.
    let out = place.at("predicted.npy");
    let flags = ["--patch-size", "4", "--overlap", "2", "--dtype", "uint8"];
    let line = fails(&[&["infer", &ct, &out], &flags[..]].concat());
    for part in ["(z, y, x)", "uint8", "--clip"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!Path::new(&out).exists());
    let told = json(&[&["infer", &ct, &out, "--clip"], &flags[..]].concat());
    assert_eq!(told["clipped_values"], json!(below));
}

#[test]
fn a_value_that_int16_cannot_hold_is_named_and_wider_types_hold_it() {
    let place = Place::new();
    let ct = place.at("ct.nii");
    let layout = Layout {
        rescale: Rescale::new(1.0, -1024.0),
        ..Layout::new([1, 1, 3], 1, DType::I16)
    };
    let target = create(Path::new(&ct), &layout, &CreateOptions::default()).expect("ours");
    let voxels: Vec<u8> = [0_i16, -32_768, 5]
        .iter()
        .flat_map(|v| v.to_ne_bytes())
        .collect();
    target
        .write(Region::whole([1, 1, 3]), &voxels)
        .expect("it is written");
    target.finish().expect("it is finished");
    let line = fails(&["convert", &ct, &place.at("a.npy")]);
    for part in ["-33792", "[0, 0, 1]", "int16", "ct.nii"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    for dtype in ["int32", "float32", "float64"] {
        let out = place.at(&format!("{dtype}.npy"));
        succeeds(&["convert", &ct, &out, "--dtype", dtype]);
        let found = read(&out, Values::Real).0.converted(DType::F64);
        assert_eq!(
            found.as_slice::<f64>().expect("f64"),
            [-1024.0, -33_792.0, -1019.0]
        );
    }
    // NIfTI keeps the stored values.
    succeeds(&["convert", &ct, &place.at("a.nii")]);
}

#[test]
fn class_numbers_are_not_averaged() {
    let place = Place::new();
    let labels = place.at("labels.zarr");
    write(&labels, DType::I32, None);
    let out = place.at("out.npy");
    let flags = ["--patch-size", "4", "--overlap", "2"];
    let line = fails(&[&["infer", &labels, &out], &flags[..]].concat());
    for part in ["int32", "class numbers", "crop", "argmax"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let crop = ["--blend", "crop"];
    succeeds(&[&["infer", &labels, &out], &flags[..], &crop].concat());
    same(&read(&out, Values::Stored).0, &stored(DType::I32), "crop");
}

#[test]
fn patches_of_unlike_inputs_get_one_type_or_are_refused_by_name() {
    let place = Place::new();
    let scale = |slope, intercept| Some(Rescale { slope, intercept });
    let (ct, pet, plain) = (
        place.at("ct.nii"),
        place.at("pet.nii"),
        place.at("plain.npy"),
    );
    write(&ct, DType::I16, scale(1.0, -1024.0));
    write(&pet, DType::I16, scale(0.5, 0.0));
    write(&plain, DType::U8, None);
    let list = place.at("list.csv");
    std::fs::write(&list, "0,0,0,6,7,9\n").expect("it is written");
    let out = place.at("all.npy");
    succeeds(&["sample", &ct, &pet, &plain, "--at", &list, "--out", &out]);
    let bytes = std::fs::read(&out).expect("it is there");
    let mut expected = [
        real(
            DType::I16,
            Rescale {
                slope: 1.0,
                intercept: -1024.0,
            },
        ),
        real(
            DType::I16,
            Rescale {
                slope: 0.5,
                intercept: 0.0,
            },
        ),
        stored(DType::U8),
    ]
    .map(|patch| patch.converted(DType::F32).bytes().to_vec())
    .to_vec();
    for found in bytes[bytes.len() - 3 * 378 * 4..].chunks(378 * 4) {
        let at = expected.iter().position(|one| one == found);
        expected.swap_remove(at.expect("the values of one of them, once"));
    }

    let wide = place.at("wide.nii");
    let layout = Layout::new(SHAPE, 1, DType::I16)
        .with_geometry(voxpatch::Geometry::from_spacing([2.0, 1.0, 1.0]));
    let target = create(Path::new(&wide), &layout, &CreateOptions::default()).expect("ours");
    target
        .write(Region::whole(SHAPE), stored(DType::I16).bytes())
        .expect("it is written");
    target.finish().expect("it is finished");
    let flags = ["--at", &list, "--out"];
    let zarr = place.at("all.zarr");
    let line = fails(&[&["sample", &ct, &wide], &flags[..], &[&zarr]].concat());
    for part in ["ct.nii", "wide.nii", "spacings", "2.0", "folder"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let big = place.at("big.npy");
    write(&big, DType::U64, None);
    let line = fails(&[&["sample", &ct, &big], &flags[..], &[&zarr]].concat());
    for part in ["ct.nii", "big.npy", "int16", "uint64"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let folder = place.at("folder/");
    succeeds(&[&["sample", &ct, &wide, &big], &flags[..], &[&folder]].concat());
}

#[test]
fn a_run_is_not_resumed_with_other_values() {
    let place = Place::new();
    let (ct, out) = (place.at("ct.nii"), place.at("out.zarr"));
    let rescale = Rescale {
        slope: 1.0,
        intercept: -1024.0,
    };
    write(&ct, DType::I16, Some(rescale));
    let run = ["infer", &ct, &out, "--patch-size", "4", "--overlap", "0"];
    let store = ["--blend", "crop", "--chunk", "4", "--shard", "none"];
    let first = ["--part", "0/2", "--values", "stored"];
    succeeds(&[&run[..], &store, &first].concat());
    let line = fails(&[&run[..], &store, &["--part", "0/2"]].concat());
    assert!(line.contains("values"), "{line}");
    let _: Arc<dyn Volume> = voxpatch::open(&ct).expect("the input is untouched");
}
