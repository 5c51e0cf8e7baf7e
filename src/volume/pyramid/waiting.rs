//! How much waits while levels are made.

use super::Level;
use super::step::{Step, length};
use crate::dtype::DType;
use crate::region::{AXES, Region, Shape};

/// The bytes that wait at most, as [`pyramid_buffer_bytes`](super::pyramid_buffer_bytes) says.
pub(super) fn most_waiting(
    levels: &[Level],
    channels: u64,
    dtype: DType,
    order: [usize; 3],
) -> u64 {
    let mut bytes = 0_u64;
    for pair in levels.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let step = Step::new(from, to);
        let [slow, middle, fast] = order.map(|axis| Live::along(&step, from.chunk, axis));
        let row = fast.most(1, 1);
        let plane = middle.most(fast.count, row);
        let chunks = slow.most(middle.count.saturating_mul(fast.count), plane);
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

/// Along one axis: how many coarser chunks there are, and, for each finer one, how many hold
/// voxels of it and of others (`shared`), or of it alone (`own`).
struct Live {
    count: u64,
    shared: Vec<u64>,
    own: Vec<u64>,
}

impl Live {
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

    /// The most that are live at once: a shared one for everything that the faster axes have,
    /// one of its own for what is live there.
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
