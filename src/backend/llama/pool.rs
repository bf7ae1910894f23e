//! Threads that compute a pass together.

use super::sys;
use crate::error::{Error, Result};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A pool of compute threads, the caller's included. Contexts may share one: they take turns.
pub struct ThreadPool {
    raw: NonNull<sys::ggml_threadpool>,
    threads: usize,
    turn: Mutex<()>,
}

// SAFETY: the engine's pool serves any thread, one graph at a time, which `turn` ensures.
unsafe impl Send for ThreadPool {}
// SAFETY: as above.
unsafe impl Sync for ThreadPool {}

impl ThreadPool {
    /// Starts `threads - 1` threads. `poll` says how eagerly they wait for work: 0 asleep at once, 100 always spinning.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn new(threads: usize, poll: u32) -> Result<Self> {
        let threads = threads.max(1);
        // SAFETY: parameters come from the engine's defaults and are read during the call only.
        let raw = unsafe {
            let mut params = sys::ggml_threadpool_params_default(threads as i32);
            params.poll = poll;
            sys::ggml_threadpool_new(&mut params)
        };
        let raw = NonNull::new(raw)
            .ok_or_else(|| Error::engine("llama.cpp", format!("cannot start {threads} threads")))?;
        Ok(Self { raw, threads, turn: Mutex::new(()) })
    }

    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_threadpool {
        self.raw.as_ptr()
    }

    /// Held during a pass.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the threads to sleep now, where they would go on spinning for a while; the next pass wakes them.
    pub(super) fn rest(&self) {
        let _turn = self.turn();
        // SAFETY: the pool is alive and no pass runs.
        unsafe { sys::ggml_threadpool_pause(self.raw()) };
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: contexts that compute on it hold an `Arc` of it.
        unsafe { sys::ggml_threadpool_free(self.raw()) };
    }
}
