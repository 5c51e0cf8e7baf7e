//! Predicts one output in two parts, as two machines would, and resumes one of them.
//!
//! ```sh
//! cargo run --release --example resume_in_parts
//! ```

use std::ops::ControlFlow;
use std::sync::Arc;

use voxpatch::volume::{CreateOptions, Durability, OutputPart};
use voxpatch::{
    Blend, Error, Inference, OutputTarget, Reduce, Volume, builtin_model, open, progress,
};
use voxpatch::{DType, Layout, Region, volume};

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
        let mut target = OutputTarget::new(&out, Blend::Hann, Reduce::Mean);
        (target.store.chunk, target.store.shard) = ([16; 3], None);
        let plan = Inference::new([32; 3], [16; 3]).plan(scan.layout(), &*model, &[target])?;
        let part = OutputPart::new(part, 2)?;
        plan.with_part(part, Durability::None)?
            .run(scan, model, progress)
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
