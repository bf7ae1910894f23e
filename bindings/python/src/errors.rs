//! The core's errors as Python's exceptions.

use proxytune::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyRuntimeError, PyValueError};

/// What the caller can put right is a `ValueError`; what failed on the way a `RuntimeError` or a `MemoryError`.
pub fn exception(error: &Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Memory { .. } => PyMemoryError::new_err(message),
        Error::Engine { .. } | Error::Timeout { .. } | Error::Stopped(_) => PyRuntimeError::new_err(message),
        Error::Interrupted => PyKeyboardInterrupt::new_err(message),
        _ => PyValueError::new_err(message),
    }
}
