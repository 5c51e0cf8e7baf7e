//! Where training patches lie: endless iterators of regions.
//!
//! The n-th draw is a pure function of the seed, the epoch and n, so the standard words do
//! the rest: `skip(n)` resumes, `step_by(world)` shares between ranks, `take(n)` ends an
//! epoch. Skipping costs nothing.

mod random;
mod uniform;

pub use random::Random;
pub use uniform::Uniform;
