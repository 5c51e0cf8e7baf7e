//! Volumes of any format: opening, reading and writing.
//!
//! A [`Volume`] returns the voxels of regions without loading the rest; a [`VolumeMut`] stores them. Both are c, z, y,
//! x in memory. A volume's static properties are in its [`Layout`]; its chunks determine which bytes a read touches.

mod archive;
mod available;
mod axes;
mod blocks;
mod blosc2;
mod cached;
mod channels;
mod chunk;
mod chunk_set;
mod cost;
mod create;
mod cropped;
mod decoders;
#[cfg(feature = "dicom")]
mod dicom;
mod files;
mod flat;
mod foreign;
mod format;
#[cfg(feature = "hdf5")]
mod hdf5;
mod layout;
pub(crate) mod lru;
mod matching;
mod memory;
mod mismatch;
mod mmap;
mod needs;
mod npz;
mod open;
mod options;
mod overwrite;
mod partial;
mod pyramid;
mod read_method;
mod real;
mod reoriented;
mod resampled;
mod resume;
mod slabs;
mod space;
pub(crate) mod staged;
mod stats;
mod subset;
#[cfg(any(test, feature = "testing"))]
pub mod suite;
mod sweep;
#[cfg(feature = "tiff")]
mod tiff;
mod traits;
mod units;
mod upsampled;
mod verify;
mod watch;
mod zarr;

pub use axes::{Axes, AxisKind, LeadingAxis};
pub use cached::Cached;
pub use channels::ChannelRange;
pub use chunk::{Chunk, ChunkVoxels};
pub(crate) use chunk::{gather_into, intersecting, read_by_chunks};
pub use cost::PatchCost;
pub use create::{
    Codec, CreateOptions, ZarrVersion, check_distinct, check_name, check_output, create,
    output_layout,
};
pub use cropped::Cropped;
pub use files::fingerprint;
pub(crate) use files::{Hash, input_fingerprint, walk};
pub use format::raw::RawSpec;
pub use format::{readable_extensions, writable_extensions};
pub use layout::{ChunkShape, Format, Layout, ReadMemory, Rescale, SourceChunks};
pub use matching::Matching;
pub(crate) use matching::UNKNOWN_INTERPOLATION;
pub use memory::MemoryVolume;
pub use mismatch::TOLERANCE;
pub(crate) use mmap::{FreedBytes, give_back_freed};
pub use mmap::{share_heaps, signal_is_ignored};
pub(crate) use needs::{
    answer_bytes, decoding_bytes, encoding_bytes, index_bytes, marked_bytes, upload_bytes,
};
pub use open::open;
pub use options::{MissingChunks, OpenOptions, Tilt, Values};
pub use overwrite::{FileKind, FolderKind, Overwrite, UnexpectedEntry};
#[cfg(test)]
pub(crate) use partial::steps;
pub use partial::{Durability, OutputPart, discard_partial};
pub(crate) use pyramid::pyramid_bytes;
pub(crate) use pyramid::rebuilding_bytes;
pub use pyramid::{Downsample, Pyramid, pyramid_buffer_bytes};
pub use read_method::ReadMethod;
pub use real::{Applied, RealValues};
pub use reoriented::Reoriented;
pub use resampled::{ControlPoints, Interpolation, Orientation, Resample, Resampled, VoxelGrid};
pub(crate) use resampled::{Reading, Warp, chunk_source};
pub(crate) use resume::{
    OutputProgress, OutputRequest, RunParts, begun_options, check_resumable, finalize_all,
    finish_within, output_progress,
};
pub use resume::{Resumable, ResumeOptions, finalize, finish_all, partial_options, resumable};
pub(crate) use slabs::{ROW_MAJOR, Slabs};
pub use space::{DiskSpace, disk_space};
pub use staged::{StagedFile, StagedFolder};
use stats::Counter;
pub use stats::ReadStats;
pub use subset::{IndexRange, Subset};
pub use traits::{Volume, VolumeExt, VolumeMut, VolumeMutExt};
pub use verify::{DamagedChunk, VerifyReport, verify};
