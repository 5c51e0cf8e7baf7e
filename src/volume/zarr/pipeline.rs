//! Decoding a chunk by applying its codecs in reverse order.
//!
//! zarrs supplies the codecs; this module and [`bounded`](super::bounded) ensure that each produces exactly what the
//! metadata promises. Chunks are decoded whole and on the caller's thread.

use std::num::NonZeroU64;
use std::sync::Arc;

use zarrs::array::codec::api::{
    ArrayToArrayCodecTraits, ArrayToBytesCodecTraits, BytesRepresentation, BytesToBytesCodecTraits,
    Codec,
};
use zarrs::array::codec::{BytesCodec, TransposeCodec};
use zarrs::array::{ArrayBytes, DataType, FillValue};
use zarrs::metadata::v3::MetadataV3;

use super::bounded::{BoundedDecoder, ByteLimit};
use super::pool::codec_options;
use super::shard::Shards;
use crate::error::Cause;

/// The decoded form of an array: shape, type and fill value.
#[derive(Clone, Debug)]
pub(super) struct ArrayForm {
    pub(super) shape: Vec<NonZeroU64>,
    pub(super) dtype: DataType,
    pub(super) fill: FillValue,
}

/// The codecs of a chunk, in encoding order.
#[derive(Debug)]
pub(super) struct CodecPipeline {
    /// The array-to-array codecs, each with its decoded form.
    arrays: Vec<(ArrayForm, Arc<dyn ArrayToArrayCodecTraits>)>,
    /// The decoded form of the serializer.
    form: ArrayForm,
    serializer: Serializer,
    serialized: ByteLimit,
    bytes: Vec<BoundedDecoder>,
    /// `true` if an encoded chunk is its voxels, row-major and in native byte order.
    is_plain: bool,
}

#[derive(Debug)]
enum Serializer {
    Codec(Arc<dyn ArrayToBytesCodecTraits>),
    Shards(Box<Shards>),
}

impl CodecPipeline {
    /// Creates the codecs that `metadata` lists, for chunks of `form`. Without `trusted`, returns an error that names
    /// the first codec that hostile data could exploit.
    pub(super) fn new(
        metadata: &[MetadataV3],
        mut form: ArrayForm,
        trusted: bool,
    ) -> Result<Self, CodecError> {
        let (mut arrays, mut to_bytes, mut bytes) = (Vec::new(), None, Vec::new());
        let mut is_native = false;
        for codec in metadata {
            let refuse = || CodecError::Untrusted(codec.name().to_owned());
            let made = match Codec::from_metadata(codec) {
                Ok(made) => made,
                Err(_) if !codec.must_understand() => continue,
                Err(error) => return Err(CodecError::broken(error)),
            };
            match made {
                Codec::ArrayToArray(made) => {
                    if !trusted && !made.as_any().is::<TransposeCodec>() {
                        return Err(refuse());
                    }
                    let (shape, dtype, fill) = made
                        .encoded_representation(&form.shape, &form.dtype, &form.fill)
                        .map_err(CodecError::broken)?;
                    let encoded = ArrayForm { shape, dtype, fill };
                    arrays.push((std::mem::replace(&mut form, encoded), made));
                }
                Codec::ArrayToBytes(_) if to_bytes.is_some() => {
                    return Err(CodecError::broken("it has two array-to-bytes codecs"));
                }
                Codec::ArrayToBytes(_) if codec.name() == "sharding_indexed" => {
                    to_bytes = Some(Err(codec));
                }
                Codec::ArrayToBytes(made) => {
                    if !trusted && !made.as_any().is::<BytesCodec>() {
                        return Err(refuse());
                    }
                    is_native =
                        made.as_any().is::<BytesCodec>() && is_in_native_order(codec, &form);
                    to_bytes = Some(Ok(made));
                }
                Codec::BytesToBytes(made) => bytes.push((codec.name(), made)),
            }
        }
        let to_bytes =
            to_bytes.ok_or_else(|| CodecError::broken("it has no array-to-bytes codec"))?;
        let (serializer, size) = match to_bytes {
            Ok(codec) => {
                let size = serialized_size(&*codec, &form)?;
                (Serializer::Codec(codec), size)
            }
            Err(sharding) => {
                let settings = sharding.configuration().map(|settings| &**settings);
                let shards = Box::new(Shards::new(settings, &form, trusted)?);
                let size = shards.encoded();
                (Serializer::Shards(shards), size)
            }
        };
        let bytes = guards(bytes, size, trusted)?;
        let is_plain = is_native && arrays.is_empty() && bytes.is_empty();
        Ok(Self {
            is_plain,
            arrays,
            form,
            serializer,
            serialized: size,
            bytes,
        })
    }

    /// Returns the limit on the length of an encoded chunk.
    pub(super) fn encoded(&self) -> ByteLimit {
        self.bytes
            .last()
            .map_or(self.serialized, BoundedDecoder::encoded)
    }

    /// Returns `true` if an encoded chunk is its voxels, row-major and in native byte order.
    pub(super) const fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Returns the shards if sharding is the only codec, so that their chunks can be read individually.
    pub(super) fn into_shards(self) -> Option<Shards> {
        match self.serializer {
            Serializer::Shards(shards) if self.arrays.is_empty() && self.bytes.is_empty() => {
                Some(*shards)
            }
            _ => None,
        }
    }

    /// Returns the voxels of a chunk in native byte order.
    pub(super) fn decode(&self, mut encoded: Vec<u8>) -> Result<Vec<u8>, Cause> {
        for guard in self.bytes.iter().rev() {
            encoded = guard.decode(encoded)?;
        }
        self.serialized.check("it holds", encoded.len() as u64)?;
        let options = codec_options();
        let mut voxels = match &self.serializer {
            Serializer::Shards(shards) => ArrayBytes::new_flen(shards.decode(&encoded)?),
            Serializer::Codec(codec) => {
                let ArrayForm { shape, dtype, fill } = &self.form;
                codec.decode(encoded.into(), shape, dtype, fill, &options)?
            }
        };
        for (ArrayForm { shape, dtype, fill }, codec) in self.arrays.iter().rev() {
            voxels = codec.decode(voxels, shape, dtype, fill, &options)?;
        }
        let voxels = voxels.into_fixed()?.into_owned();
        let form = self.arrays.first().map_or(&self.form, |(form, _)| form);
        ByteLimit::Exactly(form.bytes().ok_or("its type has no fixed size")?)
            .check("it decodes to", voxels.len() as u64)?;
        Ok(voxels)
    }
}

impl ArrayForm {
    /// Returns the bytes of all voxels.
    pub(super) fn bytes(&self) -> Option<u64> {
        let size = self.dtype.fixed_size()? as u64;
        self.shape
            .iter()
            .try_fold(size, |all, n| all.checked_mul(n.get()))
    }
}

/// Creates the decoders of the bytes-to-bytes codecs, innermost first. The innermost one decodes to `decoded` bytes.
fn guards(
    codecs: Vec<(&str, Arc<dyn BytesToBytesCodecTraits>)>,
    mut decoded: ByteLimit,
    trusted: bool,
) -> Result<Vec<BoundedDecoder>, CodecError> {
    let guard = |(name, codec): (&str, _)| {
        let guard = BoundedDecoder::new(codec, decoded);
        if !trusted && !guard.is_safe() {
            return Err(CodecError::Untrusted(name.to_owned()));
        }
        decoded = guard.encoded();
        Ok(guard)
    };
    codecs.into_iter().map(guard).collect()
}

/// Returns `true` if the `bytes` codec stores voxels as they are in memory.
fn is_in_native_order(codec: &MetadataV3, form: &ArrayForm) -> bool {
    let native = if cfg!(target_endian = "big") {
        "big"
    } else {
        "little"
    };
    let endian = codec.configuration().and_then(|all| all.get("endian"));
    form.dtype.fixed_size() == Some(1) || endian.is_some_and(|endian| endian == native)
}

fn serialized_size(
    codec: &dyn ArrayToBytesCodecTraits,
    form: &ArrayForm,
) -> Result<ByteLimit, CodecError> {
    let size = codec
        .encoded_representation(&form.shape, &form.dtype, &form.fill)
        .map_err(CodecError::broken)?;
    match size {
        BytesRepresentation::FixedSize(n) => Ok(ByteLimit::Exactly(n)),
        BytesRepresentation::BoundedSize(n) => Ok(ByteLimit::AtMost(n)),
        BytesRepresentation::UnboundedSize => Err(CodecError::broken(
            "its array-to-bytes codec has no limit on its output",
        )),
    }
}

/// The reason why codecs cannot be used.
#[derive(Debug)]
pub(super) enum CodecError {
    /// A codec that hostile data could exploit.
    Untrusted(String),
    /// Codecs that are unknown, or do not fit each other or the chunk.
    Broken(Cause),
}

impl CodecError {
    pub(super) fn broken(problem: impl Into<Cause>) -> Self {
        Self::Broken(problem.into())
    }
}

/// Copies an array into another with its first voxel at `at`; voxels outside the target are dropped.
///
/// The shapes are in voxels of `size` bytes, the last axis fastest; `at` must be inside the target.
pub(super) fn place(
    (from, from_shape): (&[u8], &[usize]),
    (to, to_shape): (&mut [u8], &[usize]),
    at: &[usize],
    size: usize,
) {
    let (Some((&n, from_rest)), Some((&m, to_rest)), Some((&at, at_rest))) = (
        from_shape.split_first(),
        to_shape.split_first(),
        at.split_first(),
    ) else {
        to[..size].copy_from_slice(&from[..size]);
        return;
    };
    let common = n.min(m - at);
    if from_rest.is_empty() {
        to[at * size..(at + common) * size].copy_from_slice(&from[..common * size]);
        return;
    }
    let (from_stride, to_stride) = (
        from_rest.iter().product::<usize>() * size,
        to_rest.iter().product::<usize>() * size,
    );
    for i in 0..common {
        place(
            (&from[i * from_stride..], from_rest),
            (&mut to[(at + i) * to_stride..], to_rest),
            at_rest,
            size,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn a_box_is_placed_and_the_part_outside_is_dropped() {
        let from: Vec<u8> = (1..=8).collect();
        let mut to = [0; 2 * 3 * 3];
        place((&from, &[2, 2, 2]), (&mut to, &[2, 3, 3]), &[1, 0, 2], 1);
        let mut expected = [0; 18];
        (expected[11], expected[14]) = (1, 3);
        assert_eq!(to, expected);
        let mut pair = [0; 4];
        place((&from, &[2, 2]), (&mut pair, &[1, 2]), &[0, 0], 2);
        assert_eq!(pair, [1, 2, 3, 4]);
    }
}
