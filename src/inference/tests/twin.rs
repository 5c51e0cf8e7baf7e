//! Random runs, each compared with the aggregator's brute-force twin.

use super::*;
use crate::aggregator::twin::{Said, TwinRandom, cases, compare};
use crate::aggregator::{Accumulator, NonFinite, Skipped};
use crate::dtype::{Element, with_element};
use crate::region::indices;
use crate::volume::{Durability, OutputPart};

/// A volume of `f64` in memory: channels, shape and voxels.
struct Dense {
    channels: usize,
    shape: Shape,
    voxels: Vec<f64>,
}

impl Dense {
    fn new(random: &mut TwinRandom) -> Self {
        let shape: Shape = std::array::from_fn(|_| 4 + random.below(24));
        let channels = usize::try_from(1 + random.below(2)).unwrap();
        let count = channels * usize::try_from(Region::whole(shape).voxels()).unwrap();
        let value = |random: &mut TwinRandom| f64::from(u8::try_from(random.below(250)).unwrap());
        Self {
            channels,
            shape,
            voxels: (0..count).map(|_| value(random)).collect(),
        }
    }

    fn volume(&self, random: &mut TwinRandom) -> Arc<dyn Volume> {
        fn of<T: Element>(dense: &Dense) -> MemoryVolume
        where
            Vec<T>: Into<crate::patch::Voxels>,
        {
            let voxels = dense
                .voxels
                .iter()
                .map(|&value| T::from_f64(value))
                .collect();
            MemoryVolume::from_vec::<T>(dense.shape, dense.channels as u64, voxels).unwrap()
        }
        let volume = match random.below(4) {
            0 => of::<u8>(self),
            1 => of::<i16>(self),
            2 => of::<f32>(self),
            _ => of::<f64>(self),
        };
        Arc::new(if random.one_in(2) {
            volume.with_chunks([1, 5, 6, 7])
        } else {
            volume
        })
    }

    /// Returns a voxel that may be beyond the faces.
    fn at(&self, channel: usize, voxel: [i64; 3], padding: Padding) -> f64 {
        let mut n = channel as u64;
        for (a, &at) in voxel.iter().enumerate() {
            let length = i64::try_from(self.shape[a]).unwrap();
            let inside = if (0..length).contains(&at) {
                at
            } else {
                match padding {
                    Padding::Constant(value) => return value,
                    Padding::Edge => at.clamp(0, length - 1),
                    Padding::Wrap => at.rem_euclid(length),
                    Padding::Reflect => {
                        let mut at = at;
                        while !(0..length).contains(&at) {
                            at = if at < 0 { -at } else { 2 * (length - 1) - at };
                        }
                        at
                    }
                }
            };
            n = n * self.shape[a] + inside.unsigned_abs();
        }
        self.voxels[usize::try_from(n).unwrap()]
    }

    /// Returns `true` if a region of a volume of a different shape overlaps foreground of this volume as its mask.
    fn meets(&self, volume: Shape, region: Region) -> bool {
        let along = |a: usize, m: u64| {
            let (m, length) = (i128::from(m), i128::from(self.shape[a]));
            let (from, to) = (m * i128::from(volume[a]), (m + 1) * i128::from(volume[a]));
            from < i128::from(region.end()[a]) * length && to > i128::from(region.start[a]) * length
        };
        indices(self.shape.map(|n| 0..n)).any(|[z, y, x]| {
            let voxel = [z, y, x].map(|n| i64::try_from(n).unwrap());
            let set = (0..self.channels).any(|c| self.at(c, voxel, Padding::Edge) != 0.0);
            set && along(0, z) && along(1, y) && along(2, x)
        })
    }
}

/// A model whose predictions of a voxel differ from patch to patch, and may not be finite.
#[derive(Clone, Debug)]
struct Odd {
    spec: OutputSpec,
    spoils: bool,
}

impl Odd {
    fn new(random: &mut TwinRandom) -> Self {
        let dtype = random.pick(&[DType::F32, DType::F64, DType::F16, DType::I16]);
        let (halo, scale) = random.pick(&[
            ([0; 3], 1),
            ([0; 3], 1),
            ([1, 0, 2], 1),
            ([0; 3], 2),
            ([2; 3], 2),
        ]);
        Self {
            spec: OutputSpec {
                halo,
                scale,
                ..OutputSpec::new(1 + random.below(3), dtype)
            },
            spoils: random.one_in(2) && dtype.is_float(),
        }
    }

    /// Returns the channels of the prediction at a region; `at` returns channel 0 of an input voxel.
    fn values(&self, region: Region, at: &dyn Fn([i64; 3]) -> f64) -> (Region, Vec<f64>) {
        let OutputSpec {
            halo,
            scale,
            channels,
            ..
        } = self.spec;
        let scale = i64::try_from(scale).unwrap();
        let start: [i64; 3] = std::array::from_fn(|a| {
            (region.start[a] + i64::try_from(halo[a]).unwrap()).div_euclid(scale)
        });
        let shape = std::array::from_fn(|a| (region.shape[a] - 2 * halo[a]) / scale.unsigned_abs());
        let salt = Self::salt(region);
        let mut values = Vec::new();
        for c in 0..channels {
            for place in indices(shape.map(|n| 0..n)) {
                let voxel = std::array::from_fn(|a| {
                    region.start[a]
                        + i64::try_from(halo[a]).unwrap()
                        + i64::try_from(place[a]).unwrap() * scale
                });
                let part = f64::from(u8::try_from(c + 1).unwrap()) / 4.0;
                values.push(at(voxel) * part + f64::from(u8::try_from(salt % 11).unwrap()));
            }
        }
        let stored = |value: f64| with_element!(self.spec.dtype, T => T::from_f64(value).to_f64());
        (
            Region::new(start, shape),
            values.into_iter().map(stored).collect(),
        )
    }

    fn salt(region: Region) -> u64 {
        let mixed = region.start.iter().fold(7_i64, |n, &at| n * 31 + at);
        mixed.unsigned_abs()
    }

    fn is_spoilt(&self, region: Region) -> bool {
        self.spoils && Self::salt(region).is_multiple_of(5)
    }

    fn model(&self) -> Arc<dyn Model> {
        let odd = self.clone();
        let predict = move |batch: Vec<Patch>| {
            let one = |patch: &Patch| {
                let region = patch.region();
                let view = patch.view::<f32>().unwrap();
                let at = |voxel: [i64; 3]| {
                    let [z, y, x]: [usize; 3] = std::array::from_fn(|a| {
                        usize::try_from(voxel[a] - region.start[a]).unwrap()
                    });
                    f64::from(view[[0, z, y, x]])
                };
                let (place, mut values) = odd.values(region, &at);
                if odd.is_spoilt(region) {
                    values[0] = f64::NAN;
                }
                let out = Patch::new(place, odd.spec.channels, values).unwrap();
                out.converted(odd.spec.dtype)
            };
            Ok(vec![batch.iter().map(one).collect()])
        };
        Arc::new(BatchModel::new(vec![self.spec.clone()], predict).with_id("odd"))
    }
}

fn settings(random: &mut TwinRandom) -> InferenceOptions {
    let patch: Shape = std::array::from_fn(|_| 4 + random.below(9));
    let patch = if random.one_in(2) {
        patch.map(|n| n.next_multiple_of(4))
    } else {
        patch
    };
    let overlap = patch.map(|n| match random.below(3) {
        0 => n / 2,
        1 => n / 4,
        _ => random.below(n),
    });
    let padding = random.pick(&[
        None,
        Some(Padding::Constant(3.0)),
        Some(Padding::Edge),
        Some(Padding::Reflect),
        Some(Padding::Wrap),
    ]);
    let spread = std::array::from_fn(|_| 2 + random.below(8));
    InferenceOptions {
        placement: random.pick(&[
            GridPlacement::Edge,
            GridPlacement::Even,
            GridPlacement::Padded,
            GridPlacement::Padded,
            GridPlacement::Spread(spread),
        ]),
        padding,
        margin: if padding.is_some() {
            std::array::from_fn(|_| random.below(6))
        } else {
            [0; 3]
        },
        memory: 1 << 30,
        threads: usize::try_from(1 + random.below(3)).unwrap(),
        batch_size: usize::try_from(1 + random.below(3)).unwrap(),
        ..InferenceOptions::new(patch).with_overlap(overlap)
    }
}

fn target(random: &mut TwinRandom, path: &Path, odd: &Odd) -> OutputTarget {
    let blend = random.pick(&[
        Blend::Average,
        Blend::Hann,
        Blend::GAUSSIAN,
        Blend::Gaussian { sigma: 0.03 },
        Blend::NnUnet,
        Blend::Linear,
        Blend::Crop,
        Blend::Crop,
    ]);
    let reduce = random.pick(&[
        Reduce::Mean,
        Reduce::Mean,
        Reduce::Argmax,
        Reduce::Threshold(40.0),
    ]);
    let mut target = OutputTarget::new(path)
        .with_blend(blend)
        .with_reduce(reduce);
    target.blending.accumulator =
        random.pick(&[Accumulator::F32, Accumulator::F16, Accumulator::BF16]);
    if odd.spoils {
        target.blending.non_finite = NonFinite::LeaveOut;
    }
    target.blending.fill = random.pick(&[0.0, 1.0, 99.0]);
    if random.one_in(3) {
        target.blending.skipped =
            Skipped::Vote(vec![5.0; usize::try_from(odd.spec.channels).unwrap()]);
    }
    target.store.chunk = [4; 3];
    target.store.shard = random.pick(&[None, Some([8; 3])]);
    target
}

/// Returns the plan: in passes if `tight` and possible.
fn planned(
    what: &InferenceOptions,
    layout: &Layout,
    model: &dyn Model,
    target: &OutputTarget,
    tight: bool,
) -> Option<Schedule> {
    let plan =
        |what: &InferenceOptions| what.plan(layout, model, std::slice::from_ref(target)).ok();
    let whole = plan(what)?;
    if !tight {
        return Some(whole);
    }
    let least = whole.peak_bytes - whole.cache_bytes - whole.reorder_bytes;
    let memory = least.saturating_sub(whole.live_bytes / 2) * 16 / 15 + 16;
    let narrow = InferenceOptions {
        memory,
        ..what.clone()
    };
    Some(plan(&narrow).unwrap_or(whole))
}

#[test]
fn every_run_equals_its_brute_force_twin() {
    let wanted = cases(60);
    let (mut tried, mut in_passes, mut in_parts, mut masked, mut compared) = (0, 0, 0, 0, 0);
    for seed in 0.. {
        if tried >= wanted {
            break;
        }
        let mut random = TwinRandom::new(seed);
        let random = &mut random;
        let dir = scratch();
        let path = dir.path().join("out.zarr");
        let (dense, odd) = (Dense::new(random), Odd::new(random));
        let (volume, model) = (dense.volume(random), odd.model());
        let target = target(random, &path, &odd);
        let has_mask = random.one_in(2);
        let mut what = settings(random);
        what.masked = has_mask && random.one_in(2);
        let tight = random.one_in(3);
        let Some(mut plan) = planned(&what, volume.layout(), &*model, &target, tight) else {
            continue;
        };
        if plan.grid.len() > 500 {
            continue;
        }
        let mut mask = Dense::new(random);
        let rare = random.pick(&[3, 30, 300]);
        mask.voxels
            .iter_mut()
            .for_each(|value| *value = f64::from(u8::from(random.one_in(rare))));
        if has_mask {
            let patch_mask = PatchMask::from_volume(&plan.grid, &*mask.volume(random)).unwrap();
            let Ok(chosen) = plan.with_patch_mask(patch_mask) else {
                continue;
            };
            plan = chosen;
            masked += 1;
        }
        tried += 1;
        let case = format!(
            "case {seed}: {what:?} {target:?} {odd:?} of {:?}",
            dense.shape
        );
        let (grid, outputs) = (plan.grid.clone(), plan.outputs.clone());
        in_passes += u64::from(plan.passes() > 1);
        let parts = if random.one_in(4) {
            u32::try_from(2 + random.below(2)).unwrap()
        } else {
            1
        };
        in_parts += u64::from(parts > 1);
        for part in random.shuffled(parts.into()) {
            let mut plan = plan.clone();
            if parts > 1 {
                let part = OutputPart::new(u32::try_from(part).unwrap(), parts).unwrap();
                let Ok(with_part) = plan.with_part(part, Durability::None) else {
                    break;
                };
                plan = with_part;
            }
            plan.run(Arc::clone(&volume), Arc::clone(&model), &silent)
                .unwrap_or_else(|error| panic!("{error}: {case}"));
        }
        let Ok(out) = open(&path) else { continue };
        let out = out.read(Region::whole(out.layout().shape)).unwrap();
        let padding = what.padding.unwrap_or(Padding::Edge);
        let said = |region: Region| {
            if has_mask && !mask.meets(dense.shape, region) {
                return match &target.blending.skipped {
                    Skipped::Vote(values) => {
                        Said::Constant(values.iter().map(|&v| v.into()).collect())
                    }
                    Skipped::Renormalize => Said::Nothing,
                };
            }
            if odd.is_spoilt(region) {
                return Said::Nothing;
            }
            Said::Values(odd.values(region, &|voxel| dense.at(0, voxel, padding)).1)
        };
        let said: Vec<Said> = grid.iter().map(said).collect();
        let channels = usize::try_from(odd.spec.channels).unwrap();
        let verdict = compare(
            (&outputs[0].grid, &outputs[0].blending),
            &said,
            channels,
            &out,
            &|_| true,
        );
        if let Some(wrong) = verdict.wrong {
            panic!("{wrong}\n{case}");
        }
        compared += verdict.compared;
    }
    assert!(wanted < 60 || (in_passes > 0 && in_parts > 0 && masked > 0));
    println!(
        "{tried} runs, {in_passes} in passes, {in_parts} in parts, {masked} with a mask: {compared} voxels compared"
    );
}
