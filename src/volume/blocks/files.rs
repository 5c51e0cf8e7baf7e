//! The files of a volume of blocks.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::watch::FileWatch;
use crate::error::{Error, Result};
use crate::files::open_regular;

/// Files that are read at any place, as long as they are unchanged.
#[derive(Debug)]
pub(in super::super) struct Files {
    watch: FileWatch,
    /// The only file, kept open. Several files are opened for each read, because there may be more of them than a
    /// process may have open.
    single: Option<File>,
}

impl Files {
    /// Opens the only file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be opened.
    pub(in super::super) fn open(watch: FileWatch) -> Result<Self> {
        let mut paths = watch.paths();
        let single = match (paths.next(), paths.next()) {
            (Some(only), None) => Some(open_regular(only)?),
            _ => None,
        };
        drop(paths);
        Ok(Self { watch, single })
    }

    /// Returns the files as they were when their headers were read.
    pub(in super::super) const fn watch(&self) -> &FileWatch {
        &self.watch
    }

    /// Returns the files as they were when their headers were read.
    #[cfg(feature = "tiff")]
    pub(in super::super) fn into_watch(self) -> FileWatch {
        self.watch
    }

    /// Calls `work` with the open file number `index`.
    pub(in super::super) fn with<T>(
        &self,
        index: usize,
        work: impl FnOnce(&File) -> T,
    ) -> Result<T> {
        match &self.single {
            Some(file) => Ok(work(file)),
            None => Ok(work(&open_regular(self.watch.path(index))?)),
        }
    }

    /// Fills `out` from byte `at` of file number `index`.
    ///
    /// # Errors
    ///
    /// [`Error::InputModified`] if the file is not the one whose header was read, and [`Error::Io`].
    pub(in super::super) fn read(&self, index: usize, out: &mut [u8], at: u64) -> Result<()> {
        self.with(index, |open| {
            self.watch.check_file(index, open)?;
            open.read_exact_at(out, at)
                .map_err(Error::io("read", self.watch.path(index)))
        })?
    }
}
