//! The fuzzed operations: opening volumes of arbitrary bytes, and reading some of their voxels.
//!
//! Everything uses the public API with files in memory, as a user's program would.

use std::fs;
use std::path::Path;
use std::sync::{Once, OnceLock};

use tempfile::TempDir;
use voxpatch::{OpenOptions, Region, Volume, VolumeExt};

/// The largest read: memory must not depend on the sizes in a header.
const MOST: u64 = 1 << 20;

fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
            let made = made.expect("a temporary folder");
            fs::write(made.path().join("near.raw"), [7; 4096]).expect("a file of voxels");
            fs::write(made.path().join("a.img"), [7; 4096]).expect("a file of voxels");
            made
        })
        .path()
}

/// Opens a file of these bytes, and reads its first and its last voxel.
pub fn flat(name: &str, bytes: &[u8]) {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("the disk has room");
    read(&path);
}

/// Opens a DICOM file of these bytes. The decoder of JPEG 2000, which is refused here, is not memory-safe.
pub fn dicom(bytes: &[u8]) {
    let path = folder().join("a.dcm");
    fs::write(&path, bytes).expect("the disk has room");
    read_with(&path, &OpenOptions::default().with_trusted(false));
}

/// Opens a headerless file with this sidecar.
pub fn sidecar(bytes: &[u8]) {
    fs::write(folder().join("near.raw.json"), bytes).expect("the disk has room");
    read(&folder().join("near.raw"));
}

/// Opens an array in a folder: two bytes with the length of its metadata and, in the highest bit, a flag for version 2,
/// followed by the metadata and its first chunk.
pub fn store(bytes: &[u8]) {
    // Panics of zarrs are caught and become errors; the fuzzer's panic hook would abort instead.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let length = u16::from_le_bytes(*length);
    let (second, length) = (length >> 15 == 1, usize::from(length & 0x7fff));
    let Some((document, chunk)) = rest.split_at_checked(length) else {
        return;
    };
    let (file, key) = if second { (".zarray", "0.0.0") } else { ("zarr.json", "c/0/0/0") };
    array(if second { "v2" } else { "v3" }, (file, document), (key, chunk));
}

/// Opens an array of N5: two bytes with the length of its attributes, followed by them and its first block.
pub fn n5(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let Some((attributes, block)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))) else {
        return;
    };
    array("n5", ("attributes.json", attributes), ("0/0/0", block));
}

fn array(name: &str, (file, document): (&str, &[u8]), (key, chunk): (&str, &[u8])) {
    let array = folder().join(name);
    let key = array.join(key);
    fs::create_dir_all(key.parent().expect("a folder")).expect("the disk has room");
    fs::write(array.join(file), document).expect("the disk has room");
    fs::write(key, chunk).expect("the disk has room");
    read(&array);
}

fn read(path: &Path) {
    read_with(path, &OpenOptions::default());
}

fn read_with(path: &Path, options: &OpenOptions) {
    let Ok(volume) = options.open(path) else {
        return;
    };
    let layout = volume.layout();
    let bytes = layout.decoded_bytes().expect("an opened volume has a size");
    assert!(bytes > 0 && layout.geometry.is_sound());
    let last = layout.shape.map(|n| i64::try_from(n).expect("lengths below 2^63") - 1);
    for start in [[0; 3], last] {
        let region = Region::new(start, [1; 3]);
        if layout.channels < MOST / 8 && chunk_bytes(&*volume) < MOST {
            let _ = volume.read(region);
        }
    }
}

/// The memory for decoding one chunk.
fn chunk_bytes(volume: &dyn Volume) -> u64 {
    let layout = volume.layout();
    let chunk = layout.read_chunk.unwrap_or([1; 4]);
    let voxels = chunk.iter().try_fold(1_u64, |n, &m| n.checked_mul(m));
    voxels.and_then(|n| n.checked_mul(layout.dtype.size() as u64)).unwrap_or(u64::MAX)
}
