//! Training: subjects, the plan of an epoch, and a loader that reads ahead.
//!
//! A [`Dataset`] ties together [`Subjects`], a [`SamplerFactory`] that decides where patches lie, and
//! an [`EpochPlan`] that decides how many patches of which subject come in which order. A [`Loader`]
//! reads them ahead: it reads each chunk once for all buffered patches that need it, in any order, and
//! delivers the patches in the planned order. The sequence is the same for any number of threads and
//! any buffer. It can be resumed at any patch and is split between ranks by patch.

mod augment;
mod cohort;
mod dataset;
mod factory;
mod fingerprint;
mod loader;
mod order;
mod plan;
mod proportional;
mod shard;
mod spatial;
mod state;
mod subject;
mod subjects;
mod sync;

pub use crate::volume::{ControlPoints, TOLERANCE};
pub use augment::Augmentation;
pub use cohort::Cohort;
pub use dataset::{Batches, Dataset, LoaderBuilder};
pub use factory::{IntoSampler, SamplerFactory, UniformPatches, subject_seed};
pub use loader::{
    Batch, BatchImage, Loader, LoaderOptions, LoaderStats, OnError, PooledPatch, Sample, Transform,
    TryNext,
};
pub use plan::{Epoch, EpochPlan, PlannedPatch};
pub use shard::{RankShard, Uneven, WorkerShard};
pub use spatial::{RandomAffine, RandomElastic};
pub use state::LoaderState;
pub use subject::{Image, Subject, SubjectBuilder};
pub use subjects::{LazySubjects, Subjects};

#[cfg(test)]
mod tests;
