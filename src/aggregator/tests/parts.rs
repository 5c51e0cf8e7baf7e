//! Writing only some write chunks, as parts of a run and resumed runs do.

use std::collections::HashSet;

use super::*;
use crate::grid::{GridOptions, GridPlacement};

#[test]
fn parts_need_only_the_patches_that_touch_them_and_write_the_same_bits() {
    let hanging = GridOptions {
        placement: GridPlacement::Padded,
        margin: [3, 3, 3],
        fit: true,
    };
    let (volume, patch, overlap) = ([61, 40, 30], [16, 12, 12], [8, 5, 6]);
    let grids = [
        Grid::new(volume, patch, overlap).unwrap(),
        Grid::with_options(volume, patch, overlap, &hanging).unwrap(),
    ];
    for grid in grids {
        for (blend, all_vote) in [
            (Blend::Hann, false),
            (Blend::Crop, true),
            (Blend::Crop, false),
        ] {
            for chunk in [[8, 8, 8], [16, 11, 30], [20, 20, 20]] {
                let predict = |index| noise(grid.get(index).unwrap(), 2, index);
                let whole = {
                    let output = Recording::new(layout(volume, 2, DType::F32, Some(chunk)));
                    let all = 0..grid.len();
                    blend_in_order(&grid, &blend, &output, 2, all, |index, _| predict(index)).0
                };
                let output = Recording::new(layout(volume, 2, DType::F32, Some(chunk)));
                let mut sink: Box<dyn VolumeMut> = Box::new(Output(Arc::clone(&output)));
                let options = AggregatorOptions {
                    all_vote,
                    ..AggregatorOptions::new(blend.clone(), Reduce::Mean)
                };
                // Three parts of arbitrary chunks.
                for part in 0..3 {
                    let wanted = |[z, y, x]: [u64; 3]| (z * 5 + y * 3 + x) % 3 == part;
                    let aggregator = Aggregator::of_chunks(
                        grid.clone(),
                        2,
                        options.clone(),
                        sink,
                        Some(&wanted),
                    )
                    .unwrap();
                    let needed: Vec<u64> = (0..grid.len())
                        .filter(|&index| aggregator.needs(index))
                        .collect();
                    let touching: HashSet<u64> = (0..grid.len())
                        .filter(|&index| {
                            let inside = grid.get(index).unwrap();
                            let inside = inside.intersection(&Region::whole(volume)).unwrap();
                            indices(chunk_range(&inside, chunk)).any(wanted)
                        })
                        .collect();
                    // A block may extend into a chunk that the patch itself does not touch, never the other way round.
                    // Under crop, a patch owns less than it touches, and that is enough where every patch votes.
                    if all_vote {
                        assert!(needed.iter().all(|index| touching.contains(index)));
                    } else {
                        assert!(touching.iter().all(|index| needed.contains(index)));
                    }
                    for &index in needed.iter().rev() {
                        aggregator.add(index, predict(index)).unwrap();
                    }
                    sink = aggregator.close().unwrap().1;
                }
                let writes = output.writes.lock().unwrap();
                assert!(writes.values().all(|&times| times == 1));
                drop(writes);
                assert_eq!(output.memory.to_patch(), whole, "{blend:?} {chunk:?}");
            }
        }
    }
}

#[test]
fn a_part_of_a_long_volume_needs_few_patches_and_little_memory() {
    let grid = Grid::new([640, 64, 64], [64, 32, 32], [32, 16, 16]).unwrap();
    let layout = layout([640, 64, 64], 1, DType::F32, Some([32, 32, 32]));
    let options = AggregatorOptions::new(Blend::Hann, Reduce::Mean);
    let part = [10..12, 0..2, 0..2];
    let output = Recording::new(layout.clone());
    let wanted = |[z, ..]: [u64; 3]| part[0].contains(&z);
    let sink = Box::new(Output(Arc::clone(&output)));
    let aggregator =
        Aggregator::of_chunks(grid.clone(), 1, options.clone(), sink, Some(&wanted)).unwrap();
    let needed = (0..grid.len())
        .filter(|&index| aggregator.needs(index))
        .collect::<Vec<u64>>();
    // Layers that start at 9 x 32, 10 x 32 and 11 x 32.
    assert_eq!(needed.len(), 3 * 9);
    for index in needed {
        let patch = noise(grid.get(index).unwrap(), 1, index);
        aggregator.add(index, patch).unwrap();
    }
    let (done, _) = aggregator.close().unwrap();
    assert_eq!(done.chunks_written, 8);
    let announced = live_bytes(&grid, 1, &options, &layout, Some(&part));
    assert!(
        done.peak_live_bytes <= announced,
        "{} of {announced}",
        done.peak_live_bytes
    );
    assert!(announced < live_bytes(&grid, 1, &options, &layout, None));
}
