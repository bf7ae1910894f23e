//! A deterministic backend without a model, for tests and for measuring what is ours.
//!
//! Its logits are a hash of the whole run of tokens up to a row, so any mistake about which tokens stand in a slot
//! shows as other logits. It checks every call as a strict engine would, and fails on command.

use super::{Backend, Capabilities, Span};
use crate::error::{Error, Result};
use crate::vocab::Token;

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Toy {
    capabilities: Capabilities,
    seed: u64,
    slots: Vec<Vec<Token>>,
    rows: Vec<f32>,
    passes: usize,
    /// A pass that holds this token fails.
    poison: Option<Token>,
}

impl Toy {
    /// A model with these capabilities; `seed` tells models apart.
    pub fn new(capabilities: Capabilities, seed: u64) -> Self {
        let slots = vec![Vec::new(); capabilities.slots];
        Self { capabilities, seed, slots, rows: Vec::new(), passes: 0, poison: None }
    }

    /// Makes every pass that holds `token` fail, after it has spoilt the slots that took part.
    pub fn poisoned_by(mut self, token: Token) -> Self {
        self.poison = Some(token);
        self
    }

    /// Forward passes so far, failed ones included.
    pub fn passes(&self) -> usize {
        self.passes
    }

    /// The logits that follow `history`, computed from scratch: `vocab` values in -4..4.
    pub fn logits_after(&self, history: &[Token]) -> Vec<f32> {
        let mut row = Vec::new();
        self.push_row(history.iter().fold(self.seed, absorb), &mut row);
        row
    }

    fn push_row(&self, state: u64, rows: &mut Vec<f32>) {
        let logit = |i: usize| {
            let bits = mix(state ^ mix(i as u64)) >> 40;
            bits as f32 / (1u64 << 21) as f32 - 4.0
        };
        rows.extend((0..self.capabilities.vocab).map(logit));
    }

    fn check(&self, span: &Span<'_>) -> Result<()> {
        let Capabilities { slots, context, .. } = self.capabilities;
        let held = self.slots.get(span.slot).map(Vec::len);
        let fits = held == Some(span.start)
            && !span.tokens.is_empty()
            && span.rows <= span.tokens.len()
            && span.start + span.tokens.len() <= context;
        if fits {
            return Ok(());
        }
        Err(Error::engine(
            "toy",
            format!("span {span:?} does not fit: {held:?} held, {slots} slots of {context}"),
        ))
    }
}

fn absorb(state: u64, token: &Token) -> u64 {
    mix(state.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(*token).wrapping_add(1))
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Backend for Toy {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn forward(&mut self, spans: &[Span<'_>]) -> Result<()> {
        self.passes += 1;
        let tokens: usize = spans.iter().map(|s| s.tokens.len()).sum();
        if spans.is_empty() || tokens > self.capabilities.batch {
            return Err(Error::engine(
                "toy",
                format!("{} spans of {tokens} tokens in one pass", spans.len()),
            ));
        }
        let poisoned = spans.iter().any(|s| self.poison.is_some_and(|p| s.tokens.contains(&p)));
        let mut rows = std::mem::take(&mut self.rows);
        rows.clear();
        for (i, span) in spans.iter().enumerate() {
            self.check(span)?;
            if spans[..i].iter().any(|s| s.slot == span.slot) {
                return Err(Error::engine("toy", format!("slot {} twice in one pass", span.slot)));
            }
            if poisoned {
                self.slots[span.slot].push(Token::MAX);
                continue;
            }
            let first_row = span.tokens.len() - span.rows;
            let mut state = self.slots[span.slot].iter().fold(self.seed, absorb);
            for (i, token) in span.tokens.iter().enumerate() {
                state = absorb(state, token);
                if i >= first_row {
                    self.push_row(state, &mut rows);
                }
            }
            self.slots[span.slot].extend_from_slice(span.tokens);
        }
        self.rows = rows;
        if poisoned { Err(Error::engine("toy", "poisoned")) } else { Ok(()) }
    }

    fn logits(&self, row: usize) -> &[f32] {
        &self.rows[row * self.capabilities.vocab..][..self.capabilities.vocab]
    }

    fn logits_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.rows[row * self.capabilities.vocab..][..self.capabilities.vocab]
    }

    fn truncate(&mut self, slot: usize, len: usize) -> Result<()> {
        if !self.capabilities.truncate || len > self.slots[slot].len() {
            return Err(Error::engine("toy", format!("cannot truncate slot {slot} to {len}")));
        }
        self.slots[slot].truncate(len);
        Ok(())
    }

    fn fork(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        if !self.capabilities.fork || len > self.slots[from].len() {
            return Err(Error::engine("toy", format!("cannot fork {len} tokens of slot {from}")));
        }
        self.slots[to] = self.slots[from][..len].to_vec();
        Ok(())
    }

    fn clear(&mut self, slot: usize) {
        self.slots[slot].clear();
    }
}
