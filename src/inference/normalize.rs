//! Normalization of a model's input.

use std::sync::Arc;

use super::ensemble::check_f32;
use super::schedule::Schedule;
use crate::error::Result;
use crate::normalize::Normalizer;
use crate::progress::Progress;
use crate::volume::Volume;

impl Schedule {
    /// Sets the normalization of the model's input. If it [measures](crate::Normalize::measures), this reads the
    /// volume once; `progress` counts the pieces.
    pub(super) fn normalized(
        mut self,
        normalizer: &Normalizer,
        volume: &Arc<dyn Volume>,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<Self> {
        if !normalizer.is_none() && !self.blender_normalizes {
            check_f32("normalization of", "the model", self.input)?;
        }
        self.scales = normalizer.scales_of(volume, threads, progress)?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::aggregator::Blend;
    use crate::dtype::DType;
    use crate::dtype::Element;
    use crate::inference::pool::PatchPool;
    use crate::inference::work::Reading;
    use crate::inference::{InferenceOptions, Model, OutputSpec, OutputTarget, builtin_model};
    use crate::normalize::Normalize;
    use crate::normalize::tests::{naive, values};
    use crate::pad::Padding;
    use crate::patch::Patch;
    use crate::progress::silent;
    use crate::region::{Region, Shape};
    use crate::training::Image;
    use crate::volume::Layout;
    use crate::volume::{MemoryVolume, RealValues, Rescale};

    /// A model that returns its input.
    #[derive(Debug)]
    struct Echo;

    impl Model for Echo {
        fn outputs(&self, input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
            Ok(vec![OutputSpec::new(input.channels, DType::F32)])
        }
        fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
            Ok(vec![batch])
        }
    }

    fn plan(volume: &Arc<dyn Volume>, model: &dyn Model) -> Schedule {
        let dir = tempfile::tempdir().unwrap();
        let target = OutputTarget::new(dir.path().join("out.npy")).with_blend(Blend::Crop);
        let layout = volume.layout();
        let inference = InferenceOptions::new(layout.shape).with_overlap([0; 3]);
        inference.plan(layout, model, &[target]).unwrap()
    }

    /// Returns the model's input at a region, padded with -7.
    fn given_at(normalize: Normalize, volume: impl Volume + 'static, region: Region) -> Vec<f32> {
        let volume: Arc<dyn Volume> = Arc::new(volume);
        let plan = plan(&volume, &Echo);
        let plan = plan
            .normalized(&normalize.into(), &volume, 2, &silent)
            .unwrap();
        let reading = Reading {
            padding: Padding::Constant(-7.0),
            input: plan.input,
            scales: plan.scales,
        };
        let given = reading
            .read(&*volume, region, &PatchPool::default())
            .unwrap();
        given.as_slice::<f32>().unwrap().to_vec()
    }

    fn given(normalize: Normalize, volume: impl Volume + 'static) -> Vec<f32> {
        let whole = Region::whole(Volume::layout(&volume).shape);
        given_at(normalize, volume, whole)
    }

    #[test]
    fn padding_is_in_normalized_units() {
        let volume = || MemoryVolume::from_vec([1, 1, 4], 1, vec![0_i16, 10, 20, 30]).unwrap();
        let region = Region::new([0, 0, -1], [1, 1, 6]);
        let ct = Normalize::Window {
            low: 0.0,
            high: 20.0,
        };
        let cut = given_at(ct, volume(), region);
        assert_eq!(cut, [-7.0, 0.0, 0.5, 1.0, 1.0, -7.0]);
        let scored = given_at(Normalize::ZScore, volume(), region);
        let inside = [-15.0, -5.0, 5.0, 15.0].map(|v| v / 125_f32.sqrt());
        for (found, expected) in scored[1..5].iter().zip(inside) {
            assert!((found - expected).abs() < 1e-6, "{scored:?}");
        }
        assert_eq!([scored[0], scored[5]], [-7.0; 2]);
    }

    #[test]
    fn training_gets_the_same_values() {
        let all = values();
        for chunk in [None, Some([1, 2, 4, 3])] {
            let volume = || {
                let volume = MemoryVolume::from_vec([5, 6, 7], 2, all.clone()).unwrap();
                match chunk {
                    Some(chunk) => volume.with_chunks(chunk),
                    None => volume,
                }
            };
            for normalize in [
                Normalize::ZScore,
                Normalize::Window {
                    low: -500.0,
                    high: 1500.0,
                },
                Normalize::ZScoreNonzero,
                "percentile:2,97.5".parse().unwrap(),
                "mean-std:10,3.5".parse().unwrap(),
                "nnunet-ct:-300,900,120,75".parse().unwrap(),
            ] {
                for region in [
                    Region::whole([5, 6, 7]),
                    Region::new([2, 1, 3], [2, 4, 3]),
                    Region::new([-2, 3, 4], [9, 4, 6]),
                ] {
                    let image = Image::new("ct", Arc::new(volume()))
                        .with_padding(Padding::Constant(-7.0))
                        .with_normalize(normalize.clone());
                    let trained = image.read(region).unwrap();
                    let predicted = given_at(normalize.clone(), volume(), region);
                    assert_eq!(trained.as_slice::<f32>().unwrap(), predicted);
                }
            }
        }
    }

    #[test]
    fn a_model_gets_normalized_values_of_each_channel() {
        let all = values();
        let volume = || MemoryVolume::from_vec([5, 6, 7], 2, all.clone()).unwrap();
        let scored = given(Normalize::ZScore, volume());
        for (scored, values) in scored.chunks(210).zip(all.chunks(210)) {
            let (mean, deviation) = naive(values);
            for (scored, value) in scored.iter().zip(values) {
                let expected = (value - mean) / deviation;
                assert!((f64::from(*scored) - expected).abs() < 1e-5);
            }
        }
        let cut = Normalize::Window {
            low: -500.0,
            high: 1500.0,
        };
        for (cut, value) in given(cut, volume()).iter().zip(&all) {
            let expected = (value.clamp(-500.0, 1500.0) + 500.0) / 2000.0;
            assert!((f64::from(*cut) - expected).abs() < 1e-6);
        }
        let plain: Vec<f64> = given(Normalize::None, volume())
            .into_iter()
            .map(f64::from)
            .collect();
        assert_eq!(plain, all);
    }

    #[test]
    fn every_normalization_equals_the_naive_one() {
        let all: Vec<i16> = (0..420_i16)
            .map(|n| {
                if n % 5 == 0 {
                    0
                } else {
                    n.wrapping_mul(7_919) / 9
                }
            })
            .collect();
        let volume = || MemoryVolume::from_vec([5, 6, 7], 2, all.clone()).unwrap();
        let check = |text: &str, naive: &dyn Fn(&[f64], f64) -> f64| {
            let found = given(text.parse().unwrap(), volume().with_chunks([1, 2, 4, 3]));
            for (found, own) in found.chunks(210).zip(all.chunks(210)) {
                let own: Vec<f64> = own.iter().map(|&value| value.into()).collect();
                for (found, &value) in found.iter().zip(&own) {
                    let expected = naive(&own, value);
                    assert!(
                        (f64::from(*found) - expected).abs() < 1e-5,
                        "{text} of {value}: {found} and not {expected}"
                    );
                }
            }
        };
        check("zscore:nonzero", &|own, value| {
            let others: Vec<f64> = own.iter().copied().filter(|value| *value != 0.0).collect();
            let (mean, deviation) = naive(&others);
            if value == 0.0 {
                0.0
            } else {
                (value - mean) / deviation
            }
        });
        check("percentile:10,90", &|own, value| {
            let mut sorted = own.to_vec();
            sorted.sort_by(f64::total_cmp);
            // 10 and 90 percent of 209: 20.9 and 188.1.
            let low = sorted[20] + 0.9 * (sorted[21] - sorted[20]);
            let high = sorted[188] + 0.1 * (sorted[189] - sorted[188]);
            (value.clamp(low, high) - low) / (high - low)
        });
        check("mean-std:-20,40", &|_, value| (value + 20.0) / 40.0);
        check("nnunet-ct:-900,700,33,250", &|_, value| {
            (value.clamp(-900.0, 700.0) - 33.0) / 250.0
        });
    }

    /// Returns the normalized values of a constant volume of two chunks and a part of a third.
    fn flat<T: Element>(value: T) -> Vec<f32>
    where
        Vec<T>: Into<crate::patch::Voxels>,
    {
        let volume = MemoryVolume::from_vec([3, 5, 70], 1, vec![value; 1050]).unwrap();
        given(Normalize::ZScore, volume.with_chunks([1, 2, 5, 70]))
    }

    #[test]
    fn a_constant_volume_of_any_type_becomes_zero() {
        let numbers = [
            0.1,
            1e6 + 0.1,
            -1.0 / 3.0,
            1e-30,
            1e30,
            7.0,
            16_777_217.0,
            1e308,
            0.0,
        ];
        for number in numbers {
            let zeros = [
                flat(u8::from_f64(number)),
                flat(i16::from_f64(number)),
                flat(u32::from_f64(number)),
                flat(i64::from_f64(number)),
                flat(f16::from_f64(number)),
                flat(f32::from_f64(number)),
                flat(f64::from_f64(number)),
            ];
            for (n, zeros) in zeros.iter().enumerate() {
                let infinite = number.abs() > 3e38 || (n == 4 && number.abs() > 65_519.0);
                assert!(
                    infinite || zeros.iter().all(|value| *value == 0.0),
                    "{number} {n}"
                );
            }
        }
        // Differences that f32 cannot represent do not count.
        let nearly: Vec<f64> = (0..1050_u32)
            .map(|n| 0.1 + 1e-12 * f64::from(n % 7))
            .collect();
        let volume = MemoryVolume::from_vec([3, 5, 70], 1, nearly).unwrap();
        assert!(
            given(Normalize::ZScore, volume)
                .iter()
                .all(|value| *value == 0.0)
        );
        // The same with slope and intercept.
        let rescale = Rescale {
            slope: 0.1,
            intercept: -1.0 / 3.0,
        };
        let layout = Layout {
            rescale: Some(rescale),
            ..Layout::new([3, 5, 70], 1, DType::I16)
        };
        let patch = Patch::new(Region::whole([3, 5, 70]), 1, vec![7_i16; 1050]).unwrap();
        let scaled = MemoryVolume::from_patch(layout, patch).unwrap();
        assert!(
            given(Normalize::ZScore, RealValues::of(Arc::new(scaled)))
                .iter()
                .all(|value| *value == 0.0)
        );
    }

    #[test]
    fn voxels_in_the_volume_s_own_type_cannot_be_normalized() {
        let volume: Arc<dyn Volume> =
            Arc::new(MemoryVolume::from_vec([1; 3], 1, vec![7_u8]).unwrap());
        let plan = || plan(&volume, &*builtin_model("identity").unwrap());
        let error = plan().normalized(&Normalize::ZScore.into(), &volume, 1, &silent);
        assert!(error.unwrap_err().to_string().contains("the volume's type"));
        assert!(
            plan()
                .normalized(&Normalize::None.into(), &volume, 1, &silent)
                .is_ok()
        );
    }
}
