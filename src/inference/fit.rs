//! Finds the passes in which outputs fit into the memory.
//!
//! The bytes that the outputs keep depend on how they are cut, not on the number of threads. Each way to cut them is
//! therefore evaluated once, and only if no simpler one fits.

use std::ops::Range;

use super::passes::{self, ChunkRanges};
use super::planned::PlannedOutput;
use crate::aggregator::{Estimate, Needed};
use crate::grid::Grid;
use crate::volume::marked_bytes;

/// The ways in which outputs, or a part of them, can be written, with the known facts about each.
pub(super) struct Ways<'a> {
    outputs: &'a [PlannedOutput],
    estimates: Vec<Estimate>,
    /// Bytes of unfinished chunks of coarser levels; the same for every way.
    waiting: u64,
    /// Bytes of the marks of which write chunks are written, where only some are.
    noted: u64,
    /// Whether the run can be resumed. Its write chunks are marked even if the outputs are not cut.
    resumed: bool,
    /// The most bytes of sums that may be kept elsewhere; `None` for any number.
    elsewhere: Option<u64>,
    grid: &'a Grid,
    /// The axes of the outputs in the order in which patches run along them, slowest first.
    order: [usize; 3],
    /// The write chunks to write; `None` for all.
    owned: Option<ChunkRanges>,
    /// The write chunks to cut; `None` if the outputs have no write chunks.
    all: Option<ChunkRanges>,
    /// Bytes that the outputs keep if they are not cut.
    uncut: Option<u64>,
    /// Numbers of pieces along the middle and the fastest axis, fewest first.
    counts: Vec<[u64; 2]>,
    known: Vec<Known>,
    /// The piece that was too large last: its index, and the number of pieces.
    large: (u64, u64),
}

/// The known facts about a way to cut the outputs.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Bytes that a longest piece in the middle keeps.
    one: Option<u64>,
    /// The most bytes that a piece keeps.
    all: Option<u64>,
    /// Bytes of a piece that was too large, where not all pieces were evaluated.
    some: u64,
    predictions: Option<u64>,
}

/// A way that fits: all at once, or cut in one of the ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    way: Option<usize>,
    pub(super) live_bytes: u64,
    /// The most bytes of sums and unfinished write chunks among these; 0 if the outputs are cut.
    pub(super) kept_bytes: u64,
}

impl Fit {
    pub(super) const fn is_cut(&self) -> bool {
        self.way.is_some()
    }
}

impl<'a> Ways<'a> {
    pub(super) fn new(
        outputs: &'a [PlannedOutput],
        grid: &'a Grid,
        owned: Option<ChunkRanges>,
        (resumed, elsewhere): (bool, Option<u64>),
    ) -> Self {
        let estimates: Vec<Estimate> = outputs.iter().map(PlannedOutput::estimate).collect();
        let noted = |(output, estimate): (&PlannedOutput, &Estimate)| {
            let done = if resumed {
                marked_bytes(&output.layout)
            } else {
                0
            };
            estimate.wanted_bytes().saturating_add(done)
        };
        let noted = outputs.iter().zip(&estimates).map(noted);
        let noted = noted.fold(0, u64::saturating_add);
        let waiting = outputs.iter().map(|output| {
            let uploads = output.upload_bytes();
            output.pyramid_buffer_bytes().saturating_add(uploads)
        });
        let all = owned.clone().or_else(|| passes::whole(outputs));
        // All outputs have the same axes.
        let order = outputs.first().map_or(grid.order(), PlannedOutput::order);
        let [_, b, c] = order;
        let most = |axis: usize| {
            let lengths = all.iter().flatten().map(|ranges| length(&ranges[axis]));
            lengths.min().unwrap_or(1)
        };
        let counts = match &all {
            Some(_) => passes::ways([most(b), most(c)]),
            None => Vec::new(),
        };
        Self {
            outputs,
            estimates,
            waiting: waiting.fold(0, u64::saturating_add),
            noted,
            resumed,
            elsewhere,
            grid,
            order,
            owned,
            all,
            uncut: None,
            known: vec![Known::default(); counts.len()],
            large: (0, 1),
            counts,
        }
    }

    /// Returns the first way that keeps at most `room` bytes; otherwise the fewest bytes with which a way might fit.
    pub(super) fn find(&mut self, room: u64) -> Result<Fit, u64> {
        let kept_bytes = match self.uncut {
            Some(known) => known,
            None => self.kept_bytes(self.owned.clone().as_ref()),
        };
        self.uncut = Some(kept_bytes);
        let is_whole = self.owned.is_none() && !self.resumed;
        let noted = if is_whole { 0 } else { self.noted };
        let at_once = kept_bytes
            .saturating_add(self.waiting)
            .saturating_add(noted);
        if at_once <= room {
            return Ok(Fit {
                way: None,
                live_bytes: at_once,
                kept_bytes,
            });
        }
        let mut least = at_once;
        for way in 0..self.counts.len() {
            if self.one(way) <= room
                && let Some(live_bytes) = self.most_within(way, room)
            {
                return Ok(Fit {
                    way: Some(way),
                    live_bytes,
                    kept_bytes: 0,
                });
            }
            least = least.min(self.one(way).max(self.known[way].some));
        }
        Err(least)
    }

    /// Returns the passes in which the outputs are written.
    pub(super) fn passes(&self, found: Fit) -> Vec<ChunkRanges> {
        match (found.way, &self.all) {
            (Some(way), Some(all)) => {
                let [_, b, c] = self.order;
                passes::pieces(all, [b, c], self.counts[way])
            }
            _ => self.owned.iter().cloned().collect(),
        }
    }

    /// Returns the bytes that a longest piece in the middle keeps: it has borders on all sides.
    fn one(&mut self, way: usize) -> u64 {
        if let Some(bytes) = self.known[way].one {
            return bytes;
        }
        let counts = self.counts[way];
        let [_, b, c] = self.order;
        let mut piece = self.all.clone().unwrap_or_default();
        for (axis, count) in [b, c].into_iter().zip(counts) {
            let long = |&n: &u64| {
                let cut = passes::piece(&piece, axis, n, count);
                let long = cut.first().map_or(0, |ranges| length(&ranges[axis]));
                (long, u64::MAX - n.abs_diff(count / 2))
            };
            let longest = (0..count).max_by_key(long).unwrap_or(0);
            piece = passes::piece(&piece, axis, longest, count);
        }
        let bytes = self.bytes_of(&piece);
        self.known[way].one = Some(bytes);
        bytes
    }

    /// Returns the bytes that a piece keeps.
    fn bytes_of(&mut self, piece: &ChunkRanges) -> u64 {
        let bytes = self.kept_bytes(Some(piece));
        bytes
            .saturating_add(self.waiting)
            .saturating_add(self.noted)
    }

    /// Returns the bytes that outputs, or a part of them, keep in memory; the largest number if they keep too many
    /// elsewhere.
    fn kept_bytes(&mut self, part: Option<&ChunkRanges>) -> u64 {
        if let Some(room) = self.elsewhere
            && elsewhere_bytes(&mut self.estimates, part) > room
        {
            return u64::MAX;
        }
        live_bytes(&mut self.estimates, part)
    }

    /// Returns the fewest bytes of sums that may be kept elsewhere: those of the smallest piece.
    pub(super) fn least_elsewhere(&mut self) -> u64 {
        let whole = elsewhere_bytes(&mut self.estimates, self.owned.as_ref());
        let Some(all) = self.all.clone() else {
            return whole;
        };
        let [_, b, c] = self.grid.order();
        let least = self.counts.clone().into_iter().map(|[rows, columns]| {
            let row = passes::piece(&all, b, rows / 2, rows);
            let piece = passes::piece(&row, c, columns / 2, columns);
            elsewhere_bytes(&mut self.estimates, Some(&piece))
        });
        least.min().unwrap_or(whole).min(whole)
    }

    /// Returns the most bytes that a piece keeps; `None` if a piece keeps more than `room`. The evaluation starts at
    /// the piece that was too large in the previous way.
    fn most_within(&mut self, way: usize, room: u64) -> Option<u64> {
        if let Some(bytes) = self.known[way].all {
            return (bytes <= room).then_some(bytes);
        }
        if self.known[way].some > room {
            return None;
        }
        let all = self.all.clone()?;
        let [_, b, c] = self.order;
        let [rows, columns] = self.counts[way];
        let count = rows * columns;
        let first = count * self.large.0 / self.large.1.max(1);
        let mut most = 0;
        for n in 0..count {
            let at = (first + n) % count;
            let row = passes::piece(&all, b, at / columns, rows);
            let piece = passes::piece(&row, c, at % columns, columns);
            let bytes = self.bytes_of(&piece);
            most = most.max(bytes);
            if most > room {
                self.known[way].some = most;
                self.large = (at, count);
                return None;
            }
        }
        self.known[way].all = Some(most);
        Some(most)
    }

    /// Returns the number of predictions of a way: patches between two pieces count for each.
    pub(super) fn predictions(&mut self, found: Fit) -> u64 {
        let Some(way) = found.way else {
            return self.grid.len();
        };
        if let Some(count) = self.known[way].predictions {
            return count;
        }
        let all = self.all.clone().unwrap_or_default();
        let (order, predicted) = (self.order, self.grid.order());
        let counts = [1, self.counts[way][0], self.counts[way][1]];
        let reach = Reach::new(self.outputs);
        let count = if self.outputs.iter().all(PlannedOutput::is_parallel) {
            // A patch is needed for a piece if it is needed along each axis.
            let along = |n: usize| -> u64 {
                let count = counts[n];
                let piece = |index: u64| passes::piece(&all, order[n], index, count);
                let needed = |part: ChunkRanges| reach.of(&part)[predicted[n]].len() as u64;
                (0..count).map(piece).map(needed).sum()
            };
            (0..3).map(along).fold(1, u64::saturating_mul)
        } else {
            let pieces = passes::pieces(&all, [order[1], order[2]], self.counts[way]);
            let patches = |piece: &ChunkRanges| -> u64 {
                reach
                    .of(piece)
                    .iter()
                    .map(|range| range.len() as u64)
                    .product()
            };
            pieces.iter().map(patches).sum()
        };
        self.known[way].predictions = Some(count);
        count
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// Returns the bytes that outputs, or a part of them, keep together.
fn live_bytes(estimates: &mut [Estimate], part: Option<&ChunkRanges>) -> u64 {
    let outputs = estimates.iter_mut().enumerate();
    let bytes = outputs.map(|(n, estimate)| estimate.live_bytes(part.map(|part| &part[n])));
    bytes.fold(0, u64::saturating_add)
}

/// Returns the bytes of sums that outputs, or a part of them, keep elsewhere.
pub(super) fn elsewhere_bytes(estimates: &mut [Estimate], part: Option<&ChunkRanges>) -> u64 {
    let outputs = estimates.iter_mut().enumerate();
    let bytes = outputs.map(|(n, estimate)| estimate.elsewhere_bytes(part.map(|part| &part[n])));
    bytes.fold(0, u64::saturating_add)
}

/// The patches that outputs need.
pub(super) struct Reach<'a> {
    outputs: &'a [PlannedOutput],
    needed: Vec<Needed>,
}

impl<'a> Reach<'a> {
    pub(super) fn new(outputs: &'a [PlannedOutput]) -> Self {
        let needed = |output: &PlannedOutput| {
            let channels = output.spec.channels;
            Needed::new(&output.grid, channels, &output.blending, &output.layout)
        };
        Self {
            needed: outputs.iter().map(needed).collect(),
            outputs,
        }
    }

    /// Returns the places, along z, y, x, of all patches that any output needs for a part.
    pub(super) fn of(&self, part: &ChunkRanges) -> [Range<usize>; 3] {
        let outputs = self.outputs.iter().zip(&self.needed).zip(part);
        let some = outputs.filter(|(_, within)| within.iter().all(|range| !range.is_empty()));
        let of_outputs = some
            .map(|((output, needed), within)| needed.patches(&output.grid, &output.layout, within));
        let both = |a: [Range<usize>; 3], b: [Range<usize>; 3]| {
            std::array::from_fn(|i| a[i].start.min(b[i].start)..a[i].end.max(b[i].end))
        };
        of_outputs.reduce(both).unwrap_or_default()
    }
}
