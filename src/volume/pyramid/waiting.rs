//! The memory of chunks that wait while levels are produced.

use super::Level;
use super::step::{Step, length};
use crate::dtype::DType;
use crate::region::{AXES, Region, Shape};

/// Returns the maximum bytes in unfinished chunks; see [`pyramid_buffer_bytes`](super::pyramid_buffer_bytes).
pub(super) fn most_waiting(
    levels: &[Level],
    channels: u64,
    dtype: DType,
    order: [usize; 3],
) -> u64 {
    bytes_of(levels, channels, dtype, |step, from| {
        let [slow, middle, fast] = order.map(|axis| WaitingAlong::along(step, from.chunk, axis));
        let row = fast.most(1, 1);
        let plane = middle.most(fast.count, row);
        slow.most(middle.count.saturating_mul(fast.count), plane)
    })
}

/// Returns the bytes of all chunks of the coarser levels.
pub(super) fn all_waiting(levels: &[Level], channels: u64, dtype: DType) -> u64 {
    bytes_of(levels, channels, dtype, |step, _| {
        let counts = (0..AXES.len()).map(|a| step.to.shape[a].div_ceil(step.to.chunk[a]));
        counts.fold(1, u64::saturating_mul)
    })
}

/// Returns the bytes of the chunks of the coarser levels, of which `count` returns the number for a step from a level.
fn bytes_of(
    levels: &[Level],
    channels: u64,
    dtype: DType,
    count: impl Fn(&Step, Level) -> u64,
) -> u64 {
    let mut bytes = 0_u64;
    for pair in levels.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let step = Step::new(from, to);
        let chunks = count(&step, from);
        let inside =
            |shape: Shape, most: Shape| -> Shape { std::array::from_fn(|a| shape[a].min(most[a])) };
        let chunk = inside(to.chunk, to.shape);
        let raw = inside(
            std::array::from_fn(|a| chunk[a] * step.factors[a]),
            from.shape,
        );
        let seams: u64 = (0..AXES.len())
            .filter(|&a| from.chunk[a] % 2 == 1 && from.chunk[a] < from.shape[a])
            .map(|a| 2 * raw[a].div_ceil(from.chunk[a]) * (Region::whole(raw).voxels() / raw[a]))
            .sum();
        let voxels = Region::whole(chunk).voxels().saturating_add(seams);
        bytes = bytes.saturating_add(chunks.saturating_mul(voxels));
    }
    bytes
        .saturating_mul(channels)
        .saturating_mul(dtype.size() as u64)
}

/// The coarser chunks along one axis. `count` is their number. For each finer chunk, `shared` counts the coarser chunks
/// with voxels of it and of others, and `own` those with voxels of it alone.
struct WaitingAlong {
    count: u64,
    shared: Vec<u64>,
    own: Vec<u64>,
}

impl WaitingAlong {
    fn along(step: &Step, chunk: Shape, axis: usize) -> Self {
        let finer = length(step.from[axis].div_ceil(chunk[axis]));
        let count = step.to.shape[axis].div_ceil(step.to.chunk[axis]);
        let mut live = Self {
            count,
            shared: vec![0; finer],
            own: vec![0; finer],
        };
        for n in 0..count {
            let start = n * step.to.chunk[axis] * step.factors[axis];
            let end = (start + step.to.chunk[axis] * step.factors[axis]).min(step.from[axis]);
            let (first, last) = (length(start / chunk[axis]), length((end - 1) / chunk[axis]));
            if first == last {
                live.own[first] += 1;
            } else {
                live.shared[first..=last].iter_mut().for_each(|n| *n += 1);
            }
        }
        live
    }

    /// Returns the maximum number of live chunks. A shared chunk occurs once for each of the `all` chunks along the
    /// faster axes, an own chunk once for each of the `live` ones.
    fn most(&self, all: u64, live: u64) -> u64 {
        let pairs = self.shared.iter().zip(&self.own);
        pairs
            .map(|(shared, own)| {
                shared
                    .saturating_mul(all)
                    .saturating_add(own.saturating_mul(live))
            })
            .max()
            .unwrap_or(0)
    }
}
