//! Draws patch centers by label, without loading the label map, and counts them.
//!
//! ```sh
//! cargo run --release --example label_sampling
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use voxpatch::sampler::{Label, LabelIndex, LabelValue, LabelWeights, SamplerOptions, draws};
use voxpatch::{MemoryVolume, Region, Volume, VolumeExt, progress, threads};

fn main() -> voxpatch::Result<()> {
    // A few voxels of label 2 in a block of label 1.
    let mut voxels = vec![0_u8; 48 * 48 * 48];
    for (n, voxel) in voxels.iter_mut().enumerate() {
        let [z, y, x] = [n / 2304, n / 48 % 48, n % 48];
        *voxel = u8::from([z, y, x].iter().all(|at| (16..32).contains(at)));
        if [z, y, x] == [24, 24, 24] {
            *voxel = 2;
        }
    }
    let map: Arc<dyn Volume> = Arc::new(MemoryVolume::from_vec([48; 3], 1, voxels)?);

    let index = LabelIndex::build(&*map, 0, threads(), &progress::silent)?;
    let shares = LabelWeights::new([(LabelValue::from(1), 1.0), (LabelValue::from(2), 3.0)])?;
    let options = SamplerOptions::new([16; 3], 7);
    let sampler = Label::new(Arc::clone(&map), &index, &shares, &options)?;

    let mut counts = BTreeMap::<u8, u32>::new();
    for region in draws(&sampler, 0, 0..400) {
        let center: Vec<i64> = region?.start.iter().map(|start| start + 8).collect();
        let voxel = map.read(Region::new([center[0], center[1], center[2]], [1; 3]))?;
        *counts.entry(voxel.as_slice::<u8>()?[0]).or_default() += 1;
    }
    println!("centers by label: {counts:?}, shares 1 : 3");
    Ok(())
}
