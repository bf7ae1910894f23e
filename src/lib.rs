#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod backend;
pub mod combine;
pub mod config;
#[cfg(feature = "llama")]
pub mod decode;
pub mod error;
#[cfg(feature = "eval")]
pub mod eval;
pub mod pair;
pub mod prompt;
mod recent;
pub mod vocab;

pub use error::{Error, Result};
