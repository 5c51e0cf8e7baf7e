//! The header of a MetaImage: `.mhd` with a separate file of voxels, or `.mha` with both in one file.
//!
//! MetaImage coordinates are LPS; the resulting geometry is RAS+, as everywhere in this crate.

use std::path::Path;

use super::row::{CreatedExtension, FileFormat, VoxelStorage};
use super::writing::{fourth, lps, native_is_big};
use super::{
    DataStart, Encoding, FlatHeader, INTERLEAVED, MOST_FIELDS, PLANAR, Problems, excerpt, finite,
    line, numbers, pieces,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::volume::{Axes, AxisKind, Format, Layout, LeadingAxis, Rescale, units};

const NAME: &str = "MetaImage";

/// MetaImage files.
pub(super) const FORMAT: FileFormat = FileFormat {
    extensions: &[".mhd", ".mha"],
    outputs: &[
        CreatedExtension::new(".mhd", VoxelStorage::Detached),
        CreatedExtension::new(".mha", VoxelStorage::Attached),
    ],
    // The first field may be a comment.
    replaces: |head| recognize(head) || parse(Path::new("output"), head).is_ok(),
    is_whole,
    ..FileFormat::new(
        NAME,
        "a MetaImage file",
        &[Format::MetaImage],
        recognize,
        parse,
        encode,
    )
};

/// The comment in our files that marks the fourth dimension as channels instead of time.
const FOURTH_IS_CHANNELS: &str = "the fourth dimension is channels";

/// The fields up to `ElementDataFile`, the last, in file order.
struct MetaImageFields {
    pairs: Vec<(String, String)>,
    /// The byte after the last field's line.
    end: u64,
}

impl MetaImageFields {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut pairs = Vec::new();
        let mut at = 0;
        while let Some((text, next)) = line(bytes, at) {
            at = next;
            let text = String::from_utf8_lossy(text);
            if text.trim().is_empty() {
                continue;
            }
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| format!("{:?} is not a field", excerpt(&text)))?;
            let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
            // An ultrasound sequence has several such fields for each frame.
            if key.starts_with("Seq_Frame") {
                continue;
            }
            let last = key == "ElementDataFile";
            if pairs.len() == MOST_FIELDS {
                return Err(format!("it has more than {MOST_FIELDS} fields"));
            }
            pairs.push((key, value));
            if last {
                return Ok(Self {
                    pairs,
                    end: next as u64,
                });
            }
        }
        Err("ElementDataFile is missing".to_owned())
    }

    /// Returns the value of the first of these names that is present.
    fn get(&self, names: &[&str]) -> Option<&str> {
        let find = |name| self.pairs.iter().rev().find(|(key, _)| key == name);
        names.iter().find_map(find).map(|(_, value)| value.as_str())
    }

    fn is_true(&self, names: &[&str], default: bool) -> bool {
        self.get(names)
            .map_or(default, |value| value.starts_with(['T', 't', '1']))
    }
}

/// Returns `true` if the header's final field is present.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    lines.any(|line| line.trim_ascii_start().starts_with(b"ElementDataFile"))
}

/// Returns `true` if `bytes` begin like a MetaImage header.
pub(super) fn recognize(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_start();
    [&b"ObjectType"[..], b"NDims"].iter().any(|key| {
        text.strip_prefix(*key)
            .is_some_and(|rest| rest.trim_ascii_start().starts_with(b"="))
    })
}

/// Reads the header at the start of `bytes`.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<FlatHeader> {
    let fields =
        MetaImageFields::read(bytes).map_err(|problem| Error::header(path, NAME, problem))?;
    supported(path, &fields)?;
    let mut problems = Problems::default();
    let dims = fields
        .get(&["NDims"])
        .and_then(|value| value.parse::<usize>().ok());
    if !dims.is_some_and(|n| (2..=4).contains(&n)) {
        problems.add(format!(
            "NDims is {:?}, not 2, 3 or 4",
            excerpt(fields.get(&["NDims"]).unwrap_or("missing"))
        ));
    }
    let dims = dims.filter(|n| (2..=4).contains(n)).unwrap_or(3);
    let [x, y, z, t] = lengths(&fields, dims, &mut problems);
    let dtype = dtype(&fields, &mut problems);
    let number = |name: &'static str, problems: &mut Problems, default: i64| {
        let value = fields.get(&[name]).unwrap_or_default();
        if value.is_empty() {
            return default;
        }
        value.parse().unwrap_or_else(|_| {
            problems.add(format!(
                "{name} is {:?}, not a whole number",
                excerpt(value)
            ));
            default
        })
    };
    let beside = u64::try_from(number("ElementNumberOfChannels", &mut problems, 1)).unwrap_or(0);
    let start = number("HeaderSize", &mut problems, 0);
    let geometry = geometry(&fields, dims, &mut problems);
    let compressed = fields.is_true(&["CompressedData"], false);
    let file = fields.get(&["ElementDataFile"]).unwrap_or_default();
    let local = file.eq_ignore_ascii_case("local");
    let several = if pieces::is_several(file) {
        let lines = bytes.get(usize::try_from(fields.end).unwrap_or(0)..);
        let slices = [x, y, z, t][dims - 1];
        pieces::names(file, lines.unwrap_or_default(), slices).unwrap_or_else(|problem| {
            problems.add(problem);
            Vec::new()
        })
    } else {
        Vec::new()
    };
    let start = match (start, u64::try_from(start)) {
        (0, _) => DataStart::byte(if local { fields.end } else { 0 }),
        (_, Ok(bytes)) => DataStart::byte(bytes),
        (-1, _) => DataStart::End,
        _ => {
            problems.add(format!("HeaderSize is {start}, not -1 or more"));
            DataStart::End
        }
    };
    if dims == 4 && beside > 1 {
        problems.add("ElementNumberOfChannels and a fourth dimension exclude each other");
    }
    problems.check(path, NAME)?;
    if compressed && !several.is_empty() {
        let what = "compressed voxels in several files are not read";
        return Err(Error::unsupported(path, what));
    }
    if compressed && start == DataStart::End {
        let what = "HeaderSize = -1 of compressed data is not read";
        return Err(Error::unsupported(path, what));
    }
    let channels = if dims == 4 { t } else { beside };
    let leading = leading(&fields, dims, channels);
    let real = |name| fields.get(&[name]).and_then(|value| value.parse().ok());
    let header = FlatHeader {
        channels,
        time_points: (leading.kind == AxisKind::Time).then_some(t),
        big_endian: fields.is_true(&["ElementByteOrderMSB", "BinaryDataByteOrderMSB"], false),
        order: if beside > 1 { INTERLEAVED } else { PLANAR },
        encoding: if compressed {
            Encoding::Zlib
        } else {
            Encoding::Raw
        },
        data: (!local).then(|| several.first().map_or(file, String::as_str).to_owned()),
        pieces: several,
        start,
        geometry,
        rescale: Rescale::new(
            real("ElementToIntensityFunctionSlope").unwrap_or(1.0),
            real("ElementToIntensityFunctionOffset").unwrap_or(0.0),
        ),
        axes: Axes {
            leading: (channels > 1).then_some(leading).into_iter().collect(),
            ..Axes::default()
        },
        ..FlatHeader::new(Format::MetaImage, [z, y, x], dtype, 0)
    };
    header.checked(path, NAME)
}

/// Returns the axis in front of z, y and x: the fourth dimension (time, unless the file marks it as channels), or the
/// channels of each voxel.
fn leading(fields: &MetaImageFields, dims: usize, length: u64) -> LeadingAxis {
    let is_time = dims == 4 && fields.get(&["Comment"]) != Some(FOURTH_IS_CHANNELS);
    let kind = if is_time {
        AxisKind::Time
    } else {
        AxisKind::Channel
    };
    let steps = fields
        .get(&["ElementSpacing", "ElementSize"])
        .and_then(finite);
    let step = steps.and_then(|steps| steps.get(3).copied());
    LeadingAxis {
        step: step.filter(|&step| step > 0.0).unwrap_or(1.0),
        ..LeadingAxis::new(kind, length)
    }
}

/// Returns an error for valid files that are not supported here.
fn supported(path: &Path, fields: &MetaImageFields) -> Result<()> {
    if !fields.is_true(&["BinaryData"], true) {
        return Err(Error::unsupported(
            path,
            "voxels written as text (BinaryData = False) are not read",
        ));
    }
    match fields.get(&["ObjectType"]) {
        None | Some("Image") => Ok(()),
        Some(other) => {
            let what = format!("ObjectType is {:?}: only Image is read", excerpt(other));
            Err(Error::unsupported(path, what))
        }
    }
}

/// Returns the lengths along x, y, z and the fourth dimension; 1 for absent dimensions.
fn lengths(fields: &MetaImageFields, dims: usize, problems: &mut Problems) -> [u64; 4] {
    let text = fields.get(&["DimSize"]).unwrap_or("missing");
    let mut lengths = [1; 4];
    match numbers::<u64>(text).filter(|found| found.len() == dims && !found.contains(&0)) {
        Some(found) => lengths[..dims].copy_from_slice(&found),
        None => problems.add(format!(
            "DimSize is {:?}, not {dims} whole numbers above 0",
            excerpt(text)
        )),
    }
    lengths
}

fn dtype(fields: &MetaImageFields, problems: &mut Problems) -> DType {
    match fields.get(&["ElementType"]) {
        Some("MET_CHAR") => DType::I8,
        Some("MET_UCHAR") => DType::U8,
        Some("MET_SHORT") => DType::I16,
        Some("MET_USHORT") => DType::U16,
        // MetaIO's long has 4 bytes on every machine.
        Some("MET_INT" | "MET_LONG") => DType::I32,
        Some("MET_UINT" | "MET_ULONG") => DType::U32,
        Some("MET_LONG_LONG") => DType::I64,
        Some("MET_ULONG_LONG") => DType::U64,
        Some("MET_FLOAT") => DType::F32,
        Some("MET_DOUBLE") => DType::F64,
        other => {
            let shown = excerpt(other.unwrap_or("missing"));
            problems.add(format!(
                "ElementType is {shown:?}, which is not a voxel type"
            ));
            DType::U8
        }
    }
}

fn geometry(fields: &MetaImageFields, dims: usize, problems: &mut Problems) -> Geometry {
    let mut read = |names: &[&str], count: usize| -> Option<Vec<f64>> {
        let text = fields.get(names)?;
        let values = finite(text).filter(|values| values.len() == count);
        if values.is_none() {
            problems.add(format!(
                "{} is {:?}, not {count} numbers",
                names[0],
                excerpt(text)
            ));
        }
        values
    };
    let spacing = read(&["ElementSpacing", "ElementSize"], dims);
    let origin = read(&["Offset", "Position", "Origin"], dims);
    let matrix = read(&["TransformMatrix", "Rotation", "Orientation"], dims * dims);
    let used = dims.min(3);
    let mut columns = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let mut first = [0.0; 3];
    let mut lengths = [1.0; 3];
    for axis in 0..used {
        if let Some(matrix) = &matrix {
            // Each row of the matrix is the direction of one axis.
            columns[axis] = [0.0; 3];
            columns[axis][..used].copy_from_slice(&matrix[axis * dims..axis * dims + used]);
        }
        if let Some(spacing) = &spacing {
            lengths[axis] = spacing[axis];
        }
        first[axis] = origin.as_ref().map_or(0.0, |origin| origin[axis]);
    }
    for (column, length) in columns.iter_mut().zip(lengths) {
        *column = column.map(|value| value * length);
    }
    let mut geometry = Geometry::from_lps(columns, first);
    // Exact, whereas the lengths of the columns are rounded. A spacing of 0 is refused by the check.
    geometry.spacing = [lengths[2], lengths[1], lengths[0]];
    geometry.is_known = spacing.is_some() || origin.is_some() || matrix.is_some();
    let word = fields.get(&["DistanceUnits"]).unwrap_or_default();
    let unit = units::unit(word);
    if unit.is_none() {
        problems.add(units::unknown(word));
    }
    geometry.scaled(unit.map_or(1.0, units::Unit::factor))
}

/// Returns the header of a MetaImage whose voxels follow it, or are in the separate file `data`.
///
/// # Errors
///
/// [`Error::Unsupported`] for voxel types and geometries that MetaImage does not have.
fn encode(layout: &mut Layout, data: Option<&str>) -> Result<Vec<u8>> {
    let name = match layout.dtype {
        DType::Bool | DType::U8 => "MET_UCHAR",
        DType::I8 => "MET_CHAR",
        DType::U16 => "MET_USHORT",
        DType::I16 => "MET_SHORT",
        DType::U32 => "MET_UINT",
        DType::I32 => "MET_INT",
        DType::U64 => "MET_ULONG_LONG",
        DType::I64 => "MET_LONG_LONG",
        DType::F32 => "MET_FLOAT",
        DType::F64 => "MET_DOUBLE",
        DType::F16 => return Err(Error::no_float16(&layout.path, "MetaImage")),
    };
    let (columns, origin) = lps(layout, "MetaImage")?;
    let [z, y, x] = layout.shape;
    let [dz, dy, dx] = layout.geometry.spacing;
    let (mut sizes, mut spacing, mut offset) = (vec![x, y, z], vec![dx, dy, dz], origin.to_vec());
    let mut rows: Vec<Vec<f64>> = columns
        .into_iter()
        .zip([dx, dy, dz])
        .map(|(column, length)| column.map(|value| quotient(value, length)).to_vec())
        .collect();
    let fourth = fourth(layout, "MetaImage")?;
    let mut comment = String::new();
    if let Some(axis) = &fourth {
        if axis.kind != AxisKind::Time {
            comment = format!("Comment = {FOURTH_IS_CHANNELS}\n");
        }
        sizes.push(layout.channels);
        spacing.push(axis.step);
        offset.push(0.0);
        for row in &mut rows {
            row.push(0.0);
        }
        rows.push(vec![0.0, 0.0, 0.0, 1.0]);
    }
    let rescale = layout.rescale.map_or(String::new(), |rescale| {
        format!(
            "ElementToIntensityFunctionSlope = {}\nElementToIntensityFunctionOffset = {}\n",
            rescale.slope, rescale.intercept
        )
    });
    let text = format!(
        "{comment}ObjectType = Image\nNDims = {}\nBinaryData = True\nBinaryDataByteOrderMSB = {}\n\
         CompressedData = False\nTransformMatrix = {}\nOffset = {}\nElementSpacing = {}\n\
         DimSize = {}\n{rescale}ElementType = {name}\nElementDataFile = {}\n",
        sizes.len(),
        if native_is_big() { "True" } else { "False" },
        words(&rows.concat()),
        words(&offset),
        words(&spacing),
        words(&sizes),
        data.unwrap_or("LOCAL"),
    );
    Ok(text.into_bytes())
}

fn words<T: ToString>(values: &[T]) -> String {
    let words: Vec<String> = values.iter().map(T::to_string).collect();
    words.join(" ")
}

/// Returns the number that gives `value` when multiplied by `length`, exactly if such a number exists.
#[expect(clippy::float_cmp, reason = "to the last bit")]
fn quotient(value: f64, length: f64) -> f64 {
    let near = value / length;
    let candidates = [near, near.next_up(), near.next_down()];
    let exact = candidates.into_iter().find(|n| n * length == value);
    exact.unwrap_or(near)
}
