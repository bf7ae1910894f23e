//! `libproxytune_llama`: proxy-tuning for programs that run llama.cpp.
//!
//! By call: the functions of `include/proxytune/llama.h`. Preloaded (feature `preload`, `LD_PRELOAD` and
//! `PROXYTUNE_CONFIG`): the functions of [`preload`] stand in front of llama.cpp's own, and do nothing of their own
//! unless the variable is set.

use proxytune::host::llama_sampler::ffi::{self, llama_sampler};
use std::ffi::c_char;

#[cfg(feature = "preload")]
mod preload;

/// Changes when a function of the header does.
const ABI_VERSION: u32 = 1;

/// See `include/proxytune/llama.h`.
///
/// # Safety
/// `config_path` is null or a string that ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxytune_sampler_init(config_path: *const c_char) -> *mut llama_sampler {
    // SAFETY: as above.
    unsafe { ffi::sampler_init(config_path) }
}

/// See `include/proxytune/llama.h`.
#[unsafe(no_mangle)]
pub extern "C" fn proxytune_last_error() -> *const c_char {
    ffi::last_error()
}

/// See `include/proxytune/llama.h`.
#[unsafe(no_mangle)]
pub extern "C" fn proxytune_abi_version() -> u32 {
    ABI_VERSION
}
