//! Samplers: endless sequences of patch locations for training.
//!
//! The n-th draw is a pure function of the seed, the epoch and n, so the standard iterator methods apply: `skip(n)`
//! resumes, `step_by(world)` splits between ranks, `take(n)` ends an epoch. Skipping is free.
//!
//! [`Uniform`] needs no map. [`Weighted`] and [`Label`] draw by a map of any size, exactly and
//! without loading it: a [`BlockIndex`] stores the sum of each block, and a draw reads one
//! block. [`Channels`] draws by a map with one channel per label. [`Mixture`] combines samplers,
//! [`FixedLocations`] is a list of locations, and [`MinContent`] keeps only patches with enough of a label.
//! Patches are inside the volume unless the [`Border`] is [`Border::Pad`]. In volumes far larger
//! than a loader's buffer, a [`Neighborhood`] makes draws share chunks without changing the
//! distribution of any draw.

mod blocks;
mod border;
mod channels;
mod class;
mod content;
mod counts;
mod draw;
mod find;
mod fixed;
mod index;
mod label;
mod mixture;
mod near;
mod random;
mod sidecar;
mod stamp;
mod sums;
#[cfg(test)]
mod tests;
mod uniform;
mod weighted;
mod weights;

pub use border::{Border, CenterBox};
pub use channels::Channels;
pub use class::LabelValue;
pub use content::{Criterion, MinContent};
pub use counts::LabelCounts;
pub use draw::{Draws, OnEmpty, Sampler, SamplerExt, SamplerOptions, draws};
pub use fixed::{FixedLocations, LOCATIONS};
pub use index::{BlockIndex, LabelIndex, WeightIndex};
pub use label::{Label, LabelWeights};
pub use mixture::Mixture;
pub use near::Neighborhood;
pub use random::CounterRng;
pub use sidecar::{INDEX, is_index_file};
pub use sums::BlockStats;
pub use uniform::Uniform;
pub use weighted::Weighted;
pub use weights::WeightSums;
