//! Normalization of a volume's values for a model: one implementation for training and prediction.

mod histogram;
mod normalized;
mod scales;
mod setting;
mod statistics;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use self::histogram::Histogram;
pub use self::normalized::Normalized;
pub use self::scales::Scale;
pub(crate) use self::scales::Scales;
pub use self::setting::NormalizeSetting;
pub use self::statistics::{ChannelStatistics, OpenInput, Statistics, StatisticsOptions, Summary};
use crate::dtype::{DType, convert};
use crate::error::{Error, Result};
use crate::progress::{Progress, report, silent};
use crate::queue::Queue;
use crate::region::{Region, Shape, chunk_range, chunk_region, indices};
use crate::volume::{
    Cached, ChunkShape, Interpolation, Layout, Resample, Slabs, Volume, VolumeExt, VoxelGrid,
};

/// The most voxels that are measured at a time, and read at a time where there are no chunks.
const PIECE: u64 = 1 << 18;
/// The most bytes of decoded chunks of a mask that are kept while a volume is measured.
const MASK_BYTES: u64 = 16 << 20;
/// The number of values that are summed before their sum is added to the others.
const RUN: usize = 1024;

/// The normalization of a volume's values before they reach a model.
///
/// What is measured is that of the whole volume's real values as f32, the type that a model gets, channel by channel; voxels
/// that are NaN or infinite do not count.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Normalize {
    /// No normalization.
    #[default]
    None,
    /// Subtraction of the mean and division by the standard deviation. A constant channel becomes 0.
    ZScore,
    /// The same with the mean and deviation of the voxels that are not 0. Those that are 0 stay 0, as in MONAI's
    /// `NormalizeIntensity(nonzero=True)`.
    ZScoreNonzero,
    /// Clipping to `low..=high`, scaled to 0 to 1.
    Window {
        /// The value that becomes 0, in real values such as HU.
        low: f64,
        /// The value that becomes 1.
        high: f64,
    },
    /// Clipping to percentiles of each channel, scaled to 0 to 1, as TorchIO's `RescaleIntensity(percentiles=...)`. They are
    /// interpolated as by numpy; of types with more than 16 bits, the error is at most 1/8192 of their value.
    Percentile {
        /// The percentile that becomes 0, from 0 to 100.
        low: f64,
        /// The percentile that becomes 1.
        high: f64,
    },
    /// Subtraction of a mean and division by a deviation that are given, as those of a data set.
    MeanStd {
        /// The value that becomes 0.
        mean: f64,
        /// The difference that becomes 1.
        deviation: f64,
    },
    /// nnU-Net's `CTNormalization`: clipping to `low..=high`, then as [`MeanStd`](Self::MeanStd). The numbers are in the
    /// `foreground_intensity_properties_per_channel` of its fingerprint: `percentile_00_5`, `percentile_99_5`, `mean`, `std`.
    NnunetCt {
        /// The lowest value that is kept.
        low: f64,
        /// The highest value that is kept.
        high: f64,
        /// The value that becomes 0.
        mean: f64,
        /// The difference that becomes 1.
        deviation: f64,
    },
    /// A normalization for each channel, in their order.
    PerChannel(Vec<Self>),
}

impl Normalize {
    /// Returns `true` if the volume must be read for it.
    #[must_use]
    pub fn measures(&self) -> bool {
        match self {
            Self::ZScore | Self::ZScoreNonzero | Self::Percentile { .. } => true,
            Self::PerChannel(all) => all.iter().any(Self::measures),
            _ => false,
        }
    }

    /// Returns the mapping of a volume's values, or `None` if they stay as they are. If it
    /// [measures](Self::measures), this reads the volume once, with a chunk or [`PIECE`] voxels per thread at a time;
    /// `progress` counts these. Only voxels where the mask is not 0 count.
    fn scales(
        &self,
        volume: &Arc<dyn Volume>,
        mask: Option<&Arc<dyn Volume>>,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<Option<Scales>> {
        let volumes = (volume, mask);
        let scale = match *self {
            Self::None => return Ok(None),
            Self::PerChannel(ref all) => {
                return Self::scales_per_channel(all, volumes, threads, progress).map(Some);
            }
            Self::ZScore => {
                let all = measured(volumes, threads, progress, PieceBuffers::moments)?;
                let scale = |moments: &Moments| Scale::standard(moments.mean, moments.deviation());
                return Ok(Some(Scales(all.iter().map(scale).collect())));
            }
            Self::ZScoreNonzero => {
                let all = measured(volumes, threads, progress, PieceBuffers::nonzero_moments)?;
                let scale = |moments: &Moments| Scale {
                    keeps_zero: true,
                    ..Scale::standard(moments.mean, moments.deviation())
                };
                return Ok(Some(Scales(all.iter().map(scale).collect())));
            }
            Self::Percentile { low, high } => {
                let all = measured(volumes, threads, progress, PieceBuffers::histogram)?;
                let scale = |Counts(all): &Counts| {
                    let percentile = |percent| {
                        let value = all.as_ref().and_then(|all| all.percentile(percent));
                        value.unwrap_or(0.0)
                    };
                    Scale::window(percentile(low), percentile(high))
                };
                return Ok(Some(Scales(all.iter().map(scale).collect())));
            }
            Self::Window { low, high } => Scale::window(low, high),
            Self::MeanStd { mean, deviation } => Scale::standard(mean, deviation),
            Self::NnunetCt {
                low,
                high,
                mean,
                deviation,
            } => Scale {
                low,
                high,
                ..Scale::standard(mean, deviation)
            },
        };
        Ok(Some(Scales(vec![scale])))
    }

    /// Returns the mapping of each channel by its own normalization. The volume is read once for each one that measures and
    /// differs from those before.
    fn scales_per_channel(
        all: &[Self],
        (volume, mask): (&Arc<dyn Volume>, Option<&Arc<dyn Volume>>),
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<Scales> {
        let layout = volume.layout();
        if all.len() as u64 != layout.channels {
            return Err(Error::InvalidArgument {
                argument: "normalization",
                value: Self::PerChannel(all.to_vec()).to_string(),
                problem: format!(
                    "it has {} normalizations, and {} has {} channels: give one for each channel, or one for all",
                    all.len(),
                    layout.path.display(),
                    layout.channels
                ),
            });
        }
        let mut known: Vec<(&Self, Option<Scales>)> = Vec::new();
        let mut scales = Vec::with_capacity(all.len());
        for (channel, normalize) in all.iter().enumerate() {
            if !known.iter().any(|(other, _)| *other == normalize) {
                let found = normalize.scales(volume, mask, threads, progress)?;
                known.push((normalize, found));
            }
            let own = known.iter().find(|(other, _)| *other == normalize);
            let own = own.and_then(|(_, scales)| scales.as_ref()?.of(channel));
            scales.push(own.unwrap_or(Scale::SAME));
        }
        Ok(Scales(scales))
    }
}

/// A normalization of one volume, with the mean and deviation once they are measured. Clones share them.
#[derive(Clone, Default)]
pub struct Normalizer {
    normalize: Normalize,
    mask: Option<Mask>,
    scales: Arc<OnceLock<Option<Scales>>>,
}

/// Without what was measured, so that it is the same before and after.
impl fmt::Debug for Normalizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mask {
            Some(Mask { name, .. }) => write!(f, "{:?} in {name}", self.normalize),
            None => write!(f, "{:?}", self.normalize),
        }
    }
}

/// A function that opens a volume.
type OpenMask = dyn Fn() -> Result<Arc<dyn Volume>> + Send + Sync;

/// The mask in which a volume is measured.
#[derive(Clone)]
struct Mask {
    name: String,
    open: Arc<OpenMask>,
}

impl Normalizer {
    /// The normalization.
    #[must_use]
    pub const fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    /// Measures only voxels where the first channel of `mask` is not 0, such as those of the brain. All voxels are
    /// normalized.
    ///
    /// If both volumes state the position of their voxels, the mask is brought to the grid of the volume by nearest
    /// neighbor. Otherwise it must have the volume's shape.
    #[must_use]
    pub fn with_mask(self, mask: Arc<dyn Volume>) -> Self {
        let name = mask.layout().path.display().to_string();
        self.with_mask_by(name, move || Ok(Arc::clone(&mask)))
    }

    /// As [`with_mask`](Self::with_mask), with a mask that is opened when the volume is measured. Its name is part of a
    /// loader's fingerprint.
    #[must_use]
    pub fn with_mask_by(
        self,
        name: impl Into<String>,
        open: impl Fn() -> Result<Arc<dyn Volume>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            mask: Some(Mask {
                name: name.into(),
                open: Arc::new(open),
            }),
            scales: Arc::default(),
            ..self
        }
    }

    /// Returns the mask on the grid of the volume.
    fn mask_on(&self, volume: &Arc<dyn Volume>) -> Result<Option<Arc<dyn Volume>>> {
        let Some(mask) = self.mask.as_ref().filter(|_| self.normalize.measures()) else {
            return Ok(None);
        };
        let own = volume.layout();
        let mut mask = (mask.open)()?;
        if own.geometry.is_known && mask.layout().geometry.is_known {
            let how = Resample::default()
                .with_like(Some(VoxelGrid::of(own)))
                .with_interpolation(Interpolation::Nearest);
            mask = how.of(mask)?;
        }
        if mask.layout().shape != own.shape {
            return Err(Error::InvalidArgument {
                argument: "normalization mask",
                value: mask.layout().path.display().to_string(),
                problem: format!(
                    "it has {:?} voxels, and {} has {:?}: give a mask of that shape, or files that state the position of \
                     their voxels",
                    mask.layout().shape,
                    own.path.display(),
                    own.shape
                ),
            });
        }
        Ok(Some(Arc::new(Cached::new(mask, MASK_BYTES))))
    }

    /// Returns the mapping of the values of a volume. If it [measures](Normalize::measures), this reads the volume once, and
    /// `progress` counts the pieces.
    pub(crate) fn scales_of(
        &self,
        volume: &Arc<dyn Volume>,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<Option<Scales>> {
        let mask = self.mask_on(volume)?;
        self.normalize
            .scales(volume, mask.as_ref(), threads, progress)
    }

    /// Returns the number of threads (at least 1, at most `threads`) that can measure a volume of this layout within
    /// `memory`, and the bytes that they take; no bytes if nothing is measured.
    pub(crate) fn measuring(&self, layout: &Layout, threads: usize, memory: u64) -> (usize, u64) {
        if !self.normalize.measures() {
            return (threads, 0);
        }
        let shared = self.mask.as_ref().map_or(0, |_| MASK_BYTES);
        let voxel = layout.dtype.size() as u64;
        let chunk = layout.read_chunk.unwrap_or_default();
        let chunk = chunk.into_iter().fold(2 * voxel, u64::saturating_mul);
        // A chunk as it is stored and decoded, and a piece of it as it is measured, with its mask as read, as f64 and as flags.
        let piece = voxel + 8 + self.mask.as_ref().map_or(0, |_| 17);
        let each = chunk.saturating_add(PIECE.saturating_mul(piece));
        let room = memory.saturating_sub(shared) / each.max(1);
        let fitting = usize::try_from(room).unwrap_or(usize::MAX);
        let threads = threads.min(fitting).max(1);
        (
            threads,
            each.saturating_mul(threads as u64).saturating_add(shared),
        )
    }

    /// Returns `true` if values stay as they are.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.normalize == Normalize::None
    }

    /// Returns the mapping of the volume's values. The first call measures the volume, if that is necessary, with up
    /// to the number of threads and the bytes that `limits` returns.
    pub(crate) fn scales(
        &self,
        volume: impl FnOnce() -> Result<Arc<dyn Volume>>,
        limits: impl FnOnce() -> (usize, u64),
    ) -> Result<Option<&Scales>> {
        if let Some(found) = self.scales.get() {
            return Ok(found.as_ref());
        }
        let (volume, (threads, memory)) = (&volume()?, limits());
        let (threads, _) = self.measuring(volume.layout(), threads.max(1), memory);
        let measured = self.scales_of(volume, threads, &silent)?;
        Ok(self.scales.get_or_init(|| measured).as_ref())
    }
}

impl From<Normalize> for Normalizer {
    fn from(normalize: Normalize) -> Self {
        Self {
            normalize,
            ..Self::default()
        }
    }
}

impl fmt::Display for Normalize {
    /// Writes the words that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::ZScore => f.pad("zscore"),
            Self::ZScoreNonzero => f.pad("zscore:nonzero"),
            Self::Window { low, high } => write!(f, "window:{low},{high}"),
            Self::Percentile { low, high } => write!(f, "percentile:{low},{high}"),
            Self::MeanStd { mean, deviation } => write!(f, "mean-std:{mean},{deviation}"),
            Self::NnunetCt {
                low,
                high,
                mean,
                deviation,
            } => write!(f, "nnunet-ct:{low},{high},{mean},{deviation}"),
            Self::PerChannel(all) => {
                for (n, normalize) in all.iter().enumerate() {
                    write!(f, "{}{normalize}", if n == 0 { "" } else { ";" })?;
                }
                // Otherwise a single one would be that of all channels.
                f.write_str(if all.len() == 1 { ";" } else { "" })
            }
        }
    }
}

impl FromStr for Normalize {
    type Err = Error;

    /// Parses `none`, `zscore`, `zscore:nonzero`, `window:LOW,HIGH`, `percentile:LOW,HIGH`, `mean-std:MEAN,STD` or
    /// `nnunet-ct:LOW,HIGH,MEAN,STD`; or several with semicolons in between, one for each channel, of which one without a
    /// word has the word before it: `mean-std:101,77;12,5`.
    fn from_str(text: &str) -> Result<Self> {
        if text.contains(';') {
            let (mut all, mut word) = (Vec::new(), "");
            for part in text
                .strip_suffix(';')
                .unwrap_or(text)
                .split(';')
                .map(str::trim)
            {
                let is_number = part.starts_with(|first: char| !first.is_ascii_alphabetic());
                if is_number && !word.is_empty() {
                    all.push(format!("{word}:{part}").parse()?);
                    continue;
                }
                word = part.split_once(':').map_or("", |(word, _)| word);
                all.push(part.parse()?);
            }
            return Ok(Self::PerChannel(all));
        }
        let bad = |problem: &str| Error::InvalidArgument {
            argument: "normalization",
            value: text.to_owned(),
            problem: problem.to_owned(),
        };
        let (word, list) = match text.split_once(':') {
            Some((word, list)) => (word, Some(list)),
            None => (text, None),
        };
        let numbers: Option<Vec<f64>> = list.and_then(|list| {
            let numbers = list.split(',').map(|n| n.trim().parse().ok());
            numbers.collect()
        });
        let numbers = numbers.unwrap_or_default();
        let is_finite = numbers.iter().all(|n| n.is_finite());
        match (word, &numbers[..]) {
            ("none", []) if list.is_none() => Ok(Self::None),
            ("zscore", []) if list.is_none() => Ok(Self::ZScore),
            ("zscore", []) if list == Some("nonzero") => Ok(Self::ZScoreNonzero),
            ("window", &[low, high]) if is_finite && low < high && (high - low).is_finite() => {
                Ok(Self::Window { low, high })
            }
            ("window", _) => Err(bad(
                "give two numbers, the lower first, as window:-1000,400",
            )),
            ("percentile", &[low, high]) if 0.0 <= low && low < high && high <= 100.0 => {
                Ok(Self::Percentile { low, high })
            }
            ("percentile", _) => Err(bad(
                "give two numbers from 0 to 100, the lower first, as percentile:0.5,99.5",
            )),
            ("mean-std", &[mean, deviation]) if is_finite && deviation > 0.0 => {
                Ok(Self::MeanStd { mean, deviation })
            }
            ("mean-std", _) => Err(bad(
                "give a mean and a deviation above 0, as mean-std:101,77",
            )),
            ("nnunet-ct", &[low, high, mean, deviation])
                if is_finite && low < high && deviation > 0.0 =>
            {
                Ok(Self::NnunetCt {
                    low,
                    high,
                    mean,
                    deviation,
                })
            }
            ("nnunet-ct", _) => Err(bad(
                "give the lowest and the highest value, the mean and the deviation, as nnunet-ct:-968,326,101,77",
            )),
            _ => Err(bad(
                "the possible values are none, zscore, zscore:nonzero, window:LOW,HIGH, percentile:LOW,HIGH, mean-std:MEAN,STD and nnunet-ct:LOW,HIGH,MEAN,STD, or one of them for each channel, with semicolons in between",
            )),
        }
    }
}

/// The number of values, their mean, and the sum of squared distances from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
impl Moments {
    /// Returns the moments of the finite values, computed in two passes.
    fn of(values: &[f64]) -> Self {
        let sum = |of: &dyn Fn(f64) -> f64| -> f64 {
            let of_run = |run: &[f64]| -> f64 {
                let finite = run.iter().filter(|v| v.is_finite());
                finite.map(|&v| of(v)).sum()
            };
            values.chunks(RUN).map(of_run).sum()
        };
        let count = values.iter().filter(|v| v.is_finite()).count() as u64;
        let Some(&first) = values.iter().find(|v| v.is_finite()) else {
            return Self::default();
        };
        // Distances from one of the values: a sum of equal values is not exactly that value times their number.
        let mean = first + sum(&|v| v - first) / count as f64;
        Self {
            count,
            mean,
            squares: sum(&|v| (v - mean).powi(2)),
        }
    }

    /// Returns the moments of both together.
    fn with(self, other: Self) -> Self {
        if self.count == 0 || other.count == 0 {
            return if self.count == 0 { other } else { self };
        }
        let count = self.count + other.count;
        let (share, apart) = (other.count as f64 / count as f64, other.mean - self.mean);
        Self {
            count,
            mean: self.mean + apart * share,
            squares: self.squares + other.squares + apart * apart * self.count as f64 * share,
        }
    }

    fn deviation(&self) -> f64 {
        (self.squares / self.count.max(1) as f64).sqrt()
    }
}

/// What is measured of a part of a channel, and added to that of the others.
trait Measure: Clone + Default + Send + 'static {
    /// Returns the measure of both together.
    fn and(self, other: Self) -> Self;

    /// Returns `true` if no value counts.
    fn is_empty(&self) -> bool;
}

impl Measure for Moments {
    fn and(self, other: Self) -> Self {
        self.with(other)
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The counts of values; `None` before there are some.
#[derive(Clone, Debug, Default)]
struct Counts(Option<Histogram>);

impl Measure for Counts {
    fn and(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(mut one), Some(other)) => {
                one.merge(&other);
                Self(Some(one))
            }
            (one, other) => Self(one.or(other)),
        }
    }

    fn is_empty(&self) -> bool {
        let found = self.0.as_ref().and_then(|all| all.percentile(50.0));
        found.is_none()
    }
}

/// Returns a measure of every channel of a volume, of the voxels where its mask is not 0; the same for any number of
/// threads.
fn measured<M: Measure>(
    (volume, mask): (&Arc<dyn Volume>, Option<&Arc<dyn Volume>>),
    threads: usize,
    progress: Progress<'_>,
    measure: fn(&mut PieceBuffers) -> M,
) -> Result<Vec<M>> {
    let layout = volume.layout();
    let channels = usize::try_from(layout.channels).unwrap_or(usize::MAX);
    let mut all = vec![M::default(); channels];
    let threads = if volume.is_sequential() {
        1
    } else {
        threads.max(1)
    };
    let (total, mut done) = (parts(&**volume).count() as u64, 0);
    let work = {
        let (volume, mask) = (Arc::clone(volume), mask.cloned());
        move |part: ReadPiece| part.measured((&*volume, mask.as_deref()), measure)
    };
    report(progress, done, total)?;
    for found in Queue::new(parts(&**volume), threads, 2 * threads, work) {
        for (channel, measure) in found? {
            let sum = &mut all[length(channel)];
            *sum = std::mem::take(sum).and(measure);
        }
        done += 1;
        report(progress, done, total)?;
    }
    if let Some(mask) = mask.filter(|_| all.iter().any(Measure::is_empty)) {
        return Err(Error::InvalidArgument {
            argument: "normalization mask",
            value: mask.layout().path.display().to_string(),
            problem: format!(
                "it selects no voxel of {} with a value that counts",
                volume.layout().path.display()
            ),
        });
    }
    Ok(all)
}

/// The voxels that one read fetches.
#[derive(Clone, Debug)]
enum ReadPiece {
    Chunk(ChunkShape),
    Piece(Range<u64>, Region),
}

/// Returns parts that cover all voxels of a volume, in storage order.
fn parts(volume: &dyn Volume) -> Box<dyn Iterator<Item = ReadPiece> + Send> {
    let layout = volume.layout();
    let order = volume.sequential_order();
    // Channels that are adjacent in storage are read together.
    if let Some(order) = order.filter(|order| order[0] != 0) {
        let slabs = Slabs::up_to(layout, order, PIECE);
        let parts = slabs
            .iter()
            .map(|(channels, region)| ReadPiece::Piece(channels, region));
        return Box::new(parts);
    }
    let (channels, whole) = (0..layout.channels, Region::whole(layout.shape));
    let chunks = layout.read_chunk.map(|chunk| {
        let boxes = chunk_range(&whole, [chunk[1], chunk[2], chunk[3]]);
        let groups = 0..layout.channels.div_ceil(chunk[0]);
        groups.flat_map(move |c| indices(boxes.clone()).map(move |[z, y, x]| [c, z, y, x]))
    });
    let flat = layout.read_chunk.is_none();
    let pieces = flat.then(|| {
        channels
            .flat_map(move |c| pieces(whole).map(move |piece| ReadPiece::Piece(c..c + 1, piece)))
    });
    let chunks = chunks.into_iter().flatten().map(ReadPiece::Chunk);
    Box::new(chunks.chain(pieces.into_iter().flatten()))
}

/// Cuts a region into boxes of at most [`PIECE`] voxels, with whole rows if they are not longer.
fn pieces(region: Region) -> impl Iterator<Item = Region> + Send + use<> {
    let x = region.shape[2].clamp(1, PIECE);
    let y = region.shape[1].clamp(1, PIECE / x);
    let piece: Shape = [region.shape[0].clamp(1, PIECE / x / y), y, x];
    indices(chunk_range(&Region::whole(region.shape), piece)).map(move |index| {
        let mut part = chunk_region(index, piece);
        for a in 0..3 {
            let left = region.shape[a] - part.start[a].unsigned_abs();
            part.shape[a] = part.shape[a].min(left);
            part.start[a] += region.start[a];
        }
        part
    })
}

impl ReadPiece {
    /// Returns a measure of every channel of the part.
    fn measured<M: Measure>(
        self,
        (volume, mask): (&dyn Volume, Option<&dyn Volume>),
        measure: fn(&mut PieceBuffers) -> M,
    ) -> Result<Vec<(u64, M)>> {
        let layout = volume.layout();
        let mut values = PieceBuffers::new(layout);
        match self {
            Self::Piece(channels, region) => {
                let each = length(region.voxels()) * layout.dtype.size();
                let mut stored = vec![0; each * length(channels.end - channels.start)];
                volume.read_channels(channels.clone(), region, &mut stored)?;
                values.select(mask, region)?;
                let of = |(channel, stored)| {
                    values.room(region).copy_from_slice(stored);
                    (channel, measure(&mut values))
                };
                Ok(channels.zip(stored.chunks_exact(each)).map(of).collect())
            }
            Self::Chunk(index) => {
                let chunk = volume.read_chunk(index)?;
                let Some(region) = chunk.region.intersection(&Region::whole(layout.shape)) else {
                    return Ok(Vec::new());
                };
                let channels = chunk.channels.start..chunk.channels.end.min(layout.channels);
                let of = |channel: u64| {
                    let mut all = M::default();
                    for piece in pieces(region) {
                        let stored = values.room(piece);
                        chunk.copy_to(&(channel..channel + 1), piece, stored, layout.dtype.size());
                        values.select(mask, piece)?;
                        all = all.and(measure(&mut values));
                    }
                    Ok((channel, all))
                };
                channels.map(of).collect()
            }
        }
    }
}

/// Buffers for the voxels of a piece, as they are read and as f64, and for those of its mask.
struct PieceBuffers {
    dtype: DType,
    voxels: Vec<u8>,
    wide: Vec<f64>,
    /// Whether each voxel counts; empty if all do.
    selected: Vec<bool>,
}

impl PieceBuffers {
    fn new(layout: &Layout) -> Self {
        Self {
            dtype: layout.dtype,
            voxels: Vec::new(),
            wide: Vec::new(),
            selected: Vec::new(),
        }
    }

    /// Lets only voxels of a region count where a mask is not 0.
    fn select(&mut self, mask: Option<&dyn Volume>, region: Region) -> Result<()> {
        let Some(mask) = mask else { return Ok(()) };
        let (dtype, count) = (mask.layout().dtype, length(region.voxels()));
        let mut voxels = vec![0; count * dtype.size()];
        mask.read_channels(0..1, region, &mut voxels)?;
        let mut wide = vec![0.0_f64; count];
        convert(
            dtype,
            &voxels,
            DType::F64,
            bytemuck::cast_slice_mut(&mut wide),
        );
        self.selected.clear();
        self.selected.extend(wide.iter().map(|value| *value != 0.0));
        Ok(())
    }

    /// Resizes the buffers for a region, and returns the one for its voxels.
    fn room(&mut self, region: Region) -> &mut [u8] {
        let count = length(region.voxels());
        self.voxels.resize(count * self.dtype.size(), 0);
        self.wide.resize(count, 0.0);
        &mut self.voxels
    }

    /// Returns the voxels as f64.
    fn widened(&mut self) -> &mut [f64] {
        let wide = bytemuck::cast_slice_mut(&mut self.wide);
        convert(self.dtype, &self.voxels, DType::F64, wide);
        // The moments are those of the f32 values that the model gets. In a nearly constant volume, differences that
        // f32 rounds away would otherwise be scaled up to whole standard deviations.
        self.wide
            .iter_mut()
            .for_each(|value| *value = f64::from(single(*value)));
        // What is not finite does not count.
        let pairs = self.wide.iter_mut().zip(&self.selected);
        for (value, _) in pairs.filter(|(_, selected)| !**selected) {
            *value = f64::NAN;
        }
        &mut self.wide
    }

    fn moments(&mut self) -> Moments {
        Moments::of(self.widened())
    }

    fn nonzero_moments(&mut self) -> Moments {
        let wide = self.widened();
        for value in wide.iter_mut().filter(|value| **value == 0.0) {
            *value = f64::NAN;
        }
        Moments::of(wide)
    }

    fn histogram(&mut self) -> Counts {
        let mut counts = Histogram::new(self.dtype);
        for value in self.widened().iter().filter(|value| value.is_finite()) {
            counts.add(*value);
        }
        Counts(Some(counts))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "models take f32")]
fn single(value: f64) -> f32 {
    value as f32
}

fn length(n: u64) -> usize {
    usize::try_from(n).expect("a length of voxels in memory")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::patch::Patch;
    use crate::volume::MemoryVolume;

    /// Returns two channels of 5 x 6 x 7 voxels, the second ten times the first and far from 0.
    pub(crate) fn values() -> Vec<f64> {
        let first = (0..210_u32).map(|n| f64::from(n.wrapping_mul(2_654_435_761) >> 20) - 900.0);
        let first: Vec<f64> = first.collect();
        let second = first.iter().map(|v| 1e6 + 10.0 * v);
        first.iter().copied().chain(second).collect()
    }

    /// Returns the mean and the deviation.
    pub(crate) fn naive(values: &[f64]) -> (f64, f64) {
        let count = f64::from(u32::try_from(values.len()).unwrap());
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (mean, (squares / count).sqrt())
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * b.abs().max(1.0)
    }

    #[test]
    fn moments_equal_the_naive_ones_however_the_volume_is_stored() {
        let all = values();
        let volume = || MemoryVolume::from_vec([5, 6, 7], 2, all.clone()).unwrap();
        let mut seen = Vec::new();
        for chunk in [
            None,
            Some([1, 2, 4, 3]),
            Some([2, 3, 6, 4]),
            Some([3, 9, 9, 9]),
        ] {
            for threads in [1, 3] {
                let volume: Arc<dyn Volume> = match chunk {
                    Some(chunk) => Arc::new(volume().with_chunks(chunk)),
                    None => Arc::new(volume()),
                };
                let moments =
                    measured((&volume, None), threads, &silent, PieceBuffers::moments).unwrap();
                assert_eq!(moments.len(), 2);
                for (moments, values) in moments.iter().zip(all.chunks(210)) {
                    let (mean, deviation) = naive(values);
                    assert_eq!(moments.count, 210);
                    assert!(close(moments.mean, mean), "{moments:?} {mean}");
                    assert!(close(moments.deviation(), deviation), "{moments:?}");
                }
                seen.push((chunk, moments));
            }
        }
        for pair in seen.chunks(2) {
            assert_eq!(pair[0], pair[1], "to the last bit for any threads");
        }
    }

    #[test]
    fn pieces_cover_a_region_once_and_are_small() {
        for shape in [[3, 5, 7], [2, 700, 600], [1, 2, 600_001], [130, 64, 64]] {
            let region = Region::new([4, 0, 9], shape);
            let pieces: Vec<Region> = pieces(region).collect();
            assert!(
                pieces
                    .iter()
                    .all(|p| p.voxels() <= PIECE && region.contains(p))
            );
            assert_eq!(
                pieces.iter().map(Region::voxels).sum::<u64>(),
                region.voxels()
            );
            for (i, a) in pieces.iter().enumerate() {
                assert!(pieces[..i].iter().all(|b| a.intersection(b).is_none()));
            }
        }
    }

    #[test]
    fn each_channel_may_have_a_normalization_of_its_own() {
        let volume: Arc<dyn Volume> =
            Arc::new(MemoryVolume::from_vec([5, 6, 7], 2, values()).unwrap());
        let scales = |text: &str| {
            let normalizer = Normalizer::from(text.parse::<Normalize>().unwrap());
            normalizer.scales_of(&volume, 2, &silent)
        };
        let [one, other] = ["zscore", "percentile:1,90"].map(|text| scales(text).unwrap().unwrap());
        let mixed = scales("zscore;percentile:1,90").unwrap().unwrap();
        assert_eq!(mixed, Scales(vec![one.0[0], other.0[1]]));
        let turned = scales("percentile:1,90;zscore").unwrap().unwrap();
        assert_eq!(turned, Scales(vec![other.0[0], one.0[1]]));
        let kept = scales("none;mean-std:5,2").unwrap().unwrap();
        assert_eq!(kept.0[0], Scale::SAME);
        let mut same = [1.5, -0.0, f32::INFINITY];
        kept.apply_to(0, &mut same);
        assert_eq!(
            same.map(f32::to_bits),
            [1.5, -0.0, f32::INFINITY].map(f32::to_bits)
        );
        let error = scales("zscore;zscore;zscore").unwrap_err().to_string();
        assert!(
            error.contains("3 normalizations") && error.contains("2 channels"),
            "{error}"
        );
    }

    #[test]
    fn only_voxels_of_the_mask_are_measured() {
        let all = values();
        let mask: Vec<u8> = (0..210_u32)
            .map(|n| u8::from(n.wrapping_mul(2_654_435_761) >> 30 == 0) * 7)
            .collect();
        let selected = |values: &[f64]| -> Vec<f64> {
            let pairs = values.iter().zip(&mask);
            pairs
                .filter(|(_, mask)| **mask != 0)
                .map(|(value, _)| *value)
                .collect()
        };
        let percentile = |values: &[f64]| {
            let mut values = values.to_vec();
            values.sort_by(f64::total_cmp);
            values[values.len() - 1]
        };
        for chunk in [None, Some([2, 3, 4, 4])] {
            let memory = MemoryVolume::from_vec([5, 6, 7], 2, all.clone()).unwrap();
            let volume: Arc<dyn Volume> = match chunk {
                Some(chunk) => Arc::new(memory.with_chunks(chunk)),
                None => Arc::new(memory),
            };
            let masked = |text: &str, mask: Vec<u8>| {
                let mask = MemoryVolume::from_vec([5, 6, 7], 1, mask).unwrap();
                let normalizer = Normalizer::from(text.parse::<Normalize>().unwrap());
                let normalizer = normalizer.with_mask(Arc::new(mask.with_chunks([1, 4, 2, 7])));
                normalizer.scales_of(&volume, 3, &silent)
            };
            let scored = masked("zscore", mask.clone()).unwrap().unwrap();
            let clipped = masked("percentile:0,100", mask.clone()).unwrap().unwrap();
            for (channel, values) in all.chunks(210).enumerate() {
                let values = selected(values);
                let (mean, deviation) = naive(&values);
                assert!(close(scored.0[channel].zero, mean), "{scored:?} {mean}");
                assert!(close(scored.0[channel].unit, deviation));
                let most = percentile(&values);
                assert!((clipped.0[channel].high - most).abs() <= most.abs() / 8192.0);
            }
            let error = masked("zscore", vec![0; 210]).unwrap_err().to_string();
            assert!(error.contains("selects no voxel"), "{error}");
        }
    }

    #[test]
    fn a_mask_is_brought_to_the_grid_of_the_volume_or_must_have_its_shape() {
        use crate::geometry::Geometry;
        let shape = [4, 6, 8];
        let values: Vec<f32> = (0..192_u16).map(f32::from).collect();
        let volume = |geometry: Option<Geometry>| -> Arc<dyn Volume> {
            let mut layout = Layout::new(shape, 1, DType::F32);
            layout.geometry = geometry.unwrap_or_default();
            let patch = Patch::new(Region::whole(shape), 1, values.clone()).unwrap();
            Arc::new(MemoryVolume::from_patch(layout, patch).unwrap())
        };
        // The upper half along x, of voxels twice as large, with the axes turned around.
        let coarse: Vec<u8> = (0..24_u8).map(|n| u8::from(n % 4 < 2)).collect();
        let turned = Geometry::from_affine([
            [-2.0, 0.0, 0.0, 6.5],
            [0.0, 2.0, 0.0, 0.5],
            [0.0, 0.0, 2.0, 0.5],
            [0.0, 0.0, 0.0, 1.0],
        ]);
        let mask = |geometry: Option<Geometry>| -> Arc<dyn Volume> {
            let mut layout = Layout::new([2, 3, 4], 1, DType::U8);
            layout.geometry = geometry.unwrap_or_default();
            let patch = Patch::new(Region::whole([2, 3, 4]), 1, coarse.clone()).unwrap();
            Arc::new(MemoryVolume::from_patch(layout, patch).unwrap())
        };
        let placed = Geometry::from_spacing([1.0; 3]);
        let scored = |volume: Arc<dyn Volume>, mask: Arc<dyn Volume>| {
            Normalizer::from(Normalize::ZScore)
                .with_mask(mask)
                .scales_of(&volume, 1, &silent)
        };
        let found = scored(volume(Some(placed)), mask(Some(turned)))
            .unwrap()
            .unwrap();
        let upper: Vec<f64> = (0..192_u8).filter(|n| n % 8 >= 4).map(f64::from).collect();
        assert!(close(found.0[0].zero, naive(&upper).0), "{found:?}");
        let error = scored(volume(None), mask(Some(turned)))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("[2, 3, 4]") && error.contains("[4, 6, 8]"),
            "{error}"
        );
    }

    #[test]
    fn deviations_do_not_overflow_or_cancel() {
        let deviation = |values: &[f64]| Moments::of(values).deviation();
        assert_eq!(deviation(&[1e300; 9]), 0.0);
        assert!(close(deviation(&[1e9, 1e9 + 1.0]), 0.5));
    }

    #[test]
    fn values_that_are_not_numbers_do_not_count() {
        let values = vec![1.0_f32, f32::NAN, 3.0, f32::INFINITY];
        let volume = MemoryVolume::from_vec([1, 2, 2], 1, values).unwrap();
        let volume: Arc<dyn Volume> = Arc::new(volume);
        let moments = measured((&volume, None), 1, &silent, PieceBuffers::moments).unwrap()[0];
        assert_eq!(
            (moments.count, moments.mean, moments.deviation()),
            (2, 2.0, 1.0)
        );
        assert_eq!(Moments::of(&[f64::NAN; 3]).with(moments), moments);
    }

    #[test]
    fn names_are_read_and_written_and_wrong_ones_refused() {
        for text in [
            "none",
            "zscore",
            "zscore:nonzero",
            "window:-1000,400",
            "window:-0.5,1.5",
            "percentile:0.5,99.5",
            "mean-std:-3,0.5",
            "nnunet-ct:-968,326,101,77",
        ] {
            let normalize: Normalize = text.parse().unwrap();
            assert_eq!(normalize.to_string(), text);
        }
        let channels: Normalize = "mean-std:101,77; -12,5;zscore;none;window:0,1;2,3"
            .parse()
            .unwrap();
        assert_eq!(
            "zscore; ".trim().parse::<Normalize>().unwrap().to_string(),
            "zscore;"
        );
        let text = "mean-std:101,77;mean-std:-12,5;zscore;none;window:0,1;window:2,3";
        assert_eq!(channels.to_string(), text);
        assert_eq!(text.parse::<Normalize>().unwrap(), channels);
        for text in [
            "",
            ";",
            "zscore;;",
            "zscore;1,2",
            "mean-std:1,2;3",
            "none;5,6",
            "z",
            "window",
            "window:",
            "window:1",
            "window:2,1",
            "window:1,1",
            "window:nan,1",
            "window:0,inf",
            "none:1",
            "none:",
            "zscore:",
            "zscore:1",
            "percentile:1",
            "percentile:-1,5",
            "percentile:5,5",
            "percentile:0,101",
            "mean-std:1,0",
            "mean-std:1",
            "nnunet-ct:1,2,3",
            "nnunet-ct:2,1,0,1",
            "nnunet-ct:1,2,0,0",
            "ct:0,1",
            "nnunet-ct:1,2,nan,1",
        ] {
            let error = text.parse::<Normalize>().unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }), "{text}");
        }
    }
}
