//! The refusal of addresses, in a build without the feature `cloud`.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::object::Fetched;
use super::{Digest, DiskCache, Listed, Part, StorageOptions, Version, shown};
use crate::error::{Error, Result};

/// Bytes of answers that wait to be read.
pub(crate) const HELD_BYTES: u64 = 0;

/// A store, of which there is none without the feature `cloud`.
#[derive(Clone, Debug)]
pub(crate) struct Remote(Infallible);

impl Remote {
    pub(crate) fn open(
        address: &Path,
        _: &StorageOptions,
        _: Option<Arc<DiskCache>>,
    ) -> Result<(Self, PathBuf)> {
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

    pub(crate) fn check_writable(&self, _: &Path) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn create(&self, _: &Path, _: Vec<u8>, _: Option<&str>) -> Result<bool> {
        match self.0 {}
    }

    pub(crate) fn mark(&self, _: &Path) -> Result<Option<String>> {
        match self.0 {}
    }

    pub(crate) fn put(&self, _: &Path, _: Vec<u8>) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn uploads(&self, _: u64) -> Uploads {
        match self.0 {}
    }

    pub(crate) fn list(&self, _: &Path, _: usize) -> Result<Vec<Listed>> {
        match self.0 {}
    }

    pub(crate) fn remove(&self, _: &Path, _: &[String]) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn folders(&self, _: &Path) -> Result<Vec<PathBuf>> {
        match self.0 {}
    }

    pub(crate) fn bytes_below(&self, _: &Path) -> Result<u64> {
        match self.0 {}
    }
}

/// Objects on their way to a store, of which there is none.
#[derive(Debug)]
pub(crate) struct Uploads(Infallible);

impl Uploads {
    pub(crate) fn put(&self, _: &Path, _: &str, _: Vec<u8>) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn recorded(self) -> Self {
        match self.0 {}
    }

    pub(crate) fn take_arrived(&self) -> Vec<(String, Option<String>)> {
        match self.0 {}
    }

    pub(crate) fn wait(&self) -> Result<Digest> {
        match self.0 {}
    }

    pub(crate) fn give_up(&self, _: Duration) {
        match self.0 {}
    }
}
