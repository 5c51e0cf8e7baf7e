//! What one batch from the middle of the volume shows before a run: how long it takes, and what memory the
//! model needs for itself.

use std::sync::Arc;
use std::time::Instant;

use super::model::Model;
use super::plan::InferencePlan;
use super::work::PatchPool;
use crate::error::Result;
use crate::meter::{Meter, anonymous_bytes};
use crate::volume::{Volume, give_back_freed};

/// What a run will take, extrapolated from one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// Seconds that the run takes, about.
    pub seconds: f64,
    /// Bytes that the model's calls take at once, apart from patches and predictions; `None` where the system
    /// does not report memory.
    pub model_bytes: Option<u64>,
    /// Bytes of anonymous memory of the whole process at the peak of the run: what it takes now, the plan's
    /// peak and the model's share. `None` where the system does not report memory.
    pub process_bytes: Option<u64>,
}

impl InferencePlan {
    /// Reads a batch from the middle of the volume and predicts it, twice; the second time is
    /// extrapolated to the whole run.
    ///
    /// # Errors
    ///
    /// Those of reading and of the model.
    ///
    /// # Panics
    ///
    /// If the model panics.
    pub fn probe(&self, volume: &Arc<dyn Volume>, model: &dyn Model) -> Result<Probe> {
        give_back_freed();
        let before = anonymous_bytes();
        let middle = self.grid.len() / 2;
        let region = self.grid.get(middle).expect("a grid has a middle");
        let batch = self.inference.batch.max(1);
        let (mut seconds, mut share) = (0.0, None::<u64>);
        for _ in 0..2 {
            let began = Instant::now();
            let pool = PatchPool::default();
            let read = || self.reading().read(&**volume, region, &pool);
            let patches = (0..batch).map(|_| read()).collect::<Result<Vec<_>>>()?;
            let held = anonymous_bytes();
            let meter = Meter::start();
            let predictions = model.predict(patches)?;
            let peak = meter.stop().anonymous;
            seconds = began.elapsed().as_secs_f64();
            drop(predictions);
            // The plan counts predictions already.
            let own = |(peak, held): (u64, u64)| {
                let grown = peak.saturating_sub(held);
                grown.saturating_sub(self.working.predictions)
            };
            share = share.max(peak.zip(held).map(own));
        }
        let threads = self.inference.threads.max(1);
        let calls = model.at_once().map_or(threads, |calls| calls.min(threads)) as u64;
        #[expect(clippy::cast_precision_loss, reason = "an extrapolation")]
        let rounds = self.predictions() as f64 / (calls * batch as u64) as f64;
        let model_bytes = share.map(|share| share.saturating_mul(calls));
        let process_bytes = before.zip(model_bytes).map(|(before, model)| {
            before
                .saturating_add(self.most_bytes())
                .saturating_add(model)
        });
        Ok(Probe {
            seconds: seconds * rounds,
            model_bytes,
            process_bytes,
        })
    }

    /// Bytes that the run holds at most, with what it read before.
    fn most_bytes(&self) -> u64 {
        let Some(patch_mask) = &self.patch_mask else {
            return self.peak_bytes;
        };
        let kept = patch_mask.bits().len() as u64 * 8;
        let peak = self.peak_bytes.saturating_add(kept);
        peak.max(patch_mask.reading_bytes())
    }
}
