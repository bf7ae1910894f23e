//! The compiled half of the Python package: `proxytune._native`.
//!
//! Types and conversions only; what they do is the core's, in `proxytune::host`.

#![deny(unsafe_code)]

mod errors;
mod load;
mod pair;
mod process;
mod processor;
mod rows;
// Memory that belongs to other libraries.
#[allow(unsafe_code)]
mod tensor;
mod texts;
mod tokens;

#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::pair::ProxyPair;
    #[pymodule_export]
    use super::processor::LogitsProcessor;
}
