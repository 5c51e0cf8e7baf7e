//! Resampled volumes and their twins: plain loops in `f64` that share no code with what they check.

use std::sync::Arc;

use super::*;
use crate::geometry::{Affine, Geometry};
use crate::volume::{MemoryVolume, Subset, VolumeExt, VolumeMut, suite};

/// Taps on each side of the twin's prefilter: the next would be below 1e-10.
const TAPS: i64 = 18;

fn uniform(random: &mut suite::Random) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    let bits = (random.bits() >> 11) as f64;
    bits / 9_007_199_254_740_992.0
}

fn between(random: &mut suite::Random, low: f64, high: f64) -> f64 {
    low + (high - low) * uniform(random)
}

/// Returns values of a type as `f64`, and their voxels.
fn random_voxels(random: &mut suite::Random, count: usize, dtype: DType) -> (Vec<f64>, Vec<u8>) {
    let (low, high) = dtype.range();
    let (low, high) = (low.max(-2e4), high.min(2e4));
    with_element!(dtype, T => {
        let values: Vec<T> = (0..count)
            .map(|_| T::from_f64(between(random, low, high).clamp(low, high)))
            .collect();
        let back = values.iter().map(|value| value.to_f64()).collect();
        (back, bytemuck::cast_slice(&values).to_vec())
    })
}

#[expect(clippy::cast_precision_loss, reason = "small volumes")]
fn signed(n: i64) -> f64 {
    n as f64
}

fn times(matrix: &Affine, at: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|row| {
        matrix[row][0] * at[0] + matrix[row][1] * at[1] + matrix[row][2] * at[2] + matrix[row][3]
    })
}

/// Returns the voxel (x, y, z) of an affine at a point in the world, by Cramer's rule.
fn solved(affine: &Affine, point: [f64; 3]) -> [f64; 3] {
    let determinant = |columns: [[f64; 3]; 3]| {
        let [a, b, c] = columns;
        a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0])
            + a[2] * (b[0] * c[1] - b[1] * c[0])
    };
    let columns: [[f64; 3]; 3] =
        std::array::from_fn(|column| std::array::from_fn(|row| affine[row][column]));
    let apart: [f64; 3] = std::array::from_fn(|row| point[row] - affine[row][3]);
    std::array::from_fn(|n| {
        let mut replaced = columns;
        replaced[n] = apart;
        determinant(replaced) / determinant(columns)
    })
}

/// The voxel of a row that is at an index beyond its ends.
fn continued_at(padding: Padding, mut at: i64, length: i64) -> i64 {
    match padding {
        Padding::Constant(_) => panic!("a constant does not continue"),
        Padding::Edge => at.clamp(0, length - 1),
        Padding::Wrap => {
            while at < 0 {
                at += length;
            }
            at % length
        }
        Padding::Reflect => {
            if length == 1 {
                return 0;
            }
            while at < 0 || at >= length {
                at = if at < 0 { -at } else { 2 * (length - 1) - at };
            }
            at
        }
    }
}

/// One channel of a volume and the ways of its twin.
struct Twin {
    shape: [i64; 3],
    /// Voxels that are known on each side of the volume.
    beyond: i64,
    /// Values or spline coefficients from `-beyond` to `length + beyond`.
    field: Vec<f64>,
    options: Resample,
}

impl Twin {
    fn new(values: &[f64], shape: Shape, options: &Resample, steps: [f64; 3]) -> Self {
        let shape = shape.map(u64::cast_signed);
        let blurs = options.antialias && steps.iter().any(|&step| step > 1.0 + 1e-6);
        let continuation = match options.outside {
            Padding::Constant(_) if blurs || options.interpolation == Interpolation::Cubic => {
                Padding::Reflect
            }
            Padding::Constant(_) => Padding::Edge,
            padding => padding,
        };
        let mut twin = Self {
            shape,
            beyond: if options.interpolation == Interpolation::Cubic {
                TAPS + 18
            } else {
                26
            },
            field: Vec::new(),
            options: options.clone(),
        };
        let dims = twin.dims();
        for z in 0..dims[0] {
            for y in 0..dims[1] {
                for x in 0..dims[2] {
                    let at: [i64; 3] = std::array::from_fn(|a| {
                        continued_at(continuation, [z, y, x][a] - twin.beyond, shape[a])
                    });
                    let place = (at[0] * shape[1] + at[1]) * shape[2] + at[2];
                    twin.field.push(values[usize::try_from(place).unwrap()]);
                }
            }
        }
        for (axis, step) in steps.into_iter().enumerate() {
            if options.antialias && step > 1.0 + 1e-6 {
                let variance = (step * step - 1.0) / (8.0 * 2_f64.ln());
                #[expect(clippy::cast_possible_truncation, reason = "a few voxels")]
                let reach = (4.0 * variance.sqrt()).ceil() as i64;
                let weights: Vec<f64> = (-reach..=reach)
                    .map(|n| (-signed(n).powi(2) / (2.0 * variance)).exp())
                    .collect();
                let sum: f64 = weights.iter().sum();
                twin.convolve(axis, &weights.iter().map(|w| w / sum).collect::<Vec<_>>());
            }
            if options.interpolation == Interpolation::Cubic {
                let pole = 3_f64.sqrt() - 2.0;
                let weights: Vec<f64> = (-TAPS..=TAPS)
                    .map(|n| 3_f64.sqrt() * pole.powi(i32::try_from(n.abs()).unwrap()))
                    .collect();
                twin.convolve(axis, &weights);
            }
        }
        twin
    }

    fn dims(&self) -> [i64; 3] {
        self.shape.map(|n| n + 2 * self.beyond)
    }

    /// Convolves the field along an axis; ends are not valid.
    fn convolve(&mut self, axis: usize, weights: &[f64]) {
        let dims = self.dims();
        let stride = dims[axis + 1..].iter().product::<i64>();
        let reach = i64::try_from(weights.len() / 2).unwrap();
        let old = self.field.clone();
        for (place, value) in self.field.iter_mut().enumerate() {
            let place = i64::try_from(place).unwrap();
            let along = place / stride % dims[axis];
            if along < reach || along + reach >= dims[axis] {
                continue;
            }
            let first = place - reach * stride;
            *value = weights
                .iter()
                .enumerate()
                .map(|(n, weight)| {
                    weight
                        * old
                            [usize::try_from(first).unwrap() + n * usize::try_from(stride).unwrap()]
                })
                .sum();
        }
    }

    fn field_at(&self, at: [i64; 3]) -> f64 {
        let dims = self.dims();
        let [z, y, x] = at.map(|n| n + self.beyond);
        self.field[usize::try_from((z * dims[1] + y) * dims[2] + x).unwrap()]
    }

    /// Returns the values that are right at a position (z, y, x): several if it is next to a place where they jump.
    fn values(&self, position: [f64; 3]) -> Vec<f64> {
        let mut found = Vec::new();
        if let Padding::Constant(value) = self.options.outside {
            let beyond = |margin: f64| {
                (0..3).any(|a| {
                    position[a] < -0.5 - margin
                        || position[a] > signed(self.shape[a]) - 0.5 + margin
                })
            };
            if beyond(-2e-4) {
                found.push(value);
            }
            if beyond(2e-4) {
                return found;
            }
        }
        match self.options.interpolation {
            Interpolation::Nearest => {
                for n in 0..8 {
                    let at: [i64; 3] = std::array::from_fn(|a| {
                        let shift = if n & (1 << a) == 0 { -2e-4 } else { 2e-4 };
                        #[expect(clippy::cast_possible_truncation, reason = "a small volume")]
                        let voxel = (position[a] + 0.5 + shift).floor() as i64;
                        match self.options.outside {
                            Padding::Constant(_) => voxel.clamp(0, self.shape[a] - 1),
                            _ => voxel,
                        }
                    });
                    found.push(self.field_at(at));
                }
            }
            Interpolation::Linear => {
                found.push(self.weighted(position, |x| (1.0 - x.abs()).max(0.0)));
            }
            Interpolation::Cubic => found.push(self.weighted(position, |x| {
                let x = x.abs();
                if x < 1.0 {
                    2.0 / 3.0 - x * x + x.powi(3) / 2.0
                } else {
                    (2.0 - x).max(0.0).powi(3) / 6.0
                }
            })),
            Interpolation::LabelLinear => {
                let mut labels: Vec<(f64, f64)> = Vec::new();
                self.each(
                    position,
                    |x| (1.0 - x.abs()).max(0.0),
                    |weight, label| match labels.iter_mut().find(|(known, _)| *known == label) {
                        Some((_, sum)) => *sum += weight,
                        None => labels.push((label, weight)),
                    },
                );
                let most = labels.iter().map(|(_, sum)| *sum).fold(0.0, f64::max);
                let winners = labels.iter().filter(|(_, sum)| *sum >= most - 2e-3);
                found.extend(winners.map(|(label, _)| *label));
            }
        }
        found
    }

    fn each(&self, position: [f64; 3], kernel: impl Fn(f64) -> f64, mut put: impl FnMut(f64, f64)) {
        #[expect(clippy::cast_possible_truncation, reason = "a small volume")]
        let base = position.map(|n| n.floor() as i64);
        for z in base[0] - 2..=base[0] + 3 {
            for y in base[1] - 2..=base[1] + 3 {
                for x in base[2] - 2..=base[2] + 3 {
                    let at = [z, y, x];
                    let weight: f64 = (0..3)
                        .map(|a| kernel(position[a] - signed(at[a])))
                        .product();
                    if weight > 0.0 {
                        put(weight, self.field_at(at));
                    }
                }
            }
        }
    }

    fn weighted(&self, position: [f64; 3], kernel: impl Fn(f64) -> f64) -> f64 {
        let mut sum = 0.0;
        self.each(position, kernel, |weight, value| sum += weight * value);
        sum
    }
}

/// Returns a random affine with right angles, and one that may be oblique and sheared.
fn random_geometry(random: &mut suite::Random) -> Geometry {
    let spacing: [f64; 3] = std::array::from_fn(|_| between(random, 0.4, 3.0));
    let mut affine = [[0.0; 4]; 4];
    let axes = SignedAxes::all()
        .nth(usize::try_from(random.below(48)).unwrap())
        .unwrap();
    for axis in 0..3 {
        let sign = if axes.flipped[axis] { -1.0 } else { 1.0 };
        affine[axes.from[axis]][axis] = sign * spacing[axis];
        affine[axis][3] = between(random, -50.0, 50.0);
    }
    affine[3][3] = 1.0;
    if random.below(2) == 0 {
        for row in &mut affine[..3] {
            for value in &mut row[..3] {
                *value += between(random, -0.15, 0.15);
            }
        }
    }
    Geometry::from_affine(affine)
}

/// Returns a grid over a volume: of the same axes with another spacing, turned, shifted by whole or broken voxels, or
/// oblique.
fn random_grid(random: &mut suite::Random, own: &VoxelGrid, far: f64) -> VoxelGrid {
    let kind = random.below(5);
    let factors: [f64; 3] = match kind {
        0 => {
            std::array::from_fn(|_| [0.5, 1.0, 2.0, 3.0][usize::try_from(random.below(4)).unwrap()])
        }
        1 => [1.0; 3],
        _ => std::array::from_fn(|_| between(random, 0.4, 2.5)),
    };
    let shape: Shape = std::array::from_fn(|a| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a few voxels"
        )]
        let covering = (float(own.shape[a]) / factors[a]).ceil() as u64;
        (covering + random.below(4)).max(1)
    });
    let mut geometry = own.geometry;
    for row in &mut geometry.affine[..3] {
        for a in 0..3 {
            row[2 - a] *= factors[a];
        }
    }
    let start: [f64; 3] = std::array::from_fn(|_| match kind {
        0 | 1 => [-2.0, -1.0, 0.0, 1.0][usize::try_from(random.below(4)).unwrap()],
        3 => between(random, -far, far),
        _ => between(random, -2.5, 1.5),
    });
    let geometry = Geometry::from_affine(
        Geometry {
            affine: geometry.affine,
            ..own.geometry
        }
        .moved_to(std::array::from_fn(|a| start[a] / factors[a]))
        .affine,
    );
    let mut grid = VoxelGrid::new(shape, geometry);
    if kind == 4 {
        for row in &mut grid.geometry.affine[..3] {
            for value in &mut row[..3] {
                *value += between(random, -0.2, 0.2);
            }
        }
        grid.geometry = Geometry::from_affine(grid.geometry.affine);
    }
    let axes = SignedAxes::all()
        .nth(usize::try_from(random.below(48)).unwrap())
        .unwrap();
    VoxelGrid::new(
        axes.shape(grid.shape),
        grid.geometry.turned(axes, grid.shape),
    )
}

/// Returns the steps along z, y, x of a volume from one voxel of a grid to the next.
fn steps(own: &VoxelGrid, grid: &VoxelGrid) -> [f64; 3] {
    let at = |at: [f64; 3]| solved(&own.geometry.affine, times(&grid.geometry.affine, at));
    let zero = at([0.0; 3]);
    let moves: [[f64; 3]; 3] = std::array::from_fn(|n| {
        let mut one = [0.0; 3];
        one[n] = 1.0;
        at(one)
    });
    std::array::from_fn(|a| {
        let squares = moves
            .iter()
            .map(|moved| (moved[2 - a] - zero[2 - a]).powi(2));
        squares.sum::<f64>().sqrt()
    })
}

struct Case {
    volume: Arc<dyn Volume>,
    values: Vec<f64>,
    grid: VoxelGrid,
    options: Resample,
}

fn random_case(random: &mut suite::Random, interpolation: Interpolation) -> Case {
    let shape: Shape = std::array::from_fn(|_| 1 + random.below(8));
    let dtype = DType::ALL[usize::try_from(random.below(12)).unwrap()];
    let channels = 1 + random.below(2);
    let count = usize::try_from(shape.iter().product::<u64>() * channels).unwrap();
    let (mut values, mut voxels) = random_voxels(random, count, dtype);
    if interpolation == Interpolation::LabelLinear {
        values = values
            .iter()
            .map(|value| (value.abs() % 3.0).floor())
            .collect();
        voxels = with_element!(dtype, T => {
            let labels: Vec<T> = values.iter().map(|&value| T::from_f64(value)).collect();
            bytemuck::cast_slice(&labels).to_vec()
        });
        if dtype == DType::Bool {
            values
                .iter_mut()
                .zip(&mut voxels)
                .for_each(|(value, voxel)| {
                    *value = value.min(1.0);
                    *voxel = (*voxel).min(1);
                });
        }
    }
    let own = VoxelGrid::new(shape, random_geometry(random));
    let layout = Layout::new(shape, channels, dtype).with_geometry(own.geometry);
    let volume = MemoryVolume::zeros(layout).unwrap();
    volume.write(Region::whole(shape), &voxels).unwrap();
    let volume: Arc<dyn Volume> = match random.below(3) {
        0 => Arc::new(volume.with_chunks([1, 3, 2, 4])),
        1 => Arc::new(volume.with_chunks([channels, 2, 5, 3])),
        _ => Arc::new(volume),
    };
    let padding = match random.below(6) {
        0 => Padding::Edge,
        1 => Padding::Reflect,
        2 => Padding::Wrap,
        3 => Padding::Constant(0.0),
        _ => Padding::Constant(1.0),
    };
    let smooth = matches!(interpolation, Interpolation::Linear | Interpolation::Cubic);
    let options = Resample::default()
        .with_interpolation(interpolation)
        .with_outside(padding)
        .with_antialias(smooth && random.below(3) == 0);
    // The twin knows fewer coefficients than voxels beyond the faces.
    let far = if smooth { 2.5 } else { 9.0 };
    let grid = random_grid(random, &own, far);
    Case {
        volume,
        values,
        grid,
        options,
    }
}

/// Checks a case voxel by voxel. `tolerance` is a part of the range of the values.
fn check_values(case: &Case, tolerance: f64, number: u64) {
    let own = VoxelGrid::of(case.volume.layout());
    let dtype = case.volume.layout().dtype;
    let made = Resampled::new(Arc::clone(&case.volume), case.grid, &case.options).unwrap();
    let found = made.read(Region::whole(case.grid.shape)).unwrap();
    assert_eq!(made.layout().geometry, case.grid.geometry);
    let found: Vec<f64> = with_element!(dtype, T => {
        found.as_slice::<T>().unwrap().iter().map(|value| value.to_f64()).collect()
    });
    let steps = steps(&own, &case.grid);
    let per_channel = usize::try_from(own.shape.iter().product::<u64>()).unwrap();
    let mut place = 0;
    for values in case.values.chunks(per_channel) {
        let twin = Twin::new(values, own.shape, &case.options, steps);
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Results round to the type: halves of f16 and whole numbers.
        let rounding = match dtype {
            DType::F16 => high.abs().max(low.abs()) / 1024.0,
            dtype if dtype.is_float() => 0.0,
            _ => 0.5,
        };
        let largest = high.abs().max(low.abs());
        let near = tolerance * (high - low) + 1e-6 * largest + rounding + 1e-9;
        for z in 0..case.grid.shape[0] {
            for y in 0..case.grid.shape[1] {
                for x in 0..case.grid.shape[2] {
                    let point = times(&case.grid.geometry.affine, [x, y, z].map(float));
                    let [px, py, pz] = solved(&own.geometry.affine, point);
                    let expected = twin.values([pz, py, px]);
                    let (least, most) = dtype.range();
                    let is_right = expected
                        .iter()
                        .any(|value| (found[place] - value.clamp(least, most)).abs() <= near);
                    assert!(
                        is_right,
                        "case {number}: {:?} {dtype} at {z}, {y}, {x} from {pz}, {py}, {px} of {:?}: {} and not {expected:?}",
                        case.options, own.shape, found[place]
                    );
                    place += 1;
                }
            }
        }
    }
    assert_eq!(place, found.len());
}

fn check_all(interpolation: Interpolation, cases: u64, tolerance: f64) {
    let mut random = suite::Random(interpolation as u64);
    let mut exact = 0;
    for number in 0..cases {
        let case = random_case(&mut random, interpolation);
        check_values(&case, tolerance, number);
        let made = Resampled::new(Arc::clone(&case.volume), case.grid, &case.options).unwrap();
        exact += u64::from(made.interpolation == Interpolation::Nearest);
    }
    assert!(exact > cases / 20, "{exact} cases take the exact path");
}

#[test]
fn nearest_voxels_equal_plain_loops() {
    check_all(Interpolation::Nearest, 400, 0.0);
}

#[test]
fn linear_interpolation_equals_plain_loops() {
    check_all(Interpolation::Linear, 400, 1e-6);
}

#[test]
fn cubic_interpolation_equals_plain_loops() {
    check_all(Interpolation::Cubic, 80, 1e-6);
}

#[test]
fn labels_equal_plain_loops() {
    check_all(Interpolation::LabelLinear, 300, 0.0);
}

#[test]
fn regions_and_chunks_equal_the_whole_bit_for_bit() {
    let mut random = suite::Random(99);
    for number in 0..120_u64 {
        let interpolation = [
            Interpolation::Nearest,
            Interpolation::Linear,
            Interpolation::Cubic,
            Interpolation::LabelLinear,
        ][usize::try_from(number % 4).unwrap()];
        let case = random_case(&mut random, interpolation);
        let mut made = Resampled::new(Arc::clone(&case.volume), case.grid, &case.options).unwrap();
        let whole = made.read(Region::whole(case.grid.shape)).unwrap();

        suite::check(&made, &whole);
        // Read in many small blocks, it is the same.
        made.block_voxels = 1 + random.below(300);
        suite::check(&made, &whole);
    }
}

#[test]
fn the_memory_of_reads_is_reported() {
    let layout =
        Layout::new([512; 3], 1, DType::I16).with_geometry(Geometry::from_spacing([1.0; 3]));
    let volume: Arc<dyn Volume> = Arc::new(suite::Unstored::new(Layout {
        read_chunk: Some([1, 64, 64, 64]),
        ..layout
    }));
    let resample = Resample::default().with_spacing(Some([0.8; 3]));
    let made = Arc::clone(&volume).resampled(&resample).unwrap();
    let memory = made.layout().read_memory;
    assert_eq!(memory.shared, 32 << 20);
    // The block as read, turned and computed, and its values and those that are continued, in f32.
    assert_eq!(memory.thread, (1 << 20) * (3 * 2 + 2 * 4));
    let part = Subset::default().channels_of(Arc::clone(&made)).unwrap();
    assert_eq!(part.layout().read_memory, memory);
}
