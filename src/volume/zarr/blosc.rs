//! Blosc as it is in files that are not Zarr: one stream for each chunk.

use serde_json::json;
use zarrs::array::codec::api::Codec;
use zarrs::metadata::v3::MetadataV3;

use super::super::decoders::caught;
use super::bounded::{BoundedDecoder, ByteLimit};
use crate::error::Cause;

/// A decoder of blosc streams of one length.
#[derive(Debug)]
pub(in super::super) struct BloscDecoder(BoundedDecoder);

impl BloscDecoder {
    /// Creates a decoder of streams of `bytes` decoded bytes.
    pub(in super::super) fn new(bytes: usize) -> Result<Self, Cause> {
        // Every stream says itself how it was encoded.
        let settings = json!({
            "name": "blosc",
            "configuration": {"cname": "lz4", "clevel": 1, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0},
        });
        let metadata: MetadataV3 = serde_json::from_value(settings)?;
        match Codec::from_metadata(&metadata)? {
            Codec::BytesToBytes(codec) => {
                let promised = ByteLimit::Exactly(bytes as u64);
                Ok(Self(BoundedDecoder::new(codec, promised)))
            }
            _ => Err("blosc is not a codec of bytes".into()),
        }
    }

    /// Decodes a stream.
    pub(in super::super) fn decode(&self, encoded: Vec<u8>) -> Result<Vec<u8>, Cause> {
        caught("zarrs", || self.0.decode(encoded)).flatten()
    }
}
