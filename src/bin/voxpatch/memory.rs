//! How memory is reported.

use crate::report;

/// Bytes for people, if they are known.
pub(crate) fn text(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), report::bytes)
}
