//! Finding the array that a path means, and the metadata around it.
//!
//! A path names an array, an image (of which a level is read), or a group that contains a single array or image. If
//! there are several, none is chosen: the error names them.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::super::archive::Archive;
use super::super::format::{excerpt, unknown};
use super::super::{Format, OpenOptions, foreign};
use super::axes::ZarrAxis;
use super::n5;
use super::ome::{self, Placed};
use super::store::Links;
use super::tree::Tree;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::store::{Place, is_remote};

/// An array, with the metadata found on the way to it.
#[derive(Debug)]
pub(super) struct FoundArray {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    pub(super) document: Json,
    pub(super) attributes: Json,
    /// The image's metadata of this level, if the array belongs to an image.
    pub(super) image: Option<Placed>,
    /// The same of the finest level, if this is a different one.
    pub(super) finest: Option<Placed>,
    /// The position of an N5 array, and the millimeters of its unit, if its attributes or those of its group say it.
    pub(super) n5_place: Option<(Geometry, f64)>,
    /// The axes of the dimensions, as far as they have names.
    pub(super) axes: Vec<ZarrAxis>,
    /// The number of levels.
    pub(super) levels: usize,
}

/// A group's attributes.
#[derive(Default)]
struct GroupAttributes {
    attributes: Json,
    is_n5: bool,
}

/// Maximum depth of nested groups above their first array.
const MAX_DEPTH: usize = 4;

/// Maximum number of levels above an array at which its image is searched for.
const MOST_ABOVE: usize = 3;

/// Maximum number of arrays of a group that are searched for, and named if there are several.
const MOST_NAMED: usize = 12;

/// Returns the array at `path`, level `level` of the image there, or the only array or image in the group.
pub(super) fn find_array(path: &Path, level: usize, tree: &Tree) -> Result<FoundArray> {
    if let Some(mut array) = array_at(path, tree)? {
        if level > 0 {
            return Err(no_level(path, level, 1));
        }
        if array.format == Format::N5 {
            array.n5_place = n5_around(path, &array.attributes, tree)?.or(array.n5_place);
        } else if let Some((image, dataset)) = image_around(path, tree)? {
            take(&mut array, &image, &dataset)?;
        }
        return Ok(array);
    }
    let Some(group) = group_at(path, tree)? else {
        let problem = match foreign::in_folder(path) {
            Some(hint) => format!("it is a folder of other files: {hint}"),
            None if matches!(tree, Tree::Archive(_)) => {
                "the archive has no zarr.json, .zarray or .zgroup there".to_owned()
            }
            None if is_remote(path) => {
                "there is no such object, and no zarr.json, .zarray or .zgroup below it".to_owned()
            }
            None => "it is a folder without zarr.json, .zarray or .zgroup".to_owned(),
        };
        return Err(unknown(path, &problem));
    };
    if let Some(found) = image_of(path, &group, level, tree)? {
        return Ok(found);
    }
    let mut candidates = Vec::new();
    collect(path, 0, tree, &mut candidates)?;
    let only = match candidates.as_slice() {
        [] => {
            let what = "the Zarr group has no array of 2 to 8 dimensions";
            return Err(Error::unsupported(path, what));
        }
        [only] => only,
        several => return Err(ambiguous(path, several)),
    };
    if let Some(array) = array_at(only, tree)? {
        return if level == 0 {
            Ok(array)
        } else {
            Err(no_level(path, level, 1))
        };
    }
    let group = group_at(only, tree)?.unwrap_or_default();
    image_of(only, &group, level, tree)?
        .ok_or_else(|| Error::unsupported(only, "it is no longer an image"))
}

/// Returns a level of the image that a group is; `None` if it is not one.
fn image_of(
    path: &Path,
    group: &GroupAttributes,
    level: usize,
    tree: &Tree,
) -> Result<Option<FoundArray>> {
    if group.is_n5 {
        let levels = n5_levels(path, &group.attributes, tree)?;
        return match levels.len() {
            0 => Ok(None),
            _ => n5_level(path, &group.attributes, &levels, level, tree).map(Some),
        };
    }
    match said_image(group) {
        Some(image) => multiscale(path, image, level, tree).map(Some),
        None => Ok(None),
    }
}

/// Returns the names of the levels of the pyramid that an N5 group is; none if it is not one.
fn n5_levels(path: &Path, group: &Json, tree: &Tree) -> Result<Vec<String>> {
    if let Some(datasets) = n5::datasets(group) {
        let names = datasets.iter().map(|dataset| {
            let name = dataset.get("path").and_then(Json::as_str);
            checked_name(path, "N5", name.unwrap_or_default()).map(str::to_owned)
        });
        return names.collect();
    }
    let mut names = Vec::new();
    while let Some(name) = n5::level_name(names.len()) {
        if array_at(&path.join(&name), tree)?.is_none() {
            break;
        }
        names.push(name);
    }
    Ok(names)
}

fn n5_level(
    path: &Path,
    group: &Json,
    levels: &[String],
    level: usize,
    tree: &Tree,
) -> Result<FoundArray> {
    let name = levels
        .get(level)
        .ok_or_else(|| no_level(path, level, levels.len()))?;
    let own = path.join(name);
    tree.check_links(path, &own)?;
    let mut found = array_at(&own, tree)?.ok_or_else(|| {
        let problem = format!(
            "level {level} should be at {:?}, which is not an array",
            excerpt(name)
        );
        Error::header(path, "N5", problem)
    })?;
    let pyramid = n5::Pyramid {
        group,
        dataset: n5::datasets(group).and_then(|datasets| datasets.get(level)),
        level,
    };
    found.n5_place = n5::geometry(&found.attributes, Some(pyramid));
    found.levels = levels.len();
    Ok(found)
}

/// Returns the position of an N5 array that is opened by its own path, with the attributes of the pyramid that it
/// is a level of.
fn n5_around(path: &Path, array: &Json, tree: &Tree) -> Result<Option<(Geometry, f64)>> {
    let Some(path) = tree.absolute(path) else {
        return Ok(None);
    };
    let (Some(above), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return Ok(None);
    };
    let Some(group) = n5_attributes(above, tree)? else {
        return Ok(None);
    };
    // An array can be opened although its group is damaged.
    let levels = n5_levels(above, &group, tree).unwrap_or_default();
    let Some(level) = levels.iter().position(|own| own == name) else {
        return Ok(None);
    };
    let pyramid = n5::Pyramid {
        group: &group,
        dataset: n5::datasets(&group).and_then(|datasets| datasets.get(level)),
        level,
    };
    Ok(n5::geometry(array, Some(pyramid)))
}

/// Returns the path of a level inside its image.
fn checked_name<'n>(path: &Path, format: &'static str, name: &'n str) -> Result<&'n str> {
    let plain = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0'])
    };
    if name.split('/').all(plain) {
        return Ok(name);
    }
    let problem = format!(
        "the path {:?} of a level does not stay inside the image",
        excerpt(name)
    );
    Err(Error::header(path, format, problem))
}

/// The names of the metadata of an array or group.
const NAMES: [&str; 4] = ["zarr.json", ".zarray", ".zgroup", ".zattrs"];

/// Returns `true` if a folder has metadata of a Zarr array or group.
pub(in super::super) fn is_group(path: &Path) -> bool {
    let is_zarr = NAMES
        .iter()
        .any(|name| path.join(name).symlink_metadata().is_ok());
    is_zarr || n5_attributes(path, &Tree::Folder(Links::Refused)).is_ok_and(|found| found.is_some())
}

/// Returns the number of levels of the image at `path`; 1 if it is not an image.
pub(in super::super) fn level_count(path: &Path, options: &OpenOptions) -> Result<usize> {
    let (place, path) = Place::of(path, &options.storage_options, options.cache()?)?;
    let tree = Tree::new(&place, Links::of(options));
    Ok(find_array(&path, 0, &tree)?.levels)
}

/// As [`level_count`], at `inside` in an archive.
pub(in super::super) fn level_count_in_archive(archive: Archive, inside: &str) -> Result<usize> {
    let (tree, path) = in_archive(archive, inside)?;
    Ok(find_array(&path, 0, &tree)?.levels)
}

/// Returns an archive as a hierarchy, and the path of `inside`. The only folder of an archive that has no
/// metadata itself is its root.
pub(super) fn in_archive(archive: Archive, inside: &str) -> Result<(Tree, PathBuf)> {
    let mut root = archive.path().to_path_buf();
    let is_root = NAMES.iter().any(|name| archive.contains(name));
    let tree = Tree::Archive(Arc::new(archive));
    if !is_root
        && let Ok([only]) = <[PathBuf; 1]>::try_from(tree.folders(&root)?)
        && only.file_name().and_then(OsStr::to_str) != inside.split('/').next()
    {
        root = only;
    }
    let path = inside
        .split('/')
        .filter(|part| !part.is_empty())
        .fold(root, |path, part| path.join(part));
    Ok((tree, path))
}

/// Returns the image that a group's attributes declare.
fn said_image(group: &GroupAttributes) -> Option<&Json> {
    ome::said_image(&group.attributes)
}

/// Returns the error for a group of several arrays or images.
fn ambiguous(path: &Path, several: &[PathBuf]) -> Error {
    let name = |found: &PathBuf| {
        let inside = found.strip_prefix(path).unwrap_or(found);
        excerpt(&inside.display().to_string())
    };
    let mut names: Vec<String> = several.iter().map(name).collect();
    if names.len() == MOST_NAMED {
        names.truncate(MOST_NAMED - 1);
        names.push("...".to_owned());
    }
    let what = format!(
        "the Zarr group has several arrays or images: {} (open one of them by its path, like {})",
        names.join(", "),
        several[0].display()
    );
    Error::unsupported(path, what)
}

/// Returns the image of which the array at `path` is a level, and the array's dataset entry there.
fn image_around(path: &Path, tree: &Tree) -> Result<Option<((Json, Json), Json)>> {
    let Some(path) = tree.absolute(path) else {
        return Ok(None);
    };
    for above in path.ancestors().skip(1).take(MOST_ABOVE) {
        // An array can be opened without its image: if no image can be read above it, there is none. A store that does
        // not answer is not one without an image.
        let group = match group_at(above, tree) {
            Ok(Some(group)) => group,
            Err(error) if tree.is_remote() && is_failure(&error) => return Err(error),
            _ => continue,
        };
        let dataset = said_image(&group).and_then(|image| {
            let inside = path.strip_prefix(above).ok()?.to_str()?;
            let datasets = image.get("datasets").and_then(Json::as_array)?;
            let is_own =
                |dataset: &&Json| dataset.get("path").and_then(Json::as_str) == Some(inside);
            Some((image, datasets.iter().find(is_own)?))
        });
        if let Some((image, dataset)) = dataset {
            let around = (image.clone(), group.attributes.clone());
            return Ok(Some((around, dataset.clone())));
        }
        if said_image(&group).is_some() {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Returns `true` for the failure of a request, which says nothing about the object.
fn is_failure(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() != io::ErrorKind::PermissionDenied)
}

/// Adds the image's metadata to an array.
fn take(array: &mut FoundArray, (image, attributes): &(Json, Json), dataset: &Json) -> Result<()> {
    let rank = array
        .document
        .get("shape")
        .and_then(Json::as_array)
        .map_or(0, Vec::len);
    let placed = Placed::read(image, attributes, dataset, rank)
        .map_err(|problem| Error::unsupported(&array.path, problem))?;
    // A transformation of the finest level that is not understood matters only where the level is opened.
    let finest = image.pointer("/datasets/0").filter(|&own| own != dataset);
    array.finest = finest.and_then(|own| Placed::read(image, attributes, own, rank).ok());
    array.axes.clone_from(&placed.axes);
    array.image = Some(placed);
    Ok(())
}

fn no_level(path: &Path, level: usize, levels: usize) -> Error {
    Error::unsupported(
        path,
        format!("there is no level {level}: the image has {levels}, counted from 0"),
    )
}

/// Returns the array at a path; `None` if there is none.
pub(super) fn array_at(path: &Path, tree: &Tree) -> Result<Option<FoundArray>> {
    let (document, format) = if let Some(document) = tree.document(path, "zarr.json")? {
        match document.get("node_type").and_then(Json::as_str) {
            Some("array") => (document, Format::Zarr3),
            Some("group") => return Ok(None),
            other => {
                let other = other.map(excerpt);
                let problem = format!("node_type is {other:?}, neither \"array\" nor \"group\"");
                return Err(Error::header(&path.join("zarr.json"), "Zarr v3", problem));
            }
        }
    } else if let Some(document) = tree.document(path, ".zarray")? {
        (document, Format::Zarr2)
    } else if let Some(attributes) = n5_attributes(path, tree)?
        && let Some(document) = n5::document(&attributes)
    {
        return Ok(Some(FoundArray {
            path: path.to_path_buf(),
            format: Format::N5,
            document,
            image: None,
            finest: None,
            n5_place: n5::geometry(&attributes, None),
            attributes,
            axes: Vec::new(),
            levels: 1,
        }));
    } else {
        return Ok(None);
    };
    let attributes = match format {
        Format::Zarr3 => document.get("attributes").cloned().unwrap_or_default(),
        _ => tree.document(path, ".zattrs")?.unwrap_or_default(),
    };
    // In version 2, the names are those of xarray.
    let names = document
        .get("dimension_names")
        .filter(|names| format == Format::Zarr3 && names.is_array())
        .or_else(|| attributes.get("_ARRAY_DIMENSIONS"));
    Ok(Some(FoundArray {
        path: path.to_path_buf(),
        format,
        axes: names.map(ZarrAxis::list).unwrap_or_default(),
        document,
        attributes,
        image: None,
        finest: None,
        n5_place: None,
        levels: 1,
    }))
}

/// Reads the attributes of a node of N5. In stores, which would need a request for each node, N5 is not searched for.
fn n5_attributes(path: &Path, tree: &Tree) -> Result<Option<Json>> {
    if tree.is_remote() {
        return Ok(None);
    }
    let attributes = tree.document(path, n5::ATTRIBUTES)?;
    if attributes.as_ref().is_some_and(n5::recognize) {
        return Ok(attributes);
    }
    // Only the root of a hierarchy needs attributes: a folder with a first level is a group.
    let Some(name) = n5::level_name(0) else {
        return Ok(None);
    };
    let level = tree.document(&path.join(name), n5::ATTRIBUTES)?;
    let is_group = level.as_ref().and_then(n5::document).is_some();
    Ok(is_group.then(|| attributes.unwrap_or_default()))
}

fn group_at(path: &Path, tree: &Tree) -> Result<Option<GroupAttributes>> {
    if let Some(document) = tree.document(path, "zarr.json")? {
        let group = document.get("node_type").and_then(Json::as_str) == Some("group");
        return Ok(group.then(|| GroupAttributes {
            attributes: document.get("attributes").cloned().unwrap_or_default(),
            is_n5: false,
        }));
    }
    if tree.document(path, ".zgroup")?.is_none() {
        let attributes = n5_attributes(path, tree)?;
        return Ok(attributes.map(|attributes| GroupAttributes {
            attributes,
            is_n5: true,
        }));
    }
    Ok(Some(GroupAttributes {
        attributes: tree.document(path, ".zattrs")?.unwrap_or_default(),
        is_n5: false,
    }))
}

/// Collects the arrays and images below a group, sorted by name, up to [`MOST_NAMED`].
fn collect(path: &Path, depth: usize, tree: &Tree, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut deeper = Vec::new();
    for child in tree.folders(path)? {
        if found.len() >= MOST_NAMED {
            return Ok(());
        }
        if let Some(array) = array_at(&child, tree)? {
            let rank = array
                .document
                .get("shape")
                .and_then(Json::as_array)
                .map_or(0, Vec::len);
            if (2..=8).contains(&rank) {
                found.push(child);
            }
            continue;
        }
        // A folder without metadata may be between groups, such as the rows of a plate.
        let group = group_at(&child, tree)?.unwrap_or_default();
        let is_image = if group.is_n5 {
            !n5_levels(&child, &group.attributes, tree)?.is_empty()
        } else {
            said_image(&group).is_some()
        };
        if is_image {
            found.push(child);
        } else if depth < MAX_DEPTH {
            deeper.push(child);
        }
    }
    for child in deeper {
        collect(&child, depth + 1, tree, found)?;
    }
    Ok(())
}

fn multiscale(path: &Path, image: &Json, level: usize, tree: &Tree) -> Result<FoundArray> {
    let bad = |problem: String| Error::header(path, "OME-Zarr", problem);
    let datasets = ome::datasets(path, image)?;
    let dataset = datasets
        .get(level)
        .ok_or_else(|| no_level(path, level, datasets.len()))?;
    let name = dataset
        .get("path")
        .and_then(Json::as_str)
        .unwrap_or_default();
    let name = checked_name(path, "OME-Zarr", name)?;
    let own = path.join(name);
    tree.check_links(path, &own)?;
    let mut found = array_at(&own, tree)?.ok_or_else(|| {
        bad(format!(
            "level {level} should be at {:?}, which is not an array",
            excerpt(name)
        ))
    })?;
    let group = group_at(path, tree)?.unwrap_or_default();
    take(&mut found, &(image.clone(), group.attributes), dataset)?;
    found.levels = datasets.len();
    Ok(found)
}
