//! The refusal of addresses, in a build without the feature `cloud`.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::object::Fetched;
use super::{Part, StorageOptions, Version, shown};
use crate::error::{Error, Result};

/// A store, of which there is none without the feature `cloud`.
#[derive(Clone, Debug)]
pub(crate) struct Remote(Infallible);

impl Remote {
    pub(crate) fn open(address: &Path, _: &StorageOptions) -> Result<(Self, PathBuf)> {
        let what = "this build of voxpatch reads files only: build it with the feature `cloud`, copy the volume to this \
                    machine, or mount it";
        Err(Error::unsupported(&shown(address), what))
    }

    pub(crate) fn read(
        &self,
        _: &Path,
        _: Part,
        _: (u64, &dyn Fn(u64) -> Error),
        _: Option<&Arc<Version>>,
    ) -> Result<Option<Fetched>> {
        match self.0 {}
    }

    pub(crate) fn prefetch(&self, _: &Path, _: Part, _: u64, _: Option<&Arc<Version>>) {
        match self.0 {}
    }

    pub(crate) fn has(&self, _: &Path, _: &Part) -> bool {
        match self.0 {}
    }

    pub(crate) fn version(&self, _: &Path) -> Result<Option<Version>> {
        match self.0 {}
    }

    pub(crate) fn folders(&self, _: &Path) -> Result<Vec<PathBuf>> {
        match self.0 {}
    }

    pub(crate) fn bytes_below(&self, _: &Path) -> Result<u64> {
        match self.0 {}
    }
}
