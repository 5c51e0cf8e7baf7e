//! The arrays in `tests/data/zarr`, made with zarr-python by `tests/data/make.py`.

use std::fs;

use super::*;
use crate::dtype::{DType, convert};
use crate::region::indices;

/// Returns the folders of all golden arrays.
pub(super) fn arrays() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/zarr");
    let folders = |path: PathBuf| {
        let entries = fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().path())
    };
    let mut found: Vec<_> = ["v2", "v3"]
        .iter()
        .flat_map(|version| folders(root.join(version)))
        .collect();
    found.sort();
    found
}

/// Returns the value that `make.py` stored at position `n` of a row-major array.
fn value(dtype: DType, n: u64) -> f64 {
    let v = f64::from(u8::try_from((7 * n + n / 5) % 251).unwrap());
    match dtype {
        DType::Bool => v % 2.0,
        // numpy wraps: values above 127 do not fit.
        DType::I8 if v > 227.0 => v - 356.0,
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => v - 100.0,
        DType::F16 | DType::F32 | DType::F64 => v / 2.0 - 20.0,
        _ => v,
    }
}

/// Returns the expected voxels of the whole array, c, z, y, x.
fn expected(volume: &ZarrVolume, attributes: &Json) -> Vec<f64> {
    let Layout {
        shape,
        channels,
        dtype,
        ..
    } = volume.layout;
    let voxels = crate::region::voxels(shape).unwrap();
    let mut values: Vec<f64> = (0..channels * voxels).map(|n| value(dtype, n)).collect();
    let Some(written) = attributes.get("written") else {
        return values;
    };
    let corner = |i: usize, a: usize| written[i][a].as_u64().unwrap();
    let fill = &attributes["fill"];
    let fill = match fill.as_str() {
        Some(text) => text.parse().unwrap(),
        None => fill.as_f64().unwrap(),
    };
    for (n, place) in indices(shape.map(|n| 0..n)).enumerate() {
        if !(0..3).all(|a| (corner(0, a)..corner(1, a)).contains(&place[a])) {
            values[n] = fill;
        }
    }
    values
}

#[test]
fn golden_arrays_hold_what_zarr_python_wrote() {
    let arrays = arrays();
    assert!(arrays.len() > 150, "the golden arrays are gone");
    let mut wrong = Vec::new();
    for path in arrays {
        let name = path.display().to_string();
        let found = find::find_array(&path, 0, &Tree::Folder(Links::Followed)).unwrap();
        let volume = match open(&path) {
            Ok(volume) => volume,
            Err(error) => {
                wrong.push(format!("{name}: {}", error.with_causes()));
                continue;
            }
        };
        let patch = match volume.read(Region::whole(volume.layout.shape)) {
            Ok(patch) => patch,
            Err(error) => {
                wrong.push(format!("{name}: {}", error.with_causes()));
                continue;
            }
        };
        let expected = expected(&volume, &found.attributes);
        let mut values = vec![0.0_f64; expected.len()];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        convert(patch.dtype(), patch.bytes(), DType::F64, bytes);
        let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        if !values.iter().zip(&expected).all(same) {
            wrong.push(format!("{name}: {values:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_missing_chunk_is_fill_value_or_an_error_as_requested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/zarr");
    let strict = OpenOptions {
        missing_chunks: MissingChunks::Error,
        ..OpenOptions::default()
    };
    for (name, missing) in [
        ("v2/fill_nan", true),
        ("v3/fill_negative", true),
        ("v3/shard_partial", true),
        ("v3/shard_in_shard", false),
        ("v3/gzip", false),
    ] {
        let volume = ZarrVolume::open(&root.join(name), &strict).unwrap();
        let read = volume.read(Region::whole(volume.layout.shape));
        let refused = matches!(read, Err(Error::MissingChunk { .. }));
        assert_eq!((refused, read.is_err()), (missing, missing), "{name}");
    }
}

#[test]
fn codecs_that_could_be_exploited_are_refused_on_untrusted_data() {
    let untrusted = OpenOptions {
        trusted: false,
        ..OpenOptions::default()
    };
    let mut refused = 0;
    for path in arrays() {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match ZarrVolume::open(&path, &untrusted) {
            Err(Error::UntrustedCodec { codec, .. }) => {
                let known = ["blosc", "bitround", "fixedscaleoffset"];
                let named = |known: &&str| name.contains(known) && codec.ends_with(known);
                assert!(known.iter().any(named), "{name}: {codec}");
                refused += 1;
            }
            Ok(_) => assert!(!name.contains("blosc"), "{name}"),
            Err(error) => panic!("{name}: {}", error.with_causes()),
        }
    }
    assert!(refused > 20);
}
