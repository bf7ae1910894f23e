//! Functions that the loader finds before llama.cpp's own of the same names, and that go on to those.
//!
//! `C-unwind`: what llama.cpp throws passes through to the host.

use proxytune::host::llama_sampler::ffi::{self, llama_batch, llama_context, llama_sampler};
use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

/// Whether this process is to be proxy-tuned at all.
fn is_on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os("PROXYTUNE_CONFIG").is_some())
}

/// An address of llama.cpp's; a program that calls it has it.
fn own(name: &CStr) -> *mut c_void {
    let address = ffi::find_anywhere(name);
    if address.is_null() {
        eprintln!("proxytune: {} is called, but no library of this process has it", name.to_string_lossy());
        std::process::abort();
    }
    address
}

/// Defines functions that call `before` where proxy-tuning is on, then llama.cpp's function of the same name.
macro_rules! in_front {
    ($($name:literal fn $function:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? { $before:expr })*) => {$(
        /// In front of llama.cpp's function of this name.
        ///
        /// # Safety
        /// As llama.cpp's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $function($($argument: $type),*) $(-> $result)? {
            type Function = unsafe extern "C-unwind" fn($($type),*) $(-> $result)?;
            static OWN: OnceLock<Function> = OnceLock::new();
            // SAFETY: the function of this name in llama.cpp, as its header declares it.
            let own = OWN.get_or_init(|| unsafe { std::mem::transmute::<*mut c_void, Function>(own($name)) });
            if is_on() {
                $before;
            }
            // SAFETY: what the caller promised.
            unsafe { own($($argument),*) }
        }
    )*};
}

in_front! {
    c"llama_sampler_chain_add" fn llama_sampler_chain_add(chain: *mut llama_sampler, sampler: *mut llama_sampler) {
        // SAFETY: what the caller promised.
        unsafe { ffi::before_chain_add(chain, sampler) }
    }
    c"llama_get_logits_ith" fn llama_get_logits_ith(context: *mut llama_context, i: i32) -> *mut f32 {
        ffi::fetches_logits(context)
    }
    c"llama_decode" fn llama_decode(context: *mut llama_context, batch: llama_batch) -> i32 {
        ffi::runs_pass()
    }
    c"llama_process" fn llama_process(context: *mut llama_context, kind: c_int, batch: *mut c_void) -> i32 {
        ffi::runs_pass()
    }
}
