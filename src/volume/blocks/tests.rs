//! A volume of blocks against its twin in memory.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::dtype::DType;
use crate::patch::Patch;
use crate::volume::{Cached, VolumeExt, suite};

/// Blocks of bytes, each stored reversed.
#[derive(Debug)]
struct Reversed(u64);

impl BlockDecoder for Reversed {
    fn most_encoded(&self, _: usize) -> u64 {
        self.0
    }

    fn decode(&self, _: usize, encoded: Vec<u8>, out: &mut [u8]) -> Result<(), Cause> {
        assert_ne!(encoded.first(), Some(&255), "a damaged block");
        for (to, from) in out.iter_mut().zip(encoded.iter().rev()) {
            *to = *from;
        }
        Ok(())
    }
}

/// Writes a volume of bytes 1 to 120 as blocks in `count` files, and returns its source and its twin. The last block is
/// not stored.
fn blocks(folder: &Path, count: usize) -> (BlockSource, Patch) {
    let (shape, channels, chunk) = ([3, 5, 4], 2, [1, 2, 2, 3]);
    let mut layout = Layout::new(shape, channels, DType::U8);
    layout.path = folder.to_path_buf();
    layout.read_chunk = Some(chunk);
    let mut voxels: Vec<u8> = (1..=120).collect();
    let grid = [2, 2, 3, 2];
    let mut contents = vec![b"head".to_vec(); count];
    let mut blocks = Vec::new();
    for number in 0..24_usize {
        let index = [number / 12, number / 6 % 2, number / 2 % 3, number % 2];
        let mut encoded = Vec::new();
        for n in 0..12 {
            let inside = [0, n / 6, n / 3 % 2, n % 3];
            let at: [usize; 4] =
                std::array::from_fn(|a| index[a] * usize::try_from(chunk[a]).unwrap() + inside[a]);
            let place = ((at[0] * 3 + at[1]) * 5 + at[2]) * 4 + at[3];
            let outside = at[1] >= 3 || at[2] >= 5 || at[3] >= 4;
            if number == 23 && !outside {
                voxels[place] = 0;
            }
            encoded.push(if outside { 77 } else { voxels[place] });
        }
        encoded.reverse();
        let file = number % count;
        blocks.push(Block {
            file: u32::try_from(file).unwrap(),
            offset: contents[file].len() as u64,
            length: if number == 23 { 0 } else { 12 },
        });
        contents[file].extend(encoded);
    }
    assert_eq!(grid.iter().product::<usize>(), blocks.len());
    let mut files = FileWatch::default();
    for (n, content) in contents.iter().enumerate() {
        let path = folder.join(format!("{n}.bin"));
        fs::write(&path, content).unwrap();
        files.add(&path, &fs::metadata(&path).unwrap());
    }
    let source = BlockSource {
        layout,
        time_points: None,
        files,
        blocks: blocks.into(),
        decoder: Box::new(Reversed(12)),
        fill: vec![0],
        identity: json!("reversed"),
    };
    let patch = Patch::new(Region::whole(shape), channels, voxels).unwrap();
    (source, patch)
}

fn list(source: &mut BlockSource) -> &mut Vec<Block> {
    match &mut source.blocks {
        Blocks::Listed(list) => list,
        Blocks::Stored(tables) => panic!("{tables:?}"),
    }
}

/// Places of blocks that are not in memory.
#[derive(Debug)]
struct Elsewhere(Vec<Block>);

impl BlockTables for Elsewhere {
    fn count(&self) -> u64 {
        self.0.len() as u64
    }

    fn bytes(&self) -> u64 {
        5
    }

    fn block(&self, number: usize, _: &Files) -> Result<Block> {
        Ok(self.0[number])
    }
}

#[test]
fn a_volume_of_blocks_passes_the_suite() {
    for (count, is_listed) in [(1, true), (5, true), (1, false), (5, false)] {
        let folder = tempfile::tempdir().unwrap();
        let (mut source, expected) = blocks(folder.path(), count);
        if !is_listed {
            let list = std::mem::take(list(&mut source));
            source.blocks = Blocks::Stored(Box::new(Elsewhere(list)));
        }
        let volume = BlockVolume::new(source).unwrap();
        assert_eq!(volume.layout.read_memory.shared == 5, !is_listed);
        suite::check(&volume, &expected);
        assert!(volume.read_stats().chunks > 0 && volume.read_stats().bytes > 0);
        assert_eq!(volume.fill_chunk([1, 1, 2, 1]).unwrap(), Some(vec![0]));
        assert_eq!(volume.source_files().len(), count);
        assert_eq!(volume.stored_bytes().unwrap(), 24 * 12 + 4 * count as u64);
        volume.prefetch([1, 1, 2, 1]);
        volume.prefetch([9; 4]);
        suite::check(&Cached::new(std::sync::Arc::new(volume), 64), &expected);
    }
}

#[test]
fn changed_files_are_reported_by_reads() {
    for count in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let (source, _) = blocks(folder.path(), count);
        let volume = BlockVolume::new(source).unwrap();
        volume.read_chunk([0; 4]).unwrap();
        volume.check_unchanged().unwrap();
        fs::write(folder.path().join("0.bin"), b"other").unwrap();
        for result in [
            volume.read_chunk([0; 4]).map(|_| ()),
            volume.check_unchanged(),
        ] {
            assert!(
                matches!(result, Err(Error::InputModified { .. })),
                "{result:?}"
            );
        }
    }
}

#[test]
fn blocks_that_cannot_be_right_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, _) = blocks(folder.path(), 1);
    let places = list(&mut source);
    places[0].length = 13;
    places[1].offset = 1 << 40;
    places[2].offset = u64::MAX;
    let volume = BlockVolume::new(source).unwrap();
    for (index, word) in [
        ([0, 0, 0, 0], "more than the maximum of 12"),
        ([0, 0, 0, 1], "not in the file"),
        ([0, 0, 1, 0], "not in the file"),
    ] {
        let error = volume.read_chunk(index).unwrap_err();
        assert!(
            error.with_causes().contains(word),
            "{}",
            error.with_causes()
        );
    }
    assert!(volume.read_chunk([0, 0, 3, 0]).is_err());
    let (mut source, _) = blocks(folder.path(), 1);
    list(&mut source).pop();
    let error = BlockVolume::new(source).unwrap_err().to_string();
    assert!(error.contains("23 blocks"), "{error}");
    let (mut source, _) = blocks(folder.path(), 1);
    source.layout.read_chunk = Some([1, 0, 2, 3]);
    assert!(BlockVolume::new(source).is_err());
}

#[test]
fn a_decoder_that_panics_is_an_error_of_its_block() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, _) = blocks(folder.path(), 1);
    let path = folder.path().join("0.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4] = 255;
    fs::write(&path, &bytes).unwrap();
    source.files = FileWatch::default();
    source.files.add(&path, &fs::metadata(&path).unwrap());
    let volume = BlockVolume::new(source).unwrap();
    let error = volume.read_chunk([0; 4]).unwrap_err();
    assert!(
        error.with_causes().contains("the decoder panicked"),
        "{}",
        error.with_causes()
    );
    assert!(volume.read_chunk([0, 0, 0, 1]).is_ok());
}

#[cfg(any(feature = "dicom", feature = "tiff"))]
#[test]
fn packed_runs_are_bounded() {
    use super::codecs::packbits;
    // The example of Apple's technical note 1023.
    let packed = [
        0xfe, 0xaa, 0x02, 0x80, 0x00, 0x2a, 0xfd, 0xaa, 0x03, 0x80, 0x00, 0x2a, 0x22, 0xf7, 0xaa,
    ];
    let expected = [
        0xaa, 0xaa, 0xaa, 0x80, 0x00, 0x2a, 0xaa, 0xaa, 0xaa, 0xaa, 0x80, 0x00, 0x2a, 0x22, 0xaa,
        0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
    ];
    assert_eq!(packbits(&packed, 24).unwrap(), expected);
    assert_eq!(packbits(&packed, 7).unwrap(), expected[..7]);
    assert!(packbits(&packed, 25).is_err());
    assert!(packbits(&[0x81], 1).is_err() && packbits(&[5, 1], 6).is_err());
}

/// Opens and reads 4 000 files with some other bytes than `whole`: each is a volume or an error, and not a panic.
pub(in super::super) fn check_changed_bytes(whole: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..4000 {
        let mut bytes = whole.to_vec();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            bytes[at] = [0, 1, 0x7f, 0xff, random(256).to_le_bytes()[0]][random(5)];
        }
        if random(8) == 0 {
            bytes.truncate(random(whole.len()));
        }
        fs::write(&path, &bytes).unwrap();
        let read = crate::open(&path).and_then(|volume| {
            let last = volume.layout().shape.map(|n| i64::try_from(n).unwrap() - 1);
            volume.read(Region::new([0; 3], [1; 3]))?;
            volume.read(Region::new(last, [1; 3]))
        });
        match read {
            Ok(_) => opened += 1,
            Err(error) => {
                let text = error.with_causes();
                assert!(!text.contains("panicked"), "{text}");
                refused += 1;
            }
        }
    }
    assert!(opened > 100 && refused > 100, "{opened} {refused}");
}
