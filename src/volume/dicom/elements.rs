//! The elements of a DICOM data set, read up to the pixel data.
//!
//! Values are read only where a caller asks for them, and only up to [`LONGEST`] bytes; everything else is skipped.
//! Nested sequences are followed to a fixed depth. Nothing is allocated by a length in the file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use flate2::bufread::DeflateDecoder;

/// A tag: group and element.
pub(super) type Tag = (u16, u16);

/// Maximum length of a value that is read.
const LONGEST: u32 = 1 << 16;

/// Maximum depth of nested sequences.
const DEEPEST: usize = 12;

/// Maximum number of elements of a file up to its pixel data.
const MOST_ELEMENTS: u64 = 20_000_000;

/// Maximum decoded bytes before the pixel data of a deflated data set.
const MOST_INFLATED: u64 = 1 << 30;

const ITEM: Tag = (0xfffe, 0xe000);
const ITEM_END: Tag = (0xfffe, 0xe00d);
const SEQUENCE_END: Tag = (0xfffe, 0xe0dd);
const UNDEFINED: u32 = u32::MAX;

/// The elements whose values are voxels: integers, 32-bit floats, 64-bit floats.
pub(super) const PIXELS: [Tag; 3] = [(0x7fe0, 0x0010), (0x7fe0, 0x0008), (0x7fe0, 0x0009)];

/// How the elements of a data set are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoding {
    /// `true` if each element names its value representation.
    pub(super) explicit: bool,
    /// `true` if numbers are big-endian.
    pub(super) big_endian: bool,
}

/// A value of an element.
#[derive(Debug)]
pub(super) struct Value<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) big_endian: bool,
}

impl Value<'_> {
    /// Returns a text without padding.
    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(self.bytes);
        text.trim_matches([' ', '\0']).to_owned()
    }

    /// Returns the numbers of a text, separated by backslashes; empty if one of them is not a finite number.
    pub(super) fn decimals(&self) -> Vec<f64> {
        let text = self.text();
        let numbers = text.split('\\').map(|word| word.trim().parse::<f64>());
        let numbers: Result<Vec<f64>, _> = numbers.collect();
        let mut numbers = numbers.unwrap_or_default();
        if numbers.iter().any(|number| !number.is_finite()) {
            numbers.clear();
        }
        numbers
    }

    fn chunk<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes: [u8; N] = *self.bytes.get(at..)?.first_chunk()?;
        if self.big_endian {
            bytes.reverse();
        }
        Some(bytes)
    }

    /// Returns an unsigned 16-bit number.
    pub(super) fn u16(&self) -> Option<u16> {
        self.chunk(0).map(u16::from_le_bytes)
    }

    /// Returns all unsigned 32-bit numbers.
    pub(super) fn u32s(&self) -> Vec<u32> {
        let count = self.bytes.len() / 4;
        (0..count)
            .filter_map(|n| self.chunk(4 * n).map(u32::from_le_bytes))
            .collect()
    }

    /// Returns a 64-bit floating-point number, if it is finite.
    pub(super) fn f64(&self) -> Option<f64> {
        let number = self.chunk(0).map(f64::from_le_bytes);
        number.filter(|number| number.is_finite())
    }

    /// Returns a number that is stored as text or in 64 bits, depending on the writer.
    pub(super) fn number(&self) -> Option<f64> {
        match self.decimals().first() {
            Some(&number) => Some(number),
            None if self.bytes.len() == 8 => self.f64(),
            None => None,
        }
    }
}

/// Receives the elements of a data set.
pub(super) trait Visitor {
    /// Returns `true` if the items of the sequence `tag` should be visited. `path` holds the sequences around it.
    fn enters(&mut self, path: &[Tag], tag: Tag) -> bool;

    /// Called before the elements of an item of the sequence that is last in `path`.
    fn item(&mut self, path: &[Tag]);

    /// Returns `true` if the value of `tag` should be read.
    fn wants(&mut self, path: &[Tag], tag: Tag) -> bool;

    /// Called with a value that was wanted.
    fn value(&mut self, path: &[Tag], tag: Tag, value: &Value<'_>);
}

/// Where the pixel data begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PixelStart {
    /// The element.
    pub(super) tag: Tag,
    /// The first byte of the value, counted from the start of the file, or of the decoded data set if it is deflated.
    pub(super) offset: u64,
    /// The length of the value; `None` if it is a sequence of fragments.
    pub(super) length: Option<u64>,
}

/// The bytes of a data set.
enum Source {
    File(BufReader<File>),
    Inflated(Box<BufReader<DeflateDecoder<BufReader<File>>>>),
}

/// A position in the bytes of a data set.
pub(super) struct Elements {
    source: Source,
    /// The bytes that have been read or skipped.
    at: u64,
    /// The length of the file; the limit for a deflated data set.
    end: u64,
    encoding: Encoding,
    count: u64,
    value: Vec<u8>,
}

fn ended() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

fn broken(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

impl Elements {
    /// Creates a position at byte `at` of a file of `length` bytes.
    pub(super) fn new(
        mut file: BufReader<File>,
        at: u64,
        length: u64,
        encoding: Encoding,
    ) -> io::Result<Self> {
        // What the buffer holds is not read again.
        let here = file.stream_position()?;
        let step = i64::try_from(i128::from(at) - i128::from(here)).map_err(|_| ended())?;
        file.seek_relative(step)?;
        Ok(Self {
            source: Source::File(file),
            at,
            end: length,
            encoding,
            count: 0,
            value: Vec::new(),
        })
    }

    /// Creates a position at the start of the data set that is deflated from byte `at` of a file on.
    pub(super) fn inflated(mut file: BufReader<File>, at: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(at))?;
        Ok(Self {
            source: Source::Inflated(Box::new(BufReader::new(DeflateDecoder::new(file)))),
            at: 0,
            end: MOST_INFLATED,
            encoding: Encoding {
                explicit: true,
                big_endian: false,
            },
            count: 0,
            value: Vec::new(),
        })
    }

    /// Returns the file.
    pub(super) fn into_file(self) -> BufReader<File> {
        match self.source {
            Source::File(file) => file,
            Source::Inflated(stream) => stream.into_inner().into_inner(),
        }
    }

    fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        match &mut self.source {
            Source::File(file) => file.read_exact(out)?,
            Source::Inflated(stream) => stream.read_exact(out)?,
        }
        self.at += out.len() as u64;
        Ok(())
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        let after = self
            .at
            .checked_add(count)
            .filter(|&after| after <= self.end);
        let after = after.ok_or_else(ended)?;
        match &mut self.source {
            Source::File(file) => {
                file.seek_relative(i64::try_from(count).map_err(|_| ended())?)?;
            }
            Source::Inflated(stream) => {
                let skipped = io::copy(&mut stream.by_ref().take(count), &mut io::sink())?;
                if skipped < count {
                    return Err(ended());
                }
            }
        }
        self.at = after;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> io::Result<u16> {
        let bytes = self.bytes()?;
        Ok(if self.encoding.big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        })
    }

    fn u32(&mut self) -> io::Result<u32> {
        let bytes = self.bytes()?;
        Ok(if self.encoding.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    fn is_at_end(&mut self) -> io::Result<bool> {
        Ok(match &mut self.source {
            Source::File(file) => file.fill_buf()?.is_empty(),
            Source::Inflated(stream) => stream.fill_buf()?.is_empty(),
        })
    }

    /// Reads a tag, and the value representation and length after it.
    fn header(&mut self) -> io::Result<(Tag, [u8; 2], u32)> {
        self.count += 1;
        if self.count > MOST_ELEMENTS {
            return Err(broken(format!(
                "more than {MOST_ELEMENTS} elements come before the pixel data"
            )));
        }
        let tag = (self.u16()?, self.u16()?);
        if tag.0 == 0xfffe || !self.encoding.explicit {
            return Ok((tag, *b"  ", self.u32()?));
        }
        let kind: [u8; 2] = self.bytes()?;
        let long = matches!(
            &kind,
            b"OB"
                | b"OD"
                | b"OF"
                | b"OL"
                | b"OV"
                | b"OW"
                | b"SQ"
                | b"SV"
                | b"UC"
                | b"UN"
                | b"UR"
                | b"UT"
                | b"UV"
        );
        if !kind.iter().all(u8::is_ascii_uppercase) {
            return Err(broken(format!(
                "element ({:04x},{:04x}) has no value representation",
                tag.0, tag.1
            )));
        }
        if long {
            self.u16()?;
            return Ok((tag, kind, self.u32()?));
        }
        Ok((tag, kind, u32::from(self.u16()?)))
    }

    /// Visits the elements up to the pixel data. Returns their start; `None` if the data set has none.
    pub(super) fn visit(&mut self, visitor: &mut dyn Visitor) -> io::Result<Option<PixelStart>> {
        while !self.is_at_end()? {
            let (tag, kind, length) = self.header()?;
            if PIXELS.contains(&tag) {
                return Ok(Some(PixelStart {
                    tag,
                    offset: self.at,
                    length: (length != UNDEFINED).then_some(u64::from(length)),
                }));
            }
            self.element(visitor, &mut Vec::new(), (tag, kind, length))?;
        }
        Ok(None)
    }

    /// Visits the elements of group 2, which are explicit and little-endian. Returns the first byte after them.
    pub(super) fn visit_meta(&mut self, visitor: &mut dyn Visitor) -> io::Result<u64> {
        loop {
            let start = self.at;
            // A deflated data set follows without a tag, so that only the first two bytes may be read.
            let (tag, kind, length) = match self.header() {
                Ok(found) if found.0.0 == 2 => found,
                Ok(_) => return Ok(start),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                    ) =>
                {
                    return Ok(start);
                }
                Err(error) => return Err(error),
            };
            self.element(visitor, &mut Vec::new(), (tag, kind, length))?;
        }
    }

    /// Visits the value of an element whose header has been read.
    fn element(
        &mut self,
        visitor: &mut dyn Visitor,
        path: &mut Vec<Tag>,
        (tag, kind, length): (Tag, [u8; 2], u32),
    ) -> io::Result<()> {
        let is_sequence = &kind == b"SQ" || length == UNDEFINED;
        let enters = (is_sequence || !self.encoding.explicit) && visitor.enters(path, tag);
        if enters || length == UNDEFINED {
            // The items of an unknown value of undefined length are implicit, whatever is around them.
            let outer = self.encoding;
            if &kind == b"UN" && length == UNDEFINED {
                self.encoding = Encoding {
                    explicit: false,
                    big_endian: false,
                };
            }
            let done = self.sequence(visitor, path, tag, length, enters);
            self.encoding = outer;
            return done;
        }
        if length <= LONGEST && visitor.wants(path, tag) {
            let mut value = std::mem::take(&mut self.value);
            value.clear();
            value.resize(length as usize, 0);
            let filled = self.fill(&mut value);
            if filled.is_ok() {
                let value = Value {
                    bytes: &value,
                    big_endian: self.encoding.big_endian,
                };
                visitor.value(path, tag, &value);
            }
            self.value = value;
            return filled;
        }
        self.skip(u64::from(length))
    }

    /// Visits the items of a sequence, or skips them if their elements are not wanted.
    fn sequence(
        &mut self,
        visitor: &mut dyn Visitor,
        path: &mut Vec<Tag>,
        tag: Tag,
        length: u32,
        enters: bool,
    ) -> io::Result<()> {
        if path.len() == DEEPEST {
            return Err(broken(format!(
                "sequences are nested more than {DEEPEST} deep"
            )));
        }
        let end = (length != UNDEFINED).then(|| self.at.saturating_add(u64::from(length)));
        path.push(tag);
        while end.is_none_or(|end| self.at < end) {
            let (found, _, length) = self.header()?;
            match found {
                SEQUENCE_END if end.is_none() => break,
                ITEM => {}
                _ => {
                    return Err(broken(
                        "a sequence has an element that is not an item".to_owned(),
                    ));
                }
            }
            if length != UNDEFINED && !enters {
                self.skip(u64::from(length))?;
                continue;
            }
            let inner = (length != UNDEFINED).then(|| self.at.saturating_add(u64::from(length)));
            if enters {
                visitor.item(path);
            }
            while inner.is_none_or(|inner| self.at < inner) {
                let (tag, kind, length) = self.header()?;
                if tag == ITEM_END {
                    break;
                }
                if enters {
                    self.element(visitor, path, (tag, kind, length))?;
                } else {
                    self.element(&mut Nobody, path, (tag, kind, length))?;
                }
            }
        }
        path.pop();
        Ok(())
    }
}

/// A visitor that wants nothing.
struct Nobody;

impl Visitor for Nobody {
    fn enters(&mut self, _: &[Tag], _: Tag) -> bool {
        false
    }
    fn item(&mut self, _: &[Tag]) {}
    fn wants(&mut self, _: &[Tag], _: Tag) -> bool {
        false
    }
    fn value(&mut self, _: &[Tag], _: Tag, _: &Value<'_>) {}
}

/// A byte range of a file.
pub(super) type Extent = (u64, u64);

/// Finds the fragments of each frame of encapsulated pixel data that begin at byte `at` of a file of `length` bytes:
/// byte ranges that include the headers of the fragments.
///
/// The frames of a file with several are found from the basic offset table, from `offsets` (the extended offset table),
/// or, if neither exists, by taking one fragment for each frame.
pub(super) fn frame_extents(
    file: &mut BufReader<File>,
    (at, length): (u64, u64),
    frames: usize,
    offsets: &[u64],
) -> io::Result<Vec<Extent>> {
    file.seek(SeekFrom::Start(at))?;
    let mut header = [0; 8];
    file.read_exact(&mut header)?;
    let tag = |header: &[u8; 8]| {
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        (word(0), word(2))
    };
    let size = |header: &[u8; 8]| {
        u64::from(u32::from_le_bytes([
            header[4], header[5], header[6], header[7],
        ]))
    };
    if tag(&header) != ITEM {
        return Err(broken("the pixel data have no offset table".to_owned()));
    }
    let table = size(&header);
    let first = at.saturating_add(8).saturating_add(table);
    if first > length {
        return Err(ended());
    }
    if frames == 1 {
        return Ok(vec![(first, length)]);
    }
    let basic = if table >= 4 * frames as u64 && offsets.is_empty() {
        let mut bytes = vec![0; 4 * frames];
        file.read_exact(&mut bytes)?;
        let numbers = bytes.as_chunks::<4>().0.iter();
        numbers.map(|&n| u64::from(u32::from_le_bytes(n))).collect()
    } else {
        Vec::new()
    };
    let known = if offsets.len() == frames {
        offsets
    } else {
        &basic
    };
    if known.len() == frames {
        let starts: Vec<u64> = known.iter().map(|&n| first.saturating_add(n)).collect();
        let ends = starts.iter().skip(1).copied().chain([length]);
        let extents: Vec<Extent> = starts.iter().copied().zip(ends).collect();
        if extents
            .iter()
            .any(|(start, end)| start >= end || *end > length)
        {
            return Err(broken("the offsets of the frames do not ascend".to_owned()));
        }
        return Ok(extents);
    }
    // One fragment for each frame.
    let mut extents = Vec::new();
    let mut at = first;
    file.seek(SeekFrom::Start(at))?;
    while extents.len() < frames {
        file.read_exact(&mut header)?;
        if tag(&header) != ITEM {
            return Err(broken(format!(
                "{frames} frames have no offset table and only {} fragments",
                extents.len()
            )));
        }
        let end = at.saturating_add(8).saturating_add(size(&header));
        if end > length {
            return Err(ended());
        }
        extents.push((at, end));
        file.seek(SeekFrom::Start(end))?;
        at = end;
    }
    file.read_exact(&mut header)?;
    if tag(&header) == ITEM {
        return Err(broken(format!(
            "{frames} frames have no offset table and more than {frames} fragments"
        )));
    }
    Ok(extents)
}

/// Joins the fragments in `encoded`, up to the end of their sequence, without their headers.
pub(super) fn joined(encoded: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((header, after)) = rest.split_first_chunk::<8>() {
        let tag = [header[0], header[1], header[2], header[3]];
        if tag == [0xfe, 0xff, 0xdd, 0xe0] {
            break;
        }
        if tag != [0xfe, 0xff, 0x00, 0xe0] {
            return Err("a fragment has no item tag".to_owned());
        }
        let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let fragment = after.get(..size).ok_or("a fragment is cut off")?;
        out.extend_from_slice(fragment);
        rest = &after[size..];
    }
    if out.is_empty() {
        return Err("it has no fragments".to_owned());
    }
    Ok(out)
}
