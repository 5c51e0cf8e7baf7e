//! Loaders that share a rank in turns, and waits that have a limit.

use super::*;

const WORLD: u64 = 2;

fn own(
    plan: &EpochPlan,
    rank: u64,
    worker: WorkerShard,
    state: Option<LoaderState>,
    threads: usize,
) -> Loader {
    let subjects = Arc::new(three(Manner::Plain));
    let shard = RankShard::of(rank, WORLD, 3);
    let options = LoaderOptions {
        shard,
        worker,
        ..options(threads)
    };
    match state {
        Some(state) => Loader::resume(subjects, uniform(), plan, state, &options),
        None => Loader::new(subjects, uniform(), plan, 3, &options),
    }
    .unwrap()
}

fn batches(loader: &mut Loader) -> Vec<Vec<Told>> {
    std::iter::from_fn(|| loader.next_batch())
        .map(|batch| batch.unwrap().iter().map(told).collect())
        .collect()
}

#[test]
fn batches_taken_in_turn_are_those_of_one_loader_in_its_order() {
    for (each, count) in [(13, 1), (13, 2), (13, 4), (4, 3), (1, 4)] {
        let plan = EpochPlan::new(3, each, 2).unwrap().with_window(5);
        for rank in 0..WORLD {
            let alone = batches(&mut own(&plan, rank, WorkerShard::default(), None, 1));
            let mut loaders: Vec<Loader> = (0..count)
                .map(|index| own(&plan, rank, WorkerShard { index, count }, None, 1))
                .collect();
            let left: u64 = loaders.iter().map(Loader::remaining).sum();
            assert_eq!(left, alone.iter().map(Vec::len).sum::<usize>() as u64);
            let each_own: Vec<_> = loaders.iter_mut().map(batches).collect();
            for (n, batch) in alone.iter().enumerate() {
                let count = usize::try_from(count).unwrap();
                assert_eq!(
                    &each_own[n % count][n / count],
                    batch,
                    "batch {n} of {count} loaders"
                );
            }
            let all: usize = each_own.iter().map(Vec::len).sum();
            assert_eq!(all, alone.len(), "none more");
            assert!(loaders.iter().all(|loader| loader.remaining() == 0));
        }
    }
}

#[test]
fn a_loader_that_takes_turns_is_resumed_where_its_next_batch_begins() {
    let plan = EpochPlan::new(3, 13, 2).unwrap().with_window(5);
    let count = 3;
    for index in 0..count {
        let all = batches(&mut own(&plan, 1, WorkerShard { index, count }, None, 1));
        for taken in 0..=all.len() {
            let mut first = own(&plan, 1, WorkerShard { index, count }, None, 0);
            for _ in 0..taken {
                first.next_batch().unwrap().unwrap();
            }
            let next = WorkerShard { index: 0, count };
            let mut resumed = own(&plan, 1, next, Some(first.state()), 1);
            assert_eq!(resumed.remaining(), first.remaining());
            assert_eq!(batches(&mut resumed), all[taken..], "{index} {taken}");
        }
    }
}

#[test]
fn a_turn_beyond_the_loaders_is_refused() {
    let plan = EpochPlan::new(3, 4, 2).unwrap();
    for worker in [
        WorkerShard { index: 2, count: 2 },
        WorkerShard { index: 0, count: 0 },
    ] {
        let options = LoaderOptions {
            worker,
            ..options(0)
        };
        let refused = Loader::new(
            Arc::new(three(Manner::Plain)),
            uniform(),
            &plan,
            0,
            &options,
        );
        assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
    }
}

#[test]
fn a_wait_that_is_over_loses_nothing_of_a_batch() {
    let plan = EpochPlan::new(1, 12, 1).unwrap();
    for threads in [0, 2] {
        let make = |manner| {
            let ct = Noted::new(1, Some([1, 8, 8, 8]), manner);
            let shard = RankShard::whole(5);
            let options = LoaderOptions {
                shard,
                ..options(threads)
            };
            loader(vec![subject("a", &[&ct])], &plan, &options)
        };
        let expected = batches(&mut make(Manner::Plain));
        let mut slow = make(Manner::Slow);
        let (mut found, mut waits) = (Vec::new(), 0);
        let mut begun = slow.state();
        loop {
            match slow.next_batch_timeout(Duration::from_micros(200)) {
                TryNext::Ready(batch) => {
                    found.push(batch.unwrap().iter().map(told).collect::<Vec<_>>());
                    begun = slow.state();
                }
                TryNext::TimedOut => {
                    waits += 1;
                    assert_eq!(slow.state(), begun, "a batch in part is not delivered");
                }
                TryNext::Finished => break,
            }
        }
        assert_eq!(found, expected);
        assert!(waits > 0, "{threads} threads: it was too fast to tell");
    }
}
