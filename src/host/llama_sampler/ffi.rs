//! The sampler behind llama.cpp's C interface.
//!
//! Nothing here panics into the host: what does panic is said once, and the host goes on as if it had no sampler.

use super::{Chain, Host, Row, Tuner, hooks, say};
use crate::backend::llama::{LlamaModel, sys};
use crate::vocab::Token;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Arc, Once};

pub use sys::{llama_context, llama_sampler, llama_token, llama_token_data_array};

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs `call` so that no panic leaves it.
pub(super) fn guard<T>(otherwise: T, call: impl FnOnce() -> T) -> T {
    static SAID: Once = Once::new();
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        SAID.call_once(|| {
            say("an error in the plugin itself, see above; requests go on unshifted where it happens")
        });
        otherwise
    })
}

struct Interface(sys::llama_sampler_i);
// SAFETY: functions only, never written.
unsafe impl Sync for Interface {}

static INTERFACE: Interface = Interface(sys::llama_sampler_i {
    name: Some(name),
    accept: Some(accept),
    apply: Some(apply),
    reset: Some(reset),
    clone: Some(clone),
    free: Some(free),
    backend_init: None,
    backend_accept: None,
    backend_apply: None,
    backend_set_input: None,
    backend_reset: None,
    copy_state: Some(copy_state),
});

/// A sampler around a chain; null where llama.cpp makes none. Owned by the caller: `llama_sampler_free`, or the chain
/// that it is added to.
pub(super) fn wrap(chain: Chain) -> *mut llama_sampler {
    let state = Box::into_raw(Box::new(chain));
    // SAFETY: llama.cpp only reads the interface, and hands the state back to its functions.
    let sampler = unsafe { sys::llama_sampler_init((&raw const INTERFACE.0).cast_mut(), state.cast()) };
    if sampler.is_null() {
        // SAFETY: nobody else has got it.
        drop(unsafe { Box::from_raw(state) });
    }
    sampler
}

pub(super) fn is_ours(sampler: *const llama_sampler) -> bool {
    // SAFETY: a sampler that the host holds is valid.
    !sampler.is_null() && unsafe { (*sampler).iface }.cast_const() == &raw const INTERFACE.0
}

/// # Safety
/// A sampler made by [`wrap`], used by one thread at a time.
unsafe fn state<'a>(sampler: *const llama_sampler) -> &'a mut Chain {
    // SAFETY: see above.
    unsafe { &mut *(*sampler).ctx.cast::<Chain>() }
}

unsafe extern "C" fn name(_: *const llama_sampler) -> *const c_char {
    c"proxytune".as_ptr()
}

unsafe extern "C" fn accept(sampler: *mut llama_sampler, token: llama_token) {
    guard((), || {
        // Places of an image have no token.
        if let Ok(token) = Token::try_from(token) {
            // SAFETY: llama.cpp passes our own sampler.
            unsafe { state(sampler) }.accept(token, !hooks::hears_passes());
        }
    });
}

unsafe extern "C" fn apply(sampler: *mut llama_sampler, candidates: *mut llama_token_data_array) {
    guard((), || {
        // SAFETY: llama.cpp passes our own sampler, and an array of which `size` places are filled.
        let (state, array, rows) = unsafe {
            let array = &mut *candidates;
            if array.data.is_null() {
                return;
            }
            (state(sampler), &mut array.sorted, std::slice::from_raw_parts_mut(array.data, array.size))
        };
        *array = false;
        let Some(context) = hooks::fetched(|place| state.learn(place)) else {
            return state.apply(None, rows);
        };
        // SAFETY: this thread has just fetched logits of this context.
        let host = || unsafe { host(context) };
        let model = host_model(context);
        let row = Row { signature: (model.parameters(), model.size()), host: &host };
        state.apply(Some(row), rows);
    });
}

unsafe extern "C" fn reset(sampler: *mut llama_sampler) {
    // SAFETY: llama.cpp passes our own sampler.
    guard((), || unsafe { state(sampler) }.reset());
}

unsafe extern "C" fn clone(sampler: *const llama_sampler) -> *mut llama_sampler {
    // SAFETY: llama.cpp passes our own sampler.
    guard(null_mut(), || wrap(unsafe { state(sampler) }.fork()))
}

unsafe extern "C" fn copy_state(from: *const llama_sampler, to: *mut llama_sampler) {
    guard((), || {
        if from != to {
            // SAFETY: llama.cpp passes two samplers of ours, which are not the same.
            unsafe { state(to).copy_from(state(from)) }
        }
    });
}

unsafe extern "C" fn free(sampler: *mut llama_sampler) {
    // SAFETY: llama.cpp passes our own sampler, for the last time.
    guard((), || drop(unsafe { Box::from_raw((*sampler).ctx.cast::<Chain>()) }));
}

fn host_model(context: *const llama_context) -> LlamaModel {
    // SAFETY: this thread has just fetched logits of this context, so it and its model are alive.
    unsafe { LlamaModel::of_context(context) }.expect("a context has a model")
}

/// # Safety
/// The context is valid.
unsafe fn host(context: *const llama_context) -> Host {
    let size = |n: u32| n as usize;
    // SAFETY: as above.
    unsafe {
        Host {
            model: Arc::new(host_model(context)),
            context: size(sys::llama_n_ctx_seq(context)),
            sequences: size(sys::llama_n_seq_max(context)),
            threads: usize::try_from(sys::llama_n_threads(context.cast_mut())).unwrap_or(0),
        }
    }
}

// By call

/// Makes a sampler with the proxies of a configuration file; null on failure, see [`last_error`].
///
/// # Safety
/// `path` is null or a string that ends in NUL.
pub unsafe fn sampler_init(path: *const c_char) -> *mut llama_sampler {
    guard(null_mut(), || {
        LAST_ERROR.take();
        if path.is_null() {
            set_last_error("config_path: got null, expected the path of a TOML file");
            return null_mut();
        }
        // SAFETY: as above.
        let path = unsafe { CStr::from_ptr(path) }.to_string_lossy();
        #[cfg(not(feature = "llama"))]
        if let Err(error) = sys::load() {
            set_last_error(error);
            return null_mut();
        }
        match Tuner::of(Path::new(&*path)) {
            Ok(tuner) => wrap(Chain::new(tuner)),
            Err((error, _)) => {
                set_last_error(error);
                null_mut()
            }
        }
    })
}

/// Why the last [`sampler_init`] on this thread failed; an empty string where it did not. Valid until the next one.
pub fn last_error() -> *const c_char {
    guard(c"".as_ptr(), || LAST_ERROR.with_borrow(|error| error.as_ptr()))
}

fn set_last_error(error: impl ToString) {
    LAST_ERROR.set(CString::new(error.to_string().replace('\0', " ")).unwrap_or_default());
}
