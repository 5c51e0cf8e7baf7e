//! Predictions of overlapping patches become one volume, written as it becomes final.
//!
//! Patches come in any order and from any thread. Each is multiplied by its shares and added
//! to the live blocks; a block that has its last patch is reduced to the output's type; a
//! write chunk that has its last voxel is encoded and written, once. Under `crop`, voxels
//! pass through untouched, bit for bit. The output is the same to the last bit for any
//! number of threads and any order of arrival.

mod estimate;
mod live;
mod pending;
mod reduce;
mod window;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use self::live::Live;
use self::pending::Pending;
use self::window::{Shares, owned};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::patch::{Patch, copy_common};
use crate::region::Region;
use crate::volume::{Layout, VolumeMut};

pub use self::reduce::Reduce;
pub use self::window::Blend;

/// Blends the patches of a grid into a volume.
#[derive(Debug)]
pub struct Aggregator {
    grid: Grid,
    channels: u64,
    reduce: Reduce,
    mode: Mode,
    pending: Pending,
    seen: Mutex<Vec<u64>>,
    meter: Meter,
}

#[derive(Debug)]
enum Mode {
    /// Each voxel from one patch: the part of each axis that each start owns.
    Crop([Vec<std::ops::Range<u64>>; 3]),
    /// Weighted sums.
    Sums(Box<Live>),
}

/// What an aggregation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregated {
    /// Patches added.
    pub patches: u64,
    /// Write chunks handed to the output.
    pub chunks_written: u64,
    /// The most bytes that live blocks and unfinished write chunks took at once.
    pub peak_live_bytes: u64,
}

impl Aggregator {
    /// Blends predictions of `channels` channels into `output`, whose shape must be the grid's.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if the output's shape or channels do not fit, or its type cannot
    /// count the classes.
    pub fn new(
        grid: Grid,
        channels: u64,
        blend: Blend,
        reduce: Reduce,
        output: Box<dyn VolumeMut>,
    ) -> Result<Self> {
        let layout = output.layout();
        reduce.check(channels, layout.dtype)?;
        if layout.shape != grid.volume()
            || layout.channels != reduce.channels(channels)
            || channels == 0
        {
            return Err(Error::Setting {
                name: "an output of",
                value: format!("{} x {:?}", layout.channels, layout.shape),
                problem: format!(
                    "the grid covers {:?} and gives {}",
                    grid.volume(),
                    reduce.channels(channels)
                ),
            });
        }
        let mode = if blend == Blend::Crop {
            Mode::Crop(std::array::from_fn(|a| owned(&grid.axes()[a])))
        } else {
            let count = usize::try_from(channels).unwrap_or(usize::MAX);
            Mode::Sums(Box::new(Live::new(&grid, Shares::new(&grid, blend), count)))
        };
        let words = usize::try_from(grid.len().div_ceil(64)).unwrap_or(usize::MAX);
        Ok(Self {
            channels,
            reduce,
            mode,
            pending: Pending::new(output),
            seen: Mutex::new(vec![0; words]),
            meter: Meter::default(),
            grid,
        })
    }

    /// Bytes that a run in order keeps in live blocks and unfinished write chunks, at most.
    /// `output` is the layout that the output will have, [`planned`](crate::volume::planned).
    #[must_use]
    pub fn live_bytes(grid: &Grid, channels: u64, blend: Blend, output: &Layout) -> u64 {
        let crop = blend == Blend::Crop;
        let sums = if crop {
            0
        } else {
            let blocks = std::array::from_fn(|a| {
                let axis = &grid.axes()[a];
                estimate::touched(axis, &live::cuts(axis))
            });
            estimate::peak(grid, &blocks).saturating_mul(4 * channels)
        };
        let Some([_, chunk @ ..]) = output.write_chunk else {
            return sums;
        };
        let chunks = std::array::from_fn(|a| estimate::completed(&grid.axes()[a], chunk[a], crop));
        let voxel = output.channels * output.dtype.size() as u64;
        sums.saturating_add(estimate::peak(grid, &chunks).saturating_mul(voxel))
    }

    /// The grid whose patches are expected.
    #[must_use]
    pub const fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Adds the prediction for patch `index` of the grid.
    ///
    /// # Errors
    ///
    /// [`Error::PredictionShape`] and [`Error::DuplicatePatch`] if it is not what was
    /// expected, and the output's errors if a chunk became whole and could not be written.
    pub fn add(&self, index: u64, prediction: Patch) -> Result<()> {
        let (Some(place), Some(region)) = (self.grid.place(index), self.grid.get(index)) else {
            return Err(Error::Setting {
                name: "patch",
                value: index.to_string(),
                problem: format!("the grid has {} patches", self.grid.len()),
            });
        };
        if prediction.shape() != region.shape || prediction.channels() != self.channels {
            return Err(Error::PredictionShape {
                index,
                channels: prediction.channels(),
                shape: prediction.shape(),
                expected_channels: self.channels,
                expected_shape: region.shape,
            });
        }
        self.mark(index, region)?;
        let prediction = prediction.moved_to(region.start);
        match &self.mode {
            Mode::Crop(owned) => self.add_owned(
                &prediction,
                std::array::from_fn(|a| owned[a][place[a]].clone()),
            ),
            Mode::Sums(live) => {
                let prediction = Arc::new(prediction.converted(DType::F32));
                live.add(place, &prediction, &self.meter, |block| {
                    self.reduced(block.region, DType::F32, bytemuck::cast_slice(block.sums))
                })
            }
        }
    }

    /// Notes that a patch came; each may come once.
    fn mark(&self, index: u64, region: Region) -> Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let word = &mut seen[usize::try_from(index / 64).expect("the grid's bits are in memory")];
        let bit = 1 << (index % 64);
        if *word & bit != 0 {
            return Err(Error::DuplicatePatch { index, region });
        }
        *word |= bit;
        Ok(())
    }

    /// Hands on the voxels that a patch alone supplies.
    fn add_owned(&self, patch: &Patch, owned: [std::ops::Range<u64>; 3]) -> Result<()> {
        let start = owned
            .clone()
            .map(|range| i64::try_from(range.start).unwrap_or(i64::MAX));
        let region = Region::new(start, owned.map(|range| range.end - range.start));
        if region.is_empty() {
            return Ok(());
        }
        let mut part = Patch::zeros(region, self.channels, patch.dtype())?;
        let size = patch.dtype().size();
        copy_common(
            (patch.bytes(), patch.region()),
            (part.bytes_mut(), region),
            self.channels,
            size,
        );
        self.reduced(region, patch.dtype(), part.bytes())
    }

    /// Reduces the final values of a box and passes them to their write chunks.
    fn reduced(&self, region: Region, dtype: DType, values: &[u8]) -> Result<()> {
        let layout = self.pending.output().layout();
        if self.reduce == Reduce::Mean && dtype == layout.dtype {
            return self.pending.add(region, values, &self.meter);
        }
        let mut out = Patch::zeros(region, layout.channels, layout.dtype)?;
        let channels = usize::try_from(self.channels).unwrap_or(usize::MAX);
        self.reduce
            .apply(dtype, values, channels, layout.dtype, out.bytes_mut());
        self.pending.add(region, out.bytes(), &self.meter)
    }

    /// Checks that every patch came, and finishes the output.
    ///
    /// # Errors
    ///
    /// [`Error::MissingPatches`] if some did not, and the output's errors.
    pub fn finish(self) -> Result<Aggregated> {
        let total = self.grid.len();
        let seen = self
            .seen
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let came =
            |index: &u64| seen[usize::try_from(index / 64).unwrap_or(0)] & (1 << (index % 64)) != 0;
        let count: u64 = seen.iter().map(|word| u64::from(word.count_ones())).sum();
        if count < total {
            let first = (0..total).filter(|index| !came(index)).take(8).collect();
            return Err(Error::MissingPatches {
                missing: total - count,
                total,
                first,
            });
        }
        let done = Aggregated {
            patches: total,
            chunks_written: self.pending.written(),
            peak_live_bytes: self.meter.peak.load(Ordering::Relaxed),
        };
        self.pending.finish()?;
        Ok(done)
    }
}

/// Bytes held now, and the most there were.
#[derive(Debug, Default)]
struct Meter {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Meter {
    fn grow(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    fn shrink(&self, bytes: u64) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
