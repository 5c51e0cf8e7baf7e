//! Removal of the files that an unfinished or killed run leaves next to an output.
//!
//! A folder is renamed to `.NAME.partial.done` before it is removed, so that other processes find all or none of it.
//! Only files that a run creates there are removed from it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::overwrite::{FolderKind, UnexpectedEntry, bare};
use super::super::staged::{REPLACED, inode, place};
use super::super::sweep;
use super::super::zarr;
use super::files::{Lock, lock, remove_file, remove_folder};
use super::is_gone;
use super::publish::{Marker, PUBLISHING, step};
use crate::error::{Error, Result};

/// The paths of an output and of the folder in which it is built.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The output.
    pub(super) target: PathBuf,
    /// The folder in which the output is built.
    pub(super) folder: PathBuf,
    /// The name of that folder during its removal.
    pub(super) done: PathBuf,
    /// The folder that contains both.
    pub(super) beside: PathBuf,
}

impl Places {
    pub(super) fn of(target: &Path) -> Result<Self> {
        let (beside, mut name) = place(target)?;
        name.push("partial");
        let folder = beside.join(&name);
        name.push(".done");
        Ok(Self {
            target: bare(target),
            folder,
            done: beside.join(name),
            beside,
        })
    }

    /// Returns the path of the data that will be renamed to `target`.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }
}

/// Returns `true` if the output has been moved from its folder to its final name.
pub(super) fn is_published(places: &Places) -> bool {
    let marker = Marker::read(&places.folder);
    marker.is_some_and(|marker| inode(&places.data()) != Some(marker.own().inode))
}

/// Removes the remaining files of an output that has its final name, if its process was killed before it could. Returns
/// the run id of that output if it still has the name.
pub(super) fn settle(places: &Places) -> Result<Option<String>> {
    let mut found = None;
    let mut note = |marker: &Marker| {
        let own = marker.own();
        if inode(&places.target) == Some(own.inode) {
            found = Some(own.run.clone());
        }
    };
    // If a lock is held, the process that holds it does this.
    if is_left(&places.done)
        && let Ok(_locks) = lock_all(&places.done, false)
    {
        Marker::read(&places.done).iter().for_each(&mut note);
        remove_own(&places.done)?;
    }
    if is_published(places) {
        let locks = match lock_all(&places.folder, true) {
            Err(error) if is_gone(&error) => Vec::new(),
            locked => locked?,
        };
        if is_published(places)
            && let Some(marker) = Marker::read(&places.folder)
        {
            note(&marker);
            check_replaced(&places.folder)?;
            remove_at_once(places)?;
        }
        drop(locks);
    }
    Ok(found)
}

/// Removes the remaining files of an output `target` that has its final name. Nothing depends on them.
pub(in super::super) fn tidy(target: &Path) -> Result<()> {
    match settle(&Places::of(target)?) {
        Err(Error::Locked { .. }) => Ok(()),
        settled => settled.map(|_| ()),
    }
}

/// Removes the files of unfinished runs of the output `target`, if there are any.
///
/// # Errors
///
/// [`Error::Locked`] if a process is still writing it, [`Error::NotOverwritable`] if its folder holds a replaced entry
/// that is not an output, [`Error::Io`] if it cannot be removed.
pub fn discard_partial(target: impl AsRef<Path>) -> Result<()> {
    let target = target.as_ref();
    let places = Places::of(target)?;
    if !places.folder.is_dir() {
        return Ok(());
    }
    let _locks = lock_all(&places.folder, true)?;
    check_replaced(&places.folder)?;
    remove_at_once(&places)
}

/// Takes all locks of a folder. With `wait`, waits for the main lock, but not for those of parts.
fn lock_all(folder: &Path, wait: bool) -> Result<Vec<Lock>> {
    let mut names = vec!["lock".to_owned()];
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let name = entry.map_err(Error::io("list", folder))?.file_name();
        let own = name
            .to_str()
            .filter(|name| is_lock(name) && *name != "lock");
        names.extend(own.map(str::to_owned));
    }
    let held = names
        .iter()
        .map(|name| lock(folder, name, wait && name == "lock"));
    held.collect()
}

/// Returns `true` if a process was killed while it removed this folder.
fn is_left(folder: &Path) -> bool {
    folder.is_dir() && matches!(foreign_below(folder), Ok(None))
}

/// Removes the folder in which an output was built.
pub(super) fn remove_at_once(places: &Places) -> Result<()> {
    if is_left(&places.done) {
        remove_own(&places.done)?;
    }
    step("set aside")?;
    let aside =
        places.done.symlink_metadata().is_err() && fs::rename(&places.folder, &places.done).is_ok();
    step("remove")?;
    remove_own(if aside { &places.done } else { &places.folder })
}

/// Checks that a replaced output in the folder, if there is one, may be removed with it.
fn check_replaced(folder: &Path) -> Result<()> {
    let data = folder.join("data");
    let mut aside = data.clone().into_os_string();
    aside.push(REPLACED);
    let rule = FolderKind::ZARR.overwrite(true);
    if let Some(marker) = Marker::read(folder)
        && inode(&data) != Some(marker.own().inode)
    {
        rule.check_at(&data, &data)?;
    }
    rule.check_at(Path::new(&aside), Path::new(&aside))
}

/// Removes the files of runs from a folder, and then the folder itself if it is empty. The publishing marker and the
/// locks go last, because other processes look for them.
fn remove_own(folder: &Path) -> Result<()> {
    let mut names = Vec::new();
    match sweep::list(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => {
            for entry in entries.map_err(Error::io("list", folder))? {
                let name = entry.map_err(Error::io("list", folder))?.file_name();
                names.extend(name.to_str().filter(|name| is_own(name)).map(str::to_owned));
            }
        }
    }
    names.sort_by_key(|name| (is_lock(name), name == PUBLISHING));
    for name in names {
        let path = folder.join(&name);
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => remove_folder(&path)?,
            _ => remove_file(&path)?,
        }
        step("removed one")?;
    }
    match fs::remove_dir(folder) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(Error::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Returns `true` if a folder is one in which an output is built, and not an output.
pub(in super::super) fn is_partial(folder: &Path) -> bool {
    let is_file = |name: &str| {
        let found = folder.join(name).symlink_metadata();
        found.is_ok_and(|found| found.is_file())
    };
    is_file("lock") && folder.join("data").is_dir()
}

/// Returns the first entry in such a folder that no run creates.
///
/// # Errors
///
/// [`Error::Locked`] if a process is writing it.
pub(in super::super) fn foreign(folder: &Path) -> Result<Option<UnexpectedEntry>> {
    if let Some(found) = foreign_below(folder)? {
        return Ok(Some(found));
    }
    lock_all(folder, false)?;
    zarr::foreign(&folder.join("data"))
}

/// As [`foreign`], except for the content of the output itself, which may be incomplete.
fn foreign_below(folder: &Path) -> Result<Option<UnexpectedEntry>> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let kind = entry.file_type().map_err(Error::io("look at", folder))?;
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let is_folder = name.starts_with("data") || name.starts_with("tmp.");
        if !is_own(name) || is_folder != kind.is_dir() || is_folder == kind.is_file() {
            return Ok(Some(UnexpectedEntry::new(entry.path())));
        }
    }
    Ok(None)
}

fn is_lock(name: &str) -> bool {
    name == "lock" || name.strip_prefix("lock.").is_some_and(is_part)
}

/// Returns `true` if runs use this name in the folder in which an output is built.
fn is_own(name: &str) -> bool {
    let of_part = |what: &str| name.strip_prefix(what).is_some_and(is_part);
    let fixed = [
        "data",
        "data.replaced",
        "journal.begun",
        "metadata.begun",
        PUBLISHING,
        "publishing.begun",
        "tmp.all",
    ];
    fixed.contains(&name) || is_lock(name) || of_part("journal.") || of_part("tmp.")
}

/// Returns `true` if a name ends like that of a part: `3-of-8`.
fn is_part(end: &str) -> bool {
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    end.split_once("-of-")
        .is_some_and(|(index, count)| is_number(index) && is_number(count))
}
