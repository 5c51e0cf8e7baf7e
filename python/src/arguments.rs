//! Arguments in the forms in which Python users give them.

use std::ops::Range;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PySlice;
use voxpatch::volume::{MissingChunks, ReadMethod, Resample, Tilt, VoxelGrid};
use voxpatch::{Affine, DType, Geometry, OpenOptions, Padding, Shape};

use crate::array;
use crate::errors::{invalid, raised};
use crate::subjects::padding_of;
use crate::volume::Volume;

/// A whole number that `T` holds, in any form: an int, a numpy integer, an array without axes.
pub(crate) fn count<T: TryFrom<u64>>(name: &str, given: &Bound<'_, PyAny>) -> PyResult<T> {
    let wrong = || invalid(format!("{name} {given}: give a whole number from 0 on"));
    let number = given.extract::<u64>().map_err(|_| wrong())?;
    T::try_from(number).map_err(|_| wrong())
}

/// Lengths along z, y, x: one number for all three, or three.
pub(crate) fn lengths(name: &str, given: &Bound<'_, PyAny>) -> PyResult<Shape> {
    if let Ok(one) = given.extract::<u64>() {
        return Ok([one; 3]);
    }
    // Of whatever can be gone through: arrays are no sequences to Python.
    let three = || -> PyResult<Vec<u64>> {
        let numbers = given.try_iter()?.take(4);
        numbers.map(|number| number?.extract()).collect()
    };
    three()
        .ok()
        .and_then(|three| three.try_into().ok())
        .ok_or_else(|| {
            invalid(format!(
                "{name} {given}: give one whole number, or three for z, y, x"
            ))
        })
}

/// Some of `count` channels, or of what `name` calls: a number, a slice or range of step 1, or a
/// pair (first, end).
pub(crate) fn some_of(name: &str, given: &Bound<'_, PyAny>, count: u64) -> PyResult<Range<u64>> {
    let wrong = || {
        invalid(format!(
            "{name} {given}: give a number, or a slice of step 1, of the {count} that there are"
        ))
    };
    let length = isize::try_from(count).map_err(|_| wrong())?;
    let place = |n: isize| u64::try_from(if n < 0 { n + length } else { n }).ok();
    let range = if let Ok(one) = given.extract::<isize>() {
        place(one).map(|n| n..n + 1)
    } else if let Ok(slice) = given.cast::<PySlice>() {
        let found = slice.indices(length)?;
        (found.step == 1)
            .then(|| Some(place(found.start)?..place(found.start)? + found.slicelength as u64))
            .flatten()
    } else if let (Ok(start), Ok(stop)) = (given.getattr("start"), given.getattr("stop")) {
        let step: isize = given.getattr("step")?.extract()?;
        let (start, stop) = (start.extract()?, stop.extract()?);
        (step == 1).then_some(start..stop)
    } else {
        given.extract::<(u64, u64)>().ok().map(|(a, b)| a..b)
    };
    range
        .filter(|range| range.start < range.end && range.end <= count)
        .ok_or_else(wrong)
}

/// A box of a volume of `shape` voxels: what [`some_of`] takes for each of z, y, x.
pub(crate) fn box_of(given: &Bound<'_, PyAny>, shape: Shape) -> PyResult<[Range<u64>; 3]> {
    let wrong = || {
        invalid(format!(
            "box {given}: give three slices or pairs (first, end) for z, y, x"
        ))
    };
    let axes: Vec<Bound<'_, PyAny>> = given.extract().map_err(|_| wrong())?;
    let [z, y, x] = &axes[..] else {
        return Err(wrong());
    };
    let axis = |n: usize, axis| {
        some_of(
            ["box along z", "box along y", "box along x"][n],
            axis,
            shape[n],
        )
    };
    Ok([axis(0, z)?, axis(1, y)?, axis(2, x)?])
}

/// Which values are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Real ones: slope and intercept are applied.
    Real,
    /// Those in the file.
    Stored,
    /// Real ones of a type.
    As(DType),
}

/// Which values are wanted: `"real"`, `"stored"`, or a numpy type.
pub(crate) fn values(given: &Bound<'_, PyAny>) -> PyResult<Values> {
    match given.extract::<String>().as_deref() {
        Ok("stored") => Ok(Values::Stored),
        Ok("real") => Ok(Values::Real),
        _ => Ok(Values::As(array::dtype(given)?)),
    }
}

/// What [`values`] reads.
pub(crate) fn values_name(values: Values) -> &'static str {
    match values {
        Values::Stored => "stored",
        Values::Real => "real",
        Values::As(dtype) => dtype.name(),
    }
}

const MISSING_CHUNKS: [(&str, MissingChunks); 2] = [
    ("fill", MissingChunks::Fill),
    ("error", MissingChunks::Error),
];
const READ_METHOD: [(&str, ReadMethod); 4] = [
    ("auto", ReadMethod::Auto),
    ("mmap", ReadMethod::Mmap),
    ("mmap-resident", ReadMethod::MmapResident),
    ("pread", ReadMethod::Pread),
];

const TILT: [(&str, Tilt); 2] = [("refuse", Tilt::Refuse), ("shear", Tilt::Shear)];

/// The options of `open` that a pickled volume takes along: `level`, `missing_chunks`, `trusted`, `read_method`,
/// `allow_external`, `series`, `allow_uneven`, `tilt`, the names and values of `storage_options`, `cache_dir` and `cache_bytes`.
pub(crate) type Opening = (
    usize,
    String,
    bool,
    String,
    bool,
    Option<String>,
    bool,
    String,
    Vec<(String, String)>,
    Option<PathBuf>,
    Option<u64>,
);

/// Returns the library's options for those of `open`.
pub(crate) fn open_options(
    (
        level,
        missing,
        trusted,
        method,
        allow_external,
        series,
        allow_uneven,
        tilt,
        storage,
        cache_dir,
        cache_bytes,
    ): &Opening,
) -> PyResult<OpenOptions> {
    let usual = OpenOptions::default();
    let cache_bytes = cache_bytes.unwrap_or(usual.cache_bytes);
    Ok(usual
        .with_cache_dir(cache_dir.clone())
        .with_cache_bytes(cache_bytes)
        .with_level(*level)
        .with_missing_chunks(chosen("missing_chunks", missing, &MISSING_CHUNKS)?)
        .with_trusted(*trusted)
        .with_read_method(chosen("read_method", method, &READ_METHOD)?)
        .with_allow_external(*allow_external)
        .with_series(series.clone())
        .with_allow_uneven(*allow_uneven)
        .with_tilt(chosen("tilt", tilt, &TILT)?)
        .with_storage_options(storage.iter().cloned().collect()))
}

/// Returns the arguments of [`open_options`].
pub(crate) fn opening(options: &OpenOptions) -> Opening {
    (
        options.level,
        name(options.missing_chunks, &MISSING_CHUNKS).to_owned(),
        options.trusted,
        name(options.read_method, &READ_METHOD).to_owned(),
        options.allow_external,
        options.series.clone(),
        options.allow_uneven,
        name(options.tilt, &TILT).to_owned(),
        options.storage_options.clone().into_iter().collect(),
        options.cache_dir.clone(),
        Some(options.cache_bytes),
    )
}

/// The grid that `open` brings a volume to: `spacing`, `orientation`, `like` (a volume, or the shape and affine of a
/// grid), `interpolation`, `antialias` and `outside`.
pub(crate) type Resampling<'py> = (
    Option<[f64; 3]>,
    Option<String>,
    Option<Bound<'py, PyAny>>,
    String,
    bool,
    Bound<'py, PyAny>,
);

/// Returns the library's options for those of `open`.
pub(crate) fn resample(
    (spacing, orientation, like, interpolation, antialias, outside): &Resampling<'_>,
) -> PyResult<Resample> {
    let wrong = |error: voxpatch::Error| raised(&error);
    let orientation = orientation.as_deref().map(str::parse).transpose();
    let like = like.as_ref().map(|like| -> PyResult<VoxelGrid> {
        if let Ok(volume) = like.cast::<Volume>() {
            return Ok(volume.get().grid());
        }
        let (shape, affine): (Shape, Affine) = like.extract()?;
        Ok(VoxelGrid::new(shape, Geometry::from_affine(affine)))
    });
    Ok(Resample::default()
        .with_spacing(*spacing)
        .with_orientation(orientation.map_err(wrong)?)
        .with_like(like.transpose()?)
        .with_interpolation(interpolation.parse().map_err(wrong)?)
        .with_antialias(*antialias)
        .with_outside(padding_of(outside)?))
}

/// Returns the arguments of [`resample`].
pub(crate) fn resampling<'py>(py: Python<'py>, resample: &Resample) -> PyResult<Resampling<'py>> {
    let like = resample
        .like
        .map(|grid| (grid.shape, grid.geometry.affine).into_pyobject(py));
    let outside = padding(py, resample.outside)?;
    Ok((
        resample.spacing,
        resample
            .orientation
            .map(|orientation| orientation.to_string()),
        like.transpose()?.map(Bound::into_any),
        resample.interpolation.to_string(),
        resample.antialias,
        outside,
    ))
}

/// Returns the argument of [`padding_of`].
pub(crate) fn padding(py: Python<'_>, padding: Padding) -> PyResult<Bound<'_, PyAny>> {
    Ok(match padding {
        Padding::Constant(value) => value.into_pyobject(py)?.into_any(),
        padding => padding.to_string().into_pyobject(py)?.into_any(),
    })
}

/// What a word stands for, of all that argument `what` may be.
pub(crate) fn chosen<T: Copy>(what: &str, given: &str, all: &[(&str, T)]) -> PyResult<T> {
    let found = all.iter().find(|(name, _)| *name == given);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(|(name, _)| format!("'{name}'")).collect();
        let (last, others) = names.split_last().expect("there is a choice");
        let others = others.join(", ");
        invalid(format!("{what} {given:?}: it is {others} or {last}"))
    })
}

fn name<T: Copy + PartialEq>(value: T, all: &[(&'static str, T)]) -> &'static str {
    let found = all.iter().find(|(_, one)| *one == value);
    found.map_or("", |&(name, _)| name)
}
