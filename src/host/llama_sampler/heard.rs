//! What this library has heard of its host's passes.

use super::{Passes, Place};
use crate::backend::llama::sys::llama_context;
use std::cell::Cell;
use std::ptr::null;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

thread_local! {
    /// Whose logits this thread fetched last, and which row.
    static FETCHED: Cell<(*const llama_context, i32)> = const { Cell::new((null(), 0)) };
}

static PASSES: LazyLock<Mutex<Passes>> = LazyLock::new(Mutex::default);
static HEARS_PASSES: AtomicBool = AtomicBool::new(false);

/// The batches and contexts of the process.
pub(super) fn passes() -> MutexGuard<'static, Passes> {
    PASSES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pass was heard of.
pub(super) fn pass() {
    HEARS_PASSES.store(true, Relaxed);
}

/// Whether this library hears of the host's forward passes.
pub(super) fn hears_passes() -> bool {
    HEARS_PASSES.load(Relaxed)
}

/// This thread fetches row `i` of a context's logits.
pub(super) fn fetch(context: *const llama_context, i: i32) {
    FETCHED.set((context, i));
}

/// The context whose logits this thread fetched last, where it is known and alive; `learn` is told what they are for.
pub(super) fn fetched(learn: impl FnOnce(&Place<'_>)) -> Option<*const llama_context> {
    let (context, i) = FETCHED.get();
    let passes = passes();
    if !passes.knows(context as usize) {
        return None;
    }
    if let Some(place) = passes.place(context as usize, i) {
        learn(&place);
    }
    Some(context)
}
