//! What the description of a TIFF file says about its pages: OME-XML, ImageJ, or tifffile's shape.

use serde_json::Value as Json;

use super::ifd::Page;
use crate::volume::units::{self, Unit};

/// The meaning of the pages of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PageAxes {
    /// Slices, channels and time points, as they are counted by pages. Samples of pixels are not counted.
    pub(super) slices: u64,
    pub(super) channels: u64,
    pub(super) times: u64,
    /// For each plane of the volume, in the order t, c, z, the number of its page; empty if pages have the order of
    /// `slowest`.
    pub(super) pages: Vec<Option<u64>>,
    /// The order of pages, slowest first, of the letters T, Z and C.
    pub(super) slowest: [char; 3],
    /// The spacing z, y, x in mm.
    pub(super) spacing: Option<[f64; 3]>,
    /// The unit of length and its millimeters.
    pub(super) unit: Option<(String, f64)>,
    pub(super) channel_names: Vec<String>,
    /// Seconds between time points.
    pub(super) seconds: Option<f64>,
    /// `true` if only the first page has a directory, and the others follow its voxels.
    pub(super) follow: bool,
}

impl PageAxes {
    /// Pages that are slices.
    pub(super) fn plain(pages: u64) -> Self {
        Self {
            slices: pages,
            channels: 1,
            times: 1,
            pages: Vec::new(),
            slowest: ['T', 'C', 'Z'],
            spacing: None,
            unit: None,
            channel_names: Vec::new(),
            seconds: None,
            follow: false,
        }
    }

    /// Returns the number of planes.
    pub(super) fn planes(&self) -> Option<u64> {
        self.slices
            .checked_mul(self.channels)?
            .checked_mul(self.times)
    }

    /// Returns the page of the plane at a time, channel and slice.
    pub(super) fn page(&self, time: u64, channel: u64, slice: u64) -> Option<u64> {
        if !self.pages.is_empty() {
            let plane = (time * self.channels + channel) * self.slices + slice;
            return *self.pages.get(usize::try_from(plane).ok()?)?;
        }
        let mut page = 0;
        for letter in self.slowest {
            let (place, length) = match letter {
                'T' => (time, self.times),
                'C' => (channel, self.channels),
                _ => (slice, self.slices),
            };
            page = page * length + place;
        }
        Some(page)
    }
}

/// Maximum number of planes in OME-XML.
const MOST_PLANES: u64 = 16_000_000;

/// An image in OME-XML.
#[derive(Clone, Debug)]
pub(super) struct OmeImage {
    pub(super) name: String,
    pub(super) lengths: [u64; 3],
    axes: PageAxes,
}

/// Reads the images in a description that is `OME-XML`; `None` if it is not.
pub(super) fn ome(text: &str) -> Option<Result<Vec<OmeImage>, String>> {
    let start = text.trim_start_matches('\u{feff}').trim_start();
    if !(start.starts_with("<?xml") || start.starts_with("<OME") || start.starts_with("<!--"))
        || !text.contains("<OME")
    {
        return None;
    }
    let options = roxmltree::ParsingOptions {
        nodes_limit: 20_000_000,
        ..roxmltree::ParsingOptions::default()
    };
    let document = match roxmltree::Document::parse_with_options(text, options) {
        Ok(document) => document,
        Err(error) => return Some(Err(format!("its OME-XML is invalid: {error}"))),
    };
    let images = document
        .root_element()
        .children()
        .filter(|node| node.has_tag_name_local("Image"));
    let mut found = Vec::new();
    for image in images {
        match ome_image(image) {
            Ok(image) => found.push(image),
            Err(problem) => return Some(Err(problem)),
        }
    }
    Some(Ok(found))
}

/// Names without their namespace.
trait LocalName {
    fn has_tag_name_local(&self, name: &str) -> bool;
}

impl LocalName for roxmltree::Node<'_, '_> {
    fn has_tag_name_local(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }
}

fn ome_image(image: roxmltree::Node<'_, '_>) -> Result<OmeImage, String> {
    let pixels = image
        .children()
        .find(|node| node.has_tag_name_local("Pixels"));
    let pixels = pixels.ok_or("an image of its OME-XML has no Pixels")?;
    let length = |name: &str| -> Result<u64, String> {
        let value = pixels.attribute(name).unwrap_or("missing");
        let length = value.parse().ok().filter(|&n: &u64| n > 0);
        length.ok_or_else(|| format!("{name} of its OME-XML is {:?}", super::excerpt(value)))
    };
    let [slices, samples_and_channels, times] =
        [length("SizeZ")?, length("SizeC")?, length("SizeT")?];
    let own: Vec<_> = pixels
        .children()
        .filter(|node| node.has_tag_name_local("Channel"))
        .collect();
    let samples = own
        .first()
        .and_then(|node| node.attribute("SamplesPerPixel"))
        .and_then(|n| n.parse::<u64>().ok());
    let samples = samples
        .filter(|&n| n > 0 && samples_and_channels.is_multiple_of(n))
        .unwrap_or(1);
    let channels = samples_and_channels / samples;
    let order = pixels.attribute("DimensionOrder").unwrap_or("XYCZT");
    let letters: Vec<char> = order.chars().skip(2).collect();
    let mut sorted = letters.clone();
    sorted.sort_unstable();
    if !order.starts_with("XY") || sorted != ['C', 'T', 'Z'] {
        return Err(format!(
            "DimensionOrder of its OME-XML is {:?}",
            super::excerpt(order)
        ));
    }
    let planes = slices
        .checked_mul(channels)
        .and_then(|n| n.checked_mul(times));
    let planes = planes
        .filter(|&n| n <= MOST_PLANES)
        .ok_or("its OME-XML has too many planes")?;
    let mut axes = PageAxes {
        slices,
        channels,
        times,
        slowest: [letters[2], letters[1], letters[0]],
        channel_names: own
            .iter()
            .map(|node| node.attribute("Name").unwrap_or_default().to_owned())
            .collect(),
        ..PageAxes::plain(1)
    };
    if axes.channel_names.iter().all(String::is_empty)
        || axes.channel_names.len() as u64 != channels
    {
        axes.channel_names.clear();
    }
    place_planes(pixels, &mut axes, planes)?;
    let size = |axis: &str| -> Result<Option<(f64, f64, String)>, String> {
        let Some(text) = pixels.attribute(format!("PhysicalSize{axis}").as_str()) else {
            return Ok(None);
        };
        let unit = pixels
            .attribute(format!("PhysicalSize{axis}Unit").as_str())
            .unwrap_or("µm");
        let factor = match units::unit(unit) {
            Some(Unit::Millimeters(factor)) => factor,
            Some(Unit::None) => return Ok(None),
            None if unit == "reference frame" => return Ok(None),
            None => return Err(units::unknown(unit)),
        };
        let value = text
            .parse::<f64>()
            .ok()
            .filter(|n| n.is_finite() && *n > 0.0);
        Ok(value.map(|value| (value * factor, factor, unit.to_owned())))
    };
    let sizes = [size("Z")?, size("Y")?, size("X")?];
    let z = match &sizes[0] {
        // A single slice needs no distance to the next.
        None if slices == 1 => sizes[1].as_ref().map(|y| y.0),
        z => z.as_ref().map(|z| z.0),
    };
    if let (Some(z), Some(y), Some(x)) = (z, &sizes[1], &sizes[2]) {
        axes.spacing = Some([z, y.0, x.0]);
        axes.unit = Some((
            units::name(x.1).map_or_else(|| x.2.clone(), str::to_owned),
            x.1,
        ));
    }
    axes.seconds = pixels
        .attribute("TimeIncrement")
        .filter(|_| matches!(pixels.attribute("TimeIncrementUnit"), None | Some("s")))
        .and_then(|text| text.parse().ok())
        .filter(|n: &f64| n.is_finite() && *n > 0.0);
    Ok(OmeImage {
        name: image.attribute("Name").unwrap_or_default().to_owned(),
        lengths: [slices, length("SizeY")?, length("SizeX")?],
        axes,
    })
}

/// Finds the page of each plane from the `TiffData` elements.
fn place_planes(
    pixels: roxmltree::Node<'_, '_>,
    axes: &mut PageAxes,
    planes: u64,
) -> Result<(), String> {
    let blocks: Vec<_> = pixels
        .children()
        .filter(|node| node.has_tag_name_local("TiffData"))
        .collect();
    if blocks.is_empty() {
        return Err("its OME-XML has no TiffData: the planes are not in this file".to_owned());
    }
    let all = usize::try_from(planes).map_err(|error| error.to_string())?;
    let mut pages: Vec<Option<u64>> = vec![None; all];
    // The name of this file, which may have been renamed since.
    let mut own_file = None;
    for block in &blocks {
        let number = |name: &str| {
            block
                .attribute(name)
                .and_then(|text| text.parse::<u64>().ok())
        };
        let uuid = block
            .children()
            .find(|node| node.has_tag_name_local("UUID"));
        if let Some(file) = uuid.and_then(|node| node.attribute("FileName")) {
            let known = *own_file.get_or_insert(file);
            if known != file {
                return Err(format!(
                    "its planes are in several files, {:?} and {:?}, which is not read: make OME-Zarr of it with \
                     bioformats2raw",
                    super::excerpt(known),
                    super::excerpt(file)
                ));
            }
        }
        let first = number("IFD").unwrap_or(0);
        let count = match (number("PlaneCount"), number("IFD")) {
            (Some(count), _) => count,
            (None, Some(_)) => 1,
            (None, None) => planes,
        };
        let mut at = [
            number("FirstT").unwrap_or(0),
            number("FirstC").unwrap_or(0),
            number("FirstZ").unwrap_or(0),
        ];
        for n in 0..count.min(planes) {
            let [t, c, z] = at;
            if t >= axes.times || c >= axes.channels || z >= axes.slices {
                return Err(format!(
                    "its OME-XML places a plane at time {t}, channel {c}, slice {z}"
                ));
            }
            let plane = (t * axes.channels + c) * axes.slices + z;
            if let Some(page) = usize::try_from(plane)
                .ok()
                .and_then(|plane| pages.get_mut(plane))
            {
                *page = first.checked_add(n);
            }
            for letter in axes.slowest.iter().rev() {
                let (place, length) = match letter {
                    'T' => (&mut at[0], axes.times),
                    'C' => (&mut at[1], axes.channels),
                    _ => (&mut at[2], axes.slices),
                };
                *place += 1;
                if *place < length {
                    break;
                }
                *place = 0;
            }
        }
    }
    axes.pages = pages;
    Ok(())
}

impl OmeImage {
    /// Returns the meaning of the pages.
    pub(super) fn axes(self) -> PageAxes {
        self.axes
    }
}

/// Reads the description of an ImageJ stack; `None` if it is not one. `pages` is the number of directories.
pub(super) fn imagej(page: &Page, pages: u64) -> Option<Result<PageAxes, String>> {
    let text = &page.description;
    if !text.starts_with("ImageJ=") {
        return None;
    }
    let get = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(str::trim)
    };
    let number = |key: &str| {
        get(key)
            .and_then(|value| value.parse::<u64>().ok())
            .filter(|&n| n > 0)
    };
    let [channels, slices, frames] =
        ["channels", "slices", "frames"].map(|key| number(key).unwrap_or(1));
    let images = number("images").unwrap_or(1);
    let planes = channels
        .checked_mul(slices)
        .and_then(|n| n.checked_mul(frames));
    let mut axes = PageAxes {
        slices,
        channels,
        times: frames,
        slowest: ['T', 'Z', 'C'],
        follow: images > pages,
        ..PageAxes::plain(1)
    };
    if planes != Some(images) {
        if channels * slices.min(2) * frames.min(2) != 1 && planes != Some(1) {
            return Some(Err(format!(
                "its ImageJ description has {images} images, but {channels} channels, {slices} slices and {frames} frames"
            )));
        }
        axes.slices = images;
    }
    Some(imagej_spacing(page, &get, &mut axes).map(|()| axes))
}

fn imagej_spacing<'t>(
    page: &Page,
    get: &impl Fn(&str) -> Option<&'t str>,
    axes: &mut PageAxes,
) -> Result<(), String> {
    let seconds = |text: &str| {
        text.parse::<f64>()
            .ok()
            .filter(|n| n.is_finite() && *n > 0.0)
    };
    axes.seconds = get("finterval").and_then(seconds);
    let Some(unit) = get("unit") else {
        return Ok(());
    };
    let factor = match units::unit(unit) {
        Some(Unit::Millimeters(factor)) => factor,
        Some(Unit::None) => return Ok(()),
        None => return Err(units::unknown(unit)),
    };
    let distance = |text: &str| {
        text.parse::<f64>()
            .ok()
            .filter(|n| n.is_finite() && *n > 0.0)
    };
    let z = get("spacing").and_then(distance);
    let [y, x] = page
        .resolution
        .map(|resolution| resolution.map(|n| 1.0 / n));
    let z = if axes.slices == 1 { z.or(y) } else { z };
    if let (Some(z), Some(y), Some(x)) = (z, y, x) {
        axes.spacing = Some([z, y, x].map(|length| length * factor));
        axes.unit = units::name(factor).map(|name| (name.to_owned(), factor));
    }
    Ok(())
}

/// Reads the description that tifffile writes, a shape with or without axes; `None` if it is not one.
pub(super) fn shaped(page: &Page, pages: u64) -> Option<Result<PageAxes, String>> {
    let text = page.description.trim();
    if !text.starts_with('{') {
        return None;
    }
    let json: Json = serde_json::from_str(text).ok()?;
    let shape: Option<Vec<u64>> = json
        .get("shape")?
        .as_array()?
        .iter()
        .map(Json::as_u64)
        .collect();
    let shape = shape?;
    let letters = json.get("axes")?.as_str()?;
    if letters.chars().count() != shape.len() {
        return None;
    }
    // Pixels, and samples of pixels, are not counted by pages.
    let mut axes = PageAxes::plain(1);
    let mut slowest = Vec::new();
    for (letter, &length) in letters.chars().zip(&shape) {
        match letter {
            'Y' | 'X' | 'S' => continue,
            'Z' | 'C' | 'T' if !slowest.contains(&letter) => slowest.push(letter),
            _ if length == 1 => continue,
            _ => {
                return Some(Err(format!(
                    "its axes are {:?}: only T, C, Z, Y, X and S are known",
                    super::excerpt(letters)
                )));
            }
        }
        match letter {
            'T' => axes.times = length,
            'C' => axes.channels = length,
            _ => axes.slices = length,
        }
    }
    // One directory may stand for all planes.
    axes.follow = pages == 1 && page.form.samples == 1 && axes.planes() != Some(1);
    if axes.planes() != Some(pages) && !axes.follow {
        return None;
    }
    slowest.extend(
        ['T', 'C', 'Z']
            .into_iter()
            .filter(|letter| !letters.contains(*letter)),
    );
    axes.slowest = [*slowest.first()?, *slowest.get(1)?, *slowest.get(2)?];
    Some(Ok(axes))
}
