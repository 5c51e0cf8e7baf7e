//! Slabs: boxes that cover a volume in storage order.

use std::ops::Range;

use super::{ChunkShape, Layout};
use crate::region::Region;

/// The axis order of most files: c is the slowest, x the fastest.
pub(crate) const ROW_MAJOR: [usize; 4] = [0, 1, 2, 3];

/// Boxes of equal size that cover a volume in storage order, slowest axis first.
///
/// The first box begins at the volume's first voxel; the last along each axis may be smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slabs {
    /// Lengths of the volume along c, z, y, x.
    lengths: [u64; 4],
    /// Lengths of a box.
    size: [u64; 4],
    /// The axes, slowest first.
    order: [usize; 4],
}

impl Slabs {
    /// Creates the smallest boxes of whole `unit`s that can be read one after the other without going back. `order`
    /// gives the axes (0 to 3 for c, z, y, x), slowest first.
    pub(crate) fn smallest(layout: &Layout, order: [usize; 4], unit: ChunkShape) -> Self {
        let [z, y, x] = layout.shape;
        let lengths = [layout.channels, z, y, x];
        let size = std::array::from_fn(|a| unit[a].clamp(1, lengths[a].max(1)));
        let mut slabs = Self {
            lengths,
            size,
            order,
        };
        for axis in order.into_iter().rev() {
            if slabs.goes_forward() {
                break;
            }
            slabs.size[axis] = lengths[axis];
        }
        slabs
    }

    /// Creates boxes of up to `voxels` voxels that can be read one after the other without going back. If channels are
    /// the slowest axis, each box has one channel.
    pub(crate) fn up_to(layout: &Layout, order: [usize; 4], voxels: u64) -> Self {
        let mut slabs = Self::smallest(layout, order, [1; 4]);
        let slower = usize::from(order[0] == 0);
        for &axis in order[slower..].iter().rev() {
            let length = slabs.lengths[axis];
            slabs.size[axis] = (voxels / slabs.largest().max(1)).clamp(1, length.max(1));
            if slabs.size[axis] < length {
                break;
            }
        }
        slabs
    }

    /// Creates boxes of a region with these lengths. Each spans at most `bytes` of storage, or one row of the fastest
    /// axis. Neighbors along an axis are `strides` bytes apart.
    pub(super) fn spanning(
        lengths: [u64; 4],
        strides: [u64; 4],
        order: [usize; 4],
        bytes: u64,
    ) -> Self {
        let mut size = [1; 4];
        let cut = order.iter().position(|&axis| strides[axis] <= bytes);
        if let Some((&axis, whole)) = order[cut.unwrap_or(3)..].split_first() {
            size[axis] = (bytes / strides[axis].max(1)).clamp(1, lengths[axis].max(1));
            for &axis in whole {
                size[axis] = lengths[axis].max(1);
            }
        }
        Self {
            lengths,
            size,
            order,
        }
    }

    /// Returns `true` if each box begins in storage at or after the end of the previous one.
    fn goes_forward(&self) -> bool {
        let cut = |&&axis: &&usize| self.size[axis] < self.lengths[axis];
        let slower = self
            .order
            .iter()
            .rev()
            .skip_while(|axis| !cut(axis))
            .skip(1);
        slower.into_iter().all(|&axis| self.size[axis] <= 1)
    }

    /// Returns the number of voxels of the largest box.
    pub(crate) fn largest(&self) -> u64 {
        self.size.into_iter().fold(1, u64::saturating_mul)
    }

    /// Returns the number of boxes.
    pub(crate) fn count(&self) -> u64 {
        self.counts().into_iter().product()
    }

    fn counts(&self) -> [u64; 4] {
        std::array::from_fn(|a| self.lengths[a].div_ceil(self.size[a]))
    }

    /// Iterates over the boxes in storage order, as channels and region.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Range<u64>, Region)> + Send + use<> {
        let (slabs, counts) = (*self, self.counts());
        (0..self.count()).map(move |number| {
            let (mut left, mut ranges) = (number, [const { 0..0 }; 4]);
            for axis in slabs.order.into_iter().rev() {
                let start = left % counts[axis] * slabs.size[axis];
                left /= counts[axis];
                ranges[axis] = start..(start + slabs.size[axis]).min(slabs.lengths[axis]);
            }
            let [channels, axes @ ..] = ranges;
            let start = axes.each_ref().map(|range| range.start.cast_signed());
            let shape = axes.map(|range| range.end - range.start);
            (channels, Region::new(start, shape))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    /// Returns a function from c, z, y, x to the storage position, if axes are stored in `order`.
    fn places(lengths: [u64; 4], order: [usize; 4]) -> impl Fn([u64; 4]) -> u64 {
        move |at| {
            let place = |sum: u64, axis: usize| sum * lengths[axis] + at[axis];
            order.into_iter().fold(0, place)
        }
    }

    #[test]
    fn every_voxel_comes_once_and_in_storage_order() {
        let orders = [
            ROW_MAJOR,
            [1, 2, 3, 0],
            [1, 0, 2, 3],
            [3, 2, 1, 0],
            [0, 2, 1, 3],
        ];
        let units = [
            [1; 4],
            [1, 2, 3, 2],
            [2, 4, 1, 7],
            [1, 9, 9, 9],
            [9, 1, 1, 1],
        ];
        for lengths in [[1, 5, 4, 6], [3, 5, 4, 6], [4, 1, 1, 1], [2, 3, 1, 9]] {
            let [channels, shape @ ..] = lengths;
            let layout = Layout::new(shape, channels, DType::U8);
            let number_of_voxels: u64 = lengths.iter().product();
            for order in orders {
                let place = places(lengths, order);
                let smallest = units.map(|unit| Slabs::smallest(&layout, order, unit));
                let bounded = [1, 2, 7, 20, 64, 1000].map(|n| (n, Slabs::up_to(&layout, order, n)));
                for (most, slabs) in bounded {
                    assert!(slabs.largest() <= most, "{slabs:?}");
                }
                for slabs in smallest.into_iter().chain(bounded.map(|(_, slabs)| slabs)) {
                    let (mut end, mut count, mut boxes) = (0, 0, 0);
                    for (channels, region) in slabs.iter() {
                        boxes += 1;
                        let last: [u64; 3] =
                            std::array::from_fn(|a| region.end()[a].unsigned_abs() - 1);
                        let [z, y, x] = region.start.map(i64::unsigned_abs);
                        let from = place([channels.start, z, y, x]);
                        let to = place([channels.end - 1, last[0], last[1], last[2]]);
                        assert!(from >= end, "{slabs:?} goes back to {from} from {end}");
                        end = to + 1;
                        count += region.voxels() * (channels.end - channels.start);
                    }
                    assert_eq!(
                        (count, end),
                        (number_of_voxels, number_of_voxels),
                        "{slabs:?}"
                    );
                    assert_eq!(boxes, slabs.count());
                }
                for (unit, slabs) in units.into_iter().zip(smallest) {
                    let whole = |a: usize| slabs.size[a] == lengths[a];
                    let units = |a: usize| slabs.size[a].is_multiple_of(unit[a]);
                    assert!((0..4).all(|a| whole(a) || units(a)), "{unit:?} {slabs:?}");
                }
            }
        }
    }

    #[test]
    fn a_region_is_cut_into_boxes_that_span_little_storage() {
        // A region of a file of 4 x 10 x 20 x 30 voxels of 2 bytes, with c the fastest axis.
        let (order, strides) = ([1, 2, 3, 0], [2, 20 * 30 * 8, 30 * 8, 8]);
        for lengths in [[4, 10, 20, 30], [1, 10, 1, 1], [2, 3, 20, 7], [4, 1, 1, 30]] {
            for bytes in [1, 2, 8, 100, 240, 1000, 4800, 10_000, 1 << 20] {
                let slabs = Slabs::spanning(lengths, strides, order, bytes);
                let (mut end, mut count) = (0, 0);
                for (channels, region) in slabs.iter() {
                    let [z, y, x] = region.start.map(i64::unsigned_abs);
                    let first = [channels.start, z, y, x];
                    let last = region.end().map(|n| n.unsigned_abs() - 1);
                    let last = [channels.end - 1, last[0], last[1], last[2]];
                    let place = |at: [u64; 4]| (0..4).map(|a| at[a] * strides[a]).sum::<u64>();
                    assert!(place(first) >= end);
                    end = place(last) + 2;
                    assert!(end - place(first) <= bytes.max(2), "{slabs:?}");
                    count += region.voxels() * (channels.end - channels.start);
                }
                assert_eq!(count, lengths.iter().product::<u64>());
            }
        }
    }

    #[test]
    fn slabs_are_no_larger_than_necessary() {
        let layout = Layout::new([500, 512, 600], 3, DType::U8);
        let size = |order, unit| Slabs::smallest(&layout, order, unit).size;
        assert_eq!(size(ROW_MAJOR, [1, 128, 128, 128]), [1, 128, 512, 600]);
        assert_eq!(size(ROW_MAJOR, [1; 4]), [1; 4]);
        assert_eq!(size(ROW_MAJOR, [1, 1, 64, 64]), [1, 1, 64, 600]);
        assert_eq!(size([1, 2, 3, 0], [1, 32, 32, 32]), [3, 32, 512, 600]);
        assert_eq!(size(ROW_MAJOR, [3, 32, 32, 32]), [3, 500, 512, 600]);
        let up_to = |order, voxels| Slabs::up_to(&layout, order, voxels).size;
        assert_eq!(up_to(ROW_MAJOR, 1 << 20), [1, 3, 512, 600]);
        assert_eq!(up_to(ROW_MAJOR, 100_000), [1, 1, 166, 600]);
        assert_eq!(up_to([1, 2, 3, 0], 1 << 20), [3, 1, 512, 600]);
    }
}
