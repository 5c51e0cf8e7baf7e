//! Folders in which an output is built over several runs, or by several processes.
//!
//! An output `NAME` is built in `.NAME.partial` next to it:
//!
//! ```text
//! data/            becomes NAME
//! journal.I-of-N   the finished chunks of part I, and the run they belong to
//! lock.I-of-N      held by the process that writes part I
//! lock             held while a part starts, and while the output is completed
//! tmp.I-of-N/      incomplete files of part I
//! publishing       the run's outputs with the inodes of their folders, written before they get their names
//! ```
//!
//! A chunk is written under a temporary name, renamed, and then recorded. A process that is killed at any moment leaves
//! at worst a temporary file, an unrecorded chunk, or an incomplete record; the next process removes, rewrites or drops
//! it. Locks are the operating system's (flock) and end with their process.

mod compare;
mod files;
mod journal;
mod leftover;
mod metadata;
mod part;
mod publish;
#[cfg(test)]
pub(crate) mod steps;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value as Json, json};

use self::files::{Lock, lock, make_parents, remove_file, remove_folder};
use self::journal::Journal;
use self::leftover::{Places, is_published, remove_at_once, settle};
use self::metadata::write_metadata;
use super::overwrite::Overwrite;
use super::staged::parent;
use crate::error::{Error, Result};
use crate::files::NewFile;
use crate::region::Region;

pub(super) use self::compare::Differences;
pub(super) use self::journal::Record;
pub use self::leftover::discard_partial;
pub(super) use self::leftover::{foreign, is_partial, tidy};
pub use self::part::{Durability, OutputPart};
pub(super) use self::publish::{id, is_finished, publish};

/// The description of a run that starts or resumes an output.
#[derive(Debug)]
pub(super) struct RunDescription<'a> {
    pub(super) target: &'a Path,
    pub(super) overwrite: Overwrite,
    /// Named values that must be the same whenever the output is resumed.
    pub(super) fingerprint: &'a Json,
    pub(super) durability: Durability,
    /// The metadata files, with their paths in the output.
    pub(super) files: Vec<(String, Vec<u8>)>,
    /// The outputs that get their names together, in the same order in every process; empty if this is the only one.
    pub(super) group: &'a [PathBuf],
    /// Whether a single part may come after the output was published, as one of several may.
    pub(super) repeats: bool,
    /// The id of the run, by which an output that has its name is recognized.
    pub(super) id: String,
}

/// A folder in which an output is built, locked by this process.
#[derive(Debug)]
pub(super) struct Partial {
    places: Places,
    overwrite: Overwrite,
    durability: Durability,
    journal: Journal,
    temporary: PathBuf,
    next: AtomicU64,
    group: Vec<PathBuf>,
    id: String,
    /// Held until this is dropped.
    _locks: Vec<Lock>,
}

impl Partial {
    /// Starts or resumes part `part`, and calls `each` with every chunk that it has finished. Returns `None` if the run
    /// has finished the output and it has its final name.
    pub(super) fn open(
        run: &RunDescription<'_>,
        part: OutputPart,
        owned: Region,
        each: &mut dyn FnMut(Record),
    ) -> Result<Option<Self>> {
        let places = Places::of(run.target)?;
        let entered = enter(run, &places, part);
        if let Err(Error::Exists { .. }) = entered {
            // The process that named it may have been killed before everything of the run was removed.
            run.group.iter().try_for_each(|other| tidy(other))?;
        }
        let Some((own, _all)) = entered? else {
            return Ok(None);
        };
        let folder = &places.folder;
        let head = head(run, part, owned);
        check_others(folder, part, &head, owned)?;
        write_metadata(run, folder)?;
        let path = folder.join(part.name("journal"));
        let journal = if path.exists() {
            let mut differences = Differences::default();
            differences.compare("", &journal::read(&path, &mut |_| {})?, &head);
            differences.check(folder)?;
            Journal::resume(&path, run.durability, each)?
        } else {
            let journal = Journal::create(&path, &head, run.durability)?;
            run.durability.sync_folder(folder)?;
            journal
        };
        Self::with(run, places, journal, &part.name("tmp"), vec![own]).map(Some)
    }

    /// Opens all parts at once, and calls `each` with every chunk that any of them has finished. Returns `None` if the
    /// run has finished the output and it has its final name. With `begun`, this process has written a part, so any
    /// output with the name is this one.
    pub(super) fn open_all(
        run: &RunDescription<'_>,
        parts: u32,
        begun: bool,
        each: &mut dyn FnMut(Record),
    ) -> Result<Option<Self>> {
        let places = Places::of(run.target)?;
        let Some(mut locks) = enter_all(run, &places, parts, begun)? else {
            return Ok(None);
        };
        let folder = &places.folder;
        let mut first = None;
        for index in 0..parts {
            let part = OutputPart::new(index, parts)?;
            let path = folder.join(part.name("journal"));
            if !path.exists() {
                continue;
            }
            let head = head(run, part, Region::whole([0; 3]));
            let mut differences = Differences::default();
            let found = journal::read(&path, each)?;
            differences.compare_without("", &found, &head, "owned");
            differences.check(folder)?;
            first.get_or_insert(path);
        }
        journals(folder, parts)?;
        let Some(first) = first else {
            return Err(nothing_begun(&places));
        };
        write_metadata(run, folder)?;
        let journal = Journal::resume(&first, run.durability, &mut |_| {})?;
        // The part locks are released before the main lock, so that a process waiting for the main lock finds them
        // free.
        locks.rotate_left(1);
        Self::with(run, places, journal, "tmp.all", locks).map(Some)
    }

    fn with(
        run: &RunDescription<'_>,
        places: Places,
        journal: Journal,
        temporary: &str,
        locks: Vec<Lock>,
    ) -> Result<Self> {
        let temporary = places.folder.join(temporary);
        remove_folder(&temporary)?;
        fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?;
        Ok(Self {
            places,
            overwrite: run.overwrite,
            durability: run.durability,
            journal,
            temporary,
            next: AtomicU64::new(0),
            group: run.group.to_vec(),
            id: run.id.clone(),
            _locks: locks,
        })
    }

    /// Returns the folder in which the output's data grows.
    pub(super) fn data(&self) -> PathBuf {
        self.places.data()
    }

    /// Returns the folder of the unfinished output, including its bookkeeping.
    pub(super) fn folder(&self) -> &Path {
        &self.places.folder
    }

    /// Returns a temporary file for the bytes of a chunk.
    pub(super) fn new_file(&self) -> NewFile {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        NewFile::new(self.temporary.join(number.to_string()))
    }

    /// Stores the bytes of a chunk, if it has any, under `key`, and records that it is done.
    pub(super) fn keep(&self, key: &str, record: &Record, bytes: NewFile) -> Result<()> {
        let path = self.data().join(key);
        if let Some(file) = bytes.file() {
            self.durability.sync(file, bytes.path())?;
            make_parents(&path, self.durability)?;
            fs::rename(bytes.path(), &path).map_err(Error::io("write", &path))?;
            bytes.keep();
            self.durability.sync_folder(parent(&path))?;
        } else {
            // An earlier run may have written the file but not the record.
            remove_file(&path)?;
        }
        self.journal.add(record)
    }
}

/// Returns `true` if the error is a missing file.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

fn nothing_begun(places: &Places) -> Error {
    Error::MissingChunks {
        path: places.folder.clone(),
        missing: "every chunk: no part has been started".to_owned(),
    }
}

/// Returns the data folder of an unfinished run's output `target`, if a run has started it.
pub(super) fn data_folder(target: &Path) -> Result<Option<PathBuf>> {
    let places = Places::of(target)?;
    let grows = places.data().is_dir() && !is_published(&places);
    Ok(grows.then(|| places.data()))
}

/// Takes the lock of a part and the main lock in the folder of the output. Returns `None` if the output is finished.
fn enter(
    run: &RunDescription<'_>,
    places: &Places,
    part: OutputPart,
) -> Result<Option<(Lock, Lock)>> {
    let folder = &places.folder;
    loop {
        if settle(places)?.is_some_and(|id| id == run.id) {
            return Ok(None);
        }
        if !folder.is_dir() {
            if is_finished(run, part.count > 1 || run.repeats) {
                return Ok(None);
            }
            run.overwrite.check(run.target)?;
            make_folder(run, places)?;
        }
        // The main lock comes first: its holder may briefly take a part's lock to see whether the part is being
        // written.
        let all = lock(folder, "lock", true);
        let (own, all) =
            match all.and_then(|all| Ok((lock(folder, &part.name("lock"), false)?, all))) {
                // Another process has just completed the output and removed the folder.
                Err(error) if is_gone(&error) && !folder.exists() => continue,
                locked => locked?,
            };
        if is_published(places) {
            // Its process was killed just now.
            continue;
        }
        let finished = is_finished(run, part.count > 1 || run.repeats);
        let free = run.overwrite.check(run.target);
        if !finished && free.is_ok() {
            return Ok(Some((own, all)));
        }
        // The output got its name before the folder was created.
        if !places.data().exists() {
            remove_at_once(places)?;
        }
        return if finished {
            Ok(None)
        } else {
            free.map(|()| None)
        };
    }
}

/// Takes the locks of all parts, the main lock first. Returns `None` if the output is finished.
fn enter_all(
    run: &RunDescription<'_>,
    places: &Places,
    parts: u32,
    begun: bool,
) -> Result<Option<Vec<Lock>>> {
    let folder = &places.folder;
    loop {
        if settle(places)?.is_some_and(|id| id == run.id) {
            return Ok(None);
        }
        if !folder.is_dir() {
            // Another part may have finished as late as this one, and may have completed the output.
            if is_finished(run, true) || begun && places.target.exists() {
                return Ok(None);
            }
            run.overwrite.check(run.target)?;
            return Err(nothing_begun(places));
        }
        let all = match lock(folder, "lock", true) {
            Err(error) if is_gone(&error) && !folder.exists() => continue,
            locked => locked?,
        };
        let mut locks = vec![all];
        for index in 0..parts {
            let part = OutputPart::new(index, parts)?;
            locks.push(lock(folder, &part.name("lock"), false)?);
        }
        if !is_published(places) {
            return Ok(Some(locks));
        }
    }
}

fn make_folder(run: &RunDescription<'_>, places: &Places) -> Result<()> {
    let folder = &places.folder;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => {
            made.map_err(Error::io("create an output in", &places.beside))?;
            run.durability.sync_folder(&places.beside)
        }
    }
}

fn head(run: &RunDescription<'_>, part: OutputPart, owned: Region) -> Json {
    json!({
        "fingerprint": run.fingerprint,
        "part": part.index,
        "parts": part.count,
        "owned": {"start": owned.start, "shape": owned.shape},
    })
}

/// Returns the existing journals by part. Their number of parts must be `parts`.
fn journals(folder: &Path, parts: u32) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut differences = Differences::default();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let name = entry.map_err(Error::io("list", folder))?.file_name();
        let numbers = name
            .to_str()
            .and_then(|name| name.strip_prefix("journal."))
            .and_then(|name| name.split_once("-of-"));
        if let Some((index, count)) = numbers {
            differences.compare("parts", &json!(count), &json!(parts.to_string()));
            differences.check(folder)?;
            found.push((index.to_owned(), folder.join(&name)));
        }
    }
    Ok(found)
}

/// Returns the number of parts of a run that is not published yet; `None` if none has begun. Calls `each` with every part
/// that has begun, and with every chunk that it has finished. Takes no lock.
pub(super) fn recorded(
    run: &RunDescription<'_>,
    each: &mut dyn FnMut(u32, Option<Record>),
) -> Result<Option<u32>> {
    let places = Places::of(run.target)?;
    let folder = &places.folder;
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(Error::io("list", folder))?,
    };
    let mut parts = None;
    for entry in entries {
        let name = entry.map_err(Error::io("list", folder))?.file_name();
        let Some(part) = name.to_str().and_then(OutputPart::of_journal) else {
            continue;
        };
        each(part.index, None);
        let found = match journal::read(&folder.join(&name), &mut |record| {
            each(part.index, Some(record));
        }) {
            // Another process has just completed the output and removed the folder.
            Err(error) if is_gone(&error) => return Ok(None),
            found => found?,
        };
        let mut differences = Differences::default();
        let head = head(run, part, Region::whole([0; 3]));
        differences.compare_without("", &found, &head, "owned");
        let other = parts.replace(part.count).unwrap_or(part.count);
        differences.compare("parts", &json!(other), &json!(part.count));
        differences.check(folder)?;
    }
    // Another process may have removed the folder while it was listed: then parts are missing in the list.
    Ok(parts.filter(|_| folder.exists()))
}

/// Checks that all other parts belong to the same run and own different voxels.
fn check_others(folder: &Path, part: OutputPart, head: &Json, owned: Region) -> Result<()> {
    for (index, path) in journals(folder, part.count)? {
        if index == part.index.to_string() {
            continue;
        }
        let found = journal::read(&path, &mut |_| {})?;
        let mut differences = Differences::default();
        differences.compare("fingerprint", &found["fingerprint"], &head["fingerprint"]);
        differences.check(folder)?;
        let start = serde_json::from_value(found["owned"]["start"].clone()).ok();
        let shape = serde_json::from_value(found["owned"]["shape"].clone()).ok();
        let other = start
            .zip(shape)
            .map(|(start, shape)| Region::new(start, shape));
        if let Some(common) = other.and_then(|other| other.intersection(&owned)) {
            return Err(Error::InvalidArgument {
                argument: "part",
                value: format!("{} of {}", part.index, part.count),
                problem: format!("[{common}] belongs to part {index} too"),
            });
        }
    }
    Ok(())
}
