//! Training: subjects, the plan of an epoch, and a loader that reads ahead.
//!
//! A [`EpochPlan`] says which patches an epoch has and in which order, a sampler where each of
//! them lies, and a [`Loader`] reads them: by the chunk, each chunk once for all patches of
//! its buffer that want it, whatever the order in which they are delivered. The sequence is
//! the same for any number of threads and any buffer, can be resumed at any patch, and is
//! cut between ranks by patch.

mod batch;
mod cohort;
mod feed;
mod fingerprint;
mod gather;
mod kept;
mod loader;
mod order;
mod plan;
mod planes;
mod pool;
mod sample;
mod schedule;
mod shard;
mod slot;
mod state;
mod subject;

pub use crate::volume::TOLERANCE;
pub use batch::{Batch, BatchImage};
pub use cohort::Cohort;
pub use feed::{SamplerFactory, subject_seed};
pub use gather::Transform;
pub use loader::{Loader, LoaderOptions, LoaderStats, OnError, TryNext};
pub use plan::{Epoch, EpochPlan, PlannedPatch};
pub use sample::{PooledPatch, Sample};
pub use shard::{RankShard, Uneven, WorkerShard};
pub use state::LoaderState;
pub use subject::{Image, LazySubjects, Subject, Subjects};

#[cfg(test)]
mod tests;
