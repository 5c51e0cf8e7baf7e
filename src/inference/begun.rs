//! Schedules that follow what other processes began: all processes store an output in the same way, regardless of their
//! memory and threads.

use std::sync::Arc;

use super::model::Model;
use super::options::{InferenceOptions, OutputTarget};
use super::schedule::Schedule;
use crate::error::Result;
use crate::volume::{self, CreateOptions, Layout};

/// The candidates for a schedule: the options, and for every choice of shards a target for each output.
#[derive(Clone, Debug)]
pub(super) struct Choices {
    options: InferenceOptions,
    targets: Vec<Vec<OutputTarget>>,
}

impl Choices {
    pub(super) const fn new(options: InferenceOptions, targets: Vec<Vec<OutputTarget>>) -> Self {
        Self { options, targets }
    }

    /// Creates the choices of shards: those that were requested, then smaller ones.
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

    /// Returns the options of each output that another process has begun; `None` for the others.
    fn begun(&self) -> Result<Vec<Option<CreateOptions>>> {
        let targets = self.targets.first().into_iter().flatten();
        targets
            .map(|target| volume::begun_options(&target.path, &target.store))
            .collect()
    }

    /// Returns the first schedule that fits into the memory.
    pub(super) fn schedule(&self, input: &Layout, model: &dyn Model) -> Result<Schedule> {
        self.options.within(input, model, &self.targets, &[])
    }

    /// Returns the same for a run that is resumed or written in parts. Where another process has begun an output, the
    /// options in [`OutputTarget::defaults`] are taken from that process. The run checks again for outputs that are
    /// begun in the meantime.
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
    /// Returns a schedule that follows the outputs begun since this one was made; `None` if none was begun.
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
        schedule = schedule.with_part(resume.part, resume.durability)?;
        schedule.resume = Some(resume);
        Ok(Some(schedule))
    }

    /// Returns this schedule, or one that follows what other processes began.
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
