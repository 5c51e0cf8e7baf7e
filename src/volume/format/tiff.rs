//! The head of a TIFF file that is written: OME-BigTIFF, with all directories before the voxels.
//!
//! Each page is one strip, and pages follow each other without gaps: programs that know only TIFF read pages, and those
//! that map files read it like one array. Reading is in a module of its own.

use std::fmt::Write;
use std::path::Path;

use super::FlatHeader;
use super::row::{CreatedExtension, FileFormat, VoxelStorage};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::volume::{AxisKind, Format, Layout, LeadingAxis, units};

const NAME: &str = "TIFF";

/// TIFF files that are written.
pub(super) const FORMAT: FileFormat = FileFormat {
    extensions: &[".tif", ".tiff"],
    outputs: &[
        CreatedExtension::new(".tif", VoxelStorage::Attached),
        CreatedExtension::new(".tiff", VoxelStorage::Attached),
    ],
    check,
    ..FileFormat::new(
        NAME,
        "a TIFF file",
        &[Format::Tiff],
        crate::volume::tiff::recognize,
        parse,
        encode,
    )
};

/// Maximum number of pages.
const MOST_PAGES: u64 = 1 << 24;

/// Types of values in directories.
const ASCII: u16 = 2;
const SHORT: u16 = 3;
const LONG: u16 = 4;
const LONG8: u16 = 16;

/// Bytes before the first directory, and of an entry.
const HEAD: usize = 16;
const ENTRY: usize = 20;

/// Refuses to read: files are recognized and read elsewhere.
fn parse(path: &Path, bytes: &[u8]) -> Result<FlatHeader> {
    if crate::volume::tiff::recognize(bytes) {
        let what = "TIFF is read from the file system only: copy the file to this machine";
        return Err(Error::unsupported(path, what));
    }
    Err(Error::header(
        path,
        NAME,
        "it does not begin like a TIFF file",
    ))
}

fn check(layout: &Layout) -> Result<()> {
    let unsupported = |what: &str| Err(Error::unsupported(&layout.path, what));
    if layout.rescale.is_some() {
        return unsupported(
            "TIFF files have no slope and intercept, which these voxels need: write real values, or .nii, .mha or .zarr",
        );
    }
    if matches!(layout.dtype, DType::U64 | DType::I64 | DType::F16) {
        let what = format!(
            "OME-TIFF has no {}: write another type, or .zarr or .npy",
            layout.dtype
        );
        return unsupported(&what);
    }
    if u32::try_from(layout.shape[1].max(layout.shape[2])).is_err() {
        return unsupported("a page of TIFF has fewer than 2^32 rows and columns: write .zarr");
    }
    let pages = layout.shape[0].checked_mul(layout.channels);
    if pages.is_none_or(|pages| pages > MOST_PAGES) {
        let what =
            format!("more than {MOST_PAGES} pages are not written into one TIFF file: write .zarr");
        return unsupported(&what);
    }
    axes(layout).map(|_| ())
}

/// The axes in front of z, y and x.
struct PageOrder {
    channels: u64,
    times: u64,
    /// The order of dimensions in OME-XML, fastest first.
    order: &'static str,
    /// Seconds between time points.
    seconds: Option<f64>,
}

fn axes(layout: &Layout) -> Result<PageOrder> {
    let leading = layout.axes.long_of(layout.channels);
    let is_time = |axis: &LeadingAxis| axis.kind == AxisKind::Time;
    let seconds = |axis: &LeadingAxis| {
        let unit = axis.unit.as_deref();
        matches!(unit, Some("second" | "s")).then_some(axis.step)
    };
    let (channels, times, order, seconds) = match leading.as_slice() {
        [] => (1, 1, "XYZCT", None),
        [time] if is_time(time) => (1, time.length, "XYZCT", seconds(time)),
        [other] => (other.length, 1, "XYZCT", None),
        [time, other] if is_time(time) => (other.length, time.length, "XYZCT", seconds(time)),
        [other, time] if is_time(time) => (other.length, time.length, "XYZTC", seconds(time)),
        several => {
            let names: Vec<&str> = several.iter().map(|axis| axis.name.as_str()).collect();
            let what = format!(
                "OME-TIFF stores time and channels besides z, y, x, but these voxels have {names:?}: write .zarr or .nii"
            );
            return Err(Error::unsupported(&layout.path, what));
        }
    };
    Ok(PageOrder {
        channels,
        times,
        order,
        seconds,
    })
}

/// Encodes everything before the first voxel.
fn encode(layout: &mut Layout, _: Option<&str>) -> Result<Vec<u8>> {
    check(layout)?;
    let mut text = description(layout)?.into_bytes();
    text.push(0);
    let [slices, rows, columns] = layout.shape;
    let pages = usize::try_from(slices * layout.channels)
        .map_err(|_| Error::unsupported(&layout.path, "it has too many pages"))?;
    let size = layout.dtype.size() as u64;
    let bytes = rows * columns * size;
    let kind: u16 = match layout.dtype {
        DType::F16 | DType::F32 | DType::F64 => 3,
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => 2,
        _ => 1,
    };
    let software = b"voxpatch\0";
    let directory = |entries: usize| 8 + entries * ENTRY + 8;
    let (first, other) = (directory(12), directory(10));
    let texts = HEAD + first + pages.saturating_sub(1) * other;
    // Voxels begin at a multiple of 64, so that they are aligned for programs that map the file.
    let start = (texts + text.len() + software.len()).next_multiple_of(64);
    let mut out = Vec::with_capacity(start);
    out.extend(if cfg!(target_endian = "big") {
        b"MM"
    } else {
        b"II"
    });
    for word in [43_u16, 8, 0] {
        out.extend(word.to_ne_bytes());
    }
    out.extend((HEAD as u64).to_ne_bytes());
    for page in 0..pages {
        let is_first = page == 0;
        let mut entries: Vec<(u16, u16, u64, u64)> = vec![
            (256, LONG, 1, columns),
            (257, LONG, 1, rows),
            (258, SHORT, 1, 8 * size),
            (259, SHORT, 1, 1),
            (262, SHORT, 1, 1),
        ];
        if is_first {
            entries.push((270, ASCII, text.len() as u64, texts as u64));
        }
        entries.extend([
            (273, LONG8, 1, start as u64 + page as u64 * bytes),
            (277, SHORT, 1, 1),
            (278, LONG, 1, rows),
            (279, LONG8, 1, bytes),
        ]);
        if is_first {
            let place = (texts + text.len()) as u64;
            entries.push((305, ASCII, software.len() as u64, place));
        }
        entries.push((339, SHORT, 1, u64::from(kind)));
        out.extend((entries.len() as u64).to_ne_bytes());
        for (tag, form, count, value) in entries {
            out.extend(tag.to_ne_bytes());
            out.extend(form.to_ne_bytes());
            out.extend(count.to_ne_bytes());
            let at = out.len();
            match form {
                SHORT => out.extend(u16::try_from(value).unwrap_or(0).to_ne_bytes()),
                LONG => out.extend(u32::try_from(value).unwrap_or(0).to_ne_bytes()),
                _ => out.extend(value.to_ne_bytes()),
            }
            out.resize(at + 8, 0);
        }
        let next = if page + 1 < pages {
            out.len() as u64 + 8
        } else {
            0
        };
        out.extend(next.to_ne_bytes());
    }
    out.extend(text);
    out.extend(software);
    out.resize(start, 0);
    Ok(out)
}

/// Returns the OME-XML.
fn description(layout: &Layout) -> Result<String> {
    let kind = match layout.dtype {
        DType::Bool | DType::U8 => "uint8",
        DType::I8 => "int8",
        DType::U16 => "uint16",
        DType::I16 => "int16",
        DType::U32 => "uint32",
        DType::I32 => "int32",
        DType::F32 => "float",
        DType::F64 => "double",
        DType::U64 | DType::I64 | DType::F16 => {
            let what = format!("OME-TIFF has no {}", layout.dtype);
            return Err(Error::unsupported(&layout.path, what));
        }
    };
    let axes = axes(layout)?;
    let [z, y, x] = layout.shape;
    let mut sizes = String::new();
    if layout.geometry.is_known {
        let own = layout.axes.unit.as_ref().map(|(_, factor)| *factor);
        // The names of units in OME-XML that every reader knows.
        let (factor, unit) = match own {
            Some(factor) if units::name(factor) == Some("micrometer") => (factor, "&#181;m"),
            Some(factor) if units::name(factor) == Some("nanometer") => (factor, "nm"),
            _ => (1.0, "mm"),
        };
        for (axis, length) in ["Z", "Y", "X"].iter().zip(layout.geometry.spacing) {
            let length = units::in_units(length, factor);
            let _ = write!(
                sizes,
                " PhysicalSize{axis}=\"{length}\" PhysicalSize{axis}Unit=\"{unit}\""
            );
        }
    }
    if let Some(seconds) = axes.seconds {
        let _ = write!(
            sizes,
            " TimeIncrement=\"{seconds}\" TimeIncrementUnit=\"s\""
        );
    }
    let mut channels = String::new();
    for n in 0..axes.channels {
        let name = usize::try_from(n)
            .ok()
            .and_then(|n| layout.axes.channel_names.get(n));
        let name = name.map(|name| format!(" Name=\"{}\"", escaped(name)));
        let _ = write!(
            channels,
            "<Channel ID=\"Channel:0:{n}\" SamplesPerPixel=\"1\"{}/>",
            name.unwrap_or_default()
        );
    }
    let file = layout.path.file_name().unwrap_or_default();
    Ok(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><OME xmlns=\"http://www.openmicroscopy.org/Schemas/OME/2016-06\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
         xsi:schemaLocation=\"http://www.openmicroscopy.org/Schemas/OME/2016-06 \
         http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd\" Creator=\"voxpatch\">\
         <Image ID=\"Image:0\" Name=\"{}\"><Pixels ID=\"Pixels:0\" DimensionOrder=\"{}\" Type=\"{kind}\" \
         SizeX=\"{x}\" SizeY=\"{y}\" SizeZ=\"{z}\" SizeC=\"{}\" SizeT=\"{}\"{sizes}>{channels}<TiffData/></Pixels>\
         </Image></OME>",
        escaped(&file.to_string_lossy()),
        axes.order,
        axes.channels,
        axes.times,
    ))
}

/// Returns text for an attribute of XML, in ASCII.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '<' | '>' | '"' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            ' '..='~' => out.push(c),
            // Control characters are not allowed.
            _ if u32::from(c) < 160 => out.push(' '),
            _ => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
        }
    }
    out
}
