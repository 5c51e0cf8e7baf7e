//! A custom model: two classes by a threshold, blended and reduced to labels.
//!
//! ```sh
//! cargo run --release --example custom_model
//! ```

use std::sync::Arc;

use voxpatch::inference::{FnModel, OutputSpec};
use voxpatch::ndarray::{Array4, ArrayView4, Axis, concatenate};
use voxpatch::{
    DType, InferenceOptions, MemoryVolume, OutputTarget, Predictor, Reduce, Region, VolumeExt,
    open, progress,
};

/// Returns for each voxel a score for air (below -500 HU) and one for tissue.
#[expect(
    clippy::needless_pass_by_value,
    reason = "models get a view of a patch"
)]
fn scores(hu: ArrayView4<'_, f32>) -> Array4<f32> {
    let air = hu.mapv(|hu| f32::from(hu < -500.0));
    let tissue = air.mapv(|air| 1.0 - air);
    concatenate![Axis(0), air, tissue]
}

fn main() -> voxpatch::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("labels.zarr");
    let voxels = (0..32 * 32 * 32).map(|n| if n % 32 < 16 { -1000_i16 } else { 40 });
    let scan = Arc::new(MemoryVolume::from_vec([32; 3], 1, voxels.collect())?);

    let model = Arc::new(FnModel::new(OutputSpec::new(2, DType::F32), scores));
    let predictor = Predictor::new(scan, model, InferenceOptions::new([16; 3]));
    let target = OutputTarget::new(&out).with_reduce(Reduce::Argmax);
    predictor.plan(&[target])?.run(&progress::silent)?;

    let row = open(&out)?.read(Region::new([8, 8, 0], [1, 1, 32]))?;
    println!("{:?}", row.as_slice::<u8>()?);
    Ok(())
}
