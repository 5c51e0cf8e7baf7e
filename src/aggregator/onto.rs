//! Final blocks on the grid of another volume.
//!
//! The output is cut into cells. A final block waits, as `f32` values of all channels, until every cell that needs it
//! is computed. A cell is computed once all of its blocks are final: it is resampled from them, by the kernel of
//! [`Resampled`], and reduced. So the channels of the whole output never exist, and a voxel depends neither on the blocks
//! nor on the cells.
//!
//! A cell needs the blocks that overlap a box of the predictions. If the axes of both grids are parallel, the box follows
//! from the cell's place along each axis. On an oblique grid, it is the bounding box of the cell, and only some voxels of a
//! cell may be inside the predictions.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocks::{Cuts, product};
use super::buffers::Buffers;
use super::gauge::ByteGauge;
use super::options::AggregatorOptions;
use super::reduce::Reduce;
use super::window::Blend;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::SignedAxes;
use crate::grid::Grid;
use crate::pad::Padding;
use crate::patch::copy_common;
use crate::region::{Region, Shape};
use crate::volume::{Interpolation, Layout, Resample, Resampled, Volume, VoxelGrid};

/// Cells have at most this many values in all channels, as they are computed and in the blocks that they need, if they
/// have more than one voxel.
const CELL_VALUES: u64 = 1 << 19;

/// Edge of the cells of a file without write chunks.
const CELL_LENGTH: u64 = 64;

/// Voxels of the predictions by which the output may extend beyond their outer faces. Further out it has the fill value.
const BEYOND: f64 = 0.5;

/// Bytes of a value of a cell while it is computed: as read, turned, continued, converted and computed.
const VALUE_BYTES: u64 = 20;

/// The grid of predictions, and the grid on which they are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Onto {
    pub(crate) predicted: VoxelGrid,
    pub(crate) written: VoxelGrid,
}

impl Onto {
    /// Checks that predictions of type `dtype` can be written on the grid.
    pub(crate) fn check(&self, options: &AggregatorOptions, dtype: DType) -> Result<()> {
        let Self { predicted, written } = self;
        let refuse = |problem: &str| {
            Err(Error::InvalidArgument {
                argument: "output grid",
                value: format!("of {:?} voxels", written.shape),
                problem: problem.to_owned(),
            })
        };
        if !(predicted.geometry.is_known && written.geometry.is_known) {
            return refuse(
                "the volume or the grid does not state the spacing and position of its voxels: write on the grid of the \
                 predicted volume",
            );
        }
        if options.blend == Blend::Crop {
            return refuse(
                "blending by crop keeps predictions as they are, and they cannot be resampled: blend by another window, \
                 or write on the grid of the predicted volume",
            );
        }
        if !dtype.is_float() && !options.average_integers && options.reduce == Reduce::Mean {
            return refuse(
                "integer predictions count as class numbers, and must not be averaged: predict a float channel for each \
                 class and reduce by argmax, or write on the grid of the predicted volume",
            );
        }
        let resampled = resampled(Arc::new(Held::new(self, 1, None)), *written)?;
        let reached = resampled.reached(BEYOND);
        let is_far = !resampled.reaches(Region::whole(written.shape), BEYOND);
        if is_far || reached.iter().any(Range::is_empty) {
            return refuse("it has no voxel in common with the predicted volume");
        }
        Ok(())
    }

    /// Returns `true` if the axes of both grids are parallel.
    pub(crate) fn is_parallel(&self) -> bool {
        let resampled = resampled(Arc::new(Held::new(self, 1, None)), self.written);
        resampled.is_ok_and(|resampled| resampled.is_separable())
    }

    /// Returns the axis of the output along which each axis of the predictions runs.
    pub(crate) fn axes(&self) -> [usize; 3] {
        let axes = SignedAxes::nearest(&self.written.geometry, &self.predicted.geometry);
        axes.inverse().order()
    }
}

/// Presents final blocks on a grid.
fn resampled(held: Arc<Held>, grid: VoxelGrid) -> Result<Resampled> {
    let how = Resample::default()
        .with_interpolation(Interpolation::Linear)
        .with_outside(Padding::Edge);
    Resampled::new(held, grid, &how)
}

/// The final blocks that some cell still needs, as a volume of which only their voxels can be read.
#[derive(Debug)]
struct Held {
    layout: Layout,
    /// `None` if the volume is only used for its layout.
    cuts: Option<Cuts>,
    blocks: Mutex<HashMap<[usize; 3], HeldBlock>>,
}

#[derive(Debug)]
struct HeldBlock {
    /// Its values, channel by channel; `None` if no patch voted for it.
    values: Option<Arc<Vec<f32>>>,
    /// The cells that need it and are not computed yet.
    cells: usize,
}

impl Held {
    fn new(onto: &Onto, channels: u64, cuts: Option<Cuts>) -> Self {
        let VoxelGrid { shape, geometry } = onto.predicted;
        Self {
            layout: Layout::new(shape, channels, DType::F32).with_geometry(geometry),
            cuts,
            blocks: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[usize; 3], HeldBlock>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volume for Held {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        out.fill(0);
        let Some(cuts) = &self.cuts else {
            return Ok(());
        };
        let end = region.end();
        let blocks = std::array::from_fn(|a| {
            cuts.overlapping(a, &(region.start[a].unsigned_abs()..end[a].unsigned_abs()))
        });
        for index in product(blocks) {
            let values = self.lock().get(&index).and_then(|held| held.values.clone());
            let Some(values) = values else { continue };
            let own = cuts.region(index);
            let channel = place(own.voxels());
            let values = &values[place(channels.start) * channel..place(channels.end) * channel];
            let count = channels.end - channels.start;
            let from = (bytemuck::cast_slice(values), own);
            copy_common(from, (&mut *out, region), count, size_of::<f32>());
        }
        Ok(())
    }
}

/// The cells of an output, and the blocks that they need.
#[derive(Debug)]
pub(super) struct Cells {
    held: Arc<Held>,
    resampled: Resampled,
    /// The axis of the output along which each axis of the predictions runs, or of an oblique grid the nearest one.
    axes: [usize; 3],
    /// For each axis of the output, `true` if that axis of the predictions runs backwards.
    flipped: [bool; 3],
    /// The boundaries of cells along z, y, x of the output, without most voxels too far from the predictions.
    cuts: [Vec<u64>; 3],
    /// The longest cell along each axis.
    longest: Shape,
    /// If the axes of both grids are parallel, for each cell along z, y, x of the output: the blocks that it needs along the
    /// same axis of the predictions.
    blocks: Option<[Vec<Range<usize>>; 3]>,
    /// Whether blocks have another channel: 1 for voxels for which a patch voted, and 0 for others.
    has_coverage: bool,
    /// The most values of a cell.
    values: u64,
    /// For each cell with a final block, the blocks that are not final.
    missing: Mutex<HashMap<[usize; 3], usize>>,
    /// Buffers of blocks.
    buffers: Buffers<f32>,
}

/// A block that became final.
pub(super) struct FinalBlock<'a> {
    pub(super) region: Region,
    /// Its values, and the flags of voxels for which no patch voted; `None` if no patch voted for any.
    pub(super) values: Option<(&'a [f32], &'a [bool])>,
}

impl Cells {
    /// Returns the cells of an output, which is written in boxes of `unit` voxels.
    pub(super) fn new(
        onto: &Onto,
        grid: &Grid,
        channels: u64,
        options: &AggregatorOptions,
        unit: Option<Shape>,
    ) -> Result<Self> {
        let cuts = Cuts::new(grid);
        let covered = grid.axes().iter().all(|a| a.covered() == (0..a.length));
        let has_coverage = !(options.all_vote() && covered);
        let held = Held::new(onto, channels + u64::from(has_coverage), Some(cuts));
        let held = Arc::new(held);
        let resampled = resampled(Arc::clone(&held), onto.written)?;
        let mut cells = Self {
            held,
            resampled,
            axes: onto.axes(),
            flipped: SignedAxes::nearest(&onto.written.geometry, &onto.predicted.geometry)
                .flipped(),
            cuts: [const { Vec::new() }; 3],
            longest: [0; 3],
            blocks: None,
            has_coverage,
            values: 0,
            missing: Mutex::default(),
            buffers: Buffers::default(),
        };
        cells.cut(onto, unit);
        Ok(cells)
    }

    fn cut(&mut self, onto: &Onto, unit: Option<Shape>) {
        let shape = onto.written.shape;
        let unit = unit.unwrap_or(shape.map(|n| n.min(CELL_LENGTH)));
        let mut cell: Shape = std::array::from_fn(|t| unit[t].min(shape[t]).max(1));
        let channels = self.held.layout.channels;
        let values = |cell: Shape| {
            let middle = std::array::from_fn(|t| ((shape[t] - cell[t]) / 2).cast_signed());
            let source = self.resampled.source_voxels(Region::new(middle, cell));
            let voxels = Region::whole(cell).voxels();
            source.max(voxels).saturating_mul(channels)
        };
        while values(cell) > CELL_VALUES {
            let Some(t) = (0..3)
                .filter(|&t| cell[t] > 1)
                .max_by_key(|&t| (cell[t], 2 - t))
            else {
                break;
            };
            cell[t] = cell[t].div_ceil(2);
        }
        self.values = values(cell);
        self.longest = cell;
        let reached = self.resampled.reached(BEYOND);
        self.cuts = std::array::from_fn(|t| {
            let Range { start, end } = reached[t].clone();
            let mut cuts = vec![start];
            while let Some(last) = cuts.last().copied().filter(|&last| last < end) {
                let within = last % unit[t];
                let next = (within / cell[t] + 1) * cell[t];
                cuts.push((last - within + next.min(unit[t])).min(end));
            }
            cuts
        });
        if !self.resampled.is_separable() {
            return;
        }
        self.blocks = Some(std::array::from_fn(|t| {
            let pairs = self.cuts[t].windows(2);
            let needed = pairs.map(|pair| self.resampled.needed_along(t, pair[0]..pair[1]));
            needed.map(|needed| self.blocks_in(t, needed)).collect()
        }));
    }

    /// Returns the blocks that overlap voxels along an axis of the predictions turned to the axes of the output.
    fn blocks_in(&self, t: usize, mut voxels: Range<u64>) -> Range<usize> {
        let a = self.axes.iter().position(|&axis| axis == t).unwrap_or(t);
        if self.flipped[t] {
            let length = self.held.layout.shape[a];
            voxels = length - voxels.end..length - voxels.start;
        }
        let cuts = self.held.cuts.as_ref();
        cuts.map_or(0..0, |cuts| cuts.overlapping(a, &voxels))
    }

    /// Returns the blocks, along z, y, x of the predictions, that a box of an output on an oblique grid needs.
    fn blocks_around(&self, region: Region) -> [Range<usize>; 3] {
        let source = self.resampled.source_of(region);
        self.axes.map(|t| {
            let start = source.start[t].unsigned_abs();
            self.blocks_in(t, start..start + source.shape[t])
        })
    }

    /// Returns the channels of a block.
    pub(super) fn channels(&self) -> u64 {
        self.held.layout.channels
    }

    /// Returns the axis of the output along which each axis of the predictions runs.
    pub(super) const fn axes(&self) -> [usize; 3] {
        self.axes
    }

    /// Returns the voxels along each axis of the output that are not too far from the predictions.
    pub(super) fn reached(&self) -> [Range<u64>; 3] {
        self.cuts.each_ref().map(|cuts| {
            let ends = [cuts.first(), cuts.last()].map(|cut| cut.copied().unwrap_or(0));
            ends[0]..ends[1]
        })
    }

    /// Returns the boundaries of cells along an axis of the output.
    pub(super) fn along(&self, axis: usize) -> &[u64] {
        &self.cuts[axis]
    }

    /// Returns the blocks that each cell along an axis of the output needs, if the axes of both grids are parallel.
    pub(super) fn blocks_along(&self, axis: usize) -> Option<&[Range<usize>]> {
        self.blocks.as_ref().map(|blocks| &blocks[axis][..])
    }

    /// Returns the voxels of the blocks, along z, y, x of the predictions, that a box of the output needs.
    pub(super) fn predicted(&self, written: &[Range<u64>; 3]) -> [Range<u64>; 3] {
        let blocks = if let Some(blocks) = &self.blocks {
            self.axes.map(|t| {
                let cells = self.cells_along(t, &written[t]);
                let blocks = blocks[t].get(cells).unwrap_or_default();
                let start = blocks.iter().map(|range| range.start).min().unwrap_or(0);
                start..blocks.iter().map(|range| range.end).max().unwrap_or(start)
            })
        } else {
            let reached = self.reached();
            let common = std::array::from_fn(|t| {
                let start = written[t].start.max(reached[t].start);
                start..written[t].end.min(reached[t].end).max(start)
            });
            let region = region_of(&common);
            if region.is_empty() || !self.resampled.reaches(region, BEYOND) {
                return [const { 0..0 }; 3];
            }
            self.blocks_around(region)
        };
        std::array::from_fn(|a| {
            let cuts = self
                .held
                .cuts
                .as_ref()
                .map_or(&[][..], |cuts| cuts.along(a));
            let cut = |n: usize| cuts.get(n).copied().unwrap_or(0);
            cut(blocks[a].start)..cut(blocks[a].end)
        })
    }

    /// Returns the cells along an axis of the output that have some of these voxels.
    fn cells_along(&self, axis: usize, voxels: &Range<u64>) -> Range<usize> {
        let cuts = &self.cuts[axis];
        let first = cuts.partition_point(|&cut| cut <= voxels.start).max(1) - 1;
        let end = cuts
            .partition_point(|&cut| cut < voxels.end)
            .min(cuts.len() - 1);
        first..end.max(first)
    }

    /// Returns the cells of a box of the output that need predictions.
    pub(super) fn cells_in(&self, voxels: &[Range<u64>; 3]) -> impl Iterator<Item = [usize; 3]> {
        let all = product(std::array::from_fn(|t| self.cells_along(t, &voxels[t])));
        all.filter(|&cell| !self.is_beyond(cell))
    }

    /// Returns the cells all of whose voxels are too far from the predictions.
    pub(super) fn beyond(&self) -> impl Iterator<Item = Region> {
        let counts = if self.blocks.is_some() {
            [0; 3]
        } else {
            self.cuts.each_ref().map(|cuts| cuts.len() - 1)
        };
        product(counts.map(|count| 0..count))
            .filter(|&cell| self.is_beyond(cell))
            .map(|cell| self.region(cell))
    }

    fn is_beyond(&self, cell: [usize; 3]) -> bool {
        self.blocks.is_none() && !self.resampled.reaches(self.region(cell), BEYOND)
    }

    /// Returns the bytes that computing a cell takes, with output values of `written` bytes per voxel.
    pub(super) fn cell_bytes(&self, written: u64) -> u64 {
        let out = self.values.saturating_mul(size_of::<f32>() as u64);
        let computed = self.values.saturating_mul(VALUE_BYTES);
        let voxels = self.values / self.channels().max(1);
        computed
            .saturating_add(out)
            .saturating_add(voxels.saturating_mul(written))
    }

    /// Returns the voxels of a cell.
    pub(super) fn region(&self, cell: [usize; 3]) -> Region {
        let start = |t: usize| self.cuts[t][cell[t]];
        Region::new(
            std::array::from_fn(|t| start(t).cast_signed()),
            std::array::from_fn(|t| self.cuts[t][cell[t] + 1] - start(t)),
        )
    }

    /// Returns the blocks (along z, y, x of the predictions) that a cell needs.
    pub(super) fn needed(&self, cell: [usize; 3]) -> [Range<usize>; 3] {
        match &self.blocks {
            Some(blocks) => self.axes.map(|t| blocks[t][cell[t]].clone()),
            None => self.blocks_around(self.region(cell)),
        }
    }

    /// Returns the cells that need a block.
    fn cells_of(&self, block: [usize; 3]) -> Vec<[usize; 3]> {
        let Some(blocks) = &self.blocks else {
            return self.oblique_cells_of(block);
        };
        let mut cells = [const { 0..0 }; 3];
        for (&t, k) in self.axes.iter().zip(block) {
            let needs = |blocks: &Range<usize>| blocks.contains(&k);
            if let Some(first) = blocks[t].iter().position(needs) {
                let last = blocks[t].iter().rposition(needs);
                cells[t] = first..last.unwrap_or(first) + 1;
            }
        }
        product(cells).collect()
    }

    fn oblique_cells_of(&self, block: [usize; 3]) -> Vec<[usize; 3]> {
        let Some(cuts) = &self.held.cuts else {
            return Vec::new();
        };
        let own = cuts.region(block);
        let mut turned = own;
        for (a, &t) in self.axes.iter().enumerate() {
            turned.shape[t] = own.shape[a];
            turned.start[t] = if self.flipped[t] {
                self.held.layout.shape[a].cast_signed() - own.end()[a]
            } else {
                own.start[a]
            };
        }
        let near = self.resampled.boxes_near(turned, self.longest, BEYOND);
        let needs = |cell: &[usize; 3]| {
            let needed = self.needed(*cell);
            (0..3).all(|a| needed[a].contains(&block[a]))
        };
        self.cells_in(&near).filter(needs).collect()
    }

    /// Returns `true` if any wanted cell needs the block that is a box of the predictions.
    pub(super) fn wants(&self, block: &Region, wanted: &dyn Fn(&Region) -> bool) -> bool {
        let cells = self.index(block).map(|index| self.cells_of(index));
        let mut cells = cells.into_iter().flatten();
        cells.any(|cell| wanted(&self.region(cell)))
    }

    fn index(&self, block: &Region) -> Option<[usize; 3]> {
        let cuts = self.held.cuts.as_ref()?;
        Some(std::array::from_fn(|a| {
            let start = block.start[a].unsigned_abs();
            cuts.along(a).partition_point(|&cut| cut < start)
        }))
    }

    /// Takes a final block, and passes the regions of the cells that can be computed to `compute`, those without any
    /// vote to `uncovered`.
    pub(super) fn add(
        &self,
        block: &FinalBlock<'_>,
        wanted: &dyn Fn(&Region) -> bool,
        meter: &ByteGauge,
        mut compute: impl FnMut(Region, bool) -> Result<()>,
    ) -> Result<()> {
        let Some(index) = self.index(&block.region) else {
            return Ok(());
        };
        let mut cells = self.cells_of(index);
        cells.retain(|&cell| wanted(&self.region(cell)));
        if cells.is_empty() {
            return Ok(());
        }
        let values = block
            .values
            .map(|(values, holes)| Arc::new(self.kept(values, holes, meter)));
        let held = HeldBlock {
            values,
            cells: cells.len(),
        };
        self.held.lock().insert(index, held);
        let complete: Vec<[usize; 3]> = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut is_complete = |cell: &[usize; 3]| {
                let all = || {
                    self.needed(*cell)
                        .iter()
                        .map(ExactSizeIterator::len)
                        .product()
                };
                let left = missing.entry(*cell).or_insert_with(all);
                *left -= 1;
                let is_complete = *left == 0;
                if is_complete {
                    missing.remove(cell);
                }
                is_complete
            };
            cells.into_iter().filter(|cell| is_complete(cell)).collect()
        };
        for cell in complete {
            let any = {
                let held = self.held.lock();
                let mut blocks = product(self.needed(cell));
                blocks.any(|block| held.get(&block).is_some_and(|held| held.values.is_some()))
            };
            compute(self.region(cell), any)?;
            self.release(cell, meter);
        }
        Ok(())
    }

    /// Copies the values of a block, with the flags of voxels for which a patch voted if they are needed.
    fn kept(&self, values: &[f32], holes: &[bool], meter: &ByteGauge) -> Vec<f32> {
        let channels = place(self.channels()) - usize::from(self.has_coverage);
        let voxels = values.len() / channels.max(1);
        let length = values.len() + if self.has_coverage { voxels } else { 0 };
        meter.grow((length * size_of::<f32>()) as u64);
        let mut kept = self.buffers.take(length);
        let (own, coverage) = kept.split_at_mut(values.len());
        own.copy_from_slice(values);
        coverage.fill(1.0);
        if self.has_coverage && !holes.is_empty() {
            for channel in own.chunks_exact_mut(voxels).chain([coverage]) {
                for (value, _) in channel.iter_mut().zip(holes).filter(|(_, hole)| **hole) {
                    *value = 0.0;
                }
            }
        }
        kept
    }

    /// Drops the blocks of a computed cell that no other cell needs.
    fn release(&self, cell: [usize; 3], meter: &ByteGauge) {
        for index in product(self.needed(cell)) {
            let mut held = self.held.lock();
            let Some(block) = held.get_mut(&index) else {
                continue;
            };
            block.cells -= 1;
            if block.cells > 0 {
                continue;
            }
            let values = held.remove(&index).and_then(|block| block.values);
            drop(held);
            if let Some(values) = values.and_then(Arc::into_inner) {
                meter.shrink(size_of_val(&values[..]) as u64);
                self.buffers.give(values);
            }
        }
    }

    /// Computes the values of a cell, channel by channel, in a buffer of [`channels`](Self::channels). Returns the flags of
    /// voxels of which less than half was voted for or that are too far from the predictions; empty if there are none.
    pub(super) fn compute(&self, region: Region, values: &mut [f32]) -> Result<Vec<bool>> {
        let all = 0..self.channels();
        let bytes = bytemuck::cast_slice_mut(values);
        self.resampled.read_channels(all, region, bytes)?;
        let mut holes = Vec::new();
        if self.blocks.is_none() {
            holes = self.resampled.beyond(region, BEYOND);
        }
        let voxels = place(region.voxels());
        if self.has_coverage {
            let (values, coverage) = values.split_at_mut(values.len() - voxels);
            holes.resize(voxels, false);
            for (hole, &share) in holes.iter_mut().zip(&*coverage) {
                *hole |= share < 0.5;
            }
            for channel in values.chunks_exact_mut(voxels.max(1)) {
                for (value, &share) in channel.iter_mut().zip(&*coverage) {
                    *value /= share;
                }
            }
        }
        for channel in values.chunks_exact_mut(voxels.max(1)) {
            for (value, _) in channel.iter_mut().zip(&holes).filter(|(_, hole)| **hole) {
                *value = 0.0;
            }
        }
        if !holes.contains(&true) {
            holes.clear();
        }
        Ok(holes)
    }
}

/// Returns a box as a region.
fn region_of(voxels: &[Range<u64>; 3]) -> Region {
    Region::new(
        voxels.each_ref().map(|range| range.start.cast_signed()),
        voxels.each_ref().map(|range| range.end - range.start),
    )
}

fn place(n: u64) -> usize {
    usize::try_from(n).expect("a place inside a block in memory")
}
