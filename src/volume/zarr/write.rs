//! Writing: a Zarr v3 array in an OME-Zarr group, each write chunk encoded and written once.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value as Json, json};
use zarrs::array::codec::api::{ArrayToBytesCodecTraits, CodecOptions};
use zarrs::array::{Array, ArrayBytes};

use super::super::chunk::check_whole_chunks;
use super::super::create::{Codec, CreateOptions};
use super::super::staged::StagedFolder;
use super::super::{Format, Layout, VolumeMut};
use super::meta::{Facts, MAX_CHUNK};
use super::{ome, open_array};
use crate::dtype::DType;
use crate::error::{Cause, Error, Result};
use crate::patch::copy_common;
use crate::region::{AXES, Region, Shape, chunk_range, chunk_region, indices};

/// A Zarr array under construction.
#[derive(Debug)]
pub(in super::super) struct ZarrWriter {
    layout: Layout,
    staged: StagedFolder,
    array: Array<()>,
    /// A bit for each chunk that was written, 64 to an entry: chunks that are all fill value
    /// leave no file to tell.
    written: Mutex<HashMap<u64, u64>>,
}

/// Where the array lies in its group.
const ARRAY: &str = "0";

impl ZarrWriter {
    /// The layout that an array of `layout`'s shape and type gets, and its metadata document.
    pub(in super::super) fn describe(
        mut layout: Layout,
        options: &CreateOptions,
    ) -> Result<(Layout, Json)> {
        let (chunk, shard) = fit(&layout, options)?;
        let document = array_document(&layout, chunk, shard, options)?;
        let facts = Facts::parse(&layout.path, Format::Zarr3, &document)?;
        layout.format = Format::Zarr3;
        layout.read_chunk = Some(facts.as_chunk(&facts.read_chunk));
        layout.write_chunk = Some(facts.as_chunk(&facts.write_chunk));
        layout.codecs = facts.codecs;
        Ok((layout, document))
    }

    /// Starts the array that `layout` and `options` describe.
    pub(in super::super) fn create(layout: Layout, options: &CreateOptions) -> Result<Self> {
        let (layout, document) = Self::describe(layout, options)?;
        let path = layout.path.clone();
        let facts = Facts::parse(&path, Format::Zarr3, &document)?;
        let (array, _) = open_array(&facts, &document)?;
        let staged = StagedFolder::new(&path, options.replace)?;
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let folder = staged.path().join(ARRAY);
        fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
        write_json(
            &staged.path().join("zarr.json"),
            &ome::group_document(&layout, &name),
        )?;
        write_json(&folder.join("zarr.json"), &document)?;
        Ok(Self {
            layout,
            staged,
            array,
            written: Mutex::default(),
        })
    }

    /// Encodes one channel of one write chunk and writes it, unless it is all fill value.
    fn write_chunk(&self, channel: u64, index: [u64; 3], voxels: &[u8]) -> Result<()> {
        let key = self.array.chunk_key(&self.own_index(channel, index));
        if !self.mark(channel, index) {
            return Err(Error::ChunkWritten {
                path: self.layout.path.clone(),
                key: key.to_string(),
            });
        }
        let bytes = ArrayBytes::new_flen(voxels);
        if bytes.is_fill_value(self.array.fill_value()) {
            return Ok(());
        }
        let path = self.staged.path().join(ARRAY).join(key.as_str());
        let encoded = self.encode(bytes).map_err(|source| Error::Chunk {
            path: path.clone(),
            key: key.to_string(),
            source,
        })?;
        let folder = path.parent().expect("a chunk lies in a folder");
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let mut file = File::create_new(&path).map_err(Error::io("write", &path))?;
        file.write_all(&encoded).map_err(Error::io("write", &path))
    }

    fn encode<'a>(&self, voxels: ArrayBytes<'a>) -> Result<Cow<'a, [u8]>, Cause> {
        let [_, chunk @ ..] = self.layout.write_chunk.expect("a Zarr array has chunks");
        let shape: Vec<NonZeroU64> = self
            .own_index(1, chunk)
            .into_iter()
            .filter_map(NonZeroU64::new)
            .collect();
        let (dtype, fill) = (self.array.data_type(), self.array.fill_value());
        let options = CodecOptions::default().with_concurrent_target(1);
        let codecs = self.array.codecs();
        Ok(codecs.encode(voxels, &shape, dtype, fill, &options)?)
    }

    /// Notes that a chunk is written, unless it was before.
    fn mark(&self, channel: u64, index: [u64; 3]) -> bool {
        let [_, chunk @ ..] = self.layout.write_chunk.expect("a Zarr array has chunks");
        let place = (0..3).fold(channel, |place, a| {
            place * self.layout.shape[a].div_ceil(chunk[a]) + index[a]
        });
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let bits = written.entry(place / 64).or_default();
        let bit = 1 << (place % 64);
        let new = *bits & bit == 0;
        *bits |= bit;
        new
    }

    /// c, z, y, x along the array's own dimensions: without c where there is one channel.
    fn own_index(&self, channel: u64, space: [u64; 3]) -> Vec<u64> {
        let c = (self.layout.channels > 1).then_some(channel);
        c.into_iter().chain(space).collect()
    }
}

impl VolumeMut for ZarrWriter {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn write_channels(&self, channels: Range<u64>, region: Region, voxels: &[u8]) -> Result<()> {
        let layout = &self.layout;
        layout.check_read(&channels, region, voxels.len())?;
        check_whole_chunks(layout, &channels, region)?;
        let [_, chunk @ ..] = layout.write_chunk.expect("a Zarr array has chunks");
        let size = layout.dtype.size();
        let per_channel = usize::try_from(region.voxels()).unwrap_or(usize::MAX) * size;
        let mut padded = Vec::new();
        for (channel, source) in channels.zip(voxels.chunks_exact(per_channel.max(1))) {
            for index in indices(chunk_range(&region, chunk)) {
                let whole = chunk_region(index, chunk);
                if whole == region {
                    self.write_chunk(channel, index, source)?;
                } else {
                    padded.clear();
                    padded.resize(usize::try_from(whole.voxels()).unwrap_or(0) * size, 0);
                    copy_common((source, region), (&mut padded, whole), 1, size);
                    self.write_chunk(channel, index, &padded)?;
                }
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.staged.finish()
    }
}

/// Chunk and shard, no larger than the volume asks for.
fn fit(layout: &Layout, options: &CreateOptions) -> Result<(Shape, Shape)> {
    let shape = layout.shape;
    let mut chunk = options.chunk;
    let mut shard = options.shard.unwrap_or(options.chunk);
    for a in 0..3 {
        if chunk[a] == 0 {
            return Err(Error::Setting {
                name: "a chunk of",
                value: format!("{:?}", options.chunk),
                problem: format!("it has no voxel along {}", AXES[a]),
            });
        }
        if shard[a] == 0 || !shard[a].is_multiple_of(chunk[a]) {
            return Err(Error::Setting {
                name: "a shard of",
                value: format!("{shard:?}"),
                problem: format!(
                    "along {} it is no multiple of the chunk's {} voxels",
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
    Err(Error::Setting {
        name: "a shard of",
        value: format!("{shard:?}"),
        problem: format!("it is encoded at once, and {MAX_CHUNK} bytes are the limit for that"),
    })
}

fn array_document(
    layout: &Layout,
    chunk: Shape,
    shard: Shape,
    options: &CreateOptions,
) -> Result<Json> {
    let with_channel = |n: u64, space: Shape| -> Vec<u64> {
        let c = (layout.channels > 1).then_some(n);
        c.into_iter().chain(space).collect()
    };
    let codecs = codecs(layout.dtype, options)?;
    let codecs = if options.shard.is_some() {
        json!([{"name": "sharding_indexed", "configuration": {
            "chunk_shape": with_channel(1, chunk),
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
    let zero = match layout.dtype {
        DType::Bool => json!(false),
        dtype if dtype.is_float() => json!(0.0),
        _ => json!(0),
    };
    let names = if layout.channels > 1 {
        json!(["c", "z", "y", "x"])
    } else {
        json!(["z", "y", "x"])
    };
    Ok(json!({
        "zarr_format": 3,
        "node_type": "array",
        "shape": with_channel(layout.channels, layout.shape),
        "data_type": layout.dtype.name(),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": with_channel(1, file)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": zero,
        "codecs": codecs,
        "attributes": ome::own_attributes(layout),
        "dimension_names": names,
    }))
}

fn bytes_codec(dtype: DType) -> Json {
    if dtype.size() == 1 {
        json!({"name": "bytes"})
    } else {
        json!({"name": "bytes", "configuration": {"endian": "little"}})
    }
}

fn codecs(dtype: DType, options: &CreateOptions) -> Result<Vec<Json>> {
    let (name, usual, allowed) = match options.codec {
        Codec::Zstd => ("zstd", 1, 0..=22),
        Codec::BloscZstd | Codec::BloscLz4 => ("blosc", 5, 0..=9),
        Codec::Gzip => ("gzip", 5, 0..=9),
        Codec::None => return Ok(vec![bytes_codec(dtype)]),
    };
    let level = options.level.unwrap_or(usual);
    if !allowed.contains(&level) {
        return Err(Error::Setting {
            name: "a compression level of",
            value: level.to_string(),
            problem: format!("{name} has {} to {}", allowed.start(), allowed.end()),
        });
    }
    let blosc = |cname: &str| json!({"cname": cname, "clevel": level, "shuffle": "shuffle", "typesize": dtype.size(), "blocksize": 0});
    let configuration = match options.codec {
        Codec::Zstd => json!({"level": level, "checksum": true}),
        Codec::BloscZstd => blosc("zstd"),
        Codec::BloscLz4 => blosc("lz4"),
        Codec::Gzip | Codec::None => json!({"level": level}),
    };
    Ok(vec![
        bytes_codec(dtype),
        json!({"name": name, "configuration": configuration}),
    ])
}

fn write_json(path: &Path, document: &Json) -> Result<()> {
    let text = serde_json::to_vec_pretty(document).expect("a document of ours has string keys");
    fs::write(path, text).map_err(Error::io("write", path))
}
