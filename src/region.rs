//! Box arithmetic in z, y, x.
//!
//! Lengths are `u64` and starts are `i64`, and neither is narrowed: a volume may be longer than 65 535 voxels along an
//! axis and larger than 2^53 bytes.

use std::fmt;

/// Voxels along z, y, x.
pub type Shape = [u64; 3];

/// The names of the axes, in the order of every shape of this crate.
pub const AXES: [char; 3] = ['z', 'y', 'x'];

/// All orders of three axes.
pub(crate) const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// A box of voxels. `start` may be negative: such a region extends beyond the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// The first voxel (z, y, x).
    pub start: [i64; 3],
    /// Voxels along each axis.
    pub shape: Shape,
}

impl Region {
    /// Creates the box of `shape` voxels whose first voxel is `start`.
    #[must_use]
    pub const fn new(start: [i64; 3], shape: Shape) -> Self {
        Self { start, shape }
    }

    /// Creates the region of a whole volume of `shape` voxels.
    #[must_use]
    pub const fn whole(shape: Shape) -> Self {
        Self {
            start: [0; 3],
            shape,
        }
    }

    /// Returns one past the last voxel along each axis.
    #[must_use]
    pub fn end(&self) -> [i64; 3] {
        std::array::from_fn(|a| self.start[a].saturating_add_unsigned(self.shape[a]))
    }

    /// Returns the number of voxels in the box; `u64::MAX` if there are more.
    #[must_use]
    pub fn voxels(&self) -> u64 {
        voxels(self.shape).unwrap_or(u64::MAX)
    }

    /// Returns `true` if the box has no voxel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Returns `true` if every voxel of the box is inside a volume of `shape`.
    #[must_use]
    pub fn is_inside(&self, shape: Shape) -> bool {
        Self::whole(shape).contains(self)
    }

    /// Returns `true` if this box contains every voxel of `other`.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        let (end, other_end) = (self.end(), other.end());
        (0..3).all(|a| self.start[a] <= other.start[a] && other_end[a] <= end[a])
    }

    /// Returns the intersection of two boxes, or `None` if it is empty.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let (end, other_end) = (self.end(), other.end());
        let start = std::array::from_fn(|a| self.start[a].max(other.start[a]));
        let mut shape = [0; 3];
        for a in 0..3 {
            let length = end[a].min(other_end[a]).checked_sub(start[a])?;
            shape[a] = u64::try_from(length).ok().filter(|&n| n > 0)?;
        }
        Some(Self { start, shape })
    }

    /// Returns the channel and the voxel (z, y, x) of place `n` in a row-major buffer of this box, channels first.
    pub(crate) fn place(&self, n: usize) -> (u64, [i64; 3]) {
        let [z, y, x] = self.shape.map(|length| length.max(1));
        let n = n as u64;
        let within = [n / (y * x) % z, n / x % y, n % x];
        let voxel = std::array::from_fn(|a| self.start[a].saturating_add_unsigned(within[a]));
        (n / (z * y * x), voxel)
    }

    /// Returns the same box with coordinates relative to `origin`.
    #[must_use]
    pub fn relative_to(&self, origin: [i64; 3]) -> Self {
        Self {
            start: std::array::from_fn(|a| self.start[a] - origin[a]),
            shape: self.shape,
        }
    }
}

/// Writes the box as ranges, such as `0..64, 128..192, 3..67`.
impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([z, y, x], [z1, y1, x1]) = (self.start, self.end());
        write!(f, "{z}..{z1}, {y}..{y1}, {x}..{x1}")
    }
}

/// Returns the product of the three lengths, or `None` if it does not fit into `u64`.
#[must_use]
pub fn voxels(shape: Shape) -> Option<u64> {
    shape[0].checked_mul(shape[1])?.checked_mul(shape[2])
}

/// Returns the chunks of a regular chunking that `region` touches: along each axis, the index of the first chunk and
/// one past the last. A start below 0 counts as 0.
#[must_use]
pub fn chunk_range(region: &Region, chunk: Shape) -> [std::ops::Range<u64>; 3] {
    std::array::from_fn(|a| {
        let start = region.start[a].max(0).unsigned_abs();
        let end = region.end()[a].max(0).unsigned_abs();
        start / chunk[a]..end.div_ceil(chunk[a])
    })
}

/// Returns every index triple of a box of indices, the last axis fastest.
pub fn indices(ranges: [std::ops::Range<u64>; 3]) -> impl Iterator<Item = [u64; 3]> {
    let [z, y, x] = ranges;
    z.flat_map(move |z| {
        let x = x.clone();
        y.clone()
            .flat_map(move |y| x.clone().map(move |x| [z, y, x]))
    })
}

/// Returns the box that chunk `index` of a regular chunking covers; it may extend beyond the volume.
///
/// # Panics
///
/// If the chunk starts beyond 2^63 voxels.
#[must_use]
pub fn chunk_region(index: [u64; 3], chunk: Shape) -> Region {
    let start = std::array::from_fn(|a| {
        i64::try_from(index[a] * chunk[a]).expect("a chunk starts inside its volume, below 2^63")
    });
    Region::new(start, chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_prints_as_ranges() {
        assert_eq!(
            Region::new([-2, 0, 5], [4, 8, 1]).to_string(),
            "-2..2, 0..8, 5..6"
        );
    }

    #[test]
    fn intersections_are_cut_on_every_axis() {
        let a = Region::new([-2, 0, 5], [4, 8, 10]);
        assert_eq!(
            a.intersection(&Region::whole([9, 9, 9])),
            Some(Region::new([0, 0, 5], [2, 8, 4]))
        );
        assert_eq!(
            a.intersection(&Region::whole([9, 9, 5])),
            None,
            "touching is not overlapping"
        );
    }

    #[test]
    fn axes_beyond_32_bits_keep_their_numbers() {
        let far = Region::new([0, 0, (1 << 31) - 4], [1, 1, 8]);
        assert!(far.is_inside([1, 1, (1 << 31) + 4]));
        assert!(!far.is_inside([1, 1, (1 << 31) + 3]));
        assert_eq!(voxels([1 << 31, 1 << 31, 4]), None);
        assert_eq!(Region::whole([u64::MAX, 2, 1]).voxels(), u64::MAX);
    }

    #[test]
    fn chunks_of_a_region_are_those_that_it_touches() {
        let region = Region::new([63, 64, 0], [2, 64, 1]);
        let ranges = chunk_range(&region, [64, 64, 64]);
        assert_eq!(ranges, [0..2, 1..2, 0..1]);
        assert_eq!(indices(ranges).collect::<Vec<_>>(), [[0, 1, 0], [1, 1, 0]]);
    }
}
