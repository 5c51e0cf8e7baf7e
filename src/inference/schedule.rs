//! The work of a run and its memory, computed from layouts before any file is touched.

use std::ops::Range;
use std::sync::Arc;

use super::begun::Choices;
use super::blender::Blender;
use super::fit::{Fit, Reach, Ways};
use super::mask::PatchMask;
use super::model::{InputValues, Model, OutputSpec};
use super::needs::{Loan, Working, least_ahead, useful_cache};
use super::options::{InferenceOptions, OutputTarget};
use super::passes::ChunkRanges;
use super::planned::{PlannedOutput, Resume};
use crate::aggregator::Skipped;
use crate::error::{Error, Result};
use crate::grid::{Grid, GridOptions};
use crate::normalize::Scales;
use crate::pad::Padding;
use crate::volume::{CreateOptions, DiskSpace, Layout, check_name, disk_space};

/// The work of a run and the memory that it takes.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    /// The patches, in the order in which they are predicted.
    pub(super) grid: Grid,
    pub(super) outputs: Vec<PlannedOutput>,
    /// The most bytes of voxels that are not final or wait for their write chunk.
    pub(super) live_bytes: u64,
    /// Bytes of decoded input chunks that are cached.
    pub(super) cache_bytes: u64,
    /// Memory of the outputs that the cache may use until they need it.
    pub(super) loan: Loan,
    /// Bytes of finished predictions that may wait for an earlier, slower patch, so that no thread idles.
    pub(super) reorder_bytes: u64,
    /// The most bytes of sums and temporary values that the model keeps where it blends.
    pub(super) blender_bytes: u64,
    /// Bytes that the model may keep where it blends; `None` for any number.
    pub(super) blender_memory: Option<u64>,
    /// The most bytes that the run holds.
    pub(super) peak_bytes: u64,
    /// The patches that are predicted; `None` for all.
    pub(super) patch_mask: Option<PatchMask>,
    /// The passes in which outputs are written; empty for a single pass.
    pub(super) passes: Vec<ChunkRanges>,
    /// The settings for resuming the run. `None`: an interrupted run leaves nothing behind.
    pub(super) resume: Option<Resume>,
    /// The choices for planning again, if the run follows outputs that other processes begin.
    pub(super) choices: Option<Arc<Choices>>,
    /// The options of each output that another process had begun at the time of planning; `None` for the others.
    pub(super) begun: Vec<Option<CreateOptions>>,
    pub(super) working: Working,
    /// Bytes of decoded input chunks that are worth caching.
    pub(super) useful_cache: u64,
    /// `true` if a chunk that is read again is only decoded again, without a request or interpolation.
    pub(super) rereads_cheaply: bool,
    pub(super) inference: InferenceOptions,
    pub(super) padding: Padding,
    /// The type of patches that the model takes.
    pub(super) input: InputValues,
    /// The normalization of the model's input, if any.
    pub(super) scales: Option<Scales>,
    /// Whether the model blends, and normalizes its input itself.
    pub(super) blender_normalizes: bool,
    /// The most batches that have started and are not blended yet.
    pub(super) ahead: usize,
}

impl InferenceOptions {
    /// Returns the first schedule that fits into the memory. Tries fewer threads (down to
    /// [`min_threads`](Self::min_threads)) before it writes the outputs in several passes; of schedules with several
    /// passes, it takes the one with the fewest predictions per thread. Outputs that were `begun` keep the options that
    /// they are stored with.
    ///
    /// # Errors
    ///
    /// Those of the first choice with all threads.
    pub(super) fn within(
        &self,
        input: &Layout,
        model: &dyn Model,
        choices: &[Vec<OutputTarget>],
        begun: &[Option<CreateOptions>],
    ) -> Result<Schedule> {
        let grid = self.grid(input)?;
        let predictions = model.outputs(input, self.patch_size)?;
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
        let mut drafts: Vec<(&Schedule, Ways<'_>)> =
            drafts.map(|draft| (draft, draft.ways(None))).collect();
        let most = self.threads.max(1);
        let mut in_passes = None::<(u64, usize, usize, Fit)>;
        for threads in (self.min_threads.clamp(1, most)..=most).rev() {
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
            (None, error) => Err(error.expect("a choice that does not fit has an error")),
        }
    }

    /// Returns the patches of a volume.
    fn grid(&self, input: &Layout) -> Result<Grid> {
        let options = GridOptions {
            placement: self.placement,
            margin: self.margin,
            fit: self.padding.is_some(),
        };
        Grid::with_options(input.shape, self.patch_size, self.overlap, &options)
    }

    /// Returns a schedule that is not fitted into the memory yet.
    fn draft(
        &self,
        input: &Layout,
        model: &dyn Model,
        (grid, predictions): (&Grid, &[OutputSpec]),
        targets: &[OutputTarget],
        begun: &[Option<CreateOptions>],
    ) -> Result<Schedule> {
        if predictions.len() != targets.len() || targets.is_empty() {
            let names: Vec<&str> = predictions.iter().map(|p| p.name.as_str()).collect();
            return Err(Error::InvalidArgument {
                argument: "number of outputs",
                value: targets.len().to_string(),
                problem: format!(
                    "the model has {} outputs: {}",
                    names.len(),
                    names.join(", ")
                ),
            });
        }
        let outputs = predictions.iter().zip(targets).enumerate();
        let outputs = outputs.map(|(n, (prediction, target))| {
            let begun = begun.get(n).and_then(Option::as_ref);
            let target = (target, begun);
            let mode = (self, model.blender().is_some());
            PlannedOutput::new(input, grid, prediction.clone(), target, mode)
        });
        let outputs: Vec<PlannedOutput> = outputs.collect::<Result<_>>()?;
        let padding = self.padding.unwrap_or(Padding::Edge);
        if model.input() == InputValues::Native {
            padding.check(input.dtype, &input.path.display().to_string())?;
        }
        Ok(Schedule {
            live_bytes: 0,
            cache_bytes: 0,
            loan: Loan::default(),
            reorder_bytes: 0,
            peak_bytes: 0,
            blender_bytes: 0,
            blender_memory: model.blender().and_then(Blender::memory),
            patch_mask: None,
            passes: Vec::new(),
            resume: None,
            choices: None,
            begun: begun.to_vec(),
            working: Working::new(self, input, model, &outputs),
            useful_cache: useful_cache(grid, input),
            rereads_cheaply: !input.remote && input.read_memory.source.is_none(),
            inference: self.clone(),
            padding,
            input: model.input(),
            scales: None,
            blender_normalizes: model.blender().is_some_and(Blender::normalizes),
            ahead: least_ahead(self.threads.max(1)),
            grid: grid.clone(),
            outputs,
        })
    }
}

impl Schedule {
    /// Returns the number of patches, and how many of them are predicted at least once.
    pub(super) fn patches(&self) -> (u64, u64) {
        let all = self.grid.len();
        (all, self.patch_mask.as_ref().map_or(all, PatchMask::len))
    }

    /// Returns the number of predictions. Patches between two passes count in both.
    pub(super) fn predictions(&self) -> u64 {
        if self.passes.is_empty() {
            return self.patches().1;
        }
        let reach = Reach::new(&self.outputs);
        let parts = self.passes.iter();
        parts
            .map(|part| self.predictions_within(&reach.of(part)))
            .sum()
    }

    pub(super) fn predictions_within(&self, needed: &[Range<usize>; 3]) -> u64 {
        let Some(patch_mask) = &self.patch_mask else {
            return needed.iter().map(|range| range.len() as u64).product();
        };
        let places = self.grid.indices(needed);
        places.filter(|&index| patch_mask.contains(index)).count() as u64
    }

    /// Returns the number of passes in which the outputs are written.
    pub(super) fn passes(&self) -> usize {
        self.passes.len().max(1)
    }

    /// Returns the disk space that the outputs need and the free space.
    pub(super) fn disk_space(&self) -> Result<Vec<DiskSpace>> {
        let outputs = self.outputs.iter();
        let outputs: Vec<_> = outputs
            .map(|output| (&output.layout, &output.store))
            .collect();
        disk_space(&outputs, self.resume.is_some())
    }

    /// Checks that the output paths are free or may be overwritten. A resumed run may find its own output under the
    /// name.
    pub(super) fn check_names(&self) -> Result<()> {
        for output in &self.outputs {
            if output.layout.remote && self.resume.is_some() {
                // What is there is looked at when the part is opened.
                continue;
            }
            match check_name(&output.layout, &output.store) {
                Err(Error::Exists { .. }) if self.resume.is_some() => {}
                checked => checked?,
            }
        }
        Ok(())
    }

    /// Predicts only the patches of a mask.
    pub(super) fn with_patch_mask(mut self, patch_mask: PatchMask) -> Result<Self> {
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
}
