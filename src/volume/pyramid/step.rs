//! The step from one level to the next: the voxels of each cell, and the planes that neighboring chunks share.

use super::{Level, LevelSource, factors};
use crate::patch::copy_common;
use crate::region::{AXES, Region, Shape};

/// A plane of finer voxels that share cells with voxels of a neighboring chunk. This occurs where chunks have odd
/// lengths.
#[derive(Debug)]
pub(super) struct Face {
    pub(super) axis: usize,
    /// The position of the cells along the axis.
    pub(super) cell: u64,
    pub(super) region: Region,
    pub(super) voxels: Vec<u8>,
}

/// The step from one level to the next.
pub(super) struct Step {
    pub(super) from: Shape,
    pub(super) to: Level,
    pub(super) factors: Shape,
}

impl Step {
    pub(super) fn new(from: Level, to: Level) -> Self {
        Self {
            from: from.shape,
            to,
            factors: factors(from.shape),
        }
    }

    /// Returns the cells that contain voxels of a box.
    pub(super) fn cells(&self, region: Region) -> Region {
        let bounds = |a: usize| {
            let (start, end) = (
                region.start[a].unsigned_abs(),
                region.end()[a].unsigned_abs(),
            );
            (start / self.factors[a], end.div_ceil(self.factors[a]))
        };
        between(std::array::from_fn(bounds))
    }

    /// Returns the voxels from which a box of cells is made.
    pub(super) fn voxels(&self, cells: Region) -> Region {
        let bounds = |a: usize| {
            let (start, end) = (cells.start[a].unsigned_abs(), cells.end()[a].unsigned_abs());
            let factor = self.factors[a];
            (start * factor, (end * factor).min(self.from[a]))
        };
        between(std::array::from_fn(bounds))
    }

    /// Returns the voxels of a box whose cells are entirely inside it; `None` if no cell is.
    pub(super) fn whole_cells(&self, region: Region) -> Option<Region> {
        let bounds = std::array::from_fn(|a| {
            let factor = self.factors[a];
            let (start, end) = (
                region.start[a].unsigned_abs(),
                region.end()[a].unsigned_abs(),
            );
            let end = if end == self.from[a] {
                end
            } else {
                end - end % factor
            };
            (start.next_multiple_of(factor), end)
        });
        let some = bounds.iter().all(|(start, end)| start < end);
        some.then(|| between(bounds))
    }

    /// Returns the planes of `common`, a part of the chunk `region`, that share cells with neighbors. Returns none if
    /// all voxels are 0, because missing data counts as 0 anyway.
    pub(super) fn faces(
        &self,
        common: Region,
        region: Region,
        source: LevelSource<'_>,
        size: usize,
    ) -> Vec<Face> {
        let mut faces = Vec::new();
        let Some(from) = source.voxels else {
            return faces;
        };
        for axis in 0..AXES.len() {
            if self.factors[axis] == 1 {
                continue;
            }
            let (start, end) = (
                region.start[axis].unsigned_abs(),
                region.end()[axis].unsigned_abs(),
            );
            let low = (start % 2 == 1).then_some(start);
            let high = (end % 2 == 1 && end != self.from[axis]).then(|| end - 1);
            for plane in low.into_iter().chain(high) {
                let mut at = region;
                at.start[axis] = signed(plane);
                at.shape[axis] = 1;
                let Some(at) = at.intersection(&common) else {
                    continue;
                };
                let mut voxels = vec![0; length(at.voxels()) * size];
                copy_common((from, source.held), (&mut voxels, at), 1, size);
                faces.push(Face {
                    axis,
                    cell: plane / 2,
                    region: at,
                    voxels,
                });
            }
        }
        faces
    }
}

fn between(bounds: [(u64, u64); 3]) -> Region {
    Region::new(
        bounds.map(|(start, _)| signed(start)),
        bounds.map(|(start, end)| end - start),
    )
}

pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).expect("a voxel of a volume lies below 2^63")
}

pub(super) fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length of something in memory")
}
