//! Values that live in one process only.

use pyo3::exceptions::PyRuntimeError;
use pyo3::{PyErr, PyResult};

/// A value with threads behind it. After a fork the child has the value but not the threads: there it is neither used
/// nor dropped, since either would wait for them forever.
pub struct Local<T> {
    /// Always there, until it is dropped.
    value: Option<T>,
    process: u32,
}

impl<T> Local<T> {
    pub fn new(value: T) -> Self {
        Self { value: Some(value), process: std::process::id() }
    }

    /// The value, in the process that made it.
    pub fn get(&self) -> PyResult<&T> {
        let here = self.value.as_ref().filter(|_| self.process == std::process::id());
        here.ok_or_else(|| self.forked())
    }

    fn forked(&self) -> PyErr {
        PyRuntimeError::new_err(format!(
            "the proxies were loaded in process {} and cannot be used in {}, which was forked from it: load them after \
             the fork, or start processes by \"spawn\"",
            self.process,
            std::process::id()
        ))
    }
}

impl<T> Drop for Local<T> {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            std::mem::forget(self.value.take());
        }
    }
}
