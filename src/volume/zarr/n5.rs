//! N5: arrays whose blocks have a header and may be smaller at the edges.
//!
//! An N5 array is read as a Zarr array of version 2 without codecs, whose store decodes: [`Blocks`] translates the key
//! of a chunk, decodes the block below it and extends it to a whole chunk. `dimensions` of N5 are x, y, z; those of the
//! document that [`document`] returns are z, y, x.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::super::decoders::{bounded, zlib, zstd};
use super::super::units::{self, Unit};
use super::blosc::BloscDecoder;
use super::store::{Limits, Store, StoredPart};
use crate::dtype::DType;
use crate::error::{Cause, Error, Result};
use crate::geometry::Geometry;
use crate::store::{Part, Version};

/// The metadata of a group or an array.
pub(super) const ATTRIBUTES: &str = "attributes.json";

/// Returns `true` if these are attributes of a group or an array, and not of something else.
pub(super) fn recognize(attributes: &Json) -> bool {
    let has = |name: &str| attributes.get(name).is_some();
    ["n5", "dimensions", "multiscales"].into_iter().any(has)
}

/// Returns the attributes of an array as a document of Zarr version 2; `None` if they are those of a group.
pub(super) fn document(attributes: &Json) -> Option<Json> {
    let reversed = |name: &str| -> Option<Vec<Json>> {
        let lengths = attributes.get(name)?.as_array()?;
        Some(lengths.iter().rev().cloned().collect())
    };
    let dtype = match attributes.get("dataType")?.as_str()? {
        "uint8" => "|u1",
        "int8" => "|i1",
        "uint16" => ">u2",
        "int16" => ">i2",
        "uint32" => ">u4",
        "int32" => ">i4",
        "uint64" => ">u8",
        "int64" => ">i8",
        "float32" => ">f4",
        "float64" => ">f8",
        other => other,
    };
    Some(json!({
        "zarr_format": 2,
        "shape": reversed("dimensions")?,
        "chunks": reversed("blockSize")?,
        "dtype": dtype,
        "compressor": null,
        "filters": null,
        "fill_value": 0,
        "order": "C",
        "dimension_separator": "/",
    }))
}

/// Maximum number of levels of a pyramid.
const MOST_LEVELS: usize = 64;

/// Returns the datasets of the pyramid that a group's attributes declare, as at Janelia: `multiscales` with the paths of
/// levels and their `transform`; `None` if they declare none.
pub(super) fn datasets(group: &Json) -> Option<&[Json]> {
    let datasets = group.pointer("/multiscales/0/datasets")?.as_array()?;
    (1..=MOST_LEVELS)
        .contains(&datasets.len())
        .then_some(datasets)
}

/// Returns the usual name of a level; `None` beyond the last one that is looked for.
pub(super) fn level_name(level: usize) -> Option<String> {
    (level < MOST_LEVELS).then(|| format!("s{level}"))
}

/// The metadata around an array that is a level of a pyramid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pyramid<'a> {
    /// The attributes of the group.
    pub(super) group: &'a Json,
    /// The entry of the level in `multiscales`.
    pub(super) dataset: Option<&'a Json>,
    pub(super) level: usize,
}

/// Returns the position of an array, and the millimeters of its unit; `None` if nothing with a unit of length says it.
///
/// `transform` is that of the level itself. Other attributes have the voxel size of the finest level and the number of
/// its voxels along a voxel of this one: `downsamplingFactors` of the array, or those (or `scales`) of the group. The
/// center of a voxel is that of the voxels that it covers.
pub(super) fn geometry(array: &Json, pyramid: Option<Pyramid<'_>>) -> Option<(Geometry, f64)> {
    let transform = pyramid
        .and_then(|pyramid| pyramid.dataset?.get("transform"))
        .or_else(|| array.get("transform"));
    if let Some(found) = transform.and_then(transformed) {
        return Some(found);
    }
    let group = pyramid.map(|pyramid| pyramid.group);
    let (lengths, factor) = resolution(array).or_else(|| resolution(group?))?;
    let of_level = |name: &str| {
        let pyramid = pyramid?;
        three(pyramid.group.get(name)?.get(pyramid.level)?)
    };
    let factors = array
        .get("downsamplingFactors")
        .and_then(three)
        .or_else(|| of_level("downsamplingFactors"))
        .or_else(|| of_level("scales"))
        .unwrap_or([1.0; 3]);
    let geometry = Geometry::from_spacing(lengths.map(|length| length * factor));
    let geometry = geometry.coarsened(factors);
    geometry.is_sound().then_some((geometry, factor))
}

/// Returns the position that a `transform` declares. Its lists have the order of `axes`, usually z, y, x.
fn transformed(transform: &Json) -> Option<(Geometry, f64)> {
    let axes = transform.get("axes")?.as_array()?;
    let place = |letter: &str| axes.iter().position(|axis| axis.as_str() == Some(letter));
    let places = [place("z")?, place("y")?, place("x")?];
    let number = |name: &str, place: usize| transform.get(name)?.get(place)?.as_f64();
    let mut factors = [1.0; 3];
    for (factor, place) in factors.iter_mut().zip(places) {
        let unit = transform.get("units")?.get(place)?.as_str()?;
        let Some(Unit::Millimeters(found)) = units::unit(unit) else {
            return None;
        };
        *factor = found;
    }
    let (mut spacing, mut origin) = (factors, factors);
    for axis in 0..3 {
        spacing[axis] *= number("scale", places[axis])?;
        origin[axis] *= number("translate", places[axis]).unwrap_or(0.0);
    }
    let geometry = Geometry::from_parts(spacing, origin);
    geometry.is_sound().then_some((geometry, factors[2]))
}

/// Returns the voxel size z, y, x in the attributes, and the millimeters of its unit: `pixelResolution` or `resolution`,
/// if they have a unit of length.
fn resolution(attributes: &Json) -> Option<([f64; 3], f64)> {
    let pixel = attributes.get("pixelResolution");
    let (lengths, unit) = match pixel.and_then(|pixel| pixel.get("dimensions")) {
        Some(lengths) => (lengths, pixel?.get("unit")?),
        None => (
            attributes.get("resolution")?,
            attributes.get("units")?.as_array()?.first()?,
        ),
    };
    let Some(Unit::Millimeters(factor)) = units::unit(unit.as_str()?) else {
        return None;
    };
    Some((three(lengths)?, factor))
}

/// Returns the numbers of a list that begins with x, y, z, as z, y, x.
fn three(list: &Json) -> Option<[f64; 3]> {
    let number = |n: usize| list.get(n)?.as_f64();
    Some([number(2)?, number(1)?, number(0)?])
}

/// A compression of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Raw,
    Gzip,
    Zlib,
    Bzip2,
    Zstd,
    Blosc,
}

/// The blocks of an array as whole chunks without codecs.
#[derive(Debug)]
pub(super) struct Blocks {
    inner: Box<dyn Store>,
    /// The array, for messages.
    path: PathBuf,
    compression: Compression,
    /// The lengths of a chunk, z, y, x.
    chunk: Vec<u64>,
    dtype: DType,
}

impl Blocks {
    /// Wraps the store of an array with these attributes. Returns the name of the compression, too.
    pub(super) fn new(
        inner: Box<dyn Store>,
        path: &Path,
        attributes: &Json,
        (chunk, dtype): (&[u64], DType),
    ) -> Result<(Self, Option<String>)> {
        // Version 1 has `compressionType`.
        let settings = attributes.get("compression");
        let kind = settings
            .and_then(|settings| settings.get("type"))
            .or_else(|| attributes.get("compressionType"))
            .and_then(Json::as_str)
            .unwrap_or("raw");
        let is_zlib = settings.and_then(|settings| settings.get("useZlib")) == Some(&json!(true));
        let compression = match kind {
            "raw" => Compression::Raw,
            "gzip" if is_zlib => Compression::Zlib,
            "gzip" => Compression::Gzip,
            "bzip2" => Compression::Bzip2,
            "zstd" => Compression::Zstd,
            "blosc" => Compression::Blosc,
            other => {
                let what = format!(
                    "blocks compressed by {:?} are not read (raw, gzip, bzip2, zstd and blosc are)",
                    super::excerpt(other)
                );
                return Err(Error::unsupported(path, what));
            }
        };
        let name = (compression != Compression::Raw).then(|| kind.to_owned());
        let blocks = Self {
            inner,
            path: path.to_path_buf(),
            compression,
            chunk: chunk.to_vec(),
            dtype,
        };
        Ok((blocks, name))
    }

    /// Returns `true` if the decoder is not safe for hostile data.
    pub(super) fn is_unsafe(&self) -> bool {
        self.compression == Compression::Blosc
    }

    fn chunk_bytes(&self) -> u64 {
        let bytes = |all: u64, &n: &u64| all.saturating_mul(n);
        self.chunk.iter().fold(self.dtype.size() as u64, bytes)
    }

    /// Bytes of an encoded block with its header, at most.
    fn most(&self) -> u64 {
        self.chunk_bytes()
            .saturating_mul(2)
            .saturating_add(64 << 10)
    }

    fn decode(&self, block: &[u8]) -> Result<Vec<u8>, Cause> {
        let rank = self.chunk.len();
        let word = |at: usize| -> Result<usize, Cause> {
            let bytes = block.get(at..at + 2).ok_or("its header is cut off")?;
            Ok(usize::from(u16::from_be_bytes(bytes.try_into()?)))
        };
        let (mode, own_rank) = (word(0)?, word(2)?);
        if mode > 1 {
            return Err(format!("blocks of mode {mode} are not read").into());
        }
        if own_rank != rank {
            return Err(format!("it has {own_rank} dimensions, the array has {rank}").into());
        }
        let mut lengths = Vec::with_capacity(rank);
        for n in 0..rank {
            let at = 4 + 4 * n;
            let bytes = block.get(at..at + 4).ok_or("its header is cut off")?;
            lengths.push(u64::from(u32::from_be_bytes(bytes.try_into()?)));
        }
        lengths.reverse();
        if lengths.iter().zip(&self.chunk).any(|(&n, &most)| n > most) {
            return Err(format!("its lengths {lengths:?} are more than those of a block").into());
        }
        let start = 4 + 4 * rank + if mode == 1 { 4 } else { 0 };
        let encoded = block.get(start..).ok_or("its header is cut off")?;
        let size = self.dtype.size();
        let voxels = lengths
            .iter()
            .fold(size as u64, |all, &n| all.saturating_mul(n));
        let promised = usize::try_from(voxels)?;
        let decoded = match self.compression {
            Compression::Raw => encoded.to_vec(),
            Compression::Gzip => bounded(flate2::bufread::MultiGzDecoder::new(encoded), promised)?,
            Compression::Zlib => zlib(encoded, promised)?,
            Compression::Bzip2 => bounded(bzip2::bufread::MultiBzDecoder::new(encoded), promised)?,
            Compression::Zstd => zstd(encoded, promised)?,
            Compression::Blosc => BloscDecoder::new(promised)?.decode(encoded.to_vec())?,
        };
        if decoded.len() != promised {
            let found = decoded.len();
            return Err(format!("it decodes to {found} bytes, {promised} are needed").into());
        }
        if lengths == self.chunk {
            return Ok(decoded);
        }
        let mut chunk = vec![0; usize::try_from(self.chunk_bytes())?];
        let usizes = |all: &[u64]| -> Result<Vec<usize>, Cause> {
            Ok(all
                .iter()
                .map(|&n| usize::try_from(n))
                .collect::<Result<_, _>>()?)
        };
        let (own, whole) = (usizes(&lengths)?, usizes(&self.chunk)?);
        if promised > 0 {
            super::pipeline::place((&decoded, &own), (&mut chunk, &whole), &vec![0; rank], size);
        }
        Ok(chunk)
    }
}

/// Returns the key of a block from that of a chunk: x is first.
fn reversed(key: &str) -> String {
    let parts: Vec<&str> = key.rsplit('/').collect();
    parts.join("/")
}

impl Store for Blocks {
    fn read(
        &self,
        key: &str,
        part: Part,
        limits: Limits<'_>,
        pin: Option<&Arc<Version>>,
    ) -> Result<Option<StoredPart>> {
        let broken = |source: Cause| Error::Chunk {
            path: self.path.clone(),
            key: reversed(key),
            source,
        };
        let most = self.most();
        let check = |length: u64| {
            if length <= most {
                return Ok(());
            }
            Err(broken(
                format!("it takes {length} bytes, more than the maximum of {most}").into(),
            ))
        };
        let inner = Limits {
            check: &check,
            bytes: most,
        };
        let Some(block) = self.inner.read(&reversed(key), Part::Whole, inner, pin)? else {
            return Ok(None);
        };
        let bytes = self.decode(&block.bytes).map_err(broken)?;
        let length = bytes.len() as u64;
        (limits.check)(length)?;
        let range = part.range(length);
        debug_assert_eq!(range, 0..length, "chunks are read whole");
        Ok(Some(StoredPart {
            bytes,
            length,
            version: block.version,
        }))
    }

    fn exists(&self, key: &str) -> Result<bool> {
        self.inner.exists(&reversed(key))
    }

    fn prefetch(&self, key: &str, _: Part, _: u64, pin: Option<&Arc<Version>>) {
        self.inner
            .prefetch(&reversed(key), Part::Whole, self.most(), pin);
    }

    fn bytes(&self) -> Result<u64> {
        self.inner.bytes()
    }
}
