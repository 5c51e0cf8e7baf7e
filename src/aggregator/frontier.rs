//! The unfinished blocks of an output whose sums are kept elsewhere, such as on a GPU.
//!
//! A [`Frontier`] has the plan and the bookkeeping, but no voxels: it says which part of a patch goes into which block,
//! with which weights, and which blocks become final. The holder of the predictions adds them up, reduces final
//! blocks, and passes the reduced values to [`Aggregator::add_block`](super::Aggregator::add_block).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::blocks::{Blocks, Intersection, product};
use super::options::{AggregatorOptions, Skipped};
use super::part;
use super::sums::Accumulator;
use super::window::{Blend, Weights, Window, owned};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::{Axis, Grid};
use crate::region::{Region, Shape};

/// The unfinished blocks of an output whose sums are kept elsewhere.
#[derive(Debug)]
pub struct Frontier {
    channels: u64,
    output: DType,
    options: AggregatorOptions,
    boxes: Boxes,
    weights: Weights,
    state: Mutex<FrontierState>,
}

/// The boxes that become final one by one.
#[derive(Debug)]
enum Boxes {
    /// Blocks of weighted sums.
    Blocks(Blocks),
    /// Under `crop`: the box that each patch owns. A bit set of the boxes to write; `None` for all.
    Owned {
        grid: Grid,
        owned: [Vec<Range<u64>>; 3],
        wanted: Option<Vec<u64>>,
    },
}

#[derive(Debug, Default)]
struct FrontierState {
    /// A bit set of the patches that were added or skipped.
    seen: Vec<u64>,
    live: HashMap<u64, BlockVotes>,
    /// Final blocks whose values have not come, with the flags of voxels that no patch covers.
    finished: HashMap<u64, (Region, Vec<bool>)>,
    patches: u64,
    skipped: u64,
}

#[derive(Debug, Default)]
struct BlockVotes {
    /// Number of patches that were added or skipped so far.
    turn: usize,
    voted: Vec<[usize; 3]>,
}

/// The contribution of a patch to a [`Frontier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchVote {
    /// Its prediction.
    Prediction,
    /// It was skipped: the contribution is an [option](Skipped).
    Skip,
    /// It was left out, because its prediction is not finite.
    LeaveOut,
}

/// The contribution of one patch to one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStep {
    /// The number of the block.
    pub block: u64,
    /// Its region in the output.
    pub region: Region,
    /// The voxels that the block and the patch share.
    pub common: BlockPart,
    /// Whether the patch adds to the block.
    pub votes: bool,
    /// Whether the block has no sums yet.
    pub is_fresh: bool,
    /// How the block becomes final; `None` if patches are still to come.
    pub end: Option<BlockEnd>,
}

/// The voxels that a block and a patch share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPart {
    /// The place of the patch along z, y, x.
    pub place: [usize; 3],
    /// The first voxel in the block.
    pub to: [usize; 3],
    /// The first voxel in the patch.
    pub from: [usize; 3],
    /// The shape.
    pub shape: [usize; 3],
}

/// How a block becomes final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockEnd {
    /// No patch voted: it has no values.
    Empty,
    /// The sums are the result.
    Sums,
    /// The sums are divided by the sums of the weights of these parts.
    Divide(Vec<BlockPart>),
}

/// The weights of the voxels of a patch.
#[derive(Clone, Copy, Debug)]
pub enum BlockWeights<'a> {
    /// Voxels are passed on without weights.
    None,
    /// For each axis (z, y, x) and each start along it, a factor for each voxel of the patch.
    Factors(&'a [Vec<Vec<f32>>; 3]),
    /// A weight for each voxel of any patch.
    Window(&'a Window),
}

impl Frontier {
    /// Creates the state without any block. `wanted` selects the boxes to write; `None` for all.
    pub(super) fn new(
        grid: &Grid,
        channels: u64,
        options: &AggregatorOptions,
        output: DType,
        wanted: Option<&dyn Fn(&Region) -> bool>,
    ) -> Self {
        let boxes = if options.blend == Blend::Crop {
            let owned = grid.axes().each_ref().map(owned);
            let bits = |wanted: &dyn Fn(&Region) -> bool| {
                let words = usize::try_from(grid.len().div_ceil(64)).unwrap_or(usize::MAX);
                let mut bits = vec![0_u64; words];
                for (n, place) in product(grid.every_place()).enumerate() {
                    bits[n / 64] |= u64::from(wanted(&part(&owned, place))) << (n % 64);
                }
                bits
            };
            Boxes::Owned {
                wanted: wanted.map(bits),
                grid: grid.clone(),
                owned,
            }
        } else {
            Boxes::Blocks(Blocks::new(grid, wanted))
        };
        let words = usize::try_from(grid.len().div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            channels,
            output,
            options: options.clone(),
            boxes,
            weights: Weights::new(grid, &options.blend, false).0,
            state: Mutex::new(FrontierState {
                seen: vec![0; words],
                ..FrontierState::default()
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, FrontierState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the grid whose patches are expected.
    #[must_use]
    pub const fn grid(&self) -> &Grid {
        match &self.boxes {
            Boxes::Blocks(blocks) => blocks.grid(),
            Boxes::Owned { grid, .. } => grid,
        }
    }

    /// Returns the number of channels of predictions.
    #[must_use]
    pub const fn channels(&self) -> u64 {
        self.channels
    }

    /// Returns the options of the aggregator.
    #[must_use]
    pub const fn options(&self) -> &AggregatorOptions {
        &self.options
    }

    /// Returns the type of the sums.
    #[must_use]
    pub fn accumulator(&self) -> Accumulator {
        self.options.sums()
    }

    /// Returns the type of the output.
    #[must_use]
    pub const fn output_dtype(&self) -> DType {
        self.output
    }

    /// Returns the smallest magnitude that is not finite in the sums or the output; infinity if there is none.
    #[must_use]
    pub fn too_large(&self) -> f64 {
        self.options.too_large(self.output)
    }

    /// Returns the weights of patches.
    #[must_use]
    pub const fn weights(&self) -> BlockWeights<'_> {
        match (&self.boxes, &self.weights) {
            (Boxes::Owned { .. }, _) => BlockWeights::None,
            (_, Weights::Shares(shares)) => BlockWeights::Factors(shares),
            (_, Weights::Solid(window)) => BlockWeights::Window(window),
        }
    }

    /// Returns the boxes to write that no patch touches.
    pub(super) fn untouched(&self) -> Box<dyn Iterator<Item = Region> + '_> {
        match &self.boxes {
            Boxes::Blocks(blocks) => Box::new(blocks.untouched()),
            Boxes::Owned { grid, .. } => {
                let covered = grid.axes().each_ref().map(Axis::covered);
                Box::new(super::rim(grid.volume(), covered))
            }
        }
    }

    /// Returns `true` if the patch at `place` touches any box to write.
    pub(super) fn needs(&self, place: [usize; 3]) -> bool {
        match &self.boxes {
            Boxes::Blocks(blocks) => blocks.needs(place),
            Boxes::Owned { wanted: None, .. } => true,
            Boxes::Owned {
                grid,
                wanted: Some(bits),
                ..
            } => {
                let n = number(grid, place);
                bits[n / 64] & (1 << (n % 64)) != 0
            }
        }
    }

    /// Adds a patch, and returns its place and its contribution to each block. Patches come in the grid's order.
    ///
    /// # Errors
    ///
    /// [`Error::IndexOutOfRange`], [`Error::DuplicatePatch`], or [`Error::InvalidArgument`] if an earlier patch is
    /// missing or the options promise that every patch votes and this one does not.
    pub fn add(&self, index: u64, vote: PatchVote) -> Result<([usize; 3], Vec<BlockStep>)> {
        let grid = self.grid();
        let found = grid.place(index).zip(grid.get(index));
        let (place, region) = found.ok_or_else(|| Error::IndexOutOfRange {
            what: "patch",
            index,
            count: grid.len(),
        })?;
        let votes = match (vote, &self.options.skipped) {
            (PatchVote::Prediction, _) | (PatchVote::Skip, Skipped::Vote(_)) => true,
            (PatchVote::Skip, Skipped::Renormalize) | (PatchVote::LeaveOut, _) => false,
        };
        if !votes && self.options.all_vote() {
            return Err(Error::InvalidArgument {
                argument: "skip of patch",
                value: index.to_string(),
                problem: "the options promise that every patch votes (all_vote)".to_owned(),
            });
        }
        let mut state = self.lock();
        let (word, bit) = (
            usize::try_from(index / 64).unwrap_or(usize::MAX),
            1 << (index % 64),
        );
        if state.seen[word] & bit != 0 {
            return Err(Error::DuplicatePatch { index, region });
        }
        let steps = match &self.boxes {
            Boxes::Blocks(blocks) => self.steps(&mut state, blocks, index, place, votes)?,
            Boxes::Owned { grid, owned, .. } => {
                let region = part(owned, place);
                let some = self.needs(place) && !region.is_empty();
                let own = |()| {
                    let block = number(grid, place) as u64;
                    state.finished.insert(block, (region, Vec::new()));
                    BlockStep {
                        block,
                        region,
                        common: common(Intersection::new(grid, &region, place), place),
                        votes,
                        is_fresh: true,
                        end: Some(if votes {
                            BlockEnd::Sums
                        } else {
                            BlockEnd::Empty
                        }),
                    }
                };
                some.then_some(()).map(own).into_iter().collect()
            }
        };
        state.seen[word] |= bit;
        let counted = if vote == PatchVote::Prediction {
            &mut state.patches
        } else {
            &mut state.skipped
        };
        *counted += 1;
        Ok((place, steps))
    }

    /// Returns the contribution of a patch to each block that it touches.
    fn steps(
        &self,
        state: &mut FrontierState,
        blocks: &Blocks,
        index: u64,
        place: [usize; 3],
        votes: bool,
    ) -> Result<Vec<BlockStep>> {
        let mut steps = Vec::new();
        for touched in blocks.touched(place) {
            if !blocks.is_wanted(touched) {
                continue;
            }
            let (block, region) = (blocks.number(touched) as u64, blocks.region(touched));
            let turns = blocks.turns(&region);
            let live = state.live.entry(block).or_default();
            if blocks.turn(&turns, place) != live.turn {
                return Err(Error::InvalidArgument {
                    argument: "patch",
                    value: index.to_string(),
                    problem: "an earlier patch of the same block is missing: sums are added in the grid's order"
                        .to_owned(),
                });
            }
            live.turn += 1;
            let is_fresh = live.voted.is_empty();
            if votes {
                live.voted.push(place);
            }
            let total: usize = turns.iter().map(ExactSizeIterator::len).product();
            let end = (live.turn == total).then(|| {
                let voted = std::mem::take(&mut live.voted);
                self.end(blocks, &region, &voted, voted.len() == total)
            });
            let end = end.map(|(end, holes)| {
                state.live.remove(&block);
                state.finished.insert(block, (region, holes));
                end
            });
            steps.push(BlockStep {
                block,
                region,
                common: common(blocks.common(&region, place), place),
                votes,
                is_fresh,
                end,
            });
        }
        Ok(steps)
    }

    /// Returns how a block becomes final, and the flags of voxels that no patch that voted covers.
    fn end(
        &self,
        blocks: &Blocks,
        region: &Region,
        voted: &[[usize; 3]],
        complete: bool,
    ) -> (BlockEnd, Vec<bool>) {
        if voted.is_empty() {
            return (BlockEnd::Empty, Vec::new());
        }
        let shares = complete && self.weights.are_shares();
        if shares && blocks.is_covered(region) {
            return (BlockEnd::Sums, Vec::new());
        }
        let holes = blocks.holes(region, voted, |_, _, _, _| ());
        if shares {
            return (BlockEnd::Sums, holes);
        }
        let parts = voted.iter();
        let parts = parts.map(|&place| common(blocks.common(region, place), place));
        (BlockEnd::Divide(parts.collect()), holes)
    }

    /// Removes a final block whose values came, and returns its region and the flags of voxels that no patch covers
    /// (empty if there are none).
    pub(super) fn take(&self, block: u64) -> Result<(Region, Vec<bool>)> {
        let taken = self.lock().finished.remove(&block);
        taken.ok_or_else(|| Error::InvalidArgument {
            argument: "block",
            value: block.to_string(),
            problem: "it is not final, or its values were added before".to_owned(),
        })
    }

    /// Returns the numbers of patches that were predicted and skipped, and of final blocks whose values have not come.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let state = self.lock();
        let waiting = state.finished.len() as u64;
        (state.patches, state.skipped, waiting)
    }

    /// A bit set of the patches that were added or skipped.
    pub(super) fn seen(&self) -> Vec<u64> {
        self.lock().seen.clone()
    }

    /// Returns the shape of a patch of predictions.
    #[must_use]
    pub fn patch(&self) -> Shape {
        self.grid().patch()
    }
}

fn common(found: Intersection, place: [usize; 3]) -> BlockPart {
    BlockPart {
        place,
        to: found.to,
        from: found.from,
        shape: found.shape,
    }
}

/// Returns the row-major number of a patch's place.
fn number(grid: &Grid, place: [usize; 3]) -> usize {
    (0..3).fold(0, |number, a| {
        number * grid.axes()[a].starts.len() + place[a]
    })
}
