//! Recipes of samplers: what Python's sampler objects say, made into samplers for each subject.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use voxpatch::progress::Progress;
use voxpatch::sampler::{
    BlockIndex, BlockStats, Border, Channels, Label, LabelValue, LabelWeights, Mixture, OnEmpty,
    Sampler, SamplerOptions, Uniform, Weighted,
};
use voxpatch::training::{Image, Subject};
use voxpatch::{Error, Result, Shape};

use crate::arguments;
use crate::errors::invalid;

/// Bytes of a map's blocks that each sampler keeps for the next draws. Draws come some hundred at a time, in the order of
/// the blocks, so more would hardly help.
const BLOCKS: u64 = 2 << 20;

/// How patches are drawn, of any subject.
#[derive(Clone, Debug)]
pub(crate) enum Recipe {
    Uniform(Common),
    Weighted(Common, Map),
    Label(Common, Map, Option<Vec<(LabelValue, f64)>>),
    Mixture(Vec<(f64, Self)>, Option<u64>),
}

/// What all samplers are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common {
    patch: Shape,
    border: Border,
}

/// The map that patches are drawn by.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    image: String,
    empty: OnEmpty,
}

/// The dictionary that a Python sampler's `_recipe()` gives.
impl<'py> FromPyObject<'_, 'py> for Recipe {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let given = given.cast::<PyDict>()?;
        let field = |name: &str| {
            given
                .get_item(name)?
                .ok_or_else(|| invalid(format!("a sampler without {name:?}")))
        };
        let kind: String = field("kind")?.extract()?;
        if kind == "mixture" {
            let parts: Vec<(f64, Self)> = field("samplers")?.extract()?;
            return Ok(Self::Mixture(parts, field("batch_size")?.extract()?));
        }
        let common = Common {
            patch: arguments::lengths("patch_size", &field("patch_size")?)?,
            border: border(&field("border")?.extract::<String>()?)?,
        };
        if kind == "uniform" {
            return Ok(Self::Uniform(common));
        }
        let image = if kind == "label" {
            "label_name"
        } else {
            "weight_name"
        };
        let map = Map {
            image: field(image)?.extract()?,
            empty: empty(&field("empty")?.extract::<String>()?)?,
        };
        match kind.as_str() {
            "weighted" => Ok(Self::Weighted(common, map)),
            "label" => {
                let shares = field("label_weights")?;
                let shares = if shares.is_none() {
                    None
                } else {
                    Some(classes(shares.cast::<PyDict>()?)?)
                };
                Ok(Self::Label(common, map, shares))
            }
            other => Err(invalid(format!("a sampler of kind {other:?}"))),
        }
    }
}

fn classes(shares: &Bound<'_, PyDict>) -> PyResult<Vec<(LabelValue, f64)>> {
    let one = |(label, share): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
        let class = match label.call_method0("__index__") {
            Ok(whole) => whole.extract::<i128>().ok().and_then(|whole| {
                let signed = i64::try_from(whole).map(LabelValue::from).ok();
                signed.or_else(|| u64::try_from(whole).map(LabelValue::from).ok())
            }),
            Err(_) => LabelValue::real(label.extract()?),
        };
        let class = class.ok_or_else(|| invalid(format!("{label} is no voxel's value")))?;
        Ok((class, share.extract()?))
    };
    shares.iter().map(one).collect()
}

fn border(name: &str) -> PyResult<Border> {
    let all = [
        ("drop", Border::Drop),
        ("shift", Border::Shift),
        ("pad", Border::Pad),
    ];
    arguments::chosen("border", name, &all)
}

fn empty(name: &str) -> PyResult<OnEmpty> {
    let all = [
        ("error", OnEmpty::Error),
        ("skip", OnEmpty::Skip),
        ("uniform", OnEmpty::Uniform),
    ];
    arguments::chosen("empty", name, &all)
}

/// At most this many indices are kept, so that a list of a million subjects does not fill the memory.
const MOST_INDICES: usize = 1024;

/// What maps hold, found once and kept for the next epochs; those that were built first go first.
#[derive(Debug, Default)]
pub(crate) struct Indices(Mutex<(HashMap<Key, Index>, VecDeque<Key>)>);

type Index = Arc<dyn Any + Send + Sync>;

/// The threads that build the index of a map, and what may stop them.
type Building<'a> = (usize, Progress<'a>);

/// A subject, known by its seed, its image and the channel, and whether it is a map of labels.
type Key = (u64, String, u64, bool);

impl Indices {
    fn get<T: BlockStats + Any + Send + Sync>(
        &self,
        key: Key,
        image: &Image,
        (threads, progress): Building<'_>,
    ) -> Result<Arc<BlockIndex<T>>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lock().0.get(&key).cloned();
        if let Some(index) = found.and_then(|found| found.downcast::<BlockIndex<T>>().ok()) {
            // The subject may have been opened anew since, with another map or a changed one.
            if index.check_belongs(&image.volume).is_ok() {
                return Ok(index);
            }
        }
        let built = BlockIndex::build(&*image.volume, key.2, threads, progress)?;
        let built = Arc::new(built);
        let mut kept = lock();
        let (indices, order) = &mut *kept;
        if indices
            .insert(key.clone(), Arc::clone(&built) as _)
            .is_none()
        {
            order.push_back(key);
        }
        if order.len() > MOST_INDICES
            && let Some(oldest) = order.pop_front()
        {
            indices.remove(&oldest);
        }
        Ok(built)
    }
}

impl Recipe {
    /// Returns the sampler of a subject, or `None` if nothing can be drawn from it and such subjects are skipped.
    pub(crate) fn sampler(
        &self,
        subject: &Subject,
        seed: u64,
        indices: &Indices,
        building: Building<'_>,
    ) -> Result<Option<Box<dyn Sampler>>> {
        let options = |common: &Common| {
            SamplerOptions::new(common.patch, seed)
                .with_border(common.border)
                .with_memory(BLOCKS)
                .with_threads(building.0)
        };
        let shape = subject.shape();
        match self {
            Self::Uniform(common) => Ok(Some(Box::new(Uniform::with_options(
                shape,
                &options(common),
            )?))),
            Self::Weighted(common, map) => {
                let image = map.of(subject)?;
                let key = (seed, map.image.clone(), image.channels.start, false);
                let index = indices.get(key, image, building)?;
                let options = options(common);
                let built = Weighted::new(Arc::clone(&image.volume), &index, &options);
                map.empty.apply(built, shape, &options)
            }
            Self::Label(common, map, shares) => {
                let image = map.of(subject)?;
                let options = options(common);
                if image.channel_count() > 1 {
                    let built =
                        one_hot(map, image, shares.as_deref(), indices, (&options, building));
                    return map.empty.apply(built, shape, &options);
                }
                let key = (seed, map.image.clone(), image.channels.start, true);
                let index = indices.get(key, image, building)?;
                let shares = match shares {
                    Some(shares) => LabelWeights::new(shares.iter().copied())?,
                    None => LabelWeights::foreground(),
                };
                let built = Label::new(Arc::clone(&image.volume), &index, &shares, &options);
                map.empty.apply(built, shape, &options)
            }
            Self::Mixture(parts, batch) => {
                let mut samplers = Vec::with_capacity(parts.len());
                for (share, part) in parts {
                    let Some(sampler) = part.sampler(subject, seed, indices, building)? else {
                        return Ok(None);
                    };
                    samplers.push((*share, sampler));
                }
                Ok(Some(Box::new(match batch {
                    Some(batch) => Mixture::exact(samplers, *batch, seed)?,
                    None => Mixture::new(samplers, seed)?,
                })))
            }
        }
    }
}

/// Draws by a map with a channel for each label, labels counted from the first channel.
fn one_hot(
    map: &Map,
    image: &Image,
    shares: Option<&[(LabelValue, f64)]>,
    indices: &Indices,
    (options, building): (&SamplerOptions, Building<'_>),
) -> Result<Channels> {
    let shares: Vec<(u64, f64)> = match shares {
        // All but the background, which is the first.
        None => (image.channels.start + 1..image.channels.end)
            .map(|channel| (channel, 1.0))
            .collect(),
        Some(shares) => {
            let channel = |label: LabelValue| {
                image
                    .channels
                    .clone()
                    .find(|channel| LabelValue::from(channel - image.channels.start) == label)
            };
            let found = shares.iter().map(|&(label, share)| match channel(label) {
                Some(channel) => Ok((channel, share)),
                None => Err(Error::InvalidArgument {
                    argument: "weight of label",
                    value: label.to_string(),
                    problem: format!("{} has no such channel", map.image),
                }),
            });
            found.collect::<Result<_>>()?
        }
    };
    let mut held = Vec::with_capacity(shares.len());
    for &(channel, share) in &shares {
        let key = (options.seed, map.image.clone(), channel, false);
        held.push((share, indices.get(key, image, building)?));
    }
    let shares: Vec<_> = held
        .iter()
        .map(|(share, index)| (*share, &**index))
        .collect();
    Channels::new(&image.volume, &shares, options)
}

impl Map {
    fn of<'a>(&self, subject: &'a Subject) -> Result<&'a Image> {
        subject
            .image(&self.image)
            .ok_or_else(|| Error::InvalidArgument {
                argument: "map",
                value: format!("{:?}", self.image),
                problem: format!(
                    "the subject has {}",
                    subject
                        .images()
                        .iter()
                        .map(|image| image.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            })
    }
}
