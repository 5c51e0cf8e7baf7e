//! OME-Zarr metadata of images: levels, axes, and world position.
//!
//! Reads OME-Zarr up to 0.5, and 0.6 if its transformations form an affine; lengths are converted to millimeters.
//! Writes 0.5, or 0.4 for Zarr v2, plus a `voxpatch` attribute with the affine, which OME-Zarr cannot store.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::super::format::excerpt;
use super::super::units::{self, Unit};
use super::super::{Axes, AxisKind, Downsample, Layout, LeadingAxis};
use super::axes::{DimensionOrder, ZarrAxis};
use super::meta::ArrayInfo;
use super::place::AffineMap;
use crate::error::{Error, Result};
use crate::geometry::{Affine, Geometry};

/// Maximum number of levels of an image; each is half as long as the previous one.
const MOST_LEVELS: usize = 64;

/// The metadata of one level of an image.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    /// The axes of the array's dimensions.
    pub(super) axes: Vec<ZarrAxis>,
    /// The world axes, which have the units.
    world: Vec<ZarrAxis>,
    map: AffineMap,
    omero: Option<Json>,
}

/// Returns the image that a group's attributes declare.
pub(super) fn said_image(attributes: &Json) -> Option<&Json> {
    let ome = attributes.get("ome").unwrap_or(attributes);
    ome.pointer("/multiscales/0")
}

/// Returns the levels of an image.
pub(super) fn datasets<'a>(path: &Path, image: &'a Json) -> Result<&'a [Json]> {
    let all = image.get("datasets").and_then(Json::as_array);
    let all = all.map_or(&[][..], Vec::as_slice);
    if all.len() > MOST_LEVELS {
        let problem = format!("it has {} levels, more than {MOST_LEVELS}", all.len());
        return Err(Error::header(path, "OME-Zarr", problem));
    }
    Ok(all)
}

impl Placed {
    /// Reads one dataset of an image, given the attributes of the image's group. The dataset's array has `rank`
    /// dimensions.
    pub(super) fn read(
        image: &Json,
        attributes: &Json,
        dataset: &Json,
        rank: usize,
    ) -> Result<Self, String> {
        let steps = |place: &Json| -> Vec<Json> {
            let list = place
                .get("coordinateTransformations")
                .and_then(Json::as_array);
            list.cloned().unwrap_or_default()
        };
        let (own, common) = (steps(dataset), steps(image));
        let systems = image.get("coordinateSystems").and_then(Json::as_array);
        let mut map = AffineMap::identity(rank);
        for step in &own {
            map = map.then(step)?;
        }
        let (axes, world) = match systems {
            None => {
                for step in &common {
                    map = map.then(step)?;
                }
                let axes = image.get("axes").map(ZarrAxis::list).unwrap_or_default();
                // Images before 0.3 always have the same five dimensions.
                let axes = match (axes.is_empty(), rank) {
                    (true, 5) => ZarrAxis::list(&json!(["t", "c", "z", "y", "x"])),
                    _ => axes,
                };
                (axes.clone(), axes)
            }
            // Since 0.6, each transformation leads from one coordinate system to another.
            Some(systems) => {
                let output = |step: &Json| named_system(step, "output");
                let first = own.last().and_then(output);
                let axes = system(systems, first.as_deref())?;
                let (map_to, world) = follow(systems, &common, first, map)?;
                map = map_to;
                (axes, world)
            }
        };
        if axes.len() > 8 {
            return Err(format!("it has {} axes, more than 8", axes.len()));
        }
        let ome = attributes.get("ome").unwrap_or(attributes);
        Ok(Self {
            axes,
            world,
            map,
            omero: ome.get("omero").cloned(),
        })
    }

    /// Returns the metadata with all world axes in the same unknown unit.
    pub(super) fn without_units(&self) -> Self {
        let mut placed = self.clone();
        for axis in &mut placed.world {
            axis.unit = None;
        }
        placed
    }

    /// Returns the world position of an array with this dimension order.
    pub(super) fn geometry(&self, order: &DimensionOrder) -> Result<Geometry, String> {
        self.map.geometry(order, &self.world)
    }

    /// Returns the axis metadata that the volume keeps in other formats.
    pub(super) fn axes(&self, facts: &ArrayInfo) -> Axes {
        let word = self
            .world
            .iter()
            .filter(|axis| axis.place().is_some())
            .find_map(|axis| axis.unit.clone());
        let unit = word.and_then(|word| match units::unit(&word)? {
            Unit::Millimeters(factor) => Some((word, factor)),
            Unit::None => None,
        });
        let channels = self
            .omero
            .as_ref()
            .and_then(|omero| omero.get("channels")?.as_array());
        let label = |channel: &Json| {
            let label = channel.get("label").and_then(Json::as_str);
            label.unwrap_or_default().to_owned()
        };
        Axes {
            leading: leading(&self.axes, facts, |dimension| {
                self.map.step(dimension, dimension)
            }),
            unit,
            channel_names: channels.into_iter().flatten().map(label).collect(),
            omero: self.omero.clone(),
        }
    }
}

/// Returns the axes of an array that are read as channels.
pub(super) fn leading(
    axes: &[ZarrAxis],
    facts: &ArrayInfo,
    step: impl Fn(usize) -> f64,
) -> Vec<LeadingAxis> {
    if axes.len() != facts.stored.dims.len() {
        return Vec::new();
    }
    let order = &facts.order.leading;
    order
        .iter()
        .map(|&dimension| axes[dimension].leading(facts.stored.dims[dimension], step(dimension)))
        .collect()
}

/// Returns the name of a transformation's input or output coordinate system.
fn named_system(step: &Json, key: &str) -> Option<String> {
    let value = step.get(key)?;
    let name = value.get("name").unwrap_or(value);
    name.as_str().map(str::to_owned)
}

/// Returns the axes of the coordinate system with this name, or of the first one if there is no name.
fn system(systems: &[Json], name: Option<&str>) -> Result<Vec<ZarrAxis>, String> {
    let found = match name {
        None => systems.first(),
        Some(name) => systems
            .iter()
            .find(|system| system.get("name").and_then(Json::as_str) == Some(name)),
    };
    let found = found.ok_or_else(|| {
        format!(
            "it has no coordinate system {:?}",
            excerpt(name.unwrap_or_default())
        )
    })?;
    Ok(found.get("axes").map(ZarrAxis::list).unwrap_or_default())
}

/// Follows the transformations of an image from the system `from` to the last one.
fn follow(
    systems: &[Json],
    steps: &[Json],
    mut from: Option<String>,
    mut map: AffineMap,
) -> Result<(AffineMap, Vec<ZarrAxis>), String> {
    let mut left: Vec<&Json> = steps.iter().collect();
    loop {
        let next: Vec<usize> = (0..left.len())
            .filter(|&n| named_system(left[n], "input").is_none_or(|input| Some(input) == from))
            .collect();
        match next.as_slice() {
            [] if left.is_empty() => break,
            [] => return Err("its transformations do not follow one another".to_owned()),
            &[n] => {
                let step = left.remove(n);
                map = map.then(step)?;
                from = named_system(step, "output").or(from);
            }
            _ => {
                let ends: Vec<String> = left
                    .iter()
                    .filter_map(|step| named_system(step, "output"))
                    .collect();
                return Err(format!(
                    "it has several world coordinate systems, {ends:?}, and does not select one"
                ));
            }
        }
    }
    let world = system(systems, from.as_deref())?;
    Ok((map, world))
}

/// Returns the geometry that this crate stored in an array's attributes.
pub(super) fn own_geometry(own: &Json) -> Option<Geometry> {
    let affine: Affine = serde_json::from_value(own.get("affine")?.clone()).ok()?;
    let spacing = serde_json::from_value(own.get("spacing")?.clone()).ok()?;
    Some(Geometry {
        spacing,
        affine,
        is_known: true,
    })
}

/// Returns our attributes for an array that is written: the values that OME-Zarr cannot store.
pub(super) fn own_attributes(layout: &Layout) -> Json {
    let mut own = json!({"spacing": layout.geometry.spacing, "affine": layout.geometry.affine});
    if let Some(rescale) = layout.rescale {
        own["slope"] = json!(rescale.slope);
        own["intercept"] = json!(rescale.intercept);
    }
    json!({"voxpatch": own})
}

/// Returns the OME-Zarr metadata of an image with levels at `0`, `1` and so on, finest first. This is the entry of
/// `multiscales`, without a version, and including the group's `omero`.
///
/// The center of a level's first voxel is shifted inward, by half the difference between its voxel length and that of
/// the finest level.
pub(super) fn image(levels: &[&Layout], name: &str, method: Option<Downsample>) -> Json {
    let finest = &levels[0].geometry;
    let leading = levels[0].axes.leading_of(levels[0].channels);
    let unit = levels[0].axes.unit.as_ref();
    let unit = unit.and_then(|&(_, factor)| Some((units::name(factor)?, factor)));
    let (unit, factor) = unit.unwrap_or(("millimeter", 1.0));
    let space = |name: &str| json!({"name": name, "type": "space", "unit": unit});
    let axes = leading
        .iter()
        .map(written)
        .chain(["z", "y", "x"].map(space));
    let axes: Vec<Json> = axes.collect();
    let all = |own: &dyn Fn(&LeadingAxis) -> f64, space: [f64; 3]| -> Vec<f64> {
        let space = space.map(|length| units::in_units(length, factor));
        leading.iter().map(own).chain(space).collect()
    };
    let dataset = |(n, layout): (usize, &&Layout)| {
        let spacing = layout.geometry.spacing;
        // The position of a rotated image is only in our own attributes.
        let origin = if finest.is_aligned() {
            layout.geometry.origin()
        } else {
            std::array::from_fn(|a| (spacing[a] - finest.spacing[a]) / 2.0)
        };
        let scale = all(&|axis| axis.step, spacing);
        let mut steps = vec![json!({"type": "scale", "scale": scale})];
        if origin.iter().any(|&n| n != 0.0) {
            let translation = all(&|_| 0.0, origin);
            steps.push(json!({"type": "translation", "translation": translation}));
        }
        json!({"path": n.to_string(), "coordinateTransformations": steps})
    };
    let datasets: Vec<Json> = levels.iter().enumerate().map(dataset).collect();
    let mut image = json!({"name": name, "axes": axes, "datasets": datasets});
    if let Some(method) = method {
        image["type"] = json!(method.name());
    }
    if let Some(omero) = levels[0].axes.omero_of(levels[0].channels) {
        image["omero"] = omero.clone();
    }
    image
}

/// Returns the document of an axis in front of z, y and x.
fn written(axis: &LeadingAxis) -> Json {
    let mut document = json!({"name": axis.name});
    match axis.kind {
        AxisKind::Time => document["type"] = json!("time"),
        AxisKind::Channel => document["type"] = json!("channel"),
        AxisKind::Other => {}
    }
    if let Some(unit) = &axis.unit {
        document["unit"] = json!(unit);
    }
    document
}

/// Separates the image from `omero`, which belongs to its group.
fn apart(image: &Json) -> (Json, Option<Json>) {
    let mut image = image.clone();
    let omero = image
        .as_object_mut()
        .and_then(|image| image.remove("omero"));
    (image, omero)
}

/// Returns the document of a Zarr v3 group that is an image: OME-Zarr 0.5.
pub(super) fn group_document(image: &Json) -> Json {
    let (image, omero) = apart(image);
    let mut ome = json!({"version": "0.5", "multiscales": [image]});
    if let Some(omero) = omero {
        ome["omero"] = omero;
    }
    json!({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})
}

/// Returns the attributes of a Zarr v2 group that is an image: OME-Zarr 0.4.
pub(super) fn group_attributes_v2(image: &Json) -> Json {
    let (mut image, omero) = apart(image);
    image["version"] = json!("0.4");
    let mut attributes = json!({"multiscales": [image]});
    if let Some(omero) = omero {
        attributes["omero"] = omero;
    }
    attributes
}
