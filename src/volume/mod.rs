//! Volumes: opening, reading and writing, whatever the format.
//!
//! A [`Volume`] stays where it is and returns the voxels of regions; a [`VolumeMut`] takes
//! them. Both are c, z, y, x in memory. A volume's static facts are in its [`Layout`]; its chunks
//! decide which bytes a read touches.

mod axes;
mod cached;
mod channels;
mod choice;
mod chunk;
mod create;
mod cropped;
mod files;
mod flat;
mod foreign;
mod header;
mod io;
mod layout;
pub(crate) mod lru;
mod marks;
mod matching;
mod memory;
mod mmap;
mod needs;
mod open;
mod options;
mod partial;
mod pyramid;
mod real;
mod reoriented;
mod replace;
mod resume;
mod slabs;
mod space;
pub(crate) mod staged;
mod stats;
#[cfg(any(test, feature = "testing"))]
pub mod suite;
mod sweep;
mod traits;
mod units;
mod upsampled;
mod verify;
mod watch;
mod zarr;

pub use axes::{Axes, AxisKind, LeadingAxis};
pub use cached::Cached;
pub use channels::ChannelRange;
pub use choice::{Choice, Span};
pub(crate) use chunk::intersecting;
pub use chunk::{Chunk, ChunkVoxels};
pub use create::{
    Codec, CreateOptions, ZarrVersion, check_apart, check_name, check_output, create, planned,
};
pub use cropped::Cropped;
pub(crate) use files::{Hash, input_fingerprint, walk};
pub use header::raw::RawSpec;
pub use io::Io;
pub use layout::{ChunkShape, Format, Layout, Rescale};
pub use matching::{Matching, TOLERANCE};
pub use memory::MemoryVolume;
pub(crate) use mmap::give_back_freed;
pub use mmap::{share_heaps, signal_is_ignored};
pub(crate) use needs::{decoding_bytes, encoding_bytes, index_bytes};
pub use open::open;
pub use options::{Missing, OpenOptions, Values};
#[cfg(test)]
pub(crate) use partial::steps;
pub use partial::{Durability, Part, discard};
pub(crate) use pyramid::rebuilding_bytes;
pub use pyramid::{Downsample, Pyramid, waiting_bytes};
pub use real::{Applied, RealValues};
pub use reoriented::Reoriented;
pub use replace::{FileKind, FolderKind, Foreign, Replace};
pub use resume::{Resumable, ResumeOptions, begun, finalize, finish_together, resumable};
pub(crate) use resume::{Together, Whole, finalize_together};
pub(crate) use slabs::{ROW_MAJOR, Slabs};
pub use space::{Space, space};
pub use staged::{StagedFile, StagedFolder};
use stats::Counter;
pub use stats::ReadStats;
pub use traits::{Volume, VolumeExt, VolumeMut};
pub use upsampled::Upsampled;
pub use verify::{Damaged, Verified, verify};
