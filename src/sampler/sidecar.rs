//! Block-sum indexes saved in files.
//!
//! The file records its kind, channel, block shape, and the stamp of the volume's files. It is
//! used only if all of these match, its checksum is right, and every number in it is possible;
//! otherwise the index is rebuilt. Writers write a temporary file and rename it.
//!
//! Little-endian: magic `VOXBLOCK`, version u32, CRC-32 u32 of all that follows, then purpose (its
//! length u64, its bytes), stamp u128, and the sums.

use std::fs;
use std::io::Read;
use std::path::Path;

use flate2::Crc;

use super::blocks::Blocks;
use super::index::BlockIndex;
use super::stamp::stamp;
use super::sums::{BlockStats, take_u64};
use crate::error::{Error, Result};
use crate::files::{open_regular, read_up_to, write_all_at};
use crate::region::Region;
use crate::volume::{FileKind, Overwrite, StagedFile, Volume};

const MAGIC: [u8; 8] = *b"VOXBLOCK";
const VERSION: u32 = 1;
const FORMAT: &str = "block index";
/// The largest file that is read, in bytes: the most pairs of an index, and their labels.
const LARGEST: u64 = 2 << 30;

/// Returns the description of an index without its volume: kind, channel and shapes.
fn purpose<T: BlockStats>(channel: u64, blocks: &Blocks) -> Vec<u8> {
    let mut purpose = vec![T::KIND];
    let numbers = [channel]
        .into_iter()
        .chain(blocks.volume)
        .chain(blocks.block);
    numbers.for_each(|number| purpose.extend(number.to_le_bytes()));
    purpose
}

/// Returns the present stamp of an index of this volume; `None` if the volume has no stamp. See [`stamp`].
pub(super) fn stamp_of<T: BlockStats>(
    volume: &dyn Volume,
    channel: u64,
    blocks: &Blocks,
    settle: bool,
) -> Result<Option<u128>> {
    stamp(volume, &purpose::<T>(channel, blocks), settle)
}

/// The file kind of saved indexes, of any volume.
pub const INDEX: FileKind = FileKind {
    name: "a saved index",
    recognizes: |head| head.starts_with(&MAGIC),
};

/// Returns `true` if a file begins like a saved [`BlockIndex`] of any volume.
#[must_use]
pub fn is_index_file(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    let mut magic = [0; MAGIC.len()];
    let opened = open_regular(path);
    opened.is_ok_and(|mut file| file.read_exact(&mut magic).is_ok() && magic == MAGIC)
}

/// Reads an index that [`write`] wrote, if it is of this volume.
pub(super) fn read<T: BlockStats>(
    path: &Path,
    channel: u64,
    blocks: &Blocks,
    stamp: Option<u128>,
) -> Result<T> {
    let bad = |problem: &str| Error::header(path, FORMAT, problem);
    let bytes = read_up_to(path, LARGEST + 1)?;
    let rest = bytes
        .strip_prefix(&MAGIC)
        .ok_or_else(|| bad("it does not begin with VOXBLOCK"))?;
    let (version, rest) = take_u32(rest).ok_or_else(|| bad("it is truncated"))?;
    if version != VERSION {
        return Err(bad("it has a different version"));
    }
    let (sum, mut rest) = take_u32(rest).ok_or_else(|| bad("it is truncated"))?;
    if sum != checksum(rest) {
        return Err(bad("it is truncated or changed: its checksum is wrong"));
    }
    let purpose = purpose::<T>(channel, blocks);
    let same = take_u64(&mut rest) == Some(purpose.len() as u64);
    let (Some(rest), true) = (rest.strip_prefix(&purpose[..]), same) else {
        return Err(bad("it has a different kind, channel or shape"));
    };
    match rest.split_first_chunk() {
        Some((stored, sums)) if stamp.is_some_and(|now| u128::from_le_bytes(*stored) == now) => {
            let voxels = Region::whole(blocks.block).voxels();
            T::decode(sums, blocks.count(), voxels)
                .ok_or_else(|| bad("it contains numbers that are not valid in an index"))
        }
        _ => Err(bad("the volume has changed, or is a different one")),
    }
}

/// Writes an index to a temporary file, and renames it when it is complete.
pub(super) fn write<T: BlockStats>(path: &Path, index: &BlockIndex<T>) -> Result<()> {
    let Some(stamp) = index.stamp else {
        return Err(Error::unsupported(
            &index.layout.path,
            "its index cannot be saved: the volume has no identity that the index could be checked against",
        ));
    };
    refuse_inside(path, &index.layout.path)?;
    let purpose = purpose::<T>(index.channel, &index.blocks);
    let mut body = Vec::new();
    body.extend((purpose.len() as u64).to_le_bytes());
    body.extend(purpose);
    body.extend(stamp.to_le_bytes());
    index.tally.encode(&mut body);
    let staged = StagedFile::new(path, Overwrite::File(INDEX))?;
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend(checksum(&body).to_le_bytes());
    let file = staged.file();
    write_all_at(file, &head, 0)
        .and_then(|()| write_all_at(file, &body, head.len() as u64))
        .map_err(Error::io("write", path))?;
    staged.finish()
}

/// Refuses a path inside the volume's folder, where the file would change the stamp, and the volume's own path.
fn refuse_inside(path: &Path, volume: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (Ok(parent), Ok(inside)) = (fs::canonicalize(parent), fs::canonicalize(volume)) else {
        return Ok(());
    };
    let target = path.file_name().map(|name| parent.join(name));
    if target.is_some_and(|target| target.starts_with(inside)) {
        return Err(Error::OutputIsInput {
            output: path.to_path_buf(),
            input: volume.to_path_buf(),
        });
    }
    Ok(())
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (first, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*first), rest))
}
