//! HDF5 data sets: `file.h5:/path`, read without the C library and its lock.
//!
//! A contiguous data set is a flat file that begins at a byte of the file. A chunked one is a volume of blocks, which
//! are decoded on the threads of the reader. Only [`structure`] knows how the file is organized. The data sets of an Imaris
//! file are opened together, as one volume with levels.

mod axes;
mod chunks;
mod filters;
mod imaris;
mod structure;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use self::axes::{AxisMap, CHANNEL, TIME};
use self::chunks::ChunkDecoder;
use self::filters::Filters;
use self::structure::{DataSet, Listed, Storage, StoredChunk};
use super::blocks::{Block, BlockSource, BlockVolume};
use super::flat;
use super::format::{DataStart, FlatHeader, excerpt};
use super::open::check_level;
use super::options::OpenOptions;
use super::watch::FileWatch;
use super::{Axes, Format, Layout, Volume};
use crate::error::{Error, Result};
use crate::files::{open_regular, read_up_to};
use crate::geometry::Geometry;
use crate::store::Place;

const NAME: &str = "HDF5";

/// The first bytes of a file.
const MAGIC: &[u8] = b"\x89HDF\r\n\x1a\n";

/// Maximum number of chunks of a data set.
const MOST_CHUNKS: u64 = 1 << 26;

/// Maximum number of data sets that an error lists.
const MOST_LISTED: usize = 20;

/// Returns `true` if a file with these first bytes is HDF5.
pub(super) fn recognize(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Returns the file and the data set that `file.h5:/path` names.
pub(super) fn named(path: &Path) -> Option<(PathBuf, String)> {
    let text = path.to_str()?;
    let names_file = |&(at, _): &(usize, &str)| {
        let file = Path::new(&text[..at]);
        file.is_file() && read_up_to(file, 8).is_ok_and(|head| recognize(&head))
    };
    let (at, _) = text.rmatch_indices(':').find(names_file)?;
    Some((PathBuf::from(&text[..at]), text[at + 1..].to_owned()))
}

/// Opens the data set `inside` a file, or its only one if `inside` is empty.
pub(super) fn open(path: &Path, inside: &str, options: &OpenOptions) -> Result<Arc<dyn Volume>> {
    let file = open_regular(path)?;
    let mut files = FileWatch::default();
    files.add(path, &file.metadata().map_err(Error::io("look at", path))?);
    let structure = structure::open(path, file)?;
    if inside.trim_matches('/').is_empty() && imaris::levels(&structure).is_some() {
        return imaris::open(path, &structure, files, options);
    }
    check_level(path, options.level)?;
    let name = if inside.trim_matches('/').is_empty() {
        let (listed, is_all) = structure.list()?;
        match listed.as_slice() {
            [] => {
                let what = "it has no data set of numbers with 2 to 5 axes";
                return Err(Error::unsupported(path, what));
            }
            [only] if is_all => only.name.clone(),
            several => return Err(choice(path, several, is_all)),
        }
    } else {
        format!("/{}", inside.trim_matches('/'))
    };
    let set = structure.data_set(&name)?;
    let shown = PathBuf::from(format!("{}:{name}", path.display()));
    let map = AxisMap::of(&set).map_err(|what| Error::unsupported(&shown, what))?;
    let layout = layout(&shown, &set, &map)?;
    match &set.storage {
        Storage::Contiguous { byte } | Storage::External { byte, .. } => {
            let order = map.memory_order().ok_or_else(|| {
                let what = "its time points and channels are not next to each other: copy it with chunks (h5repack -l)";
                Error::unsupported(&shown, what)
            })?;
            let header = FlatHeader {
                channels: layout.channels,
                time_points: map.time_points(&set.shape),
                big_endian: set.big_endian,
                order,
                start: DataStart::byte(*byte),
                geometry: layout.geometry,
                axes: layout.axes.clone(),
                data: match &set.storage {
                    Storage::External { file, .. } => Some(file.clone()),
                    _ => None,
                },
                ..FlatHeader::new(Format::Hdf5, layout.shape, set.dtype, *byte)
            };
            flat::open(&Place::Local, &shown, path, &header, options)
        }
        Storage::Chunks { shape, chunks } => {
            let filters = Filters::new(&set.filters, set.dtype.size(), shape)
                .map_err(|what| Error::unsupported(&shown, what))?;
            if let (false, Some(codec)) = (options.trusted, filters.untrusted()) {
                return Err(Error::UntrustedCodec {
                    path: shown,
                    codec: codec.to_owned(),
                });
            }
            let parts = Parts {
                set: &set,
                map: &map,
                shape,
                chunks,
                inline: None,
            };
            let source = parts.source(layout, files, filters, &name)?;
            Ok(Arc::new(BlockVolume::new(source)?))
        }
        Storage::Compact { bytes } => {
            let filters = Filters::new(&[], set.dtype.size(), &set.shape)
                .map_err(|what| Error::unsupported(&shown, what))?;
            // One block, which is in memory. A block of no bytes would be one that is not stored.
            let only = StoredChunk {
                offsets: vec![0; set.shape.len()],
                byte: 0,
                length: 1,
                mask: 0,
            };
            let parts = Parts {
                set: &set,
                map: &map,
                shape: &set.shape,
                chunks: &[only],
                inline: Some(bytes),
            };
            let source = parts.source(layout, files, filters, &name)?;
            Ok(Arc::new(BlockVolume::new(source)?))
        }
    }
}

/// Returns the number of levels of a file: 1 unless it is one of Imaris.
pub(super) fn level_count(path: &Path) -> Result<usize> {
    let structure = structure::open(path, open_regular(path)?)?;
    Ok(imaris::levels(&structure).unwrap_or(1))
}

fn layout(shown: &Path, set: &DataSet, map: &AxisMap) -> Result<Layout> {
    let [times, channels, z, y, x] = map.lengths(&set.shape);
    let all = times.checked_mul(channels);
    let all = all.ok_or_else(|| Error::unsupported(shown, "it has too many channels"))?;
    let geometry = map
        .spacing
        .map_or_else(Geometry::default, Geometry::from_spacing);
    if !geometry.is_sound() {
        return Err(Error::header(shown, NAME, "its spacing is not above 0"));
    }
    let layout = Layout {
        path: shown.to_path_buf(),
        format: Format::Hdf5,
        codecs: filters::names(&set.filters),
        geometry,
        axes: Axes {
            leading: map.leading(&set.shape),
            unit: map
                .spacing
                .map(|_| ("micrometer".to_owned(), axes::MICROMETER)),
            ..Axes::default()
        },
        ..Layout::new([z, y, x], all, set.dtype)
    };
    layout.decoded_bytes()?;
    Ok(layout)
}

/// Returns the error for a file of several data sets.
fn choice(path: &Path, several: &[Listed], is_all: bool) -> Error {
    let line = |set: &Listed| {
        let lengths: Vec<String> = set.shape.iter().map(u64::to_string).collect();
        format!(
            "{} ({}, {})",
            excerpt(&set.name),
            lengths.join(" x "),
            set.dtype
        )
    };
    let mut lines: Vec<String> = several.iter().take(MOST_LISTED).map(line).collect();
    if several.len() > MOST_LISTED || !is_all {
        lines.push("...".to_owned());
    }
    let what = format!(
        "it has several data sets: {} (open one of them by its path, like {}:{})",
        lines.join(", "),
        path.display(),
        excerpt(&several[0].name)
    );
    Error::unsupported(path, what)
}

/// A chunked data set on its way to a list of blocks.
struct Parts<'a> {
    set: &'a DataSet,
    map: &'a AxisMap,
    /// The lengths of a chunk in the order of the data set.
    shape: &'a [u64],
    chunks: &'a [StoredChunk],
    /// All voxels, if they are in the header.
    inline: Option<&'a Vec<u8>>,
}

impl Parts<'_> {
    /// Returns the place of each of `stored` chunks in the grid of the data set, and the filters that it leaves out.
    fn places(&self, grid: &[u64], stored: u64) -> Result<Vec<Option<(Block, u32)>>, String> {
        let mut places: Vec<Option<(Block, u32)>> = Vec::new();
        let stored = usize::try_from(stored).unwrap_or(usize::MAX);
        places
            .try_reserve_exact(stored)
            .map_err(|_| "it has too many chunks".to_owned())?;
        places.resize(stored, None);
        for stored in self.chunks {
            let mut at = 0;
            for ((&offset, &chunk), &n) in stored.offsets.iter().zip(self.shape).zip(grid) {
                let index = offset / chunk;
                if !offset.is_multiple_of(chunk) || index >= n {
                    let offsets = &stored.offsets;
                    return Err(format!("a chunk is at {offsets:?}, beside the grid"));
                }
                at = at * n + index;
            }
            let place = usize::try_from(at).ok().and_then(|at| places.get_mut(at));
            let place = place.ok_or("a chunk is beside the grid")?;
            *place = Some((
                Block {
                    file: 0,
                    offset: stored.byte,
                    length: stored.length,
                },
                stored.mask,
            ));
        }
        Ok(places)
    }

    fn source(
        &self,
        mut layout: Layout,
        files: FileWatch,
        filters: Filters,
        name: &str,
    ) -> Result<BlockSource> {
        let shown = layout.path.clone();
        let bad = |problem: String| Error::header(&shown, NAME, problem);
        let lengths = self.map.lengths(&self.set.shape);
        let chunk = self.map.lengths(self.shape);
        // Blocks cover a part of one time point: a chunk of several is a block for each.
        let is_even = lengths[CHANNEL].is_multiple_of(chunk[CHANNEL]) || lengths[TIME] == 1;
        let channels = if is_even { chunk[CHANNEL] } else { 1 };
        layout.read_chunk = Some([channels, chunk[2], chunk[3], chunk[4]]);
        let grid: Vec<u64> = self
            .set
            .shape
            .iter()
            .zip(self.shape)
            .map(|(&length, &chunk)| length.div_ceil(chunk))
            .collect();
        let count = |grid: &[u64]| grid.iter().try_fold(1_u64, |all, &n| all.checked_mul(n));
        let of_volume = [
            layout.channels.div_ceil(channels),
            lengths[2].div_ceil(chunk[2]),
            lengths[3].div_ceil(chunk[3]),
            lengths[4].div_ceil(chunk[4]),
        ];
        let counts = (count(&grid), count(&of_volume));
        let (Some(stored), Some(blocks)) = counts else {
            return Err(bad("it has too many chunks".to_owned()));
        };
        if stored.max(blocks) > MOST_CHUNKS {
            let what = format!(
                "it has {} chunks, more than the maximum of {MOST_CHUNKS}: copy it with larger chunks (h5repack -l)",
                stored.max(blocks)
            );
            return Err(Error::unsupported(&shown, what));
        }
        let places = self.places(&grid, stored).map_err(bad)?;
        let decoder = ChunkDecoder {
            filters,
            is_big_endian: self.set.big_endian,
            dtype: self.set.dtype,
            chunk,
            strides: self.map.strides(self.shape),
            channels: lengths[CHANNEL],
            channels_of_block: channels,
            grid: of_volume,
            masks: Vec::new(),
            inline: self.inline.cloned(),
        };
        let (mut blocks, mut masks) = (Vec::new(), Vec::new());
        for number in 0..of_volume.iter().product() {
            let index = decoder.first_voxel(number);
            let mut at = 0;
            for (dim, &n) in grid.iter().enumerate() {
                let own = self
                    .map
                    .axis(dim)
                    .map_or(0, |axis| index[axis] / chunk[axis]);
                at = at * n + own;
            }
            let place = usize::try_from(at).ok().and_then(|at| *places.get(at)?);
            let (block, mask) = place.unwrap_or((
                Block {
                    file: 0,
                    offset: 0,
                    length: 0,
                },
                0,
            ));
            blocks.push(block);
            masks.push(mask);
        }
        if masks.iter().all(|&mask| mask == 0) {
            masks = Vec::new();
        }
        Ok(BlockSource {
            identity: json!({
                "format": NAME,
                "data set": name,
                "axes": format!("{:?}", self.map),
                "big_endian": self.set.big_endian,
            }),
            time_points: self.map.time_points(&self.set.shape),
            fill: self.set.fill.clone(),
            layout,
            files,
            blocks: blocks.into(),
            decoder: Box::new(ChunkDecoder { masks, ..decoder }),
        })
    }
}
