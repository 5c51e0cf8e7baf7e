//! Border policies: the legal patch centers, and the patch of each.
//!
//! A patch of P voxels with first voxel k has its center at k + P/2, rounded down. Nothing here is random.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::grid::check_patch;
use crate::region::{AXES, Region, Shape};

/// The policy for patches that do not fit around their center.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Border {
    /// Draw only centers whose patch fits (`TorchIO`).
    #[default]
    Drop,
    /// Draw any voxel and move the patch inside, so that edges are sampled more often (MONAI).
    Shift,
    /// Draw any voxel; the patch may extend beyond the volume and is padded (nnU-Net).
    Pad,
}

/// The legal places of patches of one size in one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CenterBox {
    volume: Shape,
    patch: Shape,
    border: Border,
}

impl CenterBox {
    /// Places patches of `patch` voxels (z, y, x) in a volume of `volume`.
    ///
    /// # Errors
    ///
    /// [`Error::PatchSize`] if a patch or the volume is empty, or if a patch is larger than
    /// the volume and the border is not [`Border::Pad`].
    pub fn new(volume: Shape, patch: Shape, border: Border) -> Result<Self> {
        let fitting = match border {
            Border::Drop | Border::Shift => patch,
            // Only checks that both have voxels, and that starts fit into i64.
            Border::Pad => std::array::from_fn(|a| match (patch[a], volume[a]) {
                (0, _) => 0,
                (patch, volume) if i64::try_from(patch).is_ok() => patch.min(volume.max(1)),
                (patch, _) => patch,
            }),
        };
        if let Err(Error::PatchSize { axis, .. }) = check_patch(volume, fitting) {
            let a = AXES.iter().position(|&name| name == axis).unwrap_or(0);
            return Err(Error::PatchSize {
                axis,
                patch: patch[a],
                volume: volume[a],
            });
        }
        Ok(Self {
            volume,
            patch,
            border,
        })
    }

    /// Returns the shape of the volume (z, y, x).
    #[must_use]
    pub const fn volume(&self) -> Shape {
        self.volume
    }

    /// Returns the shape of a patch (z, y, x).
    #[must_use]
    pub const fn patch(&self) -> Shape {
        self.patch
    }

    /// Returns the voxels that may be the center of a patch.
    #[must_use]
    pub fn centers(&self) -> Region {
        let axes = [0, 1, 2].map(|a| self.axis(a));
        let start = axes
            .clone()
            .map(|axis| i64::try_from(axis.start).unwrap_or(i64::MAX));
        Region::new(start, axes.map(|axis| axis.end - axis.start))
    }

    /// Returns the number of legal centers, rounded to f64. As weights of volumes, these numbers make all places
    /// equally likely in small and large volumes.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a weight")]
    pub fn places(&self) -> f64 {
        let axes = self.centers().shape.map(|n| n as f64);
        axes.iter().product()
    }

    fn axis(&self, a: usize) -> Range<u64> {
        match self.border {
            Border::Drop => {
                let first = self.patch[a] / 2;
                first..first + (self.volume[a] - self.patch[a] + 1)
            }
            Border::Shift | Border::Pad => 0..self.volume[a],
        }
    }

    /// Returns the patch around a center (z, y, x), which must be one of [`centers`](Self::centers).
    #[must_use]
    pub fn region(&self, center: [u64; 3]) -> Region {
        let start = std::array::from_fn(|a| {
            let half = self.patch[a] / 2;
            match self.border {
                Border::Pad => signed(center[a]) - signed(half),
                Border::Drop | Border::Shift => {
                    let last = self.volume[a] - self.patch[a];
                    signed(center[a].saturating_sub(half).min(last))
                }
            }
        });
        Region::new(start, self.patch)
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn along_x(volume: u64, patch: u64, border: Border) -> Result<CenterBox> {
        CenterBox::new([9, 9, volume], [3, 3, patch], border)
    }

    #[test]
    fn dropping_leaves_one_center_for_each_place_and_no_other() {
        for volume in 1..14 {
            for patch in 1..=volume {
                let placement = along_x(volume, patch, Border::Drop).unwrap();
                let centers = placement.centers();
                assert_eq!(
                    (centers.start[2], centers.end()[2]),
                    (signed(patch / 2), signed(volume - (patch - 1) / 2)),
                    "floor(P/2) ..= N-1-floor((P-1)/2)"
                );
                let places = f64::from(u32::try_from(7 * 7 * (volume - patch + 1)).unwrap());
                assert!((placement.places() - places).abs() < 0.5);
                let starts = (centers.start[2]..centers.end()[2])
                    .map(|x| placement.region([1, 1, x.unsigned_abs()]).start[2]);
                assert!(starts.eq(0..=signed(volume - patch)));
            }
        }
    }

    #[test]
    fn shifting_moves_every_patch_inside_and_padding_moves_none() {
        for volume in 1..14 {
            for patch in 1..=volume {
                let shift = along_x(volume, patch, Border::Shift).unwrap();
                let pad = along_x(volume, patch, Border::Pad).unwrap();
                assert_eq!(shift.centers(), Region::whole([9, 9, volume]));
                assert_eq!(pad.centers(), Region::whole([9, 9, volume]));
                for x in 0..volume {
                    let center = [4, 4, x];
                    assert!(shift.region(center).is_inside([9, 9, volume]));
                    assert!(
                        shift
                            .region(center)
                            .contains(&Region::new(center.map(signed), [1; 3]))
                    );
                    assert_eq!(pad.region(center).start[2], signed(x) - signed(patch / 2));
                }
            }
        }
    }

    #[test]
    fn a_patch_larger_than_the_volume_needs_padding() {
        for border in [Border::Drop, Border::Shift] {
            assert!(matches!(
                along_x(4, 5, border),
                Err(Error::PatchSize {
                    axis: 'x',
                    patch: 5,
                    volume: 4
                })
            ));
        }
        let pad = along_x(4, 9, Border::Pad).unwrap();
        assert_eq!(pad.region([1, 1, 0]), Region::new([0, 0, -4], [3, 3, 9]));
    }

    #[test]
    fn empty_patches_empty_volumes_and_absurd_lengths_are_refused_by_every_policy() {
        for border in [Border::Drop, Border::Shift, Border::Pad] {
            assert!(along_x(4, 0, border).is_err());
            assert!(along_x(0, 1, border).is_err());
            assert!(matches!(
                along_x(4, 1 << 63, border),
                Err(Error::PatchSize { patch, volume: 4, .. }) if patch == 1 << 63
            ));
        }
    }

    #[test]
    fn axes_beyond_31_bits_reach_their_far_end() {
        let volume = [70_001, 65_537, (1 << 31) + 1];
        let patch = [70_000, 65_536, 1 << 31];
        let placement = CenterBox::new(volume, patch, Border::Drop).unwrap();
        let centers = placement.centers();
        assert_eq!(centers.shape, [2, 2, 2]);
        let last = centers.end().map(|end| end.unsigned_abs() - 1);
        assert_eq!(placement.region(last).end(), volume.map(signed));
    }
}
