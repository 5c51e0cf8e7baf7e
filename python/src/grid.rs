//! Grids: where the patches lie that cover a volume, and reading one of them.

use numpy::{PyArray1, PyArray2};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use voxpatch::inference::OutputPlace;
use voxpatch::training::Image;
use voxpatch::{GridOptions, GridPlacement, Region, Shape};

use crate::array;
use crate::errors::{invalid, raised};
use crate::subjects::padding_of;
use crate::volume::Volume;
use crate::wait::detached;

/// Patches of one size that cover a volume, numbered in the order that keeps the fewest voxels waiting.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
#[derive(Debug)]
pub(crate) struct Grid(pub(crate) voxpatch::Grid);

/// Where patches start along an axis, by its name; `even:Z,Y,X` says how many along each axis.
pub(crate) fn placement(name: &str) -> PyResult<GridPlacement> {
    name.parse().map_err(|error| raised(&error))
}

/// A location: first voxel along z, y, x, and one past the last.
pub(crate) fn location(region: Region) -> [i64; 6] {
    let (start, end) = (region.start, region.end());
    std::array::from_fn(|n| if n < 3 { start[n] } else { end[n - 3] })
}

#[pymethods]
impl Grid {
    #[new]
    #[pyo3(signature = (volume, patch, overlap, placement = "edge", margin = [0; 3], fit = false))]
    fn new(
        volume: Shape,
        patch: Shape,
        overlap: Shape,
        placement: &str,
        margin: Shape,
        fit: bool,
    ) -> PyResult<Self> {
        let options = GridOptions {
            placement: self::placement(placement)?,
            margin,
            fit,
        };
        let grid = voxpatch::Grid::with_options(volume, patch, overlap, &options);
        grid.map(Self).map_err(|error| raised(&error))
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.0.len()).unwrap_or(usize::MAX)
    }

    /// Return the grid of predictions that lack `halo` voxels at each face of a patch and have voxels of `scale` of the
    /// volume's.
    fn output(&self, halo: Shape, scale: u64) -> PyResult<Self> {
        let grid = self.0.output(halo, scale);
        grid.map(Self).map_err(|error| raised(&error))
    }

    /// Shape of the covered volume, z, y, x.
    #[getter]
    fn volume(&self) -> (u64, u64, u64) {
        self.0.volume().into()
    }

    /// Return the location of patch `index`, int64 (6,): first voxel along z, y, x, and one past the last.
    fn location<'py>(&self, py: Python<'py>, index: u64) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let region = self.region(index)?;
        Ok(PyArray1::from_slice(py, &location(region)))
    }

    /// Return the locations of all patches, int64 (N, 6).
    fn locations<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let rows: Vec<Vec<i64>> = self.0.iter().map(|r| location(r).to_vec()).collect();
        Ok(PyArray2::from_vec2(py, &rows)?)
    }

    /// Return the numbers of the patches at these locations.
    fn find(&self, locations: Vec<[i64; 6]>) -> PyResult<Vec<u64>> {
        locations.into_iter().map(|at| self.number(at)).collect()
    }
}

impl Grid {
    fn region(&self, index: u64) -> PyResult<Region> {
        self.0.get(index).ok_or_else(|| {
            PyIndexError::new_err(format!(
                "patch {index}: the grid has {}, counted from 0",
                self.0.len()
            ))
        })
    }

    /// The number of the patch at a location.
    fn number(&self, at: [i64; 6]) -> PyResult<u64> {
        let (axes, patch) = (self.0.axes(), self.0.patch());
        let place = |a: usize| {
            let long = u64::try_from(at[a + 3] - at[a]) == Ok(patch[a]);
            let found = axes[a].starts.binary_search(&at[a]).ok();
            found.filter(|_| long)
        };
        match (place(0), place(1), place(2)) {
            (Some(z), Some(y), Some(x)) => Ok(self.0.number([z, y, x])),
            _ => Err(invalid(format!(
                "no patch of the grid lies at {at:?}: give the sampler's locations, first voxel and one past the last along \
                 z, y, x"
            ))),
        }
    }
}

/// Return the halo and the scale of predictions of `channels` and `shape` for patches of `patch` voxels; those that are
/// not given follow from the shapes.
#[pyfunction]
#[pyo3(name = "_output_place")]
pub(crate) fn output_place(
    patch: Shape,
    channels: u64,
    shape: Shape,
    halo: Option<Shape>,
    scale: Option<u64>,
) -> PyResult<(Shape, u64)> {
    let place = OutputPlace { halo, scale };
    let found = place.find(patch, (channels, shape), None);
    found.map_err(|error| raised(&error))
}

/// Read the box at a location, (c, z, y, x), padded where it hangs over the volume.
#[pyfunction]
#[pyo3(name = "_read_box")]
pub(crate) fn read_box<'py>(
    py: Python<'py>,
    volume: &Volume,
    location: [i64; 6],
    padding: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut region = Region::whole([0; 3]);
    for axis in 0..3 {
        region.start[axis] = location[axis];
        region.shape[axis] = u64::try_from(location[axis + 3] - location[axis])
            .map_err(|_| invalid(format!("location {location:?} ends before it starts")))?;
    }
    let wanted = Image {
        padding: padding_of(padding)?,
        ..(*volume.image(py)?).clone()
    };
    let patch = detached(py, || wanted.read(region))?;
    array::from_patch(py, patch)
}
