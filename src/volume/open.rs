//! Opening: which format a path holds, by content and extension.

use std::path::Path;
use std::sync::Arc;

use super::{RawSpec, Volume, flat, zarr};
use crate::error::Result;

/// What [`open`] may be told.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Which level of a multiscale image; 0 is the finest.
    pub level: usize,
    /// How a headerless file is laid out; else its JSON sidecar says.
    pub raw: Option<RawSpec>,
}

impl OpenOptions {
    /// stub
    pub fn open(&self, path: &Path) -> Result<Arc<dyn Volume>> {
        if path.is_dir() {
            return Ok(Arc::new(zarr::ZarrVolume::open(path, self.level)?));
        }
        Ok(Arc::new(flat::FlatVolume::open(path, self.raw.as_ref())?))
    }
}

/// stub
pub fn open(path: impl AsRef<Path>) -> Result<Arc<dyn Volume>> {
    OpenOptions::default().open(path.as_ref())
}
