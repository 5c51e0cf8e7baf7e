//! Runs whose output is in a store and is written by several processes, or over several runs.
//!
//! The processes share a claim: an object that identifies the run by everything that its voxels depend on. The first
//! process creates it, the others find it, and a process with different settings is refused. There are no locks: all
//! processes of a part put the same bytes under the same keys, so it does not matter which of them comes last.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::super::super::OutputPart;
use super::super::super::create::CreateOptions;
use super::super::super::partial::{self, Differences, RunDescription};
use super::super::belongs::{is_chunk_of, is_document};
use super::super::partial_options::options_of;
use super::note::{self, Note, NoteName, is_note};
use super::{CLAIM, age, now, read, replaceable};
use crate::error::{Error, Result};
use crate::store::{Part, Remote, shown};

/// The time between two attempts to remove what another process is removing too.
const PAUSE: Duration = Duration::from_millis(200);

/// The number of these attempts.
const ATTEMPTS: u32 = 10;

/// The most bytes of a note.
const LONGEST_NOTE: u64 = 1 << 30;

/// A run that writes an output in a store.
#[derive(Debug)]
pub(super) struct TaskRun {
    pub(super) remote: Remote,
    pub(super) path: PathBuf,
    /// The id of everything that the output's bytes depend on.
    pub(super) id: String,
    /// The number of parts.
    pub(super) count: u32,
    /// The number of levels.
    levels: usize,
    /// All metadata, those of the root last.
    pub(super) documents: Vec<(String, Vec<u8>)>,
    fingerprint: Json,
    overwrite: bool,
    /// Whether a process may begin after the output was published.
    may_be_late: bool,
}

/// The claim of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// The number of parts.
    pub(super) parts: u32,
    /// Whether an old output is being removed.
    pub(super) is_clearing: bool,
    /// Whether an old output was replaced, of which chunks may be left.
    pub(super) replaces: bool,
}

/// Returns the options of the output that a run of several processes has begun at `path`; `None` if there is none.
pub(in super::super::super) fn begun_options(
    remote: &Remote,
    path: &Path,
) -> Result<Option<CreateOptions>> {
    let path = shown(path);
    let Some(bytes) = read(remote, &path.join(CLAIM))? else {
        return Ok(None);
    };
    let found: Json = serde_json::from_slice(&bytes).unwrap_or_default();
    let document = |name: &str| found.get("documents")?.get(name).cloned();
    Ok(options_of(&path, &document))
}

impl TaskRun {
    pub(super) fn new(
        remote: Remote,
        run: &RunDescription<'_>,
        (levels, count): (usize, u32),
        overwrite: bool,
    ) -> Self {
        let texts = run.files.iter();
        let texts: Vec<_> = texts
            .map(|(name, text)| json!([name, String::from_utf8_lossy(text)]))
            .collect();
        Self {
            remote,
            path: run.target.to_path_buf(),
            id: partial::id(&json!([run.id, texts])),
            count,
            levels,
            documents: run.files.iter().rev().cloned().collect(),
            fingerprint: run.fingerprint.clone(),
            overwrite,
            may_be_late: count > 1 || run.repeats,
        }
    }

    /// Claims the output, unless a process of this run has done so, and removes the metadata of one that it replaces.
    /// Returns `false` if this run has published it.
    ///
    /// # Errors
    ///
    /// [`Error::RunMismatch`] if parts of another run are written; [`Error::Exists`], [`Error::Unfinished`] or
    /// [`Error::NotOverwritable`] if the name is taken; [`Error::Unsupported`] if the server ignores conditions.
    pub(super) fn enter(&self) -> Result<bool> {
        let mut attempts = 0;
        loop {
            match self.claim(true) {
                Ok(Some(Claim {
                    is_clearing: true, ..
                })) => match self.clear() {
                    // Another process of this run removes the objects by which others are recognized.
                    Err(Error::NotOverwritable { .. }) if attempts < ATTEMPTS => {
                        attempts += 1;
                        thread::sleep(PAUSE);
                    }
                    done => done?,
                },
                Ok(Some(_)) => return Ok(true),
                Ok(None) if self.may_be_late && self.is_published()? => return Ok(false),
                Ok(None) => self.begin()?,
                Err(Error::Unfinished { .. }) if self.overwrite => self.put_claim(true, true)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the claim of this run; `None` if there is no claim. Another number of parts is a different run if
    /// `same_parts`.
    pub(super) fn claim(&self, same_parts: bool) -> Result<Option<Claim>> {
        let Some(bytes) = read(&self.remote, &self.path.join(CLAIM))? else {
            return Ok(None);
        };
        let found: Json = serde_json::from_slice(&bytes).unwrap_or_default();
        let parts = found.get("parts").and_then(Json::as_u64);
        let Some(parts) = parts.and_then(|parts| u32::try_from(parts).ok()) else {
            return Err(Error::Unfinished {
                path: self.path.clone(),
                began: age(&bytes),
            });
        };
        let mut differences = Differences::default();
        differences.compare("fingerprint", &found["fingerprint"], &self.fingerprint);
        differences.compare("", &found["documents"], &self.parsed());
        if same_parts {
            differences.compare("parts", &json!(parts), &json!(self.count));
        }
        differences.check(&self.path)?;
        let is = |name: &str| found[name].as_bool().unwrap_or(false);
        Ok(Some(Claim {
            parts,
            is_clearing: is("clearing"),
            replaces: is("replaces"),
        }))
    }

    /// Returns `true` if the claim is that of this run; `false` if there is none, or that of another run.
    pub(super) fn has_claim(&self) -> Result<bool> {
        match self.claim(true) {
            Err(Error::RunMismatch { .. } | Error::Unfinished { .. }) => Ok(false),
            found => found.map(|found| found.is_some()),
        }
    }

    /// Returns `true` if this run has published the output: its last document has the mark of the run.
    pub(super) fn is_published(&self) -> Result<bool> {
        let Some((root, _)) = self.documents.last() else {
            return Ok(false);
        };
        let mark = self.remote.mark(&self.path.join(root))?;
        Ok(mark.as_deref() == Some(&*self.id))
    }

    /// Creates the claim, unless another process does.
    fn begin(&self) -> Result<()> {
        let old = match replaceable(&self.remote, &self.path, self.overwrite) {
            Err(
                error @ (Error::Exists { .. }
                | Error::Unfinished { .. }
                | Error::NotOverwritable { .. }),
            ) => {
                // Another process may have claimed the output just now, removed metadata, or even published it.
                let is_claimed = self.remote.version(&self.path.join(CLAIM))?.is_some();
                let is_own = is_claimed || (self.may_be_late && self.is_published()?);
                return if is_own { Ok(()) } else { Err(error) };
            }
            found => found?,
        };
        let (path, is_old) = (self.path.join(CLAIM), !old.is_empty());
        let claim = self.claim_text(is_old, is_old);
        // If it exists, it may be the claim of another process, or of this one, whose answer was lost.
        let is_new = self.remote.create(&path, claim.clone(), None)?;
        if !is_new || !self.remote.create(&path, claim, None)? {
            return Ok(());
        }
        // Either its server ignores conditions, or other processes were so fast that the first claim is gone.
        let is_published = self.is_published()?;
        self.remote.remove(&self.path, &[CLAIM.to_owned()])?;
        if is_published {
            return Ok(());
        }
        Err(super::without_conditions(&self.path))
    }

    /// Returns the level of an output's object that may be a chunk, by its name.
    pub(super) fn level_of(&self, name: &str) -> Option<usize> {
        (0..self.levels).find(|level| is_chunk_of(&level.to_string(), name))
    }

    /// Removes what the output replaces, except objects with keys of its own chunks: other processes may have written
    /// them already. Those are removed before the output is published, if they are not its chunks.
    fn clear(&self) -> Result<()> {
        if self.may_be_late && self.is_published()? {
            // The process that claimed it had seen the old output, and was slower than all others.
            return self.put_claim(false, true);
        }
        let mut names = replaceable(&self.remote, &self.path, true)?;
        names.retain(|name| name != CLAIM && !is_note(name) && self.level_of(name).is_none());
        // Without the metadata of the root, nothing looks finished. Those of arrays and groups below are removed after
        // their chunks, which are recognized by them.
        let is_top = |name: &String| is_document(name) && !name.contains('/');
        let (top, rest): (Vec<_>, Vec<_>) = names.into_iter().partition(is_top);
        let (mut documents, chunks): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|name| is_document(name));
        documents.sort_by_key(|name| std::cmp::Reverse(name.matches('/').count()));
        for names in [top, chunks, documents] {
            // A slow process must not remove what others have published in the meantime.
            if !self.claim(true)?.is_some_and(|claim| claim.is_clearing) {
                return Ok(());
            }
            self.remote.remove(&self.path, &names)?;
        }
        if self.claim(true)?.is_some_and(|claim| claim.is_clearing) {
            self.put_claim(false, true)?;
        }
        Ok(())
    }

    fn put_claim(&self, is_clearing: bool, replaces: bool) -> Result<()> {
        let claim = self.claim_text(is_clearing, replaces);
        self.remote.put(&self.path.join(CLAIM), claim)
    }

    fn claim_text(&self, is_clearing: bool, replaces: bool) -> Vec<u8> {
        let claim = json!({
            "voxpatch": "an unfinished output",
            "run": self.id,
            "began": now(),
            "parts": self.count,
            "clearing": is_clearing,
            "replaces": replaces,
            "fingerprint": self.fingerprint,
            "documents": self.parsed(),
        });
        claim.to_string().into_bytes()
    }

    /// Returns the documents by name.
    fn parsed(&self) -> Json {
        let parsed = |text: &[u8]| serde_json::from_slice(text).unwrap_or(Json::Null);
        let documents = self.documents.iter();
        documents
            .map(|(name, text)| (name.clone(), parsed(text)))
            .collect()
    }

    /// Returns the path of a note.
    fn note_path(&self, name: NoteName) -> PathBuf {
        let folder = self.path.join(note::folder(&self.id));
        folder.join(name.object())
    }

    /// Reads a note; `None` if there is none, or if it is damaged.
    pub(super) fn note(&self, name: NoteName) -> Result<Option<Note>> {
        let path = self.note_path(name);
        let length = |size| Error::header(&path, "note", format!("it has {size} bytes"));
        let limits = (LONGEST_NOTE, &length as &dyn Fn(u64) -> Error);
        let found = self.remote.read(&path, Part::Whole, limits, None)?;
        Ok(found.and_then(|found| Note::parse(&found.bytes, &self.id, name)))
    }

    /// Returns `true` if the last document exists, of any run.
    pub(super) fn has_root(&self) -> Result<bool> {
        match self.documents.last() {
            Some((root, _)) => Ok(self.remote.version(&self.path.join(root))?.is_some()),
            None => Ok(false),
        }
    }

    /// Writes a note, or replaces it.
    pub(super) fn put_note(&self, name: NoteName, note: &Note) -> Result<()> {
        let path = self.note_path(name);
        self.remote.put(&path, note.text(&self.id, name))
    }

    /// Removes the notes of a part.
    pub(super) fn remove_notes(&self, part: OutputPart) -> Result<()> {
        self.remove(&[NoteName::Complete(part), NoteName::Begun(part)])
    }

    /// Removes notes.
    pub(super) fn remove(&self, notes: &[NoteName]) -> Result<()> {
        let folder = self.path.join(note::folder(&self.id));
        let names: Vec<String> = notes.iter().map(|name| name.object()).collect();
        self.remote.remove(&folder, &names)
    }

    /// Returns the notes of this run.
    pub(super) fn noted(&self) -> Result<Vec<NoteName>> {
        let listed = self
            .remote
            .list(&self.path.join(note::folder(&self.id)), usize::MAX)?;
        let names = listed.iter().filter_map(|one| NoteName::parse(&one.name));
        Ok(names.collect())
    }

    /// Removes the claim and all notes, after the output was published.
    pub(super) fn tidy(&self) -> Result<()> {
        if !self.has_claim()? {
            return Ok(());
        }
        let folder = self.path.join(note::folder(&self.id));
        let names = self.remote.list(&folder, usize::MAX)?.into_iter();
        let names: Vec<String> = names.map(|one| one.name).collect();
        self.remote.remove(&folder, &names)?;
        self.remote.remove(&self.path, &[CLAIM.to_owned()])
    }
}
