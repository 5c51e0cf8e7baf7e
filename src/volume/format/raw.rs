//! Headerless files, with a layout from the caller or a JSON sidecar.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{FlatHeader, Problems};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::{Affine, Geometry};
use crate::region::Shape;
use crate::volume::Format;

const NAME: &str = "raw sidecar";

/// The layout of a headerless file: row-major c, z, y, x from a byte on.
#[derive(Clone, Debug, PartialEq)]
pub struct RawSpec {
    /// Voxels along z, y, x.
    pub shape: Shape,
    /// Channels, the slowest axis.
    pub channels: u64,
    /// The stored type.
    pub dtype: DType,
    /// `true` if the first byte of a voxel is the most significant.
    pub big_endian: bool,
    /// Bytes before the first voxel.
    pub offset: u64,
    /// Spacing and affine.
    pub geometry: Geometry,
}

impl RawSpec {
    /// Creates a description of little-endian voxels of one channel from the first byte on, with spacing 1 mm.
    #[must_use]
    pub fn new(shape: Shape, dtype: DType) -> Self {
        Self {
            shape,
            channels: 1,
            dtype,
            big_endian: false,
            offset: 0,
            geometry: Geometry::default(),
        }
    }

    /// Parses the layout in a sidecar. `path` is the sidecar's, for messages.
    ///
    /// The keys `shape` \[z, y, x\] and `dtype` (a numpy name) are required. Optional keys are `channels`, `byte_order`
    /// (`little` or `big`), `offset` in bytes, `spacing` \[z, y, x\] in mm and `affine` (4 x 4, voxel x, y, z to mm in
    /// RAS+). Any other key is an error.
    ///
    /// # Errors
    ///
    /// [`Error::Header`] that names every key that is missing, unknown or invalid.
    pub fn from_json(path: impl AsRef<Path>, text: &[u8]) -> Result<Self> {
        let path = path.as_ref();
        let document: Json = serde_json::from_slice(text)
            .map_err(|error| Error::header(path, NAME, error.to_string()))?;
        let Json::Object(keys) = document else {
            return Err(Error::header(path, NAME, "it is not a JSON object"));
        };
        let mut problems = Problems::default();
        let spec = Self::from_keys(&keys, &mut problems);
        problems.check(path, NAME)?;
        Ok(spec)
    }

    fn from_keys(keys: &Map<String, Json>, problems: &mut Problems) -> Self {
        const KNOWN: [&str; 7] = [
            "shape",
            "channels",
            "dtype",
            "byte_order",
            "offset",
            "spacing",
            "affine",
        ];
        for key in keys.keys().filter(|key| !KNOWN.contains(&key.as_str())) {
            problems.add(format!(
                "key {key:?} is unknown (known keys: {})",
                KNOWN.join(", ")
            ));
        }
        let mut spec = Self::new([1; 3], DType::U8);
        match keys
            .get("shape")
            .and_then(|value| array(value, Json::as_u64))
        {
            Some(shape) => spec.shape = shape,
            None => problems.add("shape must be three whole numbers, z, y, x"),
        }
        let name = keys.get("dtype").and_then(Json::as_str);
        match name.and_then(DType::from_name) {
            Some(dtype) => spec.dtype = dtype,
            None => problems.add("dtype must be a numpy name like uint16"),
        }
        match keys.get("byte_order").map(Json::as_str) {
            None | Some(Some("little")) => {}
            Some(Some("big")) => spec.big_endian = true,
            Some(_) => problems.add("byte_order must be \"little\" or \"big\""),
        }
        for (key, target) in [
            ("channels", &mut spec.channels),
            ("offset", &mut spec.offset),
        ] {
            match keys.get(key).map(Json::as_u64) {
                None => {}
                Some(Some(value)) => *target = value,
                Some(None) => problems.add(format!("{key} must be a whole number")),
            }
        }
        spec.geometry = geometry(keys, problems);
        spec
    }

    /// Returns the description as a header.
    pub(in super::super) fn header(&self, path: &Path) -> Result<FlatHeader> {
        let header = FlatHeader::new(Format::Raw, self.shape, self.dtype, self.offset);
        let header = FlatHeader {
            channels: self.channels,
            big_endian: self.big_endian,
            geometry: self.geometry,
            ..header
        };
        header.checked(path, "raw")
    }
}

fn geometry(keys: &Map<String, Json>, problems: &mut Problems) -> Geometry {
    let spacing = keys
        .get("spacing")
        .map(|value| array(value, Json::as_f64).filter(|s: &[f64; 3]| s.iter().all(|&n| n > 0.0)));
    if spacing == Some(None) {
        problems.add("spacing must be three numbers above 0, z, y, x in mm");
    }
    let row = |value: &Json| array::<f64, 4>(value, Json::as_f64);
    let affine: Option<Option<Affine>> = keys.get("affine").map(|value| array(value, row));
    if affine == Some(None) {
        problems.add("affine must be four rows of four numbers");
    }
    let (spacing, affine) = (spacing.flatten(), affine.flatten());
    if spacing.is_none() && affine.is_none() {
        return Geometry::default();
    }
    let mut geometry = affine.map_or_else(
        || Geometry::from_spacing(spacing.unwrap_or([1.0; 3])),
        Geometry::from_affine,
    );
    geometry.spacing = spacing.unwrap_or(geometry.spacing);
    geometry
}

/// Parses a JSON array of exactly `N` values that `one` accepts.
fn array<T, const N: usize>(value: &Json, one: impl Fn(&Json) -> Option<T>) -> Option<[T; N]> {
    let values: Vec<T> = value.as_array()?.iter().map(one).collect::<Option<_>>()?;
    values.try_into().ok()
}
