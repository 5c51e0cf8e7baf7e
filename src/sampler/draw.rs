//! The `Sampler` trait and the options that all samplers share.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use rand::Rng;

use super::border::Border;
use super::near::Neighborhood;
use super::random::below;
use super::uniform::Uniform;
use crate::error::{Error, Result};
use crate::region::{Region, Shape};
use crate::threads::threads;

/// A source of patch locations. The n-th draw of an epoch depends only on the sampler's seed,
/// the epoch and n.
pub trait Sampler: Debug + Send + Sync {
    /// Voxels of a patch, z, y, x.
    fn patch(&self) -> Shape;

    /// Returns the number of draws; `None` for endless draws.
    fn draw_count(&self) -> Option<u64> {
        None
    }

    /// Returns draw `n` of an epoch.
    ///
    /// # Errors
    ///
    /// Errors of reading the map; [`Error::Unsupported`] if the map changed since its index was
    /// built; [`Error::InvalidArgument`] past the end.
    fn draw(&self, epoch: u64, n: u64) -> Result<Region>;

    /// Returns many draws in their order. The result is the same as drawing one by one, but each
    /// block of the map is read once.
    ///
    /// # Errors
    ///
    /// As [`draw`](Self::draw).
    fn draw_many(&self, epoch: u64, ns: &[u64]) -> Result<Vec<Region>> {
        ns.iter().map(|&n| self.draw(epoch, n)).collect()
    }
}

macro_rules! forward {
    ($($pointer:ident)*) => {
        $(impl<S: Sampler + ?Sized> Sampler for $pointer<S> {
            fn patch(&self) -> Shape {
                (**self).patch()
            }

            fn draw_count(&self) -> Option<u64> {
                (**self).draw_count()
            }

            fn draw(&self, epoch: u64, n: u64) -> Result<Region> {
                (**self).draw(epoch, n)
            }

            fn draw_many(&self, epoch: u64, ns: &[u64]) -> Result<Vec<Region>> {
                (**self).draw_many(epoch, ns)
            }
        })*
    };
}
forward!(Arc Box);

/// Draws with a generator of the `rand` crate, for every [`Sampler`].
pub trait SamplerExt: Sampler {
    /// Draws one region with any generator.
    ///
    /// The generator chooses an epoch and a draw of it. Each draw has the sampler's distribution,
    /// and so has this one.
    ///
    /// # Errors
    ///
    /// As [`Sampler::draw`]; [`Error::InvalidArgument`] if the sampler is an empty list.
    fn sample_with<R: Rng + ?Sized>(&self, rng: &mut R) -> Result<Region> {
        let epoch = rng.next_u64();
        let draws = self.draw_count().unwrap_or(1 << 32);
        if draws == 0 {
            return self.draw(epoch, 0);
        }
        self.draw(epoch, below(rng, draws))
    }
}

impl<S: Sampler + ?Sized> SamplerExt for S {}

/// Returns an iterator over the draws of an epoch. Skipping is free.
pub fn draws(sampler: &dyn Sampler, epoch: u64, ns: Range<u64>) -> Draws<'_> {
    let end = sampler.draw_count().map_or(ns.end, |end| ns.end.min(end));
    Draws {
        sampler,
        epoch,
        ns: ns.start..end,
    }
}

/// An iterator over draws; see [`draws`].
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

/// Options for sampling by a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerOptions {
    /// Voxels of a patch, z, y, x.
    pub patch_size: Shape,
    /// The random seed. Together with the epoch it determines all draws.
    pub seed: u64,
    /// The policy at the volume's border.
    pub border: Border,
    /// Bytes of blocks that are cached for the next draws.
    pub memory: u64,
    /// The number of threads that read the blocks cut by the border, when the sampler is created.
    pub threads: usize,
    /// The groups of nearby draws, if any.
    pub neighborhood: Option<Neighborhood>,
}

impl SamplerOptions {
    /// Creates options with patches that fit, 64 MiB of blocks, and all processors.
    #[must_use]
    pub fn new(patch_size: Shape, seed: u64) -> Self {
        Self {
            patch_size,
            seed,
            border: Border::Drop,
            memory: 64 << 20,
            threads: threads(),
            neighborhood: None,
        }
    }

    /// Sets the groups of nearby draws.
    #[must_use]
    pub const fn with_neighborhood(mut self, neighborhood: Neighborhood) -> Self {
        self.neighborhood = Some(neighborhood);
        self
    }

    /// Sets the border policy.
    #[must_use]
    pub const fn with_border(mut self, border: Border) -> Self {
        self.border = border;
        self
    }

    /// Sets the bytes of blocks that are cached.
    #[must_use]
    pub const fn with_memory(mut self, memory: u64) -> Self {
        self.memory = memory;
        self
    }

    /// Sets the number of threads.
    #[must_use]
    pub const fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }
}

/// The policy for a volume whose map has no valid patch center.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnEmpty {
    /// Fail with an error that names the file.
    #[default]
    Error,
    /// Skip the volume.
    Skip,
    /// Draw its patches uniformly.
    Uniform,
}

impl OnEmpty {
    /// Returns the sampler that was built, or applies the policy if there is no valid center: `None` if the volume is
    /// skipped.
    ///
    /// # Errors
    ///
    /// The error of building, except [`Error::NoCenter`] under the other two policies;
    /// and [`Error::PatchSize`] if no patch fits.
    pub fn apply<S: Sampler + 'static>(
        self,
        built: Result<S>,
        volume: Shape,
        options: &SamplerOptions,
    ) -> Result<Option<Box<dyn Sampler>>> {
        match (built, self) {
            (Ok(sampler), _) => Ok(Some(Box::new(sampler))),
            (Err(Error::NoCenter { .. }), Self::Skip) => Ok(None),
            (Err(Error::NoCenter { .. }), Self::Uniform) => {
                Ok(Some(Box::new(Uniform::with_options(volume, options)?)))
            }
            (Err(error), _) => Err(error),
        }
    }
}
