//! Outputs in a store.
//!
//! A store cannot rename, so each chunk is put under its final key. Until the last chunk is there, there are no metadata,
//! so nothing looks finished; a small object, the claim, says that a run is writing. The claim and the metadata are
//! put on the condition that they do not exist, and the metadata of the root come last. Before them, the
//! claim and the list of objects must be as this run left them: two runs cannot mix their chunks unnoticed.
//!
//! An unfinished output is removed on drop; one that a killed process left keeps its claim, and is replaced only if
//! replacing is allowed. Existing objects are removed only if all of them belong to a Zarr array or group.
//!
//! [`part`] has outputs that several processes write, or several runs.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};

use super::super::Layout;
use super::super::create::CreateOptions;
use super::super::needs::upload_bytes;
use super::belongs::{foreign_object, is_document};
use super::store::{DOCUMENT, parse_document};
use crate::error::{Error, Result};
use crate::store::{Digest, Listed, Part, Place, Remote, Uploads};

mod check;
mod claim;
mod coarser;
mod note;
mod part;
mod recorder;

pub(in super::super) use self::claim::begun_options;
pub(in super::super) use self::part::{ObjectsPart, ObjectsParts};

/// The name of the object that claims an output.
pub(super) const CLAIM: &str = ".voxpatch.unfinished";

/// The documents of a finished output's root, one of which is written last.
const ROOTS: [&str; 2] = ["zarr.json", ".zgroup"];

/// The time in which objects that are on their way may still arrive when an output is given up.
const LAST_ARRIVALS: Duration = Duration::from_secs(10);

/// An output in a store under construction.
#[derive(Debug)]
pub(super) struct ObjectsOutput {
    remote: Remote,
    path: PathBuf,
    uploads: Uploads,
    /// The content of the claim.
    claim: Vec<u8>,
    /// Documents, in the order in which they are written: that of the root last.
    documents: Vec<(String, Vec<u8>)>,
    is_finished: bool,
}

/// Returns the store of an output; `None` if it is not in one.
pub(in super::super) fn store_of(path: &Path, options: &CreateOptions) -> Result<Option<Remote>> {
    Ok(match Place::of(path, &options.storage_options, None)?.0 {
        Place::Local => None,
        Place::Remote(remote) => {
            remote.check_writable(path)?;
            Some(remote)
        }
    })
}

/// Checks that an output in a store may have its name.
pub(in super::super) fn check_objects(remote: &Remote, path: &Path, overwrite: bool) -> Result<()> {
    replaceable(remote, path, overwrite).map(drop)
}

/// Returns the names of the objects that an output replaces.
fn replaceable(remote: &Remote, path: &Path, overwrite: bool) -> Result<Vec<String>> {
    if remote.version(path)?.is_some() {
        return Err(Error::NotOverwritable {
            path: path.to_path_buf(),
            what: "one object, and the output is many below this name".to_owned(),
        });
    }
    let most = if overwrite { usize::MAX } else { 1 };
    let names: Vec<String> = remote
        .list(path, most)?
        .into_iter()
        .map(|one| one.name)
        .collect();
    if names.is_empty() {
        return Ok(names);
    }
    if !overwrite {
        return Err(taken(remote, path)?);
    }
    let document = |name: &str| read_document(remote, &path.join(name));
    let others = names.iter().filter(|name| !note::is_note(name)).cloned();
    match foreign_object(&others.collect::<Vec<_>>(), CLAIM, &document)? {
        None => Ok(names),
        Some(name) => Err(Error::NotOverwritable {
            path: path.to_path_buf(),
            what: format!(
                "a folder that holds {name}, which does not belong to a Zarr array or group"
            ),
        }),
    }
}

/// Returns the error of a name that is taken.
fn taken(remote: &Remote, path: &Path) -> Result<Error> {
    let path = path.to_path_buf();
    for root in ROOTS {
        if remote.version(&path.join(root))?.is_some() {
            return Ok(Error::Exists { path });
        }
    }
    Ok(match read(remote, &path.join(CLAIM))? {
        None => Error::Exists { path },
        Some(claim) => Error::Unfinished {
            path,
            began: age(&claim),
        },
    })
}

/// Returns how long ago a run claimed an output, as in `3 minutes ago`.
fn age(claim: &[u8]) -> String {
    let began = serde_json::from_slice::<Json>(claim).ok();
    let began = began.and_then(|claim| claim.get("began")?.as_u64());
    let Some(began) = began else {
        return "some time ago".to_owned();
    };
    let seconds = now().saturating_sub(began);
    let (number, unit) = match seconds {
        0..120 => (seconds, "seconds"),
        120..7200 => (seconds / 60, "minutes"),
        7200..172_800 => (seconds / 3600, "hours"),
        _ => (seconds / 86400, "days"),
    };
    format!("{number} {unit} ago")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Reads a small object; `None` if it does not exist.
fn read(remote: &Remote, path: &Path) -> Result<Option<Vec<u8>>> {
    let length = |size| Error::header(path, "Zarr", format!("it has {size} bytes"));
    let found = remote.read(path, Part::Whole, (DOCUMENT, &length), None)?;
    Ok(found.map(|found| found.bytes.into()))
}

/// Writes an object that must not exist, with a mark if there is one. Returns `false` if it exists with another content: a
/// repeated request may find what its first attempt wrote.
fn create_same(remote: &Remote, path: &Path, bytes: &[u8], mark: Option<&str>) -> Result<bool> {
    if remote.create(path, bytes.to_vec(), mark)? {
        return Ok(true);
    }
    Ok(read(remote, path)?.is_some_and(|found| found == bytes))
}

/// Returns the error of a server that writes objects whether or not they exist.
fn without_conditions(path: &Path) -> Error {
    Error::unsupported(
        path,
        "its server ignores conditions, so that two runs could write the same output without noticing: write to this \
         machine, and copy it",
    )
}

/// Reads a document; `None` if it does not exist or is none.
fn read_document(remote: &Remote, path: &Path) -> Result<Option<Json>> {
    let found = read(remote, path)?;
    Ok(found.and_then(|bytes| parse_document(path, &bytes).ok()))
}

impl ObjectsOutput {
    /// Claims the name of an output, and removes what it replaces. `documents` are all metadata, that of the root first.
    pub(super) fn create(
        remote: Remote,
        layout: &Layout,
        overwrite: bool,
        documents: Vec<(String, Vec<u8>)>,
    ) -> Result<Self> {
        let path = &layout.path;
        let old = replaceable(&remote, path, overwrite)?;
        let random = || RandomState::new().hash_one(std::process::id());
        let run = format!("{:016x}{:016x}", random(), random());
        let claim = json!({"voxpatch": "an unfinished output", "run": run, "began": now()});
        let output = Self {
            uploads: remote.uploads(upload_bytes(layout)),
            path: path.clone(),
            claim: claim.to_string().into_bytes(),
            documents: documents.into_iter().rev().collect(),
            is_finished: false,
            remote,
        };
        let claimed = output.path.join(CLAIM);
        if old.iter().any(|name| name == CLAIM) {
            output.remote.put(&claimed, output.claim.clone())?;
        } else if !output.create_object(CLAIM, &output.claim)? {
            return Err(taken(&output.remote, path)?);
        }
        if output.remote.create(&claimed, output.claim.clone(), None)? {
            return Err(without_conditions(path));
        }
        output.clear(old)?;
        Ok(output)
    }

    /// Puts an encoded chunk, without waiting for it.
    pub(super) fn put(&self, key: &str, encoded: Vec<u8>) -> Result<()> {
        self.uploads.put(&self.path, key, encoded)
    }

    /// Waits for all chunks, and writes the metadata.
    pub(super) fn finish(mut self) -> Result<()> {
        let written = self.uploads.wait()?;
        if !self.has_claim()? {
            return Err(self.changed("another run has claimed it"));
        }
        let mut found = Digest::default();
        for Listed { name, size, .. } in self.remote.list(&self.path, usize::MAX)? {
            if name != CLAIM {
                found.add(&name, size);
            }
        }
        if found != written {
            return Err(self.changed("it has other objects than those that were written"));
        }
        for (name, bytes) in &self.documents {
            if !self.create_object(name, bytes)? {
                return Err(self.changed("another run has written its metadata"));
            }
        }
        self.is_finished = true;
        // The output is complete, and a claim that stays is ignored.
        let _ = self.remote.remove(&self.path, &[CLAIM.to_owned()]);
        Ok(())
    }

    fn create_object(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        create_same(&self.remote, &self.path.join(name), bytes, None)
    }

    fn has_claim(&self) -> Result<bool> {
        let found = read(&self.remote, &self.path.join(CLAIM))?;
        Ok(found.is_some_and(|found| found == self.claim))
    }

    fn changed(&self, what: &'static str) -> Error {
        Error::OutputModified {
            path: self.path.clone(),
            what,
        }
    }

    /// Removes objects: metadata first, so that nothing looks finished, and not the claim.
    fn clear(&self, mut names: Vec<String>) -> Result<()> {
        names.retain(|name| name != CLAIM);
        let first = |name: &String| (!is_document(name), name.matches('/').count());
        names.sort_by_cached_key(first);
        self.remote.remove(&self.path, &names)
    }

    /// Removes what this run has written.
    fn discard(&self) -> Result<()> {
        self.uploads.give_up(LAST_ARRIVALS);
        if !self.has_claim()? {
            return Ok(());
        }
        let names = replaceable(&self.remote, &self.path, true)?;
        self.clear(names)?;
        self.remote.remove(&self.path, &[CLAIM.to_owned()])
    }
}

impl Drop for ObjectsOutput {
    fn drop(&mut self) {
        if !self.is_finished {
            // The claim that stays says what is there.
            let _ = self.discard();
        }
    }
}

#[cfg(test)]
#[cfg(feature = "cloud")]
mod tests;
