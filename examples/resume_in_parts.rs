//! Predicts one output in two parts, as two machines would, and resumes one of them.
//!
//! ```sh
//! cargo run --release --example resume_in_parts
//! ```

use std::ops::ControlFlow;
use std::sync::Arc;

use voxpatch::volume::{CreateOptions, Durability, OutputPart};
use voxpatch::{DType, Layout, Region, volume};
use voxpatch::{
    Error, InferenceOptions, OutputTarget, Predictor, Volume, builtin_model, open, progress,
};

fn main() -> voxpatch::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (scan, out) = (
        folder.path().join("scan.npy"),
        folder.path().join("out.zarr"),
    );
    let shape = [96, 64, 64];
    let file = volume::create(
        &scan,
        &Layout::new(shape, 1, DType::U8),
        &CreateOptions::default(),
    )?;
    file.write(Region::whole(shape), &vec![7; 96 * 64 * 64])?;
    file.finish()?;

    let run = |part: u32, progress: voxpatch::progress::Progress<'_>| {
        let scan: Arc<dyn Volume> = open(&scan)?;
        let model = builtin_model("identity")?;
        let store = CreateOptions::default()
            .with_chunk([16; 3])
            .with_shard(None);
        let target = OutputTarget::new(&out).with_store(store);
        let predictor = Predictor::new(scan, model, InferenceOptions::new([32; 3]));
        let plan = predictor.plan(&[target])?;
        plan.with_part(OutputPart::new(part, 2)?, Durability::None)?
            .run(progress)
    };

    // The first part is stopped after 10 patches. Its finished chunks are kept.
    let stop = |done: u64, _: u64| match done {
        10.. => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    assert!(matches!(run(0, &stop), Err(Error::Interrupted)));
    println!(
        "part 0 resumed, output whole: {}",
        run(0, &progress::silent)?.whole
    );
    println!(
        "part 1 done,    output whole: {}",
        run(1, &progress::silent)?.whole
    );
    println!("{:?}", open(&out)?.layout().shape);
    Ok(())
}
