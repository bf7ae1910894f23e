//! Functions that the loader finds before llama.cpp's own of the same names, and that go on to those.
//!
//! `C-unwind`: what llama.cpp throws passes through to the host. The types of the extended batch are written out here,
//! since older headers lack them; an older llama.cpp never calls these functions.

use proxytune::host::llama_sampler::hooks::{self, filled, llama_batch, llama_context, llama_sampler};
use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

/// `struct llama_embd`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Embedding {
    data: *const f32,
    rows: usize,
    width: usize,
}

/// `LLAMA_PROCESS_TYPE_DECODE`
const DECODE: c_int = 1;

/// Whether this process is to be proxy-tuned at all.
fn is_on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os("PROXYTUNE_CONFIG").is_some())
}

/// An address of llama.cpp's; a program that calls it has it.
fn own(name: &CStr) -> *mut c_void {
    let address = hooks::find_anywhere(name);
    if address.is_null() {
        eprintln!("proxytune: {} is called, but no library of this process has it", name.to_string_lossy());
        std::process::abort();
    }
    address
}

/// Defines functions that, where proxy-tuning is on, run something before llama.cpp's function of the same name, or
/// after it with its result.
macro_rules! in_front {
    ($(
        $name:literal fn $function:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?
        { $($before:expr)? $(; |$returned:ident| $after:expr)? }
    )*) => {$(
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
            $(if is_on() {
                $before;
            })?
            // SAFETY: what the caller promised.
            let result = unsafe { own($($argument),*) };
            $(if is_on() {
                let $returned = result;
                $after;
            })?
            result
        }
    )*};
}

in_front! {
    c"llama_sampler_chain_add" fn llama_sampler_chain_add(chain: *mut llama_sampler, sampler: *mut llama_sampler) {
        // SAFETY: what the caller promised.
        unsafe { hooks::chain_add(chain, sampler) }
    }
    c"llama_get_logits_ith" fn llama_get_logits_ith(context: *mut llama_context, i: i32) -> *mut f32 {
        hooks::fetch(context, i)
    }
    c"llama_free" fn llama_free(context: *mut llama_context) {
        hooks::free(context)
    }
    c"llama_decode" fn llama_decode(context: *mut llama_context, batch: llama_batch) -> i32 {
        // SAFETY: what the caller promised.
        unsafe { hooks::decode(context, &batch) }
    }
    c"llama_process" fn llama_process(context: *mut llama_context, kind: c_int, batch: *mut c_void) -> i32 {
        if kind == DECODE {
            hooks::process(context, batch as usize)
        }
    }
    c"llama_batch_ext_free" fn llama_batch_ext_free(batch: *mut c_void) {
        filled::free(batch as usize)
    }
    c"llama_batch_ext_clear" fn llama_batch_ext_clear(batch: *mut c_void) {
        filled::clear(batch as usize)
    }
    c"llama_batch_ext_add" fn llama_batch_ext_add(batch: *mut c_void, sequence: i32) -> i32 {
        ; |index| filled::add(batch as usize, sequence, None, index)
    }
    c"llama_batch_ext_add_token"
    fn llama_batch_ext_add_token(batch: *mut c_void, sequence: i32, token: i32) -> i32 {
        ; |index| filled::add(batch as usize, sequence, Some(token), index)
    }
    c"llama_batch_ext_add_embd"
    fn llama_batch_ext_add_embd(batch: *mut c_void, sequence: i32, embedding: Embedding) -> i32 {
        ; |index| filled::add(batch as usize, sequence, None, index)
    }
    c"llama_batch_ext_add_seq" fn llama_batch_ext_add_seq(batch: *mut c_void, index: i32, sequence: i32) -> bool {
        ; |done| if done { filled::change(batch as usize, index, |e| e.sequences.push(sequence)) }
    }
    c"llama_batch_ext_set_pos"
    fn llama_batch_ext_set_pos(batch: *mut c_void, index: i32, position: *const i32) -> bool {
        // SAFETY: where llama.cpp has taken a position there is one.
        ; |done| if done { let p = unsafe { *position }; filled::change(batch as usize, index, |e| e.position = p) }
    }
    c"llama_batch_ext_set_output_logits"
    fn llama_batch_ext_set_output_logits(batch: *mut c_void, index: i32, value: bool) -> bool {
        ; |done| if done { filled::change(batch as usize, index, |e| e.output = value) }
    }
    c"llama_batch_ext_set_output_embd"
    fn llama_batch_ext_set_output_embd(batch: *mut c_void, index: i32, value: bool) -> bool {
        ; |done| if done { filled::change(batch as usize, index, |e| e.output = value) }
    }
}
