//! Masks: the patches of a grid that contain foreground.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::iter::{ParallelBridge, ParallelIterator};

use crate::dtype::{Element, with_element};
use crate::error::Result;
use crate::grid::Grid;
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};
use crate::threads::{pool, threads};
use crate::volume::{Volume, VolumeExt};

/// A subset of a grid's patches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchMask {
    /// One bit per patch, in the grid's order.
    bits: Vec<u64>,
    count: u64,
    /// Bytes that it took to make it, at most.
    reading_bytes: u64,
}

/// The approximate number of bytes of a mask that a thread reads at a time.
const PIECE: u64 = 4 << 20;

impl PatchMask {
    /// Selects the patches for which `keep` returns `true`.
    #[must_use]
    pub fn new(grid: &Grid, keep: impl Fn(u64, Region) -> bool) -> Self {
        let mut patch_mask = Self {
            bits: Vec::new(),
            count: 0,
            reading_bytes: 0,
        };
        for (index, region) in (0..).zip(grid.iter()) {
            if index % 64 == 0 {
                patch_mask.bits.push(0);
            }
            if keep(index, region)
                && let Some(bits) = patch_mask.bits.last_mut()
            {
                *bits |= 1 << (index % 64);
                patch_mask.count += 1;
            }
        }
        patch_mask
    }

    /// Selects the patches that contain any part of a voxel of `mask` that is not 0, in any channel.
    ///
    /// The mask covers the same space as the grid's volume in voxels of any size: along an axis of `N` voxels of which
    /// it has `M`, its voxel `m` covers `m N / M` to `(m + 1) N / M`. The mask is read once, in pieces. In memory are
    /// one bit per patch and, for each thread, a piece and a flag for each patch of a layer.
    ///
    /// # Errors
    ///
    /// Those of reading the mask; [`Error::InputModified`](crate::Error::InputModified) if the mask is modified during
    /// this.
    pub fn from_volume(grid: &Grid, mask: &dyn Volume) -> Result<Self> {
        Self::from_volume_within(grid, mask, threads(), 256 << 20)
    }

    /// Selects patches as [`from_volume`](Self::from_volume) does, with at least one and at most `threads` threads, as
    /// `memory` bytes allow.
    ///
    /// # Errors
    ///
    /// Those of reading the mask.
    pub fn from_volume_within(
        grid: &Grid,
        mask: &dyn Volume,
        threads: usize,
        memory: u64,
    ) -> Result<Self> {
        let layout = mask.layout();
        let (shape, pieces) = (layout.shape, pieces(mask));
        let words = usize::try_from(grid.len().div_ceil(64)).unwrap_or(usize::MAX);
        let marks = Marks {
            grid,
            mask: shape,
            bits: std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
        };
        let [_, rows, columns] = grid.axes().each_ref().map(|axis| axis.starts.len() as u64);
        let each = bytes_of(mask, pieces)
            .saturating_add(chunk_bytes(mask).saturating_mul(2))
            .saturating_add(rows.saturating_mul(columns));
        let kept = grid.len() / 4;
        let fitting = memory.saturating_sub(kept) / each.max(1);
        let threads = threads.min(usize::try_from(fitting).unwrap_or(usize::MAX));
        let all = indices(chunk_range(&Region::whole(shape), pieces));
        let mark = |index| marks.mark(mask, chunk_region(index, pieces));
        let pool = pool(threads, "mask", &layout.path)?;
        pool.install(|| all.par_bridge().try_for_each(mark))?;
        mask.check_unchanged()?;
        let bits: Vec<u64> = marks.bits.into_iter().map(AtomicU64::into_inner).collect();
        let count = bits.iter().map(|bits| u64::from(bits.count_ones())).sum();
        let reading = each.saturating_mul(threads.max(1) as u64);
        Ok(Self {
            bits,
            count,
            reading_bytes: kept.saturating_add(reading),
        })
    }

    /// Bytes that it took to make it, at most.
    pub(super) const fn reading_bytes(&self) -> u64 {
        self.reading_bytes
    }

    /// Returns `true` if patch `index` is selected.
    #[must_use]
    pub fn contains(&self, index: u64) -> bool {
        let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
        let set = |bits: &u64| bits & (1 << (index % 64)) != 0;
        self.bits.get(word).is_some_and(set)
    }

    /// One bit per patch, in the grid's order.
    pub(super) fn bits(&self) -> &[u64] {
        &self.bits
    }

    /// Returns the number of selected patches.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.count
    }

    /// Returns `true` if no patch is selected.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Returns the shape of boxes of whole chunks of a mask, of about [`PIECE`] bytes.
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

/// Returns the bytes of a box of a mask.
fn bytes_of(mask: &dyn Volume, box_: Shape) -> u64 {
    let layout = mask.layout();
    let voxel = layout.channels * layout.dtype.size() as u64;
    let inside = std::array::from_fn(|a| box_[a].min(layout.shape[a]));
    Region::whole(inside).voxels().saturating_mul(voxel)
}

/// Returns the bytes of a decoded chunk of a mask.
fn chunk_bytes(mask: &dyn Volume) -> u64 {
    let layout = mask.layout();
    let chunk = layout.read_chunk.unwrap_or_default();
    let size = layout.dtype.size() as u64;
    chunk.into_iter().fold(size, u64::saturating_mul)
}

/// The patches of a grid in which foreground was found.
struct Marks<'a> {
    grid: &'a Grid,
    mask: Shape,
    /// One bit per patch, in the grid's order.
    bits: Vec<AtomicU64>,
}

impl Marks<'_> {
    /// Returns the places along an axis of the patches that a voxel of the mask overlaps.
    fn reached(&self, a: usize, voxel: u64) -> Range<usize> {
        let axis = &self.grid.axes()[a];
        let (length, count) = (u128::from(axis.length), u128::from(self.mask[a]));
        let from = u128::from(voxel) * length / count;
        let to = ((u128::from(voxel) + 1) * length).div_ceil(count);
        let near = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        axis.touching(near(from), near(to))
    }

    /// Marks the patches that overlap the foreground in a piece of the mask.
    fn mark(&self, mask: &dyn Volume, piece: Region) -> Result<()> {
        let Some(piece) = piece.intersection(&Region::whole(self.mask)) else {
            return Ok(());
        };
        let patch = mask.read(piece)?;
        let along = |a: usize| -> Vec<Range<usize>> {
            let first = piece.start[a].unsigned_abs();
            (first..first + piece.shape[a])
                .map(|voxel| self.reached(a, voxel))
                .collect()
        };
        let [z, y, x] = [along(0), along(1), along(2)];
        let mut layer = Layer::new(&y, &x);
        let channels = usize::try_from(patch.channels()).unwrap_or(usize::MAX);
        // Planes that overlap the same patches are marked together.
        for (n, reached) in z.iter().enumerate() {
            with_element!(patch.dtype(), T => {
                let values = bytemuck::cast_slice::<u8, T>(patch.bytes());
                for c in 0..channels {
                    for (row, reached) in y.iter().enumerate() {
                        let first = ((c * z.len() + n) * y.len() + row) * x.len();
                        layer.add(reached, &values[first..first + x.len()], &x);
                    }
                }
            });
            if z.get(n + 1) != Some(reached) {
                self.put(reached, &layer);
                layer.clear();
            }
        }
        Ok(())
    }

    /// Marks the patches of a layer at all of these places along z.
    fn put(&self, z: &Range<usize>, layer: &Layer) {
        if !layer.any {
            return;
        }
        for z in z.clone() {
            for (y, x) in layer.places() {
                let index = self.grid.number([z, y, x]);
                let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
                let (bits, bit) = (&self.bits[word], 1 << (index % 64));
                if bits.load(Ordering::Relaxed) & bit == 0 {
                    bits.fetch_or(bit, Ordering::Relaxed);
                }
            }
        }
    }
}

/// The places along y and x of the patches that overlap the foreground in some planes of a mask.
struct Layer {
    y: Range<usize>,
    x: Range<usize>,
    /// Row-major.
    reached: Vec<bool>,
    any: bool,
    row: Vec<bool>,
}

impl Layer {
    /// Creates an empty layer for rows and columns that overlap these places.
    fn new(y: &[Range<usize>], x: &[Range<usize>]) -> Self {
        let all = |ranges: &[Range<usize>]| {
            let start = ranges.iter().map(|range| range.start).min().unwrap_or(0);
            start
                ..ranges
                    .iter()
                    .map(|range| range.end)
                    .max()
                    .unwrap_or(0)
                    .max(start)
        };
        let (y, x) = (all(y), all(x));
        Self {
            reached: vec![false; y.len() * x.len()],
            row: vec![false; x.len()],
            any: false,
            y,
            x,
        }
    }

    fn clear(&mut self) {
        self.reached.fill(false);
        self.any = false;
    }

    /// Adds a row of mask voxels: the places along y that the row overlaps, its values, and the places along x that
    /// each voxel overlaps.
    fn add<T: Element>(&mut self, y: &Range<usize>, values: &[T], x: &[Range<usize>]) {
        if !values.iter().any(is_set) {
            return;
        }
        self.row.fill(false);
        for (_, reached) in values.iter().zip(x).filter(|(value, _)| is_set(*value)) {
            self.row[reached.start - self.x.start..reached.end - self.x.start].fill(true);
        }
        self.any = true;
        for y in y.clone() {
            let first = (y - self.y.start) * self.row.len();
            let there = &mut self.reached[first..first + self.row.len()];
            for (there, row) in there.iter_mut().zip(&self.row) {
                *there |= row;
            }
        }
    }

    /// Returns the marked places (y, x).
    fn places(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let width = self.row.len().max(1);
        let reached = self
            .reached
            .iter()
            .enumerate()
            .filter(|(_, reached)| **reached);
        reached.map(move |(n, _)| (self.y.start + n / width, self.x.start + n % width))
    }
}

fn is_set<T: Element>(value: &T) -> bool {
    *value != T::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::grid::{GridOptions, GridPlacement};
    use crate::volume::MemoryVolume;
    use crate::volume::suite::CallRecorder;

    #[test]
    fn patches_with_foreground_are_selected_at_any_mask_resolution() {
        let volume = [11, 13, 9];
        let options = |margin, placement| GridOptions {
            margin,
            placement,
            fit: true,
        };
        let grid =
            |patch, overlap, options| Grid::with_options(volume, patch, overlap, &options).unwrap();
        let (edge, padded) = (GridPlacement::Edge, GridPlacement::Padded);
        for grid in [
            grid([6, 5, 7], [2, 1, 3], options([1, 0, 2], edge)),
            grid([6, 5, 7], [5, 0, 6], options([0; 3], edge)),
            grid([4, 17, 9], [2, 16, 1], options([0, 3, 1], padded)),
            grid([1, 1, 1], [0; 3], options([0; 3], edge)),
            grid(
                [30, 30, 30],
                [29, 3, 1],
                options([5, 6, 7], GridPlacement::Even),
            ),
        ] {
            selects_like_brute_force(&grid);
        }
    }

    fn selects_like_brute_force(grid: &Grid) {
        let volume = grid.volume();
        for (n, shape) in [[11, 13, 9], [5, 5, 5], [22, 26, 18], [1, 17, 2], [7, 3, 23]]
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
            let patch_mask = PatchMask::from_volume(grid, &mask).unwrap();
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
                assert_eq!(patch_mask.contains(index), any, "{shape:?} {region}");
                selected += u64::from(any);
            }
            assert_eq!(patch_mask.len(), selected);
            assert_eq!(selected > 0, foreground);
        }
        let empty = MemoryVolume::from_vec([2; 3], 1, vec![0_u8; 8]).unwrap();
        assert!(PatchMask::from_volume(grid, &empty).unwrap().is_empty());
    }

    #[test]
    fn a_mask_that_is_written_to_while_it_is_read_is_refused() {
        let grid = Grid::new([18, 20, 22], [6; 3], [2; 3]).unwrap();
        let mask = CallRecorder::new("mask", None);
        assert!(!PatchMask::from_volume(&grid, &mask).unwrap().is_empty());
        mask.change();
        let refused = PatchMask::from_volume(&grid, &mask);
        assert!(
            matches!(refused, Err(Error::InputModified { .. })),
            "{refused:?}"
        );
    }
}
