//! The entry point of prediction: a volume, a model and options, and their plan.

use std::sync::Arc;

use super::begun::Choices;
use super::mask::PatchMask;
use super::model::Model;
use super::options::{InferenceOptions, OutputTarget};
use super::planned::PlannedOutput;
use super::probe::Probe;
use super::run::InferenceStats;
use super::schedule::Schedule;
use crate::error::Result;
use crate::grid::Grid;
use crate::meter::anonymous_bytes;
use crate::normalize::{Normalize, Normalizer};
use crate::progress::{Progress, silent};
use crate::volume::{DiskSpace, Durability, Layout, OutputPart, Volume};

/// A model to run on all patches of a volume.
///
/// ```
/// use std::sync::Arc;
/// use voxpatch::{InferenceOptions, MemoryVolume, OutputTarget, Predictor, builtin_model, progress};
///
/// # fn main() -> voxpatch::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// let scan = Arc::new(MemoryVolume::from_vec([40, 30, 20], 1, vec![0.5_f32; 24_000])?);
/// let options = InferenceOptions::new([16; 3]).with_overlap([8; 3]).with_memory(64 << 20);
/// let predictor = Predictor::new(scan, builtin_model("gaussian:1")?, options);
/// let plan = predictor.plan(&[OutputTarget::new(folder.path().join("out.zarr"))])?;
/// assert!(plan.peak_bytes() <= 64 << 20);
/// let stats = plan.run(&progress::silent)?;
/// assert_eq!(stats.patches, 4 * 3 * 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Predictor {
    volume: Arc<dyn Volume>,
    model: Arc<dyn Model>,
    options: InferenceOptions,
}

impl Predictor {
    /// Creates a predictor for a volume, a model and options.
    #[must_use]
    pub fn new(volume: Arc<dyn Volume>, model: Arc<dyn Model>, options: InferenceOptions) -> Self {
        Self {
            volume,
            model,
            options,
        }
    }

    /// Computes the grid, the outputs and the memory, without touching any file. `targets` has one entry for each
    /// output of the model, in the model's order.
    ///
    /// If memory is too short, the plan tries, in this order: smaller shards ([`OutputTarget::smaller_shards`]), fewer
    /// threads, and several passes, which cut the outputs along the two faster axes. Patches between two passes are
    /// predicted in both.
    ///
    /// # Errors
    ///
    /// [`PatchSize`](crate::Error::PatchSize), [`Overlap`](crate::Error::Overlap) or
    /// [`OutputGrid`](crate::Error::OutputGrid) if the grid is not possible;
    /// [`InvalidArgument`](crate::Error::InvalidArgument) if the model cannot take the volume;
    /// [`MemoryLimit`](crate::Error::MemoryLimit) if the run needs more memory than it is allowed, or
    /// [`BlenderMemory`](crate::Error::BlenderMemory) if a model that blends its predictions has too little.
    pub fn plan(&self, targets: &[OutputTarget]) -> Result<InferencePlan> {
        let choices = Choices::of_shards(self.options.clone(), targets);
        let schedule = choices.schedule(self.volume.layout(), &*self.model)?;
        Ok(InferencePlan {
            predictor: self.clone(),
            choices: Arc::new(choices),
            schedule,
        })
    }
}

/// A planned prediction that has not started. It holds its volume and its model, so it cannot be run on others.
#[derive(Clone, Debug)]
#[must_use = "a plan does nothing until it is run"]
pub struct InferencePlan {
    predictor: Predictor,
    choices: Arc<Choices>,
    schedule: Schedule,
}

impl InferencePlan {
    /// Returns the schedule as other processes follow it, the volume and the model.
    pub(super) fn followed(&self) -> Result<(Schedule, &dyn Volume, &dyn Model)> {
        let Predictor { volume, model, .. } = &self.predictor;
        let mut schedule = self.schedule.clone();
        let resume = schedule.resume;
        schedule = schedule.following(&self.choices, volume.layout(), &**model)?;
        schedule.resume = resume;
        Ok((schedule, &**volume, &**model))
    }

    pub(super) const fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    pub(super) const fn schedule_mut(&mut self) -> &mut Schedule {
        &mut self.schedule
    }

    /// Returns the patches in the volume, in the order in which they are predicted.
    #[must_use]
    pub const fn grid(&self) -> &Grid {
        &self.schedule.grid
    }

    /// Returns the layout of the volume.
    #[must_use]
    pub fn input(&self) -> &Layout {
        self.predictor.volume.layout()
    }

    /// Returns the outputs.
    #[must_use]
    pub fn outputs(&self) -> &[PlannedOutput] {
        &self.schedule.outputs
    }

    /// Returns the number of patches, and how many of them are predicted at least once.
    #[must_use]
    pub fn patches(&self) -> (u64, u64) {
        self.schedule.patches()
    }

    /// Returns the number of predictions. Patches between two passes count in both.
    #[must_use]
    pub fn predictions(&self) -> u64 {
        self.schedule.predictions()
    }

    /// Returns the number of passes in which the outputs are written.
    #[must_use]
    pub fn passes(&self) -> usize {
        self.schedule.passes()
    }

    /// Returns the most bytes that the run holds, without the model's own memory.
    #[must_use]
    pub const fn peak_bytes(&self) -> u64 {
        self.schedule.peak_bytes
    }

    /// Returns the most bytes of voxels that are not final or wait for their write chunk.
    #[must_use]
    pub const fn live_bytes(&self) -> u64 {
        self.schedule.live_bytes
    }

    /// Returns the most bytes of sums and temporary values that a [`Blender`](super::Blender) keeps in its own memory,
    /// without the model and its predictions; 0 if the sums are in memory.
    #[must_use]
    pub const fn blender_bytes(&self) -> u64 {
        self.schedule.blender_bytes
    }

    /// Returns the bytes of decoded input chunks that are cached. Until the outputs need all of their
    /// [`live_bytes`](Self::live_bytes), the cache uses a part of these too.
    #[must_use]
    pub const fn cache_bytes(&self) -> u64 {
        self.schedule.cache_bytes
    }

    /// Returns the bytes of finished predictions that may wait for an earlier, slower patch, so that no thread idles.
    #[must_use]
    pub const fn reorder_bytes(&self) -> u64 {
        self.schedule.reorder_bytes
    }

    /// Returns the disk space that the outputs need and the free space: one entry for each file system.
    ///
    /// # Errors
    ///
    /// As [`disk_space`](crate::volume::disk_space).
    pub fn disk_space(&self) -> Result<Vec<DiskSpace>> {
        self.schedule.disk_space()
    }

    /// Checks that the output paths are free or may be overwritten, before anything is read. A resumed run may find its
    /// own output under the name.
    ///
    /// # Errors
    ///
    /// As [`create`](crate::volume::create), if something else has the name.
    pub fn check_names(&self) -> Result<()> {
        self.schedule.check_names()
    }

    /// Predicts only the patches of a mask. The contribution of the other patches is an
    /// [option](crate::aggregator::Skipped).
    ///
    /// # Errors
    ///
    /// [`MemoryLimit`](crate::Error::MemoryLimit) if patches that do not vote take more memory than the run is allowed.
    /// A plan with [`InferenceOptions::masked`] has already counted it.
    pub fn with_patch_mask(mut self, patch_mask: PatchMask) -> Result<Self> {
        self.schedule = self.schedule.with_patch_mask(patch_mask)?;
        Ok(self)
    }

    /// Sets the normalization of the model's input. If it [measures](Normalize::measures), this reads the volume once, and
    /// `progress` counts the pieces.
    ///
    /// Voxels beyond the volume's faces are added afterwards: a padding of 0 is 0 for the model.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::Error::InvalidArgument) if the model takes voxels in the volume's own type; the errors of
    /// reading.
    pub fn with_normalize(
        mut self,
        normalize: impl Into<Normalizer>,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let normalizer = normalize.into();
        let (threads, _) = self.measuring(&normalizer);
        let volume = &self.predictor.volume;
        self.schedule = self
            .schedule
            .normalized(&normalizer, volume, threads, progress)?;
        Ok(self)
    }

    /// Sets the normalization to the numbers that an equal plan has measured ([`measured`](Self::measured)), without
    /// reading the volume.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::Error::InvalidArgument) if the text is not from there.
    pub fn with_measured(mut self, measured: Option<&str>) -> Result<Self> {
        self.schedule.scales = measured.map(str::parse).transpose()?;
        Ok(self)
    }

    /// Returns the numbers of the normalization, as text for [`with_measured`](Self::with_measured); `None` without one.
    #[must_use]
    pub fn measured(&self) -> Option<String> {
        self.schedule.scales.as_ref().map(ToString::to_string)
    }

    /// Resumes an interrupted run of the same plan, and keeps the output resumable if this run is interrupted. Outputs
    /// must be Zarr.
    ///
    /// # Errors
    ///
    /// As [`with_part`](Self::with_part).
    pub fn with_resume(self, durability: Durability) -> Result<Self> {
        self.with_part(OutputPart::WHOLE, durability)
    }

    /// Writes only the write chunks of one of several processes, which have equal shares along the slowest axis. The
    /// last process to finish publishes the outputs. A part can be resumed.
    ///
    /// Storage options that are only defaults ([`OutputTarget::defaults`]) follow the process that began the output.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::Error::Unsupported) if an output is a flat file;
    /// [`MemoryLimit`](crate::Error::MemoryLimit) if the part needs more memory than it is allowed, and
    /// [`Io`](crate::Error::Io) if an output that was begun cannot be read.
    pub fn with_part(mut self, part: OutputPart, durability: Durability) -> Result<Self> {
        self.schedule.check_resumable()?;
        let Predictor { volume, model, .. } = &self.predictor;
        let schedule = self.schedule;
        let schedule = schedule.following(&self.choices, volume.layout(), &**model)?;
        self.schedule = schedule.with_part(part, durability)?;
        Ok(self)
    }

    /// Estimates the time and memory of the run from one batch in the middle of the volume, which is read and predicted
    /// twice; the second time counts. `normalize` is the normalization that the run will use.
    ///
    /// # Errors
    ///
    /// Those of reading and of the model.
    ///
    /// # Panics
    ///
    /// If the model panics.
    pub fn probe(&self, normalize: impl Into<Normalizer>) -> Result<Probe> {
        let Predictor { volume, model, .. } = &self.predictor;
        let normalizer = normalize.into();
        let (_, measuring) = self.measuring(&normalizer);
        // Any two numbers take the same memory as the measured ones.
        let stand_in = if normalizer.normalize().measures() {
            Normalizer::from(Normalize::Window {
                low: 0.0,
                high: 1.0,
            })
        } else {
            normalizer
        };
        let schedule = self.schedule.clone();
        let schedule = schedule.normalized(&stand_in, volume, 1, &silent)?;
        let base = anonymous_bytes().unwrap_or(0);
        let mut probe = schedule.probe(volume, &**model)?;
        probe.process_bytes = probe.process_bytes.map(|bytes| bytes.max(base + measuring));
        Ok(probe)
    }

    /// Predicts every patch and writes the outputs. `progress` counts patches.
    ///
    /// # Errors
    ///
    /// The errors of reading, of the model and of writing; [`InputModified`](crate::Error::InputModified) if
    /// the input is modified during the run; [`OutputIsInput`](crate::Error::OutputIsInput);
    /// [`Interrupted`](crate::Error::Interrupted) if `progress` asks for it. An output gets its name only if all went well.
    ///
    /// # Panics
    ///
    /// If the model panics, once all threads have stopped.
    pub fn run(self, progress: Progress<'_>) -> Result<InferenceStats> {
        let Predictor { volume, model, .. } = self.predictor;
        self.schedule.run(volume, model, progress)
    }

    /// Returns the number of threads that measure the volume for a normalization, and the bytes that they take.
    fn measuring(&self, normalizer: &Normalizer) -> (usize, u64) {
        let options = &self.predictor.options;
        let layout = self.predictor.volume.layout();
        normalizer.measuring(layout, options.threads.max(1), options.memory)
    }
}
