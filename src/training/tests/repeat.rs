//! The same sequence again, whatever happens around it.

use super::hard::by_label;
use super::*;
use crate::sampler::OnEmpty;
use crate::volume::Cached;

const SMALL: Shape = [12, 10, 14];

/// A small volume that takes its time over each read, another one each time.
#[derive(Debug)]
struct Delayed {
    inner: MemoryVolume,
    reads: AtomicUsize,
}

impl Volume for Delayed {
    fn layout(&self) -> &Layout {
        Volume::layout(&self.inner)
    }
    fn inner(&self) -> Option<&dyn Volume> {
        Some(&self.inner)
    }
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        let n = self.reads.fetch_add(1, Ordering::Relaxed);
        match n % 11 {
            0 => thread::sleep(Duration::from_micros(60)),
            3 | 7 => thread::yield_now(),
            _ => {}
        }
        self.inner.read_channels(channels, region, out)
    }
}

fn delayed(salt: u64, chunk: ChunkShape, cache: u64) -> Arc<dyn Volume> {
    let voxel = |n: u64| {
        let mixed = n.wrapping_mul(0x9E37_79B9).wrapping_add(salt) >> 7;
        u8::try_from(mixed & 3).unwrap()
    };
    let voxels: Vec<u8> = (0..Region::whole(SMALL).voxels()).map(voxel).collect();
    let inner = MemoryVolume::from_vec(SMALL, 1, voxels).unwrap();
    let volume = Delayed {
        inner: inner.with_chunks(chunk),
        reads: AtomicUsize::new(usize::try_from(salt).unwrap()),
    };
    Arc::new(Cached::new(Arc::new(volume), cache))
}

fn subjects(cache: u64, salt: u64) -> Arc<dyn Subjects> {
    let subject = |name, n| {
        let images = vec![
            Image::new("ct", delayed(n, [1, 5, 4, 6], cache)),
            Image::new("label", delayed(n + 9, [1, 4, 10, 5], cache)),
        ];
        // Delays begin at another place in each run; voxels do not.
        for image in &images {
            let mut one = [0];
            for _ in 0..salt % 11 {
                let at = Region::new([0; 3], [1; 3]);
                image.volume.read_channels(0..1, at, &mut one).unwrap();
            }
        }
        Subject::builder(name).with_images(images).build().unwrap()
    };
    Arc::new(vec![subject("a", 1), subject("b", 2), subject("c", 3)])
}

fn uniform_small() -> Arc<dyn SamplerFactory> {
    Arc::new(|subject: &Subject, seed| {
        let uniform = Uniform::new(subject.shape(), [4; 3], seed)?;
        Ok(uniform)
    })
}

#[test]
fn a_thousand_runs_of_one_epoch_are_alike() {
    let plan = EpochPlan::new(3, 4, 5).unwrap().with_window(7);
    let make = |n: u64| match n % 2 {
        0 => uniform_small(),
        _ => by_label(2, OnEmpty::Error),
    };
    let run = |n: u64, threads, max_length, cache| {
        let options = LoaderOptions {
            threads,
            max_length,
            ..LoaderOptions::default()
        };
        all(Loader::new(subjects(cache, n), make(n), &plan, 2, &options).unwrap())
    };
    let expected = [0, 1].map(|n| run(n, 0, 12, 0));
    assert_ne!(expected[0], expected[1]);
    for n in 0..1000_u64 {
        // All three take every value beside every value of the others.
        let threads = [0, 1, 2, 8][usize::try_from(n / 2 % 4).unwrap()];
        let max_length = 1 + usize::try_from(n / 2 % 50).unwrap();
        let cache = [0, 4 << 10, 1 << 30][usize::try_from(n / 2 % 3).unwrap()];
        let told = run(n, threads, max_length, cache);
        let expected = &expected[usize::try_from(n % 2).unwrap()];
        assert!(told == *expected, "run {n}: {threads} {max_length} {cache}");
    }
}

#[test]
fn loaders_side_by_side_and_questions_in_between_change_nothing() {
    let plans = [
        EpochPlan::new(3, 9, 5).unwrap().with_window(7),
        EpochPlan::new(3, 8, 6).unwrap(),
    ];
    let solo = [0, 1].map(|n| all(loader(three(Manner::Plain), &plans[n], &options(1))));
    for threads in [0, 2] {
        let subjects = Arc::new(three(Manner::Slow));
        let mut both = [0, 1].map(|n| {
            let subjects = Arc::clone(&subjects) as Arc<dyn Subjects>;
            Loader::new(subjects, uniform(), &plans[n], 3, &options(threads)).unwrap()
        });
        let mut found = [Vec::new(), Vec::new()];
        for turn in 0..40_u64 {
            // Now and then one gets ahead of the other.
            for n in [0, 1].into_iter().chain((turn % 5 == 0).then_some(1)) {
                let own = &mut both[n];
                let before = (
                    plans[n].len(),
                    own.state(),
                    own.remaining(),
                    own.stats().delivered,
                );
                let again = (
                    plans[n].len(),
                    own.state(),
                    own.remaining(),
                    own.stats().delivered,
                );
                assert_eq!(before, again);
                assert_eq!(own.state().position, found[n].len() as u64);
                assert_eq!(own.remaining(), plans[n].len() - found[n].len() as u64);
                if let Some(sample) = own.next() {
                    found[n].push(told(&sample.unwrap()));
                }
            }
        }
        assert!(found == solo, "{threads} threads");
    }
}
