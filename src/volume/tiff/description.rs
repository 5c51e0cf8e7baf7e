//! The OME-XML of a file that is written, and the volumes that it can describe.

use std::fmt::Write;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::volume::{AxisKind, Layout, LeadingAxis, units};

/// Maximum number of pages: as many as are read.
const MOST_PAGES: u64 = super::ifd::MOST_PAGES as u64;

/// Checks that OME-TIFF can store a volume.
///
/// # Errors
///
/// [`Error::Unsupported`], with the reason and other formats.
pub(in super::super) fn check(layout: &Layout) -> Result<()> {
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

/// Returns the OME-XML.
pub(super) fn description(layout: &Layout) -> Result<String> {
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
