//! Estimates of the memory that an in-order run needs for the output, computed before it starts.
//!
//! Sums, final blocks and write chunks are held as [`SpanBoxes`], whose largest number at one moment takes little time to
//! compute. Final blocks that wait for cells of an oblique grid, and the write chunks of that grid, are not: their moments are
//! computed one by one.

mod held;
mod moments;

use std::ops::Range;

use self::held::{Span, SpanBoxes};
use self::moments::Moments;
use super::blocks::Cuts;
use super::live::TOP;
use super::onto::Cells;
use super::options::AggregatorOptions;
use super::pending::unit;
use super::substitutes::{TAG, touching};
use super::window::{Blend, owned};
use crate::grid::{Axis, Grid};
use crate::region::Shape;
use crate::volume::Layout;

/// Returns the most bytes that an in-order run keeps in live blocks and unfinished write chunks.
///
/// `output` is the layout of the output, from [`output_layout`](crate::volume::output_layout). With `within` (ranges of
/// indices along z, y, x), only these write chunks are written.
#[must_use]
pub fn live_bytes(
    grid: &Grid,
    channels: u64,
    options: &AggregatorOptions,
    output: &Layout,
    within: Option<&[Range<u64>; 3]>,
) -> u64 {
    Estimate::new(grid, channels, options, output).live_bytes(within)
}

/// An estimator of the live bytes of one output for any box of its write chunks. Intermediate results are cached for
/// further boxes.
#[derive(Debug)]
pub(crate) struct Estimate {
    /// The blocks whose sums are kept, or the boxes of patches that may not vote; `None` if nothing is kept.
    blocks: Option<SpanBoxes>,
    /// The blocks whose sums are kept elsewhere, if they are.
    elsewhere: Option<SpanBoxes>,
    /// Voxels of the largest block, or of a patch if there are no blocks.
    largest: u64,
    /// The write chunks, or the boxes of a flat file that are written together. If the output is on another grid than the
    /// predictions, their spans are along the axes of the predictions.
    chunks: Option<SpanBoxes>,
    /// If the output is on another grid: the cells, and the final blocks that wait for them.
    onto: Option<(Box<Cells>, Waiting)>,
    /// Bytes of one of those chunks: even one that no patch covers is in memory while it is written.
    one: u64,
    shape: Shape,
    write_chunk: Option<Shape>,
    thread_bytes: u64,
    bits: Bits,
}

/// The final blocks that wait for cells.
#[derive(Debug)]
enum Waiting {
    /// The axes of both grids are parallel.
    Parallel(SpanBoxes),
    /// The output is on an oblique grid. Its write chunks are counted with the blocks.
    Oblique(Moments),
}

/// Bytes of the bit sets of an aggregator.
#[derive(Clone, Copy, Debug)]
struct Bits {
    /// The sets of patches that were added and, if needed, of those that voted.
    patches: u64,
    /// The sets of blocks and write chunks to write, where only some are written.
    wanted: u64,
}

impl Bits {
    fn new(grid: &Grid, settling: Settling, output: &Layout) -> Self {
        let sets = 1 + u64::from(settling == Settling::OwnerOrLast);
        let blocks = match settling {
            Settling::Last => Cuts::new(grid).count() as u64,
            Settling::Owner | Settling::OwnerOrLast => 0,
        };
        let chunks = output.write_chunk.map_or(0, |[_, chunk @ ..]| {
            let counts = (0..3).map(|a| output.shape[a].div_ceil(chunk[a].max(1)));
            counts.fold(1, u64::saturating_mul)
        });
        Self {
            patches: grid.len().div_ceil(8).saturating_mul(sets),
            wanted: blocks.div_ceil(8).saturating_add(chunks.div_ceil(8)),
        }
    }
}

impl Estimate {
    pub(crate) fn new(
        grid: &Grid,
        channels: u64,
        options: &AggregatorOptions,
        output: &Layout,
    ) -> Self {
        let settling = Settling::of(options);
        let written = output.channels * output.dtype.size() as u64;
        let cuts = settling.cuts(grid);
        let kept_bytes = match settling {
            Settling::Last => {
                let tops = if options.adds_by_logs(grid) { TOP } else { 0 };
                options.sums().size().saturating_mul(channels) + tops
            }
            Settling::Owner | Settling::OwnerOrLast => written + TAG,
        };
        let blocks = cuts.as_ref().map(|cuts| {
            let along = |a: usize| touched(&grid.axes()[a], &cuts[a]);
            SpanBoxes::new(std::array::from_fn(along), grid, kept_bytes)
        });
        let patch = || grid.patch().into_iter().fold(1, u64::saturating_mul);
        let largest = blocks.as_ref().map_or_else(patch, SpanBoxes::largest);
        let (blocks, elsewhere) = if options.sums_elsewhere {
            (None, blocks)
        } else {
            (blocks, None)
        };
        let unit = unit(grid, output, options.onto.as_ref());
        let cells = options
            .onto
            .as_ref()
            .and_then(|onto| Cells::new(onto, grid, channels, options, unit).ok());
        let onto = cells.zip(cuts.as_ref()).map(|(cells, cuts)| {
            let bytes = size_of::<f32>() as u64 * cells.channels();
            let spans = |a: usize| held(&grid.axes()[a], &cuts[a], (&cells, a));
            let spans: [Option<Vec<Span>>; 3] = std::array::from_fn(spans);
            let waiting = match spans {
                [Some(z), Some(y), Some(x)] => {
                    Waiting::Parallel(SpanBoxes::new([z, y, x], grid, bytes))
                }
                _ => Waiting::Oblique(Moments::new(grid, cuts, bytes, (unit, output))),
            };
            (Box::new(cells), waiting)
        });
        let is_oblique = matches!(onto, Some((_, Waiting::Oblique(_))));
        let chunks = unit.filter(|_| !is_oblique).map(|chunk| {
            let along = |a: usize| {
                let cuts = cuts.as_ref().map_or(&[][..], |cuts| &cuts[a]);
                match &onto {
                    Some((cells, _)) => {
                        let t = cells.axes()[a];
                        let lengths = (chunk[t], output.shape[t]);
                        assembled(&grid.axes()[a], cuts, (cells, a), lengths)
                    }
                    None => completed(&grid.axes()[a], chunk[a], (settling, cuts)),
                }
            };
            SpanBoxes::new(std::array::from_fn(along), grid, written)
        });
        let one = unit.map_or(0, |chunk| {
            let inside = (0..3).map(|a| chunk[a].min(output.shape[a]));
            inside.fold(written, u64::saturating_mul)
        });
        let thread_bytes = match settling {
            // Per voxel: the output value, the values as f32, the weight, and the flag of a hole.
            Settling::Last => {
                let cell = onto
                    .as_ref()
                    .map_or(0, |(cells, _)| cells.cell_bytes(written));
                let block = largest.saturating_mul(written + 4 * channels + 5);
                block.saturating_add(cell)
            }
            Settling::Owner | Settling::OwnerOrLast => {
                // The voxels that a patch owns, as predicted and as written.
                let voxels = grid.patch().into_iter().fold(1, u64::saturating_mul);
                voxels.saturating_mul(written + 4 * channels)
            }
        };
        Self {
            blocks,
            elsewhere,
            largest,
            chunks,
            onto,
            one,
            shape: output.shape,
            write_chunk: output.write_chunk.map(|[_, chunk @ ..]| chunk),
            thread_bytes,
            bits: Bits::new(grid, settling, output),
        }
    }

    /// Returns the bytes of the aggregator's bit sets of patches.
    pub(crate) const fn patch_bytes(&self) -> u64 {
        self.bits.patches
    }

    /// Returns the bytes of its bit sets of blocks and write chunks if only some write chunks are written.
    pub(crate) const fn wanted_bytes(&self) -> u64 {
        self.bits.wanted
    }

    /// Returns the most bytes that a thread needs to turn a block into final voxels.
    pub(crate) const fn thread_bytes(&self) -> u64 {
        self.thread_bytes
    }

    /// Returns the most bytes if only the write chunks `within` are written.
    pub(crate) fn live_bytes(&mut self, within: Option<&[Range<u64>; 3]>) -> u64 {
        let written: [Range<u64>; 3] =
            std::array::from_fn(|a| kept(self.shape, self.write_chunk, within, a));
        let beginning = |spans: &[Span], kept: &Range<u64>| {
            let from = spans.partition_point(|span| span.start < kept.start);
            from..spans.partition_point(|span| span.start < kept.end)
        };
        // Along the axes of the predictions: the voxels that become final, and those of the output.
        let (summed, along) = match &self.onto {
            Some((cells, _)) => {
                let along = cells.axes().map(|t| written[t].clone());
                (cells.predicted(&written), along)
            }
            None => (written.clone(), written.clone()),
        };
        let blocks = self
            .blocks
            .as_mut()
            .map(|boxes| boxes.most_bytes(&summed, touching_spans));
        let held = self.onto.as_mut().map(|(cells, waiting)| match waiting {
            Waiting::Parallel(boxes) => boxes.most_bytes(&summed, touching_spans),
            Waiting::Oblique(moments) => moments.most_bytes(cells, &written).max(self.one),
        });
        let chunks = self
            .chunks
            .as_mut()
            .map(|boxes| boxes.most_bytes(&along, beginning).max(self.one));
        let parts = [blocks, held, chunks].into_iter().flatten();
        parts.fold(0, u64::saturating_add)
    }

    /// Returns the most bytes of sums that are kept elsewhere if only the write chunks `within` are written.
    pub(crate) fn elsewhere_bytes(&mut self, within: Option<&[Range<u64>; 3]>) -> u64 {
        let kept = std::array::from_fn(|a| kept(self.shape, self.write_chunk, within, a));
        let boxes = self.elsewhere.as_mut();
        boxes.map_or(0, |boxes| boxes.most_bytes(&kept, touching_spans))
    }

    /// Returns the voxels of the largest block, or of a patch if there are no blocks.
    pub(crate) const fn largest_block(&self) -> u64 {
        self.largest
    }
}

/// Returns the spans that overlap the voxels that are written.
fn touching_spans(spans: &[Span], kept: &Range<u64>) -> Range<usize> {
    let from = spans.partition_point(|span| span.end <= kept.start);
    from..spans.partition_point(|span| span.start < kept.end)
}

/// The moment at which the voxels of an output become final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settling {
    /// Under crop: with the patch that owns them.
    Owner,
    /// Under crop: with that patch, or, if it does not vote, with the last patch that touches its box.
    OwnerOrLast,
    /// With the last patch that touches their block.
    Last,
}

impl Settling {
    fn of(options: &AggregatorOptions) -> Self {
        match options.blend {
            Blend::Crop if options.all_vote() => Self::Owner,
            Blend::Crop => Self::OwnerOrLast,
            _ => Self::Last,
        }
    }

    /// Returns the boundaries of the blocks or boxes that are kept along each axis.
    fn cuts(self, grid: &Grid) -> Option<[Vec<u64>; 3]> {
        match self {
            Self::Owner => None,
            Self::OwnerOrLast => Some(grid.axes().each_ref().map(boxes)),
            Self::Last => {
                let cuts = Cuts::new(grid);
                Some(std::array::from_fn(|a| cuts.along(a).to_vec()))
            }
        }
    }
}

/// Returns the boundaries of the boxes that patches own along an axis.
fn boxes(axis: &Axis) -> Vec<u64> {
    let owned = owned(axis);
    let mut cuts: Vec<u64> = owned.iter().map(|range| range.start).collect();
    cuts.extend(owned.last().map(|range| range.end));
    cuts.dedup();
    cuts
}

/// The patches of a grid that an output needs, as [`Aggregator::needs`](super::Aggregator::needs) reports them.
#[derive(Debug)]
pub(crate) struct Needed {
    cuts: Cuts,
    /// Under `crop`, the voxels that each patch owns along each axis.
    owned: Option<[Vec<Range<u64>>; 3]>,
    settling: Settling,
    /// The cells of an output on another grid.
    cells: Option<Box<Cells>>,
}

impl Needed {
    pub(crate) fn new(
        grid: &Grid,
        channels: u64,
        options: &AggregatorOptions,
        output: &Layout,
    ) -> Self {
        let crop = options.blend == Blend::Crop;
        let unit = unit(grid, output, options.onto.as_ref());
        let cells = options
            .onto
            .as_ref()
            .and_then(|onto| Cells::new(onto, grid, channels, options, unit).ok());
        Self {
            cells: cells.map(Box::new),
            settling: Settling::of(options),
            cuts: Cuts::new(grid),
            owned: crop.then(|| grid.axes().each_ref().map(owned)),
        }
    }

    /// Returns the patches along z, y, x that are needed for the write chunks `within`.
    pub(crate) fn patches(
        &self,
        grid: &Grid,
        output: &Layout,
        within: &[Range<u64>; 3],
    ) -> [Range<usize>; 3] {
        let chunk = output.write_chunk.map(|[_, chunk @ ..]| chunk);
        let written = std::array::from_fn(|t| kept(output.shape, chunk, Some(within), t));
        let predicted = match &self.cells {
            Some(cells) => cells.predicted(&written),
            None => written,
        };
        std::array::from_fn(|a| {
            let kept = predicted[a].clone();
            if let Some(owned) = &self.owned {
                let owners = touching(&owned[a], &kept);
                if self.settling == Settling::Owner || owners.is_empty() {
                    return owners;
                }
                let (first, last) = (&owned[a][owners.start], &owned[a][owners.end - 1]);
                return grid.axes()[a].touching(first.start, last.end);
            }
            // Blocks are summed whole, including those that extend beyond.
            let blocks = self.cuts.overlapping(a, &kept);
            let cuts = self.cuts.along(a);
            grid.axes()[a].touching(cuts[blocks.start], cuts[blocks.end])
        })
    }
}

/// Returns the voxels along an axis that are written.
fn kept(
    shape: Shape,
    chunk: Option<Shape>,
    within: Option<&[Range<u64>; 3]>,
    a: usize,
) -> Range<u64> {
    match (within, chunk) {
        (Some(within), Some(chunk)) => within[a].start * chunk[a]..within[a].end * chunk[a],
        _ => 0..shape[a],
    }
}

/// Returns the spans of the blocks between `cuts`, whose sums are held from the first patch that touches a block to the
/// last.
fn touched(axis: &Axis, cuts: &[u64]) -> Vec<Span> {
    let span = |pair: &[u64]| {
        let patches = axis.touching(pair[0], pair[1]);
        (!patches.is_empty()).then(|| Span {
            start: pair[0],
            end: pair[1],
            first: patches.start,
            last: patches.end - 1,
        })
    };
    cuts.windows(2).filter_map(span).collect()
}

/// Returns the spans of write chunks of `chunk` voxels, which are held from the patch that makes their first voxel
/// final to the patch that makes the last one final.
fn completed(axis: &Axis, chunk: u64, (settling, cuts): (Settling, &[u64])) -> Vec<Span> {
    let owned = if settling == Settling::Last {
        Vec::new()
    } else {
        owned(axis)
    };
    let covered = axis.covered();
    if covered.is_empty() {
        return Vec::new();
    }
    // The range of patches with which a voxel may become final.
    let settles = |voxel: u64| {
        // A voxel that no patch covers takes no memory until a different voxel of its chunk is final.
        let voxel = voxel.clamp(covered.start, covered.end - 1);
        let owner = || owned.partition_point(|range| range.end <= voxel);
        let last = || {
            let end = cuts.partition_point(|&cut| cut <= voxel);
            axis.touching(cuts[end - 1], cuts[end]).end - 1
        };
        match settling {
            Settling::Owner => owner()..=owner(),
            Settling::OwnerOrLast => owner()..=last(),
            Settling::Last => last()..=last(),
        }
    };
    let span = |n: u64| {
        let (start, end) = (n * chunk, ((n + 1) * chunk).min(axis.length));
        Span {
            start,
            end,
            first: *settles(start).start(),
            last: *settles(end - 1).end(),
        }
    };
    (0..axis.length.div_ceil(chunk)).map(span).collect()
}

/// Returns the last patch that touches each block between `cuts`; 0 where none does.
fn last_patches(axis: &Axis, cuts: &[u64]) -> Vec<usize> {
    let last = |pair: &[u64]| axis.touching(pair[0], pair[1]).end.saturating_sub(1);
    cuts.windows(2).map(last).collect()
}

/// Returns the last patch before which each cell cannot be computed that needs these blocks along an axis.
fn cell_patches(last: &[usize], blocks: &[Range<usize>]) -> Vec<usize> {
    let patch = |blocks: &Range<usize>| last[blocks.clone()].iter().copied().max().unwrap_or(0);
    blocks.iter().map(patch).collect()
}

/// Returns the spans of final blocks, which are held from the last patch that touches them until the last cell that
/// needs them is computed; `None` on an oblique grid.
fn held(axis: &Axis, cuts: &[u64], (cells, a): (&Cells, usize)) -> Option<Vec<Span>> {
    let last = last_patches(axis, cuts);
    let needs = cells.blocks_along(cells.axes()[a])?;
    let computed = cell_patches(&last, needs);
    let mut until = last.clone();
    for (blocks, computed) in needs.iter().zip(computed) {
        for until in &mut until[blocks.clone()] {
            *until = computed.max(*until);
        }
    }
    let spans = cuts.windows(2).zip(last.iter().zip(until));
    let spans = spans.map(|(pair, (&first, last))| Span {
        start: pair[0],
        end: pair[1],
        first,
        last,
    });
    Some(spans.collect())
}

/// Returns the spans of write chunks of `chunk` voxels on another grid, which are held from the patch with which their
/// first cell can be computed to the patch with which the last one can.
fn assembled(
    axis: &Axis,
    cuts: &[u64],
    (cells, a): (&Cells, usize),
    (chunk, length): (u64, u64),
) -> Vec<Span> {
    let needs = cells.blocks_along(cells.axes()[a]).unwrap_or_default();
    let computed = cell_patches(&last_patches(axis, cuts), needs);
    let mut spans: Vec<Span> = Vec::new();
    for (pair, patch) in cells.along(cells.axes()[a]).windows(2).zip(computed) {
        let start = pair[0] / chunk * chunk;
        match spans.last_mut() {
            Some(span) if span.start == start => {
                span.first = span.first.min(patch);
                span.last = span.last.max(patch);
            }
            _ => spans.push(Span {
                start,
                end: (start + chunk).min(length),
                first: patch,
                last: patch,
            }),
        }
    }
    spans
}

/// Returns the number of steps that estimates of this thread have taken.
#[cfg(test)]
pub(crate) fn steps_taken() -> u64 {
    held::work::DONE.with(std::cell::Cell::get)
}

#[cfg(test)]
mod tests;
