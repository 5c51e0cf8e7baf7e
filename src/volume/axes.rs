//! Axis metadata of a file apart from the lengths: names, kinds and units.

use serde_json::Value as Json;

/// Metadata of a volume's axes: the axes that are read as channels, and names and units. Formats keep it as far as they
/// have a place for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axes {
    /// The axes in front of z, y and x, the slowest first; empty if nothing names them.
    pub leading: Vec<LeadingAxis>,
    /// The unit of length in the file by its OME-Zarr name, and its length in millimeters. The geometry is always in
    /// millimeters.
    pub unit: Option<(String, f64)>,
    /// The names of the channels.
    pub channel_names: Vec<String>,
    /// The display settings of the channels in OME-Zarr: the `omero` document.
    pub omero: Option<Json>,
}

/// An axis in front of z, y and x.
#[derive(Clone, Debug, PartialEq)]
pub struct LeadingAxis {
    /// The name, in lower case.
    pub name: String,
    /// The kind of axis.
    pub kind: AxisKind,
    /// The number of places along the axis.
    pub length: u64,
    /// The distance between neighbors in [`unit`](Self::unit).
    pub step: f64,
    /// The unit of that distance, as the file calls it.
    pub unit: Option<String>,
}

/// The kind of an axis in front of z, y and x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AxisKind {
    /// Time points.
    Time,
    /// Channels.
    Channel,
    /// Something else.
    Other,
}

impl LeadingAxis {
    /// Creates an axis of this kind, with its usual name, a step of 1 and no unit.
    #[must_use]
    pub fn new(kind: AxisKind, length: u64) -> Self {
        let name = match kind {
            AxisKind::Time => "t",
            AxisKind::Channel => "c",
            AxisKind::Other => "n",
        };
        Self {
            name: name.to_owned(),
            kind,
            length,
            step: 1.0,
            unit: None,
        }
    }
}

impl Axes {
    /// Returns the axes in front of z, y and x for a volume with `channels` channels. These are the named axes if the
    /// product of their lengths is `channels`; otherwise a single channel axis, or none for one channel. The names
    /// differ from each other and from z, y and x.
    #[must_use]
    pub fn leading_of(&self, channels: u64) -> Vec<LeadingAxis> {
        let places = self
            .leading
            .iter()
            .try_fold(1_u64, |all, axis| all.checked_mul(axis.length));
        if self.leading.is_empty() || places != Some(channels) {
            return (channels > 1)
                .then(|| LeadingAxis::new(AxisKind::Channel, channels))
                .into_iter()
                .collect();
        }
        let mut named: Vec<LeadingAxis> = Vec::new();
        for (n, axis) in self.leading.iter().enumerate() {
            let taken = named.iter().any(|other| other.name == axis.name);
            let mut axis = axis.clone();
            if taken || matches!(axis.name.as_str(), "z" | "y" | "x" | "?" | "") {
                axis.name = format!("{}{n}", LeadingAxis::new(axis.kind, 1).name);
            }
            named.push(axis);
        }
        named
    }

    /// As [`leading_of`](Self::leading_of), without axes of length 1: the axes that a format without names keeps.
    pub(super) fn long_of(&self, channels: u64) -> Vec<LeadingAxis> {
        let mut all = self.leading_of(channels);
        all.retain(|axis| axis.length > 1);
        all
    }

    /// Returns the `omero` document if it describes as many channels as the volume's channel axis has.
    pub(super) fn omero_of(&self, channels: u64) -> Option<&Json> {
        let leading = self.leading_of(channels);
        let own = leading.iter().find(|axis| axis.kind == AxisKind::Channel);
        let shown = self.omero.as_ref()?.get("channels")?.as_array()?.len();
        (shown as u64 == own.map_or(1, |axis| axis.length)).then_some(self.omero.as_ref())?
    }

    /// Returns the number of time points of a volume with `channels` channels, if time is the slowest axis.
    pub(super) fn time_points(&self, channels: u64) -> Option<u64> {
        let leading = self.leading_of(channels);
        let mut slower = 1_u64;
        for axis in leading {
            if axis.kind == AxisKind::Time {
                return (slower == 1).then_some(axis.length);
            }
            slower = slower.saturating_mul(axis.length);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_apply_only_if_they_fit_the_channels() {
        let axis = |name: &str, kind, length| LeadingAxis {
            name: name.to_owned(),
            ..LeadingAxis::new(kind, length)
        };
        let axes = Axes {
            leading: vec![
                axis("t", AxisKind::Time, 3),
                axis("x", AxisKind::Other, 1),
                axis("t", AxisKind::Channel, 2),
            ],
            omero: Some(json!({"channels": [{}, {}]})),
            ..Axes::default()
        };
        let names: Vec<String> = axes
            .leading_of(6)
            .into_iter()
            .map(|axis| axis.name)
            .collect();
        assert_eq!(names, ["t", "n1", "c2"]);
        assert_eq!(axes.long_of(6).len(), 2);
        assert_eq!(axes.time_points(6), Some(3));
        assert!(axes.omero_of(6).is_some());
        // For example, after a prediction with a different number of channels.
        assert_eq!(axes.leading_of(4), [LeadingAxis::new(AxisKind::Channel, 4)]);
        assert_eq!((axes.time_points(4), axes.leading_of(1)), (None, vec![]));
        assert!(axes.omero_of(4).is_none());
    }
}
