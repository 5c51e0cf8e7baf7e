//! Finding the array a path means, and what OME-Zarr says about its place in the world.
//!
//! OME-Zarr 0.4 (Zarr v2) and 0.5 (v3) multiscales are read: the level's path, its scale
//! and translation, and the axes' units, which become millimetres. What is written is 0.5,
//! plus a `voxpatch` attribute with the affine, which OME-Zarr cannot hold.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::super::{Format, Layout};
use super::store::read_json;
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
}

/// A group's attributes.
#[derive(Default)]
struct Group {
    attributes: Json,
}

/// How deep a group may be nested above its first array.
const MAX_DEPTH: usize = 4;

/// The array at `path`, level `level` of the image there, or the group's first array or image.
pub(super) fn find_array(path: &Path, level: usize) -> Result<Found> {
    if let Some(mut array) = array_at(path)? {
        if level > 0 {
            return Err(no_level(path, level, 1));
        }
        array.geometry = geometry_by_parent(path);
        return Ok(array);
    }
    let Some(group) = group_at(path)? else {
        return Err(Error::UnknownFormat {
            path: path.to_path_buf(),
            problem: "it is a folder without zarr.json, .zarray or .zgroup".to_owned(),
        });
    };
    first_in_group(path, &group, level, 0)?.ok_or_else(|| {
        Error::unsupported(path, "the Zarr group holds no array of 2 to 8 dimensions")
    })
}

/// The image that a group says it is.
fn image(group: &Group) -> Option<&Json> {
    let ome = group.attributes.get("ome").unwrap_or(&group.attributes);
    ome.pointer("/multiscales/0")
}

/// What the image around an array that was opened by its own path says about it.
fn geometry_by_parent(path: &Path) -> Option<Geometry> {
    let path = path.canonicalize().ok()?;
    let (parent, name) = (path.parent()?, path.file_name()?.to_str()?);
    // An array stands for itself: what is wrong with its parent does not matter here.
    let group = group_at(parent).ok()??;
    let image = image(&group)?;
    let datasets = image.get("datasets")?.as_array()?;
    let dataset = datasets
        .iter()
        .find(|dataset| dataset.get("path").and_then(Json::as_str) == Some(name))?;
    geometry(axes(image), &[dataset, image])
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

fn array_at(path: &Path) -> Result<Option<Found>> {
    if let Some(document) = read_json(path, "zarr.json")? {
        return match document.get("node_type").and_then(Json::as_str) {
            Some("array") => {
                let attributes = document.get("attributes").cloned().unwrap_or_default();
                let path = path.to_path_buf();
                Ok(Some(Found {
                    path,
                    format: Format::Zarr3,
                    document,
                    attributes,
                    geometry: None,
                }))
            }
            Some("group") => Ok(None),
            other => {
                let problem = format!("node_type is {other:?}, neither \"array\" nor \"group\"");
                Err(Error::header(&path.join("zarr.json"), "Zarr v3", problem))
            }
        };
    }
    let Some(document) = read_json(path, ".zarray")? else {
        return Ok(None);
    };
    let attributes = read_json(path, ".zattrs")?.unwrap_or_default();
    Ok(Some(Found {
        path: path.to_path_buf(),
        format: Format::Zarr2,
        document,
        attributes,
        geometry: None,
    }))
}

fn group_at(path: &Path) -> Result<Option<Group>> {
    if let Some(document) = read_json(path, "zarr.json")? {
        let group = document.get("node_type").and_then(Json::as_str) == Some("group");
        return Ok(group.then(|| Group {
            attributes: document.get("attributes").cloned().unwrap_or_default(),
        }));
    }
    if read_json(path, ".zgroup")?.is_none() {
        return Ok(None);
    }
    Ok(Some(Group {
        attributes: read_json(path, ".zattrs")?.unwrap_or_default(),
    }))
}

/// The level of the image that a group is, or else the first array or image below it by
/// name, arrays before groups.
fn first_in_group(path: &Path, group: &Group, level: usize, depth: usize) -> Result<Option<Found>> {
    if let Some(image) = image(group) {
        return multiscale(path, image, level).map(Some);
    }
    let mut children = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let child = entry.map_err(Error::io("list", path))?.path();
        if child.is_dir() {
            children.push(child);
        }
    }
    children.sort();
    for child in &children {
        if let Some(array) = array_at(child)? {
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
            && let group = group_at(&child)?.unwrap_or_default()
            && let Some(array) = first_in_group(&child, &group, level, depth + 1)?
        {
            return Ok(Some(array));
        }
    }
    Ok(None)
}

fn multiscale(path: &Path, image: &Json, level: usize) -> Result<Found> {
    let bad = |problem: String| Error::header(path, "OME-Zarr", problem);
    let datasets = image
        .get("datasets")
        .and_then(Json::as_array)
        .map_or(&[][..], Vec::as_slice);
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
            "the path {name:?} of level {level} does not stay inside the image"
        )));
    }
    let mut found = array_at(&path.join(name))?.ok_or_else(|| {
        bad(format!(
            "level {level} should be at {name:?}, but there is no array"
        ))
    })?;
    let axes = axes(image);
    check_axes(path, axes)?;
    found.geometry = Some(geometry(axes, &[dataset, image]).ok_or_else(|| {
        bad(format!(
            "level {level} has a scale or translation that is no list of {} numbers",
            axes.len().max(3)
        ))
    })?);
    Ok(found)
}

/// Space axes must come last, as z, y, x.
fn check_axes(path: &Path, axes: &[Json]) -> Result<()> {
    let name = |axis: &Json| {
        axis.get("name")
            .or(Some(axis))
            .and_then(Json::as_str)
            .unwrap_or("?")
            .to_lowercase()
    };
    let names: Vec<String> = axes.iter().map(name).collect();
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

/// The group document of an image with one level, at `0`.
pub(super) fn group_document(layout: &Layout, name: &str) -> Json {
    let Geometry { spacing, .. } = layout.geometry;
    let origin = if layout.geometry.is_aligned() {
        layout.geometry.origin()
    } else {
        [0.0; 3]
    };
    let space = |name: &str| json!({"name": name, "type": "space", "unit": "millimeter"});
    let mut axes = vec![space("z"), space("y"), space("x")];
    let (mut scale, mut translation) = (spacing.to_vec(), origin.to_vec());
    if layout.channels > 1 {
        axes.insert(0, json!({"name": "c", "type": "channel"}));
        scale.insert(0, 1.0);
        translation.insert(0, 0.0);
    }
    let mut steps = vec![json!({"type": "scale", "scale": scale})];
    if origin.iter().any(|&n| n != 0.0) {
        steps.push(json!({"type": "translation", "translation": translation}));
    }
    json!({
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"ome": {
            "version": "0.5",
            "multiscales": [{
                "name": name,
                "axes": axes,
                "datasets": [{"path": "0", "coordinateTransformations": steps}],
            }],
        }},
    })
}
