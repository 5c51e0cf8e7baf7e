//! Arrays of Blosc2 in one file (`.b2nd`), such as the cases that nnU-Net prepares.
//!
//! A frame has a header with the shape, the chunks, and an index of where each chunk begins. Chunks are independent of
//! each other; inside a chunk, voxels are in blocks.

mod chunk;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

#[cfg(feature = "hdf5")]
pub(super) use self::chunk::{bit_unshuffle, lz4};
use super::blocks::{Block, BlockDecoder, BlockSource, BlockVolume};
use super::format::excerpt;
use super::watch::FileWatch;
use super::{Format, Layout, Volume};
use crate::dtype::{DType, swap_bytes};
use crate::error::{Cause, Error, Result};
use crate::files::open_regular;

const NAME: &str = "Blosc2";

/// The first bytes of a frame: an array of 14 items, of which the first is a name.
const MAGIC: &[u8] = b"\x9e\xa8b2frame\0";

/// Bytes of a header without metadata, and at most.
const HEADER: usize = 87;
const MOST_HEADER: u64 = 1 << 20;

/// Maximum number of chunks.
const MOST_CHUNKS: u64 = 1 << 24;

/// Returns `true` if a file with these first bytes is a frame.
pub(super) fn recognize(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// The metadata of an array.
#[derive(Clone, Debug, PartialEq)]
struct Array {
    shape: Vec<u64>,
    chunk: Vec<u64>,
    block: Vec<u64>,
    dtype: DType,
    big_endian: bool,
    /// Bytes of the header, and of all chunks.
    header: u64,
    chunks: u64,
    /// Decoded bytes of a chunk.
    chunk_bytes: u64,
}

/// Opens an array.
pub(super) fn open(path: &Path) -> Result<Arc<dyn Volume>> {
    let bad = |problem: Cause| Error::header(path, NAME, problem.to_string());
    let file = open_regular(path)?;
    let found = file.metadata().map_err(Error::io("look at", path))?;
    let mut files = FileWatch::default();
    files.add(path, &found);
    let mut head = vec![0; usize::try_from(found.len().min(MOST_HEADER)).unwrap_or(0)];
    file.read_exact_at(&mut head, 0)
        .map_err(Error::io("read", path))?;
    let array = Array::parse(&head).map_err(bad)?;
    let lengths = |own: &[u64]| -> Option<[u64; 4]> {
        let missing = 4_usize.checked_sub(own.len())?;
        Some(std::array::from_fn(|axis| {
            axis.checked_sub(missing).map_or(1, |dim| own[dim])
        }))
    };
    let rank = array.shape.len();
    let (Some([channels, z, y, x]), Some(chunk), Some(block)) = (
        lengths(&array.shape).filter(|_| rank >= 2),
        lengths(&array.chunk),
        lengths(&array.block),
    ) else {
        let what = format!("the array has {rank} axes: y, x or z, y, x or c, z, y, x are read");
        return Err(Error::unsupported(path, what));
    };
    let mut layout = Layout {
        path: path.to_path_buf(),
        format: Format::Blosc2,
        codecs: vec!["blosc2".to_owned()],
        ..Layout::new([z, y, x], channels, array.dtype)
    };
    layout.read_chunk = Some(chunk);
    layout.decoded_bytes()?;
    let grid = [channels, z, y, x]
        .iter()
        .zip(chunk)
        .try_fold(1_u64, |all, (&n, chunk)| all.checked_mul(n.div_ceil(chunk)));
    let count = grid
        .filter(|&n| n <= MOST_CHUNKS)
        .ok_or_else(|| bad(format!("it has more than {MOST_CHUNKS} chunks").into()))?;
    let blocks = places(&file, found.len(), &array, count)
        .map_err(|problem| bad(format!("the index of its chunks: {problem}").into()))?;
    let decoder = Decoder {
        chunk,
        block,
        dtype: array.dtype,
        big_endian: array.big_endian,
        bytes: usize::try_from(array.chunk_bytes).map_err(|error| bad(error.into()))?,
    };
    let source = BlockSource {
        identity: json!({"format": NAME, "big_endian": array.big_endian}),
        fill: vec![0; array.dtype.size()],
        time_points: None,
        layout,
        files,
        blocks: blocks.into(),
        decoder: Box::new(decoder),
    };
    Ok(Arc::new(BlockVolume::new(source)?))
}

/// Reads the index, and the length of each chunk from its header.
fn places(file: &File, length: u64, array: &Array, count: u64) -> Result<Vec<Block>, Cause> {
    let at = array
        .header
        .checked_add(array.chunks)
        .ok_or("it is outside")?;
    let encoded = read_chunk(file, length, at, count.saturating_mul(16) + (1 << 16))?;
    let length_of_index = chunk::decoded_length(&encoded)?;
    if length_of_index != count.saturating_mul(8) {
        return Err(format!("it has {length_of_index} bytes for {count} chunks").into());
    }
    let mut index = vec![0; usize::try_from(length_of_index)?];
    chunk::decode(&encoded, &mut index)?;
    let mut places = Vec::with_capacity(usize::try_from(count)?);
    for entry in index.chunks_exact(8) {
        let offset = i64::from_le_bytes(entry.try_into()?);
        let Ok(offset) = u64::try_from(offset) else {
            // A chunk that is not stored: the first byte without its first bit is its kind.
            match offset >> 56 & 0x7f {
                1 | 4 => places.push(ABSENT),
                kind => return Err(format!("chunks of kind {kind} are not read").into()),
            }
            continue;
        };
        let offset = array.header.checked_add(offset).ok_or("it is outside")?;
        let mut header = [0; chunk::HEADER];
        if offset
            .checked_add(header.len() as u64)
            .is_none_or(|end| end > length)
        {
            return Err("a chunk is outside the file".into());
        }
        file.read_exact_at(&mut header, offset)?;
        places.push(Block {
            file: 0,
            offset,
            length: chunk::encoded_length(&header)?.max(1),
        });
    }
    Ok(places)
}

/// A chunk that is not stored and all zeros.
const ABSENT: Block = Block {
    file: 0,
    offset: 0,
    length: 0,
};

/// Reads an encoded chunk of at most `most` bytes.
fn read_chunk(file: &File, length: u64, at: u64, most: u64) -> Result<Vec<u8>, Cause> {
    let is_inside = |bytes: u64| at.checked_add(bytes).is_some_and(|end| end <= length);
    let mut header = [0; chunk::HEADER];
    if !is_inside(header.len() as u64) {
        return Err("it is outside the file".into());
    }
    file.read_exact_at(&mut header, at)?;
    let own = chunk::encoded_length(&header)?;
    if !is_inside(own) || own > most {
        return Err(format!("it takes {own} bytes").into());
    }
    let mut bytes = vec![0; usize::try_from(own)?];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// A reader of the items of `MessagePack` that headers have.
struct Items<'a>(&'a [u8]);

impl<'a> Items<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Cause> {
        let (own, rest) = self
            .0
            .split_at_checked(count)
            .ok_or("its metadata are cut off")?;
        self.0 = rest;
        Ok(own)
    }

    fn tag(&mut self) -> Result<u8, Cause> {
        Ok(self.take(1)?[0])
    }

    /// Reads a whole number from 0 on.
    fn number(&mut self) -> Result<u64, Cause> {
        let bytes = match self.tag()? {
            small @ 0..0x80 => return Ok(u64::from(small)),
            0xcc | 0xd0 => self.take(1)?,
            0xcd | 0xd1 => self.take(2)?,
            0xce | 0xd2 => self.take(4)?,
            0xcf | 0xd3 => self.take(8)?,
            tag => return Err(format!("its metadata have the tag {tag} for a number").into()),
        };
        Ok(bytes
            .iter()
            .fold(0, |all, &byte| all << 8 | u64::from(byte)))
    }

    /// Reads a list of as many lengths above 0 as the array has axes.
    fn lengths(&mut self, rank: usize) -> Result<Vec<u64>, Cause> {
        if usize::from(self.tag()? ^ 0x90) != rank {
            return Err("its metadata have a list of another length".into());
        }
        let all: Vec<u64> = (0..rank).map(|_| self.number()).collect::<Result<_, _>>()?;
        if all.contains(&0) || all.iter().any(|&n| n > i64::MAX.unsigned_abs()) {
            return Err(format!("its lengths are {all:?}").into());
        }
        Ok(all)
    }
}

impl Array {
    fn parse(head: &[u8]) -> Result<Self, Cause> {
        let number = |at: usize, bytes: usize| -> Result<u64, Cause> {
            let own = head.get(at..at + bytes).ok_or("its header is cut off")?;
            Ok(own.iter().fold(0, |all, &byte| all << 8 | u64::from(byte)))
        };
        if !head.starts_with(MAGIC) {
            return Err("it does not begin like a frame".into());
        }
        let (header, chunks) = (number(11, 4)?, number(39, 8)?);
        let (type_size, chunk_bytes) = (number(48, 4)?, number(58, 4)?);
        let own = usize::try_from(header)?;
        let head = head.get(..own).ok_or("its header is cut off")?;
        let mut rest = Items(head.get(HEADER..).ok_or("its header is cut off")?);
        // An array of the length of the index, the index, and the contents.
        rest.take(5)?;
        let count = u16::from_be_bytes(rest.take(2)?.try_into()?);
        let mut place = None;
        for _ in 0..count {
            let length = usize::from(rest.tag()? & 0x1f);
            let name = rest.take(length)?;
            let at = rest.number()?;
            if matches!(name, b"b2nd" | b"caterva") {
                place = Some(usize::try_from(at)?);
            }
        }
        let place = place.ok_or("it is not an array: it has no metadata named b2nd")?;
        let mut items = Items(head.get(place..).ok_or("its metadata are outside")?);
        // The bytes of the content, and its list.
        items.take(5)?;
        items.tag()?;
        items.number()?;
        let rank = usize::try_from(items.number()?)?;
        if !(1..=8).contains(&rank) {
            return Err(format!("it has {rank} axes").into());
        }
        let (shape, chunk) = (items.lengths(rank)?, items.lengths(rank)?);
        let block = items.lengths(rank)?;
        let kind = if items.0.is_empty() {
            0
        } else {
            items.number()?
        };
        if kind != 0 {
            return Err(format!("types of format {kind} are not read").into());
        }
        let text = match items.tag() {
            Ok(0xdb) => {
                let length = u32::from_be_bytes(items.take(4)?.try_into()?);
                String::from_utf8_lossy(items.take(usize::try_from(length)?)?).into_owned()
            }
            _ => return Err("it has no type".into()),
        };
        let (dtype, big_endian) =
            dtype(&text).ok_or_else(|| format!("the type {:?} is not read", excerpt(&text)))?;
        if type_size != dtype.size() as u64 {
            return Err(format!("voxels of {text} do not have {type_size} bytes").into());
        }
        let padded = chunk
            .iter()
            .zip(&block)
            .map(|(chunk, block)| chunk.checked_next_multiple_of(*block))
            .try_fold(type_size, |all, n| all.checked_mul(n?));
        if padded != Some(chunk_bytes) {
            let problem = format!(
                "chunks of {chunk:?} in blocks of {block:?} do not have {chunk_bytes} bytes"
            );
            return Err(problem.into());
        }
        Ok(Self {
            shape,
            chunk,
            block,
            dtype,
            big_endian,
            header,
            chunks,
            chunk_bytes,
        })
    }
}

/// Returns the type that numpy's name stands for, and `true` if it is big-endian.
fn dtype(text: &str) -> Option<(DType, bool)> {
    let mut chars = text.chars();
    let big_endian = chars.next()? == '>';
    Some((DType::from_code(chars.as_str())?, big_endian))
}

/// Decodes chunks and puts their blocks together.
#[derive(Debug)]
struct Decoder {
    /// Voxels of a chunk and of a block, c, z, y, x.
    chunk: [u64; 4],
    block: [u64; 4],
    dtype: DType,
    big_endian: bool,
    /// Decoded bytes of a chunk.
    bytes: usize,
}

impl BlockDecoder for Decoder {
    fn most_encoded(&self, _: usize) -> u64 {
        self.bytes as u64 * 2 + (1 << 16)
    }

    fn decode(&self, _: usize, encoded: Vec<u8>, out: &mut [u8]) -> Result<(), Cause> {
        let mut voxels = Vec::new();
        voxels.try_reserve_exact(self.bytes)?;
        voxels.resize(self.bytes, 0);
        chunk::decode(&encoded, &mut voxels)?;
        let size = self.dtype.size();
        let usizes = |all: [u64; 4]| all.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let (chunk, block) = (usizes(self.chunk), usizes(self.block));
        let counts: [usize; 4] = std::array::from_fn(|axis| chunk[axis].div_ceil(block[axis]));
        let row = block[3] * size;
        let mut rows = voxels.chunks_exact(row);
        for number in 0..counts.iter().product() {
            let mut rest = number;
            let mut first = [0; 4];
            for axis in (0..4).rev() {
                first[axis] = rest % counts[axis] * block[axis];
                rest /= counts[axis];
            }
            for line in 0..block[0] * block[1] * block[2] {
                let from = rows.next().ok_or("it has too few rows")?;
                let at = [
                    first[0] + line / (block[1] * block[2]),
                    first[1] + line / block[2] % block[1],
                    first[2] + line % block[2],
                ];
                if (0..3).any(|axis| at[axis] >= chunk[axis]) {
                    continue;
                }
                let length = (chunk[3] - first[3]).min(block[3]) * size;
                let start = ((at[0] * chunk[1] + at[1]) * chunk[2] + at[2]) * chunk[3] + first[3];
                out[start * size..][..length].copy_from_slice(&from[..length]);
            }
        }
        if self.big_endian == cfg!(target_endian = "little") {
            swap_bytes(self.dtype, out);
        }
        Ok(())
    }
}
