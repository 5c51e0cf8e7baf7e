//! Imaris files (`.ims`): HDF5 with a data set for each level, time point and channel.
//!
//! Data sets are padded to whole chunks; the attributes `ImageSizeX`, `ImageSizeY` and `ImageSizeZ` of a channel have the
//! true lengths. The extents of the image, which all levels cover, are attributes of `DataSetInfo/Image`. All attributes
//! are texts.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::super::blocks::{Block, BlockSource, BlockVolume};
use super::super::options::OpenOptions;
use super::super::units::{self, Unit};
use super::super::watch::FileWatch;
use super::super::{Axes, AxisKind, Format, Layout, LeadingAxis, Volume};
use super::axes::AxisMap;
use super::chunks::ChunkDecoder;
use super::filters::{self, Filters};
use super::structure::{DataSet, Storage, Structure, Texts};
use super::{MOST_CHUNKS, NAME};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::region::Shape;

/// Maximum number of levels, and of time points and channels together.
const MOST_LEVELS: usize = 64;
const MOST_CHANNELS: u64 = 1 << 16;

/// An Imaris file.
struct Imaris<'a> {
    path: &'a Path,
    structure: &'a Structure,
}

/// Returns the number of levels of an Imaris file; `None` for any other HDF5 file.
pub(super) fn levels(structure: &Structure) -> Option<usize> {
    let has = |level: usize| structure.has_group(&of_level(level));
    let first = of_channel(0, 0, 0);
    (has(0) && structure.has_group(&first))
        .then(|| (1..MOST_LEVELS).take_while(|&n| has(n)).count() + 1)
}

fn of_level(level: usize) -> String {
    format!("DataSet/ResolutionLevel {level}")
}

fn of_channel(level: usize, time: u64, channel: u64) -> String {
    format!("{}/TimePoint {time}/Channel {channel}", of_level(level))
}

/// Opens a level of an Imaris file.
pub(super) fn open(
    path: &Path,
    structure: &Structure,
    files: FileWatch,
    options: &OpenOptions,
) -> Result<Arc<dyn Volume>> {
    let levels = levels(structure).unwrap_or(0);
    if options.level >= levels {
        return Err(Error::InvalidArgument {
            argument: "level",
            value: options.level.to_string(),
            problem: format!("{} has {levels} levels, counted from 0", path.display()),
        });
    }
    let source = Imaris { path, structure }.source(options, files)?;
    Ok(Arc::new(BlockVolume::new(source)?))
}

impl Imaris<'_> {
    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::header(self.path, NAME, problem)
    }

    /// Counts groups that are numbered from 0.
    fn count(&self, name: impl Fn(u64) -> String) -> Result<u64> {
        let there = |n: &u64| self.structure.has_group(&name(*n));
        let count = (0..=MOST_CHANNELS).take_while(there).count() as u64;
        if count > MOST_CHANNELS {
            return Err(self.bad("it has too many time points or channels"));
        }
        Ok(count)
    }

    fn source(&self, options: &OpenOptions, files: FileWatch) -> Result<BlockSource> {
        let level = options.level;
        let times = self.count(|time| format!("{}/TimePoint {time}", of_level(level)))?;
        let channels = self.count(|channel| of_channel(level, 0, channel))?;
        let all = times
            .checked_mul(channels)
            .filter(|&all| (1..=MOST_CHANNELS).contains(&all));
        let all = all.ok_or_else(|| {
            self.bad(format!("it has {times} time points of {channels} channels"))
        })?;
        let (first, shape) = self.channel(level, 0, 0)?;
        let Storage::Chunks { shape: chunk, .. } = &first.storage else {
            let what = "its channels are not stored by chunks: copy it with chunks (h5repack -l)";
            return Err(Error::unsupported(self.path, what));
        };
        let filters = Filters::new(&first.filters, first.dtype.size(), chunk)
            .map_err(|what| Error::unsupported(self.path, what))?;
        if let (false, Some(codec)) = (options.trusted, filters.untrusted()) {
            return Err(Error::UntrustedCodec {
                path: self.path.to_path_buf(),
                codec: codec.to_owned(),
            });
        }
        let map = AxisMap::of(&first).map_err(|what| Error::unsupported(self.path, what))?;
        let [_, _, z, y, x] = map.lengths(chunk);
        let grid: Shape = std::array::from_fn(|a| shape[a].div_ceil([z, y, x][a]));
        let each = grid.iter().try_fold(1_u64, |n, &next| n.checked_mul(next));
        let count = each.and_then(|each| each.checked_mul(all));
        if count.is_none_or(|count| count > MOST_CHUNKS) {
            let what = format!("it has more chunks than the maximum of {MOST_CHUNKS}");
            return Err(Error::unsupported(self.path, what));
        }
        let mut layout = self.layout(shape, [times, channels], &first)?;
        layout.read_chunk = Some([1, z, y, x]);
        let (mut blocks, mut masks) = (Vec::new(), Vec::new());
        for n in 0..all {
            let (set, own) = match n {
                0 => (first.clone(), shape),
                _ => self.channel(level, n / channels, n % channels)?,
            };
            if own != shape || !is_alike(&set, &first) {
                let what = format!(
                    "its channels are different: channel {} of time point {} has another size, type or compression",
                    n % channels,
                    n / channels
                );
                return Err(Error::unsupported(self.path, what));
            }
            self.add_blocks(&set, (&map, grid), &mut blocks, &mut masks)?;
        }
        if masks.iter().all(|&mask| mask == 0) {
            masks = Vec::new();
        }
        let decoder = ChunkDecoder {
            filters,
            is_big_endian: first.big_endian,
            dtype: first.dtype,
            chunk: [1, 1, z, y, x],
            strides: map.strides(chunk),
            channels,
            channels_of_block: 1,
            grid: [all, grid[0], grid[1], grid[2]],
            masks,
            inline: None,
        };
        Ok(BlockSource {
            identity: json!({"format": "Imaris", "level": level, "big_endian": first.big_endian}),
            time_points: (times > 1).then_some(times),
            fill: first.fill.clone(),
            layout,
            files,
            blocks: blocks.into(),
            decoder: Box::new(decoder),
        })
    }

    /// Returns the data set of a channel, and its true lengths z, y, x.
    fn channel(&self, level: usize, time: u64, channel: u64) -> Result<(DataSet, Shape)> {
        let group = of_channel(level, time, channel);
        let set = self.structure.data_set(&format!("/{group}/Data"))?;
        let &[z, y, x] = set.shape.as_slice() else {
            let problem = format!("{group}/Data has {} axes instead of 3", set.shape.len());
            return Err(self.bad(problem));
        };
        let texts = self.structure.texts(&group)?;
        let mut lengths = [z, y, x];
        for (length, letter) in lengths.iter_mut().zip(["Z", "Y", "X"]) {
            let name = format!("ImageSize{letter}");
            let Some(text) = texts.get(&name) else {
                continue;
            };
            let own = text.parse::<u64>().ok();
            let own = own.filter(|own| (1..=*length).contains(own));
            *length = own.ok_or_else(|| {
                self.bad(format!(
                    "{name} of {group} is {:?}, but {length} voxels are stored",
                    super::excerpt(text)
                ))
            })?;
        }
        Ok((set, lengths))
    }

    fn layout(&self, shape: Shape, [times, channels]: [u64; 2], set: &DataSet) -> Result<Layout> {
        let leading = [(AxisKind::Time, times), (AxisKind::Channel, channels)];
        let (mut channel_names, mut shown) = (Vec::new(), Some(Vec::new()));
        for channel in 0..channels {
            let group = format!("DataSetInfo/Channel {channel}");
            let mut texts = self.structure.texts(&group).unwrap_or_default();
            shown = shown
                .zip(settings(&texts, set.dtype))
                .map(|(mut all, own)| {
                    all.push(own);
                    all
                });
            channel_names.push(texts.remove("Name").unwrap_or_default());
        }
        if channel_names.iter().all(String::is_empty) {
            channel_names.clear();
        }
        let image = self
            .structure
            .texts("DataSetInfo/Image")
            .unwrap_or_default();
        let placed = place(&image, shape).map_err(|what| Error::unsupported(self.path, what))?;
        let layout = Layout {
            path: self.path.to_path_buf(),
            format: Format::Hdf5,
            codecs: filters::names(&set.filters),
            geometry: placed.map_or_else(Geometry::default, |(geometry, _)| geometry),
            axes: Axes {
                leading: leading
                    .into_iter()
                    .filter(|&(_, length)| length > 1)
                    .map(|(kind, length)| LeadingAxis::new(kind, length))
                    .collect(),
                unit: placed
                    .and_then(|(_, factor)| Some((units::name(factor)?.to_owned(), factor))),
                channel_names,
                omero: shown.map(|channels| json!({"channels": channels})),
            },
            ..Layout::new(shape, times * channels, set.dtype)
        };
        layout.decoded_bytes()?;
        Ok(layout)
    }

    /// Adds the blocks of a channel.
    fn add_blocks(
        &self,
        set: &DataSet,
        (map, grid): (&AxisMap, Shape),
        blocks: &mut Vec<Block>,
        masks: &mut Vec<u32>,
    ) -> Result<()> {
        let Storage::Chunks { shape, chunks } = &set.storage else {
            return Ok(());
        };
        let start = blocks.len();
        let count = usize::try_from(grid.iter().product::<u64>()).unwrap_or(usize::MAX);
        blocks
            .try_reserve(count)
            .map_err(|_| self.bad("it has too many chunks"))?;
        let empty = Block {
            file: 0,
            offset: 0,
            length: 0,
        };
        blocks.resize(start + count, empty);
        masks.resize(start + count, 0);
        let [_, _, z, y, x] = map.lengths(shape);
        for stored in chunks {
            let [_, _, at_z, at_y, at_x] = map.lengths(&stored.offsets);
            let (at, chunk) = ([at_z, at_y, at_x], [z, y, x]);
            if (0..3).any(|a| !at[a].is_multiple_of(chunk[a])) {
                let offsets = &stored.offsets;
                return Err(self.bad(format!("a chunk is at {offsets:?}, beside the grid")));
            }
            let index: Shape = std::array::from_fn(|a| at[a] / chunk[a]);
            if (0..3).any(|a| index[a] >= grid[a]) {
                // A chunk of padding only.
                continue;
            }
            let n = (index[0] * grid[1] + index[1]) * grid[2] + index[2];
            let n = start + usize::try_from(n).unwrap_or(usize::MAX);
            blocks[n] = Block {
                file: 0,
                offset: stored.byte,
                length: stored.length,
            };
            masks[n] = stored.mask;
        }
        Ok(())
    }
}

/// Returns the display settings of a channel with these texts as OME-Zarr has them: name, color and range. `None` without a
/// color or a range.
fn settings(texts: &Texts, dtype: DType) -> Option<Json> {
    let numbers = |name: &str| -> Option<Vec<f64>> {
        let words = texts.get(name)?.split_whitespace();
        let numbers: Option<Vec<f64>> = words.map(|word| word.parse().ok()).collect();
        numbers.filter(|all| all.iter().all(|n| n.is_finite()))
    };
    let color: [f64; 3] = numbers("Color")?.try_into().ok()?;
    let [start, end]: [f64; 2] = numbers("ColorRange")?.try_into().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 255"
    )]
    let [red, green, blue] = color.map(|part| (part.clamp(0.0, 1.0) * 255.0).round() as u8);
    let (min, max) = if dtype.is_integer() {
        dtype.range()
    } else {
        (start, end)
    };
    let mut settings = json!({
        "active": true,
        "color": format!("{red:02X}{green:02X}{blue:02X}"),
        "window": {"min": min, "max": max, "start": start, "end": end},
    });
    if let Some(name) = texts.get("Name") {
        settings["label"] = json!(name);
    }
    Some(settings)
}

/// Returns `true` if two data sets are stored in the same way.
fn is_alike(a: &DataSet, b: &DataSet) -> bool {
    let chunk = |set: &DataSet| match &set.storage {
        Storage::Chunks { shape, .. } => Some(shape.clone()),
        _ => None,
    };
    let filters = |set: &DataSet| -> Vec<(u16, Vec<u32>)> {
        let parts = set.filters.iter();
        parts
            .map(|filter| (filter.id, filter.client_data.clone()))
            .collect()
    };
    a.dtype == b.dtype
        && a.big_endian == b.big_endian
        && a.fill == b.fill
        && chunk(a) == chunk(b)
        && filters(a) == filters(b)
}

/// Returns the position of an image whose extents are in these texts, and the millimeters of its unit; `None` if they are
/// not there.
fn place(image: &Texts, shape: Shape) -> Result<Option<(Geometry, f64)>, String> {
    let number = |name: &str, axis: usize| -> Option<f64> {
        let text = image.get(&format!("{name}{axis}"))?;
        text.parse().ok().filter(|value: &f64| value.is_finite())
    };
    let factor = match image.get("Unit").map(|unit| (unit, units::unit(unit))) {
        None => super::axes::MICROMETER,
        Some((_, Some(Unit::Millimeters(factor)))) => factor,
        Some((_, Some(Unit::None))) => return Ok(None),
        Some((unit, None)) => return Err(units::unknown(unit)),
    };
    let (mut spacing, mut origin) = ([0.0; 3], [0.0; 3]);
    for axis in 0..3 {
        let (Some(start), Some(end)) = (number("ExtMin", 2 - axis), number("ExtMax", 2 - axis))
        else {
            return Ok(None);
        };
        #[expect(clippy::cast_precision_loss, reason = "lengths are below 2^53")]
        let length = shape[axis] as f64;
        spacing[axis] = (end - start) / length * factor;
        origin[axis] = start * factor + spacing[axis] / 2.0;
    }
    let geometry = Geometry::from_parts(spacing, origin);
    Ok(geometry.is_sound().then_some((geometry, factor)))
}
