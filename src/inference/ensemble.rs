//! Ensembles: the mean of the predictions of several models.

use std::sync::Arc;

use super::model::{InputValues, Model, OutputSpec};
use super::pool::PatchPool;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::patch::Patch;
use crate::region::Shape;
use crate::volume::Layout;

/// The mean of several models' predictions, as f32.
#[derive(Debug)]
pub struct Ensemble {
    /// The models, each with its name for messages.
    models: Vec<(String, Arc<dyn Model>)>,
}

impl Ensemble {
    /// Creates the mean of models. Each has a name for messages, such as its file.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the list is empty, or if a model takes voxels in the volume's own type.
    pub fn new(models: Vec<(String, Arc<dyn Model>)>) -> Result<Self> {
        if models.is_empty() {
            return Err(Error::InvalidArgument {
                argument: "list of models",
                value: "[]".to_owned(),
                problem: "it needs at least one model".to_owned(),
            });
        }
        for (name, model) in &models {
            check_f32("model", name, model.input())?;
        }
        Ok(Self { models })
    }
}

/// Checks that a model takes floats.
pub(super) fn check_f32(what: &'static str, name: &str, input: InputValues) -> Result<()> {
    match input {
        InputValues::F32 => Ok(()),
        InputValues::Native => Err(Error::InvalidArgument {
            argument: what,
            value: name.to_owned(),
            problem: "it takes voxels of the volume's type, not float32".to_owned(),
        }),
    }
}

impl Model for Ensemble {
    fn id(&self) -> Result<String> {
        let ids = self.models.iter().map(|(_, model)| model.id());
        let ids: Vec<String> = ids.collect::<Result<_>>()?;
        Ok(format!("the mean of {}", ids.join(" and ")))
    }

    fn max_calls(&self) -> Option<usize> {
        self.models
            .iter()
            .filter_map(|(_, model)| model.max_calls())
            .min()
    }

    fn outputs(&self, input: &Layout, patch: Shape) -> Result<Vec<OutputSpec>> {
        let (first, model) = &self.models[0];
        let mut announced = model.outputs(input, patch)?;
        let kinds = |outputs: &[OutputSpec]| -> Vec<(u64, Shape, u64)> {
            outputs
                .iter()
                .map(|out| (out.channels, out.halo, out.scale))
                .collect()
        };
        for (name, model) in &self.models[1..] {
            let other = model.outputs(input, patch)?;
            if kinds(&other) != kinds(&announced) {
                return Err(Error::ModelMismatch {
                    first: first.clone(),
                    second: name.clone(),
                    what: "their outputs have these channels, halos and scales:",
                    one: format!("{:?}", kinds(&announced)),
                    other: format!("{:?}", kinds(&other)),
                });
            }
        }
        for output in &mut announced {
            output.dtype = DType::F32;
        }
        Ok(announced)
    }

    fn predict(&self, batch: Vec<Patch>) -> Result<Vec<Vec<Patch>>> {
        self.predict_pooled(batch, &PatchPool::default())
    }

    fn predict_pooled(&self, batch: Vec<Patch>, pool: &PatchPool) -> Result<Vec<Vec<Patch>>> {
        let mut mean = EnsembleMean::new(pool);
        let (last, others) = self.models.split_last().expect("it has at least one model");
        for (_, model) in others {
            let copies = batch.iter().map(|patch| pool.copy(patch));
            mean.add(model.predict_pooled(copies.collect::<Result<_>>()?, pool)?)?;
        }
        mean.add(last.1.predict_pooled(batch, pool)?)?;
        mean.finish()
    }
}

/// The mean of predictions of one batch.
#[derive(Debug)]
pub(super) struct EnsembleMean<'a> {
    /// For each output, the sums of each patch.
    sums: Vec<Vec<Patch>>,
    count: u16,
    pool: &'a PatchPool,
}

impl<'a> EnsembleMean<'a> {
    /// Creates the mean of predictions whose patches go to a pool.
    pub(super) const fn new(pool: &'a PatchPool) -> Self {
        Self {
            sums: Vec::new(),
            count: 0,
            pool,
        }
    }

    /// Adds another prediction of the batch.
    ///
    /// # Errors
    ///
    /// [`Error::BufferLength`] if its shape differs from that of the earlier predictions.
    pub(super) fn add(&mut self, outputs: Vec<Vec<Patch>>) -> Result<()> {
        self.count += 1;
        let wide = |patch| self.pool.convert(patch, DType::F32);
        let wide = |batch: Vec<Patch>| batch.into_iter().map(wide).collect::<Result<Vec<_>>>();
        let outputs = outputs.into_iter().map(wide);
        if self.count == 1 {
            self.sums = outputs.collect::<Result<_>>()?;
            return Ok(());
        }
        for (sums, patches) in self.sums.iter_mut().zip(outputs) {
            for (sum, patch) in sums.iter_mut().zip(patches?) {
                let (sum, values) = (sum.as_mut_slice::<f32>()?, patch.as_slice::<f32>()?);
                if sum.len() != values.len() {
                    return Err(Error::BufferLength {
                        expected: 4 * sum.len() as u64,
                        actual: 4 * values.len() as u64,
                    });
                }
                for (sum, value) in sum.iter_mut().zip(values) {
                    *sum += value;
                }
                self.pool.give(patch);
            }
        }
        Ok(())
    }

    /// Returns the mean of all predictions.
    ///
    /// # Errors
    ///
    /// None in practice: the predictions have been converted to f32.
    pub(super) fn finish(mut self) -> Result<Vec<Vec<Patch>>> {
        let count = f32::from(self.count);
        for patch in self.sums.iter_mut().flatten() {
            for value in patch.as_mut_slice::<f32>()? {
                *value /= count;
            }
        }
        Ok(self.sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::builtin_model;
    use crate::region::Region;

    fn ensemble(specs: &[&str]) -> Result<Ensemble> {
        let named = |spec: &&str| Ok(((*spec).to_owned(), builtin_model(spec)?));
        Ensemble::new(specs.iter().map(named).collect::<Result<_>>()?)
    }

    #[test]
    fn the_mean_of_three_models_is_the_mean_of_their_values() {
        let values: Vec<i16> = vec![-5, 0, 10, 20, 30, 40];
        let patch = Patch::new(Region::whole([1, 2, 3]), 1, values).unwrap();
        let model = ensemble(&["threshold:0", "threshold:15", "threshold:35"]).unwrap();
        let layout = Layout::new([1, 2, 3], 1, DType::I16);
        let outputs = model.outputs(&layout, [1, 2, 3]).unwrap();
        assert_eq!((outputs[0].channels, outputs[0].dtype), (2, DType::F32));
        let mean = model.predict(vec![patch.clone(), patch]).unwrap().remove(0);
        assert_eq!(mean.len(), 2);
        for mean in mean {
            let above: Vec<f32> = [0.0, 1.0, 1.0, 2.0, 2.0, 3.0].map(|n| n / 3.0).to_vec();
            assert_eq!(mean.as_slice::<f32>().unwrap()[6..], above);
        }
    }

    #[test]
    fn models_that_cannot_be_averaged_are_refused_by_name() {
        let model = ensemble(&["threshold:0", "threshold:0,1"]).unwrap();
        let layout = Layout::new([4; 3], 1, DType::I16);
        let error = model.outputs(&layout, [4; 3]).unwrap_err();
        assert!(matches!(error, Error::ModelMismatch { .. }));
        let error = error.to_string();
        assert!(error.contains("threshold:0 and threshold:0,1"), "{error}");
        let error = ensemble(&["threshold:0", "identity"]).unwrap_err();
        assert!(error.to_string().contains("identity"), "{error}");
        assert!(ensemble(&[]).is_err());
    }
}
