//! Where training patches lie: endless iterators of regions.
//!
//! The n-th draw is a pure function of the seed, the epoch and n, so the standard words do
//! the rest: `skip(n)` resumes, `step_by(world)` shares between ranks, `take(n)` ends an
//! epoch. Skipping costs nothing.

mod random;
mod uniform;

pub use random::Random;
pub use uniform::Uniform;

/// A source of patches' places.
pub trait Sampler: std::fmt::Debug + Send + Sync {
    /// Voxels of a patch, z, y, x.
    fn patch(&self) -> crate::region::Shape;

    /// Draw `n` of an epoch.
    ///
    /// # Errors
    ///
    /// Whatever keeps the map from being read.
    fn draw(&self, epoch: u64, n: u64) -> crate::Result<crate::Region>;

    /// Many draws, in their order.
    ///
    /// # Errors
    ///
    /// As [`draw`](Self::draw).
    fn draw_many(&self, epoch: u64, ns: &[u64]) -> crate::Result<Vec<crate::Region>> {
        ns.iter().map(|&n| self.draw(epoch, n)).collect()
    }
}

impl Sampler for Uniform {
    fn patch(&self) -> crate::region::Shape {
        self.region(0).shape
    }
    fn draw(&self, epoch: u64, n: u64) -> crate::Result<crate::Region> {
        Ok(self.clone().with_epoch(epoch).region(n))
    }
}
