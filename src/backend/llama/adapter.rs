//! LoRA adapters: a tuned model as a small addition to the weights of an untuned one, which both share.

use super::sys;
use super::weights::Weights;
use crate::error::Result;
use std::path::Path;
use std::sync::Arc;

#[cfg(not(llama_without_adapters))]
pub(super) use with::Adapter;
#[cfg(llama_without_adapters)]
pub(super) use without::Adapter;

#[cfg(not(llama_without_adapters))]
mod with {
    use super::*;
    use crate::backend::llama::{log, lora};
    use crate::error::Error;
    use std::ffi::CString;
    use std::ptr::NonNull;

    /// An adapter in memory. The engine frees it with the weights that it belongs to.
    pub struct Adapter(NonNull<sys::llama_adapter_lora>);

    // SAFETY: contexts only read it.
    unsafe impl Send for Adapter {}
    // SAFETY: as above.
    unsafe impl Sync for Adapter {}

    impl Adapter {
        /// Reads an adapter for the weights of the file `base`. `None` where only their metadata was read: then the file has
        /// been checked.
        pub fn load(weights: &mut Arc<Weights>, base: &Path, path: &Path) -> Result<Option<Self>> {
            lora::check(path, base)?;
            // The engine adds the adapter to the model's own list: nobody else may have the model meanwhile.
            let Some(weights) = Arc::get_mut(weights) else {
                return Err(Error::invalid("LoRA adapter", path.display(), "one for each model"));
            };
            if weights.vocab_only {
                return Ok(None);
            }
            let c_path = CString::new(path.as_os_str().as_encoded_bytes())
                .map_err(|_| Error::invalid("adapter path", path.display(), "a path without NUL"))?;
            // SAFETY: the model is alive and nobody else's; the path is a string.
            let (raw, reason) = log::with_last_error(|| unsafe {
                sys::llama_adapter_lora_init(weights.raw.as_ptr(), c_path.as_ptr())
            });
            let reason = if reason.is_empty() { "no reason given" } else { &reason };
            NonNull::new(raw).map(|raw| Some(Self(raw))).ok_or_else(|| Error::Model {
                path: path.into(),
                what: format!("llama.cpp cannot load it ({reason})"),
                help: lora::HELP.into(),
            })
        }

        /// Makes a context compute with it; `name` is used in errors.
        ///
        /// # Safety
        /// The context is alive, is used by nobody else now, and is one of the model that this was loaded for.
        pub unsafe fn attach(&self, context: *mut sys::llama_context, name: &str) -> Result<()> {
            let (mut adapter, mut scale) = (self.0.as_ptr(), 1.0);
            // SAFETY: as the caller promises; both lists have one entry and are copied.
            match unsafe { sys::llama_set_adapters_lora(context, &mut adapter, 1, &mut scale) } {
                0 => Ok(()),
                code => Err(Error::engine(name, format!("llama.cpp refuses its LoRA adapter ({code})"))),
            }
        }
    }
}

/// For the header of a llama.cpp that knows no adapters, or has them otherwise.
#[cfg(llama_without_adapters)]
mod without {
    use super::*;
    use crate::error::Error;

    pub enum Adapter {}

    impl Adapter {
        pub fn load(_: &mut Arc<Weights>, _: &Path, path: &Path) -> Result<Option<Self>> {
            let expected =
                "a whole tuned model (tuned): this llama.cpp has not the functions that LoRA adapters need";
            Err(Error::invalid("tuned_lora", path.display(), expected))
        }

        /// # Safety
        /// Is never called.
        pub unsafe fn attach(&self, _: *mut sys::llama_context, _: &str) -> Result<()> {
            match *self {}
        }
    }
}
