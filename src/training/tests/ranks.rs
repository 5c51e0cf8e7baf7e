//! Batches: equally many on all ranks, and of one composition where that was asked for.

use super::hard::of_volumes;
use super::*;
use crate::sampler::Mixture;

fn resumed(plan: &EpochPlan, position: u64, shard: RankShard) -> Loader {
    let subjects = Arc::new(three(Manner::Plain));
    let state = LoaderState {
        epoch: 3,
        position,
        plan: plan.fingerprint(),
        subjects: subjects.fingerprint(),
    };
    let options = LoaderOptions {
        shard,
        ..options(1)
    };
    Loader::resume(subjects, uniform(), plan, state, &options).unwrap()
}

#[test]
fn fewer_patches_than_ranks_are_one_batch_for_all_and_an_empty_one_for_some() {
    let plan = EpochPlan::new(3, 4, 2).unwrap().with_window(5);
    for left in 1..=7 {
        for by_batch in [true, false] {
            let position = plan.len() - left;
            let mut places = Vec::new();
            for rank in 0..8 {
                let shard = RankShard::of(rank, 8, 2).with_uneven(Uneven::Exact);
                let mut own = resumed(&plan, position, shard);
                let before = own.remaining();
                let mut seen = Vec::new();
                if by_batch {
                    for _ in 0..left.min(1) {
                        seen.extend(own.next_batch().unwrap().unwrap());
                    }
                    assert!(own.next_batch().is_none() && own.next_batch().is_none());
                } else {
                    seen.extend((&mut own).map(Result::unwrap));
                }
                assert!(own.next().is_none());
                assert_eq!(before, seen.len() as u64);
                assert_eq!((own.remaining(), own.state().position), (0, plan.len()));
                places.extend(seen.iter().map(|sample| sample.place));
            }
            assert!(
                places.into_iter().eq(position..plan.len()),
                "each patch once"
            );
        }
    }
}

/// Places that each rank delivers of an epoch from `position` on, batch by batch.
fn delivered(plan: &EpochPlan, position: u64, shard: RankShard) -> Vec<Vec<Vec<u64>>> {
    let of_rank = |rank| {
        let mut own = resumed(plan, position, RankShard { rank, ..shard });
        let announced = own.remaining();
        let batches = std::iter::from_fn(|| own.next_batch());
        let places = |batch: Result<Vec<Sample>>| batch.unwrap().iter().map(|s| s.place).collect();
        let batches: Vec<Vec<u64>> = batches.map(places).collect();
        assert_eq!(
            batches.iter().map(Vec::len).sum::<usize>() as u64,
            announced
        );
        batches
    };
    (0..shard.world_size).map(of_rank).collect()
}

#[test]
fn ranks_get_equally_many_batches_whatever_is_left_and_few_patches_twice_or_not_at_all() {
    for (plan, positions) in [
        (EpochPlan::new(3, 4, 2).unwrap().with_window(5), 0..12),
        (EpochPlan::new(3, 1, 2).unwrap(), 0..3),
    ] {
        for position in positions {
            for world_size in [1, 2, 3, 5, 8] {
                for (batch, uneven) in [1, 2, 3]
                    .into_iter()
                    .flat_map(|batch| [(batch, Uneven::Repeat), (batch, Uneven::Drop)])
                {
                    let shard = RankShard::of(0, world_size, batch).with_uneven(uneven);
                    let left = plan.len() - position;
                    if uneven == Uneven::Drop && left < world_size {
                        continue; // Refused at the start of an epoch, the next one later on.
                    }
                    let ranks = delivered(&plan, position, shard);
                    let case = format!("{position} {world_size} {batch} {uneven:?}");
                    let counts = |of: &[Vec<u64>]| of.iter().map(Vec::len).collect::<Vec<_>>();
                    for own in &ranks {
                        assert_eq!(own.len(), ranks[0].len(), "{case}: as many batches");
                        assert!(counts(own).into_iter().all(|n| n > 0), "{case}: none empty");
                        if batch == 1 {
                            assert_eq!(counts(own), counts(&ranks[0]), "{case}: as many patches");
                        }
                    }
                    let mut all = ranks.concat().concat();
                    all.sort_unstable();
                    let total = all.len() as u64;
                    all.dedup();
                    let distinct = all.len() as u64;
                    if uneven == Uneven::Repeat {
                        assert!(total < left + world_size, "{case}: {total}");
                        let every = (position..plan.len()).all(|place| all.contains(&place));
                        assert!(every, "{case}: {all:?}");
                    } else {
                        assert!(total + world_size > left && total <= left, "{case}");
                        assert!(all.into_iter().eq(position..position + distinct), "{case}");
                        assert_eq!(total, distinct, "{case}: none twice");
                    }
                }
            }
        }
    }
}

#[test]
fn a_state_at_the_end_of_an_epoch_is_the_start_of_the_next() {
    let plan = EpochPlan::new(3, 4, 2).unwrap().with_window(5);
    let start = resumed(&plan, 0, RankShard::whole(1)).state();
    let next = LoaderState { epoch: 4, ..start };
    let end = LoaderState {
        position: 12,
        ..start
    };
    for (world_size, batch, uneven) in [
        (1, 1, Uneven::Repeat),
        (1, 5, Uneven::Repeat),
        (3, 2, Uneven::Repeat),
        (5, 1, Uneven::Repeat),
        (5, 1, Uneven::Drop),
        (5, 1, Uneven::Exact),
    ] {
        for rank in 0..world_size {
            let shard = RankShard::of(rank, world_size, batch).with_uneven(uneven);
            let mut own = resumed(&plan, 0, shard);
            let mut before = own.state();
            while let Some(batch) = own.next_batch() {
                assert_eq!((before.epoch, before.position < 12), (3, true));
                batch.unwrap();
                before = own.state();
            }
            assert_eq!((before, own.state()), (end, end), "{shard:?}");
            assert_eq!(end.settled(&plan, shard), next);
            let mut again = resumed(&plan, plan.len(), shard);
            assert_eq!(again.state().epoch, 4);
            let subjects = Arc::new(three(Manner::Plain));
            let options = LoaderOptions {
                shard,
                ..options(0)
            };
            let stay = LoaderOptions {
                stay_in_epoch: true,
                ..options.clone()
            };
            let same = Arc::clone(&subjects);
            let mut rest = Loader::resume(same, uniform(), &plan, end, &stay).unwrap();
            assert!(rest.next().is_none() && rest.state() == end);
            let mut fresh = Loader::resume(subjects, uniform(), &plan, next, &options).unwrap();
            let places = |own: &mut Loader| own.map(|s| told(&s.unwrap())).collect::<Vec<_>>();
            let (again, fresh) = (places(&mut again), places(&mut fresh));
            assert!(!again.is_empty() && again == fresh, "{shard:?}");
        }
    }
    // Too few for all ranks to be shared out: what is left is dropped, and the next epoch begun.
    let shard = RankShard::of(1, 5, 1).with_uneven(Uneven::Drop);
    let own = resumed(&plan, 10, shard);
    assert_eq!((own.state().epoch, own.remaining()), (4, 2));
}

#[test]
fn an_exact_mixture_stays_exact_in_every_batch_where_the_plan_keeps_batches() {
    // Volumes are so far apart in size that a place tells its sampler.
    let make: Arc<dyn SamplerFactory> = Arc::new(|subject: &Subject, seed| {
        let [z, y, x] = subject.shape();
        let part = |first: bool| -> Box<dyn Sampler> {
            let patches = if first { [1, y, 1] } else { [z, 1, x] };
            let patches = Uniform::new(patches, [1, 1, 1], seed).unwrap();
            Box::new(patches)
        };
        let mixture = Mixture::exact(vec![(0.33, part(true)), (0.67, part(false))], 6, seed)?;
        Ok(mixture)
    });
    let volume = || -> Arc<dyn Volume> {
        let voxels = vec![0_u8; 40 * 50 * 60];
        Arc::new(MemoryVolume::from_vec([40, 50, 60], 1, voxels).unwrap())
    };
    let subjects: Arc<dyn Subjects> = Arc::new(vec![
        of_volumes("a", vec![("ct", volume())]),
        of_volumes("b", vec![("ct", volume())]),
    ]);
    let firsts = |plan: &EpochPlan, world_size: u64| -> Vec<usize> {
        let mut counts = Vec::new();
        for rank in 0..world_size {
            let options = LoaderOptions {
                shard: RankShard::of(rank, world_size, 6),
                ..options(2)
            };
            let subjects = Arc::clone(&subjects);
            let mut loader = Loader::new(subjects, Arc::clone(&make), plan, 0, &options).unwrap();
            while let Some(batch) = loader.next_batch() {
                let batch = batch.unwrap();
                assert_eq!(batch.len(), 6);
                // The first sampler leaves z and x at 0.
                let first = |sample: &&Sample| sample.region.start[0] + sample.region.start[2] == 0;
                counts.push(batch.iter().filter(first).count());
            }
        }
        counts
    };
    let plan = EpochPlan::new(2, 60, 4).unwrap().with_window(33);
    let mixed = firsts(&plan, 1);
    assert!(mixed.iter().any(|&count| count != 2), "{mixed:?}");
    assert_eq!(mixed.iter().sum::<usize>(), 40, "on average");
    let kept = plan.with_batches(6).unwrap();
    assert_eq!(kept.window(), 36);
    for world_size in [1, 4] {
        assert_eq!(firsts(&kept, world_size), [2; 20]);
    }
}

#[test]
fn whole_batches_are_mixed_and_their_length_must_fit() {
    let plan = EpochPlan::new(3, 12, 5).unwrap().with_window(18);
    let kept = plan.clone().with_batches(4).unwrap();
    assert_eq!(kept.window(), 20);
    assert_ne!(kept.fingerprint(), plan.fingerprint());
    assert_eq!(
        plan.clone().with_batches(1).unwrap().fingerprint(),
        plan.fingerprint()
    );
    let epoch = kept.epoch(0);
    let all: Vec<PlannedPatch> = (0..epoch.windows()).flat_map(|n| epoch.window(n)).collect();
    for batch in all.chunks(4) {
        assert!(batch.iter().all(|p| p.subject == batch[0].subject));
        let first = batch[0].draw;
        assert!(first.is_multiple_of(4));
        assert!(batch.iter().map(|p| p.draw).eq(first..first + 4));
    }
    assert!(!all.chunks(4).map(|batch| batch[0]).is_sorted());
    let mut sorted = all;
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), 36);
    for bad in [0, 5, 8] {
        assert!(plan.clone().with_batches(bad).is_err(), "{bad}");
    }
    let uneven = EpochPlan::with_counts(&[4, 0, 6], 1).unwrap();
    let refused = uneven.clone().with_batches(4).unwrap_err();
    assert!(
        refused.to_string().contains("subject 2 gives 6"),
        "{refused}"
    );
    assert!(uneven.with_batches(2).is_ok());
}

#[test]
fn states_are_text_that_is_read_back_and_other_runs_are_refused() {
    let plan = EpochPlan::new(3, 4, 9).unwrap().with_window(5);
    let expected = all(loader(three(Manner::Plain), &plan, &options(1)));
    for k in 0..expected.len() {
        let mut first = loader(three(Manner::Plain), &plan, &options(k % 3));
        assert_eq!(all((&mut first).take(k)), expected[..k]);
        let text = first.state().to_string();
        drop(first);
        let state: LoaderState = format!(" {text}\n").parse().unwrap();
        assert_eq!(state.to_string(), text);
        let subjects = Arc::new(three(Manner::Plain));
        let rest = Loader::resume(subjects, uniform(), &plan, state, &options(1)).unwrap();
        assert_eq!(all(rest), expected[k..]);
    }
    let state = loader(three(Manner::Plain), &plan, &options(0)).state();
    let refused = |subjects: Arc<dyn Subjects>, state| {
        Loader::resume(subjects, uniform(), &plan, state, &options(0)).unwrap_err()
    };
    let mut other = three(Manner::Plain);
    other.swap(0, 2);
    let error = refused(Arc::new(other), state);
    assert!(matches!(error, Error::StateMismatch { .. }), "{error}");
    let beyond = LoaderState {
        position: 13,
        ..state
    };
    let error = refused(Arc::new(three(Manner::Plain)), beyond);
    assert!(
        error.to_string().contains("13") && error.to_string().contains("12"),
        "{error}"
    );
    let good = state.to_string();
    for bad in [
        String::new(),
        good.replace("loader-1", "loader-2"),
        good.replace("epoch=3", "epoch=+3"),
        good.replace("epoch=3", "epoch=-3"),
        good.replace("epoch=3", "epoch="),
        good.replace("position=0", "position=18446744073709551616"),
        good.replace("plan=", "plan=0x"),
        format!("{good} more=1"),
        good.rsplit_once(' ').unwrap().0.to_owned(),
    ] {
        let error = bad.parse::<LoaderState>().unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{bad}");
    }
}

#[test]
fn subjects_are_known_by_name_and_shape_or_by_what_the_caller_says() {
    let of = |name: &str, shape: Shape| {
        let layout = Layout::new(shape, 1, DType::U8);
        of_volumes(
            name,
            vec![("ct", Arc::new(MemoryVolume::zeros(layout).unwrap()) as _)],
        )
    };
    let list = |all: &[(&str, Shape)]| {
        let all: Vec<Subject> = all.iter().map(|&(name, shape)| of(name, shape)).collect();
        all.fingerprint()
    };
    let [a, b] = [[2, 3, 4], [2, 4, 3]];
    let all = [
        list(&[]),
        list(&[("s", a)]),
        list(&[("s", b)]),
        list(&[("t", a)]),
        list(&[("s", a), ("t", a)]),
        list(&[("t", a), ("s", a)]),
    ];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(list(&[("s", a)]), all[1]);
    let open = |_| -> Result<Subject> { panic!("a fingerprint opens nothing") };
    let lazy = |length, text: Option<&str>| {
        let lazy = LazySubjects::new(length, open);
        text.map_or_else(
            || LazySubjects::new(length, open).fingerprint(),
            |text| lazy.with_key(text).fingerprint(),
        )
    };
    assert_eq!(lazy(7, None), 7);
    assert_eq!(lazy(7, Some("list 1")), lazy(7, Some("list 1")));
    assert_ne!(lazy(7, Some("list 1")), lazy(7, Some("list 2")));
    assert_ne!(lazy(7, Some("list 1")), lazy(8, Some("list 1")));
}
