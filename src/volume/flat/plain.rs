//! Reading boxes of a flat file by system calls of bounded size, for any axis order.

use std::io;
use std::ops::Range;

use super::strided::Strided;
use crate::patch::copy_common;
use crate::region::Region;
use crate::store::Input;

/// Maximum bytes from the first to the last voxel of a part that is read in one call.
const MOST: u64 = 4 << 20;
/// Spans of up to this many bytes are read in one call, no matter how few of the bytes are wanted.
const FEW: u64 = 64 << 10;
/// Longer spans are read in one call if they have at most this many times the wanted bytes.
const WASTE: u64 = 4;

/// Some channels of a box.
type BoxChannels = (Range<u64>, Region);

/// As [`FEW`], for an object: a request takes as long as some hundred kilobytes.
const FEW_OF_OBJECT: u64 = 256 << 10;
/// The number of parts of an object that are requested ahead.
const AHEAD: usize = 256;

/// Reads a box inside the volume into `out`, row-major, in the file's byte order.
pub(super) fn read(
    input: &Input,
    voxels: &Strided,
    box_: (&Range<u64>, Region),
    out: &mut [u8],
) -> io::Result<()> {
    let Some(object) = input.object() else {
        let mut read = |out: &mut [u8], at: u64| input.read_exact_at(out, at);
        return read_by(&mut read, voxels, box_, out);
    };
    // The parts are the same in the same order, so that each read finds what was requested ahead.
    let mut ahead = parts(voxels, box_, out.len(), FEW_OF_OBJECT);
    for (span, ..) in ahead.by_ref().take(AHEAD) {
        object.prefetch(span);
    }
    let mut read = |out: &mut [u8], at: u64| {
        if let Some((span, ..)) = ahead.next() {
            object.prefetch(span);
        }
        input.read_exact_at(out, at)
    };
    copy_parts(&mut read, voxels, box_, FEW_OF_OBJECT, out)
}

/// As [`read`], with a function that fills a buffer from a given byte on.
pub(super) fn read_by(
    read_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<()>,
    voxels: &Strided,
    (channels, region): (&Range<u64>, Region),
    out: &mut [u8],
) -> io::Result<()> {
    copy_parts(read_at, voxels, (channels, region), FEW, out)
}

/// Reads a box part by part.
fn copy_parts(
    read_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<()>,
    voxels: &Strided,
    (channels, region): (&Range<u64>, Region),
    few: u64,
    out: &mut [u8],
) -> io::Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let all = region.voxels() * (channels.end - channels.start);
    let size = out.len() / length(all);
    let per_channel = length(region.voxels()) * size;
    let (mut bytes, mut part) = (Vec::new(), Vec::new());
    for (span, own, box_) in parts(voxels, (channels, region), out.len(), few) {
        let count = own.end - own.start;
        bytes.resize(length(span.end - span.start), 0);
        part.resize(length(box_.voxels() * count) * size, 0);
        read_at(&mut bytes, span.start)?;
        voxels.copy(&bytes, span.start, &own, box_, &mut part);
        let at = length(own.start - channels.start) * per_channel;
        copy_common((&part, box_), (&mut out[at..], region), count, size);
    }
    Ok(())
}

/// Returns the parts of a box of `bytes` bytes that are each read in one call, with their byte spans. Spans of up to
/// `few` bytes are never split.
fn parts<'a>(
    voxels: &'a Strided,
    (channels, region): (&Range<u64>, Region),
    bytes: usize,
    few: u64,
) -> impl Iterator<Item = (Range<u64>, Range<u64>, Region)> + use<'a> {
    let all = region.voxels() * (channels.end - channels.start);
    let size = (bytes as u64).checked_div(all).unwrap_or(0);
    let mut waiting: Vec<BoxChannels> = Vec::new();
    if all > 0 {
        waiting.push((channels.clone(), region));
    }
    std::iter::from_fn(move || {
        while let Some((own, box_)) = waiting.pop() {
            let span = voxels.span(&own, box_);
            let wanted = box_.voxels() * (own.end - own.start) * size;
            let spanned = span.end - span.start;
            let fits = spanned <= few || (spanned <= MOST && spanned / WASTE <= wanted);
            if !fits && let Some(halves) = halves(voxels, (&own, box_)) {
                waiting.extend(halves);
                continue;
            }
            return Some((span, own, box_));
        }
        None
    })
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
