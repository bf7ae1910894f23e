//! Weights in memory, which several models may share.

use super::sys;
use std::ptr::NonNull;

/// A model as the engine knows it.
pub(super) struct Weights {
    pub raw: NonNull<sys::llama_model>,
    /// Whether metadata and vocabulary are all there is.
    pub vocab_only: bool,
    /// Whether somebody else frees it.
    pub borrowed: bool,
}

// SAFETY: llama.cpp's models are immutable after loading and made to be shared by contexts on several threads. What adds
// to one, an adapter, is done while nobody else has it (`Adapter::load`).
unsafe impl Send for Weights {}
// SAFETY: as above; only functions that take a const model are called through a shared reference.
unsafe impl Sync for Weights {}

impl Drop for Weights {
    fn drop(&mut self) {
        if !self.borrowed {
            // SAFETY: nobody else frees it, and contexts hold an `Arc` of it. Its adapters go with it.
            unsafe { sys::llama_model_free(self.raw.as_ptr()) }
        }
    }
}
