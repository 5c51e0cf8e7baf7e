//! What OME-Zarr says of an image: its levels, their axes, and their place in the world.
//!
//! OME-Zarr up to 0.5, and 0.6 as far as it is an affine, is read, and lengths become
//! millimetres. What is written is 0.5, or 0.4 where Zarr v2 is asked for, plus a `voxpatch`
//! attribute with the affine, which OME-Zarr cannot hold.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::super::format::excerpt;
use super::super::units::{self, Unit};
use super::super::{Axes, AxisKind, Downsample, Layout, LeadingAxis};
use super::axes::{Axis, Order};
use super::meta::ArrayInfo;
use super::place::Map;
use crate::error::{Error, Result};
use crate::geometry::{Affine, Geometry};

/// The most levels that an image may have: each halves what the one before has.
const MOST_LEVELS: usize = 64;

/// What an image says of one of its levels.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    /// The axes of the array's dimensions.
    pub(super) axes: Vec<Axis>,
    /// Those of the world, whose units count.
    world: Vec<Axis>,
    map: Map,
    omero: Option<Json>,
}

/// The image that a group with these attributes is.
pub(super) fn said_image(attributes: &Json) -> Option<&Json> {
    let ome = attributes.get("ome").unwrap_or(attributes);
    ome.pointer("/multiscales/0")
}

/// The levels of an image.
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
    /// From an image, the attributes of its group, and one of its datasets, whose array has `rank`
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
        let mut map = Map::identity(rank);
        for step in &own {
            map = map.then(step)?;
        }
        let (axes, world) = match systems {
            None => {
                for step in &common {
                    map = map.then(step)?;
                }
                let axes = image.get("axes").map(Axis::list).unwrap_or_default();
                // Images of before 0.3 have five dimensions, always the same.
                let axes = match (axes.is_empty(), rank) {
                    (true, 5) => Axis::list(&json!(["t", "c", "z", "y", "x"])),
                    _ => axes,
                };
                (axes.clone(), axes)
            }
            // Since 0.6, transformations lead from one system to the next.
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

    /// Where the array with these dimensions lies.
    pub(super) fn geometry(&self, order: &Order) -> Result<Geometry, String> {
        self.map.geometry(order, &self.world)
    }

    /// What goes with the volume to other formats.
    pub(super) fn axes(&self, facts: &ArrayInfo) -> Axes {
        let word = self
            .world
            .iter()
            .filter(|axis| axis.place().is_some())
            .find_map(|axis| axis.unit.clone());
        let unit = word.and_then(|word| match units::unit(&word)? {
            Unit::Millimetres(factor) => Some((word, factor)),
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

/// The axes of an array that are read as channels.
pub(super) fn leading(
    axes: &[Axis],
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

/// The name of the coordinate system that a transformation comes from or leads to.
fn named_system(step: &Json, key: &str) -> Option<String> {
    let value = step.get(key)?;
    let name = value.get("name").unwrap_or(value);
    name.as_str().map(str::to_owned)
}

/// The axes of the system of that name; of the first if none is named.
fn system(systems: &[Json], name: Option<&str>) -> Result<Vec<Axis>, String> {
    let found = match name {
        None => systems.first(),
        Some(name) => systems
            .iter()
            .find(|system| system.get("name").and_then(Json::as_str) == Some(name)),
    };
    let found = found.ok_or_else(|| {
        format!(
            "there is no coordinate system {:?}",
            excerpt(name.unwrap_or_default())
        )
    })?;
    Ok(found.get("axes").map(Axis::list).unwrap_or_default())
}

/// Follows the transformations of an image from the system `from` on to where they end.
fn follow(
    systems: &[Json],
    steps: &[Json],
    mut from: Option<String>,
    mut map: Map,
) -> Result<(Map, Vec<Axis>), String> {
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
                    "it has several places in the world, {ends:?}, and says of none that it counts"
                ));
            }
        }
    }
    let world = system(systems, from.as_deref())?;
    Ok((map, world))
}

/// The geometry that this program left in an array's attributes.
pub(super) fn own_geometry(own: &Json) -> Option<Geometry> {
    let affine: Affine = serde_json::from_value(own.get("affine")?.clone()).ok()?;
    let spacing = serde_json::from_value(own.get("spacing")?.clone()).ok()?;
    Some(Geometry {
        spacing,
        affine,
        is_known: true,
    })
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
/// entry of `multiscales`, without a version, and with the group's `omero` in it.
///
/// The centre of a level's first voxel lies half of what it is longer than one of the finest
/// level further in.
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
        // What is turned in the world has its place in our own attributes only.
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

/// An axis in front of z, y and x as it is written.
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

/// An image without what belongs to its group, which is `omero`.
fn apart(image: &Json) -> (Json, Option<Json>) {
    let mut image = image.clone();
    let omero = image
        .as_object_mut()
        .and_then(|image| image.remove("omero"));
    (image, omero)
}

/// The document of a Zarr v3 group that is an image: OME-Zarr 0.5.
pub(super) fn group_document(image: &Json) -> Json {
    let (image, omero) = apart(image);
    let mut ome = json!({"version": "0.5", "multiscales": [image]});
    if let Some(omero) = omero {
        ome["omero"] = omero;
    }
    json!({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})
}

/// The attributes of a Zarr v2 group that is an image: OME-Zarr 0.4.
pub(super) fn group_attributes_v2(image: &Json) -> Json {
    let (mut image, omero) = apart(image);
    image["version"] = json!("0.4");
    let mut attributes = json!({"multiscales": [image]});
    if let Some(omero) = omero {
        attributes["omero"] = omero;
    }
    attributes
}
