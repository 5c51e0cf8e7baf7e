//! Blends predictions of overlapping patches into one volume, which is written as it becomes final.
//!
//! Patches may arrive in any order and from any thread. Each is multiplied by its weights and added to the live blocks.
//! A block that has its last patch is reduced to the output's type, and a write chunk that has its last voxel is
//! encoded and written once. Under `crop`, voxels pass through unchanged. The output is bit-identical for any number of
//! threads and any order of arrival. This also holds for each write chunk if only some are written.

mod blocks;
mod buffers;
mod estimate;
mod frontier;
mod gauge;
mod live;
mod onto;
mod options;
mod pending;
mod reduce;
mod substitutes;
mod sums;
mod window;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use half::{bf16, f16};

use self::blocks::Blocks;
use self::buffers::Buffers;
use self::gauge::ByteGauge;
use self::live::{Contribution, Final, Live, Owner, Prediction};
use self::onto::{Cells, FinalBlock};
use self::pending::{Pending, unit};
use self::substitutes::Substitutes;
use self::sums::{TOO_LARGE_FOR_F16, too_large_for_f32};
use self::window::{Weights, owned};
use crate::dtype::{DType, Element, with_element};
use crate::error::{Error, Result};
use crate::grid::{Axis, Grid};
use crate::patch::{Patch, copy_common};
use crate::region::{Region, Shape};
use crate::volume::VolumeMut;

pub use self::estimate::live_bytes;
#[cfg(test)]
pub(crate) use self::estimate::steps_taken;
pub(crate) use self::estimate::{Estimate, Needed};
pub use self::frontier::{BlockEnd, BlockPart, BlockStep, BlockWeights, Frontier, PatchVote};
pub(crate) use self::onto::Onto;
pub use self::options::{AggregatorOptions, NonFinite, Skipped};
pub use self::reduce::{CustomReduce, Reduce, ReduceFn};
pub use self::sums::Accumulator;
pub use self::window::{Blend, Window};

/// A blender of the patches of a grid into a volume.
#[derive(Debug)]
pub struct Aggregator {
    grid: Grid,
    channels: u64,
    options: AggregatorOptions,
    mode: AggregatorMode,
    /// The cells of an output on another grid than the predictions.
    cells: Option<Box<Cells>>,
    pending: Pending,
    seen: Mutex<Vec<u64>>,
    counts: PatchCounts,
    meter: ByteGauge,
    /// Buffers of output values before they are copied into write chunks, in words because of their alignment.
    values: Buffers<u64>,
    /// The smallest magnitude that is not finite in the sums or the output.
    too_large: f64,
}

/// Patches of fewer bytes stay in the processor's cache while they are added (L2, measured).
const LARGE_PATCH: u64 = if cfg!(test) { 1 } else { 4 << 20 };

/// Boxes of fewer bytes cost more calls than they save (measured).
const SMALL_BOX: u64 = if cfg!(test) { 1 } else { 128 << 10 };

#[derive(Debug)]
enum AggregatorMode {
    /// Each voxel comes from one patch: the part of each axis that each start owns, and the substitutes for patches
    /// that may not vote.
    Crop([Vec<Range<u64>>; 3], Option<Box<Substitutes>>),
    /// Weighted sums.
    F32(Box<Live<f32>>),
    F16(Box<Live<f16>>),
    BF16(Box<Live<bf16>>),
    /// The sums are kept elsewhere.
    Elsewhere(Arc<Frontier>),
}

impl AggregatorMode {
    /// Returns the blocks of the sums that are kept here; `None` if there are none.
    fn blocks(&self) -> Option<&Blocks> {
        match self {
            Self::F32(live) => Some(live.blocks()),
            Self::F16(live) => Some(live.blocks()),
            Self::BF16(live) => Some(live.blocks()),
            Self::Crop(..) | Self::Elsewhere(_) => None,
        }
    }
}

#[derive(Debug, Default)]
struct PatchCounts {
    patches: AtomicU64,
    skipped: AtomicU64,
    uncovered: AtomicU64,
    clipped: AtomicU64,
}

/// The statistics of an aggregation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AggregationStats {
    /// Patches that voted.
    pub patches: u64,
    /// Patches that were skipped, or left out because they were not finite or missing.
    pub skipped: u64,
    /// Voxels for which no patch voted: they have the fill value.
    pub uncovered_voxels: u64,
    /// Values outside the range of the output's type, stored as its nearest value.
    pub clipped_values: u64,
    /// Write chunks passed to the output.
    pub chunks_written: u64,
    /// The peak memory of live blocks and unfinished write chunks, in bytes.
    pub peak_live_bytes: u64,
}

impl std::ops::AddAssign for AggregationStats {
    /// Adds the statistics of a later run into the same output.
    fn add_assign(&mut self, other: Self) {
        self.patches += other.patches;
        self.skipped += other.skipped;
        self.uncovered_voxels += other.uncovered_voxels;
        self.clipped_values += other.clipped_values;
        self.chunks_written += other.chunks_written;
        self.peak_live_bytes = self.peak_live_bytes.max(other.peak_live_bytes);
    }
}

impl Aggregator {
    /// Creates an aggregator of predictions with `channels` channels into `output`, whose shape must be the grid's.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the output's shape or channels do not match, its type cannot represent the
    /// classes, or an option is not valid.
    pub fn new(
        grid: Grid,
        channels: u64,
        options: AggregatorOptions,
        output: Box<dyn VolumeMut>,
    ) -> Result<Self> {
        Self::of_chunks(grid, channels, options, output, None)
    }

    /// Creates an aggregator that writes only some write chunks: those whose index (z, y, x) is `wanted`. Only the
    /// patches that they [need](Self::needs) must be added. Flat outputs have no write chunks and are always written
    /// whole.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn of_chunks(
        grid: Grid,
        channels: u64,
        options: AggregatorOptions,
        output: Box<dyn VolumeMut>,
        wanted: Option<&dyn Fn([u64; 3]) -> bool>,
    ) -> Result<Self> {
        let layout = output.layout().clone();
        options.check(&grid, channels, layout.dtype)?;
        let shape = options
            .onto
            .map_or(grid.volume(), |onto| onto.written.shape);
        if layout.shape != shape
            || layout.channels != options.reduce.channels(channels)
            || channels == 0
        {
            return Err(Error::InvalidArgument {
                argument: "output",
                value: format!("{} x {:?}", layout.channels, layout.shape),
                problem: format!(
                    "the grid needs {1} x {0:?}",
                    shape,
                    options.reduce.channels(channels)
                ),
            });
        }
        let fill = with_element!(layout.dtype, T => bytemuck::bytes_of(&T::from_f64(options.fill)).to_vec());
        let unit = unit(&grid, &layout, options.onto.as_ref());
        let pending = Pending::new(unit, output, fill, wanted);
        let cells = match &options.onto {
            Some(onto) => Some(Box::new(Cells::new(onto, &grid, channels, &options, unit)?)),
            None => None,
        };
        let count = usize::try_from(channels).unwrap_or(usize::MAX);
        let wants = |region: &Region| match &cells {
            Some(cells) => cells.wants(region, &|cell| pending.wants(cell)),
            None => pending.wants(region),
        };
        let wanted: Option<&dyn Fn(&Region) -> bool> = pending.is_partial().then_some(&wants);
        let weights = || Weights::new(&grid, &options.blend, options.adds_by_logs(&grid));
        let mode = match (&options.blend, options.sums()) {
            _ if options.sums_elsewhere => {
                let frontier = Frontier::new(&grid, channels, &options, layout.dtype, wanted);
                AggregatorMode::Elsewhere(Arc::new(frontier))
            }
            (Blend::Crop, _) => {
                let (channels, size) = (layout.channels, layout.dtype.size());
                let substitutes = || Box::new(Substitutes::new(&grid, channels, size));
                let owned = std::array::from_fn(|a| owned(&grid.axes()[a]));
                AggregatorMode::Crop(owned, (!options.all_vote()).then(substitutes))
            }
            (_, Accumulator::F32) => {
                AggregatorMode::F32(Box::new(Live::new(&grid, weights(), count, wanted)))
            }
            (_, Accumulator::F16) => {
                AggregatorMode::F16(Box::new(Live::new(&grid, weights(), count, wanted)))
            }
            (_, Accumulator::BF16) => {
                AggregatorMode::BF16(Box::new(Live::new(&grid, weights(), count, wanted)))
            }
        };
        let words = usize::try_from(grid.len().div_ceil(64)).unwrap_or(usize::MAX);
        let made = Self {
            too_large: options.too_large(layout.dtype),
            channels,
            options,
            mode,
            cells,
            pending,
            seen: Mutex::new(vec![0; words]),
            counts: PatchCounts::default(),
            meter: ByteGauge::default(),
            values: Buffers::default(),
            grid,
        };
        made.fill_rim()?;
        Ok(made)
    }

    /// Writes the fill value to the voxels that no patch covers.
    fn fill_rim(&self) -> Result<()> {
        let untouched: Box<dyn Iterator<Item = Region> + '_> = match &self.mode {
            AggregatorMode::Crop(..) => Box::new(rim(
                self.grid.volume(),
                self.grid.axes().each_ref().map(Axis::covered),
            )),
            AggregatorMode::Elsewhere(frontier) => frontier.untouched(),
            sums => Box::new(sums.blocks().into_iter().flat_map(Blocks::untouched)),
        };
        for region in untouched {
            self.finished(region, None)?;
        }
        let Some(cells) = &self.cells else {
            return Ok(());
        };
        // Voxels of the output too far from the predictions.
        let shape = self.pending.output().layout().shape;
        for slab in rim(shape, cells.reached()).chain(cells.beyond()) {
            for wanted in self.pending.wanted_parts(slab) {
                self.uncovered(wanted)?;
            }
        }
        Ok(())
    }

    /// Passes on a box of final blended voxels: the values, channel by channel, and the flags of voxels that no patch
    /// covers; `None` if no patch voted.
    fn finished(&self, region: Region, values: Option<(&mut [f32], &[bool])>) -> Result<()> {
        let Some(cells) = &self.cells else {
            return match values {
                Some((values, holes)) => {
                    self.clamp(values);
                    self.blended(region, values, holes)
                }
                None => self.uncovered(region),
            };
        };
        let values = values.map(|(values, holes)| {
            self.clamp(values);
            (&*values, holes)
        });
        let block = FinalBlock { region, values };
        let wants = |cell: &Region| self.pending.wants(cell);
        cells.add(&block, &wants, &self.meter, |cell, has_votes| {
            if !has_votes {
                return self.uncovered(cell);
            }
            let mut values = self.buffer(cell, cells.channels(), DType::F32);
            let singles: &mut [f32] = bytemuck::cast_slice_mut(values.bytes_mut());
            let holes = cells.compute(cell, singles)?;
            let own = singles.len() / count(cells.channels()) * count(self.channels);
            self.blended(cell, &singles[..own], &holes)
        })
    }

    /// Returns the grid whose patches are expected.
    #[must_use]
    pub const fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Returns `true` if patch `index` is needed for any of the write chunks that are written.
    #[must_use]
    pub fn needs(&self, index: u64) -> bool {
        let Some(place) = self.grid.place(index) else {
            return false;
        };
        match &self.mode {
            AggregatorMode::Crop(..) if !self.pending.is_partial() => true,
            AggregatorMode::Crop(owned, None) => self.pending.wants(&part(owned, place)),
            AggregatorMode::Crop(owned, Some(substitutes)) => {
                let mut boxes = substitutes.touched(place).map(|owner| part(owned, owner));
                boxes.any(|region| !region.is_empty() && self.pending.wants(&region))
            }
            AggregatorMode::Elsewhere(frontier) => frontier.needs(place),
            sums => sums.blocks().is_some_and(|kept| kept.needs(place)),
        }
    }

    /// Adds the prediction for patch `index` of the grid.
    ///
    /// # Errors
    ///
    /// [`Error::PredictionShape`], [`Error::DuplicatePatch`] and [`Error::NotFinite`] if it is not as expected,
    /// [`Error::InvalidArgument`] if it has integers that would be averaged, and the output's errors if a completed
    /// chunk could not be written.
    pub fn add(&self, index: u64, prediction: impl Into<Arc<Patch>>) -> Result<()> {
        self.add_batch(vec![(index, prediction.into())])
    }

    /// Adds predictions, each with the index of its patch in the grid. All are checked first: if one is refused, none
    /// is added.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add). After an error of the output, the aggregator cannot be used.
    pub fn add_batch(&self, batch: Vec<(u64, Arc<Patch>)>) -> Result<()> {
        let mut places = Vec::with_capacity(batch.len());
        for (index, prediction) in &batch {
            let (place, region) = self.expected(*index)?;
            self.check_kind(*index, region, prediction)?;
            let votes = self.check_values(*index, region, [0; 3], prediction)?;
            places.push((place, region, votes));
        }
        let regions = places.iter().map(|&(_, region, _)| region);
        self.mark_seen(batch.iter().map(|&(index, _)| index).zip(regions))?;
        for ((place, _, votes), (_, prediction)) in places.into_iter().zip(batch) {
            self.contribute_prediction(place, votes.then_some((prediction, None)), &drop)?;
        }
        Ok(())
    }

    /// Adds the prediction for patch `index` of the grid, and passes it to `spent` once it is added: on return or, if a
    /// block is still waiting for an earlier patch, by the call that adds that patch.
    ///
    /// Where this saves a pass over the values, they are checked while they are added.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add). After any error, the aggregator cannot be used.
    pub(crate) fn add_or_end(
        &self,
        index: u64,
        prediction: Patch,
        spent: &dyn Fn(Patch),
    ) -> Result<()> {
        let (place, region) = self.expected(index)?;
        self.check_kind(index, region, &prediction)?;
        // All values are added, and none may be left out.
        let checks = self.options.non_finite == NonFinite::Refuse
            && !matches!(self.mode, AggregatorMode::Crop(..))
            && !self.pending.is_partial()
            && region.is_inside(self.grid.volume());
        let limit = checks.then(|| single(self.too_large));
        let votes = checks || self.check_values(index, region, [0; 3], &prediction)?;
        self.mark_seen(std::iter::once((index, region)))?;
        let prediction = Arc::new(prediction);
        let given = votes.then(|| (Arc::clone(&prediction), limit));
        self.contribute_prediction(place, given, spent)?;
        if let Some(prediction) = Arc::into_inner(prediction) {
            spent(prediction);
        }
        Ok(())
    }

    /// Returns `true` if predictions may be [added box by box](Self::add_by_boxes): every patch is inside the volume, and
    /// votes or is skipped as a whole.
    pub(crate) fn takes_boxes(&self) -> bool {
        let has_boxes = match &self.mode {
            AggregatorMode::Crop(_, substitutes) => substitutes.is_none(),
            sums => sums.blocks().is_some(),
        };
        // All patches are between the first and the last.
        let is_inside = |index| {
            let patch = self.grid.get(index);
            patch.is_some_and(|patch| patch.is_inside(self.grid.volume()))
        };
        has_boxes
            && self.options.non_finite != NonFinite::LeaveOut
            && !self.pending.is_partial()
            && [0, self.grid.len() - 1].into_iter().all(is_inside)
    }

    /// Returns `true` if a run is faster with boxes of patches of `patch_bytes`, where they are taken.
    pub(crate) fn gains_by_boxes(&self, patch_bytes: u64) -> bool {
        let Some(blocks) = self.mode.blocks() else {
            return matches!(self.mode, AggregatorMode::Crop(..));
        };
        let middle = self
            .grid
            .axes()
            .each_ref()
            .map(|axis| axis.starts.len() / 2);
        let boxes = blocks.touched(middle).count() as u64;
        patch_bytes >= LARGE_PATCH && patch_bytes / boxes.max(1) >= SMALL_BOX
    }

    /// Adds the prediction for patch `index` of the grid box by box: `predict` returns it for a box of the patch. It is called
    /// for each one that the patch has in common with a block of the sums, or for the one that is kept (crop), and each
    /// prediction is passed to `spent` once it is added. Small ones are then still in the processor's cache when they are
    /// added.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add), those of `predict`, and [`Error::InvalidArgument`] if predictions are
    /// [not taken box by box](Self::takes_boxes). After any error, the aggregator cannot be used.
    pub(crate) fn add_by_boxes(
        &self,
        index: u64,
        predict: &dyn Fn(Region) -> Result<Patch>,
        spent: &dyn Fn(Patch),
    ) -> Result<()> {
        let refuse = || {
            Err(Error::InvalidArgument {
                argument: "boxes of patch",
                value: index.to_string(),
                problem: "this aggregator takes whole predictions".to_owned(),
            })
        };
        if !self.takes_boxes() {
            return refuse();
        }
        let (place, region) = self.expected(index)?;
        self.mark_seen(std::iter::once((index, region)))?;
        self.counts.patches.fetch_add(1, Ordering::Relaxed);
        let predict = |region: Region| {
            let prediction = predict(region)?;
            self.check_kind(index, region, &prediction)?;
            Ok(prediction)
        };
        let checks = self.options.non_finite == NonFinite::Refuse;
        let limit = checks.then(|| single(self.too_large));
        let owner = BlockOwner {
            aggregator: self,
            spent,
        };
        let meter = &self.meter;
        match &self.mode {
            AggregatorMode::F32(live) => live.add_boxes(place, &predict, limit, meter, &owner),
            AggregatorMode::F16(live) => live.add_boxes(place, &predict, limit, meter, &owner),
            AggregatorMode::BF16(live) => live.add_boxes(place, &predict, limit, meter, &owner),
            AggregatorMode::Elsewhere(_) => refuse(),
            AggregatorMode::Crop(owned, _) => {
                let own = part(owned, place);
                if own.is_empty() {
                    return Ok(());
                }
                let values = predict(own)?;
                let start = own.relative_to(region.start).start;
                self.check_values(index, region, start.map(i64::unsigned_abs), &values)?;
                if self.is_output(values.dtype()) {
                    self.pending.add(own, Some(values.bytes()), meter)?;
                } else {
                    let reduced = self.reduced(own, values.dtype(), values.bytes())?;
                    self.pending.add(own, Some(reduced.bytes()), meter)?;
                }
                spent(values);
                Ok(())
            }
        }
    }

    /// Adds a prediction, with the limit of values that were not checked; `None` if the patch does not vote.
    fn contribute_prediction(
        &self,
        place: [usize; 3],
        prediction: Option<(Arc<Patch>, Option<f32>)>,
        spent: &dyn Fn(Patch),
    ) -> Result<()> {
        let (count, contribution) = match prediction {
            Some((values, limit)) => {
                let prediction = Prediction {
                    values,
                    from: [0; 3],
                    limit,
                };
                (&self.counts.patches, Contribution::Values(prediction))
            }
            None => (&self.counts.skipped, Contribution::Nothing),
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.contribute(place, &contribution, spent)
    }

    /// Checks the shape and the type of the prediction for patch `index`.
    fn check_kind(&self, index: u64, region: Region, prediction: &Patch) -> Result<()> {
        if prediction.shape() != region.shape || prediction.channels() != self.channels {
            return Err(Error::PredictionShape {
                index,
                channels: prediction.channels(),
                shape: prediction.shape(),
                expected_channels: self.channels,
                expected_shape: region.shape,
            });
        }
        self.options.check_type(&self.grid, prediction.dtype())?;
        self.options.check_values(prediction)
    }

    /// Checks the values of the prediction for patch `index`, or of the box that begins at the patch's voxel `from`.
    /// Returns `true` if it votes.
    fn check_values(
        &self,
        index: u64,
        region: Region,
        from: Shape,
        prediction: &Patch,
    ) -> Result<bool> {
        if self.options.non_finite == NonFinite::Keep {
            return Ok(true);
        }
        match first_non_finite(prediction, self.too_large) {
            Some(([c, z, y, x], value)) if self.options.non_finite == NonFinite::Refuse => {
                Err(Error::NotFinite {
                    index,
                    region,
                    value,
                    at: [c, z + from[0], y + from[1], x + from[2]],
                })
            }
            found => Ok(found.is_none()),
        }
    }

    /// Marks patch `index` as not predicted. Its contribution is an [option](Skipped).
    ///
    /// # Errors
    ///
    /// [`Error::DuplicatePatch`] if it was already added or skipped, [`Error::InvalidArgument`] if the options promise
    /// that every patch votes and this one does not, and the output's errors.
    pub fn skip(&self, index: u64) -> Result<()> {
        let contribution = match &self.options.skipped {
            Skipped::Renormalize if self.options.all_vote() => {
                return Err(Error::InvalidArgument {
                    argument: "skip of patch",
                    value: index.to_string(),
                    problem: "the options promise that every patch votes (all_vote)".to_owned(),
                });
            }
            Skipped::Renormalize => Contribution::Nothing,
            Skipped::Vote(values) => Contribution::Constant(values.clone().into()),
        };
        self.skip_with(index, &contribution)
    }

    fn skip_with(&self, index: u64, contribution: &Contribution) -> Result<()> {
        let (place, region) = self.expected(index)?;
        self.mark_seen(std::iter::once((index, region)))?;
        self.counts.skipped.fetch_add(1, Ordering::Relaxed);
        self.contribute(place, contribution, &drop)
    }

    /// Returns the place and the region of patch `index`.
    fn expected(&self, index: u64) -> Result<([usize; 3], Region)> {
        self.grid
            .place(index)
            .zip(self.grid.get(index))
            .ok_or_else(|| Error::IndexOutOfRange {
                what: "patch",
                index,
                count: self.grid.len(),
            })
    }

    /// Marks patches as added. If one was already added, none is marked.
    fn mark_seen(&self, patches: impl Iterator<Item = (u64, Region)>) -> Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let bit = |index: u64| {
            let word = usize::try_from(index / 64).expect("the grid's bits are in memory");
            (word, 1 << (index % 64))
        };
        let mut marked: Vec<(usize, u64)> = Vec::new();
        for (index, region) in patches {
            let (word, bit) = bit(index);
            if seen[word] & bit != 0 {
                for (word, bit) in marked {
                    seen[word] &= !bit;
                }
                return Err(Error::DuplicatePatch { index, region });
            }
            seen[word] |= bit;
            marked.push((word, bit));
        }
        Ok(())
    }

    /// Adds the contribution of the patch at `place`, and passes on the voxels that became final.
    fn contribute(
        &self,
        place: [usize; 3],
        contribution: &Contribution,
        spent: &dyn Fn(Patch),
    ) -> Result<()> {
        let owner = BlockOwner {
            aggregator: self,
            spent,
        };
        match &self.mode {
            AggregatorMode::Crop(owned, substitutes) => {
                let own = part(owned, place);
                if !own.is_empty()
                    && let Some(values) = self.supplied(own, place, contribution)?
                {
                    self.pending.add(own, Some(values.bytes()), &self.meter)?;
                }
                match substitutes {
                    Some(substitutes) => self.substitute(substitutes, place, contribution),
                    None => Ok(()),
                }
            }
            AggregatorMode::F32(live) => live.add(place, contribution, &self.meter, &owner),
            AggregatorMode::F16(live) => live.add(place, contribution, &self.meter, &owner),
            AggregatorMode::BF16(live) => live.add(place, contribution, &self.meter, &owner),
            AggregatorMode::Elsewhere(_) => Err(Error::InvalidArgument {
                argument: "patch",
                value: format!("at {place:?}"),
                problem: "the sums are kept elsewhere: add the values of final blocks".to_owned(),
            }),
        }
    }

    /// Returns the most bytes of sums and of unfinished write chunks so far.
    pub(crate) fn peak_live_bytes(&self) -> u64 {
        self.meter.peak.load(Ordering::Relaxed)
    }

    /// Returns the unfinished blocks, if the sums are kept elsewhere.
    #[must_use]
    pub fn frontier(&self) -> Option<Arc<Frontier>> {
        match &self.mode {
            AggregatorMode::Elsewhere(frontier) => Some(Arc::clone(frontier)),
            _ => None,
        }
    }

    /// Adds the reduced values of a final block, whose sums are kept elsewhere; `None` if no patch voted. Values of any
    /// type are converted to the output's.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the block is not final, was added before, or its values do not have its shape;
    /// [`Error::OutputRange`], and the output's errors.
    pub fn add_block(&self, block: u64, values: Option<Patch>) -> Result<()> {
        let refuse = |problem: &str| Error::InvalidArgument {
            argument: "block",
            value: block.to_string(),
            problem: problem.to_owned(),
        };
        let AggregatorMode::Elsewhere(frontier) = &self.mode else {
            return Err(refuse("the sums are kept here"));
        };
        let (region, holes) = frontier.take(block)?;
        let Some(values) = values else {
            return self.uncovered(region);
        };
        let layout = self.pending.output().layout();
        if (values.shape(), values.channels()) != (region.shape, layout.channels) {
            return Err(refuse("its values have another shape"));
        }
        if values.dtype() == layout.dtype && holes.is_empty() {
            return self.pending.add(region, Some(values.bytes()), &self.meter);
        }
        let mut out = self.buffer(region, layout.channels, layout.dtype);
        let reduced = (values.dtype(), values.bytes(), layout.channels);
        self.reduce_into(region, &Reduce::Mean, reduced, &mut out)?;
        self.fill_holes(out.bytes_mut(), &holes);
        self.pending.add(region, Some(out.bytes()), &self.meter)
    }

    /// Offers the contribution of the patch at `place` to the boxes of patches that have not voted, under crop.
    fn substitute(
        &self,
        substitutes: &Substitutes,
        place: [usize; 3],
        contribution: &Contribution,
    ) -> Result<()> {
        let values = |region: Region| {
            let supplied = self.supplied(region, place, contribution)?;
            Ok(supplied.map_or_else(Vec::new, |values| values.bytes().to_vec()))
        };
        let values: Option<&dyn Fn(Region) -> Result<Vec<u8>>> = match contribution {
            Contribution::Nothing => None,
            _ => Some(&values),
        };
        if values.is_some() {
            substitutes.settle(place, &self.meter);
        }
        let wants = |region: &Region| !self.pending.is_partial() || self.pending.wants(region);
        substitutes.arrive(place, values, &wants, &self.meter, |region, settled| {
            let Some((values, holes)) = settled else {
                return self.uncovered(region);
            };
            if holes.is_empty() {
                return self.pending.add(region, Some(values), &self.meter);
            }
            let mut values = values.to_vec();
            self.fill_holes(&mut values, holes);
            self.pending.add(region, Some(&values), &self.meter)
        })
    }

    /// Returns the output values of a part of the patch at `place` from its contribution alone; `None` if it does not vote.
    fn supplied(
        &self,
        region: Region,
        place: [usize; 3],
        contribution: &Contribution,
    ) -> Result<Option<OutputValues<'_>>> {
        let (dtype, part) = match contribution {
            Contribution::Nothing => return Ok(None),
            Contribution::Values(prediction) => {
                let patch = &prediction.values;
                let dtype = patch.dtype();
                let mut part = self.buffer(region, self.channels, dtype);
                // A model may leave its predictions where the patches of the volume start.
                let start = std::array::from_fn(|a| self.grid.axes()[a].starts[place[a]]);
                copy_common(
                    (patch.bytes(), Region::new(start, patch.shape())),
                    (part.bytes_mut(), region),
                    self.channels,
                    dtype.size(),
                );
                (dtype, part)
            }
            Contribution::Constant(values) => {
                let mut part = self.buffer(region, self.channels, DType::F32);
                let voxels = usize::try_from(region.voxels()).unwrap_or(usize::MAX);
                let singles: &mut [f32] = bytemuck::cast_slice_mut(part.bytes_mut());
                for (channel, &value) in singles.chunks_exact_mut(voxels.max(1)).zip(&**values) {
                    channel.fill(value);
                }
                (DType::F32, part)
            }
        };
        if self.is_output(dtype) {
            return Ok(Some(part));
        }
        self.reduced(region, dtype, part.bytes()).map(Some)
    }

    /// Returns a buffer with arbitrary contents for the values of a box.
    fn buffer(&self, region: Region, channels: u64, dtype: DType) -> OutputValues<'_> {
        let count = region.voxels().saturating_mul(channels);
        let length = usize::try_from(count).unwrap_or(usize::MAX) * dtype.size();
        OutputValues {
            words: self.values.take_long(length.div_ceil(size_of::<u64>())),
            length,
            buffers: &self.values,
        }
    }

    /// Passes a box for which no patch voted to its write chunks.
    fn uncovered(&self, region: Region) -> Result<()> {
        if region.is_empty() {
            return Ok(());
        }
        self.counts
            .uncovered
            .fetch_add(region.voxels(), Ordering::Relaxed);
        self.pending.add(region, None, &self.meter)
    }

    /// Returns `true` if values of a type are output values without conversion.
    fn is_output(&self, dtype: DType) -> bool {
        self.options.reduce == Reduce::Mean && dtype == self.pending.output().layout().dtype
    }

    /// Bounds blended values by the largest number of their type: rounding may bring a mean of finite values above it.
    fn clamp(&self, values: &mut [f32]) {
        if self.options.non_finite == NonFinite::Keep {
            return;
        }
        let most = match self.options.too_large(self.pending.output().layout().dtype) {
            TOO_LARGE_FOR_F16 => f16::MAX.to_f32(),
            _ => f32::MAX,
        };
        for value in values {
            *value = value.clamp(-most, most);
        }
    }

    /// Reduces the blended values of a box and passes them to their write chunks. Voxels flagged in `holes` get the
    /// fill value.
    fn blended(&self, region: Region, values: &[f32], holes: &[bool]) -> Result<()> {
        let bytes = bytemuck::cast_slice(values);
        if self.is_output(DType::F32) && holes.is_empty() {
            return self.pending.add(region, Some(bytes), &self.meter);
        }
        let mut out = self.reduced(region, DType::F32, bytes)?;
        self.fill_holes(out.bytes_mut(), holes);
        self.pending.add(region, Some(out.bytes()), &self.meter)
    }

    /// Returns the output values of a box from blended values of type `dtype`.
    fn reduced(&self, region: Region, dtype: DType, values: &[u8]) -> Result<OutputValues<'_>> {
        let layout = self.pending.output().layout();
        let mut out = self.buffer(region, layout.channels, layout.dtype);
        self.reduce_into(
            region,
            &self.options.reduce,
            (dtype, values, self.channels),
            &mut out,
        )?;
        Ok(out)
    }

    /// Reduces values of a type and a number of channels to the output values of a box.
    fn reduce_into(
        &self,
        region: Region,
        reduce: &Reduce,
        (dtype, values, channels): (DType, &[u8], u64),
        out: &mut OutputValues<'_>,
    ) -> Result<()> {
        let layout = self.pending.output().layout();
        let channels = usize::try_from(channels).unwrap_or(usize::MAX);
        let clipped = reduce.apply(dtype, values, channels, layout.dtype, out.bytes_mut());
        if let (false, Some((at, value))) = (self.options.clip, clipped.first) {
            let (channel, voxel) = region.place(at);
            return Err(Error::OutputRange {
                path: layout.path.clone(),
                channel,
                voxel: voxel.map(i64::unsigned_abs),
                value,
                dtype: layout.dtype,
            });
        }
        self.counts
            .clipped
            .fetch_add(clipped.number, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the fill value into the voxels of a box that are flagged in `holes`, and counts them.
    fn fill_holes(&self, values: &mut [u8], holes: &[bool]) {
        if holes.is_empty() {
            return;
        }
        let count = holes.iter().filter(|&&hole| hole).count() as u64;
        self.counts.uncovered.fetch_add(count, Ordering::Relaxed);
        let fill = self.pending.fill();
        for channel in values.chunks_exact_mut(holes.len() * fill.len()) {
            for (voxel, &hole) in channel.chunks_exact_mut(fill.len()).zip(holes) {
                if hole {
                    voxel.copy_from_slice(fill);
                }
            }
        }
    }

    /// Returns the time that threads took to encode and write the output so far, summed over the threads.
    pub(crate) fn write_time(&self) -> Duration {
        self.pending.write_time()
    }

    /// Checks that every needed patch was added, and finishes the output.
    ///
    /// # Errors
    ///
    /// [`Error::MissingPatches`] if some are missing, and the output's errors.
    pub fn finish(self) -> Result<AggregationStats> {
        let (done, output) = self.close()?;
        output.finish()?;
        Ok(done)
    }

    /// Checks that every needed patch was added, and returns the output, which may still receive other write chunks.
    ///
    /// # Errors
    ///
    /// [`Error::MissingPatches`] if some are missing.
    pub fn close(self) -> Result<(AggregationStats, Box<dyn VolumeMut>)> {
        let missing: Vec<u64> = self.missing().collect();
        if !missing.is_empty() {
            return Err(Error::MissingPatches {
                missing: missing.len() as u64,
                total: self.grid.len(),
                first: missing.into_iter().take(8).collect(),
            });
        }
        let (patches, skipped, waiting) = match &self.mode {
            AggregatorMode::Elsewhere(frontier) => frontier.counts(),
            _ => (
                self.counts.patches.load(Ordering::Relaxed),
                self.counts.skipped.load(Ordering::Relaxed),
                0,
            ),
        };
        if waiting > 0 {
            return Err(Error::InvalidArgument {
                argument: "blocks",
                value: waiting.to_string(),
                problem: "they are final, but their values were not added".to_owned(),
            });
        }
        let done = AggregationStats {
            patches,
            skipped,
            uncovered_voxels: self.counts.uncovered.load(Ordering::Relaxed),
            clipped_values: self.counts.clipped.load(Ordering::Relaxed),
            chunks_written: self.pending.written(),
            peak_live_bytes: self.peak_live_bytes(),
        };
        Ok((done, self.pending.into_output()))
    }

    /// Finishes the output even if patches are missing: the others vote alone, and voxels that no patch covers get the
    /// fill value and are counted.
    ///
    /// # Errors
    ///
    /// [`Error::MissingPatches`] if some are missing and the options promise that every patch votes; the output's
    /// errors.
    pub fn finish_partial(self) -> Result<AggregationStats> {
        if self.options.all_vote() {
            return self.finish();
        }
        let missing: Vec<u64> = self.missing().collect();
        for index in missing {
            self.skip_with(index, &Contribution::Nothing)?;
        }
        self.finish()
    }

    /// Returns the needed patches that are missing.
    fn missing(&self) -> impl Iterator<Item = u64> + '_ {
        let seen = if let AggregatorMode::Elsewhere(frontier) = &self.mode {
            frontier.seen()
        } else {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.clone()
        };
        let came = move |index: u64| {
            let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
            seen.get(word)
                .is_some_and(|bits| bits & (1 << (index % 64)) != 0)
        };
        (0..self.grid.len()).filter(move |&index| !came(index) && self.needs(index))
    }
}

/// The output values of a box. The buffer goes back to the aggregator on drop.
struct OutputValues<'a> {
    words: Vec<u64>,
    /// Bytes of the values.
    length: usize,
    buffers: &'a Buffers<u64>,
}

impl OutputValues<'_> {
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.length]
    }
}

impl Drop for OutputValues<'_> {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.words));
    }
}

/// The aggregator as the owner of blocks, and the receiver of predictions that were added.
struct BlockOwner<'a> {
    aggregator: &'a Aggregator,
    spent: &'a dyn Fn(Patch),
}

impl Owner for BlockOwner<'_> {
    fn finished(&self, region: Region, block: Final<'_>) -> Result<()> {
        match block {
            Final::Nothing => self.aggregator.finished(region, None),
            Final::Values(values, holes) => self.aggregator.finished(region, Some((values, holes))),
        }
    }

    fn check(&self, place: [usize; 3], prediction: &Prediction) -> Result<()> {
        let places = place.map(|place| place..place + 1);
        let from = prediction.from.map(|n| n as u64);
        for index in self.aggregator.grid.indices(&places) {
            let (_, region) = self.aggregator.expected(index)?;
            let values = &prediction.values;
            self.aggregator.check_values(index, region, from, values)?;
        }
        Ok(())
    }

    fn spent(&self, prediction: Patch) {
        (self.spent)(prediction);
    }
}

fn count(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Returns a limit of magnitudes as `f32`: infinity if no `f32` reaches it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "all other limits exist in f32"
)]
fn single(too_large: f64) -> f32 {
    if too_large >= too_large_for_f32() {
        f32::INFINITY
    } else {
        too_large as f32
    }
}

/// Returns the region that a patch owns under `Crop`.
fn part(owned: &[Vec<Range<u64>>; 3], place: [usize; 3]) -> Region {
    let along = |a: usize| &owned[a][place[a]];
    let start = |a: usize| i64::try_from(along(a).start).unwrap_or(i64::MAX);
    Region::new(
        std::array::from_fn(start),
        std::array::from_fn(|a| along(a).end - along(a).start),
    )
}

/// Returns boxes that together cover the voxels of a volume that are not in `covered` along every axis.
fn rim(volume: Shape, covered: [Range<u64>; 3]) -> impl Iterator<Item = Region> {
    let ends = covered.clone();
    let slab = move |a: usize, along: Range<u64>| {
        // Axes before `a` are limited to the covered voxels, so that slabs do not overlap.
        let range = |b: usize| match b.cmp(&a) {
            std::cmp::Ordering::Less => covered[b].clone(),
            std::cmp::Ordering::Equal => along.clone(),
            std::cmp::Ordering::Greater => 0..volume[b],
        };
        let start = |b: usize| i64::try_from(range(b).start).unwrap_or(i64::MAX);
        Region::new(
            std::array::from_fn(start),
            std::array::from_fn(|b| range(b).end - range(b).start),
        )
    };
    let slabs: Vec<Region> = (0..3)
        .flat_map(|a| [slab(a, 0..ends[a].start), slab(a, ends[a].end..volume[a])])
        .collect();
    slabs.into_iter().filter(|slab| !slab.is_empty())
}

/// Returns the first value of a patch that is NaN, infinite or `too_large`, and its channel and voxel (c, z, y, x).
fn first_non_finite(patch: &Patch, too_large: f64) -> Option<([u64; 4], f64)> {
    /// The exponent bits, all set in a half float that is NaN or infinite. `f16`'s own test cannot be vectorized.
    const EXPONENT: u16 = 0x7c00;
    fn find<T: bytemuck::Pod>(patch: &Patch, bad: impl Fn(&T) -> bool) -> Option<usize> {
        // Pieces without an early exit, which the compiler vectorizes.
        let pieces = bytemuck::cast_slice(patch.bytes())
            .chunks(1 << 12)
            .enumerate();
        let mut found = pieces.filter(|(_, piece)| piece.iter().fold(false, |any, v| any | bad(v)));
        let (piece, values) = found.next()?;
        Some((piece << 12) + values.iter().position(bad)?)
    }
    let dtype = patch.dtype();
    let (least, most) = dtype.range();
    let at = match dtype {
        // All finite half floats are small enough.
        DType::F16 => find(patch, |bits: &u16| bits & EXPONENT == EXPONENT),
        DType::F32 if too_large > most => find(patch, |value: &f32| !value.is_finite()),
        DType::F32 => find(patch, |value: &f32| {
            value.is_nan() || f64::from(value.abs()) >= too_large
        }),
        DType::F64 => find(patch, |value: &f64| {
            !(value.is_finite() && value.abs() < too_large)
        }),
        _ if most.max(-least) < too_large => None,
        dtype => {
            with_element!(dtype, T => find(patch, |value: &T| value.to_f64().abs() >= too_large))
        }
    }?;
    let value =
        with_element!(dtype, T => bytemuck::cast_slice::<u8, T>(patch.bytes())[at].to_f64());
    let [nz, ny, nx] = patch.shape();
    let n = at as u64;
    Some((
        [n / (nz * ny * nx), n / (ny * nx) % nz, n / nx % ny, n % nx],
        value,
    ))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod twin;
