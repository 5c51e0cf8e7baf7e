//! The filters of chunks, each decoded to at most what the shape of a chunk promises.

use hdf5_reader::FilterRegistry;
use hdf5_reader::messages::filter_pipeline::FilterDescription;

use super::super::blosc2::{bit_unshuffle, lz4};
use super::super::decoders;
use super::super::zarr::BloscDecoder;
use crate::error::Cause;

const DEFLATE: u16 = 1;
const SHUFFLE: u16 = 2;
const FLETCHER: u16 = 3;
const LZF: u16 = 32000;
const BLOSC: u16 = 32001;
const LZ4: u16 = 32004;
const BITSHUFFLE: u16 = 32008;
const ZSTD: u16 = 32015;

/// The filters that are decoded, with their names.
const KNOWN: [(u16, &str); 11] = [
    (DEFLATE, "gzip"),
    (SHUFFLE, "shuffle"),
    (FLETCHER, "fletcher32"),
    (4, "szip"),
    (5, "nbit"),
    (6, "scaleoffset"),
    (LZF, "lzf"),
    (BLOSC, "blosc"),
    (LZ4, "lz4"),
    (BITSHUFFLE, "bitshuffle"),
    (ZSTD, "zstd"),
];

/// The filters of the chunks of a data set.
pub(super) struct Filters {
    /// In the order of encoding.
    chain: Vec<FilterDescription>,
    others: FilterRegistry,
    blosc: Option<BloscDecoder>,
    /// Bytes of a voxel, and of a decoded chunk.
    size: usize,
    bytes: usize,
}

impl std::fmt::Debug for Filters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filters")
            .field("chain", &self.chain)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Returns the name of a filter.
fn name(filter: &FilterDescription) -> String {
    let known = KNOWN.iter().find(|(id, _)| *id == filter.id);
    known.map_or_else(
        || format!("filter {}", filter.id),
        |&(_, name)| name.to_owned(),
    )
}

/// Returns the names of filters.
pub(super) fn names(filters: &[FilterDescription]) -> Vec<String> {
    filters.iter().map(name).collect()
}

impl Filters {
    /// Creates the filters of chunks with these lengths and voxels of `size` bytes.
    pub(super) fn new(
        filters: &[FilterDescription],
        size: usize,
        chunk: &[u64],
    ) -> Result<Self, String> {
        let voxels = chunk.iter().try_fold(1_u64, |all, &n| all.checked_mul(n));
        let bytes = voxels
            .and_then(|n| usize::try_from(n).ok()?.checked_mul(size))
            // Chunks are smaller than 4 GiB in the format.
            .filter(|&bytes| u32::try_from(bytes).is_ok())
            .ok_or_else(|| format!("a chunk of {chunk:?} is larger than 4 GiB"))?;
        if let Some(filter) = filters
            .iter()
            .find(|filter| KNOWN.iter().all(|(id, _)| *id != filter.id))
        {
            let named = filter.name.as_deref().unwrap_or_default();
            let known: Vec<&str> = KNOWN.iter().map(|(_, name)| *name).collect();
            return Err(format!(
                "its chunks have filter {} ({}), which is not read ({} are): copy it with h5repack -f GZIP=4",
                filter.id,
                super::excerpt(named),
                known.join(", ")
            ));
        }
        let blosc = filters
            .iter()
            .any(|filter| filter.id == BLOSC)
            .then(|| BloscDecoder::new(bytes))
            .transpose()
            .map_err(|problem| problem.to_string())?;
        Ok(Self {
            chain: filters.to_vec(),
            others: FilterRegistry::new(),
            blosc,
            size,
            bytes,
        })
    }

    /// Returns the name of a filter whose decoder is not safe for hostile data.
    pub(super) fn untrusted(&self) -> Option<&'static str> {
        self.blosc.is_some().then_some("blosc")
    }

    /// Returns the maximum length of an encoded chunk.
    pub(super) fn most_encoded(&self) -> u64 {
        self.loose() as u64
    }

    /// The length that no encoder exceeds.
    const fn loose(&self) -> usize {
        self.bytes + self.bytes / 2 + (64 << 10)
    }

    /// Decodes a chunk. The bits of `mask` are the filters that it leaves out.
    pub(super) fn decode(&self, encoded: Vec<u8>, mask: u32) -> Result<Vec<u8>, Cause> {
        // The length of the input of each filter, which is known until a filter compresses.
        let mut limits = Vec::with_capacity(self.chain.len());
        let mut limit = self.bytes;
        for (n, filter) in self.chain.iter().enumerate() {
            limits.push(limit);
            if mask >> n.min(31) & 1 == 0 {
                limit = match filter.id {
                    SHUFFLE => limit,
                    FLETCHER => limit + 4,
                    _ => self.loose(),
                };
            }
        }
        let mut bytes = encoded;
        for (n, filter) in self.chain.iter().enumerate().rev() {
            if mask >> n.min(31) & 1 == 0 {
                bytes = self.apply(filter, bytes, limits[n])?;
            }
        }
        if bytes.len() == self.bytes {
            return Ok(bytes);
        }
        let length = bytes.len();
        Err(format!("it decodes to {length} bytes, {} are needed", self.bytes).into())
    }

    fn apply(
        &self,
        filter: &FilterDescription,
        bytes: Vec<u8>,
        limit: usize,
    ) -> Result<Vec<u8>, Cause> {
        Ok(match filter.id {
            DEFLATE => decoders::zlib(&bytes, limit)?,
            ZSTD => decoders::zstd(&bytes, limit)?,
            SHUFFLE => unshuffle(&bytes, self.element(filter)),
            FLETCHER => {
                let mut bytes = bytes;
                check_fletcher(&mut bytes)?;
                bytes
            }
            LZF => lzf(&bytes, limit)?,
            BITSHUFFLE => bitshuffle(&bytes, &filter.client_data, limit)?,
            BLOSC => {
                let blosc = self.blosc.as_ref().ok_or("there is no blosc decoder")?;
                blosc.decode(bytes)?
            }
            _ => self
                .others
                .apply_with_limit(filter, &bytes, self.size, Some(limit))
                .map_err(|error| error.to_string())?,
        })
    }

    /// The bytes of an element that is shuffled.
    fn element(&self, filter: &FilterDescription) -> usize {
        let own = filter.client_data.first().copied();
        own.and_then(|n| usize::try_from(n).ok())
            .filter(|&n| n > 0)
            .unwrap_or(self.size)
    }
}

/// Puts the bytes of each element together again. A rest that is not a whole element is stored as it is.
fn unshuffle(bytes: &[u8], size: usize) -> Vec<u8> {
    let count = bytes.len() / size;
    let mut out = vec![0; bytes.len()];
    let whole = count * size;
    for (n, plane) in bytes[..whole].chunks_exact(count.max(1)).enumerate() {
        for (element, &byte) in out.chunks_exact_mut(size).zip(plane) {
            element[n] = byte;
        }
    }
    out[whole..].copy_from_slice(&bytes[whole..]);
    out
}

/// Decodes bitshuffle. The settings are two versions, the bytes of an element, the elements of a block (0 for the usual
/// number) and the compression of blocks: 0 for none, 2 for LZ4, 3 for zstd. Elements that are not a whole group of 8 are
/// stored as they are, behind all blocks.
pub(super) fn bitshuffle(bytes: &[u8], settings: &[u32], limit: usize) -> Result<Vec<u8>, Cause> {
    let setting = |n: usize| usize::try_from(settings.get(n).copied().unwrap_or(0));
    let (size, kind) = (setting(2)?, setting(4)?);
    if size == 0 {
        return Err("its elements have no bytes (bitshuffle)".into());
    }
    let (length, block, mut rest) = match kind {
        0 => {
            let block = match setting(3)? {
                0 => (8192 / size / 8 * 8).max(128),
                block => block,
            };
            (bytes.len(), block, bytes)
        }
        2 | 3 => {
            let cut_off = "it ends inside the header of bitshuffle";
            let (length, rest) = bytes.split_first_chunk::<8>().ok_or(cut_off)?;
            let (block, rest) = rest.split_first_chunk::<4>().ok_or(cut_off)?;
            let length = usize::try_from(u64::from_be_bytes(*length))?;
            let block = usize::try_from(u32::from_be_bytes(*block))?;
            (length, block / size, rest)
        }
        other => return Err(format!("compression {other} of bitshuffle is not read").into()),
    };
    if length > limit {
        return Err(format!("it decodes to {length} bytes, more than {limit}").into());
    }
    if block == 0 || !block.is_multiple_of(8) || !length.is_multiple_of(size) {
        return Err(format!("{length} bytes in blocks of {block} elements are not whole").into());
    }
    let mut out = vec![0; length];
    let shuffled = length / size / 8 * 8 * size;
    let (blocks, end) = out.split_at_mut(shuffled);
    for part in blocks.chunks_mut(block.saturating_mul(size)) {
        let stored = if kind == 0 {
            part.len()
        } else {
            let (word, after) = rest
                .split_first_chunk::<4>()
                .ok_or("a block of bitshuffle is cut off")?;
            rest = after;
            usize::try_from(u32::from_be_bytes(*word))?
        };
        let (encoded, after) = rest
            .split_at_checked(stored)
            .ok_or("a block of bitshuffle is cut off")?;
        rest = after;
        let decoded = match kind {
            2 => lz4(encoded, part.len())?,
            3 => decoders::zstd(encoded, part.len())?,
            _ => encoded.to_vec(),
        };
        if decoded.len() != part.len() {
            let (found, needed) = (decoded.len(), part.len());
            return Err(format!("a block decodes to {found} bytes, {needed} are needed").into());
        }
        bit_unshuffle(&decoded, size, part);
    }
    let left = rest
        .get(..end.len())
        .ok_or("the end of bitshuffle is cut off")?;
    end.copy_from_slice(left);
    Ok(out)
}

/// Verifies the checksum at the end of a chunk and removes it.
fn check_fletcher(bytes: &mut Vec<u8>) -> Result<(), Cause> {
    let at = bytes.len().checked_sub(4).ok_or("it has no checksum")?;
    let (content, sum) = bytes.split_at(at);
    let stored = u32::from_le_bytes(sum.try_into()?);
    let own = fletcher(content);
    // Version 1.6.2 of the C library swapped the bytes of each half; it accepts both.
    let swapped = (own & 0x00ff_00ff) << 8 | (own >> 8) & 0x00ff_00ff;
    if stored != own && stored != swapped {
        return Err("its checksum (fletcher32) does not match its bytes".into());
    }
    bytes.truncate(at);
    Ok(())
}

/// Fletcher's checksum of 32 bits over big-endian words.
fn fletcher(bytes: &[u8]) -> u32 {
    let (mut low, mut high) = (0_u32, 0_u32);
    // So many words cannot overflow the sums.
    for part in bytes.chunks(720) {
        for word in part.chunks(2) {
            let second = word.get(1).copied().unwrap_or(0);
            low += u32::from(word[0]) << 8 | u32::from(second);
            high += low;
        }
        low = (low & 0xffff) + (low >> 16);
        high = (high & 0xffff) + (high >> 16);
    }
    low = (low & 0xffff) + (low >> 16);
    high = (high & 0xffff) + (high >> 16);
    high << 16 | low
}

/// Decodes LZF.
fn lzf(bytes: &[u8], limit: usize) -> Result<Vec<u8>, Cause> {
    let mut out: Vec<u8> = Vec::with_capacity(limit);
    let mut rest = bytes;
    let mut next = |what: &str| -> Result<u8, Cause> {
        let (&first, after) = rest
            .split_first()
            .ok_or_else(|| format!("the LZF stream ends before {what}"))?;
        rest = after;
        Ok(first)
    };
    loop {
        let Ok(control) = next("a run") else {
            return Ok(out);
        };
        let control = usize::from(control);
        let mut count = control >> 5;
        if count == 0 {
            let count = control + 1;
            if out.len() + count > limit {
                return Err(format!("it decodes to more than {limit} bytes").into());
            }
            for _ in 0..count {
                out.push(next("the end of a run")?);
            }
            continue;
        }
        if count == 7 {
            count += usize::from(next("a length")?);
        }
        count += 2;
        let back = ((control & 31) << 8 | usize::from(next("a distance")?)) + 1;
        let start = out
            .len()
            .checked_sub(back)
            .ok_or("the LZF stream refers to bytes before its beginning")?;
        if out.len() + count > limit {
            return Err(format!("it decodes to more than {limit} bytes").into());
        }
        for n in start..start + count {
            out.push(out[n]);
        }
    }
}
