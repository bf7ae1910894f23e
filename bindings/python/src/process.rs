//! Values that live in one process only.

use pyo3::exceptions::PyRuntimeError;
use pyo3::{PyErr, PyResult};
use std::mem::ManuallyDrop;

/// A value with threads behind it. After a fork the child has the value but not the threads: there it is neither used
/// nor dropped, since either would wait for them forever.
pub struct Local<T> {
    value: ManuallyDrop<T>,
    process: u32,
}

impl<T> Local<T> {
    pub fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), process: std::process::id() }
    }

    /// The value, in the process that made it.
    pub fn get(&self) -> PyResult<&T> {
        if self.process == std::process::id() { Ok(&self.value) } else { Err(self.forked()) }
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
        if self.process == std::process::id() {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}
