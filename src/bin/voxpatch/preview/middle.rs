//! The middle of a label map, found block by block.

use std::sync::{Mutex, PoisonError};

use voxpatch::progress::Progress;
use voxpatch::region::{chunk_range, chunk_region, indices};
use voxpatch::{Error, Patch, Region, Shape, Volume, VolumeExt};

use super::slice::{as_labels, index};
use crate::progress::continues;
use crate::report::float;
use crate::workers::on_threads;

/// Voxels of a block, unless a chunk has more.
const BLOCK: u64 = 1 << 20;

/// The number of labeled voxels in each plane along z, y, x.
struct Planes([Vec<u64>; 3]);

/// Returns a voxel (z, y, x) whose three planes go through the labels, or `None` if there are none. Along each axis it is
/// the plane nearest to the center of mass that has at least half as many labeled voxels as the fullest one.
///
/// Each thread holds one block. `progress` counts blocks.
pub(super) fn middle(
    labels: &dyn Volume,
    threads: usize,
    progress: Progress<'_>,
) -> voxpatch::Result<Option<Shape>> {
    let layout = labels.layout();
    let whole = Region::whole(layout.shape);
    let block = block(labels);
    let ranges = chunk_range(&whole, block);
    let total = ranges.iter().map(|range| range.end - range.start).product();
    let blocks = indices(ranges).filter_map(|at| chunk_region(at, block).intersection(&whole));
    let planes = Planes(layout.shape.map(|length| vec![0; index(length)]));
    let state = Mutex::new((blocks, planes, 0_u64));
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || -> voxpatch::Result<()> {
        loop {
            let Some(region) = lock().0.next() else {
                return Ok(());
            };
            let found = as_labels(read(labels, region)?);
            let mut state = lock();
            state.1.count(region, &found);
            state.2 += 1;
            let done = state.2;
            drop(state);
            if !continues(progress(done, total)) {
                return Err(Error::Interrupted);
            }
        }
    };
    let threads = if labels.is_sequential() { 1 } else { threads };
    on_threads(threads, work)?;
    let middle = lock().1.middle();
    Ok(middle)
}

/// Returns the shape of blocks: whole chunks if there are any, else planes or rows.
fn block(labels: &dyn Volume) -> Shape {
    let layout = labels.layout();
    let fits = |shape: &Shape| shape.iter().product::<u64>() <= BLOCK;
    let spatial = |chunk: Option<[u64; 4]>| chunk.map(|[_, z, y, x]| [z, y, x]);
    let shard = spatial(layout.write_chunk).filter(fits);
    if let Some(chunk) = shard.or(spatial(layout.read_chunk)) {
        return chunk;
    }
    let [z, y, x] = layout.shape.map(|length| length.max(1));
    let rows = (BLOCK / x).clamp(1, y);
    let planes = if rows == y {
        (BLOCK / (x * y)).clamp(1, z)
    } else {
        1
    };
    [planes, rows, x]
}

/// Reads channel 0 of a box.
fn read(labels: &dyn Volume, region: Region) -> voxpatch::Result<Patch> {
    let mut patch = Patch::zeros(region, 1, labels.layout().dtype)?;
    labels.read_channels(0..1, region, patch.bytes_mut())?;
    Ok(patch)
}

impl Planes {
    /// Counts the labels of a block.
    fn count(&mut self, region: Region, labels: &[u64]) {
        let [z0, y0, x0] = region.start.map(|n| index(n.unsigned_abs()));
        let [_, height, width] = region.shape.map(index);
        for (row, labels) in labels.chunks_exact(width).enumerate() {
            let mut found = 0;
            for (count, &label) in self.0[2][x0..].iter_mut().zip(labels) {
                *count += u64::from(label != 0);
                found += u64::from(label != 0);
            }
            self.0[0][z0 + row / height] += found;
            self.0[1][y0 + row % height] += found;
        }
    }

    fn middle(&self) -> Option<Shape> {
        let planes = self.0.each_ref().map(|counts| best(counts));
        let [Some(z), Some(y), Some(x)] = planes else {
            return None;
        };
        Some([z, y, x])
    }
}

/// Returns the place nearest to the center of mass whose count is at least half of the largest one.
fn best(counts: &[u64]) -> Option<u64> {
    let most = counts.iter().copied().max().filter(|&most| most > 0)?;
    let weighted = (0_u64..).zip(counts);
    let (moment, total) = weighted.fold((0.0, 0.0), |(moment, total), (at, &count)| {
        (moment + float(at) * float(count), total + float(count))
    });
    let distance = |at: u64| (float(at) - moment / total).abs();
    let full = (0_u64..)
        .zip(counts)
        .filter(|&(_, &count)| count >= most.div_ceil(2));
    full.map(|(at, _)| at)
        .min_by(|&a, &b| distance(a).total_cmp(&distance(b)))
}

#[cfg(test)]
mod tests {
    use voxpatch::MemoryVolume;
    use voxpatch::progress::silent;

    use super::*;

    /// A label map with this box in it.
    fn map(shape: Shape, boxes: &[Region], chunk: Option<u64>) -> MemoryVolume {
        let [_, height, width] = shape.map(index);
        let mut voxels = vec![0_u8; shape.map(index).iter().product()];
        for region in boxes {
            let [z, y, x] = region.start.map(|n| index(n.unsigned_abs()));
            let [depth, rows, columns] = region.shape.map(index);
            for row in 0..depth * rows {
                let at = ((z + row / rows) * height + y + row % rows) * width + x;
                voxels[at..at + columns].fill(3);
            }
        }
        let volume = MemoryVolume::from_vec(shape, 1, voxels).expect("the shape fits");
        match chunk {
            Some(n) => volume.with_chunks([1, n, n, n]),
            None => volume,
        }
    }

    #[test]
    fn the_middle_lies_in_the_labels_however_they_are_stored() {
        let shape = [20, 30, 40];
        let one = [Region::new([12, 3, 20], [5, 7, 9])];
        // Their center of mass lies in neither.
        let two = [
            Region::new([2, 2, 2], [5, 7, 9]),
            Region::new([2, 2, 29], [5, 7, 11]),
        ];
        for chunk in [None, Some(7), Some(64)] {
            for threads in [1, 3] {
                let of = |boxes: &[Region]| middle(&map(shape, boxes, chunk), threads, &silent);
                assert_eq!(of(&one).expect("memory"), Some([14, 6, 24]));
                let [z, y, x] = of(&two).expect("memory").expect("there are labels");
                assert_eq!([z, y], [4, 5]);
                assert!((2..11).contains(&x) || (29..40).contains(&x), "{x}");
                assert_eq!(of(&[]).expect("memory"), None);
            }
        }
    }

    #[test]
    fn the_middle_is_near_the_center_of_mass_and_in_a_full_plane() {
        assert_eq!(best(&[9, 8, 8, 8, 8, 7, 7]), Some(3));
        assert_eq!(best(&[0, 9, 9, 9, 0, 1, 1, 0, 9, 9, 9]), Some(3));
        assert_eq!(best(&[0, 0, 1]), Some(2));
        assert_eq!(best(&[0, 0]), None);
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn a_block_holds_few_voxels_unless_a_chunk_has_more() {
        for shape in [
            [1, 1, 1],
            [300, 400, 500],
            [2, 3000, 2000],
            [9, 9, 5_000_000],
        ] {
            let volume = MemoryVolume::from_vec([1; 3], 1, vec![0_u8]).expect("one voxel");
            let layout = voxpatch::Layout {
                shape,
                ..volume.layout().clone()
            };
            let block = block(&Sized(layout));
            assert!(
                block.iter().product::<u64>() <= BLOCK.max(shape[2]),
                "{block:?}"
            );
        }
    }

    /// A volume of which only the layout is looked at.
    #[derive(Debug)]
    struct Sized(voxpatch::Layout);

    impl Volume for Sized {
        fn layout(&self) -> &voxpatch::Layout {
            &self.0
        }

        fn read_channels(
            &self,
            _: std::ops::Range<u64>,
            _: Region,
            _: &mut [u8],
        ) -> voxpatch::Result<()> {
            unreachable!("it is not read")
        }
    }
}
