//! Rebuilding the chunks of a level from data that is read back.

use std::ops::Range;

use super::halve::halve;
use super::step::{Step, length, signed};
use super::{Downsample, Level};
use crate::dtype::DType;
use crate::error::Result;
use crate::region::{Region, chunk_range, chunk_region};

/// Returns the ranges of chunks of level `from` from which chunk `index` of the next level, `to`, is made.
pub(in super::super) fn inputs(from: Level, to: Level, index: [u64; 3]) -> [Range<u64>; 3] {
    let step = Step::new(from, to);
    let cells = chunk_region(index, to.chunk).intersection(&Region::whole(to.shape));
    cells.map_or([0..0, 0..0, 0..0], |cells| {
        chunk_range(&step.voxels(cells), from.chunk)
    })
}

/// Computes the box `region` of a level from the level before it, which `read` reads.
pub(in super::super) fn rebuilt(
    method: Downsample,
    dtype: DType,
    (from, to): (Level, Level),
    region: Region,
    read: &dyn Fn(Region) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let step = Step::new(from, to);
    let mut voxels = Vec::with_capacity(length(region.voxels()) * dtype.size());
    let end = region.end()[0];
    let mut layer = region;
    while layer.start[0] < end {
        let left = (end - layer.start[0]).unsigned_abs();
        layer.shape[0] = PLANES.min(left);
        let slab = step.voxels(layer);
        let source = read(slab)?;
        voxels.extend(halve(method, dtype, (&source, slab), slab, step.factors));
        layer.start[0] += signed(layer.shape[0]);
    }
    Ok(voxels)
}

/// Planes of a chunk that are rebuilt at once.
pub(super) const PLANES: u64 = 16;
