//! Chunks that are read by parts out of mapped files.

use std::fs::{self, File};

use super::golden::arrays;
use super::*;
use crate::volume::create::Codec;
use crate::volume::{CreateOptions, ReadMethod, ZarrVersion, create};

fn opened(path: &Path, read_method: ReadMethod, missing_chunks: MissingChunks) -> ZarrVolume {
    let options = OpenOptions {
        missing_chunks,
        read_method,
        ..OpenOptions::default()
    };
    ZarrVolume::open(path, &options).unwrap()
}

/// Compares reads of mapped files with reads of whole chunks.
fn compare(path: &Path, dice: &mut Dice) {
    let mapped = opened(path, ReadMethod::MmapResident, MissingChunks::Fill);
    let whole = opened(path, ReadMethod::Pread, MissingChunks::Fill);
    assert!(mapped.reads_parts() && !whole.reads_parts());
    let layout = whole.layout();
    for _ in 0..12 {
        let region = dice.region(layout.shape);
        let first = dice.roll() % layout.channels;
        let channels = first..first + 1 + dice.roll() % (layout.channels - first);
        let [a, b] = [&mapped, &whole].map(|volume| {
            let voxels = region.voxels() * (channels.end - channels.start);
            let bytes = usize::try_from(voxels).unwrap() * layout.dtype.size();
            let mut out = vec![0xA5; bytes];
            volume
                .read_channels(channels.clone(), region, &mut out)
                .unwrap();
            out
        });
        assert!(a == b, "{}: {channels:?} {region:?}", path.display());
    }
    assert_eq!(mapped.read_stats().chunks, 0, "nothing is decoded");
}

#[test]
fn parts_of_mapped_chunks_are_those_of_whole_chunks() {
    let folder = scratch();
    let mut dice = Dice(7);
    for n in 0..40 {
        let shape = std::array::from_fn(|_| 1 + dice.roll() % 30);
        let dtype = [DType::U8, DType::I16, DType::F32, DType::F64][dice.below(4)];
        let layout = Layout::new(shape, 1 + dice.roll() % 3, dtype);
        let chunk = std::array::from_fn(|_| 1 + dice.roll() % 9);
        let shard = dice.roll().is_multiple_of(2);
        let zarr = match dice.roll() % 3 {
            0 if !shard => ZarrVersion::V2,
            _ => ZarrVersion::V3,
        };
        let options = CreateOptions {
            chunk,
            shard: shard.then(|| chunk.map(|n| n * 2)),
            codec: Codec::None,
            zarr,
            ..CreateOptions::default()
        };
        let path = folder.path().join(format!("{n}.zarr"));
        let writer = create(&path, &layout, &options).unwrap();
        // A third of the voxels' chunks are empty, and not stored.
        let bytes = usize::try_from(layout.decoded_bytes().unwrap()).unwrap();
        let mut voxels: Vec<u8> = (0..bytes)
            .map(|_| u8::try_from(dice.roll() % 251).unwrap())
            .collect();
        voxels[..bytes / 3].fill(0);
        writer.write(Region::whole(shape), &voxels).unwrap();
        writer.finish().unwrap();
        compare(&path.join("0"), &mut dice);
    }
}

#[test]
fn only_arrays_without_codecs_and_in_native_order_are_mapped() {
    let mut dice = Dice(8);
    let (mut mapped, mut whole) = (0, 0);
    for path in arrays() {
        if opened(&path, ReadMethod::Auto, MissingChunks::Fill).reads_parts() {
            compare(&path, &mut dice);
            mapped += 1;
        } else {
            whole += 1;
        }
    }
    assert!(mapped > 40 && whole > 60, "{mapped} {whole}");
    println!("{mapped} arrays of zarr-python are mapped, {whole} are not");
}

#[test]
fn a_missing_truncated_or_replaced_file_is_the_error_that_it_is_when_chunks_are_read_whole() {
    let folder = scratch();
    let path = folder.path().join("a.zarr");
    let layout = Layout::new([8, 8, 16], 1, DType::U16);
    let options = CreateOptions {
        chunk: [8; 3],
        shard: None,
        codec: Codec::None,
        ..CreateOptions::default()
    };
    let writer = create(&path, &layout, &options).unwrap();
    writer
        .write(Region::whole(layout.shape), &[7; 2048])
        .unwrap();
    writer.finish().unwrap();
    let (array, chunk) = (path.join("0"), path.join("0/c/0/0/1"));
    let both = |missing_chunks| {
        [ReadMethod::Auto, ReadMethod::Pread].map(|method| opened(&array, method, missing_chunks))
    };
    let bytes = fs::read(&chunk).unwrap();

    // The file is truncated before it is read, or removed.
    fs::write(&chunk, &bytes[..1000]).unwrap();
    let truncated = both(MissingChunks::Fill).map(|volume| read_all(&volume).unwrap_err());
    let [a, b] = truncated.map(|error| error.with_causes());
    assert!(
        a == b && a.contains("1000 bytes instead of 1024"),
        "{a}, {b}"
    );
    fs::remove_file(&chunk).unwrap();
    let [a, b] = both(MissingChunks::Fill).map(|volume| read_all(&volume).unwrap());
    assert!(a == b && a.contains(&0), "fill value");
    let [a, b] = both(MissingChunks::Error).map(|volume| read_all(&volume).unwrap_err());
    assert!(matches!(a, Error::MissingChunk { .. }), "{a}");
    assert_eq!(a.to_string(), b.to_string());

    // It is truncated, replaced or removed while the volume is open and the file is mapped.
    let change: [&dyn Fn(); 3] = [
        &|| {
            File::options()
                .write(true)
                .open(&chunk)
                .unwrap()
                .set_len(1000)
                .unwrap();
        },
        &|| {
            let other = folder.path().join("other");
            fs::write(&other, [9; 1024]).unwrap();
            fs::rename(&other, &chunk).unwrap();
        },
        &|| fs::remove_file(&chunk).unwrap(),
    ];
    for (n, change) in change.iter().enumerate() {
        fs::write(&chunk, &bytes).unwrap();
        let volumes = both(MissingChunks::Error);
        for volume in &volumes {
            assert_eq!(read_all(volume).unwrap(), [7; 2048]);
        }
        std::thread::sleep(std::time::Duration::from_millis(30));
        change();
        let [a, b] = volumes.map(|volume| read_all(&volume).unwrap_err().to_string());
        assert_eq!(a, b, "change {n}");
    }
}
