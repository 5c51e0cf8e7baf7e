//! Sampler factories: make the sampler of each subject.

use std::sync::Arc;

use super::subject::Subject;
use crate::error::Result;
use crate::region::Shape;
use crate::sampler::{Border, CounterRng, Neighborhood, Sampler, SamplerOptions, Uniform};

/// Makes the sampler of each subject.
///
/// A closure from a subject and its seed to a sampler is one, and so is [`UniformPatches`].
///
/// ```
/// use voxpatch::sampler::Uniform;
/// use voxpatch::training::{Dataset, Subject};
///
/// let samplers = |subject: &Subject, seed| Uniform::new(subject.shape(), [32; 3], seed);
/// let dataset = Dataset::new(Vec::new(), samplers).samples_per_subject(10);
/// # assert_eq!(dataset.plan().unwrap().len(), 0);
/// ```
pub trait SamplerFactory: Send + Sync {
    /// Returns the sampler of a subject with a seed of its own; `None` leaves the subject out.
    ///
    /// # Errors
    ///
    /// Errors of making the sampler, which loaders deliver in the place of the subject's patches.
    fn sampler(&self, subject: &Subject, seed: u64) -> Result<Option<Arc<dyn Sampler>>>;
}

/// The result of a closure that is a [`SamplerFactory`]: a sampler, or an optional one.
pub trait IntoSampler {
    /// Returns the sampler; `None` leaves the subject out.
    fn into_sampler(self) -> Option<Arc<dyn Sampler>>;
}

impl<S: Sampler + 'static> IntoSampler for S {
    fn into_sampler(self) -> Option<Arc<dyn Sampler>> {
        Some(Arc::new(self))
    }
}

impl<S: Sampler + 'static> IntoSampler for Option<S> {
    fn into_sampler(self) -> Option<Arc<dyn Sampler>> {
        self.and_then(IntoSampler::into_sampler)
    }
}

impl<F, S> SamplerFactory for F
where
    F: Fn(&Subject, u64) -> Result<S> + Send + Sync,
    S: IntoSampler,
{
    fn sampler(&self, subject: &Subject, seed: u64) -> Result<Option<Arc<dyn Sampler>>> {
        Ok(self(subject, seed)?.into_sampler())
    }
}

/// Patches at uniformly random places of each subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniformPatches {
    patch: Shape,
    border: Border,
    neighborhood: Option<Neighborhood>,
}

impl UniformPatches {
    /// Draws patches of `patch` voxels (z, y, x) that fit inside the volume.
    #[must_use]
    pub fn new(patch: Shape) -> Self {
        Self {
            patch,
            border: Border::default(),
            neighborhood: None,
        }
    }

    /// Sets the border policy.
    #[must_use]
    pub fn with_border(self, border: Border) -> Self {
        Self { border, ..self }
    }

    /// Sets draws in groups of nearby patches.
    #[must_use]
    pub fn with_neighborhood(self, neighborhood: Neighborhood) -> Self {
        Self {
            neighborhood: Some(neighborhood),
            ..self
        }
    }
}

impl SamplerFactory for UniformPatches {
    fn sampler(&self, subject: &Subject, seed: u64) -> Result<Option<Arc<dyn Sampler>>> {
        let mut options = SamplerOptions::new(self.patch, seed).with_border(self.border);
        options.neighborhood = self.neighborhood;
        let sampler = Uniform::with_options(subject.shape(), &options)?;
        Ok(Some(Arc::new(sampler)))
    }
}

/// Returns the seed of a subject's sampler, a function of the plan's seed and the subject's index.
#[must_use]
pub fn subject_seed(seed: u64, subject: u64) -> u64 {
    CounterRng::of_domain(*b"voxpatch seed v1", seed, subject, 0).number()
}
