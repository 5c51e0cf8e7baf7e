//! Training: subjects, the plan of an epoch, and a loader that reads ahead.
//!
//! A [`Plan`] says which patches an epoch has and in which order, a sampler where each of
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
mod share;
mod slot;
mod state;
mod subject;

pub use crate::volume::TOLERANCE;
pub use batch::{Batch, BatchImage};
pub use cohort::Cohort;
pub use feed::{MakeSampler, subject_seed};
pub use gather::Transform;
pub use loader::{Loader, LoaderOptions, LoaderStats, OnError, Waited};
pub use plan::{Epoch, Plan, Planned};
pub use sample::{Lent, Sample};
pub use share::{Share, Turn, Uneven};
pub use state::LoaderState;
pub use subject::{Image, Lazy, Subject, Subjects};

#[cfg(test)]
mod tests;
