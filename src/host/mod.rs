//! Adapters to engines that own their loop: one module an engine.
//!
//! *Architecture invariant:* an adapter hands over histories and takes offsets, through
//! [`Sequence`](crate::pair::Sequence); which tokens the proxies have in their caches is not its business.

#[cfg(feature = "openai")]
pub mod blackbox;
mod group;
pub mod llama_sampler;
#[cfg(feature = "mistralrs")]
pub mod mistralrs;
#[cfg(feature = "openai")]
pub mod openai;
mod proxies;
pub mod requests;
#[cfg(feature = "tokenizers")]
mod tokenizer;
pub mod vocabulary;

pub use group::{Group, Member};
pub use proxies::{HostShape, Proxies};
