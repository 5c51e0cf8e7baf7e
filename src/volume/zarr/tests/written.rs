//! Written arrays read back unchanged, for any shape, type and codec.

use std::fs;
use std::sync::Barrier;
use std::thread;

use proptest::prelude::*;

use super::super::encode::{ChunkEncoder, UnencodedChunk};
use super::*;
use crate::files::PIECE;
use crate::patch::copy_common;
use crate::region::{chunk_range, chunk_region, indices};
use crate::volume::pyramid::LevelSource;
use crate::volume::suite::check;
use crate::volume::{Cached, Codec, CreateOptions, MemoryVolume, VolumeMut, create};

/// Returns voxels with empty ranges, so that some chunks are all fill value.
fn voxels(layout: &Layout, dice: &mut Dice) -> Vec<u8> {
    let bytes = usize::try_from(layout.decoded_bytes().unwrap()).unwrap();
    let mut voxels = Vec::with_capacity(bytes);
    while voxels.len() < bytes {
        let length = 1 + dice.below(bytes.div_ceil(4).max(2));
        let empty = dice.below(3) == 0;
        for _ in 0..length {
            let byte = if empty {
                0
            } else {
                dice.roll().to_le_bytes()[0]
            };
            voxels.push(if layout.dtype == DType::Bool {
                byte & 1
            } else {
                byte
            });
        }
    }
    voxels.truncate(bytes);
    voxels
}

fn options() -> impl Strategy<Value = CreateOptions> {
    let codec = prop_oneof![
        Just(Codec::Zstd),
        Just(Codec::BloscZstd),
        Just(Codec::BloscLz4),
        Just(Codec::Gzip),
        Just(Codec::None),
    ];
    let level = proptest::option::of(1_u8..6);
    let chunk = [1_u64..9, 1..9, 1..9];
    let shard = proptest::option::of([1_u64..4, 1..4, 1..4]);
    (codec, level, chunk, shard).prop_map(|(codec, level, chunk, shard)| CreateOptions {
        chunk,
        shard: shard.map(|times| std::array::from_fn(|a| times[a] * chunk[a])),
        codec,
        clevel: level,
        ..CreateOptions::default()
    })
}

/// Compares the write chunks of one channel of an output with those that zarrs encodes.
fn check_against_zarrs(layout: &Layout, options: &CreateOptions, all: &[u8]) {
    let planned = document::plan(layout, options).unwrap().swap_remove(0);
    let layout = &planned.layout;
    let facts = ArrayInfo::parse(&layout.path, layout.format, &planned.document, &[]).unwrap();
    let (array, metadata) = open_array(&facts, &planned.document).unwrap();
    let [[_, smallest @ ..], [_, chunk @ ..]] =
        [layout.read_chunk, layout.write_chunk].map(Option::unwrap);
    let leading = array.dimensionality() - 3;
    let encoder = ChunkEncoder::new(&array, &metadata.codecs, leading, smallest).unwrap();
    let everything = Region::whole(layout.shape);
    let size = layout.dtype.size();
    for index in indices(chunk_range(&everything, chunk)) {
        let whole = chunk_region(index, chunk);
        let held = whole.intersection(&everything).unwrap();
        let mut voxels = vec![0; usize::try_from(held.voxels()).unwrap() * size];
        copy_common((all, everything), (&mut voxels, held), 1, size);
        let mut padded = vec![0; usize::try_from(whole.voxels()).unwrap() * size];
        copy_common((all, everything), (&mut padded, whole), 1, size);

        let (mut encoded, mut pieces) = (Vec::new(), 0);
        let unencoded = UnencodedChunk {
            encoder: &encoder,
            whole,
            source: LevelSource {
                held,
                voxels: Some(&voxels),
            },
            path: &layout.path,
            key: "chunk",
        };
        let is_stored = unencoded.encode_to(&mut |bytes| {
            pieces += 1;
            encoded.extend_from_slice(bytes);
            Ok(())
        });
        let is_empty = padded.iter().all(|&byte| byte == 0);
        assert_eq!(is_stored.unwrap(), !is_empty, "{index:?}");
        assert!(pieces <= 1 + 2 * encoded.len() / PIECE, "{pieces} pieces");
        if is_empty {
            let is_stored = unencoded.put(|bytes| {
                assert_eq!(bytes, None);
                Ok(())
            });
            assert!(!is_stored.unwrap());
            continue;
        }
        let shape: Vec<NonZeroU64> = std::iter::repeat_n(1, leading)
            .chain(chunk)
            .filter_map(NonZeroU64::new)
            .collect();
        let theirs = array.codecs().encode(
            ArrayBytes::new_flen(padded),
            &shape,
            array.data_type(),
            array.fill_value(),
            &codec_options(),
        );
        assert!(
            encoded == *theirs.unwrap(),
            "chunk {index:?} of {options:?}"
        );
        let is_stored = unencoded.put(|bytes| {
            assert!(bytes == Some(encoded));
            Ok(())
        });
        assert!(is_stored.unwrap());
        // An error of what takes the pieces ends the encoding, and is returned.
        let mut calls = 0;
        let refused = unencoded.encode_to(&mut |_| {
            calls += 1;
            Err(Error::unsupported(&layout.path, "no"))
        });
        assert!(matches!(refused, Err(Error::Unsupported { .. })));
        assert_eq!(calls, 1);
    }
}

#[test]
fn long_shards_are_the_bytes_that_zarrs_makes() {
    let mut dice = Dice(7);
    for (chunk, shard, dtype) in [
        (64, 128, DType::F32),
        (32, 128, DType::U16),
        (96, 96, DType::I64),
    ] {
        let layout = Layout::new([130, 97, 128], 1, dtype);
        let all = voxels(&layout, &mut dice);
        let options = CreateOptions {
            chunk: [chunk; 3],
            shard: Some([shard; 3]),
            codec: Codec::BloscLz4,
            ..CreateOptions::default()
        };
        check_against_zarrs(&layout, &options, &all);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn write_chunks_are_the_bytes_that_zarrs_makes(
        shape in [1_u64..20, 1..20, 1..20],
        dtype in prop::sample::select(&DType::ALL[..]),
        options in options(),
        seed: u64,
    ) {
        let layout = Layout::new(shape, 1, dtype);
        let all = voxels(&layout, &mut Dice(seed));
        check_against_zarrs(&layout, &options, &all);
    }

    #[test]
    fn written_volumes_read_back_as_from_memory(
        shape in [1_u64..20, 1..20, 1..20],
        channels in 1_u64..4,
        dtype in prop::sample::select(&DType::ALL[..]),
        options in options(),
        seed: u64,
    ) {
        let folder = scratch();
        let path = folder.path().join("image.zarr");
        let layout = Layout::new(shape, channels, dtype);
        let mut dice = Dice(seed);
        let all = voxels(&layout, &mut dice);
        let twin = MemoryVolume::zeros(layout.clone()).unwrap();
        twin.write(Region::whole(shape), &all).unwrap();

        let writer = create(&path, &layout, &options).unwrap();
        let slab = writer.layout().write_chunk.unwrap()[1];
        for c in 0..channels {
            for z in (0..shape[0]).step_by(usize::try_from(slab).unwrap()) {
                let depth = slab.min(shape[0] - z);
                let region = Region::new([i64::try_from(z).unwrap(), 0, 0], [depth, shape[1], shape[2]]);
                let bytes = usize::try_from(region.voxels()).unwrap() * dtype.size();
                let mut part = vec![0; bytes];
                twin.read_channels(c..c + 1, region, &mut part).unwrap();
                writer.write_channels(c..c + 1, region, &part).unwrap();
            }
        }
        writer.finish().unwrap();

        let volume = open(&path).unwrap();
        prop_assert_eq!(read_all(&volume).unwrap(), all);
        for _ in 0..8 {
            let region = dice.region(shape);
            let first = dice.roll() % channels;
            let wanted = first..first + 1 + dice.roll() % (channels - first);
            let bytes = region.voxels() * (wanted.end - wanted.start) * dtype.size() as u64;
            let mut parts = [(); 2].map(|()| vec![0xAA; usize::try_from(bytes).unwrap()]);
            volume.read_channels(wanted.clone(), region, &mut parts[0]).unwrap();
            twin.read_channels(wanted.clone(), region, &mut parts[1]).unwrap();
            prop_assert_eq!(&parts[0], &parts[1], "{} of {:?}", region, wanted);
        }
    }
}

#[test]
fn zarr_volumes_pass_what_every_volume_passes() {
    let folder = scratch();
    let layout = Layout::new([13, 11, 17], 2, DType::I16);
    for (name, codec, shard) in [
        ("plain.zarr", Codec::Gzip, None),
        ("shards.zarr", Codec::BloscLz4, Some([8, 8, 16])),
    ] {
        let path = folder.path().join(name);
        let options = CreateOptions {
            chunk: [4, 4, 8],
            shard,
            codec,
            ..CreateOptions::default()
        };
        let all = voxels(&layout, &mut Dice(3));
        let writer = create(&path, &layout, &options).unwrap();
        writer.write(Region::whole(layout.shape), &all).unwrap();
        writer.finish().unwrap();
        let twin = MemoryVolume::zeros(layout.clone()).unwrap();
        twin.write(Region::whole(layout.shape), &all).unwrap();
        let volume = Arc::new(open(&path).unwrap());
        check(&volume, &twin.to_patch());
        check(&Cached::new(volume, 20_000), &twin.to_patch());
    }
}

fn writer(path: &Path, shard: Option<[u64; 3]>) -> Box<dyn VolumeMut> {
    let options = CreateOptions {
        chunk: [4; 3],
        shard,
        ..CreateOptions::default()
    };
    create(path, &Layout::new([8; 3], 1, DType::U8), &options).unwrap()
}

#[test]
fn a_chunk_is_written_once_also_by_threads_and_also_if_it_is_empty() {
    let folder = scratch();
    let writer = writer(&folder.path().join("a.zarr"), None);
    let corner = Region::new([4, 0, 4], [4; 3]);
    for (region, byte) in [(corner, 7), (Region::new([0; 3], [4; 3]), 0)] {
        let barrier = Barrier::new(4);
        let written = thread::scope(|scope| {
            let write = || {
                barrier.wait();
                writer.write(region, &[byte; 64])
            };
            let threads = [(); 4].map(|()| scope.spawn(write));
            threads.map(|thread| thread.join().unwrap())
        });
        let (once, again): (Vec<_>, Vec<_>) = written.into_iter().partition(Result::is_ok);
        assert_eq!(once.len(), 1);
        let refused = |result: &Result<()>| matches!(result, Err(Error::ChunkWritten { .. }));
        assert!(again.iter().all(refused), "{again:?}");
    }
    writer.finish().unwrap();
    let volume = open(&folder.path().join("a.zarr")).unwrap();
    assert_eq!(volume.read(corner).unwrap().bytes(), [7; 64]);
}

#[test]
fn chunks_that_are_all_fill_value_leave_no_file() {
    let folder = scratch();
    for (name, shard) in [("plain.zarr", None), ("shards.zarr", Some([8; 3]))] {
        let path = folder.path().join(name);
        let writer = writer(&path, shard);
        writer.write(Region::whole([8; 3]), &[0; 512]).unwrap();
        writer.finish().unwrap();
        assert!(!path.join("0/c").exists(), "{name}");
        let volume = open(&path).unwrap();
        assert_eq!(read_all(&volume).unwrap(), [0; 512]);
        assert_eq!(volume.read_stats().bytes, 0);
    }
}

#[test]
fn a_write_must_be_made_of_whole_chunks() {
    let folder = scratch();
    let writer = writer(&folder.path().join("a.zarr"), None);
    for region in [
        Region::new([0; 3], [3, 4, 4]),
        Region::new([1, 0, 0], [4; 3]),
    ] {
        let bytes = vec![1; usize::try_from(region.voxels()).unwrap()];
        let written = writer.write(region, &bytes);
        assert!(matches!(written, Err(Error::PartialChunk { .. })));
    }
}

#[test]
fn settings_that_do_not_fit_are_refused_by_name() {
    let folder = scratch();
    let refused = |shape, options: &CreateOptions| {
        let layout = Layout::new(shape, 1, DType::U8);
        let error = create(folder.path().join("a.zarr"), &layout, options).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        error.to_string()
    };
    let with = |chunk, shard| CreateOptions {
        chunk,
        shard,
        ..CreateOptions::default()
    };
    assert!(refused([9; 3], &with([4, 0, 4], None)).contains("along y"));
    assert!(refused([9; 3], &with([4; 3], Some([8, 8, 6]))).contains("along x"));
    let large = with([64; 3], Some([2048; 3]));
    assert!(refused([4096; 3], &large).contains("limit"));
    let level = CreateOptions {
        clevel: Some(23),
        ..CreateOptions::default()
    };
    assert!(refused([9; 3], &level).contains("zstd has levels 0 to 22"));
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        0,
        "no leftovers"
    );
}
