//! What a preloaded library does before its host's calls reach llama.cpp.
//!
//! All of it is bookkeeping, but for [`chain_add`], which puts our sampler at the head of each chain.

use super::ffi::{guard, is_ours, wrap};
use super::heard::{self, passes};
use super::{Chain, Entry, Tuner, say};
use crate::backend::llama::sys;
use crate::config::{OnError, read_on_error};
use crate::vocab::Token;
use std::path::Path;
use std::sync::{Arc, OnceLock};

#[cfg(all(not(feature = "llama"), not(feature = "llama-linked")))]
pub use sys::find_anywhere;
pub use sys::{llama_batch, llama_context, llama_sampler};

/// The tuner that `PROXYTUNE_CONFIG` asks for; set up when the first chain is made.
static PRELOADED: OnceLock<Option<Arc<Tuner>>> = OnceLock::new();

fn preload() -> Option<Arc<Tuner>> {
    #[cfg(not(feature = "llama"))]
    let ready = sys::load();
    #[cfg(feature = "llama")]
    let ready = Ok::<(), crate::Error>(());
    let path = std::env::var_os("PROXYTUNE_CONFIG")?;
    let path = Path::new(&path);
    let error = match ready.and_then(|()| Tuner::of(path)) {
        Ok(tuner) => return Some(tuner),
        Err(error) => error,
    };
    match read_on_error(path) {
        OnError::Host => say(format_args!("{error}; all requests go on unshifted")),
        OnError::Stop => {
            say(format_args!("{error}; the program stops, since on_error = \"stop\""));
            std::process::exit(1)
        }
    }
    None
}

/// Puts our sampler at the head of a chain that is about to get its first.
///
/// # Safety
/// Both are what llama.cpp's `llama_sampler_chain_add` takes.
pub unsafe fn chain_add(chain: *mut llama_sampler, sampler: *mut llama_sampler) {
    guard((), || {
        let Some(tuner) = PRELOADED.get_or_init(preload) else { return };
        // A copy of a chain begins with a copy of ours.
        // SAFETY: as above.
        if chain.is_null() || is_ours(sampler) || unsafe { sys::llama_sampler_chain_n(chain) } != 0 {
            return;
        }
        let ours = wrap(Chain::new(tuner.clone()));
        if !ours.is_null() {
            // SAFETY: a fresh sampler, which is the chain's from now on.
            unsafe { sys::llama_sampler_chain_add(chain, ours) };
        }
    });
}

/// This thread fetches row `i` of a context's logits.
pub fn fetch(context: *const llama_context, i: i32) {
    heard::fetch(context, i);
}

/// A context is freed.
pub fn free(context: *const llama_context) {
    guard((), || passes().forget_context(context as usize));
}

/// A context computes a batch.
///
/// # Safety
/// Both are what llama.cpp's `llama_decode` takes.
pub unsafe fn decode(context: *mut llama_context, batch: &llama_batch) {
    guard((), || {
        // SAFETY: as above.
        let entries = unsafe { entries(context, batch) };
        passes().run(context as usize, entries);
        starts_pass();
    });
}

/// A context computes a batch that was filled by the functions of [`filled`].
pub fn process(context: *mut llama_context, batch: usize) {
    guard((), || {
        passes().run_batch(context as usize, batch);
        starts_pass();
    });
}

fn starts_pass() {
    heard::pass();
    if let Some(Some(tuner)) = PRELOADED.get() {
        tuner.host_computes();
    }
}

/// # Safety
/// A valid context, and a batch of which `n_tokens` places are filled.
unsafe fn entries(context: *mut llama_context, batch: &llama_batch) -> Vec<Entry> {
    let count = usize::try_from(batch.n_tokens).unwrap_or(0);
    let mut next = Vec::<(i32, i32)>::new();
    let entry = |at: usize| {
        // SAFETY: as above; what is null has the meaning that llama.cpp gives it.
        unsafe {
            let sequences = match batch.seq_id.is_null() || batch.n_seq_id.is_null() {
                true => vec![0],
                false => {
                    (0..*batch.n_seq_id.add(at)).map(|i| *(*batch.seq_id.add(at)).add(i as usize)).collect()
                }
            };
            let position = match batch.pos.is_null() {
                false => *batch.pos.add(at),
                true => following(context, sequences.first().copied().unwrap_or(0), &mut next),
            };
            let output = match batch.logits.is_null() {
                true => at + 1 == count,
                false => *batch.logits.add(at) != 0,
            };
            let token = if batch.token.is_null() { None } else { Token::try_from(*batch.token.add(at)).ok() };
            Entry { token, sequences, position, output }
        }
    };
    (0..count).map(entry).collect()
}

/// The position after a sequence's last, as llama.cpp counts where none is given.
///
/// # Safety
/// A valid context.
unsafe fn following(context: *mut llama_context, sequence: i32, next: &mut Vec<(i32, i32)>) -> i32 {
    let at = next.iter().position(|(of, _)| *of == sequence).unwrap_or_else(|| {
        // SAFETY: as above.
        let last = unsafe { sys::llama_memory_seq_pos_max(sys::llama_get_memory(context), sequence) };
        next.push((sequence, last));
        next.len() - 1
    });
    next[at].1 += 1;
    next[at].1
}

/// A batch that is opaque here is filled by calls; these hear of them.
pub mod filled {
    use super::*;

    /// It is empty now.
    pub fn clear(batch: usize) {
        guard((), || passes().batch(batch).clear());
    }

    /// It is freed.
    pub fn free(batch: usize) {
        guard((), || passes().forget_batch(batch));
    }

    /// A token was added, or with `None` something else, at the index that the engine returned.
    pub fn add(batch: usize, sequence: i32, token: Option<i32>, index: i32) {
        guard((), || {
            let mut passes = passes();
            let entries = passes.batch(batch);
            if usize::try_from(index) == Ok(entries.len()) {
                let token = token.and_then(|token| Token::try_from(token).ok());
                entries.push(Entry { token, sequences: vec![sequence], position: -1, output: false });
            }
        });
    }

    /// Changes the entry at an index.
    pub fn change(batch: usize, index: i32, change: impl FnOnce(&mut Entry)) {
        guard((), || {
            let mut passes = passes();
            if let Some(entry) = usize::try_from(index).ok().and_then(|i| passes.batch(batch).get_mut(i)) {
                change(entry);
            }
        });
    }
}
