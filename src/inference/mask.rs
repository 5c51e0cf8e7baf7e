//! Masks: which patches of a grid hold any foreground.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::iter::{ParallelBridge, ParallelIterator};

use crate::dtype::{Element, with_element};
use crate::error::Result;
use crate::grid::Grid;
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};
use crate::threads::{pool, threads};
use crate::volume::{Volume, VolumeExt};

/// Some of a grid's patches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// A bit for each patch, in the grid's order.
    bits: Vec<u64>,
    count: u64,
    /// Bytes that it took to make it, at most.
    reading_bytes: u64,
}

/// Bytes of a mask that are read at a time by a thread, about.
const PIECE: u64 = 4 << 20;

impl Selection {
    /// Those patches for which `keep` says so.
    #[must_use]
    pub fn new(grid: &Grid, keep: impl Fn(u64, Region) -> bool) -> Self {
        let mut selection = Self {
            bits: Vec::new(),
            count: 0,
            reading_bytes: 0,
        };
        for (index, region) in (0..).zip(grid.iter()) {
            if index % 64 == 0 {
                selection.bits.push(0);
            }
            if keep(index, region)
                && let Some(bits) = selection.bits.last_mut()
            {
                *bits |= 1 << (index % 64);
                selection.count += 1;
            }
        }
        selection
    }

    /// Those patches that hold any part of a voxel of `mask` that is not 0, in any channel.
    ///
    /// The mask covers the same space as the grid's volume in voxels of any size: along an axis of
    /// `N` voxels of which it has `M`, its voxel `m` covers `m N / M` to `(m + 1) N / M`. It is
    /// read once, in pieces.
    ///
    /// # Errors
    ///
    /// Those of reading the mask; [`Error::Changed`](crate::Error::Changed) if it is written to
    /// during that.
    pub fn from_mask(grid: &Grid, mask: &dyn Volume) -> Result<Self> {
        Self::from_mask_within(grid, mask, threads(), 256 << 20)
    }

    /// As [`from_mask`](Self::from_mask), on up to `threads` threads, as many as `memory` bytes are enough
    /// for; one reads in any case.
    ///
    /// # Errors
    ///
    /// Those of reading the mask.
    pub fn from_mask_within(
        grid: &Grid,
        mask: &dyn Volume,
        threads: usize,
        memory: u64,
    ) -> Result<Self> {
        let layout = mask.layout();
        let cells = Cells::new(grid, layout.shape);
        let pieces = pieces(mask);
        let each = bytes_of(mask, pieces).saturating_add(chunk_bytes(mask).saturating_mul(2));
        let kept = cells.bytes().saturating_add(grid.len() / 8);
        let fitting = memory.saturating_sub(kept) / each.max(1);
        let threads = threads.min(usize::try_from(fitting).unwrap_or(usize::MAX));
        let all = indices(chunk_range(&Region::whole(layout.shape), pieces));
        let mark = |index| cells.mark(mask, chunk_region(index, pieces));
        let pool = pool(threads, "mask", &layout.path)?;
        pool.install(|| all.par_bridge().try_for_each(mark))?;
        mask.check_unchanged()?;
        let mut selection = Self::new(grid, |index, _| {
            grid.place(index).is_some_and(|place| cells.any(place))
        });
        let reading = each.saturating_mul(threads.max(1) as u64);
        selection.reading_bytes = kept.saturating_add(reading);
        Ok(selection)
    }

    /// Bytes that it took to make it, at most.
    pub(super) const fn reading_bytes(&self) -> u64 {
        self.reading_bytes
    }

    /// Whether patch `index` is among them.
    #[must_use]
    pub fn contains(&self, index: u64) -> bool {
        let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
        let set = |bits: &u64| bits & (1 << (index % 64)) != 0;
        self.bits.get(word).is_some_and(set)
    }

    /// A bit for each patch, in the grid's order.
    pub(super) fn bits(&self) -> &[u64] {
        &self.bits
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Boxes of chunks of a mask, of about [`PIECE`] bytes.
fn pieces(mask: &dyn Volume) -> Shape {
    let layout = mask.layout();
    let [_, mut piece @ ..] =
        layout
            .read_chunk
            .unwrap_or([1, 1, layout.shape[1].max(1), layout.shape[2].max(1)]);
    for a in [2, 1, 0] {
        while piece[a] < layout.shape[a] && bytes_of(mask, piece) < PIECE {
            piece[a] = piece[a].saturating_mul(2);
        }
    }
    piece
}

/// Bytes of a box of a mask.
fn bytes_of(mask: &dyn Volume, box_: Shape) -> u64 {
    let layout = mask.layout();
    let voxel = layout.channels * layout.dtype.size() as u64;
    let inside = std::array::from_fn(|a| box_[a].min(layout.shape[a]));
    Region::whole(inside).voxels().saturating_mul(voxel)
}

/// Bytes of a decoded chunk of a mask.
fn chunk_bytes(mask: &dyn Volume) -> u64 {
    let layout = mask.layout();
    let chunk = layout.read_chunk.unwrap_or_default();
    let size = layout.dtype.size() as u64;
    chunk.into_iter().fold(size, u64::saturating_mul)
}

/// The boxes that patches' faces cut the volume into, and which of them hold foreground.
struct Cells {
    /// For each axis and mask voxel, the cells it reaches.
    reached: [Vec<Range<usize>>; 3],
    /// For each axis and place of a patch, the cells it is made of.
    held: [Vec<Range<usize>>; 3],
    counts: [usize; 3],
    /// A bit for each cell.
    marked: Vec<AtomicU64>,
}

impl Cells {
    fn new(grid: &Grid, mask: Shape) -> Self {
        let cuts: [Vec<u64>; 3] = std::array::from_fn(|a| {
            let axis = &grid.axes()[a];
            let ends = |place| [axis.inside(place).start, axis.inside(place).end];
            let mut cuts: Vec<u64> = (0..axis.starts.len()).flat_map(ends).collect();
            cuts.extend([0, axis.length]);
            cuts.sort_unstable();
            cuts.dedup();
            cuts
        });
        // The cells that `from..to` reaches into.
        let cells = |a: usize, from: u64, to: u64| {
            let first = cuts[a].partition_point(|&cut| cut <= from).max(1) - 1;
            first..cuts[a].partition_point(|&cut| cut < to).max(first)
        };
        let volume = grid.volume();
        let reached = std::array::from_fn(|a| {
            let place = |m: u64, up: u128| {
                let (n, count) = (u128::from(m) * u128::from(volume[a]), u128::from(mask[a]));
                u64::try_from((n + up * (count - 1)) / count).unwrap_or(u64::MAX)
            };
            (0..mask[a])
                .map(|m| cells(a, place(m, 0), place(m + 1, 1)))
                .collect()
        });
        let held = std::array::from_fn(|a| {
            let axis = &grid.axes()[a];
            let inside = |place| axis.inside(place);
            (0..axis.starts.len())
                .map(inside)
                .map(|inside| cells(a, inside.start, inside.end))
                .collect()
        });
        let counts = [0, 1, 2].map(|a: usize| cuts[a].len() - 1);
        let total = counts.iter().product::<usize>().div_ceil(64);
        Self {
            reached,
            held,
            counts,
            marked: std::iter::repeat_with(AtomicU64::default)
                .take(total)
                .collect(),
        }
    }

    fn bytes(&self) -> u64 {
        let along = |ranges: &Vec<Range<usize>>| size_of_val(&ranges[..]);
        let lists = self.reached.iter().chain(&self.held).map(along);
        (lists.sum::<usize>() + size_of_val(&self.marked[..])) as u64
    }

    /// Marks the cells that the foreground in a piece of the mask reaches.
    fn mark(&self, mask: &dyn Volume, piece: Region) -> Result<()> {
        let Some(piece) = piece.intersection(&Region::whole(mask.layout().shape)) else {
            return Ok(());
        };
        let patch = mask.read(piece)?;
        let size = usize::try_from(piece.shape[2]).unwrap_or(usize::MAX);
        let [z0, y0, x0] = piece.start.map(|n| usize::try_from(n).unwrap_or(0));
        let [nz, ny, _] = piece.shape.map(|n| usize::try_from(n).unwrap_or(0));
        let mut reached = vec![false; self.counts[2]];
        with_element!(patch.dtype(), T => {
            let rows = bytemuck::cast_slice::<u8, T>(patch.bytes()).chunks_exact(size.max(1));
            for (n, row) in rows.enumerate() {
                if !row.iter().any(is_set) {
                    continue;
                }
                reached.fill(false);
                for (x, _) in row.iter().enumerate().filter(|(_, value)| is_set(*value)) {
                    reached[self.reached[2][x0 + x].clone()].fill(true);
                }
                let (z, y) = (z0 + n / ny % nz, y0 + n % ny);
                self.mark_row(z, y, &reached);
            }
        });
        Ok(())
    }

    fn mark_row(&self, z: usize, y: usize, reached: &[bool]) {
        for cz in self.reached[0][z].clone() {
            for cy in self.reached[1][y].clone() {
                let first = (cz * self.counts[1] + cy) * self.counts[2];
                for cell in (first..).zip(reached).filter(|(_, reached)| **reached) {
                    let (word, bit) = (cell.0 / 64, cell.0 % 64);
                    self.marked[word].fetch_or(1 << bit, Ordering::Relaxed);
                }
            }
        }
    }

    /// Whether any cell of the patch at `place` is marked.
    fn any(&self, place: [usize; 3]) -> bool {
        let [z, y, x] = [0, 1, 2].map(|a: usize| self.held[a][place[a]].clone());
        z.into_iter().any(|z| {
            y.clone().any(|y| {
                let first = (z * self.counts[1] + y) * self.counts[2];
                (first + x.start..first + x.end).any(|cell| {
                    self.marked[cell / 64].load(Ordering::Relaxed) >> (cell % 64) & 1 == 1
                })
            })
        })
    }
}

fn is_set<T: Element>(value: &T) -> bool {
    *value != T::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::grid::GridOptions;
    use crate::volume::MemoryVolume;
    use crate::volume::suite::Probe;

    #[test]
    fn patches_that_any_foreground_reaches_are_selected_whatever_the_mask_s_resolution() {
        let volume = [20, 17, 23];
        let options = GridOptions {
            margin: [1, 0, 2],
            ..GridOptions::default()
        };
        let grid = Grid::with_options(volume, [6, 5, 7], [2, 1, 3], &options).unwrap();
        for (n, shape) in [
            [20, 17, 23],
            [5, 5, 5],
            [40, 34, 46],
            [1, 17, 2],
            [7, 3, 23],
        ]
        .into_iter()
        .enumerate()
        {
            let count = Region::whole(shape).voxels();
            let voxels: Vec<u8> = (0..count)
                .map(|v| u8::from((v * 7919 + n as u64 * 13).is_multiple_of(97)))
                .collect();
            let mask = MemoryVolume::from_vec(shape, 1, voxels)
                .unwrap()
                .with_chunks([1, 3, 4, 5]);
            let whole = mask.to_patch().to_array::<u8>().unwrap();
            let selection = Selection::from_mask(&grid, &mask).unwrap();
            let mut selected = 0;
            let foreground = whole.iter().any(|&value| value != 0);
            for (index, region) in (0..).zip(grid.iter()) {
                let meets = |a: usize, m: usize| {
                    let (m, length) = (i128::try_from(m).unwrap(), i128::from(shape[a]));
                    let (from, to) = (m * i128::from(volume[a]), (m + 1) * i128::from(volume[a]));
                    from < i128::from(region.end()[a]) * length
                        && to > i128::from(region.start[a]) * length
                };
                let any = whole.indexed_iter().any(|((_, z, y, x), &value)| {
                    value != 0 && meets(0, z) && meets(1, y) && meets(2, x)
                });
                assert_eq!(selection.contains(index), any, "{shape:?} {region}");
                selected += u64::from(any);
            }
            assert_eq!(selection.len(), selected);
            assert_eq!(selected > 0, foreground);
        }
        let empty = MemoryVolume::from_vec([2; 3], 1, vec![0_u8; 8]).unwrap();
        assert!(Selection::from_mask(&grid, &empty).unwrap().is_empty());
    }

    #[test]
    fn a_mask_that_is_written_to_while_it_is_read_is_refused() {
        let grid = Grid::new([18, 20, 22], [6; 3], [2; 3]).unwrap();
        let mask = Probe::new("mask", None);
        assert!(!Selection::from_mask(&grid, &mask).unwrap().is_empty());
        mask.change();
        let refused = Selection::from_mask(&grid, &mask);
        assert!(matches!(refused, Err(Error::Changed { .. })), "{refused:?}");
    }
}
