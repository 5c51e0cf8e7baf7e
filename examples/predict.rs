//! Predicts a volume with overlapping patches and blends the result into a Zarr folder.
//!
//! ```sh
//! cargo run --release --example predict -- SCAN OUT.zarr
//! ```
//!
//! Without arguments it predicts a small volume that it creates in a temporary folder.

use std::path::PathBuf;
use std::sync::Arc;

use voxpatch::{
    InferenceOptions, MemoryVolume, OutputTarget, Predictor, Volume, builtin_model, open, progress,
};

fn main() -> voxpatch::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (scan, out): (Arc<dyn Volume>, PathBuf) =
        if let (Some(scan), Some(out)) = (arguments.next(), arguments.next()) {
            (open(scan)?, out)
        } else {
            let row = (0..48_u8).map(f32::from);
            let voxels = row.cycle().take(40 * 48 * 48).collect();
            let scan = MemoryVolume::from_vec([40, 48, 48], 1, voxels)?;
            (Arc::new(scan), folder.path().join("out.zarr"))
        };

    let model = builtin_model("gaussian:1")?;
    let patch = scan.layout().shape.map(|length| length.min(32));
    let predictor = Predictor::new(scan, model, InferenceOptions::new(patch));
    let plan = predictor.plan(&[OutputTarget::new(&out)])?;
    println!(
        "{} patches of {patch:?}, at most {} MiB",
        plan.grid().len(),
        plan.peak_bytes() >> 20
    );
    let done = plan.run(&progress::silent)?;
    println!("{} patches predicted", done.patches);
    println!("{:?}", open(&out)?.layout().shape);
    Ok(())
}
