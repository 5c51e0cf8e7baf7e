//! Chunks of one level on their way to the next.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::halve::halve;
use super::{Downsample, Level, factors};
use crate::dtype::DType;
use crate::error::Result;
use crate::patch::copy_common;
use crate::region::{AXES, Region, Shape, chunk_range, chunk_region, indices};
use crate::volume::marks::Marks;

/// Takes whole chunks of the finest level in any order and makes those of all others.
#[derive(Debug)]
pub(in super::super) struct Ladder {
    method: Downsample,
    dtype: DType,
    levels: Vec<Level>,
    /// Unfinished chunks of each level but the first, by channel and index.
    waiting: Vec<Mutex<HashMap<(u64, [u64; 3]), Waiting>>>,
    /// The chunks of each level that will be made here; all of them if there is no list.
    made: Option<Vec<Marks>>,
    bytes: AtomicU64,
    peak: AtomicU64,
}

/// The voxels of one channel of a box; `None` if all are 0.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Source<'a> {
    /// What the voxels cover, which may be more than what is taken of them.
    pub(in super::super) held: Region,
    /// Row-major z, y, x.
    pub(in super::super) voxels: Option<&'a [u8]>,
}

/// Called with each finished chunk: level, channel, index, box and voxels.
pub(in super::super) type Finished<'a> =
    &'a dyn Fn(usize, u64, [u64; 3], Region, Source<'_>) -> Result<()>;

/// A chunk that is not complete yet, cut at its level's edge.
#[derive(Debug)]
struct Waiting {
    region: Region,
    /// `None` as long as every voxel is 0.
    voxels: Option<Vec<u8>>,
    /// Voxels of the finer level that have not come.
    missing: u64,
    faces: Vec<Face>,
}

/// A plane of voxels of the finer level that share cells with voxels of a neighbouring chunk,
/// as there are where chunks have odd lengths.
#[derive(Debug)]
struct Face {
    axis: usize,
    /// The cells' place along the axis.
    cell: u64,
    region: Region,
    voxels: Vec<u8>,
}

impl Ladder {
    pub(in super::super) fn new(method: Downsample, dtype: DType, levels: Vec<Level>) -> Self {
        Self {
            method,
            dtype,
            waiting: levels.iter().skip(1).map(|_| Mutex::default()).collect(),
            levels,
            made: None,
            bytes: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        }
    }

    /// The same, but only chunks that `made` marks at their level are made; what belongs to
    /// others is dropped.
    pub(in super::super) fn only(mut self, made: Vec<Marks>) -> Self {
        self.made = Some(made);
        self
    }

    /// The bytes that wait at most, as [`waiting_bytes`](super::waiting_bytes) says.
    pub(in super::super) fn most_waiting(&self, channels: u64, order: [usize; 3]) -> u64 {
        most_waiting(&self.levels, channels, self.dtype, order)
    }

    /// The most bytes that waited so far.
    #[cfg(test)]
    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Takes the chunk `region` of `level` and gives those of coarser levels that it completes.
    pub(in super::super) fn add(
        &self,
        level: usize,
        channel: u64,
        region: Region,
        source: Source<'_>,
        finished: Finished<'_>,
    ) -> Result<()> {
        let Some(next) = self.levels.get(level + 1) else {
            return Ok(());
        };
        let step = Step::new(self.levels[level], *next);
        let inner = step.whole_cells(region);
        let cells = inner.map(|inner| step.cells(inner));
        let halved = match (source.voxels, inner) {
            (Some(voxels), Some(inner)) => {
                let held = (voxels, source.held);
                let halved = halve(self.method, self.dtype, held, inner, step.factors);
                halved.iter().any(|&byte| byte != 0).then_some(halved)
            }
            _ => None,
        };
        let touched = chunk_range(&step.cells(region), next.chunk);
        for index in indices(touched) {
            let is_ours = |made: &Vec<Marks>| made[level + 1].has(channel, index);
            if !self.made.as_ref().is_none_or(is_ours) {
                continue;
            }
            let part = halved.as_deref().zip(cells);
            let Some(mut done) = self.gather(&step, level, (channel, index), region, part, source)
            else {
                continue;
            };
            self.join(&step, &mut done);
            let whole = Source {
                held: done.region,
                voxels: done.voxels.as_deref(),
            };
            finished(level + 1, channel, index, done.region, whole)?;
            self.add(level + 1, channel, done.region, whole, finished)?;
        }
        Ok(())
    }

    /// Adds what the chunk `region` has of a coarser chunk, and takes that out if it is complete.
    fn gather(
        &self,
        step: &Step,
        level: usize,
        key: (u64, [u64; 3]),
        region: Region,
        cells: Option<(&[u8], Region)>,
        source: Source<'_>,
    ) -> Option<Waiting> {
        let size = self.dtype.size();
        let target =
            chunk_region(key.1, step.to.chunk).intersection(&Region::whole(step.to.shape))?;
        let raw = step.voxels(target);
        let common = raw.intersection(&region)?;
        let faces = step.faces(common, region, source, size);
        let mut waiting = self.waiting[level]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut entry = match waiting.entry(key) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => entry.insert_entry(Waiting {
                region: target,
                voxels: None,
                missing: raw.voxels(),
                faces: Vec::new(),
            }),
        };
        let chunk = entry.get_mut();
        let mut grown = faces.iter().map(|face| face.voxels.len()).sum::<usize>();
        if let Some((cells, covered)) = cells {
            let voxels = chunk.voxels.get_or_insert_with(|| {
                let zeros = vec![0; length(target.voxels()) * size];
                grown += zeros.len();
                zeros
            });
            copy_common((cells, covered), (voxels, target), 1, size);
        }
        chunk.faces.extend(faces);
        chunk.missing -= common.voxels();
        let complete = chunk.missing == 0;
        let now = self.bytes.fetch_add(grown as u64, Ordering::Relaxed) + grown as u64;
        self.peak.fetch_max(now, Ordering::Relaxed);
        complete.then(|| {
            let done = entry.remove();
            self.bytes.fetch_sub(done.bytes(), Ordering::Relaxed);
            done
        })
    }

    /// Makes the cells whose voxels came with two or more chunks.
    fn join(&self, step: &Step, chunk: &mut Waiting) {
        let size = self.dtype.size();
        let mut seams: Vec<_> = chunk
            .faces
            .iter()
            .map(|face| (face.axis, face.cell))
            .collect();
        seams.sort_unstable();
        seams.dedup();
        for (axis, cell) in seams {
            let mut cells = chunk.region;
            cells.start[axis] = signed(cell);
            cells.shape[axis] = 1;
            let slab = step.voxels(cells);
            let mut voxels = vec![0; length(slab.voxels()) * size];
            for face in &chunk.faces {
                if (face.axis, face.cell) == (axis, cell) {
                    copy_common((&face.voxels, face.region), (&mut voxels, slab), 1, size);
                }
            }
            let halved = halve(self.method, self.dtype, (&voxels, slab), slab, step.factors);
            let target = chunk
                .voxels
                .get_or_insert_with(|| vec![0; length(chunk.region.voxels()) * size]);
            copy_common((&halved, cells), (target, chunk.region), 1, size);
        }
    }
}

impl Waiting {
    fn bytes(&self) -> u64 {
        let faces: usize = self.faces.iter().map(|face| face.voxels.len()).sum();
        (faces + self.voxels.as_ref().map_or(0, Vec::len)) as u64
    }
}

/// From one level to the next.
struct Step {
    from: Shape,
    to: Level,
    factors: Shape,
}

impl Step {
    fn new(from: Level, to: Level) -> Self {
        Self {
            from: from.shape,
            to,
            factors: factors(from.shape),
        }
    }

    /// The cells that hold voxels of a box.
    fn cells(&self, region: Region) -> Region {
        let bounds = |a: usize| {
            let (start, end) = (
                region.start[a].unsigned_abs(),
                region.end()[a].unsigned_abs(),
            );
            (start / self.factors[a], end.div_ceil(self.factors[a]))
        };
        between(std::array::from_fn(bounds))
    }

    /// The voxels that a box of cells is made of.
    fn voxels(&self, cells: Region) -> Region {
        let bounds = |a: usize| {
            let (start, end) = (cells.start[a].unsigned_abs(), cells.end()[a].unsigned_abs());
            let factor = self.factors[a];
            (start * factor, (end * factor).min(self.from[a]))
        };
        between(std::array::from_fn(bounds))
    }

    /// The voxels of a box whose cells have no voxel outside; `None` if there are none.
    fn whole_cells(&self, region: Region) -> Option<Region> {
        let mut bounds = [(0, 0); 3];
        for a in 0..AXES.len() {
            let factor = self.factors[a];
            let (start, end) = (
                region.start[a].unsigned_abs(),
                region.end()[a].unsigned_abs(),
            );
            let start = start.next_multiple_of(factor);
            let end = if end == self.from[a] {
                end
            } else {
                end - end % factor
            };
            if start >= end {
                return None;
            }
            bounds[a] = (start, end);
        }
        Some(between(bounds))
    }

    /// The planes of `common`, a part of the chunk `region`, that share cells with neighbours.
    fn faces(&self, common: Region, region: Region, source: Source<'_>, size: usize) -> Vec<Face> {
        let mut faces = Vec::new();
        for axis in 0..AXES.len() {
            if self.factors[axis] == 1 {
                continue;
            }
            let (start, end) = (
                region.start[axis].unsigned_abs(),
                region.end()[axis].unsigned_abs(),
            );
            let low = (start % 2 == 1).then_some(start);
            let high = (end % 2 == 1 && end != self.from[axis]).then(|| end - 1);
            for plane in low.into_iter().chain(high) {
                let mut at = region;
                at.start[axis] = signed(plane);
                at.shape[axis] = 1;
                let Some(at) = at.intersection(&common) else {
                    continue;
                };
                let mut voxels = vec![0; length(at.voxels()) * size];
                if let Some(from) = source.voxels {
                    copy_common((from, source.held), (&mut voxels, at), 1, size);
                }
                faces.push(Face {
                    axis,
                    cell: plane / 2,
                    region: at,
                    voxels,
                });
            }
        }
        faces
    }
}

/// The chunks of level `from` that chunk `index` of the next level, `to`, is made of.
pub(in super::super) fn inputs(from: Level, to: Level, index: [u64; 3]) -> [Range<u64>; 3] {
    let step = Step::new(from, to);
    let cells = chunk_region(index, to.chunk).intersection(&Region::whole(to.shape));
    cells.map_or([0..0, 0..0, 0..0], |cells| {
        chunk_range(&step.voxels(cells), from.chunk)
    })
}

/// The box `region` of a level, made of the level before it, which `read` reads.
pub(in super::super) fn rebuilt(
    method: Downsample,
    dtype: DType,
    (from, to): (Level, Level),
    region: Region,
    read: &dyn Fn(Region) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let step = Step::new(from, to);
    let mut voxels = Vec::with_capacity(length(region.voxels()) * dtype.size());
    let end = region.end()[0];
    let mut layer = region;
    while layer.start[0] < end {
        let left = (end - layer.start[0]).unsigned_abs();
        layer.shape[0] = REBUILT.min(left);
        let slab = step.voxels(layer);
        let source = read(slab)?;
        voxels.extend(halve(method, dtype, (&source, slab), slab, step.factors));
        layer.start[0] += signed(layer.shape[0]);
    }
    Ok(voxels)
}

/// Planes of a chunk that are made at once when it is made of what was read back.
const REBUILT: u64 = 16;

/// The bytes that wait at most, as [`waiting_bytes`](super::waiting_bytes) says.
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

fn between(bounds: [(u64, u64); 3]) -> Region {
    Region::new(
        bounds.map(|(start, _)| signed(start)),
        bounds.map(|(start, end)| end - start),
    )
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).expect("a voxel of a volume lies below 2^63")
}

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length of something in memory")
}
