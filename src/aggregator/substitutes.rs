//! Substitutes for patches that do not vote, under `crop`.
//!
//! Each patch owns a box of voxels, and supplies them if it votes. Until then, its box collects values from the other
//! patches that cover it. Each voxel takes the value from the patch in which it is deepest. A vote of the owner settles
//! the box, and the collected values are dropped. If the owner does not vote, the box is final once every patch that
//! touches it has arrived. The deepest patch does not depend on the order of arrival.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocks::product;
use super::gauge::ByteGauge;
use super::window::owned;
use crate::error::Result;
use crate::grid::{Axis, Grid};
use crate::region::Region;

/// Bytes per voxel of a box, in addition to its value.
pub(super) const TAG: u64 = size_of::<Tag>() as u64;

/// The voter that a voxel's value comes from: 1-based index into a box's voters, 0 for none.
type Tag = u32;

/// The boxes whose owners may not vote.
#[derive(Debug)]
pub(super) struct Substitutes {
    grid: Grid,
    owned: [Vec<Range<u64>>; 3],
    /// Number of channels of the output.
    channels: usize,
    /// Bytes of an output value.
    size: usize,
    state: Mutex<SubstituteState>,
}

#[derive(Debug)]
struct SubstituteState {
    /// A bit set of the patches that voted, in the order z, y, x.
    voted: Vec<u64>,
    boxes: HashMap<[usize; 3], Arc<Mutex<Collected>>>,
}

/// Values for a box, collected from patches.
#[derive(Debug, Default)]
struct Collected {
    /// Output values, channel by channel.
    values: Vec<u8>,
    tags: Vec<Tag>,
    voters: Vec<[usize; 3]>,
    /// Number of patches that touch the box and have not arrived.
    left: usize,
    /// Whether the box is finished, or settled by its owner.
    closed: bool,
}

/// A final box: its values, and the flags of voxels that no patch covers (empty if there are none); `None` if no patch
/// voted.
pub(super) type Settled<'a> = Option<(&'a [u8], &'a [bool])>;

impl Substitutes {
    /// Creates the boxes for an output of `channels` channels whose values have `size` bytes.
    pub(super) fn new(grid: &Grid, channels: u64, size: usize) -> Self {
        let words = usize::try_from(grid.len().div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            grid: grid.clone(),
            owned: std::array::from_fn(|a| owned(&grid.axes()[a])),
            channels: usize::try_from(channels).unwrap_or(usize::MAX),
            size,
            state: Mutex::new(SubstituteState {
                voted: vec![0; words],
                boxes: HashMap::new(),
            }),
        }
    }

    /// Returns the owners of the boxes that the patch at `place` touches.
    pub(super) fn touched(&self, place: [usize; 3]) -> impl Iterator<Item = [usize; 3]> + use<> {
        product(std::array::from_fn(|a| {
            let inside = self.grid.axes()[a].inside(place[a]);
            touching(&self.owned[a], &inside)
        }))
    }

    /// Returns the box that the patch at `place` owns.
    fn region(&self, place: [usize; 3]) -> Region {
        let along = |a: usize| &self.owned[a][place[a]];
        Region::new(
            std::array::from_fn(|a| i64::try_from(along(a).start).unwrap_or(i64::MAX)),
            std::array::from_fn(|a| along(a).end - along(a).start),
        )
    }

    fn lock(&self) -> MutexGuard<'_, SubstituteState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bit(&self, place: [usize; 3]) -> (usize, u64) {
        let bit = (0..3).fold(0, |bit, a| {
            bit * self.grid.axes()[a].starts.len() + place[a]
        });
        (bit / 64, 1 << (bit % 64))
    }

    /// Marks the box of the patch at `place` as settled by its owner's vote.
    pub(super) fn settle(&self, place: [usize; 3], meter: &ByteGauge) {
        let (word, bit) = self.bit(place);
        let mut state = self.lock();
        state.voted[word] |= bit;
        let collected = state.boxes.remove(&place);
        drop(state);
        if let Some(collected) = collected {
            let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
            collected.close(meter);
        }
    }

    /// Adds the contribution of the patch at `place` to all boxes that are not settled. `values` returns the output
    /// values of a region, if the patch votes. Boxes that became final are passed to `finished`; `wants` selects the
    /// boxes to write.
    pub(super) fn arrive(
        &self,
        place: [usize; 3],
        values: Option<&dyn Fn(Region) -> Result<Vec<u8>>>,
        wants: &dyn Fn(&Region) -> bool,
        meter: &ByteGauge,
        mut finished: impl FnMut(Region, Settled<'_>) -> Result<()>,
    ) -> Result<()> {
        for owner in self.touched(place) {
            let region = self.region(owner);
            if region.is_empty() || !wants(&region) {
                continue;
            }
            let Some(collected) = self.open(owner, &region) else {
                continue;
            };
            let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
            if collected.closed {
                continue;
            }
            collected.left -= 1;
            if let Some(values) = values {
                self.collect(&mut collected, &region, place, values, meter)?;
            }
            if collected.left > 0 {
                continue;
            }
            self.lock().boxes.remove(&owner);
            if collected.voters.is_empty() {
                finished(region, None)?;
            } else {
                let mut holes: Vec<bool> = collected.tags.iter().map(|&tag| tag == 0).collect();
                if !holes.contains(&true) {
                    holes.clear();
                }
                finished(region, Some((&collected.values, &holes)))?;
            }
            collected.close(meter);
        }
        Ok(())
    }

    /// Returns the collected values of a box, if its owner has not voted.
    fn open(&self, owner: [usize; 3], region: &Region) -> Option<Arc<Mutex<Collected>>> {
        let (word, bit) = self.bit(owner);
        let mut state = self.lock();
        if state.voted[word] & bit != 0 {
            return None;
        }
        let collected = state.boxes.entry(owner).or_insert_with(|| {
            let end = region.end().map(i64::unsigned_abs);
            let along = |a: usize| {
                let axis = &self.grid.axes()[a];
                axis.touching(region.start[a].unsigned_abs(), end[a]).len()
            };
            Arc::new(Mutex::new(Collected {
                left: (0..3).map(along).product(),
                ..Collected::default()
            }))
        });
        Some(Arc::clone(collected))
    }

    /// Stores the values of a patch at the voxels that are deeper in it than in the earlier patches.
    fn collect(
        &self,
        collected: &mut Collected,
        region: &Region,
        place: [usize; 3],
        values: &dyn Fn(Region) -> Result<Vec<u8>>,
        meter: &ByteGauge,
    ) -> Result<()> {
        let start = std::array::from_fn(|a| self.grid.axes()[a].starts[place[a]]);
        let Some(common) = region.intersection(&Region::new(start, self.grid.patch())) else {
            return Ok(());
        };
        let given = values(common)?;
        let voxels = length(region.voxels());
        if collected.voters.is_empty() {
            collected.values = vec![0; voxels * self.channels * self.size];
            collected.tags = vec![0; voxels];
            meter.grow(collected.bytes());
        }
        collected.voters.push(place);
        let tag = Tag::try_from(collected.voters.len()).unwrap_or(Tag::MAX);
        let [_, ny, nx] = region.shape.map(length);
        let [cz, cy, cx] = common.shape.map(length);
        let from = common
            .relative_to(region.start)
            .start
            .map(|n| length(n.unsigned_abs()));
        let (here, there) = (voxels * self.size, cz * cy * cx * self.size);
        for (z, y) in (0..cz).flat_map(|z| (0..cy).map(move |y| (z, y))) {
            let row = ((from[0] + z) * ny + from[1] + y) * nx + from[2];
            let source = (z * cy + y) * cx;
            let voxel = |x: usize| {
                let at = |a: usize, n: usize| common.start[a].unsigned_abs() + n as u64;
                [at(0, z), at(1, y), at(2, x)]
            };
            let mut x = 0;
            while x < cx {
                // A run of voxels that have the same source so far, and are all replaced or all kept.
                let held = collected.tags[row + x];
                let deeper = |x: usize| {
                    held == 0
                        || self.is_deeper(voxel(x), place, collected.voters[held as usize - 1])
                };
                let first = x;
                let taken = deeper(x);
                x += 1;
                while x < cx && collected.tags[row + x] == held && (held == 0 || deeper(x) == taken)
                {
                    x += 1;
                }
                if !taken {
                    continue;
                }
                collected.tags[row + first..row + x].fill(tag);
                let bytes = (x - first) * self.size;
                for c in 0..self.channels {
                    let to = c * here + (row + first) * self.size;
                    let from = c * there + (source + first) * self.size;
                    collected.values[to..to + bytes].copy_from_slice(&given[from..from + bytes]);
                }
            }
        }
        Ok(())
    }

    /// Returns `true` if a voxel is deeper in the patch at `place` than in the patch at `other`.
    fn is_deeper(&self, voxel: [u64; 3], place: [usize; 3], other: [usize; 3]) -> bool {
        let [z, y, x] = self.grid.patch().map(u128::from);
        let parts = [y * x, z * x, z * y];
        let off = |place: [usize; 3]| -> u128 {
            let along = |a: usize| parts[a] * from_middle(&self.grid.axes()[a], place[a], voxel[a]);
            (0..3).map(along).sum()
        };
        (off(place), other) < (off(other), place)
    }
}

/// Returns twice the distance between the centers of a voxel and of a patch.
fn from_middle(axis: &Axis, place: usize, voxel: u64) -> u128 {
    let middle = 2 * i128::from(axis.starts[place]) + i128::from(axis.patch);
    (2 * i128::from(voxel) + 1 - middle).unsigned_abs()
}

/// Returns the indices of the consecutive ranges that overlap `inside`.
pub(super) fn touching(owned: &[Range<u64>], inside: &Range<u64>) -> Range<usize> {
    let first = owned.partition_point(|range| range.end <= inside.start);
    let end = owned.partition_point(|range| range.start < inside.end);
    first..end.max(first)
}

impl Collected {
    fn bytes(&self) -> u64 {
        (self.values.len() + size_of_val(&self.tags[..])) as u64
    }

    fn close(&mut self, meter: &ByteGauge) {
        meter.shrink(self.bytes());
        *self = Self {
            closed: true,
            ..Self::default()
        };
    }
}

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length inside a patch in memory")
}
