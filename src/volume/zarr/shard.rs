//! Shards: many chunks in one file, found through an index.
//!
//! The index is read once per shard and kept within a budget; every entry is checked
//! against the file's size. Inner chunks are always decoded whole, so that a checksum among
//! their codecs is always checked.

use std::num::NonZeroU64;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;
use zarrs::array::codec::api::{ArrayToBytesCodecTraits, BytesRepresentation, CodecOptions};
use zarrs::array::{CodecChain, DataType, FillValue, data_type};

use super::super::lru::Lru;
use super::meta::Facts;
use super::store::Value;
use crate::error::{Cause, Error, Result};

/// Bytes of shard indexes that are kept.
const INDEX_BUDGET: u64 = 16 << 20;

/// How the chunks of a sharded array are found.
#[derive(Debug)]
pub(super) struct Sharding {
    /// Chunks per shard along the dimensions.
    counts: Vec<u64>,
    index_codecs: CodecChain,
    index_bytes: u64,
    at_start: bool,
    index_shape: Vec<NonZeroU64>,
    index_type: DataType,
    index_fill: FillValue,
    indexes: Lru<Vec<u64>, Arc<[u64]>>,
}

impl Sharding {
    /// From the sharding codec's configuration; gives the inner chunks' codecs too.
    pub(super) fn new(facts: &Facts, configuration: &Json) -> Result<(Self, CodecChain)> {
        let bad = |problem: String| Error::header(&facts.path, "Zarr v3", problem);
        let chain = |field: &str| {
            let codecs = configuration.get(field).cloned().unwrap_or_default();
            let metadata: Vec<_> = serde_json::from_value(codecs)
                .map_err(|error| bad(format!("sharding {field}: {error}")))?;
            CodecChain::from_metadata(&metadata)
                .map_err(|error| bad(format!("sharding {field}: {error}")))
        };
        let (inner, index_codecs) = (chain("codecs")?, chain("index_codecs")?);
        let at_start = match configuration.get("index_location").map(Json::as_str) {
            None | Some(Some("end")) => false,
            Some(Some("start")) => true,
            _ => {
                return Err(bad(
                    "sharding index_location is neither \"start\" nor \"end\"".to_owned(),
                ));
            }
        };
        let counts: Vec<u64> = facts
            .write_chunk
            .iter()
            .zip(&facts.read_chunk)
            .map(|(s, c)| s / c)
            .collect();
        let index_shape: Vec<_> = counts
            .iter()
            .chain(&[2])
            .filter_map(|&n| NonZeroU64::new(n))
            .collect();
        let (index_type, index_fill) = (data_type::uint64(), FillValue::from(u64::MAX));
        let size = index_codecs.encoded_representation(&index_shape, &index_type, &index_fill);
        let Ok(BytesRepresentation::FixedSize(index_bytes)) = size else {
            return Err(bad(
                "the shard index has codecs whose size is not fixed".to_owned()
            ));
        };
        let indexes = Lru::new(INDEX_BUDGET, |index: &Arc<[u64]>| {
            size_of_val::<[u64]>(index)
        });
        let sharding = Self {
            counts,
            index_codecs,
            index_bytes,
            at_start,
            index_shape,
            index_type,
            index_fill,
            indexes,
        };
        Ok((sharding, inner))
    }

    /// The shard that holds a chunk, and the chunk's place in the shard's index.
    pub(super) fn locate(&self, chunk: &[u64]) -> (Vec<u64>, usize) {
        let shard = chunk.iter().zip(&self.counts).map(|(i, n)| i / n).collect();
        let inner = chunk
            .iter()
            .zip(&self.counts)
            .fold(0, |at, (i, n)| at * n + i % n);
        (
            shard,
            usize::try_from(inner).expect("an index that fits into memory"),
        )
    }

    /// Which bytes of the shard hold the chunk at `inner`; `None` if it is not stored. The
    /// flag says whether the index was read for it.
    pub(super) fn range(
        &self,
        path: &Path,
        shard: &[u64],
        value: &dyn Value,
        inner: usize,
    ) -> Result<(Option<Range<u64>>, bool)> {
        let loaded = self
            .indexes
            .get_or_load(shard.to_vec(), || self.read_index(path, value));
        let (index, kept) = loaded.map_err(Error::shared)?;
        let (offset, length) = (index[2 * inner], index[2 * inner + 1]);
        if (offset, length) == (u64::MAX, u64::MAX) {
            return Ok((None, !kept));
        }
        let end = offset.checked_add(length).filter(|&end| end <= value.len());
        let end = end.ok_or_else(|| {
            let problem = format!(
                "the index places chunk {inner} at {offset}, {length} bytes long, in a shard of {} bytes",
                value.len()
            );
            Error::header(path, "Zarr shard", problem)
        })?;
        Ok((Some(offset..end), !kept))
    }

    /// Bytes of an encoded index.
    pub(super) const fn index_bytes(&self) -> u64 {
        self.index_bytes
    }

    fn read_index(&self, path: &Path, value: &dyn Value) -> Result<Arc<[u64]>> {
        let failed = |source: Cause| Error::Chunk {
            path: path.to_path_buf(),
            key: "shard index".to_owned(),
            source,
        };
        let Some(rest) = value.len().checked_sub(self.index_bytes) else {
            let problem = format!(
                "{} bytes are too few for an index of {}",
                value.len(),
                self.index_bytes
            );
            return Err(Error::header(path, "Zarr shard", problem));
        };
        let range = if self.at_start {
            0..self.index_bytes
        } else {
            rest..value.len()
        };
        let bytes = value.read(range)?.into();
        let options = CodecOptions::default().with_concurrent_target(1);
        let index = self
            .index_codecs
            .decode(
                bytes,
                &self.index_shape,
                &self.index_type,
                &self.index_fill,
                &options,
            )
            .map_err(|error| failed(error.into()))?;
        let index = index.into_fixed().map_err(|error| failed(error.into()))?;
        Ok(index
            .as_chunks()
            .0
            .iter()
            .map(|&entry| u64::from_ne_bytes(entry))
            .collect())
    }
}
