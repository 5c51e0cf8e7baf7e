//! The entries that belong to a Zarr array or group: metadata, chunks, and arrays and groups below.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::super::overwrite::{UnexpectedEntry, guarded};
use super::store::{Links, read_json};
use crate::error::{Error, Result};

/// The role of a folder in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Array,
    Group,
    /// A folder below an array: its name is the start of a chunk's key.
    Chunks,
}

/// Returns the first entry in a folder that does not belong to a Zarr array or group. `None` if everything belongs, or
/// if the folder is empty.
pub(in super::super) fn foreign(folder: &Path) -> Result<Option<UnexpectedEntry>> {
    let Some(first) = entries(folder)?.next() else {
        return Ok(None);
    };
    let Some(role) = role(folder) else {
        return Ok(Some(UnexpectedEntry::new(first?.path())));
    };
    let mut folders = vec![(folder.to_path_buf(), role)];
    while let Some((folder, role)) = folders.pop() {
        for entry in entries(&folder)? {
            let entry = entry?;
            match sort(&entry, role)? {
                Sorted::Own => {}
                Sorted::Below(role) => folders.push((entry.path(), role)),
                Sorted::Unexpected(foreign) => return Ok(Some(foreign)),
            }
        }
    }
    Ok(None)
}

enum Sorted {
    Own,
    Below(Role),
    Unexpected(UnexpectedEntry),
}

/// Classifies an entry of a folder with this role.
fn sort(entry: &fs::DirEntry, above: Role) -> Result<Sorted> {
    let path = entry.path();
    let failed = Error::io("look at", &path);
    let (name, kind) = (entry.file_name(), entry.file_type().map_err(failed)?);
    let name = name.to_str().unwrap_or_default();
    let foreign = |path: PathBuf| Ok(Sorted::Unexpected(UnexpectedEntry::new(path)));
    if kind.is_file() {
        let own = match above {
            Role::Array => is_document(name) || is_key(name),
            Role::Group => is_document(name),
            Role::Chunks => is_key(name),
        };
        return if own { Ok(Sorted::Own) } else { foreign(path) };
    }
    if !kind.is_dir() {
        return foreign(path);
    }
    let role = match above {
        Role::Group => role(&path),
        Role::Array | Role::Chunks => is_key(name).then_some(Role::Chunks),
    };
    let Some(role) = role else {
        return foreign(path);
    };
    let found = entry.metadata().map_err(Error::io("look at", &path))?;
    Ok(match guarded(&path, &found) {
        Some(what) => Sorted::Unexpected(UnexpectedEntry {
            path,
            what: Some(what),
        }),
        None => Sorted::Below(role),
    })
}

fn entries(folder: &Path) -> Result<impl Iterator<Item = Result<fs::DirEntry>>> {
    let listed = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    Ok(listed.map(move |entry| entry.map_err(Error::io("list", folder))))
}

/// Returns the first object, of those with these names below a path, that does not belong to a Zarr array or group.
/// `document` reads one of them. If there is the object `claim`, the output is unfinished and may lack metadata.
pub(super) fn foreign_object(
    names: &[String],
    claim: &str,
    document: &dyn Fn(&str) -> Result<Option<Json>>,
) -> Result<Option<String>> {
    let known: HashSet<&str> = names.iter().map(String::as_str).collect();
    let is_unfinished = known.contains(claim);
    let mut roles: HashMap<&str, Option<Role>> = HashMap::new();
    for name in names {
        if name == claim {
            continue;
        }
        let ends = name.match_indices('/').map(|(at, _)| at);
        let mut above: Option<Role> = None;
        for end in std::iter::once(0).chain(ends) {
            let folder = &name[..end];
            let own = match above {
                // Below an array, names alone decide.
                Some(Role::Array | Role::Chunks) => is_key(last(folder)).then_some(Role::Chunks),
                Some(Role::Group) | None => {
                    if !roles.contains_key(folder) {
                        let mut failure = None;
                        let read = |own: &str| {
                            let name = format!("{folder}/{own}");
                            let name = name.trim_start_matches('/');
                            let found = known.contains(name).then(|| document(name))?;
                            found.unwrap_or_else(|error| {
                                failure = Some(error);
                                None
                            })
                        };
                        let found = role_by(read);
                        if let Some(error) = failure {
                            return Err(error);
                        }
                        let bare = is_unfinished && (folder.is_empty() || is_key(folder));
                        let found = found.or_else(|| {
                            let role = if folder.is_empty() {
                                Role::Group
                            } else {
                                Role::Array
                            };
                            bare.then_some(role)
                        });
                        roles.insert(folder, found);
                    }
                    roles[folder]
                }
            };
            let Some(role) = own else {
                return Ok(Some(name.clone()));
            };
            above = Some(role);
        }
        let last = last(name);
        let own = match above {
            Some(Role::Group) => is_document(last) || (is_unfinished && is_key(last)),
            Some(Role::Array) => is_document(last) || is_key(last),
            Some(Role::Chunks) => is_key(last),
            None => false,
        };
        if !own {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

/// Returns the last part of a name.
fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Returns the role of a folder by its own metadata; `None` if they cannot be read.
fn role(folder: &Path) -> Option<Role> {
    role_by(|name| read_json(folder, name, Links::Refused).ok().flatten())
}

/// Returns the role of a folder whose documents `document` reads.
fn role_by(mut document: impl FnMut(&str) -> Option<Json>) -> Option<Role> {
    let version = |document: &Json| document.get("zarr_format").and_then(Json::as_u64);
    if let Some(found) = document("zarr.json") {
        return match found.get("node_type").and_then(Json::as_str) {
            Some("array") if version(&found) == Some(3) => Some(Role::Array),
            Some("group") if version(&found) == Some(3) => Some(Role::Group),
            _ => None,
        };
    }
    let mut is_v2 = |name| document(name).is_some_and(|found| version(&found) == Some(2));
    if is_v2(".zarray") {
        Some(Role::Array)
    } else {
        is_v2(".zgroup").then_some(Role::Group)
    }
}

/// Returns `true` if files of this name contain metadata.
pub(super) fn is_document(name: &str) -> bool {
    matches!(
        last(name),
        "zarr.json" | ".zarray" | ".zgroup" | ".zattrs" | ".zmetadata"
    )
}

/// Returns `true` if an object may be a chunk of the array in a folder, by its name.
pub(super) fn is_chunk_of(array: &str, name: &str) -> bool {
    let below = name.strip_prefix(array).and_then(|n| n.strip_prefix('/'));
    below.is_some_and(|below| below.split('/').all(is_key))
}

/// Returns `true` if a name is a chunk's key or a part of one: `c`, `17`, `0.1.2`, `c.0.1.2`.
fn is_key(name: &str) -> bool {
    let numbers = match name.strip_prefix('c') {
        Some("") => return true,
        Some(rest) => rest.strip_prefix('.'),
        None => Some(name),
    };
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|numbers| numbers.split('.').all(is_number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_keys_are_distinguished_from_other_names() {
        for own in ["c", "0", "17", "0.1.2", "c.0.1.2"] {
            assert!(is_key(own), "{own}");
        }
        for other in [
            "", "C", "c.", "c0", "0.", ".0", "0..1", "1a", "-1", "0 1", "٣",
        ] {
            assert!(!is_key(other), "{other}");
        }
    }
}
