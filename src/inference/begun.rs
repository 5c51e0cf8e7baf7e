//! Plans that follow what other processes began: one output is stored in one way, whatever the memory and
//! the threads of those who write it.

use std::sync::Arc;

use super::model::Model;
use super::plan::InferencePlan;
use super::{Inference, OutputTarget, StoreOption};
use crate::error::Result;
use crate::volume::{self, ChunkShape, CreateOptions, Layout};

/// What a plan is chosen from.
#[derive(Clone, Debug)]
pub(super) struct Choices {
    inference: Inference,
    fewest: usize,
    targets: Vec<Vec<OutputTarget>>,
}

impl Choices {
    /// How each output is stored that was begun.
    fn begun(&self) -> Result<Vec<Option<CreateOptions>>> {
        let targets = self.targets.first().into_iter().flatten();
        targets
            .map(|target| volume::partial_options(&target.path))
            .collect()
    }

    fn plan(self: Arc<Self>, input: &Layout, model: &dyn Model) -> Result<InferencePlan> {
        let begun = self.begun()?;
        let (fewest, targets) = (self.fewest, &self.targets);
        let mut plan = self
            .inference
            .within(fewest, input, model, targets, &begun)?;
        plan.choices = Some(self);
        Ok(plan)
    }
}

impl Inference {
    /// As [`plan_within`](Self::plan_within), for a run that is resumed, or written in parts. Where another
    /// process has begun an output, those of its storage options that nobody asked for
    /// ([`OutputTarget::unasked`]) are that one's, so that processes with other threads and memory go on with it. So
    /// they are if it is begun between now and the run.
    ///
    /// # Errors
    ///
    /// As [`plan_within`](Self::plan_within), and [`Error::Io`](crate::Error::Io) if what was begun cannot be read.
    pub fn plan_begun(
        &self,
        fewest: usize,
        input: &Layout,
        model: &dyn Model,
        choices: &[Vec<OutputTarget>],
    ) -> Result<InferencePlan> {
        let choices = Choices {
            inference: self.clone(),
            fewest,
            targets: choices.to_vec(),
        };
        Arc::new(choices).plan(input, model)
    }
}

impl InferencePlan {
    /// The plan that follows what was begun since this one was made; `None` if nothing was.
    pub(super) fn followed(&self, input: &Layout, model: &dyn Model) -> Result<Option<Self>> {
        let (Some(choices), Some(resume)) = (&self.choices, self.resume) else {
            return Ok(None);
        };
        if choices.begun()? == self.begun {
            return Ok(None);
        }
        let mut plan = Arc::clone(choices).plan(input, model)?;
        if let Some(patch_mask) = &self.patch_mask {
            plan = plan.with_patch_mask(patch_mask.clone())?;
        }
        plan.with_part(resume.part, resume.durability).map(Some)
    }
}

/// How an output is stored whose `store` would give `stored`, and which was begun as `begun` says: what was
/// asked for stays.
pub(super) fn followed(
    store: &CreateOptions,
    stored: &Layout,
    begun: &CreateOptions,
    unasked: &[StoreOption],
) -> CreateOptions {
    let free = |option| unasked.contains(&option);
    if stored.write_chunk.is_none() || (store.format != begun.format && !free(StoreOption::Format))
    {
        return store.clone();
    }
    let lengths = |chunk: Option<ChunkShape>| {
        let [_, lengths @ ..] = chunk.unwrap_or([1; 4]);
        lengths
    };
    let mut found = CreateOptions {
        format: begun.format,
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
    if found.codec == begun.codec && free(StoreOption::Level) {
        found.level = begun.level;
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
