//! Files that are written, compared with volumes in memory.

use super::*;
use crate::dtype::DType;
use crate::volume::{Codec, CreateOptions, Layout, VolumeMut, create, disk_space, output_layout};

/// Returns voxels of every byte value.
fn made(shape: [u64; 3], channels: u64, dtype: DType, seed: u64) -> Patch {
    let mut patch = Patch::zeros(Region::whole(shape), channels, dtype).unwrap();
    let mut state = seed;
    for byte in patch.bytes_mut() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = state.to_le_bytes()[7] & 1;
    }
    patch
}

/// Writes all boxes of a grid in a shuffled order from two threads, except those that `skips` selects.
fn write_boxes(
    output: &dyn VolumeMut,
    source: &Patch,
    unit: [u64; 4],
    skips: impl Fn(usize) -> bool + Sync,
) {
    let shape = source.shape();
    let size = source.dtype().size();
    let plane = source.bytes().len() / usize::try_from(source.channels()).unwrap();
    let mut boxes = Vec::new();
    for c in (0..source.channels()).step_by(usize::try_from(unit[0]).unwrap()) {
        let channels = c..(c + unit[0]).min(source.channels());
        let space = [unit[1], unit[2], unit[3]];
        let counts: [std::ops::Range<u64>; 3] =
            std::array::from_fn(|a| 0..shape[a].div_ceil(space[a]));
        for index in crate::region::indices(counts) {
            let whole = crate::region::chunk_region(index, space);
            let part = whole.intersection(&Region::whole(shape)).unwrap();
            boxes.push((channels.clone(), part));
        }
    }
    // A step that has no common factor with most numbers.
    let count = boxes.len();
    let order: Vec<usize> = (0..count).map(|n| n * 7919 % count).collect();
    let order: Vec<usize> = if count.is_multiple_of(7919) {
        (0..count).collect()
    } else {
        order
    };
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (boxes, order, skips) = (&boxes, &order, &skips);
            scope.spawn(move || {
                for (_, &n) in order.iter().enumerate().filter(|(at, _)| at % 2 == half) {
                    if skips(n) {
                        continue;
                    }
                    let (channels, region) = boxes[n].clone();
                    let length = region.voxels() * (channels.end - channels.start);
                    let mut voxels = vec![0; usize::try_from(length).unwrap() * size];
                    let skipped = usize::try_from(channels.start).unwrap() * plane;
                    crate::patch::copy_common(
                        (&source.bytes()[skipped..], Region::whole(shape)),
                        (&mut voxels, region),
                        channels.end - channels.start,
                        size,
                    );
                    output.write_channels(channels, region, &voxels).unwrap();
                }
            });
        }
    });
}

#[test]
fn tiles_of_any_size_keep_the_voxels_whatever_boxes_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut n = 0;
    for (shape, channels, tile) in [
        ([3, 20, 18], 1, None),
        ([1, 1, 1], 1, None),
        ([2, 300, 5], 2, None),
        ([2, 33, 50], 3, Some([1, 16, 32])),
        ([5, 16, 32], 1, Some([2, 16, 16])),
        ([2, 40, 270], 1, Some([9, 64, 128])),
        ([3, 35, 270], 2, Some([2, 35, 270])),
    ] {
        for (dtype, codec) in [
            (DType::U8, Codec::None),
            (DType::F64, Codec::None),
            (DType::I8, Codec::Zlib),
            (DType::I16, Codec::Zstd),
            (DType::U32, Codec::Zlib),
            (DType::F32, Codec::Zstd),
        ] {
            n += 1;
            let expected = made(shape, channels, dtype, n);
            let path = folder.path().join(format!("{n}.ome.tif"));
            let options = CreateOptions::default()
                .with_tile(tile)
                .with_tile_codec(codec);
            let layout = Layout::new(shape, channels, dtype);
            let described = output_layout(&path, &layout, &options).unwrap();
            let output = create(&path, &layout, &options).unwrap();
            assert_eq!(output.layout(), &described);
            assert_eq!(output.layout().write_chunk.is_none(), codec == Codec::None);
            let unit = described
                .write_chunk
                .unwrap_or([1 + n % 2, 2, 1 + n % 23, 1 + n % 19]);
            write_boxes(&*output, &expected, unit, |_| false);
            output.finish().unwrap();
            let space = disk_space(&[(&described, &options)], false)
                .unwrap()
                .remove(0);
            let stored = fs::metadata(&path).unwrap().len();
            assert!(stored <= space.max_bytes, "{space:?} {stored}");
            if codec == Codec::None {
                assert_eq!([space.max_bytes, space.min_bytes], [stored; 2]);
            }
            let found = crate::open(&path).unwrap();
            if found.layout().read_chunk.is_some() {
                assert_eq!(found.layout().read_chunk, described.read_chunk);
            }
            assert_eq!(found.layout().codecs, described.codecs);
            if [1, 3, 4].contains(&(n % 6)) {
                suite::check(&*found, &expected);
            } else {
                let read = found.read(Region::whole(shape)).unwrap();
                assert_eq!(
                    read.bytes(),
                    expected.bytes(),
                    "{shape:?} {dtype} {codec:?}"
                );
            }
        }
    }
}

#[test]
fn a_tile_of_a_whole_page_is_a_strip_of_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut n = 0;
    for (shape, tile, is_strip) in [
        ([3, 5, 7], None, true),
        ([2, 256, 250], None, true),
        ([2, 257, 250], None, false),
        ([2, 35, 70], Some([1, 35, 70]), true),
        ([2, 35, 70], Some([1, 1 << 40, 1 << 40]), true),
        ([2, 48, 70], Some([1, 48, 80]), true),
        ([2, 48, 70], Some([1, 48, 64]), false),
        ([2, 48, 70], Some([1, 32, 80]), false),
    ] {
        for codec in [Codec::None, Codec::Zlib, Codec::Zstd] {
            n += 1;
            let path = folder.path().join(format!("{n}.tif"));
            let expected = made(shape, 1, DType::U16, n);
            let options = CreateOptions::default()
                .with_tile(tile)
                .with_tile_codec(codec);
            let layout = Layout::new(shape, 1, DType::U16);
            let output = create(&path, &layout, &options).unwrap();
            let unit = output.layout().write_chunk.unwrap_or([1, 2, 9, 11]);
            write_boxes(&*output, &expected, unit, |_| false);
            output.finish().unwrap();
            let (file, _) = read_pages(&path, 0).unwrap();
            for page in &file.pages {
                assert_eq!(page.form.is_tiled, !is_strip, "{shape:?} {tile:?}");
                assert_eq!(page.offsets.count == 1, is_strip);
                assert!(!is_strip || page.form.block == [shape[1], shape[2]]);
            }
            let found = crate::open(&path).unwrap();
            // Strips that are not compressed follow each other: the file is mapped.
            let is_mapped = found.layout().read_chunk.is_none();
            assert_eq!(is_mapped, is_strip && codec == Codec::None);
            let read = found.read(Region::whole(shape)).unwrap();
            assert_eq!(read.bytes(), expected.bytes(), "{shape:?} {codec:?}");
        }
    }
}

#[test]
fn tiles_that_are_not_written_are_zero_and_other_programs_find_them_too() {
    let folder = tempfile::tempdir().unwrap();
    for (n, codec) in [Codec::None, Codec::Zlib, Codec::Zstd]
        .into_iter()
        .enumerate()
    {
        for shape in [[4, 33, 40], [3, 16, 16]] {
            let path = folder.path().join(format!("{n}-{}.tif", shape[0]));
            let options = CreateOptions::default()
                .with_tile(Some([2, 16, 16]))
                .with_tile_codec(codec);
            let layout = Layout::new(shape, 1, DType::U16);
            let mut expected = made(shape, 1, DType::U16, 5);
            let output = create(&path, &layout, &options).unwrap();
            let unit = [1, 2, 16, 16];
            write_boxes(&*output, &expected, unit, |n| n % 2 == 1);
            output.finish().unwrap();
            let counts: [std::ops::Range<u64>; 3] =
                std::array::from_fn(|a| 0..shape[a].div_ceil(unit[a + 1]));
            for (n, index) in crate::region::indices(counts).enumerate() {
                let whole = crate::region::chunk_region(index, [2, 16, 16]);
                let part = whole.intersection(&Region::whole(shape)).unwrap();
                if n % 2 == 1 {
                    let zeros = Patch::zeros(part, 1, DType::U16).unwrap();
                    crate::patch::copy_common(
                        (zeros.bytes(), part),
                        (expected.bytes_mut(), Region::whole(shape)),
                        1,
                        2,
                    );
                }
            }
            let file = File::open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            let (directories, first) = Directories::open(&file, length).unwrap();
            for page in directories.pages(first).unwrap() {
                let is_stored = |_, length| length > 0;
                assert!(directories.all_blocks(&page, is_stored).unwrap());
            }
            suite::check(&*crate::open(&path).unwrap(), &expected);
        }
    }
}

#[test]
fn tiles_and_codecs_that_tiff_does_not_have_are_refused_before_a_file_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let layout = Layout::new([4, 40, 40], 1, DType::U16);
    let usual = CreateOptions::default();
    let tile = |tile| usual.clone().with_tile(Some(tile));
    let codec = |codec, level| usual.clone().with_tile_codec(codec).with_clevel(level);
    for (options, word) in [
        (tile([1, 15, 16]), "multiples of 16"),
        (tile([0, 16, 16]), "16 MiB"),
        (tile([1, 0, 16]), "16 MiB"),
        (tile([1, 40, 39]), "or those of the page"),
        (tile([1, 1 << 20, 32]), "16 MiB"),
        (tile([1, 1 << 63, 32]), "16 MiB"),
        (codec(Codec::Gzip, None), "zlib (deflate) or zstd"),
        (codec(Codec::BloscLz4, None), "zlib (deflate) or zstd"),
        (codec(Codec::Zlib, Some(10)), "levels 0 to 9"),
        (codec(Codec::Zstd, Some(0)), "levels 1 to 22"),
        (codec(Codec::Zstd, Some(23)), "levels 1 to 22"),
    ] {
        let error = create(&path, &layout, &options).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    let many = Layout::new([1 << 23, 1, 1], 1, DType::U8);
    let error = create(&path, &many, &usual).unwrap_err();
    assert!(error.to_string().contains("pages"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_part_of_a_compressed_tile_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let options = CreateOptions::default()
        .with_tile(Some([2, 16, 16]))
        .with_tile_codec(Codec::Zlib);
    let output = create(&path, &Layout::new([4, 40, 40], 1, DType::U8), &options).unwrap();
    for (start, shape) in [([0, 0, 0], [1, 16, 16]), ([0, 8, 0], [2, 16, 16])] {
        let region = Region::new(start, shape);
        let voxels = vec![0; usize::try_from(region.voxels()).unwrap()];
        let error = output.write_channels(0..1, region, &voxels).unwrap_err();
        assert!(matches!(error, Error::PartialChunk { .. }), "{error:?}");
    }
    drop(output);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
