//! The feed: from a plan to places in opened subjects, a window at a time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::batch::Together;
use super::cohort::Kind;
use super::kept::{Kept, Room};
use super::plan::{Epoch, PlannedPatch};
use super::shard::{RankShard, WorkerShard};
use super::subject::{Image, Subject, Subjects};
use crate::error::{Error, Result};
use crate::region::Region;
use crate::sampler::{CounterRng, Sampler};
use crate::volume::{Chunk, ChunkShape};

/// Makes the sampler of a subject from the subject and a seed of its own; `None` leaves the
/// subject out.
pub type SamplerFactory = dyn Fn(&Subject, u64) -> Result<Option<Arc<dyn Sampler>>> + Send + Sync;

/// The seed that the sampler of a plan's subject gets: the plan's seed, and the subject's place
/// in the list, decide it.
#[must_use]
pub fn subject_seed(seed: u64, subject: u64) -> u64 {
    CounterRng::of_domain(*b"voxpatch seed v1", seed, subject, 0).number()
}

/// Subjects that are kept open although no patch of theirs is planned any more.
const KEPT_OPEN: usize = 16;

/// A place to read, or why there is none.
pub(super) struct Item {
    pub(super) place: u64,
    /// The batch that it goes to, if batches are put together, and which patch of it this is.
    pub(super) batch: Option<(Arc<Together>, usize)>,
    pub(super) found: Result<(Arc<Opened>, Region), Failed>,
}

/// Why a planned patch cannot be read.
#[derive(Clone)]
pub(super) enum Failed {
    /// The sampler's maker left the subject out.
    LeftOut {
        index: u64,
        name: String,
    },
    Error(Arc<Error>),
}

impl Failed {
    /// An error of one of a subject's patches.
    pub(super) fn of(opened: &Opened, error: Error) -> Self {
        failed(opened.index, opened.subject.name(), error)
    }
}

/// A subject with its sampler.
pub(super) struct Opened {
    pub(super) index: u64,
    pub(super) subject: Arc<Subject>,
    /// `None` if it is left out.
    sampler: Option<Arc<dyn Sampler>>,
    /// What had been read of each image when that was last asked.
    read: Vec<AtomicU64>,
    /// Its chunks, where they stay.
    pub(super) kept: Option<Kept>,
}

impl Opened {
    /// The subject, if all of its images are what they were when they were opened.
    fn unchanged(opened: Arc<Self>) -> Result<Arc<Self>, Failed> {
        let mut images = opened.subject.images().iter();
        match images.try_for_each(|image| image.volume.check_unchanged()) {
            Ok(()) => Ok(opened),
            Err(error) => Err(Failed::of(&opened, error)),
        }
    }

    /// A chunk that stayed.
    pub(super) fn kept_chunk(&self, image: usize, index: ChunkShape) -> Option<Arc<Chunk>> {
        self.kept.as_ref()?.get(image, index)
    }

    /// Bytes read of an image since this was last asked.
    pub(super) fn newly_read(&self, image: usize) -> u64 {
        let now = self.subject.images()[image].volume.read_stats().bytes;
        now.saturating_sub(self.read[image].fetch_max(now, Ordering::Relaxed))
    }
}

pub(super) struct Feed {
    pub(super) subjects: Arc<dyn Subjects>,
    pub(super) make: Arc<SamplerFactory>,
    pub(super) seed: u64,
    pub(super) epoch: Epoch,
    pub(super) shard: RankShard,
    worker: WorkerShard,
    /// Steps that others take before the next of ours.
    others: u64,
    /// Places of the epoch that no step has taken yet.
    pub(super) left: Range<u64>,
    /// Places of this rank that are taken and not yet looked up.
    part: Range<u64>,
    /// Where the part began and what its patches are put together in, if they are.
    batch: Option<(u64, Arc<Together>)>,
    gather: bool,
    window: Option<(u64, Vec<PlannedPatch>)>,
    window_length: u64,
    open: VecDeque<Arc<Opened>>,
    /// For chunks that stay.
    room: Arc<Room>,
    /// Whether all subjects have to be alike, and what the first was like.
    alike: bool,
    kind: Option<Kind>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Feed {
    pub(super) fn new(
        subjects: Arc<dyn Subjects>,
        make: Arc<SamplerFactory>,
        seed: u64,
        (epoch, window_length): (Epoch, u64),
        (shard, worker, gather): (RankShard, WorkerShard, bool),
        left: Range<u64>,
        room: Arc<Room>,
    ) -> Self {
        Self {
            subjects,
            make,
            seed,
            epoch,
            shard,
            worker,
            others: worker.index,
            part: left.start..left.start,
            left,
            batch: None,
            gather,
            window: None,
            window_length,
            open: VecDeque::new(),
            room,
            alike: false,
            kind: None,
        }
    }

    /// The same, with an error for subjects that are unlike the first.
    pub(super) fn alike(self, alike: bool) -> Self {
        Self { alike, ..self }
    }

    /// The next places of this rank, up to the end of a window; none at the end of the epoch.
    pub(super) fn next(&mut self) -> Vec<Item> {
        let mut places = Vec::new();
        let mut planned = Vec::new();
        while let Some(taken) = self.next_place() {
            // Places beyond the last are the first ones again.
            let place = taken % self.epoch.patches();
            let window = place / self.window_length;
            if self.window.as_ref().is_none_or(|(held, _)| *held != window) {
                self.window = Some((window, self.epoch.window(window)));
            }
            if let Some((_, held)) = &self.window {
                let at =
                    usize::try_from(place % self.window_length).expect("a window is in memory");
                planned.push(held[at]);
                places.push((place, self.batch_of(taken)));
            }
            if (place + 1).is_multiple_of(self.window_length) {
                break;
            }
        }
        let found = self.locate(&planned);
        let item = |((place, batch), planned): ((u64, _), &PlannedPatch)| {
            let found = found
                .get(planned)
                .cloned()
                .expect("every planned patch was looked for");
            Item {
                place,
                batch,
                found,
            }
        };
        places.into_iter().zip(&planned).map(item).collect()
    }

    /// Gives up all that is left.
    pub(super) fn abandon(&mut self) {
        self.left.start = self.left.end;
        self.part = self.left.clone();
    }

    fn next_place(&mut self) -> Option<u64> {
        while self.part.is_empty() {
            if self.left.is_empty() {
                return None;
            }
            let step = self.shard.step(self.left.start, self.left.end);
            self.left.start = step.end;
            if self.others > 0 {
                self.others -= 1;
                continue;
            }
            self.others = self.worker.count - 1;
            self.part = self.shard.part(&step);
            let count = self.part.end - self.part.start;
            self.batch = (self.gather && count > 0)
                .then(|| (self.part.start, Arc::new(Together::new(count))));
        }
        self.part.next()
    }

    /// The batch of a place that was just taken.
    fn batch_of(&self, place: u64) -> Option<(Arc<Together>, usize)> {
        let (start, together) = self.batch.as_ref()?;
        let n = usize::try_from(place - start).expect("a batch is in memory");
        Some((Arc::clone(together), n))
    }

    /// Draws all that a window wants, subject by subject.
    fn locate(
        &mut self,
        planned: &[PlannedPatch],
    ) -> BTreeMap<PlannedPatch, Result<(Arc<Opened>, Region), Failed>> {
        let mut wanted: Vec<PlannedPatch> = planned.to_vec();
        wanted.sort_unstable();
        let mut found = BTreeMap::new();
        for run in wanted.chunk_by(|a, b| a.subject == b.subject) {
            let opened = self.opened(run[0].subject).and_then(Opened::unchanged);
            let draws: Vec<u64> = run.iter().map(|planned| planned.draw).collect();
            let places = opened.and_then(|opened| self.draw(opened, &draws));
            match places {
                Ok((opened, regions)) => {
                    let places = regions
                        .into_iter()
                        .map(|region| Ok((Arc::clone(&opened), region)));
                    found.extend(run.iter().copied().zip(places));
                }
                Err(failed) => {
                    found.extend(run.iter().map(|&planned| (planned, Err(failed.clone()))));
                }
            }
        }
        found
    }

    fn draw(
        &self,
        opened: Arc<Opened>,
        draws: &[u64],
    ) -> Result<(Arc<Opened>, Vec<Region>), Failed> {
        let Some(sampler) = &opened.sampler else {
            let name = opened.subject.name().to_owned();
            return Err(Failed::LeftOut {
                index: opened.index,
                name,
            });
        };
        match sampler.draw_many(self.epoch.number(), draws) {
            Ok(regions) => Ok((opened, regions)),
            Err(error) => Err(failed(opened.index, opened.subject.name(), error)),
        }
    }

    fn opened(&mut self, index: u64) -> Result<Arc<Opened>, Failed> {
        if let Some(at) = self.open.iter().position(|opened| opened.index == index) {
            return Ok(Arc::clone(&self.open[at]));
        }
        let subject = self
            .subjects
            .open(index)
            .map_err(|error| failed(index, &self.subjects.name(index), error))?;
        self.check_kind(&subject)
            .map_err(|error| failed(index, subject.name(), error))?;
        let own_seed = subject_seed(self.seed, index);
        let sampler = (self.make)(&subject, own_seed)
            .map_err(|error| failed(index, subject.name(), error))?;
        let read = |image: &Image| AtomicU64::new(image.volume.read_stats().bytes);
        let opened = Arc::new(Opened {
            index,
            read: subject.images().iter().map(read).collect(),
            kept: Kept::all_of(&subject, self.subjects.len(), &self.room),
            subject: Arc::new(subject),
            sampler,
        });
        self.open.push_back(Arc::clone(&opened));
        if self.open.len() > KEPT_OPEN {
            self.open.pop_front();
        }
        Ok(opened)
    }

    /// Checks that a subject's patches fit into one batch with those of the first.
    fn check_kind(&mut self, subject: &Subject) -> Result<()> {
        if !self.alike {
            return Ok(());
        }
        let kind = Kind::of(subject);
        self.kind.get_or_insert_with(|| kind.clone()).check(&kind)
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
