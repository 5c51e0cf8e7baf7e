//! Indexes on disk: one that is stale, truncated, damaged or of a different volume is rebuilt.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};

use super::*;
use crate::volume::{ChannelRange, CreateOptions, VolumeMut, create, open};

fn write_zarr(path: &Path, labels: &[u8], chunk: u64) {
    let options = CreateOptions {
        chunk: [chunk; 3],
        shard: None,
        codec: crate::volume::Codec::None,
        overwrite: true,
        ..CreateOptions::default()
    };
    let output = create(path, &Layout::new([16, 16, 16], 1, DType::U8), &options).unwrap();
    output.write(Region::whole([16, 16, 16]), labels).unwrap();
    output.finish().unwrap();
}

fn labels(of: u8) -> Vec<u8> {
    (0..4096_u32).map(|i| u8::from(i % 3 == 0) * of).collect()
}

fn load(path: &Path, volume: &dyn Volume) -> LabelIndex {
    LabelIndex::load_or_build(path, volume, 0, 1, &silent).unwrap()
}

/// Returns all files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[test]
fn an_index_that_was_saved_is_loaded_and_draws_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (data, path) = (
        dir.path().join("labels.zarr"),
        dir.path().join("labels.index"),
    );
    write_zarr(&data, &labels(3), 8);
    let volume = open(&data).unwrap();
    let built = load(&path, &*volume);
    let loaded = load(&path, &*volume);
    assert!(!built.was_loaded() && loaded.was_loaded());
    assert_eq!(built.tally, loaded.tally);
    assert_eq!(
        loaded.counts(),
        [(LabelValue::ZERO, 2730), (3.into(), 1366)].into()
    );
    let again = open(&data).unwrap();
    assert!(load(&path, &*again).was_loaded(), "opened again");
    let cached = Cached::new(volume, 1 << 20);
    assert!(load(&path, &cached).was_loaded(), "through a cache");
    let weights = WeightIndex::load(&path, &*again, 0).unwrap_err();
    assert!(matches!(weights, Error::Header { .. }), "of another kind");
}

#[test]
fn data_rewritten_with_the_same_size_and_time_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (data, path) = (
        dir.path().join("labels.zarr"),
        dir.path().join("labels.index"),
    );
    write_zarr(&data, &labels(3), 16);
    let volume = open(&data).unwrap();
    load(&path, &*volume);
    let chunk = files(&data)
        .into_iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len());
    let chunk = chunk.unwrap();
    let before = fs::metadata(&chunk).unwrap();
    fs::write(&chunk, labels(4)).unwrap();
    let times = FileTimes::new().set_modified(before.modified().unwrap());
    File::options()
        .write(true)
        .open(&chunk)
        .unwrap()
        .set_times(times)
        .unwrap();
    let after = fs::metadata(&chunk).unwrap();
    assert_eq!(after.len(), before.len(), "an uncompressed chunk");
    assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    let index = load(&path, &*volume);
    assert!(!index.was_loaded());
    assert_eq!(index.counts()[&4.into()], 1366);
    assert!(load(&path, &*volume).was_loaded(), "and saved anew");
}

#[test]
fn chunks_that_come_or_go_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (data, path) = (
        dir.path().join("labels.zarr"),
        dir.path().join("labels.index"),
    );
    write_zarr(&data, &labels(3), 8);
    let volume = open(&data).unwrap();
    load(&path, &*volume);
    let chunk = files(&data)
        .into_iter()
        .find(|file| !file.ends_with("zarr.json"))
        .unwrap();
    let aside = dir.path().join("aside");
    fs::rename(&chunk, &aside).unwrap();
    let index = load(&path, &*volume);
    assert!(!index.was_loaded());
    assert!(
        index.counts()[&LabelValue::ZERO] > 2730,
        "a missing chunk is background"
    );
    fs::rename(&aside, &chunk).unwrap();
    assert!(!load(&path, &*volume).was_loaded());
}

#[test]
fn a_file_that_is_truncated_damaged_or_of_a_different_volume_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let (data, path) = (
        dir.path().join("labels.zarr"),
        dir.path().join("labels.index"),
    );
    write_zarr(&data, &labels(3), 8);
    let volume = open(&data).unwrap();
    let whole = load(&path, &*volume);
    let bytes = fs::read(&path).unwrap();
    for end in 0..bytes.len() {
        fs::write(&path, &bytes[..end]).unwrap();
        assert!(
            LabelIndex::load(&path, &*volume, 0).is_err(),
            "cut at {end}"
        );
    }
    for i in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[i] ^= 1 << (i % 8);
        fs::write(&path, &changed).unwrap();
        assert!(
            LabelIndex::load(&path, &*volume, 0).is_err(),
            "changed at {i}"
        );
    }
    let index = load(&path, &*volume);
    assert!(!index.was_loaded() && index.tally == whole.tally);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let other = dir.path().join("other.zarr");
    write_zarr(&other, &labels(3), 8);
    let index = load(&path, &*open(&other).unwrap());
    assert!(!index.was_loaded(), "the same voxels in other files");
    fs::write(&path, b"").unwrap();
    assert!(!load(&path, &*volume).was_loaded());
}

#[test]
fn builders_at_the_same_time_leave_one_whole_file() {
    let dir = tempfile::tempdir().unwrap();
    let (data, path) = (
        dir.path().join("labels.zarr"),
        dir.path().join("labels.index"),
    );
    write_zarr(&data, &labels(3), 8);
    let volume = open(&data).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert_eq!(load(&path, &*volume).counts()[&3.into()], 1366);
                    LabelIndex::build(&*volume, 0, 2, &silent)
                        .unwrap()
                        .save(&path)
                        .unwrap();
                }
            });
        }
    });
    assert!(load(&path, &*volume).was_loaded());
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 2, "the volume, the index, and no half-written file");
}

#[test]
fn an_index_is_not_saved_into_the_volume_nor_for_one_without_an_identity() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("labels.zarr");
    write_zarr(&data, &labels(3), 8);
    let volume = open(&data).unwrap();
    let index = LabelIndex::build(&*volume, 0, 1, &silent).unwrap();
    let array = &volume.layout().path;
    for path in [array.join("index"), array.join("c/index"), array.clone()] {
        assert!(matches!(
            index.save(&path),
            Err(Error::OutputIsInput { .. })
        ));
    }
    let map = Shardless(Arc::clone(&volume), volume.layout().clone());
    let index = LabelIndex::build(&map, 0, 1, &silent).unwrap();
    let path = dir.path().join("labels.index");
    assert!(matches!(index.save(&path), Err(Error::Unsupported { .. })));
    assert!(LabelIndex::load(&path, &map, 0).is_err());
}

#[test]
fn shards_that_are_not_stored_are_background_and_the_others_are_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("labels.zarr");
    let options = CreateOptions {
        chunk: [32; 3],
        shard: Some([64, 128, 64]),
        ..CreateOptions::default()
    };
    // Many shards, two of which are stored, one of them at the edge.
    let shape = [640, 640, 400];
    let output = create(&data, &Layout::new(shape, 1, DType::U16), &options).unwrap();
    for (at, size) in [
        ([128, 256, 64], [64, 128, 64]),
        ([576, 512, 384], [64, 128, 16]),
    ] {
        let region = Region::new(at, size);
        let labels: Vec<u16> = (0..region.voxels())
            .map(|i| u16::from(i % 5 == 0))
            .collect();
        output.write(region, bytemuck::cast_slice(&labels)).unwrap();
    }
    output.finish().unwrap();
    let volume = open(&data).unwrap();
    let blocks = Blocks::of(volume.layout());
    assert!(blocks.shards(volume.layout()).is_some());
    let index = LabelIndex::build(&*volume, 0, 2, &silent).unwrap();
    let stored: u64 = [64 * 128 * 64, 64 * 128 * 16_u64]
        .iter()
        .map(|n| n.div_ceil(5))
        .sum();
    assert_eq!(index.counts()[&1.into()], stored);
    let mut layout = volume.layout().clone();
    layout.write_chunk = None;
    assert!(blocks.shards(&layout).is_none());
    let plain = Shardless(volume, layout);
    let one_by_one = LabelIndex::build(&plain, 0, 2, &silent).unwrap();
    assert_eq!(index.tally, one_by_one.tally);
}

/// A volume that does not report its shards.
#[derive(Debug)]
struct Shardless(Arc<dyn Volume>, Layout);

impl Volume for Shardless {
    fn layout(&self) -> &Layout {
        &self.1
    }
    fn inner(&self) -> Option<&dyn Volume> {
        Some(&*self.0)
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.0.read_channels(channels, region, out)
    }
    fn read_chunk(&self, index: [u64; 4]) -> Result<Chunk> {
        self.0.read_chunk(index)
    }
}

#[test]
fn a_zarr_without_stored_chunks_is_drawn_from_to_its_far_end() {
    let dir = tempfile::tempdir().unwrap();
    for (i, (shape, chunk)) in [
        ([1, 65_537, 70_000], [1, 4096, 4096]),
        ([3, 1, (1 << 31) + 1], [1, 1, 1 << 20]),
    ]
    .into_iter()
    .enumerate()
    {
        let data = dir.path().join(format!("{i}.zarr"));
        let options = CreateOptions {
            chunk,
            shard: None,
            ..CreateOptions::default()
        };
        let output = create(&data, &Layout::new(shape, 1, DType::U64), &options).unwrap();
        output.finish().unwrap();
        let volume = open(&data).unwrap();
        let index = LabelIndex::build(&*volume, 0, 2, &silent).unwrap();
        let patch = [1, shape[1].min(65_536), shape[2] - 1];
        let sampler = Label::new(volume, &index, &shares([(0, 1.0)]), &super::options(patch));
        let places: BTreeSet<_> = starts(&sampler.unwrap(), 300).into_iter().collect();
        assert_eq!(places.len(), [4, 6][i], "{places:?}");
    }
}

#[test]
fn a_data_file_that_is_rewritten_behind_its_header_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let gzip = |bytes: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        std::io::Write::write_all(&mut packed, bytes).unwrap();
        packed.finish().unwrap()
    };
    let meta = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 16 16 16\n\
                ElementType = MET_UCHAR\nElementDataFile = a.raw\n";
    put("a.mhd", meta.as_bytes());
    let nrrd = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 16 16 16\nencoding: gzip\n\
                data file: b.raw.gz\n\n";
    put("b.nhdr", nrrd.as_bytes());
    for (header, data) in [("a.mhd", "a.raw"), ("b.nhdr", "b.raw.gz")] {
        let bytes = |of| {
            if data == "a.raw" {
                labels(of)
            } else {
                gzip(&labels(of))
            }
        };
        put(data, &bytes(3));
        let path = dir.path().join("labels.index");
        let open = || open(dir.path().join(header)).unwrap();
        let listed: BTreeSet<_> = open()
            .source_files()
            .iter()
            .map(|file| file.file_name().unwrap().to_owned())
            .collect();
        assert!(listed.into_iter().eq([header, data]));
        load(&path, &*open());
        assert!(load(&path, &*open()).was_loaded());
        put(data, &bytes(4));
        let index = load(&path, &*open());
        assert!(!index.was_loaded(), "{header}");
        assert_eq!(index.counts()[&4.into()], 1366);
        let text = fs::read(dir.path().join(header)).unwrap();
        put(header, &text);
        assert!(!load(&path, &*open()).was_loaded(), "and so is the header");
    }
}

/// Stores a volume of one label under a name.
fn map_of(path: &Path, label: u8) {
    let layout = Layout::new([4, 4, 4], 1, DType::U8);
    let options = CreateOptions {
        chunk: [2; 3],
        shard: None,
        overwrite: true,
        ..CreateOptions::default()
    };
    let output = create(path, &layout, &options).unwrap();
    output
        .write(Region::whole([4, 4, 4]), &[label; 64])
        .unwrap();
    output.finish().unwrap();
}

/// Returns `true` if samplers accept the indexes for this map; if they do not, checks that the indexes are stale.
fn taken(map: &Arc<dyn Volume>, labels: &LabelIndex, weights: &WeightIndex) -> bool {
    let by_label = Label::new(
        Arc::clone(map),
        labels,
        &shares([(1, 1.0)]),
        &options([1; 3]),
    );
    let by_weight = Weighted::new(Arc::clone(map), weights, &options([1; 3]));
    let found = [by_label.map(drop), by_weight.map(drop)];
    for refused in found.iter().filter_map(|found| found.as_ref().err()) {
        let stale = matches!(
            refused,
            Error::StaleIndex { .. } | Error::InputModified { .. }
        );
        assert!(stale, "{refused}");
    }
    assert_eq!(found[0].is_ok(), found[1].is_ok());
    found[0].is_ok()
}

#[test]
fn an_index_is_used_only_for_the_voxels_that_it_was_built_from() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.zarr", "a.npy", "a.nii", "a.nrrd", "a.mha", "a.mhd"] {
        let path = dir.path().join(name);
        map_of(&path, 1);
        let map = open(&path).unwrap();
        let labels = LabelIndex::build(&*map, 0, 1, &silent).unwrap();
        let weights = WeightIndex::build(&*map, 0, 1, &silent).unwrap();
        let cached: Arc<dyn Volume> = Arc::new(Cached::new(Arc::clone(&map), 999));
        for _ in 0..2 {
            assert!(taken(&map, &labels, &weights), "{name}: the same");
            assert!(
                taken(&cached, &labels, &weights),
                "{name}: the same, cached"
            );
            assert!(
                taken(&open(&path).unwrap(), &labels, &weights),
                "{name}: opened again"
            );
        }
        map_of(&path, 2);
        assert!(
            !taken(&open(&path).unwrap(), &labels, &weights),
            "{name}: written again"
        );
        assert!(
            !taken(&map, &labels, &weights),
            "{name}: written again while it is open"
        );
    }
    // Channels of one file, and arrays in memory.
    let layout = Layout::new([4, 4, 4], 2, DType::U8);
    let path = dir.path().join("two.npy");
    let output = create(&path, &layout, &CreateOptions::default()).unwrap();
    let voxels = [[1; 64], [2; 64]].concat();
    output.write(Region::whole([4, 4, 4]), &voxels).unwrap();
    output.finish().unwrap();
    let channel = |n| -> Arc<dyn Volume> {
        Arc::new(ChannelRange::new(open(&path).unwrap(), n..n + 1).unwrap())
    };
    let array = |label: u8| -> Arc<dyn Volume> { memory([4, 4, 4], vec![label; 64]) };
    for (own, other) in [(channel(0), channel(1)), (array(1), array(2))] {
        let labels = LabelIndex::build(&*own, 0, 1, &silent).unwrap();
        let weights = WeightIndex::build(&*own, 0, 1, &silent).unwrap();
        assert!(taken(&own, &labels, &weights));
        assert!(!taken(&other, &labels, &weights));
        assert!(taken(&own, &labels, &weights));
    }
    assert_eq!(
        array(1).identity().unwrap(),
        array(1).identity().unwrap(),
        "an array is known by its voxels"
    );
    let written = Arc::new(MemoryVolume::from_vec([4, 4, 4], 1, vec![1_u8; 64]).unwrap());
    let map: Arc<dyn Volume> = Arc::clone(&written) as _;
    let labels = LabelIndex::build(&*map, 0, 1, &silent).unwrap();
    let weights = WeightIndex::build(&*map, 0, 1, &silent).unwrap();
    assert!(taken(&map, &labels, &weights));
    written.write(Region::whole([4, 4, 4]), &[2; 64]).unwrap();
    assert!(!taken(&map, &labels, &weights), "written to in memory");
}

#[test]
fn a_saved_index_is_of_one_channel_or_array_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let array = |label: u8| memory([4, 4, 4], vec![label; 64]);
    LabelIndex::build(&*array(1), 0, 1, &silent)
        .unwrap()
        .save(&path)
        .unwrap();
    assert!(LabelIndex::load(&path, &*array(1), 0).is_ok());
    assert!(LabelIndex::load(&path, &*array(2), 0).is_err());
    let data = dir.path().join("two.nii");
    let layout = Layout::new([4, 4, 4], 3, DType::U8);
    let output = create(&data, &layout, &CreateOptions::default()).unwrap();
    output.write(Region::whole([4, 4, 4]), &[7; 192]).unwrap();
    output.finish().unwrap();
    let channels = |range| ChannelRange::new(open(&data).unwrap(), range).unwrap();
    let index = load(&path, &channels(0..1));
    assert!(!index.was_loaded());
    assert!(load(&path, &channels(0..1)).was_loaded());
    assert!(LabelIndex::load(&path, &channels(1..2), 0).is_err());
    assert!(LabelIndex::load(&path, &*open(&data).unwrap(), 0).is_err());
}
