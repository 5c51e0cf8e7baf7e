//! Boxes that are held in memory from one patch to another, and the most that are held at one moment.
//!
//! Each box is a product of intervals, one per axis, and is held from a first to a last patch. With patches in the
//! grid's order, a box whose intervals along the axes (slowest first) are held from patches `(f0, f1, f2)` to `(l0, l1,
//! l2)` is held at patch `(i, j, k)` exactly if `(f0, f1, f2) <= (i, j, k) <= (l0, l1, l2)` in lexicographic order. The
//! count at a moment is therefore computed axis by axis. While the last layers are swept together, the order is that of `(j,
//! i, k)`, and boxes of earlier layers have all begun.
//!
//! The time to find the maximum over all moments grows with the sum of the axes, not their product. Along the fastest
//! axis, a count is linear in two numbers (the voxels begun and the voxels not ended), so the maximum is at a corner of
//! their convex hull. Along the slower two, a bound from the same hull excludes nearly all moments.

use std::collections::HashMap;
use std::ops::{Add, Range};
use std::rc::Rc;

use crate::grid::Grid;

/// An interval of voxels along an axis, with the first and the last patch for which it is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// Boxes that are products of spans along z, y, x.
#[derive(Debug)]
pub(super) struct SpanBoxes {
    pub(super) spans: [Vec<Span>; 3],
    order: [usize; 3],
    /// The first of the layers of patches that are swept together.
    joined: usize,
    /// Bytes per voxel.
    pub(super) bytes: u64,
    /// A cache of the levels of runs of spans along each axis.
    known: [HashMap<Range<usize>, Rc<SpanLevel>>; 3],
}

impl SpanBoxes {
    pub(super) fn new(spans: [Vec<Span>; 3], grid: &Grid, bytes: u64) -> Self {
        Self {
            spans,
            order: grid.order(),
            joined: grid.joined(),
            bytes,
            known: Default::default(),
        }
    }

    /// Returns the voxels of the largest box.
    pub(super) fn largest(&self) -> u64 {
        let longest = self.spans.iter().map(|spans| {
            let lengths = spans.iter().map(|span| span.end - span.start);
            lengths.max().unwrap_or(0)
        });
        longest.fold(1, u64::saturating_mul)
    }

    /// Returns the most bytes of the boxes of those spans that `choose` selects for the voxels `kept` along an axis.
    pub(super) fn most_bytes(
        &mut self,
        kept: &[Range<u64>; 3],
        choose: impl Fn(&[Span], &Range<u64>) -> Range<usize>,
    ) -> u64 {
        let slow = self.order[0];
        let levels = self.order.map(|a| {
            let Range { start, end } = choose(&self.spans[a], &kept[a]);
            let chosen = start..end.max(start);
            let spans = &self.spans[a][chosen.clone()];
            let joined = if a == slow { self.joined } else { usize::MAX };
            let known = self.known[a].entry(chosen);
            Rc::clone(known.or_insert_with(|| Rc::new(SpanLevel::new(spans, joined))))
        });
        let voxels = most(&levels);
        u64::try_from(voxels)
            .unwrap_or(u64::MAX)
            .saturating_mul(self.bytes)
    }
}

/// Voxels of the slower axes, by the remaining condition for holding a box: none, begun, not ended, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConditionCounts {
    pub(super) always: u128,
    pub(super) begun: u128,
    pub(super) unended: u128,
    pub(super) both: u128,
}

impl ConditionCounts {
    /// Returns the voxels that are held if all conditions are met.
    const fn bound(&self) -> u128 {
        self.always + self.begun + self.unended + self.both
    }
}

impl Add for ConditionCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            always: self.always + other.always,
            begun: self.begun + other.begun,
            unended: self.unended + other.unended,
            both: self.both + other.both,
        }
    }
}

/// The spans along one axis: for each patch where a span begins or ends, the lengths of the spans that begin or end
/// there or elsewhere. At the other patches no more is held than at the patch before.
#[derive(Debug)]
pub(super) struct SpanLevel {
    pub(super) total: u128,
    pub(super) steps: Vec<SpanStep>,
    /// The distinct weights that the patches give to boxes without a condition from slower axes; along the slowest axis,
    /// those of the layers that are swept on their own.
    weights: Vec<ConditionCounts>,
    /// The corners of the convex hull of the voxels begun and the voxels not ended, over all patches: any weighted sum
    /// of the two has its maximum at a corner.
    corners: Vec<[u128; 2]>,
    /// The layers that are swept together, if this is the slowest axis.
    together: Together,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpanStep {
    begun: u128,
    begins: u128,
    unended: u128,
    ends: u128,
    /// Voxels of spans that begin before and end after.
    inside: u128,
    begins_only: u128,
    ends_only: u128,
    begins_and_ends: u128,
}

impl SpanLevel {
    /// Creates the level of some spans. Patches from `joined` on are layers that are swept together.
    pub(super) fn new(spans: &[Span], joined: usize) -> Self {
        work::add(spans.len());
        let mut patches: Vec<usize> = spans
            .iter()
            .flat_map(|span| [span.first, span.last])
            .collect();
        patches.sort_unstable();
        patches.dedup();
        let mut steps = vec![SpanStep::default(); patches.len()];
        let at = |patch: usize| patches.partition_point(|&other| other < patch);
        for span in spans {
            let length = u128::from(span.end - span.start);
            let (first, last) = (at(span.first), at(span.last));
            steps[first].begins += length;
            steps[last].ends += length;
            if first == last {
                steps[first].begins_and_ends += length;
            } else {
                steps[first].begins_only += length;
                steps[last].ends_only += length;
            }
        }
        let total: u128 = steps.iter().map(|step| step.begins).sum();
        let (mut begun, mut ended, mut open) = (0, 0, 0);
        for step in &mut steps {
            step.begun = begun;
            step.unended = total - ended - step.ends;
            step.inside = open - step.ends_only;
            begun += step.begins;
            ended += step.ends;
            open += step.begins_only;
            open -= step.ends_only;
        }
        let alone = at(joined);
        let mut weights: Vec<ConditionCounts> =
            steps[..alone].iter().map(SpanStep::weights).collect();
        weights.sort_unstable();
        weights.dedup();
        let corners = corners(steps.iter().map(SpanStep::with_its_own));
        Self {
            total,
            steps,
            weights,
            corners,
            together: Together::new(spans, joined),
        }
    }

    /// Returns the maximum over all patches of the last axis.
    fn most(&self, weights: ConditionCounts) -> u128 {
        let ConditionCounts {
            always,
            begun,
            unended,
            both,
        } = weights;
        // Voxels that have begun and not ended are those begun plus those not ended, minus all.
        let value = |[begins, ends]: [u128; 2]| (begun + both) * begins + (unended + both) * ends;
        let (mut low, mut high) = (0, self.corners.len().saturating_sub(1));
        while low < high {
            let middle = usize::midpoint(low, high);
            if value(self.corners[middle]) < value(self.corners[middle + 1]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let most = self.corners.get(low).map_or(0, |&corner| value(corner));
        always * self.total + most.saturating_sub(both * self.total)
    }
}

impl SpanStep {
    /// Counts the voxels of spans at one patch.
    fn at(spans: &[Span], patch: usize) -> Self {
        let voxels = |chosen: &dyn Fn(&Span) -> bool| {
            let lengths = spans.iter().filter(|span| chosen(span));
            lengths.map(|span| u128::from(span.end - span.start)).sum()
        };
        Self {
            begun: voxels(&|span| span.first < patch),
            begins: voxels(&|span| span.first == patch),
            unended: voxels(&|span| span.last > patch),
            ends: voxels(&|span| span.last == patch),
            inside: voxels(&|span| span.first < patch && span.last > patch),
            begins_only: voxels(&|span| span.first == patch && span.last > patch),
            ends_only: voxels(&|span| span.first < patch && span.last == patch),
            begins_and_ends: voxels(&|span| span.first == patch && span.last == patch),
        }
    }

    /// Returns the weights that a patch of the slowest axis gives to boxes.
    const fn weights(&self) -> ConditionCounts {
        ConditionCounts {
            always: self.inside,
            begun: self.begins_only,
            unended: self.ends_only,
            both: self.begins_and_ends,
        }
    }

    /// Does the same for boxes that have all begun.
    const fn weights_of_begun(&self) -> ConditionCounts {
        ConditionCounts {
            always: self.unended,
            begun: 0,
            unended: self.ends,
            both: 0,
        }
    }

    /// Returns the voxels begun and the voxels not ended, including those that begin or end here.
    const fn with_its_own(&self) -> [u128; 2] {
        [self.begun + self.begins, self.unended + self.ends]
    }

    /// Returns the weights for the next axis, given this patch of an axis with `total` voxels.
    pub(super) const fn after(&self, total: u128, weights: ConditionCounts) -> ConditionCounts {
        let ConditionCounts {
            always,
            begun,
            unended,
            both,
        } = weights;
        ConditionCounts {
            always: always * total
                + begun * self.begun
                + unended * self.unended
                + both * self.inside,
            begun: begun * self.begins + both * self.begins_only,
            unended: unended * self.ends + both * self.ends_only,
            both: both * self.begins_and_ends,
        }
    }
}

/// Returns the upper convex hull of points whose first number never falls and whose second never rises.
fn corners(points: impl Iterator<Item = [u128; 2]>) -> Vec<[u128; 2]> {
    let mut hull: Vec<[u128; 2]> = Vec::new();
    for point in points {
        if hull.last().is_some_and(|last| last[0] == point[0]) {
            continue;
        }
        while let [.., a, b] = hull[..]
            && (b[0] - a[0]) * (a[1] - point[1]) <= (point[0] - a[0]) * (a[1] - b[1])
        {
            hull.pop();
        }
        hull.push(point);
    }
    hull
}

/// Returns the most voxels held at once. The levels are from the slowest axis to the fastest.
pub(super) fn most([slow, middle, fast]: &[Rc<SpanLevel>; 3]) -> u128 {
    // An upper bound: all voxels along the fastest axis are held.
    let bound = |weights: ConditionCounts| fast.total * middle.most(weights);
    work::add(slow.weights.len());
    let bounds: Vec<u128> = slow.weights.iter().copied().map(bound).collect();
    let within = |weights: ConditionCounts, mut most: u128| {
        work::add(middle.steps.len());
        for step in &middle.steps {
            let after = step.after(middle.total, weights);
            if after.bound() * fast.total > most {
                work::add(1);
                most = most.max(fast.most(after));
            }
        }
        most
    };
    let together = slow.together.most(middle, fast);
    let Some(likely) = (0..bounds.len()).max_by_key(|&n| bounds[n]) else {
        return together;
    };
    let mut most = within(slow.weights[likely], together);
    for (&weights, &bound) in slow.weights.iter().zip(&bounds) {
        if bound > most {
            most = within(weights, most);
        }
    }
    most
}

/// The spans along the slowest axis that are held while its last layers are swept together, row by row: the middle axis is
/// the slowest then.
#[derive(Debug)]
struct Together {
    /// The steps of each of these layers, of the spans that began in earlier layers and of the others.
    layers: Vec<[SpanStep; 2]>,
    /// The voxels of these spans.
    totals: [u128; 2],
}

impl Together {
    /// Takes the spans that end in the layers from `joined` on; none if no layers are swept together.
    fn new(spans: &[Span], joined: usize) -> Self {
        let late = spans.iter().copied().filter(|span| span.last >= joined);
        let (begun, new): (Vec<Span>, Vec<Span>) = late.partition(|span| span.first < joined);
        let both = [begun, new];
        let end = both.iter().flatten().map(|span| span.last + 1).max();
        let layers = joined..end.unwrap_or(joined);
        let at = |layer: usize| both.each_ref().map(|spans| SpanStep::at(spans, layer));
        let total = |spans: &Vec<Span>| {
            let lengths = spans.iter().map(|span| u128::from(span.end - span.start));
            lengths.sum()
        };
        Self {
            layers: layers.map(at).collect(),
            totals: both.each_ref().map(total),
        }
    }

    /// Returns the most voxels held at once, given the levels of the other axes.
    fn most(&self, middle: &SpanLevel, fast: &SpanLevel) -> u128 {
        let mut most = 0;
        for step in &middle.steps {
            for [begun, new] in &self.layers {
                work::add(1);
                let begun = begun.after(self.totals[0], step.weights_of_begun());
                let weights = begun + new.after(self.totals[1], step.weights());
                if weights.bound() * fast.total > most {
                    work::add(1);
                    most = most.max(fast.most(weights));
                }
            }
        }
        most
    }
}

/// A counter of steps, for tests.
pub(super) mod work {
    #[cfg(test)]
    thread_local! {
        pub(in super::super) static DONE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    #[cfg(test)]
    pub(super) fn add(steps: usize) {
        DONE.with(|done| done.set(done.get() + steps as u64));
    }

    #[cfg(not(test))]
    pub(super) const fn add(_steps: usize) {}
}
