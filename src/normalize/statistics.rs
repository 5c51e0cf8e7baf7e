//! Statistics of volumes, in one pass: moments and percentiles, of all voxels and of each label.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::{Map, Value as Json, json};

use super::histogram::Histogram;
use super::{Moments, ReadPiece, parts};
use crate::dtype::{DType, convert};
use crate::error::{Error, Result};
use crate::progress::{Progress, report};
use crate::queue::Queue;
use crate::region::Region;
use crate::threads::threads;
use crate::volume::{
    FileKind, Hash, Layout, Matching, Overwrite, StagedFile, Volume, VolumeExt, input_fingerprint,
};

/// The most labels of one volume. More are numbers of instances, or intensities.
const MAX_LABELS: usize = 1 << 16;

/// The version of saved statistics.
const VERSION: u64 = 1;

/// Statistics of the voxels of a volume, or of those of several volumes together.
///
/// They do not depend on the number of threads, and those of several volumes are the ones of all their voxels, in any
/// order, within rounding. Memory is bounded: a piece of the volume per thread, and counts of values, at most 16 MiB for each
/// channel and label.
///
/// ```
/// use std::sync::Arc;
/// use voxpatch::normalize::{Statistics, StatisticsOptions};
/// use voxpatch::{MemoryVolume, Volume, progress};
///
/// # fn main() -> voxpatch::Result<()> {
/// let scan: Arc<dyn Volume> = Arc::new(MemoryVolume::from_vec([1, 2, 3], 1, vec![0_i16, 1, 2, 3, 4, 8])?);
/// let found = Statistics::of(&scan, None, &StatisticsOptions::default(), &progress::silent)?;
/// let all = found.channels()[0].all();
/// assert_eq!((all.count(), all.mean(), all.percentile(50.0)), (6, Some(3.0), Some(2.5)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    volumes: u64,
    channels: Vec<ChannelStatistics>,
    labels: BTreeMap<i64, u64>,
    /// The boxes of the labels, while they are those of one volume.
    boxes: BTreeMap<i64, Region>,
    nonzero_box: Option<Region>,
}

/// A function that opens a volume by its number, with its label map if it has one.
pub type OpenInput<'a> =
    dyn Fn(usize) -> Result<(Arc<dyn Volume>, Option<Arc<dyn Volume>>)> + Sync + 'a;

/// Options of [`Statistics::of`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StatisticsOptions {
    /// The label whose voxels do not count.
    pub ignore_label: Option<i64>,
    /// Threads that read and measure; all cores by default.
    pub threads: usize,
    /// A folder in which the result of each volume is kept. A volume whose files have the same paths, sizes and times as
    /// then is not measured again.
    pub results: Option<PathBuf>,
}

impl Default for StatisticsOptions {
    fn default() -> Self {
        Self {
            ignore_label: None,
            threads: threads(),
            results: None,
        }
    }
}

impl StatisticsOptions {
    /// Sets the label whose voxels do not count.
    #[must_use]
    pub fn with_ignore_label(self, ignore_label: Option<i64>) -> Self {
        Self {
            ignore_label,
            ..self
        }
    }

    /// Sets the number of threads.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Sets the folder of kept results.
    #[must_use]
    pub fn with_results(self, results: Option<PathBuf>) -> Self {
        Self { results, ..self }
    }
}

/// The kept result of a volume.
const RESULT: FileKind = FileKind {
    name: "statistics of a volume",
    recognizes: |head| head.starts_with(br#"{"input":["#),
};

/// Returns the result that an earlier run kept for this input.
fn kept(path: &Path, input: &Json) -> Option<Statistics> {
    let text = fs::read_to_string(path).ok()?;
    let known: Json = serde_json::from_str(&text).ok()?;
    (known["input"] == *input).then(|| Statistics::loaded(&known["statistics"]))?
}

/// Statistics of a channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelStatistics {
    all: Summary,
    nonzero: Summary,
    labels: BTreeMap<i64, Summary>,
}

/// The number of some values, their range, mean, deviation and percentiles. Values that are NaN or infinite are counted apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    not_finite: u64,
    range: Option<(f64, f64)>,
    moments: Moments,
    counts: Option<Histogram>,
}

impl Summary {
    fn of(values: &[f64], dtype: DType) -> Self {
        let moments = Moments::of(values);
        let mut counts = Histogram::new(dtype);
        let mut range = None;
        for &value in values.iter().filter(|value| value.is_finite()) {
            counts.add(value);
            let (low, high) = range.unwrap_or((value, value));
            range = Some((value.min(low), value.max(high)));
        }
        Self {
            not_finite: values.len() as u64 - moments.count,
            range,
            moments,
            counts: (moments.count > 0).then_some(counts),
        }
    }

    /// Adds the values of another summary.
    fn merge(&mut self, other: &Self) {
        self.not_finite += other.not_finite;
        self.range = match (self.range, other.range) {
            (Some((low, high)), Some((least, most))) => Some((low.min(least), high.max(most))),
            (one, other) => one.or(other),
        };
        self.moments = self.moments.with(other.moments);
        match (&mut self.counts, &other.counts) {
            (Some(own), Some(other)) => own.merge(other),
            (own, other) => *own = own.take().or_else(|| other.clone()),
        }
    }

    /// The number of finite values.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.moments.count
    }

    /// The number of values that are NaN or infinite.
    #[must_use]
    pub const fn not_finite(&self) -> u64 {
        self.not_finite
    }

    /// The lowest value; `None` if there are none.
    #[must_use]
    pub fn minimum(&self) -> Option<f64> {
        self.range.map(|(low, _)| low)
    }

    /// The highest value.
    #[must_use]
    pub fn maximum(&self) -> Option<f64> {
        self.range.map(|(_, high)| high)
    }

    /// The mean.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count() > 0).then_some(self.moments.mean)
    }

    /// The standard deviation, with the number of values as the divisor.
    #[must_use]
    pub fn std(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.moments.deviation())
    }

    /// Returns a percentile from 0 to 100, as `numpy.percentile` interpolates it: exact for types of 8 and 16 bits, with an
    /// error of at most 1/8192 of its value for others.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        let (low, high) = self.range?;
        let found = self.counts.as_ref()?.percentile(percent)?;
        Some(found.clamp(low, high))
    }

    /// The largest error of a percentile as a part of its value; 0 if percentiles are exact.
    #[must_use]
    pub fn percentile_error(&self) -> f64 {
        let is_exact = self.counts.as_ref().is_none_or(Histogram::is_exact);
        if is_exact { 0.0 } else { Histogram::ERROR }
    }

    fn to_json(&self, percentiles: &[f64]) -> Json {
        let each = percentiles.iter().map(|&percent| {
            let value = self.percentile(percent).map_or(Json::Null, Json::from);
            (percent.to_string(), value)
        });
        json!({
            "count": self.count(),
            "not_finite": self.not_finite,
            "minimum": self.minimum(),
            "maximum": self.maximum(),
            "mean": self.mean(),
            "std": self.std(),
            "percentiles": each.collect::<Map<String, Json>>(),
            "percentile_error": self.percentile_error(),
        })
    }

    fn saved(&self) -> Json {
        let bits = |value: f64| value.to_bits();
        json!([
            self.not_finite,
            self.range.map(|(low, high)| [bits(low), bits(high)]),
            [
                self.moments.count,
                bits(self.moments.mean),
                bits(self.moments.squares)
            ],
            self.counts.as_ref().map(Histogram::saved),
        ])
    }

    fn loaded(saved: &Json) -> Option<Self> {
        let float = |saved: &Json| saved.as_u64().map(f64::from_bits);
        let range = match &saved[1] {
            Json::Null => None,
            range => Some((float(&range[0])?, float(&range[1])?)),
        };
        let counts = match &saved[3] {
            Json::Null => None,
            counts => Some(Histogram::loaded(counts)?),
        };
        Some(Self {
            not_finite: saved[0].as_u64()?,
            range,
            moments: Moments {
                count: saved[2][0].as_u64()?,
                mean: float(&saved[2][1])?,
                squares: float(&saved[2][2])?,
            },
            counts,
        })
    }
}

impl ChannelStatistics {
    /// All voxels, except those with the label that is ignored.
    #[must_use]
    pub const fn all(&self) -> &Summary {
        &self.all
    }

    /// The voxels whose value is not 0.
    #[must_use]
    pub const fn nonzero(&self) -> &Summary {
        &self.nonzero
    }

    /// The voxels of each label; none without a label map.
    #[must_use]
    pub const fn labels(&self) -> &BTreeMap<i64, Summary> {
        &self.labels
    }

    /// Returns the voxels whose label is not 0.
    #[must_use]
    pub fn foreground(&self) -> Summary {
        let mut foreground = Summary::default();
        let others = self.labels.iter().filter(|(label, _)| **label != 0);
        others.for_each(|(_, own)| foreground.merge(own));
        foreground
    }

    fn merge(&mut self, other: &Self) {
        self.all.merge(&other.all);
        self.nonzero.merge(&other.nonzero);
        for (label, own) in &other.labels {
            self.labels.entry(*label).or_default().merge(own);
        }
    }

    fn to_json(&self, percentiles: &[f64]) -> Json {
        let mut all = self.all.to_json(percentiles);
        all["nonzero"] = self.nonzero.to_json(percentiles);
        if !self.labels.is_empty() {
            all["foreground"] = self.foreground().to_json(percentiles);
            let labels = self.labels.iter();
            let labels = labels.map(|(label, own)| (label.to_string(), own.to_json(percentiles)));
            all["labels"] = Json::Object(labels.collect());
        }
        all
    }
}

/// What a piece of a volume has.
struct Piece {
    channels: Vec<(u64, ChannelStatistics)>,
    /// The voxels and the box of each label, in the pieces of the first channel.
    labels: BTreeMap<i64, (u64, Region)>,
    nonzero_box: Option<Region>,
}

impl Statistics {
    /// Measures a volume, and the voxels of each label if there is a label map of the same extent, whose first channel has
    /// the labels. `progress` counts pieces of the volume.
    ///
    /// # Errors
    ///
    /// The errors of reading, of [`Matching::on_grid_of`], and [`Error::Interrupted`]; [`Error::InvalidArgument`] if a label
    /// is not a whole number, or there are more than 65 536. With [`StatisticsOptions::results`], those of writing, and
    /// [`Error::NoIdentity`] if a volume cannot identify its voxels.
    pub fn of(
        volume: &Arc<dyn Volume>,
        labels: Option<&Arc<dyn Volume>>,
        options: &StatisticsOptions,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let Some(folder) = &options.results else {
            return Self::measured(volume, labels, options, progress);
        };
        let identity = |volume: &Arc<dyn Volume>| input_fingerprint(&**volume);
        let of = json!([
            identity(volume)?,
            labels.map(identity).transpose()?,
            options.ignore_label
        ]);
        let mut hash = Hash::default();
        hash.add(of.to_string().as_bytes());
        let path = folder.join(format!("{:032x}.json", hash.0));
        if let Some(found) = kept(&path, &of) {
            return Ok(found);
        }
        let found = Self::measured(volume, labels, options, progress)?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let file = StagedFile::new(&path, Overwrite::File(RESULT))?;
        let text = json!({"input": of, "statistics": found.saved()}).to_string();
        let mut writer = file.file();
        writer
            .write_all(text.as_bytes())
            .map_err(Error::io("write", &path))?;
        file.finish()?;
        Ok(found)
    }

    /// Measures several volumes, small ones side by side. `open` opens each of `count`, with its label map if it has one;
    /// a volume is closed once it is measured. `progress` counts volumes, or the pieces of the only one.
    ///
    /// # Errors
    ///
    /// The first error of `open`, and of [`of`](Self::of).
    pub fn of_all(
        count: usize,
        open: &OpenInput<'_>,
        options: &StatisticsOptions,
        progress: Progress<'_>,
    ) -> Result<Vec<(Self, Layout)>> {
        let side_by_side = options.threads.min(count).max(1);
        let own = options
            .clone()
            .with_threads((options.threads / side_by_side).max(1));
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let results: Vec<Mutex<Option<Result<_>>>> = (0..count).map(|_| Mutex::default()).collect();
        let told = |steps: u64, total: u64| match count {
            1 => progress(steps, total),
            _ => progress(done.load(Ordering::Relaxed), count as u64),
        };
        let measure = |n: usize| {
            let (volume, labels) = open(n)?;
            let found = Self::of(&volume, labels.as_ref(), &own, &told)?;
            done.fetch_add(1, Ordering::Relaxed);
            Ok((found, volume.layout().clone()))
        };
        let work = || {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(result) = results.get(n) else { return };
                let found = measure(n);
                if found.is_err() {
                    next.store(count, Ordering::Relaxed);
                }
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
            }
        };
        thread::scope(|scope| {
            (1..side_by_side).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        let found = results
            .into_iter()
            .filter_map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner));
        found.collect()
    }

    fn measured(
        volume: &Arc<dyn Volume>,
        labels: Option<&Arc<dyn Volume>>,
        options: &StatisticsOptions,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let (ignore, threads) = (options.ignore_label, options.threads);
        let layout = volume.layout();
        let labels =
            labels.map(|labels| Matching::default().on_grid_of(layout, Arc::clone(labels)));
        let labels = labels.transpose()?;
        let threads = if volume.is_sequential() {
            1
        } else {
            threads.max(1)
        };
        let total = parts(&**volume).count() as u64;
        let work = {
            let volume = Arc::clone(volume);
            move |part: ReadPiece| measured(&*volume, labels.as_deref(), ignore, part)
        };
        let channels = usize::try_from(layout.channels).unwrap_or(usize::MAX);
        let mut all = Self {
            volumes: 1,
            channels: vec![ChannelStatistics::default(); channels],
            ..Self::default()
        };
        let mut done = 0;
        report(progress, done, total)?;
        for piece in Queue::new(parts(&**volume), threads, threads, work) {
            let piece = piece?;
            for (channel, found) in &piece.channels {
                all.channels[super::length(*channel)].merge(found);
            }
            for (label, (count, own)) in piece.labels {
                *all.labels.entry(label).or_default() += count;
                let held = all.boxes.entry(label).or_insert(own);
                *held = union(*held, own);
            }
            if all.labels.len() > MAX_LABELS {
                return Err(Error::InvalidArgument {
                    argument: "label map",
                    value: format!("of {}", layout.path.display()),
                    problem: format!("it has more than {MAX_LABELS} labels"),
                });
            }
            let held = all.nonzero_box.zip(piece.nonzero_box);
            let both = held.map(|(one, other)| union(one, other));
            all.nonzero_box = both.or(all.nonzero_box).or(piece.nonzero_box);
            done += 1;
            report(progress, done, total)?;
        }
        Ok(all)
    }

    /// Adds the voxels of other volumes, channel by channel. There are no boxes of several volumes.
    pub fn merge(&mut self, other: &Self) {
        if self.volumes == 0 {
            *self = other.clone();
            return;
        }
        self.volumes += other.volumes;
        self.boxes.clear();
        self.nonzero_box = None;
        let count = self.channels.len().max(other.channels.len());
        self.channels.resize_with(count, ChannelStatistics::default);
        for (own, other) in self.channels.iter_mut().zip(&other.channels) {
            own.merge(other);
        }
        for (label, count) in &other.labels {
            *self.labels.entry(*label).or_default() += count;
        }
    }

    /// The number of volumes.
    #[must_use]
    pub const fn volumes(&self) -> u64 {
        self.volumes
    }

    /// The channels.
    #[must_use]
    pub fn channels(&self) -> &[ChannelStatistics] {
        &self.channels
    }

    /// The voxels of each label.
    #[must_use]
    pub const fn labels(&self) -> &BTreeMap<i64, u64> {
        &self.labels
    }

    /// The smallest box with all voxels of a label; `None` without that label, and of several volumes.
    #[must_use]
    pub fn label_box(&self, label: i64) -> Option<Region> {
        self.boxes.get(&label).copied()
    }

    /// The smallest box with all voxels that are not 0 in some channel; `None` if there are none, and of several volumes.
    #[must_use]
    pub const fn nonzero_box(&self) -> Option<Region> {
        self.nonzero_box
    }

    /// Returns all statistics, with these percentiles, as a JSON object. Boxes are the first voxel along z, y, x, and one
    /// past the last.
    #[must_use]
    pub fn to_json(&self, percentiles: &[f64]) -> Json {
        let corners = |region: Region| {
            let ([z, y, x], [dz, dy, dx]) = (region.start, region.end());
            [z, y, x, dz, dy, dx]
        };
        let channels = self.channels.iter().map(|own| own.to_json(percentiles));
        let labels = self.labels.iter().map(|(label, voxels)| {
            let mut own = json!({"voxels": voxels});
            if let Some(found) = self.label_box(*label) {
                own["box"] = json!(corners(found));
            }
            (label.to_string(), own)
        });
        let mut all = json!({
            "volumes": self.volumes,
            "channels": channels.collect::<Vec<Json>>(),
        });
        if !self.labels.is_empty() {
            all["labels"] = Json::Object(labels.collect());
        }
        if self.volumes == 1 {
            all["nonzero_box"] = json!(self.nonzero_box.map(corners));
        }
        all
    }

    /// Returns the statistics of all volumes together, as `all`, and those of each as [`to_json`](Self::to_json) gives them,
    /// with its path, shape, spacing and type, as `volumes`.
    #[must_use]
    pub fn report(found: &[(Self, Layout)], percentiles: &[f64]) -> Json {
        let mut all = Self::default();
        for (own, _) in found {
            all.merge(own);
        }
        let each = found.iter().map(|(own, layout)| {
            let mut one = own.to_json(percentiles);
            one["path"] = json!(layout.path);
            one["shape"] = json!(layout.shape);
            one["spacing"] = json!(layout.geometry.spacing);
            one["dtype"] = json!(layout.dtype.name());
            one
        });
        json!({"all": all.to_json(percentiles), "volumes": each.collect::<Vec<Json>>()})
    }

    /// Returns the statistics in a form that [`loaded`](Self::loaded) reads, bit for bit.
    #[must_use]
    pub fn saved(&self) -> Json {
        let region = |region: &Region| json!([region.start, region.shape]);
        let channel = |own: &ChannelStatistics| {
            let labels = own
                .labels
                .iter()
                .map(|(label, own)| json!([label, own.saved()]));
            json!([
                own.all.saved(),
                own.nonzero.saved(),
                labels.collect::<Vec<Json>>()
            ])
        };
        let labels = self
            .labels
            .iter()
            .map(|(label, count)| json!([label, count, self.boxes.get(label).map(region)]));
        json!({
            "version": VERSION,
            "volumes": self.volumes,
            "channels": self.channels.iter().map(channel).collect::<Vec<Json>>(),
            "labels": labels.collect::<Vec<Json>>(),
            "nonzero": self.nonzero_box.as_ref().map(region),
        })
    }

    /// Returns saved statistics; `None` if they are damaged, or of another version.
    #[must_use]
    pub fn loaded(saved: &Json) -> Option<Self> {
        if saved["version"].as_u64()? != VERSION {
            return None;
        }
        let region = |saved: &Json| -> Option<Option<Region>> {
            if saved.is_null() {
                return Some(None);
            }
            let start = serde_json::from_value(saved[0].clone()).ok()?;
            let shape = serde_json::from_value(saved[1].clone()).ok()?;
            Some(Some(Region::new(start, shape)))
        };
        let mut all = Self {
            volumes: saved["volumes"].as_u64()?,
            nonzero_box: region(&saved["nonzero"])?,
            ..Self::default()
        };
        for own in saved["channels"].as_array()? {
            let mut channel = ChannelStatistics {
                all: Summary::loaded(&own[0])?,
                nonzero: Summary::loaded(&own[1])?,
                labels: BTreeMap::new(),
            };
            for own in own[2].as_array()? {
                channel
                    .labels
                    .insert(own[0].as_i64()?, Summary::loaded(&own[1])?);
            }
            all.channels.push(channel);
        }
        for own in saved["labels"].as_array()? {
            let label = own[0].as_i64()?;
            all.labels.insert(label, own[1].as_u64()?);
            if let Some(found) = region(&own[2])? {
                all.boxes.insert(label, found);
            }
        }
        Some(all)
    }
}

/// Measures a piece of a volume.
fn measured(
    volume: &dyn Volume,
    labels: Option<&dyn Volume>,
    ignore: Option<i64>,
    part: ReadPiece,
) -> Result<Piece> {
    let layout = volume.layout();
    let (dtype, size) = (layout.dtype, layout.dtype.size());
    let mut piece = Piece {
        channels: Vec::new(),
        labels: BTreeMap::new(),
        nonzero_box: None,
    };
    let mut values = Vec::new();
    match part {
        ReadPiece::Piece(channels, region) => {
            let each = super::length(region.voxels()) * size;
            let mut stored = vec![0; each * super::length(channels.end - channels.start)];
            volume.read_channels(channels.clone(), region, &mut stored)?;
            let named = labels.map(|labels| labels_of(labels, region)).transpose()?;
            for (channel, stored) in channels.zip(stored.chunks_exact(each)) {
                widen(dtype, stored, &mut values);
                piece.add(channel, region, (&values, dtype), named.as_deref(), ignore);
            }
        }
        ReadPiece::Chunk(index) => {
            let chunk = volume.read_chunk(index)?;
            let Some(region) = chunk.region.intersection(&Region::whole(layout.shape)) else {
                return Ok(piece);
            };
            let channels = chunk.channels.start..chunk.channels.end.min(layout.channels);
            for part in super::pieces(region) {
                let named = labels.map(|labels| labels_of(labels, part)).transpose()?;
                let mut stored = vec![0; super::length(part.voxels()) * size];
                for channel in channels.clone() {
                    chunk.copy_to(&(channel..channel + 1), part, &mut stored, size);
                    widen(dtype, &stored, &mut values);
                    piece.add(channel, part, (&values, dtype), named.as_deref(), ignore);
                }
            }
        }
    }
    Ok(piece)
}

fn widen(dtype: DType, stored: &[u8], values: &mut Vec<f64>) {
    values.resize(stored.len() / dtype.size(), 0.0);
    convert(dtype, stored, DType::F64, bytemuck::cast_slice_mut(values));
}

/// Reads the labels of a region of at most [`PIECE`] voxels, as numbers.
fn labels_of(labels: &dyn Volume, region: Region) -> Result<Vec<i64>> {
    let dtype = labels.layout().dtype;
    let mut stored = vec![0; super::length(region.voxels()) * dtype.size()];
    labels.read_channels(0..1, region, &mut stored)?;
    let mut values = Vec::new();
    widen(dtype, &stored, &mut values);
    let whole = |value: &f64| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "checked to be whole and small"
        )]
        let label = *value as i64;
        if value.fract() == 0.0 && value.abs() < 9e15 {
            return Ok(label);
        }
        Err(Error::InvalidArgument {
            argument: "label map",
            value: labels.layout().path.display().to_string(),
            problem: format!("{value} is not a label: labels are whole numbers below 9e15"),
        })
    };
    values.iter().map(whole).collect()
}

impl Piece {
    fn add(
        &mut self,
        channel: u64,
        region: Region,
        (values, dtype): (&[f64], DType),
        labels: Option<&[i64]>,
        ignore: Option<i64>,
    ) {
        let mut found = ChannelStatistics::default();
        let is_kept = |n: usize| labels.is_none_or(|labels| Some(labels[n]) != ignore);
        let mut kept = Vec::new();
        if let Some(labels) = labels {
            let mut by_label: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
            let mut start = 0;
            for run in labels.chunk_by(|a, b| a == b) {
                let end = start + run.len();
                if Some(run[0]) != ignore {
                    let own = by_label.entry(run[0]).or_default();
                    own.extend_from_slice(&values[start..end]);
                    kept.extend_from_slice(&values[start..end]);
                    if channel == 0 {
                        self.add_label(run[0], region, start..end);
                    }
                }
                start = end;
            }
            let own = by_label.into_iter();
            found.labels = own
                .map(|(label, own)| (label, Summary::of(&own, dtype)))
                .collect();
        }
        let kept = if labels.is_some() { &kept } else { values };
        found.all = Summary::of(kept, dtype);
        let nonzero: Vec<f64> = kept.iter().copied().filter(|value| *value != 0.0).collect();
        found.nonzero = Summary::of(&nonzero, dtype);
        let width = super::length(region.shape[2]);
        for (row, own) in values.chunks_exact(width).enumerate() {
            let is_something = |n: &usize| own[*n] != 0.0 && is_kept(row * width + n);
            let first = (0..width).find(is_something);
            let last = (0..width).rev().find(is_something);
            for n in [first, last].into_iter().flatten() {
                let own = voxel(region, row * width + n);
                self.nonzero_box = Some(self.nonzero_box.map_or(own, |held| union(held, own)));
            }
        }
        match self
            .channels
            .iter_mut()
            .find(|(known, _)| *known == channel)
        {
            Some((_, known)) => known.merge(&found),
            None => self.channels.push((channel, found)),
        }
    }

    /// Adds a run of voxels of a label, which may go over the ends of rows.
    fn add_label(&mut self, label: i64, region: Region, run: std::ops::Range<usize>) {
        let (first, last) = (voxel(region, run.start), voxel(region, run.end - 1));
        let mut own = union(first, last);
        // A run over the end of a plane has the last row of one and the first row of another, and so on for rows.
        let is_over = [
            first.start[0] != last.start[0],
            first.start[1] != last.start[1],
        ];
        for a in [1, 2] {
            if is_over[..a].contains(&true) {
                (own.start[a], own.shape[a]) = (region.start[a], region.shape[a]);
            }
        }
        let (count, held) = self.labels.entry(label).or_insert((0, own));
        *count += run.len() as u64;
        *held = union(*held, own);
    }
}

/// Returns the box of one voxel of a region.
fn voxel(region: Region, n: usize) -> Region {
    let (n, [_, ny, nx]) = (n as u64, region.shape);
    let at = [n / (ny * nx), n / nx % ny, n % nx];
    Region::new(
        std::array::from_fn(|a| region.start[a].saturating_add_unsigned(at[a])),
        [1; 3],
    )
}

/// Returns the smallest box with both.
fn union(one: Region, other: Region) -> Region {
    let start: [i64; 3] = std::array::from_fn(|a| one.start[a].min(other.start[a]));
    let end: [i64; 3] = std::array::from_fn(|a| one.end()[a].max(other.end()[a]));
    Region::new(start, std::array::from_fn(|a| end[a].abs_diff(start[a])))
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::dtype::{Element, with_element};
    use crate::progress::silent;
    use crate::volume::{MemoryVolume, VolumeMut};

    const SHAPE: [u64; 3] = [7, 9, 11];

    fn options(threads: usize) -> StatisticsOptions {
        StatisticsOptions::default().with_threads(threads)
    }

    fn volume(
        values: &[f64],
        channels: u64,
        dtype: DType,
        chunk: Option<[u64; 4]>,
    ) -> Arc<dyn Volume> {
        let volume = MemoryVolume::zeros(Layout::new(SHAPE, channels, dtype)).unwrap();
        let voxels = with_element!(dtype, T => {
            let own: Vec<T> = values.iter().map(|&value| T::from_f64(value)).collect();
            bytemuck::cast_slice(&own).to_vec()
        });
        volume.write(Region::whole(SHAPE), &voxels).unwrap();
        match chunk {
            Some(chunk) => Arc::new(volume.with_chunks(chunk)),
            None => Arc::new(volume),
        }
    }

    /// Returns values of a type, of which a third are 0.
    fn values(dtype: DType, count: usize, salt: u32) -> Vec<f64> {
        let (least, most) = dtype.range();
        let one = |n: u32| {
            let wild = f64::from((n + salt).wrapping_mul(2_654_435_761) >> 9) / 31.0 - 9e4;
            let wild = if n.is_multiple_of(3) {
                0.0
            } else {
                wild.clamp(least.max(-6e4), most.min(6e4))
            };
            match dtype {
                DType::F16 => f16::from_f64(wild).to_f64(),
                DType::F32 => f64::from(super::super::single(wild)),
                DType::Bool => f64::from(u8::from(wild > 0.5)),
                _ if dtype.is_float() => wild,
                _ => wild.round(),
            }
        };
        (0..u32::try_from(count).unwrap()).map(one).collect()
    }

    fn check(found: &Summary, own: &[f64], dtype: DType) {
        assert_eq!(found.count(), own.len() as u64);
        if own.is_empty() {
            assert_eq!(
                (found.mean(), found.minimum(), found.percentile(50.0)),
                (None, None, None)
            );
            return;
        }
        let count = f64::from(u32::try_from(own.len()).unwrap());
        let mean = own.iter().sum::<f64>() / count;
        let std = (own.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt();
        let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() <= 1e-9 * b.abs().max(1.0);
        assert!(
            close(found.mean(), mean) && close(found.std(), std),
            "{dtype} {mean} {std}"
        );
        let mut sorted = own.to_vec();
        sorted.sort_by(f64::total_cmp);
        assert_eq!(found.minimum(), sorted.first().copied());
        assert_eq!(found.maximum(), sorted.last().copied());
        for percent in [0.0, 0.5, 25.0, 50.0, 99.5, 100.0] {
            let at = (count - 1.0) * percent / 100.0;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "small"
            )]
            let rank = at.floor() as usize;
            let next = sorted[(rank + 1).min(sorted.len() - 1)];
            let expected = sorted[rank] + (next - sorted[rank]) * at.fract();
            let near = found.percentile_error() * sorted[rank].abs().max(next.abs()) + 1e-9;
            let apart = (found.percentile(percent).unwrap() - expected).abs();
            assert!(apart <= near, "{dtype} {percent}: {apart}");
        }
    }

    #[test]
    fn statistics_equal_plain_loops_for_every_type_and_layout() {
        let count = usize::try_from(SHAPE.iter().product::<u64>()).unwrap();
        let label = |n: usize| [0.0, 5.0, -2.0, 9.0, 5.0, 0.0][n / 40 % 6];
        let named: Vec<f64> = (0..count).map(label).collect();
        for (case, dtype) in (0_u32..).zip(DType::ALL) {
            let all = values(dtype, 2 * count, case);
            for chunk in [None, Some([1, 3, 4, 5]), Some([2, 9, 9, 4])] {
                let scan = volume(&all, 2, dtype, chunk);
                let map = volume(&named, 1, DType::I16, Some([1, 4, 5, 6]));
                let mut seen: Option<Statistics> = None;
                for threads in [1, 3] {
                    let found = Statistics::of(
                        &scan,
                        Some(&map),
                        &options(threads).with_ignore_label(Some(9)),
                        &silent,
                    )
                    .unwrap();
                    if let Some(seen) = &seen {
                        assert_eq!(seen, &found, "for any threads");
                    }
                    assert_eq!(Statistics::loaded(&found.saved()).as_ref(), Some(&found));
                    seen = Some(found);
                }
                let found = seen.unwrap();
                assert_eq!(
                    found.labels().keys().copied().collect::<Vec<_>>(),
                    [-2, 0, 5]
                );
                for (channel, own) in found.channels().iter().zip(all.chunks(count)) {
                    let of = |is: &dyn Fn(f64, f64) -> bool| -> Vec<f64> {
                        let pairs = own.iter().zip(&named).filter(|(_, label)| **label != 9.0);
                        let kept = pairs.filter(|(value, label)| is(**value, **label));
                        kept.map(|(value, _)| *value).collect()
                    };
                    check(channel.all(), &of(&|_, _| true), dtype);
                    check(channel.nonzero(), &of(&|value, _| value != 0.0), dtype);
                    check(&channel.foreground(), &of(&|_, label| label != 0.0), dtype);
                    check(&channel.labels()[&5], &of(&|_, label| label == 5.0), dtype);
                    check(
                        &channel.labels()[&-2],
                        &of(&|_, label| label == -2.0),
                        dtype,
                    );
                }
                let around = |is: &dyn Fn(usize) -> bool| {
                    let places = (0..count).filter(|n| is(*n));
                    places.map(|n| voxel(Region::whole(SHAPE), n)).reduce(union)
                };
                for label in [-2, 0, 5] {
                    #[expect(clippy::cast_precision_loss, reason = "small")]
                    let is = |n: usize| named[n].to_bits() == (label as f64).to_bits();
                    assert_eq!(found.label_box(label), around(&is), "{label}");
                    let voxels = (0..count).filter(|n| is(*n)).count() as u64;
                    assert_eq!(found.labels()[&label], voxels);
                }
                let is = |n: usize| named[n] != 9.0 && (all[n] != 0.0 || all[count + n] != 0.0);
                assert_eq!(found.nonzero_box(), around(&is));
            }
        }
    }

    #[test]
    fn statistics_of_several_volumes_are_those_of_all_voxels() {
        let count = usize::try_from(SHAPE.iter().product::<u64>()).unwrap();
        let mut all = Statistics::default();
        let mut together = Vec::new();
        for salt in 0..4 {
            let own = values(DType::I16, count, salt);
            let scan = volume(&own, 1, DType::I16, None);
            all.merge(&Statistics::of(&scan, None, &options(1), &silent).unwrap());
            together.extend(own);
        }
        check(all.channels()[0].all(), &together, DType::I16);
        assert_eq!((all.volumes(), all.nonzero_box()), (4, None));
        let report = all.to_json(&[50.0]);
        assert_eq!(report["channels"][0]["count"], together.len());
        assert!(report["channels"][0]["percentiles"]["50"].is_number());
    }

    #[test]
    fn values_that_are_not_finite_are_counted_apart_and_labels_must_be_whole() {
        let count = usize::try_from(SHAPE.iter().product::<u64>()).unwrap();
        let mut own = values(DType::F32, count, 1);
        (own[3], own[40], own[500]) = (f64::NAN, f64::INFINITY, f64::NEG_INFINITY);
        let scan = volume(&own, 1, DType::F32, Some([1, 4, 4, 4]));
        let found = Statistics::of(&scan, None, &options(2), &silent).unwrap();
        let all = found.channels()[0].all();
        assert_eq!((all.not_finite(), all.count()), (3, count as u64 - 3));
        let finite: Vec<f64> = own
            .iter()
            .copied()
            .filter(|value| value.is_finite())
            .collect();
        check(all, &finite, DType::F32);
        let broken = volume(&[0.5].repeat(count), 1, DType::F32, None);
        let error = Statistics::of(&scan, Some(&broken), &options(1), &silent).unwrap_err();
        assert!(error.to_string().contains("0.5 is not a label"), "{error}");
        for damaged in [
            json!({}),
            json!({"version": 1}),
            json!({"version": 2, "volumes": 1}),
        ] {
            assert_eq!(Statistics::loaded(&damaged), None);
        }
    }
}
