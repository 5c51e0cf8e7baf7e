//! The world position of an image: OME-Zarr's coordinate transformations, composed into one affine. An unknown type of
//! transformation is an error, and so is one that mixes space with time or channels.

use serde_json::Value as Json;

use super::super::format::excerpt;
use super::super::units;
use super::axes::{DimensionOrder, ZarrAxis};
use crate::geometry::{Affine, Geometry};

/// Maximum depth of nested sequences.
const DEEPEST: usize = 8;

/// An affine map of array indices: each result is a sum of all indices, each multiplied by a factor, plus a shift.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AffineMap {
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    factors: Vec<f64>,
    shift: f64,
}

impl AffineMap {
    /// Creates the map that leaves the indices of `rank` dimensions unchanged.
    pub(super) fn identity(rank: usize) -> Self {
        let row = |own: usize| Row {
            factors: (0..rank).map(|n| f64::from(u8::from(n == own))).collect(),
            shift: 0.0,
        };
        Self {
            rows: (0..rank).map(row).collect(),
        }
    }

    /// Composes this map with a transformation, which is applied after it.
    pub(super) fn then(self, step: &Json) -> Result<Self, String> {
        self.then_nested(step, 0)
    }

    fn then_nested(mut self, step: &Json, depth: usize) -> Result<Self, String> {
        let kind = step.get("type").and_then(Json::as_str);
        // Before 0.4, the type was given only by the key.
        let by_key = || {
            ["scale", "translation"]
                .into_iter()
                .find(|key| step.get(*key).is_some())
        };
        let kind = kind.or_else(by_key).unwrap_or("without a type");
        let value = || {
            let value = step.get(kind);
            value.ok_or_else(|| format!("the transformation {:?} has no numbers", excerpt(kind)))
        };
        match kind {
            "identity" => {}
            "scale" => {
                let factors = numbers(value()?, kind, self.rank())?;
                for (row, factor) in self.rows.iter_mut().zip(factors) {
                    row.factors.iter_mut().for_each(|n| *n *= factor);
                    row.shift *= factor;
                }
            }
            "translation" => {
                let shifts = numbers(value()?, kind, self.rank())?;
                for (row, shift) in self.rows.iter_mut().zip(shifts) {
                    row.shift += shift;
                }
            }
            "rotation" | "affine" => self = self.times(&matrix(value()?, kind, self.rank())?),
            "mapAxis" => self = self.permuted(value()?)?,
            "sequence" if depth < DEEPEST => {
                let steps = step.get("transformations").and_then(Json::as_array);
                for step in steps.ok_or("a sequence has no transformations")? {
                    self = self.then_nested(step, depth + 1)?;
                }
            }
            other => {
                return Err(format!(
                    "the transformation {:?} is not read (identity, scale, translation, rotation, affine, \
                     mapAxis and sequences of these are)",
                    excerpt(other)
                ));
            }
        }
        Ok(self)
    }

    fn rank(&self) -> usize {
        self.rows.len()
    }

    fn times(&self, matrix: &[Row]) -> Self {
        let product = |row: &Row| {
            let of = |own: &dyn Fn(&Row) -> f64| -> f64 {
                row.factors
                    .iter()
                    .zip(&self.rows)
                    .map(|(n, row)| n * own(row))
                    .sum()
            };
            let columns = self.rows.first().map_or(0, |row| row.factors.len());
            Row {
                factors: (0..columns).map(|n| of(&|row| row.factors[n])).collect(),
                shift: of(&|row| row.shift) + row.shift,
            }
        };
        Self {
            rows: matrix.iter().map(product).collect(),
        }
    }

    /// Reorders the results: each new axis is the old one whose number is in the list.
    fn permuted(self, list: &Json) -> Result<Self, String> {
        let wrong = || {
            format!(
                "mapAxis is not a list of {} different axes by number",
                self.rank()
            )
        };
        let list = list
            .as_array()
            .filter(|list| list.len() == self.rank())
            .ok_or_else(wrong)?;
        let mut rows = Vec::with_capacity(list.len());
        let mut seen = vec![false; list.len()];
        for n in list {
            let n = n.as_u64().and_then(|n| usize::try_from(n).ok());
            let n = n
                .filter(|&n| n < seen.len() && !seen[n])
                .ok_or_else(wrong)?;
            seen[n] = true;
            rows.push(self.rows[n].clone());
        }
        Ok(Self { rows })
    }

    /// Returns the distance between neighbors along a dimension on the axis with this number.
    pub(super) fn step(&self, axis: usize, dimension: usize) -> f64 {
        self.rows
            .get(axis)
            .map_or(1.0, |row| row.factors[dimension])
    }

    /// Returns the world position, in millimeters, of an array with this dimension order. The results of the map are
    /// the world axes.
    pub(super) fn geometry(
        &self,
        order: &DimensionOrder,
        world: &[ZarrAxis],
    ) -> Result<Geometry, String> {
        let positions = DimensionOrder::by_name(world, &vec![1; self.rank()])?.space;
        let mut affine: Affine = [[0.0; 4]; 4];
        affine[3][3] = 1.0;
        let mut factors = [1.0; 3];
        for (axis, position) in positions.into_iter().enumerate() {
            let target = &mut affine[2 - axis];
            let Some(position) = position else {
                target[2 - axis] = 1.0;
                continue;
            };
            let row = &self.rows[position];
            if let Some(&dimension) = order.leading.iter().find(|&&n| row.factors[n] != 0.0) {
                return Err(format!(
                    "the transformations mix the axis {:?} with dimension {dimension}, which is not spatial",
                    world.get(position).map_or("?", ZarrAxis::shown)
                ));
            }
            factors[axis] = match world.get(position).and_then(|axis| axis.unit.as_deref()) {
                Some(word) => units::unit(word)
                    .ok_or_else(|| units::unknown(word))?
                    .factor(),
                None => 1.0,
            };
            for (column, dimension) in order.space.into_iter().enumerate() {
                if let Some(dimension) = dimension {
                    target[2 - column] = row.factors[dimension] * factors[axis];
                }
            }
            target[3] = row.shift * factors[axis];
        }
        let missing = (0..3).find(|&axis| order.space[axis].is_none() && positions[axis].is_some());
        if let Some(axis) = missing {
            return Err(format!(
                "the array has no axis {}, but its world coordinates have",
                ["z", "y", "x"][axis]
            ));
        }
        // Adding 0 converts -0 to 0.
        let affine = in_body(affine, world, positions).map(|row| row.map(|value| value + 0.0));
        let geometry = straight(affine).unwrap_or_else(|| Geometry::from_affine(affine));
        if geometry.is_sound() {
            return Ok(geometry);
        }
        Err(format!(
            "the transformations give spacing {:?} and affine {affine:?}, which no volume has",
            geometry.spacing
        ))
    }
}

/// Returns the geometry of an affine without rotation, with a spacing that is not rounded.
fn straight(affine: Affine) -> Option<Geometry> {
    let spacing = [affine[2][2], affine[1][1], affine[0][0]];
    let origin = [affine[2][3], affine[1][3], affine[0][3]];
    let plain = Geometry::from_parts(spacing, origin);
    (plain.affine == affine && spacing.iter().all(|&n| n > 0.0)).then_some(plain)
}

/// Moves the rows for x, y and z to their anatomical directions in RAS+, if all three have an orientation.
fn in_body(affine: Affine, world: &[ZarrAxis], positions: [Option<usize>; 3]) -> Affine {
    let mut turned = affine;
    let mut seen = [false; 3];
    for (axis, position) in positions.into_iter().enumerate() {
        let said = position.and_then(|n| world.get(n)?.orientation.as_deref());
        let (row, sign) = match said {
            Some("left-to-right") => (0, 1.0),
            Some("right-to-left") => (0, -1.0),
            Some("posterior-to-anterior") => (1, 1.0),
            Some("anterior-to-posterior") => (1, -1.0),
            Some("inferior-to-superior") => (2, 1.0),
            Some("superior-to-inferior") => (2, -1.0),
            // Other orientations, such as those for animals, have no equivalent in RAS.
            _ => return affine,
        };
        if std::mem::replace(&mut seen[row], true) {
            return affine;
        }
        turned[row] = affine[2 - axis].map(|value| value * sign);
    }
    turned
}

/// Parses a list with one number for each of `rank` axes.
fn numbers(list: &Json, kind: &str, rank: usize) -> Result<Vec<f64>, String> {
    let numbers: Option<Vec<f64>> = list
        .as_array()
        .and_then(|list| list.iter().map(Json::as_f64).collect());
    numbers
        .filter(|numbers| numbers.len() == rank)
        .ok_or_else(|| format!("the {kind} is not a list of {rank} numbers"))
}

/// Parses the rows of a rotation or an affine (with shifts), from nested lists or a flat list.
fn matrix(list: &Json, kind: &str, rank: usize) -> Result<Vec<Row>, String> {
    let columns = rank + usize::from(kind == "affine");
    let wrong = || format!("the {kind} is not a matrix of {rank} rows of {columns} numbers");
    let list = list.as_array().ok_or_else(wrong)?;
    let flat: Option<Vec<f64>> = if list.iter().all(Json::is_array) {
        let rows = list.iter().filter_map(Json::as_array);
        let whole = rows.clone().all(|row| row.len() == columns);
        let flat = rows.flatten().map(Json::as_f64).collect();
        if whole { flat } else { None }
    } else {
        list.iter().map(Json::as_f64).collect()
    };
    let mut flat = flat.ok_or_else(wrong)?;
    let closed = kind == "affine" && flat.len() == (rank + 1) * columns;
    if closed {
        // The last row of a homogeneous matrix carries no information, and must be the unit row.
        let last = flat.split_off(rank * columns);
        let expected = (0..columns).map(|n| f64::from(u8::from(n == rank)));
        if !last.iter().copied().eq(expected) {
            return Err(wrong());
        }
    }
    if flat.len() != rank * columns {
        return Err(wrong());
    }
    let row = |row: &[f64]| Row {
        factors: row[..rank].to_vec(),
        shift: row.get(rank).copied().unwrap_or(0.0),
    };
    Ok(flat.chunks_exact(columns.max(1)).map(row).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn place(axes: &Json, steps: &Json) -> Result<Geometry, String> {
        let axes = ZarrAxis::list(axes);
        let order = DimensionOrder::by_name(&axes, &vec![4; axes.len()])?;
        let mut map = AffineMap::identity(axes.len());
        for step in steps.as_array().unwrap() {
            map = map.then(step)?;
        }
        map.geometry(&order, &axes)
    }

    #[test]
    fn steps_apply_in_sequence_for_every_order_of_the_axes() {
        let scale = json!({"type": "scale", "scale": [3.0, 2.0, 1.0]});
        let shift = json!({"type": "translation", "translation": [30.0, 20.0, 10.0]});
        let zyx = json!(["z", "y", "x"]);
        let expected = Geometry::from_parts([3.0, 2.0, 1.0], [30.0, 20.0, 10.0]);
        assert_eq!(place(&zyx, &json!([scale, shift])), Ok(expected));
        let sequence =
            json!([{"type": "sequence", "transformations": [scale, {"type": "identity"}, shift]}]);
        assert_eq!(place(&zyx, &sequence), Ok(expected));
        let xyz = json!(["x", "y", "z"]);
        let turned = Geometry::from_parts([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]);
        assert_eq!(place(&xyz, &json!([scale, shift])), Ok(turned));
        let twice = Geometry::from_parts([9.0, 4.0, 1.0], [90.0, 40.0, 10.0]);
        assert_eq!(place(&zyx, &json!([scale, shift, scale])), Ok(twice));
        let five = json!([{"type": "scale", "scale": [9.0, 3.0, 1.0, 2.0, 1.0]}]);
        let zcyx = json!(["t", "z", "c", "y", "x"]);
        assert_eq!(
            place(&zcyx, &five),
            Ok(Geometry::from_spacing([3.0, 2.0, 1.0]))
        );
    }

    #[test]
    fn rotations_and_affines_become_part_of_the_affine() {
        let zyx = json!(["z", "y", "x"]);
        let scale = json!({"type": "scale", "scale": [3.0, 2.0, 1.0]});
        let turn = json!({"type": "rotation", "rotation": [[0, 1, 0], [1, 0, 0], [0, 0, 1]]});
        let found = place(&zyx, &json!([scale, turn])).unwrap();
        assert_eq!(found.spacing, [3.0, 2.0, 1.0]);
        // The world's z is the array's y.
        assert_eq!(
            found.affine[..3],
            [
                [1.0, 0.0, 0.0, 0.0],
                [0.0, 0.0, 3.0, 0.0],
                [0.0, 2.0, 0.0, 0.0]
            ]
        );
        for affine in [
            json!([[1, 0, 0, 5], [0, 1, 0, 6], [0.5, 0, 1, 7]]),
            json!([[1, 0, 0, 5], [0, 1, 0, 6], [0.5, 0, 1, 7], [0, 0, 0, 1]]),
            json!([1, 0, 0, 5, 0, 1, 0, 6, 0.5, 0, 1, 7]),
        ] {
            let found = place(&zyx, &json!([scale, {"type": "affine", "affine": affine}])).unwrap();
            assert_eq!(
                found.affine[..3],
                [
                    [1.0, 0.0, 1.5, 7.0],
                    [0.0, 2.0, 0.0, 6.0],
                    [0.0, 0.0, 3.0, 5.0]
                ]
            );
        }
        let map = place(
            &zyx,
            &json!([scale, {"type": "mapAxis", "mapAxis": [1, 0, 2]}]),
        )
        .unwrap();
        assert_eq!(map.affine, found.affine);
    }

    #[test]
    fn units_and_anatomical_directions_are_applied() {
        let axis = |name: &str, unit: &str, way: &str| json!({"name": name, "type": "space", "unit": unit, "orientation": {"type": "anatomical", "value": way}});
        let lps = json!([
            axis("z", "micrometer", "inferior-to-superior"),
            axis("y", "mm", "anterior-to-posterior"),
            axis("x", "nm", "right-to-left"),
        ]);
        let steps = json!([{"type": "scale", "scale": [3000.0, 2.0, 1e6]},
            {"type": "translation", "translation": [1000.0, 20.0, 0.0]}]);
        let found = place(&lps, &steps).unwrap();
        assert_eq!(
            found.affine[..3],
            [
                [-1.0, 0.0, 0.0, 0.0],
                [0.0, -2.0, 0.0, -20.0],
                [0.0, 0.0, 3.0, 1.0]
            ]
        );
        assert_eq!(found.spacing, [3.0, 2.0, 1.0]);
        let mouse = json!([
            axis("z", "mm", "dorsal-to-ventral"),
            axis("y", "mm", "anterior-to-posterior"),
            axis("x", "mm", "right-to-left")
        ]);
        assert!(place(&mouse, &json!([])).unwrap().is_aligned());
    }

    #[test]
    fn transformations_that_are_not_understood_are_refused() {
        let zyx = json!(["z", "y", "x"]);
        let deep = (0..20).fold(
            json!({"type": "identity"}),
            |inner, _| json!({"type": "sequence", "transformations": [inner]}),
        );
        for (step, hint) in [
            (
                json!({"type": "displacements", "path": "warp"}),
                "displacements",
            ),
            (json!({"type": "scale", "path": "scales"}), "no numbers"),
            (json!({"type": "scale", "scale": [1, 2]}), "not a list of 3"),
            (
                json!({"type": "scale", "scale": [1, 2, "3"]}),
                "not a list of 3",
            ),
            (
                json!({"type": "scale", "scale": [1, 0, 1]}),
                "no volume has",
            ),
            (
                json!({"type": "rotation", "rotation": [[1, 0], [0, 1]]}),
                "3 rows of 3",
            ),
            (
                json!({"type": "rotation", "rotation": [[1, 0, 0, 0], [0, 1, 0, 0], [0]]}),
                "3 rows of 3",
            ),
            (
                json!({"type": "affine", "affine": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}),
                "3 rows of 4",
            ),
            (
                json!({"type": "affine", "affine": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2]}),
                "3 rows",
            ),
            (json!({"type": "mapAxis", "mapAxis": [0, 0, 1]}), "mapAxis"),
            (json!({"type": "sequence"}), "no transformations"),
            (json!({}), "without a type"),
            (deep, "sequence"),
        ] {
            let error = place(&zyx, &json!([step])).unwrap_err();
            assert!(error.contains(hint), "{step}: {error}");
        }
        let mixed = json!([{"type": "affine", "affine": [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]}]);
        let error = place(&json!(["c", "z", "y", "x"]), &mixed).unwrap_err();
        assert!(error.contains("not spatial"), "{error}");
        let odd = json!([{"name": "z", "unit": "furlong"}, "y", "x"]);
        assert!(place(&odd, &json!([])).unwrap_err().contains("furlong"));
    }
}
