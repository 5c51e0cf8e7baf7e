//! A chunk of Blosc2: blocks, each of one or more streams, and the filters over them.
//!
//! The decoder is written here, in safe Rust, for the codecs blosclz, LZ4, zlib and zstd and the filters shuffle, bitshuffle and
//! truncation of precision; everything else is refused. It writes at most what the caller promises.

use super::super::decoders;
use crate::error::Cause;

/// Bytes of the header of a chunk.
pub(super) const HEADER: usize = 32;

/// Places of numbers in the header.
const FLAGS: usize = 2;
const TYPE_SIZE: usize = 3;
const LENGTH: usize = 4;
const BLOCK: usize = 8;
const ENCODED: usize = 12;
const FILTERS: usize = 16;
const FILTER_METAS: usize = 24;
const FLAGS2: usize = 31;

/// The number of filters.
const COUNT: usize = 6;

/// Bits of the flags.
const EXTENDED: u8 = 0b101;
const COPIED: u8 = 0b10;
const WHOLE: u8 = 0b1_0000;
const DICTIONARY: u8 = 1;

fn word(bytes: &[u8], at: usize) -> Result<usize, Cause> {
    let four = bytes.get(at..at + 4).ok_or("it is cut off")?;
    Ok(usize::try_from(i32::from_le_bytes(four.try_into()?))?)
}

/// Returns the encoded length in the header of a chunk.
pub(super) fn encoded_length(header: &[u8]) -> Result<u64, Cause> {
    Ok(word(header, ENCODED)? as u64)
}

/// Returns the decoded length in the header of a chunk.
pub(super) fn decoded_length(header: &[u8]) -> Result<u64, Cause> {
    Ok(word(header, LENGTH)? as u64)
}

/// Decodes a chunk into all of `out`.
pub(super) fn decode(chunk: &[u8], out: &mut [u8]) -> Result<(), Cause> {
    if chunk.len() < HEADER || chunk[FLAGS] & EXTENDED != EXTENDED {
        return Err("it has no header of Blosc2".into());
    }
    let (flags, flags2) = (chunk[FLAGS], chunk[FLAGS2]);
    let (length, block) = (word(chunk, LENGTH)?, word(chunk, BLOCK)?);
    let size = usize::from(chunk[TYPE_SIZE]).max(1);
    if length != out.len() {
        return Err(format!("it has {length} bytes, {} are needed", out.len()).into());
    }
    match flags2 >> 4 & 7 {
        0 => {}
        // Zeros, and voxels that were never written.
        1 | 4 => {
            out.fill(0);
            return Ok(());
        }
        2 => return not_numbers(size, out),
        3 => {
            let value = chunk.get(HEADER..HEADER + size).ok_or("it is cut off")?;
            for voxel in out.chunks_mut(size) {
                let length = voxel.len();
                voxel.copy_from_slice(&value[..length]);
            }
            return Ok(());
        }
        kind => return Err(format!("special chunks of kind {kind} are not read").into()),
    }
    if flags2 & DICTIONARY != 0 {
        return Err("dictionaries are not read".into());
    }
    if flags & COPIED != 0 {
        let bytes = chunk
            .get(HEADER..)
            .and_then(|rest| rest.get(..length))
            .ok_or("it is cut off")?;
        out.copy_from_slice(bytes);
        return Ok(());
    }
    if block == 0 || block > length {
        return Err(format!("blocks of {block} bytes do not fit {length} bytes").into());
    }
    let mut scratch = Vec::new();
    for (n, part) in out.chunks_mut(block).enumerate() {
        let start = word(chunk, HEADER + 4 * n)?;
        let is_split = flags & WHOLE == 0 && part.len() == block;
        let streams = if is_split { size } else { 1 };
        if part.len() % streams != 0 {
            return Err("a block is not a whole number of streams".into());
        }
        let encoded = chunk.get(start..).ok_or("a block is outside")?;
        decode_streams(encoded, flags >> 5, part.len() / streams, part)?;
        for filter in (0..COUNT).rev() {
            let meta = usize::from(chunk[FILTER_METAS + filter]);
            let own = if meta == 0 { size } else { meta };
            match chunk[FILTERS + filter] {
                // Nothing, and the truncation of precision, which nothing undoes.
                0 | 4 => {}
                1 => {
                    scratch.clear();
                    scratch.extend_from_slice(part);
                    unshuffle(&scratch, own, part);
                }
                2 => {
                    scratch.clear();
                    scratch.extend_from_slice(part);
                    bit_unshuffle(&scratch, own, part);
                }
                other => return Err(format!("filter {other} is not read").into()),
            }
        }
    }
    Ok(())
}

fn not_numbers(size: usize, out: &mut [u8]) -> Result<(), Cause> {
    match size {
        4 => out
            .chunks_exact_mut(4)
            .for_each(|voxel| voxel.copy_from_slice(&f32::NAN.to_le_bytes())),
        8 => out
            .chunks_exact_mut(8)
            .for_each(|voxel| voxel.copy_from_slice(&f64::NAN.to_le_bytes())),
        _ => return Err("it is all NaN, but its voxels are not floats".into()),
    }
    Ok(())
}

/// Decodes the streams of a block, each of `length` bytes.
fn decode_streams(
    mut encoded: &[u8],
    codec: u8,
    length: usize,
    out: &mut [u8],
) -> Result<(), Cause> {
    for stream in out.chunks_mut(length.max(1)) {
        let (count, rest) = encoded.split_at_checked(4).ok_or("a stream is cut off")?;
        let count = i32::from_le_bytes(count.try_into()?);
        if count <= 0 {
            // A run of one byte: zeros, or the one that the length stands for.
            let mut value = 0;
            encoded = rest;
            if count < 0 {
                let (&token, rest) = rest.split_first().ok_or("a stream is cut off")?;
                if token & 1 == 0 {
                    return Err("a stream has an unknown token".into());
                }
                encoded = rest;
                value = u8::try_from(-i64::from(count))?;
            }
            stream.fill(value);
            continue;
        }
        let count = usize::try_from(count)?;
        let (bytes, rest) = rest.split_at_checked(count).ok_or("a stream is cut off")?;
        encoded = rest;
        if count == length {
            stream.copy_from_slice(bytes);
            continue;
        }
        let decoded = match codec {
            0 => blosclz(bytes, length)?,
            1 => lz4(bytes, length)?,
            3 => decoders::zlib(bytes, length)?,
            4 => decoders::zstd(bytes, length)?,
            other => return Err(format!("codec {other} is not read").into()),
        };
        if decoded.len() != length {
            let found = decoded.len();
            return Err(format!("a stream decodes to {found} bytes, {length} are needed").into());
        }
        stream.copy_from_slice(&decoded);
    }
    Ok(())
}

/// Puts the bytes of each element together again; a rest is stored as it is.
fn unshuffle(from: &[u8], size: usize, out: &mut [u8]) {
    let count = from.len() / size;
    let whole = count * size;
    for (n, plane) in from[..whole].chunks_exact(count.max(1)).enumerate() {
        for (element, &byte) in out.chunks_exact_mut(size).zip(plane) {
            element[n] = byte;
        }
    }
    out[whole..].copy_from_slice(&from[whole..]);
}

/// Puts the bits of each element together again. Only whole groups of 8 elements are shuffled.
pub(in super::super) fn bit_unshuffle(from: &[u8], size: usize, out: &mut [u8]) {
    let count = from.len() / size / 8 * 8;
    let whole = count * size;
    out[..whole].fill(0);
    let row = count / 8;
    for byte in 0..size {
        for bit in 0..8 {
            let plane = &from[(byte * 8 + bit) * row..][..row];
            for (group, &eight) in plane.iter().enumerate() {
                for n in 0..8 {
                    out[(group * 8 + n) * size + byte] |= (eight >> n & 1) << bit;
                }
            }
        }
    }
    out[whole..].copy_from_slice(&from[whole..]);
}

/// Decodes a block of LZ4 of at most `limit` bytes.
pub(in super::super) fn lz4(mut from: &[u8], limit: usize) -> Result<Vec<u8>, Cause> {
    fn extended(from: &mut &[u8], short: usize) -> Result<usize, Cause> {
        let mut length = short;
        if short == 15 {
            loop {
                let (&more, rest) = from.split_first().ok_or("the LZ4 block is cut off")?;
                *from = rest;
                length += usize::from(more);
                if more < 255 {
                    break;
                }
            }
        }
        Ok(length)
    }
    let mut out: Vec<u8> = Vec::with_capacity(limit);
    let too_long = || format!("it decodes to more than {limit} bytes");
    while let Some((&token, rest)) = from.split_first() {
        from = rest;
        let count = extended(&mut from, usize::from(token >> 4))?;
        let (literals, rest) = from
            .split_at_checked(count)
            .ok_or("the LZ4 block is cut off")?;
        if out.len() + count > limit {
            return Err(too_long().into());
        }
        out.extend_from_slice(literals);
        from = rest;
        if from.is_empty() {
            break;
        }
        let (back, rest) = from.split_at_checked(2).ok_or("the LZ4 block is cut off")?;
        from = rest;
        let back = usize::from(u16::from_le_bytes(back.try_into()?));
        let count = extended(&mut from, usize::from(token & 15))? + 4;
        let start = out
            .len()
            .checked_sub(back)
            .filter(|_| back > 0)
            .ok_or("the LZ4 block refers to bytes before its beginning")?;
        if out.len() + count > limit {
            return Err(too_long().into());
        }
        for n in start..start + count {
            out.push(out[n]);
        }
    }
    Ok(out)
}

/// Decodes blosclz of at most `limit` bytes.
fn blosclz(mut from: &[u8], limit: usize) -> Result<Vec<u8>, Cause> {
    /// The largest distance of two bytes; longer ones have two more.
    const FAR: usize = 8191;
    fn next(from: &mut &[u8]) -> Result<usize, Cause> {
        let (&byte, rest) = from.split_first().ok_or("the blosclz stream is cut off")?;
        *from = rest;
        Ok(usize::from(byte))
    }
    let mut out: Vec<u8> = Vec::with_capacity(limit);
    let too_long = || format!("it decodes to more than {limit} bytes");
    let mut control = next(&mut from)? & 31;
    loop {
        if control < 32 {
            let (literals, rest) = from
                .split_at_checked(control + 1)
                .ok_or("the blosclz stream is cut off")?;
            if out.len() + literals.len() > limit {
                return Err(too_long().into());
            }
            out.extend_from_slice(literals);
            from = rest;
        } else {
            let (mut count, high) = ((control >> 5) - 1, control & 31);
            if count == 6 {
                loop {
                    let more = next(&mut from)?;
                    count += more;
                    if more < 255 {
                        break;
                    }
                }
            }
            count += 3;
            let low = next(&mut from)?;
            let back = if low == 255 && high == 31 {
                (next(&mut from)? << 8) + next(&mut from)? + FAR + 1
            } else {
                (high << 8) + low + 1
            };
            let start = out
                .len()
                .checked_sub(back)
                .ok_or("the blosclz stream refers to bytes before its beginning")?;
            if out.len() + count > limit {
                return Err(too_long().into());
            }
            for n in start..start + count {
                out.push(out[n]);
            }
        }
        if from.is_empty() {
            return Ok(out);
        }
        control = next(&mut from)?;
    }
}
