//! Folders in which an output grows over several runs, and on several machines' processes.
//!
//! An output called `NAME` grows in `.NAME.partial` beside it:
//!
//! ```text
//! data/            what will be called NAME
//! journal.I-of-N   which chunks part I has finished, and for which run
//! lock.I-of-N      held by the process that writes part I
//! lock             held while a part begins, and while the output is put together
//! tmp.I-of-N/      files of part I that are not whole yet
//! publishing       which folder data was when it was about to get its name
//! ```
//!
//! A chunk is written under a temporary name, renamed, and then noted. A process that is killed
//! at any moment leaves at worst a temporary file, a chunk that is not noted, or half a note; the
//! next one removes, rewrites or drops it. Locks are the operating system's (flock) and end with
//! their process.

mod compare;
mod files;
mod journal;
mod part;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value as Json, json};

use self::compare::Differences;
use self::files::{Lock, lock, make_parents, remove_file, remove_folder};
use self::journal::Journal;
use super::staged::{parent, place, publish};
use crate::error::{Error, Result};
use crate::region::Region;

pub(super) use self::journal::Record;
pub use self::part::{Durability, Part};

/// What a run says of itself when it begins or goes on.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) target: &'a Path,
    pub(super) replace: bool,
    /// Named values that must be the same whenever the output is gone on with.
    pub(super) fingerprint: &'a Json,
    pub(super) durability: Durability,
    /// The files of metadata, with their paths in the output.
    pub(super) files: Vec<(String, Vec<u8>)>,
}

/// A folder in which an output grows, held by this process.
#[derive(Debug)]
pub(super) struct Partial {
    folder: PathBuf,
    target: PathBuf,
    replace: bool,
    durability: Durability,
    journal: Journal,
    temporary: PathBuf,
    next: AtomicU64,
    /// Held until this is dropped.
    _locks: Vec<Lock>,
}

impl Partial {
    /// Begins part `part`, or goes on with it; `each` gets every chunk that it has finished.
    pub(super) fn open(
        run: &Run<'_>,
        part: Part,
        owned: Region,
        each: &mut dyn FnMut(Record),
    ) -> Result<Self> {
        let (folder, own, _all) = enter(run, part)?;
        drop_published(&folder)?;
        let head = head(run, part, owned);
        check_others(&folder, part, &head, owned)?;
        write_metadata(run, &folder)?;
        let path = folder.join(part.name("journal"));
        let journal = if path.exists() {
            let mut differences = Differences::default();
            differences.compare("", &journal::read(&path, &mut |_| {})?, &head);
            differences.check(&folder)?;
            Journal::resume(&path, run.durability, each)?
        } else {
            let journal = Journal::create(&path, &head, run.durability)?;
            run.durability.sync_folder(&folder)?;
            journal
        };
        Self::with(run, folder, journal, part.name("tmp"), vec![own])
    }

    /// Takes all parts at once; `each` gets every chunk that any of them has finished.
    pub(super) fn open_all(
        run: &Run<'_>,
        parts: u32,
        each: &mut dyn FnMut(Record),
    ) -> Result<Self> {
        let (folder, _) = names(run.target, run.replace)?;
        let locked = if folder.is_dir() {
            lock(&folder, "lock", true)
        } else {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            Err(Error::io("open", &folder)(missing))
        };
        let all = match locked {
            // The last of the other parts was as late as this one, and has done it.
            Err(error) if is_gone(&error) && run.target.exists() && !folder.exists() => {
                return Err(Error::Exists {
                    path: run.target.to_path_buf(),
                });
            }
            locked => locked?,
        };
        drop_published(&folder)?;
        // Given back before that of all, so that whoever waits for that finds them free.
        let mut locks = Vec::new();
        let mut first = None;
        for index in 0..parts {
            let part = Part::new(index, parts)?;
            locks.push(lock(&folder, &part.name("lock"), false)?);
            let path = folder.join(part.name("journal"));
            if !path.exists() {
                continue;
            }
            let head = head(run, part, Region::whole([0; 3]));
            let mut differences = Differences::default();
            let found = journal::read(&path, each)?;
            differences.compare_without("", &found, &head, "owned");
            differences.check(&folder)?;
            first.get_or_insert(path);
        }
        journals(&folder, parts)?;
        write_metadata(run, &folder)?;
        let Some(first) = first else {
            return Err(Error::MissingChunks {
                path: folder,
                missing: "every chunk: no part has begun".to_owned(),
            });
        };
        let journal = Journal::resume(&first, run.durability, &mut |_| {})?;
        locks.push(all);
        Self::with(run, folder, journal, "tmp.all".to_owned(), locks)
    }

    fn with(
        run: &Run<'_>,
        folder: PathBuf,
        journal: Journal,
        temporary: String,
        locks: Vec<Lock>,
    ) -> Result<Self> {
        let temporary = folder.join(temporary);
        remove_folder(&temporary)?;
        fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?;
        Ok(Self {
            target: run.target.to_path_buf(),
            replace: run.replace,
            durability: run.durability,
            folder,
            journal,
            temporary,
            next: AtomicU64::new(0),
            _locks: locks,
        })
    }

    /// Where the output grows.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The folder as a whole.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stores a chunk's bytes under `key`, if it has any, and notes that it is done.
    pub(super) fn keep(&self, key: &str, record: &Record, encoded: Option<&[u8]>) -> Result<()> {
        let path = self.folder.join("data").join(key);
        match encoded {
            Some(bytes) => self.store(&path, bytes)?,
            // An earlier run may have got as far as the file, but not as far as the note.
            None => remove_file(&path)?,
        }
        self.journal.add(record)
    }

    fn store(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = self.temporary.join(number.to_string());
        let mut file = File::create_new(&temporary).map_err(Error::io("write", &temporary))?;
        file.write_all(bytes)
            .map_err(Error::io("write", &temporary))?;
        self.durability.sync(&file, &temporary)?;
        make_parents(path, self.durability)?;
        fs::rename(&temporary, path).map_err(Error::io("write", path))?;
        self.durability.sync_folder(parent(path))
    }

    /// Gives the output its name and removes all that helped to make it.
    pub(super) fn publish(self) -> Result<()> {
        // Once the names are exchanged, data is what was replaced.
        let (data, marker) = (self.data(), self.folder.join(PUBLISHING));
        let inode = fs::metadata(&data).map_err(Error::io("look at", &data))?;
        fs::write(&marker, inode.ino().to_string()).map_err(Error::io("write", &marker))?;
        publish(&data, &self.target, self.replace)?;
        remove_at_once(&self.folder)
    }
}

/// Removes what unfinished runs left of an output called `target`; nothing if there is nothing.
///
/// # Errors
///
/// [`Error::Locked`] if a process still writes it, [`Error::Io`] if it cannot be removed.
pub fn discard(target: &Path) -> Result<()> {
    let (folder, _) = names(target, true)?;
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(());
    };
    let mut locks = vec![lock(&folder, "lock", true)?];
    for entry in entries {
        let name = entry.map_err(Error::io("list", &folder))?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.starts_with("lock.")) {
            locks.push(lock(&folder, name, false)?);
        }
    }
    remove_at_once(&folder)
}

/// Removes a folder of which other processes may be looking for the locks: they find all of it, or none.
fn remove_at_once(folder: &Path) -> Result<()> {
    let mut aside = folder.as_os_str().to_owned();
    aside.push(".done");
    let aside = PathBuf::from(aside);
    // A process that was killed here may have left its own.
    let renamed = remove_folder(&aside).is_ok() && fs::rename(folder, &aside).is_ok();
    let folder = if renamed { &aside } else { folder };
    fs::remove_dir_all(folder).map_err(Error::io("remove", folder))
}

/// Whether a file was not there.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// What an unfinished run has stored of an output called `target`, if one has begun it.
pub(super) fn begun(target: &Path) -> Result<Option<PathBuf>> {
    let (folder, _) = names(target, true)?;
    let data = folder.join("data");
    Ok(data.is_dir().then_some(data))
}

/// The folder beside `target`, and the one that both lie in.
fn names(target: &Path, replace: bool) -> Result<(PathBuf, PathBuf)> {
    let (beside, mut name): (PathBuf, OsString) = place(target, replace)?;
    name.push("partial");
    Ok((beside.join(name), beside))
}

/// The folder, with the lock of a part and that of all.
fn enter(run: &Run<'_>, part: Part) -> Result<(PathBuf, Lock, Lock)> {
    let (folder, own, all) = loop {
        let folder = make_folder(run)?;
        // That of all first: who has it may look for a moment whether this part is being written.
        let all = lock(&folder, "lock", true);
        match all.and_then(|all| Ok((lock(&folder, &part.name("lock"), false)?, all))) {
            // Another process has just put the output together, and removed the folder.
            Err(error) if is_gone(&error) && !folder.exists() => {}
            locked => break locked.map(|(own, all)| (folder, own, all))?,
        }
    };
    // It may have done so before the folder was made.
    let free = names(run.target, run.replace);
    if free.is_err() && !folder.join("data").exists() {
        remove_at_once(&folder)?;
    }
    free.map(|_| (folder, own, all))
}

fn make_folder(run: &Run<'_>) -> Result<PathBuf> {
    let (folder, beside) = names(run.target, run.replace)?;
    match fs::create_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => {
            made.map_err(Error::io("create an output in", &beside))?;
            run.durability.sync_folder(&beside)?;
        }
    }
    Ok(folder)
}

/// The file that is there while an output gets its name.
const PUBLISHING: &str = "publishing";

/// Forgets an output that got its name, but whose process was killed before it tidied up.
fn drop_published(folder: &Path) -> Result<()> {
    let Ok(inode) = fs::read_to_string(folder.join(PUBLISHING)) else {
        return Ok(());
    };
    let data = folder.join("data");
    if fs::metadata(&data).is_ok_and(|found| found.ino().to_string() == inode) {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        if entry.file_name().to_string_lossy().starts_with("journal.") {
            remove_file(&entry.path())?;
        }
    }
    remove_folder(&data)?;
    remove_file(&folder.join(PUBLISHING))
}

fn head(run: &Run<'_>, part: Part, owned: Region) -> Json {
    json!({
        "fingerprint": run.fingerprint,
        "part": part.index,
        "parts": part.count,
        "owned": {"start": owned.start, "shape": owned.shape},
    })
}

/// The journals that are there, by part, which must be as many as this run has.
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

/// Checks that all other parts belong to the same run and own other voxels.
fn check_others(folder: &Path, part: Part, head: &Json, owned: Region) -> Result<()> {
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
            return Err(Error::Setting {
                name: "part",
                value: format!("{} of {}", part.index, part.count),
                problem: format!("[{common}] belongs to part {index}, too"),
            });
        }
    }
    Ok(())
}

/// Writes the metadata, or checks that they are those of this run.
fn write_metadata(run: &Run<'_>, folder: &Path) -> Result<()> {
    let mut differences = Differences::default();
    for (key, text) in &run.files {
        let path = folder.join("data").join(key);
        let found = match fs::read(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_parents(&path, run.durability)?;
                let begun = folder.join("metadata.begun");
                let mut file = File::create(&begun).map_err(Error::io("write", &begun))?;
                file.write_all(text).map_err(Error::io("write", &begun))?;
                run.durability.sync(&file, &begun)?;
                fs::rename(&begun, &path).map_err(Error::io("write", &path))?;
                run.durability.sync_folder(parent(&path))?;
                continue;
            }
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let parsed = |text: &[u8]| serde_json::from_slice(text).unwrap_or(Json::Null);
        differences.compare(key, &parsed(&found), &parsed(text));
    }
    differences.check(folder)
}
