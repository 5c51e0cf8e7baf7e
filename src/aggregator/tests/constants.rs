//! Constants that an output cannot represent, values that sums cannot represent, and batches with one wrong patch.

use super::*;

fn grid() -> Grid {
    Grid::new([24, 21, 19], [8, 8, 7], [4, 3, 3]).unwrap()
}

fn made(
    options: AggregatorOptions,
    channels: u64,
    output: DType,
) -> Result<(Aggregator, Arc<Recording>)> {
    let stored = options.reduce.channels(channels);
    let options = AggregatorOptions {
        average_integers: true,
        clip: true,
        ..options
    };
    let recording = Recording::new(layout(grid().volume(), stored, output, Some([8; 3])));
    let sink = Box::new(Output(Arc::clone(&recording)));
    Ok((Aggregator::new(grid(), channels, options, sink)?, recording))
}

fn constant<T: Element>(region: Region, value: T) -> Patch
where
    Vec<T>: Into<crate::patch::Voxels>,
{
    let count = usize::try_from(region.voxels()).unwrap();
    Patch::new(region, 1, vec![value; count]).unwrap()
}

#[test]
fn constants_that_the_output_cannot_hold_are_refused() {
    // For each type, numbers that it can represent, and numbers that it cannot.
    let tables: [(DType, &[f64], &[f64]); 10] = [
        (
            DType::Bool,
            &[0.0, 1.0, -0.0],
            &[7.0, -1.0, 2.0, 0.5, f64::NAN, f64::INFINITY],
        ),
        (
            DType::U8,
            &[0.0, 255.0],
            &[-1.0, 256.0, 0.5, f64::NAN, 1e300],
        ),
        (
            DType::I8,
            &[-128.0, 127.0],
            &[-129.0, 128.0, -0.5, f64::NEG_INFINITY],
        ),
        (DType::U16, &[65_535.0], &[65_536.0, -1.0, 1.5]),
        (
            DType::I16,
            &[-32_768.0, -1024.0],
            &[-32_769.0, 32_768.0, f64::NAN],
        ),
        (
            DType::I64,
            &[-9_223_372_036_854_775_808.0, 9_223_372_036_854_774_784.0],
            &[9_223_372_036_854_775_808.0],
        ),
        (
            DType::U64,
            &[18_446_744_073_709_549_568.0],
            &[18_446_744_073_709_551_616.0, -1.0],
        ),
        (
            DType::F16,
            &[0.1, -65_519.0, f64::NAN, f64::INFINITY],
            &[65_520.0, -1e9],
        ),
        (
            DType::F32,
            &[0.1, 3.402_823_5e38, f64::NEG_INFINITY],
            &[3.5e38],
        ),
        (DType::F64, &[1e300, -0.1, f64::NAN], &[]),
    ];
    for (dtype, right, wrong) in tables {
        for (values, is_right) in [(right, true), (wrong, false)] {
            for &value in values {
                assert_eq!(dtype.holds_value(value), is_right, "{dtype} {value}");
                for blend in [Blend::Hann, Blend::Crop] {
                    let fill = AggregatorOptions {
                        fill: value,
                        ..AggregatorOptions::new(blend.clone(), Reduce::Mean)
                    };
                    let made = made(fill, 1, dtype);
                    assert_eq!(made.is_ok(), is_right, "a fill of {value} in {dtype}");
                    if let Err(error) = made {
                        assert!(
                            matches!(
                                error,
                                Error::InvalidArgument {
                                    argument: "fill value",
                                    ..
                                }
                            ),
                            "{error}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn votes_and_reduced_values_that_the_output_cannot_hold_are_refused() {
    let votes: [(Blend, DType, f32, bool); 13] = [
        (Blend::Hann, DType::Bool, 1.0, true),
        (Blend::Hann, DType::Bool, 7.0, false),
        (Blend::Crop, DType::Bool, -1.0, false),
        (Blend::Hann, DType::U8, 0.5, true),
        (Blend::Crop, DType::U8, 0.5, false),
        (Blend::Hann, DType::U8, -1.0, false),
        (Blend::Crop, DType::I16, -1024.0, true),
        (Blend::Hann, DType::I16, 40_000.0, false),
        (Blend::Hann, DType::F16, 70_000.0, false),
        (Blend::Crop, DType::F16, 70_000.0, false),
        (Blend::Hann, DType::F32, 70_000.0, true),
        (Blend::Hann, DType::F32, f32::NAN, false),
        (Blend::Crop, DType::F32, f32::INFINITY, false),
    ];
    for (blend, dtype, value, is_right) in votes {
        let options = AggregatorOptions {
            skipped: Skipped::Vote(vec![value]),
            ..AggregatorOptions::new(blend.clone(), Reduce::Mean)
        };
        assert_eq!(
            made(options, 1, dtype).is_ok(),
            is_right,
            "a vote of {value} in {dtype}, {blend:?}"
        );
    }
    let quantize = || Reduce::Quantize {
        low: 0.0,
        high: 1.0,
    };
    for (reduce, dtype, is_right) in [
        (quantize(), DType::U8, true),
        (quantize(), DType::I8, false),
        (quantize(), DType::Bool, false),
        (Reduce::Labels([0, 300].into()), DType::U8, false),
        (Reduce::Labels([0, 1].into()), DType::Bool, true),
        (Reduce::Labels([0, 7].into()), DType::Bool, false),
    ] {
        let options = AggregatorOptions::new(Blend::Hann, reduce.clone());
        assert_eq!(
            made(options, 2, dtype).is_ok(),
            is_right,
            "{reduce:?} {dtype}"
        );
    }
}

#[test]
fn values_that_sums_or_the_output_cannot_hold_are_not_finite() {
    let narrow = |accumulator, non_finite, blend| AggregatorOptions {
        accumulator,
        non_finite,
        all_vote: true,
        ..AggregatorOptions::new(blend, Reduce::Mean)
    };
    let refused = |options: AggregatorOptions, output: DType, patch: &dyn Fn(Region) -> Patch| {
        let (aggregator, _) = made(options, 1, output).unwrap();
        let region = grid().get(3).unwrap();
        match aggregator.add(3, patch(region)) {
            Ok(()) => false,
            Err(Error::NotFinite {
                index: 3,
                at: [0, 0, 0, 0],
                ..
            }) => true,
            Err(error) => panic!("{error}"),
        }
    };
    let cases: [(Accumulator, Blend, DType, f64, bool); 16] = [
        (Accumulator::F16, Blend::Hann, DType::F32, 65_504.0, false),
        (Accumulator::F16, Blend::Hann, DType::F32, 65_519.0, false),
        (Accumulator::F16, Blend::Hann, DType::F32, -65_520.0, true),
        (Accumulator::F16, Blend::Hann, DType::F64, 1e300, true),
        (Accumulator::BF16, Blend::Hann, DType::F32, 3.0e38, false),
        (Accumulator::BF16, Blend::Hann, DType::F32, 3.4e38, true),
        (Accumulator::F32, Blend::Hann, DType::F32, 3.4e38, false),
        (
            Accumulator::F32,
            Blend::Hann,
            DType::F64,
            3.402_823_4e38,
            false,
        ),
        (Accumulator::F32, Blend::Hann, DType::F64, 1e39, true),
        (Accumulator::F32, Blend::Hann, DType::F16, 65_519.0, false),
        (Accumulator::F32, Blend::Hann, DType::F16, 70_000.0, true),
        (Accumulator::F32, Blend::Crop, DType::F64, 1e300, false),
        (Accumulator::F32, Blend::Crop, DType::F32, 1e300, true),
        (Accumulator::F16, Blend::Crop, DType::F32, 70_000.0, false),
        (Accumulator::F32, Blend::Crop, DType::F16, -70_000.0, true),
        (Accumulator::F32, Blend::Crop, DType::I16, 70_000.0, false),
    ];
    for (accumulator, blend, output, value, is_refused) in cases {
        let options = |non_finite| narrow(accumulator, non_finite, blend.clone());
        let patch = |region| constant(region, value);
        let what = format!("{accumulator:?} {blend:?} {output} {value}");
        assert_eq!(
            refused(options(NonFinite::Refuse), output, &patch),
            is_refused,
            "{what}"
        );
        assert!(!refused(options(NonFinite::Keep), output, &patch), "{what}");
        if value.abs() < 1e9 {
            let number = i32::from_f64(value);
            let whole = |region| constant(region, number);
            assert_eq!(
                refused(options(NonFinite::Refuse), output, &whole),
                is_refused,
                "{what}"
            );
        }
        // The largest finite values pass unchanged.
        if !is_refused {
            let (aggregator, recording) = made(options(NonFinite::Refuse), 1, output).unwrap();
            for (index, region) in (0..).zip(grid().iter()) {
                aggregator.add(index, patch(region)).unwrap();
            }
            aggregator.finish().unwrap();
            let stored = with_element!(output, T => T::from_f64(value).to_f64());
            let out = recording.memory.to_patch().converted(DType::F64);
            for found in out.as_slice::<f64>().unwrap() {
                assert!((found / stored - 1.0).abs() < 3e-2, "{what}: {found}");
            }
        }
    }
}

#[test]
fn a_batch_is_added_whole_or_not_at_all() {
    let good = |index: u64| Arc::new(noise(grid().get(index).unwrap(), 1, index));
    let narrow = Arc::new(noise(Region::new([0; 3], [8, 8, 6]), 1, 0));
    let wide = Arc::new(noise(grid().get(4).unwrap(), 2, 0));
    let spoilt = Arc::new(constant(grid().get(4).unwrap(), f32::NAN));
    for blend in [Blend::Hann, Blend::Crop] {
        let options = AggregatorOptions::new(blend, Reduce::Mean);
        let (aggregator, recording) = made(options.clone(), 1, DType::F32).unwrap();
        aggregator.add(9, good(9)).unwrap();
        for bad in [
            (4, Arc::clone(&narrow)),
            (4, Arc::clone(&wide)),
            (4, Arc::clone(&spoilt)),
            (9, good(9)),
            (2, good(2)),
            (grid().len(), good(0)),
        ] {
            let batch = vec![(2, good(2)), (3, good(3)), bad, (5, good(5))];
            aggregator.add_batch(batch).unwrap_err();
        }
        // None of those was added, so all may be added now.
        let rest = (0..grid().len()).filter(|&index| index != 9);
        aggregator
            .add_batch(rest.map(|index| (index, good(index))).collect())
            .unwrap();
        let done = aggregator.finish().unwrap();
        assert_eq!((done.patches, done.skipped), (grid().len(), 0));
        let (plain, expected) = made(options, 1, DType::F32).unwrap();
        for index in 0..grid().len() {
            plain.add(index, good(index)).unwrap();
        }
        plain.finish().unwrap();
        assert_eq!(recording.memory.to_patch(), expected.memory.to_patch());
    }
}

#[test]
fn a_patch_that_votes_alone_decides_however_little_it_weighs() {
    for blend in [
        Blend::GAUSSIAN,
        Blend::Gaussian { sigma: 1.0 / 64.0 },
        Blend::Gaussian { sigma: 1e-3 },
        Blend::Gaussian { sigma: 1e-200 },
        Blend::NnUnet,
        Blend::Hann,
        Blend::Custom(
            Window::new(
                [8, 8, 7],
                (0..448_u16)
                    .map(|n| 1e-38 + f32::from(n % 2) * 1e38)
                    .collect(),
            )
            .unwrap(),
        ),
    ] {
        for accumulator in [Accumulator::F32, Accumulator::F16, Accumulator::BF16] {
            if !blend.is_product() && accumulator != Accumulator::F32 {
                continue;
            }
            for lone in [0, 7, grid().len() / 2, grid().len() - 1] {
                let options = AggregatorOptions {
                    accumulator,
                    fill: -7.0,
                    ..AggregatorOptions::new(blend.clone(), Reduce::Mean)
                };
                let (aggregator, recording) = made(options, 1, DType::F32).unwrap();
                let region = grid().get(lone).unwrap();
                aggregator.add(lone, constant(region, 3.0_f32)).unwrap();
                let done = aggregator.finish_partial().unwrap();
                let covered = region.voxels();
                assert_eq!(
                    done.uncovered_voxels,
                    Region::whole(grid().volume()).voxels() - covered
                );
                let out = recording.memory.to_patch();
                let right = |value: &&f32| (**value - 3.0).abs() < 1e-5;
                let found = out.as_slice::<f32>().unwrap().iter().filter(right).count() as u64;
                assert_eq!(found, covered, "{blend:?} {accumulator:?}");
            }
        }
    }
}

#[test]
fn a_promise_that_every_patch_votes_is_held() {
    let options = AggregatorOptions {
        all_vote: true,
        ..AggregatorOptions::new(Blend::Crop, Reduce::Mean)
    };
    let (aggregator, _) = made(options.clone(), 1, DType::F32).unwrap();
    assert!(matches!(
        aggregator.skip(0),
        Err(Error::InvalidArgument { .. })
    ));
    assert!(matches!(
        aggregator.finish_partial(),
        Err(Error::MissingPatches { .. })
    ));
    let voting = AggregatorOptions {
        skipped: Skipped::Vote(vec![1.0]),
        ..options
    };
    let (aggregator, _) = made(voting, 1, DType::F32).unwrap();
    (0..grid().len()).for_each(|index| aggregator.skip(index).unwrap());
    assert_eq!(aggregator.finish_partial().unwrap().skipped, grid().len());
}
