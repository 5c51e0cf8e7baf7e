//! Encodes the header of a NIfTI file in native byte order: NIfTI-1, or NIfTI-2 if a length does not fit.

use super::CLOCKS;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::{Affine, Geometry};
use crate::volume::{AxisKind, Format, Layout, LeadingAxis, Rescale};

/// Encodes the bytes before the first voxel of a NIfTI file: NIfTI-1, or NIfTI-2 if a length does not fit.
///
/// # Errors
///
/// [`Error::Unsupported`] for voxel types, geometries and axis orders that NIfTI cannot store.
pub(super) fn encode(layout: &mut Layout, _: Option<&str>) -> Result<Vec<u8>> {
    layout.format = if is_nifti2(layout) {
        Format::Nifti2
    } else {
        Format::Nifti1
    };
    let code: i16 = match layout.dtype {
        DType::Bool | DType::U8 => 2,
        DType::I16 => 4,
        DType::I32 => 8,
        DType::F32 => 16,
        DType::F64 => 64,
        DType::I8 => 256,
        DType::U16 => 512,
        DType::U32 => 768,
        DType::I64 => 1024,
        DType::U64 => 1280,
        DType::F16 => return Err(Error::no_float16(&layout.path, "NIfTI")),
    };
    if !layout.geometry.is_sound() {
        let what = "NIfTI needs a spacing above 0 and a finite affine";
        return Err(Error::unsupported(&layout.path, what));
    }
    if FourthAndFifth::of(layout).is_none() {
        let what = "time is between other axes, which NIfTI cannot have: write .zarr";
        return Err(Error::unsupported(&layout.path, what));
    }
    Ok(if layout.format == Format::Nifti2 {
        second(layout, code)
    } else {
        first(layout, code)
    })
}

/// Returns `true` if a length is too large for NIfTI-1.
fn is_nifti2(layout: &Layout) -> bool {
    let [z, y, x] = layout.shape;
    let FourthAndFifth { times, others, .. } = FourthAndFifth::of(layout).unwrap_or_default();
    [x, y, z, times, others]
        .iter()
        .any(|&n| i16::try_from(n).is_err())
}

/// The lengths of NIfTI's fourth dimension, time, and of its fifth, all other axes.
#[derive(Clone, Debug, Default)]
struct FourthAndFifth {
    times: u64,
    others: u64,
    /// `true` if the volume has all channels of a time point together. In NIfTI, time varies
    /// faster.
    time_first: bool,
    /// The axis of time, if there is one.
    time: Option<LeadingAxis>,
}

impl FourthAndFifth {
    /// Returns the lengths for a volume; `None` if time is between other axes.
    fn of(layout: &Layout) -> Option<Self> {
        let leading = layout.axes.long_of(layout.channels);
        let place = leading.iter().position(|axis| axis.kind == AxisKind::Time);
        let time = place.map(|place| leading[place].clone());
        let times = time.as_ref().map_or(1, |axis| axis.length);
        let at_an_end = place.is_none_or(|place| place == 0 || place + 1 == leading.len());
        at_an_end.then(|| Self {
            times,
            others: layout.channels / times,
            time_first: place == Some(0) && leading.len() > 1,
            time,
        })
    }
}

/// Returns the time points and the channels of each, if the volume has all channels of a time point
/// together.
pub(super) fn transposed_time(layout: &Layout) -> Option<[u64; 2]> {
    let more = FourthAndFifth::of(layout)?;
    more.time_first.then_some([more.times, more.others])
}

/// A header under construction, which stores values at byte offsets.
struct Target(Vec<u8>);

impl Target {
    fn put<const N: usize>(&mut self, at: usize, values: impl IntoIterator<Item = [u8; N]>) {
        for (i, value) in values.into_iter().enumerate() {
            let at = at + i * N;
            self.0[at..at + N].copy_from_slice(&value);
        }
    }

    fn f32s(&mut self, at: usize, values: impl IntoIterator<Item = f64>) {
        #[expect(clippy::cast_possible_truncation, reason = "NIfTI-1 keeps f32")]
        self.put(
            at,
            values.into_iter().map(|value| (value as f32).to_ne_bytes()),
        );
    }

    fn f64s(&mut self, at: usize, values: impl IntoIterator<Item = f64>) {
        self.put(at, values.into_iter().map(f64::to_ne_bytes));
    }
}

fn first(layout: &Layout, code: i16) -> Vec<u8> {
    let parts = HeaderValues::new(layout);
    let mut header = Target(vec![0; 352]);
    header.put(0, [348_i32.to_ne_bytes()]);
    header.put(38, [*b"r"]);
    let dim = parts
        .dim
        .map(|n| i16::try_from(n).unwrap_or(i16::MAX).to_ne_bytes());
    header.put(40, dim);
    header.put(68, [parts.intent.to_ne_bytes()]);
    header.put(70, [code.to_ne_bytes(), parts.bits.to_ne_bytes()]);
    header.f32s(76, parts.pixdim);
    header.f32s(108, [352.0, parts.rescale[0], parts.rescale[1]]);
    header.put(123, [[parts.units]]);
    header.put(148, [*b"voxpatch"]);
    header.put(252, [parts.qform.to_ne_bytes(), 1_i16.to_ne_bytes()]);
    header.f32s(256, parts.quatern);
    header.f32s(268, parts.origin);
    header.f32s(280, parts.affine[..3].iter().flatten().copied());
    header.put(344, [*b"n+1\0"]);
    header.0
}

fn second(layout: &Layout, code: i16) -> Vec<u8> {
    let parts = HeaderValues::new(layout);
    let mut header = Target(vec![0; 544]);
    header.put(0, [540_i32.to_ne_bytes()]);
    header.put(4, [*b"n+2\0\r\n\x1a\n"]);
    header.put(12, [code.to_ne_bytes(), parts.bits.to_ne_bytes()]);
    let dim = parts
        .dim
        .map(|n| i64::try_from(n).unwrap_or(i64::MAX).to_ne_bytes());
    header.put(16, dim);
    header.f64s(104, parts.pixdim);
    header.put(168, [544_i64.to_ne_bytes()]);
    header.f64s(176, parts.rescale);
    header.put(240, [*b"voxpatch"]);
    header.put(
        344,
        [i32::from(parts.qform).to_ne_bytes(), 1_i32.to_ne_bytes()],
    );
    header.f64s(352, parts.quatern);
    header.f64s(376, parts.origin);
    header.f64s(400, parts.affine[..3].iter().flatten().copied());
    header.put(500, [i32::from(parts.units).to_ne_bytes()]);
    header.put(504, [i32::from(parts.intent).to_ne_bytes()]);
    header.0
}

/// The code of `xyzt_units` for millimeters.
const MILLIMETERS: u8 = 2;

/// The intent of a fifth dimension: `NIFTI_INTENT_VECTOR`, which ITK reads as channels.
const VECTOR: i16 = 1007;

/// The values that both versions store.
struct HeaderValues {
    dim: [u64; 8],
    intent: i16,
    /// The code of `xyzt_units`.
    units: u8,
    bits: i16,
    pixdim: [f64; 8],
    rescale: [f64; 2],
    /// The code of the qform: 0 if the affine cannot be expressed as a quaternion.
    qform: i16,
    quatern: [f64; 3],
    origin: [f64; 3],
    affine: Affine,
}

impl HeaderValues {
    fn new(layout: &Layout) -> Self {
        let [z, y, x] = layout.shape;
        let more = FourthAndFifth::of(layout).unwrap_or_default();
        let dims = match (more.times, more.others) {
            (_, 2..) => 5,
            (2.., _) => 4,
            _ => 3,
        };
        let (step, clock) = more.time.map_or((1.0, None), |time| (time.step, time.unit));
        let clock = CLOCKS
            .iter()
            .find(|(_, name)| Some(*name) == clock.as_deref());
        let clock = clock.map_or(0, |&(code, _)| u8::try_from(code).unwrap_or(0));
        let Geometry {
            spacing, affine, ..
        } = layout.geometry;
        let turn = quaternion(&layout.geometry);
        let (qfac, quatern) = turn.unwrap_or((1.0, [0.0; 3]));
        let rescale = layout.rescale.unwrap_or(Rescale {
            slope: 1.0,
            intercept: 0.0,
        });
        Self {
            dim: [dims, x, y, z, more.times, more.others, 1, 1],
            intent: if dims == 5 { VECTOR } else { 0 },
            units: MILLIMETERS | clock,
            bits: i16::try_from(8 * layout.dtype.size()).expect("a voxel has up to 64 bits"),
            pixdim: [
                qfac, spacing[2], spacing[1], spacing[0], step, 1.0, 1.0, 1.0,
            ],
            rescale: [rescale.slope, rescale.intercept],
            qform: i16::from(turn.is_some()),
            quatern,
            origin: [affine[0][3], affine[1][3], affine[2][3]],
            affine,
        }
    }
}

/// Returns the sign of z and the quaternion's b, c, d of an affine; `None` if the affine has shear or
/// if its columns do not have the lengths of the spacing.
#[expect(clippy::many_single_char_names, reason = "the standard's names")]
fn quaternion(geometry: &Geometry) -> Option<(f64, [f64; 3])> {
    let [z, y, x] = geometry.spacing;
    let mut turn: [[f64; 3]; 3] = std::array::from_fn(|row| {
        std::array::from_fn(|column| geometry.affine[row][column] / [x, y, z][column])
    });
    let dot = |a: usize, b: usize| (0..3).map(|row| turn[row][a] * turn[row][b]).sum::<f64>();
    let straight =
        (0..3).all(|a| (0..3).all(|b| (dot(a, b) - f64::from(u8::from(a == b))).abs() < 1e-5));
    if !straight {
        return None;
    }
    let cofactor = |a: usize, b: usize| turn[1][a] * turn[2][b] - turn[1][b] * turn[2][a];
    let determinant =
        turn[0][0] * cofactor(1, 2) - turn[0][1] * cofactor(0, 2) + turn[0][2] * cofactor(0, 1);
    let qfac = determinant.signum();
    for row in &mut turn {
        row[2] *= qfac;
    }
    // Computed from the largest of a, b, c, d, which is at least 1/2, so that no division is by a small number.
    let t = |signs: [f64; 3]| {
        let trace = signs[0] * turn[0][0] + signs[1] * turn[1][1] + signs[2] * turn[2][2];
        (1.0 + trace).max(0.0).sqrt() / 2.0
    };
    let sizes = [
        t([1.0, 1.0, 1.0]),
        t([1.0, -1.0, -1.0]),
        t([-1.0, 1.0, -1.0]),
        t([-1.0, -1.0, 1.0]),
    ];
    let largest = (0..4).max_by(|&i, &j| sizes[i].total_cmp(&sizes[j]))?;
    let minus = |i: usize, j: usize| (turn[i][j] - turn[j][i]) / (4.0 * sizes[largest]);
    let plus = |i: usize, j: usize| (turn[i][j] + turn[j][i]) / (4.0 * sizes[largest]);
    let size = sizes[largest];
    let [a, b, c, d] = match largest {
        0 => [size, minus(2, 1), minus(0, 2), minus(1, 0)],
        1 => [minus(2, 1), size, plus(0, 1), plus(0, 2)],
        2 => [minus(0, 2), plus(0, 1), size, plus(1, 2)],
        _ => [minus(1, 0), plus(0, 2), plus(1, 2), size],
    };
    // NIfTI assumes a positive a; the negated quaternion is the same rotation.
    let sign = if a < 0.0 { -1.0 } else { 1.0 };
    Some((qfac, [sign * b, sign * c, sign * d]))
}
