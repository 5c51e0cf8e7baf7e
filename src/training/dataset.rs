//! Datasets: subjects, their samplers and the plan of an epoch, tied together.

use std::fmt;
use std::sync::Arc;

use super::augment::Augmentation;
use super::factory::SamplerFactory;
use super::loader::{
    Batch, Carried, Carry, Loader, LoaderOptions, LoaderStats, OnError, Transform,
};
use super::plan::EpochPlan;
use super::shard::RankShard;
use super::state::LoaderState;
use super::subjects::Subjects;
use crate::error::Result;

/// Subjects with their samplers and the plan of their epochs.
///
/// The sequence of patches is a function of the dataset and the epoch alone.
///
/// A loader leaves the decoded chunks that it holds, and their subjects, to the dataset's next one: between epochs
/// the dataset takes up to [`LoaderOptions::memory`], until [`release`](Self::release). Clones share them, until one gets
/// other settings.
///
/// ```
/// use std::sync::Arc;
/// use voxpatch::MemoryVolume;
/// use voxpatch::training::{Dataset, Subject, UniformPatches};
///
/// # fn main() -> voxpatch::Result<()> {
/// let scan = Arc::new(MemoryVolume::from_vec([40, 30, 20], 1, vec![7_i16; 24_000])?);
/// let subject = Subject::builder("patient 1").with_image("ct", scan).build()?;
/// let dataset = Dataset::new(vec![subject], UniformPatches::new([16; 3])).samples_per_subject(8).seed(7);
/// for epoch in 0..2 {
///     for batch in dataset.epoch(epoch).threads(2).batches(4)? {
///         assert_eq!(batch?.image("ct").unwrap().shape(), [4, 1, 16, 16, 16]);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Dataset {
    subjects: Arc<dyn Subjects>,
    samplers: Arc<dyn SamplerFactory>,
    samples: u64,
    seed: u64,
    plan: Option<EpochPlan>,
    /// The chunks that its last loader left.
    carry: Carry,
}

impl Dataset {
    /// Ties subjects to the factory of their samplers. An epoch has one patch of each subject unless
    /// [`samples_per_subject`](Self::samples_per_subject) or [`with_plan`](Self::with_plan) says
    /// otherwise; the seed is 0.
    pub fn new(subjects: impl Subjects + 'static, samplers: impl SamplerFactory + 'static) -> Self {
        Self {
            subjects: Arc::new(subjects),
            samplers: Arc::new(samplers),
            samples: 1,
            seed: 0,
            plan: None,
            carry: Carry::default(),
        }
    }

    /// Sets the number of patches of each subject in an epoch.
    #[must_use]
    pub fn samples_per_subject(self, samples: u64) -> Self {
        Self { samples, ..self }.renewed()
    }

    /// Sets the random seed.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }.renewed()
    }

    /// Sets the plan of an epoch, which decides all counts, the order and the seed.
    #[must_use]
    pub fn with_plan(self, plan: EpochPlan) -> Self {
        Self {
            plan: Some(plan),
            ..self
        }
        .renewed()
    }

    /// Forgets the chunks and subjects that clones with other settings share.
    fn renewed(self) -> Self {
        Self {
            carry: Carry::default(),
            ..self
        }
    }

    /// Returns the plan of an epoch.
    ///
    /// # Errors
    ///
    /// As [`EpochPlan::new`].
    pub fn plan(&self) -> Result<EpochPlan> {
        match &self.plan {
            Some(plan) => Ok(plan.clone()),
            None => EpochPlan::new(self.subjects.len(), self.samples, self.seed),
        }
    }

    /// The subjects.
    #[must_use]
    pub fn subjects(&self) -> &dyn Subjects {
        &*self.subjects
    }

    /// Frees the chunks, and closes the subjects, that the last loader left to the next one.
    pub fn release(&self) {
        self.carry.leave(Carried::default());
    }

    /// Prepares an epoch, from its first patch.
    pub fn epoch(&self, epoch: u64) -> LoaderBuilder<'_> {
        LoaderBuilder {
            dataset: self,
            start: Start::Epoch(epoch),
            options: LoaderOptions::default(),
        }
    }

    /// Prepares the rest of an epoch from a saved state. Threads, buffer and ranks may differ from
    /// those of the run that saved it. A state at the end of an epoch resumes with the next epoch,
    /// unless [`LoaderOptions::stay_in_epoch`] is set.
    pub fn resume(&self, state: LoaderState) -> LoaderBuilder<'_> {
        LoaderBuilder {
            start: Start::State(state),
            ..self.epoch(0)
        }
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("subjects", &self.subjects.len())
            .field("plan", &self.plan())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
enum Start {
    Epoch(u64),
    State(LoaderState),
}

/// An epoch of a [`Dataset`] that is about to start.
#[derive(Clone, Debug)]
#[must_use = "it reads nothing before `samples` or `batches`"]
pub struct LoaderBuilder<'a> {
    dataset: &'a Dataset,
    start: Start,
    options: LoaderOptions,
}

impl LoaderBuilder<'_> {
    /// Sets all options.
    pub fn with_options(self, options: LoaderOptions) -> Self {
        Self { options, ..self }
    }

    /// Sets the number of reading threads. With 0, the consumer's thread reads when it asks.
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = threads;
        self
    }

    /// Sets the maximum number of bytes of buffered patches and decoded chunks.
    pub fn memory(mut self, memory: u64) -> Self {
        self.options.memory = memory;
        self
    }

    /// Sets the patches of this rank.
    pub fn shard(mut self, shard: RankShard) -> Self {
        self.options.shard = shard;
        self
    }

    /// Sets what to do when a patch cannot be read.
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.options.on_error = on_error;
        self
    }

    /// Sets random crops, maps, flips, axis orders and rotations.
    pub fn augment(mut self, augment: Augmentation) -> Self {
        self.options.augment = augment;
        self
    }

    /// Sets a function that changes each sample on a worker thread.
    pub fn transform(mut self, transform: Arc<Transform>) -> Self {
        self.options.transform = Some(transform);
        self
    }

    /// Starts the epoch and returns an iterator over its samples.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the plan, the subjects and the options do not fit
    /// each other; [`Error::StateMismatch`](crate::Error::StateMismatch) if a saved state belongs to
    /// another dataset.
    pub fn samples(self) -> Result<Loader> {
        let Dataset {
            subjects, samplers, ..
        } = self.dataset;
        let (subjects, samplers) = (Arc::clone(subjects), Arc::clone(samplers));
        let plan = self.dataset.plan()?;
        let mut options = self.options;
        options.carry = Some(self.dataset.carry.clone());
        match self.start {
            Start::Epoch(epoch) => Loader::new(subjects, samplers, &plan, epoch, &options),
            Start::State(state) => Loader::resume(subjects, samplers, &plan, state, &options),
        }
    }

    /// Starts the epoch and returns an iterator over its batches of at most `batch_size` patches,
    /// each with one contiguous buffer per image.
    ///
    /// # Errors
    ///
    /// As [`samples`](Self::samples).
    pub fn batches(mut self, batch_size: u64) -> Result<Batches> {
        self.options.shard.batch_size = batch_size;
        self.options.contiguous_batches = true;
        Ok(Batches {
            loader: self.samples()?,
        })
    }
}

/// An iterator over the batches of one epoch. Dropping it ends its threads.
#[derive(Debug)]
pub struct Batches {
    loader: Loader,
}

impl Batches {
    /// The position in the epoch, after the last batch that was taken.
    #[must_use]
    pub fn state(&self) -> LoaderState {
        self.loader.state()
    }

    /// Returns the statistics so far.
    #[must_use]
    pub fn stats(&self) -> LoaderStats {
        self.loader.stats()
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.loader.next_contiguous_batch()
    }
}
