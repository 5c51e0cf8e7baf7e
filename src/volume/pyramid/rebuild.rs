//! Rebuilding the chunks of a level from data that is read back.

use std::ops::Range;

use super::halve::halve;
use super::step::{Step, length};
use super::{Downsample, Level};
use crate::dtype::DType;
use crate::error::Result;
use crate::patch::copy_common;
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};
use crate::volume::Layout;

/// Returns the ranges of chunks of level `from` from which chunk `index` of the next level, `to`, is made.
pub(in super::super) fn inputs(from: Level, to: Level, index: [u64; 3]) -> [Range<u64>; 3] {
    let step = Step::new(from, to);
    let cells = chunk_region(index, to.chunk).intersection(&Region::whole(to.shape));
    cells.map_or([0..0, 0..0, 0..0], |cells| {
        chunk_range(&step.voxels(cells), from.chunk)
    })
}

/// One channel of a level that is read back.
pub(in super::super) trait Finer {
    /// Announces the box that is read after the next one.
    fn announce(&self, region: Region);

    /// Reads a box.
    fn read(&self, region: Region) -> Result<Vec<u8>>;
}

/// Computes the box `region` of a level from the level before it, `cells` voxels (z, y, x) at a time.
pub(in super::super) fn rebuilt(
    method: Downsample,
    dtype: DType,
    (from, to): (Level, Level),
    (region, cells): (Region, Shape),
    finer: &dyn Finer,
) -> Result<Vec<u8>> {
    let step = Step::new(from, to);
    let size = dtype.size();
    let mut voxels = vec![0; length(region.voxels()) * size];
    let counts = std::array::from_fn(|a| 0..region.shape[a].div_ceil(cells[a].max(1)));
    let at = |index: Shape| {
        let start =
            std::array::from_fn(|a| region.start[a].saturating_add_unsigned(index[a] * cells[a]));
        let part = Region::new(start, cells).intersection(&region);
        part.expect("it starts inside")
    };
    let mut parts = indices(counts).map(at).peekable();
    while let Some(part) = parts.next() {
        if let Some(next) = parts.peek() {
            finer.announce(step.voxels(*next));
        }
        let source = step.voxels(part);
        let read = finer.read(source)?;
        let halved = halve(method, dtype, (&read, source), source, step.factors);
        copy_common((&halved, part), (&mut voxels, region), 1, size);
    }
    Ok(voxels)
}

/// Returns the voxels (z, y, x) of a coarser level that are rebuilt at once: along z and y those of whole read chunks of
/// the finer level, so that each is decoded once, and along x all of a write chunk.
pub(in super::super) fn rebuilt_at_once(layout: &Layout) -> Shape {
    let (Some([_, whole @ ..]), Some([_, inner @ ..])) = (layout.write_chunk, layout.read_chunk)
    else {
        return [1; 3];
    };
    let [z, y, _] = std::array::from_fn(|a| {
        let half = (inner[a] / 2).max(1);
        (FEWEST / half).max(1).saturating_mul(half).min(whole[a])
    });
    [z, y, whole[2]]
}

/// Planes and rows that are rebuilt at once, at least.
const FEWEST: u64 = 16;
