//! The assignment of array dimensions to volume axes: by name if there are names.

use serde_json::Value as Json;

use super::super::format::excerpt;
use super::super::{AxisKind, LeadingAxis};

/// The metadata of one dimension.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ZarrAxis {
    /// The name in lower case; `None` if the dimension has no name.
    pub(super) name: Option<String>,
    kind: Option<OmeAxisType>,
    pub(super) unit: Option<String>,
    /// The anatomical orientation, as in RFC 4 of OME-Zarr.
    pub(super) orientation: Option<String>,
}

/// The OME-Zarr type of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OmeAxisType {
    Space,
    Time,
    Channel,
}

impl ZarrAxis {
    /// Parses an entry of OME-Zarr's `axes`, or a name.
    pub(super) fn read(entry: &Json) -> Self {
        let word = |key: &str| entry.get(key).and_then(Json::as_str);
        let name = word("name").or(entry.as_str());
        let name = name.map(|name| excerpt(&name.trim().to_lowercase()));
        let kind = match word("type").map(str::to_lowercase).as_deref() {
            Some("space") => Some(OmeAxisType::Space),
            Some("time") => Some(OmeAxisType::Time),
            Some("channel") => Some(OmeAxisType::Channel),
            _ => match name.as_deref() {
                Some("x" | "y" | "z") => Some(OmeAxisType::Space),
                Some("t" | "time") => Some(OmeAxisType::Time),
                Some("c" | "channel" | "channels") => Some(OmeAxisType::Channel),
                _ => None,
            },
        };
        let orientation = entry.get("orientation");
        let orientation = orientation.and_then(|said| said.get("value").unwrap_or(said).as_str());
        Self {
            name: name.filter(|name| !name.is_empty()),
            kind,
            unit: word("unit").map(str::to_owned),
            orientation: orientation.map(str::to_lowercase),
        }
    }

    /// Parses all entries of a list.
    pub(super) fn list(entries: &Json) -> Vec<Self> {
        let entries = entries.as_array().map_or(&[][..], Vec::as_slice);
        entries.iter().map(Self::read).collect()
    }

    /// Returns the name for messages.
    pub(super) fn shown(&self) -> &str {
        self.name.as_deref().unwrap_or("?")
    }

    /// Returns the index of z, y or x (0 to 2) if the axis has that name.
    pub(super) fn place(&self) -> Option<usize> {
        if !matches!(self.kind, None | Some(OmeAxisType::Space)) {
            return None;
        }
        ["z", "y", "x"]
            .iter()
            .position(|name| self.name.as_deref() == Some(name))
    }

    /// Returns the axis as a leading axis (read as channels) of this length.
    pub(super) fn leading(&self, length: u64, step: f64) -> LeadingAxis {
        let kind = match self.kind {
            Some(OmeAxisType::Time) => AxisKind::Time,
            Some(OmeAxisType::Channel) => AxisKind::Channel,
            _ => AxisKind::Other,
        };
        LeadingAxis {
            name: self.shown().to_owned(),
            step,
            unit: self.unit.clone(),
            ..LeadingAxis::new(kind, length)
        }
    }
}

/// The order of an array's dimensions in a volume: first the dimensions that are read as channels, slowest first, then
/// z, y and x. `None` means that the array does not have that axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DimensionOrder {
    pub(super) leading: Vec<usize>,
    pub(super) space: [Option<usize>; 3],
}

impl DimensionOrder {
    /// Assigns the last three dimensions to z, y, x.
    pub(super) fn positional(rank: usize) -> Self {
        Self {
            leading: (0..rank.saturating_sub(3)).collect(),
            space: std::array::from_fn(|axis| (rank + axis).checked_sub(3)),
        }
    }

    /// Assigns dimensions by name: time first, then all other non-spatial dimensions in storage order. `axes` has as
    /// many entries as `lengths`, or none.
    pub(super) fn by_name(axes: &[ZarrAxis], lengths: &[u64]) -> Result<Self, String> {
        if axes.is_empty() {
            return Ok(Self::positional(lengths.len()));
        }
        let shown: Vec<&str> = axes.iter().map(ZarrAxis::shown).collect();
        if axes.len() != lengths.len() {
            return Err(format!(
                "its {} axes {shown:?} do not match the {} dimensions of shape {lengths:?}",
                axes.len(),
                lengths.len()
            ));
        }
        let mut space = [None; 3];
        for (dimension, axis) in axes.iter().enumerate() {
            let Some(place) = axis.place() else { continue };
            if space[place].replace(dimension).is_some() {
                return Err(format!(
                    "axes {shown:?}: two have the name {:?}",
                    axis.shown()
                ));
            }
        }
        if space == [None; 3] {
            space = unnamed(axes)
                .ok_or_else(|| format!("axes {shown:?}: z, y and x cannot be identified"))?;
        }
        let is_space = |dimension: usize| space.contains(&Some(dimension));
        let rest: Vec<usize> = (0..axes.len())
            .filter(|&dimension| !is_space(dimension))
            .collect();
        let lost = |&&dimension: &&usize| {
            let axis = &axes[dimension];
            let unclear = axis.kind.is_none() && space.contains(&None) && lengths[dimension] > 1;
            unclear || axis.kind == Some(OmeAxisType::Space)
        };
        if let Some(&dimension) = rest.iter().find(lost) {
            return Err(format!(
                "axes {shown:?}: {:?} is not one of z, y, x, t and c",
                axes[dimension].shown()
            ));
        }
        let is_time = |&dimension: &usize| axes[dimension].kind == Some(OmeAxisType::Time);
        let (time, others): (Vec<usize>, Vec<usize>) = rest.into_iter().partition(is_time);
        if time.len() > 1 {
            return Err(format!("axes {shown:?}: more than one is time"));
        }
        Ok(Self {
            leading: time.into_iter().chain(others).collect(),
            space,
        })
    }

    /// Returns the order with the leading dimensions in storage order.
    pub(super) fn stored_first(&self) -> Self {
        let mut leading = self.leading.clone();
        leading.sort_unstable();
        Self {
            leading,
            ..self.clone()
        }
    }

    /// Returns `true` if the dimensions have the same order in the volume and in the array.
    pub(super) fn is_stored(&self) -> bool {
        self.all().flatten().is_sorted()
    }

    /// Iterates over all dimensions.
    pub(super) fn all(&self) -> impl Iterator<Item = Option<usize>> {
        self.leading.iter().copied().map(Some).chain(self.space)
    }
}

/// Finds z, y and x if no axis has such a name: the spatial axes in order, else the last ones that are neither time nor
/// channels.
fn unnamed(axes: &[ZarrAxis]) -> Option<[Option<usize>; 3]> {
    let of_kind = |kind: Option<OmeAxisType>| -> Vec<usize> {
        let all = axes.iter().enumerate();
        all.filter(|(_, axis)| axis.kind == kind)
            .map(|(n, _)| n)
            .collect()
    };
    let said = of_kind(Some(OmeAxisType::Space));
    let found = if said.is_empty() {
        let unknown = of_kind(None);
        let first = unknown.len().saturating_sub(3);
        unknown[first..].to_vec()
    } else {
        said
    };
    (1..=3).contains(&found.len()).then(|| {
        std::array::from_fn(|place| {
            let n = (found.len() + place).checked_sub(3)?;
            Some(found[n])
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn order(names: &Json, lengths: &[u64]) -> Result<(Vec<usize>, [Option<usize>; 3]), String> {
        DimensionOrder::by_name(&ZarrAxis::list(names), lengths)
            .map(|order| (order.leading, order.space))
    }

    #[test]
    fn axes_are_found_by_name_wherever_they_are() {
        for (names, leading, space) in [
            (json!(["z", "y", "x"]), vec![], [Some(0), Some(1), Some(2)]),
            (json!(["x", "y", "z"]), vec![], [Some(2), Some(1), Some(0)]),
            (json!(["X", "Z", "Y"]), vec![], [Some(1), Some(2), Some(0)]),
            (
                json!(["z", "c", "y", "x"]),
                vec![1],
                [Some(0), Some(2), Some(3)],
            ),
            (
                json!(["z", "y", "x", "c"]),
                vec![3],
                [Some(0), Some(1), Some(2)],
            ),
            (
                json!(["c", "t", "z", "y", "x"]),
                vec![1, 0],
                [Some(2), Some(3), Some(4)],
            ),
            (json!(["c", "y", "x"]), vec![0], [None, Some(1), Some(2)]),
            (json!(["x", "y", "time"]), vec![2], [None, Some(1), Some(0)]),
            (json!(["y", "x"]), vec![], [None, Some(0), Some(1)]),
            (
                json!(["time", "lat", "lon"]),
                vec![0],
                [None, Some(1), Some(2)],
            ),
            (
                json!(["a", "b", "c1", "d"]),
                vec![0],
                [Some(1), Some(2), Some(3)],
            ),
            (
                json!([null, null, null]),
                vec![],
                [Some(0), Some(1), Some(2)],
            ),
            (
                json!(["angle", "z", "y", "x"]),
                vec![0],
                [Some(1), Some(2), Some(3)],
            ),
        ] {
            let lengths = vec![4; names.as_array().unwrap().len()];
            assert_eq!(order(&names, &lengths), Ok((leading, space)), "{names}");
        }
        let custom = json!([{"name": "depth", "type": "space"}, {"name": "n", "type": "channel"},
            {"name": "row", "type": "space"}, {"name": "col", "type": "space"}]);
        assert_eq!(
            order(&custom, &[4; 4]),
            Ok((vec![1], [Some(0), Some(2), Some(3)]))
        );
        assert_eq!(
            order(&json!([]), &[4, 5]),
            Ok((vec![], [None, Some(0), Some(1)]))
        );
    }

    #[test]
    fn axes_that_are_not_understood_are_refused() {
        for (names, hint) in [
            (json!(["z", "y", "y"]), "two have the name"),
            (json!(["slice", "y", "x"]), "\"slice\" is not one"),
            (json!([null, "y", "x"]), "\"?\" is not one"),
            (json!(["t", "time", "y", "x"]), "more than one is time"),
            (json!(["t", "c"]), "cannot be identified"),
            (
                json!([{"name": "w", "type": "space"}, "z", "y", "x"]),
                "\"w\" is not one",
            ),
        ] {
            let lengths = vec![4; names.as_array().unwrap().len()];
            let error = order(&names, &lengths).unwrap_err();
            assert!(error.contains(hint), "{names}: {error}");
        }
        assert!(
            order(&json!(["y", "x"]), &[4; 3])
                .unwrap_err()
                .contains("do not match")
        );
        // An axis of length 1 may have any position.
        assert!(order(&json!(["slice", "y", "x"]), &[1, 4, 4]).is_ok());
    }
}
