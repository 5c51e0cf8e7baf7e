//! A chest CT that is a formula: every voxel follows from its place alone.
//!
//! The chest is 320.7 x 337.92 x 337.92 mm whatever the number of voxels. Lengths are mm; the
//! world's axes here are x to the patient's left, y to the back, z up, from the middle of
//! the bottom slice. Values are HU in whole numbers, with a scanner's noise.

use std::ops::Range;

use voxpatch::{DType, Geometry, Layout, Region, Result, Shape, Volume};

use super::anatomy::Anatomy;
use super::shape::{P3, Tube};

/// Millimeters along z, y, x.
const EXTENT: [f64; 3] = [320.7, 337.92, 337.92];

/// A volume that is computed when it is read.
#[derive(Debug)]
pub(crate) struct Phantom {
    layout: Layout,
    /// Millimeters of a voxel, z, y, x.
    spacing: [f32; 3],
    anatomy: Anatomy,
}

impl Phantom {
    /// The chest in `shape` voxels of f32.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a spacing needs no more digits"
    )]
    pub(crate) fn new(shape: Shape) -> Self {
        let spacing: [f64; 3] = std::array::from_fn(|a| EXTENT[a] / shape[a].max(1) as f64);
        let [z, y, x] = spacing;
        let half = |axis: usize| (spacing[axis] - EXTENT[axis]) / 2.0;
        // The first voxel lies right, in front and at the bottom.
        let geometry = Geometry::from_lps(
            [[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, z]],
            [half(2), half(1), z / 2.0],
        );
        let mut layout = Layout::new(shape, 1, DType::F32).with_geometry(geometry);
        layout.path = "the phantom".into();
        Self {
            layout,
            spacing: spacing.map(|length| length as f32),
            anatomy: Anatomy::new(),
        }
    }

    /// Where a voxel's center lies, x, y, z.
    #[expect(clippy::cast_precision_loss, reason = "a place in mm")]
    #[expect(clippy::cast_possible_truncation, reason = "half an extent")]
    fn place(&self, [z, y, x]: [i64; 3]) -> P3 {
        let along = |index: i64, axis: usize| (index as f32 + 0.5) * self.spacing[axis];
        let half = |axis: usize| EXTENT[axis] as f32 / 2.0;
        [along(x, 2) - half(2), along(y, 1) - half(1), along(z, 0)]
    }

    /// Voxels of `region` whose centers may lie in a box of mm, x, y, z.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "voxels of a region in memory"
    )]
    fn voxels_in(&self, (low, high): (P3, P3), region: Region) -> Option<Region> {
        let index = |mm: f32, axis: usize| {
            let half = if axis == 0 {
                0.0
            } else {
                EXTENT[axis] as f32 / 2.0
            };
            ((mm + half) / self.spacing[axis] - 0.5).floor() as i64
        };
        let start: [i64; 3] = std::array::from_fn(|a| index(low[2 - a], a));
        let end: [i64; 3] = std::array::from_fn(|a| index(high[2 - a], a) + 2);
        let shape = std::array::from_fn(|a| u64::try_from(end[a] - start[a]).unwrap_or(0));
        Region::new(start, shape).intersection(&region)
    }

    /// Paints one tube over the tissue.
    fn paint(&self, tube: &Tube, region: Region, tissue: &mut [f32]) {
        let Some(part) = self.voxels_in(tube.bounds(), region) else {
            return;
        };
        let [_, height, width] = region.shape.map(length);
        let (start, end) = (part.start, part.end());
        for z in start[0]..end[0] {
            for y in start[1]..end[1] {
                let [dz, dy] = [z - region.start[0], y - region.start[1]].map(offset);
                let row = &mut tissue[(dz * height + dy) * width..][..width];
                for x in start[2]..end[2] {
                    let voxel = &mut row[offset(x - region.start[2])];
                    *voxel = tube.paint(self.place([z, y, x]), *voxel);
                }
            }
        }
    }
}

impl Volume for Phantom {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let [_, height, width] = region.shape.map(length);
        let mut tissue = vec![0.0_f32; out.len() / size_of::<f32>()];
        for (z, plane) in (region.start[0]..).zip(tissue.chunks_exact_mut(height * width)) {
            for (y, row) in (region.start[1]..).zip(plane.chunks_exact_mut(width)) {
                let [_, py, pz] = self.place([z, y, 0]);
                let line = self.anatomy.line(py, pz);
                for (x, voxel) in (region.start[2]..).zip(row) {
                    *voxel = line.tissue(self.place([z, y, x])[0]);
                }
            }
        }
        for tube in self.anatomy.tubes() {
            self.paint(tube, region, &mut tissue);
        }
        let mut voxels = out.chunks_exact_mut(size_of::<f32>()).zip(tissue);
        for z in region.start[0]..region.end()[0] {
            for y in region.start[1]..region.end()[1] {
                for x in region.start[2]..region.end()[2] {
                    let (out, tissue) = voxels.next().expect("as many voxels as the region has");
                    let value = (tissue + noise([z, y, x], tissue))
                        .round()
                        .clamp(-1024.0, 3071.0);
                    // Without this, -0 and 0 would be two values.
                    out.copy_from_slice(&(value + 0.0).to_ne_bytes());
                }
            }
        }
        Ok(())
    }
}

/// A voxel's noise in HU, nearly normal: a function of its place and nothing else.
#[expect(clippy::cast_precision_loss, reason = "16 bits each")]
fn noise(at: [i64; 3], tissue: f32) -> f32 {
    let mut hash = 0x9E37_79B9_7F4A_7C15_u64;
    for index in at {
        // splitmix64's finisher over the three indices.
        hash = hash
            .wrapping_add(index.cast_unsigned())
            .wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash ^= hash >> 29;
        hash = hash.wrapping_mul(0x94D0_49BB_1331_11EB);
        hash ^= hash >> 32;
    }
    let sum: u64 = (0..4).map(|n| hash >> (16 * n) & 0xFFFF).sum();
    let deviate = (sum as f32 / 65_536.0 - 2.0) * 1.732;
    deviate
        * if tissue < -950.0 {
            7.0
        } else if tissue < -500.0 {
            22.0
        } else {
            13.0
        }
}

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a region in memory")
}

fn offset(n: i64) -> usize {
    usize::try_from(n).expect("a voxel inside the region")
}

#[cfg(test)]
mod tests {
    use super::*;
    use voxpatch::VolumeExt;

    #[test]
    fn a_voxel_does_not_depend_on_what_is_read_with_it() {
        let phantom = Phantom::new([40, 48, 56]);
        let whole = phantom
            .read(Region::whole([40, 48, 56]))
            .expect("a formula");
        let whole = whole.view::<f32>().expect("f32");
        for start in [[0, 0, 0], [13, 21, 30], [33, 40, 47]] {
            let part = phantom
                .read(Region::new(start, [7, 8, 9]))
                .expect("a formula");
            let [z, y, x] = start.map(offset);
            let expected = whole.slice(ndarray::s![.., z..z + 7, y..y + 8, x..x + 9]);
            assert_eq!(part.view::<f32>().expect("f32"), expected);
        }
    }

    #[test]
    fn it_holds_what_a_chest_holds() {
        let phantom = Phantom::new([107, 102, 102]);
        let patch = phantom
            .read(Region::whole([107, 102, 102]))
            .expect("a formula");
        let voxels = patch.as_slice::<f32>().expect("f32");
        let share = |range: Range<f32>| {
            let count = voxels.iter().filter(|value| range.contains(value)).count();
            report_share(count, voxels.len())
        };
        assert!(
            (0.25..0.7).contains(&share(-1024.0..-950.0)),
            "air {}",
            share(-1024.0..-950.0)
        );
        assert!(
            (0.06..0.3).contains(&share(-950.0..-700.0)),
            "lung {}",
            share(-950.0..-700.0)
        );
        assert!(
            (0.03..0.3).contains(&share(-150.0..-50.0)),
            "fat {}",
            share(-150.0..-50.0)
        );
        assert!(
            (0.1..0.4).contains(&share(0.0..100.0)),
            "soft {}",
            share(0.0..100.0)
        );
        assert!(
            (0.004..0.1).contains(&share(300.0..3071.0)),
            "bone {}",
            share(300.0..3071.0)
        );
        assert!(
            voxels
                .iter()
                .all(|value| value.fract().abs() < f32::EPSILON)
        );
    }

    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn report_share(count: usize, of: usize) -> f64 {
        count as f64 / of as f64
    }
}
