//! Where patches lie when they cover a volume: geometry, and nothing else.
//!
//! A grid is the product of three lists of starts. Everything about it follows from those,
//! so its memory and the time to plan it grow with the sum of the axes, not with their
//! product. Patches are numbered in the grid's order, the slowest axis first.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::region::{AXES, Region, Shape};

/// Patches of one size that cover a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    axes: [Axis; 3],
    /// Axes from the slowest to the fastest.
    order: [usize; 3],
}

/// The starts of a grid along one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Voxels of the volume.
    pub length: u64,
    /// Voxels of a patch.
    pub patch: u64,
    /// First voxels of the patches, increasing.
    pub starts: Vec<u64>,
}

impl Axis {
    /// Starts at 0, S, 2S, ... while they fit, and one at the far edge if that is not among
    /// them, where S = patch - overlap (`TorchIO`'s and MONAI's placement).
    fn edge(length: u64, patch: u64, overlap: u64) -> Self {
        let last = length - patch;
        let step = patch - overlap;
        let mut starts: Vec<u64> = (0..=last / step).map(|i| i * step).collect();
        if starts.last() != Some(&last) {
            starts.push(last);
        }
        Self {
            length,
            patch,
            starts,
        }
    }

    /// Which patches hold any voxel of `from..to`.
    #[must_use]
    pub fn touching(&self, from: u64, to: u64) -> Range<usize> {
        let first = self
            .starts
            .partition_point(|&start| start + self.patch <= from);
        let end = self.starts.partition_point(|&start| start < to);
        first..end.max(first)
    }

    /// The largest distance between two starts that follow each other; the patch if there is one start.
    #[must_use]
    pub fn widest_step(&self) -> u64 {
        self.widest(|gap| gap)
    }

    /// The largest that `of` makes of any gap between two starts.
    fn widest(&self, of: impl Fn(u64) -> u64) -> u64 {
        let gaps = self.starts.windows(2).map(|pair| of(pair[1] - pair[0]));
        gaps.max().unwrap_or_else(|| of(self.patch))
    }
}

impl Grid {
    /// Patches that overlap by `overlap` voxels, the last of each axis moved to the edge.
    /// The axis whose sweep keeps the fewest voxels waiting is the slowest.
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`] if a patch is empty or does not fit, [`Error::Overlap`] if the
    /// overlap leaves no step.
    pub fn new(volume: Shape, patch: Shape, overlap: Shape) -> Result<Self> {
        check_patch(volume, patch)?;
        for a in 0..3 {
            if overlap[a] >= patch[a] {
                return Err(Error::Overlap {
                    axis: AXES[a],
                    overlap: overlap[a],
                    patch: patch[a],
                });
            }
        }
        let axes = std::array::from_fn(|a| Axis::edge(volume[a], patch[a], overlap[a]));
        let grid = Self {
            axes,
            order: [0, 1, 2],
        };
        let orders = [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ];
        let best = orders
            .into_iter()
            .min_by_key(|&order| grid.clone().ordered(order).frontier());
        Ok(grid.ordered(best.unwrap_or([0, 1, 2])))
    }

    fn ordered(mut self, order: [usize; 3]) -> Self {
        self.order = order;
        self
    }

    /// The axes, z, y, x.
    #[must_use]
    pub const fn axes(&self) -> &[Axis; 3] {
        &self.axes
    }

    /// Axes from the slowest to the fastest.
    #[must_use]
    pub const fn order(&self) -> [usize; 3] {
        self.order
    }

    /// The volume that is covered, z, y, x.
    #[must_use]
    pub fn volume(&self) -> Shape {
        std::array::from_fn(|a| self.axes[a].length)
    }

    /// Voxels of a patch, z, y, x.
    #[must_use]
    pub fn patch(&self) -> Shape {
        std::array::from_fn(|a| self.axes[a].patch)
    }

    /// How many patches there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.axes
            .iter()
            .map(|axis| axis.starts.len() as u64)
            .product()
    }

    /// Whether there are none; a grid always has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where patch `index` lies along each axis, or `None` if there is no such patch.
    #[must_use]
    pub fn place(&self, index: u64) -> Option<[usize; 3]> {
        let mut rest = index;
        let mut place = [0; 3];
        for &a in self.order.iter().rev() {
            let count = self.axes[a].starts.len();
            place[a] = usize::try_from(rest % count as u64).ok()?;
            rest /= count as u64;
        }
        (rest == 0).then_some(place)
    }

    /// Patch `index` in the grid's order.
    #[must_use]
    pub fn get(&self, index: u64) -> Option<Region> {
        let place = self.place(index)?;
        let start = |a: usize| i64::try_from(self.axes[a].starts[place[a]]).unwrap_or(i64::MAX);
        Some(Region::new(std::array::from_fn(start), self.patch()))
    }

    /// All patches in order.
    pub fn iter(&self) -> impl Iterator<Item = Region> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The most voxels that any moment of a sweep in order leaves unfinished: touched by a
    /// patch that was, and by one that is still to come.
    ///
    /// With patches P, gaps between starts G and lengths N, slowest axis first, that is the
    /// largest (P0-G0) N1 N2 + G0 ((P1-G1) N2 + G1 P2) over the gaps of the two slower axes.
    #[must_use]
    pub fn frontier(&self) -> u64 {
        let [a, b, c] = self.order.map(|axis| &self.axes[axis]);
        let row = b.widest(|gap| {
            let lines = (b.patch - gap).saturating_mul(c.length);
            lines.saturating_add(gap.saturating_mul(c.patch))
        });
        let layer = b.length.saturating_mul(c.length);
        a.widest(|gap| {
            let layers = (a.patch - gap).saturating_mul(layer);
            layers.saturating_add(gap.saturating_mul(row))
        })
    }
}

/// Checks that a patch has voxels and fits into a volume.
///
/// # Errors
///
/// [`Error::PatchSize`], naming the first axis where it does not.
pub fn check_patch(volume: Shape, patch: Shape) -> Result<()> {
    for a in 0..3 {
        if patch[a] == 0 || patch[a] > volume[a] {
            return Err(Error::PatchSize {
                axis: AXES[a],
                patch: patch[a],
                volume: volume[a],
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(length: u64, patch: u64, overlap: u64) -> Vec<u64> {
        let grid = Grid::new([length; 3], [patch; 3], [overlap; 3]).unwrap();
        grid.axes()[0].starts.clone()
    }

    #[test]
    fn the_last_patch_is_moved_to_the_edge() {
        assert_eq!(starts(10, 5, 2), [0, 3, 5]);
        assert_eq!(starts(11, 5, 2), [0, 3, 6]);
        assert_eq!(starts(5, 5, 2), [0]);
        assert_eq!(starts(1069, 128, 64).len(), 16);
        assert_eq!(starts(320, 102, 4), [0, 98, 196, 218]);
    }

    #[test]
    fn torchio_s_own_example_has_six_locations() {
        let grid = Grid::new([10, 20, 30], [5, 20, 20], [2, 4, 6]).unwrap();
        assert_eq!(grid.len(), 6);
        let mut starts: Vec<_> = grid.iter().map(|region| region.start).collect();
        starts.sort_unstable();
        assert_eq!(
            starts,
            [
                [0, 0, 0],
                [0, 0, 10],
                [3, 0, 0],
                [3, 0, 10],
                [5, 0, 0],
                [5, 0, 10]
            ]
        );
    }

    #[test]
    fn the_longest_axis_is_the_slowest() {
        let grid = Grid::new([512, 512, 1069], [128; 3], [64; 3]).unwrap();
        assert_eq!(grid.order()[0], 2);
        assert_eq!(grid.get(1).unwrap().start[2], 0, "the slow axis moves last");
        let scan = Grid::new([1069, 512, 512], [128; 3], [64; 3]).unwrap();
        assert_eq!((scan.order(), scan.len()), ([0, 1, 2], 784));
        assert_eq!((scan.frontier() * 4) >> 20, 90);
    }

    #[test]
    fn patches_that_do_not_fit_are_named() {
        let error = Grid::new([9, 4, 9], [5; 3], [0; 3]).unwrap_err();
        assert!(matches!(
            error,
            Error::PatchSize {
                axis: 'y',
                patch: 5,
                volume: 4
            }
        ));
        assert!(matches!(
            Grid::new([9; 3], [5, 0, 5], [0; 3]),
            Err(Error::PatchSize { axis: 'y', .. })
        ));
        assert!(matches!(
            Grid::new([9; 3], [5; 3], [0, 0, 5]),
            Err(Error::Overlap { axis: 'x', .. })
        ));
    }

    #[test]
    fn touching_agrees_with_looking_at_every_patch() {
        for (length, patch, overlap) in [(10, 5, 2), (97, 16, 5), (30, 7, 6), (12, 12, 3)] {
            let axis = Axis::edge(length, patch, overlap);
            for from in 0..length {
                for to in from + 1..=length {
                    let touches = |&i: &usize| axis.starts[i] < to && axis.starts[i] + patch > from;
                    let all: Vec<usize> = (0..axis.starts.len()).filter(touches).collect();
                    assert_eq!(axis.touching(from, to).collect::<Vec<_>>(), all);
                }
            }
        }
    }

    #[test]
    fn a_quarter_of_a_million_patches_are_planned_at_once() {
        let began = std::time::Instant::now();
        let grid = Grid::new([4096; 3], [128; 3], [64; 3]).unwrap();
        assert_eq!(grid.len(), 63_u64.pow(3));
        assert!(grid.get(grid.len() - 1).is_some() && grid.get(grid.len()).is_none());
        assert!(began.elapsed().as_secs() < 1);
    }
}
