//! The blocks into which an output is cut: boxes whose voxels all have the same patches.

use std::ops::Range;

use crate::grid::{Axis, Grid};
use crate::region::Region;

/// The minimum length of a block. Shorter ones are merged with their neighbors, because bookkeeping would cost more
/// than their voxels.
const MIN_BLOCK_LENGTH: u64 = 16;

/// The blocks of a grid's output, and the patches that touch each.
#[derive(Debug)]
pub(super) struct Blocks {
    grid: Grid,
    cuts: Cuts,
    /// A bit set of the blocks to write; `None` for all.
    wanted: Option<Vec<u64>>,
}

/// The boundaries of blocks along each axis, from 0 to the length.
#[derive(Clone, Debug)]
pub(super) struct Cuts([Vec<u64>; 3]);

impl Blocks {
    /// Cuts the output of a grid. `wanted` selects the blocks to write; `None` for all.
    pub(super) fn new(grid: &Grid, wanted: Option<&dyn Fn(&Region) -> bool>) -> Self {
        let cuts = Cuts::new(grid);
        let bits = |wanted: &dyn Fn(&Region) -> bool| {
            let mut bits = vec![0_u64; cuts.count().div_ceil(64)];
            for (n, index) in cuts.indices().enumerate() {
                bits[n / 64] |= u64::from(wanted(&cuts.region(index))) << (n % 64);
            }
            bits
        };
        Self {
            grid: grid.clone(),
            wanted: wanted.map(bits),
            cuts,
        }
    }

    pub(super) const fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Returns the region of a block.
    pub(super) fn region(&self, index: [usize; 3]) -> Region {
        self.cuts.region(index)
    }

    /// Returns a block's row-major number.
    pub(super) fn number(&self, index: [usize; 3]) -> usize {
        self.cuts.number(index)
    }

    /// Returns the blocks to write that no patch touches.
    pub(super) fn untouched(&self) -> impl Iterator<Item = Region> + '_ {
        let all_covered = (0..3).all(|a| {
            let axis = &self.grid.axes()[a];
            axis.covered() == (0..axis.length)
        });
        let some = (!all_covered)
            .then(|| self.cuts.indices())
            .into_iter()
            .flatten();
        some.filter(|&index| self.is_wanted(index))
            .map(|index| self.cuts.region(index))
            .filter(|region| self.turns(region).iter().any(Range::is_empty))
    }

    /// Returns `true` if a block will be written.
    pub(super) fn is_wanted(&self, index: [usize; 3]) -> bool {
        let bit = self.cuts.number(index);
        let set = |bits: &Vec<u64>| bits[bit / 64] & (1 << (bit % 64)) != 0;
        self.wanted.as_ref().is_none_or(set)
    }

    /// Returns `true` if the patch at `place` touches any block to write.
    pub(super) fn needs(&self, place: [usize; 3]) -> bool {
        self.wanted.is_none() || self.touched(place).any(|index| self.is_wanted(index))
    }

    /// Returns the blocks that the patch at `place` touches.
    pub(super) fn touched(&self, place: [usize; 3]) -> impl Iterator<Item = [usize; 3]> + use<> {
        let ranges: [Range<usize>; 3] = std::array::from_fn(|a| {
            let inside = self.grid.axes()[a].inside(place[a]);
            let cuts = &self.cuts.0[a];
            let first = cuts.partition_point(|&cut| cut <= inside.start) - 1;
            first..cuts.partition_point(|&cut| cut < inside.end).max(first)
        });
        product(ranges)
    }

    /// Returns the patches that touch a block, along each axis.
    pub(super) fn turns(&self, region: &Region) -> [Range<usize>; 3] {
        let end = region.end();
        std::array::from_fn(|a| {
            self.grid.axes()[a].touching(region.start[a].unsigned_abs(), end[a].unsigned_abs())
        })
    }

    /// Returns the number of a block's patches before the one at `place`, in the grid's order.
    pub(super) fn turn(&self, turns: &[Range<usize>; 3], place: [usize; 3]) -> usize {
        usize::try_from(self.grid.number_within(turns, place)).unwrap_or(usize::MAX)
    }

    /// Returns `true` if patches cover all voxels of a block.
    pub(super) fn is_covered(&self, block: &Region) -> bool {
        (0..3).all(|a| {
            let covered = self.grid.axes()[a].covered();
            let from = block.start[a].unsigned_abs();
            covered.start <= from && from + block.shape[a] <= covered.end
        })
    }

    /// Returns the intersection of a block and the patch at `place`.
    pub(super) fn common(&self, block: &Region, place: [usize; 3]) -> Intersection {
        Intersection::new(&self.grid, block, place)
    }

    /// Returns the flags of a block's voxels that no patch that voted covers; empty if there are none. Calls `then` for
    /// each row of each patch with the patch's place, the row's first voxel in the patch, its offset in the block, and
    /// its length.
    pub(super) fn holes(
        &self,
        block: &Region,
        voted: &[[usize; 3]],
        mut then: impl FnMut([usize; 3], [usize; 3], usize, usize),
    ) -> Vec<bool> {
        let shape = block.shape.map(length);
        let mut holes = vec![true; shape.iter().product()];
        for &place in voted {
            let common = self.common(block, place);
            let length = common.shape[2];
            common.each_row(shape, |row, target| {
                holes[target..target + length].fill(false);
                then(place, row, target, length);
            });
        }
        if !holes.contains(&true) {
            holes.clear();
        }
        holes
    }
}

/// The intersection of a block and a patch: its start in the block and in the patch (z, y, x), and its shape.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intersection {
    pub(super) to: [usize; 3],
    pub(super) from: [usize; 3],
    pub(super) shape: [usize; 3],
}

impl Intersection {
    /// Intersects a box of a grid's output and the patch at `place`.
    pub(super) fn new(grid: &Grid, block: &Region, place: [usize; 3]) -> Self {
        let start = |a: usize| grid.axes()[a].starts[place[a]];
        let patch = Region::new([start(0), start(1), start(2)], grid.patch());
        let common = block
            .intersection(&patch)
            .unwrap_or(Region::new(block.start, [0; 3]));
        let inside = |of: [i64; 3]| {
            common
                .relative_to(of)
                .start
                .map(|n| usize::try_from(n).unwrap_or(0))
        };
        Self {
            to: inside(block.start),
            from: inside(patch.start),
            shape: common.shape.map(length),
        }
    }

    /// Returns the common box of the volume, given the block.
    pub(super) fn region(&self, block: &Region) -> Region {
        let start = |a: usize| block.start[a].saturating_add_unsigned(self.to[a] as u64);
        Region::new(
            std::array::from_fn(start),
            self.shape.map(|length| length as u64),
        )
    }

    /// Calls `then` for each row with its first voxel in the patch, and its offset in the buffer of a block of `shape`.
    pub(super) fn each_row(&self, shape: [usize; 3], mut then: impl FnMut([usize; 3], usize)) {
        for z in 0..self.shape[0] {
            for y in 0..self.shape[1] {
                let row = [self.from[0] + z, self.from[1] + y, self.from[2]];
                then(row, at(shape, [self.to[0] + z, self.to[1] + y, self.to[2]]));
            }
        }
    }
}

impl Cuts {
    pub(super) fn new(grid: &Grid) -> Self {
        Self(std::array::from_fn(|a| cuts(&grid.axes()[a])))
    }

    /// Returns the boundaries along an axis, in increasing order.
    pub(super) fn along(&self, axis: usize) -> &[u64] {
        &self.0[axis]
    }

    /// Returns the indices of all blocks, the last axis fastest.
    fn indices(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        product(std::array::from_fn(|a| 0..self.0[a].len() - 1))
    }

    pub(super) fn count(&self) -> usize {
        let counts = self.0.iter().map(|cuts| cuts.len() - 1);
        counts.fold(1, usize::saturating_mul)
    }

    /// Returns a block's row-major number.
    fn number(&self, index: [usize; 3]) -> usize {
        (0..3).fold(0, |number, a| number * (self.0[a].len() - 1) + index[a])
    }

    /// Returns the blocks along an axis that have some of these voxels.
    pub(super) fn overlapping(&self, axis: usize, voxels: &Range<u64>) -> Range<usize> {
        let cuts = &self.0[axis];
        let first = cuts.partition_point(|&cut| cut <= voxels.start).max(1) - 1;
        let end = cuts
            .partition_point(|&cut| cut < voxels.end)
            .min(cuts.len() - 1);
        first..end.max(first)
    }

    pub(super) fn region(&self, index: [usize; 3]) -> Region {
        let start = |a: usize| i64::try_from(self.0[a][index[a]]).unwrap_or(i64::MAX);
        let length = |a: usize| self.0[a][index[a] + 1] - self.0[a][index[a]];
        Region::new(std::array::from_fn(start), std::array::from_fn(length))
    }
}

/// Returns the boundaries of blocks along an axis: the starts and ends of patches, except where blocks would be too
/// short.
fn cuts(axis: &Axis) -> Vec<u64> {
    let ends = |place| {
        let Range { start, end } = axis.inside(place);
        [start, end]
    };
    let mut all: Vec<u64> = (0..axis.starts.len()).flat_map(ends).collect();
    all.sort_unstable();
    let mut cuts = vec![0];
    for cut in all {
        let last = cuts.last().copied().unwrap_or(0);
        if cut >= last + MIN_BLOCK_LENGTH && cut + MIN_BLOCK_LENGTH <= axis.length {
            cuts.push(cut);
        }
    }
    cuts.push(axis.length);
    cuts
}

pub(super) fn product(ranges: [Range<usize>; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [z, y, x] = ranges;
    z.flat_map(move |z| {
        let x = x.clone();
        y.clone()
            .flat_map(move |y| x.clone().map(move |x| [z, y, x]))
    })
}

/// Returns the offset of a voxel in the buffer of a box of `shape`.
pub(super) const fn at([_, ny, nx]: [usize; 3], [z, y, x]: [usize; 3]) -> usize {
    (z * ny + y) * nx + x
}

pub(super) fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length inside a patch in memory")
}
