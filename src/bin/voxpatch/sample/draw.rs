//! The inputs and their samplers, made before anything is written.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use voxpatch::sampler::{
    BlockIndex, BlockStats, FixedLocations, Label, LabelWeights, Mixture, OnEmpty, Sampler,
    SamplerOptions, Uniform, Weighted,
};
use voxpatch::training::{Image, SamplerFactory, Subject, subject_seed};
use voxpatch::volume::{IndexRange, Subset};
use voxpatch::{DType, Error, Layout, Padding, Shape, Volume};

use super::budget::Budget;
use super::settings::{BorderName, SampleArgs, SamplerKind};
use crate::input::{OnGrid, level_of};
use crate::progress::Unit;

/// A volume with its maps.
pub(super) struct Input {
    pub(super) subject: Subject,
    pub(super) labels: Option<Arc<dyn Volume>>,
    pub(super) weights: Option<Arc<dyn Volume>>,
}

impl Input {
    /// Opens the `n`th input with its maps, all on one grid: that of the input, whose maps may be coarser, or the chosen
    /// one.
    pub(super) fn open(settings: &SampleArgs, n: usize) -> anyhow::Result<Self> {
        let path = &settings.sources[n];
        let open = |path: &Path, level| settings.opening.options(level).open(path);
        let level = settings.part.level;
        let on_grid = settings.on_grid_of(n);
        let whole = on_grid.open(&settings.opening, path, level)?;
        let volume = settings.part.of(&whole)?;
        let matching = settings.together.matching();
        let map = |path: Option<&PathBuf>, channel: u64| {
            path.map(|path| {
                let map = open(path, level_of(path, settings.part.level))?;
                let map = match settings.grid {
                    Some(_) => OnGrid::resampled(whole.layout(), map)?,
                    None => on_grid.second(whole.layout(), map)?,
                };
                let one = Subset {
                    channels: Some(IndexRange::one(channel)),
                    ..Subset::default()
                };
                let bring = |to: &Layout, map| matching.on_grid_of(to, map);
                let (all, own) = (whole.layout(), volume.layout());
                settings.part.with(all, own, &one.of(map)?, bring)
            })
            .transpose()
        };
        let labels = map(settings.labels.get(n), settings.label_channel)?;
        let weights = map(settings.weights.get(n), settings.weight_channel)?;
        let fill = Padding::Constant(settings.fill);
        let image = Image::new("image", volume)
            .with_padding(fill)
            .with_normalize(settings.normalize.normalizer())
            .with_interpolation(settings.on_grid.interpolation);
        let name = path.display().to_string();
        Ok(Self {
            subject: Subject::builder(name).with_images([image]).build()?,
            labels,
            weights,
        })
    }

    pub(super) fn volume(&self) -> &Arc<dyn Volume> {
        &self.subject.images()[0].volume
    }

    /// Casts the patches to a type.
    pub(super) fn cast(&mut self, dtype: DType) -> voxpatch::Result<()> {
        let image = self.subject.images()[0].clone().with_dtype(dtype);
        self.subject = Subject::builder(self.subject.name())
            .with_images([image])
            .build()?;
        Ok(())
    }

    /// The maps that patches are drawn by.
    pub(super) fn maps(&self) -> impl Iterator<Item = &Arc<dyn Volume>> {
        self.labels.iter().chain(&self.weights)
    }
}

/// The samplers of all inputs.
#[derive(Default)]
pub(super) struct Samplers {
    /// By the seed that the loader asks for.
    own: HashMap<u64, Option<Arc<dyn Sampler>>>,
    /// Patches of each input: none of one that is left out.
    pub(super) counts: Vec<u64>,
    /// Patches that would have come from inputs that are left out.
    pub(super) left_out: u64,
    /// Labels that were asked for and are nowhere in an input's centers, with the input's name.
    pub(super) absent: Vec<(String, Vec<String>)>,
    /// Those of them that are in no input, of several.
    pub(super) nowhere: Vec<String>,
    pub(super) index_seconds: f64,
}

impl Samplers {
    /// Reads the maps and makes a sampler for each input.
    pub(super) fn new(
        settings: &SampleArgs,
        inputs: &[Input],
        patch: Shape,
        fixed: Option<&FixedLocations>,
        budget: &Budget,
    ) -> anyhow::Result<Self> {
        let began = Instant::now();
        let mut all = Self::default();
        for (n, input) in inputs.iter().enumerate() {
            let asked = subject_seed(settings.seed, n as u64);
            // The only input has the seed itself, so that its draws are the sampler's own.
            let seed = if inputs.len() == 1 {
                settings.seed
            } else {
                asked
            };
            let (sampler, count) = if let Some(fixed) = fixed {
                let sampler: Arc<dyn Sampler> = Arc::new(fixed.clone());
                (Some(sampler), listed(settings, fixed, input)?)
            } else {
                let maps = inputs.iter().flat_map(Input::maps).count() as u64;
                let options = SamplerOptions::new(patch, seed)
                    .with_border(settings.border.into())
                    .with_memory(budget.maps / maps.max(1))
                    .with_threads(budget.threads);
                let sampler = all.sampler(settings, (n, input), &options)?;
                (sampler, settings.samples_per_subject.unwrap_or(0))
            };
            if sampler.is_none() {
                all.left_out = all.left_out.saturating_add(count);
            }
            all.counts.push(if sampler.is_some() { count } else { 0 });
            all.own.insert(asked, sampler);
        }
        if inputs.len() > 1 {
            all.gather_nowhere(inputs.len());
        }
        if !settings.labels.is_empty() || !settings.weights.is_empty() {
            all.index_seconds = began.elapsed().as_secs_f64();
        }
        Ok(all)
    }

    /// Tells labels that no input has once, and not for each input.
    fn gather_nowhere(&mut self, inputs: usize) {
        let Some(((_, first), others)) = self.absent.split_first() else {
            return;
        };
        if others.len() + 1 < inputs {
            return;
        }
        let everywhere = |label: &&String| others.iter().all(|(_, own)| own.contains(label));
        self.nowhere = first.iter().filter(everywhere).cloned().collect();
        for (_, labels) in &mut self.absent {
            labels.retain(|label| !self.nowhere.contains(label));
        }
        self.absent.retain(|(_, labels)| !labels.is_empty());
    }

    /// The sampler of an input, or `None` if it is left out.
    fn sampler(
        &mut self,
        settings: &SampleArgs,
        (n, input): (usize, &Input),
        options: &SamplerOptions,
    ) -> anyhow::Result<Option<Arc<dyn Sampler>>> {
        let shape = input.subject.shape();
        let empty: OnEmpty = settings.empty.into();
        let mut parts: Vec<(f64, Box<dyn Sampler>)> = Vec::new();
        for (way, share) in settings.ways()? {
            let sampler = match (way, &input.labels, &input.weights) {
                (SamplerKind::Labels, Some(map), _) => {
                    let index = index(settings, n, &**map, options.threads)?;
                    let foreground = LabelWeights::foreground();
                    let weights = settings.label_weights.as_ref().unwrap_or(&foreground);
                    let built = Label::new(Arc::clone(map), &index, weights, options);
                    let absent: Vec<String> = match &built {
                        Ok(label) => label.absent().iter().map(ToString::to_string).collect(),
                        // There is no center with any of them.
                        Err(Error::NoCenter { .. }) => {
                            weights.classes().map(|class| class.to_string()).collect()
                        }
                        Err(_) => Vec::new(),
                    };
                    if !absent.is_empty() {
                        self.absent.push((input.subject.name().to_owned(), absent));
                    }
                    empty.apply(built, shape, options)?
                }
                (SamplerKind::Weights, _, Some(map)) => {
                    let own = settings.labels.len() + n;
                    let index = index(settings, own, &**map, options.threads)?;
                    let built = Weighted::new(Arc::clone(map), &index, options);
                    empty.apply(built, shape, options)?
                }
                _ => Some(Box::new(Uniform::with_border(
                    shape,
                    options.patch_size,
                    options.border,
                    options.seed,
                )?) as Box<dyn Sampler>),
            };
            let Some(sampler) = sampler else {
                return Ok(None);
            };
            parts.push((share, sampler));
        }
        if parts.len() == 1 {
            return Ok(parts.pop().map(|(_, sampler)| Arc::from(sampler)));
        }
        Ok(Some(Arc::new(Mixture::new(parts, options.seed)?)))
    }

    /// Returns the factory that gives each subject its sampler, by the subject's seed.
    pub(super) fn into_factory(self) -> impl SamplerFactory {
        let own = self.own;
        move |_: &Subject, seed| Ok(own.get(&seed).cloned().flatten())
    }
}

/// How many patches a list of places gives, all of which must be where the input can be read.
fn listed(settings: &SampleArgs, fixed: &FixedLocations, input: &Input) -> voxpatch::Result<u64> {
    let all = fixed.regions().len() as u64;
    let count = settings.samples_per_subject.unwrap_or(all);
    if count > all {
        return Err(Error::InvalidArgument {
            argument: "samples_per_subject",
            value: count.to_string(),
            problem: format!("the list has {all} locations"),
        });
    }
    let shape = input.subject.shape();
    let outside = fixed
        .regions()
        .iter()
        .find(|region| !region.is_inside(shape));
    match outside {
        Some(&region) if settings.border != BorderName::Pad => {
            Err(Error::OutOfBounds { region, shape })
        }
        _ => Ok(count),
    }
}

/// What a map holds: found now, or by an earlier run that kept it.
fn index<T: BlockStats>(
    settings: &SampleArgs,
    n: usize,
    map: &dyn Volume,
    threads: usize,
) -> voxpatch::Result<BlockIndex<T>> {
    let path = settings.index.get(n);
    settings
        .common
        .task("reading the map", Unit::Chunks)
        .run(|progress| match path {
            Some(path) => BlockIndex::load_or_build(path, map, 0, threads, progress),
            None => BlockIndex::build(map, 0, threads, progress),
        })
}
