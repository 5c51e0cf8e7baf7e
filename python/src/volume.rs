//! Volumes: opening, facts, and numpy-style reads.

#![expect(
    clippy::doc_markdown,
    reason = "the docstrings of Python are in numpydoc form"
)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use numpy::PyArray2;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use voxpatch::normalize::{NormalizeSetting, Normalized};
use voxpatch::store::{is_remote, shown};
use voxpatch::training::Image;
use voxpatch::volume::{
    self, Interpolation, Layout, Matching, RealValues, Resample, Subset, VoxelGrid,
};
use voxpatch::{
    DType, Geometry, MemoryVolume, OpenOptions, Padding, Patch, Region, Shape, StorageOptions,
    Volume as _, VolumeExt as _,
};

use crate::arguments::{Opening, Resampling, Values};
use crate::errors::raised;
use crate::index::Selection;
use crate::subjects::padding_of;
use crate::wait::{detached, interruptible};
use crate::{arguments, array};

/// Reads of more bytes than this run on a thread of their own, for Ctrl-C.
const LONG: u64 = 32 << 20;

/// How a volume is opened: what is pickled of it, and what a forked process opens again.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) place: Place,
    /// The grid that it is brought to, before all else.
    pub(crate) resample: Resample,
    /// The box, z, y, x, if not all.
    pub(crate) region: Option<Corners>,
    /// The grid that it is brought to, if another.
    pub(crate) onto: Option<Arc<Onto>>,
    pub(crate) channels: Option<(u64, u64)>,
    pub(crate) values: Values,
    /// The numbers of its normalization, and the channel of the first one; before it is brought to another grid.
    pub(crate) normalized: Option<(String, u64)>,
}

/// First voxel and one past the last along z, y, x.
type Corners = [(u64, u64); 3];

/// The grid of another volume, and how it is matched.
#[derive(Clone, Debug)]
pub(crate) struct Onto {
    layout: Layout,
    matching: Matching,
    /// How it is resampled, if it need not cover the same.
    resampled: Option<(Option<Interpolation>, Padding)>,
}

impl Onto {
    fn bring(
        &self,
        volume: Arc<dyn voxpatch::Volume>,
    ) -> voxpatch::Result<Arc<dyn voxpatch::Volume>> {
        match self.resampled {
            None => self.matching.on_grid_of(&self.layout, volume),
            Some((interpolation, outside)) => {
                self.matching
                    .resampled_to(&self.layout, volume, interpolation, outside)
            }
        }
    }
}

/// How a volume is resampled to the grid of another one, as Python has it: interpolation and `outside`; `None` if it
/// must cover the same.
type Resampled<'py> = Option<(Option<String>, Bound<'py, PyAny>)>;

/// Where voxels are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Path {
        path: PathBuf,
        options: Box<OpenOptions>,
    },
    Memory(Arc<dyn voxpatch::Volume>),
}

impl Place {
    /// The path, for messages.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Path { path, .. } => shown(path).display().to_string(),
            Self::Memory(volume) => volume.layout().path.display().to_string(),
        }
    }

    /// A path, opened in the usual way.
    pub(crate) fn at(path: PathBuf) -> Self {
        let options = Box::default();
        Self::Path { path, options }
    }
}

impl Source {
    /// The real values of all that is at a path.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self::of(Place::at(path))
    }

    /// The same, in an object store.
    pub(crate) fn in_store(path: PathBuf, store: StorageOptions) -> Self {
        let options = Box::new(OpenOptions::default().with_storage_options(store));
        Self::of(Place::Path { path, options })
    }

    /// All of a place, as it is stored.
    fn of(place: Place) -> Self {
        Self {
            place,
            resample: Resample::default(),
            region: None,
            onto: None,
            channels: None,
            values: Values::Real,
            normalized: None,
        }
    }

    /// Opens it; the image has no name.
    pub(crate) fn open(&self) -> voxpatch::Result<Image> {
        let volume: Arc<dyn voxpatch::Volume> = match &self.place {
            Place::Memory(volume) => Arc::clone(volume),
            Place::Path { path, options } => {
                let wanted = match self.values {
                    Values::Stored => volume::Values::Stored,
                    Values::Real | Values::As(_) => volume::Values::Unconverted,
                };
                let stored = (**options).clone().with_values(wanted).open(path)?;
                match self.values {
                    Values::Stored => stored,
                    Values::Real => RealValues::of(stored),
                    Values::As(dtype) => RealValues::with_dtype(stored, dtype),
                }
            }
        };
        let volume = self.resample.of(volume)?;
        let choice = Subset {
            region: self.region.map(|axes| axes.map(|(a, b)| (a..b).into())),
            ..Subset::default()
        };
        let volume = choice.cropped(volume)?;
        let volume = match &self.normalized {
            Some((measured, first)) => Normalized::by(volume, measured, *first)?,
            None => volume,
        };
        let volume = match &self.onto {
            Some(onto) => onto.bring(volume)?,
            None => volume,
        };
        let mut image = Image::new("", volume);
        if let Values::As(dtype) = self.values {
            image = image.with_dtype(dtype);
        }
        Ok(match self.channels {
            Some((start, end)) => image.with_channels(start..end),
            None => image,
        })
    }
}

/// A volume that stays where it is, with axes c, z, y, x.
///
/// An index along c, z, y, x, as of a numpy array, reads only the chunks that it touches, and gives an array that owns its
/// memory. A volume is pickled by how it was opened; one in memory takes its voxels along.
///
/// See Also
/// --------
/// open : Open a volume.
/// write : Write an array as a volume.
///
/// Examples
/// --------
/// >>> import numpy as np, voxpatch
/// >>> volume = voxpatch.Volume.from_array(np.arange(24, dtype=np.int16).reshape(2, 3, 4), spacing=(5, 1, 1))
/// >>> volume.shape, volume.spacing
/// ((1, 2, 3, 4), (5.0, 1.0, 1.0))
/// >>> volume[0, 1, :, 2:]
/// array([[14, 15],
///        [18, 19],
///        [22, 23]], dtype=int16)
#[pyclass(frozen, module = "voxpatch")]
#[derive(Debug)]
pub(crate) struct Volume {
    source: Source,
    layout: Layout,
    time_points: Option<u64>,
    /// The process that opened it, and what it opened.
    opened: Mutex<(u32, Arc<Image>)>,
}

impl Volume {
    pub(crate) fn new(source: Source, image: Image) -> Self {
        let chosen = Subset {
            channels: Some(image.channels.clone().into()),
            ..Subset::default()
        };
        let chosen = chosen.of(Arc::clone(&image.volume));
        Self {
            source,
            layout: image.volume.layout().clone(),
            time_points: chosen.ok().and_then(|chosen| chosen.time_points()),
            opened: Mutex::new((process::id(), Arc::new(image))),
        }
    }

    /// Opens what takes no time to open.
    pub(crate) fn of(source: Source) -> PyResult<Self> {
        let image = source.open().map_err(|error| raised(&error))?;
        Ok(Self::new(source, image))
    }

    /// Returns its grid.
    pub(crate) const fn grid(&self) -> VoxelGrid {
        VoxelGrid::of(&self.layout)
    }

    /// The grid that it had before it was resampled; `None` if it was not.
    pub(crate) fn grid_of_source(&self) -> voxpatch::Result<Option<VoxelGrid>> {
        if self.source.resample.is_none() {
            return Ok(None);
        }
        let own = Source {
            resample: Resample::default(),
            region: None,
            onto: None,
            ..self.source.clone()
        };
        Ok(Some(VoxelGrid::of(own.open()?.volume.layout())))
    }

    /// Whether it is a box of what was opened, or was brought to the grid of another volume.
    pub(crate) const fn is_part(&self) -> bool {
        self.source.region.is_some() || self.source.onto.is_some()
    }

    /// How it is opened.
    pub(crate) const fn source(&self) -> &Source {
        &self.source
    }

    /// Returns the open volume. A forked process opens it again, because inherited locks may be held forever by threads
    /// that it does not have.
    ///
    /// The lock is taken with the interpreter's only, so that it is free wherever Python forks.
    pub(crate) fn image(&self, _py: Python<'_>) -> PyResult<Arc<Image>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.0 != process::id() {
            let anew = Arc::new(self.source.open().map_err(|error| raised(&error))?);
            let (_, inherited) = std::mem::replace(&mut *opened, (process::id(), anew));
            std::mem::forget(inherited);
        }
        Ok(Arc::clone(&opened.1))
    }

    /// The type of the values that slices give.
    fn own_dtype(&self) -> voxpatch::DType {
        match self.source.values {
            Values::As(dtype) => dtype,
            Values::Real | Values::Stored => self.layout.dtype,
        }
    }

    /// Channels, and voxels along z, y, x.
    fn axes(&self) -> [u64; 4] {
        let [z, y, x] = self.layout.shape;
        let (start, end) = self.source.channels.unwrap_or((0, self.layout.channels));
        [end - start, z, y, x]
    }
}

/// A part of a volume: channels, time points and a box (z, y, x), each as the user gave it.
type Part<'py> = (
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
);

/// Open a part of the volume at a path, for `voxpatch.open`.
#[pyfunction]
#[pyo3(name = "_open", signature = (path, options, part, values, resample, normalize))]
#[expect(clippy::needless_pass_by_value, reason = "made for this call")]
pub(crate) fn open(
    py: Python<'_>,
    path: PathBuf,
    options: Opening,
    part: Part<'_>,
    values: Option<&Bound<'_, PyAny>>,
    resample: Resampling<'_>,
    normalize: &str,
) -> PyResult<Volume> {
    let (channels, time, region) = part;
    let options = Box::new(arguments::open_options(&options)?);
    let mut source = Source {
        values: values.map_or(Ok(Values::Real), arguments::values)?,
        resample: arguments::resample(&resample)?,
        ..Source::of(Place::Path { path, options })
    };
    let wanted = source.clone();
    let mut image = interruptible(py, move |_| wanted.open())?;
    if let Some(given) = &region {
        let region = arguments::box_of(given, image.volume.layout().shape)?;
        source.region = Some(region.clone().map(|axis| (axis.start, axis.end)));
        let choice = Subset {
            region: Some(region.map(Into::into)),
            ..Subset::default()
        };
        image.volume = choice
            .cropped(image.volume)
            .map_err(|error| raised(&error))?;
    }
    if let Some(given) = &time {
        let volume = &image.volume;
        // Without any, what is asked for makes no difference to the error.
        let times = match volume.time_points() {
            Some(points) => arguments::some_of("time", given, points)?,
            None => 0..0,
        };
        let range = volume.channels_at(times).map_err(|error| raised(&error))?;
        image = image.with_channels(range);
    }
    if let Some(given) = &channels {
        let all = image.channels.clone();
        let range = arguments::some_of("channels", given, all.end - all.start)?;
        image = image.with_channels(all.start + range.start..all.start + range.end);
    }
    if channels.is_some() || time.is_some() {
        source.channels = Some((image.channels.start, image.channels.end));
    }
    let normalize: NormalizeSetting = normalize.parse().map_err(|error| raised(&error))?;
    let normalizer = normalize.normalizer();
    if normalizer.is_none() {
        return Ok(Volume::new(source, image));
    }
    let (volume, channels) = (Arc::clone(&image.volume), image.channels.clone());
    let measured = interruptible(py, move |stop| {
        let kept = Subset {
            channels: Some(channels.into()),
            ..Subset::default()
        };
        let progress = |_, _| {
            if stop.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        Normalized::measured(
            &kept.of(volume)?,
            &normalizer,
            voxpatch::threads(),
            &progress,
        )
    })?;
    if let Some(measured) = measured {
        let first = image.channels.start;
        image.volume = Normalized::by(image.volume, &measured, first).map_err(|e| raised(&e))?;
        source.normalized = Some((measured, first));
    }
    Ok(Volume::new(source, image))
}

/// Open a volume that was pickled.
#[pyfunction]
#[pyo3(name = "_reopen", signature = (place, affine, options, region, channels, values, resample, normalized))]
#[expect(clippy::too_many_arguments, reason = "all that is pickled")]
#[expect(clippy::needless_pass_by_value, reason = "made for this call")]
pub(crate) fn reopen(
    py: Python<'_>,
    place: &Bound<'_, PyAny>,
    affine: Option<[[f64; 4]; 4]>,
    options: Opening,
    region: Option<Corners>,
    channels: Option<(u64, u64)>,
    values: &Bound<'_, PyAny>,
    resample: Resampling<'_>,
    normalized: Option<(String, u64)>,
) -> PyResult<Volume> {
    let place = match place.extract::<PathBuf>() {
        Ok(path) => Place::Path {
            path,
            options: Box::new(arguments::open_options(&options)?),
        },
        Err(_) => Volume::from_array(place, None, affine)?.source.place,
    };
    let source = Source {
        region,
        channels,
        values: arguments::values(values)?,
        resample: arguments::resample(&resample)?,
        normalized,
        ..Source::of(place)
    };
    let wanted = source.clone();
    let image = interruptible(py, move |_| wanted.open())?;
    Ok(Volume::new(source, image))
}

impl Volume {
    /// Brings it to the grid of another volume: tolerance, `same_grid`, and how it is resampled.
    fn brought_to(
        &self,
        py: Python<'_>,
        reference: &Self,
        (tolerance, same_grid, resampled): (f64, bool, Resampled<'_>),
    ) -> PyResult<Self> {
        let resampled = resampled.map(|(how, outside)| {
            let how = how.map(|how| how.parse()).transpose();
            let outside = padding_of(&outside)?;
            Ok::<_, PyErr>((how.map_err(|error| raised(&error))?, outside))
        });
        let onto = Onto {
            layout: reference.layout.clone(),
            matching: Matching {
                tolerance,
                same_grid,
            },
            resampled: resampled.transpose()?,
        };
        let source = Source {
            onto: Some(Arc::new(onto)),
            ..self.source.clone()
        };
        let wanted = source.clone();
        let image = interruptible(py, move |_| wanted.open())?;
        Ok(Self::new(source, image))
    }

    /// How to bring it to the grid of another volume again.
    fn reduced_onto<'py>(&self, py: Python<'py>, onto: &Onto) -> PyResult<Bound<'py, PyAny>> {
        let source = Source {
            onto: None,
            ..self.source.clone()
        };
        let before = Bound::new(py, Self::of(source)?)?;
        let grid = &onto.layout;
        let affine = grid.geometry.is_known.then_some(grid.geometry.affine);
        let Matching {
            tolerance,
            same_grid,
        } = onto.matching;
        let rebuild = py.import("voxpatch._voxpatch")?.getattr("_on_grid")?;
        let path = given(py, &grid.path)?;
        let resampled = match onto.resampled {
            Some((interpolation, outside)) => {
                let interpolation = interpolation.map(|how| how.to_string());
                Some((interpolation, arguments::padding(py, outside)?))
            }
            None => None,
        };
        let matching = (tolerance, same_grid, resampled);
        let arguments = (before, path, grid.shape, affine, matching);
        Ok((rebuild, arguments).into_pyobject(py)?.into_any())
    }
}

/// Returns a path for Python: an address is a string, since a `pathlib.Path` merges its slashes.
fn given<'py>(py: Python<'py>, path: &Path) -> PyResult<Bound<'py, PyAny>> {
    if is_remote(path) {
        return Ok(path.to_string_lossy().into_pyobject(py)?.into_any());
    }
    Ok(path.into_pyobject(py)?.into_any())
}

/// Open a volume that was pickled on another's grid.
#[pyfunction]
#[pyo3(name = "_on_grid", signature = (volume, path, shape, affine, matching))]
pub(crate) fn on_grid<'py>(
    py: Python<'py>,
    volume: &Volume,
    path: PathBuf,
    shape: Shape,
    affine: Option<[[f64; 4]; 4]>,
    matching: (f64, bool, Resampled<'py>),
) -> PyResult<Volume> {
    let geometry = affine.map(Geometry::from_affine).unwrap_or_default();
    let layout = Layout {
        path,
        ..Layout::new(shape, 1, DType::U8).with_geometry(geometry)
    };
    let reference = Volume {
        source: volume.source.clone(),
        layout,
        time_points: None,
        opened: Mutex::new((process::id(), volume.image(py)?)),
    };
    volume.brought_to(py, &reference, matching)
}

#[pymethods]
impl Volume {
    /// Make a volume in memory of an array, which is copied.
    ///
    /// Parameters
    /// ----------
    /// array : array_like
    ///     Values with axes z, y, x or c, z, y, x.
    /// spacing : sequence of three floats, optional
    ///     Distance between voxel centers along z, y, x, in mm.
    /// affine : array_like, optional
    ///     Matrix (4, 4) that takes voxel indices (x, y, z, 1) to mm in RAS+. It replaces `spacing`.
    ///
    /// Returns
    /// -------
    /// Volume
    ///     The volume.
    ///
    /// Examples
    /// --------
    /// >>> import numpy as np, voxpatch
    /// >>> voxpatch.Volume.from_array(np.zeros((2, 8, 8, 8), np.float32)).shape
    /// (2, 8, 8, 8)
    #[staticmethod]
    #[pyo3(signature = (array, *, spacing = None, affine = None))]
    pub(crate) fn from_array(
        array: &Bound<'_, PyAny>,
        spacing: Option<[f64; 3]>,
        affine: Option<[[f64; 4]; 4]>,
    ) -> PyResult<Self> {
        let (channels, shape, voxels) = array::to_voxels(array)?;
        let geometry = match (affine, spacing) {
            (Some(affine), _) => voxpatch::Geometry::from_affine(affine),
            (None, Some(spacing)) => voxpatch::Geometry::from_spacing(spacing),
            (None, None) => voxpatch::Geometry::default(),
        };
        let patch = Patch::new(Region::whole(shape), channels, voxels).map_err(|e| raised(&e))?;
        let layout = Layout::new(shape, channels, patch.dtype()).with_geometry(geometry);
        let volume = MemoryVolume::from_patch(layout, patch).map_err(|e| raised(&e))?;
        Self::of(Source::of(Place::Memory(Arc::new(volume))))
    }

    /// Number of channels, and of voxels along z, y, x.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.axes())
    }

    /// Number of axes: four.
    #[getter]
    fn ndim(&self) -> usize {
        self.axes().len()
    }

    /// Number of time points, whose channels follow one after the other, or None without an axis of time.
    #[getter]
    fn time_points(&self) -> Option<u64> {
        self.time_points
    }

    /// Number of values.
    #[getter]
    fn size(&self) -> u64 {
        self.axes().iter().product()
    }

    /// Type of the values that slices give.
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        array::descriptor(py, self.own_dtype())
    }

    /// Distance between voxel centers along z, y, x, in mm.
    #[getter]
    fn spacing(&self) -> (f64, f64, f64) {
        self.layout.geometry.spacing.into()
    }

    /// Matrix (4, 4) that takes voxel indices (x, y, z, 1) to mm in RAS+, as nibabel's do.
    #[getter]
    fn affine<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let rows = self.layout.geometry.affine.map(|row| row.to_vec());
        Ok(PyArray2::from_vec2(py, &rows)?)
    }

    /// Shape (c, z, y, x) of the unit that is read and decoded at once, or None if any box is read alone.
    #[getter]
    fn chunks(&self) -> Option<(u64, u64, u64, u64)> {
        self.layout.read_chunk.map(Into::into)
    }

    /// Shape (c, z, y, x) of the files of a sharded Zarr, which hold several chunks; that of the chunks otherwise.
    #[getter]
    fn shards(&self) -> Option<(u64, u64, u64, u64)> {
        let shard = self.layout.write_chunk.or(self.layout.read_chunk);
        shard.map(Into::into)
    }

    /// Slope and intercept that make stored values real ones, or None without them.
    #[getter]
    fn rescale(&self) -> Option<(f64, f64)> {
        let applied = self.layout.applied.map(|applied| applied.rescale);
        applied
            .or(self.layout.rescale)
            .map(|rescale| (rescale.slope, rescale.intercept))
    }

    /// Values that slices give: "real", "stored", or the name of the type that real ones are cast to.
    #[getter]
    fn values(&self) -> &'static str {
        arguments::values_name(self.source.values)
    }

    /// Name of the file format.
    #[getter]
    fn format(&self) -> String {
        self.layout.format.to_string()
    }

    /// Channels that were chosen, values, and the grid if it is another: what a saved state compares.
    #[getter(_selection)]
    fn selection<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let values = arguments::values_name(self.source.values);
        let resample = &self.source.resample;
        let grid = (!resample.is_none()).then(|| format!("{resample:?}"));
        match &self.source.normalized {
            None => (self.source.channels, values, grid).into_pyobject(py),
            Some(normalized) => {
                (self.source.channels, values, grid, normalized.clone()).into_pyobject(py)
            }
        }
    }

    /// Path of the file or folder, the address in a store as a string, or None for a volume in memory.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match &self.source.place {
            Place::Path { path, .. } => given(py, &shown(path)).map(Some),
            Place::Memory(_) => Ok(None),
        }
    }

    /// Read the box that an index asks for, and nothing else.
    ///
    /// Parameters
    /// ----------
    /// key : int, slice, Ellipsis or tuple of them
    ///     Index along c, z, y, x, as of a numpy array; slices may have steps.
    ///
    /// Returns
    /// -------
    /// numpy.ndarray
    ///     The values, in an array that owns its memory.
    ///
    /// Raises
    /// ------
    /// IndexError
    ///     If an index lies outside the volume.
    fn __getitem__<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let selection = Selection::new(key, self.axes())?;
        let image = self.image(py)?;
        let first = self.source.channels.map_or(0, |(start, _)| start);
        let channels = first + selection.channels.start..first + selection.channels.end;
        let region = selection.region;
        let wanted = Image {
            channels,
            padding: Padding::Constant(0.0),
            ..(*image).clone()
        };
        let size = wanted.volume.layout().dtype.size() as u64;
        let bytes = region.voxels() * (wanted.channels.end - wanted.channels.start) * size;
        let is_long = bytes > LONG || wanted.volume.is_sequential();
        let patch = if is_long {
            interruptible(py, move |_| wanted.read(region))?
        } else {
            detached(py, || wanted.read(region))?
        };
        selection.of(array::from_patch(py, patch)?)
    }

    /// Read the whole volume into memory.
    ///
    /// Parameters
    /// ----------
    /// dtype : dtype, optional
    ///     Type of the array; that of the volume if not given.
    /// copy : bool, optional
    ///     False is an error, since a volume is not an array.
    ///
    /// Returns
    /// -------
    /// numpy.ndarray
    ///     The values (c, z, y, x).
    #[pyo3(signature = (dtype = None, copy = None))]
    fn __array__<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<&Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if copy == Some(false) {
            return Err(crate::errors::invalid(
                "a volume on disk is no array: allow a copy, or read a box of it",
            ));
        }
        let py = slf.py();
        let all = slf.get().__getitem__(py, &py.Ellipsis().into_bound(py))?;
        match dtype {
            Some(dtype) => {
                let options = PyDict::new(py);
                options.set_item("copy", false)?;
                all.call_method("astype", (dtype,), Some(&options))
            }
            None => Ok(all),
        }
    }

    /// Return the same volume with other values. Nothing is read.
    ///
    /// Parameters
    /// ----------
    /// values : {"real", "stored"} or dtype
    ///     "real" applies slope and intercept, "stored" gives the numbers in the file, and a type casts real values to it.
    ///
    /// Returns
    /// -------
    /// Volume
    ///     The volume, whose slices give these values.
    ///
    /// Examples
    /// --------
    /// >>> import numpy as np, voxpatch
    /// >>> voxpatch.Volume.from_array(np.zeros((8, 8, 8), np.int16)).astype("float32").dtype
    /// dtype('float32')
    fn astype(&self, py: Python<'_>, values: &Bound<'_, PyAny>) -> PyResult<Self> {
        let source = Source {
            values: arguments::values(values)?,
            ..self.source.clone()
        };
        let image = if self.rescale().is_some() {
            let wanted = source.clone();
            interruptible(py, move |_| wanted.open())?
        } else {
            let cast = match source.values {
                Values::As(dtype) => Some(dtype),
                Values::Real | Values::Stored => None,
            };
            Image {
                cast,
                ..(*self.image(py)?).clone()
            }
        };
        Ok(Self::new(source, image))
    }

    /// Return the same voxels on the grid of another volume that covers the same part of the world.
    ///
    /// Flipped and permuted axes are turned, and larger voxels spread, all when it is read. With `resample`, values
    /// between voxels are computed.
    ///
    /// Parameters
    /// ----------
    /// reference : Volume
    ///     The volume with the grid.
    /// tolerance : float, default 0.1
    ///     How far, in voxels, the corners of the two volumes may lie apart.
    /// same_grid : bool, default False
    ///     Match by shape a volume that does not say where it lies, such as a ``.npy`` file or an array.
    /// resample : bool, default False
    ///     Resample a volume of any spacing, directions and extent. Otherwise it must cover the same.
    /// interpolation : {"nearest", "linear", "cubic", "label-linear"}, optional
    ///     How values between voxels are computed, as in :func:`open`, with `resample`; "linear" for floats. Integers may
    ///     be labels, so it must be given for them.
    /// outside : float or {"edge", "reflect", "wrap"}, optional
    ///     Values beyond the faces of the volume, with `resample`; 0 if not given.
    ///
    /// Returns
    /// -------
    /// Volume
    ///     The volume on the other grid.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If the two volumes do not cover the same, without `resample`.
    ///
    /// Examples
    /// --------
    /// >>> import numpy as np, voxpatch
    /// >>> scan = voxpatch.Volume.from_array(np.zeros((8, 8, 8)), affine=np.diag([1, 1, 1, 1]))
    /// >>> flipped = voxpatch.Volume.from_array(np.zeros((8, 8, 8)), affine=[[-1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    /// >>> np.array_equal(flipped.on_grid_of(scan).affine, scan.affine)
    /// True
    #[pyo3(signature = (reference, *, tolerance = 0.1, same_grid = false, resample = false, interpolation = None, outside = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of Python")]
    fn on_grid_of(
        &self,
        py: Python<'_>,
        reference: &Self,
        tolerance: f64,
        same_grid: bool,
        resample: bool,
        interpolation: Option<String>,
        outside: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let outside = match outside {
            Some(outside) => outside,
            None => 0.0_f64.into_pyobject(py)?.into_any(),
        };
        let resampled = resample.then_some((interpolation, outside));
        self.brought_to(py, reference, (tolerance, same_grid, resampled))
    }

    /// Return how to open it again; a volume in memory takes its voxels along.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        if let Some(onto) = &this.source.onto {
            return this.reduced_onto(py, onto);
        }
        let mut affine = None;
        let (place, options) = match &this.source.place {
            Place::Path { path, options } => (given(py, path)?, arguments::opening(options)),
            Place::Memory(volume) => {
                let geometry = volume.layout().geometry;
                affine = geometry.is_known.then_some(geometry.affine);
                let all = Image::new("", Arc::clone(volume));
                let patch = detached(py, || all.read(Region::whole(all.volume.layout().shape)))?;
                let array = array::from_patch(py, patch)?;
                (array, arguments::opening(&OpenOptions::default()))
            }
        };
        let rebuild = py.import("voxpatch._voxpatch")?.getattr("_reopen")?;
        let values = arguments::values_name(this.source.values);
        let (region, channels) = (this.source.region, this.source.channels);
        let resample = arguments::resampling(py, &this.source.resample)?;
        let normalized = this.source.normalized.clone();
        let arguments = (
            place, affine, options, region, channels, values, resample, normalized,
        );
        Ok((rebuild, arguments).into_pyobject(py)?.into_any())
    }

    /// Return a dask array of blocks that are read when they are computed.
    ///
    /// Parameters
    /// ----------
    /// chunks : int or (int, int, int, int), optional
    ///     Shape (c, z, y, x) of the blocks. If not given, they are whole shards or chunks, as many as fit into 64 MiB.
    ///
    /// Returns
    /// -------
    /// dask.array.Array
    ///     The values (c, z, y, x). Its name changes with the files and with nothing else, so that results can be cached.
    #[pyo3(signature = (chunks=None))]
    fn to_dask<'py>(
        slf: &Bound<'py, Self>,
        chunks: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.py()
            .import("voxpatch.arrays")?
            .call_method1("to_dask", (slf, chunks))
    }

    /// Return what dask names the volume by.
    fn __dask_tokenize__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let image = slf.get().image(py)?;
        let fingerprint = detached(py, || voxpatch::volume::fingerprint(&*image.volume))?;
        let channels = (image.channels.start, image.channels.end);
        let values = slf.get().values();
        let token = ("voxpatch", fingerprint, channels, values);
        Ok(token.into_pyobject(py)?.into_any())
    }

    /// Return facts and the three middle slices, for notebooks.
    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py()
            .import("voxpatch.html")?
            .call_method1("of_volume", (slf,))
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.axes()[0]).unwrap_or(usize::MAX)
    }

    fn __repr__(&self) -> String {
        let [c, z, y, x] = self.axes();
        let layout = &self.layout;
        let [sz, sy, sx] = layout.geometry.spacing;
        let chunks = match layout.read_chunk {
            Some([c, z, y, x]) => format!(", chunks ({c}, {z}, {y}, {x})"),
            None => String::new(),
        };
        format!(
            "<voxpatch.Volume {:?} ({}): ({c}, {z}, {y}, {x}) {}{chunks}, spacing ({sz}, {sy}, {sx}) mm>",
            layout.path.display().to_string(),
            layout.format,
            self.own_dtype()
        )
    }
}
