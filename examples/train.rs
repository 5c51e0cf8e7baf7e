//! Draws training patches uniformly, for two epochs, and resumes in the middle of the second.
//!
//! ```sh
//! cargo run --release --example train
//! ```

#![allow(
    clippy::clone_on_ref_ptr,
    reason = "the closure becomes a trait object"
)]

use std::sync::Arc;

use voxpatch::sampler::Sampler;
use voxpatch::training::{EpochPlan, Image, Loader, LoaderOptions, Subject, TOLERANCE};
use voxpatch::{MemoryVolume, Uniform};

fn main() -> voxpatch::Result<()> {
    // Any volume will do here: `voxpatch::open("scan.nii.gz")?`, for example.
    let scan = MemoryVolume::from_vec([64, 80, 80], 1, vec![100_i16; 64 * 80 * 80])?;
    let label = MemoryVolume::from_vec([64, 80, 80], 1, vec![1_u8; 64 * 80 * 80])?;
    let images = vec![
        Image::new("ct", Arc::new(scan)),
        Image::new("label", Arc::new(label)),
    ];
    let subjects = Arc::new(vec![Subject::new("patient 1", images, TOLERANCE)?]);
    let make = Arc::new(|subject: &Subject, seed| {
        let sampler = Uniform::new(subject.shape(), [32; 3], seed)?;
        Ok(Some(Arc::new(sampler) as Arc<dyn Sampler>))
    });
    let plan = EpochPlan::new(1, 40, 7)?; // 40 patches of one subject, seed 7
    let options = LoaderOptions::default();

    let mut state = None;
    for epoch in 0..2 {
        let mut loader = Loader::new(subjects.clone(), make.clone(), &plan, epoch, &options)?;
        for step in 0..30 {
            let Some(sample) = loader.next() else { break };
            let sample = sample?;
            if step == 0 {
                let at = sample.patches()[0].region();
                println!("epoch {epoch} begins at [{at}]");
            }
        }
        state = Some(loader.state());
    }

    let state = state.expect("two epochs were run");
    let rest = Loader::resume(subjects, make, &plan, state, &options)?;
    println!("resumed: {} patches are left in epoch 1", rest.count());
    Ok(())
}
