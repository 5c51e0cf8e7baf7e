//! The axes of a data set: their order, and the spacing.
//!
//! Axis tags (ilastik, vigra) and dimension labels name the axes. Without them, the axes are y, x or z, y, x or
//! c, z, y, x or t, c, z, y, x. `element_size_um` is the spacing z, y, x in micrometers.

use serde_json::Value as Json;

use super::structure::DataSet;
use crate::volume::{AxisKind, LeadingAxis};

/// The letters of the axes t, c, z, y, x, in this order.
const LETTERS: [&str; 5] = ["t", "c", "z", "y", "x"];

/// The places of the time and channel axes.
pub(super) const TIME: usize = 0;
pub(super) const CHANNEL: usize = 1;

/// Millimeters of a micrometer.
pub(super) const MICROMETER: f64 = 1e-3;

/// The places of the axes t, c, z, y, x in a data set.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AxisMap {
    /// The dimension of each axis; `None` if it has length 1.
    dims: [Option<usize>; 5],
    /// The spacing z, y, x in mm.
    pub(super) spacing: Option<[f64; 3]>,
}

impl AxisMap {
    /// Returns the axes of a data set.
    pub(super) fn of(set: &DataSet) -> Result<Self, String> {
        let rank = set.shape.len();
        let named = set.axis_tags.as_deref().and_then(tags);
        let named = named.or_else(|| labels(&set.labels));
        let letters: Vec<String> = match named.filter(|letters| letters.len() == rank) {
            Some(letters) => letters,
            None if (2..=5).contains(&rank) => LETTERS[5 - rank..]
                .iter()
                .map(ToString::to_string)
                .collect(),
            None => {
                return Err(format!(
                    "the data set has {rank} axes: y, x or z, y, x or c, z, y, x or t, c, z, y, x are read"
                ));
            }
        };
        let dims = LETTERS.map(|letter| letters.iter().position(|own| own == letter));
        let found = dims.iter().flatten().count();
        if found != rank || dims[3].is_none() || dims[4].is_none() {
            return Err(format!(
                "its axes are {}: each of t, c, z, y, x may be there once, and y and x must be",
                letters.join(", ")
            ));
        }
        let spacing = set
            .element_size
            .map(|lengths| lengths.map(|length| length * MICROMETER));
        Ok(Self { dims, spacing })
    }

    /// Returns lengths along t, c, z, y, x from those of the data set.
    pub(super) fn lengths(&self, shape: &[u64]) -> [u64; 5] {
        self.dims.map(|dim| dim.map_or(1, |dim| shape[dim]))
    }

    /// Returns the axis of a dimension.
    pub(super) fn axis(&self, dim: usize) -> Option<usize> {
        self.dims.iter().position(|&own| own == Some(dim))
    }

    /// Returns the distances in voxels between neighbors along t, c, z, y, x in a row-major box of the data set.
    pub(super) fn strides(&self, shape: &[u64]) -> [u64; 5] {
        self.dims.map(|dim| {
            dim.map_or(0, |dim| {
                shape[dim + 1..]
                    .iter()
                    .fold(1, |all: u64, &n| all.saturating_mul(n))
            })
        })
    }

    /// Returns the axes c, z, y, x (0 to 3) in storage order, fastest first; `None` if time points and channels are not
    /// next to each other.
    pub(super) fn memory_order(&self) -> Option<[usize; 4]> {
        let mut order = Vec::new();
        if let (Some(time), Some(channel)) = (self.dims[TIME], self.dims[CHANNEL])
            && time + 1 != channel
        {
            return None;
        }
        for dim in (0..5).rev() {
            if let Some(axis) = self.axis(dim) {
                order.push(axis.saturating_sub(1));
            }
        }
        order.dedup();
        for axis in (0..4).rev() {
            if !order.contains(&axis) {
                order.push(axis);
            }
        }
        order.try_into().ok()
    }

    /// Returns the number of time points, if channels are divided into them.
    pub(super) fn time_points(&self, shape: &[u64]) -> Option<u64> {
        Some(self.lengths(shape)[TIME]).filter(|&times| times > 1)
    }

    /// Returns the axes in front of z, y and x.
    pub(super) fn leading(&self, shape: &[u64]) -> Vec<LeadingAxis> {
        let lengths = self.lengths(shape);
        [(TIME, AxisKind::Time), (CHANNEL, AxisKind::Channel)]
            .into_iter()
            .filter(|&(axis, _)| lengths[axis] > 1)
            .map(|(axis, kind)| LeadingAxis::new(kind, lengths[axis]))
            .collect()
    }
}

/// Returns the letters of axis tags, which are JSON.
fn tags(text: &str) -> Option<Vec<String>> {
    let document: Json = serde_json::from_str(text).ok()?;
    let key = |axis: &Json| Some(axis.get("key")?.as_str()?.to_lowercase());
    document.get("axes")?.as_array()?.iter().map(key).collect()
}

/// Returns dimension labels if all of them name axes.
fn labels(labels: &[String]) -> Option<Vec<String>> {
    let lower: Vec<String> = labels.iter().map(|label| label.to_lowercase()).collect();
    let known = |label: &String| LETTERS.contains(&label.as_str());
    (!lower.is_empty() && lower.iter().all(known)).then_some(lower)
}
