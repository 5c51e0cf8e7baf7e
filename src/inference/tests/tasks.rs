//! Runs as tasks: in any order, twice, at once, and killed, they give the bytes of one process.

use std::sync::{Barrier, Mutex};

use super::schedules::{
    Draw, SMALL, check, placed, three_outputs, three_targets, two_channels, unbroken,
};
use super::*;
use crate::error::Error;
use crate::inference::{InferencePlan, JobStatus, Predictor};
use crate::normalize::Normalize;
use crate::volume::{Durability, OutputPart, steps};

fn job(folder: &Path) -> InferencePlan {
    let mut targets = three_targets(folder, false);
    for target in &mut targets {
        target.store.shard = Some([8; 3]);
    }
    let predictor = Predictor::new(two_channels(), three_outputs(), placed(2, 64 << 20));
    predictor.plan(&targets).unwrap()
}

/// Runs a task, optionally killed at a patch or at a step. Returns `None` if it was killed, and whether the outputs are
/// whole otherwise.
fn run(folder: &Path, part: OutputPart, (patch, step): (Option<u64>, Option<u32>)) -> Option<bool> {
    let plan = job(folder).with_part(part, Durability::None).unwrap();
    let stop = |done, _| match patch {
        Some(patch) if done >= patch => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    steps::break_off_at(step);
    let done = plan.with_repeats().run(&stop);
    steps::break_off_at(None);
    match done {
        Ok(done) => Some(done.whole),
        Err(Error::Interrupted | Error::Panicked { .. }) => None,
        Err(error) => panic!("{part:?}: {error}"),
    }
}

fn shuffle<T>(all: &mut [T], draw: &mut Draw) {
    for n in (1..all.len()).rev() {
        let other = usize::try_from(draw.below(n as u64 + 1)).unwrap();
        all.swap(n, other);
    }
}

#[test]
fn any_order_of_repeated_and_killed_tasks_ends_with_the_bytes_of_one_process() {
    let expected = unbroken();
    let mut counts = [0_u64; 3];
    for seed in 0..25 {
        let mut draw = Draw(1000 + seed);
        let dir = scratch();
        let folder = dir.path();
        let count = draw.one_of(&[1, 2, 3, 9]);
        let mut list: Vec<OutputPart> = job(folder)
            .tasks(count)
            .unwrap()
            .iter()
            .map(|task| task.part)
            .collect();
        // Each task runs twice.
        list.extend(list.clone());
        shuffle(&mut list, &mut draw);
        let todo = Mutex::new((list, draw));
        let killed = Mutex::new(0_u64);
        let begin = Barrier::new(3);
        let work = || {
            begin.wait();
            loop {
                let (part, kill) = {
                    let mut todo = todo.lock().unwrap();
                    let (list, draw) = &mut *todo;
                    let Some(part) = list.pop() else {
                        return;
                    };
                    let kill = match draw.below(3) {
                        0 => (Some(draw.below(60)), None),
                        1 => (None, Some(u32::try_from(draw.below(12)).unwrap())),
                        _ => (None, None),
                    };
                    (part, kill)
                };
                if run(folder, part, kill).is_none() {
                    *killed.lock().unwrap() += 1;
                    todo.lock().unwrap().0.push(part);
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                worker.join().unwrap();
            }
        });
        counts[0] += u64::from(count);
        counts[1] += *killed.lock().unwrap();
        let before = job(folder).status().unwrap();
        assert!(before.is_complete(), "schedule {seed}: {before:?}");
        counts[2] += u64::from(!before.published);
        let together = Barrier::new(2);
        std::thread::scope(|scope| {
            let commit = || {
                together.wait();
                job(folder).commit(&silent).unwrap();
            };
            let commits = [scope.spawn(commit), scope.spawn(commit)];
            for commit in commits {
                commit.join().unwrap();
            }
        });
        check(folder, &expected, &format!("schedule {seed}"));
        let names = fs::read_dir(folder).unwrap().count();
        assert_eq!(names, 3, "schedule {seed}: nothing is left");
        let after = job(folder).status().unwrap();
        assert!(after.published && after.chunks_done == after.chunks);
        assert_eq!(after.chunks, before.chunks);
        // A late task has nothing to do.
        assert_eq!(
            run(folder, OutputPart::new(0, count).unwrap(), (None, None)),
            Some(true)
        );
    }
    let [tasks, killed, open] = counts;
    println!(
        "25 schedules: {tasks} parts, {killed} tasks killed, {open} outputs left to the commit"
    );
    assert!(killed > 25);
}

#[test]
fn tasks_share_the_outputs_and_know_their_costs() {
    let whole = {
        let dir = scratch();
        job(dir.path()).tasks(1).unwrap().remove(0)
    };
    let bytes = Region::whole(SMALL).voxels() * 2 * 4;
    let dir = scratch();
    assert_eq!(
        (whole.patches, whole.repeated_patches),
        (job(dir.path()).predictions(), 0)
    );
    assert_eq!((whole.regions.len(), whole.input_bytes), (3, bytes));
    for count in [2, 3, 9, 1000] {
        let dir = scratch();
        let tasks = job(dir.path()).tasks(count).unwrap();
        assert!(tasks.len() <= 6, "there are six layers of shards");
        assert!(
            tasks
                .iter()
                .all(|task| task.patches > 0 && task.input_bytes <= bytes)
        );
        assert!(tasks.is_sorted_by_key(|task| std::cmp::Reverse(task.patches)));
        let patches: u64 = tasks.iter().map(|task| task.patches).sum();
        let repeated: u64 = tasks.iter().map(|task| task.repeated_patches).sum();
        assert_eq!(patches - repeated, whole.patches, "{tasks:?}");
        assert!(repeated > 0);
        for n in 0..3 {
            let voxels: u64 = tasks.iter().map(|task| task.regions[n].voxels()).sum();
            assert_eq!(voxels, whole.regions[n].voxels(), "output {n}");
        }
        let mut status = job(dir.path()).status().unwrap();
        assert_eq!((status.parts, status.chunks_done), (None, 0));
        for (n, task) in tasks.iter().enumerate() {
            let plan = job(dir.path())
                .with_part(task.part, Durability::None)
                .unwrap();
            let done = plan.with_repeats().run(&silent).unwrap();
            assert_eq!(done.patches, task.patches, "{task:?}");
            assert_eq!(done.whole, n + 1 == tasks.len());
            let now = job(dir.path()).status().unwrap();
            assert!(now.chunks_done > status.chunks_done, "{now:?}");
            assert_eq!(now.begun.len(), if done.whole { 0 } else { n + 1 });
            assert!(now.begun.iter().all(|(_, done, total)| done == total));
            status = now;
        }
        assert!(status.published && status.is_complete());
    }
}

#[test]
fn a_commit_names_the_parts_that_are_missing() {
    let dir = scratch();
    let folder = dir.path();
    let missing = |expected: &str| {
        let refused = job(folder).commit(&silent).unwrap_err();
        assert!(matches!(refused, Error::MissingChunks { .. }), "{refused}");
        assert!(refused.to_string().contains(expected), "{refused}");
    };
    missing("no part has been started");
    run(folder, OutputPart::new(1, 3).unwrap(), (None, None));
    missing("run parts 0, 2 of 3");
    run(folder, OutputPart::new(0, 3).unwrap(), (Some(1), None));
    missing("run parts 0, 2 of 3");
    let JobStatus { begun, parts, .. } = job(folder).status().unwrap();
    assert_eq!((begun.len(), parts), (2, Some(3)));
    // Another split, or another model, is another run.
    let plan = job(folder).with_part(OutputPart::new(0, 2).unwrap(), Durability::None);
    let refused = plan.unwrap().with_repeats().run(&silent);
    assert!(
        matches!(refused, Err(Error::RunMismatch { .. })),
        "{refused:?}"
    );
    let mut others = three_targets(folder, false);
    for target in &mut others {
        target.store.shard = Some([8; 3]);
        target.blending.fill = 3.0;
    }
    let other = Predictor::new(two_channels(), three_outputs(), placed(2, 64 << 20));
    let other = other.plan(&others).unwrap();
    assert!(matches!(other.status(), Err(Error::RunMismatch { .. })));
    assert!(matches!(
        other.commit(&silent),
        Err(Error::RunMismatch { .. })
    ));
}

#[test]
fn flat_files_have_no_tasks() {
    let dir = scratch();
    let target = OutputTarget::new(dir.path().join("out.npy"));
    let model = crate::inference::builtin_model("identity").unwrap();
    let plan = Predictor::new(two_channels(), model, placed(1, 64 << 20)).plan(&[target]);
    assert!(matches!(
        plan.unwrap().tasks(2),
        Err(Error::Unsupported { .. })
    ));
}

#[test]
fn a_measured_normalization_is_read_back_to_the_last_bit() {
    let dir = scratch();
    let written = |name: &str, planned: &dyn Fn(InferencePlan) -> InferencePlan| {
        let path = dir.path().join(name);
        let predict = |batch| Ok(vec![batch]);
        let model = BatchModel::new(vec![OutputSpec::new(2, DType::F32)], predict);
        let predictor = Predictor::new(two_channels(), Arc::new(model), placed(2, 64 << 20));
        let plan = predictor.plan(&[OutputTarget::new(&path)]).unwrap();
        planned(plan).run(&silent).unwrap();
        fs::read(path).unwrap()
    };
    for (n, normalize) in [
        "zscore",
        "zscore:nonzero",
        "percentile:0.5,99.5",
        "window:-10,90",
        "mean-std:3,0.1",
        "nnunet-ct:-5,900,3,7",
    ]
    .iter()
    .enumerate()
    {
        let normalize: Normalize = normalize.parse().unwrap();
        let text = Mutex::new(None);
        let measured = written(&format!("{n}.npy"), &|plan| {
            let plan = plan.with_normalize(normalize.clone(), &silent).unwrap();
            *text.lock().unwrap() = plan.measured();
            plan
        });
        let text = text.into_inner().unwrap().expect("numbers");
        let read = written(&format!("{n}-again.npy"), &|plan| {
            plan.with_measured(Some(&text)).unwrap()
        });
        assert!(measured == read, "{normalize}: {text}");
    }
    let model = crate::inference::builtin_model("identity").unwrap();
    let plan = Predictor::new(two_channels(), model, placed(2, 64 << 20));
    let plan = plan
        .plan(&[OutputTarget::new(dir.path().join("none.npy"))])
        .unwrap();
    assert_eq!(plan.measured(), None);
    for wrong in [
        "",
        "1,2,3",
        "1,2,3,4,maybe",
        "2,1,0,1,true",
        "nan,1,0,1,true",
        "0,1,0,0,true",
    ] {
        assert!(plan.clone().with_measured(Some(wrong)).is_err(), "{wrong}");
    }
}
