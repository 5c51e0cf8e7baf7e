//! The outcome of a timed wait.

use crate::error::Result;

/// The outcome of a timed wait.
#[derive(Debug)]
pub enum TryNext<T> {
    /// The next item.
    Ready(T),
    /// Timed out; try again.
    TimedOut,
    /// The end of the epoch.
    Finished,
}

impl<T> TryNext<Result<T>> {
    pub(super) fn and_then<U>(self, then: impl FnOnce(T) -> Result<U>) -> TryNext<Result<U>> {
        match self {
            Self::Ready(item) => TryNext::Ready(item.and_then(then)),
            Self::TimedOut => TryNext::TimedOut,
            Self::Finished => TryNext::Finished,
        }
    }
}
