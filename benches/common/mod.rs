//! What several benches share: an engine that takes no time, so that what is left is ours, and the shipped trio.
#![allow(dead_code)]

#[cfg(feature = "llama")]
pub mod trio;

use proxytune::Result;
use proxytune::backend::{Backend, Capabilities, Span};
#[cfg(feature = "llama")]
use proxytune::decode::Pieces;

/// Accepts every call. Each row of a pass is a place of its own in memory, and has what it had in the pass before.
pub struct Free {
    capabilities: Capabilities,
    rows: Vec<f32>,
}

impl Free {
    /// `seed` tells models apart: their most likely tokens differ.
    pub fn new(slots: usize, vocab: usize, seed: usize) -> Self {
        let capabilities =
            Capabilities { slots, context: 4096, batch: 4096, vocab, truncate: true, fork: true };
        let logit = |i: usize| (((i % vocab) * 7919 + seed * 31) % 2003) as f32 / 100.0 - 10.0;
        Self { capabilities, rows: (0..slots * vocab).map(logit).collect() }
    }
}

impl Backend for Free {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn forward(&mut self, spans: &[Span<'_>]) -> Result<()> {
        std::hint::black_box(spans);
        Ok(())
    }
    fn logits(&self, row: usize) -> &[f32] {
        &self.rows[row * self.capabilities.vocab..][..self.capabilities.vocab]
    }
    fn logits_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.rows[row * self.capabilities.vocab..][..self.capabilities.vocab]
    }
    fn truncate(&mut self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
    fn fork(&mut self, _: usize, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
    fn clear(&mut self, _: usize) {}
}

/// A vocabulary in which no token ends a text, and each spells the same.
#[cfg(feature = "llama")]
pub struct NoText;

#[cfg(feature = "llama")]
impl Pieces for NoText {
    fn is_end(&self, _: u32) -> bool {
        false
    }
    fn piece(&self, _: u32, _: bool) -> Vec<u8> {
        b"word ".to_vec()
    }
}
