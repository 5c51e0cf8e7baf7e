//! The bytes that a read touches, and the definition of a missing chunk.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use super::*;
use crate::region::{chunk_region, indices};
use crate::volume::{CreateOptions, create};

/// Writes a Zarr array of two channels whose third chunk column along x is empty.
fn written(folder: &Path, shard: Option<[u64; 3]>) -> PathBuf {
    let path = folder.join("image.zarr");
    let layout = Layout::new([20, 30, 25], 2, DType::U16);
    let options = CreateOptions {
        chunk: [4, 8, 8],
        shard,
        ..CreateOptions::default()
    };
    let writer = create(&path, &layout, &options).unwrap();
    let voxels: Vec<u16> = (0..2 * 20 * 30 * 25)
        .map(|n: u16| {
            if (16..24).contains(&(n % 25)) {
                0
            } else {
                n | 1
            }
        })
        .collect();
    let region = Region::whole(layout.shape);
    writer.write(region, bytemuck::cast_slice(&voxels)).unwrap();
    writer.finish().unwrap();
    path.join("0")
}

/// Opens the array through a recording store.
fn noted(path: &Path) -> (ZarrVolume, Notebook) {
    let mut store = Notebook::default();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let child = entry.unwrap().path();
            if child.is_dir() {
                folders.push(child);
            } else {
                let key = child
                    .strip_prefix(path)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                store.values.insert(key, Arc::new(fs::read(child).unwrap()));
            }
        }
    }
    let found = find::find_array(path, 0, &Tree::Folder(Links::Followed)).unwrap();
    let volume = ZarrVolume::with_store(
        (path, found.format, &found.axes),
        Box::new(store.clone()),
        &found.document,
        &OpenOptions::default(),
    );
    (volume.unwrap(), store)
}

/// Returns the ranges that a read must touch, found voxel by voxel and from the shards themselves.
fn needed(
    store: &Notebook,
    channels: &Range<u64>,
    region: Region,
    shard: Option<[u64; 3]>,
) -> Vec<(String, Range<u64>)> {
    let start = region.start.map(i64::unsigned_abs);
    let voxels = indices(std::array::from_fn(|a| {
        start[a]..start[a] + region.shape[a]
    }));
    let chunks: BTreeSet<[u64; 3]> = voxels.map(|[z, y, x]| [z / 4, y / 8, x / 8]).collect();
    let mut ranges = BTreeSet::new();
    for c in channels.clone() {
        for &[z, y, x] in &chunks {
            let per_shard = shard.map_or([1; 3], |[z, y, x]| [z / 4, y / 8, x / 8]);
            let [sz, sy, sx] = [z / per_shard[0], y / per_shard[1], x / per_shard[2]];
            let key = format!("c/{c}/{sz}/{sy}/{sx}");
            let Some(value) = store.values.get(&key) else {
                continue;
            };
            let length = value.len() as u64;
            if shard.is_none() {
                ranges.insert((key, 0, length));
                continue;
            }
            let index = length - 16 * per_shard.iter().product::<u64>() - 4;
            ranges.insert((key.clone(), index, length));
            let inner = ((z % per_shard[0]) * per_shard[1] + y % per_shard[1]) * per_shard[2]
                + x % per_shard[2];
            let entry = usize::try_from(index + 16 * inner).unwrap();
            let number = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().unwrap());
            let (offset, bytes) = (number(entry), number(entry + 8));
            if offset != u64::MAX {
                ranges.insert((key, offset, offset + bytes));
            }
        }
    }
    let range = |(key, from, to)| (key, from..to);
    ranges.into_iter().map(range).collect()
}

#[test]
fn a_read_touches_only_the_chunks_that_it_needs_and_each_once() {
    let folder = scratch();
    for (n, shard) in [None, Some([8, 16, 16]), Some([20, 32, 32])]
        .into_iter()
        .enumerate()
    {
        let path = folder.path().join(n.to_string());
        fs::create_dir(&path).unwrap();
        let path = written(&path, shard);
        let shard = shard.map(|[z, _, _]| if z == 20 { [20, 32, 32] } else { [8, 16, 16] });
        let mut dice = Dice(n as u64);
        for round in 0..60 {
            let (volume, store) = noted(&path);
            let region = dice.region([20, 30, 25]);
            let channels = [0..1, 1..2, 0..2][round % 3].clone();
            let voxels = region.voxels() * (channels.end - channels.start);
            let mut out = vec![0; usize::try_from(voxels * 2).unwrap()];
            volume
                .read_channels(channels.clone(), region, &mut out)
                .unwrap();
            let mut reads = store.reads.lock().unwrap().clone();
            reads.sort_by_key(|(key, range)| (key.clone(), range.start, range.end));
            let needed = needed(&store, &channels, region, shard);
            assert_eq!(reads, needed, "{region} of {channels:?}, shards {shard:?}");
            let bytes: u64 = needed
                .iter()
                .map(|(_, range)| range.end - range.start)
                .sum();
            assert_eq!(volume.read_stats().bytes, bytes);
        }
    }
}

#[test]
fn an_index_is_read_once_however_many_reads_follow() {
    let folder = scratch();
    let (volume, store) = noted(&written(folder.path(), Some([20, 32, 32])));
    for _ in 0..3 {
        volume.read(Region::whole([20, 30, 25])).unwrap();
    }
    let reads = store.reads.lock().unwrap().clone();
    let chunks = reads.iter().collect::<HashSet<_>>().len();
    assert_eq!(reads.len(), 3 * (chunks - 2) + 2, "two shards");
}

/// Copies a golden array, two chunks of 5 x 6 voxels of i16. Returns it and its first chunk's file.
fn copy(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let target = folder.join(name);
    fs::create_dir_all(target.join("c/0/0")).unwrap();
    fs::create_dir_all(target.join("c/1/0")).unwrap();
    for file in ["zarr.json", "c/0/0/0", "c/1/0/0"] {
        fs::copy(golden("v3/gzip").join(file), target.join(file)).unwrap();
    }
    let chunk = target.join("c/0/0/0");
    (target, chunk)
}

#[test]
fn only_a_missing_file_means_fill_value() {
    let folder = scratch();
    let damaged = |name: &str, damage: &dyn Fn(&Path)| {
        let (array, chunk) = copy(folder.path(), name);
        fs::remove_file(&chunk).unwrap();
        damage(&chunk);
        let volume = open(&array).unwrap();
        let read = read_all(&volume);
        (read, volume.read_stats())
    };
    let (absent, _) = damaged("absent", &|_| ());
    assert!(absent.unwrap()[..2 * 60].iter().all(|&byte| byte == 0));
    let (folder_error, _) = damaged("folder", &|chunk| fs::create_dir(chunk).unwrap());
    assert!(matches!(folder_error, Err(Error::Unsupported { .. })));
    let (pipe, _) = damaged("pipe", &|chunk| {
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, chunk, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    });
    assert!(matches!(pipe, Err(Error::Unsupported { .. })), "no waiting");
    let (device, _) = damaged("device", &|chunk| symlink("/dev/zero", chunk).unwrap());
    assert!(matches!(device, Err(Error::Unsupported { .. })));
    let (circle, _) = damaged("loop", &|chunk| symlink("0", chunk).unwrap());
    assert!(matches!(circle, Err(Error::Io { .. })));
    let (nowhere, _) = damaged("nowhere", &|chunk| symlink("gone", chunk).unwrap());
    assert!(matches!(nowhere, Err(Error::Unsupported { .. })));
    let (above_nowhere, _) = damaged("above nowhere", &|chunk| {
        let above = chunk.parent().unwrap();
        fs::remove_dir(above).unwrap();
        symlink("gone", above).unwrap();
    });
    assert!(matches!(above_nowhere, Err(Error::Unsupported { .. })));
    let (file_above, _) = damaged("file above", &|chunk| {
        let above = chunk.parent().unwrap();
        fs::remove_dir(above).unwrap();
        fs::write(above, "x").unwrap();
    });
    assert!(matches!(file_above, Err(Error::Io { .. })));
    let (empty, _) = damaged("empty", &|chunk| fs::write(chunk, "").unwrap());
    assert!(matches!(empty, Err(Error::Chunk { .. })));
    let (huge, reads) = damaged("huge", &|chunk| {
        fs::File::create(chunk).unwrap().set_len(3 << 30).unwrap();
    });
    assert!(matches!(huge, Err(Error::Chunk { .. })));
    assert_eq!(reads.bytes, 0, "it is not read to find that out");
}

#[test]
fn there_are_no_chunks_beyond_the_last() {
    let volume = open(&golden("v3/gzip")).unwrap();
    assert!(volume.read_chunk([0, 1, 0, 0]).is_ok());
    for index in [
        [0, 2, 0, 0],
        [1, 0, 0, 0],
        [0, u64::MAX, 0, 0],
        [u64::MAX; 4],
    ] {
        let read = volume.read_chunk(index);
        assert!(matches!(read, Err(Error::Unsupported { .. })), "{index:?}");
    }
}

/// Errors of the system are errors at any moment, not missing chunks.
#[test]
fn every_other_error_of_the_system_is_an_error() {
    #[derive(Debug)]
    struct Failing(i32, bool);
    impl Store for Failing {
        fn read(
            &self,
            key: &str,
            _: Part,
            limits: Limits<'_>,
            _: Option<&Arc<Version>>,
        ) -> Result<Option<StoredPart>> {
            if self.1 {
                (limits.check)(40)?;
            }
            let action = if self.1 { "read" } else { "open" };
            Err(Error::io(action, Path::new(key))(
                io::Error::from_raw_os_error(self.0),
            ))
        }
        fn exists(&self, _: &str) -> Result<bool> {
            Ok(true)
        }
        fn prefetch(&self, _: &str, _: Part, _: u64, _: Option<&Arc<Version>>) {}
        fn bytes(&self) -> Result<u64> {
            Ok(40)
        }
    }
    let gzip = json!([{"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "gzip", "configuration": {"level": 1}}]);
    let document = document(&gzip, [4, 4, 4], DType::U16);
    // EIO, EACCES, ENOTDIR, EMFILE, ENFILE, ELOOP, ESTALE, ETIMEDOUT.
    for number in [5, 13, 20, 24, 23, 40, 116, 110] {
        for opens in [false, true] {
            let store = Box::new(Failing(number, opens));
            let options = OpenOptions::default();
            let path = Path::new("a");
            let volume =
                ZarrVolume::with_store((path, Format::Zarr3, &[]), store, &document, &options)
                    .unwrap();
            let read = read_all(&volume);
            let Err(Error::Io { source, .. }) = read else {
                panic!("{number}: {read:?}");
            };
            assert_eq!(source.raw_os_error(), Some(number));
        }
    }
}

#[test]
fn a_chunk_written_after_the_array_was_opened_is_an_error_that_names_it() {
    let folder = scratch();
    let (array, chunk) = copy(folder.path(), "changed");
    let volume = open(&array).unwrap();
    read_all(&volume).unwrap();
    volume.check_unchanged().unwrap();
    let bytes = fs::read(&chunk).unwrap();
    // The clock of a file system may be a tick behind.
    std::thread::sleep(std::time::Duration::from_millis(30));
    fs::write(&chunk, bytes).unwrap();
    let read = read_all(&volume);
    if crate::volume::read_method::is_remote(&fs::File::open(&array).unwrap()) {
        println!("skipped: of a file on another machine it cannot be told");
        return;
    }
    assert!(
        matches!(&read, Err(Error::InputModified { path, .. }) if *path == chunk),
        "{read:?}"
    );
    read_all(&open(&array).unwrap()).unwrap();
    fs::write(array.join("zarr.json"), "{}").unwrap();
    assert!(matches!(
        volume.check_unchanged(),
        Err(Error::InputModified { .. })
    ));
}

#[test]
fn a_chunk_is_prefetched_by_its_range_which_the_index_of_its_shard_says() {
    let dir = scratch();
    for shard in [None, Some([8, 16, 16])] {
        let path = dir
            .path()
            .join(if shard.is_some() { "shards" } else { "chunks" });
        fs::create_dir(&path).unwrap();
        let (volume, store) = noted(&written(&path, shard));
        let prefetched = |index| {
            volume.prefetch(index);
            std::mem::take(&mut *store.prefetches.lock().unwrap())
        };
        let mut indexes = HashSet::new();
        for [z, y, x] in indices([0..5, 0..4, 0..4]) {
            for c in 0..2 {
                let region = chunk_region([z, y, x], [4, 8, 8]);
                let region = region.intersection(&Region::whole([20, 30, 25])).unwrap();
                let mut needed = needed(&store, &(c..c + 1), region, shard);
                if shard.is_some() {
                    // In the order of the file: the chunk, then the index.
                    indexes.extend(needed.pop());
                }
                assert_eq!(prefetched([c, z, y, x]), needed);
                assert!(volume.read_chunk([c, z, y, x]).is_ok());
                assert_eq!(prefetched([c, z, y, x]), needed);
            }
        }
        let reads = store.reads.lock().unwrap();
        let read = reads.iter().filter(|range| indexes.contains(range)).count();
        assert_eq!(read, indexes.len(), "each index is read once");
    }
}
