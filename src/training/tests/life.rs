//! Waiting, breaking off, and whose memory is whose.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::*;
use crate::volume::Cached;

/// How many threads of this process have a name that begins so.
fn loader_threads() -> Option<usize> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    let names = tasks.filter_map(name);
    Some(names.filter(|name| name.starts_with("only-here")).count())
}

#[test]
fn a_slow_consumer_hardly_waits_and_a_fast_one_waits_for_slow_volumes() {
    #[derive(Debug)]
    struct Slow(Arc<Noted>, Duration);
    impl Volume for Slow {
        fn layout(&self) -> &Layout {
            self.0.layout()
        }
        fn inner(&self) -> Option<&dyn Volume> {
            Some(&self.0)
        }
        fn read_channels(&self, c: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
            thread::sleep(self.1);
            self.0.read_channels(c, region, out)
        }
    }
    let run = |reading: u64, consuming: u64| {
        let volume = Slow(
            Noted::new(1, None, Manner::Plain),
            Duration::from_millis(reading),
        );
        let image = Image::new("ct", Arc::new(volume));
        let subject = Subject::builder("a").with_images([image]).build().unwrap();
        let plan = EpochPlan::new(1, 30, 1).unwrap();
        let mut loader = loader(vec![subject], &plan, &options(2));
        // Once the buffer has filled, what was waited for before does not count.
        loader.next().unwrap().unwrap();
        thread::sleep(Duration::from_millis(100));
        let before = loader.stats().waited;
        for sample in &mut loader {
            sample.unwrap();
            thread::sleep(Duration::from_millis(consuming));
        }
        loader.stats().waited.saturating_sub(before)
    };
    // 29 patches: the consumer takes 290 ms, and two threads 15 ms.
    let slow_consumer = run(1, 10);
    // At most the 8 of the buffer are there; 21 of 15 ms each, by two, are 157 ms.
    let slow_volume = run(15, 0);
    assert!(slow_volume > Duration::from_millis(120), "{slow_volume:?}");
    assert!(
        slow_consumer < slow_volume / 2,
        "{slow_consumer:?} {slow_volume:?}"
    );
}

#[test]
fn a_consumer_that_panics_or_stops_leaves_no_thread_and_no_volume_behind() {
    for threads in [0, 1, 4] {
        for k in [0, 1, 7] {
            let ct = Noted::new(1, Some([1, 8, 8, 8]), Manner::Slow);
            // A thread's name says whose it is: what the others of this process do is theirs.
            let transform: Arc<Transform> = Arc::new(|_: &mut Sample| {
                let here = thread::current();
                if here
                    .name()
                    .is_some_and(|name| name.starts_with("voxpatch-loader"))
                {
                    let _ = std::fs::write("/proc/thread-self/comm", "only-here");
                }
                Ok(())
            });
            let held = Arc::clone(&transform);
            let options = LoaderOptions {
                transform: Some(transform),
                ..options(threads)
            };
            let plan = EpochPlan::new(1, 200, 1).unwrap();
            let loader = loader(vec![subject("a", &[&ct])], &plan, &options);
            drop(options);
            let panicked = catch_unwind(AssertUnwindSafe(move || {
                let mut seen = 0;
                for sample in loader {
                    sample.unwrap();
                    seen += 1;
                    assert!(seen <= k, "the training loop fails");
                }
            }));
            assert!(panicked.is_err());
            assert_eq!((Arc::strong_count(&ct), Arc::strong_count(&held)), (1, 1));

            let options = LoaderOptions {
                transform: Some(held),
                ..super::options(threads)
            };
            let mut again = super::loader(vec![subject("a", &[&ct])], &plan, &options);
            let kept: Vec<_> = (&mut again).take(k).collect();
            drop(again);
            drop(kept);
            assert_eq!(Arc::strong_count(&ct), 1);
        }
    }
    // The system lists a thread for a moment after it was joined.
    let deadline = Instant::now() + Duration::from_secs(10);
    while loader_threads().is_some_and(|threads| threads > 0) {
        assert!(Instant::now() < deadline, "all have ended");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn overlapping_samples_that_live_at_once_share_nothing_with_each_other_or_the_cache() {
    let ct = Noted::chunked(1);
    let cached: Arc<dyn Volume> = Arc::new(Cached::new(Arc::clone(&ct) as _, 1 << 20));
    let image = Image::new("ct", Arc::clone(&cached));
    let subject = Subject::builder("a").with_images([image]).build().unwrap();
    let regions = [[3, 4, 5], [4, 4, 6], [3, 4, 5]].map(|start| Region::new(start, PATCH));
    let make: Arc<dyn SamplerFactory> = Arc::new(move |_: &Subject, _| Ok(At(regions.to_vec())));
    let plan = EpochPlan::new(1, 3, 0).unwrap().with_shuffle(false, false);
    for threads in [0, 2] {
        let subjects = Arc::new(vec![subject.clone()]);
        let loader = Loader::new(subjects, Arc::clone(&make), &plan, 0, &options(threads)).unwrap();
        let mut samples: Vec<Sample> = loader.map(Result::unwrap).collect();
        let first = &mut samples[0].patches_mut()[0];
        assert_eq!(
            first.bytes().len() as u64,
            4 * Region::whole(PATCH).voxels()
        );
        first.as_mut_slice::<u32>().unwrap().fill(7);
        for sample in &samples[1..] {
            assert_eq!(sample.patches()[0], ct.inner.read(sample.region).unwrap());
        }
        assert_eq!(
            cached.read(regions[0]).unwrap(),
            ct.inner.read(regions[0]).unwrap()
        );
        assert!(
            samples[0].patches()[0]
                .as_slice::<u32>()
                .unwrap()
                .iter()
                .all(|&v| v == 7)
        );
    }
    assert!(cached.read_stats().hits > 0);
}

#[test]
fn a_lent_patch_is_its_holder_s_and_then_the_next_one_s() {
    let plan = EpochPlan::new(1, 40, 1).unwrap();
    let make = || {
        let ct = Noted::new(1, Some([1, 8, 8, 8]), Manner::Plain);
        loader(vec![subject("a", &[&ct])], &plan, &options(0))
    };
    let expected = all(make());
    let mut addresses = BTreeSet::new();
    let mut held = Vec::new();
    for (n, sample) in make().enumerate() {
        let mut lent = sample.unwrap().into_pooled();
        let patch = &mut lent[0];
        assert_eq!(
            patch.bytes(),
            expected[n].3[0],
            "{n}: nobody else wrote to it"
        );
        addresses.insert(patch.bytes().as_ptr().addr());
        patch.bytes_mut().fill(255);
        if n % 10 == 0 {
            held.append(&mut lent);
        }
    }
    assert!(
        held.iter()
            .all(|patch| patch.bytes().iter().all(|&byte| byte == 255))
    );
    assert!(
        addresses.len() < 30,
        "{} buffers for 40 patches",
        addresses.len()
    );
}
