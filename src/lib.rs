#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(all(feature = "llama", feature = "llama-system"))]
compile_error!(
    "the features `llama` (llama.cpp compiled in) and `llama-system` (that of the host process) exclude each other: \
     build with --no-default-features --features llama-system"
);

pub mod backend;
pub mod combine;
pub mod config;
#[cfg(any(feature = "llama", feature = "llama-system"))]
pub mod decode;
pub mod error;
#[cfg(feature = "eval")]
pub mod eval;
#[cfg(any(feature = "llama", feature = "llama-system"))]
pub mod host;
pub mod pair;
pub mod prompt;
mod recent;
#[cfg(any(feature = "serve", feature = "openai"))]
pub mod serve;
pub mod vocab;

pub use error::{Error, Result};
