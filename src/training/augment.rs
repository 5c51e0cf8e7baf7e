//! Augmentation: random crops, maps, flips, axis orders and rotations of patches, drawn from (seed, epoch, n).

use crate::error::{Error, Result};
use crate::geometry::SignedAxes;
use crate::region::{Region, Shape};
use crate::sampler::CounterRng;
use crate::training::spatial::{self, Pose, RandomAffine, RandomElastic, RandomMap};

/// Random changes of the patches' place and orientation, the same for all images of a sample.
///
/// They are a function of the plan's seed, the epoch, and the place of the patch in the epoch, so they do not
/// depend on threads, ranks or resuming. The crop comes first. Then the patch is read through the maps of
/// [`affine`](Self::affine) and [`elastic`](Self::elastic): each image once, with its own
/// [interpolation](crate::training::Image::interpolation), and only the box that the patch needs. Then come flips, the
/// order of the axes, and the rotation by right angles, which copy voxels.
///
/// Only orders and rotations that keep the shape of the patch are drawn: for a patch of 32 x 64 x 64 voxels,
/// those that leave z or turn it around.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Augmentation {
    /// The probability of a flip along z, y, x, each drawn independently.
    pub flip: [f64; 3],
    /// The probability that the axes get a random order; all orders are equally likely.
    pub permute: f64,
    /// The probability of a random rotation by multiples of 90 degrees; all rotations, the identity
    /// included, are equally likely. Rotations never mirror.
    pub rotate: f64,
    /// The voxels of a random part of each drawn patch, which is delivered instead; nothing else is read.
    pub crop: Option<Shape>,
    /// A random affine map.
    pub affine: Option<RandomAffine>,
    /// A random deformation. It displaces the voxels of the patch before the affine map.
    pub elastic: Option<RandomElastic>,
}

impl Augmentation {
    /// Sets the probability of a flip along z, y, x.
    #[must_use]
    pub fn with_flip(self, flip: [f64; 3]) -> Self {
        Self { flip, ..self }
    }

    /// Sets the probability of a random order of the axes.
    #[must_use]
    pub fn with_permute(self, permute: f64) -> Self {
        Self { permute, ..self }
    }

    /// Sets the probability of a random rotation by multiples of 90 degrees.
    #[must_use]
    pub fn with_rotate(self, rotate: f64) -> Self {
        Self { rotate, ..self }
    }

    /// Sets the shape of the random part of each drawn patch.
    #[must_use]
    pub fn with_crop(self, crop: Shape) -> Self {
        Self {
            crop: Some(crop),
            ..self
        }
    }

    /// Sets the random affine map.
    #[must_use]
    pub fn with_affine(self, affine: RandomAffine) -> Self {
        Self {
            affine: Some(affine),
            ..self
        }
    }

    /// Sets the random deformation.
    #[must_use]
    pub fn with_elastic(self, elastic: RandomElastic) -> Self {
        Self {
            elastic: Some(elastic),
            ..self
        }
    }

    /// Checks that probabilities are between 0 and 1, ranges are sound, and a crop has voxels.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`].
    pub fn check(&self) -> Result<()> {
        let refuse = |argument, value: String, problem: &str| {
            Err(Error::InvalidArgument {
                argument,
                value,
                problem: problem.to_owned(),
            })
        };
        let flips = self.flip.map(|probability| ("flip", probability));
        let others = [("permute", self.permute), ("rotate", self.rotate)];
        for (name, probability) in flips.into_iter().chain(others) {
            if !(0.0..=1.0).contains(&probability) {
                return refuse(
                    name,
                    probability.to_string(),
                    "a probability is from 0 to 1",
                );
            }
        }
        spatial::check(self.affine.as_ref(), self.elastic.as_ref())?;
        match self.crop {
            Some(crop) if crop.contains(&0) => refuse(
                "crop",
                format!("{crop:?}"),
                "each axis has at least one voxel",
            ),
            _ => Ok(()),
        }
    }

    /// Returns `true` if patches keep their orientation.
    #[must_use]
    pub fn keeps_axes(&self) -> bool {
        let all = self.flip.into_iter().chain([self.permute, self.rotate]);
        all.into_iter().all(|probability| probability <= 0.0)
    }

    /// Returns `true` if patches are read through a map, which interpolates.
    #[must_use]
    pub const fn interpolates(&self) -> bool {
        self.affine.is_some() || self.elastic.is_some()
    }

    /// Draws the part of a patch, its map and its axes.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the crop is larger than the patch, or axes with different numbers of control points
    /// change places.
    pub(super) fn pose(&self, key: [u64; 3], drawn: Region) -> Result<Pose> {
        let (region, axes) = self.draw(key, drawn)?;
        let pose = Pose {
            region,
            axes,
            map: RandomMap::draw(key, self.affine.as_ref(), self.elastic.as_ref()),
            elastic: self.elastic,
        };
        pose.check()?;
        Ok(pose)
    }

    /// Draws the part of a patch and its axes: the region to read, and the axes of the delivered patch.
    pub(super) fn draw(
        &self,
        [seed, epoch, place]: [u64; 3],
        drawn: Region,
    ) -> Result<(Region, SignedAxes)> {
        if self.crop.is_none() && self.keeps_axes() {
            return Ok((drawn, SignedAxes::SAME));
        }
        let mut random = CounterRng::of_domain(*b"voxpatch flip v1", seed, epoch, place);
        // All numbers are drawn always, so that one option does not change what another one draws.
        let flipped = self.flip.map(|probability| random.fraction() < probability);
        let [permuted, rotated] =
            [self.permute, self.rotate].map(|probability| random.fraction() < probability);
        let [order, rotation] = [random.number(), random.number()];
        let region = self.part(drawn, &mut random)?;
        let keeps = |axes: &SignedAxes| axes.shape(region.shape) == region.shape;
        let mut axes = SignedAxes::SAME.flipped_along(flipped);
        if permuted {
            let orders = SignedAxes::all().filter(|axes| axes.flipped() == [false; 3]);
            axes = axes.then(chosen(orders.filter(keeps), order));
        }
        if rotated {
            let rotations = SignedAxes::all().filter(SignedAxes::is_rotation);
            axes = axes.then(chosen(rotations.filter(keeps), rotation));
        }
        Ok((region, axes))
    }

    /// Draws a part of a region.
    fn part(&self, drawn: Region, random: &mut CounterRng) -> Result<Region> {
        let Some(shape) = self.crop else {
            return Ok(drawn);
        };
        let mut part = Region::new(drawn.start, shape);
        for a in 0..3 {
            let Some(spare) = drawn.shape[a].checked_sub(shape[a]) else {
                return Err(Error::InvalidArgument {
                    argument: "crop",
                    value: format!("{shape:?}"),
                    problem: format!("the drawn patch has {:?} voxels (z, y, x)", drawn.shape),
                });
            };
            part.start[a] += random.below(spare.saturating_add(1)).cast_signed();
        }
        Ok(part)
    }
}

/// Returns one of the candidates, all equally likely for a uniform number.
fn chosen(candidates: impl Iterator<Item = SignedAxes>, number: u64) -> SignedAxes {
    let candidates: Vec<SignedAxes> = candidates.collect();
    // Of up to 24 candidates, the bias is below 2^-59.
    let at = (u128::from(number) * candidates.len() as u128) >> 64;
    let at = usize::try_from(at).expect("it is below 24");
    candidates[at]
}

/// Turns the voxels of `channels` channels in place to new axes that keep the shape.
pub(super) fn turn(voxels: &mut [u8], shape: Shape, size: usize, axes: SignedAxes) {
    debug_assert_eq!(axes.shape(shape), shape);
    if axes == SignedAxes::SAME || voxels.is_empty() {
        return;
    }
    let shape = shape.map(|n| usize::try_from(n).expect("a patch is in memory"));
    match size {
        1 => turn_elements::<u8>(voxels, shape, axes),
        2 => turn_elements::<u16>(bytemuck::cast_slice_mut(voxels), shape, axes),
        4 => turn_elements::<u32>(bytemuck::cast_slice_mut(voxels), shape, axes),
        _ => turn_elements::<u64>(bytemuck::cast_slice_mut(voxels), shape, axes),
    }
}

fn turn_elements<T: Copy>(voxels: &mut [T], shape: [usize; 3], axes: SignedAxes) {
    let [nz, ny, nx] = shape;
    for channel in voxels.chunks_exact_mut(nz * ny * nx) {
        // A permutation that keeps the shape is a sequence of swaps of axes of one length.
        let mut order = [0, 1, 2];
        for to in 0..3 {
            let at = (to..3).find(|&at| order[at] == axes.order()[to]);
            let at = at.expect("an order has each axis once");
            if at != to {
                swap_axes(channel, shape, to, at);
                order.swap(to, at);
            }
        }
        let [z, y, x] = axes.flipped();
        if x {
            channel.chunks_exact_mut(nx).for_each(<[T]>::reverse);
        }
        if y {
            let planes = channel.chunks_exact_mut(ny * nx);
            planes.for_each(|plane| reverse_rows(plane, nx));
        }
        if z {
            reverse_rows(channel, ny * nx);
        }
    }
}

/// Reverses the order of rows of `length` elements.
fn reverse_rows<T: Copy>(rows: &mut [T], length: usize) {
    let count = rows.len() / length;
    let (low, high) = rows.split_at_mut(count.div_ceil(2) * length);
    let low = low.chunks_exact_mut(length);
    for (a, b) in low.zip(high.chunks_exact_mut(length).rev()) {
        a.swap_with_slice(b);
    }
}

/// The side of the squares that are transposed at a time, so that both halves are in the cache.
const TILE: usize = 16;

/// Swaps two axes of one length, `a` before `b`.
fn swap_axes<T: Copy>(voxels: &mut [T], [nz, ny, nx]: [usize; 3], a: usize, b: usize) {
    let plane = ny * nx;
    match (a, b) {
        (0, 1) => {
            for z in 0..nz {
                for y in z + 1..ny {
                    let (first, second) = (z * plane + y * nx, y * plane + z * nx);
                    let (low, high) = voxels.split_at_mut(second);
                    low[first..first + nx].swap_with_slice(&mut high[..nx]);
                }
            }
        }
        (1, 2) => (0..nz).for_each(|z| transpose(voxels, z * plane, ny, nx)),
        _ => (0..ny).for_each(|y| transpose(voxels, y * nx, nz, plane)),
    }
}

/// Transposes the square of `side` rows that starts at `start`, with `step` elements from row to row.
fn transpose<T: Copy>(voxels: &mut [T], start: usize, side: usize, step: usize) {
    for rows in (0..side).step_by(TILE) {
        for columns in (rows..side).step_by(TILE) {
            for row in rows..side.min(rows + TILE) {
                for column in columns.max(row + 1)..side.min(columns + TILE) {
                    voxels.swap(start + row * step + column, start + column * step + row);
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns the voxels at new axes, voxel by voxel.
    pub(in crate::training) fn naive<T: Copy>(
        voxels: &[T],
        shape: Shape,
        axes: SignedAxes,
    ) -> Vec<T> {
        let [nz, ny, nx] = shape;
        let mut out = Vec::new();
        let channels = voxels.len() as u64 / (nz * ny * nx);
        for c in 0..channels {
            for z in 0..nz {
                for y in 0..ny {
                    for x in 0..nx {
                        let mut from = [0; 3];
                        for (axis, at) in [z, y, x].into_iter().enumerate() {
                            let old = axes.order()[axis];
                            from[old] = if axes.flipped()[axis] {
                                shape[old] - 1 - at
                            } else {
                                at
                            };
                        }
                        let place = ((c * nz + from[0]) * ny + from[1]) * nx + from[2];
                        out.push(voxels[usize::try_from(place).unwrap()]);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn voxels_are_turned_in_place_as_one_by_one() {
        let shapes = [
            [1, 1, 1],
            [5, 5, 5],
            [37, 37, 37],
            [2, 19, 19],
            [18, 3, 18],
            [17, 17, 4],
            [3, 4, 5],
        ];
        for shape in shapes {
            for axes in SignedAxes::all().filter(|axes| axes.shape(shape) == shape) {
                let count = 2 * shape.iter().product::<u64>();
                let wide: Vec<u64> = (0..count).map(|n| n.wrapping_mul(0x9E37_79B9)).collect();
                let expected = naive(&wide, shape, axes);
                macro_rules! check {
                    ($ty:ty) => {
                        let cut = |v: &u64| {
                            <$ty>::from_le_bytes(
                                v.to_le_bytes()[..size_of::<$ty>()].try_into().unwrap(),
                            )
                        };
                        let mut own: Vec<$ty> = wide.iter().map(cut).collect();
                        turn(
                            bytemuck::cast_slice_mut(&mut own),
                            shape,
                            size_of::<$ty>(),
                            axes,
                        );
                        let expected: Vec<$ty> = expected.iter().map(cut).collect();
                        assert_eq!(own, expected, "{shape:?} {axes:?}");
                    };
                }
                check!(u8);
                check!(u16);
                check!(u32);
                check!(u64);
            }
        }
    }

    #[test]
    fn options_draw_with_their_probabilities_and_independently_of_each_other() {
        let region = Region::new([3, 4, 5], [8; 3]);
        let all = Augmentation::default()
            .with_flip([0.25, 0.5, 1.0])
            .with_permute(0.5)
            .with_rotate(0.5);
        let (mut flips, mut kept) = ([0_u32; 3], 0);
        let count = 20_000;
        for n in 0..count {
            let flip_only = Augmentation::default().with_flip(all.flip);
            let (same, axes) = flip_only.draw([1, 2, n], region).unwrap();
            assert_eq!((same, axes.order()), (region, [0, 1, 2]));
            for (sum, flipped) in flips.iter_mut().zip(axes.flipped()) {
                *sum += u32::from(flipped);
            }
            let turned = Augmentation {
                flip: [0.0; 3],
                ..all
            };
            let (_, turned) = turned.draw([1, 2, n], region).unwrap();
            let (_, both) = all.draw([1, 2, n], region).unwrap();
            assert_eq!(both, axes.then(turned));
            kept += u32::from(turned == SignedAxes::SAME);
        }
        // Five standard deviations of a binomial are below 360 of 20 000.
        assert!(
            flips[0].abs_diff(5_000) < 360 && flips[1].abs_diff(10_000) < 360,
            "{flips:?}"
        );
        assert_eq!(flips[2], 20_000);
        // Kept: neither, or the identity of 6 orders, of 24 rotations, or of an order and a rotation that cancel.
        let share = 0.25 * (1.0 + 1.0 / 6.0 + 1.0 / 24.0 + 3.0 / 6.0 / 24.0);
        assert!((f64::from(kept) - share * 20_000.0).abs() < 360.0, "{kept}");
    }

    #[test]
    fn orders_and_rotations_are_equally_likely_and_keep_the_shape() {
        for (shape, orders, rotations) in [([8; 3], 6, 24), ([4, 8, 8], 2, 8), ([4, 8, 9], 1, 4)] {
            let region = Region::whole(shape);
            for (option, candidates) in [
                (Augmentation::default().with_permute(1.0), orders),
                (Augmentation::default().with_rotate(1.0), rotations),
            ] {
                let mut counts = std::collections::HashMap::new();
                for n in 0..24_000 {
                    let (_, axes) = option.draw([9, 0, n], region).unwrap();
                    assert_eq!(axes.shape(shape), shape);
                    *counts.entry(axes).or_insert(0_u32) += 1;
                }
                assert_eq!(counts.len(), candidates);
                let expected = 24_000 / u32::try_from(candidates).unwrap();
                // Five standard deviations.
                let near = 5.0 * f64::from(expected).sqrt();
                for (axes, count) in counts {
                    assert!(
                        f64::from(count.abs_diff(expected)) <= near,
                        "{axes:?} {count}"
                    );
                    assert!(option.rotate == 0.0 || axes.is_rotation());
                }
            }
        }
    }

    #[test]
    fn crops_are_uniform_parts_of_the_drawn_patch() {
        let region = Region::new([-2, 7, 0], [6, 5, 4]);
        let crop = Augmentation::default().with_crop([4, 5, 2]);
        let mut starts = std::collections::HashMap::new();
        for n in 0..9_000 {
            let (part, axes) = crop.draw([5, 1, n], region).unwrap();
            assert!(region.contains(&part) && part.shape == [4, 5, 2] && axes == SignedAxes::SAME);
            *starts.entry(part.start).or_insert(0_u32) += 1;
        }
        assert_eq!(starts.len(), 9);
        assert!(
            starts.values().all(|count| count.abs_diff(1_000) < 160),
            "{starts:?}"
        );
        let error = crop.draw([5, 1, 0], Region::whole([4, 4, 4])).unwrap_err();
        assert!(error.to_string().contains("[4, 4, 4] voxels"), "{error}");
    }

    #[test]
    fn wrong_probabilities_are_refused() {
        for wrong in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let options = Augmentation::default();
            for option in [
                options.with_flip([0.0, wrong, 0.0]),
                options.with_permute(wrong),
                options.with_rotate(wrong),
            ] {
                let error = option.check().unwrap_err().to_string();
                assert!(error.contains("from 0 to 1"), "{error}");
            }
        }
        assert!(
            Augmentation::default()
                .with_crop([1, 0, 1])
                .check()
                .is_err()
        );
        assert!(
            Augmentation::default()
                .with_crop([1; 3])
                .with_rotate(1.0)
                .check()
                .is_ok()
        );
    }

    #[test]
    fn draws_are_the_same_in_every_release() {
        let all = Augmentation::default()
            .with_flip([0.5; 3])
            .with_permute(0.5)
            .with_rotate(0.5)
            .with_crop([5; 3]);
        let drawn = (0..3).map(|n| all.draw([1, 2, n], Region::whole([8; 3])).unwrap());
        let drawn = drawn.map(|(region, axes)| (region.start, axes.order(), axes.flipped()));
        assert_eq!(drawn.collect::<Vec<_>>(), GOLDEN);
    }
    const GOLDEN: [([i64; 3], [usize; 3], [bool; 3]); 3] = [
        ([3, 2, 0], [2, 1, 0], [false; 3]),
        ([0, 2, 1], [1, 2, 0], [false, false, true]),
        ([3, 0, 2], [2, 0, 1], [false; 3]),
    ];
}
