//! A custom volume: its voxels are computed when they are read.
//!
//! ```sh
//! cargo run --release --example custom_volume
//! ```

use std::ops::Range;

use voxpatch::{DType, Layout, Region, Result, Uniform, Volume, VolumeExt};

/// A volume of 2^20 x 2^20 x 2^20 voxels whose values are the sum of their coordinates.
#[derive(Debug)]
struct Ramp {
    layout: Layout,
}

impl Volume for Ramp {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        let (start, end) = (region.start, region.end());
        let mut voxels = out.chunks_exact_mut(size_of::<i64>());
        for z in start[0]..end[0] {
            for y in start[1]..end[1] {
                for x in start[2]..end[2] {
                    let voxel = voxels.next().expect("the buffer has the region's size");
                    voxel.copy_from_slice(&(z + y + x).to_ne_bytes());
                }
            }
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let shape = [1 << 20; 3];
    let ramp = Ramp {
        layout: Layout::new(shape, 1, DType::I64),
    };
    for region in Uniform::new(shape, [32; 3], 1)?.take(3) {
        let patch = ramp.read(region)?;
        let first = patch.as_slice::<i64>()?[0];
        println!("[{region}] begins with {first}");
    }
    Ok(())
}
