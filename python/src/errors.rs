//! Errors of the library as exceptions that users know how to catch.

use std::io::ErrorKind;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use voxpatch::Error;

/// The exception of an error, with its causes in the message.
pub(crate) fn raised(error: &Error) -> PyErr {
    Python::attach(|py| {
        let root = root(error);
        let text = chain(error) + hint(root);
        let made = match root {
            Error::Io { path, source, .. } => {
                let class = match source.kind() {
                    ErrorKind::NotFound => "NotFoundError",
                    ErrorKind::PermissionDenied => "DeniedError",
                    _ => "FileError",
                };
                exception(py, class, (source.raw_os_error(), text, path.as_os_str()))
            }
            // The number is ENOSPC's.
            Error::NoSpace { path, .. } => exception(py, "FileError", (28, text, path.as_os_str())),
            Error::Exists { path } | Error::NotReplaceable { path, .. } => {
                exception(py, "ExistsError", (17, text, path.as_os_str()))
            }
            other => exception(py, class_of(other), (text,)),
        };
        made.unwrap_or_else(|error| error)
    })
}

/// The class for everything but refusals of the operating system.
fn class_of(error: &Error) -> &'static str {
    match error {
        Error::FileLength { .. }
        | Error::Chunk { .. }
        | Error::MissingChunk { .. }
        | Error::ChunkWritten { .. }
        | Error::Locked { .. }
        | Error::MissingChunks { .. }
        | Error::OutputIsInput { .. }
        | Error::SameOutput { .. } => "FileError",
        Error::OutOfBounds { .. } | Error::NoSuchChannel { .. } => "BoundsError",
        Error::Panicked { .. } => "PanicError",
        Error::Interrupted => "StoppedError",
        _ => "InvalidError",
    }
}

/// What to do about an error, in Python's words; the library's messages name no arguments.
fn hint(error: &Error) -> &'static str {
    match error {
        Error::SubjectMismatch { .. } => {
            " (dtype= converts images to one type; allow_mixed=True allows such subjects)"
        }
        Error::Exists { .. } => " (overwrite=True)",
        Error::UntrustedCodec { .. } | Error::UntrustedLink { .. } => " (trusted=True)",
        Error::UnsupportedDType { .. } => " (dtype=)",
        Error::Lossy { .. } => " (clip=True)",
        Error::ValueRange { .. } => " (values=)",
        Error::Setting { name, .. } if name.starts_with("a memory ") => " (memory=)",
        Error::NoGeometry { .. } => " (same_grid=True)",
        _ => "",
    }
}

fn root(error: &Error) -> &Error {
    match error {
        Error::Subject { source, .. } | Error::Shared(source) => root(source),
        other => other,
    }
}

/// An error with its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
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
