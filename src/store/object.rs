//! Parts and versions of objects, and the reasons why they cannot be read or written.

use std::hash::{DefaultHasher, Hash, Hasher};
#[cfg(feature = "cloud")]
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// A part of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// All bytes.
    Whole,
    /// The first bytes, or all if there are fewer.
    First(u64),
    /// The last bytes.
    Last(u64),
    /// A range, which must be inside the object.
    Range(Range<u64>),
}

impl Part {
    /// Returns the range of this part in an object of `length` bytes.
    pub(crate) fn range(&self, length: u64) -> Range<u64> {
        match self {
            Self::Whole => 0..length,
            Self::First(count) => 0..length.min(*count),
            Self::Last(count) => length.saturating_sub(*count)..length,
            Self::Range(range) => range.clone(),
        }
    }
}

/// The version of an object: if two differ, so may the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// The entity tag, if the server has one.
    pub(crate) etag: Option<String>,
    /// The time of the last modification in milliseconds since 1970; 0 if it is unknown.
    pub(crate) modified: i64,
    /// Bytes of the whole object.
    pub(crate) size: u64,
}

impl Version {
    /// Returns how `now` differs from this version; `None` if it does not.
    pub(crate) fn change(&self, now: &Self) -> Option<String> {
        if self.size != now.size {
            return Some(format!("it had {} bytes and has {}", self.size, now.size));
        }
        let same = match (&self.etag, &now.etag) {
            (Some(before), Some(now)) => before == now,
            _ => self.modified == now.modified,
        };
        (!same).then(|| "it was replaced (its ETag or date is different)".to_owned())
    }
}

/// Returns an entity tag without its quotes, which lists and answers do not always have alike.
#[cfg(feature = "cloud")]
pub(super) fn plain_tag(tag: Option<String>) -> Option<String> {
    tag.map(|tag| tag.trim_matches('"').to_owned())
}

/// An object of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The name from the listed folder on.
    pub(crate) name: String,
    /// The length in bytes.
    pub(crate) size: u64,
    /// The entity tag without quotes, if the server has one.
    pub(crate) tag: Option<String>,
}

/// A number that identifies a set of names with lengths, however it is ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    count: u64,
    sum: u64,
}

impl Digest {
    pub(crate) fn add(&mut self, name: &str, length: u64) {
        let mut hasher = DefaultHasher::new();
        (name, length).hash(&mut hasher);
        self.count += 1;
        self.sum = self.sum.wrapping_add(hasher.finish());
    }
}

/// Bytes of an object.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) version: Arc<Version>,
}

#[cfg(feature = "cloud")]
impl Fetched {
    /// Returns a part of a whole object.
    pub(super) fn part(&self, part: &Part) -> Result<Self, Failure> {
        let size = self.bytes.len() as u64;
        let range = part.range(size);
        let inside = |n: u64| usize::try_from(n).ok().filter(|_| n <= size);
        let (start, end) = inside(range.start)
            .zip(inside(range.end))
            .ok_or(Failure::Length(size))?;
        Ok(Self {
            bytes: self.bytes.slice(start..end),
            version: Arc::clone(&self.version),
        })
    }
}

/// The reason why an object cannot be read or written.
#[cfg(feature = "cloud")]
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// There is no such object.
    Absent,
    /// It is a different version than the one that was opened.
    Changed(String),
    /// It has more bytes than allowed, or fewer than the requested part needs: this many.
    Length(u64),
    /// The server ignores the `Range` header.
    NoRanges,
    /// There is an object already.
    Taken,
    /// The server cannot write an object on the condition that it does not exist.
    NoConditions,
    /// Nothing is written to this kind of server.
    ReadOnly,
    /// Anything else.
    Io(Arc<io::Error>),
}

#[cfg(feature = "cloud")]
impl Failure {
    pub(super) fn io(kind: io::ErrorKind, problem: impl Into<String>) -> Self {
        Self::Io(Arc::new(io::Error::new(kind, problem.into())))
    }
}
