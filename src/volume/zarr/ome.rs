//! Finding the array a path means, and what OME-Zarr says about its place in the world.
//!
//! OME-Zarr 0.4 (Zarr v2) and 0.5 (v3) multiscales are read: the level's path, its scale
//! and translation, and the axes' units, which become millimetres. What is written is 0.5, or
//! 0.4 where Zarr v2 is asked for, plus a `voxpatch` attribute with the affine, which OME-Zarr cannot hold.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::super::header::excerpt;
use super::super::{Downsample, Format, Layout, OpenOptions};
use super::store::{Links, read_json};
use crate::error::{Error, Result};
use crate::geometry::{Affine, Geometry};

/// An array, and what lay on the way to it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    pub(super) document: Json,
    pub(super) attributes: Json,
    pub(super) geometry: Option<Geometry>,
    /// The names of the dimensions, as far as anything names them.
    pub(super) axes: Vec<String>,
}

/// A group's attributes.
#[derive(Default)]
struct Group {
    attributes: Json,
}

/// The most levels that an image may have: each halves what the one before has.
const MOST_LEVELS: usize = 64;

/// How deep a group may be nested above its first array.
const MAX_DEPTH: usize = 4;

/// The array at `path`, level `level` of the image there, or the group's first array or image.
pub(super) fn find_array(path: &Path, level: usize, links: Links) -> Result<Found> {
    if let Some(mut array) = array_at(path, links)? {
        if level > 0 {
            return Err(no_level(path, level, 1));
        }
        if let Some((geometry, axes)) = by_parent(path, links) {
            array.geometry = geometry;
            array.axes = axes;
        }
        return Ok(array);
    }
    let Some(group) = group_at(path, links)? else {
        return Err(Error::UnknownFormat {
            path: path.to_path_buf(),
            problem: "it is a folder without zarr.json, .zarray or .zgroup".to_owned(),
        });
    };
    first_in_group(path, &group, level, 0, links)?.ok_or_else(|| {
        Error::unsupported(path, "the Zarr group holds no array of 2 to 8 dimensions")
    })
}

/// How many levels the image at `path` has; 1 if it is none.
pub(in super::super) fn level_count(path: &Path, options: &OpenOptions) -> Result<usize> {
    let links = Links::of(options);
    let group = match array_at(path, links)? {
        Some(_) => None,
        None => group_at(path, links)?,
    };
    let levels = match group.as_ref().and_then(said_image) {
        Some(image) => datasets(path, image)?.len(),
        None => 1,
    };
    Ok(levels.max(1))
}

/// The image that a group says it is.
fn said_image(group: &Group) -> Option<&Json> {
    let ome = group.attributes.get("ome").unwrap_or(&group.attributes);
    ome.pointer("/multiscales/0")
}

/// What the image around an array that was opened by its own path says about it.
fn by_parent(path: &Path, links: Links) -> Option<(Option<Geometry>, Vec<String>)> {
    let path = path.canonicalize().ok()?;
    let (parent, name) = (path.parent()?, path.file_name()?.to_str()?);
    // An array stands for itself: what is wrong with its parent does not matter here.
    let group = group_at(parent, links).ok()??;
    let image = said_image(&group)?;
    let datasets = image.get("datasets")?.as_array()?;
    let dataset = datasets
        .iter()
        .find(|dataset| dataset.get("path").and_then(Json::as_str) == Some(name))?;
    let axes = axes(image);
    Some((geometry(axes, &[dataset, image]), names(axes)))
}

/// The axes of an image: of its first coordinate system, since OME-Zarr 0.6.
fn axes(image: &Json) -> &[Json] {
    let axes = image
        .get("axes")
        .or_else(|| image.pointer("/coordinateSystems/0/axes"));
    axes.and_then(Json::as_array).map_or(&[][..], Vec::as_slice)
}

fn no_level(path: &Path, level: usize, levels: usize) -> Error {
    Error::unsupported(
        path,
        format!("there is no level {level}: the image has {levels}, counted from 0"),
    )
}

fn array_at(path: &Path, links: Links) -> Result<Option<Found>> {
    if let Some(document) = read_json(path, "zarr.json", links)? {
        return match document.get("node_type").and_then(Json::as_str) {
            Some("array") => {
                let attributes = document.get("attributes").cloned().unwrap_or_default();
                let path = path.to_path_buf();
                let axes = document.get("dimension_names").map(named);
                Ok(Some(Found {
                    path,
                    format: Format::Zarr3,
                    axes: axes.unwrap_or_default(),
                    document,
                    attributes,
                    geometry: None,
                }))
            }
            Some("group") => Ok(None),
            other => {
                let other = other.map(excerpt);
                let problem = format!("node_type is {other:?}, neither \"array\" nor \"group\"");
                Err(Error::header(&path.join("zarr.json"), "Zarr v3", problem))
            }
        };
    }
    let Some(document) = read_json(path, ".zarray", links)? else {
        return Ok(None);
    };
    let attributes = read_json(path, ".zattrs", links)?.unwrap_or_default();
    // As xarray names them.
    let axes = attributes.get("_ARRAY_DIMENSIONS").map(named);
    Ok(Some(Found {
        path: path.to_path_buf(),
        format: Format::Zarr2,
        axes: axes.unwrap_or_default(),
        document,
        attributes,
        geometry: None,
    }))
}

fn group_at(path: &Path, links: Links) -> Result<Option<Group>> {
    if let Some(document) = read_json(path, "zarr.json", links)? {
        let group = document.get("node_type").and_then(Json::as_str) == Some("group");
        return Ok(group.then(|| Group {
            attributes: document.get("attributes").cloned().unwrap_or_default(),
        }));
    }
    if read_json(path, ".zgroup", links)?.is_none() {
        return Ok(None);
    }
    Ok(Some(Group {
        attributes: read_json(path, ".zattrs", links)?.unwrap_or_default(),
    }))
}

/// The level of the image that a group is, or else the first array or image below it by
/// name, arrays before groups.
fn first_in_group(
    path: &Path,
    group: &Group,
    level: usize,
    depth: usize,
    links: Links,
) -> Result<Option<Found>> {
    if let Some(image) = said_image(group) {
        return multiscale(path, image, level, links).map(Some);
    }
    let mut children = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let child = entry.map_err(Error::io("list", path))?.path();
        if child.is_dir() {
            links.check(path, &child)?;
            children.push(child);
        }
    }
    children.sort();
    for child in &children {
        if let Some(array) = array_at(child, links)? {
            let rank = array
                .document
                .get("shape")
                .and_then(Json::as_array)
                .map_or(0, Vec::len);
            if (2..=8).contains(&rank) {
                return if level == 0 {
                    Ok(Some(array))
                } else {
                    Err(no_level(path, level, 1))
                };
            }
        }
    }
    for child in children {
        if depth < MAX_DEPTH
            // A folder without metadata may stand between groups, as the rows of a plate do.
            && let group = group_at(&child, links)?.unwrap_or_default()
            && let Some(array) = first_in_group(&child, &group, level, depth + 1, links)?
        {
            return Ok(Some(array));
        }
    }
    Ok(None)
}

/// The levels of an image.
fn datasets<'a>(path: &Path, image: &'a Json) -> Result<&'a [Json]> {
    let all = image.get("datasets").and_then(Json::as_array);
    let all = all.map_or(&[][..], Vec::as_slice);
    if all.len() > MOST_LEVELS {
        let problem = format!("it has {} levels, more than {MOST_LEVELS}", all.len());
        return Err(Error::header(path, "OME-Zarr", problem));
    }
    Ok(all)
}

fn multiscale(path: &Path, image: &Json, level: usize, links: Links) -> Result<Found> {
    let bad = |problem: String| Error::header(path, "OME-Zarr", problem);
    let datasets = datasets(path, image)?;
    let dataset = datasets
        .get(level)
        .ok_or_else(|| no_level(path, level, datasets.len()))?;
    let name = dataset
        .get("path")
        .and_then(Json::as_str)
        .unwrap_or_default();
    let plain = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0'])
    };
    if !name.split('/').all(plain) {
        return Err(bad(format!(
            "the path {:?} of level {level} does not stay inside the image",
            excerpt(name)
        )));
    }
    let own = path.join(name);
    links.check(path, &own)?;
    let mut found = array_at(&own, links)?.ok_or_else(|| {
        bad(format!(
            "level {level} should be at {:?}, but there is no array",
            excerpt(name)
        ))
    })?;
    let axes = axes(image);
    check_axes(path, axes)?;
    found.axes = names(axes);
    found.geometry = Some(geometry(axes, &[dataset, image]).ok_or_else(|| {
        bad(format!(
            "level {level} has a scale or translation that is no list of {} numbers",
            axes.len().max(3)
        ))
    })?);
    Ok(found)
}

/// The axes' names, in small letters; an axis of time is `t` whatever it is called.
fn names(axes: &[Json]) -> Vec<String> {
    let name = |axis: &Json| {
        if axis.get("type").and_then(Json::as_str) == Some("time") {
            return "t".to_owned();
        }
        let name = axis.get("name").unwrap_or(axis).as_str().unwrap_or("?");
        excerpt(&name.to_lowercase())
    };
    axes.iter().map(name).collect()
}

/// As [`names`], of a list of names.
fn named(list: &Json) -> Vec<String> {
    names(list.as_array().map_or(&[], Vec::as_slice))
}

/// Space axes must come last, as z, y, x.
fn check_axes(path: &Path, axes: &[Json]) -> Result<()> {
    if axes.len() > 8 {
        let problem = format!("it has {} axes, more than 8", axes.len());
        return Err(Error::header(path, "OME-Zarr", problem));
    }
    let names = names(axes);
    let space = names
        .iter()
        .rev()
        .zip(["x", "y", "z"])
        .all(|(have, want)| have == want || !"xyz".contains(have.as_str()));
    if space {
        Ok(())
    } else {
        Err(Error::unsupported(
            path,
            format!("axes {names:?} do not end in z, y, x"),
        ))
    }
}

/// Scale and translation of all given places, one after the other, in millimetres.
fn geometry(axes: &[Json], places: &[&Json]) -> Option<Geometry> {
    let mut scale = [1.0; 3];
    let mut origin = [0.0; 3];
    for place in places {
        let steps = place
            .get("coordinateTransformations")
            .and_then(Json::as_array);
        for step in steps.into_iter().flatten() {
            if let Some(factors) = step.get("scale") {
                let factors = last_three(factors, 1.0)?;
                scale = std::array::from_fn(|a| scale[a] * factors[a]);
                origin = std::array::from_fn(|a| origin[a] * factors[a]);
            }
            if let Some(shift) = step.get("translation") {
                let shift = last_three(shift, 0.0)?;
                origin = std::array::from_fn(|a| origin[a] + shift[a]);
            }
        }
    }
    let millimetres: [f64; 3] = std::array::from_fn(|a| {
        let place = (axes.len() + a).checked_sub(3);
        place
            .and_then(|place| axes.get(place))
            .and_then(|axis| axis.get("unit"))
            .and_then(Json::as_str)
            .map_or(1.0, unit)
    });
    let scaled = |lengths: [f64; 3]| std::array::from_fn(|a| lengths[a] * millimetres[a]);
    Some(Geometry::from_parts(scaled(scale), scaled(origin)))
}

fn last_three(list: &Json, missing: f64) -> Option<[f64; 3]> {
    let list = list.as_array()?;
    let mut numbers = [missing; 3];
    for (to, from) in numbers.iter_mut().rev().zip(list.iter().rev()) {
        *to = from.as_f64()?;
    }
    Some(numbers)
}

/// Millimetres in a UDUNITS-2 length; 1 if it is none.
fn unit(name: &str) -> f64 {
    match name {
        "angstrom" => 1e-7,
        "picometer" => 1e-9,
        "nanometer" | "nm" => 1e-6,
        "micrometer" | "micron" | "um" | "µm" => 1e-3,
        "centimeter" | "cm" => 10.0,
        "decimeter" => 100.0,
        "meter" | "m" => 1e3,
        "kilometer" => 1e6,
        "inch" => 25.4,
        _ => 1.0,
    }
}

/// The geometry that this program left in an array's attributes.
pub(super) fn own_geometry(own: &Json) -> Option<Geometry> {
    let affine: Affine = serde_json::from_value(own.get("affine")?.clone()).ok()?;
    let spacing = serde_json::from_value(own.get("spacing")?.clone()).ok()?;
    Some(Geometry { spacing, affine })
}

/// The attributes of an array that is written: what OME-Zarr has no place for.
pub(super) fn own_attributes(layout: &Layout) -> Json {
    let mut own = json!({"spacing": layout.geometry.spacing, "affine": layout.geometry.affine});
    if let Some(rescale) = layout.rescale {
        own["slope"] = json!(rescale.slope);
        own["intercept"] = json!(rescale.intercept);
    }
    json!({"voxpatch": own})
}

/// What OME-Zarr says of an image whose levels lie at `0`, `1` and so on, the finest first: the
/// entry of `multiscales`, without a version.
///
/// The centre of a level's first voxel lies half of what it is longer than one of the finest
/// level further in.
pub(super) fn image(levels: &[&Layout], name: &str, method: Option<Downsample>) -> Json {
    let finest = &levels[0].geometry;
    let space = |name: &str| json!({"name": name, "type": "space", "unit": "millimeter"});
    let mut axes = vec![space("z"), space("y"), space("x")];
    if levels[0].channels > 1 {
        axes.insert(0, json!({"name": "c", "type": "channel"}));
    }
    let with_channel = |n: f64, space: [f64; 3]| -> Vec<f64> {
        let c = (levels[0].channels > 1).then_some(n);
        c.into_iter().chain(space).collect()
    };
    let dataset = |(n, layout): (usize, &&Layout)| {
        let spacing = layout.geometry.spacing;
        // What is turned in the world has its place in our own attributes only.
        let origin = if finest.is_aligned() {
            layout.geometry.origin()
        } else {
            std::array::from_fn(|a| (spacing[a] - finest.spacing[a]) / 2.0)
        };
        let mut steps = vec![json!({"type": "scale", "scale": with_channel(1.0, spacing)})];
        if origin.iter().any(|&n| n != 0.0) {
            let translation = with_channel(0.0, origin);
            steps.push(json!({"type": "translation", "translation": translation}));
        }
        json!({"path": n.to_string(), "coordinateTransformations": steps})
    };
    let datasets: Vec<Json> = levels.iter().enumerate().map(dataset).collect();
    let mut image = json!({"name": name, "axes": axes, "datasets": datasets});
    if let Some(method) = method {
        image["type"] = json!(method.name());
    }
    image
}

/// The document of a Zarr v3 group that is an image: OME-Zarr 0.5.
pub(super) fn group_document(image: &Json) -> Json {
    json!({
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"ome": {"version": "0.5", "multiscales": [image]}},
    })
}

/// The attributes of a Zarr v2 group that is an image: OME-Zarr 0.4.
pub(super) fn group_attributes_v2(image: &Json) -> Json {
    let mut image = image.clone();
    image["version"] = json!("0.4");
    json!({"multiscales": [image]})
}
