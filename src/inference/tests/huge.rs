//! The cost of planning for the largest volumes.

use std::time::{Duration, Instant};

use super::*;
use crate::aggregator::steps_taken;
use crate::dtype::DType;

/// Returns a choice of targets for each shard, as in the command.
fn choices(dir: &Path, outputs: usize, pyramid: bool, blend: &Blend) -> Vec<Vec<OutputTarget>> {
    let shards = [[256; 3], [64; 3], [32; 3]];
    let stored = |shard| CreateOptions {
        chunk: [32; 3],
        shard: Some(shard),
        pyramid: pyramid.then_some(crate::volume::Pyramid {
            levels: None,
            method: crate::volume::Downsample::Mean,
        }),
        ..CreateOptions::default()
    };
    let all = shards.map(|shard| {
        let target = |n: usize| OutputTarget {
            store: stored(shard),
            ..OutputTarget::new(dir.join(format!("{n}.zarr"))).with_blend(blend.clone())
        };
        (0..outputs).map(target).collect()
    });
    all.into()
}

/// For any shape, patch and memory: the time for a plan, or for the reason why none fits, grows with the sum of the
/// axes.
#[test]
fn plans_of_huge_volumes_take_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let volumes: [Shape; 5] = [
        [34_427, 39_725, 41_394],
        [41_394, 34_427, 39_725],
        [200_000, 5_000, 5_000],
        [3_000, 3_000, 300_000],
        [60_000, 60_000, 60_000],
    ];
    let patches: [(Shape, Shape); 4] = [
        ([128; 3], [64; 3]),
        ([96, 160, 64], [16, 0, 32]),
        ([62, 66, 54], [14, 6, 28]),
        ([32, 64, 256], [30, 2, 128]),
    ];
    let outputs = |count: usize| {
        let mut all = vec![OutputSpec::new(2, DType::F32)];
        all.push(OutputSpec {
            scale: 2,
            ..OutputSpec::new(1, DType::U8)
        });
        all.truncate(count);
        BatchModel::new(all, |batch| Ok(vec![batch]))
    };
    let (mut cut, mut at_once, mut refused) = (0, 0, 0);
    for (n, volume) in volumes.into_iter().enumerate() {
        for (patch, overlap) in patches.into_iter().skip(n % 2).step_by(2) {
            for memory in [256 << 20, 4 << 30, 1 << 40] {
                let count = 1 + n % 2;
                let blend = if n == 3 { Blend::Crop } else { Blend::Hann };
                let choices = choices(dir.path(), count, n != 1, &blend);
                let what = InferenceOptions {
                    threads: 64,
                    memory,
                    placement: if count == 2 {
                        GridPlacement::Padded
                    } else {
                        GridPlacement::Edge
                    },
                    ..InferenceOptions::new(patch).with_overlap(overlap)
                };
                let mut layout = Layout::new(volume, 1, DType::U8);
                layout.read_chunk = Some([1, 64, 64, 64]);
                let (before, began) = (steps_taken(), Instant::now());
                let planned = Choices::new(what, choices).schedule(&layout, &outputs(count));
                let (taken, time) = (steps_taken() - before, began.elapsed());
                match planned {
                    Ok(plan) if plan.passes() > 1 => {
                        assert!(plan.predictions() >= plan.patches().0);
                        cut += 1;
                    }
                    Ok(_) => at_once += 1,
                    Err(error) => {
                        assert!(
                            matches!(
                                error,
                                crate::Error::MemoryLimit { .. }
                                    | crate::Error::InvalidArgument { .. }
                            ),
                            "{error:?}"
                        );
                        refused += 1;
                    }
                }
                let starts: u64 = (0..3)
                    .map(|a| volume[a] / (patch[a] - overlap[a]) + volume[a] / 32)
                    .sum();
                let most = 4_000 * starts;
                let case = format!("{volume:?} {patch:?} {overlap:?} {memory}");
                println!("{case}: {taken} steps of {most}, {time:?}");
                assert!(taken < most, "{case}: {taken} steps of {most}");
                assert!(time < Duration::from_mins(1), "{case}: {time:?}");
            }
        }
    }
    assert!(
        cut > 2 && at_once > 2 && refused > 2,
        "{cut} {at_once} {refused}"
    );
}
