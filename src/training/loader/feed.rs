//! The feed: opens subjects and draws the patches of the plan, some hundred at a time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::batch_buffer::BatchBuffer;
use super::carry::same_volumes;
use crate::error::{Error, Result};
use crate::region::Region;
use crate::sampler::Sampler;
use crate::training::augment::Augmentation;
use crate::training::cohort::SubjectSpec;
use crate::training::factory::{SamplerFactory, subject_seed};
use crate::training::plan::{Epoch, EpochPlan, MIXED_SUBJECTS, PlannedPatch, WindowOrder};
use crate::training::shard::{RankShard, WorkerShard};
use crate::training::spatial::Pose;
use crate::training::subject::{Image, Subject};
use crate::training::subjects::Subjects;

/// The number of subjects that stay open for later draws: more than a window mixes by default.
pub(super) const MAX_OPEN: usize = 2 * MIXED_SUBJECTS;

/// The number of patches that are drawn first, so that they do not wait for many subjects to be opened.
/// It doubles with each draw,
const FIRST_DRAWS: usize = 16;

/// up to this number. A shorter window is drawn at once, so that each of its subjects is opened once.
const MAX_DRAWS: usize = 512;

/// A drawn patch, or the reason why there is none.
pub(super) struct Drawn {
    pub(super) place: u64,
    /// The contiguous batch and the number of the patch in it, if batches are contiguous.
    pub(super) batch: Option<(Arc<BatchBuffer>, usize)>,
    /// The subject, and what the patch shows of it.
    pub(super) outcome: Result<(Arc<OpenSubject>, Pose), Failed>,
}

/// The reason why a planned patch cannot be read.
#[derive(Clone)]
pub(super) enum Failed {
    /// The sampler factory left the subject out.
    LeftOut {
        index: u64,
        name: String,
    },
    Error(Arc<Error>),
}

impl Failed {
    /// Wraps an error of one patch of a subject.
    pub(super) fn of(opened: &OpenSubject, error: Error) -> Self {
        failed(opened.index, opened.subject.name(), error)
    }
}

/// A subject with its sampler.
pub(super) struct OpenSubject {
    pub(super) index: u64,
    pub(super) subject: Arc<Subject>,
    /// `None` if the subject is left out.
    sampler: Option<Arc<dyn Sampler>>,
    /// The bytes read of each image at the last count.
    read: Vec<AtomicU64>,
}

impl OpenSubject {
    /// Checks that no file of the subject was modified since it was opened.
    fn unchanged(opened: Arc<Self>) -> Result<Arc<Self>, Failed> {
        let mut images = opened.subject.images().iter();
        match images.try_for_each(|image| image.volume.check_unchanged()) {
            Ok(()) => Ok(opened),
            Err(error) => Err(Failed::of(&opened, error)),
        }
    }

    /// Returns the bytes read of an image since the last call.
    pub(super) fn newly_read(&self, image: usize) -> u64 {
        let now = self.subject.images()[image].volume.read_stats().bytes;
        now.saturating_sub(self.read[image].fetch_max(now, Ordering::Relaxed))
    }
}

/// Options of a feed.
pub(super) struct FeedOptions {
    /// The places of the epoch to deliver, for all ranks together.
    pub(super) places: Range<u64>,
    pub(super) shard: RankShard,
    pub(super) worker: WorkerShard,
    /// Put the patches of each batch into one buffer.
    pub(super) contiguous: bool,
    /// Refuse subjects with other images than the first.
    pub(super) same_images: bool,
    pub(super) augment: Augmentation,
    /// The threads and bytes for the measuring of volumes that are normalized.
    pub(super) measuring: (usize, u64),
}

pub(super) struct Feed {
    subjects: Arc<dyn Subjects>,
    samplers: Arc<dyn SamplerFactory>,
    seed: u64,
    epoch: Epoch,
    options: FeedOptions,
    /// Steps of other workers before this worker's next one.
    others: u64,
    /// Places of this rank that are taken and not yet looked up.
    part: Range<u64>,
    /// The place at which the part begins, and its buffer, if batches are contiguous.
    batch: Option<(u64, Arc<BatchBuffer>)>,
    window: Option<WindowOrder>,
    window_length: u64,
    /// The number of patches to draw next.
    draws: usize,
    /// The subjects that were opened last, or the reasons why they could not be.
    open: VecDeque<(u64, Result<Arc<OpenSubject>, Failed>)>,
    /// The subjects of an earlier epoch whose chunks are held, and that this one has not opened yet,
    carried: HashMap<u64, Arc<Subject>>,
    /// and those that have other volumes now.
    changed: Vec<u64>,
    /// The images of the first subject.
    spec: Option<SubjectSpec>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("places", &self.options.places)
            .finish_non_exhaustive()
    }
}

impl Feed {
    pub(super) fn new(
        subjects: Arc<dyn Subjects>,
        samplers: Arc<dyn SamplerFactory>,
        plan: &EpochPlan,
        epoch: u64,
        options: FeedOptions,
        carried: HashMap<u64, Arc<Subject>>,
    ) -> Self {
        Self {
            carried,
            changed: Vec::new(),
            subjects,
            samplers,
            seed: plan.seed(),
            epoch: plan.epoch(epoch),
            others: options.worker.index,
            part: options.places.start..options.places.start,
            batch: None,
            window: None,
            window_length: plan.window(),
            draws: FIRST_DRAWS,
            open: VecDeque::new(),
            spec: None,
            options,
        }
    }

    /// Draws the next patches of this rank; none at the end of the epoch.
    pub(super) fn next(&mut self) -> Vec<Drawn> {
        let mut places = Vec::new();
        let mut planned = Vec::new();
        while planned.len() < self.draws
            && let Some(taken) = self.next_place()
        {
            // Places beyond the last are the first ones again.
            let place = taken % self.epoch.patches();
            planned.push(self.planned(place));
            places.push((place, self.batch_of(taken)));
            if (place + 1).is_multiple_of(self.window_length) {
                break;
            }
        }
        self.draws = MAX_DRAWS.min(2 * self.draws);
        let outcomes = self.draw_all(&planned);
        let drawn = |((place, batch), planned): ((u64, _), &PlannedPatch)| {
            let outcome = outcomes
                .get(planned)
                .cloned()
                .expect("every planned patch was drawn")
                .and_then(|(opened, region)| self.augmented(place, opened, region));
            Drawn {
                place,
                batch,
                outcome,
            }
        };
        places.into_iter().zip(&planned).map(drawn).collect()
    }

    /// Returns the patch at a place of the epoch.
    fn planned(&mut self, place: u64) -> PlannedPatch {
        let number = place / self.window_length;
        let held = self.window.take().filter(|held| held.window == number);
        let order = held.unwrap_or_else(|| self.epoch.window_order(number));
        let order = self.window.insert(order);
        self.epoch.patch(order, place % self.window_length)
    }

    /// Draws the changes of the patch at a place.
    fn augmented(
        &self,
        place: u64,
        opened: Arc<OpenSubject>,
        region: Region,
    ) -> Result<(Arc<OpenSubject>, Pose), Failed> {
        let key = [self.seed, self.epoch.number(), place];
        match self.options.augment.pose(key, region) {
            Ok(pose) => Ok((opened, pose)),
            Err(error) => Err(Failed::of(&opened, error)),
        }
    }

    /// Takes the subjects whose chunks may be held.
    pub(super) fn take_open(&mut self) -> HashMap<u64, Arc<Subject>> {
        let mut subjects = std::mem::take(&mut self.carried);
        let open = std::mem::take(&mut self.open).into_iter();
        let open = open.filter_map(|(index, opened)| Some((index, opened.ok()?)));
        subjects.extend(open.map(|(index, opened)| (index, Arc::clone(&opened.subject))));
        subjects
    }

    /// Takes the subjects whose chunks must be dropped: they were opened again and have other volumes.
    pub(super) fn take_changed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.changed)
    }

    /// Gives up all remaining patches and returns the place at which they end.
    pub(super) fn abandon(&mut self) -> u64 {
        let places = &mut self.options.places;
        places.start = places.end;
        self.part = places.clone();
        places.end
    }

    fn next_place(&mut self) -> Option<u64> {
        let shard = self.options.shard;
        while self.part.is_empty() {
            let places = &mut self.options.places;
            if places.is_empty() {
                return None;
            }
            let step = shard.step(places.start, places.end);
            places.start = step.end;
            if self.others > 0 {
                self.others -= 1;
                continue;
            }
            self.others = self.options.worker.count - 1;
            self.part = shard.part(&step);
            let count = self.part.end - self.part.start;
            self.batch = (self.options.contiguous && count > 0)
                .then(|| (self.part.start, Arc::new(BatchBuffer::new(count))));
        }
        self.part.next()
    }

    /// Returns the batch of a place that was just taken.
    fn batch_of(&self, place: u64) -> Option<(Arc<BatchBuffer>, usize)> {
        let (start, buffer) = self.batch.as_ref()?;
        let n = usize::try_from(place - start).expect("a batch is in memory");
        Some((Arc::clone(buffer), n))
    }

    /// Draws patches, subject by subject.
    fn draw_all(
        &mut self,
        planned: &[PlannedPatch],
    ) -> BTreeMap<PlannedPatch, Result<(Arc<OpenSubject>, Region), Failed>> {
        let mut sorted: Vec<PlannedPatch> = planned.to_vec();
        sorted.sort_unstable();
        let mut outcomes = BTreeMap::new();
        for run in sorted.chunk_by(|a, b| a.subject == b.subject) {
            let opened = self.opened(run[0].subject).and_then(OpenSubject::unchanged);
            let draws: Vec<u64> = run.iter().map(|planned| planned.draw).collect();
            match opened.and_then(|opened| self.draw(opened, &draws)) {
                Ok((opened, regions)) => {
                    let regions = regions
                        .into_iter()
                        .map(|region| Ok((Arc::clone(&opened), region)));
                    outcomes.extend(run.iter().copied().zip(regions));
                }
                Err(failed) => {
                    outcomes.extend(run.iter().map(|&planned| (planned, Err(failed.clone()))));
                }
            }
        }
        outcomes
    }

    fn draw(
        &self,
        opened: Arc<OpenSubject>,
        draws: &[u64],
    ) -> Result<(Arc<OpenSubject>, Vec<Region>), Failed> {
        let Some(sampler) = &opened.sampler else {
            let name = opened.subject.name().to_owned();
            return Err(Failed::LeftOut {
                index: opened.index,
                name,
            });
        };
        match sampler.draw_many(self.epoch.number(), draws) {
            Ok(regions) => Ok((opened, regions)),
            Err(error) => Err(Failed::of(&opened, error)),
        }
    }

    fn opened(&mut self, index: u64) -> Result<Arc<OpenSubject>, Failed> {
        if let Some((_, opened)) = self.open.iter().find(|(held, _)| *held == index) {
            return opened.clone();
        }
        let opened = self.open(index);
        self.open.push_back((index, opened.clone()));
        if self.open.len() > MAX_OPEN {
            self.open.pop_front();
        }
        opened
    }

    fn open(&mut self, index: u64) -> Result<Arc<OpenSubject>, Failed> {
        let subject = self
            .subjects
            .open(index)
            .map_err(|error| failed(index, &self.subjects.name(index), error))?;
        if let Some(carried) = self.carried.remove(&index)
            && !same_volumes(&carried, &subject)
        {
            self.changed.push(index);
        }
        self.check_spec(&subject)
            .map_err(|error| failed(index, subject.name(), error))?;
        if self.options.augment.interpolates() {
            subject
                .check_interpolation()
                .map_err(|error| failed(index, subject.name(), error))?;
        }
        let sampler = self
            .samplers
            .sampler(&subject, subject_seed(self.seed, index))
            .map_err(|error| failed(index, subject.name(), error))?;
        let (threads, memory) = self.options.measuring;
        let mut images = subject.images().iter();
        images
            .try_for_each(|image| image.measure(|| (threads, memory)).map(drop))
            .map_err(|error| failed(index, subject.name(), error))?;
        let read = |image: &Image| AtomicU64::new(image.volume.read_stats().bytes);
        Ok(Arc::new(OpenSubject {
            index,
            read: subject.images().iter().map(read).collect(),
            subject: Arc::new(subject),
            sampler,
        }))
    }

    /// Checks that the patches of a subject fit into one batch with those of the first.
    fn check_spec(&mut self, subject: &Subject) -> Result<()> {
        if !self.options.same_images {
            return Ok(());
        }
        let spec = SubjectSpec::of(subject);
        self.spec.get_or_insert_with(|| spec.clone()).check(&spec)
    }
}

fn failed(index: u64, name: &str, error: Error) -> Failed {
    let source = Arc::new(error);
    Failed::Error(Arc::new(Error::Subject {
        index,
        name: name.to_owned(),
        source,
    }))
}
