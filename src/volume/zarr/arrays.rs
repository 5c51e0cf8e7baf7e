//! The arrays of an output: encoding the write chunks of every level, and their keys.

use std::ops::Range;

use zarrs::array::Array;

use super::super::chunk::check_whole_chunks;
use super::super::chunk_set::ChunkSet;
use super::super::create::CreateOptions;
use super::super::pyramid::{Ladder, Level, LevelSource, inputs};
use super::super::{ChunkShape, Layout};
use super::document::{PlannedLevel, plan, sizes};
use super::encode::{ChunkEncoder, UnencodedChunk};
use super::meta::ArrayInfo;
use super::open_array;
use crate::error::{Error, Result};
use crate::region::{Region, chunk_range, chunk_region, indices};

/// All levels of an output.
#[derive(Debug)]
pub(in super::super) struct Arrays {
    levels: Vec<LevelArray>,
    ladder: Option<Ladder>,
}

/// One level of an output.
#[derive(Debug)]
pub(super) struct LevelArray {
    pub(super) layout: Layout,
    /// The lengths of the axes in front of z, y, x.
    leading: Vec<u64>,
    array: Array<()>,
    encoder: ChunkEncoder,
    /// The chunks that have been written, including those that are all fill value and have no file.
    pub(super) written: ChunkSet,
}

/// The position of a chunk in an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChunkPlace {
    pub(super) level: usize,
    pub(super) channel: u64,
    pub(super) index: [u64; 3],
    /// The path of the chunk's file in the output's folder.
    pub(super) key: String,
}

/// A function that encodes and stores a chunk. Returns `false` if it is all fill value.
pub(super) type Keep<'a> = &'a dyn Fn(&ChunkPlace, &UnencodedChunk<'_>) -> Result<bool>;

impl Arrays {
    /// Creates the arrays of planned levels.
    pub(super) fn new(planned: &[PlannedLevel], options: &CreateOptions) -> Result<Self> {
        let levels: Vec<LevelArray> = planned.iter().map(LevelArray::new).collect::<Result<_>>()?;
        let dtype = levels[0].layout.dtype;
        let ladder = options
            .pyramid
            .map(|pyramid| Ladder::new(pyramid.method, dtype, sizes(planned)));
        Ok(Self { levels, ladder })
    }

    /// Plans the levels for `layout` and `options`, and creates their arrays.
    pub(super) fn planned(
        layout: &Layout,
        options: &CreateOptions,
    ) -> Result<(Self, Vec<PlannedLevel>)> {
        let planned = plan(layout, options)?;
        Ok((Self::new(&planned, options)?, planned))
    }

    /// Returns the chunks of each level that will be produced while the owned ones of the finest arrive: the chunks whose
    /// inputs are all still to come.
    pub(super) fn made_in_passing(&self, levels: &[Level], owned: Region) -> Vec<ChunkSet> {
        let made: Vec<ChunkSet> = self.levels.iter().map(LevelArray::no_chunks).collect();
        for [c, z, y, x] in self.pending(owned) {
            made[0].set(c, [z, y, x]);
        }
        for (n, pair) in levels.windows(2).enumerate() {
            for (channel, index) in made[n + 1].all() {
                // In a store, a chunk may arrive before one of its inputs.
                if self.levels[n + 1].written.has(channel, index) {
                    continue;
                }
                let mut all = indices(inputs(pair[0], pair[1], index));
                if all.all(|input| made[n].has(channel, input)) {
                    made[n + 1].set(channel, index);
                }
            }
        }
        made
    }

    /// Restricts the chunks of coarser levels that are produced to those that are marked, by level.
    pub(super) fn only(mut self, made: Vec<ChunkSet>) -> Self {
        self.ladder = self.ladder.map(|ladder| ladder.only(made));
        self
    }

    pub(super) fn levels(&self) -> &[LevelArray] {
        &self.levels
    }

    /// Returns the finest level's layout.
    pub(in super::super) fn layout(&self) -> &Layout {
        &self.levels[0].layout
    }

    /// Returns `true` if a chunk of the finest level exists and has been written.
    pub(in super::super) fn is_done(&self, [c, z, y, x]: ChunkShape) -> bool {
        let written = &self.levels[0].written;
        written.holds(c, [z, y, x]) && written.has(c, [z, y, x])
    }

    /// Returns `true` if a chunk of the finest level is owned and has not been written.
    pub(in super::super) fn is_pending(&self, owned: Region, [c, z, y, x]: ChunkShape) -> bool {
        let finest = &self.levels[0];
        owned.contains(&finest.region([z, y, x])) && !finest.written.has(c, [z, y, x])
    }

    /// Iterates over the owned chunks of the finest level that have not been written.
    pub(in super::super) fn pending(&self, owned: Region) -> impl Iterator<Item = ChunkShape> {
        let all = self.levels[0].written.all();
        all.map(|(c, [z, y, x])| [c, z, y, x])
            .filter(move |&index| self.is_pending(owned, index))
    }

    /// Returns the number and the first keys of owned chunks that are not in a set; `None` if all are.
    pub(super) fn missing(&self, found: &ChunkSet, owned: Region) -> Option<String> {
        let finest = &self.levels[0];
        let (mut missing, mut first) = (0_u64, Vec::new());
        for (channel, index) in found.all() {
            if found.has(channel, index) || !owned.contains(&finest.region(index)) {
                continue;
            }
            missing += 1;
            if first.len() < 5 {
                first.push(finest.key(0, channel, index));
            }
        }
        let more = if missing > 5 { ", ..." } else { "" };
        (missing > 0).then(|| format!("{missing} chunks: {}{more}", first.join(", ")))
    }

    /// Returns the maximum bytes in waiting chunks; see [`VolumeMut`](super::super::VolumeMut).
    pub(in super::super) fn pyramid_buffer_bytes(&self, order: [usize; 3]) -> u64 {
        let ladder = self.ladder.as_ref();
        ladder.map_or(0, |ladder| {
            ladder.most_waiting(self.layout().channels, order)
        })
    }

    /// Writes whole write chunks of the finest level, and all coarser chunks that they complete.
    pub(super) fn write(
        &self,
        channels: Range<u64>,
        region: Region,
        voxels: &[u8],
        keep: Keep<'_>,
    ) -> Result<()> {
        let layout = self.layout();
        layout.check_read(&channels, region, voxels.len())?;
        check_whole_chunks(layout, &channels, region)?;
        let size = layout.dtype.size();
        let per_channel = usize::try_from(region.voxels()).unwrap_or(usize::MAX) * size;
        for (channel, source) in channels.zip(voxels.chunks_exact(per_channel.max(1))) {
            let source = LevelSource {
                held: region,
                voxels: Some(source),
            };
            for index in indices(chunk_range(&region, self.levels[0].chunk())) {
                self.write_chunk(channel, index, source, keep)?;
            }
        }
        Ok(())
    }

    /// Writes the incomplete chunks of coarser levels; parts of the finest level may never have been written.
    pub(super) fn finish(&self, keep: Keep<'_>) -> Result<()> {
        let ladder = self.ladder.as_ref();
        ladder.map_or(Ok(()), |ladder| {
            ladder.finish(&|level, channel, index, _, chunk| {
                self.keep_chunk(level, channel, index, chunk, keep)
                    .map(|_| ())
            })
        })
    }

    fn write_chunk(
        &self,
        channel: u64,
        index: [u64; 3],
        source: LevelSource<'_>,
        keep: Keep<'_>,
    ) -> Result<()> {
        let stored = self.keep_chunk(0, channel, index, source, keep)?;
        let Some(ladder) = &self.ladder else {
            return Ok(());
        };
        let region = self.levels[0].region(index);
        let source = LevelSource {
            voxels: source.voxels.filter(|_| stored),
            ..source
        };
        ladder.add(
            0,
            channel,
            region,
            source,
            &|level, channel, index, _, chunk| {
                self.keep_chunk(level, channel, index, chunk, keep)
                    .map(|_| ())
            },
        )
    }

    /// Encodes and stores one channel of one write chunk. Returns `false` if it is all fill value.
    pub(super) fn keep_chunk(
        &self,
        level: usize,
        channel: u64,
        index: [u64; 3],
        source: LevelSource<'_>,
        keep: Keep<'_>,
    ) -> Result<bool> {
        let array = &self.levels[level];
        let place = ChunkPlace {
            level,
            channel,
            index,
            key: array.key(level, channel, index),
        };
        if !array.written.set(channel, index) {
            return Err(Error::ChunkWritten {
                path: self.layout().path.clone(),
                key: place.key,
            });
        }
        let chunk = UnencodedChunk {
            encoder: &array.encoder,
            whole: chunk_region(index, array.chunk()),
            source,
            path: &self.layout().path,
            key: &place.key,
        };
        keep(&place, &chunk).inspect_err(|_| array.written.clear(channel, index))
    }
}

impl LevelArray {
    fn new(planned: &PlannedLevel) -> Result<Self> {
        let layout = planned.layout.clone();
        let facts = ArrayInfo::parse(&layout.path, layout.format, &planned.document, &[])?;
        let (array, metadata) = open_array(&facts, &planned.document)?;
        let [_, chunk @ ..] = layout.write_chunk.expect("a Zarr array has chunks");
        let [_, smallest @ ..] = layout.read_chunk.expect("a Zarr array has chunks");
        let leading: Vec<u64> = layout
            .axes
            .leading_of(layout.channels)
            .iter()
            .map(|axis| axis.length)
            .collect();
        let encoder = ChunkEncoder::new(&array, &metadata.codecs, leading.len(), smallest)
            .map_err(|problem| {
                Error::header(&layout.path, facts.format_name(), problem.to_string())
            })?;
        Ok(Self {
            written: ChunkSet::new(layout.channels, layout.shape, chunk),
            leading,
            encoder,
            layout,
            array,
        })
    }

    /// Returns a set of write chunks without any.
    pub(super) fn no_chunks(&self) -> ChunkSet {
        ChunkSet::new(self.layout.channels, self.layout.shape, self.chunk())
    }

    /// Returns `true` if a file of this name in the folder of `level` is a write chunk.
    pub(super) fn is_key_of_chunk(&self, level: usize, name: &str) -> bool {
        let numbers = name.split(['/', '.']).skip(1).filter(|part| *part != "c");
        let numbers: Option<Vec<u64>> = numbers.map(|part| part.parse().ok()).collect();
        let numbers = numbers.unwrap_or_default();
        let Some((leading, &[z, y, x])) = numbers.split_last_chunk() else {
            return false;
        };
        if leading.len() != self.leading.len() {
            return false;
        }
        let lengths = leading.iter().zip(&self.leading);
        let channel = lengths
            .into_iter()
            .try_fold(0_u64, |channel, (own, length)| {
                channel.checked_mul(*length)?.checked_add(*own)
            });
        channel.is_some_and(|channel| {
            self.written.holds(channel, [z, y, x]) && self.key(level, channel, [z, y, x]) == name
        })
    }

    /// Returns the shape of a write chunk along z, y, x.
    pub(super) fn chunk(&self) -> [u64; 3] {
        let [_, chunk @ ..] = self.layout.write_chunk.expect("a Zarr array has chunks");
        chunk
    }

    /// Returns the box of a write chunk, clipped to the volume.
    pub(super) fn region(&self, index: [u64; 3]) -> Region {
        let whole = chunk_region(index, self.chunk());
        whole
            .intersection(&Region::whole(self.layout.shape))
            .expect("a chunk that starts inside")
    }

    /// Returns the path of a write chunk's file in the output's folder.
    pub(super) fn key(&self, level: usize, channel: u64, index: [u64; 3]) -> String {
        let key = self.array.chunk_key(&self.own_index(channel, index));
        format!("{level}/{}", key.as_str())
    }

    /// Returns the index of a channel's chunk along the array's own dimensions.
    fn own_index(&self, mut channel: u64, space: [u64; 3]) -> Vec<u64> {
        let mut index = vec![0; self.leading.len()];
        for (own, &length) in index.iter_mut().zip(&self.leading).rev() {
            *own = channel % length;
            channel /= length;
        }
        index.extend(space);
        index
    }
}
