//! What all samplers have in common: a draw that can fail, and the wishes that draws follow.

use std::fmt::Debug;
use std::ops::Range;

use super::border::Border;
use super::near::Neighbourhood;
use super::uniform::Uniform;
use crate::error::{Error, Result};
use crate::region::{Region, Shape};
use crate::threads::threads;

/// Where patches lie. The n-th draw of an epoch is a function of the sampler's seed, the
/// epoch and n, and of nothing else.
pub trait Sampler: Debug + Send + Sync {
    /// Voxels of a patch, z, y, x.
    fn patch(&self) -> Shape;

    /// How many draws there are, if there is an end to them.
    fn end(&self) -> Option<u64> {
        None
    }

    /// Draw `n` of an epoch.
    ///
    /// # Errors
    ///
    /// What reading the map gives; [`Error::Unsupported`] if the map is not what it was when its
    /// index was built; [`Error::Setting`] past the end.
    fn draw(&self, epoch: u64, n: u64) -> Result<Region>;

    /// Many draws, in their order: the same as one by one, with each block of the map read once.
    ///
    /// # Errors
    ///
    /// As [`draw`](Self::draw).
    fn draw_many(&self, epoch: u64, ns: &[u64]) -> Result<Vec<Region>> {
        ns.iter().map(|&n| self.draw(epoch, n)).collect()
    }
}

/// Draws one after another, some of an epoch: an iterator that skips at no cost.
pub fn draws(sampler: &dyn Sampler, epoch: u64, ns: Range<u64>) -> Draws<'_> {
    let end = sampler.end().map_or(ns.end, |end| ns.end.min(end));
    Draws {
        sampler,
        epoch,
        ns: ns.start..end,
    }
}

/// An iterator of draws; see [`draws`].
#[derive(Clone, Debug)]
pub struct Draws<'a> {
    sampler: &'a dyn Sampler,
    epoch: u64,
    ns: Range<u64>,
}

impl Iterator for Draws<'_> {
    type Item = Result<Region>;

    fn next(&mut self) -> Option<Self::Item> {
        self.nth(0)
    }

    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        let n = self.ns.nth(n)?;
        Some(self.sampler.draw(self.epoch, n))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.ns.size_hint()
    }
}

/// What draws by a map follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerOptions {
    /// Voxels of a patch, z, y, x.
    pub patch: Shape,
    /// Decides all draws, with the epoch.
    pub seed: u64,
    /// What happens at the volume's border.
    pub border: Border,
    /// Bytes of blocks that are kept ready for the next draws.
    pub budget: u64,
    /// Threads that read the blocks which the border cuts, once.
    pub threads: usize,
    /// Whether draws come in groups that lie near each other.
    pub neighbourhood: Option<Neighbourhood>,
}

impl SamplerOptions {
    /// Patches that fit, 64 MiB of blocks, as many threads as there are processors.
    #[must_use]
    pub fn new(patch: Shape, seed: u64) -> Self {
        Self {
            patch,
            seed,
            border: Border::Drop,
            budget: 64 << 20,
            threads: threads(),
            neighbourhood: None,
        }
    }

    /// The same with draws in groups that lie near each other.
    #[must_use]
    pub const fn with_neighbourhood(mut self, neighbourhood: Neighbourhood) -> Self {
        self.neighbourhood = Some(neighbourhood);
        self
    }

    /// The same with another border policy.
    #[must_use]
    pub const fn with_border(mut self, border: Border) -> Self {
        self.border = border;
        self
    }

    /// The same with another budget of bytes.
    #[must_use]
    pub const fn with_budget(mut self, budget: u64) -> Self {
        self.budget = budget;
        self
    }

    /// The same with another number of threads.
    #[must_use]
    pub const fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }
}

/// What becomes of a volume whose map leaves no centre to draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Empty {
    /// It is an error that names the file.
    #[default]
    Error,
    /// It is left out.
    Skip,
    /// Its patches are drawn from anywhere.
    Uniform,
}

impl Empty {
    /// The sampler that was built; or, if there was no centre for it, what the policy says:
    /// `None` where the volume is to be left out.
    ///
    /// # Errors
    ///
    /// The one that building gave, but for [`Error::NoCentre`] under the other two policies;
    /// and [`Error::PatchSize`] if no patch fits.
    pub fn decide<S: Sampler + 'static>(
        self,
        built: Result<S>,
        volume: Shape,
        options: &SamplerOptions,
    ) -> Result<Option<Box<dyn Sampler>>> {
        match (built, self) {
            (Ok(sampler), _) => Ok(Some(Box::new(sampler))),
            (Err(Error::NoCentre { .. }), Self::Skip) => Ok(None),
            (Err(Error::NoCentre { .. }), Self::Uniform) => {
                Ok(Some(Box::new(Uniform::with_options(volume, options)?)))
            }
            (Err(error), _) => Err(error),
        }
    }
}
