//! llama.cpp through its C API: models from GGUF files, many sequences in one context, its own samplers.
//!
//! *Architecture invariant:* this folder is the only place of the crate with `unsafe` code.

mod context;
mod gguf;
mod log;
mod model;
mod pool;
mod sampler;

pub use context::{ContextOptions, LlamaContext};
pub use model::{LlamaModel, LoadOptions};
pub use pool::ThreadPool;
pub use sampler::{Sampler, SamplerOptions};

use llama_cpp_sys_2 as sys;
