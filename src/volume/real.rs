//! Real values: stored values with slope and intercept applied.

use super::Rescale;
use crate::dtype::{DType, convert};
use crate::error::Result;
use crate::patch::Patch;

/// Applies slope and intercept to stored values; the result is f32.
pub(crate) fn real_values(patch: Patch, rescale: Option<Rescale>) -> Result<Patch> {
    let Some(rescale) = rescale else {
        return Ok(patch.converted(DType::F32));
    };
    let mut real = Patch::zeros(patch.region(), patch.channels(), DType::F32)?;
    real_values_into(patch.dtype(), patch.bytes(), rescale, real.bytes_mut());
    Ok(real)
}

/// Like [`real_values`], but writes into `out`, which must be aligned for f32.
#[expect(clippy::cast_possible_truncation, reason = "real values are f32 here")]
pub(crate) fn real_values_into(dtype: DType, stored: &[u8], rescale: Rescale, out: &mut [u8]) {
    const STEP: usize = 512;
    let mut values = [0.0_f64; STEP];
    let out = bytemuck::cast_slice_mut::<u8, f32>(out);
    for (stored, out) in stored.chunks(STEP * dtype.size()).zip(out.chunks_mut(STEP)) {
        let values = &mut values[..out.len()];
        convert(dtype, stored, DType::F64, bytemuck::cast_slice_mut(values));
        for (out, value) in out.iter_mut().zip(values) {
            *out = (*value * rescale.slope + rescale.intercept) as f32;
        }
    }
}
