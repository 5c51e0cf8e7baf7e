//! Numpy archives, such as the cases that nnU-Net prepares: a zip archive whose entries are `.npy` files.
//!
//! A stored entry is a flat file that begins at a byte of the archive, and is mapped. A deflated one is a stream.

use std::path::Path;
use std::sync::Arc;

use super::archive::Archive;
use super::flat;
use super::format::{self, DataStart, Encoding, FlatHeader, excerpt};
use super::{OpenOptions, Volume};
use crate::error::{Error, Result};
use crate::store::Place;

/// The extension of the entries.
const ARRAY: &str = ".npy";

/// Maximum number of arrays that an error names.
const MOST_NAMED: usize = 12;

/// Returns `true` if an archive holds arrays of numpy and nothing else.
pub(super) fn recognize(archive: &Archive) -> bool {
    let mut names = archive.names("").peekable();
    names.peek().is_some() && names.all(|name| name.ends_with(ARRAY))
}

/// Opens the array `inside` of an archive, or its only array.
pub(super) fn open(
    archive: &Archive,
    inside: &str,
    options: &OpenOptions,
) -> Result<Arc<dyn Volume>> {
    let path = archive.path();
    let names: Vec<&str> = archive
        .names("")
        .filter_map(|name| name.strip_suffix(ARRAY))
        .collect();
    let wanted = inside.strip_suffix(ARRAY).unwrap_or(inside);
    let name = match names.as_slice() {
        [only] if wanted.is_empty() => only,
        _ => names
            .iter()
            .find(|name| **name == wanted)
            .ok_or_else(|| choice(path, wanted, &names))?,
    };
    let entry = format!("{name}{ARRAY}");
    let absent = || Error::unsupported(path, "an array is no longer there");
    let stored = archive.locate(&entry)?.ok_or_else(absent)?;
    let head = archive.read(&entry, 0..stored.length.min(format::LIMIT))?;
    let shown = path.join(name);
    let header = format::npy::parse(&shown, &head.ok_or_else(absent)?)?;
    let DataStart::At { byte, .. } = header.start else {
        return Err(absent());
    };
    let needed = header.voxel_bytes().and_then(|n| n.checked_add(byte));
    if needed.is_none_or(|needed| needed > stored.length) {
        let problem = format!(
            "{} has {} bytes, fewer than its header says",
            excerpt(&entry),
            stored.length
        );
        return Err(Error::header(path, "npz", problem));
    }
    let header = if stored.is_deflated {
        FlatHeader {
            encoding: Encoding::Deflate {
                checksum: archive.checksum(&entry).ok_or_else(absent)?,
            },
            start: DataStart::byte(stored.range.start),
            skip: byte,
            ..header
        }
    } else {
        FlatHeader {
            start: DataStart::byte(stored.range.start.saturating_add(byte)),
            ..header
        }
    };
    flat::open(&Place::Local, &shown, path, &header, options)
}

/// Returns the error for an archive of several arrays, none of which is named `wanted`.
fn choice(path: &Path, wanted: &str, names: &[&str]) -> Error {
    let problem = if wanted.is_empty() {
        "it has several arrays".to_owned()
    } else {
        format!("it has no array {:?}, but", excerpt(wanted))
    };
    let mut listed: Vec<String> = names
        .iter()
        .take(MOST_NAMED)
        .map(|name| excerpt(name))
        .collect();
    if names.len() > MOST_NAMED {
        listed.push("...".to_owned());
    }
    let first = names.first().copied().unwrap_or("NAME");
    let what = format!(
        "{problem}: {} (open one of them by its path, like {})",
        listed.join(", "),
        path.join(excerpt(first)).display()
    );
    Error::unsupported(path, what)
}
