//! The header of a NIfTI-1 or NIfTI-2 file, or of an Analyze 7.5 pair, in either byte order.
//!
//! Dimensions beyond the third are flattened into channels. The affine follows nibabel: the sform, else the qform, else
//! the spacing with the volume's center at the origin. An sform that is all zeros is ignored, and so is a degenerate
//! one if there is a qform. Lengths are converted to millimeters. `bitpix` is ignored because `datatype` has the same
//! information.

mod encode;

use std::io::Read;
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::row::{CreatedExtension, FileFormat, VoxelStorage};
use super::{DataStart, FlatHeader, GZIP, INTERLEAVED, PLANAR, Problems};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::{Affine, Geometry, cross};
use crate::volume::{Axes, AxisKind, Format, LeadingAxis, Rescale, units};

/// NIfTI files, and Analyze 7.5 for reading.
pub(super) const FORMAT: FileFormat = FileFormat {
    extensions: &[".nii", ".nii.gz", ".hdr"],
    packed: true,
    outputs: &[
        CreatedExtension::new(".nii.gz", VoxelStorage::Gzip),
        CreatedExtension::new(".nii", VoxelStorage::Attached),
    ],
    pair: Some([".img", ".hdr"]),
    replaces: is_plain_or_gzip,
    transposed_time: encode::transposed_time,
    ..FileFormat::new(
        "NIfTI",
        "a NIfTI file",
        &[Format::Nifti1, Format::Nifti2],
        recognize,
        parse,
        encode::encode,
    )
};

/// The datatype of voxels that are three bytes: red, green and blue.
const RGB: i64 = 128;

/// Bytes of a NIfTI-1 and of a NIfTI-2 header.
const SIZES: [usize; 2] = [348, 540];

/// Returns `true` if `bytes` begin like a NIfTI file.
fn recognize(bytes: &[u8]) -> bool {
    let size = bytes.first_chunk::<4>();
    let is = |n: i32| size == Some(&n.to_le_bytes()) || size == Some(&n.to_be_bytes());
    (is(348) && matches!(bytes.get(344..347), Some(b"n+1" | b"ni1")))
        || (is(540) && matches!(bytes.get(4..7), Some(b"n+2" | b"ni2")))
}

/// Returns `true` for the first bytes of a NIfTI file, plain or compressed.
fn is_plain_or_gzip(head: &[u8]) -> bool {
    if !head.starts_with(&GZIP) {
        return recognize(head);
    }
    let mut inside = Vec::new();
    // A truncated stream is expected here.
    let _ = MultiGzDecoder::new(head)
        .take(4096)
        .read_to_end(&mut inside);
    recognize(&inside)
}

/// Header fields by offset; every offset must be inside the header.
struct NiftiFields<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl NiftiFields<'_> {
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[at..at + N]);
        if self.big_endian {
            bytes.reverse();
        }
        bytes
    }
    fn i16(&self, at: usize) -> i64 {
        i64::from(i16::from_le_bytes(self.get(at)))
    }
    fn i32(&self, at: usize) -> i64 {
        i64::from(i32::from_le_bytes(self.get(at)))
    }
    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.get(at))
    }
    fn f32(&self, at: usize) -> f64 {
        f64::from(f32::from_le_bytes(self.get(at)))
    }
    fn f64(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.get(at))
    }
}

/// The fields that are used, for either version.
#[derive(Debug)]
struct Facts {
    name: &'static str,
    format: Format,
    big_endian: bool,
    /// `true` if the voxels are in an .img file.
    pair: bool,
    dim: [i64; 8],
    datatype: i64,
    /// Millimeters per unit of length, or the problem with the unit.
    unit: Result<f64, String>,
    /// The unit of time, if the header has one.
    clock: Option<&'static str>,
    pixdim: [f64; 8],
    vox_offset: f64,
    rescale: [f64; 2],
    codes: [i64; 2],
    quatern: [f64; 3],
    qoffset: [f64; 3],
    srow: [[f64; 4]; 3],
    /// The voxel (x, y, z, counted from 1) at the world's origin, as SPM stores it in Analyze files.
    center: Option<[f64; 3]>,
}

/// Reads the header at the start of `bytes`.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<FlatHeader> {
    let facts = Facts::read(path, bytes);
    let facts = facts.map_err(|problem| Error::header(path, "NIfTI", problem))?;
    let mut problems = Problems::default();
    let placed = path.with_extension("mat");
    if matches!(facts.format, Format::Analyze) && placed.is_file() {
        let what = format!(
            "its position in the world is in {}, written by SPM, which is not read: make .nii of it with SPM or nibabel, \
             or move the .mat file away to use the header's origin",
            placed.display()
        );
        return Err(Error::unsupported(path, what));
    }
    let dtype = facts.dtype(path, &mut problems)?;
    let lengths = facts.lengths(&mut problems);
    let offset = facts.offset(&mut problems);
    let geometry = facts.geometry(&mut problems);
    problems.check(path, facts.name)?;
    let [x, y, z, rest @ ..] = lengths;
    // The fourth dimension is time; later dimensions vary more slowly.
    let [time, slower @ ..] = rest;
    let is_time = facts.uses(3) && (time == 1 || slower == [1; 3]);
    let channels = rest
        .iter()
        .try_fold(1_u64, |product, &n| product.checked_mul(n));
    let channels = channels.ok_or_else(|| Error::TooLarge {
        path: path.to_path_buf(),
        channels: u64::MAX,
        shape: [z, y, x],
        dtype,
    })?;
    let is_rgb = facts.datatype == RGB;
    if is_rgb && channels > 1 {
        let what = "NIfTI voxels that are colors (datatype 128) are only read in three dimensions";
        return Err(Error::unsupported(path, what));
    }
    let header = FlatHeader {
        channels: if is_rgb { 3 } else { channels },
        time_points: (is_time && !is_rgb).then_some(time),
        order: if is_rgb { INTERLEAVED } else { PLANAR },
        big_endian: facts.big_endian,
        data: facts.pair.then(|| super::with_extension(path, "img")),
        start: DataStart::byte(offset),
        geometry,
        rescale: Rescale::new(facts.rescale[0], facts.rescale[1]),
        axes: if is_rgb {
            facts.colors()
        } else {
            facts.axes(rest)
        },
        ..FlatHeader::new(facts.format, [z, y, x], dtype, 0)
    };
    header.checked(path, facts.name)
}

/// The position of a volume and the conversion of its voxels, from a header without voxels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) struct NiftiPlace {
    pub(in super::super) geometry: Geometry,
    /// Millimeters of the header's unit of length.
    pub(in super::super) factor: f64,
    pub(in super::super) rescale: Option<Rescale>,
}

/// Reads a header without voxels, as NIfTI-Zarr has it. Its magic may be `nz1` or `nz2`, too, and its lengths and type are
/// not used.
pub(in super::super) fn place(path: &Path, bytes: &[u8]) -> Result<NiftiPlace> {
    let mut bytes = bytes.to_vec();
    for (at, magic) in [(344, b"nz1"), (4, b"nz2")] {
        if bytes.get(at..at + 3) == Some(magic) {
            bytes[at + 1] = b'+';
        }
    }
    let facts = Facts::read(path, &bytes);
    let facts = facts.map_err(|problem| Error::header(path, "NIfTI", problem))?;
    let mut problems = Problems::default();
    let geometry = facts.geometry(&mut problems);
    problems.check(path, facts.name)?;
    Ok(NiftiPlace {
        geometry,
        factor: facts.unit.unwrap_or(1.0),
        rescale: Rescale::new(facts.rescale[0], facts.rescale[1]),
    })
}

/// Returns the millimeters per unit of length in `xyzt_units`; an unspecified unit means millimeters.
fn unit(code: i64) -> Result<f64, String> {
    match code & 7 {
        0 | 2 => Ok(1.0),
        1 => Ok(1e3),
        3 => Ok(1e-3),
        unknown => Err(format!(
            "xyzt_units {code} says that lengths are in unit {unknown}, which is not one of 0 to 3"
        )),
    }
}

/// The codes of time units in `xyzt_units`, with their OME-Zarr names.
pub(super) const CLOCKS: [(i64, &str); 3] =
    [(8, "second"), (16, "millisecond"), (24, "microsecond")];

fn clock(code: i64) -> Option<&'static str> {
    let found = CLOCKS.iter().find(|(own, _)| *own == code & 0x38);
    found.map(|&(_, name)| name)
}

/// Returns `true` if the columns for x, y and z do not span 3-D space.
fn is_flat(rows: &[[f64; 4]; 3]) -> bool {
    let mut affine: Affine = [[0.0, 0.0, 0.0, 1.0]; 4];
    affine[..3].copy_from_slice(rows);
    let geometry = Geometry {
        affine,
        ..Geometry::default()
    };
    affine.iter().flatten().all(|value| value.is_finite()) && !geometry.is_sound()
}

/// Returns `true` if a file is named like the header or the voxels of a pair.
fn is_pair_name(path: &Path) -> bool {
    let end = path.extension().unwrap_or_default();
    end.eq_ignore_ascii_case("hdr") || end.eq_ignore_ascii_case("img")
}

impl Facts {
    fn read(path: &Path, bytes: &[u8]) -> Result<Self, String> {
        let first = bytes.first_chunk::<4>().ok_or("the file ends inside it")?;
        let sizes = [i32::from_le_bytes(*first), i32::from_be_bytes(*first)];
        let (second, big_endian) = match sizes {
            [348, _] => (false, false),
            [_, 348] => (false, true),
            [540, _] => (true, false),
            [_, 540] => (true, true),
            [size, _] => return Err(format!("sizeof_hdr is {size}, not 348 or 540")),
        };
        let size = SIZES[usize::from(second)];
        let bytes = bytes
            .get(..size)
            .ok_or_else(|| format!("it has {} bytes, {size} are needed", bytes.len()))?;
        let fields = NiftiFields { bytes, big_endian };
        let facts = if second {
            Self::second(&fields)
        } else {
            Self::first(&fields)
        };
        let magic = if second {
            &bytes[4..12]
        } else {
            &bytes[344..348]
        };
        match (second, magic) {
            (false, b"n+1\0") | (true, b"n+2\0\r\n\x1a\n") => Ok(facts),
            (false, b"ni1\0") | (true, b"ni2\0\r\n\x1a\n") => Ok(Self {
                pair: true,
                ..facts
            }),
            // Analyze files are recognized by name only; they have no magic bytes.
            (false, _) if is_pair_name(path) => Ok(facts.into_analyze(&fields)),
            (false, _) => Err(format!(
                "magic {:?} is neither n+1 nor ni1 (an Analyze header is named .hdr)",
                magic.escape_ascii().to_string()
            )),
            (true, _) => Err(format!(
                "magic {:?} is neither n+2 nor ni2 (a transfer as text damages it)",
                magic.escape_ascii().to_string()
            )),
        }
    }

    fn first(fields: &NiftiFields<'_>) -> Self {
        let floats = |at: usize| std::array::from_fn(|i| fields.f32(at + 4 * i));
        Self {
            name: "NIfTI-1",
            format: Format::Nifti1,
            big_endian: fields.big_endian,
            pair: false,
            dim: std::array::from_fn(|i| fields.i16(40 + 2 * i)),
            datatype: fields.i16(70),
            unit: unit(i64::from(fields.bytes[123])),
            clock: clock(i64::from(fields.bytes[123])),
            pixdim: std::array::from_fn(|i| fields.f32(76 + 4 * i)),
            vox_offset: fields.f32(108),
            rescale: [fields.f32(112), fields.f32(116)],
            codes: [fields.i16(252), fields.i16(254)],
            quatern: floats(256),
            qoffset: floats(268),
            srow: std::array::from_fn(|row| {
                std::array::from_fn(|i| fields.f32(280 + 16 * row + 4 * i))
            }),
            center: None,
        }
    }

    /// Reinterprets the fields as Analyze 7.5: no sform or qform, a word for the unit, and SPM's origin.
    fn into_analyze(self, fields: &NiftiFields<'_>) -> Self {
        let word = String::from_utf8_lossy(&fields.bytes[56..60]);
        let word = word.split('\0').next().unwrap_or_default();
        let center = std::array::from_fn(|axis| {
            let at = i16::from_le_bytes(fields.get(253 + 2 * axis));
            f64::from(at)
        });
        // The same check as in nibabel: other programs store other values there.
        let near = (0..3).all(|axis| {
            #[expect(clippy::cast_precision_loss, reason = "i16")]
            let length = self.dim[axis + 1] as f64;
            center[axis] > -length && center[axis] < 2.0 * length
        });
        let said = near && center.iter().any(|&n| n != 0.0);
        Self {
            name: "Analyze 7.5",
            format: Format::Analyze,
            pair: true,
            unit: units::unit(word)
                .map(units::Unit::factor)
                .ok_or_else(|| units::unknown(word)),
            clock: None,
            codes: [0; 2],
            center: said.then_some(center),
            ..self
        }
    }

    fn second(fields: &NiftiFields<'_>) -> Self {
        let floats = |at: usize| std::array::from_fn(|i| fields.f64(at + 8 * i));
        #[expect(
            clippy::cast_precision_loss,
            reason = "an offset beyond 2^53 is refused"
        )]
        let vox_offset = fields.i64(168) as f64;
        Self {
            name: "NIfTI-2",
            format: Format::Nifti2,
            big_endian: fields.big_endian,
            pair: false,
            dim: std::array::from_fn(|i| fields.i64(16 + 8 * i)),
            datatype: fields.i16(12),
            unit: unit(fields.i32(500)),
            clock: clock(fields.i32(500)),
            pixdim: std::array::from_fn(|i| fields.f64(104 + 8 * i)),
            vox_offset,
            rescale: [fields.f64(176), fields.f64(184)],
            codes: [fields.i32(344), fields.i32(348)],
            quatern: floats(352),
            qoffset: floats(376),
            srow: std::array::from_fn(|row| {
                std::array::from_fn(|i| fields.f64(400 + 32 * row + 8 * i))
            }),
            center: None,
        }
    }

    fn dtype(&self, path: &Path, problems: &mut Problems) -> Result<DType> {
        let other = match self.datatype {
            1 => "single bits",
            32 | 1792 | 2048 => "complex numbers",
            2304 => "colors with transparency",
            1536 => "128-bit floats",
            _ => "",
        };
        if !other.is_empty() {
            let what = format!(
                "NIfTI voxels that are {other} (datatype {}) are not read",
                self.datatype
            );
            return Err(Error::unsupported(path, what));
        }
        Ok(match self.datatype {
            2 | RGB => DType::U8,
            4 => DType::I16,
            8 => DType::I32,
            16 => DType::F32,
            64 => DType::F64,
            256 => DType::I8,
            512 => DType::U16,
            768 => DType::U32,
            1024 => DType::I64,
            1280 => DType::U64,
            code => {
                problems.add(format!("datatype {code} is unknown"));
                DType::U8
            }
        })
    }

    /// Returns the axes of voxels that are colors.
    fn colors(&self) -> Axes {
        Axes {
            leading: vec![LeadingAxis::new(AxisKind::Channel, 3)],
            channel_names: ["red", "green", "blue"].map(str::to_owned).to_vec(),
            ..self.axes([1; 4])
        }
    }

    /// Returns all seven lengths, x first; those that the header does not use are 1.
    fn lengths(&self, problems: &mut Problems) -> [u64; 7] {
        let mut lengths = [1; 7];
        let Some(used) = usize::try_from(self.dim[0])
            .ok()
            .filter(|n| (1..=7).contains(n))
        else {
            problems.add(format!("dim[0] is {}, not 1 to 7", self.dim[0]));
            return lengths;
        };
        for (axis, target) in lengths.iter_mut().enumerate().take(used) {
            let length = self.dim[axis + 1];
            match u64::try_from(length) {
                Ok(length) if length > 0 => *target = length,
                // Some writers count an axis and then leave it empty.
                Ok(0) if axis >= 3 => {}
                _ => problems.add(format!("dim[{}] is {length}, not above 0", axis + 1)),
            }
        }
        lengths
    }

    /// Returns the axes in front of z, y and x. The fourth dimension is time, the fifth channels; each varies faster
    /// than the next.
    fn axes(&self, [time, channels, more @ ..]: [u64; 4]) -> Axes {
        let mut leading: Vec<LeadingAxis> = Vec::new();
        for (n, length) in more.into_iter().enumerate().rev() {
            leading.push(LeadingAxis {
                name: format!("n{}", n + 6),
                ..LeadingAxis::new(AxisKind::Other, length)
            });
        }
        leading.push(LeadingAxis::new(AxisKind::Channel, channels));
        let step = self.pixdim[4];
        leading.push(LeadingAxis {
            step: if step.is_finite() && step > 0.0 {
                step
            } else {
                1.0
            },
            unit: self.clock.map(str::to_owned),
            ..LeadingAxis::new(AxisKind::Time, time)
        });
        leading.retain(|axis| axis.length > 1);
        let unit = self.unit.as_ref().ok().and_then(|&factor| {
            let name = units::name(factor)?.to_owned();
            Some((name, factor))
        });
        Axes {
            leading,
            unit,
            ..Axes::default()
        }
    }

    fn offset(&self, problems: &mut Problems) -> u64 {
        let least = match (self.pair, self.format) {
            (true, _) => 0,
            (_, Format::Nifti2) => 544,
            _ => 352,
        };
        let offset = self.vox_offset;
        let whole = offset.is_finite() && offset.fract() == 0.0 && (0.0..9e15).contains(&offset);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number below 2^53"
        )]
        let bytes = if whole { offset as u64 } else { 0 };
        if !whole || bytes < least {
            problems.add(format!(
                "vox_offset is {offset}, not a whole number from {least} on"
            ));
        }
        bytes
    }

    fn geometry(&self, problems: &mut Problems) -> Geometry {
        let factor = self.unit.clone().unwrap_or_else(|problem| {
            problems.add(problem);
            1.0
        });
        let (name, rows) = self.form();
        let mut affine: Affine = [[0.0, 0.0, 0.0, 1.0]; 4];
        affine[..3].copy_from_slice(&rows);
        if !affine.iter().flatten().all(|value| value.is_finite()) {
            problems.add(format!("{name} is not finite"));
            return Geometry::default();
        }
        let mut geometry = Geometry::from_affine(affine);
        // Adding 0.0 replaces -0.0, which would only look odd.
        geometry.affine = geometry.affine.map(|row| row.map(|value| value + 0.0));
        for axis in 0..3 {
            let spacing = self.pixdim[axis + 1].abs();
            let measured = &mut geometry.spacing[2 - axis];
            if self.uses(axis) && spacing.is_finite() && spacing > 0.0 {
                *measured = spacing;
            } else if !(measured.is_finite() && *measured > 0.0) {
                *measured = 1.0;
            }
        }
        geometry.scaled(factor)
    }

    /// Returns the name and the rows of the affine that applies.
    fn form(&self) -> (&'static str, [[f64; 4]; 3]) {
        let [qform, sform] = self.codes;
        let srow = self.with_normal(self.srow);
        let says = |rows: &[[f64; 4]; 3]| rows.iter().any(|row| row[..3].iter().any(|&n| n != 0.0));
        if sform > 0 && says(&srow) && (qform <= 0 || !is_flat(&srow)) {
            ("sform", srow)
        } else if qform > 0 {
            ("qform", self.qform())
        } else {
            ("pixdim", self.middle())
        }
    }

    /// Fills an empty third column with the normal of the other two if the image has a single slice.
    fn with_normal(&self, mut rows: [[f64; 4]; 3]) -> [[f64; 4]; 3] {
        let column = |rows: &[[f64; 4]; 3], column: usize| rows.map(|row| row[column]);
        let single = !self.uses(2) || self.dim[3] == 1;
        if !single || column(&rows, 2).iter().any(|&n| n != 0.0) {
            return rows;
        }
        let normal = cross(column(&rows, 0), column(&rows, 1));
        let length = normal.iter().map(|n| n * n).sum::<f64>().sqrt();
        if length > 0.0 {
            let zoom = self.zoom(2);
            for (row, value) in rows.iter_mut().zip(normal) {
                row[2] = value / length * zoom;
            }
        }
        rows
    }

    /// Returns the rows of the affine that the quaternion defines.
    #[expect(clippy::many_single_char_names, reason = "the standard's names")]
    fn qform(&self) -> [[f64; 4]; 3] {
        let [b, c, d] = self.quatern;
        let rest = 1.0 - (b * b + c * c + d * d);
        let threshold = if self.format == Format::Nifti2 {
            3.0 * f64::EPSILON
        } else {
            3.0 * f64::from(f32::EPSILON)
        };
        let a = if rest < threshold { 0.0 } else { rest.sqrt() };
        // Twice the inverse squared norm, so that a quaternion lengthened by rounding is still a rotation.
        let s = 2.0 / (a * a + b * b + c * c + d * d);
        let turn = [
            [
                1.0 - s * (c * c + d * d),
                s * (b * c - a * d),
                s * (b * d + a * c),
            ],
            [
                s * (b * c + a * d),
                1.0 - s * (b * b + d * d),
                s * (c * d - a * b),
            ],
            [
                s * (b * d - a * c),
                s * (c * d + a * b),
                1.0 - s * (b * b + c * c),
            ],
        ];
        let flip = if self.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
        let zoom = [self.zoom(0), self.zoom(1), self.zoom(2) * flip];
        std::array::from_fn(|row| {
            let [x, y, z] = std::array::from_fn(|column| turn[row][column] * zoom[column]);
            [x, y, z, self.qoffset[row]]
        })
    }

    /// Returns nibabel's fallback affine: x to the left, and the volume's center (or SPM's origin) at the world's
    /// origin.
    fn middle(&self) -> [[f64; 4]; 3] {
        std::array::from_fn(|axis| {
            let used = self.uses(axis);
            #[expect(clippy::cast_precision_loss, reason = "millimeters, not indices")]
            let last = if used {
                self.dim[axis + 1].saturating_sub(1) as f64
            } else {
                0.0
            };
            let sign = if axis == 0 { -1.0 } else { 1.0 };
            let zoom = sign * if used { self.zoom(axis) } else { 1.0 };
            let middle = self.center.map_or(last / 2.0, |center| center[axis] - 1.0);
            let mut row = [0.0; 4];
            row[axis] = zoom;
            row[3] = 0.0 - middle * zoom;
            row
        })
    }

    /// Returns `true` if the image has the axis x, y or z; a 2-D image has no z.
    fn uses(&self, axis: usize) -> bool {
        i64::try_from(axis).is_ok_and(|axis| axis < self.dim[0])
    }

    /// Returns the spacing along x, y or z, or 1 if the header has none.
    fn zoom(&self, axis: usize) -> f64 {
        let length = self.pixdim[axis + 1].abs();
        if length > 0.0 { length } else { 1.0 }
    }
}
