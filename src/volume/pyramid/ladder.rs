//! The conversion of each level's chunks to chunks of the next level.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::halve::halve;
use super::step::{Face, Step, length, signed};
use super::waiting::most_waiting;
use super::{Downsample, Level, LevelSource};
use crate::dtype::DType;
use crate::error::Result;
use crate::patch::copy_common;
use crate::region::{Region, chunk_range, chunk_region, indices};
use crate::volume::chunk_set::ChunkSet;

/// A converter that takes whole chunks of the finest level in any order and produces those of all coarser levels.
#[derive(Debug)]
pub(in super::super) struct Ladder {
    method: Downsample,
    dtype: DType,
    levels: Vec<Level>,
    /// Unfinished chunks of each level but the first, by channel and index.
    waiting: Vec<Mutex<UnfinishedLevel>>,
    /// The chunks of each level to produce here; `None` for all.
    made: Option<Vec<ChunkSet>>,
    bytes: AtomicU64,
    peak: AtomicU64,
}

/// A callback for each finished chunk: level, channel, index, box and voxels.
pub(in super::super) type Finished<'a> =
    &'a dyn Fn(usize, u64, [u64; 3], Region, LevelSource<'_>) -> Result<()>;

type UnfinishedLevel = HashMap<(u64, [u64; 3]), IncompleteChunk>;

/// An incomplete chunk, clipped to its level.
#[derive(Debug)]
struct IncompleteChunk {
    region: Region,
    /// `None` while every voxel is 0.
    voxels: Option<Vec<u8>>,
    /// Voxels of the finer level that have not arrived.
    missing: u64,
    faces: Vec<Face>,
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

    /// Restricts production to the chunks that `made` marks at their level; data for other chunks is dropped.
    pub(in super::super) fn only(mut self, made: Vec<ChunkSet>) -> Self {
        self.made = Some(made);
        self
    }

    /// Returns the maximum bytes in unfinished chunks; see [`pyramid_buffer_bytes`](super::pyramid_buffer_bytes).
    pub(in super::super) fn most_waiting(&self, channels: u64, order: [usize; 3]) -> u64 {
        most_waiting(&self.levels, channels, self.dtype, order)
    }

    /// Returns the most bytes in unfinished chunks so far.
    #[cfg(test)]
    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Adds the chunk `region` of `level`, and calls `finished` with the coarser chunks that it completes.
    pub(in super::super) fn add(
        &self,
        level: usize,
        channel: u64,
        region: Region,
        source: LevelSource<'_>,
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
            let is_ours = |made: &Vec<ChunkSet>| made[level + 1].has(channel, index);
            if !self.made.as_ref().is_none_or(is_ours) {
                continue;
            }
            let part = halved.as_deref().zip(cells);
            let key = (channel, index);
            if let Some(done) = self.gather(&step, level, key, region, part, source) {
                self.give(&step, level, key, done, finished)?;
            }
        }
        Ok(())
    }

    /// Calls `finished` with all incomplete chunks, once no more data will arrive; missing voxels are 0.
    pub(in super::super) fn finish(&self, finished: Finished<'_>) -> Result<()> {
        for (level, waiting) in self.waiting.iter().enumerate() {
            let left = std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let step = Step::new(self.levels[level], self.levels[level + 1]);
            for (key, chunk) in left {
                self.give(&step, level, key, chunk, finished)?;
            }
        }
        Ok(())
    }

    /// Calls `finished` with a chunk of the level after `level`, and adds it to the next level.
    fn give(
        &self,
        step: &Step,
        level: usize,
        (channel, index): (u64, [u64; 3]),
        mut chunk: IncompleteChunk,
        finished: Finished<'_>,
    ) -> Result<()> {
        self.join(step, &mut chunk);
        let whole = LevelSource {
            held: chunk.region,
            voxels: chunk.voxels.as_deref(),
        };
        finished(level + 1, channel, index, chunk.region, whole)?;
        self.add(level + 1, channel, chunk.region, whole, finished)
    }

    /// Adds the data of chunk `region` to a coarser chunk. Returns the coarser chunk if it is now complete.
    fn gather(
        &self,
        step: &Step,
        level: usize,
        key: (u64, [u64; 3]),
        region: Region,
        cells: Option<(&[u8], Region)>,
        source: LevelSource<'_>,
    ) -> Option<IncompleteChunk> {
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
            Entry::Vacant(entry) => entry.insert_entry(IncompleteChunk {
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

    /// Computes the cells whose voxels came with two or more chunks.
    fn join(&self, step: &Step, chunk: &mut IncompleteChunk) {
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

impl IncompleteChunk {
    fn bytes(&self) -> u64 {
        let faces: usize = self.faces.iter().map(|face| face.voxels.len()).sum();
        (faces + self.voxels.as_ref().map_or(0, Vec::len)) as u64
    }
}
