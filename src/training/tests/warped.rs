//! Patches that are read through random maps, compared with naive ones.

use super::*;
use crate::dtype::{Element, with_element};
use crate::geometry::Geometry;
use crate::patch::Voxels;
use crate::sampler::Border;
use crate::volume::{Interpolation, Resample};

const SEED: u64 = 5;

fn placed() -> Geometry {
    Geometry::from_affine([
        [0.05, -0.8, 0.1, -7.0],
        [0.7, 0.1, 0.05, 11.0],
        [0.0, 0.06, -1.9, 3.0],
        [0.0, 0.0, 0.0, 1.0],
    ])
}

fn float(n: u64) -> f64 {
    u32::try_from(n).unwrap().into()
}

/// Calls a function for each voxel (z, y, x) of a shape, in order.
fn each([nz, ny, nx]: Shape) -> impl Iterator<Item = [u64; 3]> {
    (0..nz).flat_map(move |z| (0..ny).flat_map(move |y| (0..nx).map(move |x| [z, y, x])))
}

fn world(geometry: &Geometry, [z, y, x]: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|a| {
        let row = geometry.affine[a];
        row[0] * x + row[1] * y + row[2] * z + row[3]
    })
}

/// An image whose three channels are the position of each voxel in the world: x, y, z in mm.
fn ramp(shape: Shape, geometry: Geometry, chunk: Option<ChunkShape>) -> Arc<dyn Volume> {
    let mut values = Vec::new();
    for a in 0..3 {
        values.extend(each(shape).map(|at| world(&geometry, at.map(float))[a]));
    }
    stored(shape, 3, &values, Some(geometry), chunk)
}

/// A label image whose values are the numbers of its voxels.
fn numbers(shape: Shape, geometry: Geometry) -> Arc<dyn Volume> {
    let count = u32::try_from(shape.iter().product::<u64>()).unwrap();
    stored(
        shape,
        1,
        &(0..count).collect::<Vec<u32>>(),
        Some(geometry),
        Some([1, 5, 6, 7]),
    )
}

fn stored<T: Element>(
    shape: Shape,
    channels: u64,
    values: &[T],
    geometry: Option<Geometry>,
    chunk: Option<ChunkShape>,
) -> Arc<dyn Volume>
where
    Vec<T>: Into<Voxels>,
{
    let mut layout = Layout::new(shape, channels, T::DTYPE);
    if let Some(geometry) = geometry {
        layout = layout.with_geometry(geometry);
    }
    let volume = MemoryVolume::zeros(layout).unwrap();
    let voxels = bytemuck::cast_slice(values);
    crate::volume::VolumeMut::write(&volume, Region::whole(shape), voxels).unwrap();
    match chunk {
        Some(chunk) => Arc::new(volume.with_chunks(chunk)),
        None => Arc::new(volume),
    }
}

/// Returns the displacement of a voxel, term by term.
fn displaced(sample: &Sample, shape: Shape, at: [u64; 3]) -> [f64; 3] {
    let Some(points) = sample.displacement() else {
        return [0.0; 3];
    };
    let mut sum = [0.0; 3];
    let dims = points.shape();
    let mut total = 0.0;
    for (n, place) in each(dims).enumerate() {
        let weight: f64 = (0..3)
            .map(|a| {
                let u = float(at[a]) * float(dims[a] - 3) / float((shape[a] - 1).max(1));
                // The B-spline of point i is centered at i - 1.
                let apart = (u - (float(place[a]) - 1.0)).abs();
                if apart < 1.0 {
                    2.0 / 3.0 - apart * apart + apart.powi(3) / 2.0
                } else {
                    (2.0 - apart).max(0.0).powi(3) / 6.0
                }
            })
            .product();
        total += weight;
        for (sum, value) in sum.iter_mut().zip(points.points()[n]) {
            *sum += weight * value;
        }
    }
    assert!((total - 1.0).abs() < 1e-9);
    sum
}

/// Returns the position in the world that each voxel of a delivered patch shows, by what the sample says.
fn shown(sample: &Sample, shape: Shape) -> Vec<[f64; 3]> {
    let geometry = Geometry::from_affine(sample.affine());
    each(shape)
        .map(|at| {
            let moved = displaced(sample, shape, at);
            world(&geometry, std::array::from_fn(|a| float(at[a]) + moved[a]))
        })
        .collect()
}

/// Returns the position of a point of the world in a volume, z, y, x.
fn position(geometry: &Geometry, point: [f64; 3]) -> [f64; 3] {
    let there = Geometry::from_parts([1.0; 3], [point[2], point[1], point[0]]);
    let indices = geometry.indices_of(&there).unwrap();
    [indices[2][3], indices[1][3], indices[0][3]]
}

fn affine() -> RandomAffine {
    RandomAffine::default()
        .with_scales([[0.7, 1.4], [0.8, 1.2], [0.9, 1.1]])
        .with_degrees([[-40.0, 40.0], [-20.0, 30.0], [-10.0, 25.0]])
        .with_shears([[-0.2, 0.2], [-0.1, 0.1], [0.0, 0.3]])
        .with_translation([[-3.0, 1.0], [0.0, 2.0], [-1.0, 1.0]])
}

fn elastic() -> RandomElastic {
    RandomElastic::default()
        .with_num_control_points([4, 5, 5])
        .with_max_displacement([2.0, 1.5, 1.5])
}

fn options() -> Vec<Augmentation> {
    let none = Augmentation::default();
    let turned = none.with_flip([0.5; 3]).with_permute(0.5).with_rotate(0.5);
    vec![
        none.with_affine(affine()),
        none.with_elastic(elastic()),
        none.with_affine(affine().with_p(0.6))
            .with_elastic(elastic().with_p(0.6)),
        turned.with_affine(affine()).with_elastic(elastic()),
        turned
            .with_affine(affine().with_isotropic(true))
            .with_elastic(elastic())
            .with_crop([7, 9, 9]),
    ]
}

/// Every voxel of an image says where it is in the world: on the grid of the scan, at 1 mm in RAS, and through random maps.
#[test]
fn every_voxel_shows_the_place_that_the_map_says_in_image_and_label() {
    let shape = [24, 40, 38];
    let (far, far_label) = (-1e6, 4e9);
    let nearest = Resample::default().with_interpolation(Interpolation::Nearest);
    let other_grid = |resample: Resample, outside: f64| {
        resample
            .with_spacing(Some([1.0; 3]))
            .with_orientation(Some("RAS".parse().unwrap()))
            .with_outside(Padding::Constant(outside))
    };
    let subjects = [
        (
            ramp(shape, placed(), Some([3, 9, 8, 7])),
            numbers(shape, placed()),
        ),
        (ramp(shape, placed(), None), numbers(shape, placed())),
        (
            ramp(shape, placed(), Some([1, 9, 8, 7]))
                .resampled(&other_grid(Resample::default(), far))
                .unwrap(),
            numbers(shape, placed())
                .resampled(&other_grid(nearest, far_label))
                .unwrap(),
        ),
    ];
    // Whatever the grid of the subject, values are interpolated once, between the voxels of the scan.
    let (own, grid) = (shape, placed());
    for (image, label) in subjects {
        let subject = Subject::builder("s")
            .with_images([
                Image::new("ramp", image)
                    .with_padding(Padding::Constant(far))
                    .with_interpolation(Interpolation::Linear),
                Image::new("label", label)
                    .with_padding(Padding::Constant(far_label))
                    .with_interpolation(Interpolation::Nearest),
            ])
            .build()
            .unwrap();
        let patch = [10, 12, 12];
        let sampler = move |subject: &Subject, seed| {
            Uniform::with_border(subject.shape(), patch, Border::Pad, seed)
        };
        let dataset = Dataset::new(vec![subject], sampler)
            .samples_per_subject(12)
            .seed(SEED);
        let (mut inside, mut outside, mut ambiguous) = (0, 0, 0);
        for augment in options() {
            for sample in dataset.epoch(1).augment(augment).samples().unwrap() {
                let sample = sample.unwrap();
                let patch = augment.crop.unwrap_or(patch);
                let found = sample.patch("ramp").unwrap().as_slice::<f64>().unwrap();
                let labels = sample.patch("label").unwrap().as_slice::<u32>().unwrap();
                let count = labels.len();
                for (n, point) in shown(&sample, patch).into_iter().enumerate() {
                    let at = position(&grid, point);
                    let margin = |m: f64| {
                        (0..3).all(|a| at[a] > -0.5 + m && at[a] < float(own[a]) - 0.5 - m)
                    };
                    let values = [0, 1, 2].map(|c| found[c * count + n]);
                    if !margin(-1e-4) {
                        assert_eq!(values, [far; 3]);
                        assert_eq!(labels[n], 4_000_000_000);
                        outside += 1;
                        continue;
                    }
                    // Within a voxel of the faces the volume is continued, and the ramp is not.
                    let is_whole = (0..3).all(|a| at[a] >= 1.0 && at[a] <= float(own[a]) - 2.0);
                    if is_whole {
                        for a in 0..3 {
                            let apart = (values[a] - point[a]).abs();
                            assert!(apart < 1e-6, "{n}: {values:?} and not {point:?}");
                        }
                        inside += 1;
                    }
                    if !margin(1e-4) || at.iter().any(|p| (p - p.floor() - 0.5).abs() < 1e-4) {
                        ambiguous += 1;
                        continue;
                    }
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "inside"
                    )]
                    let [z, y, x] = at.map(|p| p.round() as u64);
                    let place = (z * own[1] + y) * own[2] + x;
                    assert_eq!(u64::from(labels[n]), place, "{at:?}");
                }
            }
        }
        assert!(inside > 20_000 && outside > 1_000, "{inside} {outside}");
        assert!(ambiguous < inside / 10, "{ambiguous}");
    }
}

/// Returns the value of a volume at a position, by loops, as f64.
fn naive(values: &[f64], shape: Shape, image: &Image, at: [f64; 3]) -> Option<f64> {
    let beyond = |m: f64| (0..3).any(|a| at[a] < -0.5 - m || at[a] > float(shape[a]) - 0.5 + m);
    if let Padding::Constant(value) = image.padding {
        if beyond(1e-4) {
            return Some(value);
        }
        if beyond(-1e-4) {
            return None;
        }
    }
    let continuation = match image.padding {
        Padding::Constant(_) => Padding::Edge,
        padding => padding,
    };
    let voxel = |at: [i64; 3]| {
        let inside: [u64; 3] =
            std::array::from_fn(|a| continuation.inside(at[a], shape[a]).unwrap());
        let place = (inside[0] * shape[1] + inside[1]) * shape[2] + inside[2];
        values[usize::try_from(place).unwrap()]
    };
    #[expect(clippy::cast_possible_truncation, reason = "a small volume")]
    let base = at.map(|p| p.floor() as i64);
    let mut shares: Vec<(f64, f64)> = Vec::new();
    for n in 0..8_i64 {
        let corner: [i64; 3] = [
            base[0] + (n >> 2),
            base[1] + (n >> 1 & 1),
            base[2] + (n & 1),
        ];
        let weight: f64 = (0..3)
            .map(|a| {
                #[expect(clippy::cast_precision_loss, reason = "a small volume")]
                let apart = (at[a] - corner[a] as f64).abs();
                1.0 - apart
            })
            .product();
        shares.push((voxel(corner), weight));
    }
    match image.interpolation.unwrap() {
        Interpolation::Nearest => {
            #[expect(clippy::cast_possible_truncation, reason = "a small volume")]
            let near = at.map(|p| (p + 0.5).floor() as i64);
            let tie = at.iter().any(|p| (p - p.floor() - 0.5).abs() < 1e-4);
            (!tie).then(|| voxel(near))
        }
        Interpolation::LabelLinear => {
            let mut sums: Vec<(f64, f64)> = Vec::new();
            for (label, weight) in shares {
                match sums
                    .iter_mut()
                    .find(|(known, _)| known.to_bits() == label.to_bits())
                {
                    Some(sum) => sum.1 += weight,
                    None => sums.push((label, weight)),
                }
            }
            sums.sort_by(|a, b| b.1.total_cmp(&a.1));
            let is_clear = sums.len() < 2 || sums[0].1 - sums[1].1 > 1e-6;
            is_clear.then_some(sums[0].0)
        }
        _ => Some(shares.iter().map(|(value, weight)| value * weight).sum()),
    }
}

fn image_of(
    dtype: DType,
    salt: u64,
    shape: Shape,
    chunk: Option<ChunkShape>,
) -> (Arc<dyn Volume>, Vec<f64>) {
    let count = shape.iter().product::<u64>();
    let most = if dtype == DType::Bool { 2 } else { 101 };
    let values: Vec<f64> = (0..count)
        .map(|n| float((n + salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) % float(most))
        .map(f64::floor)
        .collect();
    let layout = Layout::new(shape, 1, dtype).with_geometry(placed());
    let volume = MemoryVolume::zeros(layout).unwrap();
    let voxels = with_element!(dtype, T => {
        let own: Vec<T> = values.iter().map(|&value| T::from_f64(value)).collect();
        bytemuck::cast_slice(&own).to_vec()
    });
    crate::volume::VolumeMut::write(&volume, Region::whole(shape), &voxels).unwrap();
    let volume: Arc<dyn Volume> = match chunk {
        Some(chunk) => Arc::new(volume.with_chunks(chunk)),
        None => Arc::new(volume),
    };
    (volume, values)
}

#[test]
fn patches_equal_plain_loops_for_every_type_interpolation_and_padding() {
    let all = [
        Interpolation::Linear,
        Interpolation::Nearest,
        Interpolation::LabelLinear,
    ];
    let paddings = [
        Padding::Constant(1.0),
        Padding::Edge,
        Padding::Reflect,
        Padding::Wrap,
    ];
    let (mut checked, mut skipped) = (0_u64, 0_u64);
    for (case, dtype) in (0_u64..).zip(DType::ALL.into_iter().cycle().take(96)) {
        let shape = [3 + case % 9, 4 + case % 7, 2 + case % 11];
        let chunk = (case % 2 == 0).then_some([1, 4, 3, 5]);
        let interpolation = all[usize::try_from(case % 3).unwrap()];
        let padding = paddings[usize::try_from(case / 3 % 4).unwrap()];
        let (volume, values) = image_of(dtype, case, shape, chunk);
        let image = Image::new("one", volume)
            .with_interpolation(interpolation)
            .with_padding(padding);
        let subject = Subject::builder("s")
            .with_images([image.clone()])
            .build()
            .unwrap();
        let patch = [5, 7, 6];
        let sampler = move |subject: &Subject, seed| {
            Uniform::with_border(subject.shape(), patch, Border::Pad, seed)
        };
        let augment = Augmentation::default()
            .with_affine(affine())
            .with_elastic(elastic());
        let dataset = Dataset::new(vec![subject], sampler)
            .samples_per_subject(3)
            .seed(case);
        for sample in dataset
            .epoch(0)
            .threads(1)
            .augment(augment)
            .samples()
            .unwrap()
        {
            let sample = sample.unwrap();
            let found = sample.patches()[0].clone().converted(DType::F64);
            let found: &[f64] = found.as_slice().unwrap();
            for (n, point) in shown(&sample, patch).into_iter().enumerate() {
                let at = position(&placed(), point);
                let Some(expected) = naive(&values, shape, &image, at) else {
                    skipped += 1;
                    continue;
                };
                let is_float = dtype.is_float();
                let near = match (interpolation, dtype) {
                    (Interpolation::Linear, DType::F16) => 0.06,
                    (Interpolation::Linear, _) if is_float => 1e-4,
                    (Interpolation::Linear, _) => 0.501,
                    _ => 0.0,
                };
                let apart = (found[n] - expected).abs();
                assert!(
                    apart <= near,
                    "case {case} {dtype} {interpolation} {padding} at {at:?}: {} and not {expected}",
                    found[n]
                );
                checked += 1;
            }
        }
    }
    assert!(skipped * 50 < checked, "{skipped} of {checked}");
}

#[test]
fn ranges_of_nothing_give_the_plain_patches_bit_for_bit() {
    let still = RandomAffine::default()
        .with_scales([[1.0; 2]; 3])
        .with_degrees([[0.0; 2]; 3]);
    let never = affine().with_p(0.0);
    let flat = RandomElastic::default().with_max_displacement([0.0; 3]);
    let rare = elastic().with_num_control_points([5; 3]).with_p(0.0);
    for interpolation in [
        Interpolation::Linear,
        Interpolation::Cubic,
        Interpolation::Nearest,
    ] {
        let (volume, _) = image_of(DType::F32, 3, [20, 21, 22], Some([1, 6, 7, 8]));
        let image = Image::new("one", volume).with_interpolation(interpolation);
        let subject = Subject::builder("s").with_images([image]).build().unwrap();
        let dataset =
            Dataset::new(vec![subject], UniformPatches::new([8; 3])).samples_per_subject(5);
        let turned = Augmentation::default().with_flip([0.5; 3]).with_rotate(0.5);
        let read = |augment: Augmentation| -> Vec<_> {
            let samples = dataset.epoch(0).augment(augment).samples().unwrap();
            samples
                .map(|sample| {
                    let sample = sample.unwrap();
                    let bytes = sample.patches()[0].bytes().to_vec();
                    (sample.region, sample.axes(), bytes, sample.affine())
                })
                .collect()
        };
        let plain = read(turned);
        for (affine, elastic) in [(still, flat), (never, rare), (still, rare), (never, flat)] {
            assert_eq!(
                read(turned.with_affine(affine).with_elastic(elastic)),
                plain
            );
        }
        assert_ne!(read(turned.with_affine(affine())), plain);
    }
}

#[test]
fn angles_scales_and_moves_have_the_moments_of_their_ranges() {
    let (volume, _) = image_of(DType::U8, 0, [9; 3], None);
    let geometry = Geometry::from_spacing([2.0, 0.5, 1.0]);
    drop(volume);
    let count: u64 = 4_000;
    let only = |affine: RandomAffine, of: &dyn Fn([[f64; 4]; 4]) -> f64| -> (f64, f64, u64) {
        let augment = Augmentation::default().with_affine(affine);
        let (mut sum, mut squares, mut changed) = (0.0, 0.0, 0);
        for n in 0..count {
            let pose = augment.pose([7, 0, n], Region::whole([9; 3])).unwrap();
            changed += u64::from(pose.map.is_some());
            let value = of(pose.geometry(&geometry).affine);
            sum += value;
            squares += value * value;
        }
        let mean = sum / float(count);
        (mean, squares / float(count) - mean * mean, changed)
    };
    let still = RandomAffine::default()
        .with_scales([[1.0; 2]; 3])
        .with_degrees([[0.0; 2]; 3]);
    let check = |(mean, variance, changed): (f64, f64, u64), low: f64, high: f64| {
        let expected = (high - low).powi(2) / 12.0;
        // Five standard deviations of the mean, and of the variance of a uniform number.
        assert!(
            (mean - f64::midpoint(low, high)).abs() < 5.0 * (expected / float(count)).sqrt(),
            "{mean}"
        );
        assert!(
            (variance - expected).abs() < 5.0 * expected * (0.8 / float(count)).sqrt(),
            "{variance}"
        );
        assert_eq!(changed, count);
    };
    // A turn of the content from x to y by an angle reads against it: the step along x goes to -y.
    let angle = still.with_degrees([[-30.0, 50.0], [0.0; 2], [0.0; 2]]);
    check(
        only(angle, &|m| (-m[1][0]).atan2(m[0][0]).to_degrees()),
        -30.0,
        50.0,
    );
    let angle = still.with_degrees([[0.0; 2], [-10.0, 40.0], [0.0; 2]]);
    check(
        only(angle, &|m| (-m[0][2]).atan2(m[2][2]).to_degrees()),
        -10.0,
        40.0,
    );
    let angle = still.with_degrees([[0.0; 2], [0.0; 2], [5.0, 20.0]]);
    check(
        only(angle, &|m| {
            (-m[2][1] / 0.5).atan2(m[1][1] / 0.5).to_degrees()
        }),
        5.0,
        20.0,
    );
    let scale = still.with_scales([[0.5, 2.0], [1.0; 2], [1.0; 2]]);
    check(only(scale, &|m| 2.0 / m[2][2]), 0.5, 2.0);
    let moved = still.with_translation([[0.0; 2], [0.0; 2], [-4.0, 6.0]]);
    check(only(moved, &|m| -m[0][3]), -4.0, 6.0);
    let sheared = still.with_shears([[0.0; 2], [0.0; 2], [-0.2, 0.4]]);
    check(only(sheared, &|m| -m[1][0]), -0.2, 0.4);
    let (_, _, changed) = only(affine().with_p(0.25), &|_| 0.0);
    assert!(changed.abs_diff(count / 4) < 140, "{changed}");
    let (_, _, scaled) = only(
        still.with_scales([[1.5; 2]; 3]).with_p_scaling(0.25),
        &|_| 0.0,
    );
    assert!(scaled.abs_diff(count / 4) < 140, "{scaled}");
}

#[test]
fn maps_are_the_same_in_every_release() {
    let augment = Augmentation::default()
        .with_affine(affine())
        .with_elastic(elastic());
    let pose = augment
        .pose([1, 2, 3], Region::new([4, 5, 6], [8; 3]))
        .unwrap();
    let geometry = Geometry::from_spacing([2.0, 0.5, 1.0]);
    let affine = pose.geometry(&geometry).affine;
    let points = pose.displacement(&geometry).unwrap();
    let found = [
        affine[0][0],
        affine[1][2],
        affine[2][3],
        points.points()[17][1],
    ];
    for (value, expected) in found.into_iter().zip(GOLDEN) {
        assert!((value - expected).abs() < 1e-9, "{found:?}");
    }
}
const GOLDEN: [f64; 4] = [
    0.980_458_974_436_265_3,
    -0.070_281_440_649_373_65,
    5.619_529_848_925_826,
    0.630_358_608_528_716_7,
];

#[test]
fn only_chunks_of_the_patchs_box_are_read() {
    let rotated = Augmentation::default().with_affine(affine());
    // A spline reaches less than its control points, which decide the box.
    let bent = rotated.with_elastic(RandomElastic::default().with_max_displacement([0.5; 3]));
    for (augment, margin) in [(rotated, 1e-6), (bent, 2.0)] {
        check_that_only_the_box_is_read(&augment, margin);
    }
}

fn check_that_only_the_box_is_read(augment: &Augmentation, margin: f64) {
    let noted = Noted::chunked(1);
    let image =
        Image::new("one", Arc::clone(&noted) as _).with_interpolation(Interpolation::Linear);
    let subject = Subject::builder("s").with_images([image]).build().unwrap();
    let dataset = Dataset::new(vec![subject], UniformPatches::new([8; 3])).samples_per_subject(6);
    let chunk = noted.layout().read_chunk.unwrap();
    let mut needed = BTreeSet::new();
    for sample in dataset
        .epoch(0)
        .threads(2)
        .augment(*augment)
        .samples()
        .unwrap()
    {
        let sample = sample.unwrap();
        let (mut low, mut high) = ([f64::INFINITY; 3], [f64::NEG_INFINITY; 3]);
        for point in shown(&sample, [8; 3]) {
            let at = position(&Geometry::default(), point);
            for a in 0..3 {
                low[a] = low[a].min(at[a]);
                high[a] = high[a].max(at[a]);
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "a small volume")]
        let [first, last] = [low.map(|p| p - margin), high.map(|p| p + margin + 1.0)]
            .map(|p| p.map(|p| p.floor() as i64));
        let shape = std::array::from_fn(|a| last[a].abs_diff(first[a]) + 1);
        let own = Region::new(first, shape)
            .intersection(&Region::whole(SHAPE))
            .unwrap();
        needed.extend(intersecting(chunk, &(0..1), own));
    }
    let read: BTreeSet<ChunkShape> = noted.chunks.lock().unwrap().iter().copied().collect();
    let total = intersecting(chunk, &(0..1), Region::whole(SHAPE)).count();
    assert!(
        read.is_subset(&needed) && read.len() < total,
        "{}",
        read.len()
    );
    if margin < 1.0 {
        assert_eq!(read, needed);
    }
}

#[test]
fn the_box_that_is_read_counts_in_the_memory() {
    let (volume, _) = image_of(DType::F32, 0, [64; 3], None);
    let image = Image::new("one", volume).with_interpolation(Interpolation::Linear);
    let subject = Subject::builder("s").with_images([image]).build().unwrap();
    let dataset = Dataset::new(vec![subject], UniformPatches::new([16; 3])).samples_per_subject(40);
    let half = RandomAffine::default()
        .with_degrees([[0.0; 2]; 3])
        // At half the size, a patch shows 8 times the voxels.
        .with_scales([[0.5; 2]; 3]);
    let patch = 16 * 16 * 16 * 4;
    for (augment, most) in [
        (Augmentation::default(), 18),
        (Augmentation::default().with_affine(half), 2),
    ] {
        let options = LoaderOptions::default()
            .with_threads(2)
            .with_memory(18 * patch)
            .with_augment(augment);
        let mut loader = dataset.epoch(0).with_options(options).samples().unwrap();
        let mut largest = 0;
        while let Some(sample) = loader.next() {
            drop(sample.unwrap());
            let (ready, filling) = loader.stats().fill;
            largest = largest.max(ready + filling);
        }
        assert!((1..=most).contains(&largest), "{largest}");
        assert!(augment.interpolates() || largest > 8, "{largest}");
    }
}

#[test]
fn integers_must_say_how_they_are_interpolated_and_ranges_must_be_sound() {
    let (volume, _) = image_of(DType::I16, 0, [16; 3], None);
    let image = |name| Image::new(name, Arc::clone(&volume));
    let subject = Subject::builder("s")
        .with_images([
            image("ct").with_interpolation(Interpolation::Linear),
            image("label"),
        ])
        .build()
        .unwrap();
    let dataset = Dataset::new(vec![subject], UniformPatches::new([8; 3]));
    let augment = Augmentation::default().with_affine(affine());
    let error = dataset
        .epoch(0)
        .augment(augment)
        .samples()
        .unwrap()
        .next()
        .unwrap();
    let error = error.unwrap_err().with_causes();
    assert!(error.contains("interpolation of label"), "{error}");
    assert!(
        dataset
            .epoch(0)
            .samples()
            .unwrap()
            .all(|sample| sample.is_ok())
    );
    let normalized = image("ct").with_normalize(crate::normalize::Normalize::ZScore);
    let subject = Subject::builder("s")
        .with_images([normalized])
        .build()
        .unwrap();
    let dataset = Dataset::new(vec![subject], UniformPatches::new([8; 3]));
    let mut samples = dataset.epoch(0).augment(augment).samples().unwrap();
    assert!(samples.all(|sample| sample.is_ok()));
    for wrong in [
        affine().with_scales([[0.0, 1.0]; 3]),
        affine().with_scales([[-1.0, 1.0]; 3]),
        affine().with_degrees([[5.0, -5.0]; 3]),
        affine().with_shears([[0.0, f64::INFINITY]; 3]),
        affine().with_translation([[f64::NAN, 1.0]; 3]),
        affine().with_p(1.5),
        affine().with_p_rotation(-0.5),
        affine().with_p_scaling(f64::NAN),
    ] {
        let wrong = Augmentation::default().with_affine(wrong);
        assert!(
            matches!(wrong.check(), Err(Error::InvalidArgument { .. })),
            "{wrong:?}"
        );
    }
    for wrong in [
        elastic().with_num_control_points([3, 4, 4]),
        elastic().with_num_control_points([4, 4, 65]),
        elastic().with_max_displacement([-1.0; 3]),
        elastic().with_max_displacement([f64::NAN; 3]),
        elastic().with_p(2.0),
    ] {
        let wrong = Augmentation::default().with_elastic(wrong);
        assert!(
            matches!(wrong.check(), Err(Error::InvalidArgument { .. })),
            "{wrong:?}"
        );
    }
    // An axis with other control points cannot change places.
    let augment = Augmentation::default()
        .with_permute(1.0)
        .with_elastic(elastic().with_num_control_points([4, 5, 6]));
    let drawn = (0..20).map(|n| augment.pose([0, 0, n], Region::whole([8; 3])));
    assert!(drawn.filter(Result::is_err).count() > 5);
}
