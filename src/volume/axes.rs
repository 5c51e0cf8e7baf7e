//! What files say about their axes besides their lengths.

use serde_json::Value as Json;

/// The axes that are read as channels, and names and units that go with a volume from format to
/// format as far as the formats have them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axes {
    /// The axes in front of z, y and x, the slowest first; empty if nothing names them.
    pub leading: Vec<LeadingAxis>,
    /// The unit of length in the file, as OME-Zarr calls it, and the millimetres in one. The
    /// geometry is in millimetres whatever it is.
    pub unit: Option<(String, f64)>,
    /// The names of the channels.
    pub channel_names: Vec<String>,
    /// How OME-Zarr has the channels displayed: its `omero` document.
    pub omero: Option<Json>,
}

/// An axis in front of z, y and x.
#[derive(Clone, Debug, PartialEq)]
pub struct LeadingAxis {
    /// Its name, in small letters.
    pub name: String,
    /// What it counts.
    pub kind: AxisKind,
    /// How long it is.
    pub length: u64,
    /// The distance between neighbours in [`unit`](Self::unit).
    pub step: f64,
    /// The unit of that distance, as the file calls it.
    pub unit: Option<String>,
}

/// What an axis in front of z, y and x counts.
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
    /// An axis of this kind, with its usual name.
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
    /// The axes in front of z, y and x of a volume of so many channels: those that are named, if
    /// they have just as many places together, else one of channels unless there is only one.
    #[must_use]
    pub fn leading_of(&self, channels: u64) -> Vec<LeadingAxis> {
        let places = self
            .leading
            .iter()
            .try_fold(1_u64, |all, axis| all.checked_mul(axis.length));
        if !self.leading.is_empty() && places == Some(channels) {
            return self.leading.clone();
        }
        (channels > 1)
            .then(|| LeadingAxis::new(AxisKind::Channel, channels))
            .into_iter()
            .collect()
    }

    /// How many time points a volume of so many channels has, if time is the slowest axis.
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
