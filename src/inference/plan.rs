//! Plans: what a run will do, and what it takes, worked out before any file is touched.

use std::ops::Range;
use std::sync::Arc;

use super::begun::{Choices, followed};
use super::fit::{Found, Reach, Ways};
use super::mask::PatchMask;
use super::model::{InputValues, Model, OutputSpec};
use super::needs::{Working, least_ahead};
use super::normalize::Scales;
use super::passes::ChunkRanges;
use super::resume::Resume;
use super::{Inference, OutputTarget};
use crate::aggregator::{AggregatorOptions, Estimate, Skipped};
use crate::error::{Error, Result};
use crate::grid::{Axis, Grid, GridOptions};
use crate::pad::Padding;
use crate::region::Shape;
use crate::volume::{
    CreateOptions, DiskSpace, Layout, check_name, disk_space, output_layout, pyramid_buffer_bytes,
    rebuilding_bytes,
};

/// Batches for each thread that may be done before an earlier one that takes longer, as one does that
/// makes write chunks whole.
const REORDER_BATCHES_PER_THREAD: u64 = 3;

/// One part in so many of the memory is not planned with: the system's allocator keeps some of what was given back.
const ALLOCATOR_RESERVE_FRACTION: u64 = 16;

/// What a run will do, and what it takes.
#[derive(Clone, Debug)]
pub struct InferencePlan {
    /// Where the patches lie in the volume, in the order in which they are predicted.
    pub grid: Grid,
    /// What is written.
    pub outputs: Vec<PlannedOutput>,
    /// Bytes of voxels that are not final or wait for their write chunk, at most.
    pub live_bytes: u64,
    /// Bytes of decoded input chunks that are kept.
    pub cache_bytes: u64,
    /// Bytes of predictions that may wait for an earlier patch that takes longer, so that no thread
    /// has to.
    pub lead_bytes: u64,
    /// Bytes of all that the run holds, at most.
    pub peak_bytes: u64,
    /// Which patches are predicted; all are if there is none.
    pub(super) patch_mask: Option<PatchMask>,
    /// What is written one after the other; everything at once if there is no part.
    pub(super) passes: Vec<ChunkRanges>,
    /// How the run is gone on with; it leaves nothing if it is ended, if there is none.
    pub(super) resume: Option<Resume>,
    /// What it was chosen from, if it follows what other processes began.
    pub(super) choices: Option<Arc<Choices>>,
    /// How each output was stored that had been begun when this was planned.
    pub(super) begun: Vec<Option<CreateOptions>>,
    pub(super) working: Working,
    /// Bytes of decoded input chunks that are worth keeping.
    useful_cache: u64,
    pub(super) inference: Inference,
    pub(super) padding: Padding,
    /// The type of the patches that the model takes.
    pub(super) input: InputValues,
    /// How values are normalized; they are not if there is none.
    pub(super) scales: Option<Scales>,
    /// Batches begun and not yet blended, at most.
    pub(super) ahead: usize,
}

/// An output of a plan.
#[derive(Clone, Debug)]
pub struct PlannedOutput {
    /// What will be stored.
    pub layout: Layout,
    /// Where predictions lie in it.
    pub grid: Grid,
    /// What the model gives.
    pub spec: OutputSpec,
    pub(super) blending: AggregatorOptions,
    pub(super) store: CreateOptions,
}

impl Inference {
    /// Works out the grid, the outputs and the memory, and touches no file. There is a target for each
    /// output of the model, in its order.
    ///
    /// Where memory is too short for all of the outputs at once, they are written in passes along the
    /// axis that is swept last, and patches between two passes are predicted for both.
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`], [`Error::Overlap`] or [`Error::OutputGrid`] if there is no such grid,
    /// [`Error::InvalidArgument`] if the model cannot take the volume, or if the run needs more memory than it may have.
    pub fn plan(
        &self,
        input: &Layout,
        model: &dyn Model,
        targets: &[OutputTarget],
    ) -> Result<InferencePlan> {
        let grid = self.grid(input)?;
        let predictions = model.outputs(input, self.patch)?;
        let mut plan = self.draft(input, model, (&grid, &predictions), targets, &[])?;
        plan.fit(None)?;
        Ok(plan)
    }

    /// The first plan that the memory is enough for, of those with these targets: with as many threads as may
    /// be, down to `fewest`; in passes only if it has to be, and then with the least to predict for each thread.
    ///
    /// # Errors
    ///
    /// As [`plan`](Self::plan), of the first choice with all threads.
    pub fn plan_within(
        &self,
        fewest: usize,
        input: &Layout,
        model: &dyn Model,
        choices: &[Vec<OutputTarget>],
    ) -> Result<InferencePlan> {
        self.within(fewest, input, model, choices, &[])
    }

    /// The same, with outputs stored as they were begun, if they were.
    pub(super) fn within(
        &self,
        fewest: usize,
        input: &Layout,
        model: &dyn Model,
        choices: &[Vec<OutputTarget>],
        begun: &[Option<CreateOptions>],
    ) -> Result<InferencePlan> {
        let grid = self.grid(input)?;
        let predictions = model.outputs(input, self.patch)?;
        let mut first_error = None;
        let mut drafts = Vec::new();
        for targets in choices {
            match self.draft(input, model, (&grid, &predictions), targets, begun) {
                Ok(draft) => drafts.push(draft),
                Err(error @ Error::InvalidArgument { .. }) => {
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        let drafts = drafts.iter();
        let mut drafts: Vec<(&InferencePlan, Ways<'_>)> = drafts
            .map(|draft| (draft, Ways::new(&draft.outputs, &draft.grid, None)))
            .collect();
        let most = self.threads.max(1);
        let mut in_passes = None::<(u64, usize, usize, Found)>;
        for threads in (fewest.clamp(1, most)..=most).rev() {
            for (n, (draft, ways)) in drafts.iter_mut().enumerate() {
                match draft.find(threads, ways) {
                    Ok(found) if !found.is_cut() => {
                        return Ok(draft.settled(threads, found, ways));
                    }
                    Ok(found) => {
                        let rounds = ways.predictions(found).div_ceil(threads as u64);
                        if in_passes.is_none_or(|(least, ..)| rounds < least) {
                            in_passes = Some((rounds, n, threads, found));
                        }
                    }
                    Err(error) => {
                        first_error.get_or_insert(error);
                    }
                }
            }
        }
        match (in_passes, first_error) {
            (Some((_, n, threads, found)), _) => {
                let (draft, ways) = &drafts[n];
                Ok(draft.settled(threads, found, ways))
            }
            (None, Some(error)) => Err(error),
            (None, None) => self.plan(input, model, &[]),
        }
    }

    /// Where the patches lie.
    fn grid(&self, input: &Layout) -> Result<Grid> {
        let options = GridOptions {
            placement: self.placement,
            margin: self.margin,
            fit: self.padding.is_some(),
        };
        Grid::with_options(input.shape, self.patch, self.overlap, &options)
    }

    /// A plan that is not fitted into the memory yet.
    fn draft(
        &self,
        input: &Layout,
        model: &dyn Model,
        (grid, predictions): (&Grid, &[OutputSpec]),
        targets: &[OutputTarget],
        begun: &[Option<CreateOptions>],
    ) -> Result<InferencePlan> {
        if predictions.len() != targets.len() || targets.is_empty() {
            let names: Vec<&str> = predictions.iter().map(|p| p.name.as_str()).collect();
            return Err(Error::InvalidArgument {
                argument: "number of outputs",
                value: targets.len().to_string(),
                problem: format!("the model gives {}: {}", names.len(), names.join(", ")),
            });
        }
        let outputs = predictions.iter().zip(targets).enumerate();
        let outputs = outputs.map(|(n, (prediction, target))| {
            let begun = begun.get(n).and_then(Option::as_ref);
            let target = (target, begun);
            PlannedOutput::new(input, grid, prediction.clone(), target, self.masked)
        });
        let outputs: Vec<PlannedOutput> = outputs.collect::<Result<_>>()?;
        let padding = self.padding.unwrap_or(Padding::Edge);
        if model.input() == InputValues::Native {
            padding.check(input.dtype, &input.path.display().to_string())?;
        }
        Ok(InferencePlan {
            live_bytes: 0,
            cache_bytes: 0,
            lead_bytes: 0,
            peak_bytes: 0,
            patch_mask: None,
            passes: Vec::new(),
            resume: None,
            choices: None,
            begun: begun.to_vec(),
            working: Working::new(self, input, model.input(), grid, &outputs),
            useful_cache: useful_cache(grid, input),
            inference: self.clone(),
            padding,
            input: model.input(),
            scales: None,
            ahead: least_ahead(self.threads.max(1)),
            grid: grid.clone(),
            outputs,
        })
    }
}

impl PlannedOutput {
    fn new(
        input: &Layout,
        grid: &Grid,
        spec: OutputSpec,
        (target, begun): (&OutputTarget, Option<&CreateOptions>),
        masked: bool,
    ) -> Result<Self> {
        let reduce = &target.blending.reduce;
        let grid = grid.output(spec.halo, spec.scale)?;
        let dtype = target
            .dtype
            .unwrap_or_else(|| reduce.dtype(spec.dtype, spec.channels));
        #[expect(clippy::cast_precision_loss, reason = "scales are small")]
        let factor = spec.scale.max(1) as f64;
        let mut layout = Layout::new(grid.volume(), reduce.channels(spec.channels), dtype)
            .with_geometry(input.geometry.coarsened([factor; 3]));
        layout.axes.unit.clone_from(&input.axes.unit);
        let mut blending = target.blending.clone();
        blending.average_integers |= spec.average_integers;
        blending.check_type(&grid, spec.dtype)?;
        let mut store = target.store.clone();
        store.shard = store.shard.map(|shard| aligned(&grid, shard, store.chunk));
        let mut stored = output_layout(&target.path, &layout, &store)?;
        if let Some(begun) = begun {
            store = followed(&store, &stored, begun, &target.unasked);
            stored = output_layout(&target.path, &layout, &store)?;
        }
        let blending = AggregatorOptions {
            all_vote: !masked || target.blending.skipped != Skipped::Renormalize,
            ..blending
        };
        blending.check(&grid, spec.channels, stored.dtype)?;
        Ok(Self {
            layout: stored,
            grid,
            spec,
            blending,
            store,
        })
    }

    /// What tells how many bytes are not final or wait for their write chunk.
    pub(super) fn estimate(&self) -> Estimate {
        let channels = self.spec.channels;
        Estimate::new(&self.grid, channels, &self.blending, &self.layout)
    }

    /// Bytes of unfinished chunks of coarser levels.
    pub(super) fn pyramid_buffer_bytes(&self) -> u64 {
        pyramid_buffer_bytes(&self.layout, &self.store, self.grid.order()).unwrap_or(0)
    }
}

impl InferencePlan {
    /// How many patches there are, and how many of them are predicted at least once.
    #[must_use]
    pub fn patches(&self) -> (u64, u64) {
        let all = self.grid.len();
        (all, self.patch_mask.as_ref().map_or(all, PatchMask::len))
    }

    /// How many predictions it takes: patches between two passes count for each.
    #[must_use]
    pub fn predictions(&self) -> u64 {
        if self.passes.is_empty() {
            return self.patches().1;
        }
        let reach = Reach::new(&self.outputs);
        let parts = self.passes.iter();
        parts
            .map(|part| self.predictions_within(&reach.of(part)))
            .sum()
    }

    fn predictions_within(&self, needed: &[Range<usize>; 3]) -> u64 {
        let Some(patch_mask) = &self.patch_mask else {
            return needed.iter().map(|range| range.len() as u64).product();
        };
        let places = self.grid.indices(needed);
        places.filter(|&index| patch_mask.contains(index)).count() as u64
    }

    /// How many passes the outputs are written in.
    #[must_use]
    pub fn passes(&self) -> usize {
        self.passes.len().max(1)
    }

    /// What the outputs take on their disks, and what is free there: one entry for each file system.
    ///
    /// # Errors
    ///
    /// As [`disk_space`](crate::volume::disk_space).
    pub fn disk_space(&self) -> Result<Vec<DiskSpace>> {
        let outputs = self.outputs.iter();
        let outputs: Vec<_> = outputs
            .map(|output| (&output.layout, &output.store))
            .collect();
        disk_space(&outputs, self.resume.is_some())
    }

    /// Checks that the outputs may have their names, before anything is read. Of a run that is
    /// resumed, what has the name may be what it has finished.
    ///
    /// # Errors
    ///
    /// As [`create`](crate::volume::create), if something has the name.
    pub fn check_names(&self) -> Result<()> {
        for output in &self.outputs {
            match check_name(&output.layout, &output.store) {
                Err(Error::Exists { .. }) if self.resume.is_some() => {}
                checked => checked?,
            }
        }
        Ok(())
    }

    /// Predicts only some patches; what the others mean is an [option](Skipped).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if patches that do not vote take more memory than the run may have, which
    /// [`Inference::masked`] tells a plan beforehand.
    pub fn with_patch_mask(mut self, patch_mask: PatchMask) -> Result<Self> {
        self.patch_mask = Some(patch_mask);
        if !self.inference.masked {
            self.inference.masked = true;
            for output in &mut self.outputs {
                output.blending.all_vote &= output.blending.skipped != Skipped::Renormalize;
            }
            self.fit(self.owned_part())?;
        }
        Ok(self)
    }

    /// Cuts the outputs, or those of their write chunks that are to be written, into as many passes as
    /// it takes to stay within the memory.
    pub(super) fn fit(&mut self, owned: Option<ChunkRanges>) -> Result<()> {
        let mut ways = Ways::new(&self.outputs, &self.grid, owned);
        let threads = self.inference.threads.max(1);
        let found = self.find(threads, &mut ways)?;
        let passes = ways.passes(found);
        self.settle(threads, found, passes);
        Ok(())
    }

    /// The memory that is planned with.
    pub(super) const fn memory(&self) -> u64 {
        self.inference.memory - self.inference.memory / ALLOCATOR_RESERVE_FRACTION
    }

    /// The first way to write the outputs that fits into the memory of so many threads.
    fn find(&self, threads: usize, ways: &mut Ways<'_>) -> Result<Found> {
        let working = self.working.bytes(threads);
        let room = self.memory().checked_sub(working);
        let live_bytes = match ways.find(room.unwrap_or(0)) {
            Ok(found) if room.is_some() => return Ok(found),
            Ok(found) => found.live_bytes,
            Err(at_once) => at_once,
        };
        Err(Error::MemoryLimit {
            memory: self.inference.memory,
            problem: format!(
                "patches of {:?} with an overlap of {:?} need {} MiB for unfinished voxels and {} MiB for \
                 patches under way in {threads} threads, and a {ALLOCATOR_RESERVE_FRACTION}th of the memory is left to the allocator: allow more, \
                 or take fewer threads, smaller patches or less overlap",
                self.inference.patch,
                self.inference.overlap,
                live_bytes.div_ceil(1 << 20),
                working.div_ceil(1 << 20),
            ),
        })
    }

    /// This plan for so many threads, written in the way that was found.
    fn settled(&self, threads: usize, found: Found, ways: &Ways<'_>) -> Self {
        let mut plan = self.clone();
        plan.settle(threads, found, ways.passes(found));
        plan
    }

    /// Bytes that it takes to put outputs together of what several runs or parts wrote.
    fn finishing_bytes(&self) -> u64 {
        let pyramids = self
            .outputs
            .iter()
            .filter(|output| output.store.pyramid.is_some() && self.resume.is_some());
        let each = pyramids.map(|output| rebuilding_bytes(&output.layout));
        let each = each.max().unwrap_or(0);
        let threads = (self.memory() / each.max(1)).clamp(1, self.inference.threads as u64);
        each.saturating_mul(threads)
    }

    fn settle(&mut self, threads: usize, found: Found, passes: Vec<ChunkRanges>) {
        let needed = found.live_bytes.saturating_add(self.working.bytes(threads));
        let left = self.memory().saturating_sub(needed);
        self.inference.threads = threads;
        self.live_bytes = found.live_bytes;
        self.passes = passes;
        self.cache_bytes = left.min(self.useful_cache);
        let predictions = self.working.predictions;
        let lead = (left - self.cache_bytes) / predictions.max(1);
        let lead = lead.min(REORDER_BATCHES_PER_THREAD * threads as u64);
        self.lead_bytes = lead * predictions;
        self.ahead = least_ahead(threads) + usize::try_from(lead).unwrap_or(0);
        let peak = needed + self.cache_bytes + self.lead_bytes;
        self.peak_bytes = peak.max(self.finishing_bytes());
    }
}

/// The shard whose end meets the starts of patches along the slowest axis, if one does.
fn aligned(grid: &Grid, mut shard: Shape, chunk: Shape) -> Shape {
    let slow = grid.order()[0];
    let step = grid.axes()[slow].widest_step();
    let chunk = chunk[slow].max(1);
    let mut lengths = (1..=shard[slow].min(step) / chunk).rev().map(|n| n * chunk);
    if let Some(length) = lengths.find(|&length| step.is_multiple_of(length)) {
        shard[slow] = length;
    }
    shard
}

/// Decoded bytes of the chunks that are read again before the sweep has left them: more
/// cache than this is never hit.
fn useful_cache(grid: &Grid, input: &Layout) -> u64 {
    let Some([c, chunk @ ..]) = input.read_chunk else {
        return 0;
    };
    let [a, b, x] = grid.order();
    let reach = |axis: usize| {
        let Axis { length, patch, .. } = grid.axes()[axis];
        (patch + 2 * chunk[axis]).min(length.next_multiple_of(chunk[axis]))
    };
    let whole = |axis: usize| grid.axes()[axis].length.next_multiple_of(chunk[axis]);
    let layer = reach(a).saturating_mul(whole(b)).saturating_mul(whole(x));
    let channels = input.channels.next_multiple_of(c);
    layer
        .saturating_mul(channels)
        .saturating_mul(input.dtype.size() as u64)
}
