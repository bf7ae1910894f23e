//! Adapters to engines that own their loop: one module an engine.
//!
//! *Architecture invariant:* an adapter hands over histories and takes offsets, through
//! [`Sequence`](crate::pair::Sequence); which tokens the proxies have in their caches is not its business.

pub mod llama_sampler;
