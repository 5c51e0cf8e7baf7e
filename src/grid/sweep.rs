//! The order in which the patches of a grid are swept.

use std::ops::Range;

/// An order of the patches of a grid, by their places along z, y, x.
///
/// Patches are swept layer by layer along the slowest axis, and row by row in each layer. The layers from `joined` on are
/// swept together: of each row, the patches of all these layers come before those of the next row. What one of these layers
/// leaves for the next is then a few rows, not a whole layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sweep {
    /// Axes from the slowest to the fastest.
    pub(super) order: [usize; 3],
    /// The first of the layers that are swept together; the number of layers if each is swept on its own.
    pub(super) joined: usize,
}

impl Sweep {
    /// Returns the number of the patches at some places that come before the one at `place`, which is one of them.
    pub(super) fn number(&self, places: &[Range<usize>; 3], place: [usize; 3]) -> u64 {
        let [a, b, c] = self.order;
        let (rows, columns) = (places[b].len() as u64, places[c].len() as u64);
        let before = |axis: usize| (place[axis] - places[axis].start) as u64;
        let (alone, together) = self.layers(&places[a]);
        let row = if place[a] < together.start {
            before(a) * rows + before(b)
        } else {
            let whole = alone.len() as u64 * rows + before(b) * together.len() as u64;
            whole + (place[a] - together.start) as u64
        };
        row * columns + before(c)
    }

    /// Returns the place of patch `number` of a grid with `counts` patches along z, y, x, or `None` if there are fewer.
    pub(super) fn place(&self, counts: [usize; 3], number: u64) -> Option<[usize; 3]> {
        let [a, b, c] = self.order;
        let [layers, rows, columns] = [a, b, c].map(|axis| counts[axis] as u64);
        let (row, column) = (number / columns, number % columns);
        let (alone, together) = self.layers(&(0..counts[a]));
        let first = alone.len() as u64 * rows;
        let (layer, row) = match (row.checked_sub(first), together.len() as u64) {
            (None, _) => (row / rows, row % rows),
            (Some(_), 0) => return None,
            (Some(row), joined) => (together.start as u64 + row % joined, row / joined),
        };
        if layer >= layers || row >= rows {
            return None;
        }
        let at = |place: u64| usize::try_from(place).ok();
        Some(placed(self.order, [at(layer)?, at(row)?, at(column)?]))
    }

    /// Returns some places in the order of the sweep.
    pub(super) fn places(
        &self,
        places: &[Range<usize>; 3],
    ) -> impl Iterator<Item = [usize; 3]> + use<> {
        let order = self.order;
        let [a, b, c] = order;
        let (alone, together) = self.layers(&places[a]);
        let [rows, columns] = [b, c].map(|axis| places[axis].clone());
        let every = rows.clone();
        let alone = alone.flat_map(move |layer| every.clone().map(move |row| (layer, row)));
        let joined = rows.flat_map(move |row| together.clone().map(move |layer| (layer, row)));
        alone.chain(joined).flat_map(move |(layer, row)| {
            let row = columns.clone().map(move |column| [layer, row, column]);
            row.map(move |at| placed(order, at))
        })
    }

    /// Returns the first of some places that is not before `from`, which need not be one of them.
    pub(super) fn next(&self, places: &[Range<usize>; 3], from: [usize; 3]) -> Option<[usize; 3]> {
        let [a, b, c] = self.order;
        let (alone, together) = self.layers(&places[a]);
        let next = |axes: [usize; 3], layers: &Range<usize>, from: [usize; 3]| {
            let ranges = axes.map(|axis| {
                if axis == a {
                    layers.clone()
                } else {
                    places[axis].clone()
                }
            });
            let next = next_of(&ranges, axes.map(|axis| from[axis]))?;
            Some(placed(axes, next))
        };
        if from[a] >= self.joined {
            return next([b, a, c], &together, from);
        }
        let found = next([a, b, c], &alone, from);
        found.or_else(|| next([b, a, c], &together, [0; 3]))
    }

    /// Splits layers into those that are swept on their own and those that are swept together.
    fn layers(&self, layers: &Range<usize>) -> (Range<usize>, Range<usize>) {
        let split = self
            .joined
            .clamp(layers.start, layers.end.max(layers.start));
        (layers.start..split, split..layers.end)
    }
}

/// Returns the place along z, y, x, given its places along some order of the axes.
fn placed(order: [usize; 3], at: [usize; 3]) -> [usize; 3] {
    let mut place = [0; 3];
    for (axis, at) in order.into_iter().zip(at) {
        place[axis] = at;
    }
    place
}

/// Returns the first element from `from` on, in lexicographic order, of a product of ranges.
fn next_of(ranges: &[Range<usize>; 3], from: [usize; 3]) -> Option<[usize; 3]> {
    if ranges.iter().any(Range::is_empty) {
        return None;
    }
    let mut next = from;
    for n in 0..3 {
        if next[n] < ranges[n].start {
            // Any later element will do along the faster axes: the first ones.
            for m in n..3 {
                next[m] = ranges[m].start;
            }
            return Some(next);
        }
        if next[n] >= ranges[n].end {
            // The next element of a slower axis, with the first ones along the faster axes.
            let slower = (0..n).rev().find(|&m| next[m] + 1 < ranges[m].end)?;
            next[slower] += 1;
            for m in slower + 1..3 {
                next[m] = ranges[m].start;
            }
            return Some(next);
        }
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::ORDERS;

    /// All places of a product of ranges, sorted by the definition: layer, or the joined layers as one, then row, then
    /// layer, then column.
    fn sorted(sweep: Sweep, places: &[Range<usize>; 3]) -> Vec<[usize; 3]> {
        let mut all = Vec::new();
        for z in places[0].clone() {
            for y in places[1].clone() {
                all.extend(places[2].clone().map(|x| [z, y, x]));
            }
        }
        all.sort_by_key(|place| {
            let [layer, row, column] = sweep.order.map(|axis| place[axis]);
            (layer.min(sweep.joined), row, layer, column)
        });
        all
    }

    #[test]
    fn numbers_places_and_next_places_agree_with_sorting_all() {
        let counts = [4, 3, 5];
        let whole = counts.map(|count| 0..count);
        let mut checked = 0;
        for order in ORDERS {
            for joined in 0..=counts[order[0]] {
                let sweep = Sweep { order, joined };
                let all = sorted(sweep, &whole);
                for (number, &place) in all.iter().enumerate() {
                    assert_eq!(sweep.number(&whole, place), number as u64);
                    assert_eq!(sweep.place(counts, number as u64), Some(place));
                }
                assert_eq!(sweep.place(counts, 60), None);
                assert_eq!(sweep.place(counts, u64::MAX), None);
                for ranges in [
                    whole.clone(),
                    [1..3, 0..3, 2..4],
                    [2..4, 1..2, 0..5],
                    [0..1, 2..3, 4..5],
                    [3..4, 0..2, 1..3],
                    [1..1, 0..3, 0..5],
                ] {
                    let some = sorted(sweep, &ranges);
                    assert_eq!(sweep.places(&ranges).collect::<Vec<_>>(), some);
                    for (number, &place) in some.iter().enumerate() {
                        assert_eq!(sweep.number(&ranges, place), number as u64);
                    }
                    for (number, &from) in all.iter().enumerate() {
                        let next = all[number..].iter().find(|place| some.contains(place));
                        assert_eq!(
                            sweep.next(&ranges, from),
                            next.copied(),
                            "{sweep:?} {from:?}"
                        );
                        checked += 1;
                    }
                }
            }
        }
        assert_eq!(checked, (5 + 4 + 6) * 2 * 6 * 60);
    }
}
