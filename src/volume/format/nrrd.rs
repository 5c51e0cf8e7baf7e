//! The header of an NRRD file: `.nrrd` with the voxels, or `.nhdr` with separate files of voxels.
//!
//! Supports raw and gzip encodings, two or three spatial axes, and at most one channel axis, which must be the first or
//! the last. The resulting geometry is RAS+, regardless of the file's space.

mod encode;

use std::path::Path;

use super::row::{CreatedExtension, FileFormat, VoxelStorage};
use super::{
    DataStart, Encoding, FlatHeader, INTERLEAVED, MOST_FIELDS, PLANAR, Problems, excerpt, finite,
    line, numbers, pieces,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::volume::{AxisKind, Format, LeadingAxis, units};

const NAME: &str = "NRRD";

/// NRRD files.
pub(super) const FORMAT: FileFormat = FileFormat {
    extensions: &[".nrrd", ".nhdr"],
    outputs: &[CreatedExtension::new(".nrrd", VoxelStorage::Attached)],
    ..FileFormat::new(
        NAME,
        "an NRRD file",
        &[Format::Nrrd],
        |head| head.starts_with(MAGIC),
        parse,
        encode::encode,
    )
};

/// The first bytes of every NRRD file; a version digit follows.
const MAGIC: &[u8] = b"NRRD000";

/// The fields, with names in lower case, and the byte where the voxels of an attached header begin.
struct NrrdFields {
    pairs: Vec<(String, String)>,
    /// `None` if the header does not end with a blank line.
    end: Option<u64>,
}

impl NrrdFields {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let (magic, mut at) = line(bytes, 0).ok_or("the file is empty")?;
        if !matches!(
            magic.strip_prefix(MAGIC),
            Some(b"1" | b"2" | b"3" | b"4" | b"5")
        ) {
            return Err("the first line is not NRRD0001 to NRRD0005".to_owned());
        }
        let mut fields = Self {
            pairs: Vec::new(),
            end: None,
        };
        while let Some((text, next)) = line(bytes, at) {
            at = next;
            if text.is_empty() {
                fields.end = Some(next as u64);
                break;
            }
            let text = String::from_utf8_lossy(text);
            if text.starts_with('#') {
                continue;
            }
            let (key, value) = match text.split_once(':') {
                // Custom key/value pairs, `key:=value`.
                Some((_, value)) if value.starts_with('=') => continue,
                Some((key, value)) => (key.trim().to_lowercase(), value.trim().to_owned()),
                None => return Err(format!("{:?} is not a field", excerpt(&text))),
            };
            if fields.pairs.len() == MOST_FIELDS {
                return Err(format!("it has more than {MOST_FIELDS} fields"));
            }
            if fields.get(&[&key]).is_some() {
                return Err(format!("field {:?} appears twice", excerpt(&key)));
            }
            // The lines after a list field are file names.
            let ends =
                matches!(key.as_str(), "data file" | "datafile") && value.starts_with("LIST");
            fields.pairs.push((key, value));
            if ends {
                fields.end = Some(next as u64);
                break;
            }
        }
        Ok(fields)
    }

    fn get(&self, names: &[&str]) -> Option<&str> {
        let found = self
            .pairs
            .iter()
            .find(|(key, _)| names.contains(&key.as_str()));
        found.map(|(_, value)| value.as_str())
    }
}

/// Reads the header at the start of `bytes`.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<FlatHeader> {
    let fields = NrrdFields::read(bytes).map_err(|problem| Error::header(path, NAME, problem))?;
    let mut problems = Problems::default();
    let encoding = encoding(path, &fields, &mut problems)?;
    let data = fields.get(&["data file", "datafile"]).map(str::to_owned);
    let dtype = dtype(path, &fields, &mut problems)?;
    let sizes = sizes(&fields, &mut problems);
    let big_endian = big_endian(&fields, dtype, &mut problems);
    let skips = skips(&fields, &mut problems);
    let from = match (&data, fields.end) {
        (Some(_), _) => 0,
        (None, Some(end)) => end,
        (None, None) => {
            problems.add("it does not end with a blank line");
            0
        }
    };
    problems.check(path, NAME)?;
    let axes = AxisRoles::find(path, &fields, &sizes)?;
    let geometry = geometry(&fields, &axes, sizes.len(), &mut problems);
    problems.check(path, NAME)?;
    let several = data.as_deref().filter(|name| pieces::is_several(name));
    let several = several.map(|name| {
        let lines = fields
            .end
            .and_then(|end| bytes.get(usize::try_from(end).ok()?..));
        pieces::names(name, lines.unwrap_or_default(), sizes[sizes.len() - 1])
    });
    let several = several.transpose();
    let several = several
        .map_err(|problem| Error::header(path, NAME, problem))?
        .unwrap_or_default();
    if encoding != Encoding::Raw && !several.is_empty() {
        let what =
            "compressed voxels in several files are not read: unpack them, and write encoding: raw";
        return Err(Error::unsupported(path, what));
    }
    let (lines, bytes) = skips;
    let (start, skip) = match u64::try_from(bytes) {
        Ok(bytes) => (DataStart::At { byte: from, lines }, bytes),
        Err(_) if encoding == Encoding::Raw => (DataStart::End, 0),
        Err(_) => {
            let what = "byte skip: -1 of compressed data is not read";
            return Err(Error::unsupported(path, what));
        }
    };
    let space: Vec<u64> = axes.space.iter().map(|&axis| sizes[axis]).collect();
    let header = FlatHeader {
        channels: axes.channels.map_or(1, |axis| sizes[axis]),
        time_points: axes
            .channels
            .filter(|_| axes.is_time)
            .map(|axis| sizes[axis]),
        big_endian,
        order: if axes.channels == Some(0) {
            INTERLEAVED
        } else {
            PLANAR
        },
        encoding,
        data: several.first().cloned().or(data),
        pieces: several,
        start,
        skip,
        geometry,
        axes: crate::volume::Axes {
            leading: axes.leading(&sizes),
            ..Default::default()
        },
        ..FlatHeader::new(
            Format::Nrrd,
            [space.get(2).copied().unwrap_or(1), space[1], space[0]],
            dtype,
            0,
        )
    };
    header.checked(path, NAME)
}

fn encoding(path: &Path, fields: &NrrdFields, problems: &mut Problems) -> Result<Encoding> {
    match fields.get(&["encoding"]).map(str::to_lowercase).as_deref() {
        Some("raw") => Ok(Encoding::Raw),
        Some("gzip" | "gz") => Ok(Encoding::Gzip),
        Some(other) => Err(Error::unsupported(
            path,
            format!(
                "encoding {:?} is not read: raw and gzip are",
                excerpt(other)
            ),
        )),
        None => {
            problems.add("encoding is missing");
            Ok(Encoding::Raw)
        }
    }
}

fn dtype(path: &Path, fields: &NrrdFields, problems: &mut Problems) -> Result<DType> {
    let Some(name) = fields.get(&["type"]) else {
        problems.add("type is missing");
        return Ok(DType::U8);
    };
    Ok(match name.to_lowercase().as_str() {
        "signed char" | "int8" | "int8_t" => DType::I8,
        "uchar" | "unsigned char" | "uint8" | "uint8_t" => DType::U8,
        "short" | "short int" | "signed short" | "signed short int" | "int16" | "int16_t" => {
            DType::I16
        }
        "ushort" | "unsigned short" | "unsigned short int" | "uint16" | "uint16_t" => DType::U16,
        "int" | "signed int" | "int32" | "int32_t" => DType::I32,
        "uint" | "unsigned int" | "uint32" | "uint32_t" => DType::U32,
        "longlong"
        | "long long"
        | "long long int"
        | "signed long long"
        | "signed long long int"
        | "int64"
        | "int64_t" => DType::I64,
        "ulonglong" | "unsigned long long" | "unsigned long long int" | "uint64" | "uint64_t" => {
            DType::U64
        }
        "float" => DType::F32,
        "double" => DType::F64,
        "block" => {
            let what = "voxels of type block are not read";
            return Err(Error::unsupported(path, what));
        }
        _ => {
            problems.add(format!("type {:?} is unknown", excerpt(name)));
            DType::U8
        }
    })
}

fn sizes(fields: &NrrdFields, problems: &mut Problems) -> Vec<u64> {
    let dimension = fields.get(&["dimension"]).unwrap_or("missing");
    let count = dimension.parse::<usize>().ok();
    let count = count.filter(|n| (1..=16).contains(n));
    if count.is_none() {
        problems.add(format!(
            "dimension is {:?}, not 1 to 16",
            excerpt(dimension)
        ));
    }
    let text = fields.get(&["sizes"]).unwrap_or("missing");
    let sizes = numbers::<u64>(text)
        .filter(|sizes| count.is_none_or(|n| sizes.len() == n) && !sizes.contains(&0));
    sizes.unwrap_or_else(|| {
        let count = count.map_or_else(String::new, |n| format!("{n} "));
        problems.add(format!(
            "sizes is {:?}, not {count}whole numbers above 0",
            excerpt(text)
        ));
        Vec::new()
    })
}

fn big_endian(fields: &NrrdFields, dtype: DType, problems: &mut Problems) -> bool {
    match fields.get(&["endian"]).map(str::to_lowercase).as_deref() {
        Some("little") => false,
        Some("big") => true,
        None if dtype.size() == 1 => false,
        other => {
            let shown = excerpt(other.unwrap_or("missing"));
            problems.add(format!("endian is {shown:?}, not little or big"));
            false
        }
    }
}

/// Returns the lines and bytes to skip. A byte count of -1 means that the voxels are at the end of the file.
fn skips(fields: &NrrdFields, problems: &mut Problems) -> (u64, i64) {
    let lines = fields.get(&["line skip", "lineskip"]).unwrap_or("0");
    let bytes = fields.get(&["byte skip", "byteskip"]).unwrap_or("0");
    let lines = lines.parse().unwrap_or_else(|_| {
        problems.add(format!("line skip is {:?}, not a number", excerpt(lines)));
        0
    });
    let bytes = bytes.parse().ok().filter(|&n| n >= -1).unwrap_or_else(|| {
        problems.add(format!("byte skip is {:?}, not -1 or more", excerpt(bytes)));
        0
    });
    (lines, bytes)
}

/// The roles of the axes: spatial, or channels.
struct AxisRoles {
    /// The axes x, y and, unless the image is 2-D, z.
    space: Vec<usize>,
    channels: Option<usize>,
    /// `true` if the channel axis is time.
    is_time: bool,
}

impl AxisRoles {
    /// Returns the axis that is not spatial, unless its length is 1.
    fn leading(&self, sizes: &[u64]) -> Vec<LeadingAxis> {
        let kind = if self.is_time {
            AxisKind::Time
        } else {
            AxisKind::Channel
        };
        let axis = self
            .channels
            .map(|axis| LeadingAxis::new(kind, sizes[axis]));
        axis.into_iter().filter(|axis| axis.length > 1).collect()
    }

    fn find(path: &Path, fields: &NrrdFields, sizes: &[u64]) -> Result<Self> {
        let count = sizes.len();
        let directions = fields
            .get(&["space directions"])
            .and_then(vectors)
            .filter(|found| found.len() == count);
        let kinds: Option<Vec<String>> = fields.get(&["kinds"]).map(|text| {
            let words = text.split_whitespace();
            words.map(str::to_lowercase).collect()
        });
        let kinds = kinds.filter(|kinds| kinds.len() == count);
        let is_space = |axis: usize| {
            if let Some(directions) = &directions {
                return directions[axis].is_some();
            }
            let kind = kinds.as_ref().map(|kinds| kinds[axis].as_str());
            // A fourth axis without a kind is time or channels.
            match kind {
                Some("domain" | "space") => true,
                Some("???" | "none") | None => axis < 3,
                Some(_) => false,
            }
        };
        let space: Vec<usize> = (0..count).filter(|&axis| is_space(axis)).collect();
        let others: Vec<usize> = (0..count).filter(|axis| !space.contains(axis)).collect();
        let channels = match others.as_slice() {
            [] => None,
            &[axis] if axis == 0 || axis == count - 1 => Some(axis),
            _ => {
                return Err(Error::unsupported(
                    path,
                    format!(
                        "axes {others:?} of {count} are not spatial: only one such axis is read, the first or the last"
                    ),
                ));
            }
        };
        let labels = fields.get(&["labels"]).unwrap_or_default();
        let labels: Vec<&str> = labels.split('"').skip(1).step_by(2).collect();
        let is_said = |axis: usize| {
            let kind = kinds.as_ref().map(|kinds| kinds[axis].as_str());
            kind == Some("time") || matches!(labels.get(axis), Some(&("t" | "time")))
        };
        // Four spatial axes: the last one is time.
        let (space, channels, is_time) = match (space.len(), channels) {
            (4, None) => (space[..3].to_vec(), Some(3), true),
            _ => (space, channels, channels.is_some_and(is_said)),
        };
        if !(2..=3).contains(&space.len()) {
            let what = format!("{} spatial axes are not read: 2 or 3 are", space.len());
            return Err(Error::unsupported(path, what));
        }
        Ok(Self {
            space,
            channels,
            is_time,
        })
    }
}

fn geometry(
    fields: &NrrdFields,
    axes: &AxisRoles,
    count: usize,
    problems: &mut Problems,
) -> Geometry {
    let mut columns = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let mut origin = [0.0; 3];
    if let Some(text) = fields.get(&["space directions"]) {
        let found = vectors(text).filter(|found| found.len() == count);
        if found.is_none() {
            problems.add(format!(
                "space directions are {:?}, not {count} vectors",
                excerpt(text)
            ));
        }
        for (column, &axis) in columns.iter_mut().zip(&axes.space) {
            if let Some(Some(vector)) = found.as_ref().map(|found| found[axis]) {
                *column = vector;
            }
        }
    } else if let Some(text) = fields.get(&["spacings"]) {
        let words: Vec<&str> = text.split_whitespace().collect();
        for (place, &axis) in axes.space.iter().enumerate() {
            let value = words.get(axis).and_then(|word| finite(word));
            match value.as_deref() {
                // The sign is the direction of the axis.
                Some(&[value]) if words.len() == count && value != 0.0 => {
                    columns[place][place] = value;
                }
                _ => problems.add(format!(
                    "spacings are {:?}, not {count} numbers that are not 0",
                    excerpt(text)
                )),
            }
        }
    }
    if let Some(text) = fields.get(&["space origin"]) {
        match vectors(text).as_deref() {
            Some(&[Some(vector)]) => origin = vector,
            _ => problems.add(format!("space origin is {:?}, not a vector", excerpt(text))),
        }
    }
    let space = fields.get(&["space"]).unwrap_or_default().to_lowercase();
    // The signs that convert the file's space to LPS. A space without anatomical directions is treated as LPS.
    let signs = match space.trim_end_matches("-time") {
        "right-anterior-superior" | "ras" | "rast" => [-1.0, -1.0, 1.0],
        "left-anterior-superior" | "las" | "last" => [1.0, -1.0, 1.0],
        _ => [1.0; 3],
    };
    // Directions and the origin are vectors in world coordinates; spacings are lengths along the image axes.
    let across = factors(&quoted(fields.get(&["space units"])), problems);
    let turn = |vector: [f64; 3]| std::array::from_fn(|i| signs[i] * across[i] * vector[i]);
    if fields.get(&["space directions"]).is_some() {
        return Geometry::from_lps(columns.map(turn), turn(origin));
    }
    let words = quoted(fields.get(&["units"]));
    let along = if words.len() == count {
        let own: Vec<String> = axes.space.iter().map(|&axis| words[axis].clone()).collect();
        factors(&own, problems)
    } else {
        across
    };
    for (column, factor) in columns.iter_mut().zip(along) {
        *column = std::array::from_fn(|i| signs[i] * factor * column[i]);
    }
    let said = ["spacings", "space origin"];
    Geometry {
        is_known: said.iter().any(|name| fields.get(&[*name]).is_some()),
        ..Geometry::from_lps(columns, turn(origin))
    }
}

/// Returns the millimeters per unit for three unit names; 1 for absent names.
fn factors(words: &[String], problems: &mut Problems) -> [f64; 3] {
    let mut factors = [1.0; 3];
    for (target, word) in factors.iter_mut().zip(words) {
        match units::unit(word) {
            Some(unit) => *target = unit.factor(),
            None => problems.add(units::unknown(word)),
        }
    }
    factors
}

/// Splits a text into its quoted words, or at whitespace if it has no quotation marks.
fn quoted(text: Option<&str>) -> Vec<String> {
    let text = text.unwrap_or_default();
    if !text.contains('"') {
        return text.split_whitespace().map(str::to_owned).collect();
    }
    let inside = |(at, word): (usize, &str)| (at % 2 == 1).then(|| word.to_owned());
    text.split('"').enumerate().filter_map(inside).collect()
}

/// Parses vectors like `(1,0,0) none (0,0,1)`. Returns their first three numbers, with 0 for a missing third.
fn vectors(text: &str) -> Option<Vec<Option<[f64; 3]>>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("none") {
            found.push(None);
            rest = after.trim_start();
            continue;
        }
        let (inside, after) = rest.strip_prefix('(')?.split_once(')')?;
        let values = finite(&inside.replace(',', " "))?;
        if !(2..=4).contains(&values.len()) {
            return None;
        }
        let mut vector = [0.0; 3];
        for (target, value) in vector.iter_mut().zip(values) {
            *target = value;
        }
        found.push(Some(vector));
        rest = after.trim_start();
    }
    Some(found)
}
