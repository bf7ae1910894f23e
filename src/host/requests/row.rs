//! What an engine hands in and gets back.

use crate::combine::{self, Shift};
use crate::error::Result;
use crate::vocab::Token;
use half::{bf16, f16};

/// A request's number, chosen by the engine.
pub type RequestId = u64;

/// One row of an engine's batch: the logits for the token that follows a history.
pub trait Row {
    /// Whose row it is: a request that was [added](super::Requests::add).
    fn request(&self) -> RequestId;
    /// All tokens that the host has read up to this row, prompt first.
    fn history(&self) -> &[Token];
    /// The row itself, as long as the host's vocabulary. Asked for by [`Requests::apply`](super::Requests::apply) alone.
    fn logits(&mut self) -> Logits<'_>;
    /// Takes note of what has become of it.
    fn report(&mut self, outcome: Outcome);
}

/// A row of logits in one of the formats that engines have them in.
#[derive(Debug)]
pub enum Logits<'a> {
    /// IEEE 754 single precision.
    F32(&'a mut [f32]),
    /// IEEE 754 half precision.
    F16(&'a mut [f16]),
    /// The upper half of single precision.
    Bf16(&'a mut [bf16]),
}

impl Logits<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(row) => row.len(),
            Self::F16(row) => row.len(),
            Self::Bf16(row) => row.len(),
        }
    }

    pub(super) fn shift(self, offset: &[f32], alpha: f32, cap: Option<f32>) -> Result<Shift> {
        match self {
            Self::F32(row) => combine::shift_by_within(row, offset, alpha, cap),
            Self::F16(row) => combine::shift_by_within(row, offset, alpha, cap),
            Self::Bf16(row) => combine::shift_by_within(row, offset, alpha, cap),
        }
    }
}

/// What has become of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The shift was added; with `alpha` 0 there was none to add.
    Shifted,
    /// The proxies failed: the row is the host's own, and the request goes on with it (`on_error = "host"`).
    Unshifted,
    /// The proxies failed: the row is the host's own, and the request is to end (`on_error = "stop"`).
    Stop,
}

/// What was done so far. Counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests at this moment.
    pub requests: u64,
    /// Rows that were shifted, those with `alpha` 0 left out.
    pub shifted: u64,
    /// Rows that were not, because the proxies failed.
    pub failed: u64,
    /// Single logits that were left as they were, see [`Shift::ignored`].
    pub ignored: u64,
    /// Rounds: at most one forward pass of each proxy, over all rows that waited.
    pub rounds: u64,
    /// Time in the tuned proxy's engine, microseconds.
    pub tuned_us: u64,
    /// Time in the untuned proxy's engine, microseconds.
    pub untuned_us: u64,
}

/// What the tuned proxy reads for a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TunedPrompt {
    /// What the host reads.
    #[default]
    Host,
    /// Tokens of the tuned proxy.
    Tokens(Vec<Token>),
    /// A text, chat template applied; control tokens in it are read as such.
    Text(String),
}
