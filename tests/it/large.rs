//! Volumes of 64 GiB and folders of many files: opening them takes little memory and reads little.
//!
//! With `VOXPATCH_LARGE` set, folders have 100 000 files instead of 2 000, and strips of one row have places of their own.
//! `scripts/large` runs that, and prints seconds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value as Json, json};
use voxpatch::meter::{Meter, anonymous_bytes};
use voxpatch::{Region, VolumeExt};

/// The anonymous memory that opening and sampling may take.
const MOST: u64 = 128 << 20;

/// Names the volume that a process of its own opens, so that only its memory is measured.
const ALONE: &str = "VOXPATCH_LARGE_ALONE";

/// Rows, columns and slices of 16 bits: 64 GiB.
const SIDE: u64 = 4096;
const SLICES: u64 = 2048;

fn is_long() -> bool {
    std::env::var_os("VOXPATCH_LARGE").is_some()
}

/// Returns a counter of this process: bytes or calls of reads.
fn count(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/io").expect("a Linux");
    let number = text.lines().find_map(|line| line.strip_prefix(name));
    number
        .and_then(|n| n.trim().parse().ok())
        .expect("a number")
}

/// Opens the volume that [`ALONE`] names and reads a box in its middle. Prints what that took.
#[test]
#[ignore = "the tests below run it in a process of its own"]
fn alone() {
    let path = std::env::var(ALONE).expect("the tests below set it");
    let before = anonymous_bytes().expect("a Linux");
    let meter = Meter::start();
    let (bytes, began) = (count("rchar:"), Instant::now());
    let volume = voxpatch::open(&path).expect("it opens");
    let opened = began.elapsed().as_secs_f64();
    let bytes = count("rchar:") - bytes;
    let shape = volume.layout().shape;
    let start = shape.map(|n| i64::try_from(n / 2).expect("a length") - 1);
    let size = shape.map(|n| n.min(3));
    let read = volume.read(Region::new(start, size)).expect("its voxels");
    let sum: u64 = read.bytes().iter().map(|&byte| u64::from(byte)).sum();
    let peak = meter.stop().anonymous.expect("a Linux");
    let found = json!({
        "shape": shape, "chunk": volume.layout().read_chunk, "bytes": bytes, "sum": sum, "seconds": opened,
        "memory": peak.saturating_sub(before), "list": volume.layout().read_memory.shared,
        "chunks": volume.read_stats().chunks,
    });
    println!("\nfound {found}");
}

/// Opens a volume in a process of its own.
fn opened(name: &str, path: &Path) -> Json {
    let own = std::env::current_exe().expect("this program");
    let done = Command::new(own)
        .args(["large::alone", "--exact", "--nocapture", "--ignored"])
        .env(ALONE, path)
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&done.stdout);
    let found = said.lines().find_map(|line| line.strip_prefix("found "));
    let error = String::from_utf8_lossy(&done.stderr);
    let found = found.unwrap_or_else(|| panic!("{name}: {said}\n{error}"));
    let found: Json = serde_json::from_str(found).expect("one object");
    println!("{name}: {found}");
    assert!(number(&found, "memory") <= MOST, "{name}: {found}");
    found
}

fn number(found: &Json, key: &str) -> u64 {
    found[key].as_u64().expect("a number")
}

mod tiff {
    use super::*;

    /// Where the values of an entry are: here, or in the file.
    enum Values {
        One(u64),
        Table { count: u64, at: u64 },
    }

    /// Writes the directories of `SLICES` pages as the first bytes of a `BigTIFF`. `blocks` returns the places and the
    /// lengths of the blocks of a page.
    fn write_directories(
        file: &File,
        (compression, rows, tile): (u64, u64, Option<u64>),
        blocks: impl Fn(u64) -> [Values; 2],
    ) {
        let mut out = BufWriter::new(file);
        let mut put = |bytes: &[u8]| out.write_all(bytes).expect("the disk has room");
        put(b"II+\0\x08\0\0\0");
        put(&16_u64.to_le_bytes());
        let size = directory_bytes();
        for page in 0..SLICES {
            let [offsets, counts] = blocks(page);
            let mut entries: BTreeMap<u16, Values> =
                [(256, SIDE), (257, SIDE), (258, 16), (259, compression)]
                    .into_iter()
                    .chain([(262, 1), (277, 1), (339, 1)])
                    .map(|(tag, value)| (tag, Values::One(value)))
                    .collect();
            if let Some(side) = tile {
                entries.insert(322, Values::One(side));
                entries.insert(323, Values::One(side));
                entries.insert(324, offsets);
                entries.insert(325, counts);
            } else {
                // An entry more, so that directories are equally long.
                entries.insert(266, Values::One(1));
                entries.insert(278, Values::One(rows));
                entries.insert(273, offsets);
                entries.insert(279, counts);
            }
            put(&(entries.len() as u64).to_le_bytes());
            for (tag, values) in &entries {
                put(&tag.to_le_bytes());
                put(&16_u16.to_le_bytes());
                let (count, at) = match *values {
                    Values::One(value) => (1, value),
                    Values::Table { count, at } => (count, at),
                };
                put(&count.to_le_bytes());
                put(&at.to_le_bytes());
            }
            let next = if page + 1 < SLICES {
                16 + (page + 1) * size
            } else {
                0
            };
            put(&next.to_le_bytes());
        }
        out.flush().expect("the disk has room");
    }

    const fn directory_bytes() -> u64 {
        8 + 11 * 20 + 8
    }

    /// Returns the first byte behind the directories.
    const fn behind() -> u64 {
        (16 + SLICES * directory_bytes()).next_multiple_of(8)
    }

    fn write_table(file: &File, at: u64, values: impl Iterator<Item = u64>) {
        let bytes: Vec<u8> = values.flat_map(u64::to_le_bytes).collect();
        file.write_all_at(&bytes, at).expect("the disk has room");
    }

    /// Writes 64 GiB of zeros that take no space, in strips of so many rows or in tiles, except 3 voxels of 515 in the
    /// middle.
    fn uncompressed(path: &Path, rows: u64, tile: Option<u64>) {
        let file = File::create(path).expect("the folder is ours");
        let per_page = tile.map_or(SIDE / rows, |side| (SIDE / side).pow(2));
        let page_bytes = SIDE * SIDE * 2;
        let length = page_bytes / per_page;
        let voxels = (behind() + SLICES * per_page * 8 + per_page * 8).next_multiple_of(4096);
        // All pages have the same lengths.
        let counts = behind() + SLICES * per_page * 8;
        write_table(&file, counts, (0..per_page).map(|_| length));
        for page in 0..SLICES {
            let first = voxels + page * page_bytes;
            let at = behind() + page * per_page * 8;
            write_table(&file, at, (0..per_page).map(|n| first + n * length));
        }
        write_directories(&file, (1, rows, tile), |page| {
            let at = behind() + page * per_page * 8;
            [
                Values::Table {
                    count: per_page,
                    at,
                },
                Values::Table {
                    count: per_page,
                    at: counts,
                },
            ]
        });
        file.set_len(voxels + SLICES * page_bytes)
            .expect("the disk has room");
        let (row, column) = (SIDE / 2 - 1, SIDE / 2);
        let place = tile.map_or(row * SIDE + column, |side| {
            let tiles = SIDE / side;
            let number = row / side * tiles + column / side;
            number * side * side + row % side * side + column % side
        });
        for page in SLICES / 2 - 1..SLICES / 2 + 2 {
            let at = voxels + page * page_bytes + place * 2;
            file.write_all_at(&515_u16.to_le_bytes(), at)
                .expect("the disk has room");
        }
    }

    /// Writes pages whose blocks are all the same encoded ones, each of 515s.
    fn compressed(path: &Path, rows: u64, tile: Option<u64>) {
        let file = File::create(path).expect("the folder is ours");
        let voxels = tile.map_or(rows * SIDE, |side| side * side);
        let voxels = usize::try_from(voxels).expect("a block in memory");
        let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        let block = 515_u16.to_le_bytes().repeat(voxels);
        stream.write_all(&block).expect("memory takes it");
        let block = stream.finish().expect("memory takes it");
        let per_page = tile.map_or(SIDE / rows, |side| (SIDE / side).pow(2));
        let counts = behind() + per_page * 8;
        let data = counts + per_page * 8;
        write_table(&file, behind(), (0..per_page).map(|_| data));
        write_table(&file, counts, (0..per_page).map(|_| block.len() as u64));
        file.write_all_at(&block, data).expect("the disk has room");
        write_directories(&file, (8, rows, tile), |_| {
            let table = |at| Values::Table {
                count: per_page,
                at,
            };
            [table(behind()), table(counts)]
        });
    }

    #[test]
    fn images_of_64_gib_open_in_little_memory() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.tif");
        let shape = json!([SLICES, SIDE, SIDE]);
        // Each voxel of 515 has bytes of 2 and 3.
        let all = 27 * 5;
        let mut cases = vec![
            ("strips of 64 rows", 64, None, 15),
            ("tiles of 256", 1, Some(256), 15),
        ];
        if is_long() {
            cases.push(("strips of 1 row", 1, None, 15));
        }
        for (name, rows, tile, sum) in cases {
            uncompressed(&path, rows, tile);
            assert!(path.metadata().expect("it is there").len() > 64 << 30);
            let found = opened(name, &path);
            assert_eq!(
                (&found["shape"], number(&found, "sum")),
                (&shape, sum),
                "{name}"
            );
            // Strips that follow each other are mapped.
            assert_eq!(found["chunk"].is_null(), tile.is_none(), "{name}");
        }
        for (name, rows, tile) in [
            ("strips of 1 row, deflate", 1, None),
            ("strips of 16 rows, deflate", 16, None),
            ("tiles of 64, deflate", 1, Some(64)),
            ("tiles of 256, deflate", 1, Some(256)),
        ] {
            compressed(&path, rows, tile);
            let found = opened(name, &path);
            assert_eq!(
                (&found["shape"], number(&found, "sum")),
                (&shape, all),
                "{name}"
            );
            let blocks = SLICES * tile.map_or(SIDE / rows, |side| (SIDE / side).pow(2));
            assert!(
                number(&found, "list") <= 24 << 20,
                "{name}: {blocks} blocks, {found}"
            );
            // Directories, but no table of more than a million blocks.
            let tables = if blocks > 1 << 20 { 0 } else { 16 * blocks };
            assert!(
                number(&found, "bytes") <= tables + (4 << 20),
                "{name}: {found}"
            );
        }
    }

    /// Returns a page of 4 x 5 bytes.
    fn slice(n: usize) -> Vec<u8> {
        let mut bytes = b"II*\0\x1c\0\0\0".to_vec();
        let value = u8::try_from(n % 200).expect("below 200");
        bytes.extend([value; 20]);
        let entries = [
            (256, 5),
            (257, 4),
            (258, 8),
            (259, 1),
            (262, 1),
            (273, 8),
            (278, 4),
            (279, 20),
        ];
        bytes.extend(8_u16.to_le_bytes());
        for (tag, value) in entries {
            bytes.extend(u16::to_le_bytes(tag));
            bytes.extend([4, 0, 1, 0, 0, 0]);
            bytes.extend(u32::to_le_bytes(value));
        }
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn a_folder_of_many_slices_opens_in_little_memory() {
        let count = if is_long() { 100_000 } else { 2_000 };
        let folder = tempfile::tempdir().expect("a temporary folder");
        for n in 0..count {
            fs::write(folder.path().join(format!("slice{n}.tif")), slice(n))
                .expect("the disk has room");
        }
        let found = opened(&format!("{count} slices of TIFF"), folder.path());
        assert_eq!(found["shape"], json!([count, 4, 5]));
        let middle = count / 2 - 1;
        let sum: usize = (middle..middle + 3).map(|n| 9 * (n % 200)).sum();
        assert_eq!(number(&found, "sum"), sum as u64);
        check_folder(&found, count as u64, 250);
        assert_eq!(number(&found, "chunks"), 3);
    }
}

/// Checks that opening a folder read at most `most` bytes of each file, and that its memory does not grow by more than 1 KiB
/// for each. Measuring the memory reads a little, too.
fn check_folder(found: &Json, files: u64, most: u64) {
    assert!(
        number(found, "bytes") <= files * most + (1 << 20),
        "{found}"
    );
    assert!(
        number(found, "memory") <= files * 1024 + (16 << 20),
        "{found}"
    );
}

mod dicom {
    use super::*;

    /// Returns the header of a slice of `side` x `side` voxels, up to its voxels.
    fn header(n: u32, side: u16) -> Vec<u8> {
        let element = |group: u16, number: u16, kind: &[u8; 2], value: &[u8]| {
            let mut bytes = [group.to_le_bytes(), number.to_le_bytes()].concat();
            bytes.extend(kind);
            bytes.extend(
                u16::try_from(value.len().next_multiple_of(2))
                    .expect("short")
                    .to_le_bytes(),
            );
            bytes.extend(value);
            bytes.extend(vec![if kind == b"UI" { 0 } else { b' ' }; value.len() % 2]);
            bytes
        };
        let word = |number: u16, value: u16| element(0x28, number, b"US", &value.to_le_bytes());
        let text =
            |group: u16, number: u16, text: &str| element(group, number, b"DS", text.as_bytes());
        let bytes = u32::from(side) * u32::from(side) * 2;
        [
            [&[0; 128][..], b"DICM"].concat(),
            element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1"),
            element(
                8,
                0x18,
                b"UI",
                format!("1.2.826.0.1.3680043.8.498.{n}").as_bytes(),
            ),
            element(8, 0x60, b"CS", b"CT"),
            element(0x10, 0x10, b"PN", b"Doe^Jane"),
            element(0x20, 0xe, b"UI", b"1.2.826.0.1.3680043.8.498.1.1"),
            text(0x20, 0x32, &format!("0\\0\\{n}")),
            text(0x20, 0x37, "1\\0\\0\\0\\1\\0"),
            word(2, 1),
            element(0x28, 4, b"CS", b"MONOCHROME2"),
            word(0x10, side),
            word(0x11, side),
            text(0x28, 0x30, "0.5\\0.75"),
            word(0x100, 16),
            word(0x101, 16),
            word(0x102, 15),
            word(0x103, 0),
            [&b"\xe0\x7f\x10\0OW\0\0"[..], &bytes.to_le_bytes()].concat(),
        ]
        .concat()
    }

    #[test]
    fn a_series_of_many_files_opens_by_their_headers() {
        let (count, long) = (2_000, 100_000);
        // Slices of half a MiB, which are holes in their files; then many small ones.
        let mut cases = vec![(count, 512)];
        if is_long() {
            cases.push((long, 4));
        }
        for (count, side) in cases {
            let folder = tempfile::tempdir().expect("a temporary folder");
            for n in 0..count {
                let file =
                    File::create(folder.path().join(n.to_string())).expect("the folder is ours");
                let head = header(n, side);
                file.write_all_at(&head, 0).expect("the disk has room");
                let voxels = u64::from(side) * u64::from(side) * 2;
                file.set_len(head.len() as u64 + voxels)
                    .expect("the disk has room");
            }
            let found = opened(&format!("{count} slices of DICOM"), folder.path());
            assert_eq!(found["shape"], json!([count, side, side]));
            // Of half a MiB, the beginning and the buffer of a header.
            check_folder(&found, u64::from(count), 132 + (16 << 10));
            assert_eq!(number(&found, "chunks"), 3);
        }
    }
}
