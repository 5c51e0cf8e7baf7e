//! What is held in memory for an output whose axes are not parallel to those of the predictions.

use std::collections::HashMap;
use std::ops::Range;

use super::super::blocks::product;
use super::super::onto::Cells;
use super::last_patches;
use crate::grid::Grid;
use crate::region::Shape;
use crate::volume::Layout;

/// The moments from which and to which blocks and write chunks are held, for an output on an oblique grid.
#[derive(Debug)]
pub(super) struct Moments {
    grid: Grid,
    /// The lengths of the blocks along each axis of the predictions.
    lengths: [Vec<u64>; 3],
    /// The last patch that touches each block along each axis of the predictions.
    last: [Vec<usize>; 3],
    /// Bytes per voxel of a block.
    bytes: u64,
    shape: Shape,
    /// The boxes that are written together, and the bytes per voxel.
    unit: Option<(Shape, u64)>,
}

impl Moments {
    pub(super) fn new(
        grid: &Grid,
        cuts: &[Vec<u64>; 3],
        bytes: u64,
        (unit, output): (Option<Shape>, &Layout),
    ) -> Self {
        let written = output.channels * output.dtype.size() as u64;
        let lengths = |cuts: &Vec<u64>| cuts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Self {
            grid: grid.clone(),
            lengths: cuts.each_ref().map(lengths),
            last: std::array::from_fn(|a| last_patches(&grid.axes()[a], &cuts[a])),
            bytes,
            shape: output.shape,
            unit: unit.map(|unit| (unit, written)),
        }
    }

    /// Returns the most bytes that are held at once if only some voxels of the output are written.
    pub(super) fn most_bytes(&self, cells: &Cells, written: &[Range<u64>; 3]) -> u64 {
        let mut blocks: HashMap<[usize; 3], u64> = HashMap::new();
        let mut chunks: HashMap<[u64; 3], (u64, u64)> = HashMap::new();
        for cell in cells.cells_in(written) {
            let needed = cells.needed(cell);
            if needed.iter().any(Range::is_empty) {
                continue;
            }
            let latest = |a: usize| self.last[a][needed[a].clone()].iter().max().copied();
            let moment = self
                .grid
                .number(std::array::from_fn(|a| latest(a).unwrap_or(0)));
            for block in product(needed) {
                let until = blocks.entry(block).or_insert(moment);
                *until = moment.max(*until);
            }
            if let Some((unit, _)) = self.unit {
                let start = cells.region(cell).start.map(i64::unsigned_abs);
                let index = std::array::from_fn(|t| start[t] / unit[t]);
                let (first, last) = chunks.entry(index).or_insert((moment, moment));
                *first = moment.min(*first);
                *last = moment.max(*last);
            }
        }
        // Bytes that are added at a moment, and bytes that are released after one.
        let mut changes: Vec<(u64, bool, u64)> = Vec::new();
        for (block, until) in blocks {
            let lengths = (0..3).map(|a| self.lengths[a][block[a]]);
            let bytes = lengths.fold(self.bytes, u64::saturating_mul);
            let since = self
                .grid
                .number(std::array::from_fn(|a| self.last[a][block[a]]));
            changes.extend([(since, false, bytes), (until, true, bytes)]);
        }
        for (index, (first, last)) in chunks {
            let (unit, bytes) = self.unit.unwrap_or(([0; 3], 0));
            let lengths = (0..3).map(|t| unit[t].min(self.shape[t] - index[t] * unit[t]));
            let bytes = lengths.fold(bytes, u64::saturating_mul);
            changes.extend([(first, false, bytes), (last, true, bytes)]);
        }
        changes.sort_unstable();
        let (mut now, mut most) = (0_u64, 0);
        for (_, is_released, bytes) in changes {
            if is_released {
                now = now.saturating_sub(bytes);
            } else {
                now = now.saturating_add(bytes);
                most = most.max(now);
            }
        }
        most
    }
}
