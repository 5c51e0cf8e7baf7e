//! The positions of patches that cover a volume.
//!
//! A grid is the product of three lists of starts, so its memory and the time to plan it grow with the sum of the axes,
//! not with their product. Patches are numbered in the grid's order, the slowest axis first; if the last layer of patches is
//! shifted into the volume, the last two layers are swept together, row by row. Patches may extend beyond the volume's faces
//! if padding is allowed; voxels outside are never written.

mod sweep;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::region::{AXES, ORDERS, Region, Shape};
use crate::words::Word;
use sweep::Sweep;

/// Patches of one size that cover a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    axes: [Axis; 3],
    sweep: Sweep,
}

/// The starts of a grid along one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Voxels of the volume.
    pub length: u64,
    /// Voxels of a patch.
    pub patch: u64,
    /// The first voxels of the patches, in increasing order; negative if a patch starts before the volume.
    pub starts: Vec<i64>,
}

/// The placement of patches along an axis. The step `S` is patch minus overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GridPlacement {
    /// At 0, S, 2S, ... as long as they fit, and one at the far edge (`TorchIO`, MONAI).
    #[default]
    Edge,
    /// The same number as with `Edge`, spread evenly, with halves rounded to even (nnU-Net).
    Even,
    /// At multiples of S, with the last patch extending beyond the far edge, so that starts align with chunks.
    Padded,
    /// The given numbers of patches along z, y, x, spread evenly as with `Even`. S is ignored, and steps may be
    /// fractions of voxels.
    Spread(Shape),
}

/// The options of a grid, apart from patch and overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GridOptions {
    /// The placement of patches.
    pub placement: GridPlacement,
    /// Voxels (z, y, x) beyond each face that patches also cover.
    pub margin: Shape,
    /// Whether a volume smaller than a patch is padded to the patch's size, equally at both faces. If `false`, it is an
    /// error.
    pub fit: bool,
}

/// The most patches along an axis, because their starts are in memory.
const MOST_STARTS: u64 = 1 << 24;
/// The most patches of a grid, because one bit per patch is in memory.
const MOST_PATCHES: u64 = 1 << 38;
/// The most voxels of a patch along an axis.
const LONGEST: u64 = 1 << 40;

impl Axis {
    fn new(
        length: u64,
        patch: u64,
        overlap: u64,
        margin: u64,
        options: &GridOptions,
    ) -> Option<Self> {
        let whole = length.checked_add(margin.checked_mul(2)?)?;
        let step = patch - overlap;
        let first = -i64::try_from(margin).ok()?;
        let (first, offsets) = match whole.checked_sub(patch) {
            None if options.placement == GridPlacement::Padded => (first, vec![0]),
            None => (first - i64::try_from((patch - whole) / 2).ok()?, vec![0]),
            Some(last) => (first, options.placement.offsets(last, step)),
        };
        let start = |offset| i64::try_from(offset).ok().map(|offset| first + offset);
        Some(Self {
            length,
            patch,
            starts: offsets.into_iter().map(start).collect::<Option<_>>()?,
        })
    }

    /// Returns the patches that contain any voxel of `from..to`.
    #[must_use]
    pub fn touching(&self, from: u64, to: u64) -> Range<usize> {
        let ends_before = |&start: &i64| i128::from(start) + i128::from(self.patch) <= from.into();
        let first = self.starts.partition_point(ends_before);
        let starts_before = |&start: &i64| i128::from(start) < to.into();
        let end = self.starts.partition_point(starts_before);
        first..end.max(first)
    }

    /// Returns the voxels of the volume that patch `place` contains.
    ///
    /// # Panics
    ///
    /// If the patch does not exist.
    #[must_use]
    pub fn inside(&self, place: usize) -> Range<u64> {
        let start = self.starts[place];
        let end = i128::from(start) + i128::from(self.patch);
        let from = u64::try_from(start).unwrap_or(0).min(self.length);
        from..u64::try_from(end).unwrap_or(0).clamp(from, self.length)
    }

    /// Returns the voxels that any patch contains.
    #[must_use]
    pub fn covered(&self) -> Range<u64> {
        self.inside(0).start..self.inside(self.starts.len() - 1).end
    }

    /// Returns the largest distance between consecutive starts; the patch's length (at most the volume's) if there is
    /// one start.
    #[must_use]
    pub fn widest_step(&self) -> u64 {
        self.widest(|gap| gap)
    }

    /// Returns the maximum of `of` over the gaps between consecutive starts.
    fn widest(&self, of: impl Fn(u64) -> u64) -> u64 {
        let gaps = self
            .starts
            .windows(2)
            .map(|pair| of(pair[0].abs_diff(pair[1])));
        gaps.max()
            .unwrap_or_else(|| of(self.patch.min(self.length)))
    }

    /// Returns the distance of a start to the one before.
    fn gap(&self, place: usize) -> u64 {
        self.starts[place].abs_diff(self.starts[place - 1])
    }

    /// Returns the voxels that a patch shares with the next one, `gap` voxels further.
    fn held(&self, gap: u64) -> u64 {
        self.patch.min(self.length).saturating_sub(gap)
    }

    /// Returns the same patches along the output's axis, for a model that crops `halo` voxels from each face and
    /// downsamples by `scale`.
    fn output(&self, name: char, halo: u64, scale: u64) -> Result<Self> {
        let refuse = |problem: String| Error::OutputGrid {
            axis: name,
            halo,
            scale,
            problem,
        };
        let kept = self.patch.checked_sub(2 * halo).filter(|&kept| kept > 0);
        let kept = kept.ok_or_else(|| refuse(format!("patches have {} voxels", self.patch)))?;
        if !kept.is_multiple_of(scale) {
            return Err(refuse(format!(
                "{kept} of a patch's {} voxels are predicted, which is not a multiple of {scale}",
                self.patch
            )));
        }
        let (halo, step) = (
            i64::try_from(halo).unwrap_or(i64::MAX),
            i64::try_from(scale).unwrap_or(i64::MAX),
        );
        let mut starts = Vec::with_capacity(self.starts.len());
        for start in &self.starts {
            let start = start.saturating_add(halo);
            if start % step != 0 {
                return Err(refuse(format!(
                    "a prediction starts at voxel {start}, between two of the output: take a step (patch - overlap) \
                     that is a multiple of {scale} and the placement `padded`"
                )));
            }
            starts.push(start / step);
        }
        if let Some(pair) = starts
            .windows(2)
            .find(|pair| pair[0].abs_diff(pair[1]) > kept / scale)
        {
            return Err(refuse(format!(
                "predictions that start at {} and {} leave a gap: an overlap of {} or more closes it",
                pair[0] * step,
                pair[1] * step,
                2 * halo
            )));
        }
        Ok(Self {
            length: self.length.div_ceil(scale),
            patch: kept / scale,
            starts,
        })
    }
}

impl fmt::Display for GridPlacement {
    /// Writes the word that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge => f.pad("edge"),
            Self::Even => f.pad("even"),
            Self::Padded => f.pad("padded"),
            Self::Spread([z, y, x]) => write!(f, "even:{z},{y},{x}"),
        }
    }
}

impl FromStr for GridPlacement {
    type Err = Error;

    /// Parses `edge`, `even`, `even:Z,Y,X` (that many patches along each axis) or `padded`.
    fn from_str(text: &str) -> Result<Self> {
        let word = Word::new("placement", text, "edge, even[:Z,Y,X] and padded");
        Ok(match word.split() {
            ("edge", None) => Self::Edge,
            ("even", None) => Self::Even,
            ("even", Some(counts)) => Self::Spread(word.numbers(counts)?),
            ("padded", None) => Self::Padded,
            _ => return Err(word.unknown()),
        })
    }
}

impl GridPlacement {
    /// Returns the most starts along an axis on which patches can start at 0 to `last`.
    const fn most_starts(last: u64, step: u64) -> u64 {
        last.div_ceil(step).saturating_add(1)
    }

    /// Returns the starts from 0 to `last`, or beyond if patches may extend beyond the volume.
    fn offsets(self, last: u64, step: u64) -> Vec<u64> {
        let count = last.div_ceil(step);
        match self {
            Self::Edge => (0..count).map(|i| i * step).chain([last]).collect(),
            Self::Padded => (0..=count).map(|i| i * step).collect(),
            Self::Even => (0..=count)
                .map(|i| rounded(i, last, count.max(1)))
                .collect(),
            Self::Spread([count, ..]) => {
                let gaps = count.saturating_sub(1).max(1);
                let mut all: Vec<u64> = (0..count).map(|i| rounded(i, last, gaps)).collect();
                // Equal starts count once.
                all.dedup();
                all
            }
        }
    }

    /// Returns the placement for a single axis.
    const fn along(self, axis: usize) -> Self {
        match self {
            Self::Spread(counts) => Self::Spread([counts[axis]; 3]),
            other => other,
        }
    }
}

/// Returns `i * last / count`, rounded half to even. Where `f64` is exact, it is computed as in nnU-Net.
fn rounded(i: u64, last: u64, count: u64) -> u64 {
    if last < 1 << 52 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "all are below 2^53"
        )]
        return ((last as f64 / count as f64 * i as f64).round_ties_even() as u64).min(last);
    }
    let product = u128::from(i) * u128::from(last);
    let (whole, rest) = (product / u128::from(count), product % u128::from(count));
    let up = match (2 * rest).cmp(&u128::from(count)) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => whole % 2 == 1,
        std::cmp::Ordering::Greater => true,
    };
    u64::try_from(whole).unwrap_or(u64::MAX) + u64::from(up)
}

impl Grid {
    /// Creates a grid of patches that overlap by `overlap` voxels, with the last along each axis moved to the edge. The
    /// order of the axes is the one with the fewest unfinished voxels.
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`] if a patch is empty or does not fit, [`Error::Overlap`] if the overlap leaves no step,
    /// [`Error::InvalidArgument`] if there are too many patches.
    pub fn new(volume: Shape, patch: Shape, overlap: Shape) -> Result<Self> {
        Self::with_options(volume, patch, overlap, &GridOptions::default())
    }

    /// Creates a grid with a different placement, or with patches beyond the volume's faces.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), except that a patch may be larger than the volume if the options allow it.
    pub fn with_options(
        volume: Shape,
        patch: Shape,
        overlap: Shape,
        options: &GridOptions,
    ) -> Result<Self> {
        let hangs_over = options.fit || options.placement == GridPlacement::Padded;
        for a in 0..3 {
            let room = volume[a].saturating_add(options.margin[a].saturating_mul(2));
            if patch[a] == 0 || volume[a] == 0 || (patch[a] > room && !hangs_over) {
                return Err(Error::PatchSize {
                    axis: AXES[a],
                    patch: patch[a],
                    volume: volume[a],
                });
            }
            if overlap[a] >= patch[a] {
                return Err(Error::Overlap {
                    axis: AXES[a],
                    overlap: overlap[a],
                    patch: patch[a],
                });
            }
        }
        check_counts(volume, patch, overlap, options)?;
        let axis = |a: usize| {
            let options = GridOptions {
                placement: options.placement.along(a),
                ..*options
            };
            let axis = Axis::new(volume[a], patch[a], overlap[a], options.margin[a], &options);
            axis.ok_or(Error::PatchSize {
                axis: AXES[a],
                patch: patch[a],
                volume: volume[a],
            })
        };
        Ok(Self::of([axis(0)?, axis(1)?, axis(2)?]))
    }

    /// Creates the product of three axes, in the order with the fewest unfinished voxels.
    fn of(axes: [Axis; 3]) -> Self {
        let layers = axes.each_ref().map(|axis| axis.starts.len());
        let alone = |order: [usize; 3]| Sweep {
            order,
            joined: layers[order[0]],
        };
        let mut grid = Self {
            sweep: alone([0, 1, 2]),
            axes,
        };
        let best = ORDERS.into_iter().map(alone);
        let best = best.min_by_key(|&sweep| grid.frontier_in(sweep));
        grid.sweep = best.unwrap_or(grid.sweep);
        if let Some(joined) = grid.shifted() {
            let sweep = Sweep {
                joined,
                ..grid.sweep
            };
            // A few more voxels in exchange for the chunks that would wait for the last layer.
            let alone = grid.frontier();
            if grid.frontier_in(sweep) <= alone.saturating_add(alone / 8) {
                grid.sweep = sweep;
            }
        }
        grid
    }

    /// Returns the place of the last layer but one if the last one is shifted into the volume, and others come before.
    fn shifted(&self) -> Option<usize> {
        let slow = &self.axes[self.sweep.order[0]];
        let joined = slow
            .starts
            .len()
            .checked_sub(2)
            .filter(|&place| place > 0)?;
        // Gaps between starts that are spread evenly differ by 1.
        (slow.gap(joined + 1) + 1 < slow.gap(joined)).then_some(joined)
    }

    /// Returns the same patches on the output grid of a model that crops `halo` voxels (z, y, x) from each face of a
    /// patch and downsamples by `scale`.
    ///
    /// The output has `ceil(N / scale)` voxels along an axis of `N`.
    ///
    /// # Errors
    ///
    /// [`Error::OutputGrid`] if a prediction would start between two voxels of the output, or
    /// predictions leave gaps.
    pub fn output(&self, halo: Shape, scale: u64) -> Result<Self> {
        let scale = scale.max(1);
        let axis = |a: usize| self.axes[a].output(AXES[a], halo[a], scale);
        Ok(Self {
            axes: [axis(0)?, axis(1)?, axis(2)?],
            sweep: self.sweep,
        })
    }

    /// Returns the axes z, y, x.
    #[must_use]
    pub const fn axes(&self) -> &[Axis; 3] {
        &self.axes
    }

    /// Axes from the slowest to the fastest.
    #[must_use]
    pub const fn order(&self) -> [usize; 3] {
        self.sweep.order
    }

    /// Returns the place along the slowest axis from which on layers of patches are swept together, row by row: all patches
    /// of a row come before those of the next. It is the number of layers if each is swept on its own.
    #[must_use]
    pub const fn joined(&self) -> usize {
        self.sweep.joined
    }

    /// Returns the shape of the volume (z, y, x).
    #[must_use]
    pub fn volume(&self) -> Shape {
        std::array::from_fn(|a| self.axes[a].length)
    }

    /// Returns the shape of a patch (z, y, x).
    #[must_use]
    pub fn patch(&self) -> Shape {
        std::array::from_fn(|a| self.axes[a].patch)
    }

    /// Returns the number of patches.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.axes
            .iter()
            .map(|axis| axis.starts.len() as u64)
            .product()
    }

    /// Returns `true` if there are no patches; a grid always has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the place of patch `index` along each axis, or `None` if the patch does not exist.
    #[must_use]
    pub fn place(&self, index: u64) -> Option<[usize; 3]> {
        let counts = self.axes.each_ref().map(|axis| axis.starts.len());
        self.sweep.place(counts, index)
    }

    /// Returns the number of the patch at a place along z, y, x.
    ///
    /// # Panics
    ///
    /// If the patch does not exist.
    #[must_use]
    pub fn number(&self, place: [usize; 3]) -> u64 {
        let all = self.every_place();
        assert!(
            (0..3).all(|a| all[a].contains(&place[a])),
            "there is no patch at {place:?}"
        );
        self.sweep.number(&all, place)
    }

    /// Returns the number of the patches at some places along z, y, x that come before the one at `place`, which is one of
    /// them.
    pub(crate) fn number_within(&self, places: &[Range<usize>; 3], place: [usize; 3]) -> u64 {
        self.sweep.number(places, place)
    }

    /// Returns the first patch at some places along z, y, x whose index is at least `from`.
    pub(crate) fn next_within(&self, places: &[Range<usize>; 3], from: u64) -> Option<u64> {
        let next = self.sweep.next(places, self.place(from)?)?;
        Some(self.number(next))
    }

    /// Returns the places of all patches along z, y, x.
    pub(crate) fn every_place(&self) -> [Range<usize>; 3] {
        self.axes.each_ref().map(|axis| 0..axis.starts.len())
    }

    /// Returns patch `index` in the grid's order.
    #[must_use]
    pub fn get(&self, index: u64) -> Option<Region> {
        let place = self.place(index)?;
        let start = |a: usize| self.axes[a].starts[place[a]];
        Some(Region::new(std::array::from_fn(start), self.patch()))
    }

    /// Returns the indices of all patches whose places along z, y, x are in these ranges, in order.
    pub(crate) fn indices(&self, places: &[Range<usize>; 3]) -> impl Iterator<Item = u64> + use<> {
        let (sweep, all) = (self.sweep, self.every_place());
        sweep
            .places(places)
            .map(move |place| sweep.number(&all, place))
    }

    /// Returns all patches in order.
    pub fn iter(&self) -> impl Iterator<Item = Region> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Returns the most voxels that are unfinished at any moment of an in-order sweep: touched by an earlier patch and
    /// by a later one.
    ///
    /// With patches P, gaps between starts G and lengths N, slowest axis first, this is the largest (P0-G0) N1 N2 + G0
    /// ((P1-G1) N2 + G1 P2) over the gaps of the two slower axes. Where the last two layers are swept together, it is counted row
    /// by row for these.
    #[must_use]
    pub fn frontier(&self) -> u64 {
        self.frontier_in(self.sweep)
    }

    fn frontier_in(&self, sweep: Sweep) -> u64 {
        let [a, b, c] = sweep.order.map(|axis| &self.axes[axis]);
        let row = b.widest(|gap| {
            let lines = b.held(gap).saturating_mul(c.length);
            lines.saturating_add(gap.saturating_mul(c.patch.min(c.length)))
        });
        let layer = b.length.saturating_mul(c.length);
        let alone = |gap: u64| {
            let layers = a.held(gap).saturating_mul(layer);
            layers.saturating_add(gap.saturating_mul(row))
        };
        if sweep.joined == a.starts.len() {
            return a.widest(alone);
        }
        let before = (1..sweep.joined).map(|place| alone(a.gap(place)));
        let before = before.max().unwrap_or(0);
        before.max(self.joined_frontier(sweep))
    }

    /// Returns the most unfinished voxels while the last two layers are swept together.
    fn joined_frontier(&self, sweep: Sweep) -> u64 {
        let [a, b, c] = sweep.order.map(|axis| &self.axes[axis]);
        // Longer axes count as long as the longest patch, so that no product overflows.
        let wide = |length: u64| i128::from(length.min(LONGEST));
        let (first, last) = (wide(a.gap(sweep.joined)), wide(a.gap(sweep.joined + 1)));
        let (planes, length) = (wide(a.patch.min(a.length)), wide(c.length));
        let one = wide(c.patch.min(c.length));
        let rows = b.starts.len();
        let most = (0..rows).map(|row| {
            let inside = b.inside(row);
            let (start, whole) = (wide(inside.start), wide(inside.end - inside.start));
            // The lines that this row is the first or the last to touch.
            let begun = if row == 0 { whole } else { wide(b.gap(row)) };
            let ended = if row + 1 == rows {
                whole
            } else {
                wide(b.gap(row + 1))
            };
            let held = (planes - first).max(0) * (wide(b.length) - start) * length
                + (first + last) * (whole - begun) * length;
            // When the first layer's patches of the row begin, when the second layer's do, and when all have ended.
            let moments = [
                first * begun * one,
                first * begun * length + last * begun * one - last * ended * (length - one),
                (first + last) * begun * length - planes * ended * (length - one),
            ];
            held + moments.into_iter().max().unwrap_or(0)
        });
        u64::try_from(most.max().unwrap_or(0)).unwrap_or(u64::MAX)
    }
}

/// Checks that patches and their number are not too large for memory, before any allocation.
fn check_counts(volume: Shape, patch: Shape, overlap: Shape, options: &GridOptions) -> Result<()> {
    let refuse = |name, value: String, problem: String| {
        Err(Error::InvalidArgument {
            argument: name,
            value,
            problem,
        })
    };
    let mut all = 1_u64;
    for a in 0..3 {
        if patch[a] > LONGEST {
            let problem = format!("patches have at most {LONGEST} voxels along an axis");
            return refuse("patch size", format!("{patch:?}"), problem);
        }
        let room = volume[a].saturating_add(options.margin[a].saturating_mul(2));
        let step = patch[a] - overlap[a];
        let last = room.saturating_sub(patch[a]);
        let count = match options.placement {
            GridPlacement::Spread(counts) => counts[a],
            _ => GridPlacement::most_starts(last, step),
        };
        if let GridPlacement::Spread(_) = options.placement
            && (count == 0
                || (last > 0 && last.div_ceil(count.saturating_sub(1).max(1)) > patch[a])
                || (last > 0 && count == 1))
        {
            let problem = format!(
                "patches of {} voxels leave gaps along {} of {room}",
                patch[a], AXES[a]
            );
            return refuse("number of patches", count.to_string(), problem);
        }
        if count > MOST_STARTS || options.margin[a] > i64::MAX.unsigned_abs() / 4 {
            let problem = format!(
                "a step of {step} makes {count} patches along {} of {} voxels with a margin of {} at each face, and \
                 there are at most {MOST_STARTS}: take larger patches, less overlap or a smaller margin",
                AXES[a], volume[a], options.margin[a]
            );
            return refuse("overlap", format!("{overlap:?}"), problem);
        }
        all = all.saturating_mul(count);
    }
    if all > MOST_PATCHES {
        let problem = format!(
            "they make {all} patches, and there are at most {MOST_PATCHES}: take larger patches or less overlap"
        );
        let value = format!("{patch:?} with an overlap of {overlap:?}");
        return refuse("grid", value, problem);
    }
    Ok(())
}

/// Checks that a patch has voxels and fits into a volume.
///
/// # Errors
///
/// [`Error::PatchSize`] for the first axis where it does not.
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

    fn starts(length: u64, patch: u64, overlap: u64) -> Vec<i64> {
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
        assert_eq!(scan.joined(), 14, "the last two layers of 16");
        assert_eq!((scan.frontier() * 4) >> 20, 79);
    }

    /// Returns the most voxels that are unfinished at any moment, by looking at each.
    fn counted(grid: &Grid) -> u64 {
        let shape = grid.volume();
        let [_, ny, nx] = shape;
        let voxels = usize::try_from(Region::whole(shape).voxels()).unwrap();
        let mut moments = vec![None; voxels];
        for (n, patch) in grid.iter().enumerate() {
            let inside = patch.intersection(&Region::whole(shape)).unwrap();
            let [z, y, x] = std::array::from_fn(|a| {
                inside.start[a].unsigned_abs()..inside.end()[a].unsigned_abs()
            });
            for [z, y, x] in crate::region::indices([z, y, x]) {
                let voxel = usize::try_from((z * ny + y) * nx + x).unwrap();
                moments[voxel].get_or_insert((n, n)).1 = n;
            }
        }
        let mut changes = vec![0_i64; usize::try_from(grid.len()).unwrap() + 1];
        for (first, last) in moments.into_iter().flatten() {
            changes[first] += 1;
            changes[last + 1] -= 1;
        }
        let mut now = 0;
        let held = changes.iter().map(|change| {
            now += change;
            now.unsigned_abs()
        });
        held.max().unwrap_or(0)
    }

    #[test]
    fn the_frontier_is_what_counting_each_voxel_finds_or_a_little_more() {
        let mut state = 5_u64;
        let mut next = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        let (mut joined, mut fewer) = (0, 0);
        for _ in 0..600 {
            let patch: Shape = std::array::from_fn(|_| 3 + next(7));
            let volume: Shape = std::array::from_fn(|a| patch[a] + next(24));
            let overlap = patch.map(|length| next(length.div_ceil(2) + 1).min(length - 1));
            let grid = Grid::new(volume, patch, overlap).unwrap();
            let found = counted(&grid);
            assert!(
                found <= grid.frontier(),
                "{volume:?} {patch:?} {overlap:?}: {found}"
            );
            let layers = grid.axes()[grid.order()[0]].starts.len();
            if grid.joined() == layers {
                continue;
            }
            joined += 1;
            assert!(
                grid.frontier() <= found + found / 2,
                "{volume:?} {patch:?} {overlap:?} {} {found}",
                grid.frontier()
            );
            let mut alone = grid.clone();
            alone.sweep.joined = layers;
            let by_layers = counted(&alone);
            assert!(found <= by_layers + by_layers / 8, "{found} {by_layers}");
            fewer += u32::from(found < by_layers);
        }
        assert!(joined > 50 && fewer > joined / 2, "{fewer} of {joined}");
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
    fn sizes_beyond_memory_are_refused_before_anything_is_allocated() {
        let sizes = [0, 1, 7, 1 << 31, 1 << 40, 1 << 62, 1 << 63, u64::MAX];
        let mut made = 0;
        let patches = [0, 1, 7, 1 << 31, 1 << 62, u64::MAX];
        for (patch, overlap) in patches.iter().flat_map(|&p| sizes.map(|o| (p, o))) {
            for (length, margin) in sizes.iter().flat_map(|&n| sizes.map(|m| (n, m))) {
                for placement in [
                    GridPlacement::Edge,
                    GridPlacement::Even,
                    GridPlacement::Padded,
                    GridPlacement::Spread([overlap; 3]),
                ] {
                    for fit in [false, true] {
                        let options = GridOptions {
                            placement,
                            margin: [margin, 0, 1],
                            fit,
                        };
                        let (volume, patch) = ([length, 7, 9], [patch, 3, 3]);
                        let grid = Grid::with_options(volume, patch, [overlap, 1, 2], &options);
                        made += u64::from(grid.is_ok_and(|grid| grid.len() <= MOST_PATCHES));
                    }
                }
            }
        }
        assert!(made > 100, "{made}");
        let error = Grid::new([1 << 13; 3], [1; 3], [0; 3]).unwrap_err();
        assert!(
            error.to_string().contains("549755813888 patches"),
            "{error}"
        );
        let options = GridOptions {
            margin: [1_000_000_000_000, 0, 0],
            ..GridOptions::default()
        };
        let error = Grid::with_options([20; 3], [8; 3], [4; 3], &options).unwrap_err();
        assert!(
            error.to_string().contains("a margin of 1000000000000"),
            "{error}"
        );
    }

    #[test]
    fn touching_agrees_with_looking_at_every_patch() {
        for (length, patch, overlap) in [(10, 5, 2), (97, 16, 5), (30, 7, 6), (12, 12, 3)] {
            let options = GridOptions {
                margin: [overlap / 2; 3],
                ..GridOptions::default()
            };
            let axis = Axis::new(length, patch, overlap, overlap / 2, &options).unwrap();
            for from in 0..length {
                for to in from + 1..=length {
                    let touches = |&i: &usize| {
                        let inside = axis.inside(i);
                        inside.start < to && inside.end > from
                    };
                    let all: Vec<usize> = (0..axis.starts.len()).filter(touches).collect();
                    assert_eq!(axis.touching(from, to).collect::<Vec<_>>(), all);
                }
            }
        }
    }

    fn placed(length: u64, patch: u64, overlap: u64, options: GridOptions) -> Vec<i64> {
        let (volume, overlap) = ([1, 1, length], [0, 0, overlap]);
        let grid = Grid::with_options(volume, [1, 1, patch], overlap, &options).unwrap();
        grid.axes()[2].starts.clone()
    }

    #[test]
    fn even_starts_are_nnu_net_s() {
        let even = GridOptions {
            placement: GridPlacement::Even,
            ..GridOptions::default()
        };
        assert_eq!(placed(110, 64, 32, even), [0, 23, 46]);
        let starts = placed(1069, 128, 64, even);
        assert_eq!((starts.len(), starts[15]), (16, 941));
        assert!(
            starts
                .windows(2)
                .all(|pair| [62, 63].contains(&(pair[1] - pair[0])))
        );
        // 2.5 and 7.5 round to the even neighbor.
        assert_eq!(placed(20, 10, 7, even), [0, 2, 5, 8, 10]);
        assert_eq!(placed(64, 64, 32, even), [0]);
    }

    #[test]
    fn a_number_of_patches_is_spread_without_gaps_or_refused() {
        let spread = |length, patch, count| {
            let options = GridOptions {
                placement: GridPlacement::Spread([1, 1, count]),
                ..GridOptions::default()
            };
            Grid::with_options([1, 1, length], [1, 1, patch], [0; 3], &options)
                .map(|grid| grid.axes()[2].starts.clone())
        };
        assert_eq!(spread(110, 64, 3).unwrap(), [0, 23, 46]);
        assert_eq!(spread(64, 64, 1).unwrap(), [0]);
        // nnU-Net's starts for patches of 5 and a step of half a patch, 2.5 voxels.
        assert_eq!(spread(15, 5, 5).unwrap(), [0, 2, 5, 8, 10]);
        assert_eq!(spread(6, 5, 9).unwrap(), [0, 1], "no place twice");
        for (length, patch, count) in [(64, 8, 0), (64, 8, 1), (64, 8, 7), (64, 8, 1 << 62)] {
            let error = spread(length, patch, count).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        }
        assert_eq!(spread(64, 8, 8).unwrap().len(), 8);
    }

    #[test]
    fn padded_starts_stay_on_multiples_of_the_step() {
        let padded = GridOptions {
            placement: GridPlacement::Padded,
            ..GridOptions::default()
        };
        assert_eq!(placed(10, 5, 2, padded), [0, 3, 6]);
        assert_eq!(placed(11, 5, 2, padded), [0, 3, 6]);
        assert_eq!(placed(3, 5, 2, padded), [0]);
        assert_eq!(placed(1069, 128, 64, padded).last(), Some(&960));
    }

    #[test]
    fn margins_are_covered_and_small_volumes_are_padded_equally_at_both_faces() {
        let margin = |margin, fit| GridOptions {
            margin: [0, 0, margin],
            fit,
            ..GridOptions::default()
        };
        assert_eq!(placed(10, 6, 4, margin(2, false)), [-2, 0, 2, 4, 6]);
        assert_eq!(placed(5, 8, 2, margin(0, true)), [-1]);
        assert_eq!(placed(5, 8, 2, margin(1, true)), [-1]);
        let axis = Axis::new(5, 8, 2, 1, &margin(1, true)).unwrap();
        assert_eq!((axis.inside(0), axis.covered()), (0..5, 0..5));
        let error = Grid::with_options([1, 1, 5], [1, 1, 8], [0; 3], &margin(1, false));
        assert!(matches!(
            error,
            Err(Error::PatchSize {
                axis: 'x',
                patch: 8,
                volume: 5
            })
        ));
    }

    #[test]
    fn outputs_of_other_scale_or_without_halo_meet_the_volume_s_voxels_or_are_refused() {
        let padded = GridOptions {
            placement: GridPlacement::Padded,
            ..GridOptions::default()
        };
        let grid = Grid::with_options([70, 33, 32], [32; 3], [16; 3], &padded).unwrap();
        let half = grid.output([0; 3], 2).unwrap();
        assert_eq!((half.volume(), half.patch()), ([35, 17, 16], [16; 3]));
        assert_eq!(half.axes()[0].starts, [0, 8, 16, 24]);
        let valid = grid.output([4; 3], 1).unwrap();
        assert_eq!((valid.volume(), valid.patch()), ([70, 33, 32], [24; 3]));
        assert_eq!(valid.axes()[2].covered(), 4..28);
        assert_eq!(valid.order(), grid.order());
        for (grid, halo, scale) in [
            (Grid::new([70, 64, 64], [32; 3], [16; 3]).unwrap(), 0, 4),
            (grid.clone(), 9, 1),
            (grid.clone(), 16, 1),
            (grid, 1, 4),
        ] {
            let error = grid.output([halo; 3], scale).unwrap_err();
            assert!(matches!(error, Error::OutputGrid { .. }), "{error}");
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
