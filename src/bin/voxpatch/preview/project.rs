//! Projections: the largest value along each axis, with the places of patches marked on them.
//!
//! The volume is read once, box by box, each no larger than a few chunks; of a volume that is
//! huge, only some planes are.

use std::sync::Arc;

use voxpatch::progress::Progress;
use voxpatch::{Error, Patch, Region, Shape, Volume};

use super::drawn::{Drawn, GAP};
use super::paint::{self, Canvas, Panel};
use super::scene::panel_letter;
use super::slice::{Values, as_f32, index, signed};
use super::view::{View, panel_sizes, views};

/// Voxels that are read at once, unless a chunk has more.
const BOX: u64 = 1 << 20;
/// From so many voxels on, planes are left out; so many are looked at in any case.
const HUGE: u64 = 1 << 31;
const FEWEST_PLANES: u64 = 16;

/// The projections of channel 0 of a volume, and the marks on them.
#[derive(Debug)]
pub(crate) struct Projection {
    volume: Arc<dyn Volume>,
    views: [View; 3],
    /// Pixels along z, y, x.
    sizes: [usize; 3],
    /// For each axis that is looked along, the pixels where a mark is.
    marks: [Vec<bool>; 3],
}

/// The slower and the faster axis of the pictures along z, y and x.
const AXES: [(usize, usize); 3] = [(1, 2), (0, 2), (0, 1)];

impl Projection {
    /// Of this volume, with no mark.
    pub(crate) fn new(volume: Arc<dyn Volume>) -> Self {
        let layout = volume.layout();
        let sizes = panel_sizes(layout.shape, layout.geometry.spacing);
        Self {
            views: views(layout),
            sizes,
            marks: AXES.map(|(slow, fast)| vec![false; sizes[slow] * sizes[fast]]),
            volume,
        }
    }

    /// Marks a patch's center, unless it lies outside.
    pub(crate) fn mark(&mut self, region: Region) {
        let shape = self.volume.layout().shape;
        let mut pixels = [0; 3];
        for a in 0..3 {
            let half = signed(region.shape[a] / 2);
            let center = region.start[a].saturating_add(half);
            let Some(voxel) = u64::try_from(center).ok().filter(|&n| n < shape[a]) else {
                return;
            };
            pixels[a] = cell(voxel, shape[a], self.sizes[a]);
        }
        for (marks, (slow, fast)) in self.marks.iter_mut().zip(AXES) {
            marks[pixels[slow] * self.sizes[fast] + pixels[fast]] = true;
        }
    }

    /// Reads the volume and paints the three projections side by side.
    pub(crate) fn draw(&self, progress: Progress<'_>) -> voxpatch::Result<Drawn> {
        let shape = self.volume.layout().shape;
        let mut largest = Largest::new(shape, self.sizes);
        self.read(&mut largest, progress)?;
        largest.fill_gaps();
        let values = largest.cells.each_ref().map(|cells| Values {
            pixels: Vec::new(),
            lowest: f32::INFINITY,
            samples: cells.iter().copied().filter(|v| v.is_finite()).collect(),
        });
        let window = paint::window(values.iter());
        let panels = self.views.each_ref().map(|view| {
            let (height, width) = (self.sizes[view.row], self.sizes[view.column]);
            let fast = self.sizes[AXES[view.fixed].1];
            let mut panel = Panel::new(width, height);
            panel.paint(|row, column| {
                let at = view.source((height, width), row, column);
                paint::gray(largest.at(view.fixed, at, self.sizes), window)
            });
            for row in 0..height {
                for column in 0..width {
                    let (slow, own) = view.source((height, width), row, column);
                    if self.marks[view.fixed][slow * fast + own] {
                        panel.dot(row, column);
                    }
                }
            }
            if let Some(letter) = view.left {
                panel_letter(&mut panel, letter);
            }
            panel
        });
        Ok(Drawn {
            canvas: Canvas::side_by_side(&panels, GAP),
            window,
            at: shape.map(|n| n / 2),
            labels: Vec::new(),
        })
    }

    fn read(&self, largest: &mut Largest, progress: Progress<'_>) -> voxpatch::Result<()> {
        let layout = self.volume.layout();
        let shape = layout.shape;
        let chunk = layout
            .read_chunk
            .map_or([1, 1, shape[2]], |[_, z, y, x]| [z, y, x]);
        let plane = shape[1].saturating_mul(shape[2]).max(1);
        let all = if plane.saturating_mul(shape[0]) > HUGE {
            (HUGE / plane).clamp(FEWEST_PLANES, shape[0].max(FEWEST_PLANES))
        } else {
            shape[0]
        };
        let single = all < shape[0];
        let depth = if single { 1 } else { chunk[0].max(1) };
        let steps = if single {
            all
        } else {
            shape[0].div_ceil(depth)
        };
        let length = |unit: u64, row: u64| (BOX / unit.saturating_mul(row).max(1)).max(1);
        let wide = chunk[2]
            .max(1)
            .saturating_mul(length(depth.saturating_mul(chunk[1]), chunk[2].max(1)));
        let wide = wide.min(shape[2]).max(1);
        let high = chunk[1]
            .max(1)
            .saturating_mul(length(depth.saturating_mul(chunk[1].max(1)), wide));
        for step in 0..steps {
            let z = if single {
                let middle =
                    u128::from(2 * step + 1) * u128::from(shape[0]) / u128::from(2 * steps);
                u64::try_from(middle).unwrap_or(0)
            } else {
                step * depth
            };
            for y in (0..shape[1]).step_by(index(high)) {
                for x in (0..shape[2]).step_by(index(wide)) {
                    let start = [z, y, x];
                    let most = [depth, high, wide];
                    let part = std::array::from_fn(|a| most[a].min(shape[a] - start[a]));
                    self.read_box(Region::new(start.map(signed), part), largest)?;
                }
            }
            if progress(step + 1, steps).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }

    fn read_box(&self, region: Region, largest: &mut Largest) -> voxpatch::Result<()> {
        let dtype = self.volume.layout().dtype;
        let mut whole = Patch::zeros(region, 1, dtype)?;
        self.volume.read_channels(0..1, region, whole.bytes_mut())?;
        let [_, height, width] = region.shape.map(index);
        let [z0, y0, x0] = region.start.map(i64::unsigned_abs);
        let across = largest.across(x0, region.shape[2]);
        let bytes = height * width * dtype.size();
        for (z, stored) in (z0..).zip(whole.bytes().chunks_exact(bytes.max(1))) {
            // A plane at a time: f32 may take more room.
            let flat = Region::new([0; 3], [1, region.shape[1], region.shape[2]]);
            let mut plane = Patch::zeros(flat, 1, dtype)?;
            plane.bytes_mut().copy_from_slice(stored);
            let values = as_f32(plane);
            for (y, row) in (y0..).zip(values.chunks_exact(width.max(1))) {
                largest.add_row(z, y, &across, row);
            }
        }
        Ok(())
    }
}

/// The largest values along each axis, no finer than voxels or pixels.
struct Largest {
    /// Cells along z, y, x.
    counts: [usize; 3],
    /// Voxels along z, y, x.
    shape: Shape,
    /// For each axis that is looked along, row-major; minus infinity where nothing was seen.
    cells: [Vec<f32>; 3],
    /// Which cells along z were seen.
    seen: Vec<bool>,
}

impl Largest {
    fn new(shape: Shape, sizes: [usize; 3]) -> Self {
        let counts: [usize; 3] = std::array::from_fn(|a| {
            usize::try_from(shape[a]).map_or(sizes[a], |n| n.min(sizes[a]))
        });
        Self {
            counts,
            shape,
            cells: AXES.map(|(slow, fast)| vec![f32::NEG_INFINITY; counts[slow] * counts[fast]]),
            seen: vec![false; counts[0]],
        }
    }

    /// The cells of `count` voxels along x from `start`.
    fn across(&self, start: u64, count: u64) -> Vec<usize> {
        let own = |x| cell(x, self.shape[2], self.counts[2]);
        (start..start + count).map(own).collect()
    }

    /// Adds voxels that follow each other along x at (z, y), whose cells along x are `across`.
    fn add_row(&mut self, z: u64, y: u64, across: &[usize], row: &[f32]) {
        let z = cell(z, self.shape[0], self.counts[0]);
        let y = cell(y, self.shape[1], self.counts[1]);
        self.seen[z] = true;
        let width = self.counts[2];
        let [along_z, along_y, along_x] = &mut self.cells;
        let along_z = &mut along_z[y * width..][..width];
        let along_y = &mut along_y[z * width..][..width];
        let mut most = f32::NEG_INFINITY;
        for (&value, &x) in row.iter().zip(across) {
            // NaN is larger than nothing.
            if value > along_z[x] {
                along_z[x] = value;
            }
            if value > along_y[x] {
                along_y[x] = value;
            }
            if value > most {
                most = value;
            }
        }
        let own = &mut along_x[z * self.counts[1] + y];
        *own = own.max(most);
    }

    /// Gives planes that were left out the values of the nearest before them, or else behind.
    fn fill_gaps(&mut self) {
        let Some(first) = self.seen.iter().position(|&seen| seen) else {
            return;
        };
        let mut last = first;
        for z in 0..self.counts[0] {
            if self.seen[z] {
                last = z;
                continue;
            }
            for axis in [1, 2] {
                let width = self.counts[AXES[axis].1];
                self.cells[axis].copy_within(last * width..(last + 1) * width, z * width);
            }
        }
    }

    /// The value at a pixel of the picture along an axis.
    fn at(&self, axis: usize, (slow, fast): (usize, usize), sizes: [usize; 3]) -> f32 {
        let (a, b) = AXES[axis];
        let own = |pixel: usize, a: usize| (2 * pixel + 1) * self.counts[a] / (2 * sizes[a]);
        self.cells[axis][own(slow, a) * self.counts[b] + own(fast, b)]
    }
}

/// The cell that a voxel's middle lies in, of `cells` along an axis of `voxels`.
fn cell(voxel: u64, voxels: u64, cells: usize) -> usize {
    let at = u128::from(2 * voxel + 1) * cells as u128 / (2 * u128::from(voxels.max(1)));
    usize::try_from(at).map_or(0, |at| at.min(cells.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use voxpatch::MemoryVolume;

    fn drawn(chunk: Option<[u64; 4]>, shape: Shape, voxels: Vec<f32>) -> Largest {
        let memory = MemoryVolume::from_vec(shape, 1, voxels).expect("the shape fits");
        let memory = match chunk {
            Some(chunk) => memory.with_chunks(chunk),
            None => memory,
        };
        let projection = Projection::new(Arc::new(memory));
        let mut largest = Largest::new(shape, projection.sizes);
        projection
            .read(&mut largest, &voxpatch::progress::silent)
            .expect("memory can be read");
        largest
    }

    #[test]
    fn each_cell_has_the_largest_value_along_its_line_whatever_the_chunks() {
        let shape = [5, 6, 7];
        let mut state = 7_u32;
        let voxels: Vec<f32> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).expect("16 bits"))
        })
        .take(210)
        .collect();
        for chunk in [None, Some([1, 2, 4, 3]), Some([1, 5, 6, 7])] {
            let largest = drawn(chunk, shape, voxels.clone());
            let mut expected =
                AXES.map(|(slow, fast)| vec![f32::NEG_INFINITY; index(shape[slow] * shape[fast])]);
            for (n, &value) in voxels.iter().enumerate() {
                let at = [n / 42, n / 7 % 6, n % 7];
                for (cells, (slow, fast)) in expected.iter_mut().zip(AXES) {
                    let own = &mut cells[at[slow] * index(shape[fast]) + at[fast]];
                    *own = own.max(value);
                }
            }
            assert_eq!(largest.cells, expected);
        }
    }

    #[test]
    fn a_plane_that_was_left_out_looks_like_its_neighbor() {
        let mut largest = Largest::new([4, 1, 2], [4, 1, 2]);
        largest.add_row(1, 0, &[0, 1], &[1.0, 2.0]);
        largest.add_row(3, 0, &[0, 1], &[3.0, f32::NAN]);
        largest.fill_gaps();
        assert_eq!(largest.cells[1][..6], [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
        assert_eq!(largest.cells[2], [2.0, 2.0, 2.0, 3.0]);
    }

    #[test]
    fn a_mark_is_where_the_center_is_and_none_outside() {
        let memory = MemoryVolume::from_vec([4, 6, 8], 1, vec![0_u8; 192]);
        let mut projection = Projection::new(Arc::new(memory.expect("the shape fits")));
        projection.mark(Region::new([-3, 0, 0], [2; 3]));
        projection.mark(Region::new([i64::MAX, 0, 0], [2; 3]));
        assert!(projection.marks.iter().flatten().all(|&mark| !mark));
        projection.mark(Region::new([-1, 2, 6], [2, 3, 2]));
        let [z, y, x] = [0, 3, 7].map(|n: usize| n);
        let middle = |n: usize, voxels: usize, pixels: usize| (2 * n + 1) * pixels / (2 * voxels);
        let sizes = projection.sizes;
        let at = [
            middle(z, 4, sizes[0]),
            middle(y, 6, sizes[1]),
            middle(x, 8, sizes[2]),
        ];
        for (marks, (slow, fast)) in projection.marks.iter().zip(AXES) {
            let found: Vec<usize> = (0..marks.len()).filter(|&n| marks[n]).collect();
            assert_eq!(found, [at[slow] * sizes[fast] + at[fast]]);
        }
    }
}
