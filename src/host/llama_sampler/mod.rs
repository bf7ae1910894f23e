//! Proxy-tuning as a `llama_sampler`, the first of a chain: it shifts the candidates' logits before all other samplers.
//!
//! [`Tuner`] has the proxies of one configuration, shared by all chains of the process. [`Chain`] is what one sampler
//! knows: the tokens it was told of. [`ffi`] puts both behind llama.cpp's C interface, and has the functions that a
//! preloaded library calls to see what its host does.

mod chain;
pub mod ffi;
mod tuner;

pub use chain::Chain;
pub use tuner::{Host, Row, Signature, Tuner};

use std::io::Write;

/// One line for the person who runs the host program.
pub(crate) fn say(what: impl std::fmt::Display) {
    // A closed stderr is no reason to fail.
    let _ = writeln!(std::io::stderr().lock(), "proxytune: {what}");
}
