//! Estimates of the time and memory of a run, extrapolated from one batch in the middle of the volume.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::model::Model;
use super::pool::PatchPool;
use super::schedule::Schedule;
use crate::error::Result;
use crate::meter::{Meter, anonymous_bytes};
use crate::volume::{Volume, give_back_freed};

/// An estimate of a run's time and memory, extrapolated from one batch.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// The duration of the run.
    pub duration: Duration,
    /// Bytes that concurrent calls of the model take, without patches and predictions; `None` where the system
    /// does not report memory.
    pub model_bytes: Option<u64>,
    /// Bytes of anonymous memory of the whole process at the peak of the run: its present memory, the plan's
    /// peak, and the model's. `None` where the system does not report memory.
    pub process_bytes: Option<u64>,
}

impl Schedule {
    /// Reads and predicts a batch from the middle of the volume twice, and extrapolates the second time.
    pub(super) fn probe(&self, volume: &Arc<dyn Volume>, model: &dyn Model) -> Result<Probe> {
        give_back_freed();
        let before = anonymous_bytes();
        let middle = self.grid.len() / 2;
        let region = self.grid.get(middle).expect("a grid has a middle");
        let batch = self.inference.batch_size.max(1);
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
            // The plan already counts predictions.
            let own = |(peak, held): (u64, u64)| {
                let grown = peak.saturating_sub(held);
                grown.saturating_sub(self.working.predictions)
            };
            share = share.max(peak.zip(held).map(own));
        }
        let threads = self.inference.threads.max(1);
        let calls = model
            .max_calls()
            .map_or(threads, |calls| calls.min(threads)) as u64;
        #[expect(clippy::cast_precision_loss, reason = "an extrapolation")]
        let rounds = self.predictions() as f64 / (calls * batch as u64) as f64;
        let model_bytes = share.map(|share| share.saturating_mul(calls));
        let process_bytes = before.zip(model_bytes).map(|(before, model)| {
            before
                .saturating_add(self.most_bytes())
                .saturating_add(model)
        });
        Ok(Probe {
            duration: Duration::try_from_secs_f64(seconds * rounds).unwrap_or(Duration::MAX),
            model_bytes,
            process_bytes,
        })
    }

    /// Returns the most bytes that the run holds, including those of reading the mask.
    fn most_bytes(&self) -> u64 {
        let Some(patch_mask) = &self.patch_mask else {
            return self.peak_bytes;
        };
        let kept = patch_mask.bits().len() as u64 * 8;
        let peak = self.peak_bytes.saturating_add(kept);
        peak.max(patch_mask.reading_bytes())
    }
}
