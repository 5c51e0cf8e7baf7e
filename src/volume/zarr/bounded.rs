//! Decompression of untrusted data.
//!
//! The decoded size of a chunk is known from the metadata before any of its bytes are read, and every decoder here
//! stops at that size. A chunk that would become larger is an error, and no buffer has a size that the chunk itself
//! claims. Streams must end properly, which ensures that their final checksum has been verified. Not covered is
//! c-blosc, whose decoders write out of bounds on some hostile input, regardless of its header.

use std::any::TypeId;
use std::sync::Arc;

use zarrs::array::BytesRepresentation;
use zarrs::array::codec::api::BytesToBytesCodecTraits;
use zarrs::array::codec::{
    Adler32Codec, BloscCodec, Bz2Codec, Crc32cCodec, Fletcher32Codec, GzipCodec, ShuffleCodec,
    ZlibCodec, ZstdCodec,
};

use super::super::decoders::{bounded, zlib, zstd};
use super::pool::codec_options;
use crate::error::Cause;

/// A bytes-to-bytes codec with a limit on its decoded size.
#[derive(Debug)]
pub(super) struct BoundedDecoder {
    codec: Arc<dyn BytesToBytesCodecTraits>,
    kind: CodecKind,
    decoded: ByteLimit,
    encoded: ByteLimit,
}

/// A number of bytes, exact or bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteLimit {
    Exactly(u64),
    AtMost(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CodecKind {
    Zstd,
    Gzip,
    Zlib,
    Bz2,
    Blosc,
    /// Checksums and similar codecs: the decoded data is not longer than the encoded data.
    Plain,
    Unknown,
}

impl ByteLimit {
    /// Returns the largest number that is allowed.
    pub(super) const fn limit(self) -> u64 {
        match self {
            Self::Exactly(n) | Self::AtMost(n) => n,
        }
    }

    /// Returns a smaller number that encoded chunks rarely exceed: what they decode to, and a little more.
    pub(super) const fn usual(self) -> u64 {
        match self {
            Self::Exactly(n) => n,
            Self::AtMost(n) => n / 2 + (64 << 10),
        }
    }

    /// Checks that `length` bytes are within the limit; `what` starts the error message.
    pub(super) fn check(self, what: &str, length: u64) -> Result<(), Cause> {
        match self {
            Self::Exactly(n) if length != n => {
                Err(format!("{what} {length} bytes instead of {n}").into())
            }
            Self::AtMost(n) if length > n => {
                Err(format!("{what} {length} bytes, more than the maximum of {n}").into())
            }
            _ => Ok(()),
        }
    }

    fn representation(self) -> BytesRepresentation {
        match self {
            Self::Exactly(n) => BytesRepresentation::FixedSize(n),
            Self::AtMost(n) => BytesRepresentation::BoundedSize(n),
        }
    }
}

impl BoundedDecoder {
    /// Wraps a codec that decodes to `decoded` bytes.
    pub(super) fn new(codec: Arc<dyn BytesToBytesCodecTraits>, decoded: ByteLimit) -> Self {
        let kind = kind(codec.as_any().type_id());
        let encoded = match codec.encoded_representation(&decoded.representation()) {
            BytesRepresentation::FixedSize(n) => ByteLimit::Exactly(n),
            // Generous, because other software compresses differently, but small enough to stop decompression bombs.
            _ => ByteLimit::AtMost(decoded.limit().saturating_mul(2).saturating_add(64 << 10)),
        };
        Self {
            codec,
            kind,
            decoded,
            encoded,
        }
    }

    /// Returns the limit on the length of encoded chunks.
    pub(super) const fn encoded(&self) -> ByteLimit {
        self.encoded
    }

    /// Returns `true` if the codec is safe on hostile data.
    pub(super) fn is_safe(&self) -> bool {
        !matches!(self.kind, CodecKind::Blosc | CodecKind::Unknown)
    }

    /// Decodes a chunk.
    pub(super) fn decode(&self, encoded: Vec<u8>) -> Result<Vec<u8>, Cause> {
        if encoded.is_empty() {
            return Err("it is empty".into());
        }
        self.encoded.check("it takes", encoded.len() as u64)?;
        let limit = usize::try_from(self.decoded.limit())?;
        let decoded = match self.kind {
            // Decodes directly into a buffer of that size: no window is allocated, regardless of the frame header.
            CodecKind::Zstd => zstd(&encoded, limit)?,
            CodecKind::Gzip => bounded(flate2::bufread::MultiGzDecoder::new(&encoded[..]), limit)?,
            CodecKind::Bz2 => bounded(bzip2::bufread::MultiBzDecoder::new(&encoded[..]), limit)?,
            CodecKind::Zlib => zlib(&encoded, limit)?,
            CodecKind::Blosc => {
                self.decoded
                    .check("its header promises", blosc_length(&encoded)?)?;
                self.by_codec(encoded)?
            }
            CodecKind::Plain | CodecKind::Unknown => self.by_codec(encoded)?,
        };
        self.decoded.check("it holds", decoded.len() as u64)?;
        Ok(decoded)
    }

    fn by_codec(&self, encoded: Vec<u8>) -> Result<Vec<u8>, Cause> {
        let options = codec_options();
        let decoded =
            self.codec
                .decode(encoded.into(), &self.decoded.representation(), &options)?;
        Ok(decoded.into_owned())
    }
}

fn kind(codec: TypeId) -> CodecKind {
    let plain = [
        TypeId::of::<Adler32Codec>(),
        TypeId::of::<Crc32cCodec>(),
        TypeId::of::<Fletcher32Codec>(),
        TypeId::of::<ShuffleCodec>(),
    ];
    match codec {
        id if id == TypeId::of::<ZstdCodec>() => CodecKind::Zstd,
        id if id == TypeId::of::<GzipCodec>() => CodecKind::Gzip,
        id if id == TypeId::of::<ZlibCodec>() => CodecKind::Zlib,
        id if id == TypeId::of::<Bz2Codec>() => CodecKind::Bz2,
        id if id == TypeId::of::<BloscCodec>() => CodecKind::Blosc,
        id if plain.contains(&id) => CodecKind::Plain,
        _ => CodecKind::Unknown,
    }
}

/// Returns the decoded length in a blosc header, after checking that the header is consistent.
fn blosc_length(chunk: &[u8]) -> Result<u64, Cause> {
    let (header, _) = chunk
        .split_first_chunk::<16>()
        .ok_or("it is shorter than a blosc header")?;
    let field = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let (typesize, decoded, block, encoded) = (header[3], field(4), field(8), field(12));
    if encoded as usize != chunk.len() {
        let actual = chunk.len();
        return Err(format!("its header says {encoded} bytes, but it takes {actual}").into());
    }
    // An uncompressed (copied) buffer may name a block longer than itself.
    let copied = header[2] & 2 != 0;
    if typesize == 0 || block == 0 || (block > decoded && !copied) {
        return Err(format!(
            "its header is invalid: {decoded} bytes in blocks of {block}, types of {typesize}"
        )
        .into());
    }
    Ok(decoded.into())
}

#[cfg(test)]
mod tests {
    use super::super::super::decoders::caught;
    use super::*;

    #[test]
    fn a_zlib_stream_needs_its_checksum() {
        use std::io::Write;
        let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(&[7; 1000]).unwrap();
        let stream = writer.finish().unwrap();
        assert_eq!(zlib(&stream, 1000).unwrap(), [7; 1000]);
        assert!(zlib(&stream[..stream.len() - 1], 1000).is_err(), "cut");
        assert!(zlib(&stream, 900).is_err(), "longer than promised");
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_text() {
        assert_eq!(caught("zarrs", || 7).unwrap(), 7);
        let n = 9;
        let error = caught("zarrs", || -> u8 { panic!("level {n}") }).unwrap_err();
        assert_eq!(error.to_string(), "zarrs panicked: level 9");
    }

    #[test]
    fn a_blosc_header_must_fit_its_buffer() {
        let header = |decoded: u32, block: u32, encoded: u32, typesize: u8| {
            let mut chunk = vec![2, 1, 0, typesize];
            for field in [decoded, block, encoded] {
                chunk.extend(field.to_le_bytes());
            }
            chunk.resize(20, 0);
            blosc_length(&chunk)
        };
        assert_eq!(header(64, 32, 20, 4).unwrap(), 64);
        assert!(header(64, 32, 21, 4).is_err());
        assert!(header(64, 0, 20, 4).is_err());
        assert!(header(64, 65, 20, 4).is_err());
        assert!(header(64, 32, 20, 0).is_err());
        assert!(blosc_length(&[2, 1, 0]).is_err());
    }
}
