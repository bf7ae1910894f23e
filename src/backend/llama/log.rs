//! The engine's words: to `tracing` at a low level, and kept where an error will want to quote them.

use super::sys;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Starts the engine, once per process, with its log routed here. In a host's process both are the host's business.
pub(super) fn init() {
    if cfg!(not(feature = "llama")) {
        return;
    }
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        // SAFETY: plain start-up calls; `listen` matches the callback's type and lives for ever.
        unsafe {
            sys::llama_log_set(Some(listen), std::ptr::null_mut());
            sys::llama_backend_init();
        }
    });
}

/// Runs `call` and returns its value with the last error that the engine logged on this thread meanwhile.
pub(super) fn with_last_error<T>(call: impl FnOnce() -> T) -> (T, String) {
    LAST_ERROR.with_borrow_mut(String::clear);
    let value = call();
    (value, LAST_ERROR.take())
}

unsafe extern "C" fn listen(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: the engine passes a string that ends in NUL and is valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim();
    if text.is_empty() {
        return;
    }
    if level != sys::GGML_LOG_LEVEL_ERROR {
        return tracing::trace!(target: "llama", "{text}");
    }
    tracing::debug!(target: "llama", "{text}");
    LAST_ERROR.with_borrow_mut(|last| {
        // The first line says what happened; what follows only passes it on.
        if last.is_empty() {
            // "function_name: what happened"
            let what = text.split_once(": ").map_or(text, |(_, what)| what);
            what.clone_into(last);
        }
    });
}
