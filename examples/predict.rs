//! Predicts a volume with overlapping patches and blends the result into a Zarr folder.
//!
//! ```sh
//! cargo run --release --example predict -- SCAN OUT.zarr
//! ```
//!
//! Without arguments it predicts a small volume that it makes in a temporary folder.

use std::path::PathBuf;
use std::sync::Arc;

use voxpatch::{
    Blend, Inference, MemoryVolume, OutputTarget, Reduce, Volume, builtin_model, open, progress,
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
    let overlap = patch.map(|length| length / 2);
    let target = OutputTarget::new(&out, Blend::Hann, Reduce::Mean);
    let plan = Inference::new(patch, overlap).plan(scan.layout(), &*model, &[target])?;
    println!(
        "{} patches of {patch:?}, at most {} MiB",
        plan.grid.len(),
        plan.peak_bytes >> 20
    );
    let done = plan.run(scan, model, &progress::silent)?;
    println!("{} patches predicted", done.patches);
    println!("{:?}", open(&out)?.layout().shape);
    Ok(())
}
