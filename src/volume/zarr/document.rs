//! The metadata documents of an output: levels, chunks and codecs, for Zarr v3 and v2.

use serde_json::{Value as Json, json};

use super::super::create::{Codec, CreateOptions, ZarrVersion};
use super::super::pyramid::{Level, factors, shapes};
use super::super::{Format, Layout};
use super::meta::{ArrayInfo, MAX_CHUNK};
use super::ome;
use super::write::{name, text};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::region::{AXES, Shape};

/// One level of an output: an array.
#[derive(Clone, Debug)]
pub(super) struct PlannedLevel {
    /// The layout of the array.
    pub(super) layout: Layout,
    /// The array's document, `zarr.json` or `.zarray`.
    pub(super) document: Json,
}

/// Plans the levels of an output with `layout`'s shape and type, finest first.
pub(super) fn plan(layout: &Layout, options: &CreateOptions) -> Result<Vec<PlannedLevel>> {
    let mut geometry = layout.geometry;
    let shapes = shapes(layout.shape, options.chunk, options.pyramid)?;
    let mut planned = Vec::with_capacity(shapes.len());
    for shape in shapes {
        let own = Layout {
            shape,
            geometry,
            ..layout.clone()
        };
        planned.push(level(own, options)?);
        #[expect(clippy::cast_precision_loss, reason = "1 or 2")]
        let step = factors(shape).map(|n| n as f64);
        geometry = geometry.coarsened(step);
    }
    Ok(planned)
}

/// Returns the sizes of the levels of such an output.
pub(in super::super) fn levels(layout: &Layout, options: &CreateOptions) -> Result<Vec<Level>> {
    Ok(sizes(&plan(layout, options)?))
}

/// Returns the bytes of an output if no chunk can be compressed, and the bytes of its metadata and one write chunk.
pub(in super::super) fn bounds(layout: &Layout, options: &CreateOptions) -> Result<(u64, u64)> {
    let planned = plan(layout, options)?;
    let documents = files(&planned, &name(&layout.path), options);
    let metadata = documents
        .iter()
        .map(|(_, document)| text(document).len() as u64);
    let metadata = metadata.fold(0, u64::saturating_add);
    let size = layout.dtype.size() as u64;
    let bytes = |lengths: [u64; 4]| lengths.into_iter().fold(size, u64::saturating_mul);
    let mut most = metadata;
    for PlannedLevel { layout, .. } in &planned {
        // Chunks at the edges are stored whole.
        let [_, chunk @ ..] = layout.read_chunk.unwrap_or([1; 4]);
        let [z, y, x] = std::array::from_fn(|a| layout.shape[a].next_multiple_of(chunk[a]));
        most = most.saturating_add(bytes([layout.channels, z, y, x]));
        if options.shard.is_some() {
            // The index of a shard: the start and length of each chunk, and a checksum.
            let [_, shard @ ..] = layout.write_chunk.unwrap_or([1; 4]);
            let of_one = (0..3).fold(1, |all, a| shard[a].div_ceil(chunk[a]).saturating_mul(all));
            let of_one = of_one.saturating_mul(16).saturating_add(4);
            let shards = (0..3).map(|a| layout.shape[a].div_ceil(shard[a]));
            let shards = shards.fold(layout.channels, u64::saturating_mul);
            most = most.saturating_add(shards.saturating_mul(of_one));
        }
    }
    let chunk = bytes(planned[0].layout.write_chunk.unwrap_or([1; 4]));
    Ok((most, metadata.saturating_add(chunk).min(most)))
}

/// Returns the sizes of planned levels.
pub(super) fn sizes(planned: &[PlannedLevel]) -> Vec<Level> {
    let size = |planned: &PlannedLevel| {
        let [_, chunk @ ..] = planned.layout.write_chunk.expect("a Zarr array has chunks");
        Level {
            shape: planned.layout.shape,
            chunk,
        }
    };
    planned.iter().map(size).collect()
}

/// Returns all metadata files of an output, with their paths in the output's folder.
pub(super) fn files(
    planned: &[PlannedLevel],
    name: &str,
    options: &CreateOptions,
) -> Vec<(String, Json)> {
    let layouts: Vec<&Layout> = planned.iter().map(|level| &level.layout).collect();
    let image = ome::image(
        &layouts,
        name,
        options.pyramid.map(|pyramid| pyramid.method),
    );
    let mut files = Vec::new();
    match options.zarr {
        ZarrVersion::V3 => {
            files.push(("zarr.json".to_owned(), ome::group_document(&image)));
            for (n, level) in planned.iter().enumerate() {
                files.push((format!("{n}/zarr.json"), level.document.clone()));
            }
        }
        ZarrVersion::V2 => {
            files.push((".zgroup".to_owned(), json!({"zarr_format": 2})));
            files.push((".zattrs".to_owned(), ome::group_attributes_v2(&image)));
            for (n, level) in planned.iter().enumerate() {
                files.push((format!("{n}/.zarray"), level.document.clone()));
                let attributes = ome::own_attributes(&level.layout);
                files.push((format!("{n}/.zattrs"), attributes));
            }
        }
    }
    files
}

fn level(mut layout: Layout, options: &CreateOptions) -> Result<PlannedLevel> {
    let (chunk, shard) = fit(&layout, options)?;
    let document = match options.zarr {
        ZarrVersion::V3 => array_document(&layout, chunk, shard, options)?,
        ZarrVersion::V2 => array_document_v2(&layout, chunk, options)?,
    };
    layout.format = match options.zarr {
        ZarrVersion::V3 => Format::Zarr3,
        ZarrVersion::V2 => Format::Zarr2,
    };
    let facts = ArrayInfo::parse(&layout.path, layout.format, &document, &[])?;
    layout.read_chunk = Some(facts.as_chunk(&facts.read_chunk));
    layout.write_chunk = Some(facts.as_chunk(&facts.write_chunk));
    layout.codecs = facts.codecs;
    Ok(PlannedLevel { layout, document })
}

/// Returns the chunk and the shard, reduced to the size of the volume.
fn fit(layout: &Layout, options: &CreateOptions) -> Result<(Shape, Shape)> {
    let shape = layout.shape;
    if let (ZarrVersion::V2, Some(shard)) = (options.zarr, options.shard) {
        return Err(Error::InvalidArgument {
            argument: "shard",
            value: format!("{shard:?}"),
            problem: "Zarr v2 has no shards: write none, or write Zarr v3".to_owned(),
        });
    }
    let mut chunk = options.chunk;
    let mut shard = options.shard.unwrap_or(options.chunk);
    for a in 0..3 {
        if chunk[a] == 0 {
            return Err(Error::InvalidArgument {
                argument: "chunk",
                value: format!("{:?}", options.chunk),
                problem: format!("it must have at least one voxel along {}", AXES[a]),
            });
        }
        if shard[a] == 0 || !shard[a].is_multiple_of(chunk[a]) {
            return Err(Error::InvalidArgument {
                argument: "shard",
                value: format!("{shard:?}"),
                problem: format!(
                    "along {} it is not a multiple of the chunk's {} voxels",
                    AXES[a], chunk[a]
                ),
            });
        }
        chunk[a] = chunk[a].min(shape[a]).max(1);
        shard[a] = shard[a].min(shape[a].next_multiple_of(chunk[a]));
        shard[a] -= shard[a] % chunk[a];
    }
    let bytes = Layout::new(shard, 1, layout.dtype).decoded_bytes();
    if bytes.is_ok_and(|bytes| bytes <= MAX_CHUNK) {
        return Ok((chunk, shard));
    }
    Err(Error::InvalidArgument {
        argument: "shard",
        value: format!("{shard:?}"),
        problem: format!("it is encoded at once, which is limited to {MAX_CHUNK} bytes"),
    })
}

/// Returns the lengths along the axes in front of z, y, x, and along these.
fn all_lengths(layout: &Layout) -> Vec<u64> {
    let leading = layout.axes.leading_of(layout.channels);
    let lengths = leading.iter().map(|axis| axis.length);
    lengths.chain(layout.shape).collect()
}

/// Returns a length of 1 for each axis in front of z, y, x, and `space` for these.
fn with_ones(layout: &Layout, space: Shape) -> Vec<u64> {
    let leading = layout.axes.leading_of(layout.channels);
    leading.iter().map(|_| 1).chain(space).collect()
}

fn zero(dtype: DType) -> Json {
    match dtype {
        DType::Bool => json!(false),
        dtype if dtype.is_float() => json!(0.0),
        _ => json!(0),
    }
}

fn array_document(
    layout: &Layout,
    chunk: Shape,
    shard: Shape,
    options: &CreateOptions,
) -> Result<Json> {
    let codecs = codecs(layout.dtype, options)?;
    let codecs = if options.shard.is_some() {
        json!([{"name": "sharding_indexed", "configuration": {
            "chunk_shape": with_ones(layout, chunk),
            "codecs": codecs,
            "index_codecs": [bytes_codec(DType::U64), {"name": "crc32c"}],
            "index_location": "end",
        }}])
    } else {
        Json::Array(codecs)
    };
    let file = if options.shard.is_some() {
        shard
    } else {
        chunk
    };
    let leading = layout.axes.leading_of(layout.channels);
    let leading = leading.into_iter().map(|axis| axis.name);
    let names: Vec<String> = leading.chain(["z", "y", "x"].map(str::to_owned)).collect();
    Ok(json!({
        "zarr_format": 3,
        "node_type": "array",
        "shape": all_lengths(layout),
        "data_type": layout.dtype.name(),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": with_ones(layout, file)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": zero(layout.dtype),
        "codecs": codecs,
        "attributes": ome::own_attributes(layout),
        "dimension_names": names,
    }))
}

fn array_document_v2(layout: &Layout, chunk: Shape, options: &CreateOptions) -> Result<Json> {
    let order = if layout.dtype.size() == 1 { '|' } else { '<' };
    let kind = match layout.dtype {
        DType::Bool => 'b',
        dtype if dtype.is_float() => 'f',
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => 'u',
        _ => 'i',
    };
    let level = effort(options)?;
    let blosc = |cname: &str| json!({"id": "blosc", "cname": cname, "clevel": level, "shuffle": 1, "blocksize": 0});
    let compressor = match options.codec {
        Codec::Zstd => json!({"id": "zstd", "level": level, "checksum": true}),
        Codec::BloscZstd => blosc("zstd"),
        Codec::BloscLz4 => blosc("lz4"),
        Codec::Gzip => json!({"id": "gzip", "level": level}),
        Codec::Zlib => json!({"id": "zlib", "level": level}),
        Codec::None => Json::Null,
    };
    Ok(json!({
        "zarr_format": 2,
        "shape": all_lengths(layout),
        "chunks": with_ones(layout, chunk),
        "dtype": format!("{order}{kind}{}", layout.dtype.size()),
        "fill_value": zero(layout.dtype),
        "order": "C",
        "filters": null,
        "compressor": compressor,
        "dimension_separator": "/",
    }))
}

fn bytes_codec(dtype: DType) -> Json {
    if dtype.size() == 1 {
        json!({"name": "bytes"})
    } else {
        json!({"name": "bytes", "configuration": {"endian": "little"}})
    }
}

/// Returns the compression level after checking it.
fn effort(options: &CreateOptions) -> Result<u8> {
    let (name, usual, allowed) = match options.codec {
        Codec::Zstd => ("zstd", 1, 0..=22),
        Codec::BloscZstd | Codec::BloscLz4 => ("blosc", 5, 0..=9),
        Codec::Gzip => ("gzip", 5, 0..=9),
        Codec::Zlib => ("zlib", 5, 0..=9),
        Codec::None => return Ok(0),
    };
    let level = options.clevel.unwrap_or(usual);
    if allowed.contains(&level) {
        return Ok(level);
    }
    Err(Error::InvalidArgument {
        argument: "compression level",
        value: level.to_string(),
        problem: format!("{name} has levels {} to {}", allowed.start(), allowed.end()),
    })
}

fn codecs(dtype: DType, options: &CreateOptions) -> Result<Vec<Json>> {
    let level = effort(options)?;
    let blosc = |cname: &str| json!({"cname": cname, "clevel": level, "shuffle": "shuffle", "typesize": dtype.size(), "blocksize": 0});
    let (name, configuration) = match options.codec {
        Codec::Zstd => ("zstd", json!({"level": level, "checksum": true})),
        Codec::BloscZstd => ("blosc", blosc("zstd")),
        Codec::BloscLz4 => ("blosc", blosc("lz4")),
        Codec::Gzip => ("gzip", json!({"level": level})),
        Codec::Zlib => {
            return Err(Error::InvalidArgument {
                argument: "codec",
                value: "zlib".to_owned(),
                problem: "Zarr v3 does not have it: use gzip, or write Zarr v2".to_owned(),
            });
        }
        Codec::None => return Ok(vec![bytes_codec(dtype)]),
    };
    Ok(vec![
        bytes_codec(dtype),
        json!({"name": name, "configuration": configuration}),
    ])
}
