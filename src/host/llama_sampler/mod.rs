//! Proxy-tuning as a `llama_sampler`, the first of a chain: it shifts the candidates' logits before all other samplers.
//!
//! [`Tuner`] has the proxies of one configuration, shared by all chains of the process. [`Chain`] is what one sampler
//! knows: the tokens it was told of. [`Passes`] is what the host's forward passes tell besides. [`ffi`] puts a chain
//! behind llama.cpp's C interface; [`hooks`] is what a preloaded library calls before its host's calls reach llama.cpp.

mod chain;
pub mod ffi;
mod heard;
pub mod hooks;
mod passes;
mod tuner;

pub use chain::Chain;
pub use passes::{Entry, Passes, Place};
pub use tuner::{Host, Row, Signature, Tuner};

pub use crate::backend::llama::sys::llama_token_data;

use std::io::Write;

/// One line for the person who runs the host program.
pub(crate) fn say(what: impl std::fmt::Display) {
    // In one piece: the host's own threads write there too. A closed stderr is no reason to fail.
    let _ = std::io::stderr().lock().write_all(format!("proxytune: {what}\n").as_bytes());
}
