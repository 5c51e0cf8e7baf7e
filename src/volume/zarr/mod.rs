//! Zarr arrays: the only room that names the zarrs crate.
//!
//! zarrs supplies metadata and codecs; which bytes are read is decided here. A read fetches
//! the chunks that intersect its region and nothing else; of a sharded array, the shard's
//! index and the inner chunks. Chunks are decoded on the caller's thread.

mod meta;
mod ome;
mod shard;
mod store;
mod write;

use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;
use zarrs::array::codec::api::{ArrayToBytesCodecTraits, CodecOptions};
use zarrs::array::{Array, ArrayMetadata, CodecChain};

use self::meta::Facts;
use self::shard::Sharding;
use self::store::{Folder, Store};
use super::chunk::{self, Chunk, ChunkVoxels, read_by_chunks};
use super::{ChunkShape, Counter, Format, Layout, Reads, Rescale, Volume};
use crate::error::{Cause, Error, Result};
use crate::geometry::Geometry;
use crate::region::Region;

pub(super) use self::write::ZarrWriter;

/// An array in a folder, opened for reading.
#[derive(Debug)]
pub(super) struct ZarrVolume {
    layout: Layout,
    facts: Facts,
    store: Box<dyn Store>,
    /// For keys, data type and fill value; it holds no storage.
    array: Array<()>,
    /// Decodes what is read at once: the array's codecs, or a shard's inner ones.
    codecs: Arc<CodecChain>,
    chunk_shape: Vec<NonZeroU64>,
    sharding: Option<Sharding>,
    counter: Counter,
}

impl ZarrVolume {
    /// Opens an array, the chosen level of an OME-Zarr image, or a group's first array.
    pub(super) fn open(path: &Path, level: usize) -> Result<Self> {
        let found = ome::find_array(path, level)?;
        let folder = Box::new(Folder(found.path.clone()));
        let mut volume = Self::with_store(&found.path, folder, found.format, &found.document)?;
        let own = found.attributes.get("voxpatch");
        if let Some(geometry) = own
            .and_then(ome::own_geometry)
            .or(found.geometry)
            .filter(Geometry::is_sound)
        {
            volume.layout.geometry = geometry;
        }
        let number = |name: &str| own.and_then(|own| own.get(name)).and_then(Json::as_f64);
        volume.layout.rescale = Rescale::new(
            number("slope").unwrap_or(0.0),
            number("intercept").unwrap_or(0.0),
        );
        Ok(volume)
    }

    fn with_store(
        path: &Path,
        store: Box<dyn Store>,
        format: Format,
        document: &Json,
    ) -> Result<Self> {
        let facts = Facts::parse(path, format, document)?;
        let array = open_array(&facts, document)?;
        let (sharding, codecs) = match &facts.sharding {
            Some(configuration) => {
                let (sharding, inner) = Sharding::new(&facts, configuration)?;
                (Some(sharding), Arc::new(inner))
            }
            None => (None, array.codecs()),
        };
        let layout = Layout {
            path: path.to_path_buf(),
            format,
            read_chunk: Some(facts.as_chunk(&facts.read_chunk)),
            write_chunk: Some(facts.as_chunk(&facts.write_chunk)),
            codecs: facts.codecs.clone(),
            ..Layout::new(facts.shape(), facts.channels(), facts.dtype)
        };
        let chunk_shape = facts
            .read_chunk
            .iter()
            .filter_map(|&n| NonZeroU64::new(n))
            .collect();
        Ok(Self {
            layout,
            facts,
            store,
            array,
            codecs,
            chunk_shape,
            sharding,
            counter: Counter::default(),
        })
    }

    /// The encoded bytes of a chunk, its key for messages, or `None` if it is not stored.
    fn fetch(&self, index: &[u64]) -> Result<(String, Option<Vec<u8>>)> {
        let Some(sharding) = &self.sharding else {
            let key = self.array.chunk_key(index).to_string();
            let Some(value) = self.store.open(&key)? else {
                return Ok((key, None));
            };
            let bytes = value.read(0..value.len())?;
            self.counter.add(1, bytes.len() as u64);
            return Ok((key, Some(bytes)));
        };
        let (shard, inner) = sharding.locate(index);
        let key = self.array.chunk_key(&shard).to_string();
        let Some(value) = self.store.open(&key)? else {
            return Ok((key, None));
        };
        let (range, index_read) =
            sharding.range(&self.layout.path.join(&key), &shard, &*value, inner)?;
        self.counter.add(
            0,
            if index_read {
                sharding.index_bytes()
            } else {
                0
            },
        );
        let key = format!("{key}, inner chunk {inner}");
        let Some(range) = range else {
            return Ok((key, None));
        };
        self.counter.add(1, range.end - range.start);
        Ok((key, Some(value.read(range)?)))
    }

    fn decode(&self, key: String, encoded: Vec<u8>) -> Result<Vec<u8>> {
        let failed = |source: Cause| Error::Chunk {
            path: self.layout.path.clone(),
            key,
            source,
        };
        let options = CodecOptions::default().with_concurrent_target(1);
        let decoded = self.codecs.decode(
            encoded.into(),
            &self.chunk_shape,
            self.array.data_type(),
            self.array.fill_value(),
            &options,
        );
        let voxels = match decoded.map(zarrs::array::ArrayBytes::into_fixed) {
            Ok(Ok(voxels)) => voxels.into_owned(),
            Ok(Err(error)) => return Err(failed(error.into())),
            Err(error) => return Err(failed(error.into())),
        };
        let expected =
            self.facts.read_chunk.iter().product::<u64>() * self.layout.dtype.size() as u64;
        if voxels.len() as u64 != expected {
            return Err(failed(
                format!("it holds {} bytes instead of {expected}", voxels.len()).into(),
            ));
        }
        Ok(voxels)
    }
}

fn open_array(facts: &Facts, document: &Json) -> Result<Array<()>> {
    let name = if facts.format == Format::Zarr3 {
        "Zarr v3"
    } else {
        "Zarr v2"
    };
    let bad = |problem: String| Error::header(&facts.path, name, problem);
    let mut document = document.clone();
    if let Some(object) = document.as_object_mut() {
        // Attributes are read by us; some writers leave consolidated metadata in v3 arrays.
        object.retain(|key, _| key != "attributes" && key != "consolidated_metadata");
    }
    let metadata = match facts.format {
        Format::Zarr3 => serde_json::from_value(document).map(ArrayMetadata::V3),
        _ => serde_json::from_value(document).map(ArrayMetadata::V2),
    };
    let metadata = metadata.map_err(|error| bad(error.to_string()))?;
    Array::new_with_metadata(Arc::new(()), "/", metadata).map_err(|error| bad(error.to_string()))
}

impl Volume for ZarrVolume {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        read_by_chunks(&self.layout, channels, region, out, |index| {
            self.read_chunk(index)
        })
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        chunk::clipped(&self.layout, index)?;
        let (channels, region) = chunk::whole(&self.layout, index)?;
        let (key, encoded) = self.fetch(&self.facts.chunk_index(index))?;
        let voxels = match encoded {
            Some(encoded) => ChunkVoxels::Stored(self.decode(key, encoded)?),
            None => ChunkVoxels::Fill(self.array.fill_value().as_ne_bytes().to_vec()),
        };
        Ok(Chunk {
            channels,
            region,
            voxels,
        })
    }

    fn unstored(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        chunk::clipped(&self.layout, index)?;
        let own = self.facts.chunk_index(index);
        let stored = match &self.sharding {
            Some(sharding) => sharding.locate(&own).0,
            None => own,
        };
        let found = self.store.open(self.array.chunk_key(&stored).as_str())?;
        let fill = || self.array.fill_value().as_ne_bytes().to_vec();
        Ok(found.is_none().then(fill))
    }

    fn reads(&self) -> Reads {
        self.counter.reads()
    }

    fn stored_bytes(&self) -> Result<u64> {
        folder_bytes(&self.layout.path)
    }
}

/// Bytes of all files below a folder.
fn folder_bytes(path: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut folders: Vec<PathBuf> = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let found = entry.metadata().map_err(Error::io("look at", &folder))?;
            if found.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += found.len();
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
