use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::*;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::pad::Padding;
use crate::patch::Patch;
use crate::region::{Region, Shape};
use crate::sampler::{Sampler, Uniform};
use crate::volume::{
    Chunk, ChunkShape, Layout, MemoryVolume, RealValues, Rescale, Volume, VolumeExt, intersecting,
};

mod augmented;
mod carry;
mod channels;
mod gathered;
mod hard;
mod life;
mod mapped;
mod ranks;
mod repeat;
mod reuse;
mod warped;
mod workers;

const SHAPE: Shape = [40, 36, 44];
const PATCH: Shape = [12, 10, 14];

/// What a test's volume does when it is read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Plain,
    /// Takes a while, differently each time.
    Slow,
    /// Fails at one chunk.
    FailsAt(ChunkShape),
    PanicsAt(ChunkShape),
}

/// A volume in memory that notes which chunks are read.
#[derive(Debug)]
struct Noted {
    inner: MemoryVolume,
    layout: Layout,
    manner: Manner,
    chunks: Mutex<Vec<ChunkShape>>,
    /// Chunks that were announced, and how many had been read by then.
    expected: Mutex<Vec<(ChunkShape, usize)>>,
    reads: AtomicUsize,
}

impl Noted {
    fn new(salt: u32, chunk: Option<ChunkShape>, manner: Manner) -> Arc<Self> {
        let count = u32::try_from(Region::whole(SHAPE).voxels()).unwrap();
        let voxels = (0..count)
            .map(|n| n.wrapping_mul(2_654_435_761).wrapping_add(salt))
            .collect::<Vec<u32>>();
        let inner = MemoryVolume::from_vec(SHAPE, 1, voxels).unwrap();
        let layout = Layout {
            read_chunk: chunk,
            ..Volume::layout(&inner).clone()
        };
        Arc::new(Self {
            inner,
            layout,
            manner,
            chunks: Mutex::default(),
            expected: Mutex::default(),
            reads: AtomicUsize::new(0),
        })
    }

    fn chunked(salt: u32) -> Arc<Self> {
        Self::new(salt, Some([1, 8, 8, 8]), Manner::Plain)
    }
}

impl Volume for Noted {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&self.inner)
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        let n = self.reads.fetch_add(1, Ordering::SeqCst);
        if self.manner == Manner::Slow {
            thread::sleep(Duration::from_micros((n as u64 * 7_919) % 400));
        }
        self.inner.read_channels(channels, region, out)
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        self.chunks.lock().unwrap().push(index);
        match self.manner {
            Manner::FailsAt(at) if at == index => return Err(Error::Interrupted),
            Manner::PanicsAt(at) if at == index => panic!("the disk is gone"),
            _ => {}
        }
        let chunk = self.layout.read_chunk.unwrap();
        let whole = crate::region::chunk_region(
            [index[1], index[2], index[3]],
            [chunk[1], chunk[2], chunk[3]],
        );
        let inside = whole.intersection(&Region::whole(SHAPE)).unwrap();
        let mut patch = Patch::zeros(inside, 1, DType::U32)?;
        self.read_channels(0..1, inside, patch.bytes_mut())?;
        Ok(Chunk {
            channels: 0..1,
            region: inside,
            voxels: crate::volume::ChunkVoxels::Stored(patch.bytes().to_vec()),
        })
    }

    fn prefetch(&self, index: ChunkShape) {
        let read = self.chunks.lock().unwrap().len();
        self.expected.lock().unwrap().push((index, read));
    }
}

fn uniform() -> Arc<dyn SamplerFactory> {
    Arc::new(|subject: &Subject, seed| Uniform::new(subject.shape(), PATCH, seed))
}

fn subject(name: &str, volumes: &[&Arc<Noted>]) -> Subject {
    let image = |(n, volume): (usize, &&Arc<Noted>)| {
        Image::new(format!("image{n}"), Arc::clone(volume) as _)
    };
    Subject::builder(name)
        .with_images(volumes.iter().enumerate().map(image))
        .build()
        .unwrap()
}

fn three(manner: Manner) -> Vec<Subject> {
    let volume = |salt, chunk| Noted::new(salt, chunk, manner);
    vec![
        subject(
            "a",
            &[
                &volume(1, Some([1, 8, 8, 8])),
                &volume(2, Some([1, 16, 5, 44])),
            ],
        ),
        subject("b", &[&volume(3, None), &volume(4, Some([1, 40, 36, 44]))]),
        subject("c", &[&volume(5, Some([1, 7, 9, 11])), &volume(6, None)]),
    ]
}

fn options(threads: usize) -> LoaderOptions {
    LoaderOptions {
        threads,
        max_length: 8,
        ..LoaderOptions::default()
    }
}

fn loader(subjects: Vec<Subject>, plan: &EpochPlan, options: &LoaderOptions) -> Loader {
    Loader::new(Arc::new(subjects), uniform(), plan, 3, options).unwrap()
}

/// Place, subject, region and voxels of each sample.
type Told = (u64, u64, Region, Vec<Vec<u8>>);

fn told(sample: &Sample) -> Told {
    let voxels = sample
        .patches()
        .iter()
        .map(|patch| patch.bytes().to_vec())
        .collect();
    (sample.place, sample.subject_index, sample.region, voxels)
}

fn all(loader: impl Iterator<Item = Result<Sample>>) -> Vec<Told> {
    loader.map(|sample| told(&sample.unwrap())).collect()
}

#[test]
fn samples_are_what_the_volumes_hold_in_the_plan_s_order() {
    let subjects = three(Manner::Plain);
    let plan = EpochPlan::new(3, 9, 5).unwrap().with_window(7);
    let epoch = plan.epoch(3);
    let planned: Vec<PlannedPatch> = (0..epoch.windows()).flat_map(|n| epoch.window(n)).collect();
    let samples: Vec<Sample> = loader(subjects.clone(), &plan, &options(2))
        .map(Result::unwrap)
        .collect();
    assert_eq!(samples.len(), 27);
    for ((place, planned), sample) in (0..).zip(&planned).zip(&samples) {
        assert_eq!(
            (sample.place, sample.subject_index),
            (place, planned.subject)
        );
        for (image, patch) in sample.subject().images().iter().zip(sample.patches()) {
            assert_eq!(*patch, image.volume.read(sample.region).unwrap());
        }
    }
    let places: BTreeSet<_> = samples
        .iter()
        .map(|s| (s.subject_index, s.region.start))
        .collect();
    assert!(places.len() > 24, "each subject has draws of its own");
}

#[test]
fn the_sequence_is_the_same_for_any_threads_buffer_and_speed() {
    let plan = EpochPlan::new(3, 9, 5).unwrap().with_window(7);
    let expected = all(loader(three(Manner::Plain), &plan, &options(0)));
    for threads in [0, 1, 2, 8] {
        for (max_length, memory) in [
            (1, 1 << 30),
            (3, 1 << 30),
            (50, 1 << 30),
            (50, 0),
            (50, 60_000),
        ] {
            let options = LoaderOptions {
                threads,
                max_length,
                memory,
                ..options(threads)
            };
            assert_eq!(all(loader(three(Manner::Slow), &plan, &options)), expected);
        }
    }
    let slow_consumer = loader(three(Manner::Plain), &plan, &options(3))
        .inspect(|_| thread::sleep(Duration::from_millis(1)));
    assert_eq!(all(slow_consumer), expected);
}

#[test]
fn a_buffer_reads_each_chunk_once_for_all_its_patches() {
    for threads in [0, 1, 4] {
        let (ct, label) = (Noted::chunked(1), Noted::chunked(2));
        let plan = EpochPlan::new(1, 30, 1).unwrap();
        let options = LoaderOptions {
            threads,
            max_length: 30,
            ..LoaderOptions::default()
        };
        let mut loader = loader(vec![subject("a", &[&ct, &label])], &plan, &options);
        let mut wanted = BTreeSet::new();
        let mut copies = 0;
        for sample in &mut loader {
            let all: Vec<_> = intersecting([1, 8, 8, 8], &(0..1), sample.unwrap().region).collect();
            copies += all.len() as u64;
            wanted.extend(all);
        }
        for volume in [&ct, &label] {
            let read = volume.chunks.lock().unwrap();
            assert_eq!(read.len(), wanted.len(), "each once");
            assert_eq!(read.iter().copied().collect::<BTreeSet<_>>(), wanted);
        }
        let stats = loader.stats();
        assert_eq!(
            (stats.chunks, stats.copies),
            (2 * wanted.len() as u64, 2 * copies)
        );
    }
}

/// The regions of an epoch and how many chunks were decoded for it.
fn decoded(ct: &Arc<Noted>, plan: &EpochPlan, options: &LoaderOptions) -> (Vec<Region>, usize) {
    ct.chunks.lock().unwrap().clear();
    let subjects = vec![subject("a", &[ct])];
    let regions = loader(subjects, plan, options).map(|sample| sample.unwrap().region);
    let regions = regions.collect();
    let chunks = ct.chunks.lock().unwrap().len();
    (regions, chunks)
}

#[test]
fn a_small_buffer_decodes_less_than_a_window_of_patches_would() {
    let plan = EpochPlan::new(1, 200, 1).unwrap();
    let ct = Noted::chunked(1);
    let bytes = subject("a", &[&ct]).sample_bytes(PATCH);
    for patches in [8, 12, 20, 40] {
        let options = |threads| LoaderOptions {
            threads,
            max_length: 1000,
            memory: bytes * patches,
            table_bytes: 0,
            ..LoaderOptions::default()
        };
        let (regions, chunks) = decoded(&ct, &plan, &options(0));
        for threads in [1, 2, 4] {
            let slow = Noted::new(1, Some([1, 8, 8, 8]), Manner::Slow);
            let (same, others) = decoded(&slow, &plan, &options(threads));
            assert_eq!(same, regions);
            // Decodes in progress take more of the budget.
            assert!(others <= chunks * 6 / 5, "{threads}: {others} {chunks}");
            let again = decoded(&ct, &plan, &options(threads)).1;
            // Decisions do not depend on timing, but a chunk that is evicted during its decode may still
            // be found by the next patch.
            assert!(others.abs_diff(again) * 50 <= chunks, "{others} {again}");
        }
        // A patch that comes to the front decodes what it still lacks, for all patches that the budget holds.
        let mut of_windows = 0;
        let mut has: Vec<BTreeSet<ChunkShape>> = vec![BTreeSet::new(); regions.len()];
        let needed = |n: usize| intersecting([1, 8, 8, 8], &(0..1), regions[n]);
        for n in 0..regions.len() {
            for chunk in needed(n) {
                if has[n].contains(&chunk) {
                    continue;
                }
                of_windows += 1;
                for later in (n..regions.len()).take(usize::try_from(patches).unwrap()) {
                    if needed(later).any(|needed| needed == chunk) {
                        has[later].insert(chunk);
                    }
                }
            }
        }
        assert!(chunks < of_windows, "{patches}: {chunks} {of_windows}");
    }
}

#[test]
fn chunks_are_announced_before_they_are_read_and_no_others() {
    for threads in [0, 4] {
        let ct = Noted::chunked(1);
        let plan = EpochPlan::new(1, 60, 1).unwrap();
        let options = LoaderOptions {
            threads,
            max_length: 30,
            ..LoaderOptions::default()
        };
        drop(all(loader(vec![subject("a", &[&ct])], &plan, &options)));
        let (read, expected) = (ct.chunks.lock().unwrap(), ct.expected.lock().unwrap());
        let first = |index: &ChunkShape| read.iter().position(|read| read == index).unwrap();
        let early = |(index, by): &&(ChunkShape, usize)| first(index) >= *by;
        let in_time = expected.iter().filter(early).count();
        if threads == 0 {
            assert_eq!(in_time, expected.len());
        }
        assert!(
            in_time * 2 > read.len(),
            "{in_time} of {} chunks",
            read.len()
        );
        let distinct: BTreeSet<_> = expected.iter().map(|(index, _)| index).collect();
        assert_eq!(distinct.len(), expected.len(), "each once");
    }
}

#[test]
fn chunks_of_remote_volumes_are_announced_long_before_they_are_read() {
    for memory in [1 << 20, 300 << 10, 150 << 10] {
        let mut ct = Arc::into_inner(Noted::chunked(1)).unwrap();
        ct.layout.remote = true;
        let ct = Arc::new(ct);
        let plan = EpochPlan::new(1, 300, 1).unwrap();
        let options = LoaderOptions {
            threads: 0,
            max_length: 30,
            memory,
            ..LoaderOptions::default()
        };
        drop(all(loader(vec![subject("a", &[&ct])], &plan, &options)));
        let (read, expected) = (ct.chunks.lock().unwrap(), ct.expected.lock().unwrap());
        let mut announced: BTreeMap<ChunkShape, VecDeque<usize>> = BTreeMap::new();
        for (index, by) in expected.iter() {
            announced.entry(*index).or_default().push_back(*by);
        }
        let (mut late, mut ahead) = (0, Vec::new());
        for (n, index) in read.iter().enumerate() {
            // The reads between its announcement and its own.
            match announced.get_mut(index).and_then(VecDeque::pop_front) {
                Some(by) if by <= n => ahead.push(n - by),
                _ => late += 1,
            }
        }
        ahead.sort_unstable();
        let (all, median) = (read.len(), ahead[ahead.len() / 2]);
        println!(
            "{memory} bytes: {late} of {all} reads were not announced, the others {median} reads before"
        );
        assert!(late * 50 <= all, "{memory}: {late} of {all}");
        assert!(
            expected.len() <= all,
            "{memory}: {} of {all}",
            expected.len()
        );
    }
}

#[test]
fn where_all_chunks_fit_each_is_decoded_once_an_epoch() {
    let chunks = |volume: &Noted| {
        let [c, shape @ ..] = [1, 8, 8, 8];
        let counts = (0..3).map(|a| volume.layout.shape[a].div_ceil(shape[a]));
        counts.product::<u64>() * volume.layout.channels.div_ceil(c)
    };
    for threads in [0, 4] {
        let (ct, label) = (Noted::chunked(1), Noted::chunked(2));
        let size = |volume: &Noted| chunks(volume) * 512 * volume.layout.dtype.size() as u64;
        let (patch, all) = (
            subject("a", &[&ct, &label]).sample_bytes(PATCH),
            size(&ct) + size(&label),
        );
        let plan = EpochPlan::new(1, 200, 1).unwrap();
        for (memory, stay) in [(all * 2, true), (all / 2, false)] {
            ct.chunks.lock().unwrap().clear();
            let options = LoaderOptions {
                threads,
                max_length: 1000,
                memory,
                ..LoaderOptions::default()
            };
            let mut loader = loader(vec![subject("a", &[&ct, &label])], &plan, &options);
            let mut most = 0;
            while let Some(sample) = loader.next() {
                drop(sample.unwrap());
                let (complete, begun) = loader.stats().fill;
                most = most.max(complete + begun);
            }
            let limit = (memory / 2 / patch).max(1);
            assert!(most as u64 <= limit, "{most} patches");
            let read = ct.chunks.lock().unwrap();
            let distinct: BTreeSet<_> = read.iter().collect();
            assert_eq!(read.len() == distinct.len(), stay, "{threads} threads");
        }
    }
}

#[test]
fn an_epoch_resumes_at_every_patch_with_any_threads() {
    let plan = EpochPlan::new(3, 4, 9).unwrap().with_window(5);
    let expected = all(loader(three(Manner::Plain), &plan, &options(1)));
    for k in 0..expected.len() {
        let mut first = loader(three(Manner::Plain), &plan, &options(k % 3));
        assert_eq!(first.remaining(), 12);
        let head = all((&mut first).take(k));
        let state = first.state();
        assert_eq!(
            (state.position, first.remaining()),
            (k as u64, 12 - k as u64)
        );
        drop(first);
        let subjects = Arc::new(three(Manner::Plain));
        let rest =
            Loader::resume(subjects, uniform(), &plan, state, &options((k + 1) % 3)).unwrap();
        assert_eq!([head, all(rest)].concat(), expected);
    }
    let state = LoaderState {
        epoch: 3,
        position: 4,
        plan: plan.fingerprint(),
        subjects: three(Manner::Plain).fingerprint(),
    };
    let other = EpochPlan::new(3, 4, 10).unwrap().with_window(5);
    let subjects = Arc::new(three(Manner::Plain));
    let refused = Loader::resume(subjects, uniform(), &other, state, &options(1));
    assert!(matches!(refused, Err(Error::StateMismatch { .. })));
}

#[test]
fn ranks_together_yield_the_epoch_and_may_change_in_number() {
    let plan = EpochPlan::new(3, 7, 2).unwrap().with_window(6);
    let mut expected = all(loader(three(Manner::Plain), &plan, &options(1)));
    expected.sort_unstable_by_key(|told| told.0);
    let batches = |state: LoaderState, shard: RankShard, most: usize| {
        let options = LoaderOptions {
            shard,
            ..options(1)
        };
        let mut own = Loader::resume(
            Arc::new(three(Manner::Plain)),
            uniform(),
            &plan,
            state,
            &options,
        )
        .unwrap();
        let mut batches = Vec::new();
        while batches.len() < most
            && let Some(batch) = own.next_batch()
        {
            batches.push(batch.unwrap().iter().map(told).collect::<Vec<_>>());
        }
        (batches, own.state())
    };
    let start = LoaderState {
        epoch: 3,
        position: 0,
        plan: plan.fingerprint(),
        subjects: three(Manner::Plain).fingerprint(),
    };
    for world_size in [1, 2, 3, 5, 8] {
        for batch in [1, 2, 3] {
            let shard = |rank| RankShard::of(rank, world_size, batch).with_uneven(Uneven::Exact);
            let ranks: Vec<_> = (0..world_size)
                .map(|rank| batches(start, shard(rank), usize::MAX).0)
                .collect();
            assert!(
                ranks.iter().all(|own| own.len() == ranks[0].len()),
                "equally many batches"
            );
            let mut union = ranks.concat().concat();
            union.sort_unstable_by_key(|told| told.0);
            assert_eq!(union, expected);
        }
    }
    // Two batches on four ranks, the rest on two or six.
    let shard = |rank, world_size| RankShard::of(rank, world_size, 2).with_uneven(Uneven::Exact);
    let head: Vec<_> = (0..4)
        .map(|rank| batches(start, shard(rank, 4), 2))
        .collect();
    assert!(head.iter().all(|(_, state)| *state == head[0].1));
    for world_size in [2, 5, 6] {
        let rest =
            (0..world_size).map(|rank| batches(head[0].1, shard(rank, world_size), usize::MAX).0);
        let mut union: Vec<Told> = head
            .iter()
            .map(|(own, _)| own.clone())
            .chain(rest)
            .flatten()
            .flatten()
            .collect();
        union.sort_unstable_by_key(|told| told.0);
        assert_eq!(union, expected);
    }
}

#[test]
fn a_chunk_that_cannot_be_read_spoils_only_the_patches_that_want_it() {
    let bad = [0, 2, 2, 2];
    for manner in [Manner::FailsAt(bad), Manner::PanicsAt(bad)] {
        for threads in [0, 3] {
            let volume = || Noted::new(1, Some([1, 8, 8, 8]), manner);
            let subjects = || {
                vec![
                    subject("good", &[&Noted::chunked(1)]),
                    subject("bad", &[&volume()]),
                ]
            };
            let plan = EpochPlan::new(2, 40, 3)
                .unwrap()
                .with_shuffle(false, true)
                .with_window(20);
            let outcomes: Vec<Result<Told>> = loader(subjects(), &plan, &options(threads))
                .map(|s| s.map(|s| told(&s)))
                .collect();
            assert_eq!(outcomes.len(), 80);
            let failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
            let failed: Vec<&Error> = failed.collect();
            assert!(!failed.is_empty() && failed.len() < 40, "{}", failed.len());
            for error in failed {
                let Error::Subject { index: 1, name, .. } = unshared(error) else {
                    panic!("{error}")
                };
                assert_eq!(name, "bad");
            }
            let options = LoaderOptions {
                on_error: OnError::Skip,
                ..options(threads)
            };
            let mut skipping = loader(subjects(), &plan, &options);
            let rest: Vec<Told> = (&mut skipping)
                .map(|sample| told(&sample.unwrap()))
                .collect();
            assert_eq!(
                rest,
                outcomes
                    .into_iter()
                    .filter_map(Result::ok)
                    .collect::<Vec<_>>()
            );
            let stats = skipping.stats();
            assert_eq!(
                (stats.delivered + stats.left_out, stats.reasons.len()),
                (80, 1),
                "{stats:?}"
            );
            assert!(
                stats.reasons[0].contains("subject 1 (bad) failed: "),
                "{stats:?}"
            );
        }
    }
}

fn unshared(error: &Error) -> &Error {
    if let Error::Shared(inner) = error {
        unshared(inner)
    } else {
        error
    }
}

#[test]
fn code_that_panics_and_subjects_that_do_not_open_are_errors() {
    let plan = EpochPlan::new(3, 2, 3)
        .unwrap()
        .with_shuffle(false, false)
        .with_window(1);
    let open = |index| {
        if index == 1 {
            Err(Error::Interrupted)
        } else {
            Ok(subject("fine", &[&Noted::chunked(1)]))
        }
    };
    for threads in [0, 2] {
        let lazy = Arc::new(LazySubjects::new(3, open));
        let outcomes = Loader::new(lazy, uniform(), &plan, 0, &options(threads))
            .unwrap()
            .map(|sample| sample.is_ok());
        assert_eq!(
            outcomes.collect::<Vec<_>>(),
            [true, true, false, false, true, true]
        );

        let transform: Arc<Transform> = Arc::new(|sample: &mut Sample| {
            assert!(sample.place != 4, "no augmentation today");
            sample.patches_mut()[0].as_mut_slice::<u32>()?.fill(7);
            Ok(())
        });
        let options = LoaderOptions {
            transform: Some(transform),
            ..options(threads)
        };
        let ct = Noted::chunked(1);
        let outcomes: Vec<_> = loader(vec![subject("a", &[&ct]); 3], &plan, &options).collect();
        for (place, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(sample) => assert!(
                    sample.patches()[0]
                        .as_slice::<u32>()
                        .unwrap()
                        .iter()
                        .all(|&v| v == 7)
                ),
                Err(error) => {
                    assert_eq!(place, 4);
                    let source = std::error::Error::source(unshared(error))
                        .unwrap()
                        .to_string();
                    assert_eq!(source, "a worker panicked: no augmentation today");
                }
            }
        }

        let broken: Arc<dyn SamplerFactory> =
            Arc::new(|_: &Subject, _| -> Result<Uniform> { panic!("no sampler") });
        let subjects = Arc::new(vec![subject("a", &[&ct]); 3]);
        let outcomes: Vec<_> = Loader::new(subjects, broken, &plan, 0, &options)
            .unwrap()
            .collect();
        assert!(outcomes.len() == 1 && outcomes[0].is_err());

        let leaves_out: Arc<dyn SamplerFactory> = Arc::new(|_: &Subject, _| Ok(None::<Uniform>));
        let subjects = Arc::new(vec![subject("empty", &[&ct]); 3]);
        let mut nothing = Loader::new(subjects, leaves_out, &plan, 0, &options).unwrap();
        assert!(nothing.next().is_none());
        assert_eq!(
            (nothing.stats().left_out, nothing.stats().reasons.len()),
            (6, 3)
        );
    }
}

#[test]
fn the_buffer_never_holds_more_than_it_may() {
    let plan = EpochPlan::new(3, 40, 1).unwrap().with_window(50);
    let options = LoaderOptions {
        threads: 3,
        max_length: 6,
        ..LoaderOptions::default()
    };
    let mut loader = loader(three(Manner::Slow), &plan, &options);
    while let Some(sample) = loader.next() {
        sample.unwrap();
        let (ready, unready) = loader.stats().fill;
        assert!(ready + unready <= 6);
    }
    let bytes = 2 * 4 * Region::whole(PATCH).voxels();
    let options = LoaderOptions {
        max_length: 100,
        memory: 4 * bytes,
        ..options
    };
    let mut small = self::loader(three(Manner::Slow), &plan, &options);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(
        small.stats().fill,
        (2, 0),
        "it fills half of the budget with patches while nobody asks, and stops there"
    );
    assert!(small.next().is_some());
}

#[test]
fn dropping_at_any_moment_joins_the_threads_and_frees_the_volumes() {
    for k in 0..60 {
        let ct = Noted::new(
            1,
            Some([1, 8, 8, 8]),
            if k % 2 == 0 {
                Manner::Plain
            } else {
                Manner::Slow
            },
        );
        let plan = EpochPlan::new(1, 50, k).unwrap();
        let threads = usize::try_from(k % 5).unwrap();
        let options = LoaderOptions {
            max_length: 1 + threads * 7,
            ..options(threads)
        };
        let mut loader = loader(vec![subject("a", &[&ct])], &plan, &options);
        let kept: Vec<_> = (&mut loader)
            .take(usize::try_from(k).unwrap() % 9)
            .collect();
        drop(loader);
        drop(kept);
        assert_eq!(Arc::strong_count(&ct), 1);
    }
}

#[test]
fn samples_own_their_memory_and_give_it_back() {
    let ct = Noted::chunked(1);
    let plan = EpochPlan::new(1, 20, 1).unwrap().with_shuffle(false, false);
    let mut loader = loader(vec![subject("a", &[&ct])], &plan, &options(1));
    let mut first = loader.next().unwrap().unwrap();
    let region = first.region;
    first.patches_mut()[0]
        .as_mut_slice::<u32>()
        .unwrap()
        .fill(0);
    assert_ne!(ct.read(region).unwrap(), first.patches()[0]);
    drop(first);
    for sample in loader {
        let sample = sample.unwrap();
        assert_eq!(
            ct.read(sample.region).unwrap(),
            sample.patches()[0],
            "a used buffer is filled anew"
        );
    }
}

/// Images of one volume, padded and converted in different ways.
fn padded_and_converted() -> Vec<Image> {
    let voxels = (0..420_i16).collect::<Vec<i16>>();
    let memory = MemoryVolume::from_vec([6, 5, 7], 2, voxels).unwrap();
    let mut layout = Volume::layout(&memory).clone();
    layout.rescale = Rescale::new(0.5, -1.0);
    let scaled: Arc<dyn Volume> = Arc::new(Scaled(memory.with_chunks([1, 4, 4, 4]), layout));
    let real = RealValues::of(Arc::clone(&scaled));
    let image = |name: &str, volume: &Arc<dyn Volume>, padding| {
        Image::new(name, Arc::clone(volume)).with_padding(padding)
    };
    vec![
        image("stored", &scaled, Padding::Constant(-9.0)),
        image("real", &real, Padding::Constant(-1.25)),
        image("wide", &scaled, Padding::Reflect).with_dtype(DType::F64),
        image("half", &scaled, Padding::Constant(-0.5)).with_dtype(DType::F32),
    ]
}

#[test]
fn patches_that_hang_over_are_padded_and_values_are_converted() {
    let images = padded_and_converted();
    let stored = &images[0].volume;
    let shape = stored.layout().shape;
    let whole = stored.read(Region::whole(shape)).unwrap();
    let whole = whole.to_array::<i16>().unwrap();
    let subject = Subject::builder("s").with_images(images).build().unwrap();
    let regions = [
        Region::new([-2, -1, -3], [4, 4, 4]),
        Region::new([4, 3, 5], [4, 4, 4]),
        Region::new([-20, 0, 0], [4, 4, 4]),
        Region::new([1, 1, 1], [4, 4, 4]),
    ];
    let make: Arc<dyn SamplerFactory> = Arc::new(move |_: &Subject, _| Ok(At(regions.to_vec())));
    let plan = EpochPlan::new(1, 4, 0).unwrap().with_shuffle(false, false);
    let samples = Loader::new(Arc::new(vec![subject]), make, &plan, 0, &options(2)).unwrap();
    for (sample, region) in samples.zip(regions) {
        let sample = sample.unwrap();
        assert_eq!(sample.region, region);
        let at = |padding: Padding, c: usize, p: [usize; 3]| -> f64 {
            let mut index = [0; 3];
            for a in 0..3 {
                let n = region.start[a] + i64::try_from(p[a]).unwrap();
                let last = i64::try_from(shape[a]).unwrap() - 1;
                let n = match padding {
                    Padding::Constant(value) if !(0..=last).contains(&n) => return value,
                    Padding::Reflect => {
                        let there = n.rem_euclid(2 * last);
                        there.min(2 * last - there)
                    }
                    _ => n.clamp(0, last),
                };
                index[a] = usize::try_from(n).unwrap();
            }
            f64::from(whole[[c, index[0], index[1], index[2]]])
        };
        for ((c, z, y, x), &value) in sample
            .patch("stored")
            .unwrap()
            .view::<i16>()
            .unwrap()
            .indexed_iter()
        {
            assert_eq!(f64::from(value), at(Padding::Constant(-9.0), c, [z, y, x]));
        }
        for ((c, z, y, x), &value) in sample
            .patch("real")
            .unwrap()
            .view::<f32>()
            .unwrap()
            .indexed_iter()
        {
            assert!(
                (f64::from(value) - at(Padding::Constant(-0.5), c, [z, y, x]) * 0.5 + 1.0).abs()
                    < 1e-6
            );
        }
        for ((c, z, y, x), &value) in sample
            .patch("half")
            .unwrap()
            .view::<f32>()
            .unwrap()
            .indexed_iter()
        {
            let expected = at(Padding::Constant(-0.5), c, [z, y, x]);
            assert!((f64::from(value) - expected).abs() < 1e-12);
        }
        for ((c, z, y, x), &value) in sample
            .patch("wide")
            .unwrap()
            .view::<f64>()
            .unwrap()
            .indexed_iter()
        {
            assert!((value - at(Padding::Reflect, c, [z, y, x])).abs() < 1e-12);
        }
    }
}

#[test]
fn a_value_that_a_cast_cannot_hold_is_named_and_so_is_such_a_padding() {
    let volume = || {
        let voxels: Vec<i16> = (0..210).map(|n| if n == 136 { 300 } else { 7 }).collect();
        Arc::new(MemoryVolume::from_vec([5, 6, 7], 1, voxels).unwrap())
    };
    let image = Image::new("ct", volume()).with_dtype(DType::U8);
    match image.read(Region::new([2, 1, 2], [3, 4, 5])).unwrap_err() {
        Error::ValueRange {
            channel,
            voxel,
            value,
            dtype,
            ..
        } => assert_eq!(
            (channel, voxel, &*value, dtype),
            (0, [3, 1, 3], "300", "uint8")
        ),
        other => panic!("{other}"),
    }
    assert!(image.read(Region::new([0, 0, 0], [3, 6, 7])).is_ok());
    let subject = Subject::builder("s").with_images([image]).build().unwrap();
    let make: Arc<dyn SamplerFactory> = Arc::new(move |_: &Subject, _| {
        let region = Region::new([1, 1, 1], [3, 4, 5]);
        Ok(At(vec![region]))
    });
    let plan = EpochPlan::new(1, 1, 0).unwrap();
    let mut loader = Loader::new(Arc::new(vec![subject]), make, &plan, 0, &options(1)).unwrap();
    let error = loader.next().unwrap().unwrap_err();
    assert!(
        std::error::Error::source(&error).is_some_and(|e| e.to_string().contains("300")),
        "{error}"
    );

    for (dtype, value) in [
        (DType::U8, -1.0),
        (DType::I16, 0.5),
        (DType::I16, f64::NAN),
        (DType::Bool, 2.0),
        (DType::F32, 1e300),
    ] {
        let image = Image::new("ct", volume())
            .with_dtype(dtype)
            .with_padding(Padding::Constant(value));
        let error = Subject::builder("s")
            .with_images([image])
            .build()
            .unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
    let image = Image::new("ct", volume()).with_dtype(DType::F32);
    let image = image.with_padding(Padding::Constant(0.1));
    assert!(Subject::builder("s").with_images([image]).build().is_ok());
}

/// Patches at given places.
#[derive(Debug)]
struct At(Vec<Region>);

impl Sampler for At {
    fn patch(&self) -> Shape {
        self.0[0].shape
    }
    fn draw(&self, _epoch: u64, n: u64) -> Result<Region> {
        Ok(self.0[usize::try_from(n).unwrap()])
    }
}

/// A volume whose values stand for others.
#[derive(Debug)]
struct Scaled(MemoryVolume, Layout);

impl Volume for Scaled {
    fn layout(&self) -> &Layout {
        &self.1
    }
    fn inner(&self) -> Option<&dyn Volume> {
        Some(&self.0)
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.0.read_channels(channels, region, out)
    }
}

#[test]
fn of_a_million_subjects_only_those_that_are_needed_are_opened() {
    let opened = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&opened);
    let open = move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(subject("a", &[&Noted::chunked(1)]))
    };
    let plan = EpochPlan::new(1_000_000, 2, 1).unwrap().with_window(6);
    let lazy = Arc::new(LazySubjects::new(1_000_000, open));
    let loader = Loader::new(lazy, uniform(), &plan, 0, &options(0)).unwrap();
    assert_eq!(all(loader.take(18)).len(), 18);
    // Two draws each, and the lookahead of 32 subjects.
    assert!(opened.load(Ordering::SeqCst) <= 9 + 32 + 3, "{opened:?}");
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let subjects = || Arc::new(three(Manner::Plain));
    let with = |plan: &EpochPlan, shard| {
        Loader::new(
            subjects(),
            uniform(),
            plan,
            0,
            &LoaderOptions {
                shard,
                ..options(1)
            },
        )
        .map(|_| ())
    };
    let plan = EpochPlan::new(3, 2, 0).unwrap();
    assert!(with(&plan, RankShard::whole(1)).is_ok());
    assert!(with(&EpochPlan::new(4, 2, 0).unwrap(), RankShard::whole(1)).is_err());
    assert!(with(&plan, RankShard::whole(0)).is_err());
    assert!(with(&plan, RankShard::of(2, 2, 1)).is_err());
    assert!(with(&plan, RankShard::of(0, 7, 1).with_uneven(Uneven::Drop)).is_err());
    assert!(
        with(&plan, RankShard::of(0, 7, 1)).is_ok(),
        "some come twice"
    );
    let empty = EpochPlan::new(3, 0, 0).unwrap();
    assert_eq!(loader(three(Manner::Plain), &empty, &options(2)).count(), 0);
}
