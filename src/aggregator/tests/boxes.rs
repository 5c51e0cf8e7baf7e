//! Predictions that are added box by box.

use super::*;
use crate::grid::{GridOptions, GridPlacement};

fn aggregator(grid: &Grid, options: AggregatorOptions, output: &Arc<Recording>) -> Aggregator {
    let output = Box::new(Output(Arc::clone(output)));
    Aggregator::new(grid.clone(), 2, options, output).unwrap()
}

#[test]
fn boxes_added_by_threads_in_any_order_give_the_bits_of_whole_predictions() {
    let grid = Grid::new([40, 37, 50], [16, 20, 24], [8, 10, 9]).unwrap();
    let volume = noise(Region::whole(grid.volume()), 2, 7);
    for blend in BLENDS {
        let options = AggregatorOptions::new(blend.clone(), Reduce::Mean).with_all_vote(true);
        let whole = Recording::new(layout(grid.volume(), 2, DType::F32, Some([8, 11, 20])));
        let adding = aggregator(&grid, options.clone(), &whole);
        for index in 0..grid.len() {
            let region = grid.get(index).unwrap();
            adding.add(index, part(&volume, region)).unwrap();
        }
        adding.finish().unwrap();

        let boxes = Recording::new(layout(grid.volume(), 2, DType::F32, Some([8, 11, 20])));
        let adding = aggregator(&grid, options, &boxes);
        assert!(adding.takes_boxes());
        let (predicted, spent) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for thread in 0..3 {
                let (grid, volume, adding) = (&grid, &volume, &adding);
                let (predicted, spent) = (&predicted, &spent);
                scope.spawn(move || {
                    // The last patches first, so that boxes wait for those of other threads.
                    for index in (0..grid.len()).rev().filter(|index| index % 3 == thread) {
                        let predict = |region: Region| {
                            let patch = grid.get(index).unwrap();
                            assert_eq!(patch.intersection(&region), Some(region));
                            predicted.fetch_add(1, Ordering::Relaxed);
                            Ok(part(volume, region))
                        };
                        let count = |_| {
                            spent.fetch_add(1, Ordering::Relaxed);
                        };
                        adding.add_by_boxes(index, &predict, &count).unwrap();
                    }
                });
            }
        });
        let stats = adding.finish().unwrap();
        assert_eq!((stats.patches, stats.skipped), (grid.len(), 0));
        assert_eq!(
            boxes.memory.to_patch(),
            whole.memory.to_patch(),
            "{blend:?}"
        );
        let (predicted, spent) = (predicted.into_inner(), spent.into_inner());
        assert!(predicted >= usize::try_from(grid.len()).unwrap());
        assert_eq!(spent, predicted, "every prediction is given back once");
    }
}

#[test]
fn a_value_that_is_not_finite_is_named_with_its_place_in_the_patch() {
    let grid = Grid::new([40, 40, 40], [16, 16, 16], [8, 8, 8]).unwrap();
    for blend in [Blend::Hann, Blend::Crop] {
        let options = AggregatorOptions::new(blend, Reduce::Mean).with_all_vote(true);
        let output = Recording::new(layout(grid.volume(), 2, DType::F32, None));
        let adding = aggregator(&grid, options, &output);
        let bad = [19, 21, 27];
        let predict = |region: Region| {
            let mut patch = noise(region, 2, 1);
            let at: [i64; 3] = std::array::from_fn(|a| bad[a] - region.start[a]);
            if (0..3).all(|a| (0..i64::try_from(region.shape[a]).unwrap()).contains(&at[a])) {
                let [z, y, x] = at.map(|n| usize::try_from(n).unwrap());
                let [nz, ny, nx] = region.shape.map(super::count);
                let voxels: &mut [f32] = patch.as_mut_slice().unwrap();
                voxels[((nz + z) * ny + y) * nx + x] = f32::NAN;
            }
            Ok(patch)
        };
        let failed = (0..grid.len()).find_map(|index| {
            let added = adding.add_by_boxes(index, &predict, &drop);
            added.err().map(|error| (index, error))
        });
        let Some((
            _,
            Error::NotFinite {
                index, region, at, ..
            },
        )) = failed
        else {
            panic!("{failed:?}");
        };
        assert_eq!(Some(region), grid.get(index));
        let [c, z, y, x] = at.map(|n| i64::try_from(n).unwrap());
        let [first, second, third] = region.start;
        assert_eq!((c, [z + first, y + second, x + third]), (1, bad));
    }
}

#[test]
fn boxes_are_refused_where_a_patch_is_needed_whole() {
    let inside = Grid::new([40, 40, 40], [16, 16, 16], [8, 8, 8]).unwrap();
    let hanging = GridOptions {
        placement: GridPlacement::Padded,
        margin: [3, 3, 3],
        fit: true,
    };
    let hanging = Grid::with_options([40; 3], [16; 3], [8; 3], &hanging).unwrap();
    let options = |blend| AggregatorOptions::new(blend, Reduce::Mean);
    for (grid, options) in [
        // The whole patch may be left out.
        (
            &inside,
            options(Blend::Hann).with_non_finite(NonFinite::LeaveOut),
        ),
        // A patch may take the place of one that is skipped.
        (&inside, options(Blend::Crop)),
        // The sums are elsewhere.
        (&inside, options(Blend::Hann).with_sums_elsewhere(true)),
        (&hanging, options(Blend::Hann).with_all_vote(true)),
    ] {
        let output = Recording::new(layout(grid.volume(), 2, DType::F32, None));
        let adding = aggregator(grid, options, &output);
        assert!(!adding.takes_boxes());
        let predict = |region| Ok(noise(region, 2, 1));
        let refused = adding.add_by_boxes(0, &predict, &drop);
        assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
        assert!(adding.needs(0), "it was not added");
    }
    let output = Recording::new(layout([40; 3], 2, DType::F32, Some([8; 3])));
    let output = Box::new(Output(output));
    let some = |[z, ..]: [u64; 3]| z == 0;
    let options = options(Blend::Hann);
    let some = Aggregator::of_chunks(inside, 2, options, output, Some(&some)).unwrap();
    assert!(!some.takes_boxes(), "others check the rest of the patch");
}
