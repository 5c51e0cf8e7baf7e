//! Models that predict patches box by box give what they give for whole patches.

use std::sync::Mutex;

use super::*;
use crate::aggregator::twin::TwinRandom;
use crate::aggregator::{Accumulator, NonFinite, Skipped};

/// A model that notes the boxes that it predicts, and says or does not say that it is pointwise.
#[derive(Debug)]
struct Noted {
    model: Arc<dyn Model>,
    is_pointwise: bool,
    boxes: Mutex<Vec<Region>>,
}

impl Model for Noted {
    fn input(&self) -> InputValues {
        self.model.input()
    }

    fn is_pointwise(&self) -> bool {
        self.is_pointwise
    }

    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<OutputSpec>> {
        self.model.outputs(input, patch)
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.boxes
            .lock()
            .unwrap()
            .extend(batch.iter().map(Patch::region));
        self.model.predict(batch)
    }
}

/// The names and contents of files.
type Files = Vec<(std::path::PathBuf, Vec<u8>)>;

/// Runs a model box by box or with whole patches. Returns the files of the output and the boxes that were predicted.
fn outcome(
    what: &InferenceOptions,
    volume: &Arc<dyn Volume>,
    model: &str,
    target: &OutputTarget,
    is_pointwise: bool,
) -> (Result<(InferenceStats, Files)>, Vec<Region>) {
    let noted = Arc::new(Noted {
        model: builtin_model(model).unwrap(),
        is_pointwise,
        boxes: Mutex::default(),
    });
    let mut plan = what
        .plan(volume.layout(), &*noted, std::slice::from_ref(target))
        .unwrap();
    if what.masked {
        let mask = PatchMask::new(&plan.grid, |index, _| index % 3 != 1);
        plan = plan.with_patch_mask(mask).unwrap();
    }
    let done = plan.run(Arc::clone(volume), Arc::<Noted>::clone(&noted), &silent);
    let done = done.map(|stats| {
        let files = files(&target.path);
        fs::remove_dir_all(&target.path).unwrap();
        (stats, files)
    });
    let mut boxes = noted.boxes.lock().unwrap().clone();
    boxes.sort_by_key(|region| (region.start, region.shape));
    (done, boxes)
}

/// Returns a model and its output, with random options.
fn random_target(random: &mut TwinRandom, path: &Path) -> (&'static str, OutputTarget) {
    let blend = match random.below(5) {
        0 => Blend::Average,
        1 => Blend::GAUSSIAN,
        2 => Blend::Crop,
        _ => Blend::Hann,
    };
    let (model, reduce, channels) = if random.one_in(2) {
        ("identity", Reduce::Mean, 1)
    } else {
        ("threshold:-200,900", Reduce::Argmax, 3)
    };
    let mut target = target(path, blend, reduce);
    target.blending.accumulator = match random.below(3) {
        0 => Accumulator::F16,
        _ => Accumulator::F32,
    };
    target.blending.non_finite = match random.below(6) {
        0 | 1 => NonFinite::Keep,
        2 => NonFinite::LeaveOut,
        _ => NonFinite::Refuse,
    };
    if random.one_in(2) {
        target.blending.skipped = Skipped::Vote(vec![0.25; channels]);
    }
    (model, target)
}

#[test]
fn boxes_of_patches_give_the_bytes_of_whole_patches() {
    let dir = scratch();
    let mut random = TwinRandom::new(3);
    let (mut by_boxes, mut cropped, mut whole, mut refused) = (0, 0, 0, 0);
    for n in 0..200 {
        let shape: Shape = std::array::from_fn(|_| 20 + random.below(40));
        let count = usize::try_from(Region::whole(shape).voxels()).unwrap();
        let mut voxels: Vec<f32> = (0..count)
            .map(|_| f32::from(u16::try_from(random.below(4000)).unwrap()) - 1000.0)
            .collect();
        let has_nan = random.one_in(5);
        if has_nan {
            voxels[usize::try_from(random.below(count as u64)).unwrap()] = f32::NAN;
        }
        let volume = MemoryVolume::from_vec(shape, 1, voxels).unwrap();
        let volume: Arc<dyn Volume> = Arc::new(match random.below(3) {
            0 => volume,
            1 => volume.with_chunks([1, 8, 8, 8]),
            _ => volume.with_chunks([1, 5, 6, 7]),
        });
        let patch: Shape = std::array::from_fn(|_| 10 + random.below(11));
        let overlap: Shape = std::array::from_fn(|a| random.below(patch[a] / 2 + 1));
        let (model, target) = random_target(&mut random, &dir.path().join(format!("{n}.zarr")));
        let (masked, blend) = (random.one_in(4), &target.blending.blend);
        let what = InferenceOptions {
            masked,
            threads: 1 + usize::try_from(random.below(3)).unwrap(),
            batch_size: 1 + usize::try_from(random.below(3)).unwrap(),
            placement: if random.one_in(6) {
                GridPlacement::Padded
            } else {
                GridPlacement::default()
            },
            ..InferenceOptions::new(patch).with_overlap(overlap)
        };
        let run = |is_pointwise| outcome(&what, &volume, model, &target, is_pointwise);
        let ((found, boxes), (expected, patches)) = (run(true), run(false));
        match (found, expected) {
            (Ok((stats, found)), Ok((expected_stats, expected))) => {
                assert!(found == expected, "{n}: {what:?}");
                assert_eq!(stats.patches, expected_stats.patches);
                let counts = |stats: &InferenceStats| {
                    let output = &stats.outputs[0];
                    (output.patches, output.skipped, output.uncovered_voxels)
                };
                assert_eq!(counts(&stats), counts(&expected_stats));
                let voxels = |boxes: &[Region]| boxes.iter().map(Region::voxels).sum::<u64>();
                if boxes == patches {
                    whole += 1;
                } else if *blend == Blend::Crop {
                    cropped += 1;
                    assert!(voxels(&boxes) <= voxels(&patches));
                } else {
                    by_boxes += 1;
                    let (boxes, patches) = (voxels(&boxes), voxels(&patches));
                    assert_eq!(boxes, patches, "each voxel of a patch is predicted once");
                }
            }
            (
                Err(Error::NotFinite { region, at, .. }),
                Err(Error::NotFinite {
                    region: expected,
                    at: there,
                    ..
                }),
            ) => {
                refused += 1;
                let voxel = |region: Region, at: [u64; 4]| -> [u64; 3] {
                    std::array::from_fn(|a| region.start[a].unsigned_abs() + at[a + 1])
                };
                assert_eq!(voxel(region, at), voxel(expected, there), "{n}: the NaN");
            }
            // The voxel is kept of no patch that is predicted: box by box, it is not looked at.
            (Ok(_), Err(Error::NotFinite { .. })) if masked && *blend == Blend::Crop => {}
            (found, expected) => panic!("{n}: {found:?} instead of {expected:?}"),
        }
    }
    assert!(
        by_boxes >= 40 && cropped >= 20 && whole >= 50 && refused >= 6,
        "{by_boxes} {cropped} {whole} {refused}"
    );
}
