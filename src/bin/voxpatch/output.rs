//! Small helpers for files that the commands write themselves.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value as Json;
use voxpatch::volume::{FileKind, Overwrite, StagedFile};

/// Pictures.
pub(crate) const PICTURE: FileKind = FileKind {
    name: "a PNG picture",
    recognizes: |head| head.starts_with(b"\x89PNG\r\n\x1a\n"),
};

/// What `--stats` writes.
pub(crate) const STATISTICS: FileKind = FileKind {
    name: "statistics of sampling",
    recognizes: |head| {
        let found: Option<Json> = serde_json::from_slice(head).ok();
        let has = |key| found.as_ref().is_some_and(|found| found.get(key).is_some());
        has("patches") && has("patches_per_second") && has("index_seconds")
    },
};

/// A file under construction, written through a buffer.
#[derive(Debug)]
pub(crate) struct Output {
    file: StagedFile,
    buffer: BufWriter<File>,
    path: PathBuf,
}

impl Output {
    /// Starts a file beside `path`, which must not exist unless it may be replaced.
    pub(crate) fn create(path: &Path, overwrite: Overwrite) -> anyhow::Result<Self> {
        let file = StagedFile::new(path, overwrite)?;
        let twin = file.file().try_clone();
        let twin = twin.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            file,
            buffer: BufWriter::with_capacity(1 << 16, twin),
            path: path.to_path_buf(),
        })
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        self.buffer.flush().with_context(|| self.failed())?;
        Ok(self.file.finish()?)
    }

    /// Appends bytes, or says which file could not be written.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.buffer.write_all(bytes).with_context(|| self.failed())
    }

    fn failed(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}

/// For encoders that want a writer.
impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.buffer.flush()
    }
}
