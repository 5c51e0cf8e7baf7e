//! Options for how outputs are stored.

use clap::{Args, ValueEnum};
use voxpatch::inference::StoreOption;
use voxpatch::volume::{Codec, CreateOptions, Downsample, Pyramid};
use voxpatch::{DType, OutputTarget, Shape, StorageOptions};

use crate::parse::{Shard, dtype, shard, size};

/// The voxel type of an output.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputType {
    /// Voxel type of the output, as numpy names it [default: the smallest that holds all values]. Values beyond its
    /// range are an error.
    #[arg(long, value_parser = dtype, value_name = "TYPE")]
    pub(crate) dtype: Option<DType>,
    /// Replace values beyond the range of --dtype by the nearest one.
    #[arg(long, requires = "dtype")]
    pub(crate) clip: bool,
}

/// How an output is stored.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Storage {
    /// Replace an existing output, if it is of the same kind.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Version of Zarr: 3 (with OME-Zarr 0.5), or 2 (with OME-Zarr 0.4, without shards) [default: 3].
    #[arg(long, value_enum, value_name = "2|3")]
    zarr: Option<ZarrName>,
    /// Voxels of a chunk [default: 32, or 64 in Zarr v2]; of .tif, of a tile along the last two axes, multiples of 16 or
    /// those of the page [default: up to 256].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    chunk: Option<Shape>,
    /// Voxels of a shard, a multiple of the chunk, or `none` for one file per chunk [default: about 128, or less if
    /// memory is short].
    #[arg(long, value_parser = shard, value_name = "SIZE|none")]
    shard: Option<Shard>,
    /// Compression of chunks [default: zstd], or of the tiles of .tif [default: none].
    #[arg(long, value_enum)]
    codec: Option<CodecName>,
    /// Compression level [default: the codec's own].
    #[arg(long, value_name = "N")]
    clevel: Option<u8>,
    /// Also write coarser levels, each half the size of the previous one, by the mean of voxels (for images) or the
    /// most frequent value (for labels).
    #[arg(long, value_enum, value_name = "HOW")]
    pyramid: Option<PyramidName>,
    /// Levels of the pyramid, including the finest [default: until every axis fits into one chunk].
    #[arg(long, value_name = "N", requires = "pyramid")]
    levels: Option<usize>,
}

impl Storage {
    /// Returns the library's options. A shard that was not given is the multiple of the chunk nearest to 128.
    pub(crate) fn options(&self) -> CreateOptions {
        let usual = match self.zarr {
            None | Some(ZarrName::V3) => CreateOptions::default(),
            Some(ZarrName::V2) => CreateOptions::zarr2(),
        };
        let chunk = self.chunk.unwrap_or(usual.chunk);
        let shard = match self.shard {
            Some(Shard::None) => None,
            Some(Shard::Size(shape)) => Some(shape),
            None => usual.shard.map(|_| chunks_in(chunk, 128)),
        };
        let codec = self.codec.map_or(usual.codec, Codec::from);
        usual
            .with_chunk(chunk)
            .with_tile(self.chunk)
            .with_tile_codec(self.codec.map_or(Codec::None, Codec::from))
            .with_shard(shard)
            .with_codec(codec)
            .with_clevel(self.clevel)
            .with_pyramid(self.pyramid())
            .with_overwrite(self.overwrite)
    }

    /// Returns `true` if the shards are chosen.
    pub(crate) const fn has_shard(&self) -> bool {
        self.shard.is_some()
    }

    /// Returns the options that were not given.
    pub(crate) fn defaults(&self) -> Vec<StoreOption> {
        let all = [
            (StoreOption::Zarr, self.zarr.is_none()),
            (StoreOption::Chunk, self.chunk.is_none()),
            (StoreOption::Shard, self.shard.is_none()),
            (StoreOption::Codec, self.codec.is_none()),
            (StoreOption::Clevel, self.clevel.is_none()),
            (StoreOption::Pyramid, self.pyramid.is_none()),
        ];
        let default = all.into_iter().filter(|(_, default)| *default);
        default.map(|(option, _)| option).collect()
    }

    /// Returns the target stored with these options, and with those of an object store. If no shard was given, smaller
    /// ones may be used.
    pub(crate) fn target(&self, target: OutputTarget, store: &StorageOptions) -> OutputTarget {
        let mut choices = self.choices(store).into_iter();
        let store = choices.next().unwrap_or_default();
        target
            .with_store(store)
            .with_smaller_shards(choices.filter_map(|options| options.shard).collect())
            .with_defaults(self.defaults())
    }

    /// Returns the options with those of an object store and, if no shard was given, the same with smaller shards.
    pub(crate) fn choices(&self, store: &StorageOptions) -> Vec<CreateOptions> {
        let options = self.options().with_storage_options(store.clone());
        let smaller = match (self.shard, options.shard) {
            (None, Some(_)) => &[64, 32][..],
            _ => &[],
        };
        let mut choices = vec![options.clone()];
        choices.extend(smaller.iter().map(|&voxels| {
            options
                .clone()
                .with_shard(Some(chunks_in(options.chunk, voxels)))
        }));
        choices
    }

    fn pyramid(&self) -> Option<Pyramid> {
        let method = self.pyramid?.into();
        let levels = self.levels;
        Some(Pyramid { levels, method })
    }
}

/// Returns as many chunks as fit into `voxels`, at least one.
fn chunks_in(chunk: Shape, voxels: u64) -> Shape {
    chunk.map(|chunk| match chunk {
        0 => 0,
        _ => chunk.saturating_mul((voxels / chunk).max(1)),
    })
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ZarrName {
    #[value(name = "2")]
    V2,
    #[value(name = "3")]
    V3,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PyramidName {
    Mean,
    Mode,
}

impl From<PyramidName> for Downsample {
    fn from(name: PyramidName) -> Self {
        match name {
            PyramidName::Mean => Self::Mean,
            PyramidName::Mode => Self::Mode,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CodecName {
    Zstd,
    BloscZstd,
    BloscLz4,
    Gzip,
    /// Only in Zarr v2 and TIFF.
    Zlib,
    None,
}

impl From<CodecName> for Codec {
    fn from(name: CodecName) -> Self {
        match name {
            CodecName::Zstd => Self::Zstd,
            CodecName::BloscZstd => Self::BloscZstd,
            CodecName::BloscLz4 => Self::BloscLz4,
            CodecName::Gzip => Self::Gzip,
            CodecName::Zlib => Self::Zlib,
            CodecName::None => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_is_not_given_is_a_multiple_of_the_chunk() {
        for (chunk, shard) in [(32, 128), (48, 96), (128, 128), (200, 200), (1, 128)] {
            let storage = Storage {
                chunk: Some([chunk; 3]),
                ..Storage::default()
            };
            assert_eq!(storage.options().shard, Some([shard; 3]));
        }
    }

    #[test]
    fn zarr_2_has_no_shards_unless_they_are_asked_for_and_refused() {
        let storage = Storage {
            zarr: Some(ZarrName::V2),
            ..Storage::default()
        };
        let options = storage.options();
        assert_eq!((options.chunk, options.shard), ([64; 3], None));
        assert_eq!(storage.choices(&StorageOptions::new()).len(), 1);
    }

    #[test]
    fn smaller_shards_are_tried_only_if_none_was_asked_for() {
        let shards = |storage: Storage| -> Vec<_> {
            let choices = storage.choices(&StorageOptions::new()).into_iter();
            choices.map(|options| options.shard).collect()
        };
        let usual = shards(Storage::default());
        assert_eq!(usual, [Some([128; 3]), Some([64; 3]), Some([32; 3])]);
        for (given, expected) in [(Shard::Size([96; 3]), Some([96; 3])), (Shard::None, None)] {
            let storage = Storage {
                shard: Some(given),
                ..Storage::default()
            };
            assert_eq!(shards(storage), [expected]);
        }
    }
}
