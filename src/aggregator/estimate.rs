//! Estimates of the memory that an in-order run needs for the output, computed before it starts.
//!
//! Each box is a product of intervals, one per axis, and is held from a first to a last patch. With patches in the
//! grid's order, a box whose intervals along the axes (slowest first) are held from patches `(f0, f1, f2)` to `(l0, l1,
//! l2)` is held at patch `(i, j, k)` exactly if `(f0, f1, f2) <= (i, j, k) <= (l0, l1, l2)` in lexicographic order. The
//! count at a moment is therefore computed axis by axis.
//!
//! The time to find the maximum over all moments grows with the sum of the axes, not their product. Along the fastest
//! axis, a count is linear in two numbers (the voxels begun and the voxels not ended), so the maximum is at a corner of
//! their convex hull. Along the slower two, a bound from the same hull excludes nearly all moments.
//!
//! Final blocks that wait for cells of an oblique grid, and the write chunks of that grid, are not held from and to products
//! of patches: their moments are computed one by one.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use super::blocks::{Cuts, product};
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
        let order = grid.order();
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
            SpanBoxes::new(std::array::from_fn(along), order, kept_bytes)
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
                    Waiting::Parallel(SpanBoxes::new([z, y, x], order, bytes))
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
            SpanBoxes::new(std::array::from_fn(along), order, written)
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

/// An interval of voxels along an axis, with the first and the last patch for which it is held.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    end: u64,
    first: usize,
    last: usize,
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

/// The moments from which and to which blocks and write chunks are held, for an output on an oblique grid.
#[derive(Debug)]
struct Moments {
    order: [usize; 3],
    /// The number of patches along each axis.
    patches: [usize; 3],
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
    fn new(
        grid: &Grid,
        cuts: &[Vec<u64>; 3],
        bytes: u64,
        (unit, output): (Option<Shape>, &Layout),
    ) -> Self {
        let written = output.channels * output.dtype.size() as u64;
        let lengths = |cuts: &Vec<u64>| cuts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Self {
            order: grid.order(),
            patches: grid.axes().each_ref().map(|axis| axis.starts.len()),
            lengths: cuts.each_ref().map(lengths),
            last: std::array::from_fn(|a| last_patches(&grid.axes()[a], &cuts[a])),
            bytes,
            shape: output.shape,
            unit: unit.map(|unit| (unit, written)),
        }
    }

    /// Returns the place in the order of patches.
    fn moment(&self, place: [usize; 3]) -> u64 {
        let number = |n: u64, &a: &usize| n * self.patches[a] as u64 + place[a] as u64;
        self.order.iter().fold(0, number)
    }

    /// Returns the most bytes that are held at once if only some voxels of the output are written.
    fn most_bytes(&self, cells: &Cells, written: &[Range<u64>; 3]) -> u64 {
        let mut blocks: HashMap<[usize; 3], u64> = HashMap::new();
        let mut chunks: HashMap<[u64; 3], (u64, u64)> = HashMap::new();
        for cell in cells.cells_in(written) {
            let needed = cells.needed(cell);
            if needed.iter().any(Range::is_empty) {
                continue;
            }
            let latest = |a: usize| self.last[a][needed[a].clone()].iter().max().copied();
            let moment = self.moment(std::array::from_fn(|a| latest(a).unwrap_or(0)));
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
            let since = self.moment(std::array::from_fn(|a| self.last[a][block[a]]));
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

/// Boxes that are products of spans along z, y, x.
#[derive(Debug)]
struct SpanBoxes {
    spans: [Vec<Span>; 3],
    order: [usize; 3],
    /// Bytes per voxel.
    bytes: u64,
    /// A cache of the levels of runs of spans along each axis.
    known: [HashMap<Range<usize>, Rc<SpanLevel>>; 3],
}

impl SpanBoxes {
    fn new(spans: [Vec<Span>; 3], order: [usize; 3], bytes: u64) -> Self {
        Self {
            spans,
            order,
            bytes,
            known: Default::default(),
        }
    }

    /// Returns the voxels of the largest box.
    fn largest(&self) -> u64 {
        let longest = self.spans.iter().map(|spans| {
            let lengths = spans.iter().map(|span| span.end - span.start);
            lengths.max().unwrap_or(0)
        });
        longest.fold(1, u64::saturating_mul)
    }

    /// Returns the most bytes of the boxes of those spans that `choose` selects for the voxels `kept` along an axis.
    fn most_bytes(
        &mut self,
        kept: &[Range<u64>; 3],
        choose: impl Fn(&[Span], &Range<u64>) -> Range<usize>,
    ) -> u64 {
        let levels = self.order.map(|a| {
            let spans = &self.spans[a];
            let chosen = choose(spans, &kept[a]);
            let new = || {
                Rc::new(SpanLevel::new(
                    &spans[chosen.start..chosen.end.max(chosen.start)],
                ))
            };
            Rc::clone(self.known[a].entry(chosen.clone()).or_insert_with(new))
        });
        let voxels = most(&levels);
        u64::try_from(voxels)
            .unwrap_or(u64::MAX)
            .saturating_mul(self.bytes)
    }
}

/// Voxels of the slower axes, by the remaining condition for holding a box: none, begun, not ended, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct ConditionCounts {
    always: u128,
    begun: u128,
    unended: u128,
    both: u128,
}

/// The spans along one axis: for each patch where a span begins or ends, the lengths of the spans that begin or end
/// there or elsewhere. At the other patches no more is held than at the patch before.
#[derive(Debug)]
struct SpanLevel {
    total: u128,
    steps: Vec<SpanStep>,
    /// The distinct weights that the patches give to boxes without a condition from slower axes.
    weights: Vec<ConditionCounts>,
    /// The corners of the convex hull of the voxels begun and the voxels not ended, over all patches: any weighted sum
    /// of the two has its maximum at a corner.
    corners: Vec<[u128; 2]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SpanStep {
    begun: u128,
    begins: u128,
    unended: u128,
    ends: u128,
    /// Voxels of spans that begin before and end after.
    inside: u128,
    begins_only: u128,
    ends_only: u128,
    begins_and_ends: u128,
}

impl SpanLevel {
    fn new(spans: &[Span]) -> Self {
        work::add(spans.len());
        let mut patches: Vec<usize> = spans
            .iter()
            .flat_map(|span| [span.first, span.last])
            .collect();
        patches.sort_unstable();
        patches.dedup();
        let mut steps = vec![SpanStep::default(); patches.len()];
        let at = |patch: usize| patches.partition_point(|&other| other < patch);
        for span in spans {
            let length = u128::from(span.end - span.start);
            let (first, last) = (at(span.first), at(span.last));
            steps[first].begins += length;
            steps[last].ends += length;
            if first == last {
                steps[first].begins_and_ends += length;
            } else {
                steps[first].begins_only += length;
                steps[last].ends_only += length;
            }
        }
        let total: u128 = steps.iter().map(|step| step.begins).sum();
        let (mut begun, mut ended, mut open) = (0, 0, 0);
        for step in &mut steps {
            step.begun = begun;
            step.unended = total - ended - step.ends;
            step.inside = open - step.ends_only;
            begun += step.begins;
            ended += step.ends;
            open += step.begins_only;
            open -= step.ends_only;
        }
        let weights = |step: &SpanStep| ConditionCounts {
            always: step.inside,
            begun: step.begins_only,
            unended: step.ends_only,
            both: step.begins_and_ends,
        };
        let mut weights: Vec<ConditionCounts> = steps.iter().map(weights).collect();
        weights.sort_unstable();
        weights.dedup();
        let corners = corners(steps.iter().map(SpanStep::with_its_own));
        Self {
            total,
            steps,
            weights,
            corners,
        }
    }

    /// Returns the maximum over all patches of the last axis.
    fn most(&self, weights: ConditionCounts) -> u128 {
        let ConditionCounts {
            always,
            begun,
            unended,
            both,
        } = weights;
        // Voxels that have begun and not ended are those begun plus those not ended, minus all.
        let value = |[begins, ends]: [u128; 2]| (begun + both) * begins + (unended + both) * ends;
        let (mut low, mut high) = (0, self.corners.len().saturating_sub(1));
        while low < high {
            let middle = usize::midpoint(low, high);
            if value(self.corners[middle]) < value(self.corners[middle + 1]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let most = self.corners.get(low).map_or(0, |&corner| value(corner));
        always * self.total + most.saturating_sub(both * self.total)
    }
}

impl SpanStep {
    /// Returns the voxels begun and the voxels not ended, including those that begin or end here.
    const fn with_its_own(&self) -> [u128; 2] {
        [self.begun + self.begins, self.unended + self.ends]
    }

    /// Returns the weights for the next axis, given this patch of an axis with `total` voxels.
    const fn after(&self, total: u128, weights: ConditionCounts) -> ConditionCounts {
        let ConditionCounts {
            always,
            begun,
            unended,
            both,
        } = weights;
        ConditionCounts {
            always: always * total
                + begun * self.begun
                + unended * self.unended
                + both * self.inside,
            begun: begun * self.begins + both * self.begins_only,
            unended: unended * self.ends + both * self.ends_only,
            both: both * self.begins_and_ends,
        }
    }
}

/// Returns the upper convex hull of points whose first number never falls and whose second never rises.
fn corners(points: impl Iterator<Item = [u128; 2]>) -> Vec<[u128; 2]> {
    let mut hull: Vec<[u128; 2]> = Vec::new();
    for point in points {
        if hull.last().is_some_and(|last| last[0] == point[0]) {
            continue;
        }
        while let [.., a, b] = hull[..]
            && (b[0] - a[0]) * (a[1] - point[1]) <= (point[0] - a[0]) * (a[1] - b[1])
        {
            hull.pop();
        }
        hull.push(point);
    }
    hull
}

/// Returns the most voxels held at once. The levels are from the slowest axis to the fastest.
fn most([slow, middle, fast]: &[Rc<SpanLevel>; 3]) -> u128 {
    // An upper bound: all voxels along the fastest axis are held.
    let bound = |weights: ConditionCounts| fast.total * middle.most(weights);
    work::add(slow.weights.len());
    let bounds: Vec<u128> = slow.weights.iter().copied().map(bound).collect();
    let within = |weights: ConditionCounts, mut most: u128| {
        work::add(middle.steps.len());
        for step in &middle.steps {
            let after = step.after(middle.total, weights);
            let bound = after.always + after.begun + after.unended + after.both;
            if bound * fast.total > most {
                work::add(1);
                most = most.max(fast.most(after));
            }
        }
        most
    };
    let Some(likely) = (0..bounds.len()).max_by_key(|&n| bounds[n]) else {
        return 0;
    };
    let mut most = within(slow.weights[likely], 0);
    for (&weights, &bound) in slow.weights.iter().zip(&bounds) {
        if bound > most {
            most = within(weights, most);
        }
    }
    most
}

/// A counter of steps, for tests.
mod work {
    #[cfg(test)]
    thread_local! {
        pub(super) static DONE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    #[cfg(test)]
    pub(super) fn add(steps: usize) {
        DONE.with(|done| done.set(done.get() + steps as u64));
    }

    #[cfg(not(test))]
    pub(super) const fn add(_steps: usize) {}
}

/// Returns the number of steps that estimates of this thread have taken.
#[cfg(test)]
pub(crate) fn steps_taken() -> u64 {
    work::DONE.with(std::cell::Cell::get)
}

#[cfg(test)]
mod tests;
