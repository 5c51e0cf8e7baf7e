//! Zarr arrays. Only this module uses the zarrs crate.
//!
//! zarrs supplies metadata and codecs; this module decides which bytes are read. A read fetches only the chunks that
//! intersect its region. For a sharded array, these are the shard's index and the inner chunks. Chunks are decoded on
//! the caller's thread, never to more than the size in the metadata. Nothing is registered with zarrs: other users of
//! it in the same process are not affected.

mod arrays;
mod axes;
mod belongs;
mod blosc;
mod bounded;
mod coarser;
mod document;
mod encode;
mod find;
mod json;
mod mapped;
mod meta;
mod n5;
mod nifti;
mod objects;
mod ome;
mod partial_options;
mod pipeline;
mod place;
mod pool;
mod resume;
mod shard;
mod store;
mod tree;
mod write;

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value as Json, json};
use zarrs::array::{Array, ArrayCreateError, ArrayMetadata};
use zarrs::convert::{ArrayMetadataV2ToV3Error, array_metadata_v2_to_v3};
use zarrs::metadata::v2::ArrayMetadataV2;
use zarrs::metadata::v3::ArrayMetadataV3;
use zarrs::plugin::PluginCreateError;

use self::axes::ZarrAxis;
use self::find::FoundArray;
use self::mapped::MappedFiles;
use self::meta::ArrayInfo;
use self::pipeline::{ArrayForm, CodecError, CodecPipeline};
use self::pool::{codec_options, outside_global_pool};
use self::shard::Shards;
use self::store::{Entries, Folder, Limits, Links, Objects, Store};
use self::tree::Tree;
use super::archive::Archive;
use super::chunk::{self, Chunk, ChunkVoxels, intersecting, read_by_chunks};
use super::decoders::caught;
use super::files::identity;
use super::format::excerpt;
use super::lru::Lru;
use super::needs::{INDEX_BUDGET, remote_memory};
use super::options::{MissingChunks, OpenOptions};
use super::watch::FileWatch;
use super::{Axes, ChunkShape, Counter, Format, Layout, ReadStats, Rescale, Volume};
use crate::error::{Cause, Error, Result};
use crate::geometry::Geometry;
use crate::region::Region;
use crate::store::{Part, Place, Version};

pub(super) use self::arrays::Arrays;
pub(super) use self::belongs::foreign;
#[cfg(feature = "hdf5")]
pub(super) use self::blosc::BloscDecoder;
pub(super) use self::document::{bounds, levels};
pub(super) use self::find::{is_group, level_count, level_count_in_archive};
pub(super) use self::objects::{ObjectsPart, ObjectsParts, begun_options, check_objects, store_of};
pub(super) use self::partial_options::partial_options;
pub(super) use self::resume::ZarrResumable;
pub(super) use self::write::ZarrWriter;

/// An array in a folder or a store, opened for reading.
#[derive(Debug)]
pub(super) struct ZarrVolume {
    layout: Layout,
    facts: ArrayInfo,
    store: Box<dyn Store>,
    /// The array's keys and fill value; it has no storage.
    array: Array<()>,
    codecs: Codecs,
    /// The files, if parts of chunks are read.
    mapped: Option<MappedFiles>,
    missing_chunks: MissingChunks,
    /// The state of the metadata files when they were opened.
    watch: FileWatch,
    /// The archive that the array is in.
    archive: Option<Arc<Archive>>,
    /// Chunks to prefetch when the index of their shard has arrived, by shard.
    awaited: Mutex<HashMap<Vec<u64>, Vec<usize>>>,
    counter: Counter,
}

/// Maximum number of shards whose index is awaited.
const MAX_AWAITED: usize = 4096;

/// The number of chunks that one read of a remote array prefetches together, so that requests can be merged. Up to
/// twice as many are ahead of the chunk that is being read.
const READ_AHEAD: usize = 128;

/// The decoder of the chunks.
#[derive(Debug)]
enum Codecs {
    /// One chunk per value.
    Whole(CodecPipeline),
    /// One shard per value. Its chunks are read individually, with a cache of shard indexes.
    Sharded(Box<Shards>, Lru<Vec<u64>, ShardIndex>),
}

/// The decoded index of a shard.
#[derive(Clone, Debug)]
enum ShardIndex {
    /// The shard does not exist.
    Absent,
    Present {
        /// The start and the length of each chunk.
        entries: Arc<[u64]>,
        /// The length of the shard, and its version, if its store has versions.
        length: u64,
        version: Option<Arc<Version>>,
    },
}

/// The place of a chunk in the store.
enum Located {
    /// The value does not exist.
    Absent {
        key: String,
    },
    /// The shard's index marks the chunk as all fill value.
    Empty,
    At(StoredChunk),
}

/// A chunk of a value that may exist.
struct StoredChunk {
    key: String,
    /// The name of the chunk in errors.
    name: String,
    part: Part,
    /// The most bytes that it may have.
    bytes: u64,
    version: Option<Arc<Version>>,
}

/// A chunk that was looked for.
enum Found<T> {
    /// It is not stored: the value of all its voxels.
    Fill(Vec<u8>),
    Stored(T),
}

impl ZarrVolume {
    /// Opens an array, the chosen level of an OME-Zarr image, or a group's only array or image.
    pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        Self::open_at(&Place::Local, path, options)
    }

    /// As [`open`](Self::open), in a folder or a store.
    pub(super) fn open_at(place: &Place, path: &Path, options: &OpenOptions) -> Result<Self> {
        Self::open_tree(&Tree::new(place, Links::of(options)), path, options)
    }

    /// As [`open`](Self::open), at `inside` in an archive.
    pub(super) fn open_archive(
        archive: Archive,
        inside: &str,
        options: &OpenOptions,
    ) -> Result<Self> {
        let (tree, path) = find::in_archive(archive, inside)?;
        Self::open_tree(&tree, &path, options)
    }

    fn open_tree(tree: &Tree, path: &Path, options: &OpenOptions) -> Result<Self> {
        let found = find::find_array(path, options.level, tree)?;
        let store = store_of_array(tree, &found.path)?;
        let (store, compression) = if found.format == Format::N5 {
            Self::decoded(store, &found, options)?
        } else {
            (store, None)
        };
        let mut volume = Self::with_store(
            (&found.path, found.format, &found.axes),
            store,
            &found.document,
            options,
        )?;
        match tree {
            Tree::Objects(objects) => {
                volume.set_remote();
                for (path, version) in tree.versions() {
                    volume
                        .watch
                        .add_object(objects.remote(), &path, Some(version));
                }
            }
            Tree::Archive(archive) => {
                volume.layout.read_memory.shared = archive.directory_bytes();
                volume.archive = Some(Arc::clone(archive));
            }
            Tree::Folder(links) => {
                let folder = Folder::unchanging(&found.path, *links)?;
                volume.mapped = volume.map_files(folder, options);
                for name in ["zarr.json", ".zarray", n5::ATTRIBUTES] {
                    let path = found.path.join(name);
                    if let Ok(found) = path.metadata() {
                        volume.watch.add(&path, &found);
                    }
                }
            }
        }
        let facts = &volume.facts;
        volume.layout.axes = match &found.image {
            Some(image) => image.axes(facts),
            None => Axes {
                leading: ome::leading(&found.axes, facts, |_| 1.0),
                ..Axes::default()
            },
        };
        volume.layout.codecs.extend(compression);
        if let Some((geometry, factor)) = found.n5_place {
            volume.layout.geometry = geometry;
            volume.layout.axes.unit =
                super::units::name(factor).map(|name| (name.to_owned(), factor));
        }
        let own = found.attributes.get("voxpatch");
        if let Some(geometry) = own.and_then(ome::own_geometry).filter(Geometry::is_sound) {
            volume.layout.geometry = geometry;
        } else if let Some(image) = &found.image {
            let geometry = image.geometry(&facts.order);
            volume.layout.geometry =
                geometry.map_err(|problem| Error::unsupported(&found.path, problem))?;
        }
        let number = |name: &str| own.and_then(|own| own.get(name)).and_then(Json::as_f64);
        volume.layout.rescale = Rescale::new(
            number("slope").unwrap_or(0.0),
            number("intercept").unwrap_or(0.0),
        );
        if found.format != Format::N5
            && let Some(header) = nifti::read(tree, &found, options)?
        {
            nifti::place(&mut volume.layout, header, &found, &volume.facts)?;
        }
        Ok(volume)
    }

    /// Wraps the store of an N5 array. Returns the name of its compression, too.
    fn decoded(
        store: Box<dyn Store>,
        found: &FoundArray,
        options: &OpenOptions,
    ) -> Result<(Box<dyn Store>, Option<String>)> {
        let facts = ArrayInfo::parse(&found.path, found.format, &found.document, &found.axes)?;
        let form = (&*facts.stored.write_chunk, facts.dtype);
        let (blocks, name) = n5::Blocks::new(store, &found.path, &found.attributes, form)?;
        if !options.trusted && blocks.is_unsafe() {
            return Err(Error::UntrustedCodec {
                path: found.path.clone(),
                codec: name.unwrap_or_default(),
            });
        }
        Ok((Box::new(blocks), name))
    }

    /// Notes that the array is in a store.
    fn set_remote(&mut self) {
        self.layout.remote = true;
        self.layout.read_memory = remote_memory(&self.layout);
    }

    fn with_store(
        (path, format, axes): (&Path, Format, &[ZarrAxis]),
        store: Box<dyn Store>,
        document: &Json,
        options: &OpenOptions,
    ) -> Result<Self> {
        let facts = ArrayInfo::parse(path, format, document, axes)?;
        Self::with_facts(facts, store, document, options)
    }

    /// As [`with_store`](Self::with_store), with the facts of the document.
    fn with_facts(
        facts: ArrayInfo,
        store: Box<dyn Store>,
        document: &Json,
        options: &OpenOptions,
    ) -> Result<Self> {
        let (path, format) = (&*facts.path.clone(), facts.format);
        let bad = |problem: &Cause| Error::header(path, facts.format_name(), problem.to_string());
        let opened = caught("zarrs", || open_array(&facts, document));
        let (array, metadata) = opened.map_err(|problem| bad(&problem))??;
        let form = ArrayForm {
            shape: facts
                .stored
                .write_chunk
                .iter()
                .filter_map(|&n| NonZeroU64::new(n))
                .collect(),
            dtype: array.data_type().clone(),
            fill: array.fill_value().clone(),
        };
        let chain = caught("zarrs", || {
            CodecPipeline::new(&metadata.codecs, form, options.trusted)
        })
        .unwrap_or_else(|problem| Err(CodecError::Broken(problem)))
        .map_err(|refusal| match refusal {
            CodecError::Untrusted(codec) => Error::UntrustedCodec {
                path: path.to_path_buf(),
                codec: excerpt(&codec),
            },
            CodecError::Broken(problem) => bad(&problem),
        })?;
        let codecs = if facts.sharded {
            let shards = chain
                .into_shards()
                .ok_or_else(|| bad(&"the codecs do not match their list".into()))?;
            let indexes = Lru::new(INDEX_BUDGET, ShardIndex::bytes);
            Codecs::Sharded(Box::new(shards), indexes)
        } else {
            Codecs::Whole(chain)
        };
        let layout = Layout {
            path: path.to_path_buf(),
            format,
            read_chunk: Some(facts.as_chunk(&facts.cut_chunk())),
            write_chunk: Some(facts.as_chunk(&facts.write_chunk)),
            codecs: facts.codecs.clone(),
            ..Layout::new(facts.shape(), facts.channels(), facts.dtype)
        };
        Ok(Self {
            layout,
            facts,
            store,
            array,
            codecs,
            mapped: None,
            missing_chunks: options.missing_chunks,
            watch: FileWatch::default(),
            archive: None,
            awaited: Mutex::default(),
            counter: Counter::default(),
        })
    }

    /// Returns the files of the array if parts of its chunks can be copied out of them, and if it fits into memory.
    fn map_files(&self, folder: Folder, options: &OpenOptions) -> Option<MappedFiles> {
        let facts = &self.facts;
        let (pipeline, bytes) = match &self.codecs {
            Codecs::Whole(chain) => (chain, chain.encoded().limit()),
            Codecs::Sharded(shards, _) => (shards.inner(), shards.encoded().limit()),
        };
        if facts.format == Format::N5 || !pipeline.is_plain() || !facts.keeps_order() {
            return None;
        }
        let stored = facts.stored.dims.iter().zip(&facts.stored.write_chunk);
        let files = stored.map(|(length, chunk)| length.div_ceil(*chunk));
        let files = files.fold(1, u64::saturating_mul);
        MappedFiles::new(folder, files, bytes, options.read_method)
    }

    /// Finds the chunk at `index`, along the array's own dimensions.
    fn locate(&self, index: &[u64]) -> Result<Located> {
        let (shards, indexes) = match &self.codecs {
            Codecs::Whole(chain) => {
                let key = self.array.chunk_key(index).to_string();
                return Ok(Located::At(StoredChunk {
                    name: key.clone(),
                    key,
                    part: Part::Whole,
                    bytes: chain.encoded().limit(),
                    version: None,
                }));
            }
            Codecs::Sharded(shards, indexes) => (shards, indexes),
        };
        let (shard, inner) = shards.locate(index);
        let key = self.array.chunk_key(&shard).to_string();
        let found = self.shard_index(shards, indexes, (&shard, &key))?;
        let ShardIndex::Present {
            entries,
            length,
            version,
        } = found
        else {
            return Ok(Located::Absent { key });
        };
        let name = format!("{key}, inner chunk {inner}");
        let range = shards.range(&entries, inner, length);
        let range = range.map_err(|problem| self.broken(name.clone(), problem))?;
        Ok(range.map_or(Located::Empty, |range| {
            Located::At(StoredChunk {
                key,
                name,
                bytes: range.end - range.start,
                part: Part::Range(range),
                version,
            })
        }))
    }

    /// Checks the length of the value that a chunk is in.
    fn check_length(&self, chunk: &StoredChunk, length: u64) -> Result<()> {
        match &self.codecs {
            Codecs::Whole(chain) => {
                let checked = chain.encoded().check("it takes", length);
                checked.map_err(|problem| self.broken(chunk.key.clone(), problem))
            }
            // The range was checked with the shard's index.
            Codecs::Sharded(..) => Ok(()),
        }
    }

    /// Finds the chunk at `index` and gets what `get` returns of it: `None` if the value does not exist.
    fn find<T>(
        &self,
        index: ChunkShape,
        get: impl FnOnce(&StoredChunk, Limits<'_>) -> Result<Option<T>>,
    ) -> Result<Found<T>> {
        let chunk = match self.locate(&self.facts.chunk_index(index))? {
            Located::Absent { key } => return self.missing(key).map(Found::Fill),
            Located::Empty => return Ok(Found::Fill(self.fill_voxel())),
            Located::At(chunk) => chunk,
        };
        let limits = Limits {
            check: &|length| self.check_length(&chunk, length),
            bytes: chunk.bytes,
        };
        match get(&chunk, limits)? {
            Some(got) => Ok(Found::Stored(got)),
            None => self.missing(chunk.key).map(Found::Fill),
        }
    }

    /// Fetches the encoded bytes of the chunk at `index`, with its name in errors.
    fn fetch(&self, index: ChunkShape) -> Result<Found<(String, Vec<u8>)>> {
        self.find(index, |chunk, limits| {
            let (part, version) = (chunk.part.clone(), chunk.version.as_ref());
            let read = self.store.read(&chunk.key, part, limits, version)?;
            Ok(read.map(|read| {
                self.counter.add(1, read.bytes.len() as u64);
                (chunk.name.clone(), read.bytes)
            }))
        })
    }

    /// Returns the value of the voxels of a chunk that is not stored, or the error that it is missing.
    fn missing(&self, key: String) -> Result<Vec<u8>> {
        match self.missing_chunks {
            MissingChunks::Fill => Ok(self.fill_voxel()),
            MissingChunks::Error => Err(Error::MissingChunk {
                path: self.layout.path.clone(),
                key,
            }),
        }
    }

    fn fill_voxel(&self) -> Vec<u8> {
        self.array.fill_value().as_ne_bytes().to_vec()
    }

    /// Reads parts of chunks out of mapped files.
    fn read_mapped(
        &self,
        files: &MappedFiles,
        (channels, region): (&Range<u64>, Region),
        out: &mut [u8],
    ) -> Result<()> {
        self.layout.check_read(channels, region, out.len())?;
        let size = self.layout.dtype.size();
        let shape = self.layout.read_chunk.unwrap_or([1; 4]);
        let mut coming = intersecting(shape, channels, region).peekable();
        while coming.peek().is_some() {
            // All are found before the first is copied, so that those on the disk arrive together.
            let ahead = coming.by_ref().take(READ_AHEAD);
            let found = ahead.map(|index| {
                let found = self.find(index, |chunk, limits| {
                    files.get(&chunk.key, &chunk.part, limits)
                })?;
                Ok((index, found))
            });
            for (index, found) in found.collect::<Result<Vec<_>>>()? {
                let (chunk_channels, box_) = chunk::whole(&self.layout, index)?;
                match found {
                    Found::Fill(voxel) => {
                        let chunk = Chunk {
                            channels: chunk_channels,
                            region: box_,
                            voxels: ChunkVoxels::Fill(voxel),
                        };
                        chunk.copy_to(channels, region, out, size);
                    }
                    Found::Stored((file, range)) => file.read(range, |voxels| {
                        let from = (voxels, &chunk_channels, box_);
                        chunk::copy_part(from, (out, channels, region), size);
                    })?,
                }
            }
        }
        self.counter.add(0, out.len() as u64);
        Ok(())
    }

    /// Returns the index of a shard, which is read once while it is in the cache.
    fn shard_index(
        &self,
        shards: &Shards,
        indexes: &Lru<Vec<u64>, ShardIndex>,
        (shard, key): (&Vec<u64>, &str),
    ) -> Result<ShardIndex> {
        /// The reason why a load gave nothing to cache.
        enum Uncached {
            Absent,
            Failed(Error),
        }
        let load = || match self.load_index(shards, key) {
            // In a folder, a shard that appears later is a change, which only another look finds.
            Ok(ShardIndex::Absent) if !self.store.is_remote() => Err(Uncached::Absent),
            loaded => loaded.map_err(Uncached::Failed),
        };
        let found = match indexes.get_or_load(shard, load) {
            Ok((found, _)) => found,
            Err(Uncached::Absent) => ShardIndex::Absent,
            Err(Uncached::Failed(error)) => return Err(error),
        };
        if self.store.is_remote() {
            let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
            let chunks = awaited.remove(shard);
            drop(awaited);
            for inner in chunks.into_iter().flatten() {
                self.prefetch_inner(shards, &found, (key, inner));
            }
        }
        Ok(found)
    }

    fn load_index(&self, shards: &Shards, key: &str) -> Result<ShardIndex> {
        let failed = |problem| self.broken(format!("{key}, the shard's index"), problem);
        let limits = Limits {
            check: &|length| shards.check_length(length).map_err(failed),
            bytes: shards.index_bytes(),
        };
        let Some(part) = self.store.read(key, shards.index_part(), limits, None)? else {
            return Ok(ShardIndex::Absent);
        };
        self.counter.add(0, part.bytes.len() as u64);
        Ok(ShardIndex::Present {
            entries: shards.decode_index(part.bytes).map_err(failed)?.into(),
            length: part.length,
            version: part.version,
        })
    }

    /// Prefetches a chunk of a shard whose index is known.
    fn prefetch_inner(&self, shards: &Shards, index: &ShardIndex, (key, inner): (&str, usize)) {
        if let ShardIndex::Present {
            entries,
            length,
            version,
        } = index
            && let Ok(Some(range)) = shards.range(entries, inner, *length)
        {
            let bytes = range.end - range.start;
            let part = Part::Range(range);
            self.store.prefetch(key, part, bytes, version.as_ref());
        }
    }

    /// Decodes the indexes that have arrived, and prefetches the chunks that waited for them.
    fn advance(&self, shards: &Shards, indexes: &Lru<Vec<u64>, ShardIndex>) {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Vec<u64>> = awaited.keys().cloned().collect();
        drop(awaited);
        let part = shards.index_part();
        for shard in all {
            let key = self.array.chunk_key(&shard).to_string();
            if indexes.contains(&shard) || self.store.has(&key, &part) {
                // If it fails, the read of the chunk fails too and reports it.
                let _ = self.shard_index(shards, indexes, (&shard, &key));
            }
        }
    }

    fn decode(&self, key: String, encoded: Vec<u8>) -> Result<Vec<u8>> {
        let chain = match &self.codecs {
            Codecs::Whole(chain) => chain,
            Codecs::Sharded(shards, _) => shards.inner(),
        };
        let voxels = caught("zarrs", || chain.decode(encoded))
            .flatten()
            .map_err(|problem| self.broken(key, problem))?;
        let kept = self.facts.cut_chunk();
        if self.facts.keeps_order() {
            return Ok(voxels);
        }
        let usizes = |lengths: &[u64]| -> Vec<usize> {
            let length = |&n| usize::try_from(n).expect("lengths of a chunk in memory");
            lengths.iter().map(length).collect()
        };
        let size = self.layout.dtype.size();
        let (kept, steps) = (usizes(&kept), usizes(&self.facts.steps()));
        let mut cut = vec![0; kept.iter().product::<usize>() * size];
        gather(&voxels, (&kept, &steps), &mut cut, size);
        Ok(cut)
    }

    fn broken(&self, key: String, source: Cause) -> Error {
        Error::Chunk {
            path: self.layout.path.clone(),
            key,
            source,
        }
    }
}

/// Returns the array and its metadata, converted to version 3.
fn open_array(facts: &ArrayInfo, document: &Json) -> Result<(Array<()>, ArrayMetadataV3)> {
    let bad = |problem: String| Error::header(&facts.path, facts.format_name(), problem);
    let unread = |codec: &str| {
        Error::unsupported(
            &facts.path,
            format!("codec {} is not supported", excerpt(codec)),
        )
    };
    let mut document = document.clone();
    if let Some(object) = document.as_object_mut() {
        // Attributes are read by this crate; some writers leave consolidated metadata in v3 arrays.
        object.retain(|key, _| key != "attributes" && key != "consolidated_metadata");
        let fill = meta::fill_value(&Json::Object(object.clone()), facts.dtype);
        object.insert("fill_value".to_owned(), fill);
        if let Some(codecs) = object.get_mut("codecs") {
            meta::plain_codecs(codecs);
        }
        meta::plain_filters(object);
    }
    let metadata: ArrayMetadataV3 = if facts.format == Format::Zarr3 {
        serde_json::from_value(document).map_err(|error| bad(error.to_string()))?
    } else {
        let metadata: ArrayMetadataV2 =
            serde_json::from_value(document).map_err(|error| bad(error.to_string()))?;
        array_metadata_v2_to_v3(&metadata).map_err(|error| match error {
            ArrayMetadataV2ToV3Error::UnsupportedCodec(codec, _) => unread(&codec),
            error => bad(error.to_string()),
        })?
    };
    // Called before zarrs reads its configuration itself.
    codec_options();
    let array = ArrayMetadata::V3(metadata.clone());
    let made = outside_global_pool(|| Array::new_with_metadata(Arc::new(()), "/", array))
        .map_err(|error| bad(error.to_string()))?;
    let array = made.map_err(|error| match error {
        ArrayCreateError::CodecsCreateError(PluginCreateError::Unsupported(error)) => {
            Error::unsupported(&facts.path, error.to_string())
        }
        error => bad(error.to_string()),
    })?;
    Ok((array, metadata))
}

impl Volume for ZarrVolume {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        let layout = &self.layout;
        if let Some(files) = &self.mapped {
            return self.read_mapped(files, (&channels, region), out);
        }
        if !self.store.is_remote() {
            return read_by_chunks(layout, channels, region, out, |index| {
                self.read_chunk(index)
            });
        }
        layout.check_read(&channels, region, out.len())?;
        let mut coming = intersecting(layout.read_chunk.unwrap_or([1; 4]), &channels, region);
        for index in coming.by_ref().take(READ_AHEAD) {
            self.prefetch(index);
        }
        let mut done = 0;
        read_by_chunks(layout, channels, region, out, |index| {
            if done % READ_AHEAD == 0 {
                for index in coming.by_ref().take(READ_AHEAD) {
                    self.prefetch(index);
                }
            }
            done += 1;
            self.read_chunk(index)
        })
    }

    fn reads_parts(&self) -> bool {
        self.mapped.is_some()
    }

    fn prefetch(&self, index: ChunkShape) {
        let index = self.facts.chunk_index(index);
        let key = |index: &[u64]| self.array.chunk_key(index).to_string();
        match &self.codecs {
            Codecs::Whole(chain) => {
                // As much is reserved for the request; a longer chunk is requested again when it is read.
                let limit = chain.encoded().usual();
                self.store.prefetch(&key(&index), Part::Whole, limit, None);
            }
            Codecs::Sharded(shards, indexes) => {
                let (shard, inner) = shards.locate(&index);
                let key = key(&shard);
                if !self.store.is_remote() {
                    // If the index cannot be read, the read of the chunk fails too and reports it.
                    if let Ok(index) = self.shard_index(shards, indexes, (&shard, &key)) {
                        self.prefetch_inner(shards, &index, (&key, inner));
                    }
                    return;
                }
                if let Some(known) = indexes.get(&shard) {
                    self.prefetch_inner(shards, &known, (&key, inner));
                } else {
                    // Until a shard's index is known, only the index can be prefetched.
                    let (part, bytes) = (shards.index_part(), shards.index_bytes());
                    let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
                    if awaited.len() < MAX_AWAITED {
                        awaited.entry(shard).or_default().push(inner);
                    }
                    drop(awaited);
                    self.store.prefetch(&key, part, bytes, None);
                }
                self.advance(shards, indexes);
            }
        }
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let (channels, region) = chunk::whole(&self.layout, index)?;
        let voxels = match self.fetch(index)? {
            Found::Stored((name, bytes)) => ChunkVoxels::Stored(self.decode(name, bytes)?),
            Found::Fill(voxel) => ChunkVoxels::Fill(voxel),
        };
        Ok(Chunk {
            channels,
            region,
            voxels,
        })
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        chunk::clipped(&self.layout, index)?;
        let own = self.facts.chunk_index(index);
        if self.missing_chunks == MissingChunks::Error {
            return Ok(None);
        }
        let stored = match &self.codecs {
            Codecs::Sharded(shards, _) => shards.locate(&own).0,
            Codecs::Whole(_) => own,
        };
        if self.store.is_remote() {
            // A request only for this would take as long as reading the chunk.
            return Ok(None);
        }
        let stored = self.store.exists(self.array.chunk_key(&stored).as_str())?;
        Ok((!stored).then(|| self.fill_voxel()))
    }

    fn time_points(&self) -> Option<u64> {
        self.layout.axes.time_points(self.layout.channels)
    }

    fn read_stats(&self) -> ReadStats {
        self.counter.stats()
    }

    fn source_files(&self) -> Vec<PathBuf> {
        let path = self.archive.as_ref().map(|archive| archive.path());
        vec![path.unwrap_or(&self.layout.path).to_path_buf()]
    }

    fn check_unchanged(&self) -> Result<()> {
        if let Some(archive) = &self.archive {
            archive.check_unchanged()?;
        }
        self.watch.check()
    }

    fn identity(&self) -> Result<Json> {
        let kind = json!({
            "dimensions": self.facts.dims,
            "order": format!("{:?}", self.facts.order),
            "time points": self.time_points(),
            "codecs": self.facts.codecs,
        });
        let kind = match &self.archive {
            // The files that are looked at are those of all arrays of the archive.
            Some(_) => json!({ "array": self.layout.path, "stored as": kind }),
            None => kind,
        };
        Ok(self.watch.identify(identity(&self.layout, &kind)))
    }

    fn stored_bytes(&self) -> Result<u64> {
        let stored = self.store.bytes();
        if self.layout.remote {
            // Web servers cannot list what they have.
            return stored.or_else(|_| self.layout.decoded_bytes());
        }
        stored
    }
}

impl ShardIndex {
    fn bytes(&self) -> usize {
        match self {
            Self::Absent => 0,
            Self::Present { entries, .. } => size_of_val::<[u64]>(entries),
        }
    }
}

/// Returns the store of an array in a hierarchy.
fn store_of_array(tree: &Tree, path: &Path) -> Result<Box<dyn Store>> {
    Ok(match tree {
        Tree::Folder(links) => Box::new(Folder::unchanging(path, *links)?),
        Tree::Archive(archive) => Box::new(Entries::new(archive, path)),
        Tree::Objects(tree) => Box::new(Objects::new(tree.remote(), path)),
    })
}

/// Copies a box of an array into rows. `lengths` are in voxels of `size` bytes; neighbors are `steps` voxels apart.
fn gather(from: &[u8], (lengths, steps): (&[usize], &[usize]), out: &mut [u8], size: usize) {
    let (&[length, ref lengths @ ..], &[step, ref steps @ ..]) = (lengths, steps) else {
        out.copy_from_slice(&from[..size]);
        return;
    };
    if !lengths.is_empty() {
        let part = out.len() / length;
        for (i, out) in out.chunks_exact_mut(part).enumerate() {
            gather(&from[i * step * size..], (lengths, steps), out, size);
        }
    } else if step == 1 {
        out.copy_from_slice(&from[..out.len()]);
    } else {
        for (i, out) in out.chunks_exact_mut(size).enumerate() {
            let at = i * step * size;
            out.copy_from_slice(&from[at..at + size]);
        }
    }
}

/// Returns the bytes of all files below a folder.
pub(super) fn folder_bytes(path: &Path) -> Result<u64> {
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
