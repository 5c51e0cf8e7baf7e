use std::collections::HashMap;
use std::rc::Rc;

use super::held::{ConditionCounts, SpanLevel, most};
use super::*;
use crate::aggregator::Reduce;
use crate::dtype::DType;
use crate::grid::{GridOptions, GridPlacement};
use crate::volume::ChunkShape;

/// Computes the same maximum without bounds or hulls: every moment, axis by axis, with equal weights only once.
fn every_moment(
    levels: &[Rc<SpanLevel>],
    known: &mut [HashMap<[u128; 4], u128>],
    weights: ConditionCounts,
) -> u128 {
    let (Some((level, levels)), Some((here, below))) =
        (levels.split_first(), known.split_first_mut())
    else {
        return weights.always + weights.begun + weights.unended + weights.both;
    };
    let key = [weights.always, weights.begun, weights.unended, weights.both];
    if let Some(&count) = here.get(&key) {
        return count;
    }
    let counts = level
        .steps
        .iter()
        .map(|step| every_moment(levels, below, step.after(level.total, weights)));
    let count = counts.max().unwrap_or(0);
    here.insert(key, count);
    count
}

/// Returns the next pseudo-random number.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn spans(state: &mut u64) -> Vec<Span> {
    let (mut first, mut last, mut start) = (0, 0, 0);
    let mut spans = Vec::new();
    for _ in 0..next(state) % 12 {
        first += usize::try_from(next(state) % 3).unwrap();
        last = last.max(first) + usize::try_from(next(state) % 3).unwrap();
        let end = start + 1 + next(state) % 20;
        spans.push(Span {
            start,
            end,
            first,
            last,
        });
        start = end;
    }
    spans
}

#[test]
fn the_most_is_that_of_every_moment() {
    let mut state = 7;
    let both = ConditionCounts {
        both: 1,
        ..ConditionCounts::default()
    };
    let mut some = 0;
    for n in 0..20_000 {
        let all: [Vec<Span>; 3] = std::array::from_fn(|_| spans(&mut state));
        let levels = all
            .each_ref()
            .map(|spans| Rc::new(SpanLevel::new(spans, usize::MAX)));
        let mut known = [HashMap::new(), HashMap::new(), HashMap::new()];
        let expected = every_moment(&levels, &mut known, both);
        assert_eq!(most(&levels), expected, "{n}: {all:?}");
        some += u32::from(expected > 0);
    }
    assert!(some > 10_000, "{some}");
}

/// Returns the most voxels at any moment by counting each box at each patch.
fn counted(grid: &Grid, boxes: &[Vec<Span>; 3]) -> u64 {
    let at_patch = |index: u64| {
        let mut held = 0;
        for z in 0..boxes[0].len() {
            for y in 0..boxes[1].len() {
                for x in 0..boxes[2].len() {
                    let spans = [boxes[0][z], boxes[1][y], boxes[2][x]];
                    let (first, last) = (spans.map(|s| s.first), spans.map(|s| s.last));
                    if (grid.number(first)..=grid.number(last)).contains(&index) {
                        held += spans.map(|s| s.end - s.start).iter().product::<u64>();
                    }
                }
            }
        }
        held
    };
    (0..grid.len()).map(at_patch).max().unwrap_or(0)
}

#[test]
fn bytes_are_those_of_counting_each_box_at_each_patch() {
    let (mut state, mut joined) = (3, 0);
    for n in 0..300 {
        let volume: Shape = std::array::from_fn(|_| 1 + next(&mut state) % 50);
        let patch = volume.map(|length| 1 + next(&mut state) % length);
        let overlap = patch.map(|length| next(&mut state) % length.div_ceil(2));
        let chunk: Shape = std::array::from_fn(|_| 5 + next(&mut state) % 20);
        let options = GridOptions {
            placement: [
                GridPlacement::Edge,
                GridPlacement::Even,
                GridPlacement::Edge,
                GridPlacement::Padded,
            ][n % 4],
            ..GridOptions::default()
        };
        let grid = Grid::with_options(volume, patch, overlap, &options).unwrap();
        if grid.len() > 600 {
            continue;
        }
        let [slow, ..] = grid.order();
        joined += u32::from(grid.joined() < grid.axes()[slow].starts.len());
        let mut output = Layout::new(volume, 2, DType::U16);
        let [z, y, x] = chunk;
        output.write_chunk = Some([1, z, y, x]);
        let blend = if n % 5 == 0 { Blend::Crop } else { Blend::Hann };
        let blending = AggregatorOptions::new(blend, Reduce::Mean);
        let mut estimate = Estimate::new(&grid, 3, &blending, &output);
        let counts: Shape = std::array::from_fn(|a| volume[a].div_ceil(chunk[a]));
        for _ in 0..4 {
            let within = counts.map(|count| {
                let from = next(&mut state) % count;
                from..from + 1 + next(&mut state) % (count - from)
            });
            let kept: [Range<u64>; 3] =
                std::array::from_fn(|a| within[a].start * chunk[a]..within[a].end * chunk[a]);
            let some = |boxes: &SpanBoxes, choose: &dyn Fn(&Span, &Range<u64>) -> bool| {
                let along = |a: usize| {
                    let chosen = boxes.spans[a].iter().filter(|span| choose(span, &kept[a]));
                    chosen.copied().collect()
                };
                counted(&grid, &std::array::from_fn(along)) * boxes.bytes
            };
            let mut expected = estimate.chunks.as_ref().map_or(0, |boxes| {
                some(boxes, &|span, kept| kept.contains(&span.start)).max(estimate.one)
            });
            expected += estimate.blocks.as_ref().map_or(0, |boxes| {
                some(boxes, &|span, kept| {
                    span.start < kept.end && kept.start < span.end
                })
            });
            let told = estimate.live_bytes(Some(&within));
            assert_eq!(
                told, expected,
                "{volume:?} {patch:?} {overlap:?} {within:?}"
            );
        }
    }
    assert!(joined > 20, "{joined}");
}

#[test]
fn patches_that_are_shifted_into_the_volume_take_hardly_more_than_others() {
    let bytes = |planes: u64, chunk: Option<ChunkShape>| {
        let grid = Grid::new([planes, 512, 512], [128; 3], [64; 3]).unwrap();
        let mut output = Layout::new(grid.volume(), 1, DType::F32);
        output.write_chunk = chunk;
        let blending = AggregatorOptions::new(Blend::Hann, Reduce::Mean);
        Estimate::new(&grid, 1, &blending, &output).live_bytes(None)
    };
    for chunk in [Some([1, 64, 64, 64]), Some([1, 32, 32, 32]), None] {
        let [aligned, shifted] = [1088, 1069].map(|planes| bytes(planes, chunk));
        assert!(
            shifted <= aligned + aligned / 5,
            "{chunk:?}: {shifted}, {aligned}"
        );
    }
}

/// The volumes of the largest data sets, with patches that are aligned with nothing.
#[test]
fn work_grows_with_the_sum_of_the_axes() {
    let volumes: [Shape; 5] = [
        [34_427, 39_725, 41_394],
        [41_394, 39_725, 34_427],
        [300_000, 1_000, 1_000],
        [7_000, 400_000, 64],
        [60_000, 60_000, 60_000],
    ];
    let patches: [(Shape, Shape); 5] = [
        ([128; 3], [32; 3]),
        ([64; 3], [0; 3]),
        ([61, 67, 53], [13, 7, 29]),
        ([96, 101, 33], [48, 50, 16]),
        ([31, 63, 37], [24, 1, 17]),
    ];
    for volume in volumes {
        for (patch, overlap) in patches {
            let options = GridOptions {
                fit: true,
                ..GridOptions::default()
            };
            let grid = Grid::with_options(volume, patch, overlap, &options).unwrap();
            for chunk in [[64; 3], [128, 64, 32], [47, 61, 71]] {
                let mut output = Layout::new(volume, 1, DType::F32);
                let [z, y, x] = chunk;
                output.write_chunk = Some([1, z, y, x]);
                let blending = AggregatorOptions::new(Blend::Hann, Reduce::Mean);
                let before = steps_taken();
                let mut estimate = Estimate::new(&grid, 1, &blending, &output);
                estimate.live_bytes(None);
                let axes = grid.axes().iter().map(|axis| axis.starts.len() as u64);
                let axes: u64 = axes.sum();
                let chunks: u64 = (0..3).map(|a| volume[a].div_ceil(chunk[a])).sum();
                let taken = steps_taken() - before;
                let most = 20 * (3 * axes + chunks);
                assert!(
                    taken < most,
                    "{volume:?} {patch:?} {overlap:?} {chunk:?}: {taken} of {most}"
                );
            }
        }
    }
}
