//! Patches as numpy arrays and back.
//!
//! The only unsafe code of this package is here: arrays over memory that goes back to where it
//! came from, which numpy cannot be told safely, as fresh memory for each patch would cost a third of its reading;
//! and arrays that are read without the interpreter.

use std::sync::{Mutex, PoisonError};

use half::f16;
use numpy::ndarray::{Array, ArrayViewMut, IxDyn};
use numpy::{
    PyArray, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use voxpatch::inference::PatchPool;
use voxpatch::training::{BatchImage, PooledPatch};
use voxpatch::{DType, Patch, Region, Shape, Voxels};

use crate::errors::invalid;

/// An array of the patch's voxels, (c, z, y, x), which owns them: nothing is copied.
pub(crate) fn from_patch(py: Python<'_>, patch: Patch) -> PyResult<Bound<'_, PyAny>> {
    let [z, y, x] = patch.shape();
    let shape = [patch.channels(), z, y, x];
    from_voxels(py, patch.into_voxels(), &shape)
}

/// An array of this shape which owns the voxels: nothing is copied.
pub(crate) fn from_voxels<'py>(
    py: Python<'py>,
    voxels: Voxels,
    shape: &[u64],
) -> PyResult<Bound<'py, PyAny>> {
    macro_rules! array {
        ($values:expr) => {
            owned(py, $values, shape)?
        };
    }
    Ok(match voxels {
        Voxels::Bool(values) => array!(values).call_method1("view", ("bool",))?,
        Voxels::U8(values) => array!(values),
        Voxels::I8(values) => array!(values),
        Voxels::U16(values) => array!(values),
        Voxels::I16(values) => array!(values),
        Voxels::U32(values) => array!(values),
        Voxels::I32(values) => array!(values),
        Voxels::U64(values) => array!(values),
        Voxels::I64(values) => array!(values),
        Voxels::F16(values) => array!(values),
        Voxels::F32(values) => array!(values),
        Voxels::F64(values) => array!(values),
    })
}

fn owned<'py, T: numpy::Element>(
    py: Python<'py>,
    values: Vec<T>,
    shape: &[u64],
) -> PyResult<Bound<'py, PyAny>> {
    let lengths = in_memory(shape)?;
    let array = Array::from_shape_vec(IxDyn(&lengths), values)
        .map_err(|error| invalid(error.to_string()))?;
    Ok(PyArray::from_owned_array(py, array).into_any())
}

/// Memory that an array stands on.
pub(crate) trait Memory: Send {
    fn dtype(&self) -> DType;

    /// Its bytes, aligned for any type; they never move, and there are never more or fewer.
    fn bytes(&mut self) -> &mut [u8];
}

impl Memory for PooledPatch {
    fn dtype(&self) -> DType {
        Patch::dtype(self)
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }
}

impl Memory for BatchImage {
    fn dtype(&self) -> DType {
        Self::dtype(self)
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }
}

/// Keeps an array's memory for as long as there is the array, or a tensor or view of it.
#[pyclass(frozen, module = "voxpatch._voxpatch")]
struct Keeper(Mutex<Box<dyn Memory>>);

/// An array of this shape on memory that is dropped with the last reference to the array.
pub(crate) fn on<'py>(
    py: Python<'py>,
    memory: Box<dyn Memory>,
    shape: &[u64],
) -> PyResult<Bound<'py, PyAny>> {
    let dtype = memory.dtype();
    let keeper = Bound::new(py, Keeper(Mutex::new(memory)))?;
    let shape = in_memory(shape)?;
    match dtype {
        DType::Bool => borrowed::<u8>(&keeper, &shape)?.call_method1("view", ("bool",)),
        DType::U8 => borrowed::<u8>(&keeper, &shape),
        DType::I8 => borrowed::<i8>(&keeper, &shape),
        DType::U16 => borrowed::<u16>(&keeper, &shape),
        DType::I16 => borrowed::<i16>(&keeper, &shape),
        DType::U32 => borrowed::<u32>(&keeper, &shape),
        DType::I32 => borrowed::<i32>(&keeper, &shape),
        DType::U64 => borrowed::<u64>(&keeper, &shape),
        DType::I64 => borrowed::<i64>(&keeper, &shape),
        DType::F16 => borrowed::<f16>(&keeper, &shape),
        DType::F32 => borrowed::<f32>(&keeper, &shape),
        DType::F64 => borrowed::<f64>(&keeper, &shape),
    }
}

#[expect(unsafe_code, reason = "numpy has no safe way to borrow memory")]
fn borrowed<'py, T: numpy::Element + voxpatch::Element>(
    keeper: &Bound<'py, Keeper>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let container = keeper.clone().into_any();
    let mut memory = keeper
        .get()
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let values = bytemuck::try_cast_slice_mut::<u8, T>(memory.bytes())
        .map_err(|error| invalid(error.to_string()))?;
    let view = ArrayViewMut::from_shape(IxDyn(shape), values)
        .map_err(|error| invalid(error.to_string()))?;
    // SAFETY: the array refers to the keeper, so the memory outlives it. Nobody else reaches the
    // memory: the keeper is private, is locked here only, and neither moves nor resizes the voxels.
    let array = unsafe { PyArray::borrow_from_array(&view, container) };
    Ok(array.into_any())
}

fn in_memory(shape: &[u64]) -> PyResult<Vec<usize>> {
    let lengths = shape.iter().map(|&n| usize::try_from(n));
    lengths
        .collect::<Result<_, _>>()
        .map_err(|_| invalid("an array larger than memory can address"))
}

/// numpy's type of the same name.
pub(crate) fn descriptor(py: Python<'_>, dtype: DType) -> PyResult<Bound<'_, PyAny>> {
    py.import("numpy")?.call_method1("dtype", (dtype.name(),))
}

/// The voxel type that a numpy type, or its name, stands for.
pub(crate) fn dtype(given: &Bound<'_, PyAny>) -> PyResult<DType> {
    let descriptor = given
        .py()
        .import("numpy")?
        .call_method1("dtype", (given,))?;
    let name: String = descriptor.getattr("name")?.extract()?;
    DType::from_name(&name).ok_or_else(|| {
        invalid(format!(
            "voxels of type {name}: possible are bool, integers of 8 to 64 bits and floats of 16 to 64"
        ))
    })
}

/// A prediction in an array that nobody else knows: it can be read without the interpreter.
#[derive(Debug)]
pub(crate) struct Held {
    /// Keeps the memory; the interpreter drops it when it next has the time.
    _array: Py<PyAny>,
    voxels: *const u8,
    dtype: DType,
    channels: u64,
    region: Region,
}

#[expect(unsafe_code, reason = "a pointer says nothing of who else has it")]
// SAFETY: it points into the array that it keeps, which nobody writes to.
unsafe impl Send for Held {}

impl Held {
    /// An array (c, z, y, x) that nobody writes to any more, of a patch that begins at `start`; `None` unless
    /// its voxels lie one after the other, as they are here.
    pub(crate) fn of(array: &Bound<'_, PyAny>, start: [i64; 3]) -> PyResult<Option<Self>> {
        let dtype = dtype(&array.getattr("dtype")?)?;
        let untyped = array.cast::<PyUntypedArray>()?;
        let native = untyped
            .dtype()
            .is_equiv_to(&descriptor(array.py(), dtype)?.cast_into()?);
        let lengths: Vec<u64> = untyped.shape().iter().map(|&n| n as u64).collect();
        let [channels, z, y, x] = lengths[..] else {
            return Ok(None);
        };
        if !native || !untyped.is_c_contiguous() {
            return Ok(None);
        }
        let address: usize = array.getattr("ctypes")?.getattr("data")?.extract()?;
        Ok(Some(Self {
            _array: array.clone().unbind(),
            voxels: std::ptr::with_exposed_provenance(address),
            dtype,
            channels,
            region: Region::new(start, [z, y, x]),
        }))
    }

    /// A copy of its voxels, in a patch from a pool.
    pub(crate) fn to_patch(&self, pool: &PatchPool) -> voxpatch::Result<Patch> {
        let mut patch = pool.take(self.region, self.channels, self.dtype)?;
        let bytes = patch.bytes_mut();
        #[expect(
            unsafe_code,
            reason = "numpy lends slices only to threads that hold the interpreter"
        )]
        // SAFETY: the array has as many voxels of this type, one after the other; it is kept, and not written to.
        let voxels = unsafe { std::slice::from_raw_parts(self.voxels, bytes.len()) };
        bytes.copy_from_slice(voxels);
        Ok(patch)
    }
}

/// A copy of an array's voxels: its shape (c, z, y, x) and them. Three axes are z, y, x.
pub(crate) fn to_voxels(array: &Bound<'_, PyAny>) -> PyResult<(u64, Shape, Voxels)> {
    let py = array.py();
    let numpy = py.import("numpy")?;
    let array = numpy.call_method1("asarray", (array,))?;
    let dtype = dtype(&array.getattr("dtype")?)?;
    let native = descriptor(py, dtype)?;
    let array = numpy.call_method1("ascontiguousarray", (array, native))?;
    let untyped = array.cast::<PyUntypedArray>()?;
    let lengths: Vec<u64> = untyped.shape().iter().map(|&n| n as u64).collect();
    let (channels, shape) = match lengths[..] {
        [z, y, x] => (1, [z, y, x]),
        [c, z, y, x] => (c, [z, y, x]),
        _ => {
            return Err(invalid(format!(
                "an array of shape {lengths:?} is no volume: it has axes z, y, x or c, z, y, x"
            )));
        }
    };
    Ok((channels, shape, copied(&array, dtype)?))
}

/// A copy, made by several threads if it is large: fresh memory costs more than the copying.
fn copy_of<T: Copy + Default + Send + Sync>(values: &[T]) -> Vec<T> {
    const PIECE: usize = 4 << 20;
    let pieces = (size_of_val(values) / PIECE).min(voxpatch::threads());
    if pieces < 2 {
        return values.to_vec();
    }
    let mut copy = vec![T::default(); values.len()];
    let length = values.len().div_ceil(pieces);
    std::thread::scope(|scope| {
        for (to, from) in copy.chunks_mut(length).zip(values.chunks(length)) {
            scope.spawn(move || to.copy_from_slice(from));
        }
    });
    copy
}

fn copied(array: &Bound<'_, PyAny>, dtype: DType) -> PyResult<Voxels> {
    fn values<T: numpy::Element + Copy + Default>(array: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
        let typed = array.cast::<PyArrayDyn<T>>()?;
        let borrowed = typed.try_readonly()?;
        let slice = borrowed
            .as_slice()
            .map_err(|error| PyTypeError::new_err(error.to_string()))?;
        Ok(copy_of(slice))
    }
    Ok(match dtype {
        DType::Bool => Voxels::Bool(values::<u8>(&array.call_method1("view", ("uint8",))?)?),
        DType::U8 => Voxels::U8(values(array)?),
        DType::I8 => Voxels::I8(values(array)?),
        DType::U16 => Voxels::U16(values(array)?),
        DType::I16 => Voxels::I16(values(array)?),
        DType::U32 => Voxels::U32(values(array)?),
        DType::I32 => Voxels::I32(values(array)?),
        DType::U64 => Voxels::U64(values(array)?),
        DType::I64 => Voxels::I64(values(array)?),
        DType::F16 => Voxels::F16(values::<f16>(array)?),
        DType::F32 => Voxels::F32(values(array)?),
        DType::F64 => Voxels::F64(values(array)?),
    })
}
