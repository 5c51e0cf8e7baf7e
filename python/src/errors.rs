//! Errors of the library as exceptions that users know how to catch.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use voxpatch::{Error, ErrorKind};

/// The exception of an error, with its causes in the message.
pub(crate) fn raised(error: &Error) -> PyErr {
    Python::attach(|py| {
        let root = root(error);
        let text = error.with_causes() + hint(root);
        let made = match root {
            Error::Io { path, source, .. } => {
                let class = match root.kind() {
                    ErrorKind::NotFound => "NotFoundError",
                    ErrorKind::PermissionDenied => "DeniedError",
                    _ => "FileError",
                };
                exception(py, class, (source.raw_os_error(), text, path.as_os_str()))
            }
            // The number is ENOSPC's.
            Error::NoSpace { path, .. } => exception(py, "FileError", (28, text, path.as_os_str())),
            Error::Exists { path }
            | Error::NotOverwritable { path, .. }
            | Error::Unfinished { path, .. } => {
                exception(py, "ExistsError", (17, text, path.as_os_str()))
            }
            other => exception(py, class_of(other), (text,)),
        };
        made.unwrap_or_else(|error| error)
    })
}

/// Returns the exception class of every error except those of the operating system.
fn class_of(error: &Error) -> &'static str {
    match (error, error.kind()) {
        (Error::Header { .. } | Error::InvalidLocation { .. }, _) => "InvalidError",
        (
            Error::ChunkWritten { .. }
            | Error::MissingChunks { .. }
            | Error::OutputIsInput { .. }
            | Error::OutputModified { .. }
            | Error::SameOutput { .. },
            _,
        )
        | (_, ErrorKind::Corrupt | ErrorKind::Locked) => "FileError",
        (_, ErrorKind::OutOfRange) => "BoundsError",
        (_, ErrorKind::Panicked) => "PanicError",
        (_, ErrorKind::Interrupted) => "StoppedError",
        _ => "InvalidError",
    }
}

/// Returns the Python argument that helps with an error; messages of the library name no arguments.
fn hint(error: &Error) -> &'static str {
    match error {
        Error::SubjectMismatch { .. } => {
            " (dtype= converts images to one type; same_images=False allows such subjects)"
        }
        Error::Exists { .. } | Error::Unfinished { .. } => " (overwrite=True)",
        Error::UntrustedCodec { .. } | Error::UntrustedLink { .. } => " (trusted=True)",
        Error::UnsupportedDType { .. } => " (dtype=)",
        Error::Lossy { .. } | Error::OutputRange { .. } => " (clip=True)",
        Error::ValueRange { .. } => " (values=)",
        Error::MemoryLimit { .. } => " (memory=)",
        Error::SeriesChoice { .. } => " (series=)",
        Error::UnevenSlices { .. } => " (allow_uneven=True)",
        Error::TiltedSlices { .. } => " (tilt=\"shear\")",
        Error::BlenderMemory { .. } => " (device_memory=)",
        Error::NoGeometry { .. } => " (same_grid=True)",
        Error::PatchSize { patch, volume, .. } if patch > volume => {
            " (border=\"pad\" of samplers; padding= of GridSampler and predict)"
        }
        _ => "",
    }
}

fn root(error: &Error) -> &Error {
    match error {
        Error::Subject { source, .. } | Error::Shared(source) => root(source),
        other => other,
    }
}

/// An exception of a class of `voxpatch.errors`.
pub(crate) fn exception<'py, A>(py: Python<'py>, class: &str, arguments: A) -> PyResult<PyErr>
where
    A: pyo3::call::PyCallArgs<'py>,
{
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || py.import("voxpatch.errors").map(Bound::unbind))?;
    let class = module.bind(py).getattr(class)?;
    let class = class.cast::<PyType>()?;
    Ok(PyErr::from_value(class.call1(arguments)?))
}

/// A `ValueError` about an argument.
pub(crate) fn invalid(message: impl Into<String>) -> PyErr {
    let message = message.into();
    Python::attach(|py| {
        exception(py, "InvalidError", (message.clone(),))
            .unwrap_or_else(|_| PyRuntimeError::new_err(message))
    })
}

/// An `IndexError` of ours.
pub(crate) fn out_of_bounds(message: impl Into<String>) -> PyErr {
    let message = message.into();
    Python::attach(|py| {
        exception(py, "BoundsError", (message.clone(),))
            .unwrap_or_else(|_| PyRuntimeError::new_err(message))
    })
}
