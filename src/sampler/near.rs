//! Neighborhoods: groups of nearby draws, each distributed as if it were alone.
//!
//! In a volume far larger than the buffer, few patches share a chunk. A [`Neighborhood`] forms groups of draws: those
//! of one group are in one part of the volume. The plan's windows mix several groups, so that a batch still sees many
//! places.
//!
//! **Each draw alone has exactly the distribution that it has without a neighborhood.** All outcomes are placed on a
//! circle, in an order in which neighbors on the circle are near each other in space. A group has an *anchor*, uniform
//! on the circle, and a draw is the anchor plus the draw's own *offset*, modulo the circle's length L. For any offset d
//! and any outcome k, P(anchor + d = k mod L) = P(anchor = k - d mod L) = 1/L: the sum is uniform for any offset, and
//! therefore independent of it. The draw's other choices (its label, the voxel inside a block) come from separate
//! random numbers, independent of the anchor. Only the dependence between draws of one group changes.
//!
//! - [`Uniform`](super::Uniform): each axis of the box of centers is a circle, and offsets fill a box.
//! - [`Label`](super::Label): the voxels of a label are the circle, block by block along a Z-order curve (G. M. Morton,
//!   1966). Labels are drawn by their shares, draw by draw. The draws of one group have the same relative position on
//!   their labels' circles.
//! - [`Weighted`](super::Weighted): the 2^64 numbers by which a block is drawn are the circle, with blocks along the
//!   curve.
//!
//! A group that extends beyond the circle's end continues at its beginning, so it may be in two places (a box in up to
//! eight). This does not favor any place.

use std::cmp::Ordering;

use super::random::CounterRng;
use crate::error::{Error, Result};
use crate::region::Shape;

/// Groups of nearby draws, each distributed as if it were alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighborhood {
    draws: u64,
    /// The fraction of the circle that offsets fill, in units of 2^-64, minus one unit.
    span: u64,
}

impl Neighborhood {
    /// Creates groups of `draws` draws: `0..draws`, `draws..2 * draws` and so on. Each group covers a fraction `width`
    /// of all outcomes: 0.001 is a box of a tenth of each axis for [`Uniform`](super::Uniform), and a thousandth of a
    /// label's voxels for [`Label`](super::Label). A width of 1 has no effect.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for groups of 0 draws, or a width that is not above 0 and at most 1.
    pub fn new(draws: u64, width: f64) -> Result<Self> {
        let bad = |value: String, problem: &str| {
            Err(Error::InvalidArgument {
                argument: "neighborhood",
                value,
                problem: problem.to_owned(),
            })
        };
        if draws == 0 {
            return bad("of 0 draws".to_owned(), "it needs at least one");
        }
        if !(width > 0.0 && width <= 1.0) {
            let value = format!("of {width} of the volume");
            return bad(
                value,
                "it must be a fraction of the volume, above 0 and at most 1",
            );
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast stops at 2^64 - 1, which is all of it"
        )]
        let span = (width * 2.0_f64.powi(64)) as u64;
        Ok(Self { draws, span })
    }

    /// Returns the random numbers of a draw's group; all draws of the group share them.
    pub(super) fn anchor(&self, seed: u64, epoch: u64, n: u64) -> CounterRng {
        CounterRng::of_domain(*b"voxpatch near v1", seed, epoch, n / self.draws)
    }

    /// Returns the part of `length` that offsets fill, at least 1.
    fn part(&self, length: u64) -> u64 {
        let part = (u128::from(length) * (u128::from(self.span) + 1)) >> 64;
        u64::try_from(part).unwrap_or(length).max(1)
    }

    /// Returns a uniform number below `length`, near the others of its group.
    pub(super) fn below(&self, anchor: &mut CounterRng, own: &mut CounterRng, length: u64) -> u64 {
        around(anchor, own, length, self.part(length))
    }

    /// Returns a uniform 64-bit number, near the others of its group.
    pub(super) fn number(&self, anchor: &mut CounterRng, own: &mut CounterRng) -> u64 {
        let offset = match self.span.checked_add(1) {
            Some(span) => own.below(span),
            None => own.number(),
        };
        anchor.number().wrapping_add(offset)
    }

    /// Returns a uniform place in a box of `shape`, near the others of its group.
    pub(super) fn place(
        &self,
        anchor: &mut CounterRng,
        own: &mut CounterRng,
        shape: Shape,
    ) -> Shape {
        let parts = self.parts(shape);
        std::array::from_fn(|a| around(anchor, own, shape[a], parts[a]))
    }

    /// Returns the shape of a box with about the group's fraction of the voxels of `shape`: a cube, unless an axis is
    /// shorter than its edge.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "its size does not have to be exact"
    )]
    fn parts(&self, shape: Shape) -> Shape {
        if self.span == u64::MAX {
            return shape;
        }
        let mut axes = [0, 1, 2];
        axes.sort_unstable_by_key(|&a| shape[a]);
        let mut left = shape.iter().map(|&n| n as f64).product::<f64>()
            * ((self.span as f64 + 1.0) * 2.0_f64.powi(-64));
        let mut parts = [1; 3];
        for (a, axes_left) in axes.into_iter().zip([3.0, 2.0, 1.0]) {
            let edge = left.powf(1.0 / axes_left).round();
            parts[a] = (edge as u64).clamp(1, shape[a].max(1));
            left /= parts[a] as f64;
        }
        parts
    }
}

fn around(anchor: &mut CounterRng, own: &mut CounterRng, length: u64, part: u64) -> u64 {
    turned(anchor.below(length), own.below(part), length)
}

/// Returns `anchor + offset` modulo `length`; both are below `length`.
const fn turned(anchor: u64, offset: u64, length: u64) -> u64 {
    let left = length - anchor;
    if offset < left {
        anchor + offset
    } else {
        offset - left
    }
}

/// Compares blocks along the Z-order curve: an aligned cube of 2^k blocks on a side contains all blocks between any two
/// of its blocks.
pub(super) fn along_the_curve(a: [u64; 3], b: [u64; 3]) -> Ordering {
    // The axis with the highest differing bit decides; of equal axes, the last (T. M. Chan, 2002).
    let differing = |axis: &usize| (a[*axis] ^ b[*axis]).checked_ilog2();
    let axis = (0..3).max_by_key(differing).unwrap_or(2);
    a[axis].cmp(&b[axis])
}

#[cfg(test)]
mod tests;
