//! Two volumes compared voxel by voxel, one write chunk at a time.

use std::sync::Mutex;

use anyhow::Context;
use voxpatch::region::{chunk_range, chunk_region, indices};
use voxpatch::{Error, Region, Volume, VolumeExt};

use super::stage::Work;
use crate::progress::{Task, continues};
use crate::workers::on_threads;

/// The largest |b - a| / |a| of all voxels, infinite where b is not 0 and a is, or either is NaN.
pub(super) fn compare(
    a: &dyn Volume,
    b: &dyn Volume,
    threads: usize,
    task: Task,
) -> anyhow::Result<(Work, f64)> {
    let shape = a.layout().shape;
    let [_, chunk @ ..] = b.layout().write_chunk.context("a Zarr array has chunks")?;
    let before = a.read_stats().chunks + b.read_stats().chunks;
    let whole = Region::whole(shape);
    let parts = indices(chunk_range(&whole, chunk))
        .filter_map(|index| chunk_region(index, chunk).intersection(&whole));
    let total = whole.voxels();
    let state = Mutex::new((parts, 0_u64, 0.0_f64));
    let lock = || {
        state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    };
    task.run(|progress| {
        let work = || -> voxpatch::Result<()> {
            loop {
                let Some(part) = lock().0.next() else {
                    return Ok(());
                };
                let found = largest(a, b, part)?;
                let mut state = lock();
                state.1 += part.voxels();
                state.2 = state.2.max(found);
                let done = state.1;
                drop(state);
                if !continues(progress(done, total)) {
                    return Err(Error::Interrupted);
                }
            }
        };
        on_threads(threads, work)
    })?;
    let difference = lock().2;
    let work = Work {
        bytes: a.layout().decoded_bytes()? + b.layout().decoded_bytes()?,
        patches: None,
        chunks_read: a.read_stats().chunks + b.read_stats().chunks - before,
    };
    Ok((work, difference))
}

/// The largest relative difference in one box.
fn largest(a: &dyn Volume, b: &dyn Volume, part: Region) -> voxpatch::Result<f64> {
    let (a, b) = (a.read(part)?, b.read(part)?);
    let pairs = a.as_slice::<f32>()?.iter().zip(b.as_slice::<f32>()?);
    Ok(pairs.map(|(&a, &b)| relative(a, b)).fold(0.0, f64::max))
}

fn relative(a: f32, b: f32) -> f64 {
    let (a, b) = (f64::from(a), f64::from(b));
    let difference = (b - a).abs();
    if difference == 0.0 {
        0.0
    } else if difference.is_nan() || a == 0.0 {
        f64::INFINITY
    } else {
        difference / a.abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Unit;

    const TASK: Task = Task {
        name: "checking",
        unit: Unit::Chunks,
        interval: std::time::Duration::MAX,
    };
    use voxpatch::MemoryVolume;

    fn volume(voxels: Vec<f32>) -> MemoryVolume {
        let volume = MemoryVolume::from_vec([2, 3, 4], 1, voxels).expect("the shape fits");
        volume.with_chunks([1, 2, 2, 2])
    }

    #[test]
    fn a_single_voxel_that_differs_is_found() {
        let a = volume(vec![100.0; 24]);
        for at in 0..24 {
            let mut voxels = vec![100.0; 24];
            voxels[at] = 101.0;
            let (_, found) = compare(&a, &volume(voxels), 2, TASK).expect("memory can be read");
            assert!((found - 0.01).abs() < 1e-9);
        }
        let (_, same) = compare(&a, &a, 1, TASK).expect("memory can be read");
        assert!(same == 0.0);
    }

    #[test]
    fn nan_and_something_for_nothing_are_not_overlooked() {
        assert!(relative(0.0, 1e-30).is_infinite());
        assert!(relative(1.0, f32::NAN).is_infinite());
        assert!(relative(0.0, -0.0) == 0.0);
    }
}
