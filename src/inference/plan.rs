//! Plans: what a run will do, and what it takes, worked out before any file is touched.

use std::ops::Range;

use super::columns::{self, Part};
use super::mask::Selection;
use super::model::{Input, Model, Prediction};
use super::resume::Resume;
use super::{Inference, Target};
use crate::aggregator::{AggregatorOptions, Reduce, Skipped, live_bytes, needed};
use crate::error::{Error, Result};
use crate::grid::{Axis, Grid, GridOptions, Placement};
use crate::pad::Padding;
use crate::region::{Region, Shape};
use crate::volume::{CreateOptions, Layout, Space, planned, space, waiting_bytes};

/// Batches for each thread that may be done before an earlier one that takes longer, as one does that
/// makes write chunks whole.
const LEAD: u64 = 3;

/// One part in so many of the memory is not planned with: the system's allocator keeps some of what was given back.
const SLACK: u64 = 16;

/// What a run will do, and what it takes.
#[derive(Clone, Debug)]
pub struct Plan {
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
    pub(super) selection: Option<Selection>,
    /// What is written one after the other; everything at once if there is no part.
    pub(super) columns: Vec<Part>,
    /// How the run is gone on with; it leaves nothing if it is ended, if there is none.
    pub(super) resume: Option<Resume>,
    /// Bytes of patches under way and of write chunks that are being encoded, at most.
    working_bytes: u64,
    /// Bytes of decoded input chunks that are worth keeping.
    useful_cache: u64,
    /// Bytes of a batch's predictions.
    prediction_bytes: u64,
    pub(super) inference: Inference,
    pub(super) padding: Padding,
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
    pub prediction: Prediction,
    pub(super) blending: AggregatorOptions,
    pub(super) store: CreateOptions,
}

impl Inference {
    /// Works out the grid, the outputs and the memory, and touches no file. There is a target for each
    /// output of the model, in its order.
    ///
    /// Where memory is too short for all of the outputs at once, they are written in columns along the
    /// axis that is swept last, and patches between two columns are predicted for both.
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`], [`Error::Overlap`] or [`Error::OutputGrid`] if there is no such grid,
    /// [`Error::Setting`] if the model cannot take the volume, or if the run needs more memory than it may have.
    pub fn plan(&self, input: &Layout, model: &dyn Model, targets: &[Target]) -> Result<Plan> {
        let options = GridOptions {
            placement: self.placement,
            margin: self.margin,
            fit: self.padding.is_some(),
        };
        let grid = Grid::with_options(input.shape, self.patch, self.overlap, &options)?;
        let predictions = model.outputs(input, self.patch)?;
        if predictions.len() != targets.len() || targets.is_empty() {
            let names: Vec<&str> = predictions.iter().map(|p| p.name.as_str()).collect();
            return Err(Error::Setting {
                name: "outputs:",
                value: targets.len().to_string(),
                problem: format!("the model gives {}: {}", names.len(), names.join(", ")),
            });
        }
        let rescale = input.rescale.filter(|_| model.input() == Input::Stored);
        let outputs = predictions
            .into_iter()
            .zip(targets)
            .map(|(prediction, target)| {
                PlannedOutput::new((input, rescale), &grid, prediction, target, self.masked)
            });
        let outputs: Vec<PlannedOutput> = outputs.collect::<Result<_>>()?;
        let real = model.input() == Input::Real;
        let mut plan = Plan {
            live_bytes: 0,
            cache_bytes: 0,
            lead_bytes: 0,
            peak_bytes: 0,
            selection: None,
            columns: Vec::new(),
            resume: None,
            working_bytes: self.working_bytes(input, real, &outputs),
            prediction_bytes: self.prediction_bytes(&outputs),
            useful_cache: useful_cache(&grid, input),
            inference: self.clone(),
            padding: self.padding.unwrap_or(Padding::Edge),
            ahead: self.least_ahead(),
            grid,
            outputs,
        };
        plan.fit(None)?;
        Ok(plan)
    }

    /// The first plan that the memory is enough for, of those with these targets: with as many threads as may
    /// be, down to `fewest`; in columns only if it has to be, and then with the least to predict for each thread.
    ///
    /// # Errors
    ///
    /// As [`plan`](Self::plan), of the first choice with all threads.
    pub fn plan_within(
        &self,
        fewest: usize,
        input: &Layout,
        model: &dyn Model,
        choices: &[Vec<Target>],
    ) -> Result<Plan> {
        let (mut in_columns, mut first_error) = (None::<(u64, Plan)>, None);
        let most = self.threads.max(1);
        for threads in (fewest.clamp(1, most)..=most).rev() {
            let inference = Self {
                threads,
                ..self.clone()
            };
            for targets in choices {
                match inference.plan(input, model, targets) {
                    Ok(plan) if plan.columns() == 1 => return Ok(plan),
                    Ok(plan) => {
                        let rounds = plan.predictions().div_ceil(threads as u64);
                        if in_columns.as_ref().is_none_or(|(least, _)| rounds < *least) {
                            in_columns = Some((rounds, plan));
                        }
                    }
                    Err(error @ Error::Setting { .. }) => {
                        first_error.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        match (in_columns, first_error) {
            (Some((_, plan)), _) => Ok(plan),
            (None, Some(error)) => Err(error),
            (None, None) => self.plan(input, model, &[]),
        }
    }

    /// Bytes of patches under way and of write chunks that are being encoded, at most.
    fn working_bytes(&self, input: &Layout, real: bool, outputs: &[PlannedOutput]) -> u64 {
        let voxels = Region::whole(self.patch).voxels();
        let stored = input.channels * input.dtype.size() as u64;
        let hangs_over = self.padding.is_some() || self.placement == Placement::Padded;
        let read = stored * (1 + u64::from(hangs_over)) + if real { 4 * input.channels } else { 0 };
        let batches = voxels.saturating_mul(read * self.batch.max(1) as u64);
        let batches = batches.saturating_add(self.prediction_bytes(outputs));
        let mut encoding = 0_u64;
        for output in outputs {
            let [_, z, y, x] = output.layout.write_chunk.unwrap_or_default();
            let chunk = Region::whole([z, y, x]).voxels();
            let bytes = chunk.saturating_mul(output.layout.dtype.size() as u64);
            encoding =
                encoding.saturating_add(bytes.saturating_mul(2 * self.threads.max(1) as u64));
        }
        batches
            .saturating_mul(self.least_ahead() as u64)
            .saturating_add(encoding)
    }

    /// Bytes of the predictions of a batch.
    fn prediction_bytes(&self, outputs: &[PlannedOutput]) -> u64 {
        let bytes = outputs.iter().map(|output| {
            let prediction = &output.prediction;
            let voxel = prediction.channels * prediction.dtype.size() as u64;
            let voxels = Region::whole(output.grid.patch()).voxels();
            voxels.saturating_mul(voxel * self.batch.max(1) as u64)
        });
        bytes.fold(0, u64::saturating_add)
    }

    /// Batches that are under way when every thread has one and one is done.
    fn least_ahead(&self) -> usize {
        self.threads.max(1) + 1
    }
}

impl PlannedOutput {
    fn new(
        (input, rescale): (&Layout, Option<crate::volume::Rescale>),
        grid: &Grid,
        prediction: Prediction,
        target: &Target,
        masked: bool,
    ) -> Result<Self> {
        let reduce = &target.blending.reduce;
        let grid = grid.output(prediction.halo, prediction.scale)?;
        let dtype = target
            .dtype
            .unwrap_or_else(|| reduce.dtype(prediction.dtype, prediction.channels));
        #[expect(clippy::cast_precision_loss, reason = "scales are small")]
        let factor = prediction.scale.max(1) as f64;
        let mut layout = Layout::new(grid.volume(), reduce.channels(prediction.channels), dtype)
            .with_geometry(input.geometry.coarsened([factor; 3]));
        if *reduce == Reduce::Mean {
            layout.rescale = rescale;
        }
        let mut store = target.store.clone();
        store.shard = store.shard.map(|shard| aligned(&grid, shard, store.chunk));
        let layout = planned(&target.path, &layout, &store)?;
        let blending = AggregatorOptions {
            all_vote: !masked || target.blending.skipped != Skipped::Renormalise,
            ..target.blending.clone()
        };
        blending.check(&grid, prediction.channels, layout.dtype)?;
        Ok(Self {
            layout,
            grid,
            prediction,
            blending,
            store,
        })
    }

    /// Bytes of what is not final or waits, if only some write chunks are written.
    fn live_bytes(&self, within: Option<&[Range<u64>; 3]>) -> u64 {
        let channels = self.prediction.channels;
        let levels = waiting_bytes(&self.layout, &self.store, self.grid.order()).unwrap_or(0);
        live_bytes(&self.grid, channels, &self.blending, &self.layout, within)
            .saturating_add(levels)
    }
}

impl Plan {
    /// How many patches there are, and how many of them are predicted at least once.
    #[must_use]
    pub fn patches(&self) -> (u64, u64) {
        let all = self.grid.len();
        (all, self.selection.as_ref().map_or(all, Selection::len))
    }

    /// How many predictions it takes: patches between two columns count for each.
    #[must_use]
    pub fn predictions(&self) -> u64 {
        if self.columns.is_empty() {
            return self.patches().1;
        }
        let predictions = self.columns.iter().map(|part| self.predictions_of(part));
        predictions.sum()
    }

    fn predictions_of(&self, part: &Part) -> u64 {
        let of_outputs =
            self.outputs.iter().zip(part).map(|(output, within)| {
                needed(&output.grid, &output.blending, &output.layout, within)
            });
        let both = |a: [Range<usize>; 3], b: [Range<usize>; 3]| {
            std::array::from_fn(|i| a[i].start.min(b[i].start)..a[i].end.max(b[i].end))
        };
        let needed = of_outputs.reduce(both).unwrap_or_default();
        let Some(selection) = &self.selection else {
            return needed.iter().map(|range| range.len() as u64).product();
        };
        let is_needed = |index: &u64| {
            let place = self.grid.place(*index);
            place.is_some_and(|place| (0..3).all(|a| needed[a].contains(&place[a])))
                && selection.contains(*index)
        };
        (0..self.grid.len()).filter(is_needed).count() as u64
    }

    /// How many columns the outputs are written in.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns.len().max(1)
    }

    /// What the outputs take on their disks, and what is free there: one entry for each file system.
    ///
    /// # Errors
    ///
    /// As [`space`](crate::volume::space()).
    pub fn space(&self) -> Result<Vec<Space>> {
        let outputs = self.outputs.iter();
        let outputs: Vec<_> = outputs
            .map(|output| (&output.layout, &output.store))
            .collect();
        space(&outputs, self.resume.is_some())
    }

    /// Predicts only some patches; what the others mean is an [option](Skipped).
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if patches that do not vote take more memory than the run may have, which
    /// [`Inference::masked`] tells a plan beforehand.
    pub fn with_selection(mut self, selection: Selection) -> Result<Self> {
        self.selection = Some(selection);
        if !self.inference.masked {
            self.inference.masked = true;
            for output in &mut self.outputs {
                output.blending.all_vote &= output.blending.skipped != Skipped::Renormalise;
            }
            self.fit(self.owned_part())?;
        }
        Ok(self)
    }

    /// Cuts the outputs, or those of their write chunks that are to be written, into as many columns as
    /// it takes to stay within the memory.
    pub(super) fn fit(&mut self, owned: Option<Part>) -> Result<()> {
        let (memory, working) = (self.inference.memory, self.working_bytes);
        let memory = memory - memory / SLACK;
        let live = |part: Option<&Part>| -> u64 {
            let outputs = self.outputs.iter().enumerate();
            let bytes = outputs.map(|(n, output)| output.live_bytes(part.map(|part| &part[n])));
            bytes.fold(0, u64::saturating_add)
        };
        let fits = |part: &Part| live(Some(part)).saturating_add(working) <= memory;
        let at_once = live(owned.as_ref());
        let mut found = (at_once, owned.iter().cloned().collect());
        if at_once.saturating_add(working) > memory
            && let Some(all) = owned.or_else(|| columns::whole(&self.outputs))
        {
            let [_, b, c] = self.grid.order();
            let length = |ranges: &[Range<u64>; 3], a: usize| ranges[a].end - ranges[a].start;
            let most = |axis: usize| {
                all.iter()
                    .map(|ranges| length(ranges, axis))
                    .min()
                    .unwrap_or(1)
            };
            for counts in columns::ways([most(b), most(c)]) {
                // Columns in the middle have borders on all sides, and need most.
                let middle = columns::piece(&all, b, counts[0] / 2, counts[0]);
                let middle = columns::piece(&middle, c, counts[1] / 2, counts[1]);
                if !fits(&middle) {
                    continue;
                }
                let pieces = columns::pieces(&all, [b, c], counts);
                if pieces.iter().all(fits) {
                    let most = pieces.iter().map(|piece| live(Some(piece))).max();
                    found = (most.unwrap_or(0), pieces);
                    break;
                }
            }
        }
        let (live_bytes, columns) = found;
        let needed = live_bytes.saturating_add(working);
        let Some(left) = memory.checked_sub(needed) else {
            return Err(Error::Setting {
                name: "a memory limit of",
                value: format!("{} MiB", self.inference.memory >> 20),
                problem: format!(
                    "patches of {:?} with an overlap of {:?} need {} MiB for unfinished voxels and {} MiB for \
                     patches under way in {} threads, and a {SLACK}th of the memory is left to the allocator: allow more, \
                     or take fewer threads, smaller patches or less overlap",
                    self.inference.patch,
                    self.inference.overlap,
                    live_bytes.div_ceil(1 << 20),
                    working.div_ceil(1 << 20),
                    self.inference.threads.max(1),
                ),
            });
        };
        self.live_bytes = live_bytes;
        self.columns = columns;
        self.cache_bytes = left.min(self.useful_cache);
        let lead = (left - self.cache_bytes) / self.prediction_bytes.max(1);
        let lead = lead.min(LEAD * self.inference.threads.max(1) as u64);
        self.lead_bytes = lead * self.prediction_bytes;
        self.ahead = self.inference.least_ahead() + usize::try_from(lead).unwrap_or(0);
        self.peak_bytes = needed + self.cache_bytes + self.lead_bytes;
        Ok(())
    }
}

/// The shard whose end meets the starts of patches along the slowest axis, if one does.
fn aligned(grid: &Grid, mut shard: Shape, chunk: Shape) -> Shape {
    let slow = grid.order()[0];
    let step = grid.axes()[slow].widest_step();
    let meets =
        |length: &u64| length.is_multiple_of(chunk[slow].max(1)) && step.is_multiple_of(*length);
    // A length that meets them is no longer than the step.
    if let Some(length) = (1..=shard[slow].min(step)).rev().find(meets) {
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
