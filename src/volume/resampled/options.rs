//! Options of resampling.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Orientation, Resampled, VoxelGrid};
use crate::error::{Error, Result};
use crate::pad::Padding;
use crate::volume::options::setters;
use crate::volume::{Layout, Volume};
use crate::words::Word;

/// How values between voxel centers are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interpolation {
    /// The nearest voxel; of two equally near ones, the one with the larger index.
    Nearest,
    /// Trilinear interpolation.
    #[default]
    Linear,
    /// Cubic B-spline interpolation through the voxels. It may overshoot near edges.
    Cubic,
    /// For labels: the label with the largest trilinear weight; of several, the smallest.
    LabelLinear,
}

impl fmt::Display for Interpolation {
    /// Writes the word that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nearest => "nearest",
            Self::Linear => "linear",
            Self::Cubic => "cubic",
            Self::LabelLinear => "label-linear",
        })
    }
}

impl FromStr for Interpolation {
    type Err = Error;

    /// Parses `nearest`, `linear`, `cubic` or `label-linear`.
    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Nearest, Self::Linear, Self::Cubic, Self::LabelLinear];
        let found = all
            .into_iter()
            .find(|known| known.to_string() == text.trim());
        let choices = "nearest, linear, cubic and label-linear";
        found.ok_or_else(|| Word::new("interpolation", text, choices).unknown())
    }
}

/// A grid to bring volumes to, and how. The default leaves a volume as it is.
///
/// The grid is that of [`like`](Self::like), or the volume's own; then the orientation is applied, then the spacing.
///
/// ```
/// use voxpatch::volume::{Interpolation, Resample};
/// use voxpatch::{Geometry, Layout, MemoryVolume, VolumeExt};
///
/// # fn main() -> voxpatch::Result<()> {
/// let scan = Layout::new([10, 20, 20], 1, voxpatch::DType::I16)
///     .with_geometry(Geometry::from_spacing([3.0, 0.75, 0.75]));
/// let scan = std::sync::Arc::new(MemoryVolume::zeros(scan)?);
/// let resample = Resample::default()
///     .with_spacing(Some([1.5; 3]))
///     .with_interpolation(Interpolation::Cubic);
/// assert_eq!(scan.resampled(&resample)?.layout().shape, [20, 10, 10]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Resample {
    /// Distance between voxel centers along z, y, x, in mm; see [`VoxelGrid::with_spacing`].
    pub spacing: Option<[f64; 3]>,
    /// Directions of the axes.
    pub orientation: Option<Orientation>,
    /// The grid of another volume.
    pub like: Option<VoxelGrid>,
    /// How values between voxel centers are computed.
    pub interpolation: Interpolation,
    /// Whether to smooth with a Gaussian along axes whose voxels become larger; only for linear and cubic
    /// interpolation. The default is `false`, as in `SimpleITK`, nnU-Net and TorchIO.
    pub antialias: bool,
    /// The values beyond the outer faces of the volume.
    pub outside: Padding,
}

impl Default for Resample {
    fn default() -> Self {
        Self {
            spacing: None,
            orientation: None,
            like: None,
            interpolation: Interpolation::default(),
            antialias: false,
            outside: Padding::Constant(0.0),
        }
    }
}

impl Resample {
    setters! {
        /// Sets the distance between voxel centers along z, y, x, in mm.
        with_spacing(spacing: Option<[f64; 3]>);
        /// Sets the directions of the axes.
        with_orientation(orientation: Option<Orientation>);
        /// Sets the grid of another volume.
        with_like(like: Option<VoxelGrid>);
        /// Sets how values between voxel centers are computed.
        with_interpolation(interpolation: Interpolation);
        /// Sets whether to smooth along axes whose voxels become larger.
        with_antialias(antialias: bool);
        /// Sets the values beyond the outer faces.
        with_outside(outside: Padding);
    }

    /// Returns `true` if no grid is set, so that volumes stay as they are.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.spacing.is_none() && self.orientation.is_none() && self.like.is_none()
    }

    /// Returns the grid that a volume is brought to.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the volume or [`like`](Self::like) has no geometry, or a spacing is not a positive
    /// number.
    pub fn grid(&self, layout: &Layout) -> Result<VoxelGrid> {
        if self.is_none() {
            return Ok(VoxelGrid::of(layout));
        }
        let argument = if self.like.is_some() {
            "grid"
        } else if self.spacing.is_some() {
            "spacing"
        } else {
            "orientation"
        };
        let unknown = |problem: String| Error::InvalidArgument {
            argument,
            value: self.to_string(),
            problem,
        };
        if !layout.geometry.is_known {
            let path = layout.path.display();
            return Err(unknown(format!(
                "{path} does not state the spacing and position of its voxels: convert it to a format that does"
            )));
        }
        let mut grid = VoxelGrid::of(layout);
        if let Some(like) = self.like {
            if !like.geometry.is_known {
                return Err(unknown(
                    "the volume with this grid does not state the spacing and position of its voxels".to_owned(),
                ));
            }
            grid = like;
        }
        if let Some(orientation) = self.orientation {
            grid = grid.with_orientation(orientation);
        }
        match self.spacing {
            Some(spacing) => grid.with_spacing(spacing),
            None => Ok(grid),
        }
    }

    /// Returns `volume` on the grid, or the volume itself if no grid is set or it is already on it.
    ///
    /// # Errors
    ///
    /// As [`grid`](Self::grid) and [`Resampled::new`].
    pub fn of(&self, volume: Arc<dyn Volume>) -> Result<Arc<dyn Volume>> {
        if self.is_none() {
            return Ok(volume);
        }
        let grid = self.grid(volume.layout())?;
        if grid == VoxelGrid::of(volume.layout()) {
            return Ok(volume);
        }
        Ok(Resampled::uncached(volume, grid, self)?.simplified())
    }
}

/// Writes the grid for messages, such as `1.5 x 1.5 x 1.5 mm, RAS`.
impl fmt::Display for Resample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(like) = self.like {
            parts.push(format!("{:?}", like.shape));
        }
        if let Some([z, y, x]) = self.spacing {
            parts.push(format!("{z} x {y} x {x} mm"));
        }
        if let Some(orientation) = self.orientation {
            parts.push(orientation.to_string());
        }
        f.pad(&parts.join(", "))
    }
}
