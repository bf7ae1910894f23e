//! What the rest of the crate asks of an inference engine: forward passes over slots of a KV cache.
//!
//! *Architecture invariant:* a backend knows no history, no sequence and no proxy. It holds `slots` caches, numbered
//! from 0, each a run of tokens from position 0; whoever calls decides what stands in them.

pub mod faulty;
#[cfg(any(feature = "llama", feature = "llama-system"))]
pub mod llama;
pub mod toy;

use crate::error::Result;
use crate::vocab::Token;

/// What a model in a backend can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Independent KV caches.
    pub slots: usize,
    /// Tokens that one slot holds.
    pub context: usize,
    /// Most tokens of one forward pass, over all spans together.
    pub batch: usize,
    /// Length of a row of logits.
    pub vocab: usize,
    /// Whether a slot can drop its last tokens; recurrent models can only clear.
    pub truncate: bool,
    /// Whether a slot can be copied into another.
    pub fork: bool,
}

/// New tokens for one slot, which follow what the slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<'a> {
    /// The slot.
    pub slot: usize,
    /// Tokens that the slot holds already; the span's first token gets this position.
    pub start: usize,
    /// The tokens; at least one.
    pub tokens: &'a [Token],
    /// How many rows of logits are wanted, counted from the span's end: 0 for a prompt's early chunks, 1 to decode,
    /// all to verify a draft.
    pub rows: usize,
}

/// An engine with one model loaded.
///
/// One object belongs to one thread at a time. Nothing here panics on behalf of an engine: what goes wrong is an
/// [`Error`](crate::Error), after which the contents of the slots that took part are unknown and must be cleared.
pub trait Backend: Send {
    /// What this model can do; the same at every call.
    fn capabilities(&self) -> &Capabilities;

    /// One forward pass over all spans, at most one a slot and at most `batch` tokens together.
    ///
    /// # Errors
    /// When the engine fails, or a span does not fit what its slot holds.
    fn forward(&mut self, spans: &[Span<'_>]) -> Result<()>;

    /// Logits of the last pass: row `i` counts over the wanted rows of all spans, in the order they were given.
    ///
    /// `vocab` values; they predict the token that follows the row's token.
    fn logits(&self, row: usize) -> &[f32];

    /// As [`logits`](Self::logits), to be changed in place; what is written stays until the next pass.
    fn logits_mut(&mut self, row: usize) -> &mut [f32];

    /// Drops what a slot holds beyond its first `len` tokens.
    ///
    /// # Errors
    /// When the model cannot; the slot is unchanged then.
    fn truncate(&mut self, slot: usize, len: usize) -> Result<()>;

    /// Makes slot `to` hold the first `len` tokens of slot `from`, dropping what it held.
    ///
    /// # Errors
    /// When the model cannot.
    fn fork(&mut self, from: usize, to: usize, len: usize) -> Result<()>;

    /// Empties a slot. Never fails.
    fn clear(&mut self, slot: usize);

    /// Gives up cores that the engine keeps busy between passes so as to be quick at the next.
    fn rest(&mut self) {}

    /// Says whether other models compute at the same time as this one; alone it may use all cores.
    fn set_alone(&mut self, _alone: bool) {}
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn capabilities(&self) -> &Capabilities {
        (**self).capabilities()
    }
    fn forward(&mut self, spans: &[Span<'_>]) -> Result<()> {
        (**self).forward(spans)
    }
    fn logits(&self, row: usize) -> &[f32] {
        (**self).logits(row)
    }
    fn logits_mut(&mut self, row: usize) -> &mut [f32] {
        (**self).logits_mut(row)
    }
    fn truncate(&mut self, slot: usize, len: usize) -> Result<()> {
        (**self).truncate(slot, len)
    }
    fn fork(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        (**self).fork(from, to, len)
    }
    fn clear(&mut self, slot: usize) {
        (**self).clear(slot)
    }
    fn rest(&mut self) {
        (**self).rest()
    }
    fn set_alone(&mut self, alone: bool) {
        (**self).set_alone(alone)
    }
}
