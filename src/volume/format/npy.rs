//! The header of a numpy file, versions 1 to 3.
//!
//! Arrays with two axes are y, x; with three, z, y, x; with four, c, z, y, x. Pickled data is never loaded.

use std::path::Path;

use super::row::{CreatedExtension, FileFormat, VoxelStorage};
use super::{FlatHeader, MOST_FIELDS, PLANAR, Problems, excerpt};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::volume::{Format, Layout};

const NAME: &str = "npy";

/// numpy files.
pub(super) const FORMAT: FileFormat = FileFormat {
    extensions: &[".npy"],
    outputs: &[CreatedExtension::new(".npy", VoxelStorage::Attached)],
    check,
    ..FileFormat::new(
        NAME,
        "an .npy file",
        &[Format::Npy],
        |head| head.starts_with(MAGIC),
        parse,
        encode,
    )
};

/// The first bytes of every numpy file.
const MAGIC: &[u8] = b"\x93NUMPY";

/// A value in the Python dict of the header.
#[derive(Debug, PartialEq)]
enum PyValue {
    Text(String),
    Bool(bool),
    Tuple(Vec<u64>),
}

/// Reads the header at the start of `bytes`.
pub(in super::super) fn parse(path: &Path, bytes: &[u8]) -> Result<FlatHeader> {
    let bad = |problem: String| Error::header(path, NAME, problem);
    let (text, end) = text(bytes).map_err(bad)?;
    if text.contains("'descr': [") || text.contains("\"descr\": [") {
        return Err(Error::unsupported(
            path,
            "structured npy arrays are not read: save one field alone",
        ));
    }
    let mut entries = dict(text).map_err(bad)?;
    let mut problems = Problems::default();
    let mut take = |key: &str| {
        let at = entries.iter().position(|(name, _)| name == key);
        let value = at.map(|at| entries.remove(at).1);
        if value.is_none() {
            problems.add(format!("{key} is missing"));
        }
        value
    };
    let (descr, fortran, shape) = (take("descr"), take("fortran_order"), take("shape"));
    let (dtype, big_endian) = match &descr {
        Some(PyValue::Text(descr)) => dtype(path, descr, &mut problems)?,
        other => {
            if other.is_some() {
                problems.add("descr is not a string");
            }
            (DType::U8, false)
        }
    };
    let fortran = match fortran {
        Some(PyValue::Bool(fortran)) => fortran,
        other => {
            if other.is_some() {
                problems.add("fortran_order is neither True nor False");
            }
            false
        }
    };
    let shape = match shape {
        Some(PyValue::Tuple(shape)) => shape,
        other => {
            if other.is_some() {
                problems.add("shape is not a tuple");
            }
            Vec::new()
        }
    };
    for (key, _) in &entries {
        problems.add(format!("key {:?} is unknown", excerpt(key)));
    }
    problems.check(path, NAME)?;
    let (channels, space, order) = match *shape.as_slice() {
        [y, x] => (1, [1, y, x], [2, 3, 1, 0]),
        [z, y, x] => (1, [z, y, x], [1, 2, 3, 0]),
        [c, z, y, x] => (c, [z, y, x], [0, 1, 2, 3]),
        _ => {
            return Err(Error::unsupported(
                path,
                format!(
                    "the array has {} axes: y, x or z, y, x or c, z, y, x are read",
                    shape.len()
                ),
            ));
        }
    };
    let header = FlatHeader {
        channels,
        big_endian,
        order: if fortran { order } else { PLANAR },
        ..FlatHeader::new(Format::Npy, space, dtype, end as u64)
    };
    header.checked(path, NAME)
}

/// Returns the header's text, and the byte where the voxels begin.
fn text(bytes: &[u8]) -> Result<(&str, usize), String> {
    if !bytes.starts_with(MAGIC) {
        return Err("the file does not begin with \\x93NUMPY".to_owned());
    }
    let short = || "the file ends inside the header".to_owned();
    let version = *bytes.get(6).ok_or_else(short)?;
    let (first, length) = match version {
        1 => {
            let length = bytes.get(8..10).ok_or_else(short)?;
            (10, usize::from(u16::from_le_bytes([length[0], length[1]])))
        }
        2 | 3 => {
            let length = bytes
                .get(8..12)
                .and_then(|n| n.try_into().ok())
                .ok_or_else(short)?;
            let length = u64::from(u32::from_le_bytes(length));
            if length > super::LIMIT {
                return Err(format!("a header of {length} bytes is too long"));
            }
            (12, usize::try_from(length).map_err(|_| short())?)
        }
        _ => return Err(format!("version {version} is unknown (1 to 3 are read)")),
    };
    let text = bytes.get(first..first + length).ok_or_else(short)?;
    let text = std::str::from_utf8(text).map_err(|_| "the header is not text".to_owned())?;
    Ok((text, first + length))
}

fn dtype(path: &Path, descr: &str, problems: &mut Problems) -> Result<(DType, bool)> {
    let (order, code) = match descr.as_bytes().first() {
        Some(b'<' | b'>' | b'|' | b'=') => descr.split_at(1),
        _ => ("=", descr),
    };
    let big_endian = order == ">" || (order == "=" && cfg!(target_endian = "big"));
    let found = match code {
        "?" => Some(DType::Bool),
        _ => DType::from_code(code),
    };
    let dtype = if let Some(dtype) = found {
        dtype
    } else {
        let known = code
            .bytes()
            .next()
            .is_some_and(|kind| b"OcfSaUVMmiu".contains(&kind));
        let shown = excerpt(descr);
        if known {
            let what = format!("npy arrays of {shown:?} are not read: real numbers and bool are");
            return Err(Error::unsupported(path, what));
        }
        problems.add(format!("descr {shown:?} is not a data type"));
        DType::U8
    };
    if order == "|" && dtype.size() > 1 {
        problems.add(format!("descr {descr:?} does not say the byte order"));
    }
    Ok((dtype, big_endian))
}

/// Parses a Python dict literal whose values are strings, booleans and tuples of whole numbers.
fn dict(text: &str) -> Result<Vec<(String, PyValue)>, String> {
    let mut rest = text.trim();
    rest = rest.strip_prefix('{').ok_or("it is not a Python dict")?;
    rest = rest
        .strip_suffix('}')
        .ok_or("it is not a Python dict")?
        .trim_start();
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (key, after) = quoted(rest)?;
        let after = after
            .trim_start()
            .strip_prefix(':')
            .ok_or("a colon is missing")?;
        let (value, after) = value(after.trim_start())?;
        if entries.len() == MOST_FIELDS {
            return Err(format!("it has more than {MOST_FIELDS} keys"));
        }
        if entries.iter().any(|(name, _)| *name == key) {
            return Err(format!("key {:?} appears twice", excerpt(&key)));
        }
        entries.push((key, value));
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if after.is_empty() => after,
            None => return Err(format!("a comma is missing before {:?}", excerpt(after))),
        };
    }
    Ok(entries)
}

fn quoted(text: &str) -> Result<(String, &str), String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let parts = quote.and_then(|quote| text[1..].split_once(quote));
    parts
        .map(|(inside, rest)| (inside.to_owned(), rest))
        .ok_or_else(|| format!("a quoted text is missing at {:?}", excerpt(text)))
}

fn value(text: &str) -> Result<(PyValue, &str), String> {
    if let Some(rest) = text.strip_prefix("True") {
        return Ok((PyValue::Bool(true), rest));
    }
    if let Some(rest) = text.strip_prefix("False") {
        return Ok((PyValue::Bool(false), rest));
    }
    let Some(inside) = text.strip_prefix('(') else {
        let (inside, rest) = quoted(text)?;
        return Ok((PyValue::Text(inside), rest));
    };
    let (inside, rest) = inside.split_once(')').ok_or("a tuple does not end")?;
    let numbers = inside.trim().trim_end_matches(',');
    if numbers.is_empty() {
        return Ok((PyValue::Tuple(Vec::new()), rest));
    }
    // Python 2 wrote long numbers with an L.
    let number = |word: &str| word.trim().trim_end_matches('L').parse().ok();
    let numbers: Option<Vec<u64>> = numbers.split(',').map(number).collect();
    numbers
        .map(|numbers| (PyValue::Tuple(numbers), rest))
        .ok_or_else(|| format!("({}) is not a tuple of lengths", excerpt(inside)))
}

/// Checks that the voxels need no slope and intercept.
fn check(layout: &Layout) -> Result<()> {
    if layout.rescale.is_none() {
        return Ok(());
    }
    let what = "numpy files have no slope and intercept, which these voxels need: write real values, \
                or .nii, .mha or .zarr";
    Err(Error::unsupported(&layout.path, what))
}

/// Encodes the bytes before the first voxel of a numpy file of axes z, y, x or c, z, y, x.
#[expect(clippy::unnecessary_wraps, reason = "as in every row of the table")]
fn encode(layout: &mut Layout, _: Option<&str>) -> Result<Vec<u8>> {
    let order = match (layout.dtype.size(), cfg!(target_endian = "big")) {
        (1, _) => '|',
        (_, true) => '>',
        (_, false) => '<',
    };
    let name = layout.dtype.name();
    let code = match layout.dtype {
        DType::Bool => "b1".to_owned(),
        dtype => format!("{}{}", &name[..1], dtype.size()),
    };
    let channels = (layout.channels > 1).then_some(layout.channels);
    let lengths: Vec<String> = channels
        .into_iter()
        .chain(layout.shape)
        .map(|n| n.to_string())
        .collect();
    let dict = format!(
        "{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({}), }}",
        lengths.join(", ")
    );
    // Magic, version and length take 10 bytes, the line ending 1; voxels begin at a multiple of 64.
    let total = (10 + dict.len() + 1).next_multiple_of(64);
    let length = u16::try_from(total - 10).expect("five numbers and names stay below 64 KiB");
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend(length.to_le_bytes());
    header.extend(dict.bytes());
    header.resize(total - 1, b' ');
    header.push(b'\n');
    Ok(header)
}
