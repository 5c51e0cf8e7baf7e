//! The metadata documents of a hierarchy: in folders, in an archive, or in a store.
//!
//! In a store, each document is requested once. Consolidated metadata, if there are any, answer for all nodes below
//! their group without further requests.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value as Json;

use super::super::archive::Archive;
use super::store::{DOCUMENT, Links, check_document, name_in, parse_document, read_json};
use crate::error::{Error, Result};
use crate::store::{Part, Place, Remote, Version};

/// A hierarchy of arrays and groups.
#[derive(Debug)]
pub(super) enum Tree {
    Folder(Links),
    /// The entries of an archive. Their paths begin with that of the archive.
    Archive(Arc<Archive>),
    Objects(ObjectTree),
}

/// A hierarchy in a store.
#[derive(Debug)]
pub(super) struct ObjectTree {
    remote: Remote,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    documents: HashMap<PathBuf, Option<Arc<Json>>>,
    /// Groups with consolidated metadata.
    consolidated: Vec<PathBuf>,
    /// The versions of the objects that were read.
    versions: Vec<(PathBuf, Arc<Version>)>,
}

/// What is known of a document without a request.
enum Lookup {
    Known(Arc<Json>),
    Absent,
    Unknown,
}

impl Tree {
    /// Returns the hierarchy at a place.
    pub(super) fn new(place: &Place, links: Links) -> Self {
        match place {
            Place::Local => Self::Folder(links),
            Place::Remote(remote) => Self::Objects(ObjectTree {
                remote: remote.clone(),
                known: Mutex::default(),
            }),
        }
    }

    pub(super) const fn is_remote(&self) -> bool {
        matches!(self, Self::Objects(_))
    }

    /// Reads a metadata document; `None` if it does not exist.
    pub(super) fn document(&self, folder: &Path, name: &str) -> Result<Option<Json>> {
        match self {
            Self::Folder(links) => read_json(folder, name, *links),
            Self::Archive(archive) => archived(archive, &folder.join(name)),
            Self::Objects(tree) => tree.document(folder, name),
        }
    }

    /// Returns the folders below a path, sorted.
    pub(super) fn folders(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let links = match self {
            Self::Folder(links) => links,
            Self::Archive(archive) => return Ok(folders_in(archive, path)),
            Self::Objects(tree) => return tree.folders(path),
        };
        let mut children = Vec::new();
        for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
            let child = entry.map_err(Error::io("list", path))?.path();
            if child.is_dir() {
                links.check(path, &child)?;
                children.push(child);
            }
        }
        children.sort();
        Ok(children)
    }

    /// Returns the absolute path of an existing path.
    pub(super) fn absolute(&self, path: &Path) -> Option<PathBuf> {
        match self {
            Self::Folder(_) => path.canonicalize().ok(),
            Self::Archive(_) | Self::Objects(_) => Some(path.to_path_buf()),
        }
    }

    /// Checks that there is no refused link between two paths.
    pub(super) fn check_links(&self, above: &Path, below: &Path) -> Result<()> {
        match self {
            Self::Folder(links) => links.check(above, below),
            Self::Archive(_) | Self::Objects(_) => Ok(()),
        }
    }

    /// Returns the versions of the objects that were read.
    pub(super) fn versions(&self) -> Vec<(PathBuf, Arc<Version>)> {
        match self {
            Self::Folder(_) | Self::Archive(_) => Vec::new(),
            Self::Objects(tree) => tree.lock().versions.clone(),
        }
    }
}

/// Reads a metadata document of an archive.
fn archived(archive: &Archive, path: &Path) -> Result<Option<Json>> {
    let name = name_in(archive, path);
    let Some(length) = archive.length(&name) else {
        return Ok(None);
    };
    check_document(path, length)?;
    let bytes = archive.read(&name, 0..length)?;
    bytes.map(|bytes| parse_document(path, &bytes)).transpose()
}

/// Returns the folders below a path of an archive, sorted.
fn folders_in(archive: &Archive, path: &Path) -> Vec<PathBuf> {
    let mut folder = name_in(archive, path);
    if !folder.is_empty() {
        folder.push('/');
    }
    let mut names: Vec<&str> = archive
        .names(&folder)
        .filter_map(|name| Some(name[folder.len()..].split_once('/')?.0))
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| path.join(name)).collect()
}

impl ObjectTree {
    pub(super) const fn remote(&self) -> &Remote {
        &self.remote
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn document(&self, folder: &Path, name: &str) -> Result<Option<Json>> {
        let path = folder.join(name);
        match self.lock().find(&path) {
            Lookup::Known(document) => return Ok(Some(Json::clone(&document))),
            Lookup::Absent => return Ok(None),
            Lookup::Unknown => {}
        }
        if name == ".zarray" || name == ".zgroup" {
            // There is no zarr.json. All documents of version 2 are requested at once.
            for name in [".zmetadata", ".zarray", ".zattrs", ".zgroup"] {
                self.remote
                    .prefetch(&folder.join(name), Part::Whole, DOCUMENT, None);
            }
            let all = self.read(&folder.join(".zmetadata"))?;
            let mut known = self.lock();
            if let Some(all) = all
                .as_ref()
                .and_then(|all| all.get("metadata")?.as_object())
            {
                known.consolidated.push(folder.to_path_buf());
                for (key, document) in all {
                    let document = Some(Arc::new(document.clone()));
                    known.documents.insert(folder.join(key), document);
                }
            }
            match known.find(&path) {
                Lookup::Known(document) => return Ok(Some(Json::clone(&document))),
                Lookup::Absent => return Ok(None),
                Lookup::Unknown => {}
            }
        }
        let read = self.read(&path)?;
        if name == "zarr.json"
            && let Some(group) = &read
        {
            self.lock().add_consolidated(folder, group);
        }
        Ok(read)
    }

    fn read(&self, path: &Path) -> Result<Option<Json>> {
        let length = |size| match check_document(path, size) {
            Err(error) => error,
            Ok(()) => Error::header(path, "Zarr", format!("it has {size} bytes")),
        };
        let read = self
            .remote
            .read(path, Part::Whole, (DOCUMENT, &length), None)?;
        let document = match &read {
            Some(read) => Some(parse_document(path, &read.bytes)?),
            None => None,
        };
        let mut known = self.lock();
        if let Some(read) = read {
            known.versions.push((path.to_path_buf(), read.version));
        }
        known
            .documents
            .insert(path.to_path_buf(), document.clone().map(Arc::new));
        Ok(document)
    }

    fn folders(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let known = self.lock();
        if known
            .consolidated
            .iter()
            .any(|group| path.starts_with(group))
        {
            let below = |document: &PathBuf| {
                let inside = document.strip_prefix(path).ok()?;
                let mut parts = inside.iter();
                let first = parts.next()?;
                parts.next().map(|_| path.join(first))
            };
            let mut children: Vec<PathBuf> = known.documents.keys().filter_map(below).collect();
            children.sort();
            children.dedup();
            return Ok(children);
        }
        drop(known);
        self.remote.folders(path)
    }
}

impl Known {
    /// Looks up a document without a request.
    fn find(&self, path: &Path) -> Lookup {
        match self.documents.get(path) {
            Some(Some(document)) => return Lookup::Known(Arc::clone(document)),
            Some(None) => return Lookup::Absent,
            None => {}
        }
        let inside = |folder: &Path| {
            self.consolidated
                .iter()
                .any(|group| folder.starts_with(group))
        };
        if path.parent().is_some_and(inside) {
            Lookup::Absent
        } else {
            Lookup::Unknown
        }
    }

    /// Adds the consolidated metadata of a group of version 3.
    fn add_consolidated(&mut self, folder: &Path, group: &Json) {
        let nodes = group.pointer("/consolidated_metadata/metadata");
        let Some(nodes) = nodes.and_then(Json::as_object) else {
            return;
        };
        self.consolidated.push(folder.to_path_buf());
        self.documents
            .insert(folder.join("zarr.json"), Some(Arc::new(group.clone())));
        for (name, document) in nodes {
            let path = folder.join(name).join("zarr.json");
            self.documents
                .insert(path, Some(Arc::new(document.clone())));
        }
    }
}
