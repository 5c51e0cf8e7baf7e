//! What the header of a DICOM file says about its frames. Nothing about the patient is read.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use super::elements::{
    Elements, Encoding, Extent, PIXELS, PixelStart, Tag, Value, Visitor, frame_extents,
};
use super::syntax::Syntax;

/// Maximum number of frames of a file.
const MOST_FRAMES: u64 = 10_000_000;

/// The buffer in which a header is read.
const BUFFER: usize = 16 << 10;

/// The facts about a frame that may differ between the frames of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct FrameFacts {
    /// The position of the center of the first voxel, in LPS millimeters.
    pub(super) position: Option<[f64; 3]>,
    /// The directions of rows and columns, in LPS.
    pub(super) orientation: Option<[f64; 6]>,
    /// The distances between rows and between columns, in mm.
    pub(super) spacing: Option<[f64; 2]>,
    /// Slope and intercept.
    pub(super) slope: Option<f64>,
    pub(super) intercept: Option<f64>,
    /// The thickness of the slice, in mm.
    pub(super) thickness: Option<f64>,
    /// The numbers that order frames at the same position, as in [`Order`].
    pub(super) order: [Option<f64>; ORDERS],
}

/// The number of variants of [`Order`].
pub(super) const ORDERS: usize = 9;

/// A number that orders several frames at the same position, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    TemporalPosition,
    TriggerTime,
    BValue,
    EchoTime,
    EchoNumber,
    AcquisitionNumber,
    AcquisitionTime,
    ContentTime,
    InstanceNumber,
}

impl Order {
    /// All of them, the best first.
    pub(super) const ALL: [Self; ORDERS] = [
        Self::TemporalPosition,
        Self::TriggerTime,
        Self::BValue,
        Self::EchoTime,
        Self::EchoNumber,
        Self::AcquisitionNumber,
        Self::AcquisitionTime,
        Self::ContentTime,
        Self::InstanceNumber,
    ];
}

/// The samples of a frame, and how they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PixelForm {
    pub(super) rows: u16,
    pub(super) columns: u16,
    pub(super) samples: u16,
    pub(super) bits_allocated: u16,
    pub(super) bits_stored: u16,
    pub(super) high_bit: u16,
    pub(super) signed: bool,
    /// `true` if the samples are floating-point numbers.
    pub(super) float: bool,
    /// `true` if each sample has a plane of its own.
    pub(super) planar: bool,
    pub(super) photometric: String,
    pub(super) syntax: Syntax,
}

/// The header of a DICOM file with voxels.
#[derive(Clone, Debug)]
pub(super) struct FileHeader {
    pub(super) series: String,
    pub(super) instance: String,
    pub(super) description: String,
    pub(super) modality: String,
    pub(super) series_number: Option<f64>,
    pub(super) form: PixelForm,
    pub(super) has_modality_table: bool,
    pub(super) between_slices: Option<f64>,
    pub(super) frames: Vec<FrameFacts>,
    /// The byte ranges of the frames in the file.
    pub(super) extents: Vec<Extent>,
    /// For a deflated data set, the first byte of the voxels in it.
    pub(super) inflated: u64,
}

/// What a file is.
#[derive(Debug)]
pub(super) enum Found {
    /// A file with voxels.
    Image(Box<FileHeader>),
    /// The catalog of a file set: the paths of its files, in parts.
    Catalog(Vec<Vec<String>>),
    /// A DICOM file without voxels, such as a report.
    NoImage,
    /// Not a DICOM file.
    Foreign,
}

/// The reason why a file cannot be read.
#[derive(Debug)]
pub(super) enum Problem {
    Io(io::Error),
    Header(String),
    Unsupported(String),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Header(error.to_string()),
            io::ErrorKind::UnexpectedEof => Self::Header("the file ends inside it".to_owned()),
            _ => Self::Io(error),
        }
    }
}

/// The values of a header as they come.
#[derive(Debug, Default)]
struct Facts {
    syntax: String,
    class: String,
    instance: String,
    series: String,
    description: String,
    modality: String,
    series_number: Option<f64>,
    rows: u16,
    columns: u16,
    samples: Option<u16>,
    frames: u64,
    bits_allocated: u16,
    bits_stored: Option<u16>,
    high_bit: Option<u16>,
    signed: bool,
    planar: bool,
    photometric: String,
    has_modality_table: bool,
    between_slices: Option<f64>,
    /// Of the whole file.
    common: FrameFacts,
    /// Of each frame; only of files with functional groups.
    each: Vec<FrameFacts>,
    /// Offsets of planes along the normal, of a dose.
    plane_offsets: Vec<f64>,
    dose_scaling: Option<f64>,
    /// The extended offset table.
    offsets: Vec<u64>,
    catalog: Vec<Vec<String>>,
}

const SHARED: Tag = (0x5200, 0x9229);
const PER_FRAME: Tag = (0x5200, 0x9230);
const RECORDS: Tag = (0x0004, 0x1220);
const MODALITY_TABLE: Tag = (0x0028, 0x3000);

/// The sequences in functional groups whose values are read.
const GROUPS: [Tag; 8] = [
    (0x0020, 0x9113), // plane position
    (0x0020, 0x9116), // plane orientation
    (0x0028, 0x9110), // pixel measures
    (0x0028, 0x9145), // pixel value transformation
    (0x0020, 0x9111), // frame content
    (0x0018, 0x9117), // MR diffusion
    (0x0018, 0x9114), // MR echo
    (0x0018, 0x9118), // cardiac synchronization
];

impl Visitor for Facts {
    fn enters(&mut self, path: &[Tag], tag: Tag) -> bool {
        match path {
            [] => {
                self.has_modality_table |= tag == MODALITY_TABLE;
                matches!(tag, SHARED | PER_FRAME | RECORDS)
            }
            [SHARED | PER_FRAME] => GROUPS.contains(&tag),
            _ => false,
        }
    }

    fn item(&mut self, path: &[Tag]) {
        if path == [PER_FRAME] && (self.each.len() as u64) < MOST_FRAMES {
            self.each.push(FrameFacts::default());
        }
    }

    fn wants(&mut self, path: &[Tag], tag: Tag) -> bool {
        match path {
            [] => matches!(
                tag,
                (0x0002, 0x0010 | 0x0002)
                    | (
                        0x0008,
                        0x0016 | 0x0018 | 0x0060 | 0x103e | 0x002a | 0x0032 | 0x0033
                    )
                    | (0x0018, 0x0050 | 0x0081 | 0x0086 | 0x0088 | 0x1060 | 0x9087)
                    | (
                        0x0020,
                        0x000e | 0x0011 | 0x0012 | 0x0013 | 0x0032 | 0x0037 | 0x0100
                    )
                    | (0x0028, _)
                    | (0x3004, 0x000c | 0x000e)
                    | (0x7fe0, 0x0001)
            ),
            [RECORDS] => tag == (0x0004, 0x1500),
            [SHARED | PER_FRAME, _] => true,
            _ => false,
        }
    }

    fn value(&mut self, path: &[Tag], tag: Tag, value: &Value<'_>) {
        match path {
            [] if self.top(tag, value) => {}
            [RECORDS] => {
                let text = value.text();
                self.catalog
                    .push(text.split('\\').map(str::to_owned).collect());
            }
            [] | [SHARED, _] => frame_value(&mut self.common, tag, value),
            [PER_FRAME, _] => {
                if let Some(frame) = self.each.last_mut() {
                    frame_value(frame, tag, value);
                }
            }
            _ => {}
        }
    }
}

impl Facts {
    /// Takes a value that belongs to the whole file. Returns `false` if it is not one.
    fn top(&mut self, tag: Tag, value: &Value<'_>) -> bool {
        match tag {
            (0x0002, 0x0010) => self.syntax = value.text(),
            (0x0002, 0x0002) | (0x0008, 0x0016) => self.class = value.text(),
            (0x0008, 0x0018) => self.instance = value.text(),
            (0x0008, 0x0060) => self.modality = value.text(),
            (0x0008, 0x103e) => self.description = value.text(),
            (0x0020, 0x000e) => self.series = value.text(),
            (0x0020, 0x0011) => self.series_number = value.number(),
            (0x0018, 0x0088) => self.between_slices = value.number(),
            (0x0028, 0x0002) => self.samples = value.u16(),
            (0x0028, 0x0004) => self.photometric = value.text(),
            (0x0028, 0x0006) => self.planar = value.u16() == Some(1),
            (0x0028, 0x0008) => {
                self.frames = value.text().parse().unwrap_or(0);
            }
            (0x0028, 0x0010) => self.rows = value.u16().unwrap_or(0),
            (0x0028, 0x0011) => self.columns = value.u16().unwrap_or(0),
            (0x0028, 0x0100) => self.bits_allocated = value.u16().unwrap_or(0),
            (0x0028, 0x0101) => self.bits_stored = value.u16(),
            (0x0028, 0x0102) => self.high_bit = value.u16(),
            (0x0028, 0x0103) => self.signed = value.u16() == Some(1),
            (0x3004, 0x000c) => self.plane_offsets = value.decimals(),
            (0x3004, 0x000e) => self.dose_scaling = value.number(),
            (0x7fe0, 0x0001) => {
                let words = value.u32s();
                let pairs = words.chunks_exact(2);
                self.offsets = pairs
                    .map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32)
                    .collect();
            }
            _ => return false,
        }
        true
    }
}

/// Takes a value that belongs to a frame.
fn frame_value(frame: &mut FrameFacts, tag: Tag, value: &Value<'_>) {
    let three = |numbers: Vec<f64>| numbers.first_chunk::<3>().copied();
    let mut order = |which: Order, number: Option<f64>| {
        if number.is_some() {
            frame.order[which as usize] = number;
        }
    };
    match tag {
        (0x0020, 0x0032) => frame.position = three(value.decimals()),
        (0x0020, 0x0037) => frame.orientation = value.decimals().first_chunk::<6>().copied(),
        (0x0028, 0x0030) => frame.spacing = value.decimals().first_chunk::<2>().copied(),
        (0x0028, 0x1053) => frame.slope = value.number(),
        (0x0028, 0x1052) => frame.intercept = value.number(),
        (0x0018, 0x0050) => frame.thickness = value.number(),
        (0x0020, 0x0100) => order(Order::TemporalPosition, value.number()),
        (0x0020, 0x9128) => order(
            Order::TemporalPosition,
            value.u32s().first().map(|&n| f64::from(n)),
        ),
        (0x0018, 0x1060) | (0x0020, 0x9153) => order(Order::TriggerTime, value.number()),
        (0x0018, 0x9087) => order(Order::BValue, value.number()),
        (0x0018, 0x0081 | 0x9082) => order(Order::EchoTime, value.number()),
        (0x0018, 0x0086) => order(Order::EchoNumber, value.number()),
        (0x0020, 0x0012) => order(Order::AcquisitionNumber, value.number()),
        (0x0020, 0x9156) => order(Order::AcquisitionNumber, value.u16().map(f64::from)),
        (0x0008, 0x002a | 0x0032) => order(Order::AcquisitionTime, time(value)),
        (0x0008, 0x0033) => order(Order::ContentTime, time(value)),
        (0x0020, 0x0013) => order(Order::InstanceNumber, value.number()),
        _ => {}
    }
}

/// Returns a time of day, or a date with time, as a number that ascends.
fn time(value: &Value<'_>) -> Option<f64> {
    let text = value.text();
    let plain = text.split(['+', '-']).next().unwrap_or_default();
    plain.parse().ok().filter(|time: &f64| time.is_finite())
}

/// Returns `true` if bytes without a preamble look like a data set: its first element is in group 8, and named or short.
fn is_bare(head: &[u8]) -> Option<Encoding> {
    let start: &[u8; 8] = head.first_chunk()?;
    let element = u16::from_le_bytes([start[2], start[3]]);
    if start[..2] != [8, 0] || element > 0x70 {
        return None;
    }
    let kind = [start[4], start[5]];
    let explicit = matches!(&kind, b"UI" | b"CS" | b"UL" | b"DA" | b"TM" | b"SH" | b"LO");
    let length = u32::from_le_bytes([start[4], start[5], start[6], start[7]]);
    (explicit || length < 256).then_some(Encoding {
        explicit,
        big_endian: false,
    })
}

/// Reads the header of a file of `length` bytes.
pub(super) fn read(mut file: File, length: u64) -> Result<Found, Problem> {
    let mut head = [0; 132];
    let mut filled = 0;
    while filled < head.len() {
        match file.read(&mut head[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    let head = &head[..filled];
    let has_preamble = head.get(128..132) == Some(b"DICM");
    let bare = if has_preamble { None } else { is_bare(head) };
    if !has_preamble && bare.is_none() {
        return Ok(Found::Foreign);
    }
    file.seek(SeekFrom::Start(0))?;
    let file = BufReader::with_capacity(BUFFER, file);
    let mut facts = Facts::default();
    let (mut elements, syntax) = if let Some(encoding) = bare {
        let elements = Elements::new(file, 0, length, encoding)?;
        (elements, Syntax::Native { big_endian: false })
    } else {
        let explicit = Encoding {
            explicit: true,
            big_endian: false,
        };
        let mut meta = Elements::new(file, 132, length, explicit)?;
        let start = meta.visit_meta(&mut facts)?;
        let file = meta.into_file();
        let (syntax, encoding) = Syntax::of(&facts.syntax).map_err(Problem::Unsupported)?;
        let elements = if syntax == Syntax::Deflated {
            let mut found = after_meta(Elements::inflated(file, start)?, facts, syntax, length)?;
            if let Found::Image(header) = &mut found {
                header.extents = vec![(start, length); header.frames.len()];
            }
            return Ok(found);
        } else {
            Elements::new(file, start, length, encoding)?
        };
        (elements, syntax)
    };
    let pixels = elements.visit(&mut facts);
    let pixels = match (pixels, bare) {
        // Bytes that only looked like a data set.
        (Err(_), Some(_)) => return Ok(Found::Foreign),
        (Ok(None), Some(_)) if facts.rows == 0 => return Ok(Found::Foreign),
        (pixels, _) => pixels?,
    };
    facts.found(pixels, elements.into_file(), syntax, length)
}

/// Reads a deflated data set.
fn after_meta(
    mut elements: Elements,
    mut facts: Facts,
    syntax: Syntax,
    length: u64,
) -> Result<Found, Problem> {
    let pixels = elements.visit(&mut facts)?;
    facts.found(pixels, elements.into_file(), syntax, length)
}

impl Facts {
    /// Returns what the file is, after its elements have been read.
    fn found(
        mut self,
        pixels: Option<PixelStart>,
        mut file: BufReader<File>,
        syntax: Syntax,
        length: u64,
    ) -> Result<Found, Problem> {
        if !self.catalog.is_empty() {
            return Ok(Found::Catalog(self.catalog));
        }
        let Some(pixels) = pixels else {
            return Ok(Found::NoImage);
        };
        let form = self.form(pixels, syntax)?;
        let count = if self.each.is_empty() {
            self.frames.max(1)
        } else {
            self.frames
        };
        if count == 0 || count > MOST_FRAMES {
            return Err(Problem::Header(format!(
                "it has {count} frames, not 1 to {MOST_FRAMES}"
            )));
        }
        if !self.each.is_empty() && self.each.len() as u64 != count {
            return Err(Problem::Header(format!(
                "it has {count} frames, but {} functional groups",
                self.each.len()
            )));
        }
        let frames = usize::try_from(count).map_err(|error| Problem::Header(error.to_string()))?;
        let extents = match pixels.length {
            Some(bytes) if !syntax.is_encapsulated() => {
                let bits = u64::from(form.rows)
                    * u64::from(form.columns)
                    * u64::from(form.samples)
                    * u64::from(form.bits_allocated);
                let each = bits / 8;
                let needed = each.checked_mul(count);
                if needed.is_none_or(|needed| needed > bytes) {
                    return Err(Problem::Header(format!(
                        "{count} frames of {} x {} x {} x {} bits need more than the {bytes} bytes of the pixel data",
                        form.rows, form.columns, form.samples, form.bits_allocated
                    )));
                }
                if syntax == Syntax::Deflated {
                    Vec::new()
                } else {
                    (0..count)
                        .map(|n| (pixels.offset + n * each, pixels.offset + (n + 1) * each))
                        .collect()
                }
            }
            None if syntax.is_encapsulated() => {
                frame_extents(&mut file, (pixels.offset, length), frames, &self.offsets)?
            }
            _ => {
                return Err(Problem::Header(format!(
                    "the pixel data are {} fragments, unlike the transfer syntax {}",
                    if pixels.length.is_some() {
                        "not in"
                    } else {
                        "in"
                    },
                    self.syntax
                )));
            }
        };
        if !syntax.is_encapsulated()
            && syntax != Syntax::Deflated
            && extents.last().is_some_and(|(_, end)| *end > length)
        {
            return Err(Problem::Header(format!(
                "the pixel data need {} bytes, but the file has {length}",
                extents.last().map_or(0, |(_, end)| *end)
            )));
        }
        self.place_planes(frames)?;
        Ok(Found::Image(Box::new(FileHeader {
            series: self.series,
            instance: self.instance,
            description: self.description,
            modality: self.modality,
            series_number: self.series_number,
            form,
            has_modality_table: self.has_modality_table,
            between_slices: self.between_slices,
            frames: self.each,
            extents,
            inflated: pixels.offset,
        })))
    }

    fn form(&self, pixels: PixelStart, syntax: Syntax) -> Result<PixelForm, Problem> {
        let float = pixels.tag != PIXELS[0];
        let form = PixelForm {
            rows: self.rows,
            columns: self.columns,
            samples: self.samples.unwrap_or(1),
            bits_allocated: self.bits_allocated,
            bits_stored: self.bits_stored.unwrap_or(self.bits_allocated),
            high_bit: self.high_bit.unwrap_or(
                self.bits_stored
                    .unwrap_or(self.bits_allocated)
                    .saturating_sub(1),
            ),
            signed: self.signed,
            float,
            planar: self.planar,
            photometric: self.photometric.clone(),
            syntax,
        };
        let bits = form.bits_allocated;
        if form.rows == 0 || form.columns == 0 || form.samples == 0 || bits == 0 {
            return Err(Problem::Header(format!(
                "{} x {} pixels of {} x {bits} bits have no voxels",
                form.rows, form.columns, form.samples
            )));
        }
        if bits == 1 {
            return Err(Problem::Unsupported(
                "its voxels are single bits, as in a segmentation object: make a volume of it with highdicom or dcmqi"
                    .to_owned(),
            ));
        }
        if !(matches!(bits, 8 | 16 | 32) || (float && bits == 64)) {
            return Err(Problem::Header(format!(
                "samples of {bits} bits are not 8, 16 or 32"
            )));
        }
        let stored = form.bits_stored;
        if !float
            && (stored == 0 || stored > bits || form.high_bit >= bits || form.high_bit + 1 < stored)
        {
            return Err(Problem::Header(format!(
                "{stored} bits up to bit {} are not inside {bits} bits",
                form.high_bit
            )));
        }
        match (form.samples, form.photometric.as_str()) {
            (1, "PALETTE COLOR") => Err(Problem::Unsupported(
                "its voxels are indices of a palette of colors, which are not measurements: convert it to gray or RGB first"
                    .to_owned(),
            )),
            (1, _) => Ok(form),
            (3, "YBR_FULL_422" | "YBR_PARTIAL_422" | "YBR_PARTIAL_420") if !syntax.is_encapsulated() => {
                Err(Problem::Unsupported(format!(
                    "uncompressed {} colors, which share samples between pixels, are not read: convert it to RGB first",
                    form.photometric
                )))
            }
            (3, "RGB" | "YBR_FULL" | "YBR_FULL_422" | "YBR_RCT" | "YBR_ICT") if bits == 8 => Ok(form),
            (3, "RGB") if bits == 16 => Ok(form),
            (samples, colors) => Err(Problem::Unsupported(format!(
                "{samples} samples of {bits} bits as {:?} are not read",
                super::excerpt(colors)
            ))),
        }
    }

    /// Completes the facts of each frame by those of the whole file.
    fn place_planes(&mut self, frames: usize) -> Result<(), Problem> {
        let mut common = self.common;
        if let Some(scaling) = self.dose_scaling {
            (common.slope, common.intercept) = (Some(scaling), None);
        }
        if self.each.is_empty() {
            self.each = vec![common; frames];
            let offsets = std::mem::take(&mut self.plane_offsets);
            if frames == 1 || (offsets.is_empty() && common.position.is_none()) {
                return Ok(());
            }
            let (Some(position), Some(orientation), true) =
                (common.position, common.orientation, offsets.len() == frames)
            else {
                return Err(Problem::Unsupported(format!(
                    "its {frames} frames have no positions of their own"
                )));
            };
            let normal = super::geometry::normal(orientation);
            // The offsets are relative to the first plane, or absolute along z.
            let first = if offsets[0] == 0.0 { 0.0 } else { offsets[0] };
            for (frame, offset) in self.each.iter_mut().zip(offsets) {
                let along = offset - first;
                frame.position = Some(std::array::from_fn(|a| position[a] + along * normal[a]));
            }
            return Ok(());
        }
        for frame in &mut self.each {
            let own = *frame;
            *frame = FrameFacts {
                position: own.position.or(common.position),
                orientation: own.orientation.or(common.orientation),
                spacing: own.spacing.or(common.spacing),
                slope: own.slope.or(common.slope),
                intercept: own.intercept.or(common.intercept),
                thickness: own.thickness.or(common.thickness),
                order: std::array::from_fn(|n| own.order[n].or(common.order[n])),
            };
        }
        Ok(())
    }
}
