//! Neighborhoods: groups of nearby draws, each distributed as if it were alone.
//!
//! In a volume far larger than the buffer, few patches share a chunk. With a [`Neighborhood`],
//! draws come in groups: those of one group are in one part of the volume. The plan's windows mix
//! several groups, so that a batch still sees many places.
//!
//! **Each draw alone has exactly the distribution that it has without a neighborhood.** All
//! outcomes are put on a circle, in an order in which neighbours on the circle lie near each
//! other in space. A group has an *anchor*, uniform on the circle, and a draw is the anchor plus
//! an *offset* of its own, modulo the circle's length L. For any offset d and any outcome k,
//! P(anchor + d = k mod L) = P(anchor = k - d mod L) = 1/L: whatever the offset is, the sum is
//! uniform, and so independent of it. Everything else that a draw chooses (its label, the voxel
//! inside a block) comes from numbers of its own that the anchor does not depend on. What
//! changes is only how draws of one group depend on each other.
//!
//! - [`Uniform`](super::Uniform): each axis of the centres is a circle, and offsets fill a box.
//! - [`Label`](super::Label): the voxels of a label are the circle, block by block along a Z-order
//!   curve (G. M. Morton, 1966). Labels are drawn by their shares, draw by draw; those of one
//!   group have one relative place on their circles.
//! - [`Weighted`](super::Weighted): the 2^64 numbers by which a block is drawn are the circle, blocks
//!   along the curve.
//!
//! A group that reaches over the circle's end continues at its beginning, so it may be in two
//! places (a box in up to eight). This favors no place.

use std::cmp::Ordering;

use super::random::CounterRng;
use crate::error::{Error, Result};
use crate::region::Shape;

/// Groups of nearby draws, each distributed as if it were alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighborhood {
    draws: u64,
    /// The part of the circle that offsets fill, in 2^-64 of it, less one of these.
    span: u64,
}

impl Neighborhood {
    /// Draws `0..draws`, `draws..2 * draws` and so on each fall into `width` of all that can be
    /// drawn: a thousandth is a box of a tenth of each axis for [`Uniform`](super::Uniform), and a
    /// thousandth of a label's voxels for [`Label`](super::Label). 1 is no neighborhood.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for groups of 0 draws, or a width that is not above 0 and up to 1.
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

    /// The part of `length` that offsets fill, 1 at least.
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

    /// A box with about the group's part of the voxels of `shape`: a cube, unless an axis is
    /// shorter than that.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "how large it is need not be exact"
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

/// `anchor + offset` modulo `length`; both are below that.
const fn turned(anchor: u64, offset: u64, length: u64) -> u64 {
    let left = length - anchor;
    if offset < left {
        anchor + offset
    } else {
        offset - left
    }
}

/// Along the Z-order curve: what lies between two blocks of a cube of 2^k blocks on a side that
/// starts at multiples of that lies in it too.
pub(super) fn along_the_curve(a: [u64; 3], b: [u64; 3]) -> Ordering {
    // The axis whose highest differing bit is highest decides; of equal ones, the last (T. M. Chan, 2002).
    let differing = |axis: &usize| (a[*axis] ^ b[*axis]).checked_ilog2();
    let axis = (0..3).max_by_key(differing).unwrap_or(2);
    a[axis].cmp(&b[axis])
}

#[cfg(test)]
mod tests;
