//! Reading boxes of a flat file by system calls of bounded size, for any axis order.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::strided::Strided;
use crate::patch::copy_common;
use crate::region::Region;

/// Maximum bytes from the first to the last voxel of a part that is read in one call.
const MOST: u64 = 4 << 20;
/// Spans of up to this many bytes are read in one call, no matter how few of the bytes are wanted.
const FEW: u64 = 64 << 10;
/// Longer spans are read in one call if they have at most this many times the wanted bytes.
const WASTE: u64 = 4;

/// Some channels of a box.
type BoxChannels = (Range<u64>, Region);

/// Reads a box inside the volume into `out`, row-major, in the file's byte order.
pub(super) fn read(
    file: &File,
    voxels: &Strided,
    box_: (&Range<u64>, Region),
    out: &mut [u8],
) -> io::Result<()> {
    let mut read = |out: &mut [u8], at: u64| file.read_exact_at(out, at);
    read_by(&mut read, voxels, box_, out)
}

/// As [`read`], with a function that fills a buffer from a given byte on.
pub(super) fn read_by(
    read_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<()>,
    voxels: &Strided,
    (channels, region): (&Range<u64>, Region),
    out: &mut [u8],
) -> io::Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let all = region.voxels() * (channels.end - channels.start);
    let size = out.len() / length(all);
    let per_channel = length(region.voxels()) * size;
    let (mut bytes, mut part) = (Vec::new(), Vec::new());
    let mut waiting: Vec<BoxChannels> = vec![(channels.clone(), region)];
    while let Some((own, box_)) = waiting.pop() {
        let span = voxels.span(&own, box_);
        let count = own.end - own.start;
        let wanted = box_.voxels() * count * size as u64;
        let spanned = span.end - span.start;
        let fits = spanned <= FEW || (spanned <= MOST && spanned / WASTE <= wanted);
        if !fits && let Some(halves) = halves(voxels, (&own, box_)) {
            waiting.extend(halves);
            continue;
        }
        bytes.resize(length(spanned), 0);
        part.resize(length(wanted), 0);
        read_at(&mut bytes, span.start)?;
        voxels.copy(&bytes, span.start, &own, box_, &mut part);
        let at = length(own.start - channels.start) * per_channel;
        copy_common((&part, box_), (&mut out[at..], region), count, size);
    }
    Ok(())
}

/// Splits a part in two along the axis that gives the shortest byte spans. Returns `None` for a single voxel.
fn halves(voxels: &Strided, (channels, region): (&Range<u64>, Region)) -> Option<[BoxChannels; 2]> {
    let mut cuts: Vec<[BoxChannels; 2]> = Vec::new();
    let count = channels.end - channels.start;
    if count > 1 {
        let middle = channels.start + count / 2;
        let (low, high) = (channels.start..middle, middle..channels.end);
        cuts.push([(low, region), (high, region)]);
    }
    for (axis, &n) in region.shape.iter().enumerate().filter(|&(_, &n)| n > 1) {
        let (mut low, mut high) = (region, region);
        low.shape[axis] = n / 2;
        high.shape[axis] = n - n / 2;
        high.start[axis] += (n / 2).cast_signed();
        cuts.push([(channels.clone(), low), (channels.clone(), high)]);
    }
    cuts.into_iter().min_by_key(|[_, (own, box_)]| {
        let span = voxels.span(own, *box_);
        span.end - span.start
    })
}

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length inside a buffer in memory")
}
