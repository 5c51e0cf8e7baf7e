//! Test-time augmentation: a patch is predicted in all eight mirrored orientations.

use std::sync::Arc;

use super::ensemble::{EnsembleMean, check_f32};
use super::model::{Model, OutputSpec};
use super::pool::PatchPool;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::patch::{Patch, Voxels};
use crate::region::Shape;
use crate::volume::Layout;

/// The mean of a model's predictions of a patch and of its mirror images along z, y and x, in all eight combinations,
/// each mirrored back. It takes eight times the time.
#[derive(Debug)]
pub struct FlipTta {
    model: Arc<dyn Model>,
}

impl FlipTta {
    /// Wraps a model.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the model takes voxels in the volume's own type.
    pub fn new(model: Arc<dyn Model>) -> Result<Self> {
        check_f32("test-time augmentation of", "the model", model.input())?;
        Ok(Self { model })
    }
}

impl Model for FlipTta {
    fn id(&self) -> Result<String> {
        Ok(format!("the flips of {}", self.model.id()?))
    }

    fn max_calls(&self) -> Option<usize> {
        self.model.max_calls()
    }

    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<OutputSpec>> {
        let mut outputs = self.model.outputs(input, patch)?;
        for output in &mut outputs {
            output.dtype = DType::F32;
        }
        Ok(outputs)
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.predict_pooled(batch, &PatchPool::default())
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let mut mean = EnsembleMean::new(pool);
        for sides in 0..8 {
            let flips = [sides & 4 != 0, sides & 2 != 0, sides & 1 != 0];
            let turned = batch
                .iter()
                .map(|patch| flipped(pool.copy(patch)?, flips))
                .collect::<Result<_>>()?;
            let predicted = self.model.predict_pooled(turned, pool)?.into_iter();
            let back = predicted.map(|output| {
                let output = output.into_iter();
                output.map(|patch| flipped(patch, flips)).collect()
            });
            mean.add(back.collect::<Result<_>>()?)?;
        }
        for patch in batch {
            pool.give(patch);
        }
        mean.finish()
    }
}

/// Returns the patch mirrored along some of z, y, x.
fn flipped(patch: Patch, flips: [bool; 3]) -> Result<Patch> {
    if flips == [false; 3] {
        return Ok(patch);
    }
    let [z, y, x] = patch
        .shape()
        .map(|n| usize::try_from(n).expect("a patch is in memory"));
    let (region, channels) = (patch.region(), patch.channels());
    let mut voxels = patch.into_voxels();
    macro_rules! each {
        ($($kind:ident),*) => {
            match &mut voxels {
                $(Voxels::$kind(values) => mirror(values, [z, y, x], flips),)*
            }
        };
    }
    each!(Bool, U8, I8, U16, I16, U32, I32, U64, I64, F16, F32, F64);
    Patch::new(region, channels, voxels)
}

/// Mirrors every channel in place.
fn mirror<T: Element>(values: &mut [T], [z, y, x]: [usize; 3], [dz, dy, dx]: [bool; 3]) {
    if values.is_empty() {
        return;
    }
    if dx {
        values.chunks_exact_mut(x).for_each(<[T]>::reverse);
    }
    let mut rows = |groups: usize, length: usize| {
        for group in values.chunks_exact_mut(groups * length) {
            let (front, back) = group.split_at_mut(groups / 2 * length);
            let back = back.chunks_exact_mut(length).rev();
            for (a, b) in front.chunks_exact_mut(length).zip(back) {
                a.swap_with_slice(b);
            }
        }
    };
    if dy {
        rows(y, x);
    }
    if dz {
        rows(z, y * x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::builtin_model;
    use crate::region::Region;

    /// A model that shifts its input: the output at a voxel is the value before it along z, y and x, and 0 at the
    /// faces.
    #[derive(Debug)]
    struct Behind;

    fn behind(values: &ndarray::Array4<f32>) -> ndarray::Array4<f32> {
        ndarray::Array4::from_shape_fn(values.dim(), |(c, z, y, x)| {
            if z == 0 || y == 0 || x < 2 {
                return 0.0;
            }
            values[[c, z - 1, y - 1, x - 2]]
        })
    }

    impl Model for Behind {
        fn outputs(&self, input: &Layout, _patch: Shape) -> Result<Vec<OutputSpec>> {
            Ok(vec![OutputSpec::new(input.channels, DType::F32)])
        }

        fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
            let moved = |patch: Patch| {
                let values = behind(&patch.to_array()?);
                let values = values.into_raw_vec_and_offset().0;
                Patch::new(patch.region(), patch.channels(), values)
            };
            Ok(vec![batch.into_iter().map(moved).collect::<Result<_>>()?])
        }
    }

    fn patch(shape: [u64; 3]) -> Patch {
        let region = Region::new([3, 4, 5], shape);
        let count = u16::try_from(2 * region.voxels()).unwrap();
        let values: Vec<f32> = (0..count).map(|n| f32::from(n * 31 % 97)).collect();
        Patch::new(region, 2, values).unwrap()
    }

    #[test]
    fn the_mean_over_flips_equals_eight_predictions_by_index() {
        for shape in [[4, 5, 6], [1, 3, 2], [3, 1, 7]] {
            let patch = patch(shape);
            let values = patch.to_array::<f32>().unwrap();
            let dim = values.dim();
            let mut expected = ndarray::Array4::<f32>::zeros(dim);
            for sides in 0..8 {
                let at = |(c, z, y, x): (usize, usize, usize, usize)| {
                    let turn = |n: usize, length: usize, on: bool| {
                        if on { length - 1 - n } else { n }
                    };
                    let z = turn(z, dim.1, sides & 4 != 0);
                    let y = turn(y, dim.2, sides & 2 != 0);
                    [c, z, y, turn(x, dim.3, sides & 1 != 0)]
                };
                let seen = ndarray::Array4::from_shape_fn(dim, |v| values[at(v)]);
                let out = behind(&seen);
                expected += &ndarray::Array4::from_shape_fn(dim, |v| out[at(v)]);
            }
            expected /= 8.0;
            let model = FlipTta::new(Arc::new(Behind)).unwrap();
            let batch = vec![patch.clone(), patch.clone()];
            let batch = model.predict(batch).unwrap().remove(0);
            assert_eq!(batch.len(), 2);
            for out in batch {
                assert_eq!(out.region(), patch.region());
                assert_eq!(out.to_array::<f32>().unwrap(), expected, "{shape:?}");
            }
        }
    }

    #[test]
    fn flipping_twice_changes_nothing_and_once_does() {
        let patch = patch([4, 5, 6]);
        for sides in 1..8 {
            let flips = [sides & 4 != 0, sides & 2 != 0, sides & 1 != 0];
            let once = flipped(patch.clone(), flips).unwrap();
            assert_ne!(once, patch);
            assert_eq!(flipped(once, flips).unwrap(), patch);
        }
    }

    #[test]
    fn stored_voxels_are_not_averaged() {
        assert!(FlipTta::new(builtin_model("identity").unwrap()).is_err());
        let model = FlipTta::new(builtin_model("threshold:5").unwrap()).unwrap();
        let outputs = model.outputs(&Layout::new([9; 3], 1, DType::U8), [9; 3]);
        assert_eq!(outputs.unwrap()[0].channels, 2);
    }
}
