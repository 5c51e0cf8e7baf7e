//! Decoding arrays of other software, our own, and hostile ones.

mod damage;
mod dimensions;
mod foreign;
mod golden;
mod hostile;
mod mapped;
mod reads;
mod written;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::json;
use zarrs::array::ArrayBytes;
use zarrs::array::codec::api::{ArrayToBytesCodecTraits, CodecOptions};

use super::store::StoredPart;
use super::*;
use crate::dtype::DType;
use crate::volume::VolumeExt;

/// Returns the folder of an array that `tests/data/make.py` made.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/zarr")
        .join(name)
}

/// Creates a temporary folder, in memory if possible: outputs are flushed to disk.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn open(path: &Path) -> Result<ZarrVolume> {
    ZarrVolume::open(path, &OpenOptions::default())
}

/// Pseudo-random numbers: splitmix64.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % n as u64).unwrap()
    }

    /// Returns a box of at least one voxel inside `shape`.
    fn region(&mut self, shape: [u64; 3]) -> Region {
        let start = shape.map(|n| self.roll() % n);
        let size = std::array::from_fn(|a| 1 + self.roll() % (shape[a] - start[a]));
        Region::new(start.map(|n| i64::try_from(n).unwrap()), size)
    }
}

/// Keys and ranges, in reading order.
type Notes = Arc<Mutex<Vec<(String, Range<u64>)>>>;

/// Values in memory, with a record of every range that was read.
#[derive(Clone, Debug, Default)]
struct Notebook {
    values: HashMap<String, Arc<Vec<u8>>>,
    reads: Notes,
    prefetches: Notes,
}

impl Store for Notebook {
    fn read(
        &self,
        key: &str,
        part: Part,
        limits: Limits<'_>,
        _: Option<&Arc<Version>>,
    ) -> Result<Option<StoredPart>> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        let length = value.len() as u64;
        (limits.check)(length)?;
        let range = part.range(length);
        let note = (key.to_owned(), range.clone());
        self.reads.lock().unwrap().push(note);
        let at = |n| usize::try_from(n).unwrap();
        Ok(Some(StoredPart {
            bytes: value[at(range.start)..at(range.end)].to_vec(),
            length,
            version: None,
        }))
    }

    fn exists(&self, key: &str) -> Result<bool> {
        Ok(self.values.contains_key(key))
    }

    fn prefetch(&self, key: &str, part: Part, _: u64, _: Option<&Arc<Version>>) {
        if let Some(bytes) = self.values.get(key) {
            let note = (key.to_owned(), part.range(bytes.len() as u64));
            self.prefetches.lock().unwrap().push(note);
        }
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.values.values().map(|value| value.len() as u64).sum())
    }
}

/// Returns the metadata of an array that is one chunk, or one shard.
fn document(codecs: &Json, shape: [u64; 3], dtype: DType) -> Json {
    json!({
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": dtype.name(),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default"}, "fill_value": 0, "codecs": codecs,
    })
}

/// Returns the only chunk of such an array, encoded by zarrs.
fn encoded(document: &Json, voxels: Vec<u8>) -> Vec<u8> {
    let facts = ArrayInfo::parse(Path::new("x"), Format::Zarr3, document, &[]).unwrap();
    let (array, _) = open_array(&facts, document).unwrap();
    let shape: Vec<NonZeroU64> = facts
        .stored
        .dims
        .iter()
        .filter_map(|&n| NonZeroU64::new(n))
        .collect();
    let (dtype, fill) = (array.data_type(), array.fill_value());
    let bytes = array.codecs().encode(
        ArrayBytes::new_flen(voxels),
        &shape,
        dtype,
        fill,
        &CodecOptions::default(),
    );
    bytes.unwrap().into_owned()
}

/// Opens such an array with the given bytes as its only value.
fn with_chunk(document: &Json, chunk: Vec<u8>) -> Result<ZarrVolume> {
    let mut store = Notebook::default();
    store.values.insert("c/0/0/0".to_owned(), Arc::new(chunk));
    let options = OpenOptions::default();
    ZarrVolume::with_store(
        (Path::new("x"), Format::Zarr3, &[]),
        Box::new(store),
        document,
        &options,
    )
}

fn read_all(volume: &ZarrVolume) -> Result<Vec<u8>> {
    Ok(volume
        .read(Region::whole(volume.layout.shape))?
        .bytes()
        .to_vec())
}
