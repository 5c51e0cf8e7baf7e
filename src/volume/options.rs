//! Options of opening a volume.

use super::{RawSpec, ReadMethod};

/// Options of [`open`](super::open).
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Which level of a multiscale image; 0 is the finest.
    pub level: usize,
    /// The layout of a headerless file; without it, its JSON sidecar is read. The file is then
    /// taken to be headerless even if it begins with a known header.
    pub raw: Option<RawSpec>,
    /// How to treat chunks that have no file; only for Zarr.
    pub missing: MissingChunks,
    /// Whether the data are trusted. If not, codecs that hostile data could exploit (blosc above
    /// all) and symbolic links below the folder are refused; only for Zarr.
    pub trusted: bool,
    /// How uncompressed flat files are read.
    pub io: ReadMethod,
    /// Whether a header may name a file of voxels outside its own folder. It must be a regular
    /// file in any case.
    pub allow_external: bool,
    /// Which values the voxels have.
    pub values: Values,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            level: 0,
            raw: None,
            missing: MissingChunks::Fill,
            trusted: true,
            io: ReadMethod::Auto,
            allow_external: false,
            values: Values::Real,
        }
    }
}

/// Which values the voxels of a volume have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// Real values: slope and intercept are applied, and give the type that
    /// [`Rescale::dtype`](super::Rescale::dtype) chooses. Volumes without them keep the stored type.
    #[default]
    Real,
    /// The values in the file. Slope and intercept are in the layout.
    Stored,
}

/// How to treat chunks that have no file. (A chunk that its shard's index calls empty is
/// never missing.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingChunks {
    /// Its voxels are the fill value, as Zarr says.
    #[default]
    Fill,
    /// It was lost: reading it is an error.
    Error,
}
