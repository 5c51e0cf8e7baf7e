//! The structure of a file, as the crate `hdf5-reader` reads it: data sets, their types, and where their chunks are.
//!
//! Nothing outside this file follows addresses. The crate is run with a guard against panics, and the numbers that it
//! returns are checked where they are used.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdf5_reader::btree_v1::{BTreeV1Key, collect_btree_v1_leaves_storage};
use hdf5_reader::chunk_index::{
    ChunkEntry, collect_implicit_chunk_entries, collect_v2_chunk_entries_storage,
    single_chunk_entry,
};
use hdf5_reader::extensible_array::collect_extensible_array_chunk_entries_storage;
use hdf5_reader::fixed_array::collect_fixed_array_chunk_entries_storage;
use hdf5_reader::group::Group;
use hdf5_reader::io::Cursor;
use hdf5_reader::local_heap::LocalHeap;
use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::external_files::ExternalFilesMessage;
use hdf5_reader::messages::filter_pipeline::FilterDescription;
use hdf5_reader::messages::layout::{ChunkIndexing, DataLayout};
use hdf5_reader::storage::FileStorage;
use hdf5_reader::{Attribute, ByteOrder, Dataset, Datatype, Hdf5File};

use super::super::decoders::caught;
use super::super::format::excerpt;
use super::{MOST_LISTED, NAME};
use crate::dtype::{DType, convert};
use crate::error::{Cause, Error, Result};

/// Maximum number of objects that are looked at to find data sets.
const MOST_OBJECTS: usize = 4096;

/// Maximum number of attributes of a data set, and of bytes of each, that are looked at.
const MOST_ATTRIBUTE: usize = 1 << 20;

/// Maximum bytes of an attribute that is a text.
const LONGEST_TEXT: usize = 4096;

/// An open file.
pub(super) struct Structure {
    path: PathBuf,
    file: Hdf5File,
}

/// Attributes that are texts, by name.
pub(super) type Texts = HashMap<String, String>;

/// A data set that can be opened.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    pub(super) dtype: DType,
}

/// A data set.
#[derive(Clone, Debug)]
pub(super) struct DataSet {
    pub(super) shape: Vec<u64>,
    pub(super) dtype: DType,
    pub(super) big_endian: bool,
    /// The bytes of a voxel that is not stored, in native byte order.
    pub(super) fill: Vec<u8>,
    /// In the order of encoding.
    pub(super) filters: Vec<FilterDescription>,
    pub(super) storage: Storage,
    /// The attribute `axistags`.
    pub(super) axis_tags: Option<String>,
    /// The labels of the dimensions.
    pub(super) labels: Vec<String>,
    /// The attribute `element_size_um`: z, y, x in micrometers.
    pub(super) element_size: Option<[f64; 3]>,
}

/// The storage of a data set.
#[derive(Clone, Debug)]
pub(super) enum Storage {
    /// All voxels follow each other, from this byte of the file on.
    Contiguous { byte: u64 },
    /// All voxels follow each other in another file, from this byte on.
    External { file: String, byte: u64 },
    /// All voxels are in the header of the data set.
    Compact { bytes: Vec<u8> },
    /// Chunks with these lengths.
    Chunks {
        shape: Vec<u64>,
        chunks: Vec<StoredChunk>,
    },
}

/// A chunk that is stored.
#[derive(Clone, Debug)]
pub(super) struct StoredChunk {
    /// Its first voxel.
    pub(super) offsets: Vec<u64>,
    pub(super) byte: u64,
    pub(super) length: u64,
    /// The filters that it leaves out, as bits.
    pub(super) mask: u32,
}

/// Opens a file.
pub(super) fn open(path: &Path, file: File) -> Result<Structure> {
    let opened = caught("hdf5-reader", || {
        let options = hdf5_reader::OpenOptions::default().with_chunk_cache_bytes(0);
        let storage = Arc::new(FileStorage::from_file(file)?);
        Hdf5File::from_storage_with_options(storage, options)
    });
    let file = flat(opened).map_err(|problem| Error::header(path, NAME, problem.to_string()))?;
    Ok(Structure {
        path: path.to_path_buf(),
        file,
    })
}

/// Unites the error of the crate and its panic.
fn flat<T, E: std::fmt::Display>(result: Result<Result<T, E>, Cause>) -> Result<T, Cause> {
    result?.map_err(|error| error.to_string().into())
}

/// Returns the type of numbers, and `true` if they are big-endian; `None` if they are something else.
fn number(datatype: &Datatype) -> Option<(DType, bool)> {
    let (dtype, order) = match datatype {
        Datatype::FixedPoint {
            size,
            signed,
            byte_order,
        } => {
            let dtype = match (size, signed) {
                (1, false) => DType::U8,
                (1, true) => DType::I8,
                (2, false) => DType::U16,
                (2, true) => DType::I16,
                (4, false) => DType::U32,
                (4, true) => DType::I32,
                (8, false) => DType::U64,
                (8, true) => DType::I64,
                _ => return None,
            };
            (dtype, byte_order)
        }
        Datatype::FloatingPoint { size, byte_order } => {
            let dtype = match size {
                2 => DType::F16,
                4 => DType::F32,
                8 => DType::F64,
                _ => return None,
            };
            (dtype, byte_order)
        }
        Datatype::Bitfield { size, byte_order } => {
            let dtype = match size {
                1 => DType::U8,
                2 => DType::U16,
                4 => DType::U32,
                8 => DType::U64,
                _ => return None,
            };
            (dtype, byte_order)
        }
        // Truth values are an enumeration of bytes.
        Datatype::Enum { base, .. } => {
            return number(base).map(|(dtype, order)| match dtype {
                DType::I8 => (DType::U8, order),
                dtype => (dtype, order),
            });
        }
        _ => return None,
    };
    Some((dtype, *order == ByteOrder::BigEndian))
}

impl Structure {
    /// Returns the data sets of numbers with 2 to 5 axes, sorted by name, and `true` if there are no more.
    pub(super) fn list(&self) -> Result<(Vec<Listed>, bool)> {
        let listed = caught("hdf5-reader", || self.walk());
        let (mut found, is_all) = flat(listed).map_err(|problem| self.bad(&problem.to_string()))?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((found, is_all))
    }

    fn walk(&self) -> hdf5_reader::error::Result<(Vec<Listed>, bool)> {
        let (mut found, mut seen) = (Vec::new(), HashSet::new());
        let mut groups: Vec<(String, Group)> = vec![(String::new(), self.file.root_group()?)];
        let mut objects = 0;
        while let Some((above, group)) = groups.pop() {
            // A group that is linked from several places is entered once.
            if !seen.insert(group.address()) {
                continue;
            }
            let (inner, sets) = group.members()?;
            for set in sets {
                objects += 1;
                let rank = set.shape().len();
                if let (2..=5, Some((dtype, _))) = (rank, number(set.dtype()))
                    && !set.shape().contains(&0)
                {
                    found.push(Listed {
                        name: format!("{above}/{}", set.name()),
                        shape: set.shape().to_vec(),
                        dtype,
                    });
                }
                if objects > MOST_OBJECTS || found.len() > 2 * MOST_LISTED {
                    return Ok((found, false));
                }
            }
            for group in inner.into_iter().rev() {
                objects += 1;
                groups.push((format!("{above}/{}", group.name()), group));
            }
        }
        Ok((found, true))
    }

    /// Returns `true` if there is a group of this name.
    pub(super) fn has_group(&self, name: &str) -> bool {
        let found = caught("hdf5-reader", || self.file.group(name));
        flat(found).is_ok()
    }

    /// Returns the attributes of a group that are texts: strings, or lists of single characters.
    pub(super) fn texts(&self, group: &str) -> Result<Texts> {
        let read = caught("hdf5-reader", || self.file.group(group)?.attributes());
        let attributes =
            flat(read).map_err(|problem| self.bad(&format!("{}: {problem}", excerpt(group))))?;
        let is_text = |own: &Attribute| {
            matches!(
                own.datatype,
                Datatype::String { .. } | Datatype::FixedPoint { size: 1, .. }
            ) && own.raw_data.len() <= LONGEST_TEXT
        };
        let text = |own: Attribute| {
            let text = String::from_utf8_lossy(&own.raw_data);
            let end = text.find('\0').unwrap_or(text.len());
            (own.name, text[..end].trim().to_owned())
        };
        Ok(attributes.into_iter().filter(is_text).map(text).collect())
    }

    /// Returns a data set by its name.
    pub(super) fn data_set(&self, name: &str) -> Result<DataSet> {
        let found = caught("hdf5-reader", || self.file.dataset(name));
        let set = match flat(found) {
            Ok(set) => set,
            Err(problem) => {
                let (listed, _) = self.list()?;
                let names: Vec<&str> = listed
                    .iter()
                    .take(MOST_LISTED)
                    .map(|set| set.name.as_str())
                    .collect();
                let what = format!(
                    "it has no data set {}: {problem} (it has {})",
                    excerpt(name),
                    excerpt(&names.join(", "))
                );
                return Err(Error::unsupported(&self.path, what));
            }
        };
        let shape = set.shape().to_vec();
        let Some((dtype, big_endian)) = number(set.dtype()) else {
            let what = format!("the data set {} does not hold numbers", excerpt(name));
            return Err(Error::unsupported(&self.path, what));
        };
        let read = caught("hdf5-reader", || self.parts(&set, dtype));
        let (filters, storage) = read
            .flatten()
            .map_err(|problem| self.bad(&format!("{}: {problem}", excerpt(name))))?;
        let storage = storage.map_err(|what| {
            Error::unsupported(&self.path, format!("the data set {} {what}", excerpt(name)))
        })?;
        let mut fill = set
            .fill_value()
            .and_then(|fill| fill.value.clone())
            .filter(|value| value.len() == dtype.size())
            .unwrap_or_else(|| vec![0; dtype.size()]);
        if big_endian == cfg!(target_endian = "little") {
            fill.reverse();
        }
        let attributes = caught("hdf5-reader", || set.attributes());
        let attributes = attributes.map_err(|problem| self.bad(&problem.to_string()))?;
        let attribute = |name: &str| {
            attributes
                .iter()
                .find(|own| own.name == name && own.raw_data.len() <= MOST_ATTRIBUTE)
        };
        let text = |own: &Attribute| caught("hdf5-reader", || own.read_string()).ok()?.ok();
        let texts = |own: &Attribute| caught("hdf5-reader", || own.read_strings()).ok()?.ok();
        Ok(DataSet {
            shape,
            dtype,
            big_endian,
            fill,
            filters,
            storage,
            axis_tags: attribute("axistags").and_then(text),
            labels: attribute("DIMENSION_LABELS")
                .and_then(texts)
                .unwrap_or_default(),
            element_size: attribute("element_size_um").and_then(numbers),
        })
    }

    /// Returns the filters and the storage of a data set, or the reason why it is not read.
    fn parts(
        &self,
        set: &Dataset,
        dtype: DType,
    ) -> Result<(Vec<FilterDescription>, Result<Storage, String>), Cause> {
        let header = self.file.get_or_parse_header(set.address());
        let header = header.map_err(|error| error.to_string())?;
        let (mut layout, mut filters, mut external) = (None, Vec::new(), None);
        for message in &header.messages {
            match message {
                HdfMessage::DataLayout(own) => layout = Some(&own.layout),
                HdfMessage::FilterPipeline(own) => filters.clone_from(&own.filters),
                HdfMessage::ExternalFiles(own) => external = Some(own),
                _ => {}
            }
        }
        let superblock = self.file.superblock();
        let base = superblock.base_address;
        let offsets = superblock.offset_size;
        let shape = set.shape();
        if let Some(external) = external {
            let found = self.external(external)?;
            let what = "is stored in several other files: copy it with h5repack";
            return Ok((filters, found.ok_or_else(|| what.to_owned())));
        }
        let (address, dims, indexing) = match layout {
            None => return Err("it has no layout".into()),
            Some(DataLayout::Compact { data }) => {
                let voxels = shape.iter().try_fold(1_u64, |all, &n| all.checked_mul(n));
                let promised = voxels.and_then(|n| n.checked_mul(dtype.size() as u64));
                if promised != Some(data.len() as u64) {
                    let found = data.len();
                    return Err(format!(
                        "its header has {found} bytes of voxels of shape {shape:?}"
                    )
                    .into());
                }
                let bytes = data.clone();
                return Ok((Vec::new(), Ok(Storage::Compact { bytes })));
            }
            Some(DataLayout::Contiguous { address, .. }) => {
                let storage = if Cursor::is_undefined_offset(*address, offsets) {
                    // Nothing is stored: one chunk, which is absent.
                    Storage::Chunks {
                        shape: shape.iter().map(|&n| n.clamp(1, 64)).collect(),
                        chunks: Vec::new(),
                    }
                } else {
                    Storage::Contiguous {
                        byte: address.checked_add(base).ok_or("an address is too large")?,
                    }
                };
                return Ok((Vec::new(), Ok(storage)));
            }
            Some(DataLayout::Chunked {
                address,
                dims,
                chunk_indexing,
                ..
            }) => (*address, dims, chunk_indexing),
        };
        // Newer versions store the bytes of a voxel as one more length.
        let dims = dims.get(..shape.len()).unwrap_or(dims);
        let chunk: Vec<u64> = dims.iter().map(|&n| u64::from(n)).collect();
        if chunk.len() != shape.len() || chunk.contains(&0) {
            return Err(format!("chunks of {chunk:?} do not fit a shape of {shape:?}").into());
        }
        let bytes = chunk
            .iter()
            .fold(dtype.size() as u64, |all, &n| all.saturating_mul(n));
        let entries = self.entries(set, dtype, (address, dims), indexing.as_ref())?;
        let is_inside = |entry: &ChunkEntry| {
            // A data set that was made smaller may keep chunks outside.
            entry.offsets.iter().zip(shape).all(|(&at, &n)| at < n)
                && !Cursor::is_undefined_offset(entry.address, offsets)
        };
        let stored = |entry: ChunkEntry| {
            Ok(StoredChunk {
                byte: entry
                    .address
                    .checked_add(base)
                    .ok_or("the address of a chunk is too large")?,
                length: if filters.is_empty() {
                    bytes
                } else {
                    entry.size
                },
                mask: entry.filter_mask,
                offsets: entry.offsets,
            })
        };
        let chunks: Result<_, Cause> = entries.into_iter().filter(is_inside).map(stored).collect();
        let chunks = Storage::Chunks {
            shape: chunk,
            chunks: chunks?,
        };
        Ok((filters, Ok(chunks)))
    }

    /// Returns the storage in another file; `None` if there are several.
    fn external(&self, files: &ExternalFilesMessage) -> Result<Option<Storage>, Cause> {
        let [only] = files.slots.as_slice() else {
            return Ok(None);
        };
        let superblock = self.file.superblock();
        let storage = self.file.storage();
        let address = files.heap_address.checked_add(superblock.base_address);
        let heap = LocalHeap::parse_at_storage(
            storage,
            address.ok_or("an address is too large")?,
            superblock.offset_size,
            superblock.length_size,
        );
        let heap = heap.map_err(|error| error.to_string())?;
        let name = heap.get_string_storage(only.name_offset, storage);
        Ok(Some(Storage::External {
            file: name.map_err(|error| error.to_string())?,
            byte: only.offset,
        }))
    }

    /// Returns the chunks in the index at an address.
    fn entries(
        &self,
        set: &Dataset,
        dtype: DType,
        (address, dims): (u64, &[u32]),
        indexing: Option<&ChunkIndexing>,
    ) -> Result<Vec<ChunkEntry>, Cause> {
        let superblock = self.file.superblock();
        let (offsets, lengths) = (superblock.offset_size, superblock.length_size);
        let shape = set.shape();
        // Some indexes count the chunks that the data set may grow to.
        let largest = set.max_dims().unwrap_or(shape);
        let storage = self.file.storage();
        let rank = u32::try_from(shape.len())?;
        if Cursor::is_undefined_offset(address, offsets) {
            return Ok(Vec::new());
        }
        let entries = match indexing {
            None => collect_btree_v1_leaves_storage(
                storage,
                address,
                offsets,
                lengths,
                Some(rank),
                dims,
                None,
            )
            .map(leaves),
            Some(ChunkIndexing::SingleChunk {
                filtered_size,
                filters,
            }) => Ok(vec![single_chunk_entry(
                address,
                *filtered_size,
                *filters,
                shape.len(),
            )]),
            Some(ChunkIndexing::BTreeV2) => collect_v2_chunk_entries_storage(
                storage, address, offsets, lengths, rank, dims, None,
            ),
            Some(ChunkIndexing::Implicit) => collect_implicit_chunk_entries(
                address,
                largest,
                dims,
                dtype.size(),
                None,
                storage.len(),
            ),
            Some(ChunkIndexing::FixedArray { .. }) => collect_fixed_array_chunk_entries_storage(
                storage, address, offsets, lengths, largest, dims, None,
            ),
            Some(ChunkIndexing::ExtensibleArray { .. }) => {
                collect_extensible_array_chunk_entries_storage(
                    storage,
                    address,
                    offsets,
                    lengths,
                    shape,
                    set.max_dims(),
                    dims,
                    None,
                )
            }
        };
        entries.map_err(|error| error.to_string().into())
    }

    fn bad(&self, problem: &str) -> Error {
        Error::header(&self.path, NAME, problem)
    }
}

/// Returns the chunks of a B-tree of version 1.
fn leaves(all: Vec<(BTreeV1Key, u64)>) -> Vec<ChunkEntry> {
    let entry = |(key, address)| match key {
        BTreeV1Key::RawData {
            chunk_size,
            filter_mask,
            mut offsets,
        } => {
            // The last offset is that inside a voxel.
            offsets.pop();
            Some(ChunkEntry {
                address,
                size: u64::from(chunk_size),
                filter_mask,
                offsets,
            })
        }
        BTreeV1Key::Group { .. } => None,
    };
    all.into_iter().filter_map(entry).collect()
}

/// Returns three numbers of an attribute of any type of numbers.
fn numbers(attribute: &Attribute) -> Option<[f64; 3]> {
    let (dtype, big_endian) = number(&attribute.datatype)?;
    let size = dtype.size();
    let values: Vec<f64> = attribute
        .raw_data
        .chunks_exact(size)
        .map(|bytes| {
            let (mut bytes, mut value) = (bytes.to_vec(), [0.0]);
            if big_endian == cfg!(target_endian = "little") {
                bytes.reverse();
            }
            convert(
                dtype,
                &bytes,
                DType::F64,
                bytemuck::cast_slice_mut(&mut value),
            );
            value[0]
        })
        .collect();
    let three: [f64; 3] = values.try_into().ok()?;
    three
        .iter()
        .all(|n| n.is_finite() && *n > 0.0)
        .then_some(three)
}
