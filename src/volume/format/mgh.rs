//! The header of a FreeSurfer volume: `.mgh`, or `.mgz` if the file is a gzip stream.
//!
//! Everything is big-endian. The affine follows from the directions of the axes and the position of the center.

use std::path::Path;

use super::row::FileFormat;
use super::{DataStart, FlatHeader, Problems};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::volume::{Axes, AxisKind, Format, Layout, LeadingAxis};

const NAME: &str = "MGH";

/// FreeSurfer volumes.
pub(super) const FORMAT: FileFormat = FileFormat {
    extensions: &[".mgh", ".mgz"],
    packed: true,
    ..FileFormat::new(
        NAME,
        "a FreeSurfer volume",
        &[Format::Mgh],
        recognize,
        parse,
        encode,
    )
};

/// Bytes before the voxels.
const SIZE: usize = 284;

fn number(bytes: &[u8], at: usize) -> i32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    field.map_or(0, |field| i32::from_be_bytes(*field))
}

fn dtype(code: i32) -> Option<DType> {
    match code {
        0 => Some(DType::U8),
        1 => Some(DType::I32),
        3 => Some(DType::F32),
        4 => Some(DType::I16),
        10 => Some(DType::U16),
        _ => None,
    }
}

/// Returns `true` if `bytes` begin like a FreeSurfer volume: version 1, four lengths above 0 and a known type.
fn recognize(bytes: &[u8]) -> bool {
    let lengths = [4, 8, 12, 16].map(|at| number(bytes, at));
    bytes.len() >= SIZE
        && number(bytes, 0) == 1
        && lengths.iter().all(|&n| n > 0)
        && dtype(number(bytes, 20)).is_some()
}

/// Reads the header at the start of `bytes`.
fn parse(path: &Path, bytes: &[u8]) -> Result<FlatHeader> {
    let mut problems = Problems::default();
    if bytes.len() < SIZE {
        problems.add(format!("it has {} bytes, not {SIZE}", bytes.len()));
    }
    if number(bytes, 0) != 1 {
        problems.add(format!("its version is {}, not 1", number(bytes, 0)));
    }
    let [x, y, z, frames] = [4, 8, 12, 16].map(|at| {
        let length = number(bytes, at);
        u64::try_from(length).unwrap_or_else(|_| {
            problems.add(format!("a length is {length}, not above 0"));
            0
        })
    });
    let code = number(bytes, 20);
    let dtype = dtype(code).unwrap_or_else(|| {
        problems.add(format!("type {code} is not 0, 1, 3, 4 or 10"));
        DType::U8
    });
    problems.check(path, NAME)?;
    let header = FlatHeader {
        channels: frames,
        time_points: Some(frames),
        big_endian: true,
        start: DataStart::byte(SIZE as u64),
        geometry: geometry(bytes, [x, y, z]),
        axes: Axes {
            leading: (frames > 1)
                .then(|| LeadingAxis::new(AxisKind::Time, frames))
                .into_iter()
                .collect(),
            ..Axes::default()
        },
        ..FlatHeader::new(Format::Mgh, [z, y, x], dtype, 0)
    };
    header.checked(path, NAME)
}

/// Returns the geometry; unknown if the header has no directions.
fn geometry(bytes: &[u8], lengths: [u64; 3]) -> Geometry {
    let has_directions = bytes[28..30] != [0, 0];
    if !has_directions {
        return Geometry::default();
    }
    let float = |n: usize| f64::from(f32::from_bits(number(bytes, 30 + 4 * n).cast_unsigned()));
    let mut affine = [[0.0, 0.0, 0.0, 1.0]; 4];
    for (row, values) in affine.iter_mut().take(3).enumerate() {
        let mut start = float(12 + row);
        for axis in 0..3 {
            values[axis] = float(3 + 3 * axis + row) * float(axis);
            // The center is half the lengths from the first voxel, in whole voxels, as FreeSurfer has it.
            #[expect(clippy::cast_precision_loss, reason = "lengths below 2^31")]
            let half = lengths[axis] as f64 / 2.0;
            start -= values[axis] * half;
        }
        values[3] = start;
    }
    Geometry {
        spacing: [float(2), float(1), float(0)],
        ..Geometry::from_affine(affine)
    }
}

fn encode(layout: &mut Layout, _: Option<&str>) -> Result<Vec<u8>> {
    Err(Error::unsupported(
        &layout.path,
        "FreeSurfer volumes are not written",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of 2 frames of 4 x 3 x 2 voxels (z, y, x), with axes x to the left, y to below and z to the front.
    fn header() -> Vec<u8> {
        let mut bytes = Vec::new();
        for n in [1, 2, 3, 4, 2, 4, 0] {
            bytes.extend(i32::to_be_bytes(n));
        }
        bytes.extend([0, 1]);
        let directions = [-1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0];
        for n in [0.5, 1.0, 1.5]
            .into_iter()
            .chain(directions)
            .chain([10.0, 20.0, 30.0])
        {
            bytes.extend(f32::to_be_bytes(n));
        }
        bytes.resize(SIZE, 0);
        bytes
    }

    #[test]
    fn the_center_and_the_directions_make_the_affine() {
        let bytes = header();
        assert!(recognize(&bytes));
        let found = parse(Path::new("a.mgh"), &bytes).unwrap();
        assert_eq!(
            (found.shape, found.channels, found.dtype),
            ([4, 3, 2], 2, DType::I16)
        );
        assert_eq!(found.geometry.spacing, [1.5, 1.0, 0.5]);
        assert_eq!(
            found.geometry.affine,
            [
                [-0.5, 0.0, 0.0, 10.5],
                [0.0, 0.0, 1.5, 17.0],
                [0.0, -1.0, 0.0, 31.5],
                [0.0, 0.0, 0.0, 1.0],
            ]
        );
    }

    #[test]
    fn headers_that_make_no_sense_are_refused() {
        for (at, value, word) in [
            (0, 2, "version"),
            (4, -1, "length"),
            (4, 0, "no voxels"),
            (20, 2, "type 2"),
        ] {
            let mut bytes = header();
            bytes[at..at + 4].copy_from_slice(&i32::to_be_bytes(value));
            assert!(!recognize(&bytes));
            let error = parse(Path::new("a.mgh"), &bytes).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let short = parse(Path::new("a.mgh"), &header()[..100])
            .unwrap_err()
            .to_string();
        assert!(short.contains("not 284"), "{short}");
    }
}
