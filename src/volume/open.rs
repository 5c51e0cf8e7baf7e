//! Opening: which format a path holds, by content and extension.

use std::path::Path;
use std::sync::Arc;

use super::{RawSpec, Volume, flat, zarr};
use crate::error::Result;

/// What [`open`] may be told.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Which level of a multiscale image; 0 is the finest.
    pub level: usize,
    /// How a headerless file is laid out; else its JSON sidecar says.
    pub raw: Option<RawSpec>,
    /// What it means that a chunk has no file; only for Zarr.
    pub missing: Missing,
    /// Whether the data come from someone who means well. If not, codecs that hostile data
    /// could exploit (blosc above all) are refused; only for Zarr.
    pub trusted: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            level: 0,
            raw: None,
            missing: Missing::Fill,
            trusted: true,
        }
    }
}

/// What it means that a chunk has no file. (A chunk that its shard's index calls empty is
/// never missing.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// Its voxels are the fill value, as Zarr says.
    #[default]
    Fill,
    /// It was lost: reading it is an error.
    Error,
}

impl OpenOptions {
    /// stub
    pub fn open(&self, path: &Path) -> Result<Arc<dyn Volume>> {
        if path.is_dir() {
            return Ok(Arc::new(zarr::ZarrVolume::open(path, self)?));
        }
        Ok(Arc::new(flat::FlatVolume::open(path, self.raw.as_ref())?))
    }
}

/// stub
pub fn open(path: impl AsRef<Path>) -> Result<Arc<dyn Volume>> {
    OpenOptions::default().open(path.as_ref())
}
