//! The command line: what can be said, and how sizes, codecs and bytes are spelt.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use voxpatch::inference::{Normalize, StoreOption};
use voxpatch::volume::{Codec, CreateOptions, Downsample, Durability, OutputPart, Pyramid};
use voxpatch::{DType, OutputTarget, Shape};

use crate::blending::Blending;
use crate::opening::{Chosen, Opening, Together};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed (one line on standard error says why), 2 wrong usage,
128 + N stopped by signal N (130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 152 SIGXCPU, ...). A stopped command
leaves nothing half-written; a second signal ends it at once.";

/// Patches from huge 3-D volumes: look, convert, sample and predict without loading the volume.
///
/// A volume is a Zarr or OME-Zarr folder, or a .npy, .nii, .nii.gz, .mhd, .mha, .nrrd, .nhdr
/// or .raw file. Sizes are voxels along z, y, x: one number for all three, or `z,y,x`.
#[derive(Debug, Parser)]
#[command(name = "voxpatch", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Info(Info),
    Convert(Convert),
    Sample(Box<crate::sample::SampleArgs>),
    Infer(Box<Infer>),
    Preview(Preview),
    Verify(Verify),
    Demo(Demo),
}

/// Tell what a volume is: shape, voxel type, chunks, spacing, size.
#[derive(Debug, ClapArgs)]
pub(crate) struct Info {
    /// The volume.
    pub(crate) path: PathBuf,
    /// Which level of a multiscale image; 0 is the finest.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) level: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) opening: Opening,
}

/// Decode every stored chunk of every level, and name those that are damaged.
///
/// The exit status is 1 if any is.
#[derive(Debug, ClapArgs)]
pub(crate) struct Verify {
    /// The volume.
    pub(crate) path: PathBuf,
    /// Threads; as many as the machine has if not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    pub(crate) threads: Option<u16>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) opening: Opening,
}

/// Copy a volume into another format, voxel type or chunking.
///
/// A target called .npy, .nii, .nii.gz, .nrrd, .mha or .mhd becomes such a file, .zarr an OME-Zarr folder.
#[derive(Debug, ClapArgs)]
pub(crate) struct Convert {
    /// The volume.
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// The output.
    #[arg(value_name = "DST")]
    pub(crate) target: PathBuf,
    /// The output's voxel type, as numpy names it; if not given, the source's, or the smallest that holds its
    /// real values. Values beyond the type's range are an error.
    #[arg(long, value_parser = dtype, value_name = "T")]
    pub(crate) dtype: Option<DType>,
    /// Let values beyond the range of --dtype become its nearest value.
    #[arg(long, requires = "dtype")]
    pub(crate) clip: bool,
    /// Report what the conversion takes (memory of the whole process, disk space) and write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) storage: Storage,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) memory: Memory,
}

/// Run a model over overlapping patches and blend its predictions into a new volume.
#[derive(Debug, ClapArgs)]
pub(crate) struct Infer {
    /// The volume.
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// The output.
    #[arg(value_name = "DST")]
    pub(crate) target: PathBuf,
    /// Voxels of a patch.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub(crate) patch_size: Shape,
    /// Voxels that neighboring patches share [default: half the patch].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub(crate) overlap: Option<Shape>,
    /// The model: a file NAME.onnx, identity, gaussian:SIGMA, or threshold:VALUE[,VALUE...].
    /// Given several times, the mean of all is taken.
    #[arg(long, default_value = "identity", value_name = "M")]
    pub(crate) model: Vec<String>,
    /// Which of a model's outputs; the first if not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) output: Option<String>,
    /// Voxels that the output of a NAME.onnx lacks at each face of a patch, as after convolutions that are not
    /// padded, where its size could also mean larger voxels.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub(crate) halo: Option<Shape>,
    /// Voxels of the input along each axis of a voxel of the output of a NAME.onnx (2: half the size), where
    /// its size could also mean a halo.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pub(crate) scale: Option<u64>,
    /// What runs a file NAME.onnx.
    #[arg(long, value_enum, default_value_t = RuntimeName::Tract)]
    pub(crate) runtime: RuntimeName,
    /// What is done to real values before the model: none, zscore (mean 0 and deviation 1 over
    /// each channel of the whole volume), or ct:LOW,HIGH (cut to these, and scaled to 0..1).
    #[arg(long, default_value_t = Normalize::None, value_name = "N")]
    pub(crate) normalize: Normalize,
    /// Predict mirror images of each patch too, and take the mean.
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) tta: Option<TtaName>,
    /// The output's voxel type, as numpy names it; the model's if not given. Values beyond the type's range are an error.
    #[arg(long, value_parser = dtype, value_name = "T")]
    pub(crate) dtype: Option<DType>,
    /// Let values beyond the range of --dtype become its nearest value.
    #[arg(long, requires = "dtype")]
    pub(crate) clip: bool,
    /// Patches that the model gets at once.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4096), default_value_t = 1, value_name = "N")]
    pub(crate) batch_size: u16,
    /// Go on with what an earlier run of the same command left, and leave it for the next if this one ends
    /// early. Only for Zarr.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Write only part I of N of the output (I from 0), on any machine that sees the same folder; the last
    /// part to be done puts the output together. Implies --resume.
    #[arg(long, value_parser = part, value_name = "I/N")]
    pub(crate) part: Option<OutputPart>,
    /// With --resume or --part: what finished chunks survive.
    #[arg(long, value_enum, default_value_t = DurabilityName::None, value_name = "WHAT")]
    pub(crate) durability: DurabilityName,
    /// Report what the run takes (patches, memory of the whole process, time) and write nothing. One batch is
    /// predicted, so that the model's own memory counts.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) together: Together,
    #[command(flatten)]
    pub(crate) blending: Blending,
    #[command(flatten)]
    pub(crate) storage: Storage,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) memory: Memory,
}

/// Make a large chest CT, sample it and predict it, and show that memory stays small.
#[derive(Debug, ClapArgs)]
pub(crate) struct Demo {
    /// Voxels of the CT.
    #[arg(long, value_parser = size, default_value = "1069,512,512", value_name = "SIZE")]
    pub(crate) size: Shape,
    /// Keep volumes and picture in this folder; else they are removed at the end.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Threads; as many as the machine has if not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    pub(crate) threads: Option<u16>,
    #[command(flatten)]
    pub(crate) memory: Memory,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Draw the three middle slices, side by side, as a PNG.
///
/// Axial, coronal and sagittal, in radiological convention: the patient's right is on the
/// left of the picture (marked R), anterior (A) is up in axial slices and left in sagittal ones,
/// superior is up. Aspect ratios follow the spacing.
#[derive(Debug, ClapArgs)]
pub(crate) struct Preview {
    /// The volume.
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// The picture to write.
    #[arg(value_name = "OUT.png")]
    pub(crate) out: PathBuf,
    /// A label map of the same extent, drawn over the picture; 0 is transparent. Its axes may be stored in another
    /// order or direction, and its voxels may be coarser.
    #[arg(long, value_name = "LABELS")]
    pub(crate) overlay: Option<PathBuf>,
    /// Real values that are black and white; else -1000,400 for CT, and the middle 99 % for others.
    #[arg(long, value_parser = window, value_name = "LOW,HIGH", allow_hyphen_values = true)]
    pub(crate) window: Option<(f64, f64)>,
    /// The voxel (z,y,x) that the slices go through; the middle if not given.
    #[arg(long, value_parser = size, value_name = "Z,Y,X")]
    pub(crate) at: Option<Shape>,
    /// Which level of a multiscale image; 0 is the finest.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) level: usize,
    /// Replace an output that exists, if it is of the same kind.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) together: Together,
    #[command(flatten)]
    pub(crate) opening: Opening,
}

/// What commands that write have in common.
#[derive(Debug, ClapArgs)]
pub(crate) struct Common {
    /// Which level of a multiscale image; 0 is the finest.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) level: usize,
    /// Threads; as many as the machine has if not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    threads: Option<u16>,
    /// Replace an output that exists, if it is of the same kind.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) opening: Opening,
}

impl Common {
    /// Returns the fewest threads to work with: exactly as many as were given, or 1.
    pub(crate) fn min_threads(&self) -> usize {
        self.threads.map_or(1, usize::from)
    }

    pub(crate) fn threads(&self) -> usize {
        threads(self.threads)
    }
}

/// As many threads as were asked for, or as the machine has.
pub(crate) fn threads(wanted: Option<u16>) -> usize {
    wanted.map_or_else(voxpatch::threads, usize::from)
}

/// How much memory a command may use.
#[derive(Debug, ClapArgs)]
pub(crate) struct Memory {
    /// Bytes that patches under way and decoded chunks may take together.
    #[arg(long, value_parser = bytes, default_value = "256MiB", value_name = "BYTES")]
    pub(crate) memory: u64,
}

/// How a Zarr output is stored.
#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Storage {
    /// The version of Zarr: 3 with OME-Zarr 0.5 if not given, or 2 with OME-Zarr 0.4 and without shards.
    #[arg(long, value_enum, value_name = "2|3")]
    zarr: Option<ZarrName>,
    /// Voxels of a chunk; 32 if not given, or 64 in Zarr v2.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    chunk: Option<Shape>,
    /// Voxels of a shard, a multiple of the chunk, or `none` for a file for each chunk;
    /// about 128 if not given, or less where memory asks for it.
    #[arg(long, value_parser = shard, value_name = "SIZE|none")]
    shard: Option<Shard>,
    /// How chunks are compressed; by zstd if not given.
    #[arg(long, value_enum)]
    codec: Option<CodecName>,
    /// The codec's effort.
    #[arg(long, value_name = "N")]
    clevel: Option<u8>,
    /// Write coarser levels too, each half the size of the one before; voxels become their
    /// mean (for images) or the value that is there most often (for labels).
    #[arg(long, value_enum, value_name = "HOW")]
    pyramid: Option<PyramidName>,
    /// Levels of the pyramid, the finest included; until every axis fits one chunk if not given.
    #[arg(long, value_name = "N", requires = "pyramid")]
    levels: Option<usize>,
}

impl Storage {
    /// The library's options; a shard that was not given is the multiple of the chunk nearest to 128.
    pub(crate) fn options(&self, overwrite: bool) -> CreateOptions {
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
            .with_shard(shard)
            .with_codec(codec)
            .with_clevel(self.clevel)
            .with_pyramid(self.pyramid())
            .with_overwrite(overwrite)
    }

    /// The options that were not given.
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

    /// Returns the target stored with these options. If no shard was given, smaller ones may be used.
    pub(crate) fn target(&self, target: OutputTarget, overwrite: bool) -> OutputTarget {
        let mut choices = self.choices(overwrite).into_iter();
        let store = choices.next().unwrap_or_default();
        target
            .with_store(store)
            .with_smaller_shards(choices.filter_map(|options| options.shard).collect())
            .with_defaults(self.defaults())
    }

    /// Returns the options and, if no shard was given, the same with smaller shards.
    pub(crate) fn choices(&self, overwrite: bool) -> Vec<CreateOptions> {
        let options = self.options(overwrite);
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

/// As many chunks as fit into `voxels`, but one at least.
fn chunks_in(chunk: Shape, voxels: u64) -> Shape {
    chunk.map(|chunk| match chunk {
        0 => 0,
        _ => chunk.saturating_mul((voxels / chunk).max(1)),
    })
}

#[derive(Clone, Copy, Debug)]
enum Shard {
    None,
    Size(Shape),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DurabilityName {
    /// That the process is killed.
    None,
    /// A power cut, too.
    Chunk,
}

impl From<DurabilityName> for Durability {
    fn from(name: DurabilityName) -> Self {
        match name {
            DurabilityName::None => Self::None,
            DurabilityName::Chunk => Self::Chunk,
        }
    }
}

fn part(word: &str) -> Result<OutputPart, String> {
    let (index, count) = word.split_once('/').ok_or("a part is I/N, as in 0/4")?;
    let number = |word: &str| {
        word.parse::<u32>()
            .map_err(|_| format!("{word:?} is no number"))
    };
    OutputPart::new(number(index)?, number(count)?).map_err(|error| error.to_string())
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RuntimeName {
    /// What is compiled in.
    Tract,
    /// ONNX Runtime, whose library `ORT_DYLIB_PATH` names.
    #[cfg(feature = "ort")]
    Ort,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TtaName {
    /// All eight combinations of mirroring along z, y and x.
    Flips,
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
    /// Only in Zarr v2.
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

/// `64` or `64,128,128`.
pub(crate) fn size(text: &str) -> Result<Shape, String> {
    let numbers: Result<Vec<u64>, _> = text.split(',').map(|n| n.trim().parse()).collect();
    match numbers.as_deref() {
        Ok(&[n]) => Ok([n; 3]),
        Ok(&[z, y, x]) => Ok([z, y, x]),
        _ => Err("give one number, or three as z,y,x".to_owned()),
    }
}

fn shard(text: &str) -> Result<Shard, String> {
    if text == "none" {
        return Ok(Shard::None);
    }
    size(text)
        .map(Shard::Size)
        .map_err(|problem| format!("{problem}, or `none`"))
}

fn window(text: &str) -> Result<(f64, f64), String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|n| n.trim().parse()).collect();
    match numbers.as_deref() {
        Ok(&[low, high]) if low.is_finite() && high.is_finite() && low < high => Ok((low, high)),
        _ => Err("give two numbers, the lower first, as -1000,400".to_owned()),
    }
}

/// `256MiB`, `1GiB`, `300MB`, or plain bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let factor = match unit.as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => 0,
    };
    let number = digits.trim().parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .filter(|_| factor > 0)
        .ok_or_else(|| "give bytes, as 256MiB, 1GiB, 300MB or 1000000".to_owned())
}

/// `float32` or `f32`, as numpy or Rust spells it.
pub(crate) fn dtype(text: &str) -> Result<DType, String> {
    DType::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = DType::ALL.into_iter().map(DType::name).collect();
        format!("known are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes_are_one_number_or_three() {
        assert_eq!(size("64"), Ok([64; 3]));
        assert_eq!(size("1, 2,3"), Ok([1, 2, 3]));
        for wrong in ["", "1,2", "1,2,3,4", "-1", "a", "1.5", "1,,2"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_have_binary_and_decimal_units() {
        assert_eq!(bytes("256MiB"), Ok(256 << 20));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        assert_eq!(bytes("300MB"), Ok(300_000_000));
        assert_eq!(bytes("1000000"), Ok(1_000_000));
        for wrong in ["", "MiB", "1XB", "-1", "99999999999GiB", "1.5GiB", "1M5"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_shard_that_is_not_given_is_a_multiple_of_the_chunk() {
        for (chunk, shard) in [(32, 128), (48, 96), (128, 128), (200, 200), (1, 128)] {
            let storage = Storage {
                chunk: Some([chunk; 3]),
                ..Storage::default()
            };
            assert_eq!(storage.options(false).shard, Some([shard; 3]));
        }
    }

    #[test]
    fn zarr_2_has_no_shards_unless_they_are_asked_for_and_refused() {
        let storage = Storage {
            zarr: Some(ZarrName::V2),
            ..Storage::default()
        };
        let options = storage.options(false);
        assert_eq!((options.chunk, options.shard), ([64; 3], None));
        assert_eq!(storage.choices(false).len(), 1);
    }

    #[test]
    fn smaller_shards_are_tried_only_if_none_was_asked_for() {
        let shards = |storage: Storage| -> Vec<_> {
            let choices = storage.choices(false).into_iter();
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
