//! The cost of patches in volumes whose chunks are far larger than a patch along some axis, such as frames.

use std::fmt;

use super::Layout;
use crate::region::Shape;

/// Decoded voxels for each voxel of a patch from which on a conversion is proposed.
const COSTLY: f64 = 8.0;

/// The side of the chunks of a converted volume.
const CONVERTED: u64 = 64;

/// The voxels that a patch decodes, in a volume that should be converted first.
///
/// Its text says so: `28.4: a 96 x 96 x 96 patch touches 96 chunks of 1 x 512 x 512; convert it first for 6.3 times fewer`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchCost {
    /// The lengths of the patch along z, y, x, cut to those of the volume.
    pub patch: Shape,
    /// The lengths of a chunk along z, y, x.
    pub chunk: Shape,
    /// The chunks that a patch touches on average, rounded up.
    pub chunks: u64,
    /// The voxels that are decoded for a patch, on average.
    pub decoded: f64,
    /// The same in chunks of 64 x 64 x 64.
    pub converted: f64,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "lengths of volumes are far below 2^53"
)]
const fn float(n: u64) -> f64 {
    n as f64
}

impl PatchCost {
    /// Returns the cost of patches of a shape (z, y, x) at random places, each read alone. `None` unless it is at least 8
    /// decoded voxels for each voxel of a patch, and a conversion at least halves it.
    #[must_use]
    pub fn of(layout: &Layout, patch: Shape) -> Option<Self> {
        let [_, chunk @ ..] = layout.read_chunk?;
        let patch: Shape = std::array::from_fn(|a| patch[a].clamp(1, layout.shape[a]));
        // A random start meets (p - 1) / c + 1 chunks on average, but never more than there are.
        let met = |chunk: Shape| -> [f64; 3] {
            std::array::from_fn(|axis| {
                let (p, c) = (float(patch[axis]), float(chunk[axis]));
                let all = float(layout.shape[axis].div_ceil(chunk[axis]));
                ((p - 1.0) / c + 1.0).min(all)
            })
        };
        let decoded = |chunk: Shape| -> f64 {
            let met = met(chunk);
            let voxels = (0..3).map(|axis| {
                let length = float(layout.shape[axis]);
                (met[axis] * float(chunk[axis])).min(length)
            });
            voxels.product()
        };
        let small = layout.shape.map(|length| length.min(CONVERTED));
        let cost = Self {
            patch,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a small positive number"
            )]
            chunks: met(chunk).iter().product::<f64>().ceil() as u64,
            chunk,
            decoded: decoded(chunk),
            converted: decoded(small),
        };
        (cost.ratio() >= COSTLY && cost.decoded >= 2.0 * cost.converted).then_some(cost)
    }

    /// Returns the voxels that are decoded for each voxel of a patch, to one decimal.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let voxels: f64 = self.patch.iter().map(|&n| float(n)).product();
        (10.0 * self.decoded / voxels).round() / 10.0
    }
}

impl fmt::Display for PatchCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |lengths: Shape| lengths.map(|n| n.to_string()).join(" x ");
        write!(
            f,
            "{:.1}: a {} patch touches {} chunks of {}; convert it first for {:.1} times fewer",
            self.ratio(),
            by(self.patch),
            self.chunks,
            by(self.chunk),
            self.decoded / self.converted
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::volume::ChunkShape;

    fn layout(shape: Shape, chunk: ChunkShape) -> Layout {
        let mut layout = Layout::new(shape, 1, DType::I16);
        layout.read_chunk = Some(chunk);
        layout
    }

    #[test]
    fn a_costly_patch_is_reported_with_its_chunks() {
        let series = layout([300, 512, 512], [1, 1, 512, 512]);
        let cost = PatchCost::of(&series, [96; 3]).unwrap();
        assert_eq!(
            cost.to_string(),
            "28.4: a 96 x 96 x 96 patch touches 96 chunks of 1 x 512 x 512; convert it first for 6.3 times fewer"
        );
        for (shape, chunk) in [
            ([300, 512, 512], [1, 64, 64, 64]),
            ([300, 96, 96], [1, 1, 96, 96]),
            ([1, 512, 512], [1, 1, 16, 16]),
        ] {
            assert_eq!(PatchCost::of(&layout(shape, chunk), [96; 3]), None);
        }
        assert_eq!(PatchCost::of(&series, [1, 512, 512]), None);
        assert_eq!(
            PatchCost::of(&Layout::new([9; 3], 1, DType::U8), [96; 3]),
            None
        );
    }

    /// The numbers are means over all places of a patch.
    #[test]
    fn the_cost_is_the_mean_over_all_places() {
        let (shape, chunk, patch) = ([60, 600, 500], [1, 3, 600, 100], [16, 8, 9]);
        let cost = PatchCost::of(&layout(shape, chunk), patch).unwrap();
        let mut mean = 1.0;
        for a in 0..3 {
            let starts = shape[a] - patch[a] + 1;
            let chunks =
                |start: u64| (start + patch[a] - 1) / chunk[a + 1] - start / chunk[a + 1] + 1;
            let all: u64 = (0..starts).map(chunks).sum();
            mean *= float(all) / float(starts) * float(chunk[a + 1]).min(float(shape[a]));
        }
        assert!((cost.decoded / mean - 1.0).abs() < 0.15, "{cost:?} {mean}");
    }
}
