//! A slice of a volume, brought to the picture's size while it is read.

use voxpatch::{DType, Patch, Region, Shape, Volume};

/// Voxels that are read at once, unless a row of chunks has more.
const BAND: u64 = 1 << 20;

/// Voxels that are looked at for the window, for each slice.
const SAMPLES: u64 = 1 << 18;

/// A slice and the size that it is to have.
#[derive(Clone, Debug)]
pub(super) struct Plane {
    shape: Shape,
    fixed: usize,
    at: u64,
    /// Pixels along z, y, x.
    sizes: [usize; 3],
    /// The slower and the faster of the slice's two axes.
    slow: usize,
    fast: usize,
}

/// A slice's real values at the picture's size, rows along its slower axis.
#[derive(Debug)]
pub(super) struct Values {
    pub(super) pixels: Vec<f32>,
    /// The smallest finite value of all voxels; infinite if there is none.
    pub(super) lowest: f32,
    /// Finite values of voxels at regular distances.
    pub(super) samples: Vec<f32>,
}

impl Plane {
    pub(super) fn new(shape: Shape, fixed: usize, at: u64, sizes: [usize; 3]) -> Self {
        let (slow, fast) = match fixed {
            0 => (1, 2),
            1 => (0, 2),
            _ => (0, 1),
        };
        Self {
            shape,
            fixed,
            at,
            sizes,
            slow,
            fast,
        }
    }

    /// Pixels along an axis.
    pub(super) const fn size(&self, axis: usize) -> usize {
        self.sizes[axis]
    }

    /// Reads the real values of channel 0: averaged where there are more voxels than pixels,
    /// interpolated where there are fewer.
    pub(super) fn read_values(&self, volume: &dyn Volume) -> voxpatch::Result<Values> {
        let (rows, columns) = (self.sizes[self.slow], self.sizes[self.fast]);
        let (height, width) = (self.shape[self.slow], self.shape[self.fast]);
        let across: Vec<Vec<(usize, f32)>> =
            (0..width).map(|x| shares(x, width, columns)).collect();
        let every = (height.saturating_mul(width) / SAMPLES).max(1);
        let mut values = Values {
            pixels: vec![0.0; rows * columns],
            lowest: f32::INFINITY,
            samples: Vec::new(),
        };
        let mut line = vec![0.0; columns];
        let mut seen = 0_u64;
        self.bands(volume, |first, band| {
            let real = as_f32(band);
            for (row, voxels) in (first..).zip(real.chunks_exact(across.len())) {
                line.fill(0.0);
                for (&value, pixels) in voxels.iter().zip(&across) {
                    for &(pixel, share) in pixels {
                        line[pixel] += value * share;
                    }
                    if value.is_finite() {
                        values.lowest = values.lowest.min(value);
                        if seen.is_multiple_of(every) {
                            values.samples.push(value);
                        }
                    }
                    seen += 1;
                }
                for (at, share) in shares(row, height, rows) {
                    let pixels = &mut values.pixels[at * columns..][..columns];
                    for (pixel, value) in pixels.iter_mut().zip(&line) {
                        *pixel += value * share;
                    }
                }
            }
        })?;
        Ok(values)
    }

    /// Reads the labels of channel 0, for each pixel the nearest voxel's.
    pub(super) fn read_labels(&self, volume: &dyn Volume) -> voxpatch::Result<Vec<u64>> {
        let nearest = |axis: usize| -> Vec<u64> {
            let (voxels, pixels) = (self.shape[axis], self.sizes[axis] as u64);
            let middle = |pixel: u64| {
                u128::from(2 * pixel + 1) * u128::from(voxels) / u128::from(2 * pixels)
            };
            (0..pixels)
                .map(|pixel| u64::try_from(middle(pixel)).unwrap_or(0))
                .collect()
        };
        let (rows, columns) = (nearest(self.slow), nearest(self.fast));
        let width = index(self.shape[self.fast]);
        let mut labels = vec![0; rows.len() * columns.len()];
        self.bands(volume, |first, band| {
            let found = as_labels(band);
            let last = first + (found.len() / width) as u64;
            for (out, &row) in labels.chunks_exact_mut(columns.len()).zip(&rows) {
                if (first..last).contains(&row) {
                    let line = &found[index(row - first) * width..][..width];
                    for (label, &column) in out.iter_mut().zip(&columns) {
                        *label = line[index(column)];
                    }
                }
            }
        })?;
        Ok(labels)
    }

    /// Hands out channel 0 of the slice in bands of whole rows, with the number of the first,
    /// so that each chunk is in one band.
    fn bands(
        &self,
        volume: &dyn Volume,
        mut use_band: impl FnMut(u64, Patch),
    ) -> voxpatch::Result<()> {
        let layout = volume.layout();
        let unit = layout
            .read_chunk
            .map_or(1, |[_, chunk @ ..]| chunk[self.slow])
            .max(1);
        let (height, width) = (self.shape[self.slow], self.shape[self.fast]);
        let step = (BAND / unit.saturating_mul(width).max(1))
            .max(1)
            .saturating_mul(unit);
        let mut first = 0;
        while first < height {
            let rows = step.min(height - first);
            let mut start = [0; 3];
            start[self.fixed] = signed(self.at);
            start[self.slow] = signed(first);
            let mut shape = [1; 3];
            shape[self.slow] = rows;
            shape[self.fast] = width;
            let mut band = Patch::zeros(Region::new(start, shape), 1, layout.dtype)?;
            volume.read_channels(0..1, band.region(), band.bytes_mut())?;
            use_band(first, band);
            first += rows;
        }
        Ok(())
    }
}

/// The pixels that a voxel gives to, and its share of each: a pixel's shares add up to 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "positions are floats, pixels are few"
)]
fn shares(voxel: u64, voxels: u64, pixels: usize) -> Vec<(usize, f32)> {
    let scale = pixels as f64 / voxels as f64;
    let position = voxel as f64;
    let (first, last) = if pixels as u64 <= voxels {
        (position * scale, (position + 1.0) * scale)
    } else {
        // Pixels between the neighbors' centers; the edge voxels' reach on.
        let from = if voxel == 0 {
            0.0
        } else {
            (position - 0.5) * scale - 0.5
        };
        let to = if voxel + 1 == voxels {
            pixels as f64
        } else {
            (position + 1.5) * scale + 0.5
        };
        (from.max(0.0), to)
    };
    let share = |pixel: usize| {
        let pixel = pixel as f64;
        if scale <= 1.0 {
            return last.min(pixel + 1.0) - first.max(pixel);
        }
        let at = ((pixel + 0.5) / scale - 0.5).clamp(0.0, voxels as f64 - 1.0);
        1.0 - (at - position).abs()
    };
    (first as usize..pixels.min(last.ceil() as usize))
        .map(|pixel| (pixel, share(pixel) as f32))
        .filter(|&(_, share)| share > 0.0)
        .collect()
}

/// The values of a band as f32.
pub(super) fn as_f32(band: Patch) -> Vec<f32> {
    let values = band.converted(DType::F32);
    values
        .as_slice()
        .expect("they were just converted")
        .to_vec()
}

/// Labels as bits that are equal if the labels are; 0 is no label.
pub(super) fn as_labels(band: Patch) -> Vec<u64> {
    let dtype = band.dtype();
    if dtype == DType::U64 {
        return band.as_slice::<u64>().expect("they are u64").to_vec();
    }
    if dtype.is_float() {
        let values = band.converted(DType::F64);
        let values = values.as_slice::<f64>().expect("they were just converted");
        return values.iter().map(|&value| float_label(value)).collect();
    }
    let values = band.converted(DType::I64);
    let values = values.as_slice::<i64>().expect("they were just converted");
    values.iter().map(|&value| value.cast_unsigned()).collect()
}

/// A whole number has the bits that it has as an integer; NaN is no label.
#[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
fn float_label(value: f64) -> u64 {
    if value.is_nan() {
        0
    } else if value.fract() == 0.0 && value.abs() < 9e15 {
        (value as i64).cast_unsigned()
    } else {
        value.to_bits()
    }
}

pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).expect("a voxel of a volume lies below 2^63")
}

pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).expect("a voxel of a band in memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use voxpatch::{MemoryVolume, VolumeExt};

    #[test]
    fn shares_of_every_pixel_add_up_to_one() {
        for (voxels, pixels) in [
            (1, 1),
            (1, 9),
            (7, 7),
            (7, 3),
            (3, 7),
            (1069, 729),
            (512, 768),
            (5, 4),
        ] {
            let mut sums = vec![0.0_f32; pixels];
            for voxel in 0..voxels {
                for (pixel, share) in shares(voxel, voxels, pixels) {
                    sums[pixel] += share;
                }
            }
            for (pixel, sum) in sums.iter().enumerate() {
                assert!(
                    (sum - 1.0).abs() < 1e-4,
                    "{voxels} to {pixels}: pixel {pixel} has {sum}"
                );
            }
        }
    }

    fn ramp() -> MemoryVolume {
        let value = |i: u32| f32::from(u16::try_from(i).expect("small"));
        let voxels: Vec<f32> = (0..4 * 6 * 8).map(value).collect();
        MemoryVolume::from_vec([4, 6, 8], 1, voxels)
            .expect("the shape fits")
            .with_chunks([1, 3, 4, 5])
    }

    #[test]
    fn a_slice_at_its_own_size_is_the_voxels() {
        for (fixed, at) in [(0, 2), (1, 5), (2, 7)] {
            let plane = Plane::new([4, 6, 8], fixed, at, [4, 6, 8]);
            let values = plane.read_values(&ramp()).expect("memory can be read");
            let mut region = Region::whole([4, 6, 8]);
            region.start[fixed] = signed(at);
            region.shape[fixed] = 1;
            let expected = ramp().read(region).expect("memory can be read");
            assert_eq!(values.pixels, expected.as_slice::<f32>().expect("f32"));
            let labels = plane.read_labels(&ramp()).expect("memory can be read");
            let whole: Vec<u64> = values
                .pixels
                .iter()
                .map(|&v| float_label(f64::from(v)))
                .collect();
            assert_eq!(labels, whole);
        }
    }

    #[test]
    fn halving_averages_four_voxels() {
        let plane = Plane::new([4, 6, 8], 0, 0, [2, 3, 4]);
        let values = plane.read_values(&ramp()).expect("memory can be read");
        assert_eq!(values.pixels[..2], [4.5, 6.5]);
        assert!(values.lowest.abs() < f32::EPSILON);
        assert_eq!(values.samples.len(), 48);
    }

    #[test]
    fn labels_keep_their_identity_in_every_type() {
        assert_eq!(float_label(3.0), 3);
        assert_eq!(float_label(-0.0), 0);
        assert_eq!(float_label(f64::NAN), 0);
        assert_ne!(float_label(0.5), 0);
    }
}
