//! Shards: many chunks in one value, located by an index.
//!
//! Every entry of the index is checked against the value's size before it is used. Inner chunks are always decoded
//! whole, so that a checksum among their codecs is always verified.

use std::num::NonZeroU64;
use std::ops::Range;

use serde_json::{Map, Value as Json};
use zarrs::array::{FillValue, data_type};
use zarrs::metadata::v3::MetadataV3;

use super::bounded::ByteLimit;
use super::pipeline::{ArrayForm, CodecError, CodecPipeline, place};
use crate::error::Cause;
use crate::store::Part;

/// Maximum number of chunks in a shard: their index takes 64 MiB.
const MAX_CHUNKS: u64 = 4 << 20;

/// The location and decoding of the chunks of a shard.
#[derive(Debug)]
pub(super) struct Shards {
    form: ArrayForm,
    chunk: Vec<u64>,
    /// Chunks per shard along each dimension.
    counts: Vec<u64>,
    index: CodecPipeline,
    index_bytes: u64,
    at_start: bool,
    inner: CodecPipeline,
}

impl Shards {
    /// Creates the decoder from the sharding codec's configuration, for shards of `form`.
    pub(super) fn new(
        configuration: Option<&Map<String, Json>>,
        form: &ArrayForm,
        trusted: bool,
    ) -> Result<Self, CodecError> {
        let configuration =
            configuration.ok_or_else(|| CodecError::broken("sharding has no configuration"))?;
        let chunk = lengths(configuration.get("chunk_shape"))
            .ok_or_else(|| CodecError::broken("sharding has no valid chunk_shape"))?;
        let counts = counts(form, &chunk)?;
        let list = |field: &str| -> Result<Vec<MetadataV3>, CodecError> {
            let codecs = configuration.get(field).cloned().unwrap_or_default();
            serde_json::from_value(codecs).map_err(CodecError::broken)
        };
        let inner = ArrayForm {
            shape: chunk.iter().copied().filter_map(NonZeroU64::new).collect(),
            ..form.clone()
        };
        let inner = CodecPipeline::new(&list("codecs")?, inner, trusted)?;
        let pairs = counts.iter().chain(&[2]);
        let index = ArrayForm {
            shape: pairs.copied().filter_map(NonZeroU64::new).collect(),
            dtype: data_type::uint64(),
            fill: FillValue::from(u64::MAX),
        };
        let index = CodecPipeline::new(&list("index_codecs")?, index, trusted)?;
        let ByteLimit::Exactly(index_bytes) = index.encoded() else {
            return Err(CodecError::broken(
                "the shard index has codecs whose size is not fixed",
            ));
        };
        let at_start = match configuration.get("index_location").map(Json::as_str) {
            None | Some(Some("end")) => false,
            Some(Some("start")) => true,
            _ => {
                return Err(CodecError::broken(
                    "sharding index_location is neither \"start\" nor \"end\"",
                ));
            }
        };
        Ok(Self {
            form: form.clone(),
            chunk,
            counts,
            index,
            index_bytes,
            at_start,
            inner,
        })
    }

    /// Returns the codecs of the inner chunks.
    pub(super) const fn inner(&self) -> &CodecPipeline {
        &self.inner
    }

    /// Returns the maximum bytes of a shard: its index, plus every chunk at its maximum length.
    pub(super) fn encoded(&self) -> ByteLimit {
        let chunks: u64 = self.counts.iter().product();
        let longest = self.inner.encoded().limit().saturating_mul(chunks);
        ByteLimit::AtMost(longest.saturating_add(self.index_bytes))
    }

    /// Returns the shard that contains a chunk, and the chunk's position in the shard's index.
    pub(super) fn locate(&self, chunk: &[u64]) -> (Vec<u64>, usize) {
        let both = || chunk.iter().zip(&self.counts);
        let shard = both().map(|(i, n)| i / n).collect();
        let inner = both().fold(0, |at, (i, n)| at * n + i % n);
        let inner = usize::try_from(inner).expect("an index that fits into memory");
        (shard, inner)
    }

    /// Returns the part of a shard that holds the index.
    pub(super) const fn index_part(&self) -> Part {
        if self.at_start {
            Part::First(self.index_bytes)
        } else {
            Part::Last(self.index_bytes)
        }
    }

    /// Returns the bytes of the index.
    pub(super) const fn index_bytes(&self) -> u64 {
        self.index_bytes
    }

    /// Checks that a shard of `length` bytes can hold its index.
    pub(super) fn check_length(&self, length: u64) -> Result<(), Cause> {
        if length >= self.index_bytes {
            return Ok(());
        }
        let index = self.index_bytes;
        Err(format!("{length} bytes are too few for an index of {index}").into())
    }

    /// Decodes the index: the start and the length of each chunk.
    pub(super) fn decode_index(&self, encoded: Vec<u8>) -> Result<Vec<u64>, Cause> {
        let index = self.index.decode(encoded)?;
        let entries = index.as_chunks().0.iter();
        Ok(entries.map(|&entry| u64::from_ne_bytes(entry)).collect())
    }

    /// Returns the byte range of the chunk at `inner` in a shard of `length` bytes; `None` if it is all fill value.
    pub(super) fn range(
        &self,
        index: &[u64],
        inner: usize,
        length: u64,
    ) -> Result<Option<Range<u64>>, Cause> {
        let (start, bytes) = (index[2 * inner], index[2 * inner + 1]);
        if (start, bytes) == (u64::MAX, u64::MAX) {
            return Ok(None);
        }
        let end = start.checked_add(bytes).filter(|&end| end <= length);
        let end = end.ok_or_else(|| {
            format!(
                "the index places chunk {inner} at {start}, {bytes} bytes long, in a shard of {length} bytes"
            )
        })?;
        self.inner.encoded().check("it takes", bytes)?;
        Ok(Some(start..end))
    }

    /// Decodes the voxels of a whole shard.
    pub(super) fn decode(&self, shard: &[u8]) -> Result<Vec<u8>, Cause> {
        let part = |range: Range<u64>| -> Result<Vec<u8>, Cause> {
            Ok(shard[usize::try_from(range.start)?..usize::try_from(range.end)?].to_vec())
        };
        let length = shard.len() as u64;
        self.check_length(length)?;
        let index = self.decode_index(part(self.index_part().range(length))?)?;
        let voxel = self.form.fill.as_ne_bytes();
        let bytes = self.form.bytes().ok_or("its type has no fixed size")?;
        let mut voxels = voxel.repeat(usize::try_from(bytes)? / voxel.len());
        let usizes = |lengths: &[u64]| -> Result<Vec<usize>, Cause> {
            Ok(lengths
                .iter()
                .map(|&n| usize::try_from(n))
                .collect::<Result<_, _>>()?)
        };
        let shape: Vec<u64> = self.form.shape.iter().map(|n| n.get()).collect();
        let (shape, chunk) = (usizes(&shape)?, usizes(&self.chunk)?);
        for inner in 0..index.len() / 2 {
            let Some(range) = self.range(&index, inner, length)? else {
                continue;
            };
            let decoded = self.inner.decode(part(range)?)?;
            let mut at = vec![0; chunk.len()];
            let mut rest = inner;
            for (axis, &count) in self.counts.iter().enumerate().rev() {
                let count = usize::try_from(count)?;
                at[axis] = rest % count * chunk[axis];
                rest /= count;
            }
            let target = (&mut voxels[..], &shape[..]);
            place((&decoded, &chunk), target, &at, voxel.len());
        }
        Ok(voxels)
    }
}

/// Returns the number of chunks along each dimension, after checking the total.
fn counts(form: &ArrayForm, chunk: &[u64]) -> Result<Vec<u64>, CodecError> {
    let shard = &form.shape;
    let whole = |(shard, chunk): (&NonZeroU64, &u64)| shard.get().is_multiple_of(*chunk);
    if shard.len() != chunk.len() || !shard.iter().zip(chunk).all(whole) {
        let problem = format!("shard {shard:?} is not a multiple of its chunks {chunk:?}");
        return Err(CodecError::broken(problem));
    }
    let counts: Vec<u64> = shard.iter().zip(chunk).map(|(s, c)| s.get() / c).collect();
    let all = counts.iter().try_fold(1_u64, |all, &n| all.checked_mul(n));
    if all.is_none_or(|all| all > MAX_CHUNKS) {
        let problem = format!("{counts:?} chunks in a shard are more than {MAX_CHUNKS}");
        return Err(CodecError::broken(problem));
    }
    Ok(counts)
}

fn lengths(list: Option<&Json>) -> Option<Vec<u64>> {
    let list = list?.as_array()?;
    list.iter().map(|n| n.as_u64().filter(|&n| n > 0)).collect()
}
