#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod backend;
pub mod combine;
pub mod error;
pub mod pair;
pub mod vocab;

pub use error::{Error, Result};
