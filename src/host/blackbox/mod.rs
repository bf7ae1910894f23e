//! Hosts that give no logits: only the most likely tokens with their log-probabilities, or the right to bias them
//! (Liu et al. 2024, section 6: GPT-3.5, of which the five likeliest tokens are visible).
//!
//! ```text
//! text ─► BlackBox: what it would write, the visible tokens ──► weigh ──► token ─► text
//!   └───► Advisers: log p_tuned - log p_untuned, by bytes ────────┘
//! ```
//!
//! *Architecture invariant:* [`generate`] and [`choose`] know a host only as a [`BlackBox`], whose tokens are bytes. One
//! behind an API ([`openai`](crate::host::openai)) and one in this process ([`Local`]) are decoded by the same loop. A host
//! whose whole rows of logits are at hand has a faster one, [`Decoder`](crate::decode::Decoder), which the former is held against.

mod advisers;
mod bias;
mod call;
mod choose;
mod draft;
mod generate;
mod local;
mod outcome;
mod way;
mod weigh;

pub use advisers::{Advice, Advisers, Session, Spelling};
pub use bias::{Biases, Ids};
pub use choose::{Answered, choose};
pub use generate::{Job, generate};
pub use local::Local;
pub use outcome::{Draft, Event, Finish, Outcome, Stats, Way};
pub use weigh::{Weighed, Weight, weigh};

use crate::error::Result;
use crate::prompt::Message;
use crate::vocab::Token;
use async_trait::async_trait;

/// A token as a host shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The bytes that it spells; none for the end of the text.
    pub bytes: Vec<u8>,
    /// Its number in the host's vocabulary, where the host says it.
    pub id: Option<Token>,
    /// Natural logarithm of its probability at temperature 1; NaN where the host does not say.
    pub logprob: f32,
    /// What the host calls it where it is a control token, such as `</s>`.
    pub control: bool,
}

impl Candidate {
    /// A token of which the host has not kept the bytes, part of a character: it stands there, and is never chosen.
    pub fn lost() -> Self {
        // No text has this byte.
        Self { bytes: vec![0xff], id: None, logprob: f32::NEG_INFINITY, control: false }
    }

    /// Whether it is such a token.
    pub fn is_lost(&self) -> bool {
        self.bytes == [0xff] && self.logprob == f32::NEG_INFINITY
    }
}

/// One position as a host shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The token that stands here: chosen by the host, or drafted for it.
    pub chosen: Candidate,
    /// The most likely tokens, best first; empty where the host shows none.
    pub top: Vec<Candidate>,
    /// Several of the host's tokens that it shows as one, with the alternatives of the last: a character in parts.
    pub is_merged: bool,
}

/// What a text goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text to be continued.
    Text(String),
    /// A conversation to be answered.
    Chat(Vec<Message>),
}

/// What was written after the prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// All of it.
    pub bytes: Vec<u8>,
    /// The same in the host's tokens; `None` once one without a number was written.
    pub ids: Option<Vec<Token>>,
}

/// How a host itself chooses, where it is to choose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choosing {
    /// 0: always the most likely token.
    pub temperature: f32,
    /// Only the most likely tokens that together have this probability.
    pub top_p: f32,
    /// Seed of its draws.
    pub seed: Option<u64>,
}

impl Default for Choosing {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: None }
    }
}

/// What a host is asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The prompt.
    pub prompt: &'a Prompt,
    /// What was written after it.
    pub written: &'a Written,
    /// Most tokens to write.
    pub tokens: usize,
    /// Added to the logits of these tokens of the host.
    pub bias: &'a [(Token, f32)],
    /// How it chooses.
    pub choosing: Choosing,
}

/// What a host offers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Offers {
    /// Most likely tokens shown at each position; 0: none.
    pub top: usize,
    /// Whether it shows those of a text that it is given, so that a draft is verified in one call.
    pub reads: bool,
    /// Whether a text can be continued that it has not written itself; else an answer ends with its first token.
    pub continues: bool,
    /// Whether it takes its own tokens' numbers for what was written, so that text need not be whole characters and
    /// is never split otherwise.
    pub by_ids: bool,
    /// Most tokens that may be biased in one call, and the largest bias either way; `None`: none can.
    pub bias: Option<(usize, f32)>,
    /// Control tokens that the host shows with their numbers are those of the proxies.
    pub same_ids: bool,
}

/// What was used up so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Requests sent, repeated ones included.
    pub requests: u64,
    /// Of these, repeated after a failure.
    pub retries: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// By the prices that were given, in their currency.
    pub cost: f64,
}

/// A host that shows no logits.
#[async_trait]
pub trait BlackBox: Send + Sync {
    /// What it offers; the same at every call.
    fn offers(&self) -> &Offers;

    /// Lets it write on. Its tokens come as it writes them; dropping what is returned stops it.
    ///
    /// # Errors
    /// [`Error::Upstream`](crate::Error::Upstream) when it refuses or cannot be reached, [`Error::Budget`](crate::Error::Budget)
    /// when the call would go beyond what may be spent.
    async fn write(&self, ask: Ask<'_>) -> Result<Box<dyn Writing>>;

    /// Lets it read `draft` after what was written: each of its tokens in there becomes a position, then one position that it
    /// has written itself. Only where it offers to read.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    async fn read(&self, ask: Ask<'_>, draft: &[u8]) -> Result<Box<dyn Writing>>;

    /// What was used up so far.
    fn spent(&self) -> Spent;
}

/// A host that is writing.
#[async_trait]
pub trait Writing: Send {
    /// The next position; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Upstream`](crate::Error::Upstream) when the connection was lost or what came makes no sense; what came before stays good.
    async fn next(&mut self) -> Result<Option<Seen>>;

    /// Whether the host said that its text is over; known at the end.
    fn is_over(&self) -> bool;
}
