//! Built-in models, which need no file: for trying a pipeline, and for seeing its seams.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::model::{InputValues, Model, OutputSpec};
use super::pool::PatchPool;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::patch::Patch;
use crate::region::Shape;
use crate::volume::Layout;

/// Returns the built-in model with a name: `identity`, `gaussian:SIGMA` (voxels) or `threshold:T[,T...]` (increasing,
/// in real values such as HU).
///
/// # Errors
///
/// [`Error::InvalidArgument`] if the model does not exist, or its numbers are not valid.
pub fn builtin_model(spec: &str) -> Result<Arc<dyn Model>> {
    let bad = |problem: &str| Error::InvalidArgument {
        argument: "model",
        value: spec.to_owned(),
        problem: problem.to_owned(),
    };
    let numbers = |list: &str| -> Result<Vec<f32>> {
        let parsed: Option<Vec<f32>> = list.split(',').map(|n| n.trim().parse().ok()).collect();
        parsed
            .filter(|list| list.iter().all(|n| n.is_finite()))
            .ok_or_else(|| bad("its numbers cannot be read"))
    };
    match spec.split_once(':') {
        None if spec == "identity" => Ok(Arc::new(Identity)),
        Some(("gaussian", list)) => match numbers(list)?[..] {
            [sigma] if sigma > 0.0 && sigma <= 64.0 => Ok(Arc::new(Gaussian::new(sigma))),
            _ => Err(bad("sigma is one number of voxels above 0, up to 64")),
        },
        Some(("threshold", list)) => {
            let thresholds = numbers(list)?;
            if thresholds.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(bad("thresholds must increase"));
            }
            Ok(Arc::new(Threshold { thresholds }))
        }
        _ => Err(bad(
            "the possible values are identity, gaussian:SIGMA and threshold:T[,T...]",
        )),
    }
}

/// A model that returns its input.
#[derive(Debug)]
struct Identity;

impl Model for Identity {
    fn id(&self) -> Result<String> {
        Ok(format!("{self:?}"))
    }

    fn input(&self) -> InputValues {
        InputValues::Native
    }

    fn is_pointwise(&self) -> bool {
        true
    }

    /// Integers of up to 16 bits may be averaged: the weighted mean of equal values is exact. Larger ones would be
    /// rounded.
    fn outputs(&self, input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
        Ok(vec![OutputSpec {
            average_integers: input.dtype.size() <= 2,
            ..OutputSpec::new(input.channels, input.dtype)
        }])
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        Ok(vec![batch])
    }

    fn predict_pooled(&self, batch: Vec<Patch>, _pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        self.predict(batch)
    }
}

/// A Gaussian blur of each patch by itself, with the outermost voxels repeated beyond its faces. Near a patch's faces
/// the blur is therefore wrong, which shows where patches are blended badly.
struct Gaussian {
    /// Weights from the center outwards.
    kernel: Vec<f32>,
    /// Spare buffers for slabs with repeated voxels, up to one per thread.
    padded: Mutex<Vec<Vec<f32>>>,
}

/// Names the model for its id.
#[expect(
    clippy::missing_fields_in_debug,
    reason = "buffers do not distinguish models"
)]
impl fmt::Debug for Gaussian {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gaussian")
            .field("kernel", &self.kernel)
            .finish()
    }
}

impl Gaussian {
    /// Creates a kernel that is cut at four standard deviations, as in scipy's `gaussian_filter`.
    fn new(sigma: f32) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "sigma is between 0 and 64"
        )]
        let radius = (4.0 * f64::from(sigma) + 0.5) as u16;
        let weight = |n: u16| (-0.5 * (f64::from(n) / f64::from(sigma)).powi(2)).exp();
        let sum: f64 = weight(0) + 2.0 * (1..=radius).map(weight).sum::<f64>();
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        let kernel = (0..=radius).map(|n| (weight(n) / sum) as f32).collect();
        Self {
            kernel,
            padded: Mutex::default(),
        }
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Vec<f32>>> {
        self.padded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blurs along an axis of `length` voxels whose neighbors are `stride` apart. `padded` is a buffer.
    fn blur(&self, voxels: &mut [f32], length: usize, stride: usize, padded: &mut Vec<f32>) {
        let radius = self.kernel.len() - 1;
        padded.resize((length + 2 * radius) * stride, 0.0);
        for slab in voxels.chunks_exact_mut(length * stride) {
            for (n, row) in padded.chunks_exact_mut(stride).enumerate() {
                let from = n.saturating_sub(radius).min(length - 1) * stride;
                row.copy_from_slice(&slab[from..from + stride]);
            }
            for (n, row) in slab.chunks_exact_mut(stride).enumerate() {
                let at = |offset: usize| &padded[(n + offset) * stride..][..stride];
                for (out, center) in row.iter_mut().zip(at(radius)) {
                    *out = self.kernel[0] * center;
                }
                for (k, weight) in self.kernel.iter().enumerate().skip(1) {
                    for ((out, before), after) in
                        row.iter_mut().zip(at(radius - k)).zip(at(radius + k))
                    {
                        *out += weight * (before + after);
                    }
                }
            }
        }
    }
}

impl Model for Gaussian {
    fn id(&self) -> Result<String> {
        Ok(format!("{self:?}"))
    }

    fn outputs(&self, input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
        Ok(vec![OutputSpec::new(input.channels, DType::F32)])
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.predict_pooled(batch, &PatchPool::default())
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let spare = self.spare().pop();
        let mut padded = spare.unwrap_or_default();
        let blurred = |patch: Patch| -> Result<Patch> {
            let mut patch = pool.convert(patch, DType::F32)?;
            let [z, y, x] = patch
                .shape()
                .map(|n| usize::try_from(n).expect("a patch is in memory"));
            let voxels = patch.as_mut_slice()?;
            self.blur(voxels, x, 1, &mut padded);
            self.blur(voxels, y, x, &mut padded);
            self.blur(voxels, z, y * x, &mut padded);
            Ok(patch)
        };
        let batch = batch.into_iter().map(blurred).collect::<Result<_>>()?;
        self.spare().push(padded);
        Ok(vec![batch])
    }
}

/// Classes by intensity: class k has the values from threshold k-1 up to, but not including, threshold k. Each class is
/// a channel of ones and zeros. NaN belongs to no class.
#[derive(Debug)]
struct Threshold {
    thresholds: Vec<f32>,
}

impl Model for Threshold {
    fn id(&self) -> Result<String> {
        Ok(format!("{self:?}"))
    }

    fn is_pointwise(&self) -> bool {
        true
    }

    fn outputs(&self, input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
        if input.channels != 1 {
            return Err(Error::InvalidArgument {
                argument: "model",
                value: "threshold".to_owned(),
                problem: format!("it needs a volume with one channel, not {}", input.channels),
            });
        }
        let classes = self.thresholds.len() as u64 + 1;
        Ok(vec![OutputSpec::new(classes, DType::F32)])
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.predict_pooled(batch, &PatchPool::default())
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let classes = |patch: Patch| -> Result<Patch> {
            let patch = pool.convert(patch, DType::F32)?;
            let values: &[f32] = patch.as_slice()?;
            let classes = self.thresholds.len() as u64 + 1;
            let mut out = pool.take(patch.region(), classes, DType::F32)?;
            let planes = out
                .as_mut_slice::<f32>()?
                .chunks_exact_mut(values.len().max(1));
            for (k, plane) in planes.enumerate() {
                let low = k
                    .checked_sub(1)
                    .map_or(f32::NEG_INFINITY, |k| self.thresholds[k]);
                let high = self.thresholds.get(k).copied();
                for (out, &value) in plane.iter_mut().zip(values) {
                    *out = f32::from(value >= low && high.is_none_or(|high| value < high));
                }
            }
            pool.give(patch);
            Ok(out)
        };
        Ok(vec![batch.into_iter().map(classes).collect::<Result<_>>()?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    fn predict(model: &str, patch: Patch) -> Patch {
        builtin_model(model)
            .unwrap()
            .predict(vec![patch])
            .unwrap()
            .remove(0)
            .remove(0)
    }

    #[test]
    fn words_that_do_not_name_a_model_are_refused() {
        for spec in [
            "",
            "identity:1",
            "gaussian",
            "gaussian:0",
            "gaussian:1,2",
            "gaussian:1e9",
            "gaussian:nan",
            "threshold",
            "threshold:",
            "threshold:2,1",
            "threshold:1,x",
            "net.onnx",
        ] {
            let error = builtin_model(spec).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }), "{spec}");
        }
    }

    #[test]
    fn thresholds_make_one_channel_a_class() {
        let patch = Patch::new(
            Region::whole([1, 1, 5]),
            1,
            vec![-1000_i16, -500, 0, 99, 100],
        )
        .unwrap();
        let classes = predict("threshold:-500,100", patch);
        let expected = [
            [1.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 1.0, 1.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 1.0],
        ];
        assert_eq!(classes.as_slice::<f32>().unwrap(), expected.as_flattened());
        let nan = Patch::new(Region::whole([1, 1, 1]), 1, vec![f32::NAN]).unwrap();
        assert_eq!(
            predict("threshold:0", nan).as_slice::<f32>().unwrap(),
            [0.0, 0.0]
        );
    }

    #[test]
    fn a_blur_equals_three_loops_and_keeps_constants() {
        let region = Region::whole([5, 7, 6]);
        let model = Gaussian::new(1.2);
        let constant = Patch::new(region, 1, vec![40.0_f32; 210]).unwrap();
        let blurred = model.predict(vec![constant]).unwrap().remove(0).remove(0);
        assert!(
            blurred
                .as_slice::<f32>()
                .unwrap()
                .iter()
                .all(|v| (v - 40.0).abs() < 1e-4)
        );

        let values: Vec<f32> = (0_u16..420).map(|n| f32::from(n * 37 % 101)).collect();
        let patch = Patch::new(region, 2, values).unwrap();
        let source = patch.to_array::<f32>().unwrap();
        let weight =
            |n: isize| f64::from(model.kernel.get(n.unsigned_abs()).copied().unwrap_or(0.0));
        let clamp = |n: isize, length: usize| {
            n.clamp(0, isize::try_from(length).unwrap() - 1)
                .unsigned_abs()
        };
        let blurred = model
            .predict(vec![patch])
            .unwrap()
            .remove(0)
            .remove(0)
            .to_array::<f32>()
            .unwrap();
        for ((c, z, y, x), &value) in blurred.indexed_iter() {
            let mut sum = 0.0;
            for dz in -5..=5 {
                for dy in -5..=5 {
                    for dx in -5..=5 {
                        let at = |n: usize, d: isize, length| {
                            clamp(isize::try_from(n).unwrap() + d, length)
                        };
                        let w = weight(dz) * weight(dy) * weight(dx);
                        sum += w * f64::from(source[[c, at(z, dz, 5), at(y, dy, 7), at(x, dx, 6)]]);
                    }
                }
            }
            assert!((f64::from(value) - sum).abs() < 1e-4, "{value} {sum}");
        }
    }
}
