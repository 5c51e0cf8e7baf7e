//! Writing volumes, and turning one format into another.

use std::ffi::CString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyTypeError, PyUserWarning};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use voxpatch::inference::StoreOption;
use voxpatch::meter::anonymous_bytes;
use voxpatch::training::Image;
use voxpatch::volume::{
    ChannelRange, Codec, CreateOptions, Downsample, Pyramid, ZarrVersion, check_output, create,
    disk_space, output_layout,
};
use voxpatch::{ConvertOptions, ConvertStats, DType, Layout, Result, Volume as _};

use crate::errors::{invalid, raised};
use crate::volume::{Source, Volume};
use crate::wait::interruptible;
use crate::{arguments, array};

/// Write an array, (z, y, x) or (c, z, y, x), as a volume, and open it.
#[pyfunction]
#[pyo3(name = "_write", signature = (path, array, spacing, affine, options))]
pub(crate) fn write(
    py: Python<'_>,
    path: PathBuf,
    array: &Bound<'_, PyAny>,
    spacing: Option<[f64; 3]>,
    affine: Option<[[f64; 4]; 4]>,
    options: &Bound<'_, PyDict>,
) -> PyResult<Volume> {
    let image = match array.cast::<Volume>() {
        Ok(volume) => volume.get().image(py)?,
        Err(_) => Volume::from_array(array, spacing, affine)?.image(py)?,
    };
    stored(py, image, path, options)
}

/// Copy a volume into another format, voxel type or chunking, box by box, and open the copy; with `dry_run` write nothing,
/// and return what the copy would need as a dictionary.
#[pyfunction]
#[pyo3(name = "_convert", signature = (source, path, dry_run, options))]
pub(crate) fn convert<'py>(
    py: Python<'py>,
    source: &Bound<'py, PyAny>,
    path: PathBuf,
    dry_run: bool,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    let image = if let Ok(volume) = source.cast::<Volume>() {
        volume.get().image(py)?
    } else {
        let store = Storage::new(options)?.create.storage_options;
        let source = Source::in_store(source.extract::<PathBuf>()?, store);
        Arc::new(interruptible(py, move |_| source.open())?)
    };
    if dry_run {
        return Ok(planned(py, &image, &path, options)?.into_any());
    }
    let written = stored(py, image, path, options)?;
    Ok(Bound::new(py, written)?.into_any())
}

/// What a conversion would take.
fn planned<'py>(
    py: Python<'py>,
    image: &Image,
    path: &Path,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyDict>> {
    let storage = Storage::new(options)?;
    let found = || -> Result<_> {
        let volume = chosen(image)?;
        let (layout, choice) = storage.layout(&volume, image.dtype(), path)?;
        let space = disk_space(&[(&layout, &choice)], false)?;
        let plan = storage.convert.plan(&volume, &layout, &choice);
        Ok((plan, layout.decoded_bytes()?, space))
    };
    let (plan, bytes, space) = found().map_err(|error| raised(&error))?;
    let told = PyDict::new(py);
    told.set_item("threads", plan.threads)?;
    told.set_item("reads_once", plan.reads_once())?;
    told.set_item("cache_bytes", plan.cache_bytes)?;
    told.set_item("peak_bytes", plan.peak_bytes)?;
    let process = anonymous_bytes().map(|now| now.saturating_add(plan.peak_bytes));
    told.set_item("process_bytes", process)?;
    told.set_item("output_bytes", bytes)?;
    let free = space.first().and_then(|space| space.free_bytes);
    told.set_item("free_bytes", free)?;
    Ok(told)
}

/// The channels of an image as a volume.
pub(crate) fn chosen(image: &Image) -> Result<ChannelRange> {
    ChannelRange::new(Arc::clone(&image.volume), image.channels.clone())
}

/// How an output is stored, as Python says it.
pub(crate) struct Storage {
    pub(crate) create: CreateOptions,
    convert: ConvertOptions,
    dtype: Option<DType>,
    /// Whether the shard is not to be chosen here.
    shard_given: bool,
    /// The options that were not given.
    pub(crate) defaults: Vec<StoreOption>,
}

impl Storage {
    /// Reads a dictionary of the options that were given, all of which `voxpatch.files` knows.
    pub(crate) fn new(given: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut create = CreateOptions::default();
        let mut convert = ConvertOptions::default();
        let mut dtype = None;
        let mut levels = None;
        let mut defaults = StoreOption::ALL.to_vec();
        if let Some(version) = given.get_item("zarr")? {
            create = match version.extract::<u8>() {
                Ok(2) => CreateOptions::zarr2(),
                Ok(3) => create,
                _ => return Err(invalid(format!("zarr {version}: it is 2 or 3"))),
            };
        }
        for (name, value) in given {
            let name: String = name.extract()?;
            defaults.retain(|option| named(*option) != name);
            match name.as_str() {
                "zarr" => {}
                "dtype" => dtype = Some(array::dtype(&value)?),
                "chunk" => {
                    create.chunk = arguments::lengths("chunk", &value)?;
                    create.tile = Some(create.chunk);
                }
                "shard" if value.is_none() => create.shard = None,
                "shard" => create.shard = Some(arguments::lengths("shard", &value)?),
                "codec" => {
                    create.codec = codec(&value.extract::<String>()?)?;
                    create.tile_codec = create.codec;
                }
                "clevel" => create.clevel = Some(arguments::count("clevel", &value)?),
                "levels" => levels = Some(arguments::count("levels", &value)?),
                "pyramid" => create.pyramid = pyramid(&value)?,
                "storage_options" => {
                    let given: Vec<(String, String)> = value.extract()?;
                    create.storage_options = given.into_iter().collect();
                }
                "overwrite" => create.overwrite = value.extract()?,
                "threads" => convert.threads = arguments::count("threads", &value)?,
                "memory" => convert.memory = arguments::count("memory", &value)?,
                "clip" => convert.clip = value.extract()?,
                other => {
                    return Err(PyTypeError::new_err(format!(
                        "unexpected keyword argument '{other}'"
                    )));
                }
            }
        }
        match (&mut create.pyramid, levels) {
            (Some(pyramid), levels) => pyramid.levels = levels,
            (None, Some(levels)) => {
                return Err(invalid(format!(
                    "levels {levels}: the output has no pyramid (pyramid='mean' or 'mode')"
                )));
            }
            (None, None) => {}
        }
        if create.zarr == ZarrVersion::V2 {
            create.shard = None;
        }
        Ok(Self {
            create,
            convert,
            dtype,
            shard_given: given.contains("shard")?,
            defaults,
        })
    }

    /// The layout of a copy of a volume, with values of `dtype` if no other is asked for, and how it is stored.
    fn layout(
        &self,
        volume: &ChannelRange,
        dtype: DType,
        path: &Path,
    ) -> Result<(Layout, CreateOptions)> {
        let layout = Layout {
            dtype: self.dtype.unwrap_or(dtype),
            rescale: None,
            ..volume.layout().clone()
        };
        let choices = self.choices();
        let choice = self.convert.choose(volume, path, &layout, &choices)?;
        Ok((output_layout(path, &layout, choice)?, choice.clone()))
    }

    /// The options, and, unless a shard was given, the same with smaller shards.
    fn choices(&self) -> Vec<CreateOptions> {
        let mut choices = vec![self.create.clone()];
        if self.create.shard.is_some() && !self.shard_given {
            let fits = |voxels: &u64| self.create.chunk.iter().all(|n| voxels.is_multiple_of(*n));
            choices.extend(
                [64, 32]
                    .into_iter()
                    .filter(fits)
                    .map(|voxels| self.create.clone().with_shard(Some([voxels; 3]))),
            );
        }
        choices
    }
}

/// The argument that asks for an option.
const fn named(option: StoreOption) -> &'static str {
    match option {
        StoreOption::Zarr => "zarr",
        StoreOption::Chunk => "chunk",
        StoreOption::Shard => "shard",
        StoreOption::Codec => "codec",
        StoreOption::Clevel => "clevel",
        StoreOption::Pyramid => "pyramid",
    }
}

fn codec(name: &str) -> PyResult<Codec> {
    let all = [
        ("zstd", Codec::Zstd),
        ("blosc-zstd", Codec::BloscZstd),
        ("blosc-lz4", Codec::BloscLz4),
        ("gzip", Codec::Gzip),
        ("zlib", Codec::Zlib),
        ("none", Codec::None),
    ];
    arguments::chosen("codec", name, &all)
}

fn pyramid(given: &Bound<'_, PyAny>) -> PyResult<Option<Pyramid>> {
    let all = [("mean", Downsample::Mean), ("mode", Downsample::Mode)];
    let method = arguments::chosen("pyramid", &given.extract::<String>()?, &all)?;
    Ok(Some(Pyramid {
        levels: None,
        method,
    }))
}

fn stored(
    py: Python<'_>,
    image: Arc<Image>,
    path: PathBuf,
    options: &Bound<'_, PyDict>,
) -> PyResult<Volume> {
    let storage = Storage::new(options)?;
    let store = storage.create.storage_options.clone();
    let source = Source::in_store(path.clone(), store);
    let reader = source.clone();
    let (written, lost) = interruptible(py, move |stop| {
        let done = copy(&image, &path, &storage, stop)?;
        Ok((reader.open()?, done))
    })?;
    for (count, what) in [(lost.clipped, "clipped"), (lost.rounded, "rounded")] {
        if count > 0 {
            let path = source.place.text();
            let text = format!(
                "{path}: {count} values were {what} to those of the type that was asked for"
            );
            let text = CString::new(text).unwrap_or_default();
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), &text, 2)?;
        }
    }
    Ok(Volume::new(source, written))
}

/// Copies the values of an image, as slices give them: the copy has no slope and intercept of its own.
fn copy(image: &Image, path: &Path, storage: &Storage, stop: &AtomicBool) -> Result<ConvertStats> {
    let volume = chosen(image)?;
    for file in volume.source_files() {
        check_output(path, &[&file])?;
    }
    let (layout, choice) = storage.layout(&volume, image.dtype(), path)?;
    let target = create(path, &layout, &choice)?;
    let progress = |_, _| {
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let volume: Arc<dyn voxpatch::Volume> = Arc::new(volume);
    voxpatch::convert(&volume, target, &storage.convert, &progress)
}
