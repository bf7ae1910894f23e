//! llama.cpp through its C API: models from GGUF files, many sequences in one context, its own samplers.
//!
//! The API is that of the engine compiled in (feature `llama`) or of the process that this library has been loaded into
//! (`llama-system`); the code here is the same for both.
//!
//! *Architecture invariant:* this folder is the only place of the crate with `unsafe` code.

mod adapter;
mod context;
mod gguf;
mod log;
#[cfg(not(llama_without_adapters))]
mod lora;
mod model;
mod pool;
mod sampler;
#[cfg(not(feature = "llama"))]
pub(crate) mod system;
mod weights;

pub use context::{ContextOptions, LlamaContext};
pub use model::{LlamaModel, LoadOptions};
pub use pool::ThreadPool;
pub use sampler::{Sampler, SamplerOptions};

#[cfg(feature = "llama")]
pub(crate) use llama_cpp_sys_2 as sys;
#[cfg(not(feature = "llama"))]
pub(crate) use system as sys;
