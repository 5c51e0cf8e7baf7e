//! Draws training patches uniformly, for two epochs, and resumes in the middle of the second.
//!
//! ```sh
//! cargo run --release --example train
//! ```

use std::sync::Arc;

use voxpatch::MemoryVolume;
use voxpatch::training::{Dataset, Subject, UniformPatches};

fn main() -> voxpatch::Result<()> {
    // Any volume works here, for example `voxpatch::open("scan.nii.gz")?`.
    let scan = MemoryVolume::from_vec([64, 80, 80], 1, vec![100_i16; 64 * 80 * 80])?;
    let label = MemoryVolume::from_vec([64, 80, 80], 1, vec![1_u8; 64 * 80 * 80])?;
    let subject = Subject::builder("patient 1")
        .with_image("ct", Arc::new(scan))
        .with_image("label", Arc::new(label))
        .build()?;
    let dataset = Dataset::new(vec![subject], UniformPatches::new([32; 3]))
        .samples_per_subject(40)
        .seed(7);

    for batch in dataset.epoch(0).batches(4)? {
        let batch = batch?;
        println!("epoch 0: a batch of shape {:?}", batch.images()[0].shape());
    }

    let mut samples = dataset.epoch(1).samples()?;
    for sample in (&mut samples).take(30) {
        sample?;
    }
    let state = samples.state();
    let rest = dataset.resume(state).samples()?;
    println!("resumed: {} patches are left in epoch 1", rest.count());
    Ok(())
}
