//! A range of a volume's channels, presented as a volume.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::chunk::{self, Chunk, ChunkVoxels};
use super::{Axes, AxisKind, ChunkShape, Layout, LeadingAxis, ReadStats, Volume};
use crate::error::{Error, Result};
use crate::region::Region;

/// A range of a volume's channels, numbered from 0. Nothing is copied.
#[derive(Debug)]
pub struct ChannelRange {
    inner: Arc<dyn Volume>,
    channels: Range<u64>,
    layout: Layout,
}

/// Keys of the identity of a range of channels.
const CHANNELS: &str = "some channels";
const OF: &str = "channels of";

impl ChannelRange {
    /// Selects channels of `volume`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchChannel`] if the volume has fewer channels, or if the range is empty.
    pub fn new(volume: Arc<dyn Volume>, channels: Range<u64>) -> Result<Self> {
        let all = volume.layout();
        if channels.is_empty() || channels.end > all.channels {
            return Err(Error::NoSuchChannel {
                start: channels.start,
                end: channels.end,
                channels: all.channels,
            });
        }
        let layout = Layout {
            channels: channels.end - channels.start,
            read_chunk: all.read_chunk.and_then(|chunk| cut(chunk, &channels)),
            write_chunk: all.write_chunk.and_then(|chunk| cut(chunk, &channels)),
            axes: axes_of(all, &channels),
            ..all.of_wrapper()
        };
        Ok(Self {
            inner: volume,
            channels,
            layout,
        })
    }

    /// Returns the index, in the inner volume, of the read chunk at `index`.
    fn inner_index(&self, [c, z, y, x]: ChunkShape) -> ChunkShape {
        let size = self.inner.layout().read_chunk.map_or(1, |chunk| chunk[0]);
        [(self.channels.start / size).saturating_add(c), z, y, x]
    }
}

/// Returns the chunk shape for a range of channels, if each of its chunks is part of one chunk of the volume: the range
/// starts at a chunk boundary or is within one chunk.
fn cut([c, z, y, x]: ChunkShape, channels: &Range<u64>) -> Option<ChunkShape> {
    if channels.start.is_multiple_of(c) {
        return Some([c, z, y, x]);
    }
    let within_one = channels.start / c == (channels.end - 1) / c;
    within_one.then_some([channels.end - channels.start, z, y, x])
}

/// Returns the axis metadata for a range of channels. The slowest axis is shortened if the range consists of whole
/// steps along it.
fn axes_of(all: &Layout, channels: &Range<u64>) -> Axes {
    let mut axes = all.axes.clone();
    if *channels == (0..all.channels) {
        return axes;
    }
    let names = usize::try_from(channels.start)
        .ok()
        .zip(usize::try_from(channels.end).ok())
        .filter(|_| axes.channel_names.len() as u64 == all.channels);
    if let Some((start, end)) = names {
        axes.channel_names = axes.channel_names[start..end].to_vec();
    }
    let each = match axes.leading.first() {
        Some(slowest) => all.channels / slowest.length.max(1),
        None => 1,
    };
    if each > 0 && channels.start.is_multiple_of(each) && channels.end.is_multiple_of(each) {
        if let Some(slowest) = axes.leading.first_mut() {
            slowest.length = (channels.end - channels.start) / each;
        }
        // Of some time points, all channels are there, and are shown as before.
        let is_time = |axis: &LeadingAxis| axis.kind == AxisKind::Time;
        if !axes.leading.first().is_some_and(is_time) {
            axes.omero = None;
        }
    } else {
        axes.omero = None;
        axes.leading.clear();
        if names.is_none() {
            axes.channel_names.clear();
        }
    }
    axes
}

#[deny(clippy::missing_trait_methods)]
impl Volume for ChannelRange {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        let first = self.channels.start;
        let channels = first + channels.start..first + channels.end;
        self.inner.read_channels(channels, region, out)
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&*self.inner)
    }

    fn as_resampled(&self) -> Option<&super::Resampled> {
        None
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let (channels, region) = chunk::clipped(&self.layout, index)?;
        let found = self.inner.read_chunk(self.inner_index(index))?;
        let voxels = match found.voxels {
            ChunkVoxels::Fill(voxel) => ChunkVoxels::Fill(voxel),
            ChunkVoxels::Stored(_) => {
                let first = self.channels.start;
                let inner = first + channels.start..first + channels.end;
                let size = self.layout.dtype.size();
                let voxels = region.voxels() * (channels.end - channels.start);
                let bytes = usize::try_from(voxels).map_or(usize::MAX, |n| n.saturating_mul(size));
                let mut out = vec![0; bytes];
                found.copy_to(&inner, region, &mut out, size);
                ChunkVoxels::Stored(out)
            }
        };
        Ok(Chunk {
            channels,
            region,
            voxels,
        })
    }

    fn prefetch(&self, index: ChunkShape) {
        self.inner.prefetch(self.inner_index(index));
    }

    /// Returns the number of time points if the range consists of whole ones.
    fn time_points(&self) -> Option<u64> {
        let points = self.inner.time_points()?;
        let each = self.inner.layout().channels / points.max(1);
        let Range { start, end } = self.channels;
        let whole = each > 0 && start.is_multiple_of(each) && end.is_multiple_of(each);
        whole.then(|| (end - start) / each)
    }

    fn sequential_order(&self) -> Option<[usize; 4]> {
        self.inner.sequential_order()
    }

    fn read_granularity(&self) -> Option<ChunkShape> {
        let [c, z, y, x] = self.inner.read_granularity()?;
        Some([c.min(self.layout.channels), z, y, x])
    }

    fn reads_parts(&self) -> bool {
        self.inner.reads_parts()
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        chunk::clipped(&self.layout, index)?;
        self.inner.fill_chunk(self.inner_index(index))
    }

    fn read_stats(&self) -> ReadStats {
        self.inner.read_stats()
    }

    fn source_files(&self) -> Vec<PathBuf> {
        self.inner.source_files()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.inner.check_unchanged()
    }

    fn identity(&self) -> Result<Json> {
        let inner = self.inner.identity()?;
        if self.layout.channels == self.inner.layout().channels {
            return Ok(inner);
        }
        // A range of a range is a range of the volume.
        let before = inner[CHANNELS][0].as_u64();
        let of = before.map_or(&inner, |_| &inner[OF]);
        let [start, end] =
            [self.channels.start, self.channels.end].map(|channel| before.unwrap_or(0) + channel);
        Ok(json!({CHANNELS: [start, end], OF: of}))
    }

    fn stored_bytes(&self) -> Result<u64> {
        self.inner.stored_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{MemoryVolume, VolumeExt, suite};

    #[test]
    fn any_range_of_channels_reads_as_a_volume() {
        let shape = [5, 6, 7];
        let voxels: Vec<u16> = (0..5 * 6 * 7 * 6).collect();
        for chunk in [
            None,
            Some([1, 2, 3, 4]),
            Some([2, 3, 3, 3]),
            Some([4, 5, 2, 7]),
            Some([8, 2, 2, 2]),
        ] {
            for start in 0..6 {
                for end in start + 1..=6 {
                    let all = MemoryVolume::from_vec(shape, 6, voxels.clone()).unwrap();
                    let all = match chunk {
                        Some(chunk) => all.with_chunks(chunk),
                        None => all,
                    };
                    let part = ChannelRange::new(Arc::new(all), start..end).unwrap();
                    let each = 5 * 6 * 7;
                    let [from, to] = [start, end].map(|c| usize::try_from(c).unwrap() * each);
                    let own = voxels[from..to].to_vec();
                    let twin = MemoryVolume::from_vec(shape, end - start, own).unwrap();
                    suite::check(&part, &twin.to_patch());
                    assert!(chunk.is_none_or(|c| c[0] > 1) || part.layout().read_chunk == chunk);
                }
            }
        }
    }

    #[test]
    fn empty_and_missing_channels_are_refused() {
        let volume = || Arc::new(MemoryVolume::from_vec([1; 3], 3, vec![0_u8; 3]).unwrap());
        for range in [0..0, 2..2, 0..4, 3..4, 7..9] {
            let refused = ChannelRange::new(volume(), range.clone()).unwrap_err();
            assert!(matches!(refused, Error::NoSuchChannel { .. }), "{range:?}");
        }
        assert!(ChannelRange::new(volume(), 0..3).is_ok());
    }

    #[test]
    fn axes_and_names_are_those_of_the_range() {
        let axis = LeadingAxis::new;
        let with = |leading, names: &[&str], range| {
            let mut layout = Layout::new([1; 3], 6, crate::DType::U8);
            layout.axes.leading = leading;
            layout.axes.channel_names = names.iter().map(ToString::to_string).collect();
            let volume = Arc::new(MemoryVolume::zeros(layout).unwrap());
            let axes = ChannelRange::new(volume, range).unwrap().layout.axes;
            let lengths: Vec<u64> = axes.leading.iter().map(|axis| axis.length).collect();
            (lengths, axes.channel_names.concat())
        };
        let both = || vec![axis(AxisKind::Time, 3), axis(AxisKind::Channel, 2)];
        let found = |lengths: &[u64], names: &str| (lengths.to_vec(), names.to_owned());
        assert_eq!(with(both(), &["a", "b"], 2..6), found(&[2, 2], "ab"));
        assert_eq!(with(both(), &["a", "b"], 1..6), found(&[], ""));
        assert_eq!(with(both(), &["a", "b"], 0..6), found(&[3, 2], "ab"));
        let six = ["a", "b", "c", "d", "e", "f"];
        let one = || vec![axis(AxisKind::Channel, 6)];
        assert_eq!(with(one(), &six, 1..4), found(&[3], "bcd"));
        assert_eq!(with(Vec::new(), &six, 5..6), found(&[], "f"));
    }

    #[test]
    fn some_time_points_are_shown_as_all_are() {
        let (time, channel) = (AxisKind::Time, AxisKind::Channel);
        let keeps = |leading: &[(AxisKind, u64)], range| {
            let mut layout = Layout::new([1; 3], 6, crate::DType::U8);
            layout.axes.leading = leading
                .iter()
                .map(|&(kind, length)| LeadingAxis::new(kind, length))
                .collect();
            let colors = json!({"channels": [{"color": "FF0000"}, {"color": "00FF00"}]});
            layout.axes.omero = Some(colors.clone());
            let volume = Arc::new(MemoryVolume::zeros(layout).unwrap());
            let axes = ChannelRange::new(volume, range).unwrap().layout.axes;
            assert!(axes.omero.as_ref().is_none_or(|own| *own == colors));
            axes.omero.is_some()
        };
        assert!(keeps(&[(time, 3), (channel, 2)], 0..6));
        assert!(keeps(&[(time, 3), (channel, 2)], 2..4));
        // Two channels again, but not the same two.
        assert!(!keeps(&[(time, 3), (channel, 2)], 1..3));
        assert!(!keeps(&[(channel, 6)], 2..4));
        assert!(!keeps(&[(channel, 2), (time, 3)], 0..3));
    }

    #[test]
    fn time_points_are_those_of_the_range() {
        #[derive(Debug)]
        struct Timed(MemoryVolume);
        impl Volume for Timed {
            fn layout(&self) -> &Layout {
                Volume::layout(&self.0)
            }
            fn read_channels(&self, c: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
                self.0.read_channels(c, region, out)
            }
            fn time_points(&self) -> Option<u64> {
                Some(3)
            }
        }
        let memory = || MemoryVolume::from_vec([1; 3], 6, (0..6).collect::<Vec<u8>>()).unwrap();
        let part = |range| ChannelRange::new(Arc::new(Timed(memory())), range).unwrap();
        assert_eq!(part(2..6).time_points(), Some(2));
        assert_eq!(part(2..6).channels_at(1..2).unwrap(), 2..4);
        assert_eq!(part(1..5).time_points(), None);
        assert_eq!(part(0..1).time_points(), None);
    }
}
