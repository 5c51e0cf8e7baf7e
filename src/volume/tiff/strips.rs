//! Decoding of strips and tiles to voxels.

use super::super::blocks::BlockDecoder;
use super::super::blocks::codecs::{self, Picture, separate};
use super::ifd::PageForm;
use crate::error::Cause;

/// Decodes the blocks of pages that have the same form.
#[derive(Debug)]
pub(super) struct StripDecoder {
    pub(super) form: PageForm,
    pub(super) big_endian: bool,
    /// The rows of a block in the volume.
    pub(super) rows: u64,
    /// The numbers of blocks along y and x.
    pub(super) grid: [u64; 2],
    /// Bytes of a voxel.
    pub(super) size: usize,
}

/// A compression of strips and tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Lzw,
    Deflate,
    Zstd,
    PackBits,
    Jpeg,
}

impl Compression {
    /// Returns the compression with this number, or the reason why it is not read.
    pub(super) fn of(number: u64) -> Result<Self, String> {
        Ok(match number {
            1 => Self::None,
            5 => Self::Lzw,
            7 => Self::Jpeg,
            8 | 32946 => Self::Deflate,
            32773 => Self::PackBits,
            50000 => Self::Zstd,
            number => {
                let name = match number {
                    2..=4 => " (fax)",
                    6 => " (JPEG of TIFF 6)",
                    33003..=33005 | 34712 => " (JPEG 2000)",
                    34887 => " (LERC)",
                    34925 => " (LZMA)",
                    50001 => " (WebP)",
                    50002 | 52546 => " (JPEG XL)",
                    _ => "",
                };
                return Err(format!(
                    "compression {number}{name} is not read: none, LZW, deflate, zstd, PackBits and JPEG are"
                ));
            }
        })
    }

    /// Returns the name of the codec; `None` for uncompressed pages.
    pub(super) const fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Lzw => Some("lzw"),
            Self::Deflate => Some("deflate"),
            Self::Zstd => Some("zstd"),
            Self::PackBits => Some("packbits"),
            Self::Jpeg => Some("jpeg"),
        }
    }
}

impl StripDecoder {
    /// Returns the samples of a pixel that are in one block.
    fn together(&self) -> u64 {
        if self.form.planar {
            1
        } else {
            self.form.samples
        }
    }

    /// Returns the rows that block `index` stores: a strip ends with the page, a tile does not.
    fn stored_rows(&self, index: usize) -> u64 {
        if self.form.is_tiled {
            return self.rows;
        }
        let row = index as u64 / self.grid[1] % self.grid[0];
        self.rows.min(self.form.height - row * self.rows)
    }

    /// Returns the bytes of a row of a block before its bits are unpacked.
    fn row_bytes(&self) -> Option<u64> {
        let samples = self.form.block[1].checked_mul(self.together())?;
        Some(samples.checked_mul(self.form.bits)?.div_ceil(8))
    }

    fn unpacked(&self, bytes: Vec<u8>, rows: usize) -> Vec<u8> {
        let bits = self.form.bits;
        if bits.is_multiple_of(8) {
            return bytes;
        }
        let length = |n: u64| usize::try_from(n).expect("a part of a buffer in memory");
        let columns = length(self.form.block[1] * self.together());
        let mut out = Vec::with_capacity(rows * columns * self.size);
        let row = length(self.row_bytes().unwrap_or(1));
        for line in bytes.chunks_exact(row.max(1)) {
            let (mut value, mut held, mut rest) = (0_u32, 0, line.iter());
            for _ in 0..columns {
                while held < bits {
                    value = value << 8 | u32::from(rest.next().copied().unwrap_or(0));
                    held += 8;
                }
                held -= bits;
                let sample = value >> held & ((1 << bits) - 1);
                let [low, high, ..] = sample.to_le_bytes();
                if self.size == 1 {
                    out.push(low);
                } else {
                    out.extend(u16::from_le_bytes([low, high]).to_ne_bytes());
                }
            }
        }
        out
    }

    /// Reverses the predictor, and brings samples to native byte order.
    fn samples(&self, mut bytes: Vec<u8>, rows: usize) -> Vec<u8> {
        let size = self.size;
        let together = usize::try_from(self.together()).unwrap_or(1);
        let swaps = self.big_endian != cfg!(target_endian = "big");
        if self.form.predictor == 3 {
            let row = bytes.len() / rows.max(1);
            for line in bytes.chunks_exact_mut(row.max(1)) {
                floating(line, together, size);
            }
            return bytes;
        }
        if size > 1 && swaps && self.form.bits.is_multiple_of(8) {
            for sample in bytes.chunks_exact_mut(size) {
                sample.reverse();
            }
        }
        if self.form.predictor == 2 {
            let row = bytes.len() / rows.max(1);
            for line in bytes.chunks_exact_mut(row.max(1)) {
                horizontal(line, together, size);
            }
        }
        bytes
    }
}

/// Adds to each sample the one of the pixel before it, in native byte order.
fn horizontal(line: &mut [u8], together: usize, size: usize) {
    let step = together * size;
    for at in (step..line.len()).step_by(size) {
        let (before, now) = line.split_at_mut(at);
        let before = &before[at - step..];
        match size {
            1 => now[0] = now[0].wrapping_add(before[0]),
            2 => {
                let [a, b] = [&*now, before].map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
                now[..2].copy_from_slice(&a.wrapping_add(b).to_ne_bytes());
            }
            4 => {
                let [a, b] = [&*now, before]
                    .map(|bytes| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
                now[..4].copy_from_slice(&a.wrapping_add(b).to_ne_bytes());
            }
            _ => {
                let word = |bytes: &[u8]| u64::from_ne_bytes(std::array::from_fn(|n| bytes[n]));
                let sum = word(now).wrapping_add(word(before));
                now[..8].copy_from_slice(&sum.to_ne_bytes());
            }
        }
    }
}

/// Reverses the floating-point predictor: bytes are differences, and the bytes of a row are sorted by significance, the
/// most significant first.
fn floating(line: &mut [u8], together: usize, size: usize) {
    for at in together..line.len() {
        line[at] = line[at].wrapping_add(line[at - together]);
    }
    let sorted = line.to_vec();
    let count = line.len() / size;
    for (n, sample) in line.chunks_exact_mut(size).enumerate() {
        for (place, byte) in sample.iter_mut().enumerate() {
            let significance = if cfg!(target_endian = "big") {
                place
            } else {
                size - 1 - place
            };
            *byte = sorted[significance * count + n];
        }
    }
}

impl BlockDecoder for StripDecoder {
    fn most_encoded(&self, _: usize) -> u64 {
        let promised = self.row_bytes().unwrap_or(0).saturating_mul(self.rows);
        promised.saturating_mul(2).saturating_add(1 << 20)
    }

    fn decode(&self, index: usize, encoded: Vec<u8>, out: &mut [u8]) -> Result<(), Cause> {
        let rows = usize::try_from(self.stored_rows(index))?;
        let row = usize::try_from(self.row_bytes().ok_or("it is larger than memory")?)?;
        let promised = rows.checked_mul(row).ok_or("it is larger than memory")?;
        let compression = Compression::of(self.form.compression)?;
        let together = usize::try_from(self.together())?;
        let columns = usize::try_from(self.form.block[1])?;
        let bytes = match compression {
            Compression::None => {
                let mut encoded = encoded;
                if encoded.len() < promised {
                    return Err(
                        format!("it has {} bytes, {promised} are needed", encoded.len()).into(),
                    );
                }
                encoded.truncate(promised);
                encoded
            }
            Compression::Lzw => lzw(&encoded, promised)?,
            Compression::Deflate => codecs::zlib(&encoded, promised)?,
            Compression::Zstd => codecs::zstd(&encoded, promised)?,
            Compression::PackBits => codecs::packbits(&encoded, promised)?,
            Compression::Jpeg => {
                let picture = Picture {
                    rows,
                    columns,
                    samples: together,
                    bytes: self.size,
                };
                codecs::jpeg(
                    &self.with_tables(&encoded),
                    picture,
                    self.form.photometric == 6,
                )?
            }
        };
        let samples = if compression == Compression::Jpeg {
            bytes
        } else {
            let samples = self.samples(bytes, rows);
            self.unpacked(samples, rows)
        };
        let plane = samples.len() / together;
        let whole = out.len() / together;
        if plane > whole {
            return Err(format!("it decodes to {plane} bytes, {whole} are needed").into());
        }
        if together == 1 {
            out[..plane].copy_from_slice(&samples);
            return Ok(());
        }
        let mut planes = vec![0; samples.len()];
        separate(&samples, together, self.size, &mut planes);
        for (to, from) in out.chunks_exact_mut(whole).zip(planes.chunks_exact(plane)) {
            to[..plane].copy_from_slice(from);
        }
        Ok(())
    }
}

impl StripDecoder {
    /// Returns a whole JPEG stream: the tables of all strips, and the strip.
    fn with_tables(&self, encoded: &[u8]) -> Vec<u8> {
        let tables = self
            .form
            .tables
            .strip_suffix(&[0xff, 0xd9])
            .unwrap_or(&self.form.tables);
        match encoded.strip_prefix(&[0xff, 0xd8]) {
            Some(strip) if !tables.is_empty() => [tables, strip].concat(),
            _ => encoded.to_vec(),
        }
    }
}

/// Decodes LZW as TIFF has it: the most significant bit first, codes one bit longer one code early.
fn lzw(encoded: &[u8], promised: usize) -> Result<Vec<u8>, Cause> {
    use weezl::{BitOrder, LzwStatus, decode};
    let mut decoder =
        if encoded.first() == Some(&0) && encoded.get(1).is_some_and(|byte| byte & 1 == 1) {
            // Before TIFF 5, the least significant bit came first.
            decode::Configuration::new(BitOrder::Lsb, 8).build()
        } else {
            decode::Configuration::with_tiff_size_switch(BitOrder::Msb, 8).build()
        };
    let mut out = vec![0; promised];
    let (mut read, mut written) = (0, 0);
    while written < promised {
        let done = decoder.decode_bytes(&encoded[read..], &mut out[written..]);
        read += done.consumed_in;
        written += done.consumed_out;
        match done.status? {
            LzwStatus::Ok => {}
            LzwStatus::NoProgress | LzwStatus::Done => break,
        }
    }
    if written < promised {
        return Err(format!("it decodes to {written} bytes, {promised} are needed").into());
    }
    Ok(out)
}
