//! Schedules that follow what other processes began: all processes store an output in one way, whatever their
//! memory and threads.

use std::sync::Arc;

use super::model::Model;
use super::options::{InferenceOptions, OutputTarget, StoreOption};
use super::schedule::Schedule;
use crate::error::Result;
use crate::volume::{self, ChunkShape, CreateOptions, Layout};

/// What a schedule is chosen from: the options, and for each output its target with every choice of a shard.
#[derive(Clone, Debug)]
pub(super) struct Choices {
    options: InferenceOptions,
    targets: Vec<Vec<OutputTarget>>,
}

impl Choices {
    pub(super) const fn new(options: InferenceOptions, targets: Vec<Vec<OutputTarget>>) -> Self {
        Self { options, targets }
    }

    /// Every choice of shards: those asked for, then smaller ones.
    pub(super) fn of_shards(options: InferenceOptions, targets: &[OutputTarget]) -> Self {
        let smaller = targets.iter().map(|target| target.smaller_shards.len());
        let choice = |n| {
            targets
                .iter()
                .map(|target| target.with_shard_choice(n))
                .collect()
        };
        let all = (0..=smaller.max().unwrap_or(0)).map(choice);
        Self::new(options, all.collect())
    }

    /// How each output is stored that another process has begun.
    fn begun(&self) -> Result<Vec<Option<CreateOptions>>> {
        let targets = self.targets.first().into_iter().flatten();
        targets
            .map(|target| volume::partial_options(&target.path))
            .collect()
    }

    /// The first schedule that the memory is enough for.
    pub(super) fn schedule(&self, input: &Layout, model: &dyn Model) -> Result<Schedule> {
        self.options.within(input, model, &self.targets, &[])
    }

    /// The same for a run that is resumed or written in parts. Where another process has begun an output, the
    /// options of [`OutputTarget::defaults`] are that one's, and again if it is begun between now and the run.
    pub(super) fn following(
        self: Arc<Self>,
        input: &Layout,
        model: &dyn Model,
    ) -> Result<Schedule> {
        let begun = self.begun()?;
        let mut schedule = self.options.within(input, model, &self.targets, &begun)?;
        schedule.choices = Some(self);
        Ok(schedule)
    }
}

impl Schedule {
    /// The schedule that follows what was begun since this one was made; `None` if nothing was.
    pub(super) fn followed(&self, input: &Layout, model: &dyn Model) -> Result<Option<Self>> {
        let (Some(choices), Some(resume)) = (&self.choices, self.resume) else {
            return Ok(None);
        };
        if choices.begun()? == self.begun {
            return Ok(None);
        }
        let mut schedule = Arc::clone(choices).following(input, model)?;
        schedule.scales.clone_from(&self.scales);
        if let Some(patch_mask) = &self.patch_mask {
            schedule = schedule.with_patch_mask(patch_mask.clone())?;
        }
        schedule.with_part(resume.part, resume.durability).map(Some)
    }

    /// This schedule, or one that follows what other processes began.
    pub(super) fn following(
        mut self,
        choices: &Arc<Choices>,
        input: &Layout,
        model: &dyn Model,
    ) -> Result<Self> {
        let begun = choices.begun()?;
        if begun.iter().all(Option::is_none) {
            self.begun = begun;
            self.choices = Some(Arc::clone(choices));
            return Ok(self);
        }
        let mut schedule = Arc::clone(choices).following(input, model)?;
        schedule.scales = self.scales;
        match self.patch_mask {
            Some(patch_mask) => schedule.with_patch_mask(patch_mask),
            None => Ok(schedule),
        }
    }
}

/// The options of an output that another process began with `begun`. Options that are not in `defaults` stay those of
/// `store`, with which the output would be `stored`.
pub(super) fn followed(
    store: &CreateOptions,
    stored: &Layout,
    begun: &CreateOptions,
    defaults: &[StoreOption],
) -> CreateOptions {
    let free = |option| defaults.contains(&option);
    if stored.write_chunk.is_none() || (store.zarr != begun.zarr && !free(StoreOption::Zarr)) {
        return store.clone();
    }
    let lengths = |chunk: Option<ChunkShape>| {
        let [_, lengths @ ..] = chunk.unwrap_or([1; 4]);
        lengths
    };
    let mut found = CreateOptions {
        zarr: begun.zarr,
        chunk: lengths(stored.read_chunk),
        shard: store.shard.map(|_| lengths(stored.write_chunk)),
        ..store.clone()
    };
    if free(StoreOption::Chunk) {
        found.chunk = begun.chunk;
    }
    if found.chunk == begun.chunk && free(StoreOption::Shard) {
        found.shard = begun.shard;
    }
    if free(StoreOption::Codec) {
        found.codec = begun.codec;
    }
    if found.codec == begun.codec && free(StoreOption::Clevel) {
        found.clevel = begun.clevel;
    }
    if free(StoreOption::Pyramid) {
        found.pyramid = begun.pyramid;
    }
    let whole = |shard: [u64; 3]| (0..3).all(|a| shard[a].is_multiple_of(found.chunk[a]));
    if found.shard.is_some_and(|shard| !whole(shard)) {
        // What was asked for contradicts what was begun, and is refused when it is compared.
        return store.clone();
    }
    found
}
