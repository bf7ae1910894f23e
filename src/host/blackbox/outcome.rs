//! What came of a text, and how.

use super::Spent;
use crate::error::Error;

/// How a text was shifted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Way {
    /// Re-weighing where the host shows enough tokens, else by bias.
    #[default]
    Auto,
    /// The visible tokens are weighed anew, token by token.
    Reweigh,
    /// The shift is sent as a bias, and the host samples.
    Bias,
}

impl Way {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Reweigh => "reweigh",
            Self::Bias => "bias",
        }
    }
}

/// Who wrote the tokens that one call looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Draft {
    /// Nobody: one token a call.
    #[default]
    Off,
    /// The host went on by itself for as long as the shifted choice was its own.
    Host,
    /// The tuned proxy; the host read them.
    Tuned,
    /// Whichever of these two is kept for longer.
    Either,
}

impl Draft {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Host => "host",
            Self::Tuned => "tuned",
            Self::Either => "either",
        }
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By an end token or a stop string.
    Stop,
    /// By the number of tokens.
    Length,
    /// What may be spent was spent.
    Budget,
    /// The listener said stop.
    Interrupted,
}

impl Finish {
    /// As OpenAI's interface calls it; a budget is a length there.
    pub fn name(self) -> &'static str {
        if self == Self::Stop { "stop" } else { "length" }
    }
}

/// Figures of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// How it was shifted.
    pub way: Way,
    /// Who drafted.
    pub draft: Draft,
    /// Tokens of the prompt, as the tuned proxy splits the host's; 0 without proxies.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub tokens: usize,
    /// Calls that they took; retries are in [`Spent`].
    pub calls: usize,
    /// Of these, calls with a draft of the tuned proxy.
    pub reads: usize,
    /// Positions that a call showed and that were not asked for again, over all calls.
    pub drafted: usize,
    /// Positions whose most likely visible token the shift changed.
    pub shifted: usize,
    /// Positions where no hidden token can have been more likely after the shift.
    pub certain: usize,
    /// Positions that went unshifted: a proxy failed, or could spell none of the visible tokens.
    pub unshifted: usize,
    /// Written tokens that the proxies read as several of theirs.
    pub spelt: usize,
    /// Written tokens that the proxies could not read at all.
    pub unreadable: usize,
    /// Ends that the host set without showing what else there was.
    pub unseen_ends: usize,
    /// Times that a connection was lost in mid-answer, and the text went on from what had come.
    pub resumed: usize,
    /// Fewest tokens that the host showed at a position.
    pub fewest_visible: usize,
    /// The host's probability of the visible tokens, summed over positions.
    pub visible: f64,
    /// That of those which the proxies can spell.
    pub mapped: f64,
    /// By bias: the proxies' probability of tokens whose own shift was not sent, summed over positions.
    pub left_out: f64,
    /// By bias: biases that were cut to the largest that the host takes.
    pub cut: usize,
}

impl Stats {
    /// A sum over positions as a mean; 0 without any.
    pub fn mean(&self, sum: f64) -> f64 {
        if self.tokens == 0 { 0.0 } else { sum / self.tokens as f64 }
    }

    /// The share of the visible probability that the proxies can spell; 1 where nothing was visible.
    pub fn coverage(&self) -> f64 {
        if self.visible > 0.0 { self.mapped / self.visible } else { 1.0 }
    }
}

/// A text.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What was written, without stop strings.
    pub text: String,
    /// Bytes of each token.
    pub tokens: Vec<Vec<u8>>,
    /// Why it ended.
    pub finish: Finish,
    /// Figures.
    pub stats: Stats,
    /// What the host used up for all of it so far.
    pub spent: Spent,
}

/// What a listener is told on the way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event<'a> {
    /// Text that can be shown now; may be empty.
    pub text: &'a str,
    /// Whether the shift changed the most likely token here; by bias nobody can say.
    pub is_shifted: bool,
    /// What was used up so far.
    pub spent: Spent,
}

/// A host that has not shown what its answer could be shifted by.
pub(super) fn hidden(what: &str, help: &str) -> Error {
    Error::Upstream {
        url: "the host".into(),
        status: None,
        what: what.into(),
        help: help.into(),
        transient: false,
    }
}
