//! Parts of an output, and their durability.

use std::fs::File;
use std::path::Path;

use super::super::Layout;
use crate::error::{Error, Result};
use crate::region::Region;

/// The failures that a finished chunk survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A killed process. A power failure may lose or damage files. Files whose length differs from the record are
    /// written again; other damage is only found by [`verify`](crate::volume::verify).
    #[default]
    None,
    /// Also a power failure: the chunk's file and folder are flushed to disk before the chunk is recorded.
    Chunk,
}

impl Durability {
    pub(super) fn sync(self, file: &File, path: &Path) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Chunk => file.sync_all().map_err(Error::io("make durable", path)),
        }
    }

    pub(super) fn sync_folder(self, path: &Path) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Chunk => File::open(path)
                .and_then(|folder| folder.sync_all())
                .map_err(Error::io("make durable", path)),
        }
    }
}

/// One of several processes that write one output, each with its own chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputPart {
    pub(super) index: u32,
    pub(super) count: u32,
}

impl OutputPart {
    /// The only part.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Creates part `index`, counted from 0, of `count`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if there is no such part.
    pub fn new(index: u32, count: u32) -> Result<Self> {
        if index < count {
            return Ok(Self { index, count });
        }
        Err(Error::InvalidArgument {
            argument: "part",
            value: format!("{index} of {count}"),
            problem: "parts are numbered from 0 to one less than their count".to_owned(),
        })
    }

    /// Returns the index, counted from 0.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Returns the number of parts.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Returns this part's region of a volume, which is split along `axis` (0 to 2 for z, y, x) at write-chunk
    /// boundaries, as evenly as possible. The region may be empty.
    ///
    /// # Panics
    ///
    /// Panics if `axis` is larger than 2.
    #[must_use]
    pub fn region(self, layout: &Layout, axis: usize) -> Region {
        let mut region = Region::whole(layout.shape);
        let [_, chunk @ ..] = layout.write_chunk.unwrap_or([1; 4]);
        let layers = u128::from(layout.shape[axis].div_ceil(chunk[axis]));
        let bound = |n: u32| {
            let layer = layers * u128::from(n) / u128::from(self.count);
            let layer = u64::try_from(layer).unwrap_or(u64::MAX);
            layer.saturating_mul(chunk[axis]).min(layout.shape[axis])
        };
        let (start, end) = (bound(self.index), bound(self.index + 1));
        region.start[axis] = region.start[axis].saturating_add_unsigned(start);
        region.shape[axis] = end - start;
        region
    }

    /// Returns the part whose journal has this name.
    pub(super) fn of_journal(name: &str) -> Option<Self> {
        let (index, count) = name.strip_prefix("journal.")?.split_once("-of-")?;
        Self::new(index.parse().ok()?, count.parse().ok()?).ok()
    }

    /// Returns the name of a file of this part.
    pub(super) fn name(self, what: &str) -> String {
        format!("{what}.{}-of-{}", self.index, self.count)
    }
}
