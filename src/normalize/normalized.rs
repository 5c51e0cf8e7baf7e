//! Volumes whose values are normalized as they are read.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::{Normalizer, Scales, length};
use crate::dtype::{DType, convert};
use crate::error::Result;
use crate::progress::Progress;
use crate::region::Region;
use crate::volume::{
    Chunk, ChunkShape, ChunkVoxels, Layout, ReadStats, RealValues, Resampled, Volume,
};

/// Values that are normalized at a time.
const BLOCK: usize = 1024;

/// A volume of normalized values of type f32.
///
/// Its values are those that a model or a loader with the same normalization gets. The statistics are taken once, when
/// it is created; reads convert the values.
///
/// ```
/// use std::sync::Arc;
/// use voxpatch::normalize::{Normalize, Normalized};
/// use voxpatch::{MemoryVolume, Region, VolumeExt};
///
/// # fn main() -> voxpatch::Result<()> {
/// let scan = MemoryVolume::from_vec([1, 1, 3], 1, vec![-2000_i16, -300, 3000])?;
/// let window = Normalize::Window { low: -1000.0, high: 400.0 };
/// let scan = Normalized::of(Arc::new(scan), &window.into(), 1, &|_, _| std::ops::ControlFlow::Continue(()))?;
/// assert_eq!(scan.read(Region::whole([1, 1, 3]))?.as_slice::<f32>()?, [0.0, 0.5, 1.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Normalized {
    inner: Arc<dyn Volume>,
    layout: Layout,
    scales: Scales,
    /// The channel of the volume to which the first scale belongs.
    first: u64,
}

impl Normalized {
    /// Returns the normalized real values of `volume`, or the volume itself without a normalization. One that
    /// [measures](super::Normalize::measures) reads the volume once, on up to `threads` threads; `progress` counts the
    /// pieces.
    ///
    /// # Errors
    ///
    /// The errors of reading, and [`InvalidArgument`](crate::Error::InvalidArgument) if the normalization does not have as
    /// many channels as the volume, or the mask does not fit.
    pub fn of(
        volume: Arc<dyn Volume>,
        normalizer: &Normalizer,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<Arc<dyn Volume>> {
        if normalizer.is_none() {
            return Ok(volume);
        }
        let volume = RealValues::of(volume);
        let scales = normalizer.scales_of(&volume, threads.max(1), progress)?;
        Ok(match scales {
            Some(scales) => Arc::new(Self::made(volume, scales, 0)),
            None => volume,
        })
    }

    /// Returns the real values of `volume`, normalized by numbers that [`measured`](Self::measured) returned. Channel
    /// `first` is the first one that was measured; those before it are not used.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::Error::InvalidArgument) if the text is not from there.
    pub fn by(volume: Arc<dyn Volume>, measured: &str, first: u64) -> Result<Arc<dyn Volume>> {
        let volume = RealValues::of(volume);
        Ok(Arc::new(Self::made(volume, measured.parse()?, first)))
    }

    /// Returns the numbers of a normalization as text for [`by`](Self::by), without reading the volume again; `None` without
    /// a normalization.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of).
    pub fn measured(
        volume: &Arc<dyn Volume>,
        normalizer: &Normalizer,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<Option<String>> {
        let volume = RealValues::of(Arc::clone(volume));
        let scales = normalizer.scales_of(&volume, threads.max(1), progress)?;
        Ok(scales.map(|scales| scales.to_string()))
    }

    fn made(volume: Arc<dyn Volume>, scales: Scales, first: u64) -> Self {
        let own = volume.layout();
        let mut layout = Layout {
            dtype: DType::F32,
            rescale: None,
            applied: None,
            ..own.of_wrapper()
        };
        if own.dtype.size() > DType::F32.size() {
            let chunk = own.read_chunk.unwrap_or_default();
            let chunk = chunk
                .into_iter()
                .fold(own.dtype.size() as u64, u64::saturating_mul);
            layout.read_memory.thread = layout.read_memory.thread.saturating_add(chunk);
        }
        Self {
            inner: volume,
            layout,
            scales,
            first,
        }
    }

    fn scale(&self, channel: u64) -> Option<usize> {
        channel.checked_sub(self.first).map(length)
    }

    /// Converts the values of one channel, which are the last bytes of `out` if their type is not longer than f32.
    fn convert_within(&self, channel: u64, out: &mut [u8]) {
        let (dtype, count) = (self.inner.layout().dtype, out.len() / size_of::<f32>());
        let size = dtype.size();
        let skipped = out.len() - count * size;
        let (mut stored, mut singles) = ([0_u64; BLOCK / 2], [0.0_f32; BLOCK]);
        let stored: &mut [u8] = bytemuck::cast_slice_mut(&mut stored);
        for start in (0..count).step_by(BLOCK) {
            let block = BLOCK.min(count - start);
            let from = skipped + start * size;
            let stored = &mut stored[..block * size];
            stored.copy_from_slice(&out[from..from + block * size]);
            let singles = &mut singles[..block];
            self.convert(channel, stored, singles);
            let to = start * size_of::<f32>();
            out[to..to + block * size_of::<f32>()].copy_from_slice(bytemuck::cast_slice(singles));
        }
    }

    fn convert(&self, channel: u64, stored: &[u8], singles: &mut [f32]) {
        let dtype = self.inner.layout().dtype;
        convert(dtype, stored, DType::F32, bytemuck::cast_slice_mut(singles));
        if let Some(scale) = self.scale(channel) {
            self.scales.apply_to(scale, singles);
        }
    }

    /// Converts voxels of some channels.
    fn converted(&self, channels: &Range<u64>, stored: &[u8]) -> Vec<u8> {
        let size = self.inner.layout().dtype.size();
        let mut singles = vec![0.0_f32; stored.len() / size];
        let each = singles.len() / length((channels.end - channels.start).max(1));
        let pairs = stored
            .chunks(each.max(1) * size)
            .zip(singles.chunks_mut(each.max(1)));
        for (channel, (stored, singles)) in channels.clone().zip(pairs) {
            self.convert(channel, stored, singles);
        }
        bytemuck::allocation::pod_collect_to_vec(&singles)
    }

    /// Returns the value that a fill value has in all of these channels.
    fn filled(&self, channels: &Range<u64>, voxel: &[u8]) -> Option<Vec<u8>> {
        let inside = channels.start..channels.end.min(self.layout.channels);
        let mut values = inside.map(|channel| self.converted(&(channel..channel + 1), voxel));
        let first = values.next()?;
        values.all(|value| value == first).then_some(first)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Volume for Normalized {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Reads the voxels directly into `out` if they fit, so that nothing is allocated.
    fn read_channels(&self, channels: Range<u64>, region: Region, out: &mut [u8]) -> Result<()> {
        self.layout.check_read(&channels, region, out.len())?;
        let size = self.inner.layout().dtype.size();
        let each = length(region.voxels());
        if size > size_of::<f32>() {
            let mut stored = vec![0; each * size * length(channels.end - channels.start)];
            self.inner
                .read_channels(channels.clone(), region, &mut stored)?;
            out.copy_from_slice(&self.converted(&channels, &stored));
            return Ok(());
        }
        for (channel, out) in channels.zip(out.chunks_exact_mut((each * size_of::<f32>()).max(1))) {
            let skipped = out.len() - each * size;
            self.inner
                .read_channels(channel..channel + 1, region, &mut out[skipped..])?;
            self.convert_within(channel, out);
        }
        Ok(())
    }

    fn inner(&self) -> Option<&dyn Volume> {
        Some(&*self.inner)
    }

    fn as_resampled(&self) -> Option<&Resampled> {
        None
    }

    fn read_chunk(&self, index: ChunkShape) -> Result<Chunk> {
        let Chunk {
            channels,
            region,
            voxels,
        } = self.inner.read_chunk(index)?;
        let voxels = match voxels {
            ChunkVoxels::Stored(stored) => ChunkVoxels::Stored(self.converted(&channels, &stored)),
            ChunkVoxels::Fill(voxel) => {
                let stored = || {
                    let count = region.voxels() * (channels.end - channels.start);
                    ChunkVoxels::Stored(self.converted(&channels, &voxel.repeat(length(count))))
                };
                let filled = self.filled(&channels, &voxel);
                filled.map_or_else(stored, ChunkVoxels::Fill)
            }
        };
        Ok(Chunk {
            channels,
            region,
            voxels,
        })
    }

    fn prefetch(&self, index: ChunkShape) {
        self.inner.prefetch(index);
    }

    fn time_points(&self) -> Option<u64> {
        self.inner.time_points()
    }

    fn sequential_order(&self) -> Option<[usize; 4]> {
        self.inner.sequential_order()
    }

    fn read_granularity(&self) -> Option<ChunkShape> {
        self.inner.read_granularity()
    }

    fn reads_parts(&self) -> bool {
        self.inner.reads_parts()
    }

    fn fill_chunk(&self, index: ChunkShape) -> Result<Option<Vec<u8>>> {
        let Some(voxel) = self.inner.fill_chunk(index)? else {
            return Ok(None);
        };
        let Some([read, ..]) = self.layout.read_chunk else {
            return Ok(None);
        };
        // The answer is for all of the write chunk.
        let write = self
            .layout
            .write_chunk
            .map_or(read, |[write, ..]| write.max(1));
        let start = index[0] * read / write * write;
        Ok(self.filled(&(start..start + write), &voxel))
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
        Ok(json!({"normalized by": self.scales.to_string(), "from": self.first, "of": inner}))
    }

    fn stored_bytes(&self) -> Result<u64> {
        self.inner.stored_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalize::Normalize;
    use crate::patch::Patch;
    use crate::progress::silent;
    use crate::volume::{Cached, MemoryVolume, VolumeExt, suite};

    fn twin(patch: &Patch, scales: &Scales) -> Patch {
        let mut twin = patch.clone().converted(DType::F32);
        scales.apply(&mut twin).unwrap();
        twin
    }

    #[test]
    fn every_type_passes_the_suite_with_and_without_chunks_and_cache() {
        for dtype in DType::ALL {
            let wide = suite::Random(7).patch([5, 9, 7], 3, DType::U8);
            let patch = wide.converted(dtype);
            for text in [
                "zscore",
                "window:-3,90",
                "percentile:2,70",
                "mean-std:9,3;window:0,50;none",
            ] {
                let normalizer = Normalizer::from(text.parse::<Normalize>().unwrap());
                let memory = || {
                    let layout = Layout::new([5, 9, 7], 3, dtype);
                    MemoryVolume::from_patch(layout, patch.clone()).unwrap()
                };
                let plain: Arc<dyn Volume> = Arc::new(memory());
                let scales = normalizer.scales_of(&plain, 1, &silent).unwrap().unwrap();
                let expected = twin(&patch, &scales);
                let flat = Normalized::of(plain, &normalizer, 2, &silent).unwrap();
                suite::check(&*flat, &expected);
                let chunked: Arc<dyn Volume> = Arc::new(memory().with_chunks([2, 4, 4, 4]));
                let normalized = Normalized::of(chunked, &normalizer, 1, &silent).unwrap();
                suite::check(&*normalized, &expected);
                suite::check(&Cached::new(normalized, 1 << 12), &expected);
            }
        }
    }

    #[test]
    fn measured_numbers_are_used_again_for_the_same_bits_and_begin_at_a_channel() {
        let patch = suite::Random(9).patch([3, 4, 5], 4, DType::I16);
        let layout = Layout::new([3, 4, 5], 4, DType::I16);
        let volume: Arc<dyn Volume> = Arc::new(MemoryVolume::from_patch(layout, patch).unwrap());
        let normalizer = Normalizer::from(Normalize::ZScore);
        let text = Normalized::measured(&volume, &normalizer, 1, &silent)
            .unwrap()
            .unwrap();
        let whole = Region::whole([3, 4, 5]);
        let one = Normalized::of(Arc::clone(&volume), &normalizer, 1, &silent).unwrap();
        let other = Normalized::by(Arc::clone(&volume), &text, 0).unwrap();
        assert_eq!(
            one.read(whole).unwrap().bytes(),
            other.read(whole).unwrap().bytes()
        );
        let last = text.rsplit(';').next().unwrap();
        let shifted = Normalized::by(Arc::clone(&volume), last, 3).unwrap();
        let mut found = vec![0; 60 * 4];
        shifted.read_channels(3..4, whole, &mut found).unwrap();
        assert_eq!(found, one.read(whole).unwrap().bytes()[3 * 60 * 4..]);
        assert!(Normalized::by(volume, "1,2", 0).is_err());
    }

    #[test]
    fn fill_values_are_normalized_and_differ_between_channels() {
        let fill = |text: &str| {
            let scales: Normalize = text.parse().unwrap();
            let memory = MemoryVolume::from_vec([2, 2, 2], 2, vec![1.0_f32; 16]).unwrap();
            let volume: Arc<dyn Volume> = Arc::new(memory);
            let normalizer = Normalizer::from(scales);
            let scales = normalizer.scales_of(&volume, 1, &silent).unwrap().unwrap();
            let normalized = Normalized::made(volume, scales, 0);
            normalized.filled(&(0..2), bytemuck::bytes_of(&3.0_f32))
        };
        let value = |bytes: Vec<u8>| bytemuck::pod_read_unaligned::<f32>(&bytes);
        assert_eq!(fill("mean-std:1,2").map(value), Some(1.0));
        assert_eq!(fill("mean-std:1,2;1,4").map(value), None);
    }
}
