//! Encoding the write chunks of an output, shards chunk by chunk.
//!
//! zarrs supplies the codecs. Its own encoder of shards copies each chunk by an iterator over its voxels, looks at the whole
//! shard for the fill value before, and holds a buffer of the longest shard there could be.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::path::Path;

use serde_json::Value as Json;
use zarrs::array::codec::CodecChain;
use zarrs::array::codec::api::ArrayToBytesCodecTraits;
use zarrs::array::{Array, ArrayBytes, FillValue, data_type};
use zarrs::metadata::v3::MetadataV3;

use super::super::pyramid::LevelSource;
use super::pipeline::ArrayForm;
use super::pool::codec_options;
use crate::error::{Cause, Error, Result};
use crate::files::PIECE;
use crate::patch::copy_common;
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};

/// A function that takes the bytes of an encoded chunk, one piece after another.
pub(super) type ByteSink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// A chunk that is encoded by what stores it.
pub(super) struct UnencodedChunk<'a> {
    pub(super) encoder: &'a ChunkEncoder,
    /// The box of the whole chunk, which may extend beyond the volume.
    pub(super) whole: Region,
    pub(super) source: LevelSource<'a>,
    /// The path of the output, and the chunk's key in it.
    pub(super) path: &'a Path,
    pub(super) key: &'a str,
}

impl UnencodedChunk<'_> {
    /// Encodes the chunk, and passes its bytes to `sink`. Returns `false`, and passes on nothing, if it is all fill value.
    ///
    /// # Errors
    ///
    /// [`Error::Chunk`] if a codec fails, and those of `sink`.
    pub(super) fn encode_to(&self, sink: &mut ByteSink<'_>) -> Result<bool> {
        let Some(voxels) = self.source.voxels else {
            return Ok(false);
        };
        let encoded = self
            .encoder
            .encode(self.whole, (voxels, self.source.held), sink);
        encoded.map_err(|problem| match problem {
            Problem::Sink(error) => error,
            Problem::Codec(source) => Error::Chunk {
                path: self.path.to_path_buf(),
                key: self.key.to_owned(),
                source,
            },
        })
    }

    /// Encodes the chunk, and passes all its bytes to `put`; `None` if it is all fill value. Returns `false` for that.
    ///
    /// # Errors
    ///
    /// [`Error::Chunk`] if a codec fails, and those of `put`.
    pub(super) fn put(&self, put: impl FnOnce(Option<Vec<u8>>) -> Result<()>) -> Result<bool> {
        let mut encoded = Vec::new();
        let is_stored = self.encode_to(&mut |bytes| {
            encoded.extend_from_slice(bytes);
            Ok(())
        })?;
        put(is_stored.then_some(encoded))?;
        Ok(is_stored)
    }
}

/// The reason why a chunk was not encoded or not taken.
enum Problem {
    Codec(Cause),
    Sink(Error),
}

impl<E: Into<Cause>> From<E> for Problem {
    fn from(problem: E) -> Self {
        Self::Codec(problem.into())
    }
}

/// The bytes of a shard, gathered so that small chunks are not passed on one by one.
struct Pieces<'a, 'b> {
    sink: &'a mut ByteSink<'b>,
    gathered: Vec<u8>,
    /// The number of bytes so far.
    position: u64,
}

impl<'a, 'b> Pieces<'a, 'b> {
    fn new(sink: &'a mut ByteSink<'b>) -> Self {
        Self {
            sink,
            gathered: Vec::new(),
            position: 0,
        }
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        if self.gathered.len() + bytes.len() > PIECE {
            self.pass_on()?;
        }
        self.position += bytes.len() as u64;
        if bytes.len() >= PIECE {
            return (self.sink)(bytes).map_err(Problem::Sink);
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    /// Passes on what was gathered.
    fn pass_on(&mut self) -> Result<(), Problem> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        (self.sink)(&self.gathered).map_err(Problem::Sink)?;
        self.gathered.clear();
        Ok(())
    }
}

/// An encoder of write chunks.
#[derive(Debug)]
pub(super) struct ChunkEncoder {
    /// The codecs of a chunk: of an inner one, if the write chunks are shards.
    codecs: CodecChain,
    /// The shape of that chunk along all axes, its type and its fill value.
    form: ArrayForm,
    /// The shape of that chunk along z, y, x.
    chunk: Shape,
    /// The codecs of the index of a shard; `None` if the write chunks are not shards.
    index: Option<CodecChain>,
}

impl ChunkEncoder {
    /// Creates an encoder for an array with the codecs that its document lists, and `chunk` (z, y, x) as its smallest chunk. Each
    /// chunk is one voxel long along the `leading` axes.
    pub(super) fn new(
        array: &Array<()>,
        codecs: &[MetadataV3],
        leading: usize,
        chunk: Shape,
    ) -> Result<Self, Cause> {
        let sharding = match codecs {
            [only] if only.name() == "sharding_indexed" => only.configuration(),
            _ => None,
        };
        let (codecs, index) = match sharding {
            None => (CodecChain::from_metadata(codecs)?, None),
            Some(settings) => {
                let list = |field: &str| -> Result<CodecChain, Cause> {
                    let list = settings.get(field).cloned().unwrap_or(Json::Null);
                    let list: Vec<MetadataV3> = serde_json::from_value(list)?;
                    Ok(CodecChain::from_metadata(&list)?)
                };
                (list("codecs")?, Some(list("index_codecs")?))
            }
        };
        let lengths = std::iter::repeat_n(1, leading).chain(chunk);
        let form = ArrayForm {
            shape: lengths.filter_map(NonZeroU64::new).collect(),
            dtype: array.data_type().clone(),
            fill: array.fill_value().clone(),
        };
        Ok(Self {
            codecs,
            form,
            chunk,
            index,
        })
    }

    /// Encodes the write chunk that covers the box `whole`, one channel of it, and passes its bytes to `sink` in order. `source` has
    /// the voxels of a box; the others are 0. Returns `false`, and passes on nothing, if all are the fill value.
    fn encode(
        &self,
        whole: Region,
        source: (&[u8], Region),
        sink: &mut ByteSink<'_>,
    ) -> Result<bool, Problem> {
        let mut buffer = Vec::new();
        let Some(index) = &self.index else {
            return match self.encode_chunk(self.cut(whole, source, &mut buffer)?)? {
                Some(encoded) => sink(&encoded).map(|()| true).map_err(Problem::Sink),
                None => Ok(false),
            };
        };
        let mut entries = Vec::new();
        let mut pieces = Pieces::new(sink);
        for place in indices(chunk_range(&whole, self.chunk)) {
            let region = chunk_region(place, self.chunk);
            let chunk = self.cut(region, source, &mut buffer)?;
            if let Some(encoded) = self.encode_chunk(chunk)? {
                entries.extend([pieces.position, encoded.len() as u64]);
                pieces.add(&encoded)?;
            } else {
                entries.extend([u64::MAX; 2]);
            }
        }
        if pieces.position == 0 {
            return Ok(false);
        }
        pieces.add(&encode_index(index, &entries)?)?;
        pieces.pass_on()?;
        Ok(true)
    }

    /// Encodes a chunk; `None` if it is all fill value.
    fn encode_chunk<'a>(&self, voxels: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, Cause> {
        let voxels = ArrayBytes::new_flen(voxels);
        let ArrayForm { shape, dtype, fill } = &self.form;
        if voxels.is_fill_value(fill) {
            return Ok(None);
        }
        let encoded = self
            .codecs
            .encode(voxels, shape, dtype, fill, &codec_options())?;
        Ok(Some(encoded))
    }

    /// Returns the voxels of the chunk that covers `region`: those of the box `held`, and 0 elsewhere. They are copied to `buffer`
    /// unless they are all of that box.
    fn cut<'a>(
        &self,
        region: Region,
        (voxels, held): (&'a [u8], Region),
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Cause> {
        if region == held {
            return Ok(voxels);
        }
        let size = self.form.dtype.fixed_size();
        let (Some(size), Some(bytes)) = (size, self.form.bytes()) else {
            return Err("its type has no fixed size".into());
        };
        buffer.resize(usize::try_from(bytes)?, 0);
        if !held.contains(&region) {
            buffer.fill(0);
        }
        copy_common((voxels, held), (buffer, region), 1, size);
        Ok(buffer)
    }
}

/// Encodes the index of a shard: the start and the length of each chunk.
fn encode_index(codecs: &CodecChain, entries: &[u64]) -> Result<Vec<u8>, Cause> {
    let shape = NonZeroU64::new(entries.len() as u64).ok_or("a shard without chunks")?;
    let bytes = ArrayBytes::new_flen(bytemuck::cast_slice::<u64, u8>(entries));
    let fill = FillValue::from(u64::MAX);
    let encoded = codecs.encode(
        bytes,
        &[shape],
        &data_type::uint64(),
        &fill,
        &codec_options(),
    )?;
    Ok(encoded.into_owned())
}
