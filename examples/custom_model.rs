//! A model of one's own: two classes by a threshold, blended and reduced to labels.
//!
//! ```sh
//! cargo run --release --example custom_model
//! ```

use std::sync::Arc;

use voxpatch::inference::{FnModel, OutputSpec};
use voxpatch::{
    Blend, DType, Inference, MemoryVolume, OutputTarget, Patch, Reduce, Region, Volume, VolumeExt,
    open, progress,
};

/// Gives each voxel a score for air (below -500 HU) and one for tissue.
fn scores(patch: &Patch) -> voxpatch::Result<Patch> {
    let hu = patch.as_slice::<f32>()?;
    let mut prediction = Patch::zeros(patch.region(), 2, DType::F32)?;
    let (air, tissue) = prediction.as_mut_slice::<f32>()?.split_at_mut(hu.len());
    for ((hu, air), tissue) in hu.iter().zip(air).zip(tissue) {
        *air = f32::from(*hu < -500.0);
        *tissue = 1.0 - *air;
    }
    Ok(prediction)
}

fn main() -> voxpatch::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("labels.zarr");
    let voxels = (0..32 * 32 * 32).map(|n| if n % 32 < 16 { -1000_i16 } else { 40 });
    let scan = Arc::new(MemoryVolume::from_vec([32; 3], 1, voxels.collect())?);

    let model = Arc::new(FnModel::new(
        vec![OutputSpec::new(2, DType::F32)],
        |batch: Vec<Patch>| Ok(vec![batch.iter().map(scores).collect::<Result<_, _>>()?]),
    ));
    let target = OutputTarget::new(&out, Blend::Hann, Reduce::Argmax);
    let settings = Inference::new([16; 3], [8; 3]);
    let plan = settings.plan(scan.layout(), &*model, &[target])?;
    plan.run(scan, model, &progress::silent)?;

    let row = open(&out)?.read(Region::new([8, 8, 0], [1, 1, 32]))?;
    println!("{:?}", row.as_slice::<u8>()?);
    Ok(())
}
